//! OpenAPI v3, one document per group and version.

use std::collections::BTreeSet;

use http::{Response, StatusCode};
use serde_json::{Map, Value, json};

use crate::{
    builtin::REVIEWS,
    resources::ResourceDef,
    response::{self, Body},
    schema::SchemaSet,
    state::Api,
    status::ApiError,
};

/// Answers `/openapi/v3…`.
pub(crate) fn answer(api: &Api, path: &str) -> Result<Response<Body>, ApiError> {
    match path.strip_prefix("/openapi/v3").unwrap_or_default().trim_matches('/') {
        "" => Ok(response::json(StatusCode::OK, &index(api))),
        wanted => {
            let (group, version) = match wanted.split('/').collect::<Vec<_>>().as_slice() {
                ["api", version] => ("", *version),
                ["apis", group, version] => (*group, *version),
                _ => return Err(ApiError::no_such_path()),
            };
            let document = document(api, group, version).ok_or_else(ApiError::no_such_path)?;
            Ok(response::json(StatusCode::OK, &document))
        }
    }
}

/// `/openapi/v2`: an empty document. Clients new enough read v3; where that has no answer (a kind nobody serves) they
/// look here, and must find something readable to go on to their own message.
pub(crate) fn empty_v2(accept: &str) -> Response<Body> {
    if accept.contains("application/com.github.proto-openapi.spec.v2@v1.0+protobuf") {
        // Document{swagger: "2.0", info: {title: "Kubernetes", version: "v1.32.4"}} of gnostic's openapi.v2.
        let document: &[u8] = b"\x0a\x032.0\x12\x15\x0a\x0aKubernetes\x12\x07v1.32.4";
        // Answered without the `@`, which Go can't parse in a media type.
        return response::typed(
            StatusCode::OK,
            "application/com.github.proto-openapi.spec.v2.v1.0+protobuf",
            document,
        );
    }
    let document = json!({"swagger": "2.0", "info": {"title": "Kubernetes", "version": "v1.32.4"}, "paths": {}, "definitions": {}});
    response::json(StatusCode::OK, &document)
}

fn path_of(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

fn index(api: &Api) -> Value {
    let defs = api.registry.all();
    let mut paths = Map::new();
    let reviews = REVIEWS.iter().map(|review| (review.group, review.version));
    for (group, version) in defs.iter().map(|def| (def.group.as_str(), def.version.as_str())).chain(reviews) {
        let path = path_of(group, version);
        // Clients cache by the hash: for custom kinds it follows the schemas.
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        for def in defs.iter().filter(|def| def.custom && def.group == group && def.version == version) {
            let schema = def.schemas.get(&def.schema_name).map(Value::to_string).unwrap_or_default();
            hash.update(def.plural.as_bytes());
            hash.update(schema.as_bytes());
        }
        let url = format!("/openapi/v3/{path}?hash={:016X}", hash.digest());
        paths.insert(path, json!({"serverRelativeURL": url}));
    }
    json!({"paths": paths})
}

fn document(api: &Api, group: &str, version: &str) -> Option<Value> {
    let defs: Vec<_> =
        api.registry.all().into_iter().filter(|def| def.group == group && def.version == version).collect();
    let reviews: Vec<_> =
        REVIEWS.iter().filter(|review| review.group == group && review.version == version).collect();
    if defs.is_empty() && reviews.is_empty() {
        return None;
    }
    let mut paths = Map::new();
    let mut schemas = Map::new();
    for def in &defs {
        copy_schema(&def.schemas, &def.schema_name, &mut schemas);
        add_paths(def, &mut paths);
    }
    let builtin = crate::builtin::schemas();
    for review in reviews {
        let group_path = review.group.strip_suffix(".k8s.io").unwrap_or(review.group);
        let name = format!("io.k8s.api.{group_path}.{}.{}", review.version, review.kind);
        copy_schema(&builtin, &name, &mut schemas);
        let gvk = json!({"group": review.group, "version": review.version, "kind": review.kind});
        if let Some(schema) = schemas.get_mut(&name) {
            schema["x-kubernetes-group-version-kind"] = json!([gvk]);
        }
        let namespace = if review.namespaced { "namespaces/{namespace}/" } else { "" };
        let path = format!("/{}/{namespace}{}", path_of(group, version), review.plural);
        paths.insert(path, json!({"post": operation("create", "post", &gvk, &name, false)}));
    }
    Some(json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "v1.32.4"},
        "paths": paths,
        "components": {"schemas": schemas},
    }))
}

