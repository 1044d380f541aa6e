//! What all requests share.

use std::{sync::Arc, time::Duration};

use lateen_podstreams::PodBackend;
use parking_lot::RwLock;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::{
    ServiceResolver,
    addresses::Addresses,
    authn::Authenticator,
    crd,
    gc::Garbage,
    resources::{Registry, ResourceDef},
    store::{ObjectKey, Store},
};

/// The server behind its listeners.
pub(crate) struct Api {
    pub(crate) store: Store,
    pub(crate) registry: Registry,
    pub(crate) authenticator: Authenticator,
    pub(crate) addresses: Addresses,
    pub(crate) garbage: Garbage,
    pub(crate) pods: RwLock<Option<Arc<dyn PodBackend>>>,
    pub(crate) resolver: Option<Arc<dyn ServiceResolver>>,
    pub(crate) stop: CancellationToken,
    /// See [`crate::ApiServerConfig`].
    pub(crate) idle_limit: Duration,
    pub(crate) request_limit: Duration,
}

impl Api {
    /// Takes note of what a durable store already holds.
    pub(crate) fn adopt_stored(&self) {
        for service in self.store.list("services", None, None, None, |_| true).objects {
            self.addresses.note(&service);
        }
        let crds = "customresourcedefinitions.apiextensions.k8s.io";
        for object in self.store.list(crds, None, None, None, |_| true).objects {
            let (name, versions) = crd::definitions(&object);
            self.registry.set_custom(&name, versions);
        }
    }

    /// An object in the version it is stored in.
    pub(crate) fn stored(&self, def: &ResourceDef, namespace: &str, name: &str) -> Option<Arc<Value>> {
        self.store.get(&def.storage, &ObjectKey::new(namespace, name))
    }
}

/// The time as Kubernetes writes it: whole seconds, UTC.
pub(crate) fn now() -> String {
    at(jiff::Timestamp::now())
}

/// `time` with whole seconds.
pub(crate) fn at(time: jiff::Timestamp) -> String {
    jiff::Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}
