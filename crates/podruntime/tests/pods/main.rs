//! Real pods on this machine, under a real API server in process. Needs root.
//!
//! The program is three things: the test, `container-run`, and what runs inside the pods.

mod console;
mod lifecycle;
mod security;
mod services;
mod world;

use std::{future::Future, pin::Pin, time::Duration};

use k8s_openapi::api::core::v1::{ConfigMap, Event};
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::json;
use tokio::io::AsyncBufReadExt;
use world::{World, container_waiting, web_pod};

type Test = for<'a> fn(&'a World) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

const TESTS: &[(&str, Test)] = &[
    ("a_pod_becomes_ready_and_sees_what_it_should", |w| Box::pin(a_pod_becomes_ready(w))),
    ("exec_with_and_without_a_terminal", |w| Box::pin(console::exec(w))),
    ("logs_and_port_forward", |w| Box::pin(console::logs_and_dial(w))),
    ("service_addresses_and_dns", |w| Box::pin(services::services(w))),
    ("crashes_are_restarted_and_remembered", |w| Box::pin(lifecycle::crashes(w))),
    ("an_unknown_image_names_the_flag", |w| Box::pin(unknown_image(w))),
    ("containers_have_the_rights_they_are_given", |w| Box::pin(security::security(w))),
    ("config_maps_change_inside", |w| Box::pin(config_changes(w))),
    ("liveness_and_hooks", |w| Box::pin(lifecycle::liveness_and_hooks(w))),
    ("jobs_succeed_and_fail", |w| Box::pin(lifecycle::run_to_completion(w))),
    ("containers_that_can_be_talked_to", |w| Box::pin(console::attach(w))),
    ("last_words_and_deadlines", |w| Box::pin(lifecycle::last_words(w))),
    ("deletion_takes_the_grace_it_needs", |w| Box::pin(lifecycle::deletion(w))),
];

fn main() {
    let mut args = std::env::args_os().skip(1);
    match args.next().as_ref().and_then(|arg| arg.to_str()) {
        Some("container-run") => std::process::exit(lateen_podruntime::container_run_main(args)),
        Some("crash") => {
            let state = args.next().expect("the state directory").into();
            tokio::runtime::Runtime::new().unwrap().block_on(until_killed(state));
        }
        Some("inside") => world::inside(args.map(|arg| arg.to_string_lossy().into_owned()).collect()),
        filter => {
            let filter = filter.filter(|filter| !filter.starts_with('-')).unwrap_or("").to_owned();
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
            runtime.block_on(run(&filter));
        }
    }
}

async fn run(filter: &str) {
    let state = tempfile::Builder::new().prefix("lateen-pods-").tempdir().unwrap();
    let world = World::start(state.path().to_path_buf()).await;
    for (name, test) in TESTS.iter().filter(|(name, _)| name.contains(filter)) {
        let begun = std::time::Instant::now();
        tokio::time::timeout(Duration::from_secs(60), test(&world))
            .await
            .unwrap_or_else(|_| panic!("{name}: not done within 60 s"));
        println!("test {name} ... ok ({} ms)", begun.elapsed().as_millis());
    }
    world.stop().await;
    println!("test nothing_is_left ... ok");
    after_a_crash(state.path()).await;
    println!("test nothing_is_left_after_a_crash ... ok");
}

/// Runs pods until this process is killed.
async fn until_killed(state: std::path::PathBuf) {
    let world = World::start(state).await;
    world
        .create_ready(json!({ "metadata": { "name": "web" }, "spec": { "containers": [web_pod(8080)] } }))
        .await;
    let memory = json!({ "name": "c", "image": "busybox", "command": ["sh", "-c", "trap '' TERM; sleep 98765"],
        "volumeMounts": [{ "name": "m", "mountPath": "/m" }] });
    let volumes = json!([{ "name": "m", "emptyDir": { "medium": "Memory" } }]);
    world
        .create_ready(
            json!({ "metadata": { "name": "m" }, "spec": { "containers": [memory], "volumes": volumes } }),
        )
        .await;
    println!("ready");
    std::future::pending::<()>().await;
}

async fn after_a_crash(state: &std::path::Path) {
    let mut daemon = tokio::process::Command::new(std::env::current_exe().unwrap())
        .arg("crash")
        .arg(state)
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut output = tokio::io::BufReader::new(daemon.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).await.unwrap();
    assert_eq!(line, "ready\n");
    daemon.kill().await.unwrap();
    world::clean_up(state).await;
}

