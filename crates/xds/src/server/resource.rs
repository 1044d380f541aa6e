//! What is served: resources in wire form, sets of them by type, and the snapshot a client should have.
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use bytes::Bytes;

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
/// is how a connection sees at once that there is nothing to do.
#[derive(Clone, Debug, Default)]
pub struct ResourceSet {
    by_name: BTreeMap<Arc<str>, Arc<Resource>>,
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

    /// Whether both hold the same names at the same versions.
    pub fn same_content(&self, other: &Self) -> bool {
        self.len() == other.len()
            && self.iter().zip(other.iter()).all(|(a, b)| a.name == b.name && a.version == b.version)
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
