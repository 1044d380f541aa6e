//! VirtualServices that delegate: a rule of one takes its details from the rules of another, which has no hosts.
//! <https://istio.io/latest/docs/reference/config/networking/virtual-service/#Delegate>
use std::collections::BTreeMap;

use lateen_api::networking::StringMatch;
use lateen_api::networking::virtual_service::{Destination, HttpMatchRequest, HttpRoute};

use crate::config::VirtualService;
use crate::digest::digest_of;
use crate::hostname::resolve_host;
use crate::index::resolve_gateway;
use crate::name::ObjectName;
use crate::visibility::Visibility;
use crate::world::World;

/// Why a rule that delegates, or a rule of its delegate, is left out. The other rules stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DelegateProblem {
    /// Index of the delegating rule in `spec.http`.
    pub rule: usize,
    /// What it delegates to.
    pub delegate: ObjectName,
    /// What is wrong.
    pub reason: DelegateReason,
}

/// What can be wrong with a delegation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DelegateReason {
    /// There is no such VirtualService.
    NotFound,
    /// It has hosts of its own, so it is none that can be delegated to.
    HasHosts,
    /// It is not exported to the namespace of the root.
    NotExported,
    /// This rule of the delegate delegates further, possibly in a circle.
    Delegates(usize),
    /// This rule of the delegate can match nothing that the root's rule lets through.
    Conflict(usize),
}

/// Whether a VirtualService is one that others delegate to.
pub fn is_delegate(service: &VirtualService) -> bool {
    service.spec.hosts.is_empty()
}

/// What a rule in `namespace` delegates to; none when it does not.
pub fn delegate_of(rule: &HttpRoute, namespace: &str) -> Option<ObjectName> {
    let delegate = rule.delegate.as_ref()?;
    let namespace = if delegate.namespace.is_empty() { namespace } else { &delegate.namespace };
    Some(ObjectName::new(namespace, &delegate.name))
}

/// The VirtualService with every delegating rule replaced by the rules of its delegate, and what was left out; none when
/// it does not delegate.
pub(crate) fn expand(root: &VirtualService, world: &World) -> Option<(VirtualService, Vec<DelegateProblem>)> {
    if root.spec.http.iter().all(|rule| rule.delegate.is_none()) {
        return None;
    }
    let mut merged = root.clone();
    merged.spec.http.clear();
    let mut digests = vec![root.digest];
    let mut problems = Vec::new();
    for (index, rule) in root.spec.http.iter().enumerate() {
        let Some(name) = delegate_of(rule, &root.name.namespace) else {
            merged.spec.http.push(rule.clone());
            continue;
        };
        let mut problem =
            |reason| problems.push(DelegateProblem { rule: index, delegate: name.clone(), reason });
        let Some(delegate) = world.virtual_services.get(&name) else {
            problem(DelegateReason::NotFound);
            continue;
        };
        if !is_delegate(delegate) {
            problem(DelegateReason::HasHosts);
            continue;
        }
        let default = &world.mesh.default_virtual_service_export_to;
        if !Visibility::parse(&delegate.spec.export_to, default, &name.namespace).allows(&root.name.namespace)
        {
            problem(DelegateReason::NotExported);
            continue;
        }
        digests.push(delegate.digest);
        for (of_delegate, details) in delegate.spec.http.iter().enumerate() {
            if details.delegate.is_some() {
                problem(DelegateReason::Delegates(of_delegate));
                continue;
            }
            let details = completed(details, &name.namespace, &world.domain);
            match merge(rule, &root.name.namespace, details) {
                Some(rule) => merged.spec.http.push(rule),
                None => problem(DelegateReason::Conflict(of_delegate)),
            }
        }
    }
    merged.digest = digest_of(&digests);
    Some((merged, problems))
}

/// A rule whose names mean the same in every namespace.
fn completed(rule: &HttpRoute, namespace: &str, domain: &str) -> HttpRoute {
    let mut rule = rule.clone();
    let complete = |destination: &mut Destination| {
        destination.host = resolve_host(&destination.host, namespace, domain);
    };
    rule.route.iter_mut().for_each(|route| complete(&mut route.destination));
    rule.mirror.iter_mut().for_each(complete);
    rule.mirrors.iter_mut().for_each(|mirror| complete(&mut mirror.destination));
    rule.r#match.iter_mut().for_each(|condition| complete_gateways(condition, namespace));
    rule
}

fn complete_gateways(condition: &mut HttpMatchRequest, namespace: &str) {
    for gateway in &mut condition.gateways {
        *gateway = resolve_gateway(gateway, namespace);
    }
}

