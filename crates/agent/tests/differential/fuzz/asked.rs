//! Requests by chance: over either version, with or without what may go before and after them.

use serde_json::Value;

use super::random::Dice;
use super::secured::Hello;
use super::tokens;

const HOSTS: [&str; 11] = [
    "a.example",
    "A.Example",
    "b.example",
    "c.a.example",
    "b.test",
    "a.example:80",
    "a.example.",
    "[::1]:80",
    "b.example:8080",
    "a.example:LISTENER",
    "b.example.:80",
];
const SEGMENTS: [&str; 16] =
    ["a", "b", "A", "api", "v1", ".", "..", "", "%2e%2E", "%41", "a%2Fb", "x%5cy", "a;b", "é", "a.b", "%zz"];
const NAMES: [&str; 8] =
    ["x-a", "x-b", "x-c", "user-agent", "x_under", "x-envoy-test", "accept", "x-forwarded-host"];
const VALUES: [&str; 10] = ["1", "on", "abc", "abcdef", "a,b", "-7", "100", "", "A b", "v1"];
/// What the service does, in place of telling what it was sent.
const ACTS: [&str; 20] = [
    "empty",
    "500",
    "headers",
    "204",
    "chunks",
    "close",
    "no-reason",
    "100-200",
    "early-close",
    "404",
    "409",
    "503",
    "504",
    "ratelimited",
    "again",
    "grpc-14",
    "grpc-0",
    "trailers",
    "304",
    "until-close",
];

/// The version a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    Http10,
    Http11,
    Http2,
}

/// How a body is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Length,
    Chunks,
    /// With a trailer.
    Trailers,
}

/// A request as lines, so that lines can be left out.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) version: Version,
    /// What the connection begins with: a PROXY header.
    pub(super) before: Vec<u8>,
    pub(super) method: &'static str,
    pub(super) target: String,
    /// `LISTENER` is the listener's port.
    pub(super) host: String,
    pub(super) lines: Vec<String>,
    pub(super) body: Option<&'static str>,
    pub(super) framing: Framing,
    /// How its connection is secured.
    pub(super) tls: Option<Hello>,
    /// Sent along before the first is answered.
    pub(super) next: Option<Box<Self>>,
}

fn path(dice: &mut Dice) -> String {
    let n = dice.0.usize(..4);
    let segments: Vec<&str> = (0..n).map(|_| dice.one(&SEGMENTS)).filter(|segment| *segment != "é").collect();
    let query = dice.one(&["", "", "", "?", "?a=1", "?a=1&b=2", "?b", "?a=/../x", "?x=%20y&a=abc", "?a=?b"]);
    let token = if dice.once_in(20) { format!("?token={}", tokens::token(dice)) } else { query.to_owned() };
    format!("/{}{token}", segments.join("/"))
}

fn of_envoy(dice: &mut Dice) -> String {
    let line = dice.one(&[
        "internal: 1",
        "original-path: 1",
        "max-retries: 1",
        "decorator-operation: 1",
        "retry-on: 5xx",
        "max-retries: 2",
        "retriable-status-codes: 404,503",
        "retriable-header-names: x-again,x-two",
        "upstream-rq-per-try-timeout-ms: 2000",
        "upstream-rq-timeout-ms: 3000",
        "retry-grpc-on: unavailable",
        "expected-rq-timeout-ms: 10",
        "upstream-rq-timeout-alt-response: 1",
        "attempt-count: 7",
        "is-timeout-retry: true",
        "hedge-on-per-try-timeout: true",
        "upstream-stream-duration-ms: 3000",
        "original-host: other",
        "external-address: 1.2.3.4",
    ]);
    format!("x-envoy-{line}")
}

