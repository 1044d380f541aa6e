//! Starting and stopping.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use lateen_podstreams::PodBackend;
use parking_lot::RwLock;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    ApiServerConfig, StoreConfig,
    addresses::Addresses,
    authn::{self, Authenticator},
    bootstrap,
    gc::{self, Garbage},
    handle,
    pki::{self, Pki},
    resources::{Registry, meta},
    state::{self, Api},
    store::{ObjectKey, Store},
};

/// How long a client may take for its TLS handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

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

/// How often it is looked whether the cluster's own objects are there.
const KEEP_BASICS: Duration = Duration::from_secs(1);

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
    api: Arc<Api>,
    tasks: TaskTracker,
}

impl ApiServer {
    /// Starts serving; returns once the listeners are bound. Needs a Tokio runtime.
    ///
    /// # Errors
    /// [`StartError`] when an address is taken, or the store or keys can't be read.
    pub async fn start(config: ApiServerConfig) -> Result<Self, StartError> {
        let (store, default_pki) = match &config.store {
            StoreConfig::Ephemeral => (Store::ephemeral(config.watch_window), None),
            StoreConfig::Durable(directory) => {
                (Store::durable(directory, config.watch_window)?, Some(directory.join("pki")))
            }
        };
        let pki = Pki::open(config.pki_dir.clone().or(default_pki).as_deref())?;
        let mut listeners = Vec::new();
        let mut addresses = Vec::new();
        for address in &config.listen {
            let failed = |source| StartError::Listen { address: *address, source };
            let listener = TcpListener::bind(address).await.map_err(failed)?;
            addresses.push(listener.local_addr().map_err(failed)?);
            listeners.push(listener);
        }
        let service_addresses = Addresses::new(config.service_cidr, config.service_cidr6);
        let names = certificate_names(&config, &addresses, &service_addresses);
        let tls = TlsAcceptor::from(Arc::new(pki::server_tls(&pki, &names)?));
        let api = Arc::new(Api {
            store,
            registry: Registry::new(),
            authenticator: Authenticator { pki, issuer: authn::issuer(&config.cluster_domain) },
            addresses: service_addresses,
            garbage: Garbage::default(),
            pods: RwLock::new(config.pod_backend.clone()),
            resolver: config.service_resolver.clone(),
            stop: CancellationToken::new(),
            idle_limit: config.idle_limit,
            request_limit: config.request_limit,
        });
        api.adopt_stored();
        let port = addresses.first().map_or(6443, SocketAddr::port);
        create_roles(&api);
        create_basics(&api, port);
        let tasks = TaskTracker::new();
        tasks.spawn(keep_basics(Arc::clone(&api), port));
        for listener in listeners {
            tasks.spawn(accept(Arc::clone(&api), listener, tls.clone(), tasks.clone()));
        }
        tasks.spawn(gc::run(Arc::clone(&api)));
        Ok(Self { addresses, api, tasks })
    }

    /// The bound addresses, in the order of [`ApiServerConfig::listen`].
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// `https://` and the first bound address.
    #[must_use]
    pub fn url(&self) -> String {
        self.addresses.first().map_or_else(String::new, |address| format!("https://{address}"))
    }

    /// The cluster CA's certificate: signs the serving certificate and client certificates.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.api.authenticator.pki.ca_pem
    }

    /// A bearer token of `system:masters`. With [`Self::ca_pem`] and [`Self::url`] it makes a client for controllers.
    #[must_use]
    pub fn admin_token(&self) -> &str {
        &self.api.authenticator.pki.admin_token
    }

    /// A kubeconfig (YAML, everything inline) for `server_url` with an admin client certificate.
    ///
    /// # Errors
    /// [`StartError::Pki`] when the certificate can't be signed.
    pub fn kubeconfig(&self, server_url: &str) -> Result<String, StartError> {
        let pki = &self.api.authenticator.pki;
        let client = pki.client_certificate("kubernetes-admin", &["system:masters"])?;
        let encode = |pem: &str| BASE64.encode(pem);
        let value = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "lateen", "cluster": {
                "server": server_url, "certificate-authority-data": encode(&pki.ca_pem)}}],
            "users": [{"name": "lateen-admin", "user": {
                "client-certificate-data": encode(&client.certificate_pem), "client-key-data": encode(&client.key_pem)}}],
            "contexts": [{"name": "lateen", "context": {"cluster": "lateen", "user": "lateen-admin"}}],
            "current-context": "lateen",
        });
        serde_saphyr::to_string(&value).map_err(|e| StartError::Pki(e.to_string()))
    }

    /// Makes a bound service account token, as the `token` subresource does.
    ///
    /// # Errors
    /// What the subresource would answer, in words: the service account or the pod doesn't exist.
    pub fn mint_token(&self, request: &TokenRequest) -> Result<String, String> {
        self.api.authenticator.mint(&self.api.store, request, None).map(|(token, _)| token)
    }

    /// Sets or replaces what runs the pods.
    pub fn set_pod_backend(&self, backend: Arc<dyn PodBackend>) {
        *self.api.pods.write() = Some(backend);
    }

    /// Stops accepting, cuts open connections, and waits until the journal is on disk.
    pub async fn shutdown(self) {
        self.api.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        if let Err(problem) = self.api.store.sync() {
            tracing::warn!(%problem, "the journal may not be on disk");
        }
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.api.stop.cancel();
    }
}

