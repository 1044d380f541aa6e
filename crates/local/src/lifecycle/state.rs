//! The state directory: its files, and the locks that say whether a daemon is alive (the kernel drops them when it dies,
//! however that happens).

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::{LifecycleError, UpOptions};

/// Locked by the daemon of whichever state directory: interfaces and rules have the same names for all.
const MACHINE_LOCK: &str = "/run/lateen.lock";

/// Everything `up`, the daemon and `down` keep in the state directory.
#[derive(Debug, Clone)]
pub(crate) struct State {
    dir: PathBuf,
}

/// What `up` tells the daemon, and what the next `up` after a crash can look up.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct DaemonConfig {
    /// Additional images, `REF=COMMAND`.
    pub(crate) images: Vec<String>,
    /// The `lateen` program.
    pub(crate) executable: PathBuf,
}

impl DaemonConfig {
    pub(crate) fn new(options: &UpOptions, executable: PathBuf) -> Self {
        Self { images: options.images.clone(), executable }
    }
}

/// Proof that this process is the daemon; released when dropped or when the process dies.
pub(crate) struct DaemonLocks {
    _state: Flock<File>,
    _machine: Flock<File>,
}

impl State {
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("daemon.log")
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    fn pid(&self) -> PathBuf {
        self.dir.join("daemon.pid")
    }

    fn config(&self) -> PathBuf {
        self.dir.join("daemon.json")
    }

    /// The daemon's process id, if one is alive.
    pub(crate) fn running(&self) -> Option<u32> {
        let file = File::open(self.pid()).ok()?;
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Ok(_) => None,
            Err(_) => fs::read_to_string(self.pid()).ok()?.trim().parse().ok(),
        }
    }

    /// The daemon's process id.
    ///
    /// # Errors
    /// [`LifecycleError::NotRunning`].
    pub(crate) fn require_running(&self) -> Result<u32, LifecycleError> {
        self.running().ok_or_else(|| LifecycleError::NotRunning { state: self.dir.clone() })
    }

    /// Waits until the daemon is dead. Blocks the thread.
    pub(crate) fn wait_for_end(&self) {
        if let Ok(file) = File::open(self.pid()) {
            // Whether the lock was got or the file is gone, the daemon is.
            let _ = Flock::lock(file, FlockArg::LockShared);
        }
        // It lets go of the machine a moment later, and must not pass for another cluster meanwhile.
        let holder = fs::read_to_string(MACHINE_LOCK).unwrap_or_default();
        if Path::new(holder.trim()) == self.dir
            && let Ok(file) = File::open(MACHINE_LOCK)
        {
            let _ = Flock::lock(file, FlockArg::LockShared);
        }
    }

    /// The state directory of a daemon alive on this machine, if it isn't this one.
    pub(crate) fn other_running() -> Option<PathBuf> {
        let file = File::open(MACHINE_LOCK).ok()?;
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Ok(_) => None,
            Err(_) => Some(PathBuf::from(fs::read_to_string(MACHINE_LOCK).ok()?.trim())),
        }
    }

    /// Makes this process the daemon.
    ///
    /// # Errors
    /// When there is one already, here or (by [`LifecycleError::Preflight`]) from another state directory.
    pub(crate) fn become_daemon(&self) -> Result<DaemonLocks, LifecycleError> {
        let pid = std::process::id().to_string();
        let state = lock(&self.pid(), &pid).map_err(|taken| {
            taken.unwrap_or_else(|| {
                let dir = self.dir.display();
                LifecycleError::Preflight(vec![format!(
                    "a cluster is already running from {dir}; see `lateen status`"
                )])
            })
        })?;
        let dir = self.dir.display().to_string();
        let machine = lock(Path::new(MACHINE_LOCK), &dir).map_err(|taken| {
            taken.unwrap_or_else(|| {
                LifecycleError::Preflight(vec![other_cluster(Self::other_running().as_deref())])
            })
        })?;
        Ok(DaemonLocks { _state: state, _machine: machine })
    }

    /// Creates the directory, for root only: it holds keys.
    pub(crate) fn create(&self) -> Result<(), LifecycleError> {
        use std::os::unix::fs::DirBuilderExt;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.dir).map_err(file_error(&self.dir))
    }

    pub(crate) fn write_config(&self, config: &DaemonConfig) -> Result<(), LifecycleError> {
        let text = serde_json::to_string_pretty(config).unwrap_or_default();
        self.write(&self.config(), &text)
    }

    pub(crate) fn read_config(&self) -> Result<DaemonConfig, LifecycleError> {
        let path = self.config();
        let text = fs::read_to_string(&path).map_err(file_error(&path))?;
        serde_json::from_str(&text).map_err(|error| file_error(&path)(std::io::Error::other(error)))
    }

    pub(crate) fn write_kubeconfig(&self, text: &str) -> Result<(), LifecycleError> {
        self.write(&self.kubeconfig(), text)
    }

    /// Replaces a file at once; only root can read it.
    fn write(&self, path: &Path, text: &str) -> Result<(), LifecycleError> {
        let new = path.with_extension("new");
        let write = || {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
            file.write_all(text.as_bytes())?;
            fs::rename(&new, path)
        };
        write().map_err(file_error(path))
    }

    /// Removes what only a running daemon has.
    pub(crate) fn remove_run_files(&self) {
        for path in [self.pid(), self.kubeconfig()] {
            // Missing is fine.
            let _ = fs::remove_file(path);
        }
    }

    /// Removes everything a cluster keeps here, and the directory if nothing else is in it.
    ///
    /// # Errors
    /// The first file that can't be removed; the rest is removed all the same.
    pub(crate) fn remove(&self) -> Result<(), LifecycleError> {
        self.remove_run_files();
        let mut first_error = Ok(());
        for name in [
            "daemon.json",
            "daemon.log",
            "pki",
            "store",
            "logs",
            "pods",
            "ip-forward-enabled",
            "ip6-forward-enabled",
        ] {
            let path = self.dir.join(name);
            let removed = match fs::symlink_metadata(&path) {
                Ok(found) if found.is_dir() => fs::remove_dir_all(&path),
                Ok(_) => fs::remove_file(&path),
                Err(_) => Ok(()),
            };
            if first_error.is_ok() {
                first_error = removed.map_err(file_error(&path));
            }
        }
        // Stays when somebody else keeps files in it.
        let _ = fs::remove_dir(&self.dir);
        first_error
    }
}

