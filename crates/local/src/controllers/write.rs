//! What a controller wants changed, and how that is said to the API server.

use std::time::Duration;

use http::Request;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::cache::{Kind, Object};

/// One request to the API server.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Write {
    pub(crate) kind: Kind,
    pub(crate) namespace: String,
    /// Empty for a creation with `generateName`.
    pub(crate) name: String,
    pub(crate) action: Action,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Action {
    /// The whole object.
    Create(Value),
    /// A JSON merge patch.
    Merge(Value),
    /// A JSON merge patch of the status subresource.
    MergeStatus(Value),
    /// Only the object with this uid; with a grace period of its own when given.
    Delete { uid: String, grace_seconds: Option<u32> },
    /// Of a pod, to this node.
    Bind(String),
}

/// What a look at one object has led to.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Decision {
    /// In this order; a failure leaves out the rest until the next look.
    pub(crate) writes: Vec<Write>,
    /// Look again after this time even if nothing changes.
    pub(crate) again: Option<Duration>,
}

impl From<Vec<Write>> for Decision {
    fn from(writes: Vec<Write>) -> Self {
        Self { writes, again: None }
    }
}

impl Write {
    /// Creates `object`, whose metadata name it and its namespace.
    pub(crate) fn create<T: Serialize>(kind: Kind, meta: &ObjectMeta, object: &T) -> Self {
        Self::new(kind, meta, Action::Create(to_value(object)))
    }

    pub(crate) fn merge(kind: Kind, meta: &ObjectMeta, patch: Value) -> Self {
        Self::new(kind, meta, Action::Merge(patch))
    }

    /// Brings an object from `old` to `new`; `None` when they are equal. Refused by the server if another object has
    /// taken the name; changes made meanwhile to other fields stay (their status, mostly, which we write at the same time).
    pub(crate) fn update<T: Serialize>(kind: Kind, meta: &ObjectMeta, old: &T, new: &T) -> Option<Self> {
        let mut patch = merge_difference(&to_value(old), &to_value(new))?;
        patch["metadata"]["uid"] = json!(meta.uid);
        Some(Self::merge(kind, meta, patch))
    }

    /// Brings a status from `old` to `new`; `None` when they are equal.
    pub(crate) fn status<T: Serialize>(
        kind: Kind,
        meta: &ObjectMeta,
        old: Option<&T>,
        new: &T,
    ) -> Option<Self> {
        let old = old.map_or_else(|| json!({}), to_value);
        let patch = merge_difference(&old, &to_value(new))?;
        Some(Self::new(kind, meta, Action::MergeStatus(json!({"status": patch}))))
    }

    pub(crate) fn delete(kind: Kind, meta: &ObjectMeta) -> Self {
        let uid = meta.uid.clone().unwrap_or_default();
        Self::new(kind, meta, Action::Delete { uid, grace_seconds: None })
    }

    pub(crate) fn new(kind: Kind, meta: &ObjectMeta, action: Action) -> Self {
        let namespace = meta.namespace.clone().unwrap_or_default();
        Self { kind, namespace, name: meta.name.clone().unwrap_or_default(), action }
    }

    fn request(&self) -> Result<Request<Vec<u8>>, http::Error> {
        let (group_version, plural, namespaced) = self.kind.resource();
        let collection = if namespaced {
            format!("{group_version}/namespaces/{}/{plural}", self.namespace)
        } else {
            format!("{group_version}/{plural}")
        };
        let object = format!("{collection}/{}", self.name);
        let manager = "fieldManager=lateen-controllers";
        let (method, uri, content_type, body) = match &self.action {
            Action::Create(body) => {
                ("POST", format!("{collection}?{manager}"), "application/json", body.clone())
            }
            Action::Merge(patch) => {
                ("PATCH", format!("{object}?{manager}"), "application/merge-patch+json", patch.clone())
            }
            Action::MergeStatus(patch) => {
                ("PATCH", format!("{object}/status?{manager}"), "application/merge-patch+json", patch.clone())
            }
            Action::Delete { uid, grace_seconds } => {
                let mut options = json!({
                    "kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background",
                    "preconditions": {"uid": uid},
                });
                if let Some(seconds) = grace_seconds {
                    options["gracePeriodSeconds"] = json!(seconds);
                }
                ("DELETE", object, "application/json", options)
            }
            Action::Bind(node) => {
                let binding = json!({
                    "kind": "Binding", "apiVersion": "v1",
                    "metadata": {"name": self.name, "namespace": self.namespace},
                    "target": {"kind": "Node", "apiVersion": "v1", "name": node},
                });
                ("POST", format!("{object}/binding?{manager}"), "application/json", binding)
            }
        };
        Request::builder()
            .method(method)
            .uri(uri)
            .header("content-type", content_type)
            .body(body.to_string().into_bytes())
    }