fn line(dice: &mut Dice) -> String {
    match dice.0.u8(..26) {
        0 => {
            let chain = dice.one(&[
                "1.2.3.4, 10.0.0.1",
                "10.0.0.1",
                "::1",
                "x, 1.2.3.4",
                "1.2.3.4,5.6.7.8, 9.9.9.9",
                "",
            ]);
            format!("x-forwarded-for: {chain}")
        }
        1 => format!("x-forwarded-proto: {}", dice.one(&["https", "http", "HTTPS"])),
        2 => "x-request-id: mine".to_owned(),
        3 => format!("x-cluster: {}", dice.one(&["service", "none", "dead"])),
        4 | 5 => format!("act: {}", dice.one(&ACTS)),
        6 => {
            let kind = [
                "application/grpc",
                "application/grpc+proto",
                "application/grpc-web",
                "application/grpc;a=b",
                "application/json",
            ];
            format!("content-type: {}", dice.one(&kind))
        }
        7 => format!("connection: {}", dice.one(&["x-a, keep-alive", "close", "X-B", "te"])),
        8 => format!("origin: {}", dice.one(&["https://a.example", "http://b", "null"])),
        9 => format!("access-control-request-method: {}", dice.one(&["GET", "PUT"])),
        10 => format!("x-envoy-fault-abort-request: {}", dice.one(&["418", "999", "x"])),
        11 | 12 => of_envoy(dice),
        13 => {
            let other = format!("session={}; a=2", tokens::token(dice));
            format!("cookie: {}", dice.one(&["a=1", "a=1; b=2", "b", &other]))
        }
        14 => format!("x-long: {}", "a".repeat(dice.one(&[10, 900, 2000]))),
        15 => format!("grpc-timeout: {}", dice.one(&["1S", "500m", "x", "99999999n", "0S", "1H"])),
        16 => format!("x-weight: {}", dice.one(&["0", "1", "2", "77", "x", "18446744073709551615"])),
        17 => format!(
            "authorization: {} {}",
            dice.one(&["Bearer", "Bearer", "bearer", "Basic"]),
            tokens::token(dice)
        ),
        18 => format!("x-token: {}{}", dice.one(&["", "v=", "v="]), tokens::token(dice)),
        19 => {
            let element = ["By=a;Hash=b;URI=spiffe://c/d", "By=a,By=b", "x"];
            format!("x-forwarded-client-cert: {}", dice.one(&element))
        }
        20 => format!("x-forwarded-{}", dice.one(&["port: 7", "port: x", "scheme: https", "server: a"])),
        21 => format!("te: {}", dice.one(&["trailers", "gzip"])),
        22 => format!("via: {}", dice.one(&["1.1 one", "1.0 two, 1.1 three"])),
        _ => format!("{}: {}", dice.one(&NAMES), dice.one(&VALUES)),
    }
}

/// A header of the PROXY protocol, mostly a right one.
pub(super) fn proxy_header(dice: &mut Dice) -> Vec<u8> {
    let v2 = |rest: &[u8]| [b"\r\n\r\n\0\r\nQUIT\n", rest].concat();
    match dice.0.u8(..10) {
        0 => b"PROXY UNKNOWN\r\n".to_vec(),
        1 => b"PROXY TCP6 2001:db8::1 2001:db8::2 1000 443\r\n".to_vec(),
        2 => b"PROXY TCP4 1.2.3.4 5.6.7.8 x 80\r\n".to_vec(),
        3 | 4 => v2(&[0x21, 0x11, 0, 12, 1, 2, 3, 4, 5, 6, 7, 8, 3, 232, 1, 187]),
        // LOCAL.
        5 => v2(&[0x20, 0, 0, 0]),
        // With a TLV.
        6 => v2(&[0x21, 0x11, 0, 16, 10, 0, 0, 1, 5, 6, 7, 8, 3, 232, 0, 80, 4, 0, 1, 7]),
        _ => b"PROXY TCP4 1.2.3.4 5.6.7.8 1000 80\r\n".to_vec(),
    }
}

/// A request to a listener of this manager.
pub(super) fn request(dice: &mut Dice, config: &Value) -> Asked {
    let proxied = !config["listener"].is_null();
    let mut asked = one(dice);
    if dice.once_in(12) {
        asked.next = Some(Box::new(one(dice)));
    }
    if proxied && !dice.once_in(6) {
        asked.before = proxy_header(dice);
    }
    match dice.0.u8(..12) {
        // Bodies to come are for those who keep the connection.
        0 if asked.next.is_none() => {
            asked.version = Version::Http10;
            asked.framing = Framing::Length;
        }
        1 | 2 if asked.before.is_empty() => asked.for_http2(),
        3 if asked.next.is_none() => asked.unusual(dice),
        _ => {}
    }
    if !config["transport_socket"].is_null() && !dice.once_in(12) {
        asked.tls = Some(Hello::random(dice, asked.version == Version::Http2));
    }
    // Whether the rest has come, or hands have been shaken, when no time is left is chance.
    if config.to_string().contains("UpstreamTlsContext") {
        asked.lines.retain(|line| line != "grpc-timeout: 0S");
    }
    if asked.lines.iter().any(|line| line == "grpc-timeout: 0S") {
        asked.body = None;
    }
    asked
}

