//! A picture of the whole engine for the admin service and the metrics endpoint, taken when asked for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use lateen_ir::{CheckedHealth, HealthStatus, HostAddress, HostKey};

use crate::breakers::{self, Limited, is_open};
use crate::outlier;
use crate::snapshot::{ClusterConfig, ListenerConfig, stat_name};
use crate::stats::arena::{ArenaReading, Scope};
use crate::stats::merge::{Stat, Value, merge};
use crate::store::{Raw, RawResources, Store};
use crate::tls;
use crate::update::ResourceKind;
use crate::worker::{HOST_STATS, HostReading};

/// Facts about the engine itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServerFacts {
    pub(crate) concurrency: usize,
    pub(crate) uptime: Duration,
    pub(crate) live: bool,
    pub(crate) initialized: bool,
    pub(crate) draining: bool,
    pub(crate) healthy: bool,
    pub(crate) updates: u64,
    pub(crate) log_bytes_dropped: u64,
}

/// One host of a cluster, over all workers.
#[derive(Clone, Debug)]
pub(crate) struct HostView {
    pub(crate) address: HostAddress,
    pub(crate) hostname: Option<Arc<str>>,
    pub(crate) health: HealthStatus,
    /// What active health checks say.
    pub(crate) checked: CheckedHealth,
    pub(crate) ejected: bool,
    /// Percent of the last interval, by answers and by connections.
    pub(crate) success_rates: [Option<f64>; 2],
    pub(crate) weight: u32,
    pub(crate) priority: u32,
    pub(crate) locality: Arc<lateen_ir::Locality>,
    /// In the order of [`HOST_STATS`].
    pub(crate) numbers: [u64; HOST_STATS.len()],
}

/// A cluster with its hosts.
pub(crate) struct ClusterView {
    pub(crate) config: Arc<ClusterConfig>,
    /// It came over xDS, not with the bootstrap.
    pub(crate) added_via_api: bool,
    pub(crate) hosts: Vec<HostView>,
}

/// A resource for dumps.
pub(crate) struct RawView {
    pub(crate) kind: ResourceKind,
    pub(crate) name: String,
    pub(crate) raw: Raw,
    pub(crate) warming: bool,
}

/// See the module.
pub(crate) struct Inspection {
    pub(crate) server: ServerFacts,
    pub(crate) stats: Vec<Stat>,
    pub(crate) clusters: Vec<ClusterView>,
    pub(crate) listeners: Vec<Arc<ListenerConfig>>,
    pub(crate) resources: Vec<RawView>,
    /// Authorities and own certificates of each TLS context.
    pub(crate) certificates: Vec<(Vec<lateen_ir::Pem>, Vec<lateen_ir::Pem>)>,
}

impl Inspection {
    pub(crate) fn new(
        store: &Store,
        mut readings: Vec<ArenaReading>,
        hosts: Vec<HostReading>,
        server: ServerFacts,
        with_resources: bool,
    ) -> Self {
        let clusters = cluster_views(store, hosts);
        let known = clusters
            .iter()
            .map(|cluster| (Scope::Cluster, cluster.config.stat_name.clone()))
            .chain(store.active_listeners().map(|listener| (Scope::Listener, listener.stat_name.clone())))
            .chain(with_tls(&clusters).map(|config| (Scope::ClusterTls, config.stat_name.clone())))
            .chain(store.route_stats().into_iter().flatten().map(|name| (Scope::Route, name)));
        readings.push(health_check_handshakes(&clusters));
        let mut stats = merge(readings, known);
        clusters.iter().for_each(|cluster| {
            cluster_gauges(cluster, &mut stats);
            subset_stats(&cluster.config, server.concurrency, &mut stats);
        });
        tls_updates(store, &clusters, &mut stats);
        let contexts = with_resources.then(|| store.contexts());
        let certificates =
            contexts.into_iter().flatten().map(|common| tls::shown(common, &store.secrets)).collect();
        cache_stats(store, &mut stats);
        server_stats(store, &server, &mut stats);
        // Thousands of resources are copied only for the one page that shows them.
        let raw = with_resources.then_some(&store.raw);
        let resources = raw
            .into_iter()
            .flat_map(RawResources::iter)
            .map(|(kind, name, raw)| RawView {
                kind,
                name: name.to_owned(),
                raw: raw.clone(),
                warming: match kind {
                    ResourceKind::Listener => store.is_warming_listener(name),
                    ResourceKind::Cluster => store.is_warming_cluster(name),
                    ResourceKind::Routes | ResourceKind::Endpoints | ResourceKind::Secret => false,
                },
            })
            .collect();
        Self {
            server,
            stats,
            clusters,
            listeners: store.active_listeners().cloned().collect(),
            resources,
            certificates,
        }
    }
}

