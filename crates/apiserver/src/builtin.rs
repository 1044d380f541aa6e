//! The built-in kinds, as a table, and their schemas.

use std::sync::{Arc, LazyLock};

use k8s_openapi::api;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as apiextensions;
use k8s_openapi::schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use crate::{
    merge_keys,
    resources::{Columns, ResourceDef, ScalePaths},
    schema::SchemaSet,
};

/// Puts a type's definition into a generator.
type AddSchema = fn(&mut SchemaGenerator) -> Schema;

struct Row {
    api_version: &'static str,
    kind: &'static str,
    plural: &'static str,
    short: &'static [&'static str],
    categories: &'static [&'static str],
    namespaced: bool,
    status: bool,
    schema_name: fn() -> String,
    schema: AddSchema,
}

macro_rules! row {
    ($version:literal, $kind:literal, $plural:literal, $short:expr, $scope:ident $($flag:ident)*, $type:ty) => {
        Row {
            api_version: $version,
            kind: $kind,
            plural: $plural,
            short: &$short,
            categories: row!(@categories $($flag)*),
            namespaced: row!(@scope $scope),
            status: row!(@status $($flag)*),
            schema_name: || <$type>::schema_name().into_owned(),
            schema: |generator| generator.subschema_for::<$type>(),
        }
    };
    (@scope namespaced) => { true };
    (@scope cluster) => { false };
    (@status status $($rest:ident)*) => { true };
    (@status $other:ident $($rest:ident)*) => { row!(@status $($rest)*) };
    (@status) => { false };
    (@categories all $($rest:ident)*) => { &["all"] };
    (@categories extensions $($rest:ident)*) => { &["api-extensions"] };
    (@categories $other:ident $($rest:ident)*) => { row!(@categories $($rest)*) };
    (@categories) => { &[] };
}

/// Every kind: apiVersion, kind, plural, short names, scope and flags (`status` subresource, categories), type.
const TABLE: &[Row] = &[
    row!("v1", "Pod", "pods", ["po"], namespaced status all, api::core::v1::Pod),
    row!("v1", "Service", "services", ["svc"], namespaced status all, api::core::v1::Service),
    row!("v1", "Endpoints", "endpoints", ["ep"], namespaced, api::core::v1::Endpoints),
    row!("v1", "ConfigMap", "configmaps", ["cm"], namespaced, api::core::v1::ConfigMap),
    row!("v1", "Secret", "secrets", [], namespaced, api::core::v1::Secret),
    row!("v1", "Namespace", "namespaces", ["ns"], cluster status, api::core::v1::Namespace),
    row!("v1", "ServiceAccount", "serviceaccounts", ["sa"], namespaced, api::core::v1::ServiceAccount),
    row!("v1", "Node", "nodes", ["no"], cluster status, api::core::v1::Node),
    row!("v1", "Event", "events", ["ev"], namespaced, api::core::v1::Event),
    row!("v1", "ReplicationController", "replicationcontrollers", ["rc"], namespaced status all, api::core::v1::ReplicationController),
    row!("v1", "PersistentVolume", "persistentvolumes", ["pv"], cluster status, api::core::v1::PersistentVolume),
    row!("v1", "PersistentVolumeClaim", "persistentvolumeclaims", ["pvc"], namespaced status, api::core::v1::PersistentVolumeClaim),
    row!("v1", "LimitRange", "limitranges", ["limits"], namespaced, api::core::v1::LimitRange),
    row!("v1", "ResourceQuota", "resourcequotas", ["quota"], namespaced status, api::core::v1::ResourceQuota),
    row!("v1", "PodTemplate", "podtemplates", [], namespaced, api::core::v1::PodTemplate),
    row!("apps/v1", "Deployment", "deployments", ["deploy"], namespaced status all, api::apps::v1::Deployment),
    row!("apps/v1", "ReplicaSet", "replicasets", ["rs"], namespaced status all, api::apps::v1::ReplicaSet),
    row!("apps/v1", "StatefulSet", "statefulsets", ["sts"], namespaced status all, api::apps::v1::StatefulSet),
    row!("apps/v1", "DaemonSet", "daemonsets", ["ds"], namespaced status all, api::apps::v1::DaemonSet),
    row!(
        "apps/v1",
        "ControllerRevision",
        "controllerrevisions",
        [],
        namespaced,
        api::apps::v1::ControllerRevision
    ),
    row!("batch/v1", "Job", "jobs", [], namespaced status all, api::batch::v1::Job),
    row!("batch/v1", "CronJob", "cronjobs", ["cj"], namespaced status all, api::batch::v1::CronJob),
    row!(
        "discovery.k8s.io/v1",
        "EndpointSlice",
        "endpointslices",
        [],
        namespaced,
        api::discovery::v1::EndpointSlice
    ),
    row!("networking.k8s.io/v1", "Ingress", "ingresses", ["ing"], namespaced status, api::networking::v1::Ingress),
    row!(
        "networking.k8s.io/v1",
        "IngressClass",
        "ingressclasses",
        [],
        cluster,
        api::networking::v1::IngressClass
    ),
    row!(
        "networking.k8s.io/v1",
        "NetworkPolicy",
        "networkpolicies",
        ["netpol"],
        namespaced,
        api::networking::v1::NetworkPolicy
    ),
    row!("coordination.k8s.io/v1", "Lease", "leases", [], namespaced, api::coordination::v1::Lease),
    row!("rbac.authorization.k8s.io/v1", "Role", "roles", [], namespaced, api::rbac::v1::Role),
    row!(
        "rbac.authorization.k8s.io/v1",
        "RoleBinding",
        "rolebindings",
        [],
        namespaced,
        api::rbac::v1::RoleBinding
    ),
    row!(
        "rbac.authorization.k8s.io/v1",
        "ClusterRole",
        "clusterroles",
        [],
        cluster,
        api::rbac::v1::ClusterRole
    ),
    row!(
        "rbac.authorization.k8s.io/v1",
        "ClusterRoleBinding",
        "clusterrolebindings",
        [],
        cluster,
        api::rbac::v1::ClusterRoleBinding
    ),
    row!("admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration", "mutatingwebhookconfigurations", [], cluster extensions,
        api::admissionregistration::v1::MutatingWebhookConfiguration),
    row!("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration", "validatingwebhookconfigurations", [], cluster extensions,
        api::admissionregistration::v1::ValidatingWebhookConfiguration),
    row!("apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions", ["crd", "crds"], cluster status extensions,
        apiextensions::CustomResourceDefinition),
    row!("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers", ["hpa"], namespaced status all,
        api::autoscaling::v2::HorizontalPodAutoscaler),
    row!("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets", ["pdb"], namespaced status, api::policy::v1::PodDisruptionBudget),
    row!("events.k8s.io/v1", "Event", "events", ["ev"], namespaced, api::events::v1::Event),
    row!("certificates.k8s.io/v1", "CertificateSigningRequest", "certificatesigningrequests", ["csr"], cluster status,
        api::certificates::v1::CertificateSigningRequest),
    row!(
        "storage.k8s.io/v1",
        "StorageClass",
        "storageclasses",
        ["sc"],
        cluster,
        api::storage::v1::StorageClass
    ),
    row!(
        "scheduling.k8s.io/v1",
        "PriorityClass",
        "priorityclasses",
        ["pc"],
        cluster,
        api::scheduling::v1::PriorityClass
    ),
];

