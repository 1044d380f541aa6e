//! The server with a stock Envoy as its client, in both variants of the protocol. The project's scripts install Envoy;
//! `LATEEN_ENVOY_PATH` may name another.
#[path = "support/envoy.rs"]
mod program;
mod support;

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use lateen_xds::json::JsonCodec;
use lateen_xds::server::{
    AdsServer, Event, Hello, Opened, Protocol, Snapshot, Source, SyncState, TypeStatus,
};
use lateen_xds::type_urls::{CLUSTER, ENDPOINT, LISTENER, ROUTE};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tonic::Status;

use support::{OfType, bootstrap, endpoints, serve, snapshot};

/// The longest that anything here may take.
const PATIENCE: Duration = Duration::from_secs(30);

struct Given {
    snapshots: Mutex<watch::Sender<Arc<Snapshot>>>,
    /// Type, resources and removals of every response.
    sent: Mutex<Vec<(String, usize, usize)>>,
    /// Types of the responses sent (`>`) and accepted (`<`).
    order: Mutex<Vec<String>>,
    streams: Mutex<usize>,
}

impl Source for Given {
    fn open(&self, _hello: Hello) -> BoxFuture<'_, Result<Opened, Status>> {
        *self.streams.lock().unwrap() += 1;
        let snapshots = self.snapshots.lock().unwrap().subscribe();
        Box::pin(async { Ok(Opened { snapshots, guard: Box::new(()) }) })
    }

    fn observe(&self, event: &Event<'_>) {
        let short = |url: &str| url.rsplit('.').next().unwrap_or_default().to_owned();
        match event {
            Event::Pushed { type_url, .. } => {
                self.order.lock().unwrap().push(format!("> {}", short(type_url)))
            }
            Event::Acked { type_url, .. } => {
                self.order.lock().unwrap().push(format!("< {}", short(type_url)))
            }
            Event::Nacked { .. } | Event::Failed { .. } | Event::Health { .. } => {}
        }
        if let Event::Pushed { type_url, resources, removed } = event {
            self.sent.lock().unwrap().push(((*type_url).to_owned(), *resources, *removed));
        }
    }
}

/// A server, an Envoy that follows it, and an upstream that answers `upstream`.
struct Mesh {
    given: Arc<Given>,
    ads: AdsServer<Given>,
    codec: JsonCodec,
    upstream: SocketAddr,
    folder: tempfile::TempDir,
    envoy: Child,
    protocol: Protocol,
}

impl Drop for Mesh {
    fn drop(&mut self) {
        let _gone = self.envoy.kill();
        let _reaped = self.envoy.wait();
    }
}

impl Mesh {
    async fn start(protocol: Protocol) -> Self {
        let empty = Arc::new(Snapshot::new(0, Instant::now()));
        let given = Arc::new(Given {
            snapshots: Mutex::new(watch::Sender::new(empty)),
            sent: Mutex::default(),
            order: Mutex::default(),
            streams: Mutex::default(),
        });
        let ads = AdsServer::new(given.clone());
        let folder = tempfile::tempdir().unwrap();
        let envoy = envoy(protocol, serve(ads.clone()).await, folder.path());
        let (codec, upstream) = (JsonCodec::new().unwrap(), upstream().await);
        Self { given, ads, codec, upstream, folder, envoy, protocol }
    }

    fn give(&self, content: &[OfType]) {
        self.given.snapshots.lock().unwrap().send_replace(snapshot(&self.codec, content));
    }

    /// Ends the stream, as a control plane does that shuts down; the next one finds the same content.
    fn cut(&self) {
        let mut snapshots = self.given.snapshots.lock().unwrap();
        let content = snapshots.borrow().clone();
        *snapshots = watch::Sender::new(content);
    }

    fn status(&self, type_url: &str) -> Option<TypeStatus> {
        let connections = self.ads.connections().list();
        let open = connections.iter().find(|connection| connection.protocol == self.protocol)?;
        open.types.get(type_url).cloned()
    }

    fn in_sync(&self) -> bool {
        let synced = |url| self.status(url).is_some_and(|status| status.state() == SyncState::Synced);
        [CLUSTER, ENDPOINT, LISTENER, ROUTE].into_iter().all(synced)
    }

