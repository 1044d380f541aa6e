//! Route configurations of gateways, one per HTTP port.
use lateen_xds::pb::envoy::config::route::v3 as route;

use crate::gateways::{HttpServer, ServedHost};
use crate::resource::{Resource, encode};
use crate::retries::Retries;
use crate::route_rules::{self, RouteContext};
use crate::scope::Scope;
use crate::wire;

/// Everything a gateway's route configuration depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct GatewayRouteInputs {
    domain: String,
    default_retries: Retries,
    server: HttpServer,
}

pub(crate) fn inputs(scope: &Scope, server: HttpServer) -> GatewayRouteInputs {
    GatewayRouteInputs {
        domain: scope.world.domain().to_owned(),
        default_retries: scope.settings.default_retries.clone(),
        server,
    }
}

/// The routes of one port. Hosts nothing is bound to are answered with 404.
pub(crate) fn route_configuration(inputs: &GatewayRouteInputs) -> Resource {
    let server = &inputs.server;
    let name = server.route_name();
    let context = RouteContext {
        domain: &inputs.domain,
        port: server.server_port,
        default_retries: &inputs.default_retries,
    };
    let mut virtual_hosts: Vec<_> =
        server.hosts.iter().map(|(domain, host)| virtual_host(domain, host, context)).collect();
    if virtual_hosts.is_empty() {
        virtual_hosts.push(route::VirtualHost {
            name: format!("blackhole:{}", server.server_port),
            domains: vec!["*".to_owned()],
            ..Default::default()
        });
    }
    let message = route::RouteConfiguration {
        name: name.clone(),
        virtual_hosts,
        validate_clusters: wire::boolean(false),
        max_direct_response_body_size_bytes: wire::uint32(1 << 20),
        ignore_port_in_host_matching: true,
        ..Default::default()
    };
    encode(name, &message)
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
