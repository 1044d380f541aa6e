//! Retries and time-outs: every condition, what internal clients may ask for, and how often the service was tried.

use std::time::Duration;

use serde_json::{Value, json};

use crate::cases::{Case, Compare, Step};
use crate::proxies::merged;

/// A retry policy without a pause to speak of.
fn policy(on: &str, more: Value) -> Value {
    merged(
        json!({ "retry_on": on, "num_retries": 2, "retry_back_off": { "base_interval": "0.001s", "max_interval": "0.002s" } }),
        more,
    )
}

fn routes() -> Value {
    let with = |prefix: &str, policy: Value, more: Value| {
        let action = merged(json!({ "cluster": "retried", "retry_policy": policy }), more);
        json!({ "name": prefix, "match": { "prefix": prefix }, "route": action, "stat_prefix": prefix })
    };
    // A second try begins while the first goes on.
    let hedged = |prefix: &str, more: Value, route: Value| {
        let hedged = merged(
            json!({ "cluster": "hedged", "timeout": "2s", "hedge_policy": { "hedge_on_per_try_timeout": true } }),
            route,
        );
        let all = merged(json!({ "per_try_timeout": "0.2s" }), more);
        with(prefix, policy("5xx", all), hedged)
    };
    let on = |condition: &str| with(&format!("/on/{condition}/"), policy(condition, json!({})), json!({}));
    let mut routes: Vec<Value> = [
        "5xx",
        "gateway-error",
        "reset",
        "reset-before-request",
        "connect-failure",
        "envoy-ratelimited",
        "retriable-4xx",
        "refused-stream",
        "cancelled",
        "deadline-exceeded",
        "internal",
        "resource-exhausted",
        "unavailable",
    ]
    .map(on)
    .to_vec();
    routes.extend([
        with("/codes/", policy("retriable-status-codes", json!({ "retriable_status_codes": [404, 418] })), json!({})),
        with("/headers/", policy("retriable-headers", json!({ "retriable_headers": [{ "name": "x-again", "string_match": { "exact": "yes" } }] })), json!({})),
        with("/some/", policy("5xx", json!({ "retriable_request_headers": [{ "name": ":method", "string_match": { "exact": "HEAD" } }], "per_try_timeout": "0.2s" })), json!({})),
        with("/none/", policy("5xx", json!({ "num_retries": 0 })), json!({})),
        with("/per-try/", policy("5xx", json!({ "per_try_timeout": "0.2s" })), json!({ "timeout": "5s" })),
        with("/per-try-once/", policy("connect-failure", json!({ "per_try_timeout": "0.2s" })), json!({ "timeout": "5s" })),
        with("/per-try-unlimited/", policy("5xx", json!({ "per_try_timeout": "0.2s" })), json!({ "timeout": "0s" })),
        with("/per-try-idle/", policy("reset", json!({ "per_try_idle_timeout": "0.2s" })), json!({ "timeout": "5s" })),
        with("/overall/", policy("5xx", json!({ "num_retries": 10, "per_try_timeout": "0.2s" })), json!({ "timeout": "0.5s" })),
        with("/shorter/", policy("5xx", json!({ "per_try_timeout": "9s" })), json!({ "timeout": "0.3s" })),
        with("/told/", policy("5xx", json!({ "num_retries": 1, "rate_limited_retry_back_off": { "reset_headers": [{ "name": "retry-after" }] } })), json!({ "timeout": "0s" })),
        with("/other-hosts/", policy("5xx", json!({ "retry_host_predicate": [{ "name": "envoy.retry_host_predicates.previous_hosts",
            "typed_config": { "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate" } }],
            "host_selection_retry_max_attempts": 3 })), json!({})),
        with("/hedge-off/", policy("5xx", json!({ "per_try_timeout": "0.2s" })), json!({ "hedge_policy": {} })),
        with("/dead/", policy("connect-failure", json!({})), json!({ "cluster": "dead" })),
        with("/dead-reset/", policy("reset-before-request", json!({})), json!({ "cluster": "dead" })),
        with("/dead-other/", policy("retriable-4xx", json!({})), json!({ "cluster": "dead" })),
        hedged("/hedge/", json!({}), json!({})),
        hedged("/hedge-once/", json!({ "num_retries": 1 }), json!({})),
        hedged("/hedge-some/", json!({ "retriable_request_headers": [{ "name": ":method", "string_match": { "exact": "HEAD" } }] }), json!({})),
        hedged("/hedge-resets/", json!({ "retry_on": "reset" }), json!({})),
        hedged("/hedge-idle/", json!({ "per_try_timeout": null, "per_try_idle_timeout": "0.2s" }), json!({})),
        hedged("/hedge-soon-over/", json!({ "num_retries": 5 }), json!({ "timeout": "0.5s" })),
        with("/grpc/", policy("unavailable", json!({})), json!({ "timeout": "0.3s", "max_grpc_timeout": "0.3s" })),
        with("/grpc-unlimited/", policy("unavailable", json!({})), json!({ "timeout": "0s", "max_grpc_timeout": "0s" })),
        with("/grpc-less/", policy("unavailable", json!({})), json!({ "timeout": "5s", "max_grpc_timeout": "9s", "grpc_timeout_offset": "1s" })),
        with("/grpc-tries/", policy("unavailable", json!({ "per_try_timeout": "3s" })), json!({ "timeout": "20s", "max_grpc_timeout": "20s" })),
        with("/grpc-streams/", policy("unavailable", json!({})), json!({ "max_grpc_timeout": "9s", "max_stream_duration": { "max_stream_duration": "5s" } })),
        json!({ "name": "plain", "match": { "prefix": "/plain/" }, "route": { "cluster": "retried", "timeout": "0.3s" } }),
    ]);
    routes.into()
}

