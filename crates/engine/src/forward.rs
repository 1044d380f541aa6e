//! Steps 7 to 9: sends a request to a cluster, with retries and time-outs, until there is an answer or a failure.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderName, HeaderValue, Method, Request, Response, Uri, Version, header, response};
use hyper::body::Incoming;
use lateen_ir::{
    ClusterSpecifier, Discovery, Forward, HeaderMutations, HostRewrite, PathRewrite, PickedCluster,
    RetryPolicy, Route,
};
use smallvec::SmallVec;

use crate::body::{RequestBody, RequestSource};
use crate::breakers::{self, Admission, Limited};
use crate::cluster::LocalCluster;
use crate::context::RequestContext;
use crate::failure::{Failure, Flags, Reset, underscored};
use crate::host::Host;
use crate::http_request::{X_ENVOY_ATTEMPT_COUNT, apply_levels, request_view};
use crate::limits::{Limits, TimedOut, wait};
use crate::outlier::Outcome;
use crate::presence::Present;
use crate::syntax::proper_answer;
use crate::upstream::{self, Broken, Lease, Target};
use crate::{retry, rewrite};

const X_ENVOY_EXPECTED_RQ_TIMEOUT_MS: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");
const X_ENVOY_UPSTREAM_RQ_TIMEOUT_MS: HeaderName = HeaderName::from_static("x-envoy-upstream-rq-timeout-ms");

/// Bytes of a body kept where no policy repeats requests: enough to send most again when a kept connection turns out to be dead.
const KEPT_WITHOUT_RETRIES: usize = 16 * 1024;

/// Upstream's answer: the head came, the body follows.
pub(crate) struct Answer {
    pub(crate) head: response::Parts,
    pub(crate) body: Incoming,
    pub(crate) stream: UpstreamStream,
}

/// An exchange whose answer has begun. Keeps the connection and the counts until the end.
pub(crate) struct UpstreamStream {
    lease: Option<Lease>,
    active: ActiveRequest,
    source: Rc<RequestSource>,
    weighted: Option<WeightedEntry>,
    request_sent: Instant,
    service_time: Duration,
    status: http::StatusCode,
    /// End of the route's time-out.
    pub(crate) deadline: Option<Instant>,
    /// When the stream must be over.
    pub(crate) stream_end: Option<Instant>,
    pub(crate) idle_timeout: Option<Duration>,
}

impl UpstreamStream {
    /// True when the client had sent its whole request.
    pub(crate) fn request_ended(&self) -> bool {
        self.source.ended()
    }

    /// From the end of the request to the head of the answer.
    pub(crate) fn service_time(&self) -> Duration {
        self.service_time
    }

    /// Response header changes of the weighted cluster that was chosen.
    pub(crate) fn weighted(&self) -> Option<&HeaderMutations> {
        let (route, index) = self.weighted.as_ref()?;
        weighted_entry(route, *index).map(|entry| &entry.response_headers)
    }

    /// The route's time-out passed while the answer was coming.
    pub(crate) fn timed_out(&self) {
        self.active.cluster.stats.upstream_rq_timeout.inc();
        self.active.host.stats.rq_timeout.inc();
    }

    /// The answer ended; a clean end gives the connection back.
    pub(crate) fn end(&mut self, clean: bool) {
        let cluster = &self.active.cluster;
        let lease = self.lease.take();
        if !clean {
            cluster.stats.upstream_rq_rx_reset.inc();
            return;
        }
        cluster.stats.upstream_rq_completed.inc();
        cluster.stats.upstream_rq_time.record(self.request_sent.elapsed().as_millis() as u64);
        cluster.stats.statuses.inc(self.status.as_u16());
        // A connection on which the request is still being sent cannot carry another, and nobody wants the rest.
        if self.source.ended() {
            lease.into_iter().for_each(|lease| lease.finished(cluster, &self.active.host));
        } else {
            self.source.abandon();
        }
    }
}

/// Counts an exchange until dropped.
struct ActiveRequest {
    cluster: Rc<LocalCluster>,
    host: Rc<Host>,
    _place: Admission,
}

