//! Workloads' certificates from somebody else's authority, by the Kubernetes CSR API, as istiod has them with
//! `EXTERNAL_CA=ISTIOD_RA_KUBERNETES_API`: the control plane makes a CertificateSigningRequest of what a workload sends, approves it
//! (it has seen who asks), waits for the signer, checks what was signed and hands it on.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt as _;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    CertificateSigningRequest, CertificateSigningRequestCondition, CertificateSigningRequestSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, PostParams, WatchEvent, WatchParams};
use lateen_pki::{Roots, SigningRequest, SpiffeId, check_issued};
use tokio::sync::Semaphore;

use crate::config::ExternalCa;

/// Requests under way at a time: each is a watch at the API server.
const UNDER_WAY: usize = 64;
/// How long a request waits for its turn, and for the signer once it is made: together less than workloads wait (10 s).
const QUEUE: Duration = Duration::from_secs(4);
const SIGNING: Duration = Duration::from_secs(5);
/// What certificates are for.
const USAGES: [&str; 4] = ["digital signature", "key encipherment", "server auth", "client auth"];
/// In which signers that know it (cert-manager) are told of lives shorter than the API's least.
const LIFE_ANNOTATION: &str = "experimental.cert-manager.io/request-duration";
/// The API's least life.
const LEAST_LIFE: Duration = Duration::from_secs(600);
/// How often another random name is tried.
const NAMES: usize = 3;

/// Has certificates signed.
pub(crate) struct CsrApi {
    requests: Api<CertificateSigningRequest>,
    options: ExternalCa,
    slots: Arc<Semaphore>,
}

/// What a workload may have signed.
pub(crate) struct Order {
    /// As it was sent, PEM.
    pub(crate) csr: String,
    pub(crate) request: SigningRequest,
    pub(crate) id: SpiffeId,
    pub(crate) life: Duration,
    /// The signer's whole name.
    pub(crate) signer: String,
    /// The signer's roots, PEM, where the mesh config has them.
    pub(crate) roots: Option<String>,
}

impl CsrApi {
    pub(crate) fn new(client: kube::Client, options: ExternalCa) -> Self {
        Self { requests: Api::all(client), options, slots: Arc::new(Semaphore::new(UNDER_WAY)) }
    }

    /// The whole name of the signer that a workload is to have.
    pub(crate) fn signer(&self, asked: Option<&str>) -> Result<String, String> {
        self.options.signer(asked)
    }

    /// The certificate's chain, and the root last. The object in the API is removed again, even if the caller goes away.
    pub(crate) async fn sign(&self, mut order: Order) -> Result<Vec<String>, String> {
        order.roots = order.roots.or_else(|| self.options.roots.clone());
        let (requests, slots) = (self.requests.clone(), self.slots.clone());
        let signing = async move {
            match tokio::time::timeout(QUEUE, slots.acquire()).await {
                // The semaphore is never closed.
                Ok(_permit) => have_signed(&requests, order).await,
                Err(_) => Err(format!(
                    "{UNDER_WAY} others wait for signer {} and the like; try again",
                    order.signer
                )),
            }
        };
        tokio::spawn(signing).await.unwrap_or_else(|error| Err(error.to_string()))
    }
}

async fn have_signed(requests: &Api<CertificateSigningRequest>, order: Order) -> Result<Vec<String>, String> {
    let told = |what: &str, error: kube::Error| format!("cannot {what} a CertificateSigningRequest: {error}");
    let created = create(requests, &order).await.map_err(|error| told("create", error))?;
    let name = created.metadata.name.clone().unwrap_or_default();
    let decided = tokio::time::timeout(SIGNING, async {
        let approved = approve(requests, created, &order).await.map_err(|error| told("approve", error))?;
        wait(requests, approved, &order.signer).await
    });
    let issued = decided.await.unwrap_or_else(|_| {
        let seconds = SIGNING.as_secs();
        Err(format!(
            "{name} was not signed within {seconds} s: is there a signer {}, and does it sign?",
            order.signer
        ))
    });
    match requests.delete(&name, &DeleteParams::default()).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(error) => {
            tracing::warn!("cannot delete CertificateSigningRequest {name}: {error}; delete it by hand")
        }
        Ok(_) => {}
    }
    let issued = issued?;
    let roots = match &order.roots {
        Some(pem) => {
            let parsed = Roots::from_pem(pem);
            Some(parsed.map_err(|error| format!("the known roots of signer {}: {error}", order.signer))?)
        }
        None => None,
    };
    let checked = check_issued(&issued, &order.request, &order.id, roots.as_ref());
    checked.map_err(|error| format!("signer {}: {error}", order.signer))
}

