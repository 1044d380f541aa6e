//! DestinationRule: subsets of a service and how to talk to it.
//! <https://istio.io/latest/docs/reference/config/networking/destination-rule/>
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::load_balancing::LoadBalancerSettings;
use super::{GROUP, PortSelector, VERSIONS, WorkloadSelector};
use crate::object::Kind;

message! {
    /// The spec of a DestinationRule.
    pub struct DestinationRuleSpec {
        /// Host name of the service, short names relative to the rule's namespace.
        host!: String,
        /// Policy for all subsets.
        traffic_policy: Option<TrafficPolicy>,
        /// Named sets of endpoints.
        subsets: Vec<Subset>,
        /// Namespaces it is visible in (`.`, `*` or names). Empty: the mesh's default.
        export_to: Vec<String>,
        /// Client workloads it applies to.
        workload_selector: Option<WorkloadSelector>,
    }
}

impl Kind for DestinationRuleSpec {
    const GROUP: &'static str = GROUP;
    const VERSIONS: &'static [&'static str] = VERSIONS;
    const KIND: &'static str = "DestinationRule";
    const PLURAL: &'static str = "destinationrules";
    const SHORT_NAMES: &'static [&'static str] = &["dr"];
    const COLUMNS: &'static [(&'static str, &'static str, &'static str)] =
        &[("Host", "The name of a service from the service registry", ".spec.host")];
}

message! {
    /// A named set of a service's endpoints.
    pub struct Subset {
        /// Name, unique in the rule.
        name!: String,
        /// Labels the endpoints carry.
        labels: BTreeMap<String, String>,
        /// Policy that overrides the rule's.
        traffic_policy: Option<TrafficPolicy>,
    }
}

message! {
    /// How to talk to a destination.
    pub struct TrafficPolicy {
        /// Load balancing.
        load_balancer: Option<LoadBalancerSettings>,
        /// Limits on connections and requests.
        connection_pool: Option<ConnectionPoolSettings>,
        /// When to eject hosts.
        outlier_detection: Option<OutlierDetection>,
        /// TLS of the upstream.
        tls: Option<ClientTlsSettings>,
        /// Policies of single ports; they replace the destination-level ones.
        port_level_settings: Vec<PortTrafficPolicy>,
        /// Tunnel TCP over another transport.
        tunnel: Option<TunnelSettings>,
        /// PROXY protocol to the upstream.
        proxy_protocol: Option<ProxyProtocol>,
        /// Limit on concurrent retries.
        retry_budget: Option<RetryBudget>,
    }
}

message! {
    /// Policy of one port.
    pub struct PortTrafficPolicy {
        /// The port.
        port: Option<PortSelector>,
        /// Load balancing.
        load_balancer: Option<LoadBalancerSettings>,
        /// Limits on connections and requests.
        connection_pool: Option<ConnectionPoolSettings>,
        /// When to eject hosts.
        outlier_detection: Option<OutlierDetection>,
        /// TLS of the upstream.
        tls: Option<ClientTlsSettings>,
    }
}

message! {
    /// Limits on connections and requests.
    pub struct ConnectionPoolSettings {
        /// For TCP and HTTP.
        tcp: Option<TcpSettings>,
        /// For HTTP.
        http: Option<HttpSettings>,
    }
}

message! {
    /// Connection limits.
    pub struct TcpSettings {
        /// Connections to a destination. Default 2^32-1.
        max_connections: i32,
        /// Connect timeout, a duration. Default 10s.
        connect_timeout: Option<String>,
        /// TCP keepalive.
        tcp_keepalive: Option<TcpKeepalive>,
        /// Longest life of a connection, a duration.
        max_connection_duration: Option<String>,
        /// Idle timeout of TCP, a duration. Default 1h.
        idle_timeout: Option<String>,
    }
}

message! {
    /// TCP keepalive.
    pub struct TcpKeepalive {
        /// Probes before the connection counts as dead.
        probes: u32,
        /// Idle time before the first probe, a duration.
        time: Option<String>,
        /// Time between probes, a duration.
        interval: Option<String>,
    }
}

