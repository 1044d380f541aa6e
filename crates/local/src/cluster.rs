//! A whole cluster in one process.

use std::net::SocketAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use lateen_apiserver::{ApiServer, ApiServerConfig, StartError, StoreConfig};
use lateen_podruntime::{Runtime, RuntimeConfig, RuntimeError, RuntimeHandle, host_setup, host_teardown};
use lateen_podstreams::PodBackend;
use tracing::warn;

use crate::node::Node;
use crate::{ClusterConfig, ControllerConfig, Controllers, Pods};

/// Why a cluster could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The API server.
    #[error("API server: {0}")]
    ApiServer(#[from] StartError),
    /// The pod runtime, or its set-up of the host.
    #[error("pod runtime: {0}")]
    Runtime(#[from] RuntimeError),
    /// Our own requests to the API server.
    #[error("cannot talk to the cluster's own API server: {0}; its log has more")]
    Client(#[from] kube::Error),
    /// The connection settings of our own client.
    #[error("cannot use the cluster's own credentials: {0}")]
    Credentials(String),
}

/// A running cluster. [`Cluster::shutdown`] stops pods and removes everything from the host.
pub struct Cluster {
    config: ClusterConfig,
    api: ApiServer,
    client: Client,
    kubeconfig: String,
    controllers: Controllers,
    node: Node,
    runtime: Option<RuntimeHandle>,
}

impl Cluster {
    /// Starts the API server, the controllers and (with [`Pods::Run`](crate::Pods::Run)) the runtime; returns once the
    /// API answers and the node is registered. What a crash has left on the host is removed before.
    ///
    /// # Errors
    /// [`ClusterError`]; what had been started is stopped again.
    pub async fn start(config: ClusterConfig) -> Result<Self, ClusterError> {
        let runtime = match &config.pods {
            Pods::Run { executable, images } => {
                host_teardown(&config.names, &config.state_dir).await?;
                let runtime = Runtime::new(RuntimeConfig {
                    node_name: config.node_name.clone(),
                    names: config.names.clone(),
                    network: config.network.clone(),
                    state_dir: config.state_dir.clone(),
                    executable: executable.clone(),
                    images: images.clone(),
                })?;
                host_setup(&config.names, &config.network, &config.state_dir).await?;
                Some(runtime)
            }
            Pods::Elsewhere => None,
        };
        let on_host = runtime.is_some();
        let started = Self::start_on_host(config.clone(), runtime).await;
        if started.is_err() && on_host {
            undo_host_setup(&config).await;
        }
        started
    }

    async fn start_on_host(config: ClusterConfig, runtime: Option<Runtime>) -> Result<Self, ClusterError> {
        let backend = runtime.as_ref().map(|runtime| Arc::new(runtime.handle()) as Arc<dyn PodBackend>);
        let api = ApiServer::start(api_config(&config, backend)).await?;
        let kubeconfig = api.kubeconfig(&api.url())?;
        let client = client(&kubeconfig).await?;
        if config.durable {
            renew_pods(&client).await?;
        }
        let node = Node::register(client.clone(), &config).await?;
        let controllers = Controllers::start(
            client.clone(),
            ControllerConfig { network: config.network.clone(), root_ca_pem: api.ca_pem().to_owned() },
        );
        let runtime = match runtime {
            Some(runtime) => Some(runtime.start(client.clone()).await?),
            None => None,
        };
        Ok(Self { config, api, client, kubeconfig, controllers, node, runtime })
    }

    /// A client with all rights.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// A kubeconfig (YAML, everything inline) for users on this machine.
    pub fn kubeconfig(&self) -> &str {
        &self.kubeconfig
    }

    /// The API server, for what goes beyond its API (minting tokens, its addresses).
    pub fn api_server(&self) -> &ApiServer {
        &self.api
    }

    /// Stops controllers, pods and the API server, and removes what is on the host. Objects stay in a durable store.
    pub async fn shutdown(self) {
        let Self { config, api, controllers, node, runtime, .. } = self;
        // First those who would react to the rest going away.
        controllers.stop().await;
        node.stop().await;
        let on_host = runtime.is_some();
        if let Some(runtime) = runtime {
            runtime.stop().await;
        }
        api.shutdown().await;
        if on_host {
            undo_host_setup(&config).await;
        }
    }
}

async fn undo_host_setup(config: &ClusterConfig) {
    if let Err(error) = host_teardown(&config.names, &config.state_dir).await {
        warn!(%error, "something is left on the host; `lateen down` tries again");
    }
}

fn api_config(config: &ClusterConfig, pod_backend: Option<Arc<dyn PodBackend>>) -> ApiServerConfig {
    let mut listen = vec![config.api_listen];
    if pod_backend.is_some() {
        listen.push(SocketAddr::from((config.network.node_ip, config.api_listen.port())));
        listen.push(SocketAddr::from((config.network.api_ip(), 443)));
    }
    let (store, pki_dir) = if config.durable {
        (StoreConfig::Durable(config.state_dir.join("store")), Some(config.state_dir.join("pki")))
    } else {
        (StoreConfig::Ephemeral, None)
    };
    ApiServerConfig {
        listen,
        store,
        pki_dir,
        service_cidr: config.network.service_cidr,
        service_cidr6: config.network.ipv6.as_ref().map(|ranges| ranges.service_cidr),
        cluster_domain: config.network.cluster_domain.clone(),
        pod_backend,
        ..ApiServerConfig::default()
    }
}

/// A client for what a kubeconfig describes.
///
/// # Errors
/// [`ClusterError::Credentials`] when it can't be used.
pub(crate) async fn client(kubeconfig: &str) -> Result<Client, ClusterError> {
    let unusable = |error: &dyn std::fmt::Display| ClusterError::Credentials(error.to_string());
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig).map_err(|error| unusable(&error))?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(|error| unusable(&error))?;
    Ok(Client::try_from(config)?)
}

/// Pods of a former run are gone with its processes: those that nobody makes anew begin again, the others are removed.
///
/// A pod that begins again stays the same object, as on a node that was rebooted: to create it would ask admission webhooks,
/// whose servers are pods that don't run yet.
async fn renew_pods(client: &Client) -> Result<(), ClusterError> {
    let old = Api::<Pod>::all(client.clone()).list(&ListParams::default()).await?;
    for mut pod in old {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let pods = Api::<Pod>::namespaced(client.clone(), &namespace);
        let name = pod.metadata.name.clone().unwrap_or_default();
        let done = if begins_again(&pod) {
            pod.status = Some(PodStatus { phase: Some("Pending".to_owned()), ..PodStatus::default() });
            pods.replace_status(&name, &PostParams::default(), &pod).await.map(drop)
        } else {
            let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::background() };
            pods.delete(&name, &at_once).await.map(drop)
        };
        match done {
            Ok(()) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Not when a controller makes a new one, and not when it was being deleted or had ended.
fn begins_again(pod: &Pod) -> bool {
    let owned = pod.metadata.owner_references.as_ref().is_some_and(|owners| !owners.is_empty());
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    !owned && pod.metadata.deletion_timestamp.is_none() && !matches!(phase, Some("Succeeded" | "Failed"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_lone_living_pods_begin_again() {
        let pod = |metadata, phase: &str| -> Pod {
            serde_json::from_value(json!({
                "metadata": metadata, "spec": {"nodeName": "lateen", "containers": []}, "status": {"phase": phase},
            }))
            .unwrap()
        };
        let owner = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "x", "uid": "x"}]);
        let cases = [
            (json!({"name": "curl", "uid": "old", "labels": {"run": "curl"}}), "Running", true),
            (json!({"name": "curl"}), "Pending", true),
            (json!({"name": "curl"}), "Succeeded", false),
            (json!({"name": "web-1", "ownerReferences": owner}), "Running", false),
            (json!({"name": "curl", "deletionTimestamp": "2026-01-01T00:00:00Z"}), "Running", false),
        ];
        for (metadata, phase, expected) in cases {
            assert_eq!(begins_again(&pod(metadata.clone(), phase)), expected, "{metadata} {phase}");
        }
    }
}
