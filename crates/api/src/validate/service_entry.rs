//! Validation of ServiceEntry, WorkloadEntry and WorkloadGroup.
use std::collections::BTreeSet;
use std::net::IpAddr;

use super::hosts::{
    UNIX, check_export_to, check_fqdn, check_unix, check_wildcard_host, is_dns_label, is_range,
};
use super::{Findings, check_labels, check_port, check_selector};
use crate::networking::service_entry::{EntryResolution, ServiceEntrySpec};
use crate::networking::workload_entry::WorkloadEntrySpec;
use crate::networking::workload_group::{ReadinessProbe, WorkloadGroupSpec};

/// What the protocol of a port means for the checks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Http,
    Tls,
    Bytes,
    Unknown,
}

fn family(protocol: &str) -> Family {
    match protocol.to_ascii_lowercase().as_str() {
        "http" | "http_proxy" | "http2" | "grpc" | "grpc-web" => Family::Http,
        "https" | "tls" => Family::Tls,
        "tcp" | "udp" | "mongo" | "redis" | "mysql" | "hbone" => Family::Bytes,
        _ => Family::Unknown,
    }
}

/// Validates a ServiceEntry's spec.
pub fn validate_service_entry(spec: &ServiceEntrySpec) -> Findings {
    let mut findings = Findings::default();
    if let Some(selector) = &spec.workload_selector {
        if selector.labels.is_empty() {
            findings.warn(
                "spec.workloadSelector",
                "service entry: workload selector specified without labels, will be applied to all services in namespace",
            );
        }
        check_selector(&mut findings, "spec.workloadSelector.labels", &selector.labels);
        if !spec.endpoints.is_empty() {
            findings.error("spec", "only one of WorkloadSelector or Endpoints is allowed in Service Entry");
        }
    }
    check_hosts(&mut findings, spec);
    check_addresses(&mut findings, spec);
    check_ports(&mut findings, spec);
    check_endpoints(&mut findings, spec);
    check_export_to(&mut findings, &spec.export_to, true);
    findings
}

fn check_hosts(findings: &mut Findings, spec: &ServiceEntrySpec) {
    if spec.hosts.is_empty() {
        findings.error("spec.hosts", "service entry must have at least one host");
    }
    for (index, host) in spec.hosts.iter().enumerate() {
        let path = format!("spec.hosts[{index}]");
        if host == "*" {
            findings.error(path, format!("invalid host {host}"));
            continue;
        }
        if host.starts_with('*') && !host.starts_with("*.") {
            findings.warn(
                path.clone(),
                format!(
                    "partial wildcard {host:?} may yield unexpected results when used with other wildcards"
                ),
            );
        }
        check_wildcard_host(findings, &path, host);
    }
    let tells_hosts_apart = |protocol: &str| matches!(family(protocol), Family::Http | Family::Tls);
    if spec.resolution != EntryResolution::None
        && spec.hosts.len() > 1
        && spec.ports.iter().any(|port| !tells_hosts_apart(&port.protocol))
    {
        findings.error("spec.hosts", "multiple hosts provided with non-HTTP, non-TLS ports");
    }
}

fn check_addresses(findings: &mut Findings, spec: &ServiceEntrySpec) {
    let mut has_range = false;
    for (index, address) in spec.addresses.iter().enumerate() {
        let path = format!("spec.addresses[{index}]");
        if address.contains('/') {
            has_range = true;
            if !is_range(address) {
                findings.error(path, format!("{address} is not a valid CIDR block"));
            }
        } else if address.parse::<IpAddr>().is_err() {
            findings.error(path, format!("{address} is not a valid IP"));
        }
    }
    if has_range && !matches!(spec.resolution, EntryResolution::None | EntryResolution::Static) {
        findings.error("spec.addresses", "CIDR addresses are allowed only for NONE/STATIC resolution types");
    }
}

fn check_ports(findings: &mut Findings, spec: &ServiceEntrySpec) {
    let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for (index, port) in spec.ports.iter().enumerate() {
        let path = format!("spec.ports[{index}]");
        if !names.insert(&port.name) {
            findings.error(
                format!("{path}.name"),
                format!("service entry port name {:?} already defined", port.name),
            );
        }
        if !numbers.insert(port.number) {
            findings.error(
                format!("{path}.number"),
                format!("service entry port {} already defined", port.number),
            );
        }
        if port.target_port != 0 {
            check_port(findings, format!("{path}.targetPort"), port.target_port);
        }
        check_port_name(findings, format!("{path}.name"), &port.name);
        if !port.protocol.is_empty() && family(&port.protocol) == Family::Unknown {
            findings.error(format!("{path}.protocol"), format!("unsupported protocol: {}", port.protocol));
        }
        check_port(findings, format!("{path}.number"), port.number);
    }
}

