//! Keys that are fetched before a request needs them (Envoy's `async_fetch`): by the first worker for all of them, as Envoy does it on
//! its main thread. Such keys never get old; they are replaced.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use lateen_ir::{Jwks, JwksAsyncFetch, RemoteJwks};
use tokio::sync::{Notify, watch};

use crate::call::{self, Call, Called};
use crate::message::Message;
use crate::snapshot::ClusterSlot;
use crate::worker::{View, Worker};

/// Longest key set in bytes. Envoy takes any.
const LARGEST_SET: usize = 1024 * 1024;

/// Between two fetches at least, whatever the configuration says.
const LEAST_PAUSE: Duration = Duration::from_millis(1);

/// What has been fetched for a provider of a filter.
pub(crate) struct KeyFetch {
    pub(crate) remote: Arc<RemoteJwks>,
    when: JwksAsyncFetch,
    cluster: ClusterSlot,
    /// Under which the filter counts.
    stats: Arc<str>,
    keys: ArcSwapOption<Jwks>,
    /// The first fetch is over, well or not.
    over: AtomicBool,
}

impl KeyFetch {
    pub(crate) fn keys(&self) -> Option<Arc<Jwks>> {
        self.keys.load_full()
    }

    pub(crate) fn has_keys(&self) -> bool {
        self.keys.load().is_some()
    }

    /// Whether the listener need not wait for it (any more).
    pub(crate) fn is_over(&self) -> bool {
        self.when.fast_listener || self.over.load(Ordering::Acquire)
    }

    /// Whether it may begin before clusters are ready.
    pub(crate) fn is_hasty(&self) -> bool {
        self.when.fast_listener
    }
}

/// A filter's hold on a fetch, which ends with the filter.
pub(crate) struct OwnFetch {
    pub(crate) fetch: Arc<KeyFetch>,
    wanted: watch::Sender<bool>,
}

impl OwnFetch {
    /// `None`: keys are fetched when a request needs them.
    pub(crate) fn new(remote: &Arc<RemoteJwks>, cluster: ClusterSlot, stats: &Arc<str>) -> Option<Self> {
        let fetch = KeyFetch {
            remote: remote.clone(),
            when: remote.async_fetch.clone()?,
            cluster,
            stats: stats.clone(),
            keys: ArcSwapOption::empty(),
            over: AtomicBool::default(),
        };
        Some(Self { fetch: Arc::new(fetch), wanted: watch::Sender::new(false) })
    }

    /// The fetch, for the first who asks.
    pub(crate) fn begin(&self) -> Option<NewFetch> {
        let new = !self.wanted.send_replace(true);
        new.then(|| NewFetch { fetch: self.fetch.clone(), wanted: self.wanted.subscribe() })
    }
}

/// A fetch that nobody has begun.
pub(crate) struct NewFetch {
    pub(crate) fetch: Arc<KeyFetch>,
    /// Closed when the filter is gone.
    wanted: watch::Receiver<bool>,
}

impl NewFetch {
    /// Fetches again and again, as long as the filter is there. `over` is told of the first end.
    pub(crate) async fn run(mut self, worker: Rc<Worker>, over: Arc<Notify>) {
        tokio::select! {
            () = again_and_again(&self.fetch, &worker, &over) => {}
            _ = self.wanted.changed() => {}
        }
    }
}

async fn again_and_again(fetch: &KeyFetch, worker: &Rc<Worker>, over: &Notify) {
    let stats = worker.stats.jwt(&fetch.stats);
    loop {
        let call = call(fetch.cluster, &fetch.remote, &worker.view(), worker);
        let fetched = match call {
            Some(call) => call.send().await.ok().and_then(key_set),
            None => None,
        };
        let pause = match fetched {
            Some(keys) => {
                fetch.keys.store(Some(keys));
                stats.jwks_fetch_success.inc();
                fetch.when.refetch_after
            }
            None => {
                stats.jwks_fetch_failed.inc();
                fetch.when.failed_refetch_after
            }
        };
        // Only the first end can let a listener serve.
        if !fetch.over.swap(true, Ordering::AcqRel) {
            over.notify_one();
        }
        tokio::time::sleep(pause.max(LEAST_PAUSE)).await;
    }
}

/// The question for keys; `None`: there is nobody to ask.
pub(super) fn call(
    cluster: ClusterSlot,
    remote: &RemoteJwks,
    view: &View,
    worker: &Rc<Worker>,
) -> Option<Call> {
    let cluster = view.cluster(cluster, worker)?;
    // Envoy's fetcher says so, too.
    let mut headers = HeaderMap::from_iter([(header::USER_AGENT, HeaderValue::from_static("Go-browser"))]);
    call::add_internal(&mut headers);
    call::add_own_address(&mut headers, worker);
    let message = Message {
        method: Method::GET,
        headers,
        authority: remote.authority.clone(),
        path: remote.path.clone(),
        secure: false,
    };
    Some(Call {
        worker: worker.clone(),
        cluster,
        message,
        body: Bytes::new(),
        timeout: remote.timeout,
        most_received: Some(LARGEST_SET),
        retry_policy: remote.retry_policy.clone(),
    })
}

pub(super) fn key_set(answer: Called) -> Option<Arc<Jwks>> {
    let text = std::str::from_utf8(&answer.body).ok().filter(|_| answer.status == StatusCode::OK)?;
    Jwks::parse(text).ok().map(Arc::new)
}
