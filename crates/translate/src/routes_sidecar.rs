//! Outbound route configurations of sidecars: one per port that some service declares HTTP, named after the port and shared
//! by all HTTP to it; one per service port of undeclared protocol, named `HOST:PORT`, whose listener is the service's own; and
//! one per Unix socket of a Sidecar's egress listeners, named by that, for HTTP to all ports.
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use lateen_api::networking::virtual_service::MESH_GATEWAY;
use lateen_model::{
    DestinationRule, ObjectName, Service, ServicePort, VirtualService, host_matches, resolve_host,
};
use lateen_xds::pb::envoy::config::route::v3 as route;
use lateen_xds::pb::google::protobuf::Duration;

use crate::any_address::shares_port;
use crate::cache::Cache;
use crate::dynamic_dns;
use crate::hash_policy;
use crate::names::detected_routes;
use crate::parts::{self, Part};
use crate::resource::{Resource, ResourceType};
use crate::retries::Retries;
use crate::route_rules::{self, RouteContext};
use crate::rules::AppliedRules;
use crate::scope::Scope;
use crate::settings::Settings;
use crate::wire;

/// A route configuration to be made, with its virtual hosts not made yet.
pub(crate) struct SidecarRoutes {
    name: String,
    /// Whether they are the routes of one service's own listener: then the caller has chosen it by address, and the host it
    /// names does not matter.
    alone: bool,
    hosts: Vec<HostInputs>,
}

/// Everything a virtual host depends on.
#[derive(Hash)]
struct VirtualHostInputs<'a> {
    domain: &'a str,
    default_retries: &'a Retries,
    host: &'a HostInputs,
    domains: DomainsOf,
}

/// The domains of a virtual host.
#[derive(Hash)]
enum DomainsOf {
    /// All names of the host.
    Names,
    /// All of them with the port; and without, if nothing else could be meant.
    Ported {
        /// With those without it.
        bare: bool,
    },
    /// Those of its names that no virtual host before it has.
    Left(Vec<String>),
    /// Whatever is named.
    Any,
}

/// Everything a route configuration depends on besides its virtual hosts.
#[derive(Hash)]
struct RestInputs {
    name: String,
    /// Whether the port that a request names counts: behind a Unix socket nothing else tells ports apart.
    ported: bool,
    /// What becomes of requests for hosts the mesh does not know; none when a virtual host takes them.
    catch_all: Option<CatchAll>,
}

/// What becomes of requests for unknown hosts.
#[derive(Hash)]
enum CatchAll {
    /// They go to this cluster.
    Cluster(String),
    /// They are refused.
    Refused,
}

impl CatchAll {
    fn new(settings: &Settings) -> Self {
        match settings.allow_any {
            true => Self::Cluster(settings.catch_all_cluster().into_owned()),
            false => Self::Refused,
        }
    }
}

/// A host requests may be for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct HostInputs {
    host: String,
    port: u16,
    /// The service of that host, when it is one.
    service: Option<ServiceHost>,
    rules: Option<AppliedRules>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct ServiceHost {
    /// Its names of the form Kubernetes gives, aliases after its own, each with whether it is of the proxies' namespace, where the short name will do.
    names: Vec<(ObjectName, bool)>,
    addresses: Vec<IpAddr>,
    headless: bool,
    /// Its DestinationRule, when that asks for consistent hashing.
    hashing: Option<Arc<DestinationRule>>,
}

/// The services with HTTP on one port.
#[derive(Default)]
struct PortServices<'a> {
    /// Whether some of it goes by the routes named after the port.
    shared: bool,
    /// With whether the service has a listener, and so routes, of its own.
    services: Vec<(&'a Arc<Service>, bool)>,
}

