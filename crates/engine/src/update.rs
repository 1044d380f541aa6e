//! What an embedder tells the engine (configuration in) and what the engine answers (accepted or rejected, per resource).

use std::collections::BTreeSet;
use std::fmt;

use prost_types::Any;

/// The xDS resource types the engine understands, as Envoy's v3 API names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceKind {
    /// `envoy.config.cluster.v3.Cluster` (CDS).
    Cluster,
    /// `envoy.config.endpoint.v3.ClusterLoadAssignment` (EDS).
    Endpoints,
    /// `envoy.config.listener.v3.Listener` (LDS).
    Listener,
    /// `envoy.config.route.v3.RouteConfiguration` (RDS).
    Routes,
    /// `envoy.extensions.transport_sockets.tls.v3.Secret` (SDS).
    Secret,
}

impl ResourceKind {
    /// Every kind.
    pub const ALL: [ResourceKind; 5] =
        [Self::Cluster, Self::Endpoints, Self::Listener, Self::Routes, Self::Secret];

    /// Order in which kinds are applied: what others refer to comes first (Envoy's make-before-break order), and secrets before all.
    pub(crate) fn order(self) -> usize {
        if self == Self::Secret { 0 } else { 1 + self as usize }
    }

    /// The type URL used in xDS and in `Any`.
    pub fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoints => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::Routes => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            Self::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
        }
    }

    /// The kind for a type URL; `None` for types the engine does not take.
    pub fn from_type_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == url)
    }
}

impl fmt::Display for ResourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cluster => "cluster",
            Self::Endpoints => "endpoints",
            Self::Listener => "listener",
            Self::Routes => "routes",
            Self::Secret => "secret",
        })
    }
}

/// One resource as it came over xDS or out of a bootstrap file. The engine converts it through `lateen-ir`, and keeps the
/// encoded form for `/config_dump`.
#[derive(Clone, Debug)]
pub struct Resource {
    /// Name by which others refer to it.
    pub name: String,
    /// Version given by the management server; empty for static resources.
    pub version: String,
    /// The encoded resource; its type URL decides the kind.
    pub body: Any,
    /// True when it comes from the bootstrap: listed as static in dumps and never removed by xDS.
    pub is_static: bool,
}

/// A batch of changes, applied as one step: references inside one batch are resolved against the result of the whole batch.
#[derive(Clone, Debug, Default)]
pub struct ConfigUpdate {
    /// Resources to add or replace, of any kinds, in any order.
    pub set: Vec<Resource>,
    /// Resources to remove. Removing one that does not exist is not an error (xDS allows it).
    pub removed: Vec<(ResourceKind, String)>,
}

/// Why a resource was not accepted. The previous version of the resource, if any, keeps serving.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {name}: {reason}")]
pub struct Rejection {
    /// Kind of the refused resource.
    pub kind: ResourceKind,
    /// Its name.
    pub name: String,
    /// What is wrong, with the path of the field (`filter_chains[0].filters[1].typed_config: …`).
    pub reason: String,
}

/// The outcome of [`ConfigUpdate`] for each resource named in it.
#[derive(Clone, Debug, Default)]
pub struct ApplyReport {
    /// Resources in effect, or warming towards it.
    pub accepted: Vec<(ResourceKind, String)>,
    /// Resources refused; the rest of the update applies all the same.
    pub rejected: Vec<Rejection>,
}

/// Names of resources that accepted configuration refers to and that therefore must be subscribed to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subscriptions {
    /// RDS route configuration names.
    pub routes: BTreeSet<String>,
    /// EDS resource names (a cluster's `service_name`, or its name).
    pub endpoints: BTreeSet<String>,
    /// SDS secret names.
    pub secrets: BTreeSet<String>,
    /// Secrets of the agent around the proxy.
    pub agent_secrets: BTreeSet<String>,
    /// Files that hold secrets (`path_config_source`).
    pub secret_files: BTreeSet<String>,
}
