//! Listeners and network filters.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::access_log::AccessLog;
use crate::common::{ClusterRef, SocketOption, TcpKeepalive};
use crate::dynamic_forward_proxy::SniDynamicForwardProxy;
use crate::endpoint::HostAddress;
use crate::ext_authz::NetworkExtAuthz;
use crate::filter_chain::{FilterChainIndex, FilterChainMatch};
use crate::hcm::HttpConnectionManager;
use crate::rbac::RbacFilter;
use crate::tls::{DownstreamTls, ProxyProtocolFilter};

/// A listener ready to run (Envoy's `listener.v3.Listener`).
#[derive(Clone, Debug)]
pub struct Listener {
    /// Name; xDS identity.
    pub name: Arc<str>,
    /// Address to bind, and what `use_original_dst` listeners hand connections over by. Port 0: any free port. What is at a Unix
    /// socket's path before is removed.
    pub address: HostAddress,
    /// Permissions of a Unix socket's file; 0: as the process makes files.
    pub pipe_mode: u32,
    /// Whether a socket at an address of IPv6 takes IPv4 too. Default false.
    pub ipv4_compat: bool,
    /// More addresses to bind.
    pub additional_addresses: Vec<AdditionalAddress>,
    /// Replaces the address in stat names.
    pub stat_prefix: Option<Arc<str>>,
    /// Filter chains by position; [`Self::chain_index`] chooses among them.
    pub filter_chains: Vec<Arc<FilterChain>>,
    /// Used when no chain matches. Without it the connection is closed.
    pub default_filter_chain: Option<Arc<FilterChain>>,
    /// Chooses a chain for a connection.
    pub chain_index: FilterChainIndex,
    /// Hand the connection to the listener bound (or configured with `bind_to_port: false`) on the original destination address.
    pub use_original_dst: bool,
    /// False: no socket; connections only come from a listener with `use_original_dst`.
    pub bind_to_port: bool,
    /// In order.
    pub listener_filters: Vec<ListenerFilter>,
    /// How long listener filters may take. Default 15 s; `None`: no limit.
    pub listener_filters_timeout: Option<Duration>,
    /// After the time-out: go on with what is known (true) or close (false).
    pub continue_on_listener_filters_timeout: bool,
    /// Soft limit for buffers of a connection, in bytes. Default 1 MiB.
    pub per_connection_buffer_limit_bytes: u32,
    /// `SO_REUSEPORT`, one socket for each worker. Default true.
    pub reuse_port: bool,
    /// Spread accepted connections evenly over workers under a lock (`exact_balance`).
    pub exact_balance: bool,
    /// `listen` backlog; `None`: the system's maximum.
    pub tcp_backlog_size: Option<u32>,
    /// Most connections accepted per readiness event; `None`: as many as there are.
    pub max_connections_to_accept_per_socket_event: Option<u32>,
    /// `TCP_FASTOPEN`: most connections that wait for their handshake to end. Default `None`: it is off.
    pub tcp_fast_open_queue_length: Option<u32>,
    /// `IP_TRANSPARENT`.
    pub transparent: bool,
    /// `IP_FREEBIND`.
    pub freebind: bool,
    /// Raw options for the listening sockets.
    pub socket_options: Vec<SocketOption>,
    /// Keep-alive of accepted connections.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Logs for connections that reach no filter chain and for each connection's end at the listener level.
    pub access_log: Vec<AccessLog>,
}

/// One more address of a listener.
#[derive(Clone, Debug)]
pub struct AdditionalAddress {
    /// Address to bind.
    pub address: HostAddress,
    /// As [`Listener::pipe_mode`].
    pub pipe_mode: u32,
    /// Whether a socket at an address of IPv6 takes IPv4 too. Default false.
    pub ipv4_compat: bool,
    /// Raw options for its sockets; `None`: those of the listener.
    pub socket_options: Option<Vec<SocketOption>>,
    /// Keep-alive; `None`: that of the listener.
    pub tcp_keepalive: Option<TcpKeepalive>,
}

/// A listener filter and when it does not run.
#[derive(Clone, Debug)]
pub struct ListenerFilter {
    /// What it does.
    pub kind: ListenerFilterKind,
    /// Skipped for connections matching this.
    pub disabled: Option<ConnectionPredicate>,
}

/// The listener filters that exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenerFilterKind {
    /// Restores the destination before redirection (`SO_ORIGINAL_DST`).
    OriginalDst,
    /// Peeks at the TLS ClientHello: transport protocol, SNI, ALPN.
    TlsInspector,
    /// Peeks at plaintext: `http/1.0`, `http/1.1` or `h2c`.
    HttpInspector,
    /// Takes the addresses of both ends from the PROXY protocol's header.
    ProxyProtocol(ProxyProtocolFilter),
}

/// Envoy's `ListenerFilterChainMatchPredicate`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectionPredicate {
    /// Every one holds.
    All(Vec<ConnectionPredicate>),
    /// One holds.
    Any(Vec<ConnectionPredicate>),
    /// It does not hold.
    Not(Box<ConnectionPredicate>),
    /// Always.
    Always,
    /// The (restored) destination port is in `start..end`.
    DestinationPort {
        /// First port.
        start: u16,
        /// First port after the range; 65 536 is possible.
        end: u32,
    },
}

impl ConnectionPredicate {
    /// Whether it holds for a connection to this port.
    pub fn holds(&self, destination_port: u16) -> bool {
        match self {
            Self::All(rules) => rules.iter().all(|rule| rule.holds(destination_port)),
            Self::Any(rules) => rules.iter().any(|rule| rule.holds(destination_port)),
            Self::Not(rule) => !rule.holds(destination_port),
            Self::Always => true,
            Self::DestinationPort { start, end } => {
                (u32::from(*start)..*end).contains(&u32::from(destination_port))
            }
        }
    }
}

