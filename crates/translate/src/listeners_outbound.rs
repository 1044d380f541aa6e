//! Outbound listeners of sidecars.
//!
//! Connections captured on 15001 go to the listener of their original destination: `VIP_PORT` if there is one, else
//! `0.0.0.0_PORT`, else they stay on `virtualOutbound`.
use std::collections::BTreeMap;
use std::net::IpAddr;

use lateen_xds::pb::envoy::config::core::v3 as core;
use lateen_xds::pb::envoy::config::listener::v3 as listener;

use crate::access_log;
use crate::filters::{self, HTTP_PROTOCOLS, HttpRole, Routes};
use crate::names::{BLACK_HOLE, PASSTHROUGH, outbound_cluster};
use crate::resource::{Resource, encode};
use crate::scope::Scope;
use crate::settings::Settings;
use crate::wire;

/// The port captured outbound connections arrive at.
pub(crate) const OUTBOUND_PORT: u16 = 15001;

/// Everything an HTTP port's listener depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct HttpPortInputs {
    settings: Settings,
    port: u16,
    /// Services on this port whose protocol is detected: address, and cluster for what is not HTTP.
    detected: Vec<(IpAddr, String)>,
}

/// Everything a TCP service's listener depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TcpInputs {
    settings: Settings,
    address: IpAddr,
    port: u16,
    cluster: String,
}

/// Everything `virtualOutbound` depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct VirtualInputs {
    settings: Settings,
}

/// The inputs of a sidecar's outbound listeners.
pub(crate) struct OutboundInputs {
    pub(crate) http: Vec<HttpPortInputs>,
    pub(crate) tcp: Vec<TcpInputs>,
    pub(crate) catch_all: VirtualInputs,
}

pub(crate) fn inputs(scope: &Scope) -> OutboundInputs {
    let settings = &scope.settings;
    let mut http: BTreeMap<u16, Vec<(IpAddr, String)>> = BTreeMap::new();
    let mut tcp: BTreeMap<(IpAddr, u16), String> = BTreeMap::new();
    for service in &scope.services {
        for port in service.mesh_ports() {
            let cluster = outbound_cluster(&service.hostname, port.port, "");
            if port.protocol.is_http() {
                http.entry(port.port).or_default();
            } else if port.protocol.is_sniffed() {
                let detected = http.entry(port.port).or_default();
                detected.extend(service.addresses.iter().map(|address| (*address, cluster.clone())));
            } else {
                for address in &service.addresses {
                    tcp.entry((*address, port.port)).or_insert_with(|| cluster.clone());
                }
            }
        }
    }
    let http = http.into_iter().map(|(port, mut detected)| {
        detected.sort();
        HttpPortInputs { settings: settings.clone(), port, detected }
    });
    let tcp = tcp.into_iter().map(|((address, port), cluster)| TcpInputs {
        settings: settings.clone(),
        address,
        port,
        cluster,
    });
    OutboundInputs {
        http: http.collect(),
        tcp: tcp.collect(),
        catch_all: VirtualInputs { settings: settings.clone() },
    }
}

