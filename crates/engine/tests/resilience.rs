//! Retries, kept connections that die, circuit breakers, outlier detection.

mod support;

use std::sync::atomic::Ordering::SeqCst;

use lateen_engine::EngineConfig;
use lateen_engine::ResourceKind::{Cluster, Listener};
use support::{Act, Bed, OK, Upstream, all_to_c, cluster, http_listener, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const BAD: Act = Act::Reply("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nbusy");

/// Istio's default policy, without its pause.
const ISTIO_RETRIES: &str = "retry_policy: {retry_on: 'connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes', \
    num_retries: 2, retriable_status_codes: [503], host_selection_retry_max_attempts: 5, \
    retry_back_off: {base_interval: 0.001s, max_interval: 0.002s}, \
    retry_host_predicate: [{name: envoy.retry_host_predicates.previous_hosts, typed_config: \
    {'@type': type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate}}]}";

async fn bed(route: &str, cluster_more: &str, scripts: &[&[Act]]) -> (Bed, Vec<Upstream>) {
    let mut upstreams = Vec::new();
    for script in scripts {
        upstreams.push(Upstream::start(script).await);
    }
    let addresses: Vec<_> = upstreams.iter().map(|upstream| upstream.address).collect();
    let mut bed = Bed::start().await;
    let listener = http_listener("", &all_to_c(route));
    bed.accept(&[(Cluster, &cluster(&addresses, cluster_more)), (Listener, &listener)]).await;
    (bed, upstreams)
}

#[tokio::test]
async fn a_retriable_status_is_tried_again_with_the_whole_body() {
    let (bed, upstreams) = bed(ISTIO_RETRIES, "", &[&[BAD, BAD, OK]]).await;
    let request = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody";
    let answer = bed.client("web").await.send(request).await;
    assert_eq!((answer.status, answer.body()), (200, "ok"));
    let seen = upstreams[0].seen();
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|request| request.ends_with("\r\n\r\nbody")), "{seen:?}");
    assert_eq!(bed.stat("cluster.c.upstream_rq_retry").await, Some(2));
    assert_eq!(bed.stat("cluster.c.upstream_rq_retry_success").await, Some(1));
    assert_eq!(bed.stat("cluster.c.upstream_rq_200").await, Some(1));
}

#[tokio::test]
async fn the_last_answer_is_given_when_retries_are_used_up() {
    let (bed, upstreams) = bed(ISTIO_RETRIES, "", &[&[BAD]]).await;
    let answer = bed.client("web").await.get("/").await;
    assert_eq!((answer.status, answer.body()), (503, "busy"));
    assert_eq!(upstreams[0].seen().len(), 3);
    assert_eq!(bed.stat("cluster.c.upstream_rq_retry_limit_exceeded").await, Some(1));
}

#[tokio::test]
async fn a_body_larger_than_the_buffer_is_not_retried() {
    let listener = http_listener("", &all_to_c(ISTIO_RETRIES)) + "per_connection_buffer_limit_bytes: 1024\n";
    let upstream = Upstream::start(&[BAD, OK]).await;
    let mut bed = Bed::start().await;
    bed.accept(&[(Cluster, &cluster(&[upstream.address], "")), (Listener, &listener)]).await;
    let body = "x".repeat(5000);
    let request = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5000\r\n\r\n{body}");
    assert_eq!(bed.client("web").await.send(&request).await.status, 503);
    assert_eq!(upstream.seen().len(), 1);
}

#[tokio::test]
async fn a_refused_connection_is_retried_elsewhere() {
    let dead = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let upstream = Upstream::start(&[OK]).await;
    let mut bed = Bed::start().await;
    let listener = http_listener("", &all_to_c(ISTIO_RETRIES));
    bed.accept(&[(Cluster, &cluster(&[dead, upstream.address], "")), (Listener, &listener)]).await;
    let mut client = bed.client("web").await;
    for _ in 0..6 {
        assert_eq!(client.get("/").await.status, 200);
    }
    assert!(bed.stat("cluster.c.upstream_cx_connect_fail").await.unwrap() > 0);
}

#[tokio::test]
async fn a_kept_connection_that_dies_costs_no_request() {
    // The service answers once and hangs up when the next request comes in on the same connection.
    let (bed, upstreams) = bed("", "", &[&[OK, Act::Close, OK, Act::Close, OK]]).await;
    let mut client = bed.client("web").await;
    for _ in 0..3 {
        assert_eq!(client.get("/").await.status, 200);
    }
    assert_eq!(upstreams[0].connections.load(SeqCst), 3);
}

