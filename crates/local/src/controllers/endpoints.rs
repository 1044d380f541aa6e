//! Service → EndpointSlices, and the older Endpoints.
//!
//! A pod is in a Service's ready set while it is ready and not on its way out: the moment it gets a deletion time stamp it
//! turns `terminating` and not ready, before its processes hear of it. Source of the conditions' meaning: Kubernetes
//! documentation, "EndpointSlices, Conditions".

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort as SubsetPort, EndpointSubset, Endpoints, ObjectReference, Pod, Service,
    ServicePort,
};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::cache::Kind;
use super::meta::{
    Labels, is_controlled_by, is_deleting, is_finished, is_ready, name, owner_reference, short_hash,
};
use super::write::Write;

/// Names the Service a slice belongs to.
pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const HEADLESS: &str = "service.kubernetes.io/headless";
/// Most endpoints of one slice (the API's limit).
const SLICE_SIZE: usize = 1000;

/// Whether the Service's endpoints follow from pods at all.
pub(crate) fn selector(service: &Service) -> Option<&Labels> {
    let spec = service.spec.as_ref()?;
    let external = spec.type_.as_deref() == Some("ExternalName");
    spec.selector.as_ref().filter(|selector| !selector.is_empty() && !external)
}

pub(crate) fn matches(selector: &Labels, labels: Option<&Labels>) -> bool {
    selector.iter().all(|(key, value)| labels.is_some_and(|labels| labels.get(key) == Some(value)))
}

/// `pods` are all pods of the namespace, `slices` all slices, `endpoints` the object of the Service's name.
pub(crate) fn decide<'a>(
    service: &Service,
    pods: impl IntoIterator<Item = &'a Pod>,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    endpoints: Option<&Endpoints>,
) -> Vec<Write> {
    let Some(selector) = selector(service).filter(|_| !is_deleting(&service.metadata)) else {
        return Vec::new();
    };
    let families = families_of(service);
    let mut by_family: BTreeMap<Family, Groups<'_>> =
        families.iter().map(|family| (*family, Groups::new())).collect();
    for pod in pods.into_iter().filter(|pod| matches(selector, pod.metadata.labels.as_ref())) {
        let ports = ports_of(service, pod);
        for (family, groups) in &mut by_family {
            if let Some(member) = Member::of(pod, service, *family) {
                groups.entry(ports.clone()).or_default().push(member);
            }
        }
    }
    let mut writes = write_slices(service, &by_family, slices);
    // The older object has one family only.
    let first = families.first().and_then(|family| by_family.get(family));
    writes.extend(first.and_then(|groups| write_endpoints(service, groups, endpoints)));
    writes
}

/// The members of a Service by the ports they have.
type Groups<'a> = BTreeMap<Vec<PortKey>, Vec<Member<'a>>>;

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Family {
    V4,
    V6,
}

impl Family {
    /// As `addressType` and `ipFamilies` spell it.
    fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// The families of a Service, its own first.
fn families_of(service: &Service) -> Vec<Family> {
    let listed = service.spec.as_ref().and_then(|spec| spec.ip_families.as_ref());
    let families =
        listed.into_iter().flatten().map(|name| if name == "IPv6" { Family::V6 } else { Family::V4 });
    let families: Vec<Family> = families.collect();
    if families.is_empty() { vec![Family::V4] } else { families }
}

/// Name, protocol, number and application protocol of a port, as the pods of one group have it.
type PortKey = (Option<String>, String, i32, Option<String>);

/// The Service's ports with the numbers they have in `pod`; a port name the pod doesn't have leaves the port out.
fn ports_of(service: &Service, pod: &Pod) -> Vec<PortKey> {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref());
    let keys = ports.into_iter().flatten().filter_map(|port| {
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
        let number = target_port(port, pod)?;
        Some((port.name.clone(), protocol, number, port.app_protocol.clone()))
    });
    keys.collect()
}

