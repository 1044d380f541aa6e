//! Packing messages into `google.protobuf.Any` and out of it.

use prost::{Message, Name};

use crate::Any;

/// Why a message could not be taken out of an `Any`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnpackError {
    /// Another type is inside.
    #[error("expected type {expected}, found {found:?}")]
    WrongType {
        /// Full name of the expected message.
        expected: String,
        /// Type URL that is there.
        found: String,
    },
    /// The bytes don't decode.
    #[error("{message} does not decode: {reason}")]
    Malformed {
        /// Full name of the message.
        message: String,
        /// The decoder's words.
        reason: String,
    },
}

/// Full name of the message in a type URL: what follows the last `/`.
pub fn message_name(type_url: &str) -> &str {
    type_url.rsplit_once('/').map_or(type_url, |(_, name)| name)
}

/// Packs a message.
pub fn pack<T: Message + Name>(message: &T) -> Any {
    Any { type_url: T::type_url(), value: message.encode_to_vec() }
}

/// Takes a `T` out.
///
/// # Errors
/// When something else is inside or the bytes don't decode.
pub fn unpack<T: Message + Name + Default>(any: &Any) -> Result<T, UnpackError> {
    unpack_parts(&any.type_url, &any.value)
}

/// [`unpack`] for an `Any` of another crate (`prost_types::Any`).
///
/// # Errors
/// As [`unpack`].
pub fn unpack_parts<T: Message + Name + Default>(type_url: &str, value: &[u8]) -> Result<T, UnpackError> {
    if message_name(type_url) != T::full_name() {
        return Err(UnpackError::WrongType { expected: T::full_name(), found: type_url.to_owned() });
    }
    T::decode(value)
        .map_err(|error| UnpackError::Malformed { message: T::full_name(), reason: error.to_string() })
}

/// The name of an xDS resource. Every resource type has it as its first field.
pub fn resource_name(any: &Any) -> Option<String> {
    #[derive(Clone, PartialEq, Message)]
    struct Named {
        #[prost(string, tag = "1")]
        name: String,
    }
    Named::decode(any.value.as_slice()).ok().map(|named| named.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::envoy::config::cluster::v3::Cluster;
    use crate::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;

    #[test]
    fn a_message_survives_and_another_type_is_refused() {
        let assignment = ClusterLoadAssignment { cluster_name: "a".into(), ..Default::default() };
        let any = pack(&assignment);
        assert_eq!(any.type_url, crate::type_urls::ENDPOINT);
        assert_eq!(unpack::<ClusterLoadAssignment>(&any).unwrap(), assignment);
        assert_eq!(resource_name(&any).as_deref(), Some("a"));
        let error = unpack::<Cluster>(&any).unwrap_err();
        assert!(error.to_string().contains("expected type envoy.config.cluster.v3.Cluster"), "{error}");
    }

    #[test]
    fn broken_bytes_are_an_error() {
        let any = Any { type_url: crate::type_urls::CLUSTER.into(), value: vec![0xff, 0xff] };
        assert!(matches!(unpack::<Cluster>(&any), Err(UnpackError::Malformed { .. })));
    }
}
