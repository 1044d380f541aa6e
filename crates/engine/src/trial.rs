//! The attempts of one request: choosing a host, sending, retrying, within the clocks of the route.

mod host;
mod message;

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use http::{HeaderValue, Request, Response, StatusCode, Version};
use http_body::Body as _;
use lateen_ir::{Forward, HostAddress, HostRewrite, PreviousPriorities, RetryPolicy};
use smallvec::SmallVec;

use crate::answer::{ActiveRequest, Answer, UpstreamStream};
use crate::body::{RequestBody, RequestSource};
use crate::breakers::{self, Admission, Limited};
use crate::cluster::LocalCluster;
use crate::context::RequestContext;
use crate::failure::{Failure, Flags, Reset, underscored};
use crate::forward::{WeightedEntry, suppresses};
use crate::host::Host;
use crate::incoming::Incoming;
use crate::interim::{self, Said, charge_downstream};
use crate::limits::{Clocked, Limits, TimedOut, wait};
use crate::outlier::Outcome;
use crate::special::Special;
use crate::upstream::{self, Broken, Lease, Target};
use crate::{retry, rewrite, route_stats};

/// An attempt whose answer has begun.
type Answered = (Lease, Response<Incoming>);

/// The attempts of one request.
pub(crate) struct Trial<'a> {
    pub(crate) context: &'a mut RequestContext,
    pub(crate) action: &'a Forward,
    pub(crate) cluster: &'a Rc<LocalCluster>,
    pub(crate) source: &'a Rc<RequestSource>,
    pub(crate) policy: Option<&'a RetryPolicy>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) deadline: Option<Instant>,
    /// When the stream must be over, whatever it does.
    pub(crate) stream_end: Option<Instant>,
    /// How long the stream of one try may last, and when that of the one under way must be over.
    pub(crate) try_limit: Option<Duration>,
    pub(crate) try_end: Option<Instant>,
    pub(crate) tried: SmallVec<[HostAddress; 1]>,
    pub(crate) retry_place: Option<Admission>,
    /// Where retries prefer priorities that were not tried.
    pub(crate) priorities: Option<Box<PreviousPriorities>>,
    /// For consistent hashing.
    pub(crate) hash: Option<u64>,
    /// Counts the attempt under way once it has a connection.
    pub(crate) active: Option<ActiveRequest>,
    /// What its endpoint says before the answer, where it is not passed on.
    pub(crate) said: Option<Said>,
    /// The last attempt took too long.
    pub(crate) timed_out: bool,
    /// Attempts that take too long run on; see [`hedge`](crate::hedge).
    pub(crate) hedges: bool,
}

