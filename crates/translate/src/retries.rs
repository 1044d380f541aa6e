//! Retries.
//! <https://istio.io/latest/docs/reference/config/networking/virtual-service/#HTTPRetry>
use std::time::Duration;

use lateen_api::duration;
use lateen_api::networking::virtual_service::HttpRetry;
use lateen_xds::pb::envoy::config::route::v3 as route;
use lateen_xds::pb::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use lateen_xds::pb::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;

use crate::wire;

/// Istio's conditions when none are given, as of 1.24: only what is safe for requests that must not be sent twice.
const DEFAULT_CONDITIONS: &str =
    "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes";

/// `retryRemoteLocalities`: after so many tries the priorities they went to are left out. Istio's number.
const PRIORITY_UPDATES: i32 = 2;

/// A retry policy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Retries {
    attempts: u32,
    conditions: String,
    status_codes: Vec<u32>,
    per_try_timeout: Option<Duration>,
    backoff: Option<Duration>,
    other_hosts: bool,
    other_priorities: bool,
}

impl Default for Retries {
    /// Istio's policy for routes that say nothing: two retries on hosts not tried yet.
    fn default() -> Self {
        Self {
            attempts: 2,
            conditions: DEFAULT_CONDITIONS.to_owned(),
            status_codes: Vec::new(),
            per_try_timeout: None,
            backoff: None,
            other_hosts: true,
            other_priorities: false,
        }
    }
}

impl Retries {
    /// The policy a rule asks for: Istio's default with the given fields in place of its own.
    pub(crate) fn new(given: &HttpRetry) -> Self {
        let mut retries = Self {
            attempts: u32::try_from(given.attempts).unwrap_or_default(),
            per_try_timeout: parse(given.per_try_timeout.as_ref()),
            backoff: parse(given.backoff.as_ref()),
            other_hosts: given.retry_ignore_previous_hosts.unwrap_or(true),
            other_priorities: given.retry_remote_localities.unwrap_or(false),
            ..Self::default()
        };
        if !given.retry_on.is_empty() {
            let parts = given.retry_on.split(',').map(str::trim).filter(|part| !part.is_empty());
            let (codes, mut names): (Vec<&str>, Vec<&str>) =
                parts.partition(|part| part.parse::<u32>().is_ok());
            retries.status_codes = codes.iter().filter_map(|code| code.parse().ok()).collect();
            if !codes.is_empty() && !names.contains(&"retriable-status-codes") {
                names.push("retriable-status-codes");
            }
            retries.conditions = names.join(",");
        }
        retries
    }

    /// Envoy's form; none when retries are off.
    pub(crate) fn to_envoy(&self) -> Option<route::RetryPolicy> {
        use route::retry_policy::{RetryBackOff, RetryHostPredicate, RetryPriority};
        use route::retry_policy::{retry_host_predicate::ConfigType, retry_priority};
        if self.attempts == 0 {
            return None;
        }
        let previous_hosts = RetryHostPredicate {
            name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
            config_type: Some(ConfigType::TypedConfig(wire::any(&PreviousHostsPredicate::default()))),
        };
        let previous_priorities = RetryPriority {
            name: "envoy.retry_priorities.previous_priorities".to_owned(),
            config_type: Some(retry_priority::ConfigType::TypedConfig(wire::any(
                &PreviousPrioritiesConfig { update_frequency: PRIORITY_UPDATES },
            ))),
        };
        Some(route::RetryPolicy {
            retry_on: self.conditions.clone(),
            num_retries: wire::uint32(self.attempts),
            per_try_timeout: self.per_try_timeout.map(wire::duration),
            retry_host_predicate: if self.other_hosts { vec![previous_hosts] } else { Vec::new() },
            retry_priority: self.other_priorities.then_some(previous_priorities),
            host_selection_retry_max_attempts: 5,
            retriable_status_codes: self.status_codes.clone(),
            retry_back_off: self
                .backoff
                .map(|base| RetryBackOff { base_interval: Some(wire::duration(base)), max_interval: None }),
            ..Default::default()
        })
    }
}

fn parse(text: Option<&String>) -> Option<Duration> {
    text.and_then(|text| duration::parse(text).ok()).filter(|duration| !duration.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn given_fields_replace_the_defaults() {
        let given = HttpRetry {
            attempts: 3,
            retry_on: "5xx, 418,503".to_owned(),
            per_try_timeout: Some("2s".to_owned()),
            retry_ignore_previous_hosts: Some(false),
            retry_remote_localities: Some(true),
            ..HttpRetry::default()
        };
        let policy = Retries::new(&given).to_envoy().expect("retries are on");
        assert_eq!(policy.retry_on, "5xx,retriable-status-codes");
        assert_eq!(policy.retriable_status_codes, [418, 503]);
        assert_eq!(policy.num_retries.map(|count| count.value), Some(3));
        assert!(policy.retry_host_predicate.is_empty());
        let priority = policy.retry_priority.expect("other localities are preferred");
        assert_eq!(priority.name, "envoy.retry_priorities.previous_priorities");
        assert_eq!(Retries::default().to_envoy().expect("on").retry_priority, None);
        assert!(Retries::new(&HttpRetry::default()).to_envoy().is_none(), "0 attempts turn retries off");
    }
}
