//! How DestinationRules balance: hashes, warm-up, localities, limits.
mod support;

use lateen_translate::ResourceType::{Cluster, Endpoint, Listener, Route};
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

/// Customers in four places, called from `r1/z1/s1`.
fn spread_mesh(rule: &str) -> Mesh {
    let mut mesh = Mesh::course();
    let places = [("a", "r1.z1.s1"), ("b", "r1.z2.s1"), ("c", "r2.z1.s1"), ("d", "r3.z1.s1")];
    let names = places.map(|(name, _)| format!("customers-{name}"));
    for (n, (_, place)) in places.iter().enumerate() {
        let labels = json!({"app": "customers", "version": if n % 2 == 0 { "v1" } else { "v2" }, "istio-locality": place});
        mesh.pod("default", &names[n], &format!("10.244.1.{n}"), labels);
    }
    let addresses: Vec<String> = (0..4).map(|n| format!("10.244.1.{n}")).collect();
    let endpoints: Vec<(&str, &str, bool)> =
        (0..4).map(|n| (names[n].as_str(), addresses[n].as_str(), true)).collect();
    mesh.endpoints("default", "customers", "", 3000, &endpoints);
    let labels = json!({"app": "web-frontend", "version": "v1", "istio-locality": "r1.z1.s1"});
    mesh.pod("default", "web-frontend-1", "10.244.0.20", labels);
    mesh.config(&format!(
        "{{kind: DestinationRule, metadata: {{name: customers}}, spec: {{host: customers, trafficPolicy: {rule}}}}}"
    ));
    mesh
}

/// Region and zone, priority, weight and number of endpoints of each group; and whether the cluster weighs localities.
fn groups(rule: &str) -> (Vec<(String, u64, u64, usize)>, bool) {
    let mut mesh = spread_mesh(rule);
    let resources = mesh.sidecar_resources("default", "web-frontend-1");
    let name = "outbound|80||customers.default.svc.cluster.local";
    let weighted =
        resources.get(Cluster, name)["common_lb_config"]["locality_weighted_lb_config"].is_object();
    let found = resources.get(Endpoint, name)["endpoints"].as_array().cloned().unwrap_or_default();
    let groups = found.iter().map(|group| {
        let locality = &group["locality"];
        let place =
            format!("{}/{}", locality["region"].as_str().unwrap(), locality["zone"].as_str().unwrap());
        let count = group["lb_endpoints"].as_array().map_or(0, Vec::len);
        let weight = group["load_balancing_weight"].as_u64().unwrap_or(0);
        (place, group["priority"].as_u64().unwrap_or(0), weight, count)
    });
    (groups.collect(), weighted)
}

fn rows(expected: [(&str, u64, u64, usize); 4]) -> Vec<(String, u64, u64, usize)> {
    expected.map(|(place, priority, weight, count)| (place.to_owned(), priority, weight, count)).into()
}

#[test]
fn the_nearest_endpoints_come_first_where_failing_ones_are_ejected() {
    let flat = rows([("r1/z1", 0, 1, 1), ("r1/z2", 0, 1, 1), ("r2/z1", 0, 1, 1), ("r3/z1", 0, 1, 1)]);
    let near = rows([("r1/z1", 0, 1, 1), ("r1/z2", 1, 1, 1), ("r2/z1", 2, 1, 1), ("r3/z1", 2, 1, 1)]);
    let failover = rows([("r1/z1", 0, 1, 1), ("r1/z2", 1, 1, 1), ("r2/z1", 3, 1, 1), ("r3/z1", 2, 1, 1)]);
    for (rule, expected, weighted) in [
        ("{loadBalancer: {simple: ROUND_ROBIN}}", &flat, false),
        ("{outlierDetection: {}}", &near, false),
        ("{outlierDetection: {}, loadBalancer: {localityLbSetting: {enabled: false}}}", &flat, false),
        (
            "{outlierDetection: {}, loadBalancer: {localityLbSetting: {failover: [{from: r1, to: r3}]}}}",
            &failover,
            true,
        ),
        ("{loadBalancer: {localityLbSetting: {failover: [{from: r1, to: r3}]}}}", &flat, false),
    ] {
        let (found, is_weighted) = groups(rule);
        assert_eq!((&found, is_weighted), (expected, weighted), "{rule}");
    }
}

#[test]
fn weights_are_distributed() {
    let rule = "{loadBalancer: {localityLbSetting: {distribute: [{from: 'r9/*', to: {'r9/*': 100}}, {from: 'r1/*', to: {'r1/*': 81, 'r3/z1/*': 19}}]}}}";
    let (found, weighted) = groups(rule);
    let expected: Vec<_> = [("r1/z1", 0, 41, 1), ("r1/z2", 0, 41, 1), ("r3/z1", 0, 19, 1)]
        .map(|(place, priority, weight, count)| (place.to_owned(), priority, weight, count))
        .into();
    assert_eq!((found, weighted), (expected, true), "the weight of a pattern is shared, rounded up");
}

#[test]
fn labels_order_endpoints() {
    let setting = |labels: &str| {
        groups(&format!(
            "{{outlierDetection: {{}}, loadBalancer: {{localityLbSetting: {{failoverPriority: {labels}}}}}}}"
        ))
    };
    let by_version = rows([("r1/z1", 0, 1, 1), ("r1/z2", 1, 1, 1), ("r2/z1", 0, 1, 1), ("r3/z1", 1, 1, 1)]);
    assert_eq!(setting("[version]"), (by_version, true));
    let by_region = rows([("r1/z1", 1, 1, 1), ("r1/z2", 0, 1, 1), ("r2/z1", 2, 1, 1), ("r3/z1", 2, 1, 1)]);
    assert_eq!(setting("[topology.kubernetes.io/region, version=v2]").0, by_region);
}

#[test]
fn retry_budgets_limit_retries() {
    let mut mesh = spread_mesh("{retryBudget: {percent: 12.5, minRetryConcurrency: 7}}");
    let resources = mesh.sidecar_resources("default", "web-frontend-1");
    let cluster = resources.get(Cluster, "outbound|80||customers.default.svc.cluster.local");
    let budget = &cluster["circuit_breakers"]["thresholds"][0]["retry_budget"];
    assert_eq!(*budget, json!({"budget_percent": {"value": 12.5}, "min_retry_concurrency": 7}));
}
