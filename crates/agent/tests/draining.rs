//! What becomes of open connections when the listener they came by changes: Envoy and ours side by side, with a drain time of three
//! seconds, the listeners coming from a file.

#[path = "../../xds/tests/support/envoy.rs"]
mod envoy;

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{Instant, timeout};

const DRAIN: Duration = Duration::from_secs(3);
/// Nothing takes longer than this.
const LIMIT: Duration = Duration::from_secs(20);

struct Proxy(Child);

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Echoes what does not look like HTTP; answers GETs, `/drip` without end.
async fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut bytes = [0; 4096];
                loop {
                    let n = stream.read(&mut bytes).await.unwrap_or(0);
                    if n == 0 {
                        return;
                    }
                    let said = String::from_utf8_lossy(&bytes[..n]).into_owned();
                    if said.starts_with("GET /drip") {
                        stream
                            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
                            .await
                            .unwrap();
                        while stream.write_all(b"drip").await.is_ok() {
                            tokio::time::sleep(Duration::from_millis(100)).await;
                        }
                        return;
                    }
                    let answer = if said.starts_with("GET ") {
                        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_vec()
                    } else {
                        bytes[..n].to_vec()
                    };
                    if stream.write_all(&answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

fn chain(last: u8, http: bool, stat_prefix: &str) -> Value {
    let direct = if stat_prefix == "after" { 404 } else { 403 };
    let config = if http {
        json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": stat_prefix,
            "route_config": { "validate_clusters": false, "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [
                { "match": { "path": "/direct" }, "direct_response": { "status": direct } },
                { "match": { "path": "/nowhere" }, "route": { "cluster": "nobody" } },
                { "match": { "prefix": "/" }, "route": { "cluster": "up", "timeout": "0s" } }] }] },
            "http_filters": [{ "name": "envoy.filters.http.router", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" } }],
        })
    } else {
        json!({ "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": stat_prefix, "cluster": "up" })
    };
    let name = if http {
        "envoy.filters.network.http_connection_manager"
    } else {
        "envoy.filters.network.tcp_proxy"
    };
    json!({
        "filter_chain_match": { "source_prefix_ranges": [{ "address_prefix": format!("127.0.0.{last}"), "prefix_len": 32 }] },
        "filters": [{ "name": name, "typed_config": config }],
    })
}

/// Sources 2 (TCP) and 3 (HTTP) have chains that stay; those of 4 and 5 are named by `changing`.
fn listener(port: u16, changing: &str) -> Value {
    json!({
        "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
        "name": "web", "address": { "socket_address": { "address": "127.0.0.1", "port_value": port } },
        "filter_chains": [chain(2, false, "stays"), chain(3, true, "stays"), chain(4, false, changing), chain(5, true, changing)],
    })
}

fn write(file: &Path, version: &str, listeners: &[Value]) {
    let new = file.with_extension("new");
    std::fs::write(&new, json!({ "version_info": version, "resources": listeners }).to_string()).unwrap();
    std::fs::rename(&new, file).unwrap();
}

fn start(envoy: bool, folder: &Path, upstream: SocketAddr) -> Proxy {
    let source =
        json!({ "path_config_source": { "path": folder.join("lds.json") }, "resource_api_version": "V3" });
    let boot = json!({
        "node": { "id": "draining", "cluster": "tests" },
        "dynamic_resources": { "lds_config": source },
        "static_resources": { "clusters": [{ "name": "up", "type": "STATIC", "connect_timeout": "2s", "load_assignment": {
            "cluster_name": "up", "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": { "socket_address": {
                "address": "127.0.0.1", "port_value": upstream.port() } } } }] }] } }] },
    });
    let file = folder.join("boot.json");
    std::fs::write(&file, boot.to_string()).unwrap();
    let mut command = if envoy {
        let mut command = Command::new(envoy::envoy());
        // As in pods.
        command.args(["--disable-hot-restart", "--drain-strategy", "immediate", "-l", "error"]);
        command
    } else {
        Command::new(env!("CARGO_BIN_EXE_lateen-proxy"))
    };
    let drain = DRAIN.as_secs().to_string();
    command.arg("-c").arg(&file).args(["--concurrency", "1", "--drain-time-s", &drain]);
    Proxy(command.stdout(Stdio::null()).spawn().unwrap())
}

