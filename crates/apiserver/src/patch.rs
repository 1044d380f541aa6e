//! JSON patch, JSON merge patch and strategic merge patch.

use serde_json::{Map, Value};

use crate::{schema::Schema, status::ApiError};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_PRIMITIVES: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

/// Applies an RFC 6902 patch.
pub(crate) fn json_patch(object: &mut Value, patch: &Value) -> Result<(), ApiError> {
    let patch: json_patch::Patch = serde_json::from_value(patch.clone())
        .map_err(|e| ApiError::bad_request(format!("error decoding patch: {e}")))?;
    if patch.0.len() > 10_000 {
        return Err(ApiError::bad_request("The allowed maximum operations in a JSON patch is 10000"));
    }
    json_patch::patch(object, &patch).map_err(|e| {
        ApiError::new(
            http::StatusCode::UNPROCESSABLE_ENTITY,
            "Invalid",
            format!("the server rejected our request due to an error in our request: {e}"),
        )
    })
}

/// Applies an RFC 7386 patch.
pub(crate) fn merge_patch(object: &mut Value, patch: &Value) -> Result<(), ApiError> {
    if !patch.is_object() {
        return Err(ApiError::bad_request("error decoding patch: a merge patch must be an object"));
    }
    json_patch::merge(object, patch);
    Ok(())
}

/// Applies a strategic merge patch, as `apimachinery/pkg/util/strategicpatch` does.
pub(crate) fn strategic(schema: Schema<'_>, object: &mut Value, patch: &Value) -> Result<(), ApiError> {
    let patch = patch.as_object().ok_or_else(|| {
        ApiError::bad_request("error decoding patch: a strategic merge patch must be an object")
    })?;
    merge_object(Some(schema), object, patch).map_err(ApiError::bad_request)
}

fn merge_object(
    schema: Option<Schema<'_>>,
    target: &mut Value,
    patch: &Map<String, Value>,
) -> Result<(), String> {
    match patch.get(DIRECTIVE).and_then(Value::as_str) {
        Some("replace") => {
            *target = Value::Object(without_directives(patch));
            return Ok(());
        }
        Some("delete") => {
            *target = Value::Object(Map::new());
            return Ok(());
        }
        Some("merge") | None => {}
        Some(other) => return Err(format!("unknown patch type: {other:?} found in map")),
    }
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(map) = target.as_object_mut() else { return Ok(()) };
    if let Some(retain) = patch.get(RETAIN_KEYS) {
        let keep = crate::schema::strings(retain);
        map.retain(|key, _| keep.contains(key));
    }
    for (key, value) in patch {
        if let Some(list) = key.strip_prefix(DELETE_PRIMITIVES) {
            let doomed = value.as_array().ok_or_else(|| format!("{key} must be a list"))?;
            if let Some(items) = map.get_mut(list).and_then(Value::as_array_mut) {
                items.retain(|item| !doomed.contains(item));
            }
        }
    }
    for (key, value) in patch {
        if key == DIRECTIVE
            || key == RETAIN_KEYS
            || key.starts_with(DELETE_PRIMITIVES)
            || key.starts_with(ORDER)
        {
            continue;
        }
        let field = schema.and_then(|schema| schema.field(key));
        match value {
            Value::Null => {
                map.shift_remove(key);
            }
            Value::Object(change) => {
                let slot = map.entry(key.clone()).or_insert(Value::Null);
                merge_object(field, slot, change)?;
            }
            Value::Array(items) if field.is_some_and(|f| f.patch_strategy("merge")) => {
                let slot = map.entry(key.clone()).or_insert_with(|| Value::Array(Vec::new()));
                merge_list(field, slot, items)?;
            }
            other => {
                map.insert(key.clone(), other.clone());
            }
        }
    }
    for (key, order) in patch {
        if let (Some(list), Some(order)) = (key.strip_prefix(ORDER), order.as_array()) {
            let merge_key = schema.and_then(|s| s.field(list)).and_then(Schema::merge_key);
            if let Some(items) = map.get_mut(list).and_then(Value::as_array_mut) {
                reorder(items, order, merge_key);
            }
        }
    }
    Ok(())
}

