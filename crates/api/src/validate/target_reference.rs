//! Validation of what policies are for, with Istio's words.
use super::{Findings, check_workload_selector};
use crate::security::target_reference::{PolicyTargetReference, Targeted};

/// As Istio prints the kinds.
const KINDS: &str = "[core/v1/Service networking.istio.io/v1/ServiceEntry \
                     gateway.networking.k8s.io/v1/Gateway gateway.networking.k8s.io/v1/GatewayClass]";

/// Checks the workloads and resources a policy is for.
pub(super) fn check_targets(findings: &mut Findings, spec: &impl Targeted) {
    let (single, list) = spec.references();
    if let Some(selector) = spec.selector() {
        check_workload_selector(findings, "spec.selector", selector);
    }
    let ways = [spec.selector().is_some(), single.is_some(), !list.is_empty()];
    if ways.into_iter().filter(|way| *way).count() > 1 {
        findings.error("spec", "only one of targetRefs or workloadSelector can be set");
    }
    single.into_iter().for_each(|target| check(findings, "spec.targetRef", target));
    for (index, target) in list.iter().enumerate() {
        check(findings, &format!("spec.targetRefs[{index}]"), target);
    }
}

fn check(findings: &mut Findings, path: &str, target: &PolicyTargetReference) {
    if target.name.is_empty() {
        findings.error(path, "targetRef name must be set");
    }
    if !target.namespace.is_empty() {
        findings
            .error(path, "targetRef namespace must not be set; cross namespace referencing is not supported");
    }
    if target.target().is_none() {
        let words = format!("targetRef must be to one of {KINDS} but was {}/{}", target.group, target.kind);
        findings.error(path, words);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::validate::{validate_authorization_policy, validate_request_authentication};

    /// What is said of both kinds of policies, which must be the same.
    fn said(spec: Value) -> Vec<String> {
        let policy = validate_authorization_policy(&serde_json::from_value(spec.clone()).unwrap());
        let tokens = validate_request_authentication(&serde_json::from_value(spec).unwrap());
        let words = |findings: &crate::validate::Findings| -> Vec<String> {
            findings.errors.iter().map(ToString::to_string).collect()
        };
        assert_eq!(words(&policy), words(&tokens));
        words(&policy)
    }

    #[test]
    fn resources_that_policies_are_for() {
        let gateway = json!({ "group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "g" });
        for target in [
            gateway.clone(),
            json!({ "group": "gateway.networking.k8s.io", "kind": "GatewayClass", "name": "istio-waypoint" }),
            json!({ "kind": "Service", "name": "s" }),
            json!({ "group": "core", "kind": "Service", "name": "s" }),
            json!({ "group": "networking.istio.io", "kind": "ServiceEntry", "name": "s" }),
        ] {
            assert_eq!(said(json!({ "targetRefs": [target] })), Vec::<String>::new());
            assert_eq!(said(json!({ "targetRef": target })), Vec::<String>::new());
        }
        let selector = json!({ "matchLabels": { "a": "b" } });
        let both = "only one of targetRefs or workloadSelector can be set";
        for spec in [
            json!({ "selector": selector, "targetRefs": [gateway] }),
            json!({ "selector": selector, "targetRef": gateway }),
            json!({ "targetRef": gateway, "targetRefs": [gateway] }),
        ] {
            let said = said(spec);
            assert!(said.len() == 1 && said[0].contains(both), "{said:?}");
        }
        for (part, words) in [
            (json!({ "name": "" }), "targetRef name must be set"),
            (json!({ "namespace": "other" }), "cross namespace referencing is not supported"),
            (
                json!({ "kind": "Pod" }),
                "gateway.networking.k8s.io/v1/GatewayClass] but was gateway.networking.k8s.io/Pod",
            ),
            (json!({ "group": "networking.istio.io" }), "but was networking.istio.io/Gateway"),
        ] {
            let mut target = gateway.clone();
            for (key, value) in part.as_object().unwrap() {
                target[key] = value.clone();
            }
            let said = said(json!({ "targetRefs": [gateway, target] }));
            assert!(
                said.len() == 1 && said[0].contains("spec.targetRefs[1]") && said[0].contains(words),
                "{said:?}"
            );
        }
    }
}
