//! What an API server is started with.

use std::{fmt, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use ipnet::{Ipv4Net, Ipv6Net};
use lateen_podstreams::{BoxFuture, Duplex, PodBackend};

/// Where objects live.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum StoreConfig {
    /// In memory only.
    #[default]
    Ephemeral,
    /// In memory and in a journal with snapshots in this directory (created when missing). Keys and the CA are kept
    /// beside it unless [`ApiServerConfig::pki_dir`] says otherwise.
    Durable(PathBuf),
}

/// Everything that varies between two API servers; several can run in one process.
#[derive(Clone)]
pub struct ApiServerConfig {
    /// Addresses to serve on; port 0 picks a free one. Default `127.0.0.1:0`.
    pub listen: Vec<SocketAddr>,
    /// Where objects live. Default: in memory.
    pub store: StoreConfig,
    /// Range of cluster IPs; address 1 is `kubernetes.default`, address 10 is kept for DNS. Default `10.96.0.0/16`.
    pub service_cidr: Ipv4Net,
    /// Range of cluster IPs of a second family; without one Services have IPv4 only. Default: none.
    pub service_cidr6: Option<Ipv6Net>,
    /// The cluster's DNS domain. Default `cluster.local`.
    pub cluster_domain: String,
    /// Runs the pods (logs, exec, port-forward). Can be set later with [`ApiServer::set_pod_backend`](crate::ApiServer::set_pod_backend);
    /// without one those requests are answered with 503.
    pub pod_backend: Option<Arc<dyn PodBackend>>,
    /// DNS names and addresses the serving certificate covers besides the listeners, `localhost`,
    /// `kubernetes.default.svc` and its short forms, and the service's address.
    pub extra_sans: Vec<String>,
    /// Where the CA and the token key are kept. Default: `pki` inside the durable store's directory, or nowhere.
    pub pki_dir: Option<PathBuf>,
    /// Reaches the endpoints of Services for webhooks and the services proxy. Default: the first ready address of the
    /// Service's EndpointSlices, dialled directly.
    pub service_resolver: Option<Arc<dyn ServiceResolver>>,
    /// How many changes of each resource a watch can go back; older ones are answered with 410. Default 4096.
    pub watch_window: usize,
    /// How long a client may take from one answer to the headers of its next request. Default 120 s: longer than the 90 s that
    /// clients (client-go, hyper) keep idle connections, because the side that closes first must be theirs, or a request meets a
    /// closing connection.
    pub idle_limit: Duration,
    /// How long a request's body may take to come, and then its answer; watches, logs and the like are answered at once and go
    /// on. Late ones are answered with 504. Default 60 s, as kube-apiserver's.
    pub request_limit: Duration,
}

impl Default for ApiServerConfig {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
            store: StoreConfig::Ephemeral,
            service_cidr: Ipv4Net::new_assert([10, 96, 0, 0].into(), 16),
            service_cidr6: None,
            cluster_domain: "cluster.local".to_owned(),
            pod_backend: None,
            extra_sans: Vec::new(),
            pki_dir: None,
            service_resolver: None,
            watch_window: 4096,
            idle_limit: Duration::from_secs(120),
            request_limit: Duration::from_secs(60),
        }
    }
}

impl fmt::Debug for ApiServerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiServerConfig")
            .field("listen", &self.listen)
            .field("store", &self.store)
            .field("service_cidr", &self.service_cidr)
            .field("service_cidr6", &self.service_cidr6)
            .field("cluster_domain", &self.cluster_domain)
            .field("pki_dir", &self.pki_dir)
            .finish_non_exhaustive()
    }
}

/// One port of a Service, as somebody wants to reach it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ServiceTarget {
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub name: String,
    /// The Service's own port: its number or its name; empty means the only one.
    pub port: String,
}

/// Reaches the endpoints behind a Service.
pub trait ServiceResolver: Send + Sync {
    /// Connects to an endpoint of the Service, or returns `None` to leave it to the default (EndpointSlices).
    fn dial(&self, target: ServiceTarget) -> BoxFuture<'_, Option<std::io::Result<Box<dyn Duplex>>>>;
}
