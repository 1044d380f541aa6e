//! Consistent hashing: both proxies choose the same endpoint for the same key.

use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::duo::{Backend, Duo, KINDS, cluster, route};

/// Clusters by name over the same services.
fn clusters(backends: &[Backend]) -> Vec<(&'static str, Value)> {
    let plain: Vec<Value> = backends.iter().map(|backend| backend.endpoint(json!({}))).collect();
    let weighted: Vec<Value> = backends
        .iter()
        .enumerate()
        .map(|(n, backend)| backend.endpoint(json!({ "load_balancing_weight": 1 + 3 * n })))
        .collect();
    let keyed: Vec<Value> = backends
        .iter()
        .enumerate()
        .map(|(n, backend)| {
            let key = if n == 0 { json!({}) } else { json!({ "hash_key": format!("key-{n}") }) };
            backend.endpoint(json!({
                "endpoint": { "hostname": format!("host-{n}") },
                "metadata": { "filter_metadata": { "envoy.lb": key } },
            }))
        })
        .collect();
    let extension = |kind: &str, config: Value| {
        let mut config = config;
        config["@type"] =
            format!("type.googleapis.com/envoy.extensions.load_balancing_policies.{kind}").into();
        json!({ "load_balancing_policy": { "policies": [
            { "typed_extension_config": { "name": kind, "typed_config": config } },
        ] } })
    };
    let sevenths = |health: &[&str]| -> Vec<Value> {
        let all = backends.iter().zip([7, 1, 1, 7, 1]).enumerate();
        all.map(|(n, (backend, weight))| {
            let health = health.get(n).unwrap_or(&"HEALTHY");
            backend.endpoint(json!({ "load_balancing_weight": weight, "health_status": health }))
        })
        .collect()
    };
    let panicking = |name: &str, health: [&str; 5]| {
        let panics = json!({ "lb_policy": "MAGLEV", "common_lb_config": { "healthy_panic_threshold": { "value": 100 } } });
        cluster(name, sevenths(&health), panics)
    };
    let ring = json!({ "lb_policy": "RING_HASH" });
    let murmur = json!({ "lb_policy": "RING_HASH", "ring_hash_lb_config": { "hash_function": "MURMUR_HASH_2", "minimum_ring_size": 64, "maximum_ring_size": 100 } });
    let maglev = json!({ "lb_policy": "MAGLEV" });
    let by_name = json!({ "type": "STRICT_DNS", "lb_policy": "MAGLEV", "common_lb_config": { "consistent_hashing_lb_config": { "use_hostname_for_hashing": true } } });
    let localities = json!({ "lb_policy": "RING_HASH", "common_lb_config": { "locality_weighted_lb_config": {} }, "load_assignment": { "endpoints": [
        { "locality": { "zone": "a" }, "load_balancing_weight": 1, "lb_endpoints": plain[..2] },
        { "locality": { "zone": "b" }, "load_balancing_weight": 5, "lb_endpoints": weighted[2..] },
        { "locality": { "zone": "c" }, "lb_endpoints": plain[..1] },
    ] } });
    vec![
        ("ring", cluster("ring", plain.clone(), ring.clone())),
        ("murmur", cluster("murmur", plain.clone(), murmur)),
        ("ring-weighted", cluster("ring-weighted", weighted.clone(), ring.clone())),
        ("ring-keyed", cluster("ring-keyed", keyed.clone(), ring)),
        ("ring-localities", cluster("ring-localities", plain.clone(), localities)),
        ("maglev", cluster("maglev", plain.clone(), maglev.clone())),
        ("maglev-weighted", cluster("maglev-weighted", weighted.clone(), maglev.clone())),
        ("maglev-named", cluster("maglev-named", keyed, by_name)),
        ("maglev-sevenths", cluster("maglev-sevenths", sevenths(&[]), maglev.clone())),
        (
            "maglev-panic",
            panicking("maglev-panic", ["HEALTHY", "DRAINING", "TIMEOUT", "DEGRADED", "HEALTHY"]),
        ),
        (
            "maglev-small",
            cluster("maglev-small", weighted, extension("maglev.v3.Maglev", json!({ "table_size": 11 }))),
        ),
        (
            "ring-extension",
            cluster(
                "ring-extension",
                plain,
                extension(
                    "ring_hash.v3.RingHash",
                    json!({ "hash_function": "MURMUR_HASH_2", "minimum_ring_size": 20 }),
                ),
            ),
        ),
    ]
}

