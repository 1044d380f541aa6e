//! Validation of DestinationRule.
use std::collections::BTreeSet;

use super::hosts::{check_export_to, check_fqdn, check_wildcard_host};
use super::locality::check_locality;
use super::virtual_service::check_subset_name;
use super::{Findings, check_duration, check_labels, check_port, check_workload_selector};
use crate::networking::destination_rule::{
    ClientTlsMode, ClientTlsSettings, ConnectionPoolSettings, DestinationRuleSpec, H2UpgradePolicy,
    OutlierDetection, PortTrafficPolicy, TrafficPolicy, TunnelSettings,
};
use crate::networking::load_balancing::LoadBalancerSettings;

/// Validates a DestinationRule's spec.
pub fn validate_destination_rule(spec: &DestinationRuleSpec) -> Findings {
    let mut findings = Findings::default();
    check_wildcard_host(&mut findings, "spec.host", &spec.host);
    check_export_to(&mut findings, &spec.export_to, false);
    if let Some(policy) = &spec.traffic_policy {
        check_policy(&mut findings, "spec.trafficPolicy", policy);
    }
    let mut names = BTreeSet::new();
    for (index, subset) in spec.subsets.iter().enumerate() {
        let path = format!("spec.subsets[{index}]");
        check_subset_name(&mut findings, format!("{path}.name"), &subset.name);
        if !names.insert(&subset.name) {
            findings.error(format!("{path}.name"), format!("duplicate subset names: {}", subset.name));
        }
        check_labels(&mut findings, &format!("{path}.labels"), &subset.labels);
        if let Some(policy) = &subset.traffic_policy {
            check_policy(&mut findings, &format!("{path}.trafficPolicy"), policy);
        }
    }
    if let Some(selector) = &spec.workload_selector {
        check_workload_selector(&mut findings, "spec.workloadSelector", selector);
    }
    findings
}

fn check_policy(findings: &mut Findings, path: &str, policy: &TrafficPolicy) {
    if *policy == TrafficPolicy::default() {
        findings.error(path, "traffic policy must have at least one field");
    }
    if policy.tunnel.is_some() && policy.proxy_protocol.is_some() {
        findings.error(path, "tunnel and proxyProtocol must not be set together");
    }
    if let Some(tunnel) = &policy.tunnel {
        check_tunnel(findings, &format!("{path}.tunnel"), tunnel);
    }
    let parts = (&policy.load_balancer, &policy.connection_pool, &policy.outlier_detection, &policy.tls);
    check_parts(findings, path, parts);
    for (index, port) in policy.port_level_settings.iter().enumerate() {
        let path = format!("{path}.portLevelSettings[{index}]");
        match &port.port {
            None => findings.error(format!("{path}.port"), "portTrafficPolicy must have valid port"),
            Some(selector) => check_port(findings, format!("{path}.port.number"), selector.number),
        }
        if (PortTrafficPolicy { port: None, ..port.clone() }) == PortTrafficPolicy::default() {
            findings.error(&path, "port traffic policy must have at least one field");
        }
        check_parts(
            findings,
            &path,
            (&port.load_balancer, &port.connection_pool, &port.outlier_detection, &port.tls),
        );
    }
}

fn check_tunnel(findings: &mut Findings, path: &str, tunnel: &TunnelSettings) {
    if !matches!(tunnel.protocol.as_str(), "" | "CONNECT" | "POST") {
        findings.error(format!("{path}.protocol"), "tunnel protocol must be \"CONNECT\" or \"POST\"");
    }
    let mut of_host = Findings::default();
    check_fqdn(&mut of_host, "", &tunnel.target_host);
    for finding in of_host.errors {
        let words = format!("tunnel target host must be valid FQDN or IP address: {finding}");
        findings.error(format!("{path}.targetHost"), words);
    }
    if !(1..=65_535).contains(&tunnel.target_port) {
        let words = format!(
            "tunnel target port is invalid: port number {} must be in the range 1..65535",
            tunnel.target_port
        );
        findings.error(format!("{path}.targetPort"), words);
    }
}

