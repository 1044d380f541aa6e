//! A filter's own request to a cluster, whose answer is read whole.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode, Version};
use http_body_util::BodyExt;
use lateen_ir::{HostAddress, RetryPolicy, TextFormat};
use smallvec::SmallVec;

use crate::answer::{ActiveRequest, UpstreamStream};
use crate::body::RequestBody;
use crate::breakers::{self, Admission, Limited};
use crate::cluster::{LocalCluster, Need};
use crate::failure::Reset;
use crate::forward::X_ENVOY_EXPECTED_RQ_TIMEOUT_MS;
use crate::host::Host;
use crate::incoming::Incoming;
use crate::ingress::{X_FORWARDED_FOR, append_list};
use crate::message::Message;
use crate::outlier::Outcome;
use crate::special::Special;
use crate::upstream::{self, Lease, Target};
use crate::worker::Worker;
use crate::{render, retry};

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
    /// Which tries are repeated. `None`: none.
    pub(crate) retry_policy: Option<Arc<RetryPolicy>>,
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

/// How a try without an answer ended.
struct Failed {
    /// What the policy may repeat it for; `None`: nothing.
    broken: Option<(Ended, bool)>,
    /// What the asker is told instead of an answer.
    status: u16,
}

enum Ended {
    Reset(Reset),
    TookTooLong,
}

/// An answer that has begun.
struct Begun {
    lease: Lease,
    active: ActiveRequest,
    head: http::response::Parts,
    body: Incoming,
    sent: Instant,
}

impl Call {
    /// Asks, again where the policy says so.
    pub(crate) async fn send(mut self) -> Result<Called, Unanswered> {
        let per_try = self.retry_policy.as_ref().and_then(|policy| policy.per_try_timeout);
        add_timeout(&mut self.message.headers, shorter(self.timeout, per_try));
        let cluster = self.cluster.clone();
        let asked = RefCell::new(None);
        let tries = self.tries(&asked);
        let outcome = match self.timeout {
            None => tries.await,
            Some(limit) => match tokio::time::timeout(limit, tries).await {
                Ok(outcome) => outcome,
                Err(_) => {
                    cluster.stats.upstream_rq_timeout.inc();
                    asked.take().into_iter().for_each(|host: Rc<Host>| host.stats.rq_timeout.inc());
                    Err(504)
                }
            },
        };
        outcome.map_err(|status| charge(&cluster, status))
    }

