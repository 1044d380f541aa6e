//! Runs the controllers: watches feed the cache, changes of the cache lead to decisions, decisions to writes, and the
//! answers to writes feed the cache again, before the watch tells the same. So a decision always sees what the one before
//! it has done.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Debug;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch_kind};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::time::DelayQueue;
use tracing::{debug, warn};

use super::ControllerConfig;
use super::cache::{Cache, Change, Kind, Object, version};
use super::dispatch::{Key, WATCHED, affected, decide};
use super::events::{Recorder, Story, story};
use super::write::Write;

/// Events waiting for the driver.
const EVENTS: usize = 1024;
/// Decisions being written at the same time.
const IN_FLIGHT: usize = 64;
/// First and longest wait after a failed write.
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// What a watch tells.
enum Told {
    Object(Object),
    Deleted(Kind, Box<ObjectMeta>),
    /// A list is complete: the names in it, and its newest version.
    Listed(Kind, HashSet<(String, String)>, u64),
}

/// Runs until `stop` is cancelled; then waits for what is in flight.
pub(crate) async fn run(client: Client, config: ControllerConfig, stop: CancellationToken) {
    let (sender, mut told) = mpsc::channel(EVENTS);
    let mut watches = JoinSet::new();
    for (kind, fields) in WATCHED {
        spawn_watch(&mut watches, &client, kind, fields, &sender);
    }
    drop(sender);
    let mut driver = Driver {
        events: Recorder::start(client.clone()),
        client,
        config,
        cache: Cache::default(),
        unsynced: WATCHED.iter().map(|(kind, _)| *kind).collect(),
        dirty: BTreeSet::new(),
        busy: HashSet::new(),
        failures: HashMap::new(),
        later: DelayQueue::new(),
        in_flight: JoinSet::new(),
    };
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            event = told.recv() => {
                let Some(event) = event else { break };
                driver.take(event);
                // Whatever is known already goes into the next decisions.
                while let Ok(event) = told.try_recv() {
                    driver.take(event);
                }
            }
            Some(done) = driver.in_flight.join_next() => match done {
                Ok(done) => driver.finish(done),
                Err(error) => warn!(%error, "a controller's write task failed"),
            },
            Some(key) = driver.later.next() => {
                driver.dirty.insert(key.into_inner());
            }
        }
        driver.decide();
    }
    watches.shutdown().await;
    while driver.in_flight.join_next().await.is_some() {}
}

fn spawn_watch(
    watches: &mut JoinSet<()>,
    client: &Client,
    kind: Kind,
    fields: Option<&str>,
    sender: &mpsc::Sender<Told>,
) {
    let config =
        fields.map_or_else(watcher::Config::default, |fields| watcher::Config::default().fields(fields));
    let (client, sender) = (client.clone(), sender.clone());
    macro_rules! watch_as {
        ($($kind:ident: $type:ty),* $(,)?) => {
            match kind { $(Kind::$kind => watches.spawn(watch::<$type>(client, kind, config, sender)),)* }
        };
    }
    watch_as! {
        Namespace: k8s_openapi::api::core::v1::Namespace,
        Node: k8s_openapi::api::core::v1::Node,
        Pod: k8s_openapi::api::core::v1::Pod,
        Service: k8s_openapi::api::core::v1::Service,
        Endpoints: k8s_openapi::api::core::v1::Endpoints,
        ServiceAccount: k8s_openapi::api::core::v1::ServiceAccount,
        ConfigMap: k8s_openapi::api::core::v1::ConfigMap,
        EndpointSlice: k8s_openapi::api::discovery::v1::EndpointSlice,
        Deployment: k8s_openapi::api::apps::v1::Deployment,
        ReplicaSet: k8s_openapi::api::apps::v1::ReplicaSet,
        StatefulSet: k8s_openapi::api::apps::v1::StatefulSet,
        DaemonSet: k8s_openapi::api::apps::v1::DaemonSet,
        Job: k8s_openapi::api::batch::v1::Job,
        Secret: k8s_openapi::api::core::v1::Secret,
        CertificateSigningRequest: k8s_openapi::api::certificates::v1::CertificateSigningRequest,
    };
}

