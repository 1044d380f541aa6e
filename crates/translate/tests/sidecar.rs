//! What sidecars get.
mod support;

use lateen_translate::ResourceType::{Cluster, Endpoint, Listener, Route};
use serde_json::{Value, json};
use support::{Mesh, filter, virtual_host};

#[test]
fn the_courses_walk_from_listener_to_endpoint() {
    let mut mesh = Mesh::course();
    let resources = mesh.sidecar_resources("default", "web-frontend-1");

    let listener = resources.get(Listener, "0.0.0.0_80");
    assert_eq!(listener["bind_to_port"], false);
    let rds = &filter(&listener["filter_chains"][0])["rds"];
    assert_eq!(rds["route_config_name"], "80");
    assert_eq!(rds["config_source"]["resource_api_version"], "V3");
    assert!(rds["config_source"]["ads"].is_object());

    let host = virtual_host(resources.get(Route, "80"), "customers.default.svc.cluster.local:80");
    let domains = json!([
        "customers.default.svc.cluster.local",
        "customers.default.svc.cluster.local.",
        "customers",
        "customers.default.svc",
        "customers.default",
        "10.96.0.30"
    ]);
    assert_eq!(host["domains"], domains);
    let route = &host["routes"][0];
    assert_eq!(route["match"], json!({"prefix": "/"}));
    assert_eq!(route["route"]["cluster"], "outbound|80|v1|customers.default.svc.cluster.local");
    assert_eq!(
        route["metadata"]["filter_metadata"]["istio"]["config"],
        "/apis/networking.istio.io/v1/namespaces/default/virtual-service/customers"
    );

    let cluster = resources.get(Cluster, "outbound|80|v1|customers.default.svc.cluster.local");
    assert_eq!(cluster["type"], "EDS");
    assert_eq!(cluster["lb_policy"], "LEAST_REQUEST");
    let istio = &cluster["metadata"]["filter_metadata"]["istio"];
    assert_eq!(istio["config"], "/apis/networking.istio.io/v1/namespaces/default/destination-rule/customers");
    assert_eq!(istio["subset"], "v1");
    assert_eq!(istio["services"][0]["host"], "customers.default.svc.cluster.local");

    let endpoints = resources.get(Endpoint, "outbound|80|v1|customers.default.svc.cluster.local");
    assert_eq!(addresses(endpoints), ["10.244.0.31:3000"]);
    let all = resources.get(Endpoint, "outbound|80||customers.default.svc.cluster.local");
    assert_eq!(addresses(all), ["10.244.0.31:3000", "10.244.0.32:3000"]);
}

fn addresses(assignment: &Value) -> Vec<String> {
    let localities = assignment["endpoints"].as_array().cloned().unwrap_or_default();
    localities
        .iter()
        .flat_map(|locality| locality["lb_endpoints"].as_array().cloned().unwrap_or_default())
        .map(|endpoint| {
            let address = &endpoint["endpoint"]["address"]["socket_address"];
            format!("{}:{}", address["address"].as_str().unwrap_or_default(), address["port_value"])
        })
        .collect()
}

#[test]
fn ports_of_undeclared_protocol_have_routes_of_their_own_and_keep_their_tcp_cluster() {
    let mut mesh = Mesh::course();
    let resources = mesh.sidecar_resources("default", "web-frontend-1");
    for (name, routes, bytes) in [
        ("0.0.0.0_80", "80", "PassthroughCluster"),
        (
            "10.96.0.20_80",
            "web-frontend.default.svc.cluster.local:80",
            "outbound|80||web-frontend.default.svc.cluster.local",
        ),
        (
            "10.96.0.30_80",
            "customers.default.svc.cluster.local:80",
            "outbound|80||customers.default.svc.cluster.local",
        ),
    ] {
        let listener = resources.get(Listener, name);
        let http = &listener["filter_chains"][0];
        assert_eq!(
            http["filter_chain_match"],
            json!({"application_protocols": ["http/1.1", "h2c"], "transport_protocol": "raw_buffer"}),
            "{name}"
        );
        assert_eq!(filter(http)["rds"]["route_config_name"], routes, "{name}");
        assert_eq!(filter(&listener["default_filter_chain"])["cluster"], bytes, "{name}");
        assert_eq!(
            listener["listener_filters"][0]["name"], "envoy.filters.listener.http_inspector",
            "{name}"
        );
        assert_eq!(listener["listener_filters_timeout"], "0s", "{name}: the client may take its time");
    }
    // Whoever connects to the service's address means the service, whatever host it names.
    let own = resources.get(Route, "customers.default.svc.cluster.local:80");
    let hosts = own["virtual_hosts"].as_array().expect("virtual hosts");
    assert_eq!(hosts.len(), 1, "no catch-all: {own}");
    assert_eq!(
        (&hosts[0]["name"], &hosts[0]["domains"]),
        (&json!("customers.default.svc.cluster.local:80"), &json!(["*"]))
    );
    assert_eq!(
        hosts[0]["routes"][0]["route"]["cluster"],
        "outbound|80|v1|customers.default.svc.cluster.local"
    );
    let declared = resources.get(Listener, "10.96.0.1_443");
    assert!(declared.get("listener_filters").is_none(), "the server may speak first");
}

