//! The immutable snapshot, and lookups in it.
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use k8s_openapi::api::core::v1::LoadBalancerIngress;
use lateen_api::MeshConfig;
use lateen_api::networking::virtual_service::MESH_GATEWAY;

use crate::config::{
    AuthorizationPolicy, DestinationRule, Gateway, PeerAuthentication, RequestAuthentication, ServiceEntry,
    Sidecar, VirtualService, WorkloadEntry, WorkloadGroup,
};
use crate::credential::Credential;
use crate::delegate::DelegateProblem;
use crate::endpoint::{Locality, ServiceEndpoints};
use crate::hostname::{Hostname, resolve_host};
use crate::index::Index;
use crate::ingress::Ingress;
use crate::key_set::{KeySet, KeySource, KeysBy};
use crate::name::ObjectName;
use crate::network::Networks;
use crate::pod::{Labels, Pod, labels_match};
use crate::rule_index::Client;
use crate::service::{Registry, Service, ServicePort, TargetPort};
use crate::visibility::Visibility;
use crate::workload_entry;

/// A snapshot of everything the mesh's configuration is made of. Cloning costs a few reference counts.
#[derive(Clone, Debug)]
pub struct World {
    pub(crate) version: u64,
    pub(crate) domain: Arc<str>,
    pub(crate) mesh: Arc<MeshConfig>,
    /// The services of a host, one for each namespace that defines it: the Kubernetes Service first, then the oldest.
    pub(crate) services: OrdMap<Hostname, Arc<[Arc<Service>]>>,
    /// The same by namespace and host.
    pub(crate) services_by_key: OrdMap<ObjectName, Arc<Service>>,
    /// By namespace and host of the service.
    pub(crate) endpoints: OrdMap<ObjectName, Arc<ServiceEndpoints>>,
    pub(crate) pods: OrdMap<ObjectName, Arc<Pod>>,
    /// Addresses of live pods; one address may be claimed twice while a pod is replaced.
    pub(crate) addresses: OrdSet<(IpAddr, ObjectName)>,
    pub(crate) nodes: OrdMap<Arc<str>, Locality>,
    pub(crate) namespaces: OrdMap<Arc<str>, Labels>,
    pub(crate) networks: Arc<Networks>,
    pub(crate) virtual_services: OrdMap<ObjectName, Arc<VirtualService>>,
    pub(crate) destination_rules: OrdMap<ObjectName, Arc<DestinationRule>>,
    pub(crate) gateways: OrdMap<ObjectName, Arc<Gateway>>,
    pub(crate) authorization_policies: OrdMap<ObjectName, Arc<AuthorizationPolicy>>,
    pub(crate) request_authentications: OrdMap<ObjectName, Arc<RequestAuthentication>>,
    pub(crate) key_sets: OrdMap<KeySource, Arc<KeySet>>,
    pub(crate) keys_by: KeysBy,
    pub(crate) sidecars: OrdMap<ObjectName, Arc<Sidecar>>,
    pub(crate) peer_authentications: OrdMap<ObjectName, Arc<PeerAuthentication>>,
    pub(crate) ingresses: OrdMap<ObjectName, Arc<Ingress>>,
    /// Controllers of IngressClasses.
    pub(crate) ingress_classes: OrdMap<Arc<str>, Arc<str>>,
    /// Addresses of services of type LoadBalancer.
    pub(crate) load_balancers: OrdMap<ObjectName, Arc<[LoadBalancerIngress]>>,
    pub(crate) credentials: OrdMap<ObjectName, Arc<Credential>>,
    pub(crate) service_entries: OrdMap<ObjectName, Arc<ServiceEntry>>,
    pub(crate) workload_entries: OrdMap<ObjectName, Arc<WorkloadEntry>>,
    pub(crate) workload_groups: OrdMap<ObjectName, Arc<WorkloadGroup>>,
    pub(crate) index: Arc<Index>,
}

/// What identifies a workload to the lookups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Pod name, when it is a pod.
    pub pod: Option<String>,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// Labels.
    pub labels: Labels,
}

/// A service port that leads to a workload.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceTarget {
    /// The service.
    pub service: Arc<Service>,
    /// Its port.
    pub port: ServicePort,
    /// The workload's port.
    pub target_port: u16,
}

/// How many aliases of aliases are followed.
const ALIAS_DEPTH: usize = 10;

