//! Real pods on this machine, under a real API server in process. Needs root.
//!
//! The program is three things: the test, `container-run`, and what runs inside the pods.

mod world;

use std::{future::Future, pin::Pin, time::Duration};

use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Pod};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use lateen_podstreams::{ContainerRef, ExecRequest, LogOptions, Output, PodBackend, TerminalSize};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use world::{World, container_waiting, is_ready, restarts, web_pod};

type Test = for<'a> fn(&'a World) -> Pin<Box<dyn Future<Output = ()> + 'a>>;

const TESTS: &[(&str, Test)] = &[
    ("a_pod_becomes_ready_and_sees_what_it_should", |w| Box::pin(a_pod_becomes_ready(w))),
    ("exec_with_and_without_a_terminal", |w| Box::pin(exec(w))),
    ("logs_and_port_forward", |w| Box::pin(logs_and_dial(w))),
    ("service_addresses_and_dns", |w| Box::pin(services(w))),
    ("crashes_are_restarted_and_remembered", |w| Box::pin(crashes(w))),
    ("an_unknown_image_names_the_flag", |w| Box::pin(unknown_image(w))),
    ("containers_have_the_rights_they_are_given", |w| Box::pin(security(w))),
    ("config_maps_change_inside", |w| Box::pin(config_changes(w))),
    ("liveness_and_hooks", |w| Box::pin(liveness_and_hooks(w))),
    ("jobs_succeed_and_fail", |w| Box::pin(run_to_completion(w))),
    ("containers_that_can_be_talked_to", |w| Box::pin(attach(w))),
    ("last_words_and_deadlines", |w| Box::pin(last_words(w))),
    ("deletion_takes_the_grace_it_needs", |w| Box::pin(deletion(w))),
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

async fn exec(world: &World) {
    let (code, out) = world.exec("one", "shell", &["sh", "-c", "echo out; echo err >&2; exit 7"]).await;
    assert_eq!((code, out.contains("out\n"), out.contains("err\n")), (7, true, true));
    assert_eq!(world.exec("one", "", &["no-such-program"]).await.0, 127);
    let target = ContainerRef { namespace: "default".into(), pod: "one".into(), container: "shell".into() };

    let request = ExecRequest { command: vec!["cat".into()], tty: false, stdin: true };
    let mut session = world.handle.exec(target.clone(), request).await.unwrap();
    session.stdin.send("hello".into()).await.unwrap();
    drop(session.stdin);
    assert!(matches!(session.output.recv().await, Some(Output::Stdout(bytes)) if bytes == "hello"));
    assert_eq!(session.exit.await, Ok(0));

    let request = ExecRequest { command: vec!["sh".into()], tty: true, stdin: true };
    let mut session = world.handle.exec(target.clone(), request).await.unwrap();
    session.resize.send(TerminalSize { width: 91, height: 33 }).await.unwrap();
    session
        .stdin
        .send("until [ \"$(stty size)\" = '33 91' ]; do :; done; tty; ps -o tty= -p $$; exit 3\n".into())
        .await
        .unwrap();
    let mut text = String::new();
    while let Some(Output::Stdout(bytes)) = session.output.recv().await {
        text.push_str(&String::from_utf8_lossy(&bytes));
    }
    assert!(text.contains("/dev/pts/0"), "{text}");
    assert_eq!(session.exit.await, Ok(3));

    // A client that goes takes its command along.
    let request = ExecRequest { command: vec!["sleep".into(), "98765".into()], tty: false, stdin: false };
    let session = world.handle.exec(target.clone(), request).await.unwrap();
    let count = ["sh", "-c", "ps -eo args | grep -c '^sleep 98765'"];
    world.until("the command runs", async || world.exec("one", "shell", &count).await.1.trim() == "1").await;
    drop(session);
    world
        .until("the command has gone", async || world.exec("one", "shell", &count).await.1.trim() == "0")
        .await;

    let unknown = ContainerRef { container: "none".into(), ..target };
    assert!(
        world
            .handle
            .exec(unknown, ExecRequest { command: vec!["ls".into()], ..Default::default() })
            .await
            .is_err()
    );
}

async fn logs_and_dial(world: &World) {
    let target = ContainerRef { namespace: "default".into(), pod: "one".into(), container: "web".into() };
    let options = LogOptions { follow: true, ..LogOptions::default() };
    let mut log = world.handle.logs(target, options).await.unwrap();
    let first = log.next().await.unwrap().unwrap();
    assert!(first.starts_with(b"listening on 8080"), "{first:?}");

    let mut stream = world.handle.dial("default", "one", 8080).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("I am one\n"), "{answer}");
    assert!(world.handle.dial("default", "one", 9).await.is_err());
    let mut text = String::new();
    while !text.contains("request from 127.0.0.1") {
        text.push_str(std::str::from_utf8(&log.next().await.unwrap().unwrap()).unwrap());
    }
}

