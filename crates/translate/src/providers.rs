//! Who decides where AuthorizationPolicies have the action CUSTOM: mesh config's extension providers as Envoy's ext_authz filters.
//! <https://istio.io/latest/docs/tasks/security/authorization/authz-custom/>
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use lateen_api::extension_provider::{ExtAuthzBody, ExtAuthzGrpc, ExtAuthzHttp};
use lateen_model::{AuthorizationPolicy, Hostname, Service, World};
use lateen_xds::Any;
use lateen_xds::pb::envoy::config::core::v3 as core;
use lateen_xds::pb::envoy::extensions::filters::http::ext_authz::v3 as http;
use lateen_xds::pb::envoy::extensions::filters::network::ext_authz::v3 as network;
use lateen_xds::pb::envoy::r#type::matcher::v3 as matcher;
use lateen_xds::pb::envoy::r#type::v3::HttpStatus;

use crate::names::outbound_cluster;
use crate::traffic_policy;
use crate::wire;

/// What the names of the notes of CUSTOM policies begin with.
pub(crate) const NOTES: &str = "istio_ext_authz_";
/// What the names of CUSTOM policies begin with.
pub(crate) const POLICIES: &str = "istio-ext-authz-";
/// Of calls that do not say: their cluster's own limits count.
const TIMEOUT: Duration = Duration::from_secs(600);

/// A provider with its service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Provider {
    host: String,
    cluster: String,
    kind: ProviderKind,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum ProviderKind {
    Http(ExtAuthzHttp),
    Grpc(ExtAuthzGrpc),
}

/// The service that a provider names, or why there is none (Istio's words).
pub(crate) fn service<'a>(world: &'a World, name: &str) -> Result<&'a Arc<Service>, String> {
    let (namespace, host) = name.split_once('/').map_or((None, name), |(own, host)| (Some(own), host));
    let mut found = world.services().filter(|service| {
        *service.hostname == *host && namespace.is_none_or(|namespace| *service.name.namespace == *namespace)
    });
    match (found.next(), found.next()) {
        (Some(only), None) => Ok(only),
        (Some(_), Some(_)) => Err(format!(
            "found {name} in multiple namespaces, specify the namespace explicitly in the format of <Namespace>/<Hostname>"
        )),
        (None, _) => Err(format!("could not find service {name} in Istio service registry")),
    }
}

impl Provider {
    /// The one provider that policies name, or why there is none to ask.
    pub(crate) fn of(world: &World, policies: &[&Arc<AuthorizationPolicy>]) -> Result<Self, String> {
        let name = |policy: &&Arc<AuthorizationPolicy>| {
            policy.spec.provider.as_ref().map_or("", |provider| provider.name.as_str()).to_owned()
        };
        let names: BTreeSet<String> = policies.iter().map(name).collect();
        let mut names = names.into_iter();
        let (Some(name), rest) = (names.next(), names.collect::<Vec<_>>()) else {
            return Err("no provider specified in authorization policy".to_owned());
        };
        if !rest.is_empty() {
            let all = [vec![name], rest].concat().join(" ");
            return Err(format!(
                "only 1 provider can be used per workload, found multiple providers: [{all}]"
            ));
        }
        Self::named(world, &name)
    }

    /// The provider of this name.
    pub(crate) fn named(world: &World, name: &str) -> Result<Self, String> {
        let providers = &world.mesh().extension_providers;
        let Some(found) = providers.iter().find(|provider| provider.name == name) else {
            let all: Vec<_> = providers.iter().map(|provider| provider.name.as_str()).collect();
            return Err(format!("available providers are [{}] but found {name:?}", all.join(" ")));
        };
        let (kind, wanted, port) = match (&found.envoy_ext_authz_http, &found.envoy_ext_authz_grpc) {
            (Some(http), _) => (ProviderKind::Http(http.clone()), &http.service, http.port),
            (None, Some(grpc)) => (ProviderKind::Grpc(grpc.clone()), &grpc.service, grpc.port),
            (None, None) => return Err(format!("unsupported extension provider: {name}")),
        };
        let service =
            service(world, wanted).map_err(|reason| format!("found errors in provider {name}: {reason}"))?;
        // Mesh config is validated.
        let port =
            u16::try_from(port).map_err(|_| format!("found errors in provider {name}: port {port}"))?;
        let host = service.hostname.to_string();
        Ok(Self { cluster: outbound_cluster(&host, port, ""), host, kind })
    }

    /// The HTTP filter.
    pub(crate) fn http(&self) -> Any {
        let filter = match &self.kind {
            ProviderKind::Http(provider) => self.http_service(provider),
            ProviderKind::Grpc(provider) => http::ExtAuthz {
                services: Some(http::ext_authz::Services::GrpcService(self.grpc_service(provider))),
                status_on_error: status(&provider.status_on_error),
                failure_mode_allow: provider.fail_open,
                clear_route_cache: provider.clear_route_cache,
                with_request_body: provider.include_request_body_in_check.map(body),
                ..Default::default()
            },
        };
        wire::any(&http::ExtAuthz {
            transport_api_version: core::ApiVersion::V3 as i32,
            filter_enabled_metadata: Some(enabled_by("envoy.filters.http.rbac")),
            ..filter
        })
    }

