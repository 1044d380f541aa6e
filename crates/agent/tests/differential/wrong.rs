//! Wrong resources that come over xDS all the same, beside right ones: which are refused, that all others are used, that a proxy keeps
//! what it had of one that becomes wrong, and that it takes what has been mended.

#[path = "../../../xds/tests/support/mod.rs"]
mod management;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use lateen_xds::json::JsonCodec;
use lateen_xds::server::{AdsServer, Event, Hello, Opened, Snapshot, Source};
use lateen_xds::type_urls::{CLUSTER, ENDPOINT, LISTENER, ROUTE};
use serde_json::{Value, json};
use tokio::sync::watch;

use self::management::{OfType, bootstrap, endpoints, serve, snapshot};
use crate::duo::{Backend, KINDS, get};
use crate::ports::free_port;
use crate::proxies::{PROXY, address, envoy, merge, router};

const LIMIT: Duration = Duration::from_secs(40);

/// What every client is given.
struct Given(watch::Sender<Arc<Snapshot>>);

impl Source for Given {
    fn open(&self, _hello: Hello) -> BoxFuture<'_, Result<Opened, tonic::Status>> {
        let snapshots = self.0.subscribe();
        Box::pin(async { Ok(Opened { snapshots, guard: Box::new(()) }) })
    }

    fn observe(&self, _event: &Event<'_>) {}
}

/// A control plane and a proxy that follows it.
struct Followed {
    given: Arc<Given>,
    ads: AdsServer<Given>,
    codec: JsonCodec,
    proxy: Child,
    _folder: tempfile::TempDir,
}

impl Drop for Followed {
    fn drop(&mut self) {
        let _gone = self.proxy.kill();
        let _reaped = self.proxy.wait();
    }
}

fn start(kind: usize, server: SocketAddr, folder: &Path) -> Child {
    let mut bootstrap = bootstrap("DELTA_GRPC", server);
    bootstrap["admin"] = json!({ "address": address(0) });
    let file = folder.join("bootstrap.json");
    std::fs::write(&file, bootstrap.to_string()).unwrap();
    let mut command = if kind == 0 {
        let mut command = Command::new(envoy());
        command.arg("--disable-hot-restart");
        command
    } else {
        Command::new(PROXY)
    };
    command.args(["--concurrency", "1", "-c"]).arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap()
}

impl Followed {
    async fn start(kind: usize) -> Self {
        let given = Arc::new(Given(watch::Sender::new(Arc::new(Snapshot::new(0, Instant::now())))));
        let ads = AdsServer::new(given.clone());
        let folder = tempfile::tempdir().unwrap();
        let proxy = start(kind, serve(ads.clone()).await, folder.path());
        Self { given, ads, codec: JsonCodec::new().unwrap(), proxy, _folder: folder }
    }

    fn give(&self, content: &[OfType]) {
        self.given.0.send_replace(snapshot(&self.codec, content));
    }

    /// Names of what is refused, clusters, listeners and routes.
    fn refused(&self) -> [BTreeSet<String>; 3] {
        let connections = self.ads.connections().list();
        [CLUSTER, LISTENER, ROUTE].map(|type_url| {
            let status = connections.first().and_then(|connection| connection.types.get(type_url));
            status.into_iter().flat_map(|status| &status.rejected).map(ToString::to_string).collect()
        })
    }

