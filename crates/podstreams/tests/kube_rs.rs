//! The sessions as kube-rs drives them: WebSocket channels.

mod support;

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{AttachParams, AttachedProcess};
use kube::{Api, Client, Config};
use support::{DOWNLOAD, ECHO, LARGE};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn pods() -> Api<Pod> {
    let address = support::start().await;
    let config = Config::new(format!("http://{address}").parse().unwrap());
    Api::namespaced(Client::try_from(config).unwrap(), "default")
}

/// Standard output, standard error and the exit code as text ("" for success).
async fn finish(mut process: AttachedProcess) -> (String, String, String) {
    let status = process.take_status().unwrap();
    let (mut out, mut err) = (String::new(), String::new());
    let (mut stdout, mut stderr) = (process.stdout().unwrap(), process.stderr());
    let read_err = async {
        if let Some(stderr) = &mut stderr {
            stderr.read_to_string(&mut err).await.unwrap();
        }
    };
    let (read, ()) = tokio::join!(stdout.read_to_string(&mut out), read_err);
    read.unwrap();
    let status = status.await.expect("every command ends with a status");
    let code =
        status.details.and_then(|details| details.causes).map(|causes| causes[0].message.clone().unwrap());
    (out, err, code.unwrap_or_default())
}

#[tokio::test]
async fn commands_have_output_and_exit_codes() {
    let pods = pods().await;
    let cases = [
        (vec!["echo", "a b&c=d"], "a b&c=d\n", "", ""),
        (vec!["both"], "to stdout\n", "to stderr\n", ""),
        (vec!["exit", "3"], "", "", "3"),
        (vec!["no-such-command"], "", "", "127"),
    ];
    for (command, out, err, code) in cases {
        let process = pods.exec("web", command.iter().copied(), &AttachParams::default()).await.unwrap();
        assert_eq!(finish(process).await, (out.to_owned(), err.to_owned(), code.to_owned()), "{command:?}");
    }
}

#[tokio::test]
async fn input_reaches_the_command_and_its_end_does_too() {
    let pods = pods().await;
    let params = AttachParams::default().stdin(true).stderr(false);
    let mut process = pods.exec("web", ["cat"], &params).await.unwrap();
    let mut stdin = process.stdin().unwrap();
    let sent = "line\n".repeat(50_000);
    let feed = async {
        stdin.write_all(sent.as_bytes()).await.unwrap();
        stdin.shutdown().await.unwrap();
        drop(stdin);
    };
    let ((out, _, code), ()) = tokio::join!(finish(process), feed);
    assert_eq!(code, "");
    assert!(out == sent, "{} of {} bytes came back", out.len(), sent.len());
}

#[tokio::test]
async fn terminals_are_resized() {
    let pods = pods().await;
    let mut process = pods.exec("web", ["size"], &AttachParams::interactive_tty()).await.unwrap();
    let mut size = process.terminal_size().unwrap();
    size.try_send(kube::api::TerminalSize { width: 120, height: 40 }).unwrap();
    assert_eq!(finish(process).await.0, "120x40\n");
}

#[tokio::test]
async fn attach_follows_the_log() {
    let process = pods().await.attach("web", &AttachParams::default()).await.unwrap();
    assert_eq!(finish(process).await, ("one\ntwo\n".to_owned(), String::new(), String::new()));
}

#[tokio::test]
async fn ports_are_forwarded() {
    let pods = pods().await;
    let mut forwarder = pods.portforward("web", &[ECHO, DOWNLOAD, 9999]).await.unwrap();
    let failure = forwarder.take_error(9999).unwrap().await.unwrap();
    assert!(failure.contains("nothing listens on port 9999"), "{failure}");

    let mut echo = forwarder.take_stream(ECHO).unwrap();
    echo.write_all(b"ping").await.unwrap();
    let mut answer = [0; 4];
    echo.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"ping");

    let mut download = forwarder.take_stream(DOWNLOAD).unwrap();
    download.write_all(b"!").await.unwrap();
    let mut received = vec![0; LARGE];
    download.read_exact(&mut received).await.unwrap();
    assert!(received.iter().all(|byte| *byte == b'x'));
}

#[tokio::test]
async fn a_connection_the_pod_closes_ends() {
    let pods = pods().await;
    let mut forwarder = pods.portforward("web", &[DOWNLOAD]).await.unwrap();
    let mut download = forwarder.take_stream(DOWNLOAD).unwrap();
    download.write_all(b"!").await.unwrap();
    let mut received = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), download.read_to_end(&mut received));
    assert_eq!(read.await.expect("the end of the stream arrives").unwrap(), LARGE);
}

#[tokio::test]
async fn refusals_come_before_the_upgrade() {
    let pods = pods().await;
    let params = AttachParams::default().container("missing");
    let error = pods.exec("web", ["ls"], &params).await.err().expect("no such container").to_string();
    assert!(error.contains("404"), "{error}");
}
