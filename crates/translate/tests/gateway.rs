//! What gateways get.
mod support;

use lateen_translate::ResourceType::{Cluster, Listener, Route};
use serde_json::json;
use support::{Mesh, filter, virtual_host};

#[test]
fn the_courses_gateway_listens_on_the_pods_port() {
    let mut mesh = Mesh::course();
    let resources = mesh.gateway_resources();
    assert_eq!(resources.names(Listener), ["0.0.0.0_8080"]);
    let listener = resources.get(Listener, "0.0.0.0_8080");
    assert!(listener.get("bind_to_port").is_none());
    let manager = filter(&listener["filter_chains"][0]);
    assert_eq!(manager["rds"]["route_config_name"], "http.8080");
    assert_eq!(manager["use_remote_address"], true);
    assert_eq!(manager["server_name"], "istio-envoy");
    assert_eq!(resources.names(Route), ["http.8080"]);
    let host = virtual_host(resources.get(Route, "http.8080"), "*:80");
    assert_eq!(host["domains"], json!(["*"]));
    assert_eq!(host["routes"][0]["route"]["cluster"], "outbound|80||web-frontend.default.svc.cluster.local");
    let names = resources.names(Cluster);
    assert!(names.contains(&"BlackHoleCluster") && !names.contains(&"PassthroughCluster"), "{names:?}");
    assert!(names.contains(&"outbound|80|v2|customers.default.svc.cluster.local"));
}

#[test]
fn a_gateway_without_virtual_services_answers_404() {
    let mut mesh = Mesh::empty();
    mesh.course_file("lab3/istio-gateway.yaml");
    mesh.pod("istio-system", "istio-ingressgateway-1", "10.244.0.9", json!({"istio": "ingressgateway"}));
    let resources = mesh.gateway_resources();
    assert_eq!(resources.names(Listener), ["0.0.0.0_80"], "no service maps the port");
    let host = virtual_host(resources.get(Route, "http.80"), "blackhole:80");
    assert!(host.get("routes").is_none());
}

#[test]
fn a_gateway_nothing_selects_has_no_listeners() {
    let mut mesh = Mesh::course();
    mesh.pod("istio-system", "istio-ingressgateway-1", "10.244.0.9", json!({"istio": "egressgateway"}));
    assert!(mesh.gateway_resources().names(Listener).is_empty());
}

/// <https://istio.io/latest/docs/reference/config/networking/gateway/#Server>: hosts, and who may use them.
#[test]
fn hosts_are_those_of_both_sides() {
    let domains = |server_host: &str, namespace: &str, host: &str| {
        let mut mesh = Mesh::empty();
        mesh.pod("istio-system", "istio-ingressgateway-1", "10.244.0.9", json!({"istio": "ingressgateway"}));
        mesh.config(&format!("{{kind: Gateway, metadata: {{name: gw}}, spec: {{selector: {{istio: ingressgateway}}, servers: [{{port: {{number: 80, name: http, protocol: HTTP}}, hosts: ['{server_host}']}}]}}}}"));
        mesh.config(&format!("{{kind: VirtualService, metadata: {{name: vs, namespace: {namespace}}}, spec: {{hosts: ['{host}'], gateways: [default/gw], http: [{{directResponse: {{status: 200}}}}]}}}}"));
        let resources = mesh.gateway_resources();
        let hosts = resources.get(Route, "http.80")["virtual_hosts"].as_array().cloned().unwrap_or_default();
        hosts
            .iter()
            .filter(|host| host.get("routes").is_some())
            .map(|host| host["domains"][0].as_str().unwrap_or_default().to_owned())
            .collect::<Vec<_>>()
    };
    for (server_host, namespace, host, expected) in [
        ("*", "default", "*", &["*"][..]),
        ("*", "default", "a.com", &["a.com"]),
        ("a.com", "default", "*", &["a.com"]),
        ("*.a.com", "default", "x.a.com", &["x.a.com"]),
        ("*.a.com", "default", "a.com", &[]),
        ("*.a.com", "default", "*.com", &["*.a.com"]),
        ("a.com", "default", "b.com", &[]),
        ("./*", "default", "a.com", &["a.com"]),
        ("./*", "shop", "a.com", &[]),
        ("shop/*", "shop", "a.com", &["a.com"]),
        ("shop/*", "default", "a.com", &[]),
        ("*/a.com", "shop", "a.com", &["a.com"]),
    ] {
        assert_eq!(domains(server_host, namespace, host), expected, "{server_host} {namespace} {host}");
    }
}

