//! A container's program that can be talked to (`stdin`, `tty`): it is started by the daemon inside the prepared container.

use std::{path::Path, process::Stdio, sync::Arc};

use bytes::Bytes;
use lateen_podstreams::{AttachedInput, ExecSession, Output, TerminalSize};
use nix::sys::signal::Signal;
use parking_lot::Mutex;
use tokio::{
    io::AsyncWriteExt,
    sync::{mpsc, oneshot},
};

use crate::{
    RuntimeError,
    container::exec_command,
    container_log::ContainerLog,
    container_run::{ContainerSpec, ExecSpec, Interaction},
    exec_session,
};

/// Bytes of output between the program and its log.
const BUFFER: usize = 16 * 1024;

/// What clients that attach get.
#[derive(Debug)]
pub(crate) struct Console {
    interaction: Interaction,
    /// `None` once a client got it for good.
    stdin: Mutex<Option<mpsc::Sender<Bytes>>>,
    resize: mpsc::Sender<TerminalSize>,
}

/// The running program's other ends.
pub(crate) struct Program {
    output: mpsc::Receiver<Output>,
    exit: oneshot::Receiver<i32>,
}

impl Console {
    /// Starts the program of a container whose first process is `init`, if somebody can talk to it.
    ///
    /// # Errors
    /// When there is no terminal to be had, or no process.
    pub(crate) fn open(
        executable: &Path,
        spec: &ContainerSpec,
        init: i32,
    ) -> Result<Option<(Self, Program)>, RuntimeError> {
        let Some(interaction) = spec.interaction else { return Ok(None) };
        let mut exec = ExecSpec {
            init,
            command: spec.command.clone(),
            environment: spec.environment.clone(),
            working_dir: spec.working_dir.clone(),
            security: spec.security.clone(),
            tty: interaction.tty,
        };
        let session = if interaction.tty {
            exec.set_terminal_type();
            exec_session::with_terminal(exec_command(executable, &exec)?, init)?
        } else {
            let mut command = exec_command(executable, &exec)?;
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            exec_session::with_pipes(command)?
        };
        let ExecSession { stdin, output, resize, exit } = session;
        let console = Self { interaction, stdin: Mutex::new(Some(stdin)), resize };
        Ok(Some((console, Program { output, exit })))
    }

    /// A client's share. With `stdinOnce`, the first client that wants it gets the input for good.
    pub(crate) fn attach(&self, stdin: bool) -> AttachedInput {
        let mut own = self.stdin.lock();
        let stdin = match (stdin && self.interaction.stdin, self.interaction.once) {
            (false, _) => None,
            (true, true) => own.take(),
            (true, false) => own.clone(),
        };
        AttachedInput { stdin, resize: self.interaction.tty.then(|| self.resize.clone()) }
    }
}

impl Program {
    /// Writes the output to the log until the program ends, tells its exit code, and ends the container.
    pub(crate) async fn run(
        self,
        log: Arc<ContainerLog>,
        code: oneshot::Sender<i32>,
        signals: mpsc::WeakSender<Signal>,
    ) {
        let Self { mut output, exit } = self;
        let (mut out, out_end) = tokio::io::duplex(BUFFER);
        let (mut err, err_end) = tokio::io::duplex(BUFFER);
        let divide = async move {
            while let Some(chunk) = output.recv().await {
                // The log reads to the end.
                let _ = match chunk {
                    Output::Stdout(bytes) => out.write_all(&bytes).await,
                    Output::Stderr(bytes) => err.write_all(&bytes).await,
                };
            }
        };
        tokio::join!(divide, log.copy(out_end), log.copy(err_end));
        if let Ok(exit) = exit.await {
            // Without a receiver the container has ended by itself.
            let _ = code.send(exit);
        }
        if let Some(signals) = signals.upgrade() {
            let _ = signals.send(Signal::SIGKILL).await;
        }
    }
}
