//! What configurations have besides their routes: HTTP filters with what routes say about them, retries, mirrors, local replies.

use serde_json::{Value, json};

use super::random::{Dice, format, header_match, string_match, to_add};
use super::{secured, tokens};
use crate::proxies::router;

const FILTERS: &str = "type.googleapis.com/envoy.extensions.filters.http";

fn whole(numerator: u32) -> Value {
    json!({ "numerator": numerator, "denominator": "HUNDRED" })
}

/// HTTP filters, the router last.
pub(super) fn filters(dice: &mut Dice) -> Value {
    let mut all = Vec::new();
    for _ in 0..dice.0.usize(..3) {
        all.push(match dice.0.u8(..7) {
            0 | 1 => rbac(dice),
            3 | 4 => tokens::filter(dice),
            2 => json!({ "name": "envoy.filters.http.fault", "typed_config": fault(dice) }),
            _ => json!({ "name": "envoy.filters.http.cors", "typed_config": { "@type": format!("{FILTERS}.cors.v3.Cors") } }),
        });
    }
    // Twice the same would be two filters with one name.
    let mut names = std::collections::BTreeSet::new();
    all.retain(|filter| names.insert(filter["name"].to_string()));
    let mut router = router();
    dice.sometimes(6, &mut router["typed_config"], "suppress_envoy_headers", |_| json!(true));
    all.push(router);
    json!(all)
}

/// What a route or a host says about filters.
pub(super) fn per_filter(dice: &mut Dice) -> Value {
    let mut all = json!({});
    dice.sometimes(2, &mut all, "envoy.filters.http.cors", cors);
    dice.sometimes(4, &mut all, "envoy.filters.http.fault", fault);
    dice.sometimes(4, &mut all, "envoy.filters.http.rbac", |dice| {
        let mut rules = rbac(dice)["typed_config"].take();
        rules.as_object_mut().unwrap().remove("@type");
        json!({ "@type": format!("{FILTERS}.rbac.v3.RBACPerRoute"), "rbac": rules })
    });
    dice.sometimes(5, &mut all, "envoy.filters.http.jwt_authn", tokens::per_route);
    all
}

fn cors(dice: &mut Dice) -> Value {
    let mut policy = json!({ "@type": format!("{FILTERS}.cors.v3.CorsPolicy") });
    let p = &mut policy;
    p["allow_origin_string_match"] = json!([dice.one(&[
        json!({ "exact": "https://a.example" }),
        json!({ "prefix": "https://" }),
        json!({ "safe_regex": { "regex": ".*example" } }),
        json!({ "exact": "*" }),
    ])]);
    dice.sometimes(2, p, "allow_methods", |_| json!("GET,PUT"));
    dice.sometimes(2, p, "allow_headers", |_| json!("x-a"));
    dice.sometimes(3, p, "expose_headers", |_| json!("x-b"));
    dice.sometimes(3, p, "max_age", |_| json!("60"));
    dice.sometimes(3, p, "allow_credentials", |dice| json!(dice.0.bool()));
    dice.sometimes(4, p, "forward_not_matching_preflights", |dice| json!(dice.0.bool()));
    dice.sometimes(4, p, "allow_private_network_access", |_| json!(true));
    dice.sometimes(6, p, "filter_enabled", |_| json!({ "default_value": whole(0) }));
    dice.sometimes(6, p, "shadow_enabled", |_| json!({ "default_value": whole(100) }));
    policy
}

fn fault(dice: &mut Dice) -> Value {
    let mut config = json!({ "@type": format!("{FILTERS}.fault.v3.HTTPFault") });
    match dice.0.u8(..4) {
        0 => config["abort"] = json!({ "header_abort": {}, "percentage": whole(100) }),
        1 => config["abort"] = json!({ "grpc_status": 14, "percentage": whole(100) }),
        _ => {
            config["abort"] =
                json!({ "http_status": dice.one(&[418, 503]), "percentage": whole(dice.one(&[0, 100])) })
        }
    }
    dice.sometimes(3, &mut config, "delay", |_| json!({ "fixed_delay": "0.01s", "percentage": whole(100) }));
    dice.sometimes(2, &mut config, "headers", |dice| json!([header_match(dice)]));
    dice.sometimes(6, &mut config["abort"], "response_body", |_| json!("broken on purpose"));
    dice.sometimes(8, &mut config, "upstream_cluster", |dice| json!(dice.one(&["service", "dead"])));
    dice.sometimes(8, &mut config, "downstream_nodes", |dice| {
        json!([dice.one(&["both", "differential", "other"])])
    });
    config
}

