//! Step 7: a cluster as one worker sees it, and the choice of an endpoint.

use std::cell::{Cell, OnceCell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ahash::AHashMap;
use lateen_ir::{
    Balancer, BalancerConfig, BalancerHost, Discovery, Endpoint, EndpointAddress, HealthStatus, HostAddress,
    HostKey, Load, MetadataCriteria, Pick, PreviousPriorities, SubsetBalancer, SubsetCount, Wish,
    dynamic_host_key,
};

use crate::dns_cache::{self, Known, Loaded};
use crate::host::Host;
use crate::named_hosts::NamedHosts;
use crate::outlier::Outcome;
use crate::snapshot::ClusterConfig;
use crate::stats::blocks::{ClusterExtAuthzStats, ClusterStats};
use crate::stats::tls::TlsStats;
use crate::worker::Worker;

/// Most original destinations remembered for one cluster; beyond it hosts are used once.
const MOST_ORIGINAL_DESTINATIONS: usize = 16 * 1024;

/// What a choice depends on.
#[derive(Debug, Default)]
pub(crate) struct Need<'a> {
    /// The connection's original destination.
    pub(crate) destination: Option<SocketAddr>,
    /// The host that the request names, or TLS asks for.
    pub(crate) name: Option<&'a str>,
    /// Its port, where the name has none and the cluster's own does not count.
    pub(crate) port: Option<u16>,
    /// For consistent hashing.
    pub(crate) hash: Option<u64>,
    /// Where the cluster has subsets.
    pub(crate) criteria: Option<&'a Arc<MetadataCriteria>>,
    /// How often to choose anew when the choice is refused.
    pub(crate) attempts: u32,
    /// Priorities tried so far, where retries prefer others.
    pub(crate) priorities: Option<&'a mut PreviousPriorities>,
}

impl Load for LocalCluster {
    fn active(&self, host: usize) -> u64 {
        self.hosts[host].stats.rq_active.get()
    }

    fn total(&self) -> u64 {
        self.stats.upstream_rq_active.get()
    }
}

/// Who chooses.
enum Choice {
    Whole(Box<Balancer>),
    Subsets(Box<SubsetBalancer>),
}

/// One worker's side of a cluster: hosts with their pools, rotation, numbers.
pub(crate) struct LocalCluster {
    pub(crate) config: Arc<ClusterConfig>,
    pub(crate) stats: Rc<ClusterStats>,
    hosts: Vec<Rc<Host>>,
    balancer: RefCell<Choice>,
    /// The detector's epoch the balancer was made in.
    judged: Cell<u32>,
    seed: u64,
    /// ORIGINAL_DST only.
    destinations: RefCell<AHashMap<SocketAddr, Rc<Host>>>,
    /// Of a dynamic forward proxy only.
    named: NamedHosts,
    tls_stats: OnceCell<Rc<TlsStats>>,
    /// By what their names begin with.
    ext_authz_stats: RefCell<AHashMap<Box<str>, Rc<ClusterExtAuthzStats>>>,
    /// Replaced or removed: hosts found now must not keep connections.
    retired: Cell<bool>,
}

impl LocalCluster {
    /// How long a stream to it may last.
    pub(crate) fn max_stream_duration(&self) -> Option<Duration> {
        self.config.ir.http.common.max_stream_duration
    }

