//! A command inside a container with its streams attached to a client.

use std::{
    fs::{File, OpenOptions},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    pin::pin,
    process::Stdio,
    time::Duration,
};

use bytes::Bytes;
use lateen_podstreams::{ExecSession, Output, TerminalSize};
use nix::fcntl::OFlag;
use rustix::{
    pty::OpenptFlags,
    termios::{Winsize, tcsetwinsize},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
    sync::{mpsc, oneshot},
};

use crate::{RuntimeError, container::exit_code, container_run::EXIT_INTERNAL};

/// Chunks waiting in each direction.
const QUEUE: usize = 16;
const CHUNK: usize = 16 * 1024;
/// How long output may still come after the command ended: processes it left behind may hold its streams for ever.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(1);

/// The ends of a session that stay here.
struct Ends {
    stdin: mpsc::Receiver<Bytes>,
    output: mpsc::Sender<Output>,
    resize: mpsc::Receiver<TerminalSize>,
    exit: oneshot::Sender<i32>,
}

fn session() -> (ExecSession, Ends) {
    let (stdin, stdin_end) = mpsc::channel(QUEUE);
    let (output_end, output) = mpsc::channel(QUEUE);
    let (resize, resize_end) = mpsc::channel(QUEUE);
    let (exit_end, exit) = oneshot::channel();
    let ends = Ends { stdin: stdin_end, output: output_end, resize: resize_end, exit: exit_end };
    (ExecSession { stdin, output, resize, exit }, ends)
}

/// Starts a command whose standard streams are pipes (or nothing, for input).
pub(crate) fn with_pipes(mut command: Command) -> Result<ExecSession, RuntimeError> {
    let mut child = command.spawn().map_err(RuntimeError::system("starting a command in a container"))?;
    let (session, Ends { mut stdin, output, resize: _, exit }) = session();
    if let Some(mut pipe) = child.stdin.take() {
        tokio::spawn(async move {
            while let Some(bytes) = stdin.recv().await {
                // The command has closed its input, which is its right.
                if pipe.write_all(&bytes).await.is_err() {
                    return;
                }
            }
        });
    }
    let out = child.stdout.take().map(|pipe| tokio::spawn(copy(pipe, output.clone(), Output::Stdout)));
    let err = child.stderr.take().map(|pipe| tokio::spawn(copy(pipe, output.clone(), Output::Stderr)));
    tokio::spawn(async move {
        let code = wait(&mut child, &output).await;
        // What the command wrote before it ended is still in the pipes.
        for copy in [out, err].into_iter().flatten() {
            let abort = copy.abort_handle();
            if tokio::time::timeout(OUTPUT_PATIENCE, copy).await.is_err() {
                abort.abort();
            }
        }
        drop(output);
        let _ = exit.send(code);
    });
    Ok(session)
}

/// Starts a command on a new terminal of the container whose first process is `init`.
pub(crate) fn with_terminal(mut command: Command, init: i32) -> Result<ExecSession, RuntimeError> {
    let terminal = |error: rustix::io::Errno| {
        RuntimeError::system("making a terminal in the container")(std::io::Error::from(error))
    };
    // From the container's own devpts, so that `tty` names a file that exists there.
    let multiplexer = format!("/proc/{init}/root/dev/pts/ptmx");
    let flags = OFlag::O_NOCTTY.bits();
    let master = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(&multiplexer)
        .map_err(RuntimeError::file(&multiplexer))?;
    rustix::pty::unlockpt(&master).map_err(terminal)?;
    let slave =
        rustix::pty::ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY).map_err(terminal)?;
    let clone = |slave: &OwnedFd| slave.try_clone().map_err(RuntimeError::system("making a terminal"));
    command.stdin(Stdio::from(clone(&slave)?)).stdout(Stdio::from(clone(&slave)?)).stderr(Stdio::from(slave));
    let mut child = command.spawn().map_err(RuntimeError::system("starting a command in a container"))?;
    // The command holds the other end open too.
    drop(command);
    let (session, ends) = session();
    let Ends { stdin, output, resize, exit } = ends;
    tokio::spawn(async move {
        let code = {
            let mut drive = pin!(drive(master, stdin, &output, resize));
            let mut wait = pin!(wait(&mut child, &output));
            tokio::select! {
                code = &mut wait => {
                    // Late output is lost, which only the processes left behind could have written.
                    let _ = tokio::time::timeout(OUTPUT_PATIENCE, drive).await;
                    code
                }
                () = &mut drive => wait.await,
            }
        };
        drop(output);
        let _ = exit.send(code);
    });
    Ok(session)
}

/// The command's exit code; it is killed when nobody reads its output any more.
async fn wait(child: &mut Child, output: &mpsc::Sender<Output>) -> i32 {
    tokio::select! {
        status = child.wait() => status.ok().and_then(exit_code).unwrap_or(EXIT_INTERNAL),
        () = output.closed() => {
            // It may have ended by itself in this moment.
            let _ = child.kill().await;
            EXIT_INTERNAL
        }
    }
}

async fn copy(mut pipe: impl AsyncRead + Unpin, output: mpsc::Sender<Output>, kind: fn(Bytes) -> Output) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(length) = pipe.read(&mut buffer).await {
        if length == 0 || output.send(kind(Bytes::copy_from_slice(&buffer[..length]))).await.is_err() {
            return;
        }
    }
}

/// Moves bytes between a terminal and the session until the terminal has no more users.
///
/// A terminal's reads and writes wait in threads of their own (tokio's files): they end with its last user.
async fn drive(
    master: File,
    mut stdin: mpsc::Receiver<Bytes>,
    output: &mpsc::Sender<Output>,
    mut resize: mpsc::Receiver<TerminalSize>,
) {
    let Ok(input) = master.try_clone() else { return };
    let (mut reader, mut input) = (tokio::fs::File::from_std(master), tokio::fs::File::from_std(input));
    let Ok(sized) = reader.try_clone().await else { return };
    let read = async {
        let mut buffer = vec![0; CHUNK];
        loop {
            match reader.read(&mut buffer).await {
                // EIO: the last user has gone.
                Ok(0) | Err(_) => return,
                Ok(length) => {
                    let bytes = Bytes::copy_from_slice(&buffer[..length]);
                    if output.send(Output::Stdout(bytes)).await.is_err() {
                        return;
                    }
                }
            }
        }
    };
    let write = async {
        while let Some(bytes) = stdin.recv().await {
            if input.write_all(&bytes).await.is_err() || input.flush().await.is_err() {
                return std::future::pending().await;
            }
        }
        // The client closed its input: end of file, as a terminal says it. Without room for it there is no reader.
        let _ = input.write_all(&[4]).await;
        let _ = input.flush().await;
        std::future::pending::<()>().await;
    };
    let sizes = async {
        while let Some(TerminalSize { width, height }) = resize.recv().await {
            let size = Winsize { ws_col: width, ws_row: height, ws_xpixel: 0, ws_ypixel: 0 };
            // A terminal that has gone needs no size.
            let _ = tcsetwinsize(sized.as_fd(), size);
        }
        std::future::pending::<()>().await;
    };
    tokio::select! { () = read => {} () = write => {} () = sizes => {} }
}
