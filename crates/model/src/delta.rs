//! What changed between two worlds.
use std::collections::BTreeSet;
use std::sync::Arc;

use crate::config::VirtualService;
use crate::hostname::Hostname;
use crate::key_set::KeySource;
use crate::name::ObjectName;

/// What changed. Empty when an object changed in a way that is of no concern to the mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delta {
    /// Services that came, went, or changed in anything but endpoints.
    pub services: BTreeSet<Hostname>,
    /// The namespaces of those services.
    pub service_namespaces: BTreeSet<Arc<str>>,
    /// Services whose endpoints changed.
    pub endpoints: BTreeSet<Hostname>,
    /// AuthorizationPolicies.
    pub authorization_policies: BTreeSet<ObjectName>,
    /// VirtualServices.
    pub virtual_services: BTreeSet<ObjectName>,
    /// What those VirtualServices were and are: who sees neither is not concerned.
    pub virtual_service_states: Vec<Arc<VirtualService>>,
    /// DestinationRules.
    pub destination_rules: BTreeSet<ObjectName>,
    /// Hosts those DestinationRules were and are about; may be wildcards.
    pub destination_rule_hosts: BTreeSet<String>,
    /// Gateways.
    pub gateways: BTreeSet<ObjectName>,
    /// Sidecars.
    pub sidecars: BTreeSet<ObjectName>,
    /// ServiceEntries; the services and endpoints they make are among those above.
    pub service_entries: BTreeSet<ObjectName>,
    /// WorkloadEntries; the endpoints they make are among those above.
    pub workload_entries: BTreeSet<ObjectName>,
    /// WorkloadGroups.
    pub workload_groups: BTreeSet<ObjectName>,
    /// PeerAuthentications.
    pub peer_authentications: BTreeSet<ObjectName>,
    /// RequestAuthentications.
    pub request_authentications: BTreeSet<ObjectName>,
    /// Places whose keys of token issuers changed.
    pub key_sets: BTreeSet<KeySource>,
    /// Services whose load-balancer addresses changed.
    pub load_balancers: BTreeSet<ObjectName>,
    /// Secrets with credentials.
    pub credentials: BTreeSet<ObjectName>,
    /// Pods whose address, labels, service account, node or ports changed.
    pub pods: BTreeSet<ObjectName>,
    /// Namespaces whose labels changed.
    pub namespaces: BTreeSet<Arc<str>>,
    /// Nodes whose locality changed.
    pub nodes: BTreeSet<Arc<str>>,
    /// Whether mesh config changed.
    pub mesh: bool,
    /// Whether networks changed: their gateways, or which one a workload is in that does not say so itself. Endpoints that are in
    /// another by it are among those above.
    pub networks: bool,
    /// Objects that were not taken over; the previous state stays.
    pub problems: Vec<Problem>,
}

/// An object that was not taken over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The object, for example `ConfigMap istio-system/istio`.
    pub object: String,
    /// Why, and what to do.
    pub message: String,
}

impl Delta {
    /// Whether nothing changed (there may be problems).
    pub fn is_empty(&self) -> bool {
        !self.mesh
            && !self.networks
            && self.services.is_empty()
            && self.endpoints.is_empty()
            && self.authorization_policies.is_empty()
            && self.virtual_services.is_empty()
            && self.destination_rules.is_empty()
            && self.gateways.is_empty()
            && self.sidecars.is_empty()
            && self.peer_authentications.is_empty()
            && self.request_authentications.is_empty()
            && self.key_sets.is_empty()
            && self.load_balancers.is_empty()
            && self.service_entries.is_empty()
            && self.workload_entries.is_empty()
            && self.workload_groups.is_empty()
            && self.credentials.is_empty()
            && self.pods.is_empty()
            && self.namespaces.is_empty()
            && self.nodes.is_empty()
    }

    /// Adds what another delta says.
    pub fn merge(&mut self, other: Self) {
        self.services.extend(other.services);
        self.service_namespaces.extend(other.service_namespaces);
        self.endpoints.extend(other.endpoints);
        self.authorization_policies.extend(other.authorization_policies);
        self.virtual_services.extend(other.virtual_services);
        self.virtual_service_states.extend(other.virtual_service_states);
        self.destination_rules.extend(other.destination_rules);
        self.destination_rule_hosts.extend(other.destination_rule_hosts);
        self.gateways.extend(other.gateways);
        self.sidecars.extend(other.sidecars);
        self.peer_authentications.extend(other.peer_authentications);
        self.request_authentications.extend(other.request_authentications);
        self.key_sets.extend(other.key_sets);
        self.load_balancers.extend(other.load_balancers);
        self.service_entries.extend(other.service_entries);
        self.workload_entries.extend(other.workload_entries);
        self.workload_groups.extend(other.workload_groups);
        self.credentials.extend(other.credentials);
        self.pods.extend(other.pods);
        self.namespaces.extend(other.namespaces);
        self.nodes.extend(other.nodes);
        self.mesh |= other.mesh;
        self.networks |= other.networks;
        self.problems.extend(other.problems);
    }
}
