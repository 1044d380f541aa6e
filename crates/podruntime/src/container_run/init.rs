//! PID 1 of a container: a minimal init.
//!
//! The program is its child, not PID 1 itself, so that signals have their usual effect on it and orphans are reaped.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    process::{Command, Stdio},
};

use nix::{
    errno::Errno,
    sys::{
        prctl,
        signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, sethostname, setsid},
};

use super::{ContainerSpec, EXIT_INTERNAL, Report, identity, rootfs, start_failure, supervise};
use crate::RuntimeError;

pub(super) fn main() -> Result<i32, RuntimeError> {
    let socket = supervise::standard_input_socket()?;
    let mut reader =
        BufReader::new(socket.try_clone().map_err(RuntimeError::system("the supervisor's socket"))?);
    let mut line = String::new();
    reader.read_line(&mut line).map_err(RuntimeError::system("reading the container's specification"))?;
    let spec: ContainerSpec = serde_json::from_str(&line)
        .map_err(|error| RuntimeError::Config(format!("the container's specification: {error}")))?;
    match start(&spec) {
        Ok(program) => {
            let signals = block_signals()?;
            report(&socket, &Report::Started { init: 0 });
            drop(socket);
            Ok(reap(program, &signals))
        }
        Err((code, message)) => {
            report(&socket, &Report::Failed { message });
            Ok(code)
        }
    }
}

/// Everything up to the running program; `None` when somebody else starts that. Signals of its own are not blocked yet: the
/// program would inherit that.
fn start(spec: &ContainerSpec) -> Result<Option<Pid>, (i32, String)> {
    prepare(spec).map_err(|error| (EXIT_INTERNAL, error.to_string()))?;
    if spec.interaction.is_some() {
        return Ok(None);
    }
    let (program, arguments) =
        spec.command.split_first().ok_or((EXIT_INTERNAL, "the container has no command".to_owned()))?;
    let child = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(spec.environment.iter().map(|(name, value)| (name, value)))
        .current_dir(&spec.working_dir)
        .stdin(Stdio::null())
        .spawn()
        .map_err(|error| start_failure(program, &error))?;
    Ok(Some(Pid::from_raw(child.id().cast_signed())))
}

fn prepare(spec: &ContainerSpec) -> Result<(), RuntimeError> {
    rootfs::enter(spec)?;
    sethostname(&spec.hostname).map_err(RuntimeError::system("setting the host name"))?;
    setsid().map_err(RuntimeError::system("starting a session"))?;
    identity::own_standard_streams(&spec.security)?;
    identity::assume(&spec.security)?;
    // After the change of user, which resets it: the container ends with its supervisor.
    prctl::set_pdeathsig(Signal::SIGKILL)
        .map_err(RuntimeError::system("tying the container to its supervisor"))
}

fn report(mut socket: &UnixStream, report: &Report) {
    if let Ok(mut line) = serde_json::to_vec(report) {
        line.push(b'\n');
        // Without a supervisor this process is about to be killed.
        let _ = socket.write_all(&line);
    }
}

fn block_signals() -> Result<SigSet, RuntimeError> {
    let signals = SigSet::all();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&signals), None)
        .map_err(RuntimeError::system("blocking signals"))?;
    Ok(signals)
}

/// Reaps children and forwards signals until the program ends; the result is its exit code. Without a program of its own it goes
/// on until it is killed.
fn reap(program: Option<Pid>, signals: &SigSet) -> i32 {
    loop {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) if Some(pid) == program => return code,
                Ok(WaitStatus::Signaled(pid, signal, _)) if Some(pid) == program => {
                    return 128 + signal as i32;
                }
                Ok(WaitStatus::StillAlive) => break,
                Err(Errno::ECHILD) if program.is_none() => break,
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return EXIT_INTERNAL,
            }
        }
        match signals.wait() {
            Ok(Signal::SIGCHLD) | Err(_) => {}
            // It may be gone; then the next round sees it. Whatever else runs in this PID namespace was started from outside.
            Ok(signal) => {
                let _ = kill(program.unwrap_or(Pid::from_raw(-1)), signal);
            }
        }
    }
}
