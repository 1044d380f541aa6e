//! Putting the parts together: start, addresses, shutdown.
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::StatusCode;
use axum::routing::{get, post};
use kube::Client;
use lateen_model::{Store, StoreOptions};
use lateen_xds::certificate_service::CertificateService;
use lateen_xds::server::{AdsServer, Connections};
use lateen_xds::trust_service::TrustService;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::server::NamedService;

use crate::authenticate::Authenticator;
use crate::ca_secret::{self, CaSecretError, CurrentAuthority, Stored};
use crate::ca_service::CaService;
use crate::csr_api::CsrApi;
use crate::debug::{self, Debug};
use crate::fetch_keys::KeyFetcher;
use crate::gateway_names;
use crate::injection_webhook::{self, Injector};
use crate::key_sets;
use crate::mesh_objects::{self, InjectionState, MeshObjects};
use crate::metrics::Metrics;
use crate::push::{Input, Published, PushLoop};
use crate::refused::Refused;
use crate::registration::Registration;
use crate::secret_access::SecretAccess;
use crate::serve::Server;
use crate::serving_cert::{ServingCert, ServingCertError};
use crate::source::{ProxySource, Sessions};
use crate::stored_keys::StoredKeys;
use crate::trust_service::TrustTeller;
use crate::validation_webhook::Validator;
use crate::{
    Config, ingress_status, root_cert, status_writer, trust_bundles, validation_webhook, watch as watches,
    webhook_patch,
};

/// Changes on their way from the watches to the push loop.
const INPUTS: usize = 4096;
/// Largest AdmissionReview; Kubernetes' own limit for objects is 3 MiB.
const REVIEW_BYTES: usize = 8 << 20;
/// Pause before the API server is asked again for the CA.
const API_RETRY: Duration = Duration::from_millis(500);
/// Organization of a new root certificate, as Istio's.
const ORGANIZATION: &str = "cluster.local";

/// Why the control plane could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address could not be listened on.
    #[error("cannot listen on {address} for {what}: {source}; free the port or choose another")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What it is for.
        what: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// The CA could not be used.
    #[error("{0}")]
    Ca(String),
    /// No certificate could be made to serve with.
    #[error("{0}")]
    Certificate(String),
    /// The push thread could not be started.
    #[error("cannot start the push thread: {0}")]
    Thread(io::Error),
}

impl From<ServingCertError> for StartError {
    fn from(error: ServingCertError) -> Self {
        Self::Certificate(error.to_string())
    }
}

/// What a control plane listens on.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// xDS and the certificate service over TLS.
    pub xds: SocketAddr,
    /// xDS in plain text.
    pub plain_xds: Option<SocketAddr>,
    /// Metrics and debug.
    pub monitoring: SocketAddr,
    /// Webhooks.
    pub webhooks: SocketAddr,
    /// Readiness.
    pub ready: SocketAddr,
}

/// A running control plane. Dropping it leaves its tasks running until the runtime ends; use [`ControlPlane::shutdown`].
pub struct ControlPlane {
    addresses: Addresses,
    authority: CurrentAuthority,
    ready: Readiness,
    inputs: mpsc::Sender<Input>,
    stop: CancellationToken,
    servers: TaskTracker,
    push: JoinHandle<()>,
}

struct Bound {
    xds: TcpListener,
    plain_xds: Option<TcpListener>,
    monitoring: TcpListener,
    webhooks: TcpListener,
    ready: TcpListener,
}

impl Bound {
    async fn new(config: &Config) -> Result<Self, StartError> {
        let listen = &config.listen;
        Ok(Self {
            xds: bind(listen.xds, "xDS").await?,
            plain_xds: match listen.plain_xds {
                Some(address) => Some(bind(address, "plain-text xDS").await?),
                None => None,
            },
            monitoring: bind(listen.monitoring, "metrics").await?,
            webhooks: bind(listen.webhooks, "webhooks").await?,
            ready: bind(listen.ready, "readiness").await?,
        })
    }

