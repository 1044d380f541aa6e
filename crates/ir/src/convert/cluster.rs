//! Clusters.
#![allow(deprecated)]

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use lateen_xds::pb::envoy::config::cluster::v3 as proto;
use lateen_xds::pb::envoy::config::core::v3 as core;
use lateen_xds::pb::google::protobuf::Any;
use proto::cluster as nested;

use super::balancing::{circuit_breakers, common_lb, outlier_detection};
use super::config_source::{Source, config_source};
use super::dns::{DnsCluster, dns_cluster, dns_family, dns_resolver};
use super::dynamic_forward_proxy::{DynamicCluster, dynamic_cluster};
use super::endpoint::{Names, load_assignment};
use super::lb_policy::{self, Chosen};
use super::transport_socket;
use super::upstream_http::{self, Deprecated};
use super::values::{
    Converted, bind_config, bool_or, duration, enumeration, metadata, nonempty, number, optional, positive,
    required, tcp_keepalive,
};
use crate::error::At;
use crate::support::fields;
use crate::{
    Backoff, Cluster, ClusterLoadAssignment, Discovery, Dns, HealthProbe, LbPolicy, TcpKeepalive,
    TransportMatch, UpstreamHttp, UpstreamProtocol,
};

const BUFFER_LIMIT: u32 = 1024 * 1024;

