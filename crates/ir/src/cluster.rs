//! Clusters.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::OutlierDetection;
use crate::common::{SocketOption, TcpKeepalive};
use crate::dynamic_forward_proxy::DnsCacheConfig;
use crate::endpoint::ClusterLoadAssignment;
use crate::hcm::{CommonHttpOptions, Http1Options, Http2Options};
use crate::health_check::HealthCheck;
use crate::lb_policy::LbPolicy;
use crate::tls::{ProxyProtocolVersion, UpstreamTls};

/// Envoy's `cluster.v3.Cluster`.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Name; xDS identity.
    pub name: Arc<str>,
    /// Name in stats, when another.
    pub alt_stat_name: Option<Arc<str>>,
    /// Where endpoints come from.
    pub discovery: Discovery,
    /// How one is chosen.
    pub lb_policy: LbPolicy,
    /// Subsets among which routes choose.
    pub subsets: Option<Arc<crate::Subsets>>,
    /// Percentage of healthy endpoints below which all are used. Default 50; 0 disables panic.
    pub healthy_panic_threshold: f64,
    /// How localities of a priority share the load.
    pub locality: LocalityMode,
    /// For new connections. Default 5 s.
    pub connect_timeout: Duration,
    /// Soft limit for buffers of a connection in bytes. Default 1 MiB.
    pub per_connection_buffer_limit_bytes: u32,
    /// Limits for default priority.
    pub circuit_breakers: CircuitBreakers,
    /// Limits for high priority.
    pub high_priority_circuit_breakers: CircuitBreakers,
    /// Most connections to one host (`per_host_thresholds`). Default `None`: no limit.
    pub max_connections_per_host: Option<u32>,
    /// HTTP towards the endpoints.
    pub http: UpstreamHttp,
    /// TLS towards the endpoints.
    pub transport: UpstreamTransport,
    /// Transports for endpoints whose metadata (`envoy.transport_socket_match`) matches; the first that does counts, else `transport`.
    pub transport_matches: Vec<TransportMatch>,
    /// Source address and socket options; `None`: the bootstrap's.
    pub bind: Option<Arc<BindConfig>>,
    /// Keep-alive of upstream connections.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Active health checks.
    pub health_check: Option<Box<HealthCheck>>,
    /// Ejection of failing endpoints.
    pub outlier_detection: Option<Box<OutlierDetection>>,
    /// A connection pool for each downstream connection.
    pub connection_pool_per_downstream_connection: bool,
    /// The cluster warms before it is used. Default true.
    pub wait_for_warm_on_init: bool,
    /// ORIGINAL_DST: endpoints unused for so long are forgotten. Default 5 s.
    pub cleanup_interval: Duration,
    /// `filter_metadata` as JSON text, for access logs and dumps; `None` when empty.
    pub metadata: Option<Arc<serde_json::Value>>,
}

impl Cluster {
    /// Position of the transport in `transport_matches` for an endpoint with this metadata; `None`: the cluster's own.
    pub fn transport_position(&self, metadata: Option<&serde_json::Value>) -> Option<usize> {
        self.transport_matches.iter().position(|one| one.is_match(metadata))
    }
}

/// Where endpoints come from.
#[derive(Clone, Debug)]
pub enum Discovery {
    /// Written in the cluster.
    Static(Arc<ClusterLoadAssignment>),
    /// Every address of the names in the load assignment, kept fresh.
    StrictDns {
        /// Names and weights.
        assignment: Arc<DnsAssignment>,
        /// How to resolve.
        dns: Box<Dns>,
    },
    /// One address of one name for each new connection.
    LogicalDns {
        /// One name.
        assignment: Arc<DnsAssignment>,
        /// How to resolve.
        dns: Box<Dns>,
    },
    /// Over EDS.
    Eds {
        /// Name of the load assignment: `service_name` or the cluster's name.
        service_name: Arc<str>,
        /// How long warming waits. Default 15 s; `None`: for ever.
        initial_fetch_timeout: Option<Duration>,
    },
    /// The connection's original destination.
    OriginalDst {
        /// Take the destination from this request header (`use_http_header`).
        header: Option<http::HeaderName>,
        /// Another port.
        port_override: Option<u16>,
    },
    /// The host that the request names, or TLS asks for, as found in a cache of names.
    DynamicForwardProxy {
        /// The cache.
        cache: Arc<DnsCacheConfig>,
    },
}

/// A load assignment of host names.
pub type DnsAssignment = ClusterLoadAssignment;

/// How names are resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dns {
    /// Pause between look-ups. Default 5 s.
    pub refresh_rate: Duration,
    /// Random part added to the pause, up to this. Default 0.
    pub jitter: Duration,
    /// Pause after a failure, growing; `None`: `refresh_rate`.
    pub failure_refresh: Option<crate::listener::Backoff>,
    /// Address families.
    pub family: DnsFamily,
    /// The pause is as long as the answer holds, where it says so (`respect_dns_ttl`).
    pub respect_ttl: bool,
    /// A shorter one counts as this (`dns_min_refresh_rate`). Default 0.
    pub least_ttl: Duration,
    /// Who is asked; `None`: the system's servers.
    pub resolver: Option<Arc<DnsResolver>>,
}

