//! Step 8: connections to one host of one cluster, as one worker keeps them.
//!
//! HTTP/1 connections are used last in, first out, so that a small load keeps few of them warm. HTTP/2 connections carry
//! many streams each. The pool belongs to its host and the host to its cluster, so there is no key to mix up; a cluster whose
//! connection settings change gets new hosts and with them new pools.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use hyper::client::conn::http1;
use lateen_ir::HostAddress;
use tokio::sync::oneshot;

use crate::body::RequestBody;
use crate::failure::Reset;
use crate::http2::Sender;
use crate::interim::Said;
use crate::stats::blocks::ClusterStats;
use crate::tls::TlsFacts;

/// Streams one HTTP/2 connection carries before another is opened: what RFC 9113 recommends servers to allow at least.
const STREAMS_PER_CONNECTION: u32 = 100;

/// Facts of an upstream connection that logs and limits need.
pub(crate) struct ConnectionFacts {
    pub(crate) id: u64,
    pub(crate) local: Cell<Option<SocketAddr>>,
    /// The address that was connected to: one of the host's. Set when it was.
    pub(crate) remote: OnceCell<HostAddress>,
    /// Set when hands were shaken.
    pub(crate) tls: OnceCell<Rc<TlsFacts>>,
    /// Requests sent on it.
    pub(crate) requests: Cell<u32>,
    /// Of its pool when it was made.
    pub(crate) generation: u32,
    /// HTTP/1: what the endpoint has said before its answer.
    pub(crate) said: Said,
    /// Its cluster's.
    pub(crate) stats: Rc<ClusterStats>,
    /// The other side ended it.
    pub(crate) ended_there: Cell<bool>,
    /// What is under way on it: exchanges whose answer has not ended, or a tunnel.
    pub(crate) active: Cell<u32>,
    /// It ended while something was under way, which may have learnt of it first.
    pub(crate) broke_off: Cell<bool>,
    /// Set by the connection's task when it ends or is to carry nothing more.
    pub(crate) ended: Cell<bool>,
    /// The pool it belongs to.
    pub(crate) pool: Weak<Pool>,
}

/// Counts a connection that ended with something under way. What is under way may hear of the end, and that all had come before it, after
/// the connection's own task has ended; so this is the last to know.
impl Drop for ConnectionFacts {
    fn drop(&mut self) {
        if self.active.get() == 0 && !self.broke_off.get() {
            return;
        }
        let stats = &self.stats;
        stats.upstream_cx_destroy_with_active_rq.inc();
        if self.ended_there.get() {
            &stats.upstream_cx_destroy_remote_with_active_rq
        } else {
            &stats.upstream_cx_destroy_local_with_active_rq
        }
        .inc();
    }
}

/// An HTTP/1 connection.
pub(crate) struct Http1 {
    pub(crate) sender: http1::SendRequest<RequestBody>,
    pub(crate) facts: Rc<ConnectionFacts>,
    idle_since: Instant,
}

/// An HTTP/2 connection.
pub(crate) struct Http2 {
    sender: Sender,
    pub(crate) facts: Rc<ConnectionFacts>,
    idle_since: Cell<Instant>,
}

/// Connections to one host that requests may share.
#[derive(Default)]
pub(crate) struct Pool {
    idle: RefCell<Vec<Http1>>,
    /// Requests that may not open a connection; `None` in place of one: try again, there may be room now.
    waiting: RefCell<VecDeque<oneshot::Sender<Option<Http1>>>>,
    shared: RefCell<Vec<Rc<Http2>>>,
    connecting: Cell<bool>,
    /// Connections that are open or being opened.
    open: Cell<u32>,
    waiting_for_shared: RefCell<Vec<oneshot::Sender<Result<(), Reset>>>>,
    /// The host is gone: nothing is kept.
    retired: Cell<bool>,
    /// Grows when connections made so far are to carry nothing more.
    generation: Cell<u32>,
}

impl Http1 {
    pub(crate) fn new(sender: http1::SendRequest<RequestBody>, facts: Rc<ConnectionFacts>) -> Self {
        Self { sender, facts, idle_since: Instant::now() }
    }
}

impl Http2 {
    pub(crate) fn new(sender: Sender, facts: Rc<ConnectionFacts>) -> Self {
        Self { sender, facts, idle_since: Cell::new(Instant::now()) }
    }

    fn usable(&self, limit: u32, max_requests: Option<u32>) -> bool {
        !self.facts.ended.get()
            && self.facts.active.get() < limit
            && max_requests.is_none_or(|most| self.facts.requests.get() < most)
    }
}

