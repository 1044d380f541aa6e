//! What kube-rs finds: lists, watches, writes, deletions; connections and requests for certificates in files of their own.

mod certificates;
mod connections;

use std::{collections::BTreeMap, time::Duration};

use futures::{StreamExt, TryStreamExt};
use http::Request;
use k8s_openapi::api::{
    apps::v1::Deployment,
    authentication::v1::{
        TokenRequest as TokenRequestObject, TokenRequestSpec, TokenReview, TokenReviewSpec,
    },
    core::v1::{ConfigMap, Namespace, Pod, Service, ServiceAccount},
};
use kube::{
    Api, Client, Config, ResourceExt,
    api::{
        DeleteParams, ListParams, Patch, PatchParams, PostParams, PropagationPolicy, WatchEvent, WatchParams,
    },
    config::{KubeConfigOptions, Kubeconfig},
};
use lateen_apiserver::{ApiServer, ApiServerConfig, StoreConfig, TokenRequest};
use serde_json::{Value, json};

use connections::raw;

async fn client_of(server: &ApiServer) -> Client {
    let kubeconfig = Kubeconfig::from_yaml(&server.kubeconfig(&server.url()).unwrap()).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

async fn start() -> (ApiServer, Client) {
    let server = ApiServer::start(ApiServerConfig::default()).await.unwrap();
    let client = client_of(&server).await;
    (server, client)
}

fn object<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn config_map(name: &str, data: Value) -> ConfigMap {
    object(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}))
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future)
        .await
        .unwrap_or_else(|_| panic!("{what} took too long"))
}

