//! Envoy and our proxy, each a process with the same bootstrap but for its ports and log.

#[path = "../../../xds/tests/support/envoy.rs"]
mod envoy;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub(crate) use self::envoy::envoy;
use crate::Log;
use crate::ports::free_port;
use crate::service;
use crate::wire::Wire;

pub(crate) const PROXY: &str = env!("CARGO_BIN_EXE_lateen-proxy");

/// Nothing takes longer than this.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// Listeners by name, and what each adds to the connection manager.
pub(crate) fn listeners() -> Vec<(&'static str, Value)> {
    let mut all = vec![
        ("plain", json!({})),
        ("strict", json!({ "normalize_path": true, "merge_slashes": true })),
        (
            "reject-escaped",
            json!({ "normalize_path": true, "path_with_escaped_slashes_action": "REJECT_REQUEST" }),
        ),
        (
            "unescape",
            json!({ "normalize_path": true, "path_with_escaped_slashes_action": "UNESCAPE_AND_FORWARD" }),
        ),
        (
            "unescape-redirect",
            json!({ "normalize_path": true, "path_with_escaped_slashes_action": "UNESCAPE_AND_REDIRECT" }),
        ),
        (
            "http10",
            json!({ "http_protocol_options": { "accept_http_10": true, "default_host_for_http_10": "ten" } }),
        ),
        ("methods", json!({ "http_protocol_options": { "allow_custom_methods": true } })),
        ("edge", json!({ "use_remote_address": true })),
        ("hops", json!({ "use_remote_address": true, "xff_num_trusted_hops": 1 })),
        (
            "no-underscores",
            json!({ "common_http_protocol_options": { "headers_with_underscores_action": "REJECT_REQUEST" } }),
        ),
        (
            "drop-underscores",
            json!({ "common_http_protocol_options": { "headers_with_underscores_action": "DROP_HEADER" } }),
        ),
        ("upgrades", json!({ "upgrade_configs": [{ "upgrade_type": "websocket" }] })),
        ("one-request", json!({ "common_http_protocol_options": { "max_requests_per_connection": 2 } })),
        (
            "idle",
            json!({ "common_http_protocol_options": { "idle_timeout": "0.5s" }, "stream_idle_timeout": "1s" }),
        ),
        ("slow-head", json!({ "request_headers_timeout": "0.5s" })),
        ("slow-request", json!({ "request_timeout": "0.5s" })),
        ("slow-told", told_of_slow()),
        ("strip-port", json!({ "strip_any_host_port": true })),
        ("small-heads", json!({ "max_request_headers_kb": 8 })),
        ("few-headers", json!({ "common_http_protocol_options": { "max_headers_count": 10 } })),
        ("http2-only", json!({ "codec_type": "HTTP2" })),
        ("tunnels", tunnels()),
    ];
    all.extend(crate::filters::listeners());
    all.extend(crate::mirrors::listeners());
    all.extend(crate::retries::listeners());
    all.extend(crate::redirects::listeners());
    all.extend(crate::continues::listeners());
    all.extend(crate::access::listeners());
    all.extend(crate::ext_authz::listeners());
    all.extend(crate::bypass::listeners());
    all
}

/// Requests that must come soon, of which much is told.
fn told_of_slow() -> Value {
    let add =
        |name: &str| json!([{ "header": { "key": name, "value": "%RESPONSE_CODE% %UPSTREAM_CLUSTER%" } }]);
    let route = json!({ "cluster": "service", "retry_policy": { "retry_on": "5xx", "num_retries": 2 } });
    json!({ "request_timeout": "0.5s", "route_config": { "response_headers_to_add": add("x-all"), "virtual_hosts": [{
        "name": "all", "domains": ["*"], "response_headers_to_add": add("x-host"),
        "include_attempt_count_in_response": true, "include_request_attempt_count": true,
        "routes": [{ "match": { "prefix": "/" }, "response_headers_to_add": add("x-route"), "route": route }],
    }] } })
}

