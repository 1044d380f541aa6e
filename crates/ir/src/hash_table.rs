//! Consistent hashing: rings and Maglev tables, built as Envoy builds them, so that both choose the same host for the same hash.
//! <https://www.envoyproxy.io/docs/envoy/v1.40.0/intro/arch_overview/upstream/load_balancing/load_balancers>

use xxhash_rust::xxh64::xxh64;

use crate::balancer::{BalancerHost, Load};
use crate::lb_policy::{LbPolicy, Maglev, RingHash, RingHashFunction};

/// Hosts by hash.
#[derive(Clone, Debug)]
pub(crate) struct HashTable {
    table: Table,
    bound: Option<Bound>,
}

#[derive(Clone, Debug)]
enum Table {
    /// Points in order, each with its host.
    Ring(Vec<(u64, u32)>),
    /// The host of each slot.
    Maglev(Vec<u32>),
}

/// Bounded load: a host takes no more than this many percent of the average.
#[derive(Clone, Debug)]
struct Bound {
    factor: u32,
    /// Hosts with their shares.
    hosts: Vec<(u32, f64)>,
}

impl HashTable {
    /// `shares` are host numbers with their shares of the load, which sum up to 1. `None`: the policy does not hash.
    pub(crate) fn new(policy: &LbPolicy, hosts: &[BalancerHost], shares: Vec<(u32, f64)>) -> Option<Self> {
        let (table, hashing) = match policy {
            LbPolicy::RingHash(config) => (Table::Ring(ring(config, hosts, &shares)), config.hashing),
            LbPolicy::Maglev(config) => (Table::Maglev(maglev(config, hosts, &shares)), config.hashing),
            _ => return None,
        };
        Some(Self { table, bound: hashing.balance_factor.map(|factor| Bound { factor, hosts: shares }) })
    }

    /// The host of a hash. `attempt` counts the hosts that were refused for this request.
    pub(crate) fn choose(&self, hash: u64, attempt: u32, load: &dyn Load) -> Option<usize> {
        let host = match &self.table {
            Table::Ring(points) if points.is_empty() => return None,
            Table::Ring(points) => {
                let found = points.partition_point(|(point, _)| *point < hash) % points.len();
                points[(found + attempt as usize) % points.len()].1
            }
            Table::Maglev(slots) if slots.is_empty() => return None,
            Table::Maglev(slots) => {
                // Most bits change, so that attempts spread over the hosts.
                let hash = if attempt > 0 { hash ^ (u64::MAX - u64::from(attempt) + 1) } else { hash };
                slots[(hash % slots.len() as u64) as usize]
            }
        };
        Some(match &self.bound {
            Some(bound) => bound.choose(host, hash, load) as usize,
            None => host as usize,
        })
    }
}

fn ring(config: &RingHash, hosts: &[BalancerHost], shares: &[(u32, f64)]) -> Vec<(u64, u32)> {
    let smallest = shares.iter().map(|(_, share)| *share).fold(1.0, f64::min);
    if shares.is_empty() {
        return Vec::new();
    }
    #[allow(clippy::cast_precision_loss)]
    let (least, most) = (config.minimum_ring_size as f64, config.maximum_ring_size as f64);
    // The host with the smallest share gets a whole number of points.
    let scale = ((smallest * least).ceil() / smallest).min(most);
    let mut points = Vec::with_capacity(scale.ceil() as usize);
    let (mut done, mut target) = (0.0, 0.0);
    let mut key = String::new();
    for (host, share) in shares {
        target += scale * share;
        key.clear();
        key.push_str(&hosts[*host as usize].hash_key);
        key.push('_');
        let length = key.len();
        let mut number = 0_u64;
        while done < target {
            key.truncate(length);
            let _ = std::fmt::Write::write_fmt(&mut key, format_args!("{number}"));
            let point = match config.function {
                RingHashFunction::XxHash => xxh64(key.as_bytes(), 0),
                RingHashFunction::Murmur2 => murmur2(key.as_bytes()),
            };
            points.push((point, *host));
            number += 1;
            done += 1.0;
        }
    }
    points.sort_by_key(|(point, _)| *point);
    points
}

/// A host while the table is filled.
struct Filler {
    host: u32,
    offset: u64,
    skip: u64,
    next: u64,
    share: f64,
    target: f64,
}

