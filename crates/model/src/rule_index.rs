//! Which DestinationRule a client uses for a host.
//! <https://istio.io/latest/docs/reference/config/networking/destination-rule/#DestinationRule>
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::config::DestinationRule;
use crate::digest::digest_of;
use crate::hostname::{host_matches, resolve_host};
use crate::pod::labels_match;
use crate::visibility::Visibility;
use crate::world::World;

/// All DestinationRules by namespace and host, those of one host oldest first.
#[derive(Clone, Debug, Default)]
pub(crate) struct RuleIndex(BTreeMap<Arc<str>, BTreeMap<String, Vec<Known>>>);

#[derive(Clone, Debug)]
struct Known {
    rule: Arc<DestinationRule>,
    visibility: Visibility,
}

/// Who asks for a rule.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    /// Namespace.
    pub namespace: &'a str,
    /// Labels, which rules with a `workloadSelector` ask for; none: no such rule applies.
    pub labels: Option<&'a BTreeMap<String, String>>,
}

impl RuleIndex {
    pub(crate) fn build(world: &World) -> Self {
        let mut sorted: Vec<_> = world.destination_rules.values().collect();
        sorted.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
        let default = &world.mesh.default_destination_rule_export_to;
        let mut index: BTreeMap<Arc<str>, BTreeMap<String, Vec<Known>>> = BTreeMap::new();
        for rule in sorted {
            let own = &rule.name.namespace;
            let host = resolve_host(&rule.spec.host, own, &world.domain);
            // A rule for some workloads is for those of its own namespace only.
            let visibility = match rule.spec.workload_selector {
                Some(_) => Visibility::Namespaces([own.clone()].into()),
                None => Visibility::parse(&rule.spec.export_to, default, own),
            };
            let known = Known { rule: rule.clone(), visibility };
            index.entry(own.clone()).or_default().entry(host).or_default().push(known);
        }
        Self(index)
    }

    /// See [`World::destination_rule`].
    pub(crate) fn find(
        &self,
        host: &str,
        client: Client<'_>,
        service_namespace: &str,
        root: &str,
    ) -> Option<Arc<DestinationRule>> {
        // In Istio the root namespace's rules are the mesh's defaults, also for clients inside it: of those, only what is
        // kept from everybody else goes before the service's own.
        let own = self.in_namespace(host, client, client.namespace, client.namespace == root);
        let or_of = |namespace: &str| self.in_namespace(host, client, namespace, false);
        own.or_else(|| or_of(service_namespace)).or_else(|| or_of(root))
    }

    /// The rule of one namespace: for the exact host, else for the longest wildcard.
    fn in_namespace(
        &self,
        host: &str,
        client: Client<'_>,
        namespace: &str,
        private_only: bool,
    ) -> Option<Arc<DestinationRule>> {
        let hosts = self.0.get(namespace)?;
        let usable = |known: &[Known]| {
            let wanted = known.iter().filter(|known| !private_only || known.is_private());
            merged(wanted.filter(|known| known.applies_to(client)).map(|known| &known.rule))
        };
        if let Some(found) = hosts.get(host).and_then(|known| usable(known)) {
            return Some(found);
        }
        // Wildcards stand together: nothing else begins with an asterisk.
        let wildcards = hosts.range("*".to_owned().."+".to_owned());
        let mut covering: Vec<_> = wildcards.filter(|(pattern, _)| host_matches(pattern, host)).collect();
        covering.sort_by_key(|(pattern, _)| std::cmp::Reverse(pattern.len()));
        covering.into_iter().find_map(|(_, known)| usable(known))
    }

    /// The older rules for the same host that a rule is merged into, where somebody sees both.
    pub(crate) fn older(&self, rule: &DestinationRule, host: &str) -> Vec<Arc<DestinationRule>> {
        let known = self.0.get(&rule.name.namespace).and_then(|hosts| hosts.get(host));
        let known = known.map(Vec::as_slice).unwrap_or_default();
        let Some(at) = known.iter().position(|known| known.rule.name == rule.name) else { return Vec::new() };
        let this = &known[at];
        let merged = known[..at].iter().filter(|older| {
            older.visibility.overlaps(&this.visibility)
                && older.rule.spec.workload_selector == this.rule.spec.workload_selector
        });
        merged.map(|older| older.rule.clone()).collect()
    }

    /// Whether a rule that some workload in `client` uses for a host has this subset.
    pub(crate) fn has_subset(&self, host: &str, client: &str, others: [&str; 2], subset: &str) -> bool {
        std::iter::once(client).chain(others).any(|namespace| {
            self.0.get(namespace).is_some_and(|hosts| {
                let exact = hosts.get(host).into_iter();
                let wildcards = hosts.range("*".to_owned().."+".to_owned());
                let covering =
                    wildcards.filter(|(pattern, _)| host_matches(pattern, host)).map(|(_, known)| known);
                exact.chain(covering).flatten().any(|known| {
                    known.visibility.allows(client)
                        && known.rule.spec.subsets.iter().any(|known| known.name == subset)
                })
            })
        })
    }
}

impl Known {
    fn applies_to(&self, client: Client<'_>) -> bool {
        let selected = match &self.rule.spec.workload_selector {
            None => true,
            Some(selector) => {
                client.labels.is_some_and(|labels| labels_match(&selector.match_labels, labels))
            }
        };
        selected && self.visibility.allows(client.namespace)
    }

    /// Whether only its own namespace sees it.
    fn is_private(&self) -> bool {
        let own = &self.rule.name.namespace;
        matches!(&self.visibility, Visibility::Namespaces(some) if some.iter().eq([own]))
    }
}

/// Rules for one host in one namespace, oldest first, as one: the first's name and policy, everybody's subsets. A rule for
/// selected workloads goes before those for all, and beside rules with another selector it stands alone.
fn merged<'a>(rules: impl Iterator<Item = &'a Arc<DestinationRule>>) -> Option<Arc<DestinationRule>> {
    let (special, general): (Vec<_>, Vec<_>) = rules.partition(|rule| rule.spec.workload_selector.is_some());
    let selector = special.first().and_then(|rule| rule.spec.workload_selector.as_ref());
    let same = |rule: &&&Arc<DestinationRule>| rule.spec.workload_selector.as_ref() == selector;
    let mut rules = special.iter().filter(same).chain(&general);
    let mut first: Arc<DestinationRule> = (*rules.next()?).clone();
    for rule in rules {
        let merged = Arc::make_mut(&mut first);
        for subset in &rule.spec.subsets {
            if !merged.spec.subsets.iter().any(|known| known.name == subset.name) {
                merged.spec.subsets.push(subset.clone());
            }
        }
        if merged.spec.traffic_policy.is_none() {
            merged.spec.traffic_policy.clone_from(&rule.spec.traffic_policy);
        }
        merged.digest = digest_of(&(merged.digest, rule.digest));
    }
    Some(first)
}

#[cfg(test)]
mod tests;