    /// Sends the request. Gives the object as it is now, when the answer says; an object that is gone needs no change.
    ///
    /// # Errors
    /// What the API server answers, or why it can't be reached.
    pub(crate) async fn send(&self, client: &kube::Client) -> Result<Option<Object>, kube::Error> {
        let request = self.request().map_err(kube::Error::HttpError)?;
        let answer: Value = match client.request(request).await {
            Ok(answer) => answer,
            Err(kube::Error::Api(status))
                if status.code == 404 && !matches!(self.action, Action::Create(_)) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        // Deletions may be answered with the object or a Status, bindings are answered with a Status.
        if answer["kind"] == "Status" {
            return Ok(None);
        }
        if let Action::Delete { .. } = self.action
            && answer["metadata"]["deletionTimestamp"].is_null()
        {
            return Ok(None);
        }
        self.kind.parse(answer).map(Some).map_err(kube::Error::SerdeError)
    }
}

/// The JSON of an API object; they have string keys and finite numbers only, so that this can't fail.
pub(crate) fn to_value<T: Serialize>(object: &T) -> Value {
    serde_json::to_value(object).unwrap_or_default()
}

/// The merge patch (RFC 7386) that makes `new` of `old`; `None` when they are equal.
fn merge_difference(old: &Value, new: &Value) -> Option<Value> {
    if old == new {
        return None;
    }
    let (Value::Object(old), Value::Object(fields)) = (old, new) else { return Some(new.clone()) };
    let mut patch = Map::new();
    for key in old.keys().filter(|key| !fields.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    for (key, value) in fields {
        match old.get(key) {
            Some(before) => {
                if let Some(difference) = merge_difference(before, value) {
                    patch.insert(key.clone(), difference);
                }
            }
            None => {
                patch.insert(key.clone(), value.clone());
            }
        }
    }
    // Objects that differ only in the order of their keys are equal.
    (!patch.is_empty()).then_some(Value::Object(patch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_merge_patches() {
        let cases = [
            (json!({"a": 1}), json!({"a": 1}), None),
            (json!({"a": 1, "b": 2}), json!({"b": 2, "a": 1}), None),
            (json!({"a": 1, "b": 2}), json!({"a": 1}), Some(json!({"b": null}))),
            (json!({"a": {"x": 1, "y": 2}}), json!({"a": {"x": 1, "y": 3}}), Some(json!({"a": {"y": 3}}))),
            (json!({"a": [1, 2]}), json!({"a": [2]}), Some(json!({"a": [2]}))),
            (json!({}), json!({"a": {"b": 1}}), Some(json!({"a": {"b": 1}}))),
        ];
        for (old, new, patch) in cases {
            assert_eq!(merge_difference(&old, &new), patch, "{old} -> {new}");
        }
    }

    #[test]
    fn requests_go_where_the_api_has_them() {
        let meta = ObjectMeta {
            name: Some("web".to_owned()),
            namespace: Some("shop".to_owned()),
            uid: Some("u".to_owned()),
            ..ObjectMeta::default()
        };
        let uri = |write: Write| {
            let request = write.request().unwrap();
            format!("{} {}", request.method(), request.uri().path())
        };
        assert_eq!(
            uri(Write::new(Kind::Deployment, &meta, Action::MergeStatus(json!({})))),
            "PATCH /apis/apps/v1/namespaces/shop/deployments/web/status"
        );
        assert_eq!(
            uri(Write::new(Kind::Pod, &meta, Action::Bind("lateen".to_owned()))),
            "POST /api/v1/namespaces/shop/pods/web/binding"
        );
        assert_eq!(uri(Write::delete(Kind::Pod, &meta)), "DELETE /api/v1/namespaces/shop/pods/web");
        assert_eq!(
            uri(Write::create(Kind::Namespace, &ObjectMeta::default(), &json!({}))),
            "POST /api/v1/namespaces"
        );
    }
}
