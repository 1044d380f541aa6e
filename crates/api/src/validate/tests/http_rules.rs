//! HTTP rules of a VirtualService, one by one.
use serde_json::{Value, json};

use super::{alone, check, found, routed};

#[test]
fn outcomes_of_http_rules() {
    let redirect = json!({"uri": "/x"});
    let to_a = json!([{"destination": {"host": "a"}}]);
    let answer = json!({"status": 200});
    let fault = json!({"abort": {"httpStatus": 500}});
    let rewrite = json!({"uri": "/x"});
    check(
        "VirtualService",
        [
            (alone(json!({})), "spec.http[0]: HTTP route, redirect or direct_response is required"),
            (
                alone(json!({"redirect": redirect, "route": to_a})),
                "spec.http[0]: HTTP route cannot contain both route and redirect",
            ),
            (
                alone(json!({"redirect": redirect, "fault": fault})),
                "spec.http[0]: HTTP route cannot contain both fault and redirect",
            ),
            (
                alone(json!({"redirect": redirect, "rewrite": rewrite})),
                "spec.http[0]: HTTP route rule cannot contain both rewrite and redirect",
            ),
            (
                alone(json!({"redirect": redirect, "directResponse": answer})),
                "spec.http[0]: HTTP route rule cannot contain both direct_response and redirect",
            ),
            (
                alone(json!({"directResponse": answer, "route": to_a})),
                "spec.http[0]: HTTP route cannot contain both route and direct_response",
            ),
            (
                alone(json!({"directResponse": answer, "fault": fault})),
                "spec.http[0]: HTTP route cannot contain both fault and direct_response",
            ),
            (
                alone(json!({"directResponse": answer, "rewrite": rewrite})),
                "spec.http[0]: HTTP route rule cannot contain both rewrite and direct_response",
            ),
            (
                alone(json!({"name": "r", "delegate": {"name": "d"}, "route": to_a})),
                "spec.http[0]: root HTTP route r must not specify route",
            ),
            (
                alone(json!({"name": "r", "delegate": {"name": "d"}, "redirect": redirect})),
                "spec.http[0]: root HTTP route r must not specify redirect",
            ),
            (
                json!({"http": [{"delegate": {"name": "d"}}]}),
                "spec.http[0].delegate: delegate HTTP route cannot contain delegate",
            ),
            (
                json!({"gateways": ["g"], "http": [{"route": to_a}]}),
                "spec.gateways: delegate virtual service must have no gateways specified",
            ),
            (
                json!({"tcp": [{"route": to_a}]}),
                "spec.tcp: delegate virtual service must have no tcp route specified",
            ),
            (
                alone(json!({"redirect": {}})),
                "spec.http[0].redirect: redirect must specify URI, authority, scheme, or port",
            ),
            (
                alone(json!({"redirect": {"uri": "/x", "redirectCode": 200}})),
                "spec.http[0].redirect.redirectCode: 200 is not a valid redirect code, must be 301, 302, 303, 307 or 308",
            ),
            (
                alone(json!({"redirect": {"scheme": "ftp"}})),
                "spec.http[0].redirect.scheme: invalid redirect scheme, must be \"http\" or \"https\"",
            ),
            (
                alone(json!({"directResponse": {"status": 99}})),
                "spec.http[0].directResponse.status: HTTP status 99 is not in range 200-599",
            ),
        ],
    );
}

