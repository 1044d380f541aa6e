//! A worker: one thread, one runtime, and everything its connections use. Nothing here is shared with other threads.

use std::cell::{Cell, OnceCell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ahash::AHashMap;
use tokio::sync::{Notify, mpsc, oneshot};

use crate::access_log::LogBuffer;
use crate::cluster::LocalCluster;
use crate::date::Date;
use crate::filters::NewFetch;
use crate::host::Host;
use crate::listen::{Listening, LocalListener};
use crate::signal::Signal;
use crate::snapshot::{ClusterSlot, Snapshot, StatSlot};
use crate::stats::arena::{ArenaReading, StatsArena};
use crate::stats::blocks::RouteStats;
use crate::timer;

/// Lines of access log wait at most so long for company.
const LOG_FLUSH: Duration = Duration::from_millis(100);

/// Between looks at idle connections and ejected hosts.
const SWEEP: Duration = Duration::from_secs(1);

/// Fixed facts about this proxy.
#[derive(Debug, Default)]
pub(crate) struct Identity {
    pub(crate) hostname: Box<str>,
    /// `node.id`.
    pub(crate) node: Box<str>,
    /// `node.cluster`.
    pub(crate) cluster: Box<str>,
    /// First IPv4 address of the machine that is not loopback, if it has one.
    pub(crate) address: Option<std::net::IpAddr>,
}

/// A socket for a worker: listener name, position among the listener's addresses, the socket.
pub(crate) type NewSocket = (Arc<str>, usize, Listening);

/// What the control thread asks of a worker.
pub(crate) enum WorkerCommand {
    /// Use this configuration; take these sockets.
    Configure(Arc<Snapshot>, Vec<NewSocket>, oneshot::Sender<()>),
    /// Copy the stats out.
    ReadStats(oneshot::Sender<ArenaReading>),
    /// Copy host numbers out.
    ReadHosts(oneshot::Sender<Vec<HostReading>>),
    ResetCounters,
    /// Fetch keys for all workers, and tell of the first end.
    FetchKeys(NewFetch, Arc<Notify>),
    /// Finish what is running, then answer.
    Drain(oneshot::Sender<()>),
    Stop,
}

/// One host's numbers in one worker.
#[derive(Clone, Debug)]
pub(crate) struct HostReading {
    pub(crate) cluster: Arc<str>,
    pub(crate) address: lateen_ir::HostAddress,
    /// Of one that was found by its name.
    pub(crate) name: Option<Arc<str>>,
    /// With outlier detection.
    pub(crate) watched: Option<lateen_ir::HostKey>,
    pub(crate) ejected: bool,
    /// In the order of [`HOST_STATS`].
    pub(crate) numbers: [u64; HOST_STATS.len()],
}

/// Names and kinds (true: gauge) of a host's numbers in `/clusters`.
pub(crate) const HOST_STATS: [(&str, bool); 9] = [
    ("cx_active", true),
    ("cx_connect_fail", false),
    ("cx_total", false),
    ("rq_active", true),
    ("rq_error", false),
    ("rq_pending_active", true),
    ("rq_success", false),
    ("rq_timeout", false),
    ("rq_total", false),
];

/// One generation of configuration as a worker uses it. Clusters get their local side with the first use.
pub(crate) struct View {
    pub(crate) snapshot: Arc<Snapshot>,
    clusters: Vec<OnceCell<Rc<LocalCluster>>>,
    route_stats: Vec<OnceCell<Rc<RouteStats>>>,
}

impl View {
    fn new(snapshot: Arc<Snapshot>) -> Self {
        let clusters = (0..snapshot.clusters.len()).map(|_| OnceCell::new()).collect();
        let route_stats = (0..snapshot.route_stats.len()).map(|_| OnceCell::new()).collect();
        Self { snapshot, clusters, route_stats }
    }

    /// What routes count under a name.
    pub(crate) fn route_stats(
        &self,
        slot: StatSlot,
        name: &Arc<str>,
        worker: &Worker,
    ) -> Option<Rc<RouteStats>> {
        let cell = self.route_stats.get(slot as usize)?;
        Some(cell.get_or_init(|| worker.stats.route(name)).clone())
    }

    /// The cluster in a slot; `None` when there is none (any more).
    pub(crate) fn cluster(&self, slot: ClusterSlot, worker: &Worker) -> Option<Rc<LocalCluster>> {
        let cell = self.clusters.get(slot as usize)?;
        if let Some(cluster) = cell.get() {
            return Some(cluster.clone());
        }
        let config = self.snapshot.cluster(slot)?;
        let make = || {
            let stats = worker.stats.cluster(&config.stat_name);
            Rc::new(LocalCluster::new(config.clone(), stats, None, worker.random()))
        };
        Some(cell.get_or_init(make).clone())
    }

    /// The cluster with a name.
    pub(crate) fn cluster_named(&self, name: &str, worker: &Worker) -> Option<Rc<LocalCluster>> {
        self.cluster(*self.snapshot.cluster_slots.get(name)?, worker)
    }

    fn used(&self) -> impl Iterator<Item = &Rc<LocalCluster>> {
        self.clusters.iter().filter_map(OnceCell::get)
    }
}

/// See the module.
pub(crate) struct Worker {
    pub(crate) identity: Arc<Identity>,
    pub(crate) mark: Option<u32>,
    pub(crate) drain_time: Duration,
    pub(crate) stats: StatsArena,
    log: LogBuffer,
    view: RefCell<Rc<View>>,
    pub(crate) date: Date,
    random: RefCell<fastrand::Rng>,
    next_id: Cell<u64>,
    /// Reused for formatting.
    scratch: RefCell<String>,
    listeners: RefCell<AHashMap<Arc<str>, Rc<LocalListener>>>,
    /// The same by configured address, for redirected connections.
    by_address: RefCell<AHashMap<SocketAddr, Rc<LocalListener>>>,
    /// Fired when the whole engine drains.
    pub(crate) draining: Signal,
    connections: Cell<usize>,
    last_gone: RefCell<Signal>,
}

impl Worker {
    pub(crate) fn new(
        index: usize,
        identity: Arc<Identity>,
        mark: Option<u32>,
        drain_time: Duration,
        log: LogBuffer,
    ) -> Rc<Self> {
        Rc::new(Self {
            identity,
            mark,
            drain_time,
            stats: StatsArena::default(),
            log,
            view: RefCell::new(Rc::new(View::new(Arc::default()))),
            date: Date::default(),
            random: RefCell::default(),
            // Connection ids are unique over workers: the high bits are the worker's.
            next_id: Cell::new((index as u64) << 48),
            scratch: RefCell::default(),
            listeners: RefCell::default(),
            by_address: RefCell::default(),
            draining: Signal::default(),
            connections: Cell::new(0),
            last_gone: RefCell::default(),
        })
    }

    /// Serves until told to stop (or the control thread is gone).
    pub(crate) async fn run(self: Rc<Self>, mut commands: mpsc::Receiver<WorkerCommand>) {
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let judgement = self.next_judgement();
            tokio::select! {
                command = commands.recv() => match command {
                    None | Some(WorkerCommand::Stop) => break,
                    Some(command) => self.obey(command),
                },
                _ = sweep.tick() => {
                    let now = Instant::now();
                    let view = self.view();
                    view.used().for_each(|cluster| cluster.sweep(now));
                }
                () = timer::until(judgement) => {
                    let now = Instant::now();
                    self.view().used().filter_map(|cluster| cluster.config.outlier.as_ref()).for_each(
                        |detector| detector.judge(&mut || self.random(), now),
                    );
                }
            }
        }
        self.log.flush();
    }

    /// When the first interval of outlier detection ends. Clusters nobody used have nothing to judge.
    fn next_judgement(&self) -> Option<Instant> {
        let view = self.view();
        view.used().filter_map(|cluster| Some(cluster.config.outlier.as_ref()?.next())).min()
    }

    fn obey(self: &Rc<Self>, command: WorkerCommand) {
        // An asker that is gone needs no answer.
        match command {
            WorkerCommand::Configure(snapshot, sockets, done) => {
                self.configure(snapshot, sockets);
                let _ = done.send(());
            }
            WorkerCommand::ReadStats(reply) => {
                let _ = reply.send(self.stats.read());
            }
            WorkerCommand::ReadHosts(reply) => {
                let _ = reply.send(self.read_hosts());
            }
            WorkerCommand::ResetCounters => self.stats.reset_counters(),
            WorkerCommand::FetchKeys(fetch, over) => {
                tokio::task::spawn_local(fetch.run(self.clone(), over));
            }
            WorkerCommand::Drain(done) => {
                self.draining.fire();
                self.listeners.borrow().values().for_each(|listener| listener.drain());
                let worker = self.clone();
                tokio::task::spawn_local(async move {
                    worker.no_connections().await;
                    let _ = done.send(());
                });
            }
            WorkerCommand::Stop => {}
        }
    }

    fn configure(self: &Rc<Self>, snapshot: Arc<Snapshot>, sockets: Vec<NewSocket>) {
        let before = self.view();
        let after = Rc::new(View::new(snapshot.clone()));
        for (slot, cell) in before.clusters.iter().enumerate() {
            let Some(local) = cell.get() else { continue };
            let local = match snapshot.cluster(slot as ClusterSlot) {
                None => {
                    local.retire();
                    continue;
                }
                Some(config) if Arc::ptr_eq(config, &local.config) => local.clone(),
                Some(config) => {
                    let stats = self.stats.cluster(&config.stat_name);
                    Rc::new(LocalCluster::new(config.clone(), stats, Some(local), self.random()))
                }
            };
            // The cell is new and empty.
            let _ = after.clusters[slot].set(local);
        }
        for (slot, cell) in before.route_stats.iter().enumerate() {
            if let (Some(stats), Some(Some(_))) = (cell.get(), snapshot.route_stats.get(slot)) {
                // The cell is new and empty.
                let _ = after.route_stats[slot].set(stats.clone());
            }
        }
        *self.view.borrow_mut() = after;
        tracing::debug!(version = snapshot.version, "configuration in effect");
        self.configure_listeners(&snapshot, sockets);
    }

    fn configure_listeners(self: &Rc<Self>, snapshot: &Snapshot, sockets: Vec<NewSocket>) {
        let mut listeners = self.listeners.borrow_mut();
        let wanted: ahash::AHashSet<&Arc<str>> =
            snapshot.listeners.iter().map(|config| &config.ir.name).collect();
        listeners.retain(|name, listener| {
            let stays = wanted.contains(name);
            if !stays {
                listener.close();
            }
            stays
        });
        for config in &snapshot.listeners {
            match listeners.get(&config.ir.name) {
                Some(listener) => listener.update(config, self),
                None => {
                    listeners.insert(config.ir.name.clone(), LocalListener::new(config, self));
                }
            }
        }
        *self.by_address.borrow_mut() = listeners
            .values()
            .flat_map(|listener| listener.addresses().into_iter().map(|address| (address, listener.clone())))
            .collect();
        for (name, position, socket) in sockets {
            if let Some(listener) = listeners.get(&name) {
                LocalListener::take_socket(listener, position, socket, self);
            }
        }
    }

    /// Configuration in effect now.
    pub(crate) fn view(&self) -> Rc<View> {
        self.view.borrow().clone()
    }

    /// The listener a redirected connection belongs to: exact address first, then any address of the family with the port.
    pub(crate) fn listener_for(&self, destination: SocketAddr) -> Option<Rc<LocalListener>> {
        let by_address = self.by_address.borrow();
        lateen_ir::listener_addresses(destination).find_map(|address| by_address.get(&address)).cloned()
    }

    pub(crate) fn random(&self) -> u64 {
        self.random.borrow_mut().u64(..)
    }

    pub(crate) fn connection_id(&self) -> u64 {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        id
    }

    /// Formats with the worker's buffer and adds the line to a log.
    pub(crate) fn log_line(self: &Rc<Self>, sink: &lateen_ir::LogSink, format: impl FnOnce(&mut String)) {
        let mut line = self.scratch.borrow_mut();
        line.clear();
        format(&mut line);
        if self.log.add(sink, &line) {
            let worker = self.clone();
            tokio::task::spawn_local(async move {
                tokio::time::sleep(LOG_FLUSH).await;
                worker.log.flush();
            });
        }
    }

    pub(crate) fn connection_began(self: &Rc<Self>) -> ConnectionCount {
        self.connections.set(self.connections.get() + 1);
        ConnectionCount(self.clone())
    }

    async fn no_connections(&self) {
        while self.connections.get() > 0 {
            let gone = self.last_gone.borrow().clone();
            gone.fired().await;
        }
    }

    fn read_hosts(&self) -> Vec<HostReading> {
        let view = self.view();
        let read = |cluster: &LocalCluster, host: &Host| {
            let stats = &host.stats;
            HostReading {
                cluster: cluster.config.ir.name.clone(),
                address: host.address.clone(),
                name: cluster.config.dns_cache.as_ref().and_then(|_| host.endpoint.borrow().hostname.clone()),
                watched: host.monitor.as_ref().map(|monitor| monitor.host),
                ejected: host.is_ejected(),
                numbers: [
                    stats.cx_active.get(),
                    stats.cx_connect_fail.get(),
                    stats.cx_total.get(),
                    stats.rq_active.get(),
                    stats.rq_error.get(),
                    stats.rq_pending_active.get(),
                    stats.rq_success.get(),
                    stats.rq_timeout.get(),
                    stats.rq_total.get(),
                ],
            }
        };
        view.used()
            .flat_map(|cluster| cluster.hosts().into_iter().map(move |host| read(cluster, &host)))
            .collect()
    }
}

/// Counts a downstream connection until dropped.
pub(crate) struct ConnectionCount(Rc<Worker>);

impl Drop for ConnectionCount {
    fn drop(&mut self) {
        let left = self.0.connections.get() - 1;
        self.0.connections.set(left);
        if left == 0 {
            self.0.last_gone.take().fire();
        }
    }
}
