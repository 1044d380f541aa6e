//! Outbound listeners of sidecars.
//!
//! Connections captured on 15001 go to the listener of their original destination: `ADDRESS_PORT` if there is one, else
//! `0.0.0.0_PORT`, else they stay on `virtualOutbound`. As in Istio, ports declared HTTP share `0.0.0.0_PORT` and its routes;
//! every other port listens at the service's address, or at its pods' when it is headless. A ServiceEntry without addresses
//! is found on `0.0.0.0_PORT` too (`any_address`).
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use lateen_model::{Service, ServicePort};
use lateen_xds::pb::envoy::config::core::v3 as core;
use lateen_xds::pb::envoy::config::listener::v3 as listener;

use crate::access::Access;
use crate::access_log;
use crate::any_address::{AnyAddress, PortInputs, listens_at_any_address};
use crate::dynamic_dns;
use crate::filters::{self, HTTP_PROTOCOLS, HttpRole, Routes};
use crate::names::{BLACK_HOLE, detected_routes};
use crate::resource::{Resource, encode};
use crate::scope::Scope;
use crate::settings::Settings;
use crate::tcp_routes::{self, TcpRoute};
use crate::wire;

/// The port captured outbound connections arrive at.
pub(crate) const OUTBOUND_PORT: u16 = 15001;

/// Everything the listener of a service's address and port depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct AddressInputs {
    settings: Arc<Settings>,
    /// The first gives the listener its name; more than one only with dual stack.
    addresses: Vec<IpAddr>,
    port: u16,
    /// Where bytes go, by destination address; the last one is for all addresses.
    routes: Vec<TcpRoute>,
    /// The routes of the HTTP among it, when the port's protocol is undeclared.
    http_routes: Option<String>,
}

/// Everything `virtualOutbound` depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct VirtualInputs {
    settings: Arc<Settings>,
}

/// The inputs of a sidecar's outbound listeners.
pub(crate) struct OutboundInputs {
    pub(crate) ports: Vec<PortInputs>,
    pub(crate) addresses: Vec<AddressInputs>,
    pub(crate) catch_all: VirtualInputs,
}

pub(crate) fn inputs(scope: &Scope) -> OutboundInputs {
    let settings = &scope.settings;
    let mut ports: BTreeMap<u16, AnyAddress> = BTreeMap::new();
    let mut addresses: BTreeMap<(IpAddr, u16), AddressInputs> = BTreeMap::new();
    for service in scope.addressed.iter() {
        for port in service.mesh_ports() {
            let dynamic = dynamic_dns::is_dynamic(service);
            if dynamic && !dynamic_dns::is_served(port) {
                continue;
            }
            if port.protocol.is_http() {
                let found = ports.entry(scope.listening_port(port.port)).or_default();
                found.http = true;
                found.looks_up |= dynamic;
                continue;
            }
            let tcp = tcp_routes::of_service(scope, service, port);
            let http = port.protocol.is_sniffed().then(|| detected_routes(&service.hostname, port.port));
            for together in addresses_of(scope, service, port) {
                let Some(first) = together.first() else { continue };
                addresses.entry((*first, port.port)).or_insert_with(|| AddressInputs {
                    settings: settings.clone(),
                    addresses: together,
                    port: port.port,
                    routes: tcp.clone(),
                    http_routes: http.clone(),
                });
            }
            if listens_at_any_address(scope, service) || !service.ranges.is_empty() {
                ports.entry(scope.listening_port(port.port)).or_default().add(scope, service, port, tcp);
            }
        }
    }
    let ports = ports.into_iter().map(|(port, found)| PortInputs {
        settings: settings.clone(),
        at: scope.at.clone(),
        port,
        found,
    });
    OutboundInputs {
        ports: ports.collect(),
        addresses: addresses.into_values().collect(),
        catch_all: VirtualInputs { settings: settings.clone() },
    }
}

/// The addresses callers of a service port connect to: the service's own; of a headless service (a StatefulSet's, mostly)
/// those of its pods, ready or not, since members of a set find each other before they are ready. Those that share a listener are
/// together: with dual stack all of a service or of a pod.
fn addresses_of(scope: &Scope, service: &Service, port: &ServicePort) -> Vec<Vec<IpAddr>> {
    if !service.is_headless() {
        let all = scope.addresses_of(service);
        return match scope.class.dual_stack {
            true => vec![all],
            false => all.into_iter().map(|address| vec![address]).collect(),
        };
    }
    let endpoints = scope.world.endpoints(service);
    let of_port = endpoints.map(|endpoints| endpoints.of_port(&port.name)).unwrap_or_default();
    of_port.iter().filter_map(|endpoint| scope.addresses_of_endpoint(endpoint)).collect()
}

/// Whether listeners of a service follow its endpoints.
pub(crate) fn listens_at_endpoints(service: &Service) -> bool {
    service.is_headless() && service.mesh_ports().any(|port| !port.protocol.is_http())
}

