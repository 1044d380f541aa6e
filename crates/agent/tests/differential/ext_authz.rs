//! External authorization: the HTTP filter with a gRPC and an HTTP authorizer, and the network filter.

use serde_json::{Value, json};

use crate::authorizers;
use crate::cases::{Case, Compare, Step};
use crate::duo::{Backend, Duo, KINDS, cluster, route};
use crate::proxies::{merged, router};

const FILTER: &str = "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz";
const PER_ROUTE: &str = "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute";
const NETWORK: &str = "type.googleapis.com/envoy.extensions.filters.network.ext_authz.v3.ExtAuthz";
const NETWORK_RBAC: &str = "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC";
const RBAC: &str = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC";
const H2: &str = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

fn grpc(more: Value) -> Value {
    let base = json!({
        "@type": FILTER, "transport_api_version": "V3",
        "grpc_service": { "envoy_grpc": { "cluster_name": "authz-grpc" }, "timeout": "0.5s" },
    });
    json!({ "name": "authz", "typed_config": merged(base, more) })
}

fn http(service: Value, more: Value) -> Value {
    let base = json!({
        "@type": FILTER, "transport_api_version": "V3",
        "http_service": merged(json!({ "server_uri": { "uri": "http://authz", "cluster": "authz-http", "timeout": "0.5s" } }), service),
    });
    json!({ "name": "authz", "typed_config": merged(base, more) })
}

fn manager(filters: Vec<Value>) -> Value {
    let filters: Vec<Value> = filters.into_iter().chain([router()]).collect();
    let per_route = |prefix: &str, settings: Value| {
        let settings = merged(json!({ "@type": PER_ROUTE }), settings);
        json!({
            "name": prefix, "match": { "prefix": prefix }, "route": { "cluster": "service" },
            "typed_per_filter_config": { "authz": settings },
        })
    };
    let settings = |settings: Value| json!({ "check_settings": settings });
    let routes = json!([
        { "name": "other", "match": { "prefix": "/", "headers": [{ "name": "x-route", "string_match": { "exact": "other" } }] },
          "direct_response": { "status": 203, "body": { "inline_string": "another route" } } },
        per_route("/off", json!({ "disabled": true })),
        per_route("/told", settings(json!({ "context_extensions": { "a": "route", "c": "3" } }))),
        per_route("/without-body", settings(json!({ "disable_request_body_buffering": true }))),
        per_route("/with-body", settings(json!({ "with_request_body": { "max_request_bytes": 20, "allow_partial_message": true } }))),
        per_route("/asks-grpc", settings(json!({ "grpc_service": { "envoy_grpc": { "cluster_name": "authz-grpc" }, "timeout": "0.5s" }, "context_extensions": { "a": "own" } }))),
        per_route("/asks-http", settings(json!({ "http_service": {
            "server_uri": { "uri": "http://own", "cluster": "authz-http", "timeout": "0.5s" }, "path_prefix": "/own",
            "authorization_request": { "headers_to_add": [{ "key": "x-own", "value": "yes" }] },
            "authorization_response": {
                "allowed_upstream_headers": { "patterns": [{ "exact": "x-asked" }] },
                "allowed_client_headers": { "patterns": [{ "exact": "x-up" }] },
            },
        } }))),
        per_route("/asks-nobody", settings(json!({ "grpc_service": { "envoy_grpc": { "cluster_name": "missing" } } }))),
        { "name": "direct", "match": { "prefix": "/direct" }, "direct_response": { "status": 200, "body": { "inline_string": "direct" } } },
        { "name": "only-get", "match": { "prefix": "/only-get", "headers": [{ "name": ":method", "string_match": { "exact": "GET" } }] }, "route": { "cluster": "service" } },
        { "name": "all", "match": { "prefix": "/" }, "route": { "cluster": "service" },
          "response_headers_to_add": [{ "header": { "key": "x-route-says", "value": "%RESPONSE_CODE% %RESPONSE_FLAGS%" } }] },
    ]);
    json!({
        "http_filters": filters,
        "route_config": {
            "name": "routes", "validate_clusters": false,
            "virtual_hosts": [
                { "name": "none", "domains": ["none.example"], "routes": [{ "match": { "path": "/none" }, "route": { "cluster": "service" } }] },
                { "name": "all", "domains": ["*"], "routes": routes,
                  "typed_per_filter_config": { "authz": merged(json!({ "@type": PER_ROUTE }), settings(json!({ "context_extensions": { "a": "host", "b": "2" } }))) } },
            ],
        },
    })
}

