//! The HTTP filters between routing (6) and forwarding (7): [`decode`] runs them in order over the request, [`encode`] in reverse
//! over the answer, be it upstream's or our own. A connection manager with nothing but the router skips both.
//!
//! A new filter is a variant of each enum here and a file beside this one.

mod cors;
mod dynamic_forward_proxy;
pub(crate) mod ext_authz;
mod fault;
mod jwks_fetch;
mod jwt;
mod rbac;
pub(crate) mod throttle;

pub(crate) use jwks_fetch::{KeyFetch, NewFetch};
pub(crate) use rbac::{COMMON, access_log_hint, connection_view};

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, Response};
use lateen_ir as ir;

use crate::body::ResponseBody;
use crate::compile::Names;
use crate::context::RequestContext;
use crate::dns_cache::DnsCache;
use crate::failure::Failure;
use crate::forward;
use crate::snapshot::{ClusterSlot, FilterSlot, stat_name};
use crate::stats::arena::StatsArena;
use crate::stats::blocks::CorsStats;

/// A configured filter.
pub(crate) struct Filter {
    /// Slot of its name, by which routes speak of it.
    name: FilterSlot,
    disabled: bool,
    kind: FilterKind,
}

impl Filter {
    /// The clusters it asks.
    pub(crate) fn clusters(&self) -> Vec<ClusterSlot> {
        match &self.kind {
            FilterKind::ExtAuthz(filter) => vec![filter.cluster],
            FilterKind::Jwt(filter) => filter.clusters().collect(),
            _ => Vec::new(),
        }
    }

    /// Keys that it fetches before a request needs them, where nobody has begun yet.
    pub(crate) fn new_fetches(&self) -> Vec<NewFetch> {
        match &self.kind {
            FilterKind::Jwt(filter) => filter.new_fetches().collect(),
            _ => Vec::new(),
        }
    }
}

enum FilterKind {
    Fault(fault::FaultFilter),
    Cors,
    ExtAuthz(ext_authz::ExtAuthzFilter),
    Jwt(jwt::JwtFilter),
    Rbac(Arc<ir::RbacFilter>),
    DynamicForwardProxy(Arc<DnsCache>),
}

/// One worker's side of a filter: its numbers.
pub(crate) enum LocalFilter {
    Fault(fault::LocalFault),
    Cors(Rc<CorsStats>),
    ExtAuthz(ext_authz::LocalExtAuthz),
    Jwt(jwt::LocalJwt),
    Rbac(rbac::LocalRbac),
    /// Its numbers are the cache's.
    DynamicForwardProxy,
}

/// What a filter keeps of a request until its end.
pub(crate) enum FilterState {
    Fault(fault::Injected),
    Cors(cors::Allowed),
    Waiting(dynamic_forward_proxy::Waiting),
    ExtAuthz(ext_authz::Added),
    Shadow(Box<ext_authz::Shadow>),
}

/// How a filter's look at a request ended.
enum Step {
    Next,
    /// [`pause`] must be awaited for it.
    Pause,
    Answer(Box<Response<ResponseBody>>),
}

/// Where [`decode`] stopped.
pub(crate) enum Flow {
    Done,
    /// At this filter: await [`pause`], then go on behind it.
    Paused(usize),
    /// With an answer, which is neither mapped nor mutated by routes.
    Answered(Box<Response<ResponseBody>>),
}

