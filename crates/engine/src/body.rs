//! Bodies, as enums: nothing is boxed for its type alone.

use std::cell::{Cell, RefCell};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body::{Body, Frame, SizeHint};

use crate::failure::Failure;
use crate::filters::throttle::Throttle;
use crate::incoming::{Incoming, StreamError};
use crate::mirror::Tap;
use crate::response_stream::ResponseStream;

/// Error of a body: the other side's stream broke.
pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// What is sent to the client.
pub(crate) enum ResponseBody {
    Empty,
    /// A local reply's text.
    Text(Option<Bytes>),
    /// A local reply that may pass only so fast.
    Slow(Box<(Throttle, ResponseBody)>),
    /// What comes from upstream.
    Stream(Box<ResponseStream>),
}

impl ResponseBody {
    /// A body with a text; an empty one has no frame.
    pub(crate) fn text(text: Bytes) -> Self {
        if text.is_empty() { Self::Empty } else { Self::Text(Some(text)) }
    }

    /// The same body, passing only so fast.
    pub(crate) fn slowed(self, throttle: Throttle) -> Self {
        match self {
            Self::Text(_) => Self::Slow(Box::new((throttle, self))),
            other => other,
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    #[inline]
    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Text(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Self::Slow(slow) => {
                let (throttle, body) = &mut **slow;
                throttle.poll_frame(body, cx)
            }
            Self::Stream(stream) => stream.poll_frame(cx),
        }
    }

    #[inline]
    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Text(text) => text.is_none(),
            Self::Slow(slow) => slow.0.is_empty() && slow.1.is_end_stream(),
            Self::Stream(stream) => stream.is_end_stream(),
        }
    }

    #[inline]
    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty | Self::Text(None) => SizeHint::with_exact(0),
            Self::Text(Some(text)) => SizeHint::with_exact(text.len() as u64),
            // A text has one frame, which is held back in part or not at all.
            Self::Slow(slow) => {
                SizeHint::with_exact(slow.0.held() + slow.1.size_hint().exact().unwrap_or_default())
            }
            Self::Stream(stream) => stream.size_hint(),
        }
    }
}

/// What is sent upstream.
pub(crate) enum RequestBody {
    Empty,
    Shared(SharedBody),
    /// A mirror's.
    Tapped(Rc<Tap>),
    /// All of it, of a request of our own.
    Whole(Option<Bytes>),
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    #[inline]
    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Shared(body) => body.poll_frame(cx),
            Self::Tapped(tap) => tap.poll_frame(cx),
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    #[inline]
    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Shared(body) => body.is_end_stream(),
            Self::Tapped(tap) => tap.is_end_stream(),
            Self::Whole(bytes) => bytes.is_none(),
        }
    }

    #[inline]
    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Shared(body) => body.size_hint(),
            Self::Tapped(_) => SizeHint::default(),
            // What there is to say of its length is in its headers.
            Self::Whole(_) => SizeHint::default(),
        }
    }
}

/// The client's body with a memory, so that a further attempt can send it again. Streaming: an attempt reads on from the
/// client when it has sent what earlier attempts read. Once more than `limit` bytes came, the memory is dropped and no
/// further attempt is possible.
pub(crate) struct RequestSource {
    incoming: RefCell<Incoming>,
    kept: RefCell<Vec<Bytes>>,
    trailers: RefCell<Option<HeaderMap>>,
    kept_bytes: Cell<usize>,
    limit: Cell<usize>,
    /// False once bytes were forgotten.
    replayable: Cell<bool>,
    received: Cell<u64>,
    state: Cell<SourceState>,
    /// The client is there and its body is not proper HTTP.
    malformed: Cell<bool>,
    most_trailers: Option<u32>,
    /// Who waits for the end of the body.
    end_waker: RefCell<Option<Waker>>,
    /// Who waits for more of it.
    attempt_waker: RefCell<Option<Waker>>,
    /// Mirrors that read along.
    taps: RefCell<Vec<Rc<Tap>>>,
    /// The request goes on without it.
    discarded: Cell<bool>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum SourceState {
    Open,
    Ended,
    Failed,
}

impl RequestSource {
    /// `limit`: bytes kept for further attempts; 0 keeps nothing. `most_trailers`: an HTTP/2 request with more is reset.
    pub(crate) fn new(incoming: Incoming, limit: usize, most_trailers: Option<u32>) -> Rc<Self> {
        let ended = incoming.is_end_stream();
        Rc::new(Self {
            incoming: RefCell::new(incoming),
            kept: RefCell::default(),
            trailers: RefCell::default(),
            kept_bytes: Cell::new(0),
            limit: Cell::new(limit),
            replayable: Cell::new(true),
            received: Cell::new(0),
            state: Cell::new(if ended { SourceState::Ended } else { SourceState::Open }),
            malformed: Cell::new(false),
            most_trailers,
            end_waker: RefCell::default(),
            attempt_waker: RefCell::default(),
            taps: RefCell::default(),
            discarded: Cell::new(false),
        })
    }

