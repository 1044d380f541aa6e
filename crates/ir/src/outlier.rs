//! Outlier detection: which hosts are ejected, why, and when they return. Time and chance come from outside.
//! <https://www.envoyproxy.io/docs/envoy/v1.40.0/intro/arch_overview/upstream/outlier>

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Envoy's `OutlierDetection`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OutlierDetection {
    /// Consecutive 5xx (and, unless split, local errors) before ejection. Default 5.
    pub consecutive_5xx: u32,
    /// Consecutive 502, 503, 504 before ejection. Default 5.
    pub consecutive_gateway_failure: u32,
    /// Local errors are counted apart.
    pub split_external_local_origin_errors: bool,
    /// Consecutive local errors before ejection, when split. Default 5.
    pub consecutive_local_origin_failure: u32,
    /// Percentage of ejections enforced, by cause. Default 100 but for gateway failures and failure percentages: 0.
    pub enforcing: [u32; Ejection::ALL.len()],
    /// Success rates are compared when so many hosts had enough requests. Default 5.
    pub success_rate_minimum_hosts: u32,
    /// Requests of a host in one interval that are enough. Default 100.
    pub success_rate_request_volume: u32,
    /// A host is an outlier when its rate is below the mean less so many thousandths of the standard deviation. Default 1900.
    pub success_rate_stdev_factor: u32,
    /// Percentage of failures that makes a host an outlier. Default 85.
    pub failure_percentage_threshold: u32,
    /// Failure percentages count when so many hosts had enough requests. Default 5.
    pub failure_percentage_minimum_hosts: u32,
    /// Requests of a host in one interval that are enough. Default 50.
    pub failure_percentage_request_volume: u32,
    /// Between judgements of rates and returns. Default 10 s.
    pub interval: Duration,
    /// Times the number of ejections. Default 30 s.
    pub base_ejection_time: Duration,
    /// Upper limit. Default 300 s or `base_ejection_time`, whichever is longer.
    pub max_ejection_time: Duration,
    /// Random part. Default 0.
    pub max_ejection_time_jitter: Duration,
    /// Most ejected hosts, percent. Default 10.
    pub max_ejection_percent: u32,
    /// One host may be ejected whatever the percentage. Default false.
    pub always_eject_one_host: bool,
    /// An active health check that passes brings its host back (`successful_active_health_check_uneject_host`). Default true.
    pub health_check_ends_ejection: bool,
}

/// Why a host is ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ejection {
    /// Consecutive 5xx.
    Consecutive5xx,
    /// Consecutive 502, 503, 504.
    ConsecutiveGatewayFailure,
    /// Consecutive failures to connect, resets, time-outs.
    ConsecutiveLocalOriginFailure,
    /// Few good answers beside other hosts.
    SuccessRate,
    /// Few good connections beside other hosts.
    LocalOriginSuccessRate,
    /// Too few good answers.
    FailurePercentage,
    /// Too few good connections.
    LocalOriginFailurePercentage,
}

impl Ejection {
    /// In the order of `OutlierDetection::enforcing`.
    pub const ALL: [Self; 7] = [
        Self::Consecutive5xx,
        Self::ConsecutiveGatewayFailure,
        Self::ConsecutiveLocalOriginFailure,
        Self::SuccessRate,
        Self::LocalOriginSuccessRate,
        Self::FailurePercentage,
        Self::LocalOriginFailurePercentage,
    ];
}

/// Whose failures a rate is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureOrigin {
    /// The host's answers; without the split, connections too.
    External,
    /// Connections.
    Local,
}

/// What became of a host's requests in one interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestRate {
    /// All.
    pub total: u64,
    /// Without failure.
    pub good: u64,
}

impl RequestRate {
    /// Percentage of good ones.
    #[allow(clippy::cast_precision_loss)]
    fn percent(self) -> Option<f64> {
        (self.total > 0).then(|| self.good as f64 * 100.0 / self.total as f64)
    }

    fn is_enough(self, volume: u32) -> bool {
        self.total >= u64::from(volume)
    }
}

