//! What gateways serve over TLS: HTTPS with certificates of their own, and TLS that is passed on by the name asked for.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use lateen_api::networking::gateway::{Server, ServerTlsMode, ServerTlsSettings};
use lateen_api::networking::virtual_service::TlsMatchAttributes;
use lateen_model::{Gateway, Protocol, host_matches, labels_match, resolve_gateway};

use crate::gateways::{HttpServer, ServerHost, add_hosts, pod_ports, serves_plain_http};
use crate::scope::Scope;
use crate::tcp_routes::TcpDestinations;

/// An address and port with TLS.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TlsPort {
    pub(crate) bind: String,
    pub(crate) port: u16,
    /// In order of their servers; no two have a name in common.
    pub(crate) chains: Vec<TlsChain>,
}

/// What becomes of connections that ask for one of some names.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TlsChain {
    /// Names, possibly with a leading wildcard; empty: any.
    pub(crate) names: Vec<String>,
    pub(crate) end: TlsEnd,
}

/// Where the TLS of a chain ends.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum TlsEnd {
    /// Here.
    Https {
        /// Name of the routes.
        routes: String,
        /// The server, whose TLS it is.
        server: ServerRef,
    },
    /// At the destination.
    Passthrough(TcpDestinations),
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

/// How a server's connections are secured; `None`: it serves no TLS that is known here.
fn kind_of(server: &Server) -> Option<ServerTlsMode> {
    if server.bind.starts_with("unix://") {
        return None;
    }
    let mode = server.tls.as_ref().map(|tls| tls.mode);
    match (Protocol::parse(&server.port.protocol), mode?) {
        (
            Protocol::Https,
            mode @ (ServerTlsMode::Simple | ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual),
        ) => Some(mode),
        (Protocol::Https | Protocol::Tls, ServerTlsMode::Passthrough) => Some(ServerTlsMode::Passthrough),
        _ => None,
    }
}

/// Why a server has no effect (yet); `None`: it has.
pub(crate) fn no_effect(server: &Server) -> Option<String> {
    if serves_plain_http(server) || kind_of(server).is_some() {
        return None;
    }
    let protocol = &server.port.protocol;
    Some(match server.tls.as_ref().map(|tls| tls.mode) {
        Some(ServerTlsMode::IstioMutual | ServerTlsMode::AutoPassthrough) => {
            "its TLS mode comes with the mesh's own certificates".to_owned()
        }
        _ => format!(
            "protocol {protocol:?} is not served, only HTTP, HTTPS and TLS that is passed through are"
        ),
    })
}

/// Whether each address and port is for plain HTTP. The oldest Gateway has its way.
pub(crate) fn kinds(scope: &Scope) -> BTreeMap<(String, u16), bool> {
    let mut kinds = BTreeMap::new();
    for gateway in scope.world.gateways_for_oldest_first(&scope.class.labels) {
        for server in &gateway.spec.servers {
            let plain = serves_plain_http(server);
            if !plain && kind_of(server).is_none() {
                continue;
            }
            for (bind, port, _) in places(scope, server) {
                kinds.entry((bind, port)).or_insert(plain);
            }
        }
    }
    kinds
}

pub(crate) fn is_plain(kinds: &BTreeMap<(String, u16), bool>, bind: &str, port: u16) -> bool {
    kinds.get(&(bind.to_owned(), port)).copied().unwrap_or(true)
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
    mode: ServerTlsMode,
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
    let kinds = kinds(scope);
    let mut taken: BTreeSet<(String, u16, String)> = BTreeSet::new();
    for gateway in scope.world.gateways_for_oldest_first(&scope.class.labels) {
        for (index, server) in gateway.spec.servers.iter().enumerate() {
            let Some(mode) = kind_of(server) else { continue };
            for (bind, port, server_port) in places(scope, server) {
                if is_plain(&kinds, &bind, port) {
                    continue;
                }
                let own = &gateway.name.namespace;
                let patterns = server.hosts.iter().map(|host| ServerHost::new(host, own).pattern);
                let names: Vec<String> =
                    patterns.filter(|name| taken.insert((bind.clone(), port, name.clone()))).collect();
                if names.is_empty() {
                    continue;
                }
                act(Placed { gateway: &gateway, index, server, mode, bind, port, server_port, names });
            }
        }
    }
}

/// HTTPS servers with their routes.
pub(crate) fn https_servers(scope: &Scope) -> Vec<HttpServer> {
    let mut servers = Vec::new();
    each(scope, |placed| {
        if placed.mode == ServerTlsMode::Passthrough {
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

/// Ports with TLS. Where a certificate is not there, connections are reset until it is, as with Istio: the chain stays the same, so that
/// nothing is lost when Secrets come, change, or are replaced by deleting and creating.
pub(crate) fn ports(scope: &Scope) -> Vec<TlsPort> {
    let mut ports: BTreeMap<(String, u16), Vec<TlsChain>> = BTreeMap::new();
    each(scope, |placed| {
        let chains = ports.entry((placed.bind.clone(), placed.port)).or_default();
        if placed.mode == ServerTlsMode::Passthrough {
            chains.extend(passed_through(scope, &placed));
            return;
        }
        let any = placed.names.iter().any(|name| name == "*");
        let server = ServerRef { gateway: placed.gateway.clone(), index: placed.index };
        let end = TlsEnd::Https { routes: placed.routes(), server };
        chains.push(TlsChain { names: if any { Vec::new() } else { placed.names }, end });
    });
    let with_chains = ports.into_iter().filter(|(_, chains)| !chains.is_empty());
    with_chains.map(|((bind, port), chains)| TlsPort { bind, port, chains }).collect()
}

/// A chain for each name of the TLS rules bound to the gateway, as far as the server serves it.
fn passed_through(scope: &Scope, placed: &Placed<'_>) -> Vec<TlsChain> {
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
                let of_gateway = condition.gateways.is_empty()
                    || condition.gateways.iter().any(|name| resolve_gateway(name, own) == gateway);
                of_gateway
                    && (condition.port == 0 || condition.port == u32::from(placed.server_port))
                    && labels_match(&condition.source_labels, &scope.class.labels)
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
            let any = names.iter().any(|name| name == "*");
            let names = if any { Vec::new() } else { names };
            chains.push(TlsChain { names, end: TlsEnd::Passthrough(destinations) });
        }
    }
    chains
}
