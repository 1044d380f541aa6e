//! The names that sidecars answer their applications' DNS queries for (NDS).
//!
//! As Istio's: of each service its addresses; of a headless one those of its pods that are ready, and each of them by its own
//! name. ServiceEntries without an address have their automatic one. Short forms of Kubernetes names are left to the agent,
//! which knows where it runs; names outside the mesh that `ExternalName` services stand for are left to DNS.
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use lateen_model::{Endpoint, Health, Registry, Service};
use lateen_xds::name_table::{EXTERNAL, KUBERNETES, NameInfo, NameTable, RESOURCE};

use crate::cache::Cache;
use crate::resource::{Resource, ResourceType, encode};
use crate::scope::Scope;

/// Everything the table depends on: what each name stands for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct TableInputs(BTreeMap<String, NameInfo>);

/// The table of a class whose proxies answer queries.
pub(crate) fn generate(scope: &Scope, cache: &Cache) -> Vec<Arc<Resource>> {
    if !scope.answers_names() {
        return Vec::new();
    }
    vec![cache.resource(ResourceType::NameTable, &inputs(scope), table)]
}

fn inputs(scope: &Scope) -> TableInputs {
    let mut names = TableInputs::default();
    for service in scope.services.iter() {
        names.add(scope, service);
    }
    names
}

impl TableInputs {
    fn add(&mut self, scope: &Scope, service: &Service) {
        let mut addresses = scope.addresses_of(service);
        if service.is_headless() {
            for (hostname, all) in ready_pods(scope, service) {
                let ips = all.iter().map(IpAddr::to_string).collect();
                addresses.extend(all);
                if !hostname.is_empty() {
                    let host = format!("{hostname}.{}", service.hostname);
                    let shortname = format!("{hostname}.{}", service.name.name);
                    self.0.insert(host, NameInfo { ips, ..of_kubernetes(service, shortname) });
                }
            }
        }
        if addresses.is_empty() {
            return;
        }
        let ips = addresses.iter().map(IpAddr::to_string).collect();
        let info = match service.registry {
            Registry::Kubernetes => of_kubernetes(service, service.name.name.to_string()),
            Registry::ServiceEntry => NameInfo { registry: EXTERNAL.to_owned(), ..NameInfo::default() },
        };
        self.0.insert(service.hostname.to_string(), NameInfo { ips, ..info });
    }
}

fn of_kubernetes(service: &Service, shortname: String) -> NameInfo {
    NameInfo {
        registry: KUBERNETES.to_owned(),
        shortname,
        namespace: service.name.namespace.to_string(),
        ..NameInfo::default()
    }
}

/// Names and addresses of a headless service's pods, of its first port: that all its pods have.
fn ready_pods(scope: &Scope, service: &Service) -> Vec<(String, Vec<IpAddr>)> {
    let (Some(endpoints), Some(port)) = (scope.world.endpoints(service), service.ports.first()) else {
        return Vec::new();
    };
    // Connections to pods go to them directly, so that those of another network are out of reach.
    let own = &scope.class.network;
    let is_near =
        |endpoint: &Endpoint| own.is_empty() || endpoint.network.is_empty() || endpoint.network == *own;
    let of_port = endpoints.of_port(&port.name).iter();
    let ready = of_port.filter(|endpoint| endpoint.health == Health::Healthy && is_near(endpoint));
    let named =
        |endpoint: &Endpoint| Some((endpoint.hostname.clone(), scope.addresses_of_endpoint(endpoint)?));
    ready.filter_map(named).collect()
}

fn table(inputs: &TableInputs) -> Resource {
    encode(RESOURCE, &NameTable { table: inputs.0.clone() })
}