type Parts<'a> = (
    &'a Option<LoadBalancerSettings>,
    &'a Option<ConnectionPoolSettings>,
    &'a Option<OutlierDetection>,
    &'a Option<ClientTlsSettings>,
);

fn check_parts(findings: &mut Findings, path: &str, (balancer, pool, outlier, tls): Parts<'_>) {
    if let Some(balancer) = balancer {
        check_balancer(findings, &format!("{path}.loadBalancer"), balancer, outlier.is_some());
    }
    if let Some(pool) = pool {
        check_pool(findings, &format!("{path}.connectionPool"), pool);
    }
    if let Some(outlier) = outlier {
        check_outlier(findings, &format!("{path}.outlierDetection"), outlier);
    }
    if let Some(tls) = tls {
        check_tls(findings, &format!("{path}.tls"), tls);
    }
}

/// `ejects` says whether hosts are found to be missing, without which nothing fails over.
fn check_balancer(findings: &mut Findings, path: &str, balancer: &LoadBalancerSettings, ejects: bool) {
    if balancer.simple.is_some() && balancer.consistent_hash.is_some() {
        findings.error(path, "only one of simple and consistentHash may be set");
    }
    check_duration(findings, format!("{path}.warmupDurationSecs"), balancer.warmup_duration_secs.as_ref());
    if let Some(warmup) = &balancer.warmup {
        if warmup.duration.is_none() {
            findings.error(format!("{path}.warmup.duration"), "duration is required");
        }
        check_duration(findings, format!("{path}.warmup.duration"), warmup.duration.as_ref());
    }
    if let Some(setting) = &balancer.locality_lb_setting {
        check_locality(findings, &format!("{path}.localityLbSetting"), setting, ejects);
    }
    let Some(hash) = &balancer.consistent_hash else { return };
    let path = format!("{path}.consistentHash");
    let keys = [
        hash.http_header_name.is_some(),
        hash.http_cookie.is_some(),
        hash.use_source_ip.is_some(),
        hash.http_query_parameter_name.is_some(),
    ];
    if keys.iter().filter(|&&given| given).count() != 1 {
        findings.error(
            &path,
            "exactly one of httpHeaderName, httpCookie, useSourceIp and httpQueryParameterName must be set",
        );
    }
    if hash.minimum_ring_size.is_some_and(|size| size > 0) {
        findings.warn(
            format!("{path}.minimumRingSize"),
            "consistent hash MinimumRingSize is deprecated, use ConsistentHashLB's RingHash configuration instead",
        );
        if hash.ring_hash.is_some() || hash.maglev.is_some() {
            findings.error(&path, "only one of MinimumRingSize or Maglev/Ringhash can be specified");
        }
    }
    if hash.ring_hash.is_some() && hash.maglev.is_some() {
        findings.error(&path, "only one of ringHash and maglev may be set");
    }
    if let Some(maglev) = &hash.maglev {
        check_table_size(findings, &format!("{path}.maglev.tableSize"), maglev.table_size.unwrap_or(0));
    }
    if let Some(cookie) = &hash.http_cookie {
        if cookie.name.is_empty() {
            findings.error(format!("{path}.httpCookie.name"), "name required for HttpCookie");
        }
        if let Some(ttl) = &cookie.ttl
            && let Err(error) = crate::duration::parse(ttl)
        {
            findings.error(format!("{path}.httpCookie.ttl"), error.to_string());
        }
    }
}

fn check_table_size(findings: &mut Findings, path: &str, size: u64) {
    let divisible = |by: u64| size.is_multiple_of(by);
    if size == 0 {
        findings.error(path, "tableSize must be set for maglev");
    } else if size >= 5_000_011 {
        findings.error(path, "tableSize must be less than 5000011 for maglev");
    } else if size < 2 || (2..).take_while(|n| n * n <= size).any(divisible) {
        findings.error(path, "tableSize must be a prime number for maglev");
    }
}

