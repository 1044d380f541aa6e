//! The Sidecar in force for a class: what its proxies reach, and how their workload receives.
//! <https://istio.io/latest/docs/reference/config/networking/sidecar/>
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use lateen_api::networking::destination_rule::ConnectionPoolSettings;
use lateen_api::networking::gateway::{ServerTlsMode, ServerTlsSettings};
use lateen_api::networking::sidecar::{CaptureMode, EgressListener, IngressListener};
use lateen_api::validate::default_endpoint;
use lateen_model::{
    Hostname, Protocol, Service, ServicePort, Sidecar, VirtualService, World, host_matches, hosts_overlap,
    resolve_host,
};

use crate::proxy::{InboundPort, ProxyClass, ProxyKind};

/// A port the workload receives on, with where and how it is sent on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Inbound {
    pub(crate) port: InboundPort,
    pub(crate) endpoint: InboundEndpoint,
    /// Limits of the Sidecar.
    pub(crate) pool: Option<ConnectionPoolSettings>,
    /// TLS of callers outside the mesh, where mutual TLS of the mesh is disabled.
    pub(crate) tls: Option<ServerTlsSettings>,
    /// The address of a listener of its own; none: what is captured arrives there.
    pub(crate) bind: Option<IpAddr>,
}

/// Where what is received is sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum InboundEndpoint {
    /// Where the connection was made to.
    #[default]
    Original,
    /// The address the connection was made to, on another port.
    Port(u16),
    /// The loopback address, on this port.
    Loopback(u16),
    /// A Unix socket's path; one that begins with `@` is in the abstract namespace.
    Unix(String),
}

/// The Sidecar for a class; gateways have none.
pub(crate) fn in_force<'a>(world: &'a World, class: &ProxyClass) -> Option<&'a Arc<Sidecar>> {
    match class.kind {
        ProxyKind::Sidecar => world.sidecar_for(&class.namespace, &class.labels),
        ProxyKind::Router => None,
    }
}

/// Where an egress listener is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Place {
    /// Where captured traffic goes.
    Captured,
    /// At an address of its own.
    At(BoundAddress),
}

/// Where a listener is that has an address of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum BoundAddress {
    /// A port of an IP address.
    Ip {
        address: IpAddr,
        /// The application connects to it; else what it sends there is captured.
        opened: bool,
    },
    /// `unix://PATH`, for all ports that are reached through it. As in Istio its routes have this name.
    Unix(Arc<str>),
}

/// Where an egress listener is. As in Istio one that is not captured is on the loopback address where nothing is said.
pub(crate) fn place(listener: &EgressListener) -> Place {
    let opened = listener.capture_mode == CaptureMode::None;
    match listener.bind.parse() {
        Ok(address) => Place::At(BoundAddress::Ip { address, opened }),
        Err(_) if listener.bind.starts_with("unix://") => {
            Place::At(BoundAddress::Unix(listener.bind.as_str().into()))
        }
        Err(_) if opened => Place::At(BoundAddress::Ip { address: Ipv4Addr::LOCALHOST.into(), opened }),
        Err(_) => Place::Captured,
    }
}

impl BoundAddress {
    /// Its text in names of listeners.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Ip { address, .. } => address.to_string(),
            Self::Unix(text) => text.to_string(),
        }
    }

    /// The socket's text, where it is a Unix socket.
    pub(crate) fn unix(&self) -> Option<&Arc<str>> {
        match self {
            Self::Ip { .. } => None,
            Self::Unix(text) => Some(text),
        }
    }
}

/// What is reached through an egress listener at an address of its own.
#[derive(Clone, Debug)]
pub(crate) struct BoundListener {
    pub(crate) at: BoundAddress,
    pub(crate) addressed: Arc<[Arc<Service>]>,
    pub(crate) virtual_services: Arc<[Arc<VirtualService>]>,
}

/// The ports that are an egress listener's own, so that the one for all ports has nothing there. `bound`: only of those at
/// addresses of their own.
pub(crate) fn listened_ports(sidecar: &Sidecar, bound: bool) -> BTreeSet<u16> {
    let listeners = sidecar.spec.egress.iter();
    let wanted = listeners.filter(|listener| !bound || matches!(place(listener), Place::At(_)));
    wanted.filter_map(port_of).collect()
}

/// The port an egress listener is about; none: all, as with a Unix socket, whose number is 0.
fn port_of(listener: &EgressListener) -> Option<u16> {
    let number = listener.port.as_ref().and_then(|port| u16::try_from(port.number).ok());
    number.filter(|number| *number > 0)
}