/// The sentence about a cluster that uses the same names on this machine.
pub(crate) fn other_cluster(state: Option<&Path>) -> String {
    match state {
        Some(state) => format!(
            "another cluster is running on this machine, from {0}: use it with `--state {0}`, or stop it with `lateen down --state {0}`",
            state.display()
        ),
        None => "another cluster is just starting or stopping on this machine: try again".to_owned(),
    }
}

/// Locks a file and writes `content` to it. The error is `None` when somebody else has the lock.
fn lock(path: &Path, content: &str) -> Result<Flock<File>, Option<LifecycleError>> {
    let open =
        || OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o644).open(path);
    let file = open().map_err(|error| Some(file_error(path)(error)))?;
    let mut locked = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| None)?;
    let write = |file: &mut File| {
        file.set_len(0)?;
        file.write_all(content.as_bytes())
    };
    write(&mut locked).map_err(|error| Some(file_error(path)(error)))?;
    Ok(locked)
}

pub(crate) fn file_error(path: &Path) -> impl FnOnce(std::io::Error) -> LifecycleError {
    let path = path.to_owned();
    move |source| LifecycleError::File { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_says_who_is_alive() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::new(dir.path());
        assert_eq!(state.running(), None);
        let held = lock(&state.pid(), "4711").unwrap();
        assert_eq!(state.running(), Some(4711));
        assert!(matches!(lock(&state.pid(), "1"), Err(None)));
        drop(held);
        assert_eq!(state.running(), None, "the file is left, as after a crash");
        state.wait_for_end();
    }

    #[test]
    fn only_our_own_files_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::new(&dir.path().join("state"));
        state.create().unwrap();
        let config = DaemonConfig { images: vec!["a=b".to_owned()], executable: "/x".into() };
        state.write_config(&config).unwrap();
        assert_eq!(state.read_config().unwrap(), config);
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(state.dir()).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o700, "it holds keys and Secrets");
        fs::create_dir_all(state.dir().join("store/deep")).unwrap();
        fs::write(state.dir().join("notes.txt"), "mine").unwrap();
        state.remove().unwrap();
        let left: Vec<_> =
            fs::read_dir(state.dir()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["notes.txt"]);
        fs::remove_file(state.dir().join("notes.txt")).unwrap();
        state.remove().unwrap();
        assert!(!state.dir().exists());
    }
}