/// Every try has a connection of its own: one that was kept may be dead, and is replaced without a retry. Cases run side by side, so
/// there is room for all their retries.
pub(crate) fn cluster() -> Value {
    json!({
        "circuit_breakers": { "thresholds": [{ "max_retries": 1000 }] },
        "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "common_http_protocol_options": { "max_requests_per_connection": 1 },
            "explicit_http_config": { "http_protocol_options": {} },
        } },
    })
}

pub(crate) fn listeners() -> Vec<(&'static str, Value)> {
    let host = json!({
        "name": "all", "domains": ["*"], "routes": routes(),
        "include_request_attempt_count": true, "include_attempt_count_in_response": true, "include_is_timeout_retry_header": true,
    });
    let recorded = json!({ "name": "recorded", "domains": ["recorded"], "routes": [
        { "name": "recorded", "match": { "prefix": "/" }, "route": { "cluster": "mirror" } },
    ] });
    let inherited = json!({ "name": "inherited", "domains": ["inherited"], "include_request_attempt_count": true, "retry_policy": policy("5xx", json!({})), "routes": [
        { "name": "inherited", "match": { "prefix": "/" }, "route": { "cluster": "retried" }, "stat_prefix": "inherited" },
    ] });
    let hedges = json!({
        "name": "hedges", "domains": ["hedges"], "include_request_attempt_count": true,
        "hedge_policy": { "hedge_on_per_try_timeout": true }, "retry_policy": policy("5xx", json!({ "per_try_timeout": "0.2s" })),
        "routes": [
            { "name": "not-here", "match": { "prefix": "/not-here" }, "route": { "cluster": "hedged", "hedge_policy": {} }, "stat_prefix": "same" },
            { "name": "hedges", "match": { "prefix": "/" }, "route": { "cluster": "hedged" }, "stat_prefix": "same" },
        ],
    });
    let hosts = [host, recorded, inherited, hedges];
    let config = json!({ "name": "routes", "validate_clusters": false, "virtual_hosts": hosts });
    let internal = json!({ "cidr_ranges": [{ "address_prefix": "127.0.0.0", "prefix_len": 8 }] });
    vec![("retries", json!({ "route_config": config, "internal_address_config": internal }))]
}

pub(crate) const STATS: [&str; 3] = [
    r"^cluster\.hedged\.upstream_(rq_(retry.*|total|completed|active|cancelled|timeout|per_try.*|tx_reset|rx_reset|\d\d\d|\dxx)|cx_active)$",
    r"^cluster\.retried\.(upstream_rq_(retry.*|total|completed|timeout|per_try.*|\d\d\d|\dxx)|retry_or_shadow_abandoned)$",
    // What routes count for themselves, of all listeners.
    r"^vhost\..*\.upstream_rq_(retry.*|total|completed|timeout|\d\d\d|\dxx)$",
];

