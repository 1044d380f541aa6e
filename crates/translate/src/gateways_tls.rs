//! What gateways serve besides plain HTTP: HTTPS with certificates of their own, TLS that is passed on by the name asked for, and bytes,
//! with or without TLS that ends here.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lateen_api::networking::gateway::{Server, ServerTlsMode, ServerTlsSettings};
use lateen_api::networking::virtual_service::TlsMatchAttributes;
use lateen_model::{Gateway, Protocol, Service, VirtualService, host_matches};

use crate::clusters::{self, OutboundClusterInputs};
use crate::gateways::{HttpServer, ServerHost, add_hosts, pod_ports, served_domains};
use crate::proxy::ProxyKind;
use crate::scope::Scope;
use crate::tcp_routes::{self, TcpDestinations};
use crate::wire;

/// An address and port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ServedPort {
    pub(crate) bind: String,
    pub(crate) port: u16,
    /// Whether connections are TLS, so that the name they ask for is looked at.
    pub(crate) tls: bool,
    /// In order of their servers; no two have a name in common.
    pub(crate) chains: Vec<ServedChain>,
}

/// What becomes of connections that ask for one of some names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ServedChain {
    /// Names, possibly with a leading wildcard; empty: any.
    pub(crate) names: Vec<String>,
    /// Protocols they offer (ALPN), any of which will do; empty: whatever.
    pub(crate) protocols: &'static [&'static str],
    pub(crate) end: ChainEnd,
}

/// What a chain's connections come to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ChainEnd {
    /// HTTP over TLS that ends here.
    Https {
        /// Name of the routes.
        routes: String,
        /// The server, whose TLS it is.
        server: ServerRef,
    },
    /// Bytes over TLS that ends here.
    Terminated {
        /// Where they go.
        destinations: TcpDestinations,
        /// The server, whose TLS it is.
        server: ServerRef,
    },
    /// Bytes as they are, TLS or not.
    Bytes(TcpDestinations),
}

/// A server of a Gateway.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ServerRef {
    gateway: Arc<Gateway>,
    index: usize,
}

impl ServerRef {
    /// Its TLS.
    pub(crate) fn tls(&self) -> Option<&ServerTlsSettings> {
        self.gateway.spec.servers.get(self.index)?.tls.as_ref()
    }
}

/// What a server serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServerKind {
    /// HTTP without TLS.
    Http,
    /// Bytes without TLS.
    Tcp,
    /// HTTP over TLS that ends here.
    Https,
    /// Bytes over TLS that ends here.
    TlsEnded,
    /// TLS that ends at the destination, by the name asked for.
    Passthrough,
    /// TLS of the mesh that ends at the destination, by the name of its cluster.
    AutoPassthrough,
}

/// What proxies of the mesh offer in their TLS, by which a gateway knows it (Istio's list).
const MESH_PROTOCOLS: &[&str] =
    &["istio", "istio-peer-exchange", "istio-http/1.0", "istio-http/1.1", "istio-h2"];

/// Servers of one port are of one sort, as in Istio: HTTP, bytes, or TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PortSort {
    Http,
    Tcp,
    Tls,
}

impl ServerKind {
    /// None: nothing (yet), see [`no_effect`].
    fn of(server: &Server) -> Option<Self> {
        let protocol = Protocol::parse(&server.port.protocol);
        if protocol.is_http() {
            return Some(Self::Http);
        }
        if matches!(protocol, Protocol::Udp | Protocol::Unsupported) {
            return None;
        }
        if !protocol.is_tls() {
            return Some(Self::Tcp);
        }
        match server.tls.as_ref()?.mode {
            ServerTlsMode::Passthrough => Some(Self::Passthrough),
            ServerTlsMode::AutoPassthrough => Some(Self::AutoPassthrough),
            _ if protocol == Protocol::Https => Some(Self::Https),
            _ => Some(Self::TlsEnded),
        }
    }

    fn sort(self) -> PortSort {
        match self {
            Self::Http => PortSort::Http,
            Self::Tcp => PortSort::Tcp,
            Self::Https | Self::TlsEnded | Self::Passthrough | Self::AutoPassthrough => PortSort::Tls,
        }
    }
}

/// Why a server has no effect (yet); `None`: it has.
pub(crate) fn no_effect(server: &Server) -> Option<String> {
    if ServerKind::of(server).is_some() {
        return None;
    }
    let protocol = &server.port.protocol;
    Some(format!("protocol {protocol:?} is not served"))
}

