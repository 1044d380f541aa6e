//! An upstream host as one worker sees it. It outlives configuration: the same address in the same cluster keeps its
//! connections and numbers across endpoint updates.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Instant;

use lateen_ir::{Endpoint, HealthStatus, HostAddress};

use crate::outlier::Monitor;
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

/// One endpoint of a cluster.
pub(crate) struct Host {
    pub(crate) address: HostAddress,
    /// As configured now: health, hostname and metadata change.
    pub(crate) endpoint: RefCell<Arc<Endpoint>>,
    pub(crate) stats: HostStats,
    /// With outlier detection.
    pub(crate) monitor: Option<Arc<Monitor>>,
    pub(crate) pool: Pools,
    /// Ejections that its connections have gone with.
    ejections: Cell<u32>,
    /// ORIGINAL_DST: when it was last asked for.
    pub(crate) last_used: Cell<Instant>,
}

impl Host {
    pub(crate) fn new(address: HostAddress, endpoint: Arc<Endpoint>, monitor: Option<Arc<Monitor>>) -> Self {
        let ejections = Cell::new(monitor.as_ref().map_or(0, |monitor| monitor.ejections()));
        Self {
            address,
            endpoint: RefCell::new(endpoint),
            stats: HostStats::default(),
            monitor,
            pool: Pools::default(),
            ejections,
            last_used: Cell::new(Instant::now()),
        }
    }

    /// Health with ejection taken into account.
    pub(crate) fn health(&self) -> HealthStatus {
        if self.is_ejected() { HealthStatus::Unhealthy } else { self.endpoint.borrow().health }
    }

    pub(crate) fn is_ejected(&self) -> bool {
        self.monitor.as_ref().is_some_and(|monitor| monitor.is_ejected())
    }

    /// With an ejection go the connections there are, as in Envoy: what made the host fail may be in them.
    pub(crate) fn heed_ejections(&self) {
        let Some(monitor) = &self.monitor else { return };
        let ejections = monitor.ejections();
        if self.ejections.replace(ejections) != ejections {
            self.pool.drain();
        }
    }

    /// `hostname` of the endpoint, or its address.
    pub(crate) fn name(&self) -> String {
        self.endpoint.borrow().hostname.as_deref().map_or_else(|| self.address.to_string(), str::to_owned)
    }
}
