//! Which tries are repeated, and when.

use std::time::Duration;

use http::HeaderName;

use crate::listener::Backoff;
use crate::matcher::HeaderMatcher;

/// Conditions of [`RetryPolicy::on`]. Source: Envoy's router filter page, `x-envoy-retry-on` and `x-envoy-retry-grpc-on`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RetryOn {
    /// `5xx` (also resets and time-outs)
    pub server_error: bool,
    /// `gateway-error`: 502, 503, 504
    pub gateway_error: bool,
    /// `reset`
    pub reset: bool,
    /// `reset-before-request`
    pub reset_before_request: bool,
    /// `connect-failure`
    pub connect_failure: bool,
    /// `envoy-ratelimited`
    pub envoy_ratelimited: bool,
    /// `retriable-4xx`: 409
    pub retriable_4xx: bool,
    /// `refused-stream`
    pub refused_stream: bool,
    /// `retriable-status-codes`
    pub retriable_status_codes: bool,
    /// `retriable-headers`
    pub retriable_headers: bool,
    /// `http3-post-connect-failure`: nothing to do without HTTP/3
    pub http3_post_connect_failure: bool,
    /// `cancelled` (gRPC)
    pub grpc_cancelled: bool,
    /// `deadline-exceeded` (gRPC)
    pub grpc_deadline_exceeded: bool,
    /// `internal` (gRPC)
    pub grpc_internal: bool,
    /// `resource-exhausted` (gRPC)
    pub grpc_resource_exhausted: bool,
    /// `unavailable` (gRPC)
    pub grpc_unavailable: bool,
}

impl RetryOn {
    /// Adds a condition by name; false when there is none of that name.
    pub fn add(&mut self, name: &str) -> bool {
        let condition = match name {
            "5xx" => &mut self.server_error,
            "gateway-error" => &mut self.gateway_error,
            "reset" => &mut self.reset,
            "reset-before-request" => &mut self.reset_before_request,
            "connect-failure" => &mut self.connect_failure,
            "envoy-ratelimited" => &mut self.envoy_ratelimited,
            "retriable-4xx" => &mut self.retriable_4xx,
            "refused-stream" => &mut self.refused_stream,
            "retriable-status-codes" => &mut self.retriable_status_codes,
            "retriable-headers" => &mut self.retriable_headers,
            "http3-post-connect-failure" => &mut self.http3_post_connect_failure,
            "cancelled" => &mut self.grpc_cancelled,
            "deadline-exceeded" => &mut self.grpc_deadline_exceeded,
            "internal" => &mut self.grpc_internal,
            "resource-exhausted" => &mut self.grpc_resource_exhausted,
            "unavailable" => &mut self.grpc_unavailable,
            _ => return false,
        };
        *condition = true;
        true
    }
}

/// Envoy's `RetryPolicy`.
#[derive(Clone, Debug)]
pub struct RetryPolicy {
    /// Conditions.
    pub on: RetryOn,
    /// Attempts after the first. Default 1.
    pub num_retries: u32,
    /// For each attempt; `None`: only the route's time-out.
    pub per_try_timeout: Option<Duration>,
    /// For each attempt without a byte from upstream; `None`: no limit.
    pub per_try_idle_timeout: Option<Duration>,
    /// Prefer hosts that were not tried (`envoy.retry_host_predicates.previous_hosts`).
    pub avoid_previous_hosts: bool,
    /// How often to ask the balancer for such a host. Default 1.
    pub host_selection_max_attempts: u32,
    /// Prefer priorities that were not tried (`envoy.retry_priorities.previous_priorities`), after every so many tries.
    pub previous_priorities: Option<std::num::NonZeroU32>,
    /// For [`RetryOn::retriable_status_codes`].
    pub retriable_status_codes: Vec<u16>,
    /// For [`RetryOn::retriable_headers`]: response headers.
    pub retriable_headers: Vec<HeaderMatcher>,
    /// Retries only requests that match one of these; empty: all.
    pub retriable_request_headers: Vec<HeaderMatcher>,
    /// Pause between attempts. Default 25 ms to 250 ms.
    pub backoff: Backoff,
    /// Pause as an answer asks for.
    pub rate_limited: Option<RateLimitedBackoff>,
}

impl RetryPolicy {
    /// Whether attempts have a time-out of their own.
    pub fn limits_tries(&self) -> bool {
        self.per_try_timeout.is_some() || self.per_try_idle_timeout.is_some()
    }

    /// Whether anything is tried again.
    pub fn retries(&self) -> bool {
        self.on != RetryOn::default()
    }
}

impl Default for RetryPolicy {
    /// No conditions, and Envoy's defaults.
    fn default() -> Self {
        Self {
            on: RetryOn::default(),
            num_retries: 1,
            per_try_timeout: None,
            per_try_idle_timeout: None,
            avoid_previous_hosts: false,
            host_selection_max_attempts: 1,
            previous_priorities: None,
            retriable_status_codes: Vec::new(),
            retriable_headers: Vec::new(),
            retriable_request_headers: Vec::new(),
            backoff: Backoff { base: Duration::from_millis(25), max: Duration::from_millis(250) },
            rate_limited: None,
        }
    }
}

/// Envoy's `RateLimitedRetryBackOff`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimitedBackoff {
    /// Response headers in the order in which they are looked at.
    pub headers: Vec<ResetHeader>,
    /// A longer pause is not taken from a header. Default 300 s.
    pub max: Duration,
}

/// A response header that says when to come again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResetHeader {
    /// Its name.
    pub name: HeaderName,
    /// True: a point in time, in seconds since the epoch; false: seconds from now.
    pub timestamp: bool,
}

impl RateLimitedBackoff {
    /// The pause an answer asks for. `now`: time since the epoch.
    pub fn pause(&self, headers: &http::HeaderMap, now: Duration) -> Option<Duration> {
        let read = |header: &ResetHeader| {
            let told: u64 = headers.get(&header.name)?.to_str().ok()?.trim().parse().ok()?;
            let pause = if header.timestamp { told.checked_sub(now.as_secs())? } else { told };
            Some(Duration::from_secs(pause)).filter(|pause| *pause <= self.max)
        };
        self.headers.iter().find_map(read)
    }
}
