//! A VirtualService's TCP and TLS rules: which clusters connections are spread over.
use std::collections::BTreeSet;
use std::sync::Arc;

use lateen_api::networking::virtual_service::{
    L4MatchAttributes, MESH_GATEWAY, RouteDestination, TlsMatchAttributes,
};
use lateen_model::{
    ObjectName, Service, ServicePort, VirtualService, host_matches, labels_match, resolve_gateway,
    resolve_host,
};

use crate::dynamic_dns;
use crate::filters::TcpOptions;
use crate::names::outbound_cluster;
use crate::rules::OnlyPorts;
use crate::scope::Scope;
use crate::stat_names::Filling;
use crate::traffic_policy::EffectivePolicy;

/// Connections that go the same way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TcpRoute {
    /// Destination subnets it is for, `address/length`; empty: all addresses.
    pub(crate) subnets: Vec<String>,
    /// Names that TLS asks for, possibly with a leading wildcard; empty: any, and what is no TLS.
    pub(crate) server_names: Vec<String>,
    pub(crate) destinations: TcpDestinations,
}

impl TcpRoute {
    fn everything(destinations: TcpDestinations) -> Self {
        Self { subnets: Vec::new(), server_names: Vec::new(), destinations }
    }

    /// Whether no connection is left to what comes after it.
    pub(crate) fn takes_all(&self) -> bool {
        self.subnets.is_empty() && self.server_names.is_empty()
    }
}

/// Where connections go.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TcpDestinations {
    /// Name in statistics: the cluster's, or `NAME.NAMESPACE` of the VirtualService when there are several.
    pub(crate) stat_prefix: String,
    /// Clusters with their relative shares; a single one gets everything.
    pub(crate) clusters: Vec<(String, u32)>,
    /// Path of the object the route comes from.
    pub(crate) config: Option<String>,
    /// What the DestinationRule of the (first) destination asks of the proxy.
    pub(crate) options: TcpOptions,
    /// The host is the one that TLS asks for, at this port. As in Istio only where there is one destination.
    pub(crate) looks_up_at: Option<u16>,
}

impl TcpDestinations {
    /// Everything goes to this cluster.
    pub(crate) fn only(cluster: String) -> Self {
        Self {
            stat_prefix: cluster.clone(),
            clusters: vec![(cluster, 1)],
            config: None,
            options: TcpOptions::default(),
            looks_up_at: None,
        }
    }

    /// The weighted destinations of a rule for connections to `port`; none when there is nothing to send to.
    pub(crate) fn new(
        scope: &Scope,
        service: &VirtualService,
        routes: &[RouteDestination],
        port: u16,
    ) -> Option<Self> {
        let destinations = || routes.iter().map(|route| &route.destination);
        let namespace = &service.name.namespace;
        let only_ports = OnlyPorts::new(scope, namespace, destinations());
        let cluster = |route: &RouteDestination| {
            let (host, port) = only_ports.resolve(&route.destination, namespace, scope.world.domain(), port);
            outbound_cluster(&host, port, &route.destination.subset)
        };
        let config = Some(service.config_path());
        // As in Istio the first destination's rule counts, and its subset only where it is alone.
        let options = routes.first().and_then(|first| {
            let meant = scope.world.resolve_service(&first.destination.host, namespace)?;
            let (_, port) = only_ports.resolve(&first.destination, namespace, scope.world.domain(), port);
            let subset = if routes.len() == 1 { first.destination.subset.as_str() } else { "" };
            Some(options_of(scope, meant, port, subset))
        });
        let options = options.unwrap_or_default();
        if let [only] = routes {
            let meant = scope.world.resolve_service(&only.destination.host, namespace);
            let looks_up_at = meant
                .filter(|meant| dynamic_dns::is_dynamic(meant))
                .map(|_| only_ports.resolve(&only.destination, namespace, scope.world.domain(), port).1);
            let cluster = cluster(only);
            let (_, to) = only_ports.resolve(&only.destination, namespace, scope.world.domain(), port);
            let stat_prefix = meant.and_then(|meant| stat_prefix(scope, meant, to, &only.destination.subset));
            let stat_prefix = stat_prefix.unwrap_or_else(|| cluster.clone());
            return Some(Self { stat_prefix, config, options, looks_up_at, ..Self::only(cluster) });
        }
        let weighted = routes.iter().filter_map(|route| {
            let weight = u32::try_from(route.weight).ok().filter(|&weight| weight > 0)?;
            Some((cluster(route), weight))
        });
        let clusters: Vec<_> = weighted.collect();
        let stat_prefix = format!("{}.{namespace}", service.name.name);
        (!clusters.is_empty()).then_some(Self { stat_prefix, clusters, config, options, looks_up_at: None })
    }
}

