//! Stopping containers: hook, SIGTERM, patience, SIGKILL.

use std::{net::Ipv4Addr, path::PathBuf, sync::Arc, time::Duration};

use futures::future::join_all;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler};
use nix::sys::signal::Signal;
use tokio::time::{Instant, timeout, timeout_at};

use super::{PodTask, hooks};
use crate::{
    container::RunningContainer,
    container_run::ExecSpec,
    events::EventKind,
    probe::Kind,
    records::{self, Role},
};

/// Kubernetes' default for `terminationGracePeriodSeconds`.
const GRACE: Duration = Duration::from_secs(30);
/// Grace of a pod whose object has already gone.
const ORPHANS_GRACE: Duration = Duration::from_secs(1);
/// A container gets this long after its hook even if that used up the time (as the kubelet does).
const LEAST_AFTER_HOOK: Duration = Duration::from_secs(2);
/// How long the kernel may take to end a killed container.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// A container to be stopped.
struct Stopping {
    container: RunningContainer,
    spec: Container,
    hook: Option<(LifecycleHandler, ExecSpec)>,
    pod_ip: Ipv4Addr,
    executable: PathBuf,
}

impl PodTask {
    /// Stops every container: the main ones (and a running init container) together, then sidecars in reverse order.
    pub(super) async fn stop_all(&mut self) {
        let grace = self.grace();
        let deadline = Instant::now() + grace;
        let pod = Arc::clone(&self.pod);
        let roles: Vec<Role> = records::containers(&pod).map(|(_, role)| role).collect();
        let (mut sidecars, first): (Vec<usize>, Vec<usize>) =
            (0..roles.len()).partition(|index| roles[*index] == Role::Sidecar);
        self.stop_these(first, deadline, grace).await;
        while let Some(sidecar) = sidecars.pop() {
            self.stop_these(vec![sidecar], deadline, grace).await;
        }
    }

    async fn stop_these(&mut self, indices: Vec<usize>, deadline: Instant, grace: Duration) {
        let mut stopping = Vec::new();
        for index in indices {
            let Some(live) = self.live.get_mut(index).and_then(Option::take) else { continue };
            if let Some(prepared) = self.prepare_stop(index, live.container) {
                let message = format!("Stopping container {}", prepared.spec.name);
                let name = Some(prepared.spec.name.as_str());
                self.shared.events.record(&self.pod, name, EventKind::Normal, "Killing", message);
                stopping.push((index, prepared));
            }
        }
        let stopped = stopping
            .into_iter()
            .map(|(index, stopping)| async move { (index, stopping.stop(deadline, grace).await) });
        for (index, code) in join_all(stopped).await {
            self.ended(index, code);
        }
    }

    fn prepare_stop(&self, index: usize, container: RunningContainer) -> Option<Stopping> {
        let (spec, _) = records::containers(&self.pod).nth(index)?;
        let hook = spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.clone());
        Some(Stopping {
            container,
            hook: hook.zip(self.access.exec_spec(&spec.name)),
            spec: spec.clone(),
            pod_ip: self.fields().pod_ip,
            executable: self.shared.config.executable.clone(),
        })
    }

    /// Restarts a container whose probe has failed for good: it is stopped in the background, its end does the rest.
    pub(super) fn restart_unhealthy(&self, index: usize, container: RunningContainer, kind: Kind) {
        let Some((spec, _)) = records::containers(&self.pod).nth(index) else { return };
        let probe =
            if kind == Kind::Startup { spec.startup_probe.as_ref() } else { spec.liveness_probe.as_ref() };
        let own = probe.and_then(|probe| probe.termination_grace_period_seconds);
        let grace = own
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map_or_else(|| self.grace(), Duration::from_secs);
        let message = format!(
            "Container {} failed {} probe, will be restarted",
            spec.name,
            kind.title().to_lowercase()
        );
        if let Some(mut stopping) = self.prepare_stop(index, container) {
            self.shared.events.record(&self.pod, Some(&spec.name), EventKind::Normal, "Killing", message);
            // The hook belongs to the instance that is ending, whose namespaces may go before it runs.
            stopping.hook = stopping.hook.filter(|_| !stopping.container.has_exited());
            tokio::spawn(async move { stopping.stop(Instant::now() + grace, grace).await });
        }
    }

    fn grace(&self) -> Duration {
        if self.shared.stop.is_cancelled() {
            return Duration::ZERO;
        }
        if self.gone {
            return ORPHANS_GRACE;
        }
        let seconds = self.pod.metadata.deletion_grace_period_seconds;
        let spec = self.pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
        seconds.or(spec).and_then(|seconds| u64::try_from(seconds).ok()).map_or(GRACE, Duration::from_secs)
    }
}

impl Stopping {
    /// Stops the container; its exit code.
    async fn stop(self, deadline: Instant, grace: Duration) -> i32 {
        let mut container = self.container.clone();
        if grace.is_zero() {
            return kill(container).await;
        }
        let mut deadline = deadline;
        if let Some((hook, exec)) = &self.hook {
            let run = hooks::run(hook, &self.spec, self.pod_ip, exec, &self.executable);
            tokio::select! {
                outcome = timeout_at(deadline, run) => match outcome {
                    Ok(Ok(())) => {}
                    Ok(Err(message)) => tracing::info!(container = self.spec.name, message, "preStop hook"),
                    Err(_) => tracing::info!(container = self.spec.name, "preStop hook not done in time"),
                },
                _ = container.exited() => {}
            }
            deadline = deadline.max(Instant::now() + LEAST_AFTER_HOOK);
        }
        container.signal(Signal::SIGTERM);
        match timeout_at(deadline, container.exited()).await {
            Ok(code) => code,
            Err(_) => kill(container).await,
        }
    }
}

async fn kill(mut container: RunningContainer) -> i32 {
    container.signal(Signal::SIGKILL);
    timeout(KILL_PATIENCE, container.exited()).await.unwrap_or(128 + Signal::SIGKILL as i32)
}
