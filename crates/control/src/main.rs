//! The `lateend` program.
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use lateen_control::{CertificateLife, Config, ControlPlane, KeyFetching, Listen};
use tokio::signal::unix::{SignalKind, signal};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Control plane of the Lateen service mesh.
#[derive(Parser)]
#[command(name = "lateend", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the control plane: in a pod, or outside with KUBECONFIG.
    Discovery(Box<Discovery>),
}

#[derive(Args)]
struct Discovery {
    /// Root namespace of the mesh.
    #[arg(long, env = "POD_NAMESPACE", default_value = "istio-system")]
    namespace: String,
    /// Revision of this control plane.
    #[arg(long, env = "REVISION", default_value = "default")]
    revision: String,
    /// Domain of service names.
    #[arg(long, default_value = "cluster.local")]
    domain: String,
    /// Id of the cluster.
    #[arg(long, env = "CLUSTER_ID", default_value = "Kubernetes")]
    cluster_id: String,
    /// Name shown to proxies' users.
    #[arg(long, env = "POD_NAME", default_value = "istiod")]
    name: String,
    /// What is logged: a level, or tracing's filter directives.
    #[arg(long, env = "LATEEN_LOG", default_value = "info")]
    log_level: String,
    /// Life of workloads' certificates when they ask for none.
    #[arg(long, env = "DEFAULT_WORKLOAD_CERT_TTL", default_value = "24h", value_parser = go_duration)]
    default_workload_cert_ttl: Duration,
    /// Longest life of workloads' certificates.
    #[arg(long, env = "MAX_WORKLOAD_CERT_TTL", default_value = "2160h", value_parser = go_duration)]
    max_workload_cert_ttl: Duration,
    /// How old keys of token issuers may become before they are fetched again.
    #[arg(long, env = "PILOT_JWT_PUB_KEY_REFRESH_INTERVAL", default_value = "20m", value_parser = go_duration)]
    key_refresh: Duration,
    /// Port of xDS over TLS.
    #[arg(long, default_value_t = 15012)]
    xds_port: u16,
    /// Also serve xDS in plain text and without authentication on this port (Istio's is 15010).
    #[arg(long)]
    plain_xds_port: Option<u16>,
    /// Port of metrics and debug.
    #[arg(long, default_value_t = 15014)]
    monitoring_port: u16,
    /// Port of the webhooks.
    #[arg(long, default_value_t = 15017)]
    webhook_port: u16,
    /// Port of the readiness probe.
    #[arg(long, default_value_t = 8080)]
    ready_port: u16,
}

/// A duration as Go and Istio write it.
fn go_duration(text: &str) -> Result<Duration, String> {
    lateen_api::duration::parse(text).map_err(|error| error.to_string())
}

impl Discovery {
    fn config(&self) -> Config {
        let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        Config {
            namespace: self.namespace.clone(),
            revision: self.revision.clone(),
            domain: self.domain.clone(),
            cluster_id: self.cluster_id.clone(),
            name: self.name.clone(),
            listen: Listen {
                xds: any(self.xds_port),
                plain_xds: self.plain_xds_port.map(any),
                monitoring: any(self.monitoring_port),
                webhooks: any(self.webhook_port),
                ready: any(self.ready_port),
            },
            certificate_life: CertificateLife {
                default: self.default_workload_cert_ttl,
                most: self.max_workload_cert_ttl,
            },
            keys: KeyFetching { refresh: self.key_refresh, ..KeyFetching::default() },
        }
    }
}

fn main() -> anyhow::Result<()> {
    let Command::Discovery(options) = Cli::parse().command;
    let filter = tracing_subscriber::EnvFilter::try_new(&options.log_level)
        .with_context(|| format!("--log-level {:?} is neither a level nor a filter", options.log_level))?;
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).init();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")?;
    runtime.block_on(run(options.config()))
}

async fn run(config: Config) -> anyhow::Result<()> {
    let client = kube::Client::try_default()
        .await
        .context("cannot find a Kubernetes API: run in a pod with a service account, or set KUBECONFIG")?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let control_plane = tokio::select! {
        started = ControlPlane::start(config, client) => started?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = control_plane.broken() => anyhow::bail!("the push loop ended; see the log above for its panic"),
    }
    tracing::info!("shutting down");
    control_plane.shutdown().await;
    Ok(())
}
