//! Clusters of names by extension, and who is asked for names.

use std::sync::Arc;
use std::time::Duration;

use lateen_xds::pb::envoy::config::cluster::v3::cluster::DnsLookupFamily as OfCluster;
use lateen_xds::pb::envoy::config::core::v3 as core;
use lateen_xds::pb::envoy::extensions::clusters::common::dns::v3::DnsLookupFamily;
use lateen_xds::pb::envoy::extensions::clusters::dns::v3 as proto;
use lateen_xds::pb::envoy::extensions::network::dns_resolver::cares::v3::CaresDnsResolverConfig;

use lateen_xds::pb::google::protobuf::Any;
use prost::Name as _;

use super::values::{
    Converted, backoff, duration, enumeration, number, positive, required, socket_address, typed,
};
use crate::error::At;
use crate::support::fields;
use crate::{Dns, DnsFamily, DnsResolver};

/// A cluster whose names are looked up (`envoy.extensions.clusters.dns.v3.DnsCluster`).
pub(super) struct DnsCluster {
    pub(super) dns: Dns,
    /// All addresses stand for one endpoint, as of LOGICAL_DNS.
    pub(super) logical: bool,
}

impl DnsCluster {
    pub(super) fn type_url() -> String {
        proto::DnsCluster::type_url()
    }
}

/// `dns_lookup_family` of clusters and of caches. Default `AUTO`.
pub(super) fn dns_family(at: &At<'_>, family: i32) -> Converted<DnsFamily> {
    Ok(match enumeration(at, "dns_lookup_family", family)? {
        OfCluster::Auto => DnsFamily::Auto,
        OfCluster::V4Only => DnsFamily::V4Only,
        OfCluster::V6Only => DnsFamily::V6Only,
        OfCluster::V4Preferred => DnsFamily::V4Preferred,
        OfCluster::All => DnsFamily::All,
    })
}

/// The cluster in a `cluster_type`.
pub(super) fn dns_cluster(at: &At<'_>, any: &Any) -> Converted<DnsCluster> {
    let message: proto::DnsCluster = typed(at, any)?;
    let at = &at.field("typed_config");
    fields!(at, message => proto::DnsCluster {
        used {
            dns_refresh_rate, dns_failure_refresh_rate, respect_dns_ttl, dns_jitter, typed_dns_resolver_config,
            dns_lookup_family, all_addresses_in_single_endpoint, dns_min_refresh_rate,
        }
        inert {}
        rejected {}
    });
    let failure_refresh = dns_failure_refresh_rate
        .map(|rate| {
            let at = at.field("dns_failure_refresh_rate");
            let proto::dns_cluster::RefreshRate { base_interval, max_interval } = rate;
            required(&at, "base_interval", base_interval)?;
            backoff(&at, base_interval, max_interval, Duration::from_secs(5))
        })
        .transpose()?;
    let least = duration(at, "dns_min_refresh_rate", dns_min_refresh_rate)?;
    if least.is_some_and(|least| least < Duration::from_secs(1)) {
        return Err(at.error_in("dns_min_refresh_rate", "must be at least 1s"));
    }
    let dns = Dns {
        refresh_rate: positive(at, "dns_refresh_rate", dns_refresh_rate, Duration::from_secs(5))?,
        jitter: duration(at, "dns_jitter", dns_jitter)?.unwrap_or_default(),
        failure_refresh,
        family: match enumeration(at, "dns_lookup_family", dns_lookup_family)? {
            DnsLookupFamily::Unspecified | DnsLookupFamily::Auto => DnsFamily::Auto,
            DnsLookupFamily::V4Only => DnsFamily::V4Only,
            DnsLookupFamily::V6Only => DnsFamily::V6Only,
            DnsLookupFamily::V4Preferred => DnsFamily::V4Preferred,
            DnsLookupFamily::All => DnsFamily::All,
        },
        respect_ttl: respect_dns_ttl,
        least_ttl: least.unwrap_or_default(),
        resolver: typed_dns_resolver_config
            .map(|config| dns_resolver(&at.field("typed_dns_resolver_config"), config))
            .transpose()?,
    };
    Ok(DnsCluster { dns, logical: all_addresses_in_single_endpoint })
}

/// `typed_dns_resolver_config`: the settings of c-ares, whose place the engine's own resolver takes.
pub(super) fn dns_resolver(
    at: &At<'_>,
    extension: core::TypedExtensionConfig,
) -> Converted<Arc<DnsResolver>> {
    let core::TypedExtensionConfig { name: _, typed_config } = extension;
    let any = required(at, "typed_config", typed_config)?;
    let config: CaresDnsResolverConfig = typed(at, &any)?;
    let at = at.field("typed_config");
    fields!(&at, config => CaresDnsResolverConfig {
        used { resolvers, dns_resolver_options, query_timeout_seconds, query_tries }
        inert {
            udp_max_queries = "every query has a socket of its own",
            max_udp_channel_duration = "every query has a socket of its own",
            reinit_channel_on_timeout = "every query has a socket of its own",
        }
        rejected {
            use_resolvers_as_fallback = "servers besides the system's",
            filter_unroutable_families = "leaving out address families without a route",
            rotate_nameservers = "servers in turn",
            edns0_max_payload_size = "EDNS0",
            qcache_max_ttl = "a cache of answers beside the TTL's clock",
        }
    });
    let servers = resolvers
        .into_iter()
        .enumerate()
        .map(|(index, address)| socket_address(&at.index("resolvers", index), Some(address)))
        .collect::<Converted<Vec<_>>>()?;
    let options = dns_resolver_options.unwrap_or_default();
    fields!(&at, options => core::DnsResolverOptions {
        used { use_tcp_for_dns_lookups, no_default_search_domain }
        inert {}
        rejected {}
    });
    let seconds = query_timeout_seconds.map(|seconds| seconds.value);
    let tries = number(query_tries);
    for (field, value) in [("query_timeout_seconds", seconds), ("query_tries", tries.map(u64::from))] {
        if value == Some(0) {
            return Err(at.error_in(field, "must be at least 1"));
        }
    }
    Ok(Arc::new(DnsResolver {
        servers,
        tcp: use_tcp_for_dns_lookups,
        no_search: no_default_search_domain,
        timeout: seconds.map(Duration::from_secs),
        tries,
    }))
}
