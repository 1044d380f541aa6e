//! API server and controllers together, with a fake kubelet.

mod support;

use std::time::{Duration, Instant};

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Namespace, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use lateen_local::{Cluster, ClusterConfig};
use serde_json::json;
use support::{World, deployment, service};
use tokio::process::Command;

fn is_rolled_out(deployment: &Deployment) -> bool {
    let status = deployment.status.clone().unwrap_or_default();
    let wanted = deployment.spec.replicas;
    status.observed_generation == deployment.metadata.generation
        && status.updated_replicas == wanted
        && status.replicas == wanted
        && status.available_replicas == wanted
}

fn ready_addresses(slices: &[EndpointSlice]) -> Vec<String> {
    let endpoints = slices.iter().flat_map(|slice| slice.endpoints.iter().flatten());
    let ready = endpoints.filter(|endpoint| endpoint.conditions.as_ref().and_then(|c| c.ready) == Some(true));
    ready.flat_map(|endpoint| endpoint.addresses.clone()).collect()
}

#[tokio::test]
async fn a_deployment_with_its_service() {
    let world = World::start().await;
    let begun = Instant::now();
    world.create::<Service>(service("web", "LoadBalancer")).await;
    world.create::<Deployment>(deployment("web", 3, "v1")).await;
    world.until::<Deployment>("web", "rolls out", is_rolled_out).await;
    let slices = world
        .until_all::<EndpointSlice>("three ready endpoints", |all| ready_addresses(all).len() == 3)
        .await;
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(5), "everything took {took:?}");

    let slice = slices
        .iter()
        .find(|slice| slice.labels().get("kubernetes.io/service-name").is_some_and(|name| name == "web"))
        .unwrap();
    assert_eq!(slice.ports.as_ref().unwrap()[0].port, Some(8080));
    let endpoints = world.api::<Endpoints>().get("web").await.unwrap();
    assert_eq!(endpoints.subsets.unwrap()[0].addresses.as_ref().unwrap().len(), 3);
    let pods = world.api::<Pod>().list(&ListParams::default().labels("app=web")).await.unwrap().items;
    assert_eq!(pods.len(), 3, "no pod too many was made");
    let set = &world.api::<ReplicaSet>().list(&ListParams::default()).await.unwrap().items[0];
    assert!(pods.iter().all(|pod| pod.name_any().starts_with(&format!("{}-", set.name_any()))));
    let balanced = world
        .until::<Service>("web", "gets an address", |service| {
            service
                .status
                .as_ref()
                .and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref())
                .is_some()
        })
        .await;
    let ingress = balanced.status.unwrap().load_balancer.unwrap().ingress.unwrap();
    assert_eq!(ingress[0].ip.as_deref(), Some("10.97.0.1"));

    world.api::<Deployment>().delete("web", &DeleteParams::background()).await.unwrap();
    world.until_all::<Pod>("pods go with their Deployment", <[Pod]>::is_empty).await;
    world.until_all::<EndpointSlice>("nothing is ready", |all| ready_addresses(all).is_empty()).await;
    world.stop().await;
}

#[tokio::test]
async fn a_rolling_update_keeps_the_service_ready() {
    let world = World::start().await;
    world.create::<Service>(service("web", "ClusterIP")).await;
    world.create::<Deployment>(deployment("web", 2, "v1")).await;
    world.until::<Deployment>("web", "rolls out", is_rolled_out).await;
    world.until_all::<EndpointSlice>("two ready", |all| ready_addresses(all).len() == 2).await;

    let patch = json!({"spec": {"template": {"spec": {"containers": [{"name": "app", "image": "v2"}]}}}});
    world.merge::<Deployment>("web", patch).await;
    let never_empty = world.until_all::<EndpointSlice>("only new pods", |all| {
        let ready = ready_addresses(all);
        assert!(all.is_empty() || !ready.is_empty(), "the Service was without a ready endpoint");
        ready.len() == 2
            && ready.iter().all(|address| !matches!(address.as_str(), "10.244.1.1" | "10.244.1.2"))
    });
    never_empty.await;
    world.until::<Deployment>("web", "rolls out", is_rolled_out).await;
    let sets = world.api::<ReplicaSet>().list(&ListParams::default()).await.unwrap().items;
    let mut sizes: Vec<_> = sets.iter().map(|set| set.spec.replicas).collect();
    sizes.sort();
    assert_eq!(sizes, [Some(0), Some(2)]);
    world.stop().await;
}

