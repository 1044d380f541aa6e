//! The choice of an endpoint: priorities, panic, localities, then the policy.

use crate::cluster::{LbPolicy, LocalityMode};
use crate::edf::Edf;
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
    policy: LbPolicy,
    priorities: Vec<Priority>,
    /// Share of each priority's healthy hosts, then of each priority's degraded hosts; the sum is 100 unless there is no host.
    shares: Vec<(u32, usize, Availability)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Availability {
    Healthy,
    Degraded,
}

/// The hosts of a priority, ready to be picked from.
#[derive(Clone, Debug)]
struct Priority {
    panic: bool,
    all: Pool,
    healthy: Localities,
    degraded: Localities,
}

/// Hosts of one availability: one pool, or one for each locality.
#[derive(Clone, Debug)]
enum Localities {
    Flat(Pool),
    Weighted { schedule: Edf, weights: Vec<f64>, pools: Vec<Pool> },
}

/// Hosts among which the policy chooses.
#[derive(Clone, Debug)]
struct Pool {
    hosts: Vec<usize>,
    weights: Vec<u32>,
    /// Next position, for equal weights.
    next: usize,
    /// For unequal weights.
    schedule: Option<Edf>,
}

impl Balancer {
    /// A balancer over `hosts`. `seed` decides where rotations start, so that workers and restarts don't all begin with the same host.
    pub fn new(config: &BalancerConfig, hosts: &[BalancerHost], seed: u64) -> Self {
        let count = hosts.iter().map(|host| host.priority as usize + 1).max().unwrap_or(0);
        let mut members: Vec<Vec<usize>> = vec![Vec::new(); count];
        for (number, host) in hosts.iter().enumerate() {
            members[host.priority as usize].push(number);
        }
        let healths: Vec<Health> = members.iter().map(|members| Health::of(config, hosts, members)).collect();
        let (shares, panics) = loads(config, &healths);
        let priorities = members
            .iter()
            .zip(panics)
            .map(|(members, panic)| Priority::new(config, hosts, members, panic, seed))
            .collect();
        Self { policy: config.policy, priorities, shares }
    }

    /// The number of a host, or `None` when there is none to use. `random` gives uniformly distributed numbers, `active` the number of
    /// active requests of a host (used by least request only).
    pub fn pick(&mut self, random: &mut dyn FnMut() -> u64, active: &dyn Fn(usize) -> u64) -> Option<usize> {
        let (priority, availability) = match self.shares.as_slice() {
            [] => return None,
            [(_, priority, availability)] => (*priority, *availability),
            shares => {
                let mut left = u32::try_from(random() % 100).unwrap_or(0);
                let chosen = shares.iter().find(|(share, ..)| {
                    let found = left < *share;
                    left = left.saturating_sub(*share);
                    found
                });
                let (_, priority, availability) = chosen.or(shares.last())?;
                (*priority, *availability)
            }
        };
        let priority = &mut self.priorities[priority];
        let pool = match availability {
            _ if priority.panic => &mut priority.all,
            Availability::Healthy => priority.healthy.pool()?,
            Availability::Degraded => priority.degraded.pool()?,
        };
        pool.pick(self.policy, random, active)
    }
}

/// How healthy a priority is, in percent.
struct Health {
    hosts: usize,
    healthy: u32,
    degraded: u32,
    /// Without over-provisioning.
    available_percent: f64,
}

impl Health {
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    fn of(config: &BalancerConfig, hosts: &[BalancerHost], members: &[usize]) -> Self {
        let size = |wanted: Option<HealthStatus>| -> u64 {
            let members = members.iter().map(|number| &hosts[*number]);
            let wanted = members.filter(|host| wanted.is_none_or(|wanted| host.health == wanted));
            wanted
                .map(|host| if config.weighted_priority_health { u64::from(host.weight.max(1)) } else { 1 })
                .sum()
        };
        let total = size(None).max(1);
        let healthy = size(Some(HealthStatus::Healthy));
        let degraded = size(Some(HealthStatus::Degraded));
        let percent = |part: u64| (u64::from(config.overprovisioning_factor) * part / total).min(100) as u32;
        Self {
            hosts: members.len(),
            healthy: percent(healthy),
            degraded: percent(degraded),
            available_percent: 100.0 * (healthy + degraded) as f64 / total as f64,
        }
    }
}

