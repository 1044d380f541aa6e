//! ServiceEntries of resolution DYNAMIC_DNS: a wildcard stands for hosts that the proxy looks up when a request names them or TLS
//! asks for them.
//!
//! As in Istio this is for HTTP and for TLS that is passed on. All of a proxy's clusters and filters share one cache of names, since
//! a name means the same to all of them (Istio has a cache for each wildcard).
use std::time::Duration;

use lateen_model::{Protocol, Resolution, Service, ServicePort};
use lateen_xds::pb::envoy::config::cluster::v3::cluster::{CustomClusterType, DnsLookupFamily};
use lateen_xds::pb::envoy::extensions::clusters::dynamic_forward_proxy::v3 as cluster;
use lateen_xds::pb::envoy::extensions::common::dynamic_forward_proxy::v3::DnsCacheConfig;
use lateen_xds::pb::envoy::extensions::filters::http::dynamic_forward_proxy::v3 as http_filter;
use lateen_xds::pb::envoy::extensions::filters::network::sni_dynamic_forward_proxy::v3 as sni_filter;

use crate::scope::Scope;
use crate::wire;

/// Whether a service stands for hosts that are looked up on request.
pub(crate) fn is_dynamic(service: &Service) -> bool {
    service.resolution == Resolution::DynamicDns
}

/// Whether requests and connections to a port of such a service tell which host they are for.
pub(crate) fn is_served(port: &ServicePort) -> bool {
    port.protocol.is_http() || port.protocol == Protocol::Tls
}

/// Whether a gateway's rules may send HTTP to hosts that are looked up on request: there are some.
pub(crate) fn http_may_be_looked_up(scope: &Scope) -> bool {
    let is_http = |service: &Service| service.ports.iter().any(|port| port.protocol.is_http());
    scope.services.iter().any(|service| is_dynamic(service) && is_http(service))
}

/// The cache. Proxies refuse two caches of one name with different settings, and hold the old one until all that use it have
/// changed; so what can change is part of the name.
fn cache(refresh_rate: Duration) -> DnsCacheConfig {
    DnsCacheConfig {
        name: format!("dynamic_dns_{}ms", refresh_rate.as_millis()),
        dns_lookup_family: DnsLookupFamily::V4Only as i32,
        dns_refresh_rate: Some(wire::duration(refresh_rate)),
        ..Default::default()
    }
}

/// The type of its clusters. `insecure`: TLS does not ask for, or not verify, the host's name.
pub(crate) fn cluster_type(refresh_rate: Duration, insecure: bool) -> CustomClusterType {
    let specifier =
        cluster::cluster_config::ClusterImplementationSpecifier::DnsCacheConfig(cache(refresh_rate));
    CustomClusterType {
        name: "envoy.clusters.dynamic_forward_proxy".to_owned(),
        typed_config: Some(wire::any(&cluster::ClusterConfig {
            allow_insecure_cluster_options: insecure,
            cluster_implementation_specifier: Some(specifier),
            ..Default::default()
        })),
    }
}

/// Name of the HTTP filter.
pub(crate) const HTTP_FILTER: &str = "envoy.filters.http.dynamic_forward_proxy";

/// Looks up the hosts of requests to such clusters.
pub(crate) fn http_filter(refresh_rate: Duration) -> lateen_xds::Any {
    let specifier = http_filter::filter_config::ImplementationSpecifier::DnsCacheConfig(cache(refresh_rate));
    wire::any(&http_filter::FilterConfig { implementation_specifier: Some(specifier), ..Default::default() })
}

/// Name of the filter for TLS.
pub(crate) const SNI_FILTER: &str = "envoy.filters.network.sni_dynamic_forward_proxy";

/// Looks up the name that TLS asks for, to be connected to at this port.
pub(crate) fn sni_filter(refresh_rate: Duration, port: u16) -> lateen_xds::Any {
    wire::any(&sni_filter::FilterConfig {
        dns_cache_config: Some(cache(refresh_rate)),
        port_specifier: Some(sni_filter::filter_config::PortSpecifier::PortValue(u32::from(port))),
        ..Default::default()
    })
}
