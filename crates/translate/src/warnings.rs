//! What the author of a configuration object should know: references that lead nowhere, and fields that have no effect yet.
//! Nothing is ignored without a word.
mod gateway;
mod security;

use std::collections::BTreeSet;
use std::sync::Arc;

use lateen_api::networking::destination_rule::TrafficPolicy;
use lateen_api::networking::service_entry::EntryResolution;
use lateen_api::networking::sidecar::CaptureMode;
use lateen_api::networking::virtual_service::{Destination, HttpRoute, MESH_GATEWAY};
use lateen_model::{
    DestinationRule, ObjectName, PeerMode, Pod, Protocol, Registry, ServiceEntry, Sidecar, VirtualService,
    WorkloadEntry, World, labels_match, resolve_gateway, resolve_host,
};

pub use self::gateway::check_gateway;
pub use self::security::{
    check_authorization_policy, check_peer_authentication, check_request_authentication,
};
use crate::conflicts;
use crate::networks;
use crate::secrets;

/// Name of warnings about what is accepted and does nothing.
const NO_EFFECT_YET: &str = "NoEffectYet";

/// One thing to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Istio's code for it, such as `IST0101`, where it has one.
    pub code: Option<&'static str>,
    /// Istio's name for that code.
    pub name: &'static str,
    /// The field.
    pub path: String,
    /// In words.
    pub message: String,
}

impl Warning {
    fn no_effect(path: impl Into<String>) -> Self {
        let path = path.into();
        Self { code: None, name: NO_EFFECT_YET, message: format!("{path} has no effect yet"), path }
    }

    fn no_effect_as(path: impl Into<String>, reason: &str) -> Self {
        let path = path.into();
        Self { code: None, name: NO_EFFECT_YET, message: format!("{path} has no effect yet: {reason}"), path }
    }

    /// The whole object is not used, for this reason.
    pub fn invalid(reason: &str) -> Self {
        Self {
            code: Some("IST0106"),
            name: "SchemaValidationError",
            path: "spec".to_owned(),
            message: format!("Schema validation error: {reason}"),
        }
    }

    /// Whether it is about something that has no effect, whatever else there is in the mesh.
    pub fn is_about_effect(&self) -> bool {
        self.name == NO_EFFECT_YET
    }

    /// A part of the object is not in force, because of other objects.
    pub(crate) fn left_out(path: String, name: &'static str, message: String) -> Self {
        Self { code: None, name, message: format!("{path}: {message}"), path }
    }

    pub(crate) fn not_found(path: String, kind: &str, what: &str) -> Self {
        let message = format!("Referenced {kind} not found: {what:?}");
        Self { code: Some("IST0101"), name: "ReferencedResourceNotFound", path, message }
    }
}

/// Warnings about a VirtualService in a world.
pub fn check_virtual_service(service: &VirtualService, world: &World) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let own = &service.name.namespace;
    for (index, gateway) in service.spec.gateways.iter().enumerate() {
        let resolved = resolve_gateway(gateway, own);
        let known = resolved == MESH_GATEWAY
            || resolved
                .split_once('/')
                .is_some_and(|(ns, name)| world.gateway(&ObjectName::new(ns, name)).is_some());
        if !known {
            warnings.push(Warning::not_found(format!("spec.gateways[{index}]"), "gateway", gateway));
        }
    }
    for (index, route) in service.spec.http.iter().enumerate() {
        let path = format!("spec.http[{index}]");
        unsupported_in_route(&path, route, &mut warnings);
        for (index, destination) in route.route.iter().enumerate() {
            let path = format!("{path}.route[{index}].destination");
            check_destination(&path, &destination.destination, own, world, &mut warnings);
        }
        if let Some(mirror) = &route.mirror {
            check_destination(&format!("{path}.mirror"), mirror, own, world, &mut warnings);
        }
        for (index, mirror) in route.mirrors.iter().enumerate() {
            let path = format!("{path}.mirrors[{index}].destination");
            check_destination(&path, &mirror.destination, own, world, &mut warnings);
        }
    }
    for (index, route) in service.spec.tls.iter().enumerate() {
        for (index, destination) in (0..).zip(&route.route).map(|(at, one)| ((index, at), one)) {
            let path = format!("spec.tls[{}].route[{}].destination", index.0, index.1);
            check_destination(&path, &destination.destination, own, world, &mut warnings);
        }
    }
    for (index, route) in service.spec.tcp.iter().enumerate() {
        let path = format!("spec.tcp[{index}]");
        for (index, condition) in route.r#match.iter().enumerate() {
            if !condition.source_subnet.is_empty() {
                warnings.push(Warning::no_effect_as(
                    format!("{path}.match[{index}].sourceSubnet"),
                    "Istio does not look at it either",
                ));
            }
        }
        for (index, destination) in route.route.iter().enumerate() {
            let path = format!("{path}.route[{index}].destination");
            check_destination(&path, &destination.destination, own, world, &mut warnings);
        }
    }
    warnings.extend(conflicts::delegation(service, world));
    warnings.extend(conflicts::mesh_hosts(service, world));
    warnings
}