fn maglev(config: &Maglev, hosts: &[BalancerHost], shares: &[(u32, f64)]) -> Vec<u32> {
    if shares.is_empty() {
        return Vec::new();
    }
    let size = config.table_size;
    let largest = shares.iter().map(|(_, share)| *share).fold(0.0, f64::max);
    // In the order of their keys: the table must not depend on the order in which endpoints are told.
    let mut ordered = shares.to_vec();
    ordered.sort_by(|(a, _), (b, _)| hosts[*a as usize].hash_key.cmp(&hosts[*b as usize].hash_key));
    let mut fillers: Vec<Filler> = ordered
        .iter()
        .map(|(host, share)| {
            let key = hosts[*host as usize].hash_key.as_bytes();
            let (offset, skip) = (xxh64(key, 0) % size, xxh64(key, 1) % (size - 1) + 1);
            Filler { host: *host, offset, skip, next: 0, share: *share, target: 0.0 }
        })
        .collect();
    const FREE: u32 = u32::MAX;
    let mut slots = vec![FREE; size as usize];
    let (mut filled, mut round) = (0, 0.0);
    while filled < size {
        round += 1.0;
        for filler in &mut fillers {
            // The host with the largest share has a turn in every round, one with a third of it in every third.
            if filled == size || round * filler.share < filler.target {
                continue;
            }
            filler.target += largest;
            let slot = loop {
                let slot = (filler.offset + filler.skip * filler.next) % size;
                filler.next += 1;
                if slots[slot as usize] == FREE {
                    break slot;
                }
            };
            slots[slot as usize] = filler.host;
            filled += 1;
        }
    }
    slots
}

impl Bound {
    /// `host`, or when it is overloaded the first of the others that is not, in an order that depends on the hash only.
    fn choose(&self, host: u32, hash: u64, load: &dyn Load) -> u32 {
        let share =
            |host: u32| self.hosts.iter().find(|(known, _)| *known == host).map_or(0.0, |(_, share)| *share);
        let own = self.overload(host, share(host), load);
        if own <= 1.0 {
            return host;
        }
        let mut random = Mt19937::new(hash as u32);
        let mut order: Vec<usize> = (0..self.hosts.len()).collect();
        let (mut best, mut least) = (host, own);
        for i in 0..order.len() {
            let j = random.below((order.len() - i) as u32) as usize;
            order.swap(i, i + j);
            let (other, share) = self.hosts[order[i]];
            if other == host {
                continue;
            }
            let overload = self.overload(other, share, load);
            if overload <= 1.0 {
                return other;
            }
            if overload < least {
                (best, least) = (other, overload);
            }
        }
        best
    }

    /// Active requests over what the host may have.
    #[allow(clippy::cast_precision_loss)]
    fn overload(&self, host: u32, share: f64, load: &dyn Load) -> f64 {
        let all = ((load.total() + 1) * u64::from(self.factor)).div_ceil(100);
        let own = (all as f64 * share).ceil().max(1.0);
        load.active(host as usize) as f64 / own
    }
}

/// MurmurHash64A with the seed of libstdc++'s `std::hash`, which Envoy's `MURMUR_HASH_2` is.
fn murmur2(key: &[u8]) -> u64 {
    const MUL: u64 = 0xc6a4_a793_5bd1_e995;
    const SEED: u64 = 0xc70f_6907;
    let mix = |value: u64| value ^ (value >> 47);
    let mut hash = SEED ^ (key.len() as u64).wrapping_mul(MUL);
    let (blocks, rest) = key.as_chunks::<8>();
    for block in blocks {
        let data = mix(u64::from_le_bytes(*block).wrapping_mul(MUL)).wrapping_mul(MUL);
        hash = (hash ^ data).wrapping_mul(MUL);
    }
    if !rest.is_empty() {
        let data = rest.iter().rev().fold(0, |data, byte| data << 8 | u64::from(*byte));
        hash = (hash ^ data).wrapping_mul(MUL);
    }
    mix(mix(hash).wrapping_mul(MUL))
}

/// The 32-bit Mersenne Twister: the order of alternatives is the same for the same hash in every proxy.
/// <http://www.math.sci.hiroshima-u.ac.jp/m-mat/MT/emt.html>
struct Mt19937 {
    state: Box<[u32; 624]>,
    next: usize,
}

impl Mt19937 {
    fn new(seed: u32) -> Self {
        let mut state = Box::new([seed; 624]);
        for i in 1..624 {
            let before = state[i - 1];
            state[i] = 1_812_433_253_u32.wrapping_mul(before ^ (before >> 30)).wrapping_add(i as u32);
        }
        Self { state, next: 624 }
    }

