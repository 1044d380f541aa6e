//! Retry policies.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use lateen_xds::pb::envoy::config::core::v3 as core;
use lateen_xds::pb::envoy::config::route::v3 as proto;
use lateen_xds::pb::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;
use proto::retry_policy::{
    RateLimitedRetryBackOff, ResetHeader, ResetHeaderFormat, RetryBackOff, RetryHostPredicate, RetryPriority,
    retry_priority,
};

use super::matchers::{header_matchers, header_name};
use super::values::{Converted, backoff, enumeration, number, positive, timeout, typed};
use crate::error::At;
use crate::support::fields;
use crate::{Backoff, RateLimitedBackoff, RetryOn, RetryPolicy};

const BASE: Duration = Duration::from_millis(25);
/// Of retries of calls.
const CALL_BASE: Duration = Duration::from_secs(1);

pub(super) fn retry_policy(at: &At<'_>, message: proto::RetryPolicy) -> Converted<RetryPolicy> {
    fields!(at, message => proto::RetryPolicy {
        used {
            retry_on, num_retries, per_try_timeout, per_try_idle_timeout, retry_host_predicate,
            host_selection_retry_max_attempts, retriable_status_codes, retry_back_off, retriable_headers,
            retriable_request_headers, rate_limited_retry_back_off, retry_priority,
        }
        inert {}
        rejected {
            retry_options_predicates = "options by extension",
            refresh_cluster_on_retry = "another cluster for a retry",
        }
    });
    let mut avoid_previous_hosts = false;
    for (index, predicate) in retry_host_predicate.iter().enumerate() {
        previous_hosts(&at.index("retry_host_predicate", index), predicate)?;
        avoid_previous_hosts = true;
    }
    let attempts = u32::try_from(host_selection_retry_max_attempts)
        .map_err(|_| at.error_in("host_selection_retry_max_attempts", "must not be negative"))?;
    let codes = retriable_status_codes.into_iter().map(|code| {
        let code = u16::try_from(code).ok().filter(|code| (100..600).contains(code));
        code.ok_or_else(|| at.error_in("retriable_status_codes", "must be HTTP status codes"))
    });
    Ok(RetryPolicy {
        on: conditions(at, &retry_on)?,
        num_retries: number(num_retries).unwrap_or(1),
        per_try_timeout: timeout(at, "per_try_timeout", per_try_timeout, None)?,
        per_try_idle_timeout: timeout(at, "per_try_idle_timeout", per_try_idle_timeout, None)?,
        avoid_previous_hosts,
        host_selection_max_attempts: if attempts == 0 { 1 } else { attempts },
        previous_priorities: retry_priority
            .map(|priority| previous_priorities(&at.field("retry_priority"), priority))
            .transpose()?,
        retriable_status_codes: codes.collect::<Converted<_>>()?,
        retriable_headers: header_matchers(at, "retriable_headers", retriable_headers)?,
        retriable_request_headers: header_matchers(
            at,
            "retriable_request_headers",
            retriable_request_headers,
        )?,
        backoff: match retry_back_off {
            None => Backoff { base: BASE, max: BASE * 10 },
            Some(message) => retry_backoff(&at.field("retry_back_off"), message)?,
        },
        rate_limited: rate_limited_retry_back_off
            .map(|message| rate_limited(&at.field("rate_limited_retry_back_off"), message))
            .transpose()?,
    })
}

/// The retries of a filter's own calls, under `retry_policy`: as those of routes, where a try may last as long as the longest pause.
pub(super) fn call_retry_policy(
    at: &At<'_>,
    message: Option<core::RetryPolicy>,
) -> Converted<Option<Arc<RetryPolicy>>> {
    let Some(message) = message else { return Ok(None) };
    let at = at.field("retry_policy");
    fields!(&at, message => core::RetryPolicy {
        used { retry_back_off, num_retries, retry_on, retry_host_predicate, host_selection_retry_max_attempts }
        inert {}
        rejected { retry_priority = "priorities of a call's retries" }
    });
    let backoff = match retry_back_off {
        None => Backoff { base: CALL_BASE, max: CALL_BASE * 10 },
        Some(message) => {
            let at = at.field("retry_back_off");
            fields!(&at, message => core::BackoffStrategy {
                used { base_interval, max_interval }
                inert {}
                rejected {}
            });
            if base_interval.is_none() {
                return Err(at.error_in("base_interval", "is required"));
            }
            backoff(&at, base_interval, max_interval, CALL_BASE)?
        }
    };
    let predicates = retry_host_predicate.into_iter().map(|predicate| {
        use core::retry_policy::retry_host_predicate::ConfigType;
        RetryHostPredicate {
            name: predicate.name,
            config_type: predicate.config_type.map(|ConfigType::TypedConfig(any)| {
                proto::retry_policy::retry_host_predicate::ConfigType::TypedConfig(any)
            }),
        }
    });
    let policy = retry_policy(
        &at,
        proto::RetryPolicy {
            retry_on,
            num_retries,
            retry_host_predicate: predicates.collect(),
            host_selection_retry_max_attempts,
            ..Default::default()
        },
    )?;
    Ok(Some(Arc::new(RetryPolicy { backoff, per_try_timeout: Some(backoff.max), ..policy })))
}

