//! The configuration in effect: immutable, versioned, shared by all workers.
//!
//! Names are resolved to slots when configuration changes, so that a request finds its routes and its cluster by index. A
//! slot stays with its name for the engine's life; a name that is gone costs its few bytes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use ahash::AHashMap;
use lateen_ir as ir;

use crate::dns::DnsStats;
use crate::dns_cache::DnsCache;
use crate::filters::Filter;
use crate::health_check::HealthView;
use crate::joined::Joined;
use crate::outlier::Detector;
use crate::subsets::SubsetCounts;
use crate::tls::{ClientTls, ServerTls};

/// Position of a cluster in [`Snapshot::clusters`].
pub(crate) type ClusterSlot = u32;

/// Position of a route configuration in [`Snapshot::routes`].
pub(crate) type RouteSlot = u32;

/// Position of what a route counts for itself in [`Snapshot::route_stats`].
pub(crate) type StatSlot = u32;

/// Number of an HTTP filter's name.
pub(crate) type FilterSlot = u32;

/// One generation of configuration.
#[derive(Default)]
pub(crate) struct Snapshot {
    /// Grows with each change.
    pub(crate) version: u64,
    /// Listeners in effect.
    pub(crate) listeners: Vec<Arc<ListenerConfig>>,
    /// Clusters by slot; `None`: referred to, but unknown or still warming for the first time.
    pub(crate) clusters: Vec<Option<Arc<ClusterConfig>>>,
    /// Slots by cluster name, for names that come with a request.
    pub(crate) cluster_slots: Arc<AHashMap<Arc<str>, ClusterSlot>>,
    /// RDS route configurations by slot.
    pub(crate) routes: Vec<Option<Arc<RouteConfig>>>,
    /// Names under which routes in effect count, by slot; `None`: no longer in use.
    pub(crate) route_stats: Vec<Option<Arc<str>>>,
}

/// A listener with its references resolved.
pub(crate) struct ListenerConfig {
    pub(crate) ir: Arc<ir::Listener>,
    /// Stats name: `stat_prefix` or the address, with `:` replaced.
    pub(crate) stat_name: Arc<str>,
    /// Chains at the positions of `ir.filter_chains`.
    pub(crate) chains: Vec<Arc<ChainConfig>>,
    pub(crate) default_chain: Option<Arc<ChainConfig>>,
    /// Addresses really bound (port 0 replaced), the listener's first; empty with `bind_to_port: false`.
    pub(crate) bound: Vec<ir::HostAddress>,
}

impl ListenerConfig {
    /// TLS contexts of its chains.
    pub(crate) fn tls(&self) -> impl Iterator<Item = &Arc<ServerTls>> {
        self.chains.iter().chain(&self.default_chain).filter_map(|chain| chain.tls.as_ref())
    }
}

/// A filter chain with its references resolved. The same `Arc` across updates means that connections may stay.
pub(crate) struct ChainConfig {
    pub(crate) ir: Arc<ir::FilterChain>,
    /// Content of the chain and of everything in the listener that its connections depend on.
    pub(crate) fingerprint: u64,
    pub(crate) terminal: Terminal,
    /// Clusters that network filters ask, in the order of the filters.
    pub(crate) asked: Box<[ClusterSlot]>,
    /// `None`: plaintext.
    pub(crate) tls: Option<Arc<ServerTls>>,
}

/// What takes the connection.
pub(crate) enum Terminal {
    /// No filter: the connection is closed.
    Close,
    Http(Arc<HttpConfig>),
    Tcp(Arc<TcpConfig>),
    Echo,
    DirectResponse(Arc<[u8]>),
}

/// An HTTP connection manager with its references resolved.
pub(crate) struct HttpConfig {
    pub(crate) hcm: Arc<ir::HttpConnectionManager>,
    pub(crate) stat_name: Arc<str>,
    pub(crate) routes: RoutesRef,
    /// HTTP filters in order, without the router.
    pub(crate) filters: Box<[Filter]>,
    /// Some access log exists, so what it may print must be kept.
    pub(crate) logs: bool,
}

/// Where a connection manager finds its routes.
pub(crate) enum RoutesRef {
    Inline(Arc<RouteConfig>),
    Rds(RouteSlot),
}

/// A TCP proxy with its references resolved.
pub(crate) struct TcpConfig {
    pub(crate) ir: Arc<ir::TcpProxy>,
    pub(crate) stat_name: Arc<str>,
    /// By `ClusterRef::index`.
    pub(crate) slots: Box<[ClusterSlot]>,
    /// Where names that TLS asks for are looked up first, and the port there.
    pub(crate) sni: Option<(Arc<DnsCache>, Option<u16>)>,
}

/// A route configuration with its references resolved.
pub(crate) struct RouteConfig {
    pub(crate) ir: Arc<ir::RouteConfiguration>,
    /// By `ClusterRef::index`.
    pub(crate) slots: Box<[ClusterSlot]>,
    /// By `FilterOverride::filter`.
    pub(crate) filters: Box<[FilterSlot]>,
    /// By `Route::stat`; `None`: only routes of earlier versions had it.
    pub(crate) stats: Box<[Option<StatSlot>]>,
}