impl World {
    pub(crate) fn new(domain: &str, mesh: MeshConfig, keys_by: KeysBy) -> Self {
        Self {
            version: 0,
            domain: domain.into(),
            mesh: Arc::new(mesh),
            services: OrdMap::new(),
            services_by_key: OrdMap::new(),
            endpoints: OrdMap::new(),
            pods: OrdMap::new(),
            addresses: OrdSet::new(),
            nodes: OrdMap::new(),
            namespaces: OrdMap::new(),
            networks: Arc::default(),
            virtual_services: OrdMap::new(),
            destination_rules: OrdMap::new(),
            gateways: OrdMap::new(),
            authorization_policies: OrdMap::new(),
            request_authentications: OrdMap::new(),
            key_sets: OrdMap::new(),
            keys_by,
            sidecars: OrdMap::new(),
            peer_authentications: OrdMap::new(),
            ingresses: OrdMap::new(),
            ingress_classes: OrdMap::new(),
            load_balancers: OrdMap::new(),
            credentials: OrdMap::new(),
            service_entries: OrdMap::new(),
            workload_entries: OrdMap::new(),
            workload_groups: OrdMap::new(),
            index: Arc::default(),
        }
    }

    /// Counts up with every change.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Domain of service names, for example `cluster.local`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Who fetches the keys of token issuers.
    pub fn keys_by(&self) -> KeysBy {
        self.keys_by
    }

    /// Mesh config.
    pub fn mesh(&self) -> &Arc<MeshConfig> {
        &self.mesh
    }

