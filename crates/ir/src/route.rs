//! Route configurations.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};

use crate::common::{ClusterRef, Fraction};
use crate::cors::CorsPolicy;
use crate::format::TextFormat;
use crate::hcm::BodyFormat;
use crate::headers::HeaderMutations;
use crate::http_filter::FilterOverrides;
use crate::listener::Backoff;
use crate::matcher::{FullRegex, HeaderMatcher, QueryParameterMatcher};
use crate::metadata::MetadataMatcher;
use crate::route_table::RouteTable;

/// Envoy's `route.v3.RouteConfiguration`.
#[derive(Clone, Debug)]
pub struct RouteConfiguration {
    /// Name; xDS identity.
    pub name: Arc<str>,
    /// Virtual hosts and their indexes.
    pub table: RouteTable,
    /// Removed from requests that are not internal.
    pub internal_only_headers: Vec<HeaderName>,
    /// For every request.
    pub request_headers: HeaderMutations,
    /// For every response.
    pub response_headers: HeaderMutations,
    /// True: outer levels mutate first, so the most specific level wins. Default false: Envoy applies weighted cluster, route, virtual host,
    /// then table, so the table wins.
    pub most_specific_header_mutations_wins: bool,
    /// Longest direct response body in bytes. Default 4096.
    pub max_direct_response_body_size_bytes: u32,
    /// Names of the HTTP filters that some level says something about, by [`FilterOverride::filter`](crate::FilterOverride::filter).
    pub filters: Vec<Arc<str>>,
    /// What this level says about HTTP filters.
    pub overrides: FilterOverrides,
    /// Names under which routes count for themselves, by [`Route::stat`], and some of earlier versions: the virtual host's, a line feed,
    /// the route's `stat_prefix`.
    pub stats: Arc<[Arc<str>]>,
    /// What it was made from, for the next version.
    pub(crate) origin: Option<Origin>,
}

/// What a configuration was made from: digests of the encoded message.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    /// Of everything but the virtual hosts.
    pub(crate) rest: u128,
    /// Of each virtual host.
    pub(crate) hosts: Box<[u128]>,
}

/// Envoy's `VirtualHost`.
#[derive(Clone, Debug)]
pub struct VirtualHost {
    /// Name.
    pub name: Arc<str>,
    /// Domains as configured.
    pub domains: Box<[Box<str>]>,
    /// In order; the first that matches is used.
    pub routes: Box<[Arc<Route>]>,
    /// Plaintext requests are redirected.
    pub require_tls: RequireTls,
    /// For requests.
    pub request_headers: HeaderMutations,
    /// For responses.
    pub response_headers: HeaderMutations,
    /// Sends `x-envoy-attempt-count` upstream.
    pub include_request_attempt_count: bool,
    /// Sends `x-envoy-attempt-count` downstream.
    pub include_attempt_count_in_response: bool,
    /// For routes without their own.
    pub retry_policy: Option<Arc<RetryPolicy>>,
    /// Tells repeated requests whether a time-out was the reason (`x-envoy-is-timeout-retry`).
    pub include_is_timeout_retry_header: bool,
    /// What this level says about HTTP filters.
    pub overrides: FilterOverrides,
    /// The deprecated `cors`, for the CORS filter where no level has its configuration.
    pub cors: Option<Arc<CorsPolicy>>,
}

/// `require_tls`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RequireTls {
    /// Plaintext is fine.
    #[default]
    None,
    /// External plaintext requests are redirected.
    ExternalOnly,
    /// All plaintext requests are redirected.
    All,
}

/// Envoy's `Route`.
#[derive(Clone, Debug)]
pub struct Route {
    /// Name; may be empty.
    pub name: Arc<str>,
    /// Which requests.
    pub matching: RouteMatcher,
    /// What happens to them.
    pub action: Action,
    /// For requests.
    pub request_headers: HeaderMutations,
    /// For responses.
    pub response_headers: HeaderMutations,
    /// What this level says about HTTP filters.
    pub overrides: FilterOverrides,
    /// `stat_prefix`: which of [`RouteConfiguration::stats`] its numbers have. Default `None`: it has none.
    pub stat: Option<u32>,
}

/// Envoy's `RouteMatch`. All members must match.
#[derive(Clone, Debug)]
pub struct RouteMatcher {
    /// The path without the query.
    pub path: PathMatcher,
    /// Headers.
    pub headers: Box<[HeaderMatcher]>,
    /// Query parameters.
    pub query_parameters: Box<[QueryParameterMatcher]>,
    /// Only this share of the requests.
    pub runtime_fraction: Option<Fraction>,
    /// Only gRPC requests (`content-type: application/grpc…`).
    pub grpc: bool,
    /// What filters noted.
    pub metadata: Box<[MetadataMatcher]>,
}

