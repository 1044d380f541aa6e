//! Where a provider's keys come from, and those at hand while a request is judged.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use http::uri::PathAndQuery;

use crate::RetryPolicy;
use crate::jwks::Jwks;
use crate::jwt::JwtError;

/// Envoy's `JwtProvider.jwks_source_specifier`.
#[derive(Clone, Debug)]
pub enum JwtKeys {
    /// They are written down; `None`: there is none that could be used, so that every token is refused.
    Local(Option<Jwks>),
    /// The proxy fetches them.
    Remote(Arc<RemoteJwks>),
}

/// Envoy's `jwt_authn.v3.RemoteJwks`.
#[derive(Clone, Debug)]
pub struct RemoteJwks {
    /// Who is asked.
    pub cluster: Arc<str>,
    /// Of the URI.
    pub authority: HeaderValue,
    /// Of the URI.
    pub path: PathAndQuery,
    /// For everything; `None`: no limit.
    pub timeout: Option<Duration>,
    /// How long fetched keys are used, in whole seconds. Default 10 minutes.
    pub cache_duration: Duration,
    /// Which tries are repeated; `None`: none.
    pub retry_policy: Option<Arc<RetryPolicy>>,
    /// Keys are fetched before a request needs them; `None`: only then.
    pub async_fetch: Option<JwksAsyncFetch>,
}

/// Envoy's `jwt_authn.v3.JwksAsyncFetch`.
#[derive(Clone, Debug)]
pub struct JwksAsyncFetch {
    /// The listener serves before the first fetch is over.
    pub fast_listener: bool,
    /// Between fetches as long as they succeed.
    pub refetch_after: Duration,
    /// Until the next fetch where one failed. Default 1 s.
    pub failed_refetch_after: Duration,
}

/// The fetched keys for one request: those that were there when it came, and what was fetched for it since. A provider is asked once
/// for a request, whatever comes of it. With the same keyring a request is always judged in the same way.
#[derive(Debug, Default)]
pub struct JwtKeyring(Vec<KeysOf>);

#[derive(Clone, Debug, Default)]
enum KeysOf {
    #[default]
    Missing,
    Known(Arc<Jwks>),
    Failed,
}

impl JwtKeyring {
    /// By provider, the keys that are fresh.
    pub fn new(fresh: impl Iterator<Item = Option<Arc<Jwks>>>) -> Self {
        Self(fresh.map(|keys| keys.map_or(KeysOf::Missing, KeysOf::Known)).collect())
    }

    /// The fetch for a provider is over; `None`: it failed.
    pub fn set(&mut self, provider: usize, keys: Option<Arc<Jwks>>) {
        if let Some(of) = self.0.get_mut(provider) {
            *of = keys.map_or(KeysOf::Failed, KeysOf::Known);
        }
    }

    /// The keys of a provider of fetched ones. Where they are still to be fetched, `missing` says whose.
    pub(crate) fn of(&self, provider: usize, missing: &mut Option<usize>) -> Result<&Jwks, JwtError> {
        match self.0.get(provider) {
            Some(KeysOf::Known(keys)) => Ok(keys),
            Some(KeysOf::Failed) | None => Err(JwtError::FetchFailed),
            Some(KeysOf::Missing) => {
                missing.get_or_insert(provider);
                Err(JwtError::FetchFailed)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_is_asked_once() {
        let keys = || Some(Arc::new(Jwks::parse(r#"{"keys":[{"kty":"oct","k":"AA"}]}"#).unwrap()));
        let mut ring = JwtKeyring::new([None, keys(), None].into_iter());
        let walk = |ring: &JwtKeyring| {
            let mut missing = None;
            let found = [1, 0, 2].map(|provider| ring.of(provider, &mut missing).is_ok());
            (found, missing)
        };
        assert_eq!(walk(&ring), ([true, false, false], Some(0)), "the first that is missed");
        ring.set(0, None);
        assert_eq!(walk(&ring), ([true, false, false], Some(2)));
        ring.set(2, keys());
        assert_eq!(walk(&ring), ([true, false, true], None));
    }
}
