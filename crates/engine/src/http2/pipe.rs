//! Sends a body over a stream, as fast as the other side takes it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body;

use crate::body::BodyError;
use crate::incoming::StreamError;

/// Ready when all of it has been handed over, or the stream is over. A body that breaks off resets its stream.
pub(super) struct Pipe<B> {
    stream: SendStream<Bytes>,
    body: B,
    /// Data that there is no room for yet, and whether it is the last.
    held: Option<(Bytes, bool)>,
}

/// The stream is over before its body; why, if the other side has said so.
#[derive(Clone, Copy)]
pub(super) struct Cut(pub(super) Option<Reason>);

impl From<h2::Error> for Cut {
    fn from(error: h2::Error) -> Self {
        Self(error.reason().filter(|_| error.is_remote() && error.is_reset()))
    }
}

impl<B: Body<Data = Bytes, Error = BodyError> + Unpin> Pipe<B> {
    pub(super) fn new(stream: SendStream<Bytes>, body: B) -> Self {
        Self { stream, body, held: None }
    }

    /// `true`: that was the last.
    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, Cut>> {
        if self.held.is_some() {
            while self.stream.capacity() == 0 {
                ready!(self.stream.poll_capacity(cx)).ok_or(Cut(None))??;
            }
        }
        let Some((data, last)) = self.held.take() else { return Poll::Ready(Ok(false)) };
        self.stream.send_data(data, last)?;
        Poll::Ready(Ok(last))
    }

    fn poll_all(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Cut>> {
        loop {
            if let Poll::Ready(reason) = self.stream.poll_reset(cx)? {
                return Poll::Ready(Err(Cut(Some(reason))));
            }
            if ready!(self.poll_held(cx))? {
                return Poll::Ready(Ok(()));
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if data.is_empty() => {
                        let last = self.body.is_end_stream();
                        self.stream.send_data(data, last)?;
                        if last {
                            return Poll::Ready(Ok(()));
                        }
                    }
                    Ok(data) => {
                        // Room is asked for only now that there is something to send: room that is kept for later is missing elsewhere on
                        // the connection. h2 asks for the rest when it has the data.
                        self.stream.reserve_capacity(1);
                        self.held = Some((data, self.body.is_end_stream()));
                    }
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            self.stream.reserve_capacity(0);
                            self.stream.send_trailers(trailers)?;
                            return Poll::Ready(Ok(()));
                        }
                    }
                },
                Some(Err(error)) => {
                    self.stream.send_reset(reason(&error));
                    return Poll::Ready(Err(Cut(None)));
                }
                None => {
                    self.stream.send_data(Bytes::new(), true)?;
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

/// Why a stream is reset whose body broke off: for the same reason as the stream it comes from.
fn reason(error: &BodyError) -> Reason {
    match error.downcast_ref::<StreamError>() {
        Some(StreamError::Http2(error)) => error.reason().unwrap_or(Reason::INTERNAL_ERROR),
        _ => Reason::INTERNAL_ERROR,
    }
}

impl<B: Body<Data = Bytes, Error = BodyError> + Unpin> Future for Pipe<B> {
    type Output = Result<(), Cut>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.poll_all(cx)
    }
}
