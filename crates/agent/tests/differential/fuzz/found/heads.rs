//! What was found of the heads of requests.

use serde_json::json;

use super::{Asked, Found, asked, only, over_http2, plain, to};
use crate::proxies::merged;

/// What of a head counts, and what is told of one that is refused or changed.
pub(super) fn of_heads() -> Vec<Found> {
    let few = |most: u32| {
        let options = json!({ "max_headers_count": most, "headers_with_underscores_action": "DROP_HEADER" });
        merged(only(to("service", json!({}))), json!({ "common_http_protocol_options": options }))
    };
    let dropped = ["x-a: 1", "x_under: 1", "x_two: 2"];
    let told = json!({ "local_reply_config": { "body_format": { "text_format_source": { "inline_string": "%REQ(:SCHEME)% %REQ(:PATH)%" } } } });
    let tells = || merged(only(to("none", json!({}))), told.clone());
    let rewritten = || {
        only(to("service", json!({ "host_rewrite_literal": "a.example", "append_x_forwarded_host": true })))
    };
    let forwarded = |lines: &[&str]| asked("GET", lines);
    vec![
        ("headers that are dropped don't count", few(2), asked("GET", &dropped)),
        ("those that are not dropped count", few(1), asked("GET", &dropped)),
        ("what a client expects counts", few(1), asked("POST", &["expect: 100-continue"])),
        ("headers that are dropped don't count over HTTP/2", few(5), over_http2(asked("GET", &dropped))),
        ("those that are not dropped count over HTTP/2", few(4), over_http2(asked("GET", &dropped))),
        (
            "no scheme of a path that is none",
            tells(),
            Asked { method: "OPTIONS", target: "*".to_owned(), ..plain() },
        ),
        ("a scheme where no cluster is", tells(), plain()),
        ("a host that is rewritten to what it is", rewritten(), plain()),
        ("a host that is named last already", rewritten(), forwarded(&["x-forwarded-host: b,a.example"])),
        ("one that is named last after a blank", rewritten(), forwarded(&["x-forwarded-host: b, a.example"])),
        ("one that is named before", rewritten(), forwarded(&["x-forwarded-host: a.example,b,"])),
        ("hosts in several lines", rewritten(), forwarded(&["x-forwarded-host: a", "x-forwarded-host: b"])),
        ("one that is named last before a comma", rewritten(), forwarded(&["x-forwarded-host: a.example,"])),
        ("a list of hosts that names none", rewritten(), forwarded(&["x-forwarded-host: ,"])),
        ("an empty list of hosts", rewritten(), forwarded(&["x-forwarded-host: "])),
    ]
}

/// How large a head over HTTP/2 may be: to the byte.
pub(super) fn of_sizes() -> Vec<Found> {
    let small = || merged(only(to("service", json!({}))), json!({ "max_request_headers_kb": 1 }));
    // Pseudo-headers have 46 bytes, and a name 6.
    let with = |bytes: usize, lines: &[&str]| {
        let long = format!("x-long: {}", "a".repeat(1024 - 46 - 6 - bytes));
        over_http2(Asked { lines: [vec![long], plain_lines(lines)].concat(), ..plain() })
    };
    let far = |bytes: usize| over_http2(Asked { target: format!("/{}", "a".repeat(bytes)), ..plain() });
    vec![
        ("a head as large as may be", small(), with(0, &[])),
        ("of cookies what they say counts", small(), with(3, &["cookie: a=1"])),
        ("cookies that are too large", small(), with(2, &["cookie: a=1"])),
        ("cookies are put together first", small(), with(8, &["cookie: a=1", "cookie: b=2"])),
        ("cookies that are too large when put together", small(), with(7, &["cookie: a=1", "cookie: b=2"])),
        ("a path that is too large", small(), far(2000)),
        ("one far too large is no reason to end a connection", small(), far(12_000)),
    ]
}

fn plain_lines(lines: &[&str]) -> Vec<String> {
    lines.iter().map(|line| (*line).to_owned()).collect()
}
