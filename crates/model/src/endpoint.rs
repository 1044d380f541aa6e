//! Endpoints of services, from EndpointSlices and the pods they name.
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::discovery::v1 as discovery;

use crate::hostname::Hostname;
use crate::name::ObjectName;
use crate::network::{NETWORK_LABEL, Places};
use crate::pod::{Labels, Pod};

/// The endpoints of one service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceEndpoints {
    /// The service.
    pub hostname: Hostname,
    /// Endpoints by the service port's name (empty for an unnamed port), sorted by address and port.
    pub by_port: BTreeMap<String, Vec<Endpoint>>,
    /// The networks they are in.
    pub networks: BTreeSet<String>,
}

/// One address and port behind a service port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// Address.
    pub address: Address,
    /// Port; 0 of a Unix socket.
    pub port: u16,
    /// The pod's addresses of another family, where the service has that too: only proxies with both families use them.
    pub other_addresses: Vec<IpAddr>,
    /// Whether it may get traffic.
    pub health: Health,
    /// The pod behind it, when known.
    pub pod: Option<ObjectName>,
    /// The WorkloadEntry it comes from.
    pub entry: Option<ObjectName>,
    /// The pod's name within a headless service (a StatefulSet's `db-0`); empty when it has none.
    pub hostname: String,
    /// Labels of the pod or entry.
    pub labels: Labels,
    /// Workload that owns the pod, or the entry's name.
    pub workload: String,
    /// Service account of the pod or entry.
    pub service_account: String,
    /// Node it runs on.
    pub node: String,
    /// Where it is.
    pub locality: Locality,
    /// Network it is in; empty: nobody says, so that everybody reaches it.
    pub network: String,
    /// Share of traffic relative to others, at least 1.
    pub weight: u32,
}

impl Endpoint {
    /// Namespace of the pod or entry behind it, when known.
    pub fn namespace(&self) -> Option<&str> {
        self.pod.as_ref().or(self.entry.as_ref()).map(|name| &*name.namespace)
    }

    /// The value of one of its labels. Those of topology are known of endpoints that do not carry them, and where an endpoint is
    /// goes before what its label says.
    pub fn label(&self, key: &str) -> Option<&str> {
        let known = match key {
            "topology.kubernetes.io/region" => &self.locality.region,
            "topology.kubernetes.io/zone" => &self.locality.zone,
            "topology.istio.io/subzone" => &self.locality.sub_zone,
            NETWORK_LABEL => &self.network,
            _ => return self.labels.get(key).map(String::as_str),
        };
        let known = Some(known.as_str()).filter(|known| !known.is_empty());
        let own = self.labels.get(key).map(String::as_str);
        if key == NETWORK_LABEL { own.or(known) } else { known.or(own) }
    }

    /// Whether it has all these labels.
    pub fn has_labels(&self, wanted: &BTreeMap<String, String>) -> bool {
        wanted.iter().all(|(key, value)| self.label(key) == Some(value))
    }
}

/// Where an endpoint is reached.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// By IP.
    Ip(IpAddr),
    /// By a DNS name, to be looked up by the proxy.
    Dns(Arc<str>),
    /// By a Unix socket's path.
    Unix(Arc<str>),
    /// By the gateways of its network only: it has no address that anybody knows.
    Unknown,
}

impl Address {
    /// An address as WorkloadEntries write it: an IP address, a DNS name, `unix://` and a path, or nothing.
    pub fn parse(text: &str) -> Self {
        if text.is_empty() {
            return Self::Unknown;
        }
        match (text.strip_prefix("unix://"), text.parse()) {
            (Some(path), _) => Self::Unix(path.into()),
            (None, Ok(address)) => Self::Ip(address),
            (None, Err(_)) => Self::Dns(text.trim_end_matches('.').to_ascii_lowercase().into()),
        }
    }

    /// The IP address, when it is one.
    pub fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Ip(address) => Some(*address),
            Self::Dns(_) | Self::Unix(_) | Self::Unknown => None,
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Dns(name) => f.write_str(name),
            Self::Unix(path) => write!(f, "unix://{path}"),
            Self::Unknown => Ok(()),
        }
    }
}

