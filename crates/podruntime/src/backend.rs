//! What exec, logs and port-forward need of running pods.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr, TcpStream as StdTcpStream},
    path::PathBuf,
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::Pod;
use lateen_podstreams::{
    AttachedInput, BoxFuture, ContainerRef, Duplex, ExecRequest, ExecSession, LogOptions, PodBackend,
    PodError, attach_to_log,
};
use parking_lot::RwLock;
use tokio::net::TcpStream;

use crate::{
    RuntimeError,
    container::{RunningContainer, exec_command},
    container_log::ContainerLog,
    container_run::ExecSpec,
    exec_session, netns, records,
    runtime::RuntimeHandle,
};

/// How long a connection to a port of a pod may take.
const DIAL_PATIENCE: Duration = Duration::from_secs(10);
/// Names the container that is meant when none is named (kubectl's annotation).
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// Pods by namespace and name.
pub(crate) type PodTable = Arc<RwLock<HashMap<(String, String), Arc<PodAccess>>>>;

/// A pod as seen from outside its task.
#[derive(Debug)]
pub(crate) struct PodAccess {
    default_container: String,
    names: Vec<String>,
    /// Its network namespace once it has one; the host's own for pods in the host's network.
    netns: RwLock<Option<PathBuf>>,
    containers: RwLock<HashMap<String, ContainerAccess>>,
}

#[derive(Debug, Default)]
struct ContainerAccess {
    running: Option<(RunningContainer, ExecSpec)>,
    log: Option<Arc<ContainerLog>>,
    previous: Option<Arc<ContainerLog>>,
    /// Somebody has attached to this instance.
    attached: bool,
}

impl PodAccess {
    pub(crate) fn new(pod: &Pod) -> Self {
        let annotated = pod.metadata.annotations.as_ref().and_then(|all| all.get(DEFAULT_CONTAINER));
        let first =
            pod.spec.as_ref().and_then(|spec| spec.containers.first()).map(|container| &container.name);
        let host_network = pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false);
        Self {
            default_container: annotated.or(first).cloned().unwrap_or_default(),
            names: records::containers(pod).map(|(container, _)| container.name.clone()).collect(),
            netns: RwLock::new(host_network.then(|| PathBuf::from("/proc/self/ns/net"))),
            containers: RwLock::default(),
        }
    }

    pub(crate) fn set_network(&self, netns: &str) {
        *self.netns.write() = Some(netns::path(netns));
    }

    /// A new instance writes this log.
    pub(crate) fn set_log(&self, container: &str, log: &Arc<ContainerLog>) {
        let mut containers = self.containers.write();
        let access = containers.entry(container.to_owned()).or_default();
        access.previous = access.log.replace(Arc::clone(log));
        access.running = None;
        access.attached = false;
    }

    /// The new instance runs.
    pub(crate) fn set_running(&self, container: &str, running: RunningContainer, exec: ExecSpec) {
        self.containers.write().entry(container.to_owned()).or_default().running = Some((running, exec));
    }

    /// The log of the last instance.
    pub(crate) fn last_log(&self, container: &str) -> Option<Arc<ContainerLog>> {
        self.containers.read().get(container)?.log.clone()
    }

    /// What commands in the container are run with, while it runs.
    pub(crate) fn exec_spec(&self, container: &str) -> Option<ExecSpec> {
        let containers = self.containers.read();
        let (running, exec) = containers.get(container)?.running.as_ref()?;
        (!running.has_exited()).then(|| exec.clone())
    }

    /// A client's share of a container's input, its log, and whether this is the first client.
    fn attach(
        &self,
        container: &str,
        pod: &str,
        stdin: bool,
    ) -> Result<(AttachedInput, Arc<ContainerLog>, bool), PodError> {
        let mut containers = self.containers.write();
        let access = containers.get_mut(container);
        let Some((access, log)) = access.and_then(|access| access.log.clone().map(|log| (access, log)))
        else {
            return Err(PodError::BadRequest(format!(
                "container {container} of pod {pod} is not running yet"
            )));
        };
        // One that has just ended still has something to say.
        let input = access.running.as_ref().map(|(running, _)| running.attach(stdin)).unwrap_or_default();
        Ok((input, log, !std::mem::replace(&mut access.attached, true)))
    }

    /// Lets go of the containers, which ends them.
    pub(crate) fn release(&self) {
        for access in self.containers.write().values_mut() {
            access.running = None;
        }
    }

    fn name<'a>(&'a self, wanted: &'a str, pod: &str) -> Result<&'a str, PodError> {
        let name = if wanted.is_empty() { &self.default_container } else { wanted };
        if self.names.iter().any(|own| own == name) {
            Ok(name)
        } else {
            Err(PodError::BadRequest(format!("container {name} is not valid for pod {pod}")))
        }
    }

    fn log(&self, container: &str, pod: &str, previous: bool) -> Result<Arc<ContainerLog>, PodError> {
        let containers = self.containers.read();
        let access = containers.get(container);
        let log =
            access.and_then(|access| if previous { access.previous.clone() } else { access.log.clone() });
        log.ok_or_else(|| {
            PodError::BadRequest(match previous {
                true => format!("previous terminated container \"{container}\" in pod \"{pod}\" not found"),
                false => {
                    format!("container \"{container}\" in pod \"{pod}\" is waiting to start: PodInitializing")
                }
            })
        })
    }
}

