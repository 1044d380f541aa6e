//! Where a cluster leads: its endpoints, which of them take a request, and how they are spoken to.

use std::net::SocketAddr;
use std::time::Instant;

use serde::Serialize;

use super::ProxyView;
use crate::{
    Balancer, BalancerConfig, BalancerHost, CertificateRef, Cluster, ClusterLoadAssignment, CommonTls,
    Discovery, EndpointAddress, HealthStatus, LbPolicy, Load, UpstreamTls, ValidationContext, ValidationRef,
    Wish,
};

/// Requests that are tried out to see which endpoints take them.
const TRIED: u64 = 256;

/// Where a cluster leads.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Reach {
    /// The cluster.
    pub cluster: String,
    /// How endpoints are found and balanced, in words.
    pub kind: String,
    /// The endpoints. Of names that are looked up, the names.
    pub endpoints: Vec<EndpointSeen>,
    /// The object the cluster comes from (`istio.config` of its metadata); empty: none is named.
    pub origin: String,
}

/// An endpoint.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointSeen {
    /// `IP:PORT`, a path or `NAME:PORT`.
    pub address: String,
    /// The same to connect to.
    #[serde(skip)]
    pub socket: Option<SocketAddr>,
    /// `healthy`, `degraded`, `unhealthy`, `draining`, as the control plane says.
    pub health: &'static str,
    /// `REGION/ZONE/SUBZONE`; empty: none.
    pub locality: String,
    /// Priority, 0 first.
    pub priority: usize,
    /// Weight.
    pub weight: u32,
    /// Whether requests come here now.
    pub used: bool,
    /// `plain text`, `TLS` or `mutual TLS`.
    pub transport: &'static str,
    /// The name TLS asks for; empty: none.
    pub server_name: String,
    /// Protocols TLS offers.
    pub protocols: Vec<String>,
    /// TLS shows the workload's certificate.
    pub shows_certificate: bool,
    /// Names of which the server's certificate must have one; empty: any.
    pub expected: Vec<String>,
}

/// Nobody is busy.
struct Idle;

impl Load for Idle {
    fn active(&self, _: usize) -> u64 {
        0
    }

    fn total(&self) -> u64 {
        0
    }
}

impl ProxyView {
    /// Where a cluster leads for a connection that was going to `destination`. `http`: for requests. `None`: there is no such
    /// cluster.
    pub fn reach(&self, cluster: &str, destination: SocketAddr, http: bool) -> Option<Reach> {
        let cluster = self.clusters.get(cluster)?;
        let none = ClusterLoadAssignment {
            cluster_name: cluster.name.clone(),
            priorities: Vec::new(),
            overprovisioning_factor: 140,
            weighted_priority_health: false,
        };
        let (kind, assignment) = match &cluster.discovery {
            Discovery::Static(assignment) => ("STATIC", &**assignment),
            Discovery::StrictDns { assignment, .. } => ("STRICT_DNS", &**assignment),
            Discovery::LogicalDns { assignment, .. } => ("LOGICAL_DNS", &**assignment),
            Discovery::Eds { service_name, .. } => ("EDS", self.endpoints.get(service_name).unwrap_or(&none)),
            Discovery::OriginalDst { port_override, .. } => {
                let mut address = destination;
                address.set_port(port_override.unwrap_or(address.port()));
                let mut only = seen(cluster, http, None);
                only.address = address.to_string();
                (only.socket, only.used) = (Some(address), true);
                return Some(Reach::of(cluster, "the original destination", vec![only]));
            }
            Discovery::DynamicForwardProxy { .. } => {
                return Some(Reach::of(cluster, "the host that the request names, looked up", Vec::new()));
            }
        };
        let kind = format!("{kind}, {}", policy(&cluster.lb_policy));
        Some(Reach::of(cluster, &kind, endpoints(cluster, assignment, http)))
    }
}

impl Reach {
    fn of(cluster: &Cluster, kind: &str, endpoints: Vec<EndpointSeen>) -> Self {
        let origin =
            cluster.metadata.as_ref().and_then(|metadata| metadata.pointer("/istio/config")?.as_str());
        Self {
            cluster: cluster.name.to_string(),
            kind: kind.to_owned(),
            endpoints,
            origin: origin.unwrap_or_default().to_owned(),
        }
    }
}

fn policy(policy: &LbPolicy) -> &'static str {
    match policy {
        LbPolicy::RoundRobin { .. } => "round robin",
        LbPolicy::LeastRequest(_) => "least request",
        LbPolicy::Random => "random",
        LbPolicy::RingHash(_) => "ring hash",
        LbPolicy::Maglev(_) => "Maglev",
        LbPolicy::ClusterProvided => "one after the other",
    }
}

fn endpoints(cluster: &Cluster, assignment: &ClusterLoadAssignment, http: bool) -> Vec<EndpointSeen> {
    let mut all = Vec::new();
    let mut hosts = Vec::new();
    let mut localities = 0;
    for (priority, list) in assignment.priorities.iter().enumerate() {
        for place in list {
            localities += 1;
            for endpoint in &place.endpoints {
                let mut one = seen(cluster, http, Some(endpoint));
                one.priority = priority;
                let parts = [&place.locality.region, &place.locality.zone, &place.locality.sub_zone];
                let parts: Vec<&str> =
                    parts.into_iter().map(|part| &**part).filter(|part| !part.is_empty()).collect();
                one.locality = parts.join("/");
                all.push(one);
                hosts.push(BalancerHost {
                    priority: u32::try_from(priority).unwrap_or(u32::MAX),
                    locality: localities,
                    locality_weight: place.weight,
                    weight: endpoint.weight,
                    health: endpoint.health,
                    excluded: false,
                    hash_key: endpoint.hash_key(false),
                    joined: None,
                });
            }
        }
    }
    for host in used(cluster, assignment, &hosts) {
        all[host].used = true;
    }
    all
}