/// Policies that are only noted, and the filter behind them that asks about what they match.
fn noted() -> Vec<Value> {
    let admin = json!({ "permissions": [{ "url_path": { "path": { "prefix": "/admin" } } }], "principals": [{ "any": true }] });
    let other = json!({ "permissions": [{ "url_path": { "path": { "prefix": "/other" } } }], "principals": [{ "any": true }] });
    vec![
        json!({ "name": "rbac", "typed_config": {
            "@type": RBAC, "shadow_rules_stat_prefix": "istio_ext_authz_",
            "shadow_rules": { "action": "DENY", "policies": { "istio-ext-authz-ns[a]": admin, "others": other } },
        } }),
        grpc(json!({
            "filter_enabled_metadata": {
                "filter": "envoy.filters.http.rbac", "path": [{ "key": "istio_ext_authz_shadow_effective_policy_id" }],
                "value": { "string_match": { "prefix": "istio-ext-authz" } },
            },
            "metadata_context_namespaces": ["envoy.filters.http.rbac", "none"],
        })),
    ]
}

#[allow(clippy::too_many_lines)] // A table of cases.
pub(crate) fn listeners() -> Vec<(&'static str, Value)> {
    let list = |patterns: &[&str]| json!({ "patterns": patterns.iter().map(|pattern| json!({ "prefix": pattern })).collect::<Vec<_>>() });
    let again = |on: &str| {
        json!({
            "retry_on": on, "num_retries": 2, "retry_back_off": { "base_interval": "0.02s", "max_interval": "0.6s" },
        })
    };
    let dead = json!({ "grpc_service": { "envoy_grpc": { "cluster_name": "dead" } } });
    let body =
        |bytes: u32, partial: bool| json!({ "max_request_bytes": bytes, "allow_partial_message": partial });
    vec![
        ("authz-grpc", manager(vec![grpc(json!({}))])),
        (
            "authz-strict",
            manager(vec![grpc(json!({
                "validate_mutations": true, "clear_route_cache": true, "stat_prefix": "strict", "status_on_error": { "code": 503 },
                "allowed_headers": list(&["x-", ":"]), "disallowed_headers": list(&["x-secret"]),
                "with_request_body": merged(body(10, true), json!({ "pack_as_bytes": true })), "include_tls_session": true,
                "max_denied_response_body_bytes": 12, "enable_dynamic_metadata_ingestion": false,
                "charge_cluster_response_stats": false,
                "grpc_service": { "envoy_grpc": { "authority": "asked.example", "skip_envoy_headers": true }, "initial_metadata": [{ "key": "x-mine", "value": "%REQ(:path)%" }] },
            }))]),
        ),
        ("authz-body", manager(vec![grpc(json!({ "with_request_body": body(10, false) }))])),
        (
            "authz-raw",
            manager(vec![grpc(
                json!({ "encode_raw_headers": true, "with_request_body": body(1000, false) }),
            )]),
        ),
        (
            "authz-open",
            manager(vec![grpc(json!({ "failure_mode_allow": true, "failure_mode_allow_header_add": true }))]),
        ),
        ("authz-dead", manager(vec![grpc(dead.clone())])),
        ("authz-dead-open", manager(vec![grpc(merged(dead, json!({ "failure_mode_allow": true })))])),
        (
            "authz-disabled",
            manager(vec![grpc(json!({ "filter_enabled": { "default_value": { "numerator": 0 } } }))]),
        ),
        (
            "authz-deny-disabled",
            manager(vec![grpc(json!({
                "filter_enabled": { "default_value": { "numerator": 0 } },
                "deny_at_disable": { "runtime_key": "none", "default_value": true }, "status_on_error": { "code": 409 },
            }))]),
        ),
        ("authz-noted", manager(noted())),
        ("authz-rules", manager(vec![grpc(json!({ "decoder_header_mutation_rules": {} }))])),
        (
            "authz-rules-strict",
            manager(vec![grpc(
                json!({ "decoder_header_mutation_rules": { "disallow_is_error": true, "allow_all_routing": true, "allow_envoy": true } }),
            )]),
        ),
        (
            "authz-rules-few",
            manager(vec![grpc(json!({ "clear_route_cache": true, "decoder_header_mutation_rules": {
                "disallow_all": true, "allow_expression": { "regex": "x-(new|asked|route|envoy).*|x-gone" },
                "disallow_expression": { "regex": ".*absent" },
            } }))]),
        ),
        (
            "authz-rules-http",
            manager(vec![http(
                json!({ "authorization_response": {
                    "allowed_upstream_headers": list(&["x-up", "x-asked", "x-there"]), "allowed_upstream_headers_to_append": list(&["x-append"]),
                } }),
                json!({ "decoder_header_mutation_rules": { "disallow_expression": { "regex": "x-(up|append|gone)" } } }),
            )]),
        ),
        ("authz-shadow", manager(vec![grpc(json!({ "shadow_mode": true }))])),
        (
            "authz-shadow-strict",
            manager(vec![grpc(
                json!({ "shadow_mode": true, "validate_mutations": true, "status_on_error": { "code": 503 } }),
            )]),
        ),
        (
            "authz-shadow-open",
            manager(vec![grpc(
                json!({ "shadow_mode": true, "failure_mode_allow": true, "failure_mode_allow_header_add": true }),
            )]),
        ),
        (
            "authz-shadow-off",
            manager(vec![grpc(json!({
                "shadow_mode": true, "filter_enabled": { "default_value": { "numerator": 0 } },
                "deny_at_disable": { "runtime_key": "none", "default_value": true },
            }))]),
        ),
        (
            "authz-shadow-http",
            manager(vec![http(
                json!({ "authorization_response": { "allowed_client_headers": list(&["x-down"]) } }),
                json!({ "shadow_mode": true }),
            )]),
        ),
        (
            "authz-again",
            manager(vec![grpc(
                json!({ "grpc_service": { "timeout": "1.5s", "retry_policy": again("unavailable,reset") } }),
            )]),
        ),
        (
            "authz-http-again",
            manager(vec![http(
                json!({ "server_uri": { "timeout": "1.5s" }, "retry_policy": again("5xx,retriable-4xx") }),
                json!({ "allowed_headers": list(&["x-"]) }),
            )]),
        ),
        (
            "authz-http-again-never",
            manager(vec![http(json!({ "retry_policy": {} }), json!({ "allowed_headers": list(&["x-"]) }))]),
        ),
        ("authz-http", manager(vec![http(json!({}), json!({}))])),
        (
            "authz-http-more",
            manager(vec![http(
                json!({
                    "path_prefix": "/check",
                    "authorization_request": { "allowed_headers": list(&["x-a"]), "headers_to_add": [{ "key": "x-added", "value": "yes" }, { "key": "x-authz-path", "value": "%REQ(:path)%" }] },
                    "authorization_response": {
                        "allowed_upstream_headers": list(&["x-up", "x-asked", "x-there"]), "allowed_upstream_headers_to_append": list(&["x-append"]),
                        "allowed_client_headers": list(&["x-down"]), "allowed_client_headers_on_success": list(&["x-down", "set-cookie"]),
                        "dynamic_metadata_from_headers": list(&["x-up"]),
                    },
                }),
                json!({ "with_request_body": body(8, true), "clear_route_cache": true }),
            )]),
        ),
        (
            "authz-http-asked",
            manager(vec![http(
                json!({ "authorization_response": { "allowed_upstream_headers": list(&["x-asked"]) } }),
                json!({ "allowed_headers": list(&["x-", "content-", "accept"]), "failure_mode_allow": true, "with_request_body": body(1000, false) }),
            )]),
        ),
    ]
}

