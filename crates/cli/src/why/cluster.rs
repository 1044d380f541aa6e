//! What stands where in the cluster, and the dumps of its proxies.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::Result;
use k8s_openapi::api::core::v1::{Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::ListParams;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Client, ResourceExt as _};
use tokio::sync::OnceCell;

use super::Target;
use super::network::Networks;
use super::proxy::Proxy;
use super::story::{GatewayPod, Place};
use crate::cluster::{ClusterArgs, api_failure};
use crate::error::Failure;
use crate::pods::{self, PodName};
use crate::proxy_config::dump::{Dump, cluster_statuses};

/// The container with the proxy, and its port for such questions.
const CONTAINER: &str = "istio-proxy";
const ADMIN: u16 = 15000;
const INGRESS: &str = "istio-ingressgateway";
/// Where names lead that nothing in the cluster knows (RFC 5737).
const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1));

/// The cluster's pods, by address.
pub(super) struct Mesh {
    client: Client,
    pods: BTreeMap<IpAddr, Pod>,
    istio_namespace: String,
    /// Looked at when an endpoint is no pod.
    networks: OnceCell<Networks>,
}

/// Where a request begins.
pub(super) struct Begun {
    /// Who asks, in words.
    pub(super) name: String,
    /// The first proxy.
    pub(super) proxy: Option<(String, Box<Proxy>)>,
    /// See [`super::Start::entry`].
    pub(super) entry: Option<&'static str>,
    /// Who asks; `None`: somebody outside.
    pub(super) source: Option<IpAddr>,
    /// Where the connection goes.
    pub(super) destination: SocketAddr,
    /// Nothing in the cluster is called as the destination is.
    pub(super) unknown: bool,
    /// What to know besides.
    pub(super) hints: Vec<String>,
}

fn has_proxy(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let mut containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    containers.any(|container| container.name == CONTAINER)
}

fn address(pod: &Pod) -> Option<IpAddr> {
    pod.status.as_ref()?.pod_ip.as_deref()?.parse().ok()
}

fn full_name(pod: &Pod) -> String {
    format!("{}.{}", pod.name_any(), pod.namespace().unwrap_or_default())
}

/// Whether the application's DNS queries are answered by the proxy.
fn captures_dns(pod: &Pod) -> bool {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    containers
        .flat_map(|container| container.env.iter().flatten())
        .any(|one| one.name == "ISTIO_META_DNS_CAPTURE" && one.value.as_deref() == Some("true"))
}

impl Mesh {
    pub(super) async fn look(cluster: &ClusterArgs) -> Result<Self> {
        let client = cluster.client().await?;
        let all: Api<Pod> = Api::all(client.clone());
        let list =
            all.list(&ListParams::default()).await.map_err(|error| api_failure("list pods", &error))?;
        let alive = list.items.into_iter().filter(|pod| {
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            !matches!(phase, Some("Succeeded" | "Failed"))
                && pod.spec.as_ref().is_none_or(|spec| spec.host_network != Some(true))
        });
        let pods = alive.filter_map(|pod| Some((address(&pod)?, pod))).collect();
        let istio_namespace = cluster.istio_namespace.clone();
        Ok(Self { client, pods, istio_namespace, networks: OnceCell::new() })
    }

    /// What stands at an address.
    pub(super) async fn at(&self, address: SocketAddr, cluster: &str) -> Result<Place> {
        match self.pods.get(&address.ip()) {
            None => self.elsewhere(address, cluster).await,
            Some(pod) if has_proxy(pod) => {
                Ok(Place::Proxied(full_name(pod), Box::new(self.proxy(pod).await?)))
            }
            Some(pod) => Ok(Place::Bare(full_name(pod))),
        }
    }

