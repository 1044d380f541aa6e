//! Listeners, filter chains and the small network filters.
#![allow(deprecated)]

use std::sync::Arc;
use std::time::Duration;

use lateen_xds::pb::envoy::config::core::v3 as core;
use lateen_xds::pb::envoy::config::listener::v3 as proto;
use lateen_xds::pb::envoy::extensions::filters::listener as listener_filters;
use lateen_xds::pb::envoy::extensions::filters::network;

use super::access_log::access_logs;
use super::dynamic_forward_proxy::sni_dynamic;
use super::ext_authz::network_ext_authz;
use super::hcm::http_connection_manager;
use super::rbac::network_rbac;
use super::tcp_proxy::tcp_proxy;
use super::transport_socket;
use super::values::{
    Converted, ListeningAddress, bool_or, cidrs, data_source, enumeration, listening_address, nonempty,
    number, optional, port, required, socket_options, tcp_keepalive, timeout, typed,
};
use crate::error::At;
use crate::support::fields;
use crate::{
    AdditionalAddress, ConnectionPredicate, DownstreamTransport, FilterChain, FilterChainIndex,
    FilterChainMatch, Listener, ListenerFilter, ListenerFilterKind, NetworkFilter, ProxyProtocolFilter,
    SourceType, TerminalFilter,
};

const BUFFER_LIMIT: u32 = 1024 * 1024;

#[allow(clippy::too_many_lines)] // One entry for each field of the message; there is nothing to split.
pub(super) fn listener(at: &At<'_>, message: proto::Listener) -> Converted<Listener> {
    fields!(at, message => proto::Listener {
        used {
            name, address, additional_addresses, stat_prefix, filter_chains, use_original_dst, default_filter_chain,
            per_connection_buffer_limit_bytes, deprecated_v1, listener_filters, listener_filters_timeout,
            continue_on_listener_filters_timeout, transparent, freebind, socket_options, tcp_fast_open_queue_length,
            connection_balance_config, enable_reuse_port, access_log, tcp_backlog_size,
            max_connections_to_accept_per_socket_event, bind_to_port, tcp_keepalive,
        }
        inert {
            metadata = "no supported extension reads a listener's metadata; it stays in config_dump",
            reuse_port = "replaced by enable_reuse_port, as in Envoy",
            traffic_direction = "it tells apart what drains on a failed health check, and there is no such drain",
            drain_type = "listeners drain when they change or go; there is no drain on a failed health check",
            ignore_global_conn_limit = "there is no global connection limit",
            bypass_overload_manager = "there is no overload manager",
        }
        rejected {
            stats_matcher = "matchers for stats",
            fcds_config = "filter chain discovery",
            filter_chain_matcher = "use filter_chain_match in the filter chains",
            per_connection_buffer_high_watermark_timeout = "closing connections with full buffers",
            udp_listener_config = "UDP",
            api_listener = "API listeners",
            enable_mptcp = "multipath TCP",
            listener_specifier = "internal listeners",
        }
    });
    let chains = filter_chains
        .into_iter()
        .enumerate()
        .map(|(index, chain)| filter_chain(&at.index("filter_chains", index), chain).map(Arc::new))
        .collect::<Converted<Vec<_>>>()?;
    let default_filter_chain = default_filter_chain
        .map(|chain| filter_chain(&at.field("default_filter_chain"), chain).map(Arc::new))
        .transpose()?;
    if chains.is_empty() && default_filter_chain.is_none() {
        return Err(at.error_in("filter_chains", "must not be empty without a default_filter_chain"));
    }
    let matches = chains.iter().map(|chain| chain.matching.clone()).collect();
    let chain_index = FilterChainIndex::new(matches).map_err(|(first, second)| {
        let reason = format!("takes the same connections as filter_chains[{first}]");
        at.index("filter_chains", second).error_in("filter_chain_match", reason)
    })?;
    let additional_addresses = additional_addresses
        .into_iter()
        .enumerate()
        .map(|(index, address)| additional_address(&at.index("additional_addresses", index), address))
        .collect::<Converted<Vec<_>>>()?;
    let bind_to_port = bind_to_port.or(deprecated_v1.and_then(|deprecated| deprecated.bind_to_port));
    let ListeningAddress { address, pipe_mode, ipv4_compat } =
        listening_address(&at.field("address"), address)?;
    Ok(Listener {
        name: nonempty(at, "name", name)?,
        address,
        pipe_mode,
        ipv4_compat,
        additional_addresses,
        stat_prefix: optional(stat_prefix),
        filter_chains: chains,
        default_filter_chain,
        chain_index,
        use_original_dst: bool_or(use_original_dst, false),
        bind_to_port: bool_or(bind_to_port, true),
        listener_filters: listener_filters
            .into_iter()
            .enumerate()
            .map(|(index, filter)| listener_filter(&at.index("listener_filters", index), filter))
            .collect::<Converted<_>>()?,
        listener_filters_timeout: timeout(
            at,
            "listener_filters_timeout",
            listener_filters_timeout,
            Some(Duration::from_secs(15)),
        )?,
        continue_on_listener_filters_timeout,
        per_connection_buffer_limit_bytes: number(per_connection_buffer_limit_bytes).unwrap_or(BUFFER_LIMIT),
        reuse_port: bool_or(enable_reuse_port, true),
        exact_balance: exact_balance(&at.field("connection_balance_config"), connection_balance_config)?,
        tcp_backlog_size: number(tcp_backlog_size),
        max_connections_to_accept_per_socket_event: number(max_connections_to_accept_per_socket_event),
        tcp_fast_open_queue_length: number(tcp_fast_open_queue_length),
        transparent: bool_or(transparent, false),
        freebind: bool_or(freebind, false),
        socket_options: self::socket_options(at, "socket_options", socket_options)?,
        tcp_keepalive: tcp_keepalive.map(self::tcp_keepalive),
        access_log: access_logs(at, "access_log", access_log)?,
    })
}