fn certificate_names(config: &ApiServerConfig, bound: &[SocketAddr], services: &Addresses) -> Vec<String> {
    let mut names: Vec<String> =
        ["localhost", "127.0.0.1", "::1", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
            .map(str::to_owned)
            .to_vec();
    names.push(format!("kubernetes.default.svc.{}", config.cluster_domain));
    names.push(services.nth(1).to_string());
    names.extend(
        bound.iter().filter(|address| !address.ip().is_unspecified()).map(|address| address.ip().to_string()),
    );
    names.extend(config.extra_sans.iter().cloned());
    let mut seen = std::collections::HashSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
}

/// Brings back what somebody has deleted, as Kubernetes does with its own Service.
async fn keep_basics(api: Arc<Api>, port: u16) {
    loop {
        tokio::select! {
            () = api.stop.cancelled() => return,
            () = tokio::time::sleep(KEEP_BASICS) => create_basics(&api, port),
        }
    }
}

fn stamped(mut object: Value) -> Value {
    object["metadata"]["uid"] = json!(uuid::Uuid::new_v4().to_string());
    object["metadata"]["creationTimestamp"] = json!(state::now());
    object
}

/// The default roles and their bindings, where they are not there.
fn create_roles(api: &Api) {
    for object in bootstrap::objects() {
        let (kind, name) = (object["kind"].as_str().unwrap_or_default(), meta(&object, "name").to_owned());
        if let Some(def) = api.registry.find_kind("rbac.authorization.k8s.io/v1", kind) {
            // There already when the store is durable.
            let _ = api.store.create(&def.storage, ObjectKey::new("", name), stamped(object));
        }
    }
}

/// What every cluster has from the start, where it is not there.
fn create_basics(api: &Api, port: u16) {
    for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        let namespace = json!({"kind": "Namespace", "apiVersion": "v1",
            "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
            "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}});
        // There already when the store is durable.
        let _ = api.store.create(&"namespaces".into(), ObjectKey::new("", name), stamped(namespace));
    }
    let address = api.addresses.nth(1).to_string();
    let service = json!({"kind": "Service", "apiVersion": "v1",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {"type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster", "sessionAffinity": "None",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}]},
        "status": {"loadBalancer": {}}});
    let _ = api.store.create(&"services".into(), ObjectKey::new("default", "kubernetes"), stamped(service));
}

async fn accept(api: Arc<Api>, listener: TcpListener, tls: TlsAcceptor, tasks: TaskTracker) {
    loop {
        let stream = tokio::select! {
            () = api.stop.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(problem) => {
                    // Out of descriptors or the like: give others time to close some.
                    tracing::warn!(%problem, "cannot accept connections");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let (api, tls) = (Arc::clone(&api), tls.clone());
        tasks.spawn(async move {
            let stop = api.stop.clone();
            tokio::select! {
                () = stop.cancelled() => {}
                () = connection(api, stream, tls) => {}
            }
        });
    }
}

async fn connection(api: Arc<Api>, stream: TcpStream, tls: TlsAcceptor) {
    // Answers are small and waited for.
    if let Err(problem) = stream.set_nodelay(true) {
        tracing::debug!(%problem, "no TCP_NODELAY");
    }
    let stream = match tokio::time::timeout(HANDSHAKE_LIMIT, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(problem)) => return tracing::debug!(%problem, "TLS handshake failed"),
        Err(_) => return tracing::debug!("TLS handshake took too long"),
    };
    let user =
        stream.get_ref().1.peer_certificates().and_then(|chain| authn::user_of_certificate(chain.first()?));
    let idle_limit = api.idle_limit;
    let service =
        hyper::service::service_fn(move |request| handle::handle(Arc::clone(&api), user.clone(), request));
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(idle_limit);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(1000);
    if let Err(problem) = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await {
        tracing::debug!(%problem, "connection ended");
    }
}
