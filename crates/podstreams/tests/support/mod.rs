//! A pod backend in memory, behind the few API routes kubectl and kube-rs need to reach it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use lateen_podstreams::{
    BoxFuture, ContainerRef, Duplex, ExecRequest, ExecSession, LogOptions, Output, PodBackend, PodError,
    TerminalSize, serve_attach, serve_exec, serve_port_forward,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

/// A port that sends back what it receives.
pub(crate) const ECHO: u16 = 7000;
/// A port that sends [`LARGE`] bytes when its client has sent something, then closes.
pub(crate) const DOWNLOAD: u16 = 7001;
/// More than any window or queue in between.
pub(crate) const LARGE: usize = 3_000_000;

/// Commands: `echo TEXT`, `both`, `cat`, `large`, `exit CODE`, `size` (prints the first terminal size), `hang`.
pub(crate) struct FakePods;

impl PodBackend for FakePods {
    fn exec(
        &self,
        target: ContainerRef,
        request: ExecRequest,
    ) -> BoxFuture<'_, Result<ExecSession, PodError>> {
        Box::pin(async move {
            if target.container == "missing" {
                return Err(PodError::NotFound(format!("container missing is not in pod {}", target.pod)));
            }
            let (stdin, input) = mpsc::channel(4);
            let (output, receiver) = mpsc::channel(4);
            let (resize, sizes) = mpsc::channel(4);
            let (exited, exit) = oneshot::channel();
            tokio::spawn(async move {
                if let Some(code) = run(request, input, output, sizes).await {
                    let _ = exited.send(code);
                }
            });
            Ok(ExecSession { stdin, output: receiver, resize, exit })
        })
    }

    fn logs(
        &self,
        _: ContainerRef,
        options: LogOptions,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Result<Bytes, PodError>>, PodError>> {
        assert!(options.follow);
        let lines = ["one\n", "two\n"].map(|line| Ok(Bytes::from(line)));
        Box::pin(async move { Ok(stream::iter(lines).boxed()) })
    }

    fn dial(&self, _: &str, _: &str, port: u16) -> BoxFuture<'_, Result<Box<dyn Duplex>, PodError>> {
        Box::pin(async move {
            let (near, mut far) = tokio::io::duplex(1024);
            match port {
                ECHO => tokio::spawn(async move {
                    let (mut reader, mut writer) = tokio::io::split(far);
                    let _ = tokio::io::copy(&mut reader, &mut writer).await;
                    let _ = writer.shutdown().await;
                }),
                DOWNLOAD => tokio::spawn(async move {
                    let _ = far.read_u8().await;
                    let _ = far.write_all(&vec![b'x'; LARGE]).await;
                }),
                _ => return Err(PodError::Internal(format!("nothing listens on port {port}"))),
            };
            Ok(Box::new(near) as Box<dyn Duplex>)
        })
    }
}

async fn run(
    request: ExecRequest,
    mut input: mpsc::Receiver<Bytes>,
    output: mpsc::Sender<Output>,
    mut sizes: mpsc::Receiver<TerminalSize>,
) -> Option<i32> {
    let stdout = async |text: String| output.send(Output::Stdout(text.into())).await.ok();
    let words: Vec<&str> = request.command.iter().map(String::as_str).collect();
    match words[..] {
        ["echo", text] => stdout(format!("{text}\n")).await?,
        ["both"] => {
            stdout("to stdout\n".to_owned()).await?;
            output.send(Output::Stderr("to stderr\n".into())).await.ok()?;
        }
        ["cat"] => {
            while let Some(data) = input.recv().await {
                output.send(Output::Stdout(data)).await.ok()?;
            }
        }
        ["large"] => {
            for _ in 0..LARGE / 100_000 {
                output.send(Output::Stdout(vec![b'x'; 100_000].into())).await.ok()?;
            }
        }
        ["size"] => {
            let size = sizes.recv().await?;
            stdout(format!("{}x{}\n", size.width, size.height)).await?;
        }
        ["hang"] => output.closed().await,
        ["exit", code] => return code.parse().ok(),
        _ => return Some(127),
    }
    Some(0)
}

/// Serves [`FakePods`] as pod `default/web` over plain HTTP until the runtime ends.
pub(crate) async fn start() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (connection, _) = listener.accept().await.unwrap();
            tokio::spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(connection), service_fn(answer))
                    .with_upgrades(),
            );
        }
    });
    address
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let backend: Arc<dyn PodBackend> = Arc::new(FakePods);
    let path = request.uri().path().to_owned();
    Ok(match path.strip_prefix("/api/v1/namespaces/default/pods/web") {
        Some("/exec") => serve_exec(request, backend, "default", "web").await,
        Some("/attach") => serve_attach(request, backend, "default", "web").await,
        Some("/portforward") => serve_port_forward(request, backend, "default", "web").await,
        Some("") => object(pod()),
        _ => match path.as_str() {
            "/api" => object(json!({"kind": "APIVersions", "versions": ["v1"]})),
            "/apis" => object(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": []})),
            "/api/v1" => object(json!({
                "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "v1", "resources": [
                    {"name": "pods", "singularName": "pod", "namespaced": true, "kind": "Pod", "verbs": ["get", "list"]}
                ],
            })),
            _ => {
                let mut response = Response::new(Full::default());
                *response.status_mut() = http::StatusCode::NOT_FOUND;
                response
            }
        },
    })
}

fn object(value: Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(value.to_string()));
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
    response
}

fn pod() -> Value {
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {"name": "web", "namespace": "default", "uid": "0d9c1ad4-0000-4000-8000-000000000000"},
        "spec": {"containers": [{"name": "app", "image": "app", "stdin": true, "ports": [{"containerPort": ECHO}]}]},
        "status": {"phase": "Running"},
    })
}
