//! Random configurations and random requests, the same for both proxies: what the client, the service and the access log see must be
//! the same. Deterministic by seed. `FUZZ_SEEDS=N` runs more of them, `FUZZ_SEED=N` one or the first of them, `FUZZ_RAW=1`
//! lists all differences with their configurations as they are, `FUZZ_NTH=N` shrinks another than the first of a seed.
//!
//! A difference is shrunk before it is told: as long as a smaller configuration or request still shows it, that takes its place.

mod asked;
mod chains;
mod clusters;
mod connection;
mod features;
mod found;
mod http2;
mod random;
mod secured;
mod shrink;
mod talk;
mod tokens;

use std::fmt::Write as _;

use futures::StreamExt as _;
use serde_json::Value;
use tokio::net::TcpListener;

use crate::ports::free_port;
use crate::proxies::Pair;
use crate::{Seen, outcome, service};
use asked::{Asked, Version, request};
use random::{Dice, manager};
use shrink::shrink;
use talk::talk;

/// Seeds of an ordinary run.
const SEEDS: u64 = 3;
/// Configurations of a seed; all are served by the same two proxies.
const LISTENERS: usize = 12;
/// Requests to each.
const REQUESTS: usize = 30;

/// A configuration and a request that both proxies are to treat alike.
#[derive(Clone)]
struct Attempt {
    config: Value,
    asked: Asked,
}

/// What differs, for each attempt; `None`: nothing does. Attempts with the same configuration share a listener.
async fn differences(attempts: &[Attempt]) -> Vec<Option<String>> {
    let mut configs: Vec<Value> = Vec::new();
    let mut places = Vec::new();
    for attempt in attempts {
        let known = configs.iter().position(|config| *config == attempt.config);
        places.push(known.unwrap_or_else(|| {
            configs.push(attempt.config.clone());
            configs.len() - 1
        }));
    }
    let name = |place: usize| -> &'static str { Box::leak(format!("fuzz-{place}").into_boxed_str()) };
    let names: Vec<&'static str> = (0..configs.len()).map(name).collect();
    let ports = services().await;
    let mut clusters = Vec::new();
    let managers = names.iter().copied().zip(configs).map(|(name, config)| {
        let (manager, more) = placed(name, config, ports);
        clusters.extend(more);
        (name, manager)
    });
    let managers = managers.collect();
    let pair = Pair::start_beside(managers, clusters).await;
    let played: Vec<(usize, [Seen; 2])> = futures::stream::iter(attempts.iter().enumerate())
        .map(|(number, attempt)| {
            let listener = names[places[number]];
            let [envoy, lateen] = pair.addresses(listener);
            async move {
                let asked = &attempt.asked;
                let seen = tokio::join!(talk(number, asked, envoy), talk(number, asked, lateen));
                (number, seen.into())
            }
        })
        .buffer_unordered(8)
        .collect()
        .await;
    let logs = pair.logs().await;
    let mut all = vec![None; attempts.len()];
    for (number, seen) in played {
        let [envoy, lateen] = [0, 1].map(|i| {
            let lines = logs[i].lines(&seen[i].ends);
            // How much went through a tunnel before it was left is each one's own.
            let left = seen[i].text.starts_with("HTTP/1.1 101 ") || attempts[number].asked.is_connect();
            format!("{}{}", seen[i].text, if left { without_sizes(&lines) } else { lines })
        });
        // Each proxy listens elsewhere, and says so in redirects and forwarded ports.
        let ports = pair.addresses(names[places[number]]).map(|address| address.port().to_string());
        let [envoy, lateen] = [envoy, lateen].map(|text| whole_seconds(&text));
        // hyper's proper case begins words after dashes alone.
        let lateen = lateen.replace("X_under", "X_Under");
        let [envoy, lateen] = [envoy.replace(&ports[0], "PORT"), lateen.replace(&ports[1], "PORT")];
        if envoy != lateen && !known(&attempts[number].asked, &envoy, &lateen) {
            all[number] = Some(format!("--- Envoy\n{envoy}--- Lateen\n{lateen}"));
        }
    }
    all
}

/// A listener's manager with the ports of services in place, and the clusters it has of its own, which are named for it.
fn placed(listener: &str, config: Value, ports: [u16; 4]) -> (Value, Vec<Value>) {
    let mut text = config.to_string().replace("\"pool-", &format!("\"{listener}-pool-"));
    for (stand_in, port) in clusters::PORTS.iter().zip(ports) {
        text = text.replace(&stand_in.to_string(), &port.to_string());
    }
    let text = secured::fill(text);
    let mut manager: Value = serde_json::from_str(&text).unwrap();
    let clusters = manager.as_object_mut().unwrap().remove("clusters");
    (manager, clusters.and_then(|clusters| clusters.as_array().cloned()).unwrap_or_default())
}

