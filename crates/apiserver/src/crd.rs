//! CustomResourceDefinitions: checking them, and turning them into served resources.

use std::{collections::HashSet, sync::Arc};

use regex::Regex;
use serde_json::{Map, Value, json};

use crate::{
    builtin,
    defaults::{each, set},
    names,
    resources::{Columns, PrinterColumn, ResourceDef, ScalePaths},
    schema::{SchemaSet, strings},
    status::FieldError,
};

const OBJECT_META: &str = "#/components/schemas/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// Defaults of `pkg/apis/apiextensions/v1/defaults.go`.
pub(crate) fn default_crd(object: &mut Value) {
    let Some(spec) = object.get_mut("spec").filter(|spec| spec.is_object()) else { return };
    set(spec, "conversion", json!({"strategy": "None"}));
    if let Some(names) = spec.get_mut("names").filter(|names| names.is_object()) {
        let kind = names["kind"].as_str().unwrap_or_default().to_owned();
        set(names, "singular", json!(kind.to_lowercase()));
        set(names, "listKind", json!(format!("{kind}List")));
    }
}

/// Everything wrong with a CRD.
pub(crate) fn validate_crd(object: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = &object["spec"];
    let group = spec["group"].as_str().unwrap_or_default();
    let plural = spec["names"]["plural"].as_str().unwrap_or_default();
    if object["metadata"]["name"] != format!("{plural}.{group}") {
        errors.push(FieldError::invalid(
            "metadata.name",
            &object["metadata"]["name"],
            &format!("must be spec.names.plural+\".\"+spec.group ({plural}.{group})"),
        ));
    }
    if !names::is_dns_subdomain(group) || !group.contains('.') {
        errors.push(FieldError::invalid(
            "spec.group",
            &spec["group"],
            "should be a domain with at least one dot",
        ));
    }
    if !matches!(spec["scope"].as_str(), Some("Namespaced" | "Cluster")) {
        errors.push(FieldError::not_supported("spec.scope", &spec["scope"], &["Cluster", "Namespaced"]));
    }
    if spec["conversion"]["strategy"] == "Webhook" {
        errors.push(FieldError::not_supported("spec.conversion.strategy", &json!("Webhook"), &["None"]));
    }
    let versions = spec["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    if versions.iter().filter(|version| version["storage"] == true).count() != 1 {
        errors.push(FieldError::invalid(
            "spec.versions",
            &json!(versions.len()),
            "must have exactly one version marked as storage version",
        ));
    }
    let mut seen = HashSet::new();
    for (index, version) in versions.iter().enumerate() {
        let at = format!("spec.versions[{index}]");
        if !seen.insert(version["name"].as_str()) {
            errors.push(FieldError::duplicate(format!("{at}.name"), &version["name"]));
        }
        if let Some(problem) = names::dns_label_problem(version["name"].as_str().unwrap_or_default()) {
            errors.push(FieldError::invalid(format!("{at}.name"), &version["name"], problem));
        }
        match version["schema"]["openAPIV3Schema"].as_object() {
            None => errors.push(FieldError::required_because(
                format!("{at}.schema.openAPIV3Schema"),
                "schemas are required",
            )),
            Some(_) => {
                let root = &version["schema"]["openAPIV3Schema"];
                if root["type"] != "object" {
                    let at = format!("{at}.schema.openAPIV3Schema.type");
                    errors.push(FieldError::invalid(at, &root["type"], "must be object at the root"));
                }
                check_patterns(root, &format!("{at}.schema.openAPIV3Schema"), &mut errors);
            }
        }
    }
    errors
}

