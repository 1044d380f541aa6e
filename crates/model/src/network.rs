//! Networks: which endpoints are in which, and the gateways by which one is reached from the others.
//!
//! The rules are istiod's: of an endpoint its own `network`, else the label `topology.istio.io/network` of its pod or entry, else
//! that of the control plane's namespace, else what `meshNetworks` says. Gateways are Services with that label, at their load
//! balancer's addresses or at nodes, and those of `meshNetworks`.
//! <https://istio.io/latest/docs/setup/install/multicluster/multi-primary_multi-network/>
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use lateen_api::MeshNetworks;

use crate::endpoint::Address;
use crate::hostname::Hostname;
use crate::pod::labels_match;

/// Label of a pod, an entry, a Service of gateways, and of the control plane's namespace, with the name of a network.
pub const NETWORK_LABEL: &str = "topology.istio.io/network";
/// Label of a Service of gateways with another port than [`GATEWAY_PORT`].
const GATEWAY_PORT_LABEL: &str = "networking.istio.io/gatewayPort";
/// Annotation of a Service of type NodePort with the labels, as JSON, of the nodes at which it is reached.
const NODE_SELECTOR: &str = "traffic.istio.io/nodeSelector";
/// The port of gateways between networks.
const GATEWAY_PORT: u16 = 15_443;

/// The networks of the mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Networks {
    pub(crate) places: Places,
    /// Gateways with an IP address, their own or their name's.
    pub(crate) gateways: Gateways,
    /// All gateways, as they are called: proxies that look names up do so for theirs.
    pub(crate) named_gateways: Gateways,
    pub(crate) names: Vec<Arc<str>>,
    pub(crate) unused: Vec<String>,
}

/// Where one network's gateway listens for TLS of the mesh.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkGateway {
    /// Address.
    pub address: Address,
    /// Port.
    pub port: u16,
}

/// What says which network an endpoint is in that says nothing itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Places {
    /// Of the control plane's namespace.
    pub(crate) of_system: String,
    /// Of the cluster, by `fromRegistry`.
    of_registry: String,
    /// Of ranges of addresses, the widest first.
    ranges: Vec<(IpNet, String)>,
}

/// Gateways by network.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Gateways {
    by_network: BTreeMap<String, Vec<NetworkGateway>>,
    scale: u32,
}

impl Default for Gateways {
    fn default() -> Self {
        Self { by_network: BTreeMap::new(), scale: 1 }
    }
}

impl Gateways {
    /// Whether there are none, so that all endpoints are reached directly.
    pub fn is_empty(&self) -> bool {
        self.by_network.is_empty()
    }

    /// The gateways of a network, in order.
    pub fn of(&self, network: &str) -> &[NetworkGateway] {
        self.by_network.get(network).map(Vec::as_slice).unwrap_or_default()
    }

    /// The network that is reached by a gateway at this address and port.
    pub fn network_at(&self, address: IpAddr, port: u16) -> Option<&str> {
        let gateway = NetworkGateway { address: Address::Ip(address), port };
        let found = self.by_network.iter().find(|(_, gateways)| gateways.contains(&gateway));
        found.map(|(network, _)| network.as_str())
    }

    /// What weights of endpoints are multiplied by, so that each network's gateways can share them evenly: the least common
    /// multiple of their numbers.
    pub fn scale(&self) -> u32 {
        self.scale
    }
}

impl Networks {
    /// Gateways with an IP address, their own or their name's.
    pub fn gateways(&self) -> &Gateways {
        &self.gateways
    }

    /// All gateways, for clusters whose endpoints' names the proxy looks up.
    pub fn named_gateways(&self) -> &Gateways {
        &self.named_gateways
    }

    /// Names of gateways, whose addresses [`Event::GatewayName`](crate::Event::GatewayName) tells.
    pub fn gateway_names(&self) -> &[Arc<str>] {
        &self.names
    }

    /// Fields of `meshNetworks` that were given and do nothing, as paths.
    pub fn without_effect(&self) -> &[String] {
        &self.unused
    }

    /// The network of a workload with these labels at this address; empty when nobody says.
    pub fn of_workload(&self, labels: &BTreeMap<String, String>, address: Option<IpAddr>) -> String {
        self.places.of_workload(labels, address)
    }
}

impl Places {
    /// What `meshNetworks` says of a cluster, and what its namespace's label does.
    pub(crate) fn new(networks: &MeshNetworks, cluster: &str, of_system: String) -> Self {
        let mut places = Self { of_system, ..Self::default() };
        for (name, network) in &networks.networks {
            for endpoints in &network.endpoints {
                // Of several networks that claim the cluster the first keeps it.
                if endpoints.from_registry.as_deref() == Some(cluster) && places.of_registry.is_empty() {
                    places.of_registry.clone_from(name);
                }
                // An address alone is no range to istiod either.
                let range = endpoints.from_cidr.as_deref().and_then(|text| text.parse::<IpNet>().ok());
                places.ranges.extend(range.map(|range| (range.trunc(), name.clone())));
            }
        }
        places.ranges.sort_by_key(|(range, _)| range.prefix_len());
        places
    }

