//! Clients that show what is not theirs: certificates of namesakes of the authority, of other times, with others' keys; keys and
//! certificates that are not those on a list of hashes; authorities in a workload's place. Over TLS 1.2 and 1.3.

use std::path::Path;

use rcgen::KeyUsagePurpose;
use serde_json::{Value, json};

use super::{SPIFFE, over_tls, said, served};
use crate::proxies::{Proxy, both, listener, manager, merged};
use crate::tls::Client;
use crate::tls_config::downstream_tls;
use crate::tls_pki::{Authority, Pair, Pki};

const NAME: &str = "spiffe://td/ns/a/sa/client";

fn clients(pki: &Pki) -> Vec<(&'static str, Pair)> {
    let (root, namesake) = (&pki.authority, Authority::new("tests root"));
    let signing = [KeyUsagePurpose::DigitalSignature];
    let issue = |by: &Authority, usages: &[KeyUsagePurpose]| by.issue_for("c", &[NAME], false, usages);
    vec![
        ("good", issue(root, &signing)),
        ("on the lists", pki.client.clone()),
        ("with another's key", pki.client.clone().with_key_of(&pki.client_stranger)),
        ("of a namesake", issue(&namesake, &signing)),
        ("old", pki.client_old.clone()),
        ("old, of a namesake", namesake.issue_old("client")),
        ("old, of another", pki.client_old_other.clone()),
        ("old, with another's key", pki.client_old.clone().with_key_of(&pki.client)),
        ("old, over", root.issue_old_within("client", 2020..2021)),
        ("old, not yet", root.issue_old_within("client", 2039..2040)),
        ("an authority", root.issue_authority(NAME, &signing)),
        ("who signs lists", issue(root, &[KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::CrlSign])),
    ]
}

/// What validates clients, by listener.
fn contexts(pki: &Pki) -> Vec<(&'static str, Value)> {
    let inline = |pem: &str| json!({ "inline_string": pem });
    let with_root = |more: Value| merged(json!({ "trusted_ca": inline(&pki.authority.pem()) }), more);
    let (listed, other) = (&pki.client, &pki.client_stranger);
    vec![
        ("root", with_root(json!({}))),
        ("expired-too", with_root(json!({ "allow_expired_certificate": true }))),
        ("key", with_root(json!({ "verify_certificate_spki": [listed.key_hash] }))),
        ("keys", with_root(json!({ "verify_certificate_spki": [other.key_hash, listed.key_hash] }))),
        ("key-alone", json!({ "verify_certificate_spki": [listed.key_hash] })),
        (
            "key-or-hash",
            with_root(
                json!({ "verify_certificate_spki": [listed.key_hash], "verify_certificate_hash": [other.hash] }),
            ),
        ),
        (
            "hash-or-key",
            with_root(
                json!({ "verify_certificate_spki": [other.key_hash], "verify_certificate_hash": [listed.hash] }),
            ),
        ),
        (
            "neither",
            with_root(
                json!({ "verify_certificate_spki": [other.key_hash], "verify_certificate_hash": [other.hash] }),
            ),
        ),
        (
            "domain",
            json!({ "custom_validator_config": { "name": "envoy.tls.cert_validator.spiffe", "typed_config": {
                "@type": SPIFFE, "trust_domains": [{ "name": "td", "trust_bundle": inline(&pki.authority.pem()) }],
            } } }),
        ),
    ]
}

