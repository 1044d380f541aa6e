//! Validation of Gateway.
use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::hosts::{UNIX, check_unix, check_wildcard_host, is_dns_label};
use super::{Findings, check_labels, check_port};
use crate::networking::TlsProtocol;
use crate::networking::gateway::{GatewaySpec, Server, ServerTlsMode, ServerTlsSettings};

/// Validates a Gateway's spec.
pub fn validate_gateway(spec: &GatewaySpec) -> Findings {
    let mut findings = Findings::default();
    check_labels(&mut findings, "spec.selector", &spec.selector);
    if spec.servers.is_empty() {
        findings.error("spec.servers", "gateway must have at least one server");
    }
    let mut port_names = BTreeSet::new();
    for (index, server) in spec.servers.iter().enumerate() {
        let path = format!("spec.servers[{index}]");
        check_server(&mut findings, &path, server);
        if let Some(port) = server_port(server)
            && !port_names.insert(port.name.clone())
        {
            findings.error(
                format!("{path}.port.name"),
                format!("port names in servers must be unique: duplicate name {}", port.name),
            );
        }
    }
    findings
}

fn server_port(server: &Server) -> Option<&crate::networking::gateway::Port> {
    (server.port != Default::default()).then_some(&server.port)
}

fn check_server(findings: &mut Findings, path: &str, server: &Server) {
    if server.hosts.is_empty() {
        findings.error(format!("{path}.hosts"), "server config must contain at least one host");
    }
    for (index, host) in server.hosts.iter().enumerate() {
        check_server_host(findings, &format!("{path}.hosts[{index}]"), host);
    }
    let Some(port) = server_port(server) else {
        findings.error(format!("{path}.port"), "server config must contain a port");
        return;
    };
    check_place(findings, path, server, port.number);
    if port.name.is_empty() {
        findings.error(format!("{path}.port.name"), "port name must be set");
    }
    if port.target_port != 0 {
        findings.error(format!("{path}.port.targetPort"), "targetPort has no impact on Gateways");
    }
    let protocol = port.protocol.to_ascii_uppercase();
    if !matches!(
        protocol.as_str(),
        "HTTP"
            | "HTTPS"
            | "GRPC"
            | "GRPC-WEB"
            | "HTTP2"
            | "MONGO"
            | "REDIS"
            | "MYSQL"
            | "TCP"
            | "TLS"
            | "UDP"
            | "HTTP_PROXY"
    ) {
        findings.error(format!("{path}.port.protocol"), format!(
                "invalid protocol {:?}, supported protocols are HTTP, HTTP2, GRPC, GRPC-WEB, MONGO, REDIS, MYSQL, TCP",
                port.protocol
            ));
    }
    check_tls(findings, path, server, &protocol);
}

/// The address, and the port, which a Unix socket has none of.
fn check_place(findings: &mut Findings, path: &str, server: &Server, port: u32) {
    let at = format!("{path}.bind");
    let Some(socket) = server.bind.strip_prefix(UNIX) else {
        check_port(findings, format!("{path}.port.number"), port);
        if !server.bind.is_empty() && server.bind.parse::<std::net::IpAddr>().is_err() {
            findings.error(at, format!("{:?} is not an IP address or unix:// path", server.bind));
        }
        return;
    };
    check_unix(findings, at, socket);
    if port > 0 {
        let reason = format!("port number must be 0 for unix domain socket: {port}");
        findings.error(format!("{path}.port.number"), reason);
    }
}

fn check_server_host(findings: &mut Findings, path: &str, host: &str) {
    let name = match host.split_once('/') {
        None => host,
        Some((namespace, name)) => {
            if !matches!(namespace, "*" | ".") && !is_dns_label(namespace) {
                findings.error(path, format!("namespace {namespace:?} is invalid"));
            }
            name
        }
    };
    // Short names are not allowed at the edge, where there is no namespace to complete them from.
    check_wildcard_host(findings, path, name);
    if name != "*" && !name.contains('.') {
        findings.error(path, format!("short names (non FQDN) are not allowed: {name:?}"));
    }
}

fn check_tls(findings: &mut Findings, path: &str, server: &Server, protocol: &str) {
    let secured = matches!(protocol, "HTTPS" | "TLS");
    let Some(tls) = &server.tls else {
        if secured {
            findings.error(path, "server must have TLS settings for HTTPS/TLS protocols");
        }
        return;
    };
    if !matches!(protocol, "HTTP" | "HTTP2" | "HTTP_PROXY" | "GRPC" | "GRPC-WEB") && tls.https_redirect {
        findings.warn(format!("{path}.tls"), "tls.httpsRedirect should only be used with http servers");
    }
    let plain_http = matches!(protocol, "HTTP" | "HTTP2" | "GRPC" | "GRPC-WEB");
    if plain_http
        && *tls
            != (crate::networking::gateway::ServerTlsSettings {
                https_redirect: tls.https_redirect,
                ..Default::default()
            })
    {
        findings.error(format!("{path}.tls"), "server cannot have TLS settings for plain text HTTP ports");
    }
    if !secured {
        if !plain_http {
            findings.error(format!("{path}.tls"), "server cannot have TLS settings for non HTTPS/TLS ports");
        }
        return;
    }
    check_tls_options(findings, &format!("{path}.tls"), tls);
    check_hashes(findings, &format!("{path}.tls"), tls);
}

