//! Validation of Sidecar, with Istio's words.
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::destination_rule::check_pool;
use super::gateway::check_tls_options;
use super::hosts::{UNIX, check_fqdn, check_unix, check_wildcard_host, is_dns_label};
use super::{Findings, check_port, check_selector};
use crate::networking::gateway::{ServerTlsMode, ServerTlsSettings};
use crate::networking::sidecar::{
    CaptureMode, EgressListener, IngressListener, SidecarPort, SidecarSpec, SidecarTrafficMode,
    SidecarTrafficPolicy,
};

/// Validates a Sidecar's spec.
pub fn validate_sidecar(spec: &SidecarSpec) -> Findings {
    let mut findings = Findings::default();
    if let Some(selector) = &spec.workload_selector {
        check_selector(&mut findings, "spec.workloadSelector.labels", &selector.labels);
        if selector.labels.is_empty() {
            findings.warn(
                "spec.workloadSelector",
                "sidecar: workload selector specified without labels, will be applied to all services in namespace",
            );
        }
    }
    if spec.egress.is_empty()
        && spec.ingress.is_empty()
        && spec.outbound_traffic_policy.is_none()
        && spec.inbound_connection_pool.is_none()
    {
        findings.error("spec", "sidecar: empty configuration provided");
        return findings;
    }
    let mut ports = BTreeSet::new();
    for (index, listener) in spec.ingress.iter().enumerate() {
        check_ingress(&mut findings, &format!("spec.ingress[{index}]"), listener, &mut ports);
    }
    if let Some(pool) = &spec.inbound_connection_pool {
        check_pool(&mut findings, "spec.inboundConnectionPool", pool);
    }
    check_egress(&mut findings, &spec.egress);
    if let Some(policy) = &spec.outbound_traffic_policy {
        check_outbound(&mut findings, policy);
    }
    findings
}

fn check_ingress(findings: &mut Findings, path: &str, listener: &IngressListener, ports: &mut BTreeSet<u32>) {
    let Some(port) = &listener.port else {
        findings.error(format!("{path}.port"), "sidecar: port is required for ingress listeners");
        return;
    };
    check_sidecar_port(findings, path, port);
    check_port(findings, format!("{path}.port.number"), port.number);
    check_bind(findings, path, &listener.bind);
    if !ports.insert(port.number) {
        findings.error(format!("{path}.port.number"), "sidecar: ports on IP bound listeners must be unique");
    }
    check_endpoint(findings, format!("{path}.defaultEndpoint"), &listener.default_endpoint);
    if let Some(tls) = &listener.tls {
        check_tls(findings, &format!("{path}.tls"), tls);
    }
    if let Some(pool) = &listener.connection_pool {
        check_pool(findings, &format!("{path}.connectionPool"), pool);
        if pool.http.is_some() && !is_http(&port.protocol) {
            findings.warn(
                format!("{path}.connectionPool.http"),
                format!(
                    "sidecar: HTTP connection pool settings are configured for port {} ({:?}) but its protocol is not HTTP ({}); only TCP settings will apply",
                    port.number, port.name, port.protocol
                ),
            );
        }
    }
}

fn is_http(protocol: &str) -> bool {
    ["http", "http2", "grpc", "grpc-web", "http_proxy"].contains(&protocol.to_ascii_lowercase().as_str())
}

fn check_sidecar_port(findings: &mut Findings, path: &str, port: &SidecarPort) {
    if port.target_port > 0 {
        findings.error(format!("{path}.port.targetPort"), "targetPort has no impact on Sidecars");
    }
    if !port.name.is_empty() && !is_dns_label(&port.name) {
        findings.error(format!("{path}.port.name"), format!("invalid port name: {}", port.name));
    }
    let protocol = port.protocol.to_ascii_lowercase();
    let known = [
        "http",
        "http2",
        "http_proxy",
        "grpc",
        "grpc-web",
        "https",
        "tls",
        "tcp",
        "udp",
        "mongo",
        "redis",
        "mysql",
        "hbone",
    ];
    if !known.contains(&protocol.as_str()) {
        findings.error(format!("{path}.port.protocol"), format!("unsupported protocol: {}", port.protocol));
    }
}

fn check_bind(findings: &mut Findings, path: &str, bind: &str) {
    if !bind.is_empty() && bind.parse::<IpAddr>().is_err() {
        findings.error(format!("{path}.bind"), format!("{bind} is not a valid IP"));
    }
}

