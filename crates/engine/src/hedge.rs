//! Hedging: an attempt that takes longer than its time-out runs on while another begins; the first good answer is taken, and the
//! others are given up. For routes that ask for it; all others try one attempt after the other ([`trial`](crate::trial)).
//! <https://www.envoyproxy.io/docs/envoy/v1.40.0/intro/arch_overview/http/http_routing#request-hedging>

use std::cell::{Cell, OnceCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use http::{Response, StatusCode, Version};
use lateen_ir::RetryPolicy;

use crate::answer::{ActiveRequest, Answer};
use crate::body::RequestSource;
use crate::cluster::LocalCluster;
use crate::failure::{Failure, Reset};
use crate::forward::WeightedEntry;
use crate::host::Host;
use crate::incoming::Incoming;
use crate::interim::{Interim, Said};
use crate::limits::{Limits, TimedOut, wait};
use crate::message::Message;
use crate::outlier::Outcome;
use crate::pool::ConnectionFacts;
use crate::presence::Present;
use crate::special::Special;
use crate::stats::blocks::RouteStats;
use crate::trial::{AttemptFailure, Trial};
use crate::upstream::{self, Broken, Lease, Target};
use crate::worker::Worker;
use crate::{interim, retry, route_stats};

/// An attempt whose answer has begun.
struct Answered {
    lease: Lease,
    response: Response<Incoming>,
    active: ActiveRequest,
    /// What its head has.
    present: Present,
}

/// One attempt, by itself.
struct Attempt {
    worker: Rc<Worker>,
    cluster: Rc<LocalCluster>,
    route_stats: Option<Rc<RouteStats>>,
    host: Rc<Host>,
    special: Option<Box<Special>>,
    message: Message,
    source: Rc<RequestSource>,
    downstream: Version,
    high_priority: bool,
    interim: Option<Interim>,
    /// The connection, once there is one.
    connection: Rc<OnceCell<Connected>>,
    /// Set when it may not even wait for a connection.
    turned_away: Rc<Cell<bool>>,
    /// When it got its connection.
    connected: Rc<Cell<Option<Instant>>>,
    /// What its endpoint says before the answer.
    said: Said,
}

/// What an attempt is connected to, and how.
type Connected = (Rc<ConnectionFacts>, Version);

/// An attempt under way.
struct Running {
    work: Pin<Box<dyn Future<Output = Result<Answered, Broken>>>>,
    host: Rc<Host>,
    turned_away: Rc<Cell<bool>>,
    /// Which attempt of the request it is.
    number: u32,
    /// When it got its connection: its clock runs from then on.
    connected: Rc<Cell<Option<Instant>>>,
    /// What its endpoint says before the answer.
    said: Said,
    /// It has taken too long.
    late: bool,
    /// Another has begun because it was late: it is not tried again for its own outcome.
    retried: bool,
}

impl Attempt {
    async fn run(self) -> Result<Answered, Broken> {
        let Self {
            worker,
            cluster,
            route_stats,
            host,
            special,
            message,
            source,
            downstream,
            high_priority,
            interim,
            connection,
            turned_away,
            connected,
            said,
        } = self;
        let task = poll_fn(|cx| Poll::Ready(cx.waker().clone())).await;
        let target = Target { worker: &worker, cluster: &cluster, host: &host, special };
        let unsent = |reset| Broken { reset, sent: false };
        let mut lease = upstream::lease(&target, downstream, false).await.map_err(|reset| {
            turned_away.set(reset == Reset::Overflow);
            unsent(reset)
        })?;
        connected.set(Some(Instant::now()));
        cluster.observe(&host, Outcome::Connected, &worker);
        let Some(active) = ActiveRequest::admit(&cluster, &host, high_priority) else {
            lease.finished(&cluster);
            return Err(unsent(Reset::Overflow));
        };
        let active = active.of_route(&route_stats);
        // It is empty.
        let _ = connection.set((lease.facts().clone(), lease.version()));
        loop {
            lease.count_last_request(&cluster.stats, &cluster.config.ir.http.common);
            let reused = lease.reused().then(Instant::now);
            let mut request = message.again().request(lease.version(), source.body());
            // Over HTTP/1 the connection's task hears it, and this one is to know at once.
            let (listener, heard) = (interim.as_ref().map(Interim::listener), said.clone());
            let task = task.clone();
            upstream::listen(&mut request, move |status, headers| {
                listener.iter().for_each(|listener| listener(status, headers));
                heard.note(status.as_u16());
                task.wake_by_ref();
            });
            match upstream::exchange(&mut lease, request, interim.as_ref(), Some(&said)).await {
                Ok(response) => {
                    let present = upstream::heed_head(&lease, &response)?;
                    return Ok(Answered { lease, response, active, present });
                }
                // A kept connection may have been closing at that very moment.
                Err(broken) => {
                    let stale = retry::was_closing(reused, &broken);
                    let answered = said.status().is_some();
                    let harmless = !broken.sent || (retry::idempotent(&message.method) && !answered);
                    if !(stale && harmless && source.replayable()) {
                        return Err(broken);
                    }
                    lease = upstream::lease(&target, downstream, true).await.map_err(unsent)?;
                }
            }
        }
    }
}

/// The attempts of one request.
struct Race<'a, 'b> {
    trial: &'a mut Trial<'b>,
    running: Vec<Running>,
    /// When the next attempt begins, if one is to.
    next: Option<Instant>,
    /// What the attempt that began last is connected to, once it is: the request's log tells of it, unless another is answered.
    last: Rc<OnceCell<Connected>>,
    /// When the request was seen to be sent in whole.
    sent_at: Option<Instant>,
    /// Late attempts are tried again, whichever conditions the policy has.
    retries: bool,
}

/// Does the attempts of a request whose route hedges. `retries`: whether there are conditions for retries, be it that this request
/// is not meant by them.
pub(crate) async fn run(
    trial: &mut Trial<'_>,
    weighted: Option<WeightedEntry>,
    retries: bool,
) -> Result<Box<Answer>, Failure> {
    // Tries that go on side by side share it.
    trial.try_end = trial.try_limit.map(|limit| Instant::now() + limit);
    let mut race =
        Race { trial, running: Vec::new(), next: None, last: Rc::default(), sent_at: None, retries };
    race.begin().await?;
    loop {
        match race.step().await {
            Step::Answered(index, answered) => {
                let running = race.take(index);
                if let Some(answered) = race.judge(&running, answered) {
                    return Ok(race.win(running, answered, weighted));
                }
            }
            Step::Broken(index, broken) => {
                let running = race.take(index);
                if let Some(failure) = race.broken(&running, broken) {
                    return Err(failure);
                }
            }
            Step::Said(index) => {
                let speaker = race.take(index);
                race.running.push(speaker);
            }
            Step::Late => race.late(),
            Step::Next => {
                race.next = None;
                race.begin().await?;
            }
            Step::Over(kind) => return Err(race.over(kind)),
        }
    }
}

/// What happens next.
enum Step {
    /// An endpoint has said something before its answer.
    Said(usize),
    Answered(usize, Box<Answered>),
    Broken(usize, Broken),
    /// Some attempt takes too long.
    Late,
    /// Another attempt is to begin.
    Next,
    /// All of it takes too long.
    Over(TimedOut),
}

impl Race<'_, '_> {
    fn policy(&self) -> Option<&RetryPolicy> {
        self.trial.policy
    }

    /// Begins an attempt.
    async fn begin(&mut self) -> Result<(), Failure> {
        let trial = &mut *self.trial;
        trial.context.attempts += 1;
        let host = match trial.pick_host() {
            Some(host) => host,
            None => trial.look_up_host().await?,
        };
        trial.turn_to(&host);
        trial.name_host(&host);
        let (connection, turned_away) = (Rc::<OnceCell<Connected>>::default(), Rc::new(Cell::new(false)));
        self.last = connection.clone();
        let (connected, said) = (Rc::new(Cell::new(None)), Said::default());
        let number = trial.context.attempts;
        let attempt = Attempt {
            worker: trial.context.connection.worker.clone(),
            cluster: trial.cluster.clone(),
            route_stats: trial.context.route_stats.clone(),
            host: host.clone(),
            special: Special::of_request(
                trial.context,
                &trial.cluster.config.ir,
                &host,
                trial.action.high_priority,
            ),
            message: trial.message(),
            source: trial.source.clone(),
            downstream: trial.context.version,
            high_priority: trial.action.high_priority,
            interim: interim::passed_on(trial.context).cloned(),
            connection,
            turned_away: turned_away.clone(),
            connected: connected.clone(),
            said: said.clone(),
        };
        let work = Box::pin(attempt.run());
        self.running.push(Running {
            work,
            host,
            turned_away,
            number,
            connected,
            said,
            late: false,
            retried: false,
        });
        Ok(())
    }

    /// How long an attempt may take before it is late.
    fn limit(&self) -> Option<Duration> {
        let policy = self.policy()?;
        policy.per_try_timeout.into_iter().chain(policy.per_try_idle_timeout).min()
    }

    /// When an attempt is late: so long after it had a connection and the whole request. `None`: that is not known yet.
    fn late_at(&self, running: &Running, limit: Option<Duration>) -> Option<Instant> {
        Some(running.connected.get()?.max(self.sent_at?) + limit?)
    }

    async fn step(&mut self) -> Step {
        let limit = self.limit();
        let now = Instant::now();
        let not_late = self.running.iter().filter(|running| !running.late);
        let late = not_late.map(|running| {
            // Without a connection its clock has not begun; it may have when this time is over.
            let at = self.late_at(running, limit);
            at.map_or(limit.unwrap_or(Duration::MAX), |at| at.saturating_duration_since(now))
        });
        let late = late.min().filter(|_| limit.is_some());
        let next = self.next.map(|at| at.saturating_duration_since(now));
        let limits = Limits {
            timeout: self.trial.timeout,
            deadline: self.trial.deadline,
            per_try: late.into_iter().chain(next).min(),
            per_try_idle: None,
            idle: self.trial.idle_timeout,
            stream_end: self.trial.end(),
            interim: None,
            clocked: None,
        };
        let source = self.trial.source.clone();
        let (running, begun) = (&mut self.running, self.trial.context.begun_upstream);
        let sent_at = &mut self.sent_at;
        let first = poll_fn(|cx| {
            if sent_at.is_none() && source.ended() {
                *sent_at = Some(Instant::now());
            }
            for (index, one) in running.iter_mut().enumerate() {
                if let Poll::Ready(outcome) = one.work.as_mut().poll(cx) {
                    return Poll::Ready((index, Some(outcome)));
                }
                if !begun && one.said.status().is_some() {
                    return Poll::Ready((index, None));
                }
            }
            Poll::Pending
        });
        let waited = wait(&source, &limits, first).await;
        self.trial.deadline = waited.deadline;
        match waited.result {
            Ok((index, Some(Ok(answered)))) => Step::Answered(index, Box::new(answered)),
            Ok((index, Some(Err(broken)))) => Step::Broken(index, broken),
            Ok((index, None)) => Step::Said(index),
            Err(TimedOut::PerTry | TimedOut::PerTryIdle)
                if next.is_some_and(|next| late.is_none_or(|late| next <= late)) =>
            {
                Step::Next
            }
            Err(TimedOut::PerTry | TimedOut::PerTryIdle) => Step::Late,
            Err(kind) => Step::Over(kind),
        }
    }

    /// Takes an attempt out. Whose endpoint speaks before its answer is the only one from then on, as with Envoy.
    fn take(&mut self, index: usize) -> Running {
        let running = self.running.remove(index);
        if running.said.status().is_some() {
            self.running.clear();
            self.next = None;
            self.trial.said = Some(running.said.clone());
            self.trial.heed_interim();
        }
        running
    }

    /// Another attempt begins for each that takes too long, as far as the policy goes.
    fn late(&mut self) {
        let now = Instant::now();
        let limit = self.limit();
        for index in 0..self.running.len() {
            let late = self.late_at(&self.running[index], limit).is_some_and(|at| at <= now);
            let running = &mut self.running[index];
            if running.late || !late {
                continue;
            }
            running.late = true;
            let host = running.host.clone();
            self.observe_failure(&host);
            if self.retries
                && let Some(at) = self.trial.permit_retry(None)
            {
                self.running[index].retried = true;
                self.trial.timed_out = true;
                self.next = Some(at);
            }
        }
    }

    fn observe_failure(&self, host: &Rc<Host>) {
        self.trial.cluster.observe(host, Outcome::LocalFailure, &self.trial.context.connection.worker);
    }

    /// Whether some attempt may still bring a better answer.
    fn hopes(&self) -> bool {
        !self.running.is_empty() || self.next.is_some()
    }

    /// Gives an answer back that is to be taken.
    fn judge(&mut self, running: &Running, answered: Box<Answered>) -> Option<Box<Answered>> {
        let host = &running.host;
        let headers = answered.response.headers();
        let status = answered.response.status();
        self.trial.context.answered = answered.present;
        self.trial.heed_leaving(host, headers);
        self.trial.judge(host, status, headers);
        let unwanted = self.policy().is_some_and(|policy| retry::after_answer(policy, status, headers));
        if unwanted {
            if !running.retried
                && let Some(policy) = self.trial.policy
                && let Some(at) = self.trial.permit_retry(retry::told_pause(policy, headers))
            {
                host.stats.rq_error.inc();
                self.trial.timed_out = false;
                self.next = Some(at);
                return None;
            }
            if self.hopes() {
                host.stats.rq_error.inc();
                return None;
            }
        } else if !running.retried && self.trial.context.attempts > 1 && !status.is_server_error() {
            self.trial.count_retry_success();
        }
        if status.is_server_error() { &host.stats.rq_error } else { &host.stats.rq_success }.inc();
        Some(answered)
    }

    /// The answer that is taken; all other attempts are given up.
    fn win(self, running: Running, answered: Box<Answered>, weighted: Option<WeightedEntry>) -> Box<Answer> {
        let Answered { lease, response, active, present } = *answered;
        let context = &mut *self.trial.context;
        context.answered = present;
        context.host = Some(running.host);
        context.upstream = Some(lease.facts().clone());
        context.upstream_version = Some(lease.version());
        context.first_upstream_byte = Some(Instant::now());
        self.trial.answer(response, lease, active, weighted)
    }

    /// What a broken attempt means for the request, when there is no other.
    fn broken(&mut self, running: &Running, broken: Broken) -> Option<Failure> {
        if self.trial.source.failed() {
            self.trial.cluster.stats.upstream_rq_tx_reset.inc();
            return Some(self.trial.source.failure());
        }
        if broken.reset != Reset::Overflow {
            self.observe_failure(&running.host);
        }
        // The request's log tells of the attempt that began last, unless another is answered.
        if running.turned_away.get() && running.number == self.trial.context.attempts {
            self.trial.context.host = None;
        }
        let failure = AttemptFailure::Broken(broken);
        if !running.retried
            && self.trial.retriable(&failure)
            && let Some(at) = self.trial.permit_retry(None)
        {
            running.host.stats.rq_error.inc();
            self.trial.timed_out = false;
            self.next = Some(at);
            return None;
        }
        running.host.stats.rq_error.inc();
        let failure = self.trial.final_failure(failure);
        if self.hopes() {
            self.charge(failure.reply().status);
            return None;
        }
        self.tell_last();
        Some(failure)
    }

    /// Has the log tell what the attempt that began last was connected to.
    fn tell_last(&mut self) {
        if let Some((facts, version)) = self.last.get() {
            self.trial.context.upstream = Some(facts.clone());
            self.trial.context.upstream_version = Some(*version);
        }
    }

    /// Counts an attempt as answered by the proxy.
    fn charge(&self, status: StatusCode) {
        route_stats::charge(self.trial.cluster, self.trial.context.route_stats.as_deref(), status);
    }

    /// All attempts have taken too long, or the client.
    fn over(&mut self, kind: TimedOut) -> Failure {
        let failure = match kind {
            TimedOut::Overall | TimedOut::PerTry | TimedOut::PerTryIdle => AttemptFailure::Overall,
            TimedOut::Idle => AttemptFailure::Idle,
            TimedOut::StreamEnd => self.trial.over(),
        };
        if matches!(failure, AttemptFailure::Overall) {
            for (index, running) in self.running.iter().enumerate() {
                running.host.stats.rq_timeout.inc();
                running.host.stats.rq_error.inc();
                if !running.late {
                    self.observe_failure(&running.host);
                }
                // The request's own end is counted where all are.
                if index > 0 {
                    self.trial.cluster.stats.upstream_rq_timeout.inc();
                    self.trial.context.route_stats.iter().for_each(|route| route.upstream_rq_timeout.inc());
                    self.charge(StatusCode::GATEWAY_TIMEOUT);
                }
            }
        }
        self.tell_last();
        self.trial.final_failure(failure)
    }
}
