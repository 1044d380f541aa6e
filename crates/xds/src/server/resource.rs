//! What is served: resources in wire form, sets of them by type, and the snapshot a client should have.
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use bytes::Bytes;
use imbl::OrdMap;
use imbl::ordmap::DiffItem;

/// One encoded resource, shared by every client that gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// Name, unique among resources of its type.
    pub name: Arc<str>,
    /// Version by content: equal versions stand for equal bodies.
    pub version: Arc<str>,
    /// The encoded message, the `value` of the `Any` that carries it.
    pub body: Bytes,
}

/// All resources of one type, by name. Immutable: a change makes a new set, and an unchanged type keeps its set, which
/// is how a connection sees at once that there is nothing to do. Sets share their structure with those they were made from,
/// so that both making one and finding what changed cost what changed, not what there is.
#[derive(Clone, Debug, Default)]
pub struct ResourceSet {
    by_name: OrdMap<Arc<str>, Arc<Resource>>,
}

/// A resource that differs between two sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Difference<'a> {
    /// It is new or has another version.
    Set(&'a Arc<Resource>),
    /// It is gone.
    Gone(&'a Arc<Resource>),
}

impl ResourceSet {
    /// The resource of this name.
    pub fn get(&self, name: &str) -> Option<&Arc<Resource>> {
        self.by_name.get(name)
    }

    /// All resources, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.by_name.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// What differs between an older set and this one, by name.
    pub(super) fn differences<'a>(&'a self, older: &'a Self) -> impl Iterator<Item = Difference<'a>> {
        older.by_name.diff(&self.by_name).filter_map(|item| match item {
            DiffItem::Add(_, new) => Some(Difference::Set(new)),
            DiffItem::Update { old: (_, old), new: (_, new) } => {
                (old.version != new.version).then_some(Difference::Set(new))
            }
            DiffItem::Remove(_, old) => Some(Difference::Gone(old)),
        })
    }

    /// This set with `resources` in place of those of the same names; none when it holds them already.
    pub fn with(&self, resources: impl IntoIterator<Item = Arc<Resource>>) -> Option<Self> {
        let mut next = None;
        for resource in resources {
            if self.get(&resource.name).is_none_or(|held| held.version != resource.version) {
                let next: &mut Self = next.get_or_insert_with(|| self.clone());
                next.by_name.insert(resource.name.clone(), resource);
            }
        }
        next
    }

    /// This set without the resources of these names; none when it has none of them.
    pub fn without<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let mut next = None;
        for name in names.into_iter().filter(|name| self.by_name.contains_key(*name)) {
            let next: &mut Self = next.get_or_insert_with(|| self.clone());
            next.by_name.remove(name);
        }
        next
    }
}

impl FromIterator<Arc<Resource>> for ResourceSet {
    fn from_iter<I: IntoIterator<Item = Arc<Resource>>>(resources: I) -> Self {
        Self { by_name: resources.into_iter().map(|resource| (resource.name.clone(), resource)).collect() }
    }
}

/// Everything one client should have. Clients of one class share it.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Version of the configuration it was made from, for people.
    pub version: u64,
    /// When the change it was made for arrived; convergence is measured from here.
    pub changed: Instant,
    types: BTreeMap<&'static str, Arc<ResourceSet>>,
}

static EMPTY: LazyLock<Arc<ResourceSet>> = LazyLock::new(Arc::default);

impl Snapshot {
    /// A snapshot without resources.
    pub fn new(version: u64, changed: Instant) -> Self {
        Self { version, changed, types: BTreeMap::new() }
    }

    /// The same resources for a later change.
    pub fn clone_at(&self, version: u64, changed: Instant) -> Self {
        Self { version, changed, types: self.types.clone() }
    }

    /// Sets the resources of a type.
    #[must_use]
    pub fn with(mut self, type_url: &'static str, set: Arc<ResourceSet>) -> Self {
        self.types.insert(type_url, set);
        self
    }

    /// The resources of a type; none for a type that was never set.
    pub fn set(&self, type_url: &str) -> &Arc<ResourceSet> {
        self.types.get(type_url).unwrap_or(&EMPTY)
    }

    /// The types it has, with their resources.
    pub fn types(&self) -> impl Iterator<Item = (&'static str, &Arc<ResourceSet>)> {
        self.types.iter().map(|(url, set)| (*url, set))
    }
}
