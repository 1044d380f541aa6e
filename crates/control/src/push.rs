//! The push loop: changes in, snapshots out.
//!
//! It runs on a thread of its own and owns the store. The first change is worked on at once; what arrives meanwhile is the
//! next batch. Nothing waits for a quiet moment, and a connection that is still busy with an older snapshot finds only the
//! latest one when it is done.
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use lateen_model::{Delta, Event, Store, World};
use lateen_translate::{Proxy, ProxyClass};
use lateen_xds::server::Snapshot;
use tokio::sync::{mpsc, oneshot, watch};

use crate::classes::Classes;
use crate::metrics::Metrics;
use crate::secret_access::Account;

/// Changes taken at a time.
const BATCH: usize = 4096;

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
            published: watch::Sender::new(Published { world, config_version: 0, complete: false }),
            unlisted: kinds.into_iter().collect(),
            waiting: Vec::new(),
            connected: Vec::new(),
            classes: Classes::default(),
        }
    }

    /// Follows what the loop publishes.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Published> {
        self.published.subscribe()
    }

    /// Works until told to stop. Connections end with it, since it holds their snapshots' senders.
    pub(crate) fn run(mut self, mut inputs: mpsc::Receiver<Input>) {
        let mut batch = Vec::new();
        while inputs.blocking_recv_many(&mut batch, BATCH) > 0 {
            if batch.iter().any(|input| matches!(input, Input::Stop)) {
                return;
            }
            self.take(batch.drain(..));
        }
    }

    fn take(&mut self, batch: impl Iterator<Item = Input>) {
        let mut delta = Delta::default();
        let mut first_change: Option<Instant> = None;
        let was_complete = self.unlisted.is_empty();
        for input in batch {
            match input {
                Input::Object(event, seen) => {
                    let change = self.store.apply(event);
                    for problem in &change.problems {
                        tracing::warn!("{}: {}", problem.object, problem.message);
                    }
                    if !change.is_empty() {
                        first_change = Some(first_change.map_or(seen, |first| first.min(seen)));
                        delta.merge(change);
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
        let complete = self.unlisted.is_empty();
        if complete && !was_complete {
            tracing::info!("configuration is complete; serving proxies");
        }
        if !delta.is_empty() || complete != was_complete {
            self.publish(&delta, complete);
        }
        if complete {
            self.push(&delta, first_change.unwrap_or_else(Instant::now));
        }
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
    }

    fn publish(&mut self, delta: &Delta, complete: bool) {
        let world = self.store.world();
        self.metrics.world(&world);
        self.published.send_modify(|published| {
            published.world = world;
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
        || !delta.services.is_empty()
        || !delta.virtual_services.is_empty()
        || !delta.destination_rules.is_empty()
        || !delta.gateways.is_empty()
        || !delta.sidecars.is_empty()
        || !delta.load_balancers.is_empty()
        || !delta.credentials.is_empty()
        || !delta.service_entries.is_empty()
        || !delta.workload_entries.is_empty()
        || !delta.workload_groups.is_empty()
        || !delta.namespaces.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use lateen_model::{Object, StoreOptions};
    use lateen_translate::ResourceType;
    use serde_json::json;

    fn proxy() -> Arc<Proxy> {
        let id = "sidecar~10.0.0.1~a.default~default.svc.cluster.local";
        Arc::new(Proxy::parse(id, &json!({})).unwrap())
    }

    #[test]
    fn proxies_that_gave_up_waiting_are_forgotten() {
        let store = Store::new(StoreOptions::default());
        let mut push = PushLoop::new(store, ["Service"], Metrics::new("test"));
        for _ in 0..100 {
            let (reply, answer) = oneshot::channel();
            push.take([Input::Connect(proxy(), reply)].into_iter());
            drop(answer);
        }
        let (reply, mut answer) = oneshot::channel();
        push.take([Input::Connect(proxy(), reply)].into_iter());
        assert_eq!(push.waiting.len(), 1);
        assert!(answer.try_recv().is_err(), "nobody is served from half a configuration");
        push.take([Input::Listed("Service")].into_iter());
        assert!(answer.try_recv().is_ok());
    }

    #[test]
    fn a_change_makes_only_what_it_changes() {
        let mut push = PushLoop::new(Store::new(StoreOptions::default()), ["Service"], Metrics::new("test"));
        let apply = |object: Object| Input::Object(Event::Applied(object), Instant::now());
        let service = |name: String| {
            let service = json!({"metadata": {"namespace": "default", "name": name},
                "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80}], "selector": {"app": "a"}}});
            apply(Object::Service(serde_json::from_value(service).unwrap()))
        };
        let slice = |address: &str| {
            let slice = json!({"addressType": "IPv4", "ports": [{"name": "http", "port": 80}],
                "metadata": {"namespace": "default", "name": "s7-a", "labels": {"kubernetes.io/service-name": "s7"}},
                "endpoints": [{"addresses": [address]}]});
            apply(Object::EndpointSlice(serde_json::from_value(slice).unwrap()))
        };
        let (reply, mut answer) = oneshot::channel();
        let services = (0..200).map(|index| service(format!("s{index}")));
        push.take(services.chain([
            slice("10.0.0.1"),
            Input::Listed("Service"),
            Input::Connect(proxy(), reply),
        ]));
        let snapshots = answer.try_recv().unwrap();
        let before = snapshots.borrow().clone();
        let made = push.classes.made();
        push.take([slice("10.0.0.2")].into_iter());
        let after = snapshots.borrow().clone();
        assert_eq!(push.classes.made(), made + 1, "one resource is generated");
        for (type_url, set) in after.types() {
            let old = before.set(type_url);
            let changed = set.iter().zip(old.iter()).filter(|(new, old)| !Arc::ptr_eq(new, old)).count();
            let is_endpoints = type_url == ResourceType::Endpoint.type_url();
            assert_eq!(
                (changed, Arc::ptr_eq(set, old)),
                (usize::from(is_endpoints), !is_endpoints),
                "{type_url}"
            );
        }
    }
}
