//! A running engine with resources from YAML, scripted upstream services and a plain HTTP/1 client, on real sockets.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "a test helper; each test file uses its own part"
)]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lateen_engine::{ApplyReport, ConfigUpdate, Engine, EngineConfig, EngineHandle, Resource, ResourceKind};
use lateen_xds::json::{JsonCodec, yaml_value};
use prost_types::Any;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Every wait in a test ends here at the latest.
pub const LIMIT: Duration = Duration::from_secs(20);

/// An engine and the codec for its resources.
pub struct Bed {
    pub engine: EngineHandle,
    codec: JsonCodec,
    version: usize,
}

impl Bed {
    pub async fn start() -> Self {
        Self::with(EngineConfig { drain_time: Duration::from_millis(300), ..EngineConfig::default() })
    }

    pub fn with(mut config: EngineConfig) -> Self {
        config.admin = Some("127.0.0.1:0".parse().unwrap());
        Self { engine: Engine::start(config).unwrap(), codec: JsonCodec::new().unwrap(), version: 0 }
    }

    pub fn resource(&self, kind: ResourceKind, yaml: &str) -> Resource {
        let mut value = yaml_value(yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
        let name = ["name", "cluster_name"].iter().find_map(|key| value[*key].as_str()).unwrap().to_owned();
        value["@type"] = kind.type_url().into();
        let any = self.codec.any_from_value(&value).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
        let body = Any { type_url: any.type_url, value: any.value };
        Resource { name, version: self.version.to_string(), body, is_static: false }
    }

    pub async fn apply(&mut self, resources: &[(ResourceKind, &str)]) -> ApplyReport {
        self.version += 1;
        let set = resources.iter().map(|(kind, yaml)| self.resource(*kind, yaml)).collect();
        self.engine.apply(ConfigUpdate { set, removed: vec![] }).await.unwrap()
    }

    /// Applies and expects that nothing is refused.
    pub async fn accept(&mut self, resources: &[(ResourceKind, &str)]) {
        let report = self.apply(resources).await;
        assert!(report.rejected.is_empty(), "{:?}", report.rejected);
    }

    pub async fn remove(&mut self, kind: ResourceKind, name: &str) {
        let removed = vec![(kind, name.to_owned())];
        self.engine.apply(ConfigUpdate { set: vec![], removed }).await.unwrap();
    }

    pub async fn address(&self, listener: &str) -> SocketAddr {
        self.engine.listener_address(listener).await.expect("listener is bound")
    }

    pub async fn client(&self, listener: &str) -> Client {
        Client::connect(self.address(listener).await).await
    }

    pub async fn admin(&self, request_line: &str) -> Answer {
        let mut client = Client::connect(self.engine.admin_address().unwrap()).await;
        client.send(&format!("{request_line} HTTP/1.1\r\nhost: admin\r\n\r\n")).await
    }

    /// Value of a stat.
    pub async fn stat(&self, name: &str) -> Option<u64> {
        let stats = self.admin("GET /stats").await.text();
        stats.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")?.parse().ok())
    }

    /// Waits until a stat has a value.
    pub async fn until_stat_gone(&self, name: &str) {
        within(async {
            while self.stat(name).await.is_some() {
                tokio::task::yield_now().await;
            }
        })
        .await
    }

    pub async fn until_stat(&self, name: &str, value: u64) {
        within(async {
            while self.stat(name).await != Some(value) {
                tokio::task::yield_now().await;
            }
        })
        .await
    }
}

/// Fails the test when the work takes too long.
pub async fn within<F: Future>(work: F) -> F::Output {
    tokio::time::timeout(LIMIT, work).await.expect("took too long")
}

/// A listener with an HTTP connection manager; `more` goes into the manager, `routes` into its only virtual host.
pub fn http_listener(more: &str, routes: &str) -> String {
    let indent = |text: &str, by: usize| {
        text.lines().map(|line| format!("{}{line}\n", " ".repeat(by))).collect::<String>()
    };
    format!(
        "name: web
address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
filter_chains:
- filters:
  - name: envoy.filters.network.http_connection_manager
    typed_config:
      '@type': type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
      stat_prefix: web
{}      http_filters:
      - name: envoy.filters.http.router
        typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
      route_config:
        name: local
        virtual_hosts:
        - name: all
          domains: ['*']
{}",
        indent(more, 6),
        indent(routes, 10),
    )
}

/// Routes that send everything to cluster `c`; `more` goes into the route action.
pub fn all_to_c(more: &str) -> String {
    let comma = if more.is_empty() { "" } else { ", " };
    format!("routes: [{{match: {{prefix: /}}, route: {{cluster: c{comma}{more}}}}}]")
}

/// A static cluster `c`; `more` is added at the top level.
pub fn cluster(endpoints: &[SocketAddr], more: &str) -> String {
    let endpoints: Vec<String> = endpoints
        .iter()
        .map(|a| {
            format!(
                "{{endpoint: {{address: {{socket_address: {{address: {}, port_value: {}}}}}}}}}",
                a.ip(),
                a.port()
            )
        })
        .collect();
    format!(
        "name: c\nconnect_timeout: 1s\ntype: STATIC\nload_assignment: {{cluster_name: c, endpoints: [{{lb_endpoints: [{}]}}]}}\n{more}\n",
        endpoints.join(", ")
    )
}

/// Options that make a cluster speak HTTP/2.
pub const HTTP2: &str = "typed_extension_protocol_options:
  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
    '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
    explicit_http_config: {http2_protocol_options: {}}";

/// What an upstream does with one request.
#[derive(Clone, Debug)]
pub enum Act {
    /// Sends these bytes.
    Reply(&'static str),
    /// Closes the connection.
    Close,
    /// Sends these bytes and closes.
    ReplyAndClose(&'static str),
    /// Never answers.
    Silence,
}

pub const OK: Act = Act::Reply("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");

/// An HTTP/1 service that follows a script and remembers what it was sent.
pub struct Upstream {
    pub address: SocketAddr,
    pub requests: Arc<Mutex<Vec<String>>>,
    pub connections: Arc<AtomicUsize>,
}

impl Upstream {
    /// The script's last act is repeated for ever.
    pub async fn start(script: &[Act]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, script)
    }

    pub fn on(listener: TcpListener, script: &[Act]) -> Self {
        let address = listener.local_addr().unwrap();
        let script = Arc::new(Mutex::new(VecDeque::from(script.to_vec())));
        let (requests, connections) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
        let (seen, count) = (requests.clone(), connections.clone());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, SeqCst);
                tokio::spawn(serve_script(stream, script.clone(), seen.clone()));
            }
        });
        Self { address, requests, connections }
    }

    pub fn seen(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

async fn serve_script(
    mut stream: TcpStream,
    script: Arc<Mutex<VecDeque<Act>>>,
    seen: Arc<Mutex<Vec<String>>>,
) {
    while let Some(message) = read_message(&mut stream, true).await {
        seen.lock().unwrap().push(message.raw);
        let act = {
            let mut script = script.lock().unwrap();
            if script.len() > 1 { script.pop_front().unwrap() } else { script[0].clone() }
        };
        match act {
            Act::Reply(bytes) => stream.write_all(bytes.as_bytes()).await.unwrap(),
            Act::ReplyAndClose(bytes) => {
                stream.write_all(bytes.as_bytes()).await.unwrap();
                return;
            }
            Act::Close => return,
            Act::Silence => std::future::pending::<()>().await,
        }
    }
}

/// A message as read from a socket.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Head and body as they came (chunked bodies decoded).
    pub raw: String,
    pub status: u16,
    head: String,
    body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        lines.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }

    pub fn body(&self) -> &str {
        &self.body
    }

    pub fn text(&self) -> String {
        self.body.clone()
    }
}

