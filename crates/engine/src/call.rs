//! A filter's own request to a cluster, whose answer is read whole.

use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode, Version};
use http_body_util::BodyExt;
use lateen_ir::TextFormat;

use crate::answer::{ActiveRequest, UpstreamStream};
use crate::body::RequestBody;
use crate::breakers::{self, Limited};
use crate::cluster::{LocalCluster, Need};
use crate::forward::X_ENVOY_EXPECTED_RQ_TIMEOUT_MS;
use crate::host::Host;
use crate::ingress::{X_FORWARDED_FOR, append_list};
use crate::message::Message;
use crate::outlier::Outcome;
use crate::render;
use crate::special::Special;
use crate::upstream::{self, Target};
use crate::worker::Worker;

/// Bytes of an answer where nothing says otherwise; a longer one is none.
const MOST_RECEIVED: usize = 4 * 1024 * 1024;

/// What is asked of whom.
pub(crate) struct Call {
    pub(crate) worker: Rc<Worker>,
    pub(crate) cluster: Rc<LocalCluster>,
    pub(crate) message: Message,
    pub(crate) body: Bytes,
    /// For everything. `None`: no limit.
    pub(crate) timeout: Option<Duration>,
    /// Longest answer in bytes.
    pub(crate) most_received: Option<usize>,
}

/// The whole answer.
pub(crate) struct Called {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
    /// How long its head took.
    pub(crate) took: Duration,
}

/// There is no answer. Who asked has no use for the reason; the cluster's numbers tell it.
#[derive(Debug)]
pub(crate) struct Unanswered;

impl Call {
    /// Asks.
    pub(crate) async fn send(self) -> Result<Called, Unanswered> {
        let cluster = self.cluster.clone();
        let Some(host) = cluster.pick(Need::default(), &mut || self.worker.random(), &|_| false) else {
            cluster.stats.upstream_cx_none_healthy.inc();
            return Err(charge(&cluster, 503));
        };
        let Some(place) = breakers::admit(&cluster.config, Limited::Request, false) else {
            cluster.stats.upstream_rq_pending_overflow.inc();
            return Err(charge(&cluster, 503));
        };
        let active = ActiveRequest::new(&cluster, &host, place);
        let timeout = self.timeout;
        let exchanged = self.exchange(host.clone(), active);
        let outcome = match timeout {
            None => exchanged.await,
            Some(limit) => match tokio::time::timeout(limit, exchanged).await {
                Ok(outcome) => outcome,
                Err(_) => {
                    cluster.stats.upstream_rq_timeout.inc();
                    host.stats.rq_timeout.inc();
                    return Err(charge(&cluster, 504));
                }
            },
        };
        outcome.map_err(|Unanswered| {
            host.stats.rq_error.inc();
            charge(&cluster, 503)
        })
    }

    async fn exchange(self, host: Rc<Host>, active: ActiveRequest) -> Result<Called, Unanswered> {
        let Self { worker, cluster, message, body, most_received, .. } = self;
        let names = Some((&message.authority, &message.headers));
        let special = Special::of(names, None, &cluster.config.ir, &host, false);
        let target = Target { worker: &worker, cluster: &cluster, host: &host, special };
        let mut fresh = false;
        let (lease, began, answer) = loop {
            let mut lease =
                upstream::lease(&target, Version::HTTP_11, fresh).await.map_err(|_| Unanswered)?;
            let content =
                if body.is_empty() { RequestBody::Empty } else { RequestBody::Whole(Some(body.clone())) };
            let began = Instant::now();
            let (version, reused) = (lease.version(), lease.reused());
            match upstream::exchange(&mut lease, message.again().request(version, content)).await {
                Ok(answer) => break (lease, began, answer),
                // A kept connection may have been closing at this very moment.
                Err(broken) if !broken.sent && reused && !fresh => fresh = true,
                Err(_) => {
                    cluster.observe(&host, Outcome::LocalFailure, &worker);
                    return Err(Unanswered);
                }
            }
        };
        let took = began.elapsed();
        let (head, mut incoming) = answer.into_parts();
        cluster.observe(&host, Outcome::Answered(head.status), &worker);
        if head.status.is_server_error() { &host.stats.rq_error } else { &host.stats.rq_success }.inc();
        let mut stream = UpstreamStream::of_mirror(lease, active, began, head.status);
        let most = most_received.unwrap_or(MOST_RECEIVED);
        let (mut received, mut trailers) = (BytesMut::new(), None);
        while let Some(frame) = incoming.frame().await {
            let whole = match frame.map(http_body::Frame::into_data) {
                Ok(Ok(data)) => {
                    received.extend_from_slice(&data);
                    received.len() <= most
                }
                Ok(Err(frame)) => {
                    trailers = frame.into_trailers().ok();
                    true
                }
                Err(_) => false,
            };
            if !whole {
                stream.end(false);
                return Err(Unanswered);
            }
        }
        stream.end(true);
        Ok(Called { status: head.status, headers: head.headers, body: received.freeze(), trailers, took })
    }
}

fn charge(cluster: &LocalCluster, status: u16) -> Unanswered {
    cluster.stats.upstream_rq_completed.inc();
    cluster.stats.statuses.inc(status);
    Unanswered
}

