//! The push loop: changes in, snapshots out.
//!
//! It runs on a thread of its own and owns the store. The first change is worked on at once; what arrives meanwhile is the
//! next batch. Nothing waits for a quiet moment, and a connection that is still busy with an older snapshot finds only the
//! latest one when it is done.
//!
//! One exception: a change that would leave a route without its destination waits for its other half, for a moment. A subset and
//! the route to it are objects of two kinds, whose watches may deliver them in the other order than they were written in; the
//! same goes for taking both away.
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lateen_model::{Delta, Event, Store, World};
use lateen_translate::{Proxy, ProxyClass, newly_missing};
use lateen_xds::server::Snapshot;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};

use crate::classes::Classes;
use crate::gateway_names;
use crate::key_sets;
use crate::metrics::Metrics;
use crate::secret_access::Account;

/// Changes taken at a time.
const BATCH: usize = 4096;

/// How long a change that breaks references waits for its other half: what istiod waits for after every change
/// (`PILOT_DEBOUNCE_AFTER`). Watches lag behind one another by some milliseconds, on a busy machine by some tens.
const OTHER_HALF: Duration = Duration::from_millis(100);

/// Where a proxy's snapshots are answered to.
pub(crate) type SnapshotsReply = oneshot::Sender<watch::Receiver<Arc<Snapshot>>>;

/// What the loop is told.
pub(crate) enum Input {
    /// An object changed; when that was seen.
    Object(Event, Instant),
    /// All objects of a kind have been sent once.
    Listed(&'static str),
    /// A proxy wants to be served. Answered when the configuration is complete.
    Connect(Arc<Proxy>, SnapshotsReply),
    /// Whether proxies of a service account may be given secrets.
    SecretAccess(Account, bool),
    /// The loop is to end, and with it every connection.
    Stop,
}

/// What the loop tells everybody.
#[derive(Clone, Debug)]
pub(crate) struct Published {
    pub(crate) world: Arc<World>,
    /// Counts up when anything but endpoints, pods and nodes changed.
    pub(crate) config_version: u64,
    /// Whether all kinds have been listed but for keys of token issuers and addresses of gateways' names, which are fetched by what the
    /// others say.
    pub(crate) listed: bool,
    /// Whether all kinds have been listed: before, the world is incomplete and nobody is served.
    pub(crate) complete: bool,
}

struct Connected {
    proxy: Arc<Proxy>,
    class: Arc<ProxyClass>,
    snapshots: watch::Sender<Arc<Snapshot>>,
}

/// The loop's state.
pub(crate) struct PushLoop {
    store: Store,
    metrics: Arc<Metrics>,
    published: watch::Sender<Published>,
    unlisted: BTreeSet<&'static str>,
    waiting: Vec<(Arc<Proxy>, SnapshotsReply)>,
    connected: Vec<Connected>,
    classes: Classes,
    /// What was applied to the store and is not pushed yet, ...
    pending: Delta,
    /// ... when the first of it was seen, ...
    first_change: Option<Instant>,
    /// ... and until when it waits for more, if it does.
    held_until: Option<Instant>,
}

impl PushLoop {
    /// A loop that is complete when all `kinds` are listed.
    pub(crate) fn new(
        mut store: Store,
        kinds: impl IntoIterator<Item = &'static str>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let world = store.world();
        Self {
            store,
            metrics,
            published: watch::Sender::new(Published {
                world,
                config_version: 0,
                listed: false,
                complete: false,
            }),
            unlisted: kinds.into_iter().collect(),
            waiting: Vec::new(),
            connected: Vec::new(),
            classes: Classes::default(),
            pending: Delta::default(),
            first_change: None,
            held_until: None,
        }
    }

    /// Follows what the loop publishes.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Published> {
        self.published.subscribe()
    }

    /// Works until told to stop. Connections end with it, since it holds their snapshots' senders. `runtime` keeps the time.
    pub(crate) fn run(mut self, mut inputs: mpsc::Receiver<Input>, runtime: &Handle) {
        let mut batch = Vec::new();
        loop {
            let received = match self.held_until {
                None => inputs.blocking_recv_many(&mut batch, BATCH),
                Some(until) => {
                    let more = inputs.recv_many(&mut batch, BATCH);
                    // Time is up: what waits goes out as it is.
                    let more = async { tokio::time::timeout_at(until.into(), more).await.unwrap_or(1) };
                    runtime.block_on(more)
                }
            };
            if received == 0 || batch.iter().any(|input| matches!(input, Input::Stop)) {
                return;
            }
            self.take(batch.drain(..), Instant::now());
        }
    }

    fn take(&mut self, batch: impl Iterator<Item = Input>, now: Instant) {
        let was_complete = self.unlisted.is_empty();
        let was_listed = self.is_listed();
        for input in batch {
            match input {
                Input::Object(event, seen) => {
                    let change = self.store.apply(event);
                    for problem in &change.problems {
                        tracing::warn!("{}: {}", problem.object, problem.message);
                    }
                    if !change.is_empty() {
                        self.first_change = Some(self.first_change.map_or(seen, |first| first.min(seen)));
                        self.pending.merge(change);
                    }
                }
                Input::Listed(kind) => {
                    self.unlisted.remove(kind);
                }
                Input::Connect(proxy, reply) => {
                    // Those that gave up come again, as often as it takes.
                    self.waiting.retain(|(_, reply)| !reply.is_closed());
                    self.waiting.push((proxy, reply));
                }
                Input::SecretAccess(account, allowed) => self.set_secret_access(&account, allowed),
                // Looked for before.
                Input::Stop => {}
            }
        }
        if self.waits_for_other_half(now) {
            return;
        }
        let complete = self.unlisted.is_empty();
        if complete && !was_complete {
            tracing::info!("configuration is complete; serving proxies");
        }
        let (delta, first_change) = (std::mem::take(&mut self.pending), self.first_change.take());
        if !delta.is_empty() || complete != was_complete || self.is_listed() != was_listed {
            self.publish(&delta, complete);
        }
        if complete {
            self.push(&delta, first_change.unwrap_or(now));
        }
    }

