//! Rules of several objects together: delegates, TCP rules, rules for some workloads, conflicts.
mod support;

use lateen_translate::ResourceType::{Cluster, Listener, Route};
use lateen_translate::{
    Warning, check_destination_rule, check_gateway, check_sidecar, check_virtual_service,
};
use serde_json::{Value, json};
use support::{Mesh, Resources, filter, virtual_host};

const CUSTOMERS: &str = "customers.default.svc.cluster.local";

/// Conditions and cluster or answer of the routes of a host.
fn shown(host: &Value) -> Vec<String> {
    let routes = host["routes"].as_array().cloned().unwrap_or_default();
    let outcome = |route: &Value| match route["route"]["cluster"].as_str() {
        Some(cluster) => cluster.to_owned(),
        None => route["direct_response"]["status"].to_string(),
    };
    let path = |route: &Value| {
        ["prefix", "path"].iter().find_map(|kind| route["match"][kind].as_str()).unwrap_or("?").to_owned()
    };
    routes.iter().map(|route| format!("{} {}", path(route), outcome(route))).collect()
}

fn warned(mesh: &mut Mesh, name: &str) -> Vec<(String, String)> {
    let world = mesh.world();
    let service = world.virtual_services().find(|service| &*service.name.name == name).expect("exists");
    let said = |warning: Warning| (warning.path, warning.message);
    check_virtual_service(service, &world).into_iter().map(said).collect()
}

#[test]
fn delegates_give_rules_to_sidecars_and_gateways() {
    let mut mesh = Mesh::course();
    mesh.config("{kind: VirtualService, metadata: {name: customers}, spec: {hosts: [customers, shop.example.com], gateways: [mesh, gateway], http: [
      {match: [{uri: {prefix: /a}}], delegate: {name: team, namespace: shop}},
      {match: [{uri: {prefix: /gone}}], delegate: {name: nobody}},
      {directResponse: {status: 204}}]}}");
    let team = "{kind: VirtualService, metadata: {name: team, namespace: shop}, spec: {http: [
      {match: [{uri: {exact: /a/1}, gateways: [mesh]}], directResponse: {status: 201}},
      {match: [{uri: {prefix: /b}}], directResponse: {status: 500}},
      {route: [{destination: {host: api}}]}]}}";
    mesh.config(team);
    let sidecar = mesh.sidecar_resources("default", "web-frontend-1");
    let host = virtual_host(sidecar.get(Route, "80"), &format!("{CUSTOMERS}:80"));
    let api = "/a outbound|80||api.shop.svc.cluster.local";
    assert_eq!(shown(host), ["/a/1 201", api, "/ 204"]);
    let gateway = mesh.gateway_resources();
    let host = virtual_host(gateway.get(Route, "http.8080"), "shop.example.com:80");
    assert_eq!(shown(host), [api, "/ 204"]);

    let said = warned(&mut mesh, "customers");
    let about: Vec<_> = said.iter().map(|(path, _)| path.as_str()).collect();
    assert_eq!(about, ["spec.http[0].delegate", "spec.http[1].delegate"], "{said:?}");
    assert!(said[0].1.contains("rule 1 of VirtualService shop/team is not within"), "{said:?}");
    assert!(said[1].1.contains("delegate not found: \"default/nobody\""), "{said:?}");
    assert_eq!(
        warned(&mut mesh, "team"),
        [(
            "spec.http[2].route[0].destination.host".to_owned(),
            "Referenced host not found: \"api\"".to_owned()
        )]
    );

    // A change of the delegate is a change of the root's rules.
    mesh.config(&team.replace("201", "202"));
    let sidecar = mesh.sidecar_resources("default", "web-frontend-1");
    assert_eq!(shown(virtual_host(sidecar.get(Route, "80"), &format!("{CUSTOMERS}:80")))[0], "/a/1 202");
}

#[test]
fn the_younger_of_two_virtual_services_for_a_host_is_told() {
    let mut mesh = Mesh::course();
    let rule = |name: &str, created: &str, more: &str| {
        format!(
            "{{kind: VirtualService, metadata: {{name: {name}, creationTimestamp: '{created}'}}, spec: {{hosts: [web-frontend], http: [{{directResponse: {{status: 200}}}}]{more}}}}}"
        )
    };
    mesh.config(&rule("young", "2024-02-01T00:00:00Z", ""));
    mesh.config(&rule("old", "2024-01-01T00:00:00Z", ""));
    mesh.config(&rule("edge", "2024-01-01T00:00:00Z", ", gateways: [gateway]"));
    let expected = "The VirtualServices default/old,default/young associated with mesh gateway define the same host */web-frontend.default.svc.cluster.local which can lead to undefined behavior. This can be fixed by merging the conflicting VirtualServices into a single resource. The oldest, default/old, is in force";
    for name in ["young", "old"] {
        assert_eq!(warned(&mut mesh, name), [("spec.hosts[0]".to_owned(), expected.to_owned())]);
    }
    assert_eq!(warned(&mut mesh, "edge"), [], "gateways merge them");
    mesh.config(&rule("old", "2024-01-01T00:00:00Z", ", exportTo: [elsewhere]"));
    mesh.config(&rule("young", "2024-02-01T00:00:00Z", ", exportTo: ['.']"));
    assert_eq!(warned(&mut mesh, "young"), [], "nobody sees both");
}

