//! Which page a request is for.

use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use regex::Regex;
use serde_json::json;

use super::{Admin, Query, Reply, certs, clusters, config_dump, is_post, json, listeners, reply, text};
use crate::control::{Command, ask};
use crate::inspection::{Inspection, resident_bytes, state};
use crate::stats::merge::{Stat, Value};
use crate::stats::{prometheus, render};

/// Paths and what they are for, as `/help` lists them.
const PAGES: [(&str, &str); 17] = [
    ("/certs", "print certs on machine"),
    ("/clusters", "upstream cluster status"),
    ("/config_dump", "dump current Envoy configs (experimental)"),
    ("/drain_listeners (POST)", "drain listeners"),
    ("/healthcheck/fail (POST)", "cause the server to fail health checks"),
    ("/healthcheck/ok (POST)", "cause the server to pass health checks"),
    ("/help", "print out list of admin commands"),
    ("/listeners", "print listener info"),
    ("/logging (POST)", "query/change logging levels"),
    ("/memory", "print current allocation/heap usage"),
    ("/quitquitquit (POST)", "exit the server"),
    ("/ready", "print server state, return 200 if LIVE, otherwise return 503"),
    ("/reset_counters (POST)", "reset all counters to zero"),
    ("/runtime", "print runtime values"),
    ("/server_info", "print server version/status information"),
    ("/stats", "print server stats"),
    ("/stats/prometheus", "print server stats in prometheus format"),
];

/// Answers one request.
pub(super) async fn answer(admin: &Admin, request: Request<Incoming>) -> Reply {
    let query = Query::of(&request);
    let method = request.method().clone();
    let path = request.uri().path().trim_end_matches('/').to_owned();
    match path.as_str() {
        "" | "/help" => help(),
        "/ready" => ready(admin).await,
        "/runtime" => json(&json!({ "layers": [], "entries": {} })),
        "/memory" => memory(),
        "/logging" => logging(admin, &method, &query),
        "/drain_listeners" | "/healthcheck/fail" | "/healthcheck/ok" | "/quitquitquit"
        | "/reset_counters" => {
            if is_post(&method) {
                command(admin, &path).await
            } else {
                text(StatusCode::METHOD_NOT_ALLOWED, "Method GET not allowed, POST required.\n")
            }
        }
        _ => match inspect(admin, matches!(path.as_str(), "/config_dump" | "/certs")).await {
            None => text(StatusCode::SERVICE_UNAVAILABLE, "the engine is stopping\n"),
            Some(inspection) => page(admin, &path, &query, inspection).await,
        },
    }
}

async fn inspect(admin: &Admin, with_resources: bool) -> Option<Inspection> {
    ask(&admin.commands.upgrade()?, |reply| Command::Inspect(with_resources, reply)).await
}

async fn page(admin: &Admin, path: &str, query: &Query, inspection: Inspection) -> Reply {
    match path {
        "/clusters" if query.get("format") == Some("json") => json(&clusters::json(&inspection)),
        "/clusters" => text(StatusCode::OK, clusters::text(&inspection)),
        "/listeners" if query.get("format") == Some("json") => json(&listeners::json(&inspection)),
        "/listeners" => text(StatusCode::OK, listeners::text(&inspection)),
        "/stats" | "/stats/prometheus" => stats(path, query, inspection.stats),
        "/server_info" => json(&server_info(admin, &inspection)),
        "/certs" => json(&certs::json(&inspection)),
        "/config_dump" => config_dump::answer(admin, query, inspection).await,
        _ => text(StatusCode::NOT_FOUND, format!("invalid path. {}", help_text())),
    }
}

fn help_text() -> String {
    let lines: String = PAGES.iter().map(|(path, what)| format!("  {path}: {what}\n")).collect();
    format!("admin commands are:\n{lines}")
}

fn help() -> Reply {
    text(StatusCode::OK, help_text())
}

async fn ready(admin: &Admin) -> Reply {
    if *admin.ready.borrow() {
        return text(StatusCode::OK, "LIVE\n");
    }
    let state = inspect(admin, false).await.map_or("DRAINING", |inspection| state(&inspection.server));
    text(StatusCode::SERVICE_UNAVAILABLE, format!("{state}\n"))
}

