//! The client side of `grpc.health.v1.Health/Check`, for gRPC probes: one request over one HTTP/2 connection.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

/// Most bytes of an answer; a real one has a handful.
const MOST_BYTES: usize = 4096;
/// The status SERVING of `HealthCheckResponse`.
const SERVING: u8 = 1;

/// Asks whether `service` is serving; `Err` is why not.
pub(crate) async fn check(stream: TcpStream, address: SocketAddr, service: &str) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("grpc health check of {address}: {error}");
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|error| failed(&error))?;
    let connection = tokio::spawn(connection);
    let request = http::Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
        .header(http::header::CONTENT_TYPE, "application/grpc")
        .header(http::header::TE, "trailers")
        .body(Full::new(Bytes::from(request_message(service))))
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
    match serving_status(&answer?) {
        Some(SERVING) => Ok(()),
        other => Err(failed(&format!("service unhealthy (responded with status {})", other.unwrap_or(0)))),
    }
}

/// `HealthCheckRequest { service }` in a gRPC frame. Names are shorter than 128 bytes in practice; longer ones are cut.
fn request_message(service: &str) -> Vec<u8> {
    let name = &service.as_bytes()[..service.len().min(127)];
    let mut message = Vec::new();
    if !name.is_empty() {
        // Field 1, length-delimited.
        message.extend([0x0a, u8::try_from(name.len()).unwrap_or(127)]);
        message.extend_from_slice(name);
    }
    let mut frame = vec![0];
    frame.extend(u32::try_from(message.len()).unwrap_or(0).to_be_bytes());
    frame.extend(message);
    frame
}

/// The field `status` (1, varint) of a framed `HealthCheckResponse`.
fn serving_status(frame: &[u8]) -> Option<u8> {
    match frame.get(5..) {
        Some([0x08, status, ..]) => Some(*status),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        assert_eq!(request_message(""), [0, 0, 0, 0, 0]);
        assert_eq!(request_message("ab"), [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(serving_status(&[0, 0, 0, 0, 2, 0x08, 1]), Some(SERVING));
        assert_eq!(serving_status(&[0, 0, 0, 0, 0]), None);
    }
}
