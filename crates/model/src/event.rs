//! What the store is told: objects that come, change and go, and what was fetched for them.
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1 as networking;

use crate::key_set::{KeySet, KeySource};

/// An object the mesh's configuration is made of.
#[derive(Clone, Debug)]
pub enum Object {
    /// A Service.
    Service(Box<core::Service>),
    /// An EndpointSlice.
    EndpointSlice(Box<EndpointSlice>),
    /// A Pod.
    Pod(Box<core::Pod>),
    /// A Namespace.
    Namespace(Box<core::Namespace>),
    /// A Node.
    Node(Box<core::Node>),
    /// A ConfigMap; only the mesh config is of interest.
    ConfigMap(Box<core::ConfigMap>),
    /// A Secret; those with credentials are of interest.
    Secret(Box<core::Secret>),
    /// A Gateway.
    Gateway(Box<lateen_api::Gateway>),
    /// A VirtualService.
    VirtualService(Box<lateen_api::VirtualService>),
    /// A DestinationRule.
    DestinationRule(Box<lateen_api::DestinationRule>),
    /// An AuthorizationPolicy.
    AuthorizationPolicy(Box<lateen_api::AuthorizationPolicy>),
    /// A Sidecar.
    Sidecar(Box<lateen_api::Sidecar>),
    /// A PeerAuthentication.
    PeerAuthentication(Box<lateen_api::PeerAuthentication>),
    /// A RequestAuthentication.
    RequestAuthentication(Box<lateen_api::RequestAuthentication>),
    /// An Ingress.
    Ingress(Box<networking::Ingress>),
    /// An IngressClass.
    IngressClass(Box<networking::IngressClass>),
    /// A ServiceEntry.
    ServiceEntry(Box<lateen_api::ServiceEntry>),
    /// A WorkloadEntry.
    WorkloadEntry(Box<lateen_api::WorkloadEntry>),
    /// A WorkloadGroup.
    WorkloadGroup(Box<lateen_api::WorkloadGroup>),
}

/// A change of one object.
#[derive(Clone, Debug)]
pub enum Event {
    /// It was created or changed.
    Applied(Object),
    /// It was deleted.
    Deleted(Object),
    /// Keys were fetched, or could not be.
    Keys(KeySet),
    /// Keys from there are not wanted any more.
    NoKeys(KeySource),
    /// The name of a gateway between networks was looked up.
    GatewayName {
        /// The name.
        name: Arc<str>,
        /// Its addresses; none: they are not wanted any more.
        addresses: Vec<IpAddr>,
    },
}
