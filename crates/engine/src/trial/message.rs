//! What a try sends besides the client's own.

use std::time::{Duration, Instant};

use http::{HeaderName, HeaderValue};
use lateen_ir::Action;

use super::Trial;
use crate::forward::{
    GRPC_TIMEOUT, X_ENVOY_EXPECTED_RQ_TIMEOUT_MS, grpc_timeout_value, suppresses, tells_grpc,
};
use crate::http_request::X_ENVOY_ATTEMPT_COUNT;
use crate::message::Message;

const X_ENVOY_IS_TIMEOUT_RETRY: HeaderName = HeaderName::from_static("x-envoy-is-timeout-retry");

impl Trial<'_> {
    /// The message for one attempt.
    pub(crate) fn message(&mut self) -> Message {
        // The copy stays: it has room for what it holds only, and hyper reads the answer into the map it has sent.
        let kept = self.context.head.headers.clone();
        let mut headers = std::mem::replace(&mut self.context.head.headers, kept);
        if self.context.virtual_host.as_ref().is_some_and(|host| host.include_request_attempt_count) {
            headers.insert(X_ENVOY_ATTEMPT_COUNT, HeaderValue::from(self.context.attempts));
        }
        if self.context.attempts > 1
            && let Some(left) = self.time_left()
        {
            // 0 would mean that there is no limit.
            let left = u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1);
            if !suppresses(self.context) {
                headers.insert(X_ENVOY_EXPECTED_RQ_TIMEOUT_MS, HeaderValue::from(left));
            }
            if self.tells_grpc() {
                headers.insert(GRPC_TIMEOUT, grpc_timeout_value(Duration::from_millis(left)));
            }
        }
        let tells =
            self.context.virtual_host.as_ref().is_some_and(|host| host.include_is_timeout_retry_header);
        if tells && self.context.attempts > 1 {
            let reason = if self.timed_out { "true" } else { "false" };
            headers.insert(X_ENVOY_IS_TIMEOUT_RETRY, HeaderValue::from_static(reason));
        }
        Message {
            method: self.context.head.method.clone(),
            headers,
            authority: self.context.authority.clone(),
            path: self.context.path.clone(),
            secure: self.context.secure,
        }
    }

    /// How much time a further try has.
    fn time_left(&self) -> Option<Duration> {
        let left = self.deadline?.saturating_duration_since(Instant::now());
        let per_try = self.policy.filter(|_| !self.hedges).and_then(|policy| policy.per_try_timeout);
        Some(per_try.map_or(left, |per_try| per_try.min(left)))
    }

    fn tells_grpc(&self) -> bool {
        match self.context.route.as_ref().map(|route| &route.action) {
            Some(Action::Forward(action)) => tells_grpc(action, &self.context.head),
            _ => false,
        }
    }
}
