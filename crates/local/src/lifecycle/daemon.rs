//! The daemon: a process of its own that runs the cluster, started by `up` and ended by `down`.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use lateen_podruntime::ImageMap;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use super::state::{DaemonConfig, State, file_error};
use super::{LifecycleError, log};
use crate::{Cluster, ClusterConfig, Pods};

/// What the daemon writes to standard output when the cluster can be used.
const READY: &str = "ready";
/// Starts the line that says why it can't.
const FAILED: &str = "failed: ";

/// The daemon itself: runs the cluster described in `state/daemon.json` until SIGTERM. Set up tracing (to standard
/// error, which [`up`](super::up) points at `daemon.log`) before.
///
/// # Errors
/// [`LifecycleError`] when the cluster can't be started.
pub async fn run_daemon(state: &Path) -> Result<(), LifecycleError> {
    // A session of its own: the terminal `up` ran in may close. Fails only for the leader of one.
    let _ = nix::unistd::setsid();
    let result = serve(&State::new(state)).await;
    if let Err(error) = &result {
        tell(&format!("{FAILED}{}", error.to_string().replace('\n', "; ")));
    }
    result
}

async fn serve(state: &State) -> Result<(), LifecycleError> {
    let _locks = state.become_daemon()?;
    let config = state.read_config()?;
    let signals = (|| Ok((signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)))();
    let (mut terminate, mut interrupt) = signals.map_err(file_error(Path::new("signal handlers")))?;
    let cluster = Cluster::start(cluster_config(state, &config)?).await?;
    state.write_kubeconfig(cluster.kubeconfig())?;
    info!(state = %state.dir().display(), "the cluster is up");
    tell(READY);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    info!("stopping");
    cluster.shutdown().await;
    state.remove_run_files();
    Ok(())
}

/// One line to `up`, which may have gone away.
fn tell(line: &str) {
    let mut out = std::io::stdout();
    if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
        warn!(line, "nobody waits for this daemon");
    }
}

fn cluster_config(state: &State, config: &DaemonConfig) -> Result<ClusterConfig, LifecycleError> {
    let mut cluster = ClusterConfig::new(config.executable.clone());
    cluster.state_dir = state.dir().to_owned();
    if let Pods::Run { images, .. } = &mut cluster.pods {
        add_images(images, &config.images)?;
    }
    Ok(cluster)
}

fn add_images(images: &mut ImageMap, mappings: &[String]) -> Result<(), LifecycleError> {
    for mapping in mappings {
        images.add(mapping).map_err(|error| LifecycleError::Preflight(vec![error.to_string()]))?;
    }
    Ok(())
}

/// Starts the daemon and waits until its API server answers.
///
/// # Errors
/// [`LifecycleError::DaemonEnded`] with its own words when it fails, [`LifecycleError::Timeout`] when it does nothing.
pub(crate) async fn start(
    state: &State,
    config: &DaemonConfig,
    patience: Duration,
) -> Result<(), LifecycleError> {
    state.create()?;
    state.write_config(config)?;
    let log_path = state.log();
    let log_file = std::fs::File::create(&log_path).map_err(file_error(&log_path))?;
    let mut child = Command::new(&config.executable)
        .arg("cluster-daemon")
        .arg("--state")
        .arg(state.dir())
        .current_dir("/")
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::piped())
        .stderr(log_file)
        .spawn()
        .map_err(file_error(&config.executable))?;
    match tokio::time::timeout(patience, first_line(&mut child)).await {
        Ok(Some(line)) if line == READY => Ok(()),
        Ok(line) => {
            let reason = match line.as_deref().and_then(|line| line.strip_prefix(FAILED)) {
                Some(reason) => reason.to_owned(),
                None => log::last_line(&log_path).unwrap_or_else(|| "it said nothing".to_owned()),
            };
            // It is on its way out; wait, so that nothing runs when this returns.
            let _ = child.wait().await;
            Err(LifecycleError::DaemonEnded { reason, log: log_path })
        }
        Err(_) => Err(LifecycleError::Timeout {
            waiting_for: "the start of the API server".to_owned(),
            after: patience,
            hint: format!("see {}, then run `lateen down`", log_path.display()),
        }),
    }
}

async fn first_line(child: &mut Child) -> Option<String> {
    let stdout = child.stdout.take()?;
    BufReader::new(stdout).lines().next_line().await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A program in the daemon's place.
    async fn start_script(script: &str) -> Result<(), LifecycleError> {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("lateen");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let config = DaemonConfig { images: vec![], executable: program };
        start(&State::new(&dir.path().join("state")), &config, Duration::from_secs(20)).await
    }

    #[tokio::test]
    async fn the_daemons_own_words_are_passed_on() {
        start_script("echo ready").await.unwrap();
        for (script, words) in [
            ("echo 'failed: port 6443 is taken'", "port 6443 is taken"),
            ("echo first >&2; echo 'the last words' >&2; exit 1", "the last words"),
            ("exit 1", "it said nothing"),
        ] {
            let error = start_script(script).await.unwrap_err();
            assert!(
                matches!(&error, LifecycleError::DaemonEnded { reason, .. } if reason == words),
                "{script}: {error}"
            );
        }
    }
}
