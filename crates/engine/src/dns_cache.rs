//! Hosts that are not known before somebody asks for them: their addresses, looked up with the first request and kept fresh as
//! long as somebody asks. One cache serves all workers; a worker keeps what it has found there (`cluster`), so that only the
//! first request to a host, and the first after a change, takes the lock.
//! <https://www.envoyproxy.io/docs/envoy/v1.40.0/intro/arch_overview/http/http_proxy>

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use ahash::AHashMap;
use hickory_resolver::net::NetError;
use lateen_ir::{DnsCacheConfig, dynamic_host_parts};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::dns;
use crate::resolver::{self, Answer, Resolver, Resolvers};

/// The caches in use, by name. Of one runtime, on which names are looked up.
#[derive(Default)]
pub(crate) struct DnsCaches {
    known: AHashMap<Arc<str>, Weak<DnsCache>>,
    resolvers: Resolvers,
}

impl DnsCaches {
    /// The cache with this configuration. It is there as long as something uses it.
    ///
    /// # Errors
    /// When the cache in use has other settings.
    pub(crate) fn of(&mut self, config: &Arc<DnsCacheConfig>) -> Result<Arc<DnsCache>, String> {
        if let Some(known) = self.known.get(&config.name).and_then(Weak::upgrade) {
            if *known.config == **config {
                return Ok(known);
            }
            return Err(format!("config specified DNS cache '{}' with different settings", config.name));
        }
        self.known.retain(|_, cache| cache.strong_count() > 0);
        let runtime = Handle::try_current().map_err(|error| error.to_string())?;
        let resolver = self.resolvers.of(config.dns.resolver.as_ref());
        let cache = Arc::new(DnsCache {
            config: config.clone(),
            hosts: Mutex::default(),
            pending: AtomicU32::new(0),
            stats: CacheStats::default(),
            runtime,
            resolver,
            began: Instant::now(),
            added: AtomicU64::new(0),
        });
        for (host, port) in &config.known {
            let mut key = String::new();
            lateen_ir::dynamic_host_key(host, *port, &mut key);
            cache.load(&key);
        }
        self.known.insert(config.name.clone(), Arc::downgrade(&cache));
        Ok(cache)
    }

    /// Those in use.
    pub(crate) fn in_use(&self) -> impl Iterator<Item = Arc<DnsCache>> {
        self.known.values().filter_map(Weak::upgrade)
    }
}

/// See the module.
pub(crate) struct DnsCache {
    pub(crate) config: Arc<DnsCacheConfig>,
    hosts: Mutex<AHashMap<Box<str>, Arc<CachedHost>>>,
    /// Requests that wait.
    pending: AtomicU32,
    stats: CacheStats,
    runtime: Handle,
    resolver: Resolver,
    /// Times of use count from here.
    began: Instant,
    /// Hosts so far.
    added: AtomicU64,
}

/// What is known of a host.
#[derive(Clone, Debug)]
pub(crate) enum Known {
    /// It is being looked up for the first time.
    Nothing,
    /// Never resolved so far; why, in words without spaces.
    Failed(Arc<str>),
    /// The first is used, the others when it does not answer.
    At(Arc<[SocketAddr]>),
}

/// A host that somebody asked for.
#[derive(Debug)]
pub(crate) struct CachedHost {
    key: Box<str>,
    /// Tells it from one of the same name before it or after.
    pub(crate) serial: u64,
    name: Box<str>,
    port: u16,
    known: watch::Sender<Known>,
    /// Counts the changes of `known`.
    version: AtomicU64,
    /// Milliseconds after [`DnsCache::began`].
    used: AtomicU64,
    /// It is not in the cache any more.
    gone: AtomicBool,
    /// Looks it up.
    task: OnceLock<AbortHandle>,
}

impl CachedHost {
    pub(crate) fn known(&self) -> Known {
        self.known.borrow().clone()
    }

    /// What is known, when the first look-up is over.
    pub(crate) async fn resolved(&self) -> Known {
        let mut known = self.known.subscribe();
        let result = known.wait_for(|known| !matches!(known, Known::Nothing)).await;
        // The sender is here, so the channel is open.
        result.map_or(Known::Nothing, |known| known.clone())
    }

    /// Changes with what is known.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Relaxed)
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Relaxed)
    }

    fn set(&self, known: Known) {
        self.known.send_replace(known);
        self.version.fetch_add(1, Relaxed);
    }
}

