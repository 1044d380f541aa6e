//! WorkloadEntry: a workload that is no pod.
//! <https://istio.io/latest/docs/reference/config/networking/workload-entry/>
use std::collections::BTreeMap;

use super::{GROUP, VERSIONS};
use crate::object::Kind;

/// Annotation of an entry whose workload's health is looked after: it gets traffic only while it is known to be healthy.
pub const HEALTH_CHECKS: &str = "proxy.istio.io/health-checks-enabled";
/// The condition of its status that says so.
pub const HEALTHY: &str = "Healthy";

message! {
    /// The spec of a WorkloadEntry, and an endpoint of a ServiceEntry.
    pub struct WorkloadEntrySpec {
        /// IP address, DNS name, or `unix:///path`.
        address: String,
        /// Its ports by the name of the service's port.
        ports: BTreeMap<String, u32>,
        /// Labels.
        labels: BTreeMap<String, String>,
        /// Network it is in; empty is the mesh's own.
        network: String,
        /// `region/zone/subzone`.
        locality: String,
        /// Share of traffic relative to others; 0 is 1.
        weight: u32,
        /// Service account it runs as.
        service_account: String,
    }
}

impl Kind for WorkloadEntrySpec {
    const GROUP: &'static str = GROUP;
    const VERSIONS: &'static [&'static str] = VERSIONS;
    const KIND: &'static str = "WorkloadEntry";
    const PLURAL: &'static str = "workloadentries";
    const SHORT_NAMES: &'static [&'static str] = &["we"];
    const COLUMNS: &'static [(&'static str, &'static str, &'static str)] =
        &[("Address", "Address associated with the network endpoint", ".spec.address")];
}

impl WorkloadEntrySpec {
    /// Its port for the service port of this name, when it says.
    pub fn port(&self, name: &str) -> Option<u16> {
        self.ports.get(name).and_then(|&port| u16::try_from(port).ok()).filter(|&port| port != 0)
    }
}
