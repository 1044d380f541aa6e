//! The inbound listener of sidecars.
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::Arc;

use lateen_api::networking::gateway::ServerTlsSettings;
use lateen_model::{Hostname, PeerMode, PeerModes};
use lateen_xds::pb::envoy::config::core::v3 as core;
use lateen_xds::pb::envoy::config::listener::v3 as listener;
use lateen_xds::pb::envoy::config::listener::v3::listener_filter_chain_match_predicate::{MatchSet, Rule};
use lateen_xds::pb::envoy::config::route::v3 as route;
use lateen_xds::pb::envoy::r#type::v3::Int32Range;
use lateen_xds::pb::google::protobuf::Duration;

use crate::access::Access;
use crate::access_log;
use crate::client_tls;
use crate::filters::{self, HTTP_PROTOCOLS, HttpRole, Routes};
use crate::listeners_gateway::downstream;
use crate::mutual_tls;
use crate::names::{BLACK_HOLE, INBOUND_PASSTHROUGH, inbound_cluster};
use crate::proxy::{InboundPort, ProxyClass};
use crate::resource::{Resource, encode};
use crate::settings::Settings;
use crate::sidecar::Inbound;
use crate::wire;

/// The port captured inbound connections arrive at.
pub(crate) const INBOUND_PORT: u16 = 15006;

/// Everything `virtualInbound` depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct InboundInputs {
    settings: Arc<Settings>,
    ports: Vec<InboundPort>,
    /// TLS of callers outside the mesh, by port.
    tls: BTreeMap<u16, IngressTls>,
    /// What is accepted.
    modes: PeerModes,
    /// What callers of the mesh ask for when they mean the workload.
    names: Vec<String>,
    /// Who may connect and ask.
    access: Access,
}

/// TLS as a Sidecar gives it.
#[derive(Clone, Debug, PartialEq)]
struct IngressTls(ServerTlsSettings);

impl Eq for IngressTls {}

/// By its JSON form, as objects are.
impl Hash for IngressTls {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Settings are strings and numbers, which can be serialized.
        serde_json::to_vec(&self.0).unwrap_or_default().hash(state);
    }
}

pub(crate) fn inputs(
    settings: &Arc<Settings>,
    ports: &[Inbound],
    modes: PeerModes,
    class: &ProxyClass,
    access: Access,
) -> InboundInputs {
    let hosts = class.inbound.iter().map(|port| &*port.hostname);
    let captured = || ports.iter().filter(|inbound| inbound.bind.is_none());
    InboundInputs {
        settings: settings.clone(),
        ports: captured().map(|inbound| inbound.port.clone()).collect(),
        tls: captured().filter_map(own_tls).collect(),
        modes,
        names: mutual_tls::server_name_patterns(hosts),
        access,
    }
}

fn own_tls(inbound: &Inbound) -> Option<(u16, IngressTls)> {
    Some((inbound.port.port, IngressTls(inbound.tls.clone()?)))
}

/// Everything a listener of a Sidecar's own depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct OpenedInputs {
    bind: IpAddr,
    /// As if nothing else were received.
    inbound: InboundInputs,
}

/// The listeners that callers connect to themselves. `captured`: what all of the workload's have in common.
pub(crate) fn opened_inputs(captured: &InboundInputs, ports: &[Inbound]) -> Vec<OpenedInputs> {
    let own = |inbound: &Inbound| {
        Some(OpenedInputs {
            bind: inbound.bind?,
            inbound: InboundInputs {
                ports: vec![inbound.port.clone()],
                tls: own_tls(inbound).into_iter().collect(),
                ..captured.clone()
            },
        })
    };
    ports.iter().filter_map(own).collect()
}

