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
            push.take([Input::Connect(proxy(), reply)].into_iter(), Instant::now());
            drop(answer);
        }
        let (reply, mut answer) = oneshot::channel();
        push.take([Input::Connect(proxy(), reply)].into_iter(), Instant::now());
        assert_eq!(push.waiting.len(), 1);
        assert!(answer.try_recv().is_err(), "nobody is served from half a configuration");
        push.take([Input::Listed("Service")].into_iter(), Instant::now());
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
        let rest = [slice("10.0.0.1"), Input::Listed("Service"), Input::Connect(proxy(), reply)];
        push.take(services.chain(rest), Instant::now());
        let snapshots = answer.try_recv().unwrap();
        let before = snapshots.borrow().clone();
        let made = push.classes.made();
        push.take([slice("10.0.0.2")].into_iter(), Instant::now());
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

    /// A service, a rule with these subsets and a route to this one.
    fn object(kind: &str, spec: serde_json::Value) -> Input {
        let object = json!({"metadata": {"namespace": "default", "name": "a"}, "spec": spec});
        let object = match kind {
            "Service" => Object::Service(serde_json::from_value(object).unwrap()),
            "DestinationRule" => Object::DestinationRule(serde_json::from_value(object).unwrap()),
            _ => Object::VirtualService(serde_json::from_value(object).unwrap()),
        };
        Input::Object(Event::Applied(object), Instant::now())
    }

    fn subsets(names: &[&str]) -> Input {
        let subsets: Vec<_> = names.iter().map(|name| json!({"name": name})).collect();
        object("DestinationRule", json!({"host": "a", "subsets": subsets}))
    }

    fn route(subset: &str) -> Input {
        let destination = json!({"destination": {"host": "a", "subset": subset}});
        object("VirtualService", json!({"hosts": ["a"], "http": [{"route": [destination]}]}))
    }

    /// What the proxy's routes lead to, and the subsets that have a cluster.
    fn served(snapshots: &mut watch::Receiver<Arc<Snapshot>>) -> (bool, String, String) {
        let changed = snapshots.has_changed().unwrap();
        let snapshot = snapshots.borrow_and_update().clone();
        let routes = snapshot.set(ResourceType::Route.type_url()).get("80").unwrap().body.clone();
        let routes = String::from_utf8_lossy(&routes).into_owned();
        let subset = |text: &str| text.split('|').nth(2).filter(|name| !name.is_empty()).map(str::to_owned);
        let to = routes.split("outbound").filter_map(subset).collect::<BTreeSet<_>>();
        let clusters = snapshot.set(ResourceType::Cluster.type_url());
        let there = clusters.iter().filter_map(|cluster| subset(&cluster.name)).collect::<BTreeSet<_>>();
        let words = |set: BTreeSet<String>| set.into_iter().collect::<Vec<_>>().join(" ");
        (changed, words(to), words(there))
    }

    fn answer(changed: bool, to: &str, there: &str) -> (bool, String, String) {
        (changed, to.to_owned(), there.to_owned())
    }

    #[test]
    fn halves_of_a_change_wait_for_each_other() {
        let mut push = PushLoop::new(Store::new(StoreOptions::default()), ["Service"], Metrics::new("test"));
        let service = object(
            "Service",
            json!({"clusterIP": "10.96.0.1", "ports": [{"name": "http", "port": 80}], "selector": {"app": "a"}}),
        );
        let (reply, mut connected) = oneshot::channel();
        let (listed, connect) = (Input::Listed("Service"), Input::Connect(proxy(), reply));
        let start = Instant::now();
        push.take([service, subsets(&["v1"]), route("v1"), listed, connect].into_iter(), start);
        let mut snapshots = connected.try_recv().unwrap();
        assert_eq!(served(&mut snapshots), answer(false, "v1", "v1"));

        // Written: both subsets, the route to the new one, the old one's removal. Arrived: the route last.
        push.take([subsets(&["v2"])].into_iter(), start);
        assert_eq!(served(&mut snapshots), answer(false, "v1", "v1"), "the route to v1 is still there");
        assert_eq!(push.held_until, Some(start + OTHER_HALF));
        push.take([route("v2")].into_iter(), start + OTHER_HALF / 2);
        assert_eq!((served(&mut snapshots), push.held_until), (answer(true, "v2", "v2"), None));
        // The route first.
        push.take([route("v3")].into_iter(), start);
        assert_eq!(served(&mut snapshots), answer(false, "v2", "v2"));
        push.take([subsets(&["v3"])].into_iter(), start);
        assert_eq!((served(&mut snapshots), push.held_until), (answer(true, "v3", "v3"), None));
        // What has no other half goes out when its time is up, and is not waited for again.
        push.take([route("absent")].into_iter(), start);
        push.take([].into_iter(), start + OTHER_HALF);
        assert_eq!((served(&mut snapshots), push.held_until), (answer(true, "absent", "v3"), None));
        push.take([subsets(&["v4"])].into_iter(), start);
        assert_eq!(served(&mut snapshots), answer(true, "absent", "v4"));
    }

    #[test]
    fn a_change_touches_only_the_proxies_that_see_it() {
        let named = |kind: &str, namespace: &str, spec: serde_json::Value| {
            let object = json!({"metadata": {"namespace": namespace, "name": "a"}, "spec": spec});
            let object = match kind {
                "Service" => Object::Service(serde_json::from_value(object).unwrap()),
                "Sidecar" => Object::Sidecar(serde_json::from_value(object).unwrap()),
                "DestinationRule" => Object::DestinationRule(serde_json::from_value(object).unwrap()),
                _ => Object::VirtualService(serde_json::from_value(object).unwrap()),
            };
            Input::Object(Event::Applied(object), Instant::now())
        };
        let service = |namespace: &str, address: &str| {
            let ports = json!([{"name": "http", "port": 80}]);
            named(
                "Service",
                namespace,
                json!({"clusterIP": address, "ports": ports, "selector": {"app": "a"}}),
            )
        };
        let imports = |namespace: &str, hosts: &str| {
            named("Sidecar", namespace, json!({"egress": [{"hosts": [hosts]}]}))
        };
        let mut push = PushLoop::new(Store::new(StoreOptions::default()), ["Service"], Metrics::new("test"));
        let objects = [
            service("default", "10.96.0.1"),
            service("own", "10.96.0.2"),
            imports("own", "./*"),
            imports("importing", "default/*"),
            Input::Listed("Service"),
        ];
        push.take(objects.into_iter(), Instant::now());
        let namespaces = ["default", "other", "own", "importing"];
        let mut snapshots = namespaces.map(|namespace| {
            let id = format!("sidecar~10.0.0.1~p.{namespace}~{namespace}.svc.cluster.local");
            let (reply, mut answer) = oneshot::channel();
            let proxy = Arc::new(Proxy::parse(&id, &json!({})).unwrap());
            push.take([Input::Connect(proxy, reply)].into_iter(), Instant::now());
            answer.try_recv().unwrap()
        });
        let mut touched = |input: Input| -> Vec<&str> {
            push.take([input].into_iter(), Instant::now());
            let changed = namespaces.into_iter().zip(&mut snapshots).filter_map(|(namespace, snapshot)| {
                let changed = snapshot.has_changed().unwrap();
                snapshot.mark_unchanged();
                changed.then_some(namespace)
            });
            changed.collect()
        };
        let mut edits = 0..;
        let mut rule = |export_to: &str| {
            let edit = format!("/{}", edits.next().unwrap());
            let route =
                json!({"match": [{"uri": {"prefix": edit}}], "route": [{"destination": {"host": "a"}}]});
            named(
                "VirtualService",
                "default",
                json!({"hosts": ["a"], "exportTo": [export_to], "http": [route]}),
            )
        };
        assert_eq!(touched(rule("*")), ["default", "other", "importing"]);
        assert_eq!(touched(rule("*")), ["default", "other", "importing"]);
        assert_eq!(touched(rule(".")), ["default", "other", "importing"], "those who lose it too");
        assert_eq!(touched(rule(".")), ["default"]);
        assert_eq!(touched(rule("importing")), ["default", "importing"]);
        assert_eq!(touched(rule("importing")), ["importing"]);
        let mut policy = |export_to: &str| {
            let time = format!("{}s", edits.next().unwrap());
            let policy = json!({"connectionPool": {"tcp": {"connectTimeout": time}}});
            named(
                "DestinationRule",
                "default",
                json!({"host": "a", "exportTo": [export_to], "trafficPolicy": policy}),
            )
        };
        assert_eq!(touched(policy("*")), ["default", "other", "importing"]);
        assert_eq!(touched(policy(".")), ["default", "other", "importing"]);
        assert_eq!(touched(policy(".")), ["default"]);
        let slice = json!({"addressType": "IPv4", "ports": [{"name": "http", "port": 80}],
            "metadata": {"namespace": "default", "name": "a-x", "labels": {"kubernetes.io/service-name": "a"}},
            "endpoints": [{"addresses": ["10.0.0.7"]}]});
        let slice = Object::EndpointSlice(serde_json::from_value(slice).unwrap());
        let endpoints = Input::Object(Event::Applied(slice), Instant::now());
        assert_eq!(touched(endpoints), ["default", "other", "importing"]);
        assert_eq!(touched(service("own", "10.96.0.9")), ["default", "other", "own"]);
    }
}
