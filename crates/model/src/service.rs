//! Services.
use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::hostname::Hostname;
use crate::name::ObjectName;
use crate::pod::Labels;
use crate::protocol::Protocol;
use crate::visibility::Visibility;

/// Annotation of a Service with its visibility.
const EXPORT_TO: &str = "networking.istio.io/exportTo";

/// A service of the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Service {
    /// `name.namespace.svc.domain` of a Kubernetes Service, else the ServiceEntry's host, possibly with a leading wildcard.
    pub hostname: Hostname,
    /// Namespace, and name of the Kubernetes Service or host of the ServiceEntry.
    pub name: ObjectName,
    /// Where it comes from.
    pub registry: Registry,
    /// Creation time, seconds since 1970.
    pub created: i64,
    /// Virtual addresses; none when headless.
    pub addresses: Vec<IpAddr>,
    /// Ranges of virtual addresses; only ServiceEntries have them.
    pub ranges: Vec<IpNet>,
    /// The address it was given automatically, of a ServiceEntry without any. Only proxies that answer their application's
    /// DNS queries use it.
    pub auto_address: Option<IpAddr>,
    /// How an endpoint is chosen.
    pub resolution: Resolution,
    /// Ports in the Service's order.
    pub ports: Vec<ServicePort>,
    /// Labels of the pods behind it; empty when endpoints are managed by hand.
    pub selector: Labels,
    /// Who may see it.
    pub visibility: Visibility,
    /// Whether it is outside the mesh.
    pub external: bool,
    /// Identities its servers may have besides those of its endpoints.
    pub subject_alt_names: Vec<String>,
}

/// Where a service comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Registry {
    /// A Kubernetes Service.
    Kubernetes,
    /// A host of a ServiceEntry.
    ServiceEntry,
}

/// How an endpoint of a service is chosen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Resolution {
    /// The proxy balances over the known endpoints.
    ClientSide,
    /// The caller chose an address, which is kept: headless Services, and ServiceEntries of resolution NONE.
    Passthrough,
    /// The proxy looks up the endpoints' names and balances over all addresses.
    Dns,
    /// The proxy looks up the name and uses its addresses in turn.
    DnsRoundRobin,
    /// The proxy looks up the name a request is for.
    DynamicDns,
    /// `ExternalName`: an alias of this DNS name, in lower case without a final dot.
    Alias(String),
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServicePort {
    /// Name; empty when the Service has a single unnamed port.
    pub name: String,
    /// Number.
    pub port: u16,
    /// The pods' port.
    pub target: TargetPort,
    /// Protocol, declared or to be detected.
    pub protocol: Protocol,
}

/// The port of the pods behind a service port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TargetPort {
    /// By number.
    Number(u16),
    /// By the name of a container port.
    Name(String),
}

impl Service {
    /// Takes over a Kubernetes Service.
    pub fn new(object: &core::Service, domain: &str, default_export_to: &[String]) -> Self {
        let name = ObjectName::of(&object.metadata);
        let spec = object.spec.clone().unwrap_or_default();
        let addresses: Vec<IpAddr> = spec
            .cluster_ips
            .or_else(|| spec.cluster_ip.map(|ip| vec![ip]))
            .unwrap_or_default()
            .iter()
            .filter_map(|ip| ip.parse().ok())
            .collect();
        let resolution = if spec.type_.as_deref() == Some("ExternalName") {
            let name = spec.external_name.unwrap_or_default();
            Resolution::Alias(name.trim_end_matches('.').to_ascii_lowercase())
        } else if addresses.is_empty() {
            Resolution::Passthrough
        } else {
            Resolution::ClientSide
        };
        let export_to: Vec<String> = object
            .metadata
            .annotations
            .as_ref()
            .and_then(|annotations| annotations.get(EXPORT_TO))
            .map(|list| list.split(',').map(|entry| entry.trim().to_owned()).collect())
            .unwrap_or_default();
        Self {
            hostname: format!("{}.{}.svc.{domain}", name.name, name.namespace).into(),
            created: object.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
            addresses,
            resolution,
            ports: spec.ports.unwrap_or_default().iter().filter_map(ServicePort::new).collect(),
            selector: spec.selector.unwrap_or_default().into(),
            visibility: Visibility::parse(&export_to, default_export_to, &name.namespace),
            name,
            registry: Registry::Kubernetes,
            ranges: Vec::new(),
            auto_address: None,
            external: false,
            subject_alt_names: Vec::new(),
        }
    }

    /// What identifies it: its namespace and host name.
    pub fn key(&self) -> ObjectName {
        ObjectName { namespace: self.name.namespace.clone(), name: self.hostname.clone() }
    }

    /// The port with this number, of those the mesh carries: a UDP port may have the same.
    pub fn port(&self, number: u16) -> Option<&ServicePort> {
        self.mesh_ports().find(|port| port.port == number)
    }

    /// Ports the mesh carries: everything but UDP.
    pub fn mesh_ports(&self) -> impl Iterator<Item = &ServicePort> {
        self.ports.iter().filter(|port| port.protocol != Protocol::Udp)
    }

    /// The DNS name it stands for, in lower case without a final dot, when it is an alias (`ExternalName`).
    pub fn alias_of(&self) -> Option<&str> {
        match &self.resolution {
            Resolution::Alias(name) => Some(name),
            _ => None,
        }
    }

    /// Whether it is a Kubernetes Service without a virtual address, whose callers connect to its pods directly.
    pub fn is_headless(&self) -> bool {
        self.registry == Registry::Kubernetes && self.keeps_destination()
    }

    /// Whether connections go where their caller meant them to.
    pub fn keeps_destination(&self) -> bool {
        self.resolution == Resolution::Passthrough
    }

    /// Its automatic addresses: of IPv4 and, where both families are of use, of IPv6.
    pub fn auto_addresses(&self, both: bool) -> Vec<IpAddr> {
        let v6 = self.auto_address.filter(|_| both).and_then(crate::auto_address::ipv6_of);
        self.auto_address.into_iter().chain(v6).collect()
    }

    /// Whether it stands for many hosts: its host name has a leading wildcard.
    pub fn is_wildcard(&self) -> bool {
        self.hostname.starts_with('*')
    }
}

impl ServicePort {
    fn new(port: &core::ServicePort) -> Option<Self> {
        let number = u16::try_from(port.port).ok()?;
        let name = port.name.clone().unwrap_or_default();
        let target = match &port.target_port {
            Some(IntOrString::Int(target)) if *target > 0 => TargetPort::Number(u16::try_from(*target).ok()?),
            Some(IntOrString::String(target)) if !target.is_empty() => match target.parse() {
                Ok(target) => TargetPort::Number(target),
                Err(_) => TargetPort::Name(target.clone()),
            },
            _ => TargetPort::Number(number),
        };
        let transport = port.protocol.as_deref().unwrap_or("TCP");
        let protocol = Protocol::of_port(number, &name, port.app_protocol.as_deref(), transport);
        Some(Self { name, port: number, target, protocol })
    }
}
