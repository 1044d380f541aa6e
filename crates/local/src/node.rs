//! The cluster's only node: its object, and the Lease that shows it is alive.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Node as NodeObject};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::debug;

use crate::ClusterConfig;

/// Namespace of node leases.
const LEASES: &str = "kube-node-lease";
/// How often the Lease is renewed; the kubelet's default.
const RENEWAL: Duration = Duration::from_secs(10);
const FIELD_MANAGER: &str = "lateen-node";

/// A registered node whose Lease is being renewed.
pub(crate) struct Node {
    stop: DropGuard,
    task: tokio::task::JoinHandle<()>,
}

impl Node {
    /// Writes the Node and its Lease, and keeps the Lease fresh.
    ///
    /// # Errors
    /// When the API server refuses.
    pub(crate) async fn register(client: Client, config: &ClusterConfig) -> Result<Self, kube::Error> {
        let apply = PatchParams::apply(FIELD_MANAGER).force();
        let nodes = Api::<NodeObject>::all(client.clone());
        let node = node(config, &Machine::read(), Timestamp::now());
        let status = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": config.node_name}, "status": node["status"]});
        nodes.patch(&config.node_name, &apply, &Patch::Apply(&without_status(node))).await?;
        nodes.patch_status(&config.node_name, &apply, &Patch::Apply(&status)).await?;
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": LEASES}});
        Api::<Namespace>::all(client.clone()).patch(LEASES, &apply, &Patch::Apply(&namespace)).await?;
        let leases = Api::<Lease>::namespaced(client, LEASES);
        renew(&leases, &config.node_name).await?;
        let stop = CancellationToken::new();
        let task = tokio::spawn(keep_fresh(leases, config.node_name.clone(), stop.clone()));
        Ok(Self { stop: stop.drop_guard(), task })
    }

    /// Stops renewing.
    pub(crate) async fn stop(self) {
        drop(self.stop);
        // It only ends early by a panic, which has been reported already.
        let _ = self.task.await;
    }
}

async fn keep_fresh(leases: Api<Lease>, node: String, stop: CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(RENEWAL)).await.is_some() {
        if let Err(error) = renew(&leases, &node).await {
            debug!(%error, "the node's lease could not be renewed; the next renewal tries again");
        }
    }
}

async fn renew(leases: &Api<Lease>, node: &str) -> Result<(), kube::Error> {
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": node, "namespace": LEASES},
        "spec": {
            "holderIdentity": node, "leaseDurationSeconds": 40,
            "renewTime": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string(),
        },
    });
    leases.patch(node, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(&lease)).await.map(drop)
}

fn without_status(mut object: Value) -> Value {
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    object
}

/// What a node tells about its machine.
struct Machine {
    cpus: usize,
    memory_kib: u64,
    kernel: String,
    os: String,
    machine_id: String,
    boot_id: String,
}

impl Machine {
    /// What can't be read is left empty: it is only shown.
    fn read() -> Self {
        let line = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        let field = |text: &str, key: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(key))
                .unwrap_or_default()
                .trim()
                .trim_matches('"')
                .to_owned()
        };
        let memory = field(&line("/proc/meminfo"), "MemTotal:");
        Self {
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_kib: memory.trim_end_matches("kB").trim().parse().unwrap_or(0),
            kernel: line("/proc/sys/kernel/osrelease"),
            os: field(&line("/etc/os-release"), "PRETTY_NAME="),
            machine_id: line("/etc/machine-id"),
            boot_id: line("/proc/sys/kernel/random/boot_id"),
        }
    }
}

fn node(config: &ClusterConfig, machine: &Machine, now: Timestamp) -> Value {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let time = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": time, "lastTransitionTime": time,
        })
    };
    let amounts = json!({
        "cpu": machine.cpus.to_string(), "memory": format!("{}Ki", machine.memory_kib), "pods": "250", "ephemeral-storage": "0",
    });
    let network = &config.network;
    let mut ranges = vec![network.pod_cidr.to_string()];
    ranges.extend(network.ipv6.as_ref().map(|ranges| ranges.pod_cidr.to_string()));
    let mut addresses = vec![json!({"type": "InternalIP", "address": network.node_ip})];
    addresses.extend(
        network.ipv6_of(network.node_ip).map(|address| json!({"type": "InternalIP", "address": address})),
    );
    addresses.push(json!({"type": "Hostname", "address": config.node_name}));
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": config.node_name, "labels": {
            "kubernetes.io/hostname": config.node_name, "kubernetes.io/os": "linux", "kubernetes.io/arch": arch,
            "node-role.kubernetes.io/control-plane": "",
        }},
        "spec": {"podCIDR": network.pod_cidr, "podCIDRs": ranges},
        "status": {
            "capacity": amounts, "allocatable": amounts,
            "conditions": [
                condition("MemoryPressure", "False", "KubeletHasSufficientMemory", "memory is not watched"),
                condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "disks are not watched"),
                condition("PIDPressure", "False", "KubeletHasSufficientPID", "processes are not watched"),
                condition("Ready", "True", "KubeletReady", "lateen runs pods on this machine"),
            ],
            "addresses": addresses,
            "nodeInfo": {
                "machineID": machine.machine_id, "systemUUID": machine.machine_id, "bootID": machine.boot_id,
                "kernelVersion": machine.kernel, "osImage": machine.os, "operatingSystem": "linux", "architecture": arch,
                "containerRuntimeVersion": concat!("lateen://", env!("CARGO_PKG_VERSION")),
                "kubeletVersion": concat!("v1.34.0-lateen.", env!("CARGO_PKG_VERSION")), "kubeProxyVersion": "",
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_a_valid_object() {
        let value = node(&ClusterConfig::in_memory(), &Machine::read(), Timestamp::UNIX_EPOCH);
        let object: NodeObject = serde_json::from_value(value).unwrap();
        let status = object.status.unwrap();
        let ready =
            status.conditions.unwrap().into_iter().find(|condition| condition.type_ == "Ready").unwrap();
        assert_eq!(ready.status, "True");
        assert!(status.capacity.unwrap()["memory"].0.ends_with("Ki"));
        assert_eq!(status.addresses.unwrap()[0].address, "10.244.0.1");
    }
}