#[allow(clippy::too_many_lines)] // One entry for each field of the message; there is nothing to split.
pub(super) fn cluster(at: &At<'_>, message: proto::Cluster) -> Converted<Cluster> {
    fields!(at, message => proto::Cluster {
        used {
            name, alt_stat_name, eds_cluster_config, connect_timeout, per_connection_buffer_limit_bytes, lb_policy,
            load_assignment, max_requests_per_connection, circuit_breakers, common_http_protocol_options,
            http_protocol_options, http2_protocol_options, typed_extension_protocol_options, dns_refresh_rate,
            dns_jitter, dns_failure_refresh_rate, dns_lookup_family, respect_dns_ttl, typed_dns_resolver_config, wait_for_warm_on_init,
            outlier_detection, cleanup_interval, upstream_bind_config, upstream_http_protocol_options, common_lb_config, transport_socket, transport_socket_matches, metadata,
            protocol_selection, upstream_connection_options, connection_pool_per_downstream_connection, cluster_discovery_type, lb_config,
            load_balancing_policy, lb_subset_config, health_checks, ignore_health_on_host_removal, close_connections_on_host_health_failure,
        }
        inert {
        }
        rejected {
            transport_socket_matcher = "transport sockets by endpoint",
            stats_matcher = "matchers for stats",
            per_connection_buffer_high_watermark_timeout = "closing connections with full buffers",
            dns_resolvers = "use typed_dns_resolver_config",
            use_tcp_for_dns_lookups = "use typed_dns_resolver_config",
            dns_resolution_config = "use typed_dns_resolver_config",
            filters = "network filters towards upstream",
            lrs_server = "load reports",
            lrs_report_endpoint_metrics = "load reports",
            track_timeout_budgets = "stats of time-out budgets",
            upstream_config = "connection pools by extension",
            track_cluster_stats = "more stats",
            preconnect_policy = "connecting ahead",
            queuing_policies = "queues by extension",
        }
        variants { cluster_type = "clusters by extension, but for DnsCluster and dynamic_forward_proxy" }
    });
    let transport = transport_socket
        .map(|socket| transport_socket::upstream(&at.field("transport_socket"), socket))
        .transpose()?
        .unwrap_or_default();
    let name = nonempty(at, "name", name)?;
    let dns = Dns {
        refresh_rate: positive(at, "dns_refresh_rate", dns_refresh_rate, Duration::from_secs(5))?,
        jitter: duration(at, "dns_jitter", dns_jitter)?.unwrap_or_default(),
        failure_refresh: dns_failure_refresh_rate.map(|rate| dns_failures(at, rate)).transpose()?,
        family: dns_family(at, dns_lookup_family)?,
        respect_ttl: respect_dns_ttl,
        least_ttl: Duration::ZERO,
        resolver: typed_dns_resolver_config
            .map(|config| dns_resolver(&at.field("typed_dns_resolver_config"), config))
            .transpose()?,
    };
    let mut dynamic = None;
    let (kind, dns) = match discovery_type(at, cluster_discovery_type)? {
        Kind::Builtin(kind) => (kind, dns),
        // It brings its own load balancer, as the other one does.
        Kind::Dynamic(cluster) => {
            dynamic = Some(cluster);
            (nested::DiscoveryType::OriginalDst, dns)
        }
        Kind::Dns(extension) => (
            if extension.logical {
                nested::DiscoveryType::LogicalDns
            } else {
                nested::DiscoveryType::StrictDns
            },
            extension.dns,
        ),
    };
    let common = common_lb(&at.field("common_lb_config"), common_lb_config)?;
    let chosen = match load_balancing_policy {
        Some(policy) => {
            if lb_subset_config.is_some() {
                let reason = "load_balancing_policy cannot be combined with lb_subset_config";
                return Err(at.error_in("lb_subset_config", reason));
            }
            if common.locality.is_some() || common.hashing.is_some() {
                let reason = "locality_weighted_lb_config and consistent_hashing_lb_config must not be set together with load_balancing_policy";
                return Err(at.error_in("common_lb_config", reason));
            }
            lb_policy::extension(&at.field("load_balancing_policy"), policy)?
        }
        None => {
            let hashing = common.hashing.unwrap_or_default();
            let (policy, original_dst) = lb_policy::lb_policy(at, lb_policy, lb_config, hashing)?;
            Chosen { policy, original_dst, locality: common.locality.unwrap_or_default() }
        }
    };
    if (kind == nested::DiscoveryType::OriginalDst) != (chosen.policy == LbPolicy::ClusterProvided) {
        return Err(at.error_in(
            "lb_policy",
            "CLUSTER_PROVIDED goes with the cluster types ORIGINAL_DST and dynamic_forward_proxy, and only with them",
        ));
    }
    // As in Envoy, other clusters' endpoints need not have names.
    if chosen.policy.hashing().is_some_and(|hashing| hashing.use_hostname)
        && kind != nested::DiscoveryType::StrictDns
    {
        let reason = "use_hostname_for_hashing needs a STRICT_DNS cluster";
        return Err(at.error_in("common_lb_config.consistent_hashing_lb_config", reason));
    }
    let subsets = lb_subset_config
        .map(|config| super::subset::subsets(&at.field("lb_subset_config"), config))
        .transpose()?
        .flatten();
    if let Some(subsets) = &subsets {
        let at = at.field("lb_subset_config");
        if chosen.policy == LbPolicy::ClusterProvided {
            return Err(
                at.error("cluster: LB policy CLUSTER_PROVIDED cannot be combined with lb_subset_config")
            );
        }
        if subsets.locality_weight_aware && chosen.locality != crate::LocalityMode::Weighted {
            let reason = "Locality weight aware subset LB requires that a locality_weighted_lb_config be set";
            return Err(at.error_in("locality_weight_aware", format!("{reason} in {name}")));
        }
    }
    let discovery = match kind {
        nested::DiscoveryType::OriginalDst => {
            if load_assignment.is_some() {
                return Err(at.error_in("load_assignment", "a cluster of this type has no endpoints"));
            }
            match (&dynamic, chosen.original_dst) {
                (Some(_), Some(_)) => {
                    return Err(at.error_in("original_dst_lb_config", "belongs to another cluster type"));
                }
                (Some(DynamicCluster { cache, .. }), None) => {
                    Discovery::DynamicForwardProxy { cache: cache.clone() }
                }
                (None, Some(given)) => given,
                (None, None) => Discovery::OriginalDst { header: None, port_override: None },
            }
        }
        nested::DiscoveryType::Eds => eds(at, eds_cluster_config, &name)?,
        nested::DiscoveryType::Static => {
            Discovery::Static(Arc::new(assignment(at, load_assignment, &name, Names::Refused)?))
        }
        nested::DiscoveryType::StrictDns => {
            let assignment = assignment(at, load_assignment, &name, Names::Allowed)?;
            Discovery::StrictDns { assignment: Arc::new(assignment), dns: Box::new(dns) }
        }
        nested::DiscoveryType::LogicalDns => {
            let assignment = assignment(at, load_assignment, &name, Names::Allowed)?;
            let endpoints: usize =
                assignment.priorities.iter().flatten().map(|locality| locality.endpoints.len()).sum();
            if endpoints != 1 {
                return Err(
                    at.error_in("load_assignment", "a LOGICAL_DNS cluster must have exactly one endpoint")
                );
            }
            Discovery::LogicalDns { assignment: Arc::new(assignment), dns: Box::new(dns) }
        }
    };
    let health_check = super::health_check::health_checks(at, health_checks)?;
    if health_check.is_some() {
        if kind == nested::DiscoveryType::OriginalDst {
            let reason = "not supported for hosts that are not known before they are asked for";
            return Err(at.error_in("health_checks", reason));
        }
        if kind != nested::DiscoveryType::Static && !ignore_health_on_host_removal {
            let reason =
                "must be true with health_checks: removed endpoints are not kept until a check fails";
            return Err(at.error_in("ignore_health_on_host_removal", reason));
        }
        if close_connections_on_host_health_failure {
            let reason = "not supported: closing connections of unhealthy endpoints";
            return Err(at.error_in("close_connections_on_host_health_failure", reason));
        }
        if common.ignores_new_hosts {
            let reason = "not supported: leaving new endpoints out of thresholds";
            return Err(at.error_in("common_lb_config.ignore_new_hosts_until_first_hc", reason));
        }
    }
    // Hosts that callers name are called by these names, unless the configuration insists.
    let named =
        core::UpstreamHttpProtocolOptions { auto_sni: true, auto_san_validation: true, ..Default::default() };
    let by_default = dynamic.is_some() && typed_extension_protocol_options.is_empty();
    let deprecated = Deprecated {
        common: common_http_protocol_options,
        http1: http_protocol_options,
        http2: http2_protocol_options,
        downstream: enumeration::<nested::ClusterProtocolSelection>(
            at,
            "protocol_selection",
            protocol_selection,
        )? == nested::ClusterProtocolSelection::UseDownstreamProtocol,
        max_requests_per_connection: number(max_requests_per_connection),
        names: upstream_http_protocol_options.or(by_default.then_some(named)),
    };
    let http = upstream_http::upstream_http(
        at,
        protocol_options(at, typed_extension_protocol_options)?,
        deprecated,
    )?;
    let asks_grpc = health_check.as_ref().is_some_and(|check| matches!(check.probe, HealthProbe::Grpc(_)));
    if asks_grpc && http.protocol != UpstreamProtocol::Http2 {
        let reason = format!("{name} cluster must support HTTP/2 for gRPC healthchecking");
        return Err(at.index("health_checks", 0).error_in("grpc_health_check", reason));
    }
    if let Some(dynamic) = &dynamic {
        check_names(at, dynamic, &http)?;
    }
    let (normal, high, max_connections_per_host) = match circuit_breakers {
        None => Default::default(),
        Some(breakers) => self::circuit_breakers(&at.field("circuit_breakers"), breakers)?,
    };
    Ok(Cluster {
        name,
        alt_stat_name: optional(alt_stat_name),
        discovery,
        lb_policy: chosen.policy,
        subsets: subsets.map(std::sync::Arc::new),
        healthy_panic_threshold: common.healthy_panic_threshold,
        locality: chosen.locality,
        connect_timeout: positive(at, "connect_timeout", connect_timeout, Duration::from_secs(5))?,
        per_connection_buffer_limit_bytes: number(per_connection_buffer_limit_bytes).unwrap_or(BUFFER_LIMIT),
        circuit_breakers: normal,
        high_priority_circuit_breakers: high,
        max_connections_per_host,
        http,
        transport,
        transport_matches: transport_matches(at, transport_socket_matches)?,
        bind: upstream_bind_config
            .map(|bind| bind_config(&at.field("upstream_bind_config"), bind).map(Arc::new))
            .transpose()?,
        tcp_keepalive: upstream_connection_options
            .map(|options| connection_options(&at.field("upstream_connection_options"), options))
            .transpose()?
            .flatten(),
        health_check: health_check.map(Box::new),
        outlier_detection: outlier_detection
            .map(|detection| self::outlier_detection(&at.field("outlier_detection"), detection).map(Box::new))
            .transpose()?,
        connection_pool_per_downstream_connection,
        wait_for_warm_on_init: bool_or(wait_for_warm_on_init, true),
        cleanup_interval: positive(at, "cleanup_interval", cleanup_interval, Duration::from_secs(5))?,
        metadata: self::metadata(metadata),
    })
}