/// A TCP service beside the course's.
fn with_database() -> Mesh {
    let mut mesh = Mesh::course();
    let ports = json!([{"name": "tcp", "port": 5432}, {"name": "tcp-more", "port": 5433}]);
    mesh.service("default", "db", "10.96.0.40", ports, json!({"app": "db"}));
    mesh.service("default", "any", "10.96.0.41", json!([{"port": 7000}]), json!({"app": "any"}));
    mesh
}

fn tcp_rules(mesh: &mut Mesh, rules: &str) -> Resources {
    mesh.config(&format!(
        "{{kind: VirtualService, metadata: {{name: db}}, spec: {{hosts: [db, any], tcp: {rules}}}}}"
    ));
    mesh.sidecar_resources("default", "web-frontend-1")
}

#[test]
fn tcp_rules_spread_connections_over_clusters() {
    let mut mesh = with_database();
    let resources = tcp_rules(
        &mut mesh,
        "[{match: [{port: 5433, sourceLabels: {app: nobody}}], route: [{destination: {host: never}}]},
          {match: [{port: 5433}], route: [{destination: {host: db, subset: v1}, weight: 30}, {destination: {host: other, port: {number: 1}}, weight: 70}, {destination: {host: none}, weight: 0}]},
          {match: [{port: 7000, sourceNamespace: default}], route: [{destination: {host: customers}}]}]",
    );
    let listener = resources.get(Listener, "10.96.0.40_5433");
    let chain = &listener["filter_chains"][0];
    let proxy = filter(chain);
    let clusters = json!([
        {"name": "outbound|5433|v1|db.default.svc.cluster.local", "weight": 30},
        {"name": "outbound|1||other.default.svc.cluster.local", "weight": 70}]);
    assert_eq!(proxy["weighted_clusters"]["clusters"], clusters);
    assert_eq!(proxy["stat_prefix"], "db.default");
    assert_eq!(
        chain["metadata"]["filter_metadata"]["istio"]["config"],
        "/apis/networking.istio.io/v1/namespaces/default/virtual-service/db"
    );
    let untouched = filter(&resources.get(Listener, "10.96.0.40_5432")["filter_chains"][0]);
    assert_eq!(untouched["cluster"], "outbound|5432||db.default.svc.cluster.local");
    // Undeclared protocol: what is no HTTP.
    let any = resources.get(Listener, "10.96.0.41_7000");
    let customers = format!("outbound|80||{CUSTOMERS}");
    assert_eq!(filter(&any["default_filter_chain"])["cluster"], json!(customers), "its only port");
    assert_eq!(any["filter_chains"].as_array().map(Vec::len), Some(1));
}

#[test]
fn tcp_rules_may_be_for_some_addresses() {
    let mut mesh = with_database();
    let resources = tcp_rules(
        &mut mesh,
        "[{match: [{port: 5432, destinationSubnets: [10.96.0.0/24]}, {destinationSubnets: [10.1.0.0/16]}], route: [{destination: {host: a}}]},
          {match: [{destinationSubnets: [10.96.0.0/24, 10.96.0.40]}], route: [{destination: {host: b}}]}]",
    );
    let listener = resources.get(Listener, "10.96.0.40_5432");
    let chains = listener["filter_chains"].as_array().expect("chains");
    let found: Vec<_> = chains
        .iter()
        .map(|chain| {
            let ranges = chain["filter_chain_match"]["prefix_ranges"].as_array().cloned().unwrap_or_default();
            let range = |one: &Value| {
                format!("{}/{}", one["address_prefix"].as_str().unwrap_or_default(), one["prefix_len"])
            };
            (ranges.iter().map(range).collect::<Vec<_>>().join(" "), filter(chain)["cluster"].clone())
        })
        .collect();
    let cluster = |host: &str| json!(format!("outbound|5432||{host}.default.svc.cluster.local"));
    assert_eq!(
        found,
        [
            ("10.96.0.0/24 10.1.0.0/16".to_owned(), cluster("a")),
            ("10.96.0.40/32".to_owned(), cluster("b")),
            (String::new(), cluster("db"))
        ],
        "no two chains ask for the same"
    );
}

