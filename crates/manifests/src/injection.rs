//! ConfigMap `istio-sidecar-injector`: the injection policy, the templates and their values.
//!
//! The keys are Istio's: `config` (policy, selectors, named templates) and `values` (JSON the templates read). The
//! templates are Jinja, rendered by the control plane; editing the ConfigMap changes the next injected pod.
use crate::{Options, control_plane::yaml};
use serde_json::{Value, json};

/// Name of the ConfigMap (`-REVISION` is appended for a revision).
pub const SIDECAR_INJECTOR_CONFIGMAP: &str = "istio-sidecar-injector";

const SIDECAR_TEMPLATE: &str = include_str!("../files/sidecar.yaml.jinja");
const GATEWAY_TEMPLATE: &str = include_str!("../files/gateway.yaml.jinja");

/// The ConfigMap's key `config`.
pub fn injector_config() -> Value {
    json!({
        "defaultTemplates": ["sidecar"],
        "policy": "enabled",
        "alwaysInjectSelector": [],
        "neverInjectSelector": [],
        "injectedAnnotations": {},
        "templates": { "sidecar": SIDECAR_TEMPLATE, "gateway": GATEWAY_TEMPLATE },
    })
}

/// The ConfigMap's key `values`.
pub fn injector_values(options: &Options) -> Value {
    json!({
        "global": {
            "caAddress": format!("{}.{}.svc:15012", options.istiod(), options.namespace),
            "istioNamespace": options.namespace,
            "logging": { "level": "default:info" },
            "meshID": options.trust_domain,
            "multiCluster": { "clusterName": options.cluster_id },
            "proxy": {
                "clusterDomain": options.cluster_domain,
                "componentLogLevel": "misc:error",
                "concurrency": 1,
                "engine": options.engine.as_str(),
                "excludeIPRanges": "",
                "excludeInboundPorts": "",
                "excludeOutboundPorts": "",
                "image": options.proxy_image,
                "includeIPRanges": "*",
                "includeInboundPorts": "*",
                "includeOutboundPorts": "",
                "initResources": { "limits": { "cpu": "2", "memory": "1Gi" }, "requests": { "cpu": "10m", "memory": "40Mi" } },
                "logLevel": "warning",
                "readinessFailureThreshold": 4,
                "readinessInitialDelaySeconds": 0,
                "readinessPeriodSeconds": 1,
                "resources": { "limits": { "cpu": "2", "memory": "1Gi" }, "requests": { "cpu": "10m", "memory": "40Mi" } },
                // Null leaves it to the pod and the node.
                "seccompProfile": { "type": "RuntimeDefault" },
                "statusPort": 15020,
            },
            "trustDomain": options.trust_domain,
        },
        "revision": options.revision_label(),
    })
}

pub(crate) fn config_map(options: &Options) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": format!("{SIDECAR_INJECTOR_CONFIGMAP}{}", options.suffix()),
            "namespace": options.namespace,
            "labels": { "istio.io/rev": options.revision_label() }
        },
        "data": {
            "config": yaml(&injector_config()),
            "values": format!("{:#}", injector_values(options)),
        }
    })
}