/// How the path must look.
#[derive(Clone, Debug)]
pub enum PathMatcher {
    /// Begins so.
    Prefix {
        /// The prefix; in lower case when case is ignored.
        value: Box<str>,
        /// Case matters.
        case_sensitive: bool,
    },
    /// Is exactly so.
    Exact {
        /// The path; in lower case when case is ignored.
        value: Box<str>,
        /// Case matters.
        case_sensitive: bool,
    },
    /// Begins so, and ends there or goes on with `/`.
    SeparatedPrefix {
        /// The prefix; in lower case when case is ignored.
        value: Box<str>,
        /// Case matters.
        case_sensitive: bool,
    },
    /// Matches in whole.
    Regex(FullRegex),
    /// There is none: the request is CONNECT.
    Connect,
}

/// What happens to a matching request.
#[derive(Clone, Debug)]
pub enum Action {
    /// Goes to a cluster.
    Forward(Box<Forward>),
    /// Is redirected.
    Redirect(Box<Redirect>),
    /// Is answered.
    DirectResponse(Box<DirectResponse>),
    /// For filters only; the router answers 404.
    NonForwarding,
}

/// Envoy's `RouteAction`.
#[derive(Clone, Debug)]
pub struct Forward {
    /// Where to.
    pub cluster: ClusterSpecifier,
    /// What is asked of endpoints, where the cluster has subsets.
    pub metadata_match: Option<Arc<crate::MetadataCriteria>>,
    /// Status when the cluster does not exist. Default 503.
    pub cluster_not_found_status: StatusCode,
    /// What is hashed for clusters with consistent hashing.
    pub hash_policy: Box<[crate::HashPolicy]>,
    /// Changes to the path.
    pub path_rewrite: PathRewrite,
    /// Changes to the authority.
    pub host_rewrite: HostRewrite,
    /// Keeps the old authority in `x-forwarded-host`.
    pub append_x_forwarded_host: bool,
    /// Until the whole response. Default 15 s; `None`: no limit.
    pub timeout: Option<Duration>,
    /// What gRPC requests have instead of `timeout`; `None`: nothing else.
    pub grpc_timeout: Option<Box<GrpcTimeout>>,
    /// Overrides the connection manager's stream idle time-out; `Some(None)`: disabled.
    pub idle_timeout: Option<Option<Duration>>,
    /// Retries; `None`: the virtual host's.
    pub retry_policy: Option<Arc<RetryPolicy>>,
    /// High priority uses the second set of circuit breakers.
    pub high_priority: bool,
    /// A try that takes longer than `per_try_timeout` is left to run while another begins. Default false; the virtual host's where
    /// the route has no `hedge_policy`.
    pub hedge_on_per_try_timeout: bool,
    /// Overrides the connection manager's upgrades.
    pub upgrades: Box<[crate::hcm::UpgradeConfig]>,
    /// Limits on streams.
    pub max_stream_duration: Option<Box<MaxStreamDuration>>,
    /// The deprecated `cors`, for the CORS filter where no level has its configuration.
    pub cors: Option<Arc<CorsPolicy>>,
    /// Redirects that are followed here; `None`: all are for the client.
    pub internal_redirect: Option<Box<InternalRedirectPolicy>>,
    /// Copies: the route's own, or else the virtual host's, or else the configuration's.
    pub mirrors: Arc<[MirrorPolicy]>,
}

/// Envoy's `InternalRedirectPolicy`.
#[derive(Clone, Debug)]
pub struct InternalRedirectPolicy {
    /// Most redirects of a request. Default 1.
    pub max: u32,
    /// Statuses that are followed. Default 302.
    pub codes: Vec<StatusCode>,
    /// All must agree.
    pub predicates: Vec<RedirectPredicate>,
    /// Follows from http to https and back.
    pub cross_scheme: bool,
    /// Response headers that the request takes along; those the response has not are removed from the request.
    pub copy: Vec<HeaderName>,
}

/// A condition on the route a redirect leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedirectPredicate {
    /// Not from the same route to the same route again.
    PreviousRoutes,
    /// One of these.
    AllowListedRoutes(Vec<Box<str>>),
    /// Not from http to https.
    SafeCrossScheme,
}

/// Envoy's `RequestMirrorPolicy`: copies requests to another cluster, whose answers nobody waits for.
#[derive(Clone, Debug)]
pub struct MirrorPolicy {
    /// Where to.
    pub target: MirrorTarget,
    /// Share of the requests; `None`: all.
    pub fraction: Option<Fraction>,
    /// Appends `-shadow` to the host. Default true.
    pub suffix: bool,
    /// Another host, without a suffix.
    pub host: Option<HeaderValue>,
}

/// Where copies go.
#[derive(Clone, Debug)]
pub enum MirrorTarget {
    /// By name.
    Cluster(ClusterRef),
    /// To the one this request header names; without the header nowhere.
    Header(HeaderName),
}

/// How much of a gRPC client's own time-out (`grpc-timeout`) counts: Envoy's `max_grpc_timeout` and `grpc_timeout_offset`, deprecated but
/// what istiod sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GrpcTimeout {
    /// At most this, also for clients without one; `None`: no limit.
    pub most: Option<Duration>,
    /// Subtracted from what the client says, where something is left then. Default zero.
    pub offset: Duration,
}

