//! Responses on the wire. Resources are encoded once and shared: a response is written around their bytes, piece by piece as the connection takes them,
//! so that sending to one more client costs little more than its own bytes on the wire, and a slow client holds a piece and not a response.
use std::collections::VecDeque;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use futures::Stream;
use http::HeaderMap;
use http_body::Frame;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};
use tonic::Status;
use tonic::codec::{DecodeBuf, Decoder};

use super::resource::Resource;
use super::session::{Protocol, Push};

/// Size of a piece, in bytes, give or take a resource below [`SHARED`].
const PIECE: usize = 32 << 10;
/// Resources of at least so many bytes go out as they are, smaller ones are copied together.
const SHARED: usize = 8 << 10;
/// Length of gRPC's prefix: a flag (not compressed) and the message's length.
const PREFIX: usize = 5;

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

/// Everything of an `Any` but the bytes of its value, which come last.
fn put_any_head(type_url: &str, resource: &Resource, buf: &mut impl BufMut) {
    put(field::ANY_TYPE_URL, type_url.as_bytes(), buf);
    put_head(field::ANY_VALUE, resource.body.len(), buf);
}

/// A response being written.
pub(super) struct Response {
    push: Push,
    version: String,
    next: Next,
    /// Pieces that are made and not taken.
    made: VecDeque<Bytes>,
}

/// What is written next.
enum Next {
    Start,
    Resource(usize),
    End,
    Nothing,
}

impl Response {
    pub(super) fn new(push: Push) -> Self {
        let version = push.version.to_string();
        Self { push, version, next: Next::Start, made: VecDeque::new() }
    }

    /// The next piece of the message with its prefix, none at the end.
    pub(super) fn piece(&mut self) -> Option<Bytes> {
        if let Some(piece) = self.made.pop_front() {
            return Some(piece);
        }
        let mut buf = BytesMut::new();
        while buf.len() < PIECE {
            match self.next {
                Next::Start => {
                    buf.reserve(self.message_len().saturating_add(PREFIX).min(PIECE + SHARED));
                    self.start(&mut buf);
                    self.next = Next::Resource(0);
                }
                Next::Resource(index) => {
                    let Some(resource) = self.push.resources.get(index) else {
                        self.next = Next::End;
                        continue;
                    };
                    self.resource_head(resource, &mut buf);
                    self.next = Next::Resource(index + 1);
                    if resource.body.len() >= SHARED {
                        self.made.push_back(resource.body.clone());
                        break;
                    }
                    buf.put_slice(&resource.body);
                }
                Next::End => {
                    self.end(&mut buf);
                    self.next = Next::Nothing;
                }
                Next::Nothing => break,
            }
        }
        (!buf.is_empty()).then(|| buf.freeze())
    }

    /// Length of the message of the push's protocol.
    fn message_len(&self) -> usize {
        let (push, url) = (&self.push, self.push.type_url.len());
        let ends = |version, type_url, nonce| {
            len(version, self.version.len()) + len(type_url, url) + len(nonce, push.nonce.len())
        };
        match push.protocol {
            Protocol::Delta => {
                let resources =
                    push.resources.iter().map(|one| len(field::DELTA_RESOURCES, self.resource_len(one)));
                let removed = push.removed.iter().map(|name| len(field::DELTA_REMOVED, name.len()));
                let ends = ends(field::DELTA_SYSTEM_VERSION, field::DELTA_TYPE_URL, field::DELTA_NONCE);
                ends + resources.sum::<usize>() + removed.sum::<usize>()
            }
            Protocol::Sotw => {
                let url = &push.type_url;
                let resources =
                    push.resources.iter().map(|one| len(field::SOTW_RESOURCES, any_len(url, one)));
                let ends = ends(field::SOTW_VERSION, field::SOTW_TYPE_URL, field::SOTW_NONCE);
                ends + resources.sum::<usize>()
            }
        }
    }

    fn resource_len(&self, resource: &Resource) -> usize {
        len(field::RESOURCE_VERSION, resource.version.len())
            + len(field::RESOURCE_NAME, resource.name.len())
            + len(field::RESOURCE_ANY, any_len(&self.push.type_url, resource))
    }

    /// The prefix and what stands before the resources.
    fn start(&self, buf: &mut BytesMut) {
        buf.put_u8(0);
        // Responses are bounded by what a control plane holds, far below 4 GiB.
        buf.put_u32(u32::try_from(self.message_len()).unwrap_or(u32::MAX));
        let version = match self.push.protocol {
            Protocol::Delta => field::DELTA_SYSTEM_VERSION,
            Protocol::Sotw => field::SOTW_VERSION,
        };
        put(version, self.version.as_bytes(), buf);
    }

    /// Everything of a resource but its body.
    fn resource_head(&self, resource: &Resource, buf: &mut BytesMut) {
        let url = &self.push.type_url;
        match self.push.protocol {
            Protocol::Delta => {
                put_head(field::DELTA_RESOURCES, self.resource_len(resource), buf);
                put(field::RESOURCE_VERSION, resource.version.as_bytes(), buf);
                put(field::RESOURCE_NAME, resource.name.as_bytes(), buf);
                put_head(field::RESOURCE_ANY, any_len(url, resource), buf);
            }
            Protocol::Sotw => put_head(field::SOTW_RESOURCES, any_len(url, resource), buf),
        }
        put_any_head(url, resource, buf);
    }

