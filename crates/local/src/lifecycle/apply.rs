//! Writing manifests to the API server, and waiting for what follows from them.

use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use serde_json::Value;
use tokio::time::Instant;

use super::LifecycleError;

/// Requests at the same time.
const PARALLEL: usize = 16;
/// Between tries of a request whose resource or webhook isn't served yet.
const RETRY: Duration = Duration::from_millis(20);
/// Field manager of what `up` applies.
const MANAGER: &str = "lateen";

/// What to do with an object that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    /// Bring it to what is wanted.
    Update,
    /// Leave it: it may have been changed on purpose.
    Keep,
}

/// Writes all objects: those that others need first (namespaces, CRDs), the rest in parallel.
///
/// # Errors
/// [`LifecycleError::Apply`] with the first refusal that lasts until `deadline`.
pub(crate) async fn apply(
    client: &Client,
    objects: Vec<Value>,
    existing: Existing,
    deadline: Instant,
) -> Result<(), LifecycleError> {
    let (first, rest): (Vec<Value>, Vec<Value>) = objects.into_iter().partition(|object| {
        matches!(object["kind"].as_str(), Some("Namespace" | "CustomResourceDefinition"))
    });
    for objects in [first, rest] {
        stream::iter(objects.into_iter().map(|object| write(client, object, existing, deadline)))
            .buffer_unordered(PARALLEL)
            .try_collect::<()>()
            .await?;
    }
    Ok(())
}

async fn write(
    client: &Client,
    object: Value,
    existing: Existing,
    deadline: Instant,
) -> Result<(), LifecycleError> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (kind, name) = (text(&object["kind"]), text(&object["metadata"]["name"]));
    let namespace = text(&object["metadata"]["namespace"]);
    let api_version = text(&object["apiVersion"]);
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
    let api: Api<DynamicObject> = if namespace.is_empty() {
        Api::all_with(client.clone(), &resource)
    } else {
        Api::namespaced_with(client.clone(), &namespace, &resource)
    };
    let refused =
        |problem: String| LifecycleError::Apply { object: format!("{kind} {namespace}/{name}"), problem };
    let typed: DynamicObject = serde_json::from_value(object).map_err(|error| refused(error.to_string()))?;
    loop {
        let written = match existing {
            Existing::Update => {
                api.patch(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&typed)).await.map(drop)
            }
            Existing::Keep => api.create(&PostParams::default(), &typed).await.map(drop),
        };
        match written {
            Ok(()) => return Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 && existing == Existing::Keep => {
                return Ok(());
            }
            Err(error) if is_early(&error) && Instant::now() < deadline => tokio::time::sleep(RETRY).await,
            Err(kube::Error::Api(status)) => return Err(refused(status.message.clone())),
            Err(error) => return Err(refused(error.to_string())),
        }
    }
}

/// A CRD isn't served yet, or a webhook doesn't answer yet.
fn is_early(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 404 | 500 | 503))
}

/// Waits until a Deployment has all its pods available.
///
/// # Errors
/// [`LifecycleError::Timeout`] with what its pods lack.
pub(crate) async fn available(
    client: &Client,
    namespace: &str,
    name: &str,
    deadline: Instant,
) -> Result<(), LifecycleError> {
    let api = Api::<Deployment>::namespaced(client.clone(), namespace);
    let wait =
        await_condition(api, name, |deployment: Option<&Deployment>| deployment.is_some_and(is_available));
    until(deadline, client, namespace, format!("Deployment {namespace}/{name}"), wait).await
}

fn is_available(deployment: &Deployment) -> bool {
    deployment.status.as_ref().is_some_and(|status| {
        let wanted = deployment.spec.replicas.unwrap_or(1);
        status.observed_generation >= deployment.metadata.generation
            && status.updated_replicas.unwrap_or(0) >= wanted
            && status.available_replicas.unwrap_or(0) >= wanted
    })
}

/// Waits until the control plane has written its CA into a webhook configuration: from then on it is asked.
///
/// # Errors
/// [`LifecycleError::Timeout`].
pub(crate) async fn webhook_ready(
    client: &Client,
    name: &str,
    namespace: &str,
    deadline: Instant,
) -> Result<(), LifecycleError> {
    let api = Api::<MutatingWebhookConfiguration>::all(client.clone());
    let has_ca = |configuration: Option<&MutatingWebhookConfiguration>| {
        configuration.is_some_and(|configuration| {
            configuration.webhooks.iter().flatten().all(|webhook| {
                webhook.client_config.ca_bundle.as_ref().is_some_and(|bundle| !bundle.0.is_empty())
            })
        })
    };
    until(deadline, client, namespace, format!("the webhook {name}"), await_condition(api, name, has_ca))
        .await
}

