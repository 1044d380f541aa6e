//! Turns accepted resources (`ir`) into what a snapshot holds: names become slots, unchanged filter chains stay the same object.

use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use ahash::{AHashMap, RandomState};
use lateen_ir as ir;
use lateen_xds::pb::envoy::config::listener::v3::Listener as ListenerMessage;
use prost::Message;

use crate::dial::socket_option_supported;
use crate::dns_cache::{DnsCache, DnsCaches};
use crate::filters::{self, Filter, NewFetch};
use crate::snapshot::{
    ChainConfig, ClusterSlot, HttpConfig, ListenerConfig, RouteConfig, RouteSlot, RoutesRef, TcpConfig,
    Terminal, Transports, stat_name,
};
use crate::tls::{ClientTls, Secrets, ServerTls};

/// Gives every name its slot, for the engine's life.
#[derive(Default)]
pub(crate) struct Slots {
    by_name: Arc<AHashMap<Arc<str>, u32>>,
}

impl Slots {
    /// The name's slot, a new one if it has none.
    pub(crate) fn of(&mut self, name: &Arc<str>) -> u32 {
        if let Some(slot) = self.by_name.get(name) {
            return *slot;
        }
        let slot = self.by_name.len() as u32;
        Arc::make_mut(&mut self.by_name).insert(name.clone(), slot);
        slot
    }

    /// Number of slots given.
    pub(crate) fn len(&self) -> usize {
        self.by_name.len()
    }

    /// All names with their slots.
    pub(crate) fn names(&self) -> &Arc<AHashMap<Arc<str>, u32>> {
        &self.by_name
    }
}

/// What configuration speaks of by name: slots of every kind, and caches of names.
#[derive(Default)]
pub(crate) struct Names {
    pub(crate) clusters: Slots,
    pub(crate) routes: Slots,
    pub(crate) filters: Slots,
    /// Names under which routes count for themselves.
    pub(crate) stats: Slots,
    pub(crate) caches: DnsCaches,
}

/// A cluster that can be had here.
pub(crate) fn read_cluster(bytes: &[u8]) -> Result<ir::Cluster, String> {
    let cluster = ir::Cluster::from_bytes(bytes).map_err(|error| error.to_string())?;
    unsupported_in_cluster(&cluster).map_or(Ok(cluster), Err)
}

/// A listener that can be had here, and its message.
pub(crate) fn read_listener(bytes: &[u8]) -> Result<(Arc<ir::Listener>, ListenerMessage), String> {
    let listener = ir::Listener::from_bytes(bytes).map_err(|error| error.to_string())?;
    if let Some(reason) = unsupported_in_listener(&listener) {
        return Err(reason);
    }
    let message = ListenerMessage::decode(bytes).map_err(|error| error.to_string())?;
    Ok((Arc::new(listener), message))
}

/// A content hash that is the same for the same bytes as long as the engine runs.
pub(crate) fn fingerprint(parts: &[&[u8]]) -> u64 {
    let mut hasher = RandomState::with_seeds(1, 2, 3, 4).build_hasher();
    for part in parts {
        hasher.write_usize(part.len());
        hasher.write(part);
    }
    hasher.finish()
}

/// A route configuration with its clusters' slots.
pub(crate) fn routes(config: Arc<ir::RouteConfiguration>, names: &mut Names) -> Arc<RouteConfig> {
    let slots = slots(config.table.clusters(), names);
    let filters = config.filters.iter().map(|name| names.filters.of(name)).collect();
    let used = config.used_stats();
    let stats = config.stats.iter().zip(0..);
    let stats = stats.map(|(name, number)| used.contains(&number).then(|| names.stats.of(name))).collect();
    Arc::new(RouteConfig { ir: config, slots, filters, stats })
}

fn slots(clusters: &[Arc<str>], names: &mut Names) -> Box<[ClusterSlot]> {
    clusters.iter().map(|name| names.clusters.of(name)).collect()
}

