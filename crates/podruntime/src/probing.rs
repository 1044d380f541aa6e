//! Asking a running container's probes, as long as it runs.

use std::{net::Ipv4Addr, path::PathBuf, sync::Arc};

use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use tokio::sync::mpsc;

use crate::{
    container_run::ExecSpec,
    events::{EventKind, EventRecorder},
    pod::{ContainerChange, ContainerEvent},
    probe::{self, Kind, ProbeState, Timing},
};

/// A running container and whom to tell about it.
pub(crate) struct Watched {
    pub(crate) pod: Arc<Pod>,
    pub(crate) container: Container,
    pub(crate) pod_ip: Ipv4Addr,
    pub(crate) exec: ExecSpec,
    pub(crate) executable: PathBuf,
    pub(crate) recorder: EventRecorder,
    pub(crate) sender: mpsc::Sender<ContainerEvent>,
    pub(crate) index: usize,
    pub(crate) instance: u32,
}

/// Asks the start-up probe until it succeeds, then readiness and liveness side by side. Ends when there is nothing more to
/// ask; meant to be aborted when the container ends.
pub(crate) async fn watch(watched: Watched) {
    let container = &watched.container;
    if let Some(startup) = &container.startup_probe {
        if !watched.ask(Kind::Startup, startup).await {
            return;
        }
        watched.tell(ContainerChange::Started).await;
    }
    let readiness = async {
        if let Some(probe) = &container.readiness_probe {
            watched.ask(Kind::Readiness, probe).await;
        }
    };
    let liveness = async {
        if let Some(probe) = &container.liveness_probe {
            watched.ask(Kind::Liveness, probe).await;
        }
    };
    tokio::join!(readiness, liveness);
}

impl Watched {
    /// Asks one probe: start-up until it succeeds (true) or fails for good (false), the others for ever or until liveness fails.
    async fn ask(&self, kind: Kind, spec: &Probe) -> bool {
        let timing = Timing::of(spec);
        let exec = |command| ExecSpec { command, ..self.exec.clone() };
        let question = match probe::question(spec, &self.container, self.pod_ip, exec) {
            Ok(question) => question,
            Err(error) => {
                self.unhealthy(kind, &error.to_string());
                return false;
            }
        };
        tokio::time::sleep(timing.initial_delay).await;
        let mut state = ProbeState::new(kind, timing);
        loop {
            let answer = probe::ask(&question, timing.timeout, &self.executable).await;
            let verdict = state.observe(answer.is_ok());
            if let Err(message) = &answer
                && verdict.unhealthy
            {
                self.unhealthy(kind, message);
            }
            match (kind, verdict.changed) {
                (Kind::Startup, Some(true)) => return true,
                (Kind::Startup | Kind::Liveness, Some(false)) => {
                    self.tell(ContainerChange::Unhealthy(kind)).await;
                    return false;
                }
                (Kind::Readiness, Some(ready)) => self.tell(ContainerChange::Ready(ready)).await,
                _ => {}
            }
            tokio::time::sleep(verdict.pause).await;
        }
    }

    fn unhealthy(&self, kind: Kind, message: &str) {
        let message = format!("{} probe failed: {message}", kind.title());
        self.recorder.record(&self.pod, Some(&self.container.name), EventKind::Warning, "Unhealthy", message);
    }

    async fn tell(&self, what: ContainerChange) {
        // The pod's task may have ended.
        let _ = self.sender.send(ContainerEvent { index: self.index, instance: self.instance, what }).await;
    }
}
