//! `lateen logs`.

use std::io::Write;

use anyhow::Result;
use futures::{AsyncBufReadExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::LogParams;

use crate::args::LogsArgs;
use crate::cluster::{ClusterArgs, api_failure};
use crate::error::Failure;
use crate::pods;

/// Prints the log of the embedded cluster, of a component, or of a pod's container.
///
/// # Errors
/// When there is no such thing, or its log can't be read.
pub(crate) async fn run(cluster: &ClusterArgs, args: &LogsArgs) -> Result<()> {
    let (target, namespace) = match args.target.as_str() {
        "cluster" => return daemon(cluster, args).await,
        "istiod" => ("deploy/istiod", cluster.istio_namespace.as_str()),
        "ingressgateway" | "istio-ingressgateway" => {
            ("deploy/istio-ingressgateway", cluster.istio_namespace.as_str())
        }
        other => (other, cluster.namespace()),
    };
    let client = cluster.client().await?;
    let pod = pods::find(&client, target, namespace).await?;
    let api: Api<Pod> = Api::namespaced(client, &pod.namespace);
    let container = match &args.container {
        Some(container) => Some(container.clone()),
        None => {
            default_container(&api.get(&pod.name).await.map_err(|error| api_failure("read the pod", &error))?)
        }
    };
    let params = LogParams { container, follow: args.follow, tail_lines: args.tail, ..LogParams::default() };
    let stream = api.log_stream(&pod.name, &params).await;
    let stream = stream
        .map_err(|error| api_failure(&format!("read the log of {}.{}", pod.name, pod.namespace), &error))?;
    let mut lines = stream.lines();
    let mut out = std::io::stdout().lock();
    let broken = |error| {
        let target = format!("{}.{}", pod.name, pod.namespace);
        Failure::new(format!("The log of {target} ended early: {error}."), format!("lateen logs {target}"))
    };
    while let Some(line) = lines.try_next().await.map_err(broken)? {
        match writeln!(out, "{line}") {
            // The reader (head, less) has seen enough.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            other => other?,
        }
    }
    Ok(())
}

async fn daemon(cluster: &ClusterArgs, args: &LogsArgs) -> Result<()> {
    let tail = args.tail.and_then(|lines| usize::try_from(lines).ok());
    lateen_local::logs(&cluster.state, tail, args.follow, &mut std::io::stdout()).await?;
    Ok(())
}

/// The container that kubectl would take: the annotated one, else the first.
fn default_container(pod: &Pod) -> Option<String> {
    let annotations = pod.metadata.annotations.as_ref();
    let annotated = annotations.and_then(|all| all.get("kubectl.kubernetes.io/default-container")).cloned();
    annotated.or_else(|| Some(pod.spec.as_ref()?.containers.first()?.name.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_annotated_container_is_the_default() {
        let pod: Pod = serde_json::from_value(serde_json::json!({
            "metadata": { "annotations": { "kubectl.kubernetes.io/default-container": "web" } },
            "spec": { "containers": [{ "name": "istio-proxy" }, { "name": "web" }] },
        }))
        .unwrap();
        assert_eq!(default_container(&pod).as_deref(), Some("web"));
        let pod = Pod { metadata: kube::api::ObjectMeta::default(), ..pod };
        assert_eq!(default_container(&pod).as_deref(), Some("istio-proxy"), "no annotations at all");
    }
}
