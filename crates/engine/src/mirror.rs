//! Copies of requests to other clusters. Nobody waits for their answers, and nothing that becomes of them touches the request itself.
//! <https://www.envoyproxy.io/docs/envoy/v1.40.0/api-v3/config/route/v3/route_components.proto#config-route-v3-routeaction-requestmirrorpolicy>

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Version};
use http_body::Frame;
use http_body_util::BodyExt;
use lateen_ir::{Forward, MirrorPolicy, MirrorTarget};

use crate::answer::{ActiveRequest, UpstreamStream};
use crate::body::{BodyError, RequestBody, RequestSource};
use crate::breakers::{self, Limited};
use crate::cluster::{LocalCluster, Need};
use crate::context::RequestContext;
use crate::failure::Reset;
use crate::host::Host;
use crate::http_request::X_ENVOY_ATTEMPT_COUNT;
use crate::ingress::{X_FORWARDED_FOR, append_list};
use crate::message::Message;
use crate::outlier::Outcome;
use crate::special::Special;
use crate::upstream::{self, Target};
use crate::worker::Worker;

const X_ENVOY_INTERNAL: HeaderName = HeaderName::from_static("x-envoy-internal");

/// Bytes of a body that a copy may lag behind. One that lags further is given up: a slow mirror must not hold the request up.
const MOST_BEHIND: usize = 1024 * 1024;