fn additional_address(at: &At<'_>, address: proto::AdditionalAddress) -> Converted<AdditionalAddress> {
    fields!(at, address => proto::AdditionalAddress {
        used { address, socket_options, tcp_keepalive }
        inert {}
        rejected {}
    });
    let ListeningAddress { address, pipe_mode, ipv4_compat } =
        listening_address(&at.field("address"), address)?;
    Ok(AdditionalAddress {
        address,
        pipe_mode,
        ipv4_compat,
        socket_options: socket_options
            .map(|options| {
                self::socket_options(&at.field("socket_options"), "socket_options", options.socket_options)
            })
            .transpose()?,
        tcp_keepalive: tcp_keepalive.map(self::tcp_keepalive),
    })
}

fn exact_balance(at: &At<'_>, config: Option<proto::listener::ConnectionBalanceConfig>) -> Converted<bool> {
    use proto::listener::connection_balance_config::BalanceType;
    match config.and_then(|config| config.balance_type) {
        None => Ok(false),
        Some(BalanceType::ExactBalance(_)) => Ok(true),
        Some(BalanceType::ExtendBalance(_)) => {
            Err(at.error_in("extend_balance", "not supported: use exact_balance"))
        }
        Some(BalanceType::CpuLocalityBalance(_)) => {
            Err(at.error_in("cpu_locality_balance", "not supported: use exact_balance"))
        }
    }
}

