//! The choice of an endpoint: priorities, panic, localities, then the policy.

use std::time::Instant;

use crate::cluster::LocalityMode;
use crate::edf::Edf;
use crate::endpoint::HealthStatus;
use crate::hash_table::HashTable;
use crate::lb_policy::{LbPolicy, LeastRequestChoice, SlowStart};
use crate::priority_load::{Availability, Health, Shares, loads};
use crate::retry_priority::PreviousPriorities;

/// What the balancer knows of a host. Positions in the list given to [`Balancer::new`] are the engine's host numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// It is not there as far as shares and panic go: it said itself that it leaves.
    pub excluded: bool,
    /// What stands for it in consistent hashing; may be empty otherwise. See [`Endpoint::hash_key`](crate::Endpoint::hash_key).
    pub hash_key: Box<str>,
    /// When it became healthy, for slow start.
    pub joined: Option<Instant>,
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

/// How busy hosts are.
pub trait Load {
    /// Active requests of a host.
    fn active(&self, host: usize) -> u64;
    /// Active requests of the cluster.
    fn total(&self) -> u64;
}

/// What a choice depends on besides the hosts.
pub struct Wish<'a> {
    /// For consistent hashing; others draw.
    pub hash: Option<u64>,
    /// Hosts refused for this request so far.
    pub attempt: u32,
    /// Uniformly distributed numbers.
    pub random: &'a mut dyn FnMut() -> u64,
    /// How busy hosts are.
    pub load: &'a dyn Load,
    /// The present, asked for only while hosts warm up.
    pub now: &'a dyn Fn() -> Instant,
    /// Priorities tried so far, where retries prefer others.
    pub priorities: Option<&'a mut PreviousPriorities>,
}

/// A choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pick {
    /// Number of the host.
    pub host: usize,
    /// Its priority.
    pub priority: u32,
    /// Too few hosts of its priority are available, so that health was not looked at.
    pub panic: bool,
}

/// A worker's balancer for one cluster. Made anew when hosts or their health change; has only its own rotation state.
#[derive(Clone, Debug)]
pub struct Balancer {
    policy: LbPolicy,
    ramp: Option<Ramp>,
    priorities: Vec<Priority>,
    /// Share of each priority's healthy hosts, then of each priority's degraded hosts; the sum is 100 unless there is no host.
    shares: Shares,
    /// How available each priority is, in percent, over-provisioned.
    available: Vec<u32>,
}

/// The hosts of a priority, ready to be picked from.
#[derive(Clone, Debug)]
struct Priority {
    panic: bool,
    hosts: Hosts,
}

#[derive(Clone, Debug)]
enum Hosts {
    Pools(Box<Pools>),
    Hashed(HashTable),
}

#[derive(Clone, Debug)]
struct Pools {
    all: Pool,
    healthy: Localities,
    degraded: Localities,
}

/// Hosts of one availability: one pool, or one for each locality that has a weight.
#[derive(Clone, Debug)]
struct Localities {
    flat: Pool,
    weighted: Option<Weighted>,
}

#[derive(Clone, Debug)]
struct Weighted {
    schedule: Edf,
    weights: Vec<f64>,
    pools: Vec<Pool>,
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

/// Slow start: hosts that joined lately count for less.
#[derive(Clone, Debug)]
struct Ramp {
    config: SlowStart,
    /// By host number.
    joined: Vec<Option<Instant>>,
    /// End of the last ramp.
    until: Option<Instant>,
}

impl Ramp {
    fn new(config: SlowStart, hosts: &[BalancerHost]) -> Self {
        let joined: Vec<_> =
            hosts.iter().map(|host| host.joined.filter(|_| host.health == HealthStatus::Healthy)).collect();
        let until = joined.iter().flatten().max().map(|latest| *latest + config.window);
        Self { config, joined, until }
    }

    fn lasts(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now <= until)
    }

    /// Which part of its weight a host has.
    fn factor(&self, host: usize, now: Instant) -> f64 {
        match self.joined.get(host).copied().flatten() {
            Some(joined) => self.config.factor(now.saturating_duration_since(joined)),
            None => 1.0,
        }
    }
}

