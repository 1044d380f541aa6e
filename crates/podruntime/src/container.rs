//! The daemon's side of a running container, and of commands inside it.

use std::{
    os::{fd::OwnedFd, unix::net::UnixStream as StdUnixStream},
    path::Path,
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use lateen_podstreams::AttachedInput;
use nix::sys::signal::Signal;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixStream, unix::OwnedReadHalf, unix::OwnedWriteHalf},
    process::{Child, Command},
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
    time::timeout,
};

use crate::{
    RuntimeError,
    console::Console,
    container_log::ContainerLog,
    container_run::{ContainerSpec, EXEC_VARIABLE, EXIT_INTERNAL, ExecSpec, Instruction, Report},
};

/// How long a container may take from its process to its program.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// How long output may still come after the container ended.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(2);
/// Signals waiting to be sent.
const SIGNALS: usize = 8;
/// Most output of a probe or hook that is kept, as the kubelet does.
const MOST_OUTPUT: u64 = 10 * 1024;

/// A running container; clones share it. When the last one is dropped, the container is killed.
#[derive(Debug, Clone)]
pub(crate) struct RunningContainer {
    /// Its first process, as the host numbers it.
    pub(crate) init: i32,
    signals: mpsc::Sender<Signal>,
    exit: watch::Receiver<Option<i32>>,
    /// For those who attach, when its program can be talked to.
    console: Option<Arc<Console>>,
}

impl RunningContainer {
    /// Starts a container whose output goes to `log`.
    ///
    /// # Errors
    /// [`RuntimeError::Pod`] when its program can't be started; others when something of ours fails.
    pub(crate) async fn start(
        executable: &Path,
        spec: &ContainerSpec,
        log: &Arc<ContainerLog>,
    ) -> Result<Self, RuntimeError> {
        let (ours, theirs) = StdUnixStream::pair().map_err(RuntimeError::system("making a socket pair"))?;
        ours.set_nonblocking(true).map_err(RuntimeError::system("making a socket pair"))?;
        let ours = UnixStream::from_std(ours).map_err(RuntimeError::system("making a socket pair"))?;
        let mut child = Command::new(executable)
            .arg("container-run")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A Ctrl-C in the daemon's terminal is not for containers.
            .process_group(0)
            .spawn()
            .map_err(RuntimeError::file(executable))?;
        let mut copies: Vec<JoinHandle<()>> = Vec::new();
        copies.extend(child.stdout.take().map(|stream| tokio::spawn(copy_log(Arc::clone(log), stream))));
        copies.extend(child.stderr.take().map(|stream| tokio::spawn(copy_log(Arc::clone(log), stream))));
        let (read, mut write) = ours.into_split();
        let mut line = serde_json::to_vec(spec)
            .map_err(|error| RuntimeError::Config(format!("the container's specification: {error}")))?;
        line.push(b'\n');
        write.write_all(&line).await.map_err(RuntimeError::system("handing over the specification"))?;
        let report = timeout(START_PATIENCE, first_report(read)).await;

        let (exit_sender, mut exit) = watch::channel(None);
        let (code_sender, code) = oneshot::channel();
        let started = match report {
            Ok(Some(Report::Started { init })) => {
                let (signals, receiver) = mpsc::channel(SIGNALS);
                tokio::spawn(send_signals(receiver, write));
                let console = match Console::open(executable, spec, init) {
                    Ok(None) => Ok(None),
                    Ok(Some((console, program))) => {
                        let signals = signals.downgrade();
                        copies.push(tokio::spawn(program.run(Arc::clone(log), code_sender, signals)));
                        Ok(Some(Arc::new(console)))
                    }
                    Err(error) => Err(RuntimeError::Pod(error.to_string())),
                };
                console.map(|console| Self { init, signals, exit: exit.clone(), console })
            }
            Ok(Some(Report::Failed { message })) => Err(RuntimeError::Pod(message)),
            Ok(None) => {
                // What went wrong is in the container's log then, once the process has ended.
                drop(write);
                tokio::spawn(wait(child, copies, Arc::clone(log), code, exit_sender));
                let _ = timeout(OUTPUT_PATIENCE * 2, exit.wait_for(Option::is_some)).await;
                return Err(RuntimeError::Pod(format!("its first process failed: {}", log.last_line())));
            }
            Err(_) => {
                Err(RuntimeError::Pod(format!("the container did not start within {START_PATIENCE:?}")))
            }
        };
        tokio::spawn(wait(child, copies, Arc::clone(log), code, exit_sender));
        started
    }

