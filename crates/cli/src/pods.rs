//! Pods: found by the names users give them, and asked over HTTP through a port-forward.

use anyhow::Result;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

use crate::cluster::api_failure;
use crate::error::Failure;

/// More than any configuration dump.
const MAX_ANSWER: usize = 512 * 1024 * 1024;

/// A pod by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodName {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
}

/// What a user wrote to name a pod.
#[derive(Debug, PartialEq, Eq)]
enum Target<'a> {
    Pod { name: &'a str, namespace: Option<&'a str> },
    Of { kind: &'a str, name: &'a str, namespace: Option<&'a str> },
}

/// `POD`, `POD.NAMESPACE`, `KIND/NAME` or `KIND/NAME.NAMESPACE`, as istioctl takes them.
fn parse(target: &str) -> Target<'_> {
    let (kind, rest) = match target.split_once('/') {
        Some((kind, rest)) => (Some(kind), rest),
        None => (None, target),
    };
    let (name, namespace) = match rest.rsplit_once('.') {
        Some((name, namespace)) => (name, Some(namespace)),
        None => (rest, None),
    };
    match kind {
        None | Some("pod" | "pods" | "po") => Target::Pod { name, namespace },
        Some(kind) => Target::Of { kind, name, namespace },
    }
}

/// Finds the pod that `target` names.
///
/// # Errors
/// When there is none.
pub async fn find(client: &Client, target: &str, default_namespace: &str) -> Result<PodName> {
    match parse(target) {
        Target::Pod { name, namespace } => {
            let namespace = namespace.unwrap_or(default_namespace).to_owned();
            let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
            match pods
                .get_opt(name)
                .await
                .map_err(|error| api_failure(&format!("find pod {name}"), &error))?
            {
                Some(_) => Ok(PodName { name: name.to_owned(), namespace }),
                None => Err(Failure::new(
                    format!("There is no pod {name} in namespace {namespace}."),
                    format!("kubectl get pods -n {namespace}, then POD.NAMESPACE or deploy/NAME"),
                )
                .into()),
            }
        }
        Target::Of { kind, name, namespace } => {
            let namespace = namespace.unwrap_or(default_namespace);
            let selector = selector(client, kind, name, namespace).await?;
            let pods = list(client, namespace, &selector).await?;
            let ready = pods.iter().find(|pod| is_ready(pod)).or_else(|| pods.first());
            match ready {
                Some(pod) => Ok(PodName { name: pod.name_any(), namespace: namespace.to_owned() }),
                None => Err(Failure::new(
                    format!("{kind}/{name} in namespace {namespace} has no pods."),
                    format!("kubectl describe {kind} {name} -n {namespace}"),
                )
                .into()),
            }
        }
    }
}

async fn selector(client: &Client, kind: &str, name: &str, namespace: &str) -> Result<String> {
    let failed =
        |error: kube::Error| api_failure(&format!("read {kind} {name} in namespace {namespace}"), &error);
    let labels = match kind {
        "deploy" | "deployment" | "deployments" => {
            let object =
                Api::<Deployment>::namespaced(client.clone(), namespace).get(name).await.map_err(failed)?;
            labels(object.spec.selector)
        }
        "rs" | "replicaset" | "replicasets" => {
            let object =
                Api::<ReplicaSet>::namespaced(client.clone(), namespace).get(name).await.map_err(failed)?;
            labels(object.spec.selector)
        }
        "sts" | "statefulset" | "statefulsets" => {
            let object =
                Api::<StatefulSet>::namespaced(client.clone(), namespace).get(name).await.map_err(failed)?;
            labels(object.spec.selector)
        }
        "ds" | "daemonset" | "daemonsets" => {
            let object =
                Api::<DaemonSet>::namespaced(client.clone(), namespace).get(name).await.map_err(failed)?;
            labels(object.spec.selector)
        }
        "svc" | "service" | "services" => {
            let object =
                Api::<Service>::namespaced(client.clone(), namespace).get(name).await.map_err(failed)?;
            join(object.spec.and_then(|spec| spec.selector).unwrap_or_default())
        }
        other => {
            let known = "deploy/NAME, svc/NAME, sts/NAME, ds/NAME, rs/NAME or POD.NAMESPACE";
            return Err(Failure::new(format!("{other}/{name} is not something with pods."), known).into());
        }
    };
    Ok(labels)
}

fn labels(selector: LabelSelector) -> String {
    join(selector.match_labels.unwrap_or_default())
}

fn join(labels: std::collections::BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// Pods by label selector.
///
/// # Errors
/// When the cluster does not answer.
pub async fn list(client: &Client, namespace: &str, selector: &str) -> Result<Vec<Pod>> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let list = pods.list(&ListParams::default().labels(selector)).await;
    Ok(list.map_err(|error| api_failure(&format!("list pods in namespace {namespace}"), &error))?.items)
}

/// True when the pod's Ready condition is true.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().filter_map(|status| status.conditions.as_ref()).flatten();
    let mut ready = conditions.filter(|condition| condition.type_ == "Ready");
    pod.metadata.deletion_timestamp.is_none() && ready.any(|condition| condition.status == "True")
}

/// `GET path` on a port inside the pod.
///
/// # Errors
/// When the pod can't be reached or answers with an error status.
pub async fn get(client: &Client, pod: &PodName, port: u16, path: &str) -> Result<Vec<u8>> {
    let PodName { name, namespace } = pod;
    let unreachable = |error: String| {
        Failure::new(
            format!("Pod {name}.{namespace} does not answer on port {port}: {error}."),
            format!("kubectl get pod {name} -n {namespace}, and lateen logs {name}.{namespace}"),
        )
    };
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let mut forward =
        pods.portforward(name, &[port]).await.map_err(|error| unreachable(error.to_string()))?;
    let stream = forward.take_stream(port).ok_or_else(|| unreachable("no stream".to_owned()))?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|error| unreachable(error.to_string()))?;
    let connection = tokio::spawn(connection);
    let request = http::Request::get(path)
        .header("host", format!("localhost:{port}"))
        .body(Empty::<hyper::body::Bytes>::new())?;
    let response = sender.send_request(request).await.map_err(|error| unreachable(error.to_string()))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    let body = body.map_err(|error| unreachable(error.to_string()))?.to_bytes();
    connection.abort();
    if !status.is_success() {
        return Err(unreachable(format!("{path} gives {status}")).into());
    }
    Ok(body.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_named_as_in_istioctl() {
        for (text, wanted) in [
            ("web-1", Target::Pod { name: "web-1", namespace: None }),
            ("web-1.shop", Target::Pod { name: "web-1", namespace: Some("shop") }),
            ("pod/web-1.shop", Target::Pod { name: "web-1", namespace: Some("shop") }),
            ("deploy/web", Target::Of { kind: "deploy", name: "web", namespace: None }),
            ("svc/web.shop", Target::Of { kind: "svc", name: "web", namespace: Some("shop") }),
        ] {
            assert_eq!(parse(text), wanted, "{text}");
        }
    }
}
