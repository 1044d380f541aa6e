//! `lateen up`, `down`, `status`, `kubeconfig`, `logs`: the cluster as a daemon of this machine.

mod apply;
mod daemon;
mod down;
mod http;
mod log;
mod preflight;
mod sample;
mod state;
mod status;
mod up;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use lateen_manifests::Engine;

pub use daemon::run_daemon;
pub use down::down;
pub use log::logs;
pub use preflight::preflight;
pub use status::{kubeconfig, status};
pub use up::up;

/// Why one of the commands failed. Every message is a sentence with a remedy, to be printed as it is.
#[derive(Debug, thiserror::Error)]
pub enum LifecycleError {
    /// The machine isn't fit; nothing was started. All that is wrong, not only the first.
    #[error("{}", .0.join("\n"))]
    Preflight(Vec<String>),
    /// There is no cluster in the state directory.
    #[error("no cluster is running from {state}: start one with `lateen up`")]
    NotRunning {
        /// The state directory.
        state: PathBuf,
    },
    /// The daemon ended while `up` waited for it.
    #[error("the cluster's daemon ended early: {reason}\n(its log: {log})")]
    DaemonEnded {
        /// The last words of its log.
        reason: String,
        /// The whole log.
        log: PathBuf,
    },
    /// Something that was waited for didn't happen in time.
    #[error("{waiting_for} took longer than {}s: {hint}", .after.as_secs())]
    Timeout {
        /// What was waited for.
        waiting_for: String,
        /// How long.
        after: Duration,
        /// What is known, and what to do.
        hint: String,
    },
    /// A file or directory.
    #[error("{path}: {source}")]
    File {
        /// Which one.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// An object of the mesh or the sample was refused by the API server.
    #[error("cannot apply {object}: {problem}")]
    Apply {
        /// Kind, namespace and name.
        object: String,
        /// The API server's words.
        problem: String,
    },
    /// The cluster itself.
    #[error(transparent)]
    Cluster(#[from] crate::ClusterError),
    /// What has to be undone on the host could not be.
    #[error("{0}")]
    Cleanup(String),
}

/// What [`up`] starts.
#[derive(Debug, Clone)]
pub struct UpOptions {
    /// State directory (flag `--state`, env `LATEEN_HOME`). Default `/var/lib/lateen`.
    pub state: PathBuf,
    /// Engine of proxies that don't choose one. Default [`Engine::Lateen`].
    pub engine: Engine,
    /// Additional images, each `REF=COMMAND` (flag `--image`).
    pub images: Vec<String>,
    /// Deploy the course's demo into `default`, labelled for injection. Default true.
    pub sample: bool,
    /// Whether the mesh has an egress gateway. Default false.
    pub egress_gateway: bool,
    /// The `lateen` program, which is started as the daemon; its folder holds the other programs. Default: this one.
    pub executable: Option<PathBuf>,
    /// How long to wait for everything. Default 120 s.
    pub timeout: Duration,
}

impl Default for UpOptions {
    fn default() -> Self {
        Self {
            state: PathBuf::from("/var/lib/lateen"),
            engine: Engine::default(),
            images: Vec::new(),
            sample: true,
            egress_gateway: false,
            executable: None,
            timeout: Duration::from_secs(120),
        }
    }
}

/// Something to tell the person who waits; one line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// A step has begun: what is being done or waited for.
    Begun(String),
    /// The step has ended well: what, and how long it took.
    Done(String, Duration),
    /// Something worth knowing that isn't a step.
    Note(String),
}

/// What [`up`] has brought up.
#[derive(Debug, Clone)]
pub struct UpSummary {
    /// The cluster ran already; nothing was started.
    pub already_running: bool,
    /// Address of the ingress gateway, port 80.
    pub gateway: Option<Ipv4Addr>,
    /// The kubeconfig to export.
    pub kubeconfig: PathBuf,
    /// From the call to the end.
    pub took: Duration,
    /// The demo is deployed.
    pub sample: bool,
    /// Three commands worth trying, each with a few words about it.
    pub try_next: Vec<(String, String)>,
}

/// What [`down`] does.
#[derive(Debug, Clone)]
pub struct DownOptions {
    /// State directory. Default `/var/lib/lateen`.
    pub state: PathBuf,
    /// Keep the cluster's objects, keys and logs for the next `up`. Default false.
    pub keep: bool,
}

impl Default for DownOptions {
    fn default() -> Self {
        Self { state: PathBuf::from("/var/lib/lateen"), keep: false }
    }
}

/// What [`down`] has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DownSummary {
    /// A daemon was running and has been stopped.
    pub was_running: bool,
    /// What a crash had left behind and was removed, one line each.
    pub removed: Vec<String>,
}

/// What [`status`] shows.
#[derive(Debug, Clone)]
pub struct Status {
    /// Process id of the daemon.
    pub daemon: u32,
    /// URL of the API server.
    pub api: String,
    /// The kubeconfig to export.
    pub kubeconfig: PathBuf,
    /// Control plane, gateway and demo; empty when the API server doesn't answer.
    pub mesh: Vec<Mesh>,
    /// Address of the ingress gateway.
    pub gateway: Option<Ipv4Addr>,
    /// Pods: ready and all.
    pub pods: (usize, usize),
}

/// One Deployment of the mesh or the demo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mesh {
    /// Namespace.
    pub namespace: String,
    /// Name of the Deployment.
    pub name: String,
    /// Ready pods.
    pub ready: u32,
    /// Wanted pods.
    pub wanted: u32,
}
