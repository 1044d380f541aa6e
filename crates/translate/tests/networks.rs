//! Endpoints of several networks, and the gateways between them (T16, T17, A1).
mod support;

use lateen_model::{Delta, Event, Object};
use lateen_translate::ResourceType::{Cluster, Endpoint, Listener, NameTable};
use lateen_translate::{Extent, Scope, affected, check_service_entry, check_workload_entry};
use serde_json::{Value, json};
use support::{Mesh, Resources};

const CALLER: &str = "sidecar~10.0.0.1~web-frontend-1.default~default.svc.cluster.local";
const CUSTOMERS: &str = "outbound|80||customers.default.svc.cluster.local";
const ISTIO: &str = "security.istio.io/tlsMode";
const NETWORK: &str = "topology.istio.io/network";

fn config_map(mesh: &mut Mesh, networks: &str) -> Delta {
    let map = json!({"metadata": {"name": "istio", "namespace": "istio-system"}, "data": {"meshNetworks": networks}});
    mesh.apply(Event::Applied(Object::ConfigMap(serde_json::from_value(map).expect("a ConfigMap"))))
}

fn system_network(mesh: &mut Mesh, network: &str) -> Delta {
    namespace_network(mesh, "istio-system", network)
}

fn namespace_network(mesh: &mut Mesh, name: &str, network: &str) -> Delta {
    let namespace = json!({"metadata": {"name": name, "labels": {NETWORK: network}}});
    mesh.apply(Event::Applied(Object::Namespace(serde_json::from_value(namespace).expect("a Namespace"))))
}

/// The Service of a network's gateways at these addresses.
fn gateways(mesh: &mut Mesh, network: &str, addresses: &[&str]) -> Delta {
    let ingress: Vec<Value> = addresses
        .iter()
        .map(|address| match address.parse::<std::net::IpAddr>() {
            Ok(_) => json!({"ip": address}),
            Err(_) => json!({"hostname": address}),
        })
        .collect();
    mesh.service_of(json!({
        "metadata": {"namespace": "istio-system", "name": format!("gateway-{network}"), "labels": {NETWORK: network}},
        "spec": {"type": "LoadBalancer", "clusterIP": "10.96.7.7", "clusterIPs": ["10.96.7.7"], "ports": [{"name": "tls", "port": 15443}]},
        "status": {"loadBalancer": {"ingress": ingress}}
    }))
}

/// `customers` with a pod in each of the networks given; both have a proxy.
fn customers(mesh: &mut Mesh, networks: [&str; 2]) {
    for (index, (version, network)) in ["v1", "v2"].into_iter().zip(networks).enumerate() {
        let mut labels = json!({"app": "customers", "version": version, ISTIO: "istio"});
        if !network.is_empty() {
            labels[NETWORK] = json!(network);
        }
        mesh.pod("default", &format!("customers-{version}-1"), &format!("10.244.0.3{}", index + 1), labels);
    }
}

/// The course's mesh in network1, with the second pod of `customers` in network2 behind two gateways.
fn two_networks() -> Mesh {
    let mut mesh = Mesh::course();
    system_network(&mut mesh, "network1");
    customers(&mut mesh, ["", "network2"]);
    gateways(&mut mesh, "network2", &["7.7.7.7", "7.7.7.8"]);
    mesh
}

/// Address, port, weight and whether it takes mutual TLS, of the endpoints of an assignment.
fn endpoints(assignment: &Value) -> Vec<(String, u64, u64, bool)> {
    let localities = assignment["endpoints"].as_array().into_iter().flatten();
    let all = localities.flat_map(|locality| locality["lb_endpoints"].as_array().into_iter().flatten());
    all.map(|one| {
        let address = &one["endpoint"]["address"]["socket_address"];
        let text = address["address"].as_str().unwrap_or_default().to_owned();
        let port = address["port_value"].as_u64().unwrap_or_default();
        let mutual = one["metadata"]["filter_metadata"]["envoy.transport_socket_match"]["tlsMode"] == "istio";
        (text, port, one["load_balancing_weight"].as_u64().unwrap_or(1), mutual)
    })
    .collect()
}

