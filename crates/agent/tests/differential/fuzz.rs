//! Random configurations and random requests, the same for both proxies: what the client, the service and the access log see must be
//! the same. Deterministic by seed. `FUZZ_SEEDS=N` runs more of them, `FUZZ_SEED=N` one, `FUZZ_RAW=1`
//! lists all differences as they are.
//!
//! A difference is shrunk before it is told: as long as a smaller configuration or request still shows it, that takes its place.

use std::fmt::Write as _;

use futures::StreamExt as _;
use serde_json::{Value, json};

use crate::cases::{Case, Compare, Step};
use crate::proxies::Pair;
use crate::{Seen, outcome, play};

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

/// A source of choices.
struct Dice(fastrand::Rng);

impl Dice {
    fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.0.usize(..of.len())].clone()
    }

    /// True once in so many times.
    fn once_in(&mut self, n: usize) -> bool {
        self.0.usize(..n) == 0
    }

    /// Sets a member once in so many times.
    fn sometimes(&mut self, n: usize, target: &mut Value, key: &str, value: impl FnOnce(&mut Self) -> Value) {
        if self.once_in(n) {
            target[key] = value(self);
        }
    }

    fn some<T>(&mut self, most: usize, mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.0.usize(..=most)).map(|_| make(self)).collect()
    }
}

const HOSTS: [&str; 9] = [
    "a.example",
    "A.Example",
    "b.example",
    "c.a.example",
    "b.test",
    "a.example:80",
    "a.example.",
    "[::1]:80",
    "b.example:8080",
];
const DOMAINS: [&str; 8] =
    ["a.example", "b.example", "*.example", "*.a.example", "b.*", "a.example:80", "*-b.example", "[::1]:80"];
const SEGMENTS: [&str; 16] =
    ["a", "b", "A", "api", "v1", ".", "..", "", "%2e%2E", "%41", "a%2Fb", "x%5cy", "a;b", "é", "a.b", "%zz"];
const NAMES: [&str; 8] =
    ["x-a", "x-b", "x-c", "user-agent", "x_under", "x-envoy-test", "accept", "x-forwarded-host"];
const VALUES: [&str; 10] = ["1", "on", "abc", "abcdef", "a,b", "-7", "100", "", "A b", "v1"];

fn path(dice: &mut Dice) -> String {
    let n = dice.0.usize(..4);
    let segments: Vec<&str> = (0..n).map(|_| dice.one(&SEGMENTS)).filter(|segment| *segment != "é").collect();
    let query = dice.one(&["", "", "", "?", "?a=1", "?a=1&b=2", "?b", "?a=/../x", "?x=%20y&a=abc", "?a=?b"]);
    format!("/{}{query}", segments.join("/"))
}

fn format(dice: &mut Dice) -> String {
    dice.one(&[
        "plain",
        "%REQ(X-A)%",
        "%REQ(x-b?x-c)%",
        "%REQ(:METHOD)%-%REQ(:PATH)%",
        "%REQ(:AUTHORITY)%",
        "%PROTOCOL%",
        "<%REQ(x-a):3%>",
        "%%",
        "%REQ(missing)%",
        "%ROUTE_NAME%",
        "%RESP(x-two)%",
    ])
    .to_owned()
}

fn to_add(dice: &mut Dice) -> Value {
    let name = dice.one(&["x-a", "x-added", "x-two", "server", "x-b"]);
    let mut add = json!({ "header": { "key": name, "value": format(dice) } });
    dice.sometimes(2, &mut add, "append_action", |dice| {
        json!(dice.one(&[
            "APPEND_IF_EXISTS_OR_ADD",
            "ADD_IF_ABSENT",
            "OVERWRITE_IF_EXISTS_OR_ADD",
            "OVERWRITE_IF_EXISTS"
        ]))
    });
    // An empty value is lost in Envoy's joined form of some headers.
    if name != "server" {
        dice.sometimes(4, &mut add, "keep_empty_value", |_| json!(true));
    }
    add
}

