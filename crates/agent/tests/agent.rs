//! The agent as a whole, in process: a fake control plane on one side, traffic on the other.

mod health;
mod identity;
mod probes;
mod support;

use std::net::SocketAddr;
use std::time::Duration;

use lateen_agent::{EngineKind, run};
use serde_json::json;
use support::{
    ControlPlane, TlsFront, Upstream, config, eventually, free_port, get, get_until, resources, send, world,
};

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Configuration arrives, health and metrics answer, a change is followed, a request in flight survives the end.
async fn serves_and_ends_well(engine: EngineKind) {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (Upstream::start("first").await, Upstream::start("second").await);
    let port = free_port();
    let control_plane = ControlPlane::start(world(port, first.address)).await;
    let running = run(config(engine, control_plane.address, folder.path())).await.unwrap();
    let addresses = running.addresses();

    get_until(addresses.health, "/healthz/ready", "200 OK").await;
    assert!(get_until(loopback(port), "/", "200 OK").await.ends_with("first"));
    assert!(control_plane.heard(|heard| heard.authorization.contains(&"Bearer the-token".to_owned())));
    let id = "sidecar~127.0.0.1~web-1.default~default.svc.cluster.local".to_owned();
    assert!(control_plane.heard(|heard| heard.node_ids.contains(&id)));
    for (address, path) in [(addresses.status, "/stats/prometheus"), (addresses.stats, "/stats/prometheus")] {
        let metrics = get_until(address, path, "200 OK").await;
        assert!(metrics.contains("# TYPE "), "{metrics}");
    }

    let dump = get_until(addresses.admin, "/config_dump", "admin.v3.BootstrapConfigDump").await;
    assert!(dump.contains(&id) && dump.contains("DELTA_GRPC"), "{dump}");

    control_plane.set(world(port, second.address));
    get_until(loopback(port), "/", "second").await;

    let slow = tokio::spawn(async move { get(loopback(port), "/slow").await });
    second.entered.clone().wait_for(|entered| *entered).await.unwrap();
    let ended = tokio::spawn(running.drain_and_stop());
    get_until(addresses.health, "/healthz/ready", "503").await;
    assert!(!ended.is_finished(), "a request is in flight");
    second.release.send_replace(true);
    assert!(slow.await.unwrap().unwrap().ends_with("second"));
    tokio::time::timeout(support::PATIENCE, ended)
        .await
        .expect("the end must follow the last connection")
        .unwrap();
    assert!(get(loopback(port), "/").await.is_err(), "the listener must be gone");
}

#[tokio::test]
async fn our_engine_serves_and_ends_well() {
    serves_and_ends_well(EngineKind::Lateen).await;
}

#[tokio::test]
async fn envoy_serves_and_ends_well() {
    serves_and_ends_well(EngineKind::Envoy).await;
}

/// Over TLS, only to a control plane whose certificate the given roots signed.
async fn trusts_only_its_roots(engine: EngineKind) {
    let folder = tempfile::tempdir().unwrap();
    let upstream = Upstream::start("secured").await;
    let port = free_port();
    let control_plane = ControlPlane::start(world(port, upstream.address)).await;
    let (front, stranger) =
        (TlsFront::start(control_plane.address).await, TlsFront::start(control_plane.address).await);
    let roots = folder.path().join("root-cert.pem");
    std::fs::write(&roots, &stranger.root).unwrap();
    let mut config = config(engine, control_plane.address, folder.path());
    config.discovery.address.clone_from(&front.address);
    config.discovery.root_cert = Some(roots.clone());
    let running = run(config).await.unwrap();
    // The roots are read anew for each attempt, so the right ones need no restart.
    get_until(running.addresses().health, "/healthz/ready", "503").await;
    assert!(control_plane.heard(|heard| heard.authorization.is_empty()), "no token goes to a stranger");
    std::fs::write(&roots, &front.root).unwrap();
    get_until(loopback(port), "/", "secured").await;
    assert!(control_plane.heard(|heard| heard.authorization.contains(&"Bearer the-token".to_owned())));
    running.stop().await;
}

#[tokio::test]
async fn our_engine_trusts_only_its_roots() {
    trusts_only_its_roots(EngineKind::Lateen).await;
}

#[tokio::test]
async fn envoy_trusts_only_its_roots() {
    trusts_only_its_roots(EngineKind::Envoy).await;
}