#[test]
fn other_services_have_listeners_of_their_own_and_the_rest_passes_through() {
    let mut mesh = Mesh::course();
    let resources = mesh.sidecar_resources("default", "web-frontend-1");
    let names = resources.names(Listener);
    assert_eq!(
        names,
        [
            "0.0.0.0_80",
            "10.96.0.1_443",
            "10.96.0.20_80",
            "10.96.0.30_80",
            "10.96.0.9_15021",
            "10.96.0.9_443",
            "virtualInbound",
            "virtualOutbound"
        ]
    );
    let tls = resources.get(Listener, "10.96.0.1_443");
    assert_eq!(
        filter(&tls["filter_chains"][0])["cluster"],
        "outbound|443||kubernetes.default.svc.cluster.local"
    );
    let outbound = resources.get(Listener, "virtualOutbound");
    assert_eq!(outbound["use_original_dst"], true);
    assert_eq!(outbound["filter_chains"][0]["filter_chain_match"]["destination_port"], 15001);
    assert_eq!(filter(&outbound["filter_chains"][0])["cluster"], "BlackHoleCluster");
    assert_eq!(filter(&outbound["filter_chains"][1])["cluster"], "PassthroughCluster");
    let any = virtual_host(resources.get(Route, "80"), "allow_any");
    assert_eq!(any["routes"][0]["route"]["cluster"], "PassthroughCluster");

    mesh.mesh_config("outboundTrafficPolicy: {mode: REGISTRY_ONLY}");
    let resources = mesh.sidecar_resources("default", "web-frontend-1");
    let outbound = resources.get(Listener, "virtualOutbound");
    assert_eq!(filter(&outbound["filter_chains"][1])["cluster"], "BlackHoleCluster");
    let blocked = virtual_host(resources.get(Route, "80"), "block_all");
    assert_eq!(blocked["routes"][0]["direct_response"]["status"], 502);
}

/// Without mutual TLS, which tests/mutual_tls.rs is about.
const PLAIN_TEXT: &str = "{kind: PeerAuthentication, metadata: {name: plain, namespace: istio-system}, spec: {mtls: {mode: DISABLE}}}";

#[test]
fn inbound_has_a_chain_per_port_of_the_workload() {
    let mut mesh = Mesh::course();
    mesh.config(PLAIN_TEXT);
    let resources = mesh.sidecar_resources("default", "customers-v1-1");
    let inbound = resources.get(Listener, "virtualInbound");
    let chains = inbound["filter_chains"].as_array().expect("chains");
    let names: Vec<_> = chains.iter().map(|chain| chain["name"].as_str().unwrap_or_default()).collect();
    assert_eq!(names, ["virtualInbound-blackhole", "0.0.0.0_3000", "0.0.0.0_3000", "virtualInbound"]);
    let manager = filter(&chains[1]);
    assert_eq!(
        manager["route_config"]["virtual_hosts"][0]["routes"][0]["route"]["cluster"],
        "inbound|3000||"
    );
    assert_eq!(manager["server_name"], "istio-envoy");
    let inspector = &inbound["listener_filters"][1];
    let range = &inspector["filter_disabled"]["not_match"]["destination_port_range"];
    assert_eq!((&range["start"], &range["end"]), (&json!(3000), &json!(3001)));

    for name in ["inbound|3000||", "InboundPassthroughCluster"] {
        let cluster = resources.get(Cluster, name);
        assert_eq!(cluster["type"], "ORIGINAL_DST", "{name}");
        let bind = &cluster["upstream_bind_config"];
        assert_eq!(bind["source_address"]["address"], "127.0.0.6");
        // None that would need a capability, as `SO_MARK` does.
        assert!(bind["socket_options"].as_array().is_none_or(Vec::is_empty), "{bind}");
    }

    let web = mesh.sidecar_resources("default", "web-frontend-1");
    let chains = web.get(Listener, "virtualInbound")["filter_chains"].as_array().cloned().expect("chains");
    assert_eq!(chains[1]["filter_chain_match"]["destination_port"], 8080);
}

