//! TLS on both proxies: handshakes by version, name, protocol and certificate; traffic to and from TLS; passing it on by name; the
//! PROXY protocol; rotation.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::proxies::{LIMIT, Proxy, free_ports};
use crate::service;
use crate::tls_config::{bootstrap, names};
use crate::tls_pki::{Pair, Pki};
use crate::wire::comparable;

/// One connection of a client.
#[derive(Clone, Default)]
struct Case {
    name: &'static str,
    listener: &'static str,
    path: &'static str,
    /// `None`: plaintext.
    tls: Option<Client>,
    host: &'static str,
    headers: &'static str,
    /// Sent before all else.
    first: Vec<u8>,
}

#[derive(Clone, Default)]
pub(crate) struct Client {
    pub(crate) sni: Option<&'static str>,
    pub(crate) versions: Vec<&'static rustls::SupportedProtocolVersion>,
    pub(crate) alpn: Vec<&'static str>,
    pub(crate) certificate: Option<Pair>,
}

fn case(name: &'static str, listener: &'static str) -> Case {
    Case {
        name,
        listener,
        path: name,
        tls: Some(Client { sni: Some("a.example"), ..Client::default() }),
        host: "host.example",
        ..Case::default()
    }
}

#[allow(clippy::too_many_lines)] // A table of cases.
fn cases(pki: &Pki) -> Vec<Case> {
    let with = |name, listener, pair: &Pair| {
        let mut case = case(name, listener);
        if let Some(client) = &mut case.tls {
            client.certificate = Some(pair.clone());
        }
        case
    };
    let with_sni = |name, listener, sni| {
        let mut case = case(name, listener);
        if let Some(client) = &mut case.tls {
            client.sni = sni;
        }
        case
    };
    let with_alpn = |name, listener, alpn: &[&'static str]| {
        let mut case = case(name, listener);
        if let Some(client) = &mut case.tls {
            client.alpn = alpn.to_vec();
        }
        case
    };
    let with_version = |name, listener, version| {
        let mut case = case(name, listener);
        if let Some(client) = &mut case.tls {
            client.versions = vec![version];
        }
        case
    };
    let through = |name: &'static str, host: &'static str, headers: &'static str| Case {
        name,
        listener: "clients",
        path: name,
        host,
        headers,
        ..Case::default()
    };
    let plain = |name: &'static str, listener: &'static str, first: &[u8]| Case {
        name,
        listener,
        path: name,
        host: "host.example",
        first: first.to_vec(),
        ..Case::default()
    };
    let (tls12, tls13) = (&rustls::version::TLS12, &rustls::version::TLS13);
    let xfcc = "x-forwarded-client-cert: Hash=abc\r\n";
    let mut all = vec![
        case("simple", "simple"),
        with_version("simple-12", "simple", tls12),
        with_version("simple-13", "simple", tls13),
        with_version("tls12-12", "tls12", tls12),
        with_version("tls12-13", "tls12", tls13),
        with_version("tls13-12", "tls13", tls12),
        with_version("tls13-13", "tls13", tls13),
        case("chacha", "chacha"),
        with_sni("sni-none", "simple", None),
        with_sni("sni-wild", "simple", Some("x.wild.example")),
        with_sni("sni-too-deep", "simple", Some("y.x.wild.example")),
        with_sni("sni-other", "simple", Some("nobody.example")),
        with_sni("sni-scan", "scan", Some("nobody.example")),
        with_alpn("alpn-h1", "simple", &["http/1.1"]),
        with_alpn("alpn-foreign", "simple", &["foreign"]),
        with_alpn("alpn-none", "simple", &[]),
        with_alpn("alpn-second", "simple", &["foreign", "http/1.1"]),
        case("edge", "edge"),
        case("mutual-none", "mutual"),
        with("mutual-good", "mutual", &pki.client),
        with("mutual-other", "mutual", &pki.client_other),
        with("mutual-expired", "mutual", &pki.client_expired),
        with("mutual-old", "mutual", &pki.client_old),
        {
            let mut case = with("mutual-old-12", "mutual", &pki.client_old);
            if let Some(client) = &mut case.tls {
                client.versions = vec![tls12];
            }
            case
        },
        with("mutual-old-other", "mutual", &pki.client_old_other),
        with("exact-old", "exact", &pki.client_old),
        with("mutual-simple", "simple", &pki.client),
        case("optional-none", "optional"),
        with("optional-good", "optional", &pki.client),
        with("optional-other", "optional", &pki.client_other),
        with("exact-good", "exact", &pki.client),
        with("exact-stranger", "exact", &pki.client_stranger),
        with("prefix-stranger", "prefix", &pki.client_stranger),
        with("regex-good", "regex", &pki.client),
        with("regex-stranger", "regex", &pki.client_stranger),
        with("hash-good", "hash", &pki.client),
        with("hash-stranger", "hash", &pki.client_stranger),
        with("hash-only-good", "hash-only", &pki.client),
        with("hash-only-stranger", "hash-only", &pki.client_stranger),
        with("expired-too", "expired-too", &pki.client_expired),
        with("untrusted-too", "untrusted-too", &pki.client_other),
        with("any-client", "any-client", &pki.client_other),
        case("any-client-none", "any-client"),
        Case { headers: xfcc, ..case("xfcc-simple", "simple") },
        Case { headers: xfcc, ..with("xfcc-set", "mutual", &pki.client) },
        Case { headers: xfcc, ..with("xfcc-append", "optional", &pki.client) },
        Case { headers: xfcc, ..case("xfcc-append-none", "optional") },
        Case { headers: xfcc, ..with("xfcc-forward", "forward", &pki.client) },
        Case { headers: xfcc, ..case("xfcc-forward-none", "forward") },
        plain("plain-to-tls", "simple", b""),
        through("to-simple/", "h", ""),
        through("to-simple-13/", "h", ""),
        through("to-verified/", "h", ""),
        through("to-named/", "h", ""),
        through("to-misnamed/", "h", ""),
        through("to-other/", "h", ""),
        through("to-expired/", "h", ""),
        through("to-expired-too/", "h", ""),
        through("to-old/", "h", ""),
        through("to-old-12/", "h", ""),
        through("to-old-named/", "h", ""),
        through("to-plain/", "h", ""),
        through("to-mutual/", "h", ""),
        through("to-mutual-without/", "h", ""),
        through("to-mutual-other/", "h", ""),
        through("to-tls13/", "h", ""),
        through("to-h2/", "h", ""),
        through("to-host/", "a.example:80", ""),
        through("to-host/wild", "z.wild.example", ""),
        through("to-host/wrong", "nobody.example", ""),
        through("to-host/address", "127.0.0.1:99", ""),
        through("to-host-header/", "nobody.example", "x-sni: a.example\r\n"),
        through("to-host-header/without", "a.example", ""),
        through("rewritten/", "nobody.example", ""),
        through("to-matched/", "h", ""),
        through("proxy-v1/", "h", ""),
        through("proxy-v2/", "h", ""),
        plain("proxied-v1", "proxied", b"PROXY TCP4 9.8.7.6 127.0.0.1 1234 80\r\n"),
        plain("proxied-v1-6", "proxied", b"PROXY TCP6 fd00::1 fd00::2 1234 80\r\n"),
        plain("proxied-unknown", "proxied", b"PROXY UNKNOWN\r\n"),
        plain(
            "proxied-v2",
            "proxied",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x09\x08\x07\x06\x7f\0\0\x01\x04\xd2\0\x50",
        ),
        plain(
            "proxied-v2-tlv",
            "proxied",
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x10\x09\x08\x07\x06\x7f\0\0\x01\x04\xd2\0\x50\x04\0\x01\0",
        ),
        plain("proxied-local", "proxied", b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"),
        plain("proxied-none", "proxied", b""),
        plain("proxied-broken", "proxied", b"PROXY TCP4 what\r\n"),
        plain("proxied-or-not", "proxied-or-not", b""),
        plain("proxied-or", "proxied-or-not", b"PROXY TCP4 9.8.7.6 127.0.0.1 1234 80\r\n"),
        case("by-name-a", "by-name"),
        with_sni("by-name-wild", "by-name", Some("y.wild.example")),
        with_sni("by-name-nobody", "by-name", Some("nobody.example")),
        with_sni("by-name-none", "by-name", None),
        plain("by-name-plain", "by-name", b""),
    ];
    for case in &mut all {
        if case.host.is_empty() {
            case.host = "host.example";
        }
    }
    all
}

