//! Configuration for our engine: from the control plane by delta ADS, or from the last good configuration when the control
//! plane is away while the proxy starts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use lateen_engine::{
    ApplyReport, ConfigUpdate, EngineError, EngineHandle, Resource, ResourceKind, Subscriptions,
};
use lateen_xds::client::{
    AdsClient, ClientConfig, Connect, Connection, Health, Mode, Reconnect, Rejected, Update,
};
use lateen_xds::pb::envoy::config::core::v3::Node as XdsNode;
use lateen_xds::type_urls;
use prost_types::Any;
use tokio::sync::{mpsc, watch};
use tonic::metadata::MetadataMap;
use tracing::{error, info, warn};

use crate::cache::Cache;
use crate::config::{Config, Discovery};
use crate::dial;
use crate::dns::Names;
use crate::error::AgentError;
use crate::node::Node;

/// Pauses between attempts to reach the control plane. Short, as a proxy without configuration is of no use.
const RECONNECT: Reconnect = Reconnect { base: Duration::from_millis(200), max: Duration::from_secs(5) };

/// Keeps `engine` configured until the engine stops, and `names` up to date.
pub(crate) async fn run(
    config: &Config,
    node: &Node,
    engine: &EngineHandle,
    names: Option<Names>,
    health: Told,
) {
    let cache = Cache::open(&config.folders.data);
    let cache = cache
        .map_err(|error| warn!(%error, folder = %config.folders.data.display(), "no cache on disk"))
        .ok();
    let names = names.map(|names| names.kept_in(&config.folders.data));
    let with_names = names.is_some();
    let mut feed = Feed { names, ..Feed::new(engine.clone(), cache) };
    let connect = connect(config.discovery.clone(), config.mark);
    let start = |known| start_client(node.to_proto(), Mode::Delta, connect.clone(), known, with_names);
    let mut source = Source::new(start(Vec::new()), engine.subscriptions(), health.clone());
    let begun = feed.begun.subscribe();
    let cached = tokio::select! {
        outcome = source.pump(&mut feed) => return ended(outcome),
        cached = last_good(config.cache_after, begun, &config.folders.data) => cached,
    };
    if let Some(names) = &feed.names {
        names.apply_kept();
    }
    if !cached.is_empty() {
        match feed.apply_cached(cached).await {
            Ok(known) => source = Source::new(start(known), engine.subscriptions(), health),
            Err(error) => return ended(Err(error)),
        }
    }
    ended(source.pump(&mut feed).await);
}

fn ended(outcome: Result<(), EngineError>) {
    match outcome {
        Ok(()) | Err(EngineError::Stopped) => info!("the engine has stopped; so does its configuration"),
        Err(error) => error!(%error, "no more configuration reaches the engine"),
    }
}

/// The last good configuration, once the control plane has sent nothing for `after`. Never resolves if it has: a batch that is
/// being applied must not be dropped.
async fn last_good(after: Duration, begun: watch::Receiver<bool>, folder: &std::path::Path) -> Vec<Resource> {
    tokio::time::sleep(after).await;
    if *begun.borrow() {
        return std::future::pending().await;
    }
    match Cache::load(folder) {
        Ok(resources) if resources.is_empty() => {
            warn!(?after, "the control plane has not answered, and there is no earlier configuration");
            resources
        }
        Ok(resources) => {
            warn!(
                ?after,
                count = resources.len(),
                "the control plane has not answered; using the last good configuration"
            );
            resources
        }
        Err(error) => {
            warn!(%error, "the last good configuration cannot be read");
            Vec::new()
        }
    }
}

/// Starts an ADS client that wants all clusters and listeners, and with `names` the names of the mesh.
pub(crate) fn start_client(
    node: XdsNode,
    mode: Mode,
    connect: Connect,
    known: Vec<(String, String, String)>,
    names: bool,
) -> (AdsClient, mpsc::Receiver<Update>) {
    let mut wildcards = vec![type_urls::CLUSTER, type_urls::LISTENER];
    wildcards.extend(names.then_some(type_urls::NAME_TABLE));
    AdsClient::start(ClientConfig { node, mode, wildcards, connect, reconnect: RECONNECT, known })
}