fn rate_limited(at: &At<'_>, message: RateLimitedRetryBackOff) -> Converted<RateLimitedBackoff> {
    fields!(at, message => RateLimitedRetryBackOff {
        used { reset_headers, max_interval }
        inert {}
        rejected {}
    });
    if reset_headers.is_empty() {
        return Err(at.error_in("reset_headers", "must not be empty"));
    }
    let convert = |(index, header): (usize, ResetHeader)| {
        let at = at.index("reset_headers", index);
        let format: ResetHeaderFormat = enumeration(&at, "format", header.format)?;
        Ok(crate::ResetHeader {
            name: header_name(&at, "name", &header.name)?,
            timestamp: format == ResetHeaderFormat::UnixTimestamp,
        })
    };
    Ok(RateLimitedBackoff {
        headers: reset_headers.into_iter().enumerate().map(convert).collect::<Converted<_>>()?,
        max: positive(at, "max_interval", max_interval, Duration::from_secs(300))?,
    })
}

/// Whether a try that takes too long is left to run while another begins.
pub(super) fn hedge_policy(at: &At<'_>, message: proto::HedgePolicy) -> Converted<bool> {
    fields!(at, message => proto::HedgePolicy {
        used { initial_requests, hedge_on_per_try_timeout }
        inert { additional_request_chance = "Envoy does not implement it" }
        rejected {}
    });
    // Envoy checks it and does no more with it.
    if initial_requests.is_some_and(|requests| requests.value == 0) {
        return Err(at.error_in("initial_requests", "must be greater than 0"));
    }
    Ok(hedge_on_per_try_timeout)
}

fn retry_backoff(at: &At<'_>, message: RetryBackOff) -> Converted<Backoff> {
    fields!(at, message => RetryBackOff {
        used { base_interval, max_interval }
        inert {}
        rejected {}
    });
    if base_interval.is_none() {
        return Err(at.error_in("base_interval", "is required"));
    }
    backoff(at, base_interval, max_interval, BASE)
}

/// The one predicate Envoy's users have use for.
fn previous_hosts(at: &At<'_>, predicate: &RetryHostPredicate) -> Converted<()> {
    let proto::retry_policy::RetryHostPredicate { name, config_type } = predicate;
    let type_url = match config_type {
        Some(proto::retry_policy::retry_host_predicate::ConfigType::TypedConfig(any)) => {
            any.type_url.as_str()
        }
        None => "",
    };
    let by_type = type_url.ends_with("envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate");
    if by_type || (type_url.is_empty() && name == "envoy.retry_host_predicates.previous_hosts") {
        return Ok(());
    }
    Err(at.error(format!("{name:?} is not supported; envoy.retry_host_predicates.previous_hosts is")))
}

/// The one plug-in there is for priorities; the result is its `update_frequency`.
fn previous_priorities(at: &At<'_>, priority: RetryPriority) -> Converted<NonZeroU32> {
    let RetryPriority { name, config_type } = priority;
    let Some(retry_priority::ConfigType::TypedConfig(any)) = config_type else {
        return Err(at.error_in("typed_config", "is required"));
    };
    if !any
        .type_url
        .ends_with("envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig")
    {
        let reason = format!("{name:?} is not supported; envoy.retry_priorities.previous_priorities is");
        return Err(at.error(reason));
    }
    let config: PreviousPrioritiesConfig = typed(at, &any)?;
    let at = at.field("typed_config");
    fields!(&at, config => PreviousPrioritiesConfig { used { update_frequency } inert {} rejected {} });
    let frequency = u32::try_from(update_frequency).ok().and_then(NonZeroU32::new);
    frequency.ok_or_else(|| at.error_in("update_frequency", "must be greater than 0"))
}

fn conditions(at: &At<'_>, list: &str) -> Converted<RetryOn> {
    let mut on = RetryOn::default();
    for name in list.split(',').map(str::trim).filter(|name| !name.is_empty()) {
        if !on.add(name) {
            return Err(at.error_in("retry_on", format!("unknown condition {name:?}")));
        }
    }
    Ok(on)
}