#[test]
fn fields_of_http_rules() {
    check(
        "VirtualService",
        [
            (
                routed(json!({"timeout": "-1s"})),
                "spec.http[0].timeout: invalid duration \"-1s\": must not be negative",
            ),
            (
                routed(json!({"timeout": "10us"})),
                "spec.http[0].timeout: only durations to ms precision are supported",
            ),
            (
                routed(json!({"retries": {"attempts": -1}})),
                "spec.http[0].retries.attempts: attempts cannot be negative",
            ),
            (
                routed(json!({"retries": {"attempts": 0, "retryOn": "5xx"}})),
                "spec.http[0].retries: http retry policy configured when attempts are set to 0 (disabled)",
            ),
            (
                routed(json!({"retries": {"attempts": 1, "retryOn": "sometimes"}})),
                "spec.http[0].retries.retryOn: \"sometimes\" is not a valid retryOn policy",
            ),
            (
                routed(json!({"fault": {}})),
                "spec.http[0].fault: HTTP fault injection must have an abort and/or a delay",
            ),
            (
                routed(json!({"fault": {"abort": {"httpStatus": 500, "percentage": {"value": 101.0}}}})),
                "spec.http[0].fault.abort.percentage: percentage 101 is neither 0.0, nor in range [0.0001, 100.0]",
            ),
            (
                routed(json!({"fault": {"abort": {"httpStatus": 500, "percentage": {"value": 0.00001}}}})),
                "spec.http[0].fault.abort.percentage: percentage 0.00001 is neither 0.0, nor in range [0.0001, 100.0]",
            ),
            (
                routed(json!({"fault": {"abort": {"httpStatus": 99}}})),
                "spec.http[0].fault.abort.httpStatus: HTTP status 99 is not in range 200-599",
            ),
            (
                routed(json!({"fault": {"abort": {"http2Error": "REFUSED"}}})),
                "spec.http[0].fault.abort.http2Error: HTTP/2 abort fault injection not supported yet",
            ),
            (
                routed(json!({"fault": {"delay": {"fixedDelay": "-5s"}}})),
                "spec.http[0].fault.delay.fixedDelay: invalid duration \"-5s\": must not be negative",
            ),
            (routed(json!({"mirror": {}})), "spec.http[0].mirror.host: destination.host is required"),
            (
                routed(json!({"mirrors": [{}]})),
                "spec.http[0].mirrors[0].destination: destination is required for mirrors",
            ),
            (
                routed(json!({"mirror": {"host": "b"}, "mirrors": [{"destination": {"host": "b"}}]})),
                "spec.http[0]: HTTP route cannot contain both mirror and mirrors",
            ),
            (
                routed(json!({"mirror": {"host": "b"}, "mirrorPercentage": {"value": 101.5}})),
                "spec.http[0].mirrorPercentage: mirror_percentage must have a max value of 100 (it has 101.500000)",
            ),
            (
                routed(json!({"mirror": {"host": "b"}, "mirrorPercentage": {"value": -1.0}})),
                "spec.http[0].mirrorPercentage: mirror_percentage must have a min value of 0 (it has -1.000000)",
            ),
            (
                routed(json!({"mirror": {"host": "b"}, "mirrorPercent": 101})),
                "spec.http[0].mirrorPercent: mirror_percent must have a max value of 100 (it has 101)",
            ),
        ],
    );
}

