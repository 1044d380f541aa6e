//! Headers with several values: what matchers of routes and of RBAC make of them.

use std::fmt::Write as _;

use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::access::{http, policy, rules};
use crate::proxies::{Pair, manager, merge};
use crate::wire::Wire;

/// What a header must be, each also inverted and with what is missing as empty.
fn matchers() -> Vec<Value> {
    let text = |matcher: Value| json!({ "string_match": matcher });
    let plain = [
        text(json!({ "exact": "a" })),
        text(json!({ "exact": "A", "ignore_case": true })),
        text(json!({ "exact": "a,b" })),
        text(json!({ "exact": "" })),
        text(json!({ "prefix": "a" })),
        text(json!({ "suffix": "a" })),
        text(json!({ "contains": "a" })),
        text(json!({ "contains": "," })),
        text(json!({ "safe_regex": { "regex": "[ab]" } })),
        text(json!({ "safe_regex": { "regex": "a.*b" } })),
        json!({ "present_match": true }),
        json!({ "present_match": false }),
        json!({ "range_match": { "start": 1, "end": 5 } }),
    ];
    let mut all = Vec::new();
    for matcher in plain {
        for more in [
            json!({}),
            json!({ "invert_match": true }),
            json!({ "treat_missing_header_as_empty": true }),
            json!({ "invert_match": true, "treat_missing_header_as_empty": true }),
        ] {
            for name in ["x-h", "accept", "cookie"] {
                let mut matcher = matcher.clone();
                merge(&mut matcher, more.clone());
                matcher["name"] = name.into();
                all.push(matcher);
            }
        }
    }
    all
}

const VALUES: [&[&str]; 13] = [
    &[],
    &["a"],
    &["b"],
    &["a", "b"],
    &["b", "a"],
    &["a", "a"],
    &["a,b"],
    &[""],
    &["", "a"],
    &["a", ""],
    &["2", "9"],
    &["9", "2"],
    &["2", "3"],
];