/// `ADDRESS_PORT`: what is received at an address and port of its own, on the terms of the workload.
pub(crate) fn opened(inputs: &OpenedInputs) -> Resource {
    let OpenedInputs { bind, inbound } = inputs;
    let port = inbound.ports.first().map_or(0, |port| port.port);
    let mode = inbound.modes.of_port(port);
    let name = format!("{bind}_{port}");
    let mut listener_filters = Vec::new();
    if mode != PeerMode::Disable {
        listener_filters.push(filters::tls_inspector());
    }
    if inbound.ports.iter().any(|port| port.protocol.is_sniffed()) {
        listener_filters.push(filters::http_inspector());
    }
    let message = listener::Listener {
        name: name.clone(),
        address: Some(wire::address(&bind.to_string(), port)),
        additional_addresses: wire::also_at_ipv6(&inbound.settings, &bind.to_string(), port),
        filter_chains: inbound.ports.iter().flat_map(|port| port_chains(inbound, port, mode)).collect(),
        listener_filters,
        listener_filters_timeout: Some(wire::duration(inbound.settings.detection_timeout)),
        continue_on_listener_filters_timeout: true,
        traffic_direction: core::TrafficDirection::Inbound as i32,
        access_log: access_log::listener_log(&inbound.settings),
        ..Default::default()
    };
    encode(name, &message)
}

/// `virtualInbound`: where connections to the pod arrive; filter chains per declared port and for ports with a mode of their own, the
/// rest passes through, as far as the workload's mode lets it.
///
/// Differs from Istio for ports no service declares: Istio looks for HTTP on them too, which makes protocols whose server
/// speaks first hang; here they are bytes.
pub(crate) fn virtual_inbound(inputs: &InboundInputs) -> Resource {
    let InboundInputs { settings, ports, modes, .. } = inputs;
    let mut chains = vec![listener::FilterChain {
        name: "virtualInbound-blackhole".to_owned(),
        filter_chain_match: Some(port_match(INBOUND_PORT)),
        filters: vec![filters::tcp(settings, BLACK_HOLE)],
        ..Default::default()
    }];
    chains.extend(ports.iter().flat_map(|port| port_chains(inputs, port, modes.of_port(port.port))));
    let undeclared = modes.ports.iter().filter(|(number, _)| ports.iter().all(|port| port.port != **number));
    for (&port, &mode) in undeclared {
        chains.extend(passed_through(inputs, Some(port), mode));
    }
    chains.extend(passed_through(inputs, None, modes.general));
    let mut listener_filters = vec![filters::original_dst()];
    listener_filters.extend(tls_inspector(inputs));
    let detected: Vec<u16> =
        ports.iter().filter(|port| port.protocol.is_sniffed()).map(|port| port.port).collect();
    if !detected.is_empty() {
        listener_filters.push(listener::ListenerFilter {
            filter_disabled: Some(negated(any_of_ports(&detected))),
            ..filters::http_inspector()
        });
    }
    let message = listener::Listener {
        name: "virtualInbound".to_owned(),
        address: Some(wire::address("0.0.0.0", INBOUND_PORT)),
        additional_addresses: wire::also_at_ipv6(settings, "0.0.0.0", INBOUND_PORT),
        filter_chains: chains,
        listener_filters,
        listener_filters_timeout: Some(wire::duration(settings.detection_timeout)),
        continue_on_listener_filters_timeout: true,
        traffic_direction: core::TrafficDirection::Inbound as i32,
        access_log: access_log::listener_log(settings),
        ..Default::default()
    };
    encode("virtualInbound", &message)
}

/// Looks for TLS where mutual TLS is accepted; elsewhere nobody waits for a client's first bytes.
fn tls_inspector(inputs: &InboundInputs) -> Option<listener::ListenerFilter> {
    let modes = &inputs.modes;
    let everywhere = modes.general != PeerMode::Disable;
    let is_other = |mode: &PeerMode| (*mode != PeerMode::Disable) != everywhere;
    let others: Vec<u16> =
        modes.ports.iter().filter(|(_, mode)| is_other(mode)).map(|(&port, _)| port).collect();
    let filter_disabled = match (everywhere, others.is_empty()) {
        (false, true) => return None,
        (true, true) => None,
        (true, false) => Some(any_of_ports(&others)),
        (false, false) => Some(negated(any_of_ports(&others))),
    };
    Some(listener::ListenerFilter { filter_disabled, ..filters::tls_inspector() })
}

