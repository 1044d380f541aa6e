//! Resource types of Istio's public API, mesh config, parsing, validation and CRD generation. No I/O.
//!
//! The types follow Istio's proto definitions in their JSON form: every field is optional on the wire, absent means the
//! proto default, durations are strings (`"1.5s"`), enums are their upper-case names. What Istio requires is checked by
//! [`validate`], and marked `required` in the CRDs of [`crd::crds`], which are generated from the same types.
#[macro_use]
mod message;

pub mod crd;
pub mod duration;
pub mod extension_provider;
pub mod grpc;
pub mod mesh;
pub mod mesh_networks;
pub mod networking;
pub mod object;
pub mod security;
pub mod stored;
pub mod validate;

pub use crd::crds;
pub use mesh::{MeshConfig, MeshConfigError, is_served_cipher};
pub use mesh_networks::{MeshNetworks, MeshNetworksError};
pub use networking::destination_rule::DestinationRuleSpec;
pub use networking::gateway::GatewaySpec;
pub use networking::service_entry::ServiceEntrySpec;
pub use networking::sidecar::SidecarSpec;
pub use networking::virtual_service::VirtualServiceSpec;
pub use networking::workload_entry::WorkloadEntrySpec;
pub use networking::workload_group::WorkloadGroupSpec;
pub use object::{Kind, Object, Status};
pub use security::authorization_policy::AuthorizationPolicySpec;
pub use security::peer_authentication::PeerAuthenticationSpec;
pub use security::request_authentication::RequestAuthenticationSpec;

/// `security.istio.io` AuthorizationPolicy.
pub type AuthorizationPolicy = Object<AuthorizationPolicySpec>;
/// `networking.istio.io` Gateway.
pub type Gateway = Object<GatewaySpec>;
/// `networking.istio.io` VirtualService.
pub type VirtualService = Object<VirtualServiceSpec>;
/// `networking.istio.io` DestinationRule.
pub type DestinationRule = Object<DestinationRuleSpec>;
/// `networking.istio.io` ServiceEntry.
pub type ServiceEntry = Object<ServiceEntrySpec>;
/// `networking.istio.io` Sidecar.
pub type Sidecar = Object<SidecarSpec>;
/// `networking.istio.io` WorkloadEntry.
pub type WorkloadEntry = Object<WorkloadEntrySpec>;
/// `networking.istio.io` WorkloadGroup.
pub type WorkloadGroup = Object<WorkloadGroupSpec>;
/// `security.istio.io` PeerAuthentication.
pub type PeerAuthentication = Object<PeerAuthenticationSpec>;
/// `security.istio.io` RequestAuthentication.
pub type RequestAuthentication = Object<RequestAuthenticationSpec>;
