//! What runs.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::ListParams;
use kube::{Api, Client};

use super::state::{State, file_error};
use super::{LifecycleError, Mesh, Status, sample};

/// Root namespace of the mesh.
pub(crate) const MESH_NAMESPACE: &str = "istio-system";
/// Name of the ingress gateway's Service and Deployment.
pub(crate) const GATEWAY: &str = "istio-ingressgateway";
/// How long the API server may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The state of the cluster in `state`.
///
/// # Errors
/// [`LifecycleError::NotRunning`], or [`LifecycleError::File`] when its kubeconfig can't be read.
pub async fn status(state: &Path) -> Result<Status, LifecycleError> {
    let state = State::new(state);
    let daemon = state.require_running()?;
    let client = connect(&state).await?;
    let mut status = Status {
        daemon,
        api: api_url(&state)?,
        kubeconfig: state.kubeconfig(),
        mesh: Vec::new(),
        gateway: None,
        pods: (0, 0),
    };
    // An API server that doesn't answer is shown by what is missing.
    if let Ok(Ok((mesh, gateway, pods))) = tokio::time::timeout(PATIENCE, look(&client)).await {
        (status.mesh, status.gateway, status.pods) = (mesh, gateway, pods);
    }
    Ok(status)
}

/// Path of the kubeconfig of the running cluster in `state`.
///
/// # Errors
/// [`LifecycleError::NotRunning`].
pub fn kubeconfig(state: &Path) -> Result<PathBuf, LifecycleError> {
    let state = State::new(state);
    state.require_running()?;
    Ok(state.kubeconfig())
}

/// A client of the running cluster.
///
/// # Errors
/// [`LifecycleError::File`] when the kubeconfig can't be read, [`LifecycleError::Cluster`] when it can't be used.
pub(crate) async fn connect(state: &State) -> Result<Client, LifecycleError> {
    let path = state.kubeconfig();
    let text = std::fs::read_to_string(&path).map_err(file_error(&path))?;
    Ok(crate::cluster::client(&text).await?)
}

fn api_url(state: &State) -> Result<String, LifecycleError> {
    let path = state.kubeconfig();
    let kubeconfig = kube::config::Kubeconfig::read_from(&path)
        .map_err(|error| file_error(&path)(std::io::Error::other(error)))?;
    let cluster = kubeconfig.clusters.into_iter().next().and_then(|named| named.cluster);
    Ok(cluster.and_then(|cluster| cluster.server).unwrap_or_default())
}

async fn look(client: &Client) -> Result<(Vec<Mesh>, Option<Ipv4Addr>, (usize, usize)), kube::Error> {
    let all = ListParams::default();
    let mut mesh = Vec::new();
    for namespace in [MESH_NAMESPACE, sample::NAMESPACE] {
        let deployments = Api::<Deployment>::namespaced(client.clone(), namespace).list(&all).await?;
        mesh.extend(deployments.items.iter().map(|deployment| summary(namespace, deployment)));
    }
    let pods = Api::<Pod>::all(client.clone()).list(&all).await?.items;
    let ready = pods.iter().filter(|pod| is_ready(pod)).count();
    Ok((mesh, gateway(client).await?, (ready, pods.len())))
}

fn summary(namespace: &str, deployment: &Deployment) -> Mesh {
    let count = |value: Option<i32>| value.and_then(|number| u32::try_from(number).ok());
    Mesh {
        namespace: namespace.to_owned(),
        name: deployment.metadata.name.clone().unwrap_or_default(),
        ready: count(deployment.status.as_ref().and_then(|status| status.ready_replicas)).unwrap_or(0),
        wanted: count(deployment.spec.replicas).unwrap_or(1),
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Address of the ingress gateway, if it has one.
///
/// # Errors
/// When the API server doesn't answer.
pub(crate) async fn gateway(client: &Client) -> Result<Option<Ipv4Addr>, kube::Error> {
    let service = Api::<Service>::namespaced(client.clone(), MESH_NAMESPACE).get_opt(GATEWAY).await?;
    Ok(service.as_ref().and_then(address))
}

/// The load balancer's address of a Service.
pub(crate) fn address(service: &Service) -> Option<Ipv4Addr> {
    let ingress = service.status.as_ref()?.load_balancer.as_ref()?.ingress.as_ref()?;
    ingress.first()?.ip.as_ref()?.parse().ok()
}
