//! Mesh-wide configuration: the key `mesh` of ConfigMap `istio` in the root namespace.
//! <https://istio.io/latest/docs/reference/config/istio.mesh.v1alpha1/>
mod proxy_config;
mod tls;

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::duration::{self, DurationError};
use crate::extension_provider::{ExtensionProvider, check_providers};
use crate::networking::destination_rule::{H2UpgradePolicy, TcpKeepalive};
use crate::validate::Findings;
use crate::validate::header_value::check_commands;
use crate::validate::locality::check_locality;

pub use proxy_config::ProxyConfig;
pub use tls::{TlsConfig, is_served_cipher};

/// Name of the ConfigMap that holds the mesh config.
pub const CONFIG_MAP: &str = "istio";
/// Its key.
pub const CONFIG_KEY: &str = "mesh";

/// Why mesh config was refused.
#[derive(Debug, thiserror::Error)]
pub enum MeshConfigError {
    /// Not YAML, or a field has the wrong type.
    #[error("mesh config does not parse: {0}; fix key `mesh` of ConfigMap istio-system/istio")]
    Parse(String),
    /// A duration does not parse.
    #[error("mesh config field {field}: {source}")]
    Duration {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        source: DurationError,
    },
}

/// Mesh-wide settings. Fields that Istio has and this type lacks are kept in `rest` and reported by
/// [`MeshConfig::without_effect`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshConfig {
    /// Where access logs are written, for example `/dev/stdout`; empty: nowhere.
    pub access_log_file: String,
    /// Form of access logs.
    pub access_log_encoding: AccessLogEncoding,
    /// Format of access logs; empty is Istio's default.
    pub access_log_format: String,
    /// What happens to traffic to destinations the mesh does not know.
    pub outbound_traffic_policy: OutboundTrafficPolicy,
    /// Defaults of every proxy.
    pub default_config: ProxyConfig,
    /// Trust domain of identities. Default `cluster.local`.
    pub trust_domain: String,
    /// Trust domains accepted besides.
    pub trust_domain_aliases: Vec<String>,
    /// Namespace of mesh-wide configuration. Default `istio-system`.
    pub root_namespace: String,
    /// Whether the proxy serves the application's metrics with its own. Default true.
    pub enable_prometheus_merge: Option<bool>,
    /// Connect timeout of clusters, a duration. Default 10s.
    pub connect_timeout: String,
    /// TCP keepalive of connections to destinations; absent: the operating system's.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Whether HTTP/1.1 requests are sent as HTTP/2, to ports declared HTTP. Default no.
    pub h2_upgrade_policy: H2UpgradePolicy,
    /// How often names of endpoints are looked up when their answers do not say for how long they hold, a duration. Default 60s.
    pub dns_refresh_rate: String,
    /// How long protocol detection waits for the client's first bytes; `0s` waits for ever.
    pub protocol_detection_timeout: String,
    /// Which Ingress objects are served. Default STRICT.
    pub ingress_controller_mode: IngressControllerMode,
    /// Service of the ingress gateway for Ingress objects.
    pub ingress_service: String,
    /// Ingress class served, as the annotation `kubernetes.io/ingress.class` names it. Default `istio`.
    pub ingress_class: String,
    /// Label `istio` of the gateways that serve Ingress objects; empty: that of `ingressService`.
    pub ingress_selector: String,
    /// Default visibility of services.
    pub default_service_export_to: Vec<String>,
    /// Default visibility of VirtualServices.
    pub default_virtual_service_export_to: Vec<String>,
    /// Default visibility of DestinationRules.
    pub default_destination_rule_export_to: Vec<String>,
    /// Path normalisation. Default BASE.
    pub path_normalization: PathNormalization,
    /// Retries of HTTP rules that say nothing; absent is Istio's default policy.
    pub default_http_retry_policy: Option<crate::networking::virtual_service::HttpRetry>,
    /// Locality load balancing of destinations whose rule says nothing; absent: failover by distance.
    pub locality_lb_setting: Option<crate::networking::load_balancing::LocalityLbSettings>,
    /// Whether mutual TLS is used wherever the destination can. Default true.
    pub enable_auto_mtls: Option<bool>,
    /// TLS between workloads of the mesh.
    #[serde(rename = "meshMTLS")]
    pub mesh_mtls: Option<TlsConfig>,
    /// Parameters of TLS that is not the mesh's own.
    pub tls_defaults: Option<TlsConfig>,
    /// Roots of the signers of workloads' certificates, where another authority than the mesh's signs them.
    pub ca_certificates: Vec<CaCertificate>,
    /// Pattern of what clusters to the workload itself are called in statistics; empty: by their name.
    pub inbound_cluster_stat_name: String,
    /// The same of clusters to services, and of TCP to them.
    pub outbound_cluster_stat_name: String,
    /// Whether tracing is on.
    pub enable_tracing: bool,
    /// Who is asked by policies with the action CUSTOM, by name.
    pub extension_providers: Vec<ExtensionProvider>,
    /// Everything else that was given.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self {
            access_log_file: String::new(),
            access_log_encoding: AccessLogEncoding::Text,
            access_log_format: String::new(),
            outbound_traffic_policy: OutboundTrafficPolicy::default(),
            default_config: ProxyConfig::default(),
            trust_domain: "cluster.local".to_owned(),
            trust_domain_aliases: Vec::new(),
            root_namespace: "istio-system".to_owned(),
            enable_prometheus_merge: Some(true),
            connect_timeout: "10s".to_owned(),
            tcp_keepalive: None,
            h2_upgrade_policy: H2UpgradePolicy::DoNotUpgrade,
            dns_refresh_rate: "60s".to_owned(),
            protocol_detection_timeout: "0s".to_owned(),
            ingress_controller_mode: IngressControllerMode::default(),
            ingress_service: "istio-ingressgateway".to_owned(),
            ingress_class: "istio".to_owned(),
            ingress_selector: String::new(),
            default_service_export_to: vec!["*".to_owned()],
            default_virtual_service_export_to: vec!["*".to_owned()],
            default_destination_rule_export_to: vec!["*".to_owned()],
            path_normalization: PathNormalization::default(),
            default_http_retry_policy: None,
            locality_lb_setting: Some(Default::default()),
            enable_auto_mtls: Some(true),
            mesh_mtls: None,
            tls_defaults: None,
            ca_certificates: Vec::new(),
            inbound_cluster_stat_name: String::new(),
            outbound_cluster_stat_name: String::new(),
            enable_tracing: false,
            extension_providers: Vec::new(),
            rest: BTreeMap::new(),
        }
    }
}

