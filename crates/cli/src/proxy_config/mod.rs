//! What a proxy is doing: its configuration dump as tables or JSON, selected and printed as `istioctl proxy-config` does.
//!
//! Pure: dumps in, text out. They come from [`crate::pods`] or from a file.

pub mod clusters;
pub mod dump;
pub mod endpoints;
pub mod listeners;
pub mod routes;
pub mod secrets;

use serde_json::Value;

/// The string at a JSON pointer; empty when there is none.
pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The array at a JSON pointer; empty when there is none.
pub(crate) fn items<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The strings of an array at a JSON pointer.
fn strings<'a>(value: &'a Value, pointer: &str) -> Vec<&'a str> {
    items(value, pointer).iter().filter_map(Value::as_str).collect()
}

/// The unsigned number at a JSON pointer; proto JSON writes 64-bit ones as strings.
pub(crate) fn number(value: &Value, pointer: &str) -> Option<u64> {
    let value = value.pointer(pointer)?;
    value.as_u64().or_else(|| value.as_str()?.parse().ok())
}

/// The Istio object a resource comes from, `NAME.NAMESPACE`, out of the resource's metadata
/// (`/apis/networking.istio.io/v1/namespaces/NAMESPACE/virtual-service/NAME`).
pub(crate) fn origin(resource: &Value) -> String {
    let path = text(resource, "/metadata/filterMetadata/istio/config");
    match path.split('/').collect::<Vec<_>>().as_slice() {
        ["", "apis", _, _, "namespaces", namespace, _, name] => format!("{name}.{namespace}"),
        _ => String::new(),
    }
}

/// What a route matches on its path; headers are left out.
fn describe_match(matcher: &Value) -> String {
    let mut parts = Vec::new();
    for (pointer, prefix, suffix) in [
        ("/prefix", "", "*"),
        ("/pathSeparatedPrefix", "PathPrefix:", ""),
        ("/path", "", ""),
        ("/safeRegex/regex", "regex ", ""),
    ] {
        let value = text(matcher, pointer);
        if !value.is_empty() {
            parts.push(format!("{prefix}{value}{suffix}"));
        }
    }
    parts.join(" ")
}