fn check_port_name(findings: &mut Findings, path: String, name: &str) {
    if !is_dns_label(name) || name.bytes().any(|c| c.is_ascii_uppercase()) {
        findings.error(path, format!("invalid port name: {name}"));
    }
}

fn check_endpoints(findings: &mut Findings, spec: &ServiceEntrySpec) {
    let names: BTreeSet<&str> = spec.ports.iter().map(|port| port.name.as_str()).collect();
    match spec.resolution {
        EntryResolution::None => {
            if !spec.endpoints.is_empty() {
                findings.error("spec.endpoints", "no endpoints should be provided for resolution type none");
            }
            if spec.workload_selector.is_some() {
                findings.warn(
                    "spec.workloadSelector",
                    "workloadSelector should not be set when resolution mode is NONE",
                );
            }
        }
        EntryResolution::Static => {
            for (index, endpoint) in spec.endpoints.iter().enumerate() {
                let path = format!("spec.endpoints[{index}]");
                check_workload(findings, &path, endpoint, Some(&names), false);
            }
        }
        EntryResolution::Dns | EntryResolution::DnsRoundRobin => check_dns(findings, spec, &names),
        EntryResolution::DynamicDns => check_dynamic_dns(findings, spec),
    }
}

fn check_dns(findings: &mut Findings, spec: &ServiceEntrySpec, names: &BTreeSet<&str>) {
    let mode = if spec.resolution == EntryResolution::Dns { "DNS" } else { "DNS_ROUND_ROBIN" };
    if spec.endpoints.is_empty() && spec.hosts.iter().any(|host| host.starts_with('*')) {
        findings.error(
            "spec.hosts",
            format!("hosts must be FQDN if no endpoints are provided for resolution mode {mode}"),
        );
    }
    if spec.resolution == EntryResolution::DnsRoundRobin && spec.endpoints.len() > 1 {
        findings.error(
            "spec.endpoints",
            format!("there must only be 0 or 1 endpoint for resolution mode {mode}"),
        );
    }
    for (index, endpoint) in spec.endpoints.iter().enumerate() {
        let path = format!("spec.endpoints[{index}]");
        if endpoint.address.starts_with(UNIX) {
            findings.error(
                format!("{path}.address"),
                format!("endpoint address {:?} is not a valid FQDN or an IP address", endpoint.address),
            );
        } else {
            check_workload(findings, &path, endpoint, Some(names), true);
        }
    }
    if spec.workload_selector.is_some() {
        findings.warn(
            "spec.workloadSelector",
            format!("workloadSelector should not be set when resolution mode is {mode}"),
        );
    }
    let has_bytes = spec.ports.iter().any(|port| port.protocol.eq_ignore_ascii_case("tcp"));
    if !spec.addresses.is_empty() && spec.hosts.len() > 1 && has_bytes {
        findings.warn(
            "spec.hosts",
            "service entry can not have more than one host specified simultaneously with address and tcp port",
        );
    }
}

fn check_dynamic_dns(findings: &mut Findings, spec: &ServiceEntrySpec) {
    if !spec.endpoints.is_empty() || spec.workload_selector.is_some() {
        findings.error("spec.endpoints", "no endpoints should be provided for resolution type DYNAMIC_DNS");
    }
    for (index, host) in spec.hosts.iter().enumerate().filter(|(_, host)| !host.starts_with('*')) {
        findings.error(
            format!("spec.hosts[{index}]"),
            format!("host {host:?} must be a wildcard for resolution type DYNAMIC_DNS"),
        );
    }
}

fn check_workload(
    findings: &mut Findings,
    path: &str,
    workload: &WorkloadEntrySpec,
    ports: Option<&BTreeSet<&str>>,
    names_allowed: bool,
) {
    let address = &workload.address;
    if address.is_empty() {
        if workload.network.is_empty() {
            findings.error(format!("{path}.address"), "address is required");
            return;
        }
        findings
            .warn(format!("{path}.address"), format!("address is unset with network {:?}", workload.network));
    } else if let Some(socket) = address.strip_prefix(UNIX) {
        check_socket(findings, path, socket, workload, ports);
    } else if address.parse::<IpAddr>().is_err() {
        let path = format!("{path}.address");
        if !names_allowed {
            findings.error(path, format!("endpoint address {address:?} is not a valid IP address"));
        } else {
            let mut of_name = Findings::default();
            check_fqdn(&mut of_name, &path, address);
            if !of_name.is_valid() {
                findings.error(
                    path,
                    format!("endpoint address {address:?} is not a valid FQDN or an IP address"),
                );
            }
        }
    }
    for (name, port) in &workload.ports {
        let path = format!("{path}.ports[{name}]");
        if ports.is_some_and(|ports| !ports.contains(name.as_str())) {
            findings.error(path.clone(), format!("endpoint port {port} is not defined by the service entry"));
        }
        check_port_name(findings, path.clone(), name);
        check_port(findings, path, *port);
    }
    check_labels(findings, &format!("{path}.labels"), &workload.labels);
}