fn code(error: kube::Error) -> (u16, String) {
    match error {
        kube::Error::Api(status) => (status.code, status.reason.clone()),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn lists_page_and_watches_resume() {
    let (server, client) = start().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    for index in 0..5 {
        maps.create(&PostParams::default(), &config_map(&format!("m{index}"), json!({}))).await.unwrap();
    }
    let first = maps.list(&ListParams::default().limit(2)).await.unwrap();
    assert_eq!((first.items.len(), first.metadata.remaining_item_count), (2, Some(3)));
    let token = first.metadata.continue_.unwrap();
    // What happens between two pages is in neither, and seen by whoever watches from there.
    maps.create(&PostParams::default(), &config_map("m00", json!({}))).await.unwrap();
    maps.delete("m3", &DeleteParams::default()).await.unwrap();
    let rest = maps.list(&ListParams::default().continue_token(&token)).await.unwrap();
    assert_eq!(rest.items.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), ["m2", "m3", "m4"]);
    let version = rest.metadata.resource_version.unwrap();
    assert_eq!(Some(&version), first.metadata.resource_version.as_ref());
    let mut events = maps.watch(&WatchParams::default(), &version).await.unwrap().boxed();
    let next = within("an event", events.try_next()).await.unwrap().unwrap();
    assert!(matches!(&next, WatchEvent::Added(map) if map.name_any() == "m00"), "{next:?}");
    let next = within("an event", events.try_next()).await.unwrap().unwrap();
    assert!(matches!(&next, WatchEvent::Deleted(map) if map.name_any() == "m3"), "{next:?}");
    let mut events = maps.watch(&WatchParams::default().labels("a=b"), &version).await.unwrap().boxed();
    let label = |value: Value| Patch::Merge(json!({"metadata": {"labels": {"a": value}}}));
    maps.patch("m1", &PatchParams::default(), &label(json!("b"))).await.unwrap();
    maps.patch("m1", &PatchParams::default(), &label(Value::Null)).await.unwrap();
    let next = within("an event", events.try_next()).await.unwrap().unwrap();
    assert!(matches!(&next, WatchEvent::Added(map) if map.name_any() == "m1"), "{next:?}");
    let next = within("an event", events.try_next()).await.unwrap().unwrap();
    assert!(matches!(&next, WatchEvent::Deleted(map) if map.name_any() == "m1"), "{next:?}");
    let initial = WatchParams::default().initial_events();
    let mut events = maps.watch(&initial, "0").await.unwrap().boxed();
    for _ in 0..5 {
        assert!(matches!(
            within("the state", events.try_next()).await.unwrap().unwrap(),
            WatchEvent::Added(_)
        ));
    }
    let end = within("the end of the state", events.try_next()).await.unwrap().unwrap();
    assert!(
        matches!(&end, WatchEvent::Bookmark(mark) if mark.metadata.annotations.contains_key("k8s.io/initial-events-end"))
    );
    server.shutdown().await;
}

#[tokio::test]
async fn a_watch_from_too_long_ago_is_told() {
    let server =
        ApiServer::start(ApiServerConfig { watch_window: 3, ..ApiServerConfig::default() }).await.unwrap();
    let maps: Api<ConfigMap> = Api::default_namespaced(client_of(&server).await);
    let first = maps.create(&PostParams::default(), &config_map("m", json!({}))).await.unwrap();
    for index in 0..5 {
        let patch = Patch::Merge(json!({"data": {"i": index.to_string()}}));
        maps.patch("m", &PatchParams::default(), &patch).await.unwrap();
    }
    let version = first.resource_version().unwrap();
    let mut events = maps.watch(&WatchParams::default(), &version).await.unwrap().boxed();
    let event = within("the error", events.try_next()).await.unwrap().unwrap();
    assert!(
        matches!(&event, WatchEvent::Error(status) if status.code == 410 && status.reason == "Expired"),
        "{event:?}"
    );
}

#[tokio::test]
async fn optimistic_concurrency_and_no_op_updates() {
    let (_server, client) = start().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    let one = maps.create(&PostParams::default(), &config_map("m", json!({"a": "1"}))).await.unwrap();
    let same = maps.replace("m", &PostParams::default(), &one).await.unwrap();
    assert_eq!(
        same.resource_version(),
        one.resource_version(),
        "an update that changes nothing writes nothing"
    );
    let mut changed = one.clone();
    changed.data =
        Some(BTreeMap::from([("a".to_owned(), "2".to_owned())])).map(|data| data.into_iter().collect());
    maps.replace("m", &PostParams::default(), &changed).await.unwrap();
    let error = maps.replace("m", &PostParams::default(), &changed).await.unwrap_err();
    assert_eq!(code(error), (409, "Conflict".to_owned()));
    let again = maps.create(&PostParams::default(), &config_map("m", json!({}))).await.unwrap_err();
    assert_eq!(code(again), (409, "AlreadyExists".to_owned()));
    let generated: ConfigMap = object(json!({"metadata": {"generateName": "gen-"}}));
    let generated = maps.create(&PostParams::default(), &generated).await.unwrap();
    assert!(generated.name_any().starts_with("gen-") && generated.name_any().len() == 9);
}

#[tokio::test]
async fn server_side_apply_by_kube_rs() {
    let (_server, client) = start().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    let apply = |data| Patch::Apply(config_map("m", data));
    let one = PatchParams::apply("one");
    maps.patch("m", &one, &apply(json!({"a": "1", "b": "1"}))).await.unwrap();
    let error = maps.patch("m", &PatchParams::apply("two"), &apply(json!({"a": "2"}))).await.unwrap_err();
    assert_eq!(code(error).0, 409);
    maps.patch("m", &PatchParams::apply("two").force(), &apply(json!({"a": "2"}))).await.unwrap();
    let left = maps.patch("m", &one, &apply(json!({"b": "1"}))).await.unwrap();
    assert_eq!(json!(left.data), json!({"a": "2", "b": "1"}), "a belongs to two now");
}

fn pod(name: &str) -> Pod {
    object(
        json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": {"containers": [{"name": "main", "image": "x"}]}}),
    )
}

#[tokio::test]
async fn pods_die_in_two_steps_and_take_their_tokens_along() {
    let (server, client) = start().await;
    let accounts: Api<ServiceAccount> = Api::default_namespaced(client.clone());
    accounts.create(&PostParams::default(), &object(json!({"metadata": {"name": "web"}}))).await.unwrap();
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let mut web = pod("web-1");
    web.spec.as_mut().unwrap().service_account_name = Some("web".to_owned());
    let created = pods.create(&PostParams::default(), &web).await.unwrap();
    let mounts = created.spec.unwrap().containers[0].volume_mounts.clone().unwrap_or_default();
    assert_eq!(json!(mounts)[0]["mountPath"], "/var/run/secrets/kubernetes.io/serviceaccount");
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "web-1"}, "target": {"kind": "Node", "name": "n"}});
    let request = Request::post("/api/v1/namespaces/default/pods/web-1/binding")
        .body(binding.to_string().into_bytes())
        .unwrap();
    client.request::<Value>(request).await.unwrap();

    let request = TokenRequest {
        namespace: "default".into(),
        service_account: "web".into(),
        audiences: vec!["istio-ca".into()],
        expiration: Duration::from_secs(3600),
        pod: Some("web-1".into()),
    };
    let token = server.mint_token(&request).unwrap();
    let reviews: Api<TokenReview> = Api::all(client.clone());
    let review = || {
        let spec = TokenReviewSpec { token: token.clone(), audiences: Some(vec!["istio-ca".into()]) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let reviews = reviews.clone();
        async move { reviews.create(&PostParams::default(), &review).await.unwrap().status.unwrap() }
    };
    let status = review().await;
    assert_eq!(status.authenticated, Some(true), "{:?}", status.error);
    assert_eq!(status.user.unwrap().username.as_deref(), Some("system:serviceaccount:default:web"));

    pods.delete("web-1", &DeleteParams::default()).await.unwrap();
    let dying = pods.get("web-1").await.unwrap();
    assert_eq!(dying.metadata.deletion_grace_period_seconds, Some(30));
    assert_eq!(review().await.authenticated, Some(true), "the pod still runs");
    pods.delete("web-1", &DeleteParams::default().grace_period(0)).await.unwrap();
    assert_eq!(code(pods.get("web-1").await.unwrap_err()).0, 404);
    assert_ne!(review().await.authenticated, Some(true));
    let request =
        TokenRequestObject { spec: Some(TokenRequestSpec::default()), ..TokenRequestObject::default() };
    let own = accounts.create_token_request("web", &PostParams::default(), &request).await.unwrap();
    let own = own.status.unwrap().token.unwrap();
    // It proves who asks; what they may, roles say.
    for (path, status) in [("/apis", "200"), ("/api/v1/namespaces", "403")] {
        let answer = raw(&server, &format!("GET {path} HTTP/1.1\r\nauthorization: Bearer {own}\r\n")).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
    }
}

