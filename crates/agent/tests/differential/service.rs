//! The service behind both proxies. The request's `act` header says what it does; without one it tells what it was sent.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::wire::comparable;

/// A request as it came.
struct Request {
    line: String,
    headers: Vec<String>,
}

impl Request {
    fn value(&self, name: &str) -> Option<&str> {
        self.headers.iter().find_map(|line| {
            let (known, value) = line.split_once(':')?;
            known.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// What a mirror was sent, by the request's `x-case`.
type Record = Arc<Mutex<BTreeMap<String, Vec<String>>>>;

/// A header line; what is left of the time for a further try changes by milliseconds from run to run.
fn whole_seconds(line: &str) -> String {
    let of_grpc = line.strip_prefix("grpc-timeout: ").and_then(|left| left.strip_suffix('m'));
    if let Some(left) = of_grpc.and_then(|left| left.parse::<u64>().ok()) {
        return format!("grpc-timeout within {} s", left.div_ceil(1000));
    }
    let left =
        line.strip_prefix("x-envoy-expected-rq-timeout-ms: ").and_then(|left| left.parse::<u64>().ok());
    left.map_or_else(|| comparable(line), |left| format!("expected within {} s", left.div_ceil(1000)))
}

/// Serves until the test ends.
pub(crate) async fn start() -> SocketAddr {
    start_with(None).await
}

/// A service that keeps what it is sent and tells of it at `/recorded`; `mirror-act` is what it does.
pub(crate) async fn start_mirror() -> SocketAddr {
    start_with(Some(Record::default())).await
}

async fn start_with(record: Option<Record>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    accept(listener, record);
    address
}

/// Serves there until the test ends.
pub(crate) fn serve_at(listener: TcpListener) {
    accept(listener, None);
}

fn accept(listener: TcpListener, record: Option<Record>) {
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let record = record.clone();
            // A proxy that goes away ends it.
            tokio::spawn(async move { drop(serve(stream, record).await) });
        }
    });
}

async fn head(reader: &mut BufReader<TcpStream>) -> std::io::Result<Option<Request>> {
    let mut lines = Vec::new();
    loop {
        let mut line = Vec::new();
        if reader.read_until(b'\n', &mut line).await? == 0 {
            return Ok(None);
        }
        let line = String::from_utf8_lossy(&line).trim_end_matches("\r\n").to_owned();
        if line.is_empty() {
            break;
        }
        lines.push(line);
    }
    let line = lines.remove(0);
    Ok(Some(Request { line, headers: lines }))
}

async fn body(reader: &mut BufReader<TcpStream>, request: &Request) -> std::io::Result<String> {
    let mut bytes = Vec::new();
    let mut trailers = String::new();
    if request.value("transfer-encoding").is_some() {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).await?;
            let size = usize::from_str_radix(line.trim(), 16).map_err(std::io::Error::other)?;
            if size == 0 {
                break;
            }
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk).await?;
            bytes.extend_from_slice(&chunk[..size]);
        }
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).await?;
            if line.trim().is_empty() {
                break;
            }
            trailers.push_str(&format!("\ntrailer {}", line.trim()));
        }
    } else if let Some(length) = request.value("content-length") {
        bytes = vec![0; length.parse().map_err(std::io::Error::other)?];
        reader.read_exact(&mut bytes).await?;
    }
    let text = if bytes.len() > 4096 {
        format!("{} bytes", bytes.len())
    } else {
        String::from_utf8_lossy(&bytes).into_owned()
    };
    Ok(text + &trailers)
}

fn reset(stream: &TcpStream) -> std::io::Result<()> {
    let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
    setsockopt(stream, sockopt::Linger, &linger).map_err(std::io::Error::from)
}

