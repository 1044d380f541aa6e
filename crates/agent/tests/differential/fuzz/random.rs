//! Configurations and requests by chance.

use serde_json::{Value, json};

use super::{clusters, connection, features, secured};

/// A source of choices.
pub(super) struct Dice(pub(super) fastrand::Rng);

impl Dice {
    pub(super) fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.0.usize(..of.len())].clone()
    }

    /// True once in so many times.
    pub(super) fn once_in(&mut self, n: usize) -> bool {
        self.0.usize(..n) == 0
    }

    /// Sets a member once in so many times.
    pub(super) fn sometimes(
        &mut self,
        n: usize,
        target: &mut Value,
        key: &str,
        value: impl FnOnce(&mut Self) -> Value,
    ) {
        if self.once_in(n) {
            target[key] = value(self);
        }
    }

    pub(super) fn some<T>(&mut self, most: usize, mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.0.usize(..=most)).map(|_| make(self)).collect()
    }
}

const DOMAINS: [&str; 8] =
    ["a.example", "b.example", "*.example", "*.a.example", "b.*", "a.example:80", "*-b.example", "[::1]:80"];
pub(super) fn format(dice: &mut Dice) -> String {
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
        "%RESPONSE_CODE%",
        "%RESPONSE_FLAGS%|%RESPONSE_FLAGS_LONG%",
        "%RESPONSE_CODE_DETAILS%",
        "%UPSTREAM_CLUSTER%",
        "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
        "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%",
        "%REQ(:SCHEME)%://%REQ(HOST)%",
        "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
        "%UPSTREAM_PROTOCOL%",
        "%START_TIME(%Y)%",
        "%REQ(:PATH):4%",
        "%RESP(:STATUS)%",
        "%GRPC_STATUS%",
        "%DYNAMIC_METADATA(envoy.filters.http.jwt_authn:payload:sub)%",
        "%DYNAMIC_METADATA(envoy.filters.http.jwt_authn:payload:group)%",
        "%DYNAMIC_METADATA(envoy.filters.http.jwt_authn:failed:message)%",
        "%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
        "%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%",
        "%PATH(NQ)%|%QUERY_PARAM(a)%",
        "%RESP(content-type?x-two):5%",
        "%UPSTREAM_HOST_NAME_WITHOUT_PORT%",
        "%FILTER_CHAIN_NAME%",
        "%REQUESTED_SERVER_NAME%",
        "%DOWNSTREAM_PEER_SUBJECT%|%DOWNSTREAM_PEER_URI_SAN%|%DOWNSTREAM_PEER_DNS_SAN%",
        "%DOWNSTREAM_TLS_VERSION%|%DOWNSTREAM_TLS_CIPHER%",
        "%DOWNSTREAM_PEER_FINGERPRINT_256%|%DOWNSTREAM_PEER_SERIAL%|%DOWNSTREAM_PEER_ISSUER%",
        "%DOWNSTREAM_LOCAL_SUBJECT%|%DOWNSTREAM_LOCAL_URI_SAN%|%DOWNSTREAM_PEER_CERT_V_END%",
        "%UPSTREAM_PEER_SUBJECT%|%UPSTREAM_PEER_URI_SAN%|%UPSTREAM_TLS_VERSION%",
    ])
    .to_owned()
}