/// Whether an endpoint may get traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Health {
    /// Ready.
    Healthy,
    /// Not ready.
    Unhealthy,
    /// Terminating but still serving: it finishes what it has, and gets nothing new.
    Draining,
}

/// Region, zone and sub-zone.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Locality {
    /// Region.
    pub region: String,
    /// Zone.
    pub zone: String,
    /// Sub-zone.
    pub sub_zone: String,
}

impl Locality {
    /// From a node's labels.
    pub fn of_node(labels: &BTreeMap<String, String>) -> Self {
        let get = |key: &str| labels.get(key).cloned().unwrap_or_default();
        Self {
            region: get("topology.kubernetes.io/region"),
            zone: get("topology.kubernetes.io/zone"),
            sub_zone: get("topology.istio.io/subzone"),
        }
    }

    /// Of a pod: its label `istio-locality` (with dots for slashes) before its node's.
    /// <https://istio.io/latest/docs/tasks/traffic-management/locality-load-balancing/before-you-begin/>
    pub fn of_pod(labels: &BTreeMap<String, String>, node: Option<&Self>) -> Self {
        match labels.get("istio-locality") {
            Some(label) => Self::parse(&label.replace('.', "/")),
            None => node.cloned().unwrap_or_default(),
        }
    }

    /// From the form `region/zone/subzone`.
    pub fn parse(text: &str) -> Self {
        let mut parts = text.splitn(3, '/').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        Self { region: next(), zone: next(), sub_zone: next() }
    }
}

/// One EndpointSlice, reduced to what matters.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Slice {
    pub(crate) service: ObjectName,
    ports: Vec<(String, u16)>,
    endpoints: Vec<SliceEndpoint>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct SliceEndpoint {
    addresses: Vec<IpAddr>,
    health: Health,
    pod: Option<ObjectName>,
    hostname: String,
    node: String,
}

impl Slice {
    /// Takes over an EndpointSlice; none when it belongs to no service or lists DNS names.
    pub(crate) fn new(object: &discovery::EndpointSlice) -> Option<Self> {
        let service = object.metadata.labels.as_ref()?.get("kubernetes.io/service-name")?;
        let namespace = object.metadata.namespace.as_deref().unwrap_or_default();
        if object.address_type == "FQDN" {
            return None;
        }
        let ports = object
            .ports
            .iter()
            .flatten()
            .filter_map(|port| Some((port.name.clone().unwrap_or_default(), u16::try_from(port.port?).ok()?)))
            .collect();
        let endpoints =
            object.endpoints.iter().flatten().map(|endpoint| SliceEndpoint::new(endpoint, namespace));
        Some(Self { service: ObjectName::new(namespace, service), ports, endpoints: endpoints.collect() })
    }

    /// The pods its endpoints refer to.
    pub(crate) fn pods(&self) -> impl Iterator<Item = &ObjectName> {
        self.endpoints.iter().filter_map(|endpoint| endpoint.pod.as_ref())
    }
}

impl SliceEndpoint {
    fn new(endpoint: &discovery::Endpoint, namespace: &str) -> Self {
        let conditions = endpoint.conditions.clone().unwrap_or_default();
        // "nil should be interpreted as true" (EndpointConditions.ready).
        let health = match (conditions.ready, conditions.serving, conditions.terminating) {
            (None | Some(true), _, _) => Health::Healthy,
            (Some(false), Some(true), Some(true)) => Health::Draining,
            _ => Health::Unhealthy,
        };
        let pod = endpoint
            .target_ref
            .as_ref()
            .filter(|target| target.kind.as_deref() == Some("Pod"))
            .and_then(|target| Some(ObjectName::new(namespace, target.name.as_deref()?)));
        Self {
            addresses: endpoint.addresses.iter().filter_map(|address| address.parse().ok()).collect(),
            health,
            pod,
            hostname: endpoint.hostname.clone().unwrap_or_default(),
            node: endpoint.node_name.clone().unwrap_or_default(),
        }
    }
}

