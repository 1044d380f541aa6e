//! The `scale` subresource.

use serde_json::{Value, json};

use crate::{
    resources::{ResourceDef, ScalePaths, meta},
    status::{ApiError, FieldError},
};

fn at<'a>(object: &'a Value, path: &[String]) -> &'a Value {
    path.iter().fold(object, |value, key| &value[key.as_str()])
}

/// An object's `autoscaling/v1 Scale`.
pub(crate) fn of(def: &ResourceDef, paths: &ScalePaths, object: &Value) -> Value {
    let selector = match &paths.selector {
        Some(path) => at(object, path).as_str().unwrap_or_default().to_owned(),
        None if def.custom => String::new(),
        None => selector_text(&object["spec"]["selector"]),
    };
    let mut metadata = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object["metadata"].get(field) {
            metadata[field] = value.clone();
        }
    }
    let mut status = json!({"replicas": at(object, &paths.status_replicas).as_i64().unwrap_or(0)});
    if !selector.is_empty() {
        status["selector"] = json!(selector);
    }
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": metadata,
        "spec": {"replicas": at(object, &paths.spec_replicas).as_i64().unwrap_or(0)},
        "status": status,
    })
}

/// A label selector as text; ReplicationController's is a plain map.
pub(crate) fn selector_text(selector: &Value) -> String {
    let labels = if selector["matchLabels"].is_object() { &selector["matchLabels"] } else { selector };
    let mut parts: Vec<String> = Vec::new();
    for (key, value) in labels.as_object().into_iter().flatten() {
        if let Some(value) = value.as_str() {
            parts.push(format!("{key}={value}"));
        }
    }
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = expression["key"].as_str().unwrap_or_default();
        let values = crate::schema::strings(&expression["values"]).join(",");
        parts.push(match expression["operator"].as_str().unwrap_or_default() {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        });
    }
    parts.join(",")
}

/// The object with the replicas of a `Scale`.
pub(crate) fn write(
    def: &ResourceDef,
    paths: &ScalePaths,
    old: &Value,
    scale: &Value,
) -> Result<Value, ApiError> {
    // A nil replicas count is zero in Scale.
    let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
    if !(0..=i64::from(i32::MAX)).contains(&replicas) {
        let error = FieldError::invalid(
            "spec.replicas",
            &scale["spec"]["replicas"],
            "must be greater than or equal to 0",
        );
        return Err(ApiError::invalid(def, meta(old, "name"), &[error]));
    }
    let version = meta(scale, "resourceVersion");
    if !version.is_empty() && version != meta(old, "resourceVersion") {
        return Err(ApiError::modified(def, meta(old, "name")));
    }
    let mut object = old.clone();
    let slot = paths.spec_replicas.iter().fold(&mut object, |value, key| {
        if !value.is_object() {
            *value = json!({});
        }
        &mut value[key.as_str()]
    });
    *slot = json!(replicas);
    Ok(object)
}