impl ActiveRequest {
    fn new(cluster: &Rc<LocalCluster>, host: &Rc<Host>, place: Admission) -> Self {
        cluster.stats.upstream_rq_total.inc();
        cluster.stats.upstream_rq_active.inc();
        host.stats.rq_total.inc();
        host.stats.rq_active.inc();
        Self { cluster: cluster.clone(), host: host.clone(), _place: place }
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.cluster.stats.upstream_rq_active.dec();
        self.host.stats.rq_active.dec();
    }
}

/// Sends the request on and waits for the head of the answer.
pub(crate) async fn forward(context: &mut RequestContext, action: &Forward) -> Result<Box<Answer>, Failure> {
    let (cluster, weighted) = pick_cluster(context, action);
    let Some(cluster) = cluster else {
        context.connection.stats.no_cluster.inc();
        return Err(Failure::ClusterNotFound(action.cluster_not_found_status));
    };
    context.cluster = Some(cluster.clone());
    let timeout = route_timeout(context, action);
    prepare_head(context, action, weighted.as_ref(), timeout);
    let Some(source) = context.body.clone() else { return Err(Failure::NoHealthyUpstream) };
    let policy = action.retry_policy.clone().or_else(|| context.virtual_host.as_ref()?.retry_policy.clone());
    let policy = policy.filter(|policy| {
        let wanted = &policy.retriable_request_headers;
        wanted.is_empty() || wanted.iter().any(|matcher| matcher.is_match(&request_view(context)))
    });
    if policy.is_none() {
        source.keep_at_most(KEPT_WITHOUT_RETRIES);
    }
    let idle_timeout = action.idle_timeout.unwrap_or(context.connection.config.hcm.stream_idle_timeout);
    let stream_end = stream_end(context, action, &cluster);
    let mut trial = Trial {
        context,
        action,
        cluster: &cluster,
        source: &source,
        policy: policy.as_deref(),
        timeout,
        idle_timeout,
        deadline: None,
        stream_end,
        tried: SmallVec::new(),
        retry_place: None,
    };
    let outcome = trial.run(weighted).await;
    if let Err(failure) = &outcome {
        charge_failure(&cluster, failure);
    }
    outcome
}

fn charge_failure(cluster: &LocalCluster, failure: &Failure) {
    match failure {
        Failure::ResponseTimeout => cluster.stats.upstream_rq_timeout.inc(),
        Failure::NoHealthyUpstream => cluster.stats.upstream_cx_none_healthy.inc(),
        Failure::ClientGone => return,
        _ => {}
    }
    cluster.stats.upstream_rq_completed.inc();
    cluster.stats.statuses.inc(failure.reply().status.as_u16());
}

fn weighted_entry(route: &Route, index: usize) -> Option<&lateen_ir::WeightedCluster> {
    match &route.action {
        lateen_ir::Action::Forward(action) => match &action.cluster {
            ClusterSpecifier::Weighted(weighted) => weighted.clusters.get(index),
            _ => None,
        },
        _ => None,
    }
}

/// A weighted cluster: its route, and its position there.
type WeightedEntry = (Arc<Route>, usize);

/// The cluster of the route, and which weighted entry it was.
fn pick_cluster(
    context: &RequestContext,
    action: &Forward,
) -> (Option<Rc<LocalCluster>>, Option<WeightedEntry>) {
    let worker = &context.connection.worker;
    let picked = action.cluster.pick(&request_view(context), worker.random());
    let cluster = match picked.cluster {
        PickedCluster::Ref(cluster) => {
            let slots = context.routes.as_ref().map(|routes| &routes.slots[..]).unwrap_or_default();
            slots.get(cluster.index as usize).and_then(|slot| context.view.cluster(*slot, worker))
        }
        PickedCluster::Named(name) => context.view.cluster_named(name, worker),
        PickedCluster::HeaderMissing => None,
    };
    let entry = match (&action.cluster, picked.weighted) {
        (ClusterSpecifier::Weighted(all), Some(entry)) => {
            all.clusters.iter().position(|e| std::ptr::eq(e, entry))
        }
        _ => None,
    };
    (cluster, entry.and_then(|index| Some((context.route.clone()?, index))))
}

