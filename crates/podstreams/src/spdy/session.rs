//! A connection's streams: one task reads frames, one writes them, streams are handed out as the client opens them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::frame::{
    FrameReader, INVALID_STREAM, MAX_DATA, PROTOCOL_ERROR, REFUSED_STREAM, Received, Sent, SpdyError,
};
use super::headers::{HeaderEncoder, Headers};

/// Streams in use at once; `kubectl port-forward` needs two per connection.
const MAX_STREAMS: usize = 1000;
/// Frames waiting to be written, over all streams.
const OUTGOING: usize = 32;
/// Pieces of data (at most 32 KiB each) waiting to be taken from one stream.
const INCOMING: usize = 8;
/// How long a client may take to close after we have said goodbye.
const LINGER: Duration = Duration::from_secs(1);

/// The server's side of a connection.
pub(crate) struct Session {
    streams: mpsc::Receiver<Stream>,
    frames: mpsc::Sender<Sent>,
    /// The highest stream the client has opened.
    last: Arc<AtomicU32>,
    reader: JoinHandle<()>,
    writer: JoinHandle<()>,
}

impl Session {
    /// Speaks SPDY on `io`.
    pub(crate) fn start<I>(io: I) -> Self
    where
        I: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (from_client, to_client) = tokio::io::split(io);
        let (frames, outgoing) = mpsc::channel(OUTGOING);
        let (opened, streams) = mpsc::channel(INCOMING);
        let last = Arc::new(AtomicU32::new(0));
        let connection = Connection {
            frames: frames.clone(),
            opened,
            streams: HashMap::new(),
            last: Arc::clone(&last),
            ended: CancellationToken::new(),
        };
        let reader = tokio::spawn(read(from_client, connection));
        let writer = tokio::spawn(async move {
            if let Err(error) = write(to_client, outgoing).await {
                debug!(%error, "SPDY client went away");
            }
        });
        Self { streams, frames, last, reader, writer }
    }

    /// The next stream the client opens; `None` once the connection has ended.
    pub(crate) async fn accept(&mut self) -> Option<Stream> {
        self.streams.recv().await
    }

    /// Sends what is queued, says goodbye and waits a second at most for the client to close.
    pub(crate) async fn close(self) {
        let Self { streams, frames, last, mut reader, writer } = self;
        drop(streams);
        // Fails when the writer has ended, with the connection.
        let _ = frames.send(Sent::GoAway { last: last.load(Ordering::Relaxed) }).await;
        let _ = writer.await;
        // Closing with unread data pending would reset the connection and lose what is still on its way.
        if tokio::time::timeout(LINGER, &mut reader).await.is_err() {
            reader.abort();
        }
    }
}

async fn write<I: AsyncWrite>(
    mut io: WriteHalf<I>,
    mut outgoing: mpsc::Receiver<Sent>,
) -> std::io::Result<()> {
    let mut headers = HeaderEncoder::new();
    let mut buffer = BytesMut::new();
    while let Some(frame) = outgoing.recv().await {
        frame.encode(&mut headers, &mut buffer);
        // What is queued already goes out in one write.
        let mut last = matches!(frame, Sent::GoAway { .. });
        while !last && buffer.len() < MAX_DATA {
            let Ok(frame) = outgoing.try_recv() else { break };
            frame.encode(&mut headers, &mut buffer);
            last = matches!(frame, Sent::GoAway { .. });
        }
        io.write_all_buf(&mut buffer).await?;
        io.flush().await?;
        if last {
            break;
        }
    }
    io.shutdown().await
}

/// What the reading task knows.
struct Connection {
    frames: mpsc::Sender<Sent>,
    opened: mpsc::Sender<Stream>,
    streams: HashMap<u32, Entry>,
    /// The highest stream the client has opened; written here only.
    last: Arc<AtomicU32>,
    /// Parent of every stream's token.
    ended: CancellationToken,
}

struct Entry {
    /// Where the client's data goes; gone once it has finished or nobody reads.
    data: Option<mpsc::Sender<Bytes>>,
    reset: CancellationToken,
    /// Dead when both halves of the stream have been dropped.
    used: Weak<()>,
}