/// Accepts whatever a server shows, as it is shown to the test.
#[derive(Debug)]
struct Anything(rustls::crypto::WebPkiSupportedAlgorithms);

impl rustls::client::danger::ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.supported_schemes()
    }
}

pub(crate) fn connector(client: &Client) -> TlsConnector {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    if client.versions == [&rustls::version::TLS12] {
        // rustls offers the others' suites all the same.
        provider.cipher_suites.retain(|suite| suite.tls13().is_none());
    }
    let provider = Arc::new(provider);
    let verifier = Arc::new(Anything(provider.signature_verification_algorithms));
    let versions = if client.versions.is_empty() { rustls::ALL_VERSIONS } else { &client.versions };
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match &client.certificate {
        None => builder.with_no_client_auth(),
        Some(pair) => {
            let chain =
                CertificateDer::pem_slice_iter(pair.chain.as_bytes()).collect::<Result<_, _>>().unwrap();
            let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
            let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).unwrap();
            // Not `with_client_auth_cert`, which takes no certificates of version 1.
            let shown = rustls::sign::CertifiedKey::new(chain, key);
            builder.with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(shown)))
        }
    };
    config.alpn_protocols = client.alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

/// What the client saw of the handshake, and of the answer to one request.
async fn play(case: &Case, pki: &Pki, port: u16) -> String {
    let played = tokio::time::timeout(Duration::from_secs(15), async {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        stream.write_all(&case.first).await.unwrap();
        let Some(client) = &case.tls else { return exchange(case, stream).await };
        let name = client.sni.map_or_else(
            || ServerName::IpAddress(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST).into()),
            |name| ServerName::try_from(name).unwrap(),
        );
        match connector(client).connect(name, stream).await {
            Err(error) => format!("no handshake: {}\n", ending(&error)),
            Ok(stream) => {
                let state = stream.get_ref().1;
                let shown =
                    state.peer_certificates().and_then(|chain| chain.first()).map(|leaf| who(pki, leaf));
                let mut text = format!(
                    "{:?} {:?} {:?} {shown:?}\n",
                    state.protocol_version().unwrap(),
                    state.negotiated_cipher_suite().unwrap().suite(),
                    state.alpn_protocol().map(String::from_utf8_lossy),
                );
                text.push_str(&exchange(case, stream).await);
                text
            }
        }
    });
    played.await.unwrap_or_else(|_| "silence\n".to_owned())
}

