//! One agent from start to end: identity, engine, ports, configuration; then drain and stop.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lateen_engine::{Engine, EngineConfig, NodeInfo};
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::bootstrap::{self, Bootstrap};
use crate::config::{Addresses, Config, Drain, EngineKind};
use crate::dns::{self, Names};
use crate::envoy::{self, Envoy, EnvoyConfig};
use crate::error::AgentError;
use crate::health::{self, AppMetrics, Status};
use crate::identity::{self, Current};
use crate::node::{Node, VERSION};
use crate::podinfo::PodInfo;
use crate::proxy::Proxy;
use crate::{feed, forward, readiness};

/// A running agent. Dropping it stops its ports and its configuration feed; end the engine with [`Running::stop`].
pub struct Running {
    status: Arc<Status>,
    addresses: Addresses,
    drain: Drain,
    tasks: JoinSet<()>,
}

/// Starts an agent: the engine, its configuration from the control plane, and the agent's ports. Returns when all ports
/// listen; configuration follows (see [`Running::ready`]).
///
/// # Errors
/// When a port is taken, a file can't be written, or the engine can't be started. Nothing is left running then.
pub async fn run(config: Config) -> Result<Running, AgentError> {
    let info = PodInfo::read(&config.folders.podinfo)?;
    let node = Node::new(&config, &info);
    info!(node = %node.id, engine = ?config.engine, version = VERSION, "starting");

    let mut addresses = config.addresses;
    let health = listen(&mut addresses.health, "probes").await?;
    let merged = listen(&mut addresses.status, "merged metrics").await?;
    let mut tasks = JoinSet::new();
    let quit = Arc::new(Notify::new());
    let (certificate, current) = watch::channel(None);
    if let Some(identity) = config.identity.clone() {
        if config.discovery.certificate.is_some() {
            tasks.spawn(identity::told::follow(config.discovery.clone(), config.mark));
        }
        tasks.spawn(identity.keep(config.discovery.clone(), config.mark, certificate));
    }
    let names = match &config.dns {
        Some(dns) => {
            Some(dns::start(dns, &config.pod.namespace, &config.domain, config.mark, &mut tasks).await?)
        }
        None => None,
    };
    let mut own_metrics = None;
    let (health_told, told) = watch::channel(None);
    let proxy = match config.engine {
        EngineKind::Lateen => {
            own_metrics = Some(listen(&mut addresses.stats, "proxy metrics").await?);
            let engine = Engine::start(engine_config(&config, &node))?;
            if let Some(admin) = engine.admin_address() {
                addresses.admin = admin;
            }
            tasks.spawn(identity::engine::supply(engine.clone(), current));
            let (engine_for_feed, feed_config, feed_node) = (engine.clone(), config.clone(), node.clone());
            let (stopped, feed_names) = (quit.clone(), names.clone());
            tasks.spawn(async move {
                feed::run(&feed_config, &feed_node, &engine_for_feed, feed_names, told).await;
                // An engine that stops by itself is of no more use; the container is to be started again.
                stopped.notify_one();
            });
            Proxy::Lateen(engine)
        }
        EngineKind::Envoy => {
            let client = feed::client_beside_envoy(&config, &node, names.is_some());
            tasks.spawn(feed::beside_envoy(client, names.clone(), told));
            Proxy::Envoy(start_envoy(&config, &node, current, &mut tasks)?)
        }
    };

    let status = Arc::new(Status {
        proxy,
        names,
        draining: AtomicBool::new(false),
        quit,
        pod: config.pod.ip.parse().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        probers: config.probers.clone(),
        app_metrics: AppMetrics::from_annotations(&info, addresses.status.port()),
        mark: config.mark,
    });
    if let Some(readiness) = config.readiness.clone() {
        tasks.spawn(readiness::run(readiness, status.clone(), health_told));
    }
    health::serve(&mut tasks, health, health::probes(status.clone()));
    health::serve(&mut tasks, merged, health::merged(status.clone()));
    if let Some(listener) = own_metrics {
        health::serve(&mut tasks, listener, health::own_metrics(status.clone()));
    }
    Ok(Running { status, addresses, drain: config.drain, tasks })
}