/// The delegate's rule within the root's: what it leaves out comes from the root. None when they have nothing in common.
fn merge(root: &HttpRoute, root_namespace: &str, details: HttpRoute) -> Option<HttpRoute> {
    let mut of_root = root.r#match.clone();
    of_root.iter_mut().for_each(|condition| complete_gateways(condition, root_namespace));
    let conditions = merge_conditions(of_root, &details.r#match)?;
    Some(HttpRoute {
        name: joined(&root.name, &details.name),
        r#match: conditions,
        route: details.route,
        redirect: details.redirect,
        direct_response: details.direct_response,
        delegate: None,
        rewrite: details.rewrite.or_else(|| root.rewrite.clone()),
        timeout: details.timeout.or_else(|| root.timeout.clone()),
        retries: details.retries.or_else(|| root.retries.clone()),
        fault: details.fault.or_else(|| root.fault.clone()),
        mirror: details.mirror.or_else(|| root.mirror.clone()),
        mirrors: if details.mirrors.is_empty() { root.mirrors.clone() } else { details.mirrors },
        mirror_percent: details.mirror_percent.or(root.mirror_percent),
        mirror_percentage: details.mirror_percentage.or_else(|| root.mirror_percentage.clone()),
        cors_policy: details.cors_policy.or_else(|| root.cors_policy.clone()),
        headers: details.headers.or_else(|| root.headers.clone()),
    })
}

fn joined(root: &str, details: &str) -> String {
    match (root, details) {
        (root, "") => root.to_owned(),
        ("", details) => details.to_owned(),
        (root, details) => format!("{root}-{details}"),
    }
}

/// Every condition of the delegate within every one of the root that leaves room for it; none when one finds no room.
fn merge_conditions(
    root: Vec<HttpMatchRequest>,
    details: &[HttpMatchRequest],
) -> Option<Vec<HttpMatchRequest>> {
    if root.is_empty() {
        return Some(details.to_vec());
    }
    if details.is_empty() {
        return Some(root);
    }
    let mut merged = Vec::new();
    for condition in details {
        let before = merged.len();
        let room = root.iter().filter(|outer| !conflicts(outer, condition));
        merged.extend(room.map(|outer| merge_condition(outer, condition)));
        if merged.len() == before {
            return None;
        }
    }
    Some(merged)
}

fn merge_condition(root: &HttpMatchRequest, details: &HttpMatchRequest) -> HttpMatchRequest {
    fn or<T: Clone>(details: &Option<T>, root: &Option<T>) -> Option<T> {
        details.clone().or_else(|| root.clone())
    }
    fn both<V: Clone>(root: &BTreeMap<String, V>, details: &BTreeMap<String, V>) -> BTreeMap<String, V> {
        root.iter().chain(details).map(|(key, value)| (key.clone(), value.clone())).collect()
    }
    fn text(details: &str, root: &str) -> String {
        if details.is_empty() { root.to_owned() } else { details.to_owned() }
    }
    HttpMatchRequest {
        name: joined(&root.name, &details.name),
        uri: or(&details.uri, &root.uri),
        scheme: or(&details.scheme, &root.scheme),
        method: or(&details.method, &root.method),
        authority: or(&details.authority, &root.authority),
        headers: both(&root.headers, &details.headers),
        port: if details.port == 0 { root.port } else { details.port },
        source_labels: both(&root.source_labels, &details.source_labels),
        gateways: if details.gateways.is_empty() { root.gateways.clone() } else { details.gateways.clone() },
        query_params: both(&root.query_params, &details.query_params),
        ignore_uri_case: details.ignore_uri_case,
        without_headers: both(&root.without_headers, &details.without_headers),
        source_namespace: text(&details.source_namespace, &root.source_namespace),
        stat_prefix: text(&details.stat_prefix, &root.stat_prefix),
    }
}

/// Whether the delegate's condition asks for something the root's does not let through.
fn conflicts(root: &HttpMatchRequest, details: &HttpMatchRequest) -> bool {
    let fields = [
        (&root.uri, &details.uri),
        (&root.scheme, &details.scheme),
        (&root.method, &details.method),
        (&root.authority, &details.authority),
    ];
    let maps = [
        (&root.headers, &details.headers),
        (&root.without_headers, &details.without_headers),
        (&root.query_params, &details.query_params),
    ];
    let in_maps = maps.iter().any(|(root, details)| {
        details.iter().any(|(key, leaf)| {
            root.get(key).is_some_and(|root| values_conflict(root.as_ref(), leaf.as_ref()))
        })
    });
    let labels = details
        .source_labels
        .iter()
        .any(|(key, leaf)| root.source_labels.get(key).is_some_and(|root| root != leaf));
    let gateways =
        !root.gateways.is_empty() && details.gateways.iter().any(|gateway| !root.gateways.contains(gateway));
    fields.iter().any(|(root, leaf)| values_conflict(root.as_ref(), leaf.as_ref()))
        || in_maps
        || root.ignore_uri_case != details.ignore_uri_case
        || (root.port != 0 && details.port != 0 && root.port != details.port)
        || (!root.source_namespace.is_empty() && details.source_namespace != root.source_namespace)
        || labels
        || gateways
}

/// As istiod decides: an exact value lets through itself, a prefix what begins with it; beside a regular expression there
/// may be nothing else.
fn values_conflict(root: Option<&StringMatch>, leaf: Option<&StringMatch>) -> bool {
    let (Some(root), Some(leaf)) = (root, leaf) else { return false };
    match (root, leaf) {
        (StringMatch { exact: Some(root), .. }, StringMatch { exact: Some(leaf), .. }) => root != leaf,
        (StringMatch { prefix: Some(root), .. }, StringMatch { exact: Some(leaf), .. })
        | (StringMatch { prefix: Some(root), .. }, StringMatch { prefix: Some(leaf), .. }) => {
            !leaf.starts_with(root.as_str())
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests;
