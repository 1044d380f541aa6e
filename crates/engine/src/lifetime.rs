//! When a downstream HTTP connection ends: drained, idle, too old, late with a head, stalled, or when a request asked for it.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::Sleep;

use crate::body::ResponseBody;
use crate::context::HttpConnection;
use crate::signal::Watch;
use crate::stream::Stream;

/// How long an idle HTTP/1 connection may still bring a request when the proxy ends. When only its filter chain is gone, it has the
/// whole drain time, as with Envoy.
const IDLE_GRACE: Duration = Duration::from_millis(500);

/// How long a connection that was idle for too long may take to end.
const IDLE_END: Duration = Duration::from_secs(1);

/// What connections of both versions can do.
pub(crate) trait Serving: Future<Output = Result<(), Self::Error>> {
    type Error;

    /// No new requests; those running finish.
    fn finish(self: Pin<&mut Self>);
}

impl<S> Serving for http1::UpgradeableConnection<TokioIo<Stream>, S>
where
    S: hyper::service::HttpService<Incoming, ResBody = ResponseBody>,
    S::Error: Into<crate::body::BodyError>,
{
    type Error = hyper::Error;

    fn finish(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

/// A connection that finishes on drain, after idleness, or when a request asked for it.
pub(crate) struct Lifetime<C> {
    serving: Pin<Box<C>>,
    connection: Rc<HttpConnection>,
    /// The chain's end and the proxy's.
    watches: Option<[Watch; 2]>,
    finishing: bool,
    /// Next look at idleness; while finishing: the end.
    timer: Option<Pin<Box<Sleep>>>,
    /// HTTP/2.
    multiplexed: bool,
    /// How much longer an idle connection is kept although it drains, and whether because the proxy ends.
    grace: Option<(bool, Pin<Box<Sleep>>)>,
    /// When a head that has begun must have come.
    head: Option<Pin<Box<Sleep>>>,
    /// Next look at a client that takes nothing.
    stall: Option<Pin<Box<Sleep>>>,
}

impl<C: Serving> Lifetime<C> {
    pub(crate) fn new(serving: C, connection: Rc<HttpConnection>, multiplexed: bool) -> Self {
        let idle = connection.config.hcm.common.idle_timeout;
        let first = idle.into_iter().chain(connection.config.hcm.common.max_connection_duration).min();
        let timer = first.map(|first| Box::pin(tokio::time::sleep(first)));
        Self {
            serving: Box::pin(serving),
            connection,
            watches: None,
            finishing: false,
            timer,
            multiplexed,
            grace: None,
            head: None,
            stall: None,
        }
    }

    /// `limit`: when it is cut, finished or not.
    fn finish(&mut self, limit: Duration, cx: &mut Context<'_>) {
        self.finishing = true;
        self.serving.as_mut().finish();
        let mut timer = Box::pin(tokio::time::sleep(limit));
        // Registers the waker; it can't have elapsed.
        let _ = timer.as_mut().poll(cx);
        self.timer = Some(timer);
    }

    /// Whether no more requests are to be taken. A draining HTTP/1 connection on which nothing goes on is left alone for a moment: a
    /// request may be on its way, and would be lost. One that comes is served and ends the connection with its answer.
    fn is_to_finish(&mut self, cx: &mut Context<'_>) -> bool {
        let connection = &self.connection;
        // Told to finish, hyper would say so in an answer that agrees to another protocol.
        if connection.may_switch.get() {
            return false;
        }
        if !connection.drain.is_fired() {
            return connection.closing.get();
        }
        if self.multiplexed || connection.active.get() > 0 || connection.closing.get() {
            connection.stats.downstream_cx_drain_close.inc();
            return true;
        }
        let worker = &connection.worker;
        let ending = worker.draining.is_fired();
        let grace = if ending { IDLE_GRACE.min(worker.drain_time) } else { worker.drain_time };
        let fresh = || (ending, Box::pin(tokio::time::sleep(grace)));
        // The proxy may end while a connection waits for the end of its chain.
        let (for_ending, timer) = self.grace.get_or_insert_with(fresh);
        if *for_ending != ending {
            (*for_ending, *timer) = fresh();
        }
        let over = timer.as_mut().poll(cx).is_ready();
        if over {
            connection.stats.downstream_cx_drain_close.inc();
        }
        over
    }

    /// True when the head of an HTTP/1 request has begun and not come in time. A stream's idle time-out begins with the head, too.
    fn head_is_late(&mut self, cx: &mut Context<'_>) -> bool {
        let connection = &self.connection;
        let hcm = &connection.config.hcm;
        let limits = hcm.request_headers_timeout.into_iter().chain(hcm.stream_idle_timeout);
        let Some(limit) = limits.min() else { return false };
        if self.multiplexed || connection.active.get() > 0 || !connection.heard.get() {
            self.head = None;
            return false;
        }
        let head = self.head.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        let late = head.as_mut().poll(cx).is_ready();
        if late && hcm.request_headers_timeout == Some(limit) {
            connection.stats.downstream_rq_header_timeout.inc();
        } else if late {
            connection.stats.downstream_rq_idle_timeout.inc();
        }
        late
    }

    /// True when the client has not taken what is there for it in time. hyper asks for more of an answer only when there is room,
    /// so that the answer itself can't notice.
    fn is_stalled(&mut self, cx: &mut Context<'_>) -> bool {
        loop {
            let Some(by) = self.connection.take_by.get() else { return false };
            let stall = self.stall.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(by.into())));
            if stall.as_mut().poll(cx).is_pending() {
                return false;
            }
            if by <= Instant::now() {
                self.connection.stalled.set(true);
                self.connection.stats.downstream_rq_idle_timeout.inc();
                return true;
            }
            // Something was taken since it was set.
            stall.as_mut().reset(by.into());
        }
    }

    /// True when the connection is to be cut.
    fn on_timer(&mut self, cx: &mut Context<'_>) -> bool {
        if self.finishing {
            return true;
        }
        let common = &self.connection.config.hcm.common;
        let left = common
            .max_connection_duration
            .map(|most| most.saturating_sub(self.connection.info.started.elapsed()));
        if left.is_some_and(|left| left.is_zero()) {
            self.connection.stats.downstream_cx_max_duration_reached.inc();
            self.finish(self.connection.worker.drain_time, cx);
            return false;
        }
        let idle = common.idle_timeout.unwrap_or(Duration::MAX);
        let quiet = self.connection.quiet_since.get().elapsed();
        if self.connection.active.get() == 0 && quiet >= idle {
            self.connection.stats.downstream_cx_idle_timeout.inc();
            // Nothing goes on that could be waited for, a head that never ends at most.
            self.finish(IDLE_END.min(self.connection.worker.drain_time), cx);
            return false;
        }
        let wait = if self.connection.active.get() == 0 { idle.saturating_sub(quiet) } else { idle };
        let wait = left.map_or(wait, |left| left.min(wait));
        if let Some(timer) = &mut self.timer {
            timer.as_mut().reset(tokio::time::Instant::now() + wait);
            let _ = timer.as_mut().poll(cx);
        }
        false
    }
}

