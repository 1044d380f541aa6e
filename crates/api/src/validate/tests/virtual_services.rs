//! VirtualServices as wholes: hosts, destinations, and rules that nobody reaches.
use serde_json::{Value, json};

use super::{alone, check, found, routed};

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