fn permission(dice: &mut Dice, depth: usize) -> Value {
    match dice.0.u8(..if depth == 0 { 4 } else { 7 }) {
        0 => json!({ "any": true }),
        1 => json!({ "header": header_match(dice) }),
        2 => json!({ "url_path": { "path": string_match(dice) } }),
        3 => json!({ "requested_server_name": string_match(dice) }),
        4 => json!({ "not_rule": permission(dice, depth - 1) }),
        5 => json!({ "or_rules": { "rules": [permission(dice, depth - 1), permission(dice, depth - 1)] } }),
        _ => json!({ "and_rules": { "rules": [permission(dice, depth - 1), permission(dice, depth - 1)] } }),
    }
}

fn principal(dice: &mut Dice, depth: usize) -> Value {
    match dice.0.u8(..if depth == 0 { 7 } else { 9 }) {
        0 => json!({ "any": true }),
        5 => of_token(dice),
        6 => secured::principal(dice),
        1 => json!({ "header": header_match(dice) }),
        2 => json!({ "url_path": { "path": string_match(dice) } }),
        3 => json!({ "direct_remote_ip": { "address_prefix": "127.0.0.0", "prefix_len": 8 } }),
        4 => json!({ "remote_ip": { "address_prefix": "1.2.3.4", "prefix_len": 32 } }),
        7 => json!({ "not_id": principal(dice, depth - 1) }),
        _ => json!({ "or_ids": { "ids": [principal(dice, depth - 1), principal(dice, depth - 1)] } }),
    }
}

/// What a token said.
fn of_token(dice: &mut Dice) -> Value {
    let value = match dice.0.u8(..4) {
        0 => json!({ "present_match": true }),
        1 => json!({ "list_match": { "one_of": { "string_match": string_match(dice) } } }),
        2 => json!({ "bool_match": true }),
        _ => json!({ "string_match": string_match(dice) }),
    };
    let path = json!([{ "key": "payload" }, { "key": dice.one(&["sub", "group", "aud"]) }]);
    let mut wanted = json!({ "filter": "envoy.filters.http.jwt_authn", "path": path, "value": value });
    dice.sometimes(4, &mut wanted, "invert", |_| json!(true));
    if dice.once_in(4) {
        return json!({ "sourced_metadata": { "metadata_matcher": wanted } });
    }
    json!({ "metadata": wanted })
}

fn rules(dice: &mut Dice) -> Value {
    let policy =
        |dice: &mut Dice| json!({ "permissions": [permission(dice, 2)], "principals": [principal(dice, 1)] });
    let policies: serde_json::Map<String, Value> =
        (0..1 + dice.0.usize(..3)).map(|n| (format!("policy-{n}"), policy(dice))).collect();
    json!({ "action": dice.one(&["ALLOW", "ALLOW", "DENY", "DENY", "LOG"]), "policies": policies })
}

fn rbac(dice: &mut Dice) -> Value {
    let mut config = json!({ "@type": format!("{FILTERS}.rbac.v3.RBAC") });
    dice.sometimes(1, &mut config, "rules", rules);
    dice.sometimes(3, &mut config, "shadow_rules", rules);
    dice.sometimes(4, &mut config, "rules_stat_prefix", |_| json!("p_"));
    dice.sometimes(4, &mut config, "shadow_rules_stat_prefix", |_| json!("s_"));
    json!({ "name": "envoy.filters.http.rbac", "typed_config": config })
}