/// Patterns must compile, once, here: validation ignores those that don't.
fn check_patterns(node: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if let Some(pattern) = node["pattern"].as_str()
        && let Err(problem) = Regex::new(pattern)
    {
        let what = format!("must be a valid regular expression, but isn't: {problem}");
        errors.push(FieldError::invalid(format!("{path}.pattern"), &node["pattern"], &what));
    }
    for (name, child) in node["properties"].as_object().into_iter().flatten() {
        check_patterns(child, &format!("{path}.properties[{name}]"), errors);
    }
    for name in ["items", "additionalProperties", "not"] {
        if node[name].is_object() {
            check_patterns(&node[name], &format!("{path}.{name}"), errors);
        }
    }
    for name in ["allOf", "anyOf", "oneOf"] {
        for (index, child) in node[name].as_array().into_iter().flatten().enumerate() {
            check_patterns(child, &format!("{path}.{name}[{index}]"), errors);
        }
    }
}

/// Writes what the apiextensions controllers would: accepted names, stored versions, conditions.
pub(crate) fn accept(object: &mut Value, now: &str) {
    let names = object["spec"]["names"].clone();
    let storage: Vec<Value> = each(&mut object["spec"], "versions")
        .filter(|version| version["storage"] == true)
        .map(|version| version["name"].clone())
        .collect();
    set(object, "status", json!({}));
    let status = &mut object["status"];
    let mut stored = status["storedVersions"].as_array().cloned().unwrap_or_default();
    stored.extend(storage.into_iter().filter(|name| !stored.contains(name)).collect::<Vec<_>>());
    status["storedVersions"] = Value::Array(stored);
    status["acceptedNames"] = names;
    let condition = |kind: &str, reason: &str, message: &str| json!({"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": now});
    if status["conditions"].as_array().is_none_or(Vec::is_empty) {
        status["conditions"] = json!([
            condition("NamesAccepted", "NoConflicts", "no conflicts found"),
            condition("Established", "InitialNamesAccepted", "the initial names have been accepted"),
        ]);
    }
}

