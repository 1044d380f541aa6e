//! What becomes of VirtualServices and DestinationRules.
mod support;

use lateen_translate::ResourceType::{Cluster, Route};
use lateen_translate::{Warning, check_destination_rule, check_gateway, check_virtual_service};
use proptest::prelude::*;
use serde_json::{Value, json};
use support::{Mesh, virtual_host};

/// The routes of `customers` after its VirtualService's `http` became this.
fn routes(http: &str) -> Vec<Value> {
    let mut mesh = Mesh::course();
    apply_customers(&mut mesh, http);
    let resources = mesh.sidecar_resources("default", "web-frontend-1");
    let host = virtual_host(resources.get(Route, "80"), "customers.default.svc.cluster.local:80");
    host["routes"].as_array().cloned().unwrap_or_default()
}

fn apply_customers(mesh: &mut Mesh, http: &str) {
    mesh.config(&format!(
        "{{kind: VirtualService, metadata: {{name: customers}}, spec: {{hosts: [customers], http: {http}}}}}"
    ));
}

#[test]
fn weights_are_kept_as_they_are() {
    let mut mesh = Mesh::course();
    mesh.course_file("lab5/customers-50-50.yaml");
    let resources = mesh.sidecar_resources("default", "web-frontend-1");
    let host = virtual_host(resources.get(Route, "80"), "customers.default.svc.cluster.local:80");
    let weighted =
        host["routes"][0]["route"]["weighted_clusters"]["clusters"].as_array().cloned().expect("clusters");
    let found: Vec<_> =
        weighted.iter().map(|cluster| (cluster["name"].clone(), cluster["weight"].clone())).collect();
    assert_eq!(
        found,
        [
            (json!("outbound|80|v1|customers.default.svc.cluster.local"), json!(50)),
            (json!("outbound|80|v2|customers.default.svc.cluster.local"), json!(50)),
        ]
    );

    let uneven = routes(
        "[{route: [{destination: {host: customers, subset: v1}, weight: 7}, {destination: {host: customers, subset: v2}, weight: 2}]}]",
    );
    assert_eq!(uneven[0]["route"]["weighted_clusters"]["clusters"][1]["weight"], 2);
    let all = routes(
        "[{route: [{destination: {host: customers, subset: v1}, weight: 100}, {destination: {host: customers, subset: v2}, weight: 0}]}]",
    );
    assert_eq!(all[0]["route"]["cluster"], "outbound|80|v1|customers.default.svc.cluster.local");
}

#[test]
fn lab_6_routes_by_header() {
    let mut mesh = Mesh::course();
    mesh.course_file("lab6/customers-vs.yaml");
    let resources = mesh.sidecar_resources("default", "web-frontend-1");
    let host = virtual_host(resources.get(Route, "80"), "customers.default.svc.cluster.local:80");
    let [debug, rest] = host["routes"].as_array().map(Vec::as_slice).expect("routes") else {
        panic!("{host}")
    };
    assert_eq!(debug["match"]["headers"], json!([{"name": "user", "string_match": {"exact": "debug"}}]));
    assert_eq!(debug["route"]["cluster"], "outbound|80|v2|customers.default.svc.cluster.local");
    assert_eq!(rest["route"]["cluster"], "outbound|80|v1|customers.default.svc.cluster.local");
}

