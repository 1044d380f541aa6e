//! `lateen-proxy`: the program of the proxy container, and a stand-alone proxy that runs from an Envoy bootstrap.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use lateen_agent::plain::{self, PlainConfig};
use lateen_agent::{Addresses, AgentError, Config, EngineKind, Role, descriptors, logging, machine};
use tokio::signal::unix::{SignalKind, signal};
use tracing::error;

// A request takes some twenty short-lived allocations, and this allocator saves about an eighth of the proxy's user time against
// the system's (bench/RESULTS.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(name = "lateen-proxy", version, about = "Lateen's proxy", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    plain: PlainArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Run as the proxy of a pod, configured by the control plane
    Proxy(ProxyArgs),
    /// Run as the proxy of a machine that is no pod, from the files of `lateen x workload entry configure`
    Machine(MachineArgs),
    /// Capture a pod's traffic: Istio's flags, nftables rules
    #[command(disable_help_flag = true)]
    IstioIptables {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        flags: Vec<String>,
    },
    /// Print a bootstrap in its binary form
    #[command(hide = true)]
    DecodeBootstrap {
        #[arg(long)]
        config_path: Option<PathBuf>,
        #[arg(long)]
        config_yaml: Option<String>,
    },
    /// Wait until the pod's proxy is ready (what holds applications back until then)
    Wait {
        /// For so many seconds at most
        #[arg(long = "timeoutSeconds", default_value_t = 60)]
        timeout_seconds: u64,
        /// Milliseconds between two questions
        #[arg(long = "periodMillis", default_value_t = 100)]
        period_millis: u64,
    },
    /// Print the version
    Version,
    /// Print which fields of Envoy's configuration are supported, as Markdown
    Fields,
}

#[derive(Args)]
struct MachineArgs {
    /// Folder in which the files are where a machine has them (etc/certs, etc/istio/config/mesh, var/lib/istio/envoy/cluster.env,
    /// var/run/secrets/tokens/istio-token)
    #[arg(long, default_value = "/")]
    root: PathBuf,
    #[command(flatten)]
    proxy: ProxyArgs,
}

#[derive(Args)]
struct ProxyArgs {
    /// Beside an application, or on its own as a gateway
    #[arg(value_enum, default_value_t = RoleArg::Sidecar)]
    role: RoleArg,
    /// DNS suffix of the pod's namespace; default POD_NAMESPACE.svc.cluster.local
    #[arg(long)]
    domain: Option<String>,
    /// Worker threads; 0 is one for each core
    #[arg(long)]
    concurrency: Option<usize>,
    /// Log level of the engine
    #[arg(long = "proxyLogLevel", default_value = "warning")]
    proxy_log_level: String,
    /// Envoy's log levels by component; ours has none
    #[arg(long = "proxyComponentLogLevel", default_value = "")]
    _proxy_component_log_level: String,
    /// Log level of the agent: LEVEL or SCOPE:LEVEL
    #[arg(long = "log_output_level", default_value = "default:info")]
    log_output_level: String,
}

#[derive(Clone, Copy, ValueEnum)]
enum RoleArg {
    Sidecar,
    Router,
}

