//! The cluster of a route: by its name, by a header, by weights.
#![allow(deprecated)]

use std::sync::Arc;

use lateen_xds::pb::envoy::config::route::v3 as proto;

use super::http_filters::overrides;
use super::matchers::{header_name, header_value, mutations};
use super::route::Shared;
use super::subset;
use super::values::{Converted, number, required};
use crate::error::At;
use crate::support::fields;
use crate::{ClusterSpecifier, MetadataCriteria, WeightedCluster, WeightedClusters, WeightedTarget};

pub(super) fn cluster_specifier(
    at: &At<'_>,
    specifier: proto::route_action::ClusterSpecifier,
    around: Option<&Arc<MetadataCriteria>>,
    shared: &mut Shared,
) -> Converted<ClusterSpecifier> {
    use proto::route_action::ClusterSpecifier as Specifier;
    match specifier {
        Specifier::Cluster(name) if name.is_empty() => Err(at.error_in("cluster", "must not be empty")),
        Specifier::Cluster(name) => Ok(ClusterSpecifier::Cluster(shared.names.reference(&name))),
        Specifier::ClusterHeader(name) => {
            Ok(ClusterSpecifier::Header(header_name(at, "cluster_header", &name)?))
        }
        Specifier::WeightedClusters(weighted) => {
            weighted_clusters(&at.field("weighted_clusters"), weighted, around, shared)
                .map(|weighted| ClusterSpecifier::Weighted(Box::new(weighted)))
        }
        Specifier::ClusterSpecifierPlugin(_) => {
            Err(at.error_in("cluster_specifier_plugin", "not supported: plugins"))
        }
        Specifier::InlineClusterSpecifierPlugin(_) => {
            Err(at.error_in("inline_cluster_specifier_plugin", "not supported: plugins"))
        }
    }
}

fn weighted_clusters(
    at: &At<'_>,
    message: proto::WeightedCluster,
    around: Option<&Arc<MetadataCriteria>>,
    shared: &mut Shared,
) -> Converted<WeightedClusters> {
    use proto::weighted_cluster::RandomValueSpecifier;
    fields!(at, message => proto::WeightedCluster {
        used { clusters, random_value_specifier }
        inert {
            total_weight = "the sum of the weights counts",
            runtime_key_prefix = "there is no runtime; the weights count",
        }
        rejected {}
        variants { use_hash_policy = "consistent hashing" }
    });
    let clusters = clusters
        .into_iter()
        .enumerate()
        .map(|(index, cluster)| weighted_cluster(&at.index("clusters", index), cluster, around, shared))
        .collect::<Converted<Box<[_]>>>()?;
    let total_weight: u64 = clusters.iter().map(|cluster| u64::from(cluster.weight)).sum();
    if total_weight == 0 {
        return Err(at.error_in("clusters", "the sum of the weights must be greater than 0"));
    }
    if total_weight > u64::from(u32::MAX) {
        return Err(at.error_in("clusters", "the sum of the weights must be at most 4294967295"));
    }
    let random_header = match random_value_specifier {
        None => None,
        Some(RandomValueSpecifier::HeaderName(name)) => Some(header_name(at, "header_name", &name)?),
        Some(RandomValueSpecifier::UseHashPolicy(value)) if !value.value => None,
        Some(RandomValueSpecifier::UseHashPolicy(_)) => {
            return Err(at.error_in("use_hash_policy", "not supported: weighted clusters by hash"));
        }
    };
    Ok(WeightedClusters { clusters, total_weight, random_header })
}

fn weighted_cluster(
    at: &At<'_>,
    message: proto::weighted_cluster::ClusterWeight,
    around: Option<&Arc<MetadataCriteria>>,
    shared: &mut Shared,
) -> Converted<WeightedCluster> {
    use proto::weighted_cluster::ClusterWeight;
    use proto::weighted_cluster::cluster_weight::HostRewriteSpecifier;
    fields!(at, message => ClusterWeight {
        used {
            name, cluster_header, weight, request_headers_to_add, request_headers_to_remove, response_headers_to_add,
            response_headers_to_remove, host_rewrite_specifier, typed_per_filter_config, metadata_match,
        }
        inert {}
        rejected {}
    });
    let cluster = match (name.as_str(), cluster_header.as_str()) {
        ("", "") => return Err(at.error_in("name", "name or cluster_header is required")),
        (name, "") => WeightedTarget::Cluster(shared.names.reference(name)),
        ("", header) => WeightedTarget::Header(header_name(at, "cluster_header", header)?),
        _ => return Err(at.error_in("cluster_header", "must not be set together with name")),
    };
    let host_rewrite = host_rewrite_specifier.map(|rewrite| {
        let HostRewriteSpecifier::HostRewriteLiteral(literal) = rewrite;
        header_value(at, "host_rewrite_literal", &literal)
    });
    Ok(WeightedCluster {
        cluster,
        weight: required(at, "weight", number(weight))?,
        metadata_match: subset::metadata_match(metadata_match, around),
        request_headers: mutations(at, "request", request_headers_to_add, request_headers_to_remove)?,
        response_headers: mutations(at, "response", response_headers_to_add, response_headers_to_remove)?,
        host_rewrite: host_rewrite.transpose()?,
        overrides: overrides(at, typed_per_filter_config, &mut shared.filters, &mut shared.names)?,
    })
}
