//! `istio.v1.auth.IstioCertificateService`: how workloads have their certificates signed, as client and server.
//! <https://github.com/istio/api/blob/master/security/v1alpha1/ca.proto>
use std::sync::Arc;

use futures::future::BoxFuture;
use http::uri::PathAndQuery;
use tonic::body::Body;
use tonic::server::{Grpc, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use crate::one_method::{Method, OneMethod};
use crate::pb::google::protobuf::Struct;

const CREATE: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";
/// Largest request; one with a large RSA key has some kilobytes.
const MAX_REQUEST_BYTES: usize = 64 << 10;
/// Largest answer: a chain of a few certificates.
const MAX_RESPONSE_BYTES: usize = 1 << 20;

/// What a workload asks for.
#[derive(Clone, PartialEq, prost::Message)]
pub struct IstioCertificateRequest {
    /// PKCS #10 request in PEM.
    #[prost(string, tag = "1")]
    pub csr: String,
    /// Life of the certificate in seconds; 0: the authority's default.
    #[prost(int64, tag = "3")]
    pub validity_duration: i64,
    /// Besides: `CertSigner`, `ImpersonatedIdentity`.
    #[prost(message, optional, tag = "4")]
    pub metadata: Option<Struct>,
}

/// What it gets.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct IstioCertificateResponse {
    /// Certificates in PEM: the leaf first, the root last.
    #[prost(string, repeated, tag = "1")]
    pub cert_chain: Vec<String>,
}

/// Asks for a certificate over `channel`; whoever calls proves itself in the request's metadata or by the connection.
///
/// # Errors
/// The authority's refusal.
pub async fn create_certificate(
    channel: tonic::transport::Channel,
    request: Request<IstioCertificateRequest>,
) -> Result<IstioCertificateResponse, Status> {
    let mut grpc = tonic::client::Grpc::new(channel).max_decoding_message_size(MAX_RESPONSE_BYTES);
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let codec = ProstCodec::<IstioCertificateRequest, IstioCertificateResponse>::default();
    Ok(grpc.unary(request, PathAndQuery::from_static(CREATE), codec).await?.into_inner())
}

/// Decides what is signed.
pub trait CertificateIssuer: Send + Sync + 'static {
    /// Answers a request. Its extensions are those of the connection, put there by whoever accepts connections.
    fn create(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> BoxFuture<'_, Result<IstioCertificateResponse, Status>>;
}

/// The service.
pub type CertificateService<I> = OneMethod<Create<I>>;

impl<I: CertificateIssuer> CertificateService<I> {
    /// A service of what `issuer` signs.
    pub fn new(issuer: I) -> Self {
        Self(Create(Arc::new(issuer)))
    }
}

/// Its method.
pub struct Create<I>(Arc<I>);

impl<I> Clone for Create<I> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<I: CertificateIssuer> Method for Create<I> {
    const SERVICE: &'static str = "istio.v1.auth.IstioCertificateService";
    const PATH: &'static str = CREATE;

    async fn answer<B>(self, request: http::Request<B>) -> http::Response<Body>
    where
        B: http_body::Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    {
        let codec = ProstCodec::<IstioCertificateResponse, IstioCertificateRequest>::default();
        Grpc::new(codec).max_decoding_message_size(MAX_REQUEST_BYTES).unary(self, request).await
    }
}

impl<I: CertificateIssuer> UnaryService<IstioCertificateRequest> for Create<I> {
    type Response = IstioCertificateResponse;
    type Future = BoxFuture<'static, Result<Response<IstioCertificateResponse>, Status>>;

    fn call(&mut self, request: Request<IstioCertificateRequest>) -> Self::Future {
        let issuer = self.0.clone();
        Box::pin(async move { issuer.create(request).await.map(Response::new) })
    }
}
