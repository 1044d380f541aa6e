//! Role-based access control: the HTTP filter in cases of its own and with random policies, and the network filter.

use fastrand::Rng;
use serde_json::{Value, json};

use crate::cases::{Case, Compare, Step};
use crate::duo::{Backend, Duo, KINDS, cluster, route};
use crate::proxies::{Pair, manager};

const HTTP: &str = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC";
const NETWORK: &str = "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC";
const PER_ROUTE: &str = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute";

pub(crate) fn http(mut config: Value) -> Value {
    config["@type"] = json!(HTTP);
    json!({ "name": "rbac", "typed_config": config })
}

fn network(mut config: Value) -> Value {
    config["@type"] = json!(NETWORK);
    json!({ "name": "rbac", "typed_config": config })
}

pub(crate) fn rules(action: &str, policies: Value) -> Value {
    json!({ "action": action, "policies": policies })
}

pub(crate) fn policy(permission: Value, principal: Value) -> Value {
    json!({ "permissions": [permission], "principals": [principal] })
}

fn path(matcher: Value) -> Value {
    json!({ "url_path": { "path": matcher } })
}

fn any() -> Value {
    json!({ "any": true })
}

fn header(name: &str, matcher: Value) -> Value {
    json!({ "header": { "name": name, "string_match": matcher } })
}

fn service(prefix: &str, config: Option<Value>) -> Value {
    let mut route =
        json!({ "name": prefix, "match": { "prefix": prefix }, "route": { "cluster": "service" } });
    if let Some(mut config) = config {
        config["@type"] = json!(PER_ROUTE);
        route["typed_per_filter_config"] = json!({ "rbac": config });
    }
    route
}

pub(crate) fn listeners() -> Vec<(&'static str, Value)> {
    let denied = || {
        rules(
            "DENY",
            json!({
                "ns[a]-policy[no admins]-rule[0]": policy(path(json!({ "prefix": "/admin" })), any()),
                "a-first": policy(path(json!({ "exact": "/admin/first" })), any()),
                "by-template": policy(json!({ "uri_template": { "name": "t", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig",
                    "path_template": "/t/*/end/**",
                } } }), any()),
            }),
        )
    };
    let allowed = rules(
        "ALLOW",
        json!({ "users": policy(any(), header("x-user", json!({ "prefix": "al" }))), "ports": policy(
            json!({ "and_rules": { "rules": [
                { "destination_port_range": { "start": 1, "end": 65_536 } },
                { "not_rule": { "destination_port": 1 } }, path(json!({ "suffix": ".png" })),
            ] } }), any(),
        ) }),
    );
    let logged = rules("LOG", json!({ "all": policy(any(), any()) }));
    let none = rules("ALLOW", json!({}));
    let routes = json!([
        service("/free", Some(json!({}))),
        service("/own", Some(json!({ "rbac": {
            "rules": rules("DENY", json!({ "own": policy(any(), any()) })), "rules_stat_prefix": "r.",
            "shadow_rules": rules("DENY", json!({ "shadow": policy(any(), any()) })), "shadow_rules_stat_prefix": "rs.",
        } }))),
        service("/plain-own", Some(json!({ "rbac": {
            "rules": rules("DENY", json!({ "own": policy(any(), any()) })),
            "shadow_rules": rules("ALLOW", json!({ "shadow": policy(any(), any()) })),
        } }))),
        { "name": "direct", "match": { "prefix": "/admin/direct" }, "direct_response": { "status": 200 } },
        service("/", None),
    ]);
    vec![
        (
            "denying",
            manager(
                vec![http(
                    json!({ "rules": denied(), "shadow_rules": allowed, "shadow_rules_stat_prefix": "dry_run_" }),
                )],
                routes.clone(),
                json!({}),
            ),
        ),
        (
            "allowing",
            manager(
                vec![
                    http(json!({ "rules": allowed, "rules_stat_prefix": "first" })),
                    http(
                        json!({ "rules": denied(), "rules_stat_prefix": "second.", "shadow_rules": logged, "shadow_rules_stat_prefix": "s." }),
                    ),
                ],
                routes.clone(),
                json!({}),
            ),
        ),
        ("logging", manager(vec![http(json!({ "rules": logged }))], routes.clone(), json!({}))),
        ("nobody", manager(vec![http(json!({ "rules": none }))], routes.clone(), json!({}))),
        ("no-rules", manager(vec![http(json!({}))], routes, json!({}))),
    ]
}