/// CONNECT and upgrades by host, over any version.
fn tunnels() -> Value {
    let connect = |cluster: &str, upgrade: Value| json!([{ "match": { "connect_matcher": {} }, "route": { "cluster": cluster, "upgrade_configs": [upgrade] } }]);
    let ends = json!({ "upgrade_type": "CONNECT", "connect_config": {} });
    json!({
        "upgrade_configs": [{ "upgrade_type": "CONNECT" }, { "upgrade_type": "websocket" }],
        "http2_protocol_options": { "allow_connect": true },
        "route_config": { "virtual_hosts": [
            { "name": "ends", "domains": ["ends:443"], "routes": connect("service", ends.clone()) },
            { "name": "on", "domains": ["on:443"], "routes": connect("service", json!({ "upgrade_type": "CONNECT" })) },
            { "name": "on2", "domains": ["on2:443"], "routes": connect("tunnels", json!({ "upgrade_type": "CONNECT" })) },
            { "name": "dead", "domains": ["dead:443"], "routes": connect("dead", ends.clone()) },
            { "name": "empty", "domains": ["empty:443"], "routes": connect("empty", ends.clone()) },
            { "name": "missing", "domains": ["missing:443"], "routes": connect("none", ends) },
            {
                "name": "off", "domains": ["off:443"],
                "routes": connect("service", json!({ "upgrade_type": "CONNECT", "enabled": false })),
            },
            { "name": "all", "domains": ["*"], "routes": [
                { "match": { "prefix": "/off" }, "route": {
                    "cluster": "service", "upgrade_configs": [{ "upgrade_type": "websocket", "enabled": false }],
                } },
                { "match": { "prefix": "/http2" }, "route": { "cluster": "tunnels" } },
                { "match": { "prefix": "/" }, "route": { "cluster": "service" } },
            ] },
        ] },
    })
}

pub(crate) fn address(port: u16) -> Value {
    json!({ "socket_address": { "address": "127.0.0.1", "port_value": port } })
}

pub(crate) fn cluster(name: &str, more: Value, endpoints: &[SocketAddr]) -> Value {
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|endpoint| json!({ "endpoint": { "address": address(endpoint.port()) } }))
        .collect();
    let mut cluster = json!({
        "name": name, "type": "STATIC", "connect_timeout": "2s",
        "load_assignment": { "cluster_name": name, "endpoints": [{ "lb_endpoints": endpoints }] },
    });
    merge(&mut cluster, more);
    cluster
}

pub(crate) fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}

pub(crate) fn merged(mut base: Value, over: Value) -> Value {
    merge(&mut base, over);
    base
}

pub(crate) fn router() -> Value {
    json!({
        "name": "envoy.filters.http.router",
        "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
    })
}

/// A listener's manager with these filters and routes, and more.
pub(crate) fn manager(filters: Vec<Value>, routes: Value, more: Value) -> Value {
    let filters: Vec<Value> = filters.into_iter().chain([router()]).collect();
    let base = json!({
        "http_filters": filters,
        "route_config": {
            "name": "routes", "validate_clusters": false,
            "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": routes }],
        },
    });
    merged(base, more)
}

/// Begins with the ports of both ends, by which lines are found.
const LOG: &str = "%DOWNSTREAM_DIRECT_LOCAL_ADDRESS%-%DOWNSTREAM_DIRECT_REMOTE_ADDRESS% %REQ(:METHOD)% %REQ(:AUTHORITY)% %REQ(:PATH)% %PROTOCOL% %RESPONSE_CODE% flags=%RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% received=%BYTES_RECEIVED% sent=%BYTES_SENT% cluster=%UPSTREAM_CLUSTER% route=%ROUTE_NAME% attempts=%UPSTREAM_REQUEST_ATTEMPT_COUNT% failure=%UPSTREAM_TRANSPORT_FAILURE_REASON% remote=%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% local=%UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT% host=%UPSTREAM_HOST% state=%FILTER_STATE(authz.shadow)% %FILTER_STATE(authz.shadow:PLAIN)% rbac=%DYNAMIC_METADATA(envoy.filters.http.rbac)% jwt=%DYNAMIC_METADATA(envoy.filters.http.jwt_authn)% authz=%DYNAMIC_METADATA(envoy.filters.http.ext_authz)% hint=%DYNAMIC_METADATA(envoy.common:access_log_hint)% path=%PATH%|%PATH(NQ)%|%PATH(WQ:ORIG)%|%PATH(NQ:PATH):9% q=%QUERY_PARAM(q)%|%QUERY_PARAM(a):3% %REQUEST_HEADER(x-case)%|%RESPONSE_HEADER(content-type)% name=%UPSTREAM_HOST_NAME_WITHOUT_PORT%\n";

pub(crate) fn logs(path: &Path) -> Value {
    json!([{
        "name": "envoy.access_loggers.file",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": path,
            "log_format": { "text_format_source": { "inline_string": LOG } },
        },
    }])
}

