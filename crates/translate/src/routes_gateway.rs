//! Route configurations of gateways, one per HTTP port.
use std::sync::Arc;

use lateen_xds::pb::envoy::config::route::v3 as route;

use crate::cache::Cache;
use crate::gateways::{HttpServer, ServedHost};
use crate::parts::{self, Part};
use crate::resource::{Resource, ResourceType};
use crate::retries::Retries;
use crate::route_rules::{self, RouteContext};
use crate::scope::Scope;
use crate::wire;

/// Everything a virtual host of a gateway depends on.
#[derive(Hash)]
struct VirtualHostInputs<'a> {
    domain: &'a str,
    default_retries: &'a Retries,
    port: u16,
    tls: bool,
    served: &'a str,
    host: &'a ServedHost,
}

/// Everything a gateway's route configuration depends on besides its virtual hosts.
#[derive(Hash)]
struct RestInputs {
    name: String,
    server_port: u16,
}

/// The routes of one port. Hosts nothing is bound to are answered with 404.
pub(crate) fn resource(scope: &Scope, cache: &Cache, server: &HttpServer) -> Arc<Resource> {
    let part = |(served, host): (&String, &ServedHost)| {
        let inputs = VirtualHostInputs {
            domain: scope.world.domain(),
            default_retries: &scope.settings.default_retries,
            port: server.server_port,
            tls: server.https_routes.is_some(),
            served,
            host,
        };
        cache.part(&inputs, |digest, inputs| Part::new(digest, &virtual_host_of(inputs)))
    };
    let parts: Vec<Arc<Part>> = server.hosts.iter().map(part).collect();
    let rest = RestInputs { name: server.route_name(), server_port: server.server_port };
    cache.compound(ResourceType::Route, &rest, parts, route_configuration)
}

fn route_configuration(rest: &RestInputs, parts: &[Arc<Part>]) -> Resource {
    let mut message = route::RouteConfiguration {
        name: rest.name.clone(),
        validate_clusters: wire::boolean(false),
        max_direct_response_body_size_bytes: wire::uint32(1 << 20),
        ignore_port_in_host_matching: true,
        ..Default::default()
    };
    if parts.is_empty() {
        message.virtual_hosts.push(route::VirtualHost {
            name: format!("blackhole:{}", rest.server_port),
            domains: vec!["*".to_owned()],
            ..Default::default()
        });
    }
    parts::route_configuration(&message, parts)
}

fn virtual_host_of(inputs: &VirtualHostInputs<'_>) -> route::VirtualHost {
    let context = RouteContext {
        domain: inputs.domain,
        port: inputs.port,
        tls: inputs.tls,
        default_retries: inputs.default_retries,
    };
    virtual_host(inputs.served, inputs.host, context)
}

fn virtual_host(domain: &str, host: &ServedHost, context: RouteContext<'_>) -> route::VirtualHost {
    let mut routes: Vec<_> =
        host.rules.iter().flat_map(|rules| route_rules::routes(rules, context)).collect();
    if host.rules.len() > 1 {
        // Where several VirtualServices share a host, one's rule for everything must not hide the others' rules.
        routes.sort_by_key(is_catch_all);
    }
    let require_tls = if host.https_redirect {
        route::virtual_host::TlsRequirementType::All
    } else {
        route::virtual_host::TlsRequirementType::None
    };
    route::VirtualHost {
        name: format!("{domain}:{}", context.port),
        domains: vec![domain.to_owned()],
        routes,
        require_tls: require_tls as i32,
        include_request_attempt_count: true,
        ..Default::default()
    }
}

fn is_catch_all(route: &route::Route) -> bool {
    route.r#match.as_ref() == Some(&route_rules::match_everything())
}