/// `plural.group` and the served versions, preferred first.
pub(crate) fn definitions(object: &Value) -> (String, Vec<Arc<ResourceDef>>) {
    let spec = &object["spec"];
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let versions = spec["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let storage_version = versions
        .iter()
        .find(|version| version["storage"] == true)
        .and_then(|version| version["name"].as_str())
        .unwrap_or_default();
    let mut served: Vec<&Value> = versions.iter().filter(|version| version["served"] == true).collect();
    served
        .sort_by_key(|version| std::cmp::Reverse(version_rank(version["name"].as_str().unwrap_or_default())));
    let definitions =
        served.iter().map(|version| Arc::new(definition(spec, version, &name, storage_version))).collect();
    (name, definitions)
}

/// Kubernetes' order of versions: GA before beta before alpha, newer before older, others last by name.
pub(crate) fn version_rank(version: &str) -> (u8, u32, u32) {
    let parsed = || {
        let rest = version.strip_prefix('v')?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let major = rest[..digits].parse().ok()?;
        let (stage, minor) = match &rest[digits..] {
            "" => (3, ""),
            tail => match (tail.strip_prefix("beta"), tail.strip_prefix("alpha")) {
                (Some(minor), _) => (2, minor),
                (_, Some(minor)) => (1, minor),
                _ => return None,
            },
        };
        Some((stage, major, minor.parse().unwrap_or(0)))
    };
    parsed().unwrap_or((0, 0, 0))
}

fn definition(spec: &Value, version: &Value, storage: &str, storage_version: &str) -> ResourceDef {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (group, names) = (text(&spec["group"]), &spec["names"]);
    let (kind, version_name) = (text(&names["kind"]), text(&version["name"]));
    let reversed: Vec<&str> = group.split('.').rev().collect();
    let schema_name = format!("{}.{version_name}.{kind}", reversed.join("."));
    let mut root = version["schema"]["openAPIV3Schema"].clone();
    if !root.is_object() {
        root = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    }
    set(&mut root, "properties", json!({}));
    root["properties"]["metadata"] = json!({"$ref": OBJECT_META});
    root["properties"]["apiVersion"] = json!({"type": "string", "description": "APIVersion defines the versioned schema of this representation of an object."});
    root["properties"]["kind"] =
        json!({"type": "string", "description": "Kind is the REST resource this object represents."});
    root["x-kubernetes-group-version-kind"] =
        json!([{"group": group, "version": version_name, "kind": kind}]);
    let definitions = Map::from_iter([(schema_name.clone(), root)]);
    let path = |value: &Value| -> Option<Vec<String>> {
        let path = value.as_str()?.trim_start_matches('.');
        Some(path.split('.').map(str::to_owned).collect())
    };
    let scale = version["subresources"].get("scale").and_then(|scale| {
        Some(ScalePaths {
            spec_replicas: path(&scale["specReplicasPath"])?,
            status_replicas: path(&scale["statusReplicasPath"])?,
            selector: path(&scale["labelSelectorPath"]),
        })
    });
    ResourceDef {
        singular: text(&names["singular"]),
        list_kind: text(&names["listKind"]),
        plural: text(&names["plural"]),
        namespaced: spec["scope"] == "Namespaced",
        short_names: strings(&names["shortNames"]),
        categories: strings(&names["categories"]),
        has_status: version["subresources"].get("status").is_some(),
        scale,
        subresources: Vec::new(),
        schema_name,
        schemas: Arc::new(SchemaSet::new(definitions, Some(builtin::schemas()))),
        storage: storage.into(),
        storage_version: format!("{group}/{storage_version}"),
        columns: Columns::Custom(columns(version)),
        custom: true,
        group,
        version: version_name,
        kind,
    }
}

fn columns(version: &Value) -> Vec<PrinterColumn> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let defined: Vec<PrinterColumn> = version["additionalPrinterColumns"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|column| PrinterColumn {
            name: text(&column["name"]),
            kind: text(&column["type"]),
            format: text(&column["format"]),
            description: text(&column["description"]),
            priority: column["priority"].as_i64().unwrap_or(0),
            path: text(&column["jsonPath"]),
        })
        .collect();
    if !defined.is_empty() {
        return defined;
    }
    vec![PrinterColumn {
        name: "Age".to_owned(),
        kind: "date".to_owned(),
        format: String::new(),
        description:
            "CreationTimestamp is a timestamp representing the server time when this object was created."
                .to_owned(),
        priority: 0,
        path: ".metadata.creationTimestamp".to_owned(),
    }]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crd() -> Value {
        json!({"metadata": {"name": "widgets.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget"},
            "versions": [{"name": "v1beta1", "served": true, "storage": false, "schema": {"openAPIV3Schema": {"type": "object"}}},
                {"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}},
                 "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}}}]}})
    }

    #[test]
    fn served_versions_are_ordered() {
        let mut object = crd();
        default_crd(&mut object);
        assert!(validate_crd(&object).is_empty());
        let (name, defs) = definitions(&object);
        assert_eq!(name, "widgets.example.com");
        assert_eq!(defs.iter().map(|d| d.version.as_str()).collect::<Vec<_>>(), ["v1", "v1beta1"]);
        assert!(defs[0].has_status && defs[0].scale.is_some() && !defs[1].has_status);
        assert_eq!(defs[0].singular, "widget");
    }

    #[test]
    fn broken_definitions_are_refused() {
        let mut object = crd();
        object["metadata"]["name"] = json!("x");
        object["spec"]["versions"][0]["storage"] = json!(true);
        object["spec"]["versions"][1]["schema"]["openAPIV3Schema"] =
            json!({"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}});
        let fields: Vec<String> = validate_crd(&object).into_iter().map(|e| e.field).collect();
        assert_eq!(
            fields,
            [
                "metadata.name",
                "spec.versions",
                "spec.versions[1].schema.openAPIV3Schema.properties[a].pattern"
            ]
        );
    }

    #[test]
    fn version_order() {
        let mut versions = ["v1alpha1", "v2", "v1", "v1beta2", "v10", "v1beta1", "foo"];
        versions.sort_by_key(|v| std::cmp::Reverse(version_rank(v)));
        assert_eq!(versions, ["v10", "v2", "v1", "v1beta2", "v1beta1", "v1alpha1", "foo"]);
    }
}