/// What happens to a connection once chosen (Envoy's `FilterChain`).
#[derive(Clone, Debug)]
pub struct FilterChain {
    /// Name, for logs and dumps; may be empty.
    pub name: Arc<str>,
    /// Which connections it takes.
    pub matching: FilterChainMatch,
    /// TLS of the downstream connection.
    pub transport: DownstreamTransport,
    /// How long the handshake may take. `None`: as long as an idle connection.
    pub transport_connect_timeout: Option<Duration>,
    /// Filters that run before the terminal one.
    pub filters: Vec<NetworkFilter>,
    /// The last filter, which takes the connection. `None`: an empty chain; the connection is closed at once, as with Envoy.
    pub terminal: Option<TerminalFilter>,
}

/// Downstream transport.
#[derive(Clone, Debug)]
pub enum DownstreamTransport {
    /// Plaintext (`envoy.transport_sockets.raw_buffer` or none).
    Plaintext,
    /// TLS.
    Tls(Arc<DownstreamTls>),
}

/// A network filter that is not terminal.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum NetworkFilter {
    /// Closes connections that policies do not allow, when their first byte comes.
    Rbac(Arc<RbacFilter>),
    /// Looks up the name that TLS asks for, before a [`TcpProxy`].
    SniDynamicForwardProxy(Arc<SniDynamicForwardProxy>),
    /// Asks others about connections, when their first byte comes.
    ExtAuthz(Arc<NetworkExtAuthz>),
}

/// The filter that takes the connection.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum TerminalFilter {
    /// HTTP.
    Http(Arc<HttpConnectionManager>),
    /// TCP to a cluster.
    Tcp(Arc<TcpProxy>),
    /// Sends back what it gets (`envoy.filters.network.echo`).
    Echo,
    /// Sends these bytes and closes (`envoy.filters.network.direct_response`).
    DirectResponse(Arc<[u8]>),
}

/// Envoy's `tcp_proxy.v3.TcpProxy`.
#[derive(Clone, Debug)]
pub struct TcpProxy {
    /// Prefix of its stats.
    pub stat_prefix: Arc<str>,
    /// Clusters with weights; never empty. One entry for a plain `cluster`.
    pub targets: Vec<TcpTarget>,
    /// Sum of the weights, at least 1.
    pub total_weight: u64,
    /// Distinct cluster names, by [`ClusterRef::index`].
    pub clusters: Arc<[Arc<str>]>,
    /// Closes a connection on which nothing moved for so long. Default 1 h; `None`: never.
    pub idle_timeout: Option<Duration>,
    /// Closes a connection after so long. Default `None`: never.
    pub max_downstream_connection_duration: Option<Duration>,
    /// Connection attempts before giving up. Default 1.
    pub max_connect_attempts: u32,
    /// Pause between attempts. `None`: none.
    pub backoff: Option<Backoff>,
    /// Logs, one line for a connection (and more with the options).
    pub access_log: Vec<AccessLog>,
    /// Extra log line at this interval while connected. Default `None`: none.
    pub access_log_flush_interval: Option<Duration>,
    /// Extra log line when the upstream connection is up.
    pub flush_access_log_on_connected: bool,
    /// Clusters with consistent hashing choose by the client's address.
    pub hash_source_ip: bool,
}

/// A cluster of a TCP proxy.
#[derive(Clone, Debug)]
pub struct TcpTarget {
    /// Which cluster.
    pub cluster: ClusterRef,
    /// Its share of [`TcpProxy::total_weight`].
    pub weight: u32,
    /// What is asked of endpoints, where the cluster has subsets.
    pub metadata_match: Option<Arc<crate::MetadataCriteria>>,
}

impl Listener {
    /// Whether a listener filter looks at connections to this port.
    pub fn runs(&self, kind: ListenerFilterKind, port: u16) -> bool {
        let of_kind = self.listener_filters.iter().filter(|filter| filter.kind == kind);
        of_kind.into_iter().any(|filter| !filter.disabled.as_ref().is_some_and(|rule| rule.holds(port)))
    }
}

impl Listener {
    /// The addresses whose connections it takes. The wildcard of IPv6 that takes IPv4 too is also that of IPv4.
    pub fn socket_addresses(&self) -> impl Iterator<Item = SocketAddr> {
        let more = self.additional_addresses.iter().map(|more| (&more.address, more.ipv4_compat));
        let all = std::iter::once((&self.address, self.ipv4_compat)).chain(more);
        let all = all.filter_map(|(address, compat)| Some((address.socket()?, compat)));
        all.flat_map(|(address, compat)| {
            let both = compat && address.is_ipv6() && address.ip().is_unspecified();
            let v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port()));
            std::iter::once(address).chain(both.then_some(v4))
        })
    }
}

/// The addresses by which a listener may be found for connections to `destination`, the best first: its own, then any of its family.
pub fn listener_addresses(destination: SocketAddr) -> impl Iterator<Item = SocketAddr> {
    let any: IpAddr = match destination {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    [destination, SocketAddr::new(any, destination.port())].into_iter()
}

impl TcpProxy {
    /// The cluster for a new connection. `random` is uniformly distributed.
    pub fn pick(&self, random: u64) -> &TcpTarget {
        let mut left = random % self.total_weight.max(1);
        for target in &self.targets {
            let weight = u64::from(target.weight);
            if left < weight {
                return target;
            }
            left -= weight;
        }
        &self.targets[self.targets.len() - 1]
    }
}

/// Exponential back-off with full jitter, Envoy's `BackoffStrategy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The first pause is a random time below this.
    pub base: Duration,
    /// The bound doubles with each pause, up to this.
    pub max: Duration,
}