/// Numbers that must be the same when all cases have been played.
pub(crate) const STATS: [&str; 5] = [
    r"^http\.denying\.rbac\.",
    r"^http\.allowing\.rbac\.",
    r"^http\.logging\.rbac\.",
    r"^http\.nobody\.rbac\.",
    r"^http\.no-rules\.rbac\.",
];

fn ask(name: &'static str, request: &str, more: &str) -> Case {
    Case {
        name,
        listener: "denying",
        steps: vec![
            Step::Send(format!("{request} HTTP/1.1\r\nhost: a.example\r\n{more}\r\n").into_bytes()),
            Step::Answers(vec!["GET"]),
            Step::Probe,
        ],
        compare: Compare::Everything,
    }
}

pub(crate) fn cases() -> Vec<Case> {
    let grpc = "content-type: application/grpc\r\n";
    let mut all = vec![
        ask("access: not denied", "GET /", ""),
        ask("access: denied", "GET /admin/x?y", ""),
        ask("access: denied gRPC", "GET /admin", grpc),
        ask("access: the first policy by name", "GET /admin/first", ""),
        ask("access: the query does not count", "GET /x?/admin", ""),
        ask("access: case", "GET /Admin", ""),
        ask("access: two slashes", "GET //admin", ""),
        ask("access: an encoded letter", "GET /%61dmin", ""),
        ask("access: an encoded slash", "GET /x/..%2fadmin", ""),
        ask("access: path parameters", "GET /admin;x=y", ""),
        ask("access: a template", "GET /t/x/end/y/z", ""),
        ask("access: a template with an empty part", "GET /t//end/", ""),
        ask("access: before a direct response", "GET /admin/direct", ""),
        ask("access: a route without", "GET /free/admin", ""),
        ask("access: a route's own", "GET /own/x", ""),
        ask("access: a route's own without a prefix", "GET /plain-own/x", ""),
        ask("access: a user", "GET /x", "x-user: alice\r\n"),
        ask("access: two users", "GET /x", "x-user: bob\r\nx-user: alice\r\n"),
        ask("access: allowed twice", "GET /x.png?y", "x-user: bob\r\n"),
        ask("access: allowed and denied", "GET /admin", "x-user: alice\r\n"),
    ];
    let others = ["allowing", "logging", "nobody", "no-rules"].into_iter().flat_map(|listener| {
        [
            ask("access: plain elsewhere", "GET /x", "").on(listener),
            ask("access: a user elsewhere", "GET /admin", "x-user: alice\r\n").on(listener),
            ask("access: a picture elsewhere", "GET /a.png", "").on(listener),
            ask("access: a free route elsewhere", "GET /free", "").on(listener),
            ask("access: a route's own elsewhere", "GET /own", "x-user: al\r\n").on(listener),
            ask("access: a route's own without a prefix elsewhere", "GET /plain-own", "").on(listener),
        ]
    });
    all.extend(others.collect::<Vec<_>>());
    // A probe of its own would be refused, and counted.
    for case in &mut all {
        case.steps.retain(|step| !matches!(step, Step::Probe));
    }
    all
}

const PATHS: [&str; 9] = ["/", "/a", "/a/", "/a/b", "/a/b/c", "/A/B", "/b?a=/a", "/a/b%20c", "/a;b"];
const USERS: [&str; 5] =
    ["", "x-user: alice\r\n", "x-user: bob\r\n", "x-user: alice\r\nx-user: bob\r\n", "x-user: \r\n"];
const CLIENTS: [&str; 3] = ["", "x-forwarded-for: 10.1.2.3\r\n", "x-forwarded-for: 2001:db8::1\r\n"];

/// Random policies and requests.
struct Dice(Rng);