    async fn until(&self, what: &str, holds: impl AsyncFn() -> bool) {
        let waiting = async {
            while !holds().await {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
            let log = std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
            let sent = self.given.sent.lock().unwrap().clone();
            panic!("{:?}: {what}: not within {PATIENCE:?}; sent {sent:?}; Envoy says: {log}", self.protocol);
        }
    }

    async fn serves(&self, port: u16, body: &str) {
        let what = format!("{body:?} on port {port}");
        self.until(&what, async || ask(port, "/").await.is_some_and(|answer| answer.ends_with(body))).await;
    }
}

fn envoy(protocol: Protocol, server: SocketAddr, folder: &std::path::Path) -> Child {
    let api_type = match protocol {
        Protocol::Delta => "DELTA_GRPC",
        Protocol::Sotw => "GRPC",
    };
    let file = folder.join("bootstrap.json");
    std::fs::write(&file, bootstrap(api_type, server).to_string()).unwrap();
    let log = std::fs::File::create(folder.join("log")).unwrap();
    Command::new(program::envoy())
        .args(["--disable-hot-restart", "--concurrency", "1", "-l", "info", "-c"])
        .arg(&file)
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

async fn upstream() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = [0; 4096];
                while stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nupstream";
                    if stream.write_all(answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

async fn ask(port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    Some(answer)
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn cluster(name: &str, timeout: &str) -> Value {
    let source = json!({"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"});
    json!({"name": name, "type": "EDS", "connect_timeout": timeout, "eds_cluster_config": {"eds_config": source}})
}

fn listener(name: &str, port: u16, route: &str) -> Value {
    let source = json!({"ads": {}, "resource_api_version": "V3", "initial_fetch_timeout": "0s"});
    json!({"name": name, "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "hcm", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": name, "rds": {"route_config_name": route, "config_source": source},
            "http_filters": [{"name": "router", "typed_config":
                {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}]}}]}]})
}