#[test]
fn every_condition_is_translated() {
    let found = routes(
        "[{match: [{uri: {prefix: /a}, method: {exact: GET}, scheme: {exact: http}, authority: {prefix: cust},
            headers: {x-a: {regex: 'a+'}, x-b: {}}, withoutHeaders: {x-c: {exact: 'no'}, x-d: {}},
            queryParams: {q: {exact: '1'}, r: {}}, ignoreUriCase: true, statPrefix: own},
           {uri: {exact: /b}}, {uri: {regex: '/c/.*'}}],
          route: [{destination: {host: customers}}]}]",
    );
    assert_eq!(found.len(), 3);
    let first = &found[0]["match"];
    assert_eq!((&first["prefix"], &first["case_sensitive"]), (&json!("/a"), &json!(false)));
    let headers = first["headers"].as_array().expect("headers");
    let named = |name: &str| {
        headers.iter().find(|header| header["name"] == name).unwrap_or_else(|| panic!("no {name}"))
    };
    assert_eq!(named("x-a")["string_match"]["safe_regex"]["regex"], "a+");
    assert_eq!(named("x-b")["present_match"], true);
    assert_eq!(named("x-c")["invert_match"], true);
    assert_eq!(named("x-c")["treat_missing_header_as_empty"], true);
    assert_eq!((&named("x-d")["invert_match"], &named("x-d")["present_match"]), (&json!(true), &json!(true)));
    assert_eq!(named(":method")["string_match"]["exact"], "GET");
    assert_eq!(named(":scheme")["string_match"]["exact"], "http");
    assert_eq!(named(":authority")["string_match"]["prefix"], "cust");
    assert_eq!(first["query_parameters"][0], json!({"name": "q", "string_match": {"exact": "1"}}));
    assert_eq!(first["query_parameters"][1], json!({"name": "r", "present_match": true}));
    assert_eq!((&found[0]["stat_prefix"], &found[1]["stat_prefix"]), (&json!("own"), &Value::Null));
    assert_eq!(found[1]["match"]["path"], "/b");
    assert_eq!(found[2]["match"]["safe_regex"]["regex"], "/c/.*");
}

#[test]
fn conditions_on_the_caller_are_decided_here() {
    let http = "[{match: [{sourceLabels: {app: web-frontend}}], route: [{destination: {host: customers, subset: v2}}]},
        {match: [{sourceNamespace: other}], route: [{destination: {host: customers, subset: v3}}]},
        {match: [{port: 81}], route: [{destination: {host: customers, subset: v4}}]},
        {match: [{gateways: [gateway]}], route: [{destination: {host: customers, subset: v5}}]},
        {route: [{destination: {host: customers, subset: v1}}]},
        {route: [{destination: {host: customers, subset: never}}]}]";
    let subsets = |pod: &str| {
        let mut mesh = Mesh::course();
        apply_customers(&mut mesh, http);
        let resources = mesh.sidecar_resources("default", pod);
        let host = virtual_host(resources.get(Route, "80"), "customers.default.svc.cluster.local:80").clone();
        let routes = host["routes"].as_array().cloned().unwrap_or_default();
        let clusters = routes.iter().filter_map(|route| route["route"]["cluster"].as_str());
        clusters.filter_map(|name| name.split('|').nth(2).map(str::to_owned)).collect::<Vec<_>>()
    };
    assert_eq!(subsets("web-frontend-1"), ["v2", "v1"]);
    assert_eq!(subsets("customers-v1-1"), ["v1"]);
}

