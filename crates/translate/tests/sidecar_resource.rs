//! The Sidecar resource: which one is in force, what it imports, how the workload receives (T18).
mod support;

use lateen_translate::{Extent, Resource, ResourceType, Scope, affected, generate_outward};
use serde_json::json;
use support::Mesh;

const HTTP: &str = r#"[{"name": "http", "port": 80}, {"name": "http-admin", "port": 9000}]"#;

/// Services a, b and c in namespace shop, d in namespace other; each with ports 80 and 9000.
fn mesh() -> Mesh {
    let mut mesh = Mesh::empty();
    for (index, (namespace, name)) in
        [("shop", "a"), ("shop", "b"), ("shop", "c"), ("other", "d")].into_iter().enumerate()
    {
        let ports = serde_json::from_str(HTTP).expect("JSON");
        mesh.service(namespace, name, &format!("10.96.0.{}", index + 1), ports, json!({"app": name}));
        mesh.pod(namespace, name, &format!("10.244.0.{}", index + 1), json!({"app": name}));
    }
    mesh
}

fn sidecar(mesh: &mut Mesh, name: &str, namespace: &str, spec: &str) -> lateen_model::Delta {
    mesh.config(&format!(
        "{{kind: Sidecar, metadata: {{name: {name}, namespace: {namespace}}}, spec: {spec}}}"
    ))
}

/// Hosts of the services whose clusters a proxy has, `name:ports`.
fn clusters(mesh: &mut Mesh, namespace: &str, pod: &str) -> Vec<String> {
    let resources = mesh.sidecar_resources(namespace, pod);
    let outbound = resources.names(ResourceType::Cluster).into_iter().filter_map(|name| {
        let [_, port, _, host] = name.split('|').collect::<Vec<_>>()[..] else { return None };
        name.starts_with("outbound|")
            .then(|| format!("{}:{port}", host.split('.').next().unwrap_or_default()))
    });
    let mut found: Vec<String> = outbound.collect();
    found.sort();
    found
}

#[test]
fn the_sidecar_that_selects_comes_before_the_namespaces_and_that_before_the_roots() {
    let mut mesh = mesh();
    let everything = ["a:80", "a:9000", "b:80", "b:9000", "c:80", "c:9000", "d:80", "d:9000"];
    assert_eq!(clusters(&mut mesh, "shop", "a"), everything);
    sidecar(&mut mesh, "default", "istio-system", "{egress: [{hosts: ['./*']}]}");
    assert_eq!(clusters(&mut mesh, "other", "d"), ["d:80", "d:9000"], "the root's is for all namespaces");
    assert_eq!(clusters(&mut mesh, "shop", "a").len(), 6);
    sidecar(&mut mesh, "all", "shop", "{egress: [{hosts: ['other/*']}]}");
    assert_eq!(clusters(&mut mesh, "shop", "a"), ["d:80", "d:9000"]);
    let one = "{workloadSelector: {labels: {app: a}}, egress: [{hosts: ['*/b.shop.svc.cluster.local']}]}";
    sidecar(&mut mesh, "one", "shop", one);
    assert_eq!(clusters(&mut mesh, "shop", "a"), ["b:80", "b:9000"]);
    assert_eq!(clusters(&mut mesh, "shop", "b"), ["d:80", "d:9000"]);
    // A Sidecar of the root namespace with a selector is for the root namespace's own workloads.
    sidecar(
        &mut mesh,
        "default",
        "istio-system",
        "{workloadSelector: {labels: {app: d}}, egress: [{hosts: ['~/*']}]}",
    );
    assert_eq!(clusters(&mut mesh, "other", "d"), everything);
}

#[test]
fn hosts_are_imported_by_namespace_pattern_and_port() {
    for (egress, expected) in [
        ("[{hosts: ['~/*']}]", vec![]),
        ("[{hosts: ['*/*']}]", vec!["a:80", "a:9000", "b:80", "b:9000", "c:80", "c:9000", "d:80", "d:9000"]),
        (
            "[{hosts: ['./a.shop.svc.cluster.local', '*/d.other.svc.cluster.local']}]",
            vec!["a:80", "a:9000", "d:80", "d:9000"],
        ),
        ("[{hosts: ['other/*.shop.svc.cluster.local']}]", vec![]),
        ("[{port: {number: 9000, protocol: HTTP}, hosts: ['./*']}]", vec!["a:9000", "b:9000", "c:9000"]),
        (
            "[{port: {number: 9000, protocol: HTTP}, hosts: ['./*']}, {hosts: ['./a.shop.svc.cluster.local']}]",
            vec!["a:80", "a:9000", "b:9000", "c:9000"],
        ),
    ] {
        let mut mesh = mesh();
        sidecar(&mut mesh, "default", "shop", &format!("{{egress: {egress}}}"));
        assert_eq!(clusters(&mut mesh, "shop", "a"), expected, "{egress}");
    }
}

