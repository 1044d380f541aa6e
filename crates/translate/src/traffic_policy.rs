//! The policy in force for one port and subset of a destination.
use std::time::Duration;

use lateen_api::duration;
use lateen_api::networking::destination_rule::{
    ClientTlsSettings, ConnectionPoolSettings, HttpSettings, OutlierDetection, RetryBudget, TcpSettings,
    TrafficPolicy,
};
use lateen_api::networking::load_balancing::{ConsistentHashLb, LoadBalancerSettings, SimpleLb};
use lateen_xds::pb::envoy::config::cluster::v3 as cluster;
use lateen_xds::pb::envoy::config::core::v3 as core;
use lateen_xds::pb::envoy::r#type::v3::Percent;
use lateen_xds::pb::google::protobuf::UInt64Value;

use crate::settings::{ConnectionDefaults, Keepalive};
use crate::wire;

/// The parts of a DestinationRule's policies that count for one port and subset.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct EffectivePolicy<'a> {
    pub(crate) balancer: Option<&'a LoadBalancerSettings>,
    pub(crate) pool: Option<&'a ConnectionPoolSettings>,
    pub(crate) outlier: Option<&'a OutlierDetection>,
    pub(crate) tls: Option<&'a ClientTlsSettings>,
    pub(crate) retry_budget: Option<&'a RetryBudget>,
}

impl<'a> EffectivePolicy<'a> {
    /// A subset's settings go before the rule's, part by part. Settings of a port replace all of those at their own level,
    /// and inherit nothing: what they leave out has its default.
    /// <https://istio.io/latest/docs/reference/config/networking/destination-rule/#TrafficPolicy-PortTrafficPolicy>
    pub(crate) fn new(rule: Option<&'a TrafficPolicy>, subset: Option<&'a TrafficPolicy>, port: u16) -> Self {
        let at_port =
            |policy: Option<&'a TrafficPolicy>| policy.and_then(|policy| Self::of_port(policy, port));
        if let Some(of_port) = at_port(subset) {
            return of_port;
        }
        let general = at_port(rule).or_else(|| rule.map(Self::of_policy)).unwrap_or_default();
        let special = subset.map(Self::of_policy).unwrap_or_default();
        Self {
            balancer: special.balancer.or(general.balancer),
            pool: special.pool.or(general.pool),
            outlier: special.outlier.or(general.outlier),
            tls: special.tls.or(general.tls),
            retry_budget: special.retry_budget.or(general.retry_budget),
        }
    }

    fn of_policy(policy: &'a TrafficPolicy) -> Self {
        Self {
            balancer: policy.load_balancer.as_ref(),
            pool: policy.connection_pool.as_ref(),
            outlier: policy.outlier_detection.as_ref(),
            tls: policy.tls.as_ref(),
            retry_budget: policy.retry_budget.as_ref(),
        }
    }

    fn of_port(policy: &'a TrafficPolicy, port: u16) -> Option<Self> {
        let settings = policy.port_level_settings.iter().find(|settings| {
            settings.port.as_ref().is_some_and(|selector| selector.number == u32::from(port))
        })?;
        Some(Self {
            balancer: settings.load_balancer.as_ref(),
            pool: settings.connection_pool.as_ref(),
            outlier: settings.outlier_detection.as_ref(),
            tls: settings.tls.as_ref(),
            retry_budget: None,
        })
    }

    /// The algorithm where there is no consistent hashing; Istio's default is least request.
    pub(crate) fn algorithm(&self) -> SimpleLb {
        match self.balancer.and_then(|balancer| balancer.simple) {
            None | Some(SimpleLb::Unspecified | SimpleLb::LeastConn) => SimpleLb::LeastRequest,
            Some(algorithm) => algorithm,
        }
    }

    pub(crate) fn tcp(&self) -> Option<&'a TcpSettings> {
        self.pool.and_then(|pool| pool.tcp.as_ref())
    }

    pub(crate) fn http(&self) -> Option<&'a HttpSettings> {
        self.pool.and_then(|pool| pool.http.as_ref())
    }
}