/// Header changes of one level.
fn mutate(dice: &mut Dice, target: &mut Value) {
    for which in ["request", "response"] {
        dice.sometimes(3, target, &format!("{which}_headers_to_add"), |dice| json!(dice.some(2, to_add)));
        dice.sometimes(5, target, &format!("{which}_headers_to_remove"), |dice| {
            json!([dice.one(&["x-a", "x-two", "x-b", "accept", "server"])])
        });
    }
}

fn string_match(dice: &mut Dice) -> Value {
    let value = dice.one(&["1", "on", "abc", "ab", "b", "v1", "A"]);
    let mut matcher = match dice.0.u8(..5) {
        0 => json!({ "exact": value }),
        1 => json!({ "prefix": value }),
        2 => json!({ "suffix": value }),
        3 => json!({ "contains": value }),
        _ => {
            return json!({ "safe_regex": { "regex": dice.one(&["[a-c]+", "a.*", "[0-9]+", "(on|off)", ".*b"]) } });
        }
    };
    dice.sometimes(4, &mut matcher, "ignore_case", |_| json!(true));
    matcher
}

fn header_match(dice: &mut Dice) -> Value {
    let name = dice.one(&["x-a", "x-b", "x-c", ":method", ":path", ":authority", "user-agent"]);
    let mut matcher = json!({ "name": name });
    match dice.0.u8(..5) {
        0 => matcher["present_match"] = json!(dice.0.bool()),
        1 => matcher["range_match"] = json!({ "start": -10, "end": 100 }),
        _ => matcher["string_match"] = string_match(dice),
    }
    dice.sometimes(4, &mut matcher, "invert_match", |_| json!(true));
    dice.sometimes(4, &mut matcher, "treat_missing_header_as_empty", |_| json!(true));
    matcher
}

fn route_match(dice: &mut Dice) -> Value {
    let mut found = match dice.0.u8(..6) {
        0 => json!({ "path": dice.one(&["/a", "/a/b", "/api/v1", "/"]) }),
        1 => json!({ "safe_regex": { "regex": dice.one(&["/a.*", "/[a-z]+", "/api/v[0-9]+.*", ".*b"]) } }),
        2 => json!({ "path_separated_prefix": dice.one(&["/a", "/api", "/a/b"]) }),
        _ => json!({ "prefix": dice.one(&["/", "/", "/a", "/api/", "/A", "/a/b"]) }),
    };
    dice.sometimes(5, &mut found, "case_sensitive", |_| json!(false));
    dice.sometimes(3, &mut found, "headers", |dice| json!(dice.some(2, header_match)));
    dice.sometimes(6, &mut found, "query_parameters", |dice| {
        let name = dice.one(&["a", "b", "x"]);
        json!([if dice.0.bool() {
            json!({ "name": name, "string_match": string_match(dice) })
        } else {
            json!({ "name": name, "present_match": true })
        }])
    });
    dice.sometimes(12, &mut found, "grpc", |_| json!({}));
    found
}

