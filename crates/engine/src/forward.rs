//! Step 7: the cluster of a request and the head it is sent with; `trial` does the attempts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderName, HeaderValue, StatusCode, request};
use lateen_ir::{
    Action, ClusterSpecifier, Forward, MetadataCriteria, PathRewrite, PickedCluster, PreviousPriorities,
    RetryPolicy, Route, WeightedTarget,
};
use smallvec::SmallVec;

use crate::answer::Answer;
use crate::asked::{Asked, keep_to_headers};
use crate::cluster::LocalCluster;
use crate::context::RequestContext;
use crate::failure::Failure;
use crate::header_mutations;
use crate::http_request::request_view;
use crate::local_reply;
use crate::presence::Present;
use crate::trial::Trial;
use crate::{hedge, interim, mirror, rewrite, route_stats};

pub(crate) const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
pub(crate) const X_ENVOY_EXPECTED_RQ_TIMEOUT_MS: HeaderName =
    HeaderName::from_static("x-envoy-expected-rq-timeout-ms");

/// Bytes of a body kept where no policy repeats requests: enough to send most again when a kept connection turns out to be dead.
const KEPT_WITHOUT_RETRIES: usize = 16 * 1024;

/// Sends the request on and waits for the head of the answer.
pub(crate) async fn forward(context: &mut RequestContext, action: &Forward) -> Result<Box<Answer>, Failure> {
    let Some(cluster) = context.cluster.clone() else {
        context.connection.stats.no_cluster.inc();
        return Err(Failure::ClusterNotFound(action.cluster_not_found_status));
    };
    restore_port(context);
    context.route_stats = route_stats::of_route(context);
    let weighted = context.weighted.and_then(|index| Some((context.route.clone()?, index)));
    // Before the head says to the endpoint what is left of a client's own deadline.
    let asked = Asked::take(context);
    let stream_end = stream_end(context, None);
    let try_limit = asked.stream_duration.unwrap_or_else(|| cluster.max_stream_duration());
    let Terms { timeout, policy, hedges } = terms(context, action, weighted.as_ref(), asked);
    interim::tell_id(context);
    let Some(source) = context.body.clone() else { return Err(Failure::NoHealthyUpstream) };
    if !action.mirrors.is_empty() {
        mirror::start(context, action, &source, timeout);
    }
    if policy.is_none() && action.internal_redirect.is_none() {
        source.keep_at_most(KEPT_WITHOUT_RETRIES);
    }
    let idle_timeout = idle_timeout(context);
    let hash = if cluster.config.ir.lb_policy.hashes() { request_hash(context, action) } else { None };
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
        try_limit: try_limit.filter(|limit| !limit.is_zero()),
        try_end: None,
        tried: SmallVec::new(),
        retry_place: None,
        priorities: policy
            .as_deref()
            .and_then(|policy| policy.previous_priorities)
            .map(|frequency| Box::new(PreviousPriorities::new(frequency))),
        hash,
        active: None,
        said: None,
        timed_out: false,
        hedges: hedges.is_some(),
    };
    let mut outcome = match hedges {
        None => trial.run(weighted).await,
        Some(retries) => Box::pin(hedge::run(&mut trial, weighted, retries)).await,
    };
    if let Err(failure) = &mut outcome {
        settle(context, &cluster, failure);
    }
    outcome
}

/// Counts a failure and puts it as the client wants it.
fn settle(context: &RequestContext, cluster: &LocalCluster, failure: &mut Failure) {
    if *failure == Failure::ResponseTimeout {
        cluster.stats.upstream_rq_timeout.inc();
        context.route_stats.iter().for_each(|route| route.upstream_rq_timeout.inc());
    }
    if context.no_content_on_timeout && failure.is_timeout() {
        let mut reply = failure.reply();
        (reply.status, reply.body) = (StatusCode::NO_CONTENT, "".into());
        *failure = Failure::Answered(Box::new(reply));
    }
    // The endpoint has begun to answer.
    if context.begun_upstream {
        if matches!(failure, Failure::Upstream { .. }) {
            let mut reply = failure.reply();
            reply.details = reply.details.replace("before_response", "after_response").into();
            *failure = Failure::Answered(Box::new(reply));
        }
        return;
    }
    charge_failure(context, cluster, failure);
}

/// What the route hashes of the request. A client that lacks a cookie is given one with the answer.
pub(crate) fn request_hash(context: &mut RequestContext, action: &Forward) -> Option<u64> {
    let mut new = Vec::new();
    let info = &context.connection.info;
    let view = request_view(context);
    let hash = lateen_ir::request_hash(&action.hash_policy, &view, context.client.ip(), |cookie| {
        let value = lateen_ir::new_cookie_value(&info.peer, &info.local);
        new.extend(HeaderValue::try_from(cookie.set_cookie(&value)).ok());
        value
    });
    context.new_cookies = new;
    hash
}

/// How long a request may take and how often it is tried.
struct Terms {
    timeout: Option<Duration>,
    policy: Option<Arc<RetryPolicy>>,
    /// Tries that take too long run on; whether another begins then.
    hedges: Option<bool>,
}

