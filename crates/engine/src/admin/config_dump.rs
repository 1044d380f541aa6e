//! `/config_dump` (`envoy.admin.v3.ConfigDump`). Built when asked for, because the JSON mapping takes much memory.

use std::time::SystemTime;

use http::StatusCode;
use jiff::Timestamp;
use lateen_xds::json::{JsonCodec, JsonError};
use lateen_xds::pb::envoy::config::listener::v3::Listener;
use lateen_xds::pb::envoy::config::listener::v3::filter::ConfigType;
use lateen_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use lateen_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use prost::Message;
use prost_types::Any;
use serde_json::{Value as Json, json};

use super::{Admin, Query, Reply, json, text};
use crate::inspection::{Inspection, RawView};
use crate::update::ResourceKind;

/// Lists of the dump that can be asked for by themselves, the section each is in, and what its members are.
const LISTS: [(&str, &str, &str); 12] = [
    ("static_clusters", "ClustersConfigDump", "StaticCluster"),
    ("dynamic_active_clusters", "ClustersConfigDump", "DynamicCluster"),
    ("dynamic_warming_clusters", "ClustersConfigDump", "DynamicCluster"),
    ("static_endpoint_configs", "EndpointsConfigDump", "StaticEndpointConfig"),
    ("dynamic_endpoint_configs", "EndpointsConfigDump", "DynamicEndpointConfig"),
    ("static_listeners", "ListenersConfigDump", "StaticListener"),
    ("dynamic_listeners", "ListenersConfigDump", "DynamicListener"),
    ("static_route_configs", "RoutesConfigDump", "StaticRouteConfig"),
    ("dynamic_route_configs", "RoutesConfigDump", "DynamicRouteConfig"),
    ("static_secrets", "SecretsConfigDump", "StaticSecret"),
    ("dynamic_active_secrets", "SecretsConfigDump", "DynamicSecret"),
    ("dynamic_warming_secrets", "SecretsConfigDump", "DynamicSecret"),
];