async fn create(
    requests: &Api<CertificateSigningRequest>,
    order: &Order,
) -> Result<CertificateSigningRequest, kube::Error> {
    let annotation = (LIFE_ANNOTATION.to_owned(), format!("{}s", order.life.as_secs()));
    let mut request = CertificateSigningRequest {
        metadata: ObjectMeta { annotations: Some(BTreeMap::from([annotation])), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(order.csr.clone().into_bytes()),
            signer_name: order.signer.clone(),
            usages: Some(USAGES.map(str::to_owned).to_vec()),
            expiration_seconds: i32::try_from(order.life.max(LEAST_LIFE).as_secs()).ok(),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    let mut tries = 0;
    loop {
        tries += 1;
        let random: String = (0..18).map(|_| fastrand::alphanumeric().to_ascii_lowercase()).collect();
        request.metadata.name = Some(format!("csr-workload-{random}"));
        match requests.create(&PostParams::default(), &request).await {
            Err(kube::Error::Api(status)) if status.code == 409 && tries < NAMES => {}
            other => return other,
        }
    }
}

async fn approve(
    requests: &Api<CertificateSigningRequest>,
    mut request: CertificateSigningRequest,
    order: &Order,
) -> Result<CertificateSigningRequest, kube::Error> {
    let why = format!("the workload has proved to be {}", order.id);
    request.status.get_or_insert_default().conditions.get_or_insert_default().push(
        CertificateSigningRequestCondition {
            type_: "Approved".to_owned(),
            status: "True".to_owned(),
            reason: Some("IdentityProved".to_owned()),
            message: Some(why),
            ..CertificateSigningRequestCondition::default()
        },
    );
    let name = request.metadata.name.clone().unwrap_or_default();
    requests.replace_subresource("approval", &name, &PostParams::default(), &request).await
}

/// Waits for the signer's word. Where the watch breaks off, the object is read anew.
async fn wait(
    requests: &Api<CertificateSigningRequest>,
    mut request: CertificateSigningRequest,
    signer: &str,
) -> Result<String, String> {
    let failed = |error: kube::Error| format!("cannot watch a CertificateSigningRequest: {error}");
    let name = request.metadata.name.clone().unwrap_or_default();
    let params = WatchParams::default().fields(&format!("metadata.name={name}"));
    loop {
        if let Some(word) = word_of(&request, &name, signer) {
            return word;
        }
        let version = request.metadata.resource_version.clone().unwrap_or_default();
        let mut events = std::pin::pin!(requests.watch(&params, &version).await.map_err(failed)?);
        while let Ok(Some(event)) = events.try_next().await {
            match event {
                WatchEvent::Added(changed) | WatchEvent::Modified(changed) => {
                    if let Some(word) = word_of(&changed, &name, signer) {
                        return word;
                    }
                }
                WatchEvent::Deleted(_) => {
                    return Err(format!("somebody deleted {name} before {signer} signed it"));
                }
                WatchEvent::Bookmark(_) | WatchEvent::Error(_) => {}
            }
        }
        request = requests.get(&name).await.map_err(failed)?;
    }
}

/// The certificate, or why there will be none; none while the signer has not spoken.
fn word_of(request: &CertificateSigningRequest, name: &str, signer: &str) -> Option<Result<String, String>> {
    let status = request.status.as_ref()?;
    let said = status.conditions.iter().flatten().find_map(|condition| {
        let what = match condition.type_.as_str() {
            "Denied" => "was denied",
            "Failed" => "could not be signed",
            _ => return None,
        };
        let text = |part: &Option<String>| part.clone().unwrap_or_default();
        let (reason, message) = (text(&condition.reason), text(&condition.message));
        Some(format!("{name} {what}: {reason}: {message} (signer {signer})"))
    });
    if let Some(said) = said {
        return Some(Err(said));
    }
    let certificate = status.certificate.as_ref()?;
    Some(
        String::from_utf8(certificate.0.clone())
            .map_err(|_| format!("{signer} signed {name} with what is no text")),
    )
}