    /// Whether nothing but keys and addresses of names is waited for.
    fn is_listed(&self) -> bool {
        self.unlisted.iter().all(|kind| [key_sets::KIND, gateway_names::KIND].contains(kind))
    }

    /// Takes effect with the push that follows.
    fn set_secret_access(&mut self, account: &Account, allowed: bool) {
        let world = self.published.borrow().world.clone();
        for connected in &mut self.connected {
            if connected.proxy.reads_secrets != allowed && Account::of(&connected.proxy) == *account {
                Arc::make_mut(&mut connected.proxy).reads_secrets = allowed;
                connected.class = Arc::new(ProxyClass::of(&connected.proxy, &world));
            }
        }
        // Those that wait were asked about before this was known; it is not told again.
        for (proxy, _) in &mut self.waiting {
            if Account::of(proxy) == *account {
                Arc::make_mut(proxy).reads_secrets = allowed;
            }
        }
    }

    /// Whether what is pending breaks references that held, and its time is not up.
    fn waits_for_other_half(&mut self, now: Instant) -> bool {
        let before = self.published.borrow().clone();
        if !before.complete || !touches_config(&self.pending) {
            // Nobody was served, or nothing referred to anything else.
            return false;
        }
        let missing = newly_missing(&before.world, &self.store.world(), &self.pending);
        if missing.is_empty() {
            self.held_until = None;
            return false;
        }
        let waits = now < *self.held_until.get_or_insert(now + OTHER_HALF);
        if !waits {
            self.held_until = None;
            for one in missing {
                tracing::debug!(
                    "{} routes to {:?} subset {:?}, which is not there",
                    one.rule,
                    one.host,
                    one.subset
                );
            }
        }
        waits
    }

    fn publish(&mut self, delta: &Delta, complete: bool) {
        let world = self.store.world();
        if delta.mesh {
            for path in world.mesh().without_effect() {
                tracing::warn!("{path} of the mesh config has no effect yet");
            }
        }
        if delta.networks {
            for path in world.networks().without_effect() {
                tracing::warn!("{path} of the mesh networks has no effect");
            }
        }
        self.metrics.world(&world);
        let listed = self.is_listed();
        self.published.send_modify(|published| {
            published.world = world;
            published.listed = listed;
            published.complete = complete;
            published.config_version += u64::from(touches_config(delta));
        });
    }

    /// Brings every class and proxy up to date.
    fn push(&mut self, delta: &Delta, changed: Instant) {
        let world = self.published.borrow().world.clone();
        self.connected.retain(|connected| !connected.snapshots.is_closed());
        if !delta.is_empty() {
            for connected in &mut self.connected {
                if !connected.proxy.class_may_change(delta, &world) {
                    continue;
                }
                let class = ProxyClass::of(&connected.proxy, &world);
                if class != *connected.class {
                    connected.class = Arc::new(class);
                }
            }
            self.classes.follow(self.connected.iter().map(|one| &one.class), &world, delta, changed);
        }
        for connected in &mut self.connected {
            let snapshot = self.classes.snapshot(&connected.class, &world, changed);
            if !Arc::ptr_eq(&connected.snapshots.borrow(), &snapshot) {
                connected.snapshots.send_replace(snapshot);
            }
        }
        for (proxy, reply) in std::mem::take(&mut self.waiting) {
            let class = Arc::new(ProxyClass::of(&proxy, &world));
            let snapshots = watch::Sender::new(self.classes.snapshot(&class, &world, changed));
            // A proxy that gave up waiting has dropped its receiver.
            if reply.send(snapshots.subscribe()).is_ok() {
                self.connected.push(Connected { proxy, class, snapshots });
            }
        }
        self.classes.sweep();
    }
}

/// Whether a change is more than endpoints, pods and nodes coming and going.
fn touches_config(delta: &Delta) -> bool {
    delta.mesh
        || delta.networks
        || !delta.services.is_empty()
        || !delta.virtual_services.is_empty()
        || !delta.destination_rules.is_empty()
        || !delta.gateways.is_empty()
        || !delta.sidecars.is_empty()
        || !delta.authorization_policies.is_empty()
        || !delta.request_authentications.is_empty()
        || !delta.key_sets.is_empty()
        || !delta.peer_authentications.is_empty()
        || !delta.load_balancers.is_empty()
        || !delta.credentials.is_empty()
        || !delta.service_entries.is_empty()
        || !delta.workload_entries.is_empty()
        || !delta.workload_groups.is_empty()
        || !delta.namespaces.is_empty()
}

#[cfg(test)]
#[path = "push_tests.rs"]
mod tests;
