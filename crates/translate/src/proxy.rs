//! Proxies and their classes.
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use lateen_model::{Delta, Hostname, Labels, Locality, Protocol, ServiceTarget, Workload, World};
use serde_json::Value;

use crate::stat_names::{Filling, short_name};

/// The variable that turns dual stack on, as Istio's: off by default.
const DUAL_STACK: &str = "ISTIO_DUAL_STACK";

/// What a proxy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProxyKind {
    /// Beside an application.
    Sidecar,
    /// A gateway.
    Router,
}

/// Why a node identity was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// Not four parts.
    #[error("node id {0:?} is not of the form TYPE~IP~NAME.NAMESPACE~DOMAIN")]
    Malformed(String),
    /// Neither sidecar nor router.
    #[error("node id {id:?}: {kind:?} is no known type of proxy (sidecar, router)")]
    UnknownType {
        /// The node id.
        id: String,
        /// Its first part.
        kind: String,
    },
    /// An address does not parse.
    #[error("node id {id:?}: {address:?} is not an IP address")]
    Address {
        /// The node id.
        id: String,
        /// Its second part.
        address: String,
    },
}

/// A connected proxy, as it introduced itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// Sidecar or gateway.
    pub kind: ProxyKind,
    /// `POD.NAMESPACE`.
    pub id: String,
    /// DNS domain, for example `default.svc.cluster.local`.
    pub dns_domain: String,
    /// Pod name, namespace, addresses and labels.
    pub workload: Workload,
    /// Service account.
    pub service_account: String,
    /// Cluster it runs in (metadata `CLUSTER_ID`).
    pub cluster_id: String,
    /// Network it is in, when it says so (metadata `NETWORK`).
    pub network: String,
    /// The networks whose endpoints it wants to know of, when not of all (metadata `REQUESTED_NETWORK_VIEW`).
    pub network_view: Vec<String>,
    /// Version of the proxy (metadata `ISTIO_VERSION`).
    pub version: String,
    /// How inbound traffic is captured (metadata `INTERCEPTION_MODE`).
    pub interception_mode: String,
    /// Whether it answers its application's DNS queries (metadata `DNS_CAPTURE`).
    pub dns_capture: bool,
    /// Whether the control plane was started for dual stack (`ISTIO_DUAL_STACK`). Nothing a proxy says sets it.
    pub dual_stack: bool,
    /// Whether its service account is known to be allowed to read the Secrets of its namespace. Nothing a proxy says sets it.
    pub reads_secrets: bool,
}

impl Proxy {
    /// Reads an xDS node: id `sidecar~10.1.2.3~POD.NS~NS.svc.cluster.local`, metadata keys as Istio's.
    ///
    /// # Errors
    /// When the id is not of that form.
    pub fn parse(id: &str, metadata: &Value) -> Result<Self, NodeError> {
        let parts: Vec<&str> = id.split('~').collect();
        let [kind, address, name, dns_domain] = parts[..] else {
            return Err(NodeError::Malformed(id.to_owned()));
        };
        let kind = match kind {
            "sidecar" => ProxyKind::Sidecar,
            "router" => ProxyKind::Router,
            other => return Err(NodeError::UnknownType { id: id.to_owned(), kind: other.to_owned() }),
        };
        let parsed = address
            .parse::<IpAddr>()
            .map_err(|_| NodeError::Address { id: id.to_owned(), address: address.to_owned() })?;
        let text = |key: &str| metadata[key].as_str().unwrap_or_default().to_owned();
        let (pod, id_namespace) = name.rsplit_once('.').ok_or_else(|| NodeError::Malformed(id.to_owned()))?;
        let namespace = match text("NAMESPACE") {
            given if given.is_empty() => id_namespace.to_owned(),
            given => given,
        };
        let mut addresses = vec![parsed];
        for extra in metadata["INSTANCE_IPS"].as_str().unwrap_or_default().split(',') {
            if let Ok(extra) = extra.trim().parse::<IpAddr>()
                && !addresses.contains(&extra)
            {
                addresses.push(extra);
            }
        }
        let labels: BTreeMap<String, String> = metadata["LABELS"]
            .as_object()
            .into_iter()
            .flatten()
            .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
            .collect();
        Ok(Self {
            kind,
            id: name.to_owned(),
            dns_domain: dns_domain.to_owned(),
            workload: Workload {
                namespace: namespace.into(),
                pod: Some(pod.to_owned()),
                addresses,
                labels: Labels::from(labels),
            },
            service_account: text("SERVICE_ACCOUNT"),
            cluster_id: text("CLUSTER_ID"),
            network: text("NETWORK"),
            network_view: list(&metadata["REQUESTED_NETWORK_VIEW"]),
            version: text("ISTIO_VERSION"),
            interception_mode: text("INTERCEPTION_MODE"),
            dns_capture: text("DNS_CAPTURE").eq_ignore_ascii_case("true"),
            dual_stack: false,
            reads_secrets: false,
        })
    }
}

