//! Load balancing policies, in the cluster's own fields and as extensions.
#![allow(deprecated)]

use std::time::Duration;

use lateen_xds::pb::envoy::config::cluster::v3 as proto;
use lateen_xds::pb::envoy::config::core::v3 as core;
use lateen_xds::pb::envoy::extensions::load_balancing_policies as extension;
use lateen_xds::pb::envoy::r#type::v3::Percent;
use lateen_xds::pb::google::protobuf as google;
use proto::cluster as nested;

use super::matchers::header_name;
use super::values::{Converted, duration, enumeration, number, port, required};
use crate::error::At;
use crate::support::fields;
use crate::{
    ConsistentHashing, Discovery, LbPolicy, LeastRequest, LeastRequestChoice, LocalityMode, MAX_RING_SIZE,
    Maglev, RingHash, RingHashFunction, SlowStart,
};

/// A policy and what came with it.
pub(super) struct Chosen {
    pub(super) policy: LbPolicy,
    /// For ORIGINAL_DST: where the destination comes from.
    pub(super) original_dst: Option<Discovery>,
    pub(super) locality: LocalityMode,
}

/// The policy of a cluster without `load_balancing_policy`.
pub(super) fn lb_policy(
    at: &At<'_>,
    policy: i32,
    config: Option<nested::LbConfig>,
    hashing: ConsistentHashing,
) -> Converted<(LbPolicy, Option<Discovery>)> {
    use nested::LbConfig;
    let policy: nested::LbPolicy = enumeration(at, "lb_policy", policy)?;
    Ok(match (policy, config) {
        (nested::LbPolicy::RoundRobin, None) => (LbPolicy::RoundRobin { slow_start: None }, None),
        (nested::LbPolicy::RoundRobin, Some(LbConfig::RoundRobinLbConfig(config))) => {
            let at = at.field("round_robin_lb_config");
            fields!(&at, config => nested::RoundRobinLbConfig {
                used { slow_start_config }
                inert {}
                rejected {}
            });
            (LbPolicy::RoundRobin { slow_start: old_slow_start(&at, slow_start_config)? }, None)
        }
        (nested::LbPolicy::LeastRequest, None) => (LbPolicy::LeastRequest(LeastRequest::default()), None),
        (nested::LbPolicy::LeastRequest, Some(LbConfig::LeastRequestLbConfig(config))) => {
            let at = at.field("least_request_lb_config");
            fields!(&at, config => nested::LeastRequestLbConfig {
                used { choice_count, active_request_bias, slow_start_config }
                inert {}
                rejected {}
            });
            let slow_start = old_slow_start(&at, slow_start_config)?;
            (least_request(&at, choice_count, active_request_bias, slow_start, false)?, None)
        }
        (nested::LbPolicy::Random, None) => (LbPolicy::Random, None),
        (nested::LbPolicy::RingHash, None) => {
            (LbPolicy::RingHash(RingHash { hashing, ..RingHash::default() }), None)
        }
        (nested::LbPolicy::RingHash, Some(LbConfig::RingHashLbConfig(config))) => {
            let at = at.field("ring_hash_lb_config");
            fields!(&at, config => nested::RingHashLbConfig {
                used { minimum_ring_size, hash_function, maximum_ring_size }
                inert {}
                rejected {}
            });
            use nested::ring_hash_lb_config::HashFunction;
            let function = match enumeration(&at, "hash_function", hash_function)? {
                HashFunction::XxHash => RingHashFunction::XxHash,
                HashFunction::MurmurHash2 => RingHashFunction::Murmur2,
            };
            (ring_hash(&at, function, minimum_ring_size, maximum_ring_size, hashing)?, None)
        }
        (nested::LbPolicy::Maglev, None) => (LbPolicy::Maglev(Maglev { hashing, ..Maglev::default() }), None),
        (nested::LbPolicy::Maglev, Some(LbConfig::MaglevLbConfig(config))) => {
            let at = at.field("maglev_lb_config");
            fields!(&at, config => nested::MaglevLbConfig { used { table_size } inert {} rejected {} });
            (maglev(&at, table_size, hashing)?, None)
        }
        (nested::LbPolicy::ClusterProvided, None) => (LbPolicy::ClusterProvided, None),
        (nested::LbPolicy::ClusterProvided, Some(LbConfig::OriginalDstLbConfig(config))) => {
            (LbPolicy::ClusterProvided, Some(original_dst(&at.field("original_dst_lb_config"), config)?))
        }
        (nested::LbPolicy::LoadBalancingPolicyConfig, _) => {
            return Err(at.error_in("load_balancing_policy", "is required with this lb_policy"));
        }
        (_, Some(_)) => return Err(at.error_in("lb_config", "belongs to another lb_policy")),
    })
}

