//! Clusters: what came is compiled, waits for its endpoints, and comes into effect.

use std::sync::Arc;
use std::time::{Duration, Instant};

use lateen_ir as ir;
use lateen_xds::split::split;

use super::{ClusterEntry, Store, same_name};
use crate::compile;
use crate::dns::DnsCluster;
use crate::health_check::Checked;
use crate::joined::Joined;
use crate::outlier::{Detector, Hosts};
use crate::snapshot::{ClusterConfig, stat_name};
use crate::subsets::SubsetCounts;

/// Number of the field `load_assignment` of `envoy.config.cluster.v3.Cluster`.
const LOAD_ASSIGNMENT: u32 = 33;

impl Store {
    pub(super) fn set_cluster(&mut self, name: &str, bytes: &[u8], now: Instant) -> Result<(), String> {
        let cluster = compile::read_cluster(bytes)?;
        same_name(name, &cluster.name)?;
        let endpoints = match &cluster.discovery {
            ir::Discovery::Static(assignment) => Some(assignment.clone()),
            ir::Discovery::Eds { service_name, .. } => self.endpoints.get(service_name).cloned(),
            _ => None,
        };
        if let Some(reason) =
            endpoints.and_then(|endpoints| compile::unsupported_endpoints(&cluster, &endpoints))
        {
            return Err(reason);
        }
        // The settings of connections: everything but the endpoints.
        let settings = split(bytes, LOAD_ASSIGNMENT).map_err(|error| error.to_string())?;
        let fingerprint = compile::fingerprint(&[&settings.rest]);
        let known = self.clusters.get(&cluster.name).filter(|known| known.fingerprint == fingerprint);
        let transports = match known {
            Some(known) => known.transports.clone(),
            None => Arc::new(compile::transports(&cluster, &self.secrets)?),
        };
        let dns_cache = match &cluster.discovery {
            ir::Discovery::DynamicForwardProxy { cache } => {
                let made = self.names.caches.of(cache);
                Some(made.map_err(|reason| format!("cluster_type.typed_config.dns_cache_config: {reason}"))?)
            }
            _ => None,
        };
        let secrets = transports.all().flat_map(|tls| tls.ir.common.secrets());
        let awaits_secrets = self.missing_secrets(secrets, now);
        let cluster = Arc::new(cluster);
        let bind = cluster.bind.clone().or_else(|| self.default_bind.clone());
        let (warm, limit) = match &cluster.discovery {
            ir::Discovery::Static(_)
            | ir::Discovery::OriginalDst { .. }
            | ir::Discovery::DynamicForwardProxy { .. } => (true, None),
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
        let slot = self.names.clusters.of(&cluster.name);
        let key = cluster.name.clone();
        let warm_until = limit.map(|limit| now + limit);
        let entry = ClusterEntry {
            slot,
            ir: cluster,
            fingerprint,
            breakers,
            bind,
            dns_stats,
            dns_cache,
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

    fn look_up(
        &mut self,
        name: &Arc<str>,
        assignment: &Arc<ir::ClusterLoadAssignment>,
        dns: Box<ir::Dns>,
        logical: bool,
    ) {
        let known = self.clusters.get(name).and_then(|entry| entry.dns_stats.clone());
        let stats = known.unwrap_or_default();
        let cluster = DnsCluster { assignment: assignment.clone(), dns, logical, stats };
        self.dns_changes.push((name.clone(), Some(cluster)));
    }

    /// Puts the cluster with the endpoints known now into effect.
    pub(super) fn activate_cluster(&mut self, name: &str) {
        let Some(entry) = self.clusters.get_mut(name) else { return };
        if !entry.awaits_secrets.is_empty() && entry.ir.wait_for_warm_on_init {
            // The secrets that come, or the end of waiting for them, bring it here again.
            entry.warm_until = None;
            return;
        }
        entry.warm_until = None;
        let assignment = match &entry.ir.discovery {
            ir::Discovery::Static(assignment) => Some(assignment.clone()),
            ir::Discovery::Eds { service_name, .. } => self.endpoints.get(service_name).cloned(),
            ir::Discovery::StrictDns { .. } | ir::Discovery::LogicalDns { .. } => {
                self.endpoints.get(&dns_key(name)).cloned()
            }
            ir::Discovery::OriginalDst { .. } | ir::Discovery::DynamicForwardProxy { .. } => None,
        };
        let endpoints = assignment.unwrap_or_else(|| Arc::new(no_endpoints(&entry.ir.name)));
        let checked = self.health.follow(
            &entry.ir,
            &endpoints,
            &entry.breakers,
            entry.bind.as_ref(),
            &entry.transports,
        );
        if let Some(view) = &checked
            && !entry.warm
            && !view.checked.is_complete(&endpoints)
        {
            return; // the results bring it here again
        }
        entry.warm = true;
        let stats = entry.ir.alt_stat_name.as_ref().unwrap_or(&entry.ir.name);
        let (active, now) = (entry.active.as_ref(), Instant::now());
        let before = active.and_then(|active| active.joined.as_deref());
        let known_health = checked.as_ref().map(|view| &*view.checked);
        let joined = Joined::note(&entry.ir, &endpoints, known_health, before, now);
        let before = active.and_then(|active| active.subsets.as_deref());
        let subsets = SubsetCounts::note(&entry.ir, &endpoints, before);
        // New settings: what was counted under the old ones counts no more.
        let known = active.filter(|active| active.fingerprint == entry.fingerprint);
        let detector = || {
            let hosts = match (&entry.dns_cache, &entry.ir.discovery) {
                (Some(cache), _) => Hosts::Names(cache.clone()),
                (None, ir::Discovery::OriginalDst { .. }) => Hosts::OnDemand,
                (None, _) => Hosts::Endpoints,
            };
            let config = entry.ir.outlier_detection.as_deref()?;
            Some(Arc::new(Detector::new(*config, hosts, now)))
        };
        let outlier = known.map_or_else(detector, |known| known.outlier.clone());
        if let Some(outlier) = &outlier {
            outlier.keep(&endpoints);
        }
        if let Some(view) = &checked {
            view.ejected_by(outlier.clone());
        }
        entry.active = Some(Arc::new(ClusterConfig {
            ir: entry.ir.clone(),
            fingerprint: entry.fingerprint,
            endpoints,
            outlier,
            subsets,
            joined,
            breakers: entry.breakers.clone(),
            stat_name: stat_name(stats),
            bind: entry.bind.clone(),
            dns_stats: entry.dns_stats.clone(),
            dns_cache: entry.dns_cache.clone(),
            checked,
            transports: entry.transports.clone(),
        }));
    }

    /// Takes the answer of a look-up.
    pub(crate) fn resolved(&mut self, cluster: &Arc<str>, assignment: ir::ClusterLoadAssignment) {
        self.endpoints.insert(dns_key(cluster), Arc::new(assignment));
        // Of one that is gone it would stay for ever.
        self.references_changed |= !self.clusters.contains_key(cluster);
        self.activate_cluster(cluster);
    }

    /// Takes what health checks say in.
    pub(crate) fn checked(&mut self, cluster: &Arc<str>, generation: u64, checked: Checked) {
        if self.health.take(cluster, generation, checked) {
            self.activate_cluster(cluster);
        }
    }
}

/// Where look-up results are kept: a name no EDS resource has.
pub(super) fn dns_key(cluster: &str) -> Arc<str> {
    format!("\0dns:{cluster}").into()
}

fn no_endpoints(cluster: &Arc<str>) -> ir::ClusterLoadAssignment {
    ir::ClusterLoadAssignment {
        cluster_name: cluster.clone(),
        priorities: Vec::new(),
        overprovisioning_factor: 140,
        weighted_priority_health: false,
    }
}