#[test]
fn virtual_services_bring_their_destinations_but_no_addresses() {
    let mut mesh = mesh();
    sidecar(&mut mesh, "default", "shop", "{egress: [{hosts: ['./a.shop.svc.cluster.local']}]}");
    mesh.config("{kind: VirtualService, metadata: {name: a, namespace: shop}, spec: {hosts: [a], http: [{route: [{destination: {host: d.other.svc.cluster.local, port: {number: 80}}}]}]}}");
    mesh.config("{kind: VirtualService, metadata: {name: b, namespace: shop}, spec: {hosts: [b], http: [{route: [{destination: {host: c}}]}]}}");
    assert_eq!(clusters(&mut mesh, "shop", "a"), ["a:80", "a:9000", "d:80"], "b's rules are not imported");
    let resources = mesh.sidecar_resources("shop", "a");
    let routes = resources.get(ResourceType::Route, "80").to_string();
    assert!(routes.contains("outbound|80||d.other") && !routes.contains("d.other:80"), "{routes}");
}

#[test]
fn unknown_destinations_are_the_sidecars_choice() {
    let mut mesh = mesh();
    let catch_all = |mesh: &mut Mesh| {
        let resources = mesh.sidecar_resources("shop", "a");
        let hosts = resources.get(ResourceType::Route, "80")["virtual_hosts"].clone();
        let hosts = hosts.as_array().expect("virtual hosts").clone();
        let unknown = hosts.iter().find(|host| host["domains"][0] == "*").expect("catches all").clone();
        let outbound = resources.get(ResourceType::Listener, "virtualOutbound").to_string();
        (unknown["name"].clone(), unknown.to_string(), outbound)
    };
    assert_eq!(catch_all(&mut mesh).0, "allow_any");
    sidecar(&mut mesh, "default", "shop", "{outboundTrafficPolicy: {mode: REGISTRY_ONLY}}");
    let (name, _, outbound) = catch_all(&mut mesh);
    assert!(name == "block_all" && !outbound.contains("PassthroughCluster"), "{name} {outbound}");
    let proxy = "{egress: [{hosts: ['./*']}], outboundTrafficPolicy: {mode: ALLOW_ANY, egressProxy: {host: d.other.svc.cluster.local, port: {number: 9000}}}}";
    sidecar(&mut mesh, "default", "shop", proxy);
    let (name, route, outbound) = catch_all(&mut mesh);
    let cluster = "outbound|9000||d.other.svc.cluster.local";
    assert!(
        name == "allow_any" && route.contains(cluster) && outbound.contains(cluster),
        "{route} {outbound}"
    );
    assert!(clusters(&mut mesh, "shop", "a").contains(&"d:9000".to_owned()), "the proxy's cluster is there");
}

