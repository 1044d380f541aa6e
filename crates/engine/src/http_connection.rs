//! Step 4: a downstream HTTP connection, HTTP/1 or HTTP/2.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use lateen_ir::{CodecType, HttpConnectionManager, Underscores};

use crate::context::{ConnectionInfo, Cut, HttpConnection, Resets};
use crate::failure::Flags;
use crate::filters::LocalFilter;
use crate::floods::{Floods, FrameCounters};
use crate::format_values::{RefusedFacts, TcpFacts};
use crate::guard::{Guard, Offence, Verdict};
use crate::http_request;
use crate::http2::{Beside, Server};
use crate::inspect::speaks_http2;
use crate::interim::Interim;
use crate::lifetime::Lifetime;
use crate::signal::Signal;
use crate::smuggling::Smuggling;
use crate::snapshot::HttpConfig;
use crate::stats::blocks::HttpStats;
use crate::stream::Stream;
use crate::worker::Worker;
use crate::{log_filter, render};

/// Lines of a head that may be dropped. Envoy sets no bound to them but that of the whole head.
const MOST_DROPPED: usize = 100;

/// Serves one connection until it ends.
pub(crate) async fn serve(
    mut stream: Stream,
    info: ConnectionInfo,
    config: Arc<HttpConfig>,
    (stats, filters): (Rc<HttpStats>, Rc<[LocalFilter]>),
    drain: Signal,
    worker: Rc<Worker>,
    buffer_limit: u32,
) {
    let hcm = config.hcm.clone();
    let http2 = match (hcm.codec_type, agreed(&info)) {
        (CodecType::Http1, _) => false,
        (CodecType::Http2, _) => true,
        (CodecType::Auto, Some(protocol)) => protocol == b"h2",
        // Nothing was said yet: an idle time-out applies as to any idle connection.
        (CodecType::Auto, None) => match within(hcm.common.idle_timeout, speaks_http2(&mut stream)).await {
            Some(Ok(answer)) => answer,
            _ => return,
        },
    };
    let verdict = Verdict::default();
    stream.guard_with(guard(http2, &hcm, &verdict, &worker));
    let interim = (!http2).then(|| Interim::of_http1(hcm.http1.proper_case_headers));
    match &interim {
        Some(interim) => stream.insert(interim.clone()),
        None => stream.close_gently(),
    }
    let heard = stream.heard();
    stream.count_into(&stats.downstream_cx_rx_bytes_total, &stats.downstream_cx_tx_bytes_total);
    let counted = Counted::new(stats.clone(), http2, info.tls.is_some());
    let connection = Rc::new(HttpConnection {
        _counted: counted,
        worker,
        info,
        config,
        stats,
        filters,
        buffer_limit,
        drain,
        active: Cell::new(0),
        requests: Cell::new(0),
        quiet_since: Cell::new(Instant::now()),
        closing: Cell::new(false),
        may_switch: Cell::new(false),
        heard,
        take_by: Cell::new(None),
        stalled: Cell::new(false),
        left_behind: Cell::new(false),
        reset: Cell::new(None),
        turn: RefCell::default(),
        verdict,
        resets: Resets::default(),
        cut: Cut::default(),
        peer_text: PeerText::default(),
        forwarded_text: PeerText::default(),
        interim,
        expected_text: MillisText::default(),
    });
    if http2 {
        let serving = Server::new(stream, &hcm, head_limit(&hcm) as u32, connection.clone());
        if let Err(error) = Lifetime::new(serving, connection.clone(), http2).await {
            match connection.verdict.get() {
                Some(offence) => flooded(&connection, offence),
                None => tracing::trace!(%error, "downstream connection ended"),
            }
        }
        return;
    }
    let served = connection.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (head, body) = request.into_parts();
        http_request::serve(served.clone(), head, body.into(), Beside::default())
    });
    let serving = http1_builder(&hcm).serve_connection(TokioIo::new(stream), service).with_upgrades();
    match Lifetime::new(serving, connection.clone(), http2).await {
        Ok(()) => {}
        Err(error) if error.is_parse() => refused(&connection, error.is_parse_too_large()),
        Err(error) => tracing::trace!(%error, "downstream connection ended"),
    }
}

/// What looks at the bytes of a client.
fn guard(http2: bool, hcm: &HttpConnectionManager, verdict: &Verdict, worker: &Worker) -> Guard {
    if !http2 {
        worker.stats.http1_codec();
        return Guard::Http1(Box::new(Smuggling::new(verdict.clone())));
    }
    let stats = worker.stats.http2_codec();
    let counters = FrameCounters {
        rx_reset: stats.rx_reset.clone(),
        tx_reset: stats.tx_reset.clone(),
        goaway_sent: stats.goaway_sent.clone(),
    };
    Guard::Http2(Box::new(Floods::new(hcm.http2.floods, counters, verdict.clone())))
}

/// Counts a connection that was closed over a flood of frames. Its requests log themselves.
fn flooded(connection: &HttpConnection, offence: Offence) {
    connection.stats.downstream_cx_protocol_error.inc();
    let stats = connection.worker.stats.http2_codec();
    match offence {
        Offence::EmptyFrames => stats.inbound_empty_frames_flood.inc(),
        Offence::PriorityFrames => stats.inbound_priority_frames_flood.inc(),
        Offence::WindowUpdates => stats.inbound_window_update_frames_flood.inc(),
        Offence::LengthAndCoding | Offence::Lengths | Offence::Fragment => {}
    }
}

