//! The admin pages of both proxies, shape by shape.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde_json::Value;

use crate::proxies::Pair;

/// Paths of a document's members with the kinds of their values. Members of lists count as one.
fn shape(value: &Value, path: &str, out: &mut BTreeSet<String>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                shape(member, &format!("{path}.{name}"), out);
            }
        }
        Value::Array(members) => members.iter().for_each(|member| shape(member, &format!("{path}[]"), out)),
        Value::Null => drop(out.insert(format!("{path}: null"))),
        Value::Bool(_) => drop(out.insert(format!("{path}: bool"))),
        Value::Number(_) => drop(out.insert(format!("{path}: number"))),
        Value::String(_) => drop(out.insert(format!("{path}: string"))),
    }
}

fn body(answer: &str) -> &str {
    answer.split_once("\n\n").map_or("", |(_, body)| body)
}

/// Status and headers, but for those about the body's length.
fn head(answer: &str) -> Vec<&str> {
    let head = answer.split_once("\n\n").map_or(answer, |(head, _)| head);
    head.lines()
        .filter(|line| !line.starts_with("content-length") && !line.starts_with("transfer-encoding"))
        .collect()
}

/// Pages that are looked at, with what Envoy has and the engine has nothing for: flags it does not take, and facts of its build.
const JSON: [(&str, &[&str]); 9] = [
    ("/clusters?format=json", &[]),
    ("/listeners?format=json", &[]),
    (
        "/server_info",
        &[".command_line_options.", ".hot_restart_initializing", ".node.extensions", ".node.user_agent"],
    ),
    ("/config_dump", &[".configs[].bootstrap.node.extensions", ".configs[].bootstrap.node.user_agent"]),
    ("/config_dump?resource=static_listeners", &[]),
    ("/config_dump?resource=static_clusters", &[]),
    ("/config_dump?resource=dynamic_active_secrets", &[]),
    ("/certs", &[]),
    ("/memory", &[]),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn json_pages_have_the_same_shape() {
    let pair = Pair::start().await;
    pair.warm().await;
    let mut complaints = String::new();
    for (path, not_ours) in JSON {
        let pages = pair.pages(path).await;
        let [envoy, lateen] = pages.map(|page| {
            let mut out = BTreeSet::new();
            shape(
                &serde_json::from_str(body(&page)).unwrap_or_else(|error| panic!("{path}: {error}: {page}")),
                "",
                &mut out,
            );
            out
        });
        let missing: Vec<_> = envoy
            .difference(&lateen)
            .filter(|member| !not_ours.iter().any(|known| member.starts_with(known)))
            .collect();
        let extra: Vec<_> = lateen.difference(&envoy).collect();
        if !missing.is_empty() || !extra.is_empty() {
            writeln!(complaints, "=== {path}\n  only Envoy's: {missing:#?}\n  only ours: {extra:#?}")
                .unwrap();
        }
    }
    assert!(complaints.is_empty(), "\n{complaints}");
}

/// What a line of a text page is about, without addresses, values and the like.
fn kind(line: &str) -> String {
    let line = line.trim();
    match line.split("::").collect::<Vec<_>>()[..] {
        [_, name, _] => name.to_owned(),
        // The third part is a host or a priority.
        [_, of, name, _] => {
            let host = of.parse::<std::net::SocketAddr>().is_ok();
            format!("{}::{name}", if host { "host" } else { of })
        }
        _ => {
            let name = line.split_once(": ").map_or(line, |(name, _)| name);
            match name.strip_prefix("listener.127.0.0.1_").and_then(|rest| rest.split_once('.')) {
                Some((_, leaf)) => format!("listener.ADDRESS.{leaf}"),
                None => name.to_owned(),
            }
        }
    }
}

/// Numbers about what the engine does not have (subsets, zone-aware balancing, tracing, HTTP/3, pre-connecting, internal
/// redirects, TLS), or does not keep. Everything else that Envoy counts is there.
const NOT_KEPT: [&str; 40] = [
    ".lb_",
    ".tracing.",
    ".external.",
    ".default.total_match_count",
    ".http1.",
    ".http2.",
    ".passthrough_internal_redirect_",
    "http.admin.",
    "http.async-client.",
    ".admin.",
    "_pool_open",
    ".assignment_use_cached",
    ".membership_change",
    ".update_",
    ".upstream_cx_preconnect_skipped",
    ".upstream_cx_rx_bytes_buffered",
    ".upstream_cx_tx_bytes_buffered",
    ".upstream_flow_control_",
    ".upstream_http3_broken",
    ".upstream_queue_overloaded",
    ".upstream_rq_0rtt",
    ".upstream_rq_active_overflow",
    ".upstream_rq_per_cx",
    ".upstream_rq_rx_reset_no_error",
    ".version",
    ".warming_state",
    ".downstream_cx_http1_soft_drain",
    ".rq_overload_local_reply",
    ".worker_",
    ".http.",
    ".extension_config_",
    ".downstream_cx_udp",
    ".upstream_rq_dropped",
    ".connections_accepted_per_socket_event",
    ".network_extension_config_missing",
    ".downstream_cx_overload_close",
    ".early_data_received_count_total",
    ".route_delayed_total",
    "tcp.tcp.downstream_cx_drain_close",
    "tcp.tcp-dead.downstream_cx_drain_close",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_pages_have_the_same_lines() {
    let pair = Pair::start().await;
    pair.warm().await;
    let mut complaints = String::new();
    for path in ["/clusters", "/ready", "/stats?filter=^(cluster|http|listener|tcp)\\."] {
        let pages = pair.pages(path).await;
        if head(&pages[0]) != head(&pages[1]) {
            writeln!(complaints, "=== {path}\n{:?}\n{:?}", head(&pages[0]), head(&pages[1])).unwrap();
        }
        let [envoy, lateen] = pages.map(|page| body(&page).lines().map(kind).collect::<BTreeSet<_>>());
        let missing: Vec<_> = envoy
            .difference(&lateen)
            .filter(|name| !NOT_KEPT.iter().any(|known| name.contains(known)))
            .collect();
        // Envoy makes this one with the first request.
        let extra: Vec<_> =
            lateen.difference(&envoy).filter(|name| !name.ends_with(".upstream_rq_time")).collect();
        if !missing.is_empty() || !extra.is_empty() {
            writeln!(complaints, "=== {path}\n  only Envoy's: {missing:#?}\n  only ours: {extra:#?}")
                .unwrap();
        }
    }
    assert!(complaints.is_empty(), "\n{complaints}");
}

/// A sample's metric and the names of its labels; buckets count as one.
fn metric(line: &str) -> String {
    let (name, rest) = line.split_once('{').unwrap_or((line, ""));
    let labels: BTreeSet<&str> =
        rest.split(',').filter_map(|label| label.split_once('=')).map(|(name, _)| name).collect();
    format!("{name} {labels:?}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_have_names_and_labels_that_envoys_have() {
    let pair = Pair::start().await;
    pair.warm().await;
    let [envoy, lateen] = pair.pages("/stats/prometheus").await.map(|page| {
        body(&page)
            .lines()
            .filter(|line| !line.starts_with('#') && !line.is_empty())
            .map(metric)
            .collect::<BTreeSet<_>>()
    });
    let own = ["envoy_lateen_", "envoy_filesystem_write_dropped_bytes"];
    let extra: Vec<_> =
        lateen.difference(&envoy).filter(|name| !own.iter().any(|own| name.starts_with(own))).collect();
    assert!(extra.is_empty(), "{extra:#?}");
    assert!(lateen.len() > 100, "{lateen:#?}");
}
