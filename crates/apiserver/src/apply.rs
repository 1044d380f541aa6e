//! Field managers: `managedFields` on every write, and server-side apply.
//!
//! Follows structured-merge-diff: who changes a field by an update owns it; who applies owns what it applied, conflicts
//! with other owners of differing values, and gives up (deletes) what it no longer applies and nobody else owns.

use serde_json::{Value, json};

use crate::{
    fieldset::{self, FieldSet},
    resources::ResourceDef,
    schema::Schema,
    status::ApiError,
};

/// Who writes, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Manager {
    pub(crate) name: String,
    pub(crate) subresource: String,
}

/// Fields nobody manages.
const UNMANAGED_METADATA: &[&str] = &[
    "name",
    "namespace",
    "creationTimestamp",
    "selfLink",
    "uid",
    "clusterName",
    "generation",
    "managedFields",
    "resourceVersion",
    "generateName",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
];

fn managed_part(object: &Value) -> Value {
    let mut part = object.clone();
    if let Some(map) = part.as_object_mut() {
        map.shift_remove("apiVersion");
        map.shift_remove("kind");
        if let Some(metadata) = map.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.retain(|key, _| !UNMANAGED_METADATA.contains(&key.as_str()));
            if metadata.is_empty() {
                map.shift_remove("metadata");
            }
        }
    }
    part
}

#[derive(Debug, Clone)]
struct Entry {
    manager: String,
    operation: String,
    subresource: String,
    api_version: String,
    time: String,
    fields: FieldSet,
}

impl Entry {
    fn is(&self, manager: &Manager, operation: &str) -> bool {
        self.manager == manager.name && self.subresource == manager.subresource && self.operation == operation
    }
}

fn entries(object: &Value) -> Vec<Entry> {
    let list = object["metadata"]["managedFields"].as_array();
    let text = |entry: &Value, field: &str| entry[field].as_str().unwrap_or_default().to_owned();
    list.into_iter()
        .flatten()
        .map(|entry| Entry {
            manager: text(entry, "manager"),
            operation: text(entry, "operation"),
            subresource: text(entry, "subresource"),
            api_version: text(entry, "apiVersion"),
            time: text(entry, "time"),
            fields: FieldSet::parse(&entry["fieldsV1"]),
        })
        .collect()
}

fn store_entries(object: &mut Value, entries: &[Entry]) {
    let list: Vec<Value> = entries
        .iter()
        .filter(|entry| !entry.fields.is_empty())
        .map(|entry| {
            let mut value = json!({
                "manager": entry.manager,
                "operation": entry.operation,
                "apiVersion": entry.api_version,
                "time": entry.time,
                "fieldsType": "FieldsV1",
                "fieldsV1": entry.fields.to_fields(),
            });
            if !entry.subresource.is_empty() {
                value["subresource"] = json!(entry.subresource);
            }
            value
        })
        .collect();
    if let Some(metadata) = object["metadata"].as_object_mut() {
        if list.is_empty() {
            metadata.shift_remove("managedFields");
        } else {
            metadata.insert("managedFields".to_owned(), Value::Array(list));
        }
    }
}

/// Records an update (or create, when `old` is `None`) by `manager`.
///
/// `new` may carry an edited `managedFields` (kubectl migrates owners that way); an explicit empty list resets it.
pub(crate) fn track_update(
    def: &ResourceDef,
    old: Option<&Value>,
    new: &mut Value,
    manager: &Manager,
    now: &str,
) {
    let schema = Some(def.schemas.schema(&def.schema_name));
    let empty = json!({});
    let before = old.map_or(empty, managed_part);
    let after = managed_part(new);
    let added = fieldset::changed(schema, Some(&before), &after);
    let removed = gone(schema, &before, &after);
    let mut list = if new["metadata"].get("managedFields").is_some() {
        entries(new)
    } else {
        old.map(entries).unwrap_or_default()
    };
    if added.is_empty() && removed.is_empty() {
        store_entries(new, &list);
        return;
    }
    for entry in &mut list {
        entry.fields.subtract(&removed);
        if !entry.is(manager, "Update") {
            entry.fields.subtract(&added);
        }
    }
    match list.iter_mut().find(|entry| entry.is(manager, "Update")) {
        Some(entry) => {
            entry.fields.union(&added);
            now.clone_into(&mut entry.time);
            entry.api_version = def.api_version();
        }
        None => list.push(Entry {
            manager: manager.name.clone(),
            operation: "Update".to_owned(),
            subresource: manager.subresource.clone(),
            api_version: def.api_version(),
            time: now.to_owned(),
            fields: added,
        }),
    }
    store_entries(new, &list);
}

