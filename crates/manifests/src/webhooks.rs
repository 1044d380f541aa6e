//! Admission webhooks: who is asked, for which objects.
//!
//! The selectors are Istio's (its injection documentation, "Controlling the injection policy"): a pod is injected when its
//! namespace asks for it and the pod does not refuse, or when the pod asks for it and its namespace says nothing.
use crate::Options;
use serde_json::{Value, json};

/// Names of our MutatingWebhookConfigurations begin with this.
pub const INJECTOR_WEBHOOK_PREFIX: &str = "istio-sidecar-injector";
/// Names of our ValidatingWebhookConfigurations begin with this.
pub const VALIDATOR_WEBHOOK_PREFIX: &str = "istio-validator";

const INJECT: &str = "sidecar.istio.io/inject";
const NAMESPACE_INJECT: &str = "istio-injection";
const REV: &str = "istio.io/rev";

pub(crate) fn objects(options: &Options) -> Vec<Value> {
    vec![injector(options), validator(options)]
}

fn labels(options: &Options) -> Value {
    json!({ "app": "sidecar-injector", "istio.io/rev": options.revision_label() })
}

fn client_config(options: &Options, path: &str) -> Value {
    json!({ "service": { "name": options.istiod(), "namespace": options.namespace, "path": path, "port": 443 } })
}

fn is(key: &str, operator: &str, values: &[&str]) -> Value {
    if values.is_empty() {
        json!({ "key": key, "operator": operator })
    } else {
        json!({ "key": key, "operator": operator, "values": values })
    }
}

fn selector(expressions: &[Value]) -> Value {
    json!({ "matchExpressions": expressions })
}

fn injector(options: &Options) -> Value {
    let revision = options.revision_label();
    let not_refused = is(INJECT, "NotIn", &["false"]);
    let no_rev = is(REV, "DoesNotExist", &[]);
    let no_namespace_inject = is(NAMESPACE_INJECT, "DoesNotExist", &[]);
    let mut webhooks = vec![
        webhook(
            options,
            "rev.namespace",
            selector(&[is(REV, "In", &[revision]), no_namespace_inject.clone()]),
            selector(std::slice::from_ref(&not_refused)),
        ),
        webhook(
            options,
            "rev.object",
            selector(&[no_rev.clone(), no_namespace_inject.clone()]),
            selector(&[not_refused.clone(), is(REV, "In", &[revision])]),
        ),
    ];
    if revision == "default" {
        webhooks.push(webhook(
            options,
            "namespace",
            selector(&[is(NAMESPACE_INJECT, "In", &["enabled"])]),
            selector(&[not_refused]),
        ));
        webhooks.push(webhook(
            options,
            "object",
            selector(&[no_namespace_inject, no_rev.clone()]),
            selector(&[is(INJECT, "In", &["true"]), no_rev]),
        ));
    }
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "MutatingWebhookConfiguration",
        "metadata": { "name": format!("{INJECTOR_WEBHOOK_PREFIX}{}", options.suffix()), "labels": labels(options) },
        "webhooks": webhooks
    })
}

fn webhook(options: &Options, name: &str, namespaces: Value, objects: Value) -> Value {
    json!({
        "name": format!("{name}.sidecar-injector.istio.io"),
        "clientConfig": client_config(options, "/inject"),
        "rules": [{ "operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"] }],
        "failurePolicy": "Fail",
        "reinvocationPolicy": "Never",
        "sideEffects": "None",
        "timeoutSeconds": 10,
        "admissionReviewVersions": ["v1"],
        "namespaceSelector": namespaces,
        "objectSelector": objects,
    })
}

/// The validator starts with `failurePolicy: Ignore`; the control plane sets `Fail` once it answers, as istiod does, so
/// that configuration can be applied before the first control plane runs.
fn validator(options: &Options) -> Value {
    let objects = if options.revision_label() == "default" {
        // The default revision also answers for objects that name no revision.
        json!({ "matchExpressions": [is(REV, "NotIn", &["none"])] })
    } else {
        json!({ "matchExpressions": [is(REV, "In", &[options.revision_label()])] })
    };
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {
            "name": format!("{VALIDATOR_WEBHOOK_PREFIX}{}-{}", options.suffix(), options.namespace),
            "labels": { "app": "istiod", "istio": "istiod", "istio.io/rev": options.revision_label() }
        },
        "webhooks": [{
            "name": "rev.validation.istio.io",
            "clientConfig": client_config(options, "/validate"),
            "rules": [{
                "operations": ["CREATE", "UPDATE"],
                "apiGroups": ["security.istio.io", "networking.istio.io", "telemetry.istio.io", "extensions.istio.io"],
                "apiVersions": ["*"],
                "resources": ["*"]
            }],
            "failurePolicy": "Ignore",
            "sideEffects": "None",
            "timeoutSeconds": 10,
            "admissionReviewVersions": ["v1"],
            "objectSelector": objects,
        }]
    })
}