/// `ADDRESS_PORT`: bytes go where the TCP or TLS rules send them, or to the service; where the port's protocol is undeclared, HTTP
/// goes by routes of the service.
pub(crate) fn service_address(inputs: &AddressInputs) -> Resource {
    let AddressInputs { settings, addresses, port, routes, http_routes } = inputs;
    let mut texts = addresses.iter().map(IpAddr::to_string);
    let address = texts.next().unwrap_or_default();
    let name = format!("{address}_{port}");
    let mut chains: Vec<_> = routes.iter().map(|route| bytes_chain(settings, route)).collect();
    let mut message = if let Some(routes) = http_routes {
        let rest = chains.pop();
        chains.insert(0, http_chain(settings, &name, routes.clone(), false));
        listener::Listener {
            filter_chains: chains,
            default_filter_chain: rest,
            ..detecting_listener(settings, &name, &address, *port, vec![filters::http_inspector()])
        }
    } else {
        let by_name = routes.iter().any(|route| !route.server_names.is_empty());
        let inspectors = if by_name { vec![filters::tls_inspector()] } else { Vec::new() };
        let unknown = !routes.last().is_some_and(TcpRoute::takes_all);
        listener::Listener {
            filter_chains: chains,
            default_filter_chain: unknown.then(|| passthrough_chain(settings)),
            ..detecting_listener(settings, &name, &address, *port, inspectors)
        }
    };
    message.additional_addresses = texts.map(|address| wire::additional_address(&address, *port)).collect();
    encode(name, &message)
}

/// Bytes to some addresses, or to all, as they are.
pub(crate) fn bytes_chain(settings: &Settings, route: &TcpRoute) -> listener::FilterChain {
    let TcpRoute { subnets, server_names, destinations } = route;
    let condition = listener::FilterChainMatch {
        prefix_ranges: subnets.iter().filter_map(|subnet| wire::cidr(subnet)).collect(),
        server_names: wire::server_names(server_names),
        transport_protocol: if server_names.is_empty() { String::new() } else { "tls".to_owned() },
        ..Default::default()
    };
    listener::FilterChain {
        name: destinations.stat_prefix.clone(),
        filter_chain_match: (condition != Default::default()).then_some(condition),
        filters: filters::bytes(settings, &Access::default(), destinations),
        metadata: destinations.config.as_ref().map(|path| wire::istio_metadata("config", path)),
        ..Default::default()
    }
}

/// What nobody is known to have: as it is, or nowhere, by the mesh's policy.
pub(crate) fn passthrough_chain(settings: &Settings) -> listener::FilterChain {
    listener::FilterChain {
        name: "PassthroughFilterChain".to_owned(),
        filters: vec![filters::tcp(settings, &settings.catch_all_cluster())],
        ..Default::default()
    }
}

/// Nowhere.
pub(crate) fn refusing_chain(settings: &Settings) -> listener::FilterChain {
    listener::FilterChain {
        name: BLACK_HOLE.to_owned(),
        filters: vec![filters::tcp(settings, BLACK_HOLE)],
        ..Default::default()
    }
}

/// What http_inspector found to be HTTP, by the routes of this name. `looks_up`: some of it may be for hosts that are looked up on
/// request.
pub(crate) fn http_chain(
    settings: &Settings,
    listener: &str,
    routes: String,
    looks_up: bool,
) -> listener::FilterChain {
    let routes = Routes::Rds(routes);
    listener::FilterChain {
        filter_chain_match: Some(listener::FilterChainMatch {
            transport_protocol: "raw_buffer".to_owned(),
            application_protocols: HTTP_PROTOCOLS.map(str::to_owned).to_vec(),
            ..Default::default()
        }),
        filters: vec![filters::http(
            settings,
            HttpRole::Outbound { looks_up },
            &format!("outbound_{listener};"),
            routes,
            &Access::default(),
        )],
        ..Default::default()
    }
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
                filters: vec![filters::tcp(settings, &settings.catch_all_cluster())],
                ..Default::default()
            },
        ],
        ..virtual_listener(settings, name, "0.0.0.0", OUTBOUND_PORT)
    };
    encode(name, &message)
}

/// A virtual listener that looks at the first bytes, if it has something to look with.
pub(crate) fn detecting_listener(
    settings: &Settings,
    name: &str,
    address: &str,
    port: u16,
    inspectors: Vec<listener::ListenerFilter>,
) -> listener::Listener {
    let listener = virtual_listener(settings, name, address, port);
    if inspectors.is_empty() {
        return listener;
    }
    listener::Listener {
        listener_filters: inspectors,
        listener_filters_timeout: Some(wire::duration(settings.detection_timeout)),
        continue_on_listener_filters_timeout: true,
        ..listener
    }
}

/// A listener that only takes over connections accepted by `virtualOutbound`.
fn virtual_listener(settings: &Settings, name: &str, address: &str, port: u16) -> listener::Listener {
    listener::Listener {
        name: name.to_owned(),
        address: Some(wire::listening_address(address, port)),
        additional_addresses: wire::also_at_ipv6(settings, address, port),
        bind_to_port: wire::boolean(false),
        traffic_direction: core::TrafficDirection::Outbound as i32,
        access_log: access_log::listener_log(settings),
        ..Default::default()
    }
}
