//! A container's environment. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, EnvVar, Pod};

use crate::{Network, RuntimeError, fields::PodFields, sources::Sources};

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Variables in the order they were defined; a later definition of the same name takes the earlier one's place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Variables {
    list: Vec<(String, String)>,
}

impl Variables {
    fn set(&mut self, name: &str, value: String) {
        match self.list.iter_mut().find(|(own, _)| own == name) {
            Some(entry) => entry.1 = value,
            None => self.list.push((name.to_owned(), value)),
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.list.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str())
    }
}

/// The environment of `container`: what the runtime and Kubernetes set, then `envFrom`, then `env`, references expanded.
///
/// # Errors
/// [`RuntimeError::Pod`] when a reference leads nowhere and isn't optional.
pub(crate) fn environment(
    container: &Container,
    fields: &PodFields,
    sources: &Sources,
    network: &Network,
) -> Result<Vec<(String, String)>, RuntimeError> {
    let mut variables = Variables::default();
    variables.set("PATH", PATH.to_owned());
    variables.set("HOME", "/root".to_owned());
    variables.set("HOSTNAME", hostname(&fields.pod));
    for (name, value) in api_server(network) {
        variables.set(&name, value);
    }
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or("");
        let mut add = |data: BTreeMap<String, Vec<u8>>| {
            for (key, value) in data {
                variables.set(&format!("{prefix}{key}"), String::from_utf8_lossy(&value).into_owned());
            }
        };
        if let Some(reference) = &from.config_map_ref {
            add(sources.config_map(&reference.name, reference.optional)?);
        }
        if let Some(reference) = &from.secret_ref {
            add(sources.secret(&reference.name, reference.optional)?);
        }
    }
    for variable in container.env.iter().flatten() {
        if let Some(value) = value(variable, container, fields, sources, &variables)? {
            variables.set(&variable.name, value);
        }
    }
    Ok(variables.list)
}

/// The pod's host name: `spec.hostname` or its name, cut to 63 characters.
pub(crate) fn hostname(pod: &Pod) -> String {
    let spec = pod.spec.as_ref();
    let name = spec.and_then(|spec| spec.hostname.clone()).or_else(|| pod.metadata.name.clone());
    name.unwrap_or_default().chars().take(63).collect::<String>().trim_end_matches(['-', '.']).to_owned()
}

/// Replaces `$(NAME)` in commands and arguments; unknown names stay, `$$` is a dollar sign.
pub(crate) fn expand_with(text: &str, variables: &[(String, String)]) -> String {
    expand(text, |name| variables.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str()))
}

