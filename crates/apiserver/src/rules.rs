//! Validation of built-in kinds beyond types: required and immutable fields, and the rules people run into.

use std::collections::HashSet;

use serde_json::Value;

use crate::{
    decode::join, names, resources::ResourceDef, schema::Schema, selector::LabelSelector, status::FieldError,
};

/// Lists that must not be empty; other missing lists are empty ones, as in Go.
const REQUIRED_LISTS: &[&str] = &["containers", "versions"];

/// Everything wrong with a new object.
pub(crate) fn validate_create(def: &ResourceDef, object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    names::check_metadata(def, &object["metadata"], &mut errors);
    let schema = def.schemas.schema(&def.schema_name);
    if def.custom {
        errors.extend(crate::structural::validate(schema, object, ""));
        return errors;
    }
    required(schema, object, "", &mut errors);
    match def.kind.as_str() {
        "Pod" => {
            pod_spec(&object["spec"], "spec", &mut errors);
            if !list(&object["spec"], "ephemeralContainers").is_empty() {
                errors.push(FieldError::forbidden("spec.ephemeralContainers", "cannot be set on create"));
            }
        }
        "Deployment" | "ReplicaSet" | "StatefulSet" | "DaemonSet" => workload(&object["spec"], &mut errors),
        "Job" => job(&object["spec"], &mut errors),
        "Service" => service(&object["spec"], &mut errors),
        "ConfigMap" | "Secret" => data_keys(object, &mut errors),
        "CertificateSigningRequest" => crate::certificates::validate_spec(&object["spec"], &mut errors),
        "CustomResourceDefinition" => errors.extend(crate::crd::validate_crd(object)),
        "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration" => webhooks(object, &mut errors),
        _ => {}
    }
    errors
}

/// Everything wrong with a change, besides what [`validate_create`] finds in the result.
pub(crate) fn validate_update(def: &ResourceDef, old: &Value, new: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut immutable = |path: &[&str], why: &str| {
        let at = |object: &Value| path.iter().fold(object.clone(), |value, key| value[*key].clone());
        if at(old) != at(new) {
            errors.push(FieldError::invalid(path.join("."), &at(new), why));
        }
    };
    match def.kind.as_str() {
        "Deployment" | "ReplicaSet" | "DaemonSet" | "StatefulSet" | "Job" => {
            immutable(&["spec", "selector"], "field is immutable");
            if def.kind == "Job" {
                immutable(&["spec", "template"], "field is immutable");
                immutable(&["spec", "completionMode"], "field is immutable");
            }
            if def.kind == "StatefulSet" {
                immutable(&["spec", "serviceName"], "field is immutable");
            }
        }
        "Service" => {
            let fixed = |o: &Value| o["spec"]["type"] != "ExternalName" && !o["spec"]["clusterIP"].is_null();
            if fixed(old) && new["spec"]["type"] != "ExternalName" {
                errors.extend(crate::ip_families::check_change(old, new));
            }
        }
        "Secret" => immutable(&["type"], "field is immutable"),
        "RoleBinding" | "ClusterRoleBinding" => immutable(&["roleRef"], "cannot change roleRef"),
        "CustomResourceDefinition" => {
            immutable(&["spec", "group"], "field is immutable");
            immutable(&["spec", "names", "plural"], "field is immutable");
            immutable(&["spec", "scope"], "field is immutable");
        }
        _ => {}
    }
    if matches!(def.kind.as_str(), "ConfigMap" | "Secret") && old["immutable"] == true {
        for field in ["data", "binaryData", "immutable"] {
            if old[field] != new[field] {
                errors.push(FieldError::forbidden(field, "field is immutable when `immutable` is set"));
            }
        }
    }
    if def.kind == "Pod" && pod_frozen(old) != pod_frozen(new) {
        errors.push(FieldError::forbidden(
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
        ));
    }
    errors
}

