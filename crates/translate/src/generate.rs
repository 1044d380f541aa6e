//! All resources of a class, or those that may have changed.
use std::sync::Arc;

use lateen_model::{Service, World};

use crate::access::Access;
use crate::affected::Extent;
use crate::any_address;
use crate::cache::Cache;
use crate::clusters::{self, FixedCluster, OutboundClusterInputs};
use crate::dynamic_dns;
use crate::endpoints;
use crate::gateways;
use crate::gateways_tls;
use crate::listeners_gateway;
use crate::listeners_inbound;
use crate::listeners_outbound;
use crate::name_table;
use crate::proxy::{ProxyClass, ProxyKind};
use crate::resource::{Resource, ResourceType};
use crate::routes_gateway;
use crate::routes_sidecar;
use crate::scope::Scope;
use crate::secrets;
use crate::settings::Settings;
use crate::sidecar;

/// The resources of one type that are within the extent: with [`Extent::All`] every resource of that type; with
/// [`Extent::Services`] those of these services. What the extent covers and this does not return does not exist (any more).
pub fn generate(scope: &Scope, cache: &Cache, kind: ResourceType, extent: &Extent) -> Vec<Arc<Resource>> {
    let mut resources = generate_outward(scope, cache, kind, extent);
    if *extent == Extent::All {
        resources.extend(generate_own(&scope.world, &scope.class, cache, kind));
    }
    resources
}

/// Every resource of a class, clusters first.
pub fn generate_all(scope: &Scope, cache: &Cache) -> Vec<Arc<Resource>> {
    ResourceType::ALL.into_iter().flat_map(|kind| generate(scope, cache, kind, &Extent::All)).collect()
}

/// Those of [`generate`] that depend on what [`ProxyClass::outward`] keeps of a class.
pub fn generate_outward(
    scope: &Scope,
    cache: &Cache,
    kind: ResourceType,
    extent: &Extent,
) -> Vec<Arc<Resource>> {
    if extent.is_none() {
        return Vec::new();
    }
    match kind {
        ResourceType::Cluster => clusters(scope, cache, extent),
        ResourceType::Endpoint => endpoints(scope, cache, extent),
        ResourceType::Listener => listeners(scope, cache),
        ResourceType::Route => routes(scope, cache),
        ResourceType::Secret => secrets::generate(scope, cache),
        ResourceType::NameTable => name_table::generate(scope, cache),
    }
}

/// The others: those about the workload itself. They depend on mesh config, the Sidecar in force and the class.
pub fn generate_own(
    world: &World,
    class: &ProxyClass,
    cache: &Cache,
    kind: ResourceType,
) -> Vec<Arc<Resource>> {
    if class.kind == ProxyKind::Router || !matches!(kind, ResourceType::Cluster | ResourceType::Listener) {
        return Vec::new();
    }
    let settings = Arc::new(Settings::new(world.mesh(), class.dual_stack));
    let ports = sidecar::inbound(world, sidecar::in_force(world, class).map(|sidecar| &**sidecar), class);
    match kind {
        ResourceType::Cluster => {
            let inputs = ports.iter().map(|inbound| clusters::inbound_inputs(&settings, inbound));
            inputs.map(|inputs| cache.resource(kind, &inputs, clusters::inbound)).collect()
        }
        ResourceType::Listener => {
            let access = Access::new(world, &class.namespace, &class.labels);
            let modes = world.peer_policies(&class.namespace).of_workload(&class.labels);
            let inputs = listeners_inbound::inputs(&settings, &ports, modes, class, access);
            let opened = listeners_inbound::opened_inputs(&inputs, &ports).into_iter();
            let opened = opened.map(|inputs| cache.resource(kind, &inputs, listeners_inbound::opened));
            let captured = cache.resource(kind, &inputs, listeners_inbound::virtual_inbound);
            opened.chain([captured]).collect()
        }
        ResourceType::Endpoint | ResourceType::Route | ResourceType::Secret | ResourceType::NameTable => {
            Vec::new()
        }
    }
}

