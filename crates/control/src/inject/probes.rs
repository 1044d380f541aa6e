//! Probes of the application go to the agent, which asks the application itself: the kubelet has no certificate, so that mutual TLS
//! alone (STRICT) would turn it away. As Istio does it: paths `/app-health/CONTAINER/{readyz,livez,startupz}`, and the probes as they
//! were in the proxy's variable `ISTIO_KUBE_APP_PROBERS`.
use serde_json::{Map, Value, json};

use super::pod::{PROXY_CONTAINER, annotation};

/// Annotation that leaves probes as they are (`false`).
const REWRITE: &str = "sidecar.istio.io/rewriteAppHTTPProbers";
const VARIABLE: &str = "ISTIO_KUBE_APP_PROBERS";
/// The agent's port.
const PORT: u16 = 15020;
const PROBES: [(&str, &str); 3] =
    [("readinessProbe", "readyz"), ("livenessProbe", "livez"), ("startupProbe", "startupz")];

/// Rewrites the probes of the application's containers: over HTTP, HTTPS, TCP and gRPC.
pub(super) fn rewrite(original: &Value, pod: &mut Value) {
    if annotation(original, REWRITE).is_some_and(|value| value.eq_ignore_ascii_case("false")) {
        return;
    }
    let Some(containers) = pod["spec"]["containers"].as_array_mut() else { return };
    if containers.iter().all(|one| one["name"] != PROXY_CONTAINER) {
        return;
    }
    let mut probers = Map::new();
    for container in containers.iter_mut().filter(|one| one["name"] != PROXY_CONTAINER) {
        let name = container["name"].as_str().unwrap_or_default().to_owned();
        let ports = container["ports"].clone();
        for (field, short) in PROBES {
            let Some(probe) = container.get_mut(field).filter(|probe| probe.is_object()) else { continue };
            let Some(prober) = prober(probe, &ports) else { continue };
            let path = format!("/app-health/{name}/{short}");
            if let Some(fields) = probe.as_object_mut() {
                fields.shift_remove("tcpSocket");
                fields.shift_remove("grpc");
                fields.insert("httpGet".to_owned(), json!({ "path": path, "port": PORT }));
            }
            probers.insert(path, prober);
        }
    }
    if probers.is_empty() {
        return;
    }
    for proxy in containers.iter_mut().filter(|one| one["name"] == PROXY_CONTAINER) {
        let variable = json!({ "name": VARIABLE, "value": Value::Object(probers.clone()).to_string() });
        match proxy["env"].as_array_mut() {
            Some(list) => list.push(variable),
            None => proxy["env"] = json!([variable]),
        }
    }
}

/// What the agent is to do in place of the kubelet, ports by number; none when it is not for the agent.
fn prober(probe: &Value, ports: &Value) -> Option<Value> {
    let number = |port: &Value| match port.as_str() {
        None => port.as_u64(),
        Some(name) => {
            let named = ports.as_array()?.iter().find(|port| port["name"] == name)?;
            named["containerPort"].as_u64()
        }
    };
    let timeout = probe["timeoutSeconds"].as_u64().unwrap_or(1);
    if let Some(get) = probe.get("httpGet").filter(|get| get.is_object()) {
        let ours = get["path"].as_str().is_some_and(|path| path.starts_with("/app-health/"));
        let mut get = get.clone();
        get["port"] = json!(number(&get["port"])?);
        return (!ours).then(|| json!({ "httpGet": get, "timeoutSeconds": timeout }));
    }
    if let Some(grpc) = probe.get("grpc").filter(|grpc| grpc.is_object()) {
        return Some(json!({ "grpc": grpc, "timeoutSeconds": timeout }));
    }
    let socket = probe.get("tcpSocket").filter(|socket| socket.is_object())?;
    Some(json!({ "tcpSocket": { "port": number(&socket["port"])? }, "timeoutSeconds": timeout }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(probe: Value) -> (Value, Value) {
        let original = json!({ "spec": { "containers": [
            { "name": "app", "ports": [{ "name": "web", "containerPort": 8080 }], "readinessProbe": probe },
            { "name": "istio-proxy", "env": [] },
        ]}});
        let mut pod = original.clone();
        rewrite(&original, &mut pod);
        let text = pod["spec"]["containers"][1]["env"][0]["value"].as_str().unwrap_or("null").to_owned();
        (pod["spec"]["containers"][0]["readinessProbe"].clone(), serde_json::from_str(&text).unwrap())
    }

    #[test]
    fn probes_over_the_network_go_to_the_agent() {
        let get = json!({ "path": "/ok", "port": "web", "httpHeaders": [{ "name": "a", "value": "b" }] });
        let (probe, probers) = rewritten(json!({ "httpGet": get, "periodSeconds": 3, "timeoutSeconds": 2 }));
        let agent = json!({ "path": "/app-health/app/readyz", "port": 15020 });
        assert_eq!(probe, json!({ "httpGet": agent, "periodSeconds": 3, "timeoutSeconds": 2 }));
        let expected = json!({ "path": "/ok", "port": 8080, "httpHeaders": [{ "name": "a", "value": "b" }] });
        assert_eq!(probers["/app-health/app/readyz"], json!({ "httpGet": expected, "timeoutSeconds": 2 }));
        let (probe, probers) = rewritten(json!({ "tcpSocket": { "port": 9000 } }));
        assert_eq!(probe, json!({ "httpGet": agent }));
        assert_eq!(probers["/app-health/app/readyz"]["tcpSocket"], json!({ "port": 9000 }));
        let grpc = json!({ "port": 9000, "service": "shop" });
        let (probe, probers) = rewritten(json!({ "grpc": grpc }));
        assert_eq!(probe, json!({ "httpGet": agent }));
        assert_eq!(probers["/app-health/app/readyz"]["grpc"], grpc);
        let secure = json!({ "path": "/", "port": 8443, "scheme": "HTTPS" });
        let (probe, probers) = rewritten(json!({ "httpGet": secure }));
        assert_eq!(probe, json!({ "httpGet": agent }));
        assert_eq!(probers["/app-health/app/readyz"]["httpGet"], secure);
    }

    #[test]
    fn others_stay_as_they_are() {
        for probe in [
            json!({ "exec": { "command": ["true"] } }),
            json!({ "httpGet": { "path": "/", "port": "nowhere" } }),
            json!({ "httpGet": { "path": "/app-health/app/readyz", "port": 15020 } }),
        ] {
            assert_eq!(rewritten(probe.clone()), (probe, Value::Null));
        }
    }

    #[test]
    fn an_annotation_keeps_them() {
        let original = json!({ "metadata": { "annotations": { "sidecar.istio.io/rewriteAppHTTPProbers": "false" } },
        "spec": { "containers": [
            { "name": "app", "livenessProbe": { "httpGet": { "path": "/", "port": 80 } } },
            { "name": "istio-proxy" },
        ]}});
        let mut pod = original.clone();
        rewrite(&original, &mut pod);
        assert_eq!(pod, original);
    }
}