/// Kinds that are asked, never stored.
pub(crate) struct Review {
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) namespaced: bool,
}

/// The review kinds, all answered in `reviews`.
pub(crate) const REVIEWS: &[Review] = &[
    review("authentication.k8s.io", "TokenReview", "tokenreviews", false),
    review("authentication.k8s.io", "SelfSubjectReview", "selfsubjectreviews", false),
    review("authorization.k8s.io", "SubjectAccessReview", "subjectaccessreviews", false),
    review("authorization.k8s.io", "SelfSubjectAccessReview", "selfsubjectaccessreviews", false),
    review("authorization.k8s.io", "SelfSubjectRulesReview", "selfsubjectrulesreviews", false),
    review("authorization.k8s.io", "LocalSubjectAccessReview", "localsubjectaccessreviews", true),
];

const fn review(group: &'static str, kind: &'static str, plural: &'static str, namespaced: bool) -> Review {
    Review { group, version: "v1", kind, plural, namespaced }
}

/// Types that appear in requests without being resources.
const OTHER_TYPES: &[AddSchema] = &[
    |g| g.subschema_for::<api::autoscaling::v1::Scale>(),
    |g| g.subschema_for::<api::policy::v1::Eviction>(),
    |g| g.subschema_for::<api::core::v1::Binding>(),
    |g| g.subschema_for::<api::authentication::v1::TokenRequest>(),
    |g| g.subschema_for::<api::authentication::v1::TokenReview>(),
    |g| g.subschema_for::<api::authentication::v1::SelfSubjectReview>(),
    |g| g.subschema_for::<api::authorization::v1::SubjectAccessReview>(),
    |g| g.subschema_for::<api::authorization::v1::SelfSubjectAccessReview>(),
    |g| g.subschema_for::<api::authorization::v1::SelfSubjectRulesReview>(),
    |g| g.subschema_for::<api::authorization::v1::LocalSubjectAccessReview>(),
    |g| g.subschema_for::<k8s_openapi::apimachinery::pkg::apis::meta::v1::DeleteOptions>(),
];

/// A pure function's result, kept because generating takes tens of milliseconds.
static DEFINITIONS: LazyLock<(Arc<SchemaSet>, Vec<String>)> = LazyLock::new(generate);

/// Schemas of all built-in types.
pub(crate) fn schemas() -> Arc<SchemaSet> {
    Arc::clone(&DEFINITIONS.0)
}

/// Names of all built-in definitions.
#[cfg(test)]
pub(crate) fn definition_names() -> &'static [String] {
    &DEFINITIONS.1
}

