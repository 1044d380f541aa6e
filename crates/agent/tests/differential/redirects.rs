//! Rewrites, redirects (for the client and followed by the proxy), direct responses, header operations and local replies.

use std::time::Duration;

use serde_json::{Value, json};

use crate::cases::{Case, Compare, Step};
use crate::proxies::merged;

fn forward(prefix: &str, more: Value) -> Value {
    let action = merged(json!({ "cluster": "service" }), more);
    json!({ "name": prefix, "match": { "prefix": prefix }, "route": action, "stat_prefix": prefix })
}

fn followed(prefix: &str, policy: Value) -> Value {
    forward(prefix, json!({ "internal_redirect_policy": policy }))
}

fn predicate(name: &str, config: &str, mut more: Value) -> Value {
    more["@type"] =
        json!(format!("type.googleapis.com/envoy.extensions.internal_redirect.{name}.v3.{config}"));
    json!({ "name": name, "typed_config": more })
}

fn regex(pattern: &str, substitution: &str) -> Value {
    json!({ "pattern": { "regex": pattern }, "substitution": substitution })
}

fn rewrites() -> Vec<Value> {
    let moved = |prefix: &str, action: Value| json!({ "name": prefix, "match": { "prefix": prefix }, "redirect": action, "stat_prefix": "moved" });
    vec![
        forward("/regex/", json!({ "regex_rewrite": regex("^/regex/([^/]+)/(.*)$", "/\\2/of/\\1") })),
        forward("/every/", json!({ "regex_rewrite": regex("a", "b") })),
        forward("/host-header/", json!({ "host_rewrite_header": "x-host" })),
        forward(
            "/host-regex/",
            json!({ "host_rewrite_path_regex": regex("^/host-regex/([^/]+).*$", "\\1.example") }),
        ),
        forward(
            "/host/",
            json!({ "host_rewrite_literal": "other.example", "append_x_forwarded_host": true }),
        ),
        moved("/r/code/", json!({ "path_redirect": "/there", "response_code": "TEMPORARY_REDIRECT" })),
        moved("/r/port/", json!({ "port_redirect": 8443, "scheme_redirect": "https" })),
        moved("/r/prefix/", json!({ "prefix_rewrite": "/new/", "response_code": "FOUND" })),
        moved(
            "/r/regex/",
            json!({ "regex_rewrite": regex("^/r/regex/(.*)$", "/re/\\1"), "response_code": "SEE_OTHER" }),
        ),
        moved(
            "/r/strip/",
            json!({ "host_redirect": "b.example", "strip_query": true, "response_code": "PERMANENT_REDIRECT" }),
        ),
    ]
}

fn headers() -> Vec<Value> {
    let header = |key: &str, value: &str, action: &str| json!({ "header": { "key": key, "value": value }, "append_action": action });
    let formats = [
        "%REQ(:METHOD)% %REQ(:PATH)% %REQ(:AUTHORITY)%",
        "%PROTOCOL%",
        "%REQ(x-none?x-some)%",
        "%REQ(x-some):3%",
        "%ROUTE_NAME%",
        "%UPSTREAM_CLUSTER%",
        "%RESPONSE_FLAGS%",
        "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
        "100%%",
        "%REQUESTED_SERVER_NAME%",
        "%VIRTUAL_CLUSTER_NAME%",
        "%ATTEMPT%",
    ];
    let add: Vec<_> = formats[..11]
        .iter()
        .enumerate()
        .map(|(n, format)| header(&format!("x-format-{n}"), format, "APPEND_IF_EXISTS_OR_ADD"))
        .collect();
    let actions = json!([
        header("x-a", "1", "APPEND_IF_EXISTS_OR_ADD"), header("x-b", "2", "ADD_IF_ABSENT"), header("x-c", "3", "OVERWRITE_IF_EXISTS_OR_ADD"),
        header("x-d", "4", "OVERWRITE_IF_EXISTS"), header("x-e", "%REQ(x-none)%", "APPEND_IF_EXISTS_OR_ADD"),
        { "header": { "key": "x-f", "value": "%REQ(x-none)%" }, "keep_empty_value": true },
    ]);
    vec![
        merged(forward("/formats/", json!({})), json!({ "request_headers_to_add": add })),
        merged(
            forward("/actions/", json!({})),
            json!({ "request_headers_to_add": actions, "request_headers_to_remove": ["x-gone"] }),
        ),
        merged(
            forward("/answer/", json!({})),
            json!({
                "response_headers_to_add": [header("x-code", "%RESPONSE_CODE%", "APPEND_IF_EXISTS_OR_ADD"), header("x-two", "c", "OVERWRITE_IF_EXISTS")],
                "response_headers_to_remove": ["x-empty"],
            }),
        ),
        json!({ "name": "created", "match": { "path": "/created" }, "direct_response": { "status": 201, "body": { "inline_string": "new" } } }),
        json!({ "name": "created-empty", "match": { "path": "/created-empty" }, "direct_response": { "status": 201 } }),
        json!({ "name": "found-direct", "match": { "prefix": "/found-direct" }, "direct_response": { "status": 302, "body": { "inline_string": "there" } } }),
        json!({ "name": "unchanged", "match": { "path": "/unchanged" }, "direct_response": { "status": 304 } }),
        json!({ "name": "accepted", "match": { "path": "/accepted" }, "direct_response": { "status": 202 } }),
        json!({ "name": "formatted", "match": { "path": "/formatted" }, "direct_response": { "status": 404, "body": { "inline_string": "not here" },
            "body_format": { "text_format_source": { "inline_string": "%RESPONSE_CODE% %LOCAL_REPLY_BODY% %REQ(:PATH)%" }, "content_type": "text/x-told" } } }),
        json!({ "name": "json", "match": { "path": "/json" }, "direct_response": { "status": 200, "body": { "inline_string": "here" },
            "body_format": { "json_format": { "said": "%LOCAL_REPLY_BODY%", "route": "%ROUTE_NAME%" } } } }),
    ]
}

