//! Hosts that are looked up when somebody asks for them: the dynamic forward proxy over HTTP and by the names that TLS asks for.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::duo::{Backend, KINDS};
use crate::names::{Names, Says};
use crate::proxies::{self, Proxy, address, cluster, merge};
use crate::tls_config::upstream_tls;
use crate::tls_pki::Pki;
use crate::wire::Wire;

const LIMIT: Duration = Duration::from_secs(20);

/// A cache's settings.
pub(crate) fn cache(name: &str, names: &Names, more: Value) -> Value {
    let mut cache = json!({
        "name": name, "dns_lookup_family": "V4_ONLY", "dns_query_timeout": "1s",
        "typed_dns_resolver_config": { "name": "envoy.network.dns_resolver.cares", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
            "resolvers": [address(names.address.port())],
            "dns_resolver_options": { "no_default_search_domain": true },
        } },
    });
    merge(&mut cache, more);
    cache
}

pub(crate) fn dynamic(name: &str, cache: &Value, more: Value) -> Value {
    let mut cluster = json!({
        "name": name, "connect_timeout": "1s", "lb_policy": "CLUSTER_PROVIDED",
        "cluster_type": { "name": "envoy.clusters.dynamic_forward_proxy", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig",
            "dns_cache_config": cache,
        } },
    });
    merge(&mut cluster, more);
    cluster
}

pub(crate) const HTTP_FILTER: &str = "envoy.filters.http.dynamic_forward_proxy";

pub(crate) fn logs(path: &Path, format: &str) -> Value {
    json!([{ "name": "file", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
        "path": path, "log_format": { "text_format_source": { "inline_string": format } },
    } }])
}

fn web(port: u16, name: &str, cache: &Value, log: &Path) -> Value {
    let looks_up = json!({ "name": HTTP_FILTER, "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig",
        "dns_cache_config": cache,
    } });
    let filters: Vec<Value> = [looks_up]
        .into_iter()
        .filter(|_| name != "bare")
        .chain([json!({ "name": "router", "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" } })])
        .collect();
    let format = format!(
        "{name} %REQ(:PATH)% %REQ(:AUTHORITY)% %RESPONSE_CODE% flags=%RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% host=%UPSTREAM_HOST% failure=%UPSTREAM_TRANSPORT_FAILURE_REASON%\n"
    );
    let rewrites = |rewrite: Value| {
        let mut config = json!({ "@type": "type.googleapis.com/envoy.extensions.filters.http.dynamic_forward_proxy.v3.PerRouteConfig" });
        merge(&mut config, rewrite);
        json!({ HTTP_FILTER: config })
    };
    let route = |prefix: &str, action: Value, more: Value| {
        let mut route = json!({ "match": { "prefix": prefix }, "route": action });
        merge(&mut route, more);
        route
    };
    let to = |cluster: &str| json!({ "cluster": cluster });
    let cluster = format!("dynamic-{name}");
    json!({
        "name": name, "address": address(port),
        "filter_chains": [{ "filters": [{ "name": "hcm", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": name, "access_log": logs(log, &format),
            "route_config": { "name": "routes", "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [
                route("/fixed", to("fixed"), json!({})),
                route("/secure", to("secure"), json!({})),
                route("/literal", to(&cluster), json!({ "typed_per_filter_config": rewrites(json!({ "host_rewrite_literal": "none.test" })) })),
                route("/header", to(&cluster), json!({ "typed_per_filter_config": rewrites(json!({ "host_rewrite_header": "x-host" })) })),
                route("/late", json!({ "cluster": cluster, "host_rewrite_literal": "elsewhere.test" }), json!({})),
                route("/", to(&cluster), json!({})),
            ] }] },
            "http_filters": filters,
        } }] }],
    })
}

fn tcp(listener: u16, port: u16, name: &str, cache: &Value, log: &Path) -> Value {
    let format = format!("{name} %REQUESTED_SERVER_NAME% flags=%RESPONSE_FLAGS% host=%UPSTREAM_HOST%\n");
    json!({
        "name": name, "address": address(listener),
        "listener_filters": [{ "name": "tls", "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector" } }],
        "filter_chains": [{ "filters": [
            { "name": "envoy.filters.network.sni_dynamic_forward_proxy", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.sni_dynamic_forward_proxy.v3.FilterConfig",
                "port_value": port, "dns_cache_config": cache,
            } },
            { "name": "tcp", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                "stat_prefix": name, "cluster": format!("dynamic-{name}"), "access_log": logs(log, &format),
            } },
        ] }],
    })
}

/// Both proxies.
struct Both {
    proxies: [Proxy; 2],
    names: Names,
    backend: Backend,
    _folder: tempfile::TempDir,
}