/// Starts services at all addresses of clusters, and tells their ports as [`clusters::PORTS`] has them.
async fn services() -> [u16; 4] {
    let mut ports = [0; 4];
    for kind in 0..ports.len() {
        let (port, listeners) = everywhere().await;
        ports[kind] = port;
        for listener in listeners {
            match kind {
                0 => service::serve_at(listener),
                1 => http2::serve(listener),
                2 => secured::serve(listener, "http/1.1", ports[0]),
                _ => secured::serve(listener, "h2", ports[1]),
            }
        }
    }
    ports
}

/// A port that is free at all addresses of clusters, and listens there.
async fn everywhere() -> (u16, Vec<TcpListener>) {
    loop {
        let port = free_port();
        let binding = clusters::ADDRESSES.map(|address| TcpListener::bind((address, port)));
        // Whoever connects from one of these addresses may have the port meanwhile.
        if let Ok(listeners) = futures::future::try_join_all(binding).await {
            return (port, listeners);
        }
    }
}

/// What is left of the time for a further try changes by milliseconds from run to run.
fn whole_seconds(text: &str) -> String {
    let line = |line: &str| {
        let left = line.strip_prefix("> x-envoy-expected-rq-timeout-ms: ");
        let left = left.and_then(|left| left.parse::<u64>().ok());
        left.map_or_else(
            || format!("{line}\n"),
            |left| format!("> expected within {} s\n", left.div_ceil(1000)),
        )
    };
    text.lines().map(line).collect()
}

/// A log's lines without the sizes of what was received and sent.
fn without_sizes(lines: &str) -> String {
    let word = |word: &str| word.starts_with("received=") || word.starts_with("sent=");
    lines.split(' ').filter(|part| !word(part)).collect::<Vec<_>>().join(" ")
}

/// The lines that only one of both has, or has more often; all where they differ in order alone.
fn only(difference: &str) -> String {
    let (envoy, lateen) = difference.strip_prefix("--- Envoy\n").unwrap().split_once("--- Lateen\n").unwrap();
    let lines = |which: &str, of: &str, but: &str| -> String {
        let mut others: Vec<&str> = but.lines().collect();
        let alone = of.lines().filter(|line| {
            let place = others.iter().position(|other| other == line);
            place.map(|place| others.swap_remove(place)).is_none()
        });
        alone.map(|line| format!("{which} {line}\n")).collect()
    };
    let all = lines("Envoy ", envoy, lateen) + &lines("Lateen", lateen, envoy);
    if all.is_empty() { difference.to_owned() } else { all }
}

