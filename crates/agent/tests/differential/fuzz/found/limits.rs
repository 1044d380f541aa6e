//! What was found of how long streams may last, and how often is tried.

use serde_json::{Value, json};

use super::{Asked, Found, GRPC, add, asked, endpoints, manager, only, over_http2, plain, to};
use crate::fuzz::clusters::{ADDRESSES, SERVICE_PORT};
use crate::proxies::merged;

/// Where a try has a time of its own, by the request or the cluster.
pub(super) fn of_tries() -> Vec<Found> {
    let inside = json!({ "internal_address_config": { "cidr_ranges": [{ "address_prefix": "10.0.0.0", "prefix_len": 8 }] } });
    let through = |more: Value| merged(only(to("service", more)), inside.clone());
    let lines = ["act: late", "x-envoy-upstream-stream-duration-ms: 200", "x-forwarded-for: 10.0.0.1"];
    let get = || asked("GET", &lines);
    let of_grpc =
        || Asked { method: "POST", lines: [&get().lines[..], &[GRPC.to_owned()]].concat(), ..get() };
    let retried = |on: &str| {
        through(
            json!({ "retry_policy": { "retry_on": on, "num_retries": 2, "retry_back_off": { "base_interval": "0.001s" } } }),
        )
    };
    let both = |whole: &str| through(json!({ "max_stream_duration": { "max_stream_duration": whole } }));
    let options = json!({ "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": { "http_protocol_options": {} },
        "common_http_protocol_options": { "max_stream_duration": "0.2s" },
    } });
    let pool = merged(
        endpoints("pool-0", &ADDRESSES[..1], SERVICE_PORT),
        json!({ "typed_extension_protocol_options": options }),
    );
    let of_cluster = merged(only(to("pool-0", json!({}))), json!({ "clusters": [pool] }));
    vec![
        ("a try whose time is over", through(json!({})), get()),
        ("one over HTTP/2", through(json!({})), over_http2(get())),
        ("one of gRPC's", through(json!({})), of_grpc()),
        ("one that is repeated", retried("5xx"), get()),
        ("one that is not", retried("connect-failure"), get()),
        ("a stream that may last longer than its try", both("0.4s"), get()),
        ("one that may not", both("0.1s"), get()),
        ("the cluster's time", of_cluster, asked("GET", &lines[..1])),
    ]
}

/// Headers that decide whether there are retries are those that are sent.
pub(super) fn of_retries() -> Vec<Found> {
    let told = json!([{ "name": "x-a", "string_match": { "exact": "told" } }]);
    let policy = json!({ "retry_on": "reset", "num_retries": 0, "retriable_request_headers": told });
    let host = json!({
        "routes": [to("dead", json!({ "retry_policy": policy }))],
        "request_headers_to_add": [add("x-a", "told")],
    });
    vec![("retries by a header that is added", manager(host, json!({})), plain())]
}