/// What each address and port is for. The oldest Gateway has its way.
pub(crate) fn sorts(scope: &Scope) -> BTreeMap<(String, u16), PortSort> {
    let mut sorts = BTreeMap::new();
    for gateway in scope.world.gateways_for_oldest_first(&scope.class.labels) {
        for server in &gateway.spec.servers {
            let Some(kind) = ServerKind::of(server) else { continue };
            for (bind, port, _) in places(scope, server) {
                sorts.entry((bind, port)).or_insert(kind.sort());
            }
        }
    }
    sorts
}

/// Address, the pod's port and the server's port of a server.
fn places(scope: &Scope, server: &Server) -> Vec<(String, u16, u16)> {
    let Ok(server_port) = u16::try_from(server.port.number) else { return Vec::new() };
    let bind = if server.bind.is_empty() { "0.0.0.0" } else { &server.bind };
    pod_ports(scope, server_port).into_iter().map(|port| (bind.to_owned(), port, server_port)).collect()
}

/// A server over TLS at one place, with the names that no older server there has.
struct Placed<'a> {
    gateway: &'a Arc<Gateway>,
    index: usize,
    server: &'a Server,
    kind: ServerKind,
    bind: String,
    port: u16,
    server_port: u16,
    names: Vec<String>,
}

impl Placed<'_> {
    /// As Istio names the routes of HTTPS servers.
    fn routes(&self) -> String {
        let name = &self.gateway.name;
        let bind = if self.bind == "0.0.0.0" { String::new() } else { format!(".{}", self.bind) };
        format!("https.{}.{}.{}.{}{bind}", self.port, self.server.port.name, name.name, name.namespace)
    }
}

