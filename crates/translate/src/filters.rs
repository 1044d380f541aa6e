//! The network and listener filters in use: connection manager, TCP proxy, inspectors.
use lateen_api::mesh::NormalizationType;
use lateen_xds::Any;
use lateen_xds::pb::envoy::config::listener::v3 as listener;
use lateen_xds::pb::envoy::config::route::v3::RouteConfiguration;
use lateen_xds::pb::envoy::extensions::filters::http::cors::v3::Cors;
use lateen_xds::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use lateen_xds::pb::envoy::extensions::filters::http::router::v3::Router;
use lateen_xds::pb::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use lateen_xds::pb::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
use lateen_xds::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use lateen_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use lateen_xds::pb::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
use lateen_xds::pb::envoy::r#type::v3::{HashPolicy, hash_policy};
use lateen_xds::pb::google::protobuf::Duration;

use crate::access::Access;
use crate::access_log;
use crate::dynamic_dns;
use crate::settings::Settings;
use crate::tcp_routes::TcpDestinations;
use crate::traffic_policy::{self, EffectivePolicy};
use crate::wire;

/// Name of the filter for cross-origin requests.
pub(crate) const CORS: &str = "envoy.filters.http.cors";
/// Name of the filter for faults.
pub(crate) const FAULT: &str = "envoy.filters.http.fault";

/// What http_inspector finds in plain text (Istio's list).
pub(crate) const HTTP_PROTOCOLS: [&str; 2] = ["http/1.1", "h2c"];

/// Where a connection manager stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HttpRole {
    /// A sidecar, for what its application sends.
    Outbound {
        /// Whether some of it is for hosts that are looked up on request.
        looks_up: bool,
    },
    /// A sidecar, for what its application receives.
    Inbound,
    /// A gateway.
    Gateway {
        /// Whether some of what it is sent may be for hosts that are looked up on request.
        looks_up: bool,
    },
}

/// Where a connection manager's routes come from.
pub(crate) enum Routes {
    /// By name over RDS.
    Rds(String),
    /// Written in.
    Inline(Box<RouteConfiguration>),
}

/// A connection manager as the only filter of a chain. `access`: who may ask, empty for all.
pub(crate) fn http(
    settings: &Settings,
    role: HttpRole,
    stat_prefix: &str,
    routes: Routes,
    access: &Access,
) -> listener::Filter {
    use hcm::http_connection_manager as types;
    let route_specifier = match routes {
        Routes::Rds(name) => {
            types::RouteSpecifier::Rds(hcm::Rds { config_source: Some(wire::ads()), route_config_name: name })
        }
        Routes::Inline(config) => types::RouteSpecifier::RouteConfig(*config),
    };
    let at_gateway = matches!(role, HttpRole::Gateway { .. });
    let mut manager = hcm::HttpConnectionManager {
        stat_prefix: stat_prefix.to_owned(),
        route_specifier: Some(route_specifier),
        http_filters: access.http(at_gateway).into_iter().chain(http_filters(settings, role)).collect(),
        access_log: access_log::traffic_log(settings),
        use_remote_address: wire::boolean(at_gateway),
        generate_request_id: wire::boolean(true),
        // Streams may be idle for as long as their peers like; Envoy's five minutes would cut long polls.
        stream_idle_timeout: Some(Duration::default()),
        upgrade_configs: vec![types::UpgradeConfig {
            upgrade_type: "websocket".to_owned(),
            ..Default::default()
        }],
        ..Default::default()
    };
    normalize_paths(&mut manager, settings.normalization);
    name_server(&mut manager, role);
    network_filter("envoy.filters.network.http_connection_manager", wire::any(&manager))
}

/// The HTTP filters, in Istio's order; what they do is in the routes.
fn http_filters(settings: &Settings, role: HttpRole) -> Vec<hcm::HttpFilter> {
    let filter = |name: &str, config: Any| hcm::HttpFilter {
        name: name.to_owned(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    };
    let looks_up =
        matches!(role, HttpRole::Outbound { looks_up: true } | HttpRole::Gateway { looks_up: true });
    let mut filters =
        vec![filter(FAULT, wire::any(&HttpFault::default())), filter(CORS, wire::any(&Cors::default()))];
    if looks_up {
        let config = dynamic_dns::http_filter(settings.dns_refresh_rate);
        filters.push(filter(dynamic_dns::HTTP_FILTER, config));
    }
    filters.push(filter("envoy.filters.http.router", wire::any(&Router::default())));
    filters
}

/// <https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/#MeshConfig-ProxyPathNormalization>
fn normalize_paths(manager: &mut hcm::HttpConnectionManager, degree: NormalizationType) {
    use hcm::http_connection_manager::PathWithEscapedSlashesAction as Escaped;
    manager.normalize_path = wire::boolean(degree != NormalizationType::None);
    manager.merge_slashes =
        matches!(degree, NormalizationType::MergeSlashes | NormalizationType::DecodeAndMergeSlashes);
    manager.path_with_escaped_slashes_action = match degree {
        NormalizationType::DecodeAndMergeSlashes => Escaped::UnescapeAndForward as i32,
        _ => Escaped::KeepUnchanged as i32,
    };
}

/// The `server` header and what is said of client certificates. As in Istio, `istio-envoy` inbound and at gateways;
/// outbound keeps Envoy's own name, on which people's checks rely by now.
fn name_server(manager: &mut hcm::HttpConnectionManager, role: HttpRole) {
    use hcm::http_connection_manager::{ForwardClientCertDetails, SetCurrentClientCertDetails};
    if matches!(role, HttpRole::Outbound { .. }) {
        return;
    }
    manager.server_name = "istio-envoy".to_owned();
    let forward = match role {
        HttpRole::Gateway { .. } => ForwardClientCertDetails::SanitizeSet,
        _ => ForwardClientCertDetails::AppendForward,
    };
    manager.forward_client_cert_details = forward as i32;
    manager.set_current_client_cert_details = Some(SetCurrentClientCertDetails {
        subject: wire::boolean(true),
        uri: true,
        dns: true,
        ..Default::default()
    });
}

/// What a DestinationRule asks of the TCP proxies to its host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct TcpOptions {
    pub(crate) idle_timeout: Option<std::time::Duration>,
    pub(crate) max_connection_duration: Option<std::time::Duration>,
    /// Consistent hashing by the client's address.
    pub(crate) hash_source_ip: bool,
}

