//! The first stage: between the daemon and the container's first process.

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    process::{Command, Stdio},
    sync::mpsc,
};

use nix::{
    sched::{CloneFlags, setns, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{ContainerSpec, Instruction, Report, exit_code};
use crate::RuntimeError;

pub(super) fn main() -> Result<i32, RuntimeError> {
    let daemon = standard_input_socket()?;
    let mut from_daemon =
        BufReader::new(daemon.try_clone().map_err(RuntimeError::system("the daemon's socket"))?);
    let mut line = String::new();
    from_daemon
        .read_line(&mut line)
        .map_err(RuntimeError::system("reading the container's specification"))?;
    let spec: ContainerSpec = serde_json::from_str(&line)
        .map_err(|error| RuntimeError::Config(format!("the container's specification: {error}")))?;

    let (ours, theirs) = UnixStream::pair().map_err(RuntimeError::system("making a socket pair"))?;
    let mut to_init = ours.try_clone().map_err(RuntimeError::system("the container's socket"))?;
    // The kernel allows no new threads once children belong to another PID namespace; these wait for init's number.
    let (obey_pid, relay_pid) = (mpsc::sync_channel(1), mpsc::sync_channel(1));
    std::thread::spawn(move || obey_pid.1.recv().map(|pid| obey(from_daemon, Pid::from_raw(pid))));
    let reports =
        std::thread::spawn(move || relay_pid.1.recv().map(|pid| relay(BufReader::new(ours), daemon, pid)));

    if let Some(netns) = &spec.netns {
        let namespace = File::open(netns).map_err(RuntimeError::file(netns))?;
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)
            .map_err(RuntimeError::system(format!("entering {}", netns.display())))?;
    }
    // The PID namespace begins with the next child; the others with this thread.
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWPID,
    )
    .map_err(RuntimeError::system("making the container's namespaces"))?;
    let mut init = Command::new("/proc/self/exe")
        .args(["container-run", "init"])
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .spawn()
        .map_err(RuntimeError::system("starting the container's first process"))?;
    let pid = init.id().cast_signed();
    for sender in [obey_pid.0, relay_pid.0] {
        // Both threads are waiting for it.
        let _ = sender.send(pid);
    }
    to_init.write_all(line.as_bytes()).map_err(RuntimeError::system("handing on the specification"))?;
    let status = init.wait().map_err(RuntimeError::system("waiting for the container"))?;
    // The last report must be out before this process ends; init's end closes its side.
    let _ = reports.join();
    Ok(exit_code(status))
}

/// Standard input as the socket it is.
pub(super) fn standard_input_socket() -> Result<UnixStream, RuntimeError> {
    let descriptor =
        std::io::stdin().as_fd().try_clone_to_owned().map_err(RuntimeError::system("standard input"))?;
    Ok(UnixStream::from(descriptor))
}

/// Signals from the daemon to init, until the daemon goes; then the container goes too.
fn obey(mut daemon: BufReader<UnixStream>, init: Pid) {
    let mut line = String::new();
    while matches!(daemon.read_line(&mut line), Ok(length) if length > 0) {
        if let Ok(Instruction::Signal(number)) = serde_json::from_str(&line)
            && let Ok(signal) = Signal::try_from(number)
        {
            // It may have ended already.
            let _ = kill(init, signal);
        }
        line.clear();
    }
    let _ = kill(init, Signal::SIGKILL);
}

/// Reports from init to the daemon, with init's number on the host filled in.
fn relay(init: BufReader<UnixStream>, mut daemon: UnixStream, pid: i32) {
    for line in init.lines().map_while(Result::ok) {
        let report = match serde_json::from_str(&line) {
            Ok(Report::Started { .. }) => Report::Started { init: pid },
            Ok(failed) => failed,
            Err(_) => continue,
        };
        if let Ok(mut text) = serde_json::to_vec(&report) {
            text.push(b'\n');
            // Without a daemon nobody is interested.
            let _ = daemon.write_all(&text);
        }
    }
}
