//! Accepting connections: plain and TLS, HTTP/1.1 and HTTP/2, with graceful shutdown.
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::server::graceful::GracefulShutdown;
use lateen_xds::server::PeerAddress;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::serving_cert::CurrentTls;

/// How long a client may take for its TLS handshake, and for the headers of an HTTP/1.1 request.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long open requests may finish after the listener is told to stop.
const DRAIN: Duration = Duration::from_secs(5);
/// Dead connections are noticed by HTTP/2 pings.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// Connections of one listener.
const CONNECTIONS: usize = 20_000;

/// Where the certificates a client has shown, verified, are found in a request's extensions: the leaf first.
#[derive(Clone, Debug)]
pub(crate) struct PeerCertificates(pub(crate) Arc<[CertificateDer<'static>]>);

/// A bound listener and what it serves.
pub(crate) struct Server {
    pub(crate) name: &'static str,
    pub(crate) listener: TcpListener,
    pub(crate) router: Router,
    /// None serves plain text.
    pub(crate) tls: Option<CurrentTls>,
}

impl Server {
    /// Serves until told to stop, then drains.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let graceful = GracefulShutdown::new();
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let permit = tokio::select! {
                () = stop.cancelled() => break,
                permit = slots.clone().acquire_owned() => permit,
            };
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, mostly: others are closing.
                    tracing::warn!("{}: cannot accept a connection: {error}", self.name);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let (router, tls, watcher, name) = (
                self.router.clone(),
                self.tls.as_ref().map(|tls| tls.borrow().clone()),
                graceful.watcher(),
                self.name,
            );
            tokio::spawn(async move {
                let _permit = permit;
                let served = async {
                    match tls {
                        None => serve_connection(stream, peer, None, router, watcher).await,
                        Some(config) => {
                            let stream = handshake(stream, config).await?;
                            let shown = stream.get_ref().1.peer_certificates();
                            let shown = shown.map(|shown| {
                                PeerCertificates(shown.iter().map(|one| one.clone().into_owned()).collect())
                            });
                            serve_connection(stream, peer, shown, router, watcher).await
                        }
                    }
                };
                if let Err(error) = served.await {
                    tracing::debug!("{name}: connection from {peer}: {error}");
                }
            });
        }
        drop(self.listener);
        if tokio::time::timeout(DRAIN, graceful.shutdown()).await.is_err() {
            tracing::warn!("{}: connections were still open {DRAIN:?} after shutdown began", self.name);
        }
    }
}

type ConnectionError = Box<dyn std::error::Error + Send + Sync>;

async fn handshake(
    stream: TcpStream,
    config: Arc<ServerConfig>,
) -> Result<tokio_rustls::server::TlsStream<TcpStream>, io::Error> {
    stream.set_nodelay(true)?;
    tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(config).accept(stream))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no TLS handshake in time"))?
}

async fn serve_connection<I>(
    stream: I,
    peer: SocketAddr,
    certificates: Option<PeerCertificates>,
    router: Router,
    watcher: hyper_util::server::graceful::Watcher,
) -> Result<(), ConnectionError>
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = hyper::service::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(PeerAddress(peer));
        if let Some(certificates) = &certificates {
            request.extensions_mut().insert(certificates.clone());
        }
        router.clone().oneshot(request)
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HANDSHAKE);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_concurrent_streams(128);
    let connection = builder.serve_connection(TokioIo::new(stream), service).into_owned();
    watcher.watch(connection).await
}
