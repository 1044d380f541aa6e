//! A machine that has been away while the mesh got another root.
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use lateen_pki::{CertificateAuthority, KeyKind, SigningRequest, SpiffeId, WorkloadCertificate, WorkloadKey};
use rustls::server::WebPkiClientVerifier;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

/// A machine's files.
struct Machine {
    folder: tempfile::TempDir,
    discovery: Discovery,
}

impl Machine {
    fn new(address: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| Some(folder.path().join(name));
        let discovery = Discovery {
            address: format!("localhost:{}", address.port()),
            root_cert: path(kept::ROOTS),
            token: path("istio-token"),
            certificate: path(""),
        };
        Self { folder, discovery }
    }

    fn put(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join(name), text).unwrap();
    }

    fn certificate_of(&self, authority: &CertificateAuthority) {
        let key = WorkloadKey::generate(KeyKind::P256).unwrap();
        let request = SigningRequest::from_pem(&key.request().unwrap()).unwrap();
        let id = SpiffeId::new("cluster.local", "vms", "vm").unwrap();
        let answer = authority.issue_workload(&request, &id, Duration::from_secs(600)).unwrap();
        let certificate = WorkloadCertificate::new(&key, answer).unwrap();
        kept::write(self.folder.path(), &certificate, false).unwrap();
    }

    fn token_until(&self, expires: u64) {
        let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let claims = format!(r#"{{"exp":{expires}}}"#);
        self.put("istio-token", &[&part(r#"{"alg":"RS256"}"#), &*part(&claims), &part("s")].join("."));
    }
}

/// As the control plane takes connections: a certificate may be shown, and must then be of its root. How many there were, or that it was
/// refused.
async fn serve(authority: &CertificateAuthority, listener: TcpListener) -> Result<usize, String> {
    let made = authority.issue_server(&["localhost".to_owned()], Duration::from_secs(600)).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(authority.roots().first().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(made.chain, made.key)
        .unwrap();
    let (stream, _) = listener.accept().await.unwrap();
    let mut stream =
        TlsAcceptor::from(Arc::new(config)).accept(stream).await.map_err(|error| error.to_string())?;
    let shown = stream.get_ref().1.peer_certificates().map_or(0, <[_]>::len);
    let _gone = stream.read(&mut [0]).await;
    Ok(shown)
}

/// What the control plane of `authority` has seen of the machine, and what the machine of it.
async fn meet(
    authority: &CertificateAuthority,
    prepare: impl AsyncFn(&Machine),
) -> (Result<usize, String>, Result<(), String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let machine = Machine::new(address);
    prepare(&machine).await;
    let stream = TcpStream::connect(address).await.unwrap();
    let met = async {
        let done = secure(&machine.discovery, stream).await;
        done.map(drop).map_err(|error| error.to_string())
    };
    tokio::join!(serve(authority, listener), met)
}

#[tokio::test]
async fn an_old_root_is_told_with_what_to_do() {
    let [old, new] = [(), ()].map(|()| CertificateAuthority::generate("cluster.local").unwrap());
    let away = async |machine: &Machine| machine.put(kept::ROOTS, old.root_pem());
    let told = meet(&new, away).await.1.unwrap_err();
    for part in
        ["invalid peer certificate", "/root-cert.pem has signed it", "`lateen x workload entry configure`"]
    {
        assert!(told.contains(part), "{told}");
    }
    // Who was there when the new root was announced has kept both.
    let both = async |machine: &Machine| {
        machine.put(kept::ROOTS, &format!("{}{}", old.root_pem(), new.root_pem()));
    };
    assert_eq!(meet(&new, both).await, (Ok(0), Ok(())));
    let pod = Discovery { certificate: None, ..Machine::new(([127, 0, 0, 1], 1).into()).discovery };
    assert!(other_root(&pod, &PathBuf::from("/r")).contains("ConfigMap istio-ca-root-cert"));
}

#[tokio::test]
async fn a_certificate_of_an_old_root_gives_way_to_a_token() {
    let [old, new] = [(), ()].map(|()| CertificateAuthority::generate("cluster.local").unwrap());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let seen = async |certificate: &CertificateAuthority, token_until: Option<u64>| {
        let prepare = async |machine: &Machine| {
            machine.put(kept::ROOTS, new.root_pem());
            machine.certificate_of(certificate);
            token_until.iter().for_each(|until| machine.token_until(*until));
        };
        meet(&new, prepare).await.0
    };
    assert_eq!(seen(&old, Some(now + 600)).await, Ok(0), "the token alone proves who it is");
    assert_eq!(seen(&new, Some(now + 600)).await, Ok(1));
    assert_eq!(seen(&new, None).await, Ok(1));
    // Without a token it is all there is: a signer in the authority's place may be known to the control plane.
    for token in [None, Some(now - 1)] {
        let refused = seen(&old, token).await.unwrap_err();
        assert!(refused.contains("invalid peer certificate"), "{refused}");
    }
}