/// One way a connection may be: what is matched, and what becomes of it.
#[derive(Clone, Debug, Default)]
struct Way {
    /// `tls` or `raw_buffer`; empty: either.
    transport: &'static str,
    protocols: Vec<&'static str>,
    /// Of callers who ask for the workload as clients of the mesh do.
    named: bool,
    http: bool,
    /// Whether it ends in mutual TLS here.
    mutual: bool,
}

/// What a chain is for: HTTP, bytes, or whichever it turns out to be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Payload {
    Http,
    Tcp,
    Detected,
}

/// As Istio's filter chains for the modes of PeerAuthentication, and besides those of callers that are known by the name they ask for.
fn ways(mode: PeerMode, payload: Payload) -> Vec<Way> {
    use mutual_tls::{HTTP_PROTOCOLS as MESH_HTTP, PLAIN_HTTP_PROTOCOLS, TCP_PROTOCOLS};
    let tls = Way { transport: "tls", mutual: true, ..Way::default() };
    let any_http: Vec<&str> = MESH_HTTP.into_iter().chain(PLAIN_HTTP_PROTOCOLS).collect();
    let plain = |transport| match payload {
        Payload::Http => vec![Way { transport, http: true, ..Way::default() }],
        Payload::Tcp => vec![Way { transport, ..Way::default() }],
        Payload::Detected => vec![
            Way { transport, protocols: HTTP_PROTOCOLS.to_vec(), http: true, ..Way::default() },
            Way { transport, ..Way::default() },
        ],
    };
    // TLS of which the client is known to be of the mesh.
    let certain = |named: bool| match payload {
        Payload::Http => vec![Way { named, http: true, ..tls.clone() }],
        Payload::Tcp => vec![Way { named, ..tls.clone() }],
        Payload::Detected => vec![
            Way { named, protocols: any_http.clone(), http: true, ..tls.clone() },
            Way { named, ..tls.clone() },
        ],
    };
    match mode {
        PeerMode::Disable => plain(""),
        PeerMode::Strict => certain(false),
        PeerMode::Permissive => {
            let mut ways = certain(true);
            let both = MESH_HTTP.into_iter().chain(TCP_PROTOCOLS);
            match payload {
                Payload::Http => ways.push(Way { protocols: both.collect(), http: true, ..tls }),
                Payload::Tcp => ways.push(Way { protocols: TCP_PROTOCOLS.to_vec(), ..tls }),
                Payload::Detected => {
                    ways.push(Way { protocols: MESH_HTTP.to_vec(), http: true, ..tls.clone() });
                    ways.push(Way { protocols: TCP_PROTOCOLS.to_vec(), ..tls });
                }
            }
            ways.extend(plain("raw_buffer"));
            if payload != Payload::Http {
                // The application's own TLS.
                ways.push(Way { transport: "tls", ..Way::default() });
            }
            ways
        }
    }
}

impl Way {
    fn chain(
        &self,
        settings: &Settings,
        port: Option<u16>,
        names: &[String],
        filters: Vec<listener::Filter>,
    ) -> listener::FilterChain {
        let condition = listener::FilterChainMatch {
            destination_port: port.and_then(|port| wire::uint32(u32::from(port))),
            transport_protocol: self.transport.to_owned(),
            application_protocols: self.protocols.iter().map(|&name| name.to_owned()).collect(),
            server_names: if self.named { names.to_vec() } else { Vec::new() },
            ..Default::default()
        };
        listener::FilterChain {
            filter_chain_match: (condition != listener::FilterChainMatch::default()).then_some(condition),
            filters,
            transport_socket: self.mutual.then(|| settings.mutual_tls.server()),
            ..Default::default()
        }
    }
}

