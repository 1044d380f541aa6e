//! Active health checks of a cluster's endpoints, by the control thread: each endpoint is asked on its own clock.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ahash::AHashMap;
use arc_swap::ArcSwapOption;
use lateen_ir::{
    BindConfig, CheckedHealth, Cluster, ClusterLoadAssignment, Endpoint, EndpointAddress, HealthCheck,
    HealthHistory, HealthStatus, HealthVerdict, HostKey,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};

use crate::health_probe::Asker;
use crate::outlier::Detector;
use crate::snapshot::{Breakers, Transports};
use crate::stats::blocks::BlockReading;
use crate::stats::tls::TlsStats;

/// Results that wait to be taken in.
const QUEUE: usize = 64;

/// What checks say of a cluster's endpoints.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Checked(AHashMap<SocketAddr, CheckedHealth>);

impl Checked {
    /// What checks say of one; those not checked yet take no traffic.
    pub(crate) fn of(&self, address: SocketAddr) -> CheckedHealth {
        self.0.get(&address).copied().unwrap_or(CheckedHealth::PENDING)
    }

    /// Health of one with what the configuration says of it.
    pub(crate) fn health(&self, address: SocketAddr, configured: HealthStatus) -> HealthStatus {
        let checked = self.of(address);
        match configured {
            HealthStatus::Healthy | HealthStatus::Degraded if checked.failed => HealthStatus::Unhealthy,
            HealthStatus::Healthy if checked.degraded => HealthStatus::Degraded,
            configured => configured,
        }
    }

    /// Whether every endpoint was checked once.
    pub(crate) fn is_complete(&self, endpoints: &ClusterLoadAssignment) -> bool {
        sockets(endpoints).all(|(address, _)| self.0.contains_key(&address))
    }
}

/// Numbers of a cluster's checks, by their names in Envoy.
#[derive(Debug, Default)]
pub(crate) struct HealthStats {
    attempt: AtomicU64,
    success: AtomicU64,
    failure: AtomicU64,
    network_failure: AtomicU64,
    passive_failure: AtomicU64,
    healthy: AtomicU64,
    degraded: AtomicU64,
    /// The handshakes of checks.
    tls: Mutex<TlsStats>,
}

impl HealthStats {
    /// Names and values of counters.
    pub(crate) fn counters(&self) -> [(&'static str, u64); 6] {
        [
            ("health_check.attempt", self.attempt.load(Ordering::Relaxed)),
            ("health_check.success", self.success.load(Ordering::Relaxed)),
            ("health_check.failure", self.failure.load(Ordering::Relaxed)),
            ("health_check.network_failure", self.network_failure.load(Ordering::Relaxed)),
            ("health_check.passive_failure", self.passive_failure.load(Ordering::Relaxed)),
            // Endpoints are not asked who they are.
            ("health_check.verify_cluster", 0),
        ]
    }

    /// Names and values of gauges.
    pub(crate) fn gauges(&self) -> [(&'static str, u64); 2] {
        [
            ("health_check.healthy", self.healthy.load(Ordering::Relaxed)),
            ("health_check.degraded", self.degraded.load(Ordering::Relaxed)),
        ]
    }

    /// Counts into the numbers of handshakes. They are whole at every moment, so that a panic elsewhere does no harm.
    pub(crate) fn tls(&self) -> MutexGuard<'_, TlsStats> {
        self.tls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Numbers of handshakes.
    pub(crate) fn read_tls(&self) -> BlockReading {
        self.tls().read()
    }

    fn note(&self, checked: &Checked) {
        let count =
            |is: fn(&CheckedHealth) -> bool| checked.0.values().filter(|health| is(health)).count() as u64;
        self.healthy.store(count(|health| !health.failed), Ordering::Relaxed);
        self.degraded.store(count(|health| health.degraded), Ordering::Relaxed);
    }
}

/// A cluster whose endpoints are checked.
pub(crate) struct HealthTarget {
    /// Tells its results from those of an earlier version of the cluster.
    pub(crate) generation: u64,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) check: Box<HealthCheck>,
    pub(crate) stats: Arc<HealthStats>,
    /// Knows whether the cluster is in use.
    pub(crate) breakers: Arc<Breakers>,
    pub(crate) bind: Option<Arc<BindConfig>>,
    pub(crate) transports: Arc<Transports>,
    pub(crate) mark: Option<u32>,
    ejecting: Arc<ArcSwapOption<Detector>>,
    /// Endpoints that have told in an answer that they leave.
    leaving: mpsc::Receiver<SocketAddr>,
}

/// What a cluster's health checks are to everyone else.
#[derive(Clone)]
pub(crate) struct HealthView {
    pub(crate) checked: Arc<Checked>,
    pub(crate) stats: Arc<HealthStats>,
    ejecting: Arc<ArcSwapOption<Detector>>,
    leaving: mpsc::Sender<SocketAddr>,
}

impl HealthView {
    /// Checks that pass end this one's ejections.
    pub(crate) fn ejected_by(&self, detector: Option<Arc<Detector>>) {
        self.ejecting.store(detector);
    }