impl Dice {
    fn pick<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.0.usize(..list.len())]
    }

    fn string(&mut self, values: &[&str]) -> Value {
        let value = self.pick(values);
        let kind = self.pick(&["exact", "prefix", "suffix", "contains"]);
        let mut matcher = match kind {
            // Only `exact` may be empty.
            kind if value.is_empty() && kind != "exact" => json!({ "exact": "" }),
            kind => json!({ kind: value }),
        };
        if self.0.u8(..6) == 0 {
            matcher["ignore_case"] = json!(true);
        }
        if self.0.u8(..10) == 0 {
            matcher = json!({ "safe_regex": { "regex": format!("{}.*", value.replace('?', "x")) } });
        }
        matcher
    }

    fn header(&mut self) -> Value {
        let (name, values): (_, &[&str]) = match self.0.u8(..4) {
            0 => (":method", &["GET", "POST", "G"]),
            1 => (":authority", &["a.example", "a", "b"]),
            2 => (":path", &PATHS),
            _ => ("x-user", &["alice", "bob", "alice,bob", "a", ""]),
        };
        let mut header = match self.0.u8(..5) {
            0 => json!({ "present_match": self.0.bool() }),
            _ => json!({ "string_match": self.string(values) }),
        };
        header["name"] = json!(name);
        header["invert_match"] = json!(self.0.u8(..4) == 0);
        header["treat_missing_header_as_empty"] = json!(self.0.u8(..4) == 0);
        json!({ "header": header })
    }

    fn net(&mut self) -> Value {
        let (address, most) = match self.pick(&["127.0.0.1", "10.1.2.3", "2001:db8::1"]) {
            six if six.contains(':') => (six, 128),
            four => (four, 32),
        };
        json!({ "address_prefix": address, "prefix_len": self.0.u32(..=most) })
    }

    fn permission(&mut self, depth: u8) -> Value {
        match self.0.u8(..) % 12 {
            0 if depth > 0 => json!({ "and_rules": { "rules": self.several(depth, Self::permission) } }),
            1 if depth > 0 => json!({ "or_rules": { "rules": self.several(depth, Self::permission) } }),
            2 if depth > 0 => json!({ "not_rule": self.permission(depth - 1) }),
            3 => any(),
            4 => json!({ "destination_ip": self.net() }),
            5 => json!({ "requested_server_name": self.string(&["", "a"]) }),
            6 => json!({ "destination_port": 1 }),
            7 => self.header(),
            _ => path(self.string(&PATHS)),
        }
    }

    fn principal(&mut self, depth: u8) -> Value {
        match self.0.u8(..) % 14 {
            0 if depth > 0 => json!({ "and_ids": { "ids": self.several(depth, Self::principal) } }),
            1 if depth > 0 => json!({ "or_ids": { "ids": self.several(depth, Self::principal) } }),
            2 if depth > 0 => json!({ "not_id": self.principal(depth - 1) }),
            3 | 4 => any(),
            5 => json!({ "source_ip": self.net() }),
            6 => json!({ "direct_remote_ip": self.net() }),
            7 | 8 => json!({ "remote_ip": self.net() }),
            9 => json!({ "authenticated": {} }),
            10 => json!({ "metadata": {
                "filter": "f", "path": [{ "key": "k" }], "value": { "present_match": true }, "invert": self.0.bool(),
            } }),
            11 => path(self.string(&PATHS)),
            _ => self.header(),
        }
    }

    fn several(&mut self, depth: u8, one: fn(&mut Self, u8) -> Value) -> Vec<Value> {
        (0..self.0.usize(1..4)).map(|_| one(self, depth - 1)).collect()
    }

    fn rules(&mut self) -> Value {
        let action = self.pick(&["ALLOW", "DENY", "DENY", "ALLOW", "LOG"]);
        let policies: serde_json::Map<String, Value> = (0..self.0.usize(..14))
            .map(|_| {
                let name = format!("p{}", self.0.u32(..1000));
                let permissions = self.several(3, Self::permission);
                (name, json!({ "permissions": permissions, "principals": self.several(3, Self::principal) }))
            })
            .collect();
        rules(action, Value::Object(policies))
    }

    fn request(&mut self) -> Case {
        let method = self.pick(&["GET", "POST", "GET"]);
        let request = format!("{method} {}", self.pick(&PATHS));
        let more = format!("{}{}content-length: 0\r\n", self.pick(&USERS), self.pick(&CLIENTS));
        let mut case = ask("random", &request, &more);
        case.steps.retain(|step| !matches!(step, Step::Probe));
        case
    }
}

