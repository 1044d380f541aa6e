//! Steps 8 and 9: a connection to the chosen host, and one exchange on it.

use std::rc::Rc;

use http::{HeaderMap, Request, Response, StatusCode, Version};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use lateen_ir::{CommonHttpOptions, UpstreamProtocol};

use crate::body::RequestBody;
use crate::breakers::{self, Admission, Limited};
use crate::cluster::LocalCluster;
use crate::failure::Reset;
use crate::hop_by_hop;
use crate::host::Host;
use crate::http2;
use crate::incoming::{Incoming, StreamError};
use crate::interim::{Interim, Said};
use crate::pool::{ConnectTurn, ConnectionFacts, Http1, Http2, Pool, SharedTurn, StreamPlace};
use crate::presence::Present;
use crate::special::Special;
use crate::stats::blocks::ClusterStats;
use crate::syntax::proper_answer;
use crate::upstream_connection::open;
use crate::worker::Worker;

/// A connection for one exchange.
pub(crate) enum Lease {
    Http1 { connection: Http1, reused: bool },
    Http2 { place: StreamPlace },
}

impl Lease {
    pub(crate) fn facts(&self) -> &Rc<ConnectionFacts> {
        match self {
            Self::Http1 { connection, .. } => &connection.facts,
            Self::Http2 { place } => place.facts(),
        }
    }

    pub(crate) fn version(&self) -> Version {
        match self {
            Self::Http1 { .. } => Version::HTTP_11,
            Self::Http2 { .. } => Version::HTTP_2,
        }
    }

    /// A connection that carried requests before may be closing at this moment.
    pub(crate) fn reused(&self) -> bool {
        match self {
            Self::Http1 { reused, .. } => *reused,
            Self::Http2 { place } => place.facts().requests.get() > 0,
        }
    }

    /// Where it is noted what the endpoint says before its next answer.
    pub(crate) fn said(&self) -> Said {
        match self {
            Self::Http1 { connection, .. } => {
                connection.facts.said.clear();
                connection.facts.said.clone()
            }
            Self::Http2 { .. } => Said::default(),
        }
    }

    /// Counts the request that is about to use the connection up.
    pub(crate) fn count_last_request(&self, stats: &ClusterStats, options: &CommonHttpOptions) {
        if options.max_requests_per_connection == Some(self.facts().requests.get() + 1) {
            stats.upstream_cx_max_requests.inc();
        }
    }

    /// An exchange ended so. A shared connection that has ended forgets its streams when they hear of it.
    pub(crate) fn broke(&self, reset: &Reset) {
        if *reset == Reset::Protocol && self.version() < Version::HTTP_2 {
            self.facts().stats.upstream_cx_protocol_error.inc();
        }
        let Self::Http2 { place } = self else { return };
        match reset {
            Reset::Terminated => place.facts().broke_off.set(true),
            Reset::Remote => place.facts().stats.upstream_rq_rx_reset.inc(),
            Reset::Refused => {}
            _ => return,
        }
        place.over();
    }

    /// The answer has ended, whatever becomes of the connection.
    pub(crate) fn answered(&self) {
        if let Self::Http1 { connection, .. } = self {
            connection.facts.active.set(0);
        }
    }

    /// The exchange ended cleanly: the connection can carry another.
    pub(crate) fn finished(self, cluster: &LocalCluster) {
        self.answered();
        if let Self::Http2 { place } = &self {
            place.over();
        }
        // Without its host a connection is of no use to others.
        if let Self::Http1 { connection, .. } = self
            && let Some(pool) = connection.facts.pool.upgrade()
        {
            pool.give_back(connection, cluster.config.ir.http.common.max_requests_per_connection);
        }
    }
}

/// How an exchange failed.
#[derive(Debug)]
pub(crate) struct Broken {
    pub(crate) reset: Reset,
    /// False: nothing of the request can have been processed.
    pub(crate) sent: bool,
}

