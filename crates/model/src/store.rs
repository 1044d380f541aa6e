//! The typed store: takes objects, keeps the world current, and says what changed.
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use lateen_api::mesh::CONFIG_KEY;
use lateen_api::mesh_networks::NETWORKS_KEY;
use lateen_api::{MeshConfig, MeshNetworks};

use crate::auto_address::{AutoAddresses, Claim};
use crate::config::{Config, DestinationRule, VirtualService};
use crate::credential::Credential;
use crate::delta::Delta;
use crate::endpoint::{Locality, Slice};
use crate::event::{Event, Object};
use crate::hostname::resolve_host;
use crate::index::Index;
use crate::ingress::Ingress;
use crate::key_set::KeysBy;
use crate::name::ObjectName;
use crate::network::{GatewayNode, GatewayService};
use crate::pod::{Pod, PodPhase};
use crate::service::Service;
use crate::world::World;

/// What a store needs to know.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// Domain of service names. Default `cluster.local`.
    pub domain: String,
    /// Namespace of the ConfigMap with mesh config. Default `istio-system`.
    pub root_namespace: String,
    /// Mesh config until that ConfigMap is seen, and when it is deleted.
    pub mesh: MeshConfig,
    /// Id of the cluster. Default `Kubernetes`.
    pub cluster_id: String,
    /// Who fetches the keys of token issuers.
    pub keys_by: KeysBy,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            domain: "cluster.local".to_owned(),
            root_namespace: "istio-system".to_owned(),
            mesh: MeshConfig::default(),
            cluster_id: "Kubernetes".to_owned(),
            keys_by: KeysBy::default(),
        }
    }
}

/// Takes objects in any order and keeps the [`World`] they make. What the world is depends only on the objects, not on
/// the order in which they came.
#[derive(Debug)]
pub struct Store {
    options: StoreOptions,
    world: World,
    index_is_stale: bool,
    slices: BTreeMap<ObjectName, Slice>,
    slices_of_service: BTreeMap<ObjectName, BTreeSet<ObjectName>>,
    services_of_pod: BTreeMap<ObjectName, BTreeMap<ObjectName, usize>>,
    /// As given, to build services anew when mesh config changes their default visibility.
    raw_services: BTreeMap<ObjectName, Box<core::Service>>,
    /// Kubernetes Services by namespace and host name.
    kubernetes: BTreeMap<ObjectName, Arc<Service>>,
    /// The ServiceEntries that claim a host, by its namespace and name.
    claims: BTreeMap<ObjectName, BTreeSet<ObjectName>>,
    /// ServiceEntries that select workloads.
    selecting: BTreeSet<ObjectName>,
    auto_addresses: AutoAddresses,
    /// The claim each host with an automatic address has on it.
    auto_claims: BTreeMap<ObjectName, Claim>,
    mesh_networks: MeshNetworks,
    /// Services by which gateways of networks may be reached.
    gateway_services: BTreeMap<ObjectName, GatewayService>,
    /// Nodes by which gateways of networks may be reached.
    gateway_nodes: BTreeMap<Arc<str>, GatewayNode>,
    /// Addresses of gateways' names.
    gateway_names: BTreeMap<Arc<str>, Vec<IpAddr>>,
}

impl Store {
    /// An empty store.
    pub fn new(options: StoreOptions) -> Self {
        let world = World::new(&options.domain, options.mesh.clone(), options.keys_by);
        Self {
            options,
            world,
            index_is_stale: false,
            slices: BTreeMap::new(),
            slices_of_service: BTreeMap::new(),
            services_of_pod: BTreeMap::new(),
            raw_services: BTreeMap::new(),
            kubernetes: BTreeMap::new(),
            claims: BTreeMap::new(),
            selecting: BTreeSet::new(),
            auto_addresses: AutoAddresses::default(),
            auto_claims: BTreeMap::new(),
            mesh_networks: MeshNetworks::default(),
            gateway_services: BTreeMap::new(),
            gateway_nodes: BTreeMap::new(),
            gateway_names: BTreeMap::new(),
        }
    }

