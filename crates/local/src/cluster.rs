//! A whole cluster in one process.

use lateen_apiserver::StartError;
use lateen_podruntime::RuntimeError;

use crate::ClusterConfig;

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
    client: kube::Client,
    kubeconfig: String,
}

impl Cluster {
    /// Starts the API server, the controllers and (with [`Pods::Run`](crate::Pods::Run)) the runtime; returns once the
    /// API answers and the node is registered.
    ///
    /// # Errors
    /// [`ClusterError`]; what had been started is stopped again.
    pub async fn start(config: ClusterConfig) -> Result<Self, ClusterError> {
        let _ = config;
        Err(ClusterError::Credentials("the cluster is not built yet".to_owned()))
    }

    /// A client with all rights.
    pub fn client(&self) -> kube::Client {
        self.client.clone()
    }

    /// A kubeconfig (YAML, everything inline) for users on this machine.
    pub fn kubeconfig(&self) -> &str {
        &self.kubeconfig
    }

    /// Stops controllers, pods and the API server, and removes what is on the host. Objects stay in a durable store.
    pub async fn shutdown(self) {}
}
