//! The gRPC service `envoy.service.discovery.v3.AggregatedDiscoveryService`.
use std::any::Any;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use futures::{StreamExt as _, stream};
use tokio::sync::watch;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::{Code, Status, Streaming};

use super::resource::Snapshot;
use super::session::{Answer, Change, Protocol, Push, Request, Session};
use super::status::{ConnectionStatus, Connections, Entry};
use crate::pb::envoy::config::core::v3::Node;
use crate::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use crate::server::wire::{RequestDecoder, ResponseBody};
use crate::type_urls;

/// How long a client may take for its first request.
const FIRST_REQUEST: Duration = Duration::from_secs(15);
/// Largest request: what a client with some hundred thousand resources sends when it reconnects.
const MAX_REQUEST_BYTES: usize = 32 << 20;
/// Longest rejection message that is kept.
const MAX_MESSAGE: usize = 4096;

/// Where a client's peer address is found in a request's extensions, put there by whoever accepts connections.
#[derive(Clone, Copy, Debug)]
pub struct PeerAddress(pub SocketAddr);

/// A client that wants to be served.
#[derive(Debug)]
pub struct Hello {
    /// Number of the connection, as in [`ConnectionStatus::id`].
    pub connection: u64,
    /// Who it says it is.
    pub node: Arc<Node>,
    /// Headers of the call, `authorization` among them.
    pub headers: http::HeaderMap,
    /// Where it came from.
    pub peer: Option<SocketAddr>,
    /// Variant of the protocol.
    pub protocol: Protocol,
    /// What whoever accepted the connection knows of it.
    pub extensions: http::Extensions,
}

/// What a client is served from.
pub struct Opened {
    /// What it should have, now and after each change. The stream ends when the sender is dropped.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// Dropped when the stream ends.
    pub guard: Box<dyn Any + Send + Sync>,
}

/// Something that happened on a connection.
#[derive(Debug)]
pub enum Event<'a> {
    /// A response was sent.
    Pushed {
        /// Type of its resources.
        type_url: &'a str,
        /// Resources in it.
        resources: usize,
        /// Removals in it.
        removed: usize,
    },
    /// A response was accepted.
    Acked {
        /// Type of its resources.
        type_url: &'a str,
        /// Since it was sent.
        round_trip: Duration,
        /// Since the change it carries arrived; none for what the client got because it asked.
        convergence: Option<Duration>,
    },
    /// A response was rejected.
    Nacked {
        /// Type of its resources.
        type_url: &'a str,
        /// Who rejected it.
        node: &'a str,
        /// The client's words.
        message: &'a str,
    },
    /// A client says how its application is ([`type_urls::HEALTH_INFORMATION`]).
    Health {
        /// Number of the connection.
        connection: u64,
        /// What is wrong; none: it is well.
        problem: Option<&'a str>,
    },
    /// A stream was refused or ended with an error.
    Failed {
        /// What the client was told.
        status: &'a Status,
    },
}

/// Decides who is served and with what.
pub trait Source: Send + Sync + 'static {
    /// Admits a client, or says why not.
    fn open(&self, hello: Hello) -> BoxFuture<'_, Result<Opened, Status>>;

    /// Told of everything that happens; must not block.
    fn observe(&self, event: &Event<'_>) {
        let _ = event;
    }
}

/// The service, to be mounted in a tonic or axum router under its [`NamedService::NAME`]. Cloning gives another handle.
pub struct AdsServer<S> {
    source: Arc<S>,
    connections: Connections,
}

impl<S> Clone for AdsServer<S> {
    fn clone(&self) -> Self {
        Self { source: self.source.clone(), connections: self.connections.clone() }
    }
}

impl<S: Source> AdsServer<S> {
    /// A server of what `source` gives.
    pub fn new(source: Arc<S>) -> Self {
        Self::with_connections(source, Connections::default())
    }

    /// A server whose connections are listed with those of others, numbered together.
    pub fn with_connections(source: Arc<S>, connections: Connections) -> Self {
        Self { source, connections }
    }

