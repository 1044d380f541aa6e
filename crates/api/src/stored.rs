//! Kinds that are stored and served but have no effect yet. Their specs are kept as they are; the control plane warns
//! about each object (see [`STORED_KINDS`]).
use kube::core::GroupVersionKind;

/// A kind whose objects are accepted and kept, and change nothing in the mesh yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredKind {
    /// API group.
    pub group: &'static str,
    /// Served versions, the stored one first.
    pub versions: &'static [&'static str],
    /// Kind.
    pub kind: &'static str,
    /// Plural resource name.
    pub plural: &'static str,
    /// Short names `kubectl` accepts.
    pub short_names: &'static [&'static str],
    /// Additional printer columns besides Age: name, description, JSON path, type.
    pub columns: &'static [(&'static str, &'static str, &'static str)],
}

impl StoredKind {
    /// The stored version's group, version and kind.
    pub fn gvk(&self) -> GroupVersionKind {
        GroupVersionKind::gvk(self.group, self.versions[0], self.kind)
    }

    /// What to tell the author of an object of this kind.
    pub fn no_effect_warning(&self) -> String {
        format!("{} has no effect yet: Lateen stores it but does not act on it", self.kind)
    }
}

/// Every kind that is stored only.
pub const STORED_KINDS: &[StoredKind] = &[
    StoredKind {
        group: "networking.istio.io",
        versions: &["v1alpha3"],
        kind: "EnvoyFilter",
        plural: "envoyfilters",
        short_names: &[],
        columns: &[],
    },
    StoredKind {
        group: "networking.istio.io",
        versions: &["v1beta1"],
        kind: "ProxyConfig",
        plural: "proxyconfigs",
        short_names: &[],
        columns: &[],
    },
    StoredKind {
        group: "telemetry.istio.io",
        versions: &["v1", "v1alpha1"],
        kind: "Telemetry",
        plural: "telemetries",
        short_names: &["telemetry"],
        columns: &[],
    },
    StoredKind {
        group: "extensions.istio.io",
        versions: &["v1alpha1"],
        kind: "WasmPlugin",
        plural: "wasmplugins",
        short_names: &[],
        columns: &[],
    },
];