/// The part of a pod's spec that updates must leave alone.
fn pod_frozen(pod: &Value) -> Value {
    let mut spec = pod["spec"].clone();
    if let Some(map) = spec.as_object_mut() {
        for free in
            ["activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds", "schedulingGates"]
        {
            map.shift_remove(free);
        }
        // Assigning a node once is the binding.
        map.shift_remove("nodeName");
    }
    for list in ["containers", "initContainers"] {
        for container in crate::defaults::each(&mut spec, list) {
            if let Some(map) = container.as_object_mut() {
                map.shift_remove("image");
                map.shift_remove("imagePullPolicy");
            }
        }
    }
    spec
}

/// Required scalars and objects; status and metadata are other writers' business.
fn required(schema: Schema<'_>, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    match value {
        Value::Object(map) => {
            for name in
                schema.resolved()["required"].as_array().into_iter().flatten().filter_map(Value::as_str)
            {
                let Some(field) = schema.property(name) else { continue };
                let list =
                    matches!(field.type_name(), "array" | "boolean") && !REQUIRED_LISTS.contains(&name);
                let empty = match map.get(name) {
                    None => true,
                    Some(Value::Array(items)) => items.is_empty() && REQUIRED_LISTS.contains(&name),
                    Some(Value::String(text)) => text.is_empty() && name == "name",
                    Some(_) => false,
                };
                if empty && !list && name != "metadata" {
                    errors.push(FieldError::required(join(path, name)));
                }
            }
            for (name, child) in map {
                if path.is_empty() && matches!(name.as_str(), "status" | "metadata") {
                    continue;
                }
                if let Some(field) = schema.field(name) {
                    required(field, child, &join(path, name), errors);
                }
            }
        }
        Value::Array(items) => {
            let Some(item_schema) = schema.items() else { return };
            for (index, item) in items.iter().enumerate() {
                required(item_schema, item, &format!("{path}[{index}]"), errors);
            }
        }
        _ => {}
    }
}

fn list<'a>(object: &'a Value, key: &str) -> &'a [Value] {
    object[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn one_of(value: &Value, path: &str, allowed: &[&str], errors: &mut Vec<FieldError>) {
    if let Some(text) = value.as_str()
        && !allowed.contains(&text)
    {
        errors.push(FieldError::not_supported(path, value, allowed));
    }
}

fn port_number(value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if let Some(number) = value.as_i64()
        && !(1..=65535).contains(&number)
    {
        errors.push(FieldError::invalid(path, value, "must be between 1 and 65535, inclusive"));
    }
}

fn workload(spec: &Value, errors: &mut Vec<FieldError>) {
    names::check_labels(&spec["template"]["metadata"]["labels"], "spec.template.metadata.labels", errors);
    let labels = &spec["template"]["metadata"]["labels"];
    if spec["selector"].is_object() {
        match LabelSelector::from_object(&spec["selector"]) {
            Ok(selector) if selector.is_empty() => errors.push(FieldError::invalid(
                "spec.selector",
                &spec["selector"],
                "empty selector is invalid for deployment",
            )),
            Ok(selector) if !selector.matches(labels) => errors.push(FieldError::invalid(
                "spec.template.metadata.labels",
                labels,
                "`selector` does not match template `labels`",
            )),
            Ok(_) => {}
            Err(problem) => errors.push(FieldError::invalid("spec.selector", &spec["selector"], &problem)),
        }
    }
    if let Some(replicas) = spec["replicas"].as_i64().filter(|replicas| *replicas < 0) {
        errors.push(FieldError::invalid(
            "spec.replicas",
            &replicas.into(),
            "must be greater than or equal to 0",
        ));
    }
    let pod = &spec["template"]["spec"];
    pod_spec(pod, "spec.template.spec", errors);
    one_of(&pod["restartPolicy"], "spec.template.spec.restartPolicy", &["Always"], errors);
}

fn job(spec: &Value, errors: &mut Vec<FieldError>) {
    let (pod, path) = (&spec["template"]["spec"], "spec.template.spec");
    pod_spec(pod, path, errors);
    if pod["restartPolicy"] == "Always" {
        errors.push(FieldError::required_because(
            format!("{path}.restartPolicy"),
            "valid values: \"OnFailure\", \"Never\"",
        ));
    }
}

fn pod_spec(spec: &Value, path: &str, errors: &mut Vec<FieldError>) {
    one_of(
        &spec["restartPolicy"],
        &format!("{path}.restartPolicy"),
        &["Always", "OnFailure", "Never"],
        errors,
    );
    one_of(
        &spec["dnsPolicy"],
        &format!("{path}.dnsPolicy"),
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
        errors,
    );
    let mut volumes = HashSet::new();
    for (index, volume) in list(spec, "volumes").iter().enumerate() {
        let at = format!("{path}.volumes[{index}].name");
        check_name(&volume["name"], &at, &mut volumes, errors);
    }
    let mut seen = HashSet::new();
    for kind in ["initContainers", "containers", "ephemeralContainers"] {
        for (index, container) in list(spec, kind).iter().enumerate() {
            let at = format!("{path}.{kind}[{index}]");
            check_name(&container["name"], &format!("{at}.name"), &mut seen, errors);
            check_container(container, &at, &volumes, errors);
        }
    }
}

fn check_name<'a>(name: &'a Value, path: &str, seen: &mut HashSet<&'a str>, errors: &mut Vec<FieldError>) {
    let Some(text) = name.as_str().filter(|text| !text.is_empty()) else { return };
    if let Some(problem) = names::dns_label_problem(text) {
        errors.push(FieldError::invalid(path, name, problem));
    }
    if !seen.insert(text) {
        errors.push(FieldError::duplicate(path, name));
    }
}