fn check_socket(
    findings: &mut Findings,
    path: &str,
    socket: &str,
    workload: &WorkloadEntrySpec,
    ports: Option<&BTreeSet<&str>>,
) {
    let at = format!("{path}.address");
    check_unix(findings, at.clone(), socket);
    if !workload.ports.is_empty() {
        findings.error(
            format!("{path}.ports"),
            format!("unix endpoint {} must not include ports", workload.address),
        );
    }
    if ports.is_some_and(|ports| ports.len() != 1) {
        findings.error(at, "exactly 1 service port required for unix endpoints");
    }
}

/// Validates a WorkloadEntry's spec.
pub fn validate_workload_entry(spec: &WorkloadEntrySpec) -> Findings {
    let mut findings = Findings::default();
    check_workload(&mut findings, "spec", spec, None, true);
    findings
}

/// Validates a WorkloadGroup's spec.
pub fn validate_workload_group(spec: &WorkloadGroupSpec) -> Findings {
    let mut findings = Findings::default();
    if spec.template.is_none() {
        findings.error("spec.template", "template is required");
        return findings;
    }
    if let Some(metadata) = &spec.metadata {
        check_labels(&mut findings, "spec.metadata.labels", &metadata.labels);
    }
    if let Some(probe) = &spec.probe {
        check_probe(&mut findings, probe);
    }
    findings
}

