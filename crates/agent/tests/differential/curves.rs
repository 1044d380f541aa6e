//! Which group the key exchange of two proxies agrees on, for each pair of engines: in the mesh it is one that a quantum computer does
//! not break.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::duo::get;
use crate::proxies::{Proxy, address, cluster, free_ports, manager};
use crate::tls_config::{downstream_tls, upstream_tls};
use crate::tls_pki::Pki;

/// As the control plane sets them for mutual TLS (`translate::mutual_tls`); `none` leaves them to the proxy.
const SETTINGS: [(&str, &[&str]); 3] =
    [("mesh", &["X25519MLKEM768", "X25519", "P-256"]), ("none", &[]), ("classic", &["P-256"])];

fn params(curves: &[&str]) -> Value {
    json!({ "common_tls_context": { "tls_params": { "ecdh_curves": curves, "tls_maximum_protocol_version": "TLSv1_3" } } })
}

fn http(routes: Value) -> Value {
    let kind = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    json!({ "name": "envoy.filters.network.http_connection_manager",
        "typed_config": manager(vec![], routes, json!({ "@type": kind, "stat_prefix": "web" })) })
}

/// A proxy that serves TLS by each of the settings, and is a client by each of them to each server of both.
async fn start(
    envoy: bool,
    pki: &Pki,
    folder: &std::path::Path,
    servers: &BTreeMap<String, u16>,
    web: u16,
    admin: u16,
) -> Proxy {
    let mine = if envoy { "envoy" } else { "lateen" };
    let answer = json!([{ "match": { "prefix": "/" }, "direct_response": { "status": 200, "body": { "inline_string": mine } } }]);
    let mut listeners: Vec<Value> = SETTINGS
        .iter()
        .map(|(name, curves)| {
            json!({ "name": name, "stat_prefix": name, "address": address(servers[&format!("{mine}-{name}")]),
                "filter_chains": [{ "filters": [http(answer.clone())], "transport_socket": downstream_tls(pki, params(curves)) }] })
        })
        .collect();
    let (mut routes, mut clusters) = (Vec::new(), Vec::new());
    for (server, port) in servers {
        for (client, curves) in SETTINGS {
            let name = format!("{client}-to-{server}");
            let mut tls = params(curves);
            tls["sni"] = json!("a.example");
            clusters.push(cluster(
                &name,
                json!({ "transport_socket": upstream_tls(tls) }),
                &[([127, 0, 0, 1], *port).into()],
            ));
            routes.push(json!({ "match": { "path": format!("/{name}") }, "route": { "cluster": name } }));
        }
    }
    listeners.push(json!({ "name": "web", "address": address(web),
        "filter_chains": [{ "filters": [http(json!(routes))] }] }));
    let bootstrap = json!({
        "node": { "id": "curves", "cluster": "tests" }, "admin": { "address": address(admin) },
        "static_resources": { "listeners": listeners, "clusters": clusters },
    });
    Proxy::launch(envoy, &bootstrap, folder, BTreeMap::from([("web", web)]), admin).await
}

/// Handshakes of a server by group.
async fn handshakes(proxy: &Proxy, server: &str) -> BTreeMap<String, u64> {
    let page = proxy.admin("/stats").await.unwrap();
    let prefix = format!("listener.{server}.ssl.curves.");
    let lines = page.lines().filter_map(|line| line.strip_prefix(&prefix)?.split_once(": "));
    lines.map(|(curve, count)| (curve.to_owned(), count.parse().unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proxies_of_the_mesh_agree_on_a_group_that_lasts() {
    let (pki, folder) = (Pki::new(), tempfile::tempdir().unwrap());
    let mut free = free_ports(4 + 2 * SETTINGS.len());
    let mut port = || free.pop().unwrap();
    let servers: BTreeMap<String, u16> = ["envoy", "lateen"]
        .into_iter()
        .flat_map(|engine| SETTINGS.map(|(name, _)| format!("{engine}-{name}")))
        .map(|name| (name, port()))
        .collect();
    let envoy = start(true, &pki, folder.path(), &servers, port(), port()).await;
    let lateen = start(false, &pki, folder.path(), &servers, port(), port()).await;
    let proxies = [("envoy", &envoy), ("lateen", &lateen)];
    let mut agreed = BTreeMap::new();
    for (engine, server) in proxies {
        for (setting, _) in SETTINGS {
            for (peer, client) in proxies {
                for (offered, _) in SETTINGS {
                    let before = handshakes(server, setting).await;
                    let path = format!("/{offered}-to-{engine}-{setting}");
                    let reply = get(([127, 0, 0, 1], client.ports["web"]).into(), &path, &[]).await;
                    assert_eq!((reply.status, reply.body.as_str()), (200, engine), "{peer}{path}");
                    let after = handshakes(server, setting).await;
                    let new: Vec<_> =
                        after.into_iter().filter(|(curve, count)| before.get(curve) != Some(count)).collect();
                    let [(curve, _)] = &new[..] else { panic!("{peer}{path}: {new:?}") };
                    agreed.entry((offered, setting)).or_insert_with(Vec::new).push((
                        peer,
                        engine,
                        curve.clone(),
                    ));
                }
            }
        }
    }
    for ((client, server), pairs) in &agreed {
        let curves: Vec<_> = pairs.iter().map(|(.., curve)| curve.as_str()).collect();
        let expected = match (*client, *server) {
            ("mesh", "mesh") => "X25519MLKEM768",
            ("classic", _) | (_, "classic") => "P-256",
            // Whatever the engines have by themselves: the same.
            _ => curves[0],
        };
        assert!(
            curves.len() == 4 && curves.iter().all(|curve| *curve == expected),
            "{client} to {server}: {pairs:?}"
        );
    }
}