/// Envoy's own flags, as far as they mean something here. <https://www.envoyproxy.io/docs/envoy/latest/operations/cli>
#[derive(Args)]
struct PlainArgs {
    /// An Envoy v3 bootstrap, YAML or JSON
    #[arg(short, long)]
    config_path: Option<PathBuf>,
    /// A bootstrap as text; merged over the file's
    #[arg(long)]
    config_yaml: Option<String>,
    /// Worker threads; 0 is one for each core
    #[arg(long, default_value_t = 0)]
    concurrency: usize,
    /// serve, or validate the bootstrap and end
    #[arg(long, value_enum, default_value_t = Mode::Serve)]
    mode: Mode,
    /// trace, debug, info, warning, error, critical or off
    #[arg(short, long, default_value = "info")]
    log_level: String,
    /// How long old connections may take to end, in seconds
    #[arg(long, default_value_t = 600)]
    drain_time_s: u64,
    /// Overrides node.id
    #[arg(long)]
    service_node: Option<String>,
    /// Overrides node.cluster
    #[arg(long)]
    service_cluster: Option<String>,
    /// Write the admin service's address here
    #[arg(long)]
    admin_address_path: Option<PathBuf>,
    /// Without meaning here: there is no shared memory
    #[arg(long, default_value_t = 0)]
    base_id: u32,
    /// Without meaning here
    #[arg(long)]
    disable_hot_restart: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    Serve,
    Validate,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        None => run_plain(cli.plain),
        Some(Command::DecodeBootstrap { config_path, config_yaml }) => {
            decode_bootstrap(config_path, config_yaml)
        }
        Some(Command::Fields) => {
            print!("{}", lateen_ir::support_markdown());
            Ok(())
        }
        Some(Command::Proxy(args)) => run_proxy(args, None),
        Some(Command::Machine(args)) => run_proxy(args.proxy, Some(&args.root)),
        Some(Command::IstioIptables { flags }) => capture(&flags, |name| std::env::var(name).ok()),
        Some(Command::Wait { timeout_seconds, period_millis }) => {
            let health = std::net::SocketAddr::from(([127, 0, 0, 1], Addresses::default().health.port()));
            let (limit, period) =
                (Duration::from_secs(timeout_seconds), Duration::from_millis(period_millis));
            lateen_agent::until_ready(health, limit, period)
        }
        Some(Command::Version) => {
            println!("{}", lateen_agent::VERSION);
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lateen-proxy: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What a plain proxy has another process do; see [`PlainConfig::decoder`].
fn decode_bootstrap(path: Option<PathBuf>, yaml: Option<String>) -> Result<(), AgentError> {
    let bytes = plain::decode(&PlainConfig { path, yaml, ..PlainConfig::default() })?;
    let written = std::io::stdout().write_all(&bytes);
    written.map_err(|source| AgentError::File { action: "write", path: "standard output".into(), source })
}

/// One thread for everything that isn't traffic; the engine has its own.
fn control_runtime() -> Result<tokio::runtime::Runtime, AgentError> {
    let built = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(2).build();
    built.map_err(|source| lateen_engine::EngineError::Thread { name: "control".to_owned(), source }.into())
}

/// `root`: of a machine that is no pod, where its files are; its traffic is captured too.
fn run_proxy(args: ProxyArgs, root: Option<&Path>) -> Result<(), AgentError> {
    let agent_level =
        args.log_output_level.split(',').next().and_then(|first| first.rsplit(':').next()).unwrap_or("info");
    let level = format!("{},lateen_agent={}", rust_level(&args.proxy_log_level), rust_level(agent_level));
    let set_log_level = logging::init(&level).map_err(|reason| AgentError::Bootstrap {
        origin: "--proxyLogLevel, --log_output_level".to_owned(),
        reason,
    })?;
    let role = match args.role {
        RoleArg::Sidecar => Role::Sidecar,
        RoleArg::Router => Role::Router,
    };
    let mut config = match root {
        None => Config::from_env(role, &std::env::vars().collect())?,
        Some(root) => {
            let vars = machine::variables(root, std::env::vars().collect())?;
            if let Some(flags) = machine::capture_flags(&vars) {
                capture(&flags, |name| vars.get(name).cloned())?;
            }
            machine::below(root, Config::from_env(role, &vars)?)
        }
    };
    if let Some(domain) = args.domain {
        config.domain = domain;
    }
    config.concurrency = args.concurrency.unwrap_or(config.concurrency);
    config.envoy_log_level = args.proxy_log_level;
    if config.engine == EngineKind::Lateen {
        config.set_log_level = Some(set_log_level);
    }
    descriptors::raise_limit();
    control_runtime()?.block_on(async {
        let ended = ended();
        let running = lateen_agent::run(config).await?;
        tokio::select! {
            () = ended => {}
            () = running.quit_requested() => {}
        }
        running.drain_and_stop().await;
        Ok(())
    })
}

/// Envoy's words for levels in Rust's.
fn rust_level(level: &str) -> &str {
    match level {
        "warning" => "warn",
        "critical" => "error",
        "none" => "off",
        other => other,
    }
}

fn capture(flags: &[String], variable: impl Fn(&str) -> Option<String>) -> Result<(), AgentError> {
    let failed = |reason: String| AgentError::Capture { reason };
    let mut config =
        lateen_capture::CaptureConfig::from_args(flags).map_err(|error| failed(error.to_string()))?;
    config.with_surroundings(variable, &lateen_capture::ResolvConf::read("/etc/resolv.conf".as_ref()));
    control_runtime()?
        .block_on(async { lateen_capture::apply(&config).await.map_err(|error| failed(error.to_string())) })
}

fn run_plain(args: PlainArgs) -> Result<(), AgentError> {
    let bad_level = |reason| AgentError::Bootstrap { origin: "--log-level".to_owned(), reason };
    let set_log_level = logging::init(&args.log_level).map_err(bad_level)?;
    let config = PlainConfig {
        path: args.config_path,
        yaml: args.config_yaml,
        concurrency: args.concurrency,
        drain_time: Duration::from_secs(args.drain_time_s),
        service_node: args.service_node,
        service_cluster: args.service_cluster,
        set_log_level: Some(set_log_level),
        // Validation ends right away, whatever memory it took.
        decoder: (args.mode == Mode::Serve).then(std::env::current_exe).and_then(Result::ok),
    };
    if args.mode == Mode::Validate {
        plain::validate(&config)?;
        println!("configuration is OK");
        return Ok(());
    }
    descriptors::raise_limit();
    control_runtime()?.block_on(async {
        let ended = ended();
        let running = plain::run(config).await?;
        if let (Some(path), Some(address)) = (&args.admin_address_path, running.admin_address()) {
            let written = std::fs::write(path, address.to_string());
            written.map_err(|source| AgentError::File { action: "write", path: path.clone(), source })?;
        }
        ended.await;
        running.stop().await;
        Ok(())
    })
}

/// Resolves at SIGTERM or SIGINT, from the moment of this call on: the first process of a container gets no signal that it does not
/// listen for.
fn ended() -> impl Future<Output = ()> {
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    async {
        match signals {
            (Ok(mut term), Ok(mut int)) => {
                tokio::select! {
                    _ = term.recv() => {}
                    _ = int.recv() => {}
                }
            }
            (term, int) => {
                error!(?term, ?int, "cannot listen for signals; only SIGKILL will end this process");
                std::future::pending().await
            }
        }
    }
}
