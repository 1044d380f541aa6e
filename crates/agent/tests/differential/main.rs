//! The same bootstraps and the same bytes for Envoy and for `lateen-proxy -c`: what a client, the service behind and the access
//! log see must be the same. A case that differs for a good reason says so beside it.

mod access;
mod attacks;
mod authorizers;
mod breaking;
mod bypass;
mod cases;
mod connects;
mod continues;
mod curves;
mod descriptors;
mod duo;
mod dynamic;
mod ends;
mod ext_authz;
mod families;
mod filters;
mod frames;
mod fuzz;
mod h2;
mod h2spec;
mod hashing;
mod health;
mod health_probes;
mod jwt;
mod mirrors;
#[path = "../support/names.rs"]
mod names;
mod outliers;
mod outliers_on_demand;
mod pages;
mod peers;
mod pipe_listeners;
mod pipes;
#[path = "../support/ports.rs"]
mod ports;
mod priorities;
mod proxies;
mod redirects;
mod refusals;
mod repeated;
mod retries;
mod revoked;
mod service;
mod streams;
mod subsets;
mod tls;
mod tls_config;
mod tls_pki;
#[path = "../support/tokens.rs"]
mod tokens;
mod tunnels;
mod wire;
mod wrong;

use std::collections::BTreeMap;
use std::fmt::Write as _;

use cases::{Case, Compare, Step};
use futures::StreamExt as _;
use proxies::Pair;
use tokio::net::TcpSocket;
use wire::Wire;

/// What one client saw.
struct Seen {
    text: String,
    /// The connection's ends, by which the access log's lines are found.
    ends: String,
}

