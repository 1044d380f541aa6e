//! The control thread's view of configuration: what came, what is in effect, what still warms.
//!
//! A cluster with EDS or DNS waits for its first endpoints, a listener for its routes; meanwhile their last version serves.
//! A removed cluster that active routes still name stays a little longer, so that the order in which removals and route
//! changes arrive costs no request.

mod clusters;
mod listeners;
mod needed;
mod raw;
mod warming;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ahash::AHashMap;
use lateen_ir as ir;

use self::clusters::dns_key;
pub(crate) use self::raw::{Raw, RawResources};
use crate::compile::{self, Names};
use crate::dns::{DnsCluster, DnsStats};
use crate::dns_cache::DnsCache;
use crate::filters::{KeyFetch, NewFetch};
use crate::health_check::HealthChecks;
use crate::snapshot::{
    Breakers, ClusterConfig, ClusterSlot, ListenerConfig, RouteConfig, Snapshot, Transports,
};
use crate::tls::Secrets;
use crate::update::{ApplyReport, ConfigUpdate, Rejection, Resource, ResourceKind, Subscriptions};
use crate::worker::NewSocket;

/// How long a removed cluster serves routes that still name it.
const LINGER: Duration = Duration::from_secs(5);

/// A cluster and where it stands.
pub(crate) struct ClusterEntry {
    slot: ClusterSlot,
    ir: Arc<ir::Cluster>,
    fingerprint: u64,
    breakers: Arc<Breakers>,
    bind: Option<Arc<ir::BindConfig>>,
    /// Of a cluster whose names are looked up.
    dns_stats: Option<Arc<DnsStats>>,
    /// Of a cluster of hosts that requests name.
    dns_cache: Option<Arc<DnsCache>>,
    /// In effect; `None` before the first endpoints.
    pub(crate) active: Option<Arc<ClusterConfig>>,
    /// When warming ends without endpoints.
    warm_until: Option<Instant>,
    warm: bool,
    transports: Arc<Transports>,
    /// Secrets that warming waits for; endpoints come into effect when they are there.
    awaits_secrets: Vec<AwaitedSecret>,
    /// Set when it was removed.
    gone_since: Option<Instant>,
}

/// A listener and where it stands.
struct ListenerEntry {
    active: Option<Arc<ListenerConfig>>,
    warming: Option<Warming>,
}

/// A secret that something waits for, and until when.
type AwaitedSecret = (Arc<str>, Option<Instant>);

struct Warming {
    config: Arc<ListenerConfig>,
    /// When each awaited route configuration is given up.
    awaits: Vec<(Arc<str>, Option<Instant>)>,
    awaits_secrets: Vec<AwaitedSecret>,
    awaits_keys: Vec<Arc<KeyFetch>>,
}

/// See the module.
pub(crate) struct Store {
    pub(crate) raw: RawResources,
    pub(crate) clusters: BTreeMap<Arc<str>, ClusterEntry>,
    endpoints: AHashMap<Arc<str>, Arc<ir::ClusterLoadAssignment>>,
    /// Clusters by the EDS resource they use; may name clusters that have changed since.
    eds_users: AHashMap<Arc<str>, BTreeSet<Arc<str>>>,
    listeners: BTreeMap<Arc<str>, ListenerEntry>,
    routes: AHashMap<Arc<str>, Arc<RouteConfig>>,
    names: Names,
    workers: usize,
    version: u64,
    /// From the bootstrap, for clusters without their own.
    pub(crate) default_bind: Option<Arc<ir::BindConfig>>,
    /// Sockets opened and not yet handed to the workers.
    new_sockets: Vec<Vec<NewSocket>>,
    /// Clusters whose names must be looked up anew (`Some`) or no longer (`None`).
    pub(crate) dns_changes: Vec<(Arc<str>, Option<DnsCluster>)>,
    pub(crate) health: HealthChecks,
    /// Keys that are to be fetched, which nobody has begun.
    pub(crate) new_fetches: Vec<NewFetch>,
    pub(crate) rejections: u64,
    pub(crate) secrets: Secrets,
    /// What must be subscribed to.
    wanted: Arc<Subscriptions>,
    /// `wanted`, and what may be forgotten, must be found anew.
    references_changed: bool,
}

