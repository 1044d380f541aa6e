//! What was found of how long streams may last, and how often is tried.

use serde_json::{Value, json};

use super::{Asked, Found, GRPC, add, asked, endpoints, manager, only, over_http2, plain, to};
use crate::fuzz::clusters::{ADDRESSES, PORTS, SERVICE_PORT};
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

/// Clients that leave no time and do not end their request.
pub(super) fn of_unfinished() -> Vec<Found> {
    let limited = || {
        let limit = json!({ "max_stream_duration": { "max_stream_duration": "0.3s" } });
        merged(only(to("service", limit)), json!({ "upgrade_configs": [{ "upgrade_type": "websocket" }] }))
    };
    let switches = ["connection: Upgrade", "upgrade: websocket", "act: late"];
    let promises = || Asked { method: "POST", lines: vec!["content-length: 5".to_owned()], ..plain() };
    vec![
        ("no time for the rest of a request", limited(), promises()),
        ("no time for an answer", limited(), asked("GET", &["act: late"])),
        ("no time for another protocol", limited(), asked("GET", &switches)),
    ]
}

/// Where as many connections are open as may be.
pub(super) fn of_connections() -> Vec<Found> {
    let limits = json!({ "circuit_breakers": { "thresholds": [{ "max_connections": 0 }] } });
    let named = json!({
        "transport_socket": { "name": "envoy.transport_sockets.tls", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        } },
        "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": { "http_protocol_options": {} },
            "upstream_http_protocol_options": { "auto_sni": true },
        } },
    });
    let pool = merged(merged(endpoints("pool-0", &ADDRESSES[..1], PORTS[2]), limits), named);
    let none = merged(
        endpoints("pool-0", &["127.1.0.9"], SERVICE_PORT),
        json!({ "circuit_breakers": { "thresholds": [{ "max_requests": 0 }] } }),
    );
    let nobody = || merged(only(to("pool-0", json!({}))), json!({ "clusters": [none] }));
    let full = || merged(only(to("pool-0", json!({}))), json!({ "clusters": [pool] }));
    let at = |host: &str| Asked { host: host.to_owned(), ..plain() };
    vec![
        ("no request, and nobody there", nobody(), plain()),
        ("a connection for each name", full(), at("a.example")),
        ("a connection for another name", full(), at("b.example")),
        ("a connection for a third one", full(), at("c.example")),
    ]
}

/// A host by a hash stays whatever has been tried.
pub(super) fn of_hashes() -> Vec<Found> {
    let mut pool = endpoints("pool-0", &["127.1.0.9"], SERVICE_PORT);
    let others = endpoints("pool-0", &ADDRESSES[..1], SERVICE_PORT)["load_assignment"]["endpoints"][0].take();
    let others = merged(others, json!({ "priority": 1 }));
    pool["load_assignment"]["endpoints"].as_array_mut().unwrap().push(others);
    let retries = json!({ "retry_on": "connect-failure", "num_retries": 2, "retry_back_off": { "base_interval": "0.001s" }, "retry_priority": {
        "name": "envoy.retry_priorities.previous_priorities", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig", "update_frequency": 1,
        },
    } });
    let hashed =
        json!({ "retry_policy": retries, "hash_policy": [{ "header": { "header_name": ":path" } }] });
    let by = |balancer: &str| {
        let pool = merged(pool.clone(), json!({ "lb_policy": balancer }));
        merged(only(to("pool-0", hashed.clone())), json!({ "clusters": [pool] }))
    };
    vec![
        ("a ring's host is tried again", by("RING_HASH"), plain()),
        ("a table's host is tried again", by("MAGLEV"), plain()),
        ("another's is not", by("ROUND_ROBIN"), plain()),
    ]
}

/// Headers that decide whether there are retries are those that are sent.
pub(super) fn of_retries() -> Vec<Found> {
    let told = json!([{ "name": "x-a", "string_match": { "exact": "told" } }]);
    let policy = json!({ "retry_on": "reset", "num_retries": 0, "retriable_request_headers": told });
    let host = json!({
        "routes": [to("dead", json!({ "retry_policy": policy.clone() }))],
        "request_headers_to_add": [add("x-a", "told")],
    });
    let connect = json!({ "upgrade_type": "CONNECT", "connect_config": {} });
    let tunnel = |policy: Value| {
        let route = json!({ "match": { "connect_matcher": {} }, "route": { "cluster": "dead", "upgrade_configs": [connect] } });
        manager(json!({ "routes": [route], "retry_policy": policy }), json!({}))
    };
    let often = merged(policy, json!({ "num_retries": 1 }));
    let target = "a.example:443".to_owned();
    let asks =
        |lines: &[&str]| Asked { target: target.clone(), host: target.clone(), ..asked("CONNECT", lines) };
    vec![
        ("retries by a header that is added", manager(host, json!({})), plain()),
        ("a tunnel is tried again by a header", tunnel(often.clone()), asks(&["x-a: told"])),
        ("a tunnel is not tried again without", tunnel(often), asks(&[])),
    ]
}
