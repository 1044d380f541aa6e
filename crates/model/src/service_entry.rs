//! ServiceEntries as services and endpoints.
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use lateen_api::networking::service_entry::{ENABLE_AUTOALLOCATE_IP, EntryResolution, Location};

use crate::config::{ServiceEntry, WorkloadEntry};
use crate::endpoint::{Address, Endpoint, Health, Locality};
use crate::hostname::Hostname;
use crate::name::ObjectName;
use crate::network::Places;
use crate::pod::{Labels, Pod};
use crate::protocol::Protocol;
use crate::service::{Registry, Resolution, Service, ServicePort, TargetPort};
use crate::visibility::Visibility;
use crate::workload_entry;

/// The service that the ServiceEntries of one namespace make for one host, the oldest first. It decides; younger ones add
/// ports and addresses, as long as endpoints are found in the same way.
pub(crate) fn service(
    host: &Hostname,
    entries: &[&Arc<ServiceEntry>],
    default_export_to: &[String],
) -> Option<Service> {
    let (oldest, younger) = entries.split_first()?;
    let mut service = of_one(host, oldest, default_export_to);
    for entry in younger {
        let other = of_one(host, entry, default_export_to);
        if other.resolution != service.resolution {
            continue;
        }
        let new_port = |port: &ServicePort| {
            !service.ports.iter().any(|known| known.port == port.port || known.name == port.name)
        };
        let ports: Vec<ServicePort> = other.ports.into_iter().filter(new_port).collect();
        service.ports.extend(ports);
        let known = service.addresses.clone();
        service.addresses.extend(other.addresses.into_iter().filter(|address| !known.contains(address)));
        let known = service.ranges.clone();
        service.ranges.extend(other.ranges.into_iter().filter(|range| !known.contains(range)));
    }
    Some(service)
}

fn of_one(host: &Hostname, entry: &ServiceEntry, default_export_to: &[String]) -> Service {
    let spec = &entry.spec;
    let namespace = &entry.name.namespace;
    let (mut addresses, mut ranges) = (Vec::new(), Vec::new());
    for address in &spec.addresses {
        // A range of one is an address.
        match (address.parse::<IpAddr>(), address.parse::<IpNet>()) {
            (Ok(address), _) => addresses.push(address),
            (_, Ok(range)) if range.prefix_len() == range.max_prefix_len() => addresses.push(range.addr()),
            (_, Ok(range)) => ranges.push(range.trunc()),
            _ => {}
        }
    }
    let ports = spec.ports.iter().filter_map(|port| {
        let number = u16::try_from(port.number).ok()?;
        let target = u16::try_from(port.target_port).ok().filter(|&target| target != 0).unwrap_or(number);
        Some(ServicePort {
            name: port.name.clone(),
            port: number,
            target: TargetPort::Number(target),
            protocol: Protocol::parse(&port.protocol),
        })
    });
    Service {
        hostname: host.clone(),
        name: ObjectName { namespace: namespace.clone(), name: host.clone() },
        registry: Registry::ServiceEntry,
        created: entry.created,
        addresses,
        ranges,
        auto_address: None,
        resolution: match spec.resolution {
            EntryResolution::None => Resolution::Passthrough,
            EntryResolution::Static => Resolution::ClientSide,
            EntryResolution::Dns => Resolution::Dns,
            EntryResolution::DnsRoundRobin => Resolution::DnsRoundRobin,
            EntryResolution::DynamicDns => Resolution::DynamicDns,
        },
        ports: ports.collect(),
        selector: spec
            .workload_selector
            .as_ref()
            .map(|selector| selector.labels.clone().into())
            .unwrap_or_default(),
        visibility: Visibility::parse(&spec.export_to, default_export_to, namespace),
        external: spec.location == Location::MeshExternal,
        subject_alt_names: spec.subject_alt_names.clone(),
    }
}

/// Whether a host of a ServiceEntry gets an address automatically: it has none, its own would mean something to the proxy,
/// and nobody said no.
pub(crate) fn wants_address(entry: &ServiceEntry, host: &str) -> bool {
    let refused =
        entry.labels.get(ENABLE_AUTOALLOCATE_IP).is_some_and(|value| value.eq_ignore_ascii_case("false"));
    let spec = &entry.spec;
    !refused
        && spec.addresses.is_empty()
        && (!host.starts_with('*') || spec.resolution == EntryResolution::DynamicDns)
        && spec.resolution != EntryResolution::None
}

