//! What configuration in effect refers to: what must be subscribed to, what must linger, what can be forgotten.

use std::collections::BTreeSet;
use std::sync::Arc;

use lateen_ir as ir;

use super::{Store, dns_key};
use crate::compile;
use crate::update::{ResourceKind, Subscriptions};

impl Store {
    /// Every TLS context there is.
    pub(crate) fn contexts(&self) -> impl Iterator<Item = &ir::CommonTls> {
        let of_listeners = self.listener_configs().flat_map(|config| config.tls()).map(|tls| &tls.ir.common);
        let of_clusters =
            self.clusters.values().flat_map(|entry| entry.transports.all()).map(|tls| &tls.ir.common);
        of_listeners.chain(of_clusters)
    }

    /// Names of clusters that active listeners and routes refer to.
    pub(super) fn needed_clusters(&self) -> BTreeSet<Arc<str>> {
        if self.clusters.values().all(|entry| entry.gone_since.is_none()) {
            return BTreeSet::new();
        }
        let mut slots = BTreeSet::new();
        for listener in self.listeners.values().filter_map(|entry| entry.active.as_ref()) {
            slots.extend(compile::references(listener).0);
        }
        // Not all it has a slot for: it may know names of its earlier versions.
        self.routes.values().for_each(|config| {
            slots.extend(config.ir.table.references().map(|cluster| config.slots[cluster.index as usize]));
        });
        let named = self.names.clusters.names().iter();
        named.filter(|(_, slot)| slots.contains(slot)).map(|(name, _)| name.clone()).collect()
    }

    /// Forgets what configuration in effect does not refer to, where that may have changed.
    pub(super) fn forget_unused(&mut self) {
        if !std::mem::take(&mut self.references_changed) {
            return;
        }
        self.wanted = Arc::new(self.references());
        let (clusters, wanted, statics) = (&self.clusters, &self.wanted, &self.raw);
        self.health.retain(|name| clusters.contains_key(name));
        let looked_up = clusters.iter().filter(|(_, entry)| entry.dns_stats.is_some());
        let dns: BTreeSet<Arc<str>> = looked_up.map(|(name, _)| dns_key(name)).collect();
        self.eds_users.retain(|name, _| wanted.endpoints.contains(&**name));
        self.endpoints.retain(|name, _| wanted.endpoints.contains(&**name) || dns.contains(name));
        self.routes.retain(|name, _| {
            wanted.routes.contains(&**name) || statics.is_static(ResourceKind::Routes, name)
        });
        let named: BTreeSet<Arc<str>> =
            self.contexts().flat_map(|common| common.secrets()).map(|secret| secret.name.clone()).collect();
        let statics = &self.raw;
        self.secrets.retain(|name| named.contains(name) || statics.is_static(ResourceKind::Secret, name));
        let (endpoints, routes, secrets) = (&self.endpoints, &self.routes, &self.secrets);
        self.raw.retain(ResourceKind::Endpoints, |name| endpoints.contains_key(name));
        self.raw.retain(ResourceKind::Routes, |name| routes.contains_key(name));
        self.raw.retain(ResourceKind::Secret, |name| secrets.has(name));
    }

    /// Whether a resource that comes changes nothing but itself: it is wanted, and refers to nothing that must be subscribed to.
    pub(super) fn stands_alone(&self, kind: ResourceKind, name: &str) -> bool {
        match kind {
            ResourceKind::Routes => self.wanted.routes.contains(name),
            ResourceKind::Endpoints => self.wanted.endpoints.contains(name),
            ResourceKind::Cluster | ResourceKind::Listener | ResourceKind::Secret => false,
        }
    }

    /// What must be subscribed to, as of the last [`Store::settle`].
    pub(crate) fn subscriptions(&self) -> &Arc<Subscriptions> {
        &self.wanted
    }

    /// Names that configuration refers to.
    fn references(&self) -> Subscriptions {
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
}
