//! Names of clusters, looked up by Envoy and by our proxy at the same server: both must follow its answers in the same way.

#[path = "../../xds/tests/support/envoy.rs"]
mod envoy;
#[path = "support/names.rs"]
mod names;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use names::{Names, Says};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const PROXY: &str = env!("CARGO_BIN_EXE_lateen-proxy");
const NAME: &str = "svc.lateen.test";
const LIMIT: Duration = Duration::from_secs(20);
const A_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
const B_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 12);

/// Answers every request with a word.
async fn upstream(address: SocketAddr, word: &'static str) -> SocketAddr {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let Ok((mut stream, _)) = listener.accept().await else { continue };
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while stream.read(&mut buffer).await.is_ok_and(|length| length > 0) {
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{word}", word.len());
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

fn address(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}

fn cluster(name: &str, logical: bool, dns: SocketAddr, port: u16) -> Value {
    let endpoint = json!({ "socket_address": { "address": NAME, "port_value": port } });
    json!({
        "name": name, "connect_timeout": "1s",
        "cluster_type": { "name": "envoy.cluster.dns", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.clusters.dns.v3.DnsCluster",
            "dns_refresh_rate": "10s",
            "dns_failure_refresh_rate": { "base_interval": "0.2s", "max_interval": "0.4s" },
            "respect_dns_ttl": true,
            "dns_lookup_family": "V4_ONLY",
            "all_addresses_in_single_endpoint": logical,
            "typed_dns_resolver_config": { "name": "envoy.network.dns_resolver.cares", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
                "resolvers": [address(dns)],
                "dns_resolver_options": { "no_default_search_domain": true },
                "query_timeout_seconds": 1,
                "query_tries": 1,
            }},
        }},
        "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": endpoint } }] }] },
    })
}

struct Proxy {
    name: &'static str,
    child: Child,
    listener: SocketAddr,
    admin: SocketAddr,
    _folder: tempfile::TempDir,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Proxy {
    fn start(name: &'static str, dns: SocketAddr, port: u16) -> Self {
        let held: Vec<_> = (0..2).map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let [listener, admin] = [0, 1].map(|index| held[index].local_addr().unwrap());
        drop(held);
        let route =
            |name: &str| json!({ "match": { "prefix": format!("/{name}") }, "route": { "cluster": name } });
        let bootstrap = json!({
            "node": { "id": "dns", "cluster": "tests" },
            "admin": { "address": address(admin) },
            "static_resources": {
                "clusters": [cluster("strict", false, dns, port), cluster("logical", true, dns, port)],
                "listeners": [{
                    "name": "l", "address": address(listener),
                    "filter_chains": [{ "filters": [{
                        "name": "envoy.filters.network.http_connection_manager",
                        "typed_config": {
                            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                            "stat_prefix": "l",
                            "route_config": { "virtual_hosts": [{ "name": "h", "domains": ["*"], "routes": [route("strict"), route("logical")] }] },
                            "http_filters": [{
                                "name": "envoy.filters.http.router",
                                "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
                            }],
                        },
                    }]}],
                }],
            },
        });
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("boot.json");
        std::fs::write(&file, bootstrap.to_string()).unwrap();
        let mut command = if name == "envoy" {
            let mut command = Command::new(envoy::envoy());
            command.args(["--disable-hot-restart", "-l", "error"]);
            command
        } else {
            Command::new(PROXY)
        };
        command.arg("-c").arg(&file).args(["--concurrency", "1"]);
        let child = command.stdout(Stdio::null()).spawn().unwrap();
        Self { name, child, listener, admin, _folder: folder }
    }

    /// Status and body of a request, on a connection of its own.
    async fn get(&self, to: SocketAddr, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(to).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        let status = text.split(' ').nth(1)?.parse().ok()?;
        Some((status, text.split_once("\r\n\r\n")?.1.to_owned()))
    }

    async fn until(&self, what: &str, path: &str, status: u16, body: &str) {
        let began = Instant::now();
        loop {
            let seen = self.get(self.listener, path).await;
            if seen.as_ref().is_some_and(|(code, text)| *code == status && text.contains(body)) {
                return;
            }
            assert!(began.elapsed() < LIMIT, "{}: {what}: {path} is {seen:?}", self.name);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn stats(&self) -> BTreeMap<String, u64> {
        let (_, text) = self.get(self.admin, "/stats?filter=update_").await.expect("the stats");
        let line = |line: &str| {
            let (name, value) = line.trim().split_once(": ")?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        text.lines().filter_map(line).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clusters_follow_the_answers_for_their_names() {
    let server = Names::start().await;
    let a = upstream(SocketAddr::from((A_ADDRESS, 0)), "from a").await;
    upstream(SocketAddr::from((B_ADDRESS, a.port())), "from b").await;
    server.set(NAME, Says::address(A_ADDRESS, 1));
    let proxies = ["envoy", "lateen"].map(|name| Proxy::start(name, server.address, a.port()));
    let all = async |what: &str, path: &str, status: u16, body: &str| {
        for proxy in &proxies {
            proxy.until(what, path, status, body).await;
        }
    };
    for path in ["/strict", "/logical"] {
        all("at first", path, 200, "from a").await;
    }
    server.set(NAME, Says::address(B_ADDRESS, 1));
    let changed = Instant::now();
    for path in ["/strict", "/logical"] {
        all("when the answer's time is over", path, 200, "from b").await;
    }
    assert!(changed.elapsed() < Duration::from_secs(6), "sooner than the refresh rate would bring it about");
    server.set(NAME, Says::Failure);
    let failures = |stats: &BTreeMap<String, u64>| stats["cluster.strict.update_failure"];
    for proxy in &proxies {
        let began = Instant::now();
        while failures(&proxy.stats().await) < 2 {
            assert!(began.elapsed() < LIMIT, "{}: look-ups fail and nothing counts them", proxy.name);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    for path in ["/strict", "/logical"] {
        all("when look-ups fail the last answer holds", path, 200, "from b").await;
    }
    server.set(NAME, Says::NoSuchName);
    all("a name that is gone has no endpoints", "/strict", 503, "no healthy upstream").await;
    all("a logical host keeps its last address", "/logical", 200, "from b").await;
    server.set(NAME, Says::address(A_ADDRESS, 600));
    for path in ["/strict", "/logical"] {
        all("when it is back", path, 200, "from a").await;
    }
    let [envoy, lateen] = [proxies[0].stats().await, proxies[1].stats().await];
    // What is not counted, neither counts.
    for name in ["update_attempt", "update_success", "update_failure", "update_empty"] {
        for cluster in ["strict", "logical"] {
            let stat = format!("cluster.{cluster}.{name}");
            let counted = |stats: &BTreeMap<String, u64>| stats.get(&stat).is_some_and(|&count| count > 0);
            assert_eq!(
                counted(&envoy),
                counted(&lateen),
                "{stat}: {:?} {:?}",
                envoy.get(&stat),
                lateen.get(&stat)
            );
        }
    }
}
