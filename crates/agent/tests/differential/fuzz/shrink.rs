//! Smaller configurations and requests, as long as they still differ.

use serde_json::Value;

use super::{Attempt, differences};

/// Rounds of shrinking.
const ROUNDS: usize = 12;
/// Smaller ones that are tried in a round.
const CANDIDATES: usize = 24;

/// Members of which any may be left out.
const OPTIONAL: [&str; 10] = [
    "clusters",
    "endpoints",
    "lb_endpoints",
    "http_filters",
    "virtual_hosts",
    "routes",
    "headers",
    "query_parameters",
    "request_headers_to_add",
    "response_headers_to_add",
];

/// Members that are whole or not at all.
const WHOLE: [&str; 18] = [
    "request_id_extension",
    "transport_socket",
    "listener",
    "lb_subset_config",
    "upgrade_configs",
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
                &[
                    "type",
                    "lb_policy",
                    "load_assignment",
                    "circuit_breakers",
                    "ignore_health_on_host_removal",
                    "health_checks",
                    "load_balancing_policy",
                    "hash_policy",
                    "header_name",
                ],
                &["explicit_http_config"],
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
                    // Without its match a choice by weights would be chance; and weights must not sum up to nothing.
                    let weighs = path.ends_with("/weighted_clusters/clusters");
                    if list.len() > keep && !weighs && !member.to_string().contains("\"x-weight\"") {
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
                if !WHOLE.contains(&key.as_str()) && key != "load_assignment" {
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

/// The smallest attempt found that still differs.
pub(super) async fn shrink(mut attempt: Attempt, mut difference: String) -> (Attempt, String) {
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