pub(super) fn retry(dice: &mut Dice) -> Value {
    let on = dice.one(&[
        "5xx",
        "retriable-4xx",
        "connect-failure",
        "gateway-error,reset",
        "retriable-status-codes",
        "retriable-headers",
        "envoy-ratelimited",
        "reset-before-request,refused-stream",
        "cancelled,unavailable,internal",
    ]);
    let mut policy = json!({ "retry_on": on, "num_retries": dice.one(&[0, 1, 2]), "retry_back_off": { "base_interval": "0.001s" } });
    let p = &mut policy;
    dice.sometimes(6, p, "per_try_idle_timeout", |_| json!("5s"));
    dice.sometimes(6, p, "retry_priority", |_| {
        json!({ "name": "envoy.retry_priorities.previous_priorities", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
            "update_frequency": 1,
        } })
    });
    dice.sometimes(3, p, "retriable_status_codes", |dice| json!([dice.one(&[404, 409, 503])]));
    dice.sometimes(4, p, "retriable_headers", |dice| json!([header_match(dice)]));
    dice.sometimes(4, p, "retriable_request_headers", |dice| json!([header_match(dice)]));
    dice.sometimes(4, p, "per_try_timeout", |_| json!("2s"));
    dice.sometimes(5, p, "host_selection_retry_max_attempts", |dice| json!(dice.one(&[1, 5])));
    dice.sometimes(6, p, "rate_limited_retry_back_off", |_| {
        json!({ "reset_headers": [{ "name": "retry-after", "format": "SECONDS" }], "max_interval": "0.01s" })
    });
    dice.sometimes(4, p, "retry_host_predicate", |_| {
        json!([{ "name": "envoy.retry_host_predicates.previous_hosts", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate" } }])
    });
    policy
}

/// More of a route's action that leads to a cluster.
pub(super) fn forwarding(dice: &mut Dice, action: &mut Value) {
    dice.sometimes(
        8,
        action,
        "request_mirror_policies",
        |dice| {
            let bare = dice.0.bool();
            json!([{ "cluster": "mirror", "runtime_fraction": { "default_value": whole(100) }, "disable_shadow_host_suffix_append": bare }])
        },
    );
    if action["hash_policy"].is_null() {
        dice.sometimes(8, action, "hash_policy", super::clusters::hashes);
    }
    dice.sometimes(8, action, "upgrade_configs", super::connection::upgrades);
    dice.sometimes(8, action, "internal_redirect_policy", |dice| {
        let mut policy =
            json!({ "max_internal_redirects": dice.one(&[1, 2]), "redirect_response_codes": [302, 303] });
        dice.sometimes(3, &mut policy, "allow_cross_scheme_redirect", |_| json!(true));
        dice.sometimes(3, &mut policy, "response_headers_to_copy", |_| json!(["x-two"]));
        policy
    });
    dice.sometimes(
        8,
        action,
        "max_stream_duration",
        |_| json!({ "max_stream_duration": "5s", "grpc_timeout_header_max": "3s" }),
    );
    dice.sometimes(12, action, "max_grpc_timeout", |dice| json!(dice.one(&["0s", "4s"])));
    dice.sometimes(12, action, "grpc_timeout_offset", |_| json!("0.1s"));
    dice.sometimes(10, action, "idle_timeout", |_| json!("10s"));
    dice.sometimes(10, action, "priority", |_| json!("HIGH"));
}

/// `local_reply_config`.
pub(super) fn local_replies(dice: &mut Dice) -> Value {
    let mut config = json!({});
    dice.sometimes(2, &mut config, "mappers", |dice| json!(dice.some(2, mapper)));
    dice.sometimes(2, &mut config, "body_format", body_format);
    config
}

fn mapper(dice: &mut Dice) -> Value {
    let mut mapper = json!({ "filter": filter(dice, 1) });
    dice.sometimes(3, &mut mapper, "status_code", |dice| json!(dice.one(&[200, 418, 599])));
    dice.sometimes(3, &mut mapper, "body", |_| json!({ "inline_string": "mapped" }));
    dice.sometimes(3, &mut mapper, "body_format_override", body_format);
    dice.sometimes(3, &mut mapper, "headers_to_add", |dice| json!(dice.some(2, to_add)));
    mapper
}

fn filter(dice: &mut Dice, depth: usize) -> Value {
    match dice.0.u8(..if depth == 0 { 4 } else { 6 }) {
        0 => {
            let value = json!({ "default_value": dice.one(&[400, 404, 503]), "runtime_key": "none" });
            json!({ "status_code_filter": { "comparison": { "op": dice.one(&["EQ", "GE", "LE"]), "value": value } } })
        }
        1 => json!({ "header_filter": { "header": header_match(dice) } }),
        2 => {
            json!({ "response_flag_filter": { "flags": [dice.one(&["NR", "NC", "UH", "UF", "FI", "DPE"])] } })
        }
        3 => json!({ "not_health_check_filter": {} }),
        4 => json!({ "and_filter": { "filters": [filter(dice, depth - 1), filter(dice, depth - 1)] } }),
        _ => json!({ "or_filter": { "filters": [filter(dice, depth - 1), filter(dice, depth - 1)] } }),
    }
}

fn body_format(dice: &mut Dice) -> Value {
    match dice.0.u8(..3) {
        0 => {
            json!({ "json_format": { "status": "%RESPONSE_CODE%", "of": format(dice), "list": [format(dice), 7, true] } })
        }
        1 => {
            json!({ "text_format_source": { "inline_string": format!("{}|%LOCAL_REPLY_BODY%\n", format(dice)) }, "content_type": "text/html" })
        }
        _ => {
            json!({ "text_format_source": { "inline_string": "%LOCAL_REPLY_BODY%|%RESPONSE_CODE%|%REQ(:PATH)%" } })
        }
    }
}