    /// The current world.
    pub fn world(&mut self) -> Arc<World> {
        if self.index_is_stale {
            self.world.index = Arc::new(Index::build(&self.world));
            self.index_is_stale = false;
        }
        Arc::new(self.world.clone())
    }

    /// Takes over one change.
    pub fn apply(&mut self, event: Event) -> Delta {
        let mut delta = Delta::default();
        match event {
            Event::Applied(object) => self.applied(object, &mut delta),
            Event::Deleted(object) => self.deleted(&object, &mut delta),
            Event::Keys(set) => {
                let set = Arc::new(set);
                if self.world.key_sets.get(&set.source) != Some(&set) {
                    delta.key_sets.insert(set.source.clone());
                    self.world.key_sets.insert(set.source.clone(), set);
                }
            }
            Event::GatewayName { name, addresses } => self.set_gateway_name(name, addresses, &mut delta),
            Event::NoKeys(source) => {
                if self.world.key_sets.remove(&source).is_some() {
                    delta.key_sets.insert(source);
                }
            }
        }
        if !delta.is_empty() {
            self.world.version += 1;
        }
        delta
    }

    fn applied(&mut self, object: Object, delta: &mut Delta) {
        match object {
            Object::Service(service) => {
                self.set_service(ObjectName::of(&service.metadata), Some(service), delta)
            }
            Object::EndpointSlice(slice) => {
                self.set_slice(&ObjectName::of(&slice.metadata), Slice::new(&slice), delta);
            }
            Object::Pod(pod) => {
                self.set_pod(ObjectName::of(&pod.metadata), Some(Arc::new(Pod::new(&pod))), delta)
            }
            Object::Namespace(namespace) => {
                let name: Arc<str> = namespace.metadata.name.unwrap_or_default().into();
                let labels = Arc::new(namespace.metadata.labels.unwrap_or_default());
                if self.world.namespaces.get(&name) != Some(&labels) {
                    self.world.namespaces.insert(name.clone(), labels);
                    self.note_system_namespace(&name, delta);
                    delta.namespaces.insert(name);
                }
            }
            Object::Node(node) => {
                let name = node.metadata.name.as_deref().unwrap_or_default();
                self.set_gateway_node(name, GatewayNode::new(&node), delta);
                let labels = node.metadata.labels.unwrap_or_default();
                self.set_node(
                    node.metadata.name.unwrap_or_default().into(),
                    Some(Locality::of_node(&labels)),
                    delta,
                );
            }
            Object::ConfigMap(map) => {
                if self.is_mesh_config(&map) {
                    let text = map.data.as_ref().and_then(|data| data.get(CONFIG_KEY)).map(String::as_str);
                    self.set_mesh(text, delta);
                    let text = map.data.as_ref().and_then(|data| data.get(NETWORKS_KEY)).map(String::as_str);
                    self.set_mesh_networks(text.unwrap_or_default(), delta);
                }
            }
            Object::AuthorizationPolicy(object) => {
                replace(&mut self.world.authorization_policies, *object, &mut delta.authorization_policies);
            }
            Object::Sidecar(object) => {
                self.index_is_stale |= replace(&mut self.world.sidecars, *object, &mut delta.sidecars);
            }
            Object::PeerAuthentication(object) => {
                replace(&mut self.world.peer_authentications, *object, &mut delta.peer_authentications);
            }
            Object::RequestAuthentication(object) => {
                replace(&mut self.world.request_authentications, *object, &mut delta.request_authentications);
            }
            Object::Ingress(object) => {
                self.set_ingress(ObjectName::of(&object.metadata), Some(Ingress::new(&object)), delta);
            }
            Object::IngressClass(object) => {
                let controller = object.spec.and_then(|spec| spec.controller).unwrap_or_default();
                let name = object.metadata.name.unwrap_or_default();
                self.set_ingress_class(&name, Some(controller.into()), delta);
            }
            Object::Secret(secret) => {
                self.set_credential(ObjectName::of(&secret.metadata), Credential::new(&secret), delta)
            }
            Object::Gateway(object) => {
                replace(&mut self.world.gateways, *object, &mut delta.gateways);
            }
            Object::VirtualService(object) => {
                let config = Arc::new(Config::new(*object));
                if self.world.virtual_services.get(&config.name) != Some(&config) {
                    self.note_virtual_service(&config, delta);
                    if let Some(old) = self.world.virtual_services.insert(config.name.clone(), config) {
                        self.note_virtual_service(&old, delta);
                    }
                }
            }
            Object::DestinationRule(object) => {
                let config = Arc::new(Config::new(*object));
                if self.world.destination_rules.get(&config.name) != Some(&config) {
                    self.note_rule(&config, delta);
                    if let Some(old) = self.world.destination_rules.insert(config.name.clone(), config) {
                        self.note_rule(&old, delta);
                    }
                }
            }
            Object::ServiceEntry(object) => {
                let config = Arc::new(Config::new(*object));
                self.set_service_entry(config.name.clone(), Some(config), delta);
            }
            Object::WorkloadEntry(object) => {
                let config = Arc::new(Config::new(*object));
                self.set_workload_entry(config.name.clone(), Some(config), delta);
            }
            Object::WorkloadGroup(object) => {
                replace(&mut self.world.workload_groups, *object, &mut delta.workload_groups);
            }
        }
    }

