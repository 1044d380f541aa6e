//! Writing a pod's status to the API: the latest one, one request at a time.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
};
use tokio::{sync::watch, task::JoinHandle, time::timeout};

/// How long the last status may take at the end of a pod.
const LAST: Duration = Duration::from_secs(2);
/// Pauses after a failed attempt: from, to.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// Writes one pod's status in the background.
pub(super) struct StatusWriter {
    latest: watch::Sender<PodStatus>,
    task: JoinHandle<()>,
}

impl StatusWriter {
    pub(super) fn new(client: Client, pod: &Pod) -> Self {
        let (latest, receiver) = watch::channel(PodStatus::default());
        let api = Api::namespaced(client, &pod.namespace().unwrap_or_default());
        let task = tokio::spawn(write(receiver, api, pod.name_any(), pod.uid()));
        Self { latest, task }
    }

    pub(super) fn publish(&self, status: PodStatus) {
        self.latest.send_replace(status);
    }

    /// Writes what is left.
    pub(super) async fn finish(self) {
        let Self { latest, task } = self;
        drop(latest);
        let abort = task.abort_handle();
        if timeout(LAST, task).await.is_err() {
            abort.abort();
        }
    }
}

async fn write(mut latest: watch::Receiver<PodStatus>, api: Api<Pod>, name: String, uid: Option<String>) {
    let mut pause = PAUSES.0;
    // An unseen status is still delivered after the sender has gone.
    while latest.changed().await.is_ok() {
        loop {
            let status = latest.borrow_and_update().clone();
            let patch = serde_json::json!({ "metadata": { "uid": uid }, "status": status });
            match api.patch_status(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Ok(_) => {
                    pause = PAUSES.0;
                    break;
                }
                // The pod has gone, or another one has its name.
                Err(kube::Error::Api(error)) if matches!(error.code, 404 | 409 | 422) => {
                    tracing::debug!(pod = name, %error, "status not wanted any more");
                    break;
                }
                Err(error) => tracing::warn!(pod = name, %error, "writing a pod's status; trying again"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }
}
