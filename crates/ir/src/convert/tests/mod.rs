//! What conversions make of configurations, and what they refuse. Messages are written as YAML, as people write them.

mod clusters;
mod listeners;
mod refused;
mod refused_access;
mod routes;

use lateen_xds::json::JsonCodec;
use prost::{Message, Name};

use super::proto;
use crate::*;

/// Converts YAML; the codec is made for each test, since two of anything run in one process.
struct Yaml(JsonCodec);

impl Yaml {
    fn new() -> Self {
        Self(JsonCodec::new().unwrap())
    }

    fn message<M: Message + Name + Default>(&self, yaml: &str) -> M {
        self.0.from_yaml(yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"))
    }

    fn listener(&self, yaml: &str) -> Result<Listener, ConvertError> {
        Listener::from_proto(self.message(yaml))
    }

    fn cluster(&self, yaml: &str) -> Result<Cluster, ConvertError> {
        Cluster::from_proto(self.message(yaml))
    }

    fn routes(&self, yaml: &str) -> Result<RouteConfiguration, ConvertError> {
        RouteConfiguration::from_proto(self.message(yaml))
    }
}

const HCM: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const TCP: &str = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
const ROUTER: &str =
    "{name: r, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}";

const FAULT: &str = "'@type': type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault";
const CORS: &str = "'@type': type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy";
const FILTER_CONFIG: &str = "'@type': type.googleapis.com/envoy.config.route.v3.FilterConfig";

/// A listener with one HTTP connection manager that has `extra` fields.
fn http_listener(extra: &str) -> String {
    format!(
        "{{name: l, address: {{socket_address: {{address: 0.0.0.0, port_value: 80}}}}, filter_chains: [{{filters: [\
         {{name: h, typed_config: {{'@type': {HCM}, stat_prefix: s, http_filters: [{ROUTER}], \
         rds: {{route_config_name: '80', config_source: {{ads: {{}}}}}}{extra}}}}}]}}]}}"
    )
}

/// A listener with one TCP proxy that has `extra` fields.
fn tcp_listener(extra: &str) -> String {
    format!(
        "{{name: l, address: {{socket_address: {{address: 0.0.0.0, port_value: 80}}}}, filter_chains: [{{filters: [\
         {{name: t, typed_config: {{'@type': {TCP}, stat_prefix: s{extra}}}}}]}}]}}"
    )
}

/// A route configuration with one route.
fn one_route(matching: &str, action: &str) -> String {
    format!(
        "{{name: '80', virtual_hosts: [{{name: h, domains: ['*'], routes: [{{match: {matching}, {action}}}]}}]}}"
    )
}

fn hcm(listener: &Listener) -> &HttpConnectionManager {
    match &listener.filter_chains[0].terminal {
        Some(TerminalFilter::Http(hcm)) => hcm,
        other => panic!("{other:?}"),
    }
}

#[test]
fn bootstraps_are_taken() {
    let yaml = Yaml::new();
    let text = "{node: {id: sidecar, cluster: c}, admin: {address: {socket_address: {address: 127.0.0.1, port_value: 15000}}}, \
        dynamic_resources: {lds_config: {ads: {}, resource_api_version: V3, initial_fetch_timeout: 0s}, cds_config: {ads: {}, initial_fetch_timeout: 0s}, \
        ads_config: {api_type: DELTA_GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: xds-grpc}, \
        initial_metadata: [{key: x, value: v}]}]}}, \
        cluster_manager: {upstream_bind_config: {socket_options: [{level: 1, name: 36, int_value: 1337}]}}, \
        layered_runtime: {layers: [{name: a, static_layer: {}}]}, \
        static_resources: {clusters: [{name: xds-grpc, http2_protocol_options: {}, load_assignment: {cluster_name: xds-grpc, \
        endpoints: [{lb_endpoints: [{endpoint: {address: {pipe: {path: ./XDS}}}}]}]}}]}}";
    let bootstrap = Bootstrap::from_proto(yaml.message(text)).unwrap();
    assert_eq!(bootstrap.admin.unwrap().port(), 15000);
    let dynamic = bootstrap.dynamic.unwrap();
    assert_eq!((dynamic.listeners, dynamic.clusters), (Some(ConfigSource::Ads), Some(ConfigSource::Ads)));
    let ads = dynamic.ads.unwrap();
    assert!(ads.delta && ads.initial_metadata.len() == 1 && ads.initial_fetch_timeout.is_none());
    assert_eq!(bootstrap.upstream_bind.unwrap().socket_options.len(), 1);
    let error =
        Bootstrap::from_proto(yaml.message(&text.replace("name: xds-grpc, http2", "name: other, http2")))
            .unwrap_err();
    assert_eq!(error.path, "dynamic_resources.ads_config");
    let error = Bootstrap::from_proto(yaml.message("{stats_sinks: [{name: s}]}")).unwrap_err();
    assert_eq!(error.path, "stats_sinks");
}

#[test]
fn broken_bytes_are_an_error() {
    assert!(Listener::from_bytes(&[0xff]).unwrap_err().reason.contains("not a valid encoding"));
    let message =
        proto::endpoint::v3::ClusterLoadAssignment { cluster_name: "a".into(), ..Default::default() };
    assert_eq!(&*ClusterLoadAssignment::from_bytes(&message.encode_to_vec()).unwrap().cluster_name, "a");
}

proptest::proptest! {
    #[test]
    fn no_bytes_break_a_conversion(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        let _ = Listener::from_bytes(&bytes);
        let _ = RouteConfiguration::from_bytes(&bytes, None);
        let _ = Cluster::from_bytes(&bytes);
        let _ = ClusterLoadAssignment::from_bytes(&bytes);
        let _ = Bootstrap::from_bytes(&bytes);
    }
}
