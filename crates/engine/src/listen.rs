//! Step 1: accepting connections, and what a listener keeps in each worker.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lateen_ir::{HostAddress, ListenerFilterKind, ProxyProtocolFilter};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream, UnixListener};

use crate::chain::{self, ChainRuntime};
use crate::context::ConnectionInfo;
use crate::dial::{set_keepalive, set_socket_option};
use crate::failure::Flags;
use crate::format_values::TcpFacts;
use crate::gate::Judged;
use crate::inspect::{Inspected, inspect};
use crate::original_dst::original_destination;
use crate::proxy_protocol::{self, Ends};
use crate::signal::Signal;
use crate::snapshot::ListenerConfig;
use crate::stats::blocks::ListenerStats;
use crate::stream::{Stream, Transport};
use crate::worker::Worker;
use crate::{log_filter, render};

/// Pause after running out of file descriptors or memory; accepting again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A listener in one worker.
pub(crate) struct LocalListener {
    config: RefCell<Arc<ListenerConfig>>,
    chains: RefCell<Chains>,
    stats: Rc<ListenerStats>,
    /// Fired when the sockets are to be closed: the listener is removed or moves to other addresses.
    closed: RefCell<Signal>,
}

struct Chains {
    listed: Vec<Rc<ChainRuntime>>,
    default: Option<Rc<ChainRuntime>>,
}

impl LocalListener {
    pub(crate) fn new(config: &Arc<ListenerConfig>, worker: &Worker) -> Rc<Self> {
        Rc::new(Self {
            config: RefCell::new(config.clone()),
            chains: RefCell::new(make_chains(config, None, worker)),
            stats: worker.stats.listener(&config.stat_name),
            closed: RefCell::default(),
        })
    }

    /// Takes a new configuration. Chains that are the same stay with their connections, others drain.
    pub(crate) fn update(&self, config: &Arc<ListenerConfig>, worker: &Worker) {
        if Arc::ptr_eq(&self.config.borrow(), config) {
            return;
        }
        let new = make_chains(config, Some(&self.chains.borrow()), worker);
        let old = self.chains.replace(new);
        let kept = self.chains.borrow();
        for chain in old.listed.iter().chain(&old.default) {
            if !kept.listed.iter().chain(&kept.default).any(|new| Rc::ptr_eq(new, chain)) {
                chain.drain.fire();
            }
        }
        if self.config.borrow().bound != config.bound {
            self.closed.take().fire();
        }
        *self.config.borrow_mut() = config.clone();
    }

    /// Removed: no more connections, those there are drain.
    pub(crate) fn close(&self) {
        self.closed.take().fire();
        self.drain();
    }

    pub(crate) fn drain(&self) {
        let chains = self.chains.borrow();
        chains.listed.iter().chain(&chains.default).for_each(|chain| chain.drain.fire());
    }

