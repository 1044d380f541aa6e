//! Defaults of built-in kinds (`pkg/apis/*/v1/defaults.go` in Kubernetes).

use serde_json::{Value, json};

use crate::resources::ResourceDef;

/// Inserts `default` when `object` is an object without `key`.
pub(crate) fn set(object: &mut Value, key: &str, default: Value) {
    if let Some(map) = object.as_object_mut()
        && map.get(key).is_none_or(Value::is_null)
    {
        map.insert(key.to_owned(), default);
    }
}

/// The elements of a list field, to change.
pub(crate) fn each<'a>(object: &'a mut Value, key: &str) -> impl Iterator<Item = &'a mut Value> {
    object.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten()
}

/// The sub-object `key`, when there is one.
fn sub<'a>(object: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    object.get_mut(key).filter(|value| value.is_object())
}

/// Fills in what Kubernetes would.
pub(crate) fn apply(def: &ResourceDef, object: &mut Value) {
    if def.custom {
        return;
    }
    match def.kind.as_str() {
        "Pod" => {
            set(object, "spec", json!({}));
            if let Some(spec) = sub(object, "spec") {
                pod_spec(spec, true);
            }
        }
        "PodTemplate" => template(object),
        "Service" => service(object),
        "Secret" => secret(object),
        "Namespace" => namespace(object),
        "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet" | "ReplicationController" => {
            workload(&def.kind, object)
        }
        "Job" => {
            if let Some(spec) = sub(object, "spec") {
                job_spec(spec);
            }
        }
        "CronJob" => cron_job(object),
        "PersistentVolumeClaim" => {
            if let Some(spec) = sub(object, "spec") {
                set(spec, "volumeMode", json!("Filesystem"));
            }
        }
        "PersistentVolume" => {
            if let Some(spec) = sub(object, "spec") {
                set(spec, "volumeMode", json!("Filesystem"));
                set(spec, "persistentVolumeReclaimPolicy", json!("Retain"));
            }
        }
        "StorageClass" => {
            set(object, "reclaimPolicy", json!("Delete"));
            set(object, "volumeBindingMode", json!("Immediate"));
        }
        "HorizontalPodAutoscaler" => {
            if let Some(spec) = sub(object, "spec") {
                set(spec, "minReplicas", json!(1));
            }
        }
        "NetworkPolicy" => network_policy(object),
        "EndpointSlice" => {
            for port in each(object, "ports") {
                set(port, "name", json!(""));
                set(port, "protocol", json!("TCP"));
            }
        }
        "Endpoints" => {
            for subset in each(object, "subsets") {
                for port in each(subset, "ports") {
                    set(port, "protocol", json!("TCP"));
                }
            }
        }
        "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration" => webhooks(&def.kind, object),
        "ClusterRoleBinding" | "RoleBinding" => {
            for subject in each(object, "subjects") {
                let group =
                    if subject["kind"] == "ServiceAccount" { "" } else { "rbac.authorization.k8s.io" };
                if !group.is_empty() {
                    set(subject, "apiGroup", json!(group));
                }
            }
        }
        "CustomResourceDefinition" => crate::crd::default_crd(object),
        _ => {}
    }
}

fn template(object: &mut Value) {
    if let Some(spec) = sub(object, "template").and_then(|template| sub(template, "spec")) {
        pod_spec(spec, false);
    }
}

