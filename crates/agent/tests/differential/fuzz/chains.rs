//! Random filter chains: both proxies choose the same one for the same connection.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;

use futures::StreamExt as _;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};

use super::asked::proxy_header;
use super::random::Dice;
use crate::proxies::{self, address, cluster};
use crate::wire::Wire;

/// Listeners of a seed.
const LISTENERS: usize = 16;
/// Connections to each.
const CONNECTIONS: usize = 20;
/// Most chains of a listener; each leads to a service of its own.
const CHAINS: usize = 6;

const FILTERS: &str = "type.googleapis.com/envoy.extensions.filters.listener";

fn ranges(dice: &mut Dice, of: &[(&str, u32)]) -> Value {
    let (address_prefix, prefix_len) = dice.one(of);
    json!([{ "address_prefix": address_prefix, "prefix_len": prefix_len }])
}

fn some_of(dice: &mut Dice, of: &[&str]) -> Value {
    let mut all = of.to_vec();
    dice.0.shuffle(&mut all);
    all.truncate(1 + dice.0.usize(..2));
    json!(all)
}

fn chain_match(dice: &mut Dice, proxied: bool) -> Value {
    let mut found = json!({});
    let f = &mut found;
    if proxied {
        dice.sometimes(4, f, "destination_port", |dice| json!(dice.one(&[80, 443])));
        dice.sometimes(6, f, "source_ports", |_| json!([1000]));
    }
    // Not 0.0.0.0/0: where other chains have no range, Envoy forgets either those or these.
    let destinations = [("127.0.0.0", 8), ("5.6.7.0", 24), ("5.6.7.8", 32)];
    dice.sometimes(4, f, "prefix_ranges", |dice| ranges(dice, &destinations));
    dice.sometimes(6, f, "direct_source_prefix_ranges", |dice| {
        ranges(dice, &[("127.0.0.0", 8), ("10.0.0.0", 8)])
    });
    let sources = [("127.0.0.0", 8), ("1.2.3.0", 24), ("10.0.0.1", 32)];
    dice.sometimes(5, f, "source_prefix_ranges", |dice| ranges(dice, &sources));
    dice.sometimes(5, f, "source_type", |dice| json!(dice.one(&["SAME_IP_OR_LOOPBACK", "EXTERNAL"])));
    let names = ["a.example", "b.example", "*.example", "*.a.example"];
    dice.sometimes(3, f, "server_names", |dice| some_of(dice, &names));
    dice.sometimes(3, f, "transport_protocol", |dice| json!(dice.one(&["tls", "raw_buffer"])));
    dice.sometimes(4, f, "application_protocols", |dice| some_of(dice, &["h2", "http/1.1", "h2c", "istio"]));
    found
}

/// All combinations of what a match asks for; Envoy takes none twice.
fn combinations(found: &Value) -> Vec<String> {
    let mut all = vec![String::new()];
    for key in [
        "destination_port",
        "prefix_ranges",
        "server_names",
        "transport_protocol",
        "application_protocols",
        "direct_source_prefix_ranges",
        "source_type",
        "source_prefix_ranges",
        "source_ports",
    ] {
        let values = match &found[key] {
            Value::Array(list) => list.clone(),
            other => vec![other.clone()],
        };
        all = all.iter().flat_map(|all| values.iter().map(move |value| format!("{all}|{value}"))).collect();
    }
    all
}

/// A listener without its address, and whether it looks for PROXY headers.
fn listener(dice: &mut Dice) -> (Value, bool) {
    let proxied = dice.once_in(2);
    let mut filters = Vec::new();
    if proxied {
        filters.push(json!({ "name": "proxy", "typed_config": { "@type": format!("{FILTERS}.proxy_protocol.v3.ProxyProtocol"), "allow_requests_without_proxy_protocol": dice.0.bool() } }));
    }
    filters.push(json!({ "name": "envoy.filters.listener.tls_inspector", "typed_config": { "@type": format!("{FILTERS}.tls_inspector.v3.TlsInspector") } }));
    if dice.0.bool() {
        filters.push(json!({ "name": "envoy.filters.listener.http_inspector", "typed_config": { "@type": format!("{FILTERS}.http_inspector.v3.HttpInspector") } }));
    }
    let to = |number: usize| {
        json!([{ "name": "tcp", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "tcp", "cluster": format!("chain-{number}"),
        } }])
    };
    let mut taken = BTreeSet::new();
    let chains: Vec<Value> = (0..1 + dice.0.usize(..CHAINS - 1))
        .filter_map(|number| {
            let found = chain_match(dice, proxied);
            let all = combinations(&found);
            let new = all.iter().all(|one| !taken.contains(one));
            taken.extend(all);
            new.then(
                || json!({ "name": format!("{number}"), "filter_chain_match": found, "filters": to(number) }),
            )
        })
        .collect();
    let mut listener = json!({ "listener_filters": filters, "filter_chains": chains });
    dice.sometimes(2, &mut listener, "default_filter_chain", |_| json!({ "filters": to(CHAINS - 1) }));
    (listener, proxied)
}

