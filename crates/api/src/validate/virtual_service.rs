//! Validation of VirtualService.
use super::hosts::{check_export_to, check_fqdn, check_wildcard_host, is_dns_label};
use super::http_match::check_claims_at_gateways;
use super::http_route::check_http_route;
use super::unreachable;
use super::{Findings, check_labels, check_port};
use crate::networking::virtual_service::{
    Destination, L4MatchAttributes, MESH_GATEWAY, RouteDestination, TlsMatchAttributes, VirtualServiceSpec,
};

/// Validates a VirtualService's spec.
pub fn validate_virtual_service(spec: &VirtualServiceSpec) -> Findings {
    let mut findings = Findings::default();
    check_export_to(&mut findings, &spec.export_to, false);
    let on_mesh = spec.gateways.is_empty() || spec.gateways.iter().any(|gateway| gateway == MESH_GATEWAY);
    // Without hosts it is a delegate: reached only through another VirtualService, bound to no gateway itself.
    let delegate = spec.hosts.is_empty();
    if delegate {
        if !spec.gateways.is_empty() {
            findings.error("spec.gateways", "delegate virtual service must have no gateways specified");
        }
        if !spec.tls.is_empty() {
            findings.error("spec.tls", "delegate virtual service must have no tls route specified");
        }
        if !spec.tcp.is_empty() {
            findings.error("spec.tcp", "delegate virtual service must have no tcp route specified");
        }
    } else {
        check_hosts(&mut findings, &spec.hosts, on_mesh);
    }
    check_gateway_names(&mut findings, "spec.gateways", &spec.gateways);
    if spec.http.is_empty() && spec.tcp.is_empty() && spec.tls.is_empty() {
        findings.error("spec", "http, tcp or tls must be provided in virtual service");
    }
    for (index, route) in spec.http.iter().enumerate() {
        let path = format!("spec.http[{index}]");
        check_http_route(&mut findings, &path, route, delegate);
        // A delegate is where its root is.
        for (index, condition) in route.r#match.iter().enumerate().filter(|_| !delegate) {
            check_claims_at_gateways(
                &mut findings,
                &format!("{path}.match[{index}]"),
                condition,
                &spec.gateways,
            );
        }
    }
    unreachable::check_http(&mut findings, &spec.http);
    unreachable::check_l4(&mut findings, "spec.tcp", spec.tcp.iter().map(|rule| rule.r#match.as_slice()));
    unreachable::check_l4(&mut findings, "spec.tls", spec.tls.iter().map(|rule| rule.r#match.as_slice()));
    for (index, route) in spec.tls.iter().enumerate() {
        let path = format!("spec.tls[{index}]");
        if route.r#match.is_empty() {
            findings.error(format!("{path}.match"), "TLS route must have at least one match condition");
        }
        for (index, condition) in route.r#match.iter().enumerate() {
            check_tls_match(&mut findings, &format!("{path}.match[{index}]"), condition, &spec.hosts);
        }
        check_l4_destinations(&mut findings, &path, &route.route, "TLS");
    }
    for (index, route) in spec.tcp.iter().enumerate() {
        let path = format!("spec.tcp[{index}]");
        for (index, condition) in route.r#match.iter().enumerate() {
            check_tcp_match(&mut findings, &format!("{path}.match[{index}]"), condition);
        }
        check_l4_destinations(&mut findings, &path, &route.route, "TCP");
    }
    findings
}

fn check_hosts(findings: &mut Findings, hosts: &[String], on_mesh: bool) {
    let before = findings.errors.len();
    for (index, host) in hosts.iter().enumerate() {
        let path = format!("spec.hosts[{index}]");
        if host.parse::<std::net::IpAddr>().is_err() {
            check_wildcard_host(findings, &path, host);
        }
        if host == "*" && on_mesh {
            findings.error(
                &path,
                format!("wildcard host {host} is not allowed for virtual services bound to the mesh gateway"),
            );
        }
    }
    if findings.errors.len() > before {
        return;
    }
    for (index, host) in hosts.iter().enumerate() {
        if let Some(other) = hosts[..index].iter().find(|other| overlap(other, host)) {
            findings.error(
                format!("spec.hosts[{index}]"),
                format!("duplicate hosts in virtual service: {other} & {host}"),
            );
        }
    }
}

