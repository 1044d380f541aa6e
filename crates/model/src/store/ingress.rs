//! Ingresses, their classes, and the services they depend on.
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;

use super::Store;
use crate::delta::Delta;
use crate::ingress::Ingress;
use crate::name::ObjectName;

impl Store {
    pub(super) fn set_ingress(&mut self, name: ObjectName, new: Option<Ingress>, delta: &mut Delta) {
        let new = new.map(Arc::new);
        let old = self.world.ingresses.get(&name);
        if old == new.as_ref() {
            return;
        }
        let root = &self.world.mesh.root_namespace;
        delta.gateways.extend(old.or(new.as_ref()).map(|ingress| ingress.gateway_name(root)));
        match new {
            Some(new) => self.world.ingresses.insert(name, new),
            None => self.world.ingresses.remove(&name),
        };
        self.index_is_stale = true;
    }

    pub(super) fn set_ingress_class(&mut self, name: &str, controller: Option<Arc<str>>, delta: &mut Delta) {
        if self.world.ingress_classes.get(name) == controller.as_ref() {
            return;
        }
        match controller {
            Some(controller) => self.world.ingress_classes.insert(name.into(), controller),
            None => self.world.ingress_classes.remove(name),
        };
        self.touch_ingresses(|_| true, delta);
    }

    /// A service changed: Ingresses that name a port of it may mean another number now.
    pub(super) fn note_named_ports(&mut self, service: &ObjectName, delta: &mut Delta) {
        self.touch_ingresses(|ingress| ingress.names_a_port_of(service), delta);
    }

    fn touch_ingresses(&mut self, which: impl Fn(&Ingress) -> bool, delta: &mut Delta) {
        let root = &self.world.mesh.root_namespace;
        let touched = self.world.ingresses.values().filter(|ingress| which(ingress));
        let before = delta.gateways.len();
        delta.gateways.extend(touched.map(|ingress| ingress.gateway_name(root)));
        self.index_is_stale |= delta.gateways.len() > before;
    }

    pub(super) fn set_load_balancer(
        &mut self,
        name: &ObjectName,
        service: Option<&core::Service>,
        delta: &mut Delta,
    ) {
        let status = service.and_then(|service| service.status.as_ref()?.load_balancer.as_ref());
        let addresses = status.and_then(|status| status.ingress.clone()).unwrap_or_default();
        if self.world.load_balancer(name) == addresses.as_slice() {
            return;
        }
        delta.load_balancers.insert(name.clone());
        if addresses.is_empty() {
            self.world.load_balancers.remove(name);
        } else {
            self.world.load_balancers.insert(name.clone(), addresses.into());
        }
    }
}
