//! Encoded xDS resources.
use bytes::Bytes;
pub use lateen_xds::server::Resource;
use prost::{Message, Name};
use xxhash_rust::xxh3::xxh3_64;

/// The types of resources that are generated, in the order in which they must be sent (clusters and endpoints before the
/// listeners and routes that refer to them).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceType {
    /// CDS.
    Cluster,
    /// EDS.
    Endpoint,
    /// LDS.
    Listener,
    /// RDS.
    Route,
    /// SDS.
    Secret,
    /// NDS.
    NameTable,
}

impl ResourceType {
    /// All of them, in the order of sending.
    pub const ALL: [Self; 6] =
        [Self::Cluster, Self::Endpoint, Self::Listener, Self::Route, Self::Secret, Self::NameTable];

    /// The type URL xDS knows it by.
    pub fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoint => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            Self::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
            Self::NameTable => lateen_xds::type_urls::NAME_TABLE,
        }
    }

    /// The type with this type URL.
    pub fn from_type_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == url)
    }
}

/// Encodes a message; its version is the xxh3 of the bytes.
pub(crate) fn encode<M: Message + Name>(name: impl Into<String>, message: &M) -> Resource {
    versioned(name, message.encode_to_vec().into())
}

/// Takes an encoded message.
pub(crate) fn versioned(name: impl Into<String>, body: Bytes) -> Resource {
    let version = format!("{:016x}", xxh3_64(&body));
    Resource { name: name.into().into(), version: version.into(), body }
}