/// The filters of a connection manager, without the router.
pub(crate) fn compile(hcm: &ir::HttpConnectionManager, names: &mut Names) -> Result<Box<[Filter]>, String> {
    let Names { filters: slots, clusters, caches, .. } = names;
    let prefix = stat_name(&hcm.stat_prefix);
    let mut kind = |name: &str, kind: &ir::HttpFilterKind| {
        Ok::<_, String>(match kind {
            ir::HttpFilterKind::Fault(fault) => {
                Some(FilterKind::Fault(fault::FaultFilter::new(fault.clone())))
            }
            ir::HttpFilterKind::Cors => Some(FilterKind::Cors),
            ir::HttpFilterKind::ExtAuthz(ir) => {
                let cluster = clusters.of(ir.service.cluster());
                let shadow = ir.shadow.then(|| format!("{name}.shadow").into());
                Some(FilterKind::ExtAuthz(ext_authz::ExtAuthzFilter { ir: ir.clone(), cluster, shadow }))
            }
            ir::HttpFilterKind::Jwt(ir) => {
                Some(FilterKind::Jwt(jwt::JwtFilter::new(ir.clone(), &prefix, |name| clusters.of(name))))
            }
            ir::HttpFilterKind::Rbac(rbac) => Some(FilterKind::Rbac(rbac.clone())),
            ir::HttpFilterKind::DynamicForwardProxy(config) => {
                Some(FilterKind::DynamicForwardProxy(caches.of(config)?))
            }
            _ => None,
        })
    };
    let mut filters = Vec::with_capacity(hcm.http_filters.len());
    for filter in &hcm.http_filters {
        if let Some(kind) = kind(&filter.name, &filter.kind)? {
            filters.push(Filter { kind, name: slots.of(&filter.name), disabled: filter.disabled });
        }
    }
    Ok(filters.into())
}

/// A worker's side of them.
pub(crate) fn local(filters: &[Filter], prefix: &Arc<str>, stats: &StatsArena) -> Rc<[LocalFilter]> {
    let local = |filter: &Filter| match &filter.kind {
        FilterKind::Fault(_) => LocalFilter::Fault(fault::LocalFault::new(stats.fault(prefix), prefix)),
        FilterKind::Cors => LocalFilter::Cors(stats.cors(prefix)),
        FilterKind::ExtAuthz(filter) => {
            LocalFilter::ExtAuthz(ext_authz::LocalExtAuthz::new(&filter.ir, prefix, stats))
        }
        FilterKind::Jwt(jwt) => LocalFilter::Jwt(jwt::LocalJwt::new(jwt, stats)),
        FilterKind::Rbac(rbac) => LocalFilter::Rbac(rbac::LocalRbac::new(rbac, prefix, stats)),
        FilterKind::DynamicForwardProxy(_) => LocalFilter::DynamicForwardProxy,
    };
    filters.iter().map(local).collect()
}

/// What the request's route says about a filter; `None`: nothing.
fn levels(context: &RequestContext, name: FilterSlot) -> Option<ir::FilterLevels<'_>> {
    let routes = context.routes.as_ref()?;
    let position = routes.filters.iter().position(|slot| *slot == name)?;
    let host = context.virtual_host.as_ref()?;
    let route = context.route.as_ref()?;
    let weighted = context.weighted.and_then(|index| forward::weighted_entry(route, index));
    let levels = [
        weighted.map(|entry| &entry.overrides[..]).unwrap_or_default(),
        &route.overrides,
        &host.overrides,
        &routes.ir.overrides,
    ];
    Some(ir::FilterLevels { levels, filter: u32::try_from(position).ok()? })
}

/// Whether any level of the request's route says something about any filter.
fn route_speaks(context: &RequestContext) -> bool {
    let (Some(routes), Some(host), Some(route)) = (&context.routes, &context.virtual_host, &context.route)
    else {
        return false;
    };
    let silent = route.overrides.is_empty()
        && host.overrides.is_empty()
        && routes.ir.overrides.is_empty()
        && context.weighted.is_none();
    !silent && !routes.filters.is_empty()
}

impl Filter {
    /// Whether it has nothing to do where the route says nothing: so it is with most filters of a sidecar.
    fn is_idle(&self, context: &RequestContext) -> bool {
        self.disabled
            || match &self.kind {
                FilterKind::Fault(fault) => fault.is_idle(),
                FilterKind::Cors => cors::is_idle(context),
                FilterKind::Rbac(rbac) => rbac.rules.is_none() && rbac.shadow_rules.is_none(),
                FilterKind::DynamicForwardProxy(_) | FilterKind::Jwt(_) | FilterKind::ExtAuthz(_) => false,
            }
    }
}