async fn read<I: AsyncRead>(io: ReadHalf<I>, mut connection: Connection) {
    let mut frames = FrameReader::new(io);
    let outcome = loop {
        match frames.next().await {
            Ok(Some(frame)) => {
                if !connection.receive(frame).await {
                    break Ok(());
                }
            }
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    match outcome {
        Ok(()) => {}
        // Clients that are killed don't say goodbye.
        Err(SpdyError::Io(error)) => debug!(%error, "SPDY connection broke"),
        Err(error) => debug!(%error, "closing a SPDY connection"),
    }
    connection.ended.cancel();
}

impl Connection {
    /// Acts on a frame; false when the connection can't go on because the writer has ended.
    async fn receive(&mut self, frame: Received) -> bool {
        match frame {
            Received::SynStream { id, fin, headers } => self.open(id, fin, headers).await,
            Received::Data { id, fin, data } => self.data(id, fin, data).await,
            Received::Headers { id, fin } => {
                if fin && let Some(entry) = self.streams.get_mut(&id) {
                    entry.data = None;
                }
                true
            }
            Received::Reset { id } => {
                if let Some(entry) = self.streams.remove(&id) {
                    entry.reset.cancel();
                }
                true
            }
            // Even ids answer pings of ours, and we send none.
            Received::Ping { id } if id % 2 == 1 => self.send(Sent::Ping { id }).await,
            Received::Ping { .. } | Received::GoAway | Received::Ignored => true,
        }
    }

    async fn open(&mut self, id: u32, fin: bool, headers: Headers) -> bool {
        if id.is_multiple_of(2) || id <= self.last.load(Ordering::Relaxed) {
            return self.send(Sent::Reset { id, status: PROTOCOL_ERROR }).await;
        }
        self.last.store(id, Ordering::Relaxed);
        self.streams.retain(|_, entry| entry.used.strong_count() > 0);
        if self.streams.len() >= MAX_STREAMS {
            return self.send(Sent::Reset { id, status: REFUSED_STREAM }).await;
        }
        let (sender, data) = mpsc::channel(INCOMING);
        let reset = self.ended.child_token();
        let used = Arc::new(());
        let entry =
            Entry { data: (!fin).then_some(sender), reset: reset.clone(), used: Arc::downgrade(&used) };
        self.streams.insert(id, entry);
        let stream = Stream {
            headers,
            reader: StreamReader { data, reset: reset.clone(), _used: Arc::clone(&used) },
            writer: StreamWriter { id, frames: self.frames.clone(), reset, _used: used },
        };
        if !self.send(Sent::SynReply { id }).await {
            return false;
        }
        // A session that takes no more streams is closing.
        if self.opened.send(stream).await.is_err() {
            return self.send(Sent::Reset { id, status: REFUSED_STREAM }).await;
        }
        true
    }

    async fn data(&mut self, id: u32, fin: bool, data: Bytes) -> bool {
        let Some(entry) = self.streams.get_mut(&id) else {
            // Data may have been on its way when a stream was reset; a stream never opened is an error.
            return id <= self.last.load(Ordering::Relaxed)
                || self.send(Sent::Reset { id, status: INVALID_STREAM }).await;
        };
        if let Some(sender) = &entry.data
            && !data.is_empty()
            && sender.send(data).await.is_err()
        {
            entry.data = None;
        }
        if fin {
            entry.data = None;
        }
        true
    }

    async fn send(&self, frame: Sent) -> bool {
        self.frames.send(frame).await.is_ok()
    }
}

/// A stream the client has opened.
pub(crate) struct Stream {
    headers: Headers,
    reader: StreamReader,
    writer: StreamWriter,
}

impl Stream {
    /// A header it was opened with; `name` in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Both directions apart.
    pub(crate) fn split(self) -> (StreamReader, StreamWriter) {
        (self.reader, self.writer)
    }

    /// Only what the client sends.
    pub(crate) fn into_reader(self) -> StreamReader {
        self.reader
    }

    /// Only what we send.
    pub(crate) fn into_writer(self) -> StreamWriter {
        self.writer
    }

    /// Resets the stream.
    pub(crate) async fn refuse(self) {
        let writer = self.writer;
        // Fails when the connection has ended, which resets the stream as well.
        let _ = writer.frames.send(Sent::Reset { id: writer.id, status: REFUSED_STREAM }).await;
    }
}

/// What the client sends on a stream.
pub(crate) struct StreamReader {
    data: mpsc::Receiver<Bytes>,
    reset: CancellationToken,
    _used: Arc<()>,
}

impl StreamReader {
    /// The next data; `None` when the client has finished or reset the stream, or the connection has ended.
    pub(crate) async fn recv(&mut self) -> Option<Bytes> {
        tokio::select! {
            // What came before a reset is still delivered.
            biased;
            data = self.data.recv() => data,
            () = self.reset.cancelled() => None,
        }
    }
}

/// The client takes nothing more on this stream.
#[derive(Debug, thiserror::Error)]
#[error("the client reset the stream")]
pub(crate) struct StreamReset;

/// What we send on a stream.
pub(crate) struct StreamWriter {
    id: u32,
    frames: mpsc::Sender<Sent>,
    reset: CancellationToken,
    _used: Arc<()>,
}

impl StreamWriter {
    /// Cancelled when the client resets the stream or the connection ends.
    pub(crate) fn reset_token(&self) -> CancellationToken {
        self.reset.clone()
    }

    /// Queues `data`, waiting while the queue is full.
    ///
    /// # Errors
    /// When the client has reset the stream or gone away.
    pub(crate) async fn send(&mut self, mut data: Bytes) -> Result<(), StreamReset> {
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(MAX_DATA));
            self.frame(Sent::Data { id: self.id, fin: false, data: piece }).await?;
        }
        Ok(())
    }

    /// Ends our side of the stream.
    ///
    /// # Errors
    /// When the client has reset the stream or gone away.
    pub(crate) async fn finish(self) -> Result<(), StreamReset> {
        self.frame(Sent::Data { id: self.id, fin: true, data: Bytes::new() }).await
    }

    async fn frame(&self, frame: Sent) -> Result<(), StreamReset> {
        tokio::select! {
            biased;
            () = self.reset.cancelled() => Err(StreamReset),
            sent = self.frames.send(frame) => sent.map_err(|_| StreamReset),
        }
    }
}
