//! Circuit breakers and connection pools: what is counted when, and what is refused.

use serde_json::{Value, json};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::duo::{Backend, Duo, KINDS, Reply, cluster, get, route};

/// Numbers that depend on time or on texts, and those that our proxy does not keep.
const VARYING: [&str; 12] = [
    "_bytes",
    "_ms",
    "rq_time",
    "per_cx",
    "internal.",
    "external.",
    "retry.",
    "total_match_count",
    "membership_change",
    "max_host_weight",
    "remaining_cx_pools",
    "cx_destroy",
];

fn limits(more: Value) -> Value {
    json!({ "circuit_breakers": { "thresholds": [more] } })
}

fn options(common: Value) -> Value {
    json!({ "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "common_http_protocol_options": common,
        "explicit_http_config": { "http_protocol_options": {} },
    } } })
}

/// What of a refusal is compared.
fn refusal(reply: &Reply) -> (u16, Option<&str>, &str) {
    (reply.status, reply.header("x-envoy-overloaded"), &reply.body)
}

/// Lines of the access log without addresses, in order.
fn log_lines(text: &str) -> Vec<String> {
    let mut lines: Vec<String> =
        text.lines().filter_map(|line| Some(line.split_once(' ')?.1.to_owned())).collect();
    lines.sort_unstable();
    lines
}

/// Sends slow requests one after the other, each when the one before has arrived where it is said to.
async fn pile_up(duo: &Arc<Duo>, kind: usize, name: &str, gauges: &[(&str, u64)]) -> Vec<Reply> {
    let address = duo.address(kind, "web");
    let path = format!("/{name}?wait=600");
    let mut running = Vec::new();
    for (gauge, value) in gauges {
        let path = path.clone();
        running.push(tokio::spawn(async move { get(address, &path, &[]).await }));
        duo.reaches(kind, &format!("cluster.{name}.{gauge}"), *value).await;
    }
    let mut replies = Vec::new();
    for request in running {
        replies.push(request.await.unwrap());
    }
    replies
}

