//! Machines that register themselves: a proxy that is no pod's and names a WorkloadGroup gets a WorkloadEntry made from it, which goes
//! when the machine stays away longer than it may; what its agent says of its application's health goes into the entry's status.
//!
//! Entries are written by what is to be true, not by what happened: streams come and go in any order and number, so what is known of
//! each entry is kept in one place, and one task brings the API server there. Specified by Istio's `pilot/pkg/autoregistration`.
mod entry;
#[cfg(test)]
mod tests;
mod writes;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::{StreamExt as _, stream};
use jiff::Timestamp;
use lateen_model::ObjectName;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tokio::sync::{Notify, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::authenticate::Caller;
use crate::config::MachineOptions;
use crate::push::Published;
pub(crate) use entry::Machine;
use writes::{Entries, WriteError};

/// Machines that are known at a time; more are told to come again.
const MACHINES: usize = 10_000;
/// Registrations, and later writes, at a time.
const WRITERS: usize = 16;
/// Pause before what failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Between two looks for entries that nobody takes care of, in grace periods.
const SWEEP: u32 = 10;

/// Istio's counters.
#[derive(Clone, Default)]
pub(crate) struct RegistrationMetrics {
    success: Counter,
    updates: Counter,
    unregistered: Counter,
    deletes: Counter,
    errors: Counter,
}

impl RegistrationMetrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        for (name, help, counter) in [
            ("success", "Total number of successful auto registrations", &self.success),
            ("updates", "Total number of auto registration updates", &self.updates),
            ("unregister", "Total number of unregistrations", &self.unregistered),
            ("deletes", "Total number of auto registration cleaned up by periodic timer", &self.deletes),
            ("errors", "Total number of auto registration errors", &self.errors),
        ] {
            registry.register(format!("auto_registration_{name}"), help, counter.clone());
        }
    }
}

/// What an agent said of its application.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Report {
    problem: Option<String>,
    at: Timestamp,
}

/// What is known of an entry, and what of it is not written yet.
#[derive(Debug)]
struct Held {
    /// Open streams of its machine: a proxy's, and its agent's.
    streams: usize,
    /// When the last of them was opened.
    opened: Timestamp,
    /// When the last ended; to be written.
    ended: Option<Timestamp>,
    /// To be written.
    health: Option<Report>,
    /// When the machine is looked for the last time.
    clean_up: Option<Instant>,
}

/// One thing to do about an entry.
#[derive(Clone, Debug)]
enum Job {
    Ended { opened: Timestamp, at: Timestamp },
    Health(Report),
    CleanUp,
}

/// Keeps the entries of machines.
pub(crate) struct Registration {
    entries: Entries,
    options: MachineOptions,
    metrics: RegistrationMetrics,
    published: watch::Receiver<Published>,
    /// Namespace of the control planes.
    namespace: String,
    limit: Semaphore,
    held: Mutex<BTreeMap<ObjectName, Held>>,
    work: Notify,
}

/// A machine's stream. When it is dropped, the stream has ended.
pub(crate) struct Connected {
    registration: Arc<Registration>,
    pub(crate) entry: ObjectName,
}

impl Drop for Connected {
    fn drop(&mut self) {
        let mut held = self.registration.lock();
        if let Some(held) = held.get_mut(&self.entry) {
            held.streams = held.streams.saturating_sub(1);
            if held.streams == 0 {
                held.ended = Some(Timestamp::now());
            }
        }
        self.registration.work.notify_one();
    }
}