/// Runs the filters over the request, beginning with the one at `from`.
pub(crate) fn decode(context: &mut RequestContext, from: usize) -> Result<Flow, Failure> {
    let speaks = route_speaks(context);
    if !speaks && context.connection.config.filters[from..].iter().all(|filter| filter.is_idle(context)) {
        return Ok(Flow::Done);
    }
    let connection = context.connection.clone();
    let pairs = connection.config.filters.iter().zip(&connection.filters[..]);
    for (index, (filter, local)) in pairs.enumerate().skip(from) {
        if !speaks && filter.is_idle(context) {
            continue;
        }
        let enabled = levels(context, filter.name).and_then(ir::FilterLevels::enabled);
        if !enabled.unwrap_or(!filter.disabled) {
            continue;
        }
        let step = match (&filter.kind, local) {
            (FilterKind::Fault(fault), LocalFilter::Fault(local)) => {
                fault::decode(fault, local, filter.name, context)?
            }
            (FilterKind::Cors, LocalFilter::Cors(stats)) => cors::decode(stats, filter.name, context),
            (FilterKind::ExtAuthz(ext_authz), LocalFilter::ExtAuthz(local)) => {
                self::ext_authz::decode(ext_authz, local, filter.name, context)?
            }
            (FilterKind::Jwt(jwt), LocalFilter::Jwt(local)) => jwt::decode(jwt, local, filter.name, context)?,
            (FilterKind::Rbac(rbac), LocalFilter::Rbac(local)) => {
                rbac::decode(rbac, local, filter.name, context)?;
                Step::Next
            }
            (FilterKind::DynamicForwardProxy(cache), LocalFilter::DynamicForwardProxy) => {
                dynamic_forward_proxy::decode(cache, filter.name, context)?
            }
            // Both lists are made from the same filters.
            _ => Step::Next,
        };
        match step {
            Step::Next => {}
            Step::Pause => return Ok(Flow::Paused(index)),
            Step::Answer(response) => return Ok(Flow::Answered(response)),
        }
    }
    Ok(Flow::Done)
}

/// Waits for what the filter at `index` waits for.
pub(crate) async fn pause(context: &mut RequestContext, index: usize) -> Result<(), Failure> {
    let connection = context.connection.clone();
    match (&connection.config.filters[index].kind, &connection.filters[index]) {
        (FilterKind::Fault(_), LocalFilter::Fault(local)) => fault::delay(local, context).await,
        (FilterKind::DynamicForwardProxy(_), _) => dynamic_forward_proxy::wait(context).await,
        (FilterKind::ExtAuthz(filter), LocalFilter::ExtAuthz(local)) => {
            ext_authz::check(filter, local, connection.config.filters[index].name, context).await
        }
        (FilterKind::Jwt(filter), LocalFilter::Jwt(local)) => {
            jwt::fetch(filter, local, connection.config.filters[index].name, context).await
        }
        _ => Ok(()),
    }
}

/// Runs the filters that looked at the request over the head of its answer.
pub(crate) fn encode(context: &RequestContext, headers: &mut HeaderMap) {
    for state in context.filters.iter().rev() {
        match state {
            FilterState::Cors(allowed) => allowed.encode(headers),
            FilterState::ExtAuthz(added) => added.encode(headers),
            FilterState::Fault(_) | FilterState::Waiting(_) | FilterState::Shadow(_) => {}
        }
    }
}

/// How much of the answer's body may pass in a second, where a filter limits that.
pub(crate) fn throttle(context: &RequestContext) -> Option<throttle::Throttle> {
    context.filters.iter().find_map(|state| match state {
        FilterState::Fault(injected) => injected.throttle(),
        FilterState::Cors(_)
        | FilterState::ExtAuthz(_)
        | FilterState::Waiting(_)
        | FilterState::Shadow(_) => None,
    })
}

/// Awaits a filter's work within the clocks that run for every stream: it must not be idle, nor last, for too long.
async fn within_limits<T>(context: &RequestContext, work: impl Future<Output = T>) -> Result<T, Failure> {
    let idle = forward::idle_timeout(context).map(|idle| Instant::now() + idle);
    let end = forward::stream_end(context, None);
    let limit = match (idle, end) {
        (None, None) => return Ok(work.await),
        (Some(idle), Some(end)) => idle.min(end),
        (Some(only), None) | (None, Some(only)) => only,
    };
    let request_complete = context.request_complete();
    tokio::time::timeout_at(limit.into(), work).await.map_err(|_| {
        if end == Some(limit) {
            Failure::MaxStreamDuration { request_complete }
        } else {
            Failure::StreamIdleTimeout { request_complete }
        }
    })
}
