//! Pods, as far as the mesh is concerned with them.
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;

use crate::name::ObjectName;

/// Labels of a workload.
pub type Labels = Arc<BTreeMap<String, String>>;

/// Whether `labels` carry everything `selector` asks for; an empty selector matches.
pub fn labels_match(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pod {
    /// Namespace and name.
    pub name: ObjectName,
    /// Its addresses; empty while it has none and when it shares the node's.
    pub addresses: Vec<IpAddr>,
    /// Labels.
    pub labels: Labels,
    /// Service account.
    pub service_account: String,
    /// Node it runs on.
    pub node: String,
    /// Name of the workload that owns it: the Deployment rather than its ReplicaSet.
    pub workload: String,
    /// Container ports by name.
    pub named_ports: BTreeMap<String, u16>,
    /// Phase.
    pub phase: PodPhase,
    /// Whether it is ready to serve.
    pub ready: bool,
}

/// Phase of a pod, as far as it matters: whether its address is still its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PodPhase {
    /// Pending, running or unknown.
    Alive,
    /// Succeeded or failed: its address may belong to another pod by now.
    Ended,
}

impl Pod {
    /// Takes over a Kubernetes Pod.
    pub fn new(object: &core::Pod) -> Self {
        let spec = object.spec.as_ref();
        let status = object.status.as_ref();
        let labels = object.metadata.labels.clone().unwrap_or_default();
        let shares_node = spec.is_some_and(|spec| spec.host_network == Some(true));
        let mut addresses: Vec<IpAddr> = Vec::new();
        if !shares_node && let Some(status) = status {
            let listed = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
            for address in listed.chain(status.pod_ip.as_deref()).filter_map(|ip| ip.parse().ok()) {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
        }
        let containers = spec.map(|spec| spec.containers.as_slice()).unwrap_or_default();
        let named_ports = containers
            .iter()
            .flat_map(|container| container.ports.iter().flatten())
            .filter_map(|port| Some((port.name.clone()?, u16::try_from(port.container_port).ok()?)))
            .collect();
        let ended = matches!(status.and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed"));
        let conditions = status.and_then(|status| status.conditions.as_ref());
        let ready = conditions.into_iter().flatten().any(|one| one.type_ == "Ready" && one.status == "True");
        Self {
            name: ObjectName::of(&object.metadata),
            ready: ready && !ended && object.metadata.deletion_timestamp.is_none(),
            addresses,
            workload: workload_of(object, &labels),
            labels: labels.into(),
            service_account: spec
                .and_then(|spec| spec.service_account_name.clone())
                .filter(|account| !account.is_empty())
                .unwrap_or_else(|| "default".to_owned()),
            node: spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
            named_ports,
            phase: if ended { PodPhase::Ended } else { PodPhase::Alive },
        }
    }
}

/// The owner's name; of a ReplicaSet that a Deployment made, the Deployment's: the pod template's hash is its suffix.
fn workload_of(object: &core::Pod, labels: &BTreeMap<String, String>) -> String {
    let owner =
        object.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
    let Some(owner) = owner else { return object.metadata.name.clone().unwrap_or_default() };
    let suffix = labels.get("pod-template-hash").map(|hash| format!("-{hash}"));
    match suffix.and_then(|suffix| owner.name.strip_suffix(&suffix).map(str::to_owned)) {
        Some(deployment) if owner.kind == "ReplicaSet" => deployment,
        _ => owner.name.clone(),
    }
}