/// What a cache has of a host.
pub(crate) enum Loaded {
    /// At least the outcome of the first look-up.
    Known(Known),
    /// It is being looked up.
    Loading(Arc<CachedHost>),
    /// There are as many as there may be.
    Overflow,
}

/// Counts a request that waits for an address, until dropped.
pub(crate) struct PendingLookup(Arc<DnsCache>);

impl Drop for PendingLookup {
    fn drop(&mut self) {
        self.0.pending.fetch_sub(1, Relaxed);
    }
}

macro_rules! cache_stats {
    ($($name:ident)*) => {
        /// Counters of a cache, by their names in Envoy.
        #[derive(Debug, Default)]
        struct CacheStats {
            $($name: AtomicU64,)*
        }

        impl CacheStats {
            fn read(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.load(Relaxed)),)*]
            }

            fn reset(&self) {
                $(self.$name.store(0, Relaxed);)*
            }
        }
    };
}

cache_stats! {
    cache_load dns_address_filter_out dns_query_attempt dns_query_failure dns_query_success dns_query_timeout dns_rq_pending_overflow
    host_added host_address_changed host_overflow host_removed
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

impl DnsCache {
    fn hosts(&self) -> MutexGuard<'_, AHashMap<Box<str>, Arc<CachedHost>>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    /// Somebody sends to the host.
    pub(crate) fn touch(&self, host: &CachedHost) {
        host.used.store(self.now(), Relaxed);
    }

    /// Lets a request wait, unless too many do.
    pub(crate) fn admit(self: &Arc<Self>) -> Option<PendingLookup> {
        if self.pending.fetch_add(1, Relaxed) < self.config.max_pending_requests {
            return Some(PendingLookup(self.clone()));
        }
        self.pending.fetch_sub(1, Relaxed);
        count(&self.stats.dns_rq_pending_overflow);
        None
    }

    /// The host with this key, if it is in the cache.
    pub(crate) fn find(&self, key: &str) -> Option<Arc<CachedHost>> {
        self.hosts().get(key).cloned()
    }

    /// What is known of the host with this key, which is looked up if it is new.
    pub(crate) fn load(self: &Arc<Self>, key: &str) -> Loaded {
        let mut hosts = self.hosts();
        let host = hosts.get(key).cloned();
        if let Some(host) = &host {
            let known = host.known();
            let asks_again = matches!(known, Known::Failed(_)) && !self.config.refreshes_failures;
            if !matches!(known, Known::Nothing) && !asks_again {
                return Loaded::Known(known);
            }
        }
        // As with Envoy, who would have to wait does not when the cache is full.
        if hosts.len() >= self.config.max_hosts as usize {
            count(&self.stats.host_overflow);
            return Loaded::Overflow;
        }
        if let Some(host) = host {
            return Loaded::Loading(host);
        }
        // A port that is none is part of a name that does not resolve.
        let (name, port) = dynamic_host_parts(key).unwrap_or((key, 0));
        let host = Arc::new(CachedHost {
            key: key.into(),
            serial: self.added.fetch_add(1, Relaxed),
            name: name.into(),
            port,
            known: watch::channel(Known::Nothing).0,
            version: AtomicU64::new(0),
            used: AtomicU64::new(self.now()),
            gone: AtomicBool::new(false),
            task: OnceLock::new(),
        });
        hosts.insert(key.into(), host.clone());
        count(&self.stats.host_added);
        let task = self.runtime.spawn(follow(Arc::downgrade(self), host.clone()));
        // The cell is new and empty.
        let _ = host.task.set(task.abort_handle());
        Loaded::Loading(host)
    }

    fn forget(&self, host: &CachedHost) {
        host.gone.store(true, Relaxed);
        if self.hosts().remove(&host.key).is_some() {
            count(&self.stats.host_removed);
        }
    }

    /// Addresses of the host in an answer, those that are allowed.
    fn addresses(&self, host: &CachedHost, answer: &Answer) -> Arc<[SocketAddr]> {
        let refused = |address: &IpAddr| {
            let filter = self.config.refused.as_ref();
            filter.is_some_and(|filter| filter.holds(*address))
        };
        let allowed = answer.addresses.iter().filter(|address| !refused(address));
        let allowed: Arc<[SocketAddr]> =
            allowed.map(|address| SocketAddr::new(*address, host.port)).collect();
        if allowed.len() < answer.addresses.len() {
            count(&self.stats.dns_address_filter_out);
        }
        allowed
    }

    /// Takes the outcome of a look-up. Once a host has an address it keeps one, whatever comes. Returns when to look it up again;
    /// `None`: never.
    fn take(&self, host: &CachedHost, outcome: Outcome, failures: &mut u32) -> Option<Duration> {
        let dns = &self.config.dns;
        let (addresses, ttl, reason) = match &outcome {
            Ok(answer) => (self.addresses(host, answer), Some(answer.ttl), reason(answer)),
            Err(reason) => (Arc::from([]), None, *reason),
        };
        let failed = ttl.is_none();
        count(if failed { &self.stats.dns_query_failure } else { &self.stats.dns_query_success });
        if reason == TIMED_OUT {
            count(&self.stats.dns_query_timeout);
        }
        let before = host.known();
        match &before {
            Known::At(known) if addresses.is_empty() || *known == addresses => {}
            _ if addresses.is_empty() => host.set(Known::Failed(reason.into())),
            _ => {
                count(&self.stats.host_address_changed);
                host.set(Known::At(addresses.clone()));
            }
        }
        if !failed {
            *failures = 0;
            return Some(dns::pause(dns, 0, ttl.filter(|_| !addresses.is_empty()), 0));
        }
        *failures = failures.saturating_add(1);
        if !self.config.refreshes_failures && !matches!(before, Known::At(_)) {
            return None;
        }
        Some(dns::pause(dns, *failures, None, fastrand::u64(..)))
    }

    /// Whether nobody has asked for the host for too long.
    fn is_unused(&self, host: &CachedHost) -> bool {
        let since = self.now().saturating_sub(host.used.load(Relaxed));
        Duration::from_millis(since) > self.config.host_ttl
    }

    /// Hosts that have an address, by key, with the one that is used.
    pub(crate) fn found(&self) -> Vec<(Arc<str>, SocketAddr)> {
        let hosts = self.hosts();
        let first = |host: &Arc<CachedHost>| match &*host.known.borrow() {
            Known::At(addresses) => Some((Arc::from(&*host.key), *addresses.first()?)),
            Known::Nothing | Known::Failed(_) => None,
        };
        let mut found: Vec<_> = hosts.values().filter_map(first).collect();
        found.sort_unstable();
        found
    }

    /// Which hosts have an address.
    pub(crate) fn serials(&self) -> Vec<u64> {
        let hosts = self.hosts();
        let known = hosts.values().filter(|host| matches!(*host.known.borrow(), Known::At(_)));
        known.map(|host| host.serial).collect()
    }

    /// Names and values of counters.
    pub(crate) fn counters(&self) -> Vec<(&'static str, u64)> {
        self.stats.read()
    }

    /// Names and values of what changes in both directions.
    pub(crate) fn gauges(&self) -> [(&'static str, u64); 3] {
        let pending = self.pending.load(Relaxed);
        let open = pending > 0 && pending >= self.config.max_pending_requests;
        [
            ("num_hosts", self.hosts().len() as u64),
            ("circuit_breakers.rq_pending_open", u64::from(open)),
            (
                "circuit_breakers.rq_pending_remaining",
                u64::from(self.config.max_pending_requests.saturating_sub(pending)),
            ),
        ]
    }

    pub(crate) fn reset_counters(&self) {
        self.stats.reset();
    }
}

impl Drop for DnsCache {
    fn drop(&mut self) {
        for task in self.hosts().values().filter_map(|host| host.task.get()) {
            task.abort();
        }
    }
}

const TIMED_OUT: &str = "resolve_timeout";

/// How Envoy tells of a look-up that found addresses.
pub(crate) const RESOLVED: &str = "cares_success:Successful_completion";

/// How a look-up ended, or in Envoy's words why it failed.
type Outcome = Result<Answer, &'static str>;

/// Why an answer has no address of use.
fn reason(answer: &Answer) -> &'static str {
    match (answer.addresses.is_empty(), answer.missing) {
        (false, _) => "address_denied",
        (true, true) => "cares_norecords:Domain_name_not_found",
        (true, false) => "cares_norecords:DNS_server_returned_answer_with_no_data",
    }
}

/// Looks a host up until it is forgotten or the cache is gone.
async fn follow(cache: Weak<DnsCache>, host: Arc<CachedHost>) {
    let mut failures = 0;
    loop {
        let Some(found) = cache.upgrade() else { return };
        count(&found.stats.dns_query_attempt);
        let (resolver, config) = (found.resolver.clone(), found.config.clone());
        drop(found);
        let look_up = async {
            if dynamic_host_parts(&host.key).is_none() {
                return Err(Arc::new(NetError::Message("the port is none")));
            }
            resolver.look_up(&host.name, config.dns.family).await
        };
        let outcome = match config.query_timeout {
            None => Ok(look_up.await),
            Some(limit) => tokio::time::timeout(limit, look_up).await,
        };
        let outcome = match outcome {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                tracing::debug!(name = %host.name, %error, "name does not resolve");
                Err(resolver::failure(&error))
            }
            Err(_) => Err(TIMED_OUT),
        };
        let Some(found) = cache.upgrade() else { return };
        let Some(pause) = found.take(&host, outcome, &mut failures) else { return found.forget(&host) };
        drop(found);
        tokio::time::sleep(pause).await;
        let Some(found) = cache.upgrade() else { return };
        if found.is_unused(&host) {
            return found.forget(&host);
        }
    }
}