/// The terms of the route and of what the request asks for; the head is brought into the form in which it is sent.
fn terms(
    context: &mut RequestContext,
    action: &Forward,
    weighted: Option<&WeightedEntry>,
    asked: Asked,
) -> Terms {
    let timeout = asked.timeout.unwrap_or_else(|| timeout_of_route(context, action));
    context.no_content_on_timeout = asked.no_content_on_timeout;
    let hedges = asked.hedges.unwrap_or(action.hedge_on_per_try_timeout);
    let of_route = action.retry_policy.as_ref();
    let of_route = of_route.or_else(|| context.virtual_host.as_ref()?.retry_policy.as_ref());
    let retries = asked.asks_for_retries() || of_route.is_some_and(|policy| policy.retries());
    let mut policy = match of_route {
        None if !context.present.any(Present::ASKING) => None,
        of_route => asked.policy(of_route, timeout),
    };
    // A try that is hedged has all the time there is.
    let of_try = policy.as_deref().filter(|_| !hedges);
    prepare_head(context, action, weighted, expected_timeout(of_try, timeout));
    policy.iter_mut().for_each(|policy| keep_to_headers(policy, context));
    let hedges = hedges && policy.as_deref().is_some_and(RetryPolicy::limits_tries);
    Terms { timeout, policy, hedges: hedges.then_some(retries) }
}

/// The route's time-out, which for gRPC may be the client's own.
fn timeout_of_route(context: &RequestContext, action: &Forward) -> Option<Duration> {
    match action.grpc_timeout.as_deref().filter(|_| local_reply::is_grpc(&context.head)) {
        Some(limit) => limit.of(told_deadline(context)),
        None => action.timeout,
    }
}

/// What the service is told of the time it has: that of one try, if it has one, or else of everything.
fn expected_timeout(policy: Option<&RetryPolicy>, timeout: Option<Duration>) -> Option<Duration> {
    policy.and_then(|policy| policy.per_try_timeout).or(timeout)
}

fn charge_failure(context: &RequestContext, cluster: &LocalCluster, failure: &Failure) {
    match failure {
        Failure::NoHealthyUpstream => cluster.stats.upstream_cx_none_healthy.inc(),
        // Neither has to do with the cluster.
        Failure::ClientGone | Failure::StreamIdleTimeout { .. } => return,
        _ => {}
    }
    route_stats::charge(cluster, context.route_stats.as_deref(), failure.reply().status);
}

pub(crate) fn weighted_entry(route: &Route, index: usize) -> Option<&lateen_ir::WeightedCluster> {
    match &route.action {
        Action::Forward(action) => match &action.cluster {
            ClusterSpecifier::Weighted(weighted) => weighted.clusters.get(index),
            _ => None,
        },
        _ => None,
    }
}

/// What a route, or an entry of its weighted clusters, asks of endpoints.
pub(crate) fn metadata_criteria(route: &Route, weighted: Option<usize>) -> Option<&Arc<MetadataCriteria>> {
    let Action::Forward(action) = &route.action else { return None };
    let entry = weighted.and_then(|index| weighted_entry(route, index));
    entry.and_then(|entry| entry.metadata_match.as_ref()).or(action.metadata_match.as_ref())
}

/// A weighted cluster: its route, and its position there.
pub(crate) type WeightedEntry = (Arc<Route>, usize);

/// Chooses the cluster of the request's route, and which weighted entry of it. Filters want to know, so this happens with routing.
pub(crate) fn choose_cluster(context: &mut RequestContext) {
    let Some(route) = context.route.clone() else { return };
    let Action::Forward(action) = &route.action else { return };
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
    context.weighted = match (&action.cluster, picked.weighted) {
        (ClusterSpecifier::Weighted(all), Some(entry)) => {
            all.clusters.iter().position(|e| std::ptr::eq(e, entry))
        }
        _ => None,
    };
    context.cluster = cluster;
}

/// Name of the cluster the request's route leads to, whether it exists or not.
pub(crate) fn cluster_name(context: &RequestContext) -> Option<&str> {
    let route = context.route.as_ref()?;
    let Action::Forward(action) = &route.action else { return None };
    let named_by = |name: &HeaderName| context.head.headers.get(name)?.to_str().ok();
    match &action.cluster {
        ClusterSpecifier::Cluster(cluster) => Some(&cluster.name),
        ClusterSpecifier::Header(name) => named_by(name),
        ClusterSpecifier::Weighted(_) => match &weighted_entry(route, context.weighted?)?.cluster {
            WeightedTarget::Cluster(cluster) => Some(&cluster.name),
            WeightedTarget::Header(name) => named_by(name),
        },
    }
}

/// Names the port again that a client wants to be connected to, where it was taken off for the route, as Envoy does.
pub(crate) fn restore_port(context: &mut RequestContext) {
    if let Some(port) = context.connect_port.take()
        && let Ok(host) = context.authority.to_str()
        && let Ok(authority) = HeaderValue::try_from(format!("{host}:{port}"))
    {
        context.authority = authority;
    }
}