impl Registration {
    /// `controller` is the name of this control plane, a pod of `namespace`.
    pub(crate) fn new(
        client: kube::Client,
        controller: &str,
        namespace: &str,
        options: MachineOptions,
        metrics: RegistrationMetrics,
        published: watch::Receiver<Published>,
    ) -> Arc<Self> {
        Arc::new(Self {
            entries: Entries::new(client, controller),
            options,
            metrics,
            published,
            namespace: namespace.to_owned(),
            limit: Semaphore::new(WRITERS),
            held: Mutex::default(),
            work: Notify::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ObjectName, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes or takes over the entry of a machine whose stream begins; none when this control plane leaves such machines alone.
    ///
    /// # Errors
    /// When the machine may not have the entry, or it cannot be made: the stream is refused.
    pub(crate) async fn connect(
        self: &Arc<Self>,
        machine: &Machine,
        caller: Option<&Caller>,
    ) -> Result<Option<Connected>, Status> {
        let by_itself = machine.group().is_some();
        let wanted = if by_itself { self.options.register } else { self.options.health_checks };
        if !wanted {
            return Ok(None);
        }
        let entry = ObjectName::new(&machine.namespace, &machine.entry);
        {
            let held = self.lock();
            if held.len() >= MACHINES && !held.contains_key(&entry) {
                return Err(Status::resource_exhausted("too many machines; come again"));
            }
        }
        let now = Timestamp::now();
        let outcome = {
            // The semaphore is never closed.
            let _permit = self.limit.acquire().await;
            self.entries.connect(machine, caller, now).await
        };
        let counted = match &outcome {
            Ok(writes::Connection::Made) => Some(&self.metrics.success),
            Ok(writes::Connection::TakenOver) if by_itself => Some(&self.metrics.updates),
            Ok(_) => None,
            Err(_) => Some(&self.metrics.errors),
        };
        if let Some(counter) = counted {
            counter.inc();
        }
        match outcome {
            Ok(writes::Connection::NotOurs) => return Ok(None),
            Ok(done) => tracing::info!("machine of WorkloadEntry {entry} is here ({done:?})"),
            Err(error) => {
                tracing::warn!("machine of WorkloadEntry {entry}: {error}");
                return Err(error.into());
            }
        }
        let mut held = self.lock();
        let known = held.entry(entry.clone()).or_insert(Held {
            streams: 0,
            opened: now,
            ended: None,
            health: None,
            clean_up: None,
        });
        known.streams += 1;
        known.opened = known.opened.max(now);
        (known.ended, known.clean_up) = (None, None);
        drop(held);
        Ok(Some(Connected { registration: self.clone(), entry }))
    }

    /// An agent has said how its application is.
    pub(crate) fn report(&self, entry: &ObjectName, problem: Option<&str>) {
        if !self.options.health_checks {
            return;
        }
        if let Some(held) = self.lock().get_mut(entry) {
            held.health = Some(Report { problem: problem.map(str::to_owned), at: Timestamp::now() });
        }
        self.work.notify_one();
    }

    /// Writes what is to be written, until told to stop.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        if !self.options.register && !self.options.health_checks {
            return;
        }
        let mut sweeper = Sweeper { next: Instant::now(), orphans: BTreeMap::new() };
        loop {
            let next = self.round().await;
            if sweeper.next <= Instant::now() {
                sweeper.sweep(&self).await;
            }
            let next = next.map_or(sweeper.next, |next| next.min(sweeper.next));
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.work.notified() => {}
                () = tokio::time::sleep_until(next.into()) => {}
            }
        }
    }

    /// Does everything that is due; when there is more to do.
    async fn round(&self) -> Option<Instant> {
        let now = Instant::now();
        let jobs: Vec<(ObjectName, Job)> = {
            let held = self.lock();
            held.iter().flat_map(|(name, held)| held.due(now).map(|job| (name.clone(), job))).collect()
        };
        let mut done = stream::iter(jobs)
            .map(|(name, job)| async move { (self.work_on(&name, &job).await, name, job) })
            .buffer_unordered(WRITERS);
        let mut failed = false;
        while let Some((result, name, job)) = done.next().await {
            match result {
                Ok(()) => self.finish(&name, &job),
                Err(error) => {
                    failed = true;
                    self.metrics.errors.inc();
                    tracing::warn!("WorkloadEntry {name}: {error}; trying again");
                }
            }
        }
        let waiting = self.lock().values().filter_map(|held| held.clean_up).filter(|at| *at > now).min();
        let again = failed.then(|| Instant::now() + RETRY);
        waiting.into_iter().chain(again).min()
    }

