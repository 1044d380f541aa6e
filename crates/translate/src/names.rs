//! Names of clusters, as Istio writes them.

/// Cluster that goes to the original destination.
pub const PASSTHROUGH: &str = "PassthroughCluster";
/// Cluster without endpoints: connections are closed, requests get 503.
pub const BLACK_HOLE: &str = "BlackHoleCluster";
/// Cluster that goes to the pod's own address on ports no service declares.
pub const INBOUND_PASSTHROUGH: &str = "InboundPassthroughCluster";

/// `outbound|PORT|SUBSET|HOST`; the subset is empty for all endpoints.
pub fn outbound_cluster(host: &str, port: u16, subset: &str) -> String {
    format!("outbound|{port}|{subset}|{host}")
}

/// `outbound_.PORT_.SUBSET_.HOST`: the cluster as a server name, by which callers of other networks ask for it.
pub(crate) fn server_name(host: &str, port: u16, subset: &str) -> String {
    format!("outbound_.{port}_.{subset}_.{host}")
}

/// `HOST:PORT`: the routes of a service port of undeclared protocol, whose listener is its own.
pub(crate) fn detected_routes(host: &str, port: u16) -> String {
    format!("{host}:{port}")
}

/// `inbound|PORT||`, where the port is the workload's.
pub fn inbound_cluster(port: u16) -> String {
    format!("inbound|{port}||")
}