    /// The open connections.
    pub fn connections(&self) -> &Connections {
        &self.connections
    }
}

impl<S> NamedService for AdsServer<S> {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

impl<S, B> tower::Service<http::Request<B>> for AdsServer<S>
where
    S: Source,
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let server = self.clone();
        Box::pin(async move {
            let method = request.uri().path().rsplit('/').next().unwrap_or_default();
            Ok(match method {
                "DeltaAggregatedResources" => server.stream::<DeltaDiscoveryRequest, B>(request).await,
                "StreamAggregatedResources" => server.stream::<DiscoveryRequest, B>(request).await,
                _ => Status::unimplemented(format!("no method {method:?}")).into_http(),
            })
        })
    }
}

/// A request message of either variant.
trait Incoming: prost::Message + Default + Send + 'static {
    const PROTOCOL: Protocol;
    fn node(&mut self) -> Option<Node>;
    fn into_request(self) -> Request;
}

impl Incoming for DeltaDiscoveryRequest {
    const PROTOCOL: Protocol = Protocol::Delta;

    fn node(&mut self) -> Option<Node> {
        self.node.take()
    }

    fn into_request(self) -> Request {
        Request {
            type_url: self.type_url,
            nonce: self.response_nonce,
            error: self.error_detail.map(|error| shorten(error.message)),
            change: Change::Delta {
                subscribe: self.resource_names_subscribe,
                unsubscribe: self.resource_names_unsubscribe,
                initial: self.initial_resource_versions,
            },
        }
    }
}

impl Incoming for DiscoveryRequest {
    const PROTOCOL: Protocol = Protocol::Sotw;

    fn node(&mut self) -> Option<Node> {
        self.node.take()
    }

    fn into_request(self) -> Request {
        Request {
            type_url: self.type_url,
            nonce: self.response_nonce,
            error: self.error_detail.map(|error| shorten(error.message)),
            change: Change::Sotw { names: self.resource_names },
        }
    }
}

fn shorten(mut message: String) -> String {
    if message.len() > MAX_MESSAGE {
        let end = (0..=MAX_MESSAGE).rev().find(|&at| message.is_char_boundary(at)).unwrap_or(0);
        message.truncate(end);
    }
    message
}

impl<S: Source> AdsServer<S> {
    /// Serves one stream.
    async fn stream<R, B>(self, request: http::Request<B>) -> http::Response<Body>
    where
        R: Incoming,
        B: http_body::Body + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    {
        let source = self.source.clone();
        let connection = match self.open::<R, B>(request).await {
            Ok(connection) => connection,
            Err(status) => {
                source.observe(&Event::Failed { status: &status });
                return status.into_http();
            }
        };
        let pushes = stream::unfold(connection, |mut connection| async move {
            let item = connection.next().await?;
            Some((item, connection))
        });
        let mut response = http::Response::new(Body::new(ResponseBody::new(pushes)));
        let grpc = http::HeaderValue::from_static("application/grpc");
        response.headers_mut().insert(http::header::CONTENT_TYPE, grpc);
        response
    }