/// Answers `/config_dump`, with `resource=` and `name_regex=` as Envoy has them and `include_eds`.
pub(super) async fn answer(admin: &Admin, query: &Query, inspection: Inspection) -> Reply {
    let bootstrap = admin.config.bootstrap.clone();
    let include_eds = query.get("include_eds").is_some();
    let name_filter = match query.get("name_regex").map(regex::Regex::new) {
        None => None,
        Some(Ok(filter)) => Some(filter),
        Some(Err(error)) => return text(StatusCode::BAD_REQUEST, format!("Invalid re2 regex: {error}\n")),
    };
    let list = match query.get("resource") {
        None => None,
        Some(wanted) => match LISTS.iter().find(|(list, ..)| *list == wanted) {
            Some(list) => Some(list),
            None => return text(StatusCode::NOT_FOUND, format!("{wanted} not found in config dump")),
        },
    };
    let mut resources = inspection.resources;
    if let Some(filter) = name_filter {
        resources.retain(|resource| filter.is_match(&resource.name));
    }
    // Converting thousands of resources takes a while; other admin requests and configuration go on meanwhile.
    let started = SystemTime::now() - inspection.server.uptime;
    let build = move || {
        let bootstrap = bootstrap.as_ref().filter(|_| list.is_none());
        let section = list.map(|(_, section, _)| *section);
        let dump = dump(bootstrap, started, &resources, section, include_eds)?;
        Ok::<_, JsonError>(match list {
            Some(list) => only(dump, list),
            None => dump,
        })
    };
    match tokio::task::spawn_blocking(build).await {
        Ok(Ok(dump)) => json(&dump),
        Ok(Err(error)) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

/// The members of a list, each with its type as Envoy writes it; nothing at all where there are none.
fn only(mut dump: Json, (list, section, member): &(&str, &str, &str)) -> Json {
    let members = dump.pointer_mut("/configs/0").and_then(|section| section.get_mut(*list)).map(Json::take);
    let Some(Json::Array(members)) = members else { return json!({}) };
    let typed = members.into_iter().map(|member_of| {
        let mut typed = json!({ "@type": format!("type.googleapis.com/envoy.admin.v3.{section}.{member}") });
        if let (Some(typed), Json::Object(fields)) = (typed.as_object_mut(), member_of) {
            typed.extend(fields);
        }
        typed
    });
    json!({ "configs": typed.collect::<Vec<_>>() })
}

fn dump(
    bootstrap: Option<&Any>,
    started: SystemTime,
    resources: &[RawView],
    wanted: Option<&str>,
    include_eds: bool,
) -> Result<Json, JsonError> {
    let codec = JsonCodec::new()?;
    let wants = |section: &str| wanted.is_none_or(|wanted| wanted == section);
    let of = |kind| resources.iter().filter(move |resource| resource.kind == kind);
    let mut configs = Vec::new();
    if let Some(bootstrap) = bootstrap {
        configs.push(json!({
            "@type": "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump",
            "bootstrap": without_type(codec.any_to_value(&bootstrap.type_url, &bootstrap.value)?),
            "last_updated": time(started),
        }));
    }
    if wants("ClustersConfigDump") {
        let clusters = of(ResourceKind::Cluster);
        configs.push(section(&codec, "ClustersConfigDump", "clusters", "cluster", clusters)?);
    }
    if include_eds && wants("EndpointsConfigDump") {
        configs.push(section(
            &codec,
            "EndpointsConfigDump",
            "endpoint_configs",
            "endpoint_config",
            of(ResourceKind::Endpoints),
        )?);
    }
    if wants("ListenersConfigDump") {
        configs.push(listeners(&codec, of(ResourceKind::Listener))?);
    }
    if wants("RoutesConfigDump") {
        let dynamic = of(ResourceKind::Routes);
        let mut routes = section(&codec, "RoutesConfigDump", "route_configs", "route_config", dynamic)?;
        let inline = inline_routes(&codec, of(ResourceKind::Listener))?;
        if !inline.is_empty() {
            routes["static_route_configs"] = Json::Array(inline);
        }
        configs.push(routes);
    }
    if wants("SecretsConfigDump") {
        configs.push(secrets(&codec, of(ResourceKind::Secret))?);
    }
    let mut dump = json!({ "configs": configs });
    redact(&mut dump);
    Ok(dump)
}

/// Routes that stand in listeners. Envoy calls them static wherever the listener came from.
fn inline_routes<'a>(
    codec: &JsonCodec,
    listeners: impl Iterator<Item = &'a RawView>,
) -> Result<Vec<Json>, JsonError> {
    let mut out = Vec::new();
    for resource in listeners {
        let Ok(listener) = Listener::decode(&*resource.raw.body) else { continue };
        let chains = listener.filter_chains.iter().chain(&listener.default_filter_chain);
        for filter in chains.flat_map(|chain| &chain.filters) {
            let Some(ConfigType::TypedConfig(any)) = &filter.config_type else { continue };
            if !any.type_url.ends_with(".HttpConnectionManager") {
                continue;
            }
            let Ok(manager) = HttpConnectionManager::decode(&*any.value) else { continue };
            if let Some(RouteSpecifier::RouteConfig(routes)) = manager.route_specifier {
                let value = codec.any_to_value(ResourceKind::Routes.type_url(), &routes.encode_to_vec())?;
                out.push(json!({ "route_config": value, "last_updated": time(resource.raw.updated) }));
            }
        }
    }
    Ok(out)
}

fn without_type(mut value: Json) -> Json {
    if let Some(object) = value.as_object_mut() {
        object.shift_remove("@type");
    }
    value
}

fn time(at: SystemTime) -> Json {
    Timestamp::try_from(at)
        .map_or(Json::Null, |stamp| Json::String(stamp.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()))
}

/// A section whose static and dynamic entries look alike: `static_X` and `dynamic_X` (`dynamic_active_clusters` for clusters).
fn section<'a>(
    codec: &JsonCodec,
    message: &str,
    plural: &str,
    singular: &str,
    resources: impl Iterator<Item = &'a RawView>,
) -> Result<Json, JsonError> {
    let mut lists: [Vec<Json>; 3] = Default::default();
    let mut version = String::new();
    for resource in resources {
        let mut entry = json!({});
        if !resource.raw.is_static {
            entry["version_info"] = json!(resource.raw.version);
            version = resource.raw.version.to_string();
        }
        entry[singular] = codec.any_to_value(resource.kind.type_url(), &resource.raw.body)?;
        entry["last_updated"] = time(resource.raw.updated);
        if let Some((refused, reason)) = resource.raw.refused.as_deref() {
            entry["error_state"] = json!({ "version_info": refused, "details": reason });
        }
        let list = if resource.raw.is_static { 0 } else { 1 + usize::from(resource.warming) };
        lists[list].push(entry);
    }
    let [fixed, active, warming] = lists;
    let mut out = json!({ "@type": format!("type.googleapis.com/envoy.admin.v3.{message}") });
    if plural == "clusters" && !version.is_empty() {
        out["version_info"] = json!(version);
    }
    let active_name =
        if plural == "clusters" { "dynamic_active_clusters".to_owned() } else { format!("dynamic_{plural}") };
    for (name, list) in [
        (format!("static_{plural}"), fixed),
        (active_name, active),
        (format!("dynamic_warming_{plural}"), warming),
    ] {
        if !list.is_empty() {
            out[name] = Json::Array(list);
        }
    }
    Ok(out)
}