fn at(address: &str, port: u64, weight: u64) -> (String, u64, u64, bool) {
    (address.to_owned(), port, weight, true)
}

fn of(resources: &Resources, cluster: &str) -> Vec<(String, u64, u64, bool)> {
    endpoints(resources.get(Endpoint, cluster))
}

fn seen_by(mesh: &mut Mesh, metadata: &Value) -> Resources {
    let scope = mesh.scope_with(CALLER, metadata);
    mesh.resources(&scope)
}

#[test]
fn another_network_is_its_gateways() {
    let mut mesh = two_networks();
    let resources = seen_by(&mut mesh, &json!({}));
    // Weights are those of the endpoints times the number of gateways, which share them.
    let through = [at("10.244.0.31", 3000, 2), at("7.7.7.7", 15443, 1), at("7.7.7.8", 15443, 1)];
    assert_eq!(of(&resources, CUSTOMERS), through);
    assert_eq!(resources.get(Endpoint, CUSTOMERS)["endpoints"][0]["load_balancing_weight"], 4);
    let transport = &resources.get(Cluster, CUSTOMERS)["transport_socket_matches"][0]["transport_socket"];
    let sni = &transport["typed_config"]["sni"];
    assert_eq!(sni, "outbound_.80_._.customers.default.svc.cluster.local", "what gateways pass on by");
    // Subsets are of endpoints, and may be of networks.
    mesh.config("{kind: DestinationRule, metadata: {name: customers}, spec: {host: customers, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}, {name: here, labels: {topology.istio.io/network: network1}}]}}");
    let resources = seen_by(&mut mesh, &json!({}));
    let subset =
        |name: &str| of(&resources, &format!("outbound|80|{name}|customers.default.svc.cluster.local"));
    assert_eq!(subset("v1"), [at("10.244.0.31", 3000, 2)]);
    assert_eq!(subset("here"), subset("v1"));
    assert_eq!(subset("v2"), through[1..].to_vec());
    // The other way round: those of network1 have no gateway, so that they are reached as they are.
    let other = seen_by(&mut mesh, &json!({"NETWORK": "network2"}));
    assert_eq!(of(&other, CUSTOMERS), [at("10.244.0.31", 3000, 2), at("10.244.0.32", 3000, 2)]);
}

