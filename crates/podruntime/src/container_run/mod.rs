//! The hidden subcommand `container-run`: everything that happens between the daemon and a container's own program.
//!
//! | stage | process | does |
//! |---|---|---|
//! | (none) | outside the container | joins the pod's network, makes the other namespaces, starts and outlives `init` |
//! | `init` | PID 1 of the container | builds the root, becomes the container's user with its rights only, runs the program, reaps, forwards signals |
//! | `exec` | outside | enters a running container's namespaces and starts `exec-child` there |
//! | `exec-child` | inside | becomes the command of an exec or a probe |
//!
//! The first stage talks to the daemon over a socket that is its standard input: the specification comes in, reports go out,
//! signals come in. A container somebody can talk to (`stdin`, `tty`) is only held by `init`; its program is started by `exec`, so
//! that the daemon has the other ends of its streams. When the socket closes (the daemon died, or wants it so) the container is killed: init is the first process
//! of a PID namespace, so nothing survives it.

mod enter;
mod identity;
mod init;
mod rootfs;
mod seccomp;
mod spec;
mod supervise;

use std::ffi::OsString;

pub(crate) use enter::EXEC_VARIABLE;
pub(crate) use spec::{
    ContainerSpec, ExecSpec, Instruction, Interaction, MountSpec, Report, Security, SystemCalls,
};

/// Exit code of a container or exec that could not be started for a reason of ours.
pub(crate) const EXIT_INTERNAL: i32 = 125;
/// Exit code of a program that may not be executed, as a shell's.
const EXIT_NOT_EXECUTABLE: i32 = 126;
/// Exit code of a program that isn't there, as a shell's.
const EXIT_NOT_FOUND: i32 = 127;

/// Runs the hidden subcommand with the arguments that follow `container-run`; the result is the process's exit code.
///
/// Must be called early in `main`, before other threads exist.
pub fn container_run_main(args: impl IntoIterator<Item = OsString>) -> i32 {
    let stage = args.into_iter().next();
    let result = match stage.as_ref().map(|stage| stage.to_str()) {
        None => supervise::main(),
        Some(Some("init")) => init::main(),
        Some(Some("exec")) => enter::main(),
        Some(Some("exec-child")) => return enter::child_main(),
        Some(_) => Err(crate::RuntimeError::Config(
            "`container-run` is started by Lateen itself; use `kubectl exec` to run something in a pod"
                .to_owned(),
        )),
    };
    result.unwrap_or_else(|error| {
        eprintln!("lateen: {error}");
        EXIT_INTERNAL
    })
}

/// Exit code of an ended process: its own, or 128 + the signal that killed it.
fn exit_code(status: std::process::ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(EXIT_INTERNAL)
}

/// The exit code and message for a program that could not be executed.
fn start_failure(program: &str, error: &std::io::Error) -> (i32, String) {
    match error.kind() {
        std::io::ErrorKind::NotFound if program.contains('/') => {
            (EXIT_NOT_FOUND, format!("exec: {program:?}: no such file or directory"))
        }
        std::io::ErrorKind::NotFound => {
            (EXIT_NOT_FOUND, format!("exec: {program:?}: executable file not found in $PATH"))
        }
        _ => (EXIT_NOT_EXECUTABLE, format!("exec: {program:?}: {error}")),
    }
}
