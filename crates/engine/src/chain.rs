//! Step 3: the filter chain of a connection, and the hand-over to what it ends in.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use lateen_ir::{ConnectionView, Listener};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::context::ConnectionInfo;
use crate::filters::{self, LocalFilter};
use crate::inspect::Inspected;
use crate::signal::Signal;
use crate::snapshot::{ChainConfig, Terminal};
use crate::stats::blocks::{HttpStats, TcpStats};
use crate::stream::Stream;
use crate::worker::Worker;
use crate::{http_connection, tcp_proxy};

/// A filter chain in one worker. As long as the chain's content stays, so do this and its connections.
pub(crate) struct ChainRuntime {
    pub(crate) config: Arc<ChainConfig>,
    /// Fired when the chain is replaced or removed: its connections finish.
    pub(crate) drain: Signal,
    http: Option<(Rc<HttpStats>, Rc<[LocalFilter]>)>,
    tcp: Option<Rc<TcpStats>>,
}

impl ChainRuntime {
    pub(crate) fn new(config: Arc<ChainConfig>, worker: &Worker) -> Rc<Self> {
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
        Rc::new(Self { config, drain, http, tcp })
    }
}

/// Position of the chain for a connection; `None`: the default chain.
pub(crate) fn find(
    listener: &Listener,
    found: &Inspected,
    local: SocketAddr,
    peer: SocketAddr,
) -> Option<usize> {
    let protocols: smallvec::SmallVec<[&str; 4]> = found.application_protocols.iter().map(|p| &**p).collect();
    listener.chain_index.find(&ConnectionView {
        destination: local,
        source: peer,
        direct_source: peer,
        server_name: found.server_name.as_deref().unwrap_or_default(),
        transport_protocol: if found.tls { "tls" } else { "raw_buffer" },
        application_protocols: &protocols,
    })
}

/// Step 4: serves the connection until it ends.
pub(crate) async fn serve(
    chain: &Rc<ChainRuntime>,
    stream: Stream,
    info: ConnectionInfo,
    worker: &Rc<Worker>,
    buffer_limit: u32,
) {
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
            let mut stream = stream;
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