    /// What redirected connections know it by; a Unix socket none of them means.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.config.borrow().ir.socket_addresses().collect()
    }

    /// Accepts on a socket until the listener is closed.
    pub(crate) fn take_socket(this: &Rc<Self>, position: usize, socket: Listening, worker: &Rc<Worker>) {
        let (listener, worker) = (this.clone(), worker.clone());
        let closed = this.closed.borrow().clone();
        tokio::task::spawn_local(async move {
            let name = listener.config.borrow().ir.name.clone();
            match Accepting::new(socket) {
                Ok(socket) => listener.accept_all(&socket, position, &closed, &worker).await,
                Err(error) => tracing::error!(listener = %name, %error, "cannot use a listening socket"),
            }
        });
    }

    async fn accept_all(
        self: &Rc<Self>,
        socket: &Accepting,
        position: usize,
        closed: &Signal,
        worker: &Rc<Worker>,
    ) {
        loop {
            let accepted = tokio::select! {
                biased;
                () = closed.fired() => return,
                accepted = socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => self.accept(stream, peer, position, worker),
                Err(error) if is_about_one_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(listener = %self.config.borrow().ir.name, %error, "cannot accept; trying again shortly");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn accept(
        self: &Rc<Self>,
        stream: Transport,
        peer: Option<SocketAddr>,
        position: usize,
        worker: &Rc<Worker>,
    ) {
        let config = self.config.borrow().clone();
        let (peer, local) = match &stream {
            Transport::Tcp(tcp) => {
                let (Some(peer), Ok(local)) = (peer, tcp.local_addr()) else { return };
                if let Err(error) = prepare(tcp, &config, position) {
                    tracing::debug!(%peer, %error, "cannot set socket options of an accepted connection");
                }
                (peer.into(), local.into())
            }
            // Clients at Unix sockets have no name: both ends go by ours, as with Envoy.
            _ => {
                let Some(own) = config.bound.get(position).cloned() else { return };
                (own.clone(), own)
            }
        };
        let (listener, worker) = (self.clone(), worker.clone());
        tokio::task::spawn_local(async move {
            let _counted = worker.connection_began();
            listener.admit(stream, peer, local, &worker).await;
        });
    }

    /// Steps 2 and 3: finds the destination, the protocol, the listener that is really meant, and its chain.
    async fn admit(
        self: &Rc<Self>,
        stream: Transport,
        peer: HostAddress,
        direct_local: HostAddress,
        worker: &Rc<Worker>,
    ) {
        let own = self.config.borrow().clone();
        let restore = own.ir.use_original_dst
            || own.ir.listener_filters.iter().any(|filter| filter.kind == ListenerFilterKind::OriginalDst);
        let original = match (&stream, &direct_local) {
            (Transport::Tcp(tcp), HostAddress::Socket(local)) if restore => original_destination(tcp, *local),
            _ => None,
        };
        let local = original.map_or_else(|| direct_local.clone(), HostAddress::Socket);
        let listener = match original {
            Some(destination) if own.ir.use_original_dst => {
                worker.listener_for(destination).unwrap_or_else(|| self.clone())
            }
            _ => self.clone(),
        };
        let stats = &listener.stats;
        stats.downstream_cx_total.inc();
        let _active = Active::new(stats);
        let mut stream = Stream::of_client(stream);
        let config = listener.config.borrow().clone();
        let Some((found, ends)) = peek(&mut stream, &config, &own, local.port().unwrap_or(0), stats).await
        else {
            return;
        };
        let direct_peer = peer.clone();
        let (peer, local) = ends.map_or((peer, local), |ends| (ends.source.into(), ends.destination.into()));
        let chain = {
            let chains = listener.chains.borrow();
            chain::find(&config.ir, &found, &local, &peer, &direct_peer)
                .and_then(|position| chains.listed.get(position))
                .or(chains.default.as_ref())
                .cloned()
        };
        let info = ConnectionInfo {
            id: worker.connection_id(),
            peer,
            direct_peer,
            direct_local,
            local,
            restored: original.is_some() || ends.is_some(),
            server_name: found.server_name,
            tls: None,
            transport_failure: None,
            judged: Judged::default(),
            chain_name: chain.as_ref().map_or_else(Default::default, |chain| chain.config.ir.name.clone()),
            started: Instant::now(),
        };
        let Some(chain) = chain else {
            stats.no_filter_chain_match.inc();
            log_unmatched(&config.ir, &info, worker);
            stream.abandon();
            return;
        };
        let limit = config.ir.per_connection_buffer_limit_bytes;
        chain::serve(&chain, stream, info, &listener.stats, worker, limit).await;
    }
}

/// The listener's own access log tells of connections that no filter chain takes (flag `NR`).
fn log_unmatched(listener: &lateen_ir::Listener, info: &ConnectionInfo, worker: &Rc<Worker>) {
    let flags = Flags::NO_ROUTE;
    let facts = TcpFacts::unserved(info, &worker.identity.hostname, flags, "");
    for log in &listener.access_log {
        if log.filter.as_ref().is_some_and(|filter| log_filter::passes_tcp(filter, flags, 0, worker.random()))
        {
            worker.log_line(&log.sink, |line| render::line(&log.format, &facts, line));
        }
    }
}

/// Runs the inspectors of the listener that takes the connection (or of the one that accepted it, as Envoy runs those first).
/// `None`: the connection is to be closed.
async fn peek(
    stream: &mut Stream,
    config: &ListenerConfig,
    accepted_by: &ListenerConfig,
    port: u16,
    stats: &ListenerStats,
) -> Option<(Inspected, Option<Ends>)> {
    let wants = |kind| config.ir.runs(kind, port) || accepted_by.ir.runs(kind, port);
    let (want_tls, want_http) =
        (wants(ListenerFilterKind::TlsInspector), wants(ListenerFilterKind::HttpInspector));
    let filters = config.ir.listener_filters.iter().chain(&accepted_by.ir.listener_filters);
    let proxy_protocol = filters
        .filter(|filter| !filter.disabled.as_ref().is_some_and(|rule| rule.holds(port)))
        .find_map(|filter| match filter.kind {
            ListenerFilterKind::ProxyProtocol(filter) => Some(filter),
            _ => None,
        });
    if !want_tls && !want_http && proxy_protocol.is_none() {
        return Some((Inspected::default(), None));
    }
    let look = look(stream, proxy_protocol, want_tls, want_http);
    let result = match config.ir.listener_filters_timeout {
        None => look.await,
        Some(limit) => match tokio::time::timeout(limit, look).await {
            Ok(result) => result,
            Err(_) => {
                stats.downstream_pre_cx_timeout.inc();
                // A server-first protocol says nothing; what was read so far stays readable.
                return config.ir.continue_on_listener_filters_timeout.then(Default::default);
            }
        },
    };
    match result {
        Ok(found) => Some(found),
        Err(_) => {
            stats.downstream_listener_filter_error.inc();
            None
        }
    }
}

/// First the header of the PROXY protocol, as all else comes after it.
async fn look(
    stream: &mut Stream,
    proxy_protocol: Option<ProxyProtocolFilter>,
    want_tls: bool,
    want_http: bool,
) -> io::Result<(Inspected, Option<Ends>)> {
    let ends = match proxy_protocol {
        None => None,
        Some(filter) => proxy_protocol::read(stream, filter).await?,
    };
    let found = if want_tls || want_http {
        inspect(stream, want_tls, want_http).await?
    } else {
        Inspected::default()
    };
    Ok((found, ends))
}

fn make_chains(config: &ListenerConfig, before: Option<&Chains>, worker: &Worker) -> Chains {
    let keep_or_make = |chain: &Arc<crate::snapshot::ChainConfig>| {
        let same = before
            .into_iter()
            .flat_map(|chains| chains.listed.iter().chain(&chains.default))
            .find(|old| Arc::ptr_eq(&old.config, chain));
        same.cloned().unwrap_or_else(|| ChainRuntime::new(chain.clone(), &config.stat_name, worker))
    };
    Chains {
        listed: config.chains.iter().map(keep_or_make).collect(),
        default: config.default_chain.as_ref().map(keep_or_make),
    }
}

/// Errors of `accept` that concern the connection and not the socket (accept(2), "Error handling").
fn is_about_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionRefused
    )
}