/// Where a connection goes and for which cluster.
pub(crate) struct Target<'a> {
    pub(crate) worker: &'a Rc<Worker>,
    pub(crate) cluster: &'a Rc<LocalCluster>,
    pub(crate) host: &'a Rc<Host>,
    /// What is out of the ordinary.
    pub(crate) special: Option<Box<Special>>,
}

impl Target<'_> {
    fn high_priority(&self) -> bool {
        self.special.as_ref().is_some_and(|special| special.high_priority)
    }

    /// Connections to the host that may be used for the request.
    pub(crate) fn pool(&self) -> Rc<Pool> {
        self.host.pool.of(self.special.as_ref().and_then(|special| special.pool_key()))
    }
}

/// A connection from the pool or a new one.
pub(crate) async fn lease(target: &Target<'_>, downstream: Version, fresh: bool) -> Result<Lease, Reset> {
    let http2 = match target.cluster.config.ir.http.protocol {
        UpstreamProtocol::Http1 => false,
        UpstreamProtocol::Http2 => true,
        UpstreamProtocol::Downstream => downstream == Version::HTTP_2,
    };
    if http2 {
        let options = &target.cluster.config.ir.http;
        let limits = (options.http2.max_concurrent_streams, options.common.max_requests_per_connection);
        return match target.pool().ready_shared(limits.0, limits.1) {
            Some(place) => Ok(Lease::Http2 { place }),
            None => Box::pin(connect_http2_once(target)).await,
        };
    }
    let mut kept = if fresh { None } else { target.pool().take_idle() };
    while let Some(mut connection) = kept {
        // Usually ready at once; right after an exchange its task may not have run yet.
        if connection.sender.is_ready() || connection.sender.ready().await.is_ok() {
            return Ok(Lease::Http1 { connection, reused: true });
        }
        kept = target.pool().take_idle();
    }
    // Boxed, as everything that is rare: the future of a request is moved, so its size costs every request.
    Box::pin(open_http1(target)).await
}

async fn open_http1(target: &Target<'_>) -> Result<Lease, Reset> {
    let pending = pending(target)?;
    let opened = open_or_wait(target).await;
    pending.over();
    opened
}

async fn open_or_wait(target: &Target<'_>) -> Result<Lease, Reset> {
    loop {
        let place = breakers::admit(&target.cluster.config, Limited::Connection, target.high_priority())
            .filter(|_| below_host_limit(target));
        if let Some(place) = place {
            return connect_http1(target, Some(place)).await;
        }
        target.cluster.stats.upstream_cx_overflow.inc();
        let pool = target.pool();
        if pool.is_unconnected() {
            // Envoy lets every pool have one connection, so that a full cluster cannot starve a host.
            return connect_http1(target, None).await;
        }
        if let Some(connection) = pool.wait_for_idle().await.ok().flatten() {
            return Ok(Lease::Http1 { connection, reused: true });
        }
    }
}

fn below_host_limit(target: &Target<'_>) -> bool {
    let limit = target.cluster.config.ir.max_connections_per_host;
    limit.is_none_or(|most| target.host.stats.cx_active.get() < u64::from(most))
}

async fn connect_http1(target: &Target<'_>, place: Option<Admission>) -> Result<Lease, Reset> {
    target.cluster.stats.upstream_cx_http1_total.inc();
    let (mut stream, opened) = open(target, place, &["http/1.1"]).await?;
    stream.tell_said(&opened.facts.said);
    let head_limit = 80 * 1024; // Envoy's limit for response heads of HTTP/1
    let handshake = http1::Builder::new()
        .max_header_size(head_limit)
        .max_buf_size(128 * 1024)
        .title_case_headers(target.cluster.config.ir.http.http1.proper_case_headers)
        .handshake::<_, RequestBody>(TokioIo::new(stream));
    let (sender, driver) = handshake.await.map_err(|_| Reset::Terminated)?;
    let facts = opened.facts.clone();
    tokio::task::spawn_local(opened.drive(driver.with_upgrades()));
    Ok(Lease::Http1 { connection: Http1::new(sender, facts), reused: false })
}