fn check_names(at: &At<'_>, dynamic: &DynamicCluster, http: &UpstreamHttp) -> Converted<()> {
    let names = &http.names;
    if !(dynamic.insecure || names.auto_sni && names.auto_san_validation) {
        let reason = "dynamic_forward_proxy cluster must have auto_sni and auto_san_validation true unless allow_insecure_cluster_options is set";
        return Err(at.error_in("upstream_http_protocol_options", reason));
    }
    Ok(())
}

fn transport_matches(
    at: &At<'_>,
    matches: Vec<nested::TransportSocketMatch>,
) -> Converted<Vec<TransportMatch>> {
    let convert = |(index, one): (usize, nested::TransportSocketMatch)| {
        let at = at.index("transport_socket_matches", index);
        fields!(&at, one => nested::TransportSocketMatch {
            used { name, r#match, transport_socket }
            inert {}
            rejected {}
        });
        let criteria = r#match.map_or(serde_json::Value::Null, super::values::struct_value);
        let socket = required(&at, "transport_socket", transport_socket)?;
        Ok(TransportMatch {
            name: nonempty(&at, "name", name)?,
            criteria: Arc::new(criteria),
            transport: transport_socket::upstream(&at.field("transport_socket"), socket)?,
        })
    };
    matches.into_iter().enumerate().map(convert).collect()
}

enum Kind {
    Builtin(nested::DiscoveryType),
    Dns(DnsCluster),
    Dynamic(DynamicCluster),
}

fn discovery_type(at: &At<'_>, kind: Option<nested::ClusterDiscoveryType>) -> Converted<Kind> {
    match kind {
        None => Ok(Kind::Builtin(nested::DiscoveryType::Static)),
        Some(nested::ClusterDiscoveryType::Type(kind)) => enumeration(at, "type", kind).map(Kind::Builtin),
        Some(nested::ClusterDiscoveryType::ClusterType(custom)) => {
            let at = at.field("cluster_type");
            match custom.typed_config {
                Some(any) if any.type_url == DnsCluster::type_url() => dns_cluster(&at, &any).map(Kind::Dns),
                Some(any) if any.type_url == DynamicCluster::type_url() => {
                    dynamic_cluster(&at, &any).map(Kind::Dynamic)
                }
                _ => Err(at.error(format!("{:?} is not supported: clusters by extension", custom.name))),
            }
        }
    }
}

fn assignment(
    at: &At<'_>,
    assignment: Option<lateen_xds::pb::envoy::config::endpoint::v3::ClusterLoadAssignment>,
    cluster: &Arc<str>,
    names: Names,
) -> Converted<ClusterLoadAssignment> {
    let message = assignment.unwrap_or_default();
    let mut assignment = load_assignment(&at.field("load_assignment"), message, names)?;
    if assignment.cluster_name.is_empty() {
        assignment.cluster_name = cluster.clone();
    }
    Ok(assignment)
}

fn eds(at: &At<'_>, config: Option<nested::EdsClusterConfig>, cluster: &Arc<str>) -> Converted<Discovery> {
    let config = required(at, "eds_cluster_config", config)?;
    let at = at.field("eds_cluster_config");
    fields!(&at, config => nested::EdsClusterConfig {
        used { eds_config, service_name }
        inert {}
        rejected {}
    });
    let at_source = at.field("eds_config");
    let (source, initial_fetch_timeout) =
        config_source(&at_source, required(&at, "eds_config", eds_config)?)?;
    if source != Source::Ads {
        return Err(at_source.error("not supported: endpoints from elsewhere than ADS"));
    }
    let service_name = optional(service_name).unwrap_or_else(|| cluster.clone());
    Ok(Discovery::Eds { service_name, initial_fetch_timeout })
}

pub(super) fn dns_failures(at: &At<'_>, rate: nested::RefreshRate) -> Converted<Backoff> {
    let at = at.field("dns_failure_refresh_rate");
    let nested::RefreshRate { base_interval, max_interval } = rate;
    if base_interval.is_none() {
        return Err(at.error_in("base_interval", "is required"));
    }
    super::values::backoff(&at, base_interval, max_interval, Duration::from_secs(5))
}

fn connection_options(
    at: &At<'_>,
    options: proto::UpstreamConnectionOptions,
) -> Converted<Option<TcpKeepalive>> {
    fields!(at, options => proto::UpstreamConnectionOptions {
        used { tcp_keepalive }
        inert {}
        rejected {
            set_local_interface_name_on_upstream_connections = "names of network interfaces",
            happy_eyeballs_config = "an order of its own for additional addresses",
        }
    });
    Ok(tcp_keepalive.map(self::tcp_keepalive))
}

/// The one set of protocol options that a cluster may have.
fn protocol_options(at: &At<'_>, options: HashMap<String, Any>) -> Converted<Option<Any>> {
    let mut found = None;
    for (name, any) in options {
        if name != "envoy.extensions.upstreams.http.v3.HttpProtocolOptions" {
            return Err(at.key("typed_extension_protocol_options", &name).error("not supported"));
        }
        found = Some(any);
    }
    Ok(found)
}
