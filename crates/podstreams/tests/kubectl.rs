//! The sessions as kubectl drives them: WebSocket, SPDY, and SPDY tunnelled in WebSocket.
//!
//! Needs `kubectl` (1.31 or later) on the PATH.

mod support;

use std::net::SocketAddr;
use std::process::Stdio;

use support::{DOWNLOAD, ECHO, LARGE};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

#[derive(Debug, Clone, Copy)]
enum Transport {
    WebSocket,
    Spdy,
}

const TRANSPORTS: [Transport; 2] = [Transport::WebSocket, Transport::Spdy];

fn kubectl(server: SocketAddr, transport: Transport, arguments: &[&str]) -> Child {
    let websockets = match transport {
        Transport::WebSocket => "true",
        Transport::Spdy => "false",
    };
    Command::new("kubectl")
        .args(["--kubeconfig=/dev/null", &format!("--server=http://{server}"), "--namespace=default"])
        .args(["--cache-dir=/nonexistent"])
        .args(arguments)
        .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets)
        .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("kubectl must be on the PATH for this test: install kubectl 1.31 or later")
}

/// Exit code, standard output, standard error.
async fn finish(mut child: Child, input: &[u8]) -> (i32, String, String) {
    let mut stdin = child.stdin.take().unwrap();
    let feed = async {
        // A command may end before it has read everything.
        let _ = stdin.write_all(input).await;
        drop(stdin);
    };
    let (output, ()) = tokio::join!(child.wait_with_output(), feed);
    let output = output.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[tokio::test]
async fn exec_has_output_and_exit_codes() {
    let server = support::start().await;
    for transport in TRANSPORTS {
        let (code, out, err) = finish(kubectl(server, transport, &["exec", "web", "--", "both"]), b"").await;
        assert_eq!((code, out.as_str()), (0, "to stdout\n"), "{transport:?}: {err}");
        assert!(err.contains("to stderr"), "{transport:?}: {err}");

        let (code, _, err) =
            finish(kubectl(server, transport, &["exec", "web", "--", "exit", "42"]), b"").await;
        assert_eq!(code, 42, "{transport:?}: {err}");
        assert!(err.contains("command terminated with exit code 42"), "{transport:?}: {err}");

        let (code, out, err) = finish(kubectl(server, transport, &["exec", "web", "--", "large"]), b"").await;
        assert_eq!((code, out.len()), (0, LARGE), "{transport:?}: {err}");
    }
}

#[tokio::test]
async fn exec_takes_input_until_its_end() {
    let server = support::start().await;
    let input = "line\n".repeat(100_000);
    for transport in TRANSPORTS {
        let child = kubectl(server, transport, &["exec", "-i", "web", "--", "cat"]);
        let (code, out, err) = finish(child, input.as_bytes()).await;
        assert_eq!((code, out.len()), (0, input.len()), "{transport:?}: {err}");
    }
}

#[tokio::test]
async fn attach_follows_the_log() {
    let server = support::start().await;
    for transport in TRANSPORTS {
        let (code, out, err) = finish(kubectl(server, transport, &["attach", "web"]), b"").await;
        assert_eq!((code, out.as_str()), (0, "one\ntwo\n"), "{transport:?}: {err}");
    }
}

#[tokio::test]
async fn refusals_are_shown() {
    let server = support::start().await;
    for transport in TRANSPORTS {
        let child = kubectl(server, transport, &["attach", "web", "--container=app", "--stdin=false"]);
        let (code, _, err) = finish(child, b"").await;
        assert_eq!(code, 0, "{transport:?}: {err}");
        let (code, _, err) =
            finish(kubectl(server, transport, &["exec", "web", "-c", "missing", "--", "ls"]), b"").await;
        assert_eq!(code, 1, "{transport:?}: {err}");
        assert!(err.contains("missing"), "{transport:?}: {err}");
    }
}

/// Starts a port-forward to `remote` and gives its local port once kubectl listens.
async fn port_forward(server: SocketAddr, transport: Transport, remote: u16) -> (Child, u16) {
    let mut child = kubectl(
        server,
        transport,
        &["port-forward", "--address=127.0.0.1", "pod/web", &format!(":{remote}")],
    );
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = lines.next_line().await.unwrap().expect("kubectl says where it listens");
    let port = line.strip_prefix("Forwarding from 127.0.0.1:").and_then(|rest| rest.split(' ').next());
    let port = port.and_then(|port| port.parse().ok()).unwrap_or_else(|| panic!("{line}"));
    // kubectl stops when nobody reads what it prints.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    (child, port)
}

#[tokio::test]
async fn port_forward_carries_many_connections_at_once() {
    let server = support::start().await;
    for transport in TRANSPORTS {
        let (_kubectl, port) = port_forward(server, transport, ECHO).await;
        let exchange = async |number: u32| {
            let mut connection = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let sent = format!("connection {number}\n").repeat(5_000);
            let (mut reader, mut writer) = connection.split();
            let mut received = String::new();
            let write = async {
                writer.write_all(sent.as_bytes()).await.unwrap();
                writer.shutdown().await.unwrap();
            };
            let (read, ()) = tokio::join!(reader.read_to_string(&mut received), write);
            read.unwrap();
            assert!(
                received == sent,
                "{transport:?}, connection {number}: {} bytes came back",
                received.len()
            );
        };
        for _round in 0..3 {
            futures::future::join_all((0..8).map(exchange)).await;
        }
    }
}

#[tokio::test]
async fn port_forward_ends_what_the_pod_ends() {
    let server = support::start().await;
    for transport in TRANSPORTS {
        let (_kubectl, port) = port_forward(server, transport, DOWNLOAD).await;
        for _ in 0..3 {
            let mut connection = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            connection.write_all(b"!").await.unwrap();
            let mut received = Vec::new();
            connection.read_to_end(&mut received).await.unwrap();
            assert_eq!(received.len(), LARGE, "{transport:?}");
        }
    }
}

#[tokio::test]
async fn port_forward_reports_ports_nobody_listens_on() {
    let server = support::start().await;
    for transport in TRANSPORTS {
        let (mut kubectl, port) = port_forward(server, transport, 9999).await;
        let mut connection = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let mut received = Vec::new();
        // kubectl closes or resets its client.
        let _ = connection.read_to_end(&mut received).await;
        assert!(received.is_empty());
        let mut lines = BufReader::new(kubectl.stderr.take().unwrap()).lines();
        let mut seen = String::new();
        while !seen.contains("nothing listens on port 9999") {
            seen += &lines.next_line().await.unwrap().unwrap_or_else(|| panic!("{transport:?}: {seen}"));
        }
    }
}
