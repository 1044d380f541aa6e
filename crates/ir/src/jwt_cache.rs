//! Tokens that were found good, of one worker: their signatures need not be looked at again.

use std::collections::BTreeMap;
use std::sync::Arc;

use ahash::AHashMap;

use crate::{Jwt, JwtAuthn};

/// A memory of good tokens for each provider that wants one; the least recently used one is forgotten first.
#[derive(Debug, Default)]
pub struct JwtCache(Vec<Option<OfProvider>>);

#[derive(Debug)]
struct OfProvider {
    most: usize,
    longest: usize,
    tokens: AHashMap<Arc<str>, (u64, Arc<Jwt>)>,
    by_use: BTreeMap<u64, Arc<str>>,
    uses: u64,
}

impl JwtCache {
    /// An empty one.
    pub fn new(filter: &JwtAuthn) -> Self {
        let sizes: Vec<_> = filter.providers.iter().map(|provider| provider.cache).collect();
        Self::of_sizes(&sizes)
    }

    /// For each provider: how many tokens, and how long ones.
    pub(crate) fn of_sizes(sizes: &[Option<(usize, usize)>]) -> Self {
        let of = |(most, longest): (usize, usize)| OfProvider {
            most,
            longest,
            tokens: AHashMap::new(),
            by_use: BTreeMap::new(),
            uses: 0,
        };
        Self(sizes.iter().map(|size| size.map(of)).collect())
    }

    fn of(&mut self, provider: usize) -> Option<&mut OfProvider> {
        self.0.get_mut(provider)?.as_mut()
    }

    pub(crate) fn get(&mut self, provider: usize, token: &str) -> Option<Arc<Jwt>> {
        let cache = self.of(provider)?;
        let (used, jwt) = cache.tokens.get_mut(token)?;
        let name = cache.by_use.remove(used)?;
        cache.uses += 1;
        *used = cache.uses;
        cache.by_use.insert(cache.uses, name);
        Some(jwt.clone())
    }

    pub(crate) fn put(&mut self, provider: usize, token: &str, jwt: Arc<Jwt>) {
        let Some(cache) = self.of(provider).filter(|cache| token.len() <= cache.longest) else { return };
        if cache.tokens.len() >= cache.most
            && let Some((_, oldest)) = cache.by_use.pop_first()
        {
            cache.tokens.remove(&oldest);
        }
        let name: Arc<str> = token.into();
        cache.uses += 1;
        cache.by_use.insert(cache.uses, name.clone());
        cache.tokens.insert(name, (cache.uses, jwt));
    }
}