/// How long a stream may be idle: as the route says, or else the connection manager.
pub(crate) fn idle_timeout(context: &RequestContext) -> Option<Duration> {
    let of_route = match context.route.as_ref().map(|route| &route.action) {
        Some(Action::Forward(action)) => action.idle_timeout,
        _ => None,
    };
    of_route.unwrap_or(context.connection.config.hcm.stream_idle_timeout)
}

/// `max_stream_duration` of the route or the connection manager, or a gRPC client's own deadline; `upstream`: the cluster's, where it
/// is not each try's own.
pub(crate) fn stream_end(context: &RequestContext, upstream: Option<Duration>) -> Option<Instant> {
    let upstream = upstream.filter(|limit| !limit.is_zero());
    let limits = [stream_limit(context), upstream];
    limits.into_iter().flatten().min().map(|limit| context.started + limit)
}

/// What the route or else the connection manager says of it.
fn stream_limit(context: &RequestContext) -> Option<Duration> {
    let manager = context.connection.config.hcm.common.max_stream_duration;
    let of_route = match context.route.as_ref().map(|route| &route.action) {
        Some(Action::Forward(action)) => action.max_stream_duration.as_deref().copied(),
        _ => None,
    };
    let of_route = of_route.unwrap_or(lateen_ir::MaxStreamDuration {
        max_stream_duration: None,
        grpc_timeout_header_max: None,
        grpc_timeout_header_offset: None,
    });
    match (of_route.grpc_timeout_header_max, told_deadline(context)) {
        (Some(most), Some(told)) => {
            let told = most.filter(|most| !most.is_zero()).map_or(told, |most| told.min(most));
            Some(told.saturating_sub(of_route.grpc_timeout_header_offset.unwrap_or_default()))
        }
        // None of them is 0, while a client that has no time left is told so.
        _ => of_route.max_stream_duration.unwrap_or(manager).filter(|limit| !limit.is_zero()),
    }
}

/// The time-out of a gRPC client.
fn told_deadline(context: &RequestContext) -> Option<Duration> {
    if !context.present.any(Present::GRPC_TIMEOUT) {
        return None;
    }
    context.head.headers.get(GRPC_TIMEOUT).and_then(|value| grpc_timeout(value.to_str().ok()?))
}

/// A gRPC server hears how much time the request or a try has, or how long the route lets the stream live, as from Envoy.
fn tell_deadline(context: &mut RequestContext, action: &Forward, expected: Option<Duration>) {
    if action.max_stream_duration.is_none() {
        if let Some(expected) = expected
            && tells_grpc(action, &context.head)
        {
            context.head.headers.insert(GRPC_TIMEOUT, grpc_timeout_value(expected));
        }
        return;
    }
    if !local_reply::is_grpc(&context.head) {
        return;
    }
    match stream_limit(context).filter(|limit| !limit.is_zero()) {
        Some(limit) => drop(context.head.headers.insert(GRPC_TIMEOUT, grpc_timeout_value(limit))),
        None => drop(context.head.headers.remove(GRPC_TIMEOUT)),
    }
}

/// Whether `grpc-timeout` says how long a request may take, as the route has it.
pub(crate) fn tells_grpc(action: &Forward, head: &request::Parts) -> bool {
    action.grpc_timeout.is_some() && local_reply::is_grpc(head)
}

/// A time as `grpc-timeout` has it.
pub(crate) fn grpc_timeout_value(time: Duration) -> HeaderValue {
    // Digits and a letter are a header value.
    HeaderValue::try_from(lateen_ir::grpc_timeout_text(time)).unwrap_or(HeaderValue::from_static("0m"))
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
        // Envoy's time-outs are of milliseconds, and none that was asked for is of zero.
        "u" => Duration::from_millis(n.div_ceil(1000)),
        "n" => Duration::from_millis(n.div_ceil(1_000_000)),
        _ => return None,
    })
}

/// Whether the router keeps its `x-envoy-*` headers to itself.
pub(crate) fn suppresses(context: &RequestContext) -> bool {
    context.connection.config.hcm.router().is_some_and(|router| router.suppress_envoy_headers)
}

/// Brings the head into the form in which it is sent.
fn prepare_head(
    context: &mut RequestContext,
    action: &Forward,
    weighted: Option<&WeightedEntry>,
    expected: Option<Duration>,
) {
    let suppress = suppresses(context);
    if !suppress && let Some(expected) = expected {
        let value = context.connection.expected_text.get(expected);
        context.head.headers.insert(X_ENVOY_EXPECTED_RQ_TIMEOUT_MS, value);
    }
    tell_deadline(context, action, expected);
    let weighted = weighted.and_then(|(route, index)| weighted_entry(route, *index));
    // It is for the attempt that comes.
    context.attempts += 1;
    header_mutations::mutate_request(context, weighted);
    context.attempts -= 1;
    rewrite::authority(context, action, suppress);
    if !matches!(action.path_rewrite, PathRewrite::None)
        && let Some(route) = context.route.clone()
    {
        rewrite::path(context, action, &route.matching, suppress);
    }
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
            ("1001u", Some(Duration::from_millis(2))),
            ("1n", Some(Duration::from_millis(1))),
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
