//! Outbound route configurations of sidecars: one per port that some service declares HTTP, named after the port and shared
//! by all HTTP to it; and one per service port of undeclared protocol, named `HOST:PORT`, whose listener is the service's own.
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use lateen_api::networking::virtual_service::MESH_GATEWAY;
use lateen_model::{ObjectName, Service, VirtualService, host_matches, resolve_host};
use lateen_xds::pb::envoy::config::route::v3 as route;
use lateen_xds::pb::google::protobuf::Duration;

use crate::names::{PASSTHROUGH, detected_routes};
use crate::resource::{Resource, encode};
use crate::retries::Retries;
use crate::route_rules::{self, RouteContext};
use crate::rules::AppliedRules;
use crate::scope::Scope;
use crate::wire;

/// Everything a route configuration depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SidecarRouteInputs {
    port: u16,
    /// Whether they are the routes of one service's own listener: then the caller has chosen it by address, and the host it
    /// names does not matter.
    alone: bool,
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
    /// Other names of it.
    aliases: Vec<ObjectName>,
}

/// The services with HTTP on one port.
#[derive(Default)]
struct PortServices<'a> {
    /// Whether one of them declares it.
    shared: bool,
    /// With whether the protocol is undeclared.
    services: Vec<(&'a Arc<Service>, bool)>,
}

pub(crate) fn inputs(scope: &Scope) -> Vec<SidecarRouteInputs> {
    let mut ports: BTreeMap<u16, PortServices<'_>> = BTreeMap::new();
    for service in scope.services.iter() {
        for port in service.mesh_ports().filter(|port| port.protocol.is_http() || port.protocol.is_sniffed())
        {
            let found = ports.entry(port.port).or_default();
            found.shared |= port.protocol.is_http();
            found.services.push((service, port.protocol.is_sniffed()));
        }
    }
    let rules = Rules::new(scope);
    let mut all = Vec::new();
    for (port, found) in ports {
        let configuration = |alone, hosts| SidecarRouteInputs {
            port,
            alone,
            namespace: scope.class.namespace.clone(),
            domain: scope.world.domain().to_owned(),
            allow_any: scope.settings.allow_any,
            default_retries: scope.settings.default_retries.clone(),
            hosts,
        };
        // Hosts that VirtualServices name explicitly go before the other names of services.
        let mut hosts = if found.shared { rules.other_hosts(scope, port, &found) } else { Vec::new() };
        for (service, detected) in &found.services {
            let host = service_host(scope, &rules, service, port);
            if *detected {
                all.push(configuration(true, vec![host.clone()]));
            }
            hosts.push(host);
        }
        if found.shared {
            all.push(configuration(false, hosts));
        }
    }
    all
}

fn service_host(scope: &Scope, rules: &Rules, service: &Service, port: u16) -> HostInputs {
    let rules =
        rules.find(&service.hostname).map(|found| AppliedRules::new(scope, found, MESH_GATEWAY, port));
    HostInputs {
        host: service.hostname.to_string(),
        service: Some(ServiceHost {
            name: service.name.clone(),
            addresses: service.addresses.clone(),
            headless: service.is_headless(),
            aliases: scope.aliases_of(&service.hostname),
        }),
        // A VirtualService without a rule for these proxies and this port leaves the service as it is.
        rules: rules.filter(|rules| !rules.rules.is_empty()),
    }
}

/// The VirtualServices of a class, and which is in force for each host: the oldest one that names it.
struct Rules {
    /// With their hosts, oldest first.
    all: Vec<(Arc<VirtualService>, Vec<String>)>,
    exact: BTreeMap<String, Arc<VirtualService>>,
    wildcards: BTreeMap<String, Arc<VirtualService>>,
}

impl Rules {
    fn new(scope: &Scope) -> Self {
        let mut rules = Self { all: Vec::new(), exact: BTreeMap::new(), wildcards: BTreeMap::new() };
        for service in scope.virtual_services.iter().filter(|service| !service.spec.http.is_empty()) {
            let resolve = |host: &String| resolve_host(host, &service.name.namespace, scope.world.domain());
            let hosts: Vec<String> = service.spec.hosts.iter().map(resolve).collect();
            for host in &hosts {
                let map = if host.starts_with('*') { &mut rules.wildcards } else { &mut rules.exact };
                map.entry(host.clone()).or_insert_with(|| service.clone());
            }
            rules.all.push((service.clone(), hosts));
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

    /// The hosts of VirtualServices that are no services on this port. As in Istio they are served on the ports of the
    /// services named beside them, and all of them on port 80.
    fn other_hosts(&self, scope: &Scope, port: u16, services: &PortServices<'_>) -> Vec<HostInputs> {
        let names: BTreeSet<&str> = services.services.iter().map(|(service, _)| &*service.hostname).collect();
        let is_service = |host: &str| {
            if host.starts_with('*') {
                names.iter().any(|name| host_matches(host, name))
            } else {
                names.contains(host)
            }
        };
        let mut others = Vec::new();
        for (service, hosts) in &self.all {
            let (known, other): (Vec<&String>, Vec<&String>) =
                hosts.iter().partition(|host| is_service(host));
            if other.is_empty() || (known.is_empty() && port != 80) {
                continue;
            }
            let rules = AppliedRules::new(scope, service, MESH_GATEWAY, port);
            if !rules.rules.is_empty() {
                let host = |host: &String| HostInputs {
                    host: host.clone(),
                    service: None,
                    rules: Some(rules.clone()),
                };
                others.extend(other.into_iter().map(host));
            }
        }
        others
    }
}

/// A route configuration.
pub(crate) fn route_configuration(inputs: &SidecarRouteInputs) -> Resource {
    let name = match inputs.hosts.first() {
        Some(host) if inputs.alone => detected_routes(&host.host, inputs.port),
        _ => inputs.port.to_string(),
    };
    let context =
        RouteContext { domain: &inputs.domain, port: inputs.port, default_retries: &inputs.default_retries };
    let mut taken = BTreeSet::new();
    let mut virtual_hosts: Vec<route::VirtualHost> = Vec::new();
    for host in &inputs.hosts {
        // A domain may stand once in a route configuration; the first host that has it keeps it.
        let mut domains = if inputs.alone { vec!["*".to_owned()] } else { domains(host, inputs) };
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
    virtual_hosts.sort_by(|a, b| a.name.cmp(&b.name));
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

/// The names a service is called by: all of them in its own namespace, those with a namespace elsewhere, those of its
/// aliases, and its addresses. Callers of a headless service may prepend a pod's name.
fn domains(host: &HostInputs, inputs: &SidecarRouteInputs) -> Vec<String> {
    let Some(service) = &host.service else { return vec![host.host.clone()] };
    let mut domains = Vec::new();
    for ObjectName { namespace, name } in std::iter::once(&service.name).chain(&service.aliases) {
        let full = format!("{name}.{namespace}.svc.{}", inputs.domain);
        domains.extend([full.clone(), format!("{full}.")]);
        if *namespace == inputs.namespace {
            domains.push(name.to_string());
        }
        domains.extend([format!("{name}.{namespace}.svc"), format!("{name}.{namespace}")]);
    }
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
