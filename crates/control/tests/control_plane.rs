//! The control plane end to end: Kubernetes objects in, xDS, admission and status out.
mod certificates;
mod machines;
mod support;

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Service;
use kube::Api;
use kube::api::{Patch, PatchParams};
use lateen_xds::type_urls::{CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET};
use serde_json::{Value, json};
use support::{Cluster, Introduction, Proxy, carries, debug, service, slice, virtual_service};
use tonic::Code;

const WEB: &str = "outbound|80||web.default.svc.cluster.local";
const AUDIENCE: &str = "istio-ca";

/// What the issue promises for a change.
const LIVE: Duration = Duration::from_millis(500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_reaches_a_proxy_in_milliseconds() {
    let cluster = Cluster::start().await;
    let control_plane = cluster.control_plane().await;
    let token = cluster.token("web", AUDIENCE).await;
    let mut proxy = Proxy::connect(&control_plane, Introduction::web(&token), CLUSTER).await.unwrap();
    proxy.until(|response| response.type_url == CLUSTER).await;
    proxy.subscribe(LISTENER, &[]).await;
    proxy.subscribe(ROUTE, &["80"]).await;

    let begun = Instant::now();
    cluster.apply(service("web", 80)).await;
    proxy.until(|response| carries(response, WEB)).await;
    let for_service = begun.elapsed();
    proxy.subscribe(ENDPOINT, &[WEB]).await;
    proxy.until(|response| response.type_url == ENDPOINT).await;

    cluster.apply(service("other", 80)).await;
    proxy.until(|response| carries(response, "outbound|80||other.default.svc.cluster.local")).await;
    let begun = Instant::now();
    cluster.apply(virtual_service("web", "other")).await;
    let changed = proxy.held.get(&(ROUTE.to_owned(), "80".to_owned())).cloned();
    proxy
        .until(|response| {
            let other = |version: &String| changed.as_ref() != Some(version);
            response.type_url == ROUTE && response.resources.iter().any(|resource| other(&resource.version))
        })
        .await;
    let for_route = begun.elapsed();

    let begun = Instant::now();
    cluster.apply(slice("web", &["10.1.1.2"])).await;
    proxy.until(|response| response.type_url == ENDPOINT && carries(response, WEB)).await;
    let for_endpoints = begun.elapsed();
    println!("live after: service {for_service:?}, route {for_route:?}, endpoints {for_endpoints:?}");
    assert!(for_service < LIVE && for_route < LIVE && for_endpoints < LIVE);

    cluster.delete(&service("web", 80)).await;
    proxy.until(|response| response.removed_resources.iter().any(|name| name == WEB)).await;
    control_plane.shutdown().await;
    assert_eq!(proxy.end().await.code(), Code::Unavailable, "proxies are told to come back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_must_prove_who_they_are() {
    let cluster = Cluster::start().await;
    let control_plane = cluster.control_plane().await;
    let good = cluster.token("web", AUDIENCE).await;
    let wrong_audience = cluster.token("web", "somebody-else").await;
    let refused = async |introduction: Introduction<'_>| {
        let status = Proxy::connect(&control_plane, introduction, CLUSTER).await.err().expect("refused");
        (status.code(), status.message().to_owned())
    };
    let (code, message) = refused(Introduction { authorization: None, ..Introduction::web("") }).await;
    assert_eq!(code, Code::Unauthenticated);
    assert!(message.contains("no bearer token"), "{message}");
    let (code, _) = refused(Introduction::web("forged.token.here")).await;
    assert_eq!(code, Code::Unauthenticated);
    let (code, _) = refused(Introduction::web(&wrong_audience)).await;
    assert_eq!(code, Code::Unauthenticated);
    let (code, message) =
        refused(Introduction { namespace: "kube-system", ..Introduction::web(&good) }).await;
    assert_eq!(code, Code::PermissionDenied);
    assert!(message.contains("default/web") && message.contains("kube-system/web"), "{message}");
    let (code, _) = refused(Introduction { account: "admin", ..Introduction::web(&good) }).await;
    assert_eq!(code, Code::PermissionDenied);
    assert!(Proxy::connect(&control_plane, Introduction::web(&good), CLUSTER).await.is_ok());
}

const CREDENTIAL: &str = "kubernetes://web";

/// A Gateway in namespace `default`, its Secret in `istio-system`, and pods that it selects in both.
async fn with_credential(cluster: &Cluster) {
    let (certificate, key) =
        (include_str!("../../model/tests/server.crt"), include_str!("../../model/tests/server.key"));
    cluster
        .apply(json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "web", "namespace": "istio-system" },
            "type": "kubernetes.io/tls", "stringData": { "tls.crt": certificate, "tls.key": key } }))
        .await;
    for namespace in ["istio-system", "default"] {
        let labels = json!({ "istio": "ingressgateway" });
        cluster
            .apply(json!({ "apiVersion": "v1", "kind": "Pod",
                "metadata": { "name": "web-1", "namespace": namespace, "labels": labels },
                "spec": { "containers": [{ "name": "istio-proxy", "image": "lateen/proxyv2" }] } }))
            .await;
    }
    cluster
        .apply(json!({ "apiVersion": "networking.istio.io/v1", "kind": "Gateway",
            "metadata": { "name": "web", "namespace": "default" },
            "spec": { "selector": { "istio": "ingressgateway" }, "servers": [{ "hosts": ["*"],
                "port": { "number": 443, "name": "https", "protocol": "HTTPS" },
                "tls": { "mode": "SIMPLE", "credentialName": "web" } }] } }))
        .await;
}