    async fn open<R, B>(self, request: http::Request<B>) -> Result<Connection<S, R>, Status>
    where
        R: Incoming,
        B: http_body::Body + Send + 'static,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    {
        let (http::request::Parts { mut headers, extensions, .. }, body) = request.into_parts();
        let peer = extensions.get::<PeerAddress>().map(|peer| peer.0);
        if let Some(coding) = headers.get("grpc-encoding").filter(|coding| *coding != "identity") {
            return Err(Status::unimplemented(format!(
                "requests in grpc-encoding {coding:?} are not understood"
            )));
        }
        let decoder = RequestDecoder::<R>::default();
        let mut requests = Streaming::new_request(decoder, body, None, Some(MAX_REQUEST_BYTES));
        let mut first = tokio::time::timeout(FIRST_REQUEST, requests.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no discovery request came after the stream was opened"))??
            .ok_or_else(|| Status::cancelled("the stream ended before its first request"))?;
        let node =
            Arc::new(first.node().ok_or_else(|| {
                Status::invalid_argument("the first request on a stream must carry the node")
            })?);
        let connection = self.connections.number();
        // Tokens must not show where headers are printed.
        if let Some(credentials) = headers.get_mut(http::header::AUTHORIZATION) {
            credentials.set_sensitive(true);
        }
        let protocol = R::PROTOCOL;
        let hello = Hello { connection, node: node.clone(), headers, peer, protocol, extensions };
        let Opened { mut snapshots, guard } = self.source.open(hello).await?;
        let entry = self.connections.insert(ConnectionStatus {
            id: connection,
            node: node.clone(),
            peer,
            protocol: R::PROTOCOL,
            connected: SystemTime::now(),
            types: std::collections::BTreeMap::new(),
        });
        let session = Session::new(R::PROTOCOL, snapshots.borrow_and_update().clone());
        let mut connection = Connection {
            source: self.source.clone(),
            number: connection,
            node,
            session,
            requests,
            snapshots,
            entry,
            ended: false,
            _guard: guard,
        };
        connection.take(first)?;
        Ok(connection)
    }
}

/// One stream. It advances only while the transport asks for the next response, so a client that does not read is not
/// served, holds up nobody else, and finds the latest state when it reads again.
struct Connection<S, R> {
    source: Arc<S>,
    number: u64,
    node: Arc<Node>,
    session: Session,
    requests: Streaming<R>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    entry: Entry,
    ended: bool,
    _guard: Box<dyn Any + Send + Sync>,
}

impl<S: Source, R: Incoming> Connection<S, R> {
    async fn next(&mut self) -> Option<Result<Push, Status>> {
        if self.ended {
            return None;
        }
        loop {
            if let Some(push) = self.session.next() {
                self.entry.pushed(&push, self.session.subscribed(&push.type_url));
                let (resources, removed) = (push.resources.len(), push.removed.len());
                self.source.observe(&Event::Pushed { type_url: &push.type_url, resources, removed });
                return Some(Ok(push));
            }
            tokio::select! {
                // Requests first: an acknowledgement lets the next response go.
                biased;
                request = self.requests.next() => match request {
                    Some(Ok(request)) => {
                        if let Err(status) = self.take(request) {
                            return self.fail(status);
                        }
                    }
                    // The client went away; there is nobody to tell.
                    Some(Err(_)) | None => return None,
                },
                changed = self.snapshots.changed() => match changed {
                    Ok(()) => {
                        let snapshot = self.snapshots.borrow_and_update().clone();
                        self.session.set_snapshot(snapshot);
                    }
                    Err(_) => return self.fail(Status::unavailable("the control plane is shutting down; reconnect")),
                },
            }
        }
    }

    fn take(&mut self, request: R) -> Result<(), Status> {
        let request = request.into_request();
        if request.type_url == type_urls::HEALTH_INFORMATION {
            self.source
                .observe(&Event::Health { connection: self.number, problem: request.error.as_deref() });
            return Ok(());
        }
        let answer = self
            .session
            .request(request)
            .map_err(|error| Status::new(Code::InvalidArgument, error.to_string()))?;
        if let Some(answer) = answer {
            self.entry.answered(&answer);
            self.observe(&answer);
        }
        Ok(())
    }

    fn observe(&self, answer: &Answer) {
        let type_url = &*answer.type_url;
        self.source.observe(&match &answer.error {
            Some(message) => Event::Nacked { type_url, node: &self.node.id, message },
            None => Event::Acked {
                type_url,
                round_trip: answer.sent.elapsed(),
                convergence: answer.changed.map(|changed| changed.elapsed()),
            },
        });
    }

    fn fail(&mut self, status: Status) -> Option<Result<Push, Status>> {
        self.ended = true;
        self.source.observe(&Event::Failed { status: &status });
        Some(Err(status))
    }
}