/// Numbers that must be the same when all cases have been played.
pub(crate) const STATS: [&str; 4] = [
    r"^http\.authz.*\.ext_authz\.",
    r"^http\.authz.*\.rbac\.",
    r"^cluster\.service\.ext_authz\.(ok|denied|error|invalid)",
    r"^cluster\.authz-(grpc|http)\.upstream_rq_(retry|per_try|timeout)",
];

fn ask(name: &'static str, request: &str, more: &str) -> Case {
    let (request, body) = request.split_once('|').unwrap_or((request, ""));
    let length = if body.is_empty() { String::new() } else { format!("content-length: {}\r\n", body.len()) };
    Case {
        name,
        listener: "authz-grpc",
        steps: vec![
            Step::Send(
                format!("{request} HTTP/1.1\r\nhost: a.example\r\n{more}{length}\r\n{body}").into_bytes(),
            ),
            Step::Answers(vec!["GET"]),
        ],
        compare: Compare::Everything,
    }
}

fn act(name: &'static str, act: &str) -> Case {
    let there = "x-there-plain: 0\r\nx-there-append: 0\r\nx-there-not-append: 0\r\nx-there-absent: 0\r\nx-there-overwrite: 0\r\nx-there-if-exists: 0\r\nx-gone: 1\r\nx-gone-too: 1\r\nx-append: 0\r\nx-there: 0\r\n";
    ask(name, "GET /a?a=1&b=2&c=3&b=4&d", &format!("x-authz: {act}\r\n{there}"))
}