/// One stream's place on a shared connection; gives the place back when dropped, and resets the stream if it is not over.
pub(crate) struct StreamPlace {
    connection: Rc<Http2>,
    /// For its request.
    sender: Cell<Option<Sender>>,
    /// A request has been sent, and neither the other side nor the connection has ended the stream.
    open: Cell<bool>,
}

impl StreamPlace {
    fn take(connection: &Rc<Http2>, sender: Sender) -> Self {
        connection.facts.active.set(connection.facts.active.get() + 1);
        Self { connection: connection.clone(), sender: Cell::new(Some(sender)), open: Cell::new(false) }
    }

    /// A place where the endpoint lets one more stream be opened; a connection that it wants no more of is known as ended then.
    fn take_open(connection: &Rc<Http2>) -> Option<Self> {
        let mut sender = connection.sender.clone();
        if !sender.is_open() {
            connection.facts.ended.set(true);
            return None;
        }
        // Without any the connection is of use as soon as there are some.
        let most = sender.most_streams().max(1);
        ((connection.facts.active.get() as usize) < most).then(|| Self::take(connection, sender))
    }

    pub(crate) fn facts(&self) -> &Rc<ConnectionFacts> {
        &self.connection.facts
    }

    /// Sends its request.
    pub(crate) fn open(&self) -> Sender {
        self.open.set(true);
        self.sender.take().unwrap_or_else(|| self.connection.sender.clone())
    }

    /// The stream is over.
    pub(crate) fn over(&self) {
        self.open.set(false);
    }
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        let Http2 { facts, idle_since, .. } = &*self.connection;
        facts.active.set(facts.active.get() - 1);
        idle_since.set(Instant::now());
        if self.open.get() {
            facts.stats.upstream_rq_tx_reset.inc();
        }
    }
}

/// What to do when a shared connection is wanted.
pub(crate) enum SharedTurn {
    /// Use this one.
    Ready(StreamPlace),
    /// Another request is opening one; wait for its outcome and ask again.
    Wait(oneshot::Receiver<Result<(), Reset>>),
    /// Open one, then call [`Pool::shared_connected`].
    Connect,
}

impl Pool {
    /// The most recently used idle HTTP/1 connection that is still open.
    pub(crate) fn take_idle(&self) -> Option<Http1> {
        let mut idle = self.idle.borrow_mut();
        while let Some(connection) = idle.pop() {
            if !connection.sender.is_closed() && !connection.facts.ended.get() {
                return Some(connection);
            }
        }
        None
    }

    /// Waits for the next connection given back or ended (used when no more may be opened).
    pub(crate) fn wait_for_idle(&self) -> oneshot::Receiver<Option<Http1>> {
        let (hand, take) = oneshot::channel();
        self.waiting.borrow_mut().push_back(hand);
        take
    }

    /// Gives a connection back after a complete exchange.
    pub(crate) fn give_back(&self, mut connection: Http1, max_requests: Option<u32>) {
        let worn_out = max_requests.is_some_and(|most| connection.facts.requests.get() >= most);
        let nobody_waits = self.waiting.borrow().is_empty();
        if worn_out
            || (self.retired.get() && nobody_waits)
            || connection.sender.is_closed()
            || connection.facts.ended.get()
            || connection.facts.generation != self.generation.get()
        {
            return;
        }
        let mut waiting = self.waiting.borrow_mut();
        while let Some(hand) = waiting.pop_front() {
            match hand.send(Some(connection)) {
                Ok(()) => return,
                Err(Some(back)) => connection = back,
                Err(None) => return,
            }
        }
        if self.retired.get() {
            return;
        }
        connection.idle_since = Instant::now();
        self.idle.borrow_mut().push(connection);
    }

    /// A connection is being opened. [`Pool::ended`] follows.
    pub(crate) fn opening(&self) {
        self.open.set(self.open.get() + 1);
    }

    /// Whether no connection will ever be given back.
    pub(crate) fn is_unconnected(&self) -> bool {
        self.open.get() == 0
    }

    /// A connection ended: it is let go of, and one of those that wait may open another. `pooled`: it was of the pool.
    pub(crate) fn ended(&self, pooled: bool) {
        self.open.set(self.open.get() - u32::from(pooled));
        self.shared.borrow_mut().retain(|connection| !connection.facts.ended.get());
        let mut waiting = self.waiting.borrow_mut();
        while let Some(hand) = waiting.pop_front() {
            if hand.send(None).is_ok() {
                return;
            }
        }
    }

    /// A place on an open shared connection.
    pub(crate) fn ready_shared(
        &self,
        max_streams: Option<u32>,
        max_requests: Option<u32>,
    ) -> Option<StreamPlace> {
        let limit = max_streams.unwrap_or(STREAMS_PER_CONNECTION);
        let shared = self.shared.borrow();
        shared
            .iter()
            .filter(|connection| connection.usable(limit, max_requests))
            .find_map(StreamPlace::take_open)
    }

