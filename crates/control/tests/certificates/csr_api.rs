//! Certificates by the Kubernetes CSR API: the control plane asks and approves, a signer of the test decides.
use std::time::Duration;

use super::{AUDIENCE, WEB, ask, base64, workload};
use crate::support::{Cluster, Introduction, Proxy, channel, soon};
use futures::TryStreamExt as _;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use lateen_control::{Config, ControlPlane, ExternalCa};
use lateen_pki::{CertificateAuthority, KeyKind, SigningRequest, SpiffeId, WorkloadCertificate, WorkloadKey};
use lateen_xds::certificate_service::IstioCertificateRequest;
use lateen_xds::pb::google::protobuf::{Struct, Value as ProtoValue, value::Kind};
use lateen_xds::type_urls::CLUSTER;
use serde_json::json;
use tonic::transport::Identity;
use tonic::{Code, Status};

const DOMAIN: &str = "signers.example.com";

fn id(account: &str) -> SpiffeId {
    SpiffeId::new("cluster.local", "default", account).unwrap()
}

/// Decides requests by the name of their signer until it is dropped.
async fn sign(requests: Api<CertificateSigningRequest>, authority: CertificateAuthority) {
    let mut events = std::pin::pin!(
        watcher(requests.clone(), watcher::Config::default()).default_backoff().applied_objects()
    );
    while let Some(request) = events.try_next().await.unwrap() {
        let name = request.metadata.name.clone().unwrap();
        let conditions =
            request.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
        if conditions.len() != 1 || request.status.as_ref().unwrap().certificate.is_some() {
            continue;
        }
        assert_eq!((conditions[0].type_.as_str(), conditions[0].status.as_str()), ("Approved", "True"));
        assert!(conditions[0].message.as_deref().unwrap().contains("sa/web"), "{conditions:?}");
        let asked = String::from_utf8(request.spec.request.0.clone()).unwrap();
        let asked = SigningRequest::from_pem(&asked).unwrap();
        let usages = request.spec.usages.clone().unwrap();
        let issue = |asked: &SigningRequest| {
            authority.issue_requested(asked, &usages, Duration::from_secs(3600)).unwrap()
        };
        let condition = |kind: &str| json!({"type": kind, "status": "True", "reason": "Policy", "message": "not on Sundays"});
        let (subresource, status) =
            match request.spec.signer_name.strip_prefix("signers.example.com/").unwrap() {
                "good" | "unknown-root" => ("status", json!({"certificate": base64(&issue(&asked))})),
                "with-root" => (
                    "status",
                    json!({"certificate": base64(&format!("{}{}", issue(&asked), authority.root_pem()))}),
                ),
                "mixed-up" => {
                    let key = WorkloadKey::generate(KeyKind::P256).unwrap();
                    let other = SigningRequest::from_pem(&key.request_as(&id("web")).unwrap()).unwrap();
                    ("status", json!({"certificate": base64(&issue(&other))}))
                }
                "failing" => ("status", json!({"conditions": [condition("Failed")]})),
                "asleep" => continue,
                other => panic!("{other}"),
            };
        let patch = Patch::Merge(json!({"status": status}));
        requests.patch_subresource(subresource, &name, &PatchParams::default(), &patch).await.unwrap();
    }
}

async fn order(
    control_plane: &ControlPlane,
    token: &str,
    csr: String,
    signer: Option<&str>,
) -> Result<Vec<String>, Status> {
    let metadata = signer.map(|signer| {
        let value = ProtoValue { kind: Some(Kind::StringValue(signer.to_owned())) };
        Struct { fields: [("CertSigner".to_owned(), value)].into() }
    });
    let message = IstioCertificateRequest { csr, validity_duration: 3600, metadata };
    ask(channel(control_plane).await, Some(token), message).await
}