/// The policy of a cluster with `load_balancing_policy`: the first that is known.
pub(super) fn extension(at: &At<'_>, message: proto::LoadBalancingPolicy) -> Converted<Chosen> {
    let mut unknown = Vec::new();
    for (index, policy) in message.policies.into_iter().enumerate() {
        let at = at.index("policies", index);
        let config = required(&at, "typed_extension_config", policy.typed_extension_config)?;
        let at = at.field("typed_extension_config");
        if let Some(chosen) = known_extension(&at, &required(&at, "typed_config", config.typed_config)?)? {
            return Ok(chosen);
        }
        unknown.push(config.name);
    }
    Err(at.error_in("policies", format!("none of these is supported: {}", unknown.join(", "))))
}

fn known_extension(at: &At<'_>, any: &google::Any) -> Converted<Option<Chosen>> {
    let name = lateen_xds::any::message_name(&any.type_url);
    let Some(kind) = name.strip_prefix("envoy.extensions.load_balancing_policies.") else { return Ok(None) };
    let here = at.field("typed_config");
    let (policy, locality) = match kind {
        "round_robin.v3.RoundRobin" => {
            let config: extension::round_robin::v3::RoundRobin = super::values::typed(at, any)?;
            fields!(&here, config => extension::round_robin::v3::RoundRobin {
                used { slow_start_config, locality_lb_config }
                inert {}
                rejected {}
            });
            let slow_start = slow_start_config.map(|config| slow_start(&here, config)).transpose()?;
            (LbPolicy::RoundRobin { slow_start }, locality_mode(&here, locality_lb_config)?)
        }
        "least_request.v3.LeastRequest" => {
            let config: extension::least_request::v3::LeastRequest = super::values::typed(at, any)?;
            least_request_extension(&here, config)?
        }
        "random.v3.Random" => {
            let config: extension::random::v3::Random = super::values::typed(at, any)?;
            fields!(&here, config => extension::random::v3::Random {
                used { locality_lb_config }
                inert {}
                rejected {}
            });
            (LbPolicy::Random, locality_mode(&here, locality_lb_config)?)
        }
        "ring_hash.v3.RingHash" => ring_hash_extension(&here, super::values::typed(at, any)?)?,
        "maglev.v3.Maglev" => {
            let config: extension::maglev::v3::Maglev = super::values::typed(at, any)?;
            fields!(&here, config => extension::maglev::v3::Maglev {
                used { table_size, consistent_hashing_lb_config, locality_weighted_lb_config }
                inert {}
                rejected {}
            });
            let hashing = hashing_extension(&here, consistent_hashing_lb_config)?;
            (maglev(&here, table_size, hashing)?, weighted(locality_weighted_lb_config.is_some()))
        }
        "cluster_provided.v3.ClusterProvided" => (LbPolicy::ClusterProvided, LocalityMode::Flat),
        _ => return Ok(None),
    };
    Ok(Some(Chosen { policy, original_dst: None, locality }))
}

fn least_request_extension(
    at: &At<'_>,
    config: extension::least_request::v3::LeastRequest,
) -> Converted<(LbPolicy, LocalityMode)> {
    use extension::least_request::v3::least_request::SelectionMethod;
    fields!(at, config => extension::least_request::v3::LeastRequest {
        used {
            choice_count, active_request_bias, slow_start_config, locality_lb_config, enable_full_scan, selection_method,
        }
        inert {}
        rejected {}
    });
    let slow_start = slow_start_config.map(|config| slow_start(at, config)).transpose()?;
    let all = enable_full_scan.is_some_and(|value| value.value)
        || enumeration::<SelectionMethod>(at, "selection_method", selection_method)?
            == SelectionMethod::FullScan;
    let policy = least_request(at, choice_count, active_request_bias, slow_start, all)?;
    Ok((policy, locality_mode(at, locality_lb_config)?))
}

