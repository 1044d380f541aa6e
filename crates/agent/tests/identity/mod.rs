//! The workload's certificate: had, served, renewed, kept while the authority is away, and never written down.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use lateen_agent::{EngineKind, Identity, run};
use lateen_pki::{KeyKind, SpiffeId, WorkloadCertificate, WorkloadKey};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use crate::support::{
    Authority, ControlPlane, Upstream, World, config, eventually, free_port, get_until, resources, world,
};

const LIFE: Duration = Duration::from_secs(4);

/// As Istio's control plane writes it.
fn sds(name: &str) -> Value {
    json!({ "name": name, "sds_config": {
        "api_config_source": {
            "api_type": "GRPC", "transport_api_version": "V3", "set_node_on_first_message_only": true,
            "grpc_services": [{ "envoy_grpc": { "cluster_name": "sds-grpc" } }],
        },
        "initial_fetch_timeout": "0s", "resource_api_version": "V3",
    }})
}

/// The world with mutual TLS in front.
fn secured(port: u16, upstream: SocketAddr) -> World {
    let mut all = world(port, upstream);
    let listener = json!({
        "@type": "type.googleapis.com/envoy.config.listener.v3.Listener",
        "name": format!("127.0.0.1_{port}"),
        "address": { "socket_address": { "address": "127.0.0.1", "port_value": port } },
        "traffic_direction": "INBOUND",
        "filter_chains": [{
            "filters": [{
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                    "stat_prefix": "test",
                    "rds": { "config_source": { "ads": {}, "resource_api_version": "V3" }, "route_config_name": "80" },
                    "http_filters": [{
                        "name": "envoy.filters.http.router",
                        "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
                    }],
                },
            }],
            "transport_socket": {
                "name": "envoy.transport_sockets.tls",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                    "require_client_certificate": true,
                    "common_tls_context": {
                        "alpn_protocols": ["h2", "http/1.1"],
                        "tls_certificate_sds_secret_configs": [sds("default")],
                        "combined_validation_context": {
                            "default_validation_context": { "match_typed_subject_alt_names": [
                                { "san_type": "URI", "matcher": { "prefix": "spiffe://cluster.local/" } },
                            ]},
                            "validation_context_sds_secret_config": sds("ROOTCA"),
                        },
                    },
                },
            },
        }],
    });
    for (type_url, named) in resources(&[listener]) {
        all.entry(type_url).or_default().extend(named);
    }
    all
}

/// A peer with a certificate of the same authority, or without any.
struct Peer(Arc<rustls::ClientConfig>);

impl Peer {
    fn new(authority: &Authority, with_certificate: bool) -> Self {
        let key = WorkloadKey::generate(KeyKind::P256).unwrap();
        let answer = authority.sign(&key.request().unwrap(), "peer", Duration::from_secs(3600));
        let own = WorkloadCertificate::new(&key, answer).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap();
        // Workloads' certificates have no DNS names; the test looks at them itself.
        let verifier = Arc::new(Whoever);
        let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
        let config = if with_certificate {
            let chain =
                CertificateDer::pem_slice_iter(own.chain.as_bytes()).collect::<Result<_, _>>().unwrap();
            let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap();
            builder.with_client_auth_cert(chain, key).unwrap()
        } else {
            builder.with_no_client_auth()
        };
        Self(Arc::new(config))
    }

    async fn connect(&self, port: u16) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let name = ServerName::try_from("web").unwrap();
        tokio_rustls::TlsConnector::from(self.0.clone()).connect(name, stream).await
    }

    /// One request over a connection of its own: who answered.
    async fn ask(&self, port: u16) -> std::io::Result<Shown> {
        let mut stream = self.connect(port).await?;
        request(&mut stream).await?;
        Ok(Shown::by(&stream))
    }
}

/// What a server's certificate says.
struct Shown {
    id: String,
    serial: Vec<u8>,
    seconds_left: i64,
}