fn route_timeout(context: &RequestContext, action: &Forward) -> Option<Duration> {
    let told = if context.present.any(Present::ENVOY) {
        context.head.headers.get(X_ENVOY_UPSTREAM_RQ_TIMEOUT_MS)
    } else {
        None
    };
    match told.and_then(|value| value.to_str().ok()?.parse::<u64>().ok()) {
        // Only internal clients get here with this header; others had it removed.
        Some(0) => None,
        Some(millis) => Some(Duration::from_millis(millis)),
        None => action.timeout.filter(|timeout| !timeout.is_zero()),
    }
}

/// `max_stream_duration` of the route, the cluster or the connection manager, or a gRPC client's own deadline.
fn stream_end(context: &RequestContext, action: &Forward, cluster: &LocalCluster) -> Option<Instant> {
    let manager = context.connection.config.hcm.common.max_stream_duration;
    let of_route = action.max_stream_duration.unwrap_or(lateen_ir::MaxStreamDuration {
        max_stream_duration: None,
        grpc_timeout_header_max: None,
        grpc_timeout_header_offset: None,
    });
    let told = if context.present.any(Present::GRPC_TIMEOUT) {
        context.head.headers.get("grpc-timeout").and_then(|value| grpc_timeout(value.to_str().ok()?))
    } else {
        None
    };
    let limit = match (of_route.grpc_timeout_header_max, told) {
        (Some(most), Some(told)) => {
            let told = most.filter(|most| !most.is_zero()).map_or(told, |most| told.min(most));
            Some(told.saturating_sub(of_route.grpc_timeout_header_offset.unwrap_or_default()))
        }
        _ => of_route.max_stream_duration.unwrap_or(manager),
    };
    let limits = [limit, cluster.config.ir.http.common.max_stream_duration];
    limits.into_iter().flatten().filter(|limit| !limit.is_zero()).min().map(|limit| context.started + limit)
}

/// `grpc-timeout`: up to eight digits and a unit.
/// <https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>
fn grpc_timeout(value: &str) -> Option<Duration> {
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    let n = digits.parse::<u64>().ok().filter(|_| digits.len() <= 8)?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

/// Whether the router keeps its `x-envoy-*` headers to itself.
fn suppresses(context: &RequestContext) -> bool {
    context.connection.config.hcm.router().is_some_and(|router| router.suppress_envoy_headers)
}

/// Brings the head into the form in which it is sent.
fn prepare_head(
    context: &mut RequestContext,
    action: &Forward,
    weighted: Option<&WeightedEntry>,
    timeout: Option<Duration>,
) {
    let suppress = suppresses(context);
    if !suppress && let Some(timeout) = timeout {
        let policy = action.retry_policy.as_ref().and_then(|policy| policy.per_try_timeout);
        let expected = policy.filter(|per_try| *per_try < timeout).unwrap_or(timeout);
        let value = context.connection.expected_text.get(expected);
        context.head.headers.insert(X_ENVOY_EXPECTED_RQ_TIMEOUT_MS, value);
    }
    let weighted = weighted.and_then(|(route, index)| weighted_entry(route, *index));
    if let Some(levels) = request_mutations(context, weighted) {
        let mut headers = context.head.headers.clone();
        apply_levels(levels.0, levels.1, &mut headers, context);
        context.head.headers = headers;
    }
    let literal = weighted.and_then(|entry| entry.host_rewrite.as_ref());
    rewrite::authority(context, action, literal, suppress);
    if !matches!(action.path_rewrite, PathRewrite::None)
        && let Some(route) = context.route.clone()
    {
        rewrite::path(context, action, &route.matching, suppress);
    }
}

/// Changes to request headers from the most specific level to the least, and whether the most specific wins; `None`: there are none.
fn request_mutations<'a>(
    context: &'a RequestContext,
    weighted: Option<&'a lateen_ir::WeightedCluster>,
) -> Option<([Option<&'a HeaderMutations>; 4], bool)> {
    let (route, host, table) =
        (context.route.as_ref()?, context.virtual_host.as_ref()?, context.routes.as_ref()?);
    let levels = [
        weighted.map(|entry| &entry.request_headers),
        Some(&route.request_headers),
        Some(&host.request_headers),
        Some(&table.ir.request_headers),
    ];
    let any = levels.iter().flatten().any(|mutations| !mutations.is_empty());
    any.then_some((levels, table.ir.most_specific_header_mutations_wins))
}

/// The attempts of one request.
struct Trial<'a> {
    context: &'a mut RequestContext,
    action: &'a Forward,
    cluster: &'a Rc<LocalCluster>,
    source: &'a Rc<RequestSource>,
    policy: Option<&'a RetryPolicy>,
    timeout: Option<Duration>,
    idle_timeout: Option<Duration>,
    deadline: Option<Instant>,
    /// When the stream must be over, whatever it does.
    stream_end: Option<Instant>,
    tried: SmallVec<[SocketAddr; 4]>,
    retry_place: Option<Admission>,
}

