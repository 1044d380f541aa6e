//! A connection's byte stream: the socket, bytes already read by inspectors, and byte counters.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use smallvec::SmallVec;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsStream;

use crate::gate::Gate;
use crate::guard::Guard;
use crate::interim::{Interim, Said};
use crate::stats::slots::ByteCounter;

/// Writes up to this size are joined into one buffer.
const SMALL_WRITE: usize = 2048;

/// How long a client may take to notice that its connection was closed: Envoy's `delayed_close_timeout`.
const LINGER: Duration = Duration::from_secs(1);

/// What carries the bytes.
#[derive(Debug)]
pub(crate) enum Transport {
    Tcp(TcpStream),
    /// A Unix socket.
    Pipe(UnixStream),
    /// TLS over another stream, which does the lingering.
    Tls(Box<TlsStream<Stream>>),
    /// Nothing any more.
    Closed,
    /// In-memory pipe, for tests without sockets.
    #[cfg(test)]
    Memory(tokio::io::DuplexStream),
}

/// A stream whose first bytes may have been looked at already, and which counts what passes.
#[derive(Debug)]
pub(crate) struct Stream {
    transport: Transport,
    /// Bytes read ahead; they are read first.
    ahead: BytesMut,
    received: ByteCounter,
    sent: ByteCounter,
    /// Set whenever something is read.
    heard: Heard,
    /// A client's: see [`linger`].
    lingers: bool,
    /// This side has finished sending.
    half_closed: bool,
    /// Looks at what passes.
    guard: Guard,
    /// What the first byte that is read sets off.
    gate: Option<Box<Gate>>,
    /// Ends with FIN even when it is dropped in the middle of something.
    gentle: bool,
    /// Set when the peer has finished or the transport has broken.
    ended: Option<Heard>,
    /// What goes between the messages that are written.
    interim: Option<Box<Inserted>>,
    /// What an endpoint says before its answer.
    said: Option<Said>,
}

/// Interim answers of a client's stream.
#[derive(Debug)]
struct Inserted {
    from: Interim,
    /// What is being written.
    begun: Bytes,
}

/// Whether something was read since this was last cleared. Atomic only because sockets must be `Send` for hyper's upgrades.
#[derive(Clone, Debug, Default)]
pub(crate) struct Heard(Arc<AtomicBool>);

impl Heard {
    pub(crate) fn set(&self, heard: bool) {
        self.0.store(heard, Relaxed);
    }

    pub(crate) fn get(&self) -> bool {
        self.0.load(Relaxed)
    }
}

/// A peer that ends without TLS's `close_notify` has ended all the same, as with Envoy: HTTP knows where its messages end.
fn without_notice<T: Default>(read: io::Result<T>) -> io::Result<T> {
    match read {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(T::default()),
        other => other,
    }
}

/// Reads what a client still sends, for a while. A socket that is closed with bytes unread is reset, and a reset can overtake the
/// answer (RFC 9112, section 9.6).
async fn linger(mut socket: impl AsyncRead + Unpin) {
    let mut ignored = [0; 4096];
    let reading = async { while socket.read(&mut ignored).await.is_ok_and(|n| n > 0) {} };
    // When the time is over the reset is right.
    let _ = tokio::time::timeout(LINGER, reading).await;
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.lingers
            && (self.half_closed || self.gentle)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            // What was to be said has been handed to the kernel; a peer that is gone need not be told.
            let ended =
                |socket: SockRef<'_>| self.half_closed || socket.shutdown(std::net::Shutdown::Write).is_ok();
            match std::mem::replace(&mut self.transport, Transport::Closed) {
                Transport::Tcp(tcp) if ended(SockRef::from(&tcp)) => drop(runtime.spawn(linger(tcp))),
                Transport::Pipe(pipe) if ended(SockRef::from(&pipe)) => drop(runtime.spawn(linger(pipe))),
                _ => {}
            }
        }
    }
}

impl Stream {
    pub(crate) fn new(transport: Transport) -> Self {
        Self {
            transport,
            ahead: BytesMut::new(),
            received: ByteCounter::default(),
            sent: ByteCounter::default(),
            heard: Heard::default(),
            lingers: false,
            half_closed: false,
            guard: Guard::Nothing,
            gate: None,
            gentle: false,
            ended: None,
            interim: None,
            said: None,
        }
    }

    /// Sets this when the peer ends.
    pub(crate) fn tell_end(&mut self, ended: &Heard) {
        self.ended = Some(ended.clone());
    }

    /// Notes what an endpoint says before its answers.
    pub(crate) fn tell_said(&mut self, said: &Said) {
        self.said = Some(said.clone());
    }

    /// Has interim answers written whenever nothing else is left to write.
    pub(crate) fn insert(&mut self, from: Interim) {
        self.interim = Some(Box::new(Inserted { from, begun: Bytes::new() }));
    }

