//! What the controllers know of the cluster: one store per kind, fed by watches and by the answers to our own writes.

use std::collections::{BTreeMap, HashSet, VecDeque};

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, Pod, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

/// How many deleted objects are remembered, so that a late answer doesn't bring one back.
const TOMBSTONES: usize = 8192;

/// Objects of one kind by namespace (empty for cluster-wide kinds) and name.
#[derive(Debug)]
pub(crate) struct Store<T>(BTreeMap<String, BTreeMap<String, T>>);

impl<T> Default for Store<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T> Store<T> {
    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<&T> {
        self.0.get(namespace)?.get(name)
    }

    /// In the order of names.
    pub(crate) fn in_namespace(&self, namespace: &str) -> impl Iterator<Item = &T> {
        self.0.get(namespace).into_iter().flat_map(BTreeMap::values)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &T> {
        self.0.values().flat_map(BTreeMap::values)
    }

    pub(crate) fn insert(&mut self, namespace: &str, name: &str, object: T) -> Option<T> {
        self.0.entry(namespace.to_owned()).or_default().insert(name.to_owned(), object)
    }

    pub(crate) fn remove(&mut self, namespace: &str, name: &str) -> Option<T> {
        let names = self.0.get_mut(namespace)?;
        let removed = names.remove(name);
        if names.is_empty() {
            self.0.remove(namespace);
        }
        removed
    }
}

macro_rules! kinds {
    ($($kind:ident, $store:ident, $group_version:literal, $plural:literal, $namespaced:literal;)*) => {
        /// The kinds controllers read or write.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub(crate) enum Kind { $($kind,)* }

        /// An object of any of them.
        #[derive(Debug, Clone)]
        pub(crate) enum Object { $($kind(Box<$kind>),)* }

        $(impl From<$kind> for Object {
            fn from(object: $kind) -> Self {
                Self::$kind(Box::new(object))
            }
        })*

        impl Kind {
            /// Path of the API's group and version, for example `/apis/apps/v1`; plural name; whether it lives in namespaces.
            pub(crate) fn resource(self) -> (&'static str, &'static str, bool) {
                match self { $(Self::$kind => ($group_version, $plural, $namespaced),)* }
            }

            /// Reads an object of this kind from the API's JSON.
            pub(crate) fn parse(self, value: Value) -> Result<Object, serde_json::Error> {
                match self { $(Self::$kind => serde_json::from_value::<$kind>(value).map(Object::from),)* }
            }
        }

        impl Object {
            pub(crate) fn kind(&self) -> Kind {
                match self { $(Self::$kind(_) => Kind::$kind,)* }
            }

            pub(crate) fn metadata(&self) -> &ObjectMeta {
                match self { $(Self::$kind(object) => &object.metadata,)* }
            }
        }

        /// Everything known. Read by decisions, written by the driver only.
        #[derive(Debug, Default)]
        pub(crate) struct Cache {
            $(pub(crate) $store: Store<$kind>,)*
            tombstones: VecDeque<String>,
            deleted: HashSet<String>,
        }

        impl Cache {
            fn version(&self, kind: Kind, namespace: &str, name: &str) -> Option<(u64, &str)> {
                match kind { $(Kind::$kind => self.$store.get(namespace, name).map(|object| version(&object.metadata)),)* }
            }

            fn insert(&mut self, object: Object) -> Option<Object> {
                let meta = object.metadata();
                let (namespace, name) =
                    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default());
                match object {
                    $(Object::$kind(object) => self.$store.insert(&namespace, &name, *object).map(Object::from),)*
                }
            }

            fn take(&mut self, kind: Kind, namespace: &str, name: &str) -> Option<Object> {
                match kind { $(Kind::$kind => self.$store.remove(namespace, name).map(Object::from),)* }
            }

            /// Namespace and name of every object of a kind.
            pub(crate) fn names(&self, kind: Kind) -> Vec<(String, String)> {
                match kind {
                    $(Kind::$kind => self.$store.all().map(|object| {
                        let meta = &object.metadata;
                        (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
                    }).collect(),)*
                }
            }
        }
    };
}

kinds! {
    Namespace, namespaces, "/api/v1", "namespaces", false;
    Node, nodes, "/api/v1", "nodes", false;
    Pod, pods, "/api/v1", "pods", true;
    Service, services, "/api/v1", "services", true;
    Endpoints, endpoints, "/api/v1", "endpoints", true;
    ServiceAccount, service_accounts, "/api/v1", "serviceaccounts", true;
    ConfigMap, config_maps, "/api/v1", "configmaps", true;
    EndpointSlice, endpoint_slices, "/apis/discovery.k8s.io/v1", "endpointslices", true;
    Deployment, deployments, "/apis/apps/v1", "deployments", true;
    ReplicaSet, replica_sets, "/apis/apps/v1", "replicasets", true;
    StatefulSet, stateful_sets, "/apis/apps/v1", "statefulsets", true;
    DaemonSet, daemon_sets, "/apis/apps/v1", "daemonsets", true;
    Job, jobs, "/apis/batch/v1", "jobs", true;
    Secret, secrets, "/api/v1", "secrets", true;
    CertificateSigningRequest, signing_requests, "/apis/certificates.k8s.io/v1", "certificatesigningrequests", false;
}

/// A change of the cache: what was there and what is there now (one of them may be missing).
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) old: Option<Object>,
    pub(crate) new: Option<Object>,
}