fn routes(name: &str, routes: Value) -> Value {
    json!({"name": name, "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]})
}

/// Routes that answer with a text.
fn says(name: &str, text: &str) -> Value {
    routes(
        name,
        json!([{"match": {"prefix": "/"}, "direct_response": {"status": 200, "body": {"inline_string": text}}}]),
    )
}

/// Routes that lead to clusters by path.
fn to(name: &str, clusters: &[&str]) -> Value {
    let route =
        |cluster: &&str| json!({"match": {"prefix": format!("/{cluster}")}, "route": {"cluster": cluster}});
    routes(name, clusters.iter().map(route).collect())
}

async fn follows_every_change(protocol: Protocol) {
    let mesh = Mesh::start(protocol).await;
    let port = free_port();
    let content = |timeouts: &[&str], route: Value| -> Vec<OfType> {
        let names = ["c", "d"];
        let named = || names.into_iter().zip(timeouts);
        vec![
            (CLUSTER, named().map(|(name, timeout)| cluster(name, timeout)).collect()),
            (ENDPOINT, named().map(|(name, _)| endpoints(name, mesh.upstream)).collect()),
            (LISTENER, vec![listener("l", port, "r")]),
            (ROUTE, vec![route]),
        ]
    };
    mesh.give(&content(&["1s"], says("r", "first")));
    mesh.serves(port, "first").await;
    // Clusters go before the routes that need them. A changed cluster is warmed again, and needs its endpoints for that.
    mesh.give(&content(&["2s", "1s"], to("r", &["c", "d"])));
    for path in ["/c", "/d"] {
        let answers = async || ask(port, path).await.is_some_and(|answer| answer.ends_with("upstream"));
        mesh.until(path, answers).await;
    }
    mesh.until("everything in sync", async || mesh.in_sync()).await;
    // A cluster goes after the routes that needed it.
    mesh.give(&content(&["2s"], to("r", &["c"])));
    let only_c = async || ask(port, "/d").await.is_some_and(|answer| answer.starts_with("HTTP/1.1 404"));
    mesh.until("no route to d", only_c).await;
    let mut gone = content(&["2s"], to("r", &["c"]));
    gone[2].1.clear();
    mesh.give(&gone);
    mesh.until("the listener is gone", async || ask(port, "/c").await.is_none()).await;
    mesh.until("everything in sync", async || mesh.in_sync()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_follows_every_change_by_delta() {
    follows_every_change(Protocol::Delta).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_follows_every_change_by_state_of_the_world() {
    follows_every_change(Protocol::Sotw).await;
}

async fn gets_the_good_beside_the_bad(protocol: Protocol) {
    let mesh = Mesh::start(protocol).await;
    let (bad_port, good_port, other_port) = (free_port(), free_port(), free_port());
    // Two virtual hosts of one domain: Envoy refuses that only when it applies it.
    let mut bad = says("bad", "bad");
    let twin = json!({"name": "twin", "domains": ["*"], "routes": []});
    bad["virtual_hosts"].as_array_mut().unwrap().push(twin);
    let content = |bad: Value| -> Vec<OfType> {
        let listeners = [("a", bad_port, "bad"), ("b", good_port, "good"), ("c", other_port, "other")];
        let listeners = listeners.map(|(name, port, route)| listener(name, port, route)).to_vec();
        vec![(LISTENER, listeners), (ROUTE, vec![bad, says("good", "good"), says("other", "other")])]
    };
    mesh.give(&content(bad));
    mesh.serves(good_port, "good").await;
    mesh.serves(other_port, "other").await;
    let told = async || {
        mesh.status(ROUTE).is_some_and(|status| {
            let words = status.nacked.as_ref().map(|nack| nack.message.clone()).unwrap_or_default();
            status.rejected.iter().map(|name| &**name).eq(["bad"]) && words.contains("domain")
        })
    };
    mesh.until("the rejection is told in Envoy's words", told).await;
    mesh.give(&content(says("bad", "mended")));
    mesh.serves(bad_port, "mended").await;
    let mended = async || mesh.status(ROUTE).is_some_and(|status| status.nacked.is_none());
    mesh.until("the rejection is over", mended).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_gets_the_good_beside_the_bad_by_delta() {
    gets_the_good_beside_the_bad(Protocol::Delta).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn envoy_gets_the_good_beside_the_bad_by_state_of_the_world() {
    gets_the_good_beside_the_bad(Protocol::Sotw).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_returning_envoy_is_sent_only_what_changed() {
    let mesh = Mesh::start(Protocol::Delta).await;
    let port = free_port();
    let content = |timeout: &str| -> Vec<OfType> {
        vec![
            (CLUSTER, vec![cluster("c", timeout), cluster("d", "1s")]),
            (ENDPOINT, vec![endpoints("c", mesh.upstream), endpoints("d", mesh.upstream)]),
            (LISTENER, vec![listener("l", port, "r")]),
            (ROUTE, vec![to("r", &["c", "d"])]),
        ]
    };
    mesh.give(&content("1s"));
    mesh.until("everything in sync", async || mesh.in_sync()).await;
    let begin_again = || {
        mesh.given.sent.lock().unwrap().clear();
        mesh.cut();
    };
    let resources_sent = || -> Vec<(String, usize, usize)> {
        let sent = mesh.given.sent.lock().unwrap();
        sent.iter().filter(|(_, resources, removed)| resources + removed > 0).cloned().collect()
    };
    begin_again();
    // Clusters and listeners were asked for as a whole, which is answered though there is nothing to say.
    let answered = async || {
        let count = mesh.given.sent.lock().unwrap().len();
        *mesh.given.streams.lock().unwrap() == 2 && count == 2
    };
    mesh.until("Envoy comes back", answered).await;
    assert_eq!(resources_sent(), []);

    // The new c is warmed, which takes its endpoints, unchanged as they are.
    mesh.give(&content("2s"));
    mesh.until("the new cluster", async || resources_sent().len() == 2).await;
    assert_eq!(resources_sent(), [(CLUSTER.to_owned(), 1, 0), (ENDPOINT.to_owned(), 1, 0)]);
    let answers = async || ask(port, "/c").await.is_some_and(|answer| answer.ends_with("upstream"));
    mesh.until("traffic", answers).await;
}

/// Routes follow their new clusters at once, a hundred times, and the old clusters go; a client that sends requests all the while
/// sees no gap.
async fn routes_never_overtake_clusters(protocol: Protocol) {
    let mesh = Mesh::start(protocol).await;
    let port = free_port();
    let content = |name: &str| -> Vec<OfType> {
        let all = routes("r", json!([{"match": {"prefix": "/"}, "route": {"cluster": name}}]));
        vec![
            (CLUSTER, vec![cluster(name, "1s")]),
            (ENDPOINT, vec![endpoints(name, mesh.upstream)]),
            (LISTENER, vec![listener("l", port, "r")]),
            (ROUTE, vec![all]),
        ]
    };
    mesh.give(&content("c0"));
    mesh.serves(port, "upstream").await;
    mesh.until("everything in sync", async || mesh.in_sync()).await;
    for number in 1..=100 {
        mesh.given.order.lock().unwrap().clear();
        mesh.give(&content(&format!("c{number}")));
        let done = async || {
            let answer = ask(port, "/").await.unwrap_or_default();
            assert!(answer.ends_with("upstream"), "{protocol:?}, change {number}: {answer:?}");
            // The removal of the old cluster is the last.
            let order = mesh.given.order.lock().unwrap();
            order.iter().filter(|step| *step == "< Cluster").count() == 2
        };
        mesh.until("the change is complete", done).await;
        // Envoy accepts clusters only when all of them are warm, that is, when it has their endpoints. That is what routes wait for.
        let order = mesh.given.order.lock().unwrap();
        let needed = [
            "> Cluster",
            "> ClusterLoadAssignment",
            "< Cluster",
            "> RouteConfiguration",
            "< RouteConfiguration",
            "> Cluster",
        ];
        let mut steps = order.iter();
        let found = needed.iter().all(|&needed| steps.any(|step| step == needed));
        assert!(found, "{protocol:?}, change {number}: {order:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_never_overtake_clusters_by_delta() {
    routes_never_overtake_clusters(Protocol::Delta).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_never_overtake_clusters_by_state_of_the_world() {
    routes_never_overtake_clusters(Protocol::Sotw).await;
}
