//! Between the version an object is stored in and the one it is served in.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::resources::ResourceDef;

/// Core v1 Event fields and their names in events.k8s.io/v1.
const EVENT_FIELDS: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("reportingComponent", "reportingController"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
];

/// The stored object as `def` serves it.
pub(crate) fn to_served(def: &ResourceDef, stored: &Arc<Value>) -> Arc<Value> {
    if def.api_version() == def.storage_version {
        return Arc::clone(stored);
    }
    let mut object = Value::clone(stored);
    object["apiVersion"] = json!(def.api_version());
    if !def.custom {
        rename(&mut object, EVENT_FIELDS.iter().copied());
    }
    Arc::new(object)
}

/// An object of `def`'s version as it is stored.
pub(crate) fn to_stored(def: &ResourceDef, mut object: Value) -> Value {
    if def.api_version() != def.storage_version {
        object["apiVersion"] = json!(def.storage_version);
        if !def.custom {
            rename(&mut object, EVENT_FIELDS.iter().map(|(core, events)| (*events, *core)));
        }
    }
    object
}

fn rename<'a>(object: &mut Value, names: impl Iterator<Item = (&'a str, &'a str)>) {
    let Some(map) = object.as_object_mut() else { return };
    for (from, to) in names {
        if let Some(value) = map.shift_remove(from) {
            map.insert(to.to_owned(), value);
        }
    }
}
