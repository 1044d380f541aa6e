//! Whether a pod gets a proxy.
//!
//! Which pods are asked about at all is decided by the webhooks' selectors (`istio-injection`, `istio.io/rev`); this is the
//! rest of Istio's rule ("Controlling the injection policy"): host network and system namespaces never, then the pod's own
//! wish, then the selectors of the configuration, then its policy.
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde_json::Value;

use super::InjectorConfig;
use super::config::Policy;
use super::pod::{STATUS_ANNOTATION, annotation, label};

const INJECT: &str = "sidecar.istio.io/inject";
/// Pods of these are part of the cluster itself.
const SYSTEM_NAMESPACES: [&str; 4] = ["kube-system", "kube-public", "kube-node-lease", "local-path-storage"];

/// What to do with a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Add a proxy.
    Inject,
    /// Leave it as it is, for this reason.
    Skip(&'static str),
}

/// Decides about a pod of a namespace.
pub(crate) fn decide(pod: &Value, namespace: &str, config: &InjectorConfig) -> Decision {
    if pod["spec"]["hostNetwork"] == Value::Bool(true) {
        return Decision::Skip("it uses the host's network, whose traffic is not the pod's to capture");
    }
    if SYSTEM_NAMESPACES.contains(&namespace) {
        return Decision::Skip("its namespace belongs to the cluster");
    }
    if annotation(pod, STATUS_ANNOTATION).is_some() {
        return Decision::Skip("it already has a proxy");
    }
    // The label is what the webhooks' selectors see, so it outranks the older annotation.
    match label(pod, INJECT).or_else(|| annotation(pod, INJECT)).map(str::to_ascii_lowercase).as_deref() {
        Some("y" | "yes" | "true" | "on" | "1") => return Decision::Inject,
        Some("n" | "no" | "false" | "off" | "0") => {
            return Decision::Skip("it refuses by sidecar.istio.io/inject");
        }
        // Anything else is no answer, as in Istio.
        _ => {}
    }
    if config.never_inject.iter().any(|selector| selects(selector, pod)) {
        return Decision::Skip("neverInjectSelector of the injector's configuration selects it");
    }
    if config.always_inject.iter().any(|selector| selects(selector, pod)) {
        return Decision::Inject;
    }
    match config.policy {
        Policy::Enabled => Decision::Inject,
        Policy::Disabled => {
            Decision::Skip("the injector's policy is disabled and it does not ask for a proxy")
        }
    }
}

/// Whether a label selector selects a pod. As in Istio, the empty selector selects nothing here.
fn selects(selector: &LabelSelector, pod: &Value) -> bool {
    let labels = selector.match_labels.iter().flatten();
    let expressions = selector.match_expressions.iter().flatten();
    if labels.clone().next().is_none() && expressions.clone().next().is_none() {
        return false;
    }
    labels.clone().all(|(key, value)| label(pod, key) == Some(value))
        && expressions.clone().all(|rule| {
            let found = label(pod, &rule.key);
            let listed = || found.is_some_and(|value| rule.values.iter().flatten().any(|one| one == value));
            match rule.operator.as_str() {
                "In" => listed(),
                "NotIn" => !listed(),
                "Exists" => found.is_some(),
                "DoesNotExist" => found.is_none(),
                _ => false,
            }
        })
}
