//! Load assignments.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::health_check::EndpointHealthCheck;

/// Envoy's `ClusterLoadAssignment`.
#[derive(Clone, Debug, PartialEq)]
pub struct ClusterLoadAssignment {
    /// Name; xDS identity.
    pub cluster_name: Arc<str>,
    /// Localities by priority: index is the priority; gaps are empty.
    pub priorities: Vec<Vec<LocalityEndpoints>>,
    /// A priority counts as fully healthy at `100 / (this / 100)` percent healthy endpoints. Default 140.
    pub overprovisioning_factor: u32,
    /// Health of a priority counts weights instead of hosts.
    pub weighted_priority_health: bool,
}

/// A locality of endpoints.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Locality {
    /// Region.
    pub region: Arc<str>,
    /// Zone.
    pub zone: Arc<str>,
    /// Sub-zone.
    pub sub_zone: Arc<str>,
}

/// Envoy's `LocalityLbEndpoints`.
#[derive(Clone, Debug, PartialEq)]
pub struct LocalityEndpoints {
    /// Where.
    pub locality: Arc<Locality>,
    /// Weight among localities with locality weighted balancing; `None`: takes no load there.
    pub weight: Option<u32>,
    /// The endpoints.
    pub endpoints: Vec<Arc<Endpoint>>,
}

/// Health as the management server sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum HealthStatus {
    /// Healthy or unknown.
    #[default]
    Healthy,
    /// Takes traffic when there are no healthy ones.
    Degraded,
    /// Unhealthy or timed out.
    Unhealthy,
    /// On its way out: no new requests.
    Draining,
}

/// Where an endpoint is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EndpointAddress {
    /// An IP address and port.
    Socket(SocketAddr),
    /// A Unix socket's path.
    Pipe(Arc<str>),
    /// A name to resolve (STRICT_DNS and LOGICAL_DNS only).
    Name(Arc<str>, u16),
}

/// One end of a connection: where a host can be connected to, where a listener is, where a client came from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostAddress {
    /// An IP address and port.
    Socket(SocketAddr),
    /// A Unix socket's path; one that begins with `@` is in the abstract namespace.
    Pipe(Arc<str>),
}

impl HostAddress {
    /// The IP address and port, where it has one.
    pub fn socket(&self) -> Option<SocketAddr> {
        match self {
            Self::Socket(address) => Some(*address),
            Self::Pipe(_) => None,
        }
    }

    /// The IP address, where it has one.
    pub fn ip(&self) -> Option<IpAddr> {
        self.socket().map(|address| address.ip())
    }

    /// The port, where it has one.
    pub fn port(&self) -> Option<u16> {
        self.socket().map(|address| address.port())
    }
}

impl From<SocketAddr> for HostAddress {
    fn from(address: SocketAddr) -> Self {
        Self::Socket(address)
    }
}

impl fmt::Display for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(address) => address.fmt(f),
            Self::Pipe(path) => f.write_str(path),
        }
    }
}

impl EndpointAddress {
    /// Where to connect to; `None` for a name, which has to be looked up first.
    pub fn host(&self) -> Option<HostAddress> {
        match self {
            Self::Socket(address) => Some(HostAddress::Socket(*address)),
            Self::Pipe(path) => Some(HostAddress::Pipe(path.clone())),
            Self::Name(..) => None,
        }
    }
}

impl ClusterLoadAssignment {
    /// Whether some endpoint is a Unix socket.
    pub fn has_pipes(&self) -> bool {
        let mut all = self.priorities.iter().flatten().flat_map(|locality| &locality.endpoints);
        all.any(|endpoint| matches!(endpoint.address, EndpointAddress::Pipe(_)))
    }
}

/// Envoy's `LbEndpoint`.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    /// Address.
    pub address: EndpointAddress,
    /// More addresses of the same endpoint, tried in turn.
    pub additional_addresses: Vec<SocketAddr>,
    /// Host name, for `auto_host_rewrite` and logs.
    pub hostname: Option<Arc<str>>,
    /// Weight, at least 1. Default 1.
    pub weight: u32,
    /// How it is checked, where not as the cluster says.
    pub health_check: Option<Arc<EndpointHealthCheck>>,
    /// Health.
    pub health: HealthStatus,
    /// `filter_metadata` as JSON, for subsets and logs; `None` when empty.
    pub metadata: Option<Arc<serde_json::Value>>,
}

impl Endpoint {
    /// What subsets and consistent hashing look at: the metadata `envoy.lb`.
    pub fn labels(&self) -> Option<&serde_json::Value> {
        self.metadata.as_ref()?.get("envoy.lb")
    }

    /// What stands for the endpoint in consistent hashing: its `hash_key` (metadata of `envoy.lb`), its host name where that is wished for, or
    /// its address.
    pub fn hash_key(&self, use_hostname: bool) -> Box<str> {
        let metadata = self.labels().and_then(|labels| labels.get("hash_key")?.as_str());
        match (metadata.filter(|key| !key.is_empty()), &self.hostname) {
            (Some(key), _) => key.into(),
            (None, Some(name)) if use_hostname => (&**name).into(),
            _ if use_hostname => "".into(),
            _ => match &self.address {
                EndpointAddress::Socket(address) => address.to_string().into(),
                EndpointAddress::Pipe(path) => (&**path).into(),
                EndpointAddress::Name(name, port) => format!("{name}:{port}").into(),
            },
        }
    }
}
