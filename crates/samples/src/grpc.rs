//! gRPC methods as routes of an [`axum::Router`], and calling them, without generated code: the messages are prost
//! structs, the rest is tonic's.

use std::future::Future;
use std::str::FromStr;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use axum::routing::{MethodRouter, post};
use futures::Stream;
use http::HeaderMap;
use http::uri::PathAndQuery;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::propagate::copy_headers;

/// A unary method.
pub fn unary<Q, A, M, F>(method: M) -> MethodRouter
where
    Q: prost::Message + Default + 'static,
    A: prost::Message + Default + 'static,
    M: Fn(tonic::Request<Q>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<tonic::Response<A>, Status>> + Send + 'static,
{
    post(async move |request: Request| -> Response {
        let mut grpc = tonic::server::Grpc::new(ProstCodec::<A, Q>::default());
        grpc.unary(tower::service_fn(method), request).await.map(axum::body::Body::new)
    })
}

/// A method with a stream both ways.
pub fn bidirectional<Q, A, M, F, S>(method: M) -> MethodRouter
where
    Q: prost::Message + Default + 'static,
    A: prost::Message + Default + 'static,
    M: Fn(tonic::Request<Streaming<Q>>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<tonic::Response<S>, Status>> + Send + 'static,
    S: Stream<Item = Result<A, Status>> + Send + 'static,
{
    post(async move |request: Request| -> Response {
        let mut grpc = tonic::server::Grpc::new(ProstCodec::<A, Q>::default());
        grpc.streaming(tower::service_fn(method), request).await.map(axum::body::Body::new)
    })
}

/// Adds `grpc.health.v1.Health/Check`, which says SERVING for every name, and an answer to methods there are not.
pub fn service(methods: Router) -> Router {
    methods
        .route(
            "/grpc.health.v1.Health/Check",
            unary(async |_: tonic::Request<HealthCheckRequest>| {
                Ok(tonic::Response::new(HealthCheckResponse { status: SERVING }))
            }),
        )
        .fallback(async || -> Response {
            Status::unimplemented("no such method").into_http::<axum::body::Body>()
        })
}

/// Question of the standard health check.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// Answer of the standard health check.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

const SERVING: i32 = 1;

/// A service to call; connects when it is first called, and again when the connection is lost.
#[derive(Clone, Debug)]
pub struct Remote {
    channel: Channel,
    service: Arc<str>,
}

impl Remote {
    /// `service` by its full name at `address` (`host:port`).
    ///
    /// # Errors
    /// When `address` is none.
    pub fn new(service: &str, address: &str) -> Result<Self, tonic::transport::Error> {
        let channel = Endpoint::from_shared(format!("http://{address}"))?.connect_lazy();
        Ok(Self { channel, service: service.into() })
    }

    /// Calls a unary method, handing on what belongs to the request it is called for.
    ///
    /// # Errors
    /// The status the other side, or a proxy on the way, answered with.
    pub async fn call<Q, A>(&self, method: &str, question: Q, caused_by: &HeaderMap) -> Result<A, Status>
    where
        Q: prost::Message + Default + 'static,
        A: prost::Message + Default + 'static,
    {
        let path = PathAndQuery::from_str(&format!("/{}/{method}", self.service))
            .map_err(|error| Status::internal(error.to_string()))?;
        let mut request = tonic::Request::new(question);
        let mut headers = HeaderMap::new();
        copy_headers(caused_by, &mut headers);
        *request.metadata_mut() = MetadataMap::from_headers(headers);
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let answer = grpc.unary(request, path, ProstCodec::<Q, A>::default()).await?;
        Ok(answer.into_inner())
    }
}

/// A failed call the way Go's gRPC prints it, which is what the boutique's pages show.
pub fn describe(status: &Status) -> String {
    let code = match status.code() {
        Code::Ok => "OK".to_owned(),
        Code::Cancelled => "Canceled".to_owned(),
        other => format!("{other:?}"),
    };
    format!("rpc error: code = {code} desc = {}", status.message())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn a_call_reaches_its_method_and_other_methods_are_unimplemented() {
        let app = service(Router::new().route(
            "/test.Names/Upper",
            unary(async |request: tonic::Request<HealthCheckRequest>| {
                let user = request.metadata().get("user").and_then(|v| v.to_str().ok()).unwrap_or("-");
                if request.get_ref().service.is_empty() {
                    return Err(Status::invalid_argument("nothing to do"));
                }
                let service = format!("{} {user}", request.get_ref().service.to_uppercase());
                Ok(tonic::Response::new(HealthCheckRequest { service }))
            }),
        ));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move { axum::serve(listener, app).await });
        let remote = Remote::new("test.Names", &address).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert("user", http::HeaderValue::from_static("debug"));
        let named = HealthCheckRequest { service: "a".into() };
        let answer: HealthCheckRequest = remote.call("Upper", named.clone(), &headers).await.unwrap();
        assert_eq!(answer.service, "A debug");
        let error = remote
            .call::<_, HealthCheckRequest>("Upper", HealthCheckRequest::default(), &headers)
            .await
            .unwrap_err();
        assert_eq!(describe(&error), "rpc error: code = InvalidArgument desc = nothing to do");
        let error = remote.call::<_, HealthCheckRequest>("Lower", named.clone(), &headers).await.unwrap_err();
        assert_eq!(error.code(), Code::Unimplemented);
        let health = Remote::new("grpc.health.v1.Health", &address).unwrap();
        let answer: HealthCheckResponse = health.call("Check", named, &headers).await.unwrap();
        assert_eq!(answer.status, SERVING);
    }
}
