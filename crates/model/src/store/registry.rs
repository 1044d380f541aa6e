//! Services and endpoints, made of Kubernetes Services, ServiceEntries, WorkloadEntries and pods. What is made anew is one
//! host of one namespace at a time.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Store;
use crate::config::{ServiceEntry, WorkloadEntry};
use crate::delta::Delta;
use crate::endpoint::{ServiceEndpoints, add_slice};
use crate::hostname::Hostname;
use crate::name::ObjectName;
use crate::service::{Registry, Service};
use crate::service_entry::{self, Workloads, wants_address};
use crate::workload_entry;

impl Store {
    pub(super) fn set_service_entry(
        &mut self,
        name: ObjectName,
        new: Option<Arc<ServiceEntry>>,
        delta: &mut Delta,
    ) {
        let old = self.world.service_entries.get(&name).cloned();
        if old == new {
            return;
        }
        delta.service_entries.insert(name.clone());
        let mut touched = BTreeSet::new();
        for key in old.iter().flat_map(|entry| keys(entry)) {
            if let Some(claims) = self.claims.get_mut(&key) {
                claims.remove(&name);
                if claims.is_empty() {
                    self.claims.remove(&key);
                }
            }
            touched.insert(key);
        }
        self.selecting.remove(&name);
        match new {
            Some(entry) => {
                for key in keys(&entry) {
                    self.claims.entry(key.clone()).or_default().insert(name.clone());
                    touched.insert(key);
                }
                if entry.spec.workload_selector.is_some() {
                    self.selecting.insert(name.clone());
                }
                self.world.service_entries.insert(name, entry);
            }
            None => {
                self.world.service_entries.remove(&name);
            }
        }
        for key in touched {
            self.rebuild_service(&key, delta);
        }
    }

    pub(super) fn set_workload_entry(
        &mut self,
        name: ObjectName,
        new: Option<Arc<WorkloadEntry>>,
        delta: &mut Delta,
    ) {
        let old = self.world.workload_entries.get(&name).cloned();
        if old == new {
            return;
        }
        delta.workload_entries.insert(name.clone());
        match &new {
            Some(entry) => self.world.workload_entries.insert(name.clone(), entry.clone()),
            None => self.world.workload_entries.remove(&name),
        };
        let mut touched = BTreeSet::new();
        for entry in [old, new].into_iter().flatten() {
            let label = |key: &str| entry.labels.get(key).or_else(|| entry.spec.labels.get(key));
            touched.extend(self.entries_selecting(&name.namespace, label));
            let from = ObjectName::new(&name.namespace, "");
            let services = self.kubernetes.range(from..);
            let selecting = services
                .take_while(|(key, _)| key.namespace == name.namespace)
                .filter(|(_, service)| {
                    !service.selector.is_empty() && workload_entry::is_selected(&entry, &service.selector)
                })
                .map(|(key, _)| key.clone());
            touched.extend(selecting);
        }
        for key in touched {
            self.rebuild_endpoints(&key, delta);
        }
    }

