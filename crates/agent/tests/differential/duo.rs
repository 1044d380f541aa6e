//! Both proxies with a bootstrap of a test's own, and services that tell which of them answered.

#![allow(dead_code, reason = "each test uses a part")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::proxies::{self, Proxy, address, logs, merge, router};
use crate::wire::Wire;

/// Nothing takes longer than this.
const LIMIT: Duration = Duration::from_secs(20);

/// Envoy first, ours second.
pub(crate) const KINDS: [&str; 2] = ["envoy", "lateen"];

/// Both proxies.
pub(crate) struct Duo {
    proxies: [Proxy; 2],
    _folder: tempfile::TempDir,
}

/// An answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
    /// Address the client had.
    pub(crate) from: Option<SocketAddr>,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| &**value)
    }
}

impl Duo {
    /// `routes` are those of the listener `web`, `tcp` the clusters of the listeners of TCP (with more of their proxy,
    /// under `before` the filters before it, and under `log_format` its log's).
    pub(crate) async fn start(routes: Value, clusters: &[Value], tcp: &[(&'static str, Value)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let names: Vec<&'static str> =
            std::iter::once("web").chain(tcp.iter().map(|(name, _)| *name)).collect();
        let proxies = proxies::both(folder.path(), &names, |ports, log| {
            let mut listeners = vec![json!({
                "name": "web", "address": address(ports["web"]),
                "filter_chains": [{ "filters": [{
                    "name": "envoy.filters.network.http_connection_manager",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                        "stat_prefix": "web", "access_log": logs(log),
                        "route_config": {
                            "name": "routes", "validate_clusters": false,
                            "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": routes }],
                        },
                        "http_filters": [router()],
                    },
                }] }],
            })];
            for (name, more) in tcp {
                let mut proxy = json!({
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                    "stat_prefix": name, "access_log": logs(log),
                });
                merge(&mut proxy, more.clone());
                let mut take = |key: &str| proxy.as_object_mut().and_then(|proxy| proxy.remove(key));
                let (before, format) = (take("before"), take("log_format"));
                if let Some(format) = format {
                    proxy["access_log"][0]["typed_config"]["log_format"]["text_format_source"]["inline_string"] =
                        format;
                }
                let mut filters = before.and_then(|before| before.as_array().cloned()).unwrap_or_default();
                if !filters.is_empty() {
                    proxy["access_log"][0]["typed_config"]["log_format"]["text_format_source"]["inline_string"] = json!(
                        format!(
                            "{name} %CONNECTION_TERMINATION_DETAILS% flags=%RESPONSE_FLAGS% received=%BYTES_RECEIVED% sent=%BYTES_SENT% rbac=%DYNAMIC_METADATA(envoy.filters.network.rbac)% hint=%DYNAMIC_METADATA(envoy.common:access_log_hint)%\n"
                        )
                    );
                }
                filters.push(json!({ "name": "envoy.filters.network.tcp_proxy", "typed_config": proxy }));
                listeners.push(json!({
                    "name": name, "address": address(ports[name]),
                    "filter_chains": [{ "filters": filters }],
                }));
            }
            [listeners, clusters.to_vec()]
        })
        .await;
        Self { proxies, _folder: folder }
    }

    pub(crate) fn address(&self, kind: usize, listener: &str) -> SocketAddr {
        ([127, 0, 0, 1], self.proxies[kind].ports[listener]).into()
    }

    /// GET on a connection of its own.
    pub(crate) async fn get(&self, kind: usize, path: &str, headers: &[(&str, &str)]) -> Reply {
        get(self.address(kind, "web"), path, headers).await
    }

    /// The same of both.
    pub(crate) async fn both(&self, path: &str, headers: &[(&str, &str)]) -> [Reply; 2] {
        tokio::join!(self.get(0, path, headers), self.get(1, path, headers)).into()
    }

    pub(crate) async fn page(&self, kind: usize, path: &str) -> String {
        self.proxies[kind].admin(path).await.expect("the admin page")
    }

    /// The access log, when nothing is going on.
    pub(crate) async fn log(&self, kind: usize) -> String {
        self.proxies[kind].log().await
    }

    /// Stats whose names begin so, but for those not asked about (`except`, parts of names); those that are 0 are left out.
    pub(crate) async fn stats(&self, kind: usize, prefix: &str, except: &[&str]) -> BTreeMap<String, String> {
        let page = self.page(kind, "/stats").await;
        page.lines()
            .filter_map(|line| line.split_once(": "))
            .filter(|(name, value)| {
                name.starts_with(prefix) && *value != "0" && !except.iter().any(|part| name.contains(part))
            })
            .map(|(name, value)| (name[prefix.len()..].to_owned(), value.to_owned()))
            .collect()
    }

    /// One stat; 0 when there is none.
    pub(crate) async fn stat(&self, kind: usize, name: &str) -> u64 {
        let page = self.page(kind, "/stats").await;
        let line = page.lines().filter_map(|line| line.split_once(": ")).find(|(known, _)| *known == name);
        line.map_or(0, |(_, value)| value.trim().parse().unwrap_or(0))
    }

    /// Waits until a stat has reached a value.
    pub(crate) async fn reaches(&self, kind: usize, name: &str, value: u64) {
        let began = std::time::Instant::now();
        while self.stat(kind, name).await != value {
            let now = self.stat(kind, name).await;
            assert!(began.elapsed() < LIMIT, "{}: {name} is {now}, not {value}", KINDS[kind]);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Duo {
    /// What comes of connections to listeners of TCP, one that says something and one that ends without a word: the first bytes that come
    /// back, the numbers of the filter before (a pattern) once these stats have these values, and what the log has of the first.
    pub(crate) async fn connections(
        &self,
        listeners: &[(&'static str, Value)],
        settled: &[(&str, u64)],
        filter: &str,
    ) -> [String; 2] {
        let mut seen = [String::new(), String::new()];
        for (kind, seen) in seen.iter_mut().enumerate() {
            for (name, _) in listeners {
                let mut wire = Wire::new(TcpStream::connect(self.address(kind, name)).await.unwrap());
                wire.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
                let answer = String::from_utf8_lossy(&wire.raw(12).await).into_owned();
                drop(wire);
                drop(TcpStream::connect(self.address(kind, name)).await.unwrap());
                writeln!(seen, "{name}: {answer:?}").unwrap();
            }
            // Nobody hears when a connection that says nothing is judged.
            for (stat, value) in settled {
                self.reaches(kind, stat, *value).await;
            }
            let page = self.page(kind, &format!("/stats?filter={filter}")).await;
            let numbers = crate::numbers(&page);
            seen.extend(
                numbers.lines().filter(|line| !line.contains("active")).map(|line| format!("{line}\n")),
            );
            let log = self.log(kind).await;
            let mut lines: Vec<&str> = log.lines().filter(|line| !line.contains("received=0")).collect();
            lines.sort_unstable();
            seen.push_str(&lines.join("\n"));
        }
        seen
    }
}

/// GET on a connection of its own.
pub(crate) async fn get(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Reply {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let from = stream.local_addr().ok();
        let more: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let request = format!("GET {path} HTTP/1.1\r\nhost: duo\r\nconnection: close\r\n{more}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes).await;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok()).unwrap_or(0);
        let headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        Reply { status, headers, body: body.to_owned(), from }
    };
    tokio::time::timeout(LIMIT, exchange).await.unwrap_or_default()
}

/// A service that answers with its name.
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    /// Requests so far.
    pub(crate) hits: Arc<AtomicU64>,
    /// Status of answers; 0: none, the connection is closed.
    pub(crate) status: Arc<AtomicU16>,
    /// Paths asked for.
    pub(crate) paths: Arc<Mutex<Vec<String>>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Backend {
    pub(crate) async fn start(name: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (hits, status) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU16::new(200)));
        let paths = Arc::new(Mutex::new(Vec::new()));
        let shared = (hits.clone(), status.clone(), paths.clone());
        let name = name.to_owned();
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let ((hits, status, paths), name) = (shared.clone(), name.clone());
                tokio::spawn(async move { serve(stream, &name, &hits, &status, &paths).await });
            }
        });
        Self { address, hits, status, paths, serving }
    }

    /// Several, named by their numbers.
    pub(crate) async fn several(n: usize) -> Vec<Self> {
        let mut all = Vec::new();
        for number in 0..n {
            all.push(Self::start(&number.to_string()).await);
        }
        all
    }

    pub(crate) fn hits(&self) -> u64 {
        self.hits.load(SeqCst)
    }

    pub(crate) fn answers(&self, status: u16) {
        self.status.store(status, SeqCst);
    }

    /// Its `lb_endpoint`.
    pub(crate) fn endpoint(&self, more: Value) -> Value {
        let mut endpoint = json!({ "endpoint": { "address": address(self.address.port()) } });
        merge(&mut endpoint, more);
        endpoint
    }
}