#[test]
fn who_is_in_which_network() {
    let mut mesh = two_networks();
    let class = |mesh: &mut Mesh, metadata: Value| mesh.scope_with(CALLER, &metadata).class.network.clone();
    assert_eq!(class(&mut mesh, json!({})), "network1", "the label of istio-system");
    namespace_network(&mut mesh, "default", "network9");
    assert_eq!(class(&mut mesh, json!({})), "network1", "labels of other namespaces say nothing");
    assert_eq!(class(&mut mesh, json!({"NETWORK": "network3"})), "network3", "what the proxy says");
    let labels = json!({"app": "web-frontend", NETWORK: "network2"});
    mesh.pod("default", "web-frontend-1", "10.244.0.20", labels);
    assert_eq!(class(&mut mesh, json!({})), "network2", "its pod's label");
    let direct = [at("10.244.0.31", 3000, 2), at("10.244.0.32", 3000, 2)];
    assert_eq!(of(&seen_by(&mut mesh, &json!({})), CUSTOMERS), direct);
    mesh.pod("default", "web-frontend-1", "10.244.0.20", json!({"app": "web-frontend"}));
    // Without that label what meshNetworks says: the cluster, or else ranges of addresses.
    system_network(&mut mesh, "");
    assert_eq!(class(&mut mesh, json!({})), "");
    config_map(
        &mut mesh,
        "networks: {a: {endpoints: [{fromCidr: 10.0.0.0/24}]}, b: {endpoints: [{fromCidr: 10.244.0.31/32}]}, c: {endpoints: [{fromCidr: 10.0.0.0/8}]}}",
    );
    assert_eq!(class(&mut mesh, json!({})), "c", "the widest range");
    config_map(
        &mut mesh,
        "networks: {a: {endpoints: [{fromCidr: 10.0.0.16/28}]}, b: {endpoints: [{fromCidr: 10.0.0.0/28}]}}",
    );
    assert_eq!(class(&mut mesh, json!({})), "b", "the range that holds its address");
    config_map(&mut mesh, "networks: {a: {endpoints: [{fromCidr: 10.0.0.16/28}]}}");
    assert_eq!(class(&mut mesh, json!({})), "", "no range holds its address");
    config_map(
        &mut mesh,
        "networks: {b: {endpoints: [{fromRegistry: Other}]}, d: {endpoints: [{fromRegistry: Kubernetes}]}}",
    );
    assert_eq!(class(&mut mesh, json!({})), "d");
    config_map(
        &mut mesh,
        "networks: {d: {endpoints: [{fromRegistry: Kubernetes}]}, e: {endpoints: [{fromRegistry: Kubernetes}]}}",
    );
    assert_eq!(class(&mut mesh, json!({})), "d", "of two that claim the cluster the first");
    let world = mesh.world();
    let service = world.service("customers.default.svc.cluster.local").expect("exists");
    let networks = world.endpoints(service).expect("has some").networks.clone();
    assert_eq!(networks, ["d".to_owned(), "network2".to_owned()].into());
}

#[test]
fn gateways_pass_on_nothing_but_mutual_tls() {
    let mut mesh = two_networks();
    let labels = json!({"app": "customers", "version": "v2", NETWORK: "network2"});
    mesh.pod("default", "customers-v2-1", "10.244.0.32", labels);
    let near = [at("10.244.0.31", 3000, 2)];
    assert_eq!(of(&seen_by(&mut mesh, &json!({})), CUSTOMERS), near, "it has no proxy");
    customers(&mut mesh, ["", "network2"]);
    mesh.config("{kind: PeerAuthentication, metadata: {name: none-at-all}, spec: {selector: {matchLabels: {version: v2}}, mtls: {mode: DISABLE}}}");
    assert_eq!(of(&seen_by(&mut mesh, &json!({})), CUSTOMERS), near, "it refuses it");
    // Gateways are no workloads of the namespace.
    mesh.config("{kind: PeerAuthentication, metadata: {name: none-at-all}, spec: {mtls: {mode: DISABLE}}}");
    mesh.config("{kind: PeerAuthentication, metadata: {name: of-v2}, spec: {selector: {matchLabels: {version: v2}}, mtls: {mode: STRICT}}}");
    let all = of(&seen_by(&mut mesh, &json!({})), CUSTOMERS);
    assert_eq!(all[1..], [at("7.7.7.7", 15443, 1), at("7.7.7.8", 15443, 1)]);
    let rule = |mode: &str| {
        format!(
            "{{kind: DestinationRule, metadata: {{name: customers}}, spec: {{host: customers, trafficPolicy: {{tls: {{mode: {mode}}}}}}}}}"
        )
    };
    for (mode, count) in [("DISABLE", 1), ("SIMPLE", 1), ("ISTIO_MUTUAL", 3)] {
        mesh.config(&rule(mode));
        assert_eq!(of(&seen_by(&mut mesh, &json!({})), CUSTOMERS).len(), count, "{mode}");
    }
}

