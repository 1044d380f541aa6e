//! What one class of proxies may see.
use std::collections::BTreeMap;
use std::sync::Arc;

use lateen_model::{Delta, Hostname, ObjectName, Registry, Service, VirtualService, World};

use crate::affected::Extent;
use crate::proxy::{ProxyClass, ProxyKind};
use crate::settings::Settings;

/// A world seen by one class of proxies.
#[derive(Clone, Debug)]
pub struct Scope {
    /// The world.
    pub world: Arc<World>,
    /// The class.
    pub class: Arc<ProxyClass>,
    /// The services it may see, by host name, without those that are aliases (`ExternalName`).
    pub services: Arc<[Arc<Service>]>,
    /// The aliases it may see, by the service they mean; aliases of what is outside the mesh are left to DNS.
    aliases: Arc<BTreeMap<Hostname, Vec<ObjectName>>>,
    /// For sidecars: the VirtualServices that apply to it, oldest first.
    pub virtual_services: Arc<[Arc<VirtualService>]>,
    pub(crate) settings: Arc<Settings>,
}

impl Scope {
    /// The part of a world that a class may see.
    pub fn new(world: Arc<World>, class: Arc<ProxyClass>) -> Self {
        // ServiceEntries are not translated yet.
        let of_use = |service: &&Arc<Service>| {
            service.registry == Registry::Kubernetes && service.alias_of().is_none()
        };
        let services = world.visible_services(&class.namespace).filter(of_use).cloned().collect();
        let aliases = Arc::new(aliases(&world, &class.namespace));
        let virtual_services = virtual_services(&world, &class);
        let settings = Arc::new(Settings::new(world.mesh()));
        Self { world, class, services, aliases, virtual_services, settings }
    }

    /// The same class's view of the world after a change. What the change cannot touch is taken over.
    #[must_use]
    pub fn follow(&self, world: Arc<World>, delta: &Delta) -> Self {
        // Mesh config has defaults of visibility.
        if delta.mesh || !delta.services.is_empty() {
            return Self::new(world, self.class.clone());
        }
        let virtual_services = match delta.virtual_services.is_empty() {
            true => self.virtual_services.clone(),
            false => virtual_services(&world, &self.class),
        };
        Self { world, virtual_services, ..self.clone() }
    }

    /// The service of this host, if the class may see it.
    pub(crate) fn service(&self, host: &str) -> Option<&Arc<Service>> {
        let index = self.services.binary_search_by(|service| service.hostname.as_ref().cmp(host)).ok()?;
        self.services.get(index)
    }

    /// The names of `ExternalName` services that mean this service.
    pub(crate) fn aliases_of(&self, host: &str) -> Vec<ObjectName> {
        self.aliases.get(host).cloned().unwrap_or_default()
    }

    /// The services within an extent.
    pub(crate) fn services_in(&self, extent: &Extent) -> Vec<&Arc<Service>> {
        match extent {
            Extent::None => Vec::new(),
            Extent::All => self.services.iter().collect(),
            Extent::Services(hosts) => hosts.iter().filter_map(|host| self.service(host)).collect(),
        }
    }
}

fn virtual_services(world: &World, class: &ProxyClass) -> Arc<[Arc<VirtualService>]> {
    match class.kind {
        ProxyKind::Sidecar => world.mesh_virtual_services(&class.namespace).into(),
        ProxyKind::Router => Arc::default(),
    }
}

/// How many aliases of aliases are followed.
const ALIAS_DEPTH: usize = 10;

fn aliases(world: &World, namespace: &str) -> BTreeMap<Hostname, Vec<ObjectName>> {
    let mut aliases: BTreeMap<Hostname, Vec<ObjectName>> = BTreeMap::new();
    for alias in world.visible_services(namespace) {
        let mut meant = alias;
        for _ in 0..ALIAS_DEPTH {
            let Some(next) = meant.alias_of().and_then(|host| world.service_for(host, namespace)) else {
                break;
            };
            meant = next;
        }
        if !Arc::ptr_eq(meant, alias) && meant.alias_of().is_none() {
            aliases.entry(meant.hostname.clone()).or_default().push(alias.name.clone());
        }
    }
    aliases
}