fn unsupported_in_route(path: &str, route: &HttpRoute, warnings: &mut Vec<Warning>) {
    let of_route = route.headers.iter().map(|headers| (format!("{path}.headers"), headers));
    let of_destinations = route.route.iter().enumerate().filter_map(|(index, destination)| {
        Some((format!("{path}.route[{index}].headers"), destination.headers.as_ref()?))
    });
    for (path, headers) in of_route.chain(of_destinations) {
        for (side, operations) in [("request", &headers.request), ("response", &headers.response)] {
            let Some(operations) = operations else { continue };
            let names = operations.set.keys().chain(operations.add.keys()).chain(&operations.remove);
            for name in names.filter(|name| name.starts_with(':') && !crate::headers::is_authority(name)) {
                warnings.push(Warning::no_effect(format!("{path}.{side}[{name}]")));
            }
        }
    }
}

fn check_destination(
    path: &str,
    destination: &Destination,
    own: &str,
    world: &World,
    warnings: &mut Vec<Warning>,
) {
    let Some(service) = world.resolve_service(&destination.host, own) else {
        warnings.push(Warning::not_found(format!("{path}.host"), "host", &destination.host));
        return;
    };
    if let Some(meant) = service.alias_of() {
        let message = format!(
            "{path}.host: {:?} is an alias (ExternalName) of {meant:?}, which the mesh does not know; add a ServiceEntry for that host",
            destination.host
        );
        let path = format!("{path}.host");
        warnings.push(Warning { code: Some("IST0101"), name: "ReferencedResourceNotFound", path, message });
        return;
    }
    if let Some(port) = &destination.port
        && u16::try_from(port.number).ok().and_then(|port| service.port(port)).is_none()
    {
        let what = format!("{}:{}", destination.host, port.number);
        warnings.push(Warning::not_found(format!("{path}.port.number"), "host:port", &what));
    }
    let ports: Vec<u16> = service.mesh_ports().map(|port| port.port).collect();
    if destination.port.is_none() && ports.len() > 1 {
        let message = format!(
            "This VirtualService routes to a service {:?} that exposes multiple ports {ports:?}. Specifying a port in the destination is required to disambiguate.",
            destination.host
        );
        let name = "VirtualServiceDestinationPortSelectorRequired";
        warnings.push(Warning { code: Some("IST0112"), name, path: format!("{path}.port"), message });
    }
    if !destination.subset.is_empty() && !world.has_subset(service, own, &destination.subset) {
        let what = format!("{}+{}", destination.host, destination.subset);
        warnings.push(Warning::not_found(format!("{path}.subset"), "host+subset in destinationrule", &what));
    }
}

/// Warnings about a DestinationRule in a world.
pub fn check_destination_rule(rule: &DestinationRule, world: &World) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let host = resolve_host(&rule.spec.host, &rule.name.namespace, world.domain());
    if !host.starts_with('*') && world.service(&host).is_none() {
        warnings.push(Warning::not_found("spec.host".to_owned(), "host", &rule.spec.host));
    }
    if let Some(policy) = &rule.spec.traffic_policy {
        check_policy("spec.trafficPolicy", policy, rule, world, &mut warnings);
    }
    warnings.extend(conflicts::merged_rules(rule, world));
    for (index, subset) in rule.spec.subsets.iter().enumerate() {
        if let Some(policy) = &subset.traffic_policy {
            let path = format!("spec.subsets[{index}].trafficPolicy");
            check_policy(&path, policy, rule, world, &mut warnings);
        }
    }
    warnings
}

/// What a rule's credential lacks: at the proxies that it selects, else at gateways, wherever they are.
fn missing_credential(path: &str, name: &str, rule: &DestinationRule, world: &World) -> Option<Warning> {
    let selected = rule.spec.workload_selector.as_ref().map(|_| rule.name.namespace.clone());
    let at_gateways = || {
        let selectors: Vec<_> = world.gateways().map(|gateway| &gateway.spec.selector).collect();
        let is_gateway =
            |pod: &&Arc<Pod>| selectors.iter().any(|selector| labels_match(selector, &pod.labels));
        world.pods().filter(is_gateway).map(|pod| pod.name.namespace.clone()).collect::<BTreeSet<_>>()
    };
    let namespaces = selected.map_or_else(at_gateways, |own| [own].into());
    let lacks: Vec<String> = namespaces
        .iter()
        .map(|namespace| secrets::missing_for_client(world, namespace, name))
        .collect::<Option<_>>()?;
    let message = format!("{path}: {}", lacks.first()?);
    Some(Warning {
        code: Some("IST0101"),
        name: "ReferencedResourceNotFound",
        path: path.to_owned(),
        message,
    })
}