fn with_tls(clusters: &[ClusterView]) -> impl Iterator<Item = &ClusterConfig> {
    clusters.iter().map(|cluster| &*cluster.config).filter(|config| config.transports.all().next().is_some())
}

/// Handshakes of health checks, which no worker counts.
fn health_check_handshakes(clusters: &[ClusterView]) -> ArenaReading {
    let reading = |config: &ClusterConfig| {
        let numbers = &config.checked.as_ref()?.stats;
        Some((Scope::ClusterTls, config.stat_name.clone(), numbers.read_tls()))
    };
    with_tls(clusters).filter_map(reading).collect()
}

/// How often secrets changed what listeners and clusters do.
fn tls_updates(store: &Store, clusters: &[ClusterView], stats: &mut Vec<Stat>) {
    for listener in store.active_listeners().filter(|listener| listener.tls().next().is_some()) {
        let value = Value::Counter(tls::updates(listener.tls()));
        let leaf = "server_ssl_socket_factory.ssl_context_update_by_sds";
        stats.push(Stat::scoped(Scope::ListenerTls, listener.stat_name.clone(), leaf, value));
    }
    for config in with_tls(clusters) {
        let value = Value::Counter(tls::client_updates(config.transports.all()));
        let leaf = "client_ssl_socket_factory.ssl_context_update_by_sds";
        stats.push(Stat::scoped(Scope::ClusterTls, config.stat_name.clone(), leaf, value));
    }
}

/// What the workers say of one host.
#[derive(Default)]
struct HostSum {
    numbers: [u64; HOST_STATS.len()],
    ejected: bool,
    watched: Option<HostKey>,
}

type HostSums = BTreeMap<(Arc<str>, HostAddress, Option<Arc<str>>), HostSum>;

fn success_rates(config: &ClusterConfig, key: Option<HostKey>) -> [Option<f64>; 2] {
    let judged = config.outlier.as_ref().zip(key);
    judged.map_or([None, None], |(detector, key)| detector.success_rates(key))
}

/// Hosts of a cluster that nobody knows before they are asked for: those a worker has sent to, and those of its cache of names.
fn hosts_on_demand(config: &ClusterConfig, sums: &mut HostSums) -> Vec<HostView> {
    let destinations = matches!(config.ir.discovery, lateen_ir::Discovery::OriginalDst { .. });
    if config.dns_cache.is_none() && !destinations {
        return Vec::new();
    }
    let cluster = &config.ir.name;
    for (name, address) in config.dns_cache.iter().flat_map(|cache| cache.found()) {
        sums.entry((cluster.clone(), address.into(), Some(name))).or_default();
    }
    let own: Vec<_> = sums.keys().filter(|(name, ..)| name == cluster).cloned().collect();
    let view = |key| {
        let sum: HostSum = sums.remove(&key).unwrap_or_default();
        let (_, address, name) = key;
        HostView {
            hostname: name.or_else(|| Some(format!("{cluster}{address}").into())),
            address,
            health: HealthStatus::Healthy,
            checked: CheckedHealth::HEALTHY,
            ejected: sum.ejected,
            success_rates: success_rates(config, sum.watched),
            weight: 1,
            priority: 0,
            locality: Arc::default(),
            numbers: sum.numbers,
        }
    };
    own.into_iter().map(view).collect()
}

fn cluster_views(store: &Store, readings: Vec<HostReading>) -> Vec<ClusterView> {
    let mut sums = HostSums::new();
    for reading in readings {
        let sum = sums.entry((reading.cluster, reading.address, reading.name)).or_default();
        sum.numbers.iter_mut().zip(reading.numbers).for_each(|(sum, n)| *sum += n);
        sum.ejected |= reading.ejected;
        sum.watched = reading.watched;
    }
    let mut views = Vec::new();
    for config in store.active_clusters() {
        let rates = |key: Option<HostKey>| success_rates(config, key);
        let mut hosts = Vec::new();
        for (priority, localities) in config.endpoints.priorities.iter().enumerate() {
            for members in localities {
                for endpoint in &members.endpoints {
                    let Some(address) = endpoint.address.host() else { continue };
                    let key = (config.ir.name.clone(), address.clone(), None);
                    let sum = sums.remove(&key).unwrap_or_default();
                    let socket = address.socket();
                    hosts.push(HostView {
                        address,
                        hostname: endpoint.hostname.clone(),
                        health: endpoint.health,
                        checked: socket
                            .and_then(|at| Some(config.checked.as_ref()?.checked.of(at)))
                            .unwrap_or(CheckedHealth::HEALTHY),
                        ejected: sum.ejected,
                        success_rates: rates(socket.map(HostKey::Address)),
                        weight: endpoint.weight,
                        priority: priority as u32,
                        locality: members.locality.clone(),
                        numbers: sum.numbers,
                    });
                }
            }
        }
        hosts.extend(hosts_on_demand(config, &mut sums));
        let added_via_api = !store.raw.is_static(ResourceKind::Cluster, &config.ir.name);
        views.push(ClusterView { config: config.clone(), added_via_api, hosts });
    }
    views
}

