//! Random configurations and random requests, the same for both proxies: what the client, the service and the access log see must be
//! the same. Deterministic by seed. `FUZZ_SEEDS=N` runs more of them, `FUZZ_SEED=N` one, `FUZZ_RAW=1`
//! lists all differences as they are.
//!
//! A difference is shrunk before it is told: as long as a smaller configuration or request still shows it, that takes its place.

mod features;
mod random;

use std::fmt::Write as _;

use futures::StreamExt as _;
use serde_json::{Value, json};

use crate::cases::{Case, Compare, Step};
use crate::proxies::Pair;
use crate::{Seen, outcome, play};
use random::{Asked, Dice, manager, request};

/// Seeds of an ordinary run.
const SEEDS: u64 = 3;
/// Configurations of a seed; all are served by the same two proxies.
const LISTENERS: usize = 12;
/// Requests to each.
const REQUESTS: usize = 30;
/// Rounds of shrinking.
const ROUNDS: usize = 12;
/// Smaller ones that are tried in a round.
const CANDIDATES: usize = 24;

/// Members of which any may be left out.
const OPTIONAL: [&str; 7] = [
    "http_filters",
    "virtual_hosts",
    "routes",
    "headers",
    "query_parameters",
    "request_headers_to_add",
    "response_headers_to_add",
];

/// Members that are whole or not at all.
const WHOLE: [&str; 13] = [
    "local_reply_config",
    "internal_address_config",
    "scheme_header_transformation",
    "http_protocol_options",
    "http_filters",
    "typed_per_filter_config",
    "hash_policy",
    "request_mirror_policies",
    "internal_redirect_policy",
    "max_stream_duration",
    "retry_policy",
    "runtime_fraction",
    "common_http_protocol_options",
];

/// Configurations with one thing less, each still valid.
fn smaller(config: &Value) -> Vec<Value> {
    let mut all = Vec::new();
    let mut places = Vec::new();
    walk(config, String::new(), &mut places);
    for (pointer, index) in places {
        let mut less = config.clone();
        less.pointer_mut(&pointer).and_then(Value::as_array_mut).unwrap().remove(index);
        all.push(less);
    }
    // And without one option, or one option of a part.
    for pointer in objects(config, String::new()) {
        let keys: Vec<String> =
            config.pointer(&pointer).and_then(Value::as_object).unwrap().keys().cloned().collect();
        for key in keys {
            let needed =
                ["route_config", "virtual_hosts", "routes", "match", "name", "domains", "clusters", "weight"];
            let action = [
                "route",
                "redirect",
                "direct_response",
                "weighted_clusters",
                "cluster",
                "cluster_header",
                "status",
            ];
            let part = [
                "prefix",
                "path",
                "safe_regex",
                "path_separated_prefix",
                "header",
                "key",
                "value",
                "regex",
                "pattern",
            ];
            let inner = [
                "substitution",
                "string_match",
                "present_match",
                "range_match",
                "exact",
                "suffix",
                "contains",
            ];
            let held = [
                &needed[..],
                &["@type", "http_filters"],
                &action,
                &part,
                &inner,
                &["start", "end", "inline_string", "num_retries", "retry_on"],
            ];
            if held.iter().any(|keys| keys.contains(&key.as_str())) {
                continue;
            }
            let mut less = config.clone();
            less.pointer_mut(&pointer).and_then(Value::as_object_mut).unwrap().remove(&key);
            all.push(less);
        }
    }
    all
}

/// Lists of which members may be left out, with the position of each.
fn walk(value: &Value, path: String, out: &mut Vec<(String, usize)>) {
    match value {
        Value::Object(members) => {
            for (key, member) in members {
                let path = format!("{path}/{key}");
                if let Value::Array(list) = member
                    && OPTIONAL.contains(&key.as_str())
                {
                    let keep =
                        usize::from(["virtual_hosts", "routes", "http_filters"].contains(&key.as_str()));
                    // The router is the last of the filters, and stays.
                    let removable = list.len() - usize::from(key == "http_filters" && !list.is_empty());
                    if list.len() > keep {
                        out.extend((0..removable).map(|index| (path.clone(), index)));
                    }
                }
                if !WHOLE.contains(&key.as_str()) {
                    walk(member, path, out);
                }
            }
        }
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(index, member)| walk(member, format!("{path}/{index}"), out));
        }
        _ => {}
    }
}

