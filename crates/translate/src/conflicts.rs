//! What configuration objects say against one another, and which of them is in force: the oldest.
use lateen_model::{
    DelegateReason, DestinationRule, Gateway, Sidecar, VirtualService, Visibility, World, hosts_overlap,
    labels_match, resolve_host,
};

use crate::warnings::Warning;

/// Of a VirtualService that delegates: what is left out, and why.
pub(crate) fn delegation(service: &VirtualService, world: &World) -> Vec<Warning> {
    let problems = world.delegate_problems(&service.name);
    problems
        .iter()
        .map(|problem| {
            let delegate = &problem.delegate;
            let path = format!("spec.http[{}].delegate", problem.rule);
            match &problem.reason {
                DelegateReason::NotFound => {
                    Warning::not_found(path, "delegate", &format!("{delegate}"))
                }
                DelegateReason::HasHosts => Warning::left_out(
                    path,
                    "InvalidDelegate",
                    format!("VirtualService {delegate} has hosts of its own: only one without can be delegated to"),
                ),
                DelegateReason::NotExported => Warning::left_out(
                    path,
                    "InvalidDelegate",
                    format!("VirtualService {delegate} is not exported to {}", service.name.namespace),
                ),
                DelegateReason::Delegates(rule) => Warning::left_out(
                    path,
                    "InvalidDelegate",
                    format!("rule {rule} of VirtualService {delegate} delegates itself, which a delegate cannot"),
                ),
                DelegateReason::Conflict(rule) => Warning::left_out(
                    path,
                    "DelegateConflict",
                    format!("the match of rule {rule} of VirtualService {delegate} is not within the match of the rule that delegates to it"),
                ),
            }
        })
        .collect()
}

/// Hosts for which several VirtualServices have rules for the sidecars.
pub(crate) fn mesh_hosts(service: &VirtualService, world: &World) -> Vec<Warning> {
    let default = &world.mesh().default_virtual_service_export_to;
    let visibility = |of: &VirtualService| Visibility::parse(&of.spec.export_to, default, &of.name.namespace);
    let own = visibility(service);
    let mut warnings = Vec::new();
    for (index, host) in service.spec.hosts.iter().enumerate() {
        let host = resolve_host(host, &service.name.namespace, world.domain());
        let named = world.mesh_virtual_services_of(&host);
        if !named.iter().any(|one| one.name == service.name) {
            continue;
        }
        let rivals: Vec<String> = named
            .iter()
            .filter(|one| one.name == service.name || visibility(one).overlaps(&own))
            .map(|one| one.name.to_string())
            .collect();
        let [oldest, _, ..] = rivals.as_slice() else { continue };
        let scope = if own == Visibility::Public { "*" } else { &*service.name.namespace };
        let message = format!(
            "The VirtualServices {} associated with mesh gateway define the same host {scope}/{host} which can lead to undefined behavior. This can be fixed by merging the conflicting VirtualServices into a single resource. The oldest, {oldest}, is in force",
            rivals.join(",")
        );
        warnings.push(Warning {
            code: Some("IST0109"),
            name: "ConflictingMeshGatewayVirtualServiceHosts",
            path: format!("spec.hosts[{index}]"),
            message,
        });
    }
    warnings
}

/// Subsets and policies that an older DestinationRule for the same host defines already.
pub(crate) fn merged_rules(rule: &DestinationRule, world: &World) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let older = world.merged_before(rule);
    for (index, subset) in rule.spec.subsets.iter().enumerate() {
        let first = older.iter().find(|one| one.spec.subsets.iter().any(|known| known.name == subset.name));
        if let Some(first) = first {
            let message = format!(
                "Duplicate subset {} found while merging destination rules for {}: that of {} is in force",
                subset.name, rule.spec.host, first.name
            );
            warnings.push(Warning::left_out(format!("spec.subsets[{index}]"), "DuplicateSubset", message));
        }
    }
    if rule.spec.traffic_policy.is_some()
        && let Some(first) = older.iter().find(|one| one.spec.traffic_policy.is_some())
    {
        let message = format!(
            "the traffic policy of {}, which is older, is in force for {}",
            first.name, rule.spec.host
        );
        warnings.push(Warning::left_out(
            "spec.trafficPolicy".to_owned(),
            "ConflictingTrafficPolicy",
            message,
        ));
    }
    warnings
}

/// Other Sidecars for the same workloads.
pub(crate) fn sidecars(sidecar: &Sidecar, world: &World) -> Vec<Warning> {
    let namespace = &*sidecar.name.namespace;
    let rivals = |concerns: &dyn Fn(&Sidecar) -> bool| {
        let mut rivals: Vec<_> = world.sidecars_of(namespace).filter(|one| concerns(one)).collect();
        rivals.sort_by_key(|one| (one.created, &one.name));
        let names: Vec<&str> = rivals.iter().map(|one| &*one.name.name).collect();
        (names.len() > 1).then(|| (names.join(" "), names[0].to_owned()))
    };
    let path = "spec.workloadSelector".to_owned();
    let Some(selector) = &sidecar.spec.workload_selector else {
        let Some((names, first)) = rivals(&|one| one.spec.workload_selector.is_none()) else {
            return Vec::new();
        };
        let message = format!(
            "The Sidecars [{names}] in namespace {namespace:?} have no workload selector, which can lead to undefined behavior. The oldest, {first}, is in force"
        );
        let name = "MultipleSidecarsWithoutWorkloadSelectors";
        return vec![Warning { code: Some("IST0111"), name, path, message }];
    };
    let pods = world.pods().filter(|pod| *pod.name.namespace == *namespace);
    for pod in pods.filter(|pod| labels_match(&selector.labels, &pod.labels)) {
        let selects = |one: &Sidecar| {
            let selector = one.spec.workload_selector.as_ref();
            selector.is_some_and(|selector| labels_match(&selector.labels, &pod.labels))
        };
        if let Some((names, first)) = rivals(&selects) {
            let message = format!(
                "The Sidecars [{names}] in namespace {namespace:?} select the same workload pod {:?}, which can lead to undefined behavior. The oldest, {first}, is in force",
                &*pod.name.name
            );
            let name = "ConflictingSidecarWorkloadSelectors";
            return vec![Warning { code: Some("IST0110"), name, path, message }];
        }
    }
    Vec::new()
}

/// Other Gateways with servers for the same hosts on the same port of the same proxies.
pub(crate) fn gateways(gateway: &Gateway, world: &World) -> Vec<Warning> {
    let mut warnings = Vec::new();
    for (index, server) in gateway.spec.servers.iter().enumerate() {
        let rivals: Vec<String> = world
            .gateways()
            .filter(|other| other.name != gateway.name && other.spec.selector == gateway.spec.selector)
            .filter(|other| {
                let on_port = other.spec.servers.iter().filter(|one| one.port.number == server.port.number);
                on_port
                    .flat_map(|one| &one.hosts)
                    .any(|theirs| server.hosts.iter().any(|ours| hosts_overlap(theirs, ours)))
            })
            .map(|other| other.name.to_string())
            .collect();
        if rivals.is_empty() {
            continue;
        }
        let selector: Vec<String> =
            gateway.spec.selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
        warnings.push(Warning {
            code: Some("IST0145"),
            name: "ConflictingGateways",
            path: format!("spec.servers[{index}].hosts"),
            message: format!(
                "Conflict with gateways {} (workload selector {}, port {}, hosts {}).",
                rivals.join(","),
                selector.join(","),
                server.port.number,
                server.hosts.join(",")
            ),
        });
    }
    warnings
}