fn workload(kind: &str, object: &mut Value) {
    let labels = object["spec"]["template"]["metadata"]["labels"].clone();
    if kind == "ReplicationController" {
        let own_labels = object["metadata"]["labels"].is_null() && !labels.is_null();
        if own_labels {
            object["metadata"]["labels"] = labels.clone();
        }
    }
    let Some(spec) = sub(object, "spec") else { return };
    template(spec);
    if kind != "DaemonSet" {
        set(spec, "replicas", json!(1));
    }
    match kind {
        "Deployment" => {
            set(spec, "revisionHistoryLimit", json!(10));
            set(spec, "progressDeadlineSeconds", json!(600));
            set(spec, "strategy", json!({}));
            let strategy = &mut spec["strategy"];
            set(strategy, "type", json!("RollingUpdate"));
            rolling(strategy, &[("maxSurge", json!("25%")), ("maxUnavailable", json!("25%"))]);
        }
        "StatefulSet" => {
            set(spec, "revisionHistoryLimit", json!(10));
            set(spec, "podManagementPolicy", json!("OrderedReady"));
            set(spec, "updateStrategy", json!({}));
            set(
                spec,
                "persistentVolumeClaimRetentionPolicy",
                json!({"whenDeleted": "Retain", "whenScaled": "Retain"}),
            );
            set(&mut spec["updateStrategy"], "type", json!("RollingUpdate"));
            rolling(&mut spec["updateStrategy"], &[("partition", json!(0))]);
            for claim in each(spec, "volumeClaimTemplates") {
                set(claim, "apiVersion", json!("v1"));
                set(claim, "kind", json!("PersistentVolumeClaim"));
                if let Some(claim_spec) = sub(claim, "spec") {
                    set(claim_spec, "volumeMode", json!("Filesystem"));
                }
            }
        }
        "DaemonSet" => {
            set(spec, "revisionHistoryLimit", json!(10));
            set(spec, "updateStrategy", json!({}));
            set(&mut spec["updateStrategy"], "type", json!("RollingUpdate"));
            rolling(&mut spec["updateStrategy"], &[("maxSurge", json!(0)), ("maxUnavailable", json!(1))]);
        }
        "ReplicationController" if !labels.is_null() => set(spec, "selector", labels),
        _ => {}
    }
}

fn rolling(strategy: &mut Value, defaults: &[(&str, Value)]) {
    if strategy["type"] == "RollingUpdate" {
        set(strategy, "rollingUpdate", json!({}));
        for (key, default) in defaults {
            set(&mut strategy["rollingUpdate"], key, default.clone());
        }
    }
}

fn job_spec(spec: &mut Value) {
    template(spec);
    set(spec, "completionMode", json!("NonIndexed"));
    if spec["completions"].is_null() && spec["parallelism"].is_null() {
        set(spec, "completions", json!(1));
    }
    set(spec, "parallelism", json!(1));
    set(spec, "backoffLimit", json!(6));
    set(spec, "suspend", json!(false));
    set(spec, "podReplacementPolicy", json!("TerminatingOrFailed"));
}

fn cron_job(object: &mut Value) {
    let Some(spec) = sub(object, "spec") else { return };
    set(spec, "concurrencyPolicy", json!("Allow"));
    set(spec, "suspend", json!(false));
    set(spec, "successfulJobsHistoryLimit", json!(3));
    set(spec, "failedJobsHistoryLimit", json!(1));
    if let Some(job) = sub(spec, "jobTemplate").and_then(|template| sub(template, "spec")) {
        template(job);
    }
}

fn secret(object: &mut Value) {
    use base64::Engine as _;
    if let Some(Value::Object(plain)) = object.as_object_mut().and_then(|map| map.shift_remove("stringData"))
    {
        set(object, "data", json!({}));
        for (key, value) in plain {
            let encoded =
                base64::engine::general_purpose::STANDARD.encode(value.as_str().unwrap_or_default());
            object["data"][key.as_str()] = json!(encoded);
        }
    }
    set(object, "type", json!("Opaque"));
}

fn namespace(object: &mut Value) {
    let name = object["metadata"]["name"].clone();
    set(&mut object["metadata"], "labels", json!({}));
    object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
    set(object, "spec", json!({}));
    set(object, "status", json!({}));
    set(&mut object["status"], "phase", json!("Active"));
}

