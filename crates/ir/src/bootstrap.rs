//! The bootstrap: what a proxy starts with.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::cluster::{BindConfig, Cluster};
use crate::listener::Listener;

/// Envoy's `bootstrap.v3.Bootstrap`.
#[derive(Clone, Debug)]
pub struct Bootstrap {
    /// Who this proxy is; sent to the management server as it stands.
    pub node: lateen_xds::pb::envoy::config::core::v3::Node,
    /// Static listeners.
    pub listeners: Vec<Listener>,
    /// Static clusters.
    pub clusters: Vec<Cluster>,
    /// Dynamic resources; `None`: everything is static.
    pub dynamic: Option<DynamicResources>,
    /// Admin address.
    pub admin: Option<SocketAddr>,
    /// For clusters without their own.
    pub upstream_bind: Option<BindConfig>,
}

/// Where listeners and clusters come from.
#[derive(Clone, Debug)]
pub struct DynamicResources {
    /// The aggregated stream, when something uses it.
    pub ads: Option<Ads>,
    /// Listeners.
    pub listeners: Option<ConfigSource>,
    /// Clusters.
    pub clusters: Option<ConfigSource>,
}

/// A source of resources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigSource {
    /// The aggregated stream.
    Ads,
    /// A file with a `DiscoveryResponse` in YAML or JSON, read again when it is replaced.
    Path(Arc<str>),
}

/// The aggregated stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ads {
    /// Delta (`DELTA_GRPC`) or state of the world (`GRPC`).
    pub delta: bool,
    /// Static cluster to connect to.
    pub cluster: Arc<str>,
    /// `:authority`; `None`: the cluster's name.
    pub authority: Option<Arc<str>>,
    /// Metadata on the stream.
    pub initial_metadata: Vec<(http::HeaderName, http::HeaderValue)>,
    /// How long readiness waits for the first answer. Default 15 s; `None`: for ever.
    pub initial_fetch_timeout: Option<Duration>,
}
