//! One worker's stat blocks, by name. A block lives as long as configuration or a connection uses it, so numbers go on
//! across configuration updates and disappear with what they are about.

use std::cell::{OnceCell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use ahash::AHashMap;

use super::blocks::{
    BlockNames, BlockReading, ClusterExtAuthzStats, ClusterStats, CorsStats, ExtAuthzStats, FaultClientStats,
    FaultStats, Http1CodecStats, Http2CodecStats, HttpStats, JwtStats, ListenerStats, NetworkExtAuthzStats,
    RbacShadowStats, RbacStats, RouteStats, TcpStats,
};
use super::tls::TlsStats;

/// What a block is about; also the first part of its stats' names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Scope {
    Cluster,
    ClusterTls,
    /// The name is the cluster's, a line feed, and what the numbers' names begin with.
    ClusterExtAuthz,
    Cors,
    /// Of a cache of names.
    DnsCache,
    /// The name is the connection manager's prefix, a line feed, and what the numbers' names begin with.
    ExtAuthz,
    NetworkExtAuthz,
    Fault,
    /// The name is the connection manager's prefix, a line feed, and the client's name.
    FaultClient,
    Http,
    /// Of all HTTP/1 connections; its only block has no name.
    Http1Codec,
    /// Of all HTTP/2 connections of clients; its only block has no name.
    Http2Codec,
    /// The name is the connection manager's prefix, a line feed, and what the numbers' names begin with.
    Jwt,
    Listener,
    ListenerTls,
    /// The name is the connection manager's prefix, a line feed, and what the numbers' names begin with.
    Rbac,
    RbacShadow,
    /// The name is the filter's prefix, a line feed, and what the numbers' names begin with.
    NetworkRbac,
    NetworkRbacShadow,
    /// The name is the virtual host's, a line feed, and the route's prefix.
    Route,
    Tcp,
}

impl Scope {
    /// First part of the names.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Self::Cluster | Self::ClusterTls | Self::ClusterExtAuthz => "cluster",
            Self::NetworkExtAuthz => "ext_authz",
            Self::Cors
            | Self::ExtAuthz
            | Self::Fault
            | Self::FaultClient
            | Self::Http
            | Self::Jwt
            | Self::Rbac
            | Self::RbacShadow => "http",
            Self::DnsCache => "dns_cache",
            Self::Http1Codec => "http1",
            Self::Http2Codec => "http2",
            Self::Listener | Self::ListenerTls => "listener",
            // Their prefix stands in the configuration.
            Self::NetworkRbac | Self::NetworkRbacShadow => "",
            Self::Route => "vhost",
            Self::Tcp => "tcp",
        }
    }

    /// What stands between the name and the number: the filter.
    pub(crate) fn filter(self) -> Option<&'static str> {
        match self {
            Self::Cors => Some("cors"),
            Self::ExtAuthz | Self::ClusterExtAuthz => Some("ext_authz"),
            Self::Fault | Self::FaultClient => Some("fault"),
            Self::Jwt => Some("jwt_authn"),
            Self::Rbac | Self::RbacShadow | Self::NetworkRbac | Self::NetworkRbacShadow => Some("rbac"),
            Self::Route => Some("route"),
            Self::Cluster
            | Self::ClusterTls
            | Self::DnsCache
            | Self::Http
            | Self::Http1Codec
            | Self::Http2Codec
            | Self::Listener
            | Self::ListenerTls
            | Self::NetworkExtAuthz
            | Self::Tcp => None,
        }
    }

    /// Whether Envoy makes a number of it when there is something to count.
    pub(crate) fn appears_when_used(self, name: &str) -> bool {
        match self {
            Self::Route => ["upstream_rq_completed", "upstream_rq_time"].contains(&name),
            _ => super::tls::appears_when_used(name),
        }
    }

    /// Whether what follows the name's line feed is glued to the numbers' names.
    pub(crate) fn is_glued(self) -> bool {
        self.is_named_on() || self.is_rbac()
    }

    /// Whether the numbers' names begin with what follows the name's line feed.
    pub(crate) fn is_named_on(self) -> bool {
        matches!(self, Self::Jwt | Self::ExtAuthz | Self::ClusterExtAuthz)
    }

    /// Whether it is of a filter that asks external authorizers about requests.
    pub(crate) fn is_ext_authz(self) -> bool {
        matches!(self, Self::ExtAuthz | Self::ClusterExtAuthz)
    }

    /// Whether it is role-based access control.
    pub(crate) fn is_rbac(self) -> bool {
        matches!(self, Self::Rbac | Self::RbacShadow | Self::NetworkRbac | Self::NetworkRbacShadow)
    }

    /// Names of the numbers of this scope's blocks.
    pub(crate) fn names(self) -> &'static BlockNames {
        match self {
            Self::Cluster => &ClusterStats::NAMES,
            Self::Cors => &CorsStats::NAMES,
            // Its numbers are not a worker's.
            Self::DnsCache => &BlockNames { counters: &[], gauges: &[], histograms: &[] },
            Self::ExtAuthz => &ExtAuthzStats::NAMES,
            Self::ClusterExtAuthz => &ClusterExtAuthzStats::NAMES,
            Self::NetworkExtAuthz => &NetworkExtAuthzStats::NAMES,
            Self::Fault => &FaultStats::NAMES,
            Self::FaultClient => &FaultClientStats::NAMES,
            Self::Http => &HttpStats::NAMES,
            Self::Http1Codec => &Http1CodecStats::NAMES,
            Self::Http2Codec => &Http2CodecStats::NAMES,
            Self::Jwt => &JwtStats::NAMES,
            Self::Listener => &ListenerStats::NAMES,
            Self::Rbac | Self::NetworkRbac => &RbacStats::NAMES,
            Self::RbacShadow | Self::NetworkRbacShadow => &RbacShadowStats::NAMES,
            Self::Route => &RouteStats::NAMES,
            Self::Tcp => &TcpStats::NAMES,
            Self::ClusterTls | Self::ListenerTls => &TlsStats::NAMES,
        }
    }
}