fn cluster_gauges(cluster: &ClusterView, stats: &mut Vec<Stat>) {
    let config = &cluster.config;
    let health = |host: &HostView| {
        host.address.socket().map_or(host.health, |address| config.checked_health(address, host.health))
    };
    let healthy = |host: &&HostView| health(host) == HealthStatus::Healthy && !host.ejected;
    let excluded = |host: &&HostView| host.health == HealthStatus::Draining || host.checked.excluded;
    let count = |n: usize| Value::Gauge(n as u64);
    let open = |what| Value::Gauge(u64::from(is_open(config, what, false)));
    let high = |what| Value::Gauge(u64::from(is_open(config, what, true)));
    for (leaf, value) in [
        ("membership_total", count(cluster.hosts.len())),
        ("membership_healthy", count(cluster.hosts.iter().filter(healthy).count())),
        (
            "membership_degraded",
            count(cluster.hosts.iter().filter(|host| health(host) == HealthStatus::Degraded).count()),
        ),
        ("membership_excluded", count(cluster.hosts.iter().filter(excluded).count())),
        ("max_host_weight", count(cluster.hosts.iter().map(|host| host.weight as usize).max().unwrap_or(0))),
        ("circuit_breakers_default_cx_open", open(Limited::Connection)),
        ("circuit_breakers_default_rq_open", open(Limited::Request)),
        ("circuit_breakers_default_rq_pending_open", open(Limited::Pending)),
        ("circuit_breakers_default_rq_retry_open", open(Limited::Retry)),
        ("circuit_breakers_high_cx_open", high(Limited::Connection)),
        ("circuit_breakers_high_rq_open", high(Limited::Request)),
        ("circuit_breakers_high_rq_pending_open", high(Limited::Pending)),
        ("circuit_breakers_high_rq_retry_open", high(Limited::Retry)),
    ] {
        stats.push(Stat::scoped(Scope::Cluster, config.stat_name.clone(), leaf, value));
    }
    if let Some(detector) = &config.outlier {
        let reading = detector.read();
        let counts = outlier::named_counts(&reading.counts).map(|(leaf, n)| (leaf, Value::Counter(n)));
        let active = ("outlier_detection.ejections_active", count(reading.active));
        for (leaf, value) in counts.into_iter().chain([active]) {
            stats.push(Stat::scoped(Scope::Cluster, config.stat_name.clone(), leaf, value));
        }
    }
    let sum = |name: &str| {
        let position = HOST_STATS.iter().position(|(known, _)| *known == name);
        position.map_or(0, |position| cluster.hosts.iter().map(|host| host.numbers[position]).sum())
    };
    for (leaf, what, high, active) in [
        ("circuit_breakers_default_remaining_cx", Limited::Connection, false, sum("cx_active")),
        ("circuit_breakers_default_remaining_pending", Limited::Pending, false, sum("rq_pending_active")),
        ("circuit_breakers_default_remaining_rq", Limited::Request, false, sum("rq_active")),
        ("circuit_breakers_default_remaining_retries", Limited::Retry, false, 0),
        ("circuit_breakers_high_remaining_cx", Limited::Connection, true, 0),
        ("circuit_breakers_high_remaining_pending", Limited::Pending, true, 0),
        ("circuit_breakers_high_remaining_rq", Limited::Request, true, 0),
        ("circuit_breakers_high_remaining_retries", Limited::Retry, true, 0),
    ] {
        if let Some(left) = breakers::remaining(config, what, high, active) {
            stats.push(Stat::scoped(Scope::Cluster, config.stat_name.clone(), leaf, Value::Gauge(left)));
        }
    }
    health_stats(config, stats);
    for (leaf, value) in config.dns_stats.iter().flat_map(|stats| stats.read()) {
        stats.push(Stat::scoped(Scope::Cluster, config.stat_name.clone(), leaf, Value::Counter(value)));
    }
}

