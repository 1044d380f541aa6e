//! `/stats/prometheus`, with the labels Envoy's default tag extraction gives.
//! <https://www.envoyproxy.io/docs/envoy/v1.40.0/operations/admin#get--stats-prometheus>

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::arena::Scope;
use super::merge::{Leaf, Stat, Value};
use super::slots::BUCKETS;

/// `None`: there is one block only.
fn label_name(scope: Scope) -> Option<&'static str> {
    match scope {
        Scope::Cluster | Scope::ClusterTls | Scope::ClusterExtAuthz => Some("envoy_cluster_name"),
        Scope::Cors
        | Scope::ExtAuthz
        | Scope::Fault
        | Scope::FaultClient
        | Scope::Http
        | Scope::Jwt
        | Scope::Rbac
        | Scope::RbacShadow => Some("envoy_http_conn_manager_prefix"),
        // The network filter's prefix is a part of the name.
        Scope::Http1Codec | Scope::Http2Codec | Scope::NetworkRbac | Scope::NetworkRbacShadow => None,
        // So is the name of a cache, and a route has two labels.
        Scope::DnsCache | Scope::Route => None,
        Scope::Listener | Scope::ListenerTls => Some("envoy_listener_address"),
        Scope::NetworkExtAuthz => Some("envoy_ext_authz_prefix"),
        Scope::Tcp => Some("envoy_tcp_prefix"),
    }
}

/// Name and labels of what a route counts for itself. A tag of Envoy's is what stands between two dots, so that of a name with dots a
/// part is a label and the rest remains in the metric's name.
fn of_route(instance: &str) -> (String, String) {
    let (host, prefix) = instance.split_once('\n').unwrap_or((instance, ""));
    let whole = format!("{host}.route.{prefix}.");
    let (first, rest) = whole.split_once('.').unwrap_or((&whole, ""));
    let mut labels = format!("envoy_virtual_host=\"{}\"", escape(first));
    let mut name = String::from("vhost_");
    let route = rest.strip_prefix("route.").and_then(|rest| rest.split_once('.'));
    let rest = route.map_or(rest, |(route, rest)| {
        let _ = write!(labels, ",envoy_route=\"{}\"", escape(route));
        name.push_str("route_");
        rest
    });
    name.extend(rest.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }));
    (name, labels)
}

/// Metric name and labels (without braces) of a stat.
fn metric(stat: &Stat) -> (String, String) {
    let mut name = String::from("envoy_");
    let (mut labels, mut of_scope) = (String::new(), String::new());
    if let Some((scope, instance)) = &stat.scope
        && scope.is_rbac()
    {
        let (instance, own) = instance.split_once('\n').unwrap_or((instance, ""));
        let parts = match scope.prefix() {
            "" => [instance, "rbac.", own],
            // The first part of the filter's own prefix is a label.
            prefix => [prefix, ".rbac.", own.split_once('.').map_or("", |(_, rest)| rest)],
        };
        name.extend(parts.concat().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }));
    } else if let Some((Scope::Route, instance)) = &stat.scope {
        let (own, more) = of_route(instance);
        name.push_str(&own);
        of_scope = more;
    } else if let Some((Scope::DnsCache, cache)) = &stat.scope {
        name.push_str("dns_cache_");
        name.extend(cache.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }));
        name.push('_');
    } else if let Some((scope, instance)) = &stat.scope {
        for part in [Some(scope.prefix()), scope.filter()].into_iter().flatten() {
            name.push_str(part);
            name.push('_');
        }
        if scope.is_named_on() {
            let own = instance.split_once('\n').map_or("", |(_, own)| own);
            // What authorizers' filters are called is a label.
            let own = if scope.is_ext_authz() { "" } else { own };
            name.extend(own.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }));
        }
    }
    // Writing to a String cannot fail.
    match &stat.leaf {
        Leaf::Name(leaf) => match (class_of(leaf), tls_fact(leaf)) {
            (_, Some((base, label, value))) => {
                name.push_str(base);
                let _ = write!(labels, "{label}=\"{value}\"");
            }
            (Some((base, class)), None) => {
                name.push_str(base);
                let _ = write!(labels, "envoy_response_code_class=\"{class}\"");
            }
            (None, None) => {
                name.extend(leaf.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }))
            }
        },
        Leaf::Class(class) => {
            name.push_str("upstream_rq_xx");
            let _ = write!(labels, "envoy_response_code_class=\"{class}\"");
        }
        Leaf::Status(status) => {
            name.push_str("upstream_rq");
            let _ = write!(labels, "envoy_response_code=\"{status}\"");
        }
    }
    if !labels.is_empty() && !of_scope.is_empty() {
        labels.push(',');
    }
    labels.push_str(&of_scope);
    if let Some((scope, instance)) = &stat.scope
        && let Some(label) = label_name(*scope)
    {
        if !labels.is_empty() {
            labels.push(',');
        }
        let (instance, client) = instance.split_once('\n').unwrap_or((instance, ""));
        let _ = write!(labels, "{}=\"{}\"", label, escape(instance));
        if let Some((own, _)) = client.split_once('.')
            && scope.is_rbac()
        {
            let _ = write!(labels, ",envoy_rbac_http_prefix=\"{}\"", escape(own));
        } else if let Some(own) = client.strip_suffix('.')
            && scope.is_ext_authz()
        {
            let _ = write!(labels, ",envoy_ext_authz_prefix=\"{}\"", escape(own));
        } else if !client.is_empty() && !scope.is_named_on() {
            let _ = write!(labels, ",envoy_fault_downstream_cluster=\"{}\"", escape(client));
        }
    }
    (name, labels)
}

