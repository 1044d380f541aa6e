//! PeerAuthentication: what connections workloads accept.
//! <https://istio.io/latest/docs/reference/config/security/peer_authentication/>
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{GROUP, VERSIONS};
use crate::networking::WorkloadSelector;
use crate::object::Kind;

message! {
    /// The spec of a PeerAuthentication.
    pub struct PeerAuthenticationSpec {
        /// Workloads of its namespace it is for; none is all of them, and in the root namespace all of the mesh.
        selector: Option<WorkloadSelector>,
        /// For all ports.
        mtls: Option<MutualTls>,
        /// For some of the workload's ports, by number.
        port_level_mtls: BTreeMap<String, MutualTls>,
    }
}

impl Kind for PeerAuthenticationSpec {
    const GROUP: &'static str = GROUP;
    const VERSIONS: &'static [&'static str] = VERSIONS;
    const KIND: &'static str = "PeerAuthentication";
    const PLURAL: &'static str = "peerauthentications";
    const SHORT_NAMES: &'static [&'static str] = &["pa"];
    const COLUMNS: &'static [(&'static str, &'static str, &'static str)] =
        &[("Mode", "Defines the mTLS mode used for peer authentication.", ".spec.mtls.mode")];
}

message! {
    /// Mutual TLS.
    pub struct MutualTls {
        /// What is accepted.
        mode: MutualTlsMode,
    }
}

/// What connections are accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum MutualTlsMode {
    /// What is said for more: for the workload, the namespace, the mesh; else PERMISSIVE.
    #[default]
    Unset,
    /// Plain text; TLS is the application's.
    Disable,
    /// Both.
    Permissive,
    /// Mutual TLS only.
    Strict,
}

impl PeerAuthenticationSpec {
    /// Whether it is for some workloads of its namespace only.
    pub fn selects(&self) -> bool {
        self.selector.as_ref().is_some_and(|selector| !selector.match_labels.is_empty())
    }
}