#[cfg(test)]
mod tests {
    use lateen_ir::{Dns, DnsFamily};

    use super::*;

    /// A cache whose look-ups never begin: the test's runtime is of one thread, and the test does not wait.
    fn cache() -> Arc<DnsCache> {
        let dns = Dns {
            refresh_rate: Duration::from_secs(60),
            jitter: Duration::ZERO,
            failure_refresh: None,
            family: DnsFamily::V4Only,
            respect_ttl: false,
            least_ttl: Duration::ZERO,
            resolver: None,
        };
        let config = DnsCacheConfig {
            name: "cache".into(),
            dns,
            host_ttl: Duration::from_secs(300),
            max_hosts: 1,
            max_pending_requests: 1,
            query_timeout: None,
            refreshes_failures: true,
            known: Vec::new(),
            refused: None,
        };
        DnsCaches::default().of(&Arc::new(config)).unwrap()
    }

    fn new_host(cache: &Arc<DnsCache>) -> Arc<CachedHost> {
        match cache.load("a.test:80") {
            Loaded::Loading(host) => host,
            Loaded::Known(_) | Loaded::Overflow => panic!("it is new"),
        }
    }

    fn answer(addresses: &[[u8; 4]]) -> Outcome {
        let addresses = addresses.iter().map(|address| (*address).into()).collect();
        Ok(Answer { addresses, ..Answer::default() })
    }

