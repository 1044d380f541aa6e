//! ServiceEntries and WorkloadEntries as sidecars and gateways see them.
mod support;

use lateen_translate::ResourceType::{Cluster, Endpoint, Listener, NameTable, Route};
use lateen_translate::{Affected, affected};
use serde_json::{Value, json};
use support::{Mesh, Resources, filter, virtual_host};

/// An entry of namespace `default`; `spec` in YAML's flow style.
fn entry(name: &str, spec: &str) -> String {
    format!("{{kind: ServiceEntry, metadata: {{name: {name}}}, spec: {spec}}}")
}

fn sidecar(mesh: &mut Mesh) -> Resources {
    mesh.sidecar_resources("default", "web-frontend-1")
}

fn first_endpoint(cluster: &Value) -> &Value {
    &cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]
}

#[test]
fn a_host_found_by_dns() {
    let mut mesh = Mesh::course();
    mesh.config(&entry("api", "{hosts: [api.example.com], location: MESH_EXTERNAL, resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP, targetPort: 8080}]}"));
    let resources = sidecar(&mut mesh);
    let cluster = resources.get(Cluster, "outbound|80||api.example.com");
    assert_eq!(cluster["cluster_type"]["name"], "STRICT_DNS");
    let dns = &cluster["cluster_type"]["typed_config"];
    assert_eq!((&dns["respect_dns_ttl"], &dns["dns_refresh_rate"]), (&json!(true), &json!("60s")));
    assert_eq!(dns["dns_lookup_family"], "V4_ONLY");
    assert_eq!(dns.get("all_addresses_in_single_endpoint"), None);
    assert_eq!(*first_endpoint(cluster), json!({"address": "api.example.com", "port_value": 8080}));
    assert!(!resources.names(Endpoint).contains(&"outbound|80||api.example.com"));
    let host = virtual_host(resources.get(Route, "80"), "api.example.com:80");
    assert_eq!(host["domains"], json!(["api.example.com"]));
    assert_eq!(host["routes"][0]["route"]["cluster"], "outbound|80||api.example.com");
    mesh.mesh_config("dnsRefreshRate: 5s");
    let resources = sidecar(&mut mesh);
    let cluster = resources.get(Cluster, "outbound|80||api.example.com");
    assert_eq!(cluster["cluster_type"]["typed_config"]["dns_refresh_rate"], "5s");
}