/// A keep-alive HTTP/1 connection.
pub struct Client {
    pub stream: TcpStream,
}

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        Self { stream: within(TcpStream::connect(address)).await.unwrap() }
    }

    pub async fn send(&mut self, bytes: &str) -> Answer {
        self.stream.write_all(bytes.as_bytes()).await.unwrap();
        within(read_message(&mut self.stream, !bytes.starts_with("HEAD"))).await.expect("an answer")
    }

    pub async fn get(&mut self, path: &str) -> Answer {
        self.send(&format!("GET {path} HTTP/1.1\r\nhost: a.example\r\n\r\n")).await
    }

    /// True when the proxy closed the connection.
    pub async fn is_closed(&mut self) -> bool {
        matches!(within(self.stream.read(&mut [0; 64])).await, Ok(0) | Err(_))
    }
}

async fn read_message(stream: &mut TcpStream, with_body: bool) -> Option<Answer> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let mut answer = Answer { raw: head.clone(), status, head, body: String::new() };
    let no_body = !with_body || status == 204 || status == 304 || (100..200).contains(&status);
    let mut body = Vec::new();
    if no_body {
    } else if answer.header("transfer-encoding") == Some("chunked") {
        loop {
            let mut line = Vec::new();
            while !line.ends_with(b"\r\n") {
                line.push(stream.read_u8().await.ok()?);
            }
            let size = usize::from_str_radix(std::str::from_utf8(&line).unwrap().trim(), 16).unwrap();
            let mut chunk = vec![0; size + 2];
            stream.read_exact(&mut chunk).await.ok()?;
            if size == 0 {
                break;
            }
            body.extend_from_slice(&chunk[..size]);
        }
    } else if let Some(length) = answer.header("content-length") {
        body = vec![0; length.parse().unwrap()];
        stream.read_exact(&mut body).await.ok()?;
    }
    answer.body = String::from_utf8(body).unwrap();
    answer.raw.push_str(&answer.body);
    Some(answer)
}
