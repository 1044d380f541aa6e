//! What one class of proxies may see.
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use lateen_api::networking::sidecar::EgressListener;
use lateen_api::networking::virtual_service::MESH_GATEWAY;
use lateen_model::{
    Client, Delta, DestinationRule, Endpoint, Hostname, ObjectName, Service, Sidecar, VirtualService, World,
    resolve_host,
};

use crate::affected::Extent;
use crate::proxy::{ProxyClass, ProxyKind};
use crate::settings::Settings;
use crate::sidecar::{self, BoundAddress, BoundListener, Imports, Place};

/// A world seen by one class of proxies.
#[derive(Clone, Debug)]
pub struct Scope {
    /// The world.
    pub world: Arc<World>,
    /// The class.
    pub class: Arc<ProxyClass>,
    /// The services it may send to, by host name, without those that are aliases (`ExternalName`).
    pub services: Arc<[Arc<Service>]>,
    /// Those of them its callers may address: with a Sidecar, the others are only where rules send.
    pub addressed: Arc<[Arc<Service>]>,
    /// The Sidecar in force.
    pub sidecar: Option<Arc<Sidecar>>,
    /// What is reached through its egress listeners at addresses of their own.
    bound: Arc<[BoundListener]>,
    /// The listener that this is a view of (see [`Self::bound_views`]).
    pub(crate) at: Option<BoundAddress>,
    /// The aliases it may see, by the service they mean; aliases of what is outside the mesh are left to DNS.
    aliases: Arc<BTreeMap<Hostname, Vec<ObjectName>>>,
    /// For sidecars: the VirtualServices that apply to it, oldest first.
    pub virtual_services: Arc<[Arc<VirtualService>]>,
    /// Mesh-wide settings, as the Sidecar changes them.
    pub(crate) settings: Arc<Settings>,
}

impl Scope {
    /// The part of a world that a class may see.
    pub fn new(world: Arc<World>, class: Arc<ProxyClass>) -> Self {
        let of_use = |service: &&Arc<Service>| service.alias_of().is_none();
        let aliases = Arc::new(aliases(&world, &class.namespace));
        let sidecar = sidecar::in_force(&world, &class).cloned();
        let imports = sidecar.as_ref().map(|sidecar| Imports::captured(sidecar, &class.namespace));
        let virtual_services = self::virtual_services(&world, &class, imports.as_ref());
        let visible = || world.visible_services(&class.namespace).filter(of_use);
        let addressed: Arc<[Arc<Service>]> = match (&imports, &sidecar) {
            (Some(imports), Some(sidecar)) => {
                let bound = sidecar::listened_ports(sidecar, true);
                let imported = visible().filter_map(|service| imports.service(service));
                imported.filter_map(|service| sidecar::without_ports(service, &bound)).collect()
            }
            _ => visible().cloned().collect(),
        };
        let bound: Arc<[BoundListener]> = match &sidecar {
            None => Arc::default(),
            Some(sidecar) => bound(sidecar, &world, &class, &visible().collect::<Vec<_>>()),
        };
        let settings = Settings::for_sidecar(&world, &class, sidecar.as_deref());
        let services = match &sidecar {
            None => addressed.clone(),
            Some(sidecar) => {
                let all = Imports::new(sidecar, &class.namespace);
                let reached: Vec<_> = visible().filter_map(|service| all.service(service)).collect();
                let proxy =
                    settings.egress_proxy.as_ref().map(|proxy| (proxy.host.as_str(), Some(proxy.port)));
                let own = &class.namespace;
                let of_bound = bound.iter().flat_map(|listener| listener.virtual_services.iter());
                let rules: Vec<_> = virtual_services.iter().chain(of_bound).cloned().collect();
                sidecar::with_destinations(&reached, &rules, proxy, &world, own)
                    .into_iter()
                    .filter(|service| of_use(&service))
                    .collect()
            }
        };
        let settings = Arc::new(settings);
        Self {
            world,
            class,
            services,
            addressed,
            sidecar,
            bound,
            at: None,
            aliases,
            virtual_services,
            settings,
        }
    }

