//! References that a change breaks. Related objects are written one after another, a subset and then the route to it, but each kind is
//! watched by itself, so that they may arrive the other way round.
use std::collections::BTreeSet;
use std::sync::Arc;

use lateen_api::networking::virtual_service::Destination;
use lateen_model::{Delta, ObjectName, VirtualService, World, resolve_host};

/// A destination that requests are routed to and that is not there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MissingDestination {
    /// The VirtualService that routes to it.
    pub rule: ObjectName,
    /// Its host, as written.
    pub host: String,
    /// Its subset; empty for the host itself.
    pub subset: String,
}

/// What is routed to after a change and not there, although the same rule's routes to it were not broken before.
pub fn newly_missing(before: &World, now: &World, delta: &Delta) -> BTreeSet<MissingDestination> {
    let mut missing = BTreeSet::new();
    for rule in delta.virtual_services.iter().filter_map(|name| now.virtual_service(name)) {
        missing.extend(missing_of(rule, now, |_| true));
    }
    let lost = Lost::between(before, now, delta);
    if !lost.is_empty() {
        for rule in now.virtual_services() {
            missing.extend(missing_of(rule, now, |destination| lost.concerns(destination, rule, now)));
        }
    }
    // What was broken already is not for the rest of the change to wait for.
    missing.retain(|one| {
        let rule = before.virtual_service(&one.rule);
        rule.is_none_or(|rule| {
            let same =
                |destination: &Destination| destination.host == one.host && destination.subset == one.subset;
            missing_of(rule, before, same).next().is_none()
        })
    });
    missing
}

/// What went with a change.
struct Lost<'a> {
    hosts: BTreeSet<&'a str>,
    subsets: BTreeSet<&'a str>,
}

impl<'a> Lost<'a> {
    fn between(before: &'a World, now: &World, delta: &'a Delta) -> Self {
        let hosts = delta.services.iter().map(|host| &**host).filter(|host| now.service(host).is_none());
        let rules = delta.destination_rules.iter().filter_map(|name| {
            let (old, new) = (before.destination_rule_named(name)?, now.destination_rule_named(name));
            let kept = new.filter(|new| {
                new.spec.host == old.spec.host
                    && new.spec.export_to == old.spec.export_to
                    && new.spec.workload_selector == old.spec.workload_selector
            });
            Some((old, kept))
        });
        let subsets = rules.flat_map(|(old, kept)| {
            let kept = kept.map(|kept| kept.spec.subsets.as_slice()).unwrap_or_default();
            let names = old.spec.subsets.iter().map(|subset| subset.name.as_str());
            names.filter(|name| !kept.iter().any(|kept| kept.name == *name))
        });
        Self { hosts: hosts.collect(), subsets: subsets.collect() }
    }

    fn is_empty(&self) -> bool {
        self.hosts.is_empty() && self.subsets.is_empty()
    }

    fn concerns(&self, destination: &Destination, rule: &VirtualService, world: &World) -> bool {
        self.subsets.contains(destination.subset.as_str())
            || (!self.hosts.is_empty() && {
                let host = resolve_host(&destination.host, &rule.name.namespace, world.domain());
                self.hosts.contains(host.as_str())
            })
    }
}

fn missing_of<'a>(
    rule: &'a Arc<VirtualService>,
    world: &'a World,
    concerns: impl Fn(&Destination) -> bool + 'a,
) -> impl Iterator<Item = MissingDestination> + 'a {
    let own = &rule.name.namespace;
    let is_missing = move |destination: &&Destination| {
        concerns(destination)
            && world.resolve_service(&destination.host, own).is_none_or(|service| {
                !destination.subset.is_empty() && !world.has_subset(service, own, &destination.subset)
            })
    };
    destinations(rule).filter(is_missing).map(|destination| MissingDestination {
        rule: rule.name.clone(),
        host: destination.host.clone(),
        subset: destination.subset.clone(),
    })
}

/// Where a rule sends requests and connections; copies (mirrors) do not fail anybody.
fn destinations(rule: &VirtualService) -> impl Iterator<Item = &Destination> {
    let http = rule.spec.http.iter().flat_map(|route| &route.route).map(|route| &route.destination);
    let tls = rule.spec.tls.iter().flat_map(|route| &route.route);
    let tcp = rule.spec.tcp.iter().flat_map(|route| &route.route);
    http.chain(tls.chain(tcp).map(|route| &route.destination))
}