/// The route configurations of a class of sidecars.
pub(crate) fn routes(scope: &Scope) -> Vec<SidecarRoutes> {
    let mut ports: BTreeMap<u16, PortServices<'_>> = BTreeMap::new();
    if scope.socket().is_some() {
        // Where hosts that are no services are.
        ports.entry(80).or_default().shared = true;
    }
    for service in scope.addressed.iter() {
        let is_served = |port: &&ServicePort| {
            port.protocol.is_http() || (port.protocol.is_sniffed() && !dynamic_dns::is_dynamic(service))
        };
        for port in service.mesh_ports().filter(is_served) {
            let found = ports.entry(port.port).or_default();
            let shares = shares_port(scope, service, port);
            found.shared |= shares;
            found.services.push((service, !shares));
        }
    }
    let rules = Rules::new(scope);
    let mut all = Vec::new();
    let mut of_socket = Vec::new();
    for (port, found) in ports {
        let configuration = |name, alone, hosts| SidecarRoutes { name, alone, hosts };
        // Hosts that VirtualServices name explicitly go before the other names of services.
        let mut hosts = if found.shared { rules.other_hosts(scope, port, &found) } else { Vec::new() };
        for (service, has_own) in &found.services {
            let host = service_host(scope, &rules, service, port);
            if *has_own {
                let name = detected_routes(&host.host, port);
                all.push(configuration(name, true, vec![host.clone()]));
            }
            hosts.push(host);
        }
        if scope.socket().is_some() {
            of_socket.extend(hosts);
        } else if found.shared {
            all.push(configuration(port.to_string(), false, hosts));
        }
    }
    if let Some(socket) = scope.socket() {
        all.push(SidecarRoutes { name: socket.to_string(), alone: false, hosts: of_socket });
    }
    all
}

fn service_host(scope: &Scope, rules: &Rules, service: &Service, port: u16) -> HostInputs {
    let rules =
        rules.find(&service.hostname).map(|found| AppliedRules::new(scope, found, MESH_GATEWAY, port));
    let own = kubernetes_name(&service.hostname, scope.world.domain());
    let names = own.into_iter().chain(scope.aliases_of(&service.hostname));
    let is_near = |name: &ObjectName| name.namespace == scope.class.namespace;
    HostInputs {
        host: service.hostname.to_string(),
        port,
        service: Some(ServiceHost {
            names: names.map(|name| (name.clone(), is_near(&name))).collect(),
            addresses: scope.addresses_of(service),
            headless: service.is_headless(),
            hashing: hash_policy::hashing_rule(scope, service),
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
                    port,
                    service: None,
                    rules: Some(rules.clone()),
                };
                others.extend(other.into_iter().map(host));
            }
        }
        others
    }
}

/// A route configuration. Its virtual hosts come from the cache by what each of them depends on, so that a change makes only
/// those it changes, and namespaces share those that are the same for them.
pub(crate) fn resource(scope: &Scope, cache: &Cache, routes: &SidecarRoutes) -> Arc<Resource> {
    let domain = scope.world.domain();
    let default_retries = &scope.settings.default_retries;
    let name = routes.name.clone();
    let part = |host, domains| {
        let inputs = VirtualHostInputs { domain, default_retries, host, domains };
        cache.part(&inputs, |digest, inputs| Part::new(digest, &virtual_host(inputs)))
    };
    let mut parts: Vec<Arc<Part>> = Vec::with_capacity(routes.hosts.len());
    // A domain may stand once in a route configuration; the first host that has it keeps it.
    let mut taken: HashSet<String> = HashSet::new();
    for host in &routes.hosts {
        if routes.alone {
            parts.push(part(host, DomainsOf::Any));
            continue;
        }
        let names = if scope.socket().is_some() {
            let only = || routes.hosts.iter().filter(|other| other.host == host.host).count() == 1;
            DomainsOf::Ported { bare: host.port == 80 || only() }
        } else {
            DomainsOf::Names
        };
        let whole = part(host, names);
        if whole.domains.iter().any(|domain| taken.contains(domain)) {
            let left: Vec<String> =
                whole.domains.iter().filter(|domain| !taken.contains(*domain)).cloned().collect();
            if !left.is_empty() {
                parts.push(part(host, DomainsOf::Left(left)));
            }
        } else {
            parts.push(whole);
        }
        taken.extend(parts.last().into_iter().flat_map(|part| part.domains.iter().cloned()));
    }
    parts.sort_by(|a, b| a.name.cmp(&b.name));
    let all_taken = routes.alone || taken.contains("*");
    let rest = RestInputs {
        name,
        ported: scope.socket().is_some(),
        catch_all: (!all_taken).then(|| CatchAll::new(&scope.settings)),
    };
    cache.compound(ResourceType::Route, &rest, parts, route_configuration)
}

