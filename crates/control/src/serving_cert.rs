//! The control plane's own certificate: issued by its CA, renewed at half of its life and when the CA changes, without a restart; and
//! whose certificates it takes of callers.
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lateen_api::MeshConfig;
use lateen_pki::{CaError, CertificateAuthority, Roots};
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{RootCertStore, ServerConfig};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::ca_secret::CurrentAuthority;
use crate::config::ExternalCa;
use crate::push::Published;

/// Life of a serving certificate.
const LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);
/// Shortest pause between two renewals.
const SOONEST: Duration = Duration::from_secs(60);

/// Why there is no certificate to serve with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServingCertError {
    #[error("cannot issue the control plane's certificate: {0}")]
    Issue(#[from] CaError),
    #[error("cannot use the control plane's certificate: {0}")]
    Tls(#[from] rustls::Error),
}

/// What a listener's handshakes go by at the moment. Sessions belong to it, so that none is resumed with a trust that is gone.
pub(crate) type CurrentTls = watch::Receiver<Arc<ServerConfig>>;

/// Keeps the TLS configurations of the control plane's listeners.
pub(crate) struct ServingCert {
    names: Vec<String>,
    /// Who signs in the authority's place.
    external: Option<ExternalCa>,
    provider: Arc<CryptoProvider>,
    /// HTTP/2, for proxies, which may show a certificate of the mesh.
    proxies: watch::Sender<Arc<ServerConfig>>,
    /// Either HTTP, for the API server.
    webhooks: watch::Sender<Arc<ServerConfig>>,
}

/// The roots (PEM) of those who sign workloads' certificates in the authority's place, as the mesh config has them. Roots of other trust
/// domains are not among them: nobody of another mesh is served.
fn roots_of_signers(external: &ExternalCa, mesh: Option<&MeshConfig>) -> String {
    let known = mesh.into_iter().flat_map(MeshConfig::roots_of_signers).chain(external.roots.as_deref());
    // What is no certificate was told when it came.
    known.filter(|roots| Roots::from_pem(roots).is_ok()).flat_map(|roots| [roots.trim_end(), "\n"]).collect()
}

/// The configurations for proxies and for webhooks, with a new certificate. `signers`: roots besides the authority's (PEM).
fn issue(
    authority: &CertificateAuthority,
    signers: &str,
    names: &[String],
    provider: &Arc<CryptoProvider>,
) -> Result<[Arc<ServerConfig>; 2], ServingCertError> {
    let certificate = authority.issue_server(names, LIFETIME)?;
    let key = Arc::new(CertifiedKey::from_der(certificate.chain, certificate.key, provider)?);
    let mut roots = RootCertStore::empty();
    for root in authority.roots().iter() {
        roots.add(root.clone())?;
    }
    for root in Roots::from_pem(signers).iter().flat_map(Roots::iter) {
        if let Err(error) = roots.add(root.clone()) {
            tracing::warn!(%error, "a signer's root cannot be used: who has a certificate of it needs a token");
        }
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let config = |verifier, protocols: &[&[u8]]| {
        let mut config = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(key.clone())));
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Ok::<_, rustls::Error>(Arc::new(config))
    };
    Ok([config(verifier, &[b"h2"])?, config(WebPkiClientVerifier::no_client_auth(), &[b"h2", b"http/1.1"])?])
}

impl ServingCert {
    /// Issues the first certificate.
    pub(crate) fn new(
        authority: &CertificateAuthority,
        external: Option<&ExternalCa>,
        names: Vec<String>,
    ) -> Result<Self, ServingCertError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let signers = external.map(|external| roots_of_signers(external, None)).unwrap_or_default();
        let [proxies, webhooks] = issue(authority, &signers, &names, &provider)?;
        Ok(Self {
            names,
            external: external.cloned(),
            provider,
            proxies: watch::Sender::new(proxies),
            webhooks: watch::Sender::new(webhooks),
        })
    }

    /// For listeners of proxies.
    pub(crate) fn proxies(&self) -> CurrentTls {
        self.proxies.subscribe()
    }

    /// For the webhooks' listener.
    pub(crate) fn webhooks(&self) -> CurrentTls {
        self.webhooks.subscribe()
    }

    /// Issues anew at half of the certificate's life, and when the authority or another signer's roots change, until told to stop.
    pub(crate) async fn renew(
        self,
        mut authority: CurrentAuthority,
        mut published: watch::Receiver<Published>,
        stop: CancellationToken,
    ) {
        let mut signers = self.signers(None);
        loop {
            // Nothing outlives the authority's own certificate.
            let end = authority.borrow().not_after();
            let left = end.duration_since(SystemTime::now()).unwrap_or_default();
            let pause = (LIFETIME.min(left) / 2).max(SOONEST);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                changed = authority.changed() => if changed.is_err() { return },
                () = self.others(&mut published, &signers), if self.external.is_some() => {}
            }
            signers = {
                let published = published.borrow();
                let mesh: &MeshConfig = published.world.mesh();
                self.signers(published.complete.then_some(mesh))
            };
            let current = authority.borrow_and_update().clone();
            match issue(&current, &signers, &self.names, &self.provider) {
                Ok([proxies, webhooks]) => {
                    self.proxies.send_replace(proxies);
                    self.webhooks.send_replace(webhooks);
                }
                Err(error) => tracing::error!("{error}; the old certificate stays"),
            }
        }
    }

    fn signers(&self, mesh: Option<&MeshConfig>) -> String {
        self.external.as_ref().map(|external| roots_of_signers(external, mesh)).unwrap_or_default()
    }

    /// Resolves when the signers' roots are others than `signers`; never when nobody publishes any more.
    async fn others(&self, published: &mut watch::Receiver<Published>, signers: &str) {
        let new = |now: &Published| now.complete && self.signers(Some(now.world.mesh())) != signers;
        if published.wait_for(new).await.is_err() {
            std::future::pending().await
        }
    }
}
