//! When hosts joined their cluster, for slow start.
//!
//! Noted where configuration arrives: a worker makes its view of a cluster only when the cluster is first used, and by then
//! its hosts may have served others for long.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use crate::health_check::Checked;
use ahash::AHashMap;
use lateen_ir::{Cluster, ClusterLoadAssignment, EndpointAddress, HealthStatus};

/// Healthy hosts by address, and since when they are.
pub(crate) struct Joined(AHashMap<SocketAddr, Instant>);

impl Joined {
    /// Of a cluster with slow start; hosts in `before` keep their time, others join now. With active health checks (`checked`)
    /// hosts join when a check finds them healthy.
    pub(crate) fn note(
        cluster: &Cluster,
        endpoints: &ClusterLoadAssignment,
        checked: Option<&Checked>,
        before: Option<&Self>,
        now: Instant,
    ) -> Option<Arc<Self>> {
        cluster.lb_policy.slow_start()?;
        let endpoints = endpoints.priorities.iter().flatten().flat_map(|locality| &locality.endpoints);
        let since = |address| before.and_then(|before| before.since(address)).unwrap_or(now);
        let noted = endpoints.filter_map(|endpoint| {
            let EndpointAddress::Socket(address) = endpoint.address else { return None };
            let health = checked.map_or(endpoint.health, |checked| checked.health(address, endpoint.health));
            (health == HealthStatus::Healthy).then(|| (address, since(address)))
        });
        Some(Arc::new(Self(noted.collect())))
    }

    /// Since when the host is there.
    pub(crate) fn since(&self, address: SocketAddr) -> Option<Instant> {
        self.0.get(&address).copied()
    }
}