#[test]
fn a_rule_for_some_workloads_is_theirs_alone() {
    let mut mesh = Mesh::course();
    mesh.config("{kind: DestinationRule, metadata: {name: special}, spec: {host: customers, workloadSelector: {matchLabels: {app: web-frontend}},
      trafficPolicy: {connectionPool: {tcp: {maxConnections: 3}}}, subsets: [{name: v9, labels: {version: v9}}]}}");
    let limit = |resources: &Resources| {
        let cluster = resources.get(Cluster, &format!("outbound|80||{CUSTOMERS}"));
        cluster["circuit_breakers"]["thresholds"][0]["max_connections"].clone()
    };
    let selected = mesh.sidecar_resources("default", "web-frontend-1");
    assert_eq!(limit(&selected), 3);
    for subset in ["v1", "v9"] {
        selected.get(Cluster, &format!("outbound|80|{subset}|{CUSTOMERS}"));
    }
    let other = mesh.sidecar_resources("default", "customers-v1-1");
    assert_eq!(limit(&other), u32::MAX);
    assert!(!other.names(Cluster).contains(&format!("outbound|80|v9|{CUSTOMERS}").as_str()));
    assert_eq!(limit(&mesh.gateway_resources()), u32::MAX);
}

#[test]
fn settings_of_a_port_inherit_nothing() {
    let mut mesh = Mesh::course();
    mesh.config("{kind: DestinationRule, metadata: {name: customers}, spec: {host: customers,
      trafficPolicy: {loadBalancer: {simple: RANDOM}, connectionPool: {tcp: {maxConnections: 7}},
        portLevelSettings: [{port: {number: 80}, connectionPool: {tcp: {maxConnections: 8}}}]},
      subsets: [{name: v1, labels: {version: v1}, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}},
                {name: v2, labels: {version: v2}, trafficPolicy: {connectionPool: {tcp: {maxConnections: 5}}, portLevelSettings: [{port: {number: 80}, loadBalancer: {simple: RANDOM}}]}}]}}");
    let resources = mesh.sidecar_resources("default", "web-frontend-1");
    let found = |subset: &str| {
        let cluster = resources.get(Cluster, &format!("outbound|80|{subset}|{CUSTOMERS}"));
        let limit = &cluster["circuit_breakers"]["thresholds"][0]["max_connections"];
        (cluster["lb_policy"].clone(), limit.clone())
    };
    assert_eq!(found(""), (json!("LEAST_REQUEST"), json!(8)), "the balancer has its default");
    assert_eq!(found("v1"), (Value::Null, json!(8)), "round robin; the rest from the rule's port");
    assert_eq!(found("v2"), (json!("RANDOM"), json!(u32::MAX)), "nothing from the subset or the rule");
}

#[test]
fn merged_destination_rules_are_told_what_is_not_in_force() {
    let mut mesh = Mesh::course();
    mesh.config("{kind: DestinationRule, metadata: {name: later, creationTimestamp: '2030-01-01T00:00:00Z'}, spec: {host: customers, trafficPolicy: {loadBalancer: {simple: RANDOM}},
      subsets: [{name: v1, labels: {version: v3}}, {name: v7, labels: {version: v7}}]}}");
    mesh.config("{kind: DestinationRule, metadata: {name: last, creationTimestamp: '2031-01-01T00:00:00Z'}, spec: {host: customers, trafficPolicy: {loadBalancer: {simple: RANDOM}}}}");
    let world = mesh.world();
    let said = |name: &str| {
        let rule = world.destination_rules().find(|rule| &*rule.name.name == name).expect("exists");
        check_destination_rule(rule, &world).into_iter().map(|warning| warning.message).collect::<Vec<_>>()
    };
    assert_eq!(
        said("later"),
        [
            "spec.subsets[0]: Duplicate subset v1 found while merging destination rules for customers: that of default/customers is in force"
        ]
    );
    assert_eq!(
        said("last"),
        [
            "spec.trafficPolicy: the traffic policy of default/later, which is older, is in force for customers"
        ]
    );
}

