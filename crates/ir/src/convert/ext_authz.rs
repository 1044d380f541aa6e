//! External authorization.
#![allow(deprecated)]

use http::{HeaderName, HeaderValue, StatusCode};
use lateen_xds::pb::envoy::config::core::v3 as core;
use lateen_xds::pb::envoy::extensions::filters::http::ext_authz::v3 as proto;
use lateen_xds::pb::envoy::extensions::filters::network::ext_authz::v3 as network;
use lateen_xds::pb::envoy::r#type::matcher::v3 as matcher;
use lateen_xds::pb::google::protobuf::Duration as PbDuration;
use std::time::Duration;

use super::cluster_names::ClusterNames;
use super::config_source::api_version;
use super::header_mutation_rules::header_mutation_rules;
use super::matchers::{header_name, header_value, string_matcher};
use super::metadata::metadata_matcher;
use super::retry::call_retry_policy;
use super::values::{Converted, bool_or, fraction, nonempty, number, required, timeout};
use crate::error::At;
use crate::support::fields;
use crate::{
    AuthzBody, AuthzService, ExtAuthz, ExtAuthzRoute, GrpcService, HttpAuthz, NameMatchers, NetworkExtAuthz,
    RouteAuthzService, TextFormat,
};

/// Of calls that do not say.
const DEFAULT_TIMEOUT: Duration = Duration::from_millis(200);

/// What HTTP servers are always told.
const ALWAYS_SENT: [&str; 4] = ["authorization", ":method", ":path", ":authority"];

pub(super) fn ext_authz(at: &At<'_>, message: proto::ExtAuthz) -> Converted<ExtAuthz> {
    use proto::ext_authz::Services;
    fields!(at, message => proto::ExtAuthz {
        used {
            services, transport_api_version, failure_mode_allow, failure_mode_allow_header_add, with_request_body,
            clear_route_cache, status_on_error, validate_mutations, metadata_context_namespaces, filter_enabled,
            filter_enabled_metadata, deny_at_disable, include_peer_certificate, stat_prefix, allowed_headers,
            disallowed_headers, include_tls_session, charge_cluster_response_stats, encode_raw_headers,
            enable_dynamic_metadata_ingestion, max_denied_response_body_bytes, decoder_header_mutation_rules,
            shadow_mode,
        }
        inert {
            typed_metadata_context_namespaces = "no filter here notes typed metadata",
            route_typed_metadata_context_namespaces = "routes' typed metadata has no reader here",
            emit_client_span = "there is no tracing",
        }
        rejected {
            route_metadata_context_namespaces = "metadata of routes",
            bootstrap_metadata_labels_key = "labels from the node's metadata",
            filter_metadata = "filter state for logs",
            emit_filter_state_stats = "filter state for logs",
            enforce_response_header_limits = "limits of the answer's headers",
        }
    });
    api_version(at, "transport_api_version", transport_api_version)?;
    let mut body = with_request_body
        .map(|settings| buffer_settings(&at.field("with_request_body"), settings))
        .transpose()?;
    let mut allowed_headers =
        allowed_headers.map(|list| names(&at.field("allowed_headers"), list)).transpose()?;
    let service = match required(at, "services", services)? {
        Services::GrpcService(service) => {
            AuthzService::Grpc(grpc_service(&at.field("grpc_service"), service)?)
        }
        Services::HttpService(service) => {
            let at = at.field("http_service");
            let (service, of_request) = http_service(&at, service)?;
            if allowed_headers.is_some() && of_request.is_some() {
                return Err(at.error("allowed_headers is set twice"));
            }
            let mut list = allowed_headers.or(of_request).unwrap_or_default();
            list.0.extend(
                ALWAYS_SENT.map(|name| crate::StringMatcher::Exact(crate::Text::new(name.to_owned(), false))),
            );
            allowed_headers = Some(list);
            if let Some(body) = &mut body {
                body.as_bytes = true;
            }
            AuthzService::Http(Box::new(service))
        }
    };
    let enabled = filter_enabled
        .map(|enabled| {
            let at = at.field("filter_enabled");
            // There is no runtime; the default counts.
            fraction(&at.field("default_value"), required(&at, "default_value", enabled.default_value)?)
        })
        .transpose()?;
    Ok(ExtAuthz {
        service,
        failure_mode_allow,
        failure_mode_allow_header_add,
        body,
        clear_route_cache,
        // What Envoy does not know becomes its default as well.
        status_on_error: status_on_error
            .and_then(|status| u16::try_from(status.code).ok())
            .and_then(|status| StatusCode::from_u16(status).ok())
            .unwrap_or(StatusCode::FORBIDDEN),
        validate_mutations,
        metadata_namespaces: metadata_context_namespaces.into_iter().map(Into::into).collect(),
        enabled,
        enabled_metadata: filter_enabled_metadata
            .map(|matcher| metadata_matcher(&at.field("filter_enabled_metadata"), matcher))
            .transpose()?,
        deny_at_disable: deny_at_disable.and_then(|flag| flag.default_value).is_some_and(|value| value.value),
        include_peer_certificate,
        include_tls_session,
        stat_prefix: dotted(stat_prefix),
        allowed_headers,
        disallowed_headers: disallowed_headers
            .map(|list| names(&at.field("disallowed_headers"), list))
            .transpose()?,
        encode_raw_headers,
        charge_cluster_response_stats: bool_or(charge_cluster_response_stats, true),
        ingests_metadata: bool_or(enable_dynamic_metadata_ingestion, true),
        longest_denial: (max_denied_response_body_bytes > 0)
            .then_some(max_denied_response_body_bytes as usize),
        mutation_rules: decoder_header_mutation_rules
            .map(|rules| header_mutation_rules(&at.field("decoder_header_mutation_rules"), rules))
            .transpose()?,
        shadow: shadow_mode,
    })
}