/// The algorithm with its settings. A consistent hash wins over `simple`, as in Istio.
pub(crate) fn set_balancer(message: &mut cluster::Cluster, policy: EffectivePolicy<'_>) {
    use cluster::cluster::{LbConfig, LbPolicy, LeastRequestLbConfig, RoundRobinLbConfig};
    let slow_start = policy.balancer.and_then(slow_start);
    let hash = policy.balancer.and_then(|balancer| balancer.consistent_hash.as_ref());
    let (algorithm, config) = match (hash, policy.algorithm()) {
        (Some(hash), _) => hash_balancer(hash),
        (None, SimpleLb::RoundRobin) => (
            LbPolicy::RoundRobin,
            slow_start.map(|slow_start| {
                LbConfig::RoundRobinLbConfig(RoundRobinLbConfig { slow_start_config: Some(slow_start) })
            }),
        ),
        (None, SimpleLb::Random) => (LbPolicy::Random, None),
        (None, _) => (
            LbPolicy::LeastRequest,
            slow_start.map(|slow_start| {
                LbConfig::LeastRequestLbConfig(LeastRequestLbConfig {
                    slow_start_config: Some(slow_start),
                    ..Default::default()
                })
            }),
        ),
    };
    message.lb_policy = algorithm as i32;
    message.lb_config = config;
}

fn hash_balancer(
    hash: &ConsistentHashLb,
) -> (cluster::cluster::LbPolicy, Option<cluster::cluster::LbConfig>) {
    use cluster::cluster::{LbConfig, LbPolicy, MaglevLbConfig, RingHashLbConfig};
    let wanted = |size: Option<u64>| size.filter(|size| *size > 0).map(|value| UInt64Value { value });
    let ring = |minimum_ring_size| {
        LbConfig::RingHashLbConfig(RingHashLbConfig { minimum_ring_size, ..Default::default() })
    };
    match (&hash.maglev, &hash.ring_hash) {
        (Some(maglev), _) => {
            let size = wanted(maglev.table_size);
            let config = size.map(|size| LbConfig::MaglevLbConfig(MaglevLbConfig { table_size: Some(size) }));
            (LbPolicy::Maglev, config)
        }
        (None, Some(given)) => {
            (LbPolicy::RingHash, wanted(given.minimum_ring_size).map(|size| ring(Some(size))))
        }
        (None, None) => {
            let size = wanted(hash.minimum_ring_size).unwrap_or(UInt64Value { value: 1024 });
            (LbPolicy::RingHash, Some(ring(Some(size))))
        }
    }
}

/// `warmup`, or the older `warmupDurationSecs`.
fn slow_start(balancer: &LoadBalancerSettings) -> Option<cluster::cluster::SlowStartConfig> {
    let warmup = balancer.warmup.as_ref();
    let window = parse(warmup.and_then(|warmup| warmup.duration.as_ref()))
        .or_else(|| parse(balancer.warmup_duration_secs.as_ref()))?;
    let aggression = warmup.and_then(|warmup| warmup.aggression);
    let percent = warmup.and_then(|warmup| warmup.minimum_percent);
    Some(cluster::cluster::SlowStartConfig {
        slow_start_window: Some(wire::duration(window)),
        aggression: aggression
            .map(|value| core::RuntimeDouble { default_value: value, runtime_key: String::new() }),
        min_weight_percent: percent.map(|value| Percent { value }),
    })
}

/// Envoy's limits default to 1024; the mesh has none unless they are given.
pub(crate) fn circuit_breakers(policy: EffectivePolicy<'_>) -> cluster::CircuitBreakers {
    let limit = |value: i32| match u32::try_from(value) {
        Ok(0) | Err(_) => wire::uint32(u32::MAX),
        Ok(value) => wire::uint32(value),
    };
    let http = policy.http();
    let thresholds = cluster::circuit_breakers::Thresholds {
        max_connections: limit(policy.tcp().map_or(0, |tcp| tcp.max_connections)),
        max_pending_requests: limit(http.map_or(0, |http| http.http1_max_pending_requests)),
        max_requests: limit(http.map_or(0, |http| http.http2_max_requests)),
        max_retries: limit(http.map_or(0, |http| http.max_retries)),
        retry_budget: policy.retry_budget.map(retry_budget),
        track_remaining: true,
        ..Default::default()
    };
    cluster::CircuitBreakers { thresholds: vec![thresholds], ..Default::default() }
}

