//! Clusters, and what those of all kinds have in common.
mod fixed;
mod inbound;
mod outbound;

use lateen_api::networking::destination_rule::H2UpgradePolicy;
use lateen_model::{ObjectName, Protocol};
use lateen_xds::pb::envoy::config::cluster::v3 as cluster;
use lateen_xds::pb::envoy::config::core::v3 as core;
use lateen_xds::pb::envoy::extensions::upstreams::http::v3 as http;
use prost::Message;

pub(crate) use self::fixed::{FixedCluster, fixed, fixed_inputs};
pub(crate) use self::inbound::{inbound, inbound_inputs};
pub(crate) use self::outbound::{OutboundClusterInputs, outbound, outbound_inputs, passed_on_inputs};
use crate::client_tls;
use crate::ordered::{ClusterEndpoints, ClusterLoadAssignment, ClusterMetadata, Metadata, Struct, Value};
use crate::resource::{Resource, versioned};
use crate::settings::ConnectionDefaults;
use crate::traffic_policy::{self, EffectivePolicy};
use crate::wire;

/// The source address of connections to the application, by which capture knows them (Istio's choice).
const INBOUND_SOURCE: &str = "127.0.0.6";
/// The same of IPv6.
const INBOUND_SOURCE6: &str = "::6";

/// Where connections to the application come from.
fn inbound_source(dual_stack: bool) -> core::BindConfig {
    wire::bind_from(INBOUND_SOURCE, if dual_stack { &[INBOUND_SOURCE6] } else { &[] })
}

/// What every cluster has, by a policy and where that says nothing by the mesh.
fn base(name: &str, mesh: ConnectionDefaults, policy: EffectivePolicy<'_>) -> cluster::Cluster {
    let given = policy.tcp().and_then(|tcp| tcp.connect_timeout.as_ref());
    cluster::Cluster {
        name: name.to_owned(),
        connect_timeout: Some(wire::duration(traffic_policy::parse(given).unwrap_or(mesh.connect_timeout))),
        upstream_connection_options: traffic_policy::connection_options(mesh, policy.tcp()),
        ..Default::default()
    }
}

/// The HTTP version spoken upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum UpstreamProtocol {
    NotHttp,
    Http1,
    Http2,
    AsDownstream,
}

/// A rule's upgrade counts for ports whose protocol is detected too: whoever writes it knows that they speak HTTP. The mesh's is for
/// ports declared HTTP (istiod's `shouldH2Upgrade`).
fn upgrades_to_http2(protocol: Protocol, mesh: ConnectionDefaults, policy: EffectivePolicy<'_>) -> bool {
    match policy.http().map(|http| http.h2_upgrade_policy).unwrap_or_default() {
        H2UpgradePolicy::Upgrade => protocol.is_http() || protocol.is_sniffed(),
        H2UpgradePolicy::DoNotUpgrade => false,
        H2UpgradePolicy::Default => protocol.is_http() && mesh.upgrades_to_http2,
    }
}

fn upstream_protocol(protocol: Protocol, upgrade: bool, policy: EffectivePolicy<'_>) -> UpstreamProtocol {
    if protocol.is_http2() || upgrade {
        UpstreamProtocol::Http2
    } else if protocol.is_sniffed() || policy.http().is_some_and(|http| http.use_client_protocol) {
        UpstreamProtocol::AsDownstream
    } else if protocol.is_http() {
        UpstreamProtocol::Http1
    } else {
        UpstreamProtocol::NotHttp
    }
}

fn set_http_options(message: &mut cluster::Cluster, protocol: UpstreamProtocol, policy: EffectivePolicy<'_>) {
    use http::http_protocol_options::explicit_http_config::ProtocolConfig;
    use http::http_protocol_options::{ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig};
    let (given, tcp) = (policy.http(), policy.tcp());
    let idle = traffic_policy::parse(given.and_then(|http| http.idle_timeout.as_ref()))
        .or_else(|| traffic_policy::parse(tcp.and_then(|tcp| tcp.idle_timeout.as_ref())));
    let longest = traffic_policy::parse(tcp.and_then(|tcp| tcp.max_connection_duration.as_ref()));
    let requests = given.and_then(|http| u32::try_from(http.max_requests_per_connection).ok());
    let common = core::HttpProtocolOptions {
        idle_timeout: idle.map(wire::duration),
        max_connection_duration: longest.map(wire::duration),
        max_requests_per_connection: requests.filter(|&count| count > 0).and_then(wire::uint32),
        ..Default::default()
    };
    let common = (common != core::HttpProtocolOptions::default()).then_some(common);
    let http2 = core::Http2ProtocolOptions {
        max_concurrent_streams: given
            .and_then(|http| u32::try_from(http.max_concurrent_streams).ok())
            .filter(|&count| count > 0)
            .and_then(wire::uint32),
        ..Default::default()
    };
    let explicit = |config| {
        UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig { protocol_config: Some(config) })
    };
    let names = policy.tls.and_then(client_tls::names);
    let options = match protocol {
        UpstreamProtocol::NotHttp => return,
        // HTTP/1.1 is what Envoy speaks without options.
        UpstreamProtocol::Http1 if common.is_none() && names.is_none() => return,
        UpstreamProtocol::Http1 => {
            explicit(ProtocolConfig::HttpProtocolOptions(core::Http1ProtocolOptions::default()))
        }
        UpstreamProtocol::Http2 => explicit(ProtocolConfig::Http2ProtocolOptions(http2)),
        UpstreamProtocol::AsDownstream => {
            UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
                http_protocol_options: Some(core::Http1ProtocolOptions::default()),
                http2_protocol_options: Some(http2),
                ..Default::default()
            })
        }
    };
    let options = http::HttpProtocolOptions {
        common_http_protocol_options: common,
        upstream_http_protocol_options: names,
        upstream_protocol_options: Some(options),
        ..Default::default()
    };
    message
        .typed_extension_protocol_options
        .insert("envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned(), wire::any(&options));
}

fn services(hostname: &str, name: &ObjectName) -> Value {
    Value::list(vec![Value::object([
        ("host", Value::text(hostname)),
        ("name", Value::text(&*name.name)),
        ("namespace", Value::text(&*name.namespace)),
    ])])
}

/// Encodes a cluster with `istio` metadata, which tools read: the rule, subset and services it stands for.
fn with_metadata(
    name: String,
    message: &cluster::Cluster,
    istio: Vec<(&str, Value)>,
    load_assignment: Option<ClusterLoadAssignment>,
) -> Resource {
    let istio = Struct { fields: istio.into_iter().map(|(key, value)| (key.to_owned(), value)).collect() };
    let metadata = ClusterMetadata {
        metadata: Some(Metadata { filter_metadata: [("istio".to_owned(), istio)].into() }),
    };
    let mut body = message.encode_to_vec();
    // The buffer grows as needed.
    metadata.encode_raw(&mut body);
    if load_assignment.is_some() {
        ClusterEndpoints { load_assignment }.encode_raw(&mut body);
    }
    versioned(name, body.into())
}