fn route_configuration(rest: &RestInputs, parts: &[Arc<Part>]) -> Resource {
    let message = route::RouteConfiguration {
        name: rest.name.clone(),
        validate_clusters: wire::boolean(false),
        max_direct_response_body_size_bytes: wire::uint32(1 << 20),
        ignore_port_in_host_matching: !rest.ported,
        ..Default::default()
    };
    let catch_all = rest.catch_all.as_ref().map(|unknown| Arc::new(Part::new(0, &catch_all(unknown))));
    let parts: Vec<Arc<Part>> = parts.iter().cloned().chain(catch_all).collect();
    parts::route_configuration(&message, &parts)
}

fn virtual_host(inputs: &VirtualHostInputs<'_>) -> route::VirtualHost {
    let VirtualHostInputs { domain, default_retries, host, domains } = inputs;
    let port = host.port;
    let context = RouteContext { domain, port, tls: false, default_retries };
    let routes = match &host.rules {
        Some(rules) => route_rules::routes(rules, context),
        None => {
            let hashing = host.service.as_ref().and_then(|service| service.hashing.as_deref());
            vec![route_rules::default_route(&host.host, hashing, context)]
        }
    };
    route::VirtualHost {
        name: format!("{}:{port}", host.host),
        domains: match domains {
            DomainsOf::Names => names_of(host, domain),
            DomainsOf::Ported { bare } => {
                let names = names_of(host, domain);
                // What ends in a wildcard has no port.
                let ported: Vec<String> = names
                    .iter()
                    .filter(|name| !name.ends_with('*'))
                    .map(|name| format!("{name}:{port}"))
                    .collect();
                let bare = names.into_iter().filter(|name| *bare || name.ends_with('*'));
                ported.into_iter().chain(bare).collect()
            }
            DomainsOf::Left(left) => left.clone(),
            DomainsOf::Any => vec!["*".to_owned()],
        },
        routes,
        include_request_attempt_count: true,
        ..Default::default()
    }
}

/// The names a service is called by: all of them in its own namespace, those with a namespace elsewhere, those of its
/// aliases, and its addresses. Callers of a headless service may prepend a pod's name.
fn names_of(host: &HostInputs, domain: &str) -> Vec<String> {
    let Some(service) = &host.service else { return vec![host.host.clone()] };
    let mut domains = Vec::new();
    if kubernetes_name(&host.host, domain).is_none() {
        domains.push(host.host.clone());
    }
    for (ObjectName { namespace, name }, is_near) in &service.names {
        let full = format!("{name}.{namespace}.svc.{domain}");
        domains.extend([full.clone(), format!("{full}.")]);
        if *is_near {
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

/// Namespace and name in a host name of the form Kubernetes gives its Services.
fn kubernetes_name(host: &str, domain: &str) -> Option<ObjectName> {
    let name = host.strip_suffix(domain)?.strip_suffix(".svc.")?;
    let (name, namespace) = name.split_once('.')?;
    let is_label = |label: &str| !label.is_empty() && !label.contains(['.', '*']);
    (is_label(name) && is_label(namespace)).then(|| ObjectName::new(namespace, name))
}

/// What becomes of requests for hosts the mesh does not know.
fn catch_all(unknown: &CatchAll) -> route::VirtualHost {
    let (name, action) = if let CatchAll::Cluster(cluster) = unknown {
        let forward = route::RouteAction {
            cluster_specifier: Some(route::route_action::ClusterSpecifier::Cluster(cluster.clone())),
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
