//! exec and attach over SPDY streams, the client opening one for each of its channels.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use tracing::debug;

use crate::spdy::{Session, Stream, StreamReader, StreamReset, StreamWriter};
use crate::status::exit_status;
use crate::{ExecQuery, ExecSession, Output, TerminalSize};

/// How long a client may take to open its streams (the kubelet's default).
const STREAM_CREATION_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest run of unparsed bytes on the resize stream.
const MAX_RESIZE: usize = 4096;

/// The streams of one command; which exist follows from the query.
#[derive(Default)]
struct Streams {
    status: Option<Stream>,
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    resize: Option<Stream>,
}

impl Streams {
    fn complete(&self, query: &ExecQuery) -> bool {
        self.status.is_some()
            && self.stdin.is_some() == query.request.stdin
            && self.stdout.is_some() == query.stdout
            && self.stderr.is_some() == query.stderr
            && self.resize.is_some() == query.request.tty
    }

    /// Files a new stream by its type; gives it back if it is unknown or there is one already.
    fn add(&mut self, stream: Stream) -> Option<Stream> {
        let place = match stream.header("streamtype") {
            Some("error") => &mut self.status,
            Some("stdin") => &mut self.stdin,
            Some("stdout") => &mut self.stdout,
            Some("stderr") => &mut self.stderr,
            Some("resize") => &mut self.resize,
            _ => return Some(stream),
        };
        if place.is_some() {
            return Some(stream);
        }
        *place = Some(stream);
        None
    }
}

/// Runs a session until the command has ended or the client is gone (which kills the command).
pub(crate) async fn run<S>(io: S, query: ExecQuery, session: ExecSession)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let mut connection = Session::start(io);
    let ExecSession { stdin, output, resize, exit } = session;
    let collected = tokio::time::timeout(STREAM_CREATION_TIMEOUT, collect(&mut connection, &query)).await;
    let Ok(Some(streams)) = collected else {
        debug!("the exec client did not open the streams its query announces");
        return connection.close().await;
    };
    let (status, stdout, stderr) = (
        streams.status.map(Stream::into_writer),
        streams.stdout.map(Stream::into_writer),
        streams.stderr.map(Stream::into_writer),
    );
    tokio::select! {
        ended = send_output(status, stdout, stderr, output, exit) => if ended.is_err() {
            debug!("the exec client reset a stream");
        },
        () = receive_input(streams.stdin, stdin, streams.resize, resize) => {},
        // Nothing more is expected to be opened: this resolves when the connection is gone.
        () = refuse_further_streams(&mut connection) => {},
    }
    connection.close().await;
}

async fn collect(connection: &mut Session, query: &ExecQuery) -> Option<Streams> {
    let mut streams = Streams::default();
    while !streams.complete(query) {
        if let Some(unwanted) = streams.add(connection.accept().await?) {
            unwanted.refuse().await;
        }
    }
    Some(streams)
}

async fn refuse_further_streams(connection: &mut Session) {
    while let Some(stream) = connection.accept().await {
        stream.refuse().await;
    }
}

async fn send_output(
    status: Option<StreamWriter>,
    mut stdout: Option<StreamWriter>,
    mut stderr: Option<StreamWriter>,
    mut output: mpsc::Receiver<Output>,
    exit: oneshot::Receiver<i32>,
) -> Result<(), StreamReset> {
    while let Some(chunk) = output.recv().await {
        let (stream, data) = match chunk {
            Output::Stdout(data) => (&mut stdout, data),
            Output::Stderr(data) => (&mut stderr, data),
        };
        if let Some(stream) = stream {
            stream.send(data).await?;
        }
    }
    for stream in [stdout, stderr].into_iter().flatten() {
        stream.finish().await?;
    }
    let outcome = exit_status(exit.await.ok()).to_string();
    if let Some(mut status) = status {
        status.send(Bytes::from(outcome)).await?;
        status.finish().await?;
    }
    Ok(())
}

/// Feeds the command; never ends, since closed input doesn't end a command.
async fn receive_input(
    input: Option<Stream>,
    stdin: mpsc::Sender<Bytes>,
    sizes: Option<Stream>,
    resize: mpsc::Sender<TerminalSize>,
) {
    let feed = async {
        if let Some(mut input) = input.map(Stream::into_reader) {
            while let Some(data) = input.recv().await {
                if stdin.send(data).await.is_err() {
                    break;
                }
            }
        }
        drop(stdin);
    };
    let resizes = async {
        if let Some(sizes) = sizes.map(Stream::into_reader) {
            receive_sizes(sizes, resize).await;
        }
    };
    tokio::join!(feed, resizes);
    std::future::pending().await
}

/// Sizes arrive as JSON objects one after the other, cut anywhere.
async fn receive_sizes(mut sizes: StreamReader, resize: mpsc::Sender<TerminalSize>) {
    let mut pending = BytesMut::new();
    while let Some(data) = sizes.recv().await {
        pending.extend_from_slice(&data);
        let mut objects = serde_json::Deserializer::from_slice(&pending).into_iter::<TerminalSize>();
        while let Some(Ok(size)) = objects.next() {
            // A command that takes no sizes must not hold up its input.
            let _ = resize.try_send(size);
        }
        let parsed = objects.byte_offset();
        let _ = pending.split_to(parsed);
        if pending.len() > MAX_RESIZE {
            debug!("the resize stream carries something else than terminal sizes");
            return;
        }
    }
}
