//! How load is shared between priorities: by what is healthy, over-provisioned, and what happens when too little is (panic).
//! Source: Envoy's "Priority levels" and "Panic threshold" pages.

use crate::balancer::{BalancerConfig, BalancerHost};
use crate::endpoint::HealthStatus;

/// Which hosts of a priority a share is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Availability {
    Healthy,
    Degraded,
}

/// How healthy a priority is, in percent.
pub(crate) struct Health {
    hosts: usize,
    pub(crate) healthy: u32,
    pub(crate) degraded: u32,
    /// Of its hosts, whatever their weights, without over-provisioning.
    available_percent: f64,
}

impl Health {
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    pub(crate) fn of(config: &BalancerConfig, hosts: &[BalancerHost], members: &[usize]) -> Self {
        let there = || members.iter().map(|number| &hosts[*number]).filter(|host| !host.excluded);
        let size = |wanted: Option<HealthStatus>| -> u64 {
            let wanted = there().filter(|host| wanted.is_none_or(|wanted| host.health == wanted));
            wanted
                .map(|host| if config.weighted_priority_health { u64::from(host.weight.max(1)) } else { 1 })
                .sum()
        };
        let usable = [HealthStatus::Healthy, HealthStatus::Degraded];
        let available = there().filter(|host| usable.contains(&host.health)).count();
        let total = size(None).max(1);
        let healthy = size(Some(HealthStatus::Healthy));
        let degraded = size(Some(HealthStatus::Degraded));
        let percent = |part: u64| (u64::from(config.overprovisioning_factor) * part / total).min(100) as u32;
        Self {
            hosts: members.len(),
            healthy: percent(healthy),
            degraded: percent(degraded),
            available_percent: 100.0 * available as f64 / there().count().max(1) as f64,
        }
    }
}

/// In percent: a priority's share for its hosts of this availability.
pub(crate) type Shares = Vec<(u32, usize, Availability)>;

/// Shares of the priorities and which of them are in panic.
pub(crate) fn loads(config: &BalancerConfig, healths: &[Health]) -> (Shares, Vec<bool>) {
    let total = healths.iter().map(|health| health.healthy + health.degraded).sum::<u32>().min(100);
    let panics: Vec<bool> = healths
        .iter()
        .map(|health| total < 100 && health.available_percent < config.healthy_panic_threshold)
        .collect();
    if panics.iter().all(|panic| *panic) {
        return (shares_by_size(healths), panics);
    }
    if total == 0 {
        // Panic is disabled and nothing is available: there is no host to use.
        return (Vec::new(), panics);
    }
    let mut left = 100;
    let mut shares = Vec::new();
    for availability in [Availability::Healthy, Availability::Degraded] {
        for (priority, health) in healths.iter().enumerate() {
            let available =
                if availability == Availability::Healthy { health.healthy } else { health.degraded };
            let share = (available * 100 / total).min(left);
            left -= share;
            if share > 0 {
                shares.push((share, priority, availability));
            }
        }
    }
    // What rounding left over goes to the first that has anything.
    if let Some((share, ..)) = shares.first_mut() {
        *share += left;
    }
    (shares, panics)
}

/// All priorities are in panic: load by number of hosts.
fn shares_by_size(healths: &[Health]) -> Shares {
    let total: usize = healths.iter().map(|health| health.hosts).sum();
    let mut left = 100;
    let mut shares = Vec::new();
    for (priority, health) in healths.iter().enumerate() {
        let share = u32::try_from(health.hosts * 100 / total.max(1)).unwrap_or(100).min(left);
        left -= share;
        if health.hosts > 0 {
            shares.push((share, priority, Availability::Healthy));
        }
    }
    if let Some((share, ..)) = shares.first_mut() {
        *share += left;
    }
    shares
}
