//! Step 4 for TCP: joins a connection to one of a cluster's endpoints.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use lateen_ir::Discovery;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::breakers::{self, Limited};
use crate::cluster::LocalCluster;
use crate::context::ConnectionInfo;
use crate::failure::{Flags, Reset, underscored};
use crate::format_values::TcpFacts;
use crate::host::Host;
use crate::outlier::Outcome;
use crate::signal::Signal;
use crate::snapshot::TcpConfig;
use crate::stats::blocks::TcpStats;
use crate::stream::Stream;
use crate::upstream::{self, Opened, Target};
use crate::worker::Worker;
use crate::{log_filter, render, retry};

/// Bytes in flight each way.
const BUFFER: usize = 16 * 1024;

/// What is logged at the end.
#[derive(Default)]
struct Outcomes {
    flags: Flags,
    details: &'static str,
    cluster: Option<Rc<LocalCluster>>,
    host: Option<Rc<Host>>,
    upstream_local: Option<std::net::SocketAddr>,
    failure: Option<Box<str>>,
    received: Cell<u64>,
    sent: Cell<u64>,
}

/// Serves one connection until both directions are closed, nothing moved for the idle time-out, or draining took too long.
pub(crate) async fn serve(
    mut client: Stream,
    info: ConnectionInfo,
    config: &TcpConfig,
    stats: &TcpStats,
    drain: &Signal,
    worker: &Rc<Worker>,
) {
    client.count_into(&stats.downstream_cx_rx_bytes_total, &stats.downstream_cx_tx_bytes_total);
    stats.downstream_cx_total.inc();
    let mut outcomes = Outcomes::default();
    if let Some((mut server, _opened)) = connect(&info, config, stats, worker, &mut outcomes).await {
        let limit = config.ir.max_downstream_connection_duration;
        let end = async {
            drain.fired().await;
            tokio::time::sleep(worker.drain_time).await;
        };
        let moved = Mover::new(&mut client, &mut server, config.ir.idle_timeout, &outcomes);
        tokio::select! {
            biased;
            ended = moved => if matches!(ended, Err(error) if error.kind() == io::ErrorKind::TimedOut) {
                stats.idle_timeout.inc();
            },
            () = end => {}
            () = sleep_or_for_ever(limit) => stats.max_downstream_connection_duration.inc(),
        }
    }
    log(&info, config, worker, &outcomes);
}

async fn sleep_or_for_ever(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}

async fn connect(
    info: &ConnectionInfo,
    config: &TcpConfig,
    stats: &TcpStats,
    worker: &Rc<Worker>,
    outcomes: &mut Outcomes,
) -> Option<(Stream, Opened)> {
    let picked = config.ir.pick(worker.random());
    let slot = config.slots.get(picked.index as usize)?;
    let Some(cluster) = worker.view().cluster(*slot, worker) else {
        stats.downstream_cx_no_route.inc();
        outcomes.flags.insert(Flags::NO_CLUSTER);
        return None;
    };
    outcomes.cluster = Some(cluster.clone());
    let destination = match &cluster.config.ir.discovery {
        Discovery::OriginalDst { .. } => info.restored.then_some(info.local),
        _ => None,
    };
    for attempt in 1..=config.ir.max_connect_attempts.max(1) {
        if attempt > 1
            && let Some(backoff) = config.ir.backoff
        {
            tokio::time::sleep(retry::pause(backoff, attempt - 1, worker.random())).await;
        }
        let Some(host) = cluster.pick(destination, &mut || worker.random()) else {
            cluster.stats.upstream_cx_none_healthy.inc();
            outcomes.flags.insert(Flags::NO_HEALTHY_UPSTREAM);
            return None;
        };
        outcomes.host = Some(host.clone());
        let Some(place) = breakers::admit(&cluster.config, Limited::Connection, false) else {
            cluster.stats.upstream_cx_overflow.inc();
            outcomes.flags.insert(Flags::UPSTREAM_OVERFLOW);
            return None;
        };
        let target = Target { worker, cluster: &cluster, host: &host, high_priority: false };
        match upstream::open(target, Some(place)).await {
            Ok((stream, opened)) => {
                outcomes.flags = Flags::default();
                outcomes.failure = None;
                outcomes.upstream_local = opened.facts.local.get();
                return Some((stream, opened));
            }
            Err(reset) => note_failure(&cluster, &host, &reset, worker, outcomes),
        }
    }
    cluster.stats.upstream_cx_connect_attempts_exceeded.inc();
    None
}

fn note_failure(
    cluster: &LocalCluster,
    host: &Host,
    reset: &Reset,
    worker: &Worker,
    outcomes: &mut Outcomes,
) {
    cluster.observe(host, Outcome::LocalFailure, worker.random());
    outcomes.flags.insert(Flags::UPSTREAM_CONNECTION_FAILURE);
    outcomes.failure = reset.transport_reason().map(|reason| underscored(reason).into());
}

fn log(info: &ConnectionInfo, config: &TcpConfig, worker: &Rc<Worker>, outcomes: &Outcomes) {
    if config.ir.access_log.is_empty() {
        return;
    }
    let cluster = outcomes.cluster.as_ref().map(|cluster| cluster.config.ir.clone());
    let facts = TcpFacts {
        info,
        hostname: &worker.identity.hostname,
        flags: outcomes.flags,
        details: outcomes.details,
        received: outcomes.received.get(),
        sent: outcomes.sent.get(),
        cluster: cluster.as_ref().map(|cluster: &Arc<lateen_ir::Cluster>| &*cluster.name),
        host: outcomes.host.as_ref().map(|host| host.address),
        upstream_local: outcomes.upstream_local,
        failure: outcomes.failure.as_deref(),
    };
    let millis = info.started.elapsed().as_millis() as u64;
    for log in &config.ir.access_log {
        let passes = |filter| log_filter::passes_tcp(filter, outcomes.flags, millis, worker.random());
        if log.filter.as_ref().is_none_or(passes) {
            worker.log_line(&log.sink, |line| render::line(&log.format, &facts, line));
        }
    }
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
        from: &mut Stream,
        to: &mut Stream,
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

/// Moves bytes both ways. A side that stops sending is told so to the other (half-close).
struct Mover<'a> {
    client: &'a mut Stream,
    server: &'a mut Stream,
    up: Direction,
    down: Direction,
    idle: Option<(Duration, Pin<Box<tokio::time::Sleep>>)>,
    last_moved: Instant,
    outcomes: &'a Outcomes,
}

impl<'a> Mover<'a> {
    fn new(
        client: &'a mut Stream,
        server: &'a mut Stream,
        idle: Option<Duration>,
        outcomes: &'a Outcomes,
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
            outcomes,
        }
    }
}

impl Future for Mover<'_> {
    type Output = io::Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let mut active = false;
        let up = this.up.poll_move(cx, this.client, this.server, &this.outcomes.received, &mut active)?;
        let down = this.down.poll_move(cx, this.server, this.client, &this.outcomes.sent, &mut active)?;
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