fn port_chains(inputs: &InboundInputs, port: &InboundPort, mode: PeerMode) -> Vec<listener::FilterChain> {
    let InboundInputs { settings, names, access, .. } = inputs;
    let cluster = inbound_cluster(port.port);
    let name = format!("0.0.0.0_{}", port.port);
    let payload = if port.protocol.is_http() {
        Payload::Http
    } else if port.protocol.is_sniffed() {
        Payload::Detected
    } else {
        Payload::Tcp
    };
    // As in Istio, TLS of its own goes only where there is none of the mesh.
    let own = inputs.tls.get(&port.port).filter(|_| mode == PeerMode::Disable);
    let ways = ways(mode, payload).into_iter().filter(|way| !way.named || !names.is_empty());
    let chains = ways.map(|way| {
        let filter = if way.http {
            let routes = route_config(&cluster, &port.hostname, port.service_port);
            let prefix = format!("inbound_{name};");
            vec![filters::http(
                settings,
                HttpRole::Inbound,
                &prefix,
                Routes::Inline(Box::new(routes)),
                access,
            )]
        } else {
            let pattern = settings.stat_names.inbound.as_ref();
            let prefix = pattern.map_or_else(|| cluster.clone(), |pattern| port.filling().fill(pattern));
            filters::guarded(access, filters::tcp_named(settings, &cluster, prefix))
        };
        let chain = way.chain(settings, Some(port.port), names, filter);
        let transport_socket = match &own {
            Some(tls) => Some(client_tls::socket(wire::any(&downstream(settings, &tls.0)))),
            None => chain.transport_socket.clone(),
        };
        listener::FilterChain { name: name.clone(), transport_socket, ..chain }
    });
    chains.collect()
}

/// Connections to ports no service declares: one port, or all others.
fn passed_through(inputs: &InboundInputs, port: Option<u16>, mode: PeerMode) -> Vec<listener::FilterChain> {
    let InboundInputs { settings, access, .. } = inputs;
    let ways = ways(mode, Payload::Tcp).into_iter().filter(|way| !way.named);
    let chains = ways.map(|way| {
        let filter = filters::guarded(access, filters::tcp(settings, INBOUND_PASSTHROUGH));
        listener::FilterChain { name: "virtualInbound".to_owned(), ..way.chain(settings, port, &[], filter) }
    });
    chains.collect()
}

/// All requests to the application. No timeout and no retries: those are the caller's.
fn route_config(cluster: &str, hostname: &Hostname, service_port: u16) -> route::RouteConfiguration {
    let action = route::RouteAction {
        cluster_specifier: Some(route::route_action::ClusterSpecifier::Cluster(cluster.to_owned())),
        timeout: Some(Duration::default()),
        max_stream_duration: Some(crate::route_rules::no_grpc_timeout()),
        ..Default::default()
    };
    let everything = route::Route {
        name: "default".to_owned(),
        r#match: Some(crate::route_rules::match_everything()),
        decorator: Some(route::Decorator {
            operation: format!("{hostname}:{service_port}/*"),
            ..Default::default()
        }),
        action: Some(route::route::Action::Route(action)),
        ..Default::default()
    };
    route::RouteConfiguration {
        name: cluster.to_owned(),
        virtual_hosts: vec![route::VirtualHost {
            name: format!("inbound|http|{service_port}"),
            domains: vec!["*".to_owned()],
            routes: vec![everything],
            ..Default::default()
        }],
        validate_clusters: wire::boolean(false),
        ..Default::default()
    }
}

fn port_match(port: u16) -> listener::FilterChainMatch {
    listener::FilterChainMatch { destination_port: wire::uint32(u32::from(port)), ..Default::default() }
}

/// A predicate that holds for connections to any of these ports.
fn any_of_ports(ports: &[u16]) -> listener::ListenerFilterChainMatchPredicate {
    let mut ranges: Vec<_> = ports
        .iter()
        .map(|&port| {
            let start = i32::from(port);
            predicate(Rule::DestinationPortRange(Int32Range { start, end: start + 1 }))
        })
        .collect();
    // Envoy wants at least two members in an `or`.
    match ranges.pop() {
        Some(only) if ranges.is_empty() => only,
        Some(last) => {
            ranges.push(last);
            predicate(Rule::OrMatch(MatchSet { rules: ranges }))
        }
        None => negated(predicate(Rule::AnyMatch(true))),
    }
}

fn negated(
    condition: listener::ListenerFilterChainMatchPredicate,
) -> listener::ListenerFilterChainMatchPredicate {
    predicate(Rule::NotMatch(Box::new(condition)))
}

fn predicate(rule: Rule) -> listener::ListenerFilterChainMatchPredicate {
    listener::ListenerFilterChainMatchPredicate { rule: Some(rule) }
}