#[test]
fn an_ingress_is_served_by_the_ingress_gateway() {
    let mut mesh = Mesh::course();
    mesh.config("{kind: Ingress, metadata: {name: web, annotations: {kubernetes.io/ingress.class: istio}}, spec: {defaultBackend: {service: {name: web-frontend, port: {number: 80}}}, rules: [
      {host: shop.example.com, http: {paths: [
        {path: /, pathType: Prefix, backend: {service: {name: web-frontend, port: {number: 80}}}},
        {path: /customers/, pathType: Prefix, backend: {service: {name: customers, port: {number: 80}}}},
        {path: /exact, pathType: Exact, backend: {service: {name: customers, port: {number: 80}}}}]}}]}}");
    let resources = mesh.gateway_resources();
    let host = virtual_host(resources.get(Route, "http.8080"), "shop.example.com:80");
    let routes = host["routes"].as_array().expect("routes");
    let customers = json!(format!("outbound|80||{CUSTOMERS}"));
    assert_eq!(routes[0]["match"]["path_separated_prefix"], "/customers");
    assert_eq!(routes[1]["match"]["path"], "/exact");
    assert_eq!(routes[2]["match"]["prefix"], "/");
    assert_eq!((&routes[0]["route"]["cluster"], &routes[1]["route"]["cluster"]), (&customers, &customers));
    virtual_host(resources.get(Route, "http.8080"), "*:80");
    mesh.config("{kind: Ingress, metadata: {name: web, annotations: {kubernetes.io/ingress.class: other}}, spec: {rules: [{host: shop.example.com}]}}");
    let resources = mesh.gateway_resources();
    assert!(!resources.get(Route, "http.8080").to_string().contains("shop.example.com"));
}

#[test]
fn sidecars_and_gateways_for_the_same_are_told() {
    let mut mesh = Mesh::course();
    let sidecar = |name: &str, created: u32, selector: &str| {
        format!(
            "{{kind: Sidecar, metadata: {{name: {name}, creationTimestamp: '2026-01-0{created}T00:00:00Z'}},
              spec: {{{selector}egress: [{{hosts: ['./*']}}]}}}}"
        )
    };
    mesh.config(&sidecar("alone", 1, "workloadSelector: {labels: {app: web-frontend}}, "));
    mesh.config(&sidecar("new", 3, "workloadSelector: {labels: {app: customers}}, "));
    mesh.config(&sidecar("old", 2, "workloadSelector: {labels: {version: v2}}, "));
    mesh.config(&sidecar("b", 2, ""));
    mesh.config(&sidecar("a", 3, ""));
    let gateway = |name: &str, port: u16, hosts: &str| {
        format!(
            "{{kind: Gateway, metadata: {{name: {name}}}, spec: {{selector: {{istio: ingressgateway}}, servers: [
              {{port: {{number: {port}, name: http, protocol: HTTP}}, hosts: {hosts}}}]}}}}"
        )
    };
    mesh.config(&gateway("one", 8080, "[a.example, b.example]"));
    mesh.config(&gateway("two", 8080, "['*.example']"));
    mesh.config(&gateway("three", 8080, "[c.test]"));
    mesh.config(&gateway("four", 8081, "[a.example]"));
    let world = mesh.world();
    let told = |warnings: Vec<Warning>| -> Vec<String> {
        warnings.into_iter().map(|one| format!("{} {}", one.code.unwrap_or_default(), one.message)).collect()
    };
    let of_sidecar = |name: &str| {
        let sidecar = world.sidecars().find(|one| &*one.name.name == name).expect("a Sidecar");
        told(check_sidecar(sidecar, &world))
    };
    assert!(of_sidecar("alone").is_empty());
    let both = "IST0110 The Sidecars [old new] in namespace \"default\" select the same workload pod \"customers-v2-1\", which can lead to undefined behavior. The oldest, old, is in force";
    assert_eq!(of_sidecar("old"), [both]);
    assert_eq!(of_sidecar("new"), [both]);
    let general = "IST0111 The Sidecars [b a] in namespace \"default\" have no workload selector, which can lead to undefined behavior. The oldest, b, is in force";
    assert_eq!((of_sidecar("a"), of_sidecar("b")), (vec![general.to_owned()], vec![general.to_owned()]));
    let of_gateway = |name: &str| {
        let gateway = world.gateways().find(|one| &*one.name.name == name).expect("a Gateway");
        told(check_gateway(gateway, &world))
    };
    assert_eq!(
        of_gateway("one"),
        [
            "IST0145 Conflict with gateways default/two (workload selector istio=ingressgateway, port 8080, hosts a.example,b.example)."
        ]
    );
    assert_eq!(
        of_gateway("two"),
        [
            "IST0145 Conflict with gateways default/one (workload selector istio=ingressgateway, port 8080, hosts *.example)."
        ]
    );
    assert!(of_gateway("three").is_empty() && of_gateway("four").is_empty());
}
