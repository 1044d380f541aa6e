//! xDS for an Envoy child: its gRPC streams arrive on a Unix socket and go on to the control plane, with the token added.
//!
//! Messages pass as they are, so that every xDS service and variant works and nothing is decoded twice. Each stream has a
//! connection of its own to the control plane: when that breaks, the stream ends, and Envoy's own back-off decides when to come again.

use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri, header};
use http_body_util::{Either, Empty};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use crate::config::Discovery;
use crate::dial::{self, ControlPlaneStream};
use crate::error::AgentError;

/// How soon a control plane that has silently gone is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Pause before the next connection is accepted when one could not be.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

type ForwardBody = Either<Incoming, Empty<Bytes>>;

/// gRPC status codes, <https://grpc.io/docs/guides/status-codes/>.
#[derive(Clone, Copy)]
enum GrpcStatus {
    Unavailable = 14,
    Unauthenticated = 16,
}

/// Makes the socket, in place of one a former process left.
///
/// # Errors
/// When the folder does not let us.
pub(crate) fn bind(socket: &Path) -> Result<UnixListener, AgentError> {
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(AgentError::file("replace", socket, error));
        }
        _ => {}
    }
    UnixListener::bind(socket).map_err(|error| AgentError::file("listen on", socket, error))
}

/// Serves the socket until the future is dropped, and all its streams with it.
pub(crate) async fn serve(listener: UnixListener, discovery: Discovery, mark: Option<u32>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => drop(connections.spawn(serve_connection(stream, discovery.clone(), mark))),
                Err(error) => {
                    // Out of file descriptors, mostly: others are closing.
                    warn!(%error, "cannot accept a connection on the xDS socket");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve_connection(stream: UnixStream, discovery: Discovery, mark: Option<u32>) {
    let service = service_fn(|request| {
        let discovery = discovery.clone();
        async move { Ok::<_, Infallible>(forward(request, &discovery, mark).await) }
    });
    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .adaptive_window(true)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        debug!(%error, "xDS connection of the proxy ended");
    }
}

async fn forward(
    request: Request<Incoming>,
    discovery: &Discovery,
    mark: Option<u32>,
) -> Response<ForwardBody> {
    let path = request.uri().path().to_owned();
    let (status, reason) = match try_forward(request, discovery, mark).await {
        Ok(response) => {
            info!(%path, control_plane = %discovery.address, "xDS stream established");
            return response.map(Either::Left);
        }
        Err(error @ AgentError::File { .. }) => (GrpcStatus::Unauthenticated, error.to_string()),
        Err(error) => (GrpcStatus::Unavailable, error.to_string()),
    };
    warn!(%path, %reason, "xDS stream refused");
    refusal(status, &reason)
}

/// A gRPC answer that has trailers only.
fn refusal(status: GrpcStatus, reason: &str) -> Response<ForwardBody> {
    let mut response = Response::new(Either::Right(Empty::new()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert("grpc-status", HeaderValue::from(status as u16));
    if let Ok(message) = HeaderValue::try_from(reason) {
        headers.insert("grpc-message", message);
    }
    response
}

async fn try_forward(
    mut request: Request<Incoming>,
    discovery: &Discovery,
    mark: Option<u32>,
) -> Result<Response<Incoming>, AgentError> {
    let failed = |reason: String| AgentError::ControlPlane { address: discovery.address.clone(), reason };
    let token = dial::token(discovery)?;
    let stream = dial::control_plane(discovery, mark).await?;
    let scheme = if matches!(stream, ControlPlaneStream::Tls(_)) { "https" } else { "http" };
    *request.uri_mut() = Uri::builder()
        .scheme(scheme)
        .authority(discovery.address.as_str())
        .path_and_query(request.uri().path())
        .build()
        .map_err(|error| failed(error.to_string()))?;
    if let Some(token) = token {
        let mut value = HeaderValue::try_from(format!("Bearer {token}"))
            .map_err(|_| failed("the service-account token is not a header value".to_owned()))?;
        value.set_sensitive(true);
        request.headers_mut().insert(header::AUTHORIZATION, value);
    }
    let mut sender = match stream {
        ControlPlaneStream::Plain(stream) => handshake(TokioIo::new(stream)).await,
        ControlPlaneStream::Tls(stream) => handshake(TokioIo::new(stream)).await,
    }
    .map_err(|error| failed(error.to_string()))?;
    sender.send_request(request).await.map_err(|error| failed(error.to_string()))
}

type Sender = hyper::client::conn::http2::SendRequest<Incoming>;

async fn handshake<I>(io: I) -> hyper::Result<Sender>
where
    I: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
{
    let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .adaptive_window(true)
        .keep_alive_interval(KEEP_ALIVE)
        .handshake(io)
        .await?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            debug!(%error, "connection to the control plane ended");
        }
    });
    Ok(sender)
}
