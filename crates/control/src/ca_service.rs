//! The certificate service of workloads: whoever proves to be one gets a certificate that says so, and nothing else. Our own authority
//! signs it, or another one behind the Kubernetes CSR API.
use futures::future::BoxFuture;
use lateen_pki::{SigningRequest, SpiffeId};
use lateen_xds::certificate_service::{CertificateIssuer, IstioCertificateRequest, IstioCertificateResponse};
use lateen_xds::pb::google::protobuf::value::Kind;
use tokio::sync::{Semaphore, watch};
use tonic::{Request, Status};

use crate::authenticate::{AuthError, Authenticator, Caller, identity_of};
use crate::ca_metrics::{CaMetrics, CsrOutcome};
use crate::ca_secret::CurrentAuthority;
use crate::config::CertificateLife;
use crate::csr_api::{CsrApi, Order};
use crate::push::Published;
use crate::serve::PeerCertificates;

/// Certificates signed at a time: signing is work for a processor.
const SIGNING: usize = 8;

/// Signs for workloads.
pub(crate) struct CaService {
    authority: CurrentAuthority,
    authenticator: Authenticator,
    published: watch::Receiver<Published>,
    life: CertificateLife,
    metrics: CaMetrics,
    signing: Semaphore,
    /// Places for those who wait: what thousands send at once must not grow without end.
    queue: Semaphore,
    /// Who signs in the authority's place.
    external: Option<CsrApi>,
}

/// What is counted, and what the caller is told.
type Refusal = (CsrOutcome, Status);

impl CaService {
    pub(crate) fn new(
        authority: CurrentAuthority,
        authenticator: Authenticator,
        published: watch::Receiver<Published>,
        life: CertificateLife,
        metrics: CaMetrics,
        external: Option<CsrApi>,
        queue: usize,
    ) -> Self {
        metrics.authority(&authority.borrow());
        let signing = Semaphore::new(SIGNING);
        Self {
            authority,
            authenticator,
            published,
            life,
            metrics,
            signing,
            queue: Semaphore::new(queue),
            external,
        }
    }

    async fn sign(&self, request: Request<IstioCertificateRequest>) -> Result<Vec<String>, Refusal> {
        let Ok(_place) = self.queue.try_acquire() else {
            let status =
                Status::resource_exhausted("too many wait for a certificate at this moment; try again");
            return Err((CsrOutcome::NotSigned("CSR_QUEUE_FULL"), status));
        };
        let (metadata, extensions, message) = request.into_parts();
        let asked_signer = signer_of(&message);
        let (trust_domain, external) = {
            let published = self.published.borrow();
            if !published.complete {
                let status = Status::unavailable("the mesh config has not been read yet; try again");
                return Err((CsrOutcome::NotSigned("CSR_NOT_READY"), status));
            }
            let mesh = published.world.mesh();
            let external = self.external.as_ref().map(|external| {
                let signer = external.signer(asked_signer)?;
                let roots = mesh.roots_of_signer(&signer).map(str::to_owned);
                Ok((external, signer, roots))
            });
            (mesh.trust_domain.clone(), external)
        };
        // A certificate goes before a token, as in Istio.
        let id = match extensions.get::<PeerCertificates>() {
            Some(shown) => identity_of(shown.0.first(), &trust_domain)
                .map_err(|reason| (CsrOutcome::NotAuthenticated, Status::unauthenticated(reason)))?,
            None => {
                let Caller { namespace, service_account, pod: _ } = self
                    .authenticator
                    .authenticate_anew(&metadata.into_headers())
                    .await
                    .map_err(|error: AuthError| (CsrOutcome::NotAuthenticated, error.into()))?;
                SpiffeId::new(&trust_domain, &namespace, &service_account)
                    .map_err(|error| (CsrOutcome::NoIdentity, Status::permission_denied(error.to_string())))?
            }
        };
        no_impersonation(&message)?;
        let lifetime = self
            .life
            .granted(message.validity_duration)
            .map_err(|reason| (CsrOutcome::NotSigned("TTL_ERROR"), Status::invalid_argument(reason)))?;
        if let Some(external) = external {
            let refused = |outcome| move |reason: String| (outcome, Status::invalid_argument(reason));
            let (external, signer, roots) = external.map_err(refused(CsrOutcome::NotSigned("CSR_ERROR")))?;
            let request = SigningRequest::from_pem(&message.csr)
                .map_err(|error| refused(CsrOutcome::BadRequest)(error.to_string()))?;
            request
                .asks_for_no_more_than(&id)
                .map_err(|error| refused(CsrOutcome::NotSigned("CSR_ERROR"))(error.to_string()))?;
            let order = Order { csr: message.csr, request, id, life: lifetime, signer, roots };
            return external
                .sign(order)
                .await
                .map_err(|reason| (CsrOutcome::NotSigned("CERT_GEN_ERROR"), Status::internal(reason)));
        }
        if let Some(signer) = asked_signer {
            let reason = format!("there are no other signers to choose from (CertSigner {signer:?})");
            return Err((CsrOutcome::NotSigned("CSR_ERROR"), Status::invalid_argument(reason)));
        }
        // The semaphore is never closed.
        let _permit = self.signing.acquire().await;
        let authority = self.authority.borrow().clone();
        let signed = tokio::task::spawn_blocking(move || {
            let request = SigningRequest::from_pem(&message.csr)
                .map_err(|error| (CsrOutcome::BadRequest, Status::invalid_argument(error.to_string())))?;
            let signed = authority.issue_workload(&request, &id, lifetime);
            signed.map_err(|error| {
                (CsrOutcome::NotSigned("CERT_GEN_ERROR"), Status::internal(error.to_string()))
            })
        });
        signed.await.unwrap_or_else(|error| {
            Err((CsrOutcome::NotSigned("CERT_GEN_ERROR"), Status::internal(error.to_string())))
        })
    }
}

impl CertificateIssuer for CaService {
    fn create(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> BoxFuture<'_, Result<IstioCertificateResponse, Status>> {
        Box::pin(async move {
            match self.sign(request).await {
                Ok(cert_chain) => {
                    self.metrics.count(CsrOutcome::Issued);
                    Ok(IstioCertificateResponse { cert_chain })
                }
                Err((outcome, status)) => {
                    self.metrics.count(outcome);
                    tracing::warn!(reason = status.message(), "no certificate for a caller");
                    Err(status)
                }
            }
        })
    }
}

/// The signer that is asked for.
fn signer_of(message: &IstioCertificateRequest) -> Option<&str> {
    match &message.metadata.as_ref()?.fields.get("CertSigner")?.kind {
        Some(Kind::StringValue(name)) if !name.is_empty() => Some(name),
        _ => None,
    }
}

/// Refuses who asks for another's certificate.
fn no_impersonation(message: &IstioCertificateRequest) -> Result<(), Refusal> {
    let given =
        message.metadata.as_ref().is_some_and(|given| given.fields.contains_key("ImpersonatedIdentity"));
    if given {
        let status =
            Status::permission_denied("nobody may ask for another's certificate (ImpersonatedIdentity)");
        return Err((CsrOutcome::NotAuthenticated, status));
    }
    Ok(())
}
