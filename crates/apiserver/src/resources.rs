//! What kinds exist: the definition of a resource and the registry of built-in and custom ones.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::RwLock;
use serde_json::Value;

use crate::{builtin, schema::SchemaSet};

/// How a resource gets its columns when a client asks for a `Table`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Columns {
    /// Computed by code in `table`.
    Builtin,
    /// By JSONPath (`additionalPrinterColumns`).
    Custom(Vec<PrinterColumn>),
}

/// One of a CRD's `additionalPrinterColumns`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PrinterColumn {
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) format: String,
    pub(crate) description: String,
    pub(crate) priority: i64,
    pub(crate) path: String,
}

/// The scale subresource's fields, as dotted paths without a leading dot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ScalePaths {
    pub(crate) spec_replicas: Vec<String>,
    pub(crate) status_replicas: Vec<String>,
    /// A string field; the built-in kinds compute theirs from `spec.selector`.
    pub(crate) selector: Option<Vec<String>>,
}

/// One version of one resource.
#[derive(Debug, Clone)]
pub(crate) struct ResourceDef {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) kind: String,
    pub(crate) plural: String,
    pub(crate) singular: String,
    pub(crate) list_kind: String,
    pub(crate) namespaced: bool,
    pub(crate) short_names: Vec<String>,
    pub(crate) categories: Vec<String>,
    /// The `status` subresource is separate from the main one.
    pub(crate) has_status: bool,
    pub(crate) scale: Option<ScalePaths>,
    /// Other subresources, for discovery: name, kind, verbs.
    pub(crate) subresources: Vec<(&'static str, &'static str, &'static [&'static str])>,
    /// Name of the object's schema in `schemas`.
    pub(crate) schema_name: String,
    pub(crate) schemas: Arc<SchemaSet>,
    /// Key of the objects in the store: one for all versions of a resource.
    pub(crate) storage: StorageKey,
    /// `apiVersion` the store keeps objects in.
    pub(crate) storage_version: String,
    pub(crate) columns: Columns,
    pub(crate) custom: bool,
}

/// `plural.group`, the same for every version.
pub(crate) type StorageKey = Arc<str>;

impl ResourceDef {
    /// `deployments.apps`, `pods`.
    pub(crate) fn group_resource(&self) -> String {
        if self.group.is_empty() { self.plural.clone() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// `apps/v1`, `v1`.
    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    pub(crate) fn is(&self, group: &str, plural: &str) -> bool {
        self.group == group && self.plural == plural
    }

    /// Whether `metadata.generation` counts changes of this kind (Kubernetes' strategies do for kinds with a status,
    /// and a few more; never for Pods' status-like kinds such as Namespace or Node).
    pub(crate) fn has_generation(&self) -> bool {
        if self.custom {
            return true;
        }
        matches!(
            self.group.as_str(),
            "apps"
                | "batch"
                | "networking.k8s.io"
                | "policy"
                | "admissionregistration.k8s.io"
                | "apiextensions.k8s.io"
                | "discovery.k8s.io"
        ) || self.is("", "pods")
            || self.is("", "replicationcontrollers")
    }
}

/// All resources being served. Built-in ones never change, custom ones follow the CRDs.
pub(crate) struct Registry {
    builtin: Vec<Arc<ResourceDef>>,
    custom: RwLock<Arc<BTreeMap<String, Vec<Arc<ResourceDef>>>>>,
}

impl Registry {
    pub(crate) fn new() -> Self {
        Self { builtin: builtin::resources(), custom: RwLock::new(Arc::new(BTreeMap::new())) }
    }

    /// Sets the served versions of a CRD (`name` is `plural.group`); an empty list removes it.
    pub(crate) fn set_custom(&self, name: &str, versions: Vec<Arc<ResourceDef>>) {
        let mut guard = self.custom.write();
        let mut map = BTreeMap::clone(&guard);
        if versions.is_empty() {
            map.remove(name);
        } else {
            map.insert(name.to_owned(), versions);
        }
        *guard = Arc::new(map);
    }

    /// Every version of every resource, built-in ones first.
    pub(crate) fn all(&self) -> Vec<Arc<ResourceDef>> {
        let custom = Arc::clone(&self.custom.read());
        self.builtin.iter().cloned().chain(custom.values().flatten().cloned()).collect()
    }

    pub(crate) fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<ResourceDef>> {
        let matches =
            |def: &Arc<ResourceDef>| def.group == group && def.version == version && def.plural == plural;
        if let Some(def) = self.builtin.iter().find(|def| matches(def)) {
            return Some(Arc::clone(def));
        }
        let custom = Arc::clone(&self.custom.read());
        custom.get(&format!("{plural}.{group}"))?.iter().find(|def| matches(def)).cloned()
    }

    /// By kind, for owner references and webhooks' `matchPolicy`.
    pub(crate) fn find_kind(&self, api_version: &str, kind: &str) -> Option<Arc<ResourceDef>> {
        self.all().into_iter().find(|def| def.kind == kind && def.api_version() == api_version)
    }

    /// One definition per resource (the preferred version), in the order of [`Self::all`].
    pub(crate) fn storages(&self) -> Vec<Arc<ResourceDef>> {
        let mut seen = std::collections::HashSet::new();
        self.all().into_iter().filter(|def| seen.insert(Arc::clone(&def.storage))).collect()
    }
}

/// `metadata.NAME` as text, or empty.
pub(crate) fn meta<'a>(object: &'a Value, name: &str) -> &'a str {
    object["metadata"][name].as_str().unwrap_or_default()
}
