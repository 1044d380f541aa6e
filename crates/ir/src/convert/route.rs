//! Route configurations, virtual hosts, routes and their matches.
#![allow(deprecated)]

use std::sync::Arc;

use http::StatusCode;
use lateen_xds::pb::envoy::config::route::v3 as proto;
use lateen_xds::pb::google::protobuf as google;

use super::cluster_names::ClusterNames;
use super::cors::legacy_policy;
use super::hash_policy::hash_policies;
use super::http_filters::{FilterNames, overrides};
use super::internal_redirect::internal_redirect;
use super::matchers::{
    full_regex, header_matchers, header_name, header_names, header_value, mutations, query_parameter,
    regex_rewrite,
};
use super::metadata::metadata_matcher;
use super::mirror::mirrors;
use super::redirect::redirect;
use super::retry::retry_policy;
use super::route_upgrades::route_upgrades;
use super::stat_names::StatNames;
use super::subset;
use super::values::{
    Converted, bool_or, data_source, duration, enumeration, fraction, number, required, text, timeout,
};
use super::weighted_clusters::cluster_specifier;
use crate::error::At;
use crate::support::fields;
use crate::{
    Action, DirectResponse, Forward, GrpcTimeout, HostRewrite, MaxStreamDuration, MirrorPolicy, PathMatcher,
    PathRewrite, RequireTls, Route, RouteConfiguration, RouteMatcher, RouteTable, TextFormat, VirtualHost,
};

const MAX_DIRECT_RESPONSE_BODY: u32 = 4096;

/// What all routes of a configuration share while they are converted.
pub(super) struct Shared {
    pub(super) names: ClusterNames,
    pub(super) filters: FilterNames,
    stats: StatNames,
    /// Of the level above.
    pub(super) mirrors: Arc<[MirrorPolicy]>,
    /// Whether routes without a `hedge_policy` hedge: the virtual host's.
    pub(super) hedges: bool,
    max_body: u32,
}

pub(super) fn route_configuration(
    at: &At<'_>,
    mut message: proto::RouteConfiguration,
) -> Converted<RouteConfiguration> {
    let hosts = std::mem::take(&mut message.virtual_hosts);
    configuration(at, message, None, |shared| {
        let hosts = hosts.into_iter().enumerate();
        hosts
            .map(|(index, host)| virtual_host(&at.index("virtual_hosts", index), host, shared).map(Arc::new))
            .collect()
    })
}

/// A configuration without its virtual hosts, and those that `hosts` converts. Numbers of names are those of `before`, and more.
pub(super) fn configuration(
    at: &At<'_>,
    message: proto::RouteConfiguration,
    before: Option<&RouteConfiguration>,
    hosts: impl FnOnce(&mut Shared) -> Converted<Vec<Arc<VirtualHost>>>,
) -> Converted<RouteConfiguration> {
    fields!(at, message => proto::RouteConfiguration {
        used {
            name, virtual_hosts, internal_only_headers, response_headers_to_add, response_headers_to_remove,
            request_headers_to_add, request_headers_to_remove, most_specific_header_mutations_wins,
            max_direct_response_body_size_bytes, ignore_port_in_host_matching, typed_per_filter_config,
            request_mirror_policies,
        }
        inert {
            validate_clusters = "a route to a cluster that does not exist answers with cluster_not_found_response_code",
            metadata = "no supported extension reads it; it stays in config_dump",
        }
        rejected {
            vhds = "virtual host discovery",
            cluster_specifier_plugins = "plugins",
            vhost_header = "the virtual host by header",
            ignore_path_parameters_in_path_matching = "path parameters",
            route_specifiers = "plugins",
        }
    });
    let max_body = number(max_direct_response_body_size_bytes).unwrap_or(MAX_DIRECT_RESPONSE_BODY);
    let mut shared = Shared {
        names: before.map(|before| ClusterNames::after(before.table.clusters())).unwrap_or_default(),
        filters: before.map(|before| FilterNames::after(&before.filters)).unwrap_or_default(),
        stats: before.map(|before| StatNames::after(&before.stats)).unwrap_or_default(),
        mirrors: Arc::default(),
        hedges: false,
        max_body,
    };
    let overrides = overrides(at, typed_per_filter_config, &mut shared.filters, &mut shared.names)?;
    shared.mirrors = mirrors(at, request_mirror_policies, &mut shared)?;
    debug_assert!(virtual_hosts.is_empty(), "the caller converts them");
    let hosts = hosts(&mut shared)?;
    let before = before.map(|before| &before.table);
    let table = RouteTable::new(hosts, shared.names.into_list(), ignore_port_in_host_matching, before)
        .map_err(|reason| at.error_in("virtual_hosts", reason))?;
    Ok(RouteConfiguration {
        name: name.into(),
        table,
        internal_only_headers: header_names(at, "internal_only_headers", internal_only_headers)?,
        request_headers: mutations(at, "request", request_headers_to_add, request_headers_to_remove)?,
        response_headers: mutations(at, "response", response_headers_to_add, response_headers_to_remove)?,
        most_specific_header_mutations_wins,
        max_direct_response_body_size_bytes: max_body,
        filters: shared.filters.into_list(),
        overrides,
        stats: shared.stats.into_list(),
        origin: None,
    })
}

