//! Serving an application over HTTP/1.1 and cleartext HTTP/2, and ending without losing a request.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{self, Next};
use axum::response::Response;
use http::{HeaderValue, Version, header};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// How long requests in flight may take to end before they are cut.
const DRAIN_LIMIT: Duration = Duration::from_secs(25);

/// Serves `app` until `stop` resolves.
///
/// After `stop` the application serves `shutdown_delay` longer, telling each caller to close (`connection: close`), as callers
/// hear of a pod's end only after the pod does. Then it stops accepting and waits for requests in flight.
pub async fn serve(
    listener: TcpListener,
    app: Router,
    stop: impl Future<Output = ()> + Send + 'static,
    shutdown_delay: Duration,
) -> io::Result<()> {
    let stopping = Arc::new(AtomicBool::new(false));
    let app = app.layer(middleware::from_fn_with_state(stopping.clone(), announce_close));
    let (closed, cut) = tokio::sync::oneshot::channel();
    let shutdown = async move {
        stop.await;
        stopping.store(true, Ordering::Relaxed);
        tokio::time::sleep(shutdown_delay).await;
        // The receiver is gone only when the server has ended by itself.
        let _ = closed.send(());
    };
    let server = axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>())
        .with_graceful_shutdown(shutdown);
    tokio::select! {
        result = server => result,
        () = async {
            match cut.await {
                Ok(()) => tokio::time::sleep(DRAIN_LIMIT).await,
                Err(_) => std::future::pending().await,
            }
        } => Ok(()),
    }
}

/// Listens at a Unix socket that everyone may connect to, in place of what an earlier process left there.
pub fn bind_socket(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

/// Hands what comes at a Unix socket to this process's own port.
pub async fn relay(listener: UnixListener, port: u16) {
    while let Ok((mut client, _)) = listener.accept().await {
        tokio::spawn(async move {
            // Either end may go at any time; the other sees it.
            if let Ok(mut own) = TcpStream::connect(("127.0.0.1", port)).await {
                let _moved = tokio::io::copy_bidirectional(&mut client, &mut own).await;
            }
        });
    }
}

/// Tells the long-lived streams of an application that it ends.
#[derive(Clone, Debug)]
pub struct Ending(watch::Receiver<bool>);

impl Ending {
    /// An application that goes on.
    pub fn never() -> Self {
        Self(watch::channel(false).1)
    }

    /// Begins `delay` after `stop` resolves.
    pub fn after(stop: impl Future<Output = ()> + Send + 'static, delay: Duration) -> Self {
        let (tell, hear) = watch::channel(false);
        tokio::spawn(async move {
            stop.await;
            tokio::time::sleep(delay).await;
            tell.send_replace(true);
            tell.closed().await;
        });
        Self(hear)
    }

    /// Resolves when streams are to end.
    pub async fn begun(&mut self) {
        if self.0.wait_for(|begun| *begun).await.is_err() {
            std::future::pending().await
        }
    }
}

/// Resolves at SIGTERM or SIGINT.
pub async fn terminated() {
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        // Without handlers the signals' default action ends the process, which is what the caller waits for.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

async fn announce_close(
    axum::extract::State(stopping): axum::extract::State<Arc<AtomicBool>>,
    request: Request,
    next: Next,
) -> Response {
    let http1 = request.version() <= Version::HTTP_11;
    let mut response = next.run(request).await;
    if http1 && stopping.load(Ordering::Relaxed) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn a_request_in_flight_at_the_end_is_answered_with_connection_close() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (entered, has_entered) = oneshot::channel::<()>();
        let (release, released) = oneshot::channel::<()>();
        let gates = Arc::new(std::sync::Mutex::new(Some((entered, released))));
        let app = Router::new().route(
            "/",
            get(move || async move {
                let (entered, released) = gates.lock().unwrap().take().unwrap();
                entered.send(()).unwrap();
                released.await.unwrap();
                "done"
            }),
        );
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(serve(
            listener,
            app,
            async move {
                let _ = stopped.await;
            },
            Duration::ZERO,
        ));

        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        has_entered.await.unwrap();
        stop.send(()).unwrap();
        // The listener closes while the request waits.
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
        release.send(()).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains("connection: close"), "{answer}");
        assert!(answer.ends_with("done"), "{answer}");
        server.await.unwrap().unwrap();
    }
}