impl Trial<'_> {
    async fn run(&mut self, weighted: Option<WeightedEntry>) -> Result<Box<Answer>, Failure> {
        loop {
            self.context.attempts += 1;
            let host = self.pick_host().ok_or(Failure::NoHealthyUpstream)?;
            self.context.host = Some(host.clone());
            if matches!(self.action.host_rewrite, HostRewrite::Auto) {
                let name = host.endpoint.borrow().hostname.clone();
                if let Some(Ok(name)) = name.as_deref().map(HeaderValue::from_str) {
                    let suppress = suppresses(self.context);
                    rewrite::set_authority(self.context, self.action, name, suppress);
                }
            }
            let high_priority = self.action.high_priority;
            let Some(place) = breakers::admit(&self.cluster.config, Limited::Request, high_priority) else {
                self.cluster.stats.upstream_rq_pending_overflow.inc();
                return Err(self.broken(Reset::Overflow));
            };
            let active = ActiveRequest::new(self.cluster, &host, place);
            match self.attempt(&host).await {
                Ok((lease, response)) => {
                    let status = response.status();
                    let failed = status.is_server_error();
                    if failed { &host.stats.rq_error } else { &host.stats.rq_success }.inc();
                    self.cluster.observe(
                        &host,
                        Outcome::Answered(status),
                        self.context.connection.worker.random(),
                    );
                    let wanted =
                        |policy: &RetryPolicy| retry::after_answer(policy, status, response.headers());
                    if self.policy.is_some_and(wanted) && Box::pin(self.may_retry()).await {
                        continue;
                    }
                    if self.context.attempts > 1 && !failed {
                        self.cluster.stats.upstream_rq_retry_success.inc();
                    }
                    return Ok(self.answer(response, lease, active, weighted));
                }
                Err(AttemptFailure::Client) => {
                    self.cluster.stats.upstream_rq_tx_reset.inc();
                    return Err(self.source.failure());
                }
                Err(failure) => {
                    host.stats.rq_error.inc();
                    self.cluster.observe(
                        &host,
                        Outcome::LocalFailure,
                        self.context.connection.worker.random(),
                    );
                    drop(active);
                    if !self.retriable(&failure) || !Box::pin(self.may_retry()).await {
                        return Err(self.final_failure(failure));
                    }
                }
            }
        }
    }

    fn broken(&self, reset: Reset) -> Failure {
        Failure::Upstream { reset, retried: self.context.attempts > 1 }
    }

    fn final_failure(&mut self, failure: AttemptFailure) -> Failure {
        match failure {
            AttemptFailure::Broken(broken) => {
                self.context.upstream_failure =
                    broken.reset.transport_reason().map(|reason| underscored(reason).into());
                self.broken(broken.reset)
            }
            AttemptFailure::Client => self.source.failure(),
            AttemptFailure::Overall => Failure::ResponseTimeout,
            AttemptFailure::PerTry => Failure::PerTryTimeout,
            AttemptFailure::Idle => Failure::StreamIdleTimeout { request_complete: self.source.ended() },
            AttemptFailure::StreamEnd => Failure::MaxStreamDuration,
        }
    }

    fn retriable(&self, failure: &AttemptFailure) -> bool {
        let Some(policy) = self.policy else { return false };
        match failure {
            AttemptFailure::Broken(broken) => {
                retry::after_break(policy.on, retry::Broken::Reset(&broken.reset), broken.sent)
            }
            AttemptFailure::PerTry => retry::after_break(policy.on, retry::Broken::PerTryTimeout, true),
            AttemptFailure::Client
            | AttemptFailure::Overall
            | AttemptFailure::Idle
            | AttemptFailure::StreamEnd => false,
        }
    }

    /// Takes the permission for one more attempt and pauses. The attempt is known to be wanted.
    async fn may_retry(&mut self) -> bool {
        let Some(policy) = self.policy else { return false };
        let stats = &self.cluster.stats;
        if self.context.attempts > policy.num_retries {
            self.context.flags.insert(Flags::UPSTREAM_RETRY_LIMIT);
            stats.upstream_rq_retry_limit_exceeded.inc();
            return false;
        }
        if !self.source.replayable() {
            stats.retry_or_shadow_abandoned.inc();
            return false;
        }
        self.retry_place = None;
        let Some(place) = breakers::admit(&self.cluster.config, Limited::Retry, self.action.high_priority)
        else {
            self.context.flags.insert(Flags::UPSTREAM_OVERFLOW);
            stats.upstream_rq_retry_overflow.inc();
            return false;
        };
        self.retry_place = Some(place);
        stats.upstream_rq_retry.inc();
        stats.upstream_rq_retry_backoff_exponential.inc();
        let pause =
            retry::pause(policy.backoff, self.context.attempts, self.context.connection.worker.random());
        let until = Instant::now() + pause;
        if self.deadline.is_some_and(|deadline| until >= deadline) {
            return false;
        }
        tokio::time::sleep_until(until.into()).await;
        true
    }

    fn pick_host(&mut self) -> Option<Rc<Host>> {
        let connection = self.context.connection.clone();
        let destination = self.destination();
        let mut random = || connection.worker.random();
        let avoid = self.policy.filter(|policy| policy.avoid_previous_hosts && !self.tried.is_empty());
        let mut left = avoid.map_or(1, |policy| policy.host_selection_max_attempts.max(1));
        loop {
            let host = self.cluster.pick(destination, &mut random)?;
            left -= 1;
            if left == 0 || !self.tried.contains(&host.address) {
                if self.policy.is_some() {
                    self.tried.push(host.address);
                }
                return Some(host);
            }
        }
    }

    /// ORIGINAL_DST: where the client wanted to go.
    fn destination(&self) -> Option<SocketAddr> {
        let Discovery::OriginalDst { header, .. } = &self.cluster.config.ir.discovery else { return None };
        let info = &self.context.connection.info;
        let from_header = header.as_ref().and_then(|name| self.context.head.headers.get(name));
        match from_header {
            Some(value) => value.to_str().ok()?.parse().ok(),
            None => info.restored.then_some(info.local),
        }
    }

    /// One attempt with its time limits.
    async fn attempt(&mut self, host: &Rc<Host>) -> Result<(Lease, Response<Incoming>), AttemptFailure> {
        let per_try = self.policy.and_then(|policy| policy.per_try_timeout);
        let limits = Limits {
            timeout: self.timeout,
            deadline: self.deadline,
            per_try,
            idle: self.idle_timeout,
            stream_end: self.stream_end,
        };
        let source = self.source.clone();
        let waited = wait(&source, limits, self.try_once(host)).await;
        self.deadline = waited.deadline;
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
            Err(TimedOut::Idle) => Err(AttemptFailure::Idle),
            Err(TimedOut::StreamEnd) => {
                self.cluster.stats.upstream_rq_max_duration_reached.inc();
                Err(AttemptFailure::StreamEnd)
            }
        }
    }

    /// Sends the request once. A kept connection may be closing at this very moment; when nothing of the request can have
    /// been processed, or processing it twice is harmless, a fresh one is used. This is not a retry in the policy's sense.
    async fn try_once(&mut self, host: &Rc<Host>) -> Result<(Lease, Response<Incoming>), Broken> {
        let worker = self.context.connection.worker.clone();
        let target =
            Target { worker: &worker, cluster: self.cluster, host, high_priority: self.action.high_priority };
        let mut fresh = false;
        loop {
            let lease = upstream::lease(target, self.context.version, fresh).await;
            let mut lease = lease.map_err(|reset| Broken { reset, sent: false })?;
            self.context.upstream = Some(lease.facts().clone());
            self.context.upstream_version = Some(lease.version());
            let reused = lease.reused();
            let request = self.request(lease.version());
            match upstream::exchange(&mut lease, request).await {
                Ok(response) => {
                    self.context.answered = Present::of(response.headers());
                    if lease.version() < Version::HTTP_2
                        && self.context.answered.any(Present::TRANSFER_ENCODING)
                        && !proper_answer(response.headers())
                    {
                        return Err(Broken { reset: Reset::Protocol, sent: true });
                    }
                    self.context.first_upstream_byte = Some(Instant::now());
                    return Ok((lease, response));
                }
                Err(broken) => {
                    let harmless = !broken.sent || retry::idempotent(&self.context.head.method);
                    let stale = reused && !fresh && broken.reset == Reset::Terminated;
                    if !(stale && harmless && self.source.replayable()) {
                        return Err(broken);
                    }
                    fresh = true;
                }
            }
        }
    }

    /// The message for one attempt.
    fn request(&mut self, version: Version) -> Request<RequestBody> {
        let empty = self.source.ended() && self.source.received() == 0 && self.source.no_trailers();
        let body = if empty { RequestBody::Empty } else { RequestBody::Shared(self.source.attempt()) };
        let mut request = Request::new(body);
        *request.method_mut() = self.context.head.method.clone();
        *request.version_mut() = version;
        let headers = request.headers_mut();
        // The copy stays: it has room for what it holds only, and hyper reads the answer into the map it has sent.
        let kept = self.context.head.headers.clone();
        *headers = std::mem::replace(&mut self.context.head.headers, kept);
        if self.context.virtual_host.as_ref().is_some_and(|host| host.include_request_attempt_count) {
            headers.insert(X_ENVOY_ATTEMPT_COUNT, HeaderValue::from(self.context.attempts));
        }
        let path = self.context.path.clone();
        if version == Version::HTTP_2 {
            headers.remove(header::HOST);
            let mut parts = http::uri::Parts::default();
            parts.scheme =
                Some(if self.context.secure { http::uri::Scheme::HTTPS } else { http::uri::Scheme::HTTP });
            parts.authority = http::uri::Authority::try_from(self.context.authority.as_bytes()).ok();
            parts.path_and_query = Some(path);
            // Without a valid authority the path alone goes, and the server refuses it.
            *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
        } else {
            if headers.get(header::HOST) != Some(&self.context.authority) {
                headers.insert(header::HOST, self.context.authority.clone());
            }
            // hyper would drop a body of unknown length from a GET.
            if !empty && !headers.contains_key(header::CONTENT_LENGTH) {
                headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            }
            // Some services answer 411 to a method that may have a body and doesn't say how long it is (RFC 9110, section 8.6).
            if empty && !has_no_body(&self.context.head.method) {
                headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
            }
            *request.uri_mut() = Uri::from(path);
        }
        request
    }

    fn answer(
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
            source: self.source.clone(),
            weighted,
            request_sent: began,
            service_time: now.saturating_duration_since(began),
            status: head.status,
            deadline: self.deadline,
            stream_end: self.stream_end,
            idle_timeout: self.idle_timeout,
        };
        // Boxed here, since what follows passes it on several times.
        Box::new(Answer { head, body, stream })
    }
}

/// Methods whose requests nobody expects a body of.
fn has_no_body(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::DELETE | Method::TRACE | Method::CONNECT)
}

/// How an attempt failed.
enum AttemptFailure {
    Broken(Broken),
    /// The client's body broke off; the endpoint is not to blame.
    Client,
    Overall,
    PerTry,
    Idle,
    StreamEnd,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts() {
        for (value, expected) in [
            ("5S", Some(Duration::from_secs(5))),
            ("250m", Some(Duration::from_millis(250))),
            ("1H", Some(Duration::from_secs(3600))),
            ("123456789S", None),
            ("S", None),
            ("", None),
            ("5x", None),
            ("5é", None),
        ] {
            assert_eq!(grpc_timeout(value), expected, "{value}");
        }
    }
}
