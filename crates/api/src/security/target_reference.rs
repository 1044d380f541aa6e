//! What policies are for: workloads by their labels, or resources by their names.
//! <https://istio.io/latest/docs/reference/config/type/workload-selector/#PolicyTargetReference>
use std::collections::BTreeMap;

use crate::networking::WorkloadSelector;

/// Label of pods that serve a Gateway of the Gateway API: its name.
pub const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";

/// Group of the Gateway API.
const GATEWAY_API: &str = "gateway.networking.k8s.io";

message! {
    /// A resource in the policy's namespace.
    pub struct PolicyTargetReference {
        /// API group; empty is the core group.
        group: String,
        /// Kind.
        kind: String,
        /// Name.
        name: String,
        /// Namespace; must be empty.
        namespace: String,
    }
}

/// Kinds of resources that policies may be for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetKind {
    /// A Gateway of the Gateway API: the pods that serve it.
    Gateway,
    /// A class of Gateways, of waypoints only.
    GatewayClass,
    /// A Service behind a waypoint.
    Service,
    /// A ServiceEntry behind a waypoint.
    ServiceEntry,
}

impl PolicyTargetReference {
    /// Its kind. `None`: policies can't be for that.
    pub fn target(&self) -> Option<TargetKind> {
        Some(match (self.group.as_str(), self.kind.as_str()) {
            (GATEWAY_API, "Gateway") => TargetKind::Gateway,
            (GATEWAY_API, "GatewayClass") => TargetKind::GatewayClass,
            ("" | "core", "Service") => TargetKind::Service,
            ("networking.istio.io", "ServiceEntry") => TargetKind::ServiceEntry,
            _ => return None,
        })
    }
}

/// A policy for workloads or for resources.
pub trait Targeted {
    /// The workloads' labels.
    fn selector(&self) -> Option<&WorkloadSelector>;

    /// The resources: the older single one, and all.
    fn references(&self) -> (Option<&PolicyTargetReference>, &[PolicyTargetReference]);

    /// The resources. The single one counts only without the list.
    fn targets(&self) -> &[PolicyTargetReference] {
        match self.references() {
            (Some(single), []) => std::slice::from_ref(single),
            (_, list) => list,
        }
    }

    /// Whether the policy, in `own` namespace, is for a workload of `namespace` with these labels. That it is of one of the
    /// namespaces whose policies count there is taken for granted. Waypoints, the only ones behind which there are other
    /// resources than Gateways, are not asked about.
    fn is_for(&self, own: &str, namespace: &str, labels: &BTreeMap<String, String>) -> bool {
        let targets = self.targets();
        if targets.is_empty() {
            let selected = |selector: &WorkloadSelector| {
                selector.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            };
            return self.selector().is_none_or(selected);
        }
        let Some(gateway) = labels.get(GATEWAY_NAME) else { return false };
        own == namespace
            && targets.iter().any(|target| {
                target.target() == Some(TargetKind::Gateway)
                    && target.name == *gateway
                    && (target.namespace.is_empty() || target.namespace == namespace)
            })
    }
}