    /// The hosts of ServiceEntries in a namespace that select a workload with these labels.
    pub(super) fn entries_selecting<'a>(
        &self,
        namespace: &Arc<str>,
        label: impl Fn(&str) -> Option<&'a String>,
    ) -> Vec<ObjectName> {
        let from = ObjectName::new(namespace, "");
        let in_namespace = self.selecting.range(from..).take_while(|name| name.namespace == *namespace);
        in_namespace
            .filter_map(|name| self.world.service_entries.get(name))
            .filter(|entry| {
                let selector = entry.spec.workload_selector.iter().flat_map(|selector| &selector.labels);
                selector.into_iter().all(|(key, value)| label(key) == Some(value))
            })
            .flat_map(|entry| keys(entry))
            .collect()
    }

    /// Makes the service of a host in a namespace anew, and its endpoints. Slices may have come before their service, and
    /// outlive it for a moment.
    pub(super) fn rebuild_service(&mut self, key: &ObjectName, delta: &mut Delta) {
        for moved in self.claim_address(key) {
            self.replace_service(&moved, delta);
        }
        self.replace_service(key, delta);
        self.rebuild_endpoints(key, delta);
    }

    /// Gives a host an automatic address or takes it back; the other hosts whose address changed by it.
    fn claim_address(&mut self, key: &ObjectName) -> Vec<ObjectName> {
        let oldest = self.entries_of(key).first().copied().cloned();
        let entry = oldest.filter(|_| !self.kubernetes.contains_key(key));
        let new =
            entry.filter(|entry| wants_address(entry, &key.name)).map(|entry| (entry.created, key.clone()));
        let old = self.auto_claims.get(key).cloned();
        if old == new {
            return Vec::new();
        }
        let mut moved = Vec::new();
        if let Some(old) = old {
            moved.extend(self.auto_addresses.remove(&old));
            self.auto_claims.remove(key);
        }
        if let Some(new) = new {
            moved.extend(self.auto_addresses.insert(new.clone()));
            self.auto_claims.insert(key.clone(), new);
        }
        moved.retain(|other| other != key);
        moved
    }

    /// The ServiceEntries that claim a host, oldest first, then by name.
    fn entries_of(&self, key: &ObjectName) -> Vec<&Arc<ServiceEntry>> {
        let names = self.claims.get(key).into_iter().flatten();
        let mut entries: Vec<_> = names.filter_map(|name| self.world.service_entries.get(name)).collect();
        entries.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
        entries
    }

    fn replace_service(&mut self, key: &ObjectName, delta: &mut Delta) {
        let new = self.kubernetes.get(key).cloned().or_else(|| {
            let default = &self.world.mesh.default_service_export_to;
            let mut service = service_entry::service(&key.name, &self.entries_of(key), default)?;
            service.auto_address = self.auto_claims.get(key).and_then(|claim| self.auto_addresses.get(claim));
            Some(Arc::new(service))
        });
        if self.world.services_by_key.get(key) == new.as_ref() {
            return;
        }
        delta.services.insert(key.name.clone());
        delta.service_namespaces.insert(key.namespace.clone());
        match &new {
            Some(service) => self.world.services_by_key.insert(key.clone(), service.clone()),
            None => self.world.services_by_key.remove(key),
        };
        self.replace_of_host(&key.name, &key.namespace, new);
    }

    fn replace_of_host(&mut self, host: &Hostname, namespace: &str, new: Option<Arc<Service>>) {
        let of_host = self.world.services.get(host).map(|services| services.to_vec()).unwrap_or_default();
        let others = of_host.into_iter().filter(|service| *service.name.namespace != *namespace);
        let mut services: Vec<Arc<Service>> = others.chain(new).collect();
        services.sort_by(|a, b| order(a).cmp(&order(b)));
        if services.is_empty() {
            self.world.services.remove(host);
        } else {
            self.world.services.insert(host.clone(), services.into());
        }
    }

    pub(super) fn rebuild_endpoints(&mut self, key: &ObjectName, delta: &mut Delta) {
        let new = self.endpoints_of(key).map(Arc::new);
        if self.world.endpoints.get(key) == new.as_ref() {
            return;
        }
        delta.endpoints.insert(key.name.clone());
        match new {
            Some(endpoints) => self.world.endpoints.insert(key.clone(), endpoints),
            None => self.world.endpoints.remove(key),
        };
    }

    /// The endpoints of a service: those of its Kubernetes Service, and of every ServiceEntry of its namespace for the host.
    fn endpoints_of(&self, key: &ObjectName) -> Option<ServiceEndpoints> {
        let (world, places) = (&self.world, &self.world.networks.places);
        world.services_by_key.get(key)?;
        let mut by_port = BTreeMap::new();
        let mut listed = false;
        if let Some(service) = self.kubernetes.get(key) {
            let names = self.slices_of_service.get(&service.name);
            listed = names.is_some();
            for slice in names.into_iter().flatten().filter_map(|name| self.slices.get(name)) {
                add_slice(
                    &mut by_port,
                    slice,
                    |pod| world.pods.get(pod),
                    |node| world.nodes.get(node),
                    places,
                );
            }
            let entries = self.workload_entries_of(&key.namespace);
            workload_entry::add_selected(&mut by_port, service, entries, places);
        }
        for entry in self.entries_of(key) {
            let workloads = || Workloads {
                pods: self.pods_of(&key.namespace).collect(),
                entries: self.workload_entries_of(&key.namespace).collect(),
            };
            let locality = |node: &str| world.nodes.get(node);
            service_entry::add_endpoints(&mut by_port, &key.name, entry, workloads, locality, places);
        }
        (listed || !by_port.is_empty()).then(|| ServiceEndpoints::new(key.name.clone(), by_port))
    }

    fn workload_entries_of(&self, namespace: &Arc<str>) -> impl Iterator<Item = &Arc<WorkloadEntry>> {
        let from = ObjectName::new(namespace, "");
        let all = self.world.workload_entries.range(from..);
        all.take_while(move |(name, _)| name.namespace == *namespace).map(|(_, entry)| entry)
    }

    fn pods_of(&self, namespace: &Arc<str>) -> impl Iterator<Item = &Arc<crate::pod::Pod>> {
        let from = ObjectName::new(namespace, "");
        let all = self.world.pods.range(from..);
        all.take_while(move |(name, _)| name.namespace == *namespace).map(|(_, pod)| pod)
    }
}

/// Namespace and name of each host of a ServiceEntry. Hosts are compared without regard to case.
fn keys(entry: &ServiceEntry) -> impl Iterator<Item = ObjectName> {
    let namespace = &entry.name.namespace;
    entry
        .spec
        .hosts
        .iter()
        .map(|host| ObjectName { namespace: namespace.clone(), name: host.to_ascii_lowercase().into() })
}

/// Of the services of one host the Kubernetes Service goes first, whatever its age, so that nobody takes a host before its
/// Service is made; then the oldest.
fn order(service: &Service) -> (Registry, i64, &str) {
    (service.registry, service.created, &service.name.namespace)
}
