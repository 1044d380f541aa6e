//! A control plane in a child process, so that what it costs is its own.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use lateen_control::{Config, ControlPlane, Listen};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::support::Cluster;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// The argument that makes a process the child.
pub(crate) const FLAG: &str = "--control-plane";

/// The child: says where it serves, then serves until it is killed.
pub(crate) async fn serve() -> Result<(), Error> {
    let kubeconfig = Kubeconfig::from_yaml(&std::env::var("KUBECONFIG_TEXT")?)?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let listen = Listen { xds: any, plain_xds: None, monitoring: any, webhooks: any, ready: any };
    let settings = Config { listen, ..Config::default() };
    let control_plane = ControlPlane::start(settings, kube::Client::try_from(config)?).await?;
    control_plane.ready().await;
    let addresses = control_plane.addresses();
    let root = control_plane.root_certificate().replace('\n', "|");
    println!("{} {} {root}", addresses.xds, addresses.webhooks);
    std::future::pending().await
}

/// The control plane as the other process sees it. It ends with this.
pub(crate) struct Serving {
    _child: Child,
    pub(crate) pid: u32,
    /// Address for xDS and certificates.
    pub(crate) xds: String,
    /// PEM of its root.
    pub(crate) root: String,
}

impl Serving {
    /// Starts this program once more and waits until it serves the cluster.
    pub(crate) async fn start(cluster: &Cluster) -> Result<Self, Error> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(FLAG)
            .env("KUBECONFIG_TEXT", cluster.api.kubeconfig(&cluster.api.url())?)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let pid = child.id().ok_or("the control plane has ended")?;
        let mut lines = BufReader::new(child.stdout.take().ok_or("no output")?).lines();
        let line = lines.next_line().await?.ok_or("the control plane has ended")?;
        let mut words = line.splitn(3, ' ');
        let mut word = || words.next().map(str::to_owned).ok_or("half a line");
        let (xds, webhooks, root) = (word()?, word()?, word()?.replace('|', "\n"));
        cluster.webhooks_at(webhooks.parse()?);
        Ok(Self { _child: child, pid, xds, root })
    }
}

/// What a process has cost so far.
pub(crate) struct Cost {
    /// CPU time, all threads.
    pub(crate) cpu: Duration,
    /// Resident memory now.
    pub(crate) resident_kib: u64,
    /// Resident memory at most.
    pub(crate) most_kib: u64,
}

impl Cost {
    pub(crate) fn of(pid: u32) -> Result<Self, Error> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields: Vec<&str> = stat.rsplit(')').next().ok_or("stat")?.split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let kib = |field: &str| -> Result<u64, Error> {
            let value = status.lines().find_map(|line| line.strip_prefix(field)).ok_or("no such field")?;
            Ok(value.trim().trim_end_matches(" kB").parse()?)
        };
        let cpu = Duration::from_millis(ticks * 10);
        Ok(Self { cpu, resident_kib: kib("VmRSS:")?, most_kib: kib("VmHWM:")? })
    }
}
