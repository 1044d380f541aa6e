//! Attempts to get past policies: paths, hosts and headers that are written otherwise, by each degree of path normalisation.

use serde_json::{Value, json};

use crate::cases::{Case, Compare, Step};

fn any(rule: Value) -> Value {
    json!({ "permissions": [rule], "principals": [{ "any": true }] })
}

fn header(name: &str, matcher: Value) -> Value {
    json!({ "header": { "name": name, "string_match": matcher } })
}

/// A manager whose policies refuse what is about administration, and what comes from a client that is not known.
fn manager(more: Value) -> Value {
    let policies = json!({
        "path": any(json!({ "url_path": { "path": { "prefix": "/admin" } } })),
        "method": any(header(":method", json!({ "exact": "DELETE" }))),
        "host": any(header(":authority", json!({ "exact": "admin.example", "ignore_case": true }))),
        "hosts": any(header(":authority", json!({ "suffix": ".admin.example" }))),
        "user": any(header("x-user", json!({ "exact": "root" }))),
        "text": any(header("x-text", json!({ "safe_regex": { "regex": ".*secret.*" } }))),
        "plain": any(json!({ "and_rules": { "rules": [
            { "header": { "name": "x-plain", "present_match": true } },
            { "not_rule": header("x-plain", json!({ "safe_regex": { "regex": "[a-z]+" } })) },
        ] } })),
        "internal": any(header("x-envoy-internal", json!({ "exact": "true" }))),
        "cluster": any(header("x-envoy-downstream-service-cluster", json!({ "exact": "trusted" }))),
        "client": { "permissions": [{ "any": true }], "principals": [{ "remote_ip": { "address_prefix": "203.0.113.0", "prefix_len": 24 } }] },
    });
    let rbac = crate::access::http(json!({ "rules": { "action": "DENY", "policies": policies } }));
    let route = json!({ "match": { "prefix": "/" }, "route": { "cluster": "service" } });
    crate::proxies::manager(vec![rbac], json!([route]), more)
}

const DEGREES: [&str; 4] = ["bypass-none", "bypass-base", "bypass-merge", "bypass-decode"];
const EDGES: [&str; 3] = ["bypass-edge", "bypass-hops", "bypass-no-underscores"];

pub(crate) fn listeners() -> Vec<(&'static str, Value)> {
    let base = json!({ "normalize_path": true });
    let merge = json!({ "normalize_path": true, "merge_slashes": true });
    let decode = json!({ "normalize_path": true, "merge_slashes": true, "path_with_escaped_slashes_action": "UNESCAPE_AND_FORWARD" });
    let edge = json!({ "use_remote_address": true, "normalize_path": true });
    let hops = json!({ "use_remote_address": true, "xff_num_trusted_hops": 1, "normalize_path": true });
    let strict =
        json!({ "common_http_protocol_options": { "headers_with_underscores_action": "REJECT_REQUEST" } });
    let names = DEGREES.into_iter().chain(EDGES);
    names
        .zip([json!({}), base, merge, decode, edge, hops, strict])
        .map(|(name, more)| (name, manager(more)))
        .collect()
}

/// Requests that both refuse as wrong before any policy is asked. Envoy says so with a body for some, and its log has the fragment of
/// a path where ours has the path without it.
const WRONG: [&str; 5] = ["\\admin", "/admin#x", "/a#/admin", "no UTF-8", "overlong"];

fn ask(what: &str, listener: &'static str, head: &[u8]) -> Case {
    let mut bytes = head.to_vec();
    bytes.extend(b"\r\n");
    let compare = if WRONG.contains(&what) {
        Compare::Outcome("refused as wrong, told otherwise")
    } else {
        Compare::Everything
    };
    Case {
        name: format!("bypass: {listener} {what}").leak(),
        listener,
        steps: vec![Step::Send(bytes), Step::Answers(vec!["GET"])],
        compare,
    }
}

