//! External authorization, as Envoy's HTTP and network filters do it: what is configured. What is asked is in
//! `ext_authz_check`, what answers mean in `ext_authz_verdict`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};

use crate::{
    ClusterRef, DynamicMetadata, Fraction, HeaderMutationRules, MetadataMatcher, RetryPolicy, StringMatcher,
    TextFormat,
};

/// Envoy's `filters.http.ext_authz.v3.ExtAuthz`.
#[derive(Clone, Debug)]
pub struct ExtAuthz {
    /// Who is asked.
    pub service: AuthzService,
    /// When nobody answers, the request passes.
    pub failure_mode_allow: bool,
    /// Such a request has `x-envoy-auth-failure-mode-allowed: true`.
    pub failure_mode_allow_header_add: bool,
    /// How much of the body is sent along. `None`: nothing.
    pub body: Option<AuthzBody>,
    /// A request that an answer has changed is routed anew.
    pub clear_route_cache: bool,
    /// Status when nobody answers. Default 403.
    pub status_on_error: StatusCode,
    /// An answer with a header that is none fails the request; else the header is left out.
    pub validate_mutations: bool,
    /// What of the filters' notes is sent along.
    pub metadata_namespaces: Vec<Box<str>>,
    /// Part of the requests that is asked about. `None`: all.
    pub enabled: Option<Fraction>,
    /// Asked about is only what this holds for.
    pub enabled_metadata: Option<MetadataMatcher>,
    /// What is not asked about is refused.
    pub deny_at_disable: bool,
    /// The client's certificate is sent along.
    pub include_peer_certificate: bool,
    /// The TLS server name is sent along.
    pub include_tls_session: bool,
    /// What stands before the names of its numbers; empty or with a dot at its end.
    pub stat_prefix: Box<str>,
    /// Headers that are sent along. `None`: all.
    pub allowed_headers: Option<NameMatchers>,
    /// Headers that are not.
    pub disallowed_headers: Option<NameMatchers>,
    /// Headers are sent as a list, repeated ones as they came.
    pub encode_raw_headers: bool,
    /// A refusal counts as an answer of the route's cluster. Default true.
    pub charge_cluster_response_stats: bool,
    /// Answers may note things about the request. Default true.
    pub ingests_metadata: bool,
    /// Longest body of a refusal in bytes. `None`: any.
    pub longest_denial: Option<usize>,
    /// Which headers of the request answers may change. `None`: all that can be changed.
    pub mutation_rules: Option<HeaderMutationRules>,
    /// Decisions are written down ([`ShadowDecision`](crate::ShadowDecision)), not carried out.
    pub shadow: bool,
}

/// Who is asked.
#[derive(Clone, Debug)]
pub enum AuthzService {
    /// `envoy.service.auth.v3.Authorization`.
    Grpc(GrpcService),
    /// Any HTTP server.
    Http(Box<HttpAuthz>),
}

/// A gRPC service behind a cluster (`core.v3.GrpcService` with `envoy_grpc`).
#[derive(Clone, Debug)]
pub struct GrpcService {
    /// The cluster.
    pub cluster: Arc<str>,
    /// `:authority`. Default: the cluster's name.
    pub authority: HeaderValue,
    /// For the whole call. `None`: no limit.
    pub timeout: Option<Duration>,
    /// Headers of calls.
    pub initial_metadata: Vec<(HeaderName, TextFormat)>,
    /// Longest answer in bytes. `None`: the engine's own bound.
    pub most_received: Option<usize>,
    /// Without `x-envoy-internal` and `x-forwarded-for`.
    pub skip_envoy_headers: bool,
    /// Which calls are repeated. `None`: none.
    pub retry_policy: Option<Arc<RetryPolicy>>,
}

/// Envoy's `HttpService`.
#[derive(Clone, Debug)]
pub struct HttpAuthz {
    /// The cluster.
    pub cluster: Arc<str>,
    /// For the whole call. `None`: no limit.
    pub timeout: Option<Duration>,
    /// Stands before the request's path.
    pub path_prefix: Box<str>,
    /// Stands in the place of the request's path, if not empty.
    pub path_override: Box<str>,
    /// More headers of calls, in place of those of the request.
    pub headers_to_add: Vec<(HeaderName, TextFormat)>,
    /// Headers of an answer that allows which the request gets, in place of its own.
    pub upstream_headers: NameMatchers,
    /// The same, beside its own.
    pub upstream_headers_to_append: NameMatchers,
    /// Headers of a refusal which the client gets. `None`: all.
    pub client_headers: Option<NameMatchers>,
    /// Headers of an answer that allows which the client gets.
    pub client_headers_on_success: NameMatchers,
    /// Headers that become notes.
    pub metadata_headers: NameMatchers,
    /// Which calls are repeated. `None`: none.
    pub retry_policy: Option<Arc<RetryPolicy>>,
}