fn forward(dice: &mut Dice) -> Value {
    let mut action = match dice.0.u8(..8) {
        0 => json!({ "cluster": dice.one(&["dead", "empty", "none"]) }),
        1 => {
            let mut entry = json!({ "name": "service", "weight": 1 });
            mutate(dice, &mut entry);
            dice.sometimes(3, &mut entry, "host_rewrite_literal", |_| json!("weighted"));
            json!({ "weighted_clusters": { "clusters": [entry] } })
        }
        2 => json!({ "cluster_header": "x-cluster" }),
        _ => json!({ "cluster": "service" }),
    };
    match dice.0.u8(..6) {
        0 => action["prefix_rewrite"] = json!(dice.one(&["/new", "/new/", "/"])),
        1 => {
            let (regex, substitution) =
                dice.one(&[("/a", "/z"), ("a(.*)", "x\\1"), ("[0-9]", ""), ("^/([^/]*)", "/\\1\\1")]);
            action["regex_rewrite"] = json!({ "pattern": { "regex": regex }, "substitution": substitution });
        }
        _ => {}
    }
    match dice.0.u8(..8) {
        0 => action["host_rewrite_literal"] = json!("rewritten"),
        1 => action["host_rewrite_header"] = json!("x-b"),
        2 => {
            action["host_rewrite_path_regex"] =
                json!({ "pattern": { "regex": "^/(.+)/.*$" }, "substitution": "\\1" });
        }
        3 => action["auto_host_rewrite"] = json!(true),
        _ => {}
    }
    dice.sometimes(4, &mut action, "append_x_forwarded_host", |_| json!(true));
    dice.sometimes(5, &mut action, "timeout", |dice| json!(dice.one(&["0s", "5s", "1.5s"])));
    dice.sometimes(4, &mut action, "retry_policy", |dice| {
        json!({ "retry_on": dice.one(&["5xx", "retriable-4xx", "connect-failure", "gateway-error,reset"]), "num_retries": 1 })
    });
    dice.sometimes(6, &mut action, "cluster_not_found_response_code", |dice| {
        json!(dice.one(&["NOT_FOUND", "INTERNAL_SERVER_ERROR"]))
    });
    action
}

fn redirect(dice: &mut Dice) -> Value {
    let mut action = json!({});
    dice.sometimes(2, &mut action, "host_redirect", |_| json!("elsewhere"));
    dice.sometimes(4, &mut action, "port_redirect", |dice| json!(dice.one(&[80, 443, 8080])));
    match dice.0.u8(..4) {
        0 => action["https_redirect"] = json!(true),
        1 => action["scheme_redirect"] = json!("https"),
        _ => {}
    }
    match dice.0.u8(..4) {
        0 => action["path_redirect"] = json!(dice.one(&["/there", "/there?x=1"])),
        1 => action["prefix_rewrite"] = json!("/new"),
        2 => {
            action["regex_rewrite"] = json!({ "pattern": { "regex": "/a" }, "substitution": "/z" });
        }
        _ => {}
    }
    dice.sometimes(3, &mut action, "response_code", |dice| {
        json!(dice.one(&["FOUND", "SEE_OTHER", "TEMPORARY_REDIRECT", "PERMANENT_REDIRECT"]))
    });
    dice.sometimes(4, &mut action, "strip_query", |_| json!(true));
    action
}

fn route(dice: &mut Dice, number: usize) -> Value {
    let mut route = json!({ "match": route_match(dice) });
    dice.sometimes(2, &mut route, "name", |_| json!(format!("route-{number}")));
    match dice.0.u8(..8) {
        0 => route["redirect"] = redirect(dice),
        1 => {
            route["direct_response"] = json!({ "status": dice.one(&[200, 404, 503]) });
            // Not 204: Envoy gives it the length of a body that it then leaves out (RFC 9110, section 8.6 forbids it).
            let body = |_: &mut Dice| json!({ "inline_string": "direct" });
            dice.sometimes(2, &mut route["direct_response"], "body", body);
        }
        _ => route["route"] = forward(dice),
    }
    mutate(dice, &mut route);
    route
}

fn virtual_hosts(dice: &mut Dice) -> Value {
    let mut domains: Vec<&str> = DOMAINS.to_vec();
    dice.0.shuffle(&mut domains);
    let mut hosts = Vec::new();
    for number in 0..1 + dice.0.usize(..3) {
        let routes: Vec<Value> = (0..1 + dice.0.usize(..5)).map(|number| route(dice, number)).collect();
        let domains =
            if number == 0 { vec!["*"] } else { vec![domains.pop().unwrap(), domains.pop().unwrap()] };
        let mut host = json!({ "name": format!("host-{number}"), "domains": domains, "routes": routes });
        mutate(dice, &mut host);
        dice.sometimes(5, &mut host, "include_request_attempt_count", |_| json!(true));
        dice.sometimes(5, &mut host, "include_attempt_count_in_response", |_| json!(true));
        dice.sometimes(8, &mut host, "require_tls", |dice| json!(dice.one(&["ALL", "EXTERNAL_ONLY"])));
        hosts.push(host);
    }
    json!(hosts)
}

