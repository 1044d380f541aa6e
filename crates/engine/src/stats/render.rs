//! `/stats` as text and JSON, in Envoy's shape.

use std::fmt::Write as _;

use serde_json::{Value as Json, json};

use super::merge::{Leaf, Stat, Value};

/// The stat's full dotted name, as Envoy prints it.
pub(crate) fn name(stat: &Stat) -> String {
    let mut out = String::new();
    if let Some((scope, instance)) = &stat.scope {
        // Infallible: writing to a String.
        let (instance, client) = instance.split_once('\n').unwrap_or((instance, ""));
        if scope.is_glued() {
            let filter = scope.filter().unwrap_or_default();
            let _ = match scope.prefix() {
                "" => write!(out, "{instance}{filter}.{client}"),
                prefix => write!(out, "{prefix}.{instance}.{filter}.{client}"),
            };
            return out + leaf_name(&stat.leaf).as_str();
        }
        let dot = if instance.is_empty() { "" } else { "." };
        let _ = write!(out, "{}{dot}{instance}.", scope.prefix());
        let parts = [scope.filter().unwrap_or_default(), client];
        for part in parts.into_iter().filter(|part| !part.is_empty()) {
            let _ = write!(out, "{part}.");
        }
    }
    out + leaf_name(&stat.leaf).as_str()
}

/// The last part of the name.
fn leaf_name(leaf: &Leaf) -> String {
    match leaf {
        Leaf::Name(leaf) => {
            let breaker = leaf.strip_prefix("circuit_breakers_").and_then(|rest| rest.split_once('_'));
            match breaker {
                Some((priority, breaker)) => format!("circuit_breakers.{priority}.{breaker}"),
                None => (*leaf).to_owned(),
            }
        }
        Leaf::Class(class) => format!("upstream_rq_{class}xx"),
        Leaf::Status(status) => format!("upstream_rq_{status}"),
    }
}

/// Quantiles Envoy reports.
const QUANTILES: [(&str, f64); 10] = [
    ("0", 0.0),
    ("25", 0.25),
    ("50", 0.5),
    ("75", 0.75),
    ("90", 0.9),
    ("95", 0.95),
    ("99", 0.99),
    ("99.5", 0.995),
    ("99.9", 0.999),
    ("100", 1.0),
];

/// `/stats`: one `name: value` a line, sorted, histograms last.
pub(crate) fn text(stats: &[Stat]) -> String {
    let mut scalars = Vec::new();
    let mut histograms = Vec::new();
    for stat in stats {
        match &stat.value {
            Value::Counter(n) | Value::Gauge(n) => scalars.push(format!("{}: {n}\n", name(stat))),
            Value::Histogram(None) => histograms.push(format!("{}: No recorded values\n", name(stat))),
            Value::Histogram(Some(reading)) => {
                let points: Vec<_> = QUANTILES
                    .iter()
                    .map(|(label, share)| {
                        let value = reading.quantile(*share);
                        format!("P{label}(nan,{value:.3})")
                    })
                    .collect();
                histograms.push(format!("{}: {}\n", name(stat), points.join(" ")));
            }
        }
    }
    scalars.sort_unstable();
    histograms.sort_unstable();
    scalars.concat() + &histograms.concat()
}

/// `/stats?format=json`.
pub(crate) fn json(stats: &[Stat]) -> Json {
    let mut list = Vec::new();
    let mut computed = Vec::new();
    for stat in stats {
        match &stat.value {
            Value::Counter(n) | Value::Gauge(n) => list.push(json!({"name": name(stat), "value": n})),
            Value::Histogram(reading) => {
                let values: Vec<Json> = QUANTILES
                    .iter()
                    .map(|(_, share)| {
                        let cumulative = reading.as_ref().map(|reading| reading.quantile(*share));
                        json!({"interval": null, "cumulative": cumulative})
                    })
                    .collect();
                computed.push(json!({"name": name(stat), "values": values}));
            }
        }
    }
    if !computed.is_empty() {
        let supported: Vec<f64> = QUANTILES.iter().map(|(_, share)| share * 100.0).collect();
        list.push(json!({"histograms": {"supported_quantiles": supported, "computed_quantiles": computed}}));
    }
    json!({ "stats": list })
}

#[cfg(test)]
mod tests {
    use super::super::arena::{Scope, StatsArena};
    use super::super::merge::merge;
    use super::*;

    #[test]
    fn workers_add_up_and_names_are_envoys() {
        let (one, two) = (StatsArena::default(), StatsArena::default());
        let blocks = [one.cluster(&"c".into()), two.cluster(&"c".into())];
        for block in &blocks {
            block.upstream_rq_total.inc();
            block.statuses.inc(200);
            block.upstream_rq_time.record(3);
        }
        let mut stats = merge(vec![one.read(), two.read()], [(Scope::Cluster, "idle".into())].into_iter());
        stats.push(Stat::scoped(
            Scope::Cluster,
            "c".into(),
            "circuit_breakers_default_cx_open",
            Value::Gauge(1),
        ));
        let text = text(&stats);
        for line in [
            "cluster.c.upstream_rq_total: 2\n",
            "cluster.c.upstream_rq_2xx: 2\n",
            "cluster.c.upstream_rq_200: 2\n",
            "cluster.c.circuit_breakers.default.cx_open: 1\n",
            "cluster.idle.upstream_rq_total: 0\n",
            "cluster.idle.upstream_rq_time: No recorded values\n",
        ] {
            assert!(text.contains(line), "{line} not in {text}");
        }
        assert!(text.contains("cluster.c.upstream_rq_time: P0(nan,1.000)"), "{text}");
        assert_eq!(json(&stats)["stats"][0]["name"], "cluster.c.assignment_stale");
    }
}
