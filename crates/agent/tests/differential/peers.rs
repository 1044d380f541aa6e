//! Who a TLS client is: what external authorizers are told of it, by the HTTP and the network filter, and whom a validator by trust
//! domains (SPIFFE) takes, as server and as client.

mod impostors;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use rcgen::KeyUsagePurpose;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::authorizers::{self, Heard};
use crate::proxies::{Proxy, address, both, cluster, listener, manager, merged};
use crate::tls::{Client, connector};
use crate::tls_config::{certificate, downstream_tls, upstream_tls};
use crate::tls_pki::{Authority, Pair, Pki};

const ASKING: &str = "type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz";
const NETWORK_ASKING: &str = "type.googleapis.com/envoy.extensions.filters.network.ext_authz.v3.ExtAuthz";
const ECHO: &str = "type.googleapis.com/envoy.extensions.filters.network.echo.v3.Echo";
const H2: &str = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
pub(crate) const SPIFFE: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.SPIFFECertValidatorConfig";

/// Some answer to everything.
pub(crate) fn served() -> Value {
    json!([{ "match": { "prefix": "/" }, "direct_response": { "status": 200, "body": { "inline_string": "in" } } }])
}

pub(crate) fn over_tls(mut listener: Value, socket: &Value) -> Value {
    listener["filter_chains"][0]["transport_socket"] = socket.clone();
    listener
}

/// What becomes of a connection with a request: its answer, or that there is none.
pub(crate) async fn said(port: u16, client: &Client) -> String {
    let asked = async {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
        let stream = connector(client).connect(ServerName::try_from("a.example").unwrap(), stream).await?;
        exchange(stream).await
    };
    let said = tokio::time::timeout(Duration::from_secs(10), asked).await.unwrap();
    said.ok().filter(|text| !text.is_empty()).unwrap_or_else(|| "nothing".to_owned())
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<String> {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a.example\r\nconnection: close\r\n\r\n").await?;
    let mut text = String::new();
    // Envoy ends without `close_notify` now and then.
    let mut byte = [0];
    while !text.ends_with("in") && !text.ends_with("\r\n\r\n") {
        match stream.read(&mut byte).await {
            Ok(0) | Err(_) => break,
            Ok(_) => text.push(char::from(byte[0])),
        }
        if text.ends_with("\r\n\r\n") && text.contains("content-length: 2\r\n") {
            text.retain(|c| c != '\r' && c != '\n');
        }
    }
    Ok(text.split(['\r', '\n']).next().unwrap_or_default().chars().take(12).collect())
}

fn asks(kind: &str, more: &Value) -> Value {
    let base = json!({
        "@type": kind, "transport_api_version": "V3",
        "grpc_service": { "envoy_grpc": { "cluster_name": "authz" }, "timeout": "5s" },
    });
    json!({ "name": "authz", "typed_config": merged(base, more.clone()) })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn authorizers_are_told_of_tls_clients() {
    let pki = Pki::new();
    let socket = downstream_tls(
        &pki,
        json!({
            "require_client_certificate": false,
            "common_tls_context": { "validation_context": { "trusted_ca": { "inline_string": pki.authority.pem() } } },
        }),
    );
    let all = json!({ "include_peer_certificate": true, "include_tls_session": true });
    let settings = [("nothing", json!({})), ("everything", all)];
    let names = ["http-nothing", "http-everything", "tcp-nothing", "tcp-everything"];
    let heard = [authorizers::start_recorder().await, authorizers::start_recorder().await];
    let mut recorders = heard.iter();
    let folder = tempfile::tempdir().unwrap();
    let proxies = both(folder.path(), &names, |ports, log| {
        let http = settings.iter().zip(&names[..2]).map(|((_, more), name)| {
            let manager = manager(vec![asks(ASKING, more)], served(), json!({}));
            over_tls(listener(name, ports[*name], manager, log), &socket)
        });
        let tcp = settings.iter().zip(&names[2..]).map(|((_, more), name)| {
            let asking = asks(NETWORK_ASKING, &merged(json!({ "stat_prefix": name }), more.clone()));
            let echo = json!({ "name": "envoy.filters.network.echo", "typed_config": { "@type": ECHO } });
            let plain = json!({
                "name": name, "address": address(ports[*name]), "filter_chains": [{ "filters": [asking, echo] }],
            });
            over_tls(plain, &socket)
        });
        let h2 = json!({ "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": H2, "explicit_http_config": { "http2_protocol_options": {} },
        } } });
        let recorder = recorders.next().unwrap().address;
        [http.chain(tcp).collect(), vec![cluster("authz", h2, &[recorder])]]
    })
    .await;
    let mut complaints = String::new();
    for name in names {
        for certificate in [None, Some(pki.client.clone()), Some(pki.client_old.clone())] {
            let client = Client { sni: Some("a.example"), certificate, ..Client::default() };
            let mut seen = Vec::new();
            for (proxy, heard) in proxies.iter().zip(&heard) {
                let said = said(proxy.ports[name], &client).await;
                seen.push(format!("{said} {:?}", heard.take()));
            }
            if seen[0] != seen[1] || !seen[0].contains("source") {
                complaints += &format!("=== {name}\n--- Envoy\n{}\n--- Lateen\n{}\n", seen[0], seen[1]);
            }
            let certified = client.certificate.is_some() && name.ends_with("everything");
            assert_eq!(seen[0].contains("BEGIN%20CERTIFICATE"), certified, "{}", seen[0]);
        }
    }
    assert!(complaints.is_empty(), "\n{complaints}");
}