    fn counted(cache: &DnsCache, name: &str) -> u64 {
        cache.counters().into_iter().find(|(counter, _)| *counter == name).unwrap().1
    }

    #[tokio::test]
    async fn workers_that_know_a_host_hear_that_it_is_forgotten() {
        let cache = cache();
        let host = new_host(&cache);
        assert!(!host.is_gone());
        cache.forget(&host);
        assert!(host.is_gone(), "who holds it does not use it any longer");
        assert!(cache.find("a.test:80").is_none());
        assert_eq!(counted(&cache, "host_removed"), 1);
        // One that is looked up anew is another.
        let again = new_host(&cache);
        assert!(!again.is_gone() && again.serial != host.serial);
    }

    /// A change makes every worker take the host's addresses anew, so what is none must not look like one.
    #[tokio::test]
    async fn an_answer_that_says_the_same_is_no_change() {
        let cache = cache();
        let host = new_host(&cache);
        let failures = &mut 0;
        let state = || (host.version(), counted(&cache, "host_address_changed"));
        let addresses = || match host.known() {
            Known::At(addresses) => addresses.iter().map(ToString::to_string).collect(),
            Known::Nothing | Known::Failed(_) => Vec::new(),
        };
        cache.take(&host, answer(&[]), failures);
        assert!(matches!(host.known(), Known::Failed(_)));
        assert_eq!(state(), (1, 0), "no address, and told so");
        cache.take(&host, answer(&[[7, 7, 7, 7]]), failures);
        assert_eq!((addresses(), state()), (vec!["7.7.7.7:80".to_owned()], (2, 1)));
        cache.take(&host, answer(&[[7, 7, 7, 7]]), failures);
        assert_eq!(state(), (2, 1), "the same");
        for nothing in [answer(&[]), Err(TIMED_OUT)] {
            cache.take(&host, nothing, failures);
            assert_eq!(
                (addresses(), state()),
                (vec!["7.7.7.7:80".to_owned()], (2, 1)),
                "it keeps what it has"
            );
        }
        cache.take(&host, answer(&[[8, 8, 8, 8]]), failures);
        assert_eq!((addresses(), state()), (vec!["8.8.8.8:80".to_owned()], (3, 2)));
    }
}
