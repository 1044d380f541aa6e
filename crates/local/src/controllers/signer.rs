//! Signs CertificateSigningRequests once they are approved, as a signer of an organization would: each authority is a Secret of
//! type `kubernetes.io/tls` in namespace `kube-system`, named `signer-NAME`, and signs what is addressed to
//! `clusterissuers.lateen.io/NAME`. Other signers' requests are left alone.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use k8s_openapi::api::core::v1::Secret;
use lateen_pki::{CertificateAuthority, SigningRequest};
use serde_json::json;

use super::cache::Kind;
use super::meta::{is_deleting, time};
use super::write::{Action, Write};

/// Where the authorities are.
pub(crate) const NAMESPACE: &str = "kube-system";
/// Which Secrets are watched.
pub(crate) const SECRETS: &str = "metadata.namespace=kube-system,type=kubernetes.io/tls";
/// Whose requests are signed.
const DOMAIN: &str = "clusterissuers.lateen.io/";
/// Life of certificates that ask for none: a year, as kube-controller-manager's.
const LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// In which a life may be asked for that is shorter than the API's least, as cert-manager takes it.
const LIFE_ANNOTATION: &str = "experimental.cert-manager.io/request-duration";

/// The Secret with the authority a request is addressed to, if that is one of ours.
fn authority(request: &CertificateSigningRequest) -> Option<String> {
    request.spec.signer_name.strip_prefix(DOMAIN).map(|name| format!("signer-{name}"))
}

/// Whether a request is to be signed by the authority in this Secret and is not yet.
pub(crate) fn waits_for(request: &CertificateSigningRequest, secret: &str) -> bool {
    is_due(request) && authority(request).is_some_and(|name| name == secret)
}

fn conditions(request: &CertificateSigningRequest) -> &[CertificateSigningRequestCondition] {
    request.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default()
}

fn is_due(request: &CertificateSigningRequest) -> bool {
    let has = |kind: &str| conditions(request).iter().any(|condition| condition.type_ == kind);
    let signed = request.status.as_ref().is_some_and(|status| status.certificate.is_some());
    has("Approved") && !has("Denied") && !has("Failed") && !signed && !is_deleting(&request.metadata)
}

/// The certificate, or why there is none. A request to an authority that is not there waits for it.
pub(crate) fn decide<'a>(
    request: &CertificateSigningRequest,
    secret: impl Fn(&str) -> Option<&'a Secret>,
    now: Timestamp,
) -> Vec<Write> {
    let Some(name) = authority(request).filter(|_| is_due(request)) else { return Vec::new() };
    let Some(secret) = secret(&name) else { return Vec::new() };
    // A merge patch brings whole lists.
    let mut all = conditions(request).to_vec();
    let mut status = json!({});
    match sign(request, secret) {
        Ok(chain) => status["certificate"] = json!(ByteString(chain.into_bytes())),
        Err(why) => all.push(CertificateSigningRequestCondition {
            type_: "Failed".to_owned(),
            status: "True".to_owned(),
            reason: Some("SignerValidationFailure".to_owned()),
            message: Some(why),
            last_update_time: Some(time(now)),
            last_transition_time: Some(time(now)),
        }),
    }
    status["conditions"] = json!(all);
    let patch = json!({ "status": status });
    vec![Write::new(Kind::CertificateSigningRequest, &request.metadata, Action::MergeStatus(patch))]
}

fn sign(request: &CertificateSigningRequest, secret: &Secret) -> Result<String, String> {
    let text = |key: &str| {
        let bytes = secret.data.as_ref().and_then(|data| data.get(key)).map(|bytes| bytes.0.as_slice());
        String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned()
    };
    let name = secret.metadata.name.as_deref().unwrap_or_default();
    let authority = CertificateAuthority::from_pem(&text("tls.crt"), &text("tls.key"))
        .map_err(|error| format!("Secret {NAMESPACE}/{name}: {error}"))?;
    let pem = String::from_utf8_lossy(&request.spec.request.0);
    let asked = SigningRequest::from_pem(&pem).map_err(|error| error.to_string())?;
    let usages = request.spec.usages.clone().unwrap_or_default();
    authority.issue_requested(&asked, &usages, life(request)?).map_err(|error| error.to_string())
}