/// What Envoy counts about ejections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EjectionCounts {
    /// Outliers found, by cause.
    pub detected: [u64; Ejection::ALL.len()],
    /// Of them ejected.
    pub enforced: [u64; Ejection::ALL.len()],
    /// Not ejected because too many already were.
    pub overflow: u64,
    /// Envoy's deprecated `ejections_total`: those by consecutive 5xx and by success rate, enforced or not.
    pub total: u64,
}

/// What is known of one host.
#[derive(Clone, Copy, Debug, Default)]
struct Record {
    ejected_at: Option<Instant>,
    jitter: Duration,
    /// Multiplies the base time.
    backoff: u32,
    returned_at: Option<Instant>,
    /// Percentage of the last interval, by origin, when the host had enough requests.
    rates: [Option<f64>; 2],
}

/// Which of a cluster's hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HostKey {
    /// The one at this address.
    Address(SocketAddr),
    /// The one of this entry in a cache of names: its address changes, and others may have the same.
    Named(u64),
}

/// The judge of one cluster's hosts.
#[derive(Debug, Default)]
pub struct OutlierJudge {
    hosts: BTreeMap<HostKey, Record>,
    /// What was found so far.
    pub counts: EjectionCounts,
}

impl OutlierJudge {
    /// These are the hosts from now on; what is known of those that stay is kept.
    pub fn keep(&mut self, hosts: impl Iterator<Item = HostKey>) {
        let mut before = std::mem::take(&mut self.hosts);
        self.hosts = hosts.map(|host| (host, before.remove(&host).unwrap_or_default())).collect();
    }

    /// A host more; what is known of it is kept.
    pub fn add(&mut self, host: HostKey) {
        self.hosts.entry(host).or_default();
    }

    /// Hosts that are out now.
    pub fn active(&self) -> usize {
        self.hosts.values().filter(|record| record.ejected_at.is_some()).count()
    }

    /// Success rate of a host in the last interval, percent; `None` without enough requests.
    pub fn success_rate(&self, host: HostKey, origin: FailureOrigin) -> Option<f64> {
        self.hosts.get(&host)?.rates[origin as usize]
    }

    /// A run of failures reached its limit. True when the host is ejected for it.
    pub fn detect(
        &mut self,
        config: &OutlierDetection,
        host: HostKey,
        why: Ejection,
        random: u64,
        now: Instant,
    ) -> bool {
        match self.hosts.get(&host) {
            // Gone, or out already.
            None | Some(Record { ejected_at: Some(_), .. }) => false,
            Some(_) => self.eject(config, host, why, random, now),
        }
    }

    /// Brings a host back before its time. True when it was out.
    pub fn uneject(&mut self, host: HostKey, now: Instant) -> bool {
        let Some(record) = self.hosts.get_mut(&host).filter(|record| record.ejected_at.is_some()) else {
            return false;
        };
        (record.ejected_at, record.returned_at) = (None, Some(now));
        true
    }

    /// The end of an interval: hosts return, rates of the interval are judged. Tells who returned and who was ejected.
    pub fn interval(
        &mut self,
        config: &OutlierDetection,
        rates: &[(HostKey, [RequestRate; 2])],
        random: &mut dyn FnMut() -> u64,
        now: Instant,
    ) -> (Vec<HostKey>, Vec<HostKey>) {
        let mut returned = Vec::new();
        for (host, record) in &mut self.hosts {
            record.rates = [None, None];
            let Some(since) = record.ejected_at else { continue };
            let time = config.base_ejection_time.saturating_mul(record.backoff).min(config.max_ejection_time);
            if time + record.jitter <= now.saturating_duration_since(since) {
                record.ejected_at = None;
                record.returned_at = Some(now);
                returned.push(*host);
            }
        }
        let mut ejected = Vec::new();
        for origin in [FailureOrigin::External, FailureOrigin::Local] {
            for (host, why) in self.outliers(config, rates, origin) {
                if self.eject(config, host, why, random(), now) {
                    ejected.push(host);
                }
            }
        }
        // Whoever stayed in for an interval is forgiven one ejection.
        for record in self.hosts.values_mut().filter(|record| record.ejected_at.is_none()) {
            if record.returned_at.is_some_and(|at| now.saturating_duration_since(at) >= config.interval) {
                record.backoff = record.backoff.saturating_sub(1);
            }
        }
        (returned, ejected)
    }