#[tokio::test]
async fn owners_finalizers_and_namespaces() {
    let (_server, client) = start().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let owned = |name: &str, owner: &ConfigMap| {
        let mut map = config_map(name, json!({}));
        map.metadata.owner_references = Some(vec![object(json!({"apiVersion": "v1", "kind": "ConfigMap",
            "name": owner.name_any(), "uid": owner.uid().unwrap(), "blockOwnerDeletion": true}))]);
        map
    };
    for (policy, survives) in [("Background", false), ("Foreground", false), ("Orphan", true)] {
        let owner = maps.create(&PostParams::default(), &config_map("owner", json!({}))).await.unwrap();
        maps.create(&PostParams::default(), &owned("child", &owner)).await.unwrap();
        let propagation = match policy {
            "Background" => PropagationPolicy::Background,
            "Foreground" => PropagationPolicy::Foreground,
            _ => PropagationPolicy::Orphan,
        };
        let options = DeleteParams { propagation_policy: Some(propagation), ..DeleteParams::default() };
        maps.delete("owner", &options).await.unwrap();
        let gone = |name: &'static str| {
            let maps = maps.clone();
            async move {
                let condition = |map: Option<&ConfigMap>| map.is_none();
                within(name, kube::runtime::wait::await_condition(maps, name, condition)).await.unwrap();
            }
        };
        gone("owner").await;
        if survives {
            let child = maps.get("child").await.unwrap();
            assert!(child.owner_references().is_empty());
            maps.delete("child", &DeleteParams::default()).await.unwrap();
        }
        gone("child").await;
    }
    let namespaces: Api<Namespace> = Api::all(client.clone());
    namespaces.create(&PostParams::default(), &object(json!({"metadata": {"name": "n"}}))).await.unwrap();
    let inside: Api<ConfigMap> = Api::namespaced(client, "n");
    let mut kept = config_map("kept", json!({}));
    kept.metadata.finalizers = Some(vec!["example.com/hold".to_owned()]);
    inside.create(&PostParams::default(), &kept).await.unwrap();
    namespaces.delete("n", &DeleteParams::default()).await.unwrap();
    let refused = inside.create(&PostParams::default(), &config_map("late", json!({}))).await.unwrap_err();
    assert_eq!(code(refused).0, 403);
    assert_eq!(namespaces.get("n").await.unwrap().status.unwrap().phase.as_deref(), Some("Terminating"));
    let release = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    inside.patch("kept", &PatchParams::default(), &release).await.unwrap();
    let condition = |namespace: Option<&Namespace>| namespace.is_none();
    within("the namespace", kube::runtime::wait::await_condition(namespaces, "n", condition)).await.unwrap();
}