#[test]
fn ingress_listeners_replace_the_services_ports() {
    let mut mesh = mesh();
    let spec = "{ingress: [
        {port: {number: 9080, protocol: HTTP, name: http}, defaultEndpoint: '127.0.0.1:8080', connectionPool: {tcp: {maxConnections: 7}}},
        {port: {number: 9081, protocol: TCP}, defaultEndpoint: '0.0.0.0:8081'},
        {port: {number: 9082, protocol: HTTP}, defaultEndpoint: 'unix:///run/app.sock'},
        {port: {number: 80, protocol: HTTP}}], inboundConnectionPool: {http: {http2MaxRequests: 9}}}";
    sidecar(&mut mesh, "default", "shop", spec);
    let resources = mesh.sidecar_resources("shop", "a");
    let inbound: Vec<_> = resources
        .names(ResourceType::Cluster)
        .into_iter()
        .filter(|name| name.starts_with("inbound|"))
        .collect();
    assert_eq!(inbound, ["inbound|80||", "inbound|9080||", "inbound|9081||", "inbound|9082||"]);
    let loopback = resources.get(ResourceType::Cluster, "inbound|9080||");
    let address = &loopback["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"];
    assert_eq!(address["socket_address"], json!({"address": "127.0.0.1", "port_value": 8080}));
    assert_eq!(loopback["circuit_breakers"]["thresholds"][0]["max_connections"], 7);
    let unix = resources.get(ResourceType::Cluster, "inbound|9082||");
    let address = &unix["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"];
    assert_eq!(*address, json!({"pipe": {"path": "/run/app.sock"}}));
    let own = resources.get(ResourceType::Cluster, "inbound|9081||");
    assert_eq!(own["original_dst_lb_config"]["upstream_port_override"], 8081);
    let plain = resources.get(ResourceType::Cluster, "inbound|80||");
    assert_eq!(plain["circuit_breakers"]["thresholds"][0]["max_requests"], 9, "{plain}");
    let listener = resources.get(ResourceType::Listener, "virtualInbound").to_string();
    assert!(listener.contains("0.0.0.0_9080") && !listener.contains("0.0.0.0_9000"), "{listener}");
}

#[test]
fn egress_listeners_at_addresses_of_their_own() {
    use ResourceType::{Listener, Route};
    let mut mesh = mesh();
    mesh.config("{kind: VirtualService, metadata: {name: b, namespace: shop}, spec: {hosts: [b], http: [{route: [{destination: {host: d.other.svc.cluster.local, port: {number: 80}}}]}]}}");
    let spec = "{egress: [
        {port: {number: 80, protocol: HTTP, name: http}, captureMode: NONE, hosts: ['./b.shop.svc.cluster.local']},
        {port: {number: 9000, protocol: TCP, name: tcp}, bind: 127.0.0.9, captureMode: NONE, hosts: ['./c.shop.svc.cluster.local']},
        {hosts: ['./a.shop.svc.cluster.local']}]}";
    sidecar(&mut mesh, "default", "shop", spec);
    assert_eq!(
        clusters(&mut mesh, "shop", "a"),
        ["a:80", "a:9000", "b:80", "c:9000", "d:80"],
        "and where b's rules lead"
    );
    let resources = mesh.sidecar_resources("shop", "a");
    let http = resources.get(Listener, "127.0.0.1_80");
    assert_eq!(http["address"]["socket_address"], json!({"address": "127.0.0.1", "port_value": 80}));
    assert!(http.get("bind_to_port").is_none(), "the application connects to it");
    assert_eq!(support::filter(&http["filter_chains"][0])["rds"]["route_config_name"], "80");
    assert_eq!(support::filter(&http["default_filter_chain"])["cluster"], "BlackHoleCluster");
    let routes = resources.get(Route, "80").to_string();
    assert!(routes.contains("b.shop:80") || routes.contains("b.shop.svc.cluster.local"), "{routes}");
    assert!(routes.contains("outbound|80||d.other") && !routes.contains("a.shop"), "{routes}");
    let tcp = resources.get(Listener, "127.0.0.9_9000");
    assert_eq!(
        support::filter(&tcp["filter_chains"][0])["cluster"],
        "outbound|9000||c.shop.svc.cluster.local"
    );
    assert!(!resources.names(Listener).contains(&"0.0.0.0_80"), "the port is the listener's alone");
    // Without a port: one for each port of what is reached; captured at its address where nothing else is said.
    sidecar(
        &mut mesh,
        "default",
        "shop",
        "{egress: [{bind: 10.9.9.9, hosts: ['./a.shop.svc.cluster.local']}]}",
    );
    let resources = mesh.sidecar_resources("shop", "a");
    for port in [80, 9000] {
        let listener = resources.get(Listener, &format!("10.9.9.9_{port}"));
        assert_eq!(listener["bind_to_port"], false);
    }
    let listeners = resources.names(Listener);
    assert!(!listeners.contains(&"0.0.0.0_80") && !listeners.contains(&"10.96.0.1_9000"), "{listeners:?}");
    let listener = |protocol: &str| {
        format!(
            "{{egress: [{{port: {{number: 9000, protocol: {protocol}, name: x}}, bind: 127.0.0.1, captureMode: NONE, hosts: ['./a.shop.svc.cluster.local']}}]}}"
        )
    };
    sidecar(&mut mesh, "default", "shop", &listener("HTTP"));
    let resources = mesh.sidecar_resources("shop", "a");
    assert!(
        resources.get(Route, "9000").to_string().contains("outbound|9000||a.shop"),
        "HTTP, as the listener says"
    );
}