    /// A view for a mirror: what has come is there at once, the rest as it comes.
    pub(crate) fn tap(&self) -> Rc<Tap> {
        let tap = Tap::new();
        self.kept.borrow().iter().for_each(|data| tap.push(data));
        self.taps.borrow_mut().push(tap.clone());
        tap
    }

    /// Forgets a body that has come: the request goes on without one.
    pub(crate) fn discard(&self) {
        self.kept.borrow_mut().clear();
        self.kept_bytes.set(0);
        self.discarded.set(true);
        *self.trailers.borrow_mut() = None;
    }

    /// True when there is nothing to send.
    pub(crate) fn is_empty(&self) -> bool {
        self.ended() && (self.received() == 0 || self.discarded.get()) && self.no_trailers()
    }

    /// Lowers how many bytes are kept from here on.
    pub(crate) fn keep_at_most(&self, limit: usize) {
        self.limit.set(self.limit.get().min(limit));
    }

    /// Receives until so many bytes have come or the body is over, and keeps them. True when it is over.
    pub(crate) async fn receive(self: &Rc<Self>, bytes: u64) -> Result<bool, Failure> {
        let _keeps = KeepsAll::new(self);
        let mut attempt = self.attempt();
        while !self.ended() && self.received() < bytes {
            let frame = std::future::poll_fn(|cx| attempt.poll_frame(cx)).await;
            if let Some(Err(_)) = frame {
                return Err(self.failure());
            }
        }
        Ok(self.ended())
    }