fn check_container(container: &Value, path: &str, volumes: &HashSet<&str>, errors: &mut Vec<FieldError>) {
    if container["image"].as_str().unwrap_or_default().is_empty() {
        errors.push(FieldError::required(format!("{path}.image")));
    }
    one_of(
        &container["imagePullPolicy"],
        &format!("{path}.imagePullPolicy"),
        &["Always", "IfNotPresent", "Never"],
        errors,
    );
    let mut port_names = HashSet::new();
    for (index, port) in list(container, "ports").iter().enumerate() {
        let at = format!("{path}.ports[{index}]");
        port_number(&port["containerPort"], &format!("{at}.containerPort"), errors);
        one_of(&port["protocol"], &format!("{at}.protocol"), &["SCTP", "TCP", "UDP"], errors);
        check_name(&port["name"], &format!("{at}.name"), &mut port_names, errors);
        if port["name"].as_str().is_some_and(|name| name.len() > 15) {
            errors.push(FieldError::invalid(
                format!("{at}.name"),
                &port["name"],
                "must be no more than 15 characters",
            ));
        }
    }
    for (index, mount) in list(container, "volumeMounts").iter().enumerate() {
        if let Some(name) = mount["name"].as_str().filter(|name| !name.is_empty())
            && !volumes.contains(name)
        {
            errors.push(FieldError {
                reason: "FieldValueNotFound",
                field: format!("{path}.volumeMounts[{index}].name"),
                message: format!("Not found: {name:?}"),
            });
        }
    }
    for (index, variable) in list(container, "env").iter().enumerate() {
        if variable["name"].as_str().is_some_and(|name| name.contains('=')) {
            let at = format!("{path}.env[{index}].name");
            errors.push(FieldError::invalid(at, &variable["name"], "must not contain '='"));
        }
    }
    for resources in ["limits", "requests"] {
        for (name, quantity) in container["resources"][resources].as_object().into_iter().flatten() {
            if !is_quantity(quantity) {
                let at = format!("{path}.resources.{resources}.{name}");
                errors.push(FieldError::invalid(at, quantity, "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"));
            }
        }
    }
}

fn is_quantity(value: &Value) -> bool {
    let Some(text) = value.as_str() else { return value.is_number() };
    let digits = text.trim_start_matches(['+', '-']);
    let number_end = digits.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(digits.len());
    let (number, suffix) = digits.split_at(number_end);
    let exponent = suffix.strip_prefix(['e', 'E']).is_some_and(|e| e.parse::<i8>().is_ok());
    number.parse::<f64>().is_ok()
        && (exponent
            || matches!(
                suffix,
                "" | "n"
                    | "u"
                    | "m"
                    | "k"
                    | "M"
                    | "G"
                    | "T"
                    | "P"
                    | "E"
                    | "Ki"
                    | "Mi"
                    | "Gi"
                    | "Ti"
                    | "Pi"
                    | "Ei"
            ))
}

