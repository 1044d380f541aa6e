//! Circuit breakers: admission against a cluster's limits.
//! <https://www.envoyproxy.io/docs/envoy/v1.40.0/intro/arch_overview/upstream/circuit_breaking>

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use lateen_ir::{CircuitBreakers, Cluster};

use crate::snapshot::{BreakerCounts, Breakers, ClusterConfig};

/// What is admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limited {
    Connection,
    Pending,
    Request,
    Retry,
}

/// Holds a place until dropped. Unlimited places cost nothing: the count is not touched.
#[derive(Debug)]
pub(crate) struct Admission(Option<Held>);

#[derive(Debug)]
struct Held {
    breakers: Arc<Breakers>,
    what: Limited,
    high_priority: bool,
}

impl std::fmt::Debug for Breakers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Breakers")
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        if let Some(held) = &self.0 {
            counter(counts(&held.breakers, held.high_priority), held.what).fetch_sub(1, Relaxed);
        }
    }
}

fn counts(breakers: &Breakers, high_priority: bool) -> &BreakerCounts {
    if high_priority { &breakers.high } else { &breakers.default }
}

fn counter(counts: &BreakerCounts, what: Limited) -> &AtomicU32 {
    match what {
        Limited::Connection => &counts.connections,
        Limited::Pending => &counts.pending,
        Limited::Request => &counts.requests,
        Limited::Retry => &counts.retries,
    }
}

fn limits(cluster: &Cluster, high_priority: bool) -> &CircuitBreakers {
    if high_priority { &cluster.high_priority_circuit_breakers } else { &cluster.circuit_breakers }
}

/// The limit in force now; a retry budget follows the number of active requests.
fn limit(limits: &CircuitBreakers, counts: &BreakerCounts, what: Limited) -> u32 {
    match what {
        Limited::Connection => limits.max_connections,
        Limited::Pending => limits.max_pending_requests,
        Limited::Request => limits.max_requests,
        Limited::Retry => match limits.retry_budget {
            None => limits.max_retries,
            Some(budget) => {
                let active = counts.requests.load(Relaxed) + counts.pending.load(Relaxed);
                let share = (f64::from(active) * budget.percent / 100.0) as u32;
                share.max(budget.min_concurrency)
            }
        },
    }
}

/// Takes a place, or `None` when the limit is reached.
pub(crate) fn admit(cluster: &ClusterConfig, what: Limited, high_priority: bool) -> Option<Admission> {
    let limits = limits(&cluster.ir, high_priority);
    let counts = counts(&cluster.breakers, high_priority);
    let limit = limit(limits, counts, what);
    // A budget needs the number of active requests even when requests are not limited.
    let counted_anyway = match what {
        Limited::Request | Limited::Pending => limits.retry_budget.is_some(),
        Limited::Retry => limits.track_remaining,
        Limited::Connection => false,
    };
    if limit == u32::MAX && !counted_anyway {
        return Some(Admission(None));
    }
    let admission = Admission(Some(Held { breakers: cluster.breakers.clone(), what, high_priority }));
    let before = counter(counts, what).fetch_add(1, Relaxed);
    (before < limit).then_some(admission)
}

/// How many more there may be, if that is tracked. `active` is the number now where places are unlimited and so not counted here.
pub(crate) fn remaining(
    cluster: &ClusterConfig,
    what: Limited,
    high_priority: bool,
    active: u64,
) -> Option<u64> {
    let limits = limits(&cluster.ir, high_priority);
    if !limits.track_remaining {
        return None;
    }
    // A budget has no number of places.
    if what == Limited::Retry && limits.retry_budget.is_some() {
        return Some(0);
    }
    let counts = counts(&cluster.breakers, high_priority);
    let counted = u64::from(counter(counts, what).load(Relaxed));
    let limit = limit(limits, counts, what);
    let taken = if limit == u32::MAX && what != Limited::Retry { active } else { counted };
    Some(u64::from(limit).saturating_sub(taken))
}

/// Whether the limit is reached now (the `…_open` gauges).
pub(crate) fn is_open(cluster: &ClusterConfig, what: Limited, high_priority: bool) -> bool {
    let counts = counts(&cluster.breakers, high_priority);
    let count = counter(counts, what).load(Relaxed);
    // As in Envoy the gauge moves with the count, so that of a limit of 0 is never set.
    count > 0 && count >= limit(limits(&cluster.ir, high_priority), counts, what)
}