    /// An endpoint has told in an answer that it leaves (`x-envoy-immediate-health-check-fail`).
    pub(crate) fn leaves(&self, address: SocketAddr) {
        // Where so many have told it, its next answer will do.
        let _ = self.leaving.try_send(address);
    }
}

/// What changes in the checks of a cluster.
pub(crate) enum HealthChange {
    /// Begin, in place of what there was.
    Begin(Box<HealthTarget>, Arc<ClusterLoadAssignment>),
    /// These endpoints.
    Endpoints(Arc<ClusterLoadAssignment>),
    End,
}

/// What is known of a cluster that is checked.
struct Checks {
    /// The version of the cluster they are for.
    cluster: Arc<Cluster>,
    generation: u64,
    endpoints: Arc<ClusterLoadAssignment>,
    view: HealthView,
}

/// The clusters that are checked, and what is to change in that.
#[derive(Default)]
pub(crate) struct HealthChecks {
    clusters: AHashMap<Arc<str>, Checks>,
    generation: u64,
    /// To be carried out by the control thread.
    pub(crate) changes: Vec<(Arc<str>, HealthChange)>,
}

impl HealthChecks {
    /// Has a cluster's endpoints checked, as it says; the result is what is known so far.
    pub(crate) fn follow(
        &mut self,
        cluster: &Arc<Cluster>,
        endpoints: &Arc<ClusterLoadAssignment>,
        breakers: &Arc<Breakers>,
        bind: Option<&Arc<BindConfig>>,
        transports: &Arc<Transports>,
    ) -> Option<HealthView> {
        let name = &cluster.name;
        let Some(check) = &cluster.health_check else {
            if self.clusters.remove(name).is_some() {
                self.changes.push((name.clone(), HealthChange::End));
            }
            return None;
        };
        let known = self.clusters.get_mut(name).filter(|known| Arc::ptr_eq(&known.cluster, cluster));
        if let Some(known) = known {
            if known.endpoints != *endpoints {
                known.endpoints = endpoints.clone();
                self.changes.push((name.clone(), HealthChange::Endpoints(endpoints.clone())));
            }
            return Some(known.view.clone());
        }
        self.generation += 1;
        let (leaves, leaving) = mpsc::channel(QUEUE);
        let view = HealthView {
            checked: Arc::default(),
            // Counters go on where the cluster is another version of the same.
            stats: self.clusters.get(name).map(|before| before.view.stats.clone()).unwrap_or_default(),
            ejecting: Arc::default(),
            leaving: leaves,
        };
        let target = HealthTarget {
            generation: self.generation,
            cluster: cluster.clone(),
            check: check.clone(),
            stats: view.stats.clone(),
            breakers: breakers.clone(),
            bind: bind.cloned(),
            transports: transports.clone(),
            mark: None,
            ejecting: view.ejecting.clone(),
            leaving,
        };
        self.changes.push((name.clone(), HealthChange::Begin(Box::new(target), endpoints.clone())));
        let (cluster, endpoints, generation) = (cluster.clone(), endpoints.clone(), self.generation);
        self.clusters.insert(name.clone(), Checks { cluster, generation, endpoints, view: view.clone() });
        Some(view)
    }

