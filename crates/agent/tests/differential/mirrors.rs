//! Mirrored requests: what the mirror gets, and that the request itself does not notice.

use std::time::Duration;

use serde_json::{Value, json};

use crate::cases::{Case, Compare, Step};

fn routes() -> Value {
    let mirrored = |prefix: &str, policies: Value| json!({ "name": prefix, "stat_prefix": prefix, "match": { "prefix": prefix }, "route": { "cluster": "service", "timeout": "1s", "request_mirror_policies": policies } });
    let share = |numerator: u32| json!({ "default_value": { "numerator": numerator } });
    json!([
        mirrored("/one", json!([{ "cluster": "mirror" }])),
        mirrored("/two", json!([{ "cluster": "mirror" }, { "cluster": "mirror", "host_rewrite_literal": "second.example" }])),
        mirrored("/as-is", json!([{ "cluster": "mirror", "disable_shadow_host_suffix_append": true }])),
        mirrored("/never", json!([{ "cluster": "mirror", "runtime_fraction": share(0) }])),
        mirrored("/always", json!([{ "cluster": "mirror", "runtime_fraction": share(100), "trace_sampled": false }])),
        mirrored("/by-header", json!([{ "cluster_header": "x-mirror" }])),
        mirrored("/missing", json!([{ "cluster": "none" }])),
        mirrored("/dead", json!([{ "cluster": "dead" }])),
        mirrored("/full", json!([{ "cluster": "full" }])),
        { "name": "rewritten", "match": { "prefix": "/old/" }, "route": {
            "cluster": "service", "prefix_rewrite": "/new/", "host_rewrite_literal": "rewritten.example",
            "request_mirror_policies": [{ "cluster": "mirror" }],
        }, "request_headers_to_add": [{ "header": { "key": "x-added", "value": "%REQ(:METHOD)%" } }] },
        { "name": "retried", "match": { "prefix": "/retried" }, "route": {
            "cluster": "service", "retry_policy": { "retry_on": "5xx", "num_retries": 2, "retry_back_off": { "base_interval": "0.001s" } },
            "request_mirror_policies": [{ "cluster": "mirror" }],
        } },
        { "name": "direct", "match": { "prefix": "/direct" }, "direct_response": { "status": 200 } },
        { "name": "of-the-host", "match": { "prefix": "/host" }, "route": { "cluster": "service" } },
    ])
}

pub(crate) fn listeners() -> Vec<(&'static str, Value)> {
    let host = json!({
        "name": "all", "domains": ["*"], "routes": routes(), "include_request_attempt_count": true,
        "request_mirror_policies": [{ "cluster": "mirror", "disable_shadow_host_suffix_append": true }],
    });
    let recorded = json!({ "name": "recorded", "domains": ["recorded"], "routes": [
        { "name": "recorded", "match": { "prefix": "/" }, "route": { "cluster": "mirror" } },
    ] });
    let config = json!({ "name": "routes", "validate_clusters": false, "virtual_hosts": [host, recorded] });
    vec![("mirrors", json!({ "route_config": config }))]
}

pub(crate) const STATS: [&str; 1] = [
    r"^cluster\.(mirror|full)\.upstream_rq_(total|completed|200|500|503|504|2xx|5xx|pending_overflow|timeout)$",
];

pub(crate) fn cases() -> Vec<Case> {
    let sent = |name: &'static str, request: String| {
        // What a mirror gets is kept by the case's name.
        let recorded = format!("GET /recorded HTTP/1.1\r\nhost: recorded\r\nx-case: {name}\r\n\r\n");
        Case {
            name,
            listener: "mirrors",
            steps: vec![
                Step::Send(request.into_bytes()),
                Step::Answers(vec!["GET"]),
                Step::Pause(Duration::from_millis(400)),
                Step::Send(recorded.into_bytes()),
                Step::Answers(vec!["GET"]),
            ],
            compare: Compare::Everything,
        }
    };
    let get = |name: &'static str, target: &str, more: &str| {
        sent(name, format!("GET {target} HTTP/1.1\r\nhost: a.example:81\r\nx-case: {name}\r\n{more}\r\n"))
    };
    let post = |name: &'static str, framing: &str, body: &str| {
        sent(
            name,
            format!("POST /one HTTP/1.1\r\nhost: a.example\r\nx-case: {name}\r\n{framing}\r\n\r\n{body}"),
        )
    };
    vec![
        get("a mirror", "/one?q=1", ""),
        get("a mirror of a forwarded request", "/one", "x-forwarded-for: 1.2.3.4\r\n"),
        get("two mirrors", "/two", ""),
        get("a mirror with the host as it is", "/as-is", ""),
        get("a mirror for nobody", "/never", ""),
        get("a mirror for everybody", "/always", ""),
        get("a mirror by header", "/by-header", "x-mirror: mirror\r\n"),
        get("a mirror by no header", "/by-header", ""),
        get("a mirror by a wrong header", "/by-header", "x-mirror: none\r\n"),
        get("a mirror that is not there", "/missing", ""),
        get("a dead mirror", "/dead", ""),
        get("a full mirror", "/full", ""),
        get("a mirror that fails", "/one", "mirror-act: 500\r\n"),
        get("a mirror that hangs up", "/one", "mirror-act: early-close\r\n"),
        get("a silent mirror", "/one", "mirror-act: silence\r\n"),
        get("a mirror that talks nonsense", "/one", "mirror-act: garbage\r\n"),
        get("a mirror that says much", "/one", "mirror-act: big\r\n"),
        get("a mirrored rewrite", "/old/place", ""),
        get("a mirror of a failing request", "/one", "act: 500\r\n"),
        get("a mirror of a retried request", "/retried", "act: 500\r\n"),
        get("a mirror of the host", "/host", ""),
        get("no mirror of a direct response", "/direct", ""),
        post("a mirrored body", "content-length: 5", "hello"),
        post("mirrored chunks", "transfer-encoding: chunked", "5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"),
        post("a large mirrored body", "content-length: 300000", &"x".repeat(300_000)),
    ]
}