/// Who has a signer's certificate is known by it, without a token; not so by one of an authority that signs for others.
async fn known_by_certificate(control_plane: &ControlPlane, token: &str, key: &WorkloadKey) {
    let csr = || key.request_as(&id("web")).unwrap();
    let known = |chain: Vec<String>| {
        let held = WorkloadCertificate::new(key, chain).unwrap();
        let identity = Identity::from_pem(&held.chain, &held.key);
        Introduction { authorization: None, identity: Some(identity), ..Introduction::web("") }
    };
    let chain = order(control_plane, token, csr(), None).await.unwrap();
    let mut proxy = soon("the signer's root is known", async {
        loop {
            match Proxy::connect(control_plane, known(chain.clone()), CLUSTER).await {
                Ok(proxy) => break proxy,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    })
    .await;
    proxy.receive().await;
    let asked = SigningRequest::from_pem(&csr()).unwrap();
    let stranger = CertificateAuthority::generate("stranger").unwrap();
    let chain = stranger.issue_workload(&asked, &id("web"), Duration::from_secs(60)).unwrap();
    assert!(Proxy::connect(control_plane, known(chain), CLUSTER).await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_authority_signs_by_the_kubernetes_api() {
    let cluster = Cluster::start().await;
    let authority = CertificateAuthority::generate("elsewhere").unwrap();
    let root = authority.root_pem().to_owned();
    let other = CertificateAuthority::generate("another").unwrap();
    let mesh = json!({"caCertificates": [
        {"pem": root, "certSigners": [format!("{DOMAIN}/good"), format!("{DOMAIN}/mixed-up"), format!("{DOMAIN}/failing")]},
        {"pem": other.root_pem(), "certSigners": [format!("{DOMAIN}/unknown-root")]},
    ]});
    cluster
        .merge(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "istio", "namespace": "istio-system"},
            "data": {"mesh": mesh.to_string()}}))
        .await;
    let external =
        ExternalCa { signer: Some(format!("{DOMAIN}/good")), domain: Some(DOMAIN.to_owned()), roots: None };
    let control_plane =
        cluster.control_plane_with(Config { external_ca: Some(external), ..Config::default() }).await;
    let requests: Api<CertificateSigningRequest> = Api::all(cluster.client.clone());
    let signer = tokio::spawn(sign(requests.clone(), authority));
    let token = cluster.token("web", AUDIENCE).await;
    let key = WorkloadKey::generate(KeyKind::P256).unwrap();
    let csr = || key.request_as(&id("web")).unwrap();

    for signer in [None, Some("good"), Some("with-root")] {
        let chain = order(&control_plane, &token, csr(), signer).await.unwrap();
        assert_eq!(
            (workload(&chain).as_str(), chain.len(), chain.last()),
            (WEB, 2, Some(&root)),
            "{signer:?}"
        );
        WorkloadCertificate::new(&key, chain).unwrap();
    }
    known_by_certificate(&control_plane, &token, &key).await;

    // The mesh's own root is what the control plane serves with, still.
    assert_ne!(control_plane.root_certificate(), root);

    // Whatever goes wrong the caller hears why.
    for (signer, why) in [
        ("failing", "could not be signed: Policy: not on Sundays (signer signers.example.com/failing)"),
        ("mixed-up", "the signer's certificate is of another key than the request"),
        ("unknown-root", "leads to none of the roots that are known of the signer"),
        ("asleep", "was not signed within 5 s: is there a signer signers.example.com/asleep"),
        ("bad name", "cannot create a CertificateSigningRequest"),
    ] {
        let status = soon(signer, order(&control_plane, &token, csr(), Some(signer))).await.unwrap_err();
        assert_eq!(status.code(), Code::Internal, "{signer}");
        assert!(status.message().contains(why), "{signer}: {}", status.message());
    }
    // Approved by nobody but the control plane, and only for who asks.
    let nobody = key.request().unwrap();
    let status = order(&control_plane, &token, nobody, None).await.unwrap_err();
    assert!(status.message().contains("must keep the request's names"), "{}", status.message());
    let status =
        order(&control_plane, &token, key.request_as(&id("admin")).unwrap(), None).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("sa/web may ask for itself only"), "{}", status.message());

    // Somebody else deletes what waits.
    let delete = async {
        loop {
            let waiting = requests.list(&ListParams::default()).await.unwrap();
            let approved = waiting.items.first().filter(|one| one.status.is_some());
            if let Some(name) = approved.and_then(|one| one.metadata.name.clone()) {
                break requests.delete(&name, &kube::api::DeleteParams::default()).await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let (status, _) = tokio::join!(order(&control_plane, &token, csr(), Some("asleep")), delete);
    let status = status.unwrap_err();
    assert!(status.message().contains("somebody deleted"), "{}", status.message());
    let left = requests.list(&ListParams::default()).await.unwrap();
    assert!(
        left.items.is_empty(),
        "{:?}",
        left.items.iter().map(|one| &one.metadata.name).collect::<Vec<_>>()
    );
    assert!(!signer.is_finished());
    signer.abort();
    control_plane.shutdown().await;
}
