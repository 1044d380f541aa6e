//! WorkloadEntries as endpoints.
use std::collections::BTreeMap;
use std::sync::Arc;

use lateen_api::WorkloadEntrySpec;

use crate::config::WorkloadEntry;
use crate::endpoint::{Address, Endpoint, Locality};
use crate::network::Places;
use crate::pod::Labels;
use crate::service::{Service, ServicePort, TargetPort};
use crate::service_entry::bare;

/// Label that says where a workload is, with dots for slashes, when its locality does not.
const LOCALITY_LABEL: &str = "istio-locality";

/// Whether an entry carries all the labels a selector asks for. Labels of the object go before those of its spec.
pub(crate) fn is_selected(entry: &WorkloadEntry, selector: &BTreeMap<String, String>) -> bool {
    selector
        .iter()
        .all(|(key, value)| entry.labels.get(key).or_else(|| entry.spec.labels.get(key)) == Some(value))
}

/// The endpoint of an entry.
pub(crate) fn endpoint(entry: &WorkloadEntry, port: u16, places: &Places) -> Endpoint {
    let mut labels = entry.spec.labels.clone();
    labels.extend(entry.labels.iter().map(|(key, value)| (key.clone(), value.clone())));
    let endpoint = endpoint_of(&entry.spec, &labels.into(), port, places);
    Endpoint { entry: Some(entry.name.clone()), workload: entry.name.name.to_string(), ..endpoint }
}

/// The endpoint of a spec.
pub(crate) fn endpoint_of(spec: &WorkloadEntrySpec, labels: &Labels, port: u16, places: &Places) -> Endpoint {
    let address = Address::parse(&spec.address);
    let locality = match labels.get(LOCALITY_LABEL) {
        Some(label) if spec.locality.is_empty() => label.replace('.', "/"),
        _ => spec.locality.clone(),
    };
    let network = match spec.network.is_empty() {
        true => places.of_workload(labels, address.ip()),
        false => spec.network.clone(),
    };
    Endpoint {
        port: if matches!(address, Address::Unix(_)) { 0 } else { port },
        address,
        labels: labels.clone(),
        service_account: spec.service_account.clone(),
        locality: Locality::parse(&locality),
        network,
        weight: spec.weight.max(1),
        ..bare(port)
    }
}

/// Adds the entries that a Kubernetes Service selects to its endpoints.
pub(crate) fn add_selected<'a>(
    by_port: &mut BTreeMap<String, Vec<Endpoint>>,
    service: &Service,
    entries: impl Iterator<Item = &'a Arc<WorkloadEntry>>,
    places: &Places,
) {
    if service.selector.is_empty() {
        return;
    }
    for entry in entries.filter(|entry| is_selected(entry, &service.selector)) {
        for port in service.mesh_ports() {
            if let Some(number) = port_of(&entry.spec, port) {
                by_port.entry(port.name.clone()).or_default().push(endpoint(entry, number, places));
            }
        }
    }
}

/// The entry's port for a port of a Kubernetes Service: of a named target port, the one of that name; else the one named
/// after the service's port, else the target port's number.
fn port_of(spec: &WorkloadEntrySpec, port: &ServicePort) -> Option<u16> {
    match &port.target {
        TargetPort::Name(name) => spec.port(name),
        TargetPort::Number(number) => Some(spec.port(&port.name).unwrap_or(*number)),
    }
}
