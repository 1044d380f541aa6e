//! A client that speaks HTTP/2 in frames, right or wrong, and tells what the proxy did about it.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// One frame.
pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// What a connection begins with; `settings`: identifiers and values.
pub(crate) fn preface(settings: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> = settings
        .iter()
        .flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
        .collect();
    [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frame(SETTINGS, 0, 0, &payload)].concat()
}

fn number(out: &mut Vec<u8>, mut n: usize) {
    if n < 127 {
        out.push(n as u8);
        return;
    }
    out.push(127);
    n -= 127;
    while n >= 128 {
        out.push((n % 128 + 128) as u8);
        n /= 128;
    }
    out.push(n as u8);
}

/// Fields as HPACK literals that are not indexed.
pub(crate) fn fields(fields: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        out.push(0);
        number(&mut out, name.len());
        out.extend_from_slice(name.as_bytes());
        number(&mut out, value.len());
        out.extend_from_slice(value);
    }
    out
}

/// The fields of a request for a path, and more.
pub(crate) fn head(method: &str, path: &str, more: &[(&str, &[u8])]) -> Vec<u8> {
    let mut all: Vec<(&str, &[u8])> = vec![
        (":method", method.as_bytes()),
        (":scheme", b"http"),
        (":path", path.as_bytes()),
        (":authority", b"a.example"),
    ];
    all.extend_from_slice(more);
    fields(&all)
}

/// A request without body on a stream.
pub(crate) fn get(stream: u32, path: &str, more: &[(&str, &[u8])]) -> Vec<u8> {
    headers(stream, END_STREAM, &head("GET", path, more))
}

/// A block of fields in as many frames as it needs.
pub(crate) fn headers(stream: u32, flags: u8, block: &[u8]) -> Vec<u8> {
    let mut pieces: Vec<&[u8]> = block.chunks(16_000).collect();
    let first = if pieces.is_empty() { &[][..] } else { pieces.remove(0) };
    let last = pieces.len();
    let ends = |n: usize| if n == last { END_HEADERS } else { 0 };
    let mut out = frame(HEADERS, flags | ends(0), stream, first);
    for (n, piece) in pieces.iter().enumerate() {
        out.extend(frame(CONTINUATION, ends(n + 1), stream, piece));
    }
    out
}

/// What the proxy did.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Reaction {
    /// Statuses by stream.
    pub(crate) statuses: Vec<(u32, String)>,
    /// Streams that were reset, with the code.
    pub(crate) resets: Vec<(u32, u32)>,
    /// The code of the last GOAWAY.
    pub(crate) goaway: Option<u32>,
    pub(crate) closed: bool,
    /// Bytes of bodies.
    pub(crate) data: usize,
    /// Answers to PING.
    pub(crate) pongs: usize,
    pub(crate) bodies: Vec<u8>,
}

impl Reaction {
    /// In few words: `200`, `431`, `reset`, `closed`, `nothing`. A connection that ends over something refuses it, too.
    pub(crate) fn word(&self) -> String {
        match (self.statuses.first(), self.resets.is_empty(), self.goaway.is_some() || self.closed) {
            (Some((_, status)), ..) => status.clone(),
            (None, false, _) | (None, _, true) => "refused".to_owned(),
            _ => "nothing".to_owned(),
        }
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        match kind {
            DATA => {
                self.data += payload.len();
                self.bodies.extend_from_slice(payload);
            }
            HEADERS => {
                if let Some(status) = status(payload) {
                    self.statuses.push((stream, status));
                }
            }
            RST_STREAM => self.resets.push((stream, u32::from_be_bytes(payload[..4].try_into().unwrap()))),
            GOAWAY => self.goaway = Some(u32::from_be_bytes(payload[4..8].try_into().unwrap())),
            PING if flags & 1 == 1 => self.pongs += 1,
            _ => {}
        }
    }
}

