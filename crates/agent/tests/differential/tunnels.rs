//! CONNECT and upgrades over HTTP/2 (RFC 8441), from clients and towards a service that takes both.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper::ext::Protocol;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::proxies::Pair;

/// Nothing takes longer than this.
const LIMIT: Duration = Duration::from_secs(10);

/// Says through the tunnel how it was asked for, and then sends back what comes.
async fn tunnel(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, std::convert::Infallible> {
    if request.method() != Method::CONNECT {
        return Ok(Response::builder().status(StatusCode::IM_A_TEAPOT).body(Full::default()).unwrap());
    }
    let protocol = request.extensions().get::<Protocol>().map_or("-", |protocol| protocol.as_str());
    let said = format!("> {protocol} {}\n", request.uri());
    tokio::spawn(async move {
        let Ok(upgraded) = hyper::upgrade::on(request).await else { return };
        let mut stream = TokioIo::new(upgraded);
        let _ = stream.write_all(said.as_bytes()).await;
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = stream.read(&mut buffer).await {
            let _ = stream.write_all(&buffer[..n]).await;
        }
        let _ = stream.shutdown().await;
    });
    Ok(Response::new(Full::default()))
}

/// The HTTP/2 service at the end of tunnels.
pub(crate) async fn start_service() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .enable_connect_protocol()
                    .serve_connection(TokioIo::new(stream), hyper::service::service_fn(tunnel)),
            );
        }
    });
    address
}

/// Asks for a tunnel, sends through it, and tells what came back: so many bytes. How a half-closed tunnel ends is each proxy's own.
async fn through(
    address: SocketAddr,
    uri: &str,
    protocol: Option<&'static str>,
    act: &str,
    (sent, back): (&str, usize),
) -> String {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, driver) =
        http2::handshake::<_, _, Empty<Bytes>>(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(async move { drop(driver.await) });
    let mut request = Request::builder().method(Method::CONNECT).uri(uri);
    if !act.is_empty() {
        request = request.header("act", act);
    }
    if let Some(protocol) = protocol {
        request = request.extension(Protocol::from_static(protocol));
    }
    let answer = match sender.send_request(request.body(Empty::new()).unwrap()).await {
        Ok(answer) => answer,
        Err(_) => return "refused".to_owned(),
    };
    let mut text = format!("{}\n", answer.status());
    let mut lines: Vec<String> = answer
        .headers()
        .iter()
        .map(|(name, value)| crate::wire::comparable(&format!("{name}: {}", value.to_str().unwrap())))
        .collect();
    lines.sort_unstable();
    text += &lines.join("\n");
    if answer.status() != StatusCode::OK {
        let body = answer.into_body().collect().await.map(|body| body.to_bytes());
        return text + &format!("\n{body:?}");
    }
    let mut tunnel = TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
    tunnel.write_all(sent.as_bytes()).await.unwrap();
    let mut bytes = vec![0; back];
    match tokio::time::timeout(LIMIT, tunnel.read_exact(&mut bytes)).await {
        Ok(Ok(_)) => text + &format!("\n{}\n", String::from_utf8_lossy(&bytes)),
        other => text + &format!("\n{other:?}: {bytes:?}"),
    }
}

/// Name, URI, protocol, what the service does, what is sent and how much comes back.
type Asked = (&'static str, &'static str, Option<&'static str>, &'static str, (&'static str, usize));

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tunnels_over_http2_fare_the_same() {
    const INNER: &str = "GET /inner HTTP/1.1\r\nhost: inner\r\nact: empty\r\n\r\n";
    let pair = Pair::start().await;
    let asked: [Asked; 12] = [
        ("connect that ends here", "ends:443", None, "", (INNER, 38)),
        ("connect that goes on over http1", "on:443", None, "", ("ping", 30)),
        ("connect that goes on over http2", "on2:443", None, "", ("ping", 16)),
        ("connect that the service refuses", "on:443", None, "500", ("", 0)),
        ("connect to nobody", "dead:443", None, "", ("", 0)),
        ("connect to a missing cluster", "missing:443", None, "", ("", 0)),
        ("connect where it is off", "off:443", None, "", ("", 0)),
        ("connect without a route", "other:443", None, "", ("", 0)),
        ("websocket to http1", "http://a/x", Some("websocket"), "websocket", ("ping", 9)),
        ("websocket to http2", "http://a/http2/x?y", Some("websocket"), "", ("ping", 34)),
        ("websocket where it is off", "http://a/off", Some("websocket"), "websocket", ("ping", 0)),
        ("another protocol", "http://a/x", Some("spdy"), "", ("", 0)),
    ];
    let mut complaints = String::new();
    for (name, uri, protocol, act, sent) in asked {
        let [envoy, lateen] = pair.addresses("tunnels");
        let (envoy, lateen) =
            tokio::join!(through(envoy, uri, protocol, act, sent), through(lateen, uri, protocol, act, sent));
        if envoy != lateen || envoy.contains("Err(") {
            complaints += &format!("=== {name}\n--- Envoy\n{envoy}\n--- Lateen\n{lateen}\n");
        }
    }
    // Where extended CONNECT is not allowed, it is no proper request.
    for address in pair.addresses("plain") {
        let seen = through(address, "http://a/x", Some("websocket"), "websocket", ("ping", 0)).await;
        assert_eq!(seen, "refused");
    }
    assert!(complaints.is_empty(), "\n{complaints}");
}

/// An upgraded connection counts as one for as long as it lasts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upgraded_connections_stay_counted() {
    let pair = Pair::start().await;
    let ask =
        b"GET / HTTP/1.1\r\nhost: a\r\nact: websocket\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n";
    let mut wires = Vec::new();
    for address in pair.addresses("tunnels") {
        let mut wire = crate::wire::Wire::new(TcpStream::connect(address).await.unwrap());
        wire.send(ask).await;
        assert!(wire.answer("GET").await.unwrap().starts_with("HTTP/1.1 101"));
        assert_eq!(wire.raw(5).await, b"hello");
        wires.push(wire);
    }
    let filter =
        "/stats?filter=^http.tunnels.downstream_(cx_active|cx_upgrades_active|cx_http1_active|rq_active)$";
    let pages = pair.pages(filter).await.map(|page| page.split_once("\n\n").unwrap().1.to_owned());
    assert_eq!(pages[0], pages[1]);
    assert!(pages[0].contains("downstream_cx_active: 1\n"), "{}", pages[0]);
}
