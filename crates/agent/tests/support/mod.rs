//! A control plane of a few lines, an upstream, and the configuration that leads to it.

mod ports;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::Stream;
use futures::future::BoxFuture;
use lateen_agent::{Addresses, Config, Discovery, Drain, EngineKind, Folders, Role};
use lateen_pki::{CertificateAuthority, SigningRequest, SpiffeId};
use lateen_xds::Any;
use lateen_xds::certificate_service::{
    CertificateIssuer, CertificateService, IstioCertificateRequest, IstioCertificateResponse,
};
use lateen_xds::json::JsonCodec;
use lateen_xds::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use lateen_xds::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};
use lateen_xds::type_urls::HEALTH_INFORMATION;
use rustls_pki_types::PrivatePkcs8KeyDer;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

pub(crate) use ports::free_port;

/// How long anything may take before a test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// What the fake control plane has been told.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    pub(crate) authorization: Vec<String>,
    pub(crate) node_ids: Vec<String>,
    pub(crate) nacks: Vec<String>,
    /// What was said of the application: none is well.
    pub(crate) health: Vec<Option<String>>,
    pub(crate) known: BTreeMap<String, String>,
}

/// Type URL → name → resource. What is missing is not answered.
pub(crate) type World = BTreeMap<String, BTreeMap<String, Any>>;

#[derive(Clone)]
struct Ads {
    world: watch::Sender<World>,
    heard: Arc<Mutex<Heard>>,
    /// Ends the streams of delta xDS.
    cut: Arc<Notify>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type StreamAggregatedResourcesStream = Answers<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Answers<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let (answers, stream) = mpsc::channel(16);
        let ads = self.clone();
        tokio::spawn(async move { ads.converse_in_full(request.into_inner(), answers).await });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        if let Some(value) = request.metadata().get("authorization") {
            self.heard.lock().unwrap().authorization.push(value.to_str().unwrap().to_owned());
        }
        let (answers, stream) = mpsc::channel(16);
        let ads = self.clone();
        tokio::spawn(async move { ads.converse(request.into_inner(), answers).await });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

impl Ads {
    async fn converse(
        &self,
        mut requests: Streaming<DeltaDiscoveryRequest>,
        answers: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    ) {
        let mut wanted: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut world = self.world.subscribe();
        world.mark_changed();
        loop {
            tokio::select! {
                () = self.cut.notified() => return,
                request = requests.message() => {
                    let Ok(Some(request)) = request else { return };
                    self.hear(&request);
                    if request.type_url == HEALTH_INFORMATION {
                        continue;
                    }
                    let first = !wanted.contains_key(&request.type_url);
                    let names = wanted.entry(request.type_url.clone()).or_default();
                    let more = request.resource_names_subscribe.clone();
                    names.extend(more.iter().cloned());
                    let wildcard = first && more.is_empty();
                    if wildcard || !more.is_empty() {
                        if wildcard {
                            names.push("*".to_owned());
                        }
                        let answer = self.answer(&request.type_url, names);
                        if answers.send(Ok(answer)).await.is_err() {
                            return;
                        }
                    }
                }
                changed = world.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    for (type_url, names) in &wanted {
                        if answers.send(Ok(self.answer(type_url, names))).await.is_err() {
                            return;
                        }
                    }
                }
            }
        }
    }

    /// State of the world: every answer holds all that is wanted of a type, so what it lacks is gone.
    async fn converse_in_full(
        &self,
        mut requests: Streaming<DiscoveryRequest>,
        answers: mpsc::Sender<Result<DiscoveryResponse, Status>>,
    ) {
        let mut wanted: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut world = self.world.subscribe();
        let mut version = 0;
        loop {
            let types: Vec<String> = tokio::select! {
                request = requests.message() => {
                    let Ok(Some(request)) = request else { return };
                    let mut heard = self.heard.lock().unwrap();
                    heard.node_ids.extend(request.node.iter().map(|node| node.id.clone()));
                    heard.nacks.extend(request.error_detail.iter().map(|error| error.message.clone()));
                    let before = wanted.insert(request.type_url.clone(), request.resource_names.clone());
                    // An acknowledgement wants what was wanted before.
                    if before.as_ref() == Some(&request.resource_names) {
                        continue;
                    }
                    vec![request.type_url]
                }
                changed = world.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    wanted.keys().cloned().collect()
                }
            };
            for type_url in types {
                version += 1;
                let all = self.world.borrow().get(&type_url).cloned().unwrap_or_default();
                let names = &wanted[&type_url];
                let resources = all.into_iter().filter(|(name, _)| names.is_empty() || names.contains(name));
                let answer = DiscoveryResponse {
                    version_info: version.to_string(),
                    nonce: version.to_string(),
                    resources: resources.map(|(_, any)| any).collect(),
                    type_url,
                    ..Default::default()
                };
                if answers.send(Ok(answer)).await.is_err() {
                    return;
                }
            }
        }
    }

    fn hear(&self, request: &DeltaDiscoveryRequest) {
        let mut heard = self.heard.lock().unwrap();
        heard.node_ids.extend(request.node.iter().map(|node| node.id.clone()));
        let error = request.error_detail.as_ref().map(|error| error.message.clone());
        if request.type_url == HEALTH_INFORMATION {
            heard.health.push(error);
            return;
        }
        heard.nacks.extend(error);
        heard.known.extend(request.initial_resource_versions.clone());
    }

    fn answer(&self, type_url: &str, names: &[String]) -> DeltaDiscoveryResponse {
        let world = self.world.borrow();
        let all = world.get(type_url).cloned().unwrap_or_default();
        let resources = all
            .into_iter()
            .filter(|(name, _)| names.iter().any(|wanted| wanted == "*" || wanted == name))
            .map(|(name, body)| Resource {
                name,
                version: "1".into(),
                resource: Some(body),
                ..Default::default()
            })
            .collect();
        DeltaDiscoveryResponse {
            type_url: type_url.to_owned(),
            nonce: format!("{type_url}/{}", names.len()),
            resources,
            ..Default::default()
        }
    }
}