/// `?wait=MILLISECONDS` makes an answer slow; `x-status` says which it is, `x-say` is a header it has, after `x-close` the connection ends.
async fn serve(
    mut stream: TcpStream,
    name: &str,
    hits: &AtomicU64,
    status: &AtomicU16,
    paths: &Mutex<Vec<String>>,
) -> Option<()> {
    let mut read = Vec::new();
    loop {
        let end = loop {
            if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
                break end;
            }
            let mut buffer = [0; 4096];
            let n = stream.read(&mut buffer).await.ok().filter(|n| *n > 0)?;
            read.extend_from_slice(&buffer[..n]);
        };
        let head = String::from_utf8_lossy(&read.drain(..end + 4).collect::<Vec<u8>>()).into_owned();
        hits.fetch_add(1, SeqCst);
        let path = head.split(' ').nth(1).unwrap_or_default();
        paths.lock().unwrap().push(path.to_owned());
        if let Some(wait) = path.split_once("wait=").and_then(|(_, wait)| wait.parse().ok()) {
            tokio::time::sleep(Duration::from_millis(wait)).await;
        }
        let wanted = head.lines().find_map(|line| line.strip_prefix("x-status: ")?.parse().ok());
        let status = wanted.unwrap_or_else(|| status.load(SeqCst));
        if status == 0 {
            return None;
        }
        let said =
            head.lines().find_map(|line| line.strip_prefix("x-say: ")).map(|line| format!("{line}\r\n"));
        let said = said.unwrap_or_default();
        let answer = format!("HTTP/1.1 {status} X\r\n{said}content-length: {}\r\n\r\n{name}", name.len());
        stream.write_all(answer.as_bytes()).await.ok()?;
        if head.lines().any(|line| line.starts_with("x-close:")) {
            return None;
        }
    }
}

/// A static cluster of one locality.
pub(crate) fn cluster(name: &str, endpoints: Vec<Value>, more: Value) -> Value {
    localities(name, vec![json!({ "lb_endpoints": endpoints })], more)
}

/// A static cluster of several localities.
pub(crate) fn localities(name: &str, localities: Vec<Value>, more: Value) -> Value {
    let mut cluster = json!({
        "name": name, "type": "STATIC", "connect_timeout": "1s",
        "load_assignment": { "cluster_name": name, "endpoints": localities },
    });
    merge(&mut cluster, more);
    cluster
}

/// A route from `/NAME` to the cluster of that name.
pub(crate) fn route(name: &str, more: Value) -> Value {
    let mut action = json!({ "cluster": name });
    merge(&mut action, more);
    json!({ "match": { "prefix": format!("/{name}") }, "route": action })
}

/// Answers every request on a connection with a word.
pub(crate) async fn say(mut stream: impl AsyncRead + AsyncWrite + Unpin, word: &str) {
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{word}", word.len());
    let mut buffer = [0; 4096];
    while stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}
