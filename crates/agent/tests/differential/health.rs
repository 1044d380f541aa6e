//! Active health checks: who is asked what, and who takes traffic then.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::duo::{Backend, Duo, KINDS, cluster, route};
use crate::proxies::{address, free_ports, merge};

/// A check every tenth of a second, with traffic or without.
pub(crate) fn check(more: Value) -> Value {
    let mut check = json!({
        "timeout": "1s", "interval": "0.1s", "no_traffic_interval": "0.1s",
        "unhealthy_threshold": 2, "healthy_threshold": 2,
    });
    merge(&mut check, more);
    json!({ "health_checks": [check] })
}

fn http(more: Value) -> Value {
    let mut probe = json!({ "path": "/health?deep=1" });
    merge(&mut probe, more);
    check(json!({ "http_health_check": probe }))
}

/// The flags of a cluster's hosts by port.
pub(crate) async fn flags(duo: &Duo, kind: usize, name: &str) -> BTreeMap<String, String> {
    let page = duo.page(kind, "/clusters").await;
    let lines = page.lines().filter_map(|line| line.strip_prefix(&format!("{name}::127.0.0.1:")));
    let told = lines.filter_map(|line| line.split_once("::health_flags::"));
    told.map(|(port, flags)| (port.to_owned(), flags.to_owned())).collect()
}

/// Waits until so many hosts are healthy on both.
pub(crate) async fn healthy(duo: &Duo, name: &str, count: u64) {
    for kind in [0, 1] {
        duo.reaches(kind, &format!("cluster.{name}.membership_healthy"), count).await;
    }
}

async fn met(duo: &Duo, kind: usize, name: &str) -> BTreeSet<String> {
    let mut met = BTreeSet::new();
    for _ in 0..12 {
        let reply = duo.get(kind, &format!("/{name}"), &[("x-status", "200")]).await;
        met.insert(format!("{} {}", reply.status, reply.body));
    }
    met
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unhealthy_endpoints_take_no_traffic() {
    let backends = Backend::several(2).await;
    let dead = json!({ "endpoint": { "address": address(free_ports(1)[0]) } });
    let [first, second] = [0, 1].map(|n: usize| backends[n].endpoint(json!({})));
    let asked_elsewhere = backends[0].endpoint(
        json!({ "endpoint": { "health_check_config": { "port_value": backends[1].address.port() } } }),
    );
    let not_asked = backends[1]
        .endpoint(json!({ "endpoint": { "health_check_config": { "disable_active_health_check": true } } }));
    let clusters = [
        cluster("checked", vec![first.clone(), second.clone(), dead], http(json!({}))),
        cluster(
            "expects",
            vec![first.clone(), second.clone()],
            http(json!({ "expected_statuses": [{ "start": 500, "end": 504 }] })),
        ),
        cluster(
            "retriable",
            vec![first, second],
            http(json!({ "retriable_statuses": [{ "start": 500, "end": 600 }] })),
        ),
        cluster("elsewhere", vec![asked_elsewhere, not_asked], http(json!({}))),
    ];
    let names = ["checked", "expects", "retriable", "elsewhere"];
    let routes: Vec<Value> = names.iter().map(|name| route(name, json!({}))).collect();
    backends[1].answers(503);
    let duo = Duo::start(json!(routes), &clusters, &[]).await;
    let both = ["200 0".to_owned(), "200 1".to_owned()];
    for (name, count, expected) in [
        ("checked", 1, &both[..1]),
        ("expects", 1, &both[1..]),
        ("retriable", 1, &both[..1]),
        ("elsewhere", 1, &both[1..]),
    ] {
        healthy(&duo, name, count).await;
        let [envoy, lateen] = [flags(&duo, 0, name).await, flags(&duo, 1, name).await];
        assert_eq!(envoy, lateen, "{name}");
        for (kind, engine) in KINDS.iter().enumerate() {
            // One of three is below the panic threshold: everyone takes traffic.
            if name != "checked" {
                assert_eq!(
                    met(&duo, kind, name).await,
                    expected.iter().cloned().collect(),
                    "{engine} {name}"
                );
            }
        }
    }
    backends[1].answers(200);
    healthy(&duo, "checked", 2).await;
    healthy(&duo, "retriable", 2).await;
    healthy(&duo, "expects", 0).await;
    for (kind, engine) in KINDS.iter().enumerate() {
        assert_eq!(met(&duo, kind, "checked").await, both.iter().cloned().collect(), "{engine}");
        let panics = format!("cluster.{}.lb_healthy_panic", "expects");
        let before = duo.stat(kind, &panics).await;
        assert_eq!(met(&duo, kind, "expects").await, both.iter().cloned().collect(), "{engine}: in panic");
        assert_eq!(duo.stat(kind, &panics).await - before, 12, "{engine}");
        let stat = async |leaf: &str| duo.stat(kind, &format!("cluster.checked.health_check.{leaf}")).await;
        assert_eq!([stat("healthy").await, stat("degraded").await], [2, 0], "{engine}");
        assert!(
            stat("network_failure").await > 0 && stat("failure").await > stat("network_failure").await,
            "{engine}"
        );
        let ended = stat("success").await + stat("failure").await;
        assert!(stat("attempt").await >= ended, "{engine}");
    }
    backends[0].answers(503);
    healthy(&duo, "checked", 1).await;
    assert_eq!(flags(&duo, 0, "checked").await, flags(&duo, 1, "checked").await);
}

/// A service that keeps what it was asked, connection by connection, and answers with the same bytes each time.
async fn service(answer: &'static [u8]) -> (u16, Arc<Mutex<Vec<Vec<String>>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Arc::new(Mutex::new(Vec::<Vec<String>>::new()));
    let shared = asked.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let number = {
                let mut asked = shared.lock().unwrap();
                asked.push(Vec::new());
                asked.len() - 1
            };
            let shared = shared.clone();
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                    let text = String::from_utf8_lossy(&buffer[..n]).to_ascii_lowercase();
                    let mut lines: Vec<&str> = text.lines().collect();
                    lines[1..].sort_unstable();
                    shared.lock().unwrap()[number].push(lines.join("\n"));
                    stream.write_all(answer).await.unwrap();
                }
            });
        }
    });
    (port, asked)
}

