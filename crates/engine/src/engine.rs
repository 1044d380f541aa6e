//! The engine's life: start, configure, drain, stop. Everything is owned by the handle; two engines can run in one process.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use prost_types::Any;
use tokio::sync::watch;

use crate::update::{ApplyReport, ConfigUpdate, Subscriptions};

/// Changes the process's log level (`/logging?level=debug`); returns why it can't.
pub type SetLogLevel = Arc<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// Who this proxy is, shown in `/server_info` and dumps and used by access logs.
#[derive(Clone, Debug, Default)]
pub struct NodeInfo {
    /// xDS node id, for example `sidecar~10.244.0.7~web.default~default.svc.cluster.local`.
    pub id: String,
    /// `node.cluster`, Envoy's `--service-cluster`.
    pub cluster: String,
    /// Node metadata as JSON.
    pub metadata: serde_json::Value,
    /// Version shown to people, for example `1.2.3/lateen`.
    pub version: String,
}

/// How to run an engine. `EngineConfig::default()` is one worker, no admin, no mark.
#[derive(Clone)]
pub struct EngineConfig {
    /// Number of worker threads; 0 means one for each core this process may use.
    pub concurrency: usize,
    /// Address of the admin service; port 0 picks one (see [`EngineHandle::admin_address`]). `None`: no admin service.
    pub admin: Option<SocketAddr>,
    /// Identity for dumps and logs.
    pub node: NodeInfo,
    /// Bootstrap (`envoy.config.bootstrap.v3.Bootstrap`) shown by `/config_dump`.
    pub bootstrap: Option<Any>,
    /// `SO_MARK` for every upstream socket (needs `CAP_NET_ADMIN`), so that capture rules can exempt the proxy.
    pub mark: Option<u32>,
    /// Whether configuration may name secrets of an agent ([`Subscriptions::agent_secrets`]), which the embedder brings.
    pub agent_secrets: bool,
    /// How long old connections may finish when a listener is drained or the engine stops. Envoy's `--drain-time-s`; default 45 s.
    pub drain_time: Duration,
    /// Handler behind `/logging`; `None` makes the endpoint read-only.
    pub set_log_level: Option<SetLogLevel>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            concurrency: 1,
            admin: None,
            node: NodeInfo::default(),
            bootstrap: None,
            mark: None,
            agent_secrets: false,
            drain_time: Duration::from_secs(45),
            set_log_level: None,
        }
    }
}

/// Why an engine could not start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The admin address is taken or not ours.
    #[error(
        "admin service: cannot listen on {address}: {source}; choose another address or stop what uses it"
    )]
    Admin {
        /// The address that was asked for.
        address: SocketAddr,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A thread or its runtime could not be made.
    #[error("cannot start thread {name}: {source}")]
    Thread {
        /// Name of the thread.
        name: String,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// The engine was already shut down.
    #[error("the engine has stopped")]
    Stopped,
}

/// Starts engines.
pub struct Engine;

impl Engine {
    /// Starts the worker threads, the control thread and the admin service. No configuration is in effect yet.
    pub fn start(config: EngineConfig) -> Result<EngineHandle, EngineError> {
        crate::control::start(config)
    }
}

/// Controls a running engine. Cheap to clone; the engine stops when [`EngineHandle::shutdown`] is called or the last clone is dropped.
#[derive(Clone)]
pub struct EngineHandle {
    pub(crate) control: crate::control::ControlHandle,
}

impl EngineHandle {
    /// Applies a batch. Returns once every worker uses it (resources that still warm excepted).
    pub async fn apply(&self, update: ConfigUpdate) -> Result<ApplyReport, EngineError> {
        self.control.apply(update).await
    }

    /// What the accepted configuration refers to; changes whenever that set changes. Subscribe to exactly these by RDS and EDS.
    pub fn subscriptions(&self) -> watch::Receiver<Arc<Subscriptions>> {
        self.control.subscriptions()
    }

    /// Tells the engine that the first answers for listeners and clusters have been applied (or that all configuration is
    /// static). Readiness waits for it, as Envoy's init manager does.
    pub async fn initialized(&self) -> Result<(), EngineError> {
        self.control.initialized().await
    }

    /// True from the moment [`Self::initialized`] was called and everything applied before has finished warming, until drain.
    pub fn ready(&self) -> bool {
        *self.control.ready_watch().borrow()
    }

    /// Follows [`Self::ready`].
    pub fn ready_watch(&self) -> watch::Receiver<bool> {
        self.control.ready_watch()
    }

    /// Where the admin service listens.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.control.admin_address()
    }

    /// Address a listener is bound to; useful with port 0. `None` when there is no such bound listener.
    pub async fn listener_address(&self, name: &str) -> Option<SocketAddr> {
        self.control.listener_address(name).await
    }

    /// All stats in Prometheus' text format, as `/stats/prometheus` gives them.
    pub async fn prometheus(&self) -> Result<String, EngineError> {
        self.control.prometheus().await
    }

    /// Drains: HTTP/1 connections get `connection: close` with their next response (idle ones wait half a second for it, so that
    /// a request on its way is not lost), HTTP/2 ones GOAWAY; listeners keep
    /// accepting until the end, as Envoy's do, because the orchestrator needs time to stop sending. Returns when no connection is left or
    /// the drain time is over.
    pub async fn drain(&self) -> Result<(), EngineError> {
        self.control.drain().await
    }

    /// Stops at once: closes listeners and connections, joins the threads.
    pub async fn shutdown(&self) {
        self.control.shutdown().await;
    }
}
