//! Schemas as everything else walks them: one form for built-in kinds and CRDs.
//!
//! Schemas stay the JSON they are published as in OpenAPI; [`Schema`] is a cursor that knows how to follow references.

use std::sync::Arc;

use serde_json::{Map, Value};

const REF_PREFIX: &str = "#/components/schemas/";

/// Named schemas that may refer to each other.
#[derive(Debug, Default)]
pub(crate) struct SchemaSet {
    definitions: Map<String, Value>,
    base: Option<Arc<SchemaSet>>,
}

impl SchemaSet {
    pub(crate) fn new(definitions: Map<String, Value>, base: Option<Arc<SchemaSet>>) -> Self {
        Self { definitions, base }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        self.definitions.get(name).or_else(|| self.base.as_ref()?.get(name))
    }

    pub(crate) fn schema<'a>(&'a self, name: &str) -> Schema<'a> {
        Schema { set: self, node: self.get(name).unwrap_or(&Value::Bool(true)) }
    }
}

/// The name a reference node points to, looking through the one-element `allOf` that carries a description.
pub(crate) fn reference(node: &Value) -> Option<&str> {
    let direct = node.get("$ref").or_else(|| match node.get("allOf")?.as_array()?.as_slice() {
        [one] => one.get("$ref"),
        _ => None,
    })?;
    direct.as_str()?.strip_prefix(REF_PREFIX)
}

/// How a list is merged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ListType {
    /// Replaced as a whole.
    Atomic,
    /// A set of scalars.
    Set,
    /// Elements identified by these fields.
    Map(Vec<String>),
}

/// A place in a schema. `Any` places (unknown fields kept, no schema) answer `None` everywhere.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schema<'a> {
    set: &'a SchemaSet,
    node: &'a Value,
}

impl<'a> Schema<'a> {
    /// The node with references followed.
    pub(crate) fn resolved(self) -> &'a Value {
        let mut node = self.node;
        while let Some(next) = reference(node).and_then(|name| self.set.get(name)) {
            node = next;
        }
        node
    }

    /// Name of the referenced definition, if any.
    pub(crate) fn definition(self) -> Option<&'a str> {
        reference(self.node)
    }

    pub(crate) fn at(self, node: &'a Value) -> Schema<'a> {
        Schema { set: self.set, node }
    }

    /// `type`, or empty.
    pub(crate) fn type_name(self) -> &'a str {
        self.resolved()["type"].as_str().unwrap_or_default()
    }

    pub(crate) fn flag(self, name: &str) -> bool {
        self.resolved()[name].as_bool() == Some(true)
    }

    pub(crate) fn int_or_string(self) -> bool {
        self.flag("x-kubernetes-int-or-string") || self.resolved()["format"] == "int-or-string"
    }

    pub(crate) fn preserves_unknown(self) -> bool {
        self.flag("x-kubernetes-preserve-unknown-fields")
    }

    pub(crate) fn property(self, name: &str) -> Option<Schema<'a>> {
        self.resolved().get("properties")?.get(name).map(|node| self.at(node))
    }

    /// Schema of a map's values; `None` when the object isn't a map or its values are free.
    pub(crate) fn values(self) -> Option<Schema<'a>> {
        match self.resolved().get("additionalProperties")? {
            node @ Value::Object(_) => Some(self.at(node)),
            _ => None,
        }
    }

    pub(crate) fn items(self) -> Option<Schema<'a>> {
        self.resolved().get("items").map(|node| self.at(node))
    }

    /// Schema of a field, be it a property or a map's value.
    pub(crate) fn field(self, name: &str) -> Option<Schema<'a>> {
        self.property(name).or_else(|| self.values())
    }

    /// Whether the place has no structure to walk (anything goes).
    pub(crate) fn is_open(self) -> bool {
        let node = self.resolved();
        self.preserves_unknown()
            || (node.get("properties").is_none()
                && node.get("additionalProperties").is_none_or(|v| v == &Value::Bool(true))
                && node.get("items").is_none()
                && matches!(self.type_name(), "" | "object"))
    }

    pub(crate) fn list_type(self) -> ListType {
        match self.node["x-kubernetes-list-type"].as_str() {
            Some("set") => ListType::Set,
            Some("map") => ListType::Map(strings(&self.node["x-kubernetes-list-map-keys"])),
            _ => ListType::Atomic,
        }
    }

    /// An object that is replaced as a whole by server-side apply.
    pub(crate) fn atomic_map(self) -> bool {
        let atomic = |node: &Value| node["x-kubernetes-map-type"] == "atomic";
        atomic(self.node) || atomic(self.resolved())
    }

    /// Strategic merge: the key of a merged list of objects.
    pub(crate) fn merge_key(self) -> Option<&'a str> {
        self.node["x-kubernetes-patch-merge-key"].as_str()
    }

    /// Strategic merge: whether `strategy` (`merge`, `retainKeys`) is among the place's strategies.
    pub(crate) fn patch_strategy(self, strategy: &str) -> bool {
        self.node["x-kubernetes-patch-strategy"]
            .as_str()
            .is_some_and(|all| all.split(',').any(|one| one == strategy))
    }
}

/// A JSON array's strings.
pub(crate) fn strings(value: &Value) -> Vec<String> {
    let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
    items.iter().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}