/// `downstream_rq_2xx` is class 2 of `downstream_rq_xx`.
fn class_of(leaf: &str) -> Option<(&'static str, char)> {
    let digit = leaf.strip_prefix("downstream_rq_")?.strip_suffix("xx")?;
    let mut chars = digit.chars();
    match (chars.next(), chars.next()) {
        (Some(class @ '1'..='5'), None) => Some(("downstream_rq_xx", class)),
        _ => None,
    }
}

/// `ssl.versions.TLSv1.3` is `ssl_versions` with a label.
fn tls_fact(leaf: &str) -> Option<(&'static str, &'static str, &str)> {
    let (kind, value) = leaf.strip_prefix("ssl.")?.split_once('.')?;
    Some(match kind {
        "versions" => ("ssl_versions", "envoy_ssl_version", value),
        "ciphers" => ("ssl_ciphers", "envoy_ssl_cipher", value),
        "curves" => ("ssl_curves", "envoy_ssl_curve", value),
        _ => return None,
    })
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// All stats in the text exposition format, each metric's samples together.
pub(crate) fn text<'a>(stats: impl IntoIterator<Item = &'a Stat>) -> String {
    let mut metrics = BTreeMap::<String, (&'static str, String)>::new();
    for stat in stats {
        let (name, labels) = metric(stat);
        let kind = match stat.value {
            Value::Counter(_) => "counter",
            Value::Gauge(_) => "gauge",
            Value::Histogram(_) => "histogram",
        };
        let (_, samples) = metrics.entry(name.clone()).or_insert((kind, String::new()));
        match &stat.value {
            Value::Counter(n) | Value::Gauge(n) => {
                let _ = writeln!(samples, "{name}{{{labels}}} {n}");
            }
            // Envoy leaves out histograms without samples.
            Value::Histogram(None) => {}
            Value::Histogram(Some(reading)) => {
                let comma = if labels.is_empty() { "" } else { "," };
                let mut total = 0;
                for (bound, n) in BUCKETS.iter().zip(reading.buckets) {
                    total += n;
                    let _ = writeln!(samples, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {total}");
                }
                let count = reading.count();
                let _ = writeln!(samples, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}");
                let _ = writeln!(samples, "{name}_sum{{{labels}}} {}", reading.sum);
                let _ = writeln!(samples, "{name}_count{{{labels}}} {count}");
            }
        }
    }
    let mut out = String::new();
    for (name, (kind, samples)) in metrics {
        if !samples.is_empty() {
            let _ = write!(out, "# TYPE {name} {kind}\n{samples}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::arena::StatsArena;
    use super::super::merge::merge;
    use super::*;

    #[test]
    fn labels_follow_envoys_tag_extraction() {
        let arena = StatsArena::default();
        let cluster = arena.cluster(&"outbound|80||a\"b".into());
        cluster.statuses.inc(200);
        cluster.upstream_rq_time.record(7);
        let http = arena.http(&"ingress".into());
        http.downstream_rq_2xx.inc();
        let routes =
            ["all\nfirst", "all\npre.fix:1", "a.b.svc:80\nfirst"].map(|name| arena.route(&name.into()));
        routes.iter().for_each(|route| route.statuses.inc(200));
        let mut stats = merge(vec![arena.read()], std::iter::empty());
        stats.push(Stat::server("server.uptime", Value::Gauge(4)));
        let text = text(&stats);
        for line in [
            "# TYPE envoy_cluster_upstream_rq counter\n",
            "envoy_cluster_upstream_rq{envoy_response_code=\"200\",envoy_cluster_name=\"outbound|80||a\\\"b\"} 1\n",
            "envoy_cluster_upstream_rq_xx{envoy_response_code_class=\"2\",envoy_cluster_name=\"outbound|80||a\\\"b\"} 1\n",
            "envoy_http_downstream_rq_xx{envoy_response_code_class=\"2\",envoy_http_conn_manager_prefix=\"ingress\"} 1\n",
            "envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name=\"outbound|80||a\\\"b\",le=\"10\"} 1\n",
            "envoy_cluster_upstream_rq_time_count{envoy_cluster_name=\"outbound|80||a\\\"b\"} 1\n",
            "envoy_server_uptime{} 4\n",
            "envoy_vhost_route_upstream_rq{envoy_response_code=\"200\",envoy_virtual_host=\"all\",envoy_route=\"first\"} 1\n",
            "envoy_vhost_route_fix_1_upstream_rq_retry{envoy_virtual_host=\"all\",envoy_route=\"pre\"} 0\n",
            "envoy_vhost_b_svc_80_route_first_upstream_rq_total{envoy_virtual_host=\"a\"} 0\n",
        ] {
            assert!(text.contains(line), "{line} not in {text}");
        }
        assert!(!text.contains("upstream_cx_connect_ms"), "histograms without samples are left out");
    }
}