/// A service without some of its ports; none when nothing is left.
pub(crate) fn without_ports(service: Arc<Service>, ports: &BTreeSet<u16>) -> Option<Arc<Service>> {
    if service.ports.iter().all(|port| !ports.contains(&port.port)) {
        return Some(service);
    }
    let left: Vec<_> = service.ports.iter().filter(|port| !ports.contains(&port.port)).cloned().collect();
    (!left.is_empty()).then(|| Arc::new(Service { ports: left, ..Service::clone(&service) }))
}

/// A service as a listener with a port of its own has it: with the protocol that the listener says.
pub(crate) fn as_listened(service: Arc<Service>, listener: &EgressListener) -> Arc<Service> {
    let Some(port) = &listener.port else { return service };
    let protocol = Protocol::parse(&port.protocol);
    if service.ports.iter().all(|port| port.protocol == protocol) {
        return service;
    }
    let ports = service.ports.iter().map(|port| ServicePort { protocol, ..port.clone() }).collect();
    Arc::new(Service { ports, ..Service::clone(&service) })
}

/// One entry of an egress listener's hosts, for one port or all.
struct Import<'a> {
    /// None: any.
    namespace: Option<&'a str>,
    pattern: String,
    port: Option<u16>,
}

/// What a Sidecar imports for proxies of a namespace.
pub(crate) struct Imports<'a>(Vec<Import<'a>>);

impl<'a> Imports<'a> {
    /// By all egress listeners; without any, everything is imported.
    pub(crate) fn new(sidecar: &'a Sidecar, own: &'a str) -> Self {
        Self::by(sidecar, own, |_| true)
    }

    /// By what is captured.
    pub(crate) fn captured(sidecar: &'a Sidecar, own: &'a str) -> Self {
        Self::by(sidecar, own, |place| place == Place::Captured)
    }

    fn by(sidecar: &'a Sidecar, own: &'a str, wanted: impl Fn(Place) -> bool) -> Self {
        if sidecar.spec.egress.is_empty() {
            return Self(vec![Import { namespace: None, pattern: "*".to_owned(), port: None }]);
        }
        Self::through(sidecar.spec.egress.iter().filter(|listener| wanted(place(listener))), own)
    }

    /// Through these egress listeners.
    pub(crate) fn through(listeners: impl Iterator<Item = &'a EgressListener>, own: &'a str) -> Self {
        let imports = listeners.flat_map(|listener| {
            let port = port_of(listener);
            listener.hosts.iter().filter_map(move |host| {
                let (namespace, pattern) = host.split_once('/')?;
                let namespace = match namespace {
                    "~" => return None,
                    "*" => None,
                    "." => Some(own),
                    name => Some(name),
                };
                Some(Import { namespace, pattern: pattern.to_ascii_lowercase(), port })
            })
        });
        Self(imports.collect())
    }

    /// The service with the ports that are imported; none when it is not.
    pub(crate) fn service(&self, service: &Arc<Service>) -> Option<Arc<Service>> {
        let matching = self.0.iter().filter(|import| {
            import.namespace.is_none_or(|namespace| *service.name.namespace == *namespace)
                && host_matches(&import.pattern, &service.hostname)
        });
        let ports: Vec<Option<u16>> = matching.map(|import| import.port).collect();
        with_ports(service, &ports)
    }

    /// Whether a VirtualService is imported: one of its hosts is.
    pub(crate) fn virtual_service(&self, rules: &VirtualService, domain: &str) -> bool {
        let namespace = &*rules.name.namespace;
        rules.spec.hosts.iter().any(|host| {
            let host = resolve_host(host, namespace, domain);
            self.0.iter().any(|import| {
                import.namespace.is_none_or(|wanted| namespace == wanted)
                    && hosts_overlap(&import.pattern, &host)
            })
        })
    }
}

/// The service with only these ports; `None` among them is all of its ports. No port, no service.
fn with_ports(service: &Arc<Service>, ports: &[Option<u16>]) -> Option<Arc<Service>> {
    if ports.contains(&None) {
        return Some(service.clone());
    }
    let is_wanted = |number: u16| ports.contains(&Some(number));
    if service.ports.iter().all(|port| is_wanted(port.port)) && !ports.is_empty() {
        return Some(service.clone());
    }
    let left: Vec<_> = service.ports.iter().filter(|port| is_wanted(port.port)).cloned().collect();
    (!left.is_empty()).then(|| Arc::new(Service { ports: left, ..Service::clone(service) }))
}

