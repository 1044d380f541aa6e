//! The ConfigMaps and Secrets a pod refers to.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, Secret};
use kube::{Api, Client};

use crate::RuntimeError;

/// Objects by name; names that are referred to but don't exist are absent.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sources {
    pub(crate) config_maps: BTreeMap<String, ConfigMap>,
    pub(crate) secrets: BTreeMap<String, Secret>,
}

/// Names of the objects a pod or container refers to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct References {
    pub(crate) config_maps: BTreeSet<String>,
    pub(crate) secrets: BTreeSet<String>,
}

impl References {
    /// Those of a pod's volumes.
    pub(crate) fn of_volumes(pod: &Pod) -> Self {
        let mut found = Self::default();
        for volume in pod.spec.iter().filter_map(|spec| spec.volumes.as_ref()).flatten() {
            found.config_maps.extend(volume.config_map.as_ref().map(|source| source.name.clone()));
            found.secrets.extend(volume.secret.as_ref().and_then(|source| source.secret_name.clone()));
            let projected = volume.projected.iter().filter_map(|source| source.sources.as_ref()).flatten();
            for source in projected {
                found.config_maps.extend(source.config_map.as_ref().map(|source| source.name.clone()));
                found.secrets.extend(source.secret.as_ref().map(|source| source.name.clone()));
            }
        }
        found
    }

    /// Those of a container's environment.
    pub(crate) fn of_environment(container: &Container) -> Self {
        let mut found = Self::default();
        for from in container.env_from.iter().flatten() {
            found.config_maps.extend(from.config_map_ref.as_ref().map(|reference| reference.name.clone()));
            found.secrets.extend(from.secret_ref.as_ref().map(|reference| reference.name.clone()));
        }
        for from in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
            found
                .config_maps
                .extend(from.config_map_key_ref.as_ref().map(|reference| reference.name.clone()));
            found.secrets.extend(from.secret_key_ref.as_ref().map(|reference| reference.name.clone()));
        }
        found
    }

    /// Reads them from the API server.
    pub(crate) async fn fetch(&self, client: &Client, namespace: &str) -> Result<Sources, RuntimeError> {
        let mut sources = Sources::default();
        let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
        for name in &self.config_maps {
            let found = api
                .get_opt(name)
                .await
                .map_err(RuntimeError::api(format!("reading the ConfigMap {namespace}/{name}")))?;
            sources.config_maps.extend(found.map(|found| (name.clone(), found)));
        }
        let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
        for name in &self.secrets {
            let found = api
                .get_opt(name)
                .await
                .map_err(RuntimeError::api(format!("reading the Secret {namespace}/{name}")))?;
            sources.secrets.extend(found.map(|found| (name.clone(), found)));
        }
        Ok(sources)
    }
}

impl Sources {
    /// Keys and contents of a ConfigMap, or of nothing when it is optional and missing.
    pub(crate) fn config_map(
        &self,
        name: &str,
        optional: Option<bool>,
    ) -> Result<BTreeMap<String, Vec<u8>>, RuntimeError> {
        let Some(map) = self.config_maps.get(name) else {
            return missing("configmap", name, optional);
        };
        let text = map.data.iter().flatten().map(|(key, value)| (key.clone(), value.clone().into_bytes()));
        let binary = map.binary_data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone()));
        Ok(text.chain(binary).collect())
    }

    /// Keys and contents of a Secret, or of nothing when it is optional and missing.
    pub(crate) fn secret(
        &self,
        name: &str,
        optional: Option<bool>,
    ) -> Result<BTreeMap<String, Vec<u8>>, RuntimeError> {
        let Some(secret) = self.secrets.get(name) else { return missing("secret", name, optional) };
        Ok(secret.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone())).collect())
    }
}

fn missing(
    kind: &str,
    name: &str,
    optional: Option<bool>,
) -> Result<BTreeMap<String, Vec<u8>>, RuntimeError> {
    if optional == Some(true) {
        return Ok(BTreeMap::new());
    }
    Err(RuntimeError::Pod(format!("{kind} \"{name}\" not found")))
}
