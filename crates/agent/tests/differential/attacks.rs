//! HTTP/2 clients that mean no good, on both proxies: the same is refused, the same is counted, and our memory does not grow.

use std::fmt::Write as _;
use std::time::Duration;

use futures::StreamExt as _;

use crate::frames::{
    CONTINUATION, Client, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PRIORITY, RST_STREAM, Reaction,
    SETTINGS, WINDOW_UPDATE, fields, frame, get, head, headers, preface, react,
};
use crate::proxies::Pair;

/// How long silence is waited for. Both proxies leave a client a second to notice that its connection was closed.
const PATIENCE: Duration = Duration::from_millis(1800);

/// Memory that an attack of a few megabytes may cost for a moment.
const MOST_MEMORY_KB: u64 = 24 * 1024;

fn post(more: &[(&str, &[u8])], rest: &[u8]) -> Vec<u8> {
    [headers(1, 0, &head("POST", "/", more)), rest.to_vec()].concat()
}

fn many(n: usize) -> Vec<(String, Vec<u8>)> {
    (0..n).map(|n| (format!("x-{n}"), b"v".to_vec())).collect()
}

fn get_with(more: &[(String, Vec<u8>)]) -> Vec<u8> {
    let more: Vec<(&str, &[u8])> = more.iter().map(|(name, value)| (&**name, &**value)).collect();
    get(1, "/direct", &more)
}

fn with(pseudo: &[(&str, &[u8])]) -> Vec<u8> {
    headers(1, END_STREAM, &fields(pseudo))
}

