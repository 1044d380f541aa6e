//! Clusters to the workload itself.
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use lateen_api::networking::destination_rule::ConnectionPoolSettings;
use lateen_model::ObjectName;
use lateen_xds::pb::envoy::config::cluster::v3 as cluster;
use lateen_xds::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, DiscoveryType, LbConfig, LbPolicy, OriginalDstLbConfig,
};
use lateen_xds::pb::envoy::config::core::v3 as core;
use lateen_xds::pb::envoy::config::endpoint::v3 as endpoint;

use super::{base, inbound_source, services, set_http_options, upstream_protocol, with_metadata};
use crate::names::inbound_cluster;
use crate::proxy::InboundPort;
use crate::resource::Resource;
use crate::settings::{ConnectionDefaults, Settings};
use crate::sidecar::{Inbound, InboundEndpoint};
use crate::traffic_policy::{self, EffectivePolicy};
use crate::wire;

/// Everything a cluster to the workload itself depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct InboundClusterInputs {
    connections: ConnectionDefaults,
    port: InboundPort,
    endpoint: InboundEndpoint,
    pool: Option<Pool>,
    /// Pattern of the name in statistics.
    stat_name: Option<Arc<str>>,
    dual_stack: bool,
}

/// Limits as a Sidecar gives them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pool(ConnectionPoolSettings);

impl Eq for Pool {}

/// By its JSON form, as objects are.
impl Hash for Pool {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Settings are strings and numbers, which can be serialized.
        serde_json::to_vec(&self.0).unwrap_or_default().hash(state);
    }
}

pub(crate) fn inbound_inputs(settings: &Settings, inbound: &Inbound) -> InboundClusterInputs {
    InboundClusterInputs {
        connections: settings.connections,
        port: inbound.port.clone(),
        endpoint: inbound.endpoint.clone(),
        pool: inbound.pool.clone().map(Pool),
        stat_name: settings.stat_names.inbound.clone(),
        dual_stack: settings.dual_stack,
    }
}

/// The cluster to one port of the workload: the address the connection was made to, from an address that tells capture
/// to let it pass.
pub(crate) fn inbound(inputs: &InboundClusterInputs) -> Resource {
    let InboundPort { port, protocol, hostname, .. } = &inputs.port;
    let name = inbound_cluster(*port);
    let policy = EffectivePolicy { pool: inputs.pool.as_ref().map(|pool| &pool.0), ..Default::default() };
    let mut message = cluster::Cluster {
        circuit_breakers: Some(traffic_policy::circuit_breakers(policy)),
        alt_stat_name: inputs.port.filling().of_cluster(inputs.stat_name.as_ref()),
        ..base(&name, inputs.connections, policy)
    };
    match &inputs.endpoint {
        InboundEndpoint::Original => to_original(&mut message, None, inputs.dual_stack),
        InboundEndpoint::Port(port) => to_original(&mut message, Some(*port), inputs.dual_stack),
        // Capture leaves the loopback address alone.
        InboundEndpoint::Loopback(port) => to_address(&mut message, wire::address("127.0.0.1", *port)),
        InboundEndpoint::Unix(path) => to_address(&mut message, wire::pipe(path)),
    }
    // The application is spoken to as its callers speak: nothing is upgraded.
    set_http_options(&mut message, upstream_protocol(*protocol, false, policy), policy);
    let mut labels = hostname.split('.');
    let (service, namespace) = (labels.next().unwrap_or_default(), labels.next().unwrap_or_default());
    let service = ObjectName::new(namespace, service);
    with_metadata(name, &message, vec![("services", services(hostname, &service))], None)
}

/// To the address the connection was made to, from one that tells capture to let it pass.
fn to_original(message: &mut cluster::Cluster, port: Option<u16>, dual_stack: bool) {
    message.cluster_discovery_type = Some(ClusterDiscoveryType::Type(DiscoveryType::OriginalDst as i32));
    message.lb_policy = LbPolicy::ClusterProvided as i32;
    message.upstream_bind_config = Some(inbound_source(dual_stack));
    message.lb_config = port.map(|port| {
        LbConfig::OriginalDstLbConfig(OriginalDstLbConfig {
            upstream_port_override: wire::uint32(u32::from(port)),
            ..Default::default()
        })
    });
}

/// To one address.
fn to_address(message: &mut cluster::Cluster, address: core::Address) {
    message.cluster_discovery_type = Some(ClusterDiscoveryType::Type(DiscoveryType::Static as i32));
    let address = endpoint::Endpoint { address: Some(address), ..Default::default() };
    let host = endpoint::LbEndpoint {
        host_identifier: Some(endpoint::lb_endpoint::HostIdentifier::Endpoint(address)),
        ..Default::default()
    };
    message.load_assignment = Some(endpoint::ClusterLoadAssignment {
        cluster_name: message.name.clone(),
        endpoints: vec![endpoint::LocalityLbEndpoints { lb_endpoints: vec![host], ..Default::default() }],
        ..Default::default()
    });
}