    fn next(&mut self) -> u32 {
        if self.next == 624 {
            for i in 0..624 {
                let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % 624] & 0x7fff_ffff);
                let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + 397) % 624] ^ (y >> 1) ^ odd;
            }
            self.next = 0;
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// Uniform below `limit`, which is at least 1.
    fn below(&mut self, limit: u32) -> u32 {
        let bucket = (1_u64 << 32) / u64::from(limit);
        loop {
            let drawn = u64::from(self.next()) / bucket;
            if drawn < u64::from(limit) {
                return drawn as u32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoint::HealthStatus;
    use crate::lb_policy::ConsistentHashing;

    struct Idle;

    impl Load for Idle {
        fn active(&self, _: usize) -> u64 {
            0
        }

        fn total(&self) -> u64 {
            0
        }
    }

    fn hosts(n: usize) -> Vec<BalancerHost> {
        (0..n)
            .map(|n| BalancerHost {
                priority: 0,
                locality: 0,
                locality_weight: None,
                weight: 1,
                health: HealthStatus::Healthy,
                excluded: false,
                hash_key: format!("10.0.0.{n}:80").into(),
                joined: None,
            })
            .collect()
    }

    fn even(n: u32) -> Vec<(u32, f64)> {
        (0..n).map(|host| (host, 1.0 / f64::from(n))).collect()
    }

    fn policies() -> [LbPolicy; 3] {
        let hashing = ConsistentHashing::default();
        [
            LbPolicy::RingHash(RingHash { hashing, ..RingHash::default() }),
            LbPolicy::RingHash(RingHash { function: RingHashFunction::Murmur2, ..RingHash::default() }),
            LbPolicy::Maglev(Maglev { hashing, ..Maglev::default() }),
        ]
    }

    #[test]
    fn a_lost_host_moves_only_its_own_keys() {
        for policy in policies() {
            let all = HashTable::new(&policy, &hosts(10), even(10)).unwrap();
            let fewer = HashTable::new(&policy, &hosts(10), even(9)).unwrap();
            let keys: Vec<u64> = (0..10_000_u64).map(|key| xxh64(&key.to_le_bytes(), 0)).collect();
            let choose = |table: &HashTable, key: &u64| table.choose(*key, 0, &Idle).unwrap();
            let own = keys.iter().filter(|key| choose(&all, key) == 9).count();
            let moved =
                keys.iter().filter(|key| choose(&all, key) != 9 && choose(&all, key) != choose(&fewer, key));
            assert!((500..2000).contains(&own), "a fair share: {own}");
            // A smaller ring has a few more points of each host; a smaller table differs a little everywhere.
            assert!(moved.count() < 1500, "{policy:?}");
        }
    }

    #[test]
    fn shares_are_kept_and_attempts_differ() {
        for policy in policies() {
            let table = HashTable::new(&policy, &hosts(2), vec![(0, 0.25), (1, 0.75)]).unwrap();
            let keys = 20_000_u64;
            let first = (0..keys)
                .filter(|key| table.choose(xxh64(&key.to_le_bytes(), 0), 0, &Idle) == Some(0))
                .count();
            assert!((4000..6000).contains(&first), "{policy:?}: {first}");
            let mut tried: Vec<_> = (0..20).map(|attempt| table.choose(7, attempt, &Idle)).collect();
            tried.sort_unstable();
            tried.dedup();
            assert_eq!(tried.len(), 2);
            let none = HashTable::new(&policy, &hosts(2), vec![]).unwrap();
            assert_eq!(none.choose(7, 0, &Idle), None);
        }
    }

    #[test]
    fn known_hashes() {
        // What `std::hash<std::string>` of libstdc++ gives for these.
        assert_eq!(murmur2(b""), 0x553e_9390_1e46_2a6e);
        let mut random = Mt19937::new(5489);
        let ten_thousandth = (0..10_000).map(|_| random.next()).last();
        assert_eq!(ten_thousandth, Some(4_123_659_995), "the C++ standard's value");
    }

    #[test]
    fn an_overloaded_host_is_passed_over() {
        struct Busy(usize);
        impl Load for Busy {
            fn active(&self, host: usize) -> u64 {
                if host == self.0 { 10 } else { 0 }
            }

            fn total(&self) -> u64 {
                10
            }
        }
        let hashing = ConsistentHashing { balance_factor: Some(150), ..ConsistentHashing::default() };
        let policy = LbPolicy::Maglev(Maglev { hashing, ..Maglev::default() });
        let table = HashTable::new(&policy, &hosts(4), even(4)).unwrap();
        let usual = table.choose(42, 0, &Idle).unwrap();
        let other = table.choose(42, 0, &Busy(usual)).unwrap();
        assert_ne!(usual, other);
        assert_eq!(table.choose(42, 0, &Busy(usual)), Some(other), "always the same one");
    }
}
