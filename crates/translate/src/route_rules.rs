//! A VirtualService's HTTP rules as Envoy's routes.
use base64::Engine;
use lateen_api::duration;
use lateen_api::networking::virtual_service::{
    HttpDirectResponse, HttpMatchRequest, HttpRedirect, HttpRoute, HttpRouteDestination, RedirectPort,
};
use lateen_model::DestinationRule;
use lateen_xds::pb::envoy::config::core::v3 as core;
use lateen_xds::pb::envoy::config::route::v3 as route;
use lateen_xds::pb::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;
use lateen_xds::pb::google::protobuf::Duration;

use crate::cors::cors_policy;
use crate::faults::http_fault;
use crate::filters::{CORS, FAULT};
use crate::hash_policy;
use crate::headers::{Side, header_changes};
use crate::mirrors::{mirror_policy, mirrors};
use crate::names::outbound_cluster;
use crate::retries::Retries;
use crate::route_match::{path_pattern, route_match};
use crate::rules::AppliedRules;
use crate::wire;

/// What routes depend on besides their rules.
#[derive(Clone, Copy)]
pub(crate) struct RouteContext<'a> {
    /// Domain of service names.
    pub(crate) domain: &'a str,
    /// The port requests are addressed to.
    pub(crate) port: u16,
    /// Whether requests come over TLS.
    pub(crate) tls: bool,
    /// Retries of rules that say nothing.
    pub(crate) default_retries: &'a Retries,
}

/// The routes of a VirtualService, in its order.
pub(crate) fn routes(applied: &AppliedRules, context: RouteContext<'_>) -> Vec<route::Route> {
    let spec = &applied.virtual_service.spec;
    let mut routes = Vec::new();
    for rule in &applied.rules {
        let http = &spec.http[rule.index];
        match &rule.matches {
            None => routes.extend(one_route(applied, http, None, context)),
            Some(matches) => {
                let conditions = matches.iter().map(|&index| &http.r#match[index]);
                routes.extend(
                    conditions.filter_map(|condition| one_route(applied, http, Some(condition), context)),
                );
            }
        }
    }
    routes
}

/// The route of a service no VirtualService is about.
pub(crate) fn default_route(
    host: &str,
    hashing: Option<&DestinationRule>,
    context: RouteContext<'_>,
) -> route::Route {
    let hash = hashing.and_then(|rule| hash_policy::consistent_hash(rule, context.port, ""));
    let action = route::RouteAction {
        cluster_specifier: Some(route::route_action::ClusterSpecifier::Cluster(outbound_cluster(
            host,
            context.port,
            "",
        ))),
        timeout: Some(Duration::default()),
        retry_policy: context.default_retries.to_envoy(),
        max_stream_duration: Some(no_grpc_timeout()),
        hash_policy: hash.and_then(hash_policy::route_policy).into_iter().collect(),
        ..Default::default()
    };
    route::Route {
        name: "default".to_owned(),
        r#match: Some(match_everything()),
        decorator: Some(decorator(host, context.port, "/*")),
        action: Some(route::route::Action::Route(action)),
        ..Default::default()
    }
}

pub(crate) fn match_everything() -> route::RouteMatch {
    route::RouteMatch {
        path_specifier: Some(route::route_match::PathSpecifier::Prefix("/".to_owned())),
        ..Default::default()
    }
}

/// No limit of our own on streams, and gRPC's own deadline header honoured. istiod sends `max_grpc_timeout` for it, and with each
/// time-out of a VirtualService too; Envoy has deprecated that and warns of every route that has it.
pub(crate) fn no_grpc_timeout() -> route::route_action::MaxStreamDuration {
    route::route_action::MaxStreamDuration {
        max_stream_duration: Some(Duration::default()),
        grpc_timeout_header_max: Some(Duration::default()),
        ..Default::default()
    }
}

fn decorator(host: &str, port: u16, path: &str) -> route::Decorator {
    route::Decorator { operation: format!("{host}:{port}{path}"), ..Default::default() }
}

fn one_route(
    applied: &AppliedRules,
    http: &HttpRoute,
    condition: Option<&HttpMatchRequest>,
    context: RouteContext<'_>,
) -> Option<route::Route> {
    let mut result = route::Route {
        name: route_name(http, condition),
        r#match: Some(condition.map_or_else(match_everything, |condition| {
            route_match(condition, applied.virtual_service.origin)
        })),
        metadata: Some(wire::istio_metadata("config", &applied.virtual_service.config_path())),
        stat_prefix: condition.map(|condition| condition.stat_prefix.clone()).unwrap_or_default(),
        ..Default::default()
    };
    if let Some(headers) = &http.headers {
        let request = header_changes(headers, Side::Request);
        let response = header_changes(headers, Side::Response);
        result.request_headers_to_add = request.add;
        result.request_headers_to_remove = request.remove;
        result.response_headers_to_add = response.add;
        result.response_headers_to_remove = response.remove;
    }
    let action = if let Some(redirect) = &http.redirect {
        route::route::Action::Redirect(redirect_action(redirect, context))
    } else if let Some(response) = &http.direct_response {
        route::route::Action::DirectResponse(direct_response(response))
    } else {
        let (action, host, port) = forward(applied, http, context, &mut result)?;
        result.decorator = Some(decorator(&host, port, &path_pattern(condition)));
        route::route::Action::Route(action)
    };
    result.action = Some(action);
    let mut configure = |filter: &str, config| {
        result.typed_per_filter_config.insert(filter.to_owned(), config);
    };
    if let Some(fault) = http.fault.as_ref().and_then(http_fault) {
        configure(FAULT, wire::any(&fault));
    }
    if let Some(cors) = &http.cors_policy {
        configure(CORS, wire::any(&cors_policy(cors)));
    }
    Some(result)
}