/// `0.0.0.0_PORT`: HTTP to any address goes by the routes named after the port.
///
/// Differs from Istio for ports of undeclared protocol: Istio gives each such service a listener `VIP_PORT` with routes
/// of its own (`host:port`). Here they share the port's listener and routes, so that an unnamed port 80 shows and behaves
/// like a named one, and one connection manager serves all of them; what is not HTTP still goes to the service's own
/// cluster, by a chain for its address.
pub(crate) fn http_port(inputs: &HttpPortInputs) -> Resource {
    let HttpPortInputs { settings, port, detected } = inputs;
    let name = format!("0.0.0.0_{port}");
    let mut http_match = listener::FilterChainMatch {
        application_protocols: HTTP_PROTOCOLS.map(str::to_owned).to_vec(),
        ..Default::default()
    };
    if !detected.is_empty() {
        // Envoy takes the most specific address range first and does not come back, so the HTTP chain must name every
        // address that has a chain of its own, besides all others.
        http_match.prefix_ranges =
            vec![core::CidrRange { address_prefix: "0.0.0.0".to_owned(), prefix_len: wire::uint32(0) }];
        http_match.prefix_ranges.extend(detected.iter().map(|(address, _)| wire::host_range(*address)));
    }
    let manager = filters::http(
        settings,
        HttpRole::Outbound,
        &format!("outbound_{name};"),
        Routes::Rds(port.to_string()),
    );
    let mut chains = vec![listener::FilterChain {
        filter_chain_match: Some(http_match),
        filters: vec![manager],
        ..Default::default()
    }];
    chains.extend(detected.iter().map(|(address, cluster)| listener::FilterChain {
        name: cluster.clone(),
        filter_chain_match: Some(listener::FilterChainMatch {
            prefix_ranges: vec![wire::host_range(*address)],
            ..Default::default()
        }),
        filters: vec![filters::tcp(settings, cluster)],
        ..Default::default()
    }));
    let message = listener::Listener {
        filter_chains: chains,
        default_filter_chain: Some(listener::FilterChain {
            name: "PassthroughFilterChain".to_owned(),
            filters: vec![filters::tcp(settings, catch_all_cluster(settings))],
            ..Default::default()
        }),
        listener_filters: vec![filters::http_inspector()],
        listener_filters_timeout: Some(wire::duration(settings.detection_timeout)),
        continue_on_listener_filters_timeout: true,
        ..virtual_listener(settings, &name, "0.0.0.0", *port)
    };
    encode(name, &message)
}

/// `VIP_PORT`: bytes go to the service.
pub(crate) fn tcp_service(inputs: &TcpInputs) -> Resource {
    let TcpInputs { settings, address, port, cluster } = inputs;
    let name = format!("{address}_{port}");
    let message = listener::Listener {
        filter_chains: vec![listener::FilterChain {
            filters: vec![filters::tcp(settings, cluster)],
            ..Default::default()
        }],
        ..virtual_listener(settings, &name, &address.to_string(), *port)
    };
    encode(name, &message)
}

/// `virtualOutbound`: where captured connections arrive, and stay when the mesh does not know their destination.
pub(crate) fn virtual_outbound(inputs: &VirtualInputs) -> Resource {
    let settings = &inputs.settings;
    let name = "virtualOutbound";
    let message = listener::Listener {
        bind_to_port: None,
        use_original_dst: wire::boolean(true),
        filter_chains: vec![
            // A connection made to this port itself would be passed through to this port, for ever.
            listener::FilterChain {
                name: "virtualOutbound-blackhole".to_owned(),
                filter_chain_match: Some(listener::FilterChainMatch {
                    destination_port: wire::uint32(u32::from(OUTBOUND_PORT)),
                    ..Default::default()
                }),
                filters: vec![filters::tcp(settings, BLACK_HOLE)],
                ..Default::default()
            },
            listener::FilterChain {
                name: "virtualOutbound-catchall-tcp".to_owned(),
                filters: vec![filters::tcp(settings, catch_all_cluster(settings))],
                ..Default::default()
            },
        ],
        ..virtual_listener(settings, name, "0.0.0.0", OUTBOUND_PORT)
    };
    encode(name, &message)
}

/// Where connections go that the mesh knows nothing about.
fn catch_all_cluster(settings: &Settings) -> &'static str {
    if settings.allow_any { PASSTHROUGH } else { BLACK_HOLE }
}

/// A listener that only takes over connections accepted by `virtualOutbound`.
fn virtual_listener(settings: &Settings, name: &str, address: &str, port: u16) -> listener::Listener {
    listener::Listener {
        name: name.to_owned(),
        address: Some(wire::address(address, port)),
        bind_to_port: wire::boolean(false),
        traffic_direction: core::TrafficDirection::Outbound as i32,
        access_log: access_log::listener_log(settings),
        ..Default::default()
    }
}