/// Copies a definition and all it refers to.
fn copy_schema(set: &SchemaSet, name: &str, into: &mut Map<String, Value>) {
    let mut waiting = vec![name.to_owned()];
    while let Some(name) = waiting.pop() {
        if into.contains_key(&name) {
            continue;
        }
        let Some(definition) = set.get(&name) else { continue };
        let mut references = BTreeSet::new();
        collect_references(definition, &mut references);
        into.insert(name, definition.clone());
        waiting.extend(references);
    }
}

fn collect_references(node: &Value, found: &mut BTreeSet<String>) {
    match node {
        Value::Object(map) => {
            if let Some(name) = crate::schema::reference(node) {
                found.insert(name.to_owned());
            }
            map.values().for_each(|child| collect_references(child, found));
        }
        Value::Array(items) => items.iter().for_each(|child| collect_references(child, found)),
        _ => {}
    }
}

fn parameter(name: &str, kind: &str) -> Value {
    json!({"name": name, "in": "query", "schema": {"type": kind, "uniqueItems": true}})
}

fn operation(action: &str, method: &str, gvk: &Value, schema_name: &str, custom: bool) -> Value {
    let content = |media: &[&str]| -> Value {
        let schema = json!({"schema": {"$ref": format!("#/components/schemas/{schema_name}")}});
        media.iter().map(|media| ((*media).to_owned(), schema.clone())).collect::<Map<String, Value>>().into()
    };
    let mut operation = json!({
        "responses": {"200": {"description": "OK", "content": content(&["application/json", "application/yaml"])}},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": gvk,
    });
    if matches!(method, "post" | "put" | "patch") {
        let mut parameters = vec![
            parameter("dryRun", "string"),
            parameter("fieldManager", "string"),
            parameter("fieldValidation", "string"),
        ];
        if method == "patch" {
            parameters.push(parameter("force", "boolean"));
        }
        operation["parameters"] = Value::Array(parameters);
        operation["requestBody"] = if method == "patch" {
            let mut content = json!({
                "application/apply-patch+yaml": {"schema": {"type": "object"}},
                "application/json-patch+json": {"schema": {"type": "object"}},
                "application/merge-patch+json": {"schema": {"type": "object"}},
            });
            // kubectl takes the strategic kind wherever it is offered.
            if !custom {
                content["application/strategic-merge-patch+json"] = json!({"schema": {"type": "object"}});
            }
            json!({"required": true, "content": content})
        } else {
            json!({"required": true, "content": content(&["*/*"])})
        };
    }
    operation
}

fn add_paths(def: &ResourceDef, paths: &mut Map<String, Value>) {
    let gvk = json!({"group": def.group, "version": def.version, "kind": def.kind});
    let base = format!("/{}", path_of(&def.group, &def.version));
    let scoped = if def.namespaced { format!("{base}/namespaces/{{namespace}}") } else { base.clone() };
    let on = |action: &str, method: &str| operation(action, method, &gvk, &def.schema_name, def.custom);
    let path_parameters = |name: bool| {
        let mut parameters = Vec::new();
        if name {
            parameters.push(json!({"name": "name", "in": "path", "required": true, "schema": {"type": "string", "uniqueItems": true}}));
        }
        if def.namespaced {
            parameters.push(json!({"name": "namespace", "in": "path", "required": true, "schema": {"type": "string", "uniqueItems": true}}));
        }
        parameters
    };
    paths.insert(
        format!("{scoped}/{}", def.plural),
        json!({"get": on("list", "get"), "post": on("post", "post"), "delete": on("deletecollection", "delete"),
            "parameters": path_parameters(false)}),
    );
    let item = json!({"get": on("get", "get"), "put": on("put", "put"), "patch": on("patch", "patch"),
        "delete": on("delete", "delete"), "parameters": path_parameters(true)});
    paths.insert(format!("{scoped}/{}/{{name}}", def.plural), item);
    if def.has_status {
        let status = json!({"get": on("get", "get"), "put": on("put", "put"), "patch": on("patch", "patch"),
            "parameters": path_parameters(true)});
        paths.insert(format!("{scoped}/{}/{{name}}/status", def.plural), status);
    }
    if def.namespaced {
        paths.insert(format!("{base}/{}", def.plural), json!({"get": on("list", "get")}));
    }
}