#[test]
fn actions_are_translated() {
    let found = routes(
        "[{match: [{uri: {prefix: /old}}], rewrite: {uri: /new, authority: other.example}, timeout: 2s,
           retries: {attempts: 1, retryOn: 5xx, perTryTimeout: 500ms},
           headers: {request: {set: {x-a: '1'}, add: {x-b: '2'}, remove: [x-c]}, response: {add: {x-d: '3'}}},
           route: [{destination: {host: customers}, headers: {request: {set: {x-e: '4'}}}}]},
          {match: [{uri: {prefix: /gone}}], redirect: {uri: /there, authority: b.example, redirectCode: 308, scheme: https, derivePort: FROM_PROTOCOL_DEFAULT}},
          {match: [{uri: {prefix: /teapot}}], directResponse: {status: 418, body: {string: short}}},
          {route: [{destination: {host: customers}}]}]",
    );
    let forward = &found[0]["route"];
    assert_eq!(
        (&forward["prefix_rewrite"], &forward["host_rewrite_literal"]),
        (&json!("/new"), &json!("other.example"))
    );
    assert_eq!(forward["timeout"], "2s");
    assert_eq!(forward["retry_policy"]["retry_on"], "5xx");
    assert_eq!(forward["retry_policy"]["per_try_timeout"], "0.500s");
    let added: Vec<_> = found[0]["request_headers_to_add"]
        .as_array()
        .expect("headers")
        .iter()
        .map(|header| (header["header"]["key"].clone(), header["append_action"].clone()))
        .collect();
    let overwrite = json!("OVERWRITE_IF_EXISTS_OR_ADD");
    assert_eq!(
        added,
        [(json!("x-a"), overwrite.clone()), (json!("x-b"), Value::Null), (json!("x-e"), overwrite)]
    );
    assert_eq!(found[0]["request_headers_to_remove"], json!(["x-c"]));
    assert_eq!(found[0]["response_headers_to_add"][0]["header"]["key"], "x-d");
    let redirect = &found[1]["redirect"];
    assert_eq!(redirect["response_code"], "PERMANENT_REDIRECT");
    assert_eq!(
        (&redirect["path_redirect"], &redirect["host_redirect"]),
        (&json!("/there"), &json!("b.example"))
    );
    assert_eq!((&redirect["scheme_redirect"], &redirect["port_redirect"]), (&json!("https"), &Value::Null));
    assert_eq!(found[2]["direct_response"], json!({"status": 418, "body": {"inline_string": "short"}}));
    let plain = &found[3]["route"];
    assert_eq!(plain["timeout"], "0s", "no timeout by default");
    assert_eq!(plain["retry_policy"]["num_retries"], 2, "Istio's default retries");
    assert_eq!(
        plain["cluster"], "outbound|80||customers.default.svc.cluster.local",
        "the service's only port"
    );
}

#[test]
fn redirects_name_no_port_that_their_scheme_implies() {
    for (redirect, port) in [
        ("{port: 8443, scheme: https}", json!(8443)),
        ("{port: 443, scheme: https}", Value::Null),
        ("{port: 80, scheme: http}", Value::Null),
        ("{port: 80}", Value::Null),
        ("{port: 80, scheme: https}", json!(80)),
        ("{port: 443}", json!(443)),
        ("{derivePort: FROM_REQUEST_PORT}", Value::Null),
        ("{derivePort: FROM_REQUEST_PORT, scheme: https}", json!(80)),
        ("{derivePort: FROM_PROTOCOL_DEFAULT, scheme: https}", Value::Null),
    ] {
        let found = routes(&format!("[{{redirect: {redirect}}}]"));
        assert_eq!(found[0]["redirect"]["port_redirect"], port, "{redirect}");
    }
}

#[test]
fn the_oldest_virtual_service_of_a_host_counts() {
    let mut mesh = Mesh::course();
    for (name, created, subset) in
        [("a-late", "2024-02-01T00:00:00Z", "v2"), ("z-early", "2024-01-01T00:00:00Z", "v1")]
    {
        mesh.config(&format!(
            "{{kind: VirtualService, metadata: {{name: {name}, namespace: shop, creationTimestamp: '{created}'}},
              spec: {{hosts: [web-frontend.default.svc.cluster.local], http: [{{route: [{{destination: {{host: web-frontend.default.svc.cluster.local, subset: {subset}}}}}]}}]}}}}"
        ));
    }
    let resources = mesh.sidecar_resources("default", "customers-v1-1");
    let host = virtual_host(resources.get(Route, "80"), "web-frontend.default.svc.cluster.local:80");
    assert_eq!(
        host["routes"][0]["route"]["cluster"],
        "outbound|80|v1|web-frontend.default.svc.cluster.local"
    );
}

#[test]
fn hosts_that_are_no_services_are_served_on_port_80() {
    let mut mesh = Mesh::course();
    mesh.config("{kind: VirtualService, metadata: {name: ext}, spec: {hosts: [shop.example.com], http: [{route: [{destination: {host: customers}}]}]}}");
    let resources = mesh.sidecar_resources("default", "web-frontend-1");
    let host = virtual_host(resources.get(Route, "80"), "shop.example.com:80");
    assert_eq!(host["domains"], json!(["shop.example.com"]));
    assert_eq!(host["routes"][0]["route"]["cluster"], "outbound|80||customers.default.svc.cluster.local");
}

