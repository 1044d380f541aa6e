//! Endpoints that can't be connected to: what is counted of them and what logs tell.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::duo::{Backend, Duo, KINDS, localities, route, say};
use crate::proxies::{address, merged};

/// Who isn't let in by then is kept out.
const FULL: Duration = Duration::from_millis(300);

/// A port that answers nobody: its queue is full.
struct Silent {
    port: u16,
    listener: TcpListener,
    _queued: Vec<TcpStream>,
}

impl Silent {
    async fn start() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let listener = socket.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let mut queued = Vec::new();
        while let Ok(connected) = tokio::time::timeout(FULL, TcpStream::connect(address)).await {
            queued.push(connected.unwrap());
        }
        Self { port: address.port(), listener, _queued: queued }
    }

    /// Lets everybody in after a while, and answers. Who has been kept out asks again a second after the first time.
    async fn open_up(self) {
        tokio::time::sleep(2 * FULL).await;
        while let Ok((stream, _)) = self.listener.accept().await {
            tokio::spawn(say(stream, "there"));
        }
    }
}

fn endpoint(port: u16) -> Value {
    json!({ "endpoint": { "address": address(port) } })
}

fn cluster(name: &str, priorities: &[Value], more: Value) -> Value {
    let of =
        |(priority, endpoint): (usize, &Value)| json!({ "priority": priority, "lb_endpoints": [endpoint] });
    let all = merged(json!({ "connect_timeout": "0.3s" }), more);
    localities(name, priorities.iter().enumerate().map(of).collect(), all)
}

/// Tries that go to another priority each.
fn elsewhere(on: &str) -> Value {
    json!({ "retry_policy": {
        "retry_on": on, "num_retries": 1, "retry_back_off": { "base_interval": "0.001s", "max_interval": "0.002s" },
        "retry_priority": { "name": "envoy.retry_priorities.previous_priorities", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig",
            "update_frequency": 1,
        } },
    } })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_connects_are_told_and_counted_the_same() {
    let backend = Backend::start("there").await;
    let silent = Silent::start().await;
    let (there, nobody, silence) = (backend.endpoint(json!({})), endpoint(1), endpoint(silent.port));
    let tls = json!({ "transport_socket": { "name": "envoy.transport_sockets.tls", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
    } } });
    let http2 = json!({ "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": { "http2_protocol_options": {} },
    } } });
    let clusters = [
        cluster("refused", std::slice::from_ref(&nobody), json!({})),
        cluster("h2-refused", std::slice::from_ref(&nobody), http2.clone()),
        cluster("silent", std::slice::from_ref(&silence), json!({})),
        cluster("per-try-silent", std::slice::from_ref(&silence), json!({})),
        cluster("h2-silent", std::slice::from_ref(&silence), http2.clone()),
        cluster("no-tls", std::slice::from_ref(&there), tls.clone()),
        cluster("h2-no-tls", std::slice::from_ref(&there), merged(tls.clone(), http2.clone())),
        cluster("again", std::slice::from_ref(&nobody), json!({})),
        cluster("then-there", &[nobody.clone(), there.clone()], json!({})),
        cluster("elsewhere-silent", &[silence.clone(), there.clone()], json!({})),
        cluster("broken-then-refused", &[there.clone(), nobody.clone()], json!({})),
        cluster("tcp-refused", std::slice::from_ref(&nobody), json!({})),
        cluster("tcp-silent", std::slice::from_ref(&silence), json!({})),
        cluster("tcp-no-tls", std::slice::from_ref(&there), tls.clone()),
        cluster("tcp-thrice", std::slice::from_ref(&nobody), json!({})),
    ];
    let routes = json!([
        route("refused", json!({})),
        route("h2-refused", json!({})),
        route("silent", json!({})),
        // A try's clock runs from when it has a connection.
        route(
            "per-try-silent",
            json!({ "retry_policy": { "retry_on": "reset", "num_retries": 1, "per_try_timeout": "0.1s" } })
        ),
        route("h2-silent", json!({})),
        route("no-tls", json!({})),
        route("h2-no-tls", json!({})),
        route("again", json!({ "retry_policy": { "retry_on": "connect-failure", "num_retries": 2 } })),
        route("then-there", elsewhere("connect-failure")),
        route("elsewhere-silent", elsewhere("connect-failure")),
        route("broken-then-refused", elsewhere("reset")),
    ]);
    let tcp = [
        ("tcp-refused", json!({ "cluster": "tcp-refused" })),
        ("tcp-silent", json!({ "cluster": "tcp-silent" })),
        ("tcp-no-tls", json!({ "cluster": "tcp-no-tls" })),
        ("tcp-thrice", json!({ "cluster": "tcp-thrice", "max_connect_attempts": 3 })),
    ];
    let duo = Duo::start(routes, &clusters, &tcp).await;
    let mut seen = [String::new(), String::new()];
    for (kind, seen) in seen.iter_mut().enumerate() {
        for name in clusters.iter().filter_map(|cluster| cluster["name"].as_str()) {
            if name.starts_with("tcp-") {
                let stream = TcpStream::connect(duo.address(kind, name)).await.unwrap();
                let mut wire = crate::wire::Wire::new(stream);
                *seen += &format!("{name}: {}\n", wire.ended().await);
                duo.reaches(kind, &format!("cluster.{name}.upstream_cx_active"), 0).await;
            } else {
                let status = if name.starts_with("broken") { "0" } else { "200" };
                let reply = duo.get(kind, &format!("/{name}"), &[("x-status", status)]).await;
                *seen += &format!("{name}: {} {}\n", reply.status, reply.body);
            }
            // Nothing else is under way.
            let prefix = format!("cluster.{name}.upstream_");
            for (stat, value) in
                duo.stats(kind, &prefix, &["_ms", "bytes", "rq_time", "rq_2", "rq_5", "rq_per_cx"]).await
            {
                *seen += &format!("  {stat} {value}\n");
            }
            let page = duo.page(kind, "/clusters").await;
            let prefix = format!("{name}::127.0.0.1:");
            let told = ["cx_connect_fail", "cx_total", "rq_error", "rq_success", "rq_total", "rq_timeout"];
            let lines = page.lines().filter_map(|line| line.strip_prefix(&prefix));
            let lines = lines.filter(|line| told.iter().any(|stat| line.contains(&format!("::{stat}::"))));
            lines.for_each(|line| *seen += &format!("  {line}\n"));
        }
        let log = duo.log(kind).await;
        for line in log.lines() {
            // After the ends of the client's connection.
            *seen += &format!("{}\n", line.split_once(' ').map_or(line, |(_, rest)| rest));
        }
    }
    assert!(seen[0] == seen[1], "--- {}\n{}\n--- {}\n{}", KINDS[0], seen[0], KINDS[1], seen[1]);
    assert!(seen[0].contains("remote=- local=- host=127.0.0.1:1 "), "{}", seen[0]);
}

