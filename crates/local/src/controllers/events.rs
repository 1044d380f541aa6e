//! Events: what the controllers have done, as `kubectl describe` and `kubectl get events` show it. Reasons and messages are
//! those of Kubernetes' own controllers.

use std::collections::HashMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::debug;

use super::cache::{Cache, Kind, Object};
use super::dispatch::{Controller, Key};
use super::meta::{name, time};
use super::write::{Action, Write};

/// Events waiting to be written; more are dropped, since nothing depends on them.
const QUEUE: usize = 256;
/// Objects whose last failure is remembered, so that the same one isn't told again and again.
const REMEMBERED: usize = 1024;

/// Writes events in the background.
pub(crate) struct Recorder {
    sender: mpsc::Sender<Event>,
    task: JoinHandle<()>,
    last_failure: HashMap<Key, String>,
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Recorder {
    pub(crate) fn start(client: Client) -> Self {
        let (sender, mut events) = mpsc::channel::<Event>(QUEUE);
        let task = tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                let namespace = event.metadata.namespace.clone().unwrap_or_default();
                let api = Api::<Event>::namespaced(client.clone(), &namespace);
                if let Err(error) = api.create(&PostParams::default(), &event).await {
                    debug!(%error, "an event could not be written");
                }
            }
        });
        Self { sender, task, last_failure: HashMap::new() }
    }

    /// Tells about a write that has succeeded, with the server's answer.
    pub(crate) fn succeeded(
        &mut self,
        cache: &Cache,
        key: &Key,
        story: Option<Story>,
        answer: Option<&Object>,
    ) {
        self.last_failure.remove(key);
        if let Some(Story { reason, mut message, unnamed, warning }) = story {
            if unnamed {
                message.push_str(answer.map_or("", |object| name(object.metadata())));
            }
            self.record(cache, key, if warning { "Warning" } else { "Normal" }, reason, message);
        }
    }

    /// Tells about a pod that could not be created, once per reason.
    pub(crate) fn failed(&mut self, cache: &Cache, key: &Key, write: &Write, error: &kube::Error) {
        if write.kind != Kind::Pod || !matches!(write.action, Action::Create(_)) {
            return;
        }
        let words = match error {
            kube::Error::Api(status) => status.message.clone(),
            other => other.to_string(),
        };
        let message = format!("Error creating: {words}");
        if self.last_failure.len() >= REMEMBERED {
            self.last_failure.clear();
        }
        if self.last_failure.insert(key.clone(), message.clone()).as_ref() != Some(&message) {
            self.record(cache, key, "Warning", "FailedCreate", message);
        }
    }

    fn record(&self, cache: &Cache, key: &Key, kind: &str, reason: &str, message: String) {
        let Some((involved, component)) = involved(cache, key) else { return };
        let now = time(Timestamp::now());
        let event = Event {
            metadata: ObjectMeta {
                generate_name: Some(format!("{}.", key.name)),
                namespace: Some(key.namespace.clone()),
                ..ObjectMeta::default()
            },
            involved_object: involved,
            type_: Some(kind.to_owned()),
            reason: Some(reason.to_owned()),
            message: Some(message),
            source: Some(EventSource { component: Some(component.to_owned()), host: None }),
            count: Some(1),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now),
            ..Event::default()
        };
        // A full queue loses it.
        let _ = self.sender.try_send(event);
    }
}

/// The object an event is about, and who says so.
fn involved(cache: &Cache, key: &Key) -> Option<(ObjectReference, &'static str)> {
    let (ns, object) = (key.namespace.as_str(), key.name.as_str());
    let (meta, api_version, kind, component) = match key.controller {
        Controller::Scheduler => (&cache.pods.get(ns, object)?.metadata, "v1", "Pod", "default-scheduler"),
        Controller::Deployment => {
            (&cache.deployments.get(ns, object)?.metadata, "apps/v1", "Deployment", "deployment-controller")
        }
        Controller::ReplicaSet => {
            (&cache.replica_sets.get(ns, object)?.metadata, "apps/v1", "ReplicaSet", "replicaset-controller")
        }
        Controller::StatefulSet => (
            &cache.stateful_sets.get(ns, object)?.metadata,
            "apps/v1",
            "StatefulSet",
            "statefulset-controller",
        ),
        Controller::DaemonSet => {
            (&cache.daemon_sets.get(ns, object)?.metadata, "apps/v1", "DaemonSet", "daemonset-controller")
        }
        Controller::Job => (&cache.jobs.get(ns, object)?.metadata, "batch/v1", "Job", "job-controller"),
        Controller::Endpoints | Controller::Namespace | Controller::LoadBalancer | Controller::Signer => {
            return None;
        }
    };
    let reference = ObjectReference {
        api_version: Some(api_version.to_owned()),
        kind: Some(kind.to_owned()),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    };
    Some((reference, component))
}