    /// All services by host name. One host may be defined in several namespaces: see [`World::service_for`].
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values().flat_map(|services| services.iter())
    }

    /// The services that clients in `namespace` may use, one for each host, by host name.
    pub fn visible_services(&self, namespace: &str) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values().filter_map(move |services| preferred(services, namespace))
    }

    /// The service with this fully qualified host name; where several namespaces define it, the Kubernetes Service, else the
    /// oldest.
    pub fn service(&self, hostname: &str) -> Option<&Arc<Service>> {
        self.services.get(hostname)?.first()
    }

    /// The service that clients in `namespace` mean by this fully qualified host name: of those they may use the Kubernetes
    /// Service, else their own namespace's, else the oldest.
    pub fn service_for(&self, hostname: &str, namespace: &str) -> Option<&Arc<Service>> {
        preferred(self.services.get(hostname)?, namespace)
    }

    /// The service of this host that a namespace defines.
    pub fn service_in(&self, hostname: &str, namespace: &str) -> Option<&Arc<Service>> {
        self.services.get(hostname)?.iter().find(|service| *service.name.namespace == *namespace)
    }

    /// The service a rule in `namespace` means by `host`. Who names an alias means the service behind it.
    pub fn resolve_service(&self, host: &str, namespace: &str) -> Option<&Arc<Service>> {
        let host = resolve_host(host, namespace, &self.domain);
        let named = self.service_for(&host, namespace).or_else(|| self.service(&host))?;
        Some(self.behind_alias(named, namespace))
    }

    /// The service that an alias (`ExternalName`) stands for, as `namespace` sees it; the alias itself when that is outside the
    /// mesh, and any other service itself.
    pub fn behind_alias<'a>(&'a self, service: &'a Arc<Service>, namespace: &str) -> &'a Arc<Service> {
        let mut meant = service;
        for _ in 0..ALIAS_DEPTH {
            let Some(alias) = meant.alias_of() else { return meant };
            let Some(next) = self.service_for(alias, namespace) else { break };
            meant = next;
        }
        if meant.alias_of().is_some() { service } else { meant }
    }

    /// The endpoints of a service.
    pub fn endpoints(&self, service: &Service) -> Option<&Arc<ServiceEndpoints>> {
        self.endpoints.get(&service.key())
    }

    /// All ServiceEntries by name.
    pub fn service_entries(&self) -> impl Iterator<Item = &Arc<ServiceEntry>> {
        self.service_entries.values()
    }

    /// All WorkloadEntries by name.
    pub fn workload_entries(&self) -> impl Iterator<Item = &Arc<WorkloadEntry>> {
        self.workload_entries.values()
    }

    /// All WorkloadGroups by name.
    pub fn workload_groups(&self) -> impl Iterator<Item = &Arc<WorkloadGroup>> {
        self.workload_groups.values()
    }

    /// The pod of this name.
    pub fn pod(&self, name: &ObjectName) -> Option<&Arc<Pod>> {
        self.pods.get(name)
    }

    /// The live pod that has this address.
    pub fn pod_at(&self, address: &IpAddr) -> Option<&Arc<Pod>> {
        let from = (*address, ObjectName::new("", ""));
        let (found, name) = self.addresses.range(from..).next()?;
        (found == address).then(|| self.pods.get(name)).flatten()
    }

    /// All pods by name.
    pub fn pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods.values()
    }

    /// Locality of a node.
    pub fn node_locality(&self, node: &str) -> Option<&Locality> {
        self.nodes.get(node)
    }

    /// Labels of a namespace.
    pub fn namespace_labels(&self, namespace: &str) -> Option<&Labels> {
        self.namespaces.get(namespace)
    }

    /// The networks of the mesh.
    pub fn networks(&self) -> &Arc<Networks> {
        &self.networks
    }

    /// All VirtualServices by name.
    pub fn virtual_services(&self) -> impl Iterator<Item = &Arc<VirtualService>> {
        self.virtual_services.values()
    }

    /// All DestinationRules by name.
    pub fn destination_rules(&self) -> impl Iterator<Item = &Arc<DestinationRule>> {
        self.destination_rules.values()
    }

    /// A VirtualService as it was written.
    pub fn virtual_service(&self, name: &ObjectName) -> Option<&Arc<VirtualService>> {
        self.virtual_services.get(name)
    }

    /// A DestinationRule as it was written.
    pub fn destination_rule_named(&self, name: &ObjectName) -> Option<&Arc<DestinationRule>> {
        self.destination_rules.get(name)
    }

    /// All Gateways by name.
    pub fn gateways(&self) -> impl Iterator<Item = &Arc<Gateway>> {
        self.gateways.values()
    }

    /// All Ingresses by name, served or not.
    pub fn ingresses(&self) -> impl Iterator<Item = &Arc<Ingress>> {
        self.ingresses.values()
    }

    /// Load-balancer addresses of a Kubernetes Service.
    pub fn load_balancer(&self, service: &ObjectName) -> &[LoadBalancerIngress] {
        self.load_balancers.get(service).map(|addresses| &**addresses).unwrap_or_default()
    }

    /// The Gateway of this name.
    pub fn gateway(&self, name: &ObjectName) -> Option<&Arc<Gateway>> {
        self.gateways.get(name)
    }

    /// Whether a VirtualService is visible to proxies in `namespace`.
    pub fn is_visible(&self, service: &VirtualService, namespace: &str) -> bool {
        let default = &self.mesh.default_virtual_service_export_to;
        Visibility::parse(&service.spec.export_to, default, &service.name.namespace).allows(namespace)
    }

    /// Keys of the labels by which rules choose the clients they apply to. Two sidecars of one namespace that agree in these
    /// labels reach the mesh in the same way.
    pub fn selecting_labels(&self) -> &BTreeSet<String> {
        &self.index.selecting_labels
    }

    /// VirtualServices bound to the sidecars (`mesh`) and visible in `namespace`, oldest first, then by name.
    pub fn mesh_virtual_services(&self, namespace: &str) -> Vec<Arc<VirtualService>> {
        self.bound_virtual_services(MESH_GATEWAY, namespace)
    }

    /// VirtualServices bound to a Gateway and visible in `namespace` (of the gateway's pods), oldest first, then by name.
    pub fn gateway_virtual_services(
        &self,
        gateway: &ObjectName,
        namespace: &str,
    ) -> Vec<Arc<VirtualService>> {
        self.bound_virtual_services(&gateway.to_string(), namespace)
    }

    /// What is wrong with the rules of a VirtualService that delegate.
    pub fn delegate_problems(&self, service: &ObjectName) -> &[DelegateProblem] {
        self.index.delegate_problems.get(service).map(Vec::as_slice).unwrap_or_default()
    }

    /// The VirtualServices with HTTP rules for the sidecars (`mesh`) that name this host, oldest first: in a namespace that
    /// sees several, the oldest one is in force.
    pub fn mesh_virtual_services_of(&self, host: &str) -> &[Arc<VirtualService>] {
        self.index.mesh_hosts.get(host).map(Vec::as_slice).unwrap_or_default()
    }

    fn bound_virtual_services(&self, gateway: &str, namespace: &str) -> Vec<Arc<VirtualService>> {
        let bound = self.index.by_gateway.get(gateway).map(Vec::as_slice).unwrap_or_default();
        bound.iter().filter(|service| self.is_visible(service, namespace)).cloned().collect()
    }

    /// As [`Self::gateways_for`], the oldest first.
    pub fn gateways_for_oldest_first(&self, labels: &BTreeMap<String, String>) -> Vec<Arc<Gateway>> {
        let mut gateways = self.gateways_for(labels);
        gateways.sort_by_key(|gateway| (gateway.created, gateway.name.clone()));
        gateways
    }

    /// The credential in a Secret.
    pub fn credential(&self, name: &ObjectName) -> Option<&Arc<Credential>> {
        self.credentials.get(name)
    }

    /// Gateways whose selector matches a proxy's labels, by name. An empty selector matches every gateway proxy.
    pub fn gateways_for(&self, labels: &BTreeMap<String, String>) -> Vec<Arc<Gateway>> {
        self.gateways
            .values()
            .chain(&self.index.ingress_gateways)
            .filter(|gateway| labels_match(&gateway.spec.selector, labels))
            .cloned()
            .collect()
    }

    /// The DestinationRule that a client uses for a host: its own namespace's, else that of the service's namespace, else
    /// the root namespace's, as far as they are exported to it. In one namespace the exact host wins over wildcards, longer
    /// wildcards over shorter ones; several rules for one host are merged, the oldest one's policy is in force.
    pub fn destination_rule(
        &self,
        host: &str,
        client: Client<'_>,
        service_namespace: &str,
    ) -> Option<Arc<DestinationRule>> {
        self.index.rules.find(host, client, service_namespace, &self.mesh.root_namespace)
    }

    /// Whether some workload in `namespace` can reach this subset of a service.
    pub fn has_subset(&self, service: &Service, namespace: &str, subset: &str) -> bool {
        let others = [&*service.name.namespace, self.mesh.root_namespace.as_str()];
        self.index.rules.has_subset(&service.hostname, namespace, others, subset)
    }

    /// The older rules for the same host that this one is merged into.
    pub fn merged_before(&self, rule: &DestinationRule) -> Vec<Arc<DestinationRule>> {
        let host = resolve_host(&rule.spec.host, &rule.name.namespace, &self.domain);
        self.index.rules.older(rule, &host)
    }

    /// The service ports that lead to a workload, by service and port: services of its namespace that select its
    /// labels, and services without selector that list its address.
    pub fn targets_of(&self, workload: &Workload) -> Vec<ServiceTarget> {
        let pod_name = workload.pod.as_deref().map(|name| ObjectName::new(&workload.namespace, name));
        let pod = pod_name.as_ref().and_then(|name| self.pods.get(name));
        let entry = if pod.is_none() { self.workload_entry_of(workload) } else { None };
        let from = ObjectName::new(&workload.namespace, "");
        let mut targets = Vec::new();
        let same_namespace = self.services_by_key.range(from..).map(|(_, service)| service);
        for service in same_namespace.take_while(|service| service.name.namespace == workload.namespace) {
            for port in service.mesh_ports() {
                let target_port = if service.selector.is_empty() {
                    self.listed_port(service, port, workload)
                } else if labels_match(&service.selector, &workload.labels) {
                    match (&port.target, entry) {
                        (_, Some(entry)) => workload_entry::port_of(&entry.spec, port),
                        (TargetPort::Number(number), None) => Some(*number),
                        (TargetPort::Name(name), None) => {
                            pod.and_then(|pod| pod.named_ports.get(name)).copied()
                        }
                    }
                } else {
                    None
                };
                if let Some(target_port) = target_port {
                    targets.push(ServiceTarget { service: service.clone(), port: port.clone(), target_port });
                }
            }
        }
        targets
    }

    /// The WorkloadEntry of a workload that is no pod: the one of its namespace with one of its addresses.
    pub fn workload_entry_of(&self, workload: &Workload) -> Option<&Arc<WorkloadEntry>> {
        let from = ObjectName::new(&workload.namespace, "");
        let of_namespace = self.workload_entries.range(from..).map(|(_, entry)| entry);
        of_namespace.take_while(|entry| entry.name.namespace == workload.namespace).find(|entry| {
            entry.spec.address.parse().is_ok_and(|address| workload.addresses.contains(&address))
        })
    }

    fn listed_port(&self, service: &Service, port: &ServicePort, workload: &Workload) -> Option<u16> {
        let endpoints = self.endpoints(service)?.of_port(&port.name);
        endpoints
            .iter()
            .find(|endpoint| endpoint.address.ip().is_some_and(|ip| workload.addresses.contains(&ip)))
            .map(|endpoint| endpoint.port)
    }
}

/// Of the services of one host, in order of precedence, the one that clients in a namespace mean.
fn preferred<'a>(services: &'a [Arc<Service>], namespace: &str) -> Option<&'a Arc<Service>> {
    let mut visible = services.iter().filter(|service| service.visibility.allows(namespace));
    let first = visible.next()?;
    if first.registry == Registry::Kubernetes || *first.name.namespace == *namespace {
        return Some(first);
    }
    Some(visible.find(|service| *service.name.namespace == *namespace).unwrap_or(first))
}