/// Differences that are right, as `cases::KNOWN` says of each.
fn known(asked: &Asked, envoy: &str, lateen: &str) -> bool {
    // An HTTP/1.0 client is answered and logged in its version. It is sent no trailers, which Envoy names to it all the same.
    if asked.version == Version::Http10 {
        let [envoy, lateen] = [envoy, lateen].map(|text| {
            let lines = text.lines().filter(|line| !line.to_ascii_lowercase().starts_with("trailer: "));
            lines.collect::<Vec<_>>().join("\n").replace("HTTP/1.0", "HTTP/1.1")
        });
        if envoy == lateen {
            return true;
        }
    }
    // BoringSSL has a word for who speaks something else (a PROXY header that is not taken), rustls none.
    let refused = |text: &str| text.starts_with("no handshake: ");
    if !asked.before.is_empty() && refused(envoy) && refused(lateen) {
        return true;
    }
    // Ours says so before it connects; with Envoy it is the service that refuses.
    if outcome(envoy) == outcome(lateen) && lateen.contains("_is_not_a_name_that_can_be_asked_for ") {
        return true;
    }
    // With `DROP_HEADER` Envoy says so of a request over HTTP/2 that is answered before its body has come or refused for another fault, and
    // forgets why.
    let unlogged = |text: &str| -> Vec<String> {
        text.lines().filter(|line| !line.starts_with("log ")).map(str::to_owned).collect()
    };
    if envoy.contains(" http2.unexpected_underscore ") && unlogged(envoy) == unlogged(lateen) {
        return true;
    }
    // Envoy closes a second after its last answer: a client that is still sending fails, and no longer reads what has come. Envoy's log has
    // the answer.
    let logged = |text: &str| -> Vec<String> {
        text.lines().filter(|line| line.starts_with("log ")).map(str::to_owned).collect()
    };
    let answered = |lines: &[String]| lines.iter().any(|line| !line.contains(" 0 flags="));
    if asked.version == Version::Http2 && asked.body.is_some() && envoy.starts_with("END\n") {
        let [envoy, lateen] = [logged(envoy), logged(lateen)];
        if envoy == lateen && answered(&envoy) {
            return true;
        }
    }
    // hyper answers what it can't read, without a text and so without its kind.
    let by_hyper = lateen.contains("|- name=-");
    let unread =
        |text: &str| [" 400 flags=DPE http1.", " 431 flags=DPE http1."].iter().any(|log| text.contains(log));
    if outcome(envoy) == outcome(lateen) && unread(envoy) && by_hyper {
        return true;
    }
    // Of several faults each parser names the one it sees first, and what hyper refuses has no mapped reply.
    let fault = |text: &str| Some(text.split_once(" flags=DPE http1.")?.1.split(' ').next()?.to_owned());
    if let (Some(first), Some(second)) = (fault(envoy), fault(lateen))
        && (first != second || by_hyper)
    {
        return true;
    }
    // A service may leave an upgrade out and answer (RFC 9110, section 7.8); Envoy drops the body.
    if envoy.contains(" websocket_handshake_unsuccessful ") && lateen.contains(" via_upstream ") {
        return true;
    }
    // Envoy tells the route of a request that is refused before there is any.
    if outcome(envoy) == outcome(lateen) && envoy.contains(" path_normalization_failed ") {
        return true;
    }
    // A request that fails at once is answered before its body is read, and then the connection can't be kept.
    let all = || std::iter::once(asked).chain(asked.next.as_deref());
    let body = all().any(|asked| asked.body.is_some());
    let length = all().map(Asked::body_length).max().unwrap_or(0);
    // Nor after a CONNECT, whose client may have sent what was meant for the tunnel.
    let connect = asked.is_connect();
    let bare = asked.methods().contains(&"HEAD");
    let without_body = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| !line.eq_ignore_ascii_case("connection: close"));
        let lines =
            lines.filter(|line| !connect || !line.to_ascii_lowercase().starts_with("content-length: "));
        // Envoy says `chunked` of a body that is not there, and which trailers it would have.
        let unframed = |line: &&str| {
            let line = line.to_ascii_lowercase();
            line != "transfer-encoding: chunked" && !line.starts_with("trailer: ")
        };
        let lines = lines.filter(|line| !bare || unframed(line));
        lines.map(|line| line.replace(&format!("received={length}"), "received=0")).collect()
    };
    (body || bare || connect) && without_body(envoy) == without_body(lateen)
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|n| n.parse().expect("a number"))
}

/// Those to run.
fn seeds() -> std::ops::Range<u64> {
    match (number("FUZZ_SEED"), number("FUZZ_SEEDS")) {
        (Some(seed), many) => seed..seed + many.unwrap_or(1),
        (None, many) => 0..many.unwrap_or(SEEDS),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_configurations_and_requests_fare_the_same() {
    let mut complaints = String::new();
    for seed in seeds() {
        let mut dice = Dice(fastrand::Rng::with_seed(seed));
        let mut attempts = Vec::new();
        for _ in 0..LISTENERS {
            let config = manager(&mut dice);
            let attempt = |_| Attempt { config: config.clone(), asked: request(&mut dice, &config) };
            attempts.extend((0..REQUESTS).map(attempt));
        }
        let differ = differences(&attempts).await;
        let mut found: Vec<(Attempt, String)> = attempts
            .into_iter()
            .zip(differ)
            .filter_map(|(attempt, differs)| Some((attempt, differs?)))
            .collect();
        if found.is_empty() {
            continue;
        }
        writeln!(complaints, "=== seed {seed}: {} differ, for example", found.len()).unwrap();
        if std::env::var_os("FUZZ_RAW").is_some() {
            for (attempt, difference) in &found {
                writeln!(complaints, "{}\n{}\n{}", attempt.config, attempt.asked, only(difference)).unwrap();
            }
            continue;
        }
        let which = number("FUZZ_NTH").map_or(0, |nth| nth as usize).min(found.len() - 1);
        let (attempt, difference) = found.swap_remove(which);
        let (attempt, difference) = shrink(attempt, difference).await;
        let asked = &attempt.asked;
        let config = serde_json::to_string_pretty(&attempt.config).unwrap();
        writeln!(complaints, "{config}\n{asked}\n{difference}").unwrap();
    }
    assert!(complaints.is_empty(), "\n{complaints}");
}