/// Opens a shared connection, or waits for whoever is opening one.
async fn connect_http2_once(target: &Target<'_>) -> Result<Lease, Reset> {
    let options = &target.cluster.config.ir.http;
    let pool = target.pool();
    loop {
        let turn =
            pool.shared(options.http2.max_concurrent_streams, options.common.max_requests_per_connection);
        match turn {
            SharedTurn::Ready(place) => return Ok(Lease::Http2 { place }),
            SharedTurn::Wait(outcome) => {
                let pending = pending(target)?;
                let outcome = outcome.await;
                pending.over();
                if let Ok(Err(reset)) = outcome {
                    target.cluster.stats.upstream_rq_pending_failure_eject.inc();
                    return Err(reset);
                }
            }
            SharedTurn::Connect => {
                let turn = ConnectTurn::new(&pool);
                let pending = pending(target)?;
                let place =
                    breakers::admit(&target.cluster.config, Limited::Connection, target.high_priority());
                if place.is_none() {
                    target.cluster.stats.upstream_cx_overflow.inc();
                }
                let connected = connect_http2(target, place).await;
                pending.over();
                match connected {
                    Err(reset) => {
                        turn.failed(reset.clone());
                        return Err(reset);
                    }
                    Ok(connection) => {
                        if let Some(place) = turn.connected(connection) {
                            return Ok(Lease::Http2 { place });
                        }
                    }
                }
            }
        }
    }
}

async fn connect_http2(target: &Target<'_>, place: Option<Admission>) -> Result<Http2, Reset> {
    target.cluster.stats.upstream_cx_http2_total.inc();
    let (stream, opened) = open(target, place, &["h2"]).await?;
    let handshake = http2::connect(stream, &target.cluster.config.ir.http.http2);
    let (sender, driver) = handshake.await.map_err(|_| Reset::Terminated)?;
    let facts = opened.facts.clone();
    tokio::task::spawn_local(opened.drive(driver));
    Ok(Http2::new(sender, facts))
}

/// Counts a request that waits for a connection. Dropped before it is over, it was given up.
pub(crate) struct Pending<'a> {
    cluster: &'a LocalCluster,
    host: &'a Host,
    over: bool,
    _place: Admission,
}

pub(crate) fn pending<'a>(target: &Target<'a>) -> Result<Pending<'a>, Reset> {
    let stats = &target.cluster.stats;
    let Some(place) = breakers::admit(&target.cluster.config, Limited::Pending, target.high_priority())
    else {
        stats.upstream_rq_pending_overflow.inc();
        return Err(Reset::Overflow);
    };
    stats.upstream_rq_pending_total.inc();
    stats.upstream_rq_pending_active.inc();
    target.host.stats.rq_pending_active.inc();
    Ok(Pending { cluster: target.cluster, host: target.host, over: false, _place: place })
}

impl Pending<'_> {
    /// There is a connection, or there will be none.
    pub(crate) fn over(mut self) {
        self.over = true;
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.cluster.stats.upstream_rq_cancelled.inc();
        }
        self.cluster.stats.upstream_rq_pending_active.dec();
        self.host.stats.rq_pending_active.dec();
    }
}

/// Has `hear` told what the endpoint says before its answer, when the request goes over HTTP/1.
pub(crate) fn listen(
    request: &mut Request<RequestBody>,
    hear: impl Fn(StatusCode, &HeaderMap) + Send + Sync + 'static,
) {
    if request.version() < Version::HTTP_2 {
        hyper::ext::on_informational(request, move |said| hear(said.status(), said.headers()));
    }
}

