//! Active health checks of a cluster's endpoints, by the control thread: each endpoint is asked on its own clock.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ahash::AHashMap;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use lateen_ir::{
    BindConfig, CheckedHealth, Cluster, ClusterLoadAssignment, Endpoint, EndpointAddress,
    EndpointHealthCheck, HealthCheck, HealthHistory, HealthProbe, HealthStatus, HealthVerdict, HttpProbe,
    TcpKeepalive, TcpProbe,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

use crate::dial::{DialOptions, dial};
use crate::snapshot::Breakers;

/// An answer to a TCP check that is longer is no answer.
const MOST_RECEIVED: usize = 64 * 1024;

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
    healthy: AtomicU64,
    degraded: AtomicU64,
}

impl HealthStats {
    /// Names and values of counters.
    pub(crate) fn counters(&self) -> [(&'static str, u64); 6] {
        [
            ("health_check.attempt", self.attempt.load(Ordering::Relaxed)),
            ("health_check.success", self.success.load(Ordering::Relaxed)),
            ("health_check.failure", self.failure.load(Ordering::Relaxed)),
            ("health_check.network_failure", self.network_failure.load(Ordering::Relaxed)),
            // Endpoints do not tell of themselves in answers, and are not asked who they are.
            ("health_check.passive_failure", 0),
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

    fn note(&self, checked: &Checked) {
        let count =
            |is: fn(&CheckedHealth) -> bool| checked.0.values().filter(|health| is(health)).count() as u64;
        self.healthy.store(count(|health| !health.failed), Ordering::Relaxed);
        self.degraded.store(count(|health| health.degraded), Ordering::Relaxed);
    }
}

/// A cluster whose endpoints are checked.
#[derive(Clone)]
pub(crate) struct HealthTarget {
    /// Tells its results from those of an earlier version of the cluster.
    pub(crate) generation: u64,
    pub(crate) cluster: Arc<str>,
    pub(crate) check: HealthCheck,
    pub(crate) stats: Arc<HealthStats>,
    /// Knows whether the cluster is in use.
    pub(crate) breakers: Arc<Breakers>,
    pub(crate) bind: Option<Arc<BindConfig>>,
    pub(crate) keepalive: Option<TcpKeepalive>,
    pub(crate) mark: Option<u32>,
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
    checked: Arc<Checked>,
    stats: Arc<HealthStats>,
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
    ) -> Option<(Arc<Checked>, Arc<HealthStats>)> {
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
            return Some((known.checked.clone(), known.stats.clone()));
        }
        self.generation += 1;
        let checks = Checks {
            cluster: cluster.clone(),
            generation: self.generation,
            endpoints: endpoints.clone(),
            checked: Arc::default(),
            // Counters go on where the cluster is another version of the same.
            stats: self.clusters.get(name).map(|before| before.stats.clone()).unwrap_or_default(),
        };
        let target = HealthTarget {
            generation: self.generation,
            cluster: name.clone(),
            check: check.clone(),
            stats: checks.stats.clone(),
            breakers: breakers.clone(),
            bind: bind.cloned(),
            keepalive: cluster.tcp_keepalive,
            mark: None,
        };
        self.changes.push((name.clone(), HealthChange::Begin(Box::new(target), endpoints.clone())));
        let result = (checks.checked.clone(), checks.stats.clone());
        self.clusters.insert(name.clone(), checks);
        Some(result)
    }

    /// Takes results; false when they are of an earlier version of the cluster.
    pub(crate) fn take(&mut self, cluster: &str, generation: u64, checked: Checked) -> bool {
        let checks = self.clusters.get_mut(cluster).filter(|checks| checks.generation == generation);
        checks.map(|checks| checks.checked = Arc::new(checked)).is_some()
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
    settings: Option<Arc<EndpointHealthCheck>>,
}

type News = (SocketAddr, CheckedHealth);

/// Checks endpoints until they are nobody's any more; tells `found` of every change.
pub(crate) async fn follow(
    target: HealthTarget,
    mut endpoints: watch::Receiver<Arc<ClusterLoadAssignment>>,
    mut found: impl FnMut(Checked),
) {
    let target = Arc::new(target);
    let (news, mut arriving) = mpsc::channel(64);
    let mut tasks = JoinSet::new();
    let mut sessions: AHashMap<SocketAddr, Session> = AHashMap::new();
    let mut checked = Checked::default();
    loop {
        let wanted = endpoints.borrow_and_update().clone();
        let before = checked.clone();
        reconcile(&target, &wanted, &mut sessions, &mut checked, |address, settings| {
            tasks.spawn(check_endpoint(target.clone(), address, settings, news.clone()))
        });
        // What was aborted has nothing to say.
        while tasks.try_join_next().is_some() {}
        target.stats.note(&checked);
        if checked != before {
            found(checked.clone());
        }
        loop {
            tokio::select! {
                changed = endpoints.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return,
                },
                Some((address, health)) = arriving.recv() => {
                    if sessions.contains_key(&address) {
                        checked.0.insert(address, health);
                        target.stats.note(&checked);
                        found(checked.clone());
                    }
                }
            }
        }
    }
}

/// Begins and ends the checks of endpoints that came, went or are to be asked otherwise.
fn reconcile(
    target: &HealthTarget,
    wanted: &ClusterLoadAssignment,
    sessions: &mut AHashMap<SocketAddr, Session>,
    checked: &mut Checked,
    mut begin: impl FnMut(SocketAddr, Option<Arc<EndpointHealthCheck>>) -> AbortHandle,
) {
    let wanted: AHashMap<SocketAddr, &Arc<Endpoint>> = sockets(wanted).collect();
    tracing::debug!(cluster = %target.cluster, endpoints = wanted.len(), "endpoints to check");
    checked.0.retain(|address, _| wanted.contains_key(address));
    sessions.retain(|address, session| {
        let stays = wanted.get(address).is_some_and(|endpoint| endpoint.health_check == session.settings);
        if !stays {
            session.task.abort();
            checked.0.remove(address);
        }
        stays
    });
    for (address, endpoint) in wanted {
        let settings = &endpoint.health_check;
        if settings.as_ref().is_some_and(|settings| settings.disabled) {
            checked.0.insert(address, CheckedHealth::HEALTHY);
        } else if !sessions.contains_key(&address) {
            let task = begin(address, settings.clone());
            sessions.insert(address, Session { task, settings: settings.clone() });
        }
    }
}

/// A connection kept for the next check.
enum Kept {
    Http(http1::SendRequest<Empty<Bytes>>),
    Tcp(TcpStream),
}

async fn check_endpoint(
    target: Arc<HealthTarget>,
    address: SocketAddr,
    settings: Option<Arc<EndpointHealthCheck>>,
    news: mpsc::Sender<News>,
) {
    let (check, stats) = (&target.check, &target.stats);
    let settings = settings.as_deref();
    let ip = settings.and_then(|settings| settings.address).unwrap_or(address.ip());
    let port = settings.and_then(|settings| settings.port).unwrap_or(address.port());
    let asked = SocketAddr::new(ip, port);
    let hostname = settings.and_then(|settings| settings.hostname.as_deref());
    let jitter = u64::try_from(check.initial_jitter.as_millis()).unwrap_or(u64::MAX);
    tokio::time::sleep(Duration::from_millis(fastrand::u64(..).checked_rem(jitter).unwrap_or(0))).await;
    let mut history = HealthHistory::default();
    let mut told = history.health();
    let mut kept = None;
    let count = |counter: &AtomicU64| {
        counter.fetch_add(1, Ordering::Relaxed);
    };
    loop {
        count(&stats.attempt);
        let asking = ask(&target, asked, hostname, &mut kept);
        let answer = tokio::time::timeout(check.timeout, asking).await;
        let verdict = answer.unwrap_or(HealthVerdict::TimedOut);
        let transition = history.note(check, verdict);
        let passed = matches!(verdict, HealthVerdict::Passed | HealthVerdict::Degraded);
        if passed {
            count(&stats.success);
        } else {
            tracing::debug!(cluster = %target.cluster, endpoint = %address, ?verdict, "health check failed");
            count(&stats.failure);
        }
        if matches!(verdict, HealthVerdict::Unreachable | HealthVerdict::TimedOut) {
            count(&stats.network_failure);
            kept = None;
        }
        if history.health() != told {
            told = history.health();
            if news.send((address, told)).await.is_err() {
                return;
            }
        }
        let pause = check.pause(passed, transition, target.breakers.is_used(), &mut || fastrand::u64(..));
        tokio::time::sleep(pause).await;
    }
}

/// One check.
async fn ask(
    target: &HealthTarget,
    address: SocketAddr,
    hostname: Option<&str>,
    kept: &mut Option<Kept>,
) -> HealthVerdict {
    let before = kept.take();
    let asked = match &target.check.probe {
        HealthProbe::Http(probe) => ask_http(target, probe, address, hostname, before).await,
        HealthProbe::Tcp(probe) => ask_tcp(target, probe, address, before).await,
    };
    match asked {
        Some((verdict, connection)) => {
            *kept = connection.filter(|_| target.check.reuse_connection);
            verdict
        }
        None => HealthVerdict::Unreachable,
    }
}

async fn connect(target: &HealthTarget, address: SocketAddr) -> Option<TcpStream> {
    let options = DialOptions {
        mark: target.mark,
        bind: target.bind.as_deref(),
        keepalive: target.keepalive.as_ref(),
        timeout: target.check.timeout,
    };
    dial(address, options).await.ok()
}

async fn ask_http(
    target: &HealthTarget,
    probe: &HttpProbe,
    address: SocketAddr,
    hostname: Option<&str>,
    kept: Option<Kept>,
) -> Option<(HealthVerdict, Option<Kept>)> {
    let mut sender = match kept {
        Some(Kept::Http(sender)) if !sender.is_closed() => sender,
        _ => {
            let stream = connect(target, address).await?;
            let (sender, driver) = http1::handshake(TokioIo::new(stream)).await.ok()?;
            // Ends with its sender; what goes wrong is seen there.
            tokio::spawn(driver);
            sender
        }
    };
    sender.ready().await.ok()?;
    let host = hostname.or(probe.host.as_deref()).unwrap_or(&target.cluster);
    let mut request = Request::builder()
        .method(probe.method.clone())
        .uri(probe.path.as_str())
        .header(header::HOST, host)
        .header(header::USER_AGENT, "Envoy/HC")
        .body(Empty::new())
        .ok()?;
    if matches!(probe.method, Method::POST | Method::PUT | Method::PATCH | Method::OPTIONS) {
        request.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    let response = sender.send_request(request).await.ok()?;
    let degraded = response.headers().contains_key("x-envoy-degraded");
    let verdict = probe.judge(response.status().as_u16(), degraded);
    let mut body = response.into_body();
    while let Some(frame) = body.frame().await {
        frame.ok()?;
    }
    Some((verdict, Some(Kept::Http(sender))))
}

async fn ask_tcp(
    target: &HealthTarget,
    probe: &TcpProbe,
    address: SocketAddr,
    kept: Option<Kept>,
) -> Option<(HealthVerdict, Option<Kept>)> {
    let mut stream = match kept {
        Some(Kept::Tcp(stream)) => stream,
        _ => connect(target, address).await?,
    };
    if probe.receive.is_empty() {
        return Some((HealthVerdict::Passed, None));
    }
    stream.write_all(&probe.send).await.ok()?;
    let mut received = Vec::new();
    while !probe.is_answered(&received) {
        let read = stream.read_buf(&mut received).await.ok()?;
        if read == 0 || received.len() > MOST_RECEIVED {
            return None;
        }
    }
    Some((HealthVerdict::Passed, Some(Kept::Tcp(stream))))
}
