//! Content digests: equal digests stand for equal content.
use std::hash::{Hash, Hasher};

use xxhash_rust::xxh3::Xxh3;

/// A 128-bit xxh3 of some content. Not against malice: both sides of a comparison come from the same process.
pub type Digest = u128;

/// The digest of anything that can be hashed.
pub fn digest_of<T: Hash + ?Sized>(value: &T) -> Digest {
    let mut hasher = Hash128(Xxh3::new());
    value.hash(&mut hasher);
    hasher.0.digest128()
}

struct Hash128(Xxh3);

impl Hasher for Hash128 {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }
    fn finish(&self) -> u64 {
        self.0.digest()
    }
}