    /// What is not a pod may be the gateway of another network, before pods of this cluster or others.
    async fn elsewhere(&self, address: SocketAddr, cluster: &str) -> Result<Place> {
        let networks = self.networks.get_or_try_init(|| Networks::look(&self.client, &self.istio_namespace));
        let Some(beyond) = networks.await?.beyond(address, cluster) else { return Ok(Place::Unknown) };
        let services: Api<Service> = Api::all(self.client.clone());
        let all = services.list(&ListParams::default()).await;
        let all = all.map_err(|error| api_failure("list services", &error))?;
        let found = all.items.iter().find_map(|service| {
            let port = port_of(service, address.port()).filter(|_| is_reached_at(service, address.ip()))?;
            Some((service, port))
        });
        let Some((service, port)) = found else { return Ok(Place::Gateway(beyond, None)) };
        let inside = self.endpoint(service, port).await?;
        Ok(match self.pods.get(&inside.ip()).filter(|pod| has_proxy(pod)) {
            Some(pod) => {
                let proxy = Box::new(self.proxy(pod).await?);
                Place::Gateway(beyond, Some(GatewayPod { name: full_name(pod), proxy, socket: inside }))
            }
            None => Place::Gateway(beyond, None),
        })
    }

    async fn proxy(&self, pod: &Pod) -> Result<Proxy> {
        let name = PodName { name: pod.name_any(), namespace: pod.namespace().unwrap_or_default() };
        let bytes = pods::get(&self.client, &name, ADMIN, "/config_dump?include_eds").await?;
        let unreadable = |error: crate::proxy_config::dump::DumpError| {
            Failure::new(
                format!("The configuration of {} cannot be read: {error}.", full_name(pod)),
                "lateen proxy-status",
            )
        };
        let mut proxy = Proxy::new(Dump::parse(&bytes).map_err(unreadable)?).map_err(unreadable)?;
        let statuses = pods::get(&self.client, &name, ADMIN, "/clusters?format=json").await?;
        proxy.judge_health(&cluster_statuses(&statuses).map_err(unreadable)?);
        Ok(proxy)
    }

    pub(super) async fn begin(&self, cluster: &ClusterArgs, from: &str, target: &Target) -> Result<Begun> {
        let gateway = match from.split_once('/') {
            None if from == "ingress" => Some((INGRESS, cluster.istio_namespace.as_str())),
            Some(("gateway" | "gw", rest)) => {
                Some(rest.rsplit_once('.').unwrap_or((rest, cluster.istio_namespace.as_str())))
            }
            _ => None,
        };
        match gateway {
            Some((name, namespace)) => self.begin_outside(name, namespace, target).await,
            None => self.begin_at_pod(cluster, from, target).await,
        }
    }

    async fn begin_outside(&self, name: &str, namespace: &str, target: &Target) -> Result<Begun> {
        let Some(service) = self.service(name, namespace).await? else {
            let next = format!("kubectl get services -n {namespace}, then --from gateway/NAME.NAMESPACE");
            return Err(
                Failure::new(format!("There is no gateway {name} in namespace {namespace}."), next).into()
            );
        };
        let found = pods::find(&self.client, &format!("svc/{name}"), namespace).await?;
        let pod = self.pods.values().find(|pod| {
            pod.name_any() == found.name && pod.namespace().as_deref() == Some(found.namespace.as_str())
        });
        let (Some(pod), Some(own)) = (pod, pod.and_then(address)) else {
            let next = format!("kubectl get pods -n {namespace}");
            return Err(Failure::new(
                format!("Gateway {name} in namespace {namespace} has no running pod."),
                next,
            )
            .into());
        };
        let port = target.port();
        let Some(of_service) = port_of(&service, port) else {
            let ports: Vec<String> = ports(&service).map(|one| one.port.to_string()).collect();
            let reason = format!("Gateway {name} in namespace {namespace} has no port {port}.");
            return Err(Failure::new(reason, format!("one of its ports: {}", ports.join(", "))).into());
        };
        let destination = SocketAddr::new(own, target_port(of_service, pod));
        let proxy = Some((full_name(pod), Box::new(self.proxy(pod).await?)));
        Ok(Begun {
            name: format!("outside, through {}", full_name(pod)),
            proxy,
            entry: None,
            source: None,
            destination,
            unknown: false,
            hints: Vec::new(),
        })
    }

