//! The client side of `grpc.health.v1.Health/Check`, for gRPC probes: one request over one HTTP/2 connection.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use lateen_ir::{GRPC_HEALTH_PATH, GrpcProbe};
use tokio::net::TcpStream;

/// Most bytes of an answer; a real one has a handful.
const MOST_BYTES: usize = 4096;

/// Asks whether `service` is serving; `Err` is why not.
pub(crate) async fn check(stream: TcpStream, address: SocketAddr, service: &str) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("grpc health check of {address}: {error}");
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|error| failed(&error))?;
    let connection = tokio::spawn(connection);
    let probe = GrpcProbe { service: service.into(), ..GrpcProbe::default() };
    let request = http::Request::post(format!("http://{address}{GRPC_HEALTH_PATH}"))
        .header(http::header::CONTENT_TYPE, "application/grpc")
        .header(http::header::TE, "trailers")
        .body(Full::new(Bytes::from(probe.request())))
        .map_err(|error| failed(&error))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|error| failed(&error))?;
        let status = response.headers().get("grpc-status").cloned();
        let body =
            Limited::new(response.into_body(), MOST_BYTES).collect().await.map_err(|error| failed(&error))?;
        let status =
            status.or_else(|| body.trailers().and_then(|trailers| trailers.get("grpc-status").cloned()));
        match status {
            Some(status) if status == "0" => Ok(body.to_bytes()),
            Some(status) => Err(failed(&format!("status {}", status.to_str().unwrap_or("unreadable")))),
            None => Err(failed(&"no gRPC answer")),
        }
    }
    .await;
    connection.abort();
    match GrpcProbe::serving_status(&answer?) {
        Some(GrpcProbe::SERVING) => Ok(()),
        other => Err(failed(&format!("service unhealthy (responded with status {})", other.unwrap_or(0)))),
    }
}