    /// Asks for a place on a shared connection, open or to be opened.
    pub(crate) fn shared(&self, max_streams: Option<u32>, max_requests: Option<u32>) -> SharedTurn {
        self.shared.borrow_mut().retain(|connection| !connection.facts.ended.get());
        if let Some(place) = self.ready_shared(max_streams, max_requests) {
            return SharedTurn::Ready(place);
        }
        if self.connecting.get() {
            let (tell, hear) = oneshot::channel();
            self.waiting_for_shared.borrow_mut().push(tell);
            return SharedTurn::Wait(hear);
        }
        self.connecting.set(true);
        SharedTurn::Connect
    }

    /// The outcome of [`SharedTurn::Connect`]. Must be called whatever happens; see [`ConnectTurn`].
    fn shared_connected(&self, outcome: Result<Rc<Http2>, Reset>) -> Option<StreamPlace> {
        self.connecting.set(false);
        let (place, tell) = match outcome {
            Ok(connection) => {
                let place = StreamPlace::take(&connection, connection.sender.clone());
                if !self.retired.get() {
                    self.shared.borrow_mut().push(connection);
                }
                (Some(place), Ok(()))
            }
            Err(reset) => (None, Err(reset)),
        };
        for waiter in self.waiting_for_shared.take() {
            // A waiter that gave up needs no answer.
            let _ = waiter.send(tell.clone());
        }
        place
    }

    /// Closes idle connections older than `idle_timeout`, and those that died. Returns how many were closed for age.
    pub(crate) fn sweep(&self, idle_timeout: Option<Duration>, now: Instant) -> usize {
        let expired =
            |since: Instant| idle_timeout.is_some_and(|limit| now.saturating_duration_since(since) >= limit);
        let mut closed = 0;
        self.idle.borrow_mut().retain(|connection| {
            let old = expired(connection.idle_since);
            closed += usize::from(old);
            !old && !connection.sender.is_closed() && !connection.facts.ended.get()
        });
        self.shared.borrow_mut().retain(|connection| {
            let old = connection.facts.active.get() == 0 && expired(connection.idle_since.get());
            closed += usize::from(old);
            !old && !connection.facts.ended.get()
        });
        closed
    }

    /// Lets go of connections that are to carry nothing more; those in use end with what they carry.
    pub(crate) fn drop_ended(&self) {
        self.idle.borrow_mut().retain(|connection| !connection.facts.ended.get());
        self.shared.borrow_mut().retain(|connection| !connection.facts.ended.get());
    }

    /// The host is gone: idle connections close now, busy ones when their exchange ends. Requests that wait were promised
    /// this host: they get what they wait for.
    pub(crate) fn retire(&self) {
        self.retired.set(true);
        self.idle.borrow_mut().clear();
        self.shared.borrow_mut().clear();
    }

    /// Which connections are its own now.
    pub(crate) fn generation(&self) -> u32 {
        self.generation.get()
    }

    /// Connections made so far end now, or with what they carry; those to come are kept.
    pub(crate) fn drain(&self) {
        self.generation.set(self.generation.get().wrapping_add(1));
        self.idle.borrow_mut().clear();
        self.shared.borrow_mut().clear();
    }

    pub(crate) fn is_retired(&self) -> bool {
        self.retired.get()
    }

    /// Whether no connection waits for a request.
    pub(crate) fn is_empty(&self) -> bool {
        self.idle.borrow().is_empty() && self.shared.borrow().is_empty()
    }

    /// The address is back.
    pub(crate) fn revive(&self) {
        self.retired.set(false);
    }
}

/// The duty to report how opening a shared connection went. Reports a failure when dropped unfinished, so that waiters
/// never wait for a request that was cancelled.
pub(crate) struct ConnectTurn<'a> {
    pool: &'a Pool,
    done: bool,
}

impl<'a> ConnectTurn<'a> {
    pub(crate) fn new(pool: &'a Pool) -> Self {
        Self { pool, done: false }
    }

    pub(crate) fn connected(mut self, connection: Http2) -> Option<StreamPlace> {
        self.done = true;
        self.pool.shared_connected(Ok(Rc::new(connection)))
    }

    pub(crate) fn failed(mut self, reset: Reset) {
        self.done = true;
        self.pool.shared_connected(Err(reset));
    }
}

impl Drop for ConnectTurn<'_> {
    fn drop(&mut self) {
        if !self.done {
            // Waiters ask again, and one of them becomes the next to connect.
            self.pool.connecting.set(false);
            self.pool.waiting_for_shared.borrow_mut().clear();
        }
    }
}