#[test]
fn other_hosts_are_served_on_the_ports_of_the_services_beside_them() {
    let mut mesh = Mesh::course();
    mesh.service(
        "default",
        "api",
        "10.96.0.70",
        json!([{"name": "http", "port": 8080}]),
        json!({"app": "api"}),
    );
    mesh.config("{kind: VirtualService, metadata: {name: api}, spec: {hosts: [api, api.example.com], http: [{route: [{destination: {host: customers}}]}]}}");
    let resources = mesh.sidecar_resources("default", "web-frontend-1");
    let cluster = |port: &str, host: &str| {
        let route = resources.get(Route, port);
        virtual_host(route, &format!("{host}:{port}"))["routes"][0]["route"]["cluster"].clone()
    };
    let customers = "outbound|80||customers.default.svc.cluster.local";
    assert_eq!(cluster("8080", "api.default.svc.cluster.local"), customers, "the destination's only port");
    assert_eq!(cluster("8080", "api.example.com"), customers);
    // Port 80 is for every host, the service's that is not on it among them.
    assert_eq!(cluster("80", "api.example.com"), customers);
    assert_eq!(cluster("80", "api.default.svc.cluster.local"), customers);
}

#[test]
fn explicit_hosts_go_before_the_other_names_of_services() {
    let mut mesh = Mesh::course();
    mesh.config("{kind: VirtualService, metadata: {name: short}, spec: {hosts: [customers.default], http: [{directResponse: {status: 418}}]}}");
    let resources = mesh.sidecar_resources("default", "web-frontend-1");
    let route = resources.get(Route, "80");
    assert_eq!(virtual_host(route, "customers.default:80")["domains"], json!(["customers.default"]));
    let service = &virtual_host(route, "customers.default.svc.cluster.local:80")["domains"];
    assert!(
        service.as_array().is_some_and(|domains| !domains.contains(&json!("customers.default"))),
        "{service}"
    );
}

#[test]
fn a_virtual_service_without_a_rule_for_the_proxy_leaves_the_service_as_it_is() {
    let mut mesh = Mesh::course();
    mesh.config("{kind: VirtualService, metadata: {name: customers}, spec: {hosts: [customers, x.example.com], http: [
      {match: [{sourceLabels: {app: nobody}}], directResponse: {status: 418}}, {match: [{port: 81}], directResponse: {status: 419}}]}}");
    let resources = mesh.sidecar_resources("default", "web-frontend-1");
    for name in ["80", "customers.default.svc.cluster.local:80"] {
        let route = resources.get(Route, name);
        let host = virtual_host(route, "customers.default.svc.cluster.local:80");
        assert_eq!(
            host["routes"][0]["route"]["cluster"], "outbound|80||customers.default.svc.cluster.local",
            "{name}"
        );
        assert!(!route.to_string().contains("x.example.com"), "{name}");
    }
}

