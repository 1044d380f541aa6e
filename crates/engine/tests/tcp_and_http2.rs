//! TCP proxying, HTTP/2 on both sides, several workers.

mod support;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use lateen_engine::EngineConfig;
use lateen_engine::ResourceKind::{Cluster, Listener};
use support::{Act, Bed, HTTP2, OK, Upstream, all_to_c, cluster, http_listener, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

fn tcp_listener(more: &str) -> String {
    format!(
        "name: tcp
address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
filter_chains:
- filters:
  - name: envoy.filters.network.tcp_proxy
    typed_config:
      '@type': type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
      stat_prefix: tcp
      cluster: c
      {more}
"
    )
}

#[tokio::test]
async fn tcp_bytes_pass_both_ways_with_half_close() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut bed = Bed::start().await;
    bed.accept(&[(Cluster, &cluster(&[server.local_addr().unwrap()], "")), (Listener, &tcp_listener(""))])
        .await;
    let mut client = TcpStream::connect(bed.address("tcp").await).await.unwrap();
    let (mut upstream, _) = within(server.accept()).await.unwrap();
    let payload = vec![7; 1_000_000];
    let sent = async {
        client.write_all(&payload).await.unwrap();
        client.shutdown().await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        answer
    };
    let received = async {
        let mut all = Vec::new();
        upstream.read_to_end(&mut all).await.unwrap();
        // The client has stopped sending but still listens.
        upstream.write_all(b"bye").await.unwrap();
        drop(upstream);
        all
    };
    let (answer, all) = within(async { tokio::join!(sent, received) }).await;
    assert_eq!((answer.as_slice(), all.len()), (b"bye".as_slice(), 1_000_000));
    bed.until_stat("cluster.c.upstream_cx_active", 0).await;
    assert_eq!(bed.stat("tcp.tcp.downstream_cx_rx_bytes_total").await, Some(1_000_000));
    assert_eq!(bed.stat("tcp.tcp.downstream_cx_tx_bytes_total").await, Some(3));
}

#[tokio::test]
async fn an_idle_tcp_connection_is_closed() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut bed = Bed::start().await;
    let listener = tcp_listener("idle_timeout: 0.05s");
    bed.accept(&[(Cluster, &cluster(&[server.local_addr().unwrap()], "")), (Listener, &listener)]).await;
    let mut client = TcpStream::connect(bed.address("tcp").await).await.unwrap();
    assert_eq!(within(client.read(&mut [0; 8])).await.unwrap(), 0);
    assert_eq!(bed.stat("tcp.tcp.idle_timeout").await, Some(1));
}

#[tokio::test]
async fn a_tcp_connection_without_an_endpoint_is_closed() {
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut bed = Bed::start().await;
    bed.accept(&[(Cluster, &cluster(&[unused], "")), (Listener, &tcp_listener(""))]).await;
    let mut client = TcpStream::connect(bed.address("tcp").await).await.unwrap();
    assert_eq!(within(client.read(&mut [0; 8])).await.unwrap_or(0), 0);
    assert_eq!(bed.stat("cluster.c.upstream_cx_connect_fail").await, Some(1));
}

/// An HTTP/2 service that echoes bodies and answers with trailers, or resets the stream at `/reset`.
async fn http2_service() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service = service_fn(|request: http::Request<hyper::body::Incoming>| async move {
                if request.uri().path() == "/reset" {
                    return Err(h2::Error::from(h2::Reason::REFUSED_STREAM));
                }
                let authority = request.uri().authority().map(ToString::to_string).unwrap_or_default();
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let trailers = http::HeaderMap::from_iter([(
                    http::HeaderName::from_static("grpc-status"),
                    http::HeaderValue::from_static("0"),
                )]);
                let body = Full::new(body).with_trailers(async move { Some(Ok(trailers)) });
                Ok(http::Response::builder().header("x-authority", authority).body(body).unwrap())
            });
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    address
}

async fn http2_client(address: std::net::SocketAddr) -> hyper::client::conn::http2::SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, driver) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(driver);
    sender
}

#[tokio::test]
async fn http2_passes_with_trailers_and_shares_one_connection() {
    let mut bed = Bed::start().await;
    let service = http2_service().await;
    bed.accept(&[(Cluster, &cluster(&[service], HTTP2)), (Listener, &http_listener("", &all_to_c("")))])
        .await;
    let sender = http2_client(bed.address("web").await).await;
    let calls = (0..20).map(|n| {
        let mut sender = sender.clone();
        async move {
            let body = Full::new(Bytes::from(format!("call {n}")));
            let request =
                http::Request::post("http://shop.example/echo").header("te", "trailers").body(body).unwrap();
            let answer = sender.send_request(request).await.unwrap();
            assert_eq!(answer.headers()["x-authority"], "shop.example");
            assert_eq!(answer.headers()["server"], "envoy");
            let whole = answer.into_body().collect().await.unwrap();
            assert_eq!(whole.trailers().unwrap()["grpc-status"], "0");
            assert_eq!(whole.to_bytes(), format!("call {n}"));
        }
    });
    within(futures::future::join_all(calls)).await;
    assert_eq!(bed.stat("cluster.c.upstream_cx_http2_total").await, Some(1));
    assert_eq!(bed.stat("http.web.downstream_rq_http2_total").await, Some(20));
}

