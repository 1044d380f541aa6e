//! Service accounts and roles: each component may do what it does, and nothing more.
use crate::Options;
use serde_json::{Value, json};

/// Names of cluster-wide objects carry the namespace and revision, so that two installations can live in one cluster.
fn cluster_name(options: &Options) -> String {
    format!("istiod-clusterrole{}-{}", options.suffix(), options.namespace)
}

pub(crate) fn objects(options: &Options) -> Vec<Value> {
    let (istiod, namespace) = (options.istiod(), &options.namespace);
    let subject = json!([{ "kind": "ServiceAccount", "name": istiod, "namespace": namespace }]);
    vec![
        json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": { "name": istiod, "namespace": namespace, "labels": { "app": "istiod" } }
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": { "name": cluster_name(options), "labels": { "app": "istiod" } },
            "rules": cluster_rules()
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": { "name": cluster_name(options), "labels": { "app": "istiod" } },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": cluster_name(options) },
            "subjects": subject
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
            "metadata": { "name": istiod, "namespace": namespace, "labels": { "app": "istiod" } },
            "rules": [
                // The CA: made once, read at every start.
                { "apiGroups": [""], "resources": ["secrets"], "verbs": ["create"] },
                { "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["istio-ca-secret", "cacerts"], "verbs": ["get"] },
                // The keys of token issuers, over a restart.
                { "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["lateen-token-keys"], "verbs": ["get", "patch"] },
                // Mesh configuration and injection templates.
                { "apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list", "watch"] },
            ]
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": { "name": istiod, "namespace": namespace, "labels": { "app": "istiod" } },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": istiod },
            "subjects": subject
        }),
    ]
}

fn cluster_rules() -> Value {
    json!([
        { "apiGroups": [""], "resources": ["services", "pods", "namespaces", "nodes"], "verbs": ["get", "list", "watch"] },
        { "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"] },
        // Certificates of gateways; which they are is not known before a Gateway names them.
        { "apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "list", "watch"] },
        // Istio's own kinds that have an effect: read them, write only their status.
        { "apiGroups": ["networking.istio.io"],
          "resources": ["gateways", "virtualservices", "destinationrules", "serviceentries", "sidecars", "workloadentries", "workloadgroups"],
          "verbs": ["get", "list", "watch"] },
        { "apiGroups": ["networking.istio.io"],
          "resources": ["gateways/status", "virtualservices/status", "destinationrules/status", "serviceentries/status",
            "sidecars/status", "workloadentries/status", "workloadgroups/status"],
          "verbs": ["patch", "update"] },
        // Machines register themselves: their WorkloadEntries are made, and removed when they are gone.
        { "apiGroups": ["networking.istio.io"], "resources": ["workloadentries"],
          "verbs": ["create", "patch", "update", "delete"] },
        { "apiGroups": ["security.istio.io"], "resources": ["peerauthentications"], "verbs": ["get", "list", "watch"] },
        { "apiGroups": ["security.istio.io"], "resources": ["peerauthentications/status"], "verbs": ["patch", "update"] },
        { "apiGroups": ["security.istio.io"], "resources": ["requestauthentications"], "verbs": ["get", "list", "watch"] },
        { "apiGroups": ["security.istio.io"], "resources": ["requestauthentications/status"], "verbs": ["patch", "update"] },
        { "apiGroups": ["security.istio.io"], "resources": ["authorizationpolicies"], "verbs": ["get", "list", "watch"] },
        { "apiGroups": ["security.istio.io"], "resources": ["authorizationpolicies/status"], "verbs": ["patch", "update"] },
        { "apiGroups": ["networking.k8s.io"], "resources": ["ingresses", "ingressclasses"],
          "verbs": ["get", "list", "watch"] },
        { "apiGroups": ["networking.k8s.io"], "resources": ["ingresses/status"], "verbs": ["patch", "update"] },
        // The root certificate is written to every namespace; what is to be created has no name to restrict it by.
        { "apiGroups": [""], "resources": ["configmaps"], "verbs": ["create"] },
        { "apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["istio-ca-root-cert"],
          "verbs": ["get", "list", "watch", "patch", "update"] },
        { "apiGroups": ["admissionregistration.k8s.io"],
          "resources": ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"],
          "verbs": ["get", "list", "watch", "patch"] },
        { "apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"] },
        // Whether a gateway's service account may have the Secrets it asks for.
        { "apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"] },
    ])
}