/// Proxies refuse a whole listener for a hash that they cannot read.
fn check_hashes(findings: &mut Findings, path: &str, tls: &ServerTlsSettings) {
    for (index, text) in tls.verify_certificate_hash.iter().enumerate() {
        // Colons are only part of the spelling that has one between any two bytes.
        let colons = text.len() == 95;
        let digits: Vec<char> = text.chars().filter(|c| !colons || *c != ':').collect();
        if digits.len() != 64 || !digits.iter().all(char::is_ascii_hexdigit) {
            let reason = format!("{text:?} is not a SHA-256 hash in hexadecimal digits");
            findings.error(format!("{path}.verifyCertificateHash[{index}]"), reason);
        }
    }
    for (index, text) in tls.verify_certificate_spki.iter().enumerate() {
        if !STANDARD.decode(text).is_ok_and(|bytes| bytes.len() == 32) {
            let reason = format!("{text:?} is not a SHA-256 hash in base64");
            findings.error(format!("{path}.verifyCertificateSpki[{index}]"), reason);
        }
    }
}

/// Cipher suites that Istio knows by name.
const CIPHERS: [&str; 15] = [
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
    "ECDHE-ECDSA-AES128-SHA",
    "ECDHE-RSA-AES128-SHA",
    "ECDHE-ECDSA-AES256-SHA",
    "ECDHE-RSA-AES256-SHA",
    "AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-SHA",
    "AES256-SHA",
    "DES-CBC3-SHA",
];

/// What holds of servers of Gateways and of ingress listeners of Sidecars.
pub(super) fn check_tls_options(findings: &mut Findings, path: &str, tls: &ServerTlsSettings) {
    if matches!(tls.min_protocol_version, TlsProtocol::TLSV1_0 | TlsProtocol::TLSV1_1)
        && tls.cipher_suites.is_empty()
    {
        findings.warn(
            path,
            "TLS version below TLSV1_2 require setting compatible ciphers as by default they no longer include compatible ciphers.",
        );
    }
    let (mut known, mut unknown, mut twice) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for name in &tls.cipher_suites {
        // What begins with a sign is a rule for the list, not a name.
        let is_rule = !name.starts_with(char::is_alphanumeric);
        if !is_rule && name != "ALL" && !CIPHERS.contains(&name.as_str()) {
            unknown.insert(name.as_str());
        } else if !known.insert(name) {
            twice.insert(name.as_str());
        }
    }
    for (what, names) in [("invalid", unknown), ("duplicate", twice)] {
        if !names.is_empty() {
            let names: Vec<&str> = names.into_iter().collect();
            let words = format!("ignoring {what} cipher suites: [{}]", names.join(" "));
            findings.warn(format!("{path}.cipherSuites"), words);
        }
    }
    check_certificates(findings, path, tls);
    if tls.ca_crl.is_empty() {
        return;
    }
    let path = format!("{path}.caCrl");
    if !tls.credential_name.is_empty() {
        let words = "CRL is not supported with credentialName. CRL has to be specified in the credential";
        findings.warn(path, words);
    } else if tls.mode == ServerTlsMode::Simple {
        findings.error(path, "CRL is not supported with SIMPLE TLS");
    }
}