/// A listener that is not bound yet. Chains of `before` with the same content are taken over, and with them their connections.
pub(crate) fn listener(
    config: Arc<ir::Listener>,
    message: ListenerMessage,
    before: Option<&ListenerConfig>,
    names: &mut Names,
    secrets: &Secrets,
) -> Result<ListenerConfig, String> {
    let mut base = message;
    let chains = std::mem::take(&mut base.filter_chains);
    let default = base.default_filter_chain.take();
    let base = base.encode_to_vec();
    let mut build = |path: &str, chain: &Arc<ir::FilterChain>, bytes: Vec<u8>| {
        let fingerprint = fingerprint(&[&base, &bytes]);
        let known = before
            .into_iter()
            .flat_map(|before| before.chains.iter().chain(&before.default_chain))
            .find(|known| known.fingerprint == fingerprint);
        if let Some(known) = known {
            return Ok(known.clone());
        }
        let tls = match &chain.transport {
            ir::DownstreamTransport::Plaintext => None,
            ir::DownstreamTransport::Tls(tls) => Some(
                ServerTls::new(tls.clone(), secrets)
                    .map_err(|reason| format!("{path}.transport_socket.typed_config: {reason}"))?,
            ),
        };
        let terminal = terminal(chain, names).map_err(|reason| format!("{path}.filters: {reason}"))?;
        let asked = chain.filters.iter().filter_map(|filter| match filter {
            ir::NetworkFilter::ExtAuthz(filter) => Some(names.clusters.of(&filter.service.cluster)),
            _ => None,
        });
        let asked = asked.collect();
        Ok::<_, String>(Arc::new(ChainConfig { ir: chain.clone(), fingerprint, terminal, asked, tls }))
    };
    let listed = config
        .filter_chains
        .iter()
        .zip(chains.iter().map(Message::encode_to_vec))
        .enumerate()
        .map(|(index, (chain, bytes))| build(&format!("filter_chains[{index}]"), chain, bytes))
        .collect::<Result<_, _>>()?;
    let default_bytes = default.map(|chain| chain.encode_to_vec()).unwrap_or_default();
    let default_chain = config
        .default_filter_chain
        .as_ref()
        .map(|chain| build("default_filter_chain", chain, default_bytes))
        .transpose()?;
    let stats = match &config.stat_prefix {
        Some(prefix) => stat_name(prefix),
        None => stat_name(&config.address.to_string()),
    };
    Ok(ListenerConfig {
        ir: config.clone(),
        stat_name: stats,
        chains: listed,
        default_chain,
        bound: Vec::new(),
    })
}

/// TLS towards a cluster's endpoints.
pub(crate) fn transports(cluster: &ir::Cluster, secrets: &Secrets) -> Result<Transports, String> {
    let by_request = cluster.http.names.auto_san_validation;
    let make = |path: &str, transport: &ir::UpstreamTransport| {
        let tls = transport.tls().map(|tls| ClientTls::new(tls.clone(), by_request, secrets));
        tls.transpose().map_err(|reason| format!("{path}transport_socket.typed_config: {reason}"))
    };
    let matched = cluster.transport_matches.iter().enumerate();
    Ok(Transports {
        general: make("", &cluster.transport)?,
        matched: matched
            .map(|(index, one)| make(&format!("transport_socket_matches[{index}]."), &one.transport))
            .collect::<Result<_, _>>()?,
    })
}

fn terminal(chain: &ir::FilterChain, names: &mut Names) -> Result<Terminal, String> {
    Ok(match &chain.terminal {
        Some(ir::TerminalFilter::Http(hcm)) => Terminal::Http(Arc::new(http(hcm.clone(), names)?)),
        Some(ir::TerminalFilter::Tcp(tcp)) => Terminal::Tcp(Arc::new(TcpConfig {
            ir: tcp.clone(),
            stat_name: stat_name(&tcp.stat_prefix),
            slots: slots(&tcp.clusters, names),
            sni: sni(chain, names)?,
        })),
        Some(ir::TerminalFilter::Echo) => Terminal::Echo,
        Some(ir::TerminalFilter::DirectResponse(bytes)) => Terminal::DirectResponse(bytes.clone()),
        _ => Terminal::Close,
    })
}

/// Where names that TLS asks for are looked up, and the port that is meant, if not the listener's.
type SniLookUp = (Arc<DnsCache>, Option<u16>);

fn sni(chain: &ir::FilterChain, names: &mut Names) -> Result<Option<SniLookUp>, String> {
    let found = chain.filters.iter().find_map(|filter| match filter {
        ir::NetworkFilter::SniDynamicForwardProxy(filter) => Some(filter),
        _ => None,
    });
    let Some(filter) = found else { return Ok(None) };
    Ok(Some((names.caches.of(&filter.cache)?, (filter.port > 0).then_some(filter.port))))
}

fn http(hcm: Arc<ir::HttpConnectionManager>, names: &mut Names) -> Result<HttpConfig, String> {
    let routes = match &hcm.routes {
        ir::RouteSource::Inline(config) => RoutesRef::Inline(routes(config.clone(), names)),
        ir::RouteSource::Rds { name, .. } => RoutesRef::Rds(names.routes.of(name)),
    };
    let logs = !hcm.access_log.is_empty()
        || !hcm.local_reply.mappers.is_empty()
        || hcm.router().is_some_and(|router| !router.upstream_log.is_empty());
    let filters = filters::compile(&hcm, names)?;
    Ok(HttpConfig { stat_name: stat_name(&hcm.stat_prefix), routes, filters, logs, hcm })
}