/// Certificates of two trust domains.
struct Domains {
    pki: Pki,
    other: Authority,
    server: Pair,
    clients: Vec<(&'static str, Pair)>,
}

impl Domains {
    fn new() -> Self {
        let (pki, other) = (Pki::new(), Authority::new("other root"));
        let own = &pki.authority;
        let usage = [KeyUsagePurpose::DigitalSignature];
        let issue = |by: &Authority, names: &[&str]| by.issue_for("c", names, false, &usage);
        let clients = vec![
            ("own", issue(own, &["spiffe://td/ns/a/sa/client"])),
            ("own, another name", issue(own, &["spiffe://td/ns/b/sa/client"])),
            ("other", issue(&other, &["spiffe://other/ns/a/sa/client"])),
            ("own by the other root", issue(&other, &["spiffe://td/ns/a/sa/client"])),
            ("other by the own root", issue(own, &["spiffe://other/ns/a/sa/client"])),
            ("nobody's", issue(own, &["spiffe://nobody/ns/a/sa/client"])),
            ("without a domain", issue(own, &["spiffe:///ns/a/sa/client"])),
            ("without a path", issue(own, &["spiffe://td"])),
            ("of capitals", issue(own, &["spiffe://TD/ns/a/sa/client"])),
            ("no URI", issue(own, &["client.example"])),
            ("a name and a URI", issue(own, &["td", "spiffe://td/ns/a/sa/client"])),
            ("two URIs", issue(own, &["spiffe://td/ns/a/sa/x", "spiffe://other/ns/a/sa/client"])),
            (
                "two URIs, the other first",
                issue(own, &["spiffe://other/ns/a/sa/x", "spiffe://td/ns/a/sa/client"]),
            ),
            ("expired", own.issue_for("c", &["spiffe://td/ns/a/sa/client"], true, &usage)),
            ("without a usage", own.issue("c", &["spiffe://td/ns/a/sa/client"], false)),
            (
                "that signs",
                own.issue_for("c", &["spiffe://td/ns/a/sa/client"], false, &[KeyUsagePurpose::KeyCertSign]),
            ),
        ];
        let server = issue(&other, &["spiffe://other/ns/a/sa/server"]);
        Self { pki, other, server, clients }
    }

