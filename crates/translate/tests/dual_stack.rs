//! What proxies with addresses of both families get (T23).
mod support;

use lateen_translate::ResourceType::{Cluster, Endpoint, Listener, NameTable, Route};
use serde_json::{Value, json};
use support::{Mesh, Resources, virtual_host};

const ON: &str = "defaultConfig: { proxyMetadata: { ISTIO_DUAL_STACK: 'true' } }";
const NODE: &str = "sidecar~10.0.0.1~web-1.default~default.svc.cluster.local";

/// A Service with both families, one with IPv6 only and a headless one, of the same pod; and a name outside.
fn mesh() -> Mesh {
    let mut mesh = Mesh::empty();
    let service = |name: &str, ips: Value| {
        json!({"metadata": {"namespace": "default", "name": name}, "spec": {"clusterIP": ips[0], "clusterIPs": ips,
            "ports": [{"name": "http", "port": 80}, {"name": "tcp", "port": 9000}], "selector": {"app": "web"}}})
    };
    mesh.service_of(service("dual", json!(["10.96.0.7", "fd00::7"])));
    mesh.service_of(service("six", json!(["fd00::8"])));
    mesh.service_of(service("heads", json!(["None"])));
    mesh.pod("default", "web-1", "10.0.0.1", json!({"app": "web"}));
    for name in ["dual", "six", "heads"] {
        for (family, address) in [("IPv4", "10.0.0.1"), ("IPv6", "fd00::1")] {
            if name == "six" && family == "IPv4" {
                continue;
            }
            let slice = json!({"addressType": family,
                "metadata": {"namespace": "default", "name": format!("{name}-{family}"),
                    "labels": {"kubernetes.io/service-name": name}},
                "endpoints": [{"addresses": [address], "hostname": "web-1", "targetRef": {"kind": "Pod", "name": "web-1"}}],
                "ports": [{"name": "http", "port": 80}, {"name": "tcp", "port": 9000}]});
            let slice = serde_json::from_value(slice).expect("a slice");
            mesh.apply(lateen_model::Event::Applied(lateen_model::Object::EndpointSlice(slice)));
        }
    }
    mesh.config("{kind: ServiceEntry, metadata: {name: out}, spec: {hosts: [out.example.com], resolution: DNS, ports: [{number: 9100, name: tcp, protocol: TCP}]}}");
    mesh
}

fn resources(mesh: &mut Mesh, ips: &str) -> Resources {
    let scope = mesh.scope_with(NODE, &json!({"INSTANCE_IPS": ips, "DNS_CAPTURE": "true"}));
    mesh.resources(&scope)
}

/// The addresses a listener or an endpoint has, the first one first.
fn addresses(of: &Value) -> Vec<String> {
    let more = of["additional_addresses"].as_array().cloned().unwrap_or_default();
    let all = std::iter::once(of["address"].clone()).chain(more.iter().map(|more| more["address"].clone()));
    let text = |address: Value| {
        let socket = &address["socket_address"];
        format!("{} {}", socket["address"].as_str().unwrap_or_default(), socket["port_value"])
    };
    all.map(text).collect()
}

fn endpoint(resources: &Resources, name: &str) -> Vec<Vec<String>> {
    let assignment = resources.get(Endpoint, name);
    let endpoints = assignment["endpoints"][0]["lb_endpoints"].as_array().cloned().unwrap_or_default();
    endpoints.iter().map(|one| addresses(&one["endpoint"])).collect()
}