fn prepare(stream: &TcpStream, config: &ListenerConfig, position: usize) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let additional = position.checked_sub(1).and_then(|i| config.ir.additional_addresses.get(i));
    let keepalive =
        additional.and_then(|address| address.tcp_keepalive.as_ref()).or(config.ir.tcp_keepalive.as_ref());
    keepalive.map_or(Ok(()), |keepalive| set_keepalive(&SockRef::from(stream), keepalive))
}

/// A socket that listens.
pub(crate) enum Listening {
    Tcp(std::net::TcpListener),
    Pipe(std::os::unix::net::UnixListener),
}

/// The same, within a worker.
enum Accepting {
    Tcp(TcpListener),
    Pipe(UnixListener),
}

impl Accepting {
    fn new(socket: Listening) -> io::Result<Self> {
        match socket {
            Listening::Tcp(socket) => TcpListener::from_std(socket).map(Self::Tcp),
            Listening::Pipe(socket) => UnixListener::from_std(socket).map(Self::Pipe),
        }
    }

    /// The next connection; clients at Unix sockets have no address.
    async fn accept(&self) -> io::Result<(Transport, Option<SocketAddr>)> {
        match self {
            Self::Tcp(socket) => {
                socket.accept().await.map(|(stream, peer)| (Transport::Tcp(stream), Some(peer)))
            }
            Self::Pipe(socket) => socket.accept().await.map(|(stream, _)| (Transport::Pipe(stream), None)),
        }
    }
}