impl MeshConfig {
    /// Parses the YAML (or JSON) text of mesh config; empty text is the default config.
    ///
    /// # Errors
    /// When the text is not YAML, a field has the wrong type, or a duration does not parse.
    pub fn parse(yaml: &str) -> Result<Self, MeshConfigError> {
        if yaml.trim().is_empty() {
            return Ok(Self::default());
        }
        let config: Self =
            serde_saphyr::from_str(yaml).map_err(|error| MeshConfigError::Parse(error.to_string()))?;
        let durations = [
            ("connectTimeout", &config.connect_timeout),
            ("dnsRefreshRate", &config.dns_refresh_rate),
            ("protocolDetectionTimeout", &config.protocol_detection_timeout),
            ("defaultConfig.drainDuration", &config.default_config.drain_duration),
            ("defaultConfig.terminationDrainDuration", &config.default_config.termination_drain_duration),
        ];
        let keepalive = config.tcp_keepalive.iter().flat_map(|keepalive| {
            [("tcpKeepalive.time", &keepalive.time), ("tcpKeepalive.interval", &keepalive.interval)]
        });
        let keepalive = keepalive.filter_map(|(field, text)| Some((field, text.as_ref()?)));
        for (field, text) in durations.into_iter().chain(keepalive) {
            duration::parse(text).map_err(|source| MeshConfigError::Duration { field, source })?;
        }
        if config.connect_timeout().is_zero() {
            let reason = "connectTimeout must be greater than zero".to_owned();
            return Err(MeshConfigError::Parse(reason));
        }
        if config.dns_refresh_rate() < Duration::from_millis(1) {
            let reason = "dnsRefreshRate must be at least 1ms".to_owned();
            return Err(MeshConfigError::Parse(reason));
        }
        for (field, tls) in [("meshMTLS", &config.mesh_mtls), ("tlsDefaults", &config.tls_defaults)] {
            let checked = tls.as_ref().map_or(Ok(()), TlsConfig::check);
            checked.map_err(|reason| MeshConfigError::Parse(format!("{field}: {reason}")))?;
        }
        if let Some(setting) = &config.locality_lb_setting {
            let mut findings = Findings::default();
            check_locality(&mut findings, "localityLbSetting", setting, true);
            if let Some(error) = findings.errors.first() {
                return Err(MeshConfigError::Parse(error.to_string()));
            }
        }
        check_providers(&config.extension_providers).map_err(MeshConfigError::Parse)?;
        // Every listener has it: a proxy would refuse them all.
        check_commands(&config.access_log_format)
            .map_err(|problem| MeshConfigError::Parse(format!("accessLogFormat: {problem}")))?;
        Ok(config)
    }

