//! What is refused and warned of, in Istio's words.
use serde_json::{Value, json};

use super::*;

fn found(kind: &str, spec: Value) -> Findings {
    let parsed = "parses";
    match kind {
        "VirtualService" => validate_virtual_service(&serde_json::from_value(spec).expect(parsed)),
        "DestinationRule" => validate_destination_rule(&serde_json::from_value(spec).expect(parsed)),
        _ => validate_gateway(&serde_json::from_value(spec).expect(parsed)),
    }
}

fn check(kind: &str, cases: impl IntoIterator<Item = (Value, &'static str)>) {
    for (spec, expected) in cases {
        let errors: Vec<String> = found(kind, spec.clone()).errors.iter().map(ToString::to_string).collect();
        assert_eq!(errors, [expected], "{spec}");
    }
}

/// A route to `a` with these fields besides.
fn routed(more: Value) -> Value {
    let mut route = json!({"route": [{"destination": {"host": "a"}}]});
    let fields = more.as_object().expect("an object").clone();
    route.as_object_mut().expect("an object").extend(fields);
    json!({"hosts": ["a"], "http": [route]})
}

fn alone(route: Value) -> Value {
    json!({"hosts": ["a"], "http": [route]})
}

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

#[test]
fn hosts_gateways_destinations_and_weights() {
    let http = json!([{"route": [{"destination": {"host": "a"}}]}]);
    let destination = |destination: Value| alone(json!({"route": [{ "destination": destination }]}));
    let weights = |a: i32, b: i32| {
        alone(
            json!({"route": [{"destination": {"host": "a"}, "weight": a}, {"destination": {"host": "b"}, "weight": b}]}),
        )
    };
    check(
        "VirtualService",
        [
            (
                json!({"hosts": ["*"], "http": http}),
                "spec.hosts[0]: wildcard host * is not allowed for virtual services bound to the mesh gateway",
            ),
            (
                json!({"hosts": ["*.com", "a.com"], "gateways": ["g"], "http": http}),
                "spec.hosts[1]: duplicate hosts in virtual service: *.com & a.com",
            ),
            (
                json!({"hosts": ["a"], "gateways": ["N!/g"], "http": http}),
                "spec.gateways[0]: invalid value for namespace: \"N!\"",
            ),
            (
                json!({"hosts": ["a"], "gateways": ["ns/g_"], "http": http}),
                "spec.gateways[0]: invalid value for gateway name: \"g_\"",
            ),
            (
                json!({"hosts": ["a"], "exportTo": ["~"], "http": http}),
                "spec.exportTo[0]: exportTo ~ (none) is not allowed for Istio configuration objects",
            ),
            (
                json!({"hosts": ["a"], "exportTo": ["b", "b"], "http": http}),
                "spec.exportTo[1]: duplicate entries in exportTo for entry b",
            ),
            (
                json!({"hosts": ["a"], "exportTo": ["b", "*"], "http": http}),
                "spec.exportTo[1]: cannot have both public (*) and non-public exportTo values for a resource",
            ),
            (
                json!({"hosts": ["a"], "exportTo": ["b!"], "http": http}),
                "spec.exportTo[0]: only .,*, or a valid DNS 1123 label is allowed as exportTo entry",
            ),
            (
                destination(json!({"host": "*"})),
                "spec.http[0].route[0].destination.host: invalid destination host *",
            ),
            (
                destination(json!({"host": "a", "subset": "v_1"})),
                "spec.http[0].route[0].destination.subset: subset name is invalid: v_1",
            ),
            (
                destination(json!({"host": "a", "port": {"number": 0}})),
                "spec.http[0].route[0].destination.port.number: port number 0 must be in the range 1..65535",
            ),
            (weights(0, 0), "spec.http[0].route: total destination weight = 0"),
            (weights(-1, 5), "spec.http[0].route[0].weight: weight -1 < 0"),
            (json!({"hosts": ["a"], "tcp": [{}]}), "spec.tcp[0].route: TCP route is required"),
            (
                json!({"hosts": ["a"], "tcp": [{"match": [{"destinationSubnets": ["x"]}], "route": [{"destination": {"host": "a"}}]}]}),
                "spec.tcp[0].match[0].destinationSubnets: x is not a valid CIDR block",
            ),
            (
                json!({"hosts": ["a"], "tls": [{"match": [{"sniHosts": ["b"]}], "route": [{"destination": {"host": "a"}}]}]}),
                "spec.tls[0].match[0].sniHosts[0]: SNI host \"b\" is not a compatible subset of any of the virtual service hosts: [a]",
            ),
        ],
    );
    let legacy = found(
        "VirtualService",
        json!({"hosts": ["a"], "gateways": ["g.ns.svc.cluster.local"], "http": http}),
    );
    assert_eq!(
        legacy.warnings[0].message,
        "using legacy gatewayName format \"g.ns.svc.cluster.local\"; prefer the <namespace>/<name> format: \"ns/g\""
    );
}

#[test]
fn rules_nobody_reaches_are_said() {
    let to_a = json!([{"destination": {"host": "a"}}]);
    let said = |http: Value| {
        let spec = json!({"hosts": ["a"], "http": http});
        found("VirtualService", spec).warnings.into_iter().map(|finding| finding.message).collect::<Vec<_>>()
    };
    assert_eq!(
        said(json!([{"route": to_a}, {"name": "late", "match": [{"uri": {"exact": "/a"}}], "route": to_a}])),
        ["virtualService rule \"late\" not used (only the last rule can have no matches)"]
    );
    assert_eq!(
        said(json!([
            {"match": [{"uri": {"exact": "/a"}}], "route": to_a},
            {"match": [{"name": "again", "uri": {"exact": "/a"}}, {"uri": {"exact": "/b"}}], "route": to_a},
            {"match": [{"uri": {"exact": "/b"}}], "route": to_a}])),
        [
            "virtualService rule #2 not used (all matches used by prior rules)",
            "virtualService rule #1 match \"again\" is not used (duplicate/overlapping match in rule #0)",
            "virtualService rule #2 match #0 is not used (duplicate/overlapping match in rule #1)"
        ]
    );
}

#[test]
fn destination_rules() {
    let policy = |policy: Value| json!({"host": "a", "trafficPolicy": policy});
    check(
        "DestinationRule",
        [
            (json!({}), "spec.host: empty domain name not allowed"),
            (
                json!({"host": "a", "subsets": [{"name": "v1"}, {"name": "v1"}]}),
                "spec.subsets[1].name: duplicate subset names: v1",
            ),
            (
                json!({"host": "a", "subsets": [{"name": "v.1"}]}),
                "spec.subsets[0].name: subset name is invalid: v.1",
            ),
            (json!({"host": "a", "subsets": [{}]}), "spec.subsets[0].name: subset name cannot be empty"),
            (policy(json!({})), "spec.trafficPolicy: traffic policy must have at least one field"),
            (
                policy(json!({"portLevelSettings": [{"tls": {"mode": "DISABLE"}, "port": null}]})),
                "spec.trafficPolicy.portLevelSettings[0].port: portTrafficPolicy must have valid port",
            ),
            (
                policy(json!({"portLevelSettings": [{"port": {"number": 80}}]})),
                "spec.trafficPolicy.portLevelSettings[0]: port traffic policy must have at least one field",
            ),
            (
                policy(json!({"connectionPool": {}})),
                "spec.trafficPolicy.connectionPool: connection pool must have at least one field",
            ),
            (
                policy(json!({"connectionPool": {"http": {"maxRetries": -1}}})),
                "spec.trafficPolicy.connectionPool.http.maxRetries: max retries must be non-negative",
            ),
            (
                policy(
                    json!({"connectionPool": {"http": {"h2UpgradePolicy": "UPGRADE", "useClientProtocol": true}}}),
                ),
                "spec.trafficPolicy.connectionPool.http.useClientProtocol: use client protocol must not be true when H2UpgradePolicy is UPGRADE",
            ),
            (
                policy(json!({"connectionPool": {"tcp": {"connectTimeout": "-1s"}}})),
                "spec.trafficPolicy.connectionPool.tcp.connectTimeout: invalid duration \"-1s\": must not be negative",
            ),
            (
                policy(json!({"outlierDetection": {"maxEjectionPercent": 101}})),
                "spec.trafficPolicy.outlierDetection.maxEjectionPercent: percentage 101 is not in range 0..100",
            ),
            (
                policy(json!({"outlierDetection": {"consecutiveLocalOriginFailures": 1}})),
                "spec.trafficPolicy.outlierDetection.consecutiveLocalOriginFailures: outlier detection consecutive local origin failures is specified, but split external local origin errors is set to false",
            ),
            (
                policy(json!({"tunnel": {"protocol": "GET", "targetHost": "a", "targetPort": 1}})),
                "spec.trafficPolicy.tunnel.protocol: tunnel protocol must be \"CONNECT\" or \"POST\"",
            ),
            (
                policy(json!({"tunnel": {"targetHost": "a", "targetPort": 1}, "proxyProtocol": {}})),
                "spec.trafficPolicy: tunnel and proxyProtocol must not be set together",
            ),
            (
                json!({"host": "a", "workloadSelector": {"matchLabels": {"a": "*"}}}),
                "spec.workloadSelector.matchLabels: wildcard is not supported in selector: \"a=*\"",
            ),
            (
                json!({"host": "a", "workloadSelector": {"matchLabels": {"": "b"}}}),
                "spec.workloadSelector.matchLabels: empty key is not supported in selector: \"=b\"",
            ),
        ],
    );
    let empty = found("DestinationRule", json!({"host": "a", "workloadSelector": {}}));
    assert_eq!(empty.warnings[0].message, "workload selector specified without labels");
}

#[test]
fn gateways() {
    let port = |protocol: &str| json!({"number": 80, "name": "p", "protocol": protocol});
    let server = |server: Value| json!({ "servers": [server] });
    check(
        "Gateway",
        [
            (json!({}), "spec.servers: gateway must have at least one server"),
            (
                server(json!({"port": port("HTTP")})),
                "spec.servers[0].hosts: server config must contain at least one host",
            ),
            (
                server(json!({"port": port("FTP"), "hosts": ["*"]})),
                "spec.servers[0].port.protocol: invalid protocol \"FTP\", supported protocols are HTTP, HTTP2, GRPC, GRPC-WEB, MONGO, REDIS, MYSQL, TCP",
            ),
            (
                server(
                    json!({"port": {"number": 80, "name": "p", "protocol": "HTTP", "targetPort": 1}, "hosts": ["*"]}),
                ),
                "spec.servers[0].port.targetPort: targetPort has no impact on Gateways",
            ),
            (
                server(json!({"port": port("HTTPS"), "hosts": ["*"]})),
                "spec.servers[0]: server must have TLS settings for HTTPS/TLS protocols",
            ),
            (
                server(
                    json!({"port": port("TCP"), "hosts": ["*"], "tls": {"mode": "SIMPLE", "credentialName": "c"}}),
                ),
                "spec.servers[0].tls: server cannot have TLS settings for non HTTPS/TLS ports",
            ),
            (
                json!({"servers": [{"port": port("HTTP"), "hosts": ["*"]}, {"port": port("HTTP"), "hosts": ["*"]}]}),
                "spec.servers[1].port.name: port names in servers must be unique: duplicate name p",
            ),
        ],
    );
}

#[test]
fn prefixes_that_earlier_ones_cover_are_warned_of() {
    let to_a = json!([{"destination": {"host": "a"}}]);
    let warned = |earlier: Value, later: Value| {
        let mut rules = [json!({"name": "one", "route": to_a}), json!({"route": to_a})];
        for (rule, (prefix, more)) in rules.iter_mut().zip([("/debug", earlier), ("/debugs", later)]) {
            let mut condition = json!({"uri": {"prefix": prefix}});
            condition.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            rule["match"] = json!([condition]);
        }
        let found = found("VirtualService", json!({"hosts": ["a"], "http": rules}));
        assert!(found.is_valid(), "{found:?}");
        found.warnings.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let words = "spec.http[1].match[0]: virtualService rule #1 match #0 of prefix /debugs is not used (duplicate/overlapping match in rule #0 of prefix /debug on \"one\")";
    let header = json!({"headers": {"a": {"exact": "b"}}});
    for (earlier, later) in [
        (json!({}), json!({})),
        (json!({}), header.clone()),
        (header.clone(), header.clone()),
        (json!({}), json!({"method": {"exact": "POST"}, "port": 80})),
        (json!({"port": 80}), json!({"port": 80})),
    ] {
        assert_eq!(warned(earlier, later), [words]);
    }
    for narrow in [
        header,
        json!({"headers": {"a": {"prefix": "b"}}}),
        json!({"withoutHeaders": {"a": {"exact": "b"}}}),
        json!({"queryParams": {"a": {"exact": "b"}}}),
        json!({"sourceLabels": {"a": "b"}}),
        json!({"sourceNamespace": "x"}),
        json!({"method": {"exact": "GET"}}),
        json!({"scheme": {"exact": "http"}}),
        json!({"authority": {"exact": "a"}}),
        json!({"port": 80}),
        json!({"gateways": ["g"]}),
        json!({"ignoreUriCase": true}),
    ] {
        assert_eq!(warned(narrow.clone(), json!({})), Vec::<String>::new(), "{narrow}");
    }
    let spec = json!({"hosts": ["a"], "http": [
        {"match": [{"uri": {"prefix": "/a"}}], "delegate": {"name": "d"}},
        {"match": [{"uri": {"prefix": "/b/c"}}], "route": to_a},
        {"match": [{"uri": {"prefix": "/a/b"}}, {"uri": {"prefix": "/b"}}, {"uri": {"exact": "/b/c/d"}}], "route": to_a}]});
    assert_eq!(found("VirtualService", spec).warnings, []);
}

#[test]
fn what_istio_only_warns_of() {
    let warned = |spec: Value| {
        let found = found("VirtualService", spec);
        assert!(found.is_valid(), "{found:?}");
        found.warnings.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let body =
        |size: usize| alone(json!({"directResponse": {"status": 200, "body": {"string": "x".repeat(size)}}}));
    assert_eq!(
        warned(body(102_401)),
        ["spec.http[0].directResponse.body: large direct_responses may impact control plane performance"]
    );
    assert_eq!(warned(body(102_400)), Vec::<String>::new());
    assert_eq!(warned(body(1 << 20)).len(), 1);
    check(
        "VirtualService",
        [(
            body((1 << 20) + 1),
            "spec.http[0].directResponse.body: large direct_responses may impact control plane performance, must be less than 1MB",
        )],
    );
    assert_eq!(
        warned(routed(json!({"fault": {"abort": {}}}))),
        ["spec.http[0].fault.abort: abort configured, but error type not set"]
    );
    assert_eq!(
        warned(routed(json!({"fault": {"delay": {}}}))),
        ["spec.http[0].fault.delay: delay configured, but fixedDelay not set"]
    );
    let sni = |sni: &str| json!({"hosts": ["a.com"], "tls": [{"match": [{"sniHosts": [sni]}], "route": [{"destination": {"host": "a"}}]}]});
    assert_eq!(
        warned(sni("10.0.0.1")),
        [
            "spec.tls[0].match[0].sniHosts[0]: using an IP address (\"10.0.0.1\") goes against SNI spec and most clients do not support this"
        ]
    );
    check(
        "VirtualService",
        [
            (
                sni("b.com"),
                "spec.tls[0].match[0].sniHosts[0]: SNI host \"b.com\" is not a compatible subset of any of the virtual service hosts: [a.com]",
            ),
            (
                sni("b..com"),
                "spec.tls[0].match[0].sniHosts[0]: domain name \"b..com\" invalid (label \"\" invalid)",
            ),
            (
                alone(json!({"route": [{"destination": {"host": "10.0.0.1"}}]})),
                "spec.http[0].route[0].destination.host: domain name \"10.0.0.1\" invalid (top level domain \"1\" cannot be all-numeric)",
            ),
        ],
    );
}

#[test]
fn settings_of_rules_that_exclude_each_other() {
    let policy = |policy: Value| json!({"host": "a", "trafficPolicy": policy});
    let tls = |tls: Value| policy(json!({"tls": tls}));
    let at = "spec.trafficPolicy.tls: cannot specify";
    let by_secret = "client certificates or CA certificate or CA CRL If credentialName is set";
    let unverified =
        "CaCertificates or CredentialName or SubjectAltNames when InsecureSkipVerify is set true";
    let mutual =
        json!({"mode": "MUTUAL", "clientCertificate": "/c", "privateKey": "/k", "insecureSkipVerify": true});
    let with = |base: &Value, more: Value| {
        let mut base = base.clone();
        base.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        base
    };
    let simple = json!({"mode": "SIMPLE", "insecureSkipVerify": true});
    let secret = json!({"mode": "SIMPLE", "credentialName": "c"});
    let errors = |spec: Value| -> Vec<String> {
        found("DestinationRule", spec).errors.iter().map(ToString::to_string).collect()
    };
    for (given, words) in [
        (with(&simple, json!({"caCertificates": "/ca"})), unverified),
        (with(&simple, json!({"credentialName": "c"})), unverified),
        (with(&simple, json!({"subjectAltNames": ["a"]})), unverified),
        (
            with(&mutual, json!({"caCertificates": "/ca"})),
            "CaCertificates or SubjectAltNames when InsecureSkipVerify is set true",
        ),
        (
            with(&mutual, json!({"subjectAltNames": ["a"]})),
            "CaCertificates or SubjectAltNames when InsecureSkipVerify is set true",
        ),
        (with(&secret, json!({"clientCertificate": "/c"})), by_secret),
        (with(&secret, json!({"privateKey": "/c"})), by_secret),
        (with(&secret, json!({"caCertificates": "/c"})), by_secret),
        (with(&secret, json!({"mode": "MUTUAL", "caCrl": "/c"})), by_secret),
    ] {
        assert_eq!(errors(tls(given.clone())), [format!("{at} {words}")], "{given}");
    }
    for good in [simple, mutual, secret.clone(), with(&secret, json!({"subjectAltNames": ["a"], "sni": "a"}))]
    {
        assert_eq!(errors(tls(good)), Vec::<String>::new());
    }
    let hash = |hash: Value| policy(json!({"loadBalancer": {"consistentHash": hash}}));
    let old = found("DestinationRule", hash(json!({"useSourceIp": true, "minimumRingSize": 8})));
    assert!(old.is_valid());
    assert_eq!(
        old.warnings[0].to_string(),
        "spec.trafficPolicy.loadBalancer.consistentHash.minimumRingSize: consistent hash MinimumRingSize is deprecated, use ConsistentHashLB's RingHash configuration instead"
    );
    check(
        "DestinationRule",
        [
            (
                hash(json!({"useSourceIp": true, "minimumRingSize": 8, "ringHash": {}})),
                "spec.trafficPolicy.loadBalancer.consistentHash: only one of MinimumRingSize or Maglev/Ringhash can be specified",
            ),
            (
                policy(json!({"connectionPool": {"tcp": {"idleTimeout": "1us"}}})),
                "spec.trafficPolicy.connectionPool.tcp.idleTimeout: only durations to ms precision are supported",
            ),
            (
                policy(json!({"tunnel": {"targetHost": "*", "targetPort": 1}})),
                "spec.trafficPolicy.tunnel.targetHost: tunnel target host must be valid FQDN or IP address: domain name \"*\" must not have a wildcard",
            ),
            (
                policy(json!({"tunnel": {"targetHost": "a", "targetPort": 0}})),
                "spec.trafficPolicy.tunnel.targetPort: tunnel target port is invalid: port number 0 must be in the range 1..65535",
            ),
        ],
    );
}