fn route_name(http: &HttpRoute, condition: Option<&HttpMatchRequest>) -> String {
    let of_match = condition.map(|condition| condition.name.as_str()).unwrap_or_default();
    match (http.name.as_str(), of_match) {
        (name, "") => name.to_owned(),
        ("", name) => name.to_owned(),
        (rule, name) => format!("{rule}.{name}"),
    }
}

/// The forwarding action, with host and port of its first destination; none when the rule has no destination (it
/// delegates, for instance, which has no effect yet).
fn forward(
    applied: &AppliedRules,
    http: &HttpRoute,
    context: RouteContext<'_>,
    result: &mut route::Route,
) -> Option<(route::RouteAction, String, u16)> {
    use route::route_action::{ClusterSpecifier, HostRewriteSpecifier};
    // A weight of 0 beside others means no traffic; a single destination gets everything whatever its weight.
    let live: Vec<&HttpRouteDestination> = match http.route.as_slice() {
        [only] => vec![only],
        several => several.iter().filter(|destination| destination.weight > 0).collect(),
    };
    let first = live.first()?;
    let (host, port) = applied.resolve(&first.destination, context.domain, context.port);
    let mut authority =
        http.headers.as_ref().and_then(|headers| header_changes(headers, Side::Request).authority).or_else(
            || http.rewrite.as_ref().map(|rewrite| rewrite.authority.clone()).filter(|name| !name.is_empty()),
        );
    let cluster = |destination: &HttpRouteDestination| {
        let (host, port) = applied.resolve(&destination.destination, context.domain, context.port);
        outbound_cluster(&host, port, &destination.destination.subset)
    };
    let specifier = match live.as_slice() {
        [only] => {
            if let Some(headers) = &only.headers {
                let request = header_changes(headers, Side::Request);
                let response = header_changes(headers, Side::Response);
                result.request_headers_to_add.extend(request.add);
                result.request_headers_to_remove.extend(request.remove);
                result.response_headers_to_add.extend(response.add);
                result.response_headers_to_remove.extend(response.remove);
                authority = request.authority.or(authority);
            }
            ClusterSpecifier::Cluster(cluster(only))
        }
        several => ClusterSpecifier::WeightedClusters(route::WeightedCluster {
            clusters: several
                .iter()
                .map(|destination| cluster_weight(cluster(destination), destination))
                .collect(),
            ..Default::default()
        }),
    };
    let mirrors = mirrors(http).into_iter().map(|(destination, percent)| {
        let (host, port) = applied.resolve(destination, context.domain, context.port);
        mirror_policy(outbound_cluster(&host, port, &destination.subset), percent)
    });
    let retries = http.retries.as_ref().map(Retries::new);
    let mut action = route::RouteAction {
        cluster_specifier: Some(specifier),
        retry_policy: retries.as_ref().unwrap_or(context.default_retries).to_envoy(),
        host_rewrite_specifier: authority.map(HostRewriteSpecifier::HostRewriteLiteral),
        request_mirror_policies: mirrors.collect(),
        ..Default::default()
    };
    action.hash_policy = live
        .iter()
        .filter_map(|destination| {
            let (host, port) = applied.resolve(&destination.destination, context.domain, context.port);
            let hash = applied.consistent_hash(&host, port, &destination.destination.subset)?;
            hash_policy::route_policy(hash)
        })
        .collect();
    let timeout = http.timeout.as_ref().and_then(|text| duration::parse(text).ok()).unwrap_or_default();
    action.timeout = Some(wire::duration(timeout));
    if timeout.is_zero() {
        action.max_stream_duration = Some(no_grpc_timeout());
    }
    if let Some(rewrite) = &http.rewrite {
        if let Some(regex) = &rewrite.uri_regex_rewrite {
            action.regex_rewrite = Some(RegexMatchAndSubstitute {
                pattern: Some(wire::regex(&regex.r#match)),
                substitution: regex.rewrite.clone(),
            });
        } else {
            action.prefix_rewrite.clone_from(&rewrite.uri);
        }
    }
    Some((action, host, port))
}

fn cluster_weight(
    name: String,
    destination: &HttpRouteDestination,
) -> route::weighted_cluster::ClusterWeight {
    use route::weighted_cluster::cluster_weight::HostRewriteSpecifier;
    let mut weight = route::weighted_cluster::ClusterWeight {
        name,
        weight: wire::uint32(u32::try_from(destination.weight).unwrap_or_default()),
        ..Default::default()
    };
    if let Some(headers) = &destination.headers {
        let request = header_changes(headers, Side::Request);
        let response = header_changes(headers, Side::Response);
        weight.request_headers_to_add = request.add;
        weight.request_headers_to_remove = request.remove;
        weight.response_headers_to_add = response.add;
        weight.response_headers_to_remove = response.remove;
        weight.host_rewrite_specifier = request.authority.map(HostRewriteSpecifier::HostRewriteLiteral);
    }
    weight
}

fn redirect_action(redirect: &HttpRedirect, context: RouteContext<'_>) -> route::RedirectAction {
    use route::redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier};
    let code = match redirect.redirect_code {
        302 => RedirectResponseCode::Found,
        303 => RedirectResponseCode::SeeOther,
        307 => RedirectResponseCode::TemporaryRedirect,
        308 => RedirectResponseCode::PermanentRedirect,
        _ => RedirectResponseCode::MovedPermanently,
    };
    let port = match (redirect.port, redirect.derive_port) {
        (Some(port), _) => port,
        (None, Some(RedirectPort::FromRequestPort)) => u32::from(context.port),
        // What proxies do when nothing is said.
        (None, Some(RedirectPort::FromProtocolDefault) | None) => 0,
    };
    // A scheme's own port is not written out.
    let scheme = match redirect.scheme.as_str() {
        "" if context.tls => "https",
        "" => "http",
        scheme => scheme,
    };
    let own = matches!((scheme, port), ("http", 80) | ("https", 443));
    let port = if own { 0 } else { port };
    let path = match redirect.uri.strip_prefix("%PREFIX()%") {
        Some(prefix) => Some(PathRewriteSpecifier::PrefixRewrite(prefix.to_owned())),
        None if redirect.uri.is_empty() => None,
        None => Some(PathRewriteSpecifier::PathRedirect(redirect.uri.clone())),
    };
    route::RedirectAction {
        host_redirect: redirect.authority.clone(),
        port_redirect: port,
        response_code: code as i32,
        scheme_rewrite_specifier: (!redirect.scheme.is_empty())
            .then(|| SchemeRewriteSpecifier::SchemeRedirect(redirect.scheme.clone())),
        path_rewrite_specifier: path,
        ..Default::default()
    }
}

fn direct_response(response: &HttpDirectResponse) -> route::DirectResponseAction {
    use core::data_source::Specifier;
    let body = response.body.as_ref().and_then(|body| match (&body.string, &body.bytes) {
        (Some(text), _) => Some(Specifier::InlineString(text.clone())),
        (None, Some(base64)) => {
            base64::engine::general_purpose::STANDARD.decode(base64).ok().map(Specifier::InlineBytes)
        }
        (None, None) => None,
    });
    route::DirectResponseAction {
        status: response.status,
        body: body.map(|specifier| core::DataSource { specifier: Some(specifier), ..Default::default() }),
        ..Default::default()
    }
}
