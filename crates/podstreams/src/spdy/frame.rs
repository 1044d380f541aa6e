//! SPDY/3.1 frames on the wire (draft-mbelshe-httpbis-spdy-00, section 2.2, with version 3).

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::headers::{HeaderDecoder, HeaderEncoder, Headers};

/// Largest control frame taken; Kubernetes clients send some hundred bytes.
const MAX_CONTROL: usize = 16 * 1024;
/// Largest piece of a DATA frame handed out, and largest DATA frame sent.
pub(crate) const MAX_DATA: usize = 32 * 1024;
const VERSION: u16 = 3;
const FLAG_FIN: u8 = 1;

/// RST_STREAM: the peer broke the protocol.
pub(crate) const PROTOCOL_ERROR: u32 = 1;
/// RST_STREAM: a frame for a stream that was never opened.
pub(crate) const INVALID_STREAM: u32 = 2;
/// RST_STREAM: the stream was not taken.
pub(crate) const REFUSED_STREAM: u32 = 3;

/// Why a connection could not be read on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpdyError {
    /// The connection broke.
    #[error("SPDY connection: {0}")]
    Io(#[from] std::io::Error),
    /// A header block made no sense.
    #[error("SPDY header block: {0}")]
    Headers(&'static str),
    /// A frame made no sense.
    #[error("SPDY frame: {0}")]
    Frame(&'static str),
}

/// A frame from the client.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// A new stream; `fin` when the client will send nothing on it.
    SynStream { id: u32, fin: bool, headers: Headers },
    /// A piece of a stream's data; `fin` on the last one.
    Data { id: u32, fin: bool, data: Bytes },
    /// Further headers, whose only use here is that they may end the stream.
    Headers { id: u32, fin: bool },
    /// The client is done with the stream altogether.
    Reset { id: u32 },
    /// To be sent back.
    Ping { id: u32 },
    /// The client opens no more streams.
    GoAway,
    /// SETTINGS, WINDOW_UPDATE and types of extensions: nothing to do (see the module about flow control).
    Ignored,
}

/// Reads frames; DATA frames come in pieces so that memory stays bounded whatever length they announce.
pub(crate) struct FrameReader<R> {
    io: R,
    headers: HeaderDecoder,
    /// Stream, final flag and bytes left of the DATA frame being read.
    unfinished: Option<(u32, bool, usize)>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(crate) fn new(io: R) -> Self {
        Self { io, headers: HeaderDecoder::new(), unfinished: None }
    }

    /// The next frame; `None` at the end of the connection.
    ///
    /// # Errors
    /// When the connection breaks or the client doesn't speak SPDY/3.1; there is no way to go on then.
    pub(crate) async fn next(&mut self) -> Result<Option<Received>, SpdyError> {
        if let Some((id, fin, left)) = self.unfinished.take() {
            return self.data(id, fin, left).await.map(Some);
        }
        let mut head = [0; 8];
        if self.io.read(&mut head[..1]).await? == 0 {
            return Ok(None);
        }
        self.io.read_exact(&mut head[1..]).await?;
        let [a, b, c, d, flags, length @ ..] = head;
        let length = u32::from_be_bytes([0, length[0], length[1], length[2]]) as usize;
        if a & 0x80 == 0 {
            let id = u32::from_be_bytes([a, b, c, d]);
            return self.data(id, flags & FLAG_FIN != 0, length).await.map(Some);
        }
        if u16::from_be_bytes([a & 0x7f, b]) != VERSION {
            return Err(SpdyError::Frame("the version is not 3"));
        }
        if length > MAX_CONTROL {
            return Err(SpdyError::Frame("a control frame is larger than 16 KiB"));
        }
        let mut payload = vec![0; length];
        self.io.read_exact(&mut payload).await?;
        self.control(u16::from_be_bytes([c, d]), flags, &payload).map(Some)
    }

    async fn data(&mut self, id: u32, fin: bool, left: usize) -> Result<Received, SpdyError> {
        let mut data = BytesMut::zeroed(left.min(MAX_DATA));
        self.io.read_exact(&mut data).await?;
        let left = left - data.len();
        if left > 0 {
            self.unfinished = Some((id, fin, left));
        }
        Ok(Received::Data { id, fin: fin && left == 0, data: data.freeze() })
    }

    fn control(&mut self, kind: u16, flags: u8, mut payload: &[u8]) -> Result<Received, SpdyError> {
        let fin = flags & FLAG_FIN != 0;
        let mut number =
            || payload.try_get_u32().map_err(|_| SpdyError::Frame("a control frame is cut short"));
        Ok(match kind {
            1 => {
                let id = number()? & 0x7fff_ffff;
                number()?; // the associated stream: Kubernetes has none
                let block = payload.get(2..).ok_or(SpdyError::Frame("a SYN_STREAM is cut short"))?; // after priority and slot
                Received::SynStream { id, fin, headers: self.headers.decode(block)? }
            }
            2 | 8 => {
                let id = number()? & 0x7fff_ffff;
                self.headers.decode(payload)?;
                Received::Headers { id, fin }
            }
            3 => Received::Reset { id: number()? & 0x7fff_ffff },
            6 => Received::Ping { id: number()? },
            7 => Received::GoAway,
            _ => Received::Ignored,
        })
    }
}

/// A frame to the client.
#[derive(Debug)]
pub(crate) enum Sent {
    /// The stream is taken.
    SynReply { id: u32 },
    /// Data of at most [`MAX_DATA`] bytes; `fin` ends our side of the stream.
    Data { id: u32, fin: bool, data: Bytes },
    /// The stream is ended abnormally.
    Reset { id: u32, status: u32 },
    /// An answer to a ping.
    Ping { id: u32 },
    /// No further stream than `last` was taken.
    GoAway { last: u32 },
}

impl Sent {
    /// Appends the frame's bytes.
    pub(crate) fn encode(&self, headers: &mut HeaderEncoder, out: &mut BytesMut) {
        match self {
            Self::Data { id, fin, data } => {
                out.put_u32(*id);
                out.put_u32(u32::from(*fin) << 24 | data.len() as u32);
                out.put_slice(data);
            }
            Self::SynReply { id } => {
                let mut payload = BytesMut::new();
                payload.put_u32(*id);
                headers.encode_empty(&mut payload);
                put_control(out, 2, &payload);
            }
            Self::Reset { id, status } => {
                put_control(out, 3, &[id.to_be_bytes(), status.to_be_bytes()].concat())
            }
            Self::Ping { id } => put_control(out, 6, &id.to_be_bytes()),
            Self::GoAway { last } => put_control(out, 7, &[last.to_be_bytes(), [0; 4]].concat()),
        }
    }
}

fn put_control(out: &mut BytesMut, kind: u16, payload: &[u8]) {
    out.put_u16(0x8000 | VERSION);
    out.put_u16(kind);
    out.put_u32(payload.len() as u32);
    out.put_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read_all(bytes: &[u8]) -> Result<Vec<Received>, SpdyError> {
        let mut reader = FrameReader::new(bytes);
        let mut frames = Vec::new();
        while let Some(frame) = reader.next().await? {
            frames.push(frame);
        }
        Ok(frames)
    }

    fn encoded(frames: &[Sent]) -> BytesMut {
        let mut out = BytesMut::new();
        let mut headers = HeaderEncoder::new();
        frames.iter().for_each(|frame| frame.encode(&mut headers, &mut out));
        out
    }

    #[tokio::test]
    async fn frames_round_trip() {
        let bytes = encoded(&[
            Sent::SynReply { id: 1 },
            Sent::Data { id: 3, fin: true, data: Bytes::from_static(b"hello") },
            Sent::Reset { id: 5, status: REFUSED_STREAM },
            Sent::Ping { id: 7 },
            Sent::SynReply { id: 9 },
            Sent::GoAway { last: 9 },
        ]);
        let expected = [
            Received::Headers { id: 1, fin: false },
            Received::Data { id: 3, fin: true, data: Bytes::from_static(b"hello") },
            Received::Reset { id: 5 },
            Received::Ping { id: 7 },
            Received::Headers { id: 9, fin: false },
            Received::GoAway,
        ];
        assert_eq!(read_all(&bytes).await.unwrap(), expected);
    }

    #[tokio::test]
    async fn large_data_comes_in_pieces_and_ends_once() {
        let mut bytes = BytesMut::new();
        bytes.put_u32(1);
        bytes.put_u32(1 << 24 | 100_000);
        bytes.put_bytes(7, 100_000);
        let pieces: Vec<_> = read_all(&bytes)
            .await
            .unwrap()
            .into_iter()
            .map(|frame| match frame {
                Received::Data { id: 1, fin, data } => (data.len(), fin),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(pieces, [(32768, false), (32768, false), (32768, false), (1696, true)]);
    }

    #[tokio::test]
    async fn settings_and_window_updates_are_passed_over() {
        let mut bytes = BytesMut::new();
        put_control(&mut bytes, 4, &[0, 0, 0, 1, 0, 0, 0, 7, 0, 1, 0, 0]);
        put_control(&mut bytes, 9, &[0; 8]);
        assert_eq!(read_all(&bytes).await.unwrap(), [Received::Ignored, Received::Ignored]);
    }

    #[tokio::test]
    async fn malformed_frames_are_errors() {
        let cases: [(&[u8], &str); 4] = [
            (&[0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1], "version"),
            (&[0x80, 3, 0, 6, 0, 0, 0, 0], "cut short"),
            (&[0x80, 3, 0, 1, 0, 1, 0, 0], "16 KiB"),
            (b"GET / HT", "SPDY"),
        ];
        for (bytes, message) in cases {
            let error = read_all(bytes).await.unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