/// Envoy's `BufferSettings`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthzBody {
    /// At most so many bytes.
    pub most: usize,
    /// A longer body is sent along in part; else its request is refused with 413.
    pub partial: bool,
    /// As bytes, not as text.
    pub as_bytes: bool,
}

/// Envoy's `ExtAuthzPerRoute`.
#[derive(Clone, Debug, Default)]
pub struct ExtAuthzRoute {
    /// Nobody is asked.
    pub disabled: bool,
    /// Told to whom is asked. Those of all levels count; the more specific wins.
    pub context_extensions: BTreeMap<String, String>,
    /// No body is sent along.
    pub without_body: bool,
    /// How much of the body instead.
    pub body: Option<AuthzBody>,
    /// Who is asked instead. What requests tell is by the filter all the same: its lists of headers count, as with Envoy, not one of the
    /// route's `authorization_request`.
    pub service: Option<RouteAuthzService>,
}

/// Whom a route has asked.
#[derive(Clone, Debug)]
pub struct RouteAuthzService {
    /// The service.
    pub service: AuthzService,
    /// Its cluster, among those of the route configuration.
    pub cluster: ClusterRef,
}

/// Envoy's `filters.network.ext_authz.v3.ExtAuthz`.
#[derive(Clone, Debug)]
pub struct NetworkExtAuthz {
    /// First part of the names of its numbers.
    pub stat_prefix: Box<str>,
    /// Who is asked.
    pub service: GrpcService,
    /// When nobody answers, the connection passes.
    pub failure_mode_allow: bool,
    /// The client's certificate is sent along.
    pub include_peer_certificate: bool,
    /// The TLS server name is sent along.
    pub include_tls_session: bool,
    /// Asked about is only what this holds for.
    pub enabled_metadata: Option<MetadataMatcher>,
    /// What of the filters' notes is sent along.
    pub metadata_namespaces: Vec<Box<str>>,
    /// No connection is closed.
    pub shadow: bool,
}

/// Matchers of header names, of which one must match.
#[derive(Clone, Debug, Default)]
pub struct NameMatchers(pub Vec<StringMatcher>);

impl NameMatchers {
    /// Whether one matches. Names are in lower case.
    pub fn matches(&self, name: &str) -> bool {
        self.0.iter().any(|matcher| matcher.is_match(name.as_bytes()))
    }
}

impl AuthzService {
    /// The cluster.
    pub fn cluster(&self) -> &Arc<str> {
        match self {
            Self::Grpc(service) => &service.cluster,
            Self::Http(service) => &service.cluster,
        }
    }

    /// For the whole call. `None`: no limit.
    pub fn timeout(&self) -> Option<Duration> {
        match self {
            Self::Grpc(service) => service.timeout,
            Self::Http(service) => service.timeout,
        }
    }

    /// Which calls are repeated. `None`: none.
    pub fn retry_policy(&self) -> Option<&Arc<RetryPolicy>> {
        match self {
            Self::Grpc(service) => service.retry_policy.as_ref(),
            Self::Http(service) => service.retry_policy.as_ref(),
        }
    }
}

impl ExtAuthz {
    /// Whether a request with these notes is asked about. `random` is uniformly distributed.
    pub fn is_enabled(&self, random: u64, metadata: Option<&DynamicMetadata>) -> bool {
        self.enabled.is_none_or(|fraction| fraction.includes(random))
            && self.enabled_metadata.as_ref().is_none_or(|matcher| matcher.is_match(metadata))
    }

    /// Whether a header of the request is sent along.
    pub(crate) fn sends(&self, name: &str) -> bool {
        !self.disallowed_headers.as_ref().is_some_and(|list| list.matches(name))
            && self.allowed_headers.as_ref().is_none_or(|list| list.matches(name))
    }
}