#[test]
fn entries_behind_gateways_need_no_address() {
    let mut mesh = Mesh::course();
    system_network(&mut mesh, "network1");
    let entry = "{kind: ServiceEntry, metadata: {name: far}, spec: {hosts: [far.example], location: MESH_INTERNAL, resolution: STATIC, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [
      {address: 10.9.9.1, network: network2, labels: {security.istio.io/tlsMode: istio}, weight: 3, locality: a/b},
      {network: network2, labels: {security.istio.io/tlsMode: istio}}, {network: network2, labels: {security.istio.io/tlsMode: istio}},
      {network: nowhere, labels: {security.istio.io/tlsMode: istio}}, {address: 10.9.9.2}]}}";
    mesh.config(entry);
    let far = "outbound|80||far.example";
    let direct = of(&seen_by(&mut mesh, &json!({})), far);
    assert_eq!(direct.iter().map(|one| one.0.as_str()).collect::<Vec<_>>(), ["10.9.9.2", "10.9.9.1"]);
    let warnings = |mesh: &mut Mesh| {
        let world = mesh.world();
        let entry = world.service_entries().next().expect("the entry").clone();
        check_service_entry(&entry, &world).into_iter().map(|warning| warning.path).collect::<Vec<_>>()
    };
    let without = ["spec.endpoints[1].network", "spec.endpoints[2].network", "spec.endpoints[3].network"];
    assert_eq!(warnings(&mut mesh), without);
    gateways(&mut mesh, "network2", &["7.7.7.7"]);
    assert_eq!(warnings(&mut mesh), without[2..]);
    let resources = seen_by(&mut mesh, &json!({}));
    // Each place has its own share of the gateway.
    let plain = ("10.9.9.2".to_owned(), 80, 1, false);
    assert_eq!(of(&resources, far), [plain, at("7.7.7.7", 15443, 2), at("7.7.7.7", 15443, 3)]);
    assert_eq!(resources.get(Endpoint, far)["endpoints"][1]["locality"]["region"], "a");
    mesh.config("{kind: WorkloadEntry, metadata: {name: one}, spec: {network: network2, labels: {app: customers, security.istio.io/tlsMode: istio}}}");
    mesh.config("{kind: WorkloadEntry, metadata: {name: two}, spec: {network: network2, labels: {app: customers, security.istio.io/tlsMode: istio}}}");
    let world = mesh.world();
    assert!(world.workload_entries().all(|entry| check_workload_entry(entry, &world).is_empty()));
    let all = of(&seen_by(&mut mesh, &json!({})), CUSTOMERS);
    assert_eq!(all[2..], [at("7.7.7.7", 15443, 2)], "two that nobody knows an address of");
}

#[test]
fn gateways_of_mesh_networks() {
    let mut mesh = two_networks();
    mesh.service_of(json!({
        "metadata": {"namespace": "istio-system", "name": "gateway-network2"},
        "spec": {"clusterIP": "10.96.7.7", "clusterIPs": ["10.96.7.7"], "ports": [{"name": "tls", "port": 15443}], "externalIPs": ["7.7.7.7"]}
    }));
    let both = [at("10.244.0.31", 3000, 1), at("10.244.0.32", 3000, 1)];
    assert_eq!(
        of(&seen_by(&mut mesh, &json!({})), CUSTOMERS),
        both,
        "the label is gone, and with it the gateway"
    );
    config_map(
        &mut mesh,
        "networks: {network2: {gateways: [{address: 8.8.8.8, port: 443}, {address: gw.example.com, port: 443}]}}",
    );
    let by_address = of(&seen_by(&mut mesh, &json!({})), CUSTOMERS);
    assert_eq!(by_address[1..], [at("8.8.8.8", 443, 1)], "names are not for endpoints that are told by EDS");
    let named = "registryServiceName: gateway-network2.istio-system.svc.cluster.local, port: 15444";
    config_map(&mut mesh, &format!("networks: {{network2: {{gateways: [{{{named}}}]}}}}"));
    assert_eq!(
        of(&seen_by(&mut mesh, &json!({})), CUSTOMERS),
        both,
        "only networks of the cluster name its Services"
    );
    config_map(
        &mut mesh,
        &format!(
            "networks: {{network2: {{endpoints: [{{fromRegistry: Kubernetes}}], gateways: [{{{named}}}, {{address: 8.8.8.8, port: 443}}]}}}}"
        ),
    );
    let by_name = of(&seen_by(&mut mesh, &json!({})), CUSTOMERS);
    // There are two in all, so that weights are doubled; the cluster's own go before those that belong to none.
    assert_eq!(by_name[1..], [at("7.7.7.7", 15444, 2)]);
    let before = mesh.sidecar("default", "web-frontend-1");
    let delta = config_map(&mut mesh, "networks: {network2: {endpoints: [{fromCidr: 10.0.0.0/40}]}}");
    assert!(delta.is_empty());
    let [problem] = &delta.problems[..] else { panic!("{delta:?}") };
    assert_eq!(
        problem.message,
        "invalid network network2: 10.0.0.0/40 is not a valid CIDR block; the previous mesh networks stay in force"
    );
    assert_eq!(of(&mesh.resources(&before), CUSTOMERS), by_name);
    config_map(&mut mesh, "");
    assert_eq!(of(&seen_by(&mut mesh, &json!({})), CUSTOMERS), both);
}

