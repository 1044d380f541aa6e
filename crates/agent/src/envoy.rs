//! An Envoy program as the engine: found, started from a bootstrap, started again when it ends, asked over its admin service.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{info, warn};

use crate::config::Role;
use crate::error::AgentError;
use crate::fetch::fetch;

const FIRST_BACK_OFF: Duration = Duration::from_millis(200);
const LAST_BACK_OFF: Duration = Duration::from_secs(10);
/// An Envoy that ran this long was well; the back-off starts anew.
const WELL_AFTER: Duration = Duration::from_secs(60);
/// Between SIGTERM and SIGKILL.
const TERM_GRACE: Duration = Duration::from_secs(2);
/// Between two looks at how many connections are left.
const DRAIN_POLL: Duration = Duration::from_millis(100);

/// The stats that together say "configured and serving", as Istio's agent reads them.
const READY_STATS: &str = "/stats?filter=%5E%28server.state%7Clistener_manager.workers_started%7C\
                           cluster_manager.cds.update_success%7Clistener_manager.lds.update_success%29%24";

/// Finds the Envoy program: `given`, else `/usr/local/bin/envoy`, the search path, and the tools this project's scripts install.
///
/// # Errors
/// When there is none; the error lists the places.
pub fn find(given: Option<&Path>) -> Result<PathBuf, AgentError> {
    if let Some(path) = given {
        let found = path.is_file().then(|| path.to_owned());
        return found.ok_or_else(|| AgentError::NoEnvoy { looked_at: path.display().to_string() });
    }
    let mut places = vec![PathBuf::from("/usr/local/bin/envoy")];
    let path = std::env::var_os("PATH").unwrap_or_default();
    places.extend(std::env::split_paths(&path).map(|folder| folder.join("envoy")));
    let tools = std::fs::read_dir("/var/cache/lateen/tools").into_iter().flatten().flatten();
    let mut installed: Vec<_> = tools
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("envoy-"))
        .map(|entry| entry.path().join("envoy"))
        .collect();
    installed.sort();
    places.extend(installed.into_iter().rev());
    if let Some(found) = places.iter().find(|place| place.is_file()) {
        return Ok(found.clone());
    }
    let looked_at = "/usr/local/bin/envoy, PATH, /var/cache/lateen/tools/envoy-*/envoy".to_owned();
    Err(AgentError::NoEnvoy { looked_at })
}

/// How to run an Envoy.
#[derive(Clone, Debug)]
pub(crate) struct EnvoyConfig {
    pub(crate) program: PathBuf,
    pub(crate) bootstrap: PathBuf,
    pub(crate) admin: SocketAddr,
    pub(crate) concurrency: usize,
    pub(crate) log_level: String,
    pub(crate) role: Role,
    /// For the agent's own requests to the admin service.
    pub(crate) mark: Option<u32>,
    /// How long connections of removed listeners and filter chains may go on.
    pub(crate) drain_time: Duration,
}

impl EnvoyConfig {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("-c").arg(&self.bootstrap).args([
            "--disable-hot-restart",
            "--drain-time-s",
            &self.drain_time.as_secs().max(1).to_string(),
            "--drain-strategy",
            "immediate",
            "--local-address-ip-version",
            "v4",
            // As Istio's agent has it; Envoy's own default of 10 s is long for somebody who looks at an access log.
            "--file-flush-interval-msec",
            "1000",
            "--log-level",
            &self.log_level,
            "--log-format",
            "%Y-%m-%dT%T.%fZ\t%l\tenvoy %n %g:%#\t%v",
        ]);
        if self.concurrency > 0 {
            command.args(["--concurrency", &self.concurrency.to_string()]);
        }
        command.kill_on_drop(true);
        command
    }
}

/// A supervised Envoy.
#[derive(Debug)]
pub(crate) struct Envoy {
    config: EnvoyConfig,
    stop: watch::Sender<bool>,
    supervisor: tokio::sync::Mutex<Option<JoinHandle<()>>>,
}

impl Envoy {
    /// Starts the program. Later failures are logged and answered by starting it again, after a growing pause.
    pub(crate) fn start(config: EnvoyConfig) -> Result<Self, AgentError> {
        let child = spawn(&config)?;
        let (stop, stopped) = watch::channel(false);
        let supervisor = tokio::spawn(supervise(config.clone(), child, stopped));
        Ok(Self { config, stop, supervisor: tokio::sync::Mutex::new(Some(supervisor)) })
    }

    /// True when it serves with a first configuration.
    pub(crate) async fn ready(&self) -> bool {
        match fetch(Method::GET, self.config.admin, READY_STATS, self.config.mark).await {
            Ok((status, body)) => status.is_success() && is_ready(&String::from_utf8_lossy(&body)),
            Err(_) => false,
        }
    }

    pub(crate) async fn prometheus(&self) -> std::io::Result<Bytes> {
        let (_, body) = fetch(Method::GET, self.config.admin, "/stats/prometheus", self.config.mark).await?;
        Ok(body)
    }