    /// What is reached through each of the Sidecar's listeners at addresses of their own, as if nothing else were.
    pub(crate) fn bound_views(&self) -> impl Iterator<Item = Self> {
        self.bound.iter().map(|listener| Self {
            at: Some(listener.at.clone()),
            addressed: listener.addressed.clone(),
            virtual_services: listener.virtual_services.clone(),
            bound: Arc::default(),
            ..self.clone()
        })
    }

    /// The same class's view of the world after a change. What the change cannot touch is taken over.
    #[must_use]
    pub fn follow(&self, world: Arc<World>, delta: &Delta) -> Self {
        // Mesh config has defaults of visibility.
        let by_sidecar = !delta.virtual_services.is_empty() && self.sidecar.is_some();
        if delta.mesh || !delta.services.is_empty() || !delta.sidecars.is_empty() || by_sidecar {
            return Self::new(world, self.class.clone());
        }
        let virtual_services = match delta.virtual_services.is_empty() {
            true => self.virtual_services.clone(),
            false => virtual_services(&world, &self.class, None),
        };
        Self { world, virtual_services, ..self.clone() }
    }

    /// The Unix socket that this is a view of, if it is of one.
    pub(crate) fn socket(&self) -> Option<&Arc<str>> {
        self.at.as_ref().and_then(BoundAddress::unix)
    }

    /// The port of the listener for a port at any address: a Unix socket has one listener for all.
    pub(crate) fn listening_port(&self, port: u16) -> u16 {
        if self.socket().is_some() { 0 } else { port }
    }

    /// The service of this host, if the class may see it.
    pub(crate) fn service(&self, host: &str) -> Option<&Arc<Service>> {
        let index = self.services.binary_search_by(|service| service.hostname.as_ref().cmp(host)).ok()?;
        self.services.get(index)
    }

    /// The DestinationRule in force for a service.
    pub(crate) fn destination_rule(&self, service: &Service) -> Option<Arc<DestinationRule>> {
        let client = Client { namespace: &self.class.namespace, labels: Some(&self.class.labels) };
        self.world.destination_rule(&service.hostname, client, &service.name.namespace)
    }

    /// The addresses callers connect to a service at: its own, else for proxies that answer DNS queries the automatic one.
    pub(crate) fn addresses_of(&self, service: &Service) -> Vec<IpAddr> {
        if service.addresses.is_empty() && service.ranges.is_empty() && self.class.dns_capture {
            return service.auto_addresses(self.class.dual_stack);
        }
        service.addresses.clone()
    }

    /// The addresses of an endpoint that its proxies reach, the one it is known by first; none when it has no address of IP.
    pub(crate) fn addresses_of_endpoint(&self, endpoint: &Endpoint) -> Option<Vec<IpAddr>> {
        let others = if self.class.dual_stack { endpoint.other_addresses.as_slice() } else { &[] };
        Some(endpoint.address.ip()?)
            .map(|first| std::iter::once(first).chain(others.iter().copied()).collect())
    }

    /// Whether its proxies answer their applications' DNS queries. Gateways have no application.
    pub(crate) fn answers_names(&self) -> bool {
        self.class.dns_capture && self.class.kind == ProxyKind::Sidecar
    }

    /// The names of `ExternalName` services that mean this service.
    pub(crate) fn aliases_of(&self, host: &str) -> Vec<ObjectName> {
        self.aliases.get(host).cloned().unwrap_or_default()
    }

    /// Whether a change of services since `before` may concern it: one was or is seen, is another's alias, or is what a rule
    /// in force leads to.
    pub(crate) fn is_concerned(&self, before: &Self, changed: &BTreeSet<Hostname>) -> bool {
        let knows = |scope: &Self, host: &Hostname| {
            scope.service(host).is_some()
                || scope.virtual_services.iter().any(|rules| scope.leads_to(rules, host))
                || scope
                    .bound
                    .iter()
                    .any(|listener| listener.virtual_services.iter().any(|rules| scope.leads_to(rules, host)))
        };
        let known = || changed.iter().any(|host| knows(self, host) || knows(before, host));
        !changed.is_empty() && (self.aliases != before.aliases || known())
    }