fn memory() -> Reply {
    let bytes = resident_bytes().to_string();
    json(&json!({
        "allocated": bytes, "heap_size": bytes, "pageheap_unmapped": "0", "pageheap_free": "0",
        "total_thread_cache": "0", "total_physical_bytes": bytes,
    }))
}

fn logging(admin: &Admin, method: &Method, query: &Query) -> Reply {
    let Some((name, value)) = query.pairs().first() else {
        return text(StatusCode::OK, "usage: /logging?level=<level> or /logging?paths=<target>:<level>\n");
    };
    if !is_post(method) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "Method GET not allowed, POST required.\n");
    }
    let Some(set) = &admin.config.set_log_level else {
        return text(StatusCode::BAD_REQUEST, "error: this process does not allow to change its log level\n");
    };
    let wanted = match name.as_str() {
        "level" => value.clone(),
        "paths" => value.replace(':', "="),
        target => format!("{target}={value}"),
    };
    match set(&wanted) {
        Ok(()) => text(StatusCode::OK, format!("active loggers:\n  all: {value}\n")),
        Err(reason) => text(StatusCode::BAD_REQUEST, format!("error: {reason}\n")),
    }
}

async fn command(admin: &Admin, path: &str) -> Reply {
    let Some(commands) = admin.commands.upgrade() else {
        return text(StatusCode::SERVICE_UNAVAILABLE, "the engine is stopping\n");
    };
    // The command's end is not waited for: draining takes as long as connections last.
    let (ignored, _) = tokio::sync::oneshot::channel();
    let command = match path {
        "/drain_listeners" => Command::Drain(ignored),
        "/healthcheck/fail" => Command::FailHealth(true),
        "/healthcheck/ok" => Command::FailHealth(false),
        "/reset_counters" => Command::ResetCounters,
        _ => Command::Shutdown(ignored),
    };
    match commands.send(command).await {
        Ok(()) => text(StatusCode::OK, "OK\n"),
        Err(_) => text(StatusCode::SERVICE_UNAVAILABLE, "the engine is stopping\n"),
    }
}

fn stats(path: &str, query: &Query, mut all: Vec<Stat>) -> Reply {
    if query.get("usedonly").is_some() {
        all.retain(Stat::used);
    }
    if let Some(filter) = query.get("filter") {
        match Regex::new(filter) {
            Ok(filter) => all.retain(|stat| filter.is_match(&render::name(stat))),
            Err(error) => return text(StatusCode::BAD_REQUEST, format!("Invalid re2 regex: {error}\n")),
        }
    }
    match query.get("type") {
        None | Some("All") => {}
        Some("Counters") => all.retain(|stat| matches!(stat.value, Value::Counter(_))),
        Some("Gauges") => all.retain(|stat| matches!(stat.value, Value::Gauge(_))),
        Some("Histograms") => all.retain(|stat| matches!(stat.value, Value::Histogram(_))),
        Some(other) => return text(StatusCode::BAD_REQUEST, format!("invalid &type={other}\n")),
    }
    match (path, query.get("format")) {
        ("/stats/prometheus", _) | (_, Some("prometheus")) => {
            reply(StatusCode::OK, "text/plain; version=0.0.4; charset=UTF-8", prometheus::text(&all))
        }
        (_, Some("json")) => json(&render::json(&all)),
        _ => text(StatusCode::OK, render::text(&all)),
    }
}

fn server_info(admin: &Admin, inspection: &Inspection) -> serde_json::Value {
    let node = &admin.config.node;
    let server = &inspection.server;
    let uptime = format!("{}s", server.uptime.as_secs());
    json!({
        "version": node.version,
        "state": state(server),
        "uptime_current_epoch": uptime,
        "uptime_all_epochs": uptime,
        "hot_restart_version": "disabled",
        "command_line_options": {
            "concurrency": server.concurrency,
            "drain_time": format!("{}s", admin.config.drain_time.as_secs()),
            "service_cluster": node.cluster,
            "service_node": node.id,
        },
        "node": {
            "id": node.id,
            "cluster": node.cluster,
            "metadata": node.metadata,
        },
    })
}
