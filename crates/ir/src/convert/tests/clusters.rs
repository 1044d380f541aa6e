//! Clusters and their health checks.
use std::time::Duration;

use super::Yaml;
use crate::*;

#[test]
fn clusters_are_taken() {
    let yaml = Yaml::new();
    let eds = yaml
        .cluster(
            "{name: outbound|80||a, type: EDS, eds_cluster_config: {eds_config: {ads: {}}, service_name: s}, \
             lb_policy: LEAST_REQUEST, connect_timeout: 10s, \
             circuit_breakers: {thresholds: [{max_connections: 1, track_remaining: true}, {priority: HIGH, max_requests: 9}]}, \
             outlier_detection: {consecutive_5xx: 3, enforcing_success_rate: 0}, \
             common_lb_config: {healthy_panic_threshold: {value: 0}, locality_weighted_lb_config: {}}, \
             typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {\
             '@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, \
             explicit_http_config: {http2_protocol_options: {}}}}, \
             metadata: {filter_metadata: {istio: {services: [{name: a}]}}}}",
        )
        .unwrap();
    assert!(matches!(&eds.discovery, Discovery::Eds { service_name, .. } if &**service_name == "s"));
    assert_eq!(eds.lb_policy, LbPolicy::LeastRequest(LeastRequest::default()));
    assert_eq!((eds.circuit_breakers.max_connections, eds.circuit_breakers.max_requests), (1, 1024));
    assert_eq!(eds.high_priority_circuit_breakers.max_requests, 9);
    assert_eq!(eds.http.protocol, UpstreamProtocol::Http2);
    assert_eq!((eds.healthy_panic_threshold, eds.locality), (0.0, LocalityMode::Weighted));
    let outlier = eds.outlier_detection.unwrap();
    assert_eq!((outlier.consecutive_5xx, outlier.max_ejection_percent), (3, 10));
    assert_eq!(eds.metadata.unwrap()["istio"]["services"][0]["name"], "a");

    let inbound = yaml
        .cluster(
            "{name: 'inbound|3000||', type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED, \
             upstream_bind_config: {source_address: {address: 127.0.0.6, port_value: 0}, \
             extra_source_addresses: [{address: {address: '::6', port_value: 0}}], \
             socket_options: [{level: 1, name: 36, int_value: 1337}]}, original_dst_lb_config: {upstream_port_override: 3000}}",
        )
        .unwrap();
    assert!(matches!(inbound.discovery, Discovery::OriginalDst { header: None, port_override: Some(3000) }));
    let bind = inbound.bind.unwrap();
    let source = |target: &str| bind.source_for(target.parse().unwrap()).unwrap().to_string();
    assert_eq!((source("10.0.0.1:1"), source("[fd00::1]:1")), ("127.0.0.6:0".into(), "[::6]:0".into()));
    assert_eq!(bind.socket_options[0].value, SocketOptionValue::Int(1337));

    let dns = yaml
        .cluster(
            "{name: d, type: STRICT_DNS, dns_lookup_family: V4_ONLY, http2_protocol_options: {}, load_assignment: {cluster_name: d, \
             endpoints: [{priority: 1, load_balancing_weight: 3, lb_endpoints: [{load_balancing_weight: 2, health_status: DRAINING, \
             endpoint: {hostname: h, address: {socket_address: {address: a.example, port_value: 443}}}}]}]}}",
        )
        .unwrap();
    let Discovery::StrictDns { assignment, dns: config } = &dns.discovery else {
        panic!("{:?}", dns.discovery)
    };
    assert_eq!((config.family, config.refresh_rate), (DnsFamily::V4Only, Duration::from_secs(5)));
    assert!(assignment.priorities[0].is_empty());
    let locality = &assignment.priorities[1][0];
    assert_eq!(locality.weight, Some(3));
    let endpoint = &locality.endpoints[0];
    assert_eq!(endpoint.address, EndpointAddress::Name("a.example".into(), 443));
    assert_eq!((endpoint.weight, endpoint.health), (2, HealthStatus::Draining));
    assert_eq!(dns.http.protocol, UpstreamProtocol::Http2);
}

#[test]
fn health_checks_have_envoys_defaults() {
    let seconds = Duration::from_secs;
    let base = "timeout: 1s, interval: 5s, unhealthy_threshold: 2, healthy_threshold: 0";
    let with = |more: &str| format!("{{name: a, health_checks: [{{{base}, {more}}}]}}");
    let cluster = Yaml::new().cluster(&with("http_health_check: {path: '/x?y'}")).unwrap();
    let check = cluster.health_check.unwrap();
    assert_eq!((check.unhealthy_interval, check.unhealthy_edge_interval), (seconds(5), seconds(5)));
    assert_eq!((check.healthy_edge_interval, check.healthy_threshold), (seconds(5), 1));
    assert_eq!((check.no_traffic_interval, check.no_traffic_healthy_interval), (seconds(60), seconds(60)));
    let HealthProbe::Http(probe) = &check.probe else { panic!("{:?}", check.probe) };
    assert_eq!((probe.path.as_str(), probe.method.as_str(), &probe.host), ("/x?y", "GET", &None));
    assert_eq!(
        (probe.judge(200, false, false), probe.judge(201, false, false)),
        (HealthVerdict::Passed, HealthVerdict::Failed { retriable: false, leaving: false })
    );
    let tcp =
        with("tcp_health_check: {send: {text: '0aFF'}, receive: [{binary: YWI=}]}, reuse_connection: false");
    let check = Yaml::new().cluster(&tcp).unwrap().health_check.unwrap();
    let HealthProbe::Tcp(probe) = &check.probe else { panic!("{:?}", check.probe) };
    assert_eq!((&probe.send[..], &probe.receive[..]), (&[10, 255][..], &[b"ab".to_vec()][..]));
    assert!(!check.reuse_connection);
}
