//! Health checks over HTTP/2, gRPC and TLS, and what else ends an endpoint's good or bad times: outlier detection, and what it says
//! itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::duo::{Backend, Duo, KINDS, cluster, route};
use crate::health::{check, flags, healthy};
use crate::proxies::{address, merge};
use crate::tls_config::upstream_tls;
use crate::tls_pki::{Pair, Pki};

type Answer = Response<BoxBody<Bytes, std::convert::Infallible>>;

/// What a service answers.
#[derive(Clone, Copy)]
enum Say {
    Status(u16),
    /// A health service's status, with this `grpc-status` behind it.
    Grpc(u8, &'static str),
    /// The same without being gRPC.
    Plain(u8),
    /// No message; the status in the head.
    HeadOnly(&'static str),
    /// Messages that are none.
    Garbage,
    Never,
}

fn trailers(status: &'static str) -> HeaderMap {
    HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static(status))])
}

async fn answer(say: Say) -> Answer {
    let message = |status: u8| Full::new(Bytes::from(vec![0, 0, 0, 0, 2, 8, status]));
    let grpc = |body: Full<Bytes>, status: &'static str| {
        let body = body.with_trailers(async move { Some(Ok(trailers(status))) });
        Response::builder().header("content-type", "application/grpc").body(body.boxed()).unwrap()
    };
    match say {
        Say::Status(status) => Response::builder().status(status).body(Empty::new().boxed()).unwrap(),
        Say::Grpc(serving, status) => grpc(message(serving), status),
        Say::Plain(serving) => Response::new(message(serving).boxed()),
        Say::HeadOnly(status) => Response::builder()
            .header("content-type", "application/grpc")
            .header("grpc-status", status)
            .body(Empty::new().boxed())
            .unwrap(),
        Say::Garbage => grpc(Full::new(Bytes::from_static(b"garbage")), "0"),
        Say::Never => std::future::pending().await,
    }
}

type Record = Arc<Mutex<BTreeMap<String, usize>>>;

/// A service over HTTP/1.1 or HTTP/2, with TLS or without, which counts what it is asked.
async fn service(http2: bool, tls: Option<&Pair>, say: Say) -> (u16, Record) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let record = Record::default();
    let shared = record.clone();
    let acceptor = tls.map(acceptor);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (record, acceptor) = (shared.clone(), acceptor.clone());
            tokio::spawn(async move {
                let Some(acceptor) = acceptor else {
                    return serve(http2, TokioIo::new(stream), "plain".to_owned(), record, say).await;
                };
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let session = stream.get_ref().1;
                let alpn = String::from_utf8_lossy(session.alpn_protocol().unwrap_or(b"none")).into_owned();
                let about = format!("tls alpn={alpn} sni={:?}", session.server_name());
                serve(http2, TokioIo::new(stream), about, record, say).await;
            });
        }
    });
    (port, record)
}

fn acceptor(pair: &Pair) -> tokio_rustls::TlsAcceptor {
    let chain = CertificateDer::pem_slice_iter(pair.chain.as_bytes()).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = ["special", "h2", "http/1.1"].map(|name| name.as_bytes().to_vec()).to_vec();
    tokio_rustls::TlsAcceptor::from(Arc::new(config))
}

async fn serve<I>(http2: bool, io: TokioIo<I>, about: String, record: Record, say: Say)
where
    I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (record, about) = (record.clone(), about.clone());
        async move {
            let (head, body) = request.into_parts();
            let mut lines: Vec<String> =
                head.headers.iter().map(|(name, value)| format!("{name}: {value:?}")).collect();
            lines.sort_unstable();
            let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            let asked = format!("{about} {} {}\n{}\n{body:?}", head.method, head.uri, lines.join("\n"));
            *record.lock().unwrap().entry(asked).or_default() += 1;
            Ok::<_, std::convert::Infallible>(answer(say).await)
        }
    });
    // A proxy that goes away ends it.
    if http2 {
        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        drop(builder.serve_connection(io, service).await);
    } else {
        drop(hyper::server::conn::http1::Builder::new().serve_connection(io, service).await);
    }
}

