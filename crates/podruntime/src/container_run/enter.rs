//! Commands inside a running container: exec, exec probes and hooks.

use std::{
    fs::File,
    os::{fd::AsFd, unix::process::CommandExt},
    path::PathBuf,
    process::Command,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::{prctl, signal::Signal},
    unistd::{chdir, setsid},
};

use super::{EXIT_INTERNAL, EXIT_NOT_EXECUTABLE, ExecSpec, exit_code, identity, start_failure};
use crate::RuntimeError;

/// The variable with the [`ExecSpec`]: standard input belongs to the command, and arguments could be read by everybody.
pub(crate) const EXEC_VARIABLE: &str = "LATEEN_EXEC";

/// Enters the container and waits for the command. Killing this process kills the command.
pub(super) fn main() -> Result<i32, RuntimeError> {
    let spec = spec()?;
    let namespaces = PathBuf::from(format!("/proc/{}/ns", spec.init));
    let kinds = [
        ("net", CloneFlags::CLONE_NEWNET),
        ("uts", CloneFlags::CLONE_NEWUTS),
        ("ipc", CloneFlags::CLONE_NEWIPC),
        ("pid", CloneFlags::CLONE_NEWPID),
        // Last: after it `/proc` is the container's. It also changes this process's root to the container's.
        ("mnt", CloneFlags::CLONE_NEWNS),
    ];
    let mut files = Vec::new();
    for (name, kind) in kinds {
        let path = namespaces.join(name);
        files.push((File::open(&path).map_err(RuntimeError::file(&path))?, kind));
    }
    for (file, kind) in &files {
        setns(file.as_fd(), *kind).map_err(RuntimeError::system("entering the container"))?;
    }
    chdir("/").map_err(RuntimeError::system("entering the container"))?;
    // The child is in the container's PID namespace, where its /proc knows it.
    let status = Command::new("/proc/self/exe")
        .args(["container-run", "exec-child"])
        .status()
        .map_err(RuntimeError::system("starting a command in the container"))?;
    Ok(exit_code(status))
}

/// Becomes the command; returns only if that fails.
pub(super) fn child_main() -> i32 {
    let spec = match spec().and_then(|spec| prepare(&spec).map(|()| spec)) {
        Ok(spec) => spec,
        Err(error) => {
            eprintln!("lateen: {error}");
            return EXIT_INTERNAL;
        }
    };
    let Some((program, arguments)) = spec.command.split_first() else {
        eprintln!("lateen: exec: no command given");
        return EXIT_NOT_EXECUTABLE;
    };
    let environment = spec.environment.iter().map(|(name, value)| (name, value));
    let error = Command::new(program).args(arguments).env_clear().envs(environment).exec();
    let (code, message) = start_failure(program, &error);
    eprintln!("{message}");
    code
}

fn spec() -> Result<ExecSpec, RuntimeError> {
    let text = std::env::var(EXEC_VARIABLE)
        .map_err(|_| RuntimeError::Config(format!("{EXEC_VARIABLE} is not set; use `kubectl exec`")))?;
    serde_json::from_str(&text).map_err(|error| RuntimeError::Config(format!("{EXEC_VARIABLE}: {error}")))
}

fn prepare(spec: &ExecSpec) -> Result<(), RuntimeError> {
    setsid().map_err(RuntimeError::system("starting a session"))?;
    if spec.tty {
        rustix::process::ioctl_tiocsctty(std::io::stdin())
            .map_err(|error| RuntimeError::system("taking the terminal")(std::io::Error::from(error)))?;
    }
    identity::own_standard_streams(&spec.security)?;
    identity::assume(&spec.security)?;
    prctl::set_pdeathsig(Signal::SIGKILL)
        .map_err(RuntimeError::system("tying the command to its session"))?;
    chdir(&spec.working_dir)
        .map_err(RuntimeError::system(format!("changing to {}", spec.working_dir.display())))
}
