//! The ingress gateway: a router proxy with its own Deployment, account and LoadBalancer Service.
use crate::Options;
use serde_json::{Value, json};

const NAME: &str = "istio-ingressgateway";

fn labels() -> Value {
    json!({ "app": NAME, "istio": "ingressgateway" })
}

pub(crate) fn ingress(options: &Options) -> Vec<Value> {
    let metadata = json!({ "name": NAME, "namespace": options.namespace, "labels": labels() });
    vec![
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata }),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": metadata,
            "spec": {
                "type": "LoadBalancer",
                "selector": labels(),
                "ports": [
                    { "name": "status-port", "port": 15021, "targetPort": 15021, "protocol": "TCP" },
                    { "name": "http2", "port": 80, "targetPort": 8080, "protocol": "TCP" },
                    { "name": "https", "port": 443, "targetPort": 8443, "protocol": "TCP" },
                ]
            }
        }),
        deployment(options, metadata),
    ]
}

fn deployment(options: &Options, metadata: Value) -> Value {
    let mut pod_labels = labels();
    for (key, value) in [
        ("istio.io/rev", options.revision_label()),
        ("service.istio.io/canonical-name", NAME),
        ("service.istio.io/canonical-revision", "latest"),
        ("sidecar.istio.io/inject", "false"),
    ] {
        pod_labels[key] = json!(value);
    }
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata,
        "spec": {
            "replicas": options.gateway_replicas,
            "selector": { "matchLabels": labels() },
            "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": "100%", "maxUnavailable": "25%" } },
            "template": {
                "metadata": {
                    "labels": pod_labels,
                    "annotations": {
                        "prometheus.io/port": "15020",
                        "prometheus.io/scrape": "true",
                        "prometheus.io/path": "/stats/prometheus",
                        "sidecar.istio.io/inject": "false",
                        "proxy.lateen.io/engine": options.engine.as_str(),
                    }
                },
                "spec": {
                    "serviceAccountName": NAME,
                    "securityContext": { "runAsNonRoot": true, "runAsUser": 1337, "runAsGroup": 1337, "fsGroup": 1337 },
                    "containers": [container(options)],
                    "volumes": volumes(),
                }
            }
        }
    })
}

fn container(options: &Options) -> Value {
    json!({
        "name": "istio-proxy",
        "image": options.proxy_image,
        "args": [
            "proxy", "router",
            "--domain", format!("$(POD_NAMESPACE).svc.{}", options.cluster_domain),
            "--proxyLogLevel=warning",
            "--log_output_level=default:info",
        ],
        "ports": [
            { "name": "status-port", "containerPort": 15021, "protocol": "TCP" },
            { "name": "http2", "containerPort": 8080, "protocol": "TCP" },
            { "name": "https", "containerPort": 8443, "protocol": "TCP" },
            { "name": "http-envoy-prom", "containerPort": 15090, "protocol": "TCP" },
        ],
        "env": env(options),
        "readinessProbe": probe(1, 30),
        "startupProbe": probe(1, 600),
        "resources": { "requests": { "cpu": "100m", "memory": "128Mi" }, "limits": { "cpu": "2000m", "memory": "1024Mi" } },
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "capabilities": { "drop": ["ALL"] },
            "privileged": false,
            "readOnlyRootFilesystem": true,
        },
        "volumeMounts": [
            { "name": "istiod-ca-cert", "mountPath": "/var/run/secrets/istio" },
            { "name": "istio-token", "mountPath": "/var/run/secrets/tokens", "readOnly": true },
            { "name": "istio-data", "mountPath": "/var/lib/istio/data" },
            { "name": "istio-envoy", "mountPath": "/etc/istio/proxy" },
            { "name": "istio-podinfo", "mountPath": "/etc/istio/pod" },
        ]
    })
}

fn probe(period_seconds: u32, failures: u32) -> Value {
    json!({
        "httpGet": { "path": "/healthz/ready", "port": 15021, "scheme": "HTTP" },
        "initialDelaySeconds": 0,
        "periodSeconds": period_seconds,
        "timeoutSeconds": 3,
        "successThreshold": 1,
        "failureThreshold": failures,
    })
}

fn env(options: &Options) -> Value {
    let field =
        |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    let value = |name: &str, value: String| json!({ "name": name, "value": value });
    let owner = format!("kubernetes://apis/apps/v1/namespaces/{}/deployments/{NAME}", options.namespace);
    let proxy_config = &crate::mesh_config(options)["defaultConfig"];
    json!([
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("INSTANCE_IP", "status.podIP"),
        field("HOST_IP", "status.hostIP"),
        field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
        value("CA_ADDR", format!("{}.{}.svc:15012", options.istiod(), options.namespace)),
        value("PROXY_CONFIG", proxy_config.to_string()),
        value("ISTIO_META_CLUSTER_ID", options.cluster_id.clone()),
        value("ISTIO_META_WORKLOAD_NAME", NAME.into()),
        value("ISTIO_META_OWNER", owner),
        value("ISTIO_META_MESH_ID", options.trust_domain.clone()),
        value("ISTIO_META_UNPRIVILEGED_POD", "true".into()),
        value("TRUST_DOMAIN", options.trust_domain.clone()),
        value("LATEEN_ENGINE", options.engine.as_str().into()),
    ])
}

fn volumes() -> Value {
    json!([
        { "name": "istiod-ca-cert", "configMap": { "name": "istio-ca-root-cert" } },
        { "name": "istio-token", "projected": { "sources": [
            { "serviceAccountToken": { "path": "istio-token", "expirationSeconds": 43200, "audience": "istio-ca" } }
        ] } },
        { "name": "istio-data", "emptyDir": {} },
        { "name": "istio-envoy", "emptyDir": {} },
        { "name": "istio-podinfo", "downwardAPI": { "items": [
            { "path": "labels", "fieldRef": { "fieldPath": "metadata.labels" } },
            { "path": "annotations", "fieldRef": { "fieldPath": "metadata.annotations" } },
        ] } },
    ])
}