/// Pointers of all objects but those inside what is whole or not at all.
fn objects(value: &Value, path: String) -> Vec<String> {
    match value {
        Value::Object(members) => {
            let mut all = vec![path.clone()];
            for (key, member) in members {
                if !WHOLE.contains(&key.as_str()) {
                    all.extend(objects(member, format!("{path}/{key}")));
                }
            }
            all
        }
        Value::Array(list) => list
            .iter()
            .enumerate()
            .flat_map(|(index, member)| objects(member, format!("{path}/{index}")))
            .collect(),
        _ => Vec::new(),
    }
}

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
    let pair = Pair::start_with(names.iter().copied().zip(configs).collect()).await;
    let played: Vec<(usize, [Seen; 2])> = futures::stream::iter(attempts.iter().enumerate())
        .map(|(number, attempt)| {
            let listener = names[places[number]];
            let [envoy, lateen] = pair.addresses(listener);
            let steps = vec![Step::Send(attempt.asked.bytes()), Step::Answers(vec![attempt.asked.method])];
            let case = Case { name: "fuzz", listener, steps, compare: Compare::Everything };
            async move {
                let seen = tokio::join!(play(number, &case, envoy), play(number, &case, lateen));
                (number, seen.into())
            }
        })
        .buffer_unordered(8)
        .collect()
        .await;
    let logs = pair.logs().await;
    let mut all = vec![None; attempts.len()];
    for (number, seen) in played {
        let [envoy, lateen] = [0, 1].map(|i| format!("{}{}", seen[i].text, logs[i].lines(&seen[i].ends)));
        // Each proxy listens elsewhere, and says so in redirects and forwarded ports.
        let [envoy_port, lateen_port] =
            pair.addresses(names[places[number]]).map(|address| address.port().to_string());
        let same = envoy.replace(&envoy_port, "PORT") == lateen.replace(&lateen_port, "PORT");
        if !same && !known(&attempts[number].asked, &envoy, &lateen) {
            all[number] = Some(format!("--- Envoy\n{envoy}--- Lateen\n{lateen}"));
        }
    }
    all
}

/// The lines that only one of both has.
fn only(difference: &str) -> String {
    let (envoy, lateen) = difference.split_once("--- Lateen\n").unwrap();
    let lines = |which: &str, of: &str, but: &str| -> String {
        of.lines()
            .filter(|line| !but.lines().any(|other| other == *line))
            .map(|line| format!("{which} {line}\n"))
            .collect()
    };
    lines("Envoy ", envoy, lateen) + &lines("Lateen", lateen, envoy)
}

/// Differences that are right, as `cases::KNOWN` says of each.
fn known(asked: &Asked, envoy: &str, lateen: &str) -> bool {
    // What is refused before it is a request is logged with fewer parts.
    if outcome(envoy) == outcome(lateen) && envoy.starts_with("HTTP/1.1 400") && envoy.contains("flags=DPE") {
        return true;
    }
    // Envoy tells the route of a request that is refused before there is any.
    if outcome(envoy) == outcome(lateen) && envoy.contains(" path_normalization_failed ") {
        return true;
    }
    // And so is a head that is too large, which hyper answers.
    if outcome(envoy) == outcome(lateen) && envoy.starts_with("HTTP/1.1 431") && envoy.contains("flags=DPE") {
        return true;
    }
    // A request that fails at once is answered before its body is read, and then the connection can't be kept.
    let without_body = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| !line.eq_ignore_ascii_case("connection: close"));
        // Envoy says `chunked` of a body that is not there.
        let unframed = |line: &&str| !line.eq_ignore_ascii_case("transfer-encoding: chunked");
        let lines = lines.filter(|line| asked.method != "HEAD" || unframed(line));
        lines
            .map(|line| line.replace(&format!("received={}", asked.body.unwrap_or("").len()), "received=0"))
            .collect()
    };
    (asked.body.is_some() || asked.method == "HEAD") && without_body(envoy) == without_body(lateen)
}

/// The smallest attempt found that still differs.
async fn shrink(mut attempt: Attempt, mut difference: String) -> (Attempt, String) {
    for _ in 0..ROUNDS {
        let requests = attempt.asked.smaller().into_iter().map(|asked| Attempt { asked, ..attempt.clone() });
        let configs =
            smaller(&attempt.config).into_iter().map(|config| Attempt { config, ..attempt.clone() });
        let all: Vec<Attempt> = requests.chain(configs).collect();
        let mut found = None;
        for some in all.chunks(CANDIDATES) {
            let differ = differences(some).await;
            found = differ.into_iter().zip(some).find_map(|(differs, some)| Some((some.clone(), differs?)));
            if found.is_some() {
                break;
            }
        }
        match found {
            Some((smaller, differs)) => (attempt, difference) = (smaller, differs),
            None => break,
        }
    }
    (attempt, difference)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_configurations_and_requests_fare_the_same() {
    let number = |name: &str| std::env::var(name).ok().map(|n| n.parse::<u64>().expect("a number"));
    let seeds = match (number("FUZZ_SEED"), number("FUZZ_SEEDS")) {
        (Some(seed), _) => seed..seed + 1,
        (None, many) => 0..many.unwrap_or(SEEDS),
    };
    let mut complaints = String::new();
    for seed in seeds {
        let mut dice = Dice(fastrand::Rng::with_seed(seed));
        let mut attempts = Vec::new();
        for _ in 0..LISTENERS {
            let config = manager(&mut dice);
            attempts
                .extend((0..REQUESTS).map(|_| Attempt { config: config.clone(), asked: request(&mut dice) }));
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
                writeln!(
                    complaints,
                    "{}\n{}",
                    String::from_utf8_lossy(&attempt.asked.bytes()),
                    only(difference)
                )
                .unwrap();
            }
            continue;
        }
        let (attempt, difference) = found.swap_remove(0);
        let (attempt, difference) = shrink(attempt, difference).await;
        let asked = String::from_utf8_lossy(&attempt.asked.bytes()).into_owned();
        let config = serde_json::to_string_pretty(&attempt.config).unwrap();
        writeln!(complaints, "{config}\n{asked}\n{difference}").unwrap();
    }
    assert!(complaints.is_empty(), "\n{complaints}");
}