    fn addresses(&self) -> Result<Addresses, StartError> {
        let unspecified = SocketAddr::from(([0, 0, 0, 0], 0));
        let of = |listener: &TcpListener, what| {
            listener.local_addr().map_err(|source| StartError::Listen { address: unspecified, what, source })
        };
        Ok(Addresses {
            xds: of(&self.xds, "xDS")?,
            plain_xds: self.plain_xds.as_ref().map(|listener| of(listener, "plain-text xDS")).transpose()?,
            monitoring: of(&self.monitoring, "metrics")?,
            webhooks: of(&self.webhooks, "webhooks")?,
            ready: of(&self.ready, "readiness")?,
        })
    }
}

async fn bind(address: SocketAddr, what: &'static str) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, what, source })
}

/// Whether the control plane can do its work: it has read everything once.
#[derive(Clone)]
struct Readiness {
    published: watch::Receiver<Published>,
    injection: InjectionState,
}

impl Readiness {
    fn missing(&self) -> Option<&'static str> {
        if self.published.has_changed().is_err() {
            return Some("the push loop has ended");
        }
        if !self.published.borrow().complete {
            return Some("the configuration has not been read yet");
        }
        self.injection
            .config
            .borrow()
            .is_none()
            .then_some("ConfigMap istio-sidecar-injector has not been read yet")
    }
}

impl ControlPlane {
    /// Starts serving. Returns once everything is bound and the CA is there; waits for the API server as long as that
    /// takes. Proxies are served as soon as the configuration has been read.
    ///
    /// # Errors
    /// [`StartError`] when an address is taken or the stored CA cannot be used.
    pub async fn start(config: Config, client: Client) -> Result<Self, StartError> {
        let bound = Bound::new(&config).await?;
        let addresses = bound.addresses()?;
        let Stored { authority, secret } = authority(&client, &config.namespace).await?;
        let metrics = Metrics::new(env!("CARGO_PKG_VERSION"));
        let stop = CancellationToken::new();
        let certificate = ServingCert::new(&authority, config.external_ca.as_ref(), config.server_names())?;
        let (replace_authority, authority) = watch::channel(Arc::new(authority));

        let (inputs, receiver) = mpsc::channel(INPUTS);
        let options = StoreOptions {
            domain: config.domain.clone(),
            root_namespace: config.namespace.clone(),
            cluster_id: config.cluster_id.clone(),
            keys_by: config.keys.by,
            ..StoreOptions::default()
        };
        let looked_up = config.resolve_gateways.then_some(gateway_names::KIND);
        let kinds = watches::KINDS.into_iter().chain([mesh_objects::KIND, key_sets::KIND]).chain(looked_up);
        let push = PushLoop::new(Store::new(options), kinds, metrics.clone());
        let published = push.subscribe();
        let runtime = Handle::current();
        let push = std::thread::Builder::new()
            .name("push".to_owned())
            .spawn(move || push.run(receiver, &runtime))
            .map_err(StartError::Thread)?;
        let refused = Refused::default();
        watches::start(&client, &inputs, &refused, &stop);
        let (mesh_objects, injection) = MeshObjects::new(inputs.clone(), &config.suffix());
        let following = mesh_objects.run(client.clone(), config.namespace.clone());
        let until = stop.clone();
        tokio::spawn(async move { until.run_until_cancelled(following).await });

        let background = TaskTracker::new();
        background.spawn(ca_secret::follow(
            client.clone(),
            config.namespace.clone(),
            secret,
            replace_authority,
            metrics.authority.clone(),
            stop.clone(),
        ));
        let (federation, federations) = watch::channel(None);
        background.spawn(root_cert::distribute(
            client.clone(),
            authority.clone(),
            federations.clone(),
            stop.clone(),
        ));
        let elsewhere = Elsewhere {
            config: &config,
            client: &client,
            published: &published,
            inputs: &inputs,
            stop: &stop,
        };
        elsewhere.follow(&background, federation);
        background.spawn(ingress_status::run(client.clone(), published.clone(), stop.clone()));
        background.spawn(status_writer::run(client.clone(), published.clone(), refused, stop.clone()));
        let revision =
            if config.revision.is_empty() { "default".to_owned() } else { config.revision.clone() };
        let trust = webhook_patch::keep(client.clone(), revision, authority.clone(), stop.clone());
        background.spawn(trust);

        let ready = Readiness { published, injection };
        let (sessions, secret_access) = (Sessions::default(), Arc::new(SecretAccess::new(client.clone())));
        let following = secret_access.clone().follow(
            sessions.clone(),
            ready.published.clone(),
            inputs.clone(),
            stop.clone(),
        );
        background.spawn(following);
        let registration = Registration::new(
            client.clone(),
            &config.name,
            &config.namespace,
            config.machines,
            metrics.registration.clone(),
            ready.published.clone(),
        );
        background.spawn(registration.clone().run(stop.clone()));
        let parts = Parts {
            config: &config,
            client,
            inputs: inputs.clone(),
            metrics,
            ready: ready.clone(),
            sessions,
            secret_access,
            registration,
            authority: authority.clone(),
            federation: federations,
        };
        let servers = TaskTracker::new();
        for server in parts.servers(bound, &certificate) {
            servers.spawn(server.run(stop.clone()));
        }
        background.spawn(certificate.renew(authority.clone(), ready.published.clone(), stop.clone()));
        tracing::info!(xds = %addresses.xds, webhooks = %addresses.webhooks, "control plane started");
        Ok(Self { addresses, authority, ready, inputs, stop, servers, push })
    }

