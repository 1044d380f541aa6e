//! exec and attach over WebSocket channels.

use futures::{Sink, SinkExt, Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Error, Message};
use tracing::debug;

use crate::channels::{self, CLOSE, Framing, RESIZE, STATUS, STDERR, STDIN, STDOUT};
use crate::status::exit_status;
use crate::{ExecQuery, ExecSession, Output, TerminalSize};

/// Runs a session until the command has ended or the client is gone (which kills the command).
pub(crate) async fn run<S>(
    socket: WebSocketStream<S>,
    framing: Framing,
    query: ExecQuery,
    session: ExecSession,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    let ExecSession { stdin, output, resize, exit } = session;
    let (mut to_client, from_client) = socket.split();
    // Input and output go on independently: a command that reads nothing until its output is read must not stall.
    let ended = tokio::select! {
        ended = send_output(&mut to_client, framing, &query, output, exit) => ended,
        () = receive_input(from_client, framing, query.request.stdin.then_some(stdin), resize) => return,
    };
    if let Err(error) = ended {
        debug!(%error, "exec client went away");
    }
}

async fn send_output<W>(
    to_client: &mut W,
    framing: Framing,
    query: &ExecQuery,
    mut output: mpsc::Receiver<Output>,
    exit: oneshot::Receiver<i32>,
) -> Result<(), Error>
where
    W: Sink<Message, Error = Error> + Unpin,
{
    // An empty message on the lowest channel tells the client that the session has begun, as the kubelet does.
    let first = if query.stdout {
        STDOUT
    } else if query.stderr {
        STDERR
    } else {
        STATUS
    };
    to_client.send(framing.encode(first, b"")).await?;
    while let Some(chunk) = output.recv().await {
        match chunk {
            Output::Stdout(data) if query.stdout => to_client.send(framing.encode(STDOUT, &data)).await?,
            Output::Stderr(data) if query.stderr => to_client.send(framing.encode(STDERR, &data)).await?,
            Output::Stdout(_) | Output::Stderr(_) => {}
        }
    }
    let status = exit_status(exit.await.ok()).to_string();
    to_client.send(framing.encode(STATUS, status.as_bytes())).await?;
    channels::close(to_client).await
}

/// Feeds the command until the client closes or breaks the connection.
async fn receive_input<R>(
    mut from_client: R,
    framing: Framing,
    mut stdin: Option<mpsc::Sender<bytes::Bytes>>,
    resize: mpsc::Sender<TerminalSize>,
) where
    R: Stream<Item = Result<Message, Error>> + Unpin,
{
    while let Some(Ok(message)) = from_client.next().await {
        if message.is_close() {
            return;
        }
        match framing.decode(message) {
            Some((STDIN, data)) => {
                // A command that has closed its input ignores the rest of it.
                if let Some(sender) = &stdin
                    && !data.is_empty()
                    && sender.send(data).await.is_err()
                {
                    stdin = None;
                }
            }
            Some((CLOSE, channel)) if framing == Framing::V5 && channel[..] == [STDIN] => stdin = None,
            Some((RESIZE, data)) => match serde_json::from_slice::<TerminalSize>(&data) {
                Ok(size) => {
                    // A command that takes no sizes must not hold up its input.
                    let _ = resize.try_send(size);
                }
                Err(error) => debug!(%error, "ignored a terminal size that is not one"),
            },
            _ => {}
        }
    }
}
