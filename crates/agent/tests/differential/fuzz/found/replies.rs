//! What was found with `local_reply_config`.

use serde_json::json;

use super::{Found, GRPC, add, asked, manager, only, over_http2, plain, to};
use crate::fuzz::asked::{Asked, Version};
use crate::proxies::merged;

pub(super) fn of_mappers() -> Vec<Found> {
    let mapped = |name: &str| {
        let mut mapper =
            json!({ "filter": { "not_health_check_filter": {} }, "body": { "inline_string": "mapped" } });
        if !name.is_empty() {
            mapper["headers_to_add"] = json!([add(name, "text/css")]);
        }
        let format = json!({ "text_format_source": { "inline_string": "%RESP(content-type)%|%LOCAL_REPLY_BODY%" }, "content_type": "text/html" });
        json!({ "local_reply_config": { "mappers": [mapper], "body_format": format } })
    };
    let told = manager(
        json!({ "routes": [to("none", json!({}))], "response_headers_to_add": [add("x-told", "%RESPONSE_CODE_DETAILS%")] }),
        json!({}),
    );
    vec![
        (
            "a mapped text has no kind before it is made",
            merged(
                only(json!({ "match": { "prefix": "/" }, "direct_response": { "status": 200 } })),
                mapped(""),
            ),
            plain(),
        ),
        (
            "the kind of a mapped text is its format's",
            merged(told, mapped("x-other")),
            asked("GET", &["x-a: 1"]),
        ),
        (
            "what a mapper says of a text stays",
            merged(only(to("none", json!({}))), mapped("content-type")),
            plain(),
        ),
    ]
}

/// What Envoy's codec refuses has no head that anybody could be told of.
pub(super) fn of_no_request() -> Vec<Found> {
    let inline =
        "%REQ(:METHOD)%|%REQ(x-a)%|%PATH%|%QUERY_PARAM(q)%|%PROTOCOL%|%GRPC_STATUS%|%RESPONSE_FLAGS%";
    let told = |more| {
        let format = json!({ "local_reply_config": { "body_format": { "text_format_source": { "inline_string": inline } } } });
        merged(merged(only(to("service", json!({}))), format), more)
    };
    let underscores =
        json!({ "common_http_protocol_options": { "headers_with_underscores_action": "REJECT_REQUEST" } });
    let few = json!({ "common_http_protocol_options": { "headers_with_underscores_action": "REJECT_REQUEST", "max_headers_count": 3 } });
    let no_method = json!({ "header_filter": { "header": { "name": ":method", "present_match": false } } });
    let by_header = json!({ "local_reply_config": { "mappers": [{ "filter": no_method, "body": { "inline_string": "mapped" } }] } });
    let asked = |method, line| Asked { target: "/a?q=1".to_owned(), ..asked(method, &["x-a: 1", line]) };
    vec![
        ("a method that is none", told(json!({})), asked("BREW", GRPC)),
        ("a name of HEAD's that is refused", told(underscores.clone()), asked("HEAD", "a_b: 1")),
        ("a name that is refused", told(underscores.clone()), asked("GET", "a_b: 1")),
        ("a name that is refused over HTTP/2", told(underscores), over_http2(asked("GET", "a_b: 1"))),
        (
            "a version that is refused",
            told(json!({})),
            Asked { version: Version::Http10, ..asked("GET", GRPC) },
        ),
        (
            "a version that is refused, mapped by what is not there",
            merged(only(to("service", json!({}))), by_header),
            Asked { version: Version::Http10, ..asked("GET", GRPC) },
        ),
        (
            "more headers than may be before a name that is refused",
            merged(only(to("service", json!({}))), few),
            over_http2(asked("GET", "a_b: 1")),
        ),
    ]
}