/// Whether one host, or the wildcard that it is, covers the other.
fn overlap(one: &str, other: &str) -> bool {
    let covers = |wide: &str, narrow: &str| match wide.strip_prefix('*') {
        Some(suffix) => narrow.strip_prefix('*').unwrap_or(narrow).ends_with(suffix),
        None => wide.eq_ignore_ascii_case(narrow),
    };
    covers(one, other) || covers(other, one)
}

pub(super) fn check_gateway_names(findings: &mut Findings, path: &str, gateways: &[String]) {
    for (index, gateway) in gateways.iter().enumerate() {
        let path = format!("{path}[{index}]");
        match gateway.split_once('/') {
            Some((namespace, name)) if namespace.is_empty() || name.is_empty() => {
                findings.error(path, "config namespace and gateway name cannot be empty");
            }
            Some((namespace, _)) if namespace != "." && !is_dns_label(namespace) => {
                findings.error(path, format!("invalid value for namespace: {namespace:?}"));
            }
            Some((_, name)) if !is_dns_label(name) => {
                findings.error(path, format!("invalid value for gateway name: {name:?}"));
            }
            Some(_) => {}
            None => {
                check_fqdn(findings, &path, gateway);
                if let Some((name, rest)) = gateway.split_once('.') {
                    let namespace = rest.split('.').next().unwrap_or_default();
                    findings.warn(path, format!("using legacy gatewayName format {gateway:?}; prefer the <namespace>/<name> format: \"{namespace}/{name}\""));
                }
            }
        }
    }
}

/// A destination: host required, no wildcard, port in range.
pub(super) fn check_destination(findings: &mut Findings, path: &str, destination: &Destination) {
    let host_path = format!("{path}.host");
    if destination.host.is_empty() {
        findings.error(host_path, "destination.host is required");
    } else if destination.host == "*" {
        findings.error(host_path, "invalid destination host *");
    } else {
        check_wildcard_host(findings, &host_path, &destination.host);
    }
    if !destination.subset.is_empty() {
        check_subset_name(findings, format!("{path}.subset"), &destination.subset);
    }
    if let Some(port) = &destination.port {
        check_port(findings, format!("{path}.port.number"), port.number);
    }
}

pub(super) fn check_subset_name(findings: &mut Findings, path: String, name: &str) {
    if name.is_empty() {
        findings.error(path, "subset name cannot be empty");
    } else if !is_dns_label(name) {
        findings.error(path, format!("subset name is invalid: {name}"));
    }
}

/// Weights: none negative, and not all zero when there is a choice to make. Istio takes any positive sum.
pub(super) fn check_weights(findings: &mut Findings, path: &str, weights: &[i32]) {
    for (index, &weight) in weights.iter().enumerate() {
        if weight < 0 {
            findings.error(format!("{path}[{index}].weight"), format!("weight {weight} < 0"));
        }
    }
    let total: i64 = weights.iter().map(|&weight| i64::from(weight)).sum();
    if weights.len() > 1 && total == 0 {
        findings.error(path, "total destination weight = 0");
    }
    if total > i64::from(u32::MAX) {
        findings.error(path, format!("total destination weight {total} > {}", u32::MAX));
    }
}

fn check_l4_destinations(findings: &mut Findings, path: &str, routes: &[RouteDestination], kind: &str) {
    let path = format!("{path}.route");
    if routes.is_empty() {
        findings.error(&path, format!("{kind} route is required"));
    }
    for (index, route) in routes.iter().enumerate() {
        check_destination(findings, &format!("{path}[{index}].destination"), &route.destination);
    }
    check_weights(findings, &path, &routes.iter().map(|route| route.weight).collect::<Vec<_>>());
}