/// RDS names of a listener, with how long to wait for each.
pub(crate) fn rds_names(
    listener: &ir::Listener,
) -> impl Iterator<Item = (&Arc<str>, Option<std::time::Duration>)> {
    listener.filter_chains.iter().chain(&listener.default_filter_chain).filter_map(|chain| {
        match &chain.terminal {
            Some(ir::TerminalFilter::Http(hcm)) => match &hcm.routes {
                ir::RouteSource::Rds { name, initial_fetch_timeout } => Some((name, *initial_fetch_timeout)),
                ir::RouteSource::Inline(_) => None,
            },
            _ => None,
        }
    })
}

/// Routes that stand in a listener itself.
pub(crate) fn inline_routes(listener: &ListenerConfig) -> impl Iterator<Item = &Arc<RouteConfig>> {
    listener.chains.iter().chain(&listener.default_chain).filter_map(|chain| match &chain.terminal {
        Terminal::Http(http) => match &http.routes {
            RoutesRef::Inline(config) => Some(config),
            RoutesRef::Rds(_) => None,
        },
        _ => None,
    })
}

/// Keys that a listener's filters fetch before a request needs them, where nobody has begun yet.
pub(crate) fn new_fetches(listener: &ListenerConfig) -> impl Iterator<Item = NewFetch> {
    let filters = listener.chains.iter().chain(&listener.default_chain).map(|chain| match &chain.terminal {
        Terminal::Http(http) => &http.filters[..],
        Terminal::Tcp(_) | Terminal::Close | Terminal::Echo | Terminal::DirectResponse(_) => &[],
    });
    filters.flatten().flat_map(Filter::new_fetches)
}

/// Slots of clusters and routes that a listener refers to.
pub(crate) fn references(listener: &ListenerConfig) -> (Vec<ClusterSlot>, Vec<RouteSlot>) {
    let (mut clusters, mut routes) = (Vec::new(), Vec::new());
    for chain in listener.chains.iter().chain(&listener.default_chain) {
        clusters.extend_from_slice(&chain.asked);
        match &chain.terminal {
            Terminal::Tcp(tcp) => clusters.extend_from_slice(&tcp.slots),
            Terminal::Http(http) => {
                clusters.extend(http.filters.iter().flat_map(Filter::clusters));
                match &http.routes {
                    RoutesRef::Inline(config) => clusters.extend_from_slice(&config.slots),
                    RoutesRef::Rds(slot) => routes.push(*slot),
                }
            }
            Terminal::Close | Terminal::Echo | Terminal::DirectResponse(_) => {}
        }
    }
    (clusters, routes)
}

/// A listener's log that tells of nothing but connections without a filter chain, as Istio's does. A wider one would have to
/// tell of every connection, which the engine leaves to the filters.
fn only_unmatched(log: &ir::AccessLog) -> bool {
    matches!(&log.filter, Some(ir::LogFilter::ResponseFlags(flags)) if flags.iter().map(|flag| &**flag).eq(["NR"]))
}

/// Options of IP sockets, which Unix sockets can't have (Envoy refuses them, too).
fn unsupported_at_pipes(listener: &ir::Listener) -> Option<String> {
    let pipe = |address: &ir::HostAddress| matches!(address, ir::HostAddress::Pipe(_));
    let additional = &listener.additional_addresses;
    if !pipe(&listener.address) && !additional.iter().any(|additional| pipe(&additional.address)) {
        return None;
    }
    let options = [
        (listener.transparent, "transparent"),
        (listener.freebind, "freebind"),
        (listener.tcp_keepalive.is_some(), "tcp_keepalive"),
        (!listener.socket_options.is_empty(), "socket_options"),
    ];
    let found = options.iter().find(|(is_set, _)| *is_set).map(|(_, field)| (*field).to_owned());
    let own = |index: usize| format!("additional_addresses[{index}]: options of its own");
    let found = found.or_else(|| {
        let has_own = |one: &ir::AdditionalAddress| {
            pipe(&one.address) && (one.tcp_keepalive.is_some() || one.socket_options.is_some())
        };
        additional.iter().position(has_own).map(own)
    });
    found.map(|field| format!("{field}: not supported for listeners at Unix sockets (pipe)"))
}

