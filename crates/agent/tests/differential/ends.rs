//! Connections to endpoints that end while something is under way on them: which side ended them, and what is counted.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::time::Duration;

use http::{Request, Response};
use http_body_util::Empty;
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::duo::{Duo, KINDS, cluster, get, route};
use crate::proxies::address;

/// Does with each connection what the last part of the first request's path says.
async fn act(mut stream: TcpStream) -> Option<()> {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.ok()?);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let path = head.split(' ').nth(1)?;
        let (answer, ends) = match path.rsplit('/').next()? {
            "nothing" => return None,
            "half" => ("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", true),
            "until-end" => ("HTTP/1.1 200 OK\r\n\r\nall", true),
            "whole" => ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", true),
            "kept" => ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", false),
            "busy" => ("HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n", false),
            "garbage" => ("HTTP/1.1 abc\r\n\r\n", false),
            "begun" => ("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", false),
            _ => ("", false),
        };
        stream.write_all(answer.as_bytes()).await.ok()?;
        if ends {
            return None;
        }
    }
}

/// HTTP/2: answers `/kept`, and cuts the connection once it has two other requests.
async fn act_http2(stream: TcpStream) {
    let (requests, two) = (Arc::new(AtomicU32::new(0)), Arc::new(Notify::new()));
    let heard = two.clone();
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (requests, two) = (requests.clone(), two.clone());
        async move {
            if !request.uri().path().ends_with("/kept") {
                if request.uri().path().ends_with("/cut") && requests.fetch_add(1, SeqCst) == 1 {
                    two.notify_one();
                }
                std::future::pending::<()>().await;
            }
            Ok::<_, std::convert::Infallible>(Response::new(Empty::<Bytes>::new()))
        }
    });
    let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        _ = serving => {}
        () = heard.notified() => {}
    }
}

async fn start<F: Future + Send + 'static>(serve: fn(TcpStream) -> F) -> SocketAddr
where
    F::Output: Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    address
}

/// A client that has sent its request and leaves once a stat says that it has arrived.
async fn leave(duo: &Duo, kind: usize, listener: &str, path: &str, stat: &str) {
    let mut stream = TcpStream::connect(duo.address(kind, listener)).await.unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).await.unwrap();
    if path.ends_with("/begun") {
        stream.read_u8().await.unwrap();
    }
    duo.reaches(kind, stat, 1).await;
}

