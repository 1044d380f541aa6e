//! What the server serves: `/version`, `/api`, `/apis`, resource lists, aggregated discovery.

use std::{collections::BTreeMap, sync::Arc};

use http::{HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::{
    builtin::REVIEWS,
    crd::version_rank,
    resources::ResourceDef,
    response::{self, Body},
    state::Api,
    status::ApiError,
};

const ALL_VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// `/version`.
pub(crate) fn version() -> Value {
    json!({
        "major": "1", "minor": "32", "gitVersion": "v1.32.4+lateen", "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "2025-04-22T16:00:00Z", "goVersion": "go1.23.8", "compiler": "gc",
        "platform": format!("linux/{}", if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }),
    })
}

/// Groups in the order kubectl prefers them, each with its versions, preferred first.
fn groups(api: &Api) -> Vec<(String, Vec<String>)> {
    let mut groups: Vec<(String, Vec<String>)> = Vec::new();
    let defs = api.registry.all();
    let builtin = defs.iter().map(|def| (def.group.as_str(), def.version.as_str()));
    for (group, version) in builtin.chain(REVIEWS.iter().map(|review| (review.group, review.version))) {
        match groups.iter_mut().find(|(name, _)| name == group) {
            Some((_, versions)) if versions.iter().any(|v| v == version) => {}
            Some((_, versions)) => versions.push(version.to_owned()),
            None => groups.push((group.to_owned(), vec![version.to_owned()])),
        }
    }
    for (_, versions) in &mut groups {
        versions.sort_by_key(|version| std::cmp::Reverse(version_rank(version)));
    }
    groups
}

fn group_value(group: &str, versions: &[String]) -> Value {
    let entry = |version: &String| json!({"groupVersion": format!("{group}/{version}"), "version": version});
    json!({
        "name": group,
        "versions": versions.iter().map(entry).collect::<Vec<_>>(),
        "preferredVersion": versions.first().map(entry),
    })
}

/// Answers the discovery paths; `None` when `path` is none of them.
pub(crate) fn answer(api: &Api, path: &str, accept: &str) -> Option<Result<Response<Body>, ApiError>> {
    let path = path.trim_end_matches('/');
    let aggregated = accept.contains("as=APIGroupDiscoveryList");
    match path {
        "/api" | "/apis" if aggregated => return Some(Ok(aggregate(api, path == "/api", accept))),
        "/api" => {
            let value = json!({"kind": "APIVersions", "versions": ["v1"],
                "serverAddressByClientCIDRs": []});
            return Some(Ok(response::json(StatusCode::OK, &value)));
        }
        "/apis" => {
            let groups: Vec<Value> = groups(api)
                .iter()
                .filter(|(name, _)| !name.is_empty())
                .map(|(name, v)| group_value(name, v))
                .collect();
            let value = json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups});
            return Some(Ok(response::json(StatusCode::OK, &value)));
        }
        _ => {}
    }
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    match segments.as_slice() {
        ["api", version] => Some(resource_list(api, "", version)),
        ["apis", group, version] => Some(resource_list(api, group, version)),
        ["apis", group] => {
            let found = groups(api).into_iter().find(|(name, _)| name == group && !name.is_empty());
            Some(found.ok_or_else(ApiError::no_such_path).map(|(name, versions)| {
                let mut value = json!({"kind": "APIGroup", "apiVersion": "v1"});
                for (key, field) in group_value(&name, &versions).as_object().into_iter().flatten() {
                    value[key.as_str()] = field.clone();
                }
                response::json(StatusCode::OK, &value)
            }))
        }
        _ => None,
    }
}

/// The resources of one version: definitions of objects first, then reviews.
fn in_version(api: &Api, group: &str, version: &str) -> Vec<Arc<ResourceDef>> {
    let mut defs: Vec<Arc<ResourceDef>> =
        api.registry.all().into_iter().filter(|def| def.group == group && def.version == version).collect();
    defs.sort_by(|a, b| a.plural.cmp(&b.plural));
    defs
}

