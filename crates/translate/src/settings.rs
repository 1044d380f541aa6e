//! The mesh-wide settings that generated resources depend on.
use std::borrow::Cow;
use std::time::Duration;

use lateen_api::MeshConfig;
use lateen_api::mesh::{AccessLogEncoding, NormalizationType};
use lateen_api::networking::destination_rule::{H2UpgradePolicy, TcpKeepalive};
use lateen_api::networking::sidecar::SidecarTrafficMode;
use lateen_model::{Sidecar, World, resolve_host};

use crate::mutual_tls::MutualTls;
use crate::names::{BLACK_HOLE, PASSTHROUGH, outbound_cluster};
use crate::proxy::ProxyClass;
use crate::retries::Retries;
use crate::stat_names::StatNames;
use crate::tls_defaults::TlsDefaults;
use crate::traffic_policy;

/// What of mesh config goes into resources; part of most generators' inputs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Settings {
    /// Access log, when there is one.
    pub(crate) access_log: Option<AccessLogSettings>,
    /// Whether unknown destinations are reached as they are.
    pub(crate) allow_any: bool,
    /// The service of the mesh that what goes to unknown destinations is sent to, when it is reached at all.
    pub(crate) egress_proxy: Option<EgressProxy>,
    /// Of connections to destinations.
    pub(crate) connections: ConnectionDefaults,
    /// How often names of endpoints are looked up when an answer does not say for how long it holds.
    pub(crate) dns_refresh_rate: Duration,
    /// How long protocol detection waits; zero waits for ever.
    pub(crate) detection_timeout: Duration,
    /// Path normalisation.
    pub(crate) normalization: NormalizationType,
    /// Retries of HTTP rules that say nothing.
    pub(crate) default_retries: Retries,
    /// Mutual TLS of the mesh.
    pub(crate) mutual_tls: MutualTls,
    /// Parameters of other TLS.
    pub(crate) tls_defaults: TlsDefaults,
    /// Names in statistics.
    pub(crate) stat_names: StatNames,
    /// Whether the proxies have both families of addresses.
    pub(crate) dual_stack: bool,
}

/// What holds for connections to destinations whose rule says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ConnectionDefaults {
    /// Connect timeout.
    pub(crate) connect_timeout: Duration,
    /// TCP keepalive; none: the operating system's default, which is none.
    pub(crate) keepalive: Option<Keepalive>,
    /// Whether HTTP/1.1 requests are sent as HTTP/2.
    pub(crate) upgrades_to_http2: bool,
}

/// TCP keepalive; what is absent is left to the operating system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Keepalive {
    /// Probes before the connection counts as dead.
    pub(crate) probes: Option<u32>,
    /// Idle seconds before the first probe.
    pub(crate) time: Option<u32>,
    /// Seconds between probes.
    pub(crate) interval: Option<u32>,
}

impl Keepalive {
    pub(crate) fn new(given: &TcpKeepalive) -> Self {
        let seconds = |text: Option<&String>| {
            traffic_policy::parse(text).map(|time| u32::try_from(time.as_secs()).unwrap_or(u32::MAX))
        };
        Self {
            probes: (given.probes > 0).then_some(given.probes),
            time: seconds(given.time.as_ref()),
            interval: seconds(given.interval.as_ref()),
        }
    }
}

/// Where traffic to unknown destinations is sent.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct EgressProxy {
    /// Host of the service.
    pub(crate) host: String,
    /// Its port.
    pub(crate) port: u16,
    /// Subset; empty for the whole.
    pub(crate) subset: String,
}

/// A file access log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct AccessLogSettings {
    /// Path, for example `/dev/stdout`.
    pub(crate) path: String,
    /// Format.
    pub(crate) format: AccessLogFormat,
}

/// Format of an access log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum AccessLogFormat {
    /// A line of text with Envoy's command operators.
    Text(String),
    /// Pairs of name and command operators.
    Json(Vec<(String, String)>),
}

/// Istio's default text format: <https://istio.io/latest/docs/tasks/observability/logs/access-log/#default-access-log-format>
const DEFAULT_TEXT: &str = concat!(
    "[%START_TIME%] \"%REQ(:METHOD)% %REQ(X-ENVOY-ORIGINAL-PATH?:PATH)% %PROTOCOL%\" %RESPONSE_CODE% ",
    "%RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% %CONNECTION_TERMINATION_DETAILS% ",
    "\"%UPSTREAM_TRANSPORT_FAILURE_REASON%\" %BYTES_RECEIVED% %BYTES_SENT% %DURATION% ",
    "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)% \"%REQ(X-FORWARDED-FOR)%\" \"%REQ(USER-AGENT)%\" ",
    "\"%REQ(X-REQUEST-ID)%\" \"%REQ(:AUTHORITY)%\" \"%UPSTREAM_HOST%\" %UPSTREAM_CLUSTER_RAW% ",
    "%UPSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_REMOTE_ADDRESS% ",
    "%REQUESTED_SERVER_NAME% %ROUTE_NAME%\n",
);