    /// Takes results; false when they are of an earlier version of the cluster.
    pub(crate) fn take(&mut self, cluster: &str, generation: u64, checked: Checked) -> bool {
        let checks = self.clusters.get_mut(cluster).filter(|checks| checks.generation == generation);
        checks.map(|checks| checks.view.checked = Arc::new(checked)).is_some()
    }

    /// Ends the checks of other clusters.
    pub(crate) fn retain(&mut self, is_wanted: impl Fn(&str) -> bool) {
        let changes = &mut self.changes;
        self.clusters.retain(|name, _| {
            let stays = is_wanted(name);
            if !stays {
                changes.push((name.clone(), HealthChange::End));
            }
            stays
        });
    }
}

fn sockets(endpoints: &ClusterLoadAssignment) -> impl Iterator<Item = (SocketAddr, &Arc<Endpoint>)> {
    let all = endpoints.priorities.iter().flatten().flat_map(|locality| &locality.endpoints);
    all.filter_map(|endpoint| match endpoint.address {
        EndpointAddress::Socket(address) => Some((address, endpoint)),
        EndpointAddress::Pipe(_) | EndpointAddress::Name(..) => None,
    })
}

/// An endpoint that is being checked.
struct Session {
    task: AbortHandle,
    endpoint: Arc<Endpoint>,
    history: HealthHistory,
}

/// The result of one check; who asked is told how long to pause.
struct Asked {
    address: SocketAddr,
    verdict: HealthVerdict,
    pause: oneshot::Sender<Duration>,
}

/// The checks of a cluster's endpoints.
struct Following {
    target: Arc<HealthTarget>,
    sessions: AHashMap<SocketAddr, Session>,
    checked: Checked,
}

/// Checks endpoints until they are nobody's any more; tells `found` of every change.
pub(crate) async fn follow(
    mut target: HealthTarget,
    mut endpoints: watch::Receiver<Arc<ClusterLoadAssignment>>,
    mut found: impl FnMut(Checked),
) {
    // The other end is kept as long as the cluster is.
    let mut leaving = std::mem::replace(&mut target.leaving, mpsc::channel(1).1);
    let (news, mut arriving) = mpsc::channel(QUEUE);
    let mut tasks = JoinSet::new();
    let mut following =
        Following { target: Arc::new(target), sessions: AHashMap::new(), checked: Checked::default() };
    loop {
        let wanted = endpoints.borrow_and_update().clone();
        let target = following.target.clone();
        let changed = following.reconcile(&wanted, |address, endpoint| {
            tasks.spawn(check_endpoint(target.clone(), address, endpoint, news.clone()))
        });
        // What was aborted has nothing to say.
        while tasks.try_join_next().is_some() {}
        if changed {
            found(following.checked.clone());
        }
        loop {
            let changed = tokio::select! {
                changed = endpoints.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return,
                },
                Some(asked) = arriving.recv() => following.asked(asked),
                Some(address) = leaving.recv() => following.leaves(address),
            };
            if changed {
                found(following.checked.clone());
            }
        }
    }
}

