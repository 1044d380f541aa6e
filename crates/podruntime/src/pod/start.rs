//! Starting one container.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::ResourceExt;
use tokio_util::task::AbortOnDropHandle;

use super::{ContainerChange, ContainerEvent, Live, PodTask, files, hooks, security, termination};
use crate::{
    Invocation, RuntimeError,
    container::RunningContainer,
    container_log::ContainerLog,
    container_run::{ContainerSpec, ExecSpec, Interaction},
    environment::{environment, expand_with, hostname},
    events::EventKind,
    netns, probing,
    records::{self, Ended, Role, State},
    sources::References,
};

/// Pause before another look for what a container needs; changes of ConfigMaps and Secrets come earlier by themselves.
const RETRY: Duration = Duration::from_secs(2);
/// Pause before another look at an image without mapping.
const IMAGE_RETRY: Duration = Duration::from_secs(10);
/// Exit code of a container that could not be started, as containerd reports it.
const START_ERROR: i32 = 128;

/// Why a container can't be started now.
struct NotNow {
    reason: &'static str,
    message: String,
    pause: Duration,
}

impl PodTask {
    /// Starts a container, or notes in its record why that isn't possible.
    pub(super) async fn start(&mut self, index: usize) {
        let pod = Arc::clone(&self.pod);
        let Some((container, role)) = records::containers(&pod).nth(index) else { return };
        let spec = match self.specify(index, container).await {
            Ok(spec) => spec,
            Err(NotNow { reason, message, pause }) => {
                self.event(&pod, container, EventKind::Warning, "Failed", format!("Error: {message}"));
                let retry = Timestamp::now().checked_add(pause).unwrap_or(Timestamp::MAX);
                self.records[index].set_waiting(reason, message, retry);
                return;
            }
        };
        let image = container.image.as_deref().unwrap_or("");
        let present = format!("Container image \"{image}\" already present on machine");
        self.event(&pod, container, EventKind::Normal, "Pulled", present);
        let instance = self.records[index].instances;
        self.records[index].instances += 1;
        match self.launch(&pod, container, instance, &spec).await {
            Ok(running) => self.started(index, role, container, &spec, running).await,
            Err(error) => self.start_failed(index, container, &error),
        }
    }

    async fn launch(
        &self,
        pod: &Pod,
        container: &Container,
        instance: u32,
        spec: &ContainerSpec,
    ) -> Result<RunningContainer, RuntimeError> {
        let log = ContainerLog::create(&self.logs().join(&container.name), instance)?;
        // The root of the instance before is no longer needed.
        if let Some(parent) = spec.directory.parent().filter(|parent| parent.exists()) {
            std::fs::remove_dir_all(parent).map_err(RuntimeError::file(parent))?;
        }
        std::fs::create_dir_all(&spec.directory).map_err(RuntimeError::file(&spec.directory))?;
        termination::prepare(&spec.directory)?;
        self.access.set_log(&container.name, &log);
        self.event(
            pod,
            container,
            EventKind::Normal,
            "Created",
            format!("Created container: {}", container.name),
        );
        RunningContainer::start(&self.shared.config.executable, spec, &log).await
    }

