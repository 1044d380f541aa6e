//! The cache of generated resources.
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use lateen_model::{Digest, digest_of};
use parking_lot::Mutex;

use crate::parts::Part;
use crate::resource::{Resource, ResourceType};

/// Generated resources by the digest of everything they were made from. Shared by all classes; safe to use from several
/// threads. It keeps nothing alive but the parts of resources in use: what no snapshot holds any more is gone, and
/// [`Cache::sweep`] forgets that it was there.
#[derive(Debug, Default)]
pub struct Cache {
    resources: Mutex<Shelf<Resource>>,
    parts: Mutex<Shelf<Part>>,
    compounds: Mutex<HashMap<Digest, Compound>>,
    made: AtomicU64,
}

/// A resource put together from parts, which stay for as long as it is in use: the next version has most of them too.
#[derive(Debug)]
struct Compound {
    resource: Weak<Resource>,
    #[allow(dead_code, reason = "held, not read")]
    parts: Vec<Arc<Part>>,
}

#[derive(Debug)]
struct Shelf<T> {
    items: HashMap<Digest, Weak<T>>,
    /// How many items there may be before the dead ones are looked for.
    limit: usize,
}

/// Fewer entries than these are never swept.
const SMALL: usize = 1024;

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self { items: HashMap::new(), limit: SMALL }
    }
}

impl<T> Shelf<T> {
    fn get(&self, key: Digest) -> Option<Arc<T>> {
        self.items.get(&key)?.upgrade()
    }

    fn sweep(&mut self) {
        if self.items.len() > self.limit {
            self.items.retain(|_, item| item.strong_count() > 0);
            self.items.shrink_to_fit();
            self.limit = SMALL + 2 * self.items.len();
        }
    }
}

impl Cache {
    /// The resource made from `inputs`: from the cache, else made by `make`, which must depend on nothing else.
    pub(crate) fn resource<I: Hash>(
        &self,
        kind: ResourceType,
        inputs: &I,
        make: impl FnOnce(&I) -> Resource,
    ) -> Arc<Resource> {
        let key = digest_of(&(kind, std::any::type_name::<I>(), inputs));
        self.shelved(&self.resources, key, || make(inputs))
    }

    /// The same for a part of resources.
    pub(crate) fn part<I: Hash>(&self, inputs: &I, make: impl FnOnce(Digest, &I) -> Part) -> Arc<Part> {
        let key = digest_of(&(std::any::type_name::<I>(), inputs));
        self.shelved(&self.parts, key, || make(key, inputs))
    }

    fn shelved<T>(&self, shelf: &Mutex<Shelf<T>>, key: Digest, make: impl FnOnce() -> T) -> Arc<T> {
        if let Some(found) = shelf.lock().get(key) {
            return found;
        }
        // Made outside the lock: two threads may make the same one, which costs time but is right.
        let made = Arc::new(make());
        self.made.fetch_add(1, Ordering::Relaxed);
        shelf.lock().items.insert(key, Arc::downgrade(&made));
        made
    }

    /// The resource put together from `parts`, in their order, and `rest`.
    pub(crate) fn compound<I: Hash>(
        &self,
        kind: ResourceType,
        rest: &I,
        parts: Vec<Arc<Part>>,
        make: impl FnOnce(&I, &[Arc<Part>]) -> Resource,
    ) -> Arc<Resource> {
        let digests: Vec<Digest> = parts.iter().map(|part| part.digest).collect();
        let key = digest_of(&(kind, std::any::type_name::<I>(), rest, digests));
        if let Some(found) = self.compounds.lock().get(&key).and_then(|compound| compound.resource.upgrade())
        {
            return found;
        }
        let made = Arc::new(make(rest, &parts));
        self.made.fetch_add(1, Ordering::Relaxed);
        self.compounds.lock().insert(key, Compound { resource: Arc::downgrade(&made), parts });
        made
    }

    /// Forgets what nothing uses any more. To be called after each change; costs next to nothing when there is little.
    pub fn sweep(&self) {
        self.compounds.lock().retain(|_, compound| compound.resource.strong_count() > 0);
        self.parts.lock().sweep();
        self.resources.lock().sweep();
    }

    /// How many resources and parts were made so far.
    pub fn made(&self) -> u64 {
        self.made.load(Ordering::Relaxed)
    }
}
