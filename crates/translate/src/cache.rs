//! The cache of generated resources.
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use lateen_model::{Digest, digest_of};
use parking_lot::Mutex;

use crate::resource::{Resource, ResourceType};

/// Generated resources by the digest of everything they were made from. Shared by all classes; safe to use from several
/// threads. Bounded: entries not asked for while as many others came as it may hold are forgotten.
#[derive(Debug)]
pub struct Cache {
    capacity: usize,
    generations: Mutex<Generations>,
}

#[derive(Debug, Default)]
struct Generations {
    young: HashMap<Digest, Arc<Resource>>,
    old: HashMap<Digest, Arc<Resource>>,
}

impl Default for Cache {
    /// Room for 50,000 resources in use.
    fn default() -> Self {
        Self::new(50_000)
    }
}

impl Cache {
    /// A cache that holds between one and two times `capacity` resources.
    pub fn new(capacity: usize) -> Self {
        Self { capacity: capacity.max(1), generations: Mutex::default() }
    }

    /// The resource made from `inputs`: from the cache, else made by `make`, which must depend on nothing else.
    pub(crate) fn resource<I: Hash>(
        &self,
        kind: ResourceType,
        inputs: &I,
        make: impl FnOnce(&I) -> Resource,
    ) -> Arc<Resource> {
        let key = digest_of(&(kind, std::any::type_name::<I>(), inputs));
        {
            let mut generations = self.generations.lock();
            if let Some(found) = generations.young.get(&key) {
                return found.clone();
            }
            if let Some(found) = generations.old.remove(&key) {
                generations.young.insert(key, found.clone());
                return found;
            }
        }
        // Made outside the lock: two threads may make the same one, which costs time but is right.
        let made = Arc::new(make(inputs));
        let mut generations = self.generations.lock();
        if generations.young.len() >= self.capacity {
            generations.old = std::mem::take(&mut generations.young);
        }
        generations.young.insert(key, made.clone());
        made
    }

    /// How many resources it holds.
    pub fn len(&self) -> usize {
        let generations = self.generations.lock();
        generations.young.len() + generations.old.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