impl Balancer {
    /// A balancer over `hosts`. `seed` decides where rotations start, so that workers and restarts don't all begin with the same host.
    pub fn new(config: &BalancerConfig, hosts: &[BalancerHost], seed: u64, now: Instant) -> Self {
        let all: Vec<usize> = (0..hosts.len()).collect();
        Self::among(config, hosts, &all, seed, now)
    }

    /// One over some of the hosts, by their numbers. Priorities of which there is none are empty.
    pub(crate) fn among(
        config: &BalancerConfig,
        hosts: &[BalancerHost],
        numbers: &[usize],
        seed: u64,
        now: Instant,
    ) -> Self {
        let count = hosts.iter().map(|host| host.priority as usize + 1).max().unwrap_or(0);
        let mut members: Vec<Vec<usize>> = vec![Vec::new(); count];
        for number in numbers {
            members[hosts[*number].priority as usize].push(*number);
        }
        let healths: Vec<Health> = members.iter().map(|members| Health::of(config, hosts, members)).collect();
        let (shares, panics) = loads(config, &healths);
        let ramp = config.policy.slow_start().map(|slow_start| Ramp::new(slow_start, hosts));
        let ramps = ramp.as_ref().is_some_and(|ramp| ramp.lasts(now));
        let make = Making { config, hosts, seed, ramps };
        let priorities =
            members.iter().zip(panics).map(|(members, panic)| make.priority(members, panic)).collect();
        let available = healths.iter().map(|health| health.healthy + health.degraded).collect();
        Self { policy: config.policy, ramp, priorities, shares, available }
    }

    /// A host, or `None` when there is none to use.
    pub fn pick(&mut self, wish: &mut Wish<'_>) -> Option<Pick> {
        let (number, availability) = match self.shares.as_slice() {
            [] => return None,
            // One priority: there is nothing to shift.
            [(_, number, availability)] if self.priorities.len() == 1 => (*number, *availability),
            shares => self.choose_priority(shares, wish)?,
        };
        let priority = &mut self.priorities[number];
        let (number, panic) = (u32::try_from(number).unwrap_or(u32::MAX), priority.panic);
        let pool = match (&mut priority.hosts, availability) {
            (Hosts::Hashed(table), _) => {
                let hash = wish.hash.unwrap_or_else(&mut *wish.random);
                return Some(Pick {
                    host: table.choose(hash, wish.attempt, wish.load)?,
                    priority: number,
                    panic,
                });
            }
            (Hosts::Pools(pools), _) if panic => &mut pools.all,
            (Hosts::Pools(pools), Availability::Healthy) => pools.healthy.pool(),
            (Hosts::Pools(pools), Availability::Degraded) => pools.degraded.pool(),
        };
        let host = pool.pick(self.policy, self.ramp.as_ref(), wish)?;
        Some(Pick { host, priority: number, panic })
    }

    fn choose_priority(
        &self,
        shares: &[(u32, usize, Availability)],
        wish: &mut Wish<'_>,
    ) -> Option<(usize, Availability)> {
        // What has a hash's host stays with it, whatever has been tried, as in Envoy.
        let tried = wish.priorities.as_deref_mut().filter(|_| !self.policy.hashes());
        let shifted = tried.and_then(|tried| tried.shares(&self.available));
        if let (None, [(_, number, availability)]) = (shifted, shares) {
            return Some((*number, *availability));
        }
        let drawn = match wish.hash {
            Some(hash) if self.policy.hashes() => hash,
            _ => (wish.random)(),
        };
        let mut left = u32::try_from(drawn % 100).unwrap_or(0);
        let mut falls_in = |share: u32| {
            let found = left < share;
            left = left.saturating_sub(share);
            found
        };
        if let Some(shifted) = shifted {
            let number = shifted.iter().position(|share| falls_in(*share))?;
            return Some((number, Availability::Healthy));
        }
        let chosen = shares.iter().find(|(share, ..)| falls_in(*share));
        let (_, number, availability) = chosen.or(shares.last())?;
        Some((*number, *availability))
    }
}

/// What pools are made from.
#[derive(Clone, Copy)]
struct Making<'a> {
    config: &'a BalancerConfig,
    hosts: &'a [BalancerHost],
    seed: u64,
    /// Some host warms up.
    ramps: bool,
}

