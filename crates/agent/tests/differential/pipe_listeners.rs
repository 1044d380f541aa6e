//! Listeners at Unix sockets.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::duo::{Backend, KINDS, cluster};
use crate::proxies::{LIMIT, Proxy, address, free_ports, merge};

/// Everything an access log can tell of the ends of a connection.
const LOG: &str = "%REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_FLAGS% %DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_REMOTE_PORT% %DOWNSTREAM_DIRECT_REMOTE_ADDRESS% %DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT% %DOWNSTREAM_LOCAL_PORT%\n";

fn logs(path: &Path) -> Value {
    json!([{ "name": "file", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
        "path": path, "log_format": { "text_format_source": { "inline_string": LOG } },
    } }])
}

/// A policy that lets clients at some addresses in, or all but those.
fn allow(principal: Value) -> Value {
    json!({ "name": "rbac", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
        "rules": { "action": "ALLOW", "policies": { "p": { "permissions": [{ "any": true }], "principals": [principal] } } },
    } })
}

/// A connection manager that shows what the application sees; `filters` go before the router.
fn manager(more: Value, mut filters: Vec<Value>, log: &Path) -> Value {
    filters.push(json!({ "name": "router", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
    } }));
    let mut manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "pipe", "access_log": logs(log),
        "route_config": { "virtual_hosts": [
            { "name": "port", "domains": ["strip"], "routes": [{ "match": { "prefix": "/" }, "direct_response": { "status": 202 } }] },
            { "name": "all", "domains": ["*"], "routes": [
                { "match": { "prefix": "/far" }, "route": { "cluster": "backend", "hash_policy": [
                    { "connection_properties": { "source_ip": true } }, { "cookie": { "name": "c", "ttl": "9s" } },
                ] } },
                { "match": { "prefix": "/" }, "direct_response": { "status": 200 }, "response_headers_to_add": [
                    echo("x-seen-for", "%REQ(x-forwarded-for)%"), echo("x-seen-proto", "%REQ(x-forwarded-proto)%"),
                    echo("x-seen-port", "%REQ(x-forwarded-port)%"), echo("x-seen-internal", "%REQ(x-envoy-internal)%"),
                    echo("x-seen-external", "%REQ(x-envoy-external-address)%"),
                    echo("x-seen-client", "%DOWNSTREAM_REMOTE_ADDRESS%"), echo("x-seen-host", "%REQ(:authority)%"),
                ] },
            ] },
        ] },
        "http_filters": filters,
    });
    merge(&mut manager, more);
    json!({ "name": "hcm", "typed_config": manager })
}

fn echo(name: &str, value: &str) -> Value {
    json!({ "header": { "key": name, "value": value }, "keep_empty_value": true })
}

