//! How containers and pods end, and when they are started again.
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams};
use lateen_podstreams::{ContainerRef, LogOptions, PodBackend};
use serde_json::json;

use crate::world::{World, container_waiting, is_ready, restarts};

pub(crate) async fn crashes(world: &World) {
    let command = json!(["sh", "-c", "echo run; exit 5"]);
    world.create(json!({ "metadata": { "name": "crash" }, "spec": { "containers": [{ "name": "c", "image": "busybox", "command": command }] } })).await;
    let pod = world
        .wait_pod("crash", |pod| restarts(pod) >= 2 && container_waiting(pod) == Some("CrashLoopBackOff"))
        .await;
    let status = &pod.status.as_ref().unwrap().container_statuses.as_ref().unwrap()[0];
    let last = status.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref(), status.ready), (5, Some("Error"), false));
    assert_eq!(pod.status.as_ref().unwrap().phase.as_deref(), Some("Running"));
    let target = ContainerRef { namespace: "default".into(), pod: "crash".into(), container: "c".into() };
    let options = LogOptions { previous: true, ..LogOptions::default() };
    let chunks: Vec<_> = world.handle.logs(target, options).await.unwrap().collect().await;
    assert_eq!(chunks[0].as_ref().unwrap(), "run\n");

    let missing = json!([{ "name": "c", "image": "busybox", "command": ["/no/such/program"] }]);
    world.create(json!({ "metadata": { "name": "missing" }, "spec": { "containers": missing } })).await;
    let pod = world.wait_pod("missing", |pod| container_waiting(pod) == Some("CrashLoopBackOff")).await;
    let status = &pod.status.as_ref().unwrap().container_statuses.as_ref().unwrap()[0];
    let last = status.last_state.as_ref().unwrap().terminated.as_ref().unwrap();
    assert!(last.message.as_ref().unwrap().contains("no such file or directory"), "{last:?}");
}

pub(crate) async fn liveness_and_hooks(world: &World) {
    let container = json!({
        "name": "c", "image": "busybox", "command": ["sh", "-c", "trap 'exit 0' TERM; touch /alive; while :; do sleep 0.1; done"],
        "startupProbe": { "exec": { "command": ["test", "-e", "/hook"] }, "periodSeconds": 1 },
        "livenessProbe": { "exec": { "command": ["test", "-e", "/alive"] }, "periodSeconds": 1, "failureThreshold": 1 },
        "lifecycle": { "postStart": { "exec": { "command": ["touch", "/hook"] } } }
    });
    world
        .create_ready(json!({ "metadata": { "name": "alive" }, "spec": { "containers": [container] } }))
        .await;
    world.exec("alive", "c", &["rm", "/alive"]).await;
    let pod = world.wait_pod("alive", |pod| restarts(pod) == 1 && is_ready(pod)).await;
    let status = &pod.status.as_ref().unwrap().container_statuses.as_ref().unwrap()[0];
    assert_eq!(status.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 0);
}

pub(crate) async fn last_words(world: &World) {
    let ended = |pod: &Pod| {
        let status = pod.status.clone()?;
        let ended = status.container_statuses?.first()?.state.clone()?.terminated?;
        Some((
            status.phase?,
            status.reason.unwrap_or_default(),
            ended.exit_code,
            ended.message.unwrap_or_default(),
        ))
    };
    let run = async |name: &str, script: &str, more: serde_json::Value| {
        let mut container = json!({ "name": "c", "image": "busybox", "command": ["sh", "-c", script] });
        let mut spec = json!({ "restartPolicy": "Never", "terminationGracePeriodSeconds": 1 });
        for (key, value) in more.as_object().unwrap() {
            let place = if key == "activeDeadlineSeconds" { &mut spec } else { &mut container };
            place[key] = value.clone();
        }
        spec["containers"] = json!([container]);
        world.create(json!({ "metadata": { "name": name }, "spec": spec })).await;
        ended(&world.wait_pod(name, |pod| ended(pod).is_some()).await).unwrap()
    };
    let (failed, succeeded, none) = ("Failed".to_owned(), "Succeeded".to_owned(), String::new());
    let user = json!({ "securityContext": { "runAsUser": 1000 } });
    let words = run("words", "echo -n bye > /dev/termination-log; exit 2", user).await;
    assert_eq!(words, (failed.clone(), none.clone(), 2, "bye".to_owned()));
    let elsewhere = json!({ "terminationMessagePath": "/tmp/last" });
    let words = run("elsewhere", "echo -n bye > /tmp/last", elsewhere).await;
    assert_eq!(words, (succeeded, none.clone(), 0, "bye".to_owned()));
    let from_log = json!({ "terminationMessagePolicy": "FallbackToLogsOnError" });
    let words = run("logged", "echo to the log; exit 1", from_log).await;
    assert_eq!(words, (failed.clone(), none, 1, "to the log\n".to_owned()));
    let late = run("late", "sleep infinity", json!({ "activeDeadlineSeconds": 1 })).await;
    assert_eq!((late.0, late.1.as_str(), late.2), (failed, "DeadlineExceeded", 143));
}

pub(crate) async fn run_to_completion(world: &World) {
    for (name, code, phase) in [("job-ok", 0, "Succeeded"), ("job-bad", 3, "Failed")] {
        let command = json!(["sh", "-c", format!("exit {code}")]);
        let sidecar = json!([{ "name": "side", "image": "busybox", "command": ["sleep", "infinity"], "restartPolicy": "Always" }]);
        world
            .create(json!({ "metadata": { "name": name }, "spec": {
            "restartPolicy": "Never", "initContainers": sidecar, "terminationGracePeriodSeconds": 5,
            "containers": [{ "name": "c", "image": "busybox", "command": command }]
        } }))
            .await;
        world
            .wait_pod(name, |pod| {
                pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some(phase)
            })
            .await;
    }
}

pub(crate) async fn deletion(world: &World) {
    // Ends when asked to, after its hook; and one that won't.
    let hook = json!({ "preStop": { "exec": { "command": ["sh", "-c", "echo hook > /proc/1/fd/1"] } } });
    let polite =
        json!({ "name": "c", "image": "busybox", "command": ["sleep", "infinity"], "lifecycle": hook });
    let stubborn =
        json!({ "name": "c", "image": "busybox", "command": ["sh", "-c", "trap '' TERM; sleep infinity"] });
    world.create_ready(json!({ "metadata": { "name": "polite" }, "spec": { "containers": [polite] } })).await;
    world.create_ready(json!({ "metadata": { "name": "stubborn" }, "spec": { "terminationGracePeriodSeconds": 1, "containers": [stubborn] } })).await;
    let pods: Api<Pod> = world.api();
    for name in ["polite", "stubborn"] {
        assert_eq!(world.logs_of(name), 1);
        let begun = std::time::Instant::now();
        pods.delete(name, &DeleteParams::default()).await.unwrap();
        world.until("the pod has gone", async || pods.get_opt(name).await.unwrap().is_none()).await;
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(5), "{name} took {took:?}");
        assert_eq!(took >= Duration::from_secs(1), name == "stubborn", "{name} took {took:?}");
        assert_eq!(world.logs_of(name), 0, "the logs of {name} go with it");
    }
}