async fn play(number: usize, case: &Case, address: std::net::SocketAddr) -> Seen {
    // An address of its own: a port that a reset has freed may come again, and lines would be taken for another's. Where the
    // client's address is what it is about, it has the usual one.
    let about_address = ["edge", "hops", "bypass-edge", "bypass-hops"].contains(&case.listener);
    let number = if about_address { 1 } else { number + 2 };
    let socket = TcpSocket::new_v4().unwrap();
    let from = std::net::Ipv4Addr::from(0x7f00_0000 + u32::try_from(number).unwrap());
    socket.bind((from, 0).into()).unwrap();
    let stream = socket.connect(address).await.unwrap();
    let ends = format!("{address}-{}", stream.local_addr().unwrap());
    let mut wire = Wire::new(stream);
    let mut text = String::new();
    for step in &case.steps {
        match step {
            Step::Send(bytes) => wire.send(bytes).await,
            Step::Answers(methods) => {
                for method in methods {
                    let answer = wire.answer(method).await;
                    let ended = answer.is_none();
                    text.push_str(&answer.unwrap_or_else(|| "END\n".to_owned()));
                    if ended {
                        return Seen { text, ends };
                    }
                }
            }
            Step::Pause(time) => tokio::time::sleep(*time).await,
            Step::HalfClose => wire.half_close().await,
            Step::Raw(n) => writeln!(text, "{:?}", String::from_utf8_lossy(&wire.raw(*n).await)).unwrap(),
            Step::Ended => writeln!(text, "{}", wire.ended().await).unwrap(),
            Step::Probe => writeln!(text, "then {}", wire.probe().await).unwrap(),
        }
    }
    Seen { text, ends }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_fare_the_same() {
    let pair = Pair::start().await;
    let only = std::env::var("CASE").ok();
    let cases: Vec<Case> = cases::all()
        .into_iter()
        .chain(filters::cases())
        .chain(mirrors::cases())
        .chain(retries::cases())
        .chain(redirects::cases())
        .chain(continues::cases())
        .chain(access::cases())
        .chain(bypass::cases())
        .chain(ext_authz::cases())
        .filter(|case| only.as_ref().is_none_or(|only| case.name.contains(only)))
        .collect();
    let stats: Vec<&str> = filters::STATS
        .iter()
        .chain(&mirrors::STATS)
        .chain(&retries::STATS)
        .chain(&redirects::STATS)
        .chain(&continues::STATS)
        .chain(&access::STATS)
        .chain(&ext_authz::STATS)
        .copied()
        .collect();
    let complaints = compare(&pair, cases, &stats).await;
    assert!(complaints.is_empty(), "\n{complaints}");
}

/// Plays the cases on both proxies and tells what differs, in what is seen, logged, or counted under these patterns.
async fn compare(pair: &Pair, cases: Vec<Case>, stats: &[&str]) -> String {
    let played: Vec<(Case, [Seen; 2])> = futures::stream::iter(cases.into_iter().enumerate())
        .map(|(number, case)| {
            let [envoy, lateen] = pair.addresses(case.listener);
            async move {
                let seen = tokio::join!(play(number, &case, envoy), play(number, &case, lateen));
                (case, seen.into())
            }
        })
        .buffer_unordered(8)
        .collect()
        .await;
    let logs = pair.logs().await;
    let mut complaints = String::new();
    for (case, seen) in &played {
        let whole = [0, 1].map(|i| format!("{}{}", seen[i].text, logs[i].lines(&seen[i].ends)));
        let same = whole[0] == whole[1];
        let complaint = match case.compare {
            Compare::Everything if same => None,
            Compare::Outcome(_) if !same && outcome(&whole[0]) == outcome(&whole[1]) => None,
            Compare::Nothing(_) if !same => None,
            Compare::Everything | Compare::Outcome(_) if !same => Some("differs"),
            Compare::Outcome(reason) | Compare::Nothing(reason) => Some(reason),
            Compare::Everything => None,
        };
        if let Some(complaint) = complaint {
            let (name, [envoy, lateen]) = (case.name, &whole);
            writeln!(complaints, "=== {name}: {complaint}\n--- Envoy\n{envoy}--- Lateen\n{lateen}").unwrap();
        }
    }
    for pattern in stats {
        let [envoy, lateen] =
            pair.pages(&format!("/stats?filter={pattern}")).await.map(|page| numbers(&page));
        if envoy != lateen {
            writeln!(complaints, "=== {pattern}\n--- Envoy\n{envoy}--- Lateen\n{lateen}").unwrap();
        }
    }
    complaints
}

/// The numbers of a page of stats.
fn numbers(page: &str) -> String {
    let mut lines: Vec<_> = page.lines().filter(|line| line.contains(": ") && line.contains('.')).collect();
    lines.sort_unstable();
    lines.join("\n") + "\n"
}

/// Statuses, ends of connections, and status and flags in the log.
fn outcome(text: &str) -> Vec<String> {
    let telling = |line: &str| match line.split_once(' ') {
        Some((version, rest)) if version.starts_with("HTTP/") => rest.split(' ').next().map(str::to_owned),
        Some(("then", end)) => Some(end.to_owned()),
        // From the status on, but for the details.
        Some(("log", rest)) => {
            let words: Vec<&str> = rest.split(' ').collect();
            let flags = words.iter().position(|word| word.starts_with("flags="))?;
            Some(format!("log {} {}", words[flags - 1], words[flags]))
        }
        _ if line == "END" || line == "ended" || line == "silent" => Some(line.to_owned()),
        _ => None,
    };
    text.lines().filter_map(telling).collect()
}

/// A log's line without the port of the endpoint: each proxy has some of its own.
fn without_host(line: &str) -> String {
    let Some((before, after)) = line.split_once(" host=127.0.0.1:") else { return line.to_owned() };
    let after = after.trim_start_matches(|c: char| c.is_ascii_digit());
    format!("{before} host=*{after}")
}

/// Lines of an access log by the connection's ends, which each line begins with.
struct Log(BTreeMap<String, Vec<String>>);

/// A line without how long authorizers took.
fn without_times(line: &str) -> String {
    const NAME: &str = "\"ext_authz_duration\":";
    match line.split_once(NAME) {
        Some((before, after)) => {
            format!("{before}{NAME}{}", after.trim_start_matches(|c: char| c.is_ascii_digit()))
        }
        None => line.to_owned(),
    }
}

impl Log {
    fn of(text: &str) -> Self {
        let mut lines = BTreeMap::<String, Vec<String>>::new();
        // Probes take whatever connection is idle, so what they are told varies.
        for line in text.lines().filter(|line| !line.contains(" probe /probe ")) {
            let (ends, rest) = line.split_once(' ').unwrap_or((line, ""));
            lines
                .entry(ends.to_owned())
                .or_default()
                .push(format!("log {}\n", without_host(&without_times(rest))));
        }
        Self(lines)
    }

    fn lines(&self, ends: &str) -> String {
        self.0.get(ends).map(|lines| lines.concat()).unwrap_or_default()
    }
}
