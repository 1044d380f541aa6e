//! What travels with a connection and with a request.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Instant;

use http::{HeaderMap, Method, StatusCode, Version, request};
use lateen_ir::{DynamicMetadata, HostAddress, Route, VirtualHost};

use crate::body::RequestSource;
use crate::cluster::LocalCluster;
use crate::failure::Flags;
use crate::filters::{FilterState, LocalFilter};
use crate::finish;
use crate::gate::Judged;
use crate::guard::Verdict;
use crate::host::Host;
use crate::http_connection::{Counted, MillisText, PeerText};
use crate::ingress;
use crate::interim::Interim;
use crate::internal_redirect::Followed;
use crate::pool::ConnectionFacts;
use crate::presence::Present;
use crate::progress::Progress;
use crate::proxy_protocol::Ends;
use crate::signal::Signal;
use crate::snapshot::{HttpConfig, RouteConfig};
use crate::stats::blocks::{HttpStats, RouteStats};
use crate::stream::Heard;
use crate::tls::TlsFacts;
use crate::worker::{View, Worker};

/// Facts of a downstream connection.
#[derive(Debug)]
pub(crate) struct ConnectionInfo {
    pub(crate) id: u64,
    /// The client: the socket's peer, or who the PROXY protocol says it is.
    pub(crate) peer: HostAddress,
    /// Peer of the socket. Of a Unix socket the listener's path, as with Envoy: clients have no name.
    pub(crate) direct_peer: HostAddress,
    /// This end of the socket.
    pub(crate) direct_local: HostAddress,
    /// Where the client wanted to go: the original destination when restored, else `direct_local`.
    pub(crate) local: HostAddress,
    /// True when `local` was restored.
    pub(crate) restored: bool,
    pub(crate) server_name: Option<Box<str>>,
    /// `None`: plaintext.
    pub(crate) tls: Option<Rc<TlsFacts>>,
    /// Why there is no TLS.
    pub(crate) transport_failure: Option<Box<str>>,
    /// What network filters do with its first byte.
    pub(crate) judged: Judged,
    pub(crate) chain_name: Arc<str>,
    pub(crate) started: Instant,
}

impl ConnectionInfo {
    /// Where the client wanted to go, if that was restored.
    pub(crate) fn original_destination(&self) -> Option<SocketAddr> {
        self.local.socket().filter(|_| self.restored)
    }

    /// Both ends, as the PROXY protocol tells them to endpoints. Of Unix sockets it tells none.
    pub(crate) fn ends(&self) -> Option<Ends> {
        Some(Ends { source: self.peer.socket()?, destination: self.local.socket()? })
    }
}

/// A downstream HTTP connection: shared by its requests.
pub(crate) struct HttpConnection {
    /// Counts it for as long as anything goes on over it, upgraded or not.
    pub(crate) _counted: Counted,
    pub(crate) worker: Rc<Worker>,
    pub(crate) info: ConnectionInfo,
    pub(crate) config: Arc<HttpConfig>,
    pub(crate) stats: Rc<HttpStats>,
    /// This worker's side of `config.filters`.
    pub(crate) filters: Rc<[LocalFilter]>,
    pub(crate) buffer_limit: u32,
    /// Fired when the connection is to finish.
    pub(crate) drain: Signal,
    /// Requests in progress.
    pub(crate) active: Cell<u32>,
    /// Requests so far.
    pub(crate) requests: Cell<u32>,
    /// Time of the last request's end (or the connection's begin), for the idle time-out.
    pub(crate) quiet_since: Cell<Instant>,
    /// Set when the next response must end the connection.
    pub(crate) closing: Cell<bool>,
    /// HTTP/1: the request under way asks for another protocol. An answer that agrees doesn't say that the connection ends.
    pub(crate) may_switch: Cell<bool>,
    /// Something came from the client since the last request ended.
    pub(crate) heard: Heard,
    /// HTTP/1: when more of the answer must have been taken at the latest, while the client is slower than upstream.
    pub(crate) take_by: Cell<Option<Instant>>,
    /// The client took nothing for too long. On HTTP/2 true only while a stream ends for that.
    pub(crate) stalled: Cell<bool>,
    /// HTTP/2: some stream ended because its client gave no room. The codec keeps what it had begun to send, a frame at most, and
    /// can't reset the stream before that is out; see [`HttpConnection::end_if_left`].
    pub(crate) left_behind: Cell<bool>,
    /// HTTP/2: details of the client's reset that ends a stream, while it ends.
    pub(crate) reset: Cell<Option<&'static str>>,
    /// HTTP/2: the stream whose turn it is.
    pub(crate) turn: RefCell<Option<Rc<Progress>>>,
    /// What the client was caught at.
    pub(crate) verdict: Verdict,
    /// Streams that ended, and those among them that the client reset before anything came of them.
    pub(crate) resets: Resets,
    /// The connection is to be cut at once.
    pub(crate) cut: Cut,
    /// The peer's address as a header value.
    pub(crate) peer_text: PeerText,
    /// What this hop adds to `x-forwarded-for`.
    pub(crate) forwarded_text: PeerText,
    /// HTTP/1: what the client is told before an answer.
    pub(crate) interim: Option<Interim>,
    /// The last `x-envoy-expected-rq-timeout-ms`.
    pub(crate) expected_text: MillisText,
}

