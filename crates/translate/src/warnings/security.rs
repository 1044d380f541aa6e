//! Warnings about policies.

use std::sync::Arc;

use lateen_api::security::authorization_policy::Action;
use lateen_api::security::target_reference::{TargetKind, Targeted};
use lateen_model::{AuthorizationPolicy, KeySource, PeerAuthentication, RequestAuthentication, World};

use super::Warning;
use crate::providers::Provider;
use crate::tokens::{self, check_keys};

/// Warns of resources behind which there is nobody who could mind the policy.
fn check_targets(spec: &impl Targeted, warnings: &mut Vec<Warning>) {
    let field = if spec.references().1.is_empty() { "spec.targetRef" } else { "spec.targetRefs" };
    for (index, target) in spec.targets().iter().enumerate() {
        if target.target() != Some(TargetKind::Gateway) {
            let index = if field == "spec.targetRefs" { format!("[{index}]") } else { String::new() };
            warnings.push(Warning::no_effect_as(format!("{field}{index}"), "there are no waypoints"));
        }
    }
}

/// Warnings about an AuthorizationPolicy.
pub fn check_authorization_policy(policy: &AuthorizationPolicy, world: &World) -> Vec<Warning> {
    let spec = &policy.spec;
    let mut warnings = Vec::new();
    check_targets(spec, &mut warnings);
    let provider = spec.provider.as_ref().filter(|_| spec.action == Action::Custom);
    if let Some(Err(reason)) = provider.map(|provider| Provider::named(world, &provider.name)) {
        let message = format!("spec.provider: {reason}; the workloads it selects refuse everything");
        let path = "spec.provider".to_owned();
        warnings.push(Warning { code: None, name: "ProviderNotFound", path, message });
    }
    warnings
}

/// Warnings about a RequestAuthentication in a world: where its keys could not be had.
pub fn check_request_authentication(policy: &RequestAuthentication, world: &World) -> Vec<Warning> {
    let spec = &policy.spec;
    let mut warnings = Vec::new();
    check_targets(spec, &mut warnings);
    for (index, rule) in spec.jwt_rules.iter().enumerate() {
        if let Some(reason) =
            Some(&rule.jwks).filter(|keys| !keys.is_empty()).and_then(|keys| check_keys(keys).err())
        {
            let path = format!("spec.jwtRules[{index}].jwks");
            let message = format!("{path}: {reason}; tokens of this issuer are refused");
            warnings.push(Warning { code: None, name: "JwksUnusable", path, message });
        }
        if let Some(reason) = tokens::unreachable(world, rule) {
            let path = format!("spec.jwtRules[{index}].jwksUri");
            let message = format!("{path}: {reason}; until then its tokens are refused");
            warnings.push(Warning { code: None, name: "JwksFetchFailed", path, message });
        }
        let set = KeySource::of(rule).and_then(|source| world.key_set(&source));
        let Some((set, problem)) = set.and_then(|set| Some((set, set.problem.as_ref()?))) else { continue };
        let meanwhile = match &set.keys {
            Some(_) => "the last keys that came are used",
            None => "its tokens are refused",
        };
        let path = format!("spec.jwtRules[{index}]");
        let message = format!("{path}: keys from {}: {problem}; {meanwhile}", set.source);
        warnings.push(Warning { code: None, name: "JwksFetchFailed", path, message });
    }
    warnings
}

/// Warnings about a PeerAuthentication in a world.
pub fn check_peer_authentication(policy: &PeerAuthentication, world: &World) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let root = world.mesh().root_namespace == *policy.name.namespace;
    if root && policy.spec.selects() {
        warnings.push(Warning::no_effect_as(
            "spec.selector",
            "in the root namespace policies are for the whole mesh; those with a selector are not in force, as with Istio",
        ));
    }
    if !policy.spec.selects() {
        let same = |one: &&Arc<PeerAuthentication>| {
            one.name.namespace == policy.name.namespace && !one.spec.selects()
        };
        let first = world.peer_authentications().filter(same).min_by_key(|one| (one.created, &one.name));
        if let Some(first) = first.filter(|first| first.name != policy.name) {
            let reason = format!("{} is older and in force", first.name);
            warnings.push(Warning::left_out("spec".to_owned(), "ConflictingPeerAuthentication", reason));
        }
    }
    warnings
}