impl Store {
    pub(crate) fn new(workers: usize, agent_secrets: bool) -> Self {
        Self {
            raw: RawResources::default(),
            clusters: BTreeMap::new(),
            endpoints: AHashMap::new(),
            eds_users: AHashMap::new(),
            listeners: BTreeMap::new(),
            routes: AHashMap::new(),
            names: Names::default(),
            workers,
            version: 0,
            default_bind: None,
            new_sockets: (0..workers).map(|_| Vec::new()).collect(),
            dns_changes: Vec::new(),
            health: HealthChecks::default(),
            new_fetches: Vec::new(),
            rejections: 0,
            secrets: Secrets::new(agent_secrets),
            wanted: Arc::default(),
            references_changed: true,
        }
    }

    /// Takes a batch in.
    pub(crate) fn apply(&mut self, update: ConfigUpdate, now: Instant) -> ApplyReport {
        let mut report = ApplyReport::default();
        let mut resources: Vec<(Option<ResourceKind>, Resource)> = update
            .set
            .into_iter()
            .map(|resource| (ResourceKind::from_type_url(&resource.body.type_url), resource))
            .collect();
        resources.sort_by_key(|(kind, _)| kind.map(ResourceKind::order));
        // Removals first where they free addresses, last where they would break references.
        for (kind, name) in &update.removed {
            if *kind == ResourceKind::Listener {
                self.remove(*kind, name, now);
            }
        }
        for (kind, resource) in resources {
            let Some(kind) = kind else {
                let reason = format!("type {:?} is not one the engine takes", resource.body.type_url);
                report.rejected.push(Rejection { kind: ResourceKind::Listener, name: resource.name, reason });
                continue;
            };
            let name = resource.name.clone();
            match self.set(kind, resource, now) {
                Ok(()) => report.accepted.push((kind, name)),
                Err(reason) => {
                    self.rejections += 1;
                    report.rejected.push(Rejection { kind, name, reason });
                }
            }
        }
        for (kind, name) in update.removed {
            if kind != ResourceKind::Listener {
                self.remove(kind, &name, now);
            }
            report.accepted.push((kind, name));
        }
        report
    }

    fn set(&mut self, kind: ResourceKind, resource: Resource, now: Instant) -> Result<(), String> {
        let going = kind == ResourceKind::Cluster && self.is_going(&resource.name);
        if let Some(known) = self.raw.get_mut(kind, &resource.name) {
            if known.is_static && !resource.is_static {
                return Err("the bootstrap defines it statically; rename one of the two".to_owned());
            }
            if *known.body == *resource.body.value && !going {
                known.version = resource.version.into();
                known.refused = None;
                return Ok(());
            }
        }
        self.references_changed |= !self.stands_alone(kind, &resource.name);
        let bytes = &resource.body.value;
        let result = match kind {
            ResourceKind::Cluster => self.set_cluster(&resource.name, bytes, now),
            ResourceKind::Endpoints => self.set_endpoints(&resource.name, bytes),
            ResourceKind::Listener => self.set_listener(&resource.name, bytes, now),
            ResourceKind::Routes => self.set_routes(&resource.name, bytes),
            ResourceKind::Secret => self.set_secret(&resource.name, bytes),
        };
        match result {
            Ok(()) => {
                let Resource { name, version, body, is_static } = resource;
                let (version, body) = (version.into(), body.value.into());
                let raw = Raw { version, body, is_static, updated: SystemTime::now(), refused: None };
                self.raw.insert(kind, name, raw);
                Ok(())
            }
            Err(reason) => {
                if let Some(known) = self.raw.get_mut(kind, &resource.name) {
                    known.refused = Some(Box::new((resource.version, reason.clone())));
                }
                Err(reason)
            }
        }
    }

    /// A cluster on its way out that comes back must be set anew.
    fn is_going(&self, cluster: &str) -> bool {
        self.clusters.get(cluster).is_some_and(|entry| entry.gone_since.is_some())
    }

    /// Takes a secret. Contexts that use it are made anew; those that can't be keep what they have.
    fn set_secret(&mut self, name: &str, bytes: &[u8]) -> Result<(), String> {
        let secret = ir::Secret::from_bytes(bytes).map_err(|error| error.to_string())?;
        same_name(name, &secret.name)?;
        self.secrets.set(secret)?;
        let uses = |common: &ir::CommonTls| common.secrets().any(|secret| *secret.name == *name);
        let mut refused = Ok(());
        let mut note = |result: Result<(), String>| {
            if result.is_err() {
                refused = result;
            }
        };
        for tls in self.listener_configs().flat_map(|config| config.tls()).filter(|tls| uses(&tls.ir.common))
        {
            note(tls.refresh(&self.secrets));
        }
        for tls in self.clusters.values().flat_map(|entry| entry.transports.all()) {
            if uses(&tls.ir.common) {
                note(tls.refresh(&self.secrets));
            }
        }
        refused
    }