    async fn work_on(&self, name: &ObjectName, job: &Job) -> Result<(), WriteError> {
        match job {
            Job::Ended { opened, at } => {
                if self.entries.disconnect(name, *opened, *at).await? {
                    self.metrics.unregistered.inc();
                }
            }
            Job::Health(report) => self.entries.judge(name, report.problem.as_deref(), report.at).await?,
            Job::CleanUp => {
                if self.entries.clean_up(name, self.options.grace).await? {
                    self.metrics.deletes.inc();
                }
            }
        }
        Ok(())
    }

    /// Notes what was done, unless something else has happened meanwhile.
    fn finish(&self, name: &ObjectName, job: &Job) {
        let mut all = self.lock();
        let Some(held) = all.get_mut(name) else { return };
        match job {
            Job::Ended { at, .. } if held.ended == Some(*at) => {
                held.ended = None;
                held.clean_up = Some(Instant::now() + self.options.grace);
            }
            Job::Health(report) if held.health.as_ref() == Some(report) => held.health = None,
            Job::CleanUp => held.clean_up = None,
            Job::Ended { .. } | Job::Health(_) => {}
        }
        let idle = held.ended.is_none() && held.health.is_none() && held.clean_up.is_none();
        if held.streams == 0 && idle {
            all.remove(name);
        }
    }

    /// Whether somebody takes care of an entry that says its machine is connected to `controller`.
    fn is_cared_for(&self, name: &ObjectName, controller: &str) -> bool {
        if self.lock().contains_key(name) {
            return true;
        }
        let pod = ObjectName::new(&self.namespace, controller);
        !self.entries.is_ours(controller) && self.published.borrow().world.pod(&pod).is_some()
    }
}

impl Held {
    fn due(&self, now: Instant) -> impl Iterator<Item = Job> + use<> {
        let ended = self.ended.map(|at| Job::Ended { opened: self.opened, at });
        let health = self.health.clone().map(Job::Health);
        let clean_up = self.clean_up.filter(|at| *at <= now).map(|_| Job::CleanUp);
        ended.into_iter().chain(health).chain(clean_up)
    }
}

/// Looks for entries whose machine nobody waits for: those of a control plane that ended while the machine was connected, or away.
struct Sweeper {
    next: Instant,
    /// Since when an entry is without care: its machine has a grace period to come to us.
    orphans: BTreeMap<ObjectName, Instant>,
}

impl Sweeper {
    async fn sweep(&mut self, registration: &Registration) {
        let grace = registration.options.grace;
        if !registration.published.borrow().complete {
            self.next = Instant::now() + RETRY;
            return;
        }
        let found = match registration.entries.abandoned(grace).await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(
                    "cannot look for WorkloadEntries of machines that are gone: {error}; trying again"
                );
                self.next = Instant::now() + RETRY;
                return;
            }
        };
        let now = Instant::now();
        let mut orphans = BTreeMap::new();
        for (name, controller) in found {
            let connected = controller.is_some();
            if controller.is_some_and(|controller| registration.is_cared_for(&name, &controller)) {
                continue;
            }
            let since = self.orphans.get(&name).copied().unwrap_or(now);
            if connected && now.duration_since(since) < grace {
                orphans.insert(name, since);
                continue;
            }
            match registration.entries.remove(&name, connected).await {
                Ok(removed) => {
                    if removed {
                        registration.metrics.deletes.inc();
                    }
                }
                Err(error) => tracing::warn!("WorkloadEntry {name}: {error}; trying again"),
            }
        }
        self.orphans = orphans;
        let pause = if self.orphans.is_empty() { grace * SWEEP } else { grace };
        self.next = Instant::now() + pause.max(RETRY);
    }
}
