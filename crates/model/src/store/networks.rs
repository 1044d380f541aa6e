//! Networks, made of mesh networks, the label of the control plane's namespace and Services of gateways.
use std::net::IpAddr;
use std::sync::Arc;

use lateen_api::MeshNetworks;
use lateen_api::mesh::CONFIG_MAP;

use super::Store;
use crate::delta::{Delta, Problem};
use crate::name::ObjectName;
use crate::network::{self, GatewayNode, GatewayService, NETWORK_LABEL, Networks, Places};

impl Store {
    /// A namespace's labels changed: that of the control plane says which network workloads are in.
    pub(super) fn note_system_namespace(&mut self, name: &str, delta: &mut Delta) {
        if *name == *self.options.root_namespace {
            self.rebuild_networks(delta);
        }
    }

    pub(super) fn set_mesh_networks(&mut self, text: &str, delta: &mut Delta) {
        match MeshNetworks::parse(text) {
            Ok(networks) if networks == self.mesh_networks => {}
            Ok(networks) => {
                self.mesh_networks = networks;
                self.rebuild_networks(delta);
            }
            Err(error) => delta.problems.push(Problem {
                object: format!("ConfigMap {}/{CONFIG_MAP}", self.options.root_namespace),
                message: format!("{error}; the previous mesh networks stay in force"),
            }),
        }
    }

    pub(super) fn set_gateway_service(
        &mut self,
        name: &ObjectName,
        new: Option<GatewayService>,
        delta: &mut Delta,
    ) {
        if self.gateway_services.get(name) == new.as_ref() {
            return;
        }
        match new {
            Some(new) => self.gateway_services.insert(name.clone(), new),
            None => self.gateway_services.remove(name),
        };
        self.rebuild_networks(delta);
    }

    /// The addresses of a gateway's name; none: it is not looked up any more.
    pub(super) fn set_gateway_name(&mut self, name: Arc<str>, mut addresses: Vec<IpAddr>, delta: &mut Delta) {
        addresses.sort_unstable();
        addresses.dedup();
        match addresses.is_empty() {
            true => self.gateway_names.remove(&name),
            false => self.gateway_names.insert(name, addresses),
        };
        self.rebuild_networks(delta);
    }

    pub(super) fn set_gateway_node(&mut self, name: &str, new: Option<GatewayNode>, delta: &mut Delta) {
        if self.gateway_nodes.get(name) == new.as_ref() {
            return;
        }
        match new {
            Some(new) => self.gateway_nodes.insert(name.into(), new),
            None => self.gateway_nodes.remove(name),
        };
        if self.gateway_services.values().any(GatewayService::is_at_nodes) {
            self.rebuild_networks(delta);
        }
    }

    fn rebuild_networks(&mut self, delta: &mut Delta) {
        let (options, before) = (&self.options, self.world.networks.clone());
        let of_system = self
            .world
            .namespaces
            .get(&*options.root_namespace)
            .and_then(|labels| labels.get(NETWORK_LABEL).cloned())
            .unwrap_or_default();
        let services = self.gateway_services.iter().map(|(name, service)| (self.key_of(name).name, service));
        let known =
            network::gateways(&self.mesh_networks, &options.cluster_id, services, &self.gateway_nodes);
        let places = Places::new(&self.mesh_networks, &options.cluster_id, of_system);
        let now = Networks {
            places,
            gateways: known.by_address(&self.gateway_names),
            named_gateways: known.as_named(),
            names: known.names(),
            unused: self.mesh_networks.without_effect(),
        };
        if now == *before {
            return;
        }
        delta.networks = true;
        let moves = now.places != before.places;
        self.world.networks = now.into();
        if moves {
            self.rebuild_all_endpoints(delta);
        }
    }
}