/// The status a block of fields begins with; `None`: it begins with something else.
fn status(block: &[u8]) -> Option<String> {
    let mut block = block;
    // Changes of the table's size.
    while block.first()? & 0xe0 == 0x20 {
        let long = block[0] & 0x1f == 0x1f;
        block = &block[1..];
        if long {
            let end = block.iter().position(|byte| byte & 0x80 == 0)?;
            block = &block[end + 1..];
        }
    }
    let first = *block.first()?;
    let known = ["200", "204", "206", "304", "400", "404", "500"];
    if first & 0x80 != 0 {
        return Some(known.get(usize::from(first & 0x7f).checked_sub(8)?).unwrap_or(&"indexed").to_string());
    }
    // A literal with an indexed name: `:status` is 8 to 14 of the static table.
    let index = if first & 0x40 != 0 { first & 0x3f } else { first & 0x0f };
    if !(8..=14).contains(&index) {
        return None;
    }
    let length = block.get(1)?;
    let value = block.get(2..2 + usize::from(length & 0x7f))?;
    if length & 0x80 == 0 {
        return Some(String::from_utf8_lossy(value).into_owned());
    }
    Some(huffman_digits(value))
}

/// Digits of HPACK's Huffman code: `0` to `2` have five bits, the others six.
fn huffman_digits(bytes: &[u8]) -> String {
    let bits: Vec<u8> = bytes.iter().flat_map(|byte| (0..8).rev().map(move |i| byte >> i & 1)).collect();
    let mut digits = String::new();
    let mut at = 0;
    let take =
        |at: usize, n: usize| bits.get(at..at + n).map(|bits| bits.iter().fold(0u8, |v, bit| v << 1 | bit));
    while digits.len() < 3 {
        match (take(at, 5), take(at, 6)) {
            (Some(code @ 0..=2), _) => {
                digits.push(char::from(b'0' + code));
                at += 5;
            }
            (_, Some(code @ 0b011001..=0b011111)) => {
                digits.push(char::from(b'3' + code - 0b011001));
                at += 6;
            }
            _ => break,
        }
    }
    digits
}

/// Sends bytes and watches until the proxy has ended the connection, has said enough, or said nothing for a while.
pub(crate) async fn react(
    address: SocketAddr,
    bytes: &[u8],
    patience: Duration,
    enough: impl Fn(&Reaction) -> bool,
) -> Reaction {
    let mut client = Client::connect(address).await;
    client.send(bytes).await;
    client.watch(patience, enough).await
}

/// A connection.
pub(crate) struct Client {
    stream: TcpStream,
    read: Vec<u8>,
    pub(crate) seen: Reaction,
}

impl Client {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self {
            stream: TcpStream::connect(address).await.unwrap(),
            read: Vec::new(),
            seen: Reaction::default(),
        }
    }

    /// False when the proxy closes or takes no more. What it said is read all the same.
    pub(crate) async fn send(&mut self, bytes: &[u8]) -> bool {
        let sent = tokio::time::timeout(Duration::from_secs(3), self.stream.write_all(bytes)).await;
        matches!(sent, Ok(Ok(())))
    }

    pub(crate) async fn watch(&mut self, patience: Duration, enough: impl Fn(&Reaction) -> bool) -> Reaction {
        let mut buffer = vec![0; 64 * 1024];
        while !self.seen.closed && !enough(&self.seen) {
            match tokio::time::timeout(patience, self.stream.read(&mut buffer)).await {
                Err(_) => break,
                Ok(Err(_) | Ok(0)) => self.seen.closed = true,
                Ok(Ok(n)) => self.read.extend_from_slice(&buffer[..n]),
            }
            while let Some((head, rest)) = self.read.split_at_checked(9) {
                let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
                let Some(payload) = rest.get(..length) else { break };
                let stream = u32::from_be_bytes(head[5..9].try_into().unwrap());
                self.seen.frame(head[3], head[4], stream, payload);
                self.read.drain(..9 + length);
            }
        }
        self.seen.clone()
    }
}