/// Answers that a retry policy may have something to say about.
fn refused(act: &str) -> Option<(Vec<u8>, bool)> {
    let text = |text: &str, close: bool| Some((text.as_bytes().to_vec(), close));
    if let Some(code) = act.strip_prefix("grpc-") {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n";
        return text(&format!("{head}grpc-status: {code}\r\n\r\n"), false);
    }
    match act {
        "404" => text("HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\nnone", false),
        "409" => text("HTTP/1.1 409 Conflict\r\ncontent-length: 0\r\n\r\n", false),
        "418-plain" => text("HTTP/1.1 418 Unknown\r\ncontent-length: 0\r\n\r\n", false),
        "502" => text("HTTP/1.1 502 Bad Gateway\r\ncontent-length: 0\r\n\r\n", false),
        "503" => text("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n", false),
        "504" => text("HTTP/1.1 504 Gateway Timeout\r\ncontent-length: 0\r\n\r\n", false),
        "ratelimited" => text(
            "HTTP/1.1 429 Too Many Requests\r\nx-envoy-ratelimited: true\r\ncontent-length: 0\r\n\r\n",
            false,
        ),
        "ratelimited-503" => text(
            "HTTP/1.1 503 Service Unavailable\r\nx-envoy-ratelimited: true\r\ncontent-length: 0\r\n\r\n",
            false,
        ),
        "again" => text("HTTP/1.1 200 OK\r\nx-again: yes\r\ncontent-length: 5\r\n\r\nagain", false),
        "told" => {
            text("HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n", false)
        }
        _ => None,
    }
}

/// Answers that are the same bytes whatever was asked; `true`: then the connection closes.
fn fixed(act: &str) -> Option<(Vec<u8>, bool)> {
    let text = |text: &str, close: bool| Some((text.as_bytes().to_vec(), close));
    match act {
        "empty" => text("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", false),
        "close" => text("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok", true),
        "close-silently" => text("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", true),
        "until-close" => text("HTTP/1.1 200 OK\r\n\r\nall of it", true),
        "http10" => text("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", true),
        "http10-keep-alive" => {
            text("HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok", false)
        }
        "garbage" => text("what is this?\r\n\r\n", true),
        "version-2" => text("HTTP/2.0 200 OK\r\ncontent-length: 2\r\n\r\nok", true),
        "short" => text("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n0123456789", true),
        "short-head" => text("HTTP/1.1 200 OK\r\ncontent-le", true),
        "bad-chunk" => text("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\nxyz\r\n", true),
        "cut-chunks" => text("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n", true),
        "chunks" => text(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n",
            false,
        ),
        "trailers" => text(
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n2\r\nok\r\n0\r\nx-sum: 7\r\n\r\n",
            false,
        ),
        "length-and-chunked" => text(
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            true,
        ),
        "two-lengths" => text("HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok", true),
        "same-lengths" => text("HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nok", true),
        "bad-length" => text("HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\nok", true),
        "gzip-coding" => text("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nok", true),
        "204" => text("HTTP/1.1 204 No Content\r\n\r\n", false),
        "204-length" => text("HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n", false),
        "304" => text("HTTP/1.1 304 Not Modified\r\netag: \"a\"\r\n\r\n", false),
        "304-length" => text("HTTP/1.1 304 Not Modified\r\ncontent-length: 10\r\n\r\n", false),
        "205" => text("HTTP/1.1 205 Reset Content\r\ncontent-length: 0\r\n\r\n", false),
        "head-length" => text("HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n", false),
        "head-chunked" => text("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", false),
        "100-200" => {
            text("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", false)
        }
        "102-200" => {
            text("HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", false)
        }
        "103-200" => text(
            "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            false,
        ),
        "101" => text("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", true),
        "500" => text("HTTP/1.1 500 Internal Server Error\r\ncontent-length: 3\r\n\r\nbad", false),
        "600" => text("HTTP/1.1 600 Odd\r\ncontent-length: 2\r\n\r\nok", false),
        "999" => text("HTTP/1.1 999 Odd\r\ncontent-length: 2\r\n\r\nok", false),
        "099" => text("HTTP/1.1 099 Odd\r\ncontent-length: 2\r\n\r\nok", true),
        "no-reason" => text("HTTP/1.1 200\r\ncontent-length: 2\r\n\r\nok", false),
        "other-reason" => text("HTTP/1.1 200 Fine\r\ncontent-length: 2\r\n\r\nok", false),
        "bare-lf" => text("HTTP/1.1 200 OK\ncontent-length: 2\n\nok", true),
        "folded" => text("HTTP/1.1 200 OK\r\nx-a: b\r\n c\r\ncontent-length: 2\r\n\r\nok", true),
        "space-before-colon" => text("HTTP/1.1 200 OK\r\nx-a : b\r\ncontent-length: 2\r\n\r\nok", true),
        "headers" => text(
            "HTTP/1.1 200 OK\r\nServer: mine\r\nKeep-Alive: timeout=5\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nX-Two: a\r\nX-Two: b\r\nProxy-Connection: close\r\nDate: Thu, 01 Jan 1970 00:00:00 GMT\r\nX-Empty:\r\nContent-Length: 2\r\n\r\nok",
            false,
        ),
        "upgrade-header" => text(
            "HTTP/1.1 200 OK\r\nupgrade: h2\r\nconnection: upgrade\r\ncontent-length: 2\r\n\r\nok",
            false,
        ),
        "trailing" => text("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\n", true),
        "big" => {
            // Not optimised, making it takes time, and some tests want it often.
            static BIG: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
                let mut bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 3000000\r\n\r\n".to_vec();
                bytes.extend((0..3_000_000u32).map(|i| (i % 251) as u8));
                bytes
            });
            Some((BIG.clone(), false))
        }
        "big-head" => {
            let filler = "x".repeat(70 * 1024);
            text(&format!("HTTP/1.1 200 OK\r\nx-big: {filler}\r\ncontent-length: 2\r\n\r\nok"), true)
        }
        "head-50k" => {
            let filler = "x".repeat(50 * 1024);
            text(&format!("HTTP/1.1 200 OK\r\nx-big: {filler}\r\ncontent-length: 2\r\n\r\nok"), false)
        }
        "101-headers" => {
            let many: String = (0..101).map(|n| format!("x-{n}: {n}\r\n")).collect();
            text(&format!("HTTP/1.1 200 OK\r\n{many}content-length: 2\r\n\r\nok"), true)
        }
        "90-headers" => {
            let many: String = (0..90).map(|n| format!("x-{n}: {n}\r\n")).collect();
            text(&format!("HTTP/1.1 200 OK\r\n{many}content-length: 2\r\n\r\nok"), false)
        }
        _ => None,
    }
}

