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
    let counted_anyway = limits.retry_budget.is_some() && matches!(what, Limited::Request | Limited::Pending);
    if limit == u32::MAX && !counted_anyway {
        return Some(Admission(None));
    }
    let admission = Admission(Some(Held { breakers: cluster.breakers.clone(), what, high_priority }));
    let before = counter(counts, what).fetch_add(1, Relaxed);
    (before < limit).then_some(admission)
}

/// Whether the limit is reached now (the `…_open` gauges).
pub(crate) fn is_open(cluster: &ClusterConfig, what: Limited, high_priority: bool) -> bool {
    let counts = counts(&cluster.breakers, high_priority);
    counter(counts, what).load(Relaxed) >= limit(limits(&cluster.ir, high_priority), counts, what)
}
