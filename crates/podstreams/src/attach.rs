//! Attaching to a container's own process: its log is the output.

use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use tokio::sync::{mpsc, oneshot};

use crate::{ExecSession, Output, PodError, TerminalSize};

/// Chunks of output a session holds before the log is read no further.
const OUTPUT_QUEUE: usize = 16;

/// Where a client's input goes.
#[derive(Debug, Default)]
pub struct AttachedInput {
    /// Standard input of the process; dropped when the client closes its own or goes. `None` discards the client's.
    pub stdin: Option<mpsc::Sender<Bytes>>,
    /// Sizes of the process's terminal. `None` when it has none.
    pub resize: Option<mpsc::Sender<TerminalSize>>,
}

/// A session whose output is `log` (all of it as standard output), which exits with 0 when the log ends. Needs a Tokio runtime.
#[must_use]
pub fn attach_to_log(
    mut log: BoxStream<'static, Result<Bytes, PodError>>,
    input: AttachedInput,
) -> ExecSession {
    let (stdin, client_input) = mpsc::channel(1);
    let (resize, client_sizes) = mpsc::channel(1);
    let (output_sender, output) = mpsc::channel(OUTPUT_QUEUE);
    let (exit_sender, exit) = oneshot::channel();
    tokio::spawn(async move {
        let copy = async {
            while let Some(chunk) = log.next().await {
                let (output, last) = match chunk {
                    Ok(bytes) => (Output::Stdout(bytes), false),
                    Err(error) => (Output::Stderr(Bytes::from(format!("{error}\n"))), true),
                };
                if output_sender.send(output).await.is_err() || last {
                    return i32::from(last);
                }
            }
            0
        };
        let inward = async {
            tokio::join!(pass(client_input, input.stdin), pass(client_sizes, input.resize));
            std::future::pending::<i32>().await
        };
        let code = tokio::select! {
            code = copy => code,
            code = inward => code,
            () = output_sender.closed() => 0,
        };
        drop(output_sender);
        // The client may have gone already.
        let _ = exit_sender.send(code);
    });
    ExecSession { stdin, output, resize, exit }
}

/// Hands on what comes until the client closes its end; what nobody takes is discarded.
async fn pass<T>(mut from: mpsc::Receiver<T>, to: Option<mpsc::Sender<T>>) {
    while let Some(item) = from.recv().await {
        if let Some(to) = &to {
            // The process may have closed its end, which is its right.
            let _ = to.send(item).await;
        }
    }
}
