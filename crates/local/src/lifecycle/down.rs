//! Stopping, and removing what is left of a crash.

use std::path::Path;
use std::time::{Duration, Instant};

use lateen_podruntime::{Names, host_teardown};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::state::State;
use super::{DownOptions, DownSummary, LifecycleError, Progress};

/// How long the daemon may take to stop its pods before it is killed; pods get 30 s by default, but on the way down
/// nobody is served any more.
const PATIENCE: Duration = Duration::from_secs(20);

/// Stops the daemon and removes everything it has made on this machine; also works after a crash, and when there is
/// nothing to stop.
///
/// # Errors
/// [`LifecycleError::Preflight`] without root, [`LifecycleError::Cleanup`] with what could not be removed.
pub async fn down(
    options: &DownOptions,
    progress: &mut (dyn FnMut(Progress) + Send),
) -> Result<DownSummary, LifecycleError> {
    if !nix::unistd::geteuid().is_root() {
        let sentence = "root is needed to remove namespaces, interfaces and rules: run `sudo lateen down`";
        return Err(LifecycleError::Preflight(vec![sentence.to_owned()]));
    }
    let state = State::new(&options.state);
    let daemon = state.running();
    if let Some(pid) = daemon {
        let begun = Instant::now();
        progress(Progress::Begun("stop the cluster".to_owned()));
        stop(&state, pid).await?;
        progress(Progress::Done("cluster stopped".to_owned(), begun.elapsed()));
    }
    let mut removed = Vec::new();
    // Another cluster's interfaces and rules have the same names.
    if let Some(other) = State::other_running() {
        progress(Progress::Note(format!("the cluster running from {} is left alone", other.display())));
    } else {
        removed = leftovers(&Names::default());
        host_teardown(&Names::default(), state.dir())
            .await
            .map_err(|error| LifecycleError::Cleanup(format!("something could not be removed: {error}")))?;
    }
    if options.keep {
        state.remove_run_files();
    } else {
        state.remove()?;
    }
    Ok(DownSummary { was_running: daemon.is_some(), removed })
}

/// SIGTERM, and SIGKILL when that doesn't help.
async fn stop(state: &State, pid: u32) -> Result<(), LifecycleError> {
    let process = i32::try_from(pid).map(Pid::from_raw);
    let process = process.map_err(|_| LifecycleError::Cleanup(format!("{pid} is not a process id")))?;
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        // It may have died by itself; waiting for its lock shows.
        let _ = kill(process, signal);
        let state = state.clone();
        let ended = tokio::task::spawn_blocking(move || state.wait_for_end());
        if tokio::time::timeout(PATIENCE, ended).await.is_ok() {
            return Ok(());
        }
    }
    Err(LifecycleError::Cleanup(format!("the daemon (process {pid}) does not die: see `ps -p {pid}`")))
}

/// Namespaces and interfaces that are still there, for the person to read.
fn leftovers(names: &Names) -> Vec<String> {
    let entries = |directory: &str| {
        let found = std::fs::read_dir(Path::new(directory)).into_iter().flatten().filter_map(Result::ok);
        let mut found: Vec<String> = found.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        found.sort();
        found
    };
    let namespaces = entries("/run/netns").into_iter().filter(|name| names.is_netns(name));
    let node = names.node_interface();
    let interfaces =
        entries("/sys/class/net").into_iter().filter(|name| names.is_veth(name) || *name == node);
    namespaces
        .map(|name| format!("network namespace {name}"))
        .chain(interfaces.map(|name| format!("interface {name}")))
        .collect()
}