/// The fields of Istio's default JSON format.
const DEFAULT_JSON: &[(&str, &str)] = &[
    ("start_time", "%START_TIME%"),
    ("route_name", "%ROUTE_NAME%"),
    ("method", "%REQ(:METHOD)%"),
    ("path", "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%"),
    ("protocol", "%PROTOCOL%"),
    ("response_code", "%RESPONSE_CODE%"),
    ("response_flags", "%RESPONSE_FLAGS%"),
    ("response_code_details", "%RESPONSE_CODE_DETAILS%"),
    ("connection_termination_details", "%CONNECTION_TERMINATION_DETAILS%"),
    ("bytes_received", "%BYTES_RECEIVED%"),
    ("bytes_sent", "%BYTES_SENT%"),
    ("duration", "%DURATION%"),
    ("upstream_service_time", "%RESP(X-ENVOY-UPSTREAM-SERVICE-TIME)%"),
    ("x_forwarded_for", "%REQ(X-FORWARDED-FOR)%"),
    ("user_agent", "%REQ(USER-AGENT)%"),
    ("request_id", "%REQ(X-REQUEST-ID)%"),
    ("authority", "%REQ(:AUTHORITY)%"),
    ("upstream_host", "%UPSTREAM_HOST%"),
    ("upstream_cluster", "%UPSTREAM_CLUSTER_RAW%"),
    ("upstream_local_address", "%UPSTREAM_LOCAL_ADDRESS%"),
    ("downstream_local_address", "%DOWNSTREAM_LOCAL_ADDRESS%"),
    ("downstream_remote_address", "%DOWNSTREAM_REMOTE_ADDRESS%"),
    ("requested_server_name", "%REQUESTED_SERVER_NAME%"),
    ("upstream_transport_failure_reason", "%UPSTREAM_TRANSPORT_FAILURE_REASON%"),
];

impl Settings {
    /// `dual_stack`: whether they are for proxies with both families of addresses.
    pub(crate) fn new(mesh: &MeshConfig, dual_stack: bool) -> Self {
        Self {
            access_log: access_log(mesh),
            allow_any: mesh.allows_any_outbound(),
            egress_proxy: None,
            connections: ConnectionDefaults {
                connect_timeout: mesh.connect_timeout(),
                keepalive: mesh.tcp_keepalive.as_ref().map(Keepalive::new),
                upgrades_to_http2: mesh.h2_upgrade_policy == H2UpgradePolicy::Upgrade,
            },
            dns_refresh_rate: mesh.dns_refresh_rate(),
            detection_timeout: mesh.protocol_detection_timeout(),
            normalization: mesh.path_normalization.normalization,
            mutual_tls: MutualTls::new(mesh),
            tls_defaults: TlsDefaults::new(mesh),
            stat_names: StatNames::new(mesh),
            dual_stack,
            default_retries: mesh.default_http_retry_policy.as_ref().map(Retries::new).unwrap_or_default(),
        }
    }
}

impl Settings {
    /// Those of proxies for which a Sidecar is in force.
    pub(crate) fn for_sidecar(world: &World, class: &ProxyClass, sidecar: Option<&Sidecar>) -> Self {
        let namespace = &class.namespace;
        let settings = Self::new(world.mesh(), class.dual_stack);
        let Some(policy) = sidecar.and_then(|sidecar| sidecar.spec.outbound_traffic_policy.as_ref()) else {
            return settings;
        };
        let allow_any = policy.mode == SidecarTrafficMode::AllowAny;
        let egress_proxy = policy.egress_proxy.as_ref().filter(|_| allow_any).and_then(|proxy| {
            Some(EgressProxy {
                host: resolve_host(&proxy.host, namespace, world.domain()),
                port: u16::try_from(proxy.port.as_ref()?.number).ok()?,
                subset: proxy.subset.clone(),
            })
        });
        Self { allow_any, egress_proxy, ..settings }
    }

    /// The cluster for what goes to unknown destinations.
    pub(crate) fn catch_all_cluster(&self) -> Cow<'static, str> {
        match &self.egress_proxy {
            _ if !self.allow_any => BLACK_HOLE.into(),
            Some(proxy) => outbound_cluster(&proxy.host, proxy.port, &proxy.subset).into(),
            None => PASSTHROUGH.into(),
        }
    }
}

fn access_log(mesh: &MeshConfig) -> Option<AccessLogSettings> {
    if mesh.access_log_file.is_empty() {
        return None;
    }
    let given = mesh.access_log_format.as_str();
    let format = match mesh.access_log_encoding {
        AccessLogEncoding::Text if given.is_empty() => AccessLogFormat::Text(DEFAULT_TEXT.to_owned()),
        // Without it lines would run together.
        AccessLogEncoding::Text if !given.ends_with('\n') => AccessLogFormat::Text(format!("{given}\n")),
        AccessLogEncoding::Text => AccessLogFormat::Text(given.to_owned()),
        AccessLogEncoding::Json => AccessLogFormat::Json(json_fields(given)),
    };
    Some(AccessLogSettings { path: mesh.access_log_file.clone(), format })
}

/// The fields of a JSON format; when it is empty or no object of strings, those of Istio's default, as istiod does.
fn json_fields(given: &str) -> Vec<(String, String)> {
    let parsed: Option<std::collections::BTreeMap<String, String>> = serde_json::from_str(given).ok();
    match parsed {
        Some(fields) if !fields.is_empty() => fields.into_iter().collect(),
        _ => DEFAULT_JSON.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
    }
}