fn check_policy(
    path: &str,
    policy: &TrafficPolicy,
    rule: &DestinationRule,
    world: &World,
    warnings: &mut Vec<Warning>,
) {
    let selects = rule.spec.workload_selector.is_some();
    let mut levels = vec![(path.to_owned(), &policy.tls)];
    let ports = policy.port_level_settings.iter().enumerate();
    levels.extend(ports.map(|(index, port)| (format!("{path}.portLevelSettings[{index}]"), &port.tls)));
    for (path, tls) in levels {
        if let Some(tls) = tls.as_ref().filter(|tls| !tls.credential_name.is_empty()) {
            let path = format!("{path}.tls.credentialName");
            warnings.extend(missing_credential(&path, &tls.credential_name, rule, world));
            if !selects {
                warnings.push(Warning::no_effect_as(
                    path,
                    "at sidecars, which use it only from rules with a workloadSelector; gateways heed it",
                ));
            }
        }
    }
    for (field, given) in
        [("tunnel", policy.tunnel.is_some()), ("proxyProtocol", policy.proxy_protocol.is_some())]
    {
        if given {
            warnings.push(Warning::no_effect(format!("{path}.{field}")));
        }
    }
}

/// Warnings about a ServiceEntry in a world.
pub fn check_service_entry(entry: &ServiceEntry, world: &World) -> Vec<Warning> {
    let spec = &entry.spec;
    let mut warnings = Vec::new();
    if spec.resolution == EntryResolution::DynamicDns {
        for (index, port) in spec.ports.iter().enumerate() {
            let protocol = Protocol::parse(&port.protocol);
            if !protocol.is_http() && protocol != Protocol::Tls {
                let reason = "only HTTP and TLS tell which host they are for";
                warnings.push(Warning::no_effect_as(format!("spec.ports[{index}]"), reason));
            } else if port.target_port != 0 && port.target_port != port.number {
                let reason = "hosts are called at the port that is asked for";
                warnings.push(Warning::no_effect_as(format!("spec.ports[{index}].targetPort"), reason));
            }
        }
    }
    for (index, endpoint) in spec.endpoints.iter().enumerate() {
        warnings.extend(networks::out_of_reach(&format!("spec.endpoints[{index}]"), endpoint, world));
    }
    for (index, host) in spec.hosts.iter().enumerate() {
        let own = &entry.name.namespace;
        let known = world.service_in(&host.to_ascii_lowercase(), own);
        if known.is_some_and(|service| service.registry == Registry::Kubernetes) {
            let message = format!(
                "spec.hosts[{index}]: {host:?} is a Kubernetes Service, which is used as it is; only endpoints are added to it"
            );
            let path = format!("spec.hosts[{index}]");
            warnings.push(Warning { code: None, name: "HostOfService", path, message });
        }
    }
    warnings
}

/// Warnings about a Sidecar in a world.
pub fn check_sidecar(sidecar: &Sidecar, world: &World) -> Vec<Warning> {
    let mut warnings = Vec::new();
    for (index, listener) in sidecar.spec.ingress.iter().enumerate() {
        let path = format!("spec.ingress[{index}]");
        if !listener.bind.is_empty() && listener.capture_mode != CaptureMode::None {
            let reason = "what is captured arrives at one listener for all; only one with captureMode NONE has an address of its own";
            warnings.push(Warning::no_effect_as(format!("{path}.bind"), reason));
        }
        if crate::sidecar::is_taken(world, &sidecar.name.namespace, listener) {
            let reason = "a service has this port, for which the proxies have a listener at all addresses; give this one a bind or another port";
            warnings.push(Warning::no_effect_as(path, reason));
        }
    }
    for (index, listener) in sidecar.spec.ingress.iter().enumerate() {
        let Some(tls) = &listener.tls else { continue };
        let labels = sidecar
            .spec
            .workload_selector
            .as_ref()
            .map(|selector| selector.labels.clone())
            .unwrap_or_default();
        let modes = world.peer_policies(&sidecar.name.namespace).of_workload(&labels);
        let port =
            listener.port.as_ref().and_then(|port| u16::try_from(port.number).ok()).unwrap_or_default();
        let path = format!("spec.ingress[{index}].tls");
        if !crate::sidecar::ends_tls(tls) {
            warnings.push(Warning::no_effect_as(path, "only SIMPLE and MUTUAL end at the proxy"));
        } else if modes.of_port(port) != PeerMode::Disable {
            let reason = "mutual TLS of the mesh is accepted there; a PeerAuthentication has to disable it for the port";
            warnings.push(Warning::no_effect_as(path, reason));
        }
    }
    warnings.extend(conflicts::sidecars(sidecar, world));
    warnings
}

/// Warnings about a WorkloadEntry in a world.
pub fn check_workload_entry(entry: &WorkloadEntry, world: &World) -> Vec<Warning> {
    networks::out_of_reach("spec", &entry.spec, world).into_iter().collect()
}
