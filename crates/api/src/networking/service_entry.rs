//! ServiceEntry: a service of the mesh's registry that Kubernetes does not know.
//! <https://istio.io/latest/docs/reference/config/networking/service-entry/>
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::workload_entry::WorkloadEntrySpec;
use super::{GROUP, VERSIONS};
use crate::object::Kind;

/// Label of a ServiceEntry: `false` leaves its hosts without an automatic address.
pub const ENABLE_AUTOALLOCATE_IP: &str = "networking.istio.io/enable-autoallocate-ip";

message! {
    /// The spec of a ServiceEntry.
    pub struct ServiceEntrySpec {
        /// Its hosts, possibly with a leading wildcard.
        hosts!: Vec<String>,
        /// Virtual addresses, each an address or a CIDR range.
        addresses: Vec<String>,
        /// Its ports.
        ports: Vec<ServicePort>,
        /// Whether it is part of the mesh.
        location: Location,
        /// How its endpoints are found.
        resolution: EntryResolution,
        /// Its endpoints, when listed.
        endpoints: Vec<WorkloadEntrySpec>,
        /// Pods and WorkloadEntries of its namespace that are its endpoints.
        workload_selector: Option<EntrySelector>,
        /// Namespaces it is visible in: `*`, `.`, `~` or names.
        export_to: Vec<String>,
        /// Identities its servers may have.
        subject_alt_names: Vec<String>,
    }
}

impl Kind for ServiceEntrySpec {
    const GROUP: &'static str = GROUP;
    const VERSIONS: &'static [&'static str] = VERSIONS;
    const KIND: &'static str = "ServiceEntry";
    const PLURAL: &'static str = "serviceentries";
    const SHORT_NAMES: &'static [&'static str] = &["se"];
    const COLUMNS: &'static [(&'static str, &'static str, &'static str)] = &[
        ("Hosts", "The hosts associated with the ServiceEntry", ".spec.hosts"),
        ("Location", "Whether the service is external to the mesh or part of it", ".spec.location"),
        ("Resolution", "Service resolution mode for the hosts", ".spec.resolution"),
    ];
}

message! {
    /// A port of a ServiceEntry.
    pub struct ServicePort {
        /// Port number.
        number!: u32,
        /// `HTTP|HTTPS|GRPC|GRPC-WEB|HTTP2|MONGO|TCP|TLS|…`; empty is found out from the first bytes.
        protocol: String,
        /// Name of the port.
        name!: String,
        /// Port of the endpoints; 0 is the port itself.
        target_port: u32,
    }
}

message! {
    /// Selects the workloads behind a ServiceEntry.
    pub struct EntrySelector {
        /// All of these labels must be present.
        labels: BTreeMap<String, String>,
    }
}

/// Whether a service is part of the mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Location {
    /// Reached outside the mesh: no mutual TLS.
    #[default]
    MeshExternal,
    /// Part of the mesh.
    MeshInternal,
}

/// How the endpoints of a ServiceEntry are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum EntryResolution {
    /// Where the caller connected to.
    #[default]
    None,
    /// The listed addresses.
    Static,
    /// By DNS: all addresses of all names.
    Dns,
    /// By DNS: the name's addresses in turn, one at a time.
    DnsRoundRobin,
    /// By DNS at the time of the request: the name the caller asked for.
    DynamicDns,
}
