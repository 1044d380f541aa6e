//! The control plane's own certificate: issued by its CA, renewed at half of its life without a restart.
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use lateen_pki::{CaError, CertificateAuthority};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use tokio_util::sync::CancellationToken;

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

/// Gives every handshake the current certificate.
#[derive(Debug)]
pub(crate) struct ServingCert {
    current: RwLock<Arc<CertifiedKey>>,
    names: Vec<String>,
    provider: Arc<CryptoProvider>,
}

impl ResolvesServerCert for ServingCert {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

fn issue(
    authority: &CertificateAuthority,
    names: &[String],
    provider: &CryptoProvider,
) -> Result<Arc<CertifiedKey>, ServingCertError> {
    let certificate = authority.issue_server(names, LIFETIME)?;
    Ok(Arc::new(CertifiedKey::from_der(certificate.chain, certificate.key, provider)?))
}

fn roots(pem: &str) -> Result<RootCertStore, rustls::Error> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|error| rustls::Error::General(error.to_string()))?;
        roots.add(certificate)?;
    }
    Ok(roots)
}

impl ServingCert {
    /// Issues the first certificate.
    pub(crate) fn new(
        authority: &CertificateAuthority,
        names: Vec<String>,
    ) -> Result<Arc<Self>, ServingCertError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let current = RwLock::new(issue(authority, &names, &provider)?);
        Ok(Arc::new(Self { current, names, provider }))
    }

    /// A TLS configuration that serves it, offering these application protocols. With `clients`, roots in PEM, a client may show
    /// a certificate, which must be of these.
    pub(crate) fn server_config(
        self: &Arc<Self>,
        protocols: &[&[u8]],
        clients: Option<&str>,
    ) -> Result<Arc<ServerConfig>, ServingCertError> {
        let verifier = match clients {
            None => WebPkiClientVerifier::no_client_auth(),
            Some(pem) => {
                let roots = roots(pem)?;
                let builder =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), self.provider.clone());
                builder
                    .allow_unauthenticated()
                    .build()
                    .map_err(|error| rustls::Error::General(error.to_string()))?
            }
        };
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(self.clone());
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(Arc::new(config))
    }

    /// Issues anew at half of the certificate's life until told to stop.
    pub(crate) async fn renew(
        self: Arc<Self>,
        authority: Arc<CertificateAuthority>,
        stop: CancellationToken,
    ) {
        loop {
            // Nothing outlives the authority's own certificate.
            let left = authority.not_after().duration_since(SystemTime::now()).unwrap_or_default();
            let pause = (LIFETIME.min(left) / 2).max(SOONEST);
            if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                return;
            }
            match issue(&authority, &self.names, &self.provider) {
                Ok(renewed) => *self.current.write().unwrap_or_else(PoisonError::into_inner) = renewed,
                Err(error) => tracing::error!("{error}; the old certificate stays"),
            }
        }
    }
}
