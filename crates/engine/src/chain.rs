//! Step 3: the filter chain of a connection, and the hand-over to what it ends in.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use lateen_ir::{ConnectionView, HostAddress, Listener};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::context::ConnectionInfo;
use crate::filters::{self, LocalFilter};
use crate::gate::LocalGate;
use crate::inspect::Inspected;
use crate::signal::Signal;
use crate::snapshot::{ChainConfig, Terminal};
use crate::stats::blocks::{HttpStats, ListenerStats, TcpStats};
use crate::stats::tls::TlsStats;
use crate::stream::Stream;
use crate::worker::Worker;
use crate::{http_connection, tcp_proxy, tls};

/// A filter chain in one worker. As long as the chain's content stays, so do this and its connections.
pub(crate) struct ChainRuntime {
    pub(crate) config: Arc<ChainConfig>,
    /// Fired when the chain is replaced or removed: its connections finish.
    pub(crate) drain: Signal,
    http: Option<(Rc<HttpStats>, Rc<[LocalFilter]>)>,
    tcp: Option<Rc<TcpStats>>,
    tls: Option<Rc<TlsStats>>,
    gate: LocalGate,
}

impl ChainRuntime {
    /// `listener`: name in stats.
    pub(crate) fn new(config: Arc<ChainConfig>, listener: &Arc<str>, worker: &Worker) -> Rc<Self> {
        let (http, tcp) = match &config.terminal {
            Terminal::Http(http) => {
                let filters = filters::local(&http.filters, &http.stat_name, &worker.stats);
                (Some((worker.stats.http(&http.stat_name), filters)), None)
            }
            Terminal::Tcp(tcp) => (None, Some(worker.stats.tcp(&tcp.stat_name))),
            Terminal::Close | Terminal::Echo | Terminal::DirectResponse(_) => (None, None),
        };
        let drain = Signal::default();
        if worker.draining.is_fired() {
            drain.fire();
        }
        let tls = config.tls.as_ref().map(|_| worker.stats.listener_tls(listener));
        let gate = LocalGate::new(&config.ir.filters, &config.asked, worker);
        Rc::new(Self { config, drain, http, tcp, tls, gate })
    }
}

/// What a Unix socket is matched as: no chain asks for its port, and both ends are the same, which is local. Envoy has this address
/// for it, too.
const OF_PIPES: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::BROADCAST), 0);

fn matched(end: &HostAddress) -> SocketAddr {
    end.socket().unwrap_or(OF_PIPES)
}

/// Position of the chain for a connection; `None`: the default chain.
pub(crate) fn find(
    listener: &Listener,
    found: &Inspected,
    local: &HostAddress,
    peer: &HostAddress,
    direct_peer: &HostAddress,
) -> Option<usize> {
    let protocols: smallvec::SmallVec<[&str; 4]> = found.application_protocols.iter().map(|p| &**p).collect();
    listener.chain_index.find(&ConnectionView {
        destination: matched(local),
        source: matched(peer),
        direct_source: matched(direct_peer),
        server_name: found.server_name.as_deref().unwrap_or_default(),
        transport_protocol: if found.tls { "tls" } else { "raw_buffer" },
        application_protocols: &protocols,
    })
}

/// How long a handshake may take where nothing says so: as long as a connection may be idle.
const HANDSHAKE: Duration = Duration::from_secs(3600);

/// Step 3b: shakes hands, where the chain has TLS. `None`: the connection is over.
async fn transport(
    chain: &ChainRuntime,
    stream: Stream,
    info: &mut ConnectionInfo,
    listener: &ListenerStats,
) -> Option<Stream> {
    let (Some(tls), Some(stats)) = (&chain.config.tls, &chain.tls) else { return Some(stream) };
    let limit = chain.config.ir.transport_connect_timeout.unwrap_or(HANDSHAKE);
    // Boxed: it is large, and over before the connection's real work.
    let shaken = Box::pin(tokio::time::timeout(limit, tls::accept(tls, stream, stats)));
    match shaken.await {
        Ok(Ok((stream, facts))) => {
            info.tls = Some(Rc::new(facts));
            Some(stream)
        }
        Ok(Err(refused)) => {
            tracing::debug!(peer = %info.peer, reason = refused.reason, "no TLS with a client");
            info.transport_failure = (!refused.reason.is_empty()).then(|| refused.reason.into());
            None
        }
        Err(_) => {
            listener.downstream_cx_transport_socket_connect_timeout.inc();
            None
        }
    }
}

/// Step 4: serves the connection until it ends.
pub(crate) async fn serve(
    chain: &Rc<ChainRuntime>,
    stream: Stream,
    mut info: ConnectionInfo,
    listener: &ListenerStats,
    worker: &Rc<Worker>,
    buffer_limit: u32,
) {
    let Some(mut stream) = transport(chain, stream, &mut info, listener).await else {
        match (&chain.config.terminal, &chain.http, &chain.tcp) {
            (Terminal::Http(_), Some((stats, _)), _) => http_connection::not_shaken(stats),
            (Terminal::Tcp(config), _, Some(stats)) => tcp_proxy::not_shaken(&info, config, stats, worker),
            _ => {}
        }
        return;
    };
    if let Some((gate, judged)) = chain.gate.of(&info, worker) {
        stream.gate_with(gate);
        info.judged = judged;
    }
    match (&chain.config.terminal, &chain.http, &chain.tcp) {
        (Terminal::Http(config), Some((stats, filters)), _) => {
            // Boxed: HTTP connections are the long-lived and by far the largest case.
            Box::pin(http_connection::serve(
                stream,
                info,
                config.clone(),
                (stats.clone(), filters.clone()),
                chain.drain.clone(),
                worker.clone(),
                buffer_limit,
            ))
            .await;
        }
        (Terminal::Tcp(config), _, Some(stats)) => {
            Box::pin(tcp_proxy::serve(stream, info, config, stats, &chain.drain, worker)).await;
        }
        (Terminal::Echo, ..) => echo(stream).await,
        (Terminal::DirectResponse(bytes), ..) => {
            // The peer may be gone; there is nobody to tell.
            if stream.write_all(bytes).await.is_ok() {
                let _ = stream.shutdown().await;
            }
        }
        (Terminal::Close | Terminal::Http(_) | Terminal::Tcp(_), ..) => {}
    }
}

async fn echo(mut stream: Stream) {
    let mut buffer = vec![0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut buffer).await {
        if stream.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}