async fn services(world: &World) {
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
    world.until("the name resolves", async || fetch("one", by_name).await.contains("I am")).await;
    // Short names by the search path, both backends, the load balancer's address, and the host itself.
    let mut seen = std::collections::BTreeSet::new();
    world
        .until("both backends answer", async || {
            seen.insert(fetch("one", "http://web/").await);
            seen.len() == 2
        })
        .await;
    // Its rule comes with the Service's status, which may be seen after the endpoints.
    let by_balancer = "http://10.201.0.5/";
    world.until("the balancer's address", async || fetch("one", by_balancer).await.contains("I am")).await;
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
    let refused = fetch("one", "http://none/").await;
    assert!(refused.contains("refused"), "{refused}");
    assert!(world::get("http://10.201.0.99/").contains("refused"), "an address nobody has");
    let unknown = fetch("one", "http://nobody.default/").await;
    assert!(unknown.contains("resolv") || unknown.contains("not known"), "{unknown}");
    // The API server's own address is the host's.
    let api = world.exec("one", "shell", &["sh", "-c", "echo $KUBERNETES_SERVICE_HOST"]).await.1;
    assert_eq!(api.trim(), "10.200.128.1");
}

async fn crashes(world: &World) {
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

/// What the kernel says of a process of the container.
const STATUS: &str = "grep -E '^(Uid|Groups|CapPrm|CapEff|CapBnd|CapInh|CapAmb|NoNewPrivs|Seccomp):' /proc/$p/status | tr '\\t' ' '";

#[allow(clippy::too_many_lines)] // One pod after the other, by what it asks for.
async fn security(world: &World) {
    // (name, the pod's and the container's context, what the kernel says, what the program may: marking sockets takes NET_ADMIN or
    // NET_RAW, which is in the default set)
    let default = "00000000a80425fb";
    let none = "0000000000000000";
    let denied = "PermissionDenied";
    let cases = [
        (
            "plain",
            json!({}),
            json!({}),
            ["Uid: 0 0 0 0", "Groups: 0", default, default, "NoNewPrivs: 0", "Seccomp: 0"],
            ["yes", denied, "yes"],
        ),
        (
            "admin",
            json!({}),
            json!({ "capabilities": { "add": ["NET_ADMIN"], "drop": ["ALL"] }, "allowPrivilegeEscalation": false }),
            [
                "Uid: 0 0 0 0",
                "Groups: 0",
                "0000000000001000",
                "0000000000001000",
                "NoNewPrivs: 1",
                "Seccomp: 0",
            ],
            ["yes", denied, denied],
        ),
        (
            "user",
            json!({ "runAsUser": 1337, "runAsGroup": 1338, "supplementalGroups": [7], "fsGroup": 8 }),
            json!({ "capabilities": { "add": ["NET_ADMIN"] } }),
            [
                "Uid: 1337 1337 1337 1337",
                "Groups: 7 8 1338",
                none,
                "00000000a80435fb",
                "NoNewPrivs: 0",
                "Seccomp: 0",
            ],
            [denied, denied, denied],
        ),
        (
            "hardened",
            json!({ "runAsUser": 1337, "runAsGroup": 1337, "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } }),
            json!({ "capabilities": { "drop": ["ALL"] }, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true }),
            ["Uid: 1337 1337 1337 1337", "Groups: 1337", none, none, "NoNewPrivs: 1", "Seccomp: 2"],
            [denied, denied, denied],
        ),
        (
            "filtered",
            json!({}),
            json!({ "seccompProfile": { "type": "RuntimeDefault" }, "capabilities": { "add": ["SYS_ADMIN"], "drop": ["SYS_CHROOT"] } }),
            [
                "Uid: 0 0 0 0",
                "Groups: 0",
                "00000000a82025fb",
                "00000000a82025fb",
                "NoNewPrivs: 1",
                "Seccomp: 2",
            ],
            ["yes", "yes", denied],
        ),
        (
            "privileged",
            json!({ "seccompProfile": { "type": "RuntimeDefault" } }),
            json!({ "privileged": true }),
            ["Uid: 0 0 0 0", "Groups: 0", "", "", "NoNewPrivs: 0", "Seccomp: 0"],
            ["yes", "yes", "yes"],
        ),
    ];
    let me = world.me();
    for (name, pods, own, [uid, groups, effective, bounding, escalation, seccomp], [mark, unshare, root]) in
        cases
    {
        let container = json!({ "name": "c", "image": "busybox", "command": ["sleep", "infinity"], "securityContext": own });
        let spec =
            json!({ "securityContext": pods, "containers": [container], "terminationGracePeriodSeconds": 0 });
        world.create_ready(json!({ "metadata": { "name": name }, "spec": spec })).await;
        // What was started, the first process that started it, and what comes in by exec.
        for process in ["$(pgrep -x sleep)", "1", "self"] {
            let out = world.exec(name, "c", &["sh", "-c", &format!("p={process}; {STATUS}")]).await.1;
            let said = |line: &str| out.lines().any(|said| said.trim_end() == line);
            for line in
                [uid, groups, escalation, seccomp, "CapInh: 0000000000000000", "CapAmb: 0000000000000000"]
            {
                assert!(said(line), "{name}, {process}: no {line:?} in\n{out}");
            }
            if !effective.is_empty() {
                let lines = [
                    format!("CapEff: {effective}"),
                    format!("CapPrm: {effective}"),
                    format!("CapBnd: {bounding}"),
                ];
                assert!(lines.iter().all(|line| said(line)), "{name}, {process}: not {lines:?} in\n{out}");
            }
        }
        let out = world
            .exec(name, "c", &["sh", "-c", &format!("{me} inside rights; echo x > /dev/stdout")])
            .await
            .1;
        assert_eq!(
            out,
            format!("mark {mark}\nunshare {unshare}\nown-root {root}\nthread yes\nx\n"),
            "{name}"
        );
    }
    let write = |path: &str| format!("(echo x > {path}) 2>/dev/null && echo yes || echo no");
    let script = ["/etc/file", "/tmp/file", "/run/file", "/dev/shm/file"].map(write).join("; ");
    let hardened = world.exec("hardened", "c", &["sh", "-c", &script]).await.1;
    assert_eq!(hardened, "no\nno\nno\nyes\n");
    let plain = world.exec("plain", "c", &["sh", "-c", &script]).await.1;
    assert_eq!(plain, "yes\nyes\nyes\nyes\n");

    // What cannot be had is told, and nothing is started.
    for (name, own, reason) in [
        (
            "root-forbidden",
            json!({ "runAsUser": 0, "runAsNonRoot": true }),
            "container's runAsUser breaks non-root policy",
        ),
        (
            "no-profile",
            json!({ "seccompProfile": { "type": "Localhost", "localhostProfile": "p.json" } }),
            "use RuntimeDefault",
        ),
    ] {
        let container = json!({ "name": "c", "image": "busybox", "securityContext": own });
        world.create(json!({ "metadata": { "name": name }, "spec": { "containers": [container] } })).await;
        let pod =
            world.wait_pod(name, |pod| container_waiting(pod) == Some("CreateContainerConfigError")).await;
        let status = &pod.status.as_ref().unwrap().container_statuses.as_ref().unwrap()[0];
        let message = status.state.as_ref().unwrap().waiting.as_ref().unwrap().message.clone().unwrap();
        assert!(message.contains(reason), "{message}");
    }
}

async fn config_changes(world: &World) {
    let maps: Api<ConfigMap> = world.api();
    let patch = Patch::Merge(json!({ "data": { "color": "green" } }));
    maps.patch("settings", &PatchParams::default(), &patch).await.unwrap();
    world
        .until("the file changes", async || {
            world.exec("one", "shell", &["cat", "/etc/settings/color"]).await.1 == "green"
        })
        .await;
}

async fn liveness_and_hooks(world: &World) {
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

/// What `kubectl run -it` needs: a shell on a terminal, input that ends, exit codes.
async fn attach(world: &World) {
    let exit_code = |pod: &Pod| {
        let status = pod.status.as_ref()?.container_statuses.as_ref()?.first()?;
        Some(status.state.as_ref()?.terminated.as_ref()?.exit_code)
    };
    let target =
        |pod: &str| ContainerRef { namespace: "default".into(), pod: pod.into(), ..Default::default() };
    let request = |stdin, tty| ExecRequest { command: Vec::new(), tty, stdin };
    let interactive = |name: &str, tty: bool, once: bool| {
        let container =
            json!({ "name": "c", "image": "busybox", "stdin": true, "stdinOnce": once, "tty": tty });
        json!({ "metadata": { "name": name }, "spec": { "restartPolicy": "Never", "containers": [container] } })
    };
    // Input through a pipe; its end ends the shell.
    world.create_ready(interactive("pipe", false, true)).await;
    let mut session = world.handle.attach(target("pipe"), request(true, false)).await.unwrap();
    session.stdin.send("echo from-the-pipe; cat; exit 3\n".into()).await.unwrap();
    drop(session.stdin);
    let mut text = String::new();
    while let Some(Output::Stdout(bytes)) = session.output.recv().await {
        text.push_str(&String::from_utf8_lossy(&bytes));
    }
    assert_eq!(text, "from-the-pipe\n");
    world.wait_pod("pipe", |pod| exit_code(pod) == Some(3)).await;
    // Who comes too late still reads it.
    let mut late = world.handle.attach(target("pipe"), request(false, false)).await.unwrap();
    assert_eq!((late.output.recv().await.is_none(), late.exit.await), (true, Ok(0)));

    // A terminal, with its size; input that survives its client.
    world.create_ready(interactive("terminal", true, false)).await;
    let mut session = world.handle.attach(target("terminal"), request(true, true)).await.unwrap();
    session.stdin.send("first=yes\n".into()).await.unwrap();
    // Until the terminal echoes it: what a client that goes has not got through is nobody's.
    let mut text = String::new();
    while !text.contains("first=yes") {
        let Some(Output::Stdout(bytes)) = session.output.recv().await else { panic!("ended: {text:?}") };
        text.push_str(&String::from_utf8_lossy(&bytes));
    }
    drop(session);
    let mut session = world.handle.attach(target("terminal"), request(true, true)).await.unwrap();
    session.resize.send(TerminalSize { width: 91, height: 33 }).await.unwrap();
    let script =
        "until [ \"$(stty size)\" = '33 91' ]; do :; done; tty; echo $first$TERM; (sleep 98765 &); exit 4\n";
    session.stdin.send(script.into()).await.unwrap();
    let mut text = String::new();
    while let Some(Output::Stdout(bytes)) = session.output.recv().await {
        text.push_str(&String::from_utf8_lossy(&bytes));
    }
    assert!(text.contains("/dev/pts/0\r\nyesxterm\r\n"), "{text:?}");
    // What it left behind goes with the container.
    world.wait_pod("terminal", |pod| exit_code(pod) == Some(4)).await;

    // The usual signals reach its program.
    let script = "trap 'exit 6' TERM; echo on; while :; do sleep 0.05; done";
    let container =
        json!({ "name": "c", "image": "busybox", "stdin": true, "command": ["sh", "-c", script] });
    world
        .create_ready(json!({ "metadata": { "name": "signals" }, "spec": {
        "restartPolicy": "Never", "activeDeadlineSeconds": 1, "containers": [container] } }))
        .await;
    world.wait_pod("signals", |pod| exit_code(pod) == Some(6)).await;
}

async fn last_words(world: &World) {
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

async fn run_to_completion(world: &World) {
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

async fn deletion(world: &World) {
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
        let begun = std::time::Instant::now();
        pods.delete(name, &DeleteParams::default()).await.unwrap();
        world.until("the pod has gone", async || pods.get_opt(name).await.unwrap().is_none()).await;
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(5), "{name} took {took:?}");
        assert_eq!(took >= Duration::from_secs(1), name == "stubborn", "{name} took {took:?}");
    }
}