fn check_endpoint(findings: &mut Findings, path: String, endpoint: &str) {
    if endpoint.is_empty() {
        return;
    }
    if let Some(socket) = endpoint.strip_prefix(UNIX) {
        check_unix(findings, path, socket);
        return;
    }
    let Some((host, port)) = endpoint.rsplit_once(':') else {
        findings.error(path, format!("address {endpoint}: missing port in address"));
        return;
    };
    if !["", "127.0.0.1", "0.0.0.0", "[::1]", "[::]"].contains(&host) {
        findings.error(
            path.clone(),
            "sidecar: defaultEndpoint must be of form 127.0.0.1:<port>,0.0.0.0:<port>,[::1]:port,[::]:port,unix://filepath or unset",
        );
    }
    match port.parse::<u32>() {
        Ok(port) => check_port(findings, path, port),
        Err(error) => {
            findings.error(path, format!("sidecar: defaultEndpoint port ({port}) is not a number: {error}"))
        }
    }
}

fn check_tls(findings: &mut Findings, path: &str, tls: &ServerTlsSettings) {
    if !tls.subject_alt_names.is_empty() {
        findings.error(
            format!("{path}.subjectAltNames"),
            "sidecar: subjectAltNames is not supported in ingress tls",
        );
    }
    if tls.https_redirect {
        findings.error(format!("{path}.httpsRedirect"), "sidecar: httpsRedirect is not supported");
    }
    if !tls.credential_name.is_empty() {
        findings
            .error(format!("{path}.credentialName"), "sidecar: credentialName is not currently supported");
    }
    let refused = match tls.mode {
        ServerTlsMode::IstioMutual => Some("ISTIO_MUTUAL"),
        ServerTlsMode::AutoPassthrough => Some("AUTO_PASSTHROUGH"),
        _ => None,
    };
    check_tls_options(findings, path, tls);
    if let Some(mode) = refused {
        findings.error(
            format!("{path}.mode"),
            format!("configuration is invalid: cannot set mode to {mode} in sidecar ingress tls"),
        );
    }
}

fn check_egress(findings: &mut Findings, listeners: &[EgressListener]) {
    let (mut ports, mut sockets) = (BTreeSet::new(), BTreeSet::new());
    for (index, listener) in listeners.iter().enumerate() {
        let path = format!("spec.egress[{index}]");
        match &listener.port {
            None if index + 1 < listeners.len() => findings.error(
                format!("{path}.port"),
                "sidecar: the egress listener with empty port should be the last listener in the list",
            ),
            None => {}
            Some(port) => {
                check_sidecar_port(findings, &path, port);
                if port.number == 0 {
                    check_socket_listener(findings, &path, listener);
                    if !sockets.insert(&listener.bind) {
                        findings.error(
                            format!("{path}.bind"),
                            "sidecar: unix domain socket values for listeners must be unique",
                        );
                    }
                } else {
                    check_port(findings, format!("{path}.port.number"), port.number);
                    check_bind(findings, &path, &listener.bind);
                    if !ports.insert(port.number) {
                        findings.error(
                            format!("{path}.port.number"),
                            "sidecar: ports on IP bound listeners must be unique",
                        );
                    }
                }
            }
        }
        check_hosts(findings, &format!("{path}.hosts"), &listener.hosts);
    }
}

fn check_socket_listener(findings: &mut Findings, path: &str, listener: &EgressListener) {
    match listener.bind.strip_prefix(UNIX) {
        None => findings.error(
            format!("{path}.bind"),
            "sidecar: ports with 0 value must have a unix domain socket bind address",
        ),
        Some(socket) => check_unix(findings, format!("{path}.bind"), socket),
    }
    if listener.capture_mode == CaptureMode::Iptables {
        findings.error(
            format!("{path}.captureMode"),
            "sidecar: captureMode must be DEFAULT/NONE for unix domain socket listeners",
        );
    }
}

fn check_hosts(findings: &mut Findings, path: &str, hosts: &[String]) {
    if hosts.is_empty() {
        findings.error(path, "sidecar: egress listener must contain at least one host");
    }
    let mut seen: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (index, host) in hosts.iter().enumerate() {
        let path = format!("{path}[{index}]");
        let Some((namespace, name)) = host.split_once('/') else {
            findings.error(
                path,
                "namespace/dnsName: must be of form <namespace>/<dnsName>".to_owned()
                    + &format!(", got {host:?}"),
            );
            continue;
        };
        let known = seen.entry(namespace).or_default();
        let repeated =
            if name == "*" { !known.is_empty() } else { known.contains(name) || known.contains("*") };
        if repeated {
            findings.warn(path.clone(), format!("duplicated egress host: {host}"));
        }
        known.insert(name);
        if !matches!(namespace, "*" | "." | "~") && !is_dns_label(namespace) {
            findings.error(path.clone(), format!("namespace {namespace:?} is invalid"));
        }
        if name.is_empty() {
            findings.error(path, "config host must not be empty".to_owned());
        } else {
            check_wildcard_host(findings, &path, name);
            if name != "*" && !name.contains('.') {
                findings.error(path, format!("short names (non FQDN) are not allowed: {name:?}"));
            }
        }
    }
    if seen.get("*").is_some_and(|names| names.contains("*")) && seen.len() > 1 {
        findings.warn(path, "`*/*` host select all resources, no other hosts can be added");
    }
}