#[test]
fn rewrites_origins_and_headers_of_http_rules() {
    check(
        "VirtualService",
        [
            (
                routed(json!({"rewrite": {}})),
                "spec.http[0].rewrite: rewrite must specify at least one of URI, UriRegexRewrite, or authority. Only one of URI or UriRegexRewrite may be specified",
            ),
            (
                routed(json!({"rewrite": {"uri": "/", "uriRegexRewrite": {"match": "a", "rewrite": "b"}}})),
                "spec.http[0].rewrite: rewrite may only contain one of URI or UriRegexRewrite",
            ),
            (
                routed(json!({"rewrite": {"uriRegexRewrite": {"match": "a"}}})),
                "spec.http[0].rewrite.uriRegexRewrite: UriRegexRewrite requires both Rewrite and Match fields to be specified",
            ),
            (
                routed(json!({"corsPolicy": {"allowOrigins": [{}]}})),
                "spec.http[0].corsPolicy.allowOrigins[0]: '' is not a valid match type for CORS allow origins",
            ),
            (
                routed(json!({"corsPolicy": {"allowMethods": ["get"]}})),
                "spec.http[0].corsPolicy.allowMethods[0]: \"get\" is not a supported HTTP method",
            ),
            (
                routed(json!({"corsPolicy": {"maxAge": "1.5s"}})),
                "spec.http[0].corsPolicy.maxAge: max_age duration is accurate only to seconds precision",
            ),
            (
                routed(json!({"headers": {"request": {"set": {":path": "x"}}}})),
                "spec.http[0].headers.request.set[:path]: invalid header \":path\": header cannot have \":\" prefix",
            ),
            (
                routed(json!({"headers": {"request": {"remove": ["host"]}}})),
                "spec.http[0].headers.request.remove[host]: invalid header \"host\": cannot set Host header",
            ),
            (
                routed(json!({"headers": {"response": {"set": {"Host": "x"}}}})),
                "spec.http[0].headers.response.set[Host]: invalid header \"Host\": cannot set Host header",
            ),
            (
                routed(json!({"headers": {"request": {"add": {"": "x"}}}})),
                "spec.http[0].headers.request.add[]: header name cannot be empty",
            ),
            (
                routed(
                    json!({"headers": {"request": {"set": {"Host": "x"}}}, "rewrite": {"authority": "y"}}),
                ),
                "spec.http[0]: authority header cannot be set multiple times: have \"y\", attempting to set \"x\"",
            ),
        ],
    );
    assert!(
        found("VirtualService", routed(json!({"headers": {"request": {"set": {"Host": "x"}}}}))).is_valid()
    );
    let warned = found("VirtualService", routed(json!({"mirror": {"host": "b"}, "mirrorPercent": 50})));
    assert_eq!(
        warned.warnings[0].message,
        "using deprecated setting \"mirrorPercent\", use \"mirrorPercentage\" instead"
    );
}

#[test]
fn conditions_of_http_rules() {
    let matched = |condition: Value| routed(json!({ "match": [condition] }));
    let delegating = |condition: Value| alone(json!({"match": [condition], "delegate": {"name": "d"}}));
    check(
        "VirtualService",
        [
            (
                matched(json!({"uri": {"regex": ""}})),
                "spec.http[0].match[0].uri.regex: regex string match should not be empty",
            ),
            (
                matched(json!({"uri": {"regex": "a".repeat(1025)}})),
                "spec.http[0].match[0].uri.regex: regex is too large, max length allowed is 1024",
            ),
            (
                matched(json!({"method": {"prefix": ""}})),
                "spec.http[0].match[0].method.prefix: prefix string match should not be empty",
            ),
            (
                matched(json!({"headers": {"x": null}})),
                "spec.http[0].match[0].headers[x]: header match x cannot be null",
            ),
            (
                matched(json!({"headers": {"a b": {"exact": "1"}}})),
                "spec.http[0].match[0].headers[a b]: header name a b is not a valid header name",
            ),
            (
                matched(json!({"headers": {":path": {"exact": "1"}}})),
                "spec.http[0].match[0].headers[:path]: header name :path is not a valid header name",
            ),
            (
                matched(json!({"port": 70000})),
                "spec.http[0].match[0].port: port number 70000 must be in the range 1..65535",
            ),
            (
                matched(json!({"sourceNamespace": "a b"})),
                "spec.http[0].match[0].sourceNamespace: sourceNamespace match a b is invalid",
            ),
            (
                matched(json!({"sourceLabels": {"a": "!"}})),
                "spec.http[0].match[0].sourceLabels: invalid tag value: \"!\"",
            ),
            (
                matched(json!({"gateways": ["/g"]})),
                "spec.http[0].match[0].gateways[0]: config namespace and gateway name cannot be empty",
            ),
            (
                delegating(json!({"queryParams": {"q": null}})),
                "spec.http[0].match[0].queryParams[q]: query param match q cannot be null",
            ),
            (
                delegating(json!({"withoutHeaders": {"x": null}})),
                "spec.http[0].match[0].withoutHeaders[x]: withoutHeaders match x cannot be null",
            ),
        ],
    );
    let regex = found("VirtualService", matched(json!({"uri": {"regex": "("}}))).errors;
    assert!(regex[0].message.contains("Istio uses RE2 style regex-based match"), "{regex:?}");
    assert!(found("VirtualService", matched(json!({"queryParams": {"q": null}}))).is_valid());
}