/// Caches by the name of their listener, and what each adds.
fn caches() -> [(&'static str, Value); 7] {
    [
        (
            "web",
            json!({ "resolved_address_filter": { "ranges": [{ "address_prefix": "127.0.0.9", "prefix_len": 32 }] } }),
        ),
        ("small", json!({ "max_hosts": 1 })),
        // Without the filter, so that the cluster looks names up by itself.
        ("bare", json!({ "max_hosts": 3 })),
        ("nobody", json!({ "dns_cache_circuit_breaker": { "max_pending_requests": 0 } })),
        (
            "brief",
            json!({ "host_ttl": "1s", "dns_min_refresh_rate": "1s", "dns_refresh_rate": "1s", "disable_dns_refresh_on_failure": true }),
        ),
        ("one", json!({ "dns_cache_circuit_breaker": { "max_pending_requests": 1 } })),
        (
            "again",
            json!({
                "dns_min_refresh_rate": "1s",
                "dns_failure_refresh_rate": { "base_interval": "0.2s", "max_interval": "0.3s" },
                "preresolve_hostnames": [{ "address": "known.test", "port_value": 7 }],
            }),
        ),
    ]
}

/// What is both a listener of TLS, and too small for two names.
const TCP: [&str; 2] = ["sni", "sni-small"];

impl Both {
    async fn start(pki: &Pki) -> Self {
        let (names, backend) = (Names::start().await, Backend::start("here").await);
        let folder = tempfile::tempdir().unwrap();
        let listening: Vec<&'static str> = caches().map(|(name, _)| name).into_iter().chain(TCP).collect();
        let proxies = proxies::both(folder.path(), &listening, |ports, log| {
            let (mut listeners, mut clusters) = (Vec::new(), Vec::new());
            for (name, more) in caches() {
                let cache = cache(name, &names, more);
                listeners.push(web(ports[name], name, &cache, log));
                // Envoy goes on using connections to an address that has changed, so that only new ones tell.
                let fresh = json!({ "max_requests_per_connection": 1 });
                clusters.push(dynamic(&format!("dynamic-{name}"), &cache, fresh));
            }
            for (name, most) in TCP.into_iter().zip([8, 1]) {
                let cache = cache(name, &names, json!({ "max_hosts": most }));
                listeners.push(tcp(ports[name], backend.address.port(), name, &cache, log));
                clusters.push(dynamic(&format!("dynamic-{name}"), &cache, json!({})));
            }
            clusters.push(cluster("fixed", json!({}), &[backend.address]));
            let trust = json!({ "common_tls_context": { "validation_context": { "trusted_ca": { "inline_string": pki.authority.pem() } } } });
            let web = caches()[0].clone().1;
            clusters.push(dynamic(
                "secure",
                &cache("web", &names, web),
                json!({ "transport_socket": upstream_tls(trust) }),
            ));
            [listeners, clusters]
        })
        .await;
        Self { proxies, names, backend, _folder: folder }
    }

    fn at(&self, kind: usize, listener: &str) -> SocketAddr {
        ([127, 0, 0, 1], self.proxies[kind].ports[listener]).into()
    }

    /// What both answer, which must be the same; it is returned.
    async fn asks(&self, listener: &str, path: &str, host: &str, more: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n{more}\r\n");
        let ask = async |kind| {
            let mut wire = Wire::new(TcpStream::connect(self.at(kind, listener)).await.unwrap());
            wire.send(request.as_bytes()).await;
            wire.answer("GET").await.unwrap_or_else(|| "END".to_owned())
        };
        let (envoy, lateen) = tokio::join!(ask(0), ask(1));
        assert_eq!(envoy, lateen, "{listener} {path} {host} {more}");
        envoy
    }

    /// The first bytes that come back from a ClientHello for a name; empty at the end.
    async fn hello(&self, kind: usize, listener: &str, name: &str) -> String {
        let mut stream = TcpStream::connect(self.at(kind, listener)).await.unwrap();
        let config = rustls::ClientConfig::builder()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        hello.extend_from_slice(b"\r\n\r\n");
        let _ = stream.write_all(&hello).await;
        let mut buffer = [0; 64];
        let read = tokio::time::timeout(LIMIT, stream.read(&mut buffer)).await.expect("an end");
        String::from_utf8_lossy(&buffer[..read.unwrap_or(0)]).into_owned()
    }

    async fn stat(&self, kind: usize, name: &str) -> u64 {
        let page = self.proxies[kind].admin("/stats?filter=dns_cache").await.unwrap();
        let line = page.lines().filter_map(|line| line.split_once(": ")).find(|(known, _)| *known == name);
        line.unwrap_or_else(|| panic!("{}: no {name} in {page}", KINDS[kind])).1.trim().parse().unwrap()
    }

    async fn reaches(&self, name: &str, value: u64) {
        for kind in [0, 1] {
            let began = Instant::now();
            while self.stat(kind, name).await != value {
                let now = self.stat(kind, name).await;
                assert!(began.elapsed() < LIMIT, "{}: {name} is {now}, not {value}", KINDS[kind]);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    /// The lines of both logs and the numbers of the caches must be the same.
    async fn agree(&self, caches: &[&str]) {
        let logs = tokio::join!(self.proxies[0].log(), self.proxies[1].log());
        // How often a thing was asked for until it was as expected is by chance.
        let sorted = |log: String| log.lines().map(str::to_owned).collect::<BTreeSet<_>>();
        assert_eq!(sorted(logs.0), sorted(logs.1));
        for name in caches {
            let page = format!("/stats?filter=^dns_cache.{name}[.]");
            let (envoy, lateen) = tokio::join!(self.proxies[0].admin(&page), self.proxies[1].admin(&page));
            let lines = |page: Option<String>| {
                let page = page.unwrap();
                let mut lines: Vec<_> =
                    page.lines().filter(|line| line.starts_with("dns_cache")).map(str::to_owned).collect();
                lines.sort_unstable();
                lines
            };
            assert_eq!(lines(envoy), lines(lateen));
        }
    }
}

/// A server of TLS that answers every request.
async fn secure_server(pki: &Pki) -> SocketAddr {
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(pki.server_a.chain.as_bytes()).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(pki.server_a.key.as_bytes()).unwrap();
    let config = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut stream = acceptor.accept(stream).await.ok()?;
                let mut buffer = [0; 4096];
                while stream.read(&mut buffer).await.ok()? > 0 {
                    let name = stream.get_ref().1.server_name().unwrap_or_default().to_owned();
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{name}", name.len());
                    stream.write_all(answer.as_bytes()).await.ok()?;
                }
                Some(())
            });
        }
    });
    address
}