fn sent(name: &'static str, request: &str) -> Case {
    let recorded = format!("GET /recorded HTTP/1.1\r\nhost: recorded\r\nx-case: {name}\r\n\r\n");
    // An internal client, by the one address it comes from.
    let request = request.replacen("x-case", "x-forwarded-for: 127.0.0.9\r\nx-case", 1);
    Case {
        name,
        listener: "retries",
        steps: vec![
            Step::Send(request.into_bytes()),
            Step::Answers(vec!["GET"]),
            Step::Pause(Duration::from_millis(100)),
            Step::Send(recorded.into_bytes()),
            Step::Answers(vec!["GET"]),
        ],
        compare: Compare::Everything,
    }
}

/// A GET whose tries are answered by these acts, one after the other.
fn get(name: &'static str, target: &str, acts: &str, more: &str) -> Case {
    sent(
        name,
        &format!("GET {target} HTTP/1.1\r\nhost: a\r\nx-case: {name}\r\nmirror-act: {acts}\r\n{more}\r\n"),
    )
}

fn post(name: &'static str, target: &str, acts: &str, length: usize) -> Case {
    let body = "x".repeat(length);
    sent(
        name,
        &format!(
            "POST {target} HTTP/1.1\r\nhost: a\r\nx-case: {name}\r\nmirror-act: {acts}\r\ncontent-length: {length}\r\n\r\n{body}"
        ),
    )
}

pub(crate) fn cases() -> Vec<Case> {
    let mut all = vec![
        get("5xx, then well", "/on/5xx/", "500,empty", ""),
        get("5xx, to the last", "/on/5xx/", "500", ""),
        get("5xx and 404", "/on/5xx/", "404", ""),
        get("5xx and a reset", "/on/5xx/", "early-reset,empty", ""),
        get("gateway-error and 500", "/on/gateway-error/", "500", ""),
        get("gateway-error and 503", "/on/gateway-error/", "503,502,504", ""),
        get("gateway-error and a reset", "/on/gateway-error/", "early-close,empty", ""),
        get("reset and a reset", "/on/reset/", "early-reset,early-close,empty", ""),
        get("reset and 503", "/on/reset/", "503", ""),
        get("reset-before-request and a reset", "/on/reset-before-request/", "early-reset,empty", ""),
        get("connect-failure and a reset", "/on/connect-failure/", "early-reset,empty", ""),
        get("envoy-ratelimited and 429", "/on/envoy-ratelimited/", "ratelimited,empty", ""),
        get("5xx and a rate limit", "/on/5xx/", "ratelimited-503,empty", ""),
        get("retriable-4xx and 409", "/on/retriable-4xx/", "409,empty", ""),
        get("retriable-4xx and 404", "/on/retriable-4xx/", "404,empty", ""),
        get("retriable-4xx, to the last", "/on/retriable-4xx/", "409,409,409", ""),
        get("a retry that ends with an answer nobody asked to repeat", "/on/gateway-error/", "503,500", ""),
        get("refused-stream and a reset", "/on/refused-stream/", "early-reset,empty", ""),
        get("retriable status codes", "/codes/", "404,418-plain,empty", ""),
        get("other status codes", "/codes/", "500", ""),
        get("retriable headers", "/headers/", "again,empty", ""),
        get("no retriable header", "/headers/", "500", ""),
        get("requests that may not be repeated", "/some/", "500", ""),
        get("requests that may not be repeated have a time-out", "/some/", "silence", ""),
        get("no retries left from the start", "/none/", "500", ""),
        get("a time-out for each try", "/per-try/", "silence,empty", ""),
        get("a time-out for each try, to the last", "/per-try/", "silence", ""),
        get("a time-out for each try that is not repeated", "/per-try-once/", "silence", ""),
        get("a time-out for each try and none for all", "/per-try-unlimited/", "silence,500,empty", ""),
        get("an idle time-out for each try", "/per-try-idle/", "silence,empty", ""),
        get("an idle time-out for each try, to the last", "/per-try-idle/", "silence", ""),
        get("never beyond the time-out of the route", "/overall/", "silence", ""),
        get("a longer time-out for each try", "/shorter/", "silence", ""),
        get("a pause as told", "/told/", "told,empty", ""),
        get("other hosts where there is one", "/other-hosts/", "500,empty", ""),
        get("hedging off", "/hedge-off/", "silence,empty", ""),
        get("a dead service, connect-failure", "/dead/", "-", ""),
        get("a dead service, reset-before-request", "/dead-reset/", "-", ""),
        get("a dead service, another condition", "/dead-other/", "-", ""),
        get("no policy", "/plain/", "500", ""),
        sent(
            "the policy of the host",
            "GET / HTTP/1.1\r\nhost: inherited\r\nx-case: the policy of the host\r\nmirror-act: 500,empty\r\n\r\n",
        ),
        post("a body, twice", "/on/5xx/", "500,empty", 5),
        post("a large body, not twice", "/on/5xx/", "500,empty", 1_200_000),
    ];
    all.extend(asked_for());
    all.extend(hedging());
    all.extend(statuses_of_grpc());
    all.extend(deadlines_of_grpc());
    all
}

