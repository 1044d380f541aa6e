//! The application's probes, asked by the agent in the kubelet's place.

use std::convert::Infallible;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use lateen_agent::{EngineKind, run};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::support::{ControlPlane, Upstream, config, free_port, get};

/// A gRPC server that says `SERVING` of the service `shop`, and `NOT_SERVING` of others.
async fn grpc_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = async |request: Request<Incoming>| {
        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
        let asked = request.into_body().collect().await.unwrap().to_bytes();
        let status = if asked.ends_with(b"shop") { 1 } else { 2 };
        let message = Full::new(Bytes::from(vec![0, 0, 0, 0, 2, 8, status]));
        let trailers =
            HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))]);
        let body = message.with_trailers(std::future::ready(Some(Ok(trailers))));
        Ok::<_, Infallible>(
            Response::builder().header("content-type", "application/grpc").body(body).unwrap(),
        )
    };
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let served = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service_fn(answer));
            tokio::spawn(served);
        }
    });
    port
}

/// A server over TLS with a certificate that nobody trusts; answers 200 to `/ok` and 503 else.
async fn tls_server() -> u16 {
    let made = rcgen::generate_simple_self_signed(["elsewhere.example".to_owned()]).unwrap();
    let key = rustls_pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()).into();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let (acceptor, listener) =
        (TlsAcceptor::from(Arc::new(tls)), TcpListener::bind("127.0.0.1:0").await.unwrap());
    let port = listener.local_addr().unwrap().port();
    let answer = async |request: Request<Incoming>| {
        let status = if request.uri().path() == "/ok" { 200 } else { 503 };
        Ok::<_, Infallible>(Response::builder().status(status).body(Empty::<Bytes>::new()).unwrap())
    };
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let server = hyper::server::conn::http1::Builder::new();
                drop(server.serve_connection(TokioIo::new(stream), service_fn(answer)).await);
            });
        }
    });
    port
}

#[tokio::test]
async fn the_applications_probes_are_asked_in_the_kubelets_place() {
    let folder = tempfile::tempdir().unwrap();
    let (upstream, closed) = (Upstream::start("well").await, free_port());
    let (grpc, tls) = (grpc_server().await, tls_server().await);
    let control_plane = ControlPlane::start(Default::default()).await;
    let mut config = config(EngineKind::Lateen, control_plane.address, folder.path());
    let port = upstream.address.port();
    config.probers = serde_json::from_value(json!({
        "/app-health/http/readyz": { "httpGet": { "path": "ok", "port": port, "httpHeaders": [{ "name": "Host", "value": "app" }] } },
        "/app-health/tcp/livez": { "tcpSocket": { "port": port }, "timeoutSeconds": 2 },
        "/app-health/closed/startupz": { "tcpSocket": { "port": closed } },
        "/app-health/grpc/readyz": { "grpc": { "port": grpc, "service": "shop" } },
        "/app-health/grpc-sick/readyz": { "grpc": { "port": grpc } },
        "/app-health/grpc-other/readyz": { "grpc": { "port": port } },
        "/app-health/https/readyz": { "httpGet": { "path": "/ok", "port": tls, "scheme": "HTTPS" } },
        "/app-health/https-sick/readyz": { "httpGet": { "path": "/", "port": tls, "scheme": "HTTPS" } },
        "/app-health/https-plain/readyz": { "httpGet": { "path": "/", "port": port, "scheme": "HTTPS" } },
    }))
    .unwrap();
    let running = run(config).await.unwrap();
    for (path, status) in [
        ("http/readyz", "200"),
        ("tcp/livez", "200"),
        ("closed/startupz", "500"),
        ("grpc/readyz", "200"),
        ("grpc-sick/readyz", "500"),
        ("grpc-other/readyz", "500"),
        ("https/readyz", "200"),
        ("https-sick/readyz", "503"),
        ("https-plain/readyz", "500"),
        ("other/readyz", "404"),
    ] {
        let answer = get(running.addresses().status, &format!("/app-health/{path}")).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{path}: {answer}");
    }
    running.stop().await;
}