fn listener_filter(at: &At<'_>, filter: proto::ListenerFilter) -> Converted<ListenerFilter> {
    use listener_filters::{http_inspector, original_dst, proxy_protocol, tls_inspector};
    use proto::listener_filter::ConfigType;
    fields!(at, filter => proto::ListenerFilter {
        used { filter_disabled, config_type }
        inert { name = "the type of typed_config decides" }
        rejected {}
        variants { config_discovery = "discovery of filter configurations" }
    });
    let any = match required(at, "typed_config", config_type)? {
        ConfigType::TypedConfig(any) => any,
        ConfigType::ConfigDiscovery(_) => {
            return Err(at.error_in("config_discovery", "not supported: discovery of filter configurations"));
        }
    };
    let kind = match lateen_xds::any::message_name(&any.type_url) {
        "envoy.extensions.filters.listener.original_dst.v3.OriginalDst" => {
            let original_dst::v3::OriginalDst {} = typed(at, &any)?;
            ListenerFilterKind::OriginalDst
        }
        "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector" => {
            let config: tls_inspector::v3::TlsInspector = typed(at, &any)?;
            fields!(&at.field("typed_config"), config => tls_inspector::v3::TlsInspector {
                used {}
                inert {
                    initial_read_buffer_size = "buffers grow with what is peeked at",
                }
                rejected {
                    enable_ja3_fingerprinting = "fingerprints of clients",
                    enable_ja4_fingerprinting = "fingerprints of clients",
                    close_connection_on_client_hello_parsing_errors = "a broken ClientHello counts as plaintext",
                    max_client_hello_size = "the limit is fixed at 16 KiB",
                }
            });
            ListenerFilterKind::TlsInspector
        }
        "envoy.extensions.filters.listener.http_inspector.v3.HttpInspector" => {
            let http_inspector::v3::HttpInspector {} = typed(at, &any)?;
            ListenerFilterKind::HttpInspector
        }
        "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol" => {
            let config: proxy_protocol::v3::ProxyProtocol = typed(at, &any)?;
            ListenerFilterKind::ProxyProtocol(proxy_protocol_filter(&at.field("typed_config"), config)?)
        }
        other => {
            let reason = format!(
                "{other:?} is not supported; original_dst, tls_inspector, http_inspector and proxy_protocol are"
            );
            return Err(at.error_in("typed_config", reason));
        }
    };
    let disabled = filter_disabled
        .map(|predicate| connection_predicate(&at.field("filter_disabled"), predicate))
        .transpose()?;
    Ok(ListenerFilter { kind, disabled })
}

fn proxy_protocol_filter(
    at: &At<'_>,
    config: listener_filters::proxy_protocol::v3::ProxyProtocol,
) -> Converted<ProxyProtocolFilter> {
    use core::proxy_protocol_config::Version;
    use listener_filters::proxy_protocol::v3::ProxyProtocol;
    fields!(at, config => ProxyProtocol {
        used { allow_requests_without_proxy_protocol, disallowed_versions }
        inert { tlv_location = "TLVs are not kept" }
        rejected {
            rules = "metadata from TLVs",
            pass_through_tlvs = "TLVs",
            stat_prefix = "a prefix of its own for stats",
        }
    });
    let mut filter =
        ProxyProtocolFilter { optional: allow_requests_without_proxy_protocol, v1: true, v2: true };
    for version in disallowed_versions {
        match enumeration(at, "disallowed_versions", version)? {
            Version::V1 => filter.v1 = false,
            Version::V2 => filter.v2 = false,
        }
    }
    Ok(filter)
}

fn connection_predicate(
    at: &At<'_>,
    predicate: proto::ListenerFilterChainMatchPredicate,
) -> Converted<ConnectionPredicate> {
    use proto::listener_filter_chain_match_predicate::{MatchSet, Rule};
    let set = |field: &'static str, set: MatchSet| {
        let rules = set.rules.into_iter().enumerate();
        rules
            .map(|(index, rule)| connection_predicate(&at.field(field).index("rules", index), rule))
            .collect::<Converted<Vec<_>>>()
    };
    Ok(match required(at, "rule", predicate.rule)? {
        Rule::OrMatch(rules) => ConnectionPredicate::Any(set("or_match", rules)?),
        Rule::AndMatch(rules) => ConnectionPredicate::All(set("and_match", rules)?),
        Rule::NotMatch(rule) => {
            ConnectionPredicate::Not(Box::new(connection_predicate(&at.field("not_match"), *rule)?))
        }
        Rule::AnyMatch(true) => ConnectionPredicate::Always,
        Rule::AnyMatch(false) => return Err(at.error_in("any_match", "must be true")),
        Rule::DestinationPortRange(range) => {
            let at = at.field("destination_port_range");
            let start = u16::try_from(range.start).map_err(|_| at.error_in("start", "is not a port"))?;
            let end = u32::try_from(range.end).ok().filter(|end| *end <= 65_536 && *end > u32::from(start));
            let end = end.ok_or_else(|| at.error_in("end", "must be above start and at most 65536"))?;
            ConnectionPredicate::DestinationPort { start, end }
        }
    })
}

