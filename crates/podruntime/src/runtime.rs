//! The runtime as a whole.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, ResourceExt,
    runtime::{WatchStreamExt, watcher},
};
use parking_lot::{Mutex, RwLock};
use tokio::{sync::watch, task::JoinSet, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    RuntimeConfig, RuntimeError,
    backend::{PodAccess, PodTable},
    cluster_index::ClusterIndex,
    dns::{self, DnsServer, Upstreams},
    events::EventRecorder,
    ipam::AddressPool,
    pod::{PodTask, PodUpdate},
    watch::{follow_configuration, follow_services},
};

/// How long all pods together may take to go when the runtime stops.
const STOP_PATIENCE: Duration = Duration::from_secs(20);
const DNS_PORT: u16 = 53;

/// A runtime that has not been connected to an API server yet.
pub struct Runtime {
    handle: RuntimeHandle,
}

/// A running runtime; clones share it. Implements `PodBackend` for the API server.
#[derive(Clone)]
pub struct RuntimeHandle {
    config: Arc<RuntimeConfig>,
    pods: PodTable,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// What all pods share.
pub(crate) struct Shared {
    pub(crate) config: Arc<RuntimeConfig>,
    pub(crate) client: Client,
    pub(crate) events: EventRecorder,
    pub(crate) addresses: Mutex<AddressPool>,
    /// Counts changes of ConfigMaps and Secrets.
    pub(crate) changes: watch::Receiver<u64>,
    pub(crate) stop: CancellationToken,
}

impl Runtime {
    /// A runtime that runs nothing yet.
    ///
    /// # Errors
    /// [`RuntimeError::Config`] when the configuration makes no sense.
    pub fn new(config: RuntimeConfig) -> Result<Self, RuntimeError> {
        config.network.validate()?;
        let handle = RuntimeHandle {
            config: Arc::new(config),
            pods: PodTable::default(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        Ok(Self { handle })
    }

    /// The handle; usable as the API server's `PodBackend` before [`Self::start`] (no pod is known then).
    pub fn handle(&self) -> RuntimeHandle {
        self.handle.clone()
    }

    /// Serves cluster DNS, keeps service addresses up to date and runs the pods bound to the node, until
    /// [`RuntimeHandle::stop`]. [`host_setup`](crate::host_setup) must have been called.
    ///
    /// # Errors
    /// [`RuntimeError`] when the DNS address can't be bound; nothing is left running then.
    pub async fn start(self, client: Client) -> Result<RuntimeHandle, RuntimeError> {
        let handle = self.handle;
        let config = Arc::clone(&handle.config);
        // Dropping the set, here or when the runtime stops, ends everything in it.
        let mut services = JoinSet::new();
        let index: Arc<RwLock<Arc<ClusterIndex>>> = Arc::default();
        let server = DnsServer {
            network: config.network.clone(),
            index: Arc::clone(&index),
            upstreams: Upstreams::of_host(config.network.dns_ip()),
        };
        dns::serve(Arc::new(server), (config.network.dns_ip(), DNS_PORT), &mut services).await?;
        follow_services(&client, config.names.clone(), config.network.clone(), index, &mut services);
        let changes = follow_configuration(&client, &mut services);
        let (events, writer) = EventRecorder::new(client.clone(), config.node_name.clone());
        services.spawn(writer);
        let shared = Arc::new(Shared {
            addresses: Mutex::new(AddressPool::new(config.network.pod_cidr, config.network.node_ip)),
            config,
            client,
            events,
            changes,
            stop: handle.stop.clone(),
        });
        handle.tasks.spawn(follow_pods(shared, handle.clone(), services));
        Ok(handle)
    }
}

impl RuntimeHandle {
    /// Kills all containers, removes their networks and files, and ends every task. Pod objects stay as they are.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        if timeout(STOP_PATIENCE, self.tasks.wait()).await.is_err() {
            tracing::warn!("pods did not end within {STOP_PATIENCE:?}; the host's clean-up removes the rest");
        }
    }

    pub(crate) fn pods(&self) -> &PodTable {
        &self.pods
    }

    pub(crate) fn config(&self) -> &RuntimeConfig {
        &self.config
    }
}

/// A pod's task and how to reach it.
struct Entry {
    uid: Option<String>,
    updates: watch::Sender<PodUpdate>,
}

/// Gives each pod bound to the node a task, and each task the news of its pod.
async fn follow_pods(shared: Arc<Shared>, handle: RuntimeHandle, services: JoinSet<()>) {
    let selector = format!("spec.nodeName={}", shared.config.node_name);
    let api = Api::<Pod>::all(shared.client.clone());
    let mut events = watcher(api, watcher::Config::default().fields(&selector)).default_backoff().boxed();
    let mut entries: HashMap<(String, String), Entry> = HashMap::new();
    // Pods seen in a list, to find those that went while the watch was interrupted.
    let mut listed: Option<Vec<(String, String)>> = None;
    loop {
        let event = tokio::select! {
            event = events.next() => event,
            () = handle.stop.cancelled() => break,
        };
        match event {
            Some(Ok(watcher::Event::Init)) => listed = Some(Vec::new()),
            Some(Ok(watcher::Event::InitApply(pod))) => {
                listed.get_or_insert_default().push(key(&pod));
                apply(&shared, &handle, &mut entries, pod);
            }
            Some(Ok(watcher::Event::InitDone)) => {
                let present = listed.take().unwrap_or_default();
                entries.retain(|key, entry| present.contains(key) || gone(entry));
            }
            Some(Ok(watcher::Event::Apply(pod))) => apply(&shared, &handle, &mut entries, pod),
            Some(Ok(watcher::Event::Delete(pod))) => {
                // A pod of the same name may have followed already.
                if entries.get(&key(&pod)).is_some_and(|entry| entry.uid == pod.uid())
                    && let Some(entry) = entries.remove(&key(&pod))
                {
                    gone(&entry);
                }
            }
            Some(Err(error)) => tracing::debug!(%error, "watch of pods interrupted; it resumes by itself"),
            None => break,
        }
    }
    drop(services);
}

fn key(pod: &Pod) -> (String, String) {
    (pod.namespace().unwrap_or_default(), pod.name_any())
}

/// Tells a pod's task that its object has gone; always false, for `retain`.
fn gone(entry: &Entry) -> bool {
    entry.updates.send_modify(|update| update.gone = true);
    false
}

fn apply(
    shared: &Arc<Shared>,
    handle: &RuntimeHandle,
    entries: &mut HashMap<(String, String), Entry>,
    pod: Pod,
) {
    let (key, uid, pod) = (key(&pod), pod.uid(), Arc::new(pod));
    if let Some(entry) = entries.get(&key) {
        if entry.uid == uid {
            entry.updates.send_modify(|update| update.pod = pod);
            return;
        }
        gone(entry);
    }
    let access = Arc::new(PodAccess::new(&pod));
    handle.pods.write().insert(key.clone(), Arc::clone(&access));
    let (updates, receiver) = watch::channel(PodUpdate { pod, gone: false });
    entries.insert(key.clone(), Entry { uid, updates });
    let task = PodTask::new(Arc::clone(shared), receiver, Arc::clone(&access), handle.stop.clone());
    let pods = Arc::clone(&handle.pods);
    handle.tasks.spawn(async move {
        task.run().await;
        access.release();
        let mut pods = pods.write();
        if pods.get(&key).is_some_and(|own| Arc::ptr_eq(own, &access)) {
            pods.remove(&key);
        }
    });
}