    /// What stands after the resources.
    fn end(&self, buf: &mut BytesMut) {
        let (type_url, nonce) = match self.push.protocol {
            Protocol::Delta => (field::DELTA_TYPE_URL, field::DELTA_NONCE),
            Protocol::Sotw => (field::SOTW_TYPE_URL, field::SOTW_NONCE),
        };
        put(type_url, self.push.type_url.as_bytes(), buf);
        put(nonce, self.push.nonce.as_bytes(), buf);
        // Without removals in the protocol, nothing is said of them in state of the world.
        if self.push.protocol == Protocol::Delta {
            for name in &self.push.removed {
                put(field::DELTA_REMOVED, name.as_bytes(), buf);
            }
        }
    }
}

/// The body of a stream of responses, with gRPC's status in its trailers.
pub(super) struct ResponseBody<S> {
    pushes: Pin<Box<S>>,
    current: Option<Response>,
    ended: bool,
}

impl<S> ResponseBody<S> {
    pub(super) fn new(pushes: S) -> Self {
        Self { pushes: Box::pin(pushes), current: None, ended: false }
    }
}

impl<S: Stream<Item = Result<Push, Status>>> http_body::Body for ResponseBody<S> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        loop {
            if let Some(piece) = self.current.as_mut().and_then(Response::piece) {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            self.current = None;
            let status = match self.pushes.as_mut().poll_next(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(push))) => {
                    self.current = Some(Response::new(push));
                    continue;
                }
                Poll::Ready(Some(Err(status))) => status,
                Poll::Ready(None) => Status::ok(""),
            };
            self.ended = true;
            let mut trailers = HeaderMap::new();
            return Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

/// Reads requests of type `R`.
pub(super) struct RequestDecoder<R>(PhantomData<R>);

impl<R> Default for RequestDecoder<R> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

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

    fn push(protocol: Protocol, sizes: &[usize]) -> Push {
        let resources = sizes.iter().enumerate().map(|(index, &size)| {
            let (name, body) = (format!("outbound|80||{index}"), vec![index as u8; size]);
            Arc::new(Resource { name: name.into(), version: "v1".into(), body: body.into() })
        });
        Push {
            protocol,
            type_url: crate::type_urls::CLUSTER.into(),
            nonce: "12".into(),
            version: 5,
            resources: resources.collect(),
            removed: vec!["gone".into()],
        }
    }

    /// The message, with its prefix checked, and the sizes of the pieces it came in.
    fn written(push: Push) -> (Vec<u8>, Vec<usize>) {
        let mut response = Response::new(push);
        let pieces: Vec<Bytes> = std::iter::from_fn(|| response.piece()).collect();
        let all = pieces.concat();
        assert_eq!(all[0], 0, "not compressed");
        let length = u32::from_be_bytes(all[1..PREFIX].try_into().unwrap());
        assert_eq!(length as usize, all.len() - PREFIX);
        (all[PREFIX..].to_vec(), pieces.iter().map(Bytes::len).collect())
    }

    #[test]
    fn what_is_written_by_hand_is_what_the_protos_read() {
        for sizes in [&[300][..], &[], &[0, 1, SHARED - 1, SHARED, 3 * PIECE, 7], &[1000; 100]] {
            let read = DeltaDiscoveryResponse::decode(&*written(push(Protocol::Delta, sizes)).0).unwrap();
            assert_eq!((read.system_version_info.as_str(), read.nonce.as_str()), ("5", "12"));
            assert_eq!(read.type_url, crate::type_urls::CLUSTER);
            assert_eq!(read.removed_resources, ["gone"]);
            for (index, (resource, &size)) in read.resources.iter().zip(sizes).enumerate() {
                assert_eq!(
                    (resource.name.as_str(), resource.version.as_str()),
                    (&*format!("outbound|80||{index}"), "v1")
                );
                let any = resource.resource.as_ref().unwrap();
                assert_eq!(
                    (any.type_url.as_str(), &any.value),
                    (crate::type_urls::CLUSTER, &vec![index as u8; size])
                );
            }
            assert_eq!(read.resources.len(), sizes.len());

            let read = DiscoveryResponse::decode(&*written(push(Protocol::Sotw, sizes)).0).unwrap();
            assert_eq!((read.version_info.as_str(), read.nonce.as_str()), ("5", "12"));
            assert_eq!(
                (read.type_url.as_str(), read.resources.len()),
                (crate::type_urls::CLUSTER, sizes.len())
            );
            assert!(read.resources.iter().zip(sizes).all(|(any, &size)| any.value.len() == size));
        }
    }

    #[test]
    fn big_resources_are_shared_and_small_ones_go_together() {
        let push = push(Protocol::Delta, &[SHARED]);
        let body = push.resources[0].body.clone();
        let mut response = Response::new(push);
        let pieces: Vec<Bytes> = std::iter::from_fn(|| response.piece()).collect();
        assert_eq!(pieces.len(), 3);
        assert_eq!(pieces[1].as_ptr(), body.as_ptr(), "the very bytes");

        let (_, pieces) = written(self::push(Protocol::Delta, &[500; 1000]));
        assert!(pieces.len() < 20 && pieces.iter().all(|&size| size < PIECE + SHARED), "{pieces:?}");
    }
}