#[test]
fn what_is_no_gateway() {
    let mut mesh = two_networks();
    let direct = [at("10.244.0.31", 3000, 1), at("10.244.0.32", 3000, 1)];
    let service = |kind: &str, network: &str, ingress: Value| {
        json!({"metadata": {"namespace": "istio-system", "name": "gateway-network2", "labels": {NETWORK: network}},
            "spec": {"type": kind, "clusterIP": "10.96.7.7", "clusterIPs": ["10.96.7.7"], "ports": [{"name": "tls", "port": 15443}]},
            "status": {"loadBalancer": {"ingress": ingress}}})
    };
    let address = json!([{"ip": "7.7.7.7"}]);
    for (kind, network, ingress) in [
        ("ClusterIP", "network2", address.clone()),
        ("NodePort", "network2", address.clone()),
        ("LoadBalancer", "", address.clone()),
        ("LoadBalancer", "network2", json!([])),
        ("LoadBalancer", "network2", json!([{"ip": ""}])),
    ] {
        mesh.service_of(service(kind, network, ingress.clone()));
        assert_eq!(of(&seen_by(&mut mesh, &json!({})), CUSTOMERS), direct, "{kind} {network} {ingress}");
    }
    mesh.service_of(service("LoadBalancer", "network2", address));
    assert_eq!(of(&seen_by(&mut mesh, &json!({})), CUSTOMERS)[1..], [at("7.7.7.7", 15443, 1)]);
}