const ACTS: [&str; 32] = [
    "steers",
    "",
    "plain",
    "no-status-at-all",
    "deny",
    "deny-ok",
    "deny-more",
    "deny-ways",
    "deny-odd",
    "deny-empty",
    "deny-server",
    "deny-invalid",
    "denied-but-zero",
    "error-response",
    "error-response-plain",
    "ways",
    "query",
    "invalid-query",
    "invalid-name",
    "invalid-response",
    "pseudo",
    "reroute",
    "noted",
    "noted-denied",
    "grpc-error",
    "no-message",
    "no-status",
    "half-a-message",
    "http-503",
    "slow",
    "reroute-by-removal",
    "many",
];

#[allow(clippy::too_many_lines)] // A table of cases.
pub(crate) fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    let named = |listener: &str, what: &str| -> &'static str { format!("authz: {listener} {what}").leak() };
    let acting = [
        "authz-grpc",
        "authz-strict",
        "authz-open",
        "authz-rules",
        "authz-rules-strict",
        "authz-rules-few",
        "authz-shadow",
        "authz-shadow-strict",
        "authz-shadow-open",
    ];
    for listener in acting {
        all.extend(ACTS.iter().map(|one| act(named(listener, one), one).on(listener)));
    }
    let grpc = "content-type: application/grpc\r\n";
    let long = "POST /x|0123456789abcdefghijklmnopqrstuvwxyz";
    let listeners = [
        "authz-grpc",
        "authz-strict",
        "authz-body",
        "authz-raw",
        "authz-open",
        "authz-dead",
        "authz-dead-open",
        "authz-disabled",
        "authz-deny-disabled",
        "authz-noted",
        "authz-http",
        "authz-http-more",
        "authz-http-asked",
        "authz-shadow-off",
        "authz-shadow-http",
        "authz-again",
    ];
    for listener in listeners {
        let of_all = [
            ask(
                named(listener, "GET"),
                "GET /x",
                "accept: a\r\nx-secret: s\r\nx-two: 1\r\nx-two: 2\r\nx-envoy-auth-partial-body: mine\r\nauthorization: Basic\r\n",
            ),
            ask(named(listener, "service"), "GET /x", "x-envoy-downstream-service-cluster: me\r\n"),
            ask(named(listener, "deny gRPC"), "GET /x", &format!("{grpc}x-authz: deny-more\r\n")),
            ask(named(listener, "off"), "GET /off", "x-authz: deny\r\n"),
            ask(named(listener, "told"), "GET /told", ""),
            ask(named(listener, "asks gRPC"), "GET /asks-grpc?x", "x-secret: s\r\n"),
            ask(named(listener, "asks gRPC, denied"), "GET /asks-grpc", "x-authz: deny\r\n"),
            ask(named(listener, "asks HTTP"), "GET /asks-http?x", "x-secret: s\r\n"),
            ask(named(listener, "asks HTTP, denied"), "GET /asks-http", "authorization: 403\r\n"),
            ask(named(listener, "asks nobody"), "GET /asks-nobody", ""),
            ask(named(listener, "no route"), "PUT /only-get", ""),
            ask(named(listener, "no route at all"), "PUT /nothing", "host: none.example\r\n").no_host(),
            ask(named(listener, "direct"), "GET /direct", "x-authz: deny\r\n"),
            ask(named(listener, "body"), "POST /x|12345678", ""),
            ask(named(listener, "ten"), "POST /x|1234567890", ""),
            ask(named(listener, "long body"), long, ""),
            ask(named(listener, "no body"), "POST /x", "content-length: 0\r\n"),
            ask(named(listener, "without body"), "POST /without-body|12345678", ""),
            ask(named(listener, "with body"), "POST /with-body|0123456789abcdefghijklmnopqrstuvwxyz", ""),
            ask(named(listener, "denied body"), long, "x-authz: deny\r\n"),
            ask(named(listener, "not text"), "POST /x|\u{e4}\u{1}", ""),
            ask(named(listener, "admin"), "GET /admin", ""),
            ask(named(listener, "admin denied"), "GET /admin", "x-authz: deny\r\n"),
            ask(named(listener, "other"), "GET /other", "x-authz: deny\r\n"),
            ask(named(listener, "retry"), "GET /x", "act: 503\r\nx-authz: ways\r\n"),
        ];
        all.extend(of_all.map(|case| case.on(listener)));
    }
    for (listener, act) in [
        ("authz-again", "again"),
        ("authz-again", "grpc-error"),
        ("authz-again", "slow"),
        ("authz-again", "http-503"),
        ("authz-http-again", "again"),
        ("authz-http-again", "500"),
        ("authz-http-again", "409"),
        ("authz-http-again", "403"),
        ("authz-http-again", "slow"),
        ("authz-http-again-never", "500"),
    ] {
        all.push(ask(named(listener, act), "GET /again", &format!("x-authz: {act}\r\n")).on(listener));
    }
    for listener in
        ["authz-http", "authz-http-more", "authz-http-asked", "authz-rules-http", "authz-shadow-http"]
    {
        for code in ["200", "201", "204", "302", "401", "403", "404", "418", "500", "503", "slow", "remove"] {
            all.push(act(named(listener, code), code).on(listener));
            let by = format!("authorization: {code}\r\n");
            all.push(ask(named(listener, &format!("by {code}")), "GET /y?z", &by).on(listener));
        }
    }
    for case in &mut all {
        let odd = ["invalid-name", "invalid-response", "deny-invalid", "invalid-query"];
        let is_checked = ["authz-strict", "authz-shadow-strict"].contains(&case.listener)
            && !case.name.ends_with("shadow-strict deny-invalid")
            || case.name.ends_with("authz-rules-few invalid-name");
        if case.name.ends_with("authz-rules-strict steers") {
            case.compare = Compare::Outcome("Envoy has made the changes before the wrong one, and logs them");
        }
        if !is_checked && odd.iter().any(|odd| case.name.ends_with(odd)) {
            case.compare =
                Compare::Nothing("what can't be a header or a path is left out; Envoy sends it on, or fails");
        }
    }
    all
}

