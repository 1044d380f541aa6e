//! Conversion from Envoy's messages. Each resource has `from_proto`, which takes the message apart, and `from_bytes`
//! (of route configurations in `route_versions`).

mod access_log;
mod balancing;
mod bootstrap;
mod certificate_hash;
mod cluster;
mod cluster_names;
mod config_source;
mod cors;
mod dns;
mod dynamic_forward_proxy;
mod endpoint;
mod ext_authz;
mod fault;
mod hash_policy;
mod hcm;
mod header_mutation_rules;
mod health_check;
mod http_filters;
mod http_options;
mod internal_redirect;
mod jwt_authn;
mod lb_policy;
mod listener;
mod matchers;
mod metadata;
mod mirror;
mod rbac;
mod redirect;
mod retry;
mod route;
mod route_upgrades;
mod route_versions;
mod stat_names;
mod subset;
mod tcp_proxy;
mod tls;
mod transport_socket;
mod upstream_http;
mod values;
mod weighted_clusters;

#[cfg(test)]
mod tests;

pub(crate) use values::struct_value;

use lateen_xds::pb::envoy::config as proto;
use prost::Message;

use crate::error::At;
use crate::{Bootstrap, Cluster, ClusterLoadAssignment, ConvertError, Listener, Secret};

fn decode<M: Message + Default>(bytes: &[u8]) -> Result<M, ConvertError> {
    M::decode(bytes).map_err(|error| At::ROOT.error(format!("not a valid encoding: {error}")))
}

macro_rules! entry_points {
    ($($resource:ident, $message:ty, $convert:expr;)*) => {$(
        impl $resource {
            /// Converts the message.
            ///
            /// # Errors
            /// The first field that can't be used, with its path.
            pub fn from_proto(message: $message) -> Result<Self, ConvertError> {
                $convert(message)
            }

            /// Decodes (the `value` of an `Any` of the right type) and converts.
            ///
            /// # Errors
            /// As [`Self::from_proto`], and when the bytes don't decode.
            pub fn from_bytes(bytes: &[u8]) -> Result<Self, ConvertError> {
                Self::from_proto(decode(bytes)?)
            }
        }
    )*};
}

entry_points! {
    Listener, proto::listener::v3::Listener, |message| listener::listener(&At::ROOT, message);
    Cluster, proto::cluster::v3::Cluster, |message| cluster::cluster(&At::ROOT, message);
    ClusterLoadAssignment, proto::endpoint::v3::ClusterLoadAssignment,
        |message| endpoint::load_assignment(&At::ROOT, message, endpoint::Names::Refused);
    Secret, lateen_xds::pb::envoy::extensions::transport_sockets::tls::v3::Secret,
        |message| tls::secret(&At::ROOT, message);
    Bootstrap, proto::bootstrap::v3::Bootstrap, |message| bootstrap::bootstrap(&At::ROOT, message);
}
