//! The TCP proxy.
#![allow(deprecated)]

use std::sync::Arc;
use std::time::Duration;

use lateen_xds::pb::envoy::extensions::filters::network::tcp_proxy::v3 as proto;
use lateen_xds::pb::envoy::r#type::v3::HashPolicy;
use lateen_xds::pb::envoy::r#type::v3::hash_policy::PolicySpecifier;
use proto::tcp_proxy::weighted_cluster::ClusterWeight;
use proto::tcp_proxy::{ClusterSpecifier, TcpAccessLogOptions};

use super::access_log::access_logs;
use super::cluster_names::ClusterNames;
use super::subset;
use super::values::{Converted, backoff, duration, number, required, timeout};
use crate::error::At;
use crate::support::fields;
use crate::{MetadataCriteria, TcpProxy, TcpTarget};

pub(super) fn tcp_proxy(at: &At<'_>, message: proto::TcpProxy) -> Converted<TcpProxy> {
    fields!(at, message => proto::TcpProxy {
        used {
            stat_prefix, idle_timeout, access_log, max_connect_attempts, backoff_options,
            max_downstream_connection_duration, access_log_flush_interval, flush_access_log_on_connected,
            access_log_options, cluster_specifier, hash_policy, metadata_match,
        }
        inert {
            proxy_protocol_tlv_merge_policy = "no effect without proxy_protocol_tlvs",
        }
        rejected {
            on_demand = "clusters discovered on demand",
            downstream_idle_timeout = "use idle_timeout, which watches both sides",
            upstream_idle_timeout = "use idle_timeout, which watches both sides",
            tunneling_config = "tunnelling over HTTP",
            max_downstream_connection_duration_jitter_percentage = "jitter of the longest duration",
            proxy_protocol_tlvs = "the PROXY protocol",
            upstream_connect_mode = "only IMMEDIATE",
            max_early_data_bytes = "only with upstream_connect_mode",
            check_drain_close = "closing idle connections early while draining",
        }
    });
    let options = access_log_options.map(|options| log_options(at, options)).transpose()?;
    let old_interval = duration(at, "access_log_flush_interval", access_log_flush_interval)?;
    let (flush_interval, on_connected) = match options {
        Some(options) => options,
        None => (old_interval, flush_access_log_on_connected),
    };
    let mut names = ClusterNames::default();
    let around = subset::metadata_match(metadata_match, None);
    let specifier = required(at, "cluster_specifier", cluster_specifier)?;
    let targets = targets(at, specifier, around.as_ref(), &mut names)?;
    let total_weight = targets.iter().map(|target| u64::from(target.weight)).sum();
    Ok(TcpProxy {
        stat_prefix: super::values::nonempty(at, "stat_prefix", stat_prefix)?,
        total_weight,
        targets,
        clusters: names.into_list(),
        idle_timeout: timeout(at, "idle_timeout", idle_timeout, Some(Duration::from_secs(3600)))?,
        max_downstream_connection_duration: timeout(
            at,
            "max_downstream_connection_duration",
            max_downstream_connection_duration,
            None,
        )?,
        max_connect_attempts: match number(max_connect_attempts) {
            Some(0) => return Err(at.error_in("max_connect_attempts", "must be at least 1")),
            attempts => attempts.unwrap_or(1),
        },
        backoff: backoff_options
            .map(|options| {
                let at = at.field("backoff_options");
                backoff(&at, options.base_interval, options.max_interval, Duration::from_secs(1))
            })
            .transpose()?,
        access_log: access_logs(at, "access_log", access_log)?,
        access_log_flush_interval: flush_interval,
        flush_access_log_on_connected: on_connected,
        hash_source_ip: hash_source_ip(at, hash_policy)?,
    })
}

fn hash_source_ip(at: &At<'_>, policies: Vec<HashPolicy>) -> Converted<bool> {
    let Some(policy) = policies.first() else { return Ok(false) };
    if policies.len() > 1 {
        return Err(at.error_in("hash_policy", "must not have more than one entry"));
    }
    match &policy.policy_specifier {
        Some(PolicySpecifier::SourceIp(_)) => Ok(true),
        Some(PolicySpecifier::FilterState(_)) => {
            let reason = "not supported: no filter sets a state that could be hashed";
            Err(at.index("hash_policy", 0).error_in("filter_state", reason))
        }
        None => Err(at.index("hash_policy", 0).error_in("policy_specifier", "is required")),
    }
}

fn log_options(at: &At<'_>, options: TcpAccessLogOptions) -> Converted<(Option<Duration>, bool)> {
    let at = at.field("access_log_options");
    fields!(&at, options => TcpAccessLogOptions {
        used { access_log_flush_interval, flush_access_log_on_connected }
        inert {}
        rejected { flush_access_log_on_start = "a log line before the upstream connection" }
    });
    Ok((
        duration(&at, "access_log_flush_interval", access_log_flush_interval)?,
        flush_access_log_on_connected,
    ))
}

fn targets(
    at: &At<'_>,
    specifier: ClusterSpecifier,
    around: Option<&Arc<MetadataCriteria>>,
    names: &mut ClusterNames,
) -> Converted<Vec<TcpTarget>> {
    let clusters = match specifier {
        ClusterSpecifier::Cluster(name) if name.is_empty() => {
            return Err(at.error_in("cluster", "must not be empty"));
        }
        ClusterSpecifier::Cluster(name) => {
            return Ok(vec![TcpTarget {
                cluster: names.reference(&name),
                weight: 1,
                metadata_match: around.cloned(),
            }]);
        }
        ClusterSpecifier::WeightedClusters(weighted) => weighted.clusters,
    };
    let at = at.field("weighted_clusters");
    if clusters.is_empty() {
        return Err(at.error_in("clusters", "must not be empty"));
    }
    let convert = |(index, cluster): (usize, ClusterWeight)| {
        let at = at.index("clusters", index);
        fields!(&at, cluster => ClusterWeight {
            used { name, weight, metadata_match }
            inert {}
            rejected {}
        });
        if name.is_empty() {
            return Err(at.error_in("name", "must not be empty"));
        }
        if weight == 0 {
            return Err(at.error_in("weight", "must be at least 1"));
        }
        let metadata_match = subset::metadata_match(metadata_match, around).or_else(|| around.cloned());
        Ok(TcpTarget { cluster: names.reference(&name), weight, metadata_match })
    };
    clusters.into_iter().enumerate().map(convert).collect()
}