    /// Writes the rest of what was begun to be inserted.
    #[inline]
    fn poll_inserted(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(inserted) = &mut self.interim
            && !inserted.begun.is_empty()
        {
            let begun = std::mem::take(&mut inserted.begun);
            let written = self.poll_transport_write(cx, &begun);
            let n = if let Poll::Ready(Ok(n)) = written { n } else { 0 };
            self.sent.add(n as u64);
            if let Some(inserted) = &mut self.interim {
                inserted.begun = begun.slice(n..);
                if inserted.begun.is_empty() {
                    inserted.from.written();
                }
            }
            match ready!(written) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_transport_write(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.transport {
            Transport::Tcp(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Transport::Pipe(pipe) => Pin::new(pipe).poll_write(cx, buf),
            Transport::Tls(tls) => Pin::new(tls).poll_write(cx, buf),
            Transport::Closed => Poll::Ready(Ok(0)),
            #[cfg(test)]
            Transport::Memory(pipe) => Pin::new(pipe).poll_write(cx, buf),
        }
    }

    /// Has what passes from here on looked at.
    pub(crate) fn guard_with(&mut self, guard: Guard) {
        self.guard = guard;
    }

    /// Has its first byte decide about it.
    pub(crate) fn gate_with(&mut self, gate: Gate) {
        self.gate = Some(Box::new(gate));
    }

    #[inline]
    fn poll_gate(&mut self, bytes: usize, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(gate) = &mut self.gate else { return Poll::Ready(Ok(())) };
        let passed = ready!(gate.poll_first(bytes, cx));
        self.gate = None;
        Poll::Ready(passed)
    }

    /// However this stream ends, what was sent is to arrive: for protocols that say themselves whether a message is whole.
    pub(crate) fn close_gently(&mut self) {
        self.gentle = true;
    }

    /// Closes as a socket closes whose bytes nobody has taken: with a reset, if the peer has sent any. Envoy only peeks at what it
    /// inspects, so that its clients see this when no filter chain is for them.
    pub(crate) fn abandon(mut self) {
        if !self.ahead.is_empty()
            && let Transport::Tcp(tcp) = &self.transport
        {
            // A socket that cannot be told closes as it would.
            let _told = SockRef::from(tcp).set_linger(Some(Duration::ZERO));
        }
        self.lingers = false;
    }

    /// A client's stream, which is closed with care.
    pub(crate) fn of_client(transport: Transport) -> Self {
        let mut stream = Self::new(transport);
        stream.lingers = true;
        stream
    }

    /// What comes out of TLS once hands are shaken.
    pub(crate) fn over_tls(tls: TlsStream<Stream>) -> Self {
        Self::new(Transport::Tls(Box::new(tls)))
    }

    /// Forgets bytes that were read ahead.
    pub(crate) fn skip(&mut self, n: usize) {
        self.ahead.advance(n);
    }

    /// Counts into these from now on; bytes read ahead count as received.
    pub(crate) fn count_into(&mut self, received: &ByteCounter, sent: &ByteCounter) {
        received.add(self.ahead.len() as u64);
        self.received = received.clone();
        self.sent = sent.clone();
    }

    /// Reads more bytes ahead without consuming them. `Ok(0)` means the peer has finished sending.
    pub(crate) async fn read_ahead(&mut self, at_most: usize) -> io::Result<usize> {
        let wanted = at_most.saturating_sub(self.ahead.len());
        self.ahead.reserve(wanted);
        let mut limited = (&mut self.ahead).limit(wanted);
        match &mut self.transport {
            Transport::Tcp(tcp) => tcp.read_buf(&mut limited).await,
            Transport::Pipe(pipe) => pipe.read_buf(&mut limited).await,
            Transport::Tls(tls) => without_notice(tls.read_buf(&mut limited).await),
            Transport::Closed => Ok(0),
            #[cfg(test)]
            Transport::Memory(pipe) => pipe.read_buf(&mut limited).await,
        }
    }

    /// Tells of everything that is read from here on.
    pub(crate) fn heard(&self) -> Heard {
        self.heard.clone()
    }

    /// The bytes read ahead so far.
    pub(crate) fn ahead(&self) -> &[u8] {
        &self.ahead
    }

    fn poll_transport_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.transport {
            Transport::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Transport::Pipe(pipe) => Pin::new(pipe).poll_read(cx, buf),
            Transport::Tls(tls) => Pin::new(tls).poll_read(cx, buf).map(without_notice),
            Transport::Closed => Poll::Ready(Ok(())),
            #[cfg(test)]
            Transport::Memory(pipe) => Pin::new(pipe).poll_read(cx, buf),
        }
    }
}

impl AsyncRead for Stream {
    #[inline]
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ahead.has_remaining() {
            self.heard.set(true);
            let n = self.ahead.len().min(buf.remaining());
            let this = &mut *self;
            ready!(this.poll_gate(this.ahead.len(), cx))?;
            this.guard.received(&mut this.ahead[..n])?;
            buf.put_slice(&this.ahead[..n]);
            self.ahead.advance(n);
            if self.ahead.is_empty() {
                self.ahead = BytesMut::new(); // gives the memory back
            }
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let read = ready!(self.poll_transport_read(cx, buf));
        let n = buf.filled().len() - before;
        if n == 0
            && let Some(ended) = &self.ended
        {
            ended.set(true);
        }
        read?;
        match self.poll_gate(n, cx) {
            Poll::Ready(passed) => passed?,
            Poll::Pending => {
                // The bytes wait here for the decision.
                self.ahead.extend_from_slice(&buf.filled()[before..]);
                self.received.add(n as u64);
                buf.set_filled(before);
                return Poll::Pending;
            }
        }
        if n == 0 {
            self.lingers = false; // the peer has finished
        } else {
            self.heard.set(true);
            self.said.iter().for_each(|said| said.look_at(&buf.filled()[before..]));
            self.guard.received(&mut buf.filled_mut()[before..])?;
        }
        self.received.add(n as u64);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    #[inline]
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_inserted(cx))?;
        let n = ready!(self.poll_transport_write(cx, buf))?;
        self.guard.sent(&buf[..n]);
        self.sent.add(n as u64);
        Poll::Ready(Ok(n))
    }

    #[inline]
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // The kernel's walk over a list of buffers costs more than a plain write, and more than one copy of a head and a small
        // body.
        if let [buf] = bufs {
            return self.poll_write(cx, buf);
        }
        let total: usize = bufs.iter().map(|buf| buf.len()).sum();
        if total <= SMALL_WRITE {
            let mut joined = SmallVec::<[u8; SMALL_WRITE]>::new();
            bufs.iter().for_each(|buf| joined.extend_from_slice(buf));
            return self.poll_write(cx, &joined);
        }
        ready!(self.poll_inserted(cx))?;
        let n = ready!(match &mut self.transport {
            Transport::Tcp(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Transport::Pipe(pipe) => Pin::new(pipe).poll_write_vectored(cx, bufs),
            Transport::Tls(tls) => Pin::new(tls).poll_write_vectored(cx, bufs),
            Transport::Closed => Poll::Ready(Ok(0)),
            #[cfg(test)]
            Transport::Memory(pipe) => Pin::new(pipe).poll_write_vectored(cx, bufs),
        })?;
        let mut left = n;
        for buf in bufs {
            let here = left.min(buf.len());
            self.guard.sent(&buf[..here]);
            left -= here;
        }
        self.sent.add(n as u64);
        Poll::Ready(Ok(n))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.transport {
            Transport::Tcp(tcp) => tcp.is_write_vectored(),
            Transport::Pipe(pipe) => pipe.is_write_vectored(),
            Transport::Tls(tls) => tls.is_write_vectored(),
            Transport::Closed => false,
            #[cfg(test)]
            Transport::Memory(pipe) => pipe.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Who flushes has written whole messages.
        if let Some(inserted) = &mut self.interim
            && inserted.begun.is_empty()
            && let Some(waiting) = inserted.from.take()
        {
            inserted.begun = waiting;
        }
        ready!(self.poll_inserted(cx))?;
        match &mut self.transport {
            Transport::Tcp(tcp) => Pin::new(tcp).poll_flush(cx),
            Transport::Pipe(pipe) => Pin::new(pipe).poll_flush(cx),
            Transport::Tls(tls) => Pin::new(tls).poll_flush(cx),
            Transport::Closed => Poll::Ready(Ok(())),
            #[cfg(test)]
            Transport::Memory(pipe) => Pin::new(pipe).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.half_closed = true;
        match &mut self.transport {
            Transport::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Transport::Pipe(pipe) => Pin::new(pipe).poll_shutdown(cx),
            Transport::Tls(tls) => Pin::new(tls).poll_shutdown(cx),
            Transport::Closed => Poll::Ready(Ok(())),
            #[cfg(test)]
            Transport::Memory(pipe) => Pin::new(pipe).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn bytes_read_ahead_are_read_again_and_everything_is_counted() {
        let (mut client, server) = tokio::io::duplex(64);
        client.write_all(b"GET / HTTP/1.1").await.unwrap();
        let mut stream = Stream::new(Transport::Memory(server));
        assert_eq!(stream.read_ahead(3).await.unwrap(), 3);
        assert_eq!(stream.ahead(), b"GET");
        let (received, sent) = (ByteCounter::default(), ByteCounter::default());
        stream.count_into(&received, &sent);
        let mut all = vec![0; 14];
        stream.read_exact(&mut all).await.unwrap();
        assert_eq!(all, b"GET / HTTP/1.1");
        stream.write_all(b"ok").await.unwrap();
        assert_eq!((received.get(), sent.get()), (14, 2));
    }
}
