//! WorkloadGroup: what the WorkloadEntries of a set of machines have in common.
//! <https://istio.io/latest/docs/reference/config/networking/workload-group/>
use std::collections::BTreeMap;

use super::workload_entry::WorkloadEntrySpec;
use super::{GROUP, VERSIONS};
use crate::object::Kind;

message! {
    /// The spec of a WorkloadGroup.
    pub struct WorkloadGroupSpec {
        /// Labels and annotations of the entries.
        metadata: Option<ObjectMeta>,
        /// What the entries are made from.
        template!: Option<WorkloadEntrySpec>,
        /// How readiness is found out.
        probe: Option<ReadinessProbe>,
    }
}

impl Kind for WorkloadGroupSpec {
    const GROUP: &'static str = GROUP;
    const VERSIONS: &'static [&'static str] = VERSIONS;
    const KIND: &'static str = "WorkloadGroup";
    const PLURAL: &'static str = "workloadgroups";
    const SHORT_NAMES: &'static [&'static str] = &["wg"];
    const COLUMNS: &'static [(&'static str, &'static str, &'static str)] = &[];
}

message! {
    /// Labels and annotations.
    pub struct ObjectMeta {
        /// Labels.
        labels: BTreeMap<String, String>,
        /// Annotations.
        annotations: BTreeMap<String, String>,
    }
}

message! {
    /// How readiness of a workload is found out.
    pub struct ReadinessProbe {
        /// Seconds before the first probe.
        initial_delay_seconds: i32,
        /// Seconds until a probe counts as failed. Default 1.
        timeout_seconds: i32,
        /// Seconds between probes. Default 10.
        period_seconds: i32,
        /// Successes in a row until it is ready. Default 1.
        success_threshold: i32,
        /// Failures in a row until it is not. Default 3.
        failure_threshold: i32,
        /// By an HTTP request.
        http_get: Option<HttpHealthCheck>,
        /// By a TCP connection.
        tcp_socket: Option<TcpHealthCheck>,
        /// By a command.
        exec: Option<ExecHealthCheck>,
        /// By gRPC's health service.
        grpc: Option<GrpcHealthCheck>,
    }
}

message! {
    /// A probe by HTTP.
    pub struct HttpHealthCheck {
        /// Path; empty is `/`.
        path: String,
        /// Port.
        port!: u32,
        /// Host; empty is the workload itself.
        host: String,
        /// `HTTP` or `HTTPS`; empty is `HTTP`.
        scheme: String,
        /// Headers.
        http_headers: Vec<HttpHeader>,
    }
}

message! {
    /// A header of a probe.
    pub struct HttpHeader {
        /// Name.
        name: String,
        /// Value.
        value: String,
    }
}

message! {
    /// A probe by TCP.
    pub struct TcpHealthCheck {
        /// Host; empty is the workload itself.
        host: String,
        /// Port.
        port!: u32,
    }
}

message! {
    /// A probe by gRPC.
    pub struct GrpcHealthCheck {
        /// Port.
        port: u32,
        /// Service to ask about.
        service: String,
    }
}

message! {
    /// A probe by a command.
    pub struct ExecHealthCheck {
        /// Command and arguments.
        command: Vec<String>,
    }
}
