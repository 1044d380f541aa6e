//! What holds for each proxy unless its pod says otherwise.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Settings of a proxy (`istio.mesh.v1alpha1.ProxyConfig`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyConfig {
    /// Worker threads; 0 is one per core; absent: by the pod's CPU limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    /// How long a hot restart drains, a duration. Default 45s.
    pub drain_duration: String,
    /// How long connections may finish after SIGTERM, a duration. Default 5s.
    pub termination_drain_duration: String,
    /// Where the control plane is. Default `istiod.istio-system.svc:15012`.
    pub discovery_address: String,
    /// Environment variables of the proxy.
    pub proxy_metadata: BTreeMap<String, String>,
    /// Whether the application waits for the proxy. Default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold_application_until_proxy_starts: Option<bool>,
    /// Path of the agent's configuration. Default `./etc/istio/proxy`.
    pub config_path: String,
    /// Name of the service cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_cluster: Option<String>,
    /// Port of the agent's status server. Default 15020.
    pub status_port: u16,
    /// Port of the admin interface. Default 15000.
    pub proxy_admin_port: u16,
    /// How inbound traffic is captured: `REDIRECT`, `TPROXY`, `NONE`.
    pub interception_mode: String,
    /// Image of the proxy: its type.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<Value>,
    /// Everything else that was given.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

impl ProxyConfig {
    /// Fields that were given something else than their default and do nothing yet.
    pub fn without_effect(&self) -> Vec<String> {
        let default = Self::default();
        let fixed = [
            ("configPath", self.config_path != default.config_path),
            ("serviceCluster", self.service_cluster.is_some()),
            ("statusPort", self.status_port != default.status_port),
            ("proxyAdminPort", self.proxy_admin_port != default.proxy_admin_port),
            ("interceptionMode", self.interception_mode != default.interception_mode),
            ("image", self.image.is_some()),
        ];
        let given = fixed.into_iter().filter(|(_, given)| *given).map(|(name, _)| name.to_owned());
        given.chain(self.rest.keys().cloned()).collect()
    }
}

impl Default for ProxyConfig {
    fn default() -> Self {
        Self {
            concurrency: None,
            drain_duration: "45s".to_owned(),
            termination_drain_duration: "5s".to_owned(),
            discovery_address: "istiod.istio-system.svc:15012".to_owned(),
            proxy_metadata: BTreeMap::new(),
            hold_application_until_proxy_starts: None,
            config_path: "./etc/istio/proxy".to_owned(),
            service_cluster: None,
            status_port: 15020,
            proxy_admin_port: 15000,
            interception_mode: "REDIRECT".to_owned(),
            image: None,
            rest: BTreeMap::new(),
        }
    }
}