fn check_tls_match(findings: &mut Findings, path: &str, condition: &TlsMatchAttributes, hosts: &[String]) {
    if condition.sni_hosts.is_empty() {
        findings.error(format!("{path}.sniHosts"), "TLS match must have at least one SNI host");
    }
    for (index, sni) in condition.sni_hosts.iter().enumerate() {
        let path = format!("{path}.sniHosts[{index}]");
        if sni.parse::<std::net::IpAddr>().is_ok() {
            let words = format!(
                "using an IP address ({sni:?}) goes against SNI spec and most clients do not support this"
            );
            findings.warn(path, words);
            continue;
        }
        let before = findings.errors.len();
        check_wildcard_host(findings, &path, sni);
        if findings.errors.len() > before {
            continue;
        }
        let covered = hosts.iter().any(|host| {
            host == sni || host == "*" || host.strip_prefix('*').is_some_and(|suffix| sni.ends_with(suffix))
        });
        if !covered {
            findings.error(
                path,
                format!(
                    "SNI host {sni:?} is not a compatible subset of any of the virtual service hosts: [{}]",
                    hosts.join(", ")
                ),
            );
        }
    }
    check_subnets(findings, &format!("{path}.destinationSubnets"), &condition.destination_subnets);
    check_l4_common(findings, path, condition.port, &condition.source_labels, &condition.gateways);
}

fn check_tcp_match(findings: &mut Findings, path: &str, condition: &L4MatchAttributes) {
    check_subnets(findings, &format!("{path}.destinationSubnets"), &condition.destination_subnets);
    if !condition.source_subnet.is_empty() {
        check_subnets(
            findings,
            &format!("{path}.sourceSubnet"),
            std::slice::from_ref(&condition.source_subnet),
        );
    }
    check_l4_common(findings, path, condition.port, &condition.source_labels, &condition.gateways);
}

fn check_l4_common(
    findings: &mut Findings,
    path: &str,
    port: u32,
    labels: &std::collections::BTreeMap<String, String>,
    gateways: &[String],
) {
    if port != 0 {
        check_port(findings, format!("{path}.port"), port);
    }
    check_labels(findings, &format!("{path}.sourceLabels"), labels);
    check_gateway_names(findings, &format!("{path}.gateways"), gateways);
}

