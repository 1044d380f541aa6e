//! A connection to an endpoint: how it is opened, and what is counted of its life.

use std::cell::{Cell, OnceCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lateen_ir::{HostAddress, UpstreamTransport};
use tokio::io::AsyncWriteExt;

use crate::breakers::Admission;
use crate::cluster::LocalCluster;
use crate::dial::{DialOptions, dial, dial_pipe};
use crate::failure::Reset;
use crate::happy_eyeballs;
use crate::host::Host;
use crate::incoming::StreamError;
use crate::interim::Said;
use crate::pool::{ConnectionFacts, Pool};
use crate::proxy_protocol;
use crate::stream::{Heard, Stream, Transport};
use crate::tls::{self, ServerIdentity, TlsFacts};
use crate::upstream::Target;

/// The counts of an open connection; lives in the connection's task.
pub(crate) struct Opened {
    pub(crate) facts: Rc<ConnectionFacts>,
    cluster: Rc<LocalCluster>,
    host: Rc<Host>,
    since: Instant,
    place: Option<Admission>,
    pool: Rc<Pool>,
    /// The pool's requests may get it. What is no HTTP is nobody else's.
    pooled: bool,
    /// The other side ended it.
    ended_there: Heard,
}

impl Opened {
    /// Runs the connection. One that is too old carries no further request (`max_connection_duration`).
    pub(crate) async fn drive<E: Into<StreamError>>(self, driver: impl Future<Output = Result<(), E>>) {
        let mut driver = std::pin::pin!(driver);
        if let Some(limit) = self.cluster.config.ir.http.common.max_connection_duration {
            tokio::select! {
                biased;
                result = &mut driver => return self.ended(result),
                () = Box::pin(tokio::time::sleep(limit)) => {}
            }
            self.cluster.stats.upstream_cx_max_duration_reached.inc();
            self.facts.ended.set(true);
            self.pool.drop_ended();
        }
        self.ended(driver.await);
    }

    fn ended(self, result: Result<(), impl Into<StreamError>>) {
        if let Err(error) = result.map_err(Into::into) {
            if matches!(&error, StreamError::Http1(error) if error.is_parse()) {
                self.cluster.stats.upstream_cx_protocol_error.inc();
            }
            tracing::trace!(host = %self.host.address, %error, "upstream connection ended");
        }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.facts.ended.set(true);
        let stats = &self.cluster.stats;
        stats.upstream_cx_active.dec();
        stats.upstream_cx_destroy.inc();
        let there = self.ended_there.get();
        if there { &stats.upstream_cx_destroy_remote } else { &stats.upstream_cx_destroy_local }.inc();
        self.facts.ended_there.set(there);
        stats.upstream_cx_length_ms.record(self.since.elapsed().as_millis() as u64);
        self.host.stats.cx_active.dec();
        // The place has to be free before somebody is told so.
        drop(self.place.take());
        self.pool.ended(self.pooled);
    }
}

/// Opens a socket to the host, shakes hands where there is TLS, and counts it. `alpn`: what to offer where the configuration says nothing;
/// empty: it is not for HTTP.
pub(crate) async fn open(
    target: &Target<'_>,
    place: Option<Admission>,
    alpn: &[&'static str],
) -> Result<(Stream, Opened), Reset> {
    let (worker, cluster, host) = (target.worker, target.cluster, target.host);
    let config = &cluster.config;
    let stats = &cluster.stats;
    let pool = target.pool();
    let pooled = !alpn.is_empty();
    if pooled {
        pool.opening();
    }
    let began = Instant::now();
    stats.upstream_cx_total.inc();
    config.breakers.note_use();
    stats.upstream_cx_active.inc();
    host.stats.cx_total.inc();
    host.stats.cx_active.inc();
    let facts = Rc::new(ConnectionFacts {
        id: worker.connection_id(),
        local: Cell::new(None),
        remote: OnceCell::new(),
        tls: OnceCell::new(),
        requests: Cell::new(0),
        generation: pool.generation(),
        said: Said::default(),
        stats: cluster.stats.clone(),
        ended_there: Cell::new(false),
        active: Cell::new(0),
        broke_off: Cell::new(false),
        ended: Cell::new(false),
        pool: Rc::downgrade(&pool),
    });
    // From here on the drop of `opened` takes the counts back.
    let opened = Opened {
        facts: facts.clone(),
        cluster: cluster.clone(),
        host: host.clone(),
        since: began,
        place,
        pool,
        pooled,
        ended_there: Heard::default(),
    };
    let options = DialOptions {
        mark: worker.mark,
        bind: config.bind.as_deref(),
        keepalive: config.ir.tcp_keepalive.as_ref(),
        timeout: if config.ir.connect_timeout.is_zero() {
            Duration::from_secs(5)
        } else {
            config.ir.connect_timeout
        },
    };
    let attempt = Attempt { target, options, alpn };
    let connected = match &host.address {
        HostAddress::Socket(first) => {
            let others = host.endpoint.borrow().additional_addresses.clone();
            if others.is_empty() {
                attempt.connect(*first).await
            } else {
                Box::pin(attempt.connect_any(*first, &others)).await
            }
        }
        HostAddress::Pipe(path) => Box::pin(attempt.connect_pipe(path)).await,
    };
    let connected = connected.map(|connected| {
        facts.local.set(connected.local);
        // The cells are new and empty.
        let _ = facts.remote.set(connected.remote);
        connected.tls.into_iter().for_each(|tls| drop(facts.tls.set(tls)));
        connected.stream
    });
    let mut stream = match connected {
        Ok(stream) => stream,
        Err(reset) => {
            stats.upstream_cx_connect_fail.inc();
            stats.upstream_rq_pending_failure_eject.inc();
            host.stats.cx_connect_fail.inc();
            // Who is silent is left.
            opened.ended_there.set(reset != Reset::ConnectTimeout);
            if reset == Reset::ConnectTimeout {
                stats.upstream_cx_connect_timeout.inc();
            }
            return Err(reset);
        }
    };
    stats.upstream_cx_connect_ms.record(began.elapsed().as_millis() as u64);
    stream.tell_end(&opened.ended_there);
    stream.count_into(&stats.upstream_cx_rx_bytes_total, &stats.upstream_cx_tx_bytes_total);
    Ok((stream, opened))
}

/// A connection that is ready for its protocol.
struct Connected {
    stream: Stream,
    local: Option<SocketAddr>,
    remote: HostAddress,
    tls: Option<Rc<TlsFacts>>,
}

/// What each attempt to connect to a host needs.
struct Attempt<'a> {
    target: &'a Target<'a>,
    options: DialOptions<'a>,
    alpn: &'a [&'static str],
}