fn each(scope: &Scope, mut act: impl FnMut(Placed<'_>)) {
    let sorts = sorts(scope);
    let mut taken: BTreeSet<(String, u16, String)> = BTreeSet::new();
    for gateway in scope.world.gateways_for_oldest_first(&scope.class.labels) {
        for (index, server) in gateway.spec.servers.iter().enumerate() {
            let Some(kind) = ServerKind::of(server).filter(|kind| *kind != ServerKind::Http) else {
                continue;
            };
            for (bind, port, server_port) in places(scope, server) {
                if sorts.get(&(bind.clone(), port)) != Some(&kind.sort()) {
                    continue;
                }
                let own = &gateway.name.namespace;
                let patterns = server.hosts.iter().map(|host| ServerHost::new(host, own).pattern);
                let names: Vec<String> =
                    patterns.filter(|name| taken.insert((bind.clone(), port, name.clone()))).collect();
                if names.is_empty() {
                    continue;
                }
                act(Placed { gateway: &gateway, index, server, kind, bind, port, server_port, names });
            }
        }
    }
}

/// HTTPS servers with their routes.
pub(crate) fn https_servers(scope: &Scope) -> Vec<HttpServer> {
    let mut servers = Vec::new();
    each(scope, |placed| {
        if placed.kind != ServerKind::Https {
            return;
        }
        let mut hosts = BTreeMap::new();
        add_hosts(scope, placed.gateway, placed.server, placed.server_port, &mut hosts);
        servers.push(HttpServer {
            https_routes: Some(placed.routes()),
            bind: placed.bind,
            port: placed.port,
            server_port: placed.server_port,
            hosts,
        });
    });
    servers
}

/// Ports for more than plain HTTP. Where a certificate is not there, connections are reset until it is, as with Istio: the chain stays the
/// same, so that nothing is lost when Secrets come, change, or are replaced by deleting and creating.
pub(crate) fn ports(scope: &Scope) -> Vec<ServedPort> {
    let mut ports: BTreeMap<(String, u16), (bool, Vec<ServedChain>)> = BTreeMap::new();
    each(scope, |placed| {
        let tls = placed.kind.sort() == PortSort::Tls;
        let (_, chains) =
            ports.entry((placed.bind.clone(), placed.port)).or_insert_with(|| (tls, Vec::new()));
        let server = ServerRef { gateway: placed.gateway.clone(), index: placed.index };
        let end = match placed.kind {
            ServerKind::Http => return,
            ServerKind::Passthrough => return chains.extend(passed_through(scope, &placed)),
            ServerKind::AutoPassthrough => return chains.extend(passed_on(scope, &placed.names)),
            ServerKind::Https => Some(ChainEnd::Https { routes: placed.routes(), server }),
            ServerKind::TlsEnded => tcp_destinations(scope, &placed)
                .map(|destinations| ChainEnd::Terminated { destinations, server }),
            // One chain takes all; further servers of the port have no say.
            ServerKind::Tcp if !chains.is_empty() => None,
            ServerKind::Tcp => tcp_destinations(scope, &placed).map(ChainEnd::Bytes),
        };
        let names = if tls { wire::server_names(&placed.names) } else { Vec::new() };
        chains.extend(end.map(|end| ServedChain { names, protocols: &[], end }));
    });
    let with_chains = ports.into_iter().filter(|(_, (_, chains))| !chains.is_empty());
    with_chains.map(|((bind, port), (tls, chains))| ServedPort { bind, port, tls, chains }).collect()
}

/// Whether a gateway passes TLS on by the names of clusters.
pub(crate) fn passes_on(scope: &Scope) -> bool {
    let is_so = |server: &Server| ServerKind::of(server) == Some(ServerKind::AutoPassthrough);
    scope.class.kind == ProxyKind::Router
        && scope
            .world
            .gateways_for(&scope.class.labels)
            .iter()
            .any(|gateway| gateway.spec.servers.iter().any(is_so))
}

/// A chain for each cluster in the mesh whose host is among these. No VirtualService is needed, and only what offers the mesh's protocols
/// is let through: with the choice of endpoints that keeps out who would reach workloads without TLS of the mesh. To ports of undeclared
/// protocol our callers offer none (`mutual_tls`): there the cluster's name is enough, as it is for the workload's proxy.
fn passed_on(scope: &Scope, hosts: &[String]) -> Vec<ServedChain> {
    let is_served =
        |service: &&Arc<Service>| hosts.iter().any(|pattern| host_matches(pattern, &service.hostname));
    let inputs = scope.services.iter().filter(is_served);
    let inputs = inputs.flat_map(|service| clusters::passed_on_inputs(scope, service));
    let chain = |inputs: OutboundClusterInputs| {
        let name = inputs.name();
        let destinations =
            TcpDestinations { options: inputs.tcp_options(), ..TcpDestinations::only(name.clone()) };
        let protocols = if inputs.offers_mesh_protocols() { MESH_PROTOCOLS } else { &[] };
        ServedChain { names: vec![name], protocols, end: ChainEnd::Bytes(destinations) }
    };
    inputs.map(chain).collect()
}

/// Where the TCP rules bound to the gateway send a server's connections: those of the oldest VirtualService that has one for it.
fn tcp_destinations(scope: &Scope, placed: &Placed<'_>) -> Option<TcpDestinations> {
    let name = &placed.gateway.name;
    let hosts: Vec<ServerHost<'_>> =
        placed.server.hosts.iter().map(|host| ServerHost::new(host, &name.namespace)).collect();
    let bound = scope.world.gateway_virtual_services(name, &scope.class.namespace);
    let served = |service: &&Arc<VirtualService>| !served_domains(scope, &hosts, service).is_empty();
    bound
        .iter()
        .filter(served)
        .find_map(|service| tcp_routes::of_gateway(scope, service, name, placed.server_port))
}

/// A chain for each name of the TLS rules bound to the gateway, as far as the server serves it.
fn passed_through(scope: &Scope, placed: &Placed<'_>) -> Vec<ServedChain> {
    let gateway = placed.gateway.name.to_string();
    let hosts: Vec<ServerHost<'_>> = placed
        .server
        .hosts
        .iter()
        .map(|host| ServerHost::new(host, &placed.gateway.name.namespace))
        .collect();
    let mut chains = Vec::new();
    let mut taken = BTreeSet::new();
    for service in scope.world.gateway_virtual_services(&placed.gateway.name, &scope.class.namespace) {
        let own = &service.name.namespace;
        let served = |name: &String| {
            let name = name.to_ascii_lowercase();
            hosts.iter().any(|host| {
                host.namespace.is_none_or(|namespace| namespace == &**own)
                    && placed.names.contains(&host.pattern)
                    && host_matches(&host.pattern, &name)
            })
        };
        for rule in &service.spec.tls {
            let holds = |condition: &&TlsMatchAttributes| {
                tcp_routes::is_for(&condition.gateways, &gateway, own)
                    && (condition.port == 0 || condition.port == u32::from(placed.server_port))
            };
            let names: Vec<String> = rule
                .r#match
                .iter()
                .filter(holds)
                .flat_map(|condition| &condition.sni_hosts)
                .filter(|name| served(name) && taken.insert(name.to_ascii_lowercase()))
                .cloned()
                .collect();
            let destinations = TcpDestinations::new(scope, &service, &rule.route, placed.server_port);
            let (Some(destinations), false) = (destinations, names.is_empty()) else { continue };
            let names = wire::server_names(&names);
            chains.push(ServedChain { names, protocols: &[], end: ChainEnd::Bytes(destinations) });
        }
    }
    chains
}
