//! Fault injection; what is injected is decided by `ir::Fault`.

use std::borrow::Cow;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use ahash::AHashMap;
use http::StatusCode;
use lateen_ir::{Abort, Fault, FilterRouteConfig};

use super::throttle::Throttle;
use super::{FilterState, Step, levels, within_limits};
use crate::context::RequestContext;
use crate::failure::{Failure, Flags, Reply};
use crate::forward;
use crate::http_request::request_view;
use crate::snapshot::FilterSlot;
use crate::stats::blocks::{FaultClientStats, FaultStats};

const DOWNSTREAM_CLUSTER: &str = "x-envoy-downstream-service-cluster";

/// Clients that are counted by name. They name themselves, so there is a bound.
const MOST_CLIENTS: usize = 256;

/// The filter of a connection manager.
pub(super) struct FaultFilter {
    /// For routes that say nothing.
    default: Arc<Fault>,
    /// Faults going on, over all workers: Envoy's limit is per process.
    active: Arc<AtomicU32>,
}

impl FaultFilter {
    pub(super) fn new(default: Arc<Fault>) -> Self {
        Self { default, active: Arc::default() }
    }

    /// Whether nothing is injected where routes say nothing.
    pub(super) fn is_idle(&self) -> bool {
        injects_nothing(&self.default)
    }
}

/// One worker's numbers.
pub(crate) struct LocalFault {
    stats: Rc<FaultStats>,
    prefix: Arc<str>,
    clients: RefCell<AHashMap<Box<str>, Rc<FaultClientStats>>>,
}

impl LocalFault {
    pub(super) fn new(stats: Rc<FaultStats>, prefix: &Arc<str>) -> Self {
        Self { stats, prefix: prefix.clone(), clients: RefCell::default() }
    }

    /// The numbers of the client that the request names, where these are wanted.
    fn client(&self, fault: &Fault, context: &RequestContext) -> Option<Rc<FaultClientStats>> {
        if !fault.downstream_cluster_stats {
            return None;
        }
        let name =
            context.head.headers.get(DOWNSTREAM_CLUSTER)?.to_str().ok().filter(|name| !name.is_empty())?;
        let mut clients = self.clients.borrow_mut();
        if let Some(known) = clients.get(name) {
            return Some(known.clone());
        }
        if clients.len() >= MOST_CLIENTS {
            return None;
        }
        let stats = context.connection.worker.stats.fault_client(&self.prefix, name);
        clients.insert(name.into(), stats.clone());
        Some(stats)
    }
}

/// The faults of one request.
pub(crate) struct Injected {
    fault: Arc<Fault>,
    delay: Option<Duration>,
    kib_per_second: Option<u64>,
    active: Option<Active>,
}

impl Injected {
    pub(super) fn throttle(&self) -> Option<Throttle> {
        self.kib_per_second.map(Throttle::new)
    }
}

/// Counts a request with faults until dropped.
struct Active {
    count: Arc<AtomicU32>,
    stats: Rc<FaultStats>,
}

impl Drop for Active {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Relaxed);
        self.stats.active_faults.dec();
    }
}

/// Makes room for a fault; a request counts once, whatever is injected.
fn admit(filter: &FaultFilter, local: &LocalFault, injected: &mut Injected) -> bool {
    if injected.active.is_some() {
        return true;
    }
    // As in Envoy the limit is a fuzzy one: nothing is compared and swapped.
    if injected.fault.max_active_faults.is_some_and(|most| filter.active.load(Relaxed) >= most) {
        local.stats.faults_overflow.inc();
        return false;
    }
    filter.active.fetch_add(1, Relaxed);
    local.stats.active_faults.inc();
    injected.active = Some(Active { count: filter.active.clone(), stats: local.stats.clone() });
    true
}

fn injects_nothing(fault: &Fault) -> bool {
    fault.delay.is_none() && fault.abort.is_none() && fault.response_rate_limit.is_none()
}

pub(super) fn decode(
    filter: &FaultFilter,
    local: &LocalFault,
    name: FilterSlot,
    context: &mut RequestContext,
) -> Result<Step, Failure> {
    let of_route = levels(context, name).and_then(|levels| {
        levels.configs().find_map(|config| match config {
            FilterRouteConfig::Fault(fault) => Some(fault.clone()),
            _ => None,
        })
    });
    let fault = of_route.as_ref().unwrap_or(&filter.default);
    if injects_nothing(fault) {
        return Ok(Step::Next);
    }
    if !fault.concerns(&request_view(context), forward::cluster_name(context)) {
        return Ok(Step::Next);
    }
    let worker = context.connection.worker.clone();
    let mut injected = Injected { fault: fault.clone(), delay: None, kib_per_second: None, active: None };
    let headers = &context.head.headers;
    if let Some(rate) = fault.rate_of(headers, worker.random())
        && admit(filter, local, &mut injected)
    {
        local.stats.response_rl_injected.inc();
        injected.kib_per_second = Some(rate);
    }
    if let Some(delay) = fault.delay_of(headers, worker.random())
        && admit(filter, local, &mut injected)
    {
        injected.delay = Some(delay);
        local.stats.delays_injected.inc();
        local.client(fault, context).iter().for_each(|client| client.delays_injected.inc());
        context.flags.insert(Flags::DELAY_INJECTED);
        context.filters.push(FilterState::Fault(injected));
        return Ok(Step::Pause);
    }
    let abort = fault.abort_of(headers, worker.random());
    let aborted = abort.filter(|_| admit(filter, local, &mut injected));
    let failure = aborted.map(|abort| self::abort(fault, abort, local, context));
    if injected.active.is_some() {
        context.filters.push(FilterState::Fault(injected));
    }
    failure.map_or(Ok(Step::Next), Err)
}

/// Waits out the delay, after which the request may still be aborted.
pub(super) async fn delay(local: &LocalFault, context: &mut RequestContext) -> Result<(), Failure> {
    let Some((fault, delay)) = context.filters.iter().find_map(|state| match state {
        FilterState::Fault(injected) => injected.delay.map(|delay| (injected.fault.clone(), delay)),
        FilterState::Cors(_)
        | FilterState::ExtAuthz(_)
        | FilterState::Shadow(_)
        | FilterState::Waiting(_) => None,
    }) else {
        return Ok(());
    };
    within_limits(context, tokio::time::sleep(delay)).await?;
    let random = context.connection.worker.random();
    if let Some(abort) = fault.abort_of(&context.head.headers, random) {
        return Err(self::abort(&fault, abort, local, context));
    }
    for state in &mut context.filters {
        // The delay is over; a limit of the answer's rate lasts to its end.
        if let FilterState::Fault(injected) = state
            && injected.fault.response_rate_limit.is_none()
        {
            injected.active = None;
        }
    }
    Ok(())
}

fn abort(fault: &Fault, abort: Abort, local: &LocalFault, context: &RequestContext) -> Failure {
    local.stats.aborts_injected.inc();
    local.client(fault, context).iter().for_each(|client| client.aborts_injected.inc());
    let (status, grpc_status) = match abort {
        // Bounds were checked where the number came from.
        Abort::Http(status) => {
            (StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), None)
        }
        Abort::Grpc(status) => (StatusCode::OK, Some(status)),
    };
    let body = fault.abort.as_ref().and_then(|abort| abort.body.as_deref());
    let body = body.map_or(Cow::Borrowed("fault filter abort"), |body| Cow::Owned(body.to_owned()));
    let mut reply = Reply::new(status, body, Flags::FAULT_INJECTED, "fault_filter_abort");
    reply.grpc_status = grpc_status;
    Failure::Answered(Box::new(reply))
}
