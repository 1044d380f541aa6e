//! Conversion from Envoy's messages. Each resource has `from_proto`, which takes the message apart, and `from_bytes`.

use lateen_xds::pb;

use crate::error::At;
use crate::{Bootstrap, Cluster, ClusterLoadAssignment, ConvertError, Listener, RouteConfiguration};

macro_rules! entry_points {
    ($($resource:ident, $message:ty;)*) => {$(
        impl $resource {
            /// Converts the message; the error names the first field that can't be used.
            pub fn from_proto(message: $message) -> Result<Self, ConvertError> {
                let _ = message;
                Err(At::ROOT.error("conversion is being written"))
            }

            /// Decodes (`Any.value` of the right type) and converts.
            pub fn from_bytes(bytes: &[u8]) -> Result<Self, ConvertError> {
                let message = <$message as prost::Message>::decode(bytes)
                    .map_err(|error| At::ROOT.error(format!("not a valid encoding: {error}")))?;
                Self::from_proto(message)
            }
        }
    )*};
}

entry_points! {
    Listener, pb::envoy::config::listener::v3::Listener;
    RouteConfiguration, pb::envoy::config::route::v3::RouteConfiguration;
    Cluster, pb::envoy::config::cluster::v3::Cluster;
    ClusterLoadAssignment, pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
    Bootstrap, pb::envoy::config::bootstrap::v3::Bootstrap;
}