    /// `asked` is the host of the last try. The error is the status that stands for the missing answer.
    async fn tries(&self, asked: &RefCell<Option<Rc<Host>>>) -> Result<Called, u16> {
        let cluster = &self.cluster;
        let (mut attempts, mut tried, mut _place) = (0, SmallVec::<[HostAddress; 1]>::new(), None);
        loop {
            attempts += 1;
            let Some(host) = self.pick(&tried) else {
                cluster.stats.upstream_cx_none_healthy.inc();
                return Err(503);
            };
            tried.push(host.address.clone());
            asked.replace(Some(host.clone()));
            let pause = match self.attempt(&host).await {
                Ok(begun) => {
                    let status = begun.head.status;
                    cluster.observe(&host, Outcome::Answered(status), &self.worker);
                    if status.is_server_error() { &host.stats.rq_error } else { &host.stats.rq_success }
                        .inc();
                    let wanted = self
                        .retry_policy
                        .as_deref()
                        .is_some_and(|policy| retry::after_answer(policy, status, &begun.head.headers));
                    match self.permit(attempts, wanted) {
                        Some((place, pause)) => {
                            _place = Some(place);
                            let mut stream =
                                UpstreamStream::of_mirror(begun.lease, begun.active, begun.sent, status);
                            stream.release(&begun.body);
                            pause
                        }
                        None => {
                            if attempts > 1 && !wanted {
                                cluster.stats.upstream_rq_retry_success.inc();
                            }
                            return self.receive(begun).await.map_err(|Unanswered| {
                                host.stats.rq_error.inc();
                                503
                            });
                        }
                    }
                }
                Err(Failed { broken: None, status }) => return Err(status),
                Err(Failed { broken: Some((ended, sent)), status }) => {
                    host.stats.rq_error.inc();
                    cluster.observe(&host, Outcome::LocalFailure, &self.worker);
                    let ended = match &ended {
                        Ended::Reset(reset) => retry::Broken::Reset(reset),
                        Ended::TookTooLong => retry::Broken::PerTryTimeout,
                    };
                    let wanted = self
                        .retry_policy
                        .as_deref()
                        .is_some_and(|policy| retry::after_break(policy.on, ended, sent));
                    let Some((place, pause)) = self.permit(attempts, wanted) else { return Err(status) };
                    _place = Some(place);
                    pause
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    fn pick(&self, tried: &[HostAddress]) -> Option<Rc<Host>> {
        let avoids =
            self.retry_policy.as_ref().filter(|policy| policy.avoid_previous_hosts && !tried.is_empty());
        let attempts = avoids.map_or(0, |policy| policy.host_selection_max_attempts);
        let need = Need { attempts, ..Need::default() };
        self.cluster.pick(need, &mut || self.worker.random(), &|host| tried.contains(&host.address))
    }

    /// The permission for one more try where the policy wants it, and the pause before.
    fn permit(&self, attempts: u32, wanted: bool) -> Option<(Admission, Duration)> {
        let policy = self.retry_policy.as_deref().filter(|_| wanted)?;
        let stats = &self.cluster.stats;
        if attempts > policy.num_retries {
            stats.upstream_rq_retry_limit_exceeded.inc();
            return None;
        }
        let Some(place) = breakers::admit(&self.cluster.config, Limited::Retry, false) else {
            stats.upstream_rq_retry_overflow.inc();
            return None;
        };
        stats.upstream_rq_retry.inc();
        stats.upstream_rq_retry_backoff_exponential.inc();
        Some((place, retry::pause(policy.backoff, attempts, self.worker.random())))
    }

    /// One try, until its answer begins.
    async fn attempt(&self, host: &Rc<Host>) -> Result<Begun, Failed> {
        let Some(place) = breakers::admit(&self.cluster.config, Limited::Request, false) else {
            self.cluster.stats.upstream_rq_pending_overflow.inc();
            return Err(Failed { broken: None, status: 503 });
        };
        let active = ActiveRequest::new(&self.cluster, host, place);
        let per_try = self.retry_policy.as_ref().and_then(|policy| policy.per_try_timeout);
        let Some(limit) = per_try else { return self.exchange(host, active).await };
        tokio::time::timeout(limit, self.exchange(host, active)).await.unwrap_or_else(|_| {
            host.stats.rq_timeout.inc();
            self.cluster.stats.upstream_rq_per_try_timeout.inc();
            Err(Failed { broken: Some((Ended::TookTooLong, true)), status: 504 })
        })
    }

    async fn exchange(&self, host: &Rc<Host>, active: ActiveRequest) -> Result<Begun, Failed> {
        let Self { worker, cluster, message, body, .. } = self;
        let failed = |reset, sent| Failed { broken: Some((Ended::Reset(reset), sent)), status: 503 };
        let names = Some((&message.authority, &message.headers));
        let special = Special::of(names, None, &cluster.config.ir, host, false);
        let target = Target { worker, cluster, host, special };
        let mut fresh = false;
        loop {
            let mut lease = upstream::lease(&target, Version::HTTP_11, fresh)
                .await
                .map_err(|reset| failed(reset, false))?;
            let content =
                if body.is_empty() { RequestBody::Empty } else { RequestBody::Whole(Some(body.clone())) };
            let sent = Instant::now();
            let (version, reused) = (lease.version(), lease.reused());
            let request = message.again().request(version, content);
            match upstream::exchange(&mut lease, request, None, None).await {
                Ok(answer) => {
                    upstream::heed_head(&lease, &answer)
                        .map_err(|broken| failed(broken.reset, broken.sent))?;
                    let (head, body) = answer.into_parts();
                    return Ok(Begun { lease, active, head, body, sent });
                }
                // A kept connection may have been closing at this very moment.
                Err(broken) if !broken.sent && reused && !fresh => fresh = true,
                Err(broken) => return Err(failed(broken.reset, broken.sent)),
            }
        }
    }

    /// The rest of an answer.
    async fn receive(&self, begun: Begun) -> Result<Called, Unanswered> {
        let Begun { lease, active, head, mut body, sent } = begun;
        let took = sent.elapsed();
        let mut stream = UpstreamStream::of_mirror(lease, active, sent, head.status);
        stream.charge();
        let most = self.most_received.unwrap_or(MOST_RECEIVED);
        let (mut received, mut trailers) = (BytesMut::new(), None);
        while let Some(frame) = body.frame().await {
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

fn shorter(one: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    one.into_iter().chain(other).min()
}

fn charge(cluster: &LocalCluster, status: u16) -> Unanswered {
    cluster.stats.upstream_rq_completed.inc();
    cluster.stats.statuses.inc(status);
    Unanswered
}

/// Says how long the answer is waited for.
fn add_timeout(headers: &mut HeaderMap, timeout: Option<Duration>) {
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