/// A list of names that is written with commas.
fn list(value: &Value) -> Vec<String> {
    let names = value.as_str().unwrap_or_default().split(',').map(str::trim);
    let mut names: Vec<String> = names.filter(|name| !name.is_empty()).map(str::to_owned).collect();
    names.sort();
    names.dedup();
    names
}

impl Proxy {
    /// Whether the proxy's class may differ between the world before `delta` and `world` after it. Cheap, so that a change
    /// costs next to nothing for the proxies it does not concern.
    pub fn class_may_change(&self, delta: &Delta, world: &World) -> bool {
        let namespace = &self.workload.namespace;
        let pod = self.workload.pod.as_deref();
        // Endpoints say which ports lead to a workload only for services without a selector.
        let by_address = |host: &Hostname| {
            world.service_in(host, namespace).is_some_and(|service| service.selector.is_empty())
        };
        delta.pods.iter().any(|changed| changed.namespace == *namespace && Some(&*changed.name) == pod)
            // A workload that is no pod may be one of these.
            || delta.workload_entries.iter().any(|changed| changed.namespace == *namespace)
            || !delta.nodes.is_empty()
            // It says whether there is dual stack.
            || delta.mesh
            // They say which one a workload is in.
            || delta.networks
            || delta.service_namespaces.contains(namespace)
            || delta.endpoints.iter().any(by_address)
    }
}

/// Everything about a proxy that its configuration depends on. Proxies of equal class get the same resources.
///
/// It depends on the world (services select pods), so it is computed anew when services or pods change; it is cheap.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ProxyClass {
    /// Sidecar or gateway.
    pub kind: ProxyKind,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Labels.
    pub labels: Labels,
    /// Where it runs.
    pub locality: Locality,
    /// Network it is in; empty when nobody says, so that it reaches everything.
    pub network: String,
    /// The networks whose endpoints it wants to know of; empty is all.
    pub network_view: Vec<String>,
    /// Whether the proxies answer their applications' DNS queries, so that automatic addresses lead to them.
    pub dns_capture: bool,
    /// Whether the proxies are reached and reach others by IPv4 and IPv6: they have addresses of both, and the mesh is to have dual
    /// stack (`ISTIO_DUAL_STACK` of the control plane or in `defaultConfig.proxyMetadata`).
    pub dual_stack: bool,
    /// Whether it may be given Secrets of its namespace: its account may read them, and its labels are those of a pod that the
    /// API server knows, and not only what the proxy says.
    pub reads_secrets: bool,
    /// The service ports that lead to the workload, by port; of one port, the oldest service's first.
    pub inbound: Vec<InboundPort>,
}

/// A service port that leads to a workload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InboundPort {
    /// The workload's port.
    pub port: u16,
    /// Protocol, declared or to be detected.
    pub protocol: Protocol,
    /// The service.
    pub hostname: Hostname,
    /// What the service is called in short: `NAME.NAMESPACE`, or its host outside Kubernetes.
    pub service: String,
    /// The service's port.
    pub service_port: u16,
    /// The name of that.
    pub port_name: String,
}

impl InboundPort {
    /// What a pattern of names in statistics is filled with.
    pub(crate) fn filling(&self) -> Filling<'_> {
        Filling {
            host: &self.hostname,
            service: self.service.clone(),
            subset: "",
            port: self.service_port,
            port_name: &self.port_name,
            target_port: self.port,
        }
    }
}

