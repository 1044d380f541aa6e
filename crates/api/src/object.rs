//! A Kubernetes object of one of Istio's kinds.
use std::borrow::Cow;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

/// What distinguishes one of Istio's kinds; implemented by its spec.
pub trait Kind:
    Clone + std::fmt::Debug + Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static
{
    /// API group, for example `networking.istio.io`.
    const GROUP: &'static str;
    /// Served versions, the stored one first.
    const VERSIONS: &'static [&'static str];
    /// Kind, for example `VirtualService`.
    const KIND: &'static str;
    /// Plural resource name, for example `virtualservices`.
    const PLURAL: &'static str;
    /// Short names `kubectl` accepts.
    const SHORT_NAMES: &'static [&'static str];
    /// Additional printer columns besides Age: name, description, JSON path.
    const COLUMNS: &'static [(&'static str, &'static str, &'static str)];
}

/// An object of kind `S`: metadata, spec and Istio's status.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Object<S> {
    /// Standard object metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// Desired behaviour.
    pub spec: S,
    /// What the control plane found about it.
    #[serde(default)]
    pub status: Option<Status>,
}

impl<S> Object<S> {
    /// A new object with this name and spec in this namespace.
    pub fn new(namespace: &str, name: &str, spec: S) -> Self {
        let metadata = ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        };
        Self { metadata, spec, status: None }
    }
}

/// Writes `apiVersion` and `kind` too, as the Kubernetes API requires of custom resources.
impl<S: Kind> Serialize for Object<S> {
    fn serialize<W: Serializer>(&self, serializer: W) -> Result<W::Ok, W::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("apiVersion", &format!("{}/{}", S::GROUP, S::VERSIONS[0]))?;
        map.serialize_entry("kind", S::KIND)?;
        map.serialize_entry("metadata", &self.metadata)?;
        map.serialize_entry("spec", &self.spec)?;
        if let Some(status) = &self.status {
            map.serialize_entry("status", status)?;
        }
        map.end()
    }
}

impl<S: Kind> kube::Resource for Object<S> {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind(_: &()) -> Cow<'_, str> {
        S::KIND.into()
    }
    fn group(_: &()) -> Cow<'_, str> {
        S::GROUP.into()
    }
    fn version(_: &()) -> Cow<'_, str> {
        S::VERSIONS[0].into()
    }
    fn plural(_: &()) -> Cow<'_, str> {
        S::PLURAL.into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

message! {
    /// Istio's common status (`istio.meta.v1alpha1.IstioStatus`).
    pub struct Status {
        /// Current state of the resource.
        conditions: Vec<Condition>,
        /// Errors and warnings found by analysis.
        validation_messages: Vec<ValidationMessage>,
        /// The generation the conditions are about.
        observed_generation: Option<i64>,
        /// Of a ServiceEntry: the addresses its hosts were given automatically.
        addresses: Vec<HostAddress>,
    }
}

message! {
    /// An automatic address of a ServiceEntry's host.
    pub struct HostAddress {
        /// The address.
        value: String,
        /// The host.
        host: String,
    }
}

message! {
    /// One condition of a resource.
    pub struct Condition {
        /// Name of the condition, for example `Reconciled`.
        r#type: String,
        /// `True`, `False` or `Unknown`.
        status: String,
        /// Last time it was probed, RFC 3339.
        last_probe_time: Option<String>,
        /// Last time it changed, RFC 3339.
        last_transition_time: Option<String>,
        /// One-word reason.
        reason: String,
        /// Details for people.
        message: String,
        /// The generation it is about.
        observed_generation: Option<i64>,
    }
}

message! {
    /// A finding of analysis (`istio.analysis.v1alpha1.AnalysisMessageBase`, with the text).
    pub struct ValidationMessage {
        /// What was found.
        r#type: MessageType,
        /// How severe: `ERROR`, `WARNING` or `INFO`.
        level: String,
        /// Where it is explained.
        documentation_url: String,
        /// The finding in words.
        message: String,
    }
}

message! {
    /// The kind of a finding.
    pub struct MessageType {
        /// Name, for example `ReferencedResourceNotFound`.
        name: String,
        /// Code, for example `IST0101`.
        code: String,
    }
}
