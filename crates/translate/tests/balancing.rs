//! How DestinationRules balance: hashes, warm-up, localities, limits.
mod support;

use lateen_translate::ResourceType::{Cluster, Listener, Route};
use serde_json::json;
use support::{Mesh, filter, virtual_host};

#[test]
fn consistent_hashes_are_in_clusters_routes_and_tcp_proxies() {
    let mut mesh = Mesh::course();
    mesh.config(
        "{kind: DestinationRule, metadata: {name: customers}, spec: {host: customers,
          trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user}}, connectionPool: {tcp: {idleTimeout: 7s, maxConnectionDuration: 9s}}},
          subsets: [{name: v1, labels: {version: v1}, trafficPolicy: {loadBalancer: {consistentHash: {httpQueryParameterName: user, maglev: {tableSize: 1009}}}}},
                    {name: v2, labels: {version: v2}, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN, warmup: {duration: 30s, minimumPercent: 20, aggression: 2}}}}]}}",
    );
    mesh.config(
        "{kind: DestinationRule, metadata: {name: web}, spec: {host: web-frontend, trafficPolicy: {loadBalancer: {consistentHash:
          {httpCookie: {name: c, ttl: 1s, path: /p, attributes: [{name: a, value: b}]}, ringHash: {minimumRingSize: 9}}}}}}",
    );
    let resources = mesh.sidecar_resources("default", "web-frontend-1");
    let cluster = |subset: &str| {
        resources.get(Cluster, &format!("outbound|80|{subset}|customers.default.svc.cluster.local"))
    };
    assert_eq!(cluster("")["lb_policy"], "RING_HASH");
    assert_eq!(cluster("")["ring_hash_lb_config"], json!({"minimum_ring_size": "1024"}));
    assert_eq!(cluster("v1")["lb_policy"], "MAGLEV");
    assert_eq!(cluster("v1")["maglev_lb_config"], json!({"table_size": "1009"}));
    assert_eq!(cluster("v2").get("lb_policy"), None, "round robin is Envoy's default");
    let slow_start = json!({"slow_start_window": "30s", "aggression": {"default_value": 2.0}, "min_weight_percent": {"value": 20.0}});
    assert_eq!(cluster("v2")["round_robin_lb_config"], json!({"slow_start_config": slow_start}));
    let web = resources.get(Cluster, "outbound|80||web-frontend.default.svc.cluster.local");
    assert_eq!(web["ring_hash_lb_config"], json!({"minimum_ring_size": "9"}));

    let routes = resources.get(Route, "80");
    let host = virtual_host(routes, "customers.default.svc.cluster.local:80");
    let policy = &host["routes"][0]["route"]["hash_policy"];
    assert_eq!(*policy, json!([{"query_parameter": {"name": "user"}}]), "the VirtualService sends to v1");
    let host = virtual_host(routes, "web-frontend.default.svc.cluster.local:80");
    let cookie = json!({"name": "c", "ttl": "1s", "path": "/p", "attributes": [{"name": "a", "value": "b"}]});
    assert_eq!(host["routes"][0]["route"]["hash_policy"], json!([{"cookie": cookie}]));

    let tcp = filter(&resources.get(Listener, "10.96.0.30_80")["default_filter_chain"]);
    assert_eq!(
        (&tcp["idle_timeout"], &tcp["max_downstream_connection_duration"]),
        (&json!("7s"), &json!("9s"))
    );
    assert_eq!(tcp.get("hash_policy"), None, "TCP has no headers");
    mesh.config("{kind: DestinationRule, metadata: {name: customers}, spec: {host: customers, trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true}}}}}");
    let resources = mesh.sidecar_resources("default", "web-frontend-1");
    let tcp = filter(&resources.get(Listener, "10.96.0.30_80")["default_filter_chain"]);
    assert_eq!(tcp["hash_policy"], json!([{"source_ip": {}}]));
    let host = virtual_host(resources.get(Route, "80"), "customers.default.svc.cluster.local:80");
    let policy = &host["routes"][0]["route"]["hash_policy"];
    assert_eq!(*policy, json!([{"connection_properties": {"source_ip": true}}]));
}