/// What `ir` accepts and the engine can't do, with the path.
fn unsupported_in_listener(listener: &ir::Listener) -> Option<String> {
    let unknown = listener.socket_options.iter().position(|option| !socket_option_supported(option));
    if let Some(index) = unknown {
        return Some(format!(
            "socket_options[{index}]: this level and name (or a buffer value) is not supported"
        ));
    }
    if listener.filter_chains.is_empty() && listener.default_filter_chain.is_none() {
        return Some("filter_chains: at least one is needed".to_owned());
    }
    if let Some(reason) = unsupported_at_pipes(listener) {
        return Some(reason);
    }
    let plain = [
        (
            !listener.access_log.iter().all(only_unmatched),
            "access_log",
            "give it a response_flag_filter with NR alone (connections without a filter chain), and put other logs into the connection manager or TCP proxy",
        ),
        (
            listener.exact_balance,
            "connection_balance_config.exact_balance",
            "SO_REUSEPORT spreads connections; leave it out",
        ),
        (listener.tcp_fast_open_queue_length.is_some(), "tcp_fast_open_queue_length", "leave it out"),
        (
            listener.max_connections_to_accept_per_socket_event.is_some(),
            "max_connections_to_accept_per_socket_event",
            "leave it out",
        ),
    ];
    if let Some((_, path, advice)) = plain.iter().find(|(set, ..)| *set) {
        return Some(format!("{path}: is not supported; {advice}"));
    }
    listener
        .filter_chains
        .iter()
        .enumerate()
        .map(|(index, chain)| (format!("filter_chains[{index}]"), chain))
        .chain(listener.default_filter_chain.iter().map(|chain| ("default_filter_chain".to_owned(), chain)))
        .find_map(|(path, chain)| {
            Some(format!("{path}.{}: is not supported; leave it out", unsupported_in_chain(chain)?))
        })
}

fn unsupported_in_chain(chain: &ir::FilterChain) -> Option<&'static str> {
    match chain.terminal.as_ref()? {
        ir::TerminalFilter::Http(hcm) => {
            let fields = [
                (hcm.access_log_flush_interval.is_some(), "access_log_options.access_log_flush_interval"),
                (hcm.flush_access_log_on_new_request, "access_log_options.flush_access_log_on_new_request"),
                (
                    hcm.router().is_some_and(|router| router.respect_expected_rq_timeout),
                    "respect_expected_rq_timeout",
                ),
            ];
            fields.iter().find(|(set, _)| *set).map(|(_, path)| *path)
        }
        ir::TerminalFilter::Tcp(tcp) => {
            let fields = [
                (tcp.access_log_flush_interval.is_some(), "access_log_options.access_log_flush_interval"),
                (tcp.flush_access_log_on_connected, "access_log_options.flush_access_log_on_connected"),
            ];
            fields.iter().find(|(set, _)| *set).map(|(_, path)| *path)
        }
        _ => None,
    }
}

/// The same for a cluster.
fn unsupported_in_cluster(cluster: &ir::Cluster) -> Option<String> {
    if cluster.connection_pool_per_downstream_connection {
        return Some("connection_pool_per_downstream_connection: is not supported; leave it out".to_owned());
    }
    if cluster.http.names.auto_san_validation && !cluster.http.names.auto_sni {
        let reason = "is supported together with auto_sni only";
        return Some(format!("upstream_http_protocol_options.auto_san_validation: {reason}"));
    }
    let bind = cluster.bind.as_ref()?;
    let unknown = bind.socket_options.iter().position(|option| !socket_option_supported(option))?;
    Some(format!(
        "upstream_bind_config.socket_options[{unknown}]: this level and name (or a buffer value) is not supported"
    ))
}

/// What can't be done with these endpoints of a cluster, with the field that asks for it.
pub(crate) fn unsupported_endpoints(
    cluster: &ir::Cluster,
    endpoints: &ir::ClusterLoadAssignment,
) -> Option<String> {
    if !endpoints.has_pipes() {
        return None;
    }
    let asked = [
        (cluster.health_check.is_some(), "health_checks"),
        (cluster.outlier_detection.is_some(), "outlier_detection"),
        (cluster.lb_policy.slow_start().is_some(), "slow_start_config"),
    ];
    let (_, field) = asked.iter().find(|(set, _)| *set)?;
    Some(format!("{field}: is not supported for endpoints that are Unix sockets (pipe)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_stable() {
        let mut slots = Slots::default();
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        assert_eq!((slots.of(&a), slots.of(&b), slots.of(&a)), (0, 1, 0));
        assert_eq!(slots.len(), 2);
    }

    #[test]
    fn fingerprints_see_where_parts_end() {
        assert_eq!(fingerprint(&[b"ab", b"c"]), fingerprint(&[b"ab", b"c"]));
        assert_ne!(fingerprint(&[b"ab", b"c"]), fingerprint(&[b"a", b"bc"]));
    }
}
