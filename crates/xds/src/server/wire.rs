//! Responses on the wire. Resources are encoded once and shared: a response is written around their bytes, straight into
//! the connection's buffer, so that sending to one more client costs a copy and no allocation per resource.
use std::marker::PhantomData;

use prost::Message;
use prost::bytes::BufMut;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

use super::resource::Resource;
use super::session::{Protocol, Push};

/// Field numbers of `envoy.service.discovery.v3`.
mod field {
    pub(super) const DELTA_SYSTEM_VERSION: u32 = 1;
    pub(super) const DELTA_RESOURCES: u32 = 2;
    pub(super) const DELTA_TYPE_URL: u32 = 4;
    pub(super) const DELTA_NONCE: u32 = 5;
    pub(super) const DELTA_REMOVED: u32 = 6;
    pub(super) const SOTW_VERSION: u32 = 1;
    pub(super) const SOTW_RESOURCES: u32 = 2;
    pub(super) const SOTW_TYPE_URL: u32 = 4;
    pub(super) const SOTW_NONCE: u32 = 5;
    pub(super) const RESOURCE_VERSION: u32 = 1;
    pub(super) const RESOURCE_ANY: u32 = 2;
    pub(super) const RESOURCE_NAME: u32 = 3;
    pub(super) const ANY_TYPE_URL: u32 = 1;
    pub(super) const ANY_VALUE: u32 = 2;
}

/// Bytes that a length-delimited field takes.
fn len(field: u32, bytes: usize) -> usize {
    key_len(field) + encoded_len_varint(bytes as u64) + bytes
}

fn put_head(field: u32, bytes: usize, buf: &mut impl BufMut) {
    encode_key(field, WireType::LengthDelimited, buf);
    encode_varint(bytes as u64, buf);
}

fn put(field: u32, bytes: &[u8], buf: &mut impl BufMut) {
    put_head(field, bytes.len(), buf);
    buf.put_slice(bytes);
}

fn any_len(type_url: &str, resource: &Resource) -> usize {
    len(field::ANY_TYPE_URL, type_url.len()) + len(field::ANY_VALUE, resource.body.len())
}

fn put_any(type_url: &str, resource: &Resource, buf: &mut impl BufMut) {
    put(field::ANY_TYPE_URL, type_url.as_bytes(), buf);
    put(field::ANY_VALUE, &resource.body, buf);
}

fn resource_len(type_url: &str, resource: &Resource) -> usize {
    len(field::RESOURCE_NAME, resource.name.len())
        + len(field::RESOURCE_VERSION, resource.version.len())
        + len(field::RESOURCE_ANY, any_len(type_url, resource))
}

impl Push {
    /// Writes the response message of the push's protocol.
    pub(super) fn encode(&self, buf: &mut impl BufMut) {
        let version = self.version.to_string();
        match self.protocol {
            Protocol::Delta => {
                put(field::DELTA_SYSTEM_VERSION, version.as_bytes(), buf);
                for resource in &self.resources {
                    put_head(field::DELTA_RESOURCES, resource_len(&self.type_url, resource), buf);
                    put(field::RESOURCE_VERSION, resource.version.as_bytes(), buf);
                    put_head(field::RESOURCE_ANY, any_len(&self.type_url, resource), buf);
                    put_any(&self.type_url, resource, buf);
                    put(field::RESOURCE_NAME, resource.name.as_bytes(), buf);
                }
                put(field::DELTA_TYPE_URL, self.type_url.as_bytes(), buf);
                put(field::DELTA_NONCE, self.nonce.as_bytes(), buf);
                for name in &self.removed {
                    put(field::DELTA_REMOVED, name.as_bytes(), buf);
                }
            }
            Protocol::Sotw => {
                put(field::SOTW_VERSION, version.as_bytes(), buf);
                for resource in &self.resources {
                    put_head(field::SOTW_RESOURCES, any_len(&self.type_url, resource), buf);
                    put_any(&self.type_url, resource, buf);
                }
                put(field::SOTW_TYPE_URL, self.type_url.as_bytes(), buf);
                put(field::SOTW_NONCE, self.nonce.as_bytes(), buf);
            }
        }
    }
}

/// Reads requests of type `R`, writes pushes.
pub(super) struct PushCodec<R>(PhantomData<R>);

impl<R> Default for PushCodec<R> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<R: Message + Default + Send + 'static> Codec for PushCodec<R> {
    type Encode = Push;
    type Decode = R;
    type Encoder = PushEncoder;
    type Decoder = RequestDecoder<R>;

    fn encoder(&mut self) -> PushEncoder {
        PushEncoder
    }

    fn decoder(&mut self) -> RequestDecoder<R> {
        RequestDecoder(PhantomData)
    }
}

pub(super) struct PushEncoder;

impl Encoder for PushEncoder {
    type Item = Push;
    type Error = Status;

    fn encode(&mut self, push: Push, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        push.encode(buf);
        Ok(())
    }
}

pub(super) struct RequestDecoder<R>(PhantomData<R>);

impl<R: Message + Default + Send + 'static> Decoder for RequestDecoder<R> {
    type Item = R;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<R>, Status> {
        R::decode(buf)
            .map(Some)
            .map_err(|error| Status::invalid_argument(format!("the request does not decode: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse};
    use std::sync::Arc;

    fn push(protocol: Protocol) -> Push {
        let body = vec![7; 300];
        let resource = Resource { name: "outbound|80||a".into(), version: "v1".into(), body: body.into() };
        Push {
            protocol,
            type_url: crate::type_urls::CLUSTER.into(),
            nonce: "12".into(),
            version: 5,
            resources: vec![Arc::new(resource)],
            removed: vec!["gone".into()],
        }
    }

    #[test]
    fn what_is_written_by_hand_is_what_the_protos_read() {
        let mut bytes = Vec::new();
        push(Protocol::Delta).encode(&mut bytes);
        let read = DeltaDiscoveryResponse::decode(bytes.as_slice()).unwrap();
        assert_eq!((read.system_version_info.as_str(), read.nonce.as_str()), ("5", "12"));
        assert_eq!(read.type_url, crate::type_urls::CLUSTER);
        assert_eq!(read.removed_resources, ["gone"]);
        let resource = &read.resources[0];
        assert_eq!((resource.name.as_str(), resource.version.as_str()), ("outbound|80||a", "v1"));
        let any = resource.resource.as_ref().unwrap();
        assert_eq!((any.type_url.as_str(), any.value.len()), (crate::type_urls::CLUSTER, 300));

        let mut bytes = Vec::new();
        push(Protocol::Sotw).encode(&mut bytes);
        let read = DiscoveryResponse::decode(bytes.as_slice()).unwrap();
        assert_eq!((read.version_info.as_str(), read.nonce.as_str()), ("5", "12"));
        assert_eq!((read.type_url.as_str(), read.resources.len()), (crate::type_urls::CLUSTER, 1));
        assert_eq!(read.resources[0].value, vec![7; 300]);
    }
}