pub(super) fn check_pool(findings: &mut Findings, path: &str, pool: &ConnectionPoolSettings) {
    if pool.tcp.is_none() && pool.http.is_none() {
        findings.error(path, "connection pool must have at least one field");
    }
    if let Some(tcp) = &pool.tcp {
        if tcp.max_connections < 0 {
            findings.error(format!("{path}.tcp.maxConnections"), "max connections must be non-negative");
        }
        check_duration(findings, format!("{path}.tcp.connectTimeout"), tcp.connect_timeout.as_ref());
        check_duration(
            findings,
            format!("{path}.tcp.maxConnectionDuration"),
            tcp.max_connection_duration.as_ref(),
        );
        check_duration(findings, format!("{path}.tcp.idleTimeout"), tcp.idle_timeout.as_ref());
        if let Some(keepalive) = &tcp.tcp_keepalive {
            check_duration(findings, format!("{path}.tcp.tcpKeepalive.time"), keepalive.time.as_ref());
            check_duration(
                findings,
                format!("{path}.tcp.tcpKeepalive.interval"),
                keepalive.interval.as_ref(),
            );
        }
    }
    let Some(http) = &pool.http else { return };
    for (field, words, value) in [
        ("http1MaxPendingRequests", "http1 max pending requests", http.http1_max_pending_requests),
        ("http2MaxRequests", "http2 max requests", http.http2_max_requests),
        ("maxRequestsPerConnection", "max requests per connection", http.max_requests_per_connection),
        ("maxRetries", "max retries", http.max_retries),
        ("maxConcurrentStreams", "max concurrent streams", http.max_concurrent_streams),
    ] {
        if value < 0 {
            findings.error(format!("{path}.http.{field}"), format!("{words} must be non-negative"));
        }
    }
    if http.h2_upgrade_policy == H2UpgradePolicy::Upgrade && http.use_client_protocol {
        findings.error(
            format!("{path}.http.useClientProtocol"),
            "use client protocol must not be true when H2UpgradePolicy is UPGRADE",
        );
    }
    check_duration(findings, format!("{path}.http.idleTimeout"), http.idle_timeout.as_ref());
}

fn check_outlier(findings: &mut Findings, path: &str, outlier: &OutlierDetection) {
    if !outlier.split_external_local_origin_errors
        && outlier.consecutive_local_origin_failures.is_some_and(|count| count > 0)
    {
        findings.error(
            format!("{path}.consecutiveLocalOriginFailures"),
            "outlier detection consecutive local origin failures is specified, but split external local origin errors is set to false",
        );
    }
    check_duration(findings, format!("{path}.interval"), outlier.interval.as_ref());
    check_duration(findings, format!("{path}.baseEjectionTime"), outlier.base_ejection_time.as_ref());
    for (field, value) in [
        ("maxEjectionPercent", outlier.max_ejection_percent),
        ("minHealthPercent", outlier.min_health_percent),
    ] {
        if !(0..=100).contains(&value) {
            findings.error(format!("{path}.{field}"), format!("percentage {value} is not in range 0..100"));
        }
    }
    if outlier.consecutive_errors != 0 {
        findings.warn(
            format!("{path}.consecutiveErrors"),
            "outlier detection consecutive errors is deprecated, use consecutiveGatewayErrors or consecutive5xxErrors instead",
        );
    }
}

