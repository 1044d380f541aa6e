//! CustomResourceDefinitions, generated from the types.
//!
//! Names, short names, categories, columns, labels and status follow Istio's own CRDs, so that what people type and see
//! with `kubectl` is the same.
use std::collections::BTreeMap;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as ext;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use schemars::generate::SchemaSettings;
use schemars::transform::{RecursiveTransform, Transform};
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

use crate::object::{Kind, Status};
use crate::stored::{STORED_KINDS, StoredKind};
use crate::{
    AuthorizationPolicySpec, DestinationRuleSpec, GatewaySpec, PeerAuthenticationSpec,
    RequestAuthenticationSpec, ServiceEntrySpec, SidecarSpec, VirtualServiceSpec, WorkloadEntrySpec,
    WorkloadGroupSpec,
};

/// The CRDs of all kinds, ready to be applied to a Kubernetes API.
pub fn crds() -> Vec<ext::CustomResourceDefinition> {
    let mut crds = vec![
        typed::<AuthorizationPolicySpec>(),
        typed::<DestinationRuleSpec>(),
        typed::<GatewaySpec>(),
        typed::<PeerAuthenticationSpec>(),
        typed::<RequestAuthenticationSpec>(),
        typed::<ServiceEntrySpec>(),
        typed::<SidecarSpec>(),
        typed::<VirtualServiceSpec>(),
        typed::<WorkloadEntrySpec>(),
        typed::<WorkloadGroupSpec>(),
    ];
    crds.extend(STORED_KINDS.iter().map(stored));
    crds
}

fn typed<S: Kind>() -> ext::CustomResourceDefinition {
    let kind = StoredKind {
        group: S::GROUP,
        versions: S::VERSIONS,
        kind: S::KIND,
        plural: S::PLURAL,
        short_names: S::SHORT_NAMES,
        columns: S::COLUMNS,
    };
    definition(&kind, structural_schema::<S>(), true)
}

fn stored(kind: &StoredKind) -> ext::CustomResourceDefinition {
    let any = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    definition(kind, any, false)
}

fn definition(kind: &StoredKind, spec: Value, spec_required: bool) -> ext::CustomResourceDefinition {
    let mut root = json!({
        "type": "object",
        "properties": { "spec": spec, "status": structural_schema::<Status>() },
    });
    root["properties"]["status"]["x-kubernetes-preserve-unknown-fields"] = json!(true);
    if spec_required {
        root["required"] = json!(["spec"]);
    }
    let versions = kind
        .versions
        .iter()
        .enumerate()
        .map(|(index, version)| ext::CustomResourceDefinitionVersion {
            name: (*version).to_owned(),
            served: true,
            storage: index == 0,
            additional_printer_columns: Some(columns(kind)),
            subresources: Some(ext::CustomResourceSubresources {
                status: Some(ext::CustomResourceSubresourceStatus(json!({}))),
                ..Default::default()
            }),
            // The value above is built from this type's own field names, so this cannot fail; were it to, the tests of
            // this module fail and the API server refuses a CRD without a schema.
            schema: serde_json::from_value(root.clone())
                .ok()
                .map(|schema| ext::CustomResourceValidation { open_api_v3_schema: Some(schema) }),
            ..Default::default()
        })
        .collect();
    let singular = kind.kind.to_lowercase();
    let category = kind.group.replace('.', "-");
    ext::CustomResourceDefinition {
        metadata: metadata(kind),
        spec: ext::CustomResourceDefinitionSpec {
            group: kind.group.to_owned(),
            names: ext::CustomResourceDefinitionNames {
                categories: Some(vec!["istio-io".to_owned(), category]),
                kind: kind.kind.to_owned(),
                list_kind: Some(format!("{}List", kind.kind)),
                plural: kind.plural.to_owned(),
                short_names: (!kind.short_names.is_empty())
                    .then(|| kind.short_names.iter().map(|&name| name.to_owned()).collect()),
                singular: Some(singular),
            },
            scope: "Namespaced".to_owned(),
            versions,
            ..Default::default()
        },
        status: None,
    }
}