async fn a_pod_becomes_ready(world: &World) {
    let maps: Api<ConfigMap> = world.api();
    let map = json!({ "metadata": { "name": "settings" }, "data": { "color": "blue" } });
    maps.create(&Default::default(), &serde_json::from_value(map).unwrap()).await.unwrap();
    let pod = json!({
        "metadata": { "name": "one", "labels": { "app": "one" } },
        "spec": {
            "initContainers": [{
                "name": "init", "image": "busybox", "volumeMounts": [{ "name": "shared", "mountPath": "/shared" }],
                "command": ["sh", "-c", "echo from-init > /shared/file; echo root > /etc/only-in-init"]
            }],
            "containers": [web_pod(8080), {
                "name": "shell", "image": "busybox", "command": ["sleep", "infinity"],
                "env": [
                    { "name": "IP", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } },
                    { "name": "COLOR", "valueFrom": { "configMapKeyRef": { "name": "settings", "key": "color" } } },
                    { "name": "URL", "value": "http://$(IP)/" }
                ],
                "volumeMounts": [
                    { "name": "shared", "mountPath": "/shared" },
                    { "name": "settings", "mountPath": "/etc/settings" },
                    { "name": "settings", "mountPath": "/var/run/secrets/color", "subPath": "color" },
                    { "name": "all", "mountPath": "/var/run/secrets/all" }
                ]
            }],
            "volumes": [
                { "name": "shared", "emptyDir": {} },
                { "name": "settings", "configMap": { "name": "settings" } },
                { "name": "all", "projected": { "sources": [
                    { "serviceAccountToken": { "path": "token", "audience": "istio-ca" } },
                    { "downwardAPI": { "items": [{ "path": "labels", "fieldRef": { "fieldPath": "metadata.labels" } }] } }
                ] } }
            ]
        }
    });
    let pod = world.create_ready(pod).await;
    let status = pod.status.as_ref().unwrap();
    assert_eq!(status.phase.as_deref(), Some("Running"));
    assert!(status.pod_ip.as_deref().unwrap().starts_with("10.200."));
    let init = &status.init_container_statuses.as_ref().unwrap()[0];
    assert_eq!(init.state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 0);

    let script = "cat /shared/file; echo $IP $COLOR $URL; cat /etc/settings/color /var/run/secrets/color /var/run/secrets/all/labels; echo; \
        wc -c < /var/run/secrets/all/token; hostname; ls /etc/only-in-init; cat /etc/resolv.conf; id -u; ps -e | wc -l; touch /etc/settings/x; ls /run/netns";
    let out = world.exec("one", "shell", &["sh", "-c", script]).await.1;
    let ip = status.pod_ip.as_deref().unwrap();
    assert!(out.starts_with(&format!("from-init\n{ip} blue http://{ip}/\nblueblueapp=\"one\"\n")), "{out}");
    assert!(out.contains("\none\n") && out.contains("search default.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.200.128.10\noptions ndots:5\n0\n"), "{out}");
    assert!(
        out.contains("only-in-init': No such file")
            && out.contains("Read-only file system")
            && out.contains("/run/netns': No such file"),
        "{out}"
    );
    world.only_root_can_read(&["pods", "logs"]);
    let events: Api<Event> = world.api();
    let reasons: Vec<String> = events
        .list(&ListParams::default())
        .await
        .unwrap()
        .items
        .into_iter()
        .filter_map(|event| event.reason)
        .collect();
    for reason in ["Pulled", "Created", "Started"] {
        assert!(reasons.iter().any(|own| own == reason), "{reasons:?}");
    }
}

async fn unknown_image(world: &World) {
    world.create(json!({ "metadata": { "name": "unknown" }, "spec": { "containers": [{ "name": "c", "image": "example.com/x:1" }] } })).await;
    let pod = world.wait_pod("unknown", |pod| container_waiting(pod) == Some("ErrImagePull")).await;
    let status = &pod.status.as_ref().unwrap().container_statuses.as_ref().unwrap()[0];
    let message = status.state.as_ref().unwrap().waiting.as_ref().unwrap().message.as_deref().unwrap();
    assert_eq!(
        message,
        "no mapping for image example.com/x:1; map it with `lateen up --image example.com/x=COMMAND`"
    );
    assert_eq!(pod.status.as_ref().unwrap().phase.as_deref(), Some("Pending"));
}

async fn config_changes(world: &World) {
    let maps: Api<ConfigMap> = world.api();
    let map = json!({ "metadata": { "name": "changing" }, "data": { "color": "blue" } });
    maps.create(&Default::default(), &serde_json::from_value(map).unwrap()).await.unwrap();
    let container = json!({ "name": "c", "image": "busybox", "command": ["sleep", "infinity"],
        "volumeMounts": [{ "name": "changing", "mountPath": "/etc/changing" }] });
    let volumes = json!([{ "name": "changing", "configMap": { "name": "changing" } }]);
    let spec = json!({ "terminationGracePeriodSeconds": 0, "containers": [container], "volumes": volumes });
    world.create_ready(json!({ "metadata": { "name": "changing" }, "spec": spec })).await;
    let color = async || world.exec("changing", "c", &["cat", "/etc/changing/color"]).await.1;
    assert_eq!(color().await, "blue");
    let patch = Patch::Merge(json!({ "data": { "color": "green" } }));
    maps.patch("changing", &PatchParams::default(), &patch).await.unwrap();
    world.until("the file changes", async || color().await == "green").await;
}
