//! Looks up the host that a request names, when its cluster goes by that (see `dns_cache`).

use std::sync::Arc;

use http::StatusCode;
use http::header::HeaderValue;
use lateen_ir::{DynamicHostRewrite, FilterLevels, FilterRouteConfig, dynamic_host_key};

use super::{FilterState, Step, levels, within_limits};
use crate::context::RequestContext;
use crate::dns_cache::{CachedHost, DnsCache, Known, Loaded, PendingLookup};
use crate::failure::{Failure, Flags, Reply};
use crate::snapshot::FilterSlot;

/// A request's wait for an address.
pub(crate) struct Waiting {
    host: Arc<CachedHost>,
    _pending: PendingLookup,
}

fn unavailable(body: &'static str, details: &'static str) -> Failure {
    let reply = Reply::new(StatusCode::SERVICE_UNAVAILABLE, body, Flags::default(), details);
    Failure::Answered(Box::new(reply))
}

/// Whether the request may go on.
fn judge(known: &Known) -> Result<(), Failure> {
    let reason = match known {
        Known::At(_) => return Ok(()),
        Known::Failed(reason) => reason,
        Known::Nothing => "",
    };
    let details = format!("dns_resolution_failure{{{reason}}}");
    let status = StatusCode::SERVICE_UNAVAILABLE;
    let reply = Reply::new(status, "DNS resolution failure", Flags::DNS_RESOLUTION_FAILED, details);
    Err(Failure::Answered(Box::new(reply)))
}

pub(super) fn decode(
    cache: &Arc<DnsCache>,
    name: FilterSlot,
    context: &mut RequestContext,
) -> Result<Step, Failure> {
    let Some(cluster) = context.cluster.clone() else { return Ok(Step::Next) };
    let Some(of_cluster) = &cluster.config.dns_cache else { return Ok(Step::Next) };
    if let Some(host) = rewritten(name, context) {
        context.authority = host;
    }
    let Some(pending) = cache.admit() else {
        return Err(unavailable(
            "Dynamic forward proxy pending request overflow",
            "dynamic_forward_proxy_pending_request_overflow",
        ));
    };
    let authority = context.authority.to_str().unwrap_or_default();
    if authority.is_empty() {
        let status = StatusCode::BAD_REQUEST;
        let mut reply = Reply::new(status, "Empty host header", Flags::default(), "empty_host_header");
        reply.close = true;
        return Err(Failure::Answered(Box::new(reply)));
    }
    // The usual case needs no lock: this worker has sent there before.
    if Arc::ptr_eq(cache, of_cluster) && cluster.named_host(authority, None).is_some() {
        return Ok(Step::Next);
    }
    let mut key = String::new();
    dynamic_host_key(authority, cluster.config.default_port(), &mut key);
    match cache.load(&key) {
        Loaded::Known(known) => judge(&known).map(|()| Step::Next),
        Loaded::Loading(host) => {
            context.filters.push(FilterState::Waiting(Waiting { host, _pending: pending }));
            Ok(Step::Pause)
        }
        Loaded::Overflow => Err(unavailable("DNS cache overflow", "dns_cache_overflow")),
    }
}

/// The host that the route puts in place of the request's.
fn rewritten(name: FilterSlot, context: &RequestContext) -> Option<HeaderValue> {
    let mut configs = levels(context, name).into_iter().flat_map(FilterLevels::configs);
    let rewrite = configs.find_map(|config| match config {
        FilterRouteConfig::DynamicForwardProxy(rewrite) => Some(rewrite),
        _ => None,
    });
    match rewrite? {
        DynamicHostRewrite::None => None,
        DynamicHostRewrite::Literal(host) => Some(host.clone()),
        DynamicHostRewrite::Header(name) => context.head.headers.get(name).cloned(),
    }
}

/// Waits for the address.
pub(super) async fn wait(context: &mut RequestContext) -> Result<(), Failure> {
    let is_waiting = |state: &FilterState| matches!(state, FilterState::Waiting(_));
    let Some(position) = context.filters.iter().position(is_waiting) else { return Ok(()) };
    let FilterState::Waiting(waiting) = context.filters.remove(position) else { return Ok(()) };
    let known = within_limits(context, waiting.host.resolved()).await?;
    judge(&known)
}