fn target_port(port: &ServicePort, pod: &Pod) -> Option<i32> {
    match port.target_port.as_ref() {
        None => Some(port.port),
        // The API server fills in 0 for "the same".
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(wanted)) => {
            if let Ok(number) = wanted.parse() {
                return Some(number);
            }
            let spec = pod.spec.as_ref()?;
            // Sidecars among the init containers serve ports as well.
            let sidecars = spec.init_containers.iter().flatten();
            let sidecars = sidecars.filter(|container| container.restart_policy.as_deref() == Some("Always"));
            let mut ports =
                spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let found = ports.find(|candidate| {
                candidate.name.as_ref() == Some(wanted)
                    && candidate.protocol.as_deref().unwrap_or("TCP") == protocol
            });
            found.map(|port| port.container_port)
        }
    }
}

/// A pod as an endpoint.
struct Member<'a> {
    pod: &'a Pod,
    ip: &'a str,
    ready: bool,
    serving: bool,
    terminating: bool,
    hostname: Option<String>,
}

impl<'a> Member<'a> {
    fn of(pod: &'a Pod, service: &Service, family: Family) -> Option<Self> {
        let status = pod.status.as_ref()?;
        let listed = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
        let mut ips = listed.chain(status.pod_ip.as_deref()).filter(|ip| !ip.is_empty());
        let ip = ips.find(|ip| ip.contains(':') == (family == Family::V6))?;
        if is_finished(pod) {
            return None;
        }
        let spec = service.spec.as_ref();
        let regardless = spec.and_then(|spec| spec.publish_not_ready_addresses) == Some(true);
        let terminating = is_deleting(&pod.metadata);
        let serving = regardless || is_ready(pod);
        let subdomain = pod.spec.as_ref().and_then(|spec| spec.subdomain.as_deref());
        let hostname = pod.spec.as_ref().and_then(|spec| spec.hostname.clone());
        Some(Self {
            pod,
            ip,
            ready: regardless || (serving && !terminating),
            serving,
            terminating,
            hostname: hostname.filter(|_| subdomain == Some(name(&service.metadata))),
        })
    }

    fn reference(&self) -> ObjectReference {
        let meta = &self.pod.metadata;
        ObjectReference {
            kind: Some("Pod".to_owned()),
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            uid: meta.uid.clone(),
            ..ObjectReference::default()
        }
    }

    fn node(&self) -> Option<String> {
        self.pod.spec.as_ref().and_then(|spec| spec.node_name.clone())
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint {
            addresses: vec![self.ip.to_owned()],
            conditions: Some(EndpointConditions {
                ready: Some(self.ready),
                serving: Some(self.serving),
                terminating: Some(self.terminating),
            }),
            hostname: self.hostname.clone(),
            node_name: self.node(),
            target_ref: Some(self.reference()),
            ..Endpoint::default()
        }
    }

    fn address(&self) -> EndpointAddress {
        EndpointAddress {
            ip: self.ip.to_owned(),
            hostname: self.hostname.clone(),
            node_name: self.node(),
            target_ref: Some(self.reference()),
        }
    }
}

fn labels_of(service: &Service) -> Labels {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    let cluster_ip = service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref());
    if cluster_ip == Some("None") {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels
}

fn write_slices<'a>(
    service: &Service,
    by_family: &BTreeMap<Family, Groups<'_>>,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
) -> Vec<Write> {
    let mut wanted = BTreeMap::new();
    for (family, groups) in by_family {
        for (ports, members) in groups {
            for (index, members) in members.chunks(SLICE_SIZE).enumerate() {
                let slice = new_slice(service, *family, ports, index, members);
                wanted.insert(name(&slice.metadata).to_owned(), slice);
            }
        }
        if groups.is_empty() {
            // One slice stands for "known to have none".
            let slice = new_slice(service, *family, &[], 0, &[]);
            wanted.insert(name(&slice.metadata).to_owned(), slice);
        }
    }
    let existing: BTreeMap<&str, &EndpointSlice> = slices
        .into_iter()
        .filter(|slice| is_controlled_by(&slice.metadata, &service.metadata))
        .map(|slice| (name(&slice.metadata), slice))
        .collect();
    let mut writes = Vec::new();
    for (slice_name, slice) in &wanted {
        match existing.get(slice_name.as_str()) {
            None => writes.push(Write::create(Kind::EndpointSlice, &slice.metadata, slice)),
            Some(old) => {
                let mut new = (*old).clone();
                new.endpoints.clone_from(&slice.endpoints);
                new.ports.clone_from(&slice.ports);
                new.metadata.labels.clone_from(&slice.metadata.labels);
                writes.extend(Write::update(Kind::EndpointSlice, &old.metadata, *old, &new));
            }
        }
    }
    // New slices come before old ones go, so that nobody sees the Service empty in between.
    let obsolete = existing.iter().filter(|(slice_name, _)| !wanted.contains_key(**slice_name));
    writes.extend(obsolete.map(|(_, slice)| Write::delete(Kind::EndpointSlice, &slice.metadata)));
    writes
}