/// The services to have clusters for, by host name: those that are imported, and where the imported VirtualServices send.
pub(crate) fn with_destinations(
    imported: &[Arc<Service>],
    rules: &[Arc<VirtualService>],
    egress_proxy: Option<(&str, Option<u16>)>,
    world: &World,
    namespace: &str,
) -> Vec<Arc<Service>> {
    let mut wanted: BTreeMap<Hostname, Vec<Option<u16>>> = BTreeMap::new();
    let mut add = |host: &str, port: Option<u16>| {
        wanted.entry(host.into()).or_default().push(port);
    };
    for rule in rules {
        for destination in rule.destinations() {
            let host = resolve_host(&destination.host, &rule.name.namespace, world.domain());
            add(&host, destination.port.as_ref().and_then(|port| u16::try_from(port.number).ok()));
        }
    }
    if let Some((host, port)) = egress_proxy {
        add(host, port);
    }
    let mut services: BTreeMap<Hostname, Arc<Service>> =
        imported.iter().map(|service| (service.hostname.clone(), service.clone())).collect();
    for (host, mut ports) in wanted {
        let Some(service) = world.service_for(&host, namespace) else { continue };
        let service = world.behind_alias(service, namespace);
        if service.alias_of().is_some() {
            continue;
        }
        let host = service.hostname.clone();
        if let Some(known) = services.get(&host) {
            ports.extend(known.ports.iter().map(|port| Some(port.port)));
        }
        if let Some(service) = with_ports(service, &ports) {
            services.insert(host, service);
        }
    }
    services.into_values().collect()
}

/// The ports a workload receives on: the Sidecar's when it lists any, else those of the services that select it, the oldest
/// one's where several lead to one port.
pub(crate) fn inbound(world: &World, sidecar: Option<&Sidecar>, class: &ProxyClass) -> Vec<Inbound> {
    let mut ports = class.inbound.clone();
    ports.dedup_by_key(|port| port.port);
    let general = sidecar.and_then(|sidecar| sidecar.spec.inbound_connection_pool.clone());
    let listed = sidecar.map(|sidecar| (sidecar, sidecar.spec.ingress.as_slice()));
    let Some((sidecar, listeners)) = listed.filter(|(_, listeners)| !listeners.is_empty()) else {
        let of_service = |port| Inbound {
            port,
            endpoint: InboundEndpoint::Original,
            pool: general.clone(),
            tls: None,
            bind: None,
        };
        return ports.into_iter().map(of_service).collect();
    };
    let of_listener = |listener: &IngressListener| {
        let port = listener.port.as_ref()?;
        let number = u16::try_from(port.number).ok()?;
        let known = ports.iter().find(|known| known.port == number);
        let hostname = known.map_or_else(
            || format!("{}.{}", sidecar.name.name, class.namespace).into(),
            |known| known.hostname.clone(),
        );
        Some(Inbound {
            port: InboundPort {
                port: number,
                protocol: Protocol::parse(&port.protocol),
                service: known.map_or_else(|| hostname.to_string(), |known| known.service.clone()),
                hostname,
                service_port: known.map_or(number, |known| known.service_port),
                port_name: port.name.clone(),
            },
            endpoint: endpoint(&listener.default_endpoint),
            pool: listener.connection_pool.clone().or_else(|| general.clone()),
            tls: listener.tls.clone().filter(ends_tls),
            bind: opened_at(listener),
        })
    };
    let there = listeners.iter().filter(|listener| !is_taken(world, &class.namespace, listener));
    there.filter_map(of_listener).collect()
}

/// Where an ingress listener is that is not captured: all addresses where nothing is said. A captured one is where all captured
/// traffic arrives, whatever its `bind` says, as in Istio.
fn opened_at(listener: &IngressListener) -> Option<IpAddr> {
    let address = listener.bind.parse().unwrap_or(Ipv4Addr::UNSPECIFIED.into());
    (listener.capture_mode == CaptureMode::None).then_some(address)
}

/// Whether the proxies of a namespace have another listener at the place of an ingress listener that is not captured: the one for
/// HTTP to that port of some service. Proxies would refuse a second one.
pub(crate) fn is_taken(world: &World, namespace: &str, listener: &IngressListener) -> bool {
    let number = listener.port.as_ref().map_or(0, |port| port.number);
    let serves = |service: &Arc<Service>| service.ports.iter().any(|port| u32::from(port.port) == number);
    opened_at(listener).is_some_and(|address| address.is_unspecified())
        && world.visible_services(namespace).any(serves)
}

/// Whether TLS of an ingress listener ends at the proxy.
pub(crate) fn ends_tls(tls: &ServerTlsSettings) -> bool {
    matches!(tls.mode, ServerTlsMode::Simple | ServerTlsMode::Mutual | ServerTlsMode::OptionalMutual)
}

fn endpoint(text: &str) -> InboundEndpoint {
    if let Some(path) = text.strip_prefix("unix://") {
        return InboundEndpoint::Unix(path.to_owned());
    }
    match default_endpoint(text) {
        None => InboundEndpoint::Original,
        Some(address) if address.ip().is_unspecified() => InboundEndpoint::Port(address.port()),
        Some(address) => InboundEndpoint::Loopback(address.port()),
    }
}