/// What internal clients may ask for.
fn asked_for() -> Vec<Case> {
    vec![
        get("asked for retries", "/plain/", "500,empty", "x-envoy-retry-on: 5xx\r\n"),
        get(
            "asked for more retries",
            "/plain/",
            "500,500,500,empty",
            "x-envoy-retry-on: gateway-error, 5xx\r\nx-envoy-max-retries: 3\r\n",
        ),
        get("asked for no retries", "/on/5xx/", "500,empty", "x-envoy-max-retries: 0\r\n"),
        get(
            "asked for retries of gRPC",
            "/plain/",
            "grpc-14,empty",
            "x-envoy-retry-grpc-on: unavailable\r\n",
        ),
        get(
            "asked for retries of codes",
            "/plain/",
            "404,empty",
            "x-envoy-retry-on: retriable-status-codes\r\nx-envoy-retriable-status-codes: 404,  x\r\n",
        ),
        get(
            "asked for retries of headers",
            "/plain/",
            "again,empty",
            "x-envoy-retry-on: retriable-headers\r\nx-envoy-retriable-header-names: x-other, X-Again\r\n",
        ),
        get("asked for something unknown", "/plain/", "500,empty", "x-envoy-retry-on: sunday\r\n"),
        get("asked for a time-out", "/on/5xx/", "silence", "x-envoy-upstream-rq-timeout-ms: 200\r\n"),
        get("asked for no time-out", "/plain/", "late", "x-envoy-upstream-rq-timeout-ms: 0\r\n"),
        get("asked for a wrong time-out", "/plain/", "silence", "x-envoy-upstream-rq-timeout-ms: soon\r\n"),
        get(
            "asked for a time-out of each try",
            "/on/5xx/",
            "silence,empty",
            "x-envoy-upstream-rq-per-try-timeout-ms: 200\r\n",
        ),
        get(
            "asked for 204 on a time-out",
            "/plain/",
            "silence",
            "x-envoy-upstream-rq-timeout-alt-response: 1\r\n",
        ),
        get("asked for hedging", "/per-try/", "500,empty", "x-envoy-hedge-on-per-try-timeout: false\r\n"),
        get("a time-out", "/plain/", "silence", ""),
    ]
}

fn statuses_of_grpc() -> Vec<Case> {
    let mut all = Vec::new();
    for (condition, code, name) in [
        ("cancelled", 1, "gRPC cancelled"),
        ("deadline-exceeded", 4, "gRPC deadline-exceeded"),
        ("resource-exhausted", 8, "gRPC resource-exhausted"),
        ("internal", 13, "gRPC internal"),
        ("unavailable", 14, "gRPC unavailable"),
    ] {
        all.push(get(
            name,
            &format!("/on/{condition}/"),
            &format!("grpc-{code},grpc-7"),
            "content-type: application/grpc\r\n",
        ));
    }
    let last = "grpc-14,grpc-14,grpc-14";
    all.push(get("gRPC, to the last", "/on/unavailable/", last, "content-type: application/grpc\r\n"));
    all
}

