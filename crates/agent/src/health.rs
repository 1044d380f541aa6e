//! What the agent answers over HTTP: probes, metrics, and the request to end.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::{ConnectInfo, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use http::{Method, StatusCode, Uri, header};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tracing::warn;

use crate::dns::Names;
use crate::error::AgentError;
use crate::fetch::fetch;
use crate::forward::ACCEPT_PAUSE;
use crate::podinfo::PodInfo;
use crate::probes::Probers;
use crate::proxy::Proxy;

/// How long a connection may say nothing (Istio's agent's limit).
const SILENCE: Duration = Duration::from_secs(90);

/// What the answers depend on.
pub(crate) struct Status {
    pub(crate) proxy: Proxy,
    /// What DNS queries are answered from, if they are.
    pub(crate) names: Option<Names>,
    pub(crate) draining: AtomicBool,
    /// Someone asked for the end (`/quitquitquit`).
    pub(crate) quit: Arc<Notify>,
    /// The pod's address, where its application listens.
    pub(crate) pod: IpAddr,
    pub(crate) probers: Probers,
    pub(crate) app_metrics: Option<AppMetrics>,
    pub(crate) mark: Option<u32>,
}

/// Where the application has metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AppMetrics {
    address: SocketAddr,
    path: String,
}

impl AppMetrics {
    /// From the annotations `prometheus.io/scrape`, `prometheus.io/port` and `prometheus.io/path`. Annotations that name the
    /// agent's own port (injection rewrites them so) are not the application's.
    pub(crate) fn from_annotations(info: &PodInfo, own_port: u16) -> Option<Self> {
        let annotation =
            |name: &str| info.annotations.get(&format!("prometheus.io/{name}")).map(String::as_str);
        let port = annotation("port").unwrap_or("80").parse().ok().filter(|port| *port != own_port)?;
        let path = annotation("path").unwrap_or("/metrics");
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let scrape = annotation("scrape").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        scrape.then(|| Self { address: SocketAddr::from(([127, 0, 0, 1], port)), path })
    }
}

/// A listener for one of the agent's ports.
pub(crate) async fn bind(address: SocketAddr, purpose: &'static str) -> Result<TcpListener, AgentError> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|source| AgentError::Listen { address, purpose, source })
}

/// The port of the kubelet's probes.
pub(crate) fn probes(status: Arc<Status>) -> Router {
    Router::new().route("/healthz/ready", get(ready)).with_state(status)
}

/// The port of merged metrics; also the agent's control port.
pub(crate) fn merged(status: Arc<Status>) -> Router {
    Router::new()
        .route("/healthz/ready", get(ready))
        .route("/stats/prometheus", get(merged_metrics))
        .route("/metrics", get(merged_metrics))
        .route("/app-health/{container}/{probe}", get(app_health))
        .route("/quitquitquit", post(quit))
        .with_state(status)
}

/// The port of the proxy's own metrics (with Envoy, a listener of Envoy's).
pub(crate) fn own_metrics(status: Arc<Status>) -> Router {
    Router::new().route("/stats/prometheus", get(proxy_metrics)).with_state(status)
}

/// Serves a router until the set is dropped, and all its connections with it.
pub(crate) fn serve(servers: &mut JoinSet<()>, listener: TcpListener, app: Router) {
    servers.spawn(accept(listener, app, SILENCE));
}

/// Connections that say nothing for as long as `silence` are closed: whoever asked may be gone without a word, and what it left
/// would be missing to the traffic in the end.
async fn accept(listener: TcpListener, app: Router, silence: Duration) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, mostly: others are closing.
                    warn!(%error, "cannot accept a connection on an HTTP port of the agent");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            Some(_) = connections.join_next() => continue,
        };
        let app = TowerToHyperService::new(app.clone().layer(Extension(ConnectInfo(peer))));
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(silence);
        let connection = builder.serve_connection(TokioIo::new(stream), app);
        // A client that goes away is no concern.
        connections.spawn(async move { drop(connection.await) });
    }
}

