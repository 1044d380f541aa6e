//! Outbound route configurations of sidecars, one per HTTP port, named after it.
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use lateen_api::networking::virtual_service::MESH_GATEWAY;
use lateen_model::{ObjectName, VirtualService, host_matches, resolve_host};
use lateen_xds::pb::envoy::config::route::v3 as route;
use lateen_xds::pb::google::protobuf::Duration;

use crate::names::PASSTHROUGH;
use crate::resource::{Resource, encode};
use crate::retries::Retries;
use crate::route_rules::{self, RouteContext};
use crate::rules::AppliedRules;
use crate::scope::Scope;
use crate::wire;

/// Everything a port's route configuration depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SidecarRouteInputs {
    port: u16,
    /// Namespace of the proxies: services of it have short names.
    namespace: Arc<str>,
    domain: String,
    allow_any: bool,
    default_retries: Retries,
    hosts: Vec<HostInputs>,
}

/// A host requests may be for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct HostInputs {
    host: String,
    /// The service of that host, when it is one.
    service: Option<ServiceHost>,
    rules: Option<AppliedRules>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct ServiceHost {
    name: ObjectName,
    addresses: Vec<IpAddr>,
    headless: bool,
}

pub(crate) fn inputs(scope: &Scope) -> Vec<SidecarRouteInputs> {
    let mut by_port: BTreeMap<u16, Vec<HostInputs>> = BTreeMap::new();
    let rules = RulesByHost::new(scope);
    for service in &scope.services {
        for port in service.mesh_ports().filter(|port| port.protocol.is_http() || port.protocol.is_sniffed())
        {
            let found = rules.find(&service.hostname);
            by_port.entry(port.port).or_default().push(HostInputs {
                host: service.hostname.to_string(),
                service: Some(ServiceHost {
                    name: service.name.clone(),
                    addresses: service.addresses.clone(),
                    headless: service.is_headless(),
                }),
                rules: found.map(|found| AppliedRules::new(scope, found, MESH_GATEWAY, port.port)),
            });
        }
    }
    // Hosts that are no services are served on port 80 only, as in Istio.
    if let Some(hosts) = by_port.get_mut(&80) {
        for (host, found) in rules.exact.iter().chain(&rules.wildcards) {
            if scope.world.service(host).is_none() && !matches_a_service(host, hosts) {
                let rules = Some(AppliedRules::new(scope, found, MESH_GATEWAY, 80));
                hosts.push(HostInputs { host: host.clone(), service: None, rules });
            }
        }
    }
    by_port
        .into_iter()
        .map(|(port, hosts)| SidecarRouteInputs {
            port,
            namespace: scope.class.namespace.clone(),
            domain: scope.world.domain().to_owned(),
            allow_any: scope.settings.allow_any,
            default_retries: scope.settings.default_retries.clone(),
            hosts,
        })
        .collect()
}

fn matches_a_service(pattern: &str, hosts: &[HostInputs]) -> bool {
    pattern.starts_with('*')
        && hosts.iter().any(|host| host.service.is_some() && host_matches(pattern, &host.host))
}

/// The VirtualService in force for each host: the oldest one that names it.
struct RulesByHost {
    exact: BTreeMap<String, Arc<VirtualService>>,
    wildcards: BTreeMap<String, Arc<VirtualService>>,
}

impl RulesByHost {
    fn new(scope: &Scope) -> Self {
        let mut rules = Self { exact: BTreeMap::new(), wildcards: BTreeMap::new() };
        for service in scope.virtual_services.iter().filter(|service| !service.spec.http.is_empty()) {
            for host in &service.spec.hosts {
                let host = resolve_host(host, &service.name.namespace, scope.world.domain());
                let map = if host.starts_with('*') { &mut rules.wildcards } else { &mut rules.exact };
                map.entry(host).or_insert_with(|| service.clone());
            }
        }
        rules
    }

    /// The exact host's, else that of the longest wildcard.
    fn find(&self, host: &str) -> Option<&Arc<VirtualService>> {
        self.exact.get(host).or_else(|| {
            let matching = self.wildcards.iter().filter(|(pattern, _)| host_matches(pattern, host));
            matching.max_by_key(|(pattern, _)| pattern.len()).map(|(_, service)| service)
        })
    }
}

/// The route configuration of one port.
pub(crate) fn route_configuration(inputs: &SidecarRouteInputs) -> Resource {
    let name = inputs.port.to_string();
    let context =
        RouteContext { domain: &inputs.domain, port: inputs.port, default_retries: &inputs.default_retries };
    let mut taken = BTreeSet::new();
    let mut virtual_hosts: Vec<route::VirtualHost> = Vec::new();
    for host in &inputs.hosts {
        // A domain may stand once in a route configuration; the first host that has it keeps it.
        let mut domains = domains(host, inputs);
        domains.retain(|domain| taken.insert(domain.clone()));
        if domains.is_empty() {
            continue;
        }
        let routes = match &host.rules {
            Some(rules) => route_rules::routes(rules, context),
            None => vec![route_rules::default_route(&host.host, context)],
        };
        virtual_hosts.push(route::VirtualHost {
            name: format!("{}:{}", host.host, inputs.port),
            domains,
            routes,
            include_request_attempt_count: true,
            ..Default::default()
        });
    }
    if taken.insert("*".to_owned()) {
        virtual_hosts.push(catch_all(inputs.allow_any));
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

/// The names a service is called by: all of them in its own namespace, those with a namespace elsewhere, and its
/// addresses. Callers of a headless service may prepend a pod's name.
fn domains(host: &HostInputs, inputs: &SidecarRouteInputs) -> Vec<String> {
    let mut domains = vec![host.host.clone()];
    let Some(service) = &host.service else { return domains };
    let ObjectName { namespace, name } = &service.name;
    if *namespace == inputs.namespace {
        domains.push(name.to_string());
    }
    domains.push(format!("{name}.{namespace}.svc"));
    domains.push(format!("{name}.{namespace}"));
    if service.headless {
        domains.extend(domains.clone().iter().map(|domain| format!("*.{domain}")));
    }
    domains.extend(service.addresses.iter().map(|address| match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }));
    domains
}

/// What becomes of requests for hosts the mesh does not know.
fn catch_all(allow_any: bool) -> route::VirtualHost {
    let (name, action) = if allow_any {
        let forward = route::RouteAction {
            cluster_specifier: Some(route::route_action::ClusterSpecifier::Cluster(PASSTHROUGH.to_owned())),
            timeout: Some(Duration::default()),
            max_stream_duration: Some(route_rules::no_grpc_timeout()),
            ..Default::default()
        };
        ("allow_any", route::route::Action::Route(forward))
    } else {
        let refuse = route::DirectResponseAction { status: 502, ..Default::default() };
        ("block_all", route::route::Action::DirectResponse(refuse))
    };
    route::VirtualHost {
        name: name.to_owned(),
        domains: vec!["*".to_owned()],
        routes: vec![route::Route {
            name: name.to_owned(),
            r#match: Some(route_rules::match_everything()),
            action: Some(action),
            ..Default::default()
        }],
        include_request_attempt_count: true,
        ..Default::default()
    }
}