impl Making<'_> {
    fn priority(self, members: &[usize], panic: bool) -> Priority {
        if self.config.policy.hashes() {
            let shares = self.shares(members, panic);
            if let Some(table) = HashTable::new(&self.config.policy, self.hosts, shares) {
                return Priority { panic, hosts: Hosts::Hashed(table) };
            }
        }
        let all = self.pool(members.to_vec());
        let healthy = self.localities(members, HealthStatus::Healthy);
        let degraded = self.localities(members, HealthStatus::Degraded);
        Priority { panic, hosts: Hosts::Pools(Box::new(Pools { all, healthy, degraded })) }
    }

    fn with_health(self, members: &[usize], health: HealthStatus) -> Vec<usize> {
        members.iter().copied().filter(|number| self.hosts[*number].health == health).collect()
    }

    fn localities(self, members: &[usize], health: HealthStatus) -> Localities {
        let available = self.with_health(members, health);
        let weighted = match self.config.locality {
            LocalityMode::Flat => None,
            LocalityMode::Weighted => self.weighted(members, &available),
        };
        Localities { flat: self.pool(available), weighted }
    }

    /// Numbers of the localities among some hosts.
    fn numbers(self, hosts: &[usize]) -> Vec<u32> {
        let mut numbers: Vec<u32> = hosts.iter().map(|number| self.hosts[*number].locality).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }

    fn in_locality(self, hosts: &[usize], locality: u32) -> Vec<usize> {
        hosts.iter().copied().filter(|number| self.hosts[*number].locality == locality).collect()
    }

    /// A locality's weight shrinks with its available share, over-provisioned as priorities are. `None`: no locality has a weight.
    #[allow(clippy::cast_precision_loss)]
    fn weighted(self, members: &[usize], available: &[usize]) -> Option<Weighted> {
        let (mut schedule, mut weights, mut pools) = (Edf::default(), Vec::new(), Vec::new());
        for locality in self.numbers(available) {
            let (all, usable) = (self.in_locality(members, locality), self.in_locality(available, locality));
            let Some(weight) = usable.first().and_then(|number| self.hosts[*number].locality_weight) else {
                continue;
            };
            let there = all.iter().filter(|number| !self.hosts[**number].excluded).count();
            let share = usable.len() as f64 / there.max(1) as f64;
            let factor = f64::from(self.config.overprovisioning_factor) / 100.0;
            let weight = f64::from(weight) * (share * factor).min(1.0);
            if weight > 0.0 {
                schedule.add(pools.len(), weight);
                weights.push(weight);
                pools.push(self.pool(usable));
            }
        }
        (!pools.is_empty()).then_some(Weighted { schedule, weights, pools })
    }

    /// Each host's share of a priority for consistent hashing, by its own weight and its locality's. Degraded hosts have none.
    #[allow(clippy::cast_precision_loss)]
    fn shares(self, members: &[usize], panic: bool) -> Vec<(u32, f64)> {
        let usable = if panic { members.to_vec() } else { self.with_health(members, HealthStatus::Healthy) };
        let mut shares = Vec::with_capacity(usable.len());
        let mut add = |hosts: &[usize], part: f64| {
            let sum: u64 = hosts.iter().map(|number| u64::from(self.hosts[*number].weight)).sum();
            for number in hosts {
                let share = f64::from(self.hosts[*number].weight) * part / sum as f64;
                shares.push((u32::try_from(*number).unwrap_or(u32::MAX), share));
            }
        };
        match self.config.locality {
            LocalityMode::Flat => add(&usable, 1.0),
            LocalityMode::Weighted => {
                let weight = |hosts: &[usize]| {
                    hosts.first().and_then(|number| self.hosts[*number].locality_weight).unwrap_or(0)
                };
                let localities: Vec<Vec<usize>> = self
                    .numbers(members)
                    .iter()
                    .map(|locality| self.in_locality(members, *locality))
                    .collect();
                let sum: u64 = localities.iter().map(|hosts| u64::from(weight(hosts))).sum();
                for hosts in localities.iter().filter(|hosts| weight(hosts) > 0) {
                    let hosts: Vec<usize> =
                        hosts.iter().copied().filter(|number| usable.contains(number)).collect();
                    add(&hosts, f64::from(weight(&hosts)) / sum as f64);
                }
            }
        }
        shares
    }

    fn pool(self, members: Vec<usize>) -> Pool {
        let weights: Vec<u32> = members.iter().map(|number| self.hosts[*number].weight.max(1)).collect();
        let equal = weights.windows(2).all(|pair| pair[0] == pair[1]);
        let count = members.len().max(1) as u64;
        let next = usize::try_from(self.seed % count).unwrap_or(0);
        let uses_weights =
            matches!(self.config.policy, LbPolicy::RoundRobin { .. } | LbPolicy::LeastRequest(_));
        let schedule = (uses_weights && (!equal || self.ramps)).then(|| {
            let mut schedule = Edf::default();
            for (position, weight) in weights.iter().enumerate() {
                schedule.add(position, f64::from(*weight));
            }
            for _ in 0..next {
                schedule.pick(|position| f64::from(weights[position]));
            }
            schedule
        });
        Pool { hosts: members, weights, next, schedule }
    }
}