    fn deleted(&mut self, object: &Object, delta: &mut Delta) {
        match object {
            Object::Service(service) => self.set_service(ObjectName::of(&service.metadata), None, delta),
            Object::EndpointSlice(slice) => self.set_slice(&ObjectName::of(&slice.metadata), None, delta),
            Object::Pod(pod) => self.set_pod(ObjectName::of(&pod.metadata), None, delta),
            Object::Namespace(namespace) => {
                let name: Arc<str> = namespace.metadata.name.as_deref().unwrap_or_default().into();
                if self.world.namespaces.remove(&name).is_some() {
                    self.note_system_namespace(&name, delta);
                    delta.namespaces.insert(name);
                }
            }
            Object::Node(node) => {
                self.set_gateway_node(node.metadata.name.as_deref().unwrap_or_default(), None, delta);
                self.set_node(node.metadata.name.as_deref().unwrap_or_default().into(), None, delta);
            }
            Object::ConfigMap(map) => {
                if self.is_mesh_config(map) {
                    let default = self.options.mesh.clone();
                    self.replace_mesh(default, delta);
                    self.set_mesh_networks("", delta);
                }
            }
            Object::AuthorizationPolicy(object) => {
                remove(
                    &mut self.world.authorization_policies,
                    &object.metadata,
                    &mut delta.authorization_policies,
                );
            }
            Object::Sidecar(object) => {
                self.index_is_stale |=
                    remove(&mut self.world.sidecars, &object.metadata, &mut delta.sidecars);
            }
            Object::PeerAuthentication(object) => {
                remove(
                    &mut self.world.peer_authentications,
                    &object.metadata,
                    &mut delta.peer_authentications,
                );
            }
            Object::RequestAuthentication(object) => {
                remove(
                    &mut self.world.request_authentications,
                    &object.metadata,
                    &mut delta.request_authentications,
                );
            }
            Object::Ingress(object) => self.set_ingress(ObjectName::of(&object.metadata), None, delta),
            Object::IngressClass(object) => {
                self.set_ingress_class(object.metadata.name.as_deref().unwrap_or_default(), None, delta);
            }
            Object::Secret(secret) => self.set_credential(ObjectName::of(&secret.metadata), None, delta),
            Object::Gateway(object) => {
                remove(&mut self.world.gateways, &object.metadata, &mut delta.gateways);
            }
            Object::VirtualService(object) => {
                if let Some(old) = self.world.virtual_services.remove(&ObjectName::of(&object.metadata)) {
                    self.note_virtual_service(&old, delta);
                }
            }
            Object::DestinationRule(object) => {
                if let Some(old) = self.world.destination_rules.remove(&ObjectName::of(&object.metadata)) {
                    self.note_rule(&old, delta);
                }
            }
            Object::ServiceEntry(object) => {
                self.set_service_entry(ObjectName::of(&object.metadata), None, delta);
            }
            Object::WorkloadEntry(object) => {
                self.set_workload_entry(ObjectName::of(&object.metadata), None, delta);
            }
            Object::WorkloadGroup(object) => {
                remove(&mut self.world.workload_groups, &object.metadata, &mut delta.workload_groups);
            }
        }
    }