/// The protocol that TLS agreed on.
fn agreed(info: &ConnectionInfo) -> Option<&[u8]> {
    info.tls.as_ref()?.alpn.as_deref()
}

/// Counts a connection whose handshake failed.
pub(crate) fn not_shaken(stats: &Rc<HttpStats>) {
    stats.downstream_cx_total.inc();
    stats.downstream_cx_ssl_total.inc();
    stats.downstream_cx_destroy.inc();
}

/// Counts and logs bytes that are no request. hyper has answered them by itself (400, 414, 431).
fn refused(connection: &HttpConnection, too_large: bool) {
    let stats = &connection.stats;
    stats.downstream_cx_protocol_error.inc();
    if too_large {
        stats.downstream_rq_too_large.inc();
    }
    stats.downstream_rq_total.inc();
    stats.downstream_rq_completed.inc();
    stats.downstream_rq_4xx.inc();
    let worker = &connection.worker;
    let flags = Flags::DOWNSTREAM_PROTOCOL_ERROR;
    let details = match connection.verdict.get() {
        Some(offence) => offence.details(),
        None if too_large => "http1.headers_too_large",
        None => "http1.codec_error",
    };
    let facts = RefusedFacts {
        connection: TcpFacts::unserved(&connection.info, &worker.identity.hostname, flags, details),
        status: if too_large { 431 } else { 400 },
    };
    for log in &connection.config.hcm.access_log {
        let passes =
            |filter| log_filter::passes_without_request(filter, flags, facts.status, 0, worker.random());
        if log.filter.as_ref().is_none_or(passes) {
            worker.log_line(&log.sink, |line| render::line(&log.format, &facts, line));
        }
    }
}

async fn within<F: Future>(limit: Option<Duration>, future: F) -> Option<F::Output> {
    match limit {
        None => Some(future.await),
        Some(limit) => tokio::time::timeout(limit, future).await.ok(),
    }
}

fn head_limit(hcm: &HttpConnectionManager) -> usize {
    hcm.max_request_headers_kb as usize * 1024
}

/// How many lines a head of HTTP/1 may have. Those that will be dropped for their names don't count as headers (see
/// [`ingress`](crate::ingress)), but hyper must take them in.
fn most_lines(hcm: &HttpConnectionManager) -> usize {
    let dropped = if hcm.common.underscores == Underscores::Drop { MOST_DROPPED } else { 0 };
    hcm.common.max_headers_count as usize + dropped
}

fn http1_builder(hcm: &HttpConnectionManager) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        // hyper's clock also runs while nothing is asked; see `Lifetime::head_is_late`.
        .header_read_timeout(None)
        .title_case_headers(hcm.http1.proper_case_headers)
        .max_header_size(head_limit(hcm))
        .max_buf_size(head_limit(hcm).max(16 * 1024));
    let most = most_lines(hcm);
    // What hyper takes without being told; told, it allocates for every head.
    if most != 100 {
        builder.max_headers(most);
    }
    builder
}

/// Counts an HTTP connection until dropped.
pub(crate) struct Counted {
    stats: Rc<HttpStats>,
    http2: bool,
    tls: bool,
    since: Instant,
}

impl Counted {
    fn new(stats: Rc<HttpStats>, http2: bool, tls: bool) -> Self {
        stats.downstream_cx_total.inc();
        stats.downstream_cx_active.inc();
        let (total, active) = if http2 {
            (&stats.downstream_cx_http2_total, &stats.downstream_cx_http2_active)
        } else {
            (&stats.downstream_cx_http1_total, &stats.downstream_cx_http1_active)
        };
        total.inc();
        active.inc();
        if tls {
            stats.downstream_cx_ssl_total.inc();
            stats.downstream_cx_ssl_active.inc();
        }
        Self { stats, http2, tls, since: Instant::now() }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let stats = &self.stats;
        stats.downstream_cx_active.dec();
        if self.tls {
            stats.downstream_cx_ssl_active.dec();
        }
        stats.downstream_cx_destroy.inc();
        if self.http2 { &stats.downstream_cx_http2_active } else { &stats.downstream_cx_http1_active }.dec();
        stats.downstream_cx_length_ms.record(self.since.elapsed().as_millis() as u64);
    }
}

/// An address as a header value, kept because most connections carry many requests.
#[derive(Debug, Default)]
pub(crate) struct PeerText(RefCell<Option<http::HeaderValue>>);

impl PeerText {
    pub(crate) fn get(&self, peer: std::net::IpAddr) -> Option<http::HeaderValue> {
        let mut text = self.0.borrow_mut();
        if text.is_none() {
            *text = http::HeaderValue::try_from(peer.to_string()).ok();
        }
        text.clone()
    }
}

/// A time in milliseconds as a header value, kept because the requests of a connection mostly have the same.
#[derive(Debug, Default)]
pub(crate) struct MillisText(RefCell<Option<(Duration, http::HeaderValue)>>);

impl MillisText {
    pub(crate) fn get(&self, time: Duration) -> http::HeaderValue {
        let mut kept = self.0.borrow_mut();
        match &*kept {
            Some((known, text)) if *known == time => text.clone(),
            _ => kept.insert((time, http::HeaderValue::from(time.as_millis() as u64))).1.clone(),
        }
    }
}
