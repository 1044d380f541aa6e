//! The certificate service: who gets which certificate, and who none.

mod csr_api;

use crate::support::{Cluster, channel, channel_as, debug, soon};
use lateen_control::ControlPlane;
use lateen_pki::{AuthorityFiles, CertificateAuthority, Roots, Rotation, SpiffeId};
use lateen_xds::certificate_service::{IstioCertificateRequest, create_certificate};
use lateen_xds::pb::google::protobuf::{Struct, Value as ProtoValue, value::Kind};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::{Value, json};
use tonic::transport::{Channel, Identity};
use tonic::{Code, Status};

const AUDIENCE: &str = "istio-ca";
const WEB: &str = "spiffe://cluster.local/ns/default/sa/web";

/// A key and a request for the names of somebody else.
fn request() -> (rcgen::KeyPair, IstioCertificateRequest) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["istiod.istio-system.svc".into()]).unwrap();
    let admin = "spiffe://cluster.local/ns/kube-system/sa/admin".to_owned().try_into().unwrap();
    params.subject_alt_names.push(rcgen::SanType::URI(admin));
    let csr = params.serialize_request(&key).unwrap().pem().unwrap();
    (key, IstioCertificateRequest { csr, validity_duration: 3600, metadata: None })
}

pub(super) async fn ask(
    channel: Channel,
    token: Option<&str>,
    message: IstioCertificateRequest,
) -> Result<Vec<String>, Status> {
    let mut call = tonic::Request::new(message);
    if let Some(token) = token {
        call.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    soon("an answer", create_certificate(channel, call)).await.map(|answer| answer.cert_chain)
}

async fn ask_with(control_plane: &ControlPlane, token: &str) -> Result<Vec<String>, Status> {
    ask(channel(control_plane).await, Some(token), request().1).await
}

fn workload(chain: &[String]) -> String {
    let leaf = CertificateDer::from_pem_slice(chain[0].as_bytes()).unwrap();
    SpiffeId::of_certificate(&leaf).unwrap().to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_gets_a_certificate_of_what_it_proved() {
    let cluster = Cluster::start().await;
    let control_plane = cluster.control_plane().await;
    let token = cluster.token("web", AUDIENCE).await;
    let (key, message) = request();
    let chain = ask(channel(&control_plane).await, Some(&token), message).await.unwrap();
    assert_eq!(workload(&chain), WEB, "whatever names the request has");
    assert_eq!(chain.last(), Some(&control_plane.root_certificate()));

    // With the certificate it gets the next one, whatever token it shows besides.
    let identity = || Identity::from_pem(&chain[0], key.serialize_pem());
    let admin = cluster.token("admin", AUDIENCE).await;
    let connection = channel_as(&control_plane, identity()).await.unwrap();
    assert_eq!(workload(&ask(connection, Some(&admin), request().1).await.unwrap()), WEB);

    // Of another namespace: what the token is of.
    let other = cluster.token_in("shop", "web", AUDIENCE).await;
    let chain = ask_with(&control_plane, &other).await.unwrap();
    assert_eq!(workload(&chain), "spiffe://cluster.local/ns/shop/sa/web");

    let (_, metrics) = debug(&control_plane, "/metrics").await;
    for line in ["citadel_server_csr_count 3", "citadel_server_success_cert_issuance_count 3"] {
        assert!(metrics.contains(line), "{line} not in\n{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_without_proof_get_no_certificate() {
    let cluster = Cluster::start().await;
    let control_plane = cluster.control_plane().await;
    let refused = async |token: Option<&str>, message| {
        let status = ask(channel(&control_plane).await, token, message).await.expect_err("refused");
        (status.code(), status.message().to_owned())
    };
    let (code, message) = refused(None, request().1).await;
    assert_eq!(code, Code::Unauthenticated);
    assert!(message.contains("no bearer token"), "{message}");
    let wrong_audience = cluster.token("web", "somebody-else").await;
    for token in ["forged.token.here", wrong_audience.as_str()] {
        assert_eq!(refused(Some(token), request().1).await.0, Code::Unauthenticated);
    }
    // A token whose end was changed by whoever holds it.
    let good = cluster.token("web", AUDIENCE).await;
    let (body, signature) = good.rsplit_once('.').unwrap();
    let forged = format!("{body}.{}", signature.chars().rev().collect::<String>());
    assert_eq!(refused(Some(&forged), request().1).await.0, Code::Unauthenticated);

    // Bound to a pod, for as long as the pod is there.
    let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "web-1", "namespace": "default" },
        "spec": { "serviceAccountName": "web", "containers": [{ "name": "app", "image": "nginx" }] } });
    cluster.create(pod.clone()).await.unwrap();
    let bound = cluster.token_of_pod("web", AUDIENCE, "web-1");
    assert_eq!(workload(&ask_with(&control_plane, &bound).await.unwrap()), WEB);
    cluster.remove_at_once(&pod).await;
    assert_eq!(refused(Some(&bound), request().1).await.0, Code::Unauthenticated);

    // What a good caller may not ask for.
    for (key, expected) in
        [("ImpersonatedIdentity", Code::PermissionDenied), ("CertSigner", Code::InvalidArgument)]
    {
        let value = ProtoValue { kind: Some(Kind::StringValue("spiffe://cluster.local/ns/a/sa/b".into())) };
        let metadata = Some(Struct { fields: [(key.to_owned(), value)].into() });
        let message = IstioCertificateRequest { metadata, ..request().1 };
        assert_eq!(refused(Some(&good), message).await.0, expected, "{key}");
    }
    let long = IstioCertificateRequest { validity_duration: 91 * 24 * 3600, ..request().1 };
    let (code, message) = refused(Some(&good), long).await;
    assert_eq!(code, Code::InvalidArgument);
    assert!(message.contains("greater than the max allowed TTL"), "{message}");
    for csr in ["", "garbage", include_str!("../../../pki/tests/rsa1024.csr")] {
        let message = IstioCertificateRequest { csr: csr.to_owned(), ..IstioCertificateRequest::default() };
        assert_eq!(refused(Some(&good), message).await.0, Code::InvalidArgument, "{csr}");
    }
    let (_, metrics) = debug(&control_plane, "/metrics").await;
    for line in [
        "citadel_server_csr_parsing_err_count 3",
        "citadel_server_csr_sign_err_count{error=\"TTL_ERROR\"} 1",
        "citadel_server_root_cert_expiry_timestamp ",
    ] {
        assert!(metrics.contains(line), "{line} not in\n{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_finds_no_place_is_told_to_come_again() {
    let cluster = Cluster::start().await;
    let config = lateen_control::Config { certificate_queue: 0, ..Default::default() };
    let control_plane = cluster.control_plane_with(config).await;
    let token = cluster.token("web", AUDIENCE).await;
    let status = ask_with(&control_plane, &token).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("try again"), "{}", status.message());
}

/// The issuer of a cluster's own root, as its thief would have it.
async fn stolen(cluster: &Cluster) -> rcgen::Issuer<'static, rcgen::KeyPair> {
    let secret = json!({ "apiVersion": "v1", "kind": "Secret",
        "metadata": { "name": "istio-ca-secret", "namespace": "istio-system" } });
    let value = |secret: &Value, key: &str| {
        use base64::Engine as _;
        let text = secret["data"][key].as_str()?;
        String::from_utf8(base64::engine::general_purpose::STANDARD.decode(text).ok()?).ok()
    };
    let (certificate, key) = cluster
        .until("the CA", secret, |secret| Some((value(secret, "ca-cert.pem")?, value(secret, "ca-key.pem")?)))
        .await;
    let key = rcgen::KeyPair::from_pem(&key).unwrap();
    rcgen::Issuer::from_ca_cert_pem(&certificate, key).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_that_are_not_a_workloads_prove_nothing() {
    let cluster = Cluster::start().await;
    let control_plane = cluster.control_plane().await;
    let issuer = stolen(&cluster).await;
    let made = |names: &[&str], life: i64| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names =
            names.iter().map(|&name| rcgen::SanType::URI(name.to_owned().try_into().unwrap())).collect();
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let now = std::time::SystemTime::now();
        let seconds = std::time::Duration::from_secs(life.unsigned_abs());
        params.not_before = (now - std::time::Duration::from_secs(7200)).into();
        params.not_after = if life < 0 { now - seconds } else { now + seconds }.into();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    };
    let identity = |(certificate, key): (String, String)| Identity::from_pem(certificate, key);
    // Even with a token that would do: who shows a certificate is judged by it.
    let token = cluster.token("web", AUDIENCE).await;
    let good = channel_as(&control_plane, identity(made(&[WEB], 3600))).await.unwrap();
    assert_eq!(workload(&ask(good, None, request().1).await.unwrap()), WEB);
    for names in [
        &[WEB, "spiffe://cluster.local/ns/default/sa/admin"][..],
        &["spiffe://elsewhere.example/ns/default/sa/web"],
        &["https://web.example"],
        &[],
    ] {
        let channel = channel_as(&control_plane, identity(made(names, 3600))).await.unwrap();
        let status = ask(channel, Some(&token), request().1).await.expect_err("refused");
        assert_eq!(status.code(), Code::Unauthenticated, "{names:?}: {}", status.message());
    }
    // Expired, or of another root: no connection comes about.
    let foreign = of_authority(&CertificateAuthority::generate("cluster.local").unwrap());
    assert!(is_let_in(&control_plane, made(&[WEB], 3600)).await);
    assert!(!is_let_in(&control_plane, made(&[WEB], -3600)).await);
    assert!(!is_let_in(&control_plane, foreign).await);
}

/// A certificate of the workload `web`, and its key.
fn of_authority(authority: &CertificateAuthority) -> (String, String) {
    let (key, message) = request();
    let csr = lateen_pki::SigningRequest::from_pem(&message.csr).unwrap();
    let life = std::time::Duration::from_secs(3600);
    let chain = authority.issue_workload(&csr, &WEB.parse().unwrap(), life).unwrap();
    (chain[0].clone(), key.serialize_pem())
}

/// Whether a client that shows a certificate (with its key, PEM) hears anything but an alert.
async fn is_let_in(control_plane: &ControlPlane, (certificate, key): (String, String)) -> bool {
    use rustls_pki_types::{PrivateKeyDer, ServerName};
    let mut roots = rustls::RootCertStore::empty();
    for root in Roots::from_pem(&control_plane.root_certificate()).unwrap().iter() {
        roots.add(root.clone()).unwrap();
    }
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let mut config =
        builder.unwrap().with_root_certificates(roots).with_client_auth_cert(chain, key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = tokio::net::TcpStream::connect(control_plane.addresses().xds).await.unwrap();
    let name = ServerName::try_from("istiod.istio-system.svc").unwrap();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    // The server of HTTP/2 speaks first.
    let heard = async {
        let mut stream = connector.connect(name, stream).await?;
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
        tokio::io::AsyncReadExt::read_u8(&mut stream).await
    };
    soon("an answer", heard).await.is_ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugged_in_authority_signs_and_its_root_is_told() {
    let cluster = Cluster::start().await;
    let root_key = rcgen::KeyPair::generate().unwrap();
    let authority = |name: &str| {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params
    };
    let root = authority("root").self_signed(&root_key).unwrap();
    let issuer = rcgen::Issuer::new(authority("root"), root_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let intermediate = authority("mesh").signed_by(&key, &issuer).unwrap();
    cluster
        .apply(json!({ "apiVersion": "v1", "kind": "Secret",
            "metadata": { "name": "cacerts", "namespace": "istio-system" },
            "stringData": { "ca-cert.pem": intermediate.pem(), "ca-key.pem": key.serialize_pem(),
                "cert-chain.pem": format!("{}{}", intermediate.pem(), root.pem()), "root-cert.pem": root.pem() } }))
        .await;
    // Its serving certificate is of the plugged-in authority too: clients know the root only.
    let control_plane = cluster.control_plane().await;
    assert_eq!(control_plane.root_certificate(), root.pem().replace('\r', ""));
    let token = cluster.token("web", AUDIENCE).await;
    let chain = ask_with(&control_plane, &token).await.unwrap();
    assert_eq!((workload(&chain), chain.len()), (WEB.to_owned(), 3));
    let map = json!({ "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": "istio-ca-root-cert", "namespace": "default" } });
    let told =
        cluster.until("the root", map, |map| map["data"]["root-cert.pem"].as_str().map(str::to_owned)).await;
    assert_eq!(told, root.pem().replace('\r', ""));
}

/// Writes what a step of a rotation has in the Secret.
async fn write(cluster: &Cluster, secret: &str, rotation: &Rotation) {
    let entries = rotation.entries().into_iter();
    let data: serde_json::Map<String, Value> = entries
        .map(|(key, value)| (key.to_owned(), value.map_or(Value::Null, |value| json!(base64(&value)))))
        .collect();
    let patch = json!({ "apiVersion": "v1", "kind": "Secret",
        "metadata": { "name": secret, "namespace": "istio-system" }, "data": data });
    cluster.merge(patch).await;
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_root_changes_in_steps_and_never_at_once() {
    let cluster = Cluster::start().await;
    let [old, new] = [(), ()].map(|()| CertificateAuthority::generate("cluster.local").unwrap());
    let [old_files, new_files] = [&old, &new].map(AuthorityFiles::of_own_root);
    let settled = Rotation::Settled { current: old_files.clone() };
    cluster
        .apply(json!({ "apiVersion": "v1", "kind": "Secret",
            "metadata": { "name": "cacerts", "namespace": "istio-system" } }))
        .await;
    write(&cluster, "cacerts", &settled).await;
    let control_plane = cluster.control_plane().await;
    let roots = |pem: &str| Roots::from_pem(pem).unwrap();
    let [old_root, new_root] = [&old, &new].map(|authority| authority.roots().clone());
    let trusts = async |wanted: Roots| {
        let map = json!({ "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": "istio-ca-root-cert", "namespace": "default" } });
        let same =
            |map: &Value| map["data"]["root-cert.pem"].as_str().is_some_and(|pem| roots(pem) == wanted);
        cluster.until("the roots", map, |map| same(map).then_some(())).await;
        assert_eq!(roots(&control_plane.root_certificate()), wanted);
    };
    trusts(old_root.clone()).await;
    let token = cluster.token("web", AUDIENCE).await;
    // A connection that trusts what the mesh trusts, so the serving certificate has to be of that, and a certificate of the
    // root of the moment.
    let signed_by = async || {
        let chain = ask_with(&control_plane, &token).await.unwrap();
        old_root.with(&new_root).issuer_of(&chain[0]).cloned().unwrap()
    };
    assert_eq!(signed_by().await, *old_root.first());

    // Neither a root that nobody trusts nor garbage replaces what there is.
    for bad in [
        Rotation::Settled { current: new_files.clone() },
        Rotation::Settled { current: AuthorityFiles { key: "nonsense".into(), ..old_files.clone() } },
    ] {
        write(&cluster, "cacerts", &bad).await;
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        assert_eq!(signed_by().await, *old_root.first());
    }
    write(&cluster, "cacerts", &settled).await;

    let announced = Rotation::announce(&old_files, new_files.clone()).unwrap();
    write(&cluster, "cacerts", &announced).await;
    trusts(old_root.with(&new_root)).await;
    assert_eq!(signed_by().await, *old_root.first());
    let switched = announced.advance().unwrap();
    write(&cluster, "cacerts", &switched).await;
    trusts(new_root.with(&old_root)).await;
    assert_eq!(signed_by().await, *new_root.first());
    assert!(
        is_let_in(&control_plane, of_authority(&old)).await,
        "certificates of the old root are good still"
    );
    write(&cluster, "cacerts", &switched.advance().unwrap()).await;
    trusts(new_root.clone()).await;
    let gone = async { while is_let_in(&control_plane, of_authority(&old)).await {} };
    soon("the old root to be gone", gone).await;
    assert!(is_let_in(&control_plane, of_authority(&new)).await);
    let secret = json!({ "apiVersion": "v1", "kind": "Secret",
        "metadata": { "name": "cacerts", "namespace": "istio-system" } });
    let data = cluster.until("the Secret", secret, |secret| secret["data"].as_object().cloned()).await;
    let keys: Vec<_> = data.keys().map(String::as_str).collect();
    assert_eq!(keys, ["ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem"]);
}