fn listeners(matchers: &[Value]) -> Vec<(&'static str, Value)> {
    let direct = |status: u16| json!({ "status": status });
    let own = |n: usize| json!({ "url_path": { "path": { "exact": format!("/m{n}") } } });
    let any = || json!({ "any": true });
    let routed = matchers.iter().enumerate().map(|(n, matcher)| {
        json!({ "match": { "path": format!("/m{n}"), "headers": [matcher] }, "direct_response": direct(201) })
    });
    let rest = json!({ "match": { "prefix": "/" }, "direct_response": direct(200) });
    let policies = |of: &dyn Fn(usize, &Value) -> Value| {
        let all = matchers.iter().enumerate().map(|(n, matcher)| (format!("p{n}"), of(n, matcher)));
        json!(all.collect::<serde_json::Map<_, _>>())
    };
    let permission = |n: usize, matcher: &Value| {
        policy(json!({ "and_rules": { "rules": [own(n), { "header": matcher }] } }), any())
    };
    let principal = |n: usize, matcher: &Value| policy(own(n), json!({ "header": matcher }));
    let not = |n: usize, matcher: &Value| policy(own(n), json!({ "not_id": { "header": matcher } }));
    let guarded = |action: &str, policies: Value| {
        manager(vec![http(json!({ "rules": rules(action, policies) }))], json!([rest]), json!({}))
    };
    vec![
        ("routes", manager(vec![], json!(routed.chain([rest.clone()]).collect::<Vec<_>>()), json!({}))),
        ("permissions", guarded("ALLOW", policies(&permission))),
        ("principals", guarded("DENY", policies(&principal))),
        ("others", guarded("ALLOW", policies(&not))),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_with_several_values_match_as_with_envoy() {
    let matchers = matchers();
    let pair = Pair::start_with(listeners(&matchers)).await;
    let mut complaints = String::new();
    for listener in ["routes", "permissions", "principals", "others"] {
        let [envoy, lateen] = pair.addresses(listener);
        let mut envoy = Wire::new(TcpStream::connect(envoy).await.unwrap());
        let mut lateen = Wire::new(TcpStream::connect(lateen).await.unwrap());
        for (n, matcher) in matchers.iter().enumerate() {
            let name = matcher["name"].as_str().unwrap();
            for values in VALUES {
                let lines: String = values.iter().map(|value| format!("{name}: {value}\r\n")).collect();
                let request = format!("GET /m{n} HTTP/1.1\r\nhost: a\r\n{lines}\r\n");
                tokio::join!(envoy.send(request.as_bytes()), lateen.send(request.as_bytes()));
                let answers = tokio::join!(envoy.answer("GET"), lateen.answer("GET"));
                let status =
                    |answer: Option<String>| answer.unwrap_or_default().lines().next().map(str::to_owned);
                let (envoy, lateen) = (status(answers.0), status(answers.1));
                if envoy != lateen || envoy.is_none() {
                    writeln!(complaints, "{listener} {matcher} {values:?}: {envoy:?} but {lateen:?}")
                        .unwrap();
                }
            }
        }
    }
    assert!(complaints.is_empty(), "\n{complaints}");
}

/// Headers that clients send, and those that have a place of their own in Envoy.
const NAMES: [&str; 82] = [
    "accept",
    "accept-charset",
    "accept-datetime",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "access-control-allow-origin",
    "access-control-request-headers",
    "access-control-request-method",
    "age",
    "allow",
    "authorization",
    "baggage",
    "cache-control",
    "cdn-loop",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-location",
    "content-type",
    "cookie",
    "date",
    "dnt",
    "early-data",
    "etag",
    "expect",
    "expires",
    "forwarded",
    "from",
    "grpc-accept-encoding",
    "grpc-encoding",
    "grpc-message",
    "grpc-status",
    "grpc-timeout",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "link",
    "location",
    "max-forwards",
    "origin",
    "pragma",
    "priority",
    "proxy-authorization",
    "proxy-status",
    "range",
    "referer",
    "sec-fetch-mode",
    "sec-websocket-protocol",
    "server",
    "set-cookie",
    "trace-id",
    "traceparent",
    "tracestate",
    "upgrade-insecure-requests",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "x-amzn-trace-id",
    "x-b3-sampled",
    "x-b3-spanid",
    "x-b3-traceid",
    "x-client-trace-id",
    "x-cloud-trace-context",
    "x-datadog-trace-id",
    "x-envoy-external-address",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-server",
    "x-h",
    "x-http-method-override",
    "x-ot-span-context",
    "x-real-ip",
    "x-request-id",
    "x-requested-with",
    "x-squash-debug",
    "x-user",
];

/// What a level adds to headers is joined with what is there, or is a line more, in requests and responses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_added_to_a_header_is_joined_as_with_envoy() {
    // Envoy says `server` by itself after the route's changes, unless it passes what it finds.
    let passes = json!({ "server_header_transformation": "PASS_THROUGH" });
    let add = |name: &str, value: &str, action: &str| json!({ "header": { "key": name, "value": value }, "append_action": action });
    let routes = NAMES.iter().enumerate().map(|(n, name)| {
        let added = json!([
            add(name, "one", "OVERWRITE_IF_EXISTS_OR_ADD"),
            add(name, "two", "APPEND_IF_EXISTS_OR_ADD"),
            add(name, "%REQ(missing)%", "APPEND_IF_EXISTS_OR_ADD"),
        ]);
        json!({ "match": { "path": format!("/m{n}") }, "route": { "cluster": "service" },
            "request_headers_to_add": added, "response_headers_to_add": added })
    });
    let routes: Vec<Value> = routes.collect();
    let pair = Pair::start_with(vec![("routes", manager(vec![], json!(routes), passes))]).await;
    let mut complaints = String::new();
    for (n, name) in NAMES.iter().enumerate() {
        let request = format!("GET /m{n} HTTP/1.1\r\nhost: a\r\n\r\n");
        let mut answers = Vec::new();
        for address in pair.addresses("routes") {
            let mut wire = Wire::new(TcpStream::connect(address).await.unwrap());
            wire.send(request.as_bytes()).await;
            answers.push(wire.answer("GET").await.unwrap_or_default());
        }
        if answers[0] != answers[1] {
            writeln!(complaints, "{name}: {answers:#?}").unwrap();
        }
    }
    assert!(complaints.is_empty(), "\n{complaints}");
}

/// A weighted cluster's changes come first, whichever level wins (found by the fuzzer).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_weighted_cluster_changes_headers_first_as_with_envoy() {
    let add = |name: &str, value: &str, action: &str| json!({ "header": { "key": name, "value": value }, "append_action": action });
    let level = |name: &str| {
        json!({
            "request_headers_to_add": [add("x-of", name, "APPEND_IF_EXISTS_OR_ADD"), add("x-last", name, "OVERWRITE_IF_EXISTS_OR_ADD"),
                add("x-first", name, "ADD_IF_ABSENT"), add("x-host", &format!("{name} %REQ(:AUTHORITY)%"), "APPEND_IF_EXISTS_OR_ADD")],
            "response_headers_to_add": [add("x-of", name, "APPEND_IF_EXISTS_OR_ADD"), add("x-last", name, "OVERWRITE_IF_EXISTS_OR_ADD"),
                add("x-first", name, "ADD_IF_ABSENT")],
            "request_headers_to_remove": [format!("x-not-{name}")], "response_headers_to_remove": [format!("x-not-{name}")],
        })
    };
    let all = ["entry", "route", "host", "table"];
    let with = |mut what: Value, name: &str| {
        let mut level = level(name);
        // Each takes out what the others say of it.
        for other in all.into_iter().filter(|other| *other != name) {
            for list in ["request_headers_to_add", "response_headers_to_add"] {
                let list = level[list].as_array_mut().unwrap();
                list.push(add(&format!("x-not-{other}"), name, "APPEND_IF_EXISTS_OR_ADD"));
            }
        }
        merge(&mut what, level);
        what
    };
    let listener = |specific: bool| {
        let entry =
            with(json!({ "name": "service", "weight": 1, "host_rewrite_literal": "weighted" }), "entry");
        let route =
            json!({ "match": { "prefix": "/" }, "route": { "weighted_clusters": { "clusters": [entry] } } });
        let host = json!({ "name": "all", "domains": ["*"], "routes": [with(route, "route")] });
        let table =
            json!({ "virtual_hosts": [with(host, "host")], "most_specific_header_mutations_wins": specific });
        json!({ "route_config": with(table, "table") })
    };
    let pair = Pair::start_with(vec![("general", listener(false)), ("specific", listener(true))]).await;
    for name in ["general", "specific"] {
        let mut answers = Vec::new();
        for address in pair.addresses(name) {
            let mut wire = Wire::new(TcpStream::connect(address).await.unwrap());
            wire.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
            answers.push(wire.answer("GET").await.unwrap());
        }
        assert_eq!(answers[0], answers[1], "{name}");
        assert!(answers[0].contains("x-of: entry"), "{}", answers[0]);
    }
}

