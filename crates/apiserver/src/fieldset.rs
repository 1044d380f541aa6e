//! Sets of fields of an object, and their `FieldsV1` form.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::schema::{ListType, Schema};

/// A set of paths. Path elements are `FieldsV1` keys: `f:name`, `k:{"name":"x"}`, `v:"x"`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FieldSet {
    /// The place itself is in the set.
    pub(crate) member: bool,
    pub(crate) children: BTreeMap<String, FieldSet>,
}

impl FieldSet {
    fn leaf() -> Self {
        Self { member: true, children: BTreeMap::new() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        !self.member && self.children.values().all(FieldSet::is_empty)
    }

    pub(crate) fn parse(fields: &Value) -> Self {
        let Some(map) = fields.as_object() else { return Self::default() };
        // An empty object stands for the place itself.
        if map.is_empty() {
            return Self::leaf();
        }
        let children = map.iter().filter(|(key, _)| *key != ".");
        Self {
            member: map.contains_key("."),
            children: children.map(|(key, child)| (key.clone(), Self::parse(child))).collect(),
        }
    }

    pub(crate) fn to_fields(&self) -> Value {
        let mut map = Map::new();
        if self.member && !self.children.is_empty() {
            map.insert(".".to_owned(), json!({}));
        }
        for (key, child) in &self.children {
            if !child.is_empty() {
                map.insert(key.clone(), child.to_fields());
            }
        }
        Value::Object(map)
    }

    pub(crate) fn union(&mut self, other: &Self) {
        self.member |= other.member;
        for (key, child) in &other.children {
            self.children.entry(key.clone()).or_default().union(child);
        }
    }

    pub(crate) fn subtract(&mut self, other: &Self) {
        self.member &= !other.member;
        for (key, child) in &other.children {
            if let Some(own) = self.children.get_mut(key) {
                own.subtract(child);
                if own.is_empty() {
                    self.children.remove(key);
                }
            }
        }
    }

    pub(crate) fn intersect(&self, other: &Self) -> Self {
        let both = self.children.iter().filter_map(|(key, child)| {
            let common = child.intersect(other.children.get(key)?);
            (!common.is_empty()).then(|| (key.clone(), common))
        });
        Self { member: self.member && other.member, children: both.collect() }
    }

    /// Every member as a readable path (`.spec.containers[name="a"].image`).
    pub(crate) fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.collect(String::new(), &mut paths);
        paths
    }

    fn collect(&self, path: String, paths: &mut Vec<String>) {
        for (key, child) in &self.children {
            child.collect(format!("{path}{}", readable(key)), paths);
        }
        if self.member {
            paths.push(path);
        }
    }
}

fn readable(element: &str) -> String {
    if let Some(name) = element.strip_prefix("f:") {
        return format!(".{name}");
    }
    if let Some(keys) = element.strip_prefix("k:")
        && let Ok(Value::Object(keys)) = serde_json::from_str(keys)
    {
        let pairs: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
        return format!("[{}]", pairs.join(","));
    }
    format!("[{}]", element.trim_start_matches("v:").trim_start_matches("i:"))
}

/// The path element of a list item.
pub(crate) fn item_key(list: &ListType, item_schema: Option<Schema<'_>>, item: &Value) -> String {
    match list {
        ListType::Map(keys) => {
            let mut identity = BTreeMap::new();
            for key in keys {
                let default = || {
                    let from_schema =
                        item_schema.and_then(|s| s.property(key)?.resolved().get("default").cloned());
                    // The one key field of built-in types with a default that is not always sent.
                    from_schema.or_else(|| (key == "protocol").then(|| json!("TCP")))
                };
                if let Some(value) = item.get(key).cloned().or_else(default) {
                    identity.insert(key.clone(), value);
                }
            }
            format!("k:{}", json!(identity))
        }
        _ => format!("v:{item}"),
    }
}