/// A copy's view of the client's body as it comes.
pub(crate) struct Tap {
    waiting: RefCell<VecDeque<Bytes>>,
    bytes: Cell<usize>,
    trailers: RefCell<Option<HeaderMap>>,
    state: Cell<TapState>,
    waker: RefCell<Option<Waker>>,
    end_waker: RefCell<Option<Waker>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum TapState {
    Open,
    Ended,
    /// The body broke off, or the copy lags too far behind.
    Broken,
}

impl Tap {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self {
            waiting: RefCell::default(),
            bytes: Cell::new(0),
            trailers: RefCell::default(),
            state: Cell::new(TapState::Open),
            waker: RefCell::default(),
            end_waker: RefCell::default(),
        })
    }

    pub(crate) fn push(&self, data: &Bytes) {
        if self.state.get() != TapState::Open {
            return;
        }
        if self.bytes.get() + data.len() > MOST_BEHIND {
            self.end(false);
            return;
        }
        self.bytes.set(self.bytes.get() + data.len());
        self.waiting.borrow_mut().push_back(data.clone());
        self.wake();
    }

    pub(crate) fn trailers(&self, trailers: &HeaderMap) {
        *self.trailers.borrow_mut() = Some(trailers.clone());
    }

    /// The body is over: completely, or not.
    pub(crate) fn end(&self, complete: bool) {
        if self.state.get() == TapState::Open {
            self.state.set(if complete { TapState::Ended } else { TapState::Broken });
            if !complete {
                self.waiting.borrow_mut().clear();
            }
            self.wake();
            self.end_waker.borrow_mut().take().into_iter().for_each(Waker::wake);
        }
    }

    fn wake(&self) {
        self.waker.borrow_mut().take().into_iter().for_each(Waker::wake);
    }

    /// Waits until the client has sent everything.
    async fn ended(&self) {
        std::future::poll_fn(|cx| {
            if self.state.get() == TapState::Open {
                *self.end_waker.borrow_mut() = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await
    }

    pub(crate) fn poll_frame(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(data) = self.waiting.borrow_mut().pop_front() {
            self.bytes.set(self.bytes.get() - data.len());
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        match self.state.get() {
            TapState::Open => {
                *self.waker.borrow_mut() = Some(cx.waker().clone());
                Poll::Pending
            }
            TapState::Ended => Poll::Ready(self.trailers.borrow_mut().take().map(|t| Ok(Frame::trailers(t)))),
            TapState::Broken => Poll::Ready(Some(Err("the body of a mirrored request broke off".into()))),
        }
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.state.get() == TapState::Ended
            && self.waiting.borrow().is_empty()
            && self.trailers.borrow().is_none()
    }
}

/// Sends the copies that the route asks for.
pub(crate) fn start(
    context: &RequestContext,
    action: &Forward,
    source: &Rc<RequestSource>,
    timeout: Option<Duration>,
) {
    if context.head.method == Method::CONNECT {
        return;
    }
    let worker = &context.connection.worker;
    for policy in action.mirrors.iter() {
        if policy.fraction.is_some_and(|fraction| !fraction.includes(worker.random())) {
            continue;
        }
        let Some(cluster) = target(context, policy) else { continue };
        let tap = (!source.ended()).then(|| source.tap());
        let mirror = Mirror {
            worker: worker.clone(),
            cluster,
            message: message(context, policy),
            downstream: context.version,
            high_priority: action.high_priority,
            timeout,
            tap,
        };
        tokio::task::spawn_local(mirror.run());
    }
}

fn target(context: &RequestContext, policy: &MirrorPolicy) -> Option<Rc<LocalCluster>> {
    let worker = &context.connection.worker;
    match &policy.target {
        MirrorTarget::Cluster(cluster) => {
            let slot = context.routes.as_ref()?.slots.get(cluster.index as usize)?;
            context.view.cluster(*slot, worker)
        }
        MirrorTarget::Header(name) => {
            let name = context.head.headers.get(name)?.to_str().ok().filter(|name| !name.is_empty())?;
            context.view.cluster_named(name, worker)
        }
    }
}

/// The request as the copy has it: from a proxy to a service, for another host.
fn message(context: &RequestContext, policy: &MirrorPolicy) -> Message {
    let mut headers = context.head.headers.clone();
    headers.insert(X_ENVOY_INTERNAL, HeaderValue::from_static("true"));
    if context.virtual_host.as_ref().is_some_and(|host| host.include_request_attempt_count) {
        headers.insert(X_ENVOY_ATTEMPT_COUNT, HeaderValue::from_static("1"));
    }
    let own = context.connection.worker.identity.address;
    if let Some(Ok(own)) = own.map(|address| HeaderValue::try_from(address.to_string())) {
        append_list(&mut headers, X_FORWARDED_FOR, &own);
    }
    let authority = match &policy.host {
        Some(host) => host.clone(),
        None if policy.suffix => with_suffix(&context.authority),
        None => context.authority.clone(),
    };
    Message {
        method: context.head.method.clone(),
        headers,
        authority,
        path: context.path.clone(),
        secure: context.secure,
    }
}

/// `a.example:80` becomes `a.example-shadow:80`.
fn with_suffix(authority: &HeaderValue) -> HeaderValue {
    let text = authority.to_str().unwrap_or_default();
    let changed = match text.split_once(':') {
        Some((host, port)) => format!("{host}-shadow:{port}"),
        None => format!("{text}-shadow"),
    };
    HeaderValue::try_from(changed).unwrap_or_else(|_| authority.clone())
}

/// One copy on its way.
struct Mirror {
    worker: Rc<Worker>,
    cluster: Rc<LocalCluster>,
    message: Message,
    downstream: Version,
    high_priority: bool,
    /// The route's.
    timeout: Option<Duration>,
    /// `None`: the request has no body, or what it has is all there is.
    tap: Option<Rc<Tap>>,
}

impl Mirror {
    async fn run(self) {
        let cluster = self.cluster.clone();
        let need = Need { name: self.message.authority.to_str().ok(), ..Need::default() };
        let mut found = cluster.pick(need, &mut || self.worker.random(), &|_| false);
        if found.is_none() {
            found = Box::pin(cluster.look_up_host(self.message.authority.to_str().ok(), None)).await.ok();
        }
        let Some(host) = found else {
            cluster.stats.upstream_cx_none_healthy.inc();
            return charge(&cluster, 503);
        };
        let Some(place) = breakers::admit(&cluster.config, Limited::Request, self.high_priority) else {
            cluster.stats.upstream_rq_pending_overflow.inc();
            return charge(&cluster, 503);
        };
        let active = ActiveRequest::new(&cluster, &host, place);
        let (timeout, tap) = (self.timeout, self.tap.clone());
        let outcome = tokio::select! {
            biased;
            outcome = self.send(host.clone(), active) => outcome,
            () = late(tap, timeout) => {
                cluster.stats.upstream_rq_timeout.inc();
                host.stats.rq_timeout.inc();
                return charge(&cluster, 504);
            }
        };
        if let Err(reset) = outcome {
            host.stats.rq_error.inc();
            charge(&cluster, if reset == Reset::Protocol { 502 } else { 503 });
        }
    }

    /// Sends it and takes the answer for nothing.
    async fn send(self, host: Rc<Host>, active: ActiveRequest) -> Result<(), Reset> {
        let Self { worker, cluster, message, downstream, high_priority, tap, .. } = self;
        // Nobody's connection carries a copy.
        let target = Target {
            worker: &worker,
            cluster: &cluster,
            host: &host,
            special: Special::of(
                Some((&message.authority, &message.headers)),
                None,
                &cluster.config.ir,
                &host,
                high_priority,
            ),
        };
        let mut lease = upstream::lease(&target, downstream, false).await?;
        let body = tap.map_or(RequestBody::Empty, RequestBody::Tapped);
        let request = message.request(lease.version(), body);
        let began = Instant::now();
        let answer = upstream::exchange(&mut lease, request, None, None).await;
        let answer = answer.and_then(|answer| upstream::heed_head(&lease, &answer).map(|_present| answer));
        let outcome = answer.as_ref().map_or(Outcome::LocalFailure, |a| Outcome::Answered(a.status()));
        cluster.observe(&host, outcome, &worker);
        let (head, mut body) = answer.map_err(|broken| broken.reset)?.into_parts();
        if head.status.is_server_error() { &host.stats.rq_error } else { &host.stats.rq_success }.inc();
        let mut stream = UpstreamStream::of_mirror(lease, active, began, head.status);
        stream.charge();
        while let Some(frame) = body.frame().await {
            if frame.is_err() {
                stream.end(false);
                return Ok(());
            }
        }
        stream.end(true);
        Ok(())
    }
}

/// Ends when the answer has taken too long; the clock starts when the client has sent everything.
async fn late(tap: Option<Rc<Tap>>, timeout: Option<Duration>) {
    let Some(timeout) = timeout else { return std::future::pending().await };
    if let Some(tap) = tap {
        tap.ended().await;
    }
    tokio::time::sleep(timeout).await;
}

fn charge(cluster: &LocalCluster, status: u16) {
    cluster.stats.upstream_rq_completed.inc();
    cluster.stats.statuses.inc(status);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_copies_have_a_suffix() {
        let shown = |host| with_suffix(&HeaderValue::from_static(host));
        assert_eq!(shown("a.example"), "a.example-shadow");
        assert_eq!(shown("a.example:81"), "a.example-shadow:81");
    }

    #[test]
    fn a_copy_that_lags_too_far_behind_is_given_up() {
        let tap = Tap::new();
        let half = Bytes::from(vec![0; MOST_BEHIND / 2]);
        tap.push(&half);
        tap.push(&half);
        assert!(tap.state.get() == TapState::Open);
        tap.push(&Bytes::from_static(b"x"));
        assert!(tap.state.get() == TapState::Broken && tap.waiting.borrow().is_empty());
    }
}