/// Messages: name, frames, why Envoy's word may be another.
fn messages() -> Vec<(&'static str, Vec<u8>, Option<&'static str>)> {
    let base: [(&str, &[u8]); 4] =
        [(":method", b"GET"), (":scheme", b"http"), (":path", b"/direct"), (":authority", b"a")];
    let but = |name: &'static str, value: &'static [u8]| {
        let all: Vec<(&str, &[u8])> =
            base.iter().map(|(n, v)| if *n == name { (name, value) } else { (*n, *v) }).collect();
        with(&all)
    };
    let without = |name: &str| with(&base.iter().filter(|(n, _)| *n != name).copied().collect::<Vec<_>>());
    let long = vec![b'a'; 100_000];
    let crumbs = |n| vec![("cookie".to_owned(), b"a=b".to_vec()); n];
    let three = frame(DATA, END_STREAM, 1, b"abc");
    const HEAD: Option<&str> = Some("the codec answers 431 where Envoy's gives up the connection");
    const STRICT: Option<&str> = Some("Envoy's codec gives up the connection; ours answers");
    vec![
        ("plain", get(1, "/direct", &[]), None),
        ("as many headers as allowed", get_with(&many(96)), None),
        ("one header too many", get_with(&many(97)), None),
        ("many cookies", get_with(&crumbs(90)), None),
        ("too many cookies", get_with(&crumbs(200)), None),
        ("50 KiB of header", get(1, "/direct", &[("x", &long[..50_000])]), None),
        ("70 KiB of header", get(1, "/direct", &[("x", &long[..70_000])]), None),
        ("100 KiB of header", get(1, "/direct", &[("x", &long)]), HEAD),
        ("upper case", get(1, "/direct", &[("X-A", b"b")]), None),
        ("connection", get(1, "/direct", &[("connection", b"close")]), None),
        ("keep-alive", get(1, "/direct", &[("keep-alive", b"a")]), None),
        ("proxy-connection", get(1, "/direct", &[("proxy-connection", b"a")]), None),
        ("transfer-encoding", get(1, "/direct", &[("transfer-encoding", b"chunked")]), None),
        ("upgrade", get(1, "/direct", &[("upgrade", b"websocket")]), None),
        ("te gzip", get(1, "/direct", &[("te", b"gzip")]), None),
        ("NUL in a value", get(1, "/direct", &[("x", b"a\0b")]), None),
        ("CR in a value", get(1, "/direct", &[("x", b"a\rb")]), None),
        ("LF in a value", get(1, "/direct", &[("x", b"a\nb: c")]), None),
        ("high bytes in a value", get(1, "/direct", &[("x", b"a\xff")]), None),
        ("empty name", get(1, "/direct", &[("", b"a")]), None),
        ("space in a name", get(1, "/direct", &[("x a", b"a")]), None),
        ("parenthesis in a name", get(1, "/direct", &[("x(a", b"a")]), None),
        ("unknown pseudo-header", get(1, "/direct", &[(":x", b"a")]), None),
        ("pseudo-header last", with(&[base[0], base[1], base[2], ("x", b"a"), base[3]]), None),
        ("two paths", with(&[base[0], base[1], base[2], base[2], base[3]]), None),
        ("no method", without(":method"), None),
        ("no scheme", without(":scheme"), None),
        ("no path", without(":path"), None),
        ("no authority", without(":authority"), STRICT),
        ("host for authority", with(&[base[0], base[1], base[2], ("host", b"b")]), None),
        ("empty authority", but(":authority", b""), None),
        ("user in the authority", but(":authority", b"u@a"), None),
        ("slash in the authority", but(":authority", b"a/b"), None),
        ("relative path", but(":path", b"x"), None),
        ("absolute path", but(":path", b"http://b/x"), None),
        ("star", but(":path", b"*"), STRICT),
        ("space in the path", but(":path", b"/a b"), None),
        ("NUL in the path", but(":path", b"/a\0b"), None),
        ("line feed in the path", but(":path", b"/a\nb"), None),
        (
            "fragment in the path",
            but(":path", b"/direct#x"),
            Some(
                "the parser drops it before anything looks, so routes, policies and services see the same path",
            ),
        ),
        ("bad scheme", but(":scheme", b"ht tp"), None),
        ("method with a space", but(":method", b"G T"), None),
        ("length too great", post(&[("content-length", b"5")], &three), None),
        ("length too small", post(&[("content-length", b"2")], &three), None),
        ("lengths that differ", post(&[("content-length", b"3"), ("content-length", b"4")], &three), None),
        ("the same length twice", post(&[("content-length", b"3"), ("content-length", b"3")], &three), None),
        ("negative length", post(&[("content-length", b"-3")], &three), None),
        ("overflowing length", post(&[("content-length", b"99999999999999999999")], &three), None),
        (
            "too many trailers",
            {
                let trailers = many(150);
                let trailers: Vec<(&str, &[u8])> = trailers.iter().map(|(n, v)| (&**n, &**v)).collect();
                post(&[], &[frame(DATA, 0, 1, b"a"), headers(1, END_STREAM, &fields(&trailers))].concat())
            },
            None,
        ),
        ("data before headers", frame(DATA, 0, 1, b"a"), None),
        ("even stream", headers(2, END_STREAM, &head("GET", "/direct", &[])), None),
        ("bad index", frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0xff, 0xff, 0xff, 0x00]), None),
        ("frame too large", frame(DATA, 0, 1, &vec![0; 20_000]), None),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_messages_fare_the_same() {
    let pair = Pair::start().await;
    let addresses = pair.addresses("http2-only");
    let seen: Vec<_> = futures::stream::iter(messages())
        .map(|(name, frames, reason)| async move {
            let bytes = [preface(&[]), frames].concat();
            let done = |seen: &Reaction| !seen.statuses.is_empty() || !seen.resets.is_empty();
            let (envoy, lateen) = tokio::join!(
                react(addresses[0], &bytes, PATIENCE, done),
                react(addresses[1], &bytes, PATIENCE, done)
            );
            (name, reason, envoy, lateen)
        })
        .buffer_unordered(8)
        .collect()
        .await;
    let mut complaints = String::new();
    for (name, reason, envoy, lateen) in seen {
        if (envoy.word() == lateen.word()) != reason.is_none() {
            writeln!(complaints, "=== {name} ({reason:?})\nEnvoy  {envoy:?}\nLateen {lateen:?}").unwrap();
        }
    }
    assert!(complaints.is_empty(), "\n{complaints}");
}