/// Waits until some connections have carried so many checks each.
async fn carried(asked: &Mutex<Vec<Vec<String>>>, connections: usize, checks: usize) -> Vec<Vec<String>> {
    let began = Instant::now();
    loop {
        let now = asked.lock().unwrap().clone();
        if now.iter().filter(|asked| asked.len() >= checks).count() >= connections {
            return now;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{now:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checks_ask_what_envoys_ask() {
    const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    let endpoint = |port: u16| json!({ "endpoint": { "address": address(port) } });
    let (kept, kept_asked) = service(OK).await;
    let (fresh, fresh_asked) = service(OK).await;
    let (named, named_asked) =
        service(b"HTTP/1.1 200 OK\r\nx-envoy-degraded: 1\r\ncontent-length: 0\r\n\r\n").await;
    let (pong, pong_asked) = service(b"...PO.NG").await;
    let (other, _) = service(b"no").await;
    let (leaving, _) =
        service(b"HTTP/1.1 503 X\r\nx-envoy-immediate-health-check-fail: 1\r\ncontent-length: 0\r\n\r\n")
            .await;
    let mut own_host = endpoint(named);
    own_host["endpoint"]["health_check_config"] = json!({ "hostname": "own.example" });
    let mut single = http(json!({ "method": "OPTIONS", "host": "general.example" }));
    single["health_checks"][0]["reuse_connection"] = false.into();
    // PING, then PO and NG; what has another answer has none in time.
    let exchange = check(json!({
        "timeout": "0.2s",
        "tcp_health_check": { "send": { "text": "50494e47" }, "receive": [{ "text": "504f" }, { "text": "4e47" }] },
    }));
    let clusters = [
        cluster("kept", vec![endpoint(kept)], http(json!({}))),
        cluster("fresh", vec![endpoint(fresh)], single),
        cluster("named", vec![own_host], http(json!({ "host": "general.example", "method": "HEAD" }))),
        cluster("leaving", vec![endpoint(leaving)], http(json!({}))),
        cluster("exchange", vec![endpoint(pong), endpoint(other)], exchange),
        cluster(
            "connects",
            vec![endpoint(pong), endpoint(free_ports(1)[0])],
            check(json!({ "tcp_health_check": {} })),
        ),
    ];
    let duo = Duo::start(json!([]), &clusters, &[]).await;
    for (asked, what, per_connection) in [
        (&kept_asked, "kept", 3),
        (&fresh_asked, "fresh", 1),
        (&named_asked, "named", 3),
        (&pong_asked, "pong", 3),
    ] {
        let seen = carried(asked, if per_connection == 1 { 6 } else { 2 }, per_connection).await;
        let distinct: BTreeSet<&String> = seen.iter().flatten().collect();
        assert_eq!(distinct.len(), 1, "{what}: both ask the same, not {distinct:?}");
        assert!(
            per_connection > 1 || seen.iter().all(|asked| asked.len() <= 1),
            "{what}: one check a connection"
        );
    }
    healthy(&duo, "exchange", 1).await;
    healthy(&duo, "connects", 1).await;
    for kind in [0, 1] {
        duo.reaches(kind, "cluster.named.membership_degraded", 1).await;
        duo.reaches(kind, "cluster.named.health_check.degraded", 1).await;
        duo.reaches(kind, "cluster.leaving.membership_excluded", 1).await;
    }
    for name in ["kept", "named", "leaving", "exchange", "connects"] {
        assert_eq!(flags(&duo, 0, name).await, flags(&duo, 1, name).await, "{name}");
    }
}
