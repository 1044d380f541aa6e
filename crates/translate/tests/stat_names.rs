//! Names of clusters and of TCP in statistics, by the patterns of mesh config.
mod support;

use lateen_translate::ResourceType::{Cluster, Listener};
use serde_json::json;
use support::Mesh;

const ALL: &str = "%SERVICE%_%SERVICE_FQDN%_%SERVICE_PORT%_%SERVICE_PORT_NAME%_%SUBSET_NAME%_%TARGET_PORT%";

/// A service with HTTP and TCP, subsets, a host outside, and rules for TCP.
fn mesh(patterns: &str) -> Mesh {
    let mut mesh = Mesh::empty();
    mesh.mesh_config(patterns);
    let ports = json!([{"name": "http", "port": 80, "targetPort": 8080}, {"name": "tcp", "port": 9000, "targetPort": 9001}]);
    mesh.service("shop", "a", "10.96.0.1", ports, json!({"app": "a"}));
    mesh.pod("shop", "a", "10.244.0.1", json!({"app": "a"}));
    mesh.config("{kind: DestinationRule, metadata: {name: a, namespace: shop}, spec: {host: a, subsets: [{name: v1, labels: {version: v1}}]}}");
    mesh.config("{kind: ServiceEntry, metadata: {name: far, namespace: shop}, spec: {hosts: [far.example.com], addresses: [10.9.9.9], resolution: STATIC, endpoints: [{address: 1.2.3.4}], ports: [{number: 5432, name: db, protocol: TCP}]}}");
    mesh
}

#[test]
fn clusters_and_tcp_are_named_by_the_patterns() {
    let mut mesh =
        mesh(&format!("{{outboundClusterStatName: 'out_{ALL}', inboundClusterStatName: 'in_{ALL}'}}"));
    let resources = mesh.sidecar_resources("shop", "a");
    let name = |cluster: &str| resources.get(Cluster, cluster)["alt_stat_name"].as_str().map(str::to_owned);
    let host = "a.shop.svc.cluster.local";
    for (cluster, expected) in [
        ("outbound|80||a.shop.svc.cluster.local", format!("out_a.shop_{host}_80_http__0;")),
        ("outbound|9000|v1|a.shop.svc.cluster.local", format!("out_a.shop_{host}_9000_tcp_v1_0;")),
        ("outbound|5432||far.example.com", "out_far.example.com_far.example.com_5432_db__0;".to_owned()),
        ("inbound|8080||", format!("in_a.shop_{host}_80_http__8080;")),
        ("inbound|9001||", format!("in_a.shop_{host}_9000_tcp__9001;")),
    ] {
        assert_eq!(name(cluster), Some(expected), "{cluster}");
    }
    assert_eq!(name("PassthroughCluster"), None);
    let prefix = |listener: &str| {
        let listener = resources.get(Listener, listener);
        let chain = listener["filter_chains"].as_array().and_then(|chains| chains.last().cloned());
        support::filter(&chain.expect("a chain"))["stat_prefix"].as_str().unwrap_or_default().to_owned()
    };
    assert_eq!(prefix("10.96.0.1_9000"), format!("out_a.shop_{host}_9000_tcp__0"));
    assert_eq!(prefix("10.9.9.9_5432"), "out_far.example.com_far.example.com_5432_db__0");
    let inbound = resources.get(Listener, "virtualInbound").to_string();
    assert!(inbound.contains(&format!("\"in_a.shop_{host}_9000_tcp__9001\"")), "{inbound}");
    // Rules: to a subset it is that one's name, to several destinations the rule's, as in Istio.
    mesh.config("{kind: VirtualService, metadata: {name: one, namespace: shop}, spec: {hosts: [a], tcp: [{match: [{port: 9000}], route: [{destination: {host: a, subset: v1}}]}]}}");
    let of_rule = |mesh: &mut Mesh| {
        let listener = mesh.sidecar_resources("shop", "a").get(Listener, "10.96.0.1_9000").clone();
        support::filter(&listener["filter_chains"][0])["stat_prefix"].clone()
    };
    assert_eq!(of_rule(&mut mesh), format!("out_a.shop_{host}_9000_tcp_v1_0"));
    mesh.config("{kind: VirtualService, metadata: {name: one, namespace: shop}, spec: {hosts: [a], tcp: [{match: [{port: 9000}], route: [{destination: {host: a, subset: v1}, weight: 50}, {destination: {host: far.example.com}, weight: 50}]}]}}");
    assert_eq!(of_rule(&mut mesh), "one.shop");
}

#[test]
fn without_patterns_names_are_the_clusters_own() {
    let mut mesh = mesh("{}");
    let resources = mesh.sidecar_resources("shop", "a");
    assert!(resources.all(Cluster).iter().all(|cluster| cluster.get("alt_stat_name").is_none()));
    let listener = resources.get(Listener, "10.96.0.1_9000").clone();
    let prefix = support::filter(&listener["filter_chains"][0])["stat_prefix"].clone();
    assert_eq!(prefix, "outbound|9000||a.shop.svc.cluster.local");
}
