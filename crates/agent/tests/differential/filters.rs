//! HTTP filters: faults and cross-origin requests.

use serde_json::{Value, json};

use crate::cases::{Case, Compare, Step};

fn typed(name: &str, mut config: Value) -> Value {
    config["@type"] = json!(format!("type.googleapis.com/{name}"));
    config
}

fn filters(before: Vec<(&str, Value)>) -> Value {
    let router =
        ("envoy.filters.http.router", typed("envoy.extensions.filters.http.router.v3.Router", json!({})));
    before
        .into_iter()
        .chain([router])
        .map(|(name, config)| json!({ "name": name, "typed_config": config }))
        .collect()
}

fn fault(config: Value) -> Value {
    typed("envoy.extensions.filters.http.fault.v3.HTTPFault", config)
}

fn cors(config: Value) -> Value {
    typed("envoy.extensions.filters.http.cors.v3.CorsPolicy", config)
}

fn all() -> Value {
    json!({ "numerator": 100 })
}

/// A route to the service for a prefix, with a fault of its own.
fn faulty(prefix: &str, config: Value) -> Value {
    json!({
        "name": prefix, "match": { "prefix": prefix }, "route": { "cluster": "service" },
        "typed_per_filter_config": { "fault": fault(config) },
    })
}

fn with(mut route: Value, more: Value) -> Value {
    let (Value::Object(route), Value::Object(more)) = (&mut route, more) else { panic!("objects") };
    route.extend(more);
    Value::Object(route.clone())
}

fn fault_routes() -> Value {
    let abort = |status: u32| json!({ "http_status": status, "percentage": all() });
    let delay = |time: &str| json!({ "fixed_delay": time, "percentage": all() });
    let off = typed("envoy.config.route.v3.FilterConfig", json!({ "disabled": true }));
    json!([
        faulty("/abort", json!({ "abort": abort(503) })),
        faulty(
            "/teapot",
            json!({ "abort": { "http_status": 418, "percentage": { "numerator": 1_000_000, "denominator": "MILLION" }, "response_body": "short and stout" } })
        ),
        faulty("/never", json!({ "abort": { "http_status": 503 }, "delay": { "fixed_delay": "5s" } })),
        faulty(
            "/grpc-abort",
            json!({ "abort": { "grpc_status": 7, "percentage": { "numerator": 10_000, "denominator": "TEN_THOUSAND" } } })
        ),
        faulty("/delay", json!({ "delay": delay("0.2s") })),
        faulty("/long", json!({ "delay": delay("5s") })),
        faulty("/both", json!({ "delay": delay("0.2s"), "abort": abort(500) })),
        faulty(
            "/asked",
            json!({
                "delay": { "header_delay": {}, "percentage": all() }, "abort": { "header_abort": {}, "percentage": all() },
                "response_rate_limit": { "header_limit": {}, "percentage": all() },
            })
        ),
        faulty("/cluster", json!({ "upstream_cluster": "http2", "abort": abort(503) })),
        faulty("/this-cluster", json!({ "upstream_cluster": "service", "abort": abort(503) })),
        faulty(
            "/headers",
            json!({ "headers": [{ "name": "x-fault", "string_match": { "exact": "yes" } }], "abort": abort(503) })
        ),
        faulty("/nodes", json!({ "downstream_nodes": ["a", "b"], "abort": abort(503) })),
        faulty("/full", json!({ "max_active_faults": 0, "abort": abort(503), "delay": delay("5s") })),
        faulty(
            "/slow",
            json!({ "response_rate_limit": { "fixed_limit": { "limit_kbps": 4 }, "percentage": all() } })
        ),
        with(
            faulty("/retried", json!({ "abort": abort(503) })),
            json!({ "route": {
            "cluster": "service", "retry_policy": { "retry_on": "5xx", "num_retries": 3 },
        } })
        ),
        with(
            faulty("/timeout", json!({ "delay": delay("0.3s") })),
            json!({ "route": { "cluster": "service", "timeout": "0.1s" } })
        ),
        with(
            faulty("/idle", json!({ "delay": delay("1s") })),
            json!({ "route": { "cluster": "service", "idle_timeout": "0.2s" } })
        ),
        with(
            faulty("/headers-added", json!({ "abort": abort(503) })),
            json!({
                "response_headers_to_add": [{ "header": { "key": "x-route", "value": "%RESPONSE_CODE% %RESPONSE_FLAGS%" } }],
            })
        ),
        json!({ "name": "direct", "match": { "prefix": "/direct" }, "direct_response": { "status": 200, "body": { "inline_string": "direct" } },
            "typed_per_filter_config": { "fault": fault(json!({ "abort": abort(503) })) } }),
        json!({ "name": "moved", "match": { "prefix": "/moved" }, "redirect": { "path_redirect": "/x" },
            "typed_per_filter_config": { "fault": fault(json!({ "delay": delay("0.1s") })) } }),
        json!({ "name": "off", "match": { "prefix": "/off" }, "route": { "cluster": "service" }, "typed_per_filter_config": { "fault": off } }),
        json!({ "name": "weighted", "match": { "prefix": "/weighted" }, "route": { "weighted_clusters": { "clusters": [
            { "name": "service", "weight": 1, "typed_per_filter_config": { "fault": fault(json!({ "abort": abort(429) })) } },
        ] } }, "typed_per_filter_config": { "fault": fault(json!({ "abort": abort(503) })) } }),
        json!({ "name": "other-filter", "match": { "prefix": "/other" }, "route": { "cluster": "service" },
            "typed_per_filter_config": { "not-there": fault(json!({ "abort": abort(503) })) } }),
        json!({ "name": "of-the-host", "match": { "prefix": "/host" }, "route": { "cluster": "service" } }),
    ])
}