/// Time-outs that gRPC clients bring along, and what the service is told of them.
fn deadlines_of_grpc() -> Vec<Case> {
    let grpc = |name: &'static str, target: &str, acts: &str, more: &str| {
        get(name, target, acts, &format!("content-type: application/grpc\r\n{more}"))
    };
    vec![
        grpc("gRPC, its own time-out", "/grpc-unlimited/", "silence", "grpc-timeout: 200m\r\n"),
        grpc("gRPC, no more than the route's time-out", "/grpc/", "silence", "grpc-timeout: 9S\r\n"),
        grpc("gRPC, no time-out of its own", "/grpc/", "silence", ""),
        grpc("gRPC, less than a millisecond", "/grpc-unlimited/", "silence", "grpc-timeout: 1n\r\n"),
        grpc("gRPC, without limit", "/grpc-unlimited/", "late-empty", ""),
        grpc("gRPC, zero is without limit", "/grpc-unlimited/", "late-empty", "grpc-timeout: 0m\r\n"),
        grpc("gRPC, no time at all", "/grpc-unlimited/", "late-empty", "grpc-timeout: soon\r\n"),
        get("another's time-out is not gRPC's", "/grpc-unlimited/", "late-empty", "grpc-timeout: 100m\r\n"),
        grpc("gRPC, told", "/grpc-less/", "empty", "grpc-timeout: 5S\r\n"),
        grpc("gRPC, told the most", "/grpc-less/", "empty", "grpc-timeout: 20S\r\n"),
        grpc("gRPC, told what nobody asked for", "/grpc-less/", "empty", ""),
        grpc("gRPC, nothing would be left", "/grpc-less/", "empty", "grpc-timeout: 1S\r\n"),
        grpc(
            "gRPC, told what is asked for otherwise",
            "/grpc-less/",
            "empty",
            "grpc-timeout: 5S\r\nx-envoy-upstream-rq-timeout-ms: 2000\r\n",
        ),
        grpc("gRPC, told of each try", "/grpc-tries/", "grpc-14,empty", "grpc-timeout: 9S\r\n"),
        grpc("gRPC, told of tries that have more", "/grpc-tries/", "grpc-14,empty", "grpc-timeout: 2S\r\n"),
        grpc("gRPC, where streams are limited", "/grpc-streams/", "empty", "grpc-timeout: 9S\r\n"),
    ]
}

/// Tries that are late and go on.
fn hedging() -> Vec<Case> {
    let asked = |wish: &str| format!("x-envoy-hedge-on-per-try-timeout: {wish}\r\n");
    let of_host = |name: &'static str, path: &str, acts: &str| {
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: hedges\r\nx-case: {name}\r\nmirror-act: {acts}\r\n\r\n");
        sent(name, &request)
    };
    vec![
        get("hedged, the second answers", "/hedge/", "silence,empty", ""),
        get("hedged, the first answers", "/hedge/", "late-empty,silence", ""),
        get("hedged, nobody is late", "/hedge/", "empty", ""),
        get("hedged, the second fails and the third answers", "/hedge/", "silence,500,empty", ""),
        get("hedged, the second fails and the first answers", "/hedge-once/", "late-empty,500", ""),
        get(
            "hedged, the first fails late and the second answers",
            "/hedge-once/",
            "late-500,late-late-empty",
            "",
        ),
        get("hedged, the first fails late and the second, too", "/hedge-once/", "late-500,late-late-503", ""),
        get("hedged, a failure and then a late one", "/hedge-once/", "500,late-empty", ""),
        get(
            "hedged, the second is reset and the first answers",
            "/hedge-once/",
            "late-empty,early-reset",
            "",
        ),
        get(
            "hedged, the first is reset late and the second answers",
            "/hedge-once/",
            "late-early-reset,late-late-empty",
            "",
        ),
        get("hedged, resets alone are tried again", "/hedge-resets/", "late-500,silence", ""),
        get("hedged, all are late", "/hedge/", "silence", ""),
        get("hedged, the end comes before all tries", "/hedge-soon-over/", "silence", ""),
        get("hedged, nothing is tried again", "/hedge-some/", "late-empty", ""),
        get("hedged, by the idle time-out", "/hedge-idle/", "silence,empty", ""),
        post("hedged, with a body", "/hedge/", "silence,empty", 5),
        post("hedged, with a large body", "/hedge/", "late-empty", 1_200_000),
        of_host("hedged, as the host says", "/", "silence,empty"),
        of_host("not hedged, whatever the host says", "/not-here", "late-empty,empty"),
        get("hedged, as asked for", "/per-try/", "late-empty,silence", &asked("true")),
        get("not hedged, as asked for", "/hedge/", "late-empty,empty", &asked("false")),
        get("hedged, whatever is asked for", "/hedge/", "late-empty,silence", &asked("1")),
    ]
}
