//! The control thread: takes configuration in, drives warming and name look-ups, hands snapshots to the workers, and answers
//! the admin service. The request path never waits for it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ahash::AHashMap;
use lateen_ir::ClusterLoadAssignment;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::AbortHandle;

use crate::access_log::{LogBuffer, LogWriter};
use crate::admin;
use crate::dns;
use crate::engine::{EngineConfig, EngineError, EngineHandle};
use crate::health_check::{self, Checked, HealthChange, HealthTarget};
use crate::inspection::Inspection;
use crate::resolver::Resolvers;
use crate::store::Store;
use crate::timer;
use crate::update::{ApplyReport, ConfigUpdate, Subscriptions};
use crate::worker::{Identity, Worker, WorkerCommand};

/// Commands waiting for the control thread or a worker; senders wait beyond it.
const QUEUE: usize = 64;

/// What the control thread can be asked to do.
pub(crate) enum Command {
    Apply(ConfigUpdate, oneshot::Sender<ApplyReport>),
    Initialized(oneshot::Sender<()>),
    ListenerAddress(String, oneshot::Sender<Option<SocketAddr>>),
    /// Everything the admin service shows; true: the resources too.
    Inspect(bool, oneshot::Sender<Inspection>),
    /// `/healthcheck/fail` (true) and `/healthcheck/ok`.
    FailHealth(bool),
    ResetCounters,
    Drain(oneshot::Sender<()>),
    Shutdown(oneshot::Sender<()>),
}

/// The sending side of the control thread's command channel, and what it publishes.
#[derive(Clone)]
pub(crate) struct ControlHandle {
    commands: mpsc::Sender<Command>,
    subscriptions: watch::Receiver<Arc<Subscriptions>>,
    ready: watch::Receiver<bool>,
    admin: Option<SocketAddr>,
}

impl ControlHandle {
    async fn ask<T>(&self, make: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, EngineError> {
        ask(&self.commands, make).await.ok_or(EngineError::Stopped)
    }

    pub(crate) async fn apply(&self, update: ConfigUpdate) -> Result<ApplyReport, EngineError> {
        self.ask(|reply| Command::Apply(update, reply)).await
    }

    pub(crate) fn subscriptions(&self) -> watch::Receiver<Arc<Subscriptions>> {
        self.subscriptions.clone()
    }

    pub(crate) async fn initialized(&self) -> Result<(), EngineError> {
        self.ask(Command::Initialized).await
    }

    pub(crate) fn ready_watch(&self) -> watch::Receiver<bool> {
        self.ready.clone()
    }

    pub(crate) fn admin_address(&self) -> Option<SocketAddr> {
        self.admin
    }

    pub(crate) async fn listener_address(&self, name: &str) -> Option<SocketAddr> {
        self.ask(|reply| Command::ListenerAddress(name.to_owned(), reply)).await.ok().flatten()
    }

    pub(crate) async fn prometheus(&self) -> Result<String, EngineError> {
        let inspection = self.ask(|reply| Command::Inspect(false, reply)).await?;
        Ok(crate::stats::prometheus::text(&inspection.stats))
    }

    pub(crate) async fn drain(&self) -> Result<(), EngineError> {
        self.ask(Command::Drain).await
    }

    pub(crate) async fn shutdown(&self) {
        // A stopped engine is what was asked for.
        let _ = self.ask(Command::Shutdown).await;
    }
}

/// Sends a command and waits for its answer; `None` when the engine has stopped.
pub(crate) async fn ask<T>(
    commands: &mpsc::Sender<Command>,
    make: impl FnOnce(oneshot::Sender<T>) -> Command,
) -> Option<T> {
    let (reply, answer) = oneshot::channel();
    commands.send(make(reply)).await.ok()?;
    answer.await.ok()
}

/// Starts the threads of an engine.
pub(crate) fn start(config: EngineConfig) -> Result<EngineHandle, EngineError> {
    let admin_socket = config.admin.map(bind_admin).transpose()?;
    let admin = admin_socket.as_ref().and_then(|socket| socket.local_addr().ok());
    let count = match config.concurrency {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    };
    let identity = Arc::new(Identity {
        hostname: nix::unistd::gethostname()
            .ok()
            .and_then(|name| name.into_string().ok())
            .unwrap_or_default()
            .into(),
        node: config.node.id.clone().into(),
        cluster: config.node.cluster.clone().into(),
        address: Some(own_address()),
    });
    let thread_error = |name: &str| {
        let name = name.to_owned();
        move |source| EngineError::Thread { name, source }
    };
    let (log, log_thread) = LogWriter::start().map_err(thread_error("lateen-log"))?;
    let mut workers = Vec::new();
    let mut threads = vec![log_thread];
    for index in 0..count {
        let name = format!("lateen-w{index}");
        let (commands, receiver) = mpsc::channel(QUEUE);
        let runtime = runtime().map_err(thread_error(&name))?;
        let (identity, log) = (identity.clone(), log.clone());
        let (mark, drain_time) = (config.mark, config.drain_time);
        let serve = move || {
            let local = tokio::task::LocalSet::new();
            local.block_on(&runtime, async move {
                Worker::new(index, identity, mark, drain_time, LogBuffer::new(log)).run(receiver).await;
            });
        };
        let thread =
            std::thread::Builder::new().name(name.clone()).spawn(serve).map_err(thread_error(&name))?;
        threads.push(thread);
        workers.push(commands);
    }
    let (commands, receiver) = mpsc::channel(QUEUE);
    let (subscriptions, subscriptions_seen) = watch::channel(Arc::<Subscriptions>::default());
    let (ready, ready_seen) = watch::channel(false);
    let control_runtime = runtime().map_err(thread_error("lateen-control"))?;
    let weak = commands.downgrade();
    let shared = Arc::new(config);
    let run = move || {
        let stopped = control_runtime.block_on(async {
            if let Some(socket) = admin_socket {
                tokio::spawn(admin::serve(socket, weak, shared.clone(), ready.subscribe()));
            }
            Control::new(shared, workers, subscriptions, ready, log).run(receiver).await
        });
        // Workers end when their channels close, the log's thread after them.
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread of the engine panicked");
            }
        }
        if let Some(reply) = stopped {
            let _ = reply.send(());
        }
    };
    std::thread::Builder::new()
        .name("lateen-control".into())
        .spawn(run)
        .map_err(thread_error("lateen-control"))?;
    let control = ControlHandle { commands, subscriptions: subscriptions_seen, ready: ready_seen, admin };
    Ok(EngineHandle { control })
}