    fn set_endpoints(&mut self, name: &str, bytes: &[u8]) -> Result<(), String> {
        let assignment = ir::ClusterLoadAssignment::from_bytes(bytes).map_err(|error| error.to_string())?;
        same_name(name, &assignment.cluster_name)?;
        let name = assignment.cluster_name.clone();
        let users = self.eds_users.get(&name).into_iter().flatten();
        let users = users.filter_map(|cluster| self.clusters.get(cluster));
        for user in users {
            if let Some(reason) = compile::unsupported_endpoints(&user.ir, &assignment) {
                return Err(format!("cluster {}: {reason}", user.ir.name));
            }
        }
        self.endpoints.insert(name.clone(), Arc::new(assignment));
        let users: Vec<Arc<str>> = self.eds_users.get(&name).into_iter().flatten().cloned().collect();
        users.iter().for_each(|cluster| self.activate_cluster(cluster));
        Ok(())
    }

    fn set_routes(&mut self, name: &str, bytes: &[u8]) -> Result<(), String> {
        let before = self.routes.get(name);
        let config = ir::RouteConfiguration::from_bytes(bytes, before.map(|before| &*before.ir))
            .map_err(|error| error.to_string())?;
        same_name(name, &config.name)?;
        let config = compile::routes(Arc::new(config), &mut self.names);
        self.names.routes.of(&config.ir.name);
        self.routes.insert(config.ir.name.clone(), config);
        Ok(())
    }

    fn remove(&mut self, kind: ResourceKind, name: &str, now: Instant) {
        if self.raw.is_static(kind, name) {
            return;
        }
        self.raw.remove(kind, name);
        self.references_changed = true;
        match kind {
            ResourceKind::Cluster => {
                if let Some(entry) = self.clusters.get_mut(name) {
                    entry.gone_since = Some(now);
                    self.dns_changes.push((entry.ir.name.clone(), None));
                }
            }
            // Endpoints and routes go when nothing refers to them; until then the last ones serve, as with Envoy.
            ResourceKind::Endpoints | ResourceKind::Routes | ResourceKind::Secret => {}
            ResourceKind::Listener => {
                self.listeners.remove(name);
                self.new_sockets
                    .iter_mut()
                    .for_each(|sockets| sockets.retain(|(listener, ..)| &**listener != name));
            }
        }
    }

    /// Numbers for `cluster_manager.*` and `listener_manager.*`: active clusters, warming clusters, active and warming listeners.
    pub(crate) fn counts(&self) -> [usize; 4] {
        let warming = self.clusters.values().filter(|entry| !entry.warm).count();
        [
            self.clusters.len() - warming,
            warming,
            self.listeners.values().filter(|entry| entry.active.is_some()).count(),
            self.listeners.values().filter(|entry| entry.warming.is_some()).count(),
        ]
    }

    /// Listeners in effect.
    pub(crate) fn active_listeners(&self) -> impl Iterator<Item = &Arc<ListenerConfig>> {
        self.listeners.values().filter_map(|entry| entry.active.as_ref())
    }

    /// Clusters in effect.
    pub(crate) fn active_clusters(&self) -> impl Iterator<Item = &Arc<ClusterConfig>> {
        self.clusters.values().filter_map(|entry| entry.active.as_ref())
    }

    /// Caches of names in use.
    pub(crate) fn dns_caches(&self) -> impl Iterator<Item = Arc<DnsCache>> {
        self.names.caches.in_use()
    }

    /// First address a listener is bound to; `None` also for a Unix socket.
    pub(crate) fn bound_address(&self, name: &str) -> Option<SocketAddr> {
        let entry = self.listeners.get(name)?;
        let config = entry.active.as_ref().or(entry.warming.as_ref().map(|warming| &warming.config))?;
        config.bound.first()?.socket()
    }