fn resource_list(api: &Api, group: &str, version: &str) -> Result<Response<Body>, ApiError> {
    let mut resources = Vec::new();
    for def in in_version(api, group, version) {
        let mut main = json!({
            "name": def.plural, "singularName": def.singular, "namespaced": def.namespaced, "kind": def.kind,
            "verbs": ALL_VERBS, "storageVersionHash": "",
        });
        if !def.short_names.is_empty() {
            main["shortNames"] = json!(def.short_names);
        }
        if !def.categories.is_empty() {
            main["categories"] = json!(def.categories);
        }
        resources.push(main);
        for (name, kind, verbs) in subresources(&def) {
            let mut entry = json!({
                "name": format!("{}/{name}", def.plural), "singularName": "", "namespaced": def.namespaced,
                "kind": kind.1, "verbs": verbs,
            });
            if let Some((group, version)) = kind.0 {
                entry["group"] = json!(group);
                entry["version"] = json!(version);
            }
            resources.push(entry);
        }
    }
    for review in REVIEWS.iter().filter(|review| review.group == group && review.version == version) {
        resources.push(json!({"name": review.plural, "singularName": review.kind.to_lowercase(),
            "namespaced": review.namespaced, "kind": review.kind, "verbs": ["create"]}));
    }
    if resources.is_empty() {
        return Err(ApiError::no_such_path());
    }
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    let list = json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources});
    Ok(response::json(StatusCode::OK, &list))
}

/// Group and version of a subresource's kind when they aren't the resource's own, and the kind.
type SubKind = (Option<(&'static str, &'static str)>, String);

fn subresources(def: &ResourceDef) -> Vec<(&'static str, SubKind, Vec<&'static str>)> {
    const CHANGE: &[&str] = &["get", "patch", "update"];
    let mut found = Vec::new();
    if def.has_status {
        found.push(("status", (None, def.kind.clone()), CHANGE.to_vec()));
    }
    if def.scale.is_some() {
        found.push(("scale", (Some(("autoscaling", "v1")), "Scale".to_owned()), CHANGE.to_vec()));
    }
    for (name, kind, verbs) in &def.subresources {
        let group_version = match *kind {
            "Eviction" => Some(("policy", "v1")),
            "TokenRequest" => Some(("authentication.k8s.io", "v1")),
            _ => None,
        };
        found.push((*name, (group_version, (*kind).to_owned()), verbs.to_vec()));
    }
    found
}

fn kind_value(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}

fn aggregate(api: &Api, legacy: bool, accept: &str) -> Response<Body> {
    let mut items = Vec::new();
    for (group, versions) in groups(api) {
        if group.is_empty() != legacy {
            continue;
        }
        let versions: Vec<Value> =
            versions.iter().map(|version| aggregate_version(api, &group, version)).collect();
        let metadata = if group.is_empty() {
            json!({"creationTimestamp": null})
        } else {
            json!({"name": group, "creationTimestamp": null})
        };
        items.push(json!({"metadata": metadata, "versions": versions}));
    }
    // The version asked for first decides.
    let (version, media_type) =
        if accept.find("v=v2;").or_else(|| accept.find("v=v2,")).is_none() && accept.contains("v=v2beta1") {
            ("v2beta1", "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList")
        } else {
            ("v2", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")
        };
    let list = json!({"kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {}, "items": items});
    let mut response = response::json(StatusCode::OK, &list);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

fn aggregate_version(api: &Api, group: &str, version: &str) -> Value {
    let scope = |namespaced: bool| if namespaced { "Namespaced" } else { "Cluster" };
    let mut resources = Vec::new();
    for def in in_version(api, group, version) {
        let subresources: Vec<Value> = subresources(&def)
            .into_iter()
            .map(|(name, (group_version, kind), verbs)| {
                let (kind_group, kind_version) = group_version.unwrap_or((group, version));
                json!({"subresource": name, "responseKind": kind_value(kind_group, kind_version, &kind), "verbs": verbs})
            })
            .collect();
        let mut entry = BTreeMap::from([
            ("resource", json!(def.plural)),
            ("responseKind", kind_value(group, version, &def.kind)),
            ("scope", json!(scope(def.namespaced))),
            ("singularResource", json!(def.singular)),
            ("verbs", json!(ALL_VERBS)),
        ]);
        if !def.short_names.is_empty() {
            entry.insert("shortNames", json!(def.short_names));
        }
        if !def.categories.is_empty() {
            entry.insert("categories", json!(def.categories));
        }
        if !subresources.is_empty() {
            entry.insert("subresources", json!(subresources));
        }
        resources.push(json!(entry));
    }
    for review in REVIEWS.iter().filter(|review| review.group == group && review.version == version) {
        resources.push(json!({"resource": review.plural, "responseKind": kind_value(group, version, review.kind),
            "scope": scope(review.namespaced), "singularResource": review.kind.to_lowercase(), "verbs": ["create"]}));
    }
    json!({"version": version, "resources": resources, "freshness": "Current"})
}