impl Cache {
    /// Takes an object as the API server has told it, by a watch or in answer to a write. `None` when it is no news:
    /// the two come in any order, so older versions and objects known to be deleted are passed over.
    pub(crate) fn apply(&mut self, object: Object) -> Option<Change> {
        let meta = object.metadata();
        let (namespace, name) = (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref()?);
        let (new_version, uid) = version(meta);
        if self.deleted.contains(uid) {
            return None;
        }
        if self.version(object.kind(), namespace, name).is_some_and(|(known, _)| known >= new_version) {
            return None;
        }
        let old = self.insert(object.clone());
        Some(Change { old, new: Some(object) })
    }

    /// Takes note of a deletion. `None` when it is no news or another object has taken the name.
    pub(crate) fn delete(&mut self, kind: Kind, meta: &ObjectMeta) -> Option<Change> {
        let (namespace, name) = (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref()?);
        let uid = meta.uid.as_deref().unwrap_or_default();
        self.bury(uid);
        if self.version(kind, namespace, name)?.1 != uid {
            return None;
        }
        self.take(kind, namespace, name).map(|old| Change { old: Some(old), new: None })
    }

    /// Drops what a fresh list of a kind doesn't have, except objects younger than the list.
    pub(crate) fn retain(
        &mut self,
        kind: Kind,
        listed: &HashSet<(String, String)>,
        newest: u64,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        for (namespace, name) in self.names(kind) {
            let younger = self.version(kind, &namespace, &name).is_some_and(|(version, _)| version > newest);
            if !younger && !listed.contains(&(namespace.clone(), name.clone())) {
                let old = self.take(kind, &namespace, &name);
                changes.push(Change { old, new: None });
            }
        }
        changes
    }

    fn bury(&mut self, uid: &str) {
        if self.deleted.insert(uid.to_owned()) {
            self.tombstones.push_back(uid.to_owned());
        }
        if self.tombstones.len() > TOMBSTONES
            && let Some(oldest) = self.tombstones.pop_front()
        {
            self.deleted.remove(&oldest);
        }
    }
}

/// Resource version (a growing number with every API server there is, though the API doesn't promise it) and uid.
pub(crate) fn version(meta: &ObjectMeta) -> (u64, &str) {
    let number = meta.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0);
    (number, meta.uid.as_deref().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, version: u64) -> Object {
        let metadata = ObjectMeta {
            namespace: Some("default".to_owned()),
            name: Some("web".to_owned()),
            uid: Some(uid.to_owned()),
            resource_version: Some(version.to_string()),
            ..ObjectMeta::default()
        };
        Pod { metadata, ..Pod::default() }.into()
    }

    #[test]
    fn older_versions_are_no_news() {
        let mut cache = Cache::default();
        assert!(cache.apply(pod("a", 5)).is_some());
        assert!(cache.apply(pod("a", 5)).is_none());
        assert!(cache.apply(pod("a", 4)).is_none());
        assert!(cache.apply(pod("a", 6)).is_some());
    }

    #[test]
    fn the_dead_stay_dead() {
        let mut cache = Cache::default();
        cache.apply(pod("a", 5));
        assert!(cache.delete(Kind::Pod, pod("a", 7).metadata()).is_some());
        assert!(cache.apply(pod("a", 6)).is_none(), "a late answer to a write");
        assert!(cache.apply(pod("b", 8)).is_some(), "another pod of the same name");
        assert!(cache.delete(Kind::Pod, pod("a", 7).metadata()).is_none());
        assert!(cache.pods.get("default", "web").is_some());
    }

    #[test]
    fn a_fresh_list_removes_what_it_lacks() {
        let mut cache = Cache::default();
        cache.apply(pod("a", 5));
        assert!(cache.retain(Kind::Pod, &HashSet::new(), 4).is_empty(), "younger than the list");
        assert_eq!(cache.retain(Kind::Pod, &HashSet::new(), 5).len(), 1);
    }
}