    /// Takes in what has come and nobody has asked for, about so many bytes at most.
    pub(crate) async fn take_in(self: &Rc<Self>, most: u64) {
        let mut receiving = pin!(self.receive(most));
        // An HTTP/1 connection reads on when it has been asked to and has its turn again.
        let mut turns = 0..4;
        std::future::poll_fn(|cx| {
            if receiving.as_mut().poll(cx).is_ready() || turns.next().is_none() {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    /// What has come and is kept, up to so many bytes.
    pub(crate) fn kept(&self, most: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.kept_bytes.get().min(most));
        for chunk in self.kept.borrow().iter() {
            let room = most - out.len();
            out.extend_from_slice(&chunk[..chunk.len().min(room)]);
        }
        out
    }

    /// True while another attempt could send the whole body.
    pub(crate) fn replayable(&self) -> bool {
        self.replayable.get() && self.state.get() != SourceState::Failed
    }

    /// True once the whole body came.
    pub(crate) fn ended(&self) -> bool {
        self.state.get() == SourceState::Ended
    }

    /// The same, though nobody may have asked for the end: whoever sends a body of known length stops at its last byte.
    pub(crate) fn end_has_come(&self) -> bool {
        let incoming = self.incoming.borrow();
        let nothing_left = || incoming.is_end_stream() || incoming.size_hint().exact() == Some(0);
        self.ended() || (self.state.get() == SourceState::Open && nothing_left())
    }

    /// True once the body broke off.
    pub(crate) fn failed(&self) -> bool {
        self.state.get() == SourceState::Failed
    }

    /// What a body that broke off means for its request.
    pub(crate) fn failure(&self) -> Failure {
        if self.malformed.get() && self.most_trailers.is_some() {
            Failure::Reset(h2::Reason::INTERNAL_ERROR, "http2.too_many_headers")
        } else if self.malformed.get() {
            Failure::Malformed(StatusCode::BAD_REQUEST, "http1.codec_error")
        } else {
            Failure::ClientGone
        }
    }

    /// Nobody wants the rest: whoever sends it on ends, and with it the connection it goes over.
    pub(crate) fn abandon(&self) {
        if self.state.get() == SourceState::Open {
            self.close(SourceState::Failed);
            if let Some(waker) = self.attempt_waker.borrow_mut().take() {
                waker.wake();
            }
        }
    }

    /// True when the body ended without trailers.
    pub(crate) fn no_trailers(&self) -> bool {
        self.trailers.borrow().is_none()
    }

    /// Body bytes received so far.
    pub(crate) fn received(&self) -> u64 {
        self.received.get()
    }

    /// Bytes that came after an upgrade belong to the request, too.
    pub(crate) fn count(&self, bytes: u64) {
        self.received.set(self.received.get() + bytes);
    }

    /// Waits for the end of the body (or its failure).
    pub(crate) async fn end(&self) {
        std::future::poll_fn(|cx| {
            if self.state.get() == SourceState::Open {
                *self.end_waker.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        })
        .await
    }

    /// The body for one attempt, from the beginning.
    pub(crate) fn attempt(self: &Rc<Self>) -> SharedBody {
        SharedBody { source: self.clone(), next: 0, trailers_sent: false }
    }

    /// What one attempt sends.
    pub(crate) fn body(self: &Rc<Self>) -> RequestBody {
        if self.is_empty() { RequestBody::Empty } else { RequestBody::Shared(self.attempt()) }
    }

    fn close(&self, state: SourceState) {
        self.state.set(state);
        for tap in self.taps.take() {
            tap.end(state == SourceState::Ended);
        }
        if let Some(waker) = self.end_waker.borrow_mut().take() {
            waker.wake();
        }
    }

    fn keep(&self, data: &Bytes) {
        self.received.set(self.received.get() + data.len() as u64);
        self.taps.borrow().iter().for_each(|tap| tap.push(data));
        if !self.replayable.get() {
            return;
        }
        let total = self.kept_bytes.get() + data.len();
        if total > self.limit.get() {
            self.replayable.set(false);
            self.kept.borrow_mut().clear();
        } else {
            self.kept_bytes.set(total);
            self.kept.borrow_mut().push(data.clone());
        }
    }
}

impl Drop for RequestSource {
    fn drop(&mut self) {
        // The request is over before its body came: so are its copies.
        self.taps.take().iter().for_each(|tap| tap.end(false));
    }
}

/// Nothing that comes is forgotten until this is dropped, nor what has come until then.
struct KeepsAll<'a> {
    source: &'a RequestSource,
    before: usize,
}

impl<'a> KeepsAll<'a> {
    fn new(source: &'a RequestSource) -> Self {
        Self { source, before: source.limit.replace(usize::MAX) }
    }
}

impl Drop for KeepsAll<'_> {
    fn drop(&mut self) {
        self.source.limit.set(self.before);
    }
}

/// Whether the client's bytes are wrong, as against missing.
fn is_malformed(error: &StreamError) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<std::io::Error>());
    cause.is_some_and(|cause| {
        matches!(cause.kind(), std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData)
    })
}

/// One attempt's view of a [`RequestSource`].
pub(crate) struct SharedBody {
    source: Rc<RequestSource>,
    /// Next kept chunk to send.
    next: usize,
    trailers_sent: bool,
}

impl SharedBody {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let source = &*self.source;
        if source.replayable.get()
            && let Some(chunk) = source.kept.borrow().get(self.next)
        {
            self.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(chunk.clone()))));
        }
        match source.state.get() {
            SourceState::Failed => return Poll::Ready(Some(Err("the client's body broke off".into()))),
            SourceState::Ended => {
                let trailers = (!self.trailers_sent).then(|| source.trailers.borrow().clone()).flatten();
                self.trailers_sent = true;
                return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
            }
            SourceState::Open => {}
        }
        let polled = {
            let mut incoming = source.incoming.borrow_mut();
            let Poll::Ready(frame) = Pin::new(&mut *incoming).poll_frame(cx) else {
                *source.attempt_waker.borrow_mut() = Some(cx.waker().clone());
                return Poll::Pending;
            };
            (frame, incoming.is_end_stream())
        };
        match polled {
            (None, _) => {
                source.close(SourceState::Ended);
                Poll::Ready(None)
            }
            (Some(Err(error)), _) => {
                source.malformed.set(source.most_trailers.is_none() && is_malformed(&error));
                source.close(SourceState::Failed);
                Poll::Ready(Some(Err(error.into())))
            }
            (Some(Ok(frame)), ended) => {
                if let Some(data) = frame.data_ref() {
                    source.keep(data);
                    self.next += 1;
                } else if let Some(trailers) = frame.trailers_ref() {
                    // HTTP/1's are not passed on (`enable_trailers`), not over HTTP/2 either.
                    if source.most_trailers.is_none() {
                        source.close(SourceState::Ended);
                        return Poll::Ready(None);
                    }
                    if source.most_trailers.is_some_and(|most| trailers.len() > most as usize) {
                        source.malformed.set(true);
                        source.close(SourceState::Failed);
                        return Poll::Ready(Some(Err("the client sends too many trailers".into())));
                    }
                    source.taps.borrow().iter().for_each(|tap| tap.trailers(trailers));
                    *source.trailers.borrow_mut() = Some(trailers.clone());
                    self.trailers_sent = true;
                }
                // Nothing follows trailers.
                if ended || frame.is_trailers() {
                    source.close(SourceState::Ended);
                }
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let source = &*self.source;
        source.ended()
            && (self.trailers_sent || source.trailers.borrow().is_none())
            && (!source.replayable.get() || self.next >= source.kept.borrow().len())
    }

    fn size_hint(&self) -> SizeHint {
        // Only the first attempt may rely on the client's own framing; a replay knows the size when all was kept.
        if self.next == 0 && self.source.received() == 0 {
            self.source.incoming.borrow().size_hint()
        } else if self.source.replayable.get()
            && self.source.ended()
            && self.source.trailers.borrow().is_none()
            && self.next == 0
        {
            SizeHint::with_exact(self.source.kept_bytes.get() as u64)
        } else {
            SizeHint::default()
        }
    }
}
