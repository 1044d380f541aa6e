//! What was found with `local_reply_config`.

use serde_json::json;

use super::{Found, add, asked, manager, only, plain, to};
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