/// Envoy's "local address": the first IPv4 address that is not loopback, if there is one.
fn own_address() -> IpAddr {
    let addresses = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let mut addresses =
        addresses.filter_map(|interface| Some(IpAddr::V4(interface.address?.as_sockaddr_in()?.ip())));
    addresses.find(|address| !address.is_loopback()).unwrap_or(Ipv4Addr::LOCALHOST.into())
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

fn bind_admin(address: SocketAddr) -> Result<std::net::TcpListener, EngineError> {
    let bind = || {
        let socket = std::net::TcpListener::bind(address)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    bind().map_err(|source| EngineError::Admin { address, source })
}

/// A look-up's answer, with the generation of the cluster it was for.
type Resolved = (Arc<str>, ClusterLoadAssignment);

/// What health checks say of a cluster of this generation.
type CheckResult = (Arc<str>, u64, Checked);

/// A cluster whose endpoints are checked as long as this is there.
struct Checking {
    endpoints: watch::Sender<Arc<ClusterLoadAssignment>>,
}

struct Control {
    config: Arc<EngineConfig>,
    store: Store,
    workers: Vec<mpsc::Sender<WorkerCommand>>,
    subscriptions: watch::Sender<Arc<Subscriptions>>,
    ready: watch::Sender<bool>,
    log: LogWriter,
    lookups: AHashMap<Arc<str>, AbortHandle>,
    resolvers: Resolvers,
    /// Clusters whose endpoints are checked.
    checks: AHashMap<Arc<str>, Checking>,
    checked: mpsc::Sender<CheckResult>,
    check_results: mpsc::Receiver<CheckResult>,
    resolved: mpsc::Sender<Resolved>,
    resolutions: mpsc::Receiver<Resolved>,
    /// A first fetch of keys is over.
    fetched: Arc<Notify>,
    initialized: bool,
    live: bool,
    healthy: bool,
    draining: bool,
    started: Instant,
    updates: u64,
}

impl Control {
    fn new(
        config: Arc<EngineConfig>,
        workers: Vec<mpsc::Sender<WorkerCommand>>,
        subscriptions: watch::Sender<Arc<Subscriptions>>,
        ready: watch::Sender<bool>,
        log: LogWriter,
    ) -> Self {
        let (resolved, resolutions) = mpsc::channel(QUEUE);
        let (checked, check_results) = mpsc::channel(QUEUE);
        let mut store = Store::new(workers.len(), config.agent_secrets);
        store.default_bind = config.bootstrap.as_ref().and_then(|bootstrap| {
            let bootstrap = lateen_ir::Bootstrap::from_bytes(&bootstrap.value).ok()?;
            bootstrap.upstream_bind.map(Arc::new)
        });
        Self {
            config,
            store,
            workers,
            subscriptions,
            ready,
            log,
            lookups: AHashMap::new(),
            resolvers: Resolvers::default(),
            checks: AHashMap::new(),
            checked,
            check_results,
            resolved,
            resolutions,
            fetched: Arc::default(),
            initialized: false,
            live: false,
            healthy: true,
            draining: false,
            started: Instant::now(),
            updates: 0,
        }
    }

    /// Serves commands until shut down or every handle is gone.
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) -> Option<oneshot::Sender<()>> {
        let mut next: Option<Instant> = None;
        loop {
            tokio::select! {
                command = commands.recv() => match command {
                    None => return None,
                    Some(Command::Shutdown(reply)) => {
                        for worker in &self.workers {
                            // A worker that is gone has stopped already.
                            let _ = worker.send(WorkerCommand::Stop).await;
                        }
                        return Some(reply);
                    }
                    Some(Command::Apply(update, reply)) => {
                        let report = self.store.apply(update, Instant::now());
                        next = self.publish().await;
                        let _ = reply.send(report);
                    }
                    Some(command) => self.obey(command).await,
                },
                Some((cluster, assignment)) = self.resolutions.recv() => {
                    self.store.resolved(&cluster, assignment);
                    next = self.publish().await;
                }
                Some((cluster, generation, checked)) = self.check_results.recv() => {
                    self.store.checked(&cluster, generation, checked);
                    next = self.publish().await;
                }
                () = self.fetched.notified() => next = self.publish().await,
                () = timer::until(next) => next = self.publish().await,
            }
        }
    }

    async fn obey(&mut self, command: Command) {
        // An asker that is gone needs no answer.
        match command {
            Command::Initialized(reply) => {
                self.initialized = true;
                self.begin_fetches().await;
                self.update_ready();
                let _ = reply.send(());
            }
            Command::ListenerAddress(name, reply) => {
                let _ = reply.send(self.store.bound_address(&name));
            }
            Command::Inspect(with_resources, reply) => {
                let _ = reply.send(self.inspect(with_resources).await);
            }
            Command::FailHealth(failed) => {
                self.healthy = !failed;
                self.update_ready();
            }
            Command::ResetCounters => {
                let detectors = self.store.active_clusters().filter_map(|cluster| cluster.outlier.as_ref());
                detectors.for_each(|detector| detector.reset_counts());
                self.store.dns_caches().for_each(|cache| cache.reset_counters());
                for worker in &self.workers {
                    let _ = worker.send(WorkerCommand::ResetCounters).await;
                }
            }
            Command::Drain(reply) => self.drain(reply).await,
            Command::Apply(..) | Command::Shutdown(_) => {}
        }
    }

    /// Gives every worker the configuration now in effect.
    async fn publish(&mut self) -> Option<Instant> {
        let next = self.store.settle(Instant::now());
        self.follow_names();
        self.follow_health();
        let (snapshot, sockets) = self.store.snapshot();
        self.updates += 1;
        let mut waiting = Vec::new();
        for (worker, sockets) in self.workers.iter().zip(sockets) {
            let (done, wait) = oneshot::channel();
            if worker.send(WorkerCommand::Configure(snapshot.clone(), sockets, done)).await.is_ok() {
                waiting.push(wait);
            }
        }
        for wait in waiting {
            let _ = wait.await;
        }
        self.begin_fetches().await;
        let wanted = self.store.subscriptions();
        self.subscriptions.send_if_modified(|known| {
            let changed = !Arc::ptr_eq(known, wanted) && known != wanted;
            known.clone_from(wanted);
            changed
        });
        self.update_ready();
        next
    }

    /// The first worker fetches keys for all.
    async fn begin_fetches(&mut self) {
        for fetch in self.store.fetches_to_begin(self.initialized, self.live) {
            if let Some(worker) = self.workers.first() {
                // A worker that is gone serves nobody.
                let _ = worker.send(WorkerCommand::FetchKeys(fetch, self.fetched.clone())).await;
            }
        }
    }

    fn follow_names(&mut self) {
        for (name, cluster) in std::mem::take(&mut self.store.dns_changes) {
            if let Some(old) = self.lookups.remove(&name) {
                old.abort();
            }
            let Some(cluster) = cluster else { continue };
            let (resolved, key) = (self.resolved.clone(), name.clone());
            let resolver = self.resolvers.of(cluster.dns.resolver.as_ref());
            let (found, mut results) = watch::channel(None);
            // The newest answer is the only one that counts, so a slow control thread skips the others.
            let send = async move {
                while results.changed().await.is_ok() {
                    let result: Option<ClusterLoadAssignment> = results.borrow_and_update().clone();
                    if let Some(result) = result
                        && resolved.send((key.clone(), result)).await.is_err()
                    {
                        return;
                    }
                }
            };
            let task = tokio::spawn(async move {
                let follow = dns::follow(cluster, resolver, move |assignment| {
                    found.send_replace(Some(assignment));
                });
                tokio::join!(follow, send);
            });
            self.lookups.insert(name, task.abort_handle());
        }
    }

    fn follow_health(&mut self) {
        for (name, change) in std::mem::take(&mut self.store.health.changes) {
            match change {
                HealthChange::Begin(mut target, endpoints) => {
                    target.mark = self.config.mark;
                    let checking = self.check(name.clone(), *target, endpoints);
                    self.checks.insert(name, checking);
                }
                HealthChange::Endpoints(endpoints) => {
                    if let Some(checking) = self.checks.get(&name) {
                        checking.endpoints.send_replace(endpoints);
                    }
                }
                // What checks end with the last sender.
                HealthChange::End => drop(self.checks.remove(&name)),
            }
        }
    }

    fn check(&self, name: Arc<str>, target: HealthTarget, endpoints: Arc<ClusterLoadAssignment>) -> Checking {
        let (endpoints, wanted) = watch::channel(endpoints);
        let (checked, generation) = (self.checked.clone(), target.generation);
        let (found, mut results) = watch::channel(None);
        // As with names: only the newest counts.
        let send = async move {
            while results.changed().await.is_ok() {
                let result: Option<Checked> = results.borrow_and_update().clone();
                if let Some(result) = result
                    && checked.send((name.clone(), generation, result)).await.is_err()
                {
                    return;
                }
            }
        };
        tokio::spawn(async move {
            let follow = health_check::follow(target, wanted, move |checked| {
                found.send_replace(Some(checked));
            });
            tokio::join!(follow, send);
        });
        Checking { endpoints }
    }

    fn update_ready(&mut self) {
        self.live |= self.initialized && self.store.is_warm();
        let ready = self.live && self.healthy && !self.draining;
        self.ready.send_if_modified(|known| std::mem::replace(known, ready) != ready);
    }

    async fn drain(&mut self, reply: oneshot::Sender<()>) {
        self.draining = true;
        self.update_ready();
        let mut waiting = Vec::new();
        for worker in &self.workers {
            let (done, wait) = oneshot::channel();
            if worker.send(WorkerCommand::Drain(done)).await.is_ok() {
                waiting.push(wait);
            }
        }
        let limit = self.config.drain_time;
        // Not here: commands must be served while connections finish.
        tokio::spawn(async move {
            let all = async {
                for wait in waiting {
                    let _ = wait.await;
                }
            };
            let _ = tokio::time::timeout(limit, all).await;
            let _ = reply.send(());
        });
    }

    async fn inspect(&mut self, with_resources: bool) -> Inspection {
        let (mut stats, mut hosts) = (Vec::new(), Vec::new());
        for worker in &self.workers {
            let (reply, answer) = oneshot::channel();
            let (reply_hosts, answer_hosts) = oneshot::channel();
            let _ = worker.send(WorkerCommand::ReadStats(reply)).await;
            let _ = worker.send(WorkerCommand::ReadHosts(reply_hosts)).await;
            stats.push(answer);
            hosts.push(answer_hosts);
        }
        // A worker always answers soon; the limit keeps the control thread from waiting for one that panicked.
        let limit = Duration::from_secs(5);
        let mut readings = Vec::new();
        for answer in stats {
            readings.extend(tokio::time::timeout(limit, answer).await.ok().and_then(Result::ok));
        }
        let mut host_readings = Vec::new();
        for answer in hosts {
            host_readings.extend(
                tokio::time::timeout(limit, answer).await.ok().and_then(Result::ok).unwrap_or_default(),
            );
        }
        Inspection::new(
            &self.store,
            readings,
            host_readings,
            crate::inspection::ServerFacts {
                concurrency: self.workers.len(),
                uptime: self.started.elapsed(),
                live: self.live,
                initialized: self.initialized,
                draining: self.draining,
                healthy: self.healthy,
                updates: self.updates,
                log_bytes_dropped: self.log.dropped(),
            },
            with_resources,
        )
    }
}