/// How a value is owned.
enum Shape<'v> {
    /// As a whole.
    Leaf,
    Fields(&'v Map<String, Value>),
    Items(ListType, &'v [Value]),
}

fn shape<'v>(schema: Option<Schema<'_>>, value: &'v Value) -> Shape<'v> {
    match value {
        Value::Object(map) if !schema.is_some_and(Schema::atomic_map) => Shape::Fields(map),
        Value::Array(items) => match schema.map_or(ListType::Atomic, Schema::list_type) {
            ListType::Atomic => Shape::Leaf,
            list => Shape::Items(list, items),
        },
        _ => Shape::Leaf,
    }
}

/// The fields an object sets.
pub(crate) fn of_object(schema: Option<Schema<'_>>, value: &Value) -> FieldSet {
    let mut set = FieldSet::default();
    match shape(schema, value) {
        Shape::Leaf => set.member = true,
        Shape::Fields(map) => {
            // The presence of a map of free keys is owned with its contents; that of a struct is not.
            set.member = map.is_empty() || schema.is_some_and(|s| s.values().is_some());
            for (key, child) in map {
                let field = schema.and_then(|s| s.field(key));
                set.children.insert(format!("f:{key}"), of_object(field, child));
            }
        }
        Shape::Items(list, items) => {
            set.member = items.is_empty();
            let item_schema = schema.and_then(Schema::items);
            for item in items {
                let mut owned = of_object(item_schema, item);
                owned.member = true;
                set.children.insert(item_key(&list, item_schema, item), owned);
            }
        }
    }
    set
}

/// Fields that `new` has and `old` has not, or has otherwise.
pub(crate) fn changed(schema: Option<Schema<'_>>, old: Option<&Value>, new: &Value) -> FieldSet {
    let Some(old) = old else { return of_object(schema, new) };
    if old == new {
        return FieldSet::default();
    }
    let mut set = FieldSet::default();
    match (shape(schema, old), shape(schema, new)) {
        (Shape::Fields(before), Shape::Fields(after)) => {
            for (key, child) in after {
                let field = schema.and_then(|s| s.field(key));
                let difference = changed(field, before.get(key), child);
                if !difference.is_empty() {
                    set.children.insert(format!("f:{key}"), difference);
                }
            }
        }
        (Shape::Items(list, before), Shape::Items(_, after)) => {
            let item_schema = schema.and_then(Schema::items);
            for item in after {
                let key = item_key(&list, item_schema, item);
                let earlier = before.iter().find(|one| item_key(&list, item_schema, one) == key);
                let mut difference = changed(item_schema, earlier, item);
                difference.member |= earlier.is_none();
                if !difference.is_empty() {
                    set.children.insert(key, difference);
                }
            }
        }
        _ => return of_object(schema, new),
    }
    set
}

/// Takes the fields of `doomed` out of an object.
pub(crate) fn remove(schema: Option<Schema<'_>>, value: &mut Value, doomed: &FieldSet) {
    match value {
        Value::Object(map) => {
            for (key, child) in &doomed.children {
                let Some(name) = key.strip_prefix("f:") else { continue };
                let Some(slot) = map.get_mut(name) else { continue };
                remove(schema.and_then(|s| s.field(name)), slot, child);
                let emptied = match &*slot {
                    Value::Object(rest) => rest.is_empty(),
                    Value::Array(rest) => rest.is_empty(),
                    _ => true,
                };
                let whole = child.member && child.children.is_empty();
                if whole || (child.member && emptied) || (emptied && !child.children.is_empty()) {
                    map.shift_remove(name);
                }
            }
        }
        Value::Array(items) => {
            let Some(schema) = schema else { return };
            let list = schema.list_type();
            let item_schema = schema.items();
            for item in items.iter_mut() {
                if let Some(child) = doomed.children.get(&item_key(&list, item_schema, item)) {
                    if child.member {
                        *item = Value::Null;
                    } else {
                        remove(item_schema, item, child);
                    }
                }
            }
            items.retain(|item| !item.is_null());
        }
        _ => {}
    }
}

/// Merges `patch` into `base` by the schema's list types, as server-side apply does.
pub(crate) fn merge(schema: Option<Schema<'_>>, base: &mut Value, patch: &Value) {
    match (shape(schema, base), shape(schema, patch)) {
        (Shape::Fields(_), Shape::Fields(after)) => {
            for (key, child) in after {
                let field = schema.and_then(|s| s.field(key));
                match base.get_mut(key) {
                    Some(slot) => merge(field, slot, child),
                    None => base[key.as_str()] = child.clone(),
                }
            }
        }
        (Shape::Items(list, _), Shape::Items(_, after)) => {
            let item_schema = schema.and_then(Schema::items);
            let Some(items) = base.as_array_mut() else { return };
            for item in after {
                let key = item_key(&list, item_schema, item);
                match items.iter_mut().find(|one| item_key(&list, item_schema, one) == key) {
                    Some(slot) => merge(item_schema, slot, item),
                    None => items.push(item.clone()),
                }
            }
        }
        _ => *base = patch.clone(),
    }
}
