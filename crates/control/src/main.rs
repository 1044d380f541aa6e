//! The `lateend` program.
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use lateen_control::{
    CertificateLife, Config, ControlPlane, ExternalCa, KeyFetching, KeysBy, Listen, MachineOptions,
};
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
    /// Who signs workloads' certificates instead: `ISTIOD_RA_KUBERNETES_API`, signers behind the Kubernetes CSR API.
    #[arg(long, env = "EXTERNAL_CA", default_value = "")]
    external_ca: String,
    /// Configure proxies that have addresses of both families for IPv4 and IPv6. The mesh config's
    /// `defaultConfig.proxyMetadata.ISTIO_DUAL_STACK` does so too.
    #[arg(long, env = "ISTIO_DUAL_STACK", default_value_t = false, action = clap::ArgAction::Set)]
    dual_stack: bool,
    /// Look up the names of gateways between networks that have no address.
    #[arg(long, env = "RESOLVE_HOSTNAME_GATEWAYS", default_value_t = true, action = clap::ArgAction::Set)]
    resolve_gateways: bool,
    /// The signer of workloads that name none, as `domain/name`.
    #[arg(long, env = "K8S_SIGNER", default_value = "")]
    k8s_signer: String,
    /// Domain of signers that workloads name (`ISTIO_META_CERT_SIGNER`).
    #[arg(long, env = "CERT_SIGNER_DOMAIN", default_value = "")]
    cert_signer_domain: String,
    /// How old keys of token issuers may become before they are fetched again.
    #[arg(long, env = "PILOT_JWT_PUB_KEY_REFRESH_INTERVAL", default_value = "20m", value_parser = go_duration)]
    key_refresh: Duration,
    /// Let machines register themselves by WorkloadGroups.
    #[arg(long, env = "PILOT_ENABLE_WORKLOAD_ENTRY_AUTOREGISTRATION", default_value_t = true, action = clap::ArgAction::Set)]
    machines_register: bool,
    /// Write down what machines' agents say of their health.
    #[arg(long, env = "PILOT_ENABLE_WORKLOAD_ENTRY_HEALTHCHECKS", default_value_t = true, action = clap::ArgAction::Set)]
    machines_health: bool,
    /// How long a machine may be away before its WorkloadEntry goes.
    #[arg(long, env = "PILOT_WORKLOAD_ENTRY_GRACE_PERIOD", default_value = "10s", value_parser = go_duration)]
    machines_grace: Duration,
    /// Who fetches keys from `jwksUri`: `istiod` (or `false`), `envoy`, or `hybrid` (or `true`): proxies where the host is a service
    /// of the mesh, else the control plane.
    #[arg(long, env = "PILOT_JWT_ENABLE_REMOTE_JWKS", default_value = "false", value_parser = keys_by)]
    keys_by: KeysBy,
    /// Networks that keys of token issuers are not fetched from, besides those that a node keeps for itself.
    #[arg(long, env = "BLOCKED_CIDRS_IN_JWKS_URIS", value_delimiter = ',')]
    blocked_key_networks: Vec<ipnet::IpNet>,
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

/// Where the roots of external signers may be, and those of the cluster's own, as Istio has it.
const EXTERNAL_ROOTS: &str = "./etc/external-ca-cert/root-cert.pem";
const CLUSTER_ROOTS: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";

fn keys_by(text: &str) -> Result<KeysBy, String> {
    match text {
        "istiod" | "false" => Ok(KeysBy::ControlPlane),
        "hybrid" | "true" => Ok(KeysBy::Both),
        "envoy" => Ok(KeysBy::Proxies),
        other => Err(format!("{other:?} is none of istiod, false, hybrid, true, envoy")),
    }
}

impl Discovery {
    fn external_ca(&self) -> anyhow::Result<Option<ExternalCa>> {
        match self.external_ca.as_str() {
            "" => return Ok(None),
            "ISTIOD_RA_KUBERNETES_API" => {}
            other => anyhow::bail!("EXTERNAL_CA {other:?} is not ISTIOD_RA_KUBERNETES_API"),
        }
        let given = |text: &String| (!text.is_empty()).then(|| text.clone());
        let (signer, domain) = (given(&self.k8s_signer), given(&self.cert_signer_domain));
        anyhow::ensure!(
            signer.is_some() || domain.is_some(),
            "EXTERNAL_CA needs a signer: set K8S_SIGNER (domain/name), or CERT_SIGNER_DOMAIN where workloads name theirs"
        );
        let read = |path: &str| match std::fs::read_to_string(path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read the signers' roots in {path}")),
        };
        // Signers of a domain of their own have nothing to do with the cluster's root.
        let roots = match read(EXTERNAL_ROOTS)? {
            None if domain.is_none() => read(CLUSTER_ROOTS)?,
            found => found,
        };
        Ok(Some(ExternalCa { signer, domain, roots }))
    }

    fn config(&self) -> anyhow::Result<Config> {
        let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        Ok(Config {
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
            external_ca: self.external_ca()?,
            dual_stack: self.dual_stack,
            resolve_gateways: self.resolve_gateways,
            machines: MachineOptions {
                register: self.machines_register,
                health_checks: self.machines_health,
                grace: self.machines_grace,
            },
            keys: KeyFetching {
                refresh: self.key_refresh,
                by: self.keys_by,
                blocked: self.blocked_key_networks.clone(),
                ..KeyFetching::default()
            },
            ..Config::default()
        })
    }
}

fn main() -> anyhow::Result<()> {
    let Command::Discovery(options) = Cli::parse().command;
    let filter = tracing_subscriber::EnvFilter::try_new(&options.log_level)
        .with_context(|| format!("--log-level {:?} is neither a level nor a filter", options.log_level))?;
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).init();
    lateen_control::descriptors::raise_limit();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")?;
    runtime.block_on(run(options.config()?))
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
