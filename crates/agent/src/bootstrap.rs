//! What an engine starts from: who it is, where its xDS comes from, its admin and its metrics. An Envoy child reads it from a
//! file; our engine is started with the same facts directly and shows them in `/config_dump`.

use std::net::SocketAddr;
use std::path::Path;

use lateen_xds::pb::envoy::config::bootstrap::v3 as pb;
use lateen_xds::pb::envoy::config::core::v3 as core;
use lateen_xds::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use prost::Message;
use prost_types::Any;
use serde_json::{Value, json};

use crate::node::Node;

/// Type URL of Envoy's bootstrap.
pub(crate) const TYPE_URL: &str = "type.googleapis.com/envoy.config.bootstrap.v3.Bootstrap";

/// What our engine in a pod is started with, as Envoy would be told: it speaks delta ADS to the control plane itself, and the
/// agent serves its metrics. Built from messages, since mapping JSON to them takes memory that a sidecar should not need.
pub(crate) fn of_our_engine(node: &Node, admin: SocketAddr, control_plane: &str) -> Any {
    use core::grpc_service::{GoogleGrpc, TargetSpecifier};
    let ads = || core::ConfigSource {
        resource_api_version: core::ApiVersion::V3.into(),
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(core::AggregatedConfigSource {})),
        ..Default::default()
    };
    let control_plane = core::GrpcService {
        target_specifier: Some(TargetSpecifier::GoogleGrpc(GoogleGrpc {
            target_uri: control_plane.to_owned(),
            stat_prefix: "xds-grpc".to_owned(),
            ..Default::default()
        })),
        ..Default::default()
    };
    let admin = core::SocketAddress {
        address: admin.ip().to_string(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(admin.port().into())),
        ..Default::default()
    };
    let admin = core::Address { address: Some(core::address::Address::SocketAddress(admin)) };
    let bootstrap = pb::Bootstrap {
        node: Some(node.to_proto()),
        admin: Some(pb::Admin { address: Some(admin), ..Default::default() }),
        dynamic_resources: Some(pb::bootstrap::DynamicResources {
            lds_config: Some(ads()),
            cds_config: Some(ads()),
            ads_config: Some(core::ApiConfigSource {
                api_type: core::api_config_source::ApiType::DeltaGrpc.into(),
                transport_api_version: core::ApiVersion::V3.into(),
                set_node_on_first_message_only: true,
                grpc_services: vec![control_plane],
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    };
    Any { type_url: TYPE_URL.to_owned(), value: bootstrap.encode_to_vec() }
}

/// What an Envoy bootstrap depends on.
#[derive(Clone, Debug)]
pub(crate) struct Bootstrap<'a> {
    /// Its identity.
    pub(crate) node: &'a Node,
    /// Its admin service.
    pub(crate) admin: SocketAddr,
    /// Its listener for metrics.
    pub(crate) stats: SocketAddr,
    /// The Unix socket on which the agent serves xDS.
    pub(crate) xds: &'a Path,
    /// The Unix socket on which the agent serves the workload's certificate.
    pub(crate) sds: &'a Path,
    /// `SO_MARK` for upstream sockets.
    pub(crate) mark: Option<u32>,
}

impl Bootstrap<'_> {
    /// `envoy.config.bootstrap.v3.Bootstrap` as JSON.
    pub(crate) fn to_json(&self) -> Value {
        let mut bootstrap = json!({
            "node": self.node.to_json(),
            "layered_runtime": { "layers": [
                // Room for large regular expressions, as Istio gives.
                { "name": "global config", "static_layer": { "re2.max_program_size.error_level": "32768" } },
                { "name": "admin", "admin_layer": {} },
            ]},
            "overload_manager": { "resource_monitors": [{
                "name": "envoy.resource_monitors.global_downstream_max_connections",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                    // As good as none, which is what Istio sets; without the monitor Envoy warns.
                    "max_active_downstream_connections": "2147483647",
                },
            }]},
            "stats_config": { "use_all_default_tags": true },
            "admin": { "address": socket_address(self.admin) },
            "dynamic_resources": {
                "lds_config": ads(),
                "cds_config": ads(),
                "ads_config": {
                    "api_type": "DELTA_GRPC",
                    "transport_api_version": "V3",
                    "set_node_on_first_message_only": true,
                    "grpc_services": [{ "envoy_grpc": { "cluster_name": "xds-grpc" } }],
                },
            },
            "static_resources": {
                "clusters": [grpc_cluster("xds-grpc", self.xds), grpc_cluster("sds-grpc", self.sds), self.admin_cluster()],
                "listeners": [self.stats_listener()],
            },
        });
        if let Some(mark) = self.mark {
            // Level 1 is SOL_SOCKET, name 36 SO_MARK; it must be set before the socket connects.
            bootstrap["cluster_manager"] = json!({ "upstream_bind_config": { "socket_options": [{
                "description": "traffic capture exempts the proxy",
                "level": 1, "name": 36, "int_value": mark, "state": "STATE_PREBIND",
            }]}});
        }
        bootstrap
    }

    fn admin_cluster(&self) -> Value {
        json!({
            "name": "prometheus_stats",
            "type": "STATIC",
            "connect_timeout": "0.250s",
            "load_assignment": assignment("prometheus_stats", socket_address(self.admin)),
        })
    }

    fn stats_listener(&self) -> Value {
        json!({
            "name": "prometheus",
            "address": socket_address(self.stats),
            "filter_chains": [{ "filters": [{
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                    "stat_prefix": "stats",
                    "route_config": { "virtual_hosts": [{
                        "name": "backend",
                        "domains": ["*"],
                        "routes": [{
                            "match": { "prefix": "/stats/prometheus" },
                            "route": { "cluster": "prometheus_stats" },
                        }],
                    }]},
                    "http_filters": [{
                        "name": "envoy.filters.http.router",
                        "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
                    }],
                },
            }]}],
        })
    }
}

