//! One pod: its set-up, its containers' lives, its end. One task per pod.

mod files;
mod hooks;
mod security;
mod set_up;
mod start;
mod status_writer;
mod stop;
mod termination;

use std::{path::PathBuf, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Preconditions},
};
use tokio::sync::{mpsc, watch};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    backend::PodAccess,
    container::RunningContainer,
    events::EventKind,
    fields::PodFields,
    probe::Kind,
    records::{self, Ended, Record, RestartPolicy, State, Step},
    runtime::Shared,
    sandbox::Sandbox,
    status::{PodView, pod_status},
    volumes::Volumes,
};
use status_writer::StatusWriter;

/// Pause between two attempts at something that waits for others (a ConfigMap, say), if no change comes earlier.
const RETRY: Duration = Duration::from_secs(1);
/// Events of containers waiting to be taken into account.
const EVENTS: usize = 64;

/// The latest about a pod.
#[derive(Debug, Clone)]
pub(crate) struct PodUpdate {
    /// The object.
    pub(crate) pod: Arc<Pod>,
    /// It has been deleted from the API.
    pub(crate) gone: bool,
}

/// Something that happened to a container. Those of an earlier instance are ignored.
#[derive(Debug)]
pub(crate) struct ContainerEvent {
    pub(crate) index: usize,
    pub(crate) instance: u32,
    pub(crate) what: ContainerChange,
}

/// What happened.
#[derive(Debug)]
pub(crate) enum ContainerChange {
    /// It ended with this exit code.
    Exited(i32),
    /// Its start-up probe succeeded.
    Started,
    /// Its readiness changed.
    Ready(bool),
    /// This probe has failed for good: it is to be restarted.
    Unhealthy(Kind),
}

/// A running container and what watches it.
struct Live {
    container: RunningContainer,
    instance: u32,
    _probes: AbortOnDropHandle<()>,
    _waiter: AbortOnDropHandle<()>,
}

/// One pod.
pub(crate) struct PodTask {
    shared: Arc<Shared>,
    pod: Arc<Pod>,
    gone: bool,
    updates: watch::Receiver<PodUpdate>,
    /// Changes of ConfigMaps and Secrets.
    changes: watch::Receiver<u64>,
    stop: CancellationToken,
    access: Arc<PodAccess>,
    directory: PathBuf,
    sandbox: Option<Sandbox>,
    volumes: Volumes,
    policy: RestartPolicy,
    records: Vec<Record>,
    live: Vec<Option<Live>>,
    event_sender: mpsc::Sender<ContainerEvent>,
    events: mpsc::Receiver<ContainerEvent>,
    started_at: Timestamp,
    finished: Option<bool>,
    /// Why the pod as a whole has ended, if not by its containers.
    reason: Option<(String, String)>,
    last_status: Option<PodStatus>,
    status: StatusWriter,
}

impl PodTask {
    pub(crate) fn new(
        shared: Arc<Shared>,
        updates: watch::Receiver<PodUpdate>,
        access: Arc<PodAccess>,
        stop: CancellationToken,
    ) -> Self {
        let PodUpdate { pod, gone } = updates.borrow().clone();
        let (event_sender, events) = mpsc::channel(EVENTS);
        let directory = shared.config.state_dir.join("pods").join(pod.uid().unwrap_or_default());
        let records = records::records(&pod);
        Self {
            gone,
            changes: shared.changes.clone(),
            stop,
            access,
            volumes: Volumes::new(directory.join("volumes")),
            directory,
            sandbox: None,
            policy: RestartPolicy::of(&pod),
            live: records.iter().map(|_| None).collect(),
            records,
            event_sender,
            events,
            started_at: Timestamp::now(),
            finished: None,
            reason: None,
            last_status: pod.status.clone(),
            status: StatusWriter::new(shared.client.clone(), &pod),
            updates,
            pod,
            shared,
        }
    }

    /// Runs the pod until it has been deleted or the runtime stops.
    pub(crate) async fn run(mut self) {
        let phase = self.pod.status.as_ref().and_then(|status| status.phase.as_deref());
        // Its containers ran under an earlier daemon.
        let over = matches!(phase, Some("Succeeded" | "Failed"));
        if !over && self.set_up().await {
            self.live_on().await;
        }
        while !self.is_ending() {
            self.next_update().await;
        }
        self.stop_all().await;
        self.clean_up().await;
        if self.stop.is_cancelled() {
            return;
        }
        self.remove_logs().await;
        if !over && !self.gone {
            self.publish();
        }
        let Self { status, shared, pod, gone, .. } = self;
        status.finish().await;
        if !gone {
            delete_object(shared, pod).await;
        }
    }

    fn is_ending(&self) -> bool {
        self.gone || self.stop.is_cancelled() || self.pod.metadata.deletion_timestamp.is_some()
    }

    /// Waits for news of the pod object (or the end of the runtime) and takes them in.
    async fn next_update(&mut self) {
        tokio::select! {
            changed = self.updates.changed() => {
                self.gone |= changed.is_err();
                self.take_update();
            }
            () = self.stop.clone().cancelled_owned() => {}
        }
    }

