//! The hosts of a dynamic forward proxy's cluster as one worker has found them in the cache.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use ahash::AHashMap;
use lateen_ir::{Endpoint, EndpointAddress, HealthStatus, HostKey, dynamic_host_key};

use crate::dns_cache::{CachedHost, DnsCache, Known};
use crate::host::Host;
use crate::outlier::Detector;

/// See the module.
#[derive(Default)]
pub(crate) struct NamedHosts {
    found: RefCell<AHashMap<Box<str>, NamedHost>>,
    /// Reused for keys.
    key: RefCell<String>,
}

struct NamedHost {
    cached: Arc<CachedHost>,
    /// Version of `cached` that `host` is of.
    version: u64,
    /// None: it has no address.
    host: Option<Rc<Host>>,
}

impl NamedHost {
    fn new(cached: Arc<CachedHost>, key: &str, detector: Option<&Detector>) -> Self {
        let version = cached.version();
        let host = host(key, &cached, detector);
        Self { cached, version, host }
    }

    /// Follows what is known of it now. Connections to an address that has changed carry no further requests, as in clusters of
    /// names; with Envoy they do.
    fn refresh(&mut self, key: &str, detector: Option<&Detector>) {
        let now = Self::new(self.cached.clone(), key, detector);
        let address = |host: &Option<Rc<Host>>| host.as_ref().map(|host| host.address.clone());
        if address(&now.host) == address(&self.host) {
            self.version = now.version;
            return;
        }
        self.retire();
        *self = now;
    }

    /// It is in use, unless it is ejected.
    fn touch(&self, cache: &DnsCache) {
        if !self.host.as_ref().is_some_and(|host| host.is_ejected()) {
            cache.touch(&self.cached);
        }
    }

    fn retire(&self) {
        self.host.iter().for_each(|host| host.pool.retire());
    }
}

fn host(key: &str, cached: &CachedHost, detector: Option<&Detector>) -> Option<Rc<Host>> {
    let Known::At(addresses) = cached.known() else { return None };
    let (first, others) = addresses.split_first()?;
    let endpoint = Endpoint {
        address: EndpointAddress::Socket(*first),
        additional_addresses: Vec::from(others) as Vec<SocketAddr>,
        hostname: Some(key.into()),
        weight: 1,
        health_check: None,
        health: HealthStatus::Healthy,
        metadata: None,
    };
    let monitor = detector.and_then(|detector| detector.monitor(HostKey::Named(cached.serial)));
    Some(Rc::new(Host::new((*first).into(), Arc::new(endpoint), monitor)))
}

impl NamedHosts {
    /// The host with a name, if its address is known. The cache is asked, under its lock, only for what is new here.
    pub(crate) fn find(
        &self,
        name: &str,
        default_port: u16,
        cache: &DnsCache,
        detector: Option<&Detector>,
    ) -> Option<Rc<Host>> {
        let mut key = self.key.borrow_mut();
        key.clear();
        dynamic_host_key(name, default_port, &mut key);
        let mut found = self.found.borrow_mut();
        if let Some(known) = found.get_mut(&**key)
            && !known.cached.is_gone()
        {
            if known.version != known.cached.version() {
                known.refresh(&key, detector);
            }
            known.touch(cache);
            return known.host.clone();
        }
        let cached = cache.find(&key)?;
        let new = NamedHost::new(cached, &key, detector);
        new.touch(cache);
        let host = new.host.clone();
        if let Some(old) = found.insert((**key).into(), new) {
            old.retire();
        }
        host
    }

    /// All that are known here.
    pub(crate) fn all(&self) -> Vec<Rc<Host>> {
        self.found.borrow().values().filter_map(|known| known.host.clone()).collect()
    }

    /// Forgets what the cache has forgotten, and looks after the other hosts' connections.
    pub(crate) fn sweep(&self, idle: impl Fn(&Host)) {
        self.found.borrow_mut().retain(|_, known| {
            known.host.iter().for_each(|host| idle(host));
            if known.cached.is_gone() {
                known.retire();
            }
            !known.cached.is_gone()
        });
    }

    /// The hosts, for a new version of the cluster.
    pub(crate) fn take(&self) -> Self {
        Self { found: RefCell::new(self.found.take()), key: RefCell::default() }
    }

    /// Nothing idle is kept.
    pub(crate) fn retire(&self) {
        self.found.borrow_mut().drain().for_each(|(_, known)| known.retire());
    }
}
