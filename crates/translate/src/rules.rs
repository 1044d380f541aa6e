//! Which rules of a VirtualService apply to a class of proxies: the conditions that do not depend on the request.
use std::sync::Arc;

use lateen_api::networking::load_balancing::ConsistentHashLb;
use lateen_api::networking::virtual_service::{Destination, HttpMatchRequest};
use lateen_model::{DestinationRule, VirtualService, labels_match, resolve_gateway, resolve_host};

use crate::hash_policy;
use crate::scope::Scope;

/// The HTTP rules of a VirtualService that may match requests through one class of proxies, at one gateway and port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct AppliedRules {
    pub(crate) virtual_service: Arc<VirtualService>,
    pub(crate) rules: Vec<AppliedRule>,
    only_ports: OnlyPorts,
    /// The DestinationRule of each destination service that has one with consistent hashing.
    hashing: Vec<(String, Arc<DestinationRule>)>,
}

/// What destinations mean that say less than everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct OnlyPorts {
    /// The port of each destination service that has exactly one: what a destination without a port means.
    ports: Vec<(String, u16)>,
    /// Hosts that are aliases (`ExternalName`), with the service behind each.
    aliases: Vec<(String, String)>,
}

/// One rule of `spec.http`, by its index, with the indices of those of its matches that may hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct AppliedRule {
    pub(crate) index: usize,
    /// None: everything matches.
    pub(crate) matches: Option<Vec<usize>>,
}

impl AppliedRules {
    /// `gateway` is `mesh` or `namespace/name`, `port` the one requests are addressed to.
    pub(crate) fn new(
        scope: &Scope,
        virtual_service: &Arc<VirtualService>,
        gateway: &str,
        port: u16,
    ) -> Self {
        let mut rules = Vec::new();
        for (index, rule) in virtual_service.spec.http.iter().enumerate() {
            if rule.r#match.is_empty() {
                rules.push(AppliedRule { index, matches: None });
                break; // nothing after it can be reached
            }
            let may_hold = |(_, condition): &(usize, &HttpMatchRequest)| {
                may_hold(scope, virtual_service, condition, gateway, port)
            };
            let matches: Vec<usize> =
                rule.r#match.iter().enumerate().filter(may_hold).map(|(index, _)| index).collect();
            if !matches.is_empty() {
                rules.push(AppliedRule { index, matches: Some(matches) });
            }
        }
        let destinations = rules.iter().flat_map(|rule| &virtual_service.spec.http[rule.index].route);
        let only_ports = OnlyPorts::new(
            scope,
            &virtual_service.name.namespace,
            destinations.map(|route| &route.destination),
        );
        let hashing = hashing_rules(scope, virtual_service, &rules);
        Self { virtual_service: virtual_service.clone(), rules, only_ports, hashing }
    }

    /// What the DestinationRule of a destination hashes.
    pub(crate) fn consistent_hash(&self, host: &str, port: u16, subset: &str) -> Option<&ConsistentHashLb> {
        let (_, rule) = self.hashing.iter().find(|(known, _)| known == host)?;
        hash_policy::consistent_hash(rule, port, subset)
    }

    /// Host and port a destination means; requests were addressed to `port`.
    pub(crate) fn resolve(&self, destination: &Destination, domain: &str, port: u16) -> (String, u16) {
        self.only_ports.resolve(destination, &self.virtual_service.name.namespace, domain, port)
    }
}

impl OnlyPorts {
    /// Of the services that rules in `namespace` mean by these destinations.
    pub(crate) fn new<'a>(
        scope: &Scope,
        namespace: &str,
        destinations: impl Iterator<Item = &'a Destination>,
    ) -> Self {
        let (mut ports, mut aliases) = (Vec::new(), Vec::new());
        for destination in destinations {
            let Some(service) = scope.world.resolve_service(&destination.host, namespace) else { continue };
            let host = service.hostname.to_string();
            let named = resolve_host(&destination.host, namespace, scope.world.domain());
            if named != host {
                aliases.push((named, host.clone()));
            }
            let mut own = service.mesh_ports();
            if let (Some(only), None) = (own.next(), own.next()) {
                ports.push((host, only.port));
            }
        }
        ports.sort();
        ports.dedup();
        aliases.sort();
        aliases.dedup();
        Self { ports, aliases }
    }

    /// Host and port a destination means; what is sent there was addressed to `port`.
    pub(crate) fn resolve(
        &self,
        destination: &Destination,
        namespace: &str,
        domain: &str,
        port: u16,
    ) -> (String, u16) {
        let named = resolve_host(&destination.host, namespace, domain);
        let meant = self.aliases.iter().find(|(alias, _)| *alias == named);
        let host = meant.map_or(named, |(_, meant)| meant.clone());
        let given = destination.port.as_ref().and_then(|port| u16::try_from(port.number).ok());
        let only = || self.ports.iter().find(|(known, _)| *known == host).map(|(_, port)| *port);
        let port = given.filter(|&port| port != 0).or_else(only).unwrap_or(port);
        (host, port)
    }
}

fn hashing_rules(
    scope: &Scope,
    virtual_service: &VirtualService,
    rules: &[AppliedRule],
) -> Vec<(String, Arc<DestinationRule>)> {
    let mut hashing: Vec<(String, Arc<DestinationRule>)> = Vec::new();
    for route in rules.iter().flat_map(|rule| &virtual_service.spec.http[rule.index].route) {
        let host = &route.destination.host;
        let Some(service) = scope.world.resolve_service(host, &virtual_service.name.namespace) else {
            continue;
        };
        if hashing.iter().all(|(known, _)| **known != *service.hostname)
            && let Some(rule) = hash_policy::hashing_rule(scope, service)
        {
            hashing.push((service.hostname.to_string(), rule));
        }
    }
    hashing
}

fn may_hold(
    scope: &Scope,
    virtual_service: &VirtualService,
    condition: &HttpMatchRequest,
    gateway: &str,
    port: u16,
) -> bool {
    let own = &virtual_service.name.namespace;
    let class = &scope.class;
    let gateway_holds = condition.gateways.is_empty()
        || condition.gateways.iter().any(|name| resolve_gateway(name, own) == gateway);
    gateway_holds
        && (condition.port == 0 || condition.port == u32::from(port))
        && (condition.source_namespace.is_empty() || *condition.source_namespace == *class.namespace)
        && labels_match(&condition.source_labels, &class.labels)
}