#[tokio::test]
async fn status_scale_and_generation() {
    let (_server, client) = start().await;
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    let deployment: Deployment = object(
        json!({"metadata": {"name": "d"}, "status": {"replicas": 9}, "spec": {"selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "m", "image": "x"}]}}}}),
    );
    let created = deployments.create(&PostParams::default(), &deployment).await.unwrap();
    assert_eq!(created.metadata.generation, Some(1));
    assert!(created.status.unwrap_or_default().replicas.is_none(), "status is not taken on create");
    let status = Patch::Merge(json!({"status": {"replicas": 1}, "spec": {"replicas": 7}}));
    let patched = deployments.patch_status("d", &PatchParams::default(), &status).await.unwrap();
    assert_eq!((patched.metadata.generation, patched.spec.replicas), (Some(1), Some(1)));
    let scaled = deployments
        .patch_scale("d", &PatchParams::default(), &Patch::Merge(json!({"spec": {"replicas": 3}})))
        .await
        .unwrap();
    assert_eq!(scaled.spec.unwrap().replicas, Some(3));
    assert_eq!(scaled.status.unwrap().selector.as_deref(), Some("a=b"));
    assert_eq!(deployments.get("d").await.unwrap().metadata.generation, Some(2));
    let services: Api<Service> = Api::default_namespaced(client);
    let kubernetes = services.get("kubernetes").await.unwrap();
    assert_eq!(kubernetes.spec.unwrap().cluster_ip.as_deref(), Some("10.96.0.1"));
}

#[tokio::test]
async fn a_durable_store_goes_on_where_it_stopped() {
    let directory = tempfile::tempdir().unwrap();
    let config = || ApiServerConfig {
        store: StoreConfig::Durable(directory.path().into()),
        ..ApiServerConfig::default()
    };
    let server = ApiServer::start(config()).await.unwrap();
    let (ca, token) = (server.ca_pem().to_owned(), server.admin_token().to_owned());
    let maps: Api<ConfigMap> = Api::default_namespaced(client_of(&server).await);
    let before = maps.create(&PostParams::default(), &config_map("m", json!({"a": "1"}))).await.unwrap();
    server.shutdown().await;
    let server = ApiServer::start(config()).await.unwrap();
    assert_eq!((server.ca_pem(), server.admin_token()), (ca.as_str(), token.as_str()));
    let maps: Api<ConfigMap> = Api::default_namespaced(client_of(&server).await);
    assert_eq!(maps.get("m").await.unwrap(), before);
    let after = maps.create(&PostParams::default(), &config_map("n", json!({}))).await.unwrap();
    let number = |map: &ConfigMap| map.resource_version().unwrap().parse::<u64>().unwrap();
    assert!(number(&after) > number(&before));
}

/// A crash between an owner's deletion and its dependents' leaves nothing for ever.
#[tokio::test]
async fn garbage_of_a_former_process_is_collected() {
    let directory = tempfile::tempdir().unwrap();
    let config = || ApiServerConfig {
        store: StoreConfig::Durable(directory.path().into()),
        ..ApiServerConfig::default()
    };
    let server = ApiServer::start(config()).await.unwrap();
    let maps: Api<ConfigMap> = Api::default_namespaced(client_of(&server).await);
    let owner = maps.create(&PostParams::default(), &config_map("owner", json!({}))).await.unwrap();
    let mut child = config_map("child", json!({}));
    child.metadata.owner_references = Some(vec![object(json!({"apiVersion": "v1", "kind": "ConfigMap",
        "name": "owner", "uid": owner.uid().unwrap()}))]);
    maps.create(&PostParams::default(), &child).await.unwrap();
    server.shutdown().await;
    // The state such a crash leaves: the owner's last record never was, its dependent's is there.
    let journal = directory.path().join("journal");
    let lines = std::fs::read_to_string(&journal).unwrap();
    let kept: String =
        lines.split_inclusive('\n').filter(|line| !line.contains("\"name\":\"owner\",\"version\"")).collect();
    assert_ne!(kept, lines);
    std::fs::write(&journal, kept).unwrap();
    let server = ApiServer::start(config()).await.unwrap();
    let maps: Api<ConfigMap> = Api::default_namespaced(client_of(&server).await);
    let gone = kube::runtime::wait::await_condition(maps, "child", |map: Option<&ConfigMap>| map.is_none());
    within("the dependent's end", gone).await.unwrap();
}
