//! What of external authorization is refused, with its path.

use lateen_xds::pb::envoy::config::common::mutation_rules::v3::HeaderMutationRules;
use lateen_xds::pb::envoy::config::core::v3 as core;
use lateen_xds::pb::envoy::extensions::filters::http::ext_authz::v3 as proto;
use lateen_xds::pb::envoy::r#type::matcher::v3::RegexMatcher;
use lateen_xds::pb::google::protobuf::Duration;

use super::super::cluster_names::ClusterNames;
use super::{ext_authz, route_ext_authz};
use crate::error::At;

fn seconds(seconds: i64) -> Option<Duration> {
    Some(Duration { seconds, nanos: 0 })
}

fn grpc(retry_policy: Option<core::RetryPolicy>) -> core::GrpcService {
    let grpc = core::grpc_service::EnvoyGrpc { cluster_name: "asked".into(), ..Default::default() };
    core::GrpcService {
        retry_policy,
        target_specifier: Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(grpc)),
        ..Default::default()
    }
}

fn http(cluster: &str) -> proto::HttpService {
    let cluster = core::http_uri::HttpUpstreamType::Cluster(cluster.into());
    let server_uri = core::HttpUri { http_upstream_type: Some(cluster), ..Default::default() };
    proto::HttpService { server_uri: Some(server_uri), ..Default::default() }
}

fn filter(services: proto::ext_authz::Services) -> proto::ExtAuthz {
    let transport_api_version = core::ApiVersion::V3 as i32;
    proto::ExtAuthz { services: Some(services), transport_api_version, ..Default::default() }
}

fn route(service: proto::check_settings::ServiceOverride) -> proto::ExtAuthzPerRoute {
    let settings = proto::CheckSettings { service_override: Some(service), ..Default::default() };
    proto::ExtAuthzPerRoute {
        r#override: Some(proto::ext_authz_per_route::Override::CheckSettings(settings)),
    }
}

#[test]
fn retries_and_rules_are_refused_with_their_path() {
    use proto::ext_authz::Services::{GrpcService, HttpService};
    let retries = |change: fn(&mut core::RetryPolicy)| {
        let mut policy = core::RetryPolicy::default();
        change(&mut policy);
        filter(GrpcService(grpc(Some(policy))))
    };
    let rules = |rules| proto::ExtAuthz {
        decoder_header_mutation_rules: Some(rules),
        ..filter(GrpcService(grpc(None)))
    };
    let regex = |regex: &str| Some(RegexMatcher { regex: regex.into(), ..Default::default() });
    let of_http = proto::HttpService {
        retry_policy: Some(core::RetryPolicy { retry_on: "sunday".into(), ..Default::default() }),
        ..http("asked")
    };
    let mut for_xds = grpc(None);
    if let Some(core::grpc_service::TargetSpecifier::EnvoyGrpc(grpc)) = &mut for_xds.target_specifier {
        grpc.retry_policy = Some(core::RetryPolicy::default());
    }
    for (message, path) in [
        (retries(|policy| policy.retry_on = "sunday".into()), "grpc_service.retry_policy.retry_on"),
        (
            retries(|policy| policy.retry_priority = Some(core::retry_policy::RetryPriority::default())),
            "grpc_service.retry_policy.retry_priority",
        ),
        (
            retries(|policy| policy.retry_host_predicate = vec![Default::default()]),
            "grpc_service.retry_policy.retry_host_predicate[0]",
        ),
        (
            retries(|policy| policy.retry_back_off = Some(core::BackoffStrategy::default())),
            "grpc_service.retry_policy.retry_back_off.base_interval",
        ),
        (
            retries(|policy| {
                let backoff = core::BackoffStrategy { base_interval: seconds(2), max_interval: seconds(1) };
                policy.retry_back_off = Some(backoff);
            }),
            "grpc_service.retry_policy.retry_back_off.max_interval",
        ),
        (filter(GrpcService(for_xds)), "grpc_service.envoy_grpc.retry_policy"),
        (filter(HttpService(of_http)), "http_service.retry_policy.retry_on"),
        (
            rules(HeaderMutationRules { allow_expression: regex("("), ..Default::default() }),
            "decoder_header_mutation_rules.allow_expression.regex",
        ),
        (
            rules(HeaderMutationRules { disallow_expression: regex(""), ..Default::default() }),
            "decoder_header_mutation_rules.disallow_expression.regex",
        ),
    ] {
        assert_eq!(ext_authz(&At::ROOT, message).unwrap_err().path, path);
    }
}

#[test]
fn a_routes_service_has_its_cluster_among_the_routes() {
    use proto::check_settings::ServiceOverride::{GrpcService, HttpService};
    let mut names = ClusterNames::default();
    names.reference("first");
    for (service, index) in [(GrpcService(grpc(None)), 1), (HttpService(http("first")), 0)] {
        let own = route_ext_authz(&At::ROOT, route(service), &mut names).unwrap().service.unwrap();
        assert_eq!(own.cluster.index, index);
        assert_eq!(own.service.cluster(), &own.cluster.name);
    }
    for (service, path) in [
        (HttpService(http("")), "check_settings.http_service.server_uri.cluster"),
        (GrpcService(core::GrpcService::default()), "check_settings.grpc_service.target_specifier"),
    ] {
        assert_eq!(route_ext_authz(&At::ROOT, route(service), &mut names).unwrap_err().path, path);
    }
}