impl ServiceEndpoints {
    /// Endpoints by port, put in order. One address may be there twice while it moves between two slices: the first, the
    /// healthy one, counts. A pod with addresses of two families is one endpoint, known by its IPv4 address.
    pub(crate) fn new(hostname: Hostname, mut by_port: BTreeMap<String, Vec<Endpoint>>) -> Self {
        for endpoints in by_port.values_mut() {
            endpoints.sort();
            let same = |a: &Endpoint, b: &Endpoint| a.address == b.address && a.port == b.port;
            endpoints.dedup_by(|a, b| a.address != Address::Unknown && same(a, b));
            join_families(endpoints);
        }
        let networks = by_port.values().flatten().map(|endpoint| &endpoint.network);
        let networks = networks.filter(|network| !network.is_empty()).cloned().collect();
        Self { hostname, by_port, networks }
    }

    /// The endpoints of the service port with this name.
    pub fn of_port(&self, name: &str) -> &[Endpoint] {
        self.by_port.get(name).map(Vec::as_slice).unwrap_or_default()
    }
}

/// Makes one endpoint of those with the same pod and port that differ in the family of their address.
fn join_families(endpoints: &mut Vec<Endpoint>) {
    let is_v6 = |endpoint: &Endpoint| endpoint.address.ip().is_some_and(|address| address.is_ipv6());
    // IPv4 comes first.
    let first_v6 = endpoints.iter().position(is_v6).unwrap_or(endpoints.len());
    if first_v6 == 0 || first_v6 == endpoints.len() {
        return;
    }
    let place = |endpoint: &Endpoint| Some((endpoint.pod.clone()?, endpoint.port));
    let firsts: BTreeMap<_, usize> =
        (0..first_v6).filter_map(|index| Some((place(&endpoints[index])?, index))).collect();
    for endpoint in endpoints.split_off(first_v6) {
        let address = endpoint.address.ip().filter(|address| address.is_ipv6());
        match (address, place(&endpoint).and_then(|place| firsts.get(&place))) {
            (Some(address), Some(&first)) => endpoints[first].other_addresses.push(address),
            _ => endpoints.push(endpoint),
        }
    }
}

/// Adds the endpoints of a slice, with what is known of pods and nodes.
pub(crate) fn add_slice<'a>(
    by_port: &mut BTreeMap<String, Vec<Endpoint>>,
    slice: &Slice,
    pod: impl Fn(&ObjectName) -> Option<&'a Arc<Pod>>,
    locality: impl Fn(&str) -> Option<&'a Locality>,
    places: &Places,
) {
    for endpoint in &slice.endpoints {
        let pod = endpoint.pod.as_ref().and_then(&pod);
        let node = pod.map_or(&endpoint.node, |pod| &pod.node);
        for &address in &endpoint.addresses {
            let network = match pod {
                // A pod is in one network, whatever its families.
                Some(pod) => {
                    places.of_workload(&pod.labels, pod.addresses.first().copied().or(Some(address)))
                }
                None => places.of_workload(&BTreeMap::new(), Some(address)),
            };
            for (name, port) in &slice.ports {
                by_port.entry(name.clone()).or_default().push(Endpoint {
                    address: Address::Ip(address),
                    port: *port,
                    other_addresses: Vec::new(),
                    health: endpoint.health,
                    pod: endpoint.pod.clone(),
                    entry: None,
                    hostname: endpoint.hostname.clone(),
                    labels: pod.map(|pod| pod.labels.clone()).unwrap_or_default(),
                    workload: pod.map(|pod| pod.workload.clone()).unwrap_or_default(),
                    service_account: pod.map(|pod| pod.service_account.clone()).unwrap_or_default(),
                    node: node.clone(),
                    locality: match pod {
                        Some(pod) => Locality::of_pod(&pod.labels, locality(node)),
                        None => locality(node).cloned().unwrap_or_default(),
                    },
                    network: network.clone(),
                    weight: 1,
                });
            }
        }
    }
}