fn routes() -> Value {
    let mut routes = rewrites();
    routes.extend(headers());
    routes.extend([
        followed("/follow/", json!({})),
        followed("/follow-more/", json!({ "max_internal_redirects": 2, "redirect_response_codes": [301, 302, 303, 307, 400] })),
        followed("/follow-https/", json!({ "allow_cross_scheme_redirect": true })),
        followed("/follow-safely/", json!({ "allow_cross_scheme_redirect": true, "predicates": [predicate("safe_cross_scheme", "SafeCrossSchemeConfig", json!({}))] })),
        followed("/follow-listed/", json!({ "predicates": [predicate("allow_listed_routes", "AllowListedRoutesConfig", json!({ "allowed_route_names": ["target"] }))] })),
        followed("/follow-once/", json!({ "max_internal_redirects": 5, "predicates": [predicate("previous_routes", "PreviousRoutesConfig", json!({}))] })),
        followed("/follow-copy/", json!({ "response_headers_to_copy": ["x-taken", "x-lost"] })),
        json!({ "name": "target", "match": { "prefix": "/target" }, "route": { "cluster": "service", "prefix_rewrite": "/at-target" } }),
        json!({ "name": "direct", "match": { "prefix": "/direct" }, "direct_response": { "status": 200, "body": { "inline_string": "direct" } } }),
        json!({ "name": "dead", "match": { "prefix": "/dead" }, "route": { "cluster": "dead" } }),
    ]);
    routes.into()
}

fn local_replies() -> Value {
    let status = |code: u32| json!({ "status_code_filter": { "comparison": { "op": "EQ", "value": { "default_value": code, "runtime_key": "none" } } } });
    json!({
        "mappers": [
            { "filter": status(503), "status_code": 599, "body": { "inline_string": "sorry" },
              "headers_to_add": [{ "header": { "key": "x-mapped", "value": "%RESPONSE_CODE_DETAILS%" } }] },
            { "filter": status(404), "body_format_override": { "json_format": { "code": "%RESPONSE_CODE%", "body": "%LOCAL_REPLY_BODY%", "path": "%REQ(:PATH)%" } } },
        ],
        "body_format": { "text_format_source": { "inline_string": "<%LOCAL_REPLY_BODY%> %RESPONSE_CODE%" }, "content_type": "text/x-formatted" },
    })
}

pub(crate) fn listeners() -> Vec<(&'static str, Value)> {
    let config = |routes: Value| json!({ "name": "routes", "validate_clusters": false, "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": routes }] });
    let dead = json!([{ "name": "dead", "match": { "prefix": "/dead" }, "route": { "cluster": "dead" } },
        { "name": "moved", "match": { "prefix": "/moved" }, "redirect": { "path_redirect": "/x" } },
        { "name": "teapot", "match": { "prefix": "/teapot" }, "direct_response": { "status": 418, "body": { "inline_string": "short" } } }]);
    vec![
        ("redirects", json!({ "route_config": config(routes()) })),
        ("local-replies", json!({ "route_config": config(dead), "local_reply_config": local_replies() })),
    ]
}

pub(crate) const STATS: [&str; 1] = [
    r"^http\.redirects\.(passthrough_internal_redirect.*|downstream_rq_(total|completed|[2-5]xx)|no_route)$",
];

