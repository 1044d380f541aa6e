//! What the fuzzer has found, kept.

mod connections;
mod filters;
mod heads;
mod limits;
mod replies;
mod secured;

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::asked::{Asked, Framing, Version};
use super::clusters::{ADDRESSES, HTTP2_PORT, SERVICE_PORT};
use super::{Attempt, differences};
use crate::proxies::{merge, merged};

/// By name: a connection manager, and what was asked that told Envoy and ours apart.
type Found = (&'static str, Value, Asked);

const GRPC: &str = "content-type: application/grpc";

fn add(name: &str, value: &str) -> Value {
    json!({ "header": { "key": name, "value": value } })
}

fn manager(mut host: Value, more: Value) -> Value {
    merge(&mut host, json!({ "name": "all", "domains": ["*"] }));
    merged(json!({ "route_config": { "virtual_hosts": [host] } }), more)
}

fn to(cluster: &str, more: Value) -> Value {
    json!({ "match": { "prefix": "/" }, "route": merged(json!({ "cluster": cluster }), more) })
}

/// One route and nothing else.
fn only(route: Value) -> Value {
    manager(json!({ "routes": [route] }), json!({}))
}

fn redirect(action: Value) -> Value {
    json!({ "match": { "prefix": "/" }, "redirect": action })
}

fn asked(method: &'static str, lines: &[&str]) -> Asked {
    Asked {
        version: Version::Http11,
        before: Vec::new(),
        method,
        target: "/".to_owned(),
        host: "a.example".to_owned(),
        lines: lines.iter().map(|line| (*line).to_owned()).collect(),
        body: None,
        framing: Framing::Length,
        tls: None,
        next: None,
    }
}

fn plain() -> Asked {
    asked("GET", &[])
}

fn of_grpc() -> Asked {
    asked("POST", &[GRPC])
}

fn over_http2(asked: Asked) -> Asked {
    Asked { version: Version::Http2, ..asked }
}

fn of_answers() -> Vec<Found> {
    let told = |format: &str| json!({ "response_headers_to_add": [add("x-told", format)] });
    let with = |cluster: &str, format: &str| {
        manager(merged(json!({ "routes": [to(cluster, json!({}))] }), told(format)), json!({}))
    };
    let mapper = json!({ "filter": { "not_health_check_filter": {} }, "status_code": 200, "headers_to_add": [add("x-code", "%RESPONSE_CODE%")] });
    let of_headers = json!({ "local_reply_config": { "body_format": { "text_format_source": { "inline_string": "%RESP(x-told)%" } } } });
    vec![
        ("no status of gRPC's for others", with("service", "%GRPC_STATUS%"), asked("GET", &["act: grpc-0"])),
        (
            "a tunnel has no status of gRPC's",
            merged(
                only(json!({ "match": { "path": "/x" }, "redirect": {} })),
                json!({ "local_reply_config": { "body_format": { "text_format_source": { "inline_string": "%GRPC_STATUS%" } } } }),
            ),
            Asked {
                target: "a.example:443".to_owned(),
                host: "a.example:443".to_owned(),
                ..asked("CONNECT", &[GRPC])
            },
        ),
        (
            "gRPC with a parameter is none",
            manager(
                json!({ "routes": [
                { "match": { "prefix": "/", "grpc": {} }, "route": { "cluster": "service" } },
                to("none", json!({})),
            ] }),
                json!({}),
            ),
            asked("POST", &["content-type: application/grpc;a=b"]),
        ),
        (
            "a mapper's headers are told the status before",
            manager(
                json!({ "routes": [to("none", json!({}))] }),
                json!({ "local_reply_config": { "mappers": [mapper] } }),
            ),
            plain(),
        ),
        (
            "a reply's text tells of its headers",
            merged(with("none", "%RESPONSE_CODE_DETAILS%"), of_headers),
            plain(),
        ),
        ("headers of a reply come before its kind", with("none", "%RESP(content-type)%"), plain()),
        (
            "an interim answer is not the answer",
            with("none", "%RESP(:STATUS)%"),
            asked("POST", &["expect: 100-continue"]),
        ),
        (
            "an interim answer tells the request's id, in the answers' case",
            merged(
                only(to("service", json!({}))),
                json!({
                    "proxy_100_continue": true, "always_set_request_id_in_response": true, "via": "me",
                    "http_protocol_options": { "header_key_format": { "proper_case_words": {} } },
                }),
            ),
            asked("GET", &["act: 100-200"]),
        ),
        (
            "a request that is to be traced is told its id",
            merged(
                only(to("service", json!({}))),
                json!({ "internal_address_config": { "cidr_ranges": [{ "address_prefix": "10.0.0.0", "prefix_len": 8 }] } }),
            ),
            asked("GET", &["x-envoy-force-trace: 1", "x-forwarded-for: 10.0.0.1"]),
        ),
        (
            "a tunnel is none of gRPC's",
            only(json!({ "match": { "path": "/x" }, "redirect": {} })),
            Asked {
                target: "a.example:443".to_owned(),
                host: "a.example:443".to_owned(),
                ..asked("CONNECT", &[GRPC])
            },
        ),
        (
            "a path that is none is told as it came",
            merged(
                only(to("service", json!({}))),
                json!({ "strip_trailing_host_dot": true, "always_set_request_id_in_response": true }),
            ),
            Asked { target: "*".to_owned(), host: "a.example.".to_owned(), ..asked("OPTIONS", &[]) },
        ),
        (
            "too many headers over HTTP/2",
            merged(
                only(to("service", json!({}))),
                json!({ "common_http_protocol_options": { "max_headers_count": 5 } }),
            ),
            over_http2(asked("GET", &["x-a: 1", "x-b: 2", "x-c: 3"])),
        ),
    ]
}

/// Clients that leave no time for an answer.
fn of_deadlines() -> Vec<Found> {
    let limited =
        json!({ "max_stream_duration": { "max_stream_duration": "5s", "grpc_timeout_header_max": "3s" } });
    vec![
        ("no time left", only(to("service", limited.clone())), asked("GET", &["grpc-timeout: 0S"])),
        (
            "no time left where there is no connection",
            merged(
                only(to("pool-0", limited.clone())),
                json!({ "clusters": [endpoints("pool-0", &ADDRESSES[..1], SERVICE_PORT)] }),
            ),
            asked("GET", &["grpc-timeout: 0S"]),
        ),
        (
            "no time left for gRPC",
            only(to("service", limited.clone())),
            asked("POST", &[GRPC, "grpc-timeout: 0S"]),
        ),
        (
            "how often was tried is not told where no time is left",
            manager(
                json!({ "routes": [to("service", limited)], "include_attempt_count_in_response": true }),
                json!({}),
            ),
            asked("GET", &["grpc-timeout: 0S"]),
        ),
    ]
}

fn of_schemes() -> Vec<Found> {
    let elsewhere = || only(redirect(json!({ "host_redirect": "elsewhere" })));
    let secure = || only(redirect(json!({ "https_redirect": true })));
    let at_80 = |asked: Asked| Asked { host: "a.example:80".to_owned(), ..asked };
    let forwarded = ["x-forwarded-proto: https"];
    vec![
        ("a scheme in capitals", elsewhere(), asked("GET", &["x-forwarded-proto: HTTPS"])),
        ("a scheme of HTTP/2's own", elsewhere(), over_http2(asked("GET", &forwarded))),
        (
            "a scheme of a URL's own",
            elsewhere(),
            Asked { target: "http://b.example/x".to_owned(), ..asked("GET", &forwarded) },
        ),
        ("a port that is the scheme's", secure(), at_80(plain())),
        ("a port that is another scheme's", secure(), over_http2(at_80(asked("GET", &forwarded)))),
        (
            "a host that requires TLS, of HTTP/2",
            manager(json!({ "routes": [to("service", json!({}))], "require_tls": "ALL" }), json!({})),
            over_http2(asked("GET", &forwarded)),
        ),
    ]
}

fn endpoints(name: &str, addresses: &[&str], port: u16) -> Value {
    let one = |address: &&str| json!({ "endpoint": { "address": { "socket_address": { "address": address, "port_value": port } } } });
    let all: Vec<Value> = addresses.iter().map(one).collect();
    json!({ "name": name, "connect_timeout": "2s", "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": all }] } })
}

