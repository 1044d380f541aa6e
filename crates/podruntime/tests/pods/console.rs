//! Talking to what runs in pods: exec, attach, logs, connections.
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use lateen_podstreams::{ContainerRef, ExecRequest, LogOptions, Output, PodBackend, TerminalSize};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::world::World;

pub(crate) async fn exec(world: &World) {
    world.create_with_shell("commands").await;
    let (code, out) = world.exec("commands", "shell", &["sh", "-c", "echo out; echo err >&2; exit 7"]).await;
    assert_eq!((code, out.contains("out\n"), out.contains("err\n")), (7, true, true));
    assert_eq!(world.exec("commands", "", &["no-such-program"]).await.0, 127);
    let target =
        ContainerRef { namespace: "default".into(), pod: "commands".into(), container: "shell".into() };

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
    world
        .until("the command runs", async || world.exec("commands", "shell", &count).await.1.trim() == "1")
        .await;
    drop(session);
    world
        .until("the command has gone", async || world.exec("commands", "shell", &count).await.1.trim() == "0")
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

pub(crate) async fn logs_and_dial(world: &World) {
    world.create_with_shell("log").await;
    let target = ContainerRef { namespace: "default".into(), pod: "log".into(), container: "web".into() };
    let options = LogOptions { follow: true, ..LogOptions::default() };
    let mut log = world.handle.logs(target, options).await.unwrap();
    let first = log.next().await.unwrap().unwrap();
    assert!(first.starts_with(b"listening on 8080"), "{first:?}");

    let mut stream = world.handle.dial("default", "log", 8080).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("I am log\n"), "{answer}");
    assert!(world.handle.dial("default", "log", 9).await.is_err());
    let mut text = String::new();
    while !text.contains("request from 127.0.0.1") {
        text.push_str(std::str::from_utf8(&log.next().await.unwrap().unwrap()).unwrap());
    }
}

/// What `kubectl run -it` needs: a shell on a terminal, input that ends, exit codes.
pub(crate) async fn attach(world: &World) {
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