    /// Tells callers to go elsewhere and returns when no connection is left.
    pub(crate) async fn drain(&self) {
        let path = match self.config.role {
            Role::Sidecar => "/drain_listeners?inboundonly&graceful&skip_exit",
            Role::Router => "/drain_listeners?graceful&skip_exit",
        };
        if let Err(error) = fetch(Method::POST, self.config.admin, path, self.config.mark).await {
            warn!(%error, "cannot tell Envoy to drain");
        }
        let mut poll = tokio::time::interval(DRAIN_POLL);
        loop {
            poll.tick().await;
            let stats =
                fetch(Method::GET, self.config.admin, "/stats?filter=downstream_cx_active", self.config.mark);
            match stats.await {
                Ok((_, body)) if active_connections(&String::from_utf8_lossy(&body)) > 0 => {}
                // No connection, or no Envoy.
                _ => return,
            }
        }
    }

    /// Ends the program: SIGTERM, then SIGKILL.
    pub(crate) async fn shutdown(&self) {
        self.stop.send_replace(true);
        if let Some(supervisor) = self.supervisor.lock().await.take() {
            // It fails only if the supervisor panicked, and then the child is gone with it.
            let _ = supervisor.await;
        }
    }
}

fn spawn(config: &EnvoyConfig) -> Result<Child, AgentError> {
    let started = config.command().spawn();
    started.map_err(|source| AgentError::StartEnvoy { path: config.program.clone(), source })
}

/// Resolves when the end is wanted, or nobody can want it any more.
async fn wanted(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

async fn supervise(config: EnvoyConfig, first: Child, mut stop: watch::Receiver<bool>) {
    let mut child = Some(first);
    let mut back_off = FIRST_BACK_OFF;
    loop {
        let begin = Instant::now();
        if let Some(mut child) = child.take() {
            tokio::select! {
                status = child.wait() => warn!(?status, "Envoy ended; starting it again"),
                () = wanted(&mut stop) => return terminate(child).await,
            }
        }
        back_off =
            if begin.elapsed() >= WELL_AFTER { FIRST_BACK_OFF } else { (back_off * 2).min(LAST_BACK_OFF) };
        tokio::select! {
            () = tokio::time::sleep(back_off) => {}
            () = wanted(&mut stop) => return,
        }
        match spawn(&config) {
            Ok(new) => child = Some(new),
            Err(error) => warn!(%error, "cannot start Envoy again"),
        }
    }
}

async fn terminate(mut child: Child) {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).map(Pid::from_raw);
    if let Some(Err(error)) = pid.map(|pid| kill(pid, Signal::SIGTERM)) {
        warn!(%error, "cannot signal Envoy");
    }
    match tokio::time::timeout(TERM_GRACE, child.wait()).await {
        Ok(_) => info!("Envoy ended"),
        Err(_) => {
            if let Err(error) = child.kill().await {
                warn!(%error, "cannot kill Envoy");
            }
        }
    }
}

/// The lines of Envoy's `/stats`, `name: number`.
fn gauges(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines()
        .filter_map(|line| line.rsplit_once(": "))
        .filter_map(|(name, value)| Some((name, value.parse().ok()?)))
}

fn is_ready(stats: &str) -> bool {
    let value = |wanted| gauges(stats).find(|(name, _)| *name == wanted).map(|(_, value)| value);
    let positive = |name| value(name).is_some_and(|value| value > 0);
    value("server.state") == Some(0)
        && positive("listener_manager.workers_started")
        && positive("cluster_manager.cds.update_success")
        && positive("listener_manager.lds.update_success")
}

/// Connections of the listeners that carry traffic: neither the admin service nor metrics, and each counted once (not by worker too).
fn active_connections(stats: &str) -> u64 {
    gauges(stats)
        .filter(|(name, _)| name.starts_with("listener.") && name.ends_with(".downstream_cx_active"))
        .filter(|(name, _)| !["admin", "worker_", "_15090."].iter().any(|part| name.contains(part)))
        .map(|(_, value)| value)
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const READY: &str = "cluster_manager.cds.update_success: 1\nlistener_manager.lds.update_success: 2\n\
                         listener_manager.workers_started: 1\nserver.state: 0\n";

    #[test]
    fn ready_needs_listeners_clusters_and_workers() {
        assert!(is_ready(READY));
        for (from, to) in [
            ("cds.update_success: 1", "cds.update_success: 0"),
            ("lds.update_success: 2", "lds.update_success: 0"),
            ("workers_started: 1", "workers_started: 0"),
            ("server.state: 0", "server.state: 2"),
        ] {
            assert!(!is_ready(&READY.replace(from, to)), "{to}");
        }
        assert!(!is_ready(""));
    }

    #[test]
    fn connections_are_counted_once_and_without_the_proxys_own() {
        let stats = "http.admin.downstream_cx_active: 1\nlistener.admin.downstream_cx_active: 1\n\
                     listener.0.0.0.0_15006.downstream_cx_active: 3\n\
                     listener.0.0.0.0_15006.worker_0.downstream_cx_active: 3\n\
                     listener.0.0.0.0_15090.downstream_cx_active: 1\nhttp.x.downstream_cx_active: 3\n";
        assert_eq!(active_connections(stats), 3);
    }

    #[test]
    fn a_given_program_that_is_missing_is_named() {
        let error = find(Some(Path::new("/nonexistent/envoy"))).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/envoy") && error.contains("LATEEN_ENVOY_PATH"), "{error}");
    }
}