fn of_trailers() -> Vec<Found> {
    let trailers = |asked: Asked| Asked { body: Some("hello"), framing: Framing::Trailers, ..asked };
    let http2 = json!({ "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": { "http2_protocol_options": {} },
    } } });
    let pool = merged(endpoints("pool-0", &ADDRESSES[..1], HTTP2_PORT), http2);
    let over_both = || merged(only(to("pool-0", json!({}))), json!({ "clusters": [pool] }));
    let service = || only(to("service", json!({})));
    vec![
        ("trailers from HTTP/1 to HTTP/2", over_both(), trailers(asked("POST", &[]))),
        ("trailers from HTTP/2 to HTTP/2", over_both(), over_http2(trailers(asked("POST", &[])))),
        ("trailers from HTTP/2 to HTTP/1", service(), over_http2(trailers(asked("POST", &[])))),
        ("trailers that come over HTTP/1", service(), over_http2(asked("GET", &["act: trailers"]))),
    ]
}

fn of_clusters() -> Vec<Found> {
    let named = merged(endpoints("pool-0", &ADDRESSES[..1], SERVICE_PORT), json!({ "type": "STRICT_DNS" }));
    let proxied = |more: Value| {
        let config = merged(
            json!({ "@type": "type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol" }),
            more,
        );
        let filter = json!({ "name": "envoy.filters.listener.proxy_protocol", "typed_config": config });
        merged(only(to("service", json!({}))), json!({ "listener": { "listener_filters": [filter] } }))
    };
    let mut halved = endpoints("pool-0", &ADDRESSES[..2], SERVICE_PORT);
    halved["lb_policy"] = json!("RING_HASH");
    halved["load_assignment"]["policy"] = json!({ "weighted_priority_health": true });
    merge(
        &mut halved["load_assignment"]["endpoints"][0]["lb_endpoints"][0],
        json!({ "health_status": "UNHEALTHY", "load_balancing_weight": 2 }),
    );
    let mut elsewhere = named.clone();
    elsewhere["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"] = json!({
        "address": { "socket_address": { "address": "127.1.0.9", "port_value": SERVICE_PORT } },
        "additional_addresses": [{ "address": { "socket_address": { "address": ADDRESSES[0], "port_value": SERVICE_PORT } } }],
    });
    let with = |kind: &str| {
        let pool = merged(elsewhere.clone(), json!({ "type": kind }));
        merged(only(to("pool-0", json!({}))), json!({ "clusters": [pool] }))
    };
    let by_path = json!({ "hash_policy": [{ "header": { "header_name": ":path" } }] });
    let broken = || Asked { before: b"PROXY TCP4 1.2.3.4 5.6.7.8 x 80\r\n".to_vec(), ..plain() };
    vec![
        (
            "an address among names is its own name",
            merged(only(to("pool-0", json!({ "auto_host_rewrite": true }))), json!({ "clusters": [named] })),
            plain(),
        ),
        ("another address where nobody is", with("STATIC"), plain()),
        ("no other address among names", with("STRICT_DNS"), plain()),
        ("no other address of the one name", with("LOGICAL_DNS"), plain()),
        (
            "a heavy endpoint that is down is no reason for panic",
            merged(only(to("pool-0", by_path)), json!({ "clusters": [halved] })),
            plain(),
        ),
        (
            "how long a stream may last is not passed on",
            only(to("service", json!({}))),
            asked("GET", &["x-envoy-upstream-stream-duration-ms: 3000"]),
        ),
        (
            "a broken header of a version that is none",
            proxied(json!({ "allow_requests_without_proxy_protocol": true, "disallowed_versions": ["V1"] })),
            broken(),
        ),
        ("a broken header", proxied(json!({ "allow_requests_without_proxy_protocol": true })), broken()),
    ]
}

