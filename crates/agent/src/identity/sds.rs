//! The workload's certificate for an Envoy beside us: SDS on a Unix socket that only our own user may open.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::pin::Pin;

use futures::Stream;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use lateen_xds::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use lateen_xds::pb::envoy::service::secret::v3::secret_discovery_service_server::{
    SecretDiscoveryService, SecretDiscoveryServiceServer,
};
use lateen_xds::{Any, type_urls};
use prost::Message;
use tokio::net::UnixListener;
use tokio::task::JoinSet;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, warn};

use super::{Current, secret, version};
use crate::error::AgentError;
use crate::forward::{self, ACCEPT_PAUSE};

/// Names one stream may ask for.
const NAMES: usize = 16;

/// Makes the socket, for our own user only.
///
/// # Errors
/// When the folder does not let us.
pub(crate) fn bind(socket: &Path) -> Result<UnixListener, AgentError> {
    let listener = forward::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))
        .map_err(|error| AgentError::file("protect", socket, error))?;
    Ok(listener)
}

/// Serves the socket until the future is dropped, and all its streams with it.
pub(crate) async fn serve(listener: UnixListener, current: Current) {
    let service = SecretDiscoveryServiceServer::new(Secrets { current });
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .timer(TokioTimer::new())
                        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service.clone()));
                    connections.spawn(async move {
                        if let Err(error) = connection.await {
                            debug!(%error, "a connection for secrets ended");
                        }
                    });
                }
                Err(error) => {
                    // Out of file descriptors, mostly: others are closing.
                    warn!(%error, "cannot accept a connection on the socket for secrets");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

struct Secrets {
    current: Current,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl SecretDiscoveryService for Secrets {
    type DeltaSecretsStream = Answers<DeltaDiscoveryResponse>;
    type StreamSecretsStream = Answers<DiscoveryResponse>;

    async fn delta_secrets(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Err(Status::unimplemented("secrets are served as state of the world"))
    }

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let stream = Conversation {
            requests: request.into_inner(),
            current: self.current.clone(),
            names: Vec::new(),
            sent: None,
            nonce: 0,
        };
        let answers = futures::stream::unfold(stream, |mut stream| async move {
            let answer = stream.next().await?;
            Some((answer, stream))
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn fetch_secrets(
        &self,
        _: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented("secrets are served as a stream"))
    }
}

/// One stream of an Envoy, which asks for one secret or several.
struct Conversation {
    requests: Streaming<DiscoveryRequest>,
    current: Current,
    names: Vec<String>,
    /// Version of the certificate it was told of.
    sent: Option<String>,
    nonce: u64,
}

impl Conversation {
    /// The next answer; none at the end.
    async fn next(&mut self) -> Option<Result<DiscoveryResponse, Status>> {
        loop {
            let certificate = self.current.borrow_and_update().clone();
            if let Some(certificate) = certificate.filter(|_| !self.names.is_empty()) {
                let version = version(&certificate);
                if self.sent.as_ref() != Some(&version) {
                    self.sent = Some(version.clone());
                    self.nonce += 1;
                    let secrets = self.names.iter().filter_map(|name| secret(name, &certificate));
                    return Some(Ok(DiscoveryResponse {
                        version_info: version,
                        resources: secrets
                            .map(|secret| Any {
                                type_url: type_urls::SECRET.to_owned(),
                                value: secret.encode_to_vec(),
                            })
                            .collect(),
                        type_url: type_urls::SECRET.to_owned(),
                        nonce: self.nonce.to_string(),
                        ..Default::default()
                    }));
                }
            }
            tokio::select! {
                request = self.requests.message() => match request {
                    Ok(Some(request)) => {
                        if let Some(error) = request.error_detail {
                            warn!(reason = error.message, "Envoy refuses the workload's certificate");
                        }
                        if request.resource_names.len() > NAMES {
                            return Some(Err(Status::invalid_argument("too many names")));
                        }
                        // An acknowledgement names what was named before.
                        if self.names != request.resource_names {
                            self.names = request.resource_names;
                            self.sent = None;
                        }
                    }
                    Ok(None) | Err(_) => return None,
                },
                changed = self.current.changed() => if changed.is_err() {
                    return None;
                },
            }
        }
    }
}