fn ring_hash_extension(
    at: &At<'_>,
    config: extension::ring_hash::v3::RingHash,
) -> Converted<(LbPolicy, LocalityMode)> {
    use extension::ring_hash::v3::ring_hash::HashFunction;
    fields!(at, config => extension::ring_hash::v3::RingHash {
        used {
            hash_function, minimum_ring_size, maximum_ring_size, use_hostname_for_hashing, hash_balance_factor,
            consistent_hashing_lb_config, locality_weighted_lb_config,
        }
        inert {}
        rejected {}
    });
    let function = match enumeration(at, "hash_function", hash_function)? {
        HashFunction::DefaultHash | HashFunction::XxHash => RingHashFunction::XxHash,
        HashFunction::MurmurHash2 => RingHashFunction::Murmur2,
    };
    let hashing = match consistent_hashing_lb_config {
        None => ConsistentHashing {
            use_hostname: use_hostname_for_hashing,
            balance_factor: balance_factor(at, hash_balance_factor)?,
        },
        some => hashing_extension(at, some)?,
    };
    let policy = ring_hash(at, function, minimum_ring_size, maximum_ring_size, hashing)?;
    Ok((policy, weighted(locality_weighted_lb_config.is_some())))
}

fn hashing_extension(
    at: &At<'_>,
    config: Option<extension::common::v3::ConsistentHashingLbConfig>,
) -> Converted<ConsistentHashing> {
    let Some(config) = config else { return Ok(ConsistentHashing::default()) };
    let at = at.field("consistent_hashing_lb_config");
    fields!(&at, config => extension::common::v3::ConsistentHashingLbConfig {
        used { use_hostname_for_hashing, hash_balance_factor }
        inert {}
        rejected { hash_policy = "use the hash_policy of routes" }
    });
    Ok(ConsistentHashing {
        use_hostname: use_hostname_for_hashing,
        balance_factor: balance_factor(&at, hash_balance_factor)?,
    })
}

/// `common_lb_config.consistent_hashing_lb_config`.
pub(super) fn hashing(
    at: &At<'_>,
    config: nested::common_lb_config::ConsistentHashingLbConfig,
) -> Converted<ConsistentHashing> {
    fields!(at, config => nested::common_lb_config::ConsistentHashingLbConfig {
        used { use_hostname_for_hashing, hash_balance_factor }
        inert {}
        rejected {}
    });
    Ok(ConsistentHashing {
        use_hostname: use_hostname_for_hashing,
        balance_factor: balance_factor(at, hash_balance_factor)?,
    })
}

fn balance_factor(at: &At<'_>, value: Option<google::UInt32Value>) -> Converted<Option<u32>> {
    match number(value) {
        Some(factor) if factor < 100 => Err(at.error_in("hash_balance_factor", "must be at least 100")),
        factor => Ok(factor),
    }
}

fn weighted(is: bool) -> LocalityMode {
    if is { LocalityMode::Weighted } else { LocalityMode::Flat }
}

fn locality_mode(
    at: &At<'_>,
    config: Option<extension::common::v3::LocalityLbConfig>,
) -> Converted<LocalityMode> {
    use extension::common::v3::locality_lb_config::LocalityConfigSpecifier;
    match config.and_then(|config| config.locality_config_specifier) {
        None => Ok(LocalityMode::Flat),
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => Ok(LocalityMode::Weighted),
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(_)) => Err(at
            .field("locality_lb_config")
            .error_in("zone_aware_lb_config", "not supported: zone aware routing")),
    }
}

fn least_request(
    at: &At<'_>,
    choice_count: Option<google::UInt32Value>,
    active_request_bias: Option<core::RuntimeDouble>,
    slow_start: Option<SlowStart>,
    all: bool,
) -> Converted<LbPolicy> {
    let bias = active_request_bias.map_or(1.0, |bias| bias.default_value);
    if !(bias.is_finite() && bias >= 0.0) {
        return Err(at.error_in("active_request_bias", "must not be negative"));
    }
    let choice = match number(choice_count) {
        Some(count) if count < 2 => return Err(at.error_in("choice_count", "must be at least 2")),
        _ if all => LeastRequestChoice::All,
        count => LeastRequestChoice::Random(count.unwrap_or(2)),
    };
    Ok(LbPolicy::LeastRequest(LeastRequest { choice, active_request_bias: bias, slow_start }))
}