/// Says how long the answer is waited for.
pub(crate) fn add_timeout(headers: &mut HeaderMap, timeout: Option<Duration>) {
    if let Some(timeout) = timeout {
        let millis = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        headers.insert(X_ENVOY_EXPECTED_RQ_TIMEOUT_MS, millis.into());
    }
}

/// Says that the call comes from inside.
pub(crate) fn add_internal(headers: &mut HeaderMap) {
    headers.insert("x-envoy-internal", http::HeaderValue::from_static("true"));
}

/// Says from whom the call comes.
pub(crate) fn add_own_address(headers: &mut HeaderMap, worker: &Worker) {
    let own = worker.identity.address.map(|address| http::HeaderValue::try_from(address.to_string()));
    if let Some(Ok(own)) = own {
        append_list(headers, X_FORWARDED_FOR, &own);
    }
}

/// Sets headers to formats' values.
pub(crate) fn add_formatted(
    headers: &mut HeaderMap,
    added: &[(http::HeaderName, TextFormat)],
    values: &dyn lateen_ir::FormatValues,
) {
    for (name, format) in added {
        let mut text = String::new();
        render::text(format, values, &mut text);
        if let Ok(value) = http::HeaderValue::try_from(text)
            && !value.is_empty()
        {
            headers.insert(name, value);
        }
    }
}

/// gRPC's message of one frame.
pub(crate) fn grpc_frame(message: &impl prost::Message) -> Bytes {
    let length = message.encoded_len();
    let mut out = BytesMut::with_capacity(length + 5);
    bytes::BufMut::put_u8(&mut out, 0);
    bytes::BufMut::put_u32(&mut out, u32::try_from(length).unwrap_or(u32::MAX));
    // The room is there.
    let _ = message.encode(&mut out);
    out.freeze()
}

impl Called {
    /// The message of a gRPC answer that went well.
    pub(crate) fn grpc_message<M: prost::Message + Default>(self) -> Result<M, Unanswered> {
        let status = self.trailers.as_ref().and_then(|trailers| trailers.get("grpc-status"));
        let status = status.or_else(|| self.headers.get("grpc-status"));
        if self.status != StatusCode::OK || status.is_none_or(|status| status != "0") {
            return Err(Unanswered);
        }
        let length = self.body.get(1..5).and_then(|length| <[u8; 4]>::try_from(length).ok());
        let length = length.map(u32::from_be_bytes).ok_or(Unanswered)? as usize;
        // Nothing was said of compression, so that there is none.
        if self.body[0] != 0 || self.body.len() != length + 5 {
            return Err(Unanswered);
        }
        M::decode(&self.body[5..]).map_err(|_| Unanswered)
    }
}

/// A call of gRPC.
pub(crate) fn grpc_message(
    authority: http::HeaderValue,
    path: &'static str,
    timeout: Option<Duration>,
) -> Message {
    let mut headers = HeaderMap::new();
    headers.insert(http::header::TE, http::HeaderValue::from_static("trailers"));
    headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/grpc"));
    if let Some(timeout) = timeout {
        headers.insert("grpc-timeout", grpc_timeout(timeout));
        add_timeout(&mut headers, Some(timeout));
    }
    Message {
        method: Method::POST,
        headers,
        authority,
        path: http::uri::PathAndQuery::from_static(path),
        secure: false,
    }
}

/// At most eight digits and a unit.
fn grpc_timeout(timeout: Duration) -> http::HeaderValue {
    let (mut number, mut units) = (timeout.as_millis(), [("m", 1000), ("S", 60), ("M", 60)].iter());
    while number > 99_999_999 {
        let Some((_, next)) = units.next() else { break };
        number /= next;
    }
    let unit = units.next().map_or("H", |(unit, _)| unit);
    http::HeaderValue::try_from(format!("{}{unit}", number.min(99_999_999)))
        .unwrap_or_else(|_| http::HeaderValue::from_static("99999999H"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_grpcs() {
        assert_eq!(grpc_timeout(Duration::from_millis(200)), "200m");
        assert_eq!(grpc_timeout(Duration::from_secs(600)), "600000m");
        assert_eq!(grpc_timeout(Duration::from_secs(100_000)), "100000S");
    }

    fn called(status: &'static str, body: &'static [u8]) -> Called {
        let headers = HeaderMap::from_iter([(
            http::HeaderName::from_static("grpc-status"),
            http::HeaderValue::from_static(status),
        )]);
        Called {
            status: StatusCode::OK,
            headers,
            body: Bytes::from_static(body),
            trailers: None,
            took: Duration::ZERO,
        }
    }

    #[test]
    fn only_whole_messages_count() {
        let message =
            |status, body| called(status, body).grpc_message::<prost_types::Duration>().map(|d| d.seconds);
        assert_eq!(message("0", b"\0\0\0\0\x02\x08\x07").ok(), Some(7));
        for (status, body) in [
            ("7", &b"\0\0\0\0\x02\x08\x07"[..]),
            ("0", b""),
            ("0", b"\x01\0\0\0\x02\x08\x07"),
            ("0", b"\0\0\0\0\x03\x08\x07"),
            ("0", b"\0\0\0\0\x02\x08\x07\0"),
            ("0", b"\0\0\0\0\x01\x08"),
        ] {
            assert!(message(status, body).is_err(), "{status} {body:?}");
        }
    }
}