    /// Hosts of `previous` with the same address and connection settings stay, with their connections.
    pub(crate) fn new(
        config: Arc<ClusterConfig>,
        stats: Rc<ClusterStats>,
        previous: Option<&LocalCluster>,
        seed: u64,
    ) -> Self {
        let same_settings = previous.filter(|old| old.config.fingerprint == config.fingerprint);
        let mut known: AHashMap<HostAddress, Rc<Host>> = previous
            .into_iter()
            .flat_map(|old| &old.hosts)
            .map(|host| (host.address.clone(), host.clone()))
            .collect();
        let mut hosts = Vec::new();
        for endpoint in endpoints(&config) {
            let Some(address) = endpoint.address.host() else { continue };
            // An endpoint that is reached otherwise from now on needs other connections.
            let same_transport = |host: &Rc<Host>| {
                config.ir.transport_matches.is_empty()
                    || config.transport_position(&host.endpoint.borrow())
                        == config.transport_position(endpoint)
            };
            let kept = known.get(&address).is_some_and(same_transport);
            match same_settings.filter(|_| kept).and_then(|_| known.remove(&address)) {
                Some(host) => {
                    *host.endpoint.borrow_mut() = endpoint.clone();
                    host.pool.revive();
                    hosts.push(host);
                }
                None => {
                    let key = address.socket().map(HostKey::Address);
                    let monitor = key.and_then(|key| config.outlier.as_ref()?.monitor(key));
                    hosts.push(Rc::new(Host::new(address, endpoint.clone(), monitor)));
                }
            }
        }
        known.values().for_each(|gone| gone.pool.retire());
        let (destinations, named) = match (previous, same_settings) {
            (_, Some(old)) => (old.destinations.take(), old.named.take()),
            (Some(old), None) => {
                old.retire();
                Default::default()
            }
            (None, _) => Default::default(),
        };
        let judged = Cell::new(config.outlier.as_ref().map_or(0, |detector| detector.epoch()));
        let balancer = RefCell::new(make_balancer(&config, &hosts, seed));
        Self {
            config,
            stats,
            hosts,
            balancer,
            judged,
            seed,
            destinations: RefCell::new(destinations),
            named,
            tls_stats: previous.map(|old| old.tls_stats.clone()).unwrap_or_default(),
            ext_authz_stats: previous.map(|old| old.ext_authz_stats.clone()).unwrap_or_default(),
            retired: Cell::new(false),
        }
    }

    /// An endpoint for a request. `refused` are those that are better not used again; after `Need::attempts` of them any will do.
    pub(crate) fn pick(
        &self,
        mut need: Need<'_>,
        random: &mut dyn FnMut() -> u64,
        refused: &dyn Fn(&Host) -> bool,
    ) -> Option<Rc<Host>> {
        self.heed_judgement();
        if self.config.dns_cache.is_some() {
            return self.named_host(need.name?, need.port).filter(|host| !host.is_ejected());
        }
        if let Discovery::OriginalDst { port_override, .. } = &self.config.ir.discovery {
            let mut address = need.destination?;
            if let Some(port) = port_override {
                address.set_port(*port);
            }
            return Some(self.destination(address));
        }
        // Without anything to hash the choice is random, but the same for all attempts of this choice.
        let hash = need.hash.or_else(|| self.config.ir.lb_policy.hashes().then(&mut *random));
        need.hash = hash;
        let choice = &mut *self.balancer.borrow_mut();
        let subsets = match choice {
            Choice::Whole(balancer) => {
                return self.choose(|wish| balancer.pick(wish), &mut need, random, refused);
            }
            Choice::Subsets(subsets) => subsets,
        };
        for step in subsets.steps(need.criteria).iter() {
            if step.count == SubsetCount::Selected {
                self.stats.lb_subsets_selected.inc();
            }
            let chosen = self.choose(|wish| subsets.pick(step.subset, wish), &mut need, random, refused);
            if chosen.is_some() {
                match step.count {
                    SubsetCount::Fallback => self.stats.lb_subsets_fallback.inc(),
                    SubsetCount::Panic => self.stats.lb_subsets_fallback_panic.inc(),
                    SubsetCount::Selected | SubsetCount::Nothing => {}
                }
                return chosen;
            }
        }
        None
    }