    async fn begin_at_pod(&self, cluster: &ClusterArgs, from: &str, target: &Target) -> Result<Begun> {
        let found = pods::find(&self.client, from, cluster.namespace()).await?;
        let pod = self.pods.values().find(|pod| {
            pod.name_any() == found.name && pod.namespace().as_deref() == Some(found.namespace.as_str())
        });
        let (Some(pod), Some(own)) = (pod, pod.and_then(address)) else {
            let next = format!("kubectl get pod {} -n {}", found.name, found.namespace);
            let reason =
                format!("Pod {}.{} has no address of its own: it does not run.", found.name, found.namespace);
            return Err(Failure::new(reason, next).into());
        };
        let mut hints = Vec::new();
        let captured = has_proxy(pod);
        let destination = self.resolve(target, pod, captured, &mut hints).await?;
        let proxy = if captured { Some((full_name(pod), Box::new(self.proxy(pod).await?))) } else { None };
        let name = full_name(pod);
        Ok(Begun {
            name: if captured { name } else { format!("{name}, which has no proxy") },
            proxy,
            entry: captured.then_some("virtualOutbound"),
            source: Some(own),
            unknown: destination.ip() == ELSEWHERE,
            destination,
            hints,
        })
    }

    /// Where a client in a pod connects to. Without a proxy the node's rules choose the endpoint.
    async fn resolve(
        &self,
        target: &Target,
        pod: &Pod,
        captured: bool,
        hints: &mut Vec<String>,
    ) -> Result<SocketAddr> {
        let port = target.port();
        if let Ok(ip) = target.host.parse() {
            return Ok(SocketAddr::new(ip, port));
        }
        let own = pod.namespace().unwrap_or_default();
        let host = target.host.to_ascii_lowercase();
        let mut parts = host.split('.');
        let (name, rest) = (parts.next().unwrap_or_default(), parts.next());
        let tail: Vec<&str> = parts.collect();
        let may_be_service = tail.first().is_none_or(|part| *part == "svc");
        let service = match may_be_service {
            true => self.service(name, rest.unwrap_or(&own)).await?,
            false => None,
        };
        if let Some(service) = service {
            let listed: Vec<String> = ports(&service).map(|one| one.port.to_string()).collect();
            let Some(of_service) = port_of(&service, port) else {
                let reason = format!(
                    "Service {}.{} has no port {port}",
                    service.name_any(),
                    service.namespace().unwrap_or_default()
                );
                hints.push(format!("{reason}; its ports: {}", listed.join(", ")));
                let ip = cluster_ip(&service).unwrap_or(ELSEWHERE);
                return Ok(SocketAddr::new(ip, port));
            };
            return match cluster_ip(&service).filter(|_| captured) {
                Some(ip) => Ok(SocketAddr::new(ip, port)),
                None => self.endpoint(&service, of_service).await,
            };
        }
        if let Some(ip) = self.entry_address(&host, captures_dns(pod)).await {
            return Ok(SocketAddr::new(ip, port));
        }
        hints.push(format!("kubectl get services,serviceentries -A, to see what {host} should be"));
        Ok(SocketAddr::new(ELSEWHERE, port))
    }

    async fn service(&self, name: &str, namespace: &str) -> Result<Option<Service>> {
        let services: Api<Service> = Api::namespaced(self.client.clone(), namespace);
        let failed = |error: kube::Error| {
            api_failure(&format!("read service {name} in namespace {namespace}"), &error)
        };
        Ok(services.get_opt(name).await.map_err(failed)?)
    }

