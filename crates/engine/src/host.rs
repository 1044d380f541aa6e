//! An upstream host as one worker sees it. It outlives configuration: the same address in the same cluster keeps its
//! connections and numbers across endpoint updates.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use lateen_ir::{Endpoint, HealthStatus};

use crate::pools::Pools;
use crate::stats::slots::{Counter, Gauge};

/// `/clusters` numbers of a host.
#[derive(Debug, Default)]
pub(crate) struct HostStats {
    pub(crate) cx_active: Gauge,
    pub(crate) cx_connect_fail: Counter,
    pub(crate) cx_total: Counter,
    pub(crate) rq_active: Gauge,
    pub(crate) rq_error: Counter,
    pub(crate) rq_pending_active: Gauge,
    pub(crate) rq_success: Counter,
    pub(crate) rq_timeout: Counter,
    pub(crate) rq_total: Counter,
}

/// Consecutive failures, for outlier detection.
#[derive(Debug, Default)]
pub(crate) struct FailureRun {
    pub(crate) server_errors: Cell<u32>,
    pub(crate) gateway_failures: Cell<u32>,
    pub(crate) local_failures: Cell<u32>,
    /// Ejected until then.
    pub(crate) ejected_until: Cell<Option<Instant>>,
    /// How often it was ejected, less one for each quiet interval.
    pub(crate) ejections: Cell<u32>,
    /// Begin of the interval that is to be quiet.
    pub(crate) quiet_since: Cell<Option<Instant>>,
}

/// One endpoint of a cluster.
pub(crate) struct Host {
    pub(crate) address: SocketAddr,
    /// As configured now: health, hostname and metadata change.
    pub(crate) endpoint: RefCell<Arc<Endpoint>>,
    pub(crate) stats: HostStats,
    pub(crate) failures: FailureRun,
    pub(crate) pool: Pools,
    /// ORIGINAL_DST: when it was last asked for.
    pub(crate) last_used: Cell<Instant>,
}

impl Host {
    pub(crate) fn new(address: SocketAddr, endpoint: Arc<Endpoint>) -> Self {
        Self {
            address,
            endpoint: RefCell::new(endpoint),
            stats: HostStats::default(),
            failures: FailureRun::default(),
            pool: Pools::default(),
            last_used: Cell::new(Instant::now()),
        }
    }

    /// Health with ejection taken into account.
    pub(crate) fn health(&self) -> HealthStatus {
        if self.failures.ejected_until.get().is_some() {
            HealthStatus::Unhealthy
        } else {
            self.endpoint.borrow().health
        }
    }

    /// `hostname` of the endpoint, or its address.
    pub(crate) fn name(&self) -> String {
        self.endpoint.borrow().hostname.as_deref().map_or_else(|| self.address.to_string(), str::to_owned)
    }
}