impl RuntimeHandle {
    fn pod(&self, namespace: &str, name: &str) -> Result<Arc<PodAccess>, PodError> {
        let pods = self.pods().read();
        pods.get(&(namespace.to_owned(), name.to_owned()))
            .cloned()
            .ok_or_else(|| PodError::NotFound(format!("pod {namespace}/{name} does not run on this node")))
    }

    async fn start_exec(&self, target: ContainerRef, request: ExecRequest) -> Result<ExecSession, PodError> {
        let pod = self.pod(&target.namespace, &target.pod)?;
        let container = pod.name(&target.container, &target.pod)?;
        let spec = pod.exec_spec(container).ok_or_else(|| {
            PodError::BadRequest(format!("container {container} of pod {} is not running", target.pod))
        })?;
        if request.command.is_empty() {
            return Err(PodError::BadRequest("you must specify a command for the container".to_owned()));
        }
        let mut spec = ExecSpec { command: request.command, tty: request.tty, ..spec };
        if request.tty {
            spec.set_terminal_type();
        }
        let mut command = exec_command(&self.config().executable, &spec).map_err(internal)?;
        if request.tty {
            return exec_session::with_terminal(command, spec.init).map_err(internal);
        }
        let stdin = if request.stdin { Stdio::piped() } else { Stdio::null() };
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        exec_session::with_pipes(command).map_err(internal)
    }
}

impl PodBackend for RuntimeHandle {
    fn exec(
        &self,
        target: ContainerRef,
        request: ExecRequest,
    ) -> BoxFuture<'_, Result<ExecSession, PodError>> {
        Box::pin(self.start_exec(target, request))
    }

    /// Output since the attaching, or since the start for the first client: `kubectl run -it` attaches to what runs already.
    fn attach(
        &self,
        target: ContainerRef,
        request: ExecRequest,
    ) -> BoxFuture<'_, Result<ExecSession, PodError>> {
        Box::pin(async move {
            let pod = self.pod(&target.namespace, &target.pod)?;
            let container = pod.name(&target.container, &target.pod)?;
            let (input, log, first) = pod.attach(container, &target.pod, request.stdin)?;
            let tail_lines = if first { None } else { Some(0) };
            let options = LogOptions { follow: true, tail_lines, ..LogOptions::default() };
            Ok(attach_to_log(log.read(options), input))
        })
    }

    fn logs(
        &self,
        target: ContainerRef,
        options: LogOptions,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Result<Bytes, PodError>>, PodError>> {
        Box::pin(async move {
            let pod = self.pod(&target.namespace, &target.pod)?;
            let container = pod.name(&target.container, &target.pod)?;
            Ok(pod.log(container, &target.pod, options.previous)?.read(options))
        })
    }

    fn dial(
        &self,
        namespace: &str,
        pod: &str,
        port: u16,
    ) -> BoxFuture<'_, Result<Box<dyn Duplex>, PodError>> {
        let found = self.pod(namespace, pod);
        let name = pod.to_owned();
        Box::pin(async move {
            let netns = found?.netns.read().clone();
            let netns =
                netns.ok_or_else(|| PodError::BadRequest(format!("pod {name} has no network yet")))?;
            let connect = move || {
                let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
                let stream = StdTcpStream::connect_timeout(&address, DIAL_PATIENCE)
                    .map_err(RuntimeError::system(format!("connecting to port {port} inside the pod")))?;
                stream.set_nonblocking(true).map_err(RuntimeError::system("the pod's connection"))?;
                Ok(stream)
            };
            let stream = netns::inside(netns, connect).await.map_err(internal)?;
            let stream =
                TcpStream::from_std(stream).map_err(|error| PodError::Internal(error.to_string()))?;
            // Port-forwarding carries whatever the client typed: small pieces go at once.
            let _ = stream.set_nodelay(true);
            Ok(Box::new(stream) as Box<dyn Duplex>)
        })
    }
}

fn internal(error: RuntimeError) -> PodError {
    PodError::Internal(error.to_string())
}
