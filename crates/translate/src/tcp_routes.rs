//! A VirtualService's TCP rules: which clusters connections are spread over.
use std::collections::BTreeSet;
use std::sync::Arc;

use lateen_api::networking::virtual_service::{L4MatchAttributes, MESH_GATEWAY, RouteDestination};
use lateen_model::{Service, VirtualService, host_matches, labels_match, resolve_gateway, resolve_host};

use crate::filters::TcpOptions;
use crate::names::outbound_cluster;
use crate::rules::OnlyPorts;
use crate::scope::Scope;
use crate::traffic_policy::EffectivePolicy;

/// Connections that go the same way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TcpRoute {
    /// Destination subnets it is for, `address/length`; empty: all addresses.
    pub(crate) subnets: Vec<String>,
    pub(crate) destinations: TcpDestinations,
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
}

impl TcpDestinations {
    /// Everything goes to this cluster.
    pub(crate) fn only(cluster: String) -> Self {
        Self {
            stat_prefix: cluster.clone(),
            clusters: vec![(cluster, 1)],
            config: None,
            options: TcpOptions::default(),
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
            return Some(Self { config, options, ..Self::only(cluster(only)) });
        }
        let weighted = routes.iter().filter_map(|route| {
            let weight = u32::try_from(route.weight).ok().filter(|&weight| weight > 0)?;
            Some((cluster(route), weight))
        });
        let clusters: Vec<_> = weighted.collect();
        let stat_prefix = format!("{}.{namespace}", service.name.name);
        (!clusters.is_empty()).then_some(Self { stat_prefix, clusters, config, options })
    }
}

/// What the DestinationRule in force for a service asks of TCP proxies to one of its ports.
fn options_of(scope: &Scope, service: &Service, port: u16, subset: &str) -> TcpOptions {
    let Some(rule) = scope.destination_rule(service) else { return TcpOptions::default() };
    let special = rule.spec.subsets.iter().find(|known| known.name == subset);
    let special = special.and_then(|subset| subset.traffic_policy.as_ref());
    TcpOptions::new(EffectivePolicy::new(rule.spec.traffic_policy.as_ref(), special, port))
}

/// The ways of connections to one port of a service, from the VirtualServices about it, oldest first. The last one is for
/// all addresses and, unless a rule says otherwise, leads to the service itself.
pub(crate) fn of_service(scope: &Scope, service: &Service, port: u16) -> Vec<TcpRoute> {
    let about = |found: &&Arc<VirtualService>| {
        let resolve = |host: &String| resolve_host(host, &found.name.namespace, scope.world.domain());
        !found.spec.tcp.is_empty()
            && found.spec.hosts.iter().any(|host| host_matches(&resolve(host), &service.hostname))
    };
    let mut routes = Vec::new();
    let mut taken = BTreeSet::new();
    for found in scope.virtual_services.iter().filter(about) {
        for mut route in routes_of(scope, found, MESH_GATEWAY, port) {
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
    let destinations = TcpDestinations {
        options: options_of(scope, service, port, ""),
        ..TcpDestinations::only(outbound_cluster(&service.hostname, port, ""))
    };
    routes.push(TcpRoute { subnets: Vec::new(), destinations });
    routes
}

/// The ways a VirtualService's TCP rules give to connections through `gateway` (`mesh` or `namespace/name`) to `port`, in its
/// order, up to the first that is for all addresses.
pub(crate) fn routes_of(scope: &Scope, service: &VirtualService, gateway: &str, port: u16) -> Vec<TcpRoute> {
    let mut routes = Vec::new();
    for rule in &service.spec.tcp {
        let holds = |condition: &&L4MatchAttributes| may_hold(scope, service, condition, gateway, port);
        let held: Vec<&L4MatchAttributes> = rule.r#match.iter().filter(holds).collect();
        if held.is_empty() && !rule.r#match.is_empty() {
            continue;
        }
        let Some(destinations) = TcpDestinations::new(scope, service, &rule.route, port) else { continue };
        let everywhere = held.is_empty() || held.iter().any(|one| one.destination_subnets.is_empty());
        if everywhere {
            routes.push(TcpRoute { subnets: Vec::new(), destinations });
            break;
        }
        let subnets = held.iter().flat_map(|condition| condition.destination_subnets.iter().cloned());
        routes.push(TcpRoute { subnets: subnets.collect(), destinations });
    }
    routes
}

/// As in Istio the caller's address (`sourceSubnet`) is not looked at.
fn may_hold(
    scope: &Scope,
    service: &VirtualService,
    condition: &L4MatchAttributes,
    gateway: &str,
    port: u16,
) -> bool {
    let own = &service.name.namespace;
    let class = &scope.class;
    let of_gateway = condition.gateways.is_empty()
        || condition.gateways.iter().any(|name| resolve_gateway(name, own) == gateway);
    of_gateway
        && (condition.port == 0 || condition.port == u32::from(port))
        && (condition.source_namespace.is_empty() || *condition.source_namespace == *class.namespace)
        && labels_match(&condition.source_labels, &class.labels)
}
