//! port-forward over SPDY: for every connection the client opens a data stream and an error stream with one request id.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinSet;
use tracing::debug;

use crate::spdy::{Session, Stream};
use crate::{Duplex, PodBackend};

/// Streams that may wait for the other of their pair.
const MAX_UNPAIRED: usize = 128;
/// Bytes read from the pod at once.
const CHUNK: usize = 32 * 1024;

/// Which pod is forwarded to.
#[derive(Debug, Clone)]
pub(crate) struct PodName {
    pub(crate) namespace: String,
    pub(crate) pod: String,
}

impl PodName {
    /// The sentence kubectl shows after "an error occurred forwarding".
    pub(crate) fn failure(&self, port: u16, error: &str) -> String {
        format!("error forwarding port {port} to pod {}/{}: {error}", self.namespace, self.pod)
    }
}

/// Forwards connections until the client closes.
pub(crate) async fn run<S>(io: S, backend: Arc<dyn PodBackend>, pod: PodName)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let mut session = Session::start(io);
    let mut unpaired = Unpaired::default();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            stream = session.accept() => match stream.map(|stream| unpaired.add(stream)) {
                Some(Paired::Complete(pair)) => {
                    connections.spawn(forward(Arc::clone(&backend), pod.clone(), pair));
                }
                Some(Paired::Waiting) => {}
                Some(Paired::Refused(stream)) => stream.refuse().await,
                None => break,
            },
            Some(_) = connections.join_next() => {}
        }
    }
    connections.shutdown().await;
    session.close().await;
}

struct Pair {
    port: u16,
    data: Stream,
    error: Stream,
}

enum Paired {
    Complete(Pair),
    Waiting,
    /// Not a stream of port-forward, or too many wait already.
    Refused(Stream),
}

/// Streams whose other half hasn't been opened yet, by request id.
#[derive(Default)]
struct Unpaired(HashMap<String, (u16, Half, Stream)>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Half {
    Data,
    Error,
}

impl Unpaired {
    fn add(&mut self, stream: Stream) -> Paired {
        let half = match stream.header("streamtype") {
            Some("data") => Half::Data,
            Some("error") => Half::Error,
            _ => return Paired::Refused(stream),
        };
        let port = stream.header("port").and_then(|port| port.parse().ok()).filter(|port| *port != 0);
        let (Some(port), Some(id)) = (port, stream.header("requestid").map(str::to_owned)) else {
            return Paired::Refused(stream);
        };
        match self.0.remove(&id) {
            Some((first_port, first_half, first)) if first_port == port && first_half != half => {
                let (data, error) = if half == Half::Data { (stream, first) } else { (first, stream) };
                Paired::Complete(Pair { port, data, error })
            }
            Some(first) => {
                self.0.insert(id, first);
                Paired::Refused(stream)
            }
            None if self.0.len() < MAX_UNPAIRED => {
                self.0.insert(id, (port, half, stream));
                Paired::Waiting
            }
            None => Paired::Refused(stream),
        }
    }
}

async fn forward(backend: Arc<dyn PodBackend>, pod: PodName, pair: Pair) {
    let Pair { port, data, error } = pair;
    let mut report = error.into_writer();
    let outcome = match backend.dial(&pod.namespace, &pod.pod, port).await {
        Ok(connection) => copy(connection, data).await,
        Err(error) => {
            data.refuse().await;
            Err(error.to_string())
        }
    };
    let reported = async {
        if let Err(error) = outcome {
            report.send(Bytes::from(pod.failure(port, &error))).await?;
        }
        report.finish().await
    };
    if reported.await.is_err() {
        debug!(port, "the client closed a forwarded connection before it ended");
    }
}

/// Copies both ways until the pod has sent everything or the client resets its stream.
async fn copy(connection: Box<dyn Duplex>, data: Stream) -> Result<(), String> {
    let (mut from_client, mut to_client) = data.split();
    let (mut from_pod, mut to_pod) = tokio::io::split(connection);
    let upload = async {
        while let Some(chunk) = from_client.recv().await {
            if to_pod.write_all(&chunk).await.is_err() {
                // What the pod has sent before it closed still reaches the client.
                break;
            }
        }
        let _ = to_pod.shutdown().await;
        std::future::pending::<Result<(), String>>().await
    };
    let reset = to_client.reset_token();
    let download = async {
        let mut buffer = BytesMut::with_capacity(CHUNK);
        loop {
            match from_pod.read_buf(&mut buffer).await {
                Ok(0) => break,
                // The client has closed its connection; nobody is left to tell.
                Ok(_) if to_client.send(buffer.split().freeze()).await.is_err() => return Ok(()),
                Ok(_) => buffer.reserve(CHUNK),
                Err(error) => return Err(format!("the connection to the pod broke: {error}")),
            }
        }
        let _ = to_client.finish().await;
        Ok(())
    };
    tokio::select! {
        ended = download => ended,
        ended = upload => ended,
        () = reset.cancelled() => Ok(()),
    }
}