impl ProxyClass {
    /// The class of a proxy. Labels come from the pod the API server knows, where it knows it: they can change while the
    /// proxy runs; else from the WorkloadEntry with its address; else from what the proxy said.
    pub fn of(proxy: &Proxy, world: &World) -> Self {
        let mut workload = proxy.workload.clone();
        let mut locality = Locality::of_pod(&workload.labels, None);
        let mut reads_secrets = false;
        let name = workload.pod.as_deref();
        let name = name.map(|pod| lateen_model::ObjectName::new(&workload.namespace, pod));
        if let Some(pod) = name.and_then(|name| world.pod(&name)) {
            reads_secrets = proxy.reads_secrets;
            workload.labels = pod.labels.clone();
            locality = Locality::of_pod(&pod.labels, world.node_locality(&pod.node));
        } else if let Some(entry) = world.workload_entry_of(&workload) {
            workload.labels = entry.workload_labels();
            locality = entry.locality();
        }
        let has = |v6: bool| workload.addresses.iter().any(|address| address.is_ipv6() == v6);
        let wanted = proxy.dual_stack
            || world
                .mesh()
                .default_config
                .proxy_metadata
                .get(DUAL_STACK)
                .is_some_and(|value| value == "true");
        let dual_stack = wanted && has(false) && has(true);
        let network = match proxy.network.is_empty() {
            true => world.networks().of_workload(&workload.labels, workload.addresses.first().copied()),
            false => proxy.network.clone(),
        };
        let mut targets = world.targets_of(&workload);
        // Where services disagree about a port, the oldest has its way.
        targets.sort_by(|a, b| {
            let key = |target: &ServiceTarget| (target.target_port, target.service.created);
            key(a).cmp(&key(b)).then_with(|| a.service.hostname.cmp(&b.service.hostname))
        });
        let inbound = targets
            .into_iter()
            .map(|target| InboundPort {
                port: target.target_port,
                protocol: target.port.protocol,
                hostname: target.service.hostname.clone(),
                service: short_name(&target.service),
                service_port: target.port.port,
                port_name: target.port.name.clone(),
            })
            .collect();
        Self {
            kind: proxy.kind,
            namespace: workload.namespace,
            labels: workload.labels,
            locality,
            network,
            network_view: proxy.network_view.clone(),
            dns_capture: proxy.dns_capture,
            dual_stack,
            reads_secrets,
            inbound,
        }
    }

    /// What of the class matters for how it reaches the mesh. Sidecars of one namespace mostly agree in it, so that all but
    /// the few resources about the workload itself are made once for them. A generator of outbound resources is given
    /// nothing else, so it cannot depend on more than this.
    pub fn outward(self: &Arc<Self>, world: &World) -> Arc<Self> {
        if self.kind == ProxyKind::Router {
            // Ports and rules of gateways go by their labels and services.
            return self.clone();
        }
        let selecting = world.selecting_labels();
        let labels: BTreeMap<String, String> = self
            .labels
            .iter()
            .filter(|(key, _)| selecting.contains(*key))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        Arc::new(Self {
            kind: self.kind,
            namespace: self.namespace.clone(),
            labels: labels.into(),
            locality: self.locality.clone(),
            network: self.network.clone(),
            network_view: self.network_view.clone(),
            dns_capture: self.dns_capture,
            dual_stack: self.dual_stack,
            reads_secrets: self.reads_secrets,
            inbound: Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn nodes_are_read() {
        let metadata = json!({"NAMESPACE": "shop", "LABELS": {"app": "web"}, "SERVICE_ACCOUNT": "web",
            "CLUSTER_ID": "Kubernetes", "ISTIO_VERSION": "1.27.0", "INSTANCE_IPS": "10.1.2.3,fd00::3"});
        let proxy =
            Proxy::parse("sidecar~10.1.2.3~web-1.shop~shop.svc.cluster.local", &metadata).expect("parses");
        assert_eq!(proxy.kind, ProxyKind::Sidecar);
        assert_eq!(proxy.workload.pod.as_deref(), Some("web-1"));
        assert_eq!(&*proxy.workload.namespace, "shop");
        assert_eq!(proxy.workload.addresses.len(), 2);
        assert_eq!(proxy.workload.labels["app"], "web");
        assert_eq!(proxy.service_account, "web");
        let bare = Proxy::parse("router~10.1.2.3~gw.v2.istio-system~x", &json!(null)).expect("parses");
        assert_eq!(
            (bare.workload.pod.as_deref(), &*bare.workload.namespace),
            (Some("gw.v2"), "istio-system")
        );
    }

    #[test]
    fn what_is_no_node_is_refused() {
        for id in [
            "",
            "sidecar~10.1.2.3~web",
            "sidecar~10.1.2.3~web~x",
            "waypoint~10.1.2.3~a.b~x",
            "sidecar~here~a.b~x",
        ] {
            assert!(Proxy::parse(id, &json!({})).is_err(), "{id}");
        }
    }
}