pub(super) fn virtual_host(
    at: &At<'_>,
    message: proto::VirtualHost,
    shared: &mut Shared,
) -> Converted<VirtualHost> {
    use proto::virtual_host::TlsRequirementType;
    fields!(at, message => proto::VirtualHost {
        used {
            name, domains, routes, require_tls, request_headers_to_add, request_headers_to_remove,
            response_headers_to_add, response_headers_to_remove, include_request_attempt_count,
            include_attempt_count_in_response, retry_policy, cors, typed_per_filter_config,
            request_mirror_policies, hedge_policy, include_is_timeout_retry_header,
        }
        inert { metadata = "no supported extension reads it; it stays in config_dump" }
        rejected {
            matcher = "matcher trees",
            virtual_clusters = "virtual clusters",
            rate_limits = "rate limits",
            retry_policy_typed_config = "retry policies by extension",
            per_request_buffer_limit_bytes = "a limit on request buffers",
            request_body_buffer_limit = "a limit on request buffers",
            route_specifiers = "plugins",
        }
    });
    if domains.is_empty() {
        return Err(at.error_in("domains", "must not be empty"));
    }
    shared.hedges = hedge_policy.map(|policy| hedges(at, policy)).transpose()?.unwrap_or(false);
    let outer = shared.mirrors.clone();
    shared.mirrors = mirrors(at, request_mirror_policies, shared)?;
    let routes = routes
        .into_iter()
        .enumerate()
        .map(|(index, route)| self::route(&at.index("routes", index), route, &name, shared).map(Arc::new))
        .collect::<Converted<_>>()?;
    shared.mirrors = outer;
    Ok(VirtualHost {
        name: super::values::nonempty(at, "name", name)?,
        domains: domains.into_iter().map(Into::into).collect(),
        routes,
        require_tls: match enumeration(at, "require_tls", require_tls)? {
            TlsRequirementType::None => RequireTls::None,
            TlsRequirementType::ExternalOnly => RequireTls::ExternalOnly,
            TlsRequirementType::All => RequireTls::All,
        },
        request_headers: mutations(at, "request", request_headers_to_add, request_headers_to_remove)?,
        response_headers: mutations(at, "response", response_headers_to_add, response_headers_to_remove)?,
        include_request_attempt_count,
        include_attempt_count_in_response,
        include_is_timeout_retry_header,
        retry_policy: retry_policy
            .map(|policy| super::retry::retry_policy(&at.field("retry_policy"), policy).map(Arc::new))
            .transpose()?,
        overrides: overrides(at, typed_per_filter_config, &mut shared.filters, &mut shared.names)?,
        cors: cors.map(|cors| legacy_policy(&at.field("cors"), cors).map(Arc::new)).transpose()?,
    })
}

