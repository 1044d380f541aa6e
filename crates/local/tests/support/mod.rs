//! A cluster in memory whose pods are played by a fake kubelet.

use std::collections::HashMap;
use std::fmt::Debug;
use std::time::Duration;

use futures::TryStreamExt;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::wait::await_condition;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use lateen_local::{Cluster, ClusterConfig};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Long enough for a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) client: Client,
    kubelet: tokio::task::JoinHandle<()>,
}

impl World {
    pub(crate) async fn start() -> Self {
        let cluster = Cluster::start(ClusterConfig::in_memory()).await.unwrap();
        let client = cluster.client();
        let kubelet = tokio::spawn(play_kubelet(client.clone()));
        Self { cluster, client, kubelet }
    }

    pub(crate) async fn stop(self) {
        self.kubelet.abort();
        self.cluster.shutdown().await;
    }

    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    pub(crate) async fn create<K>(&self, object: Value) -> K
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Serialize
            + DeserializeOwned
            + Clone
            + Debug,
    {
        let object: K = serde_json::from_value(object).unwrap();
        self.api().create(&PostParams::default(), &object).await.unwrap()
    }

    pub(crate) async fn merge<K>(&self, name: &str, patch: Value)
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + DeserializeOwned + Clone + Debug,
    {
        self.api::<K>().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    }

    /// Waits until the object of this name satisfies `test`.
    pub(crate) async fn until<K>(&self, name: &str, what: &str, test: impl Fn(&K) -> bool) -> K
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + DeserializeOwned
            + Clone
            + Debug
            + Send
            + 'static,
    {
        let wait = await_condition(self.api::<K>(), name, |object: Option<&K>| object.is_some_and(&test));
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(found) => found.unwrap().unwrap(),
            Err(_) => panic!("{what}: {:?}", self.api::<K>().get_opt(name).await),
        }
    }

    /// Waits until the list of all objects satisfies `test`.
    pub(crate) async fn until_all<K>(&self, what: &str, test: impl Fn(&[K]) -> bool) -> Vec<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + DeserializeOwned
            + Clone
            + Debug
            + Send
            + 'static,
    {
        let mut events =
            std::pin::pin!(watcher(self.api::<K>(), watcher::Config::default()).default_backoff());
        let mut known: HashMap<String, K> = HashMap::new();
        let name = |object: &K| object.meta().name.clone().unwrap();
        let wait = async {
            while let Some(event) = events.try_next().await.unwrap() {
                match event {
                    watcher::Event::Apply(object) | watcher::Event::InitApply(object) => {
                        known.insert(name(&object), object);
                    }
                    watcher::Event::Delete(object) => drop(known.remove(&name(&object))),
                    watcher::Event::Init => known.clear(),
                    watcher::Event::InitDone => {}
                }
                let all: Vec<K> = known.values().cloned().collect();
                if test(&all) {
                    return all;
                }
            }
            panic!("the watch ended")
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what}"))
    }
}

/// Pods on the node run at once; those labelled `slow` never get ready; deleted ones go at once. Pods named `once…` succeed.
async fn play_kubelet(client: Client) {
    let config = watcher::Config::default().fields("spec.nodeName=lateen");
    let mut pods = std::pin::pin!(watcher(Api::<Pod>::all(client.clone()), config).default_backoff());
    let mut next = 0_u8;
    while let Ok(Some(event)) = pods.try_next().await {
        let (watcher::Event::Apply(pod) | watcher::Event::InitApply(pod)) = event else { continue };
        let api = Api::<Pod>::namespaced(client.clone(), pod.metadata.namespace.as_deref().unwrap());
        let name = pod.metadata.name.clone().unwrap();
        if pod.metadata.deletion_timestamp.is_some() {
            let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
            let _ = api.delete(&name, &now).await;
            continue;
        }
        if pod.status.as_ref().is_some_and(|status| status.pod_ip.is_some()) {
            continue;
        }
        next += 1;
        let ready = !pod.metadata.labels.clone().unwrap_or_default().contains_key("slow");
        let phase = if name.starts_with("once") { "Succeeded" } else { "Running" };
        let ready = if ready && phase == "Running" { "True" } else { "False" };
        let status = json!({"status": {
            "phase": phase, "podIP": format!("10.244.1.{next}"), "hostIP": "10.244.0.1",
            "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": jiff_now()}],
        }});
        let _ = api.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await;
    }
}

fn jiff_now() -> String {
    k8s_openapi::jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

pub(crate) fn deployment(name: &str, replicas: i32, image: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}},
                         "spec": {"containers": [{"name": "app", "image": image, "ports": [{"name": "web", "containerPort": 8080}]}]}},
        },
    })
}

pub(crate) fn service(name: &str, kind: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {
        "type": kind, "selector": {"app": name}, "ports": [{"name": "http", "port": 80, "targetPort": "web"}],
    }})
}