#[tokio::test]
async fn a_request_that_may_have_been_processed_is_not_repeated_when_that_could_harm() {
    let (bed, upstreams) = bed("", "", &[&[OK, Act::Close, OK]]).await;
    let mut client = bed.client("web").await;
    assert_eq!(client.get("/").await.status, 200);
    let answer = client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nx").await;
    assert_eq!(answer.status, 503);
    assert_eq!(upstreams[0].seen().len(), 2);
}

#[tokio::test]
async fn a_service_that_closes_while_idle_is_noticed() {
    let closing = Act::ReplyAndClose("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    let (bed, upstreams) = bed("", "", &[&[closing]]).await;
    let mut client = bed.client("web").await;
    for _ in 0..5 {
        let answer = client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nx").await;
        assert_eq!(answer.status, 200);
        bed.until_stat("cluster.c.upstream_cx_active", 0).await;
    }
    assert_eq!(upstreams[0].connections.load(SeqCst), 5);
}

#[tokio::test]
async fn an_open_circuit_breaker_says_overloaded() {
    let limits = "circuit_breakers: {thresholds: [{max_requests: 1}]}";
    let (bed, _upstreams) = bed("", limits, &[&[Act::Silence]]).await;
    let mut first = bed.client("web").await;
    tokio::io::AsyncWriteExt::write_all(&mut first.stream, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    bed.until_stat("cluster.c.upstream_rq_active", 1).await;
    let answer = bed.client("web").await.get("/").await;
    assert_eq!((answer.status, answer.header("x-envoy-overloaded")), (503, Some("true")));
    assert_eq!(
        answer.body(),
        "upstream connect error or disconnect/reset before headers. reset reason: overflow"
    );
    assert_eq!(bed.stat("cluster.c.circuit_breakers.default.rq_open").await, Some(1));
    drop(first);
    bed.until_stat("cluster.c.upstream_rq_active", 0).await;
    assert_eq!(bed.stat("cluster.c.circuit_breakers.default.rq_open").await, Some(0));
}

#[tokio::test]
async fn requests_wait_for_a_connection_when_no_more_may_be_opened() {
    let limits = "circuit_breakers: {thresholds: [{max_connections: 1}]}";
    let (bed, upstreams) = bed("", limits, &[&[OK]]).await;
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(bed.client("web").await);
    }
    let answers = clients.iter_mut().map(|client| client.get("/"));
    let statuses = within(async {
        let mut statuses = Vec::new();
        for answer in answers.collect::<Vec<_>>() {
            statuses.push(answer.await.status);
        }
        statuses
    })
    .await;
    assert_eq!(statuses, [200; 8]);
    assert_eq!(upstreams[0].connections.load(SeqCst), 1);
}

#[tokio::test]
async fn a_failing_host_is_ejected() {
    let outliers =
        "outlier_detection: {consecutive_5xx: 2, base_ejection_time: 100s, max_ejection_percent: 50}";
    let (bed, upstreams) = bed("", outliers, &[&[BAD], &[OK]]).await;
    let mut client = bed.client("web").await;
    for _ in 0..12 {
        client.get("/").await;
    }
    assert_eq!(upstreams[0].seen().len(), 2, "two failures, then none");
    let clusters = bed.admin("GET /clusters").await.text();
    assert!(clusters.contains("health_flags::/failed_outlier_check"), "{clusters}");
    assert_eq!(bed.stat("cluster.c.membership_healthy").await, Some(1));
}

/// Reads a request's head from a connection.
async fn head(stream: &mut tokio::net::TcpStream) {
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n\r\n") {
        read.push(stream.read_u8().await.unwrap());
    }
}

#[tokio::test]
async fn whoever_waits_for_a_connection_gets_on_when_one_ends() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut bed = Bed::start().await;
    let limit = "circuit_breakers: {thresholds: [{max_connections: 1}]}";
    bed.accept(&[
        (Cluster, &cluster(&[listener.local_addr().unwrap()], limit)),
        (Listener, &http_listener("", &all_to_c("timeout: 0s"))),
    ])
    .await;
    let (mut one, mut two) = (bed.client("web").await, bed.client("web").await);
    let service = async {
        let (mut first, _) = listener.accept().await.unwrap();
        head(&mut first).await;
        bed.until_stat("cluster.c.upstream_rq_pending_active", 1).await;
        let last = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok";
        first.write_all(last).await.unwrap();
        drop(first);
        let (mut second, _) = listener.accept().await.unwrap();
        head(&mut second).await;
        second.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        second
    };
    let (_kept, one, two) = within(async { tokio::join!(service, one.get("/"), two.get("/")) }).await;
    assert_eq!((one.status, two.status), (200, 200));
}