fn without_directives(patch: &Map<String, Value>) -> Map<String, Value> {
    let kept = patch.iter().filter(|(key, value)| {
        *key != DIRECTIVE && *key != RETAIN_KEYS && !key.starts_with(ORDER) && !value.is_null()
    });
    kept.map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn merge_list(schema: Option<Schema<'_>>, target: &mut Value, patch: &[Value]) -> Result<(), String> {
    if patch.iter().any(|item| item[DIRECTIVE] == "replace") {
        let kept = patch.iter().filter(|item| item[DIRECTIVE] != "replace");
        *target = Value::Array(kept.cloned().collect());
        return Ok(());
    }
    if !target.is_array() {
        *target = Value::Array(Vec::new());
    }
    let Some(items) = target.as_array_mut() else { return Ok(()) };
    let Some(merge_key) = schema.and_then(Schema::merge_key) else {
        for item in patch {
            if !items.contains(item) {
                items.push(item.clone());
            }
        }
        return Ok(());
    };
    let item_schema = schema.and_then(Schema::items);
    for change in patch {
        let change_map = change.as_object().ok_or("a merged list's elements must be objects")?;
        let key = change
            .get(merge_key)
            .ok_or_else(|| format!("map: {change} does not contain declared merge key: {merge_key}"))?;
        if change[DIRECTIVE] == "delete" {
            items.retain(|item| item.get(merge_key) != Some(key));
            continue;
        }
        match items.iter_mut().find(|item| item.get(merge_key) == Some(key)) {
            Some(item) => merge_object(item_schema, item, change_map)?,
            None => {
                let mut item = Value::Null;
                merge_object(item_schema, &mut item, change_map)?;
                items.push(item);
            }
        }
    }
    Ok(())
}

/// Puts the listed elements into the given order; others stay after the element they followed.
fn reorder(items: &mut Vec<Value>, order: &[Value], merge_key: Option<&str>) {
    let identity = |item: &Value| merge_key.map_or_else(|| item.clone(), |key| item[key].clone());
    let position = |item: &Value| order.iter().position(|wanted| identity(wanted) == identity(item));
    let mut last = 0;
    let mut ranked: Vec<(usize, Value)> = Vec::with_capacity(items.len());
    for item in items.drain(..) {
        if let Some(at) = position(&item) {
            last = at;
        }
        ranked.push((last, item));
    }
    ranked.sort_by_key(|(rank, _)| *rank);
    items.extend(ranked.into_iter().map(|(_, item)| item));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin;
    use serde_json::json;

    fn patched(kind: &str, object: Value, patch: Value) -> Value {
        let def = builtin::resources().into_iter().find(|def| def.kind == kind).unwrap();
        let mut object = object;
        strategic(def.schemas.schema(&def.schema_name), &mut object, &patch).unwrap();
        object
    }

    #[test]
    fn strategic_merges() {
        let pod =
            json!({"spec": {"containers": [{"name": "a", "image": "1", "args": ["x"]}, {"name": "b"}]}});
        let cases = [
            (
                json!({"spec": {"containers": [{"name": "a", "image": "2"}]}}),
                json!([{"name": "a", "image": "2", "args": ["x"]}, {"name": "b"}]),
            ),
            (
                json!({"spec": {"containers": [{"name": "a", "args": ["y"]}, {"name": "c"}]}}),
                json!([{"name": "a", "image": "1", "args": ["y"]}, {"name": "b"}, {"name": "c"}]),
            ),
            (json!({"spec": {"containers": [{"name": "a", "$patch": "delete"}]}}), json!([{"name": "b"}])),
            (json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "z"}]}}), json!([{"name": "z"}])),
            (
                json!({"spec": {"containers": [{"name": "a", "image": null}]}}),
                json!([{"name": "a", "args": ["x"]}, {"name": "b"}]),
            ),
            (
                json!({"spec": {"$setElementOrder/containers": [{"name": "c"}, {"name": "b"}, {"name": "a"}], "containers": [{"name": "c"}]}}),
                json!([{"name": "c"}, {"name": "b"}, {"name": "a", "image": "1", "args": ["x"]}]),
            ),
        ];
        for (patch, expected) in cases {
            assert_eq!(patched("Pod", pod.clone(), patch.clone())["spec"]["containers"], expected, "{patch}");
        }
    }

    #[test]
    fn strategic_directives() {
        let deployment = json!({"metadata": {"finalizers": ["a/b", "c/d"]},
            "spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {}}}});
        let changed = patched(
            "Deployment",
            deployment,
            json!({
                "metadata": {"$deleteFromPrimitiveList/finalizers": ["a/b"], "finalizers": ["e/f"]},
                "spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}},
            }),
        );
        assert_eq!(changed["metadata"]["finalizers"], json!(["c/d", "e/f"]));
        assert_eq!(changed["spec"]["strategy"], json!({"type": "Recreate"}));
        let labels = json!({"metadata": {"labels": {"a": "1"}}});
        assert_eq!(
            patched("Pod", labels, json!({"metadata": {"labels": {"$patch": "replace", "b": "2"}}}))["metadata"]
                ["labels"],
            json!({"b": "2"})
        );
    }
}