impl Trial<'_> {
    pub(crate) async fn run(&mut self, weighted: Option<WeightedEntry>) -> Result<Box<Answer>, Failure> {
        loop {
            self.context.attempts += 1;
            let host = match self.pick_host() {
                Some(host) => host,
                None => Box::pin(self.look_up_host()).await?,
            };
            self.turn_to(&host);
            match self.attempt(&host).await {
                Ok((lease, response)) => {
                    self.heed_leaving(&host, response.headers());
                    let status = response.status();
                    if status.is_server_error() { &host.stats.rq_error } else { &host.stats.rq_success }
                        .inc();
                    self.judge(&host, status, response.headers());
                    let repeats =
                        |policy: &RetryPolicy| retry::after_answer(policy, status, response.headers());
                    let wanted = self.policy.filter(|policy| repeats(policy));
                    if let Some(policy) = wanted {
                        let told = retry::told_pause(policy, response.headers());
                        if let Some(until) = self.permit_retry(told) {
                            // The request is no longer active while it waits: budgets go by that.
                            self.active = None;
                            if response.body().is_end_stream() && self.source.ended() {
                                lease.finished(self.cluster);
                            }
                            Box::pin(tokio::time::sleep_until(until.into())).await;
                            self.timed_out = false;
                            continue;
                        }
                    }
                    // Whatever it says: nothing more is asked for.
                    if self.context.attempts > 1 && wanted.is_none() {
                        self.count_retry_success();
                    }
                    // It is there, since there is an answer.
                    let active = self.active.take();
                    let active = active.ok_or_else(|| self.broken(Reset::Terminated))?;
                    return Ok(self.answer(response, lease, active, weighted));
                }
                Err(AttemptFailure::Client) => {
                    if self.context.upstream_version == Some(Version::HTTP_11) {
                        self.cluster.stats.upstream_rq_tx_reset.inc();
                    }
                    return Err(self.source.failure());
                }
                // The endpoint is not to blame for a full cluster.
                Err(AttemptFailure::Broken(Broken { reset: Reset::Overflow, .. })) => {
                    return Err(self.broken(Reset::Overflow));
                }
                Err(failure) => {
                    self.active = None;
                    host.stats.rq_error.inc();
                    self.cluster.observe(&host, Outcome::LocalFailure, &self.context.connection.worker);
                    let permitted = if self.retriable(&failure) { self.permit_retry(None) } else { None };
                    let Some(until) = permitted else { return Err(self.final_failure(failure)) };
                    Box::pin(tokio::time::sleep_until(until.into())).await;
                    self.timed_out = matches!(failure, AttemptFailure::PerTry | AttemptFailure::PerTryIdle);
                }
            }
        }
    }

    /// The request is for this host now.
    pub(crate) fn turn_to(&mut self, host: &Rc<Host>) {
        self.context.host = Some(host.clone());
        // What another attempt was connected to is no more of interest.
        self.context.upstream = None;
    }

    /// Names the host, once there is a connection to it, where the route says so.
    pub(crate) fn name_host(&mut self, host: &Host) {
        if matches!(self.action.host_rewrite, HostRewrite::Auto) {
            let name = host.endpoint.borrow().hostname.clone();
            if let Some(Ok(name)) = name.as_deref().map(HeaderValue::from_str) {
                let suppress = suppresses(self.context);
                rewrite::set_authority(self.context, self.action, name, suppress);
            }
        }
    }

    pub(crate) fn broken(&self, reset: Reset) -> Failure {
        Failure::Upstream { reset, retried: self.context.attempts > 1 }
    }

    pub(crate) fn final_failure(&mut self, failure: AttemptFailure) -> Failure {
        match failure {
            AttemptFailure::Broken(broken) => {
                self.context.upstream_failure =
                    broken.reset.transport_reason().map(|reason| underscored(reason).into());
                self.broken(broken.reset)
            }
            AttemptFailure::Client => self.source.failure(),
            AttemptFailure::Overall => Failure::ResponseTimeout,
            AttemptFailure::PerTry => Failure::PerTryTimeout,
            AttemptFailure::PerTryIdle => Failure::PerTryIdleTimeout,
            AttemptFailure::Idle => {
                Failure::StreamIdleTimeout { request_complete: self.context.request_complete() }
            }
            AttemptFailure::StreamEnd => {
                Failure::MaxStreamDuration { request_complete: self.context.request_complete() }
            }
            AttemptFailure::TryEnd => {
                Failure::UpstreamMaxStreamDuration { request_complete: self.context.request_complete() }
            }
        }
    }

    pub(crate) fn retriable(&self, failure: &AttemptFailure) -> bool {
        let Some(policy) = self.policy else { return false };
        match failure {
            AttemptFailure::Broken(broken) => {
                retry::after_break(policy.on, retry::Broken::Reset(&broken.reset), broken.sent)
            }
            AttemptFailure::PerTry | AttemptFailure::PerTryIdle | AttemptFailure::TryEnd => {
                retry::after_break(policy.on, retry::Broken::PerTryTimeout, true)
            }
            AttemptFailure::Client
            | AttemptFailure::Overall
            | AttemptFailure::Idle
            | AttemptFailure::StreamEnd => false,
        }
    }

    /// Another attempt brought an answer that is taken. Where the client was told something before it, retries were over, as with Envoy.
    pub(crate) fn count_retry_success(&self) {
        if self.policy.is_none() {
            return;
        }
        self.cluster.stats.upstream_rq_retry_success.inc();
        self.context.route_stats.iter().for_each(|route| route.upstream_rq_retry_success.inc());
    }

    /// Takes the permission for one more attempt and says when it may begin: after as long as the last answer told, or else by the
    /// policy. The attempt is known to be wanted.
    pub(crate) fn permit_retry(&mut self, told: Option<Duration>) -> Option<Instant> {
        let policy = self.policy?;
        let stats = &self.cluster.stats;
        let route = self.context.route_stats.clone();
        if self.context.attempts > policy.num_retries {
            self.context.flags.insert(Flags::UPSTREAM_RETRY_LIMIT);
            stats.upstream_rq_retry_limit_exceeded.inc();
            route.iter().for_each(|route| route.upstream_rq_retry_limit_exceeded.inc());
            return None;
        }
        if !self.source.replayable() {
            stats.retry_or_shadow_abandoned.inc();
            return None;
        }
        self.retry_place = None;
        let Some(place) = breakers::admit(&self.cluster.config, Limited::Retry, self.action.high_priority)
        else {
            self.context.flags.insert(Flags::RETRY_OVERFLOW);
            stats.upstream_rq_retry_overflow.inc();
            route.iter().for_each(|route| route.upstream_rq_retry_overflow.inc());
            return None;
        };
        self.retry_place = Some(place);
        stats.upstream_rq_retry.inc();
        route.iter().for_each(|route| route.upstream_rq_retry.inc());
        let random = self.context.connection.worker.random();
        let pause = match told {
            Some(told) => {
                stats.upstream_rq_retry_backoff_ratelimited.inc();
                retry::spread(told, random)
            }
            None => {
                stats.upstream_rq_retry_backoff_exponential.inc();
                retry::pause(policy.backoff, self.context.attempts, random)
            }
        };
        let until = Instant::now() + pause;
        self.deadline.is_none_or(|deadline| until < deadline).then_some(until)
    }

    /// One attempt with its time limits.
    async fn attempt(&mut self, host: &Rc<Host>) -> Result<Answered, AttemptFailure> {
        let policy = self.policy;
        let interim = interim::passed_on(self.context).cloned();
        let own_clock =
            |policy: &RetryPolicy| policy.per_try_timeout.is_some() || policy.per_try_idle_timeout.is_some();
        let late = self.stream_end.is_some_and(|end| end <= Instant::now());
        // Elsewhere, so that the request's future does not grow.
        let clocked = (late || policy.is_some_and(own_clock)).then(Rc::<Clocked>::default);
        self.try_end = self.try_limit.map(|limit| Instant::now() + limit);
        let limits = Limits {
            timeout: self.timeout,
            deadline: self.deadline,
            per_try: policy.and_then(|policy| policy.per_try_timeout),
            per_try_idle: policy.and_then(|policy| policy.per_try_idle_timeout),
            idle: self.idle_timeout,
            stream_end: self.end(),
            interim: interim.as_ref(),
            clocked: clocked.as_deref(),
        };
        let source = self.source.clone();
        let waited = wait(&source, &limits, self.try_once(host, clocked.as_deref())).await;
        self.deadline = waited.deadline;
        self.heed_interim();
        match waited.result {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(_)) if source.failed() => Err(AttemptFailure::Client),
            Ok(Err(broken)) => Err(AttemptFailure::Broken(broken)),
            Err(TimedOut::Overall) => {
                host.stats.rq_timeout.inc();
                Err(AttemptFailure::Overall)
            }
            Err(TimedOut::PerTry) => {
                host.stats.rq_timeout.inc();
                self.cluster.stats.upstream_rq_per_try_timeout.inc();
                Err(AttemptFailure::PerTry)
            }
            Err(TimedOut::PerTryIdle) => {
                host.stats.rq_timeout.inc();
                self.cluster.stats.upstream_rq_per_try_idle_timeout.inc();
                Err(AttemptFailure::PerTryIdle)
            }
            Err(TimedOut::Idle) => Err(AttemptFailure::Idle),
            Err(TimedOut::StreamEnd) => Err(self.over()),
        }
    }

    /// When the stream, or that of the try under way, must be over.
    pub(crate) fn end(&self) -> Option<Instant> {
        [self.stream_end, self.try_end].into_iter().flatten().min()
    }

    /// Counts which of them is over.
    pub(crate) fn over(&self) -> AttemptFailure {
        if self.try_end.is_some_and(|end| self.stream_end.is_none_or(|whole| end < whole)) {
            self.cluster.stats.upstream_rq_max_duration_reached.inc();
            return AttemptFailure::TryEnd;
        }
        self.context.connection.stats.downstream_rq_max_duration_reached.inc();
        AttemptFailure::StreamEnd
    }

    /// No host has to do with a request that was not even let wait for a connection; Envoy names none in its log.
    fn without_connection(&mut self, reset: Reset) -> Broken {
        if reset == Reset::Overflow {
            self.context.host = None;
        }
        Broken { reset, sent: false }
    }

    /// Sends the request once. A kept connection may be closing at this very moment; when nothing of the request can have
    /// been processed, or processing it twice is harmless, a fresh one is used. This is not a retry in the policy's sense; what the
    /// policy repeats it repeats itself.
    async fn try_once(&mut self, host: &Rc<Host>, clocked: Option<&Clocked>) -> Result<Answered, Broken> {
        let worker = self.context.connection.worker.clone();
        let target = Target {
            worker: &worker,
            cluster: self.cluster,
            host,
            special: Special::of_request(
                self.context,
                &self.cluster.config.ir,
                host,
                self.action.high_priority,
            ),
        };
        let mut fresh = false;
        loop {
            let mut lease = upstream::lease(&target, self.context.version, fresh)
                .await
                .map_err(|reset| self.without_connection(reset))?;
            let at_once = |at: &Cell<Option<Instant>>| at.set(at.get().or_else(|| Some(Instant::now())));
            clocked.into_iter().for_each(|clocked| at_once(&clocked.connected));
            self.cluster.observe(host, Outcome::Connected, &worker);
            // As in Envoy a request counts when it has a connection; until then it is pending.
            if self.active.is_none() {
                let Some(active) = ActiveRequest::admit(self.cluster, host, self.action.high_priority) else {
                    lease.finished(self.cluster);
                    return Err(Broken { reset: Reset::Overflow, sent: false });
                };
                self.active = Some(active.of_route(&self.context.route_stats));
            }
            lease.count_last_request(&self.cluster.stats, &self.cluster.config.ir.http.common);
            self.context.upstream = Some(lease.facts().clone());
            self.context.upstream_version = Some(lease.version());
            self.name_host(host);
            let reused = lease.reused().then(Instant::now);
            let request = self.request(lease.version());
            let interim = interim::passed_on(self.context);
            self.said = interim.is_none().then(|| lease.said());
            clocked.into_iter().for_each(|clocked| clocked.said.borrow_mut().clone_from(&self.said));
            match upstream::exchange(&mut lease, request, interim, self.said.as_ref()).await {
                Ok(response) => {
                    self.context.answered = upstream::heed_head(&lease, &response)?;
                    self.context.first_upstream_byte = Some(Instant::now());
                    return Ok((lease, response));
                }
                Err(broken) => {
                    let covered = self.policy.is_some_and(|policy| {
                        retry::after_break(policy.on, retry::Broken::Reset(&broken.reset), broken.sent)
                    });
                    if covered {
                        return Err(broken);
                    }
                    let stale = !fresh && retry::was_closing(reused, &broken);
                    if !(stale && self.may_be_sent_again(&broken)) {
                        return Err(broken);
                    }
                    fresh = true;
                }
            }
        }
    }

    /// What the endpoint has said before its answer.
    fn interim_status(&self) -> Option<StatusCode> {
        match interim::passed_on(self.context) {
            Some(interim) => interim.came(),
            None => self.said.as_ref()?.status(),
        }
    }

    /// Counts what the endpoint said before its answer. The client may have been told, so that no other endpoint can be tried.
    pub(crate) fn heed_interim(&mut self) {
        let Some(status) = self.interim_status().filter(|_| !self.context.begun_upstream) else { return };
        self.context.begun_upstream = true;
        route_stats::charge(self.cluster, self.context.route_stats.as_deref(), status);
        if interim::passed_on(self.context).is_some() {
            charge_downstream(self.context, status);
        }
        self.policy = None;
    }

    /// Whether sending the request again does nothing twice.
    fn may_be_sent_again(&self, broken: &Broken) -> bool {
        let answered = self.interim_status().is_some();
        let harmless = !broken.sent || (retry::idempotent(&self.context.head.method) && !answered);
        harmless && self.source.replayable()
    }

    /// The request of one attempt.
    fn request(&mut self, version: Version) -> Request<RequestBody> {
        let body = self.source.body();
        let mut request = self.message().request(version, body);
        if let Some(interim) = interim::passed_on(self.context) {
            upstream::listen(&mut request, interim.listener());
        }
        request
    }

    pub(crate) fn answer(
        &mut self,
        response: Response<Incoming>,
        lease: Lease,
        active: ActiveRequest,
        weighted: Option<WeightedEntry>,
    ) -> Box<Answer> {
        let (head, body) = response.into_parts();
        let began = self.context.started;
        let now = self.context.first_upstream_byte.unwrap_or(began);
        let stream = UpstreamStream {
            lease: Some(lease),
            active,
            source: Some(self.source.clone()),
            weighted,
            request_sent: began,
            service_time: now.saturating_duration_since(began),
            status: head.status,
            deadline: self.deadline,
            stream_end: self.end(),
            idle_timeout: self.idle_timeout,
            per_try_idle: self.policy.and_then(|policy| policy.per_try_idle_timeout),
        };
        // Boxed here, since what follows passes it on several times.
        Box::new(Answer { head, body, stream })
    }
}

/// How an attempt failed.
pub(crate) enum AttemptFailure {
    Broken(Broken),
    /// The client's body broke off; the endpoint is not to blame.
    Client,
    Overall,
    PerTry,
    PerTryIdle,
    Idle,
    StreamEnd,
    /// The stream of the try has lasted too long.
    TryEnd,
}