    /// What a client that attaches may have of its input; a container nobody can talk to has none.
    pub(crate) fn attach(&self, stdin: bool) -> AttachedInput {
        self.console.as_ref().map(|console| console.attach(stdin)).unwrap_or_default()
    }

    /// Sends a signal to the container's program; SIGKILL ends the whole container.
    pub(crate) fn signal(&self, signal: Signal) {
        // A full queue means that as many signals are on their way already; a closed one that it has ended.
        let _ = self.signals.try_send(signal);
    }

    /// Its exit code, once it has ended and all of its output is in the log.
    pub(crate) async fn exited(&mut self) -> i32 {
        match self.exit.wait_for(Option::is_some).await {
            Ok(code) => code.unwrap_or(EXIT_INTERNAL),
            Err(_) => EXIT_INTERNAL,
        }
    }

    /// Whether it has ended.
    pub(crate) fn has_exited(&self) -> bool {
        self.exit.borrow().is_some()
    }
}

async fn copy_log(log: Arc<ContainerLog>, stream: impl tokio::io::AsyncRead + Unpin) {
    log.copy(stream).await;
}

async fn first_report(read: OwnedReadHalf) -> Option<Report> {
    let mut lines = BufReader::new(read).lines();
    let line = lines.next_line().await.ok()??;
    serde_json::from_str(&line).ok()
}

/// Until the last handle is dropped; then the closed socket ends the container.
async fn send_signals(mut signals: mpsc::Receiver<Signal>, mut socket: OwnedWriteHalf) {
    while let Some(signal) = signals.recv().await {
        let Ok(mut line) = serde_json::to_vec(&Instruction::Signal(signal as i32)) else { return };
        line.push(b'\n');
        if socket.write_all(&line).await.is_err() {
            return;
        }
    }
}

/// `code` is that of a program that was started from outside.
async fn wait(
    mut child: Child,
    copies: Vec<JoinHandle<()>>,
    log: Arc<ContainerLog>,
    mut code: oneshot::Receiver<i32>,
    exit: watch::Sender<Option<i32>>,
) {
    let own = child.wait().await.ok().and_then(exit_code).unwrap_or(EXIT_INTERNAL);
    let code = code.try_recv().unwrap_or(own);
    for copy in copies {
        let abort = copy.abort_handle();
        if timeout(OUTPUT_PATIENCE, copy).await.is_err() {
            abort.abort();
        }
    }
    log.end();
    exit.send_replace(Some(code));
}

/// Exit code, or 128 + signal.
pub(crate) fn exit_code(status: std::process::ExitStatus) -> Option<i32> {
    use std::os::unix::process::ExitStatusExt;
    status.code().or_else(|| status.signal().map(|signal| 128 + signal))
}

/// The command that runs `spec` inside its container; standard streams are the caller's to set. Dropping its process
/// kills the command.
pub(crate) fn exec_command(executable: &Path, spec: &ExecSpec) -> Result<Command, RuntimeError> {
    let text = serde_json::to_string(spec)
        .map_err(|error| RuntimeError::Config(format!("the command's specification: {error}")))?;
    let mut command = Command::new(executable);
    command
        .args(["container-run", "exec"])
        .env_clear()
        .env(EXEC_VARIABLE, text)
        .process_group(0)
        .kill_on_drop(true);
    Ok(command)
}

/// Runs a command inside a container to its end and returns its exit code and the beginning of its output.
pub(crate) async fn exec_to_end(executable: &Path, spec: &ExecSpec) -> Result<(i32, String), RuntimeError> {
    let mut child = exec_command(executable, spec)?
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(RuntimeError::file(executable))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (status, out, err) = tokio::join!(child.wait(), beginning(stdout), beginning(stderr));
    let status = status.map_err(RuntimeError::system("waiting for a command in a container"))?;
    Ok((exit_code(status).unwrap_or(EXIT_INTERNAL), out + &err))
}

async fn beginning(stream: Option<impl tokio::io::AsyncRead + Unpin>) -> String {
    let Some(mut stream) = stream else { return String::new() };
    let mut text = Vec::new();
    // The rest is read too, so that the command doesn't block; a failing read ends it.
    let _ = (&mut stream).take(MOST_OUTPUT).read_to_end(&mut text).await;
    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&text).into_owned()
}
