//! From what changed in the world to what may change in a proxy's configuration.
use std::collections::BTreeSet;
use std::sync::Arc;

use lateen_model::{Delta, Hostname, ObjectName, Resolution, Service};

use crate::gateways_tls;
use crate::listeners_outbound::listens_at_endpoints;
use crate::mutual_tls;
use crate::networks;
use crate::providers;
use crate::proxy::ProxyKind;
use crate::resource::ResourceType;
use crate::scope::Scope;
use crate::tokens;

/// How much of one type of resources may have changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Extent {
    /// Nothing.
    #[default]
    None,
    /// Only resources of these services (clusters and endpoints: the last part of their name).
    Services(BTreeSet<Hostname>),
    /// Possibly all.
    All,
}

impl Extent {
    /// Whether nothing may have changed.
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }

    /// Whether the resource of this name may have changed, come or gone. A covered resource that is not generated any
    /// more has gone.
    pub fn covers(&self, name: &str) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Services(hosts) => {
                let host = name.rsplit_once('|').or_else(|| name.rsplit_once("_."));
                host.is_some_and(|(_, host)| hosts.contains(host))
            }
        }
    }

    fn add(&mut self, hosts: impl IntoIterator<Item = Hostname>) {
        let mut hosts = hosts.into_iter().peekable();
        if hosts.peek().is_none() {
            return;
        }
        match self {
            Self::All => {}
            Self::Services(known) => known.extend(hosts),
            Self::None => *self = Self::Services(hosts.collect()),
        }
    }
}

/// What may have changed, by type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Affected {
    /// CDS.
    pub clusters: Extent,
    /// EDS.
    pub endpoints: Extent,
    /// LDS.
    pub listeners: Extent,
    /// RDS.
    pub routes: Extent,
    /// SDS.
    pub secrets: Extent,
    /// NDS.
    pub names: Extent,
}

impl Affected {
    /// Everything: for a proxy that just connected or changed its class.
    pub fn all() -> Self {
        Self {
            clusters: Extent::All,
            endpoints: Extent::All,
            listeners: Extent::All,
            routes: Extent::All,
            secrets: Extent::All,
            names: Extent::All,
        }
    }

    /// The extent of one type.
    pub fn of(&self, kind: ResourceType) -> &Extent {
        match kind {
            ResourceType::Cluster => &self.clusters,
            ResourceType::Endpoint => &self.endpoints,
            ResourceType::Listener => &self.listeners,
            ResourceType::Route => &self.routes,
            ResourceType::Secret => &self.secrets,
            ResourceType::NameTable => &self.names,
        }
    }

    /// Whether nothing may have changed.
    pub fn is_none(&self) -> bool {
        ResourceType::ALL.into_iter().all(|kind| self.of(kind).is_none())
    }
}

/// Whether proxies look up the names of a service's endpoints.
fn is_looked_up(scope: &Scope, host: &Hostname) -> bool {
    let by_name =
        |service: &Service| matches!(service.resolution, Resolution::Dns | Resolution::DnsRoundRobin);
    scope.service(host).is_some_and(|service| by_name(service))
}

/// For each port of a service, whether all its endpoints take mutual TLS.
fn ports_of_mutual_tls(scope: &Scope, host: &Hostname) -> Option<Vec<bool>> {
    let service = scope.service(host)?;
    Some(service.mesh_ports().map(|port| mutual_tls::all_take_it(scope, service, &port.name)).collect())
}

/// Services that are reached in another way than before: by other gateways of other networks.
fn reached_otherwise(before: &Scope, scope: &Scope) -> Vec<Hostname> {
    let moved = |service: &&Arc<Service>| networks::reach(scope, service) != networks::reach(before, service);
    scope.services.iter().filter(moved).map(|service| service.hostname.clone()).collect()
}

/// Services of which these PeerAuthentications may say something.
fn under_policies(policies: &BTreeSet<ObjectName>, scope: &Scope) -> Vec<Hostname> {
    let root = &scope.world.mesh().root_namespace;
    let concerned = |service: &&Arc<Service>| {
        policies.iter().any(|one| *one.namespace == *service.name.namespace || *one.namespace == **root)
    };
    scope.services.iter().filter(concerned).map(|service| service.hostname.clone()).collect()
}