async fn until<T, E: std::fmt::Display>(
    deadline: Instant,
    client: &Client,
    namespace: &str,
    waiting_for: String,
    wait: impl Future<Output = Result<T, E>>,
) -> Result<(), LifecycleError> {
    let begun = Instant::now();
    let hint = match tokio::time::timeout_at(deadline, wait).await {
        Ok(Ok(_)) => return Ok(()),
        Ok(Err(error)) => format!("the API server stopped answering ({error}); see `lateen logs cluster`"),
        Err(_) => unready_pods(client, namespace).await,
    };
    Err(LifecycleError::Timeout { waiting_for, after: begun.elapsed(), hint })
}

/// What the pods of a namespace lack, for people.
pub(crate) async fn unready_pods(client: &Client, namespace: &str) -> String {
    let pods = Api::<Pod>::namespaced(client.clone(), namespace).list(&ListParams::default()).await;
    let reasons: Vec<String> = pods.into_iter().flatten().filter_map(|pod| complaint(&pod)).collect();
    if reasons.is_empty() {
        format!("look at `kubectl -n {namespace} get pods,events` and `lateen logs cluster`")
    } else {
        reasons.join("; ")
    }
}

/// Why a pod isn't ready, in the words of its containers; `None` when it is.
fn complaint(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let ready = status
        .conditions
        .iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True");
    if ready || status.phase.as_deref() == Some("Succeeded") {
        return None;
    }
    let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
    let containers = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    for container in containers.filter(|container| !container.ready) {
        let state = container.state.clone().unwrap_or_default();
        let words = |reason: Option<String>, message: Option<String>| {
            let parts: Vec<String> =
                [reason, message].into_iter().flatten().filter(|part| !part.is_empty()).collect();
            parts.join(": ")
        };
        let why = match (state.waiting, state.terminated) {
            (Some(waiting), _) => words(waiting.reason, waiting.message),
            (None, Some(ended)) if ended.exit_code != 0 => {
                format!("exit code {} {}", ended.exit_code, words(ended.reason, ended.message))
            }
            _ => continue,
        };
        return Some(format!("pod {pod_name}, container {}: {why}", container.name));
    }
    Some(format!("pod {pod_name} is {}, not ready", status.phase.as_deref().unwrap_or("Pending")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn deployments_are_available_when_the_newest_pods_are() {
        let deployment = |generation, observed, updated, available| -> Deployment {
            serde_json::from_value(json!({
                "metadata": {"generation": generation},
                "spec": {"replicas": 2, "selector": {}, "template": {}},
                "status": {"observedGeneration": observed, "updatedReplicas": updated, "availableReplicas": available},
            }))
            .unwrap()
        };
        let cases =
            [((1, 1, 2, 2), true), ((2, 1, 2, 2), false), ((1, 1, 1, 2), false), ((1, 1, 2, 1), false)];
        for ((generation, observed, updated, available), expected) in cases {
            assert_eq!(is_available(&deployment(generation, observed, updated, available)), expected);
        }
    }

    #[test]
    fn pods_complain_in_their_containers_words() {
        let pod = |status| -> Pod {
            serde_json::from_value(json!({"metadata": {"name": "web"}, "status": status})).unwrap()
        };
        let container = |ready: bool, state| json!({"name": "app", "ready": ready, "state": state, "image": "", "imageID": "", "restartCount": 0});
        let cases = [
            (json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}), None),
            (json!({"phase": "Pending"}), Some("pod web is Pending, not ready")),
            (
                json!({"containerStatuses": [container(false, json!({"waiting": {"reason": "ErrImagePull", "message": "no mapping"}}))]}),
                Some("pod web, container app: ErrImagePull: no mapping"),
            ),
            (
                json!({"phase": "Running", "containerStatuses": [container(false, json!({"terminated": {"exitCode": 3, "reason": "Error"}}))]}),
                Some("pod web, container app: exit code 3 Error"),
            ),
        ];
        for (status, expected) in cases {
            assert_eq!(complaint(&pod(status.clone())).as_deref(), expected, "{status}");
        }
    }
}
