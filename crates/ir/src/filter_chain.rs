//! Filter chain match: Envoy's most-specific-first choice of a filter chain.
//!
//! Source of the behaviour: the comments of `listener.v3.FilterChainMatch` ("The following order applies …").

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use smallvec::SmallVec;

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
    /// Chains by destination port; `None` holds those for every port.
    by_port: HashMap<Option<u16>, Vec<usize>>,
}

/// Chains that are still possible.
type Candidates = SmallVec<[usize; 16]>;

impl FilterChainIndex {
    /// An index over matches in the order of the listener's chains.
    ///
    /// # Errors
    /// Two chains that take the same connections: their positions, as Envoy refuses them too.
    pub fn new(chains: Vec<FilterChainMatch>) -> Result<Self, (usize, usize)> {
        let mut seen = HashMap::new();
        let mut by_port: HashMap<Option<u16>, Vec<usize>> = HashMap::new();
        for (position, chain) in chains.iter().enumerate() {
            for key in keys(chain) {
                if let Some(other) = seen.insert(key, position)
                    && other != position
                {
                    return Err((other, position));
                }
            }
            by_port.entry(chain.destination_port).or_default().push(position);
        }
        Ok(Self { chains, by_port })
    }

    /// Position of the chain in [`Listener::filter_chains`](crate::Listener::filter_chains); `None`: use the default chain.
    ///
    /// One criterion after the other narrows the choice to the most specific, and a choice once made is not taken back: when a later
    /// criterion fits none of what is left, nothing matches.
    pub fn find(&self, connection: &ConnectionView<'_>) -> Option<usize> {
        let port = Some(connection.destination.port());
        let candidates = self.by_port.get(&port).or_else(|| self.by_port.get(&None))?;
        let candidates: Candidates = candidates.iter().copied().collect();

        let candidates =
            self.narrow(&candidates, |chain| longest(&chain.prefix_ranges, connection.destination.ip()))?;
        let candidates =
            self.narrow(&candidates, |chain| name_rank(&chain.server_names, connection.server_name))?;
        let candidates = self.narrow(&candidates, |chain| match chain.transport_protocol.as_str() {
            "" => Some(0),
            protocol => (protocol == connection.transport_protocol).then_some(1),
        })?;
        let candidates = self.narrow(&candidates, |chain| {
            protocol_rank(&chain.application_protocols, connection.application_protocols)
        })?;
        let candidates = self.narrow(&candidates, |chain| {
            longest(&chain.direct_source_prefix_ranges, connection.direct_source.ip())
        })?;
        let local = is_local(connection);
        let candidates = self.narrow(&candidates, |chain| match chain.source_type {
            SourceType::Any => Some(0),
            SourceType::SameIpOrLoopback => local.then_some(1),
            SourceType::External => (!local).then_some(1),
        })?;
        let candidates =
            self.narrow(&candidates, |chain| longest(&chain.source_prefix_ranges, connection.source.ip()))?;
        let candidates = self.narrow(&candidates, |chain| {
            if chain.source_ports.is_empty() {
                return Some(0);
            }
            chain.source_ports.contains(&connection.source.port()).then_some(1)
        })?;
        candidates.first().copied()
    }

    /// The candidates of the highest rank; `None` when none fits.
    fn narrow(
        &self,
        candidates: &Candidates,
        rank: impl Fn(&FilterChainMatch) -> Option<usize>,
    ) -> Option<Candidates> {
        let mut best = None;
        let mut kept = Candidates::new();
        for &candidate in candidates {
            let rank = rank(&self.chains[candidate]);
            if rank.is_none() || rank < best {
                continue;
            }
            if rank > best {
                best = rank;
                kept.clear();
            }
            kept.push(candidate);
        }
        best.map(|_| kept)
    }
}

/// Rank by the longest matching prefix. No ranges at all count like `0.0.0.0/0` and `::/0`.
fn longest(ranges: &[IpNet], address: IpAddr) -> Option<usize> {
    if ranges.is_empty() {
        return Some(1);
    }
    let fits = ranges.iter().filter(|range| range.contains(&address));
    fits.map(|range| usize::from(range.prefix_len()) + 1).max()
}

/// Rank by the longest matching name; the exact name is above all wildcards.
fn name_rank(names: &[String], server_name: &str) -> Option<usize> {
    if names.is_empty() {
        return Some(0);
    }
    let rank = |name: &String| match name.strip_prefix('*') {
        None => (name == server_name).then_some(usize::MAX),
        // Something must stand before the wildcard's dot.
        Some(suffix) => {
            (server_name.len() > suffix.len() && server_name.ends_with(suffix)).then_some(suffix.len())
        }
    };
    names.iter().filter_map(rank).max()
}

/// Rank by the client's order of preference.
fn protocol_rank(protocols: &[String], offered: &[&str]) -> Option<usize> {
    if protocols.is_empty() {
        return Some(0);
    }
    let position = offered.iter().position(|offered| protocols.iter().any(|protocol| protocol == offered))?;
    Some(offered.len() - position)
}

/// The same address on both ends, or a loopback client.
fn is_local(connection: &ConnectionView<'_>) -> bool {
    let source = connection.source.ip().to_canonical();
    source.is_loopback() || source == connection.destination.ip().to_canonical()
}

/// One concrete combination of criteria, for finding duplicates.
type Key<'a> = (
    Option<u16>,
    Option<IpNet>,
    &'a str,
    &'a str,
    &'a str,
    Option<IpNet>,
    SourceType,
    Option<IpNet>,
    Option<u16>,
);

/// All combinations of a chain's criteria.
fn keys(chain: &FilterChainMatch) -> Vec<Key<'_>> {
    fn each<T: Copy>(values: &[T]) -> Vec<Option<T>> {
        if values.is_empty() { vec![None] } else { values.iter().copied().map(Some).collect() }
    }
    fn texts(values: &[String]) -> Vec<&str> {
        if values.is_empty() { vec![""] } else { values.iter().map(String::as_str).collect() }
    }
    let mut keys = Vec::new();
    for destination in each(&chain.prefix_ranges) {
        for name in texts(&chain.server_names) {
            for protocol in texts(&chain.application_protocols) {
                for direct in each(&chain.direct_source_prefix_ranges) {
                    for source in each(&chain.source_prefix_ranges) {
                        for port in each(&chain.source_ports) {
                            keys.push((
                                chain.destination_port,
                                destination,
                                name,
                                chain.transport_protocol.as_str(),
                                protocol,
                                direct,
                                chain.source_type,
                                source,
                                port,
                            ));
                        }
                    }
                }
            }
        }
    }
    keys
}

#[cfg(test)]
#[path = "filter_chain_tests.rs"]
mod tests;