/// Istio's labels on its CRDs: tools that adopt or remove Istio's CRDs look for them.
fn metadata(kind: &StoredKind) -> ObjectMeta {
    let labels = [("app", "istio-pilot"), ("chart", "istio"), ("heritage", "Tiller"), ("release", "istio")];
    ObjectMeta {
        name: Some(format!("{}.{}", kind.plural, kind.group)),
        labels: Some(labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()),
        annotations: Some(BTreeMap::from([("helm.sh/resource-policy".to_owned(), "keep".to_owned())])),
        ..Default::default()
    }
}

fn columns(kind: &StoredKind) -> Vec<ext::CustomResourceColumnDefinition> {
    let mut columns: Vec<_> = kind
        .columns
        .iter()
        .map(|(name, description, path)| ext::CustomResourceColumnDefinition {
            name: (*name).to_owned(),
            description: Some((*description).to_owned()),
            json_path: (*path).to_owned(),
            type_: "string".to_owned(),
            ..Default::default()
        })
        .collect();
    columns.push(ext::CustomResourceColumnDefinition {
        name: "Age".to_owned(),
        description: Some("Time since the object was created".to_owned()),
        json_path: ".metadata.creationTimestamp".to_owned(),
        type_: "date".to_owned(),
        ..Default::default()
    });
    columns
}

/// The schema of `T` as Kubernetes wants it: everything inline, one `type` per schema, no `$ref`, no `anyOf` of null.
fn structural_schema<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<T>();
    RecursiveTransform(structural).transform(&mut schema);
    schema.to_value()
}

/// One step of the conversion, applied to a schema after its children would be visited; each rule is local.
fn structural(schema: &mut Schema) {
    let Some(object) = schema.as_object_mut() else { return };
    for key in ["$schema", "title", "default", "nullable", "format", "definitions", "components"] {
        object.remove(key);
    }
    unwrap_single(object);
    collapse_enum(object);
    hoist_required(object);
}

/// `anyOf: [X, null]` (an optional message) becomes `X`: absent is the only way to leave a field out, as in Istio's CRDs.
fn unwrap_single(object: &mut Map<String, Value>) {
    for key in ["anyOf", "allOf", "oneOf"] {
        let Some(Value::Array(variants)) = object.get(key) else { continue };
        let mut real = variants.iter().filter(|variant| !is_null_schema(variant));
        if let (Some(Value::Object(only)), None) = (real.next(), real.next()) {
            let only = only.clone();
            object.remove(key);
            for (name, value) in only {
                object.entry(name).or_insert(value);
            }
        }
    }
    if let Some(Value::Array(types)) = object.get("type")
        && let Some(only) = types.iter().find(|name| *name != "null").cloned()
    {
        object.insert("type".to_owned(), only);
    }
    for key in ["title", "nullable", "format", "default"] {
        object.remove(key);
    }
}

fn is_null_schema(schema: &Value) -> bool {
    schema["type"] == "null" || schema["enum"] == json!([null]) || schema.get("const") == Some(&Value::Null)
}

/// Documented enum variants come as `oneOf` of constants; Kubernetes wants a plain `enum`.
fn collapse_enum(object: &mut Map<String, Value>) {
    if let Some(Value::Array(variants)) = object.get("oneOf") {
        let names: Option<Vec<Value>> = variants
            .iter()
            .map(|variant| variant.get("const").or_else(|| variant["enum"].get(0)).cloned())
            .collect();
        if let Some(names) = names {
            object.remove("oneOf");
            object.insert("type".to_owned(), json!("string"));
            object.insert("enum".to_owned(), Value::Array(names));
        }
    }
    if let Some(Value::Array(names)) = object.get_mut("enum") {
        names.retain(|name| !name.is_null());
    }
}

