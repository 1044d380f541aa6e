//! The control thread's view of configuration: what came, what is in effect, what still warms.
//!
//! A cluster with EDS or DNS waits for its first endpoints, a listener for its routes; meanwhile their last version serves.
//! A removed cluster that active routes still name stays a little longer, so that the order in which removals and route
//! changes arrive costs no request.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use ahash::AHashMap;
use lateen_ir as ir;
use lateen_xds::pb::envoy::config::cluster::v3::Cluster as ClusterMessage;
use lateen_xds::pb::envoy::config::listener::v3::Listener as ListenerMessage;
use prost::Message;
use prost_types::Any;

use crate::compile::{self, Names};
use crate::dns::{DnsCluster, DnsStats};
use crate::health_check::{Checked, HealthChecks};
use crate::joined::Joined;
use crate::listen;
use crate::outlier::Detector;
use crate::snapshot::{
    Breakers, ClusterConfig, ListenerConfig, RouteConfig, Snapshot, Transports, stat_name,
};
use crate::tls::Secrets;
use crate::update::{ApplyReport, ConfigUpdate, Rejection, Resource, ResourceKind, Subscriptions};
use crate::worker::NewSocket;

/// How long a removed cluster serves routes that still name it.
const LINGER: Duration = Duration::from_secs(5);

/// A resource as it came, for dumps.
#[derive(Clone)]
pub(crate) struct Raw {
    pub(crate) version: String,
    pub(crate) body: Any,
    pub(crate) is_static: bool,
    pub(crate) updated: SystemTime,
    /// A later version that was refused, and why.
    pub(crate) refused: Option<(String, String)>,
}

/// A cluster and where it stands.
pub(crate) struct ClusterEntry {
    ir: Arc<ir::Cluster>,
    fingerprint: u64,
    breakers: Arc<Breakers>,
    bind: Option<Arc<ir::BindConfig>>,
    /// Of a cluster whose names are looked up.
    dns_stats: Option<Arc<DnsStats>>,
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
}

/// See the module.
pub(crate) struct Store {
    pub(crate) raw: BTreeMap<(ResourceKind, String), Raw>,
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
    pub(crate) rejections: u64,
    pub(crate) secrets: Secrets,
}