/// What a listener's connection manager has besides its name, filters and log.
fn manager(dice: &mut Dice) -> Value {
    let mut routes = json!({ "virtual_hosts": virtual_hosts(dice) });
    mutate(dice, &mut routes);
    dice.sometimes(3, &mut routes, "most_specific_header_mutations_wins", |_| json!(true));
    dice.sometimes(4, &mut routes, "ignore_port_in_host_matching", |_| json!(true));
    dice.sometimes(5, &mut routes, "internal_only_headers", |_| json!(["x-a"]));
    let mut manager = json!({ "route_config": routes });
    let m = &mut manager;
    dice.sometimes(2, m, "normalize_path", |_| json!(true));
    dice.sometimes(3, m, "merge_slashes", |_| json!(true));
    dice.sometimes(3, m, "path_with_escaped_slashes_action", |dice| {
        json!(dice.one(&[
            "KEEP_UNCHANGED",
            "REJECT_REQUEST",
            "UNESCAPE_AND_FORWARD",
            "UNESCAPE_AND_REDIRECT"
        ]))
    });
    dice.sometimes(4, m, "strip_any_host_port", |_| json!(true));
    dice.sometimes(4, m, "strip_trailing_host_dot", |_| json!(true));
    dice.sometimes(3, m, "use_remote_address", |_| json!(true));
    dice.sometimes(4, m, "xff_num_trusted_hops", |dice| json!(dice.one(&[1, 2])));
    dice.sometimes(5, m, "skip_xff_append", |_| json!(true));
    dice.sometimes(5, m, "append_x_forwarded_port", |_| json!(false));
    dice.sometimes(5, m, "generate_request_id", |_| json!(false));
    dice.sometimes(5, m, "preserve_external_request_id", |_| json!(true));
    dice.sometimes(5, m, "always_set_request_id_in_response", |_| json!(true));
    dice.sometimes(4, m, "server_header_transformation", |dice| {
        json!(dice.one(&["APPEND_IF_ABSENT", "PASS_THROUGH"]))
    });
    dice.sometimes(6, m, "server_name", |_| json!("named"));
    dice.sometimes(6, m, "via", |_| json!("proxy"));
    dice.sometimes(6, m, "add_user_agent", |_| json!(true));
    dice.sometimes(
        6,
        m,
        "scheme_header_transformation",
        |dice| json!({ "scheme_to_overwrite": dice.one(&["http", "https"]) }),
    );
    dice.sometimes(
        4,
        m,
        "common_http_protocol_options",
        |dice| json!({ "headers_with_underscores_action": dice.one(&["ALLOW", "DROP_HEADER"]) }),
    );
    dice.sometimes(
        8,
        m,
        "http_protocol_options",
        |_| json!({ "header_key_format": { "proper_case_words": {} } }),
    );
    dice.sometimes(
        6,
        m,
        "internal_address_config",
        |_| json!({ "cidr_ranges": [{ "address_prefix": "127.0.0.0", "prefix_len": 8 }] }),
    );
    dice.sometimes(6, m, "local_reply_config", |dice| {
        let format = dice.one(&["%LOCAL_REPLY_BODY%|%RESPONSE_CODE%", "%REQ(:PATH)%"]);
        json!({ "body_format": { "text_format_source": { "inline_string": format } } })
    });
    manager
}

/// A request as lines, so that lines can be left out.
#[derive(Clone, Debug)]
struct Asked {
    method: &'static str,
    target: String,
    host: &'static str,
    lines: Vec<String>,
    body: Option<&'static str>,
    chunked: bool,
}