    /// What it listens on.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// What the mesh trusts, PEM.
    pub fn root_certificate(&self) -> String {
        self.authority.borrow().root_pem().to_owned()
    }

    /// Waits until proxies are served and pods injected.
    pub async fn ready(&self) {
        let mut ready = self.ready.clone();
        while ready.missing().is_some() {
            tokio::select! {
                changed = ready.published.changed() => if changed.is_err() { return },
                changed = ready.injection.config.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Waits until the push loop ends by itself, which it does only when it is broken: then a restart is the remedy.
    pub async fn broken(&self) {
        let mut published = self.ready.published.clone();
        while published.changed().await.is_ok() {}
    }

    /// Ends the streams, so that proxies go elsewhere or come back later; stops accepting, and drains what is open.
    pub async fn shutdown(self) {
        self.stop.cancel();
        // A loop that is gone already needs no telling.
        let _told = self.inputs.send(Input::Stop).await;
        let push = self.push;
        // A push thread that panicked has nothing left to wait for.
        let _joined = tokio::task::spawn_blocking(move || push.join()).await;
        self.servers.close();
        self.servers.wait().await;
    }
}

/// Loads or makes the CA; an API server that does not answer yet is waited for.
async fn authority(client: &Client, namespace: &str) -> Result<Stored, StartError> {
    let mut told = false;
    loop {
        match ca_secret::load_or_create(client, namespace, ORGANIZATION).await {
            Ok(stored) => return Ok(stored),
            Err(error @ CaSecretError::Api(_)) => {
                if !told {
                    tracing::warn!("{error}; waiting for the API server");
                    told = true;
                }
                tokio::time::sleep(API_RETRY).await;
            }
            Err(error) => return Err(StartError::Ca(error.to_string())),
        }
    }
}

/// What the servers are made of.
/// Who follows what is outside the cluster.
struct Elsewhere<'a> {
    config: &'a Config,
    client: &'a Client,
    published: &'a watch::Receiver<Published>,
    inputs: &'a mpsc::Sender<Input>,
    stop: &'a CancellationToken,
}

impl Elsewhere<'_> {
    /// Follows what is said outside the cluster: roots of other meshes, keys of token issuers, addresses of gateways between networks.
    fn follow(self, background: &TaskTracker, federation: watch::Sender<Option<lateen_pki::Federation>>) {
        let Self { config, client, published, inputs, stop } = self;
        background.spawn(trust_bundles::run(
            KeyFetcher::new(&config.keys.authorities),
            client.clone(),
            config.namespace.clone(),
            published.clone(),
            federation,
            stop.clone(),
        ));
        background.spawn(key_sets::run(
            KeyFetcher::new(&config.keys.authorities).blocking(&config.keys.blocked),
            config.keys.refresh,
            StoredKeys::new(client.clone(), &config.namespace),
            published.clone(),
            inputs.clone(),
            stop.clone(),
        ));
        if config.resolve_gateways {
            background.spawn(gateway_names::run(
                gateway_names::of_system,
                gateway_names::REFRESH,
                published.clone(),
                inputs.clone(),
                stop.clone(),
            ));
        }
    }
}

struct Parts<'a> {
    config: &'a Config,
    client: Client,
    inputs: mpsc::Sender<Input>,
    metrics: Arc<Metrics>,
    ready: Readiness,
    sessions: Sessions,
    secret_access: Arc<SecretAccess>,
    registration: Arc<Registration>,
    authority: CurrentAuthority,
    federation: watch::Receiver<Option<lateen_pki::Federation>>,
}