async fn watch<K>(client: Client, kind: Kind, config: watcher::Config, sender: mpsc::Sender<Told>)
where
    K: kube::Resource<DynamicType = ()> + Into<Object> + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let mut events = watch_kind(Api::<K>::all(client), config).default_backoff().boxed();
    let (mut listed, mut newest) = (HashSet::new(), 0);
    loop {
        let told = match events.try_next().await {
            Ok(None) => return,
            Err(error) => {
                // Expected while the API server goes away; the stream goes on by itself.
                debug!(?kind, %error, "a watch was interrupted");
                continue;
            }
            Ok(Some(Event::Init)) => {
                (listed, newest) = (HashSet::new(), 0);
                continue;
            }
            Ok(Some(Event::InitApply(object))) => {
                let meta = object.meta();
                newest = newest.max(version(meta).0);
                listed.insert((
                    meta.namespace.clone().unwrap_or_default(),
                    meta.name.clone().unwrap_or_default(),
                ));
                Told::Object(object.into())
            }
            Ok(Some(Event::InitDone)) => Told::Listed(kind, std::mem::take(&mut listed), newest),
            Ok(Some(Event::Apply(object))) => Told::Object(object.into()),
            Ok(Some(Event::Delete(object))) => Told::Deleted(kind, Box::new(object.meta().clone())),
        };
        if sender.send(told).await.is_err() {
            return;
        }
    }
}

/// A decision's writes, done: what the API server answered, and the failure that ended them.
struct Done {
    key: Key,
    answers: Vec<(Option<Story>, Option<Object>)>,
    failure: Option<(Write, kube::Error)>,
}

struct Driver {
    client: Client,
    config: ControllerConfig,
    cache: Cache,
    /// Kinds whose first list isn't complete; nothing is decided before that, since everything missing would be created.
    unsynced: BTreeSet<Kind>,
    /// Decisions to be made.
    dirty: BTreeSet<Key>,
    /// Decisions whose writes are in flight.
    busy: HashSet<Key>,
    /// Failures in a row.
    failures: HashMap<Key, u32>,
    later: DelayQueue<Key>,
    in_flight: JoinSet<Done>,
    events: Recorder,
}

impl Driver {
    fn take(&mut self, event: Told) {
        match event {
            Told::Object(object) => {
                let change = self.cache.apply(object);
                self.changed(change);
            }
            Told::Deleted(kind, meta) => {
                let change = self.cache.delete(kind, &meta);
                self.changed(change);
            }
            Told::Listed(kind, names, newest) => {
                let changes = self.cache.retain(kind, &names, newest);
                self.changed(changes);
                self.unsynced.remove(&kind);
            }
        }
    }

    fn changed(&mut self, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            self.dirty.extend(affected(&self.cache, &change));
        }
    }

    /// Makes the decisions that are due and starts their writes.
    fn decide(&mut self) {
        if !self.unsynced.is_empty() {
            return;
        }
        let now = Timestamp::now();
        let due: Vec<Key> = self.dirty.iter().filter(|key| !self.busy.contains(key)).cloned().collect();
        for key in due {
            if self.in_flight.len() >= IN_FLIGHT {
                return;
            }
            self.dirty.remove(&key);
            let decision = decide(&self.cache, &self.config, &key, now);
            if let Some(wait) = decision.again {
                self.later.insert(key.clone(), wait);
            }
            if !decision.writes.is_empty() {
                self.busy.insert(key.clone());
                let tell = |write: Write| (story(&self.cache, &key, &write), write);
                let writes = decision.writes.into_iter().map(tell).collect();
                self.in_flight.spawn(send_all(self.client.clone(), key, writes));
            }
        }
    }

    fn finish(&mut self, done: Done) {
        self.busy.remove(&done.key);
        for (story, answer) in done.answers {
            self.events.succeeded(&self.cache, &done.key, story, answer.as_ref());
            let change = answer.and_then(|object| self.cache.apply(object));
            self.changed(change);
        }
        let Some((write, error)) = done.failure else {
            self.failures.remove(&done.key);
            return;
        };
        self.events.failed(&self.cache, &done.key, &write, &error);
        let failures = self.failures.entry(done.key.clone()).or_default();
        *failures += 1;
        let wait = RETRY.0.saturating_mul(1 << (*failures - 1).min(10)).min(RETRY.1);
        // Conflicts are what optimistic writes are for; other failures are news once they repeat.
        if *failures < 3 || matches!(&error, kube::Error::Api(status) if status.code == 409) {
            debug!(kind = ?write.kind, write.namespace, write.name, %error, "a write failed and is tried again");
        } else {
            warn!(kind = ?write.kind, write.namespace, write.name, %error, failures, "a write keeps failing");
        }
        self.later.insert(done.key, wait);
    }
}

async fn send_all(client: Client, key: Key, writes: Vec<(Option<Story>, Write)>) -> Done {
    let mut answers = Vec::new();
    for (story, write) in writes {
        match write.send(&client).await {
            Ok(answer) => answers.push((story, answer)),
            Err(error) => return Done { key, answers, failure: Some((write, error)) },
        }
    }
    Done { key, answers, failure: None }
}
