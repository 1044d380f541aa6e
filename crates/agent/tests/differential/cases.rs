//! What is sent, and what is looked at.

mod answers;
mod heads;

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

fn many(n: usize) -> String {
    (0..n).map(|n| format!("x-{n}: {n}\r\n")).collect()
}

/// hyper answers what it cannot parse itself, with a status and no text.
const REFUSED: &str = "the same refusal, with less text";
const STRICT: &str = "RFC 9112 lets a server refuse it, and nobody sends it in good faith";
const VERSION: &str =
    "an HTTP version that is none is a malformed request (400), not one to be upgraded (426)";

const SILENT: &str = "hyper closes without 408 when a head does not come; RFC 9112, section 9.5 lets it";

/// What may differ, and why that is right.
const KNOWN: [(&str, Compare); 61] = [
    ("two hosts", Compare::Nothing("Envoy joins them to `a,b`; RFC 9112, section 3.2 asks for 400")),
    ("the same host twice", Compare::Nothing("as above")),
    ("bad method", Compare::Outcome(REFUSED)),
    ("two spaces in the line", Compare::Nothing(STRICT)),
    ("tab in the line", Compare::Nothing(STRICT)),
    ("space at the line's end", Compare::Nothing(STRICT)),
    ("obsolete folding", Compare::Nothing(STRICT)),
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
    ("connection names a trusted header", Compare::Outcome(REFUSED)),
    ("101 headers", Compare::Outcome(REFUSED)),
    ("70 KiB of headers", Compare::Outcome(REFUSED)),
    ("1 MiB of headers", Compare::Outcome(REFUSED)),
    ("small heads", Compare::Outcome(REFUSED)),
    ("few headers", Compare::Outcome(REFUSED)),
    ("very long", Compare::Outcome(REFUSED)),
    ("pipelined garbage", Compare::Outcome(REFUSED)),
    ("two lengths", Compare::Outcome(REFUSED)),
    ("list of lengths", Compare::Outcome(REFUSED)),
    ("negative length", Compare::Outcome(REFUSED)),
    ("plus length", Compare::Outcome(REFUSED)),
    ("hexadecimal length", Compare::Outcome(REFUSED)),
    ("empty length", Compare::Outcome(REFUSED)),
    ("huge length", Compare::Outcome(REFUSED)),
    ("identity", Compare::Outcome(REFUSED)),
    ("coding with a vertical tab", Compare::Outcome(REFUSED)),
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
    let mut all = heads::requests();
    all.extend(heads::targets());
    all.extend(heads::normalised());
    all.extend(heads::framing());
    all.extend(answers::parts());
    all.extend(answers::answers());
    all.extend(answers::connections());
    all.extend(answers::options());
    all.extend(answers::tunnels());
    for case in &mut all {
        if let Some((_, compare)) = KNOWN.iter().find(|(name, _)| *name == case.name) {
            case.compare = *compare;
        }
    }
    all
}