fn hello(dice: &mut Dice) -> Vec<u8> {
    let mut config = rustls::ClientConfig::builder()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols =
        dice.some(2, |dice| dice.one(&["h2", "http/1.1", "istio", "x"]).as_bytes().to_vec());
    let name = dice.one(&["a.example", "A.Example", "b.example", "c.a.example", "other.test", "127.0.0.1"]);
    let name = rustls::pki_types::ServerName::try_from(name).unwrap();
    let mut client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

/// What a client sends.
fn opening(dice: &mut Dice, proxied: bool) -> Vec<u8> {
    let mut bytes = if proxied && !dice.once_in(5) { proxy_header(dice) } else { Vec::new() };
    bytes.extend(match dice.0.u8(..6) {
        0 => b"GET / HTTP/1.1\r\nhost: a.example\r\n\r\n".to_vec(),
        1 => b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec(),
        2 => b"what is this\r\n".to_vec(),
        _ => hello(dice),
    });
    bytes
}

/// Services that say their number and keep silent then.
async fn services() -> Vec<SocketAddr> {
    let mut all = Vec::new();
    for number in 0..CHAINS {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        all.push(listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let _ = stream.write_all(format!("{number}").as_bytes()).await;
                    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
                });
            }
        });
    }
    all
}

/// The number of the service that was met; nothing when the connection is closed.
async fn met(address: SocketAddr, opening: &[u8]) -> String {
    let mut wire = Wire::new(TcpStream::connect(address).await.unwrap());
    wire.send(opening).await;
    String::from_utf8_lossy(&wire.raw(1).await).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_filter_chain_is_chosen() {
    let services = services().await;
    let clusters: Vec<Value> = services
        .iter()
        .enumerate()
        .map(|(number, service)| cluster(&format!("chain-{number}"), json!({}), &[*service]))
        .collect();
    let mut complaints = String::new();
    for seed in super::seeds() {
        let mut dice = Dice(fastrand::Rng::with_seed(seed));
        let names: Vec<&'static str> = (0..LISTENERS)
            .map(|n| -> &'static str { Box::leak(format!("chains-{n}").into_boxed_str()) })
            .collect();
        let configs: Vec<(Value, bool)> = names.iter().map(|_| listener(&mut dice)).collect();
        let folder = tempfile::tempdir().unwrap();
        let pair = proxies::both(folder.path(), &names, |ports, _| {
            let listeners = names.iter().zip(&configs).map(|(name, (config, _))| {
                proxies::merged(json!({ "name": name, "address": address(ports[name]) }), config.clone())
            });
            [listeners.collect(), clusters.clone()]
        })
        .await;
        let mut asked = Vec::new();
        for (name, (config, proxied)) in names.iter().zip(&configs) {
            asked.extend((0..CONNECTIONS).map(|_| (*name, config, opening(&mut dice, *proxied))));
        }
        let pair = &pair;
        let seen: Vec<_> = futures::stream::iter(asked)
            .map(|(name, config, opening)| async move {
                let at = |kind: usize| SocketAddr::from(([127, 0, 0, 1], pair[kind].ports[name]));
                let (envoy, lateen) = tokio::join!(met(at(0), &opening), met(at(1), &opening));
                (config, opening, envoy, lateen)
            })
            .buffer_unordered(8)
            .collect()
            .await;
        for (config, opening, envoy, lateen) in seen {
            if envoy != lateen {
                let opening = String::from_utf8_lossy(&opening).into_owned();
                writeln!(
                    complaints,
                    "=== seed {seed}: Envoy {envoy:?}, Lateen {lateen:?}\n{config}\n{opening:?}"
                )
                .unwrap();
            }
        }
    }
    assert!(complaints.is_empty(), "\n{complaints}");
}
