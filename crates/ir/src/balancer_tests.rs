//! Tests of the balancer.

use std::time::{Duration, Instant};

use crate::{
    Balancer, BalancerConfig, BalancerHost, HealthStatus, LbPolicy, LeastRequest, LeastRequestChoice, Load,
    LocalityMode, Maglev, SlowStart, Wish,
};

struct Busy<F>(F);

impl<F: Fn(usize) -> u64> Load for Busy<F> {
    fn active(&self, host: usize) -> u64 {
        self.0(host)
    }

    fn total(&self) -> u64 {
        0
    }
}

const ROUND_ROBIN: LbPolicy = LbPolicy::RoundRobin { slow_start: None };

fn pick(
    balancer: &mut Balancer,
    random: &mut dyn FnMut() -> u64,
    active: impl Fn(usize) -> u64,
) -> Option<usize> {
    let mut wish =
        Wish { hash: None, attempt: 0, random, load: &Busy(active), now: &Instant::now, priorities: None };
    balancer.pick(&mut wish).map(|pick| pick.host)
}

fn balancer_of(config: &BalancerConfig, hosts: &[BalancerHost], seed: u64) -> Balancer {
    Balancer::new(config, hosts, seed, Instant::now())
}

fn host(priority: u32, weight: u32, health: HealthStatus) -> BalancerHost {
    BalancerHost {
        priority,
        locality: 0,
        locality_weight: None,
        weight,
        health,
        excluded: false,
        hash_key: "".into(),
        joined: None,
    }
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
    let mut balancer = balancer_of(config, hosts, 0);
    // Every residue of 100 equally often, in a scattered order.
    let mut n = 0_u64;
    let mut random = || {
        n += 37;
        n
    };
    let mut counts = vec![0; hosts.len()];
    for _ in 0..picks {
        counts[pick(&mut balancer, &mut random, |_| 0).unwrap()] += 1;
    }
    counts
}

use HealthStatus::{Degraded, Healthy, Unhealthy};

#[test]
fn round_robin_takes_turns_and_respects_weights() {
    let config = config(ROUND_ROBIN);
    let equal = [host(0, 1, Healthy), host(0, 1, Healthy), host(0, 1, Healthy)];
    assert_eq!(counts(&config, &equal, 30), [10, 10, 10]);
    let mut balancer = balancer_of(&config, &equal, 2);
    let first: Vec<_> = (0..4).map(|_| pick(&mut balancer, &mut || 0, |_| 0).unwrap()).collect();
    assert_eq!(first, [2, 0, 1, 2], "the seed shifts the start");
    let weighted = [host(0, 1, Healthy), host(0, 3, Healthy)];
    assert_eq!(counts(&config, &weighted, 40), [10, 30]);
}

#[test]
fn least_request_avoids_the_busy_host() {
    let hosts = [host(0, 1, Healthy), host(0, 1, Healthy)];
    let policy = LbPolicy::LeastRequest(LeastRequest::default());
    let mut balancer = balancer_of(&config(policy), &hosts, 0);
    let mut n = 0;
    let mut random = || {
        n += 1;
        n
    };
    for _ in 0..10 {
        assert_eq!(pick(&mut balancer, &mut random, |host| if host == 0 { 5 } else { 1 }), Some(1));
    }
    let weighted = [host(0, 1, Healthy), host(0, 2, Healthy)];
    let mut balancer = balancer_of(&config(policy), &weighted, 0);
    let picks: Vec<_> =
        (0..90).map(|_| pick(&mut balancer, &mut random, |host| if host == 1 { 3 } else { 0 })).collect();
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
    let config = config(ROUND_ROBIN);
    assert_eq!(pick(&mut balancer_of(&config, &[], 0), &mut || 0, |_| 0), None);
    let no_panic = BalancerConfig { healthy_panic_threshold: 0.0, ..config };
    let down = [host(0, 1, Unhealthy)];
    assert_eq!(pick(&mut balancer_of(&no_panic, &down, 0), &mut || 0, |_| 0), None);
    assert_eq!(
        pick(&mut balancer_of(&config, &down, 0), &mut || 0, |_| 0),
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
        let picks = counts(&config(ROUND_ROBIN), &hosts, 10_000);
        let first: usize = picks[..100].iter().sum();
        assert_eq!(first, expected * 100, "{healthy}% healthy");
    }
}

#[test]
fn degraded_hosts_take_what_healthy_ones_leave() {
    let hosts = [host(0, 1, Healthy), host(0, 1, Degraded), host(0, 1, Degraded), host(0, 1, Degraded)];
    let picks = counts(&config(ROUND_ROBIN), &hosts, 10_000);
    assert_eq!(picks[0], 3500, "25% healthy, over-provisioned to 35");
}

#[test]
fn all_in_panic_shares_by_size() {
    let hosts = [host(0, 1, Unhealthy), host(0, 1, Unhealthy), host(0, 1, Unhealthy), host(1, 1, Unhealthy)];
    let picks = counts(&config(ROUND_ROBIN), &hosts, 10_000);
    assert_eq!(picks[3], 2500);
}

