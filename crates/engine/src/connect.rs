//! CONNECT that ends here (`connect_config`): a connection of its own to the endpoint, which gets what the tunnel carries as it is.

use std::sync::Arc;
use std::time::Instant;

use http::StatusCode;
use lateen_ir::{Discovery, Forward, RetryPolicy};

use crate::answer::{ActiveRequest, UpstreamStream};
use crate::asked::keep_to_headers;
use crate::breakers::{self, Limited};
use crate::cluster::Need;
use crate::context::RequestContext;
use crate::failure::{Failure, Flags, Reset, underscored};
use crate::forward::{idle_timeout, metadata_criteria, request_hash, restore_port, stream_end};
use crate::outlier::Outcome;
use crate::retry;
use crate::route_stats::of_route;
use crate::special::Special;
use crate::stream::Stream;
use crate::upstream::Target;
use crate::upstream_connection::{self, Opened};

/// A tunnel's far end.
pub(crate) struct Tunnel {
    pub(crate) connection: Stream,
    pub(crate) opened: Opened,
    pub(crate) stream: UpstreamStream,
}

/// Connects to an endpoint of the route's cluster, as often as the route's policy wants after failures to connect.
pub(crate) async fn connect(context: &mut RequestContext, action: &Forward) -> Result<Box<Tunnel>, Failure> {
    let Some(cluster) = context.cluster.clone() else {
        context.connection.stats.no_cluster.inc();
        return Err(Failure::ClusterNotFound(action.cluster_not_found_status));
    };
    restore_port(context);
    context.route_stats = of_route(context);
    let weighted = context.weighted.and_then(|index| Some((context.route.clone()?, index)));
    let Some(source) = context.body.clone() else { return Err(Failure::NoHealthyUpstream) };
    let worker = context.connection.worker.clone();
    let info = &context.connection.info;
    let destination = match &cluster.config.ir.discovery {
        Discovery::OriginalDst { .. } => info.original_destination(),
        _ => None,
    };
    let hash = if cluster.config.ir.lb_policy.hashes() { request_hash(context, action) } else { None };
    // Names are only asked for by clusters that go by them.
    let name = context.authority.clone();
    let (route, entry) = (context.route.clone(), context.weighted);
    let criteria = route.as_deref().and_then(|route| metadata_criteria(route, entry));
    let need = || Need { destination, name: name.to_str().ok(), hash, criteria, ..Need::default() };
    let of_host = || context.virtual_host.as_ref()?.retry_policy.clone();
    let mut policy = action.retry_policy.clone().or_else(of_host);
    policy.iter_mut().for_each(|policy| keep_to_headers(policy, context));
    loop {
        context.attempts += 1;
        let mut found = cluster.pick(need(), &mut || worker.random(), &|_| false);
        if found.is_none() {
            found = Box::pin(cluster.look_up_host(name.to_str().ok(), None)).await.ok();
        }
        let Some(host) = found else {
            cluster.stats.upstream_cx_none_healthy.inc();
            return Err(Failure::NoHealthyUpstream);
        };
        context.host = Some(host.clone());
        let retried = context.attempts > 1;
        let admit = |what| breakers::admit(&cluster.config, what, action.high_priority);
        let (Some(place), Some(connection)) = (admit(Limited::Request), admit(Limited::Connection)) else {
            cluster.stats.upstream_rq_pending_overflow.inc();
            return Err(Failure::Upstream { reset: Reset::Overflow, retried });
        };
        let active = ActiveRequest::new(&cluster, &host, place).of_route(&context.route_stats);
        let target = Target {
            worker: &worker,
            cluster: &cluster,
            host: &host,
            special: Special::of_request(context, &cluster.config.ir, &host, action.high_priority),
        };
        match upstream_connection::open(&target, Some(connection), &[]).await {
            Ok((connection, opened)) => {
                opened.facts.active.set(1);
                context.upstream = Some(opened.facts.clone());
                let now = Instant::now();
                context.first_upstream_byte = Some(now);
                let stream = UpstreamStream {
                    lease: None,
                    active,
                    source: Some(source),
                    weighted,
                    request_sent: context.started,
                    service_time: now.saturating_duration_since(context.started),
                    status: StatusCode::OK,
                    deadline: None,
                    stream_end: stream_end(context, cluster.max_stream_duration()),
                    idle_timeout: idle_timeout(context),
                    per_try_idle: None,
                };
                return Ok(Box::new(Tunnel { connection, opened, stream }));
            }
            Err(reset) => {
                host.stats.rq_error.inc();
                cluster.observe(&host, Outcome::LocalFailure, &worker);
                context.upstream_failure = reset.transport_reason().map(|reason| underscored(reason).into());
                let retriable = |policy: &Arc<RetryPolicy>| {
                    retry::after_break(policy.on, retry::Broken::Reset(&reset), false)
                };
                let most =
                    policy.as_ref().filter(|policy| retriable(policy)).map(|policy| policy.num_retries);
                if most.is_some_and(|most| context.attempts > most) {
                    context.flags.insert(Flags::UPSTREAM_RETRY_LIMIT);
                    cluster.stats.upstream_rq_retry_limit_exceeded.inc();
                    let route = context.route_stats.iter();
                    route.for_each(|route| route.upstream_rq_retry_limit_exceeded.inc());
                }
                if most.is_none_or(|most| context.attempts > most) {
                    return Err(Failure::Upstream { reset, retried });
                }
                cluster.stats.upstream_rq_retry.inc();
                context.route_stats.iter().for_each(|route| route.upstream_rq_retry.inc());
            }
        }
    }
}