#[test]
fn policies_apply_by_port_and_subset() {
    let mut mesh = Mesh::course();
    mesh.config(
        "{kind: DestinationRule, metadata: {name: customers}, spec: {host: customers,
          trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}, connectionPool: {tcp: {maxConnections: 7, connectTimeout: 3s}, http: {http1MaxPendingRequests: 5}},
            outlierDetection: {consecutive5xxErrors: 3, interval: 1s, baseEjectionTime: 2m, maxEjectionPercent: 50}},
          subsets: [{name: v1, labels: {version: v1}, trafficPolicy: {loadBalancer: {simple: RANDOM}}},
                    {name: v2, labels: {version: v2}, trafficPolicy: {portLevelSettings: [{port: {number: 80}, loadBalancer: {simple: PASSTHROUGH}}]}}]}}",
    );
    let resources = mesh.sidecar_resources("default", "web-frontend-1");
    let cluster = |subset: &str| {
        resources.get(Cluster, &format!("outbound|80|{subset}|customers.default.svc.cluster.local"))
    };
    let whole = cluster("");
    assert!(whole.get("lb_policy").is_none(), "ROUND_ROBIN is the zero value: {whole}");
    assert_eq!(whole["connect_timeout"], "3s");
    assert_eq!(whole["circuit_breakers"]["thresholds"][0]["max_connections"], 7);
    assert_eq!(whole["circuit_breakers"]["thresholds"][0]["max_pending_requests"], 5);
    assert_eq!(whole["circuit_breakers"]["thresholds"][0]["max_requests"], u32::MAX);
    assert_eq!(whole["outlier_detection"]["consecutive_5xx"], 3);
    assert_eq!(whole["outlier_detection"]["base_ejection_time"], "120s");
    assert_eq!(cluster("v1")["lb_policy"], "RANDOM");
    assert_eq!(cluster("v1")["connect_timeout"], "3s", "parts the subset leaves out come from the rule");
    assert_eq!(cluster("v2")["type"], "ORIGINAL_DST");
}

#[test]
fn faults_and_cors_configure_their_filters() {
    let found = routes(
        "[{fault: {delay: {fixedDelay: 5s, percentage: {value: 0.1}}, abort: {httpStatus: 500, percentage: {value: 50}}},
           corsPolicy: {allowOrigins: [{exact: 'https://a'}, {prefix: 'https://b'}, {regex: 'https://c.*'}], allowMethods: [GET, POST], allowHeaders: [x-a, x-b],
             exposeHeaders: [x-c], maxAge: 24h, allowCredentials: true, unmatchedPreflights: IGNORE}, match: [{uri: {prefix: /a}}], route: [{destination: {host: customers}}]},
          {fault: {delay: {fixedDelay: 1s, percent: 7}, abort: {grpcStatus: UNAVAILABLE}}, match: [{uri: {prefix: /b}}], directResponse: {status: 200}},
          {corsPolicy: {allowOrigin: ['https://old']}, route: [{destination: {host: customers}}]}]",
    );
    let of = |route: usize, filter: &str| &found[route]["typed_per_filter_config"][filter];
    let fault = of(0, "envoy.filters.http.fault");
    assert_eq!(fault["@type"], "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault");
    assert_eq!(
        fault["delay"],
        json!({"fixed_delay": "5s", "percentage": {"numerator": 1000, "denominator": "MILLION"}})
    );
    assert_eq!(
        fault["abort"],
        json!({"http_status": 500, "percentage": {"numerator": 500_000, "denominator": "MILLION"}})
    );
    let fault = of(1, "envoy.filters.http.fault");
    assert_eq!(fault["delay"], json!({"fixed_delay": "1s", "percentage": {"numerator": 7}}));
    assert_eq!(
        fault["abort"],
        json!({"grpc_status": 14}),
        "without a percentage nothing is aborted, as with Istio"
    );
    let cors = of(0, "envoy.filters.http.cors");
    assert_eq!(cors["@type"], "type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy");
    assert_eq!(
        cors["allow_origin_string_match"],
        json!([{"exact": "https://a"}, {"prefix": "https://b"}, {"safe_regex": {"regex": "https://c.*"}}])
    );
    for (field, expected) in [
        ("allow_methods", json!("GET,POST")),
        ("allow_headers", json!("x-a,x-b")),
        ("expose_headers", json!("x-c")),
        ("max_age", json!("86400")),
        ("allow_credentials", json!(true)),
        ("forward_not_matching_preflights", json!(false)),
        ("filter_enabled", json!({"default_value": {"numerator": 100}})),
    ] {
        assert_eq!(cors[field], expected, "{field}");
    }
    assert_eq!(
        of(2, "envoy.filters.http.cors")["allow_origin_string_match"],
        json!([{"exact": "https://old"}])
    );
    assert_eq!(of(2, "envoy.filters.http.cors")["forward_not_matching_preflights"], json!(true));
}

