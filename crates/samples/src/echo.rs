//! `echo`: describes each request as JSON, which shows where it arrived and what the mesh did to it. WebSockets and the
//! gRPC service of [`crate::echo_streams`] are answered on the same port.

use std::net::SocketAddr;

use axum::Router;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Json, Response};
use http_body_util::BodyExt;
use serde_json::{Map, Value, json};
use tokio::net::{TcpListener, TcpStream};

use crate::echo_streams;
use crate::serve::Ending;

/// Who answers.
#[derive(Clone, Debug, Default)]
pub struct Instance {
    /// The pod, from `POD_NAME`, else the host name.
    pub instance: String,
    /// From `VERSION`.
    pub version: String,
}

impl Instance {
    /// Reads `POD_NAME` (else `HOSTNAME`) and `VERSION`.
    pub fn from_env() -> Self {
        let var = |name| std::env::var(name).ok().filter(|value: &String| !value.is_empty());
        let hostname = || std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Self {
            instance: var("POD_NAME")
                .or_else(|| var("HOSTNAME"))
                .unwrap_or_else(|| hostname().trim().to_owned()),
            version: var("VERSION").unwrap_or_default(),
        }
    }
}

/// The application; listens on port 8080. Its streams end when `ending` begins.
pub fn app(instance: Instance, ending: Ending) -> Router {
    let grpc = echo_streams::grpc(instance.instance.clone(), ending.clone());
    let own = Router::new().fallback(answer).with_state((instance, ending));
    // gRPC's own "no such method" would answer every other request too.
    grpc.reset_fallback().merge(own)
}

async fn answer(State((who, ending)): State<(Instance, Ending)>, request: Request) -> Response {
    if echo_streams::wants_websocket(&request) {
        return echo_streams::websocket(request, &who.instance, ending);
    }
    describe(who, request).await.into_response()
}

async fn describe(who: Instance, request: Request) -> Json<Value> {
    let (parts, body) = request.into_parts();
    let mut trailers = Value::Null;
    let mut length = 0_u64;
    let mut body = body;
    while let Some(Ok(frame)) = body.frame().await {
        if let Some(data) = frame.data_ref() {
            length += data.len() as u64;
        } else if let Some(map) = frame.trailers_ref() {
            trailers = Value::Object(headers(map));
        }
    }
    let host = parts.uri.authority().map(|authority| authority.to_string());
    let host = host.or_else(|| Some(parts.headers.get("host")?.to_str().ok()?.to_owned()));
    Json(json!({
        "instance": who.instance,
        "version": who.version,
        "protocol": format!("{:?}", parts.version),
        "method": parts.method.as_str(),
        "path": parts.uri.path_and_query().map_or("/", |path| path.as_str()),
        "host": host,
        "headers": headers(&parts.headers),
        "bodyBytes": length,
        "trailers": trailers,
    }))
}

fn headers(map: &http::HeaderMap) -> Map<String, Value> {
    let mut out = Map::new();
    for name in map.keys() {
        let values: Vec<_> =
            map.get_all(name).iter().map(|v| String::from_utf8_lossy(v.as_bytes())).collect();
        out.insert(name.to_string(), Value::String(values.join(",")));
    }
    out
}

/// Echoes the bytes of every connection until its peer closes.
pub async fn serve_tcp(listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => drop(tokio::spawn(echo_bytes(stream, peer))),
            Err(error) => eprintln!("cannot accept a TCP connection: {error}"),
        }
    }
}

async fn echo_bytes(mut stream: TcpStream, peer: SocketAddr) {
    let (mut read, mut write) = stream.split();
    if let Err(error) = tokio::io::copy(&mut read, &mut write).await {
        eprintln!("TCP connection from {peer} ended: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tower::ServiceExt;

    #[tokio::test]
    async fn describes_the_request() {
        let who = Instance { instance: "pod-1".into(), version: "v2".into() };
        let request = http::Request::post("/a?b=c")
            .header("host", "echo.default")
            .header("x-one", "1")
            .header("x-one", "2")
            .body(axum::body::Body::from("12345"))
            .unwrap();
        let response = app(who, Ending::never()).oneshot(request).await.unwrap();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let json: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(json["instance"], "pod-1");
        assert_eq!(json["version"], "v2");
        assert_eq!(json["method"], "POST");
        assert_eq!(json["path"], "/a?b=c");
        assert_eq!(json["host"], "echo.default");
        assert_eq!(json["headers"]["x-one"], "1,2");
        assert_eq!(json["bodyBytes"], 5);
    }

    #[tokio::test]
    async fn tcp_bytes_come_back() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let server = tokio::spawn(serve_tcp(listener));
        client.write_all(b"ping").await.unwrap();
        let mut answer = [0; 4];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"ping");
        server.abort();
    }
}
