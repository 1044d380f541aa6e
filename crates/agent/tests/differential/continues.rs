//! `Expect: 100-continue` and other interim answers, made by the proxy or passed on (`proxy_100_continue`).

use std::time::Duration;

use serde_json::{Value, json};

use crate::cases::{Case, Compare, Step};

pub(crate) fn listeners() -> Vec<(&'static str, Value)> {
    let retries = json!({ "retry_on": "5xx", "num_retries": 2, "retry_back_off": { "base_interval": "0.001s", "max_interval": "0.002s" } });
    let per_try = json!({ "retry_on": "5xx", "num_retries": 2, "per_try_timeout": "0.3s" });
    // All routes count for themselves.
    let routes = json!([
        { "name": "direct", "stat_prefix": "continued.direct", "match": { "path": "/direct" }, "direct_response": { "status": 403, "body": { "inline_string": "no" } } },
        { "name": "timeout", "stat_prefix": "continued.timeout", "match": { "prefix": "/timeout" }, "route": { "cluster": "continued", "timeout": "0.5s" } },
        { "name": "per-try", "stat_prefix": "continued.per-try", "match": { "prefix": "/per-try" }, "route": { "cluster": "continued", "retry_policy": per_try } },
        { "name": "plain", "stat_prefix": "continued.plain", "match": { "prefix": "/plain" }, "route": { "cluster": "service" } },
        { "name": "http2", "stat_prefix": "continued.http2", "match": { "prefix": "/http2" }, "route": { "cluster": "http2" } },
        { "name": "all", "stat_prefix": "continued.all", "match": { "prefix": "/" }, "route": { "cluster": "continued", "retry_policy": retries } },
    ]);
    let hosts = json!([
        { "name": "all", "domains": ["*"], "routes": routes, "include_request_attempt_count": true },
        { "name": "recorded", "domains": ["recorded"], "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "mirror" } }] },
    ]);
    let routes = json!({ "name": "routes", "virtual_hosts": hosts });
    vec![
        ("continued", json!({ "route_config": routes })),
        ("passed-on", json!({ "route_config": routes, "proxy_100_continue": true, "via": "x" })),
    ]
}

pub(crate) const STATS: [&str; 2] = [
    r"^cluster\.continued\.upstream_rq_(retry|total|completed|timeout|\d\d\d|\dxx)$",
    r"^http\.(continued|passed-on)\.downstream_rq_(completed|total|\dxx)$",
];

/// What happens to a request whose head and body are sent when the client has seen so many answers.
fn case(
    name: &'static str,
    listener: &'static str,
    path: &str,
    acts: &str,
    version: &str,
    steps: &[Do],
) -> Case {
    let head = format!(
        "POST {path} HTTP/{version}\r\nhost: a\r\nx-case: {name}\r\nmirror-act: {acts}\r\nact: {acts}\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n"
    );
    let recorded = format!("GET /recorded HTTP/1.1\r\nhost: recorded\r\nx-case: {name}\r\n\r\n");
    let steps = steps.iter().map(|step| match step {
        Do::Head => Step::Send(head.clone().into_bytes()),
        Do::HeadAndBody => Step::Send([head.as_bytes(), b"abc"].concat()),
        Do::Body => Step::Send(b"abc".to_vec()),
        Do::Answers(n) => Step::Answers(vec!["POST"; *n]),
        Do::Pause => Step::Pause(Duration::from_millis(200)),
        Do::Ended => Step::Ended,
        Do::Recorded => Step::Send(recorded.clone().into_bytes()),
    });
    Case { name, listener, steps: steps.collect(), compare: Compare::Everything }
}

enum Do {
    Head,
    HeadAndBody,
    Body,
    Answers(usize),
    Pause,
    Ended,
    Recorded,
}

#[allow(clippy::too_many_lines)] // A table of cases.
pub(crate) fn cases() -> Vec<Case> {
    use Do::{Answers, Body, Ended, Head, HeadAndBody, Pause, Recorded};
    const PROXY: &str = "continued";
    const SERVICE: &str = "passed-on";
    let whole = &[Head, Answers(1), Body, Answers(1), Pause, Recorded, Answers(1)];
    let unasked = &[Head, Pause, Body, Answers(1), Pause, Recorded, Answers(1)];
    let refused = &[Head, Answers(1), Ended];
    vec![
        case("100 by the proxy", PROXY, "/", "", "1.1", whole),
        case(
            "100 by the proxy and by the service",
            PROXY,
            "/plain",
            "100-then-",
            "1.1",
            &[Head, Answers(1), Body, Answers(1)],
        ),
        case(
            "100 by the proxy, then no route's answer",
            PROXY,
            "/direct",
            "",
            "1.1",
            &[Head, Answers(2), Ended],
        ),
        case("100 by the proxy, then a refusal", PROXY, "/", "early-417", "1.1", &[Head, Answers(2), Ended]),
        case("100 by the proxy, then retries", PROXY, "/", "503,empty", "1.1", whole),
        case("100 by the proxy, then nothing from the client", PROXY, "/", "", "1.1", &[Head, Answers(1)]),
        case("100 by the proxy though the body is there", PROXY, "/", "", "1.1", &[HeadAndBody, Answers(2)]),
        Case {
            compare: Compare::Outcome("an HTTP/1.0 client is answered and logged in its version"),
            ..case("no 100 for HTTP/1.0", PROXY, "/", "", "1.0", &[Head, Answers(1), Ended])
        },
        Case {
            compare: Compare::Outcome("an HTTP/1.0 client is answered in its version"),
            ..case(
                "100 by the proxy in HTTP/1.0",
                "http10",
                "/",
                "",
                "1.0",
                &[Head, Answers(1), Body, Answers(1), Ended],
            )
        },
        case(
            "100 by the proxy over HTTP/2",
            PROXY,
            "/http2",
            "",
            "1.1",
            &[Head, Answers(1), Body, Answers(1)],
        ),
        // What is not passed on counts all the same, and ends retries.
        case("100 that is not passed on", PROXY, "/", "100-then-", "1.1", whole),
        case("102 that is not passed on", PROXY, "/", "102-103-then-", "1.1", whole),
        case("a failure after what is not passed on", PROXY, "/", "100-then-503,empty", "1.1", whole),
        case("a failure, then what is not passed on", PROXY, "/", "503,104-then-empty", "1.1", whole),
        case(
            "a reset after what is not passed on",
            PROXY,
            "/",
            "100-then-early-reset,empty",
            "1.1",
            &[Head, Answers(2)],
        ),
        case(
            "a time-out after what is not passed on",
            PROXY,
            "/timeout",
            "100-then-silence",
            "1.1",
            &[Head, Answers(1), Body, Answers(1)],
        ),
        case(
            "a time-out of a try after what is not passed on",
            PROXY,
            "/per-try",
            "100-then-late",
            "1.1",
            &[Head, Answers(1), Body, Answers(1)],
        ),
        case("100 by the service", SERVICE, "/", "100-then-", "1.1", whole),
        case("100 by the service with headers", SERVICE, "/", "100x-then-", "1.1", whole),
        case(
            "100 by the service, twice",
            SERVICE,
            "/",
            "100-100-then-",
            "1.1",
            &[Head, Answers(1), Pause, Body, Answers(1)],
        ),
        case("100 by nobody", SERVICE, "/", "", "1.1", unasked),
        case(
            "100 by the service though the body is there",
            SERVICE,
            "/",
            "100-then-",
            "1.1",
            &[HeadAndBody, Answers(2)],
        ),
        case(
            "hints by the service",
            SERVICE,
            "/",
            "103-100-then-",
            "1.1",
            &[Head, Answers(1), Pause, Body, Answers(1)],
        ),
        case("102 by the service", SERVICE, "/", "102-then-", "1.1", &[HeadAndBody, Answers(2)]),
        case("104 by the service", SERVICE, "/", "104-then-", "1.1", &[HeadAndBody, Answers(2)]),
        case("a refusal by the service", SERVICE, "/", "early-417", "1.1", refused),
        case(
            "a refusal by the service after 100",
            SERVICE,
            "/",
            "100-then-early-417",
            "1.1",
            &[Head, Answers(2), Ended],
        ),
        case(
            "a direct answer in the service's place",
            SERVICE,
            "/direct",
            "",
            "1.1",
            &[Head, Answers(1), Ended],
        ),
        case("a failure and then 100 by the service", SERVICE, "/", "early-503,100-then-empty", "1.1", whole),
        case("no retries after 100", SERVICE, "/", "100-then-503,empty", "1.1", whole),
        case(
            "no retries of resets after 100",
            SERVICE,
            "/",
            "100-then-early-reset,empty",
            "1.1",
            &[Head, Answers(2)],
        ),
        case(
            "a time-out after 100",
            SERVICE,
            "/timeout",
            "100-then-silence",
            "1.1",
            &[Head, Answers(1), Body, Answers(1)],
        ),
        case(
            "a time-out of a try after 100",
            SERVICE,
            "/per-try",
            "100-then-late",
            "1.1",
            &[Head, Answers(1), Body, Answers(1)],
        ),
        case(
            "100 by the service, then nothing from the client",
            SERVICE,
            "/",
            "100-then-",
            "1.1",
            &[Head, Answers(1)],
        ),
    ]
}