/// Policies that nobody thought of, each asked about with several requests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn access_by_random_policies_is_the_same() {
    let seed = std::env::var("ACCESS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let mut dice = Dice(Rng::with_seed(seed));
    let names: Vec<&'static str> = (0..60).map(|number| &*format!("random-{number}").leak()).collect();
    let listeners = names.iter().map(|name| {
        let filter = http(json!({ "rules": dice.rules(), "shadow_rules": dice.rules() }));
        let trusting = json!({ "use_remote_address": true, "xff_num_trusted_hops": 1 });
        (*name, manager(vec![filter], json!([service("/", None)]), trusting))
    });
    let pair = Pair::start_with(listeners.collect()).await;
    let cases: Vec<Case> =
        names.iter().flat_map(|name| (0..14).map(|_| dice.request().on(name)).collect::<Vec<_>>()).collect();
    let complaints = crate::compare(&pair, cases, &[r"\.rbac\."]).await;
    assert!(complaints.is_empty(), "seed {seed}\n{complaints}");
    let pages = pair.pages(r"/stats?filter=rbac\.(denied|allowed)$").await;
    for part in ["denied", "allowed"] {
        let total: u64 = pages[0]
            .lines()
            .filter(|line| line.contains(part))
            .filter_map(|line| line.rsplit_once(": ")?.1.trim().parse::<u64>().ok())
            .sum();
        assert!(total > 60, "only {total} {part}: the policies tell too little");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_closed_with_their_first_byte() {
    let backend = Backend::start("it").await;
    let deny = |principal: Value| rules("DENY", json!({ "no one": policy(any(), principal) }));
    let local = || json!({ "direct_remote_ip": { "address_prefix": "127.0.0.0", "prefix_len": 8 } });
    let gate = |config: Value| json!({ "cluster": "it", "before": [network(config)] });
    let listeners = [
        ("closed", gate(json!({ "stat_prefix": "closed.", "rules": deny(local()) }))),
        (
            "open",
            gate(
                json!({ "stat_prefix": "tcp.", "rules": deny(json!({ "not_id": local() })), "shadow_rules": deny(any()), "shadow_rules_stat_prefix": "dry_" }),
            ),
        ),
        (
            "noted",
            gate(
                json!({ "stat_prefix": "noted.", "rules": rules("LOG", json!({ "p": policy(any(), local()) })) }),
            ),
        ),
        (
            "not-noted",
            gate(
                json!({ "stat_prefix": "quiet.", "rules": rules("LOG", json!({ "p": policy(any(), json!({ "not_id": local() })) })) }),
            ),
        ),
        // What is about requests can't hold where there are none.
        (
            "path",
            gate(
                json!({ "stat_prefix": "path", "rules": rules("ALLOW", json!({ "p": policy(path(json!({ "prefix": "/" })), any()) })) }),
            ),
        ),
        (
            "two",
            json!({ "cluster": "it", "before": [
            network(json!({ "stat_prefix": "one.", "rules": rules("ALLOW", json!({ "p": policy(any(), local()) })) })),
            network(json!({ "stat_prefix": "two.", "rules": rules("ALLOW", json!({})) })),
        ] }),
        ),
    ];
    let endpoints = vec![backend.endpoint(json!({}))];
    let duo =
        Duo::start(json!([route("it", json!({}))]), &[cluster("it", endpoints, json!({}))], &listeners).await;
    let [envoy, lateen] = duo.connections(&listeners, &[("two.rbac.denied", 2)], "rbac").await;
    assert_eq!(envoy, lateen, "{} first", KINDS[0]);
    assert!(envoy.contains("closed: \"\"") && envoy.contains("open: \"HTTP/1.1 200"), "{envoy}");
    assert!(envoy.contains("rbac_access_denied_matched_policy[no_one]"), "{envoy}");
}
