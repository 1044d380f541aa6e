//! The body of an answer on its way from upstream to the client, and the end of the request with its last byte.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::Version;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Sleep;

use crate::answer::UpstreamStream;
use crate::body::BodyError;
use crate::context::RequestContext;
use crate::failure::{Flags, Reset};
use crate::filters::throttle::Throttle;
use crate::incoming::Incoming;
use crate::{filters, upstream};

/// See the module. Dropped before the end, it cancels the exchange and logs that the client went away.
pub(crate) struct ResponseStream {
    body: Incoming,
    /// `None` once the answer has ended.
    open: Option<Open>,
    throttle: Option<Box<Throttle>>,
    timer: Option<Pin<Box<Sleep>>>,
    last_frame: Option<Instant>,
}

struct Open {
    stream: UpstreamStream,
    context: Box<RequestContext>,
}

impl ResponseStream {
    pub(crate) fn new(body: Incoming, stream: UpstreamStream, context: Box<RequestContext>) -> Self {
        let throttle = filters::throttle(&context).map(Box::new);
        let open = Some(Open { stream, context });
        let mut this = Self { body, open, throttle, timer: None, last_frame: None };
        if this.body.is_end_stream() {
            this.end(None);
        }
        this
    }

    fn comes_over_http1(&self) -> bool {
        let version = self.open.as_ref().and_then(|open| open.context.upstream_version);
        version.is_some_and(|version| version < Version::HTTP_2)
    }

    /// The answer is over: cleanly, or with a flag and detail.
    fn end(&mut self, trouble: Option<(Flags, &'static str)>) {
        let Some(mut open) = self.open.take() else { return };
        open.context.connection.expect_progress(None);
        open.stream.end(trouble.is_none());
        if let Some((flag, details)) = trouble {
            open.context.flags.insert(flag);
            open.context.details = details.into();
            open.context.broken_off();
        }
        open.context.completed();
        self.timer = None;
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = match &mut self.throttle {
            None => Pin::new(&mut self.body).poll_frame(cx),
            Some(throttle) => throttle.poll_frame(&mut self.body, cx),
        };
        match polled {
            // HTTP/1's are not passed on (`enable_trailers`), not over HTTP/2 either.
            Poll::Ready(Some(Ok(frame))) if frame.is_trailers() && self.comes_over_http1() => {
                self.end(None);
                Poll::Ready(None)
            }
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(open) = &mut self.open {
                    if let Some(data) = frame.data_ref() {
                        open.context.bytes_sent += data.len() as u64;
                    } else if let Some(trailers) =
                        frame.trailers_ref().filter(|_| open.context.connection.config.logs)
                    {
                        open.context.response_trailers = Some(Box::new(trailers.clone()));
                    }
                    if open.stream.per_try_idle.is_some() {
                        self.last_frame = Some(Instant::now());
                    }
                    if let Some(idle) = open.stream.idle_timeout {
                        let now = Instant::now();
                        self.last_frame = Some(now);
                        open.context.connection.expect_progress(Some(now + idle));
                    }
                }
                // Nothing follows trailers, and a client that doesn't take them is not asked for more. Nor is an HTTP/1 client once it has
                // the length it was promised, though HTTP/2's end may be a frame of its own.
                let over = |open: &Open| {
                    open.context.version < Version::HTTP_2 && self.size_hint().exact() == Some(0)
                };
                if frame.is_trailers() || self.is_end_stream() || self.open.as_ref().is_some_and(over) {
                    self.end(None);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                let http2 = self
                    .open
                    .as_ref()
                    .is_some_and(|open| open.context.upstream_version == Some(Version::HTTP_2));
                let reset = upstream::classify(&error, false);
                let lease = self.open.as_ref().and_then(|open| open.stream.lease.as_ref());
                // A length or chunk that is not fulfilled is a breach of HTTP/1.
                let reset = if reset == Reset::Terminated && !http2 { Reset::Protocol } else { reset };
                lease.into_iter().for_each(|lease| lease.broke(&reset));
                let trouble = match reset {
                    Reset::Terminated => (
                        Flags::UPSTREAM_CONNECTION_TERMINATION,
                        "upstream_reset_after_response_started{connection_termination}",
                    ),
                    Reset::Protocol => (
                        Flags::UPSTREAM_PROTOCOL_ERROR,
                        "upstream_reset_after_response_started{protocol_error}",
                    ),
                    _ => {
                        (Flags::UPSTREAM_REMOTE_RESET, "upstream_reset_after_response_started{remote_reset}")
                    }
                };
                self.end(Some(trouble));
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Ready(None) => {
                self.end(None);
                Poll::Ready(None)
            }
            Poll::Pending => self.poll_limits(cx),
        }
    }

    /// Nothing to send now: has a time limit passed?
    fn poll_limits(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(open) = &self.open else { return Poll::Pending };
        // The client has taken everything; it is upstream that is waited for.
        open.context.connection.take_by.set(None);
        let (deadline, idle) = (open.stream.deadline, open.stream.idle_timeout);
        let (stream_end, per_try_idle) = (open.stream.stream_end, open.stream.per_try_idle);
        let limited = [deadline, stream_end].iter().any(Option::is_some);
        if !limited && idle.is_none() && per_try_idle.is_none() {
            return Poll::Pending;
        }
        loop {
            let quiet_since = *self.last_frame.get_or_insert_with(Instant::now);
            let idle_end = idle.map(|idle| quiet_since + idle);
            let try_end = per_try_idle.map(|idle| quiet_since + idle);
            let Some(next) = [deadline, idle_end, try_end, stream_end].into_iter().flatten().min() else {
                return Poll::Pending;
            };
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(next.into())));
            if timer.as_mut().poll(cx).is_pending() {
                // It may fire early, after newer frames; then it is set anew below.
                return Poll::Pending;
            }
            if next > Instant::now() {
                timer.as_mut().reset(next.into());
                continue;
            }
            let (flag, details) = if deadline == Some(next) {
                open.stream.timed_out();
                (Flags::UPSTREAM_REQUEST_TIMEOUT, "response_timeout")
            } else if stream_end == Some(next) {
                (Flags::UPSTREAM_MAX_STREAM_DURATION, "upstream_max_stream_duration_reached")
            } else if try_end == Some(next) {
                open.stream.idled();
                (Flags::UPSTREAM_REQUEST_TIMEOUT, "upstream_per_try_idle_timeout")
            } else {
                (Flags::STREAM_IDLE_TIMEOUT, "stream_idle_timeout")
            };
            self.end(Some((flag, details)));
            return Poll::Ready(Some(Err(details.into())));
        }
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.body.is_end_stream() && self.throttle.as_ref().is_none_or(|throttle| throttle.is_empty())
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        match (&self.throttle, self.body.size_hint().exact()) {
            (None, _) => self.body.size_hint(),
            (Some(throttle), Some(coming)) => SizeHint::with_exact(throttle.held() + coming),
            (Some(_), None) => SizeHint::default(),
        }
    }
}