impl Shown {
    fn by(stream: &TlsStream<TcpStream>) -> Self {
        let leaf = &stream.get_ref().1.peer_certificates().unwrap()[0];
        let (_, parsed) = x509_parser::parse_x509_certificate(leaf).unwrap();
        Self {
            id: SpiffeId::of_certificate(leaf).unwrap().to_string(),
            serial: parsed.raw_serial().to_vec(),
            seconds_left: parsed.validity().not_after.timestamp()
                - x509_parser::time::ASN1Time::now().timestamp(),
        }
    }
}

async fn request(stream: &mut TlsStream<TcpStream>) -> std::io::Result<()> {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: app\r\n\r\n").await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"secured") {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    Ok(())
}

#[derive(Debug)]
struct Whoever;

impl rustls::client::danger::ServerCertVerifier for Whoever {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Files below a folder that have a private key in them.
fn keys_in(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(keys_in(&path));
        } else if std::fs::read(&path).is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains("PRIVATE"))
        {
            found.push(path.display().to_string());
        }
    }
    found
}

async fn is_had_served_renewed_and_kept(engine: EngineKind) {
    let folder = tempfile::tempdir().unwrap();
    let upstream = Upstream::start("secured").await;
    let port = free_port();
    let control_plane = ControlPlane::start(secured(port, upstream.address)).await;
    let authority = control_plane.authority.clone();
    // At first there is nobody to sign: the proxy waits and is not ready.
    authority.away.store(true, Relaxed);
    let mut config = config(engine, control_plane.address, folder.path());
    config.identity = Some(Identity { life: LIFE, ..Identity::default() });
    let running = run(config).await.unwrap();
    get_until(running.addresses().health, "/healthz/ready", "503").await;
    authority.away.store(false, Relaxed);
    get_until(running.addresses().health, "/healthz/ready", "200 OK").await;

    let (peer, stranger) = (Peer::new(&authority, true), Peer::new(&authority, false));
    let first = eventually("the first answer", || async { peer.ask(port).await.ok() }).await;
    assert_eq!(first.id, "spiffe://cluster.local/ns/default/sa/web");
    assert!(stranger.ask(port).await.is_err(), "whoever shows no certificate is not answered");

    // Renewed under a connection that stays, and under a stream of new ones: none fails.
    let mut lasting = peer.connect(port).await.unwrap();
    let mut asked = 0;
    let mut last = first.serial.clone();
    while authority.issued.load(Relaxed) < 4 || last == first.serial {
        request(&mut lasting).await.unwrap();
        last = peer.ask(port).await.unwrap().serial;
        asked += 1;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    println!("{asked} connections through {} certificates", authority.issued.load(Relaxed));

    // The authority goes away: what there is serves until its end, and beyond it nobody is told to trust it.
    authority.away.store(true, Relaxed);
    let issued = authority.issued.load(Relaxed);
    eventually("the end of the certificate", || async {
        let shown = peer.ask(port).await.unwrap();
        (shown.seconds_left < 0).then_some(())
    })
    .await;
    assert_eq!(authority.issued.load(Relaxed), issued);
    authority.away.store(false, Relaxed);
    eventually("a good certificate again", || async {
        peer.ask(port).await.ok().filter(|shown| shown.seconds_left > 0)
    })
    .await;
    request(&mut lasting).await.unwrap();

    // Nobody sees the key.
    let dump = get_until(running.addresses().admin, "/config_dump?include_eds", "SecretsConfigDump").await;
    assert!(!dump.contains("PRIVATE") && dump.contains("ROOTCA"), "{dump}");
    assert_eq!(keys_in(folder.path()), Vec::<String>::new());
    if engine == EngineKind::Envoy {
        let mode = std::fs::metadata(folder.path().join("proxy/SDS")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    running.stop().await;
}

#[tokio::test]
async fn our_engines_certificate_is_had_served_renewed_and_kept() {
    is_had_served_renewed_and_kept(EngineKind::Lateen).await;
}

#[tokio::test]
async fn envoys_certificate_is_had_served_renewed_and_kept() {
    is_had_served_renewed_and_kept(EngineKind::Envoy).await;
}