    /// See [`Networks::of_workload`].
    pub(crate) fn of_workload(&self, labels: &BTreeMap<String, String>, address: Option<IpAddr>) -> String {
        let own = labels.get(NETWORK_LABEL).map(String::as_str);
        let general = [own.unwrap_or_default(), &self.of_system, &self.of_registry];
        let by_address = || {
            let address = address?;
            self.ranges.iter().find(|(range, _)| range.contains(&address)).map(|(_, name)| name.as_str())
        };
        let given = general.into_iter().find(|name| !name.is_empty()).or_else(by_address);
        given.unwrap_or_default().to_owned()
    }
}

/// What a Service says of the gateways behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GatewayService {
    /// By its labels: network and port.
    labelled: Option<(String, u16)>,
    /// Where it is reached from outside the cluster.
    addresses: Vec<Address>,
    /// Of a Service of type NodePort whose annotation says at which nodes it is reached.
    at_nodes: Option<AtNodes>,
}

/// Where a Service of type NodePort is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
struct AtNodes {
    /// Labels of the nodes.
    selector: BTreeMap<String, String>,
    /// The nodes' ports by the Service's.
    ports: BTreeMap<u16, u16>,
}

/// A node by which gateways may be reached: one with an address outside the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GatewayNode {
    address: Address,
    labels: BTreeMap<String, String>,
}

impl GatewayNode {
    /// Takes over a Node; none when it has no external address.
    pub(crate) fn new(node: &core::Node) -> Option<Self> {
        let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
        let mut external = addresses.filter(|one| one.type_ == "ExternalIP" && !one.address.is_empty());
        let address = Address::parse(&external.next()?.address);
        Some(Self { address, labels: node.metadata.labels.clone().unwrap_or_default() })
    }
}

impl AtNodes {
    fn new(service: &core::Service, spec: &core::ServiceSpec) -> Option<Self> {
        let annotation = service.metadata.annotations.as_ref()?.get(NODE_SELECTOR)?;
        if spec.type_.as_deref() != Some("NodePort") {
            return None;
        }
        let number = |port: i32| u16::try_from(port).ok();
        let ports = spec.ports.iter().flatten();
        Some(Self {
            // As for istiod, what does not parse selects all.
            selector: serde_json::from_str(annotation).unwrap_or_default(),
            ports: ports.filter_map(|port| Some((number(port.port)?, number(port.node_port?)?))).collect(),
        })
    }
}

impl GatewayService {
    /// Takes over a Service; none when it is not reached from outside.
    pub(crate) fn new(service: &core::Service) -> Option<Self> {
        let spec = service.spec.as_ref()?;
        let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        let ingress = balancer
            .filter(|_| spec.type_.as_deref() == Some("LoadBalancer"))
            .and_then(|balancer| balancer.ingress.as_deref())
            .unwrap_or_default();
        let address = |text: &String| (!text.is_empty()).then(|| Address::parse(text));
        let balanced = ingress.iter().filter_map(|one| {
            one.ip.as_ref().and_then(address).or_else(|| one.hostname.as_ref().and_then(address))
        });
        let addresses: Vec<Address> =
            balanced.chain(spec.external_ips.iter().flatten().filter_map(address)).collect();
        let label = |key: &str| service.metadata.labels.as_ref()?.get(key).filter(|value| !value.is_empty());
        let labelled = label(NETWORK_LABEL).map(|network| {
            let port = label(GATEWAY_PORT_LABEL).and_then(|port| port.parse().ok());
            (network.clone(), port.unwrap_or(GATEWAY_PORT))
        });
        let at_nodes = AtNodes::new(service, spec);
        (!addresses.is_empty() || at_nodes.is_some()).then_some(Self { labelled, addresses, at_nodes })
    }

    /// Whether nodes say where it is.
    pub(crate) fn is_at_nodes(&self) -> bool {
        self.at_nodes.is_some()
    }

    /// The gateways behind a port of it.
    fn gateways<'a>(&self, port: u16, nodes: impl Iterator<Item = &'a GatewayNode>) -> Vec<NetworkGateway> {
        let at = |address: &Address, port| NetworkGateway { address: address.clone(), port };
        match &self.at_nodes {
            None => self.addresses.iter().map(|address| at(address, port)).collect(),
            Some(at_nodes) => {
                let port = at_nodes.ports.get(&port).copied().unwrap_or(port);
                let selected = nodes.filter(|node| labels_match(&at_nodes.selector, &node.labels));
                selected.map(|node| at(&node.address, port)).collect()
            }
        }
    }
}