fn check_outbound(findings: &mut Findings, policy: &SidecarTrafficPolicy) {
    let Some(proxy) = &policy.egress_proxy else { return };
    let path = "spec.outboundTrafficPolicy.egressProxy";
    if policy.mode != SidecarTrafficMode::AllowAny {
        findings.error(
            path,
            "sidecar: egress_proxy must be set only with ALLOW_ANY outbound_traffic_policy mode",
        );
        return;
    }
    check_fqdn(findings, &format!("{path}.host"), &proxy.host);
    match &proxy.port {
        None => findings.error(format!("{path}.port"), "sidecar: egress_proxy port must be non-nil"),
        Some(port) => check_port(findings, format!("{path}.port.number"), port.number),
    }
}

/// The address and port of an IP endpoint of an ingress listener; `:PORT` means the loopback address.
pub fn default_endpoint(text: &str) -> Option<SocketAddr> {
    match text.strip_prefix(':') {
        Some(port) => Some(SocketAddr::from(([127, 0, 0, 1], port.parse().ok()?))),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn findings(spec: serde_json::Value) -> Findings {
        validate_sidecar(&serde_json::from_value(spec).expect("a Sidecar"))
    }

    #[test]
    fn what_istio_accepts_is_accepted() {
        let spec = json!({ "workloadSelector": { "labels": { "app": "web" } },
            "ingress": [{ "port": { "number": 9080, "protocol": "HTTP", "name": "http" }, "defaultEndpoint": "127.0.0.1:8080",
                "connectionPool": { "tcp": { "maxConnections": 10 } } }],
            "egress": [{ "port": { "number": 80, "protocol": "HTTP" }, "hosts": ["./*", "shop/*.example.com"] },
                { "hosts": ["istio-system/*", "~/*"] }],
            "outboundTrafficPolicy": { "mode": "ALLOW_ANY", "egressProxy": { "host": "egress.mesh.svc.cluster.local", "port": { "number": 80 } } } });
        assert_eq!(findings(spec), Findings::default());
    }

    #[test]
    fn what_istio_refuses_is_refused_in_its_words() {
        let port = json!({ "number": 80, "protocol": "HTTP" });
        for (spec, message) in [
            (json!({}), "sidecar: empty configuration provided"),
            (json!({ "ingress": [{}] }), "sidecar: port is required for ingress listeners"),
            (
                json!({ "ingress": [{ "port": port }, { "port": port }] }),
                "sidecar: ports on IP bound listeners must be unique",
            ),
            (
                json!({ "ingress": [{ "port": port, "defaultEndpoint": "10.0.0.1:80" }] }),
                "sidecar: defaultEndpoint must be of form 127.0.0.1:<port>,0.0.0.0:<port>,[::1]:port,[::]:port,unix://filepath or unset",
            ),
            (
                json!({ "ingress": [{ "port": port, "defaultEndpoint": "127.0.0.1:x" }] }),
                "sidecar: defaultEndpoint port (x) is not a number",
            ),
            (json!({ "egress": [{}] }), "sidecar: egress listener must contain at least one host"),
            (
                json!({ "egress": [{ "hosts": ["./*"] }, { "port": port, "hosts": ["./*"] }] }),
                "sidecar: the egress listener with empty port should be the last listener in the list",
            ),
            (
                json!({ "egress": [{ "port": { "number": 0, "protocol": "HTTP" }, "hosts": ["./*"] }] }),
                "sidecar: ports with 0 value must have a unix domain socket bind address",
            ),
            (json!({ "egress": [{ "hosts": ["customers"] }] }), "must be of form <namespace>/<dnsName>"),
            (json!({ "egress": [{ "hosts": ["./customers"] }] }), "short names (non FQDN) are not allowed"),
            (
                json!({ "outboundTrafficPolicy": { "egressProxy": { "host": "a.b" } } }),
                "sidecar: egress_proxy must be set only with ALLOW_ANY outbound_traffic_policy mode",
            ),
        ] {
            let found = findings(spec.clone());
            assert!(found.errors.iter().any(|error| error.message.contains(message)), "{spec}: {found:?}");
        }
        let doubled = findings(json!({ "egress": [{ "hosts": ["*/*", "./a.com", "./a.com"] }] }));
        assert_eq!(doubled.warnings.len(), 2, "{doubled:?}");
    }
}