/// A flood: name, frames, the stat that counts it.
fn floods() -> Vec<(&'static str, Vec<u8>, Option<&'static str>)> {
    let open = headers(1, 0, &head("POST", "/", &[("act", b"silence")]));
    let begun = frame(HEADERS, END_STREAM, 1, &head("GET", "/direct", &[]));
    // One large entry, and then an octet for each time it is meant.
    let bomb = |name: &str| {
        let mut bomb = head("GET", "/direct", &[]);
        bomb.extend([0x40, u8::try_from(name.len()).unwrap()]);
        bomb.extend(name.as_bytes());
        bomb.extend([0x7f, 0xbd, 0x1d]);
        bomb.extend([b'b'; 3900]);
        bomb.extend([0xbe; 3000]);
        frame(HEADERS, END_HEADERS | END_STREAM, 1, &bomb)
    };
    vec![
        (
            "empty DATA (CVE-2019-9518)",
            [open.clone(), frame(DATA, 0, 1, b"").repeat(1000)].concat(),
            Some("http2.inbound_empty_frames_flood"),
        ),
        (
            "PRIORITY (CVE-2019-9513)",
            [open.clone(), frame(PRIORITY, 0, 1, &[0, 0, 0, 3, 1]).repeat(1000)].concat(),
            Some("http2.inbound_priority_frames_flood"),
        ),
        (
            "WINDOW_UPDATE (CVE-2019-9511)",
            [open.clone(), frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]).repeat(1000)].concat(),
            Some("http2.inbound_window_update_frames_flood"),
        ),
        (
            "rapid reset (CVE-2023-44487)",
            (0..3000u32)
                .flat_map(|n| {
                    [
                        get(1 + 2 * n, "/", &[("act", b"silence")]),
                        frame(RST_STREAM, 0, 1 + 2 * n, &[0, 0, 0, 8]),
                    ]
                    .concat()
                })
                .collect(),
            None,
        ),
        (
            "CONTINUATION (CVE-2024-27316, CVE-2024-30255)",
            [begun.clone(), frame(CONTINUATION, 0, 1, &fields(&[("x", &[b'a'; 200])])).repeat(20_000)]
                .concat(),
            None,
        ),
        ("empty CONTINUATION", [begun, frame(CONTINUATION, 0, 1, b"").repeat(20_000)].concat(), None),
        ("HPACK bomb (CVE-2016-6581)", bomb("a"), None),
        // Crumbs are put together again, and what is left out still comes.
        ("HPACK bomb of cookies (CVE-2026-47774)", bomb("cookie"), None),
        ("HPACK bomb of hosts (CVE-2026-73550)", bomb("host"), None),
        (
            "RST_STREAM of idle streams (CVE-2019-9514)",
            frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]).repeat(3000),
            None,
        ),
        (
            "too many streams",
            (0..3000u32)
                .flat_map(|n| headers(1 + 2 * n, 0, &head("POST", "/", &[("act", b"silence")])))
                .collect(),
            None,
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_end_their_connection_and_are_counted() {
    let pair = Pair::start().await;
    for (name, frames, stat) in floods() {
        let bytes = [preface(&[]), frames].concat();
        let memory = pair.memory_kb();
        for (which, address) in ["Envoy", "Lateen"].into_iter().zip(pair.addresses("http2-only")) {
            let seen = react(address, &bytes, Duration::from_secs(2), |_| false).await;
            let refused = seen.closed || seen.goaway.is_some() || !seen.resets.is_empty();
            assert!(refused, "{which}: {name}: {seen:?}");
        }
        let grown = pair.memory_kb().saturating_sub(memory);
        assert!(grown < MOST_MEMORY_KB, "{name}: {grown} KiB more");
        if let Some(stat) = stat {
            for page in pair.pages(&format!("/stats?filter=^{stat}$")).await {
                assert!(page.contains(&format!("{stat}: 1\n")), "{name}: {page}");
            }
        }
    }
    // Both serve as before.
    pair.warm().await;
}

/// Streams that are reset as soon as they are opened, one after the other, so that the codec takes each. Both close the connection
/// once a certain share of its streams went this way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_resets_its_streams_is_cut_off() {
    let pair = Pair::start().await;
    for (which, address) in ["Envoy", "Lateen"].into_iter().zip(pair.addresses("http2-only")) {
        let mut client = Client::connect(address).await;
        client.send(&preface(&[])).await;
        let mut opened = 0;
        while opened < 2000 && !client.seen.closed {
            let stream = 1 + 2 * opened;
            client.send(&get(stream, "/", &[("act", b"silence")])).await;
            // An answered PING shows that the request has been taken.
            let pongs = client.seen.pongs + 1;
            client.send(&frame(PING, 0, 0, &[0; 8])).await;
            client.watch(Duration::from_secs(5), |seen| seen.pongs >= pongs).await;
            client.send(&frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])).await;
            opened += 1;
        }
        client.watch(PATIENCE, |_| false).await;
        assert!(
            client.seen.closed && (240..=260).contains(&opened),
            "{which}: {opened} streams, {:?}",
            client.seen
        );
    }
    let stat = "http.http2-only.downstream_rq_too_many_premature_resets";
    for page in pair.pages(&format!("/stats?filter=^{stat}$")).await {
        assert!(page.contains(&format!("{stat}: 1\n")), "{page}");
    }
}

