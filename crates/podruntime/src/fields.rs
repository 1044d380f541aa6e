//! Values of a pod's own fields (`fieldRef`, `resourceFieldRef`).

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};

use crate::{RuntimeError, quantity};

/// A pod with what only the runtime knows.
#[derive(Debug, Clone)]
pub(crate) struct PodFields {
    pub(crate) pod: Arc<Pod>,
    pub(crate) pod_ip: Ipv4Addr,
    pub(crate) host_ip: Ipv4Addr,
    /// With IPv6.
    pub(crate) pod_ip6: Option<Ipv6Addr>,
    pub(crate) host_ip6: Option<Ipv6Addr>,
}

impl PodFields {
    /// The field at `path`, as the downward API shows it.
    ///
    /// # Errors
    /// [`RuntimeError::Pod`] for a path the downward API doesn't have.
    pub(crate) fn field(&self, path: &str) -> Result<String, RuntimeError> {
        let metadata = &self.pod.metadata;
        let spec = self.pod.spec.as_ref();
        let text = |value: Option<&String>| value.cloned().unwrap_or_default();
        Ok(match path {
            "metadata.name" => text(metadata.name.as_ref()),
            "metadata.namespace" => text(metadata.namespace.as_ref()),
            "metadata.uid" => text(metadata.uid.as_ref()),
            "metadata.labels" => lines(metadata.labels.as_ref()),
            "metadata.annotations" => lines(metadata.annotations.as_ref()),
            "spec.nodeName" => text(spec.and_then(|spec| spec.node_name.as_ref())),
            "spec.serviceAccountName" => text(spec.and_then(|spec| spec.service_account_name.as_ref())),
            "status.podIP" => self.pod_ip.to_string(),
            "status.podIPs" => both(self.pod_ip, self.pod_ip6),
            "status.hostIP" => self.host_ip.to_string(),
            "status.hostIPs" => both(self.host_ip, self.host_ip6),
            _ => {
                let keyed = |prefix: &str| path.strip_prefix(prefix)?.strip_suffix("']");
                let of = |map: Option<&BTreeMap<String, String>>, key: &str| {
                    text(map.and_then(|map| map.get(key)))
                };
                match (keyed("metadata.labels['"), keyed("metadata.annotations['")) {
                    (Some(key), _) => of(metadata.labels.as_ref(), key),
                    (_, Some(key)) => of(metadata.annotations.as_ref(), key),
                    _ => return Err(RuntimeError::Pod(format!("fieldPath {path:?} is not supported"))),
                }
            }
        })
    }

    /// A container's request or limit; an unset limit is what the machine has.
    ///
    /// # Errors
    /// [`RuntimeError::Pod`] for an unknown container or resource.
    pub(crate) fn resource(
        &self,
        selector: &ResourceFieldSelector,
        own: Option<&Container>,
    ) -> Result<String, RuntimeError> {
        let spec = self.pod.spec.as_ref();
        let named = |name: &str| {
            let init = spec.and_then(|spec| spec.init_containers.as_ref()).into_iter().flatten();
            spec.map(|spec| spec.containers.iter()).into_iter().flatten().chain(init).find(|c| c.name == name)
        };
        let container = match &selector.container_name {
            Some(name) => named(name),
            None => own,
        };
        let bad = || RuntimeError::Pod(format!("resourceFieldRef {:?} is not supported", selector.resource));
        let container = container.ok_or_else(bad)?;
        let resources = container.resources.as_ref();
        let (kind, resource) = selector.resource.split_once('.').ok_or_else(bad)?;
        let limits = resources.and_then(|resources| resources.limits.as_ref());
        let requests = resources.and_then(|resources| resources.requests.as_ref());
        let set = match kind {
            "limits" => limits.and_then(|limits| limits.get(resource)),
            "requests" => requests.and_then(|requests| requests.get(resource)),
            _ => return Err(bad()),
        };
        let value = match (set, kind, resource) {
            (Some(quantity), ..) => quantity.0.clone(),
            (None, "requests", _) => "0".to_owned(),
            (None, _, "cpu") => std::thread::available_parallelism().map_or(1, usize::from).to_string(),
            (None, _, "memory") => machine_memory().to_string(),
            _ => "0".to_owned(),
        };
        let divisor = selector.divisor.as_ref().map(|divisor| divisor.0.as_str());
        quantity::divide(&value, divisor).map(|value| value.to_string()).ok_or_else(bad)
    }
}

/// Bytes of memory of this machine; 0 when unknown.
fn machine_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok());
    kib.unwrap_or(0_u64) * 1024
}

/// `key="value"` lines, values quoted as Go's `%q` does.
fn both(v4: Ipv4Addr, v6: Option<Ipv6Addr>) -> String {
    v6.map_or_else(|| v4.to_string(), |v6| format!("{v4},{v6}"))
}

fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> =
        map.into_iter().flatten().map(|(key, value)| format!("{key}={}", quote(value))).collect();
    lines.join("\n")
}

fn quote(value: &str) -> String {
    let mut quoted = String::from("\"");
    for character in value.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    /// A pod for this and other modules' tests.
    pub(crate) fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {
                "namespace": "default", "name": "web-1", "uid": "u-1",
                "labels": { "app": "web", "version": "v1" }, "annotations": { "note": "a \"b\"\n" }
            },
            "spec": spec,
        }))
        .unwrap()
    }

    #[test]
    fn fields() {
        let pod = Arc::new(pod(json!({ "nodeName": "lateen", "containers": [
            { "name": "app", "resources": { "limits": { "cpu": "1500m", "memory": "64Mi" } } }
        ] })));
        let fields = PodFields {
            pod: Arc::clone(&pod),
            pod_ip: Ipv4Addr::new(10, 244, 0, 5),
            host_ip: Ipv4Addr::new(10, 244, 0, 1),
            pod_ip6: Some("fd00::5".parse().unwrap()),
            host_ip6: None,
        };
        let cases = [
            ("metadata.name", "web-1"),
            ("metadata.labels", "app=\"web\"\nversion=\"v1\""),
            ("metadata.annotations", "note=\"a \\\"b\\\"\\n\""),
            ("metadata.labels['app']", "web"),
            ("metadata.annotations['none']", ""),
            ("spec.nodeName", "lateen"),
            ("status.podIP", "10.244.0.5"),
            ("status.hostIP", "10.244.0.1"),
        ];
        for (path, expected) in cases {
            assert_eq!(fields.field(path).unwrap(), expected, "{path}");
        }
        assert!(fields.field("spec.containers").is_err());

        let own = pod.spec.as_ref().map(|spec| &spec.containers[0]);
        let resource = |resource: &str, divisor: &str| {
            let selector =
                serde_json::from_value(json!({ "resource": resource, "divisor": divisor })).unwrap();
            fields.resource(&selector, own).unwrap()
        };
        assert_eq!(resource("limits.cpu", "0"), "2");
        assert_eq!(resource("limits.memory", "1Mi"), "64");
        assert_eq!(resource("requests.cpu", "1"), "0");
    }
}
