//! The dynamic forward proxy: its cache, its cluster, its filters.
#![allow(deprecated)]

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use lateen_xds::pb::envoy::extensions::clusters::dynamic_forward_proxy::v3 as cluster_proto;
use lateen_xds::pb::envoy::extensions::common::dynamic_forward_proxy::v3 as proto;
use lateen_xds::pb::envoy::extensions::filters::http::dynamic_forward_proxy::v3 as http_filter;
use lateen_xds::pb::envoy::extensions::filters::network::sni_dynamic_forward_proxy::v3 as sni_filter;
use lateen_xds::pb::envoy::r#type::matcher::v3 as matcher;
use lateen_xds::pb::google::protobuf::Any;
use prost::Name as _;

use super::cluster::dns_failures;
use super::dns::{dns_family, dns_resolver};
use super::matchers::{header_name, header_value};
use super::values::{Converted, duration, host_and_port, nonempty, number, positive, required, typed};
use crate::error::At;
use crate::support::fields;
use crate::{AddressFilter, Dns, DnsCacheConfig, DynamicHostRewrite, SniDynamicForwardProxy};

/// `DnsCacheConfig`.
fn cache(at: &At<'_>, message: proto::DnsCacheConfig) -> Converted<Arc<DnsCacheConfig>> {
    fields!(at, message => proto::DnsCacheConfig {
        used {
            name, dns_lookup_family, dns_refresh_rate, dns_min_refresh_rate, host_ttl, max_hosts,
            disable_dns_refresh_on_failure, dns_failure_refresh_rate, dns_cache_circuit_breaker,
            typed_dns_resolver_config, preresolve_hostnames, dns_query_timeout, resolved_address_filter,
        }
        inert {}
        rejected {
            use_tcp_for_dns_lookups = "use typed_dns_resolver_config",
            dns_resolution_config = "use typed_dns_resolver_config",
            key_value_config = "caches that are written to storage",
        }
    });
    let least = positive(at, "dns_min_refresh_rate", dns_min_refresh_rate, Duration::from_secs(5))?;
    if least < Duration::from_secs(1) {
        return Err(at.error_in("dns_min_refresh_rate", "must be at least 1s"));
    }
    let max_hosts = number(max_hosts).unwrap_or(1024);
    if max_hosts == 0 {
        return Err(at.error_in("max_hosts", "must be greater than 0"));
    }
    let known = preresolve_hostnames.into_iter().enumerate().map(|(index, address)| {
        let at = at.index("preresolve_hostnames", index);
        let (host, port) = host_and_port(&at, address)?;
        Ok((nonempty(&at, "address", host)?, port))
    });
    let refused = resolved_address_filter
        .map(|filter| address_filter(&at.field("resolved_address_filter"), filter))
        .transpose()?;
    let breaker = dns_cache_circuit_breaker.and_then(|breaker| {
        let proto::DnsCacheCircuitBreakers { max_pending_requests } = breaker;
        number(max_pending_requests)
    });
    let timeout = duration(at, "dns_query_timeout", dns_query_timeout)?.unwrap_or(Duration::from_secs(5));
    Ok(Arc::new(DnsCacheConfig {
        name: nonempty(at, "name", name)?,
        dns: Dns {
            refresh_rate: positive(at, "dns_refresh_rate", dns_refresh_rate, Duration::from_secs(60))?,
            jitter: Duration::ZERO,
            failure_refresh: dns_failure_refresh_rate.map(|rate| dns_failures(at, rate)).transpose()?,
            family: dns_family(at, dns_lookup_family)?,
            respect_ttl: true,
            least_ttl: least,
            resolver: typed_dns_resolver_config
                .map(|config| dns_resolver(&at.field("typed_dns_resolver_config"), config))
                .transpose()?,
        },
        host_ttl: positive(at, "host_ttl", host_ttl, Duration::from_secs(300))?,
        max_hosts,
        max_pending_requests: breaker.unwrap_or(1024),
        query_timeout: (!timeout.is_zero()).then_some(timeout),
        refreshes_failures: !disable_dns_refresh_on_failure,
        known: known.collect::<Converted<_>>()?,
        refused,
    }))
}

fn address_filter(at: &At<'_>, message: matcher::AddressMatcher) -> Converted<AddressFilter> {
    fields!(at, message => matcher::AddressMatcher {
        used { ranges, invert_match }
        inert {}
        rejected {}
    });
    let range = |(index, range): (usize, lateen_xds::pb::xds::core::v3::CidrRange)| {
        let at = at.index("ranges", index);
        let length = number(range.prefix_len).unwrap_or(0);
        let net =
            range.address_prefix.parse().ok().and_then(|ip| IpNet::new(ip, u8::try_from(length).ok()?).ok());
        net.ok_or_else(|| at.error(format!("{:?}/{length} is not a range", range.address_prefix)))
    };
    let ranges = ranges.into_iter().enumerate().map(range).collect::<Converted<_>>()?;
    Ok(AddressFilter { ranges, inverted: invert_match })
}