/// Binds, and puts the port that was chosen in place of 0.
async fn listen(
    address: &mut std::net::SocketAddr,
    purpose: &'static str,
) -> Result<TcpListener, AgentError> {
    let listener = health::bind(*address, purpose).await?;
    if let Ok(bound) = listener.local_addr() {
        *address = bound;
    }
    Ok(listener)
}

fn engine_config(config: &Config, node: &Node) -> EngineConfig {
    EngineConfig {
        concurrency: config.concurrency,
        admin: Some(config.addresses.admin),
        node: NodeInfo {
            id: node.id.clone(),
            cluster: node.cluster.clone(),
            metadata: node.metadata.clone(),
            version: format!("{VERSION}/lateen"),
        },
        bootstrap: Some(bootstrap::of_our_engine(node, config.addresses.admin, &config.discovery.address)),
        mark: config.mark,
        agent_secrets: config.identity.is_some(),
        drain_time: config.drain.of_listeners,
        set_log_level: config.set_log_level.clone().map(|set| set.0),
    }
}

fn start_envoy(
    config: &Config,
    node: &Node,
    current: Current,
    tasks: &mut JoinSet<()>,
) -> Result<Envoy, AgentError> {
    let program = envoy::find(config.envoy.as_deref())?;
    let folder = &config.folders.proxy;
    std::fs::create_dir_all(folder).map_err(|error| AgentError::file("create", folder, error))?;
    let (socket, secrets) = (folder.join("XDS"), folder.join("SDS"));
    let file = folder.join("envoy-rev.json");
    let bootstrap = Bootstrap {
        node,
        admin: config.addresses.admin,
        stats: config.addresses.stats,
        xds: &socket,
        sds: &secrets,
        mark: config.mark,
    };
    let text = format!("{:#}\n", bootstrap.to_json());
    std::fs::write(&file, text).map_err(|error| AgentError::file("write", &file, error))?;
    tasks.spawn(identity::sds::serve(identity::sds::bind(&secrets)?, current));
    tasks.spawn(forward::serve(forward::bind(&socket)?, config.discovery.clone(), config.mark));
    Envoy::start(EnvoyConfig {
        program,
        bootstrap: file,
        admin: config.addresses.admin,
        concurrency: config.concurrency,
        log_level: config.envoy_log_level.clone(),
        role: config.role,
        mark: config.mark,
        drain_time: config.drain.of_listeners,
    })
}

impl Running {
    /// Where the agent listens, with the ports that were chosen for 0.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// True when the proxy serves with a configuration and is not draining; what `/healthz/ready` says.
    pub async fn ready(&self) -> bool {
        !self.status.draining.load(Ordering::Relaxed)
            && self.status.names.as_ref().is_none_or(Names::known)
            && self.status.proxy.ready().await
    }

    /// Resolves when someone asks for the end over HTTP (`POST /quitquitquit`), or the engine has stopped by itself.
    pub async fn quit_requested(&self) {
        self.status.quit.notified().await;
    }

    /// Ends without losing a request: not ready any more, callers told to go elsewhere, at least `drain.minimum` and at most
    /// `drain.limit` (or for as long as they are there, with `drain.until_idle`) for them to do so, then the end.
    pub async fn drain_and_stop(self) {
        self.status.draining.store(true, Ordering::Relaxed);
        info!(minimum = ?self.drain.minimum, limit = ?self.drain.limit, "draining");
        let gone = async {
            tokio::join!(self.status.proxy.drain(), tokio::time::sleep(self.drain.minimum));
        };
        let limit =
            if self.drain.until_idle { Duration::MAX } else { self.drain.limit.max(self.drain.minimum) };
        if tokio::time::timeout(limit, gone).await.is_err() {
            warn!(?limit, "connections are still open; closing them");
        }
        self.stop().await;
    }

    /// Ends at once.
    pub async fn stop(mut self) {
        self.status.proxy.shutdown().await;
        self.tasks.shutdown().await;
        info!("stopped");
    }
}