    /// Notes the rates of the interval and finds those that are out of line.
    #[allow(clippy::cast_precision_loss)]
    fn outliers(
        &mut self,
        config: &OutlierDetection,
        rates: &[(HostKey, [RequestRate; 2])],
        origin: FailureOrigin,
    ) -> Vec<(HostKey, Ejection)> {
        let (by_rate, by_percentage) = match origin {
            FailureOrigin::External => (Ejection::SuccessRate, Ejection::FailurePercentage),
            FailureOrigin::Local => {
                (Ejection::LocalOriginSuccessRate, Ejection::LocalOriginFailurePercentage)
            }
        };
        let hosts = self.hosts.len();
        if hosts < config.success_rate_minimum_hosts.min(config.failure_percentage_minimum_hosts) as usize {
            return Vec::new();
        }
        let (mut compared, mut measured) = (Vec::new(), Vec::new());
        for (host, rates) in rates {
            let Some(record) = self.hosts.get_mut(host).filter(|record| record.ejected_at.is_none()) else {
                continue;
            };
            let rate = rates[origin as usize];
            let Some(percent) = rate.percent() else { continue };
            if rate.is_enough(config.success_rate_request_volume) {
                compared.push((*host, percent));
            }
            if rate.is_enough(config.failure_percentage_request_volume) {
                measured.push((*host, percent));
            }
            if rate
                .is_enough(config.success_rate_request_volume.min(config.failure_percentage_request_volume))
            {
                record.rates[origin as usize] = Some(percent);
            }
        }
        let mut found = Vec::new();
        if !compared.is_empty() && compared.len() >= config.success_rate_minimum_hosts as usize {
            let count = compared.len() as f64;
            let mean = compared.iter().map(|(_, percent)| percent).sum::<f64>() / count;
            let variance = compared.iter().map(|(_, percent)| (percent - mean).powi(2)).sum::<f64>() / count;
            let least = mean - f64::from(config.success_rate_stdev_factor) / 1000.0 * variance.sqrt();
            found.extend(
                compared.iter().filter(|(_, percent)| *percent < least).map(|(host, _)| (*host, by_rate)),
            );
        }
        if !measured.is_empty() && measured.len() >= config.failure_percentage_minimum_hosts as usize {
            let threshold = f64::from(config.failure_percentage_threshold);
            let failing = measured.iter().filter(|(_, percent)| 100.0 - percent >= threshold);
            found.extend(failing.map(|(host, _)| (*host, by_percentage)));
        }
        found
    }

    fn eject(
        &mut self,
        config: &OutlierDetection,
        host: HostKey,
        why: Ejection,
        random: u64,
        now: Instant,
    ) -> bool {
        self.counts.detected[why as usize] += 1;
        let active = self.active();
        // The share with this host: none of three is ejected at 10 %, unless `always_eject_one_host` says so.
        let within = (active + 1) * 100 <= self.hosts.len() * config.max_ejection_percent.min(100) as usize;
        let allowed = within || (config.always_eject_one_host && active == 0);
        if !allowed {
            self.counts.overflow += 1;
            return false;
        }
        if matches!(why, Ejection::Consecutive5xx | Ejection::SuccessRate) {
            self.counts.total += 1;
        }
        if random % 100 >= u64::from(config.enforcing[why as usize]) {
            return false;
        }
        // One interval may find two causes, which count both. (Envoy ejects twice then, and its gauge stays up.)
        let Some(record) = self.hosts.get_mut(&host).filter(|record| record.ejected_at.is_none()) else {
            return false;
        };
        self.counts.enforced[why as usize] += 1;
        record.ejected_at = Some(now);
        let jitter = u64::try_from(config.max_ejection_time_jitter.as_millis()).unwrap_or(u64::MAX - 1);
        record.jitter = Duration::from_millis((random >> 32) % (jitter + 1));
        let base = config.base_ejection_time;
        if base.saturating_mul(record.backoff) < config.max_ejection_time + base {
            record.backoff += 1;
        }
        true
    }
}

#[cfg(test)]
#[path = "outlier_tests.rs"]
mod tests;
