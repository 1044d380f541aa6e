//! `0.0.0.0_PORT`, the listener of a port at any address: HTTP that is declared so, and ServiceEntries without an address of
//! their own. TLS goes by the server name it asks for, ranges of addresses to their service, and other bytes to the oldest.
use std::collections::BTreeMap;
use std::sync::Arc;

use ipnet::IpNet;
use lateen_model::{Hostname, Registry, Service, ServicePort};
use lateen_xds::pb::envoy::config::core::v3::CidrRange;
use lateen_xds::pb::envoy::config::listener::v3 as listener;

use crate::filters;
use crate::listeners_outbound::{
    bytes_chain, detecting_listener, http_chain, passthrough_chain, refusing_chain,
};
use crate::resource::{Resource, encode};
use crate::scope::Scope;
use crate::settings::Settings;
use crate::sidecar::BoundAddress;
use crate::tcp_routes::TcpRoute;
use crate::wire;

/// Everything the listener of a port at any address depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PortInputs {
    pub(crate) settings: Arc<Settings>,
    /// The address of a Sidecar's own listener.
    pub(crate) at: Option<BoundAddress>,
    pub(crate) port: u16,
    pub(crate) found: AnyAddress,
}

/// What is found on a port at any address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct AnyAddress {
    /// Whether HTTP goes by the routes named after the port.
    pub(crate) http: bool,
    /// Whether some of the HTTP is for hosts that are looked up on request.
    pub(crate) looks_up: bool,
    /// Services known by ranges of addresses or TLS server names, with their clusters; the oldest of each.
    destinations: BTreeMap<Destination, Owner>,
    /// Whom other bytes are for; none: they are unknown to the mesh.
    bytes: Option<Owner>,
}

/// What connections to a service have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Destination {
    range: Option<IpNet>,
    server_name: Option<String>,
    /// Whether HTTP among it goes by the routes named after the port.
    http: bool,
}

/// A service by its age, and where its bytes go: the last way is for all addresses.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Owner {
    created: i64,
    host: Hostname,
    routes: Vec<TcpRoute>,
}

impl Owner {
    fn is_older_than(&self, other: &Self) -> bool {
        (self.created, &self.host) < (other.created, &other.host)
    }
}

impl AnyAddress {
    /// Adds a port that is not declared HTTP.
    pub(crate) fn add(
        &mut self,
        scope: &Scope,
        service: &Service,
        port: &ServicePort,
        routes: Vec<TcpRoute>,
    ) {
        let owner = |routes| Owner { created: service.created, host: service.hostname.clone(), routes };
        let shares = shares_port(scope, service, port);
        let anywhere = listens_at_any_address(scope, service);
        self.http |= shares && anywhere;
        // TLS goes by the names of the rules, else by the service's own.
        let named: Vec<(Option<String>, Vec<IpNet>, Vec<TcpRoute>)> = if !port.protocol.is_tls() {
            vec![(None, Vec::new(), routes)]
        } else if routes.last().is_some_and(TcpRoute::takes_all) {
            vec![(Some(service.hostname.to_string()), Vec::new(), routes)]
        } else {
            let of_route = |route: TcpRoute| {
                let subnets: Vec<IpNet> =
                    route.subnets.iter().filter_map(|subnet| wire::range(subnet)).collect();
                let names = route.server_names.clone().into_iter();
                names.map(move |name| (Some(name), subnets.clone(), vec![route.clone()]))
            };
            routes.into_iter().flat_map(of_route).collect()
        };
        for (server_name, subnets, routes) in named {
            let ranges = if subnets.is_empty() { &service.ranges } else { &subnets };
            for range in ranges {
                let destination =
                    Destination { range: Some(*range), server_name: server_name.clone(), http: shares };
                keep_oldest(&mut self.destinations, destination, owner(routes.clone()));
            }
            if !anywhere || !subnets.is_empty() {
                continue;
            }
            let owner = owner(routes);
            if server_name.is_some() {
                let destination = Destination { range: None, server_name, http: false };
                keep_oldest(&mut self.destinations, destination, owner);
            } else if self.bytes.as_ref().is_none_or(|known| owner.is_older_than(known)) {
                self.bytes = Some(owner);
            }
        }
    }

    fn detects_http(&self) -> bool {
        self.http || self.destinations.keys().any(|destination| destination.http)
    }

