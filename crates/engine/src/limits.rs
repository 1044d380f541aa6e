//! Step 9's clocks: how long one attempt may take, and what ended it.

use std::pin::{Pin, pin};
use std::time::{Duration, Instant};

use crate::body::RequestSource;

/// How a wait ended without a result.
pub(crate) enum TimedOut {
    Overall,
    PerTry,
    PerTryIdle,
    Idle,
    StreamEnd,
}

/// What bounds an attempt.
pub(crate) struct Limits {
    pub(crate) timeout: Option<Duration>,
    pub(crate) deadline: Option<Instant>,
    pub(crate) per_try: Option<Duration>,
    pub(crate) per_try_idle: Option<Duration>,
    pub(crate) idle: Option<Duration>,
    pub(crate) stream_end: Option<Instant>,
}

/// Outcome of [`wait`]; the deadline is set once the request has been received completely.
pub(crate) struct Waited<T> {
    pub(crate) result: Result<T, TimedOut>,
    pub(crate) deadline: Option<Instant>,
}

/// Waits within the limits. Their clocks start when the client has sent the whole request, as Envoy's do.
pub(crate) async fn wait<T>(
    source: &RequestSource,
    limits: Limits,
    work: impl Future<Output = T>,
) -> Waited<T> {
    let Limits { timeout, deadline, per_try, per_try_idle, idle, stream_end } = limits;
    let mut work = pin!(work);
    let limited = [timeout, per_try, per_try_idle, idle].iter().any(Option::is_some);
    if !limited && stream_end.is_none() {
        return Waited { result: Ok(work.await), deadline };
    }
    if !source.ended() {
        let first = first_of(work.as_mut(), source.end());
        match before_silence(Box::pin(first), source, idle, stream_end).await {
            Ok(Some(done)) => return Waited { result: Ok(done), deadline },
            Ok(None) => {}
            Err(kind) => return Waited { result: Err(kind), deadline },
        }
    }
    let now = Instant::now();
    let deadline = deadline.or(timeout.map(|timeout| now + timeout));
    let limits = [
        deadline.map(|at| (at, TimedOut::Overall)),
        per_try.map(|limit| (now + limit, TimedOut::PerTry)),
        per_try_idle.map(|limit| (now + limit, TimedOut::PerTryIdle)),
        idle.map(|limit| (now + limit, TimedOut::Idle)),
        stream_end.map(|at| (at, TimedOut::StreamEnd)),
    ];
    let result = match limits.into_iter().flatten().min_by_key(|(at, _)| *at) {
        None => Ok(work.await),
        Some((at, kind)) => tokio::time::timeout_at(at.into(), work).await.map_err(|_| kind),
    };
    Waited { result, deadline }
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

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