/// What subsets there are. Envoy's main thread has its own, as each worker.
fn subset_stats(config: &ClusterConfig, workers: usize, stats: &mut Vec<Stat>) {
    let Some(counts) = &config.subsets else { return };
    let threads = workers as u64 + 1;
    let counters = counts.counters(threads).map(|(leaf, value)| (leaf, Value::Counter(value)));
    let gauges = counts.gauges(threads).map(|(leaf, value)| (leaf, Value::Gauge(value)));
    for (leaf, value) in counters.into_iter().chain(gauges) {
        stats.push(Stat::scoped(Scope::Cluster, config.stat_name.clone(), leaf, value));
    }
}

/// Numbers of active health checks.
fn health_stats(config: &ClusterConfig, stats: &mut Vec<Stat>) {
    let Some(numbers) = config.checked.as_ref().map(|view| &view.stats) else { return };
    let counters = numbers.counters().map(|(leaf, value)| (leaf, Value::Counter(value)));
    let gauges = numbers.gauges().map(|(leaf, value)| (leaf, Value::Gauge(value)));
    for (leaf, value) in counters.into_iter().chain(gauges) {
        stats.push(Stat::scoped(Scope::Cluster, config.stat_name.clone(), leaf, value));
    }
}

/// Numbers of caches of names.
fn cache_stats(store: &Store, stats: &mut Vec<Stat>) {
    for cache in store.dns_caches() {
        let counters = cache.counters().into_iter().map(|(leaf, n)| (leaf, Value::Counter(n)));
        let gauges = cache.gauges().map(|(leaf, n)| (leaf, Value::Gauge(n)));
        for (leaf, value) in counters.chain(gauges) {
            stats.push(Stat::scoped(Scope::DnsCache, stat_name(&cache.config.name), leaf, value));
        }
    }
}

fn server_stats(store: &Store, server: &ServerFacts, stats: &mut Vec<Stat>) {
    let [active_clusters, warming_clusters, active_listeners, warming_listeners] = store.counts();
    let memory = resident_bytes();
    let gauge = |n: usize| Value::Gauge(n as u64);
    for (name, value) in [
        ("cluster_manager.active_clusters", gauge(active_clusters)),
        ("cluster_manager.warming_clusters", gauge(warming_clusters)),
        ("cluster_manager.update_merge_cancelled", Value::Counter(0)),
        ("listener_manager.total_listeners_active", gauge(active_listeners)),
        ("listener_manager.total_listeners_warming", gauge(warming_listeners)),
        ("listener_manager.total_listeners_draining", gauge(0)),
        ("listener_manager.workers_started", gauge(1)),
        ("server.concurrency", gauge(server.concurrency)),
        ("server.live", gauge(usize::from(server.live && !server.draining))),
        ("server.memory_allocated", Value::Gauge(memory)),
        ("server.memory_heap_size", Value::Gauge(memory)),
        ("server.memory_physical_size", Value::Gauge(memory)),
        ("server.state", gauge(state_number(server))),
        ("server.uptime", Value::Gauge(server.uptime.as_secs())),
        ("lateen.config_updates", Value::Counter(server.updates)),
        ("lateen.config_rejections", Value::Counter(store.rejections)),
        ("filesystem.write_dropped_bytes", Value::Counter(server.log_bytes_dropped)),
    ] {
        stats.push(Stat::server(name, value));
    }
}

/// Envoy's `ServerInfo.State`: 0 live, 1 draining, 2 before initialisation, 3 initialising.
fn state_number(server: &ServerFacts) -> usize {
    match state(server) {
        "LIVE" => 0,
        "DRAINING" => 1,
        "PRE_INITIALIZING" => 2,
        _ => 3,
    }
}

/// Envoy's name of the state.
pub(crate) fn state(server: &ServerFacts) -> &'static str {
    if server.draining || !server.healthy {
        "DRAINING"
    } else if server.live {
        "LIVE"
    } else if server.initialized {
        "INITIALIZING"
    } else {
        "PRE_INITIALIZING"
    }
}

/// Resident memory of the process (proc(5), `/proc/self/statm`, in pages).
pub(crate) fn resident_bytes() -> u64 {
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096) as u64;
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    pages.and_then(|text| text.split_whitespace().nth(1)?.parse::<u64>().ok()).unwrap_or(0) * page
}
