//! What one class of proxies may see.
use std::sync::Arc;

use lateen_model::{Resolution, Service, VirtualService, World};

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
    /// The services it may see, by host name; aliases (`ExternalName`) are left to DNS.
    pub services: Vec<Arc<Service>>,
    /// For sidecars: the VirtualServices that apply to it, oldest first.
    pub virtual_services: Vec<Arc<VirtualService>>,
    pub(crate) settings: Settings,
}

impl Scope {
    /// The part of a world that a class may see.
    pub fn new(world: Arc<World>, class: Arc<ProxyClass>) -> Self {
        let visible = |service: &&Arc<Service>| {
            service.visibility.allows(&class.namespace) && !matches!(service.resolution, Resolution::Alias(_))
        };
        let services = world.services().filter(visible).cloned().collect();
        let virtual_services = match class.kind {
            ProxyKind::Sidecar => world.mesh_virtual_services(&class.namespace),
            ProxyKind::Router => Vec::new(),
        };
        let settings = Settings::new(world.mesh());
        Self { world, class, services, virtual_services, settings }
    }

    /// The services within an extent.
    pub(crate) fn services_in(&self, extent: &Extent) -> Vec<&Arc<Service>> {
        match extent {
            Extent::None => Vec::new(),
            Extent::All => self.services.iter().collect(),
            Extent::Services(hosts) => hosts
                .iter()
                .filter_map(|host| {
                    let index = self
                        .services
                        .binary_search_by(|service| service.hostname.as_ref().cmp(host.as_ref()))
                        .ok()?;
                    self.services.get(index)
                })
                .collect(),
        }
    }
}
