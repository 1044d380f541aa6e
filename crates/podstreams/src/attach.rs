//! Attaching to a container that can only be listened to.

use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use tokio::sync::{mpsc, oneshot};

use crate::{ExecSession, Output, PodError};

/// Chunks of output a session holds before the log is read no further.
const OUTPUT_QUEUE: usize = 16;

/// A session whose output is `log`, which ignores input and exits with 0 when the log ends.
pub(crate) fn follow_log(mut log: BoxStream<'static, Result<Bytes, PodError>>) -> ExecSession {
    let (stdin, mut ignored_input) = mpsc::channel(1);
    let (resize, _) = mpsc::channel(1);
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
        let discard = async {
            while ignored_input.recv().await.is_some() {}
            std::future::pending::<i32>().await
        };
        let code = tokio::select! {
            code = copy => code,
            code = discard => code,
            () = output_sender.closed() => 0,
        };
        drop(output_sender);
        // The client may have gone already.
        let _ = exit_sender.send(code);
    });
    ExecSession { stdin, output, resize, exit }
}
