//! Configuration objects that are in the API server and cannot be used as they are: written while no webhook answered, mostly.
//! Their last good state stays in force, and their status says so.
use std::collections::BTreeMap;

use lateen_model::ObjectName;
use tokio::sync::watch;

/// Identifies an object among all kinds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) kind: &'static str,
    pub(crate) name: ObjectName,
}

/// Why an object is not used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// `metadata.generation` of the state that is not used.
    pub(crate) generation: i64,
    /// In words.
    pub(crate) reason: String,
}

/// All of them. Cloning gives another handle.
#[derive(Clone, Debug, Default)]
pub(crate) struct Refused(watch::Sender<BTreeMap<Key, Refusal>>);

impl Refused {
    pub(crate) fn subscribe(&self) -> watch::Receiver<BTreeMap<Key, Refusal>> {
        self.0.subscribe()
    }

    /// An object is refused, or (none) used or gone.
    pub(crate) fn set(&self, kind: &'static str, name: &ObjectName, refusal: Option<Refusal>) {
        let key = Key { kind, name: name.clone() };
        self.0.send_if_modified(|refused| match refusal {
            Some(refusal) => refused.insert(key, refusal.clone()).as_ref() != Some(&refusal),
            None => refused.remove(&key).is_some(),
        });
    }

    /// Of this kind there are only the objects of these names.
    pub(crate) fn retain(&self, kind: &'static str, exists: impl Fn(&ObjectName) -> bool) {
        self.0.send_if_modified(|refused| {
            let before = refused.len();
            refused.retain(|key, _| key.kind != kind || exists(&key.name));
            refused.len() != before
        });
    }
}