fn check_probe(findings: &mut Findings, probe: &ReadinessProbe) {
    for (name, value) in [
        ("periodSeconds", probe.period_seconds),
        ("initialDelaySeconds", probe.initial_delay_seconds),
        ("timeoutSeconds", probe.timeout_seconds),
        ("successThreshold", probe.success_threshold),
        ("failureThreshold", probe.failure_threshold),
    ] {
        if value < 0 {
            findings.error(format!("spec.probe.{name}"), format!("{name} must be non-negative"));
        }
    }
    let methods =
        [probe.http_get.is_some(), probe.tcp_socket.is_some(), probe.exec.is_some(), probe.grpc.is_some()];
    if methods.iter().filter(|given| **given).count() != 1 {
        findings.error("spec.probe", "exactly one health check method is required");
    }
    if let Some(http) = &probe.http_get {
        check_port(findings, "spec.probe.httpGet.port".to_owned(), http.port);
        if !matches!(http.scheme.as_str(), "" | "HTTP" | "HTTPS") {
            findings.error("spec.probe.httpGet.scheme", "httpGet.scheme must be one of \"HTTPS\", \"HTTP\"");
        }
        if http.http_headers.iter().any(|header| header.name.is_empty()) {
            findings.error("spec.probe.httpGet.httpHeaders", "header name cannot be empty");
        }
    }
    if let Some(tcp) = &probe.tcp_socket {
        check_port(findings, "spec.probe.tcpSocket.port".to_owned(), tcp.port);
    }
    if let Some(grpc) = &probe.grpc {
        check_port(findings, "spec.probe.grpc.port".to_owned(), grpc.port);
    }
    if probe.exec.as_ref().is_some_and(|exec| exec.command.is_empty()) {
        findings.error("spec.probe.exec.command", "exec.command is required");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn errors(spec: Value) -> Vec<String> {
        let spec: ServiceEntrySpec = serde_json::from_value(spec).expect("parses");
        validate_service_entry(&spec).errors.iter().map(ToString::to_string).collect()
    }

    fn entry(overrides: &Value) -> Value {
        let mut spec = json!({"hosts": ["api.example.com"], "resolution": "DNS",
            "ports": [{"number": 443, "name": "tls", "protocol": "TLS"}]});
        for (key, value) in overrides.as_object().expect("an object") {
            spec[key] = value.clone();
        }
        spec
    }

    #[test]
    fn everyday_entries_are_valid() {
        for given in [
            json!({}),
            json!({"resolution": "NONE", "hosts": ["*.example.com"]}),
            json!({"resolution": "NONE", "addresses": ["10.0.0.0/8", "192.168.0.1"]}),
            json!({"resolution": "STATIC", "location": "MESH_INTERNAL",
                "endpoints": [{"address": "1.2.3.4", "ports": {"tls": 8443}, "labels": {"a": "b"}}]}),
            json!({"resolution": "STATIC", "endpoints": [{"address": "unix:///var/run/x.sock"}]}),
            json!({"resolution": "DNS_ROUND_ROBIN", "endpoints": [{"address": "us.example.com"}]}),
            json!({"resolution": "DYNAMIC_DNS", "hosts": ["*.example.com"]}),
            json!({"resolution": "STATIC", "workloadSelector": {"labels": {"app": "x"}}}),
        ] {
            assert_eq!(errors(entry(&given)), Vec::<String>::new(), "{given}");
        }
    }

    #[test]
    fn bad_entries_are_refused_in_istios_words() {
        for (given, words) in [
            (json!({"hosts": []}), "service entry must have at least one host"),
            (json!({"hosts": ["*"], "resolution": "NONE"}), "invalid host *"),
            (
                json!({"addresses": ["10.0.0.0/8"]}),
                "CIDR addresses are allowed only for NONE/STATIC resolution types",
            ),
            (json!({"addresses": ["x"]}), "x is not a valid IP"),
            (
                json!({"addresses": ["10.0.0.0/40"], "resolution": "NONE"}),
                "10.0.0.0/40 is not a valid CIDR block",
            ),
            (
                json!({"hosts": ["*.example.com"]}),
                "hosts must be FQDN if no endpoints are provided for resolution mode DNS",
            ),
            (
                json!({"resolution": "NONE", "endpoints": [{"address": "1.2.3.4"}]}),
                "no endpoints should be provided for resolution type none",
            ),
            (
                json!({"resolution": "STATIC", "endpoints": [{"address": "a.example.com"}]}),
                "endpoint address \"a.example.com\" is not a valid IP address",
            ),
            (
                json!({"resolution": "STATIC", "endpoints": [{"address": "1.2.3.4", "ports": {"http": 80}}]}),
                "endpoint port 80 is not defined by the service entry",
            ),
            (
                json!({"resolution": "DNS_ROUND_ROBIN", "endpoints": [{"address": "a.com"}, {"address": "b.com"}]}),
                "there must only be 0 or 1 endpoint for resolution mode DNS_ROUND_ROBIN",
            ),
            (
                json!({"resolution": "STATIC", "workloadSelector": {"labels": {"a": "b"}}, "endpoints": [{"address": "1.2.3.4"}]}),
                "only one of WorkloadSelector or Endpoints is allowed in Service Entry",
            ),
            (
                json!({"ports": [{"number": 80, "name": "a"}, {"number": 80, "name": "a"}]}),
                "service entry port name \"a\" already defined",
            ),
            (json!({"ports": [{"number": 80, "name": "a", "protocol": "FTP"}]}), "unsupported protocol: FTP"),
            (json!({"ports": [{"number": 80, "name": "A_b"}]}), "invalid port name: A_b"),
            (
                json!({"hosts": ["a.com", "b.com"], "ports": [{"number": 80, "name": "a", "protocol": "TCP"}]}),
                "multiple hosts provided with non-HTTP, non-TLS ports",
            ),
            (json!({"resolution": "DYNAMIC_DNS"}), "must be a wildcard for resolution type DYNAMIC_DNS"),
        ] {
            let found = errors(entry(&given));
            assert!(found.iter().any(|error| error.contains(words)), "{given}: {found:?}");
        }
    }

    #[test]
    fn workload_entries_and_groups_are_checked() {
        let entry = |spec: Value| {
            let spec: WorkloadEntrySpec = serde_json::from_value(spec).expect("parses");
            validate_workload_entry(&spec).errors.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert!(entry(json!({"address": "vm1.example.com", "ports": {"http": 8080}})).is_empty());
        assert!(entry(json!({"network": "vpc"})).is_empty(), "a gateway of that network stands for it");
        assert_eq!(entry(json!({})), ["spec.address: address is required"]);
        assert!(entry(json!({"address": "unix://x", "ports": {"http": 1}})).len() > 1);
        let group = |spec: Value| {
            let spec: WorkloadGroupSpec = serde_json::from_value(spec).expect("parses");
            validate_workload_group(&spec).errors.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(group(json!({})), ["spec.template: template is required"]);
        assert!(group(json!({"template": {}, "probe": {"httpGet": {"port": 80}}})).is_empty());
        assert!(group(json!({"template": {}, "probe": {"periodSeconds": -1, "exec": {}}})).len() == 2);
    }
}
