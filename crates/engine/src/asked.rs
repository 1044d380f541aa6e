//! What a request asks of the router in `x-envoy-*` headers. Only internal clients get here with them; others had them removed.
//! <https://www.envoyproxy.io/docs/envoy/v1.40.0/configuration/http/http_filters/router_filter#http-headers-consumed>

use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use lateen_ir::{HeaderKey, HeaderMatcher, HeaderValueMatcher, RetryOn, RetryPolicy};

use crate::context::RequestContext;
use crate::http_request::request_view;
use crate::presence::Present;

/// See the module. Members that are `None` or empty were not asked for.
#[derive(Default)]
pub(crate) struct Asked {
    /// `x-envoy-upstream-rq-timeout-ms`; `Some(None)`: no limit.
    pub(crate) timeout: Option<Option<Duration>>,
    /// `x-envoy-upstream-rq-timeout-alt-response`: time-outs are answered with 204.
    pub(crate) no_content_on_timeout: bool,
    /// `x-envoy-upstream-stream-duration-ms`; `Some(None)`: no limit.
    pub(crate) stream_duration: Option<Option<Duration>>,
    /// `x-envoy-hedge-on-per-try-timeout`
    pub(crate) hedges: Option<bool>,
    /// `x-envoy-upstream-rq-per-try-timeout-ms`; `Some(None)`: no limit.
    per_try_timeout: Option<Option<Duration>>,
    /// `x-envoy-retry-on` and `x-envoy-retry-grpc-on`.
    on: Option<Vec<String>>,
    /// `x-envoy-max-retries`.
    max_retries: Option<u32>,
    /// `x-envoy-retriable-status-codes`.
    codes: Vec<u16>,
    /// `x-envoy-retriable-header-names`.
    headers: Vec<HeaderMatcher>,
}

impl Asked {
    /// Takes the headers out of the request.
    pub(crate) fn take(context: &mut RequestContext) -> Self {
        if !context.present.any(Present::ASKING) {
            return Self::default();
        }
        let headers = &mut context.head.headers;
        let hedges = headers.remove("x-envoy-hedge-on-per-try-timeout");
        let hedges = hedges.and_then(|wish| wish.to_str().ok()?.parse().ok());
        let conditions = [taken(headers, "x-envoy-retry-on"), taken(headers, "x-envoy-retry-grpc-on")];
        let on = conditions
            .iter()
            .any(Option::is_some)
            .then(|| conditions.iter().flatten().flat_map(|list| items(list)).map(str::to_owned).collect());
        let codes = taken(headers, "x-envoy-retriable-status-codes").unwrap_or_default();
        let names = taken(headers, "x-envoy-retriable-header-names").unwrap_or_default();
        Self {
            timeout: millis(headers, "x-envoy-upstream-rq-timeout-ms"),
            stream_duration: millis(headers, "x-envoy-upstream-stream-duration-ms"),
            hedges,
            no_content_on_timeout: headers.remove("x-envoy-upstream-rq-timeout-alt-response").is_some(),
            per_try_timeout: millis(headers, "x-envoy-upstream-rq-per-try-timeout-ms"),
            on,
            max_retries: taken(headers, "x-envoy-max-retries").and_then(|most| most.parse().ok()),
            codes: items(&codes).filter_map(|code| code.parse().ok()).collect(),
            headers: items(&names).filter_map(has_header).collect(),
        }
    }

    /// Whether it asks for retries under some condition.
    pub(crate) fn asks_for_retries(&self) -> bool {
        self.on.is_some()
    }

    /// The policy in force for the request: the route's with what was asked for.
    pub(crate) fn policy(
        self,
        of_route: Option<&Arc<RetryPolicy>>,
        timeout: Option<Duration>,
    ) -> Option<Arc<RetryPolicy>> {
        let mut policy = of_route.cloned();
        if self.on.is_some() || self.per_try_timeout.is_some() {
            let policy = Arc::make_mut(policy.get_or_insert_default());
            for name in self.on.iter().flatten() {
                // As with Envoy, names that mean nothing are passed over.
                policy.on.add(name);
            }
            policy.per_try_timeout = self.per_try_timeout.unwrap_or(policy.per_try_timeout);
        }
        let policy = policy.as_mut()?;
        let asks = self.max_retries.is_some() || !self.codes.is_empty() || !self.headers.is_empty();
        if policy.on != RetryOn::default() && asks {
            let policy = Arc::make_mut(policy);
            policy.num_retries = self.max_retries.unwrap_or(policy.num_retries);
            policy.retriable_status_codes.extend(self.codes);
            policy.retriable_headers.extend(self.headers);
        }
        // A try that may last as long as everything needs no clock of its own.
        if let (Some(per_try), Some(timeout)) = (policy.per_try_timeout, timeout)
            && per_try >= timeout
        {
            Arc::make_mut(policy).per_try_timeout = None;
        }
        Some(policy.clone())
    }
}

/// Retries may be for requests with certain headers alone, as they are sent (`retriable_request_headers`).
pub(crate) fn keep_to_headers(policy: &mut Arc<RetryPolicy>, context: &RequestContext) {
    let wanted = &policy.retriable_request_headers;
    if policy.on != RetryOn::default()
        && !wanted.is_empty()
        && !wanted.iter().any(|matcher| matcher.is_match(&request_view(context)))
    {
        Arc::make_mut(policy).on = RetryOn::default();
    }
}

fn taken(headers: &mut HeaderMap, name: &'static str) -> Option<String> {
    Some(headers.remove(name)?.to_str().unwrap_or_default().to_owned())
}

fn items(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|item| !item.is_empty())
}

/// A number of milliseconds; zero means no limit.
fn millis(headers: &mut HeaderMap, name: &'static str) -> Option<Option<Duration>> {
    let millis: u64 = taken(headers, name)?.trim().parse().ok()?;
    Some(Some(Duration::from_millis(millis)).filter(|limit| !limit.is_zero()))
}

fn has_header(name: &str) -> Option<HeaderMatcher> {
    Some(HeaderMatcher {
        key: HeaderKey::named(name.parse().ok()?),
        invert: false,
        treat_missing_as_empty: false,
        value: HeaderValueMatcher::Present(true),
    })
}
