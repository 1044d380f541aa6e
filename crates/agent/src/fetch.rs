//! One HTTP request of the agent itself: to Envoy's admin service, or to the application's metrics.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::dial;

const TIMEOUT: Duration = Duration::from_secs(5);
const MAX_BODY: usize = 256 * 1024 * 1024;

/// Sends a request without a body to `address` and collects the answer.
///
/// # Errors
/// When there is no complete answer within five seconds.
pub(crate) async fn fetch(
    method: Method,
    address: SocketAddr,
    path: &str,
    mark: Option<u32>,
) -> io::Result<(StatusCode, Bytes)> {
    let exchange = async {
        let stream = dial::connect(address, mark).await?;
        exchange(stream, method, &address.to_string(), path, HeaderMap::new()).await
    };
    tokio::time::timeout(TIMEOUT, exchange).await?
}

/// Sends a request without a body over a connection and collects the answer.
///
/// # Errors
/// When there is no complete answer.
pub(crate) async fn exchange<S>(
    stream: S,
    method: Method,
    host: &str,
    path: &str,
    headers: HeaderMap,
) -> io::Result<(StatusCode, Bytes)>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    let connection = tokio::spawn(connection);
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, host)
        .body(Empty::<Bytes>::new())
        .map_err(io::Error::other)?;
    // A Host given replaces the address.
    request.headers_mut().extend(headers);
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_BODY).collect().await.map_err(io::Error::other)?;
    connection.abort();
    Ok((status, body.to_bytes()))
}
