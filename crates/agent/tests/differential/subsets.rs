//! Subsets of endpoints: which endpoints a route's criteria lead to, over all balancers, and what is counted.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::duo::{Backend, Duo, KINDS, cluster, get, localities};
use crate::proxies::merge;

fn labels(labels: Value) -> Value {
    json!({ "filter_metadata": { "envoy.lb": labels } })
}

/// Backends by number, with their labels.
fn labelled(backends: &[Backend], of: &[Value]) -> Vec<Value> {
    let all = backends.iter().zip(of);
    all.map(|(backend, of)| backend.endpoint(json!({ "metadata": labels(of.clone()) }))).collect()
}

fn subsets(config: Value) -> Value {
    json!({ "lb_subset_config": config })
}

/// Names of what a route may ask for, in the order of the figures of a plan.
const WANTED: [&str; 9] = ["none", "v1", "v2", "v3", "sa", "v1sa", "v3sb", "zx", "listed"];

fn wanted(name: &str) -> Option<Value> {
    Some(match name {
        "v1" => json!({ "v": 1 }),
        "v2" => json!({ "v": 2 }),
        "v3" => json!({ "v": 3 }),
        "sa" => json!({ "s": "a" }),
        "v1sa" => json!({ "v": 1, "s": "a" }),
        "v3sb" => json!({ "v": 3, "s": "b" }),
        "zx" => json!({ "z": "x" }),
        "listed" => json!({ "v": 3, "fallback_list": [{ "v": 9 }, { "v": 2 }, {}] }),
        _ => return None,
    })
}

/// Who answers, of so many requests.
async fn met(duo: &Duo, kind: usize, path: &str, requests: usize) -> BTreeMap<String, usize> {
    let mut met = BTreeMap::new();
    for n in 0..requests {
        let reply = duo.get(kind, path, &[("x-key", &format!("key-{n}"))]).await;
        let who = if reply.status == 200 { reply.body.clone() } else { reply.status.to_string() };
        *met.entry(who).or_default() += 1;
        // Envoy takes a second to end the connection of an answer of its own.
        if reply.status != 200 {
            break;
        }
    }
    met
}

const LB_STATS: [&str; 5] = [
    "lb_subsets_active",
    "lb_subsets_selected",
    "lb_subsets_fallback",
    "lb_subsets_fallback_panic",
    "lb_subsets_single_host_per_subset_duplicate",
];

async fn lb_stats(duo: &Duo, kind: usize, name: &str) -> Vec<u64> {
    let mut found = Vec::new();
    for leaf in LB_STATS {
        found.push(duo.stat(kind, &format!("cluster.{name}.{leaf}")).await);
    }
    found
}