/// Beside an Envoy, which has streams of its own: brings the names of the mesh, and tells how the application is. A stream is opened
/// when there is something to say on it.
pub(crate) async fn beside_envoy(config: ClientConfig, names: Option<Names>, mut health: Told) {
    if names.is_none() && health.borrow_and_update().is_none() && health.changed().await.is_err() {
        return;
    }
    let (client, mut updates) = AdsClient::start(config);
    health.mark_changed();
    loop {
        tokio::select! {
            update = updates.recv() => match (update, &names) {
                (Some(update), Some(names)) if update.type_url == type_urls::NAME_TABLE => names.apply(update),
                (Some(update), _) => update.answer(Vec::new()),
                (None, _) => return,
            },
            () = told(&mut health) => report(&client, &mut health),
        }
    }
}

/// How the application is; none before it was asked, or when it is not.
pub(crate) type Told = watch::Receiver<Option<Health>>;

/// Resolves when there is news; never when nobody asks the application.
async fn told(health: &mut Told) {
    if health.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn report(client: &AdsClient, health: &mut Told) {
    if let Some(health) = health.borrow_and_update().clone() {
        client.report(health);
    }
}

/// The client for that.
pub(crate) fn client_beside_envoy(config: &Config, node: &Node, names: bool) -> ClientConfig {
    ClientConfig {
        node: node.to_proto(),
        mode: Mode::Delta,
        wildcards: names.then_some(type_urls::NAME_TABLE).into_iter().collect(),
        connect: connect(config.discovery.clone(), config.mark),
        reconnect: RECONNECT,
        known: Vec::new(),
    }
}

/// Connects to the control plane with TLS and token, reading roots and token anew each time.
fn connect(discovery: Discovery, mark: Option<u32>) -> Connect {
    Arc::new(move || {
        let discovery = discovery.clone();
        Box::pin(async move { connection(&discovery, mark).await.map_err(|error| error.to_string()) })
    })
}

async fn connection(discovery: &Discovery, mark: Option<u32>) -> Result<Connection, AgentError> {
    let mut metadata = MetadataMap::new();
    dial::prove(discovery, &mut metadata)?;
    Ok(Connection { channel: dial::channel(discovery, mark).await?, metadata })
}

/// A client and what the engine wants of it.
pub(crate) struct Source {
    client: AdsClient,
    updates: mpsc::Receiver<Update>,
    wanted: watch::Receiver<Arc<Subscriptions>>,
    health: Told,
}

impl Source {
    pub(crate) fn new(
        (client, updates): (AdsClient, mpsc::Receiver<Update>),
        wanted: watch::Receiver<Arc<Subscriptions>>,
        health: Told,
    ) -> Self {
        let mut source = Self { client, updates, wanted, health };
        source.wanted.mark_changed();
        report(&source.client, &mut source.health);
        source.subscribe();
        source
    }

    /// Asks for what is wanted, where that has changed.
    fn subscribe(&mut self) {
        if !self.wanted.has_changed().unwrap_or_default() {
            return;
        }
        let wanted = self.wanted.borrow_and_update();
        self.client.subscribe(type_urls::ENDPOINT, wanted.endpoints.clone());
        self.client.subscribe(type_urls::ROUTE, wanted.routes.clone());
        self.client.subscribe(type_urls::SECRET, wanted.secrets.clone());
    }

    /// Applies what comes and subscribes to what is referred to. Ends when the engine has stopped.
    pub(crate) async fn pump(&mut self, feed: &mut Feed) -> Result<(), EngineError> {
        loop {
            tokio::select! {
                update = self.updates.recv() => match update {
                    Some(update) => feed.apply(update, || self.subscribe()).await?,
                    None => return Ok(()),
                },
                () = told(&mut self.health) => report(&self.client, &mut self.health),
                changed = self.wanted.changed() => match changed {
                    Ok(()) => {
                        self.wanted.mark_changed();
                        self.subscribe();
                    }
                    Err(_) => return Ok(()),
                },
            }
        }
    }
}

/// Brings configuration into the engine and, when accepted, into the cache.
pub(crate) struct Feed {
    engine: EngineHandle,
    cache: Option<Cache>,
    /// Where names go, when DNS queries are answered.
    names: Option<Names>,
    /// The control plane has answered for the first time.
    begun: watch::Sender<bool>,
    have_clusters: bool,
    have_listeners: bool,
    initialized: bool,
}

impl Feed {
    pub(crate) fn new(engine: EngineHandle, cache: Option<Cache>) -> Self {
        let (begun, _) = watch::channel(false);
        Self {
            engine,
            cache,
            names: None,
            begun,
            have_clusters: false,
            have_listeners: false,
            initialized: false,
        }
    }

    /// Applies a batch, has `subscribe` ask for what it refers to, and answers it, in this order: the control plane sends the
    /// endpoints of new clusters before the routes to them as long as it knows that they are wanted.
    async fn apply(&mut self, mut update: Update, subscribe: impl FnOnce()) -> Result<(), EngineError> {
        if let (Some(names), type_urls::NAME_TABLE) = (&self.names, update.type_url.as_str()) {
            names.apply(update);
            return Ok(());
        }
        self.begun.send_replace(true);
        let Some(kind) = ResourceKind::from_type_url(&update.type_url) else {
            let reason = format!("{} is not a type this proxy uses", update.type_url);
            let refuse = |resource: &lateen_xds::client::Resource| Rejected {
                name: resource.name.clone(),
                reason: reason.clone(),
            };
            let refused = update.added.iter().map(refuse).collect();
            update.answer(refused);
            return Ok(());
        };
        let set: Vec<Resource> = std::mem::take(&mut update.added).into_iter().map(engine_resource).collect();
        let removed: Vec<_> = update.removed.iter().map(|name| (kind, name.clone())).collect();
        // Copies are for the cache alone: a big mesh's routes have megabytes.
        let kept = if self.cache.is_some() { set.clone() } else { Vec::new() };
        let report = self.engine.apply(ConfigUpdate { set, removed: removed.clone() }).await?;
        self.remember(kept, &removed, &report);
        subscribe();
        update.answer(refused(report));
        match kind {
            ResourceKind::Cluster => self.have_clusters = true,
            ResourceKind::Listener => self.have_listeners = true,
            ResourceKind::Endpoints | ResourceKind::Routes | ResourceKind::Secret => {}
        }
        if self.have_clusters && self.have_listeners && !self.initialized {
            self.initialized = true;
            self.engine.initialized().await?;
            info!("first configuration received");
        }
        // Routes and endpoints of the first listeners and clusters have come too once the engine is ready.
        if self.initialized && self.engine.ready() {
            self.commit();
        }
        Ok(())
    }

    /// Uses the configuration of an earlier process; gives what the control plane is to be told of it.
    async fn apply_cached(
        &mut self,
        cached: Vec<Resource>,
    ) -> Result<Vec<(String, String, String)>, EngineError> {
        let report = self.engine.apply(ConfigUpdate { set: cached.clone(), removed: Vec::new() }).await?;
        for rejection in &report.rejected {
            warn!(%rejection, "a resource of the last good configuration is refused");
        }
        self.engine.initialized().await?;
        (self.have_clusters, self.have_listeners, self.initialized) = (true, true, true);
        let accepted = self.remember(cached, &[], &report);
        Ok(accepted)
    }

    /// Writes what was accepted to the cache; gives type, name and version of it.
    fn remember(
        &mut self,
        mut set: Vec<Resource>,
        removed: &[(ResourceKind, String)],
        report: &ApplyReport,
    ) -> Vec<(String, String, String)> {
        let refused: BTreeMap<_, _> =
            report.rejected.iter().map(|r| ((r.kind, r.name.as_str()), ())).collect();
        set.retain(|resource| {
            ResourceKind::from_type_url(&resource.body.type_url)
                .is_some_and(|kind| !refused.contains_key(&(kind, resource.name.as_str())))
        });
        // Secrets are not written to disk.
        set.retain(|resource| resource.body.type_url != type_urls::SECRET);
        self.with_cache(|cache| cache.record(&set, removed));
        set.into_iter().map(|resource| (resource.body.type_url, resource.name, resource.version)).collect()
    }

    fn commit(&mut self) {
        self.with_cache(Cache::commit);
    }

    /// A cache that can't be written is given up; the proxy goes on without.
    fn with_cache(&mut self, action: impl FnOnce(&mut Cache) -> std::io::Result<()>) {
        if let Some(Err(error)) = self.cache.as_mut().map(action) {
            warn!(%error, "the last good configuration can no longer be kept on disk");
            self.cache = None;
        }
    }
}

fn engine_resource(resource: lateen_xds::client::Resource) -> Resource {
    let body = Any { type_url: resource.body.type_url, value: resource.body.value };
    Resource { name: resource.name, version: resource.version, body, is_static: false }
}

fn refused(report: ApplyReport) -> Vec<Rejected> {
    report
        .rejected
        .into_iter()
        .map(|rejection| Rejected { name: rejection.name, reason: rejection.reason })
        .collect()
}