fn cors_routes() -> Value {
    let route = |prefix: &str, config: Value| {
        json!({
            "name": prefix, "match": { "prefix": prefix }, "route": { "cluster": "service" },
            "typed_per_filter_config": { "cors": cors(config) },
        })
    };
    let origins = || json!([{ "exact": "https://a.example" }, { "prefix": "https://b." }, { "safe_regex": { "regex": "https://c[0-9]+\\.example" } }]);
    let share = |numerator: u32| json!({ "default_value": { "numerator": numerator } });
    json!([
        route(
            "/full",
            json!({
                "allow_origin_string_match": origins(), "allow_methods": "GET, POST", "allow_headers": "x-one, x-two",
                "expose_headers": "x-seen", "max_age": "600", "allow_credentials": true, "filter_enabled": share(100),
            })
        ),
        route(
            "/any",
            json!({
                "allow_origin_string_match": [{ "exact": "*" }], "allow_methods": "*", "allow_headers": "*",
                "allow_private_network_access": true,
            })
        ),
        route(
            "/ignore",
            json!({ "allow_origin_string_match": origins(), "allow_methods": "GET", "forward_not_matching_preflights": false })
        ),
        route("/off", json!({ "allow_origin_string_match": origins(), "filter_enabled": share(0) })),
        route(
            "/shadow",
            json!({ "allow_origin_string_match": origins(), "filter_enabled": share(0), "shadow_enabled": share(100) })
        ),
        route("/methods-only", json!({ "allow_methods": "PUT", "expose_headers": "x-route" })),
        json!({ "name": "old", "match": { "prefix": "/old" }, "route": { "cluster": "service", "cors": {
            "allow_origin_string_match": [{ "exact": "https://old.example" }], "allow_methods": "GET",
        } } }),
        json!({ "name": "direct", "match": { "prefix": "/direct" }, "direct_response": { "status": 200 },
            "typed_per_filter_config": { "cors": cors(json!({ "allow_origin_string_match": origins() })) } }),
        json!({ "name": "dead", "match": { "prefix": "/dead" }, "route": { "cluster": "dead" },
            "typed_per_filter_config": { "cors": cors(json!({ "allow_origin_string_match": origins(), "expose_headers": "x-seen" })) } }),
        json!({ "name": "fault", "match": { "prefix": "/fault" }, "route": { "cluster": "service" },
            "typed_per_filter_config": {
                "cors": cors(json!({ "allow_origin_string_match": origins() })),
                "fault": fault(json!({ "abort": { "http_status": 503, "percentage": all() } })),
            } }),
        json!({ "name": "headers", "match": { "prefix": "/headers" }, "route": { "cluster": "service" },
            "response_headers_to_add": [{ "header": { "key": "x-route", "value": "there" } }],
            "typed_per_filter_config": { "cors": cors(json!({ "allow_origin_string_match": origins() })) } }),
        json!({ "name": "of-the-host", "match": { "prefix": "/host" }, "route": { "cluster": "service" } }),
    ])
}

