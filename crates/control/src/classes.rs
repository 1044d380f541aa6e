//! What the classes of connected proxies should have, brought up to date change by change.
//!
//! Work and memory go by how many ways there are to reach the mesh (mostly one a namespace), not by classes or proxies: a class
//! adds the few resources about its own workload, and proxies share their class's snapshot.
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use lateen_model::{Delta, World};
use lateen_translate::{
    Affected, Cache, Extent, ProxyClass, Resource, ResourceType, Scope, affected, generate_outward,
    generate_own,
};
use lateen_xds::server::{ResourceSet, Snapshot};

/// The classes in use.
#[derive(Default)]
pub(crate) struct Classes {
    cache: Cache,
    /// By what [`ProxyClass::outward`] keeps.
    views: HashMap<Arc<ProxyClass>, View>,
    classes: HashMap<Arc<ProxyClass>, Class>,
}

/// How some classes reach the mesh.
struct View {
    scope: Scope,
    sets: Sets,
}

/// The resources of each type, in the order of [`ResourceType::ALL`].
type Sets = [Arc<ResourceSet>; ResourceType::ALL.len()];

struct Class {
    outward: Arc<ProxyClass>,
    /// The view's sets the snapshot was made from.
    from: Sets,
    /// What the class adds to each of them.
    own: [Vec<Arc<Resource>>; ResourceType::ALL.len()],
    snapshot: Arc<Snapshot>,
}

impl Classes {
    /// Brings the classes in use up to date and forgets the others.
    pub(crate) fn follow<'a>(
        &mut self,
        used: impl Iterator<Item = &'a Arc<ProxyClass>>,
        world: &Arc<World>,
        delta: &Delta,
        changed: Instant,
    ) {
        let used: HashSet<&Arc<ProxyClass>> = used.collect();
        self.classes.retain(|class, _| used.contains(class));
        let selects_anew = !delta.virtual_services.is_empty()
            || !delta.destination_rules.is_empty()
            || !delta.sidecars.is_empty()
            || delta.mesh;
        if selects_anew {
            for (class, known) in &mut self.classes {
                let outward = class.outward(world);
                if outward != known.outward {
                    known.outward = outward;
                }
            }
        }
        let outward: HashSet<&Arc<ProxyClass>> = self.classes.values().map(|class| &class.outward).collect();
        self.views.retain(|class, _| outward.contains(class));
        for view in self.views.values_mut() {
            view.follow(world, delta, &self.cache);
        }
        let own_may_change = own_may_change(delta);
        for (class, known) in &mut self.classes {
            let view = self
                .views
                .entry(known.outward.clone())
                .or_insert_with(|| View::new(world, &known.outward, &self.cache));
            known.follow(class, view, own_may_change, changed, &self.cache);
        }
    }

    /// What proxies of a class should have.
    pub(crate) fn snapshot(
        &mut self,
        class: &Arc<ProxyClass>,
        world: &Arc<World>,
        changed: Instant,
    ) -> Arc<Snapshot> {
        if let Some(known) = self.classes.get(class) {
            return known.snapshot.clone();
        }
        let outward = class.outward(world);
        let view =
            self.views.entry(outward.clone()).or_insert_with(|| View::new(world, &outward, &self.cache));
        let new = Class::new(class, view, changed, &self.cache);
        let snapshot = new.snapshot.clone();
        self.classes.insert(class.clone(), new);
        snapshot
    }

    /// Forgets what nothing uses any more.
    pub(crate) fn sweep(&self) {
        self.cache.sweep();
    }

    /// How many resources were made so far.
    #[cfg(test)]
    pub(crate) fn made(&self) -> u64 {
        self.cache.made()
    }
}

/// Whether the resources about workloads themselves may change. They depend on mesh config and on the class, but rules of
/// many kinds may come to have a say; only what surely has none is left out.
fn own_may_change(delta: &Delta) -> bool {
    delta.mesh
        || !delta.services.is_empty()
        || !delta.destination_rules.is_empty()
        || !delta.sidecars.is_empty()
        || !delta.peer_authentications.is_empty()
        || !delta.namespaces.is_empty()
        || !delta.authorization_policies.is_empty()
        || !delta.request_authentications.is_empty()
        || !delta.key_sets.is_empty()
}