#[tokio::test]
async fn a_client_that_breaks_its_body_is_not_held_against_the_endpoint() {
    let upstream = Upstream::start(&[OK]).await;
    let mut bed = Bed::start().await;
    let detection = "outlier_detection: {consecutive_5xx: 1, max_ejection_percent: 100}";
    bed.accept(&[
        (Cluster, &cluster(&[upstream.address], detection)),
        (Listener, &http_listener("", &all_to_c("retry_policy: {retry_on: reset}"))),
    ])
    .await;
    let mut client = bed.client("web").await;
    let answer = client.send("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n").await;
    assert_eq!(answer.status, 400);
    assert_eq!(bed.stat("cluster.c.upstream_rq_retry").await, Some(0));
    let clusters = bed.admin("GET /clusters").await.text();
    assert!(clusters.contains("health_flags::healthy") && clusters.contains("rq_error::0"), "{clusters}");
}

#[tokio::test]
async fn a_client_that_takes_nothing_holds_nothing_for_long() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut bed = Bed::start().await;
    bed.accept(&[
        (Cluster, &cluster(&[listener.local_addr().unwrap()], "")),
        (Listener, &http_listener("stream_idle_timeout: 0.3s", &all_to_c("timeout: 0s"))),
    ])
    .await;
    let mut client = bed.client("web").await;
    client.stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let endless = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
        let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
        while stream.write_all(chunk.as_bytes()).await.is_ok() {}
    };
    within(endless).await;
    assert_eq!(bed.stat("http.web.downstream_rq_idle_timeout").await, Some(1));
}

#[tokio::test]
async fn draining_waits_for_upgraded_connections() {
    let upstream = Upstream::start(&[Act::Reply(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    )])
    .await;
    let drain_time = std::time::Duration::from_secs(600);
    let mut bed = Bed::with(EngineConfig { drain_time, ..EngineConfig::default() });
    bed.accept(&[
        (Cluster, &cluster(&[upstream.address], "")),
        (Listener, &http_listener("upgrade_configs: [{upgrade_type: websocket}]", &all_to_c(""))),
    ])
    .await;
    let mut client = bed.client("web").await;
    let asked = "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    assert_eq!(client.send(asked).await.status, 101);
    bed.until_stat("http.web.downstream_cx_upgrades_active", 1).await;
    bed.engine.initialized().await.unwrap();
    assert_eq!(bed.stat("server.live").await, Some(1));
    let mut drained = std::pin::pin!(bed.engine.drain());
    assert!(futures::poll!(&mut drained).is_pending());
    // The workers have heard of it before they are asked for the numbers after these.
    bed.until_stat("server.live", 0).await;
    assert_eq!(bed.stat("http.web.downstream_cx_upgrades_active").await, Some(1));
    assert!(futures::poll!(&mut drained).is_pending(), "the upgraded connection was forgotten");
    drop(client);
    within(drained).await.unwrap();
}

#[tokio::test]
async fn a_head_that_never_ends_is_not_waited_for() {
    let drain_time = std::time::Duration::from_secs(600);
    let mut bed = Bed::with(EngineConfig { drain_time, ..EngineConfig::default() });
    for (limit, stat) in [
        ("common_http_protocol_options: {idle_timeout: 0.2s}", "downstream_cx_idle_timeout"),
        ("stream_idle_timeout: 0.2s", "downstream_rq_idle_timeout"),
        ("request_headers_timeout: 0.2s", "downstream_rq_header_timeout"),
    ] {
        bed.accept(&[(Listener, &http_listener(limit, &all_to_c("")))]).await;
        let mut client = bed.client("web").await;
        client.stream.write_all(b"GET / HTTP/1.1\r\nho").await.unwrap();
        assert!(client.is_closed().await, "{limit}");
        assert_eq!(bed.stat(&format!("http.web.{stat}")).await, Some(1), "{limit}");
    }
}