#[tokio::test]
async fn a_refused_resource_is_named_to_the_control_plane_and_the_others_serve() {
    let folder = tempfile::tempdir().unwrap();
    let upstream = Upstream::start("served").await;
    let port = free_port();
    let mut all = world(port, upstream.address);
    let unsupported = json!({
        "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
        "name": "odd",
        "type": "STATIC",
        "connect_timeout": "1s",
        "transport_socket_matches": [{ "name": "x", "match": { "a": "b" }, "transport_socket": { "name": "nonsense" } }],
    });
    for (type_url, named) in resources(&[unsupported]) {
        all.entry(type_url).or_default().extend(named);
    }
    let control_plane = ControlPlane::start(all).await;
    let running = run(config(EngineKind::Lateen, control_plane.address, folder.path())).await.unwrap();
    get_until(loopback(port), "/", "served").await;
    let nack =
        eventually("a NACK", || async { control_plane.heard(|heard| heard.nacks.first().cloned()) }).await;
    assert!(nack.contains("odd") && nack.contains("transport_socket_matches"), "{nack}");
    running.stop().await;
}

#[tokio::test]
async fn without_a_control_plane_the_last_good_configuration_serves() {
    let folder = tempfile::tempdir().unwrap();
    let upstream = Upstream::start("kept").await;
    let port = free_port();
    let control_plane = ControlPlane::start(world(port, upstream.address)).await;
    let config = config(EngineKind::Lateen, control_plane.address, folder.path());
    let running = run(config.clone()).await.unwrap();
    get_until(loopback(port), "/", "kept").await;
    let cache = folder.path().join("data/last-good");
    eventually("the cache", || async { cache.exists().then_some(()) }).await;
    running.stop().await;
    let address = control_plane.address;
    control_plane.stop().await;

    let running = run(config).await.unwrap();
    get_until(running.addresses().health, "/healthz/ready", "200 OK").await;
    get_until(loopback(port), "/", "kept").await;

    // The control plane comes back and learns what the proxy has.
    let newer = Upstream::start("newer").await;
    let control_plane = ControlPlane::start_at(address, world(port, newer.address)).await;
    get_until(loopback(port), "/", "newer").await;
    assert!(control_plane.heard(|heard| heard.known.contains_key("outbound|80||app")));
    running.stop().await;
}

#[tokio::test]
async fn an_envoy_that_dies_is_started_again() {
    let folder = tempfile::tempdir().unwrap();
    let upstream = Upstream::start("alive").await;
    let port = free_port();
    let control_plane = ControlPlane::start(world(port, upstream.address)).await;
    let running = run(config(EngineKind::Envoy, control_plane.address, folder.path())).await.unwrap();
    get_until(loopback(port), "/", "alive").await;
    // Envoy's own way to end at once; to the agent it is a crash.
    send(running.addresses().admin, "POST", "/quitquitquit").await.unwrap();
    eventually("the end of Envoy", || async { get(loopback(port), "/").await.err() }).await;
    get_until(loopback(port), "/", "alive").await;
    running.stop().await;
}

#[tokio::test]
async fn two_agents_run_in_one_process_and_a_taken_port_is_named() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let upstream = Upstream::start("both").await;
    let (first, second) = (free_port(), free_port());
    let (a, b) = (
        ControlPlane::start(world(first, upstream.address)).await,
        ControlPlane::start(world(second, upstream.address)).await,
    );
    let running = [
        run(config(EngineKind::Lateen, a.address, one.path())).await.unwrap(),
        run(config(EngineKind::Lateen, b.address, two.path())).await.unwrap(),
    ];
    get_until(loopback(first), "/", "both").await;
    get_until(loopback(second), "/", "both").await;

    let mut taken = config(EngineKind::Lateen, a.address, one.path());
    taken.addresses.health = running[0].addresses().health;
    let error = run(taken).await.err().expect("the port is taken").to_string();
    assert!(
        error.contains(&running[0].addresses().health.to_string()) && error.contains("probes"),
        "{error}"
    );
    for running in running {
        running.stop().await;
    }
}

#[tokio::test]
async fn someone_may_ask_for_the_end_over_http() {
    let folder = tempfile::tempdir().unwrap();
    let control_plane = ControlPlane::start(Default::default()).await;
    let running = run(config(EngineKind::Lateen, control_plane.address, folder.path())).await.unwrap();
    assert!(!running.ready().await, "nothing is configured yet");
    let answer = send(running.addresses().status, "POST", "/quitquitquit").await.unwrap();
    assert!(answer.contains("200 OK"), "{answer}");
    tokio::time::timeout(Duration::from_secs(5), running.quit_requested())
        .await
        .expect("the request must be heard");
    running.stop().await;
}