#[tokio::test]
async fn protocols_are_translated() {
    let mut bed = Bed::start().await;
    let service = http2_service().await;
    bed.accept(&[(Cluster, &cluster(&[service], HTTP2)), (Listener, &http_listener("", &all_to_c("")))])
        .await;
    let mut client = bed.client("web").await;
    let answer = client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi").await;
    assert_eq!((answer.status, answer.body(), answer.header("x-authority")), (200, "hi", Some("a")));
    let answer = client.get("/reset").await;
    assert_eq!(answer.status, 503);
    assert!(answer.body().ends_with("reset reason: remote refused stream reset"), "{}", answer.body());
    let upstream = Upstream::start(&[OK]).await;
    bed.accept(&[(Cluster, &cluster(&[upstream.address], ""))]).await;
    let mut sender = http2_client(bed.address("web").await).await;
    let request = http::Request::get("http://shop.example/x").body(Full::default()).unwrap();
    let answer = within(sender.send_request(request)).await.unwrap();
    assert_eq!(answer.status(), 200);
    let seen = &upstream.seen()[0];
    assert!(seen.starts_with("GET /x HTTP/1.1\r\n") && seen.contains("host: shop.example\r\n"), "{seen}");
}

#[tokio::test]
async fn a_grpc_failure_is_a_grpc_status() {
    let mut bed = Bed::start().await;
    let empty = "{name: c, type: STATIC}";
    bed.accept(&[(Cluster, empty), (Listener, &http_listener("", &all_to_c("")))]).await;
    let mut sender = http2_client(bed.address("web").await).await;
    let request = http::Request::post("http://a/p.S/M").header("content-type", "application/grpc");
    let answer = within(sender.send_request(request.body(Full::default()).unwrap())).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["grpc-status"], "14");
    assert_eq!(answer.headers()["grpc-message"], "no healthy upstream");
}

#[tokio::test]
async fn workers_share_the_load_and_their_numbers_add_up() {
    let upstream = Upstream::start(&[OK]).await;
    let mut bed = Bed::with(EngineConfig { concurrency: 2, ..EngineConfig::default() });
    bed.accept(&[
        (Cluster, &cluster(&[upstream.address], "")),
        (Listener, &http_listener("", &all_to_c(""))),
    ])
    .await;
    for _ in 0..40 {
        assert_eq!(bed.client("web").await.get("/").await.status, 200);
    }
    assert_eq!(bed.stat("cluster.c.upstream_rq_total").await, Some(40));
    assert!(
        bed.stat("cluster.c.upstream_cx_total").await.unwrap() >= 2,
        "both workers have a pool of their own"
    );
}

#[tokio::test]
async fn the_http_inspector_chooses_between_http_and_tcp() {
    let web = Upstream::start(&[OK]).await;
    let raw = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let http = http_listener("", &all_to_c(""));
    let http_chain = http[http.find("filter_chains:\n").unwrap() + 15..].replacen(
        "- filters:",
        "- filter_chain_match: {application_protocols: [http/1.1, h2c]}\n  filters:",
        1,
    );
    let tcp = tcp_listener("").replace("cluster: c", "cluster: raw");
    let tcp_chain = &tcp[tcp.find("filter_chains:\n").unwrap() + 15..];
    let listener = format!(
        "name: web
address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
listener_filters:
- name: envoy.filters.listener.http_inspector
  typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector}}
filter_chains:
{http_chain}{tcp_chain}"
    );
    let mut bed = Bed::start().await;
    let raw_cluster = cluster(&[raw.local_addr().unwrap()], "")
        .replacen("name: c", "name: raw", 1)
        .replace("cluster_name: c", "cluster_name: raw");
    bed.accept(&[(Cluster, &cluster(&[web.address], "")), (Cluster, &raw_cluster), (Listener, &listener)])
        .await;
    assert_eq!(bed.client("web").await.get("/").await.status, 200);
    let mut client = TcpStream::connect(bed.address("web").await).await.unwrap();
    client.write_all(b"\x01\x02raw").await.unwrap();
    let (mut server, _) = within(raw.accept()).await.unwrap();
    let mut bytes = [0; 5];
    within(server.read_exact(&mut bytes)).await.unwrap();
    assert_eq!(&bytes, b"\x01\x02raw");
}

#[tokio::test]
async fn a_dns_cluster_is_resolved_before_it_serves() {
    let upstream = Upstream::start(&[Act::Reply("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")]).await;
    let dns = format!(
        "{{name: c, type: STRICT_DNS, dns_lookup_family: V4_ONLY, load_assignment: {{cluster_name: c, endpoints: [{{lb_endpoints: \
         [{{endpoint: {{address: {{socket_address: {{address: localhost, port_value: {}}}}}}}}}]}}]}}}}",
        upstream.address.port()
    );
    let mut bed = Bed::start().await;
    bed.accept(&[(Cluster, &dns), (Listener, &http_listener("", &all_to_c("auto_host_rewrite: true")))])
        .await;
    bed.engine.initialized().await.unwrap();
    within(bed.engine.ready_watch().wait_for(|ready| *ready)).await.unwrap();
    assert_eq!(bed.client("web").await.get("/").await.status, 200);
    assert!(upstream.seen()[0].contains("host: localhost\r\n"), "{}", upstream.seen()[0]);
}