const PATHS: [&str; 37] = [
    "/admin",
    "/admin/x",
    "/Admin",
    "/ADMIN",
    "//admin",
    "///admin//x",
    "/./admin",
    "/a/../admin",
    "/a/../../admin",
    "/../admin",
    "/%61dmin",
    "/adm%69n/x",
    "/%2fadmin",
    "/%2Fadmin",
    "/a/..%2fadmin",
    "/a/..%5cadmin",
    "/%5cadmin",
    "/a%2f..%2fadmin",
    "/a\\..\\admin",
    "\\admin",
    "/admin;a=b",
    "/;a/admin",
    "/a;/../admin",
    "/admin%00",
    "/%00/admin",
    "/admin#x",
    "/a#/admin",
    "/admin%",
    "/admin%zz",
    "/%252fadmin",
    "/a/%2e%2e/admin",
    // Dot segments with parameters (CVE-2026-73551).
    "/a/..;/admin",
    "/a/..;x=1/admin",
    "/..;/admin",
    "/.;/admin",
    "/a/.;x/../admin",
    "/a;x=/../admin",
];
/// Values that are no UTF-8, which a regex must see all the same (CVE-2026-73552).
const TEXTS: [&[u8]; 7] = [
    b"x-text: secret",
    b"x-text: \xffsecret",
    b"x-text: secret\xc3",
    b"x-text: \xc3\xa9 secret",
    b"x-plain: abc",
    b"x-plain: ab\xffc",
    b"x-plain: \xff",
];
const HOSTS: [&str; 10] = [
    "admin.example",
    "Admin.Example",
    "admin.example:80",
    "admin.example.",
    "a.admin.example",
    "a.admin.example:8080",
    "a.admin.example.",
    "a.ADMIN.example",
    "user@admin.example",
    "admin.example:",
];
const HEADERS: [&str; 22] = [
    "x-user: root",
    "X-User: root",
    "x-user: Root",
    "x-user:  root  ",
    "x-user: a\r\nx-user: root",
    "x-user: a, root",
    "x_user: root",
    "x-user: root\r\nx_user: a",
    "x-forwarded-for: 203.0.113.7",
    "x-forwarded-for: 203.0.113.7, 10.0.0.1",
    "x-forwarded-for: 10.0.0.1, 203.0.113.7",
    "x-forwarded-for: 203.0.113.7, 10.0.0.1, 10.0.0.2",
    "x-forwarded-for: 10.0.0.1\r\nx-forwarded-for: 203.0.113.7",
    "x-forwarded-for: nonsense",
    "x-envoy-internal: true",
    "x-envoy-downstream-service-cluster: trusted",
    "x-envoy-original-path: /admin",
    "x-envoy-external-address: 203.0.113.7",
    "x-real-ip: 203.0.113.7",
    "x-forwarded-host: admin.example",
    "x-original-url: /admin",
    "x-http-method-override: DELETE",
];

pub(crate) fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for listener in DEGREES {
        for path in PATHS {
            all.push(ask(path, listener, format!("GET {path} HTTP/1.1\r\nhost: a\r\n").as_bytes()));
        }
        all.push(ask("no UTF-8", listener, b"GET /\xffadmin HTTP/1.1\r\nhost: a\r\n"));
        all.push(ask("overlong", listener, b"GET /\xc0\xafadmin HTTP/1.1\r\nhost: a\r\n"));
        all.push(ask("absolute", listener, b"GET http://a/admin HTTP/1.1\r\nhost: b\r\n"));
        all.push(ask("absolute host", listener, b"GET http://admin.example/ HTTP/1.1\r\nhost: b\r\n"));
        all.push(ask("method", listener, b"DELETE / HTTP/1.1\r\nhost: a\r\n"));
        all.push(ask("method in lower case", listener, b"delete / HTTP/1.1\r\nhost: a\r\n"));
    }
    for text in TEXTS {
        let what = String::from_utf8_lossy(text).into_owned();
        all.push(ask(&what, "bypass-base", &[b"GET / HTTP/1.1\r\nhost: a\r\n", text, b"\r\n"].concat()));
    }
    for host in HOSTS {
        all.push(ask(host, "bypass-base", format!("GET / HTTP/1.1\r\nhost: {host}\r\n").as_bytes()));
    }
    for listener in EDGES.into_iter().chain(["bypass-base"]) {
        for more in HEADERS {
            all.push(ask(more, listener, format!("GET / HTTP/1.1\r\nhost: a\r\n{more}\r\n").as_bytes()));
        }
    }
    all
}
