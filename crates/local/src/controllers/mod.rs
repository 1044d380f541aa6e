//! What makes objects come true: the part of kube-controller-manager and kube-scheduler a small cluster needs.
//!
//! Every controller is a pure function from objects to the writes that are missing ([`write::Decision`]), in a file of its
//! own. `dispatch` knows which of them a change concerns, `driver` does the watching and writing.

mod cache;
mod daemon_set;
mod deployment;
mod deployment_status;
mod dispatch;
mod driver;
mod endpoints;
mod events;
mod job;
mod load_balancer;
mod meta;
mod namespace;
mod replica_set;
mod scheduler;
mod signer;
mod stateful_set;
mod write;

use lateen_podruntime::Network;
use tokio_util::sync::{CancellationToken, DropGuard};

/// What the controllers have to be told.
#[derive(Debug, Clone)]
pub struct ControllerConfig {
    /// Load balancers take their addresses from here.
    pub network: Network,
    /// The cluster CA's certificate (PEM), for the ConfigMap `kube-root-ca.crt` of every namespace.
    pub root_ca_pem: String,
}

/// Running controllers. Dropping them stops them.
pub struct Controllers {
    stop: DropGuard,
    task: tokio::task::JoinHandle<()>,
}

impl Controllers {
    /// Starts all controllers against the API server behind `client`, which must have all rights. Only one set may run
    /// per API server.
    pub fn start(client: kube::Client, config: ControllerConfig) -> Self {
        let stop = CancellationToken::new();
        let task = tokio::spawn(driver::run(client, config, stop.clone()));
        Self { stop: stop.drop_guard(), task }
    }

    /// Stops them and waits until nothing is in flight.
    pub async fn stop(self) {
        drop(self.stop);
        // It only ends early by a panic, which has been reported already.
        let _ = self.task.await;
    }
}