/// The answer's status to a request that may not be sent twice, since a connection that breaks off may be a stale one.
async fn post(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.split(' ').nth(1).unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_end_with_requests_are_counted_the_same() {
    let (http1, http2) = (start(act).await, start(act_http2).await);
    let at = |to: SocketAddr| vec![json!({ "endpoint": { "address": address(to.port()) } })];
    let over_http2 = json!({ "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": { "http2_protocol_options": {} },
    } } });
    // Each with the connections it keeps.
    let answered = [
        ("nothing", 0),
        ("half", 0),
        ("until-end", 0),
        ("whole", 0),
        ("kept", 1),
        ("busy", 1),
        ("garbage", 0),
        ("silent", 0),
    ];
    let mut clusters: Vec<Value> =
        answered.iter().map(|(name, _)| cluster(name, at(http1), json!({}))).collect();
    clusters.extend(
        ["left", "begun-left", "tcp-left", "tcp-ended"].map(|name| cluster(name, at(http1), json!({}))),
    );
    clusters.extend(["h2-cut", "h2-silent"].map(|name| cluster(name, at(http2), over_http2.clone())));
    let retries = json!({ "retry_policy": { "retry_on": "5xx", "num_retries": 2, "retry_back_off": { "base_interval": "0.001s", "max_interval": "0.002s" } } });
    let mut routes: Vec<Value> = clusters
        .iter()
        .filter_map(|cluster| cluster["name"].as_str())
        .filter(|name| !["busy", "silent", "h2-silent"].contains(name))
        .map(|name| route(name, json!({})))
        .collect();
    routes.push(route("busy", retries));
    routes.extend(["silent", "h2-silent"].map(|name| route(name, json!({ "timeout": "0.3s" }))));
    let tcp = ["tcp-left", "tcp-ended"].map(|name| (name, json!({ "cluster": name })));
    let duo = Duo::start(json!(routes), &clusters, &tcp).await;
    let mut seen = [String::new(), String::new()];
    for (kind, seen) in seen.iter_mut().enumerate() {
        for (name, _) in answered {
            *seen += &format!("{name}: {}\n", duo.get(kind, &format!("/{name}/{name}"), &[]).await.status);
        }
        leave(&duo, kind, "web", "/left/silent", "cluster.left.upstream_rq_active").await;
        leave(&duo, kind, "web", "/begun-left/begun", "cluster.begun-left.upstream_rq_active").await;
        leave(&duo, kind, "tcp-left", "/kept", "cluster.tcp-left.upstream_cx_active").await;
        let ended = get(duo.address(kind, "tcp-ended"), "/whole", &[]).await;
        let web = duo.address(kind, "web");
        let cut = tokio::join!(post(web, "/h2-cut/cut"), post(web, "/h2-cut/cut"));
        let silent = duo.get(kind, "/h2-silent/silent", &[]).await;
        let kept = duo.get(kind, "/h2-silent/kept", &[]).await;
        *seen += &format!(
            "ended {}, cut {} {}, silent {}, kept {}\n",
            ended.status, cut.0, cut.1, silent.status, kept.status
        );
        for cluster in clusters.iter().filter_map(|cluster| cluster["name"].as_str()) {
            let kept = answered.iter().find(|(name, _)| *name == cluster).map_or(0, |(_, kept)| *kept);
            let kept = kept + u64::from(cluster == "h2-silent");
            duo.reaches(kind, &format!("cluster.{cluster}.upstream_cx_active"), kept).await;
            *seen += &format!("{cluster}\n");
            for (stat, value) in
                duo.stats(kind, &format!("cluster.{cluster}.upstream_cx_"), &["_ms", "bytes"]).await
            {
                // Envoy says of bytes that the side ended them which did so last.
                if cluster.starts_with("tcp-") && (stat.contains("local") || stat.contains("remote")) {
                    continue;
                }
                *seen += &format!("  {stat} {value}\n");
            }
        }
    }
    assert!(seen[0] == seen[1], "--- {}\n{}\n--- {}\n{}", KINDS[0], seen[0], KINDS[1], seen[1]);
    for told in ["destroy_remote_with_active_rq 1", "destroy_local_with_active_rq 1"] {
        assert!(seen[0].contains(told), "{}", seen[0]);
    }
}

/// What an answer says of its connection.
/// (What says both of HTTP/1.0 Envoy keeps, and hyper does not.)
const LAST_WORDS: [&str; 21] = [
    "1.1",
    "1.1\r\nconnection: close",
    "1.1\r\nconnection: Close",
    "1.1\r\nCONNECTION: CLOSE",
    "1.1\r\nconnection: keep-alive",
    "1.1\r\nconnection: keep-alive, close",
    "1.1\r\nconnection: x,close ,y",
    "1.1\r\nconnection: keep-alive\r\nconnection: close",
    "1.1\r\nconnection: closed",
    "1.1\r\nconnection:",
    "1.1\r\nproxy-connection: close",
    "1.1\r\nProxy-Connection: Close",
    "1.1\r\nproxy-connection: x, close",
    "1.1\r\nproxy-connection: keep-alive",
    "1.1\r\nproxy-connection: keep-alive\r\nproxy-connection: close",
    "1.1\r\nconnection: close\r\nproxy-connection: close",
    "1.1\r\nkeep-alive: timeout=0",
    "1.0",
    "1.0\r\nconnection: keep-alive",
    "1.0\r\nconnection: x, Keep-Alive",
    "1.0\r\nconnection: keep-alive\r\nproxy-connection: close",
];