fn filter_chain(at: &At<'_>, chain: proto::FilterChain) -> Converted<FilterChain> {
    fields!(at, chain => proto::FilterChain {
        used { filter_chain_match, filters, transport_socket, transport_socket_connect_timeout, name }
        inert {
            metadata = "no supported extension reads a filter chain's metadata; it stays in config_dump",
        }
        rejected { use_proxy_proto = "the PROXY protocol" }
    });
    let transport = transport_socket
        .map(|socket| transport_socket::downstream(&at.field("transport_socket"), socket))
        .transpose()?
        .unwrap_or(DownstreamTransport::Plaintext);
    let last = filters.len().saturating_sub(1);
    let (mut before, mut terminal) = (Vec::new(), None);
    for (index, filter) in filters.into_iter().enumerate() {
        let at = at.index("filters", index);
        match network_filter(&at, filter)? {
            ChainFilter::Before(_) if index == last => {
                return Err(at.error("the last filter must be a terminal one"));
            }
            ChainFilter::Terminal(_) if index < last => {
                return Err(at.error("is a terminal filter, which must be the last one"));
            }
            ChainFilter::Before(filter) => before.push(filter),
            ChainFilter::Terminal(filter) => terminal = Some(filter),
        }
    }
    let looks_up = |filter: &NetworkFilter| matches!(filter, NetworkFilter::SniDynamicForwardProxy(_));
    if let Some(index) = before.iter().position(looks_up)
        && !matches!(terminal, Some(TerminalFilter::Tcp(_)))
    {
        let reason = "sni_dynamic_forward_proxy is supported before a tcp_proxy only";
        return Err(at.index("filters", index).error(reason));
    }
    Ok(FilterChain {
        name: name.into(),
        matching: filter_chain_match
            .map(|matching| self::filter_chain_match(&at.field("filter_chain_match"), matching))
            .transpose()?
            .unwrap_or_default(),
        transport,
        transport_connect_timeout: timeout(
            at,
            "transport_socket_connect_timeout",
            transport_socket_connect_timeout,
            None,
        )?,
        filters: before,
        terminal,
    })
}

fn filter_chain_match(at: &At<'_>, matching: proto::FilterChainMatch) -> Converted<FilterChainMatch> {
    use proto::filter_chain_match::ConnectionSourceType;
    fields!(at, matching => proto::FilterChainMatch {
        used {
            destination_port, prefix_ranges, direct_source_prefix_ranges, source_type, source_prefix_ranges,
            source_ports, server_names, transport_protocol, application_protocols,
        }
        inert {}
        rejected {
            address_suffix = "matches by suffix, which Envoy does not implement either",
            suffix_len = "matches by suffix, which Envoy does not implement either",
        }
    });
    let server_names = server_names
        .into_iter()
        .enumerate()
        .map(|(index, name)| {
            // What follows a leading `*.`, if there is one, is a plain name.
            if name.strip_prefix("*.").unwrap_or(&name).contains('*') || name.is_empty() {
                let reason = format!("{name:?} must be a name, or \"*.\" and a name");
                return Err(at.index("server_names", index).error(reason));
            }
            Ok(name.to_ascii_lowercase())
        })
        .collect::<Converted<Vec<_>>>()?;
    Ok(FilterChainMatch {
        destination_port: number(destination_port)
            .map(|value| matched_port(at, "destination_port", value))
            .transpose()?,
        prefix_ranges: cidrs(at, "prefix_ranges", prefix_ranges)?,
        server_names,
        transport_protocol,
        application_protocols,
        direct_source_prefix_ranges: cidrs(at, "direct_source_prefix_ranges", direct_source_prefix_ranges)?,
        source_type: match enumeration(at, "source_type", source_type)? {
            ConnectionSourceType::Any => SourceType::Any,
            ConnectionSourceType::SameIpOrLoopback => SourceType::SameIpOrLoopback,
            ConnectionSourceType::External => SourceType::External,
        },
        source_prefix_ranges: cidrs(at, "source_prefix_ranges", source_prefix_ranges)?,
        source_ports: source_ports
            .into_iter()
            .map(|value| matched_port(at, "source_ports", value))
            .collect::<Converted<_>>()?,
    })
}