pub(crate) fn cases() -> Vec<Case> {
    let get = |name: &'static str, target: &str, more: &str| Case {
        name,
        listener: "redirects",
        steps: vec![
            Step::Send(format!("GET {target} HTTP/1.1\r\nhost: a.example:81\r\n{more}\r\n").into_bytes()),
            Step::Answers(vec!["GET"]),
            Step::Pause(Duration::from_millis(50)),
        ],
        compare: Compare::Everything,
    };
    let to = |location: &str| format!("act: move\r\nto: {location}\r\n");
    let post = |name: &'static str, target: &str, more: &str| Case {
        steps: vec![
            Step::Send(
                format!("POST {target} HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n{more}\r\nhello")
                    .into_bytes(),
            ),
            Step::Answers(vec!["POST"]),
        ],
        ..get(name, target, more)
    };
    let mut all = vec![
        get("rewrite by regex", "/regex/a/b?q=1", ""),
        get("where what was created is", "/created?q=1", ""),
        get("where what was created without a word is", "/created-empty", "x-forwarded-proto: https\r\n"),
        get("a direct redirect", "/found-direct/../x", ""),
        get("a direct answer that nothing changed", "/unchanged", ""),
        get("a direct answer of another kind", "/accepted", ""),
        post("what a POST created", "/created", ""),
        get("rewrite of every match", "/every/banana?a", ""),
        get("host by header", "/host-header/x", "x-host: named.example\r\n"),
        get("host by no header", "/host-header/x", ""),
        get("host by path", "/host-regex/b/c?d", ""),
        get("host forwarded", "/host/x", ""),
        get("redirect with a code", "/r/code/x?q", ""),
        get("redirect to a port", "/r/port/x?q", ""),
        get("redirect of a prefix", "/r/prefix/x?q", ""),
        get("redirect by regex", "/r/regex/x/y?q", ""),
        get("redirect without the query", "/r/strip/x?q", ""),
        get("headers with formats", "/formats/x?y", "x-some: something\r\n"),
        get("actions on headers", "/actions/", "x-a: 0\r\nx-b: 0\r\nx-c: 0\r\nx-d: 0\r\nx-gone: 1\r\n"),
        get("actions on no headers", "/actions/", ""),
        get("headers of answers", "/answer/", "act: headers\r\n"),
        get("formatted direct response", "/formatted", ""),
        get("direct response in JSON", "/json", ""),
        get("followed", "/follow/", &to("http://b.example/target?x=y")),
        get("followed with a fragment", "/follow/", &to("http://b.example/target#here")),
        get("followed to a direct response", "/follow/", &to("http://b.example/direct")),
        get("followed to a dead service", "/follow/", &to("http://b.example/dead")),
        get("not followed: relative", "/follow/", &to("/target")),
        get("not followed: empty", "/follow/", &to("")),
        get("not followed: no route", "/follow/", &to("http://b.example/nowhere")),
        get("not followed: https", "/follow/", &to("https://b.example/target")),
        get("not followed: another code", "/follow/", "act: move-301\r\nto: http://b.example/target\r\n"),
        get("followed: another code", "/follow-more/", "act: move-301\r\nto: http://b.example/target\r\n"),
        get("followed to https", "/follow-https/", &to("https://b.example/target")),
        get("not followed to https, safely", "/follow-safely/", &to("https://b.example/target")),
        get("followed to a listed route", "/follow-listed/", &to("http://b.example/target")),
        get("not followed to another route", "/follow-listed/", &to("http://b.example/direct")),
        get("followed in a circle", "/follow-more/", &to("http://b.example/follow-more/")),
        get("followed to the same route once", "/follow-once/", &to("http://b.example/follow-once/")),
        get(
            "followed with headers",
            "/follow-copy/",
            &format!("{}x-lost: 1\r\n", to("http://b.example/target")),
        ),
        post("followed with a body", "/follow/", &to("http://b.example/target")),
        post(
            "followed without the body",
            "/follow-more/",
            "act: move-303\r\nto: http://b.example/target\r\n",
        ),
    ];
    // The client is told the same.
    let why = "Envoy logs the route that was not taken";
    for case in &mut all {
        if ["not followed: no route", "not followed to another route", "not followed to https, safely"]
            .contains(&case.name)
        {
            case.compare = Compare::Outcome(why);
        }
    }
    all.extend([
        get("mapped reply", "/dead", "").on("local-replies"),
        get("formatted reply", "/nowhere", "").on("local-replies"),
        get("redirects are replies, too", "/moved", "").on("local-replies"),
        get("so are direct responses", "/teapot", "").on("local-replies"),
        get("mapped reply to gRPC", "/dead", "content-type: application/grpc\r\n").on("local-replies"),
    ]);
    all
}