/// The name in statistics of TCP to a service, where mesh config has a pattern for it.
fn stat_prefix(scope: &Scope, service: &Service, port: u16, subset: &str) -> Option<String> {
    let pattern = scope.settings.stat_names.outbound.as_ref()?;
    Some(Filling::outbound(service, service.port(port)?, subset).fill(pattern))
}

/// What the DestinationRule in force for a service asks of TCP proxies to one of its ports.
fn options_of(scope: &Scope, service: &Service, port: u16, subset: &str) -> TcpOptions {
    let Some(rule) = scope.destination_rule(service) else { return TcpOptions::default() };
    let special = rule.spec.subsets.iter().find(|known| known.name == subset);
    let special = special.and_then(|subset| subset.traffic_policy.as_ref());
    TcpOptions::new(EffectivePolicy::new(rule.spec.traffic_policy.as_ref(), special, port))
}

/// The ways of connections to one port of a service, from the VirtualServices about it, oldest first. Those of TLS ports go by the
/// TLS rules alone, the others' by the TCP rules. Without a rule the last one leads to the service itself; with TLS rules, names
/// that none of them has are left to whoever else knows them.
pub(crate) fn of_service(scope: &Scope, service: &Service, port: &ServicePort) -> Vec<TcpRoute> {
    let about = |found: &&Arc<VirtualService>| {
        let resolve = |host: &String| resolve_host(host, &found.name.namespace, scope.world.domain());
        !(found.spec.tcp.is_empty() && found.spec.tls.is_empty())
            && found.spec.hosts.iter().any(|host| host_matches(&resolve(host), &service.hostname))
    };
    let about = scope.virtual_services.iter().filter(about);
    let (tls, port) = (port.protocol.is_tls(), port.port);
    let mut routes = Vec::new();
    let mut taken = BTreeSet::new();
    if tls {
        let mut taken = BTreeSet::new();
        for found in about {
            routes.extend(tls_routes(scope, found, port, &mut taken));
        }
        if !routes.is_empty() {
            return routes;
        }
        routes.push(to_itself(scope, service, port));
        return routes;
    }
    for found in about {
        for mut route in routes_of(scope, found, port) {
            if route.subnets.is_empty() {
                routes.push(route);
                return routes;
            }
            // Two chains of a listener may not ask for the same.
            route.subnets.retain(|subnet| taken.insert(subnet.clone()));
            if !route.subnets.is_empty() {
                routes.push(route);
            }
        }
    }
    routes.push(to_itself(scope, service, port));
    routes
}

fn to_itself(scope: &Scope, service: &Service, port: u16) -> TcpRoute {
    let dynamic = dynamic_dns::is_dynamic(service);
    let cluster = outbound_cluster(&service.hostname, port, "");
    TcpRoute {
        // Nobody is to reach by it what the wildcard does not stand for.
        server_names: if dynamic { vec![service.hostname.to_string()] } else { Vec::new() },
        ..TcpRoute::everything(TcpDestinations {
            options: options_of(scope, service, port, ""),
            looks_up_at: dynamic.then_some(port),
            stat_prefix: stat_prefix(scope, service, port, "").unwrap_or_else(|| cluster.clone()),
            ..TcpDestinations::only(cluster)
        })
    }
}