type Shares = Vec<(u32, usize, Availability)>;

/// Shares of the priorities and which of them are in panic. Source: Envoy's "Priority levels" and "Panic threshold" pages.
fn loads(config: &BalancerConfig, healths: &[Health]) -> (Shares, Vec<bool>) {
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

impl Priority {
    fn new(
        config: &BalancerConfig,
        hosts: &[BalancerHost],
        members: &[usize],
        panic: bool,
        seed: u64,
    ) -> Self {
        let with = |health| {
            let members: Vec<usize> =
                members.iter().copied().filter(|number| hosts[*number].health == health).collect();
            members
        };
        let localities = |health| match config.locality {
            LocalityMode::Flat => Localities::Flat(Pool::new(config.policy, hosts, with(health), seed)),
            LocalityMode::Weighted => Localities::weighted(config, hosts, members, &with(health), seed),
        };
        Self {
            panic,
            all: Pool::new(config.policy, hosts, members.to_vec(), seed),
            healthy: localities(HealthStatus::Healthy),
            degraded: localities(HealthStatus::Degraded),
        }
    }
}

impl Localities {
    /// A locality's weight shrinks with its available share, over-provisioned as priorities are.
    #[allow(clippy::cast_precision_loss)]
    fn weighted(
        config: &BalancerConfig,
        hosts: &[BalancerHost],
        members: &[usize],
        available: &[usize],
        seed: u64,
    ) -> Self {
        let mut numbers: Vec<u32> = available.iter().map(|number| hosts[*number].locality).collect();
        numbers.sort_unstable();
        numbers.dedup();
        let (mut schedule, mut weights, mut pools) = (Edf::default(), Vec::new(), Vec::new());
        for locality in numbers {
            let of = |list: &[usize]| -> Vec<usize> {
                list.iter().copied().filter(|number| hosts[*number].locality == locality).collect()
            };
            let (all, usable) = (of(members), of(available));
            let Some(weight) = usable.first().and_then(|number| hosts[*number].locality_weight) else {
                continue;
            };
            let share = usable.len() as f64 / all.len().max(1) as f64;
            let weight =
                f64::from(weight) * (share * f64::from(config.overprovisioning_factor) / 100.0).min(1.0);
            if weight > 0.0 {
                schedule.add(pools.len(), weight);
                weights.push(weight);
                pools.push(Pool::new(config.policy, hosts, usable, seed));
            }
        }
        Self::Weighted { schedule, weights, pools }
    }

    fn pool(&mut self) -> Option<&mut Pool> {
        match self {
            Self::Flat(pool) => Some(pool),
            Self::Weighted { schedule, weights, pools } => {
                let chosen = schedule.pick(|pool| weights[pool])?;
                pools.get_mut(chosen)
            }
        }
    }
}

impl Pool {
    fn new(policy: LbPolicy, hosts: &[BalancerHost], members: Vec<usize>, seed: u64) -> Self {
        let weights: Vec<u32> = members.iter().map(|number| hosts[*number].weight.max(1)).collect();
        let equal = weights.windows(2).all(|pair| pair[0] == pair[1]);
        let count = members.len().max(1) as u64;
        let next = usize::try_from(seed % count).unwrap_or(0);
        let uses_weights = matches!(policy, LbPolicy::RoundRobin | LbPolicy::LeastRequest { .. });
        let schedule = (uses_weights && !equal).then(|| {
            let mut schedule = Edf::default();
            for (position, weight) in weights.iter().enumerate() {
                schedule.add(position, f64::from(*weight));
            }
            for _ in 0..next {
                schedule.pick(|position| f64::from(weights[position]));
            }
            schedule
        });
        Self { hosts: members, weights, next, schedule }
    }

    fn pick(
        &mut self,
        policy: LbPolicy,
        random: &mut dyn FnMut() -> u64,
        active: &dyn Fn(usize) -> u64,
    ) -> Option<usize> {
        let Self { hosts, weights, next, schedule } = self;
        let count = hosts.len();
        match (count, policy) {
            (0, _) | (_, LbPolicy::ClusterProvided) => return None,
            (1, _) => return hosts.first().copied(),
            _ => {}
        }
        let any = |random: &mut dyn FnMut() -> u64| usize::try_from(random() % count as u64).unwrap_or(0);
        let position = match (policy, schedule) {
            (LbPolicy::RoundRobin, Some(schedule)) => {
                schedule.pick(|position| f64::from(weights[position]))?
            }
            (LbPolicy::RoundRobin, None) => {
                let position = *next % count;
                *next = (position + 1) % count;
                position
            }
            (LbPolicy::LeastRequest { active_request_bias, .. }, Some(schedule)) => {
                schedule.pick(|position| {
                    let load = load(active(hosts[position]), active_request_bias);
                    f64::from(weights[position]) / load
                })?
            }
            (LbPolicy::LeastRequest { choice_count, .. }, None) => {
                let first = any(random);
                let others =
                    (1..choice_count).map(|_| any(random)).collect::<smallvec::SmallVec<[usize; 4]>>();
                // The first of the least loaded, as Envoy compares with "less than".
                others.into_iter().fold(first, |best, other| {
                    if active(hosts[other]) < active(hosts[best]) { other } else { best }
                })
            }
            (LbPolicy::Random | LbPolicy::ClusterProvided, _) => any(random),
        };
        hosts.get(position).copied()
    }
}

/// `(active + 1) ^ bias`, with the usual biases kept cheap.
#[allow(clippy::cast_precision_loss)]
fn load(active: u64, bias: f64) -> f64 {
    let active = active as f64 + 1.0;
    if bias == 1.0 { active } else { active.powf(bias) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(priority: u32, weight: u32, health: HealthStatus) -> BalancerHost {
        BalancerHost { priority, locality: 0, locality_weight: None, weight, health }
    }

    fn config(policy: LbPolicy) -> BalancerConfig {
        BalancerConfig {
            policy,
            locality: LocalityMode::Flat,
            healthy_panic_threshold: 50.0,
            overprovisioning_factor: 140,
            weighted_priority_health: false,
        }
    }

    fn counts(config: &BalancerConfig, hosts: &[BalancerHost], picks: usize) -> Vec<usize> {
        let mut balancer = Balancer::new(config, hosts, 0);
        // Every residue of 100 equally often, in a scattered order.
        let mut n = 0_u64;
        let mut random = || {
            n += 37;
            n
        };
        let mut counts = vec![0; hosts.len()];
        for _ in 0..picks {
            counts[balancer.pick(&mut random, &|_| 0).unwrap()] += 1;
        }
        counts
    }

    use HealthStatus::{Degraded, Healthy, Unhealthy};

    #[test]
    fn round_robin_takes_turns_and_respects_weights() {
        let config = config(LbPolicy::RoundRobin);
        let equal = [host(0, 1, Healthy), host(0, 1, Healthy), host(0, 1, Healthy)];
        assert_eq!(counts(&config, &equal, 30), [10, 10, 10]);
        let mut balancer = Balancer::new(&config, &equal, 2);
        let first: Vec<_> = (0..4).map(|_| balancer.pick(&mut || 0, &|_| 0).unwrap()).collect();
        assert_eq!(first, [2, 0, 1, 2], "the seed shifts the start");
        let weighted = [host(0, 1, Healthy), host(0, 3, Healthy)];
        assert_eq!(counts(&config, &weighted, 40), [10, 30]);
    }

    #[test]
    fn least_request_avoids_the_busy_host() {
        let hosts = [host(0, 1, Healthy), host(0, 1, Healthy)];
        let policy = LbPolicy::LeastRequest { choice_count: 2, active_request_bias: 1.0 };
        let mut balancer = Balancer::new(&config(policy), &hosts, 0);
        let mut n = 0;
        let mut random = || {
            n += 1;
            n
        };
        for _ in 0..10 {
            assert_eq!(balancer.pick(&mut random, &|host| if host == 0 { 5 } else { 1 }), Some(1));
        }
        let weighted = [host(0, 1, Healthy), host(0, 2, Healthy)];
        let mut balancer = Balancer::new(&config(policy), &weighted, 0);
        let picks: Vec<_> =
            (0..90).map(|_| balancer.pick(&mut random, &|host| if host == 1 { 3 } else { 0 })).collect();
        let first = picks.iter().filter(|pick| **pick == Some(0)).count();
        assert!(
            (55..=65).contains(&first),
            "weight 1 and idle against weight 2 and load 4: two to one, got {first}"
        );
    }

    #[test]
    fn random_takes_any_host() {
        let hosts = [host(0, 1, Healthy), host(0, 9, Healthy), host(0, 1, Healthy)];
        assert_eq!(counts(&config(LbPolicy::Random), &hosts, 30), [10, 10, 10], "weights don't matter");
    }

    #[test]
    fn nothing_to_pick_is_none() {
        let config = config(LbPolicy::RoundRobin);
        assert_eq!(Balancer::new(&config, &[], 0).pick(&mut || 0, &|_| 0), None);
        let no_panic = BalancerConfig { healthy_panic_threshold: 0.0, ..config };
        let down = [host(0, 1, Unhealthy)];
        assert_eq!(Balancer::new(&no_panic, &down, 0).pick(&mut || 0, &|_| 0), None);
        assert_eq!(
            Balancer::new(&config, &down, 0).pick(&mut || 0, &|_| 0),
            Some(0),
            "panic uses what there is"
        );
    }

    #[test]
    fn priorities_share_as_in_envoys_table() {
        // Percent healthy of P0 (P1 is fully healthy) and the share of P0, from Envoy's "Priority levels" page.
        for (healthy, expected) in [(100, 100), (72, 100), (71, 99), (50, 70), (25, 35), (0, 0)] {
            let mut hosts: Vec<_> =
                (0..100).map(|n| host(0, 1, if n < healthy { Healthy } else { Unhealthy })).collect();
            hosts.push(host(1, 1, Healthy));
            let picks = counts(&config(LbPolicy::RoundRobin), &hosts, 10_000);
            let first: usize = picks[..100].iter().sum();
            assert_eq!(first, expected * 100, "{healthy}% healthy");
        }
    }

    #[test]
    fn degraded_hosts_take_what_healthy_ones_leave() {
        let hosts = [host(0, 1, Healthy), host(0, 1, Degraded), host(0, 1, Degraded), host(0, 1, Degraded)];
        let picks = counts(&config(LbPolicy::RoundRobin), &hosts, 10_000);
        assert_eq!(picks[0], 3500, "25% healthy, over-provisioned to 35");
    }

    #[test]
    fn all_in_panic_shares_by_size() {
        let hosts =
            [host(0, 1, Unhealthy), host(0, 1, Unhealthy), host(0, 1, Unhealthy), host(1, 1, Unhealthy)];
        let picks = counts(&config(LbPolicy::RoundRobin), &hosts, 10_000);
        assert_eq!(picks[3], 2500);
    }

    #[test]
    fn localities_share_by_weight_and_health() {
        let with = |locality, weight, health| BalancerHost {
            locality,
            locality_weight: Some(weight),
            ..host(0, 1, health)
        };
        let config = BalancerConfig { locality: LocalityMode::Weighted, ..config(LbPolicy::RoundRobin) };
        let hosts = [with(0, 3, Healthy), with(1, 1, Healthy)];
        assert_eq!(counts(&config, &hosts, 40), [30, 10]);
        // Locality 0 is half up: 3 * min(1, 1.4 * 0.5) = 2.1 against 1.
        let hosts = [with(0, 3, Healthy), with(0, 3, Unhealthy), with(1, 1, Healthy)];
        let picks = counts(&config, &hosts, 3100);
        assert!((2090..=2110).contains(&picks[0]), "{picks:?}");
        assert_eq!(picks[1], 0);
    }
}
