//! When hosts joined their cluster, for slow start.
//!
//! Noted where configuration arrives: a worker makes its view of a cluster only when the cluster is first used, and by then
//! its hosts may have served others for long.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use ahash::AHashMap;
use lateen_ir::{Cluster, ClusterLoadAssignment, EndpointAddress, HealthStatus};

/// Healthy hosts by address, and since when they are.
pub(crate) struct Joined(AHashMap<SocketAddr, Instant>);

impl Joined {
    /// Of a cluster with slow start; hosts in `before` keep their time, others join `now`.
    pub(crate) fn note(
        cluster: &Cluster,
        endpoints: &ClusterLoadAssignment,
        before: Option<&Self>,
        now: Instant,
    ) -> Option<Arc<Self>> {
        cluster.lb_policy.slow_start()?;
        let endpoints = endpoints.priorities.iter().flatten().flat_map(|locality| &locality.endpoints);
        let healthy = endpoints.filter(|endpoint| endpoint.health == HealthStatus::Healthy);
        let since = |address| before.and_then(|before| before.since(address)).unwrap_or(now);
        let noted = healthy.filter_map(|endpoint| match endpoint.address {
            EndpointAddress::Socket(address) => Some((address, since(address))),
            EndpointAddress::Pipe(_) | EndpointAddress::Name(..) => None,
        });
        Some(Arc::new(Self(noted.collect())))
    }

    /// Since when the host is there.
    pub(crate) fn since(&self, address: SocketAddr) -> Option<Instant> {
        self.0.get(&address).copied()
    }
}