    fn detects_tls(&self) -> bool {
        self.destinations.keys().any(|destination| destination.server_name.is_some())
    }
}

fn keep_oldest(known: &mut BTreeMap<Destination, Owner>, destination: Destination, owner: Owner) {
    let oldest = known.entry(destination).or_insert_with(|| owner.clone());
    if owner.is_older_than(oldest) {
        *oldest = owner;
    }
}

/// Whether a service's callers may connect to any address: a ServiceEntry that names none; and whatever is reached through a
/// Sidecar's own listener.
pub(crate) fn listens_at_any_address(scope: &Scope, service: &Service) -> bool {
    let unnamed = || service.ranges.is_empty() && scope.addresses_of(service).is_empty();
    scope.at.is_some() || (service.registry == Registry::ServiceEntry && unnamed())
}

/// Whether HTTP to a port of a service goes by the routes named after the port: where it is declared, and where a port of
/// undeclared protocol has no listener of its own.
pub(crate) fn shares_port(scope: &Scope, service: &Service, port: &ServicePort) -> bool {
    let has_own = service.registry == Registry::Kubernetes || !scope.addresses_of(service).is_empty();
    let has_own = has_own && scope.at.is_none();
    port.protocol.is_http() || (port.protocol.is_sniffed() && !has_own)
}

/// `0.0.0.0_PORT`: HTTP to any address goes by the routes named after the port, other bytes to whom they are known to be
/// for; everything else is unknown to the mesh.
pub(crate) fn any_address(inputs: &PortInputs) -> Resource {
    let PortInputs { settings, at, port, found } = inputs;
    let address = at.as_ref().map_or_else(|| "0.0.0.0".to_owned(), BoundAddress::text);
    let name = format!("{address}_{port}");
    let socket = at.as_ref().and_then(BoundAddress::unix);
    let routes = socket.map_or_else(|| port.to_string(), |socket| socket.to_string());
    let mut chains = Vec::new();
    for (destination, owner) in &found.destinations {
        if destination.http {
            let mut chain = http_chain(settings, &name, routes.clone(), found.looks_up);
            if let Some(condition) = &mut chain.filter_chain_match {
                condition.prefix_ranges = destination.prefix_ranges();
            }
            chains.push(chain);
        }
        chains.extend(known_destination(settings, destination, owner));
    }
    if found.http {
        chains.push(http_chain(settings, &name, routes, found.looks_up));
    }
    let rest = match found.bytes.as_ref().map(|owner| owner.routes.split_last()) {
        Some(Some((last, first))) => {
            chains.extend(first.iter().map(|route| bytes_chain(settings, route)));
            bytes_chain(settings, last)
        }
        // Who connects to the listener itself was not on the way anywhere else.
        _ if at.is_some() => refusing_chain(settings),
        _ => passthrough_chain(settings),
    };
    let mut inspectors = Vec::new();
    if found.detects_tls() {
        inspectors.push(filters::tls_inspector());
    }
    if found.detects_http() {
        inspectors.push(filters::http_inspector());
    }
    let mut message = detecting_listener(settings, &name, &address, *port, inspectors);
    if matches!(at, Some(BoundAddress::Unix(_) | BoundAddress::Ip { opened: true, .. })) {
        message.bind_to_port = None;
    }
    if chains.is_empty() {
        chains.push(rest);
    } else {
        message.default_filter_chain = Some(rest);
    }
    message.filter_chains = chains;
    encode(name, &message)
}

impl Destination {
    fn prefix_ranges(&self) -> Vec<CidrRange> {
        self.range.iter().filter_map(|range| wire::cidr(&range.to_string())).collect()
    }
}

/// The chain of a service known by a range of addresses, a TLS server name, or both.
fn known_destination(
    settings: &Settings,
    destination: &Destination,
    owner: &Owner,
) -> Option<listener::FilterChain> {
    let mut chain = bytes_chain(settings, owner.routes.last()?);
    chain.filter_chain_match = Some(listener::FilterChainMatch {
        prefix_ranges: destination.prefix_ranges(),
        server_names: wire::server_names(destination.server_name.as_slice()),
        transport_protocol: destination.server_name.as_ref().map(|_| "tls".to_owned()).unwrap_or_default(),
        ..Default::default()
    });
    Some(chain)
}
