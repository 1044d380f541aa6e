//! Whether an attempt that went wrong may be repeated, and when. Pure.
//! <https://www.envoyproxy.io/docs/envoy/v1.40.0/configuration/http/http_filters/router_filter#x-envoy-retry-on>

use std::time::{Duration, Instant, SystemTime};

use http::{HeaderMap, Method, StatusCode};
use lateen_ir::{Backoff, RetryOn, RetryPolicy};

use crate::failure::Reset;
use crate::upstream;

/// How an attempt without an answer ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Broken<'a> {
    Reset(&'a Reset),
    PerTryTimeout,
}

/// Whether the policy repeats an attempt that ended without an answer. `sent` is false when nothing of the request reached the endpoint.
pub(crate) fn after_break(on: RetryOn, broken: Broken<'_>, sent: bool) -> bool {
    if matches!(broken, Broken::Reset(Reset::Overflow)) {
        return false; // more load is the last thing a full cluster needs
    }
    if on.reset || on.server_error || on.gateway_error || (on.reset_before_request && !sent) {
        return true;
    }
    match broken {
        Broken::Reset(Reset::ConnectFailure(_) | Reset::ConnectTimeout) => on.connect_failure,
        Broken::Reset(Reset::Refused) => on.refused_stream,
        _ => false,
    }
}

/// Whether the policy repeats an attempt that was answered so.
pub(crate) fn after_answer(policy: &RetryPolicy, status: StatusCode, headers: &HeaderMap) -> bool {
    let on = policy.on;
    let code = status.as_u16();
    if headers.contains_key("x-envoy-ratelimited") {
        return on.envoy_ratelimited;
    }
    if on.server_error && status.is_server_error()
        || on.gateway_error && (502..=504).contains(&code)
        || on.retriable_4xx && status == StatusCode::CONFLICT
        || on.retriable_status_codes && policy.retriable_status_codes.contains(&code)
    {
        return true;
    }
    if on.retriable_headers && policy.retriable_headers.iter().any(|matcher| matcher.is_match_in(headers)) {
        return true;
    }
    let grpc = on.grpc_cancelled
        || on.grpc_deadline_exceeded
        || on.grpc_internal
        || on.grpc_resource_exhausted
        || on.grpc_unavailable;
    // Statuses by number: <https://grpc.github.io/grpc/core/md_doc_statuscodes.html>
    grpc && match headers.get("grpc-status").map(|value| value.as_bytes()) {
        Some(b"1") => on.grpc_cancelled,
        Some(b"4") => on.grpc_deadline_exceeded,
        Some(b"8") => on.grpc_resource_exhausted,
        Some(b"13") => on.grpc_internal,
        Some(b"14") => on.grpc_unavailable,
        _ => false,
    }
}

/// Whether a request may be sent again although the endpoint may have begun to process it (RFC 9110, section 9.2.2).
pub(crate) fn idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    )
}

/// How long the end of a connection may be under way when a request is sent over it: a round trip, even to another continent.
const CLOSING: Duration = Duration::from_millis(250);

/// Whether a connection that was kept ended so soon after a request was sent over it (`reused`, when that was; `None`: it was not
/// kept) that its end was under way already. One that ends later may have ended for the request, and Envoy's 503 says so.
pub(crate) fn was_closing(reused: Option<Instant>, broken: &upstream::Broken) -> bool {
    broken.reset == Reset::Terminated && reused.is_some_and(|sent| !broken.sent || sent.elapsed() < CLOSING)
}

/// Pause before the n-th repetition (from 1): exponential with full jitter, as Envoy's `JitteredExponentialBackOffStrategy`.
pub(crate) fn pause(backoff: Backoff, repetition: u32, random: u64) -> Duration {
    let factor = 1u32.checked_shl(repetition.saturating_sub(1)).unwrap_or(u32::MAX);
    let ceiling = backoff.base.saturating_mul(factor).min(backoff.max);
    let micros = u64::try_from(ceiling.as_micros()).unwrap_or(u64::MAX);
    Duration::from_micros(random.checked_rem(micros).unwrap_or(0))
}

/// The pause an answer itself asks for, where the policy heeds that.
pub(crate) fn told_pause(policy: &RetryPolicy, headers: &HeaderMap) -> Option<Duration> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    policy.rate_limited.as_ref()?.pause(headers, now)
}