fn service(spec: &Value, errors: &mut Vec<FieldError>) {
    let kinds = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    one_of(&spec["type"], "spec.type", &kinds, errors);
    one_of(&spec["sessionAffinity"], "spec.sessionAffinity", &["ClientIP", "None"], errors);
    let ports = list(spec, "ports");
    if ports.is_empty() && spec["type"] != "ExternalName" && spec["clusterIP"] != "None" {
        errors.push(FieldError::required("spec.ports"));
    }
    if spec["type"] == "ExternalName" && spec["externalName"].as_str().unwrap_or_default().is_empty() {
        errors.push(FieldError::required("spec.externalName"));
    }
    names::check_labels(&spec["selector"], "spec.selector", errors);
    let mut seen_names = HashSet::new();
    let mut seen_ports = HashSet::new();
    for (index, port) in ports.iter().enumerate() {
        let at = format!("spec.ports[{index}]");
        port_number(&port["port"], &format!("{at}.port"), errors);
        port_number(&port["targetPort"], &format!("{at}.targetPort"), errors);
        one_of(&port["protocol"], &format!("{at}.protocol"), &["SCTP", "TCP", "UDP"], errors);
        if ports.len() > 1 && port["name"].as_str().unwrap_or_default().is_empty() {
            errors.push(FieldError::required(format!("{at}.name")));
        }
        check_name(&port["name"], &format!("{at}.name"), &mut seen_names, errors);
        if !seen_ports.insert((port["port"].to_string(), port["protocol"].to_string())) {
            errors.push(FieldError::duplicate(at, port));
        }
    }
}

fn data_keys(object: &Value, errors: &mut Vec<FieldError>) {
    for field in ["data", "binaryData"] {
        for key in object[field].as_object().into_iter().flat_map(|map| map.keys()) {
            let valid = !key.is_empty()
                && key.len() <= 253
                && key != "."
                && !key.starts_with("..")
                && key.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
            if !valid {
                errors.push(FieldError::invalid(
                    format!("{field}[{key}]"),
                    &Value::from(key.as_str()),
                    "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
                ));
            }
        }
    }
    if object["kind"] == "Secret" {
        use base64::Engine as _;
        for (key, value) in object["data"].as_object().into_iter().flatten() {
            if base64::engine::general_purpose::STANDARD.decode(value.as_str().unwrap_or_default()).is_err() {
                errors.push(FieldError::invalid(
                    format!("data[{key}]"),
                    &Value::from("<omitted>"),
                    "illegal base64 data",
                ));
            }
        }
    }
}

