//! The control thread's handle: commands go in over a bounded channel, each with its own reply channel.

use std::net::SocketAddr;

use tokio::sync::{mpsc, oneshot, watch};

use crate::engine::{EngineConfig, EngineError, EngineHandle};
use crate::update::{ApplyReport, ConfigUpdate, Subscriptions};

/// What the control thread can be asked to do.
pub(crate) enum Command {
    Apply(ConfigUpdate, oneshot::Sender<ApplyReport>),
    Initialized(oneshot::Sender<()>),
    ListenerAddress(String, oneshot::Sender<Option<SocketAddr>>),
    Prometheus(oneshot::Sender<String>),
    Drain(oneshot::Sender<()>),
    Shutdown(oneshot::Sender<()>),
}

/// The sending side of the control thread's command channel, and what it publishes.
#[derive(Clone)]
pub(crate) struct ControlHandle {
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) subscriptions: watch::Receiver<Subscriptions>,
    pub(crate) ready: watch::Receiver<bool>,
    pub(crate) admin: Option<SocketAddr>,
}

impl ControlHandle {
    async fn ask<T>(&self, make: impl FnOnce(oneshot::Sender<T>) -> Command) -> Result<T, EngineError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(make(reply)).await.map_err(|_| EngineError::Stopped)?;
        answer.await.map_err(|_| EngineError::Stopped)
    }

    pub(crate) async fn apply(&self, update: ConfigUpdate) -> Result<ApplyReport, EngineError> {
        self.ask(|reply| Command::Apply(update, reply)).await
    }

    pub(crate) fn subscriptions(&self) -> watch::Receiver<Subscriptions> {
        self.subscriptions.clone()
    }

    pub(crate) async fn initialized(&self) -> Result<(), EngineError> {
        self.ask(Command::Initialized).await
    }

    pub(crate) fn ready_watch(&self) -> watch::Receiver<bool> {
        self.ready.clone()
    }

    pub(crate) fn admin_address(&self) -> Option<SocketAddr> {
        self.admin
    }

    pub(crate) async fn listener_address(&self, name: &str) -> Option<SocketAddr> {
        self.ask(|reply| Command::ListenerAddress(name.to_owned(), reply)).await.ok().flatten()
    }

    pub(crate) async fn prometheus(&self) -> Result<String, EngineError> {
        self.ask(Command::Prometheus).await
    }

    pub(crate) async fn drain(&self) -> Result<(), EngineError> {
        self.ask(Command::Drain).await
    }

    pub(crate) async fn shutdown(&self) {
        // A stopped engine is what was asked for.
        let _ = self.ask(Command::Shutdown).await;
    }
}

pub(crate) fn start(_config: EngineConfig) -> Result<EngineHandle, EngineError> {
    Err(EngineError::Stopped)
}