/// Where a server's certificates come from: a Secret, or files.
fn check_certificates(findings: &mut Findings, path: &str, tls: &ServerTlsSettings) {
    let by_secret = !tls.credential_name.is_empty() || !tls.credential_names.is_empty();
    let given = [
        ("serverCertificate", "server certificate", !tls.server_certificate.is_empty()),
        ("privateKey", "private key", !tls.private_key.is_empty()),
        ("caCertificates", "CA bundle", !tls.ca_certificates.is_empty()),
        ("credentialName", "credentialName", by_secret),
    ];
    let mode = match tls.mode {
        ServerTlsMode::IstioMutual => {
            for (field, name, _) in given.iter().filter(|(_, _, given)| *given) {
                let message = format!("ISTIO_MUTUAL TLS cannot have associated {name}");
                findings.error(format!("{path}.{field}"), message);
            }
            return;
        }
        ServerTlsMode::Passthrough | ServerTlsMode::AutoPassthrough => {
            let mode =
                if tls.mode == ServerTlsMode::Passthrough { "PASSTHROUGH" } else { "AUTO_PASSTHROUGH" };
            if given.iter().any(|(_, _, given)| *given) || !tls.ca_crl.is_empty() {
                findings.warn(path, format!("{mode} mode does not use certificates, they will be ignored"));
            }
            return;
        }
        ServerTlsMode::Simple => "SIMPLE",
        ServerTlsMode::Mutual => "MUTUAL",
        ServerTlsMode::OptionalMutual => "OPTIONAL_MUTUAL",
    };
    if by_secret {
        return;
    }
    let mut needed = Vec::new();
    if tls.tls_certificates.is_empty() {
        needed.extend([given[0], given[1]]);
    }
    if tls.mode != ServerTlsMode::Simple {
        let by_name = !tls.ca_cert_credential_name.is_empty();
        needed.push(("caCertificates", "client CA bundle", given[2].2 || by_name));
    }
    for (field, name, _) in needed.iter().filter(|(_, _, given)| !given) {
        findings.error(format!("{path}.{field}"), format!("{mode} TLS requires a {name}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn errors(spec: serde_json::Value) -> Vec<String> {
        let spec: GatewaySpec = serde_json::from_value(spec).expect("parses");
        validate_gateway(&spec).errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_courses_gateway_is_valid() {
        let spec = json!({"selector": {"istio": "ingressgateway"}, "servers": [
            {"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}]});
        assert_eq!(errors(spec), Vec::<String>::new());
    }

    #[test]
    fn unix_sockets_have_a_path_and_no_port() {
        let server = |bind: &str, number: u32| {
            errors(
                json!({"servers": [{"port": {"number": number, "name": "p", "protocol": "HTTP"}, "bind": bind, "hosts": ["*"]}]}),
            )
        };
        assert_eq!(server("unix:///run/web.sock", 0), Vec::<String>::new());
        assert_eq!(server("unix://@name", 0), Vec::<String>::new());
        for (bind, number, part) in [
            ("unix:///run/web.sock", 80, "port number must be 0 for unix domain socket: 80"),
            ("unix://", 0, "unix address must not be empty"),
            ("unix://web.sock", 0, "web.sock is not an absolute path to a file"),
            ("unix:///run/", 0, "/run/ is not an absolute path to a file"),
            ("unix://@", 0, "@ is not an absolute path to a file"),
            (&format!("unix:///{}", "x".repeat(107)), 0, "is longer than the 107 bytes"),
            ("10.0.0.1", 0, "0"),
            ("local", 80, "is not an IP address"),
        ] {
            let found = server(bind, number);
            assert!(found.iter().any(|error| error.contains(part)), "{bind} {number}: {found:?}");
        }
    }

    #[test]
    fn hashes_are_spelled_as_proxies_read_them() {
        let tls = |field: &str, text: &str| {
            let mut tls = json!({"mode": "MUTUAL", "credentialName": "web"});
            tls[field] = json!([text]);
            errors(
                json!({"servers": [{"port": {"number": 443, "name": "p", "protocol": "HTTPS"}, "hosts": ["*"], "tls": tls}]}),
            )
        };
        let digits = "0f".repeat(32);
        let colons = vec!["0F"; 32].join(":");
        for (text, good) in [
            (digits.as_str(), true),
            (&colons, true),
            (&digits[1..], false),
            (&colons[1..], false),
            (&format!("+{}", &digits[1..]), false),
        ] {
            assert_eq!(tls("verifyCertificateHash", text).is_empty(), good, "{text}");
        }
        let key = format!("{}8=", "/".repeat(42));
        for (text, good) in [(key.as_str(), true), (&key[1..], false), (&key.replace('8', "9"), false)] {
            assert_eq!(tls("verifyCertificateSpki", text).is_empty(), good, "{text}");
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(errors(json!({})), ["spec.servers: gateway must have at least one server"]);
        let found = errors(json!({"servers": [{"port": {"number": 70000, "name": "p", "protocol": "FTP"}}]}));
        assert!(found.iter().any(|error| error.contains("at least one host")), "{found:?}");
        assert!(
            found
                .iter()
                .any(|error| error.contains("70000") && error.contains("spec.servers[0].port.number")),
            "{found:?}"
        );
        assert!(found.iter().any(|error| error.contains("FTP")), "{found:?}");
    }

    #[test]
    fn https_needs_tls_and_plain_http_takes_none() {
        let https = json!({"servers": [{"port": {"number": 443, "name": "https", "protocol": "HTTPS"}, "hosts": ["a.com"]}]});
        assert!(errors(https)[0].contains("must have TLS settings"));
        let http = json!({"servers": [{"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": ["a.com"],
            "tls": {"mode": "SIMPLE", "credentialName": "c"}}]});
        assert!(errors(http)[0].contains("plain text HTTP"));
    }

    #[test]
    fn what_is_left_out_of_tls_is_warned_of() {
        let warned = |protocol: &str, tls: serde_json::Value| {
            let spec = json!({"servers": [{"port": {"number": 443, "name": "p", "protocol": protocol}, "hosts": ["a.com"], "tls": tls}]});
            let findings = validate_gateway(&serde_json::from_value(spec).expect("parses"));
            assert!(findings.is_valid(), "{findings:?}");
            findings.warnings.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let path = "spec.servers[0].tls";
        let simple = |more: serde_json::Value| {
            let mut tls = json!({"mode": "SIMPLE", "credentialName": "c"});
            tls.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            tls
        };
        let old = "TLS version below TLSV1_2 require setting compatible ciphers as by default they no longer include compatible ciphers.";
        let known = "ECDHE-RSA-AES128-GCM-SHA256";
        for (tls, words) in [
            (simple(json!({"minProtocolVersion": "TLSV1_1"})), vec![format!("{path}: {old}")]),
            (simple(json!({"minProtocolVersion": "TLSV1_0"})), vec![format!("{path}: {old}")]),
            (simple(json!({"minProtocolVersion": "TLSV1_0", "cipherSuites": [known]})), vec![]),
            (
                simple(json!({"minProtocolVersion": "TLSV1_2", "cipherSuites": [known, "ALL", "-ALL"]})),
                vec![],
            ),
            (
                simple(json!({"cipherSuites": ["y", known, "x", known, "y"]})),
                vec![
                    format!("{path}.cipherSuites: ignoring invalid cipher suites: [x y]"),
                    format!("{path}.cipherSuites: ignoring duplicate cipher suites: [{known}]"),
                ],
            ),
            (
                simple(json!({"caCrl": "/crl"})),
                vec![format!(
                    "{path}.caCrl: CRL is not supported with credentialName. CRL has to be specified in the credential"
                )],
            ),
            (
                json!({"mode": "PASSTHROUGH", "caCrl": "/crl"}),
                vec![format!("{path}: PASSTHROUGH mode does not use certificates, they will be ignored")],
            ),
            (
                simple(json!({"httpsRedirect": true})),
                vec![format!("{path}: tls.httpsRedirect should only be used with http servers")],
            ),
        ] {
            assert_eq!(warned("HTTPS", tls.clone()), words, "{tls}");
        }
        assert_eq!(warned("HTTP", json!({"httpsRedirect": true})), Vec::<String>::new());
        let files = json!({"mode": "SIMPLE", "serverCertificate": "/c", "privateKey": "/k", "caCrl": "/crl"});
        let spec = json!({"servers": [{"port": {"number": 443, "name": "p", "protocol": "TLS"}, "hosts": ["a.com"], "tls": files}]});
        assert_eq!(errors(spec), [format!("{path}.caCrl: CRL is not supported with SIMPLE TLS")]);
    }

    #[test]
    fn certificates_come_from_a_secret_or_from_files() {
        let of = |tls: serde_json::Value| {
            errors(
                json!({"servers": [{"port": {"number": 443, "name": "p", "protocol": "HTTPS"}, "hosts": ["a.com"], "tls": tls}]}),
            )
        };
        let path = "spec.servers[0].tls";
        assert_eq!(
            of(json!({"mode": "SIMPLE"})),
            [
                format!("{path}.serverCertificate: SIMPLE TLS requires a server certificate"),
                format!("{path}.privateKey: SIMPLE TLS requires a private key"),
            ]
        );
        let files = json!({"mode": "MUTUAL", "serverCertificate": "/c", "privateKey": "/k"});
        assert_eq!(of(files), [format!("{path}.caCertificates: MUTUAL TLS requires a client CA bundle")]);
        assert_eq!(
            of(json!({"mode": "ISTIO_MUTUAL", "credentialName": "c"})),
            [format!("{path}.credentialName: ISTIO_MUTUAL TLS cannot have associated credentialName")]
        );
        for good in [
            json!({"mode": "MUTUAL", "credentialName": "c"}),
            json!({"mode": "SIMPLE", "credentialNames": ["c", "d"]}),
            json!({"mode": "SIMPLE", "tlsCertificates": [{"serverCertificate": "/c", "privateKey": "/k"}]}),
            json!({"mode": "ISTIO_MUTUAL"}),
            json!({"mode": "PASSTHROUGH"}),
        ] {
            assert_eq!(of(good.clone()), Vec::<String>::new(), "{good}");
        }
    }
}