/// The gateways of all networks, by network. Those of the cluster go before those that belong to none, as endpoints of the cluster
/// prefer them.
#[derive(Debug, Default)]
pub(crate) struct Known {
    of_cluster: BTreeMap<String, BTreeSet<NetworkGateway>>,
    of_none: BTreeMap<String, BTreeSet<NetworkGateway>>,
}

/// The gateways that mesh networks and Services tell of.
pub(crate) fn gateways<'a>(
    networks: &MeshNetworks,
    cluster: &str,
    services: impl Iterator<Item = (Hostname, &'a GatewayService)>,
    nodes: &BTreeMap<Arc<str>, GatewayNode>,
) -> Known {
    let Known { mut of_cluster, mut of_none } = Known::default();
    let mut by_host: BTreeMap<&str, Vec<(&str, u16)>> = BTreeMap::new();
    for (name, network) in &networks.networks {
        let is_of_cluster =
            network.endpoints.iter().any(|endpoints| endpoints.from_registry.as_deref() == Some(cluster));
        for gateway in &network.gateways {
            let Ok(port) = u16::try_from(gateway.port) else { continue };
            if let Some(address) = gateway.address.as_deref().filter(|address| !address.is_empty()) {
                let gateway = NetworkGateway { address: Address::parse(address), port };
                of_none.entry(name.clone()).or_default().insert(gateway);
            }
            if let Some(host) = gateway.registry_service_name.as_deref().filter(|_| is_of_cluster) {
                by_host.entry(host).or_default().push((name, port));
            }
        }
    }
    for (host, service) in services {
        let labelled = service.labelled.as_ref().map(|(network, port)| vec![(network.as_str(), *port)]);
        let named = || by_host.get(&*host).cloned().unwrap_or_default();
        for (network, port) in labelled.unwrap_or_else(named) {
            of_cluster.entry(network.to_owned()).or_default().extend(service.gateways(port, nodes.values()));
        }
    }
    Known { of_cluster, of_none }
}

impl Known {
    /// Their names, in order.
    pub(crate) fn names(&self) -> Vec<Arc<str>> {
        let all = self.of_cluster.values().chain(self.of_none.values()).flatten();
        let names: BTreeSet<&Arc<str>> = all
            .filter_map(|gateway| match &gateway.address {
                Address::Dns(name) => Some(name),
                _ => None,
            })
            .collect();
        names.into_iter().cloned().collect()
    }

    /// As they are called.
    pub(crate) fn as_named(&self) -> Gateways {
        self.collect(|gateway| vec![gateway.clone()])
    }

    /// Those with an address, names being those of these addresses.
    pub(crate) fn by_address(&self, names: &BTreeMap<Arc<str>, Vec<IpAddr>>) -> Gateways {
        self.collect(|gateway| {
            let found = match &gateway.address {
                Address::Ip(address) => std::slice::from_ref(address),
                Address::Dns(name) => names.get(name).map(Vec::as_slice).unwrap_or_default(),
                Address::Unix(_) | Address::Unknown => &[],
            };
            let at = |address: &IpAddr| NetworkGateway { address: Address::Ip(*address), port: gateway.port };
            found.iter().map(at).collect()
        })
    }

    fn collect(&self, found: impl Fn(&NetworkGateway) -> Vec<NetworkGateway>) -> Gateways {
        let mut gateways = Gateways::default();
        let names: BTreeSet<&String> = self.of_cluster.keys().chain(self.of_none.keys()).collect();
        for name in names {
            let usable = |of: &BTreeMap<String, BTreeSet<NetworkGateway>>| -> BTreeSet<NetworkGateway> {
                of.get(name).into_iter().flatten().flat_map(&found).collect()
            };
            let (own, others) = (usable(&self.of_cluster), usable(&self.of_none));
            // A gateway that is known in both ways counts twice, since istiod tells them apart by their cluster.
            for count in [own.len(), others.len(), own.len() + others.len()] {
                gateways.scale = least_common_multiple(gateways.scale, count);
            }
            let chosen = if own.is_empty() { others } else { own };
            if !chosen.is_empty() {
                gateways.by_network.insert(name.clone(), chosen.into_iter().collect());
            }
        }
        gateways
    }
}

/// Of a number with a count; no count leaves it, and so does one that would not fit.
fn least_common_multiple(number: u32, count: usize) -> u32 {
    let Ok(count) = u32::try_from(count) else { return number };
    if count == 0 {
        return number;
    }
    let (mut a, mut b) = (number, count);
    while b != 0 {
        (a, b) = (b, a % b);
    }
    (number / a).checked_mul(count).unwrap_or(number)
}