impl Parts<'_> {
    fn servers(self, bound: Bound, certificate: &ServingCert) -> Vec<Server> {
        let sessions = self.sessions.clone();
        let connections = Connections::default();
        let ads = |authenticator| {
            let source = ProxySource {
                inputs: self.inputs.clone(),
                authenticator,
                secret_access: self.secret_access.clone(),
                registration: self.registration.clone(),
                published: self.ready.published.clone(),
                sessions: sessions.clone(),
                metrics: self.metrics.clone(),
                dual_stack: self.config.dual_stack,
            };
            ads_router(AdsServer::with_connections(Arc::new(source), connections.clone()))
        };
        let ca = CaService::new(
            self.authority.clone(),
            Authenticator::new(self.client.clone()),
            self.ready.published.clone(),
            self.config.certificate_life,
            self.metrics.authority.clone(),
            self.config.external_ca.clone().map(|options| CsrApi::new(self.client.clone(), options)),
            self.config.certificate_queue,
        );
        let trust = TrustTeller {
            authority: self.authority.clone(),
            federation: self.federation.clone(),
            authenticator: Authenticator::new(self.client.clone()),
            published: self.ready.published.clone(),
        };
        let trust_path = format!("/{}/{{*method}}", <TrustService<TrustTeller> as NamedService>::NAME);
        let ca_path = format!("/{}/{{*method}}", <CertificateService<CaService> as NamedService>::NAME);
        let xds = ads(Some(Authenticator::new(self.client.clone())))
            .route_service(&ca_path, CertificateService::new(ca))
            .route_service(&trust_path, TrustService::new(trust));
        let mut servers =
            vec![Server { name: "xDS", listener: bound.xds, router: xds, tls: Some(certificate.proxies()) }];
        if let Some(listener) = bound.plain_xds {
            tracing::warn!("plain-text xDS is on: whoever reaches it reads the mesh's configuration");
            servers.push(Server { name: "plain-text xDS", listener, router: ads(None), tls: None });
        }
        let debug = Debug {
            name: self.config.name.clone(),
            metrics: self.metrics.clone(),
            published: self.ready.published.clone(),
            connections: connections.clone(),
            sessions: sessions.clone(),
        };
        let monitoring = debug::router(debug);
        servers.push(Server {
            name: "monitoring",
            listener: bound.monitoring,
            router: monitoring,
            tls: None,
        });
        let webhooks = self.webhooks();
        servers.push(Server {
            name: "webhooks",
            listener: bound.webhooks,
            router: webhooks,
            tls: Some(certificate.webhooks()),
        });
        let ready = ready_router(self.ready);
        servers.push(Server { name: "readiness", listener: bound.ready, router: ready, tls: None });
        servers
    }

    fn webhooks(&self) -> Router {
        let revision = match self.config.revision.as_str() {
            "" => "default".to_owned(),
            revision => revision.to_owned(),
        };
        let injector =
            Injector { state: self.ready.injection.clone(), revision, metrics: self.metrics.clone() };
        let validator = Validator { metrics: self.metrics.clone(), published: self.ready.published.clone() };
        let inject = post(injection_webhook::handle).with_state(injector);
        Router::new()
            .route("/inject", inject.clone())
            .route("/inject/{*parameters}", inject)
            .route("/validate", post(validation_webhook::handle).with_state(validator))
            .layer(DefaultBodyLimit::max(REVIEW_BYTES))
    }
}

fn ads_router(ads: AdsServer<ProxySource>) -> Router {
    let name = <AdsServer<ProxySource> as NamedService>::NAME;
    let unknown =
        || async { tonic::Status::unimplemented("no such service here").into_http::<axum::body::Body>() };
    Router::new().route_service(&format!("/{name}/{{*method}}"), ads).fallback(unknown)
}

fn ready_router(ready: Readiness) -> Router {
    let handler = move || {
        let missing = ready.missing();
        async move {
            match missing {
                None => (StatusCode::OK, "ready\n".to_owned()),
                Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
            }
        }
    };
    Router::new().route("/ready", get(handler))
}