#[test]
fn listeners_clusters_and_endpoints_have_both_families() {
    let mut mesh = mesh();
    mesh.mesh_config(ON);
    let resources = resources(&mut mesh, "10.0.0.1,fd00::1");
    for (name, expected) in [
        ("virtualOutbound", ["0.0.0.0 15001", ":: 15001"]),
        ("virtualInbound", ["0.0.0.0 15006", ":: 15006"]),
        ("0.0.0.0_80", ["0.0.0.0 80", ":: 80"]),
        ("10.96.0.7_9000", ["10.96.0.7 9000", "fd00::7 9000"]),
        ("10.0.0.1_9000", ["10.0.0.1 9000", "fd00::1 9000"]),
    ] {
        assert_eq!(addresses(resources.get(Listener, name)), expected, "{name}");
    }
    assert_eq!(addresses(resources.get(Listener, "fd00::8_9000")), ["fd00::8 9000"]);
    let host = virtual_host(resources.get(Route, "80"), "dual.default.svc.cluster.local:80");
    let domains = host["domains"].as_array().expect("domains");
    assert!(domains.contains(&json!("10.96.0.7")) && domains.contains(&json!("[fd00::7]")), "{domains:?}");
    assert_eq!(
        endpoint(&resources, "outbound|80||dual.default.svc.cluster.local"),
        [["10.0.0.1 80", "fd00::1 80"]]
    );
    assert_eq!(endpoint(&resources, "outbound|80||six.default.svc.cluster.local"), [["fd00::1 80"]]);
    for cluster in ["inbound|80||", "InboundPassthroughCluster"] {
        let bind = &resources.get(Cluster, cluster)["upstream_bind_config"];
        assert_eq!(bind["source_address"]["address"], "127.0.0.6", "{cluster}");
        assert_eq!(bind["extra_source_addresses"][0]["address"]["address"], "::6", "{cluster}");
    }
    let out = resources.get(Cluster, "outbound|9100||out.example.com").to_string();
    assert!(out.contains("\"ALL\""), "{out}");
    // Names stand for both, automatic addresses too.
    let names = resources.get(NameTable, "name-table");
    let heads = json!(["10.0.0.1", "fd00::1"]);
    assert_eq!(names["dual.default.svc.cluster.local"][0], json!(["10.96.0.7", "fd00::7"]));
    assert_eq!(names["heads.default.svc.cluster.local"][0], heads);
    assert_eq!(names["web-1.heads.default.svc.cluster.local"][0], heads);
    let out = &names["out.example.com"][0];
    let (v4, v6) = (out[0].as_str().unwrap_or_default(), out[1].as_str().unwrap_or_default());
    assert!(v4.starts_with("240.240.") && v6.starts_with("2001:2::"), "{out}");
    assert_eq!(
        addresses(resources.get(Listener, &format!("{v4}_9100"))),
        [format!("{v4} 9100"), format!("{v6} 9100")]
    );
}

#[test]
fn one_family_gets_what_it_got_before() {
    for (config, ips) in [("{}", "10.0.0.1,fd00::1"), (ON, "10.0.0.1")] {
        let mut mesh = mesh();
        mesh.mesh_config(config);
        let resources = resources(&mut mesh, ips);
        for name in ["virtualOutbound", "virtualInbound", "0.0.0.0_80", "10.96.0.7_9000", "fd00::7_9000"] {
            assert_eq!(addresses(resources.get(Listener, name)).len(), 1, "{config} {ips} {name}");
        }
        assert_eq!(
            endpoint(&resources, "outbound|80||dual.default.svc.cluster.local"),
            [["10.0.0.1 80"]],
            "the pod is one endpoint all the same"
        );
        let inbound = resources.get(Cluster, "inbound|80||");
        assert!(inbound["upstream_bind_config"]["extra_source_addresses"].is_null(), "{inbound}");
        let out = resources.get(Cluster, "outbound|9100||out.example.com").to_string();
        assert!(!out.contains("\"ALL\""), "{out}");
    }
}

#[test]
fn gateways_listen_at_both_families() {
    let mut mesh = Mesh::course();
    mesh.mesh_config(ON);
    let node = "router~10.244.0.9~istio-ingressgateway-1.istio-system~istio-system.svc.cluster.local";
    let scope = mesh.scope_with(node, &json!({"INSTANCE_IPS": "10.244.0.9,fd00::9"}));
    let resources = mesh.resources(&scope);
    assert_eq!(addresses(resources.get(Listener, "0.0.0.0_8080")), ["0.0.0.0 8080", ":: 8080"]);
}
