use serde_json::{Value, json};

use super::template::InjectError;
use super::*;

fn config() -> InjectorConfig {
    config_of(&lateen_manifests::Options::default())
}

fn config_of(options: &lateen_manifests::Options) -> InjectorConfig {
    let text = lateen_manifests::injector_config().to_string();
    InjectorConfig::parse(&text, &lateen_manifests::injector_values(options).to_string()).unwrap()
}

fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "generateName": "web-7d9c6b-",
            "labels": { "app": "web", "version": "v2", "pod-template-hash": "7d9c6b" },
            "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-7d9c6b", "controller": true }]
        },
        "spec": { "containers": [
            { "name": "web", "image": "nginx", "ports": [{ "name": "http", "containerPort": 8080, "protocol": "TCP" }] }
        ] }
    })
}

fn with(pointer: &str, value: Value) -> Value {
    let mut pod = pod();
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    if pod.pointer(parent).is_none() {
        let (grand, name) = parent.rsplit_once('/').unwrap();
        pod.pointer_mut(grand).unwrap()[name] = json!({});
    }
    pod.pointer_mut(parent).unwrap()[field] = value;
    pod
}

fn annotated(annotations: Value) -> Value {
    with("/metadata/annotations", annotations)
}

fn mesh() -> Value {
    lateen_manifests::mesh_config(&lateen_manifests::Options::default())
}

fn injected(pod: &Value) -> Value {
    try_inject(pod, &config()).unwrap()
}

fn try_inject(pod: &Value, config: &InjectorConfig) -> Result<Value, InjectError> {
    let mesh = mesh();
    let given = InjectContext { namespace: "shop", revision: "default", mesh: &mesh };
    let patch = inject(pod, config, &given)?;
    let mut result = pod.clone();
    json_patch::patch(&mut result, &patch).unwrap();
    Ok(result)
}

fn container<'a>(pod: &'a Value, field: &str, name: &str) -> &'a Value {
    pod["spec"][field]
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["name"] == name)
        .unwrap_or_else(|| panic!("{name}"))
}

fn env<'a>(pod: &'a Value, name: &str) -> &'a Value {
    let env = container(pod, "containers", "istio-proxy")["env"].as_array().unwrap();
    env.iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("{name}"))
}

/// The argument after a flag of istio-init.
fn init_flag(pod: &Value, flag: &str) -> Option<String> {
    let args = container(pod, "initContainers", "istio-init")["args"].as_array().unwrap();
    let at = args.iter().position(|arg| arg == flag)?;
    Some(args[at + 1].as_str().unwrap().to_owned())
}

#[test]
fn decisions() {
    let mut labelled_false = pod();
    labelled_false["metadata"]["labels"]["sidecar.istio.io/inject"] = json!("false");
    let mut both = labelled_false.clone();
    both["metadata"]["annotations"] = json!({ "sidecar.istio.io/inject": "true" });
    for (pod, namespace, expected) in [
        (pod(), "shop", true),
        (pod(), "kube-system", false),
        (with("/spec/hostNetwork", json!(true)), "shop", false),
        (with("/spec/hostNetwork", json!(false)), "shop", true),
        (labelled_false, "shop", false),
        (both, "shop", false),
        (annotated(json!({ "sidecar.istio.io/inject": "no" })), "shop", false),
        (annotated(json!({ "sidecar.istio.io/inject": "perhaps" })), "shop", true),
        (annotated(json!({ "sidecar.istio.io/status": "{}" })), "shop", false),
    ] {
        assert_eq!(decide(&pod, namespace, &config()) == Decision::Inject, expected, "{pod} in {namespace}");
    }
}

#[test]
fn selectors_and_policy_decide_about_pods_that_say_nothing() {
    let parse = |text: &str| InjectorConfig::parse(text, "{}").unwrap();
    let disabled = parse("policy: disabled\nalwaysInjectSelector:\n- matchLabels: {app: web}\n");
    assert_eq!(decide(&pod(), "shop", &disabled), Decision::Inject);
    let mut other = pod();
    other["metadata"]["labels"] = json!({});
    assert!(matches!(decide(&other, "shop", &disabled), Decision::Skip(_)));
    let never = parse(
        "neverInjectSelector:\n- matchExpressions:\n  - {key: app, operator: In, values: [web]}\n- {}\n",
    );
    assert!(matches!(decide(&pod(), "shop", &never), Decision::Skip(_)));
    assert_eq!(decide(&other, "shop", &never), Decision::Inject, "the empty selector selects nothing");
}