/// A port that connections may have.
fn matched_port(at: &At<'_>, field: &str, value: u32) -> Converted<u16> {
    match port(at, field, value)? {
        0 => Err(at.error_in(field, "must be between 1 and 65535")),
        port => Ok(port),
    }
}

/// A network filter by its place.
enum ChainFilter {
    Before(NetworkFilter),
    Terminal(TerminalFilter),
}

fn network_filter(at: &At<'_>, filter: proto::Filter) -> Converted<ChainFilter> {
    use proto::filter::ConfigType;
    fields!(at, filter => proto::Filter {
        used { config_type }
        inert { name = "the type of typed_config decides" }
        rejected {}
        variants { config_discovery = "discovery of filter configurations" }
    });
    let any = match required(at, "typed_config", config_type)? {
        ConfigType::TypedConfig(any) => any,
        ConfigType::ConfigDiscovery(_) => {
            return Err(at.error_in("config_discovery", "not supported: discovery of filter configurations"));
        }
    };
    let at_config = at.field("typed_config");
    let terminal = match lateen_xds::any::message_name(&any.type_url) {
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager" => {
            TerminalFilter::Http(Arc::new(http_connection_manager(&at_config, typed(at, &any)?)?))
        }
        "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy" => {
            TerminalFilter::Tcp(Arc::new(tcp_proxy(&at_config, typed(at, &any)?)?))
        }
        "envoy.extensions.filters.network.echo.v3.Echo" => {
            let network::echo::v3::Echo {} = typed(at, &any)?;
            TerminalFilter::Echo
        }
        "envoy.extensions.filters.network.direct_response.v3.Config" => {
            let config: network::direct_response::v3::Config = typed(at, &any)?;
            fields!(&at_config, config => network::direct_response::v3::Config {
                used { response }
                inert {}
                rejected {}
            });
            let bytes =
                response.map(|source| data_source(&at_config.field("response"), source)).transpose()?;
            TerminalFilter::DirectResponse(bytes.unwrap_or_default().into())
        }
        "envoy.extensions.filters.network.rbac.v3.RBAC" => {
            let filter = network_rbac(&at_config, typed(at, &any)?)?;
            return Ok(ChainFilter::Before(NetworkFilter::Rbac(Arc::new(filter))));
        }
        "envoy.extensions.filters.network.sni_dynamic_forward_proxy.v3.FilterConfig" => {
            let filter = sni_dynamic(&at_config, typed(at, &any)?)?;
            return Ok(ChainFilter::Before(NetworkFilter::SniDynamicForwardProxy(Arc::new(filter))));
        }
        "envoy.extensions.filters.network.ext_authz.v3.ExtAuthz" => {
            let filter = network_ext_authz(&at_config, typed(at, &any)?)?;
            return Ok(ChainFilter::Before(NetworkFilter::ExtAuthz(Arc::new(filter))));
        }
        other => {
            let reason = format!(
                "{other:?} is not supported; http_connection_manager, tcp_proxy, echo, direct_response, rbac, ext_authz and sni_dynamic_forward_proxy are"
            );
            return Err(at.error_in("typed_config", reason));
        }
    };
    Ok(ChainFilter::Terminal(terminal))
}