/// Fields `before` has and `after` has not.
fn gone(schema: Option<Schema<'_>>, before: &Value, after: &Value) -> FieldSet {
    let mut gone = fieldset::of_object(schema, before);
    gone.subtract(&fieldset::of_object(schema, after));
    gone
}

/// The result of applying `config`: the merged object with its `managedFields`.
pub(crate) fn apply(
    def: &ResourceDef,
    live: Option<&Value>,
    config: &Value,
    manager: &Manager,
    force: bool,
    now: &str,
) -> Result<Value, ApiError> {
    let schema = Some(def.schemas.schema(&def.schema_name));
    let wanted = managed_part(config);
    let applied = fieldset::of_object(schema, &wanted);
    let mut merged = live.cloned().unwrap_or_else(|| {
        json!({"apiVersion": config["apiVersion"], "kind": config["kind"], "metadata": config["metadata"]})
    });
    let mut list = live.map(entries).unwrap_or_default();
    let before = live.map_or_else(|| json!({}), managed_part);
    fieldset::merge(schema, &mut merged, &wanted);
    let changed = fieldset::changed(schema, Some(&before), &managed_part(&merged)).intersect(&applied);
    check_conflicts(&list, manager, &changed, force)?;
    for entry in &mut list {
        if !entry.is(manager, "Apply") {
            entry.fields.subtract(&changed);
        }
    }
    // What was applied before and is not now goes, unless somebody else owns it too.
    let mut abandoned = list
        .iter()
        .find(|entry| entry.is(manager, "Apply"))
        .map(|entry| entry.fields.clone())
        .unwrap_or_default();
    abandoned.subtract(&applied);
    for entry in list.iter().filter(|entry| !entry.is(manager, "Apply")) {
        abandoned.subtract(&entry.fields);
        keep_ancestors(&mut abandoned, &entry.fields);
    }
    keep_ancestors(&mut abandoned, &applied);
    fieldset::remove(schema, &mut merged, &abandoned);
    let unchanged_set = list.iter().any(|entry| entry.is(manager, "Apply") && entry.fields == applied);
    if unchanged_set && managed_part(&merged) == before {
        store_entries(&mut merged, &list);
        return Ok(merged);
    }
    match list.iter_mut().find(|entry| entry.is(manager, "Apply")) {
        Some(entry) => {
            entry.fields = applied;
            now.clone_into(&mut entry.time);
            entry.api_version = def.api_version();
        }
        None => list.push(Entry {
            manager: manager.name.clone(),
            operation: "Apply".to_owned(),
            subresource: manager.subresource.clone(),
            api_version: def.api_version(),
            time: now.to_owned(),
            fields: applied,
        }),
    }
    store_entries(&mut merged, &list);
    Ok(merged)
}

/// Places under which another owner has fields must not go as a whole.
fn keep_ancestors(doomed: &mut FieldSet, owned: &FieldSet) {
    for (key, child) in &owned.children {
        if let Some(place) = doomed.children.get_mut(key) {
            if !child.is_empty() {
                place.member = false;
            }
            keep_ancestors(place, child);
        }
    }
}

