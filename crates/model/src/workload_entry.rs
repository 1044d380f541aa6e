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
/// Label that says whether a workload takes mutual TLS; without it one does that has a service account.
const TLS_MODE_LABEL: &str = "security.istio.io/tlsMode";

/// Whether an entry carries all the labels a selector asks for. Labels of the object go before those of its spec.
pub(crate) fn is_selected(entry: &WorkloadEntry, selector: &BTreeMap<String, String>) -> bool {
    selector
        .iter()
        .all(|(key, value)| entry.labels.get(key).or_else(|| entry.spec.labels.get(key)) == Some(value))
}

/// The labels of an entry's workload. Those of the object go before those of its spec.
pub(crate) fn labels(entry: &WorkloadEntry) -> Labels {
    let mut labels = entry.spec.labels.clone();
    labels.extend(entry.labels.iter().map(|(key, value)| (key.clone(), value.clone())));
    labels.into()
}

/// Where an entry's workload is: as its spec says, or its labels.
pub(crate) fn locality(spec: &WorkloadEntrySpec, labels: &Labels) -> Locality {
    match labels.get(LOCALITY_LABEL) {
        Some(label) if spec.locality.is_empty() => Locality::parse(&label.replace('.', "/")),
        _ => Locality::parse(&spec.locality),
    }
}

/// The endpoint of an entry; none while its workload is not well.
pub(crate) fn endpoint(entry: &WorkloadEntry, port: u16, places: &Places) -> Option<Endpoint> {
    if !entry.healthy {
        return None;
    }
    let endpoint = endpoint_of(&entry.spec, &labels(entry), port, places);
    Some(Endpoint { entry: Some(entry.name.clone()), workload: entry.name.name.to_string(), ..endpoint })
}

/// The endpoint of a spec.
pub(crate) fn endpoint_of(spec: &WorkloadEntrySpec, labels: &Labels, port: u16, places: &Places) -> Endpoint {
    let address = Address::parse(&spec.address);
    let locality = locality(spec, labels);
    let network = match spec.network.is_empty() {
        true => places.of_workload(labels, address.ip()),
        false => spec.network.clone(),
    };
    let mut labels = labels.clone();
    if !spec.service_account.is_empty() && !labels.contains_key(TLS_MODE_LABEL) {
        Arc::make_mut(&mut labels).insert(TLS_MODE_LABEL.to_owned(), "istio".to_owned());
    }
    Endpoint {
        port: if matches!(address, Address::Unix(_)) { 0 } else { port },
        address,
        labels,
        service_account: spec.service_account.clone(),
        locality,
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
                by_port.entry(port.name.clone()).or_default().extend(endpoint(entry, number, places));
            }
        }
    }
}

/// The entry's port for a port of a Kubernetes Service: of a named target port, the one of that name; else the one named
/// after the service's port, else the target port's number.
pub(crate) fn port_of(spec: &WorkloadEntrySpec, port: &ServicePort) -> Option<u16> {
    match &port.target {
        TargetPort::Name(name) => spec.port(name),
        TargetPort::Number(number) => Some(spec.port(&port.name).unwrap_or(*number)),
    }
}
