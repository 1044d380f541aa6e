//! Moves bytes between a client and an endpoint, for TCP and for upgraded connections.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes in flight each way.
const BUFFER: usize = 16 * 1024;

/// What has been moved so far.
#[derive(Debug, Default)]
pub(crate) struct Moved {
    /// From the client to the endpoint.
    pub(crate) received: Cell<u64>,
    pub(crate) sent: Cell<u64>,
    /// The client stopped sending while the endpoint had not.
    pub(crate) client_first: Cell<bool>,
}

/// One direction. The buffer is taken only while bytes wait to be written, so an idle connection holds none.
#[derive(Default)]
struct Direction {
    buffer: Vec<u8>,
    start: usize,
    state: State,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// The reader has ended; the writer is to be told.
    Ending,
    Done,
}

impl Direction {
    /// Moves what can be moved; ready when this direction is finished.
    fn poll_move(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        count: &Cell<u64>,
        active: &mut bool,
    ) -> Poll<io::Result<()>> {
        loop {
            while self.start < self.buffer.len() {
                let n = ready!(Pin::new(&mut *to).poll_write(cx, &self.buffer[self.start..]))?;
                if n == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.start += n;
                count.set(count.get() + n as u64);
                *active = true;
            }
            match self.state {
                State::Done => return Poll::Ready(Ok(())),
                State::Ending => {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.state = State::Done;
                    self.buffer = Vec::new();
                    return Poll::Ready(Ok(()));
                }
                State::Open => {}
            }
            self.start = 0;
            self.buffer.resize(BUFFER, 0);
            let mut space = ReadBuf::new(&mut self.buffer);
            let read = Pin::new(&mut *from).poll_read(cx, &mut space);
            let n = space.filled().len();
            self.buffer.truncate(n);
            match read {
                Poll::Pending => {
                    self.buffer = Vec::new();
                    return Poll::Pending;
                }
                Poll::Ready(result) => result?,
            }
            *active = true;
            if n == 0 {
                self.state = State::Ending;
            }
        }
    }
}

/// Moves bytes both ways until both directions have ended; fails with `TimedOut` when nothing moved for too long. A side that
/// stops sending is told so to the other (half-close).
pub(crate) struct Mover<'a, A, B> {
    client: &'a mut A,
    server: &'a mut B,
    up: Direction,
    down: Direction,
    idle: Option<(Duration, Pin<Box<tokio::time::Sleep>>)>,
    last_moved: Instant,
    moved: &'a Moved,
}

impl<'a, A, B> Mover<'a, A, B> {
    pub(crate) fn new(
        client: &'a mut A,
        server: &'a mut B,
        idle: Option<Duration>,
        moved: &'a Moved,
    ) -> Self {
        let idle = idle.map(|idle| (idle, Box::pin(tokio::time::sleep(idle))));
        let now = Instant::now();
        Self {
            client,
            server,
            up: Direction::default(),
            down: Direction::default(),
            idle,
            last_moved: now,
            moved,
        }
    }
}

impl<A, B> Future for Mover<'_, A, B>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let mut active = false;
        let up = this.up.poll_move(cx, this.client, this.server, &this.moved.received, &mut active)?;
        let down = this.down.poll_move(cx, this.server, this.client, &this.moved.sent, &mut active)?;
        if up.is_ready() && down.is_pending() {
            this.moved.client_first.set(true);
        }
        if up.is_ready() && down.is_ready() {
            return Poll::Ready(Ok(()));
        }
        let Some((limit, timer)) = &mut this.idle else { return Poll::Pending };
        if active {
            this.last_moved = Instant::now();
        }
        while timer.as_mut().poll(cx).is_ready() {
            let end = this.last_moved + *limit;
            if end <= Instant::now() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            timer.as_mut().reset(end.into());
        }
        Poll::Pending
    }
}