/// What the fuzzer has found, by name: each is a connection manager, and the method and header lines that told Envoy and ours apart.
fn found() -> Vec<(&'static str, Value, [&'static str; 2])> {
    let add = |name: &str, value: &str| json!({ "header": { "key": name, "value": value } });
    let manager = |mut host: Value, more: Value| {
        crate::proxies::merge(&mut host, json!({ "name": "all", "domains": ["*"] }));
        let mut manager = json!({ "route_config": { "virtual_hosts": [host] } });
        crate::proxies::merge(&mut manager, more);
        manager
    };
    let to = |cluster: &str, more: Value| {
        let mut action = json!({ "cluster": cluster });
        crate::proxies::merge(&mut action, more);
        json!({ "match": { "prefix": "/" }, "route": action })
    };
    let grpc = "content-type: application/grpc\r\n";
    let plain = ["GET", ""];
    let of_grpc = ["POST", grpc];
    let lives = json!({ "max_stream_duration": { "max_stream_duration": "5s", "grpc_timeout_header_max": "3s", "grpc_timeout_header_offset": "1s" } });
    let json_body = json!({ "local_reply_config": { "body_format": { "json_format": { "status": "%RESPONSE_CODE%", "grpc": "%GRPC_STATUS%" } } } });
    let redirect = json!({ "match": { "prefix": "/" }, "redirect": { "host_redirect": "elsewhere" } });
    vec![
        (
            "the reply's own status in a route's headers",
            manager(
                json!({ "routes": [redirect], "response_headers_to_add": [add("x-status", "%RESP(:STATUS)%"), add("x-code", "%RESPONSE_CODE%")] }),
                json!({}),
            ),
            plain,
        ),
        (
            "a stream's limit takes the time-out's place",
            manager(json!({ "routes": [to("service", lives.clone())] }), json!({})),
            plain,
        ),
        (
            "a stream's limit is told to gRPC",
            manager(json!({ "routes": [to("service", lives.clone())] }), json!({})),
            of_grpc,
        ),
        (
            "a client's deadline is capped",
            manager(json!({ "routes": [to("service", lives)] }), json!({})),
            ["POST", "content-type: application/grpc\r\ngrpc-timeout: 9S\r\n"],
        ),
        (
            "no message to gRPC that asked for the head",
            manager(json!({ "routes": [to("dead", json!({}))] }), json!({})),
            ["HEAD", grpc],
        ),
        (
            "JSON for gRPC has no line's end",
            manager(json!({ "routes": [to("none", json!({}))] }), json_body),
            of_grpc,
        ),
        (
            "gRPC's status out of HTTP's",
            manager(
                json!({ "routes": [to("service", json!({}))], "response_headers_to_add": [add("x-grpc", "%GRPC_STATUS%")] }),
                json!({}),
            ),
            of_grpc,
        ),
        (
            "the proxy's own name after the route's",
            manager(
                json!({ "routes": [to("service", json!({}))], "response_headers_to_add": [add("via", "route")] }),
                json!({ "via": "proxy" }),
            ),
            ["GET", "via: one\r\nvia: two\r\n"],
        ),
        (
            "the attempt that comes",
            manager(
                json!({ "routes": [to("service", json!({}))], "request_headers_to_add": [add("x-attempt", "%UPSTREAM_REQUEST_ATTEMPT_COUNT%")] }),
                json!({}),
            ),
            plain,
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_found_fares_the_same() {
    let attempts: Vec<Attempt> = found()
        .into_iter()
        .map(|(_, config, asked)| {
            let [method, lines] = asked;
            let lines = lines.lines().map(str::to_owned).collect();
            let asked = Asked {
                method,
                target: "/".to_owned(),
                host: "a.example",
                lines,
                body: None,
                chunked: false,
            };
            Attempt { config, asked }
        })
        .collect();
    let mut complaints = String::new();
    for ((name, ..), difference) in found().iter().zip(differences(&attempts).await) {
        if let Some(difference) = difference {
            writeln!(complaints, "=== {name}\n{difference}").unwrap();
        }
    }
    assert!(complaints.is_empty(), "\n{complaints}");
}