message! {
    /// HTTP limits.
    pub struct HttpSettings {
        /// Requests waiting for a connection. Default 2^32-1.
        http1_max_pending_requests: i32,
        /// Active requests. Default 2^32-1.
        http2_max_requests: i32,
        /// Requests on one connection; 0 is unlimited.
        max_requests_per_connection: i32,
        /// Concurrent retries. Default 2^32-1.
        max_retries: i32,
        /// Idle timeout of a connection, a duration. Default 1h.
        idle_timeout: Option<String>,
        /// Whether HTTP/1.1 is upgraded to HTTP/2.
        h2_upgrade_policy: H2UpgradePolicy,
        /// Keep the client's protocol.
        use_client_protocol: bool,
        /// Concurrent streams of one HTTP/2 connection.
        max_concurrent_streams: i32,
    }
}

/// Whether HTTP/1.1 connections are upgraded to HTTP/2.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum H2UpgradePolicy {
    /// The mesh's default.
    #[default]
    Default,
    /// No.
    DoNotUpgrade,
    /// Yes.
    Upgrade,
}

message! {
    /// When to eject hosts from the load-balancing pool.
    pub struct OutlierDetection {
        /// Legacy form of `consecutive5xxErrors`.
        consecutive_errors: i32,
        /// Count local failures apart from those of the upstream.
        split_external_local_origin_errors: bool,
        /// Local failures before ejection.
        consecutive_local_origin_failures: Option<u32>,
        /// Gateway errors (502, 503, 504) before ejection.
        consecutive_gateway_errors: Option<u32>,
        /// 5xx before ejection. Default 5.
        #[serde(rename = "consecutive5xxErrors")]
        consecutive_5xx_errors: Option<u32>,
        /// Time between sweeps, a duration. Default 10s.
        interval: Option<String>,
        /// Shortest ejection, a duration. Default 30s.
        base_ejection_time: Option<String>,
        /// Largest share of ejected hosts. Default 10.
        max_ejection_percent: i32,
        /// Ejection stops when fewer hosts than this are healthy.
        min_health_percent: i32,
    }
}

message! {
    /// TLS of the upstream.
    pub struct ClientTlsSettings {
        /// How the connection is secured.
        mode: ClientTlsMode,
        /// Path of the client certificate.
        client_certificate: String,
        /// Path of the private key.
        private_key: String,
        /// Path of the CA certificates of the server.
        ca_certificates: String,
        /// Name of the secret with them.
        credential_name: String,
        /// Acceptable subject alternative names of the server.
        subject_alt_names: Vec<String>,
        /// SNI.
        sni: String,
        /// Don't verify the server's certificate.
        insecure_skip_verify: Option<bool>,
        /// Path of a certificate revocation list.
        ca_crl: String,
    }
}

/// How connections to an upstream are secured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ClientTlsMode {
    /// Plain text.
    #[default]
    Disable,
    /// Server certificate only.
    Simple,
    /// With the given client certificate.
    Mutual,
    /// With the mesh's certificates.
    IstioMutual,
}

message! {
    /// Tunnel of TCP.
    pub struct TunnelSettings {
        /// `CONNECT` (default) or `POST`.
        protocol: String,
        /// Host the tunnel leads to.
        target_host!: String,
        /// Port the tunnel leads to.
        target_port!: u32,
    }
}

message! {
    /// PROXY protocol.
    pub struct ProxyProtocol {
        /// Version of the protocol.
        version: ProxyProtocolVersion,
    }
}

/// Versions of the PROXY protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub enum ProxyProtocolVersion {
    /// Text form.
    #[default]
    V1,
    /// Binary form.
    V2,
}

message! {
    /// Limit on concurrent retries relative to active requests.
    pub struct RetryBudget {
        /// Share of active requests that may be retries, in percent. Default 20.
        percent: Option<f64>,
        /// Retries always allowed. Default 3.
        min_retry_concurrency: u32,
    }
}