#[test]
fn http_ports_by_name_need_no_detection_inbound_and_speak_http2_upstream() {
    let mut mesh = Mesh::empty();
    mesh.config(PLAIN_TEXT);
    mesh.service(
        "default",
        "api",
        "10.96.0.5",
        json!([{"name": "grpc-api", "port": 9000}]),
        json!({"app": "api"}),
    );
    mesh.pod("default", "api-1", "10.244.0.5", json!({"app": "api"}));
    let resources = mesh.sidecar_resources("default", "api-1");
    let cluster = resources.get(Cluster, "outbound|9000||api.default.svc.cluster.local");
    let options = &cluster["typed_extension_protocol_options"]["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"];
    assert!(options["explicit_http_config"]["http2_protocol_options"].is_object(), "{cluster}");
    let inbound = resources.get(Listener, "virtualInbound");
    assert_eq!(inbound["listener_filters"].as_array().map(Vec::len), Some(1), "original_dst only");
    assert!(inbound["filter_chains"][1]["filter_chain_match"].get("application_protocols").is_none());
}

#[test]
fn short_names_are_those_of_the_proxys_namespace() {
    let mut mesh = Mesh::course();
    mesh.pod("shop", "client", "10.244.0.77", json!({"app": "client"}));
    let resources = mesh.sidecar_resources("shop", "client");
    let host = virtual_host(resources.get(Route, "80"), "customers.default.svc.cluster.local:80");
    let domains = host["domains"].as_array().expect("domains");
    assert!(!domains.contains(&json!("customers")), "{domains:?}");
    assert!(domains.contains(&json!("customers.default")));
}

#[test]
fn not_ready_endpoints_get_no_traffic_and_empty_clusters_do_not_wait() {
    let mut mesh = Mesh::course();
    mesh.endpoints(
        "default",
        "customers",
        "",
        3000,
        &[("customers-v1-1", "10.244.0.31", false), ("customers-v2-1", "10.244.0.32", true)],
    );
    let resources = mesh.sidecar_resources("default", "web-frontend-1");
    let v1 = resources.get(Endpoint, "outbound|80|v1|customers.default.svc.cluster.local");
    assert!(v1.get("endpoints").is_none(), "{v1}");
    let all = resources.get(Endpoint, "outbound|80||customers.default.svc.cluster.local");
    assert_eq!(addresses(all), ["10.244.0.32:3000"]);
}

#[test]
fn headless_services_keep_the_address_the_caller_chose() {
    let mut mesh = Mesh::empty();
    mesh.service("default", "db", "None", json!([{"name": "http", "port": 8000}]), json!({"app": "db"}));
    mesh.pod("default", "db-0", "10.244.0.5", json!({"app": "db"}));
    let resources = mesh.sidecar_resources("default", "db-0");
    assert_eq!(resources.get(Cluster, "outbound|8000||db.default.svc.cluster.local")["type"], "ORIGINAL_DST");
    assert!(resources.names(Endpoint).is_empty());
    let host = virtual_host(resources.get(Route, "8000"), "db.default.svc.cluster.local:8000");
    assert!(
        host["domains"]
            .as_array()
            .is_some_and(|domains| domains.contains(&json!("*.db.default.svc.cluster.local")))
    );
    let gateway = mesh.scope("router~10.0.0.9~gw.default~default.svc.cluster.local");
    let resources = mesh.resources(&gateway);
    assert_eq!(resources.get(Cluster, "outbound|8000||db.default.svc.cluster.local")["type"], "EDS");
}