/// A gRPC service of the agent.
fn grpc_cluster(name: &str, socket: &Path) -> Value {
    json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": { "http2_protocol_options": {} },
            },
        },
        "load_assignment": assignment(name, json!({ "pipe": { "path": socket } })),
        // Configuration must flow whatever else the proxy does.
        "circuit_breakers": { "thresholds": [
            { "priority": "DEFAULT", "max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000 },
        ]},
    })
}

/// Configuration over the aggregated stream, waited for without a limit: an Envoy that gives up waiting would open its ports
/// with nothing behind them.
fn ads() -> Value {
    json!({ "ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3" })
}

fn socket_address(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}

fn assignment(cluster: &str, address: Value) -> Value {
    json!({
        "cluster_name": cluster,
        "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address } }] }],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Real Envoy is the judge; the project's scripts install it, and `LATEEN_ENVOY_PATH` may name another.
    #[test]
    fn envoy_accepts_the_bootstrap() {
        let given = std::env::var_os("LATEEN_ENVOY_PATH").map(std::path::PathBuf::from);
        let envoy = crate::envoy::find(given.as_deref()).expect("this test needs Envoy: scripts install it");
        let folder = tempfile::tempdir().unwrap();
        let node = Node {
            id: "sidecar~10.0.0.1~a.b~b.svc.cluster.local".into(),
            cluster: "a.b".into(),
            metadata: json!({ "LABELS": { "app": "a" }, "INSTANCE_IPS": "10.0.0.1" }),
        };
        let bootstrap = Bootstrap {
            node: &node,
            admin: "127.0.0.1:15000".parse().unwrap(),
            stats: "0.0.0.0:15090".parse().unwrap(),
            xds: &folder.path().join("XDS"),
            sds: &folder.path().join("SDS"),
            mark: Some(1337),
        };
        let file = folder.path().join("bootstrap.json");
        std::fs::write(&file, bootstrap.to_json().to_string()).unwrap();
        let output = std::process::Command::new(envoy)
            .arg("-c")
            .arg(&file)
            .args(["--mode", "validate"])
            .output()
            .unwrap();
        let said =
            String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}");
        assert!(!said.contains("eprecated"), "{said}");
    }
}
