//! Listeners: compiled, bound, and in effect when their routes are there.

use std::sync::Arc;
use std::time::Instant;

use lateen_ir as ir;

use super::{ListenerEntry, Store, Warming, same_name};
use crate::filters::NewFetch;
use crate::snapshot::ListenerConfig;
use crate::{compile, listen};

impl Store {
    pub(super) fn set_listener(&mut self, name: &str, bytes: &[u8], now: Instant) -> Result<(), String> {
        let (listener, message) = compile::read_listener(bytes)?;
        same_name(name, &listener.name)?;
        let clash = self.listeners.iter().find(|(other, entry)| {
            let theirs = entry.active.as_ref().or(entry.warming.as_ref().map(|warming| &warming.config));
            *other != &listener.name
                && listener.address.port() != Some(0)
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
        let fetches: Vec<NewFetch> = compile::new_fetches(&config).collect();
        let awaits_keys: Vec<_> =
            fetches.iter().map(|new| &new.fetch).filter(|fetch| !fetch.is_over()).cloned().collect();
        self.new_fetches.extend(fetches);
        let config = Arc::new(config);
        let entry = if awaits.is_empty() && awaits_secrets.is_empty() && awaits_keys.is_empty() {
            ListenerEntry { active: Some(config), warming: None }
        } else {
            let warming = Warming { config, awaits, awaits_secrets, awaits_keys };
            ListenerEntry { active: serving, warming: Some(warming) }
        };
        self.listeners.insert(listener.name.clone(), entry);
        Ok(())
    }

    /// Opens the sockets of a listener, one for each worker and address.
    fn open(&mut self, listener: &ir::Listener) -> Result<Vec<ir::HostAddress>, String> {
        // Sockets of an earlier version that never came to serve.
        let name = &listener.name;
        self.new_sockets.iter_mut().for_each(|sockets| sockets.retain(|(known, ..)| known != name));
        let mut bound = Vec::new();
        if !listener.bind_to_port {
            return Ok(bound);
        }
        let additional = listener.additional_addresses.iter().map(|additional| &additional.address);
        let mut opened = Vec::new();
        for (position, address) in std::iter::once(&listener.address).chain(additional).enumerate() {
            let (address, sockets) = listen::open(listener, position, address, self.workers)
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

    /// Listeners in effect and on their way.
    pub(super) fn listener_configs(&self) -> impl Iterator<Item = &Arc<ListenerConfig>> {
        self.listeners.values().flat_map(|entry| {
            entry.active.iter().chain(entry.warming.as_ref().map(|warming| &warming.config))
        })
    }
}

fn same_sockets(a: &ir::Listener, b: &ir::Listener) -> bool {
    let addresses = |listener: &ir::Listener| {
        let more = listener.additional_addresses.iter().map(|additional| additional.address.clone());
        std::iter::once(listener.address.clone()).chain(more).collect::<Vec<_>>()
    };
    a.bind_to_port == b.bind_to_port && addresses(a) == addresses(b)
}