    /// Fields that were given and do nothing yet, as paths.
    pub fn without_effect(&self) -> Vec<String> {
        let mut paths: Vec<String> = self.rest.keys().cloned().collect();
        paths.extend(
            self.default_config.without_effect().into_iter().map(|path| format!("defaultConfig.{path}")),
        );
        for (field, tls) in [("meshMTLS", &self.mesh_mtls), ("tlsDefaults", &self.tls_defaults)] {
            paths.extend(
                tls.iter().flat_map(|tls| tls.without_effect()).map(|path| format!("{field}.{path}")),
            );
        }
        for (index, provider) in self.extension_providers.iter().enumerate() {
            paths.extend(provider.rest.keys().map(|key| format!("extensionProviders[{index}].{key}")));
        }
        for (index, given) in self.ca_certificates.iter().enumerate() {
            if !given.cert_signers.is_empty() {
                let url = (!given.spiffe_bundle_url.is_empty()).then_some("spiffeBundleUrl");
                let domains = (!given.trust_domains.is_empty()).then_some("trustDomains");
                let of_signer = url.into_iter().chain(domains);
                paths
                    .extend(of_signer.map(|key| format!("caCertificates[{index}].{key} (with certSigners)")));
            }
            paths.extend(given.rest.keys().map(|key| format!("caCertificates[{index}].{key}")));
        }
        if self.enable_tracing {
            paths.push("enableTracing".to_owned());
        }
        paths
    }

    /// What is trusted besides the mesh's own root, whoever signs.
    pub fn trust_anchors(&self) -> impl Iterator<Item = &CaCertificate> {
        self.ca_certificates.iter().filter(|given| given.cert_signers.is_empty())
    }

    /// The roots (PEM) of all signers of workloads' certificates that are named.
    pub fn roots_of_signers(&self) -> impl Iterator<Item = &str> {
        let of_signers = |given: &&CaCertificate| !given.cert_signers.is_empty() && !given.pem.is_empty();
        self.ca_certificates.iter().filter(of_signers).map(|given| given.pem.as_str())
    }

    /// The roots (PEM) of a signer, by its whole name, as `domain/name`.
    pub fn roots_of_signer(&self, signer: &str) -> Option<&str> {
        let of_signer = |given: &&CaCertificate| given.cert_signers.iter().any(|name| name == signer);
        self.ca_certificates
            .iter()
            .filter(|given| !given.pem.is_empty())
            .find(of_signer)
            .map(|given| given.pem.as_str())
    }

    /// Connect timeout of clusters.
    pub fn connect_timeout(&self) -> Duration {
        duration::parse(&self.connect_timeout).unwrap_or(Duration::from_secs(10))
    }

    /// How often names of endpoints are looked up.
    pub fn dns_refresh_rate(&self) -> Duration {
        duration::parse(&self.dns_refresh_rate).unwrap_or(Duration::from_secs(60))
    }

    /// How long protocol detection waits; zero waits for ever.
    pub fn protocol_detection_timeout(&self) -> Duration {
        duration::parse(&self.protocol_detection_timeout).unwrap_or_default()
    }

    /// Whether unknown destinations are reached as they are.
    pub fn allows_any_outbound(&self) -> bool {
        self.outbound_traffic_policy.mode == OutboundTrafficPolicyMode::AllowAny
    }
}

/// Roots of signers (`MeshConfig.CertificateData`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CaCertificate {
    /// Certificates of roots, PEM.
    pub pem: String,
    /// Where they are fetched instead: a SPIFFE bundle endpoint, `https`.
    pub spiffe_bundle_url: String,
    /// Whose roots they are: names of signers of the Kubernetes CSR API.
    pub cert_signers: Vec<String>,
    /// For which trust domains they vouch. Empty: for all.
    pub trust_domains: Vec<String>,
    /// Everything else that was given.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// Which Ingress objects are served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum IngressControllerMode {
    /// None.
    Off,
    /// Those of our class, and those without any.
    Default,
    /// Those of our class.
    #[default]
    #[serde(alias = "UNSPECIFIED")]
    Strict,
}

/// Form of access logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum AccessLogEncoding {
    /// One line of text.
    #[default]
    Text,
    /// One JSON object.
    Json,
}

/// What happens to traffic to unknown destinations.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OutboundTrafficPolicy {
    /// The choice.
    pub mode: OutboundTrafficPolicyMode,
}

/// Choices of [`OutboundTrafficPolicy`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum OutboundTrafficPolicyMode {
    /// Passed through.
    #[default]
    AllowAny,
    /// Refused.
    RegistryOnly,
}

/// Path normalisation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PathNormalization {
    /// How much.
    pub normalization: NormalizationType,
}

/// Degrees of path normalisation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum NormalizationType {
    /// Same as BASE.
    #[default]
    Default,
    /// None.
    None,
    /// RFC 3986 dot segments; `\` becomes `/`.
    Base,
    /// BASE, and repeated slashes are merged.
    MergeSlashes,
    /// MERGE_SLASHES, and `%2F`, `%5C` are decoded.
    DecodeAndMergeSlashes,
}

#[cfg(test)]
mod tests;
