//! A byte stream carried in binary WebSocket messages (how kubectl 1.31 and later sends SPDY, KEP-4006).

use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tracing::debug;

use crate::channels;

/// Bytes held per direction, and the largest message sent.
const BUFFER: usize = 32 * 1024;

/// The stream inside `socket`. Shutting it down closes the WebSocket.
pub(crate) fn open<S>(socket: WebSocketStream<S>) -> DuplexStream
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (inside, outside) = tokio::io::duplex(BUFFER);
    tokio::spawn(async move {
        let (mut to_client, mut from_client) = socket.split();
        let (mut from_inside, mut to_inside) = tokio::io::split(outside);
        let receive = async {
            while let Some(Ok(message)) = from_client.next().await {
                if message.is_close() {
                    break;
                }
                if let Message::Binary(data) = message
                    && to_inside.write_all(&data).await.is_err()
                {
                    return;
                }
            }
            // A pipe in memory: shutting down only marks the end.
            let _ = to_inside.shutdown().await;
        };
        let send = async {
            let mut buffer = bytes::BytesMut::with_capacity(BUFFER);
            while from_inside.read_buf(&mut buffer).await.is_ok_and(|read| read > 0) {
                to_client.send(Message::Binary(buffer.split().freeze())).await?;
                buffer.reserve(BUFFER);
            }
            channels::close(&mut to_client).await
        };
        let (sent, ()) = tokio::join!(send, receive);
        if let Err(error) = sent {
            debug!(%error, "tunnelled client went away");
        }
    });
    inside
}