fn route(at: &At<'_>, message: proto::Route, virtual_host: &str, shared: &mut Shared) -> Converted<Route> {
    fields!(at, message => proto::Route {
        used {
            name, r#match, request_headers_to_add, request_headers_to_remove, response_headers_to_add,
            response_headers_to_remove, action, typed_per_filter_config, stat_prefix,
        }
        inert {
            metadata = "no supported extension reads it; it stays in config_dump",
            decorator = "it names trace spans, and there is no tracing",
        }
        rejected {
            tracing = "tracing",
            per_request_buffer_limit_bytes = "a limit on request buffers",
            request_body_buffer_limit = "a limit on request buffers",
            route_specifiers = "plugins",
        }
        variants { filter_action = "actions by filters" }
    });
    let matching = route_match(&at.field("match"), required(at, "match", r#match)?)?;
    let action = match required(at, "action", action)? {
        proto::route::Action::Route(forward) => {
            Action::Forward(Box::new(self::forward(&at.field("route"), forward, shared)?))
        }
        proto::route::Action::Redirect(redirect) => {
            Action::Redirect(Box::new(self::redirect(&at.field("redirect"), redirect)?))
        }
        proto::route::Action::DirectResponse(response) => {
            let answer = direct_response(&at.field("direct_response"), response, shared.max_body)?;
            Action::DirectResponse(Box::new(answer))
        }
        proto::route::Action::NonForwardingAction(_) => Action::NonForwarding,
        proto::route::Action::FilterAction(_) => {
            return Err(at.error_in("filter_action", "not supported: actions by filters"));
        }
    };
    Ok(Route {
        name: text(name),
        matching,
        action,
        request_headers: mutations(at, "request", request_headers_to_add, request_headers_to_remove)?,
        response_headers: mutations(at, "response", response_headers_to_add, response_headers_to_remove)?,
        overrides: overrides(at, typed_per_filter_config, &mut shared.filters, &mut shared.names)?,
        stat: shared.stats.number(virtual_host, &stat_prefix),
    })
}

pub(super) fn route_match(at: &At<'_>, message: proto::RouteMatch) -> Converted<RouteMatcher> {
    use proto::route_match::PathSpecifier;
    fields!(at, message => proto::RouteMatch {
        used {
            case_sensitive, runtime_fraction, headers, query_parameters, grpc, path_specifier, dynamic_metadata,
        }
        inert {}
        rejected {
            cookies = "matches on cookies; match the cookie header",
            tls_context = "matches on the client's certificate",
            filter_state = "matches on filter state",
        }
        variants { path_match_policy = "path matches by extension" }
    });
    let case_sensitive = bool_or(case_sensitive, true);
    let path_text = |value: String| -> Box<str> {
        if case_sensitive { value.into() } else { value.to_ascii_lowercase().into() }
    };
    let path = match required(at, "path_specifier", path_specifier)? {
        PathSpecifier::Prefix(value) => PathMatcher::Prefix { value: path_text(value), case_sensitive },
        PathSpecifier::Path(value) => PathMatcher::Exact { value: path_text(value), case_sensitive },
        PathSpecifier::SafeRegex(regex) => PathMatcher::Regex(full_regex(&at.field("safe_regex"), regex)?),
        PathSpecifier::PathSeparatedPrefix(value) => {
            if value.len() < 2
                || !value.starts_with('/')
                || value.ends_with('/')
                || value.contains(['?', '#'])
            {
                let reason = "must begin with / and something after it, without / at the end, ? or #";
                return Err(at.error_in("path_separated_prefix", reason));
            }
            PathMatcher::SeparatedPrefix { value: path_text(value), case_sensitive }
        }
        PathSpecifier::ConnectMatcher(_) => PathMatcher::Connect,
        PathSpecifier::PathMatchPolicy(_) => {
            return Err(at.error_in("path_match_policy", "not supported: path matches by extension"));
        }
    };
    let parameters = query_parameters.into_iter().enumerate();
    // The runtime key could override the default; without a runtime the default counts.
    let percent = runtime_fraction.and_then(|runtime| runtime.default_value);
    Ok(RouteMatcher {
        path,
        headers: header_matchers(at, "headers", headers)?.into(),
        query_parameters: parameters
            .map(|(index, parameter)| query_parameter(&at.index("query_parameters", index), parameter))
            .collect::<Converted<_>>()?,
        runtime_fraction: percent
            .map(|percent| fraction(&at.field("runtime_fraction"), percent))
            .transpose()?,
        grpc: grpc.is_some(),
        metadata: dynamic_metadata
            .into_iter()
            .enumerate()
            .map(|(index, matcher)| metadata_matcher(&at.index("dynamic_metadata", index), matcher))
            .collect::<Converted<_>>()?,
    })
}

fn hedges(at: &At<'_>, policy: proto::HedgePolicy) -> Converted<bool> {
    super::retry::hedge_policy(&at.field("hedge_policy"), policy)
}

fn forward(at: &At<'_>, message: proto::RouteAction, shared: &mut Shared) -> Converted<Forward> {
    use proto::route_action::ClusterNotFoundResponseCode;
    fields!(at, message => proto::RouteAction {
        used {
            hash_policy, cluster_not_found_response_code, prefix_rewrite, regex_rewrite, path_rewrite, append_x_forwarded_host,
            timeout, idle_timeout, retry_policy, priority, upgrade_configs, max_stream_duration, cluster_specifier,
            max_grpc_timeout, grpc_timeout_offset,
            host_rewrite_specifier, cors, request_mirror_policies, hedge_policy,
            internal_redirect_policy, metadata_match,
        }
        inert {}
        rejected {
            path_rewrite_policy = "rewrites by extension",
            flush_timeout = "a time-out of its own for flushing; use idle_timeout",
            early_data_policy = "policies for early data",
            retry_policy_typed_config = "retry policies by extension",
            rate_limits = "rate limits",
            include_vh_rate_limits = "rate limits",
            internal_redirect_action = "use internal_redirect_policy",
            max_internal_redirects = "use internal_redirect_policy",
        }
        variants {
            cluster_specifier_plugin = "plugins",
            inline_cluster_specifier_plugin = "plugins",
        }
    });
    let hedge_on_per_try_timeout = hedge_policy.map(|policy| hedges(at, policy)).transpose()?;
    let path_rewrite = match (prefix_rewrite.as_str(), regex_rewrite, path_rewrite.as_str()) {
        ("", None, "") => PathRewrite::None,
        (prefix, None, "") => PathRewrite::Prefix(prefix.into()),
        ("", Some(rewrite), "") => {
            PathRewrite::Regex(Box::new(self::regex_rewrite(&at.field("regex_rewrite"), rewrite)?))
        }
        ("", None, format) => PathRewrite::Path(Box::new(text_format(at, "path_rewrite", format)?)),
        _ => {
            let reason = "only one of prefix_rewrite, regex_rewrite and path_rewrite may be set";
            return Err(at.error_in("prefix_rewrite", reason));
        }
    };
    let status = match enumeration(at, "cluster_not_found_response_code", cluster_not_found_response_code)? {
        ClusterNotFoundResponseCode::ServiceUnavailable => StatusCode::SERVICE_UNAVAILABLE,
        ClusterNotFoundResponseCode::NotFound => StatusCode::NOT_FOUND,
        ClusterNotFoundResponseCode::InternalServerError => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let idle_timeout = duration(at, "idle_timeout", idle_timeout)?;
    let metadata_match = subset::metadata_match(metadata_match, None);
    Ok(Forward {
        internal_redirect: internal_redirect_policy
            .map(|policy| internal_redirect(&at.field("internal_redirect_policy"), policy).map(Box::new))
            .transpose()?,
        mirrors: mirrors(at, request_mirror_policies, shared)?,
        cluster: self::cluster_specifier(
            at,
            required(at, "cluster_specifier", cluster_specifier)?,
            metadata_match.as_ref(),
            shared,
        )?,
        metadata_match,
        cluster_not_found_status: status,
        path_rewrite,
        host_rewrite: host_rewrite_specifier
            .map(|rewrite| host_rewrite(at, rewrite))
            .transpose()?
            .unwrap_or(HostRewrite::None),
        append_x_forwarded_host,
        hedge_on_per_try_timeout: hedge_on_per_try_timeout.unwrap_or(shared.hedges),
        // As in Envoy, a route that limits its streams has no other time-out of its own.
        timeout: self::timeout(at, "timeout", timeout, Some(std::time::Duration::from_secs(15)))?
            .filter(|_| max_stream_duration.is_none()),
        grpc_timeout: grpc_timeout(at, max_grpc_timeout, grpc_timeout_offset)?
            .filter(|_| max_stream_duration.is_none()),
        idle_timeout: idle_timeout.map(|timeout| Some(timeout).filter(|timeout| !timeout.is_zero())),
        retry_policy: retry_policy
            .map(|policy| self::retry_policy(&at.field("retry_policy"), policy).map(Arc::new))
            .transpose()?,
        high_priority: priority == lateen_xds::pb::envoy::config::core::v3::RoutingPriority::High as i32,
        upgrades: route_upgrades(at, upgrade_configs)?.into(),
        max_stream_duration: max_stream_duration
            .map(|limits| self::max_stream_duration(&at.field("max_stream_duration"), limits).map(Box::new))
            .transpose()?,
        cors: cors.map(|cors| legacy_policy(&at.field("cors"), cors).map(Arc::new)).transpose()?,
        hash_policy: hash_policies(at, hash_policy)?.into(),
    })
}

fn text_format(at: &At<'_>, field: &str, format: &str) -> Converted<TextFormat> {
    TextFormat::parse(format, true).map_err(|error| at.error_in(field, error.to_string()))
}

fn grpc_timeout(
    at: &At<'_>,
    most: Option<google::Duration>,
    offset: Option<google::Duration>,
) -> Converted<Option<Box<GrpcTimeout>>> {
    let offset = duration(at, "grpc_timeout_offset", offset)?.unwrap_or_default();
    let most = duration(at, "max_grpc_timeout", most)?;
    Ok(most.map(|most| Box::new(GrpcTimeout { most: Some(most).filter(|most| !most.is_zero()), offset })))
}

fn max_stream_duration(
    at: &At<'_>,
    limits: proto::route_action::MaxStreamDuration,
) -> Converted<MaxStreamDuration> {
    fields!(at, limits => proto::route_action::MaxStreamDuration {
        used { max_stream_duration, grpc_timeout_header_max, grpc_timeout_header_offset }
        inert {}
        rejected {}
    });
    // Zero means "no limit" in both.
    let limit = |field, value| {
        duration(at, field, value)
            .map(|limit| limit.map(|limit| Some(limit).filter(|limit| !limit.is_zero())))
    };
    Ok(MaxStreamDuration {
        max_stream_duration: limit("max_stream_duration", max_stream_duration)?,
        grpc_timeout_header_max: limit("grpc_timeout_header_max", grpc_timeout_header_max)?,
        grpc_timeout_header_offset: duration(at, "grpc_timeout_header_offset", grpc_timeout_header_offset)?,
    })
}

fn host_rewrite(at: &At<'_>, specifier: proto::route_action::HostRewriteSpecifier) -> Converted<HostRewrite> {
    use proto::route_action::HostRewriteSpecifier as Specifier;
    Ok(match specifier {
        Specifier::HostRewriteLiteral(value) => {
            HostRewrite::Literal(Box::new(header_value(at, "host_rewrite_literal", &value)?))
        }
        Specifier::AutoHostRewrite(value) if value.value => HostRewrite::Auto,
        Specifier::AutoHostRewrite(_) => HostRewrite::None,
        Specifier::HostRewriteHeader(name) => {
            HostRewrite::Header(Box::new(header_name(at, "host_rewrite_header", &name)?))
        }
        Specifier::HostRewritePathRegex(rewrite) => {
            let rewrite = regex_rewrite(&at.field("host_rewrite_path_regex"), rewrite)?;
            HostRewrite::PathRegex(Box::new(rewrite))
        }
        Specifier::HostRewrite(format) => {
            HostRewrite::Format(Box::new(text_format(at, "host_rewrite", &format)?))
        }
    })
}

fn direct_response(
    at: &At<'_>,
    message: proto::DirectResponseAction,
    max_body: u32,
) -> Converted<DirectResponse> {
    fields!(at, message => proto::DirectResponseAction {
        used { status, body, body_format }
        inert {}
        rejected {}
    });
    let code = u16::try_from(status).ok().filter(|status| (200..600).contains(status));
    let code = code.and_then(|status| StatusCode::from_u16(status).ok());
    let body = body.map(|source| data_source(&at.field("body"), source)).transpose()?.unwrap_or_default();
    if body.len() > max_body as usize {
        let reason =
            format!("has {} bytes; max_direct_response_body_size_bytes allows {max_body}", body.len());
        return Err(at.error_in("body", reason));
    }
    Ok(DirectResponse {
        status: code.ok_or_else(|| at.error_in("status", format!("{status} is not between 200 and 599")))?,
        body: body.into(),
        format: body_format
            .map(|format| super::access_log::body_format(&at.field("body_format"), format))
            .transpose()?,
    })
}
