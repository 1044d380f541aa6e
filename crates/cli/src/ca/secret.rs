//! The Secret with the authority, read and written as a whole.

use anyhow::Result;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use kube::{Api, Client};
use lateen_pki::Rotation;

use crate::cluster::api_failure;
use crate::error::Failure;

/// Where an organization puts an authority for the mesh.
pub(super) const PLUGGED_IN: &str = "cacerts";
/// Where the mesh keeps a root of its own.
const OWN: &str = "istio-ca-secret";

/// What was read, to be written again if nobody else has written meanwhile.
pub(super) struct Stored {
    pub(super) name: &'static str,
    pub(super) rotation: Rotation,
    namespace: String,
    secret: Secret,
}

impl Stored {
    /// The authority the control plane uses.
    pub(super) async fn load(client: &Client, namespace: &str) -> Result<Self> {
        let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
        for name in [PLUGGED_IN, OWN] {
            let found = api.get_opt(name).await;
            let found =
                found.map_err(|error| api_failure(&format!("read Secret {namespace}/{name}"), &error))?;
            let Some(secret) = found else { continue };
            let value = |key: &str| {
                let bytes = secret.data.as_ref().and_then(|data| data.get(key))?;
                Some(String::from_utf8_lossy(&bytes.0).into_owned())
            };
            let rotation = super::usable(&format!("Secret {namespace}/{name}"), Rotation::read(value))?;
            return Ok(Self { name, rotation, namespace: namespace.to_owned(), secret });
        }
        let why = format!(
            "There is no Secret {PLUGGED_IN} or {OWN} in namespace {namespace}: no control plane has run there."
        );
        Err(Failure::new(why, "lateen status").into())
    }

    /// Writes another state; other keys of the Secret stay.
    pub(super) async fn write(&mut self, client: &Client, rotation: Rotation) -> Result<()> {
        let api: Api<Secret> = Api::namespaced(client.clone(), &self.namespace);
        let data = self.secret.data.get_or_insert_default();
        for (key, value) in rotation.entries() {
            match value {
                Some(value) => data.insert(key.to_owned(), ByteString(value.into_bytes())),
                None => data.remove(key),
            };
        }
        let written = api.replace(self.name, &PostParams::default(), &self.secret).await;
        self.secret = written.map_err(|error| {
            anyhow::Error::from(api_failure(
                &format!("write Secret {}/{}", self.namespace, self.name),
                &error,
            ))
        })?;
        self.rotation = rotation;
        Ok(())
    }
}
