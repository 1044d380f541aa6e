//! Services with their endpoints, in the form cluster DNS and service addresses are derived from.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};

/// Namespace and name.
pub(crate) type ServiceKey = (String, String);

/// The transport of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// SCTP and whatever else may come is not carried.
    fn parse(text: Option<&str>) -> Option<Self> {
        match text {
            None | Some("TCP") => Some(Self::Tcp),
            Some("UDP") => Some(Self::Udp),
            Some(_) => None,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// How a service is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    /// Cluster IPs, one of each family.
    Virtual(Vec<IpAddr>),
    /// No address of its own (`clusterIP: None`).
    Headless,
    /// Another name (`type: ExternalName`).
    External(String),
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Port {
    /// Its name; empty when it is the only one.
    pub(crate) name: String,
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
    pub(crate) node_port: Option<u16>,
}

/// A backend of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) address: IpAddr,
    /// Its own name below the service's.
    pub(crate) hostname: Option<String>,
    pub(crate) ready: bool,
    /// Still answering while it shuts down.
    pub(crate) serving: bool,
    /// Ports by name.
    pub(crate) ports: BTreeMap<(String, Protocol), u16>,
}

/// A service with its endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServiceEntry {
    pub(crate) address: Address,
    /// Addresses of its load balancer.
    pub(crate) ingress: Vec<IpAddr>,
    pub(crate) ports: Vec<Port>,
    /// Connections of one client go to one endpoint.
    pub(crate) client_affinity: bool,
    /// Names of endpoints appear before they are ready.
    pub(crate) publish_not_ready: bool,
    pub(crate) endpoints: Vec<Endpoint>,
}

/// All services.
pub(crate) type ClusterIndex = BTreeMap<ServiceKey, ServiceEntry>;

/// The label that ties a slice to its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Joins services and their slices. Objects without a usable address are left out.
pub(crate) fn build(services: &[Arc<Service>], slices: &[Arc<EndpointSlice>]) -> ClusterIndex {
    let mut index: ClusterIndex = services.iter().filter_map(|service| entry(service)).collect();
    for slice in slices {
        let namespace = slice.metadata.namespace.clone().unwrap_or_default();
        let Some(name) = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME)) else {
            continue;
        };
        // The rest are names.
        if matches!(&*slice.address_type, "IPv4" | "IPv6")
            && let Some(entry) = index.get_mut(&(namespace, name.clone()))
        {
            entry.endpoints.extend(endpoints(slice));
        }
    }
    for entry in index.values_mut() {
        // Slices come in any order, and an endpoint may for a moment be in two of them.
        entry.endpoints.sort_by_key(|endpoint| (endpoint.address, !endpoint.ready));
        entry.endpoints.dedup_by(|a, b| a.address == b.address && a.ports == b.ports);
    }
    index
}

fn entry(service: &Service) -> Option<(ServiceKey, ServiceEntry)> {
    let spec = service.spec.as_ref()?;
    let address = match (spec.type_.as_deref(), spec.cluster_ip.as_deref()) {
        (Some("ExternalName"), _) => Address::External(spec.external_name.clone()?),
        (_, Some("None")) => Address::Headless,
        (_, first) => {
            let mut all: Vec<IpAddr> =
                spec.cluster_ips.iter().flatten().filter_map(|ip| ip.parse().ok()).collect();
            if all.is_empty() {
                all.push(first?.parse().ok()?);
            }
            Address::Virtual(all)
        }
    };
    let ports = spec.ports.iter().flatten().filter_map(|port| {
        Some(Port {
            name: port.name.clone().unwrap_or_default(),
            protocol: Protocol::parse(port.protocol.as_deref())?,
            port: u16::try_from(port.port).ok()?,
            node_port: port.node_port.and_then(|port| u16::try_from(port).ok()),
        })
    });
    let ingress = service
        .status
        .iter()
        .filter_map(|status| status.load_balancer.as_ref()?.ingress.as_ref())
        .flatten()
        .filter_map(|ingress| ingress.ip.as_deref()?.parse().ok());
    let external = spec.external_ips.iter().flatten().filter_map(|ip| ip.parse().ok());
    let key = (service.metadata.namespace.clone().unwrap_or_default(), service.metadata.name.clone()?);
    let entry = ServiceEntry {
        address,
        ingress: ingress.chain(external).collect(),
        ports: ports.collect(),
        client_affinity: spec.session_affinity.as_deref() == Some("ClientIP"),
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
        endpoints: Vec::new(),
    };
    Some((key, entry))
}

