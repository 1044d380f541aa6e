//! What connections a workload accepts, of the PeerAuthentications that apply to it.
use std::collections::BTreeMap;
use std::sync::Arc;

use lateen_api::security::peer_authentication::{MutualTls, MutualTlsMode};

use crate::config::PeerAuthentication;
use crate::pod::labels_match;
use crate::world::World;

/// What is accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerMode {
    /// Plain text; TLS is the application's.
    Disable,
    /// Mutual TLS and plain text.
    #[default]
    Permissive,
    /// Mutual TLS only.
    Strict,
}

/// What a workload accepts, by port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PeerModes {
    /// On all ports but these.
    pub general: PeerMode,
    /// On some of its ports.
    pub ports: BTreeMap<u16, PeerMode>,
}

impl PeerModes {
    /// What is accepted on a port of the workload.
    pub fn of_port(&self, port: u16) -> PeerMode {
        self.ports.get(&port).copied().unwrap_or(self.general)
    }
}

fn given(mtls: Option<&MutualTls>) -> Option<PeerMode> {
    match mtls.map(|mtls| mtls.mode)? {
        MutualTlsMode::Unset => None,
        MutualTlsMode::Disable => Some(PeerMode::Disable),
        MutualTlsMode::Permissive => Some(PeerMode::Permissive),
        MutualTlsMode::Strict => Some(PeerMode::Strict),
    }
}

/// The PeerAuthentications that may apply to workloads of a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PeerPolicies {
    /// The root namespace's for the whole mesh: the oldest.
    mesh: Option<Arc<PeerAuthentication>>,
    /// The namespace's: the oldest.
    namespace: Option<Arc<PeerAuthentication>>,
    /// Those for some of its workloads, oldest first.
    workloads: Vec<Arc<PeerAuthentication>>,
}

impl PeerPolicies {
    /// What a workload with these labels accepts. Istio's order: what is set for the workload goes before the namespace's,
    /// that before the mesh's; of several the oldest counts; with nothing set anywhere it is PERMISSIVE.
    pub fn of_workload(&self, labels: &BTreeMap<String, String>) -> PeerModes {
        let selects = |policy: &&Arc<PeerAuthentication>| {
            let selector = policy.spec.selector.as_ref();
            selector.is_some_and(|selector| labels_match(&selector.match_labels, labels))
        };
        let own = self.workloads.iter().find(selects);
        let levels = [own, self.namespace.as_ref(), self.mesh.as_ref()].into_iter().flatten();
        let general = levels.filter_map(|policy| given(policy.spec.mtls.as_ref())).next().unwrap_or_default();
        let ports = own.iter().flat_map(|policy| &policy.spec.port_level_mtls);
        let ports = ports
            .filter_map(|(port, mtls)| Some((port.parse().ok()?, given(Some(mtls)).unwrap_or(general))))
            .collect();
        PeerModes { general, ports }
    }
}

impl World {
    /// All PeerAuthentications by name.
    pub fn peer_authentications(&self) -> impl Iterator<Item = &Arc<PeerAuthentication>> {
        self.peer_authentications.values()
    }

    /// What may apply to the workloads of a namespace.
    pub fn peer_policies(&self, namespace: &str) -> PeerPolicies {
        if self.peer_authentications.is_empty() {
            return PeerPolicies::default();
        }
        let root = &self.mesh.root_namespace;
        let of = |namespace: &str, selects: bool| {
            let all = self.peer_authentications.values();
            let own = all.filter(|one| *one.name.namespace == *namespace && one.spec.selects() == selects);
            let mut own: Vec<_> = own.cloned().collect();
            own.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
            own
        };
        let of_root = namespace == root;
        PeerPolicies {
            mesh: of(root, false).into_iter().next(),
            namespace: if of_root { None } else { of(namespace, false).into_iter().next() },
            // As in Istio: selectors in the root namespace select nothing.
            workloads: if of_root { Vec::new() } else { of(namespace, true) },
        }
    }
}
