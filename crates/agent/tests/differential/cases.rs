//! What is sent, and what is looked at.

/// One conversation.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) listener: &'static str,
    pub(crate) steps: Vec<Step>,
    pub(crate) compare: Compare,
}

/// How much must be the same.
#[derive(Clone, Copy)]
pub(crate) enum Compare {
    Everything,
    /// Statuses, ends of connections, and status and flags in the log; why no more.
    Outcome(&'static str),
    /// Nothing; why.
    Nothing(&'static str),
}

/// A part of a conversation.
pub(crate) enum Step {
    Send(Vec<u8>),
    /// Reads an answer to each of these methods.
    Answers(Vec<&'static str>),
    HalfClose,
    /// Lets time pass, where time is what it is about.
    Pause(std::time::Duration),
    /// So many bytes, shown as they are.
    Raw(usize),
    /// Waits until the proxy ends the connection.
    Ended,
    /// Whether the connection still serves.
    Probe,
}

impl Case {
    pub(crate) fn on(mut self, listener: &'static str) -> Self {
        self.listener = listener;
        self
    }
}

fn steps(name: &'static str, steps: Vec<Step>) -> Case {
    Case { name, listener: "plain", steps, compare: Compare::Everything }
}

fn send(bytes: impl AsRef<[u8]>) -> Step {
    Step::Send(bytes.as_ref().to_vec())
}

/// Sends bytes, reads one answer to the method they begin with, looks whether the connection still serves.
fn one(name: &'static str, bytes: impl AsRef<[u8]>) -> Case {
    let bytes = bytes.as_ref();
    let method = if bytes.starts_with(b"HEAD") { "HEAD" } else { "GET" };
    steps(name, vec![send(bytes), Step::Answers(vec![method]), Step::Probe])
}

/// GET / with more header lines (each with its line end).
fn get(name: &'static str, more: &str) -> Case {
    one(name, format!("GET / HTTP/1.1\r\nhost: a.example\r\n{more}\r\n"))
}

/// GET of a target.
fn target(name: &'static str, target: &str) -> Case {
    one(name, format!("GET {target} HTTP/1.1\r\nhost: a.example\r\n\r\n"))
}

/// GET that lets the service act.
fn act(name: &'static str, act: &str) -> Case {
    one(name, format!("GET /act HTTP/1.1\r\nhost: a.example\r\nact: {act}\r\n\r\n"))
}

/// hyper answers what it cannot parse itself, with a status and no text, and then there is no request to log the parts of; a
/// request that Envoy's parser refuses and ours takes apart first is logged with its parts.
const REFUSED: &str = "the same refusal, with less text or more to log";
const STRICT: &str = "RFC 9112 lets a server refuse it, and nobody sends it in good faith";
const VERSION: &str =
    "an HTTP version that is none is a malformed request (400), not one to be upgraded (426)";

const SILENT: &str = "hyper closes without 408 when a head does not come; RFC 9112, section 9.5 lets it";

/// What may differ, and why that is right.
const KNOWN: [(&str, Compare); 77] = [
    ("two hosts", Compare::Nothing("Envoy joins them to `a,b`; RFC 9112, section 3.2 asks for 400")),
    ("the same host twice", Compare::Nothing("as above")),
    ("custom method", Compare::Outcome(REFUSED)),
    ("bad method", Compare::Outcome(REFUSED)),
    ("method with odd characters", Compare::Outcome(REFUSED)),
    ("lower-case method", Compare::Outcome(REFUSED)),
    ("two spaces in the line", Compare::Nothing(STRICT)),
    ("tab in the line", Compare::Nothing(STRICT)),
    ("space at the line's end", Compare::Nothing(STRICT)),
    ("obsolete folding", Compare::Nothing(STRICT)),
    ("host with spaces", Compare::Outcome(REFUSED)),
    ("host with slash", Compare::Outcome(REFUSED)),
    ("http 1.2", Compare::Nothing(VERSION)),
    ("http 2.0 line", Compare::Nothing(VERSION)),
    ("http 0.9", Compare::Nothing(VERSION)),
    ("http 1.0", Compare::Outcome("an HTTP/1.0 client is answered and logged in its version")),
    ("http in lower case", Compare::Outcome(REFUSED)),
    ("bare carriage return", Compare::Outcome(REFUSED)),
    ("folding first", Compare::Outcome(REFUSED)),
    ("space before the colon", Compare::Outcome(REFUSED)),
    ("no colon", Compare::Outcome(REFUSED)),
    ("NUL in a value", Compare::Outcome(REFUSED)),
    ("control in a value", Compare::Outcome(REFUSED)),
    ("odd header name", Compare::Outcome(REFUSED)),
    ("empty header name", Compare::Outcome(REFUSED)),
    ("connect without a port", Compare::Outcome(REFUSED)),
    ("connection names a trusted header", Compare::Outcome(REFUSED)),
    ("101 headers", Compare::Outcome(REFUSED)),
    ("70 KiB of headers", Compare::Outcome(REFUSED)),
    ("1 MiB of headers", Compare::Outcome(REFUSED)),
    ("small heads", Compare::Outcome(REFUSED)),
    ("few headers", Compare::Outcome(REFUSED)),
    ("very long", Compare::Outcome(REFUSED)),
    ("pipelined garbage", Compare::Outcome(REFUSED)),
    ("underscore refused", Compare::Outcome(REFUSED)),
    ("absolute of another scheme", Compare::Outcome(REFUSED)),
    ("no slash", Compare::Outcome(REFUSED)),
    ("authority form", Compare::Outcome(REFUSED)),
    ("star", Compare::Outcome(REFUSED)),
    ("high bytes", Compare::Outcome(REFUSED)),
    ("strict /é/..", Compare::Outcome(REFUSED)),
    ("two lengths", Compare::Outcome(REFUSED)),
    ("list of lengths", Compare::Outcome(REFUSED)),
    ("negative length", Compare::Outcome(REFUSED)),
    ("plus length", Compare::Outcome(REFUSED)),
    ("hexadecimal length", Compare::Outcome(REFUSED)),
    ("empty length", Compare::Outcome(REFUSED)),
    ("huge length", Compare::Outcome(REFUSED)),
    ("identity", Compare::Outcome(REFUSED)),
    ("coding with a vertical tab", Compare::Outcome(REFUSED)),
    ("gzip and chunked", Compare::Outcome(REFUSED)),
    ("chunked twice", Compare::Outcome(REFUSED)),
    ("chunked in a list twice", Compare::Outcome(REFUSED)),
    ("chunked and gzip", Compare::Nothing("400 in place of 501: RFC 9112, section 6.3, rule 4")),
    ("unknown coding", Compare::Nothing("400 in place of 501: RFC 9112, section 6.3, rule 4")),
    ("braces", Compare::Nothing("a backtick is in no URL (RFC 3986), and the parser says so")),
    (
        "strict /a/%2e%2e;/b",
        Compare::Nothing("dots are dots however they are written, and a server behind goes up by them"),
    ),
    ("fragment", Compare::Outcome("the log shows the path without its fragment")),
    ("head of missing", Compare::Outcome("Envoy says `chunked` of a body that is not there")),
    ("head of chunks", Compare::Outcome("no coding of a body that is not there")),
    (
        "304-length",
        Compare::Outcome("the length of a body that is not there may be left out (RFC 9110, section 8.6)"),
    ),
    ("chunk without end", Compare::Nothing("Envoy takes a chunk that is longer than it says")),
    ("length and chunked", Compare::Outcome(REFUSED)),
    ("chunked and length", Compare::Outcome(REFUSED)),
    ("smuggled request", Compare::Outcome(REFUSED)),
    ("same length twice", Compare::Outcome(REFUSED)),
    ("same-lengths", Compare::Nothing("RFC 9110, section 8.6 lets equal lengths be joined")),
    ("http 1.0 chunked", Compare::Nothing("RFC 9112, section 6.1: faulty framing")),
    ("version-2", Compare::Nothing("an answer of a version that HTTP/1 can't have is none")),
    (
        "short-head",
        Compare::Nothing(
            "the service closed the connection (503, UC); Envoy calls the missing rest a breach of the protocol",
        ),
    ),
    ("folded", Compare::Nothing(STRICT)),
    ("slow head", Compare::Nothing(SILENT)),
    ("idle in the head", Compare::Nothing(SILENT)),
    ("101", Compare::Nothing("a service that switches unasked speaks another protocol from here on")),
    ("bad-chunk", Compare::Outcome("what came before the bad chunk has been sent on")),
    ("half close in the head", Compare::Nothing("half a head is no request, so it is not logged")),
    (
        "websocket refused by the service",
        Compare::Nothing(
            "a service may ignore `upgrade` and answer (RFC 9110, section 7.8); Envoy drops the body",
        ),
    ),
];

/// All cases.
pub(crate) fn all() -> Vec<Case> {
    let mut all = requests();
    all.extend(targets());
    all.extend(normalised());
    all.extend(framing());
    all.extend(parts());
    all.extend(answers());
    all.extend(connections());
    all.extend(options());
    all.extend(tunnels());
    for case in &mut all {
        if let Some((_, compare)) = KNOWN.iter().find(|(name, _)| *name == case.name) {
            case.compare = *compare;
        }
    }
    all
}

fn requests() -> Vec<Case> {
    vec![
        get("get", ""),
        one("head", "HEAD / HTTP/1.1\r\nhost: a\r\n\r\n"),
        one("post", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello"),
        one("post without length", "POST / HTTP/1.1\r\nhost: a\r\n\r\n"),
        one("put", "PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nok"),
        one("delete", "DELETE / HTTP/1.1\r\nhost: a\r\n\r\n"),
        one("get with body", "GET / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nok"),
        one("options", "OPTIONS / HTTP/1.1\r\nhost: a\r\n\r\n"),
        one("options *", "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n"),
        one("trace", "TRACE / HTTP/1.1\r\nhost: a\r\n\r\n"),
        one("patch", "PATCH / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n"),
        one("connect", "CONNECT a:443 HTTP/1.1\r\nhost: a:443\r\n\r\n"),
        one("custom method", "BREW / HTTP/1.1\r\nhost: a\r\n\r\n"),
        one("lower-case method", "get / HTTP/1.1\r\nhost: a\r\n\r\n"),
        one("method with odd characters", "M-SEARCH / HTTP/1.1\r\nhost: a\r\n\r\n"),
        one("bad method", "G{T / HTTP/1.1\r\nhost: a\r\n\r\n"),
        one("no host", "GET / HTTP/1.1\r\n\r\n"),
        one("empty host", "GET / HTTP/1.1\r\nhost:\r\n\r\n"),
        one("two hosts", "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n"),
        one("the same host twice", "GET / HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n"),
        one("host with port", "GET / HTTP/1.1\r\nhost: a:8080\r\n\r\n"),
        one("host in capitals", "GET / HTTP/1.1\r\nHOST: A.Example\r\n\r\n"),
        one("host with spaces", "GET / HTTP/1.1\r\nhost: a b\r\n\r\n"),
        one("host with user", "GET / HTTP/1.1\r\nhost: u@a\r\n\r\n"),
        one("host with slash", "GET / HTTP/1.1\r\nhost: a/b\r\n\r\n"),
        one("host is ipv6", "GET / HTTP/1.1\r\nhost: [::1]:80\r\n\r\n"),
        one("http 1.0", "GET / HTTP/1.0\r\nhost: a\r\n\r\n"),
        one("http 0.9", "GET /\r\n\r\n"),
        one("http 1.2", "GET / HTTP/1.2\r\nhost: a\r\n\r\n"),
        one("http 2.0 line", "GET / HTTP/2.0\r\nhost: a\r\n\r\n"),
        one("http in lower case", "GET / http/1.1\r\nhost: a\r\n\r\n"),
        one("two spaces in the line", "GET  / HTTP/1.1\r\nhost: a\r\n\r\n"),
        one("tab in the line", "GET\t/ HTTP/1.1\r\nhost: a\r\n\r\n"),
        one("space at the line's end", "GET / HTTP/1.1 \r\nhost: a\r\n\r\n"),
        one("empty lines first", "\r\n\r\nGET / HTTP/1.1\r\nhost: a\r\n\r\n"),
        one("bare line feeds", "GET / HTTP/1.1\nhost: a\n\n"),
        one("bare carriage return", "GET / HTTP/1.1\r\nhost: a\rb: c\r\n\r\n"),
        one("obsolete folding", "GET / HTTP/1.1\r\nhost: a\r\nx-a: b\r\n c\r\n\r\n"),
        one("folding first", "GET / HTTP/1.1\r\n host: a\r\n\r\n"),
        one("space before the colon", "GET / HTTP/1.1\r\nhost: a\r\nx-a : b\r\n\r\n"),
        one("no colon", "GET / HTTP/1.1\r\nhost: a\r\nx-a\r\n\r\n"),
        one("empty header name", "GET / HTTP/1.1\r\nhost: a\r\n: b\r\n\r\n"),
        one("odd header name", "GET / HTTP/1.1\r\nhost: a\r\nx(a: b\r\n\r\n"),
        one("NUL in a value", "GET / HTTP/1.1\r\nhost: a\r\nx-a: b\0c\r\n\r\n"),
        one("control in a value", "GET / HTTP/1.1\r\nhost: a\r\nx-a: b\x01c\r\n\r\n"),
        one("high bytes in a value", b"GET / HTTP/1.1\r\nhost: a\r\nx-a: b\xffc\r\n\r\n"),
        one("tab in a value", "GET / HTTP/1.1\r\nhost: a\r\nx-a: b\tc\r\n\r\n"),
        one("spaces around a value", "GET / HTTP/1.1\r\nhost: a\r\nx-a: \t b \t\r\n\r\n"),
        get("empty value", "x-a:\r\n"),
        get("underscore", "x_a: b\r\n"),
        get("same header twice", "x-a: b\r\nx-a: c\r\n"),
        get("connection names a header", "connection: x-hop\r\nx-hop: 1\r\n"),
        get(
            "connection names a trusted header",
            "connection: x-forwarded-for\r\nx-forwarded-for: 1.2.3.4\r\n",
        ),
        get("connection close", "connection: close\r\n"),
        get("connection keep-alive", "connection: keep-alive\r\nkeep-alive: timeout=5\r\n"),
        get("proxy-connection", "proxy-connection: keep-alive\r\n"),
        get("te", "te: trailers, deflate\r\nconnection: te\r\n"),
        get("te gzip", "te: gzip\r\n"),
        get("upgrade websocket", "connection: upgrade\r\nupgrade: websocket\r\n"),
        get("upgrade without connection", "upgrade: websocket\r\n"),
        get(
            "upgrade h2c",
            "connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n",
        ),
        get("expect something", "expect: something\r\n"),
        get(
            "envoy headers",
            "x-envoy-internal: true\r\nx-envoy-retry-on: 5xx\r\nx-envoy-upstream-rq-timeout-ms: 5\r\nx-envoy-original-path: /a\r\n",
        ),
        get("forwarded for", "x-forwarded-for: 1.2.3.4, 10.0.0.1\r\nx-forwarded-proto: https\r\n"),
        get("bad forwarded proto", "x-forwarded-proto: ftp\r\n"),
        get("request id", "x-request-id: mine\r\n"),
        get("client certificate", "x-forwarded-client-cert: By=a\r\n"),
        get("cookies", "cookie: a=b\r\ncookie: c=d\r\n"),
        one("99 headers", format!("GET /direct HTTP/1.1\r\nhost: a\r\n{}\r\n", many(98))),
        one("101 headers", format!("GET /direct HTTP/1.1\r\nhost: a\r\n{}\r\n", many(101))),
        one(
            "50 KiB of headers",
            format!("GET /direct HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "x".repeat(50 * 1024)),
        ),
        one(
            "70 KiB of headers",
            format!("GET /direct HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "x".repeat(70 * 1024)),
        ),
        one(
            "1 MiB of headers",
            format!("GET /direct HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "x".repeat(1024 * 1024)),
        ),
    ]
}

fn many(n: usize) -> String {
    (0..n).map(|n| format!("x-{n}: {n}\r\n")).collect()
}

fn targets() -> Vec<Case> {
    let all = vec![
        target("absolute", "http://b.example/x"),
        target("absolute https", "https://b.example/x"),
        target("absolute without path", "http://b.example"),
        target("absolute with query only", "http://b.example?a=b"),
        target("absolute of another scheme", "ftp://b.example/x"),
        target("absolute with user", "http://u:p@b.example/x"),
        target("no slash", "x"),
        target("authority form", "a:80"),
        target("star", "*"),
        target("query", "/x?a=b&c=%20d"),
        target("empty query", "/x?"),
        target("two questions", "/x?a?b"),
        target("fragment", "/x#y"),
        target("encoded", "/%61%20%2f%zz"),
        target("double slash", "//x//y"),
        target("dots", "/a/../b/./c"),
        target("encoded dots", "/a/%2e%2e/b"),
        target("backslash", "/a\\..\\b"),
        target("high bytes", "/é"),
        target("quotes", "/\"x\""),
        target("braces", "/{x}|^`"),
        target("long", &format!("/{}", "x".repeat(8000))),
        target("very long", &format!("/{}", "x".repeat(70_000))),
        target("direct", "/direct"),
        target("moved", "/moved?a=b"),
        target("https", "/https?a=b"),
        target("missing cluster", "/missing"),
        target("dead", "/dead"),
        target("empty cluster", "/empty-cluster"),
        target("rewrite", "/old/x?y"),
        target("only get", "/only-get"),
        one("head of direct", "HEAD /direct HTTP/1.1\r\nhost: a\r\n\r\n"),
        one("head of missing", "HEAD /missing HTTP/1.1\r\nhost: a\r\n\r\n"),
        one(
            "grpc of missing",
            "POST /missing HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n\r\n",
        ),
        one(
            "grpc of dead",
            "POST /dead HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n\r\n",
        ),
        one("body to direct", "POST /direct HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc"),
        one(
            "chunks to direct",
            "POST /direct HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        ),
    ];
    all
}

/// Targets for listeners that normalise paths.
fn normalised() -> Vec<Case> {
    let mut all = Vec::new();
    for (listener, paths) in [
        (
            "strict",
            &[
                "/a/../b",
                "/a/%2e%2e/b",
                "/../../etc",
                "//a///b",
                "/a/./b",
                "/a\\..\\b",
                "/a/%2E/b",
                "/%41%5a%7e",
                "/a%2fb",
                "/a/..",
                "/a/b/../",
                "/a?x=/../b",
                "/./direct",
                "/%64irect",
                "/a;b/../c",
                "/a/..;/b",
                "/%",
                "/%zz",
                "/%00",
                "/a%",
                "/admin/../direct",
                "/a/..;x/b",
                "/a/.;/b",
                "/a/..;",
                "/a/%2e%2e;/b",
                "/..;/b",
                "/a/b;x/../c",
                "/a/..%3b/b",
                "/a/;/b",
                "/a/...;/b",
                "/a/..;x=1;y=2/b",
                "/a;/b",
                "/a/b;c/d",
                "/a//../b",
                "/é/..",
                "/a/.%2e/b",
                "/...",
                "/a/.../b",
                "/%25%32%65",
                "http://h/a/../b",
            ][..],
        ),
        ("reject-escaped", &["/a%2fb", "/a%5Cb", "/a?b=%2f", "/ok"]),
        ("unescape", &["/a%2Fb", "/a%5cb", "/a%2f..%2fb", "/a%2f%2fb"]),
        ("unescape-redirect", &["/a%2Fb", "/a%5cb?c=d", "/a/b"]),
    ] {
        for path in paths {
            // Names live as long as the test.
            let name: &'static str = Box::leak(format!("{listener} {path}").into_boxed_str());
            all.push(target(name, path).on(listener));
        }
    }
    all
}

fn framing() -> Vec<Case> {
    let post = |name, rest: &str| one(name, format!("POST / HTTP/1.1\r\nhost: a\r\n{rest}"));
    vec![
        post("chunked", "transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
        post("chunked in capitals", "Transfer-Encoding: CHUNKED\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
        post("chunk extensions", "transfer-encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\n\r\n"),
        post("chunk trailers", "transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-t: 1\r\n\r\n"),
        post("bad chunk size", "transfer-encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n"),
        post("huge chunk size", "transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\nabc\r\n0\r\n\r\n"),
        post("chunk without end", "transfer-encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n"),
        post("chunk with bare line feed", "transfer-encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n"),
        post("negative chunk", "transfer-encoding: chunked\r\n\r\n-3\r\nabc\r\n0\r\n\r\n"),
        post("chunk size with 0x", "transfer-encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n"),
        post("chunk size with a space", "transfer-encoding: chunked\r\n\r\n3 \r\nabc\r\n0\r\n\r\n"),
        post(
            "length and chunked",
            "content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        ),
        post(
            "chunked and length",
            "transfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        ),
        post("two lengths", "content-length: 3\r\ncontent-length: 4\r\n\r\nabcd"),
        post("same length twice", "content-length: 3\r\ncontent-length: 3\r\n\r\nabc"),
        post("list of lengths", "content-length: 3, 3\r\n\r\nabc"),
        post("negative length", "content-length: -1\r\n\r\n"),
        post("plus length", "content-length: +3\r\n\r\nabc"),
        post("hexadecimal length", "content-length: 0x3\r\n\r\nabc"),
        post("empty length", "content-length:\r\n\r\n"),
        post("huge length", "content-length: 99999999999999999999\r\n\r\nabc"),
        post("length with spaces", "content-length:  3 \r\n\r\nabc"),
        post("gzip and chunked", "transfer-encoding: gzip, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
        post("chunked and gzip", "transfer-encoding: chunked, gzip\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
        post("identity", "transfer-encoding: identity\r\ncontent-length: 3\r\n\r\nabc"),
        post("unknown coding", "transfer-encoding: x\r\n\r\nabc"),
        post(
            "chunked twice",
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        ),
        post("chunked in a list twice", "transfer-encoding: chunked, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
        post("coding with a vertical tab", "transfer-encoding: \x0bchunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
        one("chunked get", "GET / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
        one("chunked head", "HEAD / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
        one("http 1.0 chunked", "POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n")
            .on("http10"),
    ]
}

/// Bodies that come in parts.
fn parts() -> Vec<Case> {
    vec![
        steps(
            "expect continue",
            vec![
                send("POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n"),
                Step::Answers(vec!["POST"]),
                send("abc"),
                Step::Answers(vec!["POST"]),
                Step::Probe,
            ],
        ),
        steps(
            "expect continue with the body",
            vec![
                send("POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\nabc"),
                Step::Answers(vec!["POST", "POST"]),
                Step::Probe,
            ],
        ),
        steps(
            "expect continue in capitals",
            vec![
                send("POST / HTTP/1.1\r\nhost: a\r\nExpect: 100-Continue\r\ncontent-length: 3\r\n\r\n"),
                Step::Answers(vec!["POST"]),
                send("abc"),
                Step::Answers(vec!["POST"]),
                Step::Probe,
            ],
        ),
        steps(
            "big body",
            vec![
                send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3000000\r\n\r\n"),
                send(vec![b'x'; 3_000_000]),
                Step::Answers(vec!["POST"]),
                Step::Probe,
            ],
        ),
        steps(
            "body in pieces",
            vec![
                send("POST / HTTP/1.1\r\nhost: a\r\ncontent-le"),
                send("ngth: 6\r\n"),
                send("\r\nab"),
                send("cd"),
                send("ef"),
                Step::Answers(vec!["POST"]),
                Step::Probe,
            ],
        ),
        steps(
            "smuggled request",
            vec![
                send(
                    "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /admin HTTP/1.1\r\nhost: a\r\n\r\n",
                ),
                Step::Answers(vec!["POST"]),
                Step::Ended,
            ],
        ),
    ]
}

fn answers() -> Vec<Case> {
    let mut all: Vec<Case> = [
        "empty",
        "close",
        "close-silently",
        "until-close",
        "http10",
        "http10-keep-alive",
        "garbage",
        "version-2",
        "short",
        "short-head",
        "bad-chunk",
        "cut-chunks",
        "chunks",
        "trailers",
        "length-and-chunked",
        "two-lengths",
        "same-lengths",
        "bad-length",
        "gzip-coding",
        "204",
        "204-length",
        "304",
        "304-length",
        "205",
        "100-200",
        "102-200",
        "103-200",
        "101",
        "500",
        "600",
        "999",
        "099",
        "no-reason",
        "other-reason",
        "bare-lf",
        "folded",
        "space-before-colon",
        "headers",
        "upgrade-header",
        "trailing",
        "big",
        "big-head",
        "head-50k",
        "101-headers",
        "90-headers",
        "early-close",
        "early-reset",
    ]
    .into_iter()
    .map(|name| act(name, name))
    .collect();
    all.extend([
        one("head with length", "HEAD / HTTP/1.1\r\nhost: a\r\nact: head-length\r\n\r\n"),
        one("head of chunks", "HEAD / HTTP/1.1\r\nhost: a\r\nact: head-chunked\r\n\r\n"),
        one("head of 204", "HEAD / HTTP/1.1\r\nhost: a\r\nact: 204\r\n\r\n"),
        one(
            "post and early close",
            "POST / HTTP/1.1\r\nhost: a\r\nact: early-close\r\ncontent-length: 3\r\n\r\nabc",
        ),
        steps(
            "early answer to a body that never ends",
            vec![
                send("POST / HTTP/1.1\r\nhost: a\r\nact: early-413\r\ncontent-length: 1000000\r\n\r\nabc"),
                Step::Answers(vec!["POST"]),
                Step::Ended,
            ],
        ),
        one("retried", "GET /retry HTTP/1.1\r\nhost: a\r\nact: 500\r\n\r\n"),
        one("retried reset", "GET /retry HTTP/1.1\r\nhost: a\r\nact: early-close\r\n\r\n"),
        one("timeout", "GET /timeout HTTP/1.1\r\nhost: a\r\nact: silence\r\n\r\n"),
        one(
            "post timeout",
            "POST /timeout HTTP/1.1\r\nhost: a\r\nact: silence\r\ncontent-length: 1\r\n\r\na",
        ),
        one("chunks to http 1.0", "GET / HTTP/1.0\r\nhost: a\r\nact: chunks\r\n\r\n").on("http10"),
        one("until close to http 1.0", "GET / HTTP/1.0\r\nhost: a\r\nact: until-close\r\n\r\n").on("http10"),
    ]);
    all
}

fn connections() -> Vec<Case> {
    let two = "GET /1 HTTP/1.1\r\nhost: a\r\n\r\nGET /2 HTTP/1.1\r\nhost: a\r\n\r\n";
    vec![
        steps("pipelined", vec![send(two), Step::Answers(vec!["GET", "GET"]), Step::Probe]),
        steps("pipelined after a body", vec![
            send(format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc{two}")),
            Step::Answers(vec!["POST", "GET", "GET"]), Step::Probe,
        ]),
        steps("pipelined after close", vec![
            send(format!("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n{two}")),
            Step::Answers(vec!["GET"]), Step::Ended,
        ]),
        steps("pipelined garbage", vec![
            send("GET / HTTP/1.1\r\nhost: a\r\n\r\nwhat is this?\r\n\r\n"), Step::Answers(vec!["GET", "GET"]), Step::Ended,
        ]),
        steps("half close", vec![
            send("GET / HTTP/1.1\r\nhost: a\r\n\r\n"), Step::Answers(vec!["GET"]), Step::HalfClose, Step::Ended,
        ]),
        steps("half close in the head", vec![
            send("GET / HTTP/1.1\r\nho"), Step::HalfClose, Step::Answers(vec!["GET"]), Step::Ended,
        ]),
        steps("half close in the body", vec![
            send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nabc"), Step::HalfClose, Step::Answers(vec!["POST"]), Step::Ended,
        ]),
        steps("silence", vec![Step::HalfClose, Step::Ended]),
        steps("idle", vec![Step::Ended]).on("idle"),
        steps("idle after a request", vec![send("GET / HTTP/1.1\r\nhost: a\r\n\r\n"), Step::Answers(vec!["GET"]), Step::Ended]).on("idle"),
        steps("idle in the head", vec![send("GET / HTTP/1.1\r\nho"), Step::Answers(vec!["GET"]), Step::Ended]).on("idle"),
        steps("idle in the body", vec![
            send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nabc"), Step::Answers(vec!["POST"]), Step::Ended,
        ]).on("idle"),
        steps("idle service", vec![
            send("GET / HTTP/1.1\r\nhost: a\r\nact: silence\r\n\r\n"), Step::Answers(vec!["GET"]), Step::Ended,
        ]).on("idle"),
        steps("slow head", vec![send("GET / HTTP/1.1\r\nho"), Step::Answers(vec!["GET"]), Step::Ended]).on("slow-head"),
        steps(
            "idle where heads must come soon",
            vec![
                send("GET / HTTP/1.1\r\nhost: a\r\n\r\n"),
                Step::Answers(vec!["GET"]),
                Step::Pause(std::time::Duration::from_millis(1500)),
                Step::Probe,
            ],
        )
        .on("slow-head"),
        steps("slow request", vec![
            send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nabc"), Step::Answers(vec!["POST"]), Step::Ended,
        ]).on("slow-request"),
        steps("most requests", vec![
            send("GET /1 HTTP/1.1\r\nhost: a\r\n\r\n"), Step::Answers(vec!["GET"]),
            send("GET /2 HTTP/1.1\r\nhost: a\r\n\r\n"), Step::Answers(vec!["GET"]), Step::Ended,
        ]).on("one-request"),
        steps("tcp", vec![send("GET /tcp HTTP/1.1\r\nhost: a\r\n\r\n"), Step::Answers(vec!["GET"]), Step::HalfClose, Step::Ended]).on("tcp"),
        steps("tcp to nobody", vec![Step::Ended]).on("tcp-dead"),
        steps("websocket", vec![
            send("GET / HTTP/1.1\r\nhost: a\r\nact: websocket\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n"),
            Step::Answers(vec!["GET"]), Step::Raw(5), send("ping"), Step::Raw(4), Step::HalfClose, Step::Ended,
        ]).on("upgrades"),
        steps("websocket with data at once", vec![
            send("GET / HTTP/1.1\r\nhost: a\r\nact: websocket\r\nconnection: keep-alive, Upgrade\r\nupgrade: WebSocket\r\n\r\nping"),
            Step::Answers(vec!["GET"]), Step::Raw(9), Step::HalfClose, Step::Ended,
        ]).on("upgrades"),
        get("websocket refused by the service", "connection: upgrade\r\nupgrade: websocket\r\n").on("upgrades"),
        get("another upgrade", "connection: upgrade\r\nupgrade: spdy\r\n").on("upgrades"),
    ]
}

/// CONNECT of HTTP/1.1 clients; what is sent to the service in it, and how much comes back.
fn tunnels() -> Vec<Case> {
    let connect = |name, host: &str, sent: &[&str], back: usize| {
        let mut all = vec![
            send(format!("CONNECT {host} HTTP/1.1\r\nhost: {host}\r\n\r\n")),
            Step::Answers(vec!["CONNECT"]),
        ];
        all.extend(sent.iter().map(send));
        all.extend([Step::Raw(back), Step::HalfClose, Step::Ended]);
        steps(name, all).on("tunnels")
    };
    let refused = |name, host: &str, more: &str| {
        let head = format!("CONNECT {host} HTTP/1.1\r\nhost: {host}\r\n{more}\r\n");
        steps(name, vec![send(head), Step::Answers(vec!["GET"]), Step::Ended]).on("tunnels")
    };
    let websocket = |name, path: &str, back: usize| {
        steps(name, vec![
            send(format!("GET {path} HTTP/1.1\r\nhost: a\r\nact: websocket\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n")),
            Step::Answers(vec!["GET"]), send("ping"), Step::Raw(back), Step::HalfClose, Step::Ended,
        ])
        .on("tunnels")
    };
    let inner = "GET /inner HTTP/1.1\r\nhost: inner\r\nact: empty\r\n\r\n";
    vec![
        connect("connect that ends here", "ends:443", &[inner], 38),
        steps(
            "connect with data at once",
            vec![
                send(format!("CONNECT ends:443 HTTP/1.1\r\nhost: ends:443\r\n\r\n{inner}")),
                Step::Answers(vec!["CONNECT"]),
                Step::Raw(38),
                Step::HalfClose,
                Step::Ended,
            ],
        )
        .on("tunnels"),
        connect("connect that goes on", "on:443", &["ping"], 30),
        connect("connect that goes on over http2", "on2:443", &["ping"], 16),
        refused("connect that the service refuses", "on:443", "act: 500\r\n"),
        refused("connect to nobody", "dead:443", ""),
        refused("connect to an empty cluster", "empty:443", ""),
        refused("connect to a missing cluster", "missing:443", ""),
        refused("connect where it is off", "off:443", ""),
        refused("connect without a route", "other:443", ""),
        refused("connect without a port", "ends", ""),
        websocket("websocket to http2", "/http2/x", 34),
        websocket("websocket where it is off", "/off", 9),
    ]
}

fn options() -> Vec<Case> {
    let ten = |name, more: &str| one(name, format!("GET / HTTP/1.0\r\n{more}\r\n")).on("http10");
    vec![
        ten("1.0", ""),
        ten("1.0 with host", "host: a\r\n"),
        ten("1.0 keep-alive", "host: a\r\nconnection: keep-alive\r\n"),
        one("custom method allowed", "BREW / HTTP/1.1\r\nhost: a\r\n\r\n").on("methods"),
        get("edge", "").on("edge"),
        get("edge forwarded", "x-forwarded-for: 1.2.3.4\r\nx-forwarded-proto: https\r\nx-request-id: mine\r\nx-envoy-internal: true\r\nx-envoy-retry-on: 5xx\r\n").on("edge"),
        get("hops", "x-forwarded-for: 1.2.3.4, 5.6.7.8\r\nx-forwarded-proto: https\r\n").on("hops"),
        get("underscore refused", "x_a: b\r\n").on("no-underscores"),
        get("underscore dropped", "x_a: b\r\n").on("drop-underscores"),
        one("port stripped", "GET / HTTP/1.1\r\nhost: a:8080\r\n\r\n").on("strip-port"),
        get("small heads", &format!("x: {}\r\n", "x".repeat(9000))).on("small-heads"),
        get("few headers", &many(10)).on("few-headers"),
        get("1.1 to http2", "").on("http2-only"),
    ]
}