fn found() -> Vec<Found> {
    let lives = json!({ "max_stream_duration": { "max_stream_duration": "5s", "grpc_timeout_header_max": "3s", "grpc_timeout_header_offset": "1s" } });
    let json_body = json!({ "local_reply_config": { "body_format": { "json_format": { "status": "%RESPONSE_CODE%", "grpc": "%GRPC_STATUS%" } } } });
    let redirect = redirect(json!({ "host_redirect": "elsewhere" }));
    let mut all = vec![
        (
            "the reply's own status in a route's headers",
            manager(
                json!({ "routes": [redirect], "response_headers_to_add": [add("x-status", "%RESP(:STATUS)%"), add("x-code", "%RESPONSE_CODE%")] }),
                json!({}),
            ),
            plain(),
        ),
        (
            "a stream's limit takes the time-out's place",
            manager(json!({ "routes": [to("service", lives.clone())] }), json!({})),
            plain(),
        ),
        (
            "a stream's limit is told to gRPC",
            manager(json!({ "routes": [to("service", lives.clone())] }), json!({})),
            of_grpc(),
        ),
        (
            "a client's deadline is capped",
            manager(json!({ "routes": [to("service", lives)] }), json!({})),
            asked("POST", &["content-type: application/grpc", "grpc-timeout: 9S"]),
        ),
        (
            "no message to gRPC that asked for the head",
            manager(json!({ "routes": [to("dead", json!({}))] }), json!({})),
            asked("HEAD", &[GRPC]),
        ),
        (
            "JSON for gRPC has no line's end",
            manager(json!({ "routes": [to("none", json!({}))] }), json_body),
            of_grpc(),
        ),
        (
            "gRPC's status out of HTTP's",
            manager(
                json!({ "routes": [to("service", json!({}))], "response_headers_to_add": [add("x-grpc", "%GRPC_STATUS%")] }),
                json!({}),
            ),
            of_grpc(),
        ),
        (
            "the proxy's own name after the route's",
            manager(
                json!({ "routes": [to("service", json!({}))], "response_headers_to_add": [add("via", "route")] }),
                json!({ "via": "proxy" }),
            ),
            asked("GET", &["via: one", "via: two"]),
        ),
        (
            "the attempt that comes",
            manager(
                json!({ "routes": [to("service", json!({}))], "request_headers_to_add": [add("x-attempt", "%UPSTREAM_REQUEST_ATTEMPT_COUNT%")] }),
                json!({}),
            ),
            plain(),
        ),
    ];
    all.extend(of_answers());
    all.extend(replies::of_mappers());
    all.extend(replies::of_no_request());
    all.extend(connections::of_endings());
    all.extend(of_deadlines());
    all.extend(connections::of_connections());
    all.extend(limits::of_tries());
    all.extend(limits::of_retries());
    all.extend(limits::of_unfinished());
    all.extend(limits::of_connections());
    all.extend(limits::of_hashes());
    all.extend(filters::of_connects());
    all.extend(filters::of_tokens());
    all.extend(filters::of_failures());
    all.extend(secured::of_clients());
    all.extend(secured::of_services());
    all.extend(connections::of_upgrades());
    all.extend(of_schemes());
    all.extend(of_trailers());
    all.extend(of_clusters());
    all.extend(heads::of_heads());
    all.extend(heads::of_sizes());
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_found_fares_the_same() {
    let all = found();
    let attempts: Vec<Attempt> = all
        .iter()
        .map(|(_, config, asked)| Attempt { config: config.clone(), asked: asked.clone() })
        .collect();
    let mut complaints = String::new();
    for ((name, ..), difference) in all.iter().zip(differences(&attempts).await) {
        if let Some(difference) = difference {
            writeln!(complaints, "=== {name}\n{difference}").unwrap();
        }
    }
    assert!(complaints.is_empty(), "\n{complaints}");
}
