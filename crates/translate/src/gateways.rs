//! Which ports and hosts a gateway's proxies serve, from the Gateways that select them.
use std::collections::BTreeMap;

use lateen_api::networking::gateway::Server;
use lateen_model::{Gateway, Protocol, VirtualService, host_matches, resolve_host};

use crate::gateways_tls::{self, PortSort};
use crate::rules::AppliedRules;
use crate::scope::Scope;

/// Plain HTTP on one address and port of a gateway.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct HttpServer {
    /// Address to listen on.
    pub(crate) bind: String,
    /// Port to listen on: the pod's, not the service's.
    pub(crate) port: u16,
    /// Port of the first Gateway server, which requests are addressed to.
    pub(crate) server_port: u16,
    /// What is served, by domain.
    pub(crate) hosts: BTreeMap<String, ServedHost>,
    /// Name of the routes of an HTTPS server, which has routes of its own.
    pub(crate) https_routes: Option<String>,
}

/// What becomes of requests for one domain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct ServedHost {
    /// Rules of the VirtualServices bound to it, oldest first.
    pub(crate) rules: Vec<AppliedRules>,
    /// Whether everything is redirected to HTTPS.
    pub(crate) https_redirect: bool,
}

impl HttpServer {
    /// Name of the listener.
    pub(crate) fn listener_name(&self) -> String {
        format!("{}_{}", self.bind, self.port)
    }

    /// Name of the route configuration, `http.PORT` as in Istio.
    pub(crate) fn route_name(&self) -> String {
        if let Some(name) = &self.https_routes {
            name.clone()
        } else if self.bind == "0.0.0.0" {
            format!("http.{}", self.port)
        } else {
            format!("http.{}.{}", self.port, self.bind)
        }
    }
}

/// The HTTP servers of a gateway's proxies. Servers of several Gateways on one port are merged.
pub(crate) fn http_servers(scope: &Scope) -> Vec<HttpServer> {
    let sorts = gateways_tls::sorts(scope);
    let mut servers: BTreeMap<(String, u16), HttpServer> = BTreeMap::new();
    for gateway in scope.world.gateways_for(&scope.class.labels) {
        for server in gateway.spec.servers.iter().filter(|server| serves_plain_http(server)) {
            let Ok(server_port) = u16::try_from(server.port.number) else { continue };
            let bind = if server.bind.is_empty() { "0.0.0.0" } else { &server.bind };
            for port in pod_ports(scope, server_port) {
                if sorts.get(&(bind.to_owned(), port)) != Some(&PortSort::Http) {
                    continue;
                }
                let merged = servers.entry((bind.to_owned(), port)).or_insert_with(|| HttpServer {
                    bind: bind.to_owned(),
                    port,
                    server_port,
                    hosts: BTreeMap::new(),
                    https_routes: None,
                });
                add_hosts(scope, &gateway, server, server_port, &mut merged.hosts);
            }
        }
    }
    servers.into_values().collect()
}

/// Whether a server's protocol is HTTP without TLS.
pub(crate) fn serves_plain_http(server: &Server) -> bool {
    Protocol::parse(&server.port.protocol).is_http()
}

/// The pods' ports behind a port of the gateway's service; the port itself when no service has it.
pub(crate) fn pod_ports(scope: &Scope, server_port: u16) -> Vec<u16> {
    let behind = scope.class.inbound.iter().filter(|port| port.service_port == server_port);
    let mut ports: Vec<u16> = behind.map(|port| port.port).collect();
    ports.sort_unstable();
    ports.dedup();
    if ports.is_empty() { vec![server_port] } else { ports }
}

pub(crate) fn add_hosts(
    scope: &Scope,
    gateway: &Gateway,
    server: &Server,
    server_port: u16,
    hosts: &mut BTreeMap<String, ServedHost>,
) {
    let https_redirect = server.tls.as_ref().is_some_and(|tls| tls.https_redirect);
    let server_hosts: Vec<ServerHost<'_>> =
        server.hosts.iter().map(|host| ServerHost::new(host, &gateway.name.namespace)).collect();
    if https_redirect {
        for host in &server_hosts {
            hosts.entry(host.pattern.clone()).or_default().https_redirect = true;
        }
    }
    let bound = scope.world.gateway_virtual_services(&gateway.name, &scope.class.namespace);
    for service in bound.iter().filter(|service| !service.spec.http.is_empty()) {
        let domains = served_domains(scope, &server_hosts, service);
        if domains.is_empty() {
            continue;
        }
        let rules = AppliedRules::new(scope, service, &gateway.name.to_string(), server_port);
        // None of its rules is for this gateway: its hosts are left to whoever else has them.
        if rules.rules.is_empty() {
            continue;
        }
        for domain in domains {
            let served = hosts.entry(domain).or_default();
            served.https_redirect |= https_redirect;
            if !served.rules.contains(&rules) {
                served.rules.push(rules.clone());
            }
        }
    }
    for served in hosts.values_mut() {
        served.rules.sort_by_key(|rules| (rules.virtual_service.created, rules.virtual_service.name.clone()));
    }
}

/// A host of a server, `namespace/host`, taken apart.
pub(crate) struct ServerHost<'a> {
    /// Namespace VirtualServices must be in; none for any.
    pub(crate) namespace: Option<&'a str>,
    /// In lower case.
    pub(crate) pattern: String,
}

impl<'a> ServerHost<'a> {
    pub(crate) fn new(host: &'a str, own: &'a str) -> Self {
        let (namespace, pattern) = match host.split_once('/') {
            None => (None, host),
            Some(("*", pattern)) => (None, pattern),
            Some((".", pattern)) => (Some(own), pattern),
            Some((namespace, pattern)) => (Some(namespace), pattern),
        };
        Self { namespace, pattern: pattern.to_ascii_lowercase() }
    }
}

/// The domains a VirtualService is served under: where its hosts and the server's overlap, the narrower of the two.
pub(crate) fn served_domains(
    scope: &Scope,
    server_hosts: &[ServerHost<'_>],
    service: &VirtualService,
) -> Vec<String> {
    let mut domains = Vec::new();
    for host in &service.spec.hosts {
        let host = resolve_host(host, &service.name.namespace, scope.world.domain());
        for server_host in server_hosts {
            if server_host.namespace.is_some_and(|namespace| namespace != &*service.name.namespace) {
                continue;
            }
            let domain = if host_matches(&server_host.pattern, &host) {
                host.clone()
            } else if host_matches(&host, &server_host.pattern) {
                server_host.pattern.clone()
            } else {
                continue;
            };
            if !domains.contains(&domain) {
                domains.push(domain);
            }
        }
    }
    domains
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_hosts_may_carry_a_namespace() {
        for (host, namespace, pattern) in [
            ("*", None, "*"),
            ("*/a.com", None, "a.com"),
            ("./a.com", Some("own"), "a.com"),
            ("shop/*.a.com", Some("shop"), "*.a.com"),
        ] {
            let parsed = ServerHost::new(host, "own");
            assert_eq!((parsed.namespace, parsed.pattern.as_str()), (namespace, pattern), "{host}");
        }
    }
}