#[test]
fn undeclared_ports_make_nothing_else_wait_for_its_first_bytes() {
    let mut mesh = Mesh::empty();
    mesh.service("default", "any", "10.96.0.5", json!([{"port": 5000}]), json!({"app": "any"}));
    mesh.pod("default", "any-1", "10.244.0.5", json!({"app": "any"}));
    let resources = mesh.sidecar_resources("default", "any-1");
    let names = ["10.96.0.5_5000", "virtualInbound", "virtualOutbound"];
    assert_eq!(resources.names(Listener), names, "other addresses on port 5000 pass through");
    assert_eq!(resources.names(Route), ["any.default.svc.cluster.local:5000"]);
}

#[test]
fn pods_of_headless_services_have_listeners_for_what_is_not_http() {
    let mut mesh = Mesh::empty();
    mesh.mesh_config("outboundTrafficPolicy: {mode: REGISTRY_ONLY}");
    let ports =
        json!([{"name": "tcp-db", "port": 5432}, {"name": "any", "port": 81}, {"name": "http", "port": 80}]);
    mesh.service("default", "db", "None", ports, json!({"app": "db"}));
    mesh.pod("default", "db-0", "10.244.0.5", json!({"app": "db"}));
    mesh.pod("default", "client", "10.244.0.9", json!({}));
    mesh.endpoints(
        "default",
        "db",
        "tcp-db",
        5432,
        &[("db-0", "10.244.0.5", true), ("db-1", "10.244.0.6", false)],
    );
    let resources = mesh.sidecar_resources("default", "client");
    let names = ["0.0.0.0_80", "10.244.0.5_5432", "10.244.0.6_5432", "virtualInbound", "virtualOutbound"];
    assert_eq!(resources.names(Listener), names);
    let cluster = "outbound|5432||db.default.svc.cluster.local";
    let listener = resources.get(Listener, "10.244.0.6_5432");
    assert_eq!(filter(&listener["filter_chains"][0])["cluster"], cluster);
    assert_eq!(resources.get(Cluster, cluster)["type"], "ORIGINAL_DST", "the member the caller chose");

    mesh.endpoints("default", "db", "any", 81, &[("db-0", "10.244.0.5", true)]);
    let resources = mesh.sidecar_resources("default", "client");
    let rds = &filter(&resources.get(Listener, "10.244.0.5_81")["filter_chains"][0])["rds"];
    assert_eq!(rds["route_config_name"], "db.default.svc.cluster.local:81");
}

