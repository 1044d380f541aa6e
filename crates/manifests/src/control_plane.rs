//! The control plane: namespace, mesh configuration, Service and Deployment `istiod`.
use crate::Options;
use serde_json::{Value, json};

pub(crate) fn namespace(options: &Options) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": { "name": options.namespace, "labels": { "kubernetes.io/metadata.name": options.namespace } }
    })
}

/// The mesh configuration of the demo profile: Istio's defaults with access logs on standard output.
pub fn mesh_config(options: &Options) -> Value {
    json!({
        "accessLogFile": "/dev/stdout",
        "defaultConfig": {
            "discoveryAddress": format!("{}.{}.svc:15012", options.istiod(), options.namespace),
        },
        "enablePrometheusMerge": true,
        "rootNamespace": options.namespace,
        "trustDomain": options.trust_domain,
    })
}

/// ConfigMap `istio` (`istio-REVISION` for a revision), keys `mesh` and `meshNetworks`.
pub(crate) fn config_maps(options: &Options) -> Vec<Value> {
    vec![json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": format!("istio{}", options.suffix()),
            "namespace": options.namespace,
            "labels": { "istio.io/rev": options.revision_label() }
        },
        "data": { "mesh": yaml(&mesh_config(options)), "meshNetworks": "networks: {}\n" }
    })]
}

/// Block YAML of a JSON value. JSON is YAML, so the fallback is still a valid document.
pub(crate) fn yaml(value: &Value) -> String {
    serde_saphyr::to_string(value).unwrap_or_else(|_| value.to_string())
}

pub(crate) fn service(options: &Options) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": options.istiod(), "namespace": options.namespace, "labels": labels(options) },
        "spec": {
            "ports": [
                { "name": "grpc-xds", "port": 15010, "targetPort": 15010, "protocol": "TCP" },
                { "name": "https-dns", "port": 15012, "targetPort": 15012, "protocol": "TCP" },
                { "name": "https-webhook", "port": 443, "targetPort": 15017, "protocol": "TCP" },
                { "name": "http-monitoring", "port": 15014, "targetPort": 15014, "protocol": "TCP" },
            ],
            "selector": { "app": "istiod", "istio.io/rev": options.revision_label() }
        }
    })
}

fn labels(options: &Options) -> Value {
    json!({
        "app": "istiod",
        "istio": "pilot",
        "istio.io/rev": options.revision_label(),
        "app.kubernetes.io/name": "istiod",
        "app.kubernetes.io/managed-by": "lateen",
    })
}

pub(crate) fn deployment(options: &Options) -> Value {
    let mut pod_labels = labels(options);
    pod_labels["sidecar.istio.io/inject"] = json!("false");
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": options.istiod(), "namespace": options.namespace, "labels": labels(options) },
        "spec": {
            "replicas": 1,
            "selector": { "matchLabels": { "app": "istiod", "istio.io/rev": options.revision_label() } },
            "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": "100%", "maxUnavailable": "25%" } },
            "template": {
                "metadata": {
                    "labels": pod_labels,
                    "annotations": { "prometheus.io/port": "15014", "prometheus.io/scrape": "true" }
                },
                "spec": {
                    "serviceAccountName": options.istiod(),
                    "securityContext": {
                        "runAsNonRoot": true, "runAsUser": 1337, "runAsGroup": 1337,
                        "seccompProfile": { "type": "RuntimeDefault" }
                    },
                    "containers": [discovery_container(options)]
                }
            }
        }
    })
}

fn discovery_container(options: &Options) -> Value {
    json!({
        "name": "discovery",
        "image": options.pilot_image,
        "args": ["discovery", "--log-level", options.log_level, "--domain", options.cluster_domain],
        "ports": [
            { "name": "http-ready", "containerPort": 8080, "protocol": "TCP" },
            { "name": "grpc-xds", "containerPort": 15010, "protocol": "TCP" },
            { "name": "tls-xds", "containerPort": 15012, "protocol": "TCP" },
            { "name": "http-monitoring", "containerPort": 15014, "protocol": "TCP" },
            { "name": "https-webhooks", "containerPort": 15017, "protocol": "TCP" },
        ],
        "readinessProbe": {
            "httpGet": { "path": "/ready", "port": 8080 },
            "initialDelaySeconds": 0, "periodSeconds": 1, "timeoutSeconds": 5
        },
        "env": [
            { "name": "REVISION", "value": options.revision_label() },
            { "name": "CLUSTER_ID", "value": options.cluster_id },
            { "name": "POD_NAME", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
            { "name": "POD_NAMESPACE", "valueFrom": { "fieldRef": { "fieldPath": "metadata.namespace" } } },
            { "name": "SERVICE_ACCOUNT", "valueFrom": { "fieldRef": { "fieldPath": "spec.serviceAccountName" } } },
        ],
        "resources": { "requests": { "cpu": "100m", "memory": "128Mi" } },
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] }
        }
    })
}