fn dotted(prefix: String) -> Box<str> {
    if prefix.is_empty() { prefix.into() } else { format!("{prefix}.").into() }
}

fn names(at: &At<'_>, list: matcher::ListStringMatcher) -> Converted<NameMatchers> {
    let patterns = list.patterns.into_iter().enumerate();
    let convert = |(index, pattern)| string_matcher(&at.index("patterns", index), pattern);
    patterns.map(convert).collect::<Converted<_>>().map(NameMatchers)
}

fn buffer_settings(at: &At<'_>, message: proto::BufferSettings) -> Converted<AuthzBody> {
    fields!(at, message => proto::BufferSettings {
        used { max_request_bytes, allow_partial_message, pack_as_bytes }
        inert {}
        rejected {}
    });
    if max_request_bytes == 0 {
        return Err(at.error_in("max_request_bytes", "must be greater than 0"));
    }
    Ok(AuthzBody {
        most: max_request_bytes as usize,
        partial: allow_partial_message,
        as_bytes: pack_as_bytes,
    })
}

fn call_timeout(at: &At<'_>, value: Option<PbDuration>) -> Converted<Option<Duration>> {
    timeout(at, "timeout", value, Some(DEFAULT_TIMEOUT))
}

/// A service of gRPC. What the table of fields says of these messages is for the bootstrap's stream.
fn grpc_service(at: &At<'_>, service: core::GrpcService) -> Converted<GrpcService> {
    use core::grpc_service::TargetSpecifier;
    let core::GrpcService { timeout, initial_metadata, retry_policy, target_specifier } = service;
    let grpc = match required(at, "target_specifier", target_specifier)? {
        TargetSpecifier::EnvoyGrpc(grpc) => grpc,
        TargetSpecifier::GoogleGrpc(_) => {
            return Err(at.error_in("google_grpc", "not supported: use envoy_grpc with a cluster"));
        }
    };
    let at_grpc = at.field("envoy_grpc");
    let core::grpc_service::EnvoyGrpc {
        cluster_name,
        authority,
        retry_policy: own_retry_policy,
        max_receive_message_length,
        skip_envoy_headers,
    } = grpc;
    at_grpc.refuse("retry_policy", &own_retry_policy, "it is for xDS; use that of grpc_service")?;
    let cluster = nonempty(&at_grpc, "cluster_name", cluster_name)?;
    let authority = if authority.is_empty() { cluster.to_string() } else { authority };
    let added = initial_metadata.into_iter().enumerate();
    Ok(GrpcService {
        authority: header_value(&at_grpc, "authority", &authority)?,
        cluster,
        timeout: call_timeout(at, timeout)?,
        initial_metadata: added
            .map(|(index, header)| header_to_add(&at.index("initial_metadata", index), header))
            .collect::<Converted<_>>()?,
        most_received: number(max_receive_message_length).map(|most| most as usize),
        skip_envoy_headers,
        retry_policy: call_retry_policy(at, retry_policy)?,
    })
}