async fn connect(last: u8, port: u16) -> TcpStream {
    let began = Instant::now();
    loop {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 0, 0, last], 0))).unwrap();
        match socket.connect(SocketAddr::from(([127, 0, 0, 1], port))).await {
            Ok(stream) => return stream,
            Err(error) => assert!(began.elapsed() < LIMIT, "nobody listens on {port}: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Sends and tells what came back: the echo, or status and `connection` header, or that it is closed.
async fn ask(stream: &mut TcpStream, text: &str) -> String {
    let mut bytes = [0; 4096];
    if stream.write_all(text.as_bytes()).await.is_err() {
        return "closed".to_owned();
    }
    match timeout(LIMIT, stream.read(&mut bytes)).await.expect("an answer or the end") {
        Ok(0) | Err(_) => "closed".to_owned(),
        Ok(n) => {
            let said = String::from_utf8_lossy(&bytes[..n]).into_owned();
            let closes = if said.contains("connection: close") { ", connection: close" } else { "" };
            format!("{}{closes}", said.lines().next().unwrap_or_default())
        }
    }
}

/// Whether the connection ends, and when after `since`.
async fn end(mut stream: TcpStream, since: Instant) -> &'static str {
    let until_closed = async {
        let mut bytes = [0; 4096];
        while stream.read(&mut bytes).await.is_ok_and(|n| n > 0) {}
    };
    if timeout(DRAIN + Duration::from_secs(4), until_closed).await.is_err() {
        return "stays open";
    }
    match since.elapsed() {
        early if early < DRAIN - Duration::from_millis(200) => "ends early",
        late if late > DRAIN + Duration::from_secs(2) => "ends late",
        _ => "ends with the drain time",
    }
}

const DIRECT: &str = "GET /direct HTTP/1.1\r\nhost: a\r\n\r\n";

/// When what was written has taken the place of what was before: one looks at the file at once, the other within a second.
async fn in_force(port: u16) -> Instant {
    let began = Instant::now();
    loop {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 0, 0, 5], 0))).unwrap();
        let Ok(mut new) = socket.connect(SocketAddr::from(([127, 0, 0, 1], port))).await else {
            return Instant::now();
        };
        if !ask(&mut new, DIRECT).await.starts_with("HTTP/1.1 403") {
            return Instant::now();
        }
        assert!(began.elapsed() < LIMIT, "the new configuration is not in force");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

const GET: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

/// Opens connections of all kinds, changes the listener, and tells what becomes of them.
async fn observe(envoy: bool, remove: bool) -> String {
    let folder = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let file = folder.path().join("lds.json");
    write(&file, "1", &[listener(port, "before")]);
    let _proxy = start(envoy, folder.path(), upstream().await);

    let mut tcp_stays = connect(2, port).await;
    let mut http_stays = connect(3, port).await;
    let (mut tcp, mut tcp_quiet) = (connect(4, port).await, connect(4, port).await);
    let (mut http, mut http_idle, mut http_busy) =
        (connect(5, port).await, connect(5, port).await, connect(5, port).await);
    // These have an answer of the proxy's own.
    let (mut direct, mut failed) = (connect(5, port).await, connect(5, port).await);
    for stream in [&mut tcp_stays, &mut tcp, &mut tcp_quiet] {
        assert_eq!(ask(stream, "hello").await, "hello");
    }
    for stream in [&mut http_stays, &mut http, &mut http_idle, &mut direct, &mut failed] {
        assert_eq!(ask(stream, GET).await, "HTTP/1.1 200 OK");
    }
    assert_eq!(ask(&mut http_busy, "GET /drip HTTP/1.1\r\nhost: a\r\n\r\n").await, "HTTP/1.1 200 OK");

    let next: Vec<Value> = if remove { Vec::new() } else { vec![listener(port, "after")] };
    write(&file, "2", &next);
    let changed = in_force(port).await;
    // No connection has ended yet.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut seen = vec![
        format!("tcp: {}", ask(&mut tcp, "still").await),
        format!("http: {}", ask(&mut http, GET).await),
        format!("direct answer: {}", ask(&mut direct, DIRECT).await),
        format!("failure: {}", ask(&mut failed, "GET /nowhere HTTP/1.1\r\nhost: a\r\n\r\n").await),
    ];
    let new = TcpStream::connect(("127.0.0.1", port)).await.is_ok();
    seen.push(format!("new connections: {}", if new { "accepted" } else { "refused" }));
    let (tcp, quiet, idle, busy) = tokio::join!(
        end(tcp, changed),
        end(tcp_quiet, changed),
        end(http_idle, changed),
        end(http_busy, changed)
    );
    let soon =
        async |stream: &mut TcpStream| timeout(Duration::from_millis(10), stream.read(&mut [0; 9])).await;
    for (name, stream) in [("direct answer", &mut direct), ("failure", &mut failed)] {
        let ended = soon(stream).await.is_ok_and(|read| read.is_ok_and(|n| n == 0));
        seen.push(format!("{name} {}", if ended { "has ended" } else { "stays open" }));
    }
    seen.push(format!("tcp {tcp}"));
    seen.push(format!("quiet tcp {quiet}"));
    seen.push(format!("idle http {idle}"));
    seen.push(format!("busy http {busy}"));
    if !remove {
        seen.push(format!("tcp of a chain that stays: {}", ask(&mut tcp_stays, "still").await));
        seen.push(format!("http of a chain that stays: {}", ask(&mut http_stays, GET).await));
    }
    seen.join("\n")
}

async fn same(remove: bool) {
    let (envoy, lateen) = tokio::join!(observe(true, remove), observe(false, remove));
    assert_eq!(envoy, lateen, "\n--- Envoy\n{envoy}\n--- Lateen\n{lateen}");
    assert!(envoy.contains("busy http ends with the drain time"), "{envoy}");
    assert!(envoy.contains("\ntcp ends with the drain time"), "{envoy}");
}

#[tokio::test]
async fn connections_of_a_changed_filter_chain_fare_the_same() {
    same(false).await;
}

#[tokio::test]
async fn connections_of_a_removed_listener_fare_the_same() {
    same(true).await;
}