#[test]
fn tls_of_callers_outside_the_mesh_ends_where_that_of_the_mesh_is_disabled() {
    let mut mesh = mesh();
    let spec = "{workloadSelector: {labels: {app: a}}, ingress: [{port: {number: 9443, protocol: HTTPS, name: https}, defaultEndpoint: '127.0.0.1:80', tls: {mode: SIMPLE, serverCertificate: /certs/tls.crt, privateKey: /certs/tls.key}}]}";
    let socket = |mesh: &mut Mesh| {
        let resources = mesh.sidecar_resources("shop", "a");
        let inbound = resources.get(ResourceType::Listener, "virtualInbound").clone();
        let chains = inbound["filter_chains"].as_array().expect("chains").clone();
        let of_port: Vec<_> = chains
            .into_iter()
            .filter(|chain| chain["filter_chain_match"]["destination_port"] == 9443)
            .collect();
        of_port
            .iter()
            .map(|chain| chain["transport_socket"]["typed_config"]["common_tls_context"].clone())
            .collect::<Vec<_>>()
    };
    let warned = |mesh: &mut Mesh| {
        let world = mesh.world();
        let one = world.sidecars().next().expect("a Sidecar").clone();
        lateen_translate::check_sidecar(&one, &world)
            .into_iter()
            .map(|warning| warning.path)
            .collect::<Vec<_>>()
    };
    sidecar(&mut mesh, "tls", "shop", spec);
    assert!(socket(&mut mesh).len() > 1);
    assert_eq!(warned(&mut mesh), ["spec.ingress[0].tls"]);
    mesh.config("{kind: PeerAuthentication, metadata: {name: a, namespace: shop}, spec: {selector: {matchLabels: {app: a}}, portLevelMtls: {'9443': {mode: DISABLE}}}}");
    let contexts = socket(&mut mesh);
    assert_eq!(contexts.len(), 1);
    assert_eq!(contexts[0]["tls_certificates"][0]["certificate_chain"]["filename"], "/certs/tls.crt");
    assert!(warned(&mut mesh).is_empty());
}

fn held(scope: &Scope, mesh: &Mesh) -> Vec<(ResourceType, std::sync::Arc<Resource>)> {
    let of = |kind| {
        generate_outward(scope, &mesh.cache, kind, &Extent::All).into_iter().map(move |one| (kind, one))
    };
    ResourceType::ALL.into_iter().flat_map(of).collect()
}

/// Applies a change; what `affected` names, applied to the old state, must give the new one.
fn follows(mesh: &mut Mesh, change: impl FnOnce(&mut Mesh) -> lateen_model::Delta) -> bool {
    let before = mesh.sidecar("shop", "a");
    let old = held(&before, mesh);
    let delta = change(mesh);
    let fresh = mesh.sidecar("shop", "a");
    let scope = before.follow(fresh.world.clone(), &delta);
    let named = affected(&delta, &before, &scope);
    let mut patched: Vec<_> =
        old.into_iter().filter(|(kind, one)| !named.of(*kind).covers(&one.name)).collect();
    for kind in ResourceType::ALL {
        let made = generate_outward(&scope, &mesh.cache, kind, named.of(kind));
        patched.extend(made.into_iter().map(|one| (kind, one)));
    }
    let key = |(kind, one): &(ResourceType, std::sync::Arc<Resource>)| (*kind, one.name.clone());
    let mut wanted = held(&fresh, mesh);
    patched.sort_by_key(key);
    wanted.sort_by_key(key);
    assert_eq!(patched, wanted, "{delta:?}");
    !named.is_none()
}