    /// The filter for connections; `None`: an HTTP server can't be asked about them.
    pub(crate) fn network(&self) -> Option<Any> {
        let ProviderKind::Grpc(provider) = &self.kind else { return None };
        Some(wire::any(&network::ExtAuthz {
            stat_prefix: "tcp.".to_owned(),
            grpc_service: Some(self.grpc_service(provider)),
            failure_mode_allow: provider.fail_open,
            transport_api_version: core::ApiVersion::V3 as i32,
            filter_enabled_metadata: Some(enabled_by("envoy.filters.network.rbac")),
            ..Default::default()
        }))
    }

    fn grpc_service(&self, provider: &ExtAuthzGrpc) -> core::GrpcService {
        use core::grpc_service::{EnvoyGrpc, TargetSpecifier};
        core::GrpcService {
            target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
                cluster_name: self.cluster.clone(),
                // A bar may not stand in an authority.
                authority: self.cluster.replace('|', "_."),
                ..Default::default()
            })),
            timeout: Some(wire::duration(timeout(provider.timeout.as_ref()))),
            ..Default::default()
        }
    }

    fn http_service(&self, provider: &ExtAuthzHttp) -> http::ExtAuthz {
        use core::http_uri::HttpUpstreamType;
        let added = provider.include_additional_headers_in_check.iter();
        let added: Vec<_> = added
            .map(|(key, value)| core::HeaderValue {
                key: key.clone(),
                value: value.clone(),
                ..Default::default()
            })
            .collect();
        let response = http::AuthorizationResponse {
            allowed_upstream_headers: headers(&provider.headers_to_upstream_on_allow),
            allowed_client_headers: headers(&provider.headers_to_downstream_on_deny),
            allowed_client_headers_on_success: headers(&provider.headers_to_downstream_on_allow),
            ..Default::default()
        };
        let service = http::HttpService {
            server_uri: Some(core::HttpUri {
                uri: format!("http://{}", self.host),
                timeout: Some(wire::duration(timeout(provider.timeout.as_ref()))),
                http_upstream_type: Some(HttpUpstreamType::Cluster(self.cluster.clone())),
            }),
            path_prefix: provider.path_prefix.clone(),
            authorization_request: (!added.is_empty())
                .then(|| http::AuthorizationRequest { headers_to_add: added, ..Default::default() }),
            authorization_response: (response != http::AuthorizationResponse::default()).then_some(response),
            ..Default::default()
        };
        let (new, old) = (&provider.include_request_headers_in_check, &provider.include_headers_in_check);
        http::ExtAuthz {
            services: Some(http::ext_authz::Services::HttpService(service)),
            allowed_headers: headers(if new.is_empty() { old } else { new }),
            status_on_error: status(&provider.status_on_error),
            failure_mode_allow: provider.fail_open,
            clear_route_cache: provider.clear_route_cache,
            with_request_body: provider.include_request_body_in_check.map(body),
            ..Default::default()
        }
    }
}

/// Whether a change of these services may concern what is asked of providers.
pub(crate) fn concern(world: &World, changed: &BTreeSet<Hostname>) -> bool {
    let services = world.mesh().extension_providers.iter().flat_map(|provider| {
        let http = provider.envoy_ext_authz_http.as_ref().map(|http| &http.service);
        http.into_iter().chain(provider.envoy_ext_authz_grpc.as_ref().map(|grpc| &grpc.service))
    });
    let mut hosts = services.map(|name| name.split_once('/').map_or(name.as_str(), |(_, host)| host));
    hosts.any(|host| changed.iter().any(|changed| **changed == *host))
}

fn timeout(text: Option<&String>) -> Duration {
    traffic_policy::parse(text).unwrap_or(TIMEOUT)
}

fn body(settings: ExtAuthzBody) -> http::BufferSettings {
    let ExtAuthzBody { max_request_bytes, allow_partial_message, pack_as_bytes } = settings;
    http::BufferSettings { max_request_bytes, allow_partial_message, pack_as_bytes }
}

fn status(text: &str) -> Option<HttpStatus> {
    text.parse().ok().map(|code| HttpStatus { code })
}

/// Names of headers; `*` at an end stands for anything. `None`: there are none.
fn headers(names: &[String]) -> Option<matcher::ListStringMatcher> {
    use matcher::string_matcher::MatchPattern;
    let pattern = |name: &String| {
        let pattern = match (name.strip_prefix('*'), name.strip_suffix('*')) {
            (Some(end), _) => MatchPattern::Suffix(end.to_owned()),
            (None, Some(start)) => MatchPattern::Prefix(start.to_owned()),
            (None, None) => MatchPattern::Exact(name.clone()),
        };
        matcher::StringMatcher { match_pattern: Some(pattern), ignore_case: true }
    };
    let patterns: Vec<_> = names.iter().map(pattern).collect();
    (!patterns.is_empty()).then_some(matcher::ListStringMatcher { patterns })
}

/// What the CUSTOM policies before the filter have noted: that one of them matches.
fn enabled_by(filter: &str) -> matcher::MetadataMatcher {
    use matcher::metadata_matcher::{PathSegment, path_segment::Segment};
    use matcher::{string_matcher, value_matcher};
    let prefix = matcher::StringMatcher {
        match_pattern: Some(string_matcher::MatchPattern::Prefix("istio-ext-authz".to_owned())),
        ..Default::default()
    };
    matcher::MetadataMatcher {
        filter: filter.to_owned(),
        path: vec![PathSegment { segment: Some(Segment::Key(format!("{NOTES}shadow_effective_policy_id"))) }],
        value: Some(matcher::ValueMatcher {
            match_pattern: Some(value_matcher::MatchPattern::StringMatch(prefix)),
        }),
        ..Default::default()
    }
}