fn role_binding(namespace: &str, account: &str) -> [Value; 2] {
    let metadata = json!({ "name": "reads-secrets", "namespace": namespace });
    let group = "rbac.authorization.k8s.io";
    let api = "rbac.authorization.k8s.io/v1";
    [
        json!({ "apiVersion": api, "kind": "Role", "metadata": metadata,
            "rules": [{ "apiGroups": [""], "resources": ["secrets"], "verbs": ["list"] }] }),
        json!({ "apiVersion": api, "kind": "RoleBinding", "metadata": metadata,
            "roleRef": { "apiGroup": group, "kind": "Role", "name": "reads-secrets" },
            "subjects": [{ "kind": "ServiceAccount", "name": account, "namespace": namespace }] }),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_go_only_to_those_who_may_read_them() {
    let cluster = Cluster::start().await;
    with_credential(&cluster).await;
    for object in role_binding("default", "web") {
        cluster.apply(object).await;
    }
    let control_plane = cluster.control_plane().await;
    let connect = async |kind: &str, namespace: &str, account: &str| {
        let token = cluster.token_in(namespace, account, AUDIENCE).await;
        let introduction = Introduction { kind, namespace, account, ..Introduction::web(&token) };
        let proxy = Proxy::connect(&control_plane, introduction, SECRET).await.unwrap();
        let names = [CREDENTIAL, "kubernetes://istio-system/web", "kubernetes-gateway://istio-system/web"];
        proxy.subscribe(SECRET, &names).await;
        proxy
    };
    let mut gateway = connect("router", "istio-system", "istio-ingressgateway-service-account").await;
    gateway.until(|response| carries(response, CREDENTIAL)).await;
    for (kind, namespace, account, why) in [
        ("sidecar", "default", "web", "a sidecar of another namespace, whose account reads that one's"),
        (
            "sidecar",
            "istio-system",
            "istio-ingressgateway-service-account",
            "a sidecar, which no rule gives it",
        ),
        ("router", "default", "web", "a gateway of another namespace"),
        ("router", "istio-system", "nobody", "an account that may not read Secrets"),
    ] {
        let mut proxy = connect(kind, namespace, account).await;
        // Whatever is to come about secrets comes before the listeners.
        proxy.subscribe(LISTENER, &[]).await;
        proxy.until(|response| response.type_url == LISTENER).await;
        assert!(proxy.held.keys().all(|(type_url, _)| type_url != SECRET), "{why}: {:?}", proxy.held);
    }
    // Roles that come later are heeded, on the same connection.
    let mut late = connect("router", "istio-system", "nobody").await;
    for object in role_binding("istio-system", "nobody") {
        cluster.apply(object).await;
    }
    late.until(|response| carries(response, CREDENTIAL)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_proxy_says_is_seen() {
    let cluster = Cluster::start().await;
    let control_plane = cluster.control_plane().await;
    let token = cluster.token("web", AUDIENCE).await;
    cluster.apply(service("web", 80)).await;
    let mut proxy = Proxy::connect(&control_plane, Introduction::web(&token), CLUSTER).await.unwrap();
    proxy.subscribe(LISTENER, &[]).await;
    // It refuses one cluster, alone or with others; everything else it takes.
    let words = format!("{WEB}: foo is not supported");
    let (mut alone, mut listeners) = (false, false);
    while !(alone && listeners) {
        let response = proxy.receive().await;
        proxy.answer(&response, carries(&response, WEB).then_some(words.as_str())).await;
        alone |= carries(&response, WEB) && response.resources.len() == 1;
        listeners |= response.type_url == LISTENER;
    }
    let cluster_count = proxy.held.keys().filter(|(type_url, _)| type_url == CLUSTER).count();
    assert!(cluster_count > 1, "the other clusters have come");

    let state = loop {
        let (code, body) = debug(&control_plane, "/debug/syncz").await;
        assert_eq!(code, 200);
        let list: Value = serde_json::from_str(&body).unwrap();
        if list[0]["types"]["LDS"]["status"] == "SYNCED" && list[0]["types"]["CDS"]["rejected"][0].is_string()
        {
            break list[0].clone();
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(state["proxy"], "web-1.default");
    assert_eq!(state["istio_version"], "1.24.0");
    assert_eq!(state["types"]["CDS"]["status"], "STALE");
    assert_eq!(state["types"]["CDS"]["error"], words);
    assert_eq!(state["types"]["CDS"]["rejected"], json!([WEB]));
    assert_eq!(state["types"]["RDS"]["status"], "NOT SENT");
    assert_eq!(state["listener_sent"], state["listener_acked"]);

    let (code, body) = debug(&control_plane, "/debug/config_dump?proxyID=web-1.default").await;
    assert_eq!(code, 200, "{body}");
    assert!(body.contains("ClustersConfigDump") && body.contains("virtualInbound"), "{body}");
    let (code, _) = debug(&control_plane, "/debug/config_dump?proxyID=nobody.default").await;
    assert_eq!(code, 404);
    let (_, metrics) = debug(&control_plane, "/metrics").await;
    // Once beside others, once alone.
    for line in ["pilot_xds{version=\"1.24.0\"} 1", "pilot_xds_cds_reject{node=\"web-1.default\"} 2"] {
        assert!(metrics.contains(line), "{line} not in\n{metrics}");
    }
    for path in ["/debug/adsz", "/debug/configz", "/debug/registryz", "/debug/endpointz"] {
        let (code, body) = debug(&control_plane, path).await;
        assert_eq!(code, 200, "{path}");
        serde_json::from_str::<Value>(&body).unwrap_or_else(|error| panic!("{path}: {error}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_control_plane_sends_only_differences() {
    let cluster = Cluster::start().await;
    let first = cluster.control_plane().await;
    let token = cluster.token("web", AUDIENCE).await;
    cluster.apply(service("web", 80)).await;
    cluster.apply(service("old", 80)).await;
    let mut proxy = Proxy::connect(&first, Introduction::web(&token), CLUSTER).await.unwrap();
    let old = "outbound|80||old.default.svc.cluster.local";
    while !proxy.held.contains_key(&(CLUSTER.to_owned(), old.to_owned()))
        || !proxy.held.contains_key(&(CLUSTER.to_owned(), WEB.to_owned()))
    {
        proxy.until(|response| response.type_url == CLUSTER).await;
    }
    let held = std::mem::take(&mut proxy.held);
    let root = first.root_certificate();
    first.shutdown().await;

    // The world moves on without a control plane. (The webhooks fail closed, but services are not theirs.)
    cluster.delete(&service("old", 80)).await;
    cluster.apply(service("new", 80)).await;

    let second = cluster.control_plane().await;
    assert_eq!(second.root_certificate(), root, "the root certificate outlives the control plane");
    let known = held.into_iter().map(|((_, name), version)| (name, version)).collect();
    let introduction = Introduction { known, ..Introduction::web(&token) };
    let mut proxy = Proxy::connect(&second, introduction, CLUSTER).await.unwrap();
    let response = proxy.receive().await;
    let names: Vec<_> = response.resources.iter().map(|resource| resource.name.as_str()).collect();
    assert_eq!(names, ["outbound|80||new.default.svc.cluster.local"]);
    proxy.answer(&response, None).await;
    let response = proxy.receive().await;
    assert_eq!(response.removed_resources, [old]);
}

fn namespace(name: &str, labels: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } })
}

fn pod(namespace: &str, name: &str, labels: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": namespace, "labels": labels },
        "spec": { "containers": [{ "name": "app", "image": "nginx" }] } })
}

/// Waits until the API server knows our certificate, without which webhooks fail.
async fn trusted(cluster: &Cluster) {
    for (kind, name) in [
        ("MutatingWebhookConfiguration", "istio-sidecar-injector"),
        ("ValidatingWebhookConfiguration", "istio-validator-istio-system"),
    ] {
        let object = json!({ "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": { "name": name } });
        cluster
            .until("trust", object, |now| {
                let webhooks = now["webhooks"].as_array()?;
                webhooks
                    .iter()
                    .all(|one| one["clientConfig"]["caBundle"].is_string() && one["failurePolicy"] == "Fail")
                    .then_some(())
            })
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_are_injected_where_namespaces_or_pods_ask() {
    let cluster = Cluster::start().await;
    let control_plane = cluster.control_plane().await;
    trusted(&cluster).await;
    cluster.apply(namespace("on", json!({ "istio-injection": "enabled" }))).await;
    cluster.apply(namespace("off", json!({ "istio-injection": "disabled" }))).await;
    cluster.apply(namespace("rev", json!({ "istio.io/rev": "default" }))).await;
    cluster.apply(namespace("plain", json!({}))).await;
    for (namespace, name, labels, expected) in [
        ("on", "a", json!({}), 2),
        ("on", "b", json!({ "sidecar.istio.io/inject": "false" }), 1),
        ("off", "a", json!({}), 1),
        ("off", "b", json!({ "sidecar.istio.io/inject": "true" }), 1),
        ("rev", "a", json!({}), 2),
        ("plain", "a", json!({}), 1),
        ("plain", "b", json!({ "sidecar.istio.io/inject": "true" }), 2),
        ("plain", "c", json!({ "istio.io/rev": "default" }), 2),
    ] {
        let account = json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "default", "namespace": namespace } });
        cluster.apply(account).await;
        let created = cluster.create(pod(namespace, name, labels.clone())).await.unwrap();
        let containers = created["spec"]["containers"].as_array().unwrap();
        assert_eq!(containers.len(), expected, "pod {namespace}/{name} {labels}");
    }
    // New namespaces have the root certificate that pods mount.
    let root = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "istio-ca-root-cert", "namespace": "plain" } });
    let written = cluster
        .until("root certificate", root.clone(), |map| {
            map["data"]["root-cert.pem"].as_str().map(str::to_owned)
        })
        .await;
    assert_eq!(written, control_plane.root_certificate());
    cluster.delete(&root).await;
    cluster
        .until("root certificate again", root, |map| map["data"]["root-cert.pem"].as_str().map(str::to_owned))
        .await;
    // And one whose first copies the API server refuses has it later: no pod of it would start.
    let hook = json!({ "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": { "name": "in-the-way" }, "webhooks": [{ "name": "in.the.way", "failurePolicy": "Fail",
            "clientConfig": { "url": "https://127.0.0.1:1/" }, "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "rules": [{ "apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"] }] }] });
    cluster.apply(hook.clone()).await;
    cluster.apply(json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "late" } })).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    cluster.delete(&hook).await;
    let root = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "istio-ca-root-cert", "namespace": "late" } });
    cluster
        .until("root certificate at last", root, |map| {
            map["data"]["root-cert.pem"].as_str().map(str::to_owned)
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn configuration_is_judged_when_applied_and_in_its_status() {
    let cluster = Cluster::start().await;
    let _control_plane = cluster.control_plane().await;
    trusted(&cluster).await;
    let mut bad = virtual_service("web", "web");
    bad["spec"]["http"][0]["route"] = json!([
        { "destination": { "host": "a" }, "weight": -3 }, { "destination": { "host": "b" }, "weight": 103 }
    ]);
    let error = cluster.try_apply(bad).await.unwrap_err().to_string();
    assert!(
        error.contains("rev.validation.istio.io") && error.contains("configuration is invalid"),
        "{error}"
    );

    cluster.apply(service("web", 80)).await;
    let good = virtual_service("web", "web");
    cluster.apply(good.clone()).await;
    cluster
        .until("a good status", good.clone(), |now| {
            let condition = &now["status"]["conditions"][0];
            (condition["type"] == "Reconciled" && condition["status"] == "True").then_some(())
        })
        .await;
    cluster.apply(virtual_service("web", "nowhere")).await;
    let message = cluster
        .until("a warning", good.clone(), |now| {
            let message = &now["status"]["validationMessages"][0];
            let current = now["status"]["observedGeneration"] == now["metadata"]["generation"];
            (current && message["type"]["code"] == "IST0101")
                .then(|| message["message"].as_str().unwrap_or("").to_owned())
        })
        .await;
    assert_eq!(message, "Referenced host not found: \"nowhere\"");
    // The host comes: the warning goes.
    cluster.apply(service("nowhere", 80)).await;
    cluster
        .until("no warning", good, |now| {
            (now["status"]["observedGeneration"].is_i64() && now["status"]["validationMessages"][0].is_null())
                .then_some(())
        })
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_written_while_no_webhook_answered_is_refused_in_its_status() {
    let cluster = Cluster::start().await;
    cluster.apply(service("web", 80)).await;
    // A proxy would refuse all routes of port 80 for this.
    let mut bad = virtual_service("web", "web");
    bad["spec"]["http"][0]["match"] = json!([{ "uri": { "regex": "(" } }]);
    cluster.apply(bad.clone()).await;
    let control_plane = cluster.control_plane().await;
    let (state, reason) = cluster
        .until("a refusal", bad.clone(), |now| {
            let condition = &now["status"]["conditions"][0];
            let code = now["status"]["validationMessages"][0]["type"]["code"] == "IST0106";
            code.then(|| (condition["status"].clone(), condition["message"].to_string()))
        })
        .await;
    assert_eq!(state, "False");
    assert!(reason.contains("spec.http[0].match[0].uri.regex"), "{reason}");
    let token = cluster.token("web", AUDIENCE).await;
    let mut proxy = Proxy::connect(&control_plane, Introduction::web(&token), ROUTE).await.unwrap();
    proxy.subscribe(ROUTE, &["80"]).await;
    let response = proxy.until(|response| carries(response, "80")).await;
    let body = &response.resources[0].resource.as_ref().unwrap().value;
    let body = String::from_utf8_lossy(body);
    assert!(
        body.contains(WEB) && !body.contains("virtual-service/web"),
        "the service is as if there were none"
    );

    cluster.apply(virtual_service("web", "web")).await;
    let taken = |now: &Value| (now["status"]["conditions"][0]["status"] == "True").then_some(());
    cluster.until("the mended object", bad, taken).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_objects_that_are_there_already_touch_nothing_else() {
    let cluster = Cluster::start().await;
    // What is said of each in its status (the code and a part of the words), and whether its routes are sent all the same.
    let table = [
        ("good", json!({}), None, true),
        ("time-out", json!({ "timeout": "-1s" }), Some(("IST0106", "spec.http[0].timeout")), false),
        (
            "weights",
            json!({ "route": [{ "destination": { "host": "good" }, "weight": 0 }, { "destination": { "host": "time-out" }, "weight": 0 }] }),
            Some(("IST0106", "total destination weight = 0")),
            false,
        ),
        (
            "command",
            json!({ "headers": { "request": { "set": { "x-a": "%NOTHING%" } } } }),
            Some(("IST0106", "%NOTHING% is no command")),
            false,
        ),
        (
            "retries",
            json!({ "retries": { "attempts": -1 } }),
            Some(("IST0106", "spec.http[0].retries")),
            false,
        ),
        // As with istiod: its cluster is not there, and requests are answered 503.
        (
            "subset",
            json!({ "route": [{ "destination": { "host": "subset", "subset": "none" } }] }),
            Some(("IST0101", "subset+none")),
            true,
        ),
        (
            "nobody",
            json!({ "route": [{ "destination": { "host": "gone" } }] }),
            Some(("IST0101", "gone")),
            true,
        ),
        // Who delegates without hosts of its own is refused, so that there is nobody to delegate to.
        (
            "circle",
            json!({ "route": null, "delegate": { "name": "round" } }),
            Some(("IST", "delegate")),
            false,
        ),
    ];
    for (name, more, ..) in &table {
        cluster.apply(service(name, 80)).await;
        let mut object = virtual_service(name, name);
        let rule = object["spec"]["http"][0].as_object_mut().unwrap();
        rule.extend(more.as_object().unwrap().clone());
        rule.retain(|_, value| !value.is_null());
        cluster.apply(object).await;
    }
    let mut round = virtual_service("round", "good");
    round["spec"] =
        json!({ "http": [{ "delegate": { "name": "circle" } }, { "delegate": { "name": "round" } }] });
    cluster.apply(round).await;

    let control_plane = cluster.control_plane().await;
    for (name, _, told, _) in &table {
        let Some((code, words)) = told else { continue };
        cluster
            .until(&format!("what is said of {name}"), virtual_service(name, name), |now| {
                let messages = now["status"]["validationMessages"].as_array()?;
                let told = |one: &&Value| {
                    let is = one["type"]["code"].as_str().is_some_and(|is| is.starts_with(code));
                    (is || *code == "IST") && one["message"].as_str().is_some_and(|said| said.contains(words))
                };
                messages.iter().find(told).map(drop)
            })
            .await;
    }
    let token = cluster.token("web", AUDIENCE).await;
    let mut proxy = Proxy::connect(&control_plane, Introduction::web(&token), ROUTE).await.unwrap();
    proxy.subscribe(ROUTE, &["80"]).await;
    let response = proxy.until(|response| carries(response, "80")).await;
    let body = &response.resources[0].resource.as_ref().unwrap().value;
    let body = String::from_utf8_lossy(body);
    for (name, .., sent) in &table {
        assert_eq!(body.contains(&format!("virtual-service/{name}")), *sent, "{name}");
        assert!(body.contains(&format!("{name}.default.svc.cluster.local")), "{name}: the service is there");
    }
    assert!(
        body.contains("outbound|80|none|subset.default.svc.cluster.local"),
        "the subset's cluster is named"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ingresses_tell_where_they_are_reached() {
    let cluster = Cluster::start().await;
    let control_plane = cluster.control_plane().await;
    let services: Api<Service> = Api::namespaced(cluster.client.clone(), "istio-system");
    let gateway_is_at = async |addresses: Value| {
        let patch = json!({ "status": { "loadBalancer": { "ingress": addresses } } });
        let params = PatchParams::default();
        services.patch_status("istio-ingressgateway", &params, &Patch::Merge(patch)).await.unwrap();
    };
    let ingress = |name: &str, class: &str| {
        let backend = json!({ "service": { "name": "web", "port": { "number": 80 } } });
        json!({ "apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
            "metadata": { "name": name, "namespace": "default", "annotations": { "kubernetes.io/ingress.class": class } },
            "spec": { "defaultBackend": backend } })
    };
    gateway_is_at(json!([{ "ip": "10.97.0.1" }])).await;
    cluster.apply(ingress("theirs", "nginx")).await;
    cluster.apply(ingress("ours", "istio")).await;
    let told = async |name: &str, expected: Value| {
        let found = |now: &Value| {
            let addresses = &now["status"]["loadBalancer"]["ingress"];
            (*addresses == expected).then_some(())
        };
        cluster.until(&format!("{name} at {expected}"), ingress(name, ""), found).await;
    };
    told("ours", json!([{ "ip": "10.97.0.1" }])).await;
    // It follows the gateway's service, and is told to those that come later.
    gateway_is_at(json!([{ "ip": "10.97.0.2" }, { "hostname": "lb.example" }])).await;
    told("ours", json!([{ "ip": "10.97.0.2" }, { "hostname": "lb.example" }])).await;
    cluster.apply(ingress("later", "istio")).await;
    told("later", json!([{ "ip": "10.97.0.2" }, { "hostname": "lb.example" }])).await;
    gateway_is_at(json!([{ "hostname": "other.example" }])).await;
    told("later", json!([{ "hostname": "other.example" }])).await;
    // Whatever became of the others, this one was never ours to write.
    told("theirs", Value::Null).await;
    control_plane.shutdown().await;
}