pub(super) fn to_add(dice: &mut Dice) -> Value {
    let name = dice.one(&["x-a", "x-added", "x-two", "server", "x-b", "accept", "vary", "via"]);
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
    if !["server", "accept", "vary", "via"].contains(&name) {
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

pub(super) fn string_match(dice: &mut Dice) -> Value {
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

/// Weights by a header's number; where there is none the choice would be chance.
fn by_header(dice: &mut Dice, found: &mut Value) -> Value {
    found["headers"] =
        json!([{ "name": "x-weight", "string_match": { "safe_regex": { "regex": "[0-9]{1,19}" } } }]);
    let mut names = ["service", "dead", "none", "pool-0"];
    dice.0.shuffle(&mut names);
    let entries: Vec<Value> = (0..2 + dice.0.usize(..2))
        .map(|n| {
            let mut entry = json!({ "name": names[n], "weight": dice.one(&[0, 1, 3]) });
            mutate(dice, &mut entry);
            entry
        })
        .chain([json!({ "name": "service", "weight": 1 })])
        .collect();
    json!({
        "weighted_clusters": { "clusters": entries, "header_name": "x-weight" },
        "hash_policy": clusters::hashes(dice),
    })
}

pub(super) fn header_match(dice: &mut Dice) -> Value {
    let name = dice.one(&["x-a", "x-b", "x-c", ":method", ":path", ":authority", "user-agent"]);
    let mut matcher = json!({ "name": name });
    match dice.0.u8(..5) {
        0 => matcher["present_match"] = json!(dice.0.bool()),
        1 => matcher["range_match"] = json!({ "start": -10, "end": 100 }),
        _ => matcher["string_match"] = string_match(dice),
    }
    // Each proxy's listener has a port of its own, which the authority may end with: digits are asked of neither.
    if name == ":authority" {
        let of_value = matcher["string_match"].as_object_mut().into_iter().flatten();
        of_value.filter(|(_, value)| **value == "1").for_each(|(_, value)| *value = json!("a"));
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
    dice.sometimes(10, &mut found, "dynamic_metadata", |dice| {
        let path = json!([{ "key": "payload" }, { "key": dice.one(&["sub", "group"]) }]);
        json!([{ "filter": "envoy.filters.http.jwt_authn", "path": path, "value": { "string_match": string_match(dice) }, "invert": dice.once_in(3) }])
    });
    dice.sometimes(
        12,
        &mut found,
        "runtime_fraction",
        |dice| json!({ "default_value": { "numerator": dice.one(&[0, 100]), "denominator": "HUNDRED" } }),
    );
    found
}

fn forward(dice: &mut Dice) -> Value {
    let pooled = |dice: &mut Dice, name: &str| {
        let mut action = json!({ "cluster": name, "hash_policy": clusters::hashes(dice) });
        dice.sometimes(3, &mut action, "metadata_match", clusters::wanted);
        action
    };
    let mut action = match dice.0.u8(..11) {
        0 => json!({ "cluster": dice.one(&["dead", "empty", "none"]) }),
        3..=5 => {
            let name = dice.one(&clusters::NAMES);
            pooled(dice, name)
        }
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
    dice.sometimes(4, &mut action, "retry_policy", features::retry);
    features::forwarding(dice, &mut action);
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
        2 if dice.once_in(2) => {
            let mut found = route["match"].take();
            route["route"] = by_header(dice, &mut found);
            route["match"] = found;
        }
        3 if dice.once_in(3) => {
            route["match"] = json!({ "connect_matcher": {} });
            route["route"] = connection::tunnel(dice);
        }
        _ => route["route"] = forward(dice),
    }
    dice.sometimes(4, &mut route, "typed_per_filter_config", features::per_filter);
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
        dice.sometimes(6, &mut host, "include_is_timeout_retry_header", |_| json!(true));
        dice.sometimes(8, &mut host, "require_tls", |dice| json!(dice.one(&["ALL", "EXTERNAL_ONLY"])));
        dice.sometimes(4, &mut host, "typed_per_filter_config", features::per_filter);
        dice.sometimes(8, &mut host, "retry_policy", features::retry);
        hosts.push(host);
    }
    json!(hosts)
}

/// What a listener's connection manager has besides its name, filters and log; `clusters` that routes lead to, and what `listener` has
/// besides it, are taken out before.
pub(super) fn manager(dice: &mut Dice) -> Value {
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
    match dice.0.u8(..6) {
        0 => m["strip_any_host_port"] = json!(true),
        1 => m["strip_matching_host_port"] = json!(true),
        _ => {}
    }
    dice.sometimes(4, m, "strip_trailing_host_dot", |_| json!(true));
    dice.sometimes(3, m, "use_remote_address", |_| json!(true));
    dice.sometimes(3, m, "xff_num_trusted_hops", |dice| json!(dice.one(&[1, 2, 3])));
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
        6,
        m,
        "internal_address_config",
        |_| json!({ "cidr_ranges": [{ "address_prefix": "127.0.0.0", "prefix_len": 8 }] }),
    );
    dice.sometimes(4, m, "local_reply_config", features::local_replies);
    dice.sometimes(2, m, "http_filters", features::filters);
    connection::options(dice, m);
    m["clusters"] = clusters::all(dice);
    dice.sometimes(4, m, "transport_socket", secured::listener);
    manager
}
