//! Follows whose keys RequestAuthentications want, fetches them, and keeps them fresh. What came once stays in force until
//! something newer comes, however long a provider is away, and over a restart (`stored_keys`).
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt as _};
use jiff::Timestamp;
use lateen_model::{Event, KeySet, KeySource, World};
use lateen_translate::proxies_fetch;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::due::due;
use crate::fetch_keys::KeyFetcher;
use crate::push::{Input, Published};
use crate::stored_keys::{Seen, StoredKeys};

/// What the push loop waits for before it serves anybody: a proxy that comes back must not lose keys it had.
pub(crate) const KIND: &str = "JWKS";

/// How long fetching may take where a rule says nothing (Istio's default).
const TIME_LIMIT: Duration = Duration::from_secs(5);

/// Fetched at a time.
const AT_A_TIME: usize = 16;

/// Pause after the first failure; it doubles with each.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// Longest pause after failures.
const LAST_RETRY: Duration = Duration::from_secs(60);

/// What is known of a source.
struct Known {
    keys: Option<Seen>,
    failures: u32,
    /// When it is asked again.
    next: Instant,
}

/// Works until told to stop. `refresh`: how old keys may become.
pub(crate) async fn run(
    fetcher: KeyFetcher,
    refresh: Duration,
    mut stored: StoredKeys,
    mut published: watch::Receiver<Published>,
    inputs: mpsc::Sender<Input>,
    stop: CancellationToken,
) {
    let working = async {
        let kept = |seen| Known { keys: Some(seen), failures: 0, next: Instant::now() };
        let mut known: BTreeMap<KeySource, Known> =
            stored.load().await.into_iter().map(|(source, seen)| (source, kept(seen))).collect();
        let mut told = false;
        loop {
            let now = published.borrow_and_update().clone();
            if now.listed {
                if round(&fetcher, refresh, &wanted(&now.world), &mut known, &inputs).await.is_none() {
                    return;
                }
                // Proxies wait for this, not for what is kept.
                if !std::mem::replace(&mut told, true) && inputs.send(Input::Listed(KIND)).await.is_err() {
                    return;
                }
                let seen =
                    known.iter().filter_map(|(source, known)| Some((source.clone(), known.keys.clone()?)));
                stored.keep(seen.collect()).await;
            }
            let next = known.values().map(|known| known.next).min();
            if due(next, &mut published).await.is_none() {
                return;
            }
        }
    };
    stop.run_until_cancelled(working).await;
}

/// The sources that rules name and proxies do not fetch from, with the longest time one of them allows.
fn wanted(world: &World) -> BTreeMap<KeySource, Duration> {
    let mut wanted = BTreeMap::new();
    for rule in world.request_authentications().flat_map(|policy| &policy.spec.jwt_rules) {
        let Some(source) = KeySource::of(rule).filter(|_| !proxies_fetch(world, rule)) else { continue };
        let given = rule.timeout.as_deref().and_then(|text| lateen_api::duration::parse(text).ok());
        let limit = wanted.entry(source).or_insert(Duration::ZERO);
        *limit = given.unwrap_or(TIME_LIMIT).max(*limit);
    }
    wanted
}

/// Fetches what is due. `None`: nobody listens any more.
async fn round(
    fetcher: &KeyFetcher,
    refresh: Duration,
    wanted: &BTreeMap<KeySource, Duration>,
    known: &mut BTreeMap<KeySource, Known>,
    inputs: &mpsc::Sender<Input>,
) -> Option<()> {
    let gone: Vec<KeySource> = known.keys().filter(|source| !wanted.contains_key(source)).cloned().collect();
    for source in gone {
        known.remove(&source);
        inputs.send(Input::Object(Event::NoKeys(source), Instant::now())).await.ok()?;
    }
    let now = Instant::now();
    let due = wanted.iter().filter(|(source, _)| known.get(source).is_none_or(|known| known.next <= now));
    let due: Vec<(KeySource, Duration)> = due.map(|(source, limit)| (source.clone(), *limit)).collect();
    let mut fetched = stream::iter(due)
        .map(|(source, limit)| async move {
            let result = fetcher.fetch(&source, limit).await;
            (source, result)
        })
        .buffer_unordered(AT_A_TIME);
    while let Some((source, result)) = fetched.next().await {
        let before = known.remove(&source);
        let (state, problem) = follow(before, result, refresh);
        if let Some(problem) = &problem {
            tracing::warn!("cannot fetch keys from {source}: {problem}; trying again");
        }
        let keys = state.keys.as_ref().map(|seen| seen.keys.clone());
        let set = KeySet { source: source.clone(), keys, problem };
        known.insert(source, state);
        inputs.send(Input::Object(Event::Keys(set), Instant::now())).await.ok()?;
    }
    Some(())
}

/// What is known after an attempt.
fn follow(
    before: Option<Known>,
    result: Result<Arc<str>, String>,
    refresh: Duration,
) -> (Known, Option<String>) {
    let (keys, failures) = before.map_or((None, 0), |before| (before.keys, before.failures));
    let now = Instant::now();
    match result {
        Ok(keys) => {
            let keys = Some(Seen { keys, at: Timestamp::now() });
            (Known { keys, failures: 0, next: now + refresh }, None)
        }
        Err(problem) => {
            let pause = FIRST_RETRY.saturating_mul(2_u32.saturating_pow(failures)).min(LAST_RETRY);
            let next = now + pause.min(refresh);
            (Known { keys, failures: failures.saturating_add(1), next }, Some(problem))
        }
    }
}

#[cfg(test)]
#[path = "key_sets_tests.rs"]
pub(crate) mod tests;
