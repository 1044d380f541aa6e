//! Load balancing policies.

use std::time::Duration;

/// Load balancing policy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LbPolicy {
    /// In turn, by weight.
    RoundRobin {
        /// New hosts begin with less.
        slow_start: Option<SlowStart>,
    },
    /// The least loaded; weighted round robin over load when weights differ.
    LeastRequest(LeastRequest),
    /// Any.
    Random,
    /// By a hash, on a ring of points.
    RingHash(RingHash),
    /// By a hash, in a table.
    Maglev(Maglev),
    /// The cluster decides (ORIGINAL_DST).
    ClusterProvided,
}

/// Envoy's `LeastRequest`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LeastRequest {
    /// Among which hosts, with equal weights.
    pub choice: LeastRequestChoice,
    /// Exponent of active requests with unequal weights. Default 1.
    pub active_request_bias: f64,
    /// New hosts begin with less.
    pub slow_start: Option<SlowStart>,
}

/// Among which hosts the least loaded is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeastRequestChoice {
    /// So many random ones. Default 2.
    Random(u32),
    /// All (`FULL_SCAN`).
    All,
}

impl Default for LeastRequest {
    fn default() -> Self {
        Self { choice: LeastRequestChoice::Random(2), active_request_bias: 1.0, slow_start: None }
    }
}

/// Envoy's `SlowStartConfig`: for a while after it joined, a host has a part of its weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowStart {
    /// How long; Envoy requires it.
    pub window: Duration,
    /// Shape of the ramp: 1 is linear, more grows faster at the beginning. Default 1.
    pub aggression: f64,
    /// Least part of the weight, 0 to 1. Default 0.1.
    pub min_weight: f64,
}

impl SlowStart {
    /// The part of its weight that a host has so long after it joined.
    pub fn factor(&self, age: Duration) -> f64 {
        if age >= self.window {
            return 1.0;
        }
        let passed = age.as_millis().max(1) as f64 / self.window.as_millis().max(1) as f64;
        let grown = if self.aggression == 1.0 { passed } else { passed.powf(1.0 / self.aggression) };
        grown.max(self.min_weight)
    }
}

/// Envoy's `RingHash`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingHash {
    /// Of the points.
    pub function: RingHashFunction,
    /// Least number of points. Default 1024.
    pub minimum_ring_size: u64,
    /// Largest number of points, 8 Mi at most. Default 8 Mi.
    pub maximum_ring_size: u64,
    /// As in Maglev.
    pub hashing: ConsistentHashing,
}

/// The most points a ring can have.
pub const MAX_RING_SIZE: u64 = 8 * 1024 * 1024;

impl Default for RingHash {
    fn default() -> Self {
        Self {
            function: RingHashFunction::XxHash,
            minimum_ring_size: 1024,
            maximum_ring_size: MAX_RING_SIZE,
            hashing: ConsistentHashing::default(),
        }
    }
}

/// Hash function of a ring's points.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RingHashFunction {
    /// 64-bit xxHash.
    #[default]
    XxHash,
    /// MurmurHash2, 64-bit, with libstdc++'s seed.
    Murmur2,
}

/// Envoy's `Maglev`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Maglev {
    /// Slots, a prime number up to 5000011. Default 65537.
    pub table_size: u64,
    /// As in rings.
    pub hashing: ConsistentHashing,
}

impl Default for Maglev {
    fn default() -> Self {
        Self { table_size: 65_537, hashing: ConsistentHashing::default() }
    }
}

/// Envoy's `ConsistentHashingLbConfig`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConsistentHashing {
    /// Host names stand for hosts instead of addresses.
    pub use_hostname: bool,
    /// Percent of the average load that a host takes at most, at least 100; `None`: unlimited.
    pub balance_factor: Option<u32>,
}

impl LbPolicy {
    /// Whether requests are chosen for by a hash.
    pub fn hashes(&self) -> bool {
        self.hashing().is_some()
    }

    /// What consistent hashing policies share.
    pub fn hashing(&self) -> Option<ConsistentHashing> {
        match self {
            Self::RingHash(config) => Some(config.hashing),
            Self::Maglev(config) => Some(config.hashing),
            _ => None,
        }
    }

    /// Slow start, where the policy has it.
    pub fn slow_start(&self) -> Option<SlowStart> {
        match self {
            Self::RoundRobin { slow_start } => *slow_start,
            Self::LeastRequest(config) => config.slow_start,
            _ => None,
        }
    }
}