    /// Waits until these are refused, and nothing else.
    async fn refuses(&self, kind: usize, expected: [&[&str]; 3]) {
        let expected = expected.map(|names| names.iter().map(ToString::to_string).collect::<BTreeSet<_>>());
        let began = Instant::now();
        while self.refused() != expected {
            assert!(began.elapsed() < LIMIT, "{}: {:?}, not {expected:?}", KINDS[kind], self.refused());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Waits until a port answers so.
async fn answers(kind: usize, port: u16, path: &str, expected: (u16, &str)) {
    let began = Instant::now();
    loop {
        let reply = match std::net::TcpStream::connect(("127.0.0.1", port)) {
            Ok(_) => get(([127, 0, 0, 1], port).into(), path, &[]).await,
            Err(_) => Default::default(),
        };
        if (reply.status, &*reply.body) == expected {
            return;
        }
        assert!(began.elapsed() < LIMIT, "{} {path}: {reply:?}, not {expected:?}", KINDS[kind]);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn cluster(name: &str, more: Value) -> Value {
    let mut cluster = json!({ "name": name, "type": "EDS", "connect_timeout": "1s",
        "eds_cluster_config": { "eds_config": { "ads": {}, "resource_api_version": "V3" } } });
    merge(&mut cluster, more);
    cluster
}

/// A listener with the routes of its name.
fn listener(name: &str, port: u16) -> Value {
    let source = json!({ "ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s" });
    with_routes(name, port, json!({ "rds": { "route_config_name": name, "config_source": source } }))
}

fn with_routes(name: &str, port: u16, routes: Value) -> Value {
    let mut manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name, "http_filters": [router()],
    });
    merge(&mut manager, routes);
    json!({ "name": name, "address": address(port), "filter_chains": [{ "filters": [{ "name": "hcm", "typed_config": manager }] }] })
}

fn routes(name: &str, routes: Value) -> Value {
    json!({ "name": name, "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": routes }] })
}

fn to(cluster: &str, more: Value) -> Value {
    let mut action = json!({ "cluster": cluster });
    merge(&mut action, more);
    json!([{ "match": { "prefix": "/" }, "route": action }])
}

/// A route configuration that is wrong in the way its name says.
fn wrong_routes() -> Vec<Value> {
    let weights = json!([{ "match": { "prefix": "/" }, "route": { "weighted_clusters": { "clusters": [
        { "name": "good", "weight": 0 }, { "name": "good", "weight": 0 },
    ] } } }]);
    let regex = json!([{ "match": { "safe_regex": { "regex": "(" } }, "route": { "cluster": "good" } }]);
    let twin = json!({ "name": "twin", "domains": ["a", "A"], "routes": to("good", json!({})) });
    vec![
        json!({ "name": "domains", "virtual_hosts": [twin] }),
        routes("negative", to("good", json!({ "timeout": "-1s" }))),
        routes("regex", regex),
        routes("weights", weights),
    ]
}

async fn are_refused_one_by_one(kind: usize, backend: &Backend) {
    let names = ["domains", "good", "negative", "regex", "weights"];
    let ports = names.map(|_| free_port());
    let [_, good, ..] = ports;
    let (inline, twice) = (free_port(), free_port());
    let proxy = Followed::start(kind).await;
    let right = |name: &str| routes(name, to("good", json!({})));
    let mut of_good = right("good");
    of_good["virtual_hosts"][0]["routes"] = json!([
        { "match": { "prefix": "/nowhere" }, "route": { "cluster": "outbound|80|none|good" } },
        { "match": { "prefix": "/" }, "route": { "cluster": "good" } },
    ]);
    let mut listeners: Vec<Value> =
        names.iter().zip(ports).map(|(name, port)| listener(name, port)).collect();
    let chain = json!({ "filter_chain_match": { "destination_port": 80 }, "filters": [] });
    let wrong_listeners = [
        with_routes(
            "inline",
            inline,
            json!({ "route_config": routes("x", to("good", json!({ "timeout": "-1s" }))) }),
        ),
        // Its address is another's, who comes first.
        with_routes("taken", good, json!({ "route_config": right("x") })),
        json!({ "name": "twice", "address": address(twice), "filter_chains": [chain, chain] }),
    ];
    listeners.extend(wrong_listeners);
    let clusters = |wrong: bool| {
        let more = |more: Value| if wrong { more } else { json!({}) };
        vec![
            cluster("good", json!({})),
            cluster("negative", more(json!({ "connect_timeout": "-1s" }))),
            cluster(
                "rings",
                more(
                    json!({ "lb_policy": "RING_HASH", "ring_hash_lb_config": { "minimum_ring_size": 9, "maximum_ring_size": 3 } }),
                ),
            ),
        ]
    };
    let endpoints = ["good", "negative", "rings"].map(|name| endpoints(name, backend.address)).to_vec();
    let mut all_routes = wrong_routes();
    all_routes.push(of_good.clone());
    let wrong = [
        (CLUSTER, clusters(true)),
        (ENDPOINT, endpoints.clone()),
        (LISTENER, listeners.clone()),
        (ROUTE, all_routes),
    ];
    proxy.give(&wrong);
    answers(kind, good, "/", (200, "good")).await;
    answers(kind, good, "/nowhere", (503, "")).await;
    let refused: [&[&str]; 3] =
        [&["negative", "rings"], &["inline", "taken", "twice"], &["domains", "negative", "regex", "weights"]];
    proxy.refuses(kind, refused).await;

    // What serves becomes wrong: it goes on as it was.
    let mut spoilt = of_good.clone();
    spoilt["virtual_hosts"][0]["domains"] = json!(["*", "*"]);
    let mut all_routes = wrong_routes();
    all_routes.push(spoilt);
    proxy.give(&[
        (CLUSTER, clusters(true)),
        (ENDPOINT, endpoints.clone()),
        (LISTENER, listeners.clone()),
        (ROUTE, all_routes),
    ]);
    let with_good: &[&str] = &["domains", "good", "negative", "regex", "weights"];
    proxy.refuses(kind, [refused[0], refused[1], with_good]).await;
    answers(kind, good, "/", (200, "good")).await;

    // All of it is mended.
    listeners.truncate(names.len());
    let mut all_routes: Vec<Value> = names.iter().map(|name| right(name)).collect();
    all_routes[1] = of_good;
    proxy.give(&[
        (CLUSTER, clusters(false)),
        (ENDPOINT, endpoints),
        (LISTENER, listeners),
        (ROUTE, all_routes),
    ]);
    for port in ports {
        answers(kind, port, "/", (200, "good")).await;
    }
    proxy.refuses(kind, [&[]; 3]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_resources_are_refused_one_by_one() {
    let backend = Backend::start("good").await;
    for kind in [0, 1] {
        are_refused_one_by_one(kind, &backend).await;
    }
}
