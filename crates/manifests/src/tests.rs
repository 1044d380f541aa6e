use super::*;
use std::collections::BTreeSet;

fn key(object: &Value) -> String {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or("").to_owned();
    format!("{}/{}/{}", text("/kind"), text("/metadata/namespace"), text("/metadata/name"))
}

#[test]
fn every_object_is_complete_and_named_once() {
    let objects = render(&Options::default());
    let mut seen = BTreeSet::new();
    for object in &objects {
        assert!(object["apiVersion"].is_string() && object["kind"].is_string(), "{object}");
        assert!(object.get("status").is_none(), "{object}");
        assert!(seen.insert(key(object)), "twice: {}", key(object));
    }
    for expected in [
        "ConfigMap/istio-system/istio",
        "ConfigMap/istio-system/istio-sidecar-injector",
        "Deployment/istio-system/istiod",
        "Service/istio-system/istiod",
        "MutatingWebhookConfiguration//istio-sidecar-injector",
        "ValidatingWebhookConfiguration//istio-validator-istio-system",
        "Deployment/istio-system/istio-ingressgateway",
        "Service/istio-system/istio-ingressgateway",
        "CustomResourceDefinition//virtualservices.networking.istio.io",
    ] {
        assert!(seen.contains(expected), "missing {expected} in {seen:?}");
    }
}

#[test]
fn the_egress_gateway_is_reached_from_inside_only() {
    let without = render(&Options::default());
    assert!(!without.iter().any(|object| key(object).contains("egress")));
    let objects = render(&Options { egress_gateway: true, ..Options::default() });
    let service = objects.iter().find(|o| key(o) == "Service/istio-system/istio-egressgateway").unwrap();
    assert_eq!(service["spec"]["type"], "ClusterIP");
    assert_eq!(service["spec"]["selector"]["istio"], "egressgateway");
    assert!(objects.iter().any(|o| key(o) == "Deployment/istio-system/istio-egressgateway"));
}

#[test]
fn what_others_refer_to_comes_first() {
    let order: Vec<String> = render(&Options::default()).iter().map(key).collect();
    let at = |name: &str| order.iter().position(|k| k.ends_with(name)).unwrap_or_else(|| panic!("{name}"));
    assert_eq!(at("/istio-system"), 0, "the namespace is first");
    assert!(at("virtualservices.networking.istio.io") < at("Deployment/istio-system/istiod"));
    assert!(at("ConfigMap/istio-system/istio") < at("Deployment/istio-system/istiod"));
    assert!(at("ServiceAccount/istio-system/istiod") < at("Deployment/istio-system/istiod"));
}

#[test]
fn a_revision_is_separate_and_not_the_default_injector() {
    let options = Options { revision: "canary".into(), ingress_gateway: false, ..Options::default() };
    let objects = render(&options);
    let names: Vec<String> = objects.iter().map(key).collect();
    assert!(names.contains(&"Deployment/istio-system/istiod-canary".to_owned()), "{names:?}");
    let webhook = objects.iter().find(|o| o["kind"] == "MutatingWebhookConfiguration").unwrap();
    assert_eq!(webhook["metadata"]["name"], "istio-sidecar-injector-canary");
    let text = webhook.to_string();
    assert!(!text.contains("\"enabled\""), "only the default revision answers istio-injection=enabled");
    assert!(text.contains("canary"));
}

#[test]
fn the_engine_reaches_gateway_and_injector() {
    let options = Options { engine: Engine::Envoy, ..Options::default() };
    let objects = render(&options);
    let gateway = objects.iter().find(|o| key(o) == "Deployment/istio-system/istio-ingressgateway").unwrap();
    let env = gateway["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap();
    assert!(env.iter().any(|e| e["name"] == "LATEEN_ENGINE" && e["value"] == "envoy"));
    assert_eq!(injector_values(&options)["global"]["proxy"]["engine"], "envoy");
}

#[test]
fn config_maps_parse_back_to_what_was_rendered() {
    let options = Options::default();
    let objects = render(&options);
    let data = |name: &str| objects.iter().find(|o| key(o) == name).unwrap()["data"].clone();
    let injector = data("ConfigMap/istio-system/istio-sidecar-injector");
    let config: Value = serde_saphyr::from_str(injector["config"].as_str().unwrap()).unwrap();
    assert_eq!(config, injector_config());
    let values: Value = serde_json::from_str(injector["values"].as_str().unwrap()).unwrap();
    assert_eq!(values, injector_values(&options));
    let mesh: Value =
        serde_saphyr::from_str(data("ConfigMap/istio-system/istio")["mesh"].as_str().unwrap()).unwrap();
    assert_eq!(mesh, mesh_config(&options));
}

#[test]
fn roles_give_what_is_used_and_no_more() {
    for object in render(&Options::default()) {
        let cluster_wide = object["kind"] == "ClusterRole";
        for rule in object["rules"].as_array().into_iter().flatten() {
            assert!(
                !rule["verbs"].to_string().contains('*') && !rule["resources"].to_string().contains('*'),
                "{rule}"
            );
            let about = |resource: &str| {
                rule["resources"].as_array().is_some_and(|list| list.contains(&resource.into()))
            };
            let only_creates = rule["verbs"] == serde_json::json!(["create"]);
            if about("secrets") && cluster_wide {
                // Any of them may be one that a Gateway names; none is ever written.
                assert_eq!(rule["verbs"], serde_json::json!(["get", "list", "watch"]), "{rule}");
            }
            if about("secrets") && !only_creates && object["metadata"]["name"] == "istiod" {
                let own = [
                    serde_json::json!(["istio-ca-secret", "cacerts"]),
                    serde_json::json!(["lateen-token-keys"]),
                ];
                assert!(own.contains(&rule["resourceNames"]), "{rule}");
            }
            if about("configmaps") && cluster_wide && !only_creates {
                assert_eq!(rule["resourceNames"], serde_json::json!(["istio-ca-root-cert"]), "{rule}");
            }
        }
    }
}

/// What is asked of every pod of the mesh's own (S11); the init container alone has a right, to change its pod's nftables.
#[test]
fn pods_are_hardened() {
    let objects = render(&Options { egress_gateway: true, ..Options::default() });
    let pods: Vec<&Value> = objects
        .iter()
        .filter(|o| o["kind"] == "Deployment")
        .map(|o| &o["spec"]["template"]["spec"])
        .collect();
    assert_eq!(pods.len(), 3);
    for pod in pods {
        let of_pod = &pod["securityContext"];
        assert_eq!(of_pod["runAsNonRoot"], true, "{of_pod}");
        assert_eq!(of_pod["seccompProfile"], serde_json::json!({ "type": "RuntimeDefault" }));
        for container in pod["containers"].as_array().unwrap() {
            let own = &container["securityContext"];
            assert_eq!(own["allowPrivilegeEscalation"], false, "{own}");
            assert_eq!(own["readOnlyRootFilesystem"], true, "{own}");
            assert_eq!(own["capabilities"], serde_json::json!({ "drop": ["ALL"] }), "{own}");
        }
        for key in ["hostNetwork", "hostPID", "hostIPC"] {
            assert!(pod.get(key).is_none(), "{key}");
        }
        assert!(
            pod["volumes"].as_array().into_iter().flatten().all(|volume| volume.get("hostPath").is_none())
        );
    }
}
