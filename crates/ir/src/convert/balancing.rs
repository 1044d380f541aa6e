//! Load balancing, circuit breakers and outlier detection of clusters.
#![allow(deprecated)]

use std::time::Duration;

use lateen_xds::pb::envoy::config::cluster::v3 as proto;
use lateen_xds::pb::envoy::config::core::v3::RoutingPriority;
use proto::circuit_breakers::Thresholds;
use proto::circuit_breakers::thresholds::RetryBudget as RetryBudgetMessage;
use proto::cluster as nested;

use super::lb_policy::hashing;
use super::values::{Converted, bool_or, duration, enumeration, number, positive};
use crate::error::At;
use crate::support::fields;
use crate::{CircuitBreakers, ConsistentHashing, LocalityMode, OutlierDetection, RetryBudget};

/// What all policies share.
pub(super) struct CommonLb {
    /// Panic threshold in percent.
    pub(super) healthy_panic_threshold: f64,
    /// How localities share; `None`: nothing is said.
    pub(super) locality: Option<LocalityMode>,
    pub(super) hashing: Option<ConsistentHashing>,
    /// `ignore_new_hosts_until_first_hc`, which means nothing without health checks.
    pub(super) ignores_new_hosts: bool,
}

pub(super) fn common_lb(at: &At<'_>, config: Option<nested::CommonLbConfig>) -> Converted<CommonLb> {
    use nested::common_lb_config::LocalityConfigSpecifier;
    let config = config.unwrap_or_default();
    fields!(at, config => nested::CommonLbConfig {
        used {
            healthy_panic_threshold, locality_config_specifier, consistent_hashing_lb_config,
            ignore_new_hosts_until_first_hc,
        }
        inert {
            update_merge_window = "updates are applied at once",
        }
        rejected {
            close_connections_on_host_set_change = "closing connections when endpoints change",
            override_host_status = "endpoints chosen by filters",
        }
        variants { zone_aware_lb_config = "zone aware routing" }
    });
    let threshold = healthy_panic_threshold.map_or(50.0, |percent| percent.value);
    if !(0.0..=100.0).contains(&threshold) {
        return Err(at.error_in("healthy_panic_threshold", "must be between 0 and 100"));
    }
    let locality = match locality_config_specifier {
        None => None,
        Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)) => Some(LocalityMode::Weighted),
        Some(LocalityConfigSpecifier::ZoneAwareLbConfig(_)) => {
            return Err(at.error_in("zone_aware_lb_config", "not supported: zone aware routing"));
        }
    };
    let hashing = consistent_hashing_lb_config
        .map(|config| hashing(&at.field("consistent_hashing_lb_config"), config))
        .transpose()?;
    Ok(CommonLb {
        healthy_panic_threshold: threshold,
        locality,
        hashing,
        ignores_new_hosts: ignore_new_hosts_until_first_hc,
    })
}

/// Limits for default and high priority, and the most connections to one host.
pub(super) fn circuit_breakers(
    at: &At<'_>,
    breakers: proto::CircuitBreakers,
) -> Converted<(CircuitBreakers, CircuitBreakers, Option<u32>)> {
    let proto::CircuitBreakers { thresholds, per_host_thresholds } = breakers;
    let (mut normal, mut high) = (CircuitBreakers::default(), CircuitBreakers::default());
    for (index, message) in thresholds.into_iter().enumerate() {
        let at = at.index("thresholds", index);
        let (priority, limits) = self::thresholds(&at, message)?;
        match priority {
            RoutingPriority::Default => normal = limits,
            RoutingPriority::High => high = limits,
        }
    }
    let mut per_host = None;
    for (index, message) in per_host_thresholds.into_iter().enumerate() {
        let at = at.index("per_host_thresholds", index);
        let only = Thresholds {
            max_connections: message.max_connections,
            priority: message.priority,
            ..Default::default()
        };
        if message != only {
            return Err(at.error("only max_connections is possible for one host"));
        }
        if message.priority == RoutingPriority::Default as i32 {
            per_host = number(message.max_connections);
        }
    }
    Ok((normal, high, per_host))
}

fn thresholds(at: &At<'_>, message: Thresholds) -> Converted<(RoutingPriority, CircuitBreakers)> {
    fields!(at, message => Thresholds {
        used {
            priority, max_connections, max_pending_requests, max_requests, max_retries, retry_budget,
            track_remaining,
        }
        inert {}
        rejected { max_connection_pools = "a limit on connection pools" }
    });
    let default = CircuitBreakers::default();
    let limits = CircuitBreakers {
        max_connections: number(max_connections).unwrap_or(default.max_connections),
        max_pending_requests: number(max_pending_requests).unwrap_or(default.max_pending_requests),
        max_requests: number(max_requests).unwrap_or(default.max_requests),
        max_retries: number(max_retries).unwrap_or(default.max_retries),
        retry_budget: retry_budget
            .map(|budget| self::retry_budget(&at.field("retry_budget"), budget))
            .transpose()?,
        track_remaining,
    };
    Ok((enumeration(at, "priority", priority)?, limits))
}

