//! gRPC services that have one method, mounted by hand: for a message or two a code generator is too much.
use std::convert::Infallible;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;

/// The method.
pub trait Method: Clone + Send + Sync + 'static {
    /// Full name of the service that has it.
    const SERVICE: &'static str;
    /// Where it is called: `/SERVICE/METHOD`.
    const PATH: &'static str;

    /// Answers a call, refusals too.
    fn answer<B>(self, request: http::Request<B>) -> impl Future<Output = http::Response<Body>> + Send
    where
        B: http_body::Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>> + Send + 'static;
}

/// The service, to be mounted in a tonic or axum router under its [`NamedService::NAME`]. Cloning gives another handle. Calls of methods
/// it has not are answered `UNIMPLEMENTED`.
#[derive(Clone)]
pub struct OneMethod<M>(pub(crate) M);

impl<M: Method> NamedService for OneMethod<M> {
    const NAME: &'static str = M::SERVICE;
}

impl<M, B> tower::Service<http::Request<B>> for OneMethod<M>
where
    M: Method,
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
        let method = self.0.clone();
        Box::pin(async move {
            let path = request.uri().path();
            if path != M::PATH {
                let name = path.rsplit('/').next().unwrap_or_default();
                return Ok(Status::unimplemented(format!("no method {name:?}")).into_http());
            }
            Ok(method.answer(request).await)
        })
    }
}