const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_are_looked_up_when_they_are_asked_for() {
    let pki = Pki::new();
    let secure = secure_server(&pki).await;
    let both = Both::start(&pki).await;
    let port = both.backend.address.port();
    for (name, says) in [
        ("a.test", Says::address(HERE, 60)),
        ("a.example", Says::address(HERE, 60)),
        ("other.example", Says::address(HERE, 60)),
        ("b.test", Says::address(HERE, 60)),
        ("denied.test", Says::address(Ipv4Addr::new(127, 0, 0, 9), 60)),
        ("empty.test", Says::NoAddress),
        ("fail.test", Says::Failure),
        ("refuse.test", Says::Refuses),
        ("silent.test", Says::Nothing),
    ] {
        both.names.set(name, says);
    }
    let of = |name: &str| format!("{name}:{port}");
    for (path, host, more, expected) in [
        ("/", of("a.test"), "", " 200 "),
        ("/again", of("a.test"), "", " 200 "),
        ("/upper", of("A.TEST"), "", " 200 "),
        ("/address", of("127.0.0.1"), "", " 200 "),
        ("/address-without-port", "127.0.0.3".to_owned(), "", " 503 "),
        ("/no-port", "a.test".to_owned(), "", " 503 "),
        ("/denied", of("denied.test"), "", "DNS resolution failure"),
        ("/none", of("none.test"), "", "DNS resolution failure"),
        ("/none", of("none.test"), "", "DNS resolution failure"),
        ("/empty", of("empty.test"), "", "DNS resolution failure"),
        ("/fail", of("fail.test"), "", "DNS resolution failure"),
        ("/refuse", of("refuse.test"), "", "DNS resolution failure"),
        ("/silent", of("silent.test"), "", "DNS resolution failure"),
        ("/odd-port", "a.test:99999".to_owned(), "", ""),
        ("/nobody", String::new(), "", ""),
        ("/literal", of("a.test"), "", "DNS resolution failure"),
        ("/header", of("none.test"), &format!("x-host: {}\r\nx-host: none.test\r\n", of("b.test")), " 200 "),
        ("/header", of("a.test"), "", " 200 "),
        ("/late", of("a.test"), "", "no healthy upstream"),
        ("/late", of("a.test"), "", "no healthy upstream"),
        ("/fixed", of("none.test"), "", " 200 "),
    ] {
        let answer = both.asks("web", path, &host, more).await;
        assert!(answer.contains(expected), "{path} {host}: {answer}");
    }
    // The name that is asked for is what TLS asks for and what the certificate must have.
    for (host, expected) in [("a.example", "a.example"), ("other.example", " 503 ")] {
        let host = format!("{host}:{}", secure.port());
        let answer = both.asks("web", "/secure", &host, "").await;
        assert!(answer.contains(expected), "{host}: {answer}");
    }
    both.asks("small", "/", &of("a.test"), "").await;
    let full = both.asks("small", "/", &of("b.test"), "").await;
    assert!(full.contains("DNS cache overflow"), "{full}");
    both.asks("small", "/", &of("a.test"), "").await;
    let full = both.asks("nobody", "/", &of("a.test"), "").await;
    assert!(full.contains("Dynamic forward proxy pending request overflow"), "{full}");
    for (host, expected) in [
        ("a.test", " 200 "),
        ("a.test", " 200 "),
        ("none.test", "no healthy upstream"),
        ("none.test", "no healthy upstream"),
        ("silent.test", "no healthy upstream"),
        ("b.test", "no healthy upstream"),
    ] {
        let answer = both.asks("bare", "/", &of(host), "").await;
        assert!(answer.contains(expected), "{host}: {answer}");
    }
    for kind in [0, 1] {
        assert_eq!(both.hello(kind, "sni", "a.test").await.split(' ').next(), Some("HTTP/1.1"));
        assert_eq!(both.hello(kind, "sni", "none.test").await, "");
        assert_eq!(both.hello(kind, "sni-small", "a.test").await.split(' ').next(), Some("HTTP/1.1"));
        assert_eq!(both.hello(kind, "sni-small", "b.test").await, "", "there is room for one");
    }
    both.agree(&["web", "small", "nobody", "bare", "sni", "sni-small"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn caches_of_hosts_follow_and_forget() {
    let pki = Pki::new();
    let both = Both::start(&pki).await;
    let port = both.backend.address.port();
    let there = Ipv4Addr::new(127, 0, 0, 21);
    let listener = TcpListener::bind((there, port)).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nthere").await;
                }
            });
        }
    });
    let host = format!("a.test:{port}");
    both.names.set("a.test", Says::address(HERE, 1));
    both.names.set("gone.test", Says::Failure);
    both.names.set("silent.test", Says::Nothing);
    let until = async |listener: &str, host: &str, expected: &str| {
        for kind in [0, 1] {
            let began = Instant::now();
            loop {
                let mut wire = Wire::new(TcpStream::connect(both.at(kind, listener)).await.unwrap());
                wire.send(format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes()).await;
                let answer = wire.answer("GET").await.unwrap_or_default();
                if answer.contains(expected) {
                    break;
                }
                assert!(began.elapsed() < LIMIT, "{}: {host}: {answer}", KINDS[kind]);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    };
    both.reaches("dns_cache.again.host_added", 1).await; // the one that is known beforehand
    until("again", &host, "here").await;
    both.names.set("a.test", Says::address(there, 1));
    until("again", &host, "there").await;
    both.names.set("a.test", Says::Failure);
    both.asks("again", "/", &host, "").await;
    tokio::time::sleep(Duration::from_millis(1500)).await; // past the last answer's time
    let kept = both.asks("again", "/", &host, "").await;
    assert!(kept.contains("there"), "an address stays: {kept}");
    // What fails is asked for again by itself.
    let gone = format!("gone.test:{port}");
    until("again", &gone, "DNS resolution failure").await;
    both.names.set("gone.test", Says::address(HERE, 60));
    until("again", &gone, "here").await;
    // Here only with the next request, and what nobody asks for is forgotten.
    both.names.set("a.test", Says::address(HERE, 1));
    until("brief", &host, "here").await;
    both.names.set("gone.test", Says::Failure);
    until("brief", &gone, "DNS resolution failure").await;
    both.names.set("gone.test", Says::address(HERE, 1));
    until("brief", &gone, "here").await;
    both.reaches("dns_cache.brief.num_hosts", 0).await;
    until("brief", &host, "here").await;
    // One may wait, the second may not.
    let silent = format!("GET / HTTP/1.1\r\nhost: silent.test:{port}\r\n\r\n");
    for kind in [0, 1] {
        let mut first = Wire::new(TcpStream::connect(both.at(kind, "one")).await.unwrap());
        first.send(silent.as_bytes()).await;
        let began = Instant::now();
        while both.stat(kind, "dns_cache.one.circuit_breakers.rq_pending_open").await != 1 {
            assert!(began.elapsed() < LIMIT, "{}: nobody waits", KINDS[kind]);
        }
        let mut second = Wire::new(TcpStream::connect(both.at(kind, "one")).await.unwrap());
        second.send(silent.as_bytes()).await;
        let second = second.answer("GET").await.unwrap();
        assert!(second.contains("pending request overflow"), "{}: {second}", KINDS[kind]);
        let first = first.answer("GET").await.unwrap();
        assert!(first.contains("DNS resolution failure"), "{}: {first}", KINDS[kind]);
    }
    both.agree(&["one"]).await;
}