#[test]
fn virtual_services_of_one_host_are_merged_with_catch_alls_last() {
    let mut mesh = Mesh::course();
    mesh.config("{kind: VirtualService, metadata: {name: zz}, spec: {hosts: ['*'], gateways: [gateway], http: [{match: [{uri: {prefix: /z}}], directResponse: {status: 204}}]}}");
    let resources = mesh.gateway_resources();
    let routes = &virtual_host(resources.get(Route, "http.8080"), "*:80")["routes"];
    assert_eq!(routes[0]["match"]["prefix"], "/z");
    assert_eq!(routes[1]["match"]["prefix"], "/");
    assert_eq!(routes.as_array().map(Vec::len), Some(2));
}

#[test]
fn https_redirect_needs_no_virtual_service() {
    let mut mesh = Mesh::course();
    mesh.config("{kind: Gateway, metadata: {name: gateway}, spec: {selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [a.com], tls: {httpsRedirect: true}}]}}");
    let resources = mesh.gateway_resources();
    assert_eq!(virtual_host(resources.get(Route, "http.8080"), "a.com:80")["require_tls"], "ALL");
}

#[test]
fn rules_of_other_gateways_take_no_host_away() {
    let mut mesh = Mesh::empty();
    mesh.pod("istio-system", "istio-ingressgateway-1", "10.244.0.9", json!({"istio": "ingressgateway"}));
    for (name, selected) in [("one", "ingressgateway"), ("two", "other")] {
        mesh.config(&format!("{{kind: Gateway, metadata: {{name: {name}}}, spec: {{selector: {{istio: {selected}}}, servers: [{{port: {{number: 80, name: http, protocol: HTTP}}, hosts: ['*']}}]}}}}"));
    }
    mesh.config("{kind: VirtualService, metadata: {name: a}, spec: {hosts: [a.com], gateways: [one, two], http: [{match: [{gateways: [two]}], directResponse: {status: 201}}]}}");
    mesh.config("{kind: VirtualService, metadata: {name: any}, spec: {hosts: ['*'], gateways: [one], http: [{directResponse: {status: 202}}]}}");
    let resources = mesh.gateway_resources();
    let hosts = resources.get(Route, "http.80")["virtual_hosts"].as_array().cloned().unwrap_or_default();
    let domains: Vec<_> = hosts.iter().map(|host| host["domains"][0].clone()).collect();
    assert_eq!(domains, ["*"], "a.com has no rule here: everybody's rule is its too");
}

#[test]
fn gateways_listen_at_unix_sockets() {
    let mut mesh = Mesh::course();
    mesh.config("{kind: Gateway, metadata: {name: local}, spec: {selector: {istio: ingressgateway}, servers: [
        {port: {number: 0, name: http, protocol: HTTP}, bind: 'unix:///run/web.sock', hosts: [local.example]},
        {port: {number: 0, name: https, protocol: HTTPS}, bind: 'unix:///run/tls.sock', hosts: [tls.example], tls: {mode: SIMPLE, credentialName: web}},
        {port: {number: 0, name: tcp, protocol: TCP}, bind: 'unix://@bytes', hosts: ['*']}]}}");
    mesh.config("{kind: VirtualService, metadata: {name: local}, spec: {hosts: ['*'], gateways: [local],
        http: [{route: [{destination: {host: customers, port: {number: 80}}}]}], tcp: [{route: [{destination: {host: customers, port: {number: 80}}}]}]}}");
    let resources = mesh.gateway_resources();
    let pipe = |name: &str| resources.get(Listener, name)["address"].clone();
    assert_eq!(pipe("unix:///run/web.sock_0"), json!({"pipe": {"path": "/run/web.sock"}}));
    assert_eq!(pipe("unix:///run/tls.sock_0"), json!({"pipe": {"path": "/run/tls.sock"}}));
    assert_eq!(pipe("unix://@bytes_0"), json!({"pipe": {"path": "@bytes"}}));
    let manager = filter(&resources.get(Listener, "unix:///run/web.sock_0")["filter_chains"][0]).clone();
    assert_eq!(manager["rds"]["route_config_name"], "http.0.unix:///run/web.sock");
    let host = virtual_host(resources.get(Route, "http.0.unix:///run/web.sock"), "local.example:0").clone();
    assert!(host.to_string().contains("outbound|80||customers"), "{host}");
    let tls = resources.get(Listener, "unix:///run/tls.sock_0");
    assert!(tls.to_string().contains("https.0.https.local.default"), "{tls}");
    let bytes = resources.get(Listener, "unix://@bytes_0").to_string();
    assert!(bytes.contains("outbound|80||customers"), "{bytes}");
    let world = mesh.world();
    let gateway = world.gateways().find(|gateway| &*gateway.name.name == "local").expect("it").clone();
    assert!(
        lateen_translate::check_gateway(&gateway, &world)
            .iter()
            .all(|warning| !warning.path.contains("bind"))
    );
}