fn new_slice(
    service: &Service,
    family: Family,
    ports: &[PortKey],
    index: usize,
    members: &[Member<'_>],
) -> EndpointSlice {
    let mut labels = labels_of(service);
    labels.insert(SERVICE_NAME.to_owned(), name(&service.metadata).to_owned());
    labels.insert(MANAGED_BY.to_owned(), MANAGER.to_owned());
    let ports = ports.iter().map(|(name, protocol, number, app_protocol)| EndpointPort {
        // Kubernetes writes an empty name, not none.
        name: Some(name.clone().unwrap_or_default()),
        protocol: Some(protocol.clone()),
        port: Some(*number),
        app_protocol: app_protocol.clone(),
    });
    let ports: Vec<EndpointPort> = ports.collect();
    EndpointSlice {
        metadata: ObjectMeta {
            name: Some(format!(
                "{}-{}",
                name(&service.metadata),
                short_hash(&(family.name(), &ports, index))
            )),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels),
            owner_references: Some(vec![owner_reference("v1", "Service", &service.metadata)]),
            ..ObjectMeta::default()
        },
        address_type: family.name().to_owned(),
        endpoints: Some(members.iter().map(Member::endpoint).collect()),
        ports: Some(ports),
    }
}

fn write_endpoints(service: &Service, groups: &Groups<'_>, existing: Option<&Endpoints>) -> Option<Write> {
    let subsets: Vec<EndpointSubset> =
        groups.iter().filter_map(|(ports, members)| subset(ports, members)).collect();
    let wanted = Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels_of(service)).filter(|labels| !labels.is_empty()),
            ..ObjectMeta::default()
        },
        subsets: Some(subsets).filter(|subsets| !subsets.is_empty()),
    };
    let Some(old) = existing else {
        return Some(Write::create(Kind::Endpoints, &wanted.metadata, &wanted));
    };
    let new = Endpoints {
        metadata: ObjectMeta { labels: wanted.metadata.labels, ..old.metadata.clone() },
        subsets: wanted.subsets,
    };
    Write::update(Kind::Endpoints, &old.metadata, old, &new)
}