impl Store {
    pub(crate) fn new(workers: usize, agent_secrets: bool) -> Self {
        Self {
            raw: BTreeMap::new(),
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
            rejections: 0,
            secrets: Secrets::new(agent_secrets),
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
        let key = (kind, resource.name.clone());
        if let Some(known) = self.raw.get_mut(&key) {
            if known.is_static && !resource.is_static {
                return Err("the bootstrap defines it statically; rename one of the two".to_owned());
            }
            if known.body == resource.body && !self.is_going(&key) {
                if let Some(known) = self.raw.get_mut(&key) {
                    known.version = resource.version;
                    known.refused = None;
                }
                return Ok(());
            }
        }
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
                let Resource { version, body, is_static, .. } = resource;
                self.raw
                    .insert(key, Raw { version, body, is_static, updated: SystemTime::now(), refused: None });
                Ok(())
            }
            Err(reason) => {
                if let Some(known) = self.raw.get_mut(&key) {
                    known.refused = Some((resource.version, reason.clone()));
                }
                Err(reason)
            }
        }
    }

    /// A cluster on its way out that comes back must be set anew.
    fn is_going(&self, (kind, name): &(ResourceKind, String)) -> bool {
        *kind == ResourceKind::Cluster
            && self.clusters.get(&**name).is_some_and(|entry| entry.gone_since.is_some())
    }

    fn set_cluster(&mut self, name: &str, bytes: &[u8], now: Instant) -> Result<(), String> {
        let cluster = ir::Cluster::from_bytes(bytes).map_err(|error| error.to_string())?;
        same_name(name, &cluster.name)?;
        if let Some(reason) = compile::unsupported_in_cluster(&cluster) {
            return Err(reason);
        }
        // The settings of connections: everything but the endpoints.
        let mut message = ClusterMessage::decode(bytes).map_err(|error| error.to_string())?;
        message.load_assignment = None;
        let fingerprint = compile::fingerprint(&[&message.encode_to_vec()]);
        let known = self.clusters.get(&cluster.name).filter(|known| known.fingerprint == fingerprint);
        let transports = match known {
            Some(known) => known.transports.clone(),
            None => Arc::new(compile::transports(&cluster, &self.secrets)?),
        };
        let secrets = transports.all().flat_map(|tls| tls.ir.common.secrets());
        let awaits_secrets = self.missing_secrets(secrets, now);
        let cluster = Arc::new(cluster);
        let bind = cluster.bind.clone().map(Arc::new).or_else(|| self.default_bind.clone());
        let (warm, limit) = match &cluster.discovery {
            ir::Discovery::Static(_) | ir::Discovery::OriginalDst { .. } => (true, None),
            ir::Discovery::Eds { service_name, initial_fetch_timeout } => {
                self.eds_users.entry(service_name.clone()).or_default().insert(cluster.name.clone());
                (self.endpoints.contains_key(service_name), *initial_fetch_timeout)
            }
            ir::Discovery::StrictDns { assignment, dns } => {
                self.look_up(&cluster.name, assignment, dns.clone(), false);
                (false, Some(Duration::from_secs(5)))
            }
            ir::Discovery::LogicalDns { assignment, dns } => {
                self.look_up(&cluster.name, assignment, dns.clone(), true);
                (false, Some(Duration::from_secs(5)))
            }
        };
        let begins = (warm && awaits_secrets.is_empty()) || !cluster.wait_for_warm_on_init;
        // Where endpoints are checked it is warm after the first round.
        let warm = begins && (cluster.health_check.is_none() || !cluster.wait_for_warm_on_init);
        let dns_stats = self.dns_changes.iter().rev().find(|(name, _)| *name == cluster.name);
        let dns_stats = dns_stats.and_then(|(_, change)| Some(change.as_ref()?.stats.clone()));
        let before = self.clusters.remove(&cluster.name);
        let (breakers, active) = match before {
            Some(entry) => (entry.breakers, entry.active),
            None => (Arc::default(), None),
        };
        self.names.clusters.of(&cluster.name);
        let key = cluster.name.clone();
        let warm_until = limit.map(|limit| now + limit);
        let entry = ClusterEntry {
            ir: cluster,
            fingerprint,
            breakers,
            bind,
            dns_stats,
            active,
            warm_until,
            warm,
            transports,
            awaits_secrets,
            gone_since: None,
        };
        self.clusters.insert(key.clone(), entry);
        if begins {
            self.activate_cluster(&key);
        }
        Ok(())
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

    /// Secrets that are not there, with the end of waiting for each.
    fn missing_secrets<'a>(
        &self,
        secrets: impl Iterator<Item = &'a ir::SecretName>,
        now: Instant,
    ) -> Vec<AwaitedSecret> {
        let missing = secrets.filter(|secret| !self.secrets.has(&secret.name));
        let until = |secret: &ir::SecretName| match &secret.source {
            ir::SecretSource::Static => None,
            ir::SecretSource::Ads { initial_fetch_timeout }
            | ir::SecretSource::Agent { initial_fetch_timeout }
            | ir::SecretSource::Path { initial_fetch_timeout, .. } => {
                initial_fetch_timeout.map(|limit| now + limit)
            }
        };
        missing.map(|secret| (secret.name.clone(), until(secret))).collect()
    }

    /// Listeners in effect and on their way.
    fn listener_configs(&self) -> impl Iterator<Item = &Arc<ListenerConfig>> {
        self.listeners.values().flat_map(|entry| {
            entry.active.iter().chain(entry.warming.as_ref().map(|warming| &warming.config))
        })
    }

    /// Every TLS context there is.
    pub(crate) fn contexts(&self) -> impl Iterator<Item = &ir::CommonTls> {
        let of_listeners = self.listener_configs().flat_map(|config| config.tls()).map(|tls| &tls.ir.common);
        let of_clusters =
            self.clusters.values().flat_map(|entry| entry.transports.all()).map(|tls| &tls.ir.common);
        of_listeners.chain(of_clusters)
    }

    fn look_up(
        &mut self,
        name: &Arc<str>,
        assignment: &ir::ClusterLoadAssignment,
        dns: ir::Dns,
        logical: bool,
    ) {
        let known = self.clusters.get(name).and_then(|entry| entry.dns_stats.clone());
        let stats = known.unwrap_or_default();
        let cluster = DnsCluster { assignment: assignment.clone(), dns, logical, stats };
        self.dns_changes.push((name.clone(), Some(cluster)));
    }

    /// Puts the cluster with the endpoints known now into effect.
    fn activate_cluster(&mut self, name: &str) {
        let Some(entry) = self.clusters.get_mut(name) else { return };
        if !entry.awaits_secrets.is_empty() && entry.ir.wait_for_warm_on_init {
            // The secrets that come, or the end of waiting for them, bring it here again.
            entry.warm_until = None;
            return;
        }
        entry.warm_until = None;
        let assignment = match &entry.ir.discovery {
            ir::Discovery::Static(assignment) => Some(Arc::new(assignment.clone())),
            ir::Discovery::Eds { service_name, .. } => self.endpoints.get(service_name).cloned(),
            ir::Discovery::StrictDns { .. } | ir::Discovery::LogicalDns { .. } => {
                self.endpoints.get(&dns_key(name)).cloned()
            }
            ir::Discovery::OriginalDst { .. } => None,
        };
        let endpoints = assignment.unwrap_or_else(|| Arc::new(no_endpoints(&entry.ir.name)));
        let checked = self.health.follow(&entry.ir, &endpoints, &entry.breakers, entry.bind.as_ref());
        if let Some((checked, _)) = &checked
            && !entry.warm
            && !checked.is_complete(&endpoints)
        {
            return; // the results bring it here again
        }
        entry.warm = true;
        let stats = entry.ir.alt_stat_name.as_ref().unwrap_or(&entry.ir.name);
        let (active, now) = (entry.active.as_ref(), Instant::now());
        let before = active.and_then(|active| active.joined.as_deref());
        let joined =
            Joined::note(&entry.ir, &endpoints, checked.as_ref().map(|(checked, _)| &**checked), before, now);
        // New settings: what was counted under the old ones counts no more.
        let known = active.filter(|active| active.fingerprint == entry.fingerprint);
        let detector = || entry.ir.outlier_detection.map(|config| Arc::new(Detector::new(config, now)));
        let outlier = known.map_or_else(detector, |known| known.outlier.clone());
        if let Some(outlier) = &outlier {
            outlier.keep(&endpoints);
        }
        entry.active = Some(Arc::new(ClusterConfig {
            ir: entry.ir.clone(),
            fingerprint: entry.fingerprint,
            endpoints,
            outlier,
            joined,
            breakers: entry.breakers.clone(),
            stat_name: stat_name(stats),
            bind: entry.bind.clone(),
            dns_stats: entry.dns_stats.clone(),
            checked,
            transports: entry.transports.clone(),
        }));
    }

    fn set_endpoints(&mut self, name: &str, bytes: &[u8]) -> Result<(), String> {
        let assignment = ir::ClusterLoadAssignment::from_bytes(bytes).map_err(|error| error.to_string())?;
        same_name(name, &assignment.cluster_name)?;
        let name = assignment.cluster_name.clone();
        self.endpoints.insert(name.clone(), Arc::new(assignment));
        let users: Vec<Arc<str>> = self.eds_users.get(&name).into_iter().flatten().cloned().collect();
        users.iter().for_each(|cluster| self.activate_cluster(cluster));
        Ok(())
    }

    /// Takes the answer of a look-up.
    pub(crate) fn resolved(&mut self, cluster: &Arc<str>, assignment: ir::ClusterLoadAssignment) {
        self.endpoints.insert(dns_key(cluster), Arc::new(assignment));
        self.activate_cluster(cluster);
    }

    /// Takes what health checks say in.
    pub(crate) fn checked(&mut self, cluster: &Arc<str>, generation: u64, checked: Checked) {
        if self.health.take(cluster, generation, checked) {
            self.activate_cluster(cluster);
        }
    }

    fn set_routes(&mut self, name: &str, bytes: &[u8]) -> Result<(), String> {
        let config = ir::RouteConfiguration::from_bytes(bytes).map_err(|error| error.to_string())?;
        same_name(name, &config.name)?;
        let config = compile::routes(Arc::new(config), &mut self.names);
        self.names.routes.of(&config.ir.name);
        self.routes.insert(config.ir.name.clone(), config);
        Ok(())
    }

    fn set_listener(&mut self, name: &str, bytes: &[u8], now: Instant) -> Result<(), String> {
        let listener = ir::Listener::from_bytes(bytes).map_err(|error| error.to_string())?;
        same_name(name, &listener.name)?;
        if let Some(reason) = compile::unsupported_in_listener(&listener) {
            return Err(reason);
        }
        let message = ListenerMessage::decode(bytes).map_err(|error| error.to_string())?;
        let listener = Arc::new(listener);
        let clash = self.listeners.iter().find(|(other, entry)| {
            let theirs = entry.active.as_ref().or(entry.warming.as_ref().map(|warming| &warming.config));
            *other != &listener.name
                && listener.address.port() != 0
                && theirs.is_some_and(|theirs| theirs.ir.address == listener.address)
        });
        if let Some((other, _)) = clash {
            return Err(format!("address: {} is already used by listener {other}", listener.address));
        }
        let entry = self.listeners.get(&listener.name);
        let serving = entry.and_then(|entry| entry.active.clone());
        let warming = entry.and_then(|entry| entry.warming.as_ref().map(|warming| warming.config.clone()));
        let latest = warming.or(serving.clone());
        let mut config =
            compile::listener(listener.clone(), message, serving.as_deref(), &mut self.names, &self.secrets)?;
        config.bound = match &latest {
            Some(latest) if same_sockets(&latest.ir, &listener) => latest.bound.clone(),
            _ => self.open(&listener)?,
        };
        let awaits_secrets = self.missing_secrets(config.tls().flat_map(|tls| tls.ir.common.secrets()), now);
        let awaits: Vec<_> = compile::rds_names(&listener)
            .filter(|(name, _)| !self.routes.contains_key(*name))
            .map(|(name, limit)| (name.clone(), limit.map(|limit| now + limit)))
            .collect();
        let config = Arc::new(config);
        let entry = if awaits.is_empty() && awaits_secrets.is_empty() {
            ListenerEntry { active: Some(config), warming: None }
        } else {
            ListenerEntry { active: serving, warming: Some(Warming { config, awaits, awaits_secrets }) }
        };
        self.listeners.insert(listener.name.clone(), entry);
        Ok(())
    }

    /// Opens the sockets of a listener, one for each worker and address.
    fn open(&mut self, listener: &ir::Listener) -> Result<Vec<SocketAddr>, String> {
        // Sockets of an earlier version that never came to serve.
        let name = &listener.name;
        self.new_sockets.iter_mut().for_each(|sockets| sockets.retain(|(known, ..)| known != name));
        let mut bound = Vec::new();
        if !listener.bind_to_port {
            return Ok(bound);
        }
        let additional = listener.additional_addresses.iter().map(|additional| additional.address);
        let mut opened = Vec::new();
        for (position, address) in std::iter::once(listener.address).chain(additional).enumerate() {
            let (address, sockets) = listen::open_sockets(listener, position, address, self.workers)
                .map_err(|error| format!("address: cannot listen on {address}: {error}"))?;
            bound.push(address);
            opened.push((position, sockets));
        }
        for (position, sockets) in opened {
            for (worker, socket) in sockets.into_iter().enumerate() {
                self.new_sockets[worker].push((listener.name.clone(), position, socket));
            }
        }
        Ok(bound)
    }

    fn remove(&mut self, kind: ResourceKind, name: &str, now: Instant) {
        let key = (kind, name.to_owned());
        if self.raw.get(&key).is_some_and(|raw| raw.is_static) {
            return;
        }
        self.raw.remove(&key);
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

    /// Ends what is due, forgets what nothing refers to, and returns the next moment something is due.
    pub(crate) fn settle(&mut self, now: Instant) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        let mut due = |at: Instant| next = Some(next.map_or(at, |known| known.min(at)));
        let mut warm = Vec::new();
        for (name, entry) in &mut self.clusters {
            if !entry.awaits_secrets.is_empty() {
                entry
                    .awaits_secrets
                    .retain(|(secret, until)| still_missing(&self.secrets, secret, *until, now));
                entry.awaits_secrets.iter().filter_map(|(_, until)| *until).for_each(&mut due);
                if entry.awaits_secrets.is_empty() {
                    // Whether endpoints are there is decided below, or when they come.
                    let there = match &entry.ir.discovery {
                        ir::Discovery::Static(_) | ir::Discovery::OriginalDst { .. } => true,
                        ir::Discovery::Eds { service_name, .. } => self.endpoints.contains_key(service_name),
                        ir::Discovery::StrictDns { .. } | ir::Discovery::LogicalDns { .. } => {
                            self.endpoints.contains_key(&dns_key(name))
                        }
                    };
                    if there || entry.warm_until.is_none() {
                        warm.push(name.clone());
                        continue;
                    }
                }
            }
            match entry.warm_until {
                Some(at) if at <= now && !entry.warm => warm.push(name.clone()),
                Some(at) if !entry.warm => due(at),
                _ => {}
            }
        }
        for entry in self.listeners.values_mut() {
            let Some(warming) = &mut entry.warming else { continue };
            warming.awaits.retain(|(name, until)| {
                !self.routes.contains_key(name) && until.is_none_or(|until| until > now)
            });
            warming.awaits_secrets.retain(|(name, until)| still_missing(&self.secrets, name, *until, now));
            let both = warming.awaits.iter().chain(&warming.awaits_secrets);
            both.filter_map(|(_, until)| *until).for_each(&mut due);
            if warming.awaits.is_empty() && warming.awaits_secrets.is_empty() {
                entry.active = entry.warming.take().map(|warming| warming.config);
            }
        }
        let needed = self.needed_clusters();
        self.clusters.retain(|name, entry| match entry.gone_since {
            Some(since) if needed.contains(name) && now < since + LINGER => {
                due(since + LINGER);
                true
            }
            Some(_) => false,
            None => true,
        });
        warm.iter().for_each(|name| self.activate_cluster(name));
        self.forget_unused();
        next
    }

    /// Names of clusters that active listeners and routes refer to.
    fn needed_clusters(&self) -> BTreeSet<Arc<str>> {
        if self.clusters.values().all(|entry| entry.gone_since.is_none()) {
            return BTreeSet::new();
        }
        let mut slots = BTreeSet::new();
        for listener in self.listeners.values().filter_map(|entry| entry.active.as_ref()) {
            slots.extend(compile::references(listener).0);
        }
        self.routes.values().for_each(|config| slots.extend(config.slots.iter().copied()));
        let named = self.names.clusters.names().iter();
        named.filter(|(_, slot)| slots.contains(slot)).map(|(name, _)| name.clone()).collect()
    }

    fn forget_unused(&mut self) {
        let wanted = self.subscriptions();
        let clusters = &self.clusters;
        self.health.retain(|name| clusters.contains_key(name));
        let dns: BTreeSet<Arc<str>> = self.clusters.keys().map(|name| dns_key(name)).collect();
        self.eds_users.retain(|name, _| wanted.endpoints.contains(&**name));
        self.endpoints.retain(|name, _| wanted.endpoints.contains(&**name) || dns.contains(name));
        let statics = &self.raw;
        self.routes.retain(|name, _| {
            let key = (ResourceKind::Routes, name.to_string());
            wanted.routes.contains(&**name) || statics.get(&key).is_some_and(|raw| raw.is_static)
        });
        let named: BTreeSet<Arc<str>> =
            self.contexts().flat_map(|common| common.secrets()).map(|secret| secret.name.clone()).collect();
        self.secrets.retain(|name| {
            let key = (ResourceKind::Secret, name.to_owned());
            named.contains(name) || statics.get(&key).is_some_and(|raw| raw.is_static)
        });
        let (endpoints, routes, secrets) = (&self.endpoints, &self.routes, &self.secrets);
        self.raw.retain(|(kind, name), raw| match kind {
            ResourceKind::Endpoints => raw.is_static || endpoints.contains_key(&**name),
            ResourceKind::Routes => raw.is_static || routes.contains_key(&**name),
            ResourceKind::Secret => raw.is_static || secrets.has(name),
            ResourceKind::Cluster | ResourceKind::Listener => true,
        });
    }

    /// What must be subscribed to.
    pub(crate) fn subscriptions(&self) -> Subscriptions {
        let mut wanted = Subscriptions::default();
        for entry in self.listeners.values() {
            let configs = entry.active.iter().chain(entry.warming.as_ref().map(|warming| &warming.config));
            for config in configs {
                wanted.routes.extend(compile::rds_names(&config.ir).map(|(name, _)| name.to_string()));
            }
        }
        for secret in self.contexts().flat_map(|common| common.secrets()) {
            match &secret.source {
                ir::SecretSource::Static => {}
                ir::SecretSource::Ads { .. } => drop(wanted.secrets.insert(secret.name.to_string())),
                ir::SecretSource::Agent { .. } => {
                    wanted.agent_secrets.insert(secret.name.to_string());
                }
                ir::SecretSource::Path { path, .. } => drop(wanted.secret_files.insert(path.to_string())),
            }
        }
        for entry in self.clusters.values().filter(|entry| entry.gone_since.is_none()) {
            if let ir::Discovery::Eds { service_name, .. } = &entry.ir.discovery {
                wanted.endpoints.insert(service_name.to_string());
            }
        }
        wanted
    }

    /// True when nothing warms.
    pub(crate) fn is_warm(&self) -> bool {
        self.clusters.values().all(|entry| entry.warm || entry.gone_since.is_some())
            && self.listeners.values().all(|entry| entry.warming.is_none())
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

    /// First address a listener is bound to.
    pub(crate) fn bound_address(&self, name: &str) -> Option<SocketAddr> {
        let entry = self.listeners.get(name)?;
        let config = entry.active.as_ref().or(entry.warming.as_ref().map(|warming| &warming.config))?;
        config.bound.first().copied()
    }

    /// True when the named listener waits for routes.
    pub(crate) fn is_warming_listener(&self, name: &str) -> bool {
        self.listeners.get(name).is_some_and(|entry| entry.active.is_none())
    }

    /// True when the named cluster waits for endpoints.
    pub(crate) fn is_warming_cluster(&self, name: &str) -> bool {
        self.clusters.get(name).is_some_and(|entry| !entry.warm)
    }

    /// The configuration in effect, and new sockets for each worker.
    pub(crate) fn snapshot(&mut self) -> (Arc<Snapshot>, Vec<Vec<NewSocket>>) {
        self.version += 1;
        let mut clusters = vec![None; self.names.clusters.len()];
        for (name, entry) in &self.clusters {
            clusters[self.names.clusters.of(name) as usize] = entry.active.clone();
        }
        let mut routes = vec![None; self.names.routes.len()];
        for (name, config) in &self.routes {
            routes[self.names.routes.of(name) as usize] = Some(config.clone());
        }
        let listeners: Vec<_> = self.listeners.values().filter_map(|entry| entry.active.clone()).collect();
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
        };
        (Arc::new(snapshot), handed)
    }
}

fn same_name(told: &str, inside: &str) -> Result<(), String> {
    if told == inside {
        Ok(())
    } else {
        Err(format!("name: is {inside:?} but the resource was sent as {told:?}"))
    }
}

fn still_missing(secrets: &Secrets, name: &str, until: Option<Instant>, now: Instant) -> bool {
    !secrets.has(name) && until.is_none_or(|until| until > now)
}

fn same_sockets(a: &ir::Listener, b: &ir::Listener) -> bool {
    let addresses = |listener: &ir::Listener| {
        let more = listener.additional_addresses.iter().map(|additional| additional.address);
        std::iter::once(listener.address).chain(more).collect::<Vec<_>>()
    };
    a.bind_to_port == b.bind_to_port && addresses(a) == addresses(b)
}

/// Where look-up results are kept: a name no EDS resource has.
fn dns_key(cluster: &str) -> Arc<str> {
    format!("\0dns:{cluster}").into()
}

fn no_endpoints(cluster: &Arc<str>) -> ir::ClusterLoadAssignment {
    ir::ClusterLoadAssignment {
        cluster_name: cluster.clone(),
        priorities: Vec::new(),
        overprovisioning_factor: 140,
        drop_overloads: Vec::new(),
        weighted_priority_health: false,
    }
}