/// Of which headers one list is made of two lines.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_headers_are_joined_as_with_envoy() {
    let is = |name: &str, value: &str| json!({ "name": name, "string_match": { "exact": value } });
    let answers = |path: String, matcher: Value, status: u16| json!({ "match": { "path": path, "headers": [matcher] }, "direct_response": { "status": status } });
    let routes = NAMES.iter().enumerate().flat_map(|(n, name)| {
        [("a,b", 202), ("a, b", 203), ("a; b", 206), ("a", 207)]
            .map(|(value, status)| answers(format!("/m{n}"), is(name, value), status))
    });
    let rest = json!({ "match": { "prefix": "/" }, "direct_response": { "status": 200 } });
    let routes: Vec<Value> = routes.chain([rest]).collect();
    let pair = Pair::start_with(vec![("routes", manager(vec![], json!(routes), json!({})))]).await;
    let [envoy, lateen] = pair.addresses("routes");
    let mut complaints = String::new();
    for (n, name) in NAMES.iter().enumerate() {
        let request = format!("GET /m{n} HTTP/1.1\r\nhost: a\r\n{name}: a\r\n{name}: b\r\n\r\n");
        let mut statuses = Vec::new();
        for address in [envoy, lateen] {
            let mut wire = Wire::new(TcpStream::connect(address).await.unwrap());
            wire.send(request.as_bytes()).await;
            let answer = wire.answer("GET").await.unwrap_or_default();
            statuses.push(answer.lines().next().unwrap_or("END").to_owned());
        }
        if statuses[0] != statuses[1] {
            writeln!(complaints, "{name}: {statuses:?}").unwrap();
        }
    }
    assert!(complaints.is_empty(), "\n{complaints}");
}