/// Moves the `x-required` marks of properties into their parent's `required` list.
fn hoist_required(object: &mut Map<String, Value>) {
    let Some(Value::Object(properties)) = object.get_mut("properties") else { return };
    let mut required = Vec::new();
    for (name, property) in properties.iter_mut() {
        if let Value::Object(property) = property
            && property.remove("x-required").is_some()
        {
            required.push(Value::String(name.clone()));
        }
    }
    if !required.is_empty() {
        object.insert("required".to_owned(), Value::Array(required));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema_of(plural: &str) -> Value {
        let crds = crds();
        let crd = crds.iter().find(|crd| crd.spec.names.plural == plural).expect("the kind exists");
        let version = &crd.spec.versions[0];
        serde_json::to_value(version.schema.as_ref().expect("a schema")).expect("serializes")["openAPIV3Schema"].take()
    }

    /// What makes a schema "structural": <https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema>
    fn assert_structural(path: &str, schema: &Value) {
        let preserve = schema["x-kubernetes-preserve-unknown-fields"] == json!(true);
        assert!(schema["type"].is_string() || preserve, "{path} has no single type: {schema}");
        for key in
            ["$ref", "anyOf", "oneOf", "allOf", "not", "x-required", "default", "nullable", "definitions"]
        {
            assert!(schema.get(key).is_none(), "{path} has {key}: {schema}");
        }
        if let Some(properties) = schema["properties"].as_object() {
            for (name, property) in properties {
                assert_structural(&format!("{path}.{name}"), property);
            }
        }
        for key in ["items", "additionalProperties"] {
            if let Some(inner) = schema.get(key) {
                assert_structural(&format!("{path}[{key}]"), inner);
            }
        }
    }

    #[test]
    fn every_schema_is_structural() {
        for crd in crds() {
            for version in &crd.spec.versions {
                let schema =
                    version.schema.as_ref().and_then(|s| s.open_api_v3_schema.as_ref()).expect("a schema");
                assert_structural(&crd.spec.names.kind, &serde_json::to_value(schema).expect("serializes"));
                assert!(version.subresources.as_ref().is_some_and(|sub| sub.status.is_some()));
            }
            assert_eq!(crd.spec.versions.iter().filter(|version| version.storage).count(), 1);
        }
    }

    #[test]
    fn virtual_service_follows_istio() {
        let crd = crds().into_iter().find(|crd| crd.spec.names.kind == "VirtualService").expect("exists");
        assert_eq!(crd.metadata.name.as_deref(), Some("virtualservices.networking.istio.io"));
        assert_eq!(crd.spec.names.short_names, Some(vec!["vs".to_owned()]));
        assert_eq!(
            crd.spec.names.categories,
            Some(vec!["istio-io".to_owned(), "networking-istio-io".to_owned()])
        );
        let names: Vec<_> = crd.spec.versions.iter().map(|version| version.name.as_str()).collect();
        assert_eq!(names, ["v1", "v1beta1", "v1alpha3"]);
        assert!(crd.spec.versions[0].storage);
        let columns = crd.spec.versions[0].additional_printer_columns.clone().unwrap_or_default();
        let columns: Vec<_> = columns.iter().map(|column| column.name.as_str()).collect();
        assert_eq!(columns, ["Gateways", "Hosts", "Age"]);
    }

    #[test]
    fn fields_types_enums_and_required_come_through() {
        let schema = schema_of("virtualservices");
        let http = &schema["properties"]["spec"]["properties"]["http"]["items"]["properties"];
        let destination = &http["route"]["items"]["properties"]["destination"];
        assert_eq!(destination["required"], json!(["host"]));
        assert_eq!(destination["properties"]["port"]["properties"]["number"]["type"], "integer");
        assert_eq!(http["route"]["items"]["required"], json!(["destination"]));
        assert_eq!(http["match"]["items"]["properties"]["headers"]["additionalProperties"]["type"], "object");
        assert_eq!(http["timeout"]["type"], "string");
        let gateway = schema_of("gateways");
        let tls = &gateway["properties"]["spec"]["properties"]["servers"]["items"]["properties"]["tls"];
        let modes = tls["properties"]["mode"]["enum"].as_array().expect("an enum");
        assert!(
            modes.contains(&json!("AUTO_PASSTHROUGH")) && modes.contains(&json!("OPTIONAL_MUTUAL")),
            "{modes:?}"
        );
        let rule = schema_of("destinationrules");
        let policy = &rule["properties"]["spec"]["properties"]["trafficPolicy"]["properties"];
        assert_eq!(policy["outlierDetection"]["properties"]["consecutive5xxErrors"]["type"], "integer");
        assert!(policy["loadBalancer"]["properties"]["simple"]["enum"].is_array());
    }
}