/// A try's clocks run from when it has a connection, however long that takes; those of the whole request do not wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tries_begin_with_their_connection() {
    let tries =
        |more: Value| json!({ "retry_policy": merged(json!({ "retry_on": "5xx", "num_retries": 1 }), more) });
    let hedges = json!({ "hedge_policy": { "hedge_on_per_try_timeout": true } });
    let ways = [
        ("limited", tries(json!({ "per_try_timeout": "0.4s" }))),
        ("not-idle", tries(json!({ "per_try_idle_timeout": "0.4s" }))),
        ("hedged", merged(tries(json!({ "per_try_timeout": "0.4s" })), hedges)),
        ("in-all", merged(tries(json!({ "per_try_timeout": "0.4s" })), json!({ "timeout": "0.7s" }))),
    ];
    let (mut clusters, mut routes, mut silent) = (Vec::new(), Vec::new(), Vec::new());
    for kind in KINDS {
        for (name, action) in &ways {
            let name = format!("{kind}-{name}");
            silent.push(Silent::start().await);
            let port = silent.last().unwrap().port;
            clusters.push(cluster(&name, &[endpoint(port)], json!({ "connect_timeout": "3s" })));
            routes.push(route(&name, action.clone()));
        }
    }
    let duo = Duo::start(json!(routes), &clusters, &[]).await;
    let mut silent = silent.into_iter();
    let mut seen = [String::new(), String::new()];
    for (kind, seen) in seen.iter_mut().enumerate() {
        for (name, _) in &ways {
            tokio::spawn(silent.next().unwrap().open_up());
            let cluster = format!("{}-{name}", KINDS[kind]);
            let reply = duo.get(kind, &format!("/{cluster}"), &[]).await;
            // Envoy goes on opening a connection that was given up, for the next request.
            let of_connections = if *name == "in-all" { "cx_" } else { "_ms" };
            let except = ["_ms", "bytes", "rq_time", "rq_per_cx", of_connections];
            let stats = duo.stats(kind, &format!("cluster.{cluster}.upstream_"), &except).await;
            *seen += &format!("{name}: {} {} {stats:?}\n", reply.status, reply.body);
        }
    }
    assert!(seen[0] == seen[1], "--- {}\n{}\n--- {}\n{}", KINDS[0], seen[0], KINDS[1], seen[1]);
    assert!(seen[0].contains("limited: 200 there") && seen[0].contains("in-all: 504"), "{}", seen[0]);
}
