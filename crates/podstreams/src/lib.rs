//! exec, attach, logs and port-forward as kubectl speaks them: SPDY/3.1 and WebSocket.
//!
//! The API server terminates the protocols here; whoever runs the pods implements [`PodBackend`].
//!
//! | request | transport | subprotocol |
//! |---|---|---|
//! | exec, attach | WebSocket | `v5.channel.k8s.io`, `v4.channel.k8s.io`, `v4.base64.channel.k8s.io` |
//! | exec, attach | SPDY/3.1 | `v4.channel.k8s.io` |
//! | port-forward | WebSocket | `v4.channel.k8s.io`, `v4.base64.channel.k8s.io` |
//! | port-forward | SPDY/3.1 | `portforward.k8s.io` |
//! | port-forward | SPDY/3.1 inside WebSocket | `SPDY/3.1+portforward.k8s.io` |
//!
//! The server must serve HTTP/1.1 with upgrades (`serve_connection_with_upgrades`), and may hand over either method
//! (kubectl upgrades by GET for WebSocket and by POST for SPDY).

use std::{future::Future, pin::Pin};

use bytes::Bytes;
use futures::stream::BoxStream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};

mod attach;
mod channels;
mod exec_spdy;
mod exec_websocket;
mod forward_spdy;
mod forward_websocket;
mod query;
mod serve;
mod spdy;
mod status;
mod tunnel;
mod upgrade;

pub use attach::{AttachedInput, attach_to_log};
pub use query::{ExecQuery, parse_ports};
pub use serve::{error_response, serve_attach, serve_exec, serve_port_forward};

/// A boxed future, so that [`PodBackend`] can be used as `dyn`.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A byte stream in both directions (a connection to a port inside a pod).
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// Which container is meant. `container` empty means the pod's default one
/// (annotation `kubectl.kubernetes.io/default-container`, else the first).
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct ContainerRef {
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Name of the container, or empty for the default one.
    pub container: String,
}

/// What `exec` is asked to run.
#[derive(Debug, Clone, Default)]
pub struct ExecRequest {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Allocate a pseudo terminal (stdout and stderr are then one stream).
    pub tty: bool,
    /// The client will send standard input.
    pub stdin: bool,
}

/// A terminal's size in character cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
pub struct TerminalSize {
    /// Columns.
    #[serde(rename = "Width")]
    pub width: u16,
    /// Rows.
    #[serde(rename = "Height")]
    pub height: u16,
}

/// Output of a running command.
#[derive(Debug, Clone)]
pub enum Output {
    /// Bytes of standard output.
    Stdout(Bytes),
    /// Bytes of standard error.
    Stderr(Bytes),
}

/// A running command. Dropping it kills the command.
pub struct ExecSession {
    /// Standard input; dropping the sender closes it.
    pub stdin: mpsc::Sender<Bytes>,
    /// Output in the order produced; ends when both streams are closed.
    pub output: mpsc::Receiver<Output>,
    /// New terminal sizes.
    pub resize: mpsc::Sender<TerminalSize>,
    /// Exit code once the command has ended (128 + signal when killed by one).
    pub exit: oneshot::Receiver<i32>,
}

/// Which part of a log is wanted (the query of the `log` subresource).
#[derive(Debug, Clone, Default)]
pub struct LogOptions {
    /// Go on as lines arrive.
    pub follow: bool,
    /// The instance before the last restart.
    pub previous: bool,
    /// Prefix lines with RFC 3339 time stamps.
    pub timestamps: bool,
    /// Only the last lines.
    pub tail_lines: Option<usize>,
    /// Only lines younger than this, in seconds.
    pub since_seconds: Option<u64>,
    /// Stop after this many bytes.
    pub limit_bytes: Option<usize>,
}

/// Why a pod operation could not be started.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// No such pod or container (404).
    #[error("{0}")]
    NotFound(String),
    /// The container is not running, or the request makes no sense for it (400).
    #[error("{0}")]
    BadRequest(String),
    /// Anything else (500).
    #[error("{0}")]
    Internal(String),
}

/// What runs the pods. Implemented by `podruntime`; tests use a small fake.
pub trait PodBackend: Send + Sync {
    /// Starts a command inside a container.
    fn exec(
        &self,
        target: ContainerRef,
        request: ExecRequest,
    ) -> BoxFuture<'_, Result<ExecSession, PodError>>;
    /// Joins the container's own process: its output from now on, and its standard input and terminal if it has them.
    ///
    /// The default follows the log, without input, which is right for containers that have no `stdin`.
    fn attach(
        &self,
        target: ContainerRef,
        _request: ExecRequest,
    ) -> BoxFuture<'_, Result<ExecSession, PodError>> {
        Box::pin(async move {
            let options = LogOptions { follow: true, ..LogOptions::default() };
            Ok(attach_to_log(self.logs(target, options).await?, AttachedInput::default()))
        })
    }
    /// The container's log as chunks of bytes.
    fn logs(
        &self,
        target: ContainerRef,
        options: LogOptions,
    ) -> BoxFuture<'_, Result<BoxStream<'static, Result<Bytes, PodError>>, PodError>>;
    /// Connects to `127.0.0.1:port` inside the pod's network namespace.
    fn dial(&self, namespace: &str, pod: &str, port: u16)
    -> BoxFuture<'_, Result<Box<dyn Duplex>, PodError>>;
}