/// Cluster name and its subsets.
fn plans() -> Vec<(&'static str, Value)> {
    let by = |keys: &[&str]| json!({ "keys": keys });
    let with = |keys: &[&str], policy: &str| json!({ "keys": keys, "fallback_policy": policy });
    let plain = || json!([by(&["v"]), by(&["v", "s"])]);
    vec![
        ("plain", json!({ "subset_selectors": plain() })),
        ("any", json!({ "subset_selectors": plain(), "fallback_policy": "ANY_ENDPOINT" })),
        (
            "default",
            json!({ "subset_selectors": plain(), "fallback_policy": "DEFAULT_SUBSET", "default_subset": { "d": true } }),
        ),
        (
            "empty-default",
            json!({ "subset_selectors": plain(), "fallback_policy": "DEFAULT_SUBSET", "default_subset": { "d": 7 } }),
        ),
        (
            "panic",
            json!({ "subset_selectors": plain(), "fallback_policy": "DEFAULT_SUBSET", "default_subset": { "d": 7 },
                "panic_mode_any": true }),
        ),
        (
            "own",
            json!({ "fallback_policy": "ANY_ENDPOINT", "default_subset": { "d": true }, "subset_selectors": [
                with(&["v"], "NO_FALLBACK"), with(&["s"], "DEFAULT_SUBSET"), with(&["z"], "ANY_ENDPOINT"),
                { "keys": ["v", "s"], "fallback_policy": "KEYS_SUBSET", "fallback_keys_subset": ["s"] },
            ] }),
        ),
        // The first hides the second's fallback.
        (
            "hidden",
            json!({ "fallback_policy": "ANY_ENDPOINT", "subset_selectors": [
                with(&["s", "v"], "NO_FALLBACK"), with(&["s"], "NO_FALLBACK"), with(&["v"], "NO_FALLBACK"),
            ] }),
        ),
        ("lists", json!({ "subset_selectors": [by(&["z"]), by(&["v"])], "list_as_any": true })),
        ("no-lists", json!({ "subset_selectors": [by(&["z"]), by(&["v"])] })),
        ("single", json!({ "subset_selectors": [{ "keys": ["v"], "single_host_per_subset": true }] })),
        ("tried", json!({ "subset_selectors": [by(&["v"])], "metadata_fallback_policy": "FALLBACK_LIST" })),
        (
            "tried-any",
            json!({ "subset_selectors": [by(&["v"])], "metadata_fallback_policy": "FALLBACK_LIST",
                "fallback_policy": "ANY_ENDPOINT" }),
        ),
        (
            "off",
            json!({ "subset_selectors": [], "fallback_policy": "DEFAULT_SUBSET", "default_subset": { "d": 7 } }),
        ),
    ]
}

fn five() -> [Value; 5] {
    [
        json!({ "v": 1, "s": "a", "d": true }),
        json!({ "v": 1, "s": "b" }),
        json!({ "v": 2, "s": "a" }),
        json!({ "v": 2, "s": "b", "z": ["x", "y"] }),
        json!({}),
    ]
}

