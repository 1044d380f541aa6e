//! Reading a pod that is kept as JSON, so that fields we don't know survive.
use serde_json::Value;

/// Annotation with what was injected; its presence means the pod is done.
pub(super) const STATUS_ANNOTATION: &str = "sidecar.istio.io/status";
/// The proxy's container.
pub(super) const PROXY_CONTAINER: &str = "istio-proxy";
/// The container that sets up capture.
pub(super) const INIT_CONTAINER: &str = "istio-init";

pub(super) fn annotation<'a>(pod: &'a Value, name: &str) -> Option<&'a str> {
    pod.get("metadata")?.get("annotations")?.get(name)?.as_str()
}

pub(super) fn label<'a>(pod: &'a Value, name: &str) -> Option<&'a str> {
    pod.get("metadata")?.get("labels")?.get(name)?.as_str()
}

/// The objects of a list of the pod's spec (`containers`, `volumes`, …).
pub(super) fn list<'a>(pod: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    pod.get("spec").and_then(|spec| spec.get(field)).and_then(Value::as_array).into_iter().flatten()
}

/// The names in a list of the pod's spec.
pub(super) fn names(pod: &Value, field: &str) -> Vec<String> {
    list(pod, field).filter_map(|item| item.get("name")?.as_str()).map(str::to_owned).collect()
}