/// Sends a request and waits for the head of the answer. `interim`: where what the endpoint says before it is passed on to; over
/// HTTP/1 [`listen`] sees to that. `said`: where it is noted if it is not passed on, of HTTP/1 the connection's own.
pub(crate) async fn exchange(
    lease: &mut Lease,
    request: Request<RequestBody>,
    interim: Option<&Interim>,
    said: Option<&Said>,
) -> Result<Response<Incoming>, Broken> {
    let facts = lease.facts();
    facts.requests.set(facts.requests.get() + 1);
    let (reset, unsent) = match lease {
        Lease::Http1 { connection, .. } => {
            connection.facts.active.set(1);
            match connection.sender.try_send_request(request).await {
                Ok(response) => return Ok(response.map(Incoming::from)),
                Err(mut error) => {
                    let unsent = error.take_message().is_some();
                    (classify(&error.into_error().into(), unsent), unsent)
                }
            }
        }
        Lease::Http2 { place } => {
            let (listener, said) = (interim.map(Interim::listener), said.cloned());
            let hear = move |status: StatusCode, headers: &HeaderMap| {
                listener.iter().for_each(|listener| listener(status, headers));
                said.iter().for_each(|said| said.note(status.as_u16()));
            };
            match place.open().exchange(request, hear).await {
                Ok(response) => return Ok(response),
                Err((error, sent)) => {
                    if !sent {
                        place.over();
                    }
                    // It takes no more of them, unless it is the request that can't be sent.
                    if !sent && !is_ours(&error) {
                        place.facts().ended.set(true);
                    }
                    (classify(&error.into(), !sent), !sent)
                }
            }
        }
    };
    let sent = !unsent && reset != Reset::Refused;
    if unsent {
        lease.answered();
    } else {
        lease.broke(&reset);
    }
    Err(Broken { reset, sent })
}

/// Looks at the head of an answer, and says what it has. Over HTTP/1 how it is framed must leave no doubt, and it may be the last on its
/// connection.
pub(crate) fn heed_head(lease: &Lease, response: &Response<Incoming>) -> Result<Present, Broken> {
    let present = Present::of(response.headers());
    if lease.version() == Version::HTTP_2 {
        return Ok(present);
    }
    if present.any(Present::TRANSFER_ENCODING) && !proper_answer(response.headers()) {
        lease.broke(&Reset::Protocol);
        return Err(Broken { reset: Reset::Protocol, sent: true });
    }
    if hop_by_hop::ends_connection(response.version(), response.headers(), present) {
        lease.facts().stats.upstream_cx_close_notify.inc();
        lease.facts().ended.set(true);
    }
    Ok(present)
}

/// Whether the request is none that HTTP/2 has a form for, as with an authority that is none.
fn is_ours(error: &h2::Error) -> bool {
    error.reason().is_none() && !error.is_io()
}

/// What an error means for the request.
pub(crate) fn classify(error: &StreamError, unsent: bool) -> Reset {
    // One that breaks HTTP's rules does so whatever it has been sent.
    let unruly = matches!(error, StreamError::Http2(error) if error.is_library() || is_ours(error));
    if unsent && !unruly {
        return Reset::Terminated;
    }
    match error {
        StreamError::Http1(error) if error.is_parse() => Reset::Protocol,
        StreamError::Http1(_) => Reset::Terminated,
        StreamError::Http2(error) => match error.reason() {
            Some(h2::Reason::REFUSED_STREAM) => Reset::Refused,
            // A stream the peer never took (GOAWAY before it) may be sent again.
            Some(h2::Reason::NO_ERROR) if error.is_go_away() => Reset::Refused,
            // Whoever breaks whichever rule.
            Some(h2::Reason::PROTOCOL_ERROR) => Reset::Protocol,
            Some(_) if error.is_library() => Reset::Protocol,
            None if is_ours(error) => Reset::Protocol,
            Some(_) if error.is_reset() => Reset::Remote,
            _ => Reset::Terminated,
        },
    }
}