#[test]
fn names_in_turn_and_names_of_endpoints() {
    let mut mesh = Mesh::course();
    mesh.config(&entry("turn", "{hosts: [turn.example.com], resolution: DNS_ROUND_ROBIN, ports: [{number: 80, name: http, protocol: HTTP}]}"));
    mesh.config(&entry("named", "{hosts: [named.example.com], resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: us.example.com, ports: {http: 8080}, labels: {zone: us}, weight: 3}, {address: eu.example.com}]}"));
    mesh.config("{kind: DestinationRule, metadata: {name: named}, spec: {host: named.example.com, subsets: [{name: us, labels: {zone: us}}, {name: mars, labels: {zone: mars}}]}}");
    let resources = sidecar(&mut mesh);
    let turn = &resources.get(Cluster, "outbound|80||turn.example.com")["cluster_type"];
    assert_eq!(
        (&turn["name"], &turn["typed_config"]["all_addresses_in_single_endpoint"]),
        (&json!("LOGICAL_DNS"), &json!(true))
    );
    let named = resources.get(Cluster, "outbound|80|us|named.example.com");
    assert_eq!(*first_endpoint(named), json!({"address": "us.example.com", "port_value": 8080}));
    assert_eq!(named["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["load_balancing_weight"], 3);
    let all = resources.get(Cluster, "outbound|80||named.example.com");
    assert_eq!(all["load_assignment"]["endpoints"][0]["lb_endpoints"].as_array().map(Vec::len), Some(2));
    let names = resources.names(Cluster);
    assert!(!names.contains(&"outbound|80|mars|named.example.com"), "nothing to look up: {names:?}");
}

#[test]
fn listed_addresses_come_by_eds() {
    let mut mesh = Mesh::course();
    mesh.config(&entry("vms", "{hosts: [vms.example.com], resolution: STATIC, location: MESH_INTERNAL, ports: [{number: 9000, name: tcp, protocol: TCP}], addresses: [10.1.2.3], endpoints: [{address: 192.168.0.1}, {address: 192.168.0.2, weight: 2}]}"));
    let resources = sidecar(&mut mesh);
    assert_eq!(resources.get(Cluster, "outbound|9000||vms.example.com")["type"], "EDS");
    let locality = &resources.get(Endpoint, "outbound|9000||vms.example.com")["endpoints"][0];
    assert_eq!(
        (&locality["load_balancing_weight"], locality["lb_endpoints"].as_array().map(Vec::len)),
        (&json!(3), Some(2))
    );
    let listener = resources.get(Listener, "10.1.2.3_9000");
    assert_eq!(filter(&listener["filter_chains"][0])["cluster"], "outbound|9000||vms.example.com");
}

#[test]
fn connections_keep_their_destination_where_nothing_is_resolved() {
    let mut mesh = Mesh::course();
    mesh.config(&entry("wild", "{hosts: ['*.wild.example.com'], ports: [{number: 443, name: tls, protocol: TLS}, {number: 80, name: http, protocol: HTTP, targetPort: 8080}]}"));
    let resources = sidecar(&mut mesh);
    let cluster = resources.get(Cluster, "outbound|443||*.wild.example.com");
    assert_eq!(
        (&cluster["type"], &cluster["lb_policy"]),
        (&json!("ORIGINAL_DST"), &json!("CLUSTER_PROVIDED"))
    );
    let other_port = resources.get(Cluster, "outbound|80||*.wild.example.com");
    assert_eq!(other_port["original_dst_lb_config"]["upstream_port_override"], 8080);
    let listener = resources.get(Listener, "0.0.0.0_443");
    let chain = &listener["filter_chains"][0];
    assert_eq!(
        chain["filter_chain_match"],
        json!({"server_names": ["*.wild.example.com"], "transport_protocol": "tls"})
    );
    assert_eq!(filter(chain)["cluster"], "outbound|443||*.wild.example.com");
    assert_eq!(filter(&listener["default_filter_chain"])["cluster"], "PassthroughCluster");
    assert_eq!(
        listener["listener_filters"].as_array().map(Vec::len),
        Some(1),
        "TLS is looked for, HTTP is not"
    );
    let host = virtual_host(resources.get(Route, "80"), "*.wild.example.com:80");
    assert_eq!(host["domains"], json!(["*.wild.example.com"]));
    // Callers of a gateway chose no destination.
    let gateway = mesh.gateway_resources();
    assert_eq!(gateway.get(Cluster, "outbound|443||*.wild.example.com")["type"], "EDS");
}

#[test]
fn wildcards_whose_hosts_are_looked_up_on_request() {
    let mut mesh = Mesh::course();
    mesh.config(&entry("wild", "{hosts: ['*.wild.example.com'], location: MESH_EXTERNAL, resolution: DYNAMIC_DNS, ports: [{number: 80, name: http, protocol: HTTP}, {number: 443, name: tls, protocol: TLS}, {number: 81, name: https, protocol: HTTPS}, {number: 82, name: tcp, protocol: TCP}]}"));
    let resources = sidecar(&mut mesh);
    let names = resources.names(Cluster);
    for port in [81, 82] {
        assert!(!names.contains(&&*format!("outbound|{port}||*.wild.example.com")), "{names:?}");
        assert!(!resources.names(Listener).contains(&&*format!("0.0.0.0_{port}")));
    }
    let cache =
        json!({"name": "dynamic_dns_60000ms", "dns_lookup_family": "V4_ONLY", "dns_refresh_rate": "60s"});
    for port in [80, 443] {
        let cluster = resources.get(Cluster, &format!("outbound|{port}||*.wild.example.com"));
        assert_eq!(cluster["lb_policy"], "CLUSTER_PROVIDED");
        assert_eq!(cluster["cluster_type"]["name"], "envoy.clusters.dynamic_forward_proxy");
        assert_eq!(cluster["cluster_type"]["typed_config"]["dns_cache_config"], cache);
    }
    let filters = |chain: &Value| {
        let filters = &filter(chain)["http_filters"];
        filters.as_array().into_iter().flatten().map(|one| one["name"].clone()).collect::<Vec<_>>()
    };
    let listener = resources.get(Listener, "0.0.0.0_80");
    assert!(
        filters(&listener["filter_chains"][0]).contains(&json!("envoy.filters.http.dynamic_forward_proxy"))
    );
    let host = virtual_host(resources.get(Route, "80"), "*.wild.example.com:80");
    assert_eq!(host["domains"], json!(["*.wild.example.com"]));
    // TLS by the name it asks for, as far as the wildcard goes.
    let chain = &resources.get(Listener, "0.0.0.0_443")["filter_chains"][0];
    assert_eq!(chain["filter_chain_match"]["server_names"], json!(["*.wild.example.com"]));
    assert_eq!(chain["filters"][0]["name"], "envoy.filters.network.sni_dynamic_forward_proxy");
    assert_eq!(chain["filters"][0]["typed_config"]["port_value"], 443);
    assert_eq!(chain["filters"][1]["typed_config"]["cluster"], "outbound|443||*.wild.example.com");
    // Proxies that answer names give the wildcard an address, at which no other name is let through.
    let node = "sidecar~10.0.0.1~web-frontend-1.default~default.svc.cluster.local";
    let scope = mesh.scope_with(node, &json!({"DNS_CAPTURE": "true"}));
    let capturing = mesh.resources(&scope);
    let address = capturing.get(NameTable, "name-table")["*.wild.example.com"][0][0].clone();
    let address = address.as_str().expect("an address");
    let listener = capturing.get(Listener, &format!("{address}_443"));
    assert_eq!(
        listener["filter_chains"][0]["filter_chain_match"],
        json!({"server_names": ["*.wild.example.com"], "transport_protocol": "tls"})
    );
    assert_eq!(filter(&listener["default_filter_chain"])["cluster"], "PassthroughCluster");
    // Other ports have no such filter.
    mesh.config(&entry(
        "other",
        "{hosts: [other.example.com], resolution: DNS, ports: [{number: 8080, name: http, protocol: HTTP}]}",
    ));
    let resources = sidecar(&mut mesh);
    assert_eq!(filters(&resources.get(Listener, "0.0.0.0_8080")["filter_chains"][0]).len(), 3);
}

/// HTTP that rules of gateways send to such hosts: those look the host of each request up.
#[test]
fn gateways_look_hosts_up_on_request() {
    let mut mesh = Mesh::course();
    let filters = |mesh: &mut Mesh| {
        let resources = mesh.gateway_resources();
        let listeners = resources.all(Listener);
        let managers = listeners.iter().map(|listener| filter(&listener["filter_chains"][0]).clone());
        managers.map(|manager| manager["http_filters"].to_string()).collect::<Vec<_>>()
    };
    mesh.config("{kind: Gateway, metadata: {name: tls}, spec: {selector: {istio: ingressgateway}, servers: [{port: {number: 443, name: https, protocol: HTTPS}, hosts: ['*'], tls: {mode: SIMPLE, credentialName: web}}]}}");
    let before = filters(&mut mesh);
    assert!(before.len() == 2 && before.iter().all(|filters| !filters.contains("dynamic_forward_proxy")));
    mesh.config(&entry("wild", "{hosts: ['*.wild.example.com'], location: MESH_EXTERNAL, resolution: DYNAMIC_DNS, ports: [{number: 443, name: tls, protocol: TLS}]}"));
    assert_eq!(filters(&mut mesh), before, "TLS is looked up by its name");
    mesh.config(&entry("wild", "{hosts: ['*.wild.example.com'], location: MESH_EXTERNAL, resolution: DYNAMIC_DNS, ports: [{number: 80, name: http, protocol: HTTP}]}"));
    mesh.config("{kind: VirtualService, metadata: {name: wild}, spec: {hosts: ['*.wild.example.com'], gateways: [tls], http: [{route: [{destination: {host: '*.wild.example.com'}}]}]}}");
    let after = filters(&mut mesh);
    assert!(after.iter().all(|filters| filters.contains("dynamic_forward_proxy")), "{after:?}");
    let routes = mesh.gateway_resources().all(Route).iter().map(Value::to_string).collect::<String>();
    assert!(routes.contains("outbound|80||*.wild.example.com"), "{routes}");
}

#[test]
fn hosts_looked_up_on_request_are_verified_by_their_names() {
    let mut mesh = Mesh::course();
    mesh.config(&entry("wild", "{hosts: ['*.wild.example.com'], resolution: DYNAMIC_DNS, ports: [{number: 80, name: http, protocol: HTTP}, {number: 443, name: tls, protocol: TLS}]}"));
    let rule = |tls: &str| {
        format!(
            "{{kind: DestinationRule, metadata: {{name: wild}}, spec: {{host: '*.wild.example.com', trafficPolicy: {{tls: {tls}, outlierDetection: {{consecutive5xxErrors: 2, minHealthPercent: 10}}}}}}}}"
        )
    };
    let http = |mesh: &mut Mesh| {
        let resources = sidecar(mesh);
        let cluster = resources.get(Cluster, "outbound|80||*.wild.example.com").clone();
        // What fails is ejected here too, and Envoy's panic rules are those of Istio.
        assert_eq!(cluster["outlier_detection"]["consecutive_5xx"], 2);
        assert_eq!(cluster["common_lb_config"]["healthy_panic_threshold"], json!({"value": 10.0}));
        cluster
    };
    let options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    mesh.config(&rule("{mode: SIMPLE}"));
    let cluster = http(&mut mesh);
    let names = &cluster["typed_extension_protocol_options"][options]["upstream_http_protocol_options"];
    assert_eq!(*names, json!({"auto_sni": true, "auto_san_validation": true}));
    assert!(cluster["cluster_type"]["typed_config"].get("allow_insecure_cluster_options").is_none());
    mesh.config(&rule("{mode: SIMPLE, insecureSkipVerify: true}"));
    assert_eq!(http(&mut mesh)["cluster_type"]["typed_config"]["allow_insecure_cluster_options"], true);
}

#[test]
fn gateways_pass_tls_on_to_hosts_looked_up_by_name() {
    let mut mesh = Mesh::course();
    mesh.config(&entry("wild", "{hosts: ['*.wild.example.com'], resolution: DYNAMIC_DNS, ports: [{number: 443, name: tls, protocol: TLS}, {number: 8443, name: more, protocol: TLS}]}"));
    mesh.config("{kind: Gateway, metadata: {name: gw}, spec: {selector: {istio: ingressgateway}, servers: [{port: {number: 443, name: tls, protocol: TLS}, hosts: ['*.wild.example.com'], tls: {mode: PASSTHROUGH}}]}}");
    let rule = |port: u16| {
        format!(
            "{{kind: VirtualService, metadata: {{name: wild}}, spec: {{hosts: ['*.wild.example.com'], gateways: [gw], tls: [{{match: [{{port: 443, sniHosts: ['*.wild.example.com']}}], route: [{{destination: {{host: '*.wild.example.com', port: {{number: {port}}}}}}}]}}]}}}}"
        )
    };
    for port in [443, 8443] {
        mesh.config(&rule(port));
        let chain = &mesh.gateway_resources().get(Listener, "0.0.0.0_8443")["filter_chains"][0].clone();
        assert_eq!(chain["filter_chain_match"]["server_names"], json!(["*.wild.example.com"]));
        assert_eq!(chain["filters"][0]["typed_config"]["port_value"], port);
        assert_eq!(
            chain["filters"][1]["typed_config"]["cluster"],
            format!("outbound|{port}||*.wild.example.com")
        );
    }
}

#[test]
fn bytes_go_by_range_and_else_to_the_oldest() {
    let mut mesh = Mesh::course();
    mesh.config(&entry("ranges", "{hosts: [ranges.example.com], addresses: [10.20.0.0/16], ports: [{number: 5000, name: tcp, protocol: TCP}]}"));
    mesh.config("{kind: ServiceEntry, metadata: {name: young, creationTimestamp: '2024-01-02T00:00:00Z'}, spec: {hosts: [a-young.example.com], ports: [{number: 5000, name: tcp, protocol: TCP}]}}");
    mesh.config("{kind: ServiceEntry, metadata: {name: old, creationTimestamp: '2024-01-01T00:00:00Z'}, spec: {hosts: [b-old.example.com], ports: [{number: 5000, name: tcp, protocol: TCP}]}}");
    let resources = sidecar(&mut mesh);
    let listener = resources.get(Listener, "0.0.0.0_5000");
    let chain = &listener["filter_chains"][0];
    assert_eq!(
        chain["filter_chain_match"]["prefix_ranges"],
        json!([{"address_prefix": "10.20.0.0", "prefix_len": 16}])
    );
    assert_eq!(filter(chain)["cluster"], "outbound|5000||ranges.example.com");
    assert_eq!(filter(&listener["default_filter_chain"])["cluster"], "outbound|5000||b-old.example.com");
    assert!(listener.get("listener_filters").is_none(), "a server may speak first: nothing waits for bytes");
}

#[test]
fn undeclared_protocols_share_the_ports_routes() {
    let mut mesh = Mesh::course();
    mesh.config(&entry("any", "{hosts: [any.example.com], resolution: STATIC, endpoints: [{address: 1.2.3.4}], ports: [{number: 7000, name: any}]}"));
    let resources = sidecar(&mut mesh);
    let listener = resources.get(Listener, "0.0.0.0_7000");
    assert_eq!(filter(&listener["filter_chains"][0])["rds"]["route_config_name"], "7000");
    assert_eq!(filter(&listener["default_filter_chain"])["cluster"], "outbound|7000||any.example.com");
    let host = virtual_host(resources.get(Route, "7000"), "any.example.com:7000");
    assert_eq!(host["routes"][0]["route"]["cluster"], "outbound|7000||any.example.com");
}

#[test]
fn automatic_addresses_are_for_proxies_that_answer_dns() {
    let mut mesh = Mesh::course();
    mesh.config(&entry("db", "{hosts: [db.example.com], resolution: STATIC, endpoints: [{address: 1.2.3.4}], ports: [{number: 3306, name: mysql, protocol: MySQL}]}"));
    let address = mesh.world().service("db.example.com").and_then(|db| db.auto_address).expect("an address");
    let plain = sidecar(&mut mesh);
    assert!(plain.names(Listener).contains(&"0.0.0.0_3306"));
    let node = "sidecar~10.0.0.1~web-frontend-1.default~default.svc.cluster.local";
    let scope = mesh.scope_with(node, &json!({"DNS_CAPTURE": "true"}));
    let capturing = mesh.resources(&scope);
    let listener = capturing.get(Listener, &format!("{address}_3306"));
    assert_eq!(filter(&listener["filter_chains"][0])["cluster"], "outbound|3306||db.example.com");
    assert!(!capturing.names(Listener).contains(&"0.0.0.0_3306"));
}

/// A headless Service `db` in namespace `shop` and its pods, of which one is ready, by its own name.
fn headless(mesh: &mut Mesh, ready: &str) -> lateen_model::Delta {
    mesh.service("shop", "db", "None", json!([{"name": "tcp", "port": 5432}]), json!({"app": "db"}));
    let endpoint = |name: &str, ip: &str| json!({"addresses": [ip], "conditions": {"ready": name == ready}, "hostname": name});
    let slice = json!({"addressType": "IPv4", "ports": [{"name": "tcp", "port": 5432, "protocol": "TCP"}],
        "metadata": {"namespace": "shop", "name": "db-1", "labels": {"kubernetes.io/service-name": "db"}},
        "endpoints": [endpoint("db-0", "10.244.0.40"), endpoint("db-1", "10.244.0.41")]});
    let slice = serde_json::from_value(slice).expect("a slice");
    mesh.apply(lateen_model::Event::Applied(lateen_model::Object::EndpointSlice(slice)))
}

#[test]
fn names_for_proxies_that_answer_dns() {
    let node = "sidecar~10.0.0.1~web-frontend-1.default~default.svc.cluster.local";
    let capture = json!({"DNS_CAPTURE": "true"});
    let mut mesh = Mesh::course();
    mesh.config(&entry("db", "{hosts: [db.example.com, '*.db.example.com'], resolution: STATIC, endpoints: [{address: 1.2.3.4}], ports: [{number: 3306, name: mysql, protocol: MySQL}]}"));
    mesh.config(&entry("own", "{hosts: ['*.own.example.com'], addresses: [10.9.9.9, 10.8.0.0/16], resolution: NONE, ports: [{number: 443, name: tls, protocol: TLS}]}"));
    mesh.config(&entry("far", "{hosts: [far.example.com], exportTo: [shop], resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}]}"));
    headless(&mut mesh, "db-1");
    let address = mesh.world().service("db.example.com").and_then(|db| db.auto_address).expect("an address");
    assert!(sidecar(&mut mesh).names(NameTable).is_empty(), "only where queries are answered");
    let gateway = mesh.scope_with("router~10.0.0.9~gw.default~default.svc.cluster.local", &capture);
    assert!(mesh.resources(&gateway).names(NameTable).is_empty(), "a gateway has no application");
    let before = mesh.scope_with(node, &capture);
    let resources = mesh.resources(&before);
    let names = resources.get(NameTable, "name-table");
    assert_eq!(
        names["customers.default.svc.cluster.local"],
        json!([["10.96.0.30"], "Kubernetes", "customers", "default"])
    );
    assert_eq!(names["db.example.com"], json!([[address.to_string()], "External", "", ""]));
    assert_eq!(names["*.own.example.com"], json!([["10.9.9.9"], "External", "", ""]));
    assert_eq!(names["db.shop.svc.cluster.local"], json!([["10.244.0.41"], "Kubernetes", "db", "shop"]));
    assert_eq!(
        names["db-1.db.shop.svc.cluster.local"],
        json!([["10.244.0.41"], "Kubernetes", "db-1.db", "shop"])
    );
    for none in ["db-0.db.shop.svc.cluster.local", "*.db.example.com", "far.example.com"] {
        assert!(names[none].is_null(), "{none}: {}", names[none]);
    }
    // Another pod is ready now: the names change, and the endpoints.
    let delta = headless(&mut mesh, "db-0");
    let after = mesh.scope_with(node, &capture);
    let changed = affected(&delta, &before, &after);
    assert!(!changed.names.is_none() && changed.routes.is_none() && changed.clusters.is_none());
    assert_eq!(
        mesh.resources(&after).get(NameTable, "name-table")["db.shop.svc.cluster.local"][0],
        json!(["10.244.0.40"])
    );
    // A service's endpoints are no names.
    let delta = mesh.endpoints("default", "customers", "", 3000, &[]);
    assert!(affected(&delta, &after, &mesh.scope_with(node, &capture)).names.is_none());
    // A new service is one, for those who see it.
    let before = mesh.scope_with(node, &capture);
    let delta = mesh.config(&entry(
        "new",
        "{hosts: [new.example.com], resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}]}",
    ));
    assert!(!affected(&delta, &before, &mesh.scope_with(node, &capture)).names.is_none());
}

#[test]
fn entries_are_seen_where_they_are_exported_to() {
    let mut mesh = Mesh::course();
    mesh.config(&entry("own", "{hosts: [own.example.com], resolution: DNS, exportTo: ['.'], ports: [{number: 80, name: http, protocol: HTTP}]}"));
    assert!(sidecar(&mut mesh).names(Cluster).contains(&"outbound|80||own.example.com"));
    let elsewhere = mesh.sidecar_resources("shop", "x");
    assert!(!elsewhere.names(Cluster).contains(&"outbound|80||own.example.com"));
}

#[test]
fn workload_entries_are_endpoints_of_services() {
    let mut mesh = Mesh::course();
    mesh.config("{kind: WorkloadEntry, metadata: {name: vm}, spec: {address: 192.168.7.7, labels: {app: customers, version: v2}, ports: {http: 9}, weight: 5}}");
    let resources = sidecar(&mut mesh);
    let endpoints =
        &resources.get(Endpoint, "outbound|80|v2|customers.default.svc.cluster.local")["endpoints"];
    let endpoints = endpoints[0]["lb_endpoints"].as_array().expect("endpoints");
    let vm = endpoints.iter().find(|one| one["load_balancing_weight"] == 5).expect("the machine");
    assert_eq!(
        vm["endpoint"]["address"]["socket_address"],
        json!({"address": "192.168.7.7", "port_value": 3000})
    );
    assert_eq!(vm["metadata"]["filter_metadata"]["istio"]["workload"], "vm;default;customers;v2;Kubernetes");
}

#[test]
fn names_to_look_up_are_part_of_clusters() {
    let mut mesh = Mesh::course();
    mesh.config(&entry("sel", "{hosts: [sel.example.com], resolution: DNS, workloadSelector: {labels: {app: sel}}, ports: [{number: 80, name: http, protocol: HTTP}]}"));
    assert!(!sidecar(&mut mesh).names(Cluster).contains(&"outbound|80||sel.example.com"));
    let before = mesh.sidecar("default", "web-frontend-1");
    let delta = mesh.config(
        "{kind: WorkloadEntry, metadata: {name: vm}, spec: {address: vm.example.com, labels: {app: sel}}}",
    );
    let scope = mesh.sidecar("default", "web-frontend-1");
    let Affected { clusters, endpoints, listeners, routes, secrets, names } =
        affected(&delta, &before, &scope);
    assert!(
        clusters.covers("outbound|80||sel.example.com") && !clusters.covers("outbound|80||x.example.com")
    );
    assert!(!endpoints.is_none() && listeners.is_none() && routes.is_none());
    assert!(secrets.is_none() && names.is_none());
    assert!(sidecar(&mut mesh).names(Cluster).contains(&"outbound|80||sel.example.com"));
}

#[test]
fn unknown_destinations_are_refused_where_only_the_registry_counts() {
    let mut mesh = Mesh::course();
    mesh.mesh_config("outboundTrafficPolicy: {mode: REGISTRY_ONLY}");
    mesh.config(&entry("tls", "{hosts: [tls.example.com], resolution: DNS, ports: [{number: 443, name: tls, protocol: TLS}, {number: 80, name: http, protocol: HTTP}]}"));
    let resources = sidecar(&mut mesh);
    assert_eq!(
        filter(&resources.get(Listener, "0.0.0.0_443")["default_filter_chain"])["cluster"],
        "BlackHoleCluster"
    );
    let block = virtual_host(resources.get(Route, "80"), "block_all");
    assert_eq!(block["routes"][0]["direct_response"]["status"], 502);
}
