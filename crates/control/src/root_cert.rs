//! The root certificate in every namespace: ConfigMap `istio-ca-root-cert`, from which pods mount what they trust; beside it whom
//! other meshes' roots vouch for, where there are some.
use std::collections::BTreeMap;
use std::time::Duration;

use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use lateen_pki::Federation;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::ca_secret::CurrentAuthority;

pub(crate) const NAME: &str = "istio-ca-root-cert";
const KEY: &str = "root-cert.pem";
/// Marks the ConfigMap as ours, as istiod does.
const LABEL: (&str, &str) = ("istio.io/config", "true");
const FIELD_MANAGER: &str = "istiod";
/// Pause before a namespace is tried again.
const RETRY: Duration = Duration::from_secs(2);

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
    loop {
        match events.try_next().await {
            Ok(Some(namespace)) if namespace.metadata.deletion_timestamp.is_none() => {
                write(client, &namespace.name_any(), data).await;
            }
            Ok(Some(_)) => {}
            Ok(None) => return,
            Err(error) => tracing::warn!("watching Namespaces for {NAME}: {error}; trying again"),
        }
    }
}

/// Puts back what was changed or deleted. A deleted copy in a namespace that is going away cannot be put back, and need not.
async fn follow_copies(client: &Client, data: &Data) {
    let api: Api<ConfigMap> = Api::all(client.clone());
    let config = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
    let mut events = std::pin::pin!(watcher(api, config).default_backoff());
    loop {
        let event = match events.try_next().await {
            Ok(Some(event)) => event,
            Ok(None) => return,
            Err(error) => {
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
            write(client, &namespace, data).await;
        }
    }
}

/// Writes to one namespace; tries twice, since the namespace may be going away.
async fn write(client: &Client, namespace: &str, data: &Data) {
    let map = ConfigMap {
        metadata: ObjectMeta {
            name: Some(NAME.to_owned()),
            labels: Some(BTreeMap::from([(LABEL.0.to_owned(), LABEL.1.to_owned())])),
            ..ObjectMeta::default()
        },
        data: Some(data.clone()),
        ..ConfigMap::default()
    };
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let params = PatchParams::apply(FIELD_MANAGER).force();
    for attempt in 0..2 {
        match api.patch(NAME, &params, &Patch::Apply(&map)).await {
            Ok(_) => return,
            // Going away, or gone.
            Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404 | 409) => return,
            Err(error) if attempt == 0 => {
                tracing::warn!("cannot write ConfigMap {namespace}/{NAME}: {error}; trying again");
                tokio::time::sleep(RETRY).await;
            }
            Err(error) => tracing::error!("cannot write ConfigMap {namespace}/{NAME}: {error}"),
        }
    }
}