fn subset(ports: &[PortKey], members: &[Member<'_>]) -> Option<EndpointSubset> {
    let addresses = |ready: bool| {
        let members = members.iter().filter(|member| member.ready == ready && (ready || !member.terminating));
        let addresses: Vec<EndpointAddress> = members.map(Member::address).collect();
        Some(addresses).filter(|addresses| !addresses.is_empty())
    };
    let (ready, not_ready) = (addresses(true), addresses(false));
    if ready.is_none() && not_ready.is_none() {
        return None;
    }
    let ports = ports.iter().map(|(name, protocol, number, app_protocol)| SubsetPort {
        name: name.clone(),
        protocol: Some(protocol.clone()),
        port: *number,
        app_protocol: app_protocol.clone(),
    });
    let ports: Vec<SubsetPort> = ports.collect();
    Some(EndpointSubset {
        addresses: ready,
        not_ready_addresses: not_ready,
        ports: Some(ports).filter(|ports| !ports.is_empty()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::write::Action;
    use serde_json::{Value, json};

    fn service(more: Value) -> Service {
        let mut spec = json!({"selector": {"app": "web"}, "clusterIP": "10.96.0.5", "ports": [
            {"name": "http", "port": 80, "targetPort": "web", "protocol": "TCP"}
        ]});
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        serde_json::from_value(
            json!({"metadata": {"name": "web", "namespace": "shop", "uid": "svc", "labels": {"x": "y"}}, "spec": spec}),
        )
        .unwrap()
    }

    fn pod(name: &str, ip: &str, ready: bool, port: i32) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "shop", "uid": name, "labels": {"app": "web"}},
            "spec": {"nodeName": "lateen", "hostname": name, "subdomain": "web",
                     "containers": [{"name": "c", "ports": [{"name": "web", "containerPort": port}]}]},
            "status": {"podIP": ip, "phase": "Running",
                       "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
        }))
        .unwrap()
    }

    fn leaving(mut pod: Pod) -> Pod {
        pod.metadata.deletion_timestamp = Some(super::super::meta::time(jiff::Timestamp::UNIX_EPOCH));
        pod
    }

    /// Applies the writes to nothing: slices by ports, and the Endpoints.
    fn created(service: &Service, pods: &[Pod]) -> (Vec<EndpointSlice>, Value) {
        let (mut slices, mut endpoints) = (Vec::new(), Value::Null);
        for write in decide(service, pods, [], None) {
            let Action::Create(body) = write.action else { panic!("{:?}", write.action) };
            match write.kind {
                Kind::EndpointSlice => slices.push(serde_json::from_value(body).unwrap()),
                _ => endpoints = body,
            }
        }
        (slices, endpoints)
    }

    /// Address with ready, serving, terminating.
    fn conditions(slice: &EndpointSlice) -> Vec<(&str, bool, bool, bool)> {
        let endpoints = slice.endpoints.iter().flatten();
        endpoints
            .map(|endpoint| {
                let c = endpoint.conditions.as_ref().unwrap();
                (endpoint.addresses[0].as_str(), c.ready.unwrap(), c.serving.unwrap(), c.terminating.unwrap())
            })
            .collect()
    }

    #[test]
    fn conditions_follow_readiness_and_deletion() {
        let pods = [
            pod("a", "10.0.0.1", true, 8080),
            pod("b", "10.0.0.2", false, 8080),
            leaving(pod("c", "10.0.0.3", true, 8080)),
            pod("d", "", true, 8080),
        ];
        let expected = [
            ("10.0.0.1", true, true, false),
            ("10.0.0.2", false, false, false),
            ("10.0.0.3", false, true, true),
        ];
        let (slices, endpoints) = created(&service(json!({})), &pods);
        assert_eq!(conditions(&slices[0]), expected);
        let labels = slices[0].metadata.labels.as_ref().unwrap();
        assert_eq!((labels[SERVICE_NAME].as_str(), labels["x"].as_str()), ("web", "y"));
        let port = &slices[0].ports.as_ref().unwrap()[0];
        assert_eq!((port.name.as_deref(), port.port), (Some("http"), Some(8080)));
        let subset = &endpoints["subsets"][0];
        assert_eq!(subset["addresses"].as_array().unwrap().len(), 1);
        assert_eq!(subset["notReadyAddresses"][0]["ip"], "10.0.0.2");

        let (slices, _) = created(&service(json!({"publishNotReadyAddresses": true})), &pods);
        assert!(conditions(&slices[0]).iter().all(|(_, ready, serving, _)| *ready && *serving));
    }

    #[test]
    fn named_ports_that_differ_make_slices_of_their_own() {
        let pods = [pod("a", "10.0.0.1", true, 8080), pod("b", "10.0.0.2", true, 9090)];
        let (slices, endpoints) = created(&service(json!({})), &pods);
        assert_eq!(slices.len(), 2);
        assert_ne!(slices[0].metadata.name, slices[1].metadata.name);
        assert_eq!(endpoints["subsets"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn target_ports() {
        let pod = pod("a", "10.0.0.1", true, 8080);
        let cases = [
            (json!({"port": 80}), Some(80)),
            (json!({"port": 80, "targetPort": 3000}), Some(3000)),
            (json!({"port": 80, "targetPort": "web"}), Some(8080)),
            (json!({"port": 80, "targetPort": "web", "protocol": "UDP"}), None),
            (json!({"port": 80, "targetPort": "absent"}), None),
        ];
        for (port, expected) in cases {
            assert_eq!(target_port(&serde_json::from_value(port.clone()).unwrap(), &pod), expected, "{port}");
        }
    }

    #[test]
    fn headless_services_have_host_names_and_need_no_ports() {
        let service = service(json!({"clusterIP": "None", "ports": []}));
        let (slices, endpoints) = created(&service, &[pod("web-0", "10.0.0.1", true, 80)]);
        assert_eq!(slices[0].endpoints.as_ref().unwrap()[0].hostname.as_deref(), Some("web-0"));
        assert!(slices[0].metadata.labels.as_ref().unwrap().contains_key(HEADLESS));
        assert_eq!(endpoints["subsets"][0]["addresses"][0]["ip"], "10.0.0.1");
    }

    #[test]
    fn what_is_right_stays_and_what_is_left_over_goes() {
        let service = service(json!({}));
        let (mut slices, endpoints) = created(&service, &[pod("a", "10.0.0.1", true, 8080)]);
        let endpoints: Endpoints = serde_json::from_value(endpoints).unwrap();
        for slice in &mut slices {
            slice.metadata.uid = Some("slice".to_owned());
        }
        let same = [pod("a", "10.0.0.1", true, 8080)];
        assert_eq!(decide(&service, &same, &slices, Some(&endpoints)), []);
        let writes = decide(&service, &[pod("a", "10.0.0.1", false, 8080)], &slices, Some(&endpoints));
        assert!(
            writes.iter().all(|write| matches!(write.action, Action::Merge(_))) && writes.len() == 2,
            "{writes:?}"
        );
        let writes = decide(&service, &[], &slices, Some(&endpoints));
        assert!(writes.iter().any(|write| matches!(write.action, Action::Delete { .. })), "{writes:?}");
        let selectorless = self::service(json!({"selector": null}));
        assert_eq!(decide(&selectorless, &same, [], None), []);
    }

    #[test]
    fn each_family_has_slices_of_its_own() {
        let dual = |name: &str, six: &str| {
            let mut pod = pod(name, "10.0.0.1", true, 8080);
            pod.status.as_mut().unwrap().pod_ips =
                serde_json::from_value(json!([{ "ip": "10.0.0.1" }, { "ip": six }])).unwrap();
            pod
        };
        let pods = [dual("a", "fd00::1"), pod("old", "10.0.0.2", true, 8080)];
        let seen = |families: Value| -> Vec<(String, Vec<String>)> {
            let (slices, _) = created(&service(json!({ "ipFamilies": families })), &pods);
            let addresses = |slice: &EndpointSlice| {
                conditions(slice).into_iter().map(|(address, ..)| address.to_owned()).collect()
            };
            let mut seen: Vec<_> =
                slices.iter().map(|slice| (slice.address_type.clone(), addresses(slice))).collect();
            seen.sort();
            seen
        };
        let list =
            |addresses: &[&str]| addresses.iter().map(|&address| address.to_owned()).collect::<Vec<_>>();
        let (v4, v6) =
            (("IPv4".to_owned(), list(&["10.0.0.1", "10.0.0.2"])), ("IPv6".to_owned(), list(&["fd00::1"])));
        assert_eq!(seen(json!(["IPv4"])), std::slice::from_ref(&v4));
        assert_eq!(seen(json!(["IPv6"])), std::slice::from_ref(&v6));
        assert_eq!(seen(json!(["IPv6", "IPv4"])), [v4, v6]);
        let six_first = service(json!({ "ipFamilies": ["IPv6", "IPv4"] }));
        let (_, endpoints) = created(&six_first, &pods);
        assert_eq!(endpoints["subsets"][0]["addresses"][0]["ip"], "fd00::1");
        // None yet of either: known to have none.
        let (slices, _) = created(&six_first, &[]);
        assert_eq!(slices.len(), 2);
    }
}