#[test]
fn changes_of_what_is_not_imported_are_no_business_of_the_proxy() {
    let mut mesh = mesh();
    let spec = |hosts: &str| format!("{{egress: [{{hosts: [{hosts}]}}]}}");
    let a = spec("'./a.shop.svc.cluster.local'");
    assert!(follows(&mut mesh, |mesh| sidecar(mesh, "default", "shop", &a)));
    assert!(!follows(&mut mesh, |mesh| mesh.endpoints(
        "shop",
        "b",
        "http",
        80,
        &[("b", "10.244.0.2", true)]
    )));
    assert!(follows(&mut mesh, |mesh| mesh.endpoints("shop", "a", "http", 80, &[("a", "10.244.0.1", true)])));
    let ports = || json!([{"name": "http", "port": 81}]);
    assert!(!follows(&mut mesh, |mesh| mesh.service("shop", "b", "10.96.0.2", ports(), json!({"app": "b"}))));
    assert!(follows(&mut mesh, |mesh| mesh.service("shop", "a", "10.96.0.1", ports(), json!({"app": "x"}))));
    let rule = |host: &str, to: &str| {
        format!(
            "{{kind: VirtualService, metadata: {{name: {host}, namespace: shop}}, spec: {{hosts: [{host}], http: [{{route: [{{destination: {{host: {to}}}}}]}}]}}}}"
        )
    };
    assert!(!follows(&mut mesh, |mesh| mesh.config(&rule("b", "c"))), "b is not imported");
    assert!(follows(&mut mesh, |mesh| mesh.config(&rule("a", "c"))), "c's clusters come");
    assert!(follows(&mut mesh, |mesh| mesh.config(&rule("a", "b"))), "c's go, b's come");
    assert!(follows(&mut mesh, |mesh| mesh.endpoints("shop", "b", "http", 81, &[("b", "10.244.0.9", true)])));
    assert!(follows(&mut mesh, |mesh| sidecar(mesh, "default", "shop", &spec("'*/*'"))));
    assert!(!follows(&mut mesh, |mesh| sidecar(mesh, "default", "other", &a)), "another namespace's");
}

/// <https://istio.io/latest/docs/reference/config/networking/sidecar/#IstioEgressListener>: `bind`.
#[test]
fn egress_listeners_at_unix_sockets() {
    use ResourceType::{Listener, Route};
    let mut mesh = mesh();
    mesh.service(
        "shop",
        "single",
        "10.96.0.9",
        json!([{"name": "http", "port": 8000}]),
        json!({"app": "single"}),
    );
    mesh.config("{kind: VirtualService, metadata: {name: b, namespace: shop}, spec: {hosts: [b, shop.example], http: [{match: [{port: 9000}], directResponse: {status: 418}}, {route: [{destination: {host: d.other.svc.cluster.local, port: {number: 80}}}]}]}}");
    let spec = "{egress: [
        {port: {number: 0, protocol: HTTP, name: socket}, bind: 'unix:///run/out.sock', hosts: ['./b.shop.svc.cluster.local', './single.shop.svc.cluster.local']},
        {port: {number: 0, protocol: TCP, name: bytes}, bind: 'unix://@bytes', captureMode: NONE, hosts: ['./c.shop.svc.cluster.local']},
        {hosts: ['./a.shop.svc.cluster.local']}]}";
    sidecar(&mut mesh, "default", "shop", spec);
    assert_eq!(
        clusters(&mut mesh, "shop", "a"),
        ["a:80", "a:9000", "b:80", "b:9000", "c:80", "c:9000", "d:80", "single:8000"]
    );
    let resources = mesh.sidecar_resources("shop", "a");
    let http = resources.get(Listener, "unix:///run/out.sock_0");
    assert_eq!(http["address"], json!({"pipe": {"path": "/run/out.sock"}}));
    assert!(http.get("bind_to_port").is_none(), "the application connects to it");
    let manager = support::filter(&http["filter_chains"][0]);
    assert_eq!(manager["rds"]["route_config_name"], "unix:///run/out.sock");
    let routes = resources.get(Route, "unix:///run/out.sock");
    assert!(routes.get("ignore_port_in_host_matching").is_none(), "ports tell services apart: {routes}");
    let domains = |name: &str| {
        let domains = support::virtual_host(routes, name)["domains"].as_array().cloned().unwrap_or_default();
        domains.iter().map(|domain| domain.as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
    };
    let of_80 = domains("b.shop.svc.cluster.local:80");
    assert!(of_80.contains(&"b".to_owned()) && of_80.contains(&"b.shop:80".to_owned()), "{of_80:?}");
    let of_9000 = domains("b.shop.svc.cluster.local:9000");
    assert!(of_9000.contains(&"b:9000".to_owned()) && !of_9000.contains(&"b".to_owned()), "{of_9000:?}");
    assert!(domains("single.shop.svc.cluster.local:8000").contains(&"single".to_owned()), "its only port");
    assert!(domains("shop.example:80").contains(&"shop.example".to_owned()));
    let teapot = support::virtual_host(routes, "b.shop.svc.cluster.local:9000").to_string();
    assert!(teapot.contains("418") && teapot.contains("outbound|80||d.other"), "rules by port: {teapot}");
    assert!(!support::virtual_host(routes, "b.shop.svc.cluster.local:80").to_string().contains("418"));
    let bytes = resources.get(Listener, "unix://@bytes_0");
    assert_eq!(bytes["address"], json!({"pipe": {"path": "@bytes"}}));
    let cluster = &support::filter(&bytes["filter_chains"][0])["cluster"];
    assert!(cluster.as_str().is_some_and(|name| name.ends_with("c.shop.svc.cluster.local")), "{bytes}");
    let captured = resources.get(Route, "80").to_string();
    assert!(captured.contains("a.shop") && !captured.contains("b.shop.svc.cluster.local:80"), "{captured}");
}

