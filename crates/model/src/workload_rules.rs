//! What applies to a workload by its namespace and labels: policies, tokens with the keys that are known, Sidecars.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use imbl::OrdMap;
use lateen_api::security::target_reference::Targeted;

use crate::config::{AuthorizationPolicy, Config, RequestAuthentication, Sidecar};
use crate::key_set::{KeySet, KeySource};
use crate::name::ObjectName;
use crate::pod::labels_match;
use crate::world::World;

impl World {
    /// All AuthorizationPolicies by name.
    pub fn authorization_policies(&self) -> impl Iterator<Item = &Arc<AuthorizationPolicy>> {
        self.authorization_policies.values()
    }

    /// The AuthorizationPolicies for a workload, by name: its namespace's and the root namespace's, those without a selector,
    /// those that select its labels, and those for the Gateway it serves ([`Targeted::is_for`]).
    pub fn authorization_policies_for(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
    ) -> Vec<Arc<AuthorizationPolicy>> {
        self.of_workload(&self.authorization_policies, namespace, labels)
    }

    /// All RequestAuthentications by name.
    pub fn request_authentications(&self) -> impl Iterator<Item = &Arc<RequestAuthentication>> {
        self.request_authentications.values()
    }

    /// The RequestAuthentications for a workload, chosen like its AuthorizationPolicies.
    pub fn request_authentications_for(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
    ) -> Vec<Arc<RequestAuthentication>> {
        self.of_workload(&self.request_authentications, namespace, labels)
    }

    /// What is known of the keys from there; none: nobody has asked yet.
    pub fn key_set(&self, source: &KeySource) -> Option<&Arc<KeySet>> {
        self.key_sets.get(source)
    }

    /// All keys that were asked for.
    pub fn key_sets(&self) -> impl Iterator<Item = &Arc<KeySet>> {
        self.key_sets.values()
    }

    /// Those of a workload's namespace and of the root namespace that are for it.
    fn of_workload<S: Targeted>(
        &self,
        all: &OrdMap<ObjectName, Arc<Config<S>>>,
        namespace: &str,
        labels: &BTreeMap<String, String>,
    ) -> Vec<Arc<Config<S>>> {
        let root = self.mesh.root_namespace.as_str();
        let namespaces: BTreeSet<&str> = [namespace, root].into();
        let of_namespace = |namespace: &str| {
            let from = ObjectName::new(namespace, "");
            let own: Arc<str> = namespace.into();
            let all = all.range(from..).map(|(_, policy)| policy);
            all.take_while(move |policy| policy.name.namespace == own)
        };
        let selects =
            |policy: &&Arc<Config<S>>| policy.spec.is_for(&policy.name.namespace, namespace, labels);
        namespaces.into_iter().flat_map(of_namespace).filter(selects).cloned().collect()
    }

    /// All Sidecars by name.
    pub fn sidecars(&self) -> impl Iterator<Item = &Arc<Sidecar>> {
        self.sidecars.values()
    }

    /// The Sidecar for a workload: of its namespace one that selects it, else one without a selector, else the root
    /// namespace's without a selector; the oldest of several, as Istio documents it.
    pub fn sidecar_for(&self, namespace: &str, labels: &BTreeMap<String, String>) -> Option<&Arc<Sidecar>> {
        let selects = |sidecar: &Sidecar| sidecar.spec.workload_selector.is_some();
        let own = self.sidecars_of(namespace).filter(|sidecar| {
            let selector = sidecar.spec.workload_selector.as_ref();
            selector.is_none_or(|selector| labels_match(&selector.labels, labels))
        });
        let oldest = |one: &&Arc<Sidecar>| (!selects(one), one.created, one.name.clone());
        let of_root = || {
            let all = self.sidecars_of(&self.mesh.root_namespace).filter(|sidecar| !selects(sidecar));
            all.min_by_key(oldest)
        };
        own.min_by_key(oldest).or_else(of_root)
    }

    /// The Sidecars of a namespace, by name.
    pub fn sidecars_of(&self, namespace: &str) -> impl Iterator<Item = &Arc<Sidecar>> {
        let from = ObjectName::new(namespace, "");
        let all = self.sidecars.range(from..).map(|(_, sidecar)| sidecar);
        all.take_while(move |sidecar| *sidecar.name.namespace == *namespace)
    }
}
