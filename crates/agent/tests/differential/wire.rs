//! A client that speaks in bytes and reads answers whole.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Nothing takes longer than this, or the case has failed.
const LIMIT: Duration = Duration::from_secs(15);

/// What can be read and written: a socket, or TLS in one.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// One connection.
pub(crate) struct Wire {
    stream: Box<dyn Duplex>,
    read: Vec<u8>,
    end: Option<&'static str>,
    /// Long bodies are shown whole.
    whole: bool,
}

impl Wire {
    pub(crate) fn new(stream: impl Duplex + 'static) -> Self {
        Self { stream: Box::new(stream), read: Vec::new(), end: None, whole: false }
    }

    /// Shows long bodies, too.
    pub(crate) fn whole(mut self) -> Self {
        self.whole = true;
        self
    }

    /// The proxy may close while it is being written to; what it said is read all the same.
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        let _ = tokio::time::timeout(LIMIT, self.stream.write_all(bytes)).await;
    }

    pub(crate) async fn half_close(&mut self) {
        let _ = self.stream.shutdown().await;
    }

    /// Reads more; false at the end.
    async fn more(&mut self) -> bool {
        if self.end.is_some() {
            return false;
        }
        let mut buffer = [0; 16 * 1024];
        self.end = match tokio::time::timeout(LIMIT, self.stream.read(&mut buffer)).await {
            Err(_) => Some("silent"),
            Ok(Err(_)) => Some("reset"),
            Ok(Ok(0)) => Some("closed"),
            Ok(Ok(n)) => {
                self.read.extend_from_slice(&buffer[..n]);
                None
            }
        };
        self.end.is_none()
    }

    /// Waits for the end and tells its kind. What comes before it is not looked at. A reset is an end, too: whether the kernel
    /// sends one depends on what it had yet to read.
    pub(crate) async fn ended(&mut self) -> &'static str {
        while self.more().await {}
        match self.end {
            Some("silent") => "silent",
            _ => "ended",
        }
    }

    /// So many bytes as they come.
    pub(crate) async fn raw(&mut self, n: usize) -> Vec<u8> {
        while self.read.len() < n && self.more().await {}
        self.read.drain(..n.min(self.read.len())).collect()
    }

    /// Whether the connection still serves.
    pub(crate) async fn probe(&mut self) -> &'static str {
        if !self.read.is_empty() {
            return "something that nobody asked for";
        }
        self.send(b"GET /probe HTTP/1.1\r\nhost: probe\r\n\r\n").await;
        match self.answer("GET").await {
            Some(text) if text.starts_with("HTTP/1.1 200 OK") => "open",
            Some(_) => "another answer",
            None if self.end == Some("silent") => "silent",
            None => "closed",
        }
    }

    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.read.windows(2).position(|pair| pair == b"\r\n") {
                let line: Vec<u8> = self.read.drain(..end + 2).collect();
                return Some(String::from_utf8_lossy(&line[..end]).into_owned());
            }
            if !self.more().await {
                return None;
            }
        }
    }

    /// The next answer to a method in a comparable form; `None`: there is none.
    pub(crate) async fn answer(&mut self, method: &str) -> Option<String> {
        let status = self.line().await?;
        let mut headers = Vec::new();
        loop {
            match self.line().await {
                None => return Some(format!("{status}\n{headers:?}\nCUT IN THE HEAD\n")),
                Some(line) if line.is_empty() => break,
                Some(line) => headers.push(line),
            }
        }
        let value = |name: &str| {
            headers.iter().find_map(|line| {
                let (known, value) = line.split_once(':')?;
                known.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
            })
        };
        let code = status.split(' ').nth(1).unwrap_or_default();
        let bare = method == "HEAD"
            || code == "204"
            || code == "304"
            || code.starts_with('1')
            || (method == "CONNECT" && code.starts_with('2'));
        let (length, coding) = (value("content-length"), value("transfer-encoding"));
        let body = match (bare, coding, length) {
            (true, ..) => String::new(),
            (_, Some(_), _) => self.chunks().await,
            (_, None, Some(length)) => {
                let length = length.parse().unwrap_or(0);
                let bytes = self.raw(length).await;
                let cut = if bytes.len() < length { " CUT" } else { "" };
                format!("{}{cut}", self.printable(&bytes))
            }
            _ => {
                while self.more().await {}
                let bytes = std::mem::take(&mut self.read);
                format!("{} UNTIL CLOSED", self.printable(&bytes))
            }
        };
        let mut headers: Vec<String> = headers.iter().map(|line| comparable(line)).collect();
        headers.sort_unstable();
        Some(format!("{status}\n{}\n\n{body}\n", headers.join("\n")))
    }

    /// Long bodies are told by their length and a sum.
    fn printable(&self, bytes: &[u8]) -> String {
        if bytes.len() > 16 * 1024 && !self.whole {
            let sum =
                bytes.iter().fold(0u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
            return format!("{} bytes, sum {sum:x}", bytes.len());
        }
        String::from_utf8_lossy(bytes).into_owned()
    }

    async fn chunks(&mut self) -> String {
        let mut body = Vec::new();
        loop {
            let Some(size) = self.line().await else { return self.printable(&body) + " CUT" };
            let Ok(size) = usize::from_str_radix(size.trim(), 16) else { return format!("BAD CHUNK {size}") };
            if size == 0 {
                break;
            }
            let chunk = self.raw(size + 2).await;
            if chunk.len() < size + 2 {
                body.extend(chunk);
                return self.printable(&body) + " CUT";
            }
            body.extend(&chunk[..size]);
        }
        let mut text = self.printable(&body);
        loop {
            match self.line().await {
                None => return text + " CUT IN TRAILERS",
                Some(line) if line.is_empty() => return text,
                Some(line) => text.push_str(&format!("\ntrailer {line}")),
            }
        }
    }
}

/// A header line without what changes from run to run.
pub(crate) fn comparable(line: &str) -> String {
    let (name, value) = line.split_once(':').unwrap_or((line, ""));
    match name.to_ascii_lowercase().as_str() {
        "date" | "x-envoy-upstream-service-time" => format!("{name}: *"),
        "x-request-id" if value.trim().len() == 36 => format!("{name}: *"),
        _ => line.to_owned(),
    }
}