impl Case {
    /// Without the usual host.
    fn no_host(mut self) -> Self {
        for step in &mut self.steps {
            if let Step::Send(bytes) = step {
                let text = String::from_utf8_lossy(bytes).replacen("host: a.example\r\n", "", 1);
                *bytes = text.into_bytes();
            }
        }
        self
    }
}

fn network(more: Value) -> Value {
    let base = json!({
        "@type": NETWORK, "stat_prefix": "asked", "transport_api_version": "V3",
        "grpc_service": { "envoy_grpc": { "cluster_name": "authz" }, "timeout": "0.5s" },
    });
    json!({ "name": "authz", "typed_config": merged(base, more) })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_asked_about_with_their_first_byte() {
    let backend = Backend::start("it").await;
    let authorizer = authorizers::start_grpc().await;
    let h2 = json!({ "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": H2, "explicit_http_config": { "http2_protocol_options": {} },
    } } });
    let here = json!({ "endpoint": { "address": crate::proxies::address(authorizer.port()) } });
    let nowhere = json!({ "endpoint": { "address": crate::proxies::address(1) } });
    let asks = |act: &str, more: Value| {
        let service = json!({ "grpc_service": { "initial_metadata": [{ "key": "x-authz", "value": act }] } });
        network(merged(service, merged(json!({ "stat_prefix": act }), more)))
    };
    let policies = |prefix: &str, port: u16| {
        json!({ "name": "rbac", "typed_config": {
            "@type": NETWORK_RBAC, "stat_prefix": prefix, "shadow_rules_stat_prefix": "istio_ext_authz_",
            "shadow_rules": { "action": "DENY", "policies": { "istio-ext-authz-x": {
                "permissions": [{ "not_rule": { "destination_port": port } }], "principals": [{ "any": true }],
            } } },
        } })
    };
    let gated = json!({ "filter_enabled_metadata": {
        "filter": "envoy.filters.network.rbac", "path": [{ "key": "istio_ext_authz_shadow_effective_policy_id" }],
        "value": { "string_match": { "prefix": "istio-ext-authz" } },
    } });
    let everybody = json!({ "name": "rbac", "typed_config": {
        "@type": NETWORK_RBAC, "stat_prefix": "after.",
        "rules": { "action": "DENY", "policies": { "all": { "permissions": [{ "any": true }], "principals": [{ "any": true }] } } },
    } });
    let with = |before: Vec<Value>| json!({ "cluster": "it", "before": before });
    let nobody = json!({ "grpc_service": { "envoy_grpc": { "cluster_name": "dead" } } });
    let listeners = [
        ("open", with(vec![asks("open", json!({}))])),
        ("closed", with(vec![asks("deny", json!({ "include_tls_session": true }))])),
        ("nobody", with(vec![asks("nobody", nobody.clone())])),
        (
            "nobody-open",
            with(vec![asks("nobody-open", merged(nobody, json!({ "failure_mode_allow": true })))]),
        ),
        ("error", with(vec![asks("grpc-error", json!({}))])),
        ("slow", with(vec![asks("slow", json!({}))])),
        ("shadow", with(vec![asks("deny-ok", json!({ "shadow_mode": true }))])),
        ("shadow-error", with(vec![asks("half-a-message", json!({ "shadow_mode": true }))])),
        (
            "again",
            with(vec![asks(
                "grpc-error",
                json!({ "stat_prefix": "again", "grpc_service": { "retry_policy": {
                "retry_on": "unavailable", "retry_back_off": { "base_interval": "0.01s" },
            } } }),
            )]),
        ),
        (
            "noted",
            with(vec![
                policies("noted.", 1),
                asks("noted", merged(gated.clone(), json!({ "stat_prefix": "noted" }))),
            ]),
        ),
        ("then-policies", with(vec![asks("plain", json!({})), everybody.clone()])),
        ("no-policies-then", with(vec![asks("deny-more", json!({})), everybody])),
    ];
    let clusters = [
        cluster("it", vec![backend.endpoint(json!({}))], json!({})),
        cluster("authz", vec![here], h2.clone()),
        cluster("dead", vec![nowhere], h2),
    ];
    let duo = Duo::start(json!([route("it", json!({}))]), &clusters, &listeners).await;
    let settled = [("ext_authz.deny-more.denied", 2), ("ext_authz.slow.active", 0)];
    let [envoy, lateen] =
        duo.connections(&listeners, &settled, r"^ext_authz\.|rbac|authz.upstream_rq_retry").await;
    assert_eq!(envoy, lateen, "{} first", KINDS[0]);
    assert!(envoy.contains("closed: \"\"") && envoy.contains("open: \"HTTP/1.1 200"), "{envoy}");
    assert!(envoy.contains("flags=UAEX"), "{envoy}");
}
