//! `/clusters`.

use std::fmt::Write as _;

use lateen_ir::{HealthStatus, HostAddress};
use serde_json::{Value as Json, json};

use crate::inspection::{ClusterView, HostView, Inspection};
use crate::worker::HOST_STATS;

/// As text.
pub(super) fn text(inspection: &Inspection) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    for cluster in &inspection.clusters {
        let name = &cluster.config.ir.name;
        let _ = writeln!(out, "{name}::observability_name::{}", observability_name(cluster));
        for (priority, limits) in [
            ("default", &cluster.config.ir.circuit_breakers),
            ("high", &cluster.config.ir.high_priority_circuit_breakers),
        ] {
            for (limit, value) in [
                ("max_connections", limits.max_connections),
                ("max_pending_requests", limits.max_pending_requests),
                ("max_requests", limits.max_requests),
                ("max_retries", limits.max_retries),
            ] {
                let _ = writeln!(out, "{name}::{priority}_priority::{limit}::{value}");
            }
        }
        let _ = writeln!(out, "{name}::added_via_api::{}", cluster.added_via_api);
        for host in &cluster.hosts {
            let prefix = format!("{name}::{}", host.address);
            for ((stat, _), value) in HOST_STATS.iter().zip(host.numbers) {
                let _ = writeln!(out, "{prefix}::{stat}::{value}");
            }
            let hostname = host.hostname.as_deref().unwrap_or_default();
            let locality = &host.locality;
            for (key, value) in [
                ("hostname", hostname.to_owned()),
                ("health_flags", flags(host)),
                ("weight", host.weight.to_string()),
                ("region", locality.region.to_string()),
                ("zone", locality.zone.to_string()),
                ("sub_zone", locality.sub_zone.to_string()),
                ("canary", "false".to_owned()),
                ("priority", host.priority.to_string()),
                ("success_rate", rate(host.success_rates[0])),
                ("local_origin_success_rate", rate(host.success_rates[1])),
            ] {
                let _ = writeln!(out, "{prefix}::{key}::{value}");
            }
        }
    }
    out
}

fn observability_name(cluster: &ClusterView) -> &str {
    cluster.config.ir.alt_stat_name.as_deref().unwrap_or(&cluster.config.ir.name)
}

/// Percent, -1 without enough requests.
fn rate(percent: Option<f64>) -> String {
    percent.map_or_else(|| "-1".to_owned(), |percent| percent.to_string())
}

/// Envoy's names of the flags, in its order.
fn flags(host: &HostView) -> String {
    let flags: String = [
        (host.checked.failed, "/failed_active_hc"),
        (host.ejected, "/failed_outlier_check"),
        (host.health == HealthStatus::Unhealthy, "/failed_eds_health"),
        (host.checked.degraded, "/degraded_active_hc"),
        (host.health == HealthStatus::Degraded, "/degraded_eds_health"),
        (host.checked.pending, "/pending_active_hc"),
        (host.checked.excluded, "/excluded_via_immediate_hc_fail"),
        (host.checked.timed_out, "/active_hc_timeout"),
        (host.health == HealthStatus::Draining, "/eds_status_draining"),
    ]
    .iter()
    .filter(|(set, _)| *set)
    .map(|(_, name)| *name)
    .collect();
    if flags.is_empty() { "healthy".to_owned() } else { flags }
}

/// As JSON (`envoy.admin.v3.Clusters`).
pub(super) fn json(inspection: &Inspection) -> Json {
    let clusters: Vec<Json> = inspection.clusters.iter().map(cluster_json).collect();
    json!({ "cluster_statuses": clusters })
}

fn cluster_json(cluster: &ClusterView) -> Json {
    let hosts: Vec<Json> = cluster.hosts.iter().map(host_json).collect();
    let mut out = json!({ "name": &*cluster.config.ir.name });
    if cluster.added_via_api {
        out["added_via_api"] = json!(true);
    }
    if !hosts.is_empty() {
        out["host_statuses"] = Json::Array(hosts);
    }
    out["circuit_breakers"] = json!({ "thresholds": [
        thresholds("DEFAULT", &cluster.config.ir.circuit_breakers),
        thresholds("HIGH", &cluster.config.ir.high_priority_circuit_breakers),
    ] });
    out["observability_name"] = json!(observability_name(cluster));
    out
}

fn thresholds(priority: &str, limits: &lateen_ir::CircuitBreakers) -> Json {
    let mut out = json!({});
    if priority != "DEFAULT" {
        out["priority"] = json!(priority);
    }
    out["max_connections"] = json!(limits.max_connections);
    out["max_pending_requests"] = json!(limits.max_pending_requests);
    out["max_requests"] = json!(limits.max_requests);
    out["max_retries"] = json!(limits.max_retries);
    out
}

fn host_json(host: &HostView) -> Json {
    // The mapping leaves out zeros, and writes 64-bit numbers as strings.
    let stats: Vec<Json> = HOST_STATS
        .iter()
        .zip(host.numbers)
        .map(|((name, gauge), value)| {
            let mut stat = json!({ "name": name });
            if value > 0 {
                stat["value"] = json!(value.to_string());
            }
            if *gauge {
                stat["type"] = json!("GAUGE");
            }
            stat
        })
        .collect();
    let eds = match host.health {
        HealthStatus::Healthy => "HEALTHY",
        HealthStatus::Degraded => "DEGRADED",
        HealthStatus::Unhealthy => "UNHEALTHY",
        HealthStatus::Draining => "DRAINING",
    };
    let mut health = json!({ "eds_health_status": eds });
    if host.ejected {
        health["failed_outlier_check"] = json!(true);
    }
    for (set, name) in [
        (host.checked.failed, "failed_active_health_check"),
        (host.checked.degraded, "failed_active_degraded_check"),
        (host.checked.pending, "pending_active_hc"),
        (host.checked.excluded, "excluded_via_immediate_hc_fail"),
        (host.checked.timed_out, "active_hc_timeout"),
    ] {
        if set {
            health[name] = json!(true);
        }
    }
    let mut out = json!({
        "address": match &host.address {
            HostAddress::Socket(at) => {
                json!({ "socket_address": { "address": at.ip().to_string(), "port_value": at.port() } })
            }
            HostAddress::Pipe(path) => json!({ "pipe": { "path": path } }),
        },
        "stats": stats,
        "health_status": health,
        "weight": host.weight,
    });
    if let Some(hostname) = &host.hostname {
        out["hostname"] = json!(&**hostname);
    }
    if host.priority > 0 {
        out["priority"] = json!(host.priority);
    }
    let locality = &host.locality;
    let mut place = json!({});
    for (key, value) in
        [("region", &locality.region), ("zone", &locality.zone), ("sub_zone", &locality.sub_zone)]
    {
        if !value.is_empty() {
            place[key] = json!(&**value);
        }
    }
    out["locality"] = place;
    out
}