    fn validation(&self, more: Value) -> Value {
        let bundle =
            |name: &str, pem: String| json!({ "name": name, "trust_bundle": { "inline_string": pem } });
        let base = json!({ "custom_validator_config": { "name": "envoy.tls.cert_validator.spiffe", "typed_config": {
            "@type": SPIFFE,
            "trust_domains": [bundle("td", self.pki.authority.pem()), bundle("other", self.other.pem())],
        } } });
        merged(base, more)
    }
}

fn spiffe_listeners(domains: &Domains, ports: &BTreeMap<&'static str, u16>, log: &Path) -> Vec<Value> {
    let server = |name: &str, tls: Value| {
        over_tls(listener(name, ports[name], manager(vec![], served(), json!({})), log), &tls)
    };
    let context = |validation: Value| json!({ "validation_context": validation });
    let accepts = |required: bool, more: Value| {
        let common = context(domains.validation(more));
        downstream_tls(
            &domains.pki,
            json!({ "require_client_certificate": required, "common_tls_context": common }),
        )
    };
    let names = |kind: &str, matcher: Value| json!({ "match_typed_subject_alt_names": [{ "san_type": kind, "matcher": matcher }] });
    // A server of the other domain, for the clients.
    let other = json!({ "name": "envoy.transport_sockets.tls", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": { "tls_certificates": [certificate(&domains.server)] },
    } });
    let goes_to = |cluster: &str| json!([{ "match": { "prefix": "/" }, "route": { "cluster": cluster } }]);
    let client = |name: &str| listener(name, ports[name], manager(vec![], goes_to(name), json!({})), log);
    vec![
        server("domains", accepts(true, json!({}))),
        server("optional", accepts(false, json!({}))),
        server("named", accepts(true, names("URI", json!({ "suffix": "/ns/a/sa/client" })))),
        server("expired", accepts(true, json!({ "allow_expired_certificate": true }))),
        server(
            "beside-a-root",
            accepts(true, json!({ "trusted_ca": { "inline_string": domains.pki.authority.pem() } })),
        ),
        server("server", other),
        client("to-other"),
        client("to-named"),
        client("to-another"),
    ]
}

fn spiffe_clusters(domains: &Domains, ports: &BTreeMap<&'static str, u16>) -> Vec<Value> {
    let to = |name: &str, more: Value| {
        let tls =
            upstream_tls(json!({ "common_tls_context": { "validation_context": domains.validation(more) } }));
        cluster(
            name,
            json!({ "transport_socket": tls }),
            &[SocketAddr::from((Ipv4Addr::LOCALHOST, ports["server"]))],
        )
    };
    let exact = |name: &str| json!({ "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": { "exact": name } }] });
    vec![
        to("to-other", json!({})),
        to("to-named", exact("spiffe://other/ns/a/sa/server")),
        to("to-another", exact("spiffe://td/ns/a/sa/server")),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trust_domains_roots_vouch_for_it_alone() {
    let domains = Domains::new();
    let servers = ["domains", "optional", "named", "expired", "beside-a-root"];
    let names: Vec<&'static str> =
        servers.into_iter().chain(["server", "to-other", "to-named", "to-another"]).collect();
    let folder = tempfile::tempdir().unwrap();
    let proxies = both(folder.path(), &names, |ports, log| {
        [spiffe_listeners(&domains, ports, log), spiffe_clusters(&domains, ports)]
    })
    .await;
    let mut table = [String::new(), String::new()];
    let kinds = domains.clients.iter().map(|(name, pair)| (*name, Some(pair.clone())));
    for (who, certificate) in kinds.chain([("none", None)]) {
        let client = Client { sni: Some("a.example"), certificate, ..Client::default() };
        for name in servers {
            for (proxy, table) in proxies.iter().zip(&mut table) {
                let said = said(proxy.ports[name], &client).await;
                *table += &format!("{name} {who}: {said}\n");
            }
        }
    }
    for name in ["to-other", "to-named", "to-another"] {
        for (proxy, table) in proxies.iter().zip(&mut table) {
            let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.ports[name])).await.unwrap();
            *table += &format!("{name}: {}\n", exchange(stream).await.unwrap());
        }
    }
    for (proxy, table) in proxies.iter().zip(&mut table) {
        *table += &stats(proxy).await;
    }
    assert_eq!(table[0], table[1]);
    for (line, wanted) in [
        ("domains own: HTTP/1.1 200", true),
        ("domains other: HTTP/1.1 200", true),
        ("domains own by the other root: nothing", true),
        ("domains other by the own root: nothing", true),
        ("domains nobody's: nothing", true),
        ("to-other: HTTP/1.1 200", true),
        ("to-another: HTTP/1.1 503", true),
    ] {
        assert_eq!(table[1].contains(line), wanted, "{line}\n{}", table[1]);
    }
}

async fn stats(proxy: &Proxy) -> String {
    let page = proxy.admin("/stats?filter=ssl.(fail|no_cert|handshake)").await.expect("the admin page");
    let mut lines: Vec<&str> = page.lines().filter(|line| line.contains("ssl.")).collect();
    // Listeners are called by their ports.
    lines.retain(|line| line.starts_with("cluster."));
    lines.sort_unstable();
    lines.join("\n")
}

impl Heard {
    /// What was heard since the last time.
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.questions.lock().unwrap())
    }
}