/// What is to be told about a write once it has succeeded.
#[derive(Debug)]
pub(crate) struct Story {
    reason: &'static str,
    message: String,
    /// The server chooses the name, which ends the message.
    unnamed: bool,
    warning: bool,
}

/// The story of a write that is about to be made, if it is worth telling.
pub(crate) fn story(cache: &Cache, key: &Key, write: &Write) -> Option<Story> {
    let (reason, message) = match (&write.action, write.kind) {
        (Action::Bind(node), _) => {
            ("Scheduled", format!("Successfully assigned {}/{} to {node}", key.namespace, key.name))
        }
        (Action::Create(_), Kind::Pod) => ("SuccessfulCreate", format!("Created pod: {}", write.name)),
        (Action::Delete { .. }, Kind::Pod) => ("SuccessfulDelete", format!("Deleted pod: {}", write.name)),
        (Action::Create(body), Kind::ReplicaSet) => {
            ("ScalingReplicaSet", scaled(&write.name, 0, body["spec"]["replicas"].as_i64()?)?)
        }
        (Action::Merge(patch), Kind::ReplicaSet) => {
            let before = cache.replica_sets.get(&write.namespace, &write.name)?.spec.replicas.unwrap_or(1);
            ("ScalingReplicaSet", scaled(&write.name, before.into(), patch["spec"]["replicas"].as_i64()?)?)
        }
        // The scheduler writes a status only to say why a pod fits nowhere.
        (Action::MergeStatus(patch), Kind::Pod) if key.controller == Controller::Scheduler => {
            let condition = patch["status"]["conditions"].as_array()?.last()?;
            ("FailedScheduling", condition["message"].as_str()?.to_owned())
        }
        _ => return None,
    };
    let warning = reason == "FailedScheduling";
    Some(Story { reason, message, unnamed: write.name.is_empty(), warning })
}

fn scaled(set: &str, from: i64, to: i64) -> Option<String> {
    let direction = if to > from { "up" } else { "down" };
    (from != to).then(|| format!("Scaled {direction} replica set {set} from {from} to {to}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pod_that_fits_nowhere_is_warned_about() {
        let status = json!({"status": {"conditions": [{"type": "PodScheduled", "message": "0/1 nodes"}]}});
        let write = |controller| {
            let key = Key { controller, namespace: "shop".to_owned(), name: "web".to_owned() };
            let (namespace, name) = (key.namespace.clone(), key.name.clone());
            let action = Action::MergeStatus(status.clone());
            story(&Cache::default(), &key, &Write { kind: Kind::Pod, namespace, name, action })
        };
        let told = write(Controller::Scheduler).unwrap();
        assert_eq!(
            (told.reason, told.message.as_str(), told.warning),
            ("FailedScheduling", "0/1 nodes", true)
        );
        assert!(write(Controller::ReplicaSet).is_none());
    }

    #[test]
    fn what_is_told() {
        let mut cache = Cache::default();
        let set = json!({
            "metadata": {"name": "web-1", "namespace": "shop", "uid": "1", "resourceVersion": "1"},
            "spec": {"replicas": 2, "selector": {}},
        });
        cache.apply(Kind::ReplicaSet.parse(set).unwrap());
        let key =
            Key { controller: Controller::Deployment, namespace: "shop".to_owned(), name: "web".to_owned() };
        let write = |kind, name: &str, action| Write {
            kind,
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            action,
        };
        let deletion = Action::Delete { uid: "1".to_owned(), grace_seconds: None };
        let cases = [
            (
                write(Kind::Pod, "web", Action::Bind("lateen".to_owned())),
                "Successfully assigned shop/web to lateen",
            ),
            (write(Kind::Pod, "", Action::Create(json!({}))), "Created pod: "),
            (write(Kind::Pod, "db-0", Action::Create(json!({}))), "Created pod: db-0"),
            (write(Kind::Pod, "web-1-x", deletion), "Deleted pod: web-1-x"),
            (
                write(Kind::ReplicaSet, "web-1", Action::Merge(json!({"spec": {"replicas": 1}}))),
                "Scaled down replica set web-1 from 2 to 1",
            ),
            (write(Kind::ReplicaSet, "web-1", Action::Merge(json!({"metadata": {}}))), ""),
            (write(Kind::EndpointSlice, "web", Action::Create(json!({}))), ""),
        ];
        for (write, expected) in cases {
            let told = story(&cache, &key, &write);
            assert_eq!(told.as_ref().is_some_and(|story| story.unnamed), write.name.is_empty());
            let message = told.map(|story| story.message).unwrap_or_default();
            assert_eq!(message, expected, "{write:?}");
        }
    }
}
