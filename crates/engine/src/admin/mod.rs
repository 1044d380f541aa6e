//! The admin service, in Envoy's shapes, on the control thread. Meant for loopback.
//! <https://www.envoyproxy.io/docs/envoy/v1.40.0/operations/admin>

mod certs;
mod clusters;
mod config_dump;
mod listeners;
mod pages;

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};

use crate::control::Command;
use crate::engine::EngineConfig;

/// Admin connections at a time; more wait in the socket's queue.
const MOST_CONNECTIONS: usize = 64;

/// How long a connection may say nothing.
const SILENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// What the service works with. Holding no strong sender, it does not keep the engine alive.
pub(crate) struct Admin {
    pub(crate) commands: mpsc::WeakSender<Command>,
    pub(crate) config: Arc<EngineConfig>,
    pub(crate) ready: watch::Receiver<bool>,
}

/// Serves until the runtime ends.
pub(crate) async fn serve(
    socket: std::net::TcpListener,
    commands: mpsc::WeakSender<Command>,
    config: Arc<EngineConfig>,
    ready: watch::Receiver<bool>,
) {
    let listener = match TcpListener::from_std(socket) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(%error, "admin service: cannot use its socket");
            return;
        }
    };
    let admin = Arc::new(Admin { commands, config, ready });
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            continue;
        };
        let admin = admin.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let admin = admin.clone();
                async move { Ok::<_, Infallible>(pages::answer(&admin, request).await) }
            });
            // A client that goes away is no concern.
            // One that says nothing gives its place back.
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(SILENCE);
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
            drop(place);
        });
    }
}

/// A reply of the service.
pub(crate) type Reply = Response<Full<Bytes>>;

/// A reply with a content type.
pub(crate) fn reply(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, max-age=0"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::SERVER, HeaderValue::from_static("envoy"));
    response
}

/// Plain text.
pub(crate) fn text(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    reply(status, "text/plain; charset=UTF-8", body)
}

/// JSON, indented by one space as Envoy's.
pub(crate) fn json(value: &serde_json::Value) -> Reply {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b" ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    match serde::Serialize::serialize(value, &mut serializer) {
        Ok(()) => reply(StatusCode::OK, "application/json", out),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

/// The query's parameters.
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn of(request: &Request<Incoming>) -> Self {
        Self::parse(request.uri().query().unwrap_or_default())
    }

    fn parse(query: &str) -> Self {
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        let pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        Self(pairs.map(|(name, value)| (decode(name), decode(value))).collect())
    }

    /// A parameter's value; a parameter without one is the empty string.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// All parameters.
    pub(crate) fn pairs(&self) -> &[(String, String)] {
        &self.0
    }
}

/// Undoes percent-encoding; what is not an escape stays.
fn decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let escape = (byte == b'%').then(|| bytes.as_slice_str()).flatten();
        match (byte, escape) {
            (b'+', _) => out.push(b' '),
            (_, Some(value)) => {
                out.push(value);
                bytes.nth(1);
            }
            _ => out.push(byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Reads an escape's two digits ahead.
trait EscapeAhead {
    fn as_slice_str(&self) -> Option<u8>;
}

impl EscapeAhead for std::str::Bytes<'_> {
    fn as_slice_str(&self) -> Option<u8> {
        let mut ahead = self.clone();
        let digits = [ahead.next()?, ahead.next()?];
        u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()
    }
}

/// Whether the method may change something (Envoy answers 405 to others).
pub(crate) fn is_post(method: &Method) -> bool {
    method == Method::POST
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse("filter=cluster%5C.a+b&usedonly&x=%zz");
        assert_eq!(query.get("filter"), Some("cluster\\.a b"));
        assert_eq!(query.get("usedonly"), Some(""));
        assert_eq!(query.get("x"), Some("%zz"));
        assert_eq!(query.get("y"), None);
    }
}
