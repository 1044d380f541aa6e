//! `lateen.security.v1.TrustService`: what the mesh trusts, for proxies that no ConfigMap is mounted for (machines). The control plane says
//! it at once, and again whenever it changes. As client and server.
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use http::uri::PathAndQuery;
use tonic::body::Body;
use tonic::server::{Grpc, ServerStreamingService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::one_method::{Method, OneMethod};

const FOLLOW: &str = "/lateen.security.v1.TrustService/Follow";
/// Largest request; it says nothing.
const MAX_REQUEST_BYTES: usize = 1 << 10;
/// Largest answer: roots of some hundred trust domains. A ConfigMap holds as much.
const MAX_RESPONSE_BYTES: usize = 1 << 20;

/// Asks to be told.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct TrustRequest {}

/// What is trusted: what ConfigMap `istio-ca-root-cert` has.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct TrustBundle {
    /// Roots of the mesh, PEM, the one that signs first (`root-cert.pem`).
    #[prost(string, tag = "1")]
    pub roots: String,
    /// Roots of trust domains, JSON (`trust-domains.json`); empty: there are only the mesh's own.
    #[prost(string, tag = "2")]
    pub domains: String,
}

/// Follows what is trusted over `channel`; whoever calls proves itself in the request's metadata or by the connection.
///
/// # Errors
/// The control plane's refusal; `Unimplemented` where it knows no such service.
pub async fn follow(
    channel: tonic::transport::Channel,
    request: Request<TrustRequest>,
) -> Result<Streaming<TrustBundle>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel).max_decoding_message_size(MAX_RESPONSE_BYTES);
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let codec = ProstCodec::<TrustRequest, TrustBundle>::default();
    Ok(grpc.server_streaming(request, PathAndQuery::from_static(FOLLOW), codec).await?.into_inner())
}

/// Says what is trusted.
pub trait TrustSource: Send + Sync + 'static {
    /// Answers a request. Its extensions are those of the connection, put there by whoever accepts connections.
    fn follow(&self, request: Request<TrustRequest>) -> BoxFuture<'_, Result<Bundles, Status>>;
}

/// What is trusted at first, and then whenever it changes.
pub type Bundles = BoxStream<'static, Result<TrustBundle, Status>>;

/// The service.
pub type TrustService<S> = OneMethod<Follow<S>>;

impl<S: TrustSource> TrustService<S> {
    /// A service of what `source` says.
    pub fn new(source: S) -> Self {
        Self(Follow(Arc::new(source)))
    }
}

/// Its method.
pub struct Follow<S>(Arc<S>);

impl<S> Clone for Follow<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S: TrustSource> Method for Follow<S> {
    const SERVICE: &'static str = "lateen.security.v1.TrustService";
    const PATH: &'static str = FOLLOW;

    async fn answer<B>(self, request: http::Request<B>) -> http::Response<Body>
    where
        B: http_body::Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    {
        let codec = ProstCodec::<TrustBundle, TrustRequest>::default();
        Grpc::new(codec).max_decoding_message_size(MAX_REQUEST_BYTES).server_streaming(self, request).await
    }
}

impl<S: TrustSource> ServerStreamingService<TrustRequest> for Follow<S> {
    type Response = TrustBundle;
    type ResponseStream = Bundles;
    type Future = BoxFuture<'static, Result<Response<Bundles>, Status>>;

    fn call(&mut self, request: Request<TrustRequest>) -> Self::Future {
        let source = self.0.clone();
        Box::pin(async move { source.follow(request).await.map(Response::new) })
    }
}
