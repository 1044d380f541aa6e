//! Resources as they came, for dumps, and to see whether one that comes again is new.

use std::collections::BTreeMap;
use std::time::SystemTime;

use crate::update::ResourceKind;

/// A resource as it came.
#[derive(Clone)]
pub(crate) struct Raw {
    pub(crate) version: Box<str>,
    /// Encoded.
    pub(crate) body: Box<[u8]>,
    pub(crate) is_static: bool,
    pub(crate) updated: SystemTime,
    /// A later version that was refused, and why.
    pub(crate) refused: Option<Box<(String, String)>>,
}

/// See the module.
#[derive(Default)]
pub(crate) struct RawResources([BTreeMap<Box<str>, Raw>; ResourceKind::ALL.len()]);

impl RawResources {
    pub(crate) fn get(&self, kind: ResourceKind, name: &str) -> Option<&Raw> {
        self.0[kind as usize].get(name)
    }

    pub(super) fn get_mut(&mut self, kind: ResourceKind, name: &str) -> Option<&mut Raw> {
        self.0[kind as usize].get_mut(name)
    }

    /// Whether the bootstrap defines it.
    pub(crate) fn is_static(&self, kind: ResourceKind, name: &str) -> bool {
        self.get(kind, name).is_some_and(|raw| raw.is_static)
    }

    pub(super) fn insert(&mut self, kind: ResourceKind, name: String, raw: Raw) {
        self.0[kind as usize].insert(name.into(), raw);
    }

    pub(super) fn remove(&mut self, kind: ResourceKind, name: &str) {
        self.0[kind as usize].remove(name);
    }

    /// Forgets those of a kind that are neither static nor wanted.
    pub(super) fn retain(&mut self, kind: ResourceKind, is_wanted: impl Fn(&str) -> bool) {
        self.0[kind as usize].retain(|name, raw| raw.is_static || is_wanted(name));
    }

    /// All, by kind and name.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (ResourceKind, &str, &Raw)> {
        let kinds = ResourceKind::ALL.into_iter().zip(&self.0);
        kinds.flat_map(|(kind, all)| all.iter().map(move |(name, raw)| (kind, &**name, raw)))
    }
}