impl Following {
    /// Begins and ends the checks of endpoints that came, went or are to be asked otherwise. True when that changes what is known.
    fn reconcile(
        &mut self,
        wanted: &ClusterLoadAssignment,
        mut begin: impl FnMut(SocketAddr, Arc<Endpoint>) -> AbortHandle,
    ) -> bool {
        let Self { target, sessions, checked } = self;
        let before = checked.clone();
        let wanted: AHashMap<SocketAddr, &Arc<Endpoint>> = sockets(wanted).collect();
        tracing::debug!(cluster = %target.cluster.name, endpoints = wanted.len(), "endpoints to check");
        checked.0.retain(|address, _| wanted.contains_key(address));
        let position = |endpoint: &Endpoint| target.cluster.transport_position(endpoint.metadata.as_deref());
        sessions.retain(|address, session| {
            let known = &session.endpoint;
            let stays = wanted.get(address).is_some_and(|endpoint| {
                endpoint.health_check == known.health_check
                    && endpoint.hostname == known.hostname
                    && position(endpoint) == position(known)
            });
            if !stays {
                session.task.abort();
                checked.0.remove(address);
            }
            stays
        });
        for (address, endpoint) in wanted {
            if endpoint.health_check.as_ref().is_some_and(|settings| settings.disabled) {
                checked.0.insert(address, CheckedHealth::HEALTHY);
            } else if !sessions.contains_key(&address) {
                let (task, history) = (begin(address, endpoint.clone()), HealthHistory::default());
                sessions.insert(address, Session { task, endpoint: endpoint.clone(), history });
            }
        }
        target.stats.note(checked);
        *checked != before
    }

    /// Takes the result of a check in. True when it changes what is known.
    fn asked(&mut self, asked: Asked) -> bool {
        let Asked { address, verdict, pause } = asked;
        // One that was aborted asks no more.
        let Some(session) = self.sessions.get_mut(&address).filter(|_| !pause.is_closed()) else {
            return false;
        };
        let Self { target, checked, .. } = self;
        let (check, stats) = (&target.check, &target.stats);
        let transition = session.history.note(check, verdict);
        let health = session.history.health();
        if verdict.passed() {
            count(&stats.success);
        } else {
            tracing::debug!(cluster = %target.cluster.name, endpoint = %address, ?verdict, "health check failed");
            count(&stats.failure);
        }
        if matches!(verdict, HealthVerdict::Unreachable | HealthVerdict::TimedOut) {
            count(&stats.network_failure);
        }
        if verdict.passed()
            && !health.failed
            && let Some(detector) = &*target.ejecting.load()
        {
            detector.health_check_passed(HostKey::Address(address), Instant::now());
        }
        let used = target.breakers.is_used();
        // An asker that is gone needs no answer.
        let _ = pause.send(check.pause(verdict.passed(), transition, used, &mut || fastrand::u64(..)));
        let changed = checked.0.insert(address, health) != Some(health);
        stats.note(checked);
        changed
    }

    /// An endpoint has told that it leaves, which is a failure at once. True when it changes what is known.
    fn leaves(&mut self, address: SocketAddr) -> bool {
        let Some(session) = self.sessions.get_mut(&address) else { return false };
        let (check, stats) = (&self.target.check, &self.target.stats);
        count(&stats.failure);
        count(&stats.passive_failure);
        session.history.note(check, HealthVerdict::Failed { retriable: false, leaving: true });
        let health = session.history.health();
        let changed = self.checked.0.insert(address, health) != Some(health);
        stats.note(&self.checked);
        changed
    }
}

async fn check_endpoint(
    target: Arc<HealthTarget>,
    address: SocketAddr,
    endpoint: Arc<Endpoint>,
    news: mpsc::Sender<Asked>,
) {
    let check = &target.check;
    let jitter = u64::try_from(check.initial_jitter.as_millis()).unwrap_or(u64::MAX);
    tokio::time::sleep(Duration::from_millis(fastrand::u64(..).checked_rem(jitter).unwrap_or(0))).await;
    let mut asker = Asker::new(&target, address, &endpoint);
    loop {
        count(&target.stats.attempt);
        let answer = tokio::time::timeout(check.timeout, asker.ask()).await;
        let verdict = answer.unwrap_or(HealthVerdict::TimedOut);
        let (pause, told) = oneshot::channel();
        if news.send(Asked { address, verdict, pause }).await.is_err() {
            return;
        }
        let Ok(pause) = told.await else { return };
        tokio::time::sleep(pause).await;
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