    async fn started(
        &mut self,
        index: usize,
        role: Role,
        container: &Container,
        spec: &ContainerSpec,
        running: RunningContainer,
    ) {
        let pod = Arc::clone(&self.pod);
        self.event(
            &pod,
            container,
            EventKind::Normal,
            "Started",
            format!("Started container {}", container.name),
        );
        let exec = exec_spec(spec, running.init);
        self.access.set_running(&container.name, running.clone(), exec.clone());
        let instance = self.records[index].instances;
        let record = &mut self.records[index];
        record.set_running(
            Timestamp::now(),
            format!("lateen://{}-{}-{instance}", pod.uid().unwrap_or_default(), container.name),
        );
        record.started = container.startup_probe.is_none();
        record.ever_started |= record.started;
        record.ready = role != Role::Init && record.started && container.readiness_probe.is_none();

        let sender = self.event_sender.clone();
        let mut watched = running.clone();
        let waiter = tokio::spawn(async move {
            let code = watched.exited().await;
            // The pod's task may have ended.
            let _ =
                sender.send(ContainerEvent { index, instance, what: ContainerChange::Exited(code) }).await;
        });
        let probes = probing::watch(probing::Watched {
            pod: Arc::clone(&pod),
            container: container.clone(),
            pod_ip: self.fields().pod_ip,
            exec: exec.clone(),
            executable: self.shared.config.executable.clone(),
            recorder: self.shared.events.clone(),
            sender: self.event_sender.clone(),
            index,
            instance,
        });
        self.live[index] = Some(Live {
            container: running.clone(),
            instance,
            _probes: AbortOnDropHandle::new(tokio::spawn(probes)),
            _waiter: AbortOnDropHandle::new(waiter),
        });
        if let Some(hook) = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref()) {
            // Kubernetes starts the next container only after this one's hook.
            self.publish();
            let pod_ip = self.fields().pod_ip;
            let executable = self.shared.config.executable.clone();
            let outcome = {
                let hook = hooks::run(hook, container, pod_ip, &exec, &executable);
                let mut ended = running.clone();
                tokio::select! {
                    outcome = hook => outcome,
                    _ = ended.exited() => Ok(()),
                    () = self.until_ending() => Ok(()),
                }
            };
            if let Err(message) = outcome {
                self.event(&pod, container, EventKind::Warning, "FailedPostStartHook", message);
                running.signal(nix::sys::signal::Signal::SIGKILL);
            }
        }
    }

    /// Until the pod is being deleted or the runtime stops.
    async fn until_ending(&mut self) {
        while !self.is_ending() {
            self.next_update().await;
        }
    }

    fn start_failed(&mut self, index: usize, container: &Container, error: &RuntimeError) {
        let pod = Arc::clone(&self.pod);
        let message = format!("failed to start container \"{}\": {error}", container.name);
        self.event(&pod, container, EventKind::Warning, "Failed", format!("Error: {message}"));
        let label = self.label();
        let record = &mut self.records[index];
        let ended = Ended {
            exit_code: START_ERROR,
            reason: "StartError".to_owned(),
            message: Some(message),
            started_at: None,
            finished_at: Timestamp::now(),
            container_id: format!(
                "lateen://{}-{}-{}",
                pod.uid().unwrap_or_default(),
                container.name,
                record.instances
            ),
        };
        record.container_id = Some(ended.container_id.clone());
        record.set_ended(ended, self.policy, &label);
        if let State::Waiting { message: Some(message), .. } = &record.state {
            let message = message.clone();
            self.event(&pod, container, EventKind::Warning, "BackOff", message);
        }
    }

    /// Everything a container is started with.
    async fn specify(&self, index: usize, container: &Container) -> Result<ContainerSpec, NotNow> {
        let config = &self.shared.config;
        let command: &[String] = container.command.as_deref().unwrap_or_default();
        let args: &[String] = container.args.as_deref().unwrap_or_default();
        // First without the environment: a missing image is the better message.
        self.resolve(index, container, command, args)?;
        let bad = |error: RuntimeError| NotNow {
            reason: "CreateContainerConfigError",
            message: error.to_string(),
            pause: RETRY,
        };
        let namespace = self.pod.namespace().unwrap_or_default();
        let sources = References::of_environment(container)
            .fetch(&self.shared.client, &namespace)
            .await
            .map_err(bad)?;
        let fields = self.fields();
        let environment = environment(container, &fields, &sources, &config.network).map_err(bad)?;
        let expand = |words: &[String]| -> Vec<String> {
            words.iter().map(|word| expand_with(word, &environment)).collect()
        };
        let invocation = self.resolve(index, container, &expand(command), &expand(args))?;
        let mut mounts = files::mounts(&self.directory);
        mounts.extend(self.volumes.mounts(container, &self.pod, &environment).map_err(bad)?);
        let directory = self.container_directory(&container.name, self.records[index].instances);
        mounts.push(termination::mount(&directory, container));
        let working_dir = container.working_dir.as_deref().filter(|path| !path.is_empty()).unwrap_or("/");
        Ok(ContainerSpec {
            netns: self.sandbox.as_ref().map(|sandbox| netns::path(&sandbox.netns)),
            hostname: hostname(&self.pod),
            directory,
            hidden: config.state_dir.clone(),
            binaries: config.images.binaries().to_path_buf(),
            mounts,
            command: invocation.command,
            interaction: interaction(container),
            environment,
            working_dir: Path::new("/").join(working_dir),
            security: security::of(&self.pod, container).map_err(bad)?,
            read_only_root: container
                .security_context
                .as_ref()
                .and_then(|security| security.read_only_root_filesystem)
                .unwrap_or(false),
        })
    }

    fn resolve(
        &self,
        index: usize,
        container: &Container,
        command: &[String],
        args: &[String],
    ) -> Result<Invocation, NotNow> {
        let image = container.image.as_deref().unwrap_or("");
        self.shared.config.images.resolve(image, command, args).map_err(|error| {
            let state = &self.records[index].state;
            let again = matches!(state, State::Waiting { reason, .. } if reason.contains("ImagePull"));
            let (reason, message) = match again {
                true => ("ImagePullBackOff", format!("Back-off pulling image \"{image}\": {error}")),
                false => ("ErrImagePull", error.to_string()),
            };
            NotNow { reason, message, pause: IMAGE_RETRY }
        })
    }

    pub(super) fn container_directory(&self, container: &str, instance: u32) -> PathBuf {
        self.directory.join("containers").join(container).join(instance.to_string())
    }

    pub(super) fn event(
        &self,
        pod: &Pod,
        container: &Container,
        kind: EventKind,
        reason: &'static str,
        message: String,
    ) {
        self.shared.events.record(pod, Some(&container.name), kind, reason, message);
    }
}

/// What commands inside the container are run with.
fn exec_spec(spec: &ContainerSpec, init: i32) -> ExecSpec {
    ExecSpec {
        init,
        command: Vec::new(),
        environment: spec.environment.clone(),
        working_dir: spec.working_dir.clone(),
        security: spec.security.clone(),
        tty: false,
    }
}

/// Who can talk to the container's program.
fn interaction(container: &Container) -> Option<Interaction> {
    let (stdin, tty) = (container.stdin.unwrap_or(false), container.tty.unwrap_or(false));
    (stdin || tty).then_some(Interaction { stdin, once: container.stdin_once.unwrap_or(false), tty })
}
