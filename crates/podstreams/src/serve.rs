//! The three subresources, from the HTTP request to the running session.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tracing::debug;

use crate::channels::Framing;
use crate::upgrade::Offer;
use crate::{ContainerRef, ExecQuery, ExecSession, PodBackend, PodError};
use crate::{exec_spdy, exec_websocket, forward_spdy, forward_websocket, parse_ports, tunnel};

/// Subprotocol of a port-forward over SPDY.
const PORT_FORWARD: &str = "portforward.k8s.io";
/// The same, its bytes carried in WebSocket messages (KEP-4006, kubectl 1.31 and later).
const TUNNELED_PORT_FORWARD: &str = "SPDY/3.1+portforward.k8s.io";
/// Largest WebSocket message taken from a client; kubectl and kube-rs send at most some 32 KiB.
const MAX_MESSAGE: usize = 1 << 20;

/// The connection after the upgrade.
type Upgraded = TokioIo<hyper::upgrade::Upgraded>;

/// Answers `…/pods/POD/exec?command=…`: starts the command, answers `101`, and runs the session in a task of its own.
///
/// Needs a Tokio runtime. The request's body is not read. Errors are answered as a `metav1.Status` (see [`error_response`]).
pub async fn serve_exec<B>(
    request: http::Request<B>,
    backend: Arc<dyn PodBackend>,
    namespace: &str,
    pod: &str,
) -> http::Response<Full<Bytes>> {
    serve_command(request, &*backend, namespace, pod, Command::Exec)
        .await
        .unwrap_or_else(|error| error_response(&error))
}

/// Answers `…/pods/POD/attach?stdin=…`, as [`serve_exec`] does.
pub async fn serve_attach<B>(
    request: http::Request<B>,
    backend: Arc<dyn PodBackend>,
    namespace: &str,
    pod: &str,
) -> http::Response<Full<Bytes>> {
    serve_command(request, &*backend, namespace, pod, Command::Attach)
        .await
        .unwrap_or_else(|error| error_response(&error))
}

/// Answers `…/pods/POD/portforward`: answers `101` and forwards in a task of its own. A port nobody listens on is
/// reported inside the session, as the protocol has it.
pub async fn serve_port_forward<B>(
    request: http::Request<B>,
    backend: Arc<dyn PodBackend>,
    namespace: &str,
    pod: &str,
) -> http::Response<Full<Bytes>> {
    forward(request, backend, namespace, pod).unwrap_or_else(|error| error_response(&error))
}

/// `error` as the `metav1.Status` Kubernetes clients expect (404 NotFound, 400 BadRequest, 500 InternalError).
pub fn error_response(error: &PodError) -> http::Response<Full<Bytes>> {
    let (code, reason) = match error {
        PodError::NotFound(_) => (StatusCode::NOT_FOUND, "NotFound"),
        PodError::BadRequest(_) => (StatusCode::BAD_REQUEST, "BadRequest"),
        PodError::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
    };
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": error.to_string(), "reason": reason, "code": code.as_u16(),
    });
    let mut response = http::Response::new(Full::from(status.to_string()));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

enum Command {
    Exec,
    Attach,
}

enum CommandProtocol {
    Channels(Framing),
    SpdyStreams,
}

async fn serve_command<B>(
    mut request: http::Request<B>,
    backend: &dyn PodBackend,
    namespace: &str,
    pod: &str,
    command: Command,
) -> Result<http::Response<Full<Bytes>>, PodError> {
    let query = ExecQuery::parse(request.uri().query().unwrap_or_default())?;
    let offer = Offer::read(request.headers())?;
    let (name, protocol) = offer.choose(|offer, name| match offer {
        Offer::WebSocket { .. } => Framing::for_exec(name).map(CommandProtocol::Channels),
        Offer::Spdy { .. } => (name == "v4.channel.k8s.io").then_some(CommandProtocol::SpdyStreams),
    })?;
    let target = ContainerRef {
        namespace: namespace.to_owned(),
        pod: pod.to_owned(),
        container: query.container.clone(),
    };
    let session: ExecSession = match command {
        Command::Exec if query.request.command.is_empty() => {
            return Err(PodError::BadRequest(
                "you must specify at least 1 command for the container".to_owned(),
            ));
        }
        Command::Exec => backend.exec(target, query.request.clone()).await?,
        Command::Attach => backend.attach(target, query.request.clone()).await?,
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgrade.await.map(TokioIo::new) {
            Ok(io) => match protocol {
                CommandProtocol::Channels(framing) => {
                    exec_websocket::run(websocket(io).await, framing, query, session).await;
                }
                CommandProtocol::SpdyStreams => exec_spdy::run(io, query, session).await,
            },
            Err(error) => debug!(%error, "the client left before its exec connection was upgraded"),
        }
    });
    Ok(offer.accept(name))
}

enum ForwardProtocol {
    Channels(Framing, Vec<u16>),
    Spdy,
    TunneledSpdy,
}

fn forward<B>(
    mut request: http::Request<B>,
    backend: Arc<dyn PodBackend>,
    namespace: &str,
    pod: &str,
) -> Result<http::Response<Full<Bytes>>, PodError> {
    let offer = Offer::read(request.headers())?;
    let (name, chosen) = offer.choose(|offer, name| match (offer, name) {
        (Offer::WebSocket { .. }, TUNNELED_PORT_FORWARD) => Some(None),
        (Offer::WebSocket { .. }, name) => Framing::for_port_forward(name).map(Some),
        (Offer::Spdy { .. }, name) => (name == PORT_FORWARD).then_some(None),
    })?;
    let protocol = match (chosen, &offer) {
        (Some(framing), _) => {
            ForwardProtocol::Channels(framing, parse_ports(request.uri().query().unwrap_or_default())?)
        }
        (None, Offer::WebSocket { .. }) => ForwardProtocol::TunneledSpdy,
        (None, Offer::Spdy { .. }) => ForwardProtocol::Spdy,
    };
    let pod = forward_spdy::PodName { namespace: namespace.to_owned(), pod: pod.to_owned() };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgrade.await.map(TokioIo::new) {
            Ok(io) => match protocol {
                ForwardProtocol::Channels(framing, ports) => {
                    forward_websocket::run(websocket(io).await, framing, ports, backend, pod).await;
                }
                ForwardProtocol::Spdy => forward_spdy::run(io, backend, pod).await,
                ForwardProtocol::TunneledSpdy => {
                    forward_spdy::run(tunnel::open(websocket(io).await), backend, pod).await;
                }
            },
            Err(error) => debug!(%error, "the client left before its port-forward connection was upgraded"),
        }
    });
    Ok(offer.accept(name))
}

async fn websocket(io: Upgraded) -> WebSocketStream<Upgraded> {
    let config =
        WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}