/// A cluster and its endpoints.
pub(crate) struct ClusterConfig {
    pub(crate) ir: Arc<ir::Cluster>,
    /// Changes with everything but the endpoints: a new value means new connections.
    pub(crate) fingerprint: u64,
    /// Endpoints with resolved addresses.
    pub(crate) endpoints: Arc<ir::ClusterLoadAssignment>,
    pub(crate) outlier: Option<Arc<Detector>>,
    /// With subsets only.
    pub(crate) subsets: Option<Arc<SubsetCounts>>,
    /// With slow start only.
    pub(crate) joined: Option<Arc<Joined>>,
    pub(crate) breakers: Arc<Breakers>,
    /// Stats name: `alt_stat_name` or the name, with `:` replaced.
    pub(crate) stat_name: Arc<str>,
    /// From the cluster or else the bootstrap.
    pub(crate) bind: Option<Arc<ir::BindConfig>>,
    /// Of a cluster whose names are looked up.
    pub(crate) dns_stats: Option<Arc<DnsStats>>,
    /// Where it finds hosts that requests name.
    pub(crate) dns_cache: Option<Arc<DnsCache>>,
    /// With active health checks.
    pub(crate) checked: Option<HealthView>,
    pub(crate) transports: Arc<Transports>,
}

/// TLS towards a cluster's endpoints. The same `Arc` as long as the connection settings stay.
#[derive(Default)]
pub(crate) struct Transports {
    pub(crate) general: Option<Arc<ClientTls>>,
    /// At the positions of `ir.transport_matches`.
    pub(crate) matched: Vec<Option<Arc<ClientTls>>>,
}

impl Transports {
    /// All contexts.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<ClientTls>> {
        self.general.iter().chain(self.matched.iter().flatten())
    }

    /// The transport at a position of the cluster's `transport_matches`; `None`: the cluster's own.
    pub(crate) fn at<'a>(
        &'a self,
        cluster: &'a ir::Cluster,
        position: Option<usize>,
    ) -> (&'a ir::UpstreamTransport, Option<&'a Arc<ClientTls>>) {
        match position {
            None => (&cluster.transport, self.general.as_ref()),
            Some(position) => {
                (&cluster.transport_matches[position].transport, self.matched[position].as_ref())
            }
        }
    }
}

impl ClusterConfig {
    /// Health of an endpoint with what active health checks say of it.
    pub(crate) fn checked_health(&self, address: SocketAddr, health: ir::HealthStatus) -> ir::HealthStatus {
        self.checked.as_ref().map_or(health, |view| view.checked.health(address, health))
    }

    /// Whether an endpoint has told that it leaves.
    pub(crate) fn is_excluded(&self, address: SocketAddr) -> bool {
        self.checked.as_ref().is_some_and(|view| view.checked.of(address).excluded)
    }

    /// Position of an endpoint's transport in `ir.transport_matches`; `None`: the cluster's own.
    pub(crate) fn transport_position(&self, endpoint: &ir::Endpoint) -> Option<usize> {
        self.ir.transport_position(endpoint.metadata.as_deref())
    }

    /// Port of hosts that are named without one.
    pub(crate) fn default_port(&self) -> u16 {
        let position = self.ir.transport_position(None);
        let matching = position.map(|position| &self.ir.transport_matches[position].transport);
        if matching.unwrap_or(&self.ir.transport).tls().is_some() { 443 } else { 80 }
    }

    /// How to reach an endpoint.
    pub(crate) fn transport(
        &self,
        endpoint: &ir::Endpoint,
    ) -> (&ir::UpstreamTransport, Option<&Arc<ClientTls>>) {
        self.transports.at(&self.ir, self.transport_position(endpoint))
    }
}

/// What counts against a cluster's circuit breakers, over all workers. Envoy's limits are per process too. Outlives configuration.
#[derive(Default)]
pub(crate) struct Breakers {
    pub(crate) default: BreakerCounts,
    pub(crate) high: BreakerCounts,
    /// Something has connected; health checks are rarer before.
    used: AtomicBool,
}

impl Breakers {
    /// Something connects.
    pub(crate) fn note_use(&self) {
        self.used.store(true, Ordering::Relaxed);
    }

    /// Whether anything has connected so far.
    pub(crate) fn is_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }
}

/// Counts of one priority.
#[derive(Default)]
pub(crate) struct BreakerCounts {
    pub(crate) connections: AtomicU32,
    pub(crate) pending: AtomicU32,
    pub(crate) requests: AtomicU32,
    pub(crate) retries: AtomicU32,
}

impl Snapshot {
    /// The cluster in a slot.
    pub(crate) fn cluster(&self, slot: ClusterSlot) -> Option<&Arc<ClusterConfig>> {
        self.clusters.get(slot as usize)?.as_ref()
    }

    /// The routes in a slot.
    pub(crate) fn route_config(&self, slot: RouteSlot) -> Option<&Arc<RouteConfig>> {
        self.routes.get(slot as usize)?.as_ref()
    }
}

/// Envoy's `sanitizeStatsName`.
pub(crate) fn stat_name(name: &str) -> Arc<str> {
    if name.contains([':', '\0']) {
        name.replace("://", "_").replace(":/", "_").replace([':', '\0'], "_").into()
    } else {
        name.into()
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn colons_do_not_appear_in_stat_names() {
        assert_eq!(&*super::stat_name("0.0.0.0:80"), "0.0.0.0_80");
        assert_eq!(&*super::stat_name("http://a:1/b"), "http_a_1/b");
        assert_eq!(&*super::stat_name("outbound|80||a"), "outbound|80||a");
    }
}
