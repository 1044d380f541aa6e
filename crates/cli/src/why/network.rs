//! Gateways between networks, and who stands behind them: found in the cluster by the rules of the control plane's own model.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::{Api, Client, Resource};
use lateen_api::mesh::CONFIG_MAP;
use lateen_api::{Kind, ServiceEntrySpec, WorkloadEntrySpec};
use lateen_model::{Event, Object, Store, StoreOptions, World};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::cluster::api_failure;

/// The mesh as the control plane sees it, as far as it is about networks.
pub(super) struct Networks(Arc<World>);

/// What is behind an endpoint that is a gateway between networks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Beyond {
    /// The network behind it.
    pub network: String,
    /// Who of the service stands there: `NAME.NAMESPACE` of pods and WorkloadEntries.
    pub workloads: Vec<String>,
}

impl Networks {
    pub(super) async fn look(client: &Client, istio_namespace: &str) -> Result<Self> {
        let options = StoreOptions { root_namespace: istio_namespace.to_owned(), ..StoreOptions::default() };
        let mut store = Store::new(options);
        let mut take = |objects: Vec<Object>| {
            // What is wrong with them is told elsewhere.
            objects.into_iter().for_each(|object| drop(store.apply(Event::Applied(object))));
        };
        let config: Api<ConfigMap> = Api::namespaced(client.clone(), istio_namespace);
        let config =
            config.get_opt(CONFIG_MAP).await.map_err(|error| api_failure("read mesh config", &error))?;
        take(config.into_iter().map(|map| Object::ConfigMap(Box::new(map))).collect());
        take(all::<Namespace>(client, "namespaces", Object::Namespace).await?);
        take(all::<Node>(client, "nodes", Object::Node).await?);
        take(all::<Pod>(client, "pods", Object::Pod).await?);
        take(all::<Service>(client, "services", Object::Service).await?);
        take(all::<EndpointSlice>(client, "endpoints", Object::EndpointSlice).await?);
        take(custom::<ServiceEntrySpec>(client, Object::ServiceEntry).await);
        take(custom::<WorkloadEntrySpec>(client, Object::WorkloadEntry).await);
        let names: Vec<Arc<str>> = store.world().networks().gateway_names().to_vec();
        for name in names {
            let Ok(found) = tokio::net::lookup_host((&*name, 0)).await else { continue };
            let addresses = found.map(|address| address.ip()).collect();
            drop(store.apply(Event::GatewayName { name, addresses }));
        }
        Ok(Self(store.world()))
    }

    /// What is behind an endpoint of a cluster; `None`: it is no gateway of a network.
    pub(super) fn beyond(&self, endpoint: SocketAddr, cluster: &str) -> Option<Beyond> {
        let network = self.0.networks().gateways().network_at(endpoint.ip(), endpoint.port())?;
        let mut parts = cluster.split('|').skip(1);
        let (port, _subset, host) = (parts.next(), parts.next(), parts.next().unwrap_or_default());
        let service = self.0.service(host);
        let endpoints = service.and_then(|service| self.0.endpoints(service));
        let port = port.and_then(|port| service?.port(port.parse().ok()?));
        let of_port = endpoints.zip(port).map(|(all, port)| all.of_port(&port.name)).unwrap_or_default();
        let there = of_port.iter().filter(|endpoint| endpoint.network == network);
        let name = |endpoint: &lateen_model::Endpoint| {
            let object = endpoint.pod.as_ref().or(endpoint.entry.as_ref());
            object.map_or_else(
                || endpoint.address.to_string(),
                |object| format!("{}.{}", object.name, object.namespace),
            )
        };
        let mut workloads: Vec<String> = there.map(name).collect();
        workloads.sort();
        workloads.dedup();
        Some(Beyond { network: network.to_owned(), workloads })
    }
}

async fn all<K>(client: &Client, what: &str, wrap: fn(Box<K>) -> Object) -> Result<Vec<Object>>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let list = Api::<K>::all(client.clone()).list(&ListParams::default()).await;
    let list = list.map_err(|error| api_failure(&format!("list {what}"), &error))?;
    Ok(list.items.into_iter().map(|object| wrap(Box::new(object))).collect())
}

/// Objects of a kind of the mesh's; none where the cluster does not know it. What does not parse the control plane leaves out, too.
async fn custom<S: Kind>(client: &Client, wrap: fn(Box<lateen_api::Object<S>>) -> Object) -> Vec<Object> {
    let resource = ApiResource::erase::<lateen_api::Object<S>>(&());
    let api = Api::<DynamicObject>::all_with(client.clone(), &resource);
    let list = api.list(&ListParams::default()).await.map(|list| list.items).unwrap_or_default();
    let read = |mut object: DynamicObject| {
        let spec = serde_json::from_value::<S>(object.data["spec"].take()).ok()?;
        let metadata: ObjectMeta = object.metadata;
        let status = serde_json::from_value(object.data["status"].take()).ok();
        Some(wrap(Box::new(lateen_api::Object { metadata, spec, status })))
    };
    list.into_iter().filter_map(read).collect()
}