    /// The configuration in effect, and new sockets for each worker.
    pub(crate) fn snapshot(&mut self) -> (Arc<Snapshot>, Vec<Vec<NewSocket>>) {
        self.version += 1;
        let mut clusters = vec![None; self.names.clusters.len()];
        for entry in self.clusters.values() {
            clusters[entry.slot as usize] = entry.active.clone();
        }
        let mut routes = vec![None; self.names.routes.len()];
        for (name, config) in &self.routes {
            routes[self.names.routes.of(name) as usize] = Some(config.clone());
        }
        let listeners: Vec<_> = self.listeners.values().filter_map(|entry| entry.active.clone()).collect();
        let route_stats = self.route_stats();
        let is_active =
            |name: &Arc<str>| listeners.iter().any(|config: &Arc<ListenerConfig>| config.ir.name == *name);
        // Sockets of a listener that warms wait with it: nobody is accepted before it can serve.
        let mut handed = Vec::with_capacity(self.workers);
        for sockets in &mut self.new_sockets {
            let (now, later) = std::mem::take(sockets).into_iter().partition(|(name, ..)| is_active(name));
            *sockets = later;
            handed.push(now);
        }
        let snapshot = Snapshot {
            version: self.version,
            listeners,
            clusters,
            cluster_slots: self.names.clusters.names().clone(),
            routes,
            route_stats,
        };
        (Arc::new(snapshot), handed)
    }
}

impl Store {
    /// Names under which routes in effect count for themselves, by slot.
    pub(crate) fn route_stats(&self) -> Vec<Option<Arc<str>>> {
        let mut names = vec![None; self.names.stats.len()];
        if names.is_empty() {
            return names;
        }
        let inline = self.active_listeners().flat_map(|listener| compile::inline_routes(listener));
        for config in self.routes.values().chain(inline) {
            for (slot, name) in config.stats.iter().zip(config.ir.stats.iter()) {
                slot.iter().for_each(|slot| names[*slot as usize] = Some(name.clone()));
            }
        }
        names
    }
}

fn same_name(told: &str, inside: &str) -> Result<(), String> {
    if told == inside {
        Ok(())
    } else {
        Err(format!("name: is {inside:?} but the resource was sent as {told:?}"))
    }
}

#[cfg(test)]
mod tests {
    use lateen_xds::pb::envoy::config::cluster::v3 as cluster;
    use lateen_xds::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
    use lateen_xds::pb::envoy::config::core::v3::{AggregatedConfigSource, ConfigSource};
    use lateen_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
    use prost::Message;

    use super::*;

    fn resource(kind: ResourceKind, name: &str, message: &impl Message) -> Resource {
        let body = prost_types::Any { type_url: kind.type_url().to_owned(), value: message.encode_to_vec() };
        Resource { name: name.to_owned(), version: String::new(), body, is_static: false }
    }

    fn eds_cluster(name: &str) -> Resource {
        let ads = ConfigSourceSpecifier::Ads(AggregatedConfigSource::default());
        let source = ConfigSource { config_source_specifier: Some(ads), ..ConfigSource::default() };
        let eds = cluster::cluster::EdsClusterConfig { eds_config: Some(source), ..Default::default() };
        let eds_type =
            cluster::cluster::ClusterDiscoveryType::Type(cluster::cluster::DiscoveryType::Eds as i32);
        let message = cluster::Cluster {
            name: name.to_owned(),
            eds_cluster_config: Some(eds),
            cluster_discovery_type: Some(eds_type),
            ..Default::default()
        };
        resource(ResourceKind::Cluster, name, &message)
    }

    /// What ARCHITECTURE.md says a name that is gone costs is all it costs.
    #[test]
    fn clusters_that_are_gone_leave_their_slots_alone() {
        let mut store = Store::new(1, false);
        let mut now = Instant::now();
        for round in 0..100 {
            let names: Vec<String> = (0..100).map(|number| format!("cluster-{round}-{number}")).collect();
            let endpoints = |name: &String| {
                let message = ClusterLoadAssignment { cluster_name: name.clone(), ..Default::default() };
                resource(ResourceKind::Endpoints, name, &message)
            };
            let set: Vec<Resource> =
                names.iter().flat_map(|name| [eds_cluster(name), endpoints(name)]).collect();
            let report = store.apply(ConfigUpdate { set, removed: Vec::new() }, now);
            assert_eq!((report.accepted.len(), report.rejected.len()), (200, 0));
            store.settle(now);
            assert_eq!(store.snapshot().0.clusters.iter().flatten().count(), 100);
            let removed = names.iter().map(|name| (ResourceKind::Cluster, name.clone())).collect();
            store.apply(ConfigUpdate { set: Vec::new(), removed }, now);
            store.dns_changes.clear();
            now += LINGER;
            store.settle(now);
        }
        assert!(store.clusters.is_empty() && store.endpoints.is_empty() && store.eds_users.is_empty());
        assert_eq!(store.raw.iter().count(), 0);
        let snapshot = store.snapshot().0;
        assert_eq!((snapshot.clusters.len(), snapshot.cluster_slots.len()), (10_000, 10_000));
        assert_eq!(snapshot.clusters.iter().flatten().count(), 0);
    }
}
