//! Sidecar: what the proxies beside applications reach, and how they receive.
//! <https://istio.io/latest/docs/reference/config/networking/sidecar/>
use serde::{Deserialize, Serialize};

use super::destination_rule::ConnectionPoolSettings;
use super::gateway::ServerTlsSettings;
use super::service_entry::EntrySelector;
use super::virtual_service::Destination;
use super::{GROUP, VERSIONS};
use crate::object::Kind;

message! {
    /// The spec of a Sidecar.
    pub struct SidecarSpec {
        /// Workloads of its namespace it is for; none is all of them.
        workload_selector: Option<EntrySelector>,
        /// What is received; empty is what the services that select the workload say.
        ingress: Vec<IngressListener>,
        /// What is reached; empty is everything.
        egress: Vec<EgressListener>,
        /// Limits for what is received, where a listener has none of its own.
        inbound_connection_pool: Option<ConnectionPoolSettings>,
        /// What happens to traffic to unknown destinations; none is the mesh's choice.
        outbound_traffic_policy: Option<SidecarTrafficPolicy>,
    }
}

impl Kind for SidecarSpec {
    const GROUP: &'static str = GROUP;
    const VERSIONS: &'static [&'static str] = VERSIONS;
    const KIND: &'static str = "Sidecar";
    const PLURAL: &'static str = "sidecars";
    const SHORT_NAMES: &'static [&'static str] = &[];
    const COLUMNS: &'static [(&'static str, &'static str, &'static str)] = &[];
}

message! {
    /// A port the proxy receives on.
    pub struct IngressListener {
        /// The port.
        port!: Option<SidecarPort>,
        /// Address to listen on where traffic is not captured.
        bind: String,
        /// How traffic gets to the listener.
        capture_mode: CaptureMode,
        /// Where it is sent: `127.0.0.1:PORT`, `0.0.0.0:PORT` (the workload's own address), `unix:///path`; empty is the port
        /// itself.
        default_endpoint: String,
        /// TLS of callers outside the mesh.
        tls: Option<ServerTlsSettings>,
        /// Limits.
        connection_pool: Option<ConnectionPoolSettings>,
    }
}

message! {
    /// A set of hosts that are reached.
    pub struct EgressListener {
        /// The port it is about; none is every port.
        port: Option<SidecarPort>,
        /// Address or Unix socket to listen on.
        bind: String,
        /// How traffic gets to the listener.
        capture_mode: CaptureMode,
        /// `NAMESPACE/HOST`: the namespace a name, `*`, `.` (the Sidecar's own) or `~` (none), the host possibly with a leading
        /// wildcard.
        hosts!: Vec<String>,
    }
}

message! {
    /// A port of a Sidecar.
    pub struct SidecarPort {
        /// Number; 0 with a Unix socket.
        number: u32,
        /// `HTTP|HTTPS|GRPC|HTTP2|MONGO|TCP|TLS`.
        protocol: String,
        /// Name.
        name: String,
        /// Has no effect.
        target_port: u32,
    }
}

/// How traffic gets to a listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum CaptureMode {
    /// As for the whole workload.
    #[default]
    Default,
    /// It is redirected by the kernel.
    Iptables,
    /// The application connects to it.
    None,
}

message! {
    /// What happens to traffic to unknown destinations.
    pub struct SidecarTrafficPolicy {
        /// The choice.
        mode: SidecarTrafficMode,
        /// With `ALLOW_ANY`: all of it is sent to this service of the mesh.
        egress_proxy: Option<Destination>,
    }
}

/// Choices of [`SidecarTrafficPolicy`]. Unlike the mesh's, an unset one refuses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum SidecarTrafficMode {
    /// Refused.
    #[default]
    RegistryOnly,
    /// Passed through.
    AllowAny,
}