/// An authority that gives everybody certificates of the same workload, or nobody any.
#[derive(Clone)]
pub(crate) struct Authority {
    pub(crate) signer: Arc<CertificateAuthority>,
    pub(crate) issued: Arc<AtomicUsize>,
    pub(crate) away: Arc<AtomicBool>,
}

impl Authority {
    fn new() -> Self {
        let signer = Arc::new(CertificateAuthority::generate("cluster.local").unwrap());
        Self { signer, issued: Arc::default(), away: Arc::default() }
    }

    pub(crate) fn sign(&self, csr: &str, name: &str, life: Duration) -> Vec<String> {
        let id = SpiffeId::new("cluster.local", "default", name).unwrap();
        self.signer.issue_workload(&SigningRequest::from_pem(csr).unwrap(), &id, life).unwrap()
    }
}

impl CertificateIssuer for Authority {
    fn create(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> BoxFuture<'_, Result<IstioCertificateResponse, Status>> {
        Box::pin(async move {
            if self.away.load(Relaxed) {
                return Err(Status::unavailable("away"));
            }
            if request.metadata().get("authorization").is_none_or(|value| value != "Bearer the-token") {
                return Err(Status::unauthenticated("no token"));
            }
            let message = request.into_inner();
            let life = Duration::from_secs(message.validity_duration.try_into().unwrap());
            self.issued.fetch_add(1, Relaxed);
            Ok(IstioCertificateResponse { cert_chain: self.sign(&message.csr, "web", life) })
        })
    }
}

/// A running fake control plane.
pub(crate) struct ControlPlane {
    pub(crate) address: SocketAddr,
    pub(crate) authority: Authority,
    world: watch::Sender<World>,
    heard: Arc<Mutex<Heard>>,
    cut: Arc<Notify>,
    server: tokio::task::JoinHandle<()>,
}

impl ControlPlane {
    pub(crate) async fn start(world: World) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), world).await
    }

    pub(crate) async fn start_at(address: SocketAddr, world: World) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (world, _) = watch::channel(world);
        let ads = Ads { world: world.clone(), heard: Arc::default(), cut: Arc::default() };
        let (heard, cut) = (ads.heard.clone(), ads.cut.clone());
        let authority = Authority::new();
        let certificates = CertificateService::new(authority.clone());
        let app = axum::Router::new()
            .route_service("/istio.v1.auth.IstioCertificateService/{method}", certificates)
            .fallback_service(AggregatedDiscoveryServiceServer::new(ads));
        let server = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, authority, world, heard, cut, server }
    }

    pub(crate) fn set(&self, world: World) {
        self.world.send_replace(world);
    }

    pub(crate) fn heard<T>(&self, read: impl Fn(&Heard) -> T) -> T {
        read(&self.heard.lock().unwrap())
    }

    /// Ends the streams that are open; others may be opened.
    pub(crate) fn cut(&self) {
        self.cut.notify_waiters();
    }

    /// Gone, with its port.
    pub(crate) async fn stop(self) {
        self.server.abort();
        let _ = self.server.await;
    }
}

/// TLS for `localhost` in front of something that speaks plaintext HTTP/2.
pub(crate) struct TlsFront {
    pub(crate) address: String,
    /// PEM of the certificate, which is its own root.
    pub(crate) root: String,
    _server: JoinSet<()>,
}

impl TlsFront {
    pub(crate) async fn start(behind: SocketAddr) -> Self {
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key.into())
            .unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("localhost:{}", listener.local_addr().unwrap().port());
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                connections.spawn(async move {
                    // A client that trusts another root hangs up here.
                    let Ok(mut front) = acceptor.accept(stream).await else { return };
                    let mut back = TcpStream::connect(behind).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut front, &mut back).await;
                });
            }
        });
        Self { address, root: certified.cert.pem(), _server: server }
    }
}

