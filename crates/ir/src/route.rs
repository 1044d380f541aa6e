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
use crate::matcher::{FullRegex, HeaderMatcher, QueryParameterMatcher};
use crate::metadata::MetadataMatcher;
use crate::retry_policy::RetryPolicy;
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
    /// Subtracted from `grpc-timeout`. Default `None`: nothing.
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
