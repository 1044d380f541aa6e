//! The injector's configuration: ConfigMap `istio-sidecar-injector`, followed live.
use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use minijinja::{Environment, UndefinedBehavior};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::watch;

use super::template::add_functions;

/// Steps a template may take; ours takes some thousands.
const TEMPLATE_FUEL: u64 = 1_000_000;

/// What happens to a pod that says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Policy {
    /// It gets a proxy.
    #[default]
    Enabled,
    /// It gets none.
    Disabled,
}

/// The key `config`, as written.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ConfigFile {
    policy: Policy,
    default_templates: Vec<String>,
    always_inject_selector: Vec<LabelSelector>,
    never_inject_selector: Vec<LabelSelector>,
    injected_annotations: BTreeMap<String, String>,
    templates: BTreeMap<String, String>,
}

/// The configuration, with its templates compiled.
#[derive(Debug)]
pub(crate) struct InjectorConfig {
    pub(super) policy: Policy,
    pub(super) default_templates: Vec<String>,
    pub(super) always_inject: Vec<LabelSelector>,
    pub(super) never_inject: Vec<LabelSelector>,
    pub(super) injected_annotations: BTreeMap<String, String>,
    pub(super) values: Value,
    pub(super) templates: Environment<'static>,
}

/// Why the configuration could not be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("key {0:?} is missing")]
    Missing(&'static str),
    #[error("key {key:?} does not parse: {reason}")]
    Malformed { key: &'static str, reason: String },
    #[error("template {name:?} does not compile: {reason}")]
    Template { name: String, reason: String },
}

impl InjectorConfig {
    /// Reads the ConfigMap's keys `config` and `values`.
    pub(crate) fn parse(config: &str, values: &str) -> Result<Self, ConfigError> {
        let malformed = |key| move |reason: String| ConfigError::Malformed { key, reason };
        let file: ConfigFile =
            serde_saphyr::from_str(config).map_err(|error| malformed("config")(error.to_string()))?;
        let values: Value =
            serde_json::from_str(values).map_err(|error| malformed("values")(error.to_string()))?;
        let mut templates = Environment::new();
        templates.set_undefined_behavior(UndefinedBehavior::SemiStrict);
        templates.set_fuel(Some(TEMPLATE_FUEL));
        add_functions(&mut templates);
        for (name, text) in file.templates {
            templates
                .add_template_owned(name.clone(), text)
                .map_err(|error| ConfigError::Template { name, reason: error.to_string() })?;
        }
        Ok(Self {
            policy: file.policy,
            default_templates: file.default_templates,
            always_inject: file.always_inject_selector,
            never_inject: file.never_inject_selector,
            injected_annotations: file.injected_annotations,
            values,
            templates,
        })
    }

    fn of(map: &ConfigMap) -> Result<Self, ConfigError> {
        let key = |key| map.data.as_ref().and_then(|data| data.get(key)).ok_or(ConfigError::Missing(key));
        Self::parse(key("config")?, key("values")?)
    }
}

/// Takes over a new state of the ConfigMap. One that cannot be used is reported and the last good one stays.
pub(crate) fn follow(current: &watch::Sender<Option<Arc<InjectorConfig>>>, map: &ConfigMap) {
    match InjectorConfig::of(map) {
        Ok(config) => {
            current.send_replace(Some(Arc::new(config)));
        }
        Err(error) => {
            let name = map.metadata.name.as_deref().unwrap_or_default();
            tracing::error!("ConfigMap {name} is not used, the last good one stays: {error}");
        }
    }
}