#[test]
fn mirrors_are_copies_to_their_clusters() {
    let found = routes(
        "[{mirror: {host: customers, subset: v2}, mirrorPercentage: {value: 12.5}, match: [{uri: {prefix: /a}}], route: [{destination: {host: customers}}]},
          {mirror: {host: customers}, mirrorPercent: 7, match: [{uri: {prefix: /b}}], route: [{destination: {host: customers}}]},
          {mirror: {host: customers}, mirrorPercentage: {value: 0}, match: [{uri: {prefix: /c}}], route: [{destination: {host: customers}}]},
          {mirrors: [{destination: {host: customers, subset: v1}}, {destination: {host: web-frontend, port: {number: 80}}, percentage: {value: 50}}], route: [{destination: {host: customers}}]}]",
    );
    let mirrors = |route: usize| found[route]["route"]["request_mirror_policies"].clone();
    let policy = |cluster: &str, share: Value| json!({"cluster": cluster, "runtime_fraction": {"default_value": share}, "trace_sampled": false});
    let customers = |subset: &str| format!("outbound|80|{subset}|customers.default.svc.cluster.local");
    assert_eq!(
        mirrors(0),
        json!([policy(&customers("v2"), json!({"numerator": 125_000, "denominator": "MILLION"}))])
    );
    assert_eq!(mirrors(1), json!([policy(&customers(""), json!({"numerator": 7}))]));
    assert_eq!(mirrors(2), Value::Null, "no share, no mirror");
    assert_eq!(
        mirrors(3),
        json!([
            policy(&customers("v1"), json!({"numerator": 100})),
            policy(
                "outbound|80||web-frontend.default.svc.cluster.local",
                json!({"numerator": 500_000, "denominator": "MILLION"})
            ),
        ])
    );
}

#[test]
fn missing_hosts_and_subsets_are_routed_to_nowhere_and_said() {
    let mut mesh = Mesh::course();
    apply_customers(
        &mut mesh,
        "[{mirror: {host: x}, route: [{destination: {host: nobody}}, {destination: {host: customers, subset: v9, port: {number: 81}}}]}]",
    );
    mesh.config("{kind: DestinationRule, metadata: {name: other}, spec: {host: nobody, trafficPolicy: {tls: {mode: ISTIO_MUTUAL}, loadBalancer: {consistentHash: {useSourceIp: true}}}}}");
    mesh.config("{kind: Gateway, metadata: {name: tls}, spec: {selector: {app: nobody}, servers: [{port: {number: 443, name: https, protocol: HTTPS}, hosts: ['*']}]}}");
    let world = mesh.world();
    let paths = |warnings: Vec<Warning>| {
        warnings.into_iter().map(|warning| (warning.code, warning.path)).collect::<Vec<_>>()
    };
    let service =
        world.virtual_services().find(|service| &*service.name.name == "customers").expect("exists");
    let found = paths(check_virtual_service(service, &world));
    for (code, path) in [
        (Some("IST0101"), "spec.http[0].mirror.host"),
        (Some("IST0101"), "spec.http[0].route[0].destination.host"),
        (Some("IST0101"), "spec.http[0].route[1].destination.port.number"),
        (Some("IST0101"), "spec.http[0].route[1].destination.subset"),
    ] {
        assert!(found.contains(&(code, path.to_owned())), "{path}: {found:?}");
    }
    let rule = world.destination_rules().find(|rule| &*rule.name.name == "other").expect("exists");
    let found = paths(check_destination_rule(rule, &world));
    assert_eq!(found, [(Some("IST0101"), "spec.host".to_owned())]);
    let gateway = world.gateways().find(|gateway| &*gateway.name.name == "tls").expect("exists");
    assert_eq!(check_gateway(gateway, &world).len(), 2);

    let healthy = Mesh::course().world();
    for service in healthy.virtual_services() {
        assert_eq!(check_virtual_service(service, &healthy), [], "the course's own objects are clean");
    }
    let rule = healthy.destination_rules().next().expect("exists").clone();
    assert_eq!(check_destination_rule(&rule, &healthy), []);
    let gateway = healthy.gateways().next().expect("exists").clone();
    assert_eq!(check_gateway(&gateway, &healthy), []);
}