impl View {
    fn new(world: &Arc<World>, class: &Arc<ProxyClass>, cache: &Cache) -> Self {
        let scope = Scope::new(world.clone(), class.clone());
        let set = |kind| Arc::new(generate_outward(&scope, cache, kind, &Extent::All).into_iter().collect());
        Self { sets: ResourceType::ALL.map(set), scope }
    }

    /// Brings it up to date. A set that the change does not touch stays the same object, which is how classes and connections
    /// know at a glance.
    fn follow(&mut self, world: &Arc<World>, delta: &Delta, cache: &Cache) {
        let scope = self.scope.follow(world.clone(), delta);
        let affected: Affected = affected(delta, &self.scope, &scope);
        self.scope = scope;
        for (kind, set) in ResourceType::ALL.into_iter().zip(&mut self.sets) {
            if let Some(new) = refreshed(set, &self.scope, kind, affected.of(kind), delta, cache) {
                *set = Arc::new(new);
            }
        }
    }
}

impl Class {
    fn new(class: &ProxyClass, view: &View, changed: Instant, cache: &Cache) -> Self {
        let (own, version) = (own_of(class, &view.scope.world, cache), view.scope.world.version());
        let mut snapshot = Snapshot::new(version, changed);
        for (index, kind) in ResourceType::ALL.into_iter().enumerate() {
            snapshot = snapshot.with(kind.type_url(), with_own(&view.sets[index], &own[index]));
        }
        let (outward, from) = (view.scope.class.clone(), view.sets.clone());
        Self { outward, from, own, snapshot: Arc::new(snapshot) }
    }

    fn follow(
        &mut self,
        class: &ProxyClass,
        view: &View,
        own_may_change: bool,
        changed: Instant,
        cache: &Cache,
    ) {
        let own = own_may_change.then(|| own_of(class, &view.scope.world, cache));
        let version = view.scope.world.version();
        let mut next: Option<Snapshot> = None;
        for (index, kind) in ResourceType::ALL.into_iter().enumerate() {
            let set = &view.sets[index];
            let own_changed = own.as_ref().is_some_and(|own| own[index] != self.own[index]);
            if Arc::ptr_eq(set, &self.from[index]) && !own_changed {
                continue;
            }
            let own = &own.as_ref().unwrap_or(&self.own)[index];
            let start = || Snapshot::clone_at(&self.snapshot, version, changed);
            next = Some(next.unwrap_or_else(start).with(kind.type_url(), with_own(set, own)));
        }
        if let Some(next) = next {
            self.snapshot = Arc::new(next);
        }
        self.from.clone_from(&view.sets);
        if let Some(own) = own {
            self.own = own;
        }
    }
}

fn own_of(class: &ProxyClass, world: &World, cache: &Cache) -> [Vec<Arc<Resource>>; ResourceType::ALL.len()] {
    ResourceType::ALL.map(|kind| generate_own(world, class, cache, kind))
}

fn with_own(set: &Arc<ResourceSet>, own: &[Arc<Resource>]) -> Arc<ResourceSet> {
    set.with(own.iter().cloned()).map_or_else(|| set.clone(), Arc::new)
}

/// The set of one type after a change, or none when it stays as it is.
fn refreshed(
    old: &ResourceSet,
    scope: &Scope,
    kind: ResourceType,
    extent: &Extent,
    delta: &Delta,
    cache: &Cache,
) -> Option<ResourceSet> {
    if extent.is_none() {
        return None;
    }
    let now = generate_outward(scope, cache, kind, extent);
    // Endpoints that come and go change assignments but never which there are.
    let only_endpoints = kind == ResourceType::Endpoint
        && matches!(extent, Extent::Services(_))
        && delta.services.is_empty()
        && delta.virtual_services.is_empty()
        && delta.destination_rule_hosts.is_empty();
    let gone: Vec<Arc<str>> = if only_endpoints {
        Vec::new()
    } else {
        let names: HashSet<&str> = now.iter().map(|resource| &*resource.name).collect();
        let covered = old.iter().map(|resource| &resource.name).filter(|name| extent.covers(name));
        covered.filter(|name| !names.contains(&***name)).cloned().collect()
    };
    let without = old.without(gone.iter().map(|name| &**name));
    without.as_ref().unwrap_or(old).with(now).or(without)
}
