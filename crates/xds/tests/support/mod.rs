//! A management server for tests: plain text, its resources in JSON, and the bootstrap of a proxy that follows it. Other crates'
//! tests take this file by its path.
mod serve;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use lateen_xds::json::JsonCodec;
use lateen_xds::server::{Resource, ResourceSet, Snapshot};
use serde_json::{Value, json};

pub(crate) use serve::serve;

/// All resources of a type, in JSON.
pub(crate) type OfType = (&'static str, Vec<Value>);

/// What clients should have. A resource's version is its content.
pub(crate) fn snapshot(codec: &JsonCodec, content: &[OfType]) -> Arc<Snapshot> {
    let mut snapshot = Snapshot::new(1, Instant::now());
    for (type_url, resources) in content {
        let set: ResourceSet = resources.iter().map(|value| resource(codec, type_url, value)).collect();
        snapshot = snapshot.with(type_url, Arc::new(set));
    }
    Arc::new(snapshot)
}

fn resource(codec: &JsonCodec, type_url: &str, value: &Value) -> Arc<Resource> {
    let mut value = value.clone();
    value["@type"] = json!(type_url);
    let name = value["name"].as_str().or(value["cluster_name"].as_str()).unwrap().into();
    let body = codec.any_from_value(&value).unwrap().value;
    Arc::new(Resource { name, version: value.to_string().into(), body: body.into() })
}

/// Of a proxy that has its clusters and listeners from the server. `api_type`: `GRPC` (state of the world) or `DELTA_GRPC`.
pub(crate) fn bootstrap(api_type: &str, server: SocketAddr) -> Value {
    let http2 = json!({ "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": { "http2_protocol_options": {} },
    } });
    json!({
        "node": { "id": "sidecar~10.0.0.1~a.default~default.svc.cluster.local", "cluster": "a" },
        "dynamic_resources": {
            "ads_config": { "api_type": api_type, "transport_api_version": "V3",
                "grpc_services": [{ "envoy_grpc": { "cluster_name": "xds" } }] },
            "cds_config": { "ads": {}, "resource_api_version": "V3" },
            "lds_config": { "ads": {}, "resource_api_version": "V3" },
        },
        "static_resources": { "clusters": [{
            "name": "xds", "connect_timeout": "1s", "type": "STATIC", "typed_extension_protocol_options": http2,
            "load_assignment": endpoints("xds", server),
        }] },
    })
}

/// One endpoint of a cluster.
pub(crate) fn endpoints(cluster: &str, address: SocketAddr) -> Value {
    let address =
        json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } });
    json!({ "cluster_name": cluster, "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address } }] }] })
}