/// A cluster of hosts found in a cache (`envoy.clusters.dynamic_forward_proxy`).
pub(super) struct DynamicCluster {
    pub(super) cache: Arc<DnsCacheConfig>,
    /// TLS may do without the names of hosts.
    pub(super) insecure: bool,
}

impl DynamicCluster {
    pub(super) fn type_url() -> String {
        cluster_proto::ClusterConfig::type_url()
    }
}

/// The cluster in a `cluster_type`.
pub(super) fn dynamic_cluster(at: &At<'_>, any: &Any) -> Converted<DynamicCluster> {
    use cluster_proto::cluster_config::ClusterImplementationSpecifier;
    let message: cluster_proto::ClusterConfig = typed(at, any)?;
    let at = &at.field("typed_config");
    fields!(at, message => cluster_proto::ClusterConfig {
        used { allow_insecure_cluster_options, cluster_implementation_specifier }
        inert {}
        rejected { allow_coalesced_connections = "connections shared by several hosts" }
        variants { sub_clusters_config = "a cluster for each host" }
    });
    match required(at, "dns_cache_config", cluster_implementation_specifier)? {
        ClusterImplementationSpecifier::DnsCacheConfig(config) => Ok(DynamicCluster {
            cache: cache(&at.field("dns_cache_config"), config)?,
            insecure: allow_insecure_cluster_options,
        }),
        ClusterImplementationSpecifier::SubClustersConfig(_) => {
            Err(at.error_in("sub_clusters_config", "not supported: a cluster for each host"))
        }
    }
}

/// The HTTP filter.
pub(super) fn http_dynamic(
    at: &At<'_>,
    message: http_filter::FilterConfig,
) -> Converted<Arc<DnsCacheConfig>> {
    use http_filter::filter_config::ImplementationSpecifier;
    fields!(at, message => http_filter::FilterConfig {
        used { implementation_specifier }
        inert {
            save_upstream_address = "no supported filter reads filter state",
            allow_dynamic_host_from_filter_state = "no supported filter writes filter state",
        }
        rejected {}
        variants { sub_cluster_config = "a cluster for each host" }
    });
    match required(at, "dns_cache_config", implementation_specifier)? {
        ImplementationSpecifier::DnsCacheConfig(config) => cache(&at.field("dns_cache_config"), config),
        ImplementationSpecifier::SubClusterConfig(_) => {
            Err(at.error_in("sub_cluster_config", "not supported: a cluster for each host"))
        }
    }
}

/// What a route says about the HTTP filter.
pub(super) fn route_dynamic(
    at: &At<'_>,
    message: http_filter::PerRouteConfig,
) -> Converted<DynamicHostRewrite> {
    use http_filter::per_route_config::HostRewriteSpecifier;
    fields!(at, message => http_filter::PerRouteConfig {
        used { host_rewrite_specifier }
        inert {}
        rejected {}
    });
    Ok(match host_rewrite_specifier {
        Some(HostRewriteSpecifier::HostRewriteLiteral(host)) if !host.is_empty() => {
            DynamicHostRewrite::Literal(header_value(at, "host_rewrite_literal", &host)?)
        }
        Some(HostRewriteSpecifier::HostRewriteHeader(name)) if !name.is_empty() => {
            DynamicHostRewrite::Header(header_name(at, "host_rewrite_header", &name)?)
        }
        _ => DynamicHostRewrite::None,
    })
}

/// The network filter for names that TLS asks for.
pub(super) fn sni_dynamic(
    at: &At<'_>,
    message: sni_filter::FilterConfig,
) -> Converted<SniDynamicForwardProxy> {
    use sni_filter::filter_config::PortSpecifier;
    fields!(at, message => sni_filter::FilterConfig {
        used { dns_cache_config, port_specifier }
        inert { save_upstream_address = "no supported filter reads filter state" }
        rejected {}
    });
    let port = match port_specifier {
        None => 0,
        Some(PortSpecifier::PortValue(value)) => {
            let port = super::values::port(at, "port_value", value)?;
            if port == 0 {
                return Err(at.error_in("port_value", "must be greater than 0"));
            }
            port
        }
    };
    let config = required(at, "dns_cache_config", dns_cache_config)?;
    Ok(SniDynamicForwardProxy { cache: cache(&at.field("dns_cache_config"), config)?, port })
}