    /// A host that one balancer chooses, as [`Self::pick`].
    fn choose(
        &self,
        mut balance: impl FnMut(&mut Wish<'_>) -> Option<Pick>,
        need: &mut Need<'_>,
        random: &mut dyn FnMut() -> u64,
        refused: &dyn Fn(&Host) -> bool,
    ) -> Option<Rc<Host>> {
        let mut attempt = 0;
        loop {
            let priorities = need.priorities.as_deref_mut();
            let mut wish = Wish {
                hash: need.hash,
                attempt,
                random: &mut *random,
                load: self,
                now: &Instant::now,
                priorities,
            };
            let pick = balance(&mut wish)?;
            if pick.panic {
                self.stats.lb_healthy_panic.inc();
            }
            let host = self.hosts.get(pick.host)?;
            if attempt >= need.attempts || !refused(host) {
                if let Some(tried) = need.priorities.as_deref_mut() {
                    tried.tried(pick.priority);
                }
                return Some(host.clone());
            }
            attempt += 1;
        }
    }

    /// Numbers about TLS, which most clusters have none of.
    pub(crate) fn tls_stats(&self, worker: &Worker) -> Rc<TlsStats> {
        self.tls_stats.get_or_init(|| worker.stats.cluster_tls(&self.config.stat_name)).clone()
    }

    /// Numbers about how external authorizers judged requests for it.
    pub(crate) fn ext_authz_stats(&self, worker: &Worker, prefix: &str) -> Rc<ClusterExtAuthzStats> {
        if let Some(stats) = self.ext_authz_stats.borrow().get(prefix) {
            return stats.clone();
        }
        let name = format!("{}\n{prefix}", self.config.stat_name).into();
        let stats = worker.stats.cluster_ext_authz(&name);
        self.ext_authz_stats.borrow_mut().insert(prefix.into(), stats.clone());
        stats
    }

    /// All hosts known now.
    pub(crate) fn hosts(&self) -> Vec<Rc<Host>> {
        let found = self.destinations.borrow();
        self.hosts.iter().chain(found.values()).cloned().chain(self.named.all()).collect()
    }

    /// The host with this name, if its address is known. `port` counts where the name has none; else the cluster's.
    pub(crate) fn named_host(&self, name: &str, port: Option<u16>) -> Option<Rc<Host>> {
        let cache = self.config.dns_cache.as_ref()?;
        let port = port.unwrap_or_else(|| self.config.default_port());
        self.named.find(name, port, cache, self.config.outlier.as_deref())
    }

    /// The host with a name that [`Self::named_host`] does not have, after looking it up: no filter has done that.
    ///
    /// # Errors
    /// There is none, with the detail to log.
    pub(crate) async fn look_up_host(
        &self,
        name: Option<&str>,
        port: Option<u16>,
    ) -> Result<Rc<Host>, String> {
        let found = (self.config.dns_cache.as_ref(), name.filter(|name| !name.is_empty()));
        let (Some(cache), Some(name)) = found else { return Err(String::new()) };
        let Some(_pending) = cache.admit() else {
            return Err("dns_cache_pending_requests_overflow".to_owned());
        };
        let mut key = String::new();
        dynamic_host_key(name, port.unwrap_or_else(|| self.config.default_port()), &mut key);
        let known = match cache.load(&key) {
            Loaded::Known(known) => known,
            Loaded::Loading(host) => host.resolved().await,
            Loaded::Overflow => return Err("dns_cache_overflow".to_owned()),
        };
        if let Known::Failed(reason) = known {
            return Err(format!("dns_resolution_failure{{{reason}}}"));
        }
        let host = self.named_host(name, port).ok_or_else(String::new)?;
        // With what the look-up said, as Envoy logs it.
        if host.is_ejected() { Err(dns_cache::RESOLVED.to_owned()) } else { Ok(host) }
    }

    fn destination(&self, address: SocketAddr) -> Rc<Host> {
        let mut known = self.destinations.borrow_mut();
        if let Some(host) = known.get(&address) {
            host.last_used.set(Instant::now());
            return host.clone();
        }
        let endpoint = Endpoint {
            address: EndpointAddress::Socket(address),
            additional_addresses: Vec::new(),
            hostname: Some(format!("{}{address}", self.config.ir.name).into()),
            weight: 1,
            health_check: None,
            health: HealthStatus::Healthy,
            metadata: None,
        };
        let is_kept = known.len() < MOST_ORIGINAL_DESTINATIONS && !self.retired.get();
        let detector = self.config.outlier.as_ref().filter(|_| is_kept);
        let monitor = detector.and_then(|detector| detector.monitor(HostKey::Address(address)));
        let host = Rc::new(Host::new(address.into(), Arc::new(endpoint), monitor));
        if is_kept {
            known.insert(address, host.clone());
        } else {
            host.pool.retire();
        }
        host
    }

    /// Where outlier detection has changed the health of a host: chooses anew from now on.
    fn heed_judgement(&self) {
        let Some(detector) = &self.config.outlier else { return };
        let epoch = detector.epoch();
        if self.judged.replace(epoch) == epoch {
            return;
        }
        self.hosts().iter().for_each(|host| host.heed_ejections());
        // Others are not chosen by a balancer.
        if !self.hosts.is_empty() {
            *self.balancer.borrow_mut() = make_balancer(&self.config, &self.hosts, self.seed);
        }
    }

    /// Time-driven work: idle connections, forgotten destinations.
    pub(crate) fn sweep(&self, now: Instant) {
        self.heed_judgement();
        let idle_timeout = self.config.ir.http.common.idle_timeout;
        for host in &self.hosts {
            self.stats.upstream_cx_idle_timeout.add(host.pool.sweep(idle_timeout, now) as u64);
        }
        let idle = |host: &Host| {
            self.stats.upstream_cx_idle_timeout.add(host.pool.sweep(idle_timeout, now) as u64);
        };
        self.named.sweep(idle);
        let forget_after = self.config.ir.cleanup_interval.max(Duration::from_secs(1));
        self.destinations.borrow_mut().retain(|_, host| {
            self.stats.upstream_cx_idle_timeout.add(host.pool.sweep(idle_timeout, now) as u64);
            let used = host.stats.cx_active.get() > 0 || host.stats.rq_active.get() > 0;
            used || now.saturating_duration_since(host.last_used.get()) < forget_after
        });
        if let Some(detector) = &self.config.outlier {
            detector.forget_unknown();
        }
    }

    /// Notes how a request ended, for outlier detection.
    pub(crate) fn observe(&self, host: &Host, outcome: Outcome, worker: &Worker) {
        if let (Some(detector), Some(monitor)) = (&self.config.outlier, &host.monitor) {
            detector.observe(monitor, outcome, &|| worker.random());
            self.heed_judgement();
        }
    }

    /// The cluster is gone or replaced: nothing idle is kept.
    pub(crate) fn retire(&self) {
        self.retired.set(true);
        self.hosts.iter().for_each(|host| host.pool.retire());
        self.destinations.borrow_mut().drain().for_each(|(_, host)| host.pool.retire());
        self.named.retire();
    }
}

fn endpoints(config: &ClusterConfig) -> impl Iterator<Item = &Arc<Endpoint>> {
    config.endpoints.priorities.iter().flatten().flat_map(|locality| &locality.endpoints)
}

fn make_balancer(config: &ClusterConfig, hosts: &[Rc<Host>], seed: u64) -> Choice {
    let hashing = config.ir.lb_policy.hashing();
    let mut described = Vec::with_capacity(hosts.len());
    let mut labels = Vec::new();
    let mut hosts = hosts.iter();
    let mut locality = 0;
    for (priority, localities) in config.endpoints.priorities.iter().enumerate() {
        for members in localities {
            let here = members
                .endpoints
                .iter()
                .filter(|endpoint| !matches!(endpoint.address, EndpointAddress::Name(..)));
            for (endpoint, host) in here.zip(&mut hosts) {
                if config.ir.subsets.is_some() {
                    labels.push(endpoint.labels());
                }
                // What is known besides configuration is known of sockets only.
                let address = host.address.socket();
                described.push(BalancerHost {
                    priority: priority as u32,
                    locality,
                    locality_weight: members.weight,
                    weight: endpoint.weight,
                    health: address.map_or(host.health(), |at| config.checked_health(at, host.health())),
                    // Who leaves is not missed, whoever says so.
                    excluded: endpoint.health == HealthStatus::Draining
                        || address.is_some_and(|at| config.is_excluded(at)),
                    hash_key: hashing
                        .map(|hashing| endpoint.hash_key(hashing.use_hostname))
                        .unwrap_or_default(),
                    joined: address.and_then(|at| config.joined.as_ref()?.since(at)),
                });
            }
            locality += 1;
        }
    }
    let balancing = BalancerConfig {
        policy: config.ir.lb_policy,
        locality: config.ir.locality,
        healthy_panic_threshold: config.ir.healthy_panic_threshold,
        overprovisioning_factor: config.endpoints.overprovisioning_factor,
        weighted_priority_health: config.endpoints.weighted_priority_health,
    };
    let now = Instant::now();
    match &config.ir.subsets {
        None => Choice::Whole(Box::new(Balancer::new(&balancing, &described, seed, now))),
        Some(subsets) => Choice::Subsets(Box::new(SubsetBalancer::new(
            subsets, &balancing, &described, &labels, seed, now,
        ))),
    }
}
