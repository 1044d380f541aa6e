//! Step 9's clocks: how long one attempt may take, and what ended it.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::{Duration, Instant};

use crate::body::RequestSource;
use crate::interim::{Interim, Said};
use crate::timer::until;

/// How a wait ended without a result.
pub(crate) enum TimedOut {
    Overall,
    PerTry,
    PerTryIdle,
    Idle,
    StreamEnd,
}

/// What bounds an attempt.
pub(crate) struct Limits<'a> {
    pub(crate) timeout: Option<Duration>,
    pub(crate) deadline: Option<Instant>,
    pub(crate) per_try: Option<Duration>,
    pub(crate) per_try_idle: Option<Duration>,
    pub(crate) idle: Option<Duration>,
    pub(crate) stream_end: Option<Instant>,
    /// Where what the endpoint says before its answer is passed on to: after that, the try has no time-out.
    pub(crate) interim: Option<&'a Interim>,
    /// A try with clocks of its own. `None`: it has none, and there is time left.
    pub(crate) clocked: Option<&'a Clocked>,
}

/// What is known of a try with clocks of its own.
#[derive(Default)]
pub(crate) struct Clocked {
    /// When it got its connection: its clocks run from then on.
    pub(crate) connected: Cell<Option<Instant>>,
    /// What the endpoint says before its answer, where it is not passed on.
    pub(crate) said: RefCell<Option<Said>>,
}

impl Limits<'_> {
    /// Whether the endpoint has said something.
    fn is_answered(&self) -> bool {
        let noted =
            |clocked: &Clocked| clocked.said.borrow().as_ref().is_some_and(|said| said.status().is_some());
        self.interim.is_some_and(|interim| interim.came().is_some()) || self.clocked.is_some_and(noted)
    }

    fn are_none(&self) -> bool {
        self.stream_end.is_none()
            && [self.timeout, self.per_try, self.per_try_idle, self.idle].iter().all(Option::is_none)
    }

    /// Starts the clocks: the end of all tries, and what comes first.
    fn begin(&self, now: Instant) -> (Option<Instant>, Option<(Instant, TimedOut)>) {
        let deadline = self.deadline.or(self.timeout.map(|timeout| now + timeout));
        let ends = [
            deadline.map(|at| (at, TimedOut::Overall)),
            self.per_try.map(|limit| (now + limit, TimedOut::PerTry)),
            self.per_try_idle.map(|limit| (now + limit, TimedOut::PerTryIdle)),
            self.idle.map(|limit| (now + limit, TimedOut::Idle)),
            self.stream_end.map(|at| (at, TimedOut::StreamEnd)),
        ];
        (deadline, ends.into_iter().flatten().min_by_key(|(at, _)| *at))
    }
}

/// Outcome of [`wait`]; the deadline is set once the request has been received completely.
pub(crate) struct Waited<T> {
    pub(crate) result: Result<T, TimedOut>,
    pub(crate) deadline: Option<Instant>,
}

/// Waits within the limits. Their clocks start when the client has sent the whole request, as Envoy's do.
pub(crate) async fn wait<T>(
    source: &RequestSource,
    limits: &Limits<'_>,
    work: impl Future<Output = T>,
) -> Waited<T> {
    if limits.clocked.is_some() {
        return wait_connected(source, limits, Box::pin(work)).await;
    }
    let mut work = pin!(work);
    if limits.are_none() {
        return Waited { result: Ok(work.await), deadline: limits.deadline };
    }
    if !source.ended() {
        let first = first_of(work.as_mut(), source.end());
        match before_silence(Box::pin(first), source, limits.idle, limits.stream_end).await {
            Ok(Some(done)) => return Waited { result: Ok(done), deadline: limits.deadline },
            Ok(None) => {}
            Err(kind) => return Waited { result: Err(kind), deadline: limits.deadline },
        }
    }
    let now = Instant::now();
    let (deadline, first) = limits.begin(now);
    let result = match first {
        None => Ok(work.await),
        // The runtime's clock has ticks, in one of which an endpoint nearby may answer.
        Some((at, kind)) if at <= now => match poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx))).await {
            Poll::Ready(done) => Ok(done),
            Poll::Pending => Err(kind),
        },
        Some((at, kind)) => tokio::time::timeout_at(at.into(), work).await.map_err(|_| kind),
    };
    Waited { result, deadline }
}

/// Waits for a try with clocks of its own, which run from when it has a connection, or for one that has no time left.
fn wait_connected<'a, T: 'a>(
    source: &'a RequestSource,
    limits: &'a Limits<'a>,
    mut work: Pin<Box<dyn Future<Output = T> + 'a>>,
) -> Pin<Box<dyn Future<Output = Waited<T>> + 'a>> {
    Box::pin(async move {
        let mut left = Limits { clocked: None, ..*limits };
        loop {
            let waited = wait(source, &left, work.as_mut()).await;
            // An endpoint that has begun to answer may take its time, but not fall silent.
            let per_try = limits.per_try.filter(|_| !limits.is_answered());
            let own = match waited.result {
                Err(TimedOut::PerTry) => per_try,
                Err(TimedOut::PerTryIdle) => limits.per_try_idle,
                Err(TimedOut::StreamEnd) => return connect_at_least(limits, work.as_mut(), waited).await,
                _ => return waited,
            };
            let since = limits.clocked.and_then(|clocked| clocked.connected.get()).map(|at| at.elapsed());
            let rest = |limit: Option<Duration>| {
                limit.map(|limit| since.map_or(limit, |since| limit.saturating_sub(since)))
            };
            if rest(own).is_some_and(|rest| rest.is_zero()) {
                return waited;
            }
            left.deadline = waited.deadline;
            (left.per_try, left.per_try_idle) = (rest(per_try), rest(limits.per_try_idle));
        }
    })
}

/// Where no time is left, sockets are looked at once more before the clock, as Envoy does: an endpoint nearby is connected to by then.
async fn connect_at_least<T>(
    limits: &Limits<'_>,
    mut work: Pin<&mut (dyn Future<Output = T> + '_)>,
    waited: Waited<T>,
) -> Waited<T> {
    if limits.clocked.is_some_and(|clocked| clocked.connected.get().is_some()) {
        return waited;
    }
    tokio::task::yield_now().await;
    match poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx))).await {
        Poll::Ready(done) => Waited { result: Ok(done), deadline: waited.deadline },
        Poll::Pending => waited,
    }
}

/// The work's result, or `None` when the request's end comes first.
async fn first_of<T>(work: Pin<&mut impl Future<Output = T>>, end: impl Future<Output = ()>) -> Option<T> {
    tokio::select! {
        biased;
        done = work => Some(done),
        () = end => None,
    }
}

/// Waits while the client still sends: it must not fall silent, nor the stream last too long.
fn before_silence<'a, T>(
    work: Pin<Box<impl Future<Output = T> + 'a>>,
    source: &'a RequestSource,
    idle: Option<Duration>,
    stream_end: Option<Instant>,
) -> Pin<Box<impl Future<Output = Result<T, TimedOut>> + 'a>> {
    Box::pin(async move {
        tokio::select! {
            biased;
            done = work => Ok(done),
            () = silence(source, idle) => Err(TimedOut::Idle),
            () = until(stream_end) => Err(TimedOut::StreamEnd),
        }
    })
}

/// Ends when no byte of the request came for so long.
async fn silence(source: &RequestSource, limit: Option<Duration>) {
    let Some(limit) = limit else { return std::future::pending().await };
    loop {
        let before = source.received();
        tokio::time::sleep(limit).await;
        if source.received() == before {
            return;
        }
    }
}
