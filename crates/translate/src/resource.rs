//! Encoded xDS resources.
use bytes::Bytes;
use lateen_xds::Any;
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
}

impl ResourceType {
    /// All of them, in the order of sending.
    pub const ALL: [Self; 4] = [Self::Cluster, Self::Endpoint, Self::Listener, Self::Route];

    /// The type URL xDS knows it by.
    pub fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoint => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        }
    }

    /// The type with this type URL.
    pub fn from_type_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == url)
    }
}

/// One encoded resource. Shared by all proxies that get it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Name, unique among resources of its type.
    pub name: String,
    /// Its type.
    pub kind: ResourceType,
    /// The xxh3 of the bytes in hexadecimal: equal versions stand for equal content.
    pub version: String,
    /// The encoded message.
    pub body: Bytes,
}

impl Resource {
    /// Encodes a message.
    pub fn new<M: Message + Name>(kind: ResourceType, name: impl Into<String>, message: &M) -> Self {
        Self::encoded(kind, name, message.encode_to_vec().into())
    }

    /// Takes an encoded message.
    pub(crate) fn encoded(kind: ResourceType, name: impl Into<String>, body: Bytes) -> Self {
        let version = format!("{:016x}", xxh3_64(&body));
        Self { name: name.into(), kind, version, body }
    }

    /// The type URL.
    pub fn type_url(&self) -> &'static str {
        self.kind.type_url()
    }

    /// The message as xDS responses carry it.
    pub fn to_any(&self) -> Any {
        Any { type_url: self.type_url().to_owned(), value: self.body.to_vec() }
    }
}
