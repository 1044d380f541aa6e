//! Traffic management: `networking.istio.io`.
pub mod destination_rule;
pub mod gateway;
pub mod load_balancing;
pub mod service_entry;
pub mod sidecar;
pub mod virtual_service;
pub mod workload_entry;
pub mod workload_group;

use serde::{Deserialize, Serialize};

/// The API group of all these kinds.
pub const GROUP: &str = "networking.istio.io";
/// The versions Istio serves, stored version first.
pub const VERSIONS: &[&str] = &["v1", "v1beta1", "v1alpha3"];

message! {
    /// Matches a string in one of three ways; an empty message matches nothing in particular (header presence).
    pub struct StringMatch {
        /// Equal to this.
        exact: Option<String>,
        /// Begins with this.
        prefix: Option<String>,
        /// Matches this RE2 expression as a whole.
        regex: Option<String>,
    }
}

message! {
    /// A port by number.
    pub struct PortSelector {
        /// Port number.
        number: u32,
    }
}

message! {
    /// A percentage, 0.0 to 100.0.
    pub struct Percent {
        /// The value.
        value: f64,
    }
}

message! {
    /// Selects workloads by their labels.
    pub struct WorkloadSelector {
        /// All of these labels must be present.
        match_labels: std::collections::BTreeMap<String, String>,
    }
}

/// TLS protocol versions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[allow(non_camel_case_types, reason = "the names on the wire")]
pub enum TlsProtocol {
    /// Chosen by the proxy.
    #[default]
    TLS_AUTO,
    /// TLS 1.0.
    TLSV1_0,
    /// TLS 1.1.
    TLSV1_1,
    /// TLS 1.2.
    TLSV1_2,
    /// TLS 1.3.
    TLSV1_3,
}