/// Secrets, with their private parts blacked out as Envoy does it.
fn secrets<'a>(codec: &JsonCodec, resources: impl Iterator<Item = &'a RawView>) -> Result<Json, JsonError> {
    let (mut fixed, mut dynamic) = (Vec::new(), Vec::new());
    for resource in resources {
        let raw = &resource.raw;
        let secret = codec.any_to_value(resource.kind.type_url(), &raw.body)?;
        let mut entry = json!({ "name": resource.name, "last_updated": time(raw.updated), "secret": secret });
        if raw.is_static {
            fixed.push(entry);
        } else {
            entry["version_info"] = json!(raw.version);
            dynamic.push(entry);
        }
    }
    let mut out = json!({ "@type": "type.googleapis.com/envoy.admin.v3.SecretsConfigDump" });
    for (name, list) in [("static_secrets", fixed), ("dynamic_active_secrets", dynamic)] {
        if !list.is_empty() {
            out[name] = Json::Array(list);
        }
    }
    Ok(out)
}

/// "[redacted]" in base64.
const REDACTED_BYTES: &str = "W3JlZGFjdGVkXQ==";

/// Replaces what must not be shown: keys, wherever they stand.
fn redact(value: &mut Json) {
    match value {
        Json::Object(members) => {
            for (name, member) in members.iter_mut() {
                if matches!(name.as_str(), "private_key" | "password" | "pkcs12") {
                    redact_source(member);
                } else {
                    redact(member);
                }
            }
        }
        Json::Array(members) => members.iter_mut().for_each(redact),
        _ => {}
    }
}

/// A `DataSource`. Where a key is in a file, the name of the file is no secret, but Envoy hides it as well.
fn redact_source(source: &mut Json) {
    let Some(members) = source.as_object_mut() else { return };
    for (name, member) in members.iter_mut() {
        *member = if name == "inline_bytes" { json!(REDACTED_BYTES) } else { json!("[redacted]") };
    }
}

fn listeners<'a>(codec: &JsonCodec, resources: impl Iterator<Item = &'a RawView>) -> Result<Json, JsonError> {
    let (mut fixed, mut dynamic) = (Vec::new(), Vec::new());
    let mut version = String::new();
    for resource in resources {
        let raw = &resource.raw;
        let value = codec.any_to_value(resource.kind.type_url(), &raw.body)?;
        if raw.is_static {
            fixed.push(json!({ "listener": value, "last_updated": time(raw.updated) }));
            continue;
        }
        version = raw.version.to_string();
        let state = if resource.warming { "warming_state" } else { "active_state" };
        let mut entry = json!({
            "name": resource.name,
            state: { "version_info": raw.version, "listener": value, "last_updated": time(raw.updated) },
        });
        if let Some((refused, reason)) = raw.refused.as_deref() {
            entry["error_state"] = json!({ "version_info": refused, "details": reason });
        }
        dynamic.push(entry);
    }
    let mut out = json!({ "@type": "type.googleapis.com/envoy.admin.v3.ListenersConfigDump" });
    if !version.is_empty() {
        out["version_info"] = json!(version);
    }
    for (name, list) in [("static_listeners", fixed), ("dynamic_listeners", dynamic)] {
        if !list.is_empty() {
            out[name] = Json::Array(list);
        }
    }
    Ok(out)
}
