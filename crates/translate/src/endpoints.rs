//! Endpoints of clusters.
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use lateen_model::{Address, Endpoint, Health, Locality, PeerMode, PeerPolicies, Service, ServiceEndpoints};
use lateen_xds::pb::envoy::config::core::v3 as core;
use lateen_xds::pb::envoy::config::endpoint::v3 as endpoint;

use crate::clusters::OutboundClusterInputs;
use crate::locality::{self, Group, Spread};
use crate::mutual_tls::{ISTIO, TLS_MODE, TLS_MODE_LABEL};
use crate::networks::{self, Member, Reach};
use crate::ordered::{ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints, Metadata, Struct, Value};
use crate::resource::{Resource, encode};
use crate::scope::Scope;
use crate::wire;

/// Everything a cluster's endpoints depend on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct EndpointInputs {
    cluster: String,
    port_name: String,
    /// Labels of the subset.
    labels: BTreeMap<String, String>,
    /// Whether only those with TLS of the mesh are wanted.
    with_tls: bool,
    /// Whether the proxies reach addresses of both families.
    dual_stack: bool,
    endpoints: Option<Arc<ServiceEndpoints>>,
    /// By where they are; none: all alike.
    spread: Option<Spread>,
    /// What its workloads accept.
    policies: PeerPolicies,
    /// Whether a rule has the mesh's TLS spoken to all of them, or to none.
    mutual_tls: Option<bool>,
    /// Those that are not reached as they are.
    reach: Option<Reach>,
}

/// The endpoints of a cluster of a service; none when the cluster has no use for them.
pub(crate) fn inputs(
    scope: &Scope,
    cluster: &OutboundClusterInputs,
    service: &Service,
    port_name: &str,
) -> Option<EndpointInputs> {
    if !cluster.uses_eds() {
        return None;
    }
    Some(EndpointInputs {
        cluster: cluster.name(),
        port_name: port_name.to_owned(),
        labels: cluster.subset_of_rule().map(|subset| subset.labels.clone()).unwrap_or_default(),
        with_tls: cluster.is_passed_on(),
        dual_stack: scope.settings.dual_stack,
        endpoints: scope.world.endpoints(service).cloned(),
        spread: cluster.spread(scope),
        policies: scope.world.peer_policies(&service.name.namespace),
        mutual_tls: cluster.mutual_tls_by_rule(),
        reach: networks::reach(scope, service),
    })
}

/// The ready endpoints that carry the subset's labels, by locality. A cluster without any gets an empty list, so that it
/// does not wait for one.
pub(crate) fn load_assignment(inputs: &EndpointInputs) -> Resource {
    let all =
        inputs.endpoints.as_ref().map(|endpoints| endpoints.of_port(&inputs.port_name)).unwrap_or_default();
    let ready = all.iter().filter(|endpoint| endpoint.health == Health::Healthy);
    // EDS cannot carry names; they come from WorkloadEntries that are behind such a service by mistake.
    let of_use = ready.filter(|endpoint| {
        endpoint.has_labels(&inputs.labels) && !matches!(endpoint.address, Address::Dns(_))
    });
    let takes = |endpoint: &Endpoint| takes_mutual_tls(endpoint, &inputs.policies);
    let spoken = |endpoint: &Endpoint| inputs.mutual_tls.unwrap_or_else(|| takes(endpoint));
    let mut members = networks::members(inputs.reach.as_ref(), of_use, takes, spoken);
    if inputs.with_tls {
        let is_gateway = |member: &Member<'_>| matches!(member.endpoint, Cow::Owned(_));
        members.retain(|member| is_gateway(member) || spoken(&member.endpoint));
    }
    let message = assignment(&inputs.cluster, inputs.spread.as_ref(), inputs.dual_stack, &members);
    encode(inputs.cluster.clone(), &message)
}

/// Endpoints by locality; with dual stack each with all of its addresses.
pub(crate) fn assignment<'a>(
    cluster: &str,
    spread: Option<&Spread>,
    dual_stack: bool,
    members: &'a [Member<'a>],
) -> ClusterLoadAssignment {
    let mut localities: BTreeMap<&Locality, Vec<&Member<'_>>> = BTreeMap::new();
    for member in members {
        localities.entry(&member.endpoint.locality).or_default().push(member);
    }
    let groups = localities.into_iter().map(|(locality, members)| Group::new(locality, members)).collect();
    let groups = match spread {
        Some(spread) => locality::spread(spread, groups),
        None => groups,
    };
    let endpoints = groups
        .into_iter()
        .map(|Group { locality, priority, weight, members }| LocalityLbEndpoints {
            locality: (*locality != Locality::default()).then(|| core::Locality {
                region: locality.region.clone(),
                zone: locality.zone.clone(),
                sub_zone: locality.sub_zone.clone(),
            }),
            load_balancing_weight: wire::uint32(weight),
            lb_endpoints: members.into_iter().map(|one| lb_endpoint(one, dual_stack)).collect(),
            priority,
        })
        .collect();
    ClusterLoadAssignment { cluster_name: cluster.to_owned(), endpoints }
}

fn lb_endpoint(member: &Member<'_>, dual_stack: bool) -> LbEndpoint {
    let from = &*member.endpoint;
    let others = if dual_stack { from.other_addresses.as_slice() } else { &[] };
    let address = match &from.address {
        Address::Unix(path) => wire::pipe(path),
        address => wire::address(&address.to_string(), from.port),
    };
    let mut metadata = BTreeMap::new();
    if let Some(namespace) = from.namespace() {
        let workload = Value::text(workload(from, namespace));
        metadata.insert("istio".to_owned(), Struct::new([("workload", workload)]));
    }
    if member.mutual_tls {
        let mode = Struct::new([(TLS_MODE, Value::text(ISTIO))]);
        metadata.insert("envoy.transport_socket_match".to_owned(), mode);
    }
    LbEndpoint {
        health_status: core::HealthStatus::Healthy as i32,
        endpoint: Some(endpoint::Endpoint {
            address: Some(address),
            additional_addresses: others.iter().map(|other| other_address(*other, from.port)).collect(),
            ..Default::default()
        }),
        load_balancing_weight: wire::uint32(member.weight),
        metadata: (!metadata.is_empty()).then_some(Metadata { filter_metadata: metadata }),
    }
}

fn other_address(address: std::net::IpAddr, port: u16) -> endpoint::endpoint::AdditionalAddress {
    endpoint::endpoint::AdditionalAddress { address: Some(wire::address(&address.to_string(), port)) }
}

/// Whether there is a proxy in front of it, which accepts mutual TLS on its port.
pub(crate) fn takes_mutual_tls(endpoint: &Endpoint, policies: &PeerPolicies) -> bool {
    endpoint.labels.get(TLS_MODE_LABEL).is_some_and(|mode| mode == ISTIO)
        && policies.of_workload(&endpoint.labels).of_port(endpoint.port) != PeerMode::Disable
}

/// `NAME;NAMESPACE;SERVICE;VERSION;CLUSTER`, as Istio describes the peer of a connection.
fn workload(from: &Endpoint, namespace: &str) -> String {
    let label = |keys: [&str; 2]| {
        keys.iter().find_map(|&key| from.labels.get(key)).map(String::as_str).unwrap_or_default()
    };
    let service = label(["service.istio.io/canonical-name", "app"]);
    let version = label(["service.istio.io/canonical-revision", "version"]);
    format!("{};{namespace};{service};{version};Kubernetes", from.workload)
}