impl Attempt<'_> {
    async fn connect(&self, address: SocketAddr) -> Result<Connected, Reset> {
        let began = Instant::now();
        let tcp = dial(address, self.options).await?;
        let local = tcp.local_addr().ok();
        // Boxed: it is large, and over before the connection's real work.
        let (stream, tls) = Box::pin(self.transport(Stream::new(Transport::Tcp(tcp)), began)).await?;
        Ok(Connected { stream, local, remote: address.into(), tls })
    }

    /// Whichever address answers. Each further attempt counts as a connection, as with Envoy.
    async fn connect_any(&self, first: SocketAddr, others: &[SocketAddr]) -> Result<Connected, Reset> {
        let mut begun = 0;
        happy_eyeballs::race(&happy_eyeballs::order(first, others), self.options.timeout, |address| {
            begun += 1;
            if begun > 1 {
                self.target.cluster.stats.upstream_cx_total.inc();
                self.target.host.stats.cx_total.inc();
            }
            self.connect(address)
        })
        .await
    }

    async fn connect_pipe(&self, path: &Arc<str>) -> Result<Connected, Reset> {
        let began = Instant::now();
        let pipe = dial_pipe(path, self.options.timeout).await?;
        let (stream, tls) = self.transport(Stream::new(Transport::Pipe(pipe)), began).await?;
        Ok(Connected { stream, local: None, remote: HostAddress::Pipe(path.clone()), tls })
    }

    /// What goes before the first byte of the protocol: the PROXY protocol's header, TLS.
    async fn transport(
        &self,
        mut stream: Stream,
        began: Instant,
    ) -> Result<(Stream, Option<Rc<TlsFacts>>), Reset> {
        let target = self.target;
        let endpoint = target.host.endpoint.borrow().clone();
        let (transport, tls) = target.cluster.config.transport(&endpoint);
        if let UpstreamTransport::ProxyProtocol { version, .. } = transport {
            let header =
                proxy_protocol::header(*version, target.special.as_ref().and_then(|special| special.client));
            let sent = stream.write_all(&header).await;
            sent.map_err(|error| Reset::ConnectFailure(error.to_string().into()))?;
        }
        let Some(tls) = tls else { return Ok((stream, None)) };
        let stats = target.cluster.tls_stats(target.worker);
        let identity = ServerIdentity {
            of_request: target.special.as_ref().and_then(|special| special.server_name.as_deref()),
            of_endpoint: endpoint.hostname.as_deref(),
            alpn: self.alpn,
            only_alpn: &[],
        };
        let left = self.options.timeout.saturating_sub(began.elapsed());
        match tokio::time::timeout(left, tls::connect(tls, stream, identity)).await {
            Ok(Ok((stream, shaken))) => {
                stats.shaken(&shaken);
                Ok((stream, Some(Rc::new(shaken))))
            }
            Ok(Err(failed)) => {
                stats.failed(&failed);
                Err(Reset::ConnectFailure(failed.reason.into()))
            }
            Err(_) => Err(Reset::ConnectTimeout),
        }
    }
}