fn routes() -> Value {
    json!({
        "name": "routes", "validate_clusters": false,
        "virtual_hosts": [{
            "name": "all", "domains": ["*"],
            "routes": [
                { "name": "direct", "match": { "path": "/direct" }, "direct_response": { "status": 202, "body": { "inline_string": "direct" } } },
                { "name": "moved", "match": { "path": "/moved" }, "redirect": { "host_redirect": "elsewhere", "path_redirect": "/there" } },
                { "name": "https", "match": { "path": "/https" }, "redirect": { "https_redirect": true } },
                { "name": "missing", "match": { "prefix": "/missing" }, "route": { "cluster": "none" } },
                { "name": "dead", "match": { "prefix": "/dead" }, "route": { "cluster": "dead" } },
                { "name": "empty", "match": { "prefix": "/empty-cluster" }, "route": { "cluster": "empty" } },
                { "name": "timeout", "match": { "prefix": "/timeout" }, "route": { "cluster": "service", "timeout": "0.5s" } },
                { "name": "retry", "match": { "prefix": "/retry" }, "route": {
                    "cluster": "service", "retry_policy": { "retry_on": "5xx", "num_retries": 1 },
                } },
                { "name": "rewrite", "match": { "prefix": "/old/" }, "route": { "cluster": "service", "prefix_rewrite": "/new/", "host_rewrite_literal": "rewritten" } },
                { "name": "no-route-below", "match": { "prefix": "/only-get", "headers": [{ "name": ":method", "string_match": { "exact": "GET" } }] }, "route": { "cluster": "service" } },
                { "name": "http2", "match": { "prefix": "/http2" }, "route": { "cluster": "http2" } },
                { "name": "admin", "match": { "prefix": "/admin" }, "direct_response": { "status": 403 } },
                { "name": "service", "match": { "prefix": "/" }, "route": { "cluster": "service" } },
            ],
        }],
    })
}

/// `more` is the manager's, but for its members `listener`, which is the listener's, and `transport_socket`, its chain's.
pub(crate) fn listener(name: &str, port: u16, mut more: Value, log: &Path) -> Value {
    let mut take = |name: &str| more.as_object_mut().and_then(|more| more.remove(name));
    let (own, socket) = (take("listener"), take("transport_socket"));
    let mut manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "route_config": routes(),
        "access_log": logs(log),
        "http_filters": [router()],
    });
    merge(&mut manager, more);
    let mut chain = json!({ "filters": [{ "name": "envoy.filters.network.http_connection_manager", "typed_config": manager }] });
    if let Some(socket) = socket {
        chain["transport_socket"] = socket;
    }
    let listener = json!({ "name": name, "address": address(port), "filter_chains": [chain] });
    merged(listener, own.unwrap_or_else(|| json!({})))
}

fn tcp_listener(name: &str, port: u16, cluster: &str, log: &Path) -> Value {
    json!({
        "name": name, "address": address(port),
        "filter_chains": [{ "filters": [{
            "name": "envoy.filters.network.tcp_proxy",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                "stat_prefix": name, "cluster": cluster, "access_log": logs(log),
            },
        }] }],
    })
}