async fn echo(reader: &mut BufReader<TcpStream>) -> std::io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let n = reader.read(&mut buffer).await?;
        if n == 0 {
            return Ok(());
        }
        reader.write_all(&buffer[..n]).await?;
    }
}

#[allow(clippy::too_many_lines)] // An arm for each act.
async fn serve(stream: TcpStream, record: Option<Record>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    while let Some(request) = head(&mut reader).await? {
        let act = if record.is_some() { "mirror-act" } else { "act" };
        let case = request.value("x-case").unwrap_or_default();
        let tried = record.as_ref().map_or(0, |record| record.lock().unwrap().get(case).map_or(0, Vec::len));
        let acts = request.value(act).unwrap_or_default();
        // One after the other, the last for all that follow.
        let act = acts.split(',').nth(tried).or(acts.rsplit(',').next()).unwrap_or_default().to_owned();
        if let Some(record) = &record
            && request.line.starts_with("GET /recorded")
        {
            let mut found = record.lock().unwrap().remove(case).unwrap_or_default();
            found.sort_unstable();
            let text = found.join("\n--\n");
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len());
            reader.write_all(answer.as_bytes()).await?;
            continue;
        }
        let kept = AtomicBool::new(false);
        let keep = |sent: &str| {
            let Some(record) = record.as_ref().filter(|_| !kept.swap(true, Relaxed)) else { return };
            let again = request.value("x-envoy-attempt-count").is_some_and(|count| count != "1");
            let shown = |line: &String| if again { whole_seconds(line) } else { comparable(line) };
            let mut headers: Vec<String> = request.headers.iter().map(shown).collect();
            headers.sort_unstable();
            let text = format!("mirrored {}\n{}\n{sent}", request.line, headers.join("\n"));
            record.lock().unwrap().entry(case.to_owned()).or_default().push(text);
        };
        if request.line.starts_with("CONNECT ") && act.is_empty() {
            reader.write_all(format!("HTTP/1.1 200 OK\r\n\r\n> {}\n", request.line).as_bytes()).await?;
            return echo(&mut reader).await;
        }
        if ["early-close", "early-reset", "silence", "early-417", "early-503"].contains(&act.as_str()) {
            keep("");
        }
        let mut act = act;
        while let Some(rest) = act.strip_prefix("late-") {
            keep("");
            tokio::time::sleep(std::time::Duration::from_millis(350)).await;
            act = rest.to_owned();
        }
        // What goes before the answer is said before the body is read.
        let act = match act.split_once("then-") {
            None => act,
            Some((before, act)) => {
                for status in before.split_terminator('-') {
                    let line = match status {
                        "103" => "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\nkeep-alive: 5\r\n\r\n",
                        "102" => "HTTP/1.1 102 Processing\r\n\r\n",
                        "104" => "HTTP/1.1 104 Upload Resumption Supported\r\n\r\n",
                        "100x" => "HTTP/1.1 100 Go on\r\nx-a: b\r\nServer: it\r\n\r\n",
                        _ => "HTTP/1.1 100 Continue\r\n\r\n",
                    };
                    reader.write_all(line.as_bytes()).await?;
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
                act.to_owned()
            }
        };
        match act.as_str() {
            // Before the body is read.
            "early-close" => return Ok(()),
            "early-reset" => return reset(reader.get_ref()),
            "early-417" => {
                reader.write_all(b"HTTP/1.1 417 Expectation Failed\r\ncontent-length: 2\r\n\r\nno").await?;
                while reader.read(&mut [0; 4096]).await? > 0 {}
                return Ok(());
            }
            "early-503" => {
                reader.write_all(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n").await?;
                while reader.read(&mut [0; 4096]).await? > 0 {}
                return Ok(());
            }
            "early-413" => {
                reader.write_all(b"HTTP/1.1 413 Too Big\r\ncontent-length: 3\r\n\r\nbig").await?;
                // The proxy ends it.
                while reader.read(&mut [0; 4096]).await? > 0 {}
                return Ok(());
            }
            "silence" => {
                while reader.read(&mut [0; 4096]).await? > 0 {}
                return Ok(());
            }
            "websocket" => {
                let answer =
                    b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\r\nhello";
                reader.write_all(answer).await?;
                return echo(&mut reader).await;
            }
            _ => {}
        }
        let sent = body(&mut reader, &request).await?;
        keep(&sent);
        if act == "late" {
            tokio::time::sleep(std::time::Duration::from_millis(600)).await;
        }
        if let Some(code) = act.strip_prefix("move").filter(|_| !request.line.contains("/at-target")) {
            let code = if code.is_empty() { "302" } else { code.trim_start_matches('-') };
            let to = request.value("to").unwrap_or_default();
            let head = format!(
                "HTTP/1.1 {code} Found\r\nlocation: {to}\r\nx-taken: along\r\ncontent-length: 5\r\n\r\nmoved"
            );
            reader.write_all(head.as_bytes()).await?;
            continue;
        }
        if let Some((answer, close)) = fixed(&act).or_else(|| refused(&act)) {
            reader.write_all(&answer).await?;
            if close {
                return Ok(());
            }
            continue;
        }
        let mut headers: Vec<String> = request.headers.iter().map(|line| comparable(line)).collect();
        headers.sort_unstable();
        let text = format!("> {}\n> {}\n{sent}", request.line, headers.join("\n> "));
        let bytes = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len());
        let bytes = if request.line.starts_with("HEAD ") {
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", text.len())
        } else {
            bytes
        };
        reader.write_all(bytes.as_bytes()).await?;
    }
    Ok(())
}