fn request(dice: &mut Dice) -> Asked {
    let lines: Vec<String> = dice.some(5, |dice| match dice.0.u8(..14) {
        0 => "x-forwarded-for: 1.2.3.4, 10.0.0.1".to_owned(),
        1 => format!("x-forwarded-proto: {}", dice.one(&["https", "http"])),
        2 => "x-request-id: mine".to_owned(),
        3 => format!("x-cluster: {}", dice.one(&["service", "none", "dead"])),
        4 => format!(
            "act: {}",
            dice.one(&[
                "empty",
                "500",
                "headers",
                "204",
                "chunks",
                "close",
                "no-reason",
                "100-200",
                "early-close"
            ])
        ),
        5 => format!(
            "x-envoy-{}: 1",
            dice.one(&["internal", "original-path", "max-retries", "decorator-operation"])
        ),
        6 => "content-type: application/grpc".to_owned(),
        7 => "x-envoy-upstream-rq-timeout-ms: 3000".to_owned(),
        8 => "connection: x-a, keep-alive".to_owned(),
        _ => format!("{}: {}", dice.one(&NAMES), dice.one(&VALUES)),
    });
    // Envoy joins lines of some names, which says the same (RFC 9110, section 5.3).
    let mut names = std::collections::BTreeSet::new();
    let lines =
        lines.into_iter().filter(|line| names.insert(line.split(':').next().map(str::to_owned))).collect();
    let body = dice.one(&[None, None, Some(""), Some("hello")]);
    Asked {
        method: dice.one(&["GET", "GET", "GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"]),
        target: path(dice),
        host: dice.one(&HOSTS),
        lines,
        body,
        chunked: dice.once_in(3),
    }
}

impl Asked {
    fn bytes(&self) -> Vec<u8> {
        let mut text = format!("{} {} HTTP/1.1\r\nhost: {}\r\n", self.method, self.target, self.host);
        for line in &self.lines {
            text += &format!("{line}\r\n");
        }
        match self.body {
            None => text += "\r\n",
            Some(body) if self.chunked && !body.is_empty() => {
                text += &format!("transfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
            }
            Some(body) => text += &format!("content-length: {}\r\n\r\n{body}", body.len()),
        }
        text.into_bytes()
    }

    fn smaller(&self) -> Vec<Self> {
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
        if let Some((path, _)) = self.target.split_once('?') {
            all.push(Self { target: path.to_owned(), ..self.clone() });
        }
        all
    }
}

/// Members of which any may be left out.
const OPTIONAL: [&str; 6] = [
    "virtual_hosts",
    "routes",
    "headers",
    "query_parameters",
    "request_headers_to_add",
    "response_headers_to_add",
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
                    let keep = usize::from(["virtual_hosts", "routes"].contains(&key.as_str()));
                    if list.len() > keep {
                        out.extend((0..list.len()).map(|index| (path.clone(), index)));
                    }
                }
                walk(member, path, out);
            }
        }
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(index, member)| walk(member, format!("{path}/{index}"), out));
        }
        _ => {}
    }
}

/// Pointers of all objects but those inside `body_format` and the like, which are whole or not at all.
fn objects(value: &Value, path: String) -> Vec<String> {
    match value {
        Value::Object(members) => {
            let mut all = vec![path.clone()];
            for (key, member) in members {
                let whole = [
                    "local_reply_config",
                    "internal_address_config",
                    "scheme_header_transformation",
                    "http_protocol_options",
                ];
                if !whole.contains(&key.as_str()) {
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
    // A request that fails at once is answered before its body is read, and then the connection can't be kept.
    let without_body = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| !line.eq_ignore_ascii_case("connection: close"));
        lines
            .map(|line| line.replace(&format!("received={}", asked.body.unwrap_or("").len()), "received=0"))
            .collect()
    };
    asked.body.is_some() && without_body(envoy) == without_body(lateen)
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