fn endpoints(slice: &EndpointSlice) -> Vec<Endpoint> {
    let ports: BTreeMap<(String, Protocol), u16> = slice
        .ports
        .iter()
        .flatten()
        .filter_map(|port| {
            let protocol = Protocol::parse(port.protocol.as_deref())?;
            Some(((port.name.clone().unwrap_or_default(), protocol), u16::try_from(port.port?).ok()?))
        })
        .collect();
    let convert = |endpoint: &k8s_openapi::api::discovery::v1::Endpoint| {
        let conditions = endpoint.conditions.as_ref();
        // Absent means ready (discovery.k8s.io/v1, EndpointConditions).
        let ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
        let serving = conditions.and_then(|conditions| conditions.serving).unwrap_or(ready);
        Some(Endpoint {
            address: endpoint.addresses.first()?.parse().ok()?,
            hostname: endpoint.hostname.clone().filter(|name| !name.is_empty()),
            ready,
            serving,
            ports: ports.clone(),
        })
    };
    slice.endpoints.iter().flatten().filter_map(convert).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    /// An index from JSON objects, for this and other modules' tests.
    pub(crate) fn index(services: &[serde_json::Value], slices: &[serde_json::Value]) -> ClusterIndex {
        let services: Vec<Arc<Service>> =
            services.iter().map(|value| Arc::new(serde_json::from_value(value.clone()).unwrap())).collect();
        let slices: Vec<Arc<EndpointSlice>> =
            slices.iter().map(|value| Arc::new(serde_json::from_value(value.clone()).unwrap())).collect();
        build(&services, &slices)
    }

    /// A service with one endpoint slice's worth of JSON.
    pub(crate) fn service(name: &str, cluster_ip: &str, ports: serde_json::Value) -> serde_json::Value {
        json!({ "metadata": { "namespace": "default", "name": name }, "spec": { "clusterIP": cluster_ip, "ports": ports } })
    }

    /// A slice of `service`.
    pub(crate) fn slice(
        service: &str,
        endpoints: serde_json::Value,
        ports: serde_json::Value,
    ) -> serde_json::Value {
        json!({
            "metadata": { "namespace": "default", "name": format!("{service}-x"), "labels": { SERVICE_NAME: service } },
            "addressType": "IPv4", "endpoints": endpoints, "ports": ports,
        })
    }

    #[test]
    fn joins_services_and_slices() {
        let index = index(
            &[
                service(
                    "web",
                    "10.96.0.7",
                    json!([{ "name": "http", "port": 80, "nodePort": 30080 }, { "name": "s", "port": 5, "protocol": "SCTP" }]),
                ),
                service("six", "fd00::1", json!([])),
                service("db", "None", json!([{ "port": 5432 }])),
            ],
            &[
                slice(
                    "web",
                    json!([{ "addresses": ["10.244.0.9"], "conditions": { "ready": false, "serving": true } }, { "addresses": ["10.244.0.4"] }]),
                    json!([{ "name": "http", "port": 8080 }]),
                ),
                slice("gone", json!([{ "addresses": ["10.244.0.5"] }]), json!([])),
                slice(
                    "web",
                    json!([{ "addresses": ["10.244.0.4"] }]),
                    json!([{ "name": "http", "port": 8080 }]),
                ),
            ],
        );
        assert_eq!(index.len(), 3);
        let web = &index[&("default".to_owned(), "web".to_owned())];
        assert_eq!(web.address, Address::Virtual(vec!["10.96.0.7".parse().unwrap()]));
        assert_eq!(web.ports.len(), 1, "SCTP is left out");
        assert_eq!(web.ports[0].node_port, Some(30080));
        let ready: Vec<(String, bool)> =
            web.endpoints.iter().map(|endpoint| (endpoint.address.to_string(), endpoint.ready)).collect();
        assert_eq!(ready, [("10.244.0.4".to_owned(), true), ("10.244.0.9".to_owned(), false)]);
        assert!(web.endpoints[1].serving);
    }
}