/// A pause at least so long and at most half as much longer, so that those who were told the same do not come back together.
pub(crate) fn spread(told: Duration, random: u64) -> Duration {
    let micros = u64::try_from(told.as_micros() / 2).unwrap_or(u64::MAX);
    told + Duration::from_micros(random.checked_rem(micros).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use lateen_ir::{RateLimitedBackoff, ResetHeader};

    use super::*;

    #[test]
    fn a_connection_was_closing_only_if_it_ends_at_once() {
        let broken = |reset, sent| upstream::Broken { reset, sent };
        let now = Some(Instant::now());
        let long_ago = now.and_then(|now| now.checked_sub(CLOSING));
        assert!(was_closing(now, &broken(Reset::Terminated, true)));
        assert!(!was_closing(long_ago, &broken(Reset::Terminated, true)));
        assert!(was_closing(long_ago, &broken(Reset::Terminated, false)), "nothing of it was sent");
        assert!(!was_closing(None, &broken(Reset::Terminated, true)), "a connection of its own");
        assert!(!was_closing(now, &broken(Reset::Remote, true)), "the endpoint said so");
    }

    fn istio_default() -> RetryPolicy {
        RetryPolicy {
            on: RetryOn {
                connect_failure: true,
                refused_stream: true,
                grpc_unavailable: true,
                grpc_cancelled: true,
                retriable_status_codes: true,
                ..RetryOn::default()
            },
            num_retries: 2,
            per_try_timeout: None,
            per_try_idle_timeout: None,
            avoid_previous_hosts: true,
            host_selection_max_attempts: 5,
            previous_priorities: None,
            retriable_status_codes: vec![503],
            retriable_headers: vec![],
            retriable_request_headers: vec![],
            backoff: Backoff { base: Duration::from_millis(25), max: Duration::from_millis(250) },
            rate_limited: None,
        }
    }

    #[test]
    fn istios_default_policy_repeats_what_never_reached_the_service() {
        let policy = istio_default();
        let refused = Reset::ConnectFailure("x".into());
        assert!(after_break(policy.on, Broken::Reset(&refused), false));
        assert!(after_break(policy.on, Broken::Reset(&Reset::ConnectTimeout), false));
        assert!(after_break(policy.on, Broken::Reset(&Reset::Refused), true));
        assert!(!after_break(policy.on, Broken::Reset(&Reset::Terminated), true));
        assert!(!after_break(policy.on, Broken::Reset(&Reset::Overflow), false));
        assert!(!after_break(policy.on, Broken::PerTryTimeout, true));
    }

    #[test]
    fn answers_are_judged_by_status_and_grpc_status() {
        let policy = istio_default();
        let mut headers = HeaderMap::new();
        assert!(after_answer(&policy, StatusCode::SERVICE_UNAVAILABLE, &headers));
        assert!(!after_answer(&policy, StatusCode::BAD_GATEWAY, &headers));
        assert!(!after_answer(&policy, StatusCode::OK, &headers));
        headers.insert("grpc-status", "14".parse().unwrap());
        assert!(after_answer(&policy, StatusCode::OK, &headers));
        headers.insert("grpc-status", "13".parse().unwrap());
        assert!(!after_answer(&policy, StatusCode::OK, &headers));
        headers.insert("x-envoy-ratelimited", "true".parse().unwrap());
        assert!(!after_answer(&policy, StatusCode::SERVICE_UNAVAILABLE, &headers));
    }

    #[test]
    fn five_xx_includes_resets_and_time_outs() {
        let on = RetryOn { server_error: true, ..RetryOn::default() };
        assert!(after_break(on, Broken::Reset(&Reset::Terminated), true));
        assert!(after_break(on, Broken::PerTryTimeout, true));
        assert!(!after_break(on, Broken::Reset(&Reset::Overflow), false));
    }

    #[test]
    fn pauses_grow_and_stay_below_the_limit() {
        let backoff = Backoff { base: Duration::from_millis(25), max: Duration::from_millis(250) };
        assert!(pause(backoff, 1, u64::MAX) < Duration::from_millis(25));
        assert!(pause(backoff, 2, 49_999) == Duration::from_micros(49_999));
        assert!(pause(backoff, 40, u64::MAX) < Duration::from_millis(250));
        assert_eq!(pause(Backoff { base: Duration::ZERO, max: Duration::ZERO }, 1, 7), Duration::ZERO);
    }

    #[test]
    fn answers_may_say_when_to_come_again() {
        let header = |name: &'static str, timestamp| ResetHeader { name: name.parse().unwrap(), timestamp };
        let limited = RateLimitedBackoff {
            headers: vec![header("retry-after", false), header("x-reset", true)],
            max: Duration::from_secs(300),
        };
        let now = Duration::from_secs(1_000);
        let pause = |pairs: &[(&'static str, &'static str)]| {
            let headers: HeaderMap =
                pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
            limited.pause(&headers, now).map(|pause| pause.as_secs())
        };
        assert_eq!(pause(&[("retry-after", "120"), ("x-reset", "1001")]), Some(120));
        assert_eq!(pause(&[("retry-after", "301"), ("x-reset", "1002")]), Some(2));
        assert_eq!(pause(&[("retry-after", "tomorrow")]), None);
        assert_eq!(pause(&[("x-reset", "999")]), None);
        let second = Duration::from_secs(1);
        assert!(spread(second, u64::MAX) < second * 3 / 2 && spread(second, 0) == second);
        assert_eq!(spread(Duration::ZERO, 7), Duration::ZERO);
    }
}
