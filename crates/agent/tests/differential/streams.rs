//! Single streams of HTTP/2, spoken without hyper, which hides interim answers and takes some resets for ends: what goes before an
//! answer (RFC 9110, section 15.2), on both sides and in all pairs of versions, and streams that break off in the middle.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, Request, Response, StatusCode};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

use crate::proxies::{self, Proxy, both, listener};
use crate::wire::{Wire, comparable};

/// Nothing takes longer than this.
const LIMIT: Duration = Duration::from_secs(10);

/// Long enough for what is not to come.
const MOMENT: Duration = Duration::from_millis(500);

/// A service that does for each attempt what the header `act` says: words between `-`, attempts between `,`.
async fn start_service() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(act(request, respond));
                }
            });
        }
    });
    address
}

async fn act(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let (head, mut body) = request.into_parts();
    let header =
        |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let attempt: usize = header("x-envoy-attempt-count").parse().unwrap_or(1);
    let acts: Vec<&str> = header("act").split(',').collect();
    let mut got = String::new();
    for word in acts[(attempt - 1).min(acts.len() - 1)].split('-') {
        match word {
            "wait" => tokio::time::sleep(Duration::from_millis(100)).await,
            "late" => tokio::time::sleep(Duration::from_millis(450)).await,
            "read" => got = read(&mut body).await,
            "reset" => return respond.send_reset(Reason::INTERNAL_ERROR),
            "forbid" => return respond.send_reset(Reason::PROTOCOL_ERROR),
            "refuse" => return respond.send_reset(Reason::REFUSED_STREAM),
            "cut" | "enough" | "part" | "forbidden" => {
                let mut stream = respond.send_response(Response::new(()), false).unwrap();
                stream.send_data("part".into(), false).unwrap();
                if word == "part" {
                    read(&mut body).await;
                    std::future::poll_fn(|cx| stream.poll_reset(cx)).await.unwrap();
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
                let reason = match word {
                    "cut" => Reason::CANCEL,
                    "forbidden" => Reason::PROTOCOL_ERROR,
                    _ => Reason::NO_ERROR,
                };
                return stream.send_reset(reason);
            }
            status => {
                let status: StatusCode = status.parse().unwrap();
                let mut answer = Response::new(());
                *answer.status_mut() = status;
                if status.is_informational() {
                    answer.headers_mut().insert("x-hint", "a".parse().unwrap());
                    respond.send_informational(answer).unwrap();
                    tokio::time::sleep(Duration::from_millis(30)).await;
                    continue;
                }
                let text = format!("expect={} attempt={attempt} {got}", header("expect"));
                // The proxy may have given it up.
                let Ok(mut stream) = respond.send_response(answer, false) else { return };
                let _ = stream.send_data(text.into(), true);
                // Until the client has said all it has to.
                read(&mut body).await;
                return;
            }
        }
    }
}

/// A body to its end, and how it ended.
async fn read(body: &mut RecvStream) -> String {
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        match data {
            Ok(data) => {
                let _ = body.flow_control().release_capacity(data.len());
                bytes.extend_from_slice(&data);
            }
            Err(_) => return format!("{} CUT", String::from_utf8_lossy(&bytes)),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What a client does.
#[derive(Clone, Copy)]
struct Asked {
    name: &'static str,
    listener: &'static str,
    path: &'static str,
    act: &'static str,
    expects: bool,
    /// The body is sent when so many interim answers have come, or will not come.
    after: usize,
}

/// The conversation of one request over HTTP/2.
async fn ask(address: SocketAddr, asked: Asked) -> String {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(async move { drop(connection.await) });
    let uri = format!("http://a{}", asked.path);
    let mut request = Request::post(uri).header("x-case", asked.name).header("act", asked.act);
    if asked.expects {
        request = request.header("expect", "100-continue");
    }
    let (mut response, mut body) = sender.send_request(request.body(()).unwrap(), false).unwrap();
    let mut said = String::new();
    for _ in 0..asked.after {
        let next = std::future::poll_fn(|cx| response.poll_informational(cx));
        match tokio::time::timeout(MOMENT, next).await {
            Err(_) => said += "nothing\n",
            Ok(Some(Ok(answer))) => tell(&mut said, answer.status(), answer.headers()),
            Ok(_) => break,
        }
    }
    // A stream that was reset takes none.
    let _ = body.send_data("abc".into(), true);
    let answered = async {
        // What else is said before the answer.
        while let Some(Ok(answer)) = std::future::poll_fn(|cx| response.poll_informational(cx)).await {
            tell(&mut said, answer.status(), answer.headers());
        }
        match response.await {
            Err(error) => writeln!(said, "reset: {}", error.is_reset()).unwrap(),
            Ok(answer) => {
                let (head, mut body) = answer.into_parts();
                tell(&mut said, head.status, &head.headers);
                said += &read(&mut body).await;
                said += "\n";
            }
        }
    };
    if tokio::time::timeout(LIMIT, answered).await.is_err() {
        return format!("{said}no answer in {LIMIT:?}");
    }
    said
}

fn tell(said: &mut String, status: StatusCode, headers: &HeaderMap) {
    let mut lines: Vec<String> = headers
        .iter()
        .map(|(name, value)| comparable(&format!("{name}: {}", String::from_utf8_lossy(value.as_bytes()))))
        .collect();
    lines.sort_unstable();
    writeln!(said, "{} {}", status.as_u16(), lines.join(" | ")).unwrap();
}

/// The same over HTTP/1.
async fn ask_http1(address: SocketAddr, asked: Asked) -> String {
    let mut wire = Wire::new(TcpStream::connect(address).await.unwrap());
    let expect = if asked.expects { "expect: 100-continue\r\n" } else { "" };
    let Asked { name, path, act, .. } = asked;
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: a\r\nx-case: {name}\r\nact: {act}\r\n{expect}content-length: 3\r\n\r\n"
    );
    wire.send(head.as_bytes()).await;
    let mut said = String::new();
    for _ in 0..asked.after {
        match tokio::time::timeout(MOMENT, wire.answer("POST")).await {
            Err(_) => said += "nothing\n",
            Ok(answer) => said += &answer.unwrap_or_default(),
        }
    }
    wire.send(b"abc").await;
    while let Ok(Some(answer)) = tokio::time::timeout(LIMIT, wire.answer("POST")).await {
        said += &answer;
        if !answer.starts_with("HTTP/1.1 1") {
            break;
        }
    }
    said
}

/// Both proxies, with a listener that answers expectations itself and one that passes on what the service says.
async fn start(folder: &std::path::Path) -> [Proxy; 2] {
    let (http1, http2) = (crate::service::start().await, start_service().await);
    let routes = |cluster: &str| {
        let policy = json!({ "retry_on": "5xx,reset", "num_retries": 1, "retry_back_off": { "base_interval": "0.001s", "max_interval": "0.002s" } });
        json!([
            { "match": { "prefix": "/direct" }, "direct_response": { "status": 403, "body": { "inline_string": "no" } } },
            { "match": { "prefix": "/timeout" }, "route": { "cluster": cluster, "timeout": "0.4s" } },
            { "match": { "prefix": "/try" }, "route": { "cluster": cluster, "retry_policy": { "retry_on": "5xx", "num_retries": 1, "per_try_timeout": "0.3s" } } },
            { "match": { "prefix": "/hedged" }, "route": { "cluster": cluster, "hedge_policy": { "hedge_on_per_try_timeout": true }, "retry_policy": { "retry_on": "5xx", "num_retries": 1, "per_try_timeout": "0.3s" } } },
            { "match": { "prefix": "/silent" }, "route": { "cluster": cluster, "timeout": "0.7s", "retry_policy": { "retry_on": "5xx", "num_retries": 1, "per_try_idle_timeout": "0.3s" } } },
            { "match": { "prefix": "/once" }, "route": { "cluster": cluster } },
            { "match": { "prefix": "/idle" }, "route": { "cluster": cluster, "idle_timeout": "0.3s" } },
            { "match": { "prefix": "/" }, "route": { "cluster": cluster, "retry_policy": policy } },
        ])
    };
    let hosts = |cluster: &str| json!({ "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "include_request_attempt_count": true, "routes": routes(cluster) }] } });
    let passed = |cluster: &str| proxies::merged(hosts(cluster), json!({ "proxy_100_continue": true }));
    let http2_options = json!({ "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": { "http2_protocol_options": {} },
    } } });
    let names = ["own", "own1", "passed", "passed1"];
    both(folder, &names, |ports, log| {
        let listeners = [
            ("own", hosts("two")),
            ("own1", hosts("one")),
            ("passed", passed("two")),
            ("passed1", passed("one")),
        ];
        let clusters = vec![
            proxies::cluster("one", json!({}), &[http1]),
            proxies::cluster("two", http2_options.clone(), &[http2]),
        ];
        let listeners = listeners.map(|(name, more)| listener(name, ports[name], more, log)).into();
        [listeners, clusters]
    })
    .await
}

const STATS: [&str; 2] = [
    r"^cluster\.(one|two)\.upstream_rq_(retry|total|completed|timeout|rx_reset|tx_reset|\d\d\d|\dxx)$",
    r"^http\.(own|own1|passed|passed1)\.downstream_rq_(completed|total|rx_reset|tx_reset|\dxx)$",
];

/// Numbers of a proxy as they are now.
async fn stats(proxy: &Proxy) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    for filter in STATS {
        let page = format!("/stats?usedonly&filter={}", filter.replace('\\', "%5C"));
        let page = proxy.admin(&page).await.unwrap_or_default();
        let number = |line: &str| {
            line.split_once(": ")
                .filter(|(name, _)| name.contains('.'))
                .and_then(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
        };
        all.extend(page.lines().filter_map(number));
    }
    all
}

fn log_lines(text: &str) -> Vec<String> {
    let cut = |line: &str| {
        let (_, rest) = line.split_once(' ')?;
        let (before, after) = rest.split_once(" host=")?;
        Some(format!("{before} {}", after.split_once(' ')?.1))
    };
    text.lines().filter_map(cut).collect()
}

#[allow(clippy::too_many_lines)] // A table of cases.
fn interim() -> Vec<Asked> {
    let case =
        |name, listener, path, act, expects, after| Asked { name, listener, path, act, expects, after };
    vec![
        case("100 by the proxy", "own", "/", "read-200", true, 1),
        case("100 by the proxy alone", "own", "/", "100-103-read-200", true, 1),
        case("100 by the proxy, then its answer", "own", "/direct", "", true, 2),
        case("100 by the proxy, then a refusal", "own", "/", "417", true, 2),
        case("100 by the proxy, then retries", "own", "/", "read-503,read-200", true, 1),
        case("100 by the proxy to HTTP/1", "own1", "/", "", true, 1),
        case("nobody expects", "own", "/", "103-read-200", false, 1),
        case("105 that is not passed on", "own", "/", "105-read-200", false, 0),
        case("a failure after what is not passed on", "own", "/", "102-read-503,read-200", false, 0),
        case("a failure, then what is not passed on", "own", "/", "read-503,104-read-200", false, 0),
        case("a reset after what is not passed on", "own", "/", "103-wait-reset,read-200", false, 0),
        case("a time-out after what is not passed on", "own", "/timeout", "100-late-200", false, 0),
        case("a time-out of a try after what is not passed on", "own", "/try", "100-read-late-200", false, 0),
        case("no silence", "own", "/silent", "read-wait-wait-100-wait-wait-200", false, 0),
        case("silence after what is not passed on", "own", "/silent", "100-read-late-200", false, 0),
        case("hints by the HTTP/1 service that are not passed on", "own1", "/", "103-100-then-", false, 0),
        case("100 by the service", "passed", "/", "100-read-200", true, 1),
        case("100 by the service, unasked", "passed", "/", "100-read-200", false, 1),
        case("100 by the service, twice", "passed", "/", "100-100-read-200", true, 2),
        case("hints by the service", "passed", "/", "103-100-read-200", true, 2),
        case("102 by the service", "passed", "/", "102-read-200", true, 1),
        case("104 by the service", "passed", "/", "104-read-200", true, 1),
        case("105 by the service", "passed", "/", "105-read-200", true, 1),
        case("100 by nobody", "passed", "/", "read-200", true, 1),
        case("a refusal by the service", "passed", "/", "417", true, 1),
        case("a refusal after 100", "passed", "/", "100-417", true, 2),
        case("a direct answer", "passed", "/direct", "", true, 1),
        case("a failure, then 100", "passed", "/", "503,100-read-200", true, 1),
        case("no retries after 100", "passed", "/", "100-read-503,read-200", true, 1),
        case("no retries of resets after 100", "passed", "/", "100-wait-reset,read-200", true, 1),
        case("a time-out after 100", "passed", "/timeout", "100-late-200", true, 1),
        case("a time-out of a try after 100", "passed", "/try", "100-read-late-200", true, 1),
        case("no silence, but 100", "passed", "/silent", "read-wait-wait-100-wait-wait-200", false, 0),
        case("silence after 100", "passed", "/silent", "100-read-late-200", true, 1),
        case("100 by the HTTP/1 service", "passed1", "/", "100-then-", true, 1),
        case("100 with headers by the HTTP/1 service", "passed1", "/", "100x-then-", true, 1),
        case("hints by the HTTP/1 service", "passed1", "/", "103-100-then-", true, 2),
        case("100 by nobody over HTTP/1", "passed1", "/", "", true, 1),
        case("a refusal by the HTTP/1 service after 100", "passed1", "/", "100-then-early-417", true, 2),
    ]
}

/// The same where several attempts may be under way.
fn hedged_interim() -> Vec<Asked> {
    let mut cases = Vec::new();
    for listener in ["own", "passed"] {
        let mut case =
            |name, act| cases.push(Asked { name, listener, path: "/hedged", act, expects: false, after: 0 });
        case("hedged, something before the answer", "103-read-200");
        case("hedged, no retries of a failure", "102-read-503,read-200");
        case("hedged, no retries of a reset", "103-wait-reset,read-200");
        case("hedged, a failure, then something", "read-503,104-read-200");
        case("hedged, nobody is late who spoke", "100-late-200,read-200");
        case("hedged, the first speaks late", "late-103-late-200,wait-wait-wait-wait-200");
        case("hedged, the second speaks", "late-wait-wait-200,wait-103-late-200");
        case("hedged, the second speaks and fails", "late-wait-wait-200,wait-103-wait-503");
        case("hedged, the second speaks and is reset", "late-wait-wait-200,wait-103-wait-reset");
        case("hedged, both speak", "late-103-late-200,103-late-200");
        case("hedged, what does not count", "late-105-late-200,wait-wait-wait-wait-200");
    }
    for listener in ["own1", "passed1"] {
        let mut case =
            |name, act| cases.push(Asked { name, listener, path: "/hedged", act, expects: false, after: 0 });
        case("hedged, something before the HTTP/1 service's answer", "103-then-");
        case("hedged, no retries after what the HTTP/1 service says", "102-then-503");
        case("hedged, the HTTP/1 service is not late that spoke", "100-then-late");
        case("hedged, the HTTP/1 service speaks late", "late-late-103-then-late");
        case("hedged, the HTTP/1 service speaks late and fails", "late-late-103-then-503");
    }
    cases
}

/// Both proxies, what they have counted so far, and how they differed.
struct Watch {
    proxies: [Proxy; 2],
    counted: [BTreeMap<String, u64>; 2],
    complaints: String,
}

impl Watch {
    async fn start(folder: &std::path::Path) -> Self {
        Self { proxies: start(folder).await, counted: Default::default(), complaints: String::new() }
    }

    /// Has both asked, one after the other, and compares what was said and counted.
    async fn compare<F: Future<Output = String>>(
        &mut self,
        name: &str,
        listener: &str,
        ask: impl Fn(SocketAddr) -> F,
    ) {
        let (mut said, mut counts) = (Vec::new(), Vec::new());
        for (proxy, before) in self.proxies.iter().zip(&mut self.counted) {
            said.push(ask(([127, 0, 0, 1], proxy.ports[listener]).into()).await);
            // The last of it may be counted after the client has it.
            tokio::time::sleep(Duration::from_millis(50)).await;
            let now = stats(proxy).await;
            let grown = now.iter().filter_map(|(name, n)| {
                let by = n - before.get(name).copied().unwrap_or(0);
                (by > 0).then(|| format!("{name}: {by}"))
            });
            counts.push(grown.collect::<Vec<_>>().join("\n"));
            *before = now;
        }
        for (what, both) in [("said", said), ("counted", counts)] {
            if both[0] != both[1] {
                let text = format!("=== {name}: {what}\n--- Envoy\n{}\n--- Lateen\n{}\n", both[0], both[1]);
                self.complaints += &text;
            }
        }
    }
}

async fn compare_logs(proxies: &[Proxy; 2]) -> String {
    let logs = [log_lines(&proxies[0].log().await), log_lines(&proxies[1].log().await)];
    let mut complaint = String::new();
    assert!(!logs[0].is_empty());
    for n in 0..logs[0].len().max(logs[1].len()) {
        let line = |kind: usize| logs[kind].get(n).map_or("nothing", String::as_str);
        if line(0) != line(1) {
            writeln!(complaint, "=== log\nEnvoy:  {}\nLateen: {}", line(0), line(1)).unwrap();
        }
    }
    complaint
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interim_answers_over_http2() {
    let folder = tempfile::tempdir().unwrap();
    let mut watch = Watch::start(folder.path()).await;
    for asked in interim().into_iter().chain(hedged_interim()) {
        watch.compare(asked.name, asked.listener, |address| ask(address, asked)).await;
        // What a client of HTTP/1 sees of a service of HTTP/2.
        if ["own", "passed"].contains(&asked.listener) {
            let name = format!("{} over HTTP/1", asked.name);
            watch.compare(&name, asked.listener, |address| ask_http1(address, asked)).await;
        }
    }
    let complaints = watch.complaints + &compare_logs(&watch.proxies).await;
    assert!(complaints.is_empty(), "\n{complaints}");
}

/// A request whose stream the client resets, or an answer whose stream the service resets, is not taken for a whole one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_break_off_are_not_whole() {
    let folder = tempfile::tempdir().unwrap();
    let mut watch = Watch::start(folder.path()).await;
    let case = |name, path, act| Asked { name, listener: "own", path, act, expects: false, after: 0 };
    let cases = [
        case("cut by the service", "/once", "read-cut"),
        case("enough for the service", "/once", "read-enough"),
        case("reset by the service", "/once", "wait-reset"),
        case("reset by the service after the body", "/once", "read-reset"),
        case("refused by the service", "/once", "read-refuse"),
        case("forbidden by the service", "/once", "read-forbid"),
        case("forbidden by the service in the middle", "/once", "read-forbidden"),
        case("refused once", "/", "read-refuse,read-200"),
        case("reset once", "/", "read-reset,read-200"),
        case("refused by an answer once", "/", "read-503,read-200"),
        case("too late", "/timeout", "read-late-200"),
        case("tried too late", "/try", "read-late-200,read-200"),
        case("silent in the middle", "/idle", "read-part"),
        case("too late in the middle", "/timeout", "read-part"),
        case("no route's answer", "/direct", ""),
    ];
    // What the service of HTTP/1 does.
    let cases1 = ["", "short", "cut-chunks", "late-early-close", "late-early-reset"];
    let cases1 = ["/once", "/"].map(|path| cases1.map(|act| (path, act)));
    let silent = ["/timeout", "/try", "/idle"].map(|path| (path, "silence"));
    let of_http1 = |(path, act)| Asked { name: act, listener: "own1", path, act, expects: false, after: 0 };
    let cases1 = cases1.into_iter().flatten().chain(silent).map(of_http1);
    for asked in cases.into_iter().chain(cases1) {
        watch.compare(asked.name, asked.listener, |address| ask(address, asked)).await;
        let name = format!("{} over HTTP/1", asked.name);
        watch.compare(&name, asked.listener, |address| ask_http1(address, asked)).await;
    }
    let complaints = watch.complaints + &compare_logs(&watch.proxies).await;
    assert!(complaints.is_empty(), "\n{complaints}");
}

/// What a service of HTTP/1 gets of a request whose client resets its stream in the middle: not a whole body.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_cancelled_does_not_end() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (got, mut received) = tokio::sync::mpsc::channel(2);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let got = got.clone();
            tokio::spawn(async move {
                let mut bytes = Vec::new();
                while !matches!(stream.read_buf(&mut bytes).await, Ok(0) | Err(_)) {
                    if bytes.ends_with(b"0\r\n\r\n") {
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                        break;
                    }
                }
                let text = String::from_utf8_lossy(&bytes).into_owned();
                got.send(text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())).await.unwrap();
            });
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let proxies = both(folder.path(), &["web"], |ports, log| {
        let routes: Value = json!({ "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "raw" } }] }] } });
        [vec![proxies::listener("web", ports["web"], routes, log)], vec![proxies::cluster("raw", json!({}), &[address])]]
    })
    .await;
    for (proxy, name) in proxies.iter().zip(["Envoy", "Lateen"]) {
        for reason in [Reason::CANCEL, Reason::NO_ERROR, Reason::INTERNAL_ERROR] {
            let stream = TcpStream::connect(("127.0.0.1", proxy.ports["web"])).await.unwrap();
            let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
            tokio::spawn(async move { drop(connection.await) });
            let request = Request::post("http://a/").body(()).unwrap();
            let (response, mut body) = sender.send_request(request, false).unwrap();
            body.send_data("half".into(), false).unwrap();
            tokio::time::sleep(MOMENT).await;
            body.send_reset(reason);
            let got =
                tokio::time::timeout(LIMIT, received.recv()).await.expect("the connection ends").unwrap();
            assert_eq!(got.as_deref(), Some("4\r\nhalf\r\n"), "{name}, {reason:?}");
            drop(response);
        }
    }
}

/// A client that doesn't answer PINGs is gone for both proxies; one that does is kept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_answer_no_pings_are_let_go_of() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let folder = tempfile::tempdir().unwrap();
    let proxies = both(folder.path(), &["web"], |ports, log| {
        let pings = json!({
            "http2_protocol_options": { "connection_keepalive": { "interval": "0.3s", "timeout": "0.5s" } },
        });
        [vec![listener("web", ports["web"], pings, log)], Vec::new()]
    })
    .await;
    for (proxy, name) in proxies.iter().zip(["Envoy", "Lateen"]) {
        let address = ("127.0.0.1", proxy.ports["web"]);
        let mut silent = TcpStream::connect(address).await.unwrap();
        silent.write_all(&crate::frames::preface(&[])).await.unwrap();
        let (mut sender, connection) =
            h2::client::handshake(TcpStream::connect(address).await.unwrap()).await.unwrap();
        tokio::spawn(async move { drop(connection.await) });
        let mut said = Vec::new();
        let ended = tokio::time::timeout(LIMIT, silent.read_to_end(&mut said)).await;
        assert!(ended.is_ok(), "{name}: it is still there");
        // Longer than any answer is waited for.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let request = Request::get("http://a/direct").body(()).unwrap();
        let (response, _) = sender.send_request(request, true).expect(name);
        let answer = tokio::time::timeout(LIMIT, response).await.expect("in time");
        assert_eq!(answer.expect(name).status(), 202, "{name}");
    }
}