#[tokio::test]
async fn other_workloads_run() {
    let world = World::start().await;
    let template =
        json!({"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let selector = json!({"matchLabels": {"app": "x"}});
    world
        .create::<StatefulSet>(json!({"metadata": {"name": "db"}, "spec": {
            "replicas": 3, "serviceName": "db", "selector": selector, "template": template,
        }}))
        .await;
    world
        .create::<DaemonSet>(
            json!({"metadata": {"name": "agent"}, "spec": {"selector": selector, "template": template}}),
        )
        .await;
    world
        .create::<Job>(json!({"metadata": {"name": "once"}, "spec": {"completions": 2, "template": {
            "metadata": {"labels": {"job": "once"}},
            "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]},
        }}}))
        .await;
    let ready =
        |set: &StatefulSet| set.status.as_ref().is_some_and(|status| status.ready_replicas == Some(3));
    world.until::<StatefulSet>("db", "three pods, one after the other", ready).await;
    assert!(world.api::<Pod>().get_opt("db-2").await.unwrap().is_some());
    let there =
        |set: &DaemonSet| set.status.as_ref().is_some_and(|status| status.number_available == Some(1));
    world.until::<DaemonSet>("agent", "one pod on the node", there).await;
    let complete = |job: &Job| {
        let status = job.status.clone().unwrap_or_default();
        status.succeeded == Some(2)
            && status.conditions.iter().flatten().any(|condition| condition.type_ == "Complete")
    };
    world.until::<Job>("once", "both completions", complete).await;
    world.stop().await;
}

#[tokio::test]
async fn namespaces_are_furnished_and_emptied() {
    let world = World::start().await;
    let namespaces = Api::<Namespace>::all(world.client.clone());
    let shop: Namespace = serde_json::from_value(json!({"metadata": {"name": "shop"}})).unwrap();
    namespaces.create(&Default::default(), &shop).await.unwrap();
    let accounts = Api::<ServiceAccount>::namespaced(world.client.clone(), "shop");
    let exists = |account: Option<&ServiceAccount>| account.is_some();
    tokio::time::timeout(
        Duration::from_secs(30),
        kube::runtime::wait::await_condition(accounts, "default", exists),
    )
    .await
    .expect("every namespace has a default account")
    .unwrap();
    let config_maps = Api::<ConfigMap>::namespaced(world.client.clone(), "shop");
    let furnished =
        kube::runtime::wait::await_condition(config_maps, "kube-root-ca.crt", |map: Option<&ConfigMap>| {
            let data = map.and_then(|map| map.data.clone()).unwrap_or_default();
            data.get("ca.crt").is_some_and(|ca| ca.contains("BEGIN CERTIFICATE"))
        });
    tokio::time::timeout(Duration::from_secs(30), furnished)
        .await
        .expect("every namespace has the CA")
        .unwrap();

    namespaces.delete("shop", &DeleteParams::default()).await.unwrap();
    let gone =
        kube::runtime::wait::await_condition(namespaces, "shop", |found: Option<&Namespace>| found.is_none());
    tokio::time::timeout(Duration::from_secs(30), gone).await.expect("the namespace goes").unwrap();
    world.stop().await;
}

#[tokio::test]
async fn kubectl_rolls_out() {
    let world = World::start().await;
    let dir = tempfile::tempdir().unwrap();
    let kubeconfig = dir.path().join("kubeconfig");
    std::fs::write(&kubeconfig, world.cluster.kubeconfig()).unwrap();
    let kubectl = async |arguments: &str| {
        let output = Command::new("kubectl")
            .args(arguments.split(' '))
            .env("KUBECONFIG", &kubeconfig)
            .env("HOME", dir.path())
            .output()
            .await
            .expect("kubectl must be on the PATH for this test");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {arguments}: {text}{error}");
        text
    };
    let manifest = dir.path().join("web.json");
    let mut object = deployment("web", 2, "app:v1");
    object["apiVersion"] = json!("apps/v1");
    object["kind"] = json!("Deployment");
    std::fs::write(&manifest, object.to_string()).unwrap();
    kubectl(&format!("apply -f {}", manifest.display())).await;
    assert!(kubectl("rollout status deployment/web --timeout=30s").await.contains("successfully rolled out"));
    kubectl("wait --for=condition=Available deployment/web --timeout=30s").await;
    kubectl("set image deployment/web app=app:v2").await;
    kubectl("rollout status deployment/web --timeout=30s").await;
    let history = kubectl("rollout history deployment/web").await;
    assert!(history.contains("\n1 ") && history.contains("\n2 "), "{history}");
    kubectl("rollout undo deployment/web").await;
    kubectl("rollout status deployment/web --timeout=30s").await;
    let image = kubectl("get deployment web -o jsonpath={.spec.template.spec.containers[0].image}").await;
    assert_eq!(image, "app:v1");
    kubectl("rollout restart deployment/web").await;
    kubectl("rollout status deployment/web --timeout=30s").await;
    kubectl("scale deployment/web --replicas=0").await;
    kubectl("wait --for=delete pod -l app=web --timeout=30s").await;
    let described = kubectl("describe deployment web").await;
    assert!(
        described.contains("ScalingReplicaSet") && described.contains("Scaled down replica set web-"),
        "{described}"
    );
    world.stop().await;
}

/// After a restart a lone pod is the same object and begins again, even where the webhook that was asked about it is down.
#[tokio::test]
async fn a_lone_pod_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let config =
        || ClusterConfig { durable: true, state_dir: dir.path().to_owned(), ..ClusterConfig::in_memory() };
    let cluster = Cluster::start(config()).await.unwrap();
    let pods = Api::<Pod>::default_namespaced(cluster.client());
    let pod = json!({"metadata": {"name": "curl"}, "spec": {"serviceAccountName": "own", "containers": [{"name": "c", "image": "x"}]}});
    let accounts = Api::<ServiceAccount>::default_namespaced(cluster.client());
    accounts
        .create(
            &PostParams::default(),
            &serde_json::from_value(json!({"metadata": {"name": "own"}})).unwrap(),
        )
        .await
        .unwrap();
    let created = pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    let running = json!({"status": {"phase": "Running", "podIP": "10.244.0.9"}});
    pods.patch_status("curl", &PatchParams::default(), &Patch::Merge(running)).await.unwrap();
    let webhook = json!({
        "metadata": {"name": "down"},
        "webhooks": [{
            "name": "down.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "clientConfig": {"url": "https://127.0.0.1:1/"},
            "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}],
        }],
    });
    Api::<MutatingWebhookConfiguration>::all(cluster.client())
        .create(&PostParams::default(), &serde_json::from_value(webhook).unwrap())
        .await
        .unwrap();
    cluster.shutdown().await;
    let cluster = Cluster::start(config()).await.unwrap();
    let pod = Api::<Pod>::default_namespaced(cluster.client()).get("curl").await.unwrap();
    assert_eq!(pod.metadata.uid, created.metadata.uid);
    let status = pod.status.unwrap();
    assert_eq!((status.phase.as_deref(), status.pod_ip), (Some("Pending"), None));
    cluster.shutdown().await;
}
