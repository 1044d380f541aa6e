//! Admitting proxies: who they are, what they are given, what they say.
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use lateen_model::ObjectName;
use lateen_translate::Proxy;
use lateen_xds::server::{Event, Hello, Opened, Snapshot, Source};
use tokio::sync::{mpsc, oneshot, watch};
use tonic::Status;

use crate::authenticate::Authenticator;
use crate::metrics::Metrics;
use crate::node;
use crate::push::{Input, Published};
use crate::registration::{Connected, Machine, Registration};
use crate::secret_access::SecretAccess;
use crate::serve::PeerCertificates;

/// How long a proxy waits for the control plane to have read its configuration.
const COMPLETE: Duration = Duration::from_secs(30);
const NOT_READ: &str = "the control plane has not read its configuration yet; reconnect";

/// A connected proxy and what it should have.
#[derive(Clone)]
pub(crate) struct Session {
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) snapshots: watch::Receiver<Arc<Snapshot>>,
    /// The WorkloadEntry of its machine.
    entry: Option<ObjectName>,
}

/// All sessions by connection number. Cloning gives another handle.
#[derive(Clone, Default)]
pub(crate) struct Sessions(Arc<Mutex<BTreeMap<u64, Session>>>);

impl Sessions {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Session>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, connection: u64) -> Option<Session> {
        self.lock().get(&connection).cloned()
    }

    pub(crate) fn proxies(&self) -> Vec<Arc<Proxy>> {
        self.lock().values().map(|session| session.proxy.clone()).collect()
    }
}

/// Ends a session when its stream ends.
struct Guard {
    connection: u64,
    sessions: Sessions,
    metrics: Arc<Metrics>,
    _machine: Option<Connected>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(session) = self.sessions.lock().remove(&self.connection) {
            self.metrics.disconnected(&session.proxy);
        }
    }
}

/// Serves proxies from the push loop.
pub(crate) struct ProxySource {
    pub(crate) inputs: mpsc::Sender<Input>,
    /// None only on the plain-text port.
    pub(crate) authenticator: Option<Authenticator>,
    pub(crate) secret_access: Arc<SecretAccess>,
    pub(crate) registration: Arc<Registration>,
    pub(crate) published: watch::Receiver<Published>,
    pub(crate) sessions: Sessions,
    pub(crate) metrics: Arc<Metrics>,
    /// See [`crate::Config::dual_stack`].
    pub(crate) dual_stack: bool,
}

impl ProxySource {
    async fn admit(&self, hello: Hello) -> Result<Opened, Status> {
        let caller = match &self.authenticator {
            Some(authenticator) => {
                let shown = hello.extensions.get::<PeerCertificates>();
                let trust_domain = self.published.borrow().world.mesh().trust_domain.clone();
                Some(authenticator.authenticate(&hello.headers, shown, &trust_domain).await?)
            }
            None => None,
        };
        let metadata = node::metadata(hello.node.metadata.as_ref());
        let mut proxy = Proxy::parse(&hello.node.id, &metadata)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        proxy.dual_stack = self.dual_stack;
        if let Some(caller) = &caller {
            caller.may_be(&proxy)?;
            // What is proven counts, also where the proxy says nothing of it.
            proxy.service_account.clone_from(&caller.service_account);
            // Sidecars want secrets by rules, which have to be known.
            let unknown = |_| Status::unavailable(NOT_READ);
            let mut published = self.published.clone();
            let complete = published.wait_for(|published| published.complete);
            drop(tokio::time::timeout(COMPLETE, complete).await.map_err(unknown)?);
            proxy.reads_secrets = self.secret_access.of_new(&proxy, &self.published).await?;
        }
        let machine = match Machine::of(&proxy, &hello.node, &metadata) {
            Some(machine) => self.registration.connect(&machine, caller.as_ref()).await?,
            None => None,
        };
        let proxy = Arc::new(proxy);
        let (reply, answer) = oneshot::channel();
        let shutting_down = |_| Status::unavailable("the control plane is shutting down; reconnect");
        self.inputs
            .send(Input::Connect(proxy.clone(), reply))
            .await
            .map_err(|error| shutting_down(error.to_string()))?;
        let snapshots = tokio::time::timeout(COMPLETE, answer)
            .await
            .map_err(|_| Status::unavailable(NOT_READ))?
            .map_err(|error| shutting_down(error.to_string()))?;
        tracing::info!(connection = hello.connection, peer = ?hello.peer, "{} connected", hello.node.id);
        self.metrics.connected(&proxy);
        let session = Session {
            proxy,
            snapshots: snapshots.clone(),
            entry: machine.as_ref().map(|machine| machine.entry.clone()),
        };
        self.sessions.lock().insert(hello.connection, session);
        let guard = Guard {
            connection: hello.connection,
            sessions: self.sessions.clone(),
            metrics: self.metrics.clone(),
            _machine: machine,
        };
        Ok(Opened { snapshots, guard: Box::new(guard) })
    }
}

impl Source for ProxySource {
    fn open(&self, hello: Hello) -> BoxFuture<'_, Result<Opened, Status>> {
        Box::pin(self.admit(hello))
    }

    fn observe(&self, event: &Event<'_>) {
        match event {
            Event::Nacked { type_url, node, message } => {
                tracing::warn!("{node} rejected {type_url}: {message}");
            }
            Event::Failed { status } => tracing::info!("refused: {:?}: {}", status.code(), status.message()),
            Event::Health { connection, problem } => {
                let entry = self.sessions.get(*connection).and_then(|session| session.entry);
                match entry {
                    Some(entry) => self.registration.report(&entry, *problem),
                    None => {
                        tracing::debug!(connection, "a proxy without a WorkloadEntry tells of its health")
                    }
                }
            }
            Event::Pushed { .. } | Event::Acked { .. } => {}
        }
        self.metrics.xds(event);
    }
}