/// Listeners by name, without their addresses.
fn listeners(log: &Path) -> Vec<(&'static str, Value)> {
    let http =
        |more: Value, filters| json!({ "filter_chains": [{ "filters": [manager(more, filters, log)] }] });
    let everywhere = json!({ "remote_ip": { "address_prefix": "0.0.0.0", "prefix_len": 0 } });
    let direct = json!({ "direct_remote_ip": { "address_prefix": "0.0.0.0", "prefix_len": 0 } });
    let answer = |text: &str| {
        json!([{ "name": "direct", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.direct_response.v3.Config",
            "response": { "inline_string": text },
        } }])
    };
    vec![
        ("plain", http(json!({ "append_x_forwarded_port": true, "strip_matching_host_port": true }), vec![])),
        (
            "edge",
            http(
                json!({ "use_remote_address": true, "append_x_forwarded_port": true, "internal_address_config": {
                    "cidr_ranges": [{ "address_prefix": "0.0.0.0", "prefix_len": 0 }],
                } }),
                vec![],
            ),
        ),
        (
            "inside",
            http(
                json!({ "use_remote_address": true, "internal_address_config": { "unix_sockets": true } }),
                vec![],
            ),
        ),
        ("hops", http(json!({ "use_remote_address": true, "xff_num_trusted_hops": 1 }), vec![])),
        ("within", http(json!({}), vec![allow(everywhere.clone())])),
        ("without", http(json!({}), vec![allow(json!({ "not_id": everywhere }))])),
        ("direct", http(json!({}), vec![allow(direct)])),
        (
            "port",
            http(
                json!({}),
                vec![json!({ "name": "rbac", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC",
            "rules": { "action": "DENY", "policies": { "p": {
                "permissions": [{ "destination_port_range": { "start": 0, "end": 65535 } }], "principals": [{ "any": true }],
            } } },
        } })],
            ),
        ),
        (
            "proxy",
            json!({
                "listener_filters": [{ "name": "p", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol",
                    "allow_requests_without_proxy_protocol": true,
                } }],
                "filter_chains": [{ "filters": [manager(json!({ "use_remote_address": true }), vec![], log)] }],
            }),
        ),
        (
            "bytes",
            json!({ "filter_chains": [{ "filters": [{ "name": "tcp", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "bytes", "cluster": "backend", "access_log": logs(log),
        } }] }] }),
        ),
        (
            "chains",
            json!({ "filter_chains": [
            { "filter_chain_match": { "destination_port": 80 }, "filters": answer("port") },
            { "filter_chain_match": { "prefix_ranges": [{ "address_prefix": "127.0.0.0", "prefix_len": 8 }] }, "filters": answer("loopback") },
            { "filter_chain_match": { "source_type": "EXTERNAL" }, "filters": answer("external") },
            { "filter_chain_match": { "source_type": "SAME_IP_OR_LOOPBACK" }, "filters": answer("local") },
        ] }),
        ),
        (
            "inspected",
            json!({
                "listener_filters": [{ "name": "t", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
                } }, { "name": "h", "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector",
                } }],
                "filter_chains": [
                    { "filter_chain_match": { "application_protocols": ["http/1.1"] }, "filters": answer("http") },
                    { "filters": answer("bytes") },
                ],
            }),
        ),
    ]
}

/// A name in the abstract namespace.
fn name_of(folder: &Path) -> String {
    folder.to_str().unwrap().replace('/', "-")
}

struct Sockets {
    proxies: [Proxy; 2],
    folders: [PathBuf; 2],
    _folder: tempfile::TempDir,
    backend: Backend,
}

impl Sockets {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let backend = Backend::start("backend").await;
        let ports = free_ports(4);
        // The same lengths, since they are told in stats of bytes.
        let folders = ["e", "l"].map(|name| folder.path().join(name));
        let proxies = [0, 1].map(|kind| {
            let (own, admin, more) = (&folders[kind], ports[2 * kind], ports[2 * kind + 1]);
            std::fs::create_dir(own).unwrap();
            let log = folder.path().join(if kind == 0 { "envoy.log" } else { "lateen.log" });
            let mut all: Vec<Value> = listeners(&log)
                .into_iter()
                .map(|(name, mut listener)| {
                    let at = json!({ "name": name, "address": { "pipe": { "path": own.join(name) } } });
                    merge(&mut listener, at);
                    listener
                })
                .collect();
            all[0]["address"]["pipe"]["mode"] = json!(0o620);
            // What an earlier process left, and what is no socket at all, is removed.
            drop(std::os::unix::net::UnixListener::bind(own.join("plain")).unwrap());
            std::fs::write(own.join("edge"), "").unwrap();
            let mut hidden = all[0].clone();
            merge(&mut hidden, json!({
                "name": "hidden", "stat_prefix": "hidden",
                "address": { "pipe": { "path": format!("@{}", name_of(own)), "mode": 0 } },
                "additional_addresses": [
                    { "address": { "pipe": { "path": own.join("also"), "mode": 0o600 } } },
                    { "address": address(more) },
                ],
            }));
            all.push(hidden);
            let bootstrap = json!({
                "node": { "id": "pipes", "cluster": "tests" },
                "admin": { "address": address(admin) },
                "static_resources": { "listeners": all, "clusters": [
                    cluster("backend", vec![backend.endpoint(json!({}))], json!({ "lb_policy": "RING_HASH" })),
                ] },
            });
            (bootstrap, admin, more)
        });
        let [envoy, lateen] = &proxies;
        let launch = |envoy, (bootstrap, admin, more): &(Value, u16, u16)| {
            let (bootstrap, ports) = (bootstrap.clone(), [("also", *more)].into());
            let (path, admin) = (folder.path().to_owned(), *admin);
            async move { Proxy::launch(envoy, &bootstrap, &path, ports, admin).await }
        };
        let proxies = tokio::join!(launch(true, envoy), launch(false, lateen)).into();
        Self { proxies, folders, backend, _folder: folder }
    }

    /// What both say to these bytes, with the folders of their sockets made the same.
    async fn both(&self, listener: &str, bytes: &str) -> [String; 2] {
        let ask = async |kind: usize| {
            let stream = UnixStream::connect(self.folders[kind].join(listener)).await.unwrap();
            self.told(kind, &exchange(stream, bytes).await)
        };
        tokio::join!(ask(0), ask(1)).into()
    }

    fn told(&self, kind: usize, text: &str) -> String {
        text.replace(self.folders[kind].to_str().unwrap(), "FOLDER")
    }
}