/// A client that never reads what it is answered: nothing more is taken from it, and nothing piles up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pings_and_settings_pile_nothing_up() {
    let pair = Pair::start().await;
    let [_, address] = pair.addresses("http2-only");
    let memory = pair.memory_kb();
    // CVE-2019-9512 and CVE-2019-9515: the client sends for ever and reads nothing.
    let mut clients = Vec::new();
    for flood in [frame(PING, 0, 0, &[0; 8]), frame(SETTINGS, 0, 0, &[])] {
        let mut client = Client::connect(address).await;
        let bytes = [preface(&[]), flood.repeat(2_000_000)].concat();
        // It stops when nothing more is taken, as nobody reads the answers.
        assert!(!client.send(&bytes).await, "all of it was taken");
        clients.push(client);
    }
    let grown = pair.memory_kb().saturating_sub(memory);
    assert!(grown < MOST_MEMORY_KB, "{grown} KiB more");
    pair.warm().await;
}

/// CVE-2019-9517 and CVE-2019-9511: clients that ask for much and give no room for it. What waits is bounded, and the streams end
/// with the stream's idle time-out. Envoy resets each; our codec can't while a frame has been sent in part, so the connection ends
/// once nothing else goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_gives_no_room_is_ended_in_time() {
    const STREAMS: u32 = 20;
    let pair = Pair::start().await;
    let memory = pair.memory_kb();
    // No stream may send more than 10 bytes.
    let mut bytes = preface(&[(4, 10)]);
    for n in 0..STREAMS {
        bytes.extend(get(1 + 2 * n, "/", &[("act", b"big")]));
    }
    let [envoy, lateen] = pair.addresses("idle");
    let all = |seen: &Reaction| seen.resets.len() == STREAMS as usize;
    let envoy = react(envoy, &bytes, Duration::from_secs(5), all).await;
    let lateen = react(lateen, &bytes, Duration::from_secs(5), |_| false).await;
    let grown = pair.memory_kb().saturating_sub(memory);
    let wanted = (STREAMS as usize, STREAMS as usize * 10);
    assert_eq!((envoy.statuses.len(), envoy.data, envoy.resets.len()), (wanted.0, wanted.1, wanted.0));
    assert_eq!((lateen.statuses.len(), lateen.data, lateen.closed), (wanted.0, wanted.1, true));
    assert!(grown < 2 * MOST_MEMORY_KB, "{grown} KiB more");
    let filter = "/stats?filter=^http2.tx_flush_timeout$|^http.idle.downstream_rq_(active|idle_timeout)$";
    for page in pair.pages(filter).await {
        let number = |name: &str| {
            let line =
                page.lines().find_map(|line| line.split_once(": ").filter(|(known, _)| *known == name));
            line.map_or(0, |(_, number)| number.parse::<u32>().unwrap())
        };
        // Envoy counts a stream twice whose answer was cut short by one time-out and not taken until the other.
        let late = number("http2.tx_flush_timeout") + number("http.idle.downstream_rq_idle_timeout");
        assert!(late >= STREAMS, "{page}");
        assert_eq!(number("http.idle.downstream_rq_active"), 0, "{page}");
    }
}

/// Names with `_` where they are refused or dropped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn underscores_over_http2() {
    let pair = Pair::start().await;
    let done = |seen: &Reaction| seen.data > 0 || !seen.resets.is_empty();
    let bytes = [preface(&[]), get(1, "/", &[("x_a", b"b")])].concat();
    for address in pair.addresses("no-underscores") {
        let seen = react(address, &bytes, Duration::from_secs(2), done).await;
        assert_eq!(seen.word(), "refused", "{seen:?}");
    }
    for address in pair.addresses("drop-underscores") {
        let seen = react(address, &bytes, Duration::from_secs(2), done).await;
        assert_eq!(seen.word(), "200", "{seen:?}");
        assert!(!String::from_utf8_lossy(&seen.bodies).contains("x_a"), "{seen:?}");
    }
    let filter = "/stats?filter=^http2.(dropped_headers_with|requests_rejected_with)";
    for page in pair.pages(filter).await {
        assert!(page.contains("dropped_headers_with_underscores: 1\n"), "{page}");
        assert!(page.contains("requests_rejected_with_underscores_in_headers: 1\n"), "{page}");
    }
}