fn ring_hash(
    at: &At<'_>,
    function: RingHashFunction,
    minimum: Option<google::UInt64Value>,
    maximum: Option<google::UInt64Value>,
    hashing: ConsistentHashing,
) -> Converted<LbPolicy> {
    let minimum = minimum.map_or(1024, |value| value.value);
    let maximum = maximum.map_or(MAX_RING_SIZE, |value| value.value);
    for (field, value) in [("minimum_ring_size", minimum), ("maximum_ring_size", maximum)] {
        if value > MAX_RING_SIZE {
            return Err(at.error_in(field, format!("must be at most {MAX_RING_SIZE}")));
        }
    }
    if minimum > maximum {
        let reason = format!("ring hash: minimum_ring_size ({minimum}) > maximum_ring_size ({maximum})");
        return Err(at.error_in("minimum_ring_size", reason));
    }
    Ok(LbPolicy::RingHash(RingHash {
        function,
        minimum_ring_size: minimum,
        maximum_ring_size: maximum,
        hashing,
    }))
}

/// Envoy's limit on the size of a Maglev table.
const MAX_TABLE_SIZE: u64 = 5_000_011;

fn maglev(at: &At<'_>, size: Option<google::UInt64Value>, hashing: ConsistentHashing) -> Converted<LbPolicy> {
    let table_size = size.map_or(Maglev::default().table_size, |value| value.value);
    if table_size > MAX_TABLE_SIZE {
        return Err(at.error_in("table_size", format!("must be at most {MAX_TABLE_SIZE}")));
    }
    let divisible = (2..).take_while(|n| n * n <= table_size).any(|n| table_size.is_multiple_of(n));
    if table_size < 2 || divisible {
        return Err(at.error_in("table_size", "The table size of maglev must be prime number"));
    }
    Ok(LbPolicy::Maglev(Maglev { table_size, hashing }))
}

fn old_slow_start(at: &At<'_>, config: Option<nested::SlowStartConfig>) -> Converted<Option<SlowStart>> {
    let Some(config) = config else { return Ok(None) };
    fields!(at, config => nested::SlowStartConfig {
        used { slow_start_window, aggression, min_weight_percent }
        inert {}
        rejected {}
    });
    slow_start_values(&at.field("slow_start_config"), slow_start_window, aggression, min_weight_percent)
        .map(Some)
}

fn slow_start(at: &At<'_>, config: extension::common::v3::SlowStartConfig) -> Converted<SlowStart> {
    fields!(at, config => extension::common::v3::SlowStartConfig {
        used { slow_start_window, aggression, min_weight_percent }
        inert {}
        rejected {}
    });
    slow_start_values(&at.field("slow_start_config"), slow_start_window, aggression, min_weight_percent)
}

fn slow_start_values(
    at: &At<'_>,
    window: Option<google::Duration>,
    aggression: Option<core::RuntimeDouble>,
    least: Option<Percent>,
) -> Converted<SlowStart> {
    let aggression = aggression.map_or(1.0, |value| value.default_value);
    if !(aggression.is_finite() && aggression > 0.0) {
        return Err(at.error_in("aggression", "must be greater than 0"));
    }
    let least = least.map_or(10.0, |percent| percent.value);
    if !(0.0..=100.0).contains(&least) {
        return Err(at.error_in("min_weight_percent", "must be between 0 and 100"));
    }
    let window = duration(at, "slow_start_window", window)?.unwrap_or(Duration::ZERO);
    Ok(SlowStart { window, aggression, min_weight: least / 100.0 })
}

fn original_dst(at: &At<'_>, config: nested::OriginalDstLbConfig) -> Converted<Discovery> {
    fields!(at, config => nested::OriginalDstLbConfig {
        used { use_http_header, http_header_name, upstream_port_override }
        inert {}
        rejected { metadata_key = "destinations from dynamic metadata" }
    });
    let name = if http_header_name.is_empty() { "x-envoy-original-dst-host" } else { &http_header_name };
    Ok(Discovery::OriginalDst {
        header: use_http_header.then(|| header_name(at, "http_header_name", name)).transpose()?,
        port_override: number(upstream_port_override)
            .filter(|value| *value != 0)
            .map(|value| port(at, "upstream_port_override", value))
            .transpose()?,
    })
}
