//! A stream that has become a tunnel: bytes in both directions, as over a socket (RFC 9113, section 8.5; RFC 8441).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// See the module.
pub(crate) struct Duplex {
    send: SendStream<Bytes>,
    receive: RecvStream,
    /// What has come and has not been read.
    ahead: Bytes,
}

impl Duplex {
    pub(super) fn new(send: SendStream<Bytes>, receive: RecvStream) -> Self {
        Self { send, receive, ahead: Bytes::new() }
    }
}

fn broken(error: h2::Error) -> io::Error {
    match error.reason() {
        Some(Reason::NO_ERROR | Reason::CANCEL | Reason::STREAM_CLOSED) => io::ErrorKind::BrokenPipe.into(),
        Some(_) if error.is_reset() => io::ErrorKind::ConnectionReset.into(),
        _ => io::Error::other(error),
    }
}

impl AsyncRead for Duplex {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.ahead.is_empty() {
            match ready!(self.receive.poll_data(cx)) {
                Some(Ok(data)) => self.ahead = data,
                // Some end a tunnel so that has nothing more to say.
                Some(Err(error)) if matches!(error.reason(), Some(Reason::NO_ERROR | Reason::CANCEL)) => {
                    return Poll::Ready(Ok(()));
                }
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let n = self.ahead.len().min(buffer.remaining());
        buffer.put_slice(&self.ahead[..n]);
        self.ahead.advance(n);
        // Over is what the stream is then, and nobody minds.
        let _ = self.receive.flow_control().release_capacity(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Duplex {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.send.reserve_capacity(bytes.len());
        while self.send.capacity() == 0 {
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let n = self.send.capacity().min(bytes.len());
        let sent = self.send.send_data(Bytes::copy_from_slice(&bytes[..n]), false);
        Poll::Ready(sent.map(|()| n).map_err(broken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.send.send_data(Bytes::new(), true).map_err(broken))
    }
}