/// An HTTP server that answers everything with `body`; `/slow` only after `release` is told.
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    pub(crate) release: watch::Sender<bool>,
    pub(crate) entered: watch::Receiver<bool>,
    _server: JoinSet<()>,
}

impl Upstream {
    pub(crate) async fn start(body: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (release, released) = watch::channel(false);
        let (enter, entered) = watch::channel(false);
        let app = axum::Router::new()
            .route(
                "/slow",
                axum::routing::get(move || {
                    let (enter, mut released) = (enter.clone(), released.clone());
                    async move {
                        enter.send_replace(true);
                        released.wait_for(|released| *released).await.unwrap();
                        body
                    }
                }),
            )
            .fallback(move || async move { body });
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { address, release, entered, _server: server }
    }
}

pub(crate) fn config(engine: EngineKind, control_plane: SocketAddr, folder: &Path) -> Config {
    let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let token = folder.join("token");
    std::fs::write(&token, "the-token\n").unwrap();
    let mut config = Config::from_env(Role::Sidecar, &BTreeMap::new()).unwrap();
    config.engine = engine;
    config.pod.name = "web-1".into();
    config.discovery = Discovery {
        address: control_plane.to_string(),
        root_cert: None,
        token: Some(token),
        certificate: None,
    };
    let port = |engine_port| if engine == EngineKind::Envoy { engine_port } else { 0 };
    config.addresses = Addresses {
        admin: loopback(port(free_port())),
        health: loopback(0),
        status: loopback(0),
        stats: loopback(port(free_port())),
    };
    config.folders =
        Folders { podinfo: folder.join("pod"), proxy: folder.join("proxy"), data: folder.join("data") };
    config.drain =
        Drain { minimum: Duration::from_millis(50), limit: Duration::from_secs(5), ..Drain::default() };
    config.mark = None;
    config.cache_after = Duration::from_millis(200);
    config.envoy = std::env::var_os("LATEEN_ENVOY_PATH").map(Into::into);
    config
}

/// A listener on `port` → route `80` → cluster `outbound|80||app` → endpoint.
pub(crate) fn world(port: u16, upstream: SocketAddr) -> World {
    let ads = json!({ "ads": {}, "resource_api_version": "V3" });
    let listener = json!({
        "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
        "name": format!("127.0.0.1_{port}"),
        "address": socket(&SocketAddr::from(([127, 0, 0, 1], port))),
        "traffic_direction": "INBOUND",
        "filter_chains": [{ "filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": "test",
                "rds": { "config_source": ads, "route_config_name": "80" },
                "http_filters": [{
                    "name": "envoy.filters.http.router",
                    "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
                }],
            },
        }]}],
    });
    let routes = json!({
        "@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        "name": "80",
        "virtual_hosts": [{ "name": "app", "domains": ["*"], "routes": [
            { "match": { "prefix": "/" }, "route": { "cluster": "outbound|80||app", "timeout": "0s" } },
        ]}],
    });
    let cluster = json!({
        "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
        "name": "outbound|80||app",
        "type": "EDS",
        "connect_timeout": "1s",
        "eds_cluster_config": { "eds_config": ads },
    });
    let endpoints = json!({
        "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": "outbound|80||app",
        "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": socket(&upstream) } }] }],
    });
    resources(&[listener, routes, cluster, endpoints])
}

pub(crate) fn resources(values: &[Value]) -> World {
    let codec = JsonCodec::new().unwrap();
    let mut world = World::new();
    for value in values {
        let any = codec.any_from_value(value).unwrap();
        let name = lateen_xds::any::resource_name(&any).unwrap();
        world.entry(any.type_url.clone()).or_default().insert(name, any);
    }
    world
}

fn socket(address: &SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}

/// `GET path`, whole answer.
pub(crate) async fn get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    send(address, "GET", path).await
}

pub(crate) async fn send(address: SocketAddr, method: &str, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request =
        format!("{method} {path} HTTP/1.1\r\nhost: app\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    // As any client, done when the announced length is there; a draining Envoy closes only seconds later.
    while !is_complete(&answer) && stream.read_buf(&mut answer).await? > 0 {}
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn is_complete(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length: ")).and_then(|n| n.parse().ok());
    length.is_some_and(|length: usize| body.len() >= length)
}

/// Asks again until `check` holds.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut check: impl FnMut() -> F,
) -> T {
    let mut poll = tokio::time::interval(Duration::from_millis(20));
    let waited = tokio::time::timeout(PATIENCE, async {
        loop {
            poll.tick().await;
            if let Some(found) = check().await {
                return found;
            }
        }
    });
    waited.await.unwrap_or_else(|_| panic!("not within {PATIENCE:?}: {what}"))
}

/// The answer of `GET path` once it contains `part`.
pub(crate) async fn get_until(address: SocketAddr, path: &str, part: &str) -> String {
    eventually(&format!("{address}{path} with {part:?}"), || async {
        get(address, path).await.ok().filter(|answer| answer.contains(part))
    })
    .await
}