fn policies() -> Value {
    json!([
        { "header": { "header_name": "x-key" } },
        { "header": { "header_name": "x-rewritten", "regex_rewrite": { "pattern": { "regex": "^/([^/]*)/.*" }, "substitution": "\\1" } } },
        { "header": { "header_name": ":path" } },
        { "query_parameter": { "name": "key" }, "terminal": true },
        { "cookie": { "name": "session" } },
    ])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_key_meets_the_same_endpoint() {
    let backends = Backend::several(5).await;
    let clusters = clusters(&backends);
    let routes: Vec<Value> =
        clusters.iter().rev().map(|(name, _)| route(name, json!({ "hash_policy": policies() }))).collect();
    // Longer names first, since they are matched by prefix.
    let mut routes = routes;
    routes.sort_by_key(|route| std::cmp::Reverse(route["match"]["prefix"].as_str().unwrap().len()));
    let bodies: Vec<Value> = clusters.iter().map(|(_, cluster)| cluster.clone()).collect();
    let duo = Duo::start(json!(routes), &bodies, &[]).await;
    for (name, _) in &clusters {
        let mut met = std::collections::BTreeSet::new();
        for n in 0..60 {
            let (value, other) = (format!("user-{n}"), format!("/tenant{n}/x"));
            let cookie = format!("a=b; session=\"s{n}\"; session=other");
            let (path, headers): (String, Vec<(&str, &str)>) = match n % 6 {
                0 => (format!("/{name}"), vec![("x-key", &value)]),
                1 => (format!("/{name}"), vec![("x-key", &value), ("x-key", "more")]),
                2 => (format!("/{name}"), vec![("x-rewritten", &other)]),
                3 => (format!("/{name}?a=1&key=k{n}&key=2"), vec![("x-key", "same"), ("cookie", &cookie)]),
                4 => (format!("/{name}"), vec![("cookie", &cookie)]),
                _ => (format!("/{name}/{n}"), vec![]),
            };
            let [envoy, lateen] = duo.both(&path, &headers).await;
            assert_eq!((envoy.status, lateen.status), (200, 200), "{name} {path}");
            assert_eq!(envoy.body, lateen.body, "{name} {path} {headers:?}");
            met.insert(envoy.body);
        }
        assert!(met.len() >= 2, "{name}: {met:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_cookie_is_issued() {
    let backends = Backend::several(4).await;
    let endpoints: Vec<Value> = backends.iter().map(|backend| backend.endpoint(json!({}))).collect();
    let cookie = |more: Value| {
        let mut cookie = json!({ "name": "session" });
        crate::proxies::merge(&mut cookie, more);
        json!({ "hash_policy": [{ "cookie": cookie }] })
    };
    let full = json!({ "ttl": "30s", "path": "/shop", "attributes": [{ "name": "SameSite", "value": "Lax" }, { "name": "Secure", "value": "" }] });
    let routes = json!([
        { "match": { "prefix": "/full" }, "route": { "cluster": "maglev", "hash_policy": cookie(full)["hash_policy"] } },
        { "match": { "prefix": "/session" }, "route": { "cluster": "maglev", "hash_policy": cookie(json!({ "ttl": "0s" }))["hash_policy"] } },
        { "match": { "prefix": "/never" }, "route": { "cluster": "maglev", "hash_policy": cookie(json!({}))["hash_policy"] } },
        { "match": { "prefix": "/robin" }, "route": { "cluster": "robin", "hash_policy": cookie(json!({ "ttl": "5s" }))["hash_policy"] } },
    ]);
    let clusters = [
        cluster("maglev", endpoints.clone(), json!({ "lb_policy": "MAGLEV" })),
        cluster("robin", endpoints, json!({})),
    ];
    let duo = Duo::start(routes, &clusters, &[]).await;
    for (path, form) in [
        ("/full", Some("session=\"*\"; Max-Age=30; Path=/shop; SameSite=Lax; Secure; HttpOnly")),
        ("/session", Some("session=\"*\"; HttpOnly")),
        ("/never", None),
        ("/robin", None),
    ] {
        for (kind, name) in KINDS.iter().enumerate() {
            let reply = duo.get(kind, path, &[]).await;
            assert_eq!(reply.status, 200);
            let value =
                lateen_ir::new_cookie_value(&reply.from.unwrap().into(), &duo.address(kind, "web").into());
            let expected = form.map(|form| form.replace('*', &value));
            assert_eq!(reply.header("set-cookie"), expected.as_deref(), "{name} {path}");
            let cookie = format!("session={value}");
            if form.is_some() {
                for again in duo.both(path, &[("cookie", &cookie)]).await {
                    assert_eq!(
                        (again.body, again.headers.iter().any(|(name, _)| name == "set-cookie")),
                        (reply.body.clone(), false)
                    );
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tcp_connections_are_hashed_by_their_source() {
    // Services that speak first, so that the client learns which it has.
    let mut services = Vec::new();
    for n in 0..5_u8 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        services.push(json!({ "endpoint": { "address": crate::proxies::address(listener.local_addr().unwrap().port()) } }));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, &[b'0' + n]).await;
            }
        });
    }
    let clusters = [cluster("ring", services, json!({ "lb_policy": "RING_HASH" }))];
    let tcp = [("tcp", json!({ "cluster": "ring", "hash_policy": [{ "source_ip": {} }] }))];
    let duo = Duo::start(json!([]), &clusters, &tcp).await;
    let mut met = std::collections::BTreeSet::new();
    for n in 2..40 {
        let mut answers = Vec::new();
        for kind in [0, 1, 0, 1] {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.bind(([127, 0, 3, n], 0).into()).unwrap();
            let mut stream: TcpStream = socket.connect(duo.address(kind, "tcp")).await.unwrap();
            answers.push(stream.read_u8().await.unwrap());
        }
        assert!(answers.iter().all(|answer| *answer == answers[0]), "127.0.3.{n}: {answers:?}");
        met.insert(answers[0]);
    }
    assert!(met.len() >= 3, "{met:?}");
}