    fn note_virtual_service(&mut self, service: &Arc<VirtualService>, delta: &mut Delta) {
        delta.virtual_services.insert(service.name.clone());
        delta.virtual_service_states.push(service.clone());
        self.index_is_stale = true;
    }

    /// Secrets that hold nothing of use are not kept.
    fn set_credential(&mut self, name: ObjectName, new: Option<Credential>, delta: &mut Delta) {
        if self.world.credentials.get(&name).map(|known| &**known) == new.as_ref() {
            return;
        }
        delta.credentials.insert(name.clone());
        match new {
            Some(new) => self.world.credentials.insert(name, Arc::new(new)),
            None => self.world.credentials.remove(&name),
        };
    }

    fn note_rule(&mut self, rule: &DestinationRule, delta: &mut Delta) {
        delta.destination_rules.insert(rule.name.clone());
        let host = resolve_host(&rule.spec.host, &rule.name.namespace, &self.world.domain);
        delta.destination_rule_hosts.insert(host);
        self.index_is_stale = true;
    }

    fn set_service(&mut self, name: ObjectName, object: Option<Box<core::Service>>, delta: &mut Delta) {
        let new = object.as_ref().map(|object| {
            Arc::new(Service::new(object, &self.world.domain, &self.world.mesh.default_service_export_to))
        });
        match object {
            Some(object) => {
                self.set_load_balancer(&name, Some(&object), delta);
                self.set_gateway_service(&name, GatewayService::new(&object), delta);
                self.raw_services.insert(name.clone(), object)
            }
            None => {
                self.set_load_balancer(&name, None, delta);
                self.set_gateway_service(&name, None, delta);
                self.raw_services.remove(&name)
            }
        };
        let key = self.key_of(&name);
        let old = match new {
            Some(service) => self.kubernetes.insert(key.clone(), service),
            None => self.kubernetes.remove(&key),
        };
        if self.kubernetes.get(&key) != old.as_ref() {
            self.rebuild_service(&key, delta);
            self.note_named_ports(&name, delta);
        }
    }

    /// What identifies the service of a Kubernetes Service.
    fn key_of(&self, name: &ObjectName) -> ObjectName {
        let host = format!("{}.{}.svc.{}", name.name, name.namespace, self.world.domain);
        ObjectName { namespace: name.namespace.clone(), name: host.into() }
    }

    fn set_slice(&mut self, name: &ObjectName, new: Option<Slice>, delta: &mut Delta) {
        if self.slices.get(name) == new.as_ref() {
            return;
        }
        let mut touched = BTreeSet::new();
        if let Some(old) = self.slices.remove(name) {
            for pod in old.pods() {
                self.unlink_pod(pod, &old.service);
            }
            if let Some(names) = self.slices_of_service.get_mut(&old.service) {
                names.remove(name);
                if names.is_empty() {
                    self.slices_of_service.remove(&old.service);
                }
            }
            touched.insert(old.service);
        }
        if let Some(new) = new {
            for pod in new.pods() {
                *self
                    .services_of_pod
                    .entry(pod.clone())
                    .or_default()
                    .entry(new.service.clone())
                    .or_default() += 1;
            }
            self.slices_of_service.entry(new.service.clone()).or_default().insert(name.clone());
            touched.insert(new.service.clone());
            self.slices.insert(name.clone(), new);
        }
        for service in touched {
            self.rebuild_endpoints(&self.key_of(&service), delta);
        }
    }