async fn ready(State(status): State<Arc<Status>>) -> Response {
    if status.draining.load(Ordering::Relaxed) {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n").into_response();
    }
    if !status.proxy.ready().await {
        return (StatusCode::SERVICE_UNAVAILABLE, "waiting for configuration\n").into_response();
    }
    if !status.names.as_ref().is_none_or(Names::known) {
        return (StatusCode::SERVICE_UNAVAILABLE, "waiting for the names of the mesh\n").into_response();
    }
    StatusCode::OK.into_response()
}

/// The application's own answer, without its body.
async fn app_health(State(status): State<Arc<Status>>, uri: Uri) -> StatusCode {
    match status.probers.get(uri.path()) {
        Some(prober) => prober.ask(status.pod, status.mark).await,
        None => StatusCode::NOT_FOUND,
    }
}

/// For the pod itself, as Istio's agent has it: whoever else could end the proxy of any workload.
async fn quit(State(status): State<Arc<Status>>, ConnectInfo(peer): ConnectInfo<SocketAddr>) -> Response {
    if !peer.ip().to_canonical().is_loopback() {
        return (StatusCode::FORBIDDEN, "Only requests from localhost are allowed\n").into_response();
    }
    status.quit.notify_one();
    "OK".into_response()
}

fn text(body: String) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], body).into_response()
}

async fn proxy_metrics(State(status): State<Arc<Status>>) -> Response {
    match status.proxy.prometheus().await {
        Ok(metrics) => text(metrics),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, reason).into_response(),
    }
}

/// The proxy's metrics, then the application's. If one of the two can't be had the other is still worth having.
async fn merged_metrics(State(status): State<Arc<Status>>) -> Response {
    let mut merged = status.proxy.prometheus().await.unwrap_or_else(|reason| {
        warn!(%reason, "no metrics of the proxy");
        String::new()
    });
    if let Some(app) = &status.app_metrics {
        match fetch(Method::GET, app.address, &app.path, status.mark).await {
            Ok((code, body)) if code.is_success() => {
                if !merged.is_empty() && !merged.ends_with('\n') {
                    merged.push('\n');
                }
                merged.push_str(&String::from_utf8_lossy(&body));
            }
            Ok((code, _)) => warn!(%code, address = %app.address, "the application's metrics"),
            Err(error) => warn!(%error, address = %app.address, "the application's metrics"),
        }
    }
    text(merged)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(pairs: &[(&str, &str)]) -> PodInfo {
        let annotations =
            pairs.iter().map(|(name, value)| (format!("prometheus.io/{name}"), (*value).to_owned()));
        PodInfo { annotations: annotations.collect(), ..PodInfo::default() }
    }

    #[tokio::test]
    async fn who_says_nothing_is_not_kept() {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let peer = async |ConnectInfo(peer): ConnectInfo<SocketAddr>| peer.to_string();
        let app = Router::new().route("/", get(peer));
        let server = tokio::spawn(accept(listener, app, Duration::from_millis(300)));
        for request in ["", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nhost: a\r\n\r\n"] {
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            let read = stream.read_to_end(&mut answer);
            tokio::time::timeout(Duration::from_secs(20), read).await.expect("it is closed").unwrap();
            let own = stream.local_addr().unwrap().to_string();
            let answered = String::from_utf8_lossy(&answer).contains(&own);
            assert_eq!(answered, request.ends_with("\r\n\r\n"), "{request:?}");
        }
        server.abort();
    }

    #[test]
    fn the_applications_metrics_are_found_by_its_annotations() {
        let found = AppMetrics::from_annotations(
            &info(&[("scrape", "true"), ("port", "9100"), ("path", "m")]),
            15020,
        );
        assert_eq!(found, Some(AppMetrics { address: "127.0.0.1:9100".parse().unwrap(), path: "/m".into() }));
        let default = AppMetrics::from_annotations(&info(&[("scrape", "true")]), 15020).unwrap();
        assert_eq!((default.address.port(), default.path.as_str()), (80, "/metrics"));
    }

    #[test]
    fn without_scrape_or_with_the_agents_own_port_there_are_none() {
        for pairs in
            [&[][..], &[("scrape", "false")], &[("scrape", "true"), ("port", "15020")], &[("port", "1")]]
        {
            assert_eq!(AppMetrics::from_annotations(&info(pairs), 15020), None);
        }
    }
}