fn webhooks(object: &Value, errors: &mut Vec<FieldError>) {
    let mut seen = HashSet::new();
    for (index, webhook) in list(object, "webhooks").iter().enumerate() {
        let at = format!("webhooks[{index}]");
        let name = webhook["name"].as_str().unwrap_or_default();
        if !names::is_dns_subdomain(name) || name.split('.').count() < 3 {
            errors.push(FieldError::invalid(
                format!("{at}.name"),
                &webhook["name"],
                "should be a domain with at least three segments separated by dots",
            ));
        }
        if !seen.insert(name) {
            errors.push(FieldError::duplicate(format!("{at}.name"), &webhook["name"]));
        }
        one_of(&webhook["failurePolicy"], &format!("{at}.failurePolicy"), &["Fail", "Ignore"], errors);
        one_of(&webhook["sideEffects"], &format!("{at}.sideEffects"), &["None", "NoneOnDryRun"], errors);
        if webhook["timeoutSeconds"].as_i64().is_some_and(|seconds| !(1..=30).contains(&seconds)) {
            errors.push(FieldError::invalid(
                format!("{at}.timeoutSeconds"),
                &webhook["timeoutSeconds"],
                "the timeout value must be between 1 and 30 seconds",
            ));
        }
        if !list(webhook, "matchConditions").is_empty() {
            errors.push(FieldError::forbidden(
                format!("{at}.matchConditions"),
                "this API server does not evaluate CEL expressions: use rules, namespaceSelector or objectSelector",
            ));
        }
        let config = &webhook["clientConfig"];
        if config["url"].is_null() == config["service"].is_null() {
            errors.push(FieldError::required_because(
                format!("{at}.clientConfig"),
                "exactly one of url or service is required",
            ));
        }
        if list(webhook, "admissionReviewVersions").is_empty() {
            errors.push(FieldError::required_because(
                format!("{at}.admissionReviewVersions"),
                "must specify one of v1, v1beta1",
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin;
    use serde_json::json;

    fn problems(kind: &str, mut object: Value) -> Vec<String> {
        let def = builtin::resources().into_iter().find(|def| def.kind == kind).unwrap();
        crate::defaults::apply(&def, &mut object);
        validate_create(&def, &object).into_iter().map(|e| format!("{}: {}", e.field, e.message)).collect()
    }

    #[test]
    fn pods() {
        let pod = |spec: Value| json!({"metadata": {"name": "x"}, "spec": spec});
        assert_eq!(
            problems("Pod", pod(json!({"containers": [{"name": "a", "image": "b"}]}))),
            Vec::<String>::new()
        );
        assert_eq!(problems("Pod", pod(json!({}))), ["spec.containers: Required value"]);
        let twice = json!({"containers": [{"name": "a", "image": "b"}, {"name": "a", "image": "b"}]});
        assert_eq!(problems("Pod", pod(twice)), ["spec.containers[1].name: Duplicate value: \"a\""]);
        let mount = json!({"containers": [{"name": "a", "image": "b", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]});
        assert_eq!(
            problems("Pod", pod(mount)),
            ["spec.containers[0].volumeMounts[0].name: Not found: \"v\""]
        );
    }

    #[test]
    fn deployments_services_and_names() {
        let deployment = json!({"metadata": {"name": "x"}, "spec": {"selector": {"matchLabels": {"app": "x"}},
            "template": {"metadata": {"labels": {"app": "y"}}, "spec": {"containers": [{"name": "a", "image": "b"}]}}}});
        assert_eq!(
            problems("Deployment", deployment),
            [
                "spec.template.metadata.labels: Invalid value: {\"app\":\"y\"}: `selector` does not match template `labels`"
            ]
        );
        let service =
            json!({"metadata": {"name": "x"}, "spec": {"ports": [{"port": 80}, {"port": 81, "name": "b"}]}});
        assert_eq!(problems("Service", service), ["spec.ports[0].name: Required value"]);
        assert!(
            problems("ConfigMap", json!({"metadata": {"name": "Bad_Name"}}))[0]
                .contains("RFC 1123 subdomain")
        );
    }

    #[test]
    fn webhooks_with_conditions_are_refused() {
        let webhook = |more: Value| {
            let mut webhook = json!({"name": "a.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
                "clientConfig": {"url": "https://a/"}});
            webhook.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            json!({"metadata": {"name": "x"}, "webhooks": [webhook]})
        };
        assert_eq!(problems("ValidatingWebhookConfiguration", webhook(json!({}))), Vec::<String>::new());
        let conditions = json!({"matchConditions": [{"name": "c", "expression": "true"}]});
        for kind in ["ValidatingWebhookConfiguration", "MutatingWebhookConfiguration"] {
            let found = problems(kind, webhook(conditions.clone()));
            assert!(
                found[0].starts_with("webhooks[0].matchConditions: Forbidden: this API server does not"),
                "{found:?}"
            );
        }
    }

    #[test]
    fn quantities() {
        for good in ["1", "100m", "1.5Gi", "1e3", "0"] {
            assert!(is_quantity(&json!(good)), "{good}");
        }
        for bad in ["", "x", "1 Gi", "1GiB"] {
            assert!(!is_quantity(&json!(bad)), "{bad}");
        }
    }
}