fn header_to_add(at: &At<'_>, header: core::HeaderValue) -> Converted<(HeaderName, TextFormat)> {
    at.refuse("raw_value", &header.raw_value, "values as raw bytes")?;
    let value =
        TextFormat::parse(&header.value, true).map_err(|error| at.error_in("value", error.to_string()))?;
    if let Some(literal) = value.as_literal() {
        let _: HeaderValue = header_value(at, "value", literal)?;
    }
    Ok((header_name(at, "key", &header.key)?, value))
}

/// The service, and which headers it is sent.
fn http_service(at: &At<'_>, message: proto::HttpService) -> Converted<(HttpAuthz, Option<NameMatchers>)> {
    use core::http_uri::HttpUpstreamType;
    fields!(at, message => proto::HttpService {
        used {
            server_uri, path_prefix, path_override, authorization_request, authorization_response, retry_policy,
        }
        inert {}
        rejected {}
    });
    let at_uri = at.field("server_uri");
    // The URI itself goes unused, in Envoy too.
    let core::HttpUri { uri: _, timeout, http_upstream_type } = required(at, "server_uri", server_uri)?;
    let HttpUpstreamType::Cluster(cluster) = required(&at_uri, "cluster", http_upstream_type)?;
    for (field, path) in [("path_prefix", &path_prefix), ("path_override", &path_override)] {
        if !path.is_empty() && !path.starts_with('/') {
            return Err(at.error_in(field, "must begin with \"/\""));
        }
    }
    if !path_prefix.is_empty() && !path_override.is_empty() {
        return Err(at.error("only one of path_prefix and path_override may be set"));
    }
    let (allowed, headers_to_add) = authorization_request
        .map(|request| authorization_request_headers(&at.field("authorization_request"), request))
        .transpose()?
        .unwrap_or_default();
    let mut service = HttpAuthz {
        cluster: nonempty(&at_uri, "cluster", cluster)?,
        timeout: call_timeout(&at_uri, timeout)?,
        path_prefix: path_prefix.into(),
        path_override: path_override.into(),
        headers_to_add,
        upstream_headers: NameMatchers::default(),
        upstream_headers_to_append: NameMatchers::default(),
        client_headers: None,
        client_headers_on_success: NameMatchers::default(),
        metadata_headers: NameMatchers::default(),
        retry_policy: call_retry_policy(at, retry_policy)?,
    };
    if let Some(response) = authorization_response {
        authorization_response_headers(&at.field("authorization_response"), response, &mut service)?;
    }
    Ok((service, allowed))
}

type RequestHeaders = (Option<NameMatchers>, Vec<(HeaderName, TextFormat)>);

fn authorization_request_headers(
    at: &At<'_>,
    message: proto::AuthorizationRequest,
) -> Converted<RequestHeaders> {
    fields!(at, message => proto::AuthorizationRequest {
        used { allowed_headers, headers_to_add }
        inert {}
        rejected {}
    });
    let allowed = allowed_headers.map(|list| names(&at.field("allowed_headers"), list)).transpose()?;
    let added = headers_to_add.into_iter().enumerate();
    let added = added
        .map(|(index, header)| header_to_add(&at.index("headers_to_add", index), header))
        .collect::<Converted<_>>()?;
    Ok((allowed, added))
}