/// A copy of every block of one worker.
pub(crate) type ArenaReading = Vec<(Scope, Arc<str>, BlockReading)>;

type Blocks<T> = RefCell<AHashMap<Arc<str>, Weak<T>>>;

/// Owner of a worker's stat blocks.
#[derive(Default)]
pub(crate) struct StatsArena {
    clusters: Blocks<ClusterStats>,
    cors: Blocks<CorsStats>,
    ext_authz: Blocks<ExtAuthzStats>,
    cluster_ext_authz: Blocks<ClusterExtAuthzStats>,
    network_ext_authz: Blocks<NetworkExtAuthzStats>,
    faults: Blocks<FaultStats>,
    fault_clients: Blocks<FaultClientStats>,
    listeners: Blocks<ListenerStats>,
    http: Blocks<HttpStats>,
    /// Made with the first connection, as Envoy does.
    http1_codec: OnceCell<Rc<Http1CodecStats>>,
    http2_codec: OnceCell<Rc<Http2CodecStats>>,
    jwt: Blocks<JwtStats>,
    rbac: Blocks<RbacStats>,
    rbac_shadow: Blocks<RbacShadowStats>,
    network_rbac: Blocks<RbacStats>,
    network_rbac_shadow: Blocks<RbacShadowStats>,
    routes: Blocks<RouteStats>,
    tcp: Blocks<TcpStats>,
    cluster_tls: Blocks<TlsStats>,
    listener_tls: Blocks<TlsStats>,
}

fn find_or_make<T: Default>(blocks: &Blocks<T>, name: &Arc<str>) -> Rc<T> {
    let mut blocks = blocks.borrow_mut();
    if let Some(block) = blocks.get(name).and_then(Weak::upgrade) {
        return block;
    }
    if blocks.len() == blocks.capacity() {
        // Names come and go with configuration, and nobody may ever read the numbers.
        blocks.retain(|_, block| block.strong_count() > 0);
    }
    let block = Rc::new(T::default());
    blocks.insert(name.clone(), Rc::downgrade(&block));
    block
}

