//! A gRPC channel over a connection the caller has made: TCP with a mark, TLS, a Unix socket.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

/// How soon a server that is silently gone is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// How much may be on its way, in bytes: the routes of a big mesh at once. (Envoy's default is 256 MiB.)
const WINDOW: u32 = 4 << 20;

/// A channel over `stream`, which must already speak HTTP/2 (for TLS: with ALPN `h2`). `authority` is what the server sees as its name.
/// The channel is as good as the stream: make a new one for the next attempt.
///
/// # Errors
/// When the authority is no authority or the HTTP/2 preface fails.
pub async fn channel_over<S>(stream: S, authority: &str) -> Result<Channel, String>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let endpoint = Endpoint::from_shared(format!("http://{authority}"))
        .map_err(|error| format!("{authority:?} is not an authority: {error}"))?
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW);
    let slot = Arc::new(Mutex::new(Some(stream)));
    let connector = service_fn(move |_| {
        let stream = slot.lock().ok().and_then(|mut slot| slot.take());
        async move { stream.map(TokioIo::new).ok_or_else(|| io::Error::other("the connection was used up")) }
    });
    endpoint.connect_with_connector(connector).await.map_err(|error| error.to_string())
}