#[test]
fn ambiguous_and_alias_destinations_are_said() {
    let mut mesh = Mesh::course();
    let ports = json!([{"name": "http", "port": 80}, {"name": "http-alt", "port": 81}, {"name": "dns", "port": 53, "protocol": "UDP"}]);
    mesh.service("default", "two", "10.96.0.71", ports, json!({"app": "two"}));
    mesh.service_of(json!({"metadata": {"namespace": "default", "name": "alias"},
        "spec": {"type": "ExternalName", "externalName": "example.com"}}));
    apply_customers(
        &mut mesh,
        "[{route: [{destination: {host: two}}, {destination: {host: two, port: {number: 81}}}, {destination: {host: alias}}]}]",
    );
    let world = mesh.world();
    let service =
        world.virtual_services().find(|service| &*service.name.name == "customers").expect("exists");
    let found: Vec<_> = check_virtual_service(service, &world)
        .into_iter()
        .map(|warning| (warning.code.unwrap_or_default(), warning.path))
        .collect();
    let at = |index: usize, field: &str| format!("spec.http[0].route[{index}].destination.{field}");
    assert_eq!(found, [("IST0112", at(0, "port")), ("IST0101", at(2, "host"))]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20, ..ProptestConfig::default() })]

    /// Weights reach Envoy as they are, in order; destinations without weight are left out when there is a choice.
    #[test]
    fn any_weights_are_kept(weights in proptest::collection::vec(prop_oneof![Just(0), 1..1000i32], 2..6)) {
        prop_assume!(weights.iter().any(|&weight| weight > 0));
        let route: Vec<Value> = weights.iter().enumerate()
            .map(|(index, weight)| json!({"destination": {"host": "customers", "subset": format!("s{index}")}, "weight": weight}))
            .collect();
        let found = routes(&json!([{ "route": route }]).to_string());
        let expected: Vec<(String, i64)> = weights.iter().enumerate().filter(|(_, weight)| **weight > 0)
            .map(|(index, weight)| (format!("outbound|80|s{index}|customers.default.svc.cluster.local"), i64::from(*weight)))
            .collect();
        if let [(only, _)] = expected.as_slice() {
            prop_assert_eq!(&found[0]["route"]["cluster"], only);
        } else {
            let clusters = found[0]["route"]["weighted_clusters"]["clusters"].as_array().cloned().unwrap_or_default();
            let got: Vec<(String, i64)> = clusters.iter()
                .map(|cluster| (cluster["name"].as_str().unwrap_or_default().to_owned(), cluster["weight"].as_i64().unwrap_or_default()))
                .collect();
            prop_assert_eq!(got, expected);
        }
    }
}

/// Whatever validation lets into a header's value the proxies read, and what it does not they would have refused.
#[test]
fn commands_in_headers_are_those_that_proxies_know() {
    for operator in
        include_str!("../../ir/src/envoy_operators.txt").lines().chain(["UPSTREAM_PEER_SERIAL", "NOTHING"])
    {
        let value = format!("%{operator}%");
        let spec = json!({"hosts": ["a"], "http": [{"route": [{"destination": {"host": "a"}}],
            "headers": {"request": {"set": {"x-a": value}}}}]});
        let spec = serde_json::from_value(spec).expect("a VirtualService");
        let valid = lateen_api::validate::validate_virtual_service(&spec);
        let read = lateen_ir::TextFormat::parse(&value, false);
        assert_eq!(valid.is_valid(), read.is_ok(), "{operator}: {:?} {read:?}", valid.errors);
    }
}