fn retry_budget(at: &At<'_>, message: RetryBudgetMessage) -> Converted<RetryBudget> {
    fields!(at, message => RetryBudgetMessage {
        used { budget_percent, min_retry_concurrency }
        inert {}
        rejected { budget_interval = "a budget over time" }
    });
    let percent = budget_percent.map_or(20.0, |percent| percent.value);
    if !(0.0..=100.0).contains(&percent) {
        return Err(at.error_in("budget_percent", "must be between 0 and 100"));
    }
    Ok(RetryBudget { percent, min_concurrency: number(min_retry_concurrency).unwrap_or(3) })
}

pub(super) fn outlier_detection(
    at: &At<'_>,
    message: proto::OutlierDetection,
) -> Converted<OutlierDetection> {
    fields!(at, message => proto::OutlierDetection {
        used {
            consecutive_5xx, interval, base_ejection_time, max_ejection_percent, enforcing_consecutive_5xx,
            enforcing_success_rate, success_rate_minimum_hosts, success_rate_request_volume, success_rate_stdev_factor,
            consecutive_gateway_failure, enforcing_consecutive_gateway_failure,
            split_external_local_origin_errors, consecutive_local_origin_failure,
            enforcing_consecutive_local_origin_failure, enforcing_local_origin_success_rate,
            failure_percentage_threshold, enforcing_failure_percentage, enforcing_failure_percentage_local_origin,
            failure_percentage_minimum_hosts, failure_percentage_request_volume, max_ejection_time,
            max_ejection_time_jitter, always_eject_one_host, successful_active_health_check_uneject_host,
        }
        inert {}
        rejected {
            monitors = "monitors by extension",
            detect_degraded_hosts = "detection of degraded hosts",
        }
    });
    let percent = |field: &str, value, default| match number(value) {
        Some(percent) if percent > 100 => Err(at.error_in(field, "must be at most 100")),
        percent => Ok(percent.unwrap_or(default)),
    };
    // In the order of `Ejection::ALL`.
    let enforcing = [
        percent("enforcing_consecutive_5xx", enforcing_consecutive_5xx, 100)?,
        percent("enforcing_consecutive_gateway_failure", enforcing_consecutive_gateway_failure, 0)?,
        percent(
            "enforcing_consecutive_local_origin_failure",
            enforcing_consecutive_local_origin_failure,
            100,
        )?,
        percent("enforcing_success_rate", enforcing_success_rate, 100)?,
        percent("enforcing_local_origin_success_rate", enforcing_local_origin_success_rate, 100)?,
        percent("enforcing_failure_percentage", enforcing_failure_percentage, 0)?,
        percent("enforcing_failure_percentage_local_origin", enforcing_failure_percentage_local_origin, 0)?,
    ];
    let base = positive(at, "base_ejection_time", base_ejection_time, Duration::from_secs(30))?;
    let max = positive(at, "max_ejection_time", max_ejection_time, base.max(Duration::from_secs(300)))?;
    if max < base {
        return Err(at.error_in("max_ejection_time", "must not be less than base_ejection_time"));
    }
    Ok(OutlierDetection {
        consecutive_5xx: number(consecutive_5xx).unwrap_or(5),
        consecutive_gateway_failure: number(consecutive_gateway_failure).unwrap_or(5),
        split_external_local_origin_errors,
        consecutive_local_origin_failure: number(consecutive_local_origin_failure).unwrap_or(5),
        enforcing,
        success_rate_minimum_hosts: number(success_rate_minimum_hosts).unwrap_or(5),
        success_rate_request_volume: number(success_rate_request_volume).unwrap_or(100),
        success_rate_stdev_factor: number(success_rate_stdev_factor).unwrap_or(1900),
        failure_percentage_threshold: percent(
            "failure_percentage_threshold",
            failure_percentage_threshold,
            85,
        )?,
        failure_percentage_minimum_hosts: number(failure_percentage_minimum_hosts).unwrap_or(5),
        failure_percentage_request_volume: number(failure_percentage_request_volume).unwrap_or(50),
        interval: positive(at, "interval", interval, Duration::from_secs(10))?,
        base_ejection_time: base,
        max_ejection_time: max,
        max_ejection_time_jitter: duration(at, "max_ejection_time_jitter", max_ejection_time_jitter)?
            .unwrap_or_default(),
        max_ejection_percent: percent("max_ejection_percent", max_ejection_percent, 10)?,
        always_eject_one_host: bool_or(always_eject_one_host, false),
        health_check_ends_ejection: bool_or(successful_active_health_check_uneject_host, true),
    })
}