/// The end of a connection without what depends on who closes it first.
pub(crate) fn ending(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof
        | std::io::ErrorKind::ConnectionReset
        | std::io::ErrorKind::BrokenPipe => "closed".to_owned(),
        _ => error.to_string(),
    }
}

fn who(pki: &Pki, leaf: &CertificateDer<'_>) -> &'static str {
    for (name, pair) in [
        ("a", &pki.server_a),
        ("wild", &pki.server_wild),
        ("other", &pki.server_other),
        ("expired", &pki.server_expired),
    ] {
        if CertificateDer::from_pem_slice(pair.chain.as_bytes()).unwrap() == *leaf {
            return name;
        }
    }
    "unknown"
}

async fn exchange(case: &Case, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> String {
    let request = format!(
        "GET /{} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n{}\r\n",
        case.path, case.host, case.headers
    );
    let mut answer = Vec::new();
    let written = stream.write_all(request.as_bytes()).await;
    let end = match written {
        Err(error) => Err(error),
        Ok(()) => stream.read_to_end(&mut answer).await,
    };
    let text = String::from_utf8_lossy(&answer);
    let mut lines: Vec<String> = text.lines().map(comparable).map(without_ports).collect();
    // Alerts matter, and whether a close was announced does not.
    if let Err(error) = end
        && ending(&error) != "closed"
    {
        // rustls has no way to send this alert.
        lines.push(error.to_string().replace("BadCertificateHashValue", "CertificateUnknown"));
    }
    lines.sort_unstable();
    lines.join("\n") + "\n"
}

/// Ports of clients change from run to run.
fn without_ports(line: String) -> String {
    if line.contains("x-forwarded-port") {
        line.split(':').next().unwrap_or_default().to_owned()
    } else {
        line
    }
}

struct Twins {
    proxies: [Proxy; 2],
    pki: Pki,
    folder: tempfile::TempDir,
}

fn secrets(path: &Path, pair: &Pair) {
    let text = serde_json::json!({ "resources": [{
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret", "name": "rotated",
        "tls_certificate": { "certificate_chain": { "inline_string": pair.chain }, "private_key": { "inline_string": pair.key } },
    }] });
    let new = path.with_extension("new");
    std::fs::write(&new, text.to_string()).unwrap();
    std::fs::rename(&new, path).unwrap();
}

impl Twins {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let pki = Pki::new();
        let service = service::start().await;
        let names = names();
        let mut free = free_ports(2 * (names.len() + 1));
        let mut take = || -> (BTreeMap<&'static str, u16>, u16) {
            (names.iter().map(|name| (*name, free.pop().unwrap())).collect(), free.pop().unwrap())
        };
        let (envoy, lateen) = (take(), take());
        secrets(&folder.path().join("secrets.json"), &pki.server_a);
        let secrets = folder.path().join("secrets.json");
        let config = |kind: &str, (ports, admin): &(BTreeMap<&'static str, u16>, u16)| {
            bootstrap(&pki, ports, &envoy.0, *admin, service, &folder.path().join(kind), &secrets)
        };
        let configs = (config("envoy.log", &envoy), config("lateen.log", &lateen));
        let proxies = tokio::join!(
            Proxy::launch(true, &configs.0, folder.path(), envoy.0, envoy.1),
            Proxy::launch(false, &configs.1, folder.path(), lateen.0, lateen.1),
        );
        Self { proxies: proxies.into(), pki, folder }
    }

    /// Differences of the numbers about TLS. Envoy's servers of clusters over TLS are left out, as both proxies go there.
    async fn stats(&self, cases: &[Case]) -> String {
        let mut texts = Vec::new();
        for proxy in &self.proxies {
            let page = proxy.admin("/stats?filter=ssl&usedonly").await.unwrap();
            let mut lines: Vec<String> = page
                .lines()
                .filter(|line| line.starts_with("listener.") || line.starts_with("cluster."))
                // Expiry times, signatures, what Envoy has of OCSP; and groups: BoringSSL asks for its favourite once more, rustls takes
                // one that it was given a share of.
                .filter(|line| {
                    [".certificate.", ".sigalgs.", ".ocsp_", ".curves."]
                        .iter()
                        .all(|kind| !line.contains(kind))
                })
                // Ours does not look at certificates that it accepts whatever they are.
                .filter(|line| {
                    !line.contains(&format!("_{}.ssl.fail_verify_error", proxy.ports["untrusted-too"]))
                })
                .map(str::to_owned)
                .collect();
            for (name, port) in &proxy.ports {
                let address = format!("listener.127.0.0.1_{port}.");
                let shared = ["simple", "mutual", "other", "expired", "old", "tls13", "plain", "proxied"]
                    .contains(name);
                lines.retain(|line| !shared || !line.starts_with(&address));
                lines
                    .iter_mut()
                    .for_each(|line| *line = line.replace(&address, &format!("listener.{name}.")));
            }
            lines.sort_unstable();
            texts.push(lines);
        }
        let only = |a: usize, b: usize| -> Vec<&String> {
            texts[a].iter().filter(|line| !texts[b].contains(line)).collect()
        };
        let (envoy, lateen) = (only(0, 1), only(1, 0));
        if cases.is_empty() || (envoy.is_empty() && lateen.is_empty()) {
            return String::new();
        }
        format!("=== stats\nonly Envoy's: {envoy:#?}\nonly ours: {lateen:#?}\n")
    }

    /// The lines for a request's path, once both logs stand still.
    async fn logs(&self) -> [String; 2] {
        let mut before = [usize::MAX; 2];
        loop {
            let texts =
                [0, 1].map(|index| std::fs::read_to_string(&self.proxies[index].log).unwrap_or_default());
            let lengths = [texts[0].len(), texts[1].len()];
            if lengths == before {
                return texts;
            }
            before = lengths;
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_fares_the_same() {
    let twins = Twins::start().await;
    let only = std::env::var("CASE").ok();
    let cases = cases(&twins.pki);
    let mut complaints = String::new();
    let mut played = Vec::new();
    for case in cases.iter().filter(|case| only.as_ref().is_none_or(|only| case.name.contains(only))) {
        let [envoy, lateen] = [0, 1].map(|index| twins.proxies[index].ports[case.listener]);
        let seen = tokio::join!(play(case, &twins.pki, envoy), play(case, &twins.pki, lateen));
        played.push((case, [seen.0, seen.1]));
    }
    let logs = twins.logs().await;
    for (case, seen) in played {
        let path = format!("/{} ", case.path);
        // Envoy's own servers of clusters over TLS log into the same file: the first line is theirs then.
        let lines = logs.clone().map(|log| {
            let mut lines: Vec<String> =
                log.lines().filter(|line| line.starts_with(&path)).map(str::to_owned).collect();
            if case.listener == "clients" {
                lines.retain(|line| line.contains(" - - peer="));
                lines.truncate(1);
            }
            if case.listener == "by-name" {
                lines.clear();
            }
            lines.join("\n")
        });
        let whole = [0, 1].map(|index| format!("{}{}\n", seen[index], lines[index]));
        if whole[0] != whole[1] {
            let only = |a: usize, b: usize| -> Vec<&str> {
                whole[a].lines().filter(|line| !whole[b].lines().any(|other| other == *line)).collect()
            };
            writeln!(
                complaints,
                "=== {}\n--- Envoy\n{}\n--- Lateen\n{}",
                case.name,
                only(0, 1).join("\n"),
                only(1, 0).join("\n")
            )
            .unwrap();
        }
    }
    complaints.push_str(&twins.stats(&cases).await);
    assert!(complaints.is_empty(), "\n{complaints}");
}

/// Subject of what a listener shows to a new client; whether the session was resumed.
async fn shown(twins: &Twins, connector: &TlsConnector, port: u16) -> (&'static str, bool) {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
    let mut stream = connector.connect("a.example".try_into().unwrap(), stream).await.unwrap();
    let case = Case { path: "shown", host: "h", ..Case::default() };
    let answer = exchange(&case, &mut stream).await;
    assert!(answer.contains("HTTP/1.1 200 OK"), "{answer}");
    let state = stream.get_ref().1;
    let leaf = state.peer_certificates().and_then(|chain| chain.first()).unwrap();
    (who(&twins.pki, leaf), state.handshake_kind() == Some(rustls::HandshakeKind::Resumed))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_rotate_under_connections() {
    let twins = Twins::start().await;
    let path = twins.folder.path().join("secrets.json");
    for index in [0, 1] {
        let proxy = &twins.proxies[index];
        let port = proxy.ports["rotated"];
        secrets(&path, &twins.pki.server_a);
        let connector = connector(&Client::default());
        let began = Instant::now();
        while shown(&twins, &connector, port).await.0 != "a" {
            assert!(began.elapsed() < LIMIT, "the first certificate does not come");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(shown(&twins, &connector, port).await, ("a", true), "sessions are resumed: {index}");
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        let mut kept = connector.connect("a.example".try_into().unwrap(), stream).await.unwrap();
        secrets(&path, &twins.pki.server_wild);
        let began = Instant::now();
        loop {
            let (name, resumed) = shown(&twins, &connector, port).await;
            // A resumed session tells the certificate of its beginning.
            if name == "wild" {
                assert!(!resumed, "a session outlives its certificate: {index}");
                break;
            }
            assert!(began.elapsed() < LIMIT, "the certificate does not rotate: {index}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let case = Case { path: "kept", host: "h", ..Case::default() };
        let answer = exchange(&case, &mut kept).await;
        assert!(answer.contains("HTTP/1.1 200 OK"), "a connection of before: {index}: {answer}");
        // What can't be used leaves what is there.
        let mut broken = twins.pki.server_a.clone();
        broken.key.clone_from(&twins.pki.server_wild.key);
        secrets(&path, &broken);
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert_eq!(shown(&twins, &connector, port).await.0, "wild", "{index}");
        let dump = proxy.admin("/config_dump").await.unwrap();
        assert!(dump.contains("BEGIN CERTIFICATE") || dump.contains("certificate_chain"), "{index}");
        assert!(!dump.contains("PRIVATE KEY"), "a key is shown: {index}");
        let certs = proxy.admin("/certs").await.unwrap();
        assert!(
            certs.contains("*.wild.example") && certs.contains("days_until_expiration"),
            "{index}: {certs}"
        );
    }
}