    fn unlink_pod(&mut self, pod: &ObjectName, service: &ObjectName) {
        let Some(services) = self.services_of_pod.get_mut(pod) else { return };
        if let Some(count) = services.get_mut(service) {
            *count -= 1;
            if *count == 0 {
                services.remove(service);
            }
        }
        if services.is_empty() {
            self.services_of_pod.remove(pod);
        }
    }

    fn set_pod(&mut self, name: ObjectName, new: Option<Arc<Pod>>, delta: &mut Delta) {
        let old = self.world.pods.get(&name).cloned();
        if old == new {
            return;
        }
        delta.pods.insert(name.clone());
        for address in old.iter().flat_map(|pod| &pod.addresses) {
            self.world.addresses.remove(&(*address, name.clone()));
        }
        match &new {
            Some(pod) => {
                if pod.phase == PodPhase::Alive {
                    self.world.addresses.extend(pod.addresses.iter().map(|address| (*address, name.clone())));
                }
                self.world.pods.insert(name.clone(), pod.clone());
            }
            None => {
                self.world.pods.remove(&name);
            }
        }
        let services = self.services_of_pod.get(&name).into_iter().flat_map(BTreeMap::keys);
        let mut touched: BTreeSet<ObjectName> = services.map(|service| self.key_of(service)).collect();
        let labels = |pod: &Option<Arc<Pod>>| pod.as_ref().map(|pod| pod.labels.clone());
        for labels in [labels(&old), labels(&new)].into_iter().flatten() {
            touched.extend(self.entries_selecting(&name.namespace, |key| labels.get(key)));
        }
        for key in touched {
            self.rebuild_endpoints(&key, delta);
        }
    }

    fn set_node(&mut self, node: Arc<str>, locality: Option<Locality>, delta: &mut Delta) {
        if self.world.nodes.get(&node) == locality.as_ref() {
            return;
        }
        delta.nodes.insert(node.clone());
        match locality {
            Some(locality) => self.world.nodes.insert(node, locality),
            None => self.world.nodes.remove(&node),
        };
        // Nodes rarely come, go or move; going through all services then is simpler than an index kept at all times.
        self.rebuild_all_endpoints(delta);
    }

    fn rebuild_all_endpoints(&mut self, delta: &mut Delta) {
        let keys: Vec<_> = self.world.endpoints.keys().cloned().collect();
        for key in keys {
            self.rebuild_endpoints(&key, delta);
        }
    }
}

mod ingress;
mod mesh;
mod networks;
mod registry;

/// Puts a configuration in the place of what has its name, and notes the change; false when there is none.
fn replace<S: lateen_api::Kind>(
    configs: &mut OrdMap<ObjectName, Arc<Config<S>>>,
    object: lateen_api::Object<S>,
    changed: &mut BTreeSet<ObjectName>,
) -> bool {
    let config = Arc::new(Config::new(object));
    if configs.get(&config.name) == Some(&config) {
        return false;
    }
    changed.insert(config.name.clone());
    configs.insert(config.name.clone(), config);
    true
}

/// Removes the configuration of a name, and notes the change; false when there was none.
fn remove<S>(
    configs: &mut OrdMap<ObjectName, Arc<Config<S>>>,
    metadata: &ObjectMeta,
    changed: &mut BTreeSet<ObjectName>,
) -> bool {
    let name = ObjectName::of(metadata);
    let there = configs.remove(&name).is_some();
    if there {
        changed.insert(name);
    }
    there
}

#[cfg(test)]
mod tests;
