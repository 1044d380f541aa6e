//! Machines that register themselves: entries made, taken over, judged and cleaned up.
use std::time::Duration;

use lateen_control::{Config, ControlPlane, MachineOptions};
use lateen_pki::{CertificateAuthority, Federation};
use lateen_xds::trust_service::{self, TrustRequest};
use lateen_xds::type_urls::{CLUSTER, ENDPOINT, LISTENER};
use serde_json::{Value, json};
use tonic::{Code, Request};

use crate::support::{Cluster, Introduction, Proxy, carries, channel, debug, soon};

const AUDIENCE: &str = "istio-ca";
const ENTRY: &str = "shop-10.9.9.9";
const SHOP: &str = "outbound|80||shop.default.svc.cluster.local";

fn group() -> Value {
    json!({ "apiVersion": "networking.istio.io/v1", "kind": "WorkloadGroup",
        "metadata": { "name": "shop", "namespace": "default" },
        "spec": { "metadata": { "labels": { "app": "shop" }, "annotations": { "note": "n" } },
            "template": { "serviceAccount": "web", "ports": { "http": 9090 } } } })
}

fn service() -> Value {
    json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "shop", "namespace": "default" },
        "spec": { "selector": { "app": "shop" }, "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }] } })
}

fn entry(name: &str) -> Value {
    json!({ "apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry",
        "metadata": { "name": name, "namespace": "default" } })
}

fn machine(token: &str) -> Introduction<'_> {
    Introduction {
        address: "10.9.9.9",
        metadata: json!({ "AUTO_REGISTER_GROUP": "shop" }),
        ..Introduction::web(token)
    }
}

fn probed(token: &str) -> Introduction<'_> {
    let metadata = json!({ "AUTO_REGISTER_GROUP": "shop",
        "PROXY_CONFIG": { "readinessProbe": { "httpGet": { "path": "/" } } } });
    Introduction { metadata, ..machine(token) }
}

async fn quick(cluster: &Cluster) -> ControlPlane {
    let machines = MachineOptions { grace: Duration::from_millis(1500), ..MachineOptions::default() };
    cluster.control_plane_with(Config { machines, ..Config::default() }).await
}

/// Waits for an entry, or for its end.
async fn there(cluster: &Cluster, name: &str) -> Value {
    cluster.until("the entry", entry(name), |found| Some(found.clone())).await
}