impl Localities {
    fn pool(&mut self) -> &mut Pool {
        let Some(weighted) = &mut self.weighted else { return &mut self.flat };
        let Weighted { schedule, weights, pools } = weighted;
        match schedule.pick(|pool| weights[pool]).and_then(|chosen| pools.get_mut(chosen)) {
            Some(pool) => pool,
            None => &mut self.flat,
        }
    }
}

impl Pool {
    fn pick(&mut self, policy: LbPolicy, ramp: Option<&Ramp>, wish: &mut Wish<'_>) -> Option<usize> {
        let Self { hosts, weights, next, schedule } = self;
        let count = hosts.len();
        match count {
            0 => return None,
            1 => return hosts.first().copied(),
            _ => {}
        }
        let load = wish.load;
        // Hosts that warm up have a part of their weight.
        let weight = |position: usize| {
            let own = f64::from(weights[position]);
            ramp.map_or(own, |ramp| own * ramp.factor(hosts[position], (wish.now)()))
        };
        let mut any = || usize::try_from((wish.random)() % count as u64).unwrap_or(0);
        let position = match (policy, schedule) {
            (LbPolicy::RoundRobin { .. }, Some(schedule)) => schedule.pick(weight)?,
            (LbPolicy::RoundRobin { .. }, None) => {
                let position = *next % count;
                *next = (position + 1) % count;
                position
            }
            (LbPolicy::LeastRequest(config), Some(schedule)) => schedule.pick(|position| {
                weight(position) / work(load.active(hosts[position]), config.active_request_bias)
            })?,
            (LbPolicy::LeastRequest(config), None) => match config.choice {
                LeastRequestChoice::Random(choices) => {
                    let first = any();
                    let others = (1..choices).map(|_| any()).collect::<smallvec::SmallVec<[usize; 4]>>();
                    // The first of the least loaded, as Envoy compares with "less than".
                    others.into_iter().fold(first, |best, other| {
                        if load.active(hosts[other]) < load.active(hosts[best]) { other } else { best }
                    })
                }
                LeastRequestChoice::All => least_of_all(hosts, load, wish.random),
            },
            (LbPolicy::Random, _) => any(),
            (LbPolicy::ClusterProvided | LbPolicy::RingHash(_) | LbPolicy::Maglev(_), _) => return None,
        };
        hosts.get(position).copied()
    }
}

/// The position of the least loaded host, any of them where there are several.
fn least_of_all(hosts: &[usize], load: &dyn Load, random: &mut dyn FnMut() -> u64) -> usize {
    let (mut best, mut ties) = (0, 1);
    for position in 1..hosts.len() {
        match load.active(hosts[position]).cmp(&load.active(hosts[best])) {
            std::cmp::Ordering::Less => (best, ties) = (position, 1),
            std::cmp::Ordering::Equal => {
                ties += 1;
                if random().is_multiple_of(ties) {
                    best = position;
                }
            }
            std::cmp::Ordering::Greater => {}
        }
    }
    best
}

/// `(active + 1) ^ bias`, with the usual biases kept cheap.
#[allow(clippy::cast_precision_loss)]
fn work(active: u64, bias: f64) -> f64 {
    let active = active as f64 + 1.0;
    if bias == 1.0 { active } else { active.powf(bias) }
}
