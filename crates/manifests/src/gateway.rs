//! The ingress and the egress gateway: router proxies with their own Deployment, account and Service.
use crate::Options;
use serde_json::{Value, json};

/// One of the gateways.
#[derive(Clone, Copy)]
struct Gateway {
    name: &'static str,
    /// Value of the label `istio`, by which Gateways select it.
    role: &'static str,
    replicas: u32,
}

impl Gateway {
    fn labels(self) -> Value {
        json!({ "app": self.name, "istio": self.role })
    }
}

/// Where traffic comes into the mesh: behind a load balancer's address.
pub(crate) fn ingress(options: &Options) -> Vec<Value> {
    let gateway =
        Gateway { name: "istio-ingressgateway", role: "ingressgateway", replicas: options.gateway_replicas };
    let status = json!({ "name": "status-port", "port": 15021, "targetPort": 15021, "protocol": "TCP" });
    objects(options, gateway, "LoadBalancer", vec![status])
}

/// Where traffic leaves the mesh: reached from inside only.
pub(crate) fn egress(options: &Options) -> Vec<Value> {
    let gateway = Gateway { name: "istio-egressgateway", role: "egressgateway", replicas: 1 };
    objects(options, gateway, "ClusterIP", Vec::new())
}

/// As Istio names it, since policies speak of gateways by it.
fn service_account(gateway: Gateway) -> String {
    format!("{}-service-account", gateway.name)
}

fn objects(options: &Options, gateway: Gateway, service: &str, more_ports: Vec<Value>) -> Vec<Value> {
    let labels = gateway.labels();
    let metadata = json!({ "name": gateway.name, "namespace": options.namespace, "labels": labels });
    let role =
        json!({ "name": format!("{}-sds", gateway.name), "namespace": options.namespace, "labels": labels });
    let account =
        json!({ "name": service_account(gateway), "namespace": options.namespace, "labels": labels });
    let mut ports = more_ports;
    ports.extend([
        json!({ "name": "http2", "port": 80, "targetPort": 8080, "protocol": "TCP" }),
        json!({ "name": "https", "port": 443, "targetPort": 8443, "protocol": "TCP" }),
    ]);
    vec![
        json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": account }),
        // By this the control plane knows that the gateway may have its namespace's certificates.
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": role,
            "rules": [{ "apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "list", "watch"] }]
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": role,
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role["name"] },
            "subjects": [{ "kind": "ServiceAccount", "name": account["name"], "namespace": options.namespace }]
        }),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": metadata,
            "spec": { "type": service, "selector": labels, "ports": ports }
        }),
        deployment(options, gateway, &metadata),
    ]
}

fn deployment(options: &Options, gateway: Gateway, metadata: &Value) -> Value {
    let mut pod_labels = gateway.labels();
    for (key, value) in [
        ("istio.io/rev", options.revision_label()),
        ("service.istio.io/canonical-name", gateway.name),
        ("service.istio.io/canonical-revision", "latest"),
        ("sidecar.istio.io/inject", "false"),
    ] {
        pod_labels[key] = json!(value);
    }
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata,
        "spec": {
            "replicas": gateway.replicas,
            "selector": { "matchLabels": gateway.labels() },
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
                    "serviceAccountName": service_account(gateway),
                    "securityContext": {
                        "runAsNonRoot": true, "runAsUser": 1337, "runAsGroup": 1337, "fsGroup": 1337,
                        "seccompProfile": { "type": "RuntimeDefault" }
                    },
                    "containers": [container(options, gateway)],
                    "volumes": volumes(),
                }
            }
        }
    })
}

fn container(options: &Options, gateway: Gateway) -> Value {
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
        "env": env(options, gateway),
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

fn env(options: &Options, gateway: Gateway) -> Value {
    let field =
        |name: &str, path: &str| json!({ "name": name, "valueFrom": { "fieldRef": { "fieldPath": path } } });
    let value = |name: &str, value: String| json!({ "name": name, "value": value });
    let owner =
        format!("kubernetes://apis/apps/v1/namespaces/{}/deployments/{}", options.namespace, gateway.name);
    let proxy_config = &crate::mesh_config(options)["defaultConfig"];
    json!([
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("INSTANCE_IP", "status.podIP"),
        field("INSTANCE_IPS", "status.podIPs"),
        field("HOST_IP", "status.hostIP"),
        field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
        value("CA_ADDR", format!("{}.{}.svc:15012", options.istiod(), options.namespace)),
        value("PROXY_CONFIG", proxy_config.to_string()),
        value("ISTIO_META_CLUSTER_ID", options.cluster_id.clone()),
        value("ISTIO_META_WORKLOAD_NAME", gateway.name.into()),
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
