//! HTTP/2 on both sides: clients with prior knowledge on the port that also takes HTTP/1, and a service that goes away politely
//! and less so.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};

use crate::proxies::Pair;

/// Nothing takes longer than this.
const LIMIT: Duration = Duration::from_secs(15);

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, std::convert::Infallible> {
    let (head, body) = request.into_parts();
    let mut text = format!("> {} {}\n", head.method, head.uri);
    let mut lines: Vec<String> = head
        .headers
        .iter()
        .map(|(name, value)| {
            crate::wire::comparable(&format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
        })
        .collect();
    lines.sort_unstable();
    text += &lines.join("\n");
    let sent = body.collect().await.map(|body| body.to_bytes().len());
    text += &format!("\nbody {:?}", sent.ok());
    if head.headers.get("act").is_some_and(|act| act == "slow") {
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    Ok(Response::new(Full::new(Bytes::from(text))))
}

/// The HTTP/2 service behind both proxies. Each connection says GOAWAY after its first request, as a server does that is rolled
/// out anew, and finishes what it has.
pub(crate) async fn start_service() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let (first, seen) = tokio::sync::oneshot::channel();
                let first = std::sync::Mutex::new(Some(first));
                let service = hyper::service::service_fn(|request| {
                    if let Some(first) = first.lock().unwrap().take() {
                        let _ = first.send(());
                    }
                    answer(request)
                });
                let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service);
                let mut serving = std::pin::pin!(serving);
                tokio::select! {
                    _ = &mut serving => return,
                    _ = seen => serving.as_mut().graceful_shutdown(),
                }
                let _ = serving.await;
            });
        }
    });
    address
}

async fn connect(address: SocketAddr) -> SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, driver) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(async move { drop(driver.await) });
    sender
}

/// Sends and gives the answer in a comparable form.
async fn ask(mut sender: SendRequest<Full<Bytes>>, request: Request<Full<Bytes>>) -> String {
    let answered =
        tokio::time::timeout(LIMIT, sender.send_request(request)).await.expect("an answer in time");
    let answer = match answered {
        Ok(answer) => answer,
        Err(_) => return "reset".to_owned(),
    };
    let (head, body) = answer.into_parts();
    let mut lines: Vec<String> = head
        .headers
        .iter()
        .map(|(name, value)| {
            crate::wire::comparable(&format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())))
        })
        .collect();
    lines.sort_unstable();
    let body = match body.collect().await {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        Err(_) => "CUT".to_owned(),
    };
    format!("{}\n{}\n\n{body}\n", head.status, lines.join("\n"))
}

fn request(method: &str, uri: &str, headers: &[(&str, &str)], body: &'static [u8]) -> Request<Full<Bytes>> {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::new(Bytes::from_static(body))).unwrap()
}

/// Name, method, URL, headers, body.
type Asked =
    (&'static str, &'static str, &'static str, &'static [(&'static str, &'static str)], &'static [u8]);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_fares_the_same() {
    let pair = Pair::start().await;
    let requests: [Asked; 17] = [
        ("get", "GET", "http://a.example/x?y", &[], b""),
        ("post", "POST", "http://a.example/", &[], b"hello"),
        ("head", "HEAD", "http://a.example/", &[], b""),
        ("host too", "GET", "http://a.example/", &[("host", "b.example")], b""),
        ("te", "GET", "http://a.example/", &[("te", "trailers")], b""),
        ("cookies", "GET", "http://a.example/", &[("cookie", "a=b"), ("cookie", "c=d")], b""),
        ("missing", "GET", "http://a.example/missing", &[], b""),
        ("grpc of missing", "POST", "http://a.example/missing", &[("content-type", "application/grpc")], b""),
        ("direct", "GET", "http://a.example/direct", &[], b""),
        ("chunks", "GET", "http://a.example/", &[("act", "chunks")], b""),
        ("trailers", "GET", "http://a.example/", &[("act", "trailers")], b""),
        ("short", "GET", "http://a.example/", &[("act", "short")], b""),
        ("early close", "GET", "http://a.example/", &[("act", "early-close")], b""),
        ("custom method", "BREW", "http://a.example/", &[], b""),
        ("underscore", "GET", "http://a.example/", &[("x_a", "b")], b""),
        ("to http2", "GET", "http://a.example/http2/x", &[], b""),
        ("post to http2", "POST", "http://a.example/http2/x", &[], b"hello"),
    ];
    // hyper shows no interim answers (`streams` does): whoever expects one is served all the same.
    const EXPECTS: &[(&str, &str)] = &[("expect", "100-continue")];
    const OF_SERVICE: &[(&str, &str)] = &[("expect", "100-continue"), ("mirror-act", "100-then-")];
    let expecting: [(&str, Asked); 4] = [
        ("plain", ("expects", "POST", "http://a.example/", EXPECTS, b"hello")),
        ("plain", ("expects of http2", "POST", "http://a.example/http2/x", EXPECTS, b"hello")),
        ("passed-on", ("expects of the service", "POST", "http://a.example/", OF_SERVICE, b"hello")),
        ("passed-on", ("expects of http2 there", "POST", "http://a.example/http2/x", EXPECTS, b"hello")),
    ];
    let mut complaints = String::new();
    let requests = requests.map(|request| ("plain", request)).into_iter().chain(expecting);
    for (listener, (name, method, uri, headers, body)) in requests {
        let mut seen = Vec::new();
        for address in pair.addresses(listener) {
            seen.push(ask(connect(address).await, request(method, uri, headers, body)).await);
        }
        if seen[0] != seen[1] {
            complaints
                .push_str(&format!("=== {name}: differs\n--- Envoy\n{}--- Lateen\n{}\n", seen[0], seen[1]));
        }
    }
    assert!(complaints.is_empty(), "\n{complaints}");
}

/// A service that says GOAWAY on every connection, as in a roll-out: no request may be lost over it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_says_goaway_costs_no_request() {
    let pair = Pair::start().await;
    for (name, address) in ["Envoy", "Lateen"].into_iter().zip(pair.addresses("plain")) {
        let sender = connect(address).await;
        for round in 0..20 {
            let slow = request("GET", "http://a.example/http2/slow", &[("act", "slow")], b"");
            let (one, two, three) = tokio::join!(
                ask(sender.clone(), slow),
                ask(sender.clone(), request("POST", "http://a.example/http2/a", &[], b"abc")),
                ask(sender.clone(), request("GET", "http://a.example/http2/b", &[], b"")),
            );
            for answer in [one, two, three] {
                assert!(answer.starts_with("200"), "{name}, round {round}: {answer}");
            }
        }
    }
}