/// One proxy.
pub(crate) struct Proxy {
    child: Child,
    pub(crate) ports: BTreeMap<&'static str, u16>,
    admin: u16,
    pub(crate) log: PathBuf,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// So many free ports.
pub(crate) fn free_ports(n: usize) -> Vec<u16> {
    (0..n).map(|_| free_port()).collect()
}

/// Both proxies, Envoy first, with listeners and clusters that `parts` makes of the ports of these listeners and the log's path.
pub(crate) async fn both(
    folder: &Path,
    names: &[&'static str],
    mut parts: impl FnMut(&BTreeMap<&'static str, u16>, &Path) -> [Vec<Value>; 2],
) -> [Proxy; 2] {
    let mut make = |log: &str| {
        let admin = free_port();
        let ports: BTreeMap<_, _> = names.iter().map(|name| (*name, free_port())).collect();
        let [listeners, clusters] = parts(&ports, &folder.join(log));
        let bootstrap = json!({
            "node": { "id": "both", "cluster": "tests" },
            "admin": { "address": address(admin) },
            "static_resources": { "listeners": listeners, "clusters": clusters },
        });
        (bootstrap, ports, admin)
    };
    let (envoy, lateen) = (make("envoy.log"), make("lateen.log"));
    let started = tokio::join!(
        Proxy::launch(true, &envoy.0, folder, envoy.1, envoy.2),
        Proxy::launch(false, &lateen.0, folder, lateen.1, lateen.2),
    );
    started.into()
}

impl Proxy {
    /// How many ports one with so many listeners needs.
    fn ports(listeners: usize) -> usize {
        listeners + 3
    }

    async fn start(
        envoy: bool,
        (wanted, clusters): (Vec<(&'static str, Value)>, Vec<Value>),
        mut free: Vec<u16>,
        folder: &Path,
        service: SocketAddr,
        [http2, tunnels, asks_grpc, asks_http]: [SocketAddr; 4],
        mirror: SocketAddr,
    ) -> Self {
        let log = folder.join(if envoy { "envoy.log" } else { "lateen.log" });
        let (admin, tcp, dead) = (free.pop().unwrap(), free.pop().unwrap(), free.pop().unwrap());
        let mut ports: BTreeMap<_, _> = wanted.iter().map(|(name, _)| *name).zip(free).collect();
        let mut all: Vec<Value> =
            wanted.into_iter().map(|(name, more)| listener(name, ports[name], more, &log)).collect();
        all.push(tcp_listener("tcp", tcp, "service", &log));
        all.push(tcp_listener("tcp-dead", dead, "dead", &log));
        ports.extend([("tcp", tcp), ("tcp-dead", dead)]);
        let h2 = json!({ "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": { "http2_protocol_options": { "allow_connect": true } },
        } } });
        // Cases go on side by side.
        let many = |priority: &str| json!({ "priority": priority, "max_retries": 100 });
        let many_retries =
            || json!({ "circuit_breakers": { "thresholds": [many("DEFAULT"), many("HIGH")] } });
        let mut bootstrap = json!({
            "node": { "id": "differential", "cluster": "tests" },
            "admin": { "address": address(admin) },
            "static_resources": {
                "listeners": all,
                "clusters": [
                    cluster("service", many_retries(), &[service]),
                    cluster("http2", h2.clone(), &[http2]),
                    cluster("tunnels", h2.clone(), &[tunnels]),
                    cluster("authz-grpc", merged(h2, many_retries()), &[asks_grpc]),
                    cluster("authz-http", many_retries(), &[asks_http]),
                    cluster("dead", many_retries(), &[SocketAddr::from(([127, 0, 0, 1], 1))]),
                    cluster("empty", json!({}), &[]),
                    cluster("mirror", json!({}), &[mirror]),
                    cluster("retried", crate::retries::cluster(), &[mirror]),
                    cluster("hedged", crate::retries::cluster(), &[mirror]),
                    cluster("continued", crate::retries::cluster(), &[mirror]),
                    cluster("full", json!({ "circuit_breakers": { "thresholds": [{ "max_requests": 0, "max_pending_requests": 0 }] } }), &[mirror]),
                ],
            },
        });
        bootstrap["static_resources"]["clusters"].as_array_mut().unwrap().extend(clusters);
        Self::launch(envoy, &bootstrap, folder, ports, admin).await
    }

    /// Starts a program with a bootstrap and waits until it is ready.
    pub(crate) async fn launch(
        envoy: bool,
        bootstrap: &Value,
        folder: &Path,
        ports: BTreeMap<&'static str, u16>,
        admin: u16,
    ) -> Self {
        let kind = if envoy { "envoy" } else { "lateen" };
        let (boot, log) = (folder.join(format!("{kind}.json")), folder.join(format!("{kind}.log")));
        std::fs::write(&boot, bootstrap.to_string()).unwrap();
        let mut command = if envoy {
            let mut command = Command::new(envoy::envoy());
            command.args(["--disable-hot-restart", "--file-flush-interval-msec", "50", "-l", "error"]);
            command
        } else {
            Command::new(PROXY)
        };
        command.arg("-c").arg(&boot).args(["--concurrency", "1"]);
        let child = command
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.join(format!("{kind}.err"))).unwrap())
            .spawn()
            .unwrap();
        let mut proxy = Self { child, ports, admin, log };
        let began = Instant::now();
        while !proxy.admin("/ready").await.is_some_and(|text| {
            text.contains(
                "LIVE
",
            )
        }) {
            let ended = proxy.child.try_wait().unwrap().is_some() || began.elapsed() > LIMIT;
            let said = || std::fs::read_to_string(folder.join(format!("{kind}.err"))).unwrap_or_default();
            assert!(!ended, "{kind} does not become ready: {}", said());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        proxy
    }

    /// An admin page; `None` when it can't be had.
    pub(crate) async fn admin(&self, path: &str) -> Option<String> {
        let stream = tokio::net::TcpStream::connect(("127.0.0.1", self.admin)).await.ok()?;
        let mut wire = Wire::new(stream).whole();
        wire.send(format!("GET {path} HTTP/1.1\r\nhost: admin\r\n\r\n").as_bytes()).await;
        wire.answer("GET").await
    }

    /// Waits until as many lines as requests the proxy has finished are in its log, and reads it.
    pub(crate) async fn log(&self) -> String {
        let began = Instant::now();
        let mut before = usize::MAX;
        loop {
            let stats = self.admin("/stats?filter=downstream_rq_active").await.unwrap_or_default();
            let busy: u64 = stats
                .lines()
                .filter(|line| line.starts_with("http.") && !line.starts_with("http.admin"))
                .filter_map(|line| line.rsplit_once(": ")?.1.parse::<u64>().ok())
                .sum();
            let text = std::fs::read_to_string(&self.log).unwrap_or_default();
            // Nothing goes on, and nothing was added for longer than either proxy keeps lines.
            if (busy == 0 && before == text.len()) || began.elapsed() > LIMIT {
                return text;
            }
            before = text.len();
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
    }
}

/// Who starts proxies now.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Envoy and ours.
pub(crate) struct Pair {
    proxies: [Proxy; 2],
    _folder: tempfile::TempDir,
}

impl Pair {
    pub(crate) async fn start() -> Self {
        Self::start_with(listeners()).await
    }

    /// With these listeners.
    pub(crate) async fn start_with(wanted: Vec<(&'static str, Value)>) -> Self {
        Self::start_beside(wanted, Vec::new()).await
    }

    /// With these listeners, and these clusters beside those there always are.
    pub(crate) async fn start_beside(wanted: Vec<(&'static str, Value)>, clusters: Vec<Value>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let service = service::start().await;
        let http2 = [
            crate::h2::start_service().await,
            crate::tunnels::start_service().await,
            crate::authorizers::start_grpc().await,
            crate::authorizers::start_http().await,
        ];
        // Ports that one test has chosen another could choose before they are used.
        let _turn = TURN.lock().await;
        // One each, as it keeps what it was sent.
        let mirrors = [service::start_mirror().await, service::start_mirror().await];
        // At once, as both proxies would share a port without a word (`SO_REUSEPORT`).
        let mut ports = free_ports(2 * Proxy::ports(wanted.len()));
        let others = ports.split_off(Proxy::ports(wanted.len()));
        let (envoy, lateen) = tokio::join!(
            Proxy::start(
                true,
                (wanted.clone(), clusters.clone()),
                ports,
                folder.path(),
                service,
                http2,
                mirrors[0]
            ),
            Proxy::start(false, (wanted, clusters), others, folder.path(), service, http2, mirrors[1])
        );
        Self { proxies: [envoy, lateen], _folder: folder }
    }

    /// Where a listener is, with Envoy and with ours.
    pub(crate) fn addresses(&self, listener: &str) -> [SocketAddr; 2] {
        [0, 1].map(|i| SocketAddr::from(([127, 0, 0, 1], self.proxies[i].ports[listener])))
    }

    /// Lets both have served something, so that pages have numbers.
    pub(crate) async fn warm(&self) {
        for address in self.addresses("plain") {
            let mut wire = Wire::new(tokio::net::TcpStream::connect(address).await.unwrap());
            assert_eq!(wire.probe().await, "open");
        }
    }

    /// An admin page of both.
    pub(crate) async fn pages(&self, path: &str) -> [String; 2] {
        let [envoy, lateen] = &self.proxies;
        let (envoy, lateen) = tokio::join!(envoy.admin(path), lateen.admin(path));
        [envoy.expect("Envoy's page"), lateen.expect("our page")]
    }

    /// Memory our proxy has resident, in KiB (`/proc/PID/status`).
    pub(crate) fn memory_kb(&self) -> u64 {
        let status = format!("/proc/{}/status", self.proxies[1].child.id());
        let status = std::fs::read_to_string(status).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Both access logs.
    pub(crate) async fn logs(&self) -> [Log; 2] {
        let (envoy, lateen) = tokio::join!(self.proxies[0].log(), self.proxies[1].log());
        [Log::of(&envoy), Log::of(&lateen)]
    }
}
