//! The mesh's own ConfigMaps in the root namespace: mesh configuration and injection.
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::TryStreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt as _};
use lateen_api::mesh::{CONFIG_KEY, CONFIG_MAP};
use lateen_manifests::SIDECAR_INJECTOR_CONFIGMAP;
use lateen_model::{Event, Object};
use serde_json::Value;
use tokio::sync::{mpsc, watch};

use crate::inject::{self, InjectorConfig};
use crate::push::Input;

/// The kind this follows, for the push loop's list of kinds.
pub(crate) const KIND: &str = "ConfigMap";
const RETRY: Duration = Duration::from_secs(1);

/// What injection needs to know, as it is now.
#[derive(Clone)]
pub(crate) struct InjectionState {
    /// None until the ConfigMap was read once.
    pub(crate) config: watch::Receiver<Option<Arc<InjectorConfig>>>,
    /// Mesh configuration as written.
    pub(crate) mesh: watch::Receiver<Arc<Value>>,
}

/// Follows the ConfigMaps of the root namespace.
pub(crate) struct MeshObjects {
    inputs: mpsc::Sender<Input>,
    injector_name: String,
    config: watch::Sender<Option<Arc<InjectorConfig>>>,
    mesh: watch::Sender<Arc<Value>>,
}

impl MeshObjects {
    /// A follower for a revision whose objects' names end in `suffix`, and what it keeps current.
    pub(crate) fn new(inputs: mpsc::Sender<Input>, suffix: &str) -> (Self, InjectionState) {
        let (config, config_now) = watch::channel(None);
        let (mesh, mesh_now) = watch::channel(Arc::new(Value::Null));
        let injector_name = format!("{SIDECAR_INJECTOR_CONFIGMAP}{suffix}");
        (Self { inputs, injector_name, config, mesh }, InjectionState { config: config_now, mesh: mesh_now })
    }

    /// Follows until the push loop is gone.
    pub(crate) async fn run(self, client: Client, namespace: String) {
        let api: Api<ConfigMap> = Api::namespaced(client, &namespace);
        let mut events = std::pin::pin!(watcher(api, watcher::Config::default()));
        let mut mesh_listed = false;
        loop {
            let input = match events.try_next().await {
                Ok(Some(watcher::Event::Init)) => {
                    mesh_listed = false;
                    continue;
                }
                Ok(Some(watcher::Event::InitApply(map) | watcher::Event::Apply(map))) => {
                    mesh_listed |= map.name_any() == CONFIG_MAP;
                    self.applied(map)
                }
                Ok(Some(watcher::Event::Delete(map))) => deleted(map),
                Ok(Some(watcher::Event::InitDone)) => {
                    if !mesh_listed && self.inputs.send(absent(&namespace)).await.is_err() {
                        return;
                    }
                    Some(Input::Listed(KIND))
                }
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!("watching ConfigMaps of {namespace}: {error}; trying again");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            };
            if let Some(input) = input
                && self.inputs.send(input).await.is_err()
            {
                return;
            }
        }
    }

    fn applied(&self, map: ConfigMap) -> Option<Input> {
        let name = map.name_any();
        if name == self.injector_name {
            inject::follow(&self.config, &map);
            return None;
        }
        if name != CONFIG_MAP {
            return None;
        }
        let text = map.data.as_ref().and_then(|data| data.get(CONFIG_KEY)).map_or("", String::as_str);
        // What does not parse is reported by the store, which keeps the last good state, as this does.
        if let Ok(mesh) = serde_saphyr::from_str::<Value>(text) {
            self.mesh.send_replace(Arc::new(mesh));
        }
        Some(Input::Object(Event::Applied(Object::ConfigMap(Box::new(map))), Instant::now()))
    }
}

fn deleted(map: ConfigMap) -> Option<Input> {
    (map.name_any() == CONFIG_MAP)
        .then(|| Input::Object(Event::Deleted(Object::ConfigMap(Box::new(map))), Instant::now()))
}

/// The mesh configuration is not there (any more): its defaults hold.
fn absent(namespace: &str) -> Input {
    let mut map = ConfigMap::default();
    map.metadata.name = Some(CONFIG_MAP.to_owned());
    map.metadata.namespace = Some(namespace.to_owned());
    Input::Object(Event::Deleted(Object::ConfigMap(Box::new(map))), Instant::now())
}