/// Opens one listening socket for each worker at an address, and says which address it has become.
pub(crate) fn open(
    config: &lateen_ir::Listener,
    position: usize,
    address: &HostAddress,
    workers: usize,
) -> io::Result<(HostAddress, Vec<Listening>)> {
    match address {
        HostAddress::Socket(address) => {
            let (bound, sockets) = open_sockets(config, position, *address, workers)?;
            Ok((bound.into(), sockets.into_iter().map(Listening::Tcp).collect()))
        }
        HostAddress::Pipe(path) => {
            let additional = position.checked_sub(1).map(|index| &config.additional_addresses[index]);
            let mode = additional.map_or(config.pipe_mode, |additional| additional.pipe_mode);
            let first = open_pipe(path, mode, config.tcp_backlog_size)?;
            // One socket for all workers: the kernel wakes one of those that wait.
            let mut sockets = vec![first];
            for _ in 1..workers {
                sockets.push(sockets[0].try_clone()?);
            }
            Ok((address.clone(), sockets.into_iter().map(Listening::Pipe).collect()))
        }
    }
}

/// Listens at a Unix socket. What is at its path is removed first, as by Envoy: mostly it is what an earlier process left.
fn open_pipe(path: &str, mode: u32, backlog: Option<u32>) -> io::Result<std::os::unix::net::UnixListener> {
    use std::os::unix::fs::PermissionsExt;
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM.nonblocking(), None)?;
    // The kernel's names of the abstract namespace begin with a zero byte.
    let name = path.strip_prefix('@').map(|name| format!("\0{name}"));
    if name.is_none() {
        // Nothing there is the usual case; what can't be removed fails to be bound.
        let _removed = std::fs::remove_file(path);
    }
    socket.bind(&socket2::SockAddr::unix(name.as_deref().unwrap_or(path))?)?;
    if mode != 0 && name.is_none() {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    }
    socket.listen(backlog_of(backlog))?;
    Ok(socket.into())
}

fn backlog_of(size: Option<u32>) -> i32 {
    size.map_or(4096, |size| i32::try_from(size).unwrap_or(i32::MAX))
}

/// Opens one listening socket for each worker on an address. With port 0 the first socket's port is used for all.
fn open_sockets(
    config: &lateen_ir::Listener,
    position: usize,
    address: SocketAddr,
    workers: usize,
) -> io::Result<(SocketAddr, Vec<std::net::TcpListener>)> {
    let mut sockets = Vec::with_capacity(workers);
    let mut bound = address;
    for _ in 0..workers {
        if !config.reuse_port && !sockets.is_empty() {
            // One socket for all workers: the kernel wakes one of those that wait.
            let first: &std::net::TcpListener = &sockets[0];
            sockets.push(first.try_clone()?);
            continue;
        }
        let socket = socket2::Socket::new(
            socket2::Domain::for_address(bound),
            socket2::Type::STREAM.nonblocking(),
            Some(socket2::Protocol::TCP),
        )?;
        let raw = SockRef::from(&socket);
        raw.set_reuse_address(true)?;
        if bound.is_ipv6() {
            let additional = position.checked_sub(1).map(|i| config.additional_addresses[i].ipv4_compat);
            raw.set_only_v6(!additional.unwrap_or(config.ipv4_compat))?;
        }
        raw.set_reuse_port(config.reuse_port)?;
        if config.transparent {
            raw.set_ip_transparent_v4(true)?;
        }
        if config.freebind {
            raw.set_freebind_v4(true)?;
        }
        let own =
            position.checked_sub(1).and_then(|i| config.additional_addresses[i].socket_options.as_ref());
        for option in own.unwrap_or(&config.socket_options) {
            set_socket_option(&raw, option)?;
        }
        socket.bind(&bound.into())?;
        socket.listen(backlog_of(config.tcp_backlog_size))?;
        let socket: std::net::TcpListener = socket.into();
        bound = socket.local_addr()?;
        sockets.push(socket);
    }
    Ok((bound, sockets))
}

struct Active<'a> {
    stats: &'a ListenerStats,
    since: Instant,
}

impl<'a> Active<'a> {
    fn new(stats: &'a ListenerStats) -> Self {
        stats.downstream_cx_active.inc();
        Self { stats, since: Instant::now() }
    }
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.stats.downstream_cx_active.dec();
        self.stats.downstream_cx_destroy.inc();
        self.stats.downstream_cx_length_ms.record(self.since.elapsed().as_millis() as u64);
    }
}