fn generate() -> (Arc<SchemaSet>, Vec<String>) {
    let settings = SchemaSettings::draft2020_12().with(|s| s.definitions_path = "/components/schemas".into());
    let mut generator = settings.into_generator();
    for row in TABLE {
        (row.schema)(&mut generator);
    }
    for add in OTHER_TYPES {
        add(&mut generator);
    }
    let mut definitions = generator.take_definitions(false);
    for (name, definition) in &mut definitions {
        loosen(name, definition);
        wrap_references(definition);
    }
    for row in TABLE {
        let (group, version) = split_api_version(row.api_version);
        definitions[&(row.schema_name)()]["x-kubernetes-group-version-kind"] =
            json!([{"group": group, "version": version, "kind": row.kind}]);
    }
    merge_keys::annotate(&mut definitions);
    let names = definitions.keys().cloned().collect();
    (Arc::new(SchemaSet::new(definitions, None)), names)
}

/// Types whose JSON is freer than the schema k8s-openapi gives them.
fn loosen(name: &str, definition: &mut Value) {
    let short = name.rsplit('.').next().unwrap_or_default();
    let free = match short {
        "JSON" | "JSONSchemaPropsOrArray" | "JSONSchemaPropsOrBool" | "JSONSchemaPropsOrStringArray" => {
            Map::new()
        }
        "FieldsV1" | "RawExtension" => Map::from_iter([("type".to_owned(), json!("object"))]),
        _ => return,
    };
    let description = definition["description"].take();
    *definition = Value::Object(free);
    definition["description"] = description;
    definition["x-kubernetes-preserve-unknown-fields"] = json!(true);
}

/// `$ref` with siblings becomes `allOf` with siblings, as Kubernetes publishes it (OpenAPI 3.0 ignores siblings).
fn wrap_references(node: &mut Value) {
    match node {
        Value::Object(map) => {
            // (A property may be called `$ref`; then it is no string.)
            if map.len() > 1
                && map.get("$ref").is_some_and(Value::is_string)
                && let Some(reference) = map.shift_remove("$ref")
            {
                map.insert("allOf".to_owned(), json!([{"$ref": reference}]));
            }
            for (_, child) in map.iter_mut() {
                wrap_references(child);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(wrap_references),
        _ => {}
    }
}

/// `apps/v1` → (`apps`, `v1`); `v1` → (``, `v1`).
pub(crate) fn split_api_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

/// The definitions of [`TABLE`].
pub(crate) fn resources() -> Vec<Arc<ResourceDef>> {
    TABLE.iter().map(|row| Arc::new(definition(row))).collect()
}

fn definition(row: &Row) -> ResourceDef {
    let (group, version) = split_api_version(row.api_version);
    let scalable = matches!(row.kind, "Deployment" | "ReplicaSet" | "StatefulSet" | "ReplicationController");
    let scale = scalable.then(|| ScalePaths {
        spec_replicas: vec!["spec".to_owned(), "replicas".to_owned()],
        status_replicas: vec!["status".to_owned(), "replicas".to_owned()],
        selector: None,
    });
    // Both versions of Event are one resource, kept in the core version.
    let event = row.kind == "Event";
    let storage =
        if group.is_empty() || event { row.plural.to_owned() } else { format!("{}.{group}", row.plural) };
    ResourceDef {
        group: group.to_owned(),
        version: version.to_owned(),
        kind: row.kind.to_owned(),
        plural: row.plural.to_owned(),
        singular: row.kind.to_lowercase(),
        list_kind: format!("{}List", row.kind),
        namespaced: row.namespaced,
        short_names: row.short.iter().map(|s| (*s).to_owned()).collect(),
        categories: row.categories.iter().map(|s| (*s).to_owned()).collect(),
        has_status: row.status,
        scale,
        subresources: other_subresources(row.kind),
        schema_name: (row.schema_name)(),
        schemas: schemas(),
        storage: storage.into(),
        storage_version: if event { "v1".to_owned() } else { row.api_version.to_owned() },
        columns: Columns::Builtin,
        custom: false,
    }
}

fn other_subresources(kind: &str) -> Vec<(&'static str, &'static str, &'static [&'static str])> {
    const CONNECT: &[&str] = &["create", "get"];
    const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];
    match kind {
        "Pod" => vec![
            ("attach", "PodAttachOptions", CONNECT),
            ("binding", "Binding", &["create"]),
            ("eviction", "Eviction", &["create"]),
            ("exec", "PodExecOptions", CONNECT),
            ("log", "Pod", &["get"]),
            ("portforward", "PodPortForwardOptions", CONNECT),
            ("proxy", "PodProxyOptions", PROXY),
        ],
        "Service" => vec![("proxy", "ServiceProxyOptions", PROXY)],
        "ServiceAccount" => vec![("token", "TokenRequest", &["create"])],
        "Namespace" => vec![("finalize", "Namespace", &["update"])],
        "CertificateSigningRequest" => {
            vec![("approval", "CertificateSigningRequest", &["get", "patch", "update"])]
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemas_cover_the_table_and_resolve() {
        for def in resources() {
            let schema = def.schemas.schema(&def.schema_name);
            assert_eq!(schema.type_name(), "object", "{}", def.kind);
            let metadata = schema.property("metadata").expect("metadata");
            assert!(metadata.property("labels").is_some(), "{}", def.kind);
        }
    }
}