impl TcpOptions {
    pub(crate) fn new(policy: EffectivePolicy<'_>) -> Self {
        let tcp = policy.tcp();
        let hash = policy.balancer.and_then(|balancer| balancer.consistent_hash.as_ref());
        Self {
            idle_timeout: traffic_policy::parse(tcp.and_then(|tcp| tcp.idle_timeout.as_ref())),
            max_connection_duration: traffic_policy::parse(
                tcp.and_then(|tcp| tcp.max_connection_duration.as_ref()),
            ),
            hash_source_ip: hash.is_some_and(|hash| hash.use_source_ip == Some(true)),
        }
    }

    pub(crate) fn apply(self, proxy: &mut tcp::TcpProxy) {
        proxy.idle_timeout = self.idle_timeout.map(wire::duration);
        proxy.max_downstream_connection_duration = self.max_connection_duration.map(wire::duration);
        if self.hash_source_ip {
            let specifier = hash_policy::PolicySpecifier::SourceIp(hash_policy::SourceIp {});
            proxy.hash_policy = vec![HashPolicy { policy_specifier: Some(specifier) }];
        }
    }
}

/// The filters of a chain of TCP that only those may pass whom policies allow.
pub(crate) fn guarded(access: &Access, tcp: listener::Filter) -> Vec<listener::Filter> {
    access.network().into_iter().chain([tcp]).collect()
}

/// The filters of a chain that sends bytes where they belong: who may pass, the look-up of the name that TLS asks for, the proxy.
pub(crate) fn bytes(
    settings: &Settings,
    access: &Access,
    destinations: &TcpDestinations,
) -> Vec<listener::Filter> {
    let look_up = destinations.looks_up_at.map(|port| {
        network_filter(dynamic_dns::SNI_FILTER, dynamic_dns::sni_filter(settings.dns_refresh_rate, port))
    });
    access.network().into_iter().chain(look_up).chain([tcp_to(settings, destinations)]).collect()
}

/// A TCP proxy to one cluster as the only filter of a chain.
pub(crate) fn tcp(settings: &Settings, cluster: &str) -> listener::Filter {
    tcp_to(settings, &TcpDestinations::only(cluster.to_owned()))
}

/// The same by another name in statistics.
pub(crate) fn tcp_named(settings: &Settings, cluster: &str, stat_prefix: String) -> listener::Filter {
    tcp_to(settings, &TcpDestinations { stat_prefix, ..TcpDestinations::only(cluster.to_owned()) })
}

/// A TCP proxy as the only filter of a chain.
fn tcp_to(settings: &Settings, destinations: &TcpDestinations) -> listener::Filter {
    use tcp::tcp_proxy::weighted_cluster::ClusterWeight;
    use tcp::tcp_proxy::{ClusterSpecifier, WeightedCluster};
    let specifier = match destinations.clusters.as_slice() {
        [(only, _)] => ClusterSpecifier::Cluster(only.clone()),
        several => ClusterSpecifier::WeightedClusters(WeightedCluster {
            clusters: several
                .iter()
                .map(|(name, weight)| ClusterWeight {
                    name: name.clone(),
                    weight: *weight,
                    ..Default::default()
                })
                .collect(),
        }),
    };
    let mut proxy = tcp::TcpProxy {
        stat_prefix: destinations.stat_prefix.clone(),
        cluster_specifier: Some(specifier),
        access_log: access_log::traffic_log(settings),
        ..Default::default()
    };
    destinations.options.apply(&mut proxy);
    network_filter("envoy.filters.network.tcp_proxy", wire::any(&proxy))
}

fn network_filter(name: &str, config: Any) -> listener::Filter {
    listener::Filter {
        name: name.to_owned(),
        config_type: Some(listener::filter::ConfigType::TypedConfig(config)),
    }
}

/// Finds out the address a redirected connection was meant for.
pub(crate) fn original_dst() -> listener::ListenerFilter {
    listener_filter("envoy.filters.listener.original_dst", wire::any(&OriginalDst::default()))
}

/// Finds out from the first bytes whether a connection is TLS, and for which server name.
pub(crate) fn tls_inspector() -> listener::ListenerFilter {
    listener_filter("envoy.filters.listener.tls_inspector", wire::any(&TlsInspector::default()))
}

/// Finds out from the first bytes whether a connection speaks HTTP.
pub(crate) fn http_inspector() -> listener::ListenerFilter {
    listener_filter("envoy.filters.listener.http_inspector", wire::any(&HttpInspector::default()))
}

fn listener_filter(name: &str, config: Any) -> listener::ListenerFilter {
    listener::ListenerFilter {
        name: name.to_owned(),
        config_type: Some(listener::listener_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    }
}