/// Where the API server is, in the variables of every pod (kubelet's service environment for `kubernetes.default`).
fn api_server(network: &Network) -> Vec<(String, String)> {
    let ip = network.api_ip();
    [
        ("KUBERNETES_SERVICE_HOST", ip.to_string()),
        ("KUBERNETES_SERVICE_PORT", "443".to_owned()),
        ("KUBERNETES_SERVICE_PORT_HTTPS", "443".to_owned()),
        ("KUBERNETES_PORT", format!("tcp://{ip}:443")),
        ("KUBERNETES_PORT_443_TCP", format!("tcp://{ip}:443")),
        ("KUBERNETES_PORT_443_TCP_PROTO", "tcp".to_owned()),
        ("KUBERNETES_PORT_443_TCP_PORT", "443".to_owned()),
        ("KUBERNETES_PORT_443_TCP_ADDR", ip.to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into()
}

fn value(
    variable: &EnvVar,
    container: &Container,
    fields: &PodFields,
    sources: &Sources,
    so_far: &Variables,
) -> Result<Option<String>, RuntimeError> {
    let Some(from) = &variable.value_from else {
        let text = variable.value.as_deref().unwrap_or("");
        return Ok(Some(expand(text, |name| so_far.get(name))));
    };
    if let Some(reference) = &from.field_ref {
        return fields.field(&reference.field_path).map(Some);
    }
    if let Some(reference) = &from.resource_field_ref {
        return fields.resource(reference, Some(container)).map(Some);
    }
    let (kind, name, key, optional, data) = if let Some(reference) = &from.config_map_key_ref {
        let data = sources.config_map(&reference.name, reference.optional)?;
        ("configmap", &reference.name, &reference.key, reference.optional, data)
    } else if let Some(reference) = &from.secret_key_ref {
        let data = sources.secret(&reference.name, reference.optional)?;
        ("secret", &reference.name, &reference.key, reference.optional, data)
    } else {
        return Err(RuntimeError::Pod(format!("the source of variable {} is not supported", variable.name)));
    };
    match data.get(key) {
        Some(value) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
        None if optional == Some(true) => Ok(None),
        None => Err(RuntimeError::Pod(format!("couldn't find key {key} in {kind} {name}"))),
    }
}

/// Kubernetes' expansion (`third_party/forked/golang/expansion`): `$(NAME)` if known, `$$` for a dollar sign.
fn expand<'a>(text: &str, lookup: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        result.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            result.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match lookup(name) {
                Some(value) => result.push_str(value),
                None => result.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            result.push('$');
        }
    }
    result + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fields::tests::pod;
    use serde_json::json;
    use std::{net::Ipv4Addr, sync::Arc};

    #[test]
    fn expansion() {
        let variables = [("A".to_owned(), "1".to_owned()), ("B".to_owned(), "$(A)".to_owned())];
        let cases = [
            ("x$(A)y", "x1y"),
            ("$(B)", "$(A)"),
            ("$(C)-$(A)", "$(C)-1"),
            ("$$(A)", "$(A)"),
            ("$A $( $", "$A $( $"),
            ("", ""),
        ];
        for (text, expected) in cases {
            assert_eq!(expand_with(text, &variables), expected, "{text}");
        }
    }

    fn resolve(container: serde_json::Value) -> Result<BTreeMap<String, String>, RuntimeError> {
        let pod = pod(json!({ "containers": [container] }));
        let fields = PodFields {
            pod: Arc::new(pod.clone()),
            pod_ip: Ipv4Addr::new(10, 244, 0, 5),
            host_ip: Ipv4Addr::new(10, 244, 0, 1),
            pod_ip6: None,
            host_ip6: None,
        };
        let mut sources = Sources::default();
        let map = serde_json::from_value(json!({ "data": { "k": "v", "other": "o" } })).unwrap();
        sources.config_maps.insert("cm".to_owned(), map);
        let secret = serde_json::from_value(json!({ "data": { "token": "c2VjcmV0" } })).unwrap();
        sources.secrets.insert("s".to_owned(), secret);
        let container = &pod.spec.as_ref().unwrap().containers[0];
        environment(container, &fields, &sources, &Network::default()).map(|list| list.into_iter().collect())
    }

    #[test]
    fn every_source() {
        let environment = resolve(json!({
            "name": "app",
            "envFrom": [{ "prefix": "CM_", "configMapRef": { "name": "cm" } }, { "configMapRef": { "name": "no", "optional": true } }],
            "env": [
                { "name": "IP", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } },
                { "name": "URL", "value": "http://$(IP):80/$(CM_k)" },
                { "name": "K", "valueFrom": { "configMapKeyRef": { "name": "cm", "key": "k" } } },
                { "name": "T", "valueFrom": { "secretKeyRef": { "name": "s", "key": "token" } } },
                { "name": "N", "valueFrom": { "secretKeyRef": { "name": "s", "key": "none", "optional": true } } },
                { "name": "HOME", "value": "/home/app" }
            ]
        }))
        .unwrap();
        let get = |name: &str| environment.get(name).map(String::as_str);
        assert_eq!(get("URL"), Some("http://10.244.0.5:80/v"));
        assert_eq!((get("K"), get("T"), get("N")), (Some("v"), Some("secret"), None));
        assert_eq!(
            (get("CM_other"), get("HOME"), get("HOSTNAME")),
            (Some("o"), Some("/home/app"), Some("web-1"))
        );
        assert_eq!(get("KUBERNETES_SERVICE_HOST"), Some("10.96.0.1"));
    }

    #[test]
    fn references_that_lead_nowhere() {
        let variable =
            |from: serde_json::Value| json!({ "name": "app", "env": [{ "name": "X", "valueFrom": from }] });
        let cases = [
            (json!({ "configMapKeyRef": { "name": "no", "key": "k" } }), "configmap \"no\" not found"),
            (json!({ "secretKeyRef": { "name": "s", "key": "no" } }), "couldn't find key no in secret s"),
            (json!({ "fieldRef": { "fieldPath": "spec.x" } }), "\"spec.x\" is not supported"),
        ];
        for (from, message) in cases {
            let error = resolve(variable(from)).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
