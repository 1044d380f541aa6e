//! Addresses and names of services.
use serde_json::json;

use crate::world::{self, World, web_pod};

pub(crate) async fn services(world: &World) {
    world.create_with_shell("caller").await;
    for name in ["two", "three"] {
        world
            .create_ready(json!({ "metadata": { "name": name }, "spec": { "containers": [web_pod(8080)] } }))
            .await;
    }
    world.service("web", &["two", "three"]).await;
    let fetch = async |from: &str, url: &str| {
        let me = world.me();
        world.exec(from, "web", &[me.as_str(), "inside", "get", url]).await.1
    };
    let by_name = "http://web.default.svc.cluster.local/";
    world.until("the name resolves", async || fetch("caller", by_name).await.contains("I am")).await;
    // Short names by the search path, both backends, the load balancer's address, and the host itself.
    let mut seen = std::collections::BTreeSet::new();
    world
        .until("both backends answer", async || {
            seen.insert(fetch("caller", "http://web/").await);
            seen.len() == 2
        })
        .await;
    // Its rule comes with the Service's status, which may be seen after the endpoints.
    let by_balancer = "http://10.201.0.5/";
    world.until("the balancer's address", async || fetch("caller", by_balancer).await.contains("I am")).await;
    assert!(
        world::get("http://10.201.0.5/").contains("I am"),
        "from the host, by the load balancer's address"
    );
    assert!(world::get("http://10.200.0.1:30080/").contains("I am"), "from the host, by the node port");
    // A pod that is its own backend.
    world.service("own", &["two"]).await;
    world
        .until("a pod reaches itself", async || fetch("two", "http://own/").await.contains("I am two"))
        .await;
    world.service("none", &[]).await;
    let refused = fetch("caller", "http://none/").await;
    assert!(refused.contains("refused"), "{refused}");
    assert!(world::get("http://10.201.0.99/").contains("refused"), "an address nobody has");
    // Within the cluster's domain, which is answered without asking anybody: this machine may have no network.
    let unknown = fetch("caller", "http://nobody.default.svc.cluster.local/").await;
    assert!(unknown.contains("resolv") || unknown.contains("not known"), "{unknown}");
    // The API server's own address is the host's.
    let api = world.exec("caller", "shell", &["sh", "-c", "echo $KUBERNETES_SERVICE_HOST"]).await.1;
    assert_eq!(api.trim(), "10.200.128.1");
}