/// A cluster, which gauge shows that each request has arrived where it is to wait, and their statuses.
type Plan = (&'static str, &'static [(&'static str, u64)], &'static [u16]);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_refuse_what_envoys_refuse() {
    let backend = Backend::start("a").await;
    let endpoint = || vec![backend.endpoint(json!({}))];
    let one_and_one = json!({ "max_connections": 1, "max_pending_requests": 1, "track_remaining": true });
    let clusters = [
        cluster("pending", endpoint(), limits(one_and_one)),
        cluster("requests", endpoint(), limits(json!({ "max_requests": 1 }))),
        cluster("nothing", endpoint(), limits(json!({ "max_pending_requests": 0 }))),
        cluster(
            "high",
            endpoint(),
            json!({ "circuit_breakers": { "thresholds": [
                { "priority": "HIGH", "max_connections": 1, "max_pending_requests": 1 }, { "max_requests": 0 },
            ] } }),
        ),
    ];
    let routes = json!([
        route("pending", json!({})),
        route("requests", json!({})),
        route("nothing", json!({})),
        route("high", json!({ "priority": "HIGH" })),
    ]);
    let duo = Arc::new(Duo::start(routes, &clusters, &[]).await);
    let plans: [Plan; 4] = [
        // The course's lab: one is served, one waits, the third is refused.
        (
            "pending",
            &[
                ("upstream_rq_active", 1),
                ("upstream_rq_pending_active", 1),
                ("upstream_rq_pending_overflow", 1),
            ],
            &[200, 200, 503],
        ),
        ("requests", &[("upstream_rq_active", 1), ("upstream_rq_active_overflow", 1)], &[200, 503]),
        ("nothing", &[("upstream_rq_pending_overflow", 1)], &[503]),
        (
            "high",
            &[
                ("upstream_rq_active", 1),
                ("upstream_rq_pending_active", 1),
                ("upstream_rq_pending_overflow", 1),
            ],
            &[200, 200, 503],
        ),
    ];
    for (name, gauges, statuses) in plans {
        let mut seen = Vec::new();
        for kind in [0, 1] {
            let replies = pile_up(&duo, kind, name, gauges).await;
            let found: Vec<u16> = replies.iter().map(|reply| reply.status).collect();
            assert_eq!(found, statuses, "{} {name}", KINDS[kind]);
            let last = replies.last().unwrap();
            let refused = refusal(last);
            let body = "upstream connect error or disconnect/reset before headers. reset reason: overflow";
            assert_eq!(refused, (503, Some("true"), body), "{} {name}", KINDS[kind]);
            let log = duo.log(kind).await;
            seen.push((duo.stats(kind, &format!("cluster.{name}."), &VARYING).await, log_lines(&log)));
        }
        let [envoy, lateen] = &seen[..] else { unreachable!() };
        assert_eq!(envoy, lateen, "{name}");
    }
}

/// Requests that take one of two connections, the other, and the place of one that waits; then attempts of the first, which hedges, find no
/// place.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attempts_without_a_place_name_no_host() {
    let backend = Backend::start("a").await;
    let full = limits(json!({ "max_connections": 2, "max_pending_requests": 1 }));
    let hedged = json!({ "timeout": "3s", "hedge_policy": { "hedge_on_per_try_timeout": true }, "retry_policy": {
        "retry_on": "5xx", "num_retries": 1, "per_try_timeout": "1s",
        "retry_back_off": { "base_interval": "0.001s", "max_interval": "0.002s" },
    } });
    let names = ["answered", "late", "at-once"];
    let clusters = names.map(|name| cluster(name, vec![backend.endpoint(json!({}))], full.clone()));
    let to = |prefix: &str, name: &str, more: &Value| {
        let mut route = route(prefix, more.clone());
        route["route"]["cluster"] = json!(name);
        route
    };
    let routes: Vec<Value> = names
        .iter()
        .flat_map(|name| {
            [to(&format!("hedged/{name}"), name, &hedged), to(&format!("plain/{name}"), name, &json!({}))]
        })
        .collect();
    let duo = Arc::new(Duo::start(json!(routes), &clusters, &[]).await);
    let both = [0, 1].map(|kind| {
        let duo = duo.clone();
        async move {
            for (name, hedged_first, wait) in
                [("answered", true, 2000), ("late", true, 9000), ("at-once", false, 1)]
            {
                let address = duo.address(kind, "web");
                let begin = |path: String| tokio::spawn(async move { get(address, &path, &[]).await });
                let hedged = format!("/hedged/{name}?wait={wait}");
                let mut running = Vec::new();
                let gauges =
                    [("upstream_rq_active", 1), ("upstream_rq_active", 2), ("upstream_rq_pending_active", 1)];
                for (index, (gauge, value)) in gauges.into_iter().enumerate() {
                    let plain = format!("/plain/{name}?wait=3500");
                    running.push(begin(if index == 0 && hedged_first { hedged.clone() } else { plain }));
                    duo.reaches(kind, &format!("cluster.{name}.{gauge}"), value).await;
                }
                if !hedged_first {
                    running.push(begin(hedged));
                    duo.reaches(kind, &format!("cluster.{name}.upstream_rq_pending_overflow"), 1).await;
                }
                for request in running {
                    request.await.unwrap();
                }
            }
            let page = duo.page(kind, "/stats").await;
            let overflows: Vec<_> =
                page.lines().filter(|line| line.contains("pending_overflow: 1")).map(str::to_owned).collect();
            (overflows, log_lines(&duo.log(kind).await))
        }
    });
    let seen = futures::future::join_all(both).await;
    assert_eq!(seen[0].0.len(), 3, "{:?}", seen[0]);
    assert_eq!(seen[0], seen[1]);
    let nameless = |line: &&String| line.contains("/hedged/") && line.contains("host=- ");
    assert_eq!(seen[0].1.iter().filter(nameless).count(), 2, "{:#?}", seen[0].1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_remains_is_told() {
    let backend = Backend::start("a").await;
    let tracked =
        json!({ "max_connections": 5, "max_requests": 7, "max_retries": u32::MAX, "track_remaining": true });
    let budget = json!({ "max_connections": 5, "track_remaining": true, "retry_budget": { "budget_percent": { "value": 20.0 } } });
    let clusters = [
        cluster("a", vec![backend.endpoint(json!({}))], limits(tracked)),
        cluster("b", vec![backend.endpoint(json!({}))], limits(budget)),
    ];
    let duo = Arc::new(Duo::start(json!([route("a", json!({}))]), &clusters, &[]).await);
    let mut seen = Vec::new();
    for kind in [0, 1] {
        let before = duo.stats(kind, "cluster.a.circuit_breakers", &["remaining_cx_pools"]).await;
        let address = duo.address(kind, "web");
        let slow = tokio::spawn(async move { get(address, "/a?wait=800", &[]).await });
        duo.reaches(kind, "cluster.a.upstream_rq_active", 1).await;
        let during = duo.stats(kind, "cluster.a.circuit_breakers", &["remaining_cx_pools"]).await;
        slow.await.unwrap();
        assert_eq!(
            during.get(".default.remaining_cx").map(String::as_str),
            Some("4"),
            "{}: {during:?}",
            KINDS[kind]
        );
        // Envoy tells of places for retries until the first retry, and of none after it; ours tells of none, as a budget has no places.
        let without = ["remaining_cx_pools", "remaining_retries"];
        let budget = duo.stats(kind, "cluster.b.circuit_breakers", &without).await;
        assert_eq!(budget.get(".default.remaining_cx").map(String::as_str), Some("5"), "{budget:?}");
        seen.push((before, during, budget));
    }
    assert_eq!(seen[0], seen[1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retries_are_limited() {
    let backend = Backend::start("a").await;
    let endpoint = || vec![backend.endpoint(json!({}))];
    let budget =
        json!({ "retry_budget": { "budget_percent": { "value": 0.0 }, "min_retry_concurrency": 2 } });
    let clusters = [
        cluster("limit", endpoint(), limits(json!({ "max_retries": 1 }))),
        cluster("budget", endpoint(), limits(budget)),
    ];
    let retrying = json!({ "retry_policy": { "retry_on": "5xx", "num_retries": 1, "retry_back_off": { "base_interval": "0.001s", "max_interval": "0.002s" } } });
    let routes = json!([route("limit", retrying.clone()), route("budget", retrying)]);
    let duo = Arc::new(Duo::start(routes, &clusters, &[]).await);
    for (name, at_once) in [("limit", 3), ("budget", 4)] {
        let mut seen = Vec::new();
        for kind in [0, 1] {
            let address = duo.address(kind, "web");
            let path = format!("/{name}?wait=300");
            let requests = (0..at_once).map(|_| get(address, &path, &[("x-status", "503")]));
            let replies = futures::future::join_all(requests).await;
            assert!(replies.iter().all(|reply| reply.status == 503));
            let log = duo.log(kind).await;
            // Envoy gives up the connection of an attempt that is repeated, even when it was answered in whole.
            let stats = duo
                .stats(kind, &format!("cluster.{name}.upstream_rq_"), &["rq_time", "per_cx", "pending"])
                .await;
            seen.push((stats, log_lines(&log)));
        }
        assert_eq!(seen[0], seen[1], "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_renewed() {
    let backend = Backend::start("a").await;
    let endpoint = || vec![backend.endpoint(json!({}))];
    let clusters = [
        cluster("requests", endpoint(), options(json!({ "max_requests_per_connection": 2 }))),
        cluster("duration", endpoint(), options(json!({ "max_connection_duration": "0.5s" }))),
        cluster("idle", endpoint(), options(json!({ "idle_timeout": "1s" }))),
    ];
    let names = ["requests", "duration", "idle"];
    let routes: Vec<Value> = names.iter().map(|name| route(name, json!({}))).collect();
    let duo = Duo::start(json!(routes), &clusters, &[]).await;
    for kind in [0, 1] {
        for name in names {
            for _ in 0..5 {
                assert_eq!(duo.get(kind, &format!("/{name}"), &[]).await.status, 200);
            }
        }
        let slow = duo.get(kind, "/duration?wait=900", &[]).await;
        assert_eq!(slow.status, 200, "what is being answered is answered");
        duo.reaches(kind, "cluster.duration.upstream_cx_active", 0).await;
        duo.reaches(kind, "cluster.idle.upstream_cx_active", 0).await;
        assert_eq!(duo.get(kind, "/duration", &[]).await.status, 200);
        duo.reaches(kind, "cluster.duration.upstream_cx_active", 0).await;
    }
    for name in names {
        let mut seen = Vec::new();
        for kind in [0, 1] {
            seen.push(
                duo.stats(
                    kind,
                    &format!("cluster.{name}.upstream"),
                    &["_bytes", "_ms", "rq_time", "destroy", "per_cx"],
                )
                .await,
            );
        }
        assert_eq!(seen[0], seen[1], "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tcp_connections_are_limited() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    let service = vec![json!({ "endpoint": { "address": crate::proxies::address(port) } })];
    let clusters = [cluster("one", service, limits(json!({ "max_connections": 1 })))];
    let duo = Duo::start(json!([]), &clusters, &[("tcp", json!({ "cluster": "one" }))]).await;
    let mut seen = Vec::new();
    for kind in [0, 1] {
        let mut first = TcpStream::connect(duo.address(kind, "tcp")).await.unwrap();
        first.write_all(b"a").await.unwrap();
        assert_eq!(first.read_u8().await.unwrap(), b'a');
        let mut second = TcpStream::connect(duo.address(kind, "tcp")).await.unwrap();
        let ended = second.read_u8().await.is_err();
        assert!(ended, "{}: the second is refused", KINDS[kind]);
        drop(first);
        duo.reaches(kind, "cluster.one.upstream_cx_active", 0).await;
        let log = duo.log(kind).await;
        // Envoy counts an attempt only when it has an endpoint.
        let told = |line: &str| Some(line[line.find("flags=")?..line.find(" attempts=")?].to_owned());
        let lines: Vec<String> = log.lines().filter_map(told).collect();
        seen.push((duo.stats(kind, "cluster.one.upstream", &VARYING).await, lines));
    }
    assert_eq!(seen[0], seen[1]);
}
