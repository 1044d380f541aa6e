//! What follows from the configuration objects taken together: which rules are bound where, in which order.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lateen_api::networking::virtual_service::MESH_GATEWAY;

use crate::config::{Gateway, VirtualService};
use crate::delegate::{self, DelegateProblem, is_delegate};
use crate::hostname::resolve_host;
use crate::ingress;
use crate::name::ObjectName;
use crate::rule_index::RuleIndex;
use crate::world::World;

/// Orderings derived from the configuration objects; made anew when one of them changes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    /// VirtualServices by the gateway they are bound to (`mesh` or `namespace/name`), oldest first. Those that delegate have
    /// the rules of their delegates; delegates are bound to nothing.
    pub(crate) by_gateway: BTreeMap<String, Vec<Arc<VirtualService>>>,
    /// What is wrong with the rules that delegate, by the VirtualService that has them.
    pub(crate) delegate_problems: BTreeMap<ObjectName, Vec<DelegateProblem>>,
    /// Of the VirtualServices with HTTP rules bound to `mesh`, those that name a host, oldest first.
    pub(crate) mesh_hosts: BTreeMap<String, Vec<Arc<VirtualService>>>,
    /// The Gateways that Ingresses stand for.
    pub(crate) ingress_gateways: Vec<Arc<Gateway>>,
    /// DestinationRules by namespace and host.
    pub(crate) rules: RuleIndex,
    /// Keys of the labels that rules ask of the workloads they apply to.
    pub(crate) selecting_labels: BTreeSet<String>,
}

impl Index {
    pub(crate) fn build(world: &World) -> Self {
        let (ingress_gateways, of_ingresses) = ingress::convert(world);
        let mut services: Vec<_> = world.virtual_services.values().cloned().chain(of_ingresses).collect();
        services.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
        let mut by_gateway: BTreeMap<String, Vec<Arc<VirtualService>>> = BTreeMap::new();
        let mut delegate_problems = BTreeMap::new();
        for service in services.into_iter().filter(|service| !is_delegate(service)) {
            let service = match delegate::expand(&service, world) {
                None => service,
                Some((expanded, problems)) => {
                    delegate_problems.insert(service.name.clone(), problems);
                    Arc::new(expanded)
                }
            };
            for gateway in bound_gateways(&service) {
                by_gateway.entry(gateway).or_default().push(service.clone());
            }
        }
        Self {
            mesh_hosts: mesh_hosts(world, &by_gateway),
            by_gateway,
            delegate_problems,
            ingress_gateways,
            rules: RuleIndex::build(world),
            selecting_labels: selecting_labels(world),
        }
    }
}

fn mesh_hosts(
    world: &World,
    by_gateway: &BTreeMap<String, Vec<Arc<VirtualService>>>,
) -> BTreeMap<String, Vec<Arc<VirtualService>>> {
    let mut hosts: BTreeMap<String, Vec<Arc<VirtualService>>> = BTreeMap::new();
    let bound = by_gateway.get(MESH_GATEWAY).into_iter().flatten();
    for service in bound.filter(|service| !service.spec.http.is_empty()) {
        for host in &service.spec.hosts {
            let host = resolve_host(host, &service.name.namespace, &world.domain);
            let named = hosts.entry(host).or_default();
            if named.last().is_none_or(|last| last.name != service.name) {
                named.push(service.clone());
            }
        }
    }
    hosts
}

/// See [`World::selecting_labels`]. Whatever else comes to depend on a client's labels belongs here.
fn selecting_labels(world: &World) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    for service in world.virtual_services.values() {
        let http = service.spec.http.iter().flat_map(|rule| &rule.r#match).map(|one| &one.source_labels);
        let tcp = service.spec.tcp.iter().flat_map(|rule| &rule.r#match).map(|one| &one.source_labels);
        let tls = service.spec.tls.iter().flat_map(|rule| &rule.r#match).map(|one| &one.source_labels);
        keys.extend(http.chain(tcp).chain(tls).flat_map(BTreeMap::keys).cloned());
    }
    let sidecars = world.sidecars.values().filter_map(|sidecar| sidecar.spec.workload_selector.as_ref());
    keys.extend(sidecars.flat_map(|selector| selector.labels.keys().cloned()));
    for rule in world.destination_rules.values() {
        let selector = rule.spec.workload_selector.iter();
        keys.extend(selector.flat_map(|selector| selector.match_labels.keys().cloned()));
        let of_subsets = rule.spec.subsets.iter().filter_map(|subset| subset.traffic_policy.as_ref());
        for policy in rule.spec.traffic_policy.iter().chain(of_subsets) {
            let ports = policy.port_level_settings.iter().filter_map(|port| port.load_balancer.as_ref());
            let balancers = policy.load_balancer.iter().chain(ports);
            let localities = balancers.filter_map(|balancer| balancer.locality_lb_setting.as_ref());
            keys.extend(
                localities.flat_map(|setting| &setting.failover_priority).map(|label| label_key(label)),
            );
        }
    }
    let of_mesh = world.mesh.locality_lb_setting.iter().flat_map(|setting| &setting.failover_priority);
    keys.extend(of_mesh.map(|label| label_key(label)));
    keys
}

/// The key of `key` or `key=value`.
fn label_key(label: &str) -> String {
    label.split_once('=').map_or(label, |(key, _)| key).to_owned()
}

/// The gateways a VirtualService is bound to: `mesh`, or `namespace/name` with the namespace completed. A match block may
/// narrow the list but not extend it.
fn bound_gateways(service: &VirtualService) -> BTreeSet<String> {
    let own = &service.name.namespace;
    if service.spec.gateways.is_empty() {
        return [MESH_GATEWAY.to_owned()].into();
    }
    service.spec.gateways.iter().map(|gateway| resolve_gateway(gateway, own)).collect()
}

/// The gateway a rule in `namespace` means: `mesh`, or `namespace/name` with the namespace completed.
pub fn resolve_gateway(gateway: &str, namespace: &str) -> String {
    match gateway.split_once('/') {
        Some((".", name)) => format!("{namespace}/{name}"),
        Some(_) => gateway.to_owned(),
        None if gateway == MESH_GATEWAY => gateway.to_owned(),
        // Older configurations name gateways by host name.
        None => format!("{namespace}/{}", crate::hostname::short_name(gateway)),
    }
}
