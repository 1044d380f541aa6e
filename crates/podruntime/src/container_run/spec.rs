//! What the daemon and the stages of `container-run` tell each other, one JSON object per line.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Who a container's processes are and what they may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Security {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups beside `gid`.
    pub(crate) groups: Vec<u32>,
    /// Those its programs may have, a bit each, as the kernel numbers them (`capabilities(7)`). Root's have them.
    pub(crate) capabilities: u64,
    /// Whether programs can gain no rights by being started (set-user-id bits, capabilities of files).
    pub(crate) no_new_privileges: bool,
    pub(crate) system_calls: SystemCalls,
}

/// The system calls a container may make (`seccompProfile`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum SystemCalls {
    All,
    /// Those container runtimes allow by default.
    RuntimeDefault,
}

/// Something of the host that appears inside the container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MountSpec {
    /// A file or directory on the host.
    pub(crate) source: PathBuf,
    /// An absolute path inside.
    pub(crate) target: PathBuf,
    pub(crate) read_only: bool,
}

/// How a container's program can be talked to (`stdin`, `stdinOnce`, `tty`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Interaction {
    pub(crate) stdin: bool,
    /// Input ends with the first client that had it.
    pub(crate) once: bool,
    /// The streams are one terminal.
    pub(crate) tty: bool,
}

/// A container to be started.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ContainerSpec {
    /// The pod's network namespace; `None` is the host's own.
    pub(crate) netns: Option<PathBuf>,
    pub(crate) hostname: String,
    /// A directory of the container's own, for its root's private layer.
    pub(crate) directory: PathBuf,
    /// A directory of the host that must not be seen inside.
    pub(crate) hidden: PathBuf,
    /// The folder of our own programs, seen inside as [`PROGRAMS`](crate::PROGRAMS).
    pub(crate) binaries: PathBuf,
    /// In this order.
    pub(crate) mounts: Vec<MountSpec>,
    /// Program and arguments.
    pub(crate) command: Vec<String>,
    /// Who can talk to the program; `None` is nobody. Otherwise the container is only prepared, and the daemon starts the program
    /// in it, which keeps the other ends of its streams.
    pub(crate) interaction: Option<Interaction>,
    pub(crate) environment: Vec<(String, String)>,
    /// Absolute; made if missing.
    pub(crate) working_dir: PathBuf,
    pub(crate) security: Security,
    pub(crate) read_only_root: bool,
}

/// A command to be run inside a running container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ExecSpec {
    /// The container's first process, as the host numbers it.
    pub(crate) init: i32,
    pub(crate) command: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) working_dir: PathBuf,
    pub(crate) security: Security,
    /// Standard input is a terminal that becomes the controlling one.
    pub(crate) tty: bool,
}

impl ExecSpec {
    /// Tells the command what terminal it has, unless the container does already.
    pub(crate) fn set_terminal_type(&mut self) {
        if !self.environment.iter().any(|(name, _)| name == "TERM") {
            self.environment.push(("TERM".to_owned(), "xterm".to_owned()));
        }
    }
}

/// From a container to the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The program runs. `init` is the container's first process, as the host numbers it; `init` itself doesn't know it.
    Started { init: i32 },
    /// The program could not be started.
    Failed { message: String },
}

/// From the daemon to a container, after the specification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Instruction {
    /// Send this signal to the container's program (SIGKILL: to all of its processes).
    Signal(i32),
}