fn visit<T>(blocks: &Blocks<T>, mut each: impl FnMut(&Arc<str>, &T)) {
    blocks.borrow_mut().retain(|name, block| match block.upgrade() {
        Some(block) => {
            each(name, &block);
            true
        }
        None => false,
    });
}

impl StatsArena {
    pub(crate) fn cluster(&self, name: &Arc<str>) -> Rc<ClusterStats> {
        find_or_make(&self.clusters, name)
    }

    pub(crate) fn listener(&self, address: &Arc<str>) -> Rc<ListenerStats> {
        find_or_make(&self.listeners, address)
    }

    pub(crate) fn http(&self, prefix: &Arc<str>) -> Rc<HttpStats> {
        find_or_make(&self.http, prefix)
    }

    pub(crate) fn http1_codec(&self) -> &Rc<Http1CodecStats> {
        self.http1_codec.get_or_init(Rc::default)
    }

    pub(crate) fn http2_codec(&self) -> &Rc<Http2CodecStats> {
        self.http2_codec.get_or_init(Rc::default)
    }

    /// `name`: see [`Scope::Route`].
    pub(crate) fn route(&self, name: &Arc<str>) -> Rc<RouteStats> {
        find_or_make(&self.routes, name)
    }

    pub(crate) fn tcp(&self, prefix: &Arc<str>) -> Rc<TcpStats> {
        find_or_make(&self.tcp, prefix)
    }

    pub(crate) fn cors(&self, prefix: &Arc<str>) -> Rc<CorsStats> {
        find_or_make(&self.cors, prefix)
    }

    /// `name`: see [`Scope::ExtAuthz`].
    pub(crate) fn ext_authz(&self, name: &Arc<str>) -> Rc<ExtAuthzStats> {
        find_or_make(&self.ext_authz, name)
    }

    /// `name`: see [`Scope::ClusterExtAuthz`].
    pub(crate) fn cluster_ext_authz(&self, name: &Arc<str>) -> Rc<ClusterExtAuthzStats> {
        find_or_make(&self.cluster_ext_authz, name)
    }

    pub(crate) fn network_ext_authz(&self, prefix: &Arc<str>) -> Rc<NetworkExtAuthzStats> {
        find_or_make(&self.network_ext_authz, prefix)
    }

    /// `name`: see [`Scope::Jwt`].
    pub(crate) fn jwt(&self, name: &Arc<str>) -> Rc<JwtStats> {
        find_or_make(&self.jwt, name)
    }

    /// `name`: see [`Scope::Rbac`].
    pub(crate) fn rbac(&self, name: &Arc<str>) -> Rc<RbacStats> {
        find_or_make(&self.rbac, name)
    }

    pub(crate) fn rbac_shadow(&self, name: &Arc<str>) -> Rc<RbacShadowStats> {
        find_or_make(&self.rbac_shadow, name)
    }

    /// `name`: see [`Scope::NetworkRbac`].
    pub(crate) fn network_rbac(&self, name: &Arc<str>) -> Rc<RbacStats> {
        find_or_make(&self.network_rbac, name)
    }

    pub(crate) fn network_rbac_shadow(&self, name: &Arc<str>) -> Rc<RbacShadowStats> {
        find_or_make(&self.network_rbac_shadow, name)
    }

    pub(crate) fn fault(&self, prefix: &Arc<str>) -> Rc<FaultStats> {
        find_or_make(&self.faults, prefix)
    }

    pub(crate) fn fault_client(&self, prefix: &str, client: &str) -> Rc<FaultClientStats> {
        find_or_make(&self.fault_clients, &format!("{prefix}\n{client}").into())
    }

    pub(crate) fn cluster_tls(&self, name: &Arc<str>) -> Rc<TlsStats> {
        find_or_make(&self.cluster_tls, name)
    }

    pub(crate) fn listener_tls(&self, address: &Arc<str>) -> Rc<TlsStats> {
        find_or_make(&self.listener_tls, address)
    }