    fn take_update(&mut self) {
        let PodUpdate { pod, gone } = self.updates.borrow_and_update().clone();
        self.pod = pod;
        self.gone |= gone;
    }

    fn fields(&self) -> PodFields {
        PodFields {
            pod: Arc::clone(&self.pod),
            pod_ip: self.pod_ip().unwrap_or(std::net::Ipv4Addr::UNSPECIFIED),
            host_ip: self.shared.config.network.node_ip,
            pod_ip6: self.pod_ip6(),
            host_ip6: self.host_ip6(),
        }
    }

    fn pod_ip6(&self) -> Option<std::net::Ipv6Addr> {
        self.shared.config.network.ipv6_of(self.pod_ip()?)
    }

    fn host_ip6(&self) -> Option<std::net::Ipv6Addr> {
        let network = &self.shared.config.network;
        network.ipv6_of(network.node_ip)
    }

    fn pod_ip(&self) -> Option<std::net::Ipv4Addr> {
        if self.uses_host_network() {
            return Some(self.shared.config.network.node_ip);
        }
        self.sandbox.as_ref().map(|sandbox| sandbox.address)
    }

    fn uses_host_network(&self) -> bool {
        self.pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false)
    }

    /// When the pod has been active for long enough (`activeDeadlineSeconds`).
    fn deadline(&self) -> Option<Timestamp> {
        let seconds = self.pod.spec.as_ref()?.active_deadline_seconds?;
        self.started_at.checked_add(jiff::SignedDuration::from_secs(seconds)).ok()
    }

    /// Starts and restarts containers until the pod is ending.
    async fn live_on(&mut self) {
        while !self.is_ending() {
            let now = Timestamp::now();
            let deadline = self.deadline().filter(|_| self.finished.is_none());
            let step = match self.finished {
                Some(_) => Step::Wait(None),
                None if deadline.is_some_and(|deadline| deadline <= now) => {
                    let message = "Pod was active on the node longer than the specified deadline".to_owned();
                    self.shared.events.record(
                        &self.pod,
                        None,
                        EventKind::Normal,
                        "DeadlineExceeded",
                        message.clone(),
                    );
                    self.reason = Some(("DeadlineExceeded".to_owned(), message));
                    Step::Finished { succeeded: false }
                }
                None => records::next_step(&self.records, self.policy, now),
            };
            let wake = match step {
                Step::Start(indices) => {
                    for index in indices {
                        self.start(index).await;
                        self.publish();
                        // Waiting for one container's hook may have taken long.
                        if self.is_ending() {
                            return;
                        }
                    }
                    continue;
                }
                Step::Finished { succeeded } => {
                    self.finished = Some(succeeded);
                    self.stop_all().await;
                    None
                }
                Step::Wait(until) => [until, deadline].into_iter().flatten().min(),
            };
            self.publish();
            self.wait_for_something(wake).await;
        }
    }

    async fn wait_for_something(&mut self, wake: Option<Timestamp>) {
        let refresh = self.volumes.next_refresh();
        let wake = [wake, refresh].into_iter().flatten().min();
        let pause = wake.map(|moment| {
            let left = moment.duration_since(Timestamp::now());
            // Not earlier than due, by the clock's granularity.
            Duration::try_from(left).unwrap_or_default() + Duration::from_millis(1)
        });
        tokio::select! {
            Some(event) = self.events.recv() => self.on_event(event),
            changed = self.updates.changed() => {
                self.gone |= changed.is_err();
                self.take_update();
                if !self.is_ending() {
                    // Labels and annotations may be in a volume.
                    self.refresh_volumes().await;
                }
            }
            Ok(()) = self.changes.changed() => self.refresh_volumes().await,
            () = tokio::time::sleep(pause.unwrap_or_default()), if pause.is_some() => {
                if refresh.is_some_and(|moment| moment <= Timestamp::now()) {
                    self.refresh_volumes().await;
                }
            }
            () = self.stop.clone().cancelled_owned() => {}
        }
    }

    fn on_event(&mut self, event: ContainerEvent) {
        let ContainerEvent { index, instance, what } = event;
        let Some(live) = self.live[index].as_ref().filter(|live| live.instance == instance) else { return };
        match what {
            ContainerChange::Exited(code) => {
                self.live[index] = None;
                self.ended(index, code);
            }
            ContainerChange::Started => {
                let has_readiness = records::containers(&self.pod)
                    .nth(index)
                    .is_some_and(|(container, _)| container.readiness_probe.is_some());
                let record = &mut self.records[index];
                (record.started, record.ever_started) = (true, true);
                record.ready |= !has_readiness;
            }
            ContainerChange::Ready(ready) => self.records[index].ready = ready,
            ContainerChange::Unhealthy(kind) => {
                let container = live.container.clone();
                self.restart_unhealthy(index, container, kind);
            }
        }
    }

    /// Takes the end of a container into its record.
    fn ended(&mut self, index: usize, exit_code: i32) {
        let label = self.label();
        let no_restart = self.is_ending() || self.finished.is_some();
        let message = self.termination_message(index, exit_code);
        let record = &mut self.records[index];
        let started_at = if let State::Running { since } = record.state { Some(since) } else { None };
        let ended = Ended {
            exit_code,
            reason: if exit_code == 0 { "Completed" } else { "Error" }.to_owned(),
            message,
            started_at,
            finished_at: Timestamp::now(),
            container_id: record.container_id.clone().unwrap_or_default(),
        };
        if no_restart {
            record.set_final(ended);
            return;
        }
        record.set_ended(ended, self.policy, &label);
        if let State::Waiting { message: Some(message), .. } = &record.state {
            let (name, message) = (record.name.clone(), message.clone());
            self.shared.events.record(&self.pod, Some(&name), EventKind::Warning, "BackOff", message);
        }
    }

    fn termination_message(&self, index: usize, exit_code: i32) -> Option<String> {
        let (container, _) = records::containers(&self.pod).nth(index)?;
        let instance = self.records[index].instances.checked_sub(1)?;
        let directory = self.container_directory(&container.name, instance);
        termination::message(
            &directory,
            container,
            exit_code,
            self.access.last_log(&container.name).as_deref(),
        )
    }

    /// The pod in messages: `NAME_NAMESPACE(UID)`, as the kubelet writes it.
    fn label(&self) -> String {
        let namespace = self.pod.namespace().unwrap_or_default();
        format!("{}_{namespace}({})", self.pod.name_any(), self.pod.uid().unwrap_or_default())
    }

    /// Where its containers' logs are.
    fn logs(&self) -> PathBuf {
        let namespace = self.pod.namespace().unwrap_or_default();
        let folder = format!("{namespace}_{}_{}", self.pod.name_any(), self.pod.uid().unwrap_or_default());
        self.shared.config.state_dir.join("logs").join(folder)
    }

    /// As the kubelet does: nobody can ask for them any more, and pods come and go for as long as the cluster runs.
    async fn remove_logs(&self) {
        match tokio::fs::remove_dir_all(self.logs()).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(pod = %self.label(), %error, "removing a pod's logs");
            }
            _ => {}
        }
    }

    /// Hands the present status to the writer.
    fn publish(&mut self) {
        let mut previous = self.last_status.clone().unwrap_or_default();
        if let Some(conditions) = self.pod.status.as_ref().and_then(|status| status.conditions.as_ref()) {
            // Somebody else's conditions are taken from the object.
            let own = previous.conditions.get_or_insert_default();
            own.retain(|condition| {
                conditions.iter().any(|seen| seen.type_ == condition.type_) || own_type(condition)
            });
            for seen in conditions.iter().filter(|seen| !own_type(seen)) {
                own.retain(|condition| condition.type_ != seen.type_);
                own.push(seen.clone());
            }
        }
        let status = pod_status(
            &PodView {
                pod: &self.pod,
                records: &self.records,
                pod_ip: self.pod_ip(),
                host_ip: self.shared.config.network.node_ip,
                pod_ip6: self.pod_ip6(),
                host_ip6: self.host_ip6(),
                started_at: self.started_at,
                finished: self.finished,
                reason: self.reason.clone(),
                now: Timestamp::now(),
            },
            Some(&previous),
        );
        if self.last_status.as_ref() != Some(&status) {
            self.last_status = Some(status.clone());
            self.status.publish(status);
        }
    }

    /// Network, mounts and files of the pod.
    async fn clean_up(&mut self) {
        if let Some(sandbox) = self.sandbox.take() {
            match sandbox.destroy().await {
                // An address whose interface is still there is not given out again.
                Ok(()) => self.shared.addresses.lock().release(sandbox.address),
                Err(error) => tracing::warn!(pod = %self.label(), %error, "removing a pod's network"),
            }
        }
        let directory = self.directory.clone();
        let removed = tokio::task::spawn_blocking(move || files::remove(&directory)).await;
        if let Ok(Err(error)) = removed {
            tracing::warn!(pod = %self.label(), %error, "removing a pod's files");
        }
    }
}

fn own_type(condition: &k8s_openapi::api::core::v1::PodCondition) -> bool {
    crate::status::OWN_CONDITIONS.contains(&condition.type_.as_str())
}

/// Removes the pod object, whose containers have ended.
async fn delete_object(shared: Arc<Shared>, pod: Arc<Pod>) {
    let api: Api<Pod> = Api::namespaced(shared.client.clone(), &pod.namespace().unwrap_or_default());
    let parameters = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions { uid: pod.uid(), ..Preconditions::default() }),
        ..DeleteParams::default()
    };
    loop {
        match api.delete(&pod.name_any(), &parameters).await {
            Ok(_) => return,
            // Gone already, or another pod of the same name.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => return,
            Err(error) => {
                tracing::warn!(pod = %pod.name_any(), %error, "deleting a pod object; trying again")
            }
        }
        if shared.stop.clone().run_until_cancelled_owned(tokio::time::sleep(RETRY)).await.is_none() {
            return;
        }
    }
}
