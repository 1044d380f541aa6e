//! What still warms: what it waits for, and until when.

use std::time::Instant;

use lateen_ir as ir;

use super::{AwaitedSecret, LINGER, Store, dns_key};
use crate::filters::NewFetch;
use crate::tls::Secrets;

impl Store {
    /// Secrets that are not there, with the end of waiting for each.
    pub(super) fn missing_secrets<'a>(
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
                        ir::Discovery::Static(_)
                        | ir::Discovery::OriginalDst { .. }
                        | ir::Discovery::DynamicForwardProxy { .. } => true,
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
            warming.awaits_keys.retain(|fetch| !fetch.is_over());
            let both = warming.awaits.iter().chain(&warming.awaits_secrets);
            both.filter_map(|(_, until)| *until).for_each(&mut due);
            if warming.awaits.is_empty()
                && warming.awaits_secrets.is_empty()
                && warming.awaits_keys.is_empty()
            {
                entry.active = entry.warming.take().map(|warming| warming.config);
                self.references_changed = true;
            }
        }
        let needed = self.needed_clusters();
        self.clusters.retain(|name, entry| match entry.gone_since {
            Some(since) if needed.contains(name) && now < since + LINGER => {
                due(since + LINGER);
                true
            }
            Some(_) => {
                self.references_changed = true;
                false
            }
            None => true,
        });
        warm.iter().for_each(|name| self.activate_cluster(name));
        self.forget_unused();
        next
    }

    /// Keys whose fetch can begin. As with Envoy, those that listeners wait for follow the first clusters. `initialized`: these have
    /// all been told; `live`: they were ready once.
    pub(crate) fn fetches_to_begin(&mut self, initialized: bool, live: bool) -> Vec<NewFetch> {
        let warm = self.clusters_are_warm();
        let clusters = &self.clusters;
        let ready = |new: &mut NewFetch| {
            let told = || initialized || clusters.contains_key(&new.fetch.remote.cluster);
            live || new.fetch.is_hasty() || warm && told()
        };
        self.new_fetches.extract_if(.., ready).collect()
    }

    fn clusters_are_warm(&self) -> bool {
        self.clusters.values().all(|entry| entry.warm || entry.gone_since.is_some())
    }

    /// True when nothing warms.
    pub(crate) fn is_warm(&self) -> bool {
        self.clusters_are_warm() && self.listeners.values().all(|entry| entry.warming.is_none())
    }

    /// True when the named listener waits for something.
    pub(crate) fn is_warming_listener(&self, name: &str) -> bool {
        self.listeners.get(name).is_some_and(|entry| entry.active.is_none())
    }

    /// True when the named cluster waits for endpoints.
    pub(crate) fn is_warming_cluster(&self, name: &str) -> bool {
        self.clusters.get(name).is_some_and(|entry| !entry.warm)
    }
}

fn still_missing(secrets: &Secrets, name: &str, until: Option<Instant>, now: Instant) -> bool {
    !secrets.has(name) && until.is_none_or(|until| until > now)
}
