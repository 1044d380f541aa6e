//! Strategic merge of pod fragments: what `kubectl patch --type strategic` does, for the lists a pod has.
use serde_json::Value;

/// The field by which elements of a list are the same one; lists without one are replaced.
fn merge_key(list: &str) -> Option<&'static str> {
    match list {
        "containers" | "initContainers" | "volumes" | "env" | "imagePullSecrets" => Some("name"),
        "volumeMounts" => Some("mountPath"),
        "ports" => Some("containerPort"),
        "hostAliases" => Some("ip"),
        _ => None,
    }
}

/// Lays `overlay` over `base`; where both say something, `overlay` wins. New list elements go to the end.
pub(super) fn merge(base: &mut Value, overlay: &Value) {
    merge_field(base, overlay, "");
}

fn merge_field(base: &mut Value, overlay: &Value, field: &str) {
    match (base, overlay) {
        (Value::Object(base), Value::Object(overlay)) => {
            for (key, value) in overlay {
                match base.get_mut(key) {
                    Some(existing) => merge_field(existing, value, key),
                    None => {
                        base.insert(key.clone(), value.clone());
                    }
                }
            }
        }
        (Value::Array(base), Value::Array(overlay)) if merge_key(field).is_some() => {
            let key = merge_key(field).unwrap_or_default();
            for item in overlay {
                match base.iter_mut().find(|existing| !item[key].is_null() && existing[key] == item[key]) {
                    Some(existing) => merge_field(existing, item, ""),
                    None => base.push(item.clone()),
                }
            }
        }
        (base, overlay) => *base = overlay.clone(),
    }
}