/// The ways a VirtualService's TLS rules give to connections of sidecars to `port`. Of several with the same condition the first one
/// counts, as in Istio; `taken` remembers what is asked for already, by name and subnet.
fn tls_routes(
    scope: &Scope,
    service: &VirtualService,
    port: u16,
    taken: &mut BTreeSet<(String, String)>,
) -> Vec<TcpRoute> {
    let (own, class) = (&service.name.namespace, &scope.class);
    let mut routes = Vec::new();
    for rule in &service.spec.tls {
        let holds = |condition: &&TlsMatchAttributes| {
            is_for(&condition.gateways, MESH_GATEWAY, own)
                && (condition.port == 0 || condition.port == u32::from(port))
                && (condition.source_namespace.is_empty() || *condition.source_namespace == *class.namespace)
                && labels_match(&condition.source_labels, &class.labels)
        };
        for condition in rule.r#match.iter().filter(holds) {
            let everywhere = [String::new()];
            let subnets = match condition.destination_subnets.as_slice() {
                [] => everywhere.as_slice(),
                given => given,
            };
            let names = condition.sni_hosts.iter().map(|name| name.to_ascii_lowercase());
            let mut is_new =
                |name: &String| subnets.iter().all(|subnet| taken.insert((name.clone(), subnet.clone())));
            let server_names: Vec<String> = names.filter(|name| is_new(name)).collect();
            if server_names.is_empty() {
                continue;
            }
            let Some(destinations) = TcpDestinations::new(scope, service, &rule.route, port) else {
                continue;
            };
            routes.push(TcpRoute {
                subnets: condition.destination_subnets.clone(),
                server_names,
                destinations,
            });
        }
    }
    routes
}

/// Where a VirtualService's TCP rules send connections to a gateway's port, `gateway` being `namespace/name`. As in Istio only ports
/// and gateways are looked at.
pub(crate) fn of_gateway(
    scope: &Scope,
    service: &VirtualService,
    gateway: &ObjectName,
    port: u16,
) -> Option<TcpDestinations> {
    let own = &service.name.namespace;
    let gateway = gateway.to_string();
    let holds = |condition: &L4MatchAttributes| {
        (condition.port == 0 || condition.port == u32::from(port))
            && is_for(&condition.gateways, &gateway, own)
    };
    let mut rules = service.spec.tcp.iter();
    let rule = rules.find(|rule| rule.r#match.is_empty() || rule.r#match.iter().any(holds))?;
    TcpDestinations::new(scope, service, &rule.route, port)
}

/// Whether a condition on gateways, written in namespace `own`, names this one.
pub(crate) fn is_for(gateways: &[String], gateway: &str, own: &str) -> bool {
    gateways.is_empty() || gateways.iter().any(|name| resolve_gateway(name, own) == gateway)
}

/// The ways a VirtualService's TCP rules give to connections of sidecars to `port`, in its order, up to the first that is for all
/// addresses.
fn routes_of(scope: &Scope, service: &VirtualService, port: u16) -> Vec<TcpRoute> {
    let mut routes = Vec::new();
    for rule in &service.spec.tcp {
        let holds = |condition: &&L4MatchAttributes| may_hold(scope, service, condition, port);
        let held: Vec<&L4MatchAttributes> = rule.r#match.iter().filter(holds).collect();
        if held.is_empty() && !rule.r#match.is_empty() {
            continue;
        }
        let Some(destinations) = TcpDestinations::new(scope, service, &rule.route, port) else { continue };
        let everywhere = held.is_empty() || held.iter().any(|one| one.destination_subnets.is_empty());
        if everywhere {
            routes.push(TcpRoute::everything(destinations));
            break;
        }
        let subnets = held.iter().flat_map(|condition| condition.destination_subnets.iter().cloned());
        let subnets = subnets.collect();
        routes.push(TcpRoute { subnets, ..TcpRoute::everything(destinations) });
    }
    routes
}

/// As in Istio the caller's address (`sourceSubnet`) is not looked at.
fn may_hold(scope: &Scope, service: &VirtualService, condition: &L4MatchAttributes, port: u16) -> bool {
    let class = &scope.class;
    is_for(&condition.gateways, MESH_GATEWAY, &service.name.namespace)
        && (condition.port == 0 || condition.port == u32::from(port))
        && (condition.source_namespace.is_empty() || *condition.source_namespace == *class.namespace)
        && labels_match(&condition.source_labels, &class.labels)
}