fn retry_budget(given: &RetryBudget) -> cluster::circuit_breakers::thresholds::RetryBudget {
    let minimum = (given.min_retry_concurrency > 0).then_some(given.min_retry_concurrency);
    cluster::circuit_breakers::thresholds::RetryBudget {
        budget_percent: Some(Percent { value: given.percent.unwrap_or(20.0) }),
        min_retry_concurrency: minimum.and_then(wire::uint32),
        ..Default::default()
    }
}

/// <https://istio.io/latest/docs/reference/config/networking/destination-rule/#OutlierDetection>
pub(crate) fn outlier_detection(given: &OutlierDetection) -> cluster::OutlierDetection {
    let mut out = cluster::OutlierDetection {
        interval: parse(given.interval.as_ref()).map(wire::duration),
        base_ejection_time: parse(given.base_ejection_time.as_ref()).map(wire::duration),
        // Istio ejects for consecutive errors only; Envoy would by statistics as well.
        enforcing_success_rate: wire::uint32(0),
        split_external_local_origin_errors: given.split_external_local_origin_errors,
        ..Default::default()
    };
    let legacy = u32::try_from(given.consecutive_errors).ok().filter(|&count| count > 0);
    if let Some(count) = given.consecutive_5xx_errors {
        out.consecutive_5xx = wire::uint32(count);
        out.enforcing_consecutive_5xx = wire::uint32(if count > 0 { 100 } else { 0 });
    }
    if let Some(count) = given.consecutive_gateway_errors.or(legacy) {
        out.consecutive_gateway_failure = wire::uint32(count);
        out.enforcing_consecutive_gateway_failure = wire::uint32(if count > 0 { 100 } else { 0 });
    }
    if let Some(count) = given.consecutive_local_origin_failures {
        out.consecutive_local_origin_failure = wire::uint32(count);
        out.enforcing_consecutive_local_origin_failure = wire::uint32(if count > 0 { 100 } else { 0 });
        // It has no effect without the split, says Envoy.
        out.split_external_local_origin_errors |= count > 0;
        out.enforcing_local_origin_success_rate = wire::uint32(0);
    }
    if given.max_ejection_percent > 0 {
        out.max_ejection_percent = wire::uint32(given.max_ejection_percent.unsigned_abs());
    }
    out
}

/// Below `minHealthPercent` healthy hosts ejection is disregarded: Envoy's panic threshold, which Istio sets to 0 unless
/// told otherwise.
pub(crate) fn panic_threshold(given: &OutlierDetection) -> cluster::cluster::CommonLbConfig {
    cluster::cluster::CommonLbConfig {
        healthy_panic_threshold: Some(Percent { value: f64::from(given.min_health_percent.max(0)) }),
        ..Default::default()
    }
}

/// TCP keepalive of upstream connections: the mesh's, with what a policy says about it in its place.
pub(crate) fn connection_options(
    mesh: ConnectionDefaults,
    tcp: Option<&TcpSettings>,
) -> Option<cluster::UpstreamConnectionOptions> {
    let own = tcp.and_then(|tcp| tcp.tcp_keepalive.as_ref()).map(Keepalive::new);
    if own.is_none() && mesh.keepalive.is_none() {
        return None;
    }
    let (own, mesh) = (own.unwrap_or_default(), mesh.keepalive.unwrap_or_default());
    Some(cluster::UpstreamConnectionOptions {
        tcp_keepalive: Some(core::TcpKeepalive {
            keepalive_probes: own.probes.or(mesh.probes).and_then(wire::uint32),
            keepalive_time: own.time.or(mesh.time).and_then(wire::uint32),
            keepalive_interval: own.interval.or(mesh.interval).and_then(wire::uint32),
        }),
        ..Default::default()
    })
}

pub(crate) fn parse(text: Option<&String>) -> Option<Duration> {
    text.and_then(|text| duration::parse(text).ok())
}