/// Waits until a service was asked often enough, and gives the ways in which it was.
async fn ways(record: &Record) -> BTreeSet<String> {
    let began = Instant::now();
    loop {
        let now = record.lock().unwrap().clone();
        if now.values().sum::<usize>() >= 12 {
            return now.into_keys().collect();
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{now:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn endpoint(port: u16, more: Value) -> Value {
    let mut endpoint = json!({ "endpoint": { "address": address(port) } });
    merge(&mut endpoint, more);
    endpoint
}

fn over_http2() -> Value {
    json!({ "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": { "http2_protocol_options": {} },
    } } })
}

fn grpc(probe: Value) -> Value {
    let mut more = check(json!({ "grpc_health_check": probe, "timeout": "0.3s" }));
    merge(&mut more, over_http2());
    more
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_is_asked_and_understood_as_by_envoy() {
    let says = [
        ("serving", Say::Grpc(1, "0"), 1),
        ("not-serving", Say::Grpc(2, "0"), 0),
        ("unknown", Say::Grpc(3, "0"), 0),
        ("wrong-status", Say::Grpc(1, "5"), 0),
        ("not-grpc", Say::Plain(1), 0),
        ("head-only", Say::HeadOnly("12"), 0),
        ("head-only-ok", Say::HeadOnly("0"), 0),
        ("status-503", Say::Status(503), 0),
        ("garbage", Say::Garbage, 0),
        ("silent", Say::Never, 0),
    ];
    let (mut records, mut clusters) = (Vec::new(), Vec::new());
    for (name, say, _) in says {
        let (port, record) = service(true, None, say).await;
        clusters.push(cluster(name, vec![endpoint(port, json!({}))], grpc(json!({}))));
        records.push((name, record));
    }
    let (port, record) = service(true, None, Say::Grpc(1, "0")).await;
    let named = json!({ "service_name": "shop.Cart", "authority": "health.example" });
    clusters.push(cluster("named", vec![endpoint(port, json!({}))], grpc(named.clone())));
    records.push(("named", record));
    let (port, record) = service(true, None, Say::Grpc(1, "0")).await;
    let own = json!({ "endpoint": { "health_check_config": { "hostname": "own.example" } } });
    clusters.push(cluster("own", vec![endpoint(port, own)], grpc(named)));
    records.push(("own", record));
    let duo = Duo::start(json!([]), &clusters, &[]).await;
    for (name, record) in &records {
        let ways = ways(record).await;
        assert_eq!(ways.len(), 1, "{name}: both ask the same, not {ways:?}");
    }
    for (name, _, count) in says {
        healthy(&duo, name, count).await;
        assert_eq!(flags(&duo, 0, name).await, flags(&duo, 1, name).await, "{name}");
    }
    for kind in [0, 1] {
        let stat = async |leaf: &str| duo.stat(kind, &format!("cluster.silent.health_check.{leaf}")).await;
        assert!(stat("network_failure").await > 0, "{}", KINDS[kind]);
        let stat = async |leaf: &str| duo.stat(kind, &format!("cluster.garbage.health_check.{leaf}")).await;
        assert_eq!(stat("network_failure").await, 0, "{}", KINDS[kind]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checks_use_http2_and_tls_as_envoys() {
    let pki = Pki::new();
    let roots = json!({ "validation_context": { "trusted_ca": { "inline_string": pki.authority.pem() } } });
    let secure = |more: Value| {
        let mut context = json!({ "sni": "a.example", "common_tls_context": roots });
        merge(&mut context, more);
        upstream_tls(context)
    };
    let http = |more: Value, probe: Value| {
        let mut health = json!({ "path": "/health", "host": "health.example" });
        merge(&mut health, probe);
        let mut check = json!({ "http_health_check": health });
        merge(&mut check, more);
        crate::health::check(check)
    };
    let h2 = || json!({ "codec_client_type": "HTTP2" });
    let with_tls = |more: Value, probe: Value, context: Value| {
        let mut all = http(more, probe);
        merge(&mut all, json!({ "transport_socket": secure(context) }));
        all
    };
    let alpn = |names: &[&str]| json!({ "common_tls_context": { "alpn_protocols": names } });
    let matches = |default: Option<Value>| {
        let mut all = json!({ "transport_socket_matches": [
            { "name": "secure", "match": { "way": "secure" }, "transport_socket": secure(json!({})) },
            { "name": "plain", "match": {}, "transport_socket": {
                "name": "envoy.transport_sockets.raw_buffer",
                "typed_config": { "@type": "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer" },
            } },
        ] });
        merge(&mut all, http(default.unwrap_or_else(|| json!({})), json!({})));
        all
    };
    let secure_metadata =
        json!({ "metadata": { "filter_metadata": { "envoy.transport_socket_match": { "way": "secure" } } } });
    let by_criteria = Some(json!({ "transport_socket_match_criteria": { "way": "secure" } }));
    let other_criteria = Some(json!({ "transport_socket_match_criteria": { "way": "other" } }));
    // Name, HTTP/2, TLS at the service, what the cluster has, what the endpoint has, whether it is healthy.
    let plans = [
        ("h2", true, false, http(json!({}), h2()), json!({}), 1),
        (
            "h2-post",
            true,
            false,
            http(json!({}), json!({ "codec_client_type": "HTTP2", "method": "POST" })),
            json!({}),
            1,
        ),
        ("tls", false, true, with_tls(json!({}), json!({}), json!({})), json!({}), 1),
        ("tls-h2", true, true, with_tls(json!({}), h2(), json!({})), json!({}), 1),
        ("tls-context-alpn", true, true, with_tls(json!({}), h2(), alpn(&["h2"])), json!({}), 1),
        (
            "tls-own-alpn",
            false,
            true,
            with_tls(json!({ "tls_options": { "alpn_protocols": ["special"] } }), json!({}), alpn(&["h2"])),
            json!({}),
            1,
        ),
        ("tls-at-plain", false, false, with_tls(json!({}), json!({}), json!({})), json!({}), 0),
        ("plain-at-tls", false, true, http(json!({}), json!({})), json!({}), 0),
        ("by-endpoint", false, true, matches(None), secure_metadata.clone(), 1),
        ("by-endpoint-plain", false, false, matches(None), json!({}), 1),
        ("by-criteria", false, true, matches(by_criteria), json!({}), 1),
        ("other-criteria", false, false, matches(other_criteria), secure_metadata, 1),
    ];
    let (mut records, mut clusters) = (Vec::new(), Vec::new());
    for (name, http2, tls, more, of_endpoint, count) in plans {
        let (port, record) = service(http2, tls.then_some(&pki.server_a), Say::Status(200)).await;
        clusters.push(cluster(name, vec![endpoint(port, of_endpoint)], more));
        records.push((name, record, count));
    }
    let duo = Duo::start(json!([]), &clusters, &[]).await;
    for (name, record, count) in &records {
        if *count > 0 {
            let ways = ways(record).await;
            assert_eq!(ways.len(), 1, "{name}: both ask the same, not {ways:?}");
        }
        for kind in [0, 1] {
            duo.reaches(kind, &format!("cluster.{name}.membership_healthy"), *count).await;
        }
        assert_eq!(flags(&duo, 0, name).await, flags(&duo, 1, name).await, "{name}");
    }
    for kind in [0, 1] {
        let stat = async |leaf: &str| duo.stat(kind, leaf).await;
        assert!(stat("cluster.tls.ssl.handshake").await > 0, "{}", KINDS[kind]);
        assert!(stat("cluster.tls-at-plain.ssl.connection_error").await > 0, "{}", KINDS[kind]);
    }
}

/// Checks that ask once at the beginning and then no more.
fn once() -> Value {
    json!({ "interval": "100s", "no_traffic_interval": "100s", "http_health_check": { "path": "/health" } })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_that_passes_ends_an_ejection_as_with_envoy() {
    let backends = Backend::several(2).await;
    let all = || backends.iter().map(|backend| backend.endpoint(json!({}))).collect::<Vec<_>>();
    let with = |checks: Value, more: Value| {
        let mut outliers = json!({ "consecutive_5xx": 2, "interval": "100s", "base_ejection_time": "100s",
            "max_ejection_percent": 100, "enforcing_success_rate": 0 });
        merge(&mut outliers, more);
        let mut all = check(checks);
        merge(&mut all, json!({ "outlier_detection": outliers }));
        all
    };
    let every = || json!({ "http_health_check": { "path": "/health" } });
    let clusters = [
        cluster("returns", all(), with(every(), json!({}))),
        cluster(
            "stays",
            all(),
            with(every(), json!({ "successful_active_health_check_uneject_host": false })),
        ),
        cluster("rarely", all(), with(once(), json!({}))),
    ];
    let routes: Vec<Value> =
        ["returns", "stays", "rarely"].iter().map(|name| route(name, json!({}))).collect();
    let duo = Duo::start(json!(routes), &clusters, &[]).await;
    for name in ["returns", "stays", "rarely"] {
        healthy(&duo, name, 2).await;
        for (kind, engine) in KINDS.iter().enumerate() {
            let stat = |leaf: &str| format!("cluster.{name}.outlier_detection.{leaf}");
            for _ in 0..8 {
                // Traffic fails where its checks do not.
                duo.get(kind, &format!("/{name}"), &[("x-status", "500")]).await;
                duo.stat(kind, "server.live").await;
            }
            let began = Instant::now();
            while duo.stat(kind, &stat("ejections_enforced_total")).await < 2 {
                assert!(began.elapsed() < Duration::from_secs(10), "{engine} {name}");
                duo.get(kind, &format!("/{name}"), &[("x-status", "500")]).await;
            }
            if name == "returns" {
                duo.reaches(kind, &stat("ejections_active"), 0).await;
                duo.reaches(kind, "cluster.returns.membership_healthy", 2).await;
            } else {
                tokio::time::sleep(Duration::from_millis(500)).await;
                assert_eq!(duo.stat(kind, &stat("ejections_active")).await, 2, "{engine} {name}");
            }
        }
        assert_eq!(flags(&duo, 0, name).await, flags(&duo, 1, name).await, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_says_it_leaves_takes_no_more() {
    let backends = Backend::several(3).await;
    let all = || backends.iter().map(|backend| backend.endpoint(json!({}))).collect::<Vec<_>>();
    let every = check(json!({ "http_health_check": { "path": "/health" } }));
    let clusters = [
        cluster("leaving", all(), check(once())),
        cluster("returning", all(), every),
        cluster("unchecked", all(), json!({})),
    ];
    let names = ["leaving", "returning", "unchecked"];
    let routes: Vec<Value> = names.iter().map(|name| route(name, json!({}))).collect();
    let duo = Duo::start(json!(routes), &clusters, &[]).await;
    for name in names {
        healthy(&duo, name, 3).await;
        let mut told = Vec::new();
        for (kind, engine) in KINDS.iter().enumerate() {
            let leaves = [("x-say", "x-envoy-immediate-health-check-fail: true")];
            // Two hosts say so; the panic threshold is half of those that are there, which they no longer are.
            for left in [2, 1] {
                let reply = duo.get(kind, &format!("/{name}"), &leaves).await;
                told.push((
                    reply.status,
                    reply.header("x-envoy-immediate-health-check-fail").map(str::to_owned),
                ));
                if name == "leaving" {
                    duo.reaches(kind, "cluster.leaving.membership_healthy", left).await;
                }
            }
            if name == "leaving" {
                let stat = async |leaf: &str| duo.stat(kind, &format!("cluster.leaving.{leaf}")).await;
                assert_eq!(stat("membership_excluded").await, 2, "{engine}");
                assert_eq!(stat("health_check.passive_failure").await, 2, "{engine}");
                let began = Instant::now();
                // Envoy's workers hear of changes a moment later.
                loop {
                    let mut met = BTreeSet::new();
                    for _ in 0..9 {
                        met.insert(duo.get(kind, "/leaving", &[]).await.body);
                    }
                    if met.len() == 1 {
                        break;
                    }
                    assert!(began.elapsed() < Duration::from_secs(5), "{engine}: {met:?}");
                }
                assert_eq!(stat("lb_healthy_panic").await, 0, "{engine}");
            } else {
                duo.reaches(kind, &format!("cluster.{name}.membership_healthy"), 3).await;
                duo.reaches(kind, &format!("cluster.{name}.membership_excluded"), 0).await;
            }
        }
        assert_eq!(told[..2], told[2..], "{name}");
        let flags = [flags(&duo, 0, name).await, flags(&duo, 1, name).await];
        let counted = flags.map(|flags| {
            let mut flags: Vec<String> = flags.into_values().collect();
            flags.sort_unstable();
            flags
        });
        assert_eq!(counted[0], counted[1], "{name}");
    }
}