/// Asks the connection's task to end it at once.
#[derive(Default)]
pub(crate) struct Cut {
    asked: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Cut {
    pub(crate) fn ask(&self) {
        self.asked.set(true);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Whether it was asked for. `cx`: who is to hear of it.
    pub(crate) fn is_asked(&self, cx: &Context<'_>) -> bool {
        if !self.asked.get() && self.waker.borrow().as_ref().is_none_or(|waker| !waker.will_wake(cx.waker()))
        {
            *self.waker.borrow_mut() = Some(cx.waker().clone());
        }
        self.asked.get()
    }
}

/// Envoy's measure against clients that open streams only to reset them (CVE-2023-44487).
#[derive(Debug, Default)]
pub(crate) struct Resets {
    ended: Cell<u64>,
    premature: Cell<u64>,
}

/// Streams after which a connection is judged: Envoy's `overload.premature_reset_total_stream_count`.
const JUDGED_AFTER: u64 = 500;

impl Resets {
    /// Counts a stream that ended. True when at least half of the connection's streams were reset prematurely, or surely will be.
    pub(crate) fn too_many(&self, premature: bool) -> bool {
        self.ended.set(self.ended.get() + 1);
        self.premature.set(self.premature.get() + u64::from(premature));
        self.premature.get() * 2 >= self.ended.get().max(JUDGED_AFTER)
    }
}

impl HttpConnection {
    /// Nothing goes on but streams whose client takes nothing: the connection ends, and with it what they hold.
    pub(crate) fn end_if_left(&self) {
        if self.left_behind.get() && self.active.get() == 0 {
            self.cut.ask();
        }
    }

    /// The client must have taken more of the answer by then; `None`: nothing waits for it.
    pub(crate) fn expect_progress(&self, by: Option<Instant>) {
        match &*self.turn.borrow() {
            Some(stream) => stream.expect(by),
            None => self.take_by.set(by),
        }
    }
}

/// One request, from its head to the last byte of the answer. Finishes (counts, logs) when dropped.
pub(crate) struct RequestContext {
    pub(crate) connection: Rc<HttpConnection>,
    /// Configuration the request began with.
    pub(crate) view: Rc<View>,
    pub(crate) started: Instant,
    pub(crate) version: Version,
    /// The request's head after normalisation; authority in `authority`, path in `path`.
    pub(crate) head: request::Parts,
    /// What the head had as it came; a header may have gone since.
    pub(crate) present: Present,
    /// What upstream's last answer had.
    pub(crate) answered: Present,
    pub(crate) authority: http::HeaderValue,
    /// Path with query, as routed (before rewrites).
    pub(crate) path: http::uri::PathAndQuery,
    /// Of a CONNECT whose authority has lost its port for the route.
    pub(crate) connect_port: Option<u16>,
    /// True: `https`.
    pub(crate) secure: bool,
    /// A request that is refused before it is taken in has no scheme but the one its own URL names.
    pub(crate) has_scheme: bool,
    /// The client, worked out from `x-forwarded-for`.
    pub(crate) client: HostAddress,
    pub(crate) routes: Option<Arc<RouteConfig>>,
    pub(crate) virtual_host: Option<Arc<VirtualHost>>,
    pub(crate) route: Option<Arc<Route>>,
    /// What the route counts for itself; set when the request is forwarded.
    pub(crate) route_stats: Option<Rc<RouteStats>>,
    /// Position of the route's weighted cluster that was chosen.
    pub(crate) weighted: Option<usize>,
    /// The client wants 204 for an answer that takes too long.
    pub(crate) no_content_on_timeout: bool,
    /// Redirects that were followed here.
    pub(crate) followed: Option<Box<Followed>>,
    /// What HTTP filters noted of it, for those behind them and for logs.
    pub(crate) metadata: Option<Box<DynamicMetadata>>,
    /// What HTTP filters keep of it.
    pub(crate) filters: Vec<FilterState>,
    pub(crate) cluster: Option<Rc<LocalCluster>>,
    pub(crate) host: Option<Rc<Host>>,
    pub(crate) upstream: Option<Rc<ConnectionFacts>>,
    pub(crate) upstream_version: Option<Version>,
    pub(crate) upstream_failure: Option<Box<str>>,
    pub(crate) body: Option<Rc<RequestSource>>,
    /// HTTP/2: where the client is told something before its answer.
    pub(crate) interim: Option<Interim>,
    /// Attempts so far.
    pub(crate) attempts: u32,
    /// What came has not the form of a request: nothing is told of its head.
    pub(crate) unread: bool,
    /// An endpoint has said something before its answer, and it is counted.
    pub(crate) begun_upstream: bool,
    pub(crate) flags: Flags,
    pub(crate) details: Cow<'static, str>,
    /// Status sent; `None` while there is no answer.
    pub(crate) status: Option<StatusCode>,
    /// That of the proxy's own answer while it is made: the route's headers may have it.
    pub(crate) answering: Option<StatusCode>,
    /// Response headers, kept when something may print them.
    pub(crate) response_headers: Option<HeaderMap>,
    pub(crate) response_trailers: Option<Box<HeaderMap>>,
    /// Body of a reply made here, kept when something may print it.
    pub(crate) local_reply: Option<Cow<'static, str>>,
    pub(crate) bytes_sent: u64,
    pub(crate) first_upstream_byte: Option<Instant>,
    /// Cookies for the client, by which it finds the same endpoint again.
    pub(crate) new_cookies: Vec<http::HeaderValue>,
    /// The answer went out completely (or the stream was closed on purpose).
    pub(crate) complete: bool,
}

impl RequestContext {
    /// Notes the end of the request. The rest happens in `drop`, so that a cancelled request is counted and logged too.
    pub(crate) fn completed(&mut self) {
        self.complete = true;
    }

    /// Whether all of the request has come. One that asks for another protocol, or for a tunnel, goes on for as long as that lasts.
    pub(crate) fn request_complete(&self) -> bool {
        let goes_on = self.head.method == Method::CONNECT || ingress::is_upgrade(&self.head);
        !goes_on && self.body.as_ref().is_none_or(|body| body.ended())
    }

    /// Counts that its answer breaks off.
    pub(crate) fn broken_off(&self) {
        let stats = &self.connection.stats;
        stats.downstream_rq_tx_reset.inc();
        // What is unfinished is counted at the end.
        if self.body.as_ref().is_none_or(|body| body.ended()) {
            stats.downstream_rq_rx_reset.inc();
        }
    }

    /// Bytes of the request's body received so far.
    pub(crate) fn bytes_received(&self) -> u64 {
        self.body.as_ref().map_or(0, |body| body.received())
    }
}

impl Drop for RequestContext {
    fn drop(&mut self) {
        finish::finish(self);
    }
}
