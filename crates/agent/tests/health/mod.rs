//! What the agent tells the control plane of its application's health, beside either engine.

use std::time::Duration;

use lateen_agent::{EngineKind, run};
use serde_json::{Value, json};

use crate::support::{ControlPlane, Upstream, config, eventually, free_port, world};

type Heard = Vec<Option<String>>;

async fn hears(control_plane: &ControlPlane, what: &str, wanted: impl Fn(&Heard) -> bool) {
    eventually(what, || async {
        let heard = control_plane.heard(|heard| heard.health.clone());
        wanted(&heard).then_some(())
    })
    .await;
}

async fn health_is_told(engine: EngineKind) {
    let folder = tempfile::tempdir().unwrap();
    let app = Upstream::start("app").await;
    let control_plane = ControlPlane::start(world(free_port(), app.address)).await;
    let mut config = config(engine, control_plane.address, folder.path());
    let probe = json!({ "httpGet": { "path": "/", "port": app.address.port() }, "periodSeconds": 1, "failureThreshold": 2 });
    config.readiness = Some(serde_json::from_value(probe).unwrap());
    let running = run(config).await.unwrap();
    hears(&control_plane, "it is well", |heard| *heard == [None]).await;
    drop(app);
    let ill = |heard: &Heard| {
        heard.last().is_some_and(|last| last.as_ref().is_some_and(|why| why.contains("refused")))
    };
    hears(&control_plane, "it is ill", |heard| heard.len() == 2 && ill(heard)).await;
    let nacks = control_plane.heard(|heard| heard.nacks.clone());
    assert!(nacks.is_empty(), "{nacks:?}");
    // Nothing is said twice, but on another stream.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(control_plane.heard(|heard| heard.health.len()), 2);
    control_plane.cut();
    hears(&control_plane, "it is told again", |heard| heard.len() == 3 && ill(heard)).await;
    running.stop().await;
}

#[tokio::test]
async fn health_is_told_beside_our_engine() {
    health_is_told(EngineKind::Lateen).await;
}

#[tokio::test]
async fn health_is_told_beside_envoy() {
    health_is_told(EngineKind::Envoy).await;
}

#[tokio::test]
async fn applications_are_asked_in_every_way() {
    let folder = tempfile::tempdir().unwrap();
    let app = Upstream::start("app").await;
    let (port, nobody) = (app.address.port(), free_port());
    let cases: [(Value, Option<&str>); 8] = [
        (json!({ "tcpSocket": { "port": port } }), None),
        (json!({ "tcpSocket": { "port": nobody, "host": "localhost" } }), Some("refused")),
        (json!({ "exec": { "command": ["true"] } }), None),
        (json!({ "exec": { "command": ["sh", "-c", "exit 3"] } }), Some("exit status: 3")),
        (
            json!({ "exec": { "command": ["sleep", "60"] }, "timeoutSeconds": 1 }),
            Some("no answer within 1 s"),
        ),
        (json!({ "httpGet": { "port": port, "host": "127.0.0.1", "path": "/slow" } }), Some("no answer")),
        (json!({ "grpc": { "port": nobody } }), Some("refused")),
        (json!({ "httpGet": { "port": port, "host": "nobody.invalid" } }), Some("nobody.invalid")),
    ];
    for (probe, expected) in cases {
        let control_plane = ControlPlane::start(world(free_port(), app.address)).await;
        let mut config = config(EngineKind::Lateen, control_plane.address, folder.path());
        let mut whole = probe.clone();
        (whole["periodSeconds"], whole["failureThreshold"]) = (json!(1), json!(2));
        config.readiness = Some(serde_json::from_value(whole).unwrap());
        let running = run(config).await.unwrap();
        hears(&control_plane, &probe.to_string(), |heard| match (heard.last(), expected) {
            (Some(None), None) => true,
            (Some(Some(said)), Some(part)) => said.contains(part),
            _ => false,
        })
        .await;
        running.stop().await;
    }
}
