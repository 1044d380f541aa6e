//! port-forward over WebSocket channels: for the n-th port, channel 2n carries data and 2n+1 an error.

use std::sync::Arc;

use bytes::Bytes;
use futures::{Sink, SinkExt, Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{Error, Message};
use tracing::debug;

use crate::PodBackend;
use crate::channels::{self, Framing};
use crate::forward_spdy::PodName;

/// Messages waiting to be sent, over all ports; and chunks waiting to be written to the pod, per port.
const QUEUE: usize = 16;
/// Bytes read from the pod at once.
const CHUNK: usize = 16 * 1024;
/// Ports per connection: two channels each, whose numbers are one byte.
const MAX_PORTS: usize = 127;

/// Forwards until the client closes, or every port's connection has ended.
pub(crate) async fn run<S>(
    socket: WebSocketStream<S>,
    framing: Framing,
    ports: Vec<u16>,
    backend: Arc<dyn PodBackend>,
    pod: PodName,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    let (mut to_client, from_client) = socket.split();
    let (messages, outgoing) = mpsc::channel(QUEUE);
    let mut connections = JoinSet::new();
    let mut inputs = Vec::new();
    // Base64 framing writes a channel as one digit.
    let limit = if framing == Framing::Base64 { 5 } else { MAX_PORTS };
    for (channel, port) in (0u8..).step_by(2).zip(ports.into_iter().take(limit)) {
        let (input, chunks) = mpsc::channel(QUEUE);
        inputs.push(input);
        let output = PortChannel { framing, channel, messages: messages.clone() };
        connections.spawn(forward(Arc::clone(&backend), pod.clone(), port, chunks, output));
    }
    drop(messages);
    let ended = tokio::select! {
        ended = send_all(&mut to_client, outgoing) => ended,
        () = receive(from_client, framing, inputs) => Ok(()),
    };
    if let Err(error) = ended {
        debug!(%error, "port-forward client went away");
    }
}

/// Sends what the ports produce; when all of them have ended, closes.
async fn send_all<W>(to_client: &mut W, mut outgoing: mpsc::Receiver<Message>) -> Result<(), Error>
where
    W: Sink<Message, Error = Error> + Unpin,
{
    while let Some(message) = outgoing.recv().await {
        to_client.send(message).await?;
    }
    channels::close(to_client).await
}

async fn receive<R>(mut from_client: R, framing: Framing, mut inputs: Vec<mpsc::Sender<Bytes>>)
where
    R: Stream<Item = Result<Message, Error>> + Unpin,
{
    while let Some(Ok(message)) = from_client.next().await {
        if message.is_close() {
            return;
        }
        if let Some((channel, data)) = framing.decode(message)
            && channel % 2 == 0
            && let Some(input) = inputs.get_mut(usize::from(channel / 2))
        {
            // A port whose connection has ended takes nothing more; the others go on.
            let _ = input.send(data).await;
        }
    }
}

/// One port's pair of channels towards the client.
struct PortChannel {
    framing: Framing,
    channel: u8,
    messages: mpsc::Sender<Message>,
}

impl PortChannel {
    async fn data(&self, data: &[u8]) -> Result<(), String> {
        self.send(self.channel, data).await
    }

    async fn error(&self, text: &str) -> Result<(), String> {
        self.send(self.channel + 1, text.as_bytes()).await
    }

    async fn send(&self, channel: u8, data: &[u8]) -> Result<(), String> {
        let message = self.framing.encode(channel, data);
        self.messages.send(message).await.map_err(|_| "the client went away".to_owned())
    }
}

async fn forward(
    backend: Arc<dyn PodBackend>,
    pod: PodName,
    port: u16,
    input: mpsc::Receiver<Bytes>,
    output: PortChannel,
) {
    if let Err(error) = try_forward(&*backend, &pod, port, input, &output).await {
        debug!(port, %error, "port-forward ended");
        // The client may be what failed.
        let _ = output.error(&pod.failure(port, &error)).await;
    }
}

async fn try_forward(
    backend: &dyn PodBackend,
    pod: &PodName,
    port: u16,
    mut input: mpsc::Receiver<Bytes>,
    output: &PortChannel,
) -> Result<(), String> {
    // Both channels begin with the port they belong to, little endian.
    output.data(&port.to_le_bytes()).await?;
    output.send(output.channel + 1, &port.to_le_bytes()).await?;
    let connection = backend.dial(&pod.namespace, &pod.pod, port).await.map_err(|error| error.to_string())?;
    let (mut from_pod, mut to_pod) = tokio::io::split(connection);
    let upload = async {
        while let Some(data) = input.recv().await {
            to_pod.write_all(&data).await.map_err(|error| error.to_string())?;
        }
        // The client is gone: its end of the queue lives as long as the WebSocket.
        Ok::<(), String>(())
    };
    let download = async {
        let mut buffer = vec![0; CHUNK];
        loop {
            match from_pod.read(&mut buffer).await.map_err(|error| error.to_string())? {
                0 => return Ok::<(), String>(()),
                read => output.data(&buffer[..read]).await?,
            }
        }
    };
    tokio::select! {
        ended = download => ended,
        ended = upload => ended,
    }
}
