//! Why an agent could not start or go on.

use std::net::SocketAddr;
use std::path::PathBuf;

/// An error of the agent; the message says what happened, where, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// A variable of the environment has a value that makes no sense.
    #[error("environment variable {name} is {value:?}: {reason}")]
    Variable {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A port of the agent is taken or not ours.
    #[error("cannot listen on {address} ({purpose}): {source}; stop what uses it, or choose another address")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What it is for.
        purpose: &'static str,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A file could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// `read`, `write`, …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// The engine did not start or has stopped.
    #[error(transparent)]
    Engine(#[from] lateen_engine::EngineError),
    /// The proxy did not become ready.
    #[error(
        "the proxy was not ready within {limit:?} ({address}: {said}); its own log says what it waits for"
    )]
    NotReady {
        /// Where it was asked.
        address: SocketAddr,
        /// How long.
        limit: std::time::Duration,
        /// What it said last.
        said: String,
    },
    /// No Envoy program was found.
    #[error(
        "no Envoy program found (looked at {looked_at}); set LATEEN_ENVOY_PATH to one, or use the engine lateen"
    )]
    NoEnvoy {
        /// The places that were tried.
        looked_at: String,
    },
    /// The Envoy program could not be started.
    #[error("cannot start Envoy at {}: {source}", path.display())]
    StartEnvoy {
        /// The program.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// The control plane cannot be reached or refuses us.
    #[error("control plane {address}: {reason}")]
    ControlPlane {
        /// Its address.
        address: String,
        /// What happened.
        reason: String,
    },
    /// A bootstrap file is not one, or asks for what we don't have.
    #[error("bootstrap {origin}: {reason}")]
    Bootstrap {
        /// The file, or `--config-yaml`.
        origin: String,
        /// What is wrong.
        reason: String,
    },
    /// Capture rules could not be set.
    #[error("traffic capture: {reason}")]
    Capture {
        /// What happened.
        reason: String,
    },
}

impl AgentError {
    pub(crate) fn variable(name: &str, value: &str, reason: &str) -> Self {
        Self::Variable { name: name.to_owned(), value: value.to_owned(), reason: reason.to_owned() }
    }

    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::File { action, path: path.into(), source }
    }
}