fn authorization_response_headers(
    at: &At<'_>,
    message: proto::AuthorizationResponse,
    service: &mut HttpAuthz,
) -> Converted<()> {
    fields!(at, message => proto::AuthorizationResponse {
        used {
            allowed_upstream_headers, allowed_upstream_headers_to_append, allowed_client_headers,
            allowed_client_headers_on_success, dynamic_metadata_from_headers,
        }
        inert {}
        rejected {}
    });
    let list = |field: &'static str, list: Option<matcher::ListStringMatcher>| {
        list.map(|list| names(&at.field(field), list)).transpose().map(Option::unwrap_or_default)
    };
    service.upstream_headers = list("allowed_upstream_headers", allowed_upstream_headers)?;
    service.upstream_headers_to_append =
        list("allowed_upstream_headers_to_append", allowed_upstream_headers_to_append)?;
    let client = list("allowed_client_headers", allowed_client_headers)?;
    service.client_headers = (!client.0.is_empty()).then_some(client);
    service.client_headers_on_success =
        list("allowed_client_headers_on_success", allowed_client_headers_on_success)?;
    service.metadata_headers = list("dynamic_metadata_from_headers", dynamic_metadata_from_headers)?;
    Ok(())
}

pub(super) fn route_ext_authz(
    at: &At<'_>,
    message: proto::ExtAuthzPerRoute,
    names: &mut ClusterNames,
) -> Converted<ExtAuthzRoute> {
    use proto::check_settings::ServiceOverride;
    use proto::ext_authz_per_route::Override;
    let settings = match required(at, "override", message.r#override)? {
        Override::Disabled(disabled) => return Ok(ExtAuthzRoute { disabled, ..ExtAuthzRoute::default() }),
        Override::CheckSettings(settings) => settings,
    };
    let at = at.field("check_settings");
    fields!(&at, settings => proto::CheckSettings {
        used { context_extensions, disable_request_body_buffering, with_request_body, service_override }
        inert { emit_client_span = "there is no tracing" }
        rejected {}
    });
    let service = match service_override {
        None => None,
        Some(ServiceOverride::GrpcService(service)) => {
            Some(AuthzService::Grpc(grpc_service(&at.field("grpc_service"), service)?))
        }
        Some(ServiceOverride::HttpService(service)) => {
            let (service, _) = http_service(&at.field("http_service"), service)?;
            Some(AuthzService::Http(Box::new(service)))
        }
    };
    if disable_request_body_buffering && with_request_body.is_some() {
        return Err(at.error("only one of disable_request_body_buffering and with_request_body may be set"));
    }
    Ok(ExtAuthzRoute {
        disabled: false,
        context_extensions: context_extensions.into_iter().collect(),
        without_body: disable_request_body_buffering,
        body: with_request_body
            .map(|settings| buffer_settings(&at.field("with_request_body"), settings))
            .transpose()?,
        service: service
            .map(|service| RouteAuthzService { cluster: names.reference(service.cluster()), service }),
    })
}

pub(super) fn network_ext_authz(at: &At<'_>, message: network::ExtAuthz) -> Converted<NetworkExtAuthz> {
    fields!(at, message => network::ExtAuthz {
        used {
            stat_prefix, grpc_service, failure_mode_allow, include_peer_certificate, transport_api_version,
            filter_enabled_metadata, include_tls_session, metadata_context_namespaces, shadow_mode,
        }
        inert { typed_metadata_context_namespaces = "no filter here notes typed metadata" }
        rejected {
            bootstrap_metadata_labels_key = "labels from the node's metadata",
            send_tls_alert_on_denial = "TLS alerts of denials",
        }
    });
    api_version(at, "transport_api_version", transport_api_version)?;
    let service = required(at, "grpc_service", grpc_service)?;
    Ok(NetworkExtAuthz {
        stat_prefix: (*nonempty(at, "stat_prefix", stat_prefix)?).into(),
        service: self::grpc_service(&at.field("grpc_service"), service)?,
        failure_mode_allow,
        include_peer_certificate,
        include_tls_session,
        enabled_metadata: filter_enabled_metadata
            .map(|matcher| metadata_matcher(&at.field("filter_enabled_metadata"), matcher))
            .transpose()?,
        metadata_namespaces: metadata_context_namespaces.into_iter().map(Into::into).collect(),
        shadow: shadow_mode,
    })
}

#[cfg(test)]
#[path = "ext_authz_tests.rs"]
mod tests;