    /// A ready endpoint of a service.
    async fn endpoint(&self, service: &Service, port: &ServicePort) -> Result<SocketAddr> {
        let (name, namespace) = (service.name_any(), service.namespace().unwrap_or_default());
        let slices: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &namespace);
        let of_service = ListParams::default().labels(&format!("kubernetes.io/service-name={name}"));
        let list = slices.list(&of_service).await.map_err(|error| api_failure("list endpoints", &error))?;
        let ready = |endpoint: &k8s_openapi::api::discovery::v1::Endpoint| {
            endpoint.conditions.as_ref().is_none_or(|one| one.ready != Some(false))
        };
        let wanted = port.name.clone().unwrap_or_default();
        let found = list.items.iter().find_map(|slice| {
            let mut ports = slice.ports.iter().flatten();
            let number = ports.find(|one| one.name.clone().unwrap_or_default() == wanted)?.port?;
            let endpoint = slice.endpoints.iter().flatten().find(|endpoint| ready(endpoint))?;
            let ip = endpoint.addresses.first()?.parse().ok()?;
            Some(SocketAddr::new(ip, u16::try_from(number).ok()?))
        });
        found.ok_or_else(|| {
            let reason = format!("Service {name}.{namespace} has no ready endpoint for port {}.", port.port);
            Failure::new(reason, format!("kubectl describe service {name} -n {namespace}")).into()
        })
    }

    /// The address of a ServiceEntry's host, its own or, where the proxy answers DNS queries, the automatic one.
    async fn entry_address(&self, host: &str, captures_dns: bool) -> Option<IpAddr> {
        let kind = GroupVersionKind::gvk("networking.istio.io", "v1", "ServiceEntry");
        let resource = ApiResource::from_gvk_with_plural(&kind, "serviceentries");
        let entries: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource);
        // A cluster without the kind has no such object either.
        let list = entries.list(&ListParams::default()).await.ok()?;
        list.items.iter().find_map(|entry| {
            let texts = |pointer: &str| -> Vec<&str> {
                let list = entry.data.pointer(pointer).and_then(serde_json::Value::as_array);
                list.into_iter().flatten().filter_map(serde_json::Value::as_str).collect()
            };
            if !texts("/spec/hosts").iter().any(|one| one.eq_ignore_ascii_case(host)) {
                return None;
            }
            let given = texts("/spec/addresses").into_iter().find_map(|address| address.parse().ok());
            let automatic = || {
                let list = entry.data.pointer("/status/addresses").and_then(serde_json::Value::as_array)?;
                let of_host = list.iter().find(|one| one["host"].as_str().is_none_or(|name| name == host))?;
                of_host["value"].as_str()?.parse().ok()
            };
            given.or_else(|| automatic().filter(|_| captures_dns))
        })
    }
}

fn ports(service: &Service) -> impl Iterator<Item = &ServicePort> {
    service.spec.iter().flat_map(|spec| spec.ports.iter().flatten())
}

fn port_of(service: &Service, port: u16) -> Option<&ServicePort> {
    ports(service).find(|one| one.port == i32::from(port))
}

/// Whether somebody outside of the cluster reaches a service at this address.
fn is_reached_at(service: &Service, address: IpAddr) -> bool {
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let balanced = balancer.into_iter().flat_map(|balancer| balancer.ingress.iter().flatten());
    let external = service.spec.iter().flat_map(|spec| spec.external_ips.iter().flatten());
    let mut all = balanced.filter_map(|one| one.ip.as_ref()).chain(external);
    all.any(|one| one.parse() == Ok(address))
}

fn cluster_ip(service: &Service) -> Option<IpAddr> {
    service.spec.as_ref()?.cluster_ip.as_deref()?.parse().ok()
}

/// The pod's port behind a service's.
fn target_port(port: &ServicePort, pod: &Pod) -> u16 {
    let number = match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) => {
            let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
            let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
            ports.find(|one| one.name.as_deref() == Some(name)).map(|one| one.container_port)
        }
    };
    number.and_then(|number| u16::try_from(number).ok()).unwrap_or_default()
}
