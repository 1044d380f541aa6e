//! Kubernetes Events about pods.

use std::collections::HashMap;

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference, Pod},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use tokio::sync::mpsc;

/// Events waiting to be written; further ones are dropped, as the kubelet does under load.
const QUEUE: usize = 1024;
/// Remembered events, so that repetitions are counted instead of written anew.
const REMEMBERED: usize = 512;

/// Whether an event is bad news.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EventKind {
    Normal,
    Warning,
}

/// Writes events in the background.
#[derive(Debug, Clone)]
pub(crate) struct EventRecorder {
    sender: mpsc::Sender<NewEvent>,
}

#[derive(Debug)]
struct NewEvent {
    object: ObjectReference,
    kind: EventKind,
    reason: &'static str,
    message: String,
}

impl EventRecorder {
    /// A recorder and the task that writes, which ends with the last recorder.
    pub(crate) fn new(client: Client, node: String) -> (Self, impl Future<Output = ()> + Send) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self { sender }, write(receiver, client, node))
    }

    /// Records an event about a pod, or about one of its containers.
    pub(crate) fn record(
        &self,
        pod: &Pod,
        container: Option<&str>,
        kind: EventKind,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        let object = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: pod.namespace(),
            name: pod.metadata.name.clone(),
            uid: pod.uid(),
            resource_version: pod.resource_version(),
            field_path: container.map(|name| format!("spec.containers{{{name}}}")),
        };
        // Events are a courtesy: when too many wait, one is lost.
        let _ = self.sender.try_send(NewEvent { object, kind, reason, message: message.into() });
    }
}

/// What makes two events the same.
type Key = (Option<String>, Option<String>, &'static str, String);

async fn write(mut receiver: mpsc::Receiver<NewEvent>, client: Client, node: String) {
    let mut known: HashMap<Key, (String, i32)> = HashMap::new();
    while let Some(event) = receiver.recv().await {
        let namespace = event.object.namespace.clone().unwrap_or_default();
        let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
        let key =
            (event.object.uid.clone(), event.object.field_path.clone(), event.reason, event.message.clone());
        if let Some((name, count)) = known.get_mut(&key) {
            *count += 1;
            let patch = serde_json::json!({ "count": count, "lastTimestamp": now() });
            let patched = api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
            match patched {
                Ok(_) => continue,
                // It has expired or been deleted: written anew.
                Err(error) => tracing::debug!(%error, "counting an event"),
            }
        }
        let reason = event.reason;
        match api.create(&PostParams::default(), &build(event, &node)).await {
            Ok(created) => {
                if known.len() >= REMEMBERED {
                    known.clear();
                }
                known.insert(key, (created.name_any(), 1));
            }
            // The namespace may be on its way out.
            Err(error) => tracing::debug!(reason, %error, "writing an event"),
        }
    }
}

fn build(event: NewEvent, node: &str) -> Event {
    let namespace = event.object.namespace.clone();
    // As client-go names them: the object's name and the time in hexadecimal.
    let name =
        format!("{}.{:x}", event.object.name.clone().unwrap_or_default(), Timestamp::now().as_nanosecond());
    Event {
        metadata: ObjectMeta { namespace, name: Some(name), ..ObjectMeta::default() },
        involved_object: event.object,
        reason: Some(event.reason.to_owned()),
        message: Some(event.message),
        type_: Some(if event.kind == EventKind::Normal { "Normal" } else { "Warning" }.to_owned()),
        count: Some(1),
        first_timestamp: Some(now()),
        last_timestamp: Some(now()),
        source: Some(EventSource { component: Some("kubelet".to_owned()), host: Some(node.to_owned()) }),
        reporting_component: Some("kubelet".to_owned()),
        reporting_instance: Some(node.to_owned()),
        ..Event::default()
    }
}

fn now() -> Time {
    let now = Timestamp::now();
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}