fn routes_to(name: &str, more: &Value) -> Vec<Value> {
    let one = |what: &&str| {
        let mut action = json!({ "cluster": name });
        merge(&mut action, more.clone());
        if let Some(wanted) = wanted(what) {
            action["metadata_match"] = labels(wanted);
        }
        json!({ "match": { "path": format!("/{name}/{what}") }, "route": action })
    };
    WANTED.iter().map(one).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn criteria_lead_where_envoys_do() {
    let backends = Backend::several(5).await;
    let endpoints = labelled(&backends, &five());
    let plans = plans();
    let clusters: Vec<Value> = plans
        .iter()
        .map(|(name, config)| cluster(name, endpoints.clone(), subsets(config.clone())))
        .collect();
    let routes: Vec<Value> = plans.iter().flat_map(|(name, _)| routes_to(name, &json!({}))).collect();
    let duo = Duo::start(json!(routes), &clusters, &[]).await;
    for (name, _) in &plans {
        for what in WANTED {
            let path = format!("/{name}/{what}");
            let [envoy, lateen] = [met(&duo, 0, &path, 10).await, met(&duo, 1, &path, 10).await];
            // In turn, so that ten requests tell each of at most five the same number of times.
            assert_eq!(envoy.keys().collect::<Vec<_>>(), lateen.keys().collect::<Vec<_>>(), "{path}");
        }
        assert_eq!(lb_stats(&duo, 0, name).await, lb_stats(&duo, 1, name).await, "{name}: {LB_STATS:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_balancer_works_within_subsets() {
    let backends = Backend::several(5).await;
    let endpoints = labelled(&backends, &five());
    let hashed = json!({ "hash_policy": [{ "header": { "header_name": "x-key" } }] });
    let policies = ["ROUND_ROBIN", "LEAST_REQUEST", "RANDOM", "RING_HASH", "MAGLEV"];
    let config = json!({ "subset_selectors": [{ "keys": ["v"] }], "fallback_policy": "ANY_ENDPOINT" });
    let clusters: Vec<Value> = policies
        .iter()
        .map(|policy| {
            let mut more = subsets(config.clone());
            more["lb_policy"] = (*policy).into();
            cluster(policy, endpoints.clone(), more)
        })
        .collect();
    let routes: Vec<Value> = policies.iter().flat_map(|policy| routes_to(policy, &hashed)).collect();
    let duo = Duo::start(json!(routes), &clusters, &[]).await;
    for policy in policies {
        for what in ["v1", "v2", "v3"] {
            let path = format!("/{policy}/{what}");
            let seen = [met(&duo, 0, &path, 40).await, met(&duo, 1, &path, 40).await];
            let hosts = seen.clone().map(|met| met.into_keys().collect::<Vec<_>>());
            assert_eq!(hosts[0], hosts[1], "{path}");
            // Hashes lead each key to the same host on both.
            if policy == "RING_HASH" || policy == "MAGLEV" {
                assert_eq!(seen[0], seen[1], "{path}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_and_localities_count_within_subsets() {
    let backends = Backend::several(6).await;
    let one = |n: usize, more: Value| {
        let mut endpoint = backends[n].endpoint(json!({}));
        merge(&mut endpoint, more);
        endpoint
    };
    let of = |n: usize, v: u32| one(n, json!({ "metadata": labels(json!({ "v": v })) }));
    let sick = |n: usize, v: u32| {
        one(n, json!({ "metadata": labels(json!({ "v": v })), "health_status": "UNHEALTHY" }))
    };
    let selectors = json!([{ "keys": ["v"] }]);
    let with = |more: Value, around: Value| {
        let mut config = json!({ "subset_selectors": selectors });
        merge(&mut config, more);
        let mut all = subsets(config);
        merge(&mut all, around);
        all
    };
    let no_panic = json!({ "common_lb_config": { "healthy_panic_threshold": { "value": 0 } } });
    let weighted = json!({ "common_lb_config": { "locality_weighted_lb_config": {} } });
    let place = |zone: &str, weight: u32, endpoints: Vec<Value>| json!({ "locality": { "zone": zone }, "load_balancing_weight": weight, "lb_endpoints": endpoints });
    // Zone a has two of three endpoints in the subset, zone b one of three.
    let places = || {
        vec![
            place("a", 3, vec![of(0, 1), of(1, 1), of(2, 2)]),
            place("b", 1, vec![of(3, 1), of(4, 2), of(5, 2)]),
        ]
    };
    let any_default =
        json!({ "fallback_policy": "DEFAULT_SUBSET", "default_subset": { "v": 1 }, "panic_mode_any": true });
    let priorities = vec![
        json!({ "priority": 0, "lb_endpoints": [sick(0, 1), of(1, 2)] }),
        json!({ "priority": 1, "lb_endpoints": [of(2, 1), of(3, 2)] }),
    ];
    let single = json!({ "subset_selectors": [{ "keys": ["v"], "single_host_per_subset": true }] });
    let clusters = [
        cluster("in-panic", vec![sick(0, 1), sick(1, 1), of(2, 2)], with(json!({}), json!({}))),
        cluster("no-panic", vec![sick(0, 1), sick(1, 1), of(2, 2)], with(json!({}), no_panic.clone())),
        cluster("panic-any", vec![sick(0, 1), of(2, 2)], with(any_default, no_panic.clone())),
        localities("priorities", priorities.clone(), with(json!({}), no_panic)),
        localities("single", priorities, subsets(single)),
        localities("flat", places(), with(json!({}), weighted.clone())),
        localities("aware", places(), with(json!({ "locality_weight_aware": true }), weighted.clone())),
        localities(
            "scaled",
            places(),
            with(json!({ "locality_weight_aware": true, "scale_locality_weight": true }), weighted),
        ),
    ];
    let names = ["in-panic", "no-panic", "panic-any", "priorities", "single", "flat", "aware", "scaled"];
    let routes: Vec<Value> = names.iter().flat_map(|name| routes_to(name, &json!({}))).collect();
    let duo = Duo::start(json!(routes), &clusters, &[]).await;
    for name in names {
        for what in ["v1", "v3", "none"] {
            let path = format!("/{name}/{what}");
            let seen: [BTreeMap<_, _>; 2] =
                tokio::join!(met(&duo, 0, &path, 84), met(&duo, 1, &path, 84)).into();
            let hosts = seen.clone().map(|met| met.into_keys().collect::<Vec<_>>());
            assert_eq!(hosts[0], hosts[1], "{path}");
            for (who, count) in &seen[0] {
                let ours = seen[1][who];
                assert!(count.abs_diff(ours) <= 3, "{path}: {seen:?}");
            }
        }
        let stat = async |kind: usize| {
            let panics = duo.stat(kind, &format!("cluster.{name}.lb_healthy_panic")).await;
            (lb_stats(&duo, kind, name).await, panics)
        };
        assert_eq!(stat(0).await, stat(1).await, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weighted_clusters_and_tcp_proxies_have_criteria_of_their_own() {
    let backends = Backend::several(5).await;
    let endpoints = labelled(&backends, &five());
    let config =
        json!({ "subset_selectors": [{ "keys": ["v"] }, { "keys": ["v", "s"] }, { "keys": ["s"] }] });
    let clusters = [cluster("all", endpoints, subsets(config))];
    let entry = |own: Option<Value>| {
        let mut entry = json!({ "name": "all", "weight": 1 });
        if let Some(own) = own {
            entry["metadata_match"] = labels(own);
        }
        entry
    };
    let weighted = |path: &str, around: Option<Value>, entries: Vec<Value>| {
        let mut action = json!({ "weighted_clusters": { "clusters": entries } });
        if let Some(around) = around {
            action["metadata_match"] = labels(around);
        }
        json!({ "match": { "path": path }, "route": action })
    };
    let v1 = || Some(json!({ "v": 1 }));
    let routes = json!([
        weighted("/own", None, vec![entry(v1()), entry(Some(json!({ "v": 2 })))]),
        weighted("/around", v1(), vec![entry(None)]),
        weighted("/both", v1(), vec![entry(Some(json!({ "s": "b" })))]),
        weighted("/over", v1(), vec![entry(Some(json!({ "v": 2, "s": "a" })))]),
        // What is not for load balancers is not looked at.
        { "match": { "path": "/other" }, "route": { "cluster": "all", "metadata_match": {
            "filter_metadata": { "other": { "v": 1 } },
        } } },
    ]);
    let tcp = [
        ("tcp", json!({ "cluster": "all", "metadata_match": labels(json!({ "v": 1, "s": "b" })) })),
        ("tcp-none", json!({ "cluster": "all" })),
        (
            "tcp-weighted",
            json!({ "metadata_match": labels(json!({ "v": 2 })), "weighted_clusters": { "clusters": [
                { "name": "all", "weight": 1, "metadata_match": labels(json!({ "s": "a" })) },
                { "name": "all", "weight": 1 },
            ] } }),
        ),
    ];
    let duo = Duo::start(routes, &clusters, &tcp).await;
    for path in ["/own", "/around", "/both", "/over", "/other"] {
        let seen = [met(&duo, 0, path, 24).await, met(&duo, 1, path, 24).await];
        let hosts = seen.map(|met| met.into_keys().collect::<Vec<_>>());
        assert_eq!(hosts[0], hosts[1], "{path}");
        assert!(!hosts[0].is_empty());
    }
    for (listener, _) in &tcp {
        let mut seen = Vec::new();
        for (kind, engine) in KINDS.iter().enumerate() {
            let mut met = std::collections::BTreeSet::new();
            for _ in 0..24 {
                let reply = get(duo.address(kind, listener), "/", &[("x-close", "now")]).await;
                met.insert(format!("{} {}", reply.status, reply.body));
            }
            assert!(!met.is_empty(), "{engine}");
            seen.push(met);
        }
        assert_eq!(seen[0], seen[1], "{listener}");
    }
}