fn one(dice: &mut Dice) -> Asked {
    let lines: Vec<String> = dice.some(6, line);
    // Envoy joins lines of most names, which says the same (RFC 9110, section 5.3).
    let twice = |name: &str| ["x-a", "x-b", "x-c"].contains(&name);
    let mut names = std::collections::BTreeSet::new();
    let lines = lines.into_iter().filter(|line| {
        let name = line.split(':').next().unwrap_or_default();
        names.insert(name.to_owned()) || twice(name)
    });
    Asked {
        version: Version::Http11,
        before: Vec::new(),
        lines: lines.collect(),
        method: dice.one(&["GET", "GET", "GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "HEAD"]),
        target: path(dice),
        host: dice.one(&HOSTS).to_owned(),
        body: dice.one(&[None, None, Some(""), Some("hello")]),
        framing: dice.one(&[Framing::Length, Framing::Length, Framing::Chunks, Framing::Trailers]),
        tls: None,
        next: None,
    }
}

impl Asked {
    /// Only what HTTP/2 can say, and what it can't be asked for by mistake.
    fn for_http2(&mut self) {
        self.version = Version::Http2;
        self.next = None;
        self.lines.retain(|line| !line.starts_with("connection:"));
    }

    /// Methods and targets that are seldom seen.
    fn unusual(&mut self, dice: &mut Dice) {
        match dice.0.u8(..8) {
            0 => self.method = "TRACE",
            1 => self.method = "BREW",
            2 => self.target = format!("http://{}{}", dice.one(&["b.example", "c.test:80"]), self.target),
            3 => (self.method, self.target) = ("OPTIONS", "*".to_owned()),
            4 | 5 => {
                (self.method, self.body) = ("GET", None);
                self.lines.retain(|line| !line.starts_with("connection:") && !line.starts_with("act:"));
                let kind = dice.one(&["websocket", "websocket", "WebSocket", "other"]);
                self.lines.extend(["connection: Upgrade".to_owned(), format!("upgrade: {kind}")]);
                if dice.once_in(2) {
                    self.lines.push("act: websocket".to_owned());
                }
            }
            6 => {
                (self.method, self.body) = ("CONNECT", None);
                self.target = dice.one(&["a.example:443", "b.example:80"]).to_owned();
                self.host.clone_from(&self.target);
                self.lines.retain(|line| !line.starts_with("act:"));
            }
            _ => self.lines.push("expect: 100-continue".to_owned()),
        }
    }

    pub(super) fn is_connect(&self) -> bool {
        self.method == "CONNECT"
    }

    /// The request with this port in `LISTENER`'s place.
    pub(super) fn at(&self, port: u16) -> Self {
        let next = self.next.as_ref().map(|next| Box::new(next.at(port)));
        Self { host: self.host.replace("LISTENER", &port.to_string()), next, ..self.clone() }
    }

    /// All that is sent after [`Asked::before`].
    pub(super) fn bytes(&self) -> Vec<u8> {
        let version = if self.version == Version::Http10 { "1.0" } else { "1.1" };
        let mut text = format!("{} {} HTTP/{version}\r\nhost: {}\r\n", self.method, self.target, self.host);
        for line in &self.lines {
            text += &format!("{line}\r\n");
        }
        match (self.body, self.framing) {
            (None, _) => text += "\r\n",
            (Some(body), Framing::Length) | (Some(body @ ""), _) => {
                text += &format!("content-length: {}\r\n\r\n{body}", body.len());
            }
            (Some(body), framing) => {
                let trailer = if framing == Framing::Trailers { "x-sum: 7\r\n" } else { "" };
                let length = body.len();
                text +=
                    &format!("transfer-encoding: chunked\r\n\r\n{length:x}\r\n{body}\r\n0\r\n{trailer}\r\n");
            }
        }
        let next = self.next.as_ref().map(|next| next.bytes()).unwrap_or_default();
        [text.into_bytes(), next].concat()
    }

    /// The methods of what is sent, in order.
    pub(super) fn methods(&self) -> Vec<&'static str> {
        std::iter::once(self.method).chain(self.next.iter().flat_map(|next| next.methods())).collect()
    }

    /// Bytes of its body, as they are counted.
    pub(super) fn body_length(&self) -> usize {
        self.body.unwrap_or("").len()
    }

    /// Requests with one thing less.
    pub(super) fn smaller(&self) -> Vec<Self> {
        let mut all: Vec<Self> = (0..self.lines.len())
            .map(|n| {
                let mut less = self.clone();
                less.lines.remove(n);
                less
            })
            .collect();
        if self.body.is_some() {
            all.push(Self { body: None, ..self.clone() });
        }
        if self.framing != Framing::Length {
            all.push(Self { framing: Framing::Length, ..self.clone() });
        }
        if let Some((path, _)) = self.target.split_once('?') {
            all.push(Self { target: path.to_owned(), ..self.clone() });
        }
        if let Some(tls) = &self.tls {
            all.extend(tls.smaller().into_iter().map(|tls| Self { tls: Some(tls), ..self.clone() }));
        }
        if let Some(next) = &self.next {
            all.extend([Self { next: None, ..self.clone() }, (**next).clone()]);
            let less = next.smaller().into_iter();
            all.extend(less.map(|next| Self { next: Some(Box::new(next)), ..self.clone() }));
        }
        if self.version != Version::Http11 {
            all.push(Self { version: Version::Http11, ..self.clone() });
        }
        all
    }
}

impl std::fmt::Display for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let before = String::from_utf8_lossy(&self.before);
        let tls = self.tls.as_ref().map(|tls| format!("{tls:?}\n")).unwrap_or_default();
        write!(f, "{:?}\n{before}{tls}{}", self.version, String::from_utf8_lossy(&self.bytes()))
    }
}
