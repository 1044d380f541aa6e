//! Outlier detection (T14): which hosts go, why, what is counted, and that they return.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::duo::{Backend, Duo, KINDS, cluster, route};
use crate::proxies::{address, merged};

const COUNTS: &str = "outlier_detection.";
const ACTIVE: &str = "outlier_detection.ejections_active";

fn detection(more: Value) -> Value {
    json!({ "outlier_detection": more })
}

/// A plan: the cluster, how many requests, what its first host answers meanwhile, and how many hosts are out then.
type Plan = (&'static str, usize, u16, u64);

const PLANS: [Plan; 4] =
    [("runs", 12, 500, 1), ("gateway", 12, 502, 1), ("rates", 100, 500, 1), ("percentage", 100, 500, 1)];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_go_and_return_as_envoys() {
    let backends = Backend::several(5).await;
    let all = || backends.iter().map(|backend| backend.endpoint(json!({}))).collect::<Vec<_>>();
    let never = 1_000_000;
    let statistics = json!({
        "consecutive_5xx": never, "interval": "0.5s", "base_ejection_time": "1s", "max_ejection_percent": 100,
        "success_rate_request_volume": 5, "failure_percentage_request_volume": 5,
    });
    let with = |more: Value| detection(merged(statistics.clone(), more));
    let clusters = [
        cluster(
            "runs",
            all(),
            detection(json!({ "consecutive_5xx": 2, "interval": "0.5s", "base_ejection_time": "1s" ,
                "max_ejection_percent": 20, "enforcing_success_rate": 0 })),
        ),
        cluster(
            "gateway",
            all(),
            detection(
                json!({ "consecutive_gateway_failure": 2, "enforcing_consecutive_gateway_failure": 100,
                "interval": "0.5s", "base_ejection_time": "1s", "max_ejection_percent": 20 }),
            ),
        ),
        cluster("rates", all(), with(json!({}))),
        cluster(
            "percentage",
            all(),
            with(json!({ "enforcing_success_rate": 0, "enforcing_failure_percentage": 100 })),
        ),
    ];
    let routes = json!(PLANS.map(|(name, ..)| route(name, json!({}))));
    let duo = Duo::start(routes, &clusters, &[]).await;
    for (name, requests, status, out) in PLANS {
        let mut seen = Vec::new();
        for (kind, engine) in KINDS.iter().enumerate() {
            let stat = |leaf: &str| format!("cluster.{name}.{leaf}");
            backends[0].answers(status);
            let path = format!("/{name}");
            for _ in 0..requests {
                duo.get(kind, &path, &[]).await;
            }
            duo.reaches(kind, &stat(ACTIVE), out).await;
            let counts = duo.stats(kind, &stat(COUNTS), &[]).await;
            let healthy = duo.stat(kind, &stat("membership_healthy")).await;
            let page = duo.page(kind, "/clusters").await;
            let flags =
                page.lines().filter(|l| l.starts_with(name) && l.ends_with("/failed_outlier_check")).count();
            assert_eq!((flags, healthy), (1, 4), "{engine} {name}");
            let before = backends[0].hits();
            for _ in 0..10 {
                assert_eq!(duo.get(kind, &path, &[]).await.status, 200, "{engine} {name}: it should be out");
            }
            assert_eq!(backends[0].hits(), before, "{engine} {name}: an ejected host was asked");
            backends[0].answers(200);
            duo.reaches(kind, &stat(ACTIVE), 0).await;
            // Envoy tells its workers of changes in health once a second (`update_merge_window`).
            let began = Instant::now();
            while backends[0].hits() == before {
                assert_eq!(duo.get(kind, &path, &[]).await.status, 200, "{engine} {name}");
                assert!(began.elapsed() < Duration::from_secs(5), "{engine} {name}: it should have returned");
            }
            seen.push(counts);
        }
        let [envoy, lateen] = &seen[..] else { unreachable!() };
        assert_eq!(envoy, lateen, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_and_the_dead_are_counted_as_envoys_do() {
    let backends = Backend::several(2).await;
    let both = || backends.iter().map(|backend| backend.endpoint(json!({}))).collect::<Vec<_>>();
    // Nothing listens there.
    let dead = || json!({ "endpoint": { "address": address(9) } });
    let one_dead = || vec![dead(), backends[0].endpoint(json!({}))];
    let base = json!({ "interval": "30s", "base_ejection_time": "60s", "max_ejection_percent": 50 });
    let with = |more: Value| detection(merged(base.clone(), more));
    let clusters = [
        cluster("overflow", both(), with(json!({ "consecutive_5xx": 2 }))),
        cluster(
            "first",
            both(),
            with(json!({ "consecutive_5xx": 2, "max_ejection_percent": 0,
            "always_eject_one_host": true })),
        ),
        cluster("unenforced", both(), with(json!({ "consecutive_5xx": 2, "enforcing_consecutive_5xx": 0 }))),
        cluster("together", one_dead(), with(json!({ "consecutive_5xx": 2 }))),
        cluster(
            "split",
            one_dead(),
            with(json!({ "split_external_local_origin_errors": true,
            "consecutive_5xx": 100, "consecutive_local_origin_failure": 2 })),
        ),
        cluster("tcp", one_dead(), with(json!({ "consecutive_5xx": 2 }))),
    ];
    let names = ["overflow", "first", "unenforced", "together", "split"];
    let routes = json!(names.map(|name| route(name, json!({}))));
    let duo = Duo::start(routes, &clusters, &[("tcp", json!({ "cluster": "tcp" }))]).await;
    for name in names.iter().chain(&["tcp"]) {
        let fails = ["overflow", "first", "unenforced"].contains(name);
        backends.iter().for_each(|backend| backend.answers(if fails { 500 } else { 200 }));
        let mut seen = Vec::new();
        for kind in [0, 1] {
            for _ in 0..8 {
                if *name == "tcp" {
                    let mut stream = TcpStream::connect(duo.address(kind, "tcp")).await.unwrap();
                    // The dead one's connection ends; the other waits for a request.
                    let limit = Duration::from_millis(100);
                    let _ = tokio::time::timeout(limit, stream.read(&mut [0; 16])).await;
                } else {
                    duo.get(kind, &format!("/{name}"), &[]).await;
                }
                // Envoy judges on its main thread, which has done so when it answers this.
                duo.stat(kind, "server.live").await;
            }
            let active = u64::from(*name != "unenforced");
            duo.reaches(kind, &format!("cluster.{name}.{ACTIVE}"), active).await;
            seen.push(duo.stats(kind, &format!("cluster.{name}.{COUNTS}"), &[]).await);
        }
        let [envoy, lateen] = &seen[..] else { unreachable!() };
        assert_eq!(envoy, lateen, "{name}");
        assert!(envoy.len() > 1, "{name}: {envoy:?}");
    }
}