    /// Copies all numbers out.
    pub(crate) fn read(&self) -> ArenaReading {
        let mut out = ArenaReading::new();
        visit(&self.clusters, |name, block| out.push((Scope::Cluster, name.clone(), block.read())));
        visit(&self.cors, |name, block| out.push((Scope::Cors, name.clone(), block.read())));
        visit(&self.faults, |name, block| out.push((Scope::Fault, name.clone(), block.read())));
        visit(&self.fault_clients, |name, block| {
            out.push((Scope::FaultClient, name.clone(), block.read()));
        });
        visit(&self.listeners, |name, block| out.push((Scope::Listener, name.clone(), block.read())));
        visit(&self.http, |name, block| out.push((Scope::Http, name.clone(), block.read())));
        let codecs = [
            self.http1_codec.get().map(|block| (Scope::Http1Codec, Arc::default(), block.read())),
            self.http2_codec.get().map(|block| (Scope::Http2Codec, Arc::default(), block.read())),
        ];
        out.extend(codecs.into_iter().flatten());
        visit(&self.ext_authz, |name, block| out.push((Scope::ExtAuthz, name.clone(), block.read())));
        visit(&self.cluster_ext_authz, |name, block| {
            out.push((Scope::ClusterExtAuthz, name.clone(), block.read()));
        });
        visit(&self.network_ext_authz, |name, block| {
            out.push((Scope::NetworkExtAuthz, name.clone(), block.read()));
        });
        visit(&self.jwt, |name, block| out.push((Scope::Jwt, name.clone(), block.read())));
        visit(&self.rbac, |name, block| out.push((Scope::Rbac, name.clone(), block.read())));
        visit(&self.rbac_shadow, |name, block| out.push((Scope::RbacShadow, name.clone(), block.read())));
        visit(&self.network_rbac, |name, block| out.push((Scope::NetworkRbac, name.clone(), block.read())));
        visit(&self.network_rbac_shadow, |name, block| {
            out.push((Scope::NetworkRbacShadow, name.clone(), block.read()));
        });
        visit(&self.routes, |name, block| out.push((Scope::Route, name.clone(), block.read())));
        visit(&self.tcp, |name, block| out.push((Scope::Tcp, name.clone(), block.read())));
        visit(&self.cluster_tls, |name, block| out.push((Scope::ClusterTls, name.clone(), block.read())));
        visit(&self.listener_tls, |name, block| out.push((Scope::ListenerTls, name.clone(), block.read())));
        out
    }

    /// Sets all counters to zero (`/reset_counters`).
    pub(crate) fn reset_counters(&self) {
        visit(&self.clusters, |_, block| block.reset_counters());
        visit(&self.cors, |_, block| block.reset_counters());
        visit(&self.faults, |_, block| block.reset_counters());
        visit(&self.fault_clients, |_, block| block.reset_counters());
        visit(&self.listeners, |_, block| block.reset_counters());
        visit(&self.http, |_, block| block.reset_counters());
        self.http1_codec.get().into_iter().for_each(|block| block.reset_counters());
        self.http2_codec.get().into_iter().for_each(|block| block.reset_counters());
        visit(&self.ext_authz, |_, block| block.reset_counters());
        visit(&self.cluster_ext_authz, |_, block| block.reset_counters());
        visit(&self.network_ext_authz, |_, block| block.reset_counters());
        visit(&self.jwt, |_, block| block.reset_counters());
        visit(&self.rbac, |_, block| block.reset_counters());
        visit(&self.rbac_shadow, |_, block| block.reset_counters());
        visit(&self.network_rbac, |_, block| block.reset_counters());
        visit(&self.network_rbac_shadow, |_, block| block.reset_counters());
        visit(&self.routes, |_, block| block.reset_counters());
        visit(&self.tcp, |_, block| block.reset_counters());
        visit(&self.cluster_tls, |_, block| block.reset_counters());
        visit(&self.listener_tls, |_, block| block.reset_counters());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_shared_while_used_and_gone_afterwards() {
        let arena = StatsArena::default();
        let name: Arc<str> = "c".into();
        let first = arena.cluster(&name);
        first.upstream_rq_total.inc();
        assert_eq!(arena.cluster(&name).upstream_rq_total.get(), 1);
        assert_eq!(arena.read().len(), 1);
        arena.reset_counters();
        assert_eq!(first.upstream_rq_total.get(), 0);
        drop(first);
        assert!(arena.read().is_empty());
    }
}