pub(crate) fn listeners() -> Vec<(&'static str, Value)> {
    let plain = |routes: Value, host: Value| {
        let host = with(json!({ "name": "all", "domains": ["*"], "routes": routes }), host);
        json!({ "name": "routes", "validate_clusters": false, "virtual_hosts": [host] })
    };
    let host_fault = json!({ "typed_per_filter_config": { "fault": fault(json!({ "abort": { "http_status": 451, "percentage": all() } })) } });
    let host_cors = json!({ "typed_per_filter_config": { "cors": cors(json!({
        "allow_origin_string_match": [{ "exact": "https://host.example" }], "max_age": "1", "expose_headers": "x-host",
    })) } });
    let empty = fault(json!({}));
    let both = || {
        filters(vec![
            ("cors", typed("envoy.extensions.filters.http.cors.v3.Cors", json!({}))),
            ("fault", empty.clone()),
        ])
    };
    let default_fault = fault(json!({ "abort": { "header_abort": {}, "percentage": all() } }));
    vec![
        ("faults", json!({ "http_filters": both(), "route_config": plain(fault_routes(), host_fault) })),
        (
            "default-fault",
            json!({
                "http_filters": filters(vec![("fault", default_fault)]),
                "route_config": plain(json!([{ "match": { "path": "/there" }, "route": { "cluster": "service" } }]), json!({})),
            }),
        ),
        ("cors", json!({ "http_filters": both(), "route_config": plain(cors_routes(), host_cors) })),
    ]
}

/// Numbers that must be the same when all cases have been played, as patterns.
pub(crate) const STATS: [&str; 3] =
    [r"^http\.faults\.(fault|cors)\.", r"^http\.default-fault\.fault\.", r"^http\.cors\.(fault|cors)\."];

pub(crate) fn cases() -> Vec<Case> {
    let mut all: Vec<Case> = faults().into_iter().map(|case| case.on("faults")).collect();
    all.extend(cross_origin().into_iter().map(|case| case.on("cors")));
    let unrouted = |name, more: &str| get(name, "/nowhere", more).on("default-fault");
    all.extend([
        unrouted("no route and no fault", ""),
        unrouted("a fault without a route", "x-envoy-fault-abort-request: 409\r\n"),
        get("a fault of the connection manager", "/there", "x-envoy-fault-abort-request: 409\r\n")
            .on("default-fault"),
    ]);
    all
}

fn get(name: &'static str, target: &str, more: &str) -> Case {
    Case {
        name,
        listener: "plain",
        steps: vec![
            Step::Send(format!("GET {target} HTTP/1.1\r\nhost: a.example\r\n{more}\r\n").into_bytes()),
            Step::Answers(vec!["GET"]),
            Step::Probe,
        ],
        compare: Compare::Everything,
    }
}

fn faults() -> Vec<Case> {
    let gone = |name, target: &str| Case {
        steps: vec![
            Step::Send(format!("GET {target} HTTP/1.1\r\nhost: a\r\n\r\n").into_bytes()),
            Step::Pause(std::time::Duration::from_millis(200)),
        ],
        ..get(name, target, "")
    };
    let post = |name, target: &str| Case {
        steps: vec![
            Step::Send(
                format!("POST {target} HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello").into_bytes(),
            ),
            Step::Answers(vec!["POST"]),
        ],
        ..get(name, target, "")
    };
    let grpc = "content-type: application/grpc\r\n";
    let client = "x-envoy-downstream-service-cluster: web\r\n";
    vec![
        get("abort", "/abort", ""),
        get("abort of a named client", "/abort", client),
        get("abort of a gRPC call", "/abort", grpc),
        post("abort of a body", "/abort"),
        get("abort with a text", "/teapot", ""),
        get("faults without percentages", "/never", ""),
        get("abort with a gRPC status", "/grpc-abort", ""),
        get("abort of a gRPC call with a gRPC status", "/grpc-abort", grpc),
        get("delay", "/delay", ""),
        get("delay of a named client", "/delay", client),
        post("delay of a body", "/delay"),
        get("delay before an error", "/delay", "act: 500\r\n"),
        get("delay before a reset", "/delay", "act: early-close\r\n"),
        gone("gone during the delay", "/long"),
        get("delay and abort", "/both", ""),
        get("nothing asked for", "/asked", ""),
        get("a delay asked for", "/asked", "x-envoy-fault-delay-request: 150\r\n"),
        get("an abort asked for", "/asked", "x-envoy-fault-abort-request: 404\r\n"),
        get("an impossible abort asked for", "/asked", "x-envoy-fault-abort-request: 999\r\n"),
        get("a gRPC abort asked for", "/asked", "x-envoy-fault-abort-grpc-request: 5\r\n"),
        get(
            "an abort asked for never",
            "/asked",
            "x-envoy-fault-abort-request: 404\r\nx-envoy-fault-abort-request-percentage: 0\r\n",
        ),
        get("a rate asked for", "/asked", "x-envoy-fault-throughput-response: 4\r\n"),
        get("fault for another cluster", "/cluster", ""),
        get("fault for this cluster", "/this-cluster", ""),
        get("fault for other headers", "/headers", ""),
        get("fault for these headers", "/headers", "x-fault: yes\r\n"),
        get("fault for nodes", "/nodes", ""),
        get("fault for this node", "/nodes", "x-envoy-downstream-service-node: b\r\n"),
        get("too many faults", "/full", ""),
        get("a slow answer", "/slow", "act: head-50k\r\n"),
        get("a slow large answer", "/slow", &format!("x-filler: {}\r\n", "x".repeat(3000))),
        get("an abort is not retried", "/retried", ""),
        get("a delay does not count for the time-out", "/timeout", ""),
        get("a delay longer than the idle time-out", "/idle", ""),
        get("abort with headers of the route", "/headers-added", ""),
        get("abort before a direct response", "/direct", ""),
        get("delay before a redirect", "/moved", ""),
        get("a filter off", "/off", ""),
        get("fault of the weighted cluster", "/weighted", ""),
        get("configuration of no filter", "/other", ""),
        get("fault of the host", "/host", ""),
    ]
}