#[test]
fn panic_looks_at_hosts_and_not_at_their_weights() {
    let config = BalancerConfig { weighted_priority_health: true, ..config(ROUND_ROBIN) };
    // A third of the weight is half of the hosts.
    let hosts = [host(0, 2, Unhealthy), host(0, 1, Healthy)];
    assert_eq!(counts(&config, &hosts, 10), [0, 10]);
}

#[test]
fn localities_share_by_weight_and_health() {
    let with = |locality, weight, health| BalancerHost {
        locality,
        locality_weight: Some(weight),
        ..host(0, 1, health)
    };
    let config = BalancerConfig { locality: LocalityMode::Weighted, ..config(ROUND_ROBIN) };
    let hosts = [with(0, 3, Healthy), with(1, 1, Healthy)];
    assert_eq!(counts(&config, &hosts, 40), [30, 10]);
    // Locality 0 is half up: 3 * min(1, 1.4 * 0.5) = 2.1 against 1.
    let hosts = [with(0, 3, Healthy), with(0, 3, Unhealthy), with(1, 1, Healthy)];
    let picks = counts(&config, &hosts, 3100);
    assert!((2090..=2110).contains(&picks[0]), "{picks:?}");
    assert_eq!(picks[1], 0);
}

#[test]
fn without_any_locality_weight_localities_do_not_matter() {
    let config = BalancerConfig { locality: LocalityMode::Weighted, ..config(ROUND_ROBIN) };
    assert_eq!(counts(&config, &[host(0, 1, Healthy), host(0, 1, Healthy)], 10), [5, 5]);
}

#[test]
fn a_full_scan_finds_the_least_loaded() {
    let policy = LeastRequest { choice: LeastRequestChoice::All, ..LeastRequest::default() };
    let hosts: Vec<_> = (0..50).map(|_| host(0, 1, Healthy)).collect();
    let mut balancer = balancer_of(&config(LbPolicy::LeastRequest(policy)), &hosts, 0);
    let picked = pick(&mut balancer, &mut || 1, |host| u64::from(host != 31));
    assert_eq!(picked, Some(31));
}

#[test]
fn new_hosts_take_their_load_slowly() {
    let slow_start = Some(SlowStart { window: Duration::from_secs(100), aggression: 1.0, min_weight: 0.1 });
    let begin = Instant::now();
    let old = BalancerHost { joined: Some(begin), ..host(0, 1, Healthy) };
    let new = BalancerHost { joined: Some(begin + Duration::from_secs(1000)), ..host(0, 1, Healthy) };
    let least = LeastRequest { slow_start, ..LeastRequest::default() };
    for policy in [LbPolicy::RoundRobin { slow_start }, LbPolicy::LeastRequest(least)] {
        // Seconds after the new host joined, and how many of 1100 requests it gets.
        for (age, expected) in [(0, 100), (10, 100), (50, 366), (101, 550)] {
            let now = begin + Duration::from_secs(1000 + age);
            let mut balancer = Balancer::new(&config(policy), &[old.clone(), new.clone()], 0, now);
            let mut n = 0;
            let mut random = || {
                n += 1;
                n / 2
            };
            let picks = (0..1100).filter(|_| {
                let load = Busy(|_| 0);
                let mut wish = Wish {
                    hash: None,
                    attempt: 0,
                    random: &mut random,
                    load: &load,
                    now: &|| now,
                    priorities: None,
                };
                balancer.pick(&mut wish).unwrap().host == 1
            });
            let new = picks.count();
            assert!(
                new.abs_diff(expected) <= 3 || (age > 100 && new.abs_diff(expected) < 60),
                "{policy:?} {age}: {new}"
            );
        }
    }
    let steep = SlowStart { window: Duration::from_secs(100), aggression: 2.0, min_weight: 0.0 };
    assert!((steep.factor(Duration::from_secs(25)) - 0.5).abs() < 1e-9);
}

#[test]
fn hashes_choose_priority_and_host() {
    let keyed = |n: u32, priority| BalancerHost {
        hash_key: format!("10.0.0.{n}:1").into(),
        ..host(priority, 1, if n < 2 { Healthy } else { Unhealthy })
    };
    let policy = LbPolicy::Maglev(Maglev::default());
    let hosts = [keyed(0, 0), keyed(1, 0), keyed(2, 0), keyed(3, 0)];
    let mut balancer = balancer_of(&config(policy), &hosts, 0);
    let load = Busy(|_| 0);
    let mut chosen: Vec<usize> = (0..1000)
        .map(|hash: u64| {
            let hash = Some(hash.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let mut wish = Wish {
                hash,
                attempt: 0,
                random: &mut || 0,
                load: &load,
                now: &Instant::now,
                priorities: None,
            };
            let (first, second) = (balancer.pick(&mut wish).unwrap(), balancer.pick(&mut wish).unwrap());
            assert_eq!(first, second);
            first.host
        })
        .collect();
    chosen.sort_unstable();
    chosen.dedup();
    assert_eq!(chosen, [0, 1], "only healthy hosts");
}