impl<C: Serving> Future for Lifetime<C> {
    type Output = Result<(), C::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        if this.watches.is_none() {
            // First poll: from here on drain and time wake this task.
            let connection = &this.connection;
            let signals = [&connection.drain, &connection.worker.draining];
            this.watches = Some(signals.map(|signal| signal.watch(cx.waker())));
            if let Some(interim) = &connection.interim {
                interim.wake_with(cx.waker());
            }
            if let Some(timer) = &mut this.timer {
                let _ = timer.as_mut().poll(cx);
            }
        }
        loop {
            if this.connection.cut.is_asked(cx) {
                return Poll::Ready(Ok(()));
            }
            if let Poll::Ready(result) = this.serving.as_mut().poll(cx) {
                return Poll::Ready(result);
            }
            if !this.finishing && this.is_to_finish(cx) {
                this.finish(this.connection.worker.drain_time, cx);
                continue; // an idle connection ends now
            }
            if this.timer.as_ref().is_some_and(|timer| timer.is_elapsed()) {
                if this.on_timer(cx) {
                    return Poll::Ready(Ok(()));
                }
                if this.finishing {
                    continue;
                }
            }
            return if this.is_stalled(cx) || this.head_is_late(cx) {
                Poll::Ready(Ok(()))
            } else {
                Poll::Pending
            };
        }
    }
}
