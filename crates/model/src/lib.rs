//! Resources to [`World`]: an immutable snapshot of services, endpoints, policies and visibility.
//!
//! [`Store`] takes Kubernetes objects one at a time and answers each with a [`Delta`] that says precisely what changed;
//! [`Store::world`] is the current snapshot. Worlds share their structure, so a new one costs what changed. Endpoints and
//! pods take a path of their own and never touch services or policies.
mod auto_address;
mod config;
mod credential;
mod delegate;
mod delta;
mod digest;
mod endpoint;
mod event;
mod hostname;
mod index;
mod ingress;
mod key_set;
mod name;
mod network;
mod peer_authentication;
mod pod;
mod protocol;
mod rule_index;
mod service;
mod service_entry;
mod store;
mod visibility;
mod workload_entry;
mod workload_rules;
mod world;

pub use config::{
    AuthorizationPolicy, Config, DestinationRule, Gateway, Origin, PeerAuthentication, RequestAuthentication,
    ServiceEntry, Sidecar, VirtualService, WorkloadEntry, WorkloadGroup,
};
pub use credential::Credential;
pub use delegate::{DelegateProblem, DelegateReason, delegate_of, is_delegate};
pub use delta::{Delta, Problem};
pub use digest::{Digest, digest_of};
pub use endpoint::{Address, Endpoint, Health, Locality, ServiceEndpoints};
pub use event::{Event, Object};
pub use hostname::{Hostname, host_matches, hosts_overlap, resolve_host, short_name};
pub use index::resolve_gateway;
pub use ingress::{CONTROLLER as INGRESS_CONTROLLER, Ingress};
pub use key_set::{KeySet, KeySource, KeysBy};
pub use name::ObjectName;
pub use network::{Gateways, NETWORK_LABEL, NetworkGateway, Networks};
pub use peer_authentication::{PeerMode, PeerModes, PeerPolicies};
pub use pod::{Labels, Pod, PodPhase, labels_match};
pub use protocol::Protocol;
pub use rule_index::Client;
pub use service::{Registry, Resolution, Service, ServicePort, TargetPort};
pub use store::{Store, StoreOptions};
pub use visibility::Visibility;
pub use world::{ServiceTarget, Workload, World};