/// Answers as the last part of the path says: those of [`LAST_WORDS`] by number, one after the other. It ends no connection.
async fn say(mut stream: TcpStream) -> Option<()> {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.ok()?);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let number: usize = head.split(' ').nth(1)?.rsplit('/').next()?.parse().ok()?;
        let (version, headers) = LAST_WORDS[number].split_at(3);
        let answer = format!("HTTP/{version} 200 OK{headers}\r\ncontent-length: 2\r\n\r\nok");
        stream.write_all(answer.as_bytes()).await.ok()?;
    }
}

/// Which answers are a connection's last, though the service goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_end_connections_the_same() {
    let service = start(say).await;
    let names: Vec<String> = (0..LAST_WORDS.len()).map(|number| format!("said-{number:02}")).collect();
    let at = || vec![json!({ "endpoint": { "address": address(service.port()) } })];
    let clusters: Vec<Value> = names.iter().map(|name| cluster(name, at(), json!({}))).collect();
    let routes: Vec<Value> = names.iter().map(|name| route(name, json!({}))).collect();
    let duo = Duo::start(json!(routes), &clusters, &[]).await;
    let mut complaints = String::new();
    for (number, words) in LAST_WORDS.iter().enumerate() {
        let name = &names[number];
        let mut seen = [String::new(), String::new()];
        for (kind, seen) in seen.iter_mut().enumerate() {
            // Then one that says nothing, to the same and then to a connection that may be new.
            for path in [number, number, 0, 0] {
                let reply = duo.get(kind, &format!("/{name}/{path}"), &[]).await;
                *seen += &format!("{} {:?}; ", reply.status, reply.header("connection"));
            }
            duo.reaches(kind, &format!("cluster.{name}.upstream_cx_active"), 1).await;
            let stats = duo.stats(kind, &format!("cluster.{name}.upstream_cx_"), &["_ms", "bytes"]).await;
            *seen += &format!("{stats:?}");
        }
        if seen[0] != seen[1] {
            complaints += &format!("{words:?}\n  {}: {}\n  {}: {}\n", KINDS[0], seen[0], KINDS[1], seen[1]);
        }
    }
    assert!(complaints.is_empty(), "\n{complaints}");
}

/// Requests that the service below has let die.
static DIED: AtomicUsize = AtomicUsize::new(0);

/// Answers, but for requests that are to die: their connection ends after a while.
async fn let_die(mut stream: TcpStream) {
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        while !bytes.ends_with(b"\r\n\r\n") {
            if matches!(stream.read_buf(&mut bytes).await, Ok(0) | Err(_)) {
                return;
            }
        }
        if bytes.starts_with(b"GET /kept/die") {
            DIED.fetch_add(1, Relaxed);
            tokio::time::sleep(Duration::from_millis(400)).await;
            return;
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    }
}

/// A connection that was kept and ends in the middle of a request ends for the request: that is not sent once more, however
/// harmless. (One that was closing when the request was sent is another matter: nothing is lost over it.)
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_under_way_dies_with_its_connection() {
    let service = start(let_die).await;
    let endpoints = vec![json!({ "endpoint": { "address": address(service.port()) } })];
    let clusters = [cluster("kept", endpoints, json!({}))];
    let duo = Duo::start(json!([route("kept", json!({}))]), &clusters, &[]).await;
    let mut seen = Vec::new();
    for kind in [0, 1] {
        let before = DIED.load(Relaxed);
        let first = duo.get(kind, "/kept/live", &[]).await;
        let second = duo.get(kind, "/kept/die", &[]).await;
        seen.push((first.status, second.status, second.body, DIED.load(Relaxed) - before));
    }
    assert_eq!(seen[0], seen[1], "--- Envoy, then Lateen");
    assert_eq!((seen[1].0, seen[1].1, seen[1].3), (200, 503, 1));
}