fn network_policy(object: &mut Value) {
    let Some(spec) = sub(object, "spec") else { return };
    let types = if spec.get("egress").is_some() { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
    set(spec, "policyTypes", types);
    for direction in ["ingress", "egress"] {
        for rule in each(spec, direction) {
            for port in each(rule, "ports") {
                set(port, "protocol", json!("TCP"));
            }
        }
    }
}

fn webhooks(kind: &str, object: &mut Value) {
    for webhook in each(object, "webhooks") {
        set(webhook, "failurePolicy", json!("Fail"));
        set(webhook, "matchPolicy", json!("Equivalent"));
        set(webhook, "namespaceSelector", json!({}));
        set(webhook, "objectSelector", json!({}));
        set(webhook, "timeoutSeconds", json!(10));
        if kind == "MutatingWebhookConfiguration" {
            set(webhook, "reinvocationPolicy", json!("Never"));
        }
        if let Some(service) = sub(webhook, "clientConfig").and_then(|config| sub(config, "service")) {
            set(service, "port", json!(443));
        }
        for rule in each(webhook, "rules") {
            set(rule, "scope", json!("*"));
        }
    }
}

fn service(object: &mut Value) {
    set(object, "status", json!({"loadBalancer": {}}));
    let Some(spec) = sub(object, "spec") else { return };
    set(spec, "sessionAffinity", json!("None"));
    set(spec, "type", json!("ClusterIP"));
    let kind = spec["type"].as_str().unwrap_or_default().to_owned();
    for port in each(spec, "ports") {
        set(port, "protocol", json!("TCP"));
        let number = port["port"].clone();
        // An unset target port is the port itself (and so is 0, as kubectl sends it).
        if port["targetPort"] == 0 || port["targetPort"] == "" {
            port["targetPort"] = Value::Null;
        }
        set(port, "targetPort", number);
    }
    if kind == "NodePort" || kind == "LoadBalancer" {
        set(spec, "externalTrafficPolicy", json!("Cluster"));
    }
    if kind == "LoadBalancer" {
        set(spec, "allocateLoadBalancerNodePorts", json!(true));
    }
    if kind != "ExternalName" {
        set(spec, "internalTrafficPolicy", json!("Cluster"));
    }
    if spec["sessionAffinity"] == "ClientIP" {
        set(spec, "sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": 10800}}));
    }
}

/// Defaults of a pod's spec; `pod` also gets what only pods (not templates) have.
fn pod_spec(spec: &mut Value, pod: bool) {
    set(spec, "restartPolicy", json!("Always"));
    set(spec, "dnsPolicy", json!("ClusterFirst"));
    set(spec, "schedulerName", json!("default-scheduler"));
    set(spec, "securityContext", json!({}));
    set(spec, "terminationGracePeriodSeconds", json!(30));
    // The deprecated name is kept in step, as Kubernetes does.
    if let Some(name) = spec["serviceAccount"].as_str().map(str::to_owned) {
        set(spec, "serviceAccountName", json!(name));
    }
    if let Some(name) = spec["serviceAccountName"].as_str().map(str::to_owned) {
        spec["serviceAccount"] = json!(name);
    }
    if pod {
        set(spec, "enableServiceLinks", json!(true));
        set(spec, "preemptionPolicy", json!("PreemptLowerPriority"));
        set(spec, "priority", json!(0));
    }
    let host_network = spec["hostNetwork"] == true;
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for item in each(spec, list) {
            container(item, host_network);
        }
    }
    for item in each(spec, "volumes") {
        volume(item);
    }
}