#[test]
fn udp_ports_are_none_of_the_meshs_business() {
    let mut mesh = Mesh::empty();
    let ports = json!([{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]);
    mesh.service("default", "dns", "10.96.0.10", ports, json!({"app": "dns"}));
    mesh.endpoints("default", "dns", "dns-tcp", 5353, &[("dns-1", "10.244.0.8", true)]);
    let resources = mesh.sidecar_resources("default", "client");
    assert_eq!(resources.names(Listener), ["10.96.0.10_53", "virtualInbound", "virtualOutbound"]);
    let listener = resources.get(Listener, "10.96.0.10_53");
    assert!(listener.get("listener_filters").is_none(), "a well-known port of servers that speak first");
    let endpoints = resources.get(Endpoint, "outbound|53||dns.default.svc.cluster.local");
    assert_eq!(addresses(endpoints), ["10.244.0.8:5353"], "those of the TCP port");
}

#[test]
fn one_port_may_be_http_for_some_services_and_bytes_for_others() {
    let mut mesh = Mesh::empty();
    mesh.service(
        "default",
        "web",
        "10.96.0.1",
        json!([{"name": "http", "port": 9000}]),
        json!({"app": "web"}),
    );
    mesh.service("default", "db", "10.96.0.2", json!([{"name": "tcp", "port": 9000}]), json!({"app": "db"}));
    mesh.service(
        "default",
        "any",
        "10.96.0.3",
        json!([{"name": "any", "port": 9000}]),
        json!({"app": "any"}),
    );
    let resources = mesh.sidecar_resources("default", "client");
    let names = ["0.0.0.0_9000", "10.96.0.2_9000", "10.96.0.3_9000", "virtualInbound", "virtualOutbound"];
    assert_eq!(resources.names(Listener), names);
    let shared = resources.get(Route, "9000");
    virtual_host(shared, "web.default.svc.cluster.local:9000");
    virtual_host(shared, "any.default.svc.cluster.local:9000");
    let hosts = shared["virtual_hosts"].as_array().expect("virtual hosts");
    assert!(!hosts.iter().any(|host| host["name"].as_str().is_some_and(|name| name.starts_with("db."))));
}

#[test]
fn the_oldest_service_says_what_a_port_of_the_workload_speaks() {
    for (http, tcp, chains) in [
        ("2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z", 1),
        ("2025-01-01T00:00:00Z", "2024-01-01T00:00:00Z", 0),
    ] {
        let mut mesh = Mesh::empty();
        mesh.config(PLAIN_TEXT);
        for (name, ip, created, port) in [("b", "10.96.0.1", http, "http"), ("a", "10.96.0.2", tcp, "tcp")] {
            mesh.service_of(json!({"metadata": {"namespace": "default", "name": name, "creationTimestamp": created},
                "spec": {"clusterIP": ip, "ports": [{"name": port, "port": 8080}], "selector": {"app": "x"}}}));
        }
        mesh.pod("default", "x-1", "10.244.0.5", json!({"app": "x"}));
        let resources = mesh.sidecar_resources("default", "x-1");
        let inbound = resources.get(Listener, "virtualInbound").to_string();
        assert_eq!(inbound.matches("\"inbound_0.0.0.0_8080;\"").count(), chains, "{inbound}");
    }
}

#[test]
fn aliases_are_other_names_of_the_service_they_mean() {
    let mut mesh = Mesh::course();
    mesh.service_of(json!({"metadata": {"namespace": "default", "name": "clients"},
        "spec": {"type": "ExternalName", "externalName": "Customers.default.svc.cluster.local."}}));
    mesh.service_of(json!({"metadata": {"namespace": "shop", "name": "people"},
        "spec": {"type": "ExternalName", "externalName": "clients.default.svc.cluster.local"}}));
    for (name, target) in [("away", "example.com"), ("self", "self.default.svc.cluster.local")] {
        mesh.service_of(json!({"metadata": {"namespace": "default", "name": name},
            "spec": {"type": "ExternalName", "externalName": target}}));
    }
    let resources = mesh.sidecar_resources("default", "web-frontend-1");
    let host = virtual_host(resources.get(Route, "80"), "customers.default.svc.cluster.local:80");
    let domains = host["domains"].as_array().expect("domains");
    for domain in ["clients", "clients.default", "clients.default.svc.cluster.local", "people.shop"] {
        assert!(domains.contains(&json!(domain)), "{domain}: {domains:?}");
    }
    assert!(!domains.contains(&json!("people")), "short names are those of the proxy's own namespace");
    let names = resources.names(Cluster);
    assert!(!names.iter().any(|name| name.contains("clients") || name.contains("away")), "{names:?}");
    // Who sends to an alias means the service behind it, as far as the mesh knows it.
    mesh.config("{kind: VirtualService, metadata: {name: other}, spec: {hosts: [other.example.com], http: [{route: [{destination: {host: people.shop.svc.cluster.local}}]}], tcp: [{match: [{port: 80}], route: [{destination: {host: clients}}]}]}}");
    let resources = mesh.sidecar_resources("default", "web-frontend-1");
    let host = virtual_host(resources.get(Route, "80"), "other.example.com:80");
    assert_eq!(host["routes"][0]["route"]["cluster"], "outbound|80||customers.default.svc.cluster.local");
    assert!(!resources.names(Cluster).iter().any(|name| name.contains("people")));
    mesh.config(
        "{kind: Sidecar, metadata: {name: default}, spec: {egress: [{hosts: ['./other.example.com']}]}}",
    );
    let resources = mesh.sidecar_resources("default", "web-frontend-1");
    assert!(resources.names(Cluster).contains(&"outbound|80||customers.default.svc.cluster.local"));
}

#[test]
fn access_logs_follow_mesh_config() {
    let mut mesh = Mesh::course();
    let none = mesh.sidecar_resources("default", "web-frontend-1");
    assert!(filter(&none.get(Listener, "0.0.0.0_80")["filter_chains"][0]).get("access_log").is_none());
    mesh.mesh_config("accessLogFile: /dev/stdout");
    let text = mesh.sidecar_resources("default", "web-frontend-1");
    let log = &filter(&text.get(Listener, "0.0.0.0_80")["filter_chains"][0])["access_log"][0];
    assert_eq!(log["typed_config"]["path"], "/dev/stdout");
    let format =
        log["typed_config"]["log_format"]["text_format_source"]["inline_string"].as_str().expect("text");
    assert!(format.contains("%RESPONSE_FLAGS%") && format.ends_with('\n'), "{format}");
    let of_listener = &text.get(Listener, "virtualOutbound")["access_log"][0];
    assert_eq!(of_listener["filter"]["response_flag_filter"]["flags"], json!(["NR"]));
    mesh.mesh_config("{accessLogFile: /dev/stdout, accessLogEncoding: JSON}");
    let json = mesh.sidecar_resources("default", "web-frontend-1");
    let log = &filter(&json.get(Listener, "0.0.0.0_80")["filter_chains"][0])["access_log"][0];
    assert_eq!(log["typed_config"]["log_format"]["json_format"]["response_flags"], "%RESPONSE_FLAGS%");
}

#[test]
fn connections_follow_mesh_config_where_rules_say_nothing() {
    let mut mesh = Mesh::course();
    mesh.mesh_config(
        "connectTimeout: 3s\ntcpKeepalive: { probes: 5, time: 60s, interval: 10s }\nh2UpgradePolicy: UPGRADE",
    );
    mesh.service(
        "default",
        "other",
        "10.96.0.77",
        json!([{"name": "http", "port": 80}, {"name": "tcp", "port": 81}, {"port": 82}]),
        json!({}),
    );
    let keepalive = json!({"keepalive_probes": 5, "keepalive_time": 60, "keepalive_interval": 10});
    let http2 = |cluster: &serde_json::Value| {
        let options = &cluster["typed_extension_protocol_options"]["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"];
        options["explicit_http_config"]["http2_protocol_options"].is_object()
    };
    let outbound = |port: u16| format!("outbound|{port}||other.default.svc.cluster.local");
    let found = mesh.sidecar_resources("default", "web-frontend-1");
    let cluster = |name: &str| found.get(Cluster, name);
    for name in
        [&*outbound(80), &outbound(81), "PassthroughCluster", "InboundPassthroughCluster", "inbound|8080||"]
    {
        assert_eq!(cluster(name)["connect_timeout"], "3s", "{name}");
        assert_eq!(cluster(name)["upstream_connection_options"]["tcp_keepalive"], keepalive, "{name}");
    }
    assert!(cluster("BlackHoleCluster")["upstream_connection_options"].is_null());
    let upgraded =
        [&*outbound(80), &outbound(81), &outbound(82), "inbound|8080||"].map(|name| http2(cluster(name)));
    assert_eq!(upgraded, [true, false, false, false], "declared HTTP, to others");

    // A rule's settings go before, one by one; its upgrade reaches ports whose protocol is detected.
    mesh.config(
        "{kind: DestinationRule, metadata: {name: other}, spec: {host: other, trafficPolicy: {portLevelSettings: [
          {port: {number: 80}, connectionPool: {tcp: {connectTimeout: 1s, tcpKeepalive: {time: 7s}}, http: {h2UpgradePolicy: DO_NOT_UPGRADE}}},
          {port: {number: 82}, connectionPool: {http: {h2UpgradePolicy: UPGRADE}}}]}}}",
    );
    let found = mesh.sidecar_resources("default", "web-frontend-1");
    let cluster = |port: u16| found.get(Cluster, &outbound(port));
    let own = json!({"keepalive_probes": 5, "keepalive_time": 7, "keepalive_interval": 10});
    assert_eq!(cluster(80)["upstream_connection_options"]["tcp_keepalive"], own);
    assert_eq!(cluster(80)["connect_timeout"], "1s");
    assert_eq!([80, 82].map(|port| http2(cluster(port))), [false, true]);
}