/// Both proxies, with a listener for each of these contexts.
async fn start(folder: &Path, pki: &Pki, contexts: &[(&'static str, Value)]) -> [Proxy; 2] {
    let names: Vec<&'static str> = contexts.iter().map(|(name, _)| *name).collect();
    both(folder, &names, |ports, log| {
        let listeners = contexts.iter().map(|(name, context)| {
            let tls = downstream_tls(
                pki,
                json!({ "require_client_certificate": true, "common_tls_context": { "validation_context": context } }),
            );
            over_tls(listener(name, ports[*name], manager(vec![], served(), json!({})), log), &tls)
        });
        [listeners.collect(), vec![]]
    })
    .await
}

/// What becomes of each client at each listener, by Envoy and by our engine.
async fn verdicts(
    pki: &Pki,
    contexts: &[(&'static str, Value)],
    clients: &[(&'static str, Pair)],
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> [Vec<String>; 2] {
    let names: Vec<&'static str> = contexts.iter().map(|(name, _)| *name).collect();
    let folder = tempfile::tempdir().unwrap();
    let proxies = start(folder.path(), pki, contexts).await;
    let mut table: [Vec<String>; 2] = Default::default();
    for (who, pair) in clients {
        for version in versions {
            let certificate = Some(pair.clone());
            let client =
                Client { sni: Some("a.example"), versions: vec![version], certificate, ..Client::default() };
            for name in &names {
                for (proxy, table) in proxies.iter().zip(&mut table) {
                    let said = said(proxy.ports[*name], &client).await;
                    table.push(format!("{name}, {:?}, {who}: {said}", version.version));
                }
            }
        }
    }
    table
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_shows_what_is_not_theirs_is_refused() {
    let pki = Pki::new();
    let versions = [&rustls::version::TLS12, &rustls::version::TLS13];
    let mut table = verdicts(&pki, &contexts(&pki), &clients(&pki), &versions).await;
    // webpki takes no authority for a peer (RFC 5280 leaves it open); BoringSSL does.
    for line in table[1].iter_mut().filter(|line| line.ends_with("an authority: nothing")) {
        if line.starts_with("root,") || line.starts_with("expired-too,") {
            *line = line.replace("nothing", "HTTP/1.1 200");
        }
    }
    assert_eq!(table[0], table[1]);
    for version in ["TLSv1_2", "TLSv1_3"] {
        for (line, said) in [
            ("root, VERSION, old", "HTTP/1.1 200"),
            ("root, VERSION, old, of a namesake", "nothing"),
            ("root, VERSION, old, with another's key", "nothing"),
            ("root, VERSION, old, over", "nothing"),
            ("expired-too, VERSION, old, over", "HTTP/1.1 200"),
            ("root, VERSION, with another's key", "nothing"),
            ("key, VERSION, on the lists", "HTTP/1.1 200"),
            ("key, VERSION, good", "nothing"),
            ("key-alone, VERSION, good", "nothing"),
            ("key-or-hash, VERSION, on the lists", "HTTP/1.1 200"),
            ("neither, VERSION, on the lists", "nothing"),
            ("domain, VERSION, good", "HTTP/1.1 200"),
            ("domain, VERSION, an authority", "nothing"),
            ("domain, VERSION, who signs lists", "nothing"),
        ] {
            let line = format!("{}: {said}", line.replace("VERSION", version));
            assert!(table[1].contains(&line), "{line}\n{:#?}", table[1]);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_are_of_the_kind_that_is_wanted() {
    let pki = Pki::new();
    let issue = |names: &[&str]| pki.authority.issue("c", names, false);
    let clients = [
        ("dns", issue(&["x.example"])),
        ("upper", issue(&["X.Example"])),
        ("wildcard", issue(&["*.x.example"])),
        ("wildcard above", issue(&["*.example"])),
        ("another's wildcard", issue(&["*.y.example"])),
        ("uri", issue(&["spiffe://x.example"])),
        ("email", issue(&["me@x.example"])),
        ("ip", issue(&["10.0.0.1"])),
        ("ip6", issue(&["2001:db8::1"])),
        ("second", issue(&["y.example", "spiffe://y.example", "x.example"])),
        ("nobody", issue(&["y.example", "spiffe://x.example/y", "me@y.example", "10.0.0.2"])),
        ("no name", issue(&[])),
    ];
    let root = json!({ "trusted_ca": { "inline_string": pki.authority.pem() } });
    let wants = |kind: &str, matcher: Value| {
        merged(
            root.clone(),
            json!({ "match_typed_subject_alt_names": [{ "san_type": kind, "matcher": matcher }] }),
        )
    };
    let suffix = || json!({ "suffix": "x.example" });
    let either = json!([
        { "san_type": "DNS", "matcher": { "exact": "x.example" } },
        { "san_type": "IP_ADDRESS", "matcher": { "exact": "10.0.0.1" } },
    ]);
    let contexts = [
        ("dns", wants("DNS", suffix())),
        ("dns-exact", wants("DNS", json!({ "exact": "x.example" }))),
        ("dns-below", wants("DNS", json!({ "exact": "a.x.example" }))),
        ("dns-upper", wants("DNS", json!({ "exact": "X.EXAMPLE", "ignore_case": true }))),
        ("uri", wants("URI", suffix())),
        ("uri-exact", wants("URI", json!({ "exact": "spiffe://x.example" }))),
        ("email", wants("EMAIL", suffix())),
        ("ip", wants("IP_ADDRESS", json!({ "exact": "10.0.0.1" }))),
        ("ip-prefix", wants("IP_ADDRESS", json!({ "prefix": "10.0.0." }))),
        ("ip6", wants("IP_ADDRESS", json!({ "exact": "2001:db8::1" }))),
        ("ip-as-dns", wants("DNS", json!({ "exact": "10.0.0.1" }))),
        ("either", merged(root.clone(), json!({ "match_typed_subject_alt_names": either }))),
    ];
    let [envoy, lateen] = verdicts(&pki, &contexts, &clients, &[&rustls::version::TLS13]).await;
    assert_eq!(envoy, lateen);
    for line in [
        "dns, TLSv1_3, dns: HTTP/1.1 200",
        "dns, TLSv1_3, uri: nothing",
        "uri, TLSv1_3, dns: nothing",
        "email, TLSv1_3, dns: nothing",
        "ip, TLSv1_3, ip: HTTP/1.1 200",
        "ip-as-dns, TLSv1_3, ip: nothing",
        "either, TLSv1_3, nobody: nothing",
    ] {
        assert!(lateen.iter().any(|found| found == line), "{line}\n{lateen:#?}");
    }
}

/// Hears which authorities a server names, and shows nothing.
#[derive(Debug, Default)]
struct Hears(std::sync::Mutex<Vec<Vec<u8>>>);

impl rustls::client::ResolvesClientCert for Hears {
    fn resolve(
        &self,
        named: &[&[u8]],
        _: &[rustls::SignatureScheme],
    ) -> Option<std::sync::Arc<rustls::sign::CertifiedKey>> {
        *self.0.lock().unwrap() = named.iter().map(|name| name.to_vec()).collect();
        None
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// By what a server names clients choose among their certificates.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_name_the_authorities_they_go_by() {
    let (pki, other) = (Pki::new(), Authority::new("other root"));
    let inline = |pem: &str| json!({ "inline_string": pem });
    let domain = |name: &str, roots: &str| json!({ "name": name, "trust_bundle": inline(roots) });
    let by_domain = |more: Value| {
        let domains = [domain("td", &pki.authority.pem()), domain("other", &other.pem())];
        let base = json!({ "custom_validator_config": { "name": "envoy.tls.cert_validator.spiffe", "typed_config": {
            "@type": SPIFFE, "trust_domains": domains,
        } } });
        merged(base, more)
    };
    let third = Authority::new("third root").pem();
    let contexts = [
        ("root", json!({ "trusted_ca": inline(&pki.authority.pem()) })),
        ("two", json!({ "trusted_ca": inline(&format!("{}{}", pki.authority.pem(), other.pem())) })),
        ("hash", json!({ "verify_certificate_hash": [pki.client.hash] })),
        ("domains", by_domain(json!({}))),
        ("domains-beside-a-root", by_domain(json!({ "trusted_ca": inline(&third) }))),
    ];
    let names: Vec<&'static str> = contexts.iter().map(|(name, _)| *name).collect();
    let folder = tempfile::tempdir().unwrap();
    let proxies = start(folder.path(), &pki, &contexts).await;
    // By listener and version: the authorities that a server names.
    type Named<'a> = Vec<(&'a str, usize, Vec<Vec<u8>>)>;
    let mut heard: [Named<'_>; 2] = Default::default();
    for name in names {
        for (proxy, heard) in proxies.iter().zip(&mut heard) {
            let hears = std::sync::Arc::new(Hears::default());
            let stream = tokio::net::TcpStream::connect(("127.0.0.1", proxy.ports[name])).await.unwrap();
            let connector = crate::tls::connector(&Client { sni: Some("a.example"), ..Client::default() });
            let mut config = (**connector.config()).clone();
            config.client_auth_cert_resolver = hears.clone();
            let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
            // Over TLS 1.3 the handshake is done for a client that will be turned away.
            drop(connector.connect("a.example".try_into().unwrap(), stream).await);
            let mut named = std::mem::take(&mut *hears.0.lock().unwrap());
            named.sort_unstable();
            heard.push((name, named.len(), named));
        }
    }
    assert_eq!(heard[0], heard[1]);
    let counts: Vec<_> = heard[1].iter().map(|(name, count, _)| (*name, *count)).collect();
    assert_eq!(counts, [("root", 1), ("two", 2), ("hash", 0), ("domains", 2), ("domains-beside-a-root", 2)]);
}