/// The workloads a ServiceEntry may select from.
pub(crate) struct Workloads<'a> {
    /// Pods of its namespace.
    pub(crate) pods: Vec<&'a Arc<Pod>>,
    /// WorkloadEntries of its namespace.
    pub(crate) entries: Vec<&'a Arc<WorkloadEntry>>,
}

/// Adds what a ServiceEntry has to the endpoints of one of its hosts.
pub(crate) fn add_endpoints<'a>(
    by_port: &mut BTreeMap<String, Vec<Endpoint>>,
    host: &str,
    entry: &ServiceEntry,
    workloads: impl FnOnce() -> Workloads<'a>,
    locality: impl Fn(&str) -> Option<&'a Locality>,
    places: &Places,
) {
    let spec = &entry.spec;
    let by_name = matches!(spec.resolution, EntryResolution::Dns | EntryResolution::DnsRoundRobin);
    if !by_name && spec.resolution != EntryResolution::Static {
        return;
    }
    let ports = || {
        spec.ports.iter().filter_map(|port| {
            let target = if port.target_port == 0 { port.number } else { port.target_port };
            Some((port.name.as_str(), u16::try_from(target).ok()?))
        })
    };
    if let Some(selector) = &spec.workload_selector {
        let workloads = workloads();
        let selected = |pod: &&&Arc<Pod>| crate::pod::labels_match(&selector.labels, &pod.labels);
        for pod in workloads.pods.iter().filter(selected).filter(|pod| pod.ready) {
            for (name, target) in ports() {
                let port = pod.named_ports.get(name).copied().unwrap_or(target);
                let of_port = by_port.entry(name.to_owned()).or_default();
                let network = places.of_workload(&pod.labels, pod.addresses.first().copied());
                of_port.extend(pod.addresses.iter().map(|address| Endpoint {
                    network: network.clone(),
                    ..of_pod(pod, *address, port, &locality)
                }));
            }
        }
        let selected = |one: &&&Arc<WorkloadEntry>| workload_entry::is_selected(one, &selector.labels);
        for one in workloads.entries.iter().filter(selected) {
            for (name, target) in ports() {
                let port = one.spec.port(name).unwrap_or(target);
                by_port
                    .entry(name.to_owned())
                    .or_default()
                    .extend(workload_entry::endpoint(one, port, places));
            }
        }
        return;
    }
    if by_name && spec.endpoints.is_empty() {
        for (name, port) in ports() {
            let endpoint = Endpoint { address: Address::parse(host), ..bare(port) };
            by_port.entry(name.to_owned()).or_default().push(endpoint);
        }
    }
    for one in &spec.endpoints {
        let labels: Labels = one.labels.clone().into();
        for (name, target) in ports() {
            let port = one.port(name).unwrap_or(target);
            let endpoint = workload_entry::endpoint_of(one, &labels, port, places);
            by_port.entry(name.to_owned()).or_default().push(endpoint);
        }
    }
}

fn of_pod<'a>(
    pod: &Pod,
    address: IpAddr,
    port: u16,
    locality: &impl Fn(&str) -> Option<&'a Locality>,
) -> Endpoint {
    Endpoint {
        address: Address::Ip(address),
        pod: Some(pod.name.clone()),
        labels: pod.labels.clone(),
        workload: pod.workload.clone(),
        service_account: pod.service_account.clone(),
        node: pod.node.clone(),
        locality: Locality::of_pod(&pod.labels, locality(&pod.node)),
        ..bare(port)
    }
}

/// A healthy endpoint of which nothing but the port is known.
pub(crate) fn bare(port: u16) -> Endpoint {
    Endpoint {
        address: Address::Unknown,
        port,
        other_addresses: Vec::new(),
        health: Health::Healthy,
        pod: None,
        entry: None,
        hostname: String::new(),
        labels: Labels::default(),
        workload: String::new(),
        service_account: String::new(),
        node: String::new(),
        locality: Locality::default(),
        network: String::new(),
        weight: 1,
    }
}