#[test]
fn ingress_listeners_at_addresses_of_their_own() {
    use ResourceType::{Cluster, Listener};
    let mut mesh = mesh();
    let spec = "{workloadSelector: {labels: {app: a}}, ingress: [
        {port: {number: 7080, protocol: HTTP, name: http}, captureMode: NONE, defaultEndpoint: '127.0.0.1:8080'},
        {port: {number: 7081, protocol: TCP, name: tcp}, captureMode: NONE, bind: 127.0.0.7, defaultEndpoint: 'unix:///run/app.sock'},
        {port: {number: 7082, protocol: HTTP, name: captured}, bind: 127.0.0.8, defaultEndpoint: '127.0.0.1:8082'},
        {port: {number: 9000, protocol: HTTP, name: taken}, captureMode: NONE, defaultEndpoint: '127.0.0.1:8083'}]}";
    sidecar(&mut mesh, "own", "shop", spec);
    let resources = mesh.sidecar_resources("shop", "a");
    let http = resources.get(Listener, "0.0.0.0_7080");
    assert_eq!(http["address"]["socket_address"], json!({"address": "0.0.0.0", "port_value": 7080}));
    assert!(http.get("bind_to_port").is_none() && http["traffic_direction"] == "INBOUND", "{http}");
    let chains = http["filter_chains"].as_array().expect("chains");
    assert!(chains.iter().any(|chain| chain.get("transport_socket").is_some()), "mutual TLS is accepted");
    assert!(chains.iter().any(|chain| chain.get("transport_socket").is_none()), "and plaintext");
    assert!(http.to_string().contains("inbound|7080||") && http.to_string().contains("tls_inspector"));
    let tcp = resources.get(Listener, "127.0.0.7_7081");
    assert!(tcp.to_string().contains("inbound|7081||"), "{tcp}");
    let captured = resources.get(Listener, "virtualInbound").to_string();
    assert!(captured.contains("inbound|7082||") && !captured.contains("inbound|7080||"), "{captured}");
    let clusters = resources.names(Cluster);
    let inbound: Vec<_> = clusters.into_iter().filter(|name| name.starts_with("inbound|")).collect();
    assert_eq!(inbound, ["inbound|7080||", "inbound|7081||", "inbound|7082||"], "no second 0.0.0.0_9000");
    let world = mesh.world();
    let one = world.sidecars().next().expect("a Sidecar").clone();
    let warned = lateen_translate::check_sidecar(&one, &world);
    let paths: Vec<_> = warned.iter().map(|warning| warning.path.as_str()).collect();
    assert_eq!(paths, ["spec.ingress[2].bind", "spec.ingress[3]"]);
    // The modes of the workload are those of its listeners.
    mesh.config("{kind: PeerAuthentication, metadata: {name: a, namespace: shop}, spec: {selector: {matchLabels: {app: a}}, mtls: {mode: STRICT}, portLevelMtls: {'7081': {mode: DISABLE}}}}");
    let resources = mesh.sidecar_resources("shop", "a");
    let chains =
        |name: &str| resources.get(Listener, name)["filter_chains"].as_array().cloned().unwrap_or_default();
    assert!(chains("0.0.0.0_7080").iter().all(|chain| chain.get("transport_socket").is_some()));
    assert!(chains("127.0.0.7_7081").iter().all(|chain| chain.get("transport_socket").is_none()));
}