/// The clusters of services within an extent.
fn outbound<'a>(
    scope: &'a Scope,
    extent: &Extent,
) -> impl Iterator<Item = (&'a Service, OutboundClusterInputs)> {
    let passes_on = gateways_tls::passes_on(scope);
    scope.services_in(extent).into_iter().flat_map(move |service| {
        let mut inputs = clusters::outbound_inputs(scope, service);
        if passes_on {
            inputs.extend(clusters::passed_on_inputs(scope, service));
        }
        inputs.into_iter().map(move |inputs| (&**service, inputs))
    })
}

/// CDS.
fn clusters(scope: &Scope, cache: &Cache, extent: &Extent) -> Vec<Arc<Resource>> {
    let mut resources = Vec::new();
    for (_, inputs) in outbound(scope, extent) {
        resources.push(cache.resource(ResourceType::Cluster, &inputs, clusters::outbound));
    }
    if *extent != Extent::All {
        return resources;
    }
    let mut fixed = |which| {
        let inputs = clusters::fixed_inputs(&scope.settings, which);
        resources.push(cache.resource(ResourceType::Cluster, &inputs, clusters::fixed));
    };
    fixed(FixedCluster::BlackHole);
    // A gateway's callers have no original destination to pass through to.
    if scope.class.kind == ProxyKind::Sidecar {
        fixed(FixedCluster::Passthrough);
        fixed(FixedCluster::InboundPassthrough);
    }
    resources
}

/// EDS.
fn endpoints(scope: &Scope, cache: &Cache, extent: &Extent) -> Vec<Arc<Resource>> {
    let mut resources = Vec::new();
    for (service, cluster) in outbound(scope, extent) {
        let Some(port) = service.port(cluster.port()) else { continue };
        if let Some(inputs) = endpoints::inputs(scope, &cluster, service, &port.name) {
            resources.push(cache.resource(ResourceType::Endpoint, &inputs, endpoints::load_assignment));
        }
    }
    resources
}

/// LDS.
fn listeners(scope: &Scope, cache: &Cache) -> Vec<Arc<Resource>> {
    let kind = ResourceType::Listener;
    if scope.class.kind == ProxyKind::Router {
        let servers = gateways::http_servers(scope);
        let access = Arc::new(Access::new(&scope.world, &scope.class.namespace, &scope.class.labels));
        let looks_up = dynamic_dns::http_may_be_looked_up(scope);
        let plain = servers
            .iter()
            .map(|server| listeners_gateway::inputs(&scope.settings, server, &access, looks_up));
        let plain = plain.map(|inputs| cache.resource(kind, &inputs, listeners_gateway::http_listener));
        let tls = gateways_tls::ports(scope).into_iter();
        let tls = tls.map(|port| listeners_gateway::port_inputs(&scope.settings, port, &access, looks_up));
        let tls = tls.map(|inputs| cache.resource(kind, &inputs, listeners_gateway::port_listener));
        return plain.chain(tls).collect();
    }
    let outbound = listeners_outbound::inputs(scope);
    let mut resources = Vec::new();
    for inputs in &outbound.ports {
        resources.push(cache.resource(kind, inputs, any_address::any_address));
    }
    for view in scope.bound_views() {
        for inputs in &listeners_outbound::inputs(&view).ports {
            resources.push(cache.resource(kind, inputs, any_address::any_address));
        }
    }
    for inputs in &outbound.addresses {
        resources.push(cache.resource(kind, inputs, listeners_outbound::service_address));
    }
    resources.push(cache.resource(kind, &outbound.catch_all, listeners_outbound::virtual_outbound));
    resources
}

/// RDS.
fn routes(scope: &Scope, cache: &Cache) -> Vec<Arc<Resource>> {
    if scope.class.kind == ProxyKind::Router {
        let mut servers = gateways::http_servers(scope);
        servers.extend(gateways_tls::https_servers(scope));
        return servers.iter().map(|server| routes_gateway::resource(scope, cache, server)).collect();
    }
    let own = routes_sidecar::routes(scope);
    let mut resources: Vec<_> =
        own.iter().map(|routes| routes_sidecar::resource(scope, cache, routes)).collect();
    // No port is two listeners', so no name comes twice.
    for view in scope.bound_views() {
        let routes = routes_sidecar::routes(&view);
        resources.extend(routes.iter().map(|routes| routes_sidecar::resource(&view, cache, routes)));
    }
    resources
}