fn check_conflicts(
    list: &[Entry],
    manager: &Manager,
    changed: &FieldSet,
    force: bool,
) -> Result<(), ApiError> {
    if force {
        return Ok(());
    }
    let mut causes = Vec::new();
    let mut lines = Vec::new();
    for entry in list.iter().filter(|entry| !entry.is(manager, "Apply")) {
        let paths = entry.fields.intersect(changed).paths();
        if paths.is_empty() {
            continue;
        }
        let subresource = if entry.subresource.is_empty() {
            String::new()
        } else {
            format!(" with subresource {:?}", entry.subresource)
        };
        let using = if entry.operation == "Update" {
            format!(" using {} at {}", entry.api_version, entry.time)
        } else {
            String::new()
        };
        let who = format!("conflict with {:?}{subresource}{using}", entry.manager);
        for path in &paths {
            causes.push(json!({"reason": "FieldManagerConflict", "message": who, "field": path}));
        }
        lines.push(match paths.as_slice() {
            [one] => format!("{who}: {one}"),
            many => format!("{who}:\n- {}", many.join("\n- ")),
        });
    }
    if causes.is_empty() {
        return Ok(());
    }
    let plural = if causes.len() == 1 { "conflict" } else { "conflicts" };
    let text = match lines.as_slice() {
        [one] => one.clone(),
        many => many.join("\n"),
    };
    let mut error = ApiError::new(
        http::StatusCode::CONFLICT,
        "Conflict",
        format!("Apply failed with {} {plural}: {text}", causes.len()),
    );
    error.details = Some(Box::new(json!({"causes": causes})));
    Err(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin;

    fn def(kind: &str) -> std::sync::Arc<ResourceDef> {
        builtin::resources().into_iter().find(|def| def.kind == kind).unwrap()
    }

    fn manager(name: &str) -> Manager {
        Manager { name: name.to_owned(), subresource: String::new() }
    }

    fn config(data: Value) -> Value {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "data": data})
    }

    #[test]
    fn what_is_no_longer_applied_goes_unless_shared() {
        let def = def("ConfigMap");
        let one =
            apply(&def, None, &config(json!({"a": "1", "b": "1"})), &manager("one"), false, "t").unwrap();
        let both = apply(&def, Some(&one), &config(json!({"b": "1", "c": "1"})), &manager("two"), false, "t")
            .unwrap();
        assert_eq!(both["data"], json!({"a": "1", "b": "1", "c": "1"}));
        let less = apply(&def, Some(&both), &config(json!({})), &manager("one"), false, "t").unwrap();
        assert_eq!(less["data"], json!({"b": "1", "c": "1"}));
    }

    #[test]
    fn conflicts_are_named_and_forced() {
        let def = def("ConfigMap");
        let mut object = config(json!({"a": "1"}));
        track_update(&def, None, &mut object, &manager("editor"), "t");
        let error =
            apply(&def, Some(&object), &config(json!({"a": "2"})), &manager("one"), false, "t").unwrap_err();
        assert_eq!(error.code, http::StatusCode::CONFLICT);
        assert!(
            error.message.contains("conflict with \"editor\" using v1 at t: .data.a"),
            "{}",
            error.message
        );
        let same = apply(&def, Some(&object), &config(json!({"a": "1"})), &manager("one"), false, "t");
        assert!(same.is_ok(), "equal values are shared");
        let forced =
            apply(&def, Some(&object), &config(json!({"a": "2"})), &manager("one"), true, "t").unwrap();
        assert_eq!(forced["data"]["a"], "2");
        assert_eq!(
            forced["metadata"]["managedFields"].as_array().unwrap().len(),
            2,
            "editor keeps the map itself"
        );
    }

    #[test]
    fn lists_merge_by_key() {
        let def = def("Pod");
        let pod = |containers: Value| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {"containers": containers}});
        let one = apply(&def, None, &pod(json!([{"name": "a", "image": "1"}])), &manager("one"), false, "t")
            .unwrap();
        let two =
            apply(&def, Some(&one), &pod(json!([{"name": "b", "image": "1"}])), &manager("two"), false, "t")
                .unwrap();
        assert_eq!(
            two["spec"]["containers"],
            json!([{"name": "a", "image": "1"}, {"name": "b", "image": "1"}])
        );
        let gone = apply(&def, Some(&two), &pod(json!([])), &manager("one"), false, "t").unwrap();
        assert_eq!(gone["spec"]["containers"], json!([{"name": "b", "image": "1"}]));
        let again = apply(
            &def,
            Some(&two),
            &pod(json!([{"name": "b", "image": "1"}])),
            &manager("two"),
            false,
            "later",
        )
        .unwrap();
        assert_eq!(again, two, "a repeated apply changes nothing");
    }
}