fn life(request: &CertificateSigningRequest) -> Result<Duration, String> {
    if let Some(text) = request.metadata.annotations.as_ref().and_then(|all| all.get(LIFE_ANNOTATION)) {
        let parsed = lateen_api::duration::parse(text).map(|life| life.min(LIFE));
        return parsed.map_err(|error| format!("annotation {LIFE_ANNOTATION}: {error}"));
    }
    let seconds = request.spec.expiration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    Ok(seconds.map_or(LIFE, |seconds| Duration::from_secs(seconds).min(LIFE)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lateen_pki::{KeyKind, SpiffeId, WorkloadKey, check_issued};
    use serde_json::Value;

    fn secret(name: &str, authority: &CertificateAuthority) -> Secret {
        let mut secret: Secret =
            serde_json::from_value(json!({"metadata": {"name": name, "namespace": NAMESPACE}})).unwrap();
        let data = [("tls.crt", authority.certificate_pem()), ("tls.key", authority.key_pem())];
        let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
        secret.data = Some(data.into_iter().map(|(key, text)| (key.to_owned(), bytes(text))).collect());
        secret
    }

    fn request(csr: &str, signer: &str, conditions: &[&str]) -> CertificateSigningRequest {
        let conditions: Vec<Value> =
            conditions.iter().map(|kind| json!({"type": kind, "status": "True"})).collect();
        serde_json::from_value(json!({
            "metadata": {"name": "one"}, "status": {"conditions": conditions},
            "spec": {"request": ByteString(csr.as_bytes().to_vec()), "signerName": signer, "expirationSeconds": 600,
                "usages": ["digital signature", "server auth", "client auth"]},
        }))
        .unwrap()
    }

    fn status(writes: &[Write]) -> Value {
        match writes {
            [Write { action: Action::MergeStatus(patch), .. }] => patch["status"].clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_approved_is_signed_by_the_authority_it_names() {
        let authority = CertificateAuthority::generate("foo").unwrap();
        let foo = secret("signer-foo", &authority);
        let decide = |request: &CertificateSigningRequest| {
            decide(request, |name| (name == "signer-foo").then_some(&foo), Timestamp::now())
        };
        let id = SpiffeId::new("cluster.local", "shop", "web").unwrap();
        let csr = WorkloadKey::generate(KeyKind::P256).unwrap().request_as(&id).unwrap();
        let ours = "clusterissuers.lateen.io/foo";
        let status = status(&decide(&request(&csr, ours, &["Approved"])));
        let certificate: ByteString = serde_json::from_value(status["certificate"].clone()).unwrap();
        let issued = String::from_utf8(certificate.0).unwrap();
        let asked = SigningRequest::from_pem(&csr).unwrap();
        check_issued(&issued, &asked, &id, Some(authority.roots())).unwrap();
        assert_eq!(status["conditions"][0]["type"], "Approved", "a merge patch brings the whole list");

        for (signer, conditions) in [
            (ours, &[][..]),
            (ours, &["Denied"]),
            (ours, &["Approved", "Failed"]),
            ("clusterissuers.lateen.io/bar", &["Approved"]),
            ("kubernetes.io/kube-apiserver-client", &["Approved"]),
        ] {
            assert_eq!(decide(&request(&csr, signer, conditions)), [], "{signer} {conditions:?}");
        }
        assert!(waits_for(&request(&csr, "clusterissuers.lateen.io/bar", &["Approved"]), "signer-bar"));
    }

    #[test]
    fn what_cannot_be_signed_has_failed_and_says_why() {
        let mut broken = secret("signer-foo", &CertificateAuthority::generate("foo").unwrap());
        let good = broken.clone();
        broken.data = None;
        let csr = WorkloadKey::generate(KeyKind::P256).unwrap().request().unwrap();
        let why = |csr: &str, secret: &Secret, usages: &[&str]| {
            let mut request = request(csr, "clusterissuers.lateen.io/foo", &["Approved"]);
            request.spec.usages = Some(usages.iter().map(|&usage| usage.to_owned()).collect());
            let status = status(&decide(&request, |_| Some(secret), Timestamp::now()));
            assert_eq!(status["conditions"][1]["type"], "Failed", "{status}");
            assert!(status["certificate"].is_null());
            status["conditions"][1]["message"].as_str().unwrap().to_owned()
        };
        assert!(why(&csr, &broken, &["client auth"]).contains("Secret kube-system/signer-foo"));
        assert!(why("garbage", &good, &["client auth"]).contains("not a PKCS #10 request"));
        assert!(why(&csr, &good, &["cert sign"]).contains("cert sign"));
    }
}