fn check_tls(findings: &mut Findings, path: &str, tls: &ClientTlsSettings) {
    let verified = !tls.ca_certificates.is_empty() || !tls.subject_alt_names.is_empty();
    if tls.insecure_skip_verify == Some(true) {
        let by_secret = !tls.credential_name.is_empty();
        match tls.mode {
            ClientTlsMode::Simple if verified || by_secret => findings.error(
                path,
                "cannot specify CaCertificates or CredentialName or SubjectAltNames when InsecureSkipVerify is set true",
            ),
            ClientTlsMode::Mutual if verified => findings.error(
                path,
                "cannot specify CaCertificates or SubjectAltNames when InsecureSkipVerify is set true",
            ),
            _ => {}
        }
    }
    let files = [&tls.client_certificate, &tls.private_key, &tls.ca_certificates, &tls.ca_crl];
    if matches!(tls.mode, ClientTlsMode::Simple | ClientTlsMode::Mutual)
        && !tls.credential_name.is_empty()
        && files.iter().any(|file| !file.is_empty())
    {
        findings.error(
            path,
            "cannot specify client certificates or CA certificate or CA CRL If credentialName is set",
        );
    }
    if tls.mode == ClientTlsMode::Mutual && tls.credential_name.is_empty() {
        if tls.client_certificate.is_empty() {
            findings.error(format!("{path}.clientCertificate"), "client certificate required for mutual tls");
        }
        if tls.private_key.is_empty() {
            findings.error(format!("{path}.privateKey"), "private key required for mutual tls");
        }
    }
    if tls.mode == ClientTlsMode::Simple
        && tls.ca_certificates.is_empty()
        && tls.credential_name.is_empty()
        && tls.insecure_skip_verify != Some(true)
    {
        findings.warn(path, "no CA certificates are given: the system's are used to verify the server");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn errors(spec: serde_json::Value) -> Vec<String> {
        let spec: DestinationRuleSpec = serde_json::from_value(spec).expect("parses");
        validate_destination_rule(&spec).errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_courses_rule_is_valid() {
        let spec = json!({"host": "customers.default.svc.cluster.local", "subsets": [
            {"name": "v1", "labels": {"version": "v1"}}, {"name": "v2", "labels": {"version": "v2"}}]});
        assert_eq!(errors(spec), Vec::<String>::new());
    }

    #[test]
    fn host_and_subset_names_are_checked() {
        assert!(errors(json!({}))[0].starts_with("spec.host"));
        let found = errors(json!({"host": "a", "subsets": [{"name": "v1"}, {"name": "v1"}, {}]}));
        assert_eq!(found[0], "spec.subsets[1].name: duplicate subset names: v1");
        assert_eq!(found[1], "spec.subsets[2].name: subset name cannot be empty");
    }

    #[test]
    fn maglev_tables_have_a_prime_size() {
        let of =
            |hash| errors(json!({"host": "a", "trafficPolicy": {"loadBalancer": {"consistentHash": hash}}}));
        for (size, fault) in [
            (json!({}), Some("must be set")),
            (json!({"tableSize": 1000}), Some("must be a prime number")),
            (json!({"tableSize": 5_000_011}), Some("must be less than 5000011")),
            (json!({"tableSize": 1009}), None),
        ] {
            let found = of(json!({"useSourceIp": true, "maglev": size}));
            assert_eq!(found.len(), usize::from(fault.is_some()), "{found:?}");
            assert!(fault.is_none_or(|fault| found[0].contains(fault)), "{found:?}");
        }
        assert_eq!(of(json!({"useSourceIp": true, "maglev": {"tableSize": 1009}, "ringHash": {}})).len(), 1);
    }

    #[test]
    fn policies_are_checked_with_their_paths() {
        let found = errors(json!({"host": "a", "trafficPolicy": {
            "connectionPool": {"tcp": {"maxConnections": -1, "connectTimeout": "-5s"}},
            "outlierDetection": {"maxEjectionPercent": 120},
            "loadBalancer": {"consistentHash": {}},
            "portLevelSettings": [{"port": {"number": 0}}]}}));
        for path in [
            "connectionPool.tcp.maxConnections",
            "connectionPool.tcp.connectTimeout",
            "outlierDetection.maxEjectionPercent",
            "loadBalancer.consistentHash",
            "portLevelSettings[0].port.number",
        ] {
            assert!(
                found.iter().any(|error| error.starts_with(&format!("spec.trafficPolicy.{path}"))),
                "{path}: {found:?}"
            );
        }
    }
}