#[test]
fn a_pod_gets_what_the_proxy_needs() {
    let pod = injected(&pod());
    let names: Vec<_> =
        pod["spec"]["containers"].as_array().unwrap().iter().map(|c| c["name"].clone()).collect();
    assert_eq!(names, ["web", "istio-proxy"], "the proxy comes last");
    let proxy = container(&pod, "containers", "istio-proxy");
    assert_eq!(proxy["args"][0], "proxy");
    assert_eq!(proxy["args"][1], "sidecar");
    assert_eq!(proxy["readinessProbe"]["httpGet"], json!({ "path": "/healthz/ready", "port": 15021 }));
    assert_eq!(env(&pod, "CA_ADDR")["value"], "istiod.istio-system.svc:15012");
    assert_eq!(env(&pod, "ISTIO_META_WORKLOAD_NAME")["value"], "web");
    assert_eq!(
        env(&pod, "ISTIO_META_OWNER")["value"],
        "kubernetes://apis/apps/v1/namespaces/shop/deployments/web"
    );
    assert_eq!(env(&pod, "ISTIO_META_APP_CONTAINERS")["value"], "web");
    assert_eq!(env(&pod, "LATEEN_ENGINE")["value"], "lateen");
    let ports: Value =
        serde_json::from_str(env(&pod, "ISTIO_META_POD_PORTS")["value"].as_str().unwrap()).unwrap();
    assert_eq!(ports[0]["containerPort"], 8080);
    let proxy_config: Value =
        serde_json::from_str(env(&pod, "PROXY_CONFIG")["value"].as_str().unwrap()).unwrap();
    assert_eq!(proxy_config["discoveryAddress"], "istiod.istio-system.svc:15012");
    assert_eq!(pod["metadata"]["labels"]["service.istio.io/canonical-name"], "web");
    assert_eq!(pod["metadata"]["labels"]["service.istio.io/canonical-revision"], "v2");
    assert_eq!(pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"], "web");
    let status: Value =
        serde_json::from_str(pod["metadata"]["annotations"]["sidecar.istio.io/status"].as_str().unwrap())
            .unwrap();
    assert_eq!(status["containers"], json!(["istio-proxy"]));
    assert_eq!(status["initContainers"], json!(["istio-init"]));
    let token = container(&pod, "volumes", "istio-token");
    assert_eq!(token["projected"]["sources"][0]["serviceAccountToken"]["audience"], "istio-ca");
    assert!(matches!(decide(&pod, "shop", &config()), Decision::Skip(_)), "once is enough");
    // It is a pod as Kubernetes knows it.
    serde_json::from_value::<k8s_openapi::api::core::v1::Pod>(pod).unwrap();
}

#[test]
fn capture_is_set_by_annotations() {
    let plain = injected(&pod());
    let args: Vec<_> = container(&plain, "initContainers", "istio-init")["args"].as_array().unwrap().clone();
    let expected = [
        "istio-iptables",
        "-p",
        "15001",
        "-z",
        "15006",
        "-u",
        "1337",
        "-m",
        "REDIRECT",
        "-i",
        "*",
        "-x",
        "",
        "-b",
        "*",
        "-d",
        "15090,15021,15020",
    ];
    assert_eq!(args, expected);
    let pod = injected(&annotated(json!({
        "traffic.sidecar.istio.io/includeOutboundIPRanges": "10.0.0.0/8",
        "traffic.sidecar.istio.io/excludeOutboundIPRanges": "10.1.0.0/16",
        "traffic.sidecar.istio.io/includeInboundPorts": "80,443",
        "traffic.sidecar.istio.io/excludeInboundPorts": "9000",
        "traffic.sidecar.istio.io/excludeOutboundPorts": "3306",
        "traffic.sidecar.istio.io/includeOutboundPorts": "8080",
        "traffic.sidecar.istio.io/excludeInterfaces": "eth1",
        "traffic.sidecar.istio.io/kubevirtInterfaces": "vm0",
    })));
    for (flag, value) in [
        ("-i", "10.0.0.0/8"),
        ("-x", "10.1.0.0/16"),
        ("-b", "80,443"),
        ("-d", "15090,15021,15020,9000"),
        ("-o", "3306"),
        ("-q", "8080"),
        ("-c", "eth1"),
        ("-k", "vm0"),
    ] {
        assert_eq!(init_flag(&pod, flag).as_deref(), Some(value), "{flag}");
    }
}

#[test]
fn the_proxy_is_set_by_annotations() {
    let pod = injected(&annotated(json!({
        "sidecar.istio.io/proxyCPU": "250m",
        "sidecar.istio.io/proxyMemoryLimit": "99Mi",
        "sidecar.istio.io/proxyImage": "example.com/proxy:1",
        "sidecar.istio.io/logLevel": "debug",
        "sidecar.istio.io/userVolume": "{\"extra\":{\"emptyDir\":{}}}",
        "sidecar.istio.io/userVolumeMount": "[{\"name\":\"extra\",\"mountPath\":\"/extra\"}]",
        "proxy.istio.io/config": "concurrency: 3\nholdApplicationUntilProxyStarts: true\nproxyMetadata:\n  COLOUR: \"red: not yaml\"\n",
        "proxy.lateen.io/engine": "envoy",
    })));
    let proxy = container(&pod, "containers", "istio-proxy");
    assert_eq!(pod["spec"]["containers"][0]["name"], "istio-proxy", "held applications start after it");
    let hook = &proxy["lifecycle"]["postStart"]["exec"]["command"];
    assert_eq!(*hook, json!(["/usr/local/bin/lateen-proxy", "wait"]), "and after it is ready");
    assert_eq!(proxy["image"], "example.com/proxy:1");
    assert_eq!(proxy["resources"], json!({ "requests": { "cpu": "250m" }, "limits": { "memory": "99Mi" } }));
    let args = proxy["args"].as_array().unwrap();
    assert!(args.contains(&json!("--proxyLogLevel=debug")), "{args:?}");
    let at = args.iter().position(|arg| arg == "--concurrency").unwrap();
    assert_eq!(args[at + 1], "3");
    assert_eq!(env(&pod, "LATEEN_ENGINE")["value"], "envoy");
    assert_eq!(env(&pod, "COLOUR")["value"], "red: not yaml");
    let init = container(&pod, "initContainers", "istio-init");
    assert_eq!(
        init["env"],
        json!([{ "name": "COLOUR", "value": "red: not yaml" }]),
        "capture goes by them too"
    );
    assert_eq!(container(&pod, "volumes", "extra")["emptyDir"], json!({}));
    assert!(
        proxy["volumeMounts"]
            .as_array()
            .unwrap()
            .contains(&json!({ "name": "extra", "mountPath": "/extra" }))
    );
}

#[test]
fn values_choose_the_engine_and_no_value_breaks_out() {
    let options = lateen_manifests::Options { engine: lateen_manifests::Engine::Envoy, ..Default::default() };
    let pod_ = try_inject(&pod(), &config_of(&options)).unwrap();
    assert_eq!(env(&pod_, "LATEEN_ENGINE")["value"], "envoy");
    let nasty = "x\"\n    securityContext: {privileged: true}\n#";
    let pod_ = injected(&annotated(json!({ "sidecar.istio.io/proxyImage": nasty })));
    let proxy = container(&pod_, "containers", "istio-proxy");
    assert_eq!(proxy["image"], nasty);
    assert_eq!(proxy["securityContext"]["privileged"], false);
}

/// A proxy has no rights beyond those of any user; what captures traffic has one.
#[test]
fn what_is_injected_is_hardened() {
    let mut gateway = annotated(json!({ "inject.istio.io/templates": "gateway" }));
    gateway["spec"]["containers"] = json!([{ "name": "istio-proxy", "image": "auto" }]);
    let sidecar = injected(&pod());
    for (pod, field, name, root, add) in [
        (&sidecar, "containers", "istio-proxy", false, json!(null)),
        (&sidecar, "initContainers", "istio-init", true, json!(["NET_ADMIN"])),
        (&injected(&gateway), "containers", "istio-proxy", false, json!(null)),
    ] {
        let security = &container(pod, field, name)["securityContext"];
        assert_eq!(security["capabilities"]["drop"], json!(["ALL"]), "{name}: {security}");
        assert_eq!(security["capabilities"]["add"], add, "{name}: {security}");
        assert_eq!(security["seccompProfile"], json!({ "type": "RuntimeDefault" }), "{name}");
        for (key, value) in
            [("allowPrivilegeEscalation", false), ("privileged", false), ("readOnlyRootFilesystem", true)]
        {
            assert_eq!(security[key], value, "{name}: {security}");
        }
        assert_eq!(security["runAsNonRoot"], !root, "{name}");
        assert_eq!(security["runAsUser"], if root { 0 } else { 1337 }, "{name}");
    }
    // Who wants the node's choice takes the value away.
    let options = lateen_manifests::Options::default();
    let mut values = lateen_manifests::injector_values(&options);
    values["global"]["proxy"]["seccompProfile"] = Value::Null;
    let yaml = lateen_manifests::injector_config().to_string();
    let plain = try_inject(&pod(), &InjectorConfig::parse(&yaml, &values.to_string()).unwrap()).unwrap();
    assert!(
        container(&plain, "containers", "istio-proxy")["securityContext"].get("seccompProfile").is_none()
    );
}

#[test]
fn the_pods_own_container_customises_the_injected_one() {
    let mut custom = pod();
    custom["spec"]["containers"].as_array_mut().unwrap().insert(
        0,
        json!({ "name": "istio-proxy", "image": "auto", "lifecycle": { "preStop": { "exec": { "command": ["x"] } } },
                "env": [{ "name": "CA_ADDR", "value": "mine" }] }),
    );
    let pod = injected(&custom);
    let proxy = container(&pod, "containers", "istio-proxy");
    assert!(proxy["image"].as_str().unwrap().starts_with("lateen/proxyv2"), "{proxy}");
    assert_eq!(proxy["lifecycle"]["preStop"]["exec"]["command"][0], "x");
    assert_eq!(env(&pod, "CA_ADDR")["value"], "mine");
    assert_eq!(env(&pod, "ISTIO_META_APP_CONTAINERS")["value"], "web");
}

#[test]
fn gateways_are_filled_in_by_their_template() {
    let mut gateway = annotated(json!({ "inject.istio.io/templates": "gateway" }));
    gateway["spec"]["containers"] = json!([{ "name": "istio-proxy", "image": "auto" }]);
    let pod = injected(&gateway);
    assert_eq!(container(&pod, "containers", "istio-proxy")["args"][1], "router");
    assert!(pod["spec"]["initContainers"].is_null(), "a gateway captures nothing");
}

#[test]
fn mistakes_are_named() {
    let why = |pod: &Value| try_inject(pod, &config()).unwrap_err().to_string();
    assert!(why(&annotated(json!({ "proxy.istio.io/config": "[" }))).contains("proxy.istio.io/config"));
    assert!(
        why(&annotated(json!({ "proxy.istio.io/config": "statusPort: many" })))
            .contains("proxy.istio.io/config")
    );
    assert!(why(&annotated(json!({ "inject.istio.io/templates": "nope" }))).contains("nope"));
    assert!(why(&annotated(json!({ "sidecar.istio.io/userVolume": "{" }))).contains("sidecar"));
    for text in ["{\"a\": 5}", "{\"a\": [1]}", "{\"a\": \"b\"}", "{\"a\": null}"] {
        let error = why(&annotated(json!({ "sidecar.istio.io/userVolume": text })));
        assert!(error.contains("expected an object under \"a\""), "{error}");
    }
    let mut auto = pod();
    auto["spec"]["containers"][0]["image"] = json!("auto");
    assert!(why(&auto).contains("web"));
    let broken = InjectorConfig::parse("templates: {sidecar: '{{ nope'}", "{}").unwrap_err().to_string();
    assert!(broken.contains("sidecar"), "{broken}");
    let endless = "defaultTemplates: [t]\ntemplates: {t: '{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}'}";
    let error = try_inject(&pod(), &InjectorConfig::parse(endless, "{}").unwrap()).unwrap_err();
    assert!(error.to_string().contains("fuel"), "{error}");
}