impl GrpcTimeout {
    /// How long a request of this client may take; `None`: without limit, which a client's zero means, too.
    pub fn of(self, told: Option<Duration>) -> Option<Duration> {
        let told = told.filter(|told| !told.is_zero());
        let told = told.map(|told| if self.offset < told { told - self.offset } else { told });
        told.into_iter().chain(self.most).min()
    }
}

/// `RouteAction.MaxStreamDuration`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxStreamDuration {
    /// Overrides the connection manager's; `Some(None)`: no limit.
    pub max_stream_duration: Option<Option<Duration>>,
    /// Take `grpc-timeout`, at most this; `Some(None)`: without an upper limit.
    pub grpc_timeout_header_max: Option<Option<Duration>>,
    /// Subtracted from `grpc-timeout`.
    pub grpc_timeout_header_offset: Option<Duration>,
}

/// Which cluster.
#[derive(Clone, Debug)]
pub enum ClusterSpecifier {
    /// This one.
    Cluster(ClusterRef),
    /// The one named in this request header; without the header 503 (or the configured status).
    Header(HeaderName),
    /// One of several.
    Weighted(Box<WeightedClusters>),
}

/// Envoy's `WeightedCluster`.
#[derive(Clone, Debug)]
pub struct WeightedClusters {
    /// The clusters.
    pub clusters: Box<[WeightedCluster]>,
    /// Sum of the weights, at least 1.
    pub total_weight: u64,
    /// Takes the random number from this header (a decimal integer), for consistent choices across hops.
    pub random_header: Option<HeaderName>,
}

/// One of the weighted clusters.
#[derive(Clone, Debug)]
pub struct WeightedCluster {
    /// Which.
    pub cluster: WeightedTarget,
    /// Its share.
    pub weight: u32,
    /// What is asked of endpoints, with what the route asks; `None`: only that.
    pub metadata_match: Option<Arc<crate::MetadataCriteria>>,
    /// For requests.
    pub request_headers: HeaderMutations,
    /// For responses.
    pub response_headers: HeaderMutations,
    /// Overrides the route's.
    pub host_rewrite: Option<HeaderValue>,
    /// What this level says about HTTP filters.
    pub overrides: FilterOverrides,
}

/// The cluster of a weighted entry.
#[derive(Clone, Debug)]
pub enum WeightedTarget {
    /// By name.
    Cluster(ClusterRef),
    /// By request header.
    Header(HeaderName),
}

/// Changes to the path.
#[derive(Clone, Debug)]
pub enum PathRewrite {
    /// None.
    None,
    /// Replaces the matched prefix (or the whole path, for exact and regex matches); the query stays.
    Prefix(Box<str>),
    /// Replaces every match of the pattern in the path; the query stays.
    Regex(Box<RegexRewrite>),
    /// Replaces the path by a rendered format; the query stays.
    Path(Box<TextFormat>),
}

/// A pattern and what its matches become.
#[derive(Clone, Debug)]
pub struct RegexRewrite {
    /// The pattern, anywhere in the text.
    pub(crate) pattern: regex::Regex,
    /// Replacement in the `regex` crate's notation.
    pub(crate) replacement: Box<str>,
}

/// Changes to the authority.
#[derive(Clone, Debug)]
pub enum HostRewrite {
    /// None.
    None,
    /// This.
    Literal(Box<HeaderValue>),
    /// The hostname of the chosen endpoint (DNS clusters).
    Auto,
    /// The value of this request header, when there.
    Header(Box<HeaderName>),
    /// The path (without the query) rewritten.
    PathRegex(Box<RegexRewrite>),
    /// A rendered format.
    Format(Box<TextFormat>),
}

/// Envoy's `RedirectAction`.
#[derive(Clone, Debug)]
pub struct Redirect {
    /// Another scheme.
    pub scheme: Option<Box<str>>,
    /// Another host.
    pub host: Option<Box<str>>,
    /// Another port.
    pub port: Option<u16>,
    /// Another path.
    pub path: PathRedirect,
    /// Status: 301, 302, 303, 307 or 308.
    pub status: StatusCode,
    /// Drops the query.
    pub strip_query: bool,
    /// Keeps the request's port though the scheme changes: for `require_tls`.
    pub keep_port: bool,
}

/// The path of a redirect.
#[derive(Clone, Debug)]
pub enum PathRedirect {
    /// The request's.
    Keep,
    /// This path; its own query, when it has one, replaces the request's.
    Path(Box<str>),
    /// With the matched prefix replaced.
    Prefix(Box<str>),
    /// Rewritten.
    Regex(RegexRewrite),
}

/// Envoy's `DirectResponseAction`.
#[derive(Clone, Debug)]
pub struct DirectResponse {
    /// Status.
    pub status: StatusCode,
    /// Body; may be empty.
    pub body: Arc<[u8]>,
    /// Format of the body, in which `%LOCAL_REPLY_BODY%` is [`Self::body`].
    pub format: Option<BodyFormat>,
}

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
    /// No byte from upstream for so long.
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
