//! What was found about how connections and streams end, and become something else.

use serde_json::{Value, json};

use super::{Found, GRPC, add, asked, manager, only, over_http2, plain, to};
use crate::fuzz::asked::{Asked, Framing, Version};
use crate::proxies::merged;

/// What is answered before an endpoint is reached, and how connections go on after it.
pub(super) fn of_endings() -> Vec<Found> {
    let with_body =
        |lines: &[&str]| Asked { body: Some("hello"), next: Some(Box::new(plain())), ..asked("POST", lines) };
    let chunked = Asked { framing: Framing::Chunks, ..with_body(&[]) };
    let slow = json!({ "http_filters": [
        { "name": "envoy.filters.http.fault", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault",
            "delay": { "fixed_delay": "0.05s", "percentage": { "numerator": 100 } },
            "abort": { "http_status": 418, "percentage": { "numerator": 100 } },
        } },
        crate::proxies::router(),
    ] });
    vec![
        (
            "a request that has come whole before its endpoint is found dead",
            only(to("dead", json!({}))),
            with_body(&[]),
        ),
        ("one in chunks", only(to("dead", json!({}))), chunked.clone()),
        ("one that is answered after a while", merged(only(to("service", json!({}))), slow), chunked),
        (
            "one that no route takes",
            only(json!({ "match": { "path": "/x" }, "redirect": {} })),
            with_body(&[]),
        ),
        (
            "an authority that is none, over HTTP/2",
            manager(json!({ "routes": [to("http2", json!({ "host_rewrite_literal": "/" }))] }), json!({})),
            plain(),
        ),
        (
            "a tunnel's port is taken off for its route alone",
            merged(
                only(
                    json!({ "match": { "connect_matcher": {} }, "route": { "cluster": "dead", "upgrade_configs": [{ "upgrade_type": "CONNECT" }] } }),
                ),
                json!({ "strip_any_host_port": true, "upgrade_configs": [{ "upgrade_type": "CONNECT" }] }),
            ),
            Asked {
                target: "a.example:443".to_owned(),
                host: "a.example:443".to_owned(),
                ..asked("CONNECT", &[])
            },
        ),
        (
            "a head just below its limit over HTTP/2",
            merged(only(to("service", json!({}))), json!({ "max_request_headers_kb": 1 })),
            over_http2(asked("GET", &[&format!("x-long: {}", "a".repeat(850)), "x-a: 1", "x-b: 2"])),
        ),
        (
            "a connection of HTTP/1.0 that the answer ends",
            merged(
                only(to("dead", json!({}))),
                json!({ "http_protocol_options": { "accept_http_10": true } }),
            ),
            Asked {
                version: Version::Http10,
                body: Some("hello"),
                ..asked("POST", &["connection: x-a, keep-alive"])
            },
        ),
        (
            "a stranger does not say how long a stream may last",
            only(to("service", json!({}))),
            asked("GET", &["x-envoy-upstream-stream-duration-ms: 200", "act: late"]),
        ),
        (
            "an interim answer is not what requests are told of",
            manager(
                json!({ "routes": [to("service", json!({}))], "request_headers_to_add": [add("x-told", "%RESP(:STATUS)%")] }),
                json!({}),
            ),
            asked("POST", &["expect: 100-continue"]),
        ),
        (
            "a tunnel that is sent elsewhere",
            only(json!({ "match": { "connect_matcher": {} }, "redirect": { "https_redirect": true } })),
            Asked {
                target: "a.example:443".to_owned(),
                host: "a.example:443".to_owned(),
                ..asked("CONNECT", &[])
            },
        ),
    ]
}

/// How long connections last.
pub(super) fn of_connections() -> Vec<Found> {
    let service = || to("service", json!({}));
    let old =
        |route: Value| merged(only(route), json!({ "http_protocol_options": { "accept_http_10": true } }));
    let kept = |method: &'static str, line: &str| Asked {
        version: Version::Http10,
        ..asked(method, &["connection: x-a, keep-alive", line])
    };
    let direct = |body: &str| json!({ "match": { "prefix": "/" }, "direct_response": { "status": 200, "body": { "inline_string": body } } });
    let last = merged(
        only(service()),
        json!({ "common_http_protocol_options": { "max_requests_per_connection": 1 }, "upgrade_configs": [{ "upgrade_type": "websocket" }] }),
    );
    let hop =
        || Asked { next: Some(Box::new(plain())), ..asked("GET", &["proxy-connection: keep-alive, Close"]) };
    vec![
        ("HTTP/1.0 and a reply without a body", old(direct("")), kept("GET", "x-b: 1")),
        ("HTTP/1.0 and a reply with one", old(direct("text")), kept("GET", "x-b: 1")),
        ("HTTP/1.0 and the head of a reply", old(direct("text")), kept("HEAD", "x-b: 1")),
        ("HTTP/1.0 and a reply to gRPC", old(direct("text")), kept("POST", GRPC)),
        ("HTTP/1.0 and a service's answer", old(service()), kept("GET", "x-b: 1")),
        ("HTTP/1.0 and one without a body", old(service()), kept("GET", "act: 304")),
        ("HTTP/1.0 and one in chunks", old(service()), kept("GET", "act: chunks")),
        (
            "an upgrade by a connection's last request",
            last.clone(),
            asked("GET", &["connection: Upgrade", "upgrade: websocket", "act: websocket"]),
        ),
        (
            "one that the service leaves out",
            last,
            asked("GET", &["connection: Upgrade", "upgrade: websocket", "act: empty"]),
        ),
        ("a proxy's connection ends", only(service()), hop()),
        ("one that has a reply", only(direct("text")), hop()),
    ]
}

pub(super) fn of_upgrades() -> Vec<Found> {
    let lines = ["connection: Upgrade", "upgrade: websocket", "te: gzip"];
    let upgrade = || asked("GET", &lines);
    let takes =
        json!({ "upgrade_configs": [{ "upgrade_type": "websocket" }, { "upgrade_type": "CONNECT" }] });
    let direct = json!({ "match": { "prefix": "/" }, "direct_response": { "status": 200 } });
    let tunnel = json!({ "match": { "connect_matcher": {} }, "route": { "cluster": "dead", "upgrade_configs": [{ "upgrade_type": "CONNECT", "connect_config": {} }] } });
    let retries = json!({ "retry_policy": { "retry_on": "connect-failure", "num_retries": 2, "retry_back_off": { "base_interval": "0.001s" } } });
    vec![
        ("no upgrade where nothing is forwarded", only(direct.clone()), upgrade()),
        ("an upgrade where nothing is forwarded", merged(only(direct), takes.clone()), upgrade()),
        ("an upgrade without a route", only(json!({ "match": { "path": "/x" }, "redirect": {} })), upgrade()),
        (
            "an upgrade that fails ends the connection",
            merged(only(to("none", json!({}))), takes.clone()),
            upgrade(),
        ),
        (
            "a tunnel is tried as the host says",
            merged(manager(merged(json!({ "routes": [tunnel] }), retries), json!({})), takes),
            Asked {
                target: "a.example:443".to_owned(),
                host: "a.example:443".to_owned(),
                ..asked("CONNECT", &[])
            },
        ),
    ]
}
