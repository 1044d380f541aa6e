//! The control plane's own certificate: issued by its CA, renewed at half of its life and when the CA changes, without a restart.
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lateen_pki::{CaError, CertificateAuthority};
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{RootCertStore, ServerConfig};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::ca_secret::CurrentAuthority;

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
    provider: Arc<CryptoProvider>,
    /// HTTP/2, for proxies, which may show a certificate of the mesh.
    proxies: watch::Sender<Arc<ServerConfig>>,
    /// Either HTTP, for the API server.
    webhooks: watch::Sender<Arc<ServerConfig>>,
}

/// The configurations for proxies and for webhooks, with a new certificate.
fn issue(
    authority: &CertificateAuthority,
    names: &[String],
    provider: &Arc<CryptoProvider>,
) -> Result<[Arc<ServerConfig>; 2], ServingCertError> {
    let certificate = authority.issue_server(names, LIFETIME)?;
    let key = Arc::new(CertifiedKey::from_der(certificate.chain, certificate.key, provider)?);
    let mut roots = RootCertStore::empty();
    for root in authority.roots().iter() {
        roots.add(root.clone())?;
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
        names: Vec<String>,
    ) -> Result<Self, ServingCertError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let [proxies, webhooks] = issue(authority, &names, &provider)?;
        Ok(Self {
            names,
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

    /// Issues anew at half of the certificate's life, and when the authority changes, until told to stop.
    pub(crate) async fn renew(self, mut authority: CurrentAuthority, stop: CancellationToken) {
        loop {
            // Nothing outlives the authority's own certificate.
            let end = authority.borrow().not_after();
            let left = end.duration_since(SystemTime::now()).unwrap_or_default();
            let pause = (LIFETIME.min(left) / 2).max(SOONEST);
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
                changed = authority.changed() => if changed.is_err() { return },
            }
            let current = authority.borrow_and_update().clone();
            match issue(&current, &self.names, &self.provider) {
                Ok([proxies, webhooks]) => {
                    self.proxies.send_replace(proxies);
                    self.webhooks.send_replace(webhooks);
                }
                Err(error) => tracing::error!("{error}; the old certificate stays"),
            }
        }
    }
}