/// Who is asked for names, and how (`CaresDnsResolverConfig`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct DnsResolver {
    /// Servers; empty: the system's.
    pub servers: Vec<SocketAddr>,
    /// Over TCP only (`use_tcp_for_dns_lookups`).
    pub tcp: bool,
    /// Names are taken as they are, without the system's search domains (`no_default_search_domain`).
    pub no_search: bool,
    /// For one query; `None`: the system's.
    pub timeout: Option<Duration>,
    /// Queries for a name at most; `None`: the system's.
    pub tries: Option<u32>,
}

/// `dns_lookup_family`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DnsFamily {
    /// IPv6, and IPv4 only when there is none.
    #[default]
    Auto,
    /// IPv4.
    V4Only,
    /// IPv6.
    V6Only,
    /// IPv4, and IPv6 only when there is none.
    V4Preferred,
    /// Both.
    All,
}

/// How the localities of a priority share the load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum LocalityMode {
    /// Localities don't matter; their weights are ignored.
    #[default]
    Flat,
    /// By locality weight and health (`locality_weighted_lb_config`).
    Weighted,
}

/// `circuit_breakers.thresholds` of one priority.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CircuitBreakers {
    /// Default 1024.
    pub max_connections: u32,
    /// Requests waiting for a connection. Default 1024.
    pub max_pending_requests: u32,
    /// Default 1024.
    pub max_requests: u32,
    /// Parallel retries; used without a retry budget. Default 3.
    pub max_retries: u32,
    /// Limits retries by a share of the active requests.
    pub retry_budget: Option<RetryBudget>,
    /// Tells in gauges how much of each limit is left.
    pub track_remaining: bool,
}

impl Default for CircuitBreakers {
    fn default() -> Self {
        Self {
            max_connections: 1024,
            max_pending_requests: 1024,
            max_requests: 1024,
            max_retries: 3,
            retry_budget: None,
            track_remaining: false,
        }
    }
}

/// See [`CircuitBreakers::retry_budget`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryBudget {
    /// Percentage of active requests. Default 20.
    pub percent: f64,
    /// Always allowed. Default 3.
    pub min_concurrency: u32,
}

/// HTTP towards endpoints.
#[derive(Clone, Debug, Default)]
pub struct UpstreamHttp {
    /// Which version.
    pub protocol: UpstreamProtocol,
    /// For both versions.
    pub common: CommonHttpOptions,
    /// HTTP/1.
    pub http1: Http1Options,
    /// HTTP/2.
    pub http2: Http2Options,
    /// SNI and names to verify from requests (`upstream_http_protocol_options`).
    pub names: UpstreamNames,
}

/// `UpstreamHttpProtocolOptions`: what TLS towards endpoints takes from a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamNames {
    /// Ask for the request's host.
    pub auto_sni: bool,
    /// The certificate must have the request's host.
    pub auto_san_validation: bool,
    /// Take the host from this header, when the request has it.
    pub header: Option<http::HeaderName>,
}

impl UpstreamNames {
    /// Whether connections differ by request.
    pub fn by_request(&self) -> bool {
        self.auto_sni || self.auto_san_validation
    }
}

/// HTTP version towards endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum UpstreamProtocol {
    /// HTTP/1.1 (the default).
    #[default]
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// That of the request.
    Downstream,
}

/// Upstream transport.
#[derive(Clone, Debug, Default)]
pub enum UpstreamTransport {
    /// Plaintext.
    #[default]
    Plaintext,
    /// TLS.
    Tls(Arc<UpstreamTls>),
    /// A PROXY protocol header, then another transport.
    ProxyProtocol {
        /// Which version.
        version: ProxyProtocolVersion,
        /// What follows the header; never another of its kind.
        inner: Box<UpstreamTransport>,
    },
}

impl UpstreamTransport {
    /// TLS, with or without a PROXY protocol header before it.
    pub fn tls(&self) -> Option<&Arc<UpstreamTls>> {
        match self {
            Self::Plaintext => None,
            Self::Tls(tls) => Some(tls),
            Self::ProxyProtocol { inner, .. } => inner.tls(),
        }
    }
}

/// One of `transport_socket_matches`.
#[derive(Clone, Debug)]
pub struct TransportMatch {
    /// Name, for stats.
    pub name: Arc<str>,
    /// Members that the endpoint's `envoy.transport_socket_match` metadata must have, as JSON. Empty: any endpoint.
    pub criteria: Arc<serde_json::Value>,
    /// The transport.
    pub transport: UpstreamTransport,
}

impl TransportMatch {
    /// Whether an endpoint with this metadata (`filter_metadata` as JSON) uses it.
    pub fn is_match(&self, metadata: Option<&serde_json::Value>) -> bool {
        let Some(criteria) = self.criteria.as_object() else { return true };
        let given = metadata.and_then(|metadata| metadata.get("envoy.transport_socket_match"));
        criteria.iter().all(|(key, wanted)| given.and_then(|given| given.get(key)) == Some(wanted))
    }
}

/// `core.v3.BindConfig`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BindConfig {
    /// Source addresses; the one of the endpoint's family is used (port 0: any).
    pub source: Option<SocketAddr>,
    /// For the other family.
    pub extra_sources: Vec<SocketAddr>,
    /// `IP_FREEBIND`.
    pub freebind: bool,
    /// Raw options, before `bind`.
    pub socket_options: Vec<SocketOption>,
}

impl BindConfig {
    /// Source address for a connection to `target`.
    pub fn source_for(&self, target: SocketAddr) -> Option<SocketAddr> {
        self.source
            .into_iter()
            .chain(self.extra_sources.iter().copied())
            .find(|source| source.is_ipv4() == target.is_ipv4())
    }
}