    /// The hosts whose services differ from those of another view, either way.
    pub(crate) fn services_unlike(&self, other: &Self) -> BTreeSet<Hostname> {
        let lacks = |scope: &Self, service: &Arc<Service>| scope.service(&service.hostname) != Some(service);
        let here = self.services.iter().filter(|service| lacks(other, service));
        let there = other.services.iter().filter(|service| lacks(self, service));
        here.chain(there).map(|service| service.hostname.clone()).collect()
    }

    /// Whether the class may see this state of a VirtualService and it is bound to its kind of proxies.
    pub(crate) fn may_use(&self, rules: &VirtualService) -> bool {
        let gateways = &rules.spec.gateways;
        let bound = match self.class.kind {
            ProxyKind::Sidecar => gateways.is_empty() || gateways.iter().any(|name| name == MESH_GATEWAY),
            ProxyKind::Router => gateways.iter().any(|name| name != MESH_GATEWAY),
        };
        // Without hosts it is one that others delegate to, wherever they are bound and whoever sees them.
        let is_imported = || {
            let sidecar = self.sidecar.as_ref();
            sidecar.is_none_or(|sidecar| {
                Imports::new(sidecar, &self.class.namespace).virtual_service(rules, self.world.domain())
            })
        };
        rules.spec.hosts.is_empty()
            || (bound && self.world.is_visible(rules, &self.class.namespace) && is_imported())
    }

    /// Whether a rule sends anything to this host.
    fn leads_to(&self, rules: &VirtualService, host: &str) -> bool {
        let (own, domain) = (&rules.name.namespace, self.world.domain());
        rules.destinations().any(|destination| resolve_host(&destination.host, own, domain) == host)
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

/// What is reached through the egress listeners at addresses of their own.
fn bound(
    sidecar: &Sidecar,
    world: &World,
    class: &ProxyClass,
    visible: &[&Arc<Service>],
) -> Arc<[BoundListener]> {
    let own = &*class.namespace;
    let taken = sidecar::listened_ports(sidecar, false);
    let of_listener = |listener: &EgressListener| {
        let Place::At(at) = sidecar::place(listener) else { return None };
        let imports = Imports::through(std::iter::once(listener), own);
        let imported = visible.iter().filter_map(|service| imports.service(service));
        // What has a listener of its own is not at that of all ports.
        let left = imported.filter_map(|service| match &listener.port {
            Some(_) => Some(sidecar::as_listened(service, listener)),
            None => sidecar::without_ports(service, &taken),
        });
        Some(BoundListener {
            at,
            addressed: left.collect(),
            virtual_services: virtual_services(world, class, Some(&imports)),
        })
    };
    sidecar.spec.egress.iter().filter_map(of_listener).collect()
}

fn virtual_services(
    world: &World,
    class: &ProxyClass,
    imports: Option<&Imports<'_>>,
) -> Arc<[Arc<VirtualService>]> {
    let is_imported = |rules: &Arc<VirtualService>| {
        imports.is_none_or(|imports| imports.virtual_service(rules, world.domain()))
    };
    match class.kind {
        ProxyKind::Sidecar => {
            world.mesh_virtual_services(&class.namespace).into_iter().filter(is_imported).collect()
        }
        ProxyKind::Router => Arc::default(),
    }
}

fn aliases(world: &World, namespace: &str) -> BTreeMap<Hostname, Vec<ObjectName>> {
    let mut aliases: BTreeMap<Hostname, Vec<ObjectName>> = BTreeMap::new();
    for alias in world.visible_services(namespace) {
        let meant = world.behind_alias(alias, namespace);
        if !Arc::ptr_eq(meant, alias) {
            aliases.entry(meant.hostname.clone()).or_default().push(alias.name.clone());
        }
    }
    aliases
}
