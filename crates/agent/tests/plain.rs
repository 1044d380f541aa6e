//! `lateen-proxy` as a program, run from a plain Envoy bootstrap.

#[allow(dead_code, reason = "each test program uses its own part")]
mod support;

use std::net::SocketAddr;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::{ControlPlane, Upstream, eventually, free_port, get, get_until, world};

const PROXY: &str = env!("CARGO_BIN_EXE_lateen-proxy");

/// Ends the program with the test.
struct Proxy(std::process::Child);

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn bootstrap(upstream: SocketAddr, listeners: Value) -> Value {
    let address = |a: SocketAddr| json!({ "socket_address": { "address": a.ip().to_string(), "port_value": a.port() } });
    let endpoint = json!({ "endpoint": { "address": address(upstream) } });
    json!({
        "admin": { "address": address("127.0.0.1:0".parse().unwrap()) },
        "static_resources": { "clusters": [{
            "name": "app", "type": "STATIC", "connect_timeout": "1s",
            "load_assignment": { "cluster_name": "app", "endpoints": [{ "lb_endpoints": [endpoint] }] },
        }]},
        "dynamic_resources": { "lds_config": listeners },
    })
}

fn listener(port: u16) -> Value {
    json!({
        "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
        "name": "l",
        "address": { "socket_address": { "address": "127.0.0.1", "port_value": port } },
        "filter_chains": [{ "filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": "l",
                "route_config": { "virtual_hosts": [{
                    "name": "h", "domains": ["*"],
                    "routes": [{ "match": { "prefix": "/" }, "route": { "cluster": "app" } }],
                }]},
                "http_filters": [{
                    "name": "envoy.filters.http.router",
                    "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
                }],
            },
        }]}],
    })
}

#[tokio::test]
async fn a_bootstrap_serves_and_its_listener_file_is_followed() {
    let folder = tempfile::tempdir().unwrap();
    let upstream = Upstream::start("plain").await;
    let (first, second) = (free_port(), free_port());
    let file = folder.path().join("lds.json");
    let write = |port: u16| {
        let text = json!({ "version_info": port.to_string(), "resources": [listener(port)] }).to_string();
        std::fs::write(folder.path().join("new"), text).unwrap();
        std::fs::rename(folder.path().join("new"), &file).unwrap();
    };
    write(first);
    let source = json!({ "path_config_source": { "path": file }, "resource_api_version": "V3" });
    let (boot, admin) = (folder.path().join("boot.json"), folder.path().join("admin"));
    std::fs::write(&boot, bootstrap(upstream.address, source).to_string()).unwrap();
    let mut command = Command::new(PROXY);
    command.arg("-c").arg(&boot).args(["--concurrency", "1", "--admin-address-path"]).arg(&admin);
    let mut proxy = Proxy(command.stdout(Stdio::null()).spawn().unwrap());

    let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
    assert!(get_until(loopback(first), "/", "200 OK").await.ends_with("plain"));
    let address: SocketAddr = eventually("the admin address", || async {
        std::fs::read_to_string(&admin).ok()?.trim().parse().ok()
    })
    .await;
    get_until(address, "/ready", "LIVE").await;
    write(second);
    assert!(get_until(loopback(second), "/", "200 OK").await.ends_with("plain"));

    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(proxy.0.id() as i32),
        nix::sys::signal::Signal::SIGTERM,
    )
    .unwrap();
    let status = eventually("the end", || {
        let ended = proxy.0.try_wait().unwrap();
        async move { ended }
    });
    assert!(status.await.success());
}

/// From a management server, by either variant of the protocol.
async fn follows_a_management_server(api_type: &str) {
    let folder = tempfile::tempdir().unwrap();
    let upstream = Upstream::start("dynamic").await;
    let (first, second) = (free_port(), free_port());
    let server = ControlPlane::start(world(first, upstream.address)).await;
    let mut boot = bootstrap(server.address, json!({ "ads": {}, "resource_api_version": "V3" }));
    boot["node"] = json!({ "id": "me", "cluster": "here" });
    boot["dynamic_resources"]["cds_config"] = json!({ "ads": {}, "resource_api_version": "V3" });
    boot["dynamic_resources"]["ads_config"] = json!({
        "api_type": api_type, "transport_api_version": "V3",
        "grpc_services": [{ "envoy_grpc": { "cluster_name": "app" } }],
    });
    boot["static_resources"]["clusters"][0]["typed_extension_protocol_options"] = json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": { "http2_protocol_options": {} },
        },
    });
    let file = folder.path().join("boot.json");
    std::fs::write(&file, boot.to_string()).unwrap();
    let mut command = Command::new(PROXY);
    command.arg("-c").arg(&file).args(["--concurrency", "2"]);
    let _proxy = Proxy(command.stdout(Stdio::null()).spawn().unwrap());

    let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
    assert!(get_until(loopback(first), "/", "200 OK").await.ends_with("dynamic"));
    assert!(server.heard(|heard| heard.node_ids.contains(&"me".to_owned())));
    server.set(world(second, upstream.address));
    assert!(get_until(loopback(second), "/", "200 OK").await.ends_with("dynamic"));
    if api_type == "GRPC" {
        // The new state of the world has no such listener.
        eventually("the first listener's end", || async {
            get(loopback(first), "/").await.is_err().then_some(())
        })
        .await;
    }
    assert_eq!(server.heard(|heard| heard.nacks.clone()), Vec::<String>::new());
}

#[tokio::test]
async fn a_management_server_is_followed_by_deltas() {
    follows_a_management_server("DELTA_GRPC").await;
}

#[tokio::test]
async fn a_management_server_is_followed_by_states_of_the_world() {
    follows_a_management_server("GRPC").await;
}

#[test]
fn a_bootstrap_that_is_wrong_is_refused_with_the_path() {
    for (text, part) in [
        ("{admin: {adress: 1}}", "bootstrap --config-yaml: admin"),
        (
            "{static_resources: {clusters: [{name: a, track_timeout_budgets: true}]}}",
            "clusters[0].track_timeout_budgets",
        ),
    ] {
        let output = Command::new(PROXY).args(["--config-yaml", text]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(part), "{said}");
        assert_eq!(said.matches("lateen-proxy: ").count(), 1, "{said}");
    }
}