#[test]
fn gateways_at_nodes() {
    let mut mesh = two_networks();
    let node = |name: &str, role: &str, kind: &str, address: &str| {
        let node = json!({"metadata": {"name": name, "labels": {"role": role}},
            "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}, {"type": kind, "address": address}]}});
        Object::Node(serde_json::from_value(node).expect("a Node"))
    };
    for node in [
        node("a", "edge", "ExternalIP", "9.9.9.1"),
        node("b", "other", "ExternalIP", "9.9.9.2"),
        node("c", "edge", "Hostname", "9.9.9.3"),
    ] {
        mesh.apply(Event::Applied(node));
    }
    let service = |kind: &str, selector: &str| {
        json!({"metadata": {"namespace": "istio-system", "name": "gateway-network2", "labels": {NETWORK: "network2"},
                "annotations": {"traffic.istio.io/nodeSelector": selector}},
            "spec": {"type": kind, "clusterIP": "10.96.7.7", "ports": [{"name": "tls", "port": 15443, "nodePort": 30443}]}})
    };
    mesh.service_of(service("NodePort", r#"{"role": "edge"}"#));
    assert_eq!(of(&seen_by(&mut mesh, &json!({})), CUSTOMERS)[1..], [at("9.9.9.1", 30443, 1)]);
    mesh.apply(Event::Applied(node("c", "edge", "ExternalIP", "9.9.9.3")));
    let both = [at("9.9.9.1", 30443, 1), at("9.9.9.3", 30443, 1)];
    assert_eq!(of(&seen_by(&mut mesh, &json!({})), CUSTOMERS)[1..], both);
    mesh.apply(Event::Deleted(node("a", "edge", "ExternalIP", "9.9.9.1")));
    assert_eq!(of(&seen_by(&mut mesh, &json!({})), CUSTOMERS)[1..], [at("9.9.9.3", 30443, 1)]);
    mesh.service_of(service("NodePort", "nonsense"));
    assert_eq!(of(&seen_by(&mut mesh, &json!({})), CUSTOMERS).len(), 3, "what does not parse selects all");
    mesh.service_of(service("ClusterIP", "{}"));
    let direct = [at("10.244.0.31", 3000, 1), at("10.244.0.32", 3000, 1)];
    assert_eq!(of(&seen_by(&mut mesh, &json!({})), CUSTOMERS), direct);
}

#[test]
fn names_that_proxies_look_up_may_be_of_gateways() {
    let mut mesh = two_networks();
    gateways(&mut mesh, "network2", &["gw.example.com"]);
    mesh.config("{kind: ServiceEntry, metadata: {name: far}, spec: {hosts: [far.example], location: MESH_INTERNAL, resolution: DNS, ports: [{number: 80, name: http, protocol: HTTP}], endpoints: [{address: a.example, network: network2, labels: {security.istio.io/tlsMode: istio}}, {address: b.example}]}}");
    let resources = seen_by(&mut mesh, &json!({}));
    let looked_up = endpoints(&resources.get(Cluster, "outbound|80||far.example")["load_assignment"]);
    assert_eq!(looked_up, [("b.example".to_owned(), 80, 1, false), at("gw.example.com", 15443, 1)]);
    let direct = [at("10.244.0.31", 3000, 1), at("10.244.0.32", 3000, 1)];
    assert_eq!(of(&resources, CUSTOMERS), direct, "what EDS tells has addresses");
    // The control plane looks names up for it.
    let found = |mesh: &mut Mesh, addresses: &[[u8; 4]]| {
        let addresses = addresses.iter().map(|address| (*address).into()).collect();
        mesh.apply(Event::GatewayName { name: "gw.example.com".into(), addresses })
    };
    assert_eq!(mesh.world().networks().gateway_names(), ["gw.example.com".into()]);
    assert!(found(&mut mesh, &[[7, 7, 7, 9], [7, 7, 7, 7]]).networks);
    assert!(!found(&mut mesh, &[[7, 7, 7, 7], [7, 7, 7, 9]]).networks, "in another order it is the same");
    let all = of(&seen_by(&mut mesh, &json!({})), CUSTOMERS);
    assert_eq!(all[1..], [at("7.7.7.7", 15443, 1), at("7.7.7.9", 15443, 1)]);
    found(&mut mesh, &[]);
    assert_eq!(of(&seen_by(&mut mesh, &json!({})), CUSTOMERS), direct);
}

#[test]
fn proxies_may_ask_for_some_networks_only() {
    let mut mesh = two_networks();
    let view = |mesh: &mut Mesh, view: &str| {
        let resources = seen_by(mesh, &json!({"NETWORK": "network2", "REQUESTED_NETWORK_VIEW": view}));
        of(&resources, CUSTOMERS).into_iter().map(|one| one.0).collect::<Vec<_>>()
    };
    assert_eq!(view(&mut mesh, "network2"), ["10.244.0.32"]);
    assert_eq!(view(&mut mesh, "network2, network1"), ["10.244.0.31", "10.244.0.32"]);
    assert_eq!(view(&mut mesh, "other"), [""; 0]);
    customers(&mut mesh, ["", "network2"]);
    system_network(&mut mesh, "");
    assert_eq!(view(&mut mesh, "network2"), ["10.244.0.31", "10.244.0.32"], "what is in none is everybody's");
}

#[test]
fn the_other_side_passes_on_to_its_own() {
    let mut mesh = two_networks();
    mesh.config("{kind: Gateway, metadata: {name: between, namespace: istio-system}, spec: {selector: {istio: ingressgateway}, servers: [{port: {number: 15443, name: tls, protocol: TLS}, hosts: ['*.local'], tls: {mode: AUTO_PASSTHROUGH}}]}}");
    let node = "router~10.244.0.9~istio-ingressgateway-1.istio-system~istio-system.svc.cluster.local";
    let scope = mesh.scope_with(node, &json!({"NETWORK": "network2", "REQUESTED_NETWORK_VIEW": "network2"}));
    let resources = mesh.resources(&scope);
    let name = "outbound_.80_._.customers.default.svc.cluster.local";
    assert_eq!(of(&resources, name), [at("10.244.0.32", 3000, 2)]);
    let chains =
        resources.get(Listener, "0.0.0.0_15443")["filter_chains"].as_array().cloned().expect("chains");
    assert!(chains.iter().any(|chain| chain["filter_chain_match"]["server_names"] == json!([name])));
    // A gateway of network1 leads to network2 through the gateways there, and passes the callers' TLS on to them.
    let scope = mesh.scope_with(node, &json!({}));
    assert_eq!(of(&mesh.resources(&scope), name).len(), 3);
}

#[test]
fn changes_of_gateways_touch_whom_they_lead_to() {
    let mut mesh = two_networks();
    let touched = |mesh: &mut Mesh, change: &dyn Fn(&mut Mesh) -> Delta| {
        let before: Scope = mesh.scope(CALLER);
        let delta = change(mesh);
        let after = mesh.scope(CALLER);
        assert_eq!(before.class, after.class);
        let touched = affected(&delta, &before, &after);
        let (old, new) = (mesh.resources(&before), mesh.resources(&after));
        for kind in [Cluster, Endpoint, Listener] {
            let names = new.names(kind);
            assert_eq!(old.names(kind), names);
            let changed = names.into_iter().filter(|name| old.get(kind, name) != new.get(kind, name));
            changed.for_each(|name| assert!(touched.of(kind).covers(name), "{name}"));
        }
        touched
    };
    let moved = touched(&mut mesh, &|mesh| gateways(mesh, "network2", &["7.7.7.9", "7.7.7.8"]));
    assert_eq!(moved.endpoints, Extent::Services(["customers.default.svc.cluster.local".into()].into()));
    assert!(moved.clusters.is_none() && moved.listeners.is_none() && moved.routes.is_none());
    let elsewhere = touched(&mut mesh, &|mesh| {
        config_map(mesh, "networks: {network9: {gateways: [{address: 9.9.9.9, port: 1}]}}")
    });
    assert!(elsewhere.is_none(), "{elsewhere:?}");
    // Another count of gateways is another scale for all.
    let scaled = touched(&mut mesh, &|mesh| gateways(mesh, "network2", &["7.7.7.8"]));
    assert!(matches!(scaled.endpoints, Extent::Services(hosts) if hosts.len() > 1));
}

#[test]
fn pods_of_other_networks_are_no_answer_to_queries() {
    let mut mesh = two_networks();
    mesh.service_of(json!({"metadata": {"namespace": "default", "name": "set"},
        "spec": {"clusterIP": "None", "clusterIPs": ["None"], "ports": [{"name": "http", "port": 80}], "selector": {"app": "customers"}}}));
    let both = [("customers-v1-1", "10.244.0.31", true), ("customers-v2-1", "10.244.0.32", true)];
    mesh.endpoints("default", "set", "http", 3000, &both);
    let names = |mesh: &mut Mesh, network: &str| {
        let resources = seen_by(mesh, &json!({"DNS_CAPTURE": "true", "NETWORK": network}));
        resources.all(NameTable)[0]["set.default.svc.cluster.local"][0].clone()
    };
    assert_eq!(names(&mut mesh, "network1"), json!(["10.244.0.31"]));
    assert_eq!(names(&mut mesh, "network2"), json!(["10.244.0.32"]));
}