fn check_subnets(findings: &mut Findings, path: &str, subnets: &[String]) {
    for subnet in subnets {
        let (address, length) = subnet.split_once('/').map_or((subnet.as_str(), None), |(a, l)| (a, Some(l)));
        let valid = match address.parse::<std::net::IpAddr>() {
            Err(_) => false,
            Ok(ip) => length.is_none_or(|length| {
                length.parse::<u8>().is_ok_and(|length| length <= if ip.is_ipv4() { 32 } else { 128 })
            }),
        };
        if !valid {
            findings.error(path, format!("{subnet} is not a valid CIDR block"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn validate(spec: Value) -> Findings {
        validate_virtual_service(&serde_json::from_value(spec).expect("parses"))
    }

    fn errors(spec: Value) -> Vec<String> {
        validate(spec).errors.iter().map(ToString::to_string).collect()
    }

    fn with_route(route: Value) -> Value {
        json!({"hosts": ["customers"], "http": [route]})
    }

    #[test]
    fn the_courses_services_are_valid() {
        let split = json!({"hosts": ["customers.default.svc.cluster.local"], "http": [{"route": [
            {"destination": {"host": "customers", "port": {"number": 80}, "subset": "v1"}, "weight": 50},
            {"destination": {"host": "customers", "port": {"number": 80}, "subset": "v2"}, "weight": 50}]}]});
        assert_eq!(validate(split), Findings::default());
        let edge = json!({"hosts": ["*"], "gateways": ["gateway"],
            "http": [{"route": [{"destination": {"host": "web-frontend.default.svc.cluster.local"}}]}]});
        assert_eq!(validate(edge), Findings::default());
    }

    #[test]
    fn weights_need_a_positive_sum_only() {
        let route = |a: i32, b: i32| {
            with_route(json!({"route": [
                {"destination": {"host": "a"}, "weight": a}, {"destination": {"host": "b"}, "weight": b}]}))
        };
        assert!(errors(route(70, 20)).is_empty());
        assert!(errors(route(1, 0)).is_empty());
        assert_eq!(errors(route(0, 0)), ["spec.http[0].route: total destination weight = 0"]);
        assert!(errors(route(-1, 2))[0].contains("spec.http[0].route[0].weight: weight -1 < 0"));
    }

    #[test]
    fn hosts_and_gateways_are_checked() {
        let route = json!([{"route": [{"destination": {"host": "a"}}]}]);
        assert!(errors(json!({"hosts": ["*"], "http": route}))[0].contains("mesh gateway"));
        assert!(
            errors(json!({"hosts": ["a", "a"], "http": route}))[0]
                .contains("duplicate hosts in virtual service: a & a")
        );
        assert!(errors(json!({"hosts": ["a_b..c"], "http": route}))[0].contains("spec.hosts[0]"));
        assert!(errors(json!({"hosts": ["x.*.com"], "http": route}))[0].contains("leftmost"));
        assert!(
            errors(json!({"hosts": ["a"], "gateways": ["Bad Name"], "http": route}))[0]
                .contains("spec.gateways[0]")
        );
        assert!(errors(json!({"hosts": ["a"]}))[0].contains("http, tcp or tls must be provided"));
    }

    #[test]
    fn http_rules_need_exactly_one_outcome() {
        assert!(
            errors(with_route(json!({})))[0].contains("HTTP route, redirect or direct_response is required")
        );
        let both = with_route(json!({"redirect": {"uri": "/x"}, "route": [{"destination": {"host": "a"}}]}));
        assert!(errors(both)[0].contains("cannot contain both route and redirect"));
        assert!(
            errors(with_route(json!({"route": [{"destination": {}}]})))[0]
                .contains("destination.host is required")
        );
        assert!(errors(with_route(json!({"directResponse": {"status": 99}})))[0].contains("status"));
    }

    #[test]
    fn matches_durations_and_ports_are_checked() {
        let bad = with_route(json!({"match": [{"uri": {"regex": "("}}], "timeout": "later",
            "route": [{"destination": {"host": "a", "port": {"number": 0}}}]}));
        let found = errors(bad);
        for path in [
            "spec.http[0].match[0].uri.regex",
            "spec.http[0].timeout",
            "spec.http[0].route[0].destination.port.number",
        ] {
            assert!(found.iter().any(|error| error.starts_with(path)), "{path}: {found:?}");
        }
        let unreachable = json!({"hosts": ["a"], "http": [
            {"route": [{"destination": {"host": "a"}}]}, {"route": [{"destination": {"host": "b"}}]}]});
        assert_eq!(
            validate(unreachable).warnings[0].message,
            "virtualService rule #1 not used (only the last rule can have no matches)"
        );
    }

    #[test]
    fn tls_and_tcp_routes_are_checked() {
        let tls = json!({"hosts": ["a.com"], "gateways": ["gw"], "tls": [{"match": [{"sniHosts": ["b.com"]}],
            "route": [{"destination": {"host": "a"}}]}]});
        assert!(errors(tls)[0].contains("SNI host"));
        let tcp = json!({"hosts": ["a.com"], "tcp": [{"match": [{"destinationSubnets": ["1.2.3.4/99"]}], "route": []}]});
        assert_eq!(errors(tcp).len(), 2);
    }
}
