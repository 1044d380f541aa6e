//! The root certificate in every namespace: ConfigMap `istio-ca-root-cert`, from which pods mount what they trust; beside it whom
//! other meshes' roots vouch for, where there are some.
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams};
use kube::core::Status;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use lateen_pki::Federation;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::ca_secret::CurrentAuthority;

pub(crate) const NAME: &str = "istio-ca-root-cert";
const KEY: &str = "root-cert.pem";
/// Marks the ConfigMap as ours, as istiod does.
const LABEL: (&str, &str) = ("istio.io/config", "true");
const FIELD_MANAGER: &str = "istiod";
/// Pause before a namespace is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// How long an answer of the API server may take.
const ANSWER: Duration = Duration::from_secs(10);

/// Writes what the mesh trusts to every namespace that is there or comes, again where somebody changes it, and everywhere when
/// it changes.
pub(crate) async fn distribute(
    client: Client,
    mut authority: CurrentAuthority,
    mut federation: watch::Receiver<Option<Federation>>,
    stop: CancellationToken,
) {
    let distributing = async {
        // Roots of other meshes that are there already stay until it is known that they should not.
        if federation.wait_for(Option::is_some).await.is_err() {
            return;
        }
        loop {
            let certificate = authority.borrow_and_update().root_pem().to_owned();
            let data = data(&certificate, federation.borrow_and_update().as_ref());
            let (namespaces, copies) = (follow_namespaces(&client, &data), follow_copies(&client, &data));
            tokio::select! {
                _ = async { tokio::join!(namespaces, copies) } => return,
                changed = authority.changed() => if changed.is_err() { return },
                changed = federation.changed() => if changed.is_err() { return },
            }
        }
    };
    stop.run_until_cancelled(distributing).await;
}

type Data = BTreeMap<String, String>;

fn data(certificate: &str, federation: Option<&Federation>) -> Data {
    let domains = federation.and_then(Federation::text).map(|text| (Federation::FILE.to_owned(), text));
    std::iter::once((KEY.to_owned(), certificate.to_owned())).chain(domains).collect()
}

async fn follow_namespaces(client: &Client, data: &Data) {
    let api: Api<Namespace> = Api::all(client.clone());
    let mut events =
        std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff().applied_objects());
    let mut copies = Copies::new(client, data);
    loop {
        match copies.next(&mut events).await {
            Some(Ok(namespace)) if namespace.metadata.deletion_timestamp.is_none() => {
                copies.write(namespace.name_any()).await;
            }
            Some(Ok(_)) => {}
            None => return,
            Some(Err(error)) => tracing::warn!("watching Namespaces for {NAME}: {error}; trying again"),
        }
    }
}

/// Puts back what was changed or deleted. A deleted copy in a namespace that is going away cannot be put back, and need not.
async fn follow_copies(client: &Client, data: &Data) {
    let api: Api<ConfigMap> = Api::all(client.clone());
    let config = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
    let mut events = std::pin::pin!(watcher(api, config).default_backoff());
    let mut copies = Copies::new(client, data);
    loop {
        let event = match copies.next(&mut events).await {
            Some(Ok(event)) => event,
            None => return,
            Some(Err(error)) => {
                tracing::warn!("watching ConfigMaps {NAME}: {error}; trying again");
                continue;
            }
        };
        let changed = match event {
            watcher::Event::Delete(map) => Some(map),
            watcher::Event::Apply(map) | watcher::Event::InitApply(map) => {
                let held = |key: &str| map.data.as_ref().and_then(|data| data.get(key));
                let same = [KEY, Federation::FILE].iter().all(|key| held(key) == data.get(*key));
                (!same).then_some(map)
            }
            watcher::Event::Init | watcher::Event::InitDone => None,
        };
        if let Some(map) = changed
            && map.name_any() == NAME
            && let Some(namespace) = map.namespace()
        {
            copies.write(namespace).await;
        }
    }
}

/// Writes copies, and what could not be written again until it can: nothing else would tell of the namespace a second time, and
/// no pod in it starts without.
struct Copies<'a> {
    client: &'a Client,
    map: ConfigMap,
    /// Namespaces whose copy is not as it should be.
    failed: BTreeSet<String>,
    /// When they are tried again.
    again: Instant,
}

impl<'a> Copies<'a> {
    fn new(client: &'a Client, data: &Data) -> Self {
        let map = ConfigMap {
            metadata: ObjectMeta {
                name: Some(NAME.to_owned()),
                labels: Some(BTreeMap::from([(LABEL.0.to_owned(), LABEL.1.to_owned())])),
                ..ObjectMeta::default()
            },
            data: Some(data.clone()),
            ..ConfigMap::default()
        };
        Self { client, map, failed: BTreeSet::new(), again: Instant::now() }
    }

    /// The next event. What failed is tried again meanwhile.
    async fn next<T>(&mut self, events: &mut (impl Stream<Item = T> + Unpin)) -> Option<T> {
        loop {
            tokio::select! {
                event = events.next() => return event,
                () = tokio::time::sleep_until(self.again), if !self.failed.is_empty() => {
                    for namespace in self.failed.clone() {
                        self.write(namespace).await;
                    }
                }
            }
        }
    }

    async fn write(&mut self, namespace: String) {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), &namespace);
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let patch = Patch::Apply(&self.map);
        let problem = match tokio::time::timeout(ANSWER, api.patch(NAME, &params, &patch)).await {
            Ok(Ok(_)) => None,
            Ok(Err(kube::Error::Api(status))) if is_going_away(&status) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("the Kubernetes API did not answer in time".to_owned()),
        };
        let Some(problem) = problem else {
            self.failed.remove(&namespace);
            return;
        };
        self.again = Instant::now() + RETRY;
        if self.failed.insert(namespace.clone()) {
            tracing::error!(
                "cannot write ConfigMap {namespace}/{NAME}: {problem}; trying again until it is there"
            );
        }
    }
}

/// Whether an answer says that the namespace is gone, or about to be.
fn is_going_away(status: &Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    status.code == 404 || causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}