/// What of a class's resources may change by `delta`; `before` and `scope` are the class's views of the world before and after
/// it. A proxy whose class changed needs [`Affected::all`] instead. Never too little; too much only costs work, since
/// resources are versioned by content.
pub fn affected(delta: &Delta, before: &Scope, scope: &Scope) -> Affected {
    if delta.mesh || before.sidecar != scope.sidecar {
        return Affected::all();
    }
    let mut affected = Affected::default();
    let seen = |host: &&Hostname| scope.service(host).is_some() || before.service(host).is_some();
    affected.endpoints.add(delta.endpoints.iter().filter(seen).cloned());
    // Names to look up are written into clusters.
    let by_name = |host: &&Hostname| is_looked_up(scope, host);
    affected.clusters.add(delta.endpoints.iter().filter(by_name).cloned());
    // Who the endpoints may be is written into clusters too.
    let others = |host: &&Hostname| {
        let identities = |scope: &Scope| scope.service(host).map(|one| mutual_tls::identities(scope, one));
        identities(scope) != identities(before)
    };
    // And whether all of them take mutual TLS, where callers choose.
    let chosen = |host: &&Hostname| ports_of_mutual_tls(scope, host) != ports_of_mutual_tls(before, host);
    affected.clusters.add(delta.endpoints.iter().filter(chosen).cloned());
    affected.clusters.add(delta.endpoints.iter().filter(others).cloned());
    if delta.networks {
        let hosts = reached_otherwise(before, scope);
        affected.clusters.add(hosts.iter().filter(by_name).cloned());
        affected.endpoints.add(hosts);
    }
    if !delta.peer_authentications.is_empty() {
        let hosts = under_policies(&delta.peer_authentications, scope);
        affected.clusters.add(hosts.iter().filter(|host| by_name(host) || chosen(host)).cloned());
        affected.endpoints.add(hosts);
    }
    let listens_at =
        |host: &Hostname| scope.service(host).is_some_and(|service| listens_at_endpoints(service));
    if scope.class.kind == ProxyKind::Sidecar && delta.endpoints.iter().any(listens_at) {
        affected.listeners = Extent::All;
    }
    if scope.is_concerned(before, &delta.services) {
        affected.clusters.add(delta.services.iter().cloned());
        affected.endpoints.add(delta.services.iter().cloned());
        affected.listeners = Extent::All;
        affected.routes = Extent::All;
    }
    for pattern in &delta.destination_rule_hosts {
        let hosts: Vec<Hostname> = scope
            .services
            .iter()
            .filter(|service| lateen_model::host_matches(pattern, &service.hostname))
            .map(|service| service.hostname.clone())
            .collect();
        // Routes say what is hashed, TCP proxies that and how long a connection may last.
        if !hosts.is_empty() {
            affected.routes = Extent::All;
            affected.listeners = Extent::All;
        }
        affected.clusters.add(hosts.iter().cloned());
        affected.endpoints.add(hosts);
    }
    if delta.virtual_service_states.iter().any(|state| before.may_use(state) || scope.may_use(state)) {
        affected.routes = Extent::All;
        affected.listeners = Extent::All;
        if scope.sidecar.is_some() {
            // With the rules come and go the services they lead to.
            let differing = scope.services_unlike(before);
            affected.clusters.add(differing.iter().cloned());
            affected.endpoints.add(differing);
        }
    }
    let guarded = !delta.authorization_policies.is_empty()
        || !delta.request_authentications.is_empty()
        || !delta.key_sets.is_empty();
    let asks_others = || {
        providers::concern(&scope.world, &delta.services) || tokens::concern(&scope.world, &delta.services)
    };
    if (guarded || asks_others()) && scope.class.kind == ProxyKind::Router {
        affected.listeners = Extent::All;
    }
    if !delta.gateways.is_empty() && scope.class.kind == ProxyKind::Router {
        if gateways_tls::passes_on(before) != gateways_tls::passes_on(scope) {
            affected.clusters = Extent::All;
            affected.endpoints = Extent::All;
        }
        affected.listeners = Extent::All;
        affected.routes = Extent::All;
    }
    if names_change(delta, before, scope) {
        affected.names = Extent::All;
    }
    let router = scope.class.kind == ProxyKind::Router;
    if scope.class.reads_secrets {
        let of_namespace = |name: &ObjectName| name.namespace == scope.class.namespace;
        let named_anew = !delta.destination_rules.is_empty()
            || !delta.services.is_empty()
            || (router && !delta.gateways.is_empty());
        if named_anew || delta.credentials.iter().any(of_namespace) {
            affected.secrets = Extent::All;
        }
    }
    affected
}

/// Whether the names that the class's proxies answer queries for may have changed: services, or the pods that headless
/// ones stand for.
fn names_change(delta: &Delta, before: &Scope, scope: &Scope) -> bool {
    let headless = |host: &Hostname| scope.service(host).is_some_and(|service| service.is_headless());
    scope.answers_names()
        && (scope.is_concerned(before, &delta.services)
            || delta.endpoints.iter().any(headless)
            || (scope.sidecar.is_some() && !delta.virtual_service_states.is_empty()))
}