/// Everything the other end says, without what differs each time.
async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, bytes: &str) -> String {
    let mut answer = Vec::new();
    let talk = async {
        stream.write_all(bytes.as_bytes()).await.unwrap();
        let _end = stream.read_to_end(&mut answer).await;
    };
    tokio::time::timeout(LIMIT, talk).await.expect("an end");
    let text = String::from_utf8_lossy(&answer).into_owned();
    let mut lines: Vec<&str> = text
        .lines()
        .filter(|line| !["date:", "x-envoy-upstream-service-time:"].iter().any(|name| line.starts_with(name)))
        .collect();
    // The order of headers is not compared here.
    if let Some(end) = lines.iter().position(|line| line.is_empty()) {
        lines[1..end].sort_unstable();
    }
    lines.join("\n")
}

fn get(path: &str, host: &str, headers: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{headers}\r\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_come_by_unix_sockets() {
    let sockets = Sockets::start().await;
    let forwarded =
        "x-forwarded-for: 1.2.3.4, 5.6.7.8\r\nx-forwarded-proto: https\r\nx-forwarded-port: 7\r\n";
    let http = ["plain", "edge", "inside", "hops", "within", "without", "direct", "port", "proxy", "also"];
    let mut answers = std::collections::BTreeMap::new();
    let mut cases = Vec::new();
    for listener in http {
        for (name, path, host, headers) in [
            ("bare", "/", "a", ""),
            ("forwarded", "/", "a", forwarded),
            ("one", "/", "a", "x-forwarded-for: 10.0.0.1\r\n"),
            ("internal", "/", "a", "x-envoy-internal: true\r\nx-envoy-external-address: 9.9.9.9\r\n"),
            ("far", "/far", "a", ""),
            ("strip", "/", "strip:80", ""),
            ("strip0", "/", "strip:0", ""),
        ] {
            cases.push((listener, name, get(path, host, headers)));
        }
    }
    // At once: Envoy takes a second to close.
    let asked = cases.iter().map(|(listener, _, bytes)| sockets.both(listener, bytes));
    let told = futures::future::join_all(asked).await;
    for ((listener, name, _), [envoy, lateen]) in cases.into_iter().zip(told) {
        // The cookie is a hash of the ends, which are in different folders.
        let shown = |text: &str| match text.split_once("set-cookie: c=\"") {
            Some((before, after)) => format!("{before}cookie{}", &after[16..]),
            None => text.to_owned(),
        };
        assert_eq!(shown(&envoy), shown(&lateen), "{listener} {name}");
        answers.insert((listener, name), lateen);
    }
    assert!(answers[&("plain", "bare")].starts_with("HTTP/1.1 200"), "{}", answers[&("plain", "bare")]);
    assert!(answers[&("plain", "bare")].contains("x-seen-client: FOLDER/plain"));
    assert!(answers[&("inside", "bare")].contains("x-seen-internal: true"));
    assert!(!answers[&("edge", "bare")].contains("x-seen-internal: true"), "no network holds a Unix socket");
    for (listener, bytes) in [
        ("proxy", format!("PROXY TCP4 9.8.7.6 10.0.0.1 5 6\r\n{}", get("/", "a", ""))),
        ("proxy", format!("PROXY TCP4 broken\r\n{}", get("/", "a", ""))),
        ("bytes", get("/bytes", "a", "x-close: 1\r\n")),
        ("chains", String::new()),
        ("inspected", get("/", "a", "")),
        ("inspected", "SSH-2.0-client\r\n".to_owned()),
    ] {
        let [envoy, lateen] = sockets.both(listener, &bytes).await;
        assert_eq!(envoy, lateen, "{listener} {bytes}");
    }
    assert!(sockets.backend.hits() > 0);
    // The same log, line by line, but for ports of PROXY headers, which are fixed.
    let mut told = Vec::new();
    for kind in [0, 1] {
        let mut lines: Vec<String> =
            sockets.told(kind, &sockets.proxies[kind].log().await).lines().map(str::to_owned).collect();
        lines.sort_unstable();
        told.push(lines);
    }
    assert_eq!(told[0], told[1]);
    assert!(told[0].len() > 70, "{}", told[0].len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_are_made_as_envoy_makes_them() {
    let sockets = Sockets::start().await;
    let mode = |kind: usize, name: &str| {
        std::fs::metadata(sockets.folders[kind].join(name)).unwrap().permissions().mode() & 0o7777
    };
    for name in ["plain", "edge", "also"] {
        assert_eq!(mode(0, name), mode(1, name), "{name}");
    }
    assert_eq!((mode(1, "plain"), mode(1, "also")), (0o620, 0o600));
    // The abstract namespace, and all addresses of one listener.
    for kind in [0, 1] {
        let name = name_of(&sockets.folders[kind]);
        let address = std::os::unix::net::SocketAddr::from_abstract_name(name).unwrap();
        let stream = std::os::unix::net::UnixStream::connect_addr(&address).unwrap();
        stream.set_nonblocking(true).unwrap();
        let by_name = exchange(UnixStream::from_std(stream).unwrap(), &get("/", "a", "")).await;
        assert!(by_name.starts_with("HTTP/1.1 200"), "{}: {by_name}", KINDS[kind]);
        let by_port =
            tokio::net::TcpStream::connect(("127.0.0.1", sockets.proxies[kind].ports["also"])).await;
        let by_port = exchange(by_port.unwrap(), &get("/", "a", "")).await;
        assert!(by_port.starts_with("HTTP/1.1 200"), "{}: {by_port}", KINDS[kind]);
    }
    sockets.both("also", &get("/", "a", "")).await;
    let mut pages = Vec::new();
    for kind in [0, 1] {
        let proxy = &sockets.proxies[kind];
        let own = format!("@{}", name_of(&sockets.folders[kind]));
        let page = |text: String| {
            sockets.told(kind, &text).replace(&own, "@OWN").replace(&proxy.ports["also"].to_string(), "1")
        };
        let mut listed: Vec<String> = page(proxy.admin("/listeners").await.unwrap())
            .lines()
            .filter(|l| l.contains("::"))
            .map(str::to_owned)
            .collect();
        listed.sort_unstable();
        let json = page(proxy.admin("/listeners?format=json").await.unwrap());
        let json: Value = serde_json::from_str(&json[json.find('{').unwrap()..]).unwrap();
        let mut named: Vec<String> = json["listener_statuses"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| {
                json!([one["name"], one["local_address"], one["additional_local_addresses"]]).to_string()
            })
            .collect();
        named.sort_unstable();
        let stats = page(proxy.admin("/stats?filter=downstream_cx_total").await.unwrap());
        let mut counted: Vec<String> = stats
            .lines()
            .filter(|line| {
                line.starts_with("listener.") && !line.contains("admin") && !line.contains("worker_")
            })
            .map(str::to_owned)
            .collect();
        counted.sort_unstable();
        pages.push((listed, named, counted));
    }
    assert_eq!(pages[0].0, pages[1].0);
    assert_eq!(pages[0].1, pages[1].1);
    assert_eq!(pages[0].2, pages[1].2);
}
