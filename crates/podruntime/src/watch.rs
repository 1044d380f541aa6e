//! Watches of the API and what is derived from them.

use std::{fmt::Debug, sync::Arc, time::Duration};

use futures::StreamExt;
use k8s_openapi::api::{
    core::v1::{ConfigMap, Secret, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, Resource,
    runtime::{
        WatchStreamExt,
        reflector::{Store, store, store::Writer},
        watcher,
    },
};
use parking_lot::RwLock;
use serde::de::DeserializeOwned;
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
};

use crate::{
    Names, Network,
    cluster_index::{self, ClusterIndex},
    command, service_rules,
};

/// Pause before service rules are tried again after a failure.
const RETRY: Duration = Duration::from_secs(1);

/// Keeps a store of all objects of a kind and tells `changed` after each change.
fn follow<K>(client: &Client, changed: Arc<Notify>, tasks: &mut JoinSet<()>) -> Store<K>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let (store, writer): (Store<K>, Writer<K>) = store();
    let api = Api::<K>::all(client.clone());
    tasks.spawn(async move {
        let mut events = watcher(api, watcher::Config::default()).default_backoff().reflect(writer).boxed();
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => {}
                Ok(_) => changed.notify_one(),
                Err(error) => tracing::debug!(%error, "watch interrupted; it resumes by itself"),
            }
        }
    });
    store
}

/// Keeps `index` and the nftables rules up to date with services and endpoint slices.
///
/// Changes that come while rules are being loaded are taken together afterwards.
pub(crate) fn follow_services(
    client: &Client,
    names: Names,
    network: Network,
    index: Arc<RwLock<Arc<ClusterIndex>>>,
    tasks: &mut JoinSet<()>,
) {
    let changed = Arc::new(Notify::new());
    let services: Store<Service> = follow(client, Arc::clone(&changed), tasks);
    let slices: Store<EndpointSlice> = follow(client, Arc::clone(&changed), tasks);
    let local = [network.api_ip(), network.dns_ip()];
    tasks.spawn(async move {
        let mut loaded = String::new();
        loop {
            changed.notified().await;
            let fresh = Arc::new(cluster_index::build(&services.state(), &slices.state()));
            *index.write() = Arc::clone(&fresh);
            let script = service_rules::script(&names, &network, &service_rules::rules(&fresh, &local));
            if script == loaded {
                continue;
            }
            match command::nft(&script).await {
                Ok(()) => loaded = script,
                Err(error) => {
                    tracing::error!(%error, "service addresses not brought up to date; trying again");
                    tokio::time::sleep(RETRY).await;
                    changed.notify_one();
                }
            }
        }
    });
}

/// Counts changes of ConfigMaps and Secrets.
pub(crate) fn follow_configuration(client: &Client, tasks: &mut JoinSet<()>) -> watch::Receiver<u64> {
    let (sender, receiver) = watch::channel(0);
    let changed = Arc::new(Notify::new());
    // Only the news are of interest; the objects are read when they are needed.
    let _: Store<ConfigMap> = follow(client, Arc::clone(&changed), tasks);
    let _: Store<Secret> = follow(client, Arc::clone(&changed), tasks);
    tasks.spawn(async move {
        loop {
            changed.notified().await;
            sender.send_modify(|count| *count += 1);
        }
    });
    receiver
}