async fn gone(cluster: &Cluster, name: &str) {
    let api = cluster.api_of(&entry(name)).await;
    let absent = async {
        while api.get_opt(name).await.unwrap().is_some() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    crate::support::soon("the entry goes", absent).await;
}

fn annotation(object: &Value, name: &str) -> String {
    object["metadata"]["annotations"][name].as_str().unwrap_or_default().to_owned()
}

/// A proxy that knows the service with a group's machines behind it, and waits for their endpoints.
async fn caller_of_shop(cluster: &Cluster, control_plane: &ControlPlane, token: &str) -> Proxy {
    cluster.apply(group()).await;
    cluster.apply(service()).await;
    let mut caller = Proxy::connect(control_plane, Introduction::web(token), CLUSTER).await.unwrap();
    caller.until(|response| carries(response, SHOP)).await;
    caller.subscribe(ENDPOINT, &[SHOP]).await;
    caller
}

fn condition(object: &Value) -> Option<(String, String)> {
    let found = object["status"]["conditions"].as_array()?.iter().find(|one| one["type"] == "Healthy")?;
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    Some((text("status"), text("message")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_is_there_while_it_is_connected() {
    let cluster = Cluster::start().await;
    let control_plane = quick(&cluster).await;
    let token = cluster.token("web", AUDIENCE).await;
    let mut caller = caller_of_shop(&cluster, &control_plane, &token).await;

    let mut first = Proxy::connect(&control_plane, machine(&token), LISTENER).await.unwrap();
    let made = there(&cluster, ENTRY).await;
    assert_eq!(made["spec"]["address"], "10.9.9.9");
    assert_eq!(made["spec"]["labels"], json!({ "app": "shop" }));
    assert_eq!(
        (annotation(&made, "istio.io/autoRegistrationGroup").as_str(), annotation(&made, "note").as_str()),
        ("shop", "n")
    );
    assert_eq!(annotation(&made, "istio.io/workloadController"), "istiod");
    assert_eq!(made["metadata"]["ownerReferences"][0]["kind"], "WorkloadGroup");
    let connected = annotation(&made, "istio.io/connectedAt");
    assert!(!connected.is_empty());
    // Its own configuration is of what its group says: it said nothing of labels.
    first
        .until(|response| {
            let mut inbound = response.resources.iter().filter(|one| one.name == "virtualInbound");
            inbound.any(|one| {
                String::from_utf8_lossy(&one.resource.as_ref().unwrap().value).contains("inbound|9090||")
            })
        })
        .await;
    // And callers find it at the group's port.
    caller
        .until(|response| {
            let mut found = response.resources.iter().filter(|one| one.name == SHOP);
            found.any(|one| {
                String::from_utf8_lossy(&one.resource.as_ref().unwrap().value).contains("10.9.9.9")
            })
        })
        .await;

    // Another stream of the same machine: the first may end, and the entry stays.
    let second = Proxy::connect(&control_plane, machine(&token), CLUSTER).await.unwrap();
    let again = there(&cluster, ENTRY).await;
    assert_eq!(again["metadata"]["uid"], made["metadata"]["uid"], "taken over");
    assert!(annotation(&again, "istio.io/connectedAt") > connected);
    drop(first);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(annotation(&there(&cluster, ENTRY).await, "istio.io/disconnectedAt").is_empty());

    // Away for a moment.
    drop(second);
    let left =
        |found: &Value| (!annotation(found, "istio.io/disconnectedAt").is_empty()).then(|| found.clone());
    let away = cluster.until("disconnected", entry(ENTRY), left).await;
    assert!(annotation(&away, "istio.io/connectedAt").is_empty());
    let third = Proxy::connect(&control_plane, machine(&token), CLUSTER).await.unwrap();
    let back = there(&cluster, ENTRY).await;
    assert_eq!(back["metadata"]["uid"], made["metadata"]["uid"]);
    assert!(annotation(&back, "istio.io/disconnectedAt").is_empty());
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(
        there(&cluster, ENTRY).await["metadata"]["uid"],
        made["metadata"]["uid"],
        "the grace period was another's"
    );

    // Away for good.
    drop(third);
    gone(&cluster, ENTRY).await;
    let (_, metrics) = debug(&control_plane, "/metrics").await;
    for line in
        ["success_total 1", "updates_total 2", "unregister_total 2", "deletes_total 1", "errors_total 0"]
    {
        assert!(metrics.contains(&format!("auto_registration_{line}")), "{line}: {metrics}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_who_a_group_is_for_registers() {
    let cluster = Cluster::start().await;
    let control_plane = quick(&cluster).await;
    let (token, other) = (cluster.token("web", AUDIENCE).await, cluster.token("other", AUDIENCE).await);
    let refused = async |introduction: Introduction<'_>| {
        let status = Proxy::connect(&control_plane, introduction, CLUSTER).await.err().expect("refused");
        (status.code(), status.message().to_owned())
    };
    let (code, message) = refused(machine(&token)).await;
    assert_eq!(code, Code::FailedPrecondition, "{message}");
    assert!(message.contains("cannot find WorkloadGroup default/shop"), "{message}");
    cluster.apply(group()).await;
    let as_other = || Introduction { account: "other", ..machine(&other) };
    let (code, message) = refused(as_other()).await;
    assert_eq!(code, Code::PermissionDenied, "{message}");
    assert!(message.contains("service account mismatch: \"other\" vs \"web\""), "{message}");
    assert!(cluster.api_of(&entry(ENTRY)).await.get_opt(ENTRY).await.unwrap().is_none());

    // Nor does it take another's entry, nor end it.
    let machine = Proxy::connect(&control_plane, machine(&token), CLUSTER).await.unwrap();
    let made = there(&cluster, ENTRY).await;
    assert_eq!(refused(as_other()).await.0, Code::PermissionDenied);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(there(&cluster, ENTRY).await["metadata"]["annotations"], made["metadata"]["annotations"]);
    // Labels that are none are told, and not tried for ever.
    let metadata = json!({ "AUTO_REGISTER_GROUP": "shop", "LABELS": { "a b": "c d" } });
    let (code, message) =
        refused(Introduction { metadata, address: "10.9.9.8", ..Introduction::web(&token) }).await;
    assert_eq!(code, Code::FailedPrecondition, "{message}");
    // A group without a template is refused when it is applied.
    let mut bare = group();
    bare["spec"] = json!({ "metadata": {} });
    bare["metadata"]["name"] = json!("bare");
    let error = cluster.try_apply(bare).await.unwrap_err().to_string();
    assert!(error.contains("template"), "{error}");
    drop(machine);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unhealthy_machine_gets_no_traffic() {
    let cluster = Cluster::start().await;
    let control_plane = quick(&cluster).await;
    let token = cluster.token("web", AUDIENCE).await;
    let mut caller = caller_of_shop(&cluster, &control_plane, &token).await;
    let machine = Proxy::connect(&control_plane, probed(&token), CLUSTER).await.unwrap();
    let made = there(&cluster, ENTRY).await;
    assert_eq!(annotation(&made, "proxy.istio.io/health-checks-enabled"), "true");
    let mut endpoints = async |present: bool| {
        caller
            .until(|response| {
                let mut found = response.resources.iter().filter(|one| one.name == SHOP);
                found.any(|one| {
                    let bytes = &one.resource.as_ref().unwrap().value;
                    String::from_utf8_lossy(bytes).contains("10.9.9.9") == present
                })
            })
            .await
    };
    endpoints(false).await;
    let said = async |status: &str, message: &str| {
        let wanted = (status.to_owned(), message.to_owned());
        cluster
            .until("the condition", entry(ENTRY), |found| (condition(found)? == wanted).then_some(()))
            .await;
    };
    machine.report(None).await;
    said("True", "").await;
    endpoints(true).await;
    machine.report(Some("connection refused")).await;
    said("False", "connection refused").await;
    endpoints(false).await;
    // Of what comes quickly the last counts.
    for problem in [None, Some("a"), Some("b"), None] {
        machine.report(problem).await;
    }
    said("True", "").await;
    endpoints(true).await;
    let status = there(&cluster, ENTRY).await;
    let kinds: Vec<_> =
        status["status"]["conditions"].as_array().unwrap().iter().map(|one| one["type"].clone()).collect();
    assert_eq!(kinds, ["Healthy", "Reconciled"], "both writers' conditions are there");
    drop(machine);
    gone(&cluster, ENTRY).await;
    endpoints(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn entries_made_by_hand_are_judged_and_kept() {
    let cluster = Cluster::start().await;
    let control_plane = quick(&cluster).await;
    let token = cluster.token("web", AUDIENCE).await;
    let by_hand = |token| Introduction {
        address: "10.9.9.7",
        metadata: json!({ "WORKLOAD_ENTRY": "by-hand" }),
        ..Introduction::web(token)
    };
    let status = Proxy::connect(&control_plane, by_hand(&token), CLUSTER).await.err().expect("refused");
    assert!(status.message().contains("default/by-hand is not found"), "{}", status.message());
    let mut object = entry("by-hand");
    object["metadata"]["annotations"] = json!({ "proxy.istio.io/health-checks-enabled": "true" });
    object["spec"] = json!({ "address": "10.9.9.7", "serviceAccount": "web" });
    cluster.apply(object).await;
    let machine = Proxy::connect(&control_plane, by_hand(&token), CLUSTER).await.unwrap();
    machine.report(Some("ill")).await;
    let ill = |found: &Value| (condition(found)?.0 == "False").then_some(());
    cluster.until("judged", entry("by-hand"), ill).await;
    drop(machine);
    let unknown = |found: &Value| condition(found).is_none().then_some(());
    cluster.until("nothing is known of it any more", entry("by-hand"), unknown).await;
    there(&cluster, "by-hand").await;
}

/// `PILOT_ENABLE_WORKLOAD_ENTRY_AUTOREGISTRATION` and `PILOT_ENABLE_WORKLOAD_ENTRY_HEALTHCHECKS`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_switched_off_is_not_done() {
    let cluster = Cluster::start().await;
    let machines = MachineOptions { register: false, health_checks: false, ..MachineOptions::default() };
    let control_plane = cluster.control_plane_with(Config { machines, ..Config::default() }).await;
    let token = cluster.token("web", AUDIENCE).await;
    cluster.apply(group()).await;
    let by_hand = Introduction { metadata: json!({ "WORKLOAD_ENTRY": "by-hand" }), ..machine(&token) };
    for introduction in [machine(&token), by_hand] {
        let mut proxy = Proxy::connect(&control_plane, introduction, LISTENER).await.unwrap();
        proxy.until(|response| carries(response, "virtualInbound")).await;
        proxy.report(Some("ill")).await;
    }
    for name in [ENTRY, "by-hand"] {
        assert!(cluster.api_of(&entry(name)).await.get_opt(name).await.unwrap().is_none(), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_control_plane_cleans_up_after_the_old_one() {
    let cluster = Cluster::start().await;
    let control_plane = quick(&cluster).await;
    let token = cluster.token("web", AUDIENCE).await;
    cluster.apply(group()).await;
    let stays = Introduction { address: "10.9.9.8", ..machine(&token) };
    let stays = Proxy::connect(&control_plane, stays, CLUSTER).await.unwrap();
    let goes = Proxy::connect(&control_plane, machine(&token), CLUSTER).await.unwrap();
    there(&cluster, ENTRY).await;
    // An entry whose end was written down, and one of a control plane that is no pod any more.
    for (name, annotations) in [
        ("left", json!({ "istio.io/disconnectedAt": "2026-01-01T00:00:00Z" })),
        (
            "lost",
            json!({ "istio.io/connectedAt": "2026-01-01T00:00:00Z", "istio.io/workloadController": "istiod-0" }),
        ),
    ] {
        let mut object = entry(name);
        object["metadata"]["annotations"] = annotations;
        object["metadata"]["annotations"]["istio.io/autoRegistrationGroup"] = json!("shop");
        object["spec"] = json!({ "address": "10.9.9.1" });
        cluster.apply(object).await;
    }
    let mut by_hand = entry("by-hand");
    by_hand["spec"] = json!({ "address": "10.9.9.2" });
    cluster.apply(by_hand).await;
    // It dies without a word: nothing is written about its machines.
    control_plane.shutdown().await;
    drop((stays, goes));
    let control_plane = quick(&cluster).await;
    cluster.webhooks_move_to(control_plane.addresses().webhooks);
    let stays = Introduction { address: "10.9.9.8", ..machine(&token) };
    let stays = Proxy::connect(&control_plane, stays, CLUSTER).await.unwrap();
    for name in [ENTRY, "left", "lost"] {
        gone(&cluster, name).await;
    }
    there(&cluster, "shop-10.9.9.8").await;
    there(&cluster, "by-hand").await;
    drop(stays);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_are_told_what_the_mesh_trusts() {
    let cluster = Cluster::start().await;
    let control_plane = quick(&cluster).await;
    let token = cluster.token("web", AUDIENCE).await;
    let ask = async |token: Option<&str>| {
        let mut request = Request::new(TrustRequest {});
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        trust_service::follow(channel(&control_plane).await, request).await
    };
    for token in [None, Some("nobody's")] {
        assert_eq!(ask(token).await.unwrap_err().code(), Code::Unauthenticated);
    }
    let mut told = ask(Some(&token)).await.unwrap();
    let mut next = async || soon("what is trusted", told.message()).await.unwrap().unwrap();
    let first = next().await;
    assert_eq!((first.roots, first.domains), (control_plane.root_certificate(), String::new()));
    let other = CertificateAuthority::generate("other").unwrap();
    let mesh = |anchors: Value| {
        let mesh = json!({ "caCertificates": anchors }).to_string();
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "istio", "namespace": "istio-system" },
            "data": { "mesh": mesh } })
    };
    cluster.merge(mesh(json!([{ "pem": other.root_pem(), "trustDomains": ["other.example"] }]))).await;
    let all = Federation::from_json(&next().await.domains).unwrap();
    assert!(all.0["cluster.local"].own);
    assert_eq!(all.0["other.example"].roots.trim(), other.root_pem().trim());
    cluster.merge(mesh(json!([]))).await;
    assert_eq!(next().await.domains, "");
    control_plane.shutdown().await;
    assert!(soon("the end", told.message()).await.ok().flatten().is_none(), "it ends with the control plane");
}