/// The hosts that requests come to, found by trying.
fn used(cluster: &Cluster, assignment: &ClusterLoadAssignment, hosts: &[BalancerHost]) -> Vec<usize> {
    let config = BalancerConfig {
        policy: cluster.lb_policy,
        locality: cluster.locality,
        healthy_panic_threshold: cluster.healthy_panic_threshold,
        overprovisioning_factor: assignment.overprovisioning_factor,
        weighted_priority_health: assignment.weighted_priority_health,
    };
    let now = Instant::now();
    let mut balancer = Balancer::new(&config, hosts, 0, now);
    let mut state = 0_u64;
    // SplitMix64: even, and the same each time.
    let mut random = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    };
    let picks = (0..TRIED).filter_map(|_| {
        let mut wish =
            Wish { hash: None, attempt: 0, random: &mut random, load: &Idle, now: &|| now, priorities: None };
        balancer.pick(&mut wish).map(|pick| pick.host)
    });
    let mut found: Vec<usize> = picks.collect();
    found.sort_unstable();
    found.dedup();
    found
}

/// All but where it stands.
fn seen(cluster: &Cluster, http: bool, endpoint: Option<&crate::Endpoint>) -> EndpointSeen {
    let metadata = endpoint.and_then(|endpoint| endpoint.metadata.as_deref());
    let transport = match cluster.transport_position(metadata) {
        Some(position) => &cluster.transport_matches[position].transport,
        None => &cluster.transport,
    };
    let tls = transport.tls();
    let address = endpoint.map(|endpoint| &endpoint.address);
    EndpointSeen {
        address: match address {
            None => String::new(),
            Some(EndpointAddress::Socket(address)) => address.to_string(),
            Some(EndpointAddress::Pipe(path)) => path.to_string(),
            Some(EndpointAddress::Name(name, port)) => format!("{name}:{port}"),
        },
        socket: match address {
            Some(EndpointAddress::Socket(address)) => Some(*address),
            _ => None,
        },
        health: match endpoint.map_or(HealthStatus::Healthy, |endpoint| endpoint.health) {
            HealthStatus::Healthy => "healthy",
            HealthStatus::Degraded => "degraded",
            HealthStatus::Unhealthy => "unhealthy",
            HealthStatus::Draining => "draining",
        },
        locality: String::new(),
        priority: 0,
        weight: endpoint.map_or(1, |endpoint| endpoint.weight),
        used: false,
        transport: match tls {
            None => "plain text",
            Some(tls) if tls.common.certificates.is_empty() => "TLS",
            Some(_) => "mutual TLS",
        },
        server_name: tls.and_then(|tls| tls.sni.as_deref()).unwrap_or_default().to_owned(),
        protocols: tls.map(|tls| protocols(tls, cluster, http)).unwrap_or_default(),
        shows_certificate: tls.is_some_and(|tls| tls.common.certificates.iter().any(is_own)),
        expected: tls.map(|tls| tls.common.expected_names()).unwrap_or_default(),
    }
}

/// The workload's own certificate, that is, its identity.
fn is_own(certificate: &CertificateRef) -> bool {
    matches!(certificate, CertificateRef::Secret(secret) if &*secret.name == "default")
}

/// What is offered: what the configuration says, or what goes with the cluster's HTTP version.
fn protocols(tls: &UpstreamTls, cluster: &Cluster, http: bool) -> Vec<String> {
    if !tls.common.alpn.is_empty() || !http {
        return tls.common.alpn.iter().map(|name| name.to_string()).collect();
    }
    let version = match cluster.http.protocol {
        crate::UpstreamProtocol::Http2 => "h2",
        crate::UpstreamProtocol::Http1 | crate::UpstreamProtocol::Downstream => "http/1.1",
    };
    vec![version.to_owned()]
}

impl CommonTls {
    /// Names of which the peer's certificate must have one, as far as the context itself tells; empty: any.
    pub fn expected_names(&self) -> Vec<String> {
        self.expected().iter().map(|name| super::words::string(&name.matcher)).collect()
    }

    /// Whether a certificate with these URI names has one that is expected.
    pub fn expects(&self, uris: &[String]) -> bool {
        let expected = self.expected();
        expected.is_empty()
            || expected.iter().any(|name| uris.iter().any(|uri| name.matcher.is_match(uri.as_bytes())))
    }

    /// Whether whoever comes must have a certificate, as far as is known without secrets.
    pub fn wants_certificate(&self) -> bool {
        self.context().is_some_and(ValidationContext::wants_certificate)
    }

    fn expected(&self) -> &[crate::SanMatcher] {
        self.context().map_or(&[], |context| &context.sans)
    }

    fn context(&self) -> Option<&ValidationContext> {
        match &self.validation {
            ValidationRef::None => None,
            ValidationRef::Inline(context) | ValidationRef::Secret { base: context, .. } => Some(context),
        }
    }
}