fn container(container: &mut Value, host_network: bool) {
    let image = container["image"].as_str().unwrap_or_default();
    let reference = image.rsplit('/').next().unwrap_or_default();
    let tag = reference
        .split_once('@')
        .map_or_else(|| reference.split_once(':').map(|(_, tag)| tag), |_| Some("digest"));
    let policy = if tag.is_none_or(|tag| tag == "latest") { "Always" } else { "IfNotPresent" };
    set(container, "imagePullPolicy", json!(policy));
    set(container, "terminationMessagePath", json!("/dev/termination-log"));
    set(container, "terminationMessagePolicy", json!("File"));
    set(container, "resources", json!({}));
    for port in each(container, "ports") {
        set(port, "protocol", json!("TCP"));
        if host_network {
            let number = port["containerPort"].clone();
            set(port, "hostPort", number);
        }
    }
    for variable in each(container, "env") {
        if let Some(field) = sub(variable, "valueFrom").and_then(|from| sub(from, "fieldRef")) {
            set(field, "apiVersion", json!("v1"));
        }
        if let Some(resource) = sub(variable, "valueFrom").and_then(|from| sub(from, "resourceFieldRef")) {
            set(resource, "divisor", json!("0"));
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = sub(container, name) {
            set(probe, "timeoutSeconds", json!(1));
            set(probe, "periodSeconds", json!(10));
            set(probe, "successThreshold", json!(1));
            set(probe, "failureThreshold", json!(3));
            handler(probe);
        }
    }
    for name in ["postStart", "preStop"] {
        if let Some(hook) = sub(container, "lifecycle").and_then(|lifecycle| sub(lifecycle, name)) {
            handler(hook);
        }
    }
    // Limits are the default of requests.
    if let Some(limits) = container["resources"]["limits"].as_object().cloned() {
        set(&mut container["resources"], "requests", json!({}));
        for (name, limit) in limits {
            set(&mut container["resources"]["requests"], &name, limit);
        }
    }
}

fn handler(probe: &mut Value) {
    if let Some(get) = sub(probe, "httpGet") {
        set(get, "path", json!("/"));
        set(get, "scheme", json!("HTTP"));
    }
    if let Some(grpc) = sub(probe, "grpc") {
        set(grpc, "service", json!(""));
    }
}

fn volume(volume: &mut Value) {
    const MODE: i64 = 0o644;
    let has_source = volume.as_object().is_some_and(|map| map.keys().any(|key| key != "name"));
    if !has_source {
        set(volume, "emptyDir", json!({}));
    }
    for source in ["secret", "configMap", "downwardAPI"] {
        if let Some(source) = sub(volume, source) {
            set(source, "defaultMode", json!(MODE));
        }
    }
    if let Some(path) = sub(volume, "hostPath") {
        set(path, "type", json!(""));
    }
    let field_refs = |items: &mut Value| {
        for item in each(items, "items") {
            if let Some(field) = sub(item, "fieldRef") {
                set(field, "apiVersion", json!("v1"));
            }
        }
    };
    if let Some(downward) = sub(volume, "downwardAPI") {
        field_refs(downward);
    }
    if let Some(projected) = sub(volume, "projected") {
        set(projected, "defaultMode", json!(MODE));
        for source in each(projected, "sources") {
            if let Some(token) = sub(source, "serviceAccountToken") {
                set(token, "expirationSeconds", json!(3600));
            }
            if let Some(downward) = sub(source, "downwardAPI") {
                field_refs(downward);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin;

    fn defaulted(kind: &str, mut object: Value) -> Value {
        let def = builtin::resources().into_iter().find(|def| def.kind == kind).unwrap();
        apply(&def, &mut object);
        object
    }

    #[test]
    fn deployments_and_their_pods() {
        let object = defaulted(
            "Deployment",
            json!({"metadata": {"name": "x"}, "spec": {"template": {"spec": {
            "containers": [{"name": "a", "image": "repo:5000/x", "ports": [{"containerPort": 80}], "readinessProbe": {"httpGet": {"port": 80}}},
                {"name": "b", "image": "x:1"}]}}}}),
        );
        assert_eq!(
            object["spec"]["strategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}})
        );
        let pod = &object["spec"]["template"]["spec"];
        assert_eq!(pod["containers"][0]["imagePullPolicy"], "Always");
        assert_eq!(pod["containers"][1]["imagePullPolicy"], "IfNotPresent");
        assert_eq!(pod["containers"][0]["ports"][0]["protocol"], "TCP");
        assert_eq!(pod["containers"][0]["readinessProbe"]["httpGet"]["scheme"], "HTTP");
        assert_eq!(pod["terminationGracePeriodSeconds"], 30);
        assert_eq!(object, defaulted("Deployment", object.clone()), "defaulting twice changes nothing");
    }

    #[test]
    fn services_and_secrets() {
        let service =
            defaulted("Service", json!({"metadata": {"name": "x"}, "spec": {"ports": [{"port": 80}]}}));
        assert_eq!(service["spec"]["ports"][0], json!({"port": 80, "protocol": "TCP", "targetPort": 80}));
        assert_eq!(service["spec"]["type"], "ClusterIP");
        let secret = defaulted("Secret", json!({"metadata": {"name": "x"}, "stringData": {"a": "b"}}));
        assert_eq!(secret["data"], json!({"a": "Yg=="}));
        assert!(secret.get("stringData").is_none());
    }
}