fn cross_origin() -> Vec<Case> {
    let preflight = |name, target: &str, more: &str| {
        Case {
        steps: vec![
            Step::Send(
                format!("OPTIONS {target} HTTP/1.1\r\nhost: a\r\naccess-control-request-method: PATCH\r\n{more}\r\n")
                    .into_bytes(),
            ),
            Step::Answers(vec!["OPTIONS"]),
            Step::Probe,
        ],
        ..get(name, target, "")
    }
    };
    let (a, evil) = ("origin: https://a.example\r\n", "origin: https://evil.example\r\n");
    vec![
        get("no origin", "/full", ""),
        get("an allowed origin", "/full", a),
        get("an origin by prefix", "/full", "origin: https://b.anything\r\n"),
        get("an origin by regex", "/full", "origin: https://c7.example\r\n"),
        get("another origin", "/full", evil),
        preflight("preflight", "/full", a),
        preflight(
            "preflight that asks for headers",
            "/full",
            &format!("{a}access-control-request-headers: x-three\r\n"),
        ),
        preflight("preflight of another origin", "/full", evil),
        preflight("preflight without an origin", "/full", ""),
        preflight(
            "preflight where anything goes",
            "/any",
            &format!("{evil}access-control-request-headers: x-three\r\n"),
        ),
        preflight("preflight without headers where anything goes", "/any", evil),
        preflight(
            "preflight to a private network",
            "/any",
            &format!("{evil}access-control-request-private-network: true\r\n"),
        ),
        preflight("preflight of another origin that is answered", "/ignore", evil),
        preflight("preflight of an allowed origin that is answered", "/ignore", a),
        Case {
            steps: vec![
                Step::Send(format!("OPTIONS /full HTTP/1.1\r\nhost: a\r\n{a}\r\n").into_bytes()),
                Step::Answers(vec!["OPTIONS"]),
            ],
            ..get("options without a method", "/full", "")
        },
        get("switched off", "/off", a),
        preflight("preflight, switched off", "/off", a),
        get("only counted", "/shadow", a),
        get("another origin, only counted", "/shadow", evil),
        get("origins of the host", "/methods-only", "origin: https://host.example\r\n"),
        preflight(
            "preflight with methods of the route and origins of the host",
            "/methods-only",
            "origin: https://host.example\r\n",
        ),
        get("older fields are passed over", "/old", "origin: https://old.example\r\n"),
        get("direct responses are not shared", "/direct", a),
        get("our own replies are", "/dead", a),
        get("aborted requests, too", "/fault", a),
        get("beside headers of the route", "/headers", a),
        preflight("preflight beside headers of the route", "/headers", a),
        get("policy of the host", "/host", "origin: https://host.example\r\n"),
    ]
}
