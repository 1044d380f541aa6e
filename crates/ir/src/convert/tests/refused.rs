//! What is refused, by the path of its field.
use super::*;

#[test]
fn listeners_are_refused_with_the_fields_path() {
    let yaml = Yaml::new();
    let manager = "filter_chains[0].filters[0].typed_config";
    let listeners = [
        (http_listener(", tracing: {}"), format!("{manager}.tracing")),
        (http_listener(", codec_type: HTTP3"), format!("{manager}.codec_type")),
        (http_listener(", stream_idle_timeout: -1s"), format!("{manager}.stream_idle_timeout")),
        (http_listener(", upgrade_configs: [{upgrade_type: CONNECT-UDP}]"), format!("{manager}.upgrade_configs[0].upgrade_type")),
        (
            http_listener(", access_log: [{name: a, typed_config: {'@type': type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: /x, format: '%NO%'}}]"),
            format!("{manager}.access_log[0].typed_config.format"),
        ),
        (
            http_listener("").replace(ROUTER, &format!("{ROUTER}, {ROUTER}")),
            format!("{manager}.http_filters[0]"),
        ),
        (
            http_listener("").replace("http.router.v3.Router", "http.buffer.v3.Buffer"),
            format!("{manager}.http_filters[0].typed_config"),
        ),
        (
            http_listener("").replace(ROUTER, &format!("{{name: f, typed_config: {{{FAULT}, abort: {{http_status: 100}}}}}}, {ROUTER}")),
            format!("{manager}.http_filters[0].typed_config.abort.http_status"),
        ),
        (
            http_listener("").replace(ROUTER, &format!("{ROUTER}, {{name: f, typed_config: {{{FAULT}}}}}")),
            format!("{manager}.http_filters[0]"),
        ),
        (
            http_listener("").replace(ROUTER, &format!("{{name: f, typed_config: {{{FAULT}}}}}")),
            format!("{manager}.http_filters[0]"),
        ),
        (http_listener("").replace("ads: {}", "path: /x"), format!("{manager}.rds.config_source")),
        (tcp_listener(""), format!("{manager}.cluster_specifier")),
        (tcp_listener(", cluster: c, hash_policy: [{filter_state: {key: a}}]"), format!("{manager}.hash_policy[0].filter_state")),
        (tcp_listener(", weighted_clusters: {clusters: [{name: a}]}"), format!("{manager}.weighted_clusters.clusters[0].weight")),
        (tcp_listener(", cluster: c").replace("address: 0.0.0.0", "address: name"), "address.socket_address.address".into()),
        (tcp_listener(", cluster: c").replace("port_value: 80", "port_value: 80, protocol: UDP"), "address.socket_address.protocol".into()),
        (tcp_listener(", cluster: c").replace("name: l,", "name: l, udp_listener_config: {},"), "udp_listener_config".into()),
        (
            tcp_listener(", cluster: c").replace("filters: [", "transport_socket: {name: tls, typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext}}, filters: ["),
            "filter_chains[0].transport_socket.typed_config.common_tls_context".into(),
        ),
        (
            tcp_listener(", cluster: c").replace("filters: [", "filter_chain_match: {server_names: ['a*.b']}, filters: ["),
            "filter_chains[0].filter_chain_match.server_names[0]".into(),
        ),
        ("{name: l, address: {pipe: {path: /x, mode: 512}}, filter_chains: [{}]}".into(), "address.pipe.mode".into()),
        ("{name: l, address: {pipe: {path: '@'}}, filter_chains: [{}]}".into(), "address.pipe.path".into()),
        ("{name: l, address: {socket_address: {address: '::', port_value: 1}}}".into(), "filter_chains".into()),
        (
            "{name: l, address: {socket_address: {address: '::1', ipv4_compat: true}}, filter_chains: [{}]}".into(),
            "address.socket_address.ipv4_compat".into(),
        ),
        (
            "{name: l, address: {socket_address: {address: '::', port_value: 1}}, filter_chains: [{}, {}]}".into(),
            "filter_chains[1].filter_chain_match".into(),
        ),
    ];
    for (text, path) in listeners {
        let error = yaml.listener(&text).expect_err(&text);
        assert_eq!(error.path, path, "{error}\n{text}");
    }
}

#[test]
fn routes_are_refused_with_the_fields_path() {
    let yaml = Yaml::new();
    let route = "virtual_hosts[0].routes[0]";
    let routes = [
        (one_route("{prefix: /}", "route: {cluster: ''}"), format!("{route}.route.cluster")),
        (
            one_route("{prefix: /}", "route: {cluster: c, hash_policy: [{terminal: true}]}"),
            format!("{route}.route.hash_policy[0].policy_specifier"),
        ),
        (
            one_route("{prefix: /}", "route: {cluster: c, hedge_policy: {initial_requests: 0}}"),
            format!("{route}.route.hedge_policy.initial_requests"),
        ),
        (
            one_route(
                "{connect_matcher: {}}",
                "route: {cluster: c, upgrade_configs: [{upgrade_type: websocket, connect_config: {}}]}",
            ),
            format!("{route}.route.upgrade_configs[0].connect_config"),
        ),
        (
            one_route("{safe_regex: {regex: '('}}", "route: {cluster: c}"),
            format!("{route}.match.safe_regex.regex"),
        ),
        (
            one_route("{prefix: /, headers: [{name: 'a b'}]}", "route: {cluster: c}"),
            format!("{route}.match.headers[0].name"),
        ),
        (
            one_route("{path_separated_prefix: /a/}", "route: {cluster: c}"),
            format!("{route}.match.path_separated_prefix"),
        ),
        (
            one_route("{prefix: /}", "direct_response: {status: 99}"),
            format!("{route}.direct_response.status"),
        ),
        (
            one_route("{prefix: /}", "route: {weighted_clusters: {clusters: [{name: a, weight: 0}]}}"),
            format!("{route}.route.weighted_clusters.clusters"),
        ),
        (
            one_route("{prefix: /}", "route: {cluster: c, retry_policy: {retry_on: 5xxx}}"),
            format!("{route}.route.retry_policy.retry_on"),
        ),
        (
            one_route(
                "{prefix: /}",
                "route: {cluster: c}, request_headers_to_add: [{header: {key: host, value: x}}]",
            ),
            format!("{route}.request_headers_to_add[0].header.key"),
        ),
        (one_route("{prefix: /}", "name: x"), format!("{route}.action")),
        (one_route("{prefix: /}", "route: {cluster: c}").replace("'*'", "a, A"), "virtual_hosts".into()),
        (
            one_route("{prefix: /}", "route: {cluster: c}")
                .replace("domains", "virtual_clusters: [{name: a}], domains"),
            "virtual_hosts[0].virtual_clusters".into(),
        ),
    ];
    for (text, path) in routes {
        let error = yaml.routes(&text).expect_err(&text);
        assert_eq!(error.path, path, "{error}\n{text}");
    }
}

#[test]
fn health_checks_are_refused_with_the_fields_path() {
    let base = "timeout: 1s, interval: 1s, unhealthy_threshold: 1, healthy_threshold: 1";
    for (more, path) in [
        ("", "health_checks[0].health_checker"),
        ("grpc_health_check: {}", "health_checks[0].grpc_health_check"),
        ("tcp_health_check: {}, unhealthy_interval: 0s", "health_checks[0].unhealthy_interval"),
        ("tcp_health_check: {}, event_log_path: /x", "health_checks[0].event_log_path"),
        ("tcp_health_check: {send: {text: '0'}}", "health_checks[0].tcp_health_check.send.text"),
        ("http_health_check: {}", "health_checks[0].http_health_check.path"),
        ("http_health_check: {path: /, method: CONNECT}", "health_checks[0].http_health_check.method"),
        (
            "http_health_check: {path: /, codec_client_type: HTTP3}",
            "health_checks[0].http_health_check.codec_client_type",
        ),
        (
            "http_health_check: {path: /, expected_statuses: [{start: 99, end: 200}]}",
            "health_checks[0].http_health_check.expected_statuses[0]",
        ),
    ] {
        let text = format!("{{name: a, health_checks: [{{{base}, {more}}}]}}");
        let error = Yaml::new().cluster(&text).expect_err(&text);
        assert_eq!(error.path, path, "{error}");
    }
    for (more, path) in [
        ("type: STRICT_DNS", "ignore_health_on_host_removal"),
        ("close_connections_on_host_health_failure: true", "close_connections_on_host_health_failure"),
        (
            "common_lb_config: {ignore_new_hosts_until_first_hc: true}",
            "common_lb_config.ignore_new_hosts_until_first_hc",
        ),
    ] {
        let text = format!("{{name: a, {more}, health_checks: [{{{base}, tcp_health_check: {{}}}}]}}");
        let error = Yaml::new().cluster(&text).expect_err(&text);
        assert_eq!(error.path, path, "{error}");
    }
}

#[test]
fn clusters_are_refused_with_the_fields_path() {
    let yaml = Yaml::new();
    let clusters = [
        ("{name: a, type: EDS}", "eds_cluster_config"),
        (
            "{name: a, type: EDS, eds_cluster_config: {eds_config: {path: /x}}}",
            "eds_cluster_config.eds_config",
        ),
        ("{name: a, lb_policy: LOAD_BALANCING_POLICY_CONFIG}", "load_balancing_policy"),
        ("{name: a, lb_policy: MAGLEV, maglev_lb_config: {table_size: 10}}", "maglev_lb_config.table_size"),
        (
            "{name: a, lb_policy: RING_HASH, ring_hash_lb_config: {minimum_ring_size: 9, maximum_ring_size: 8}}",
            "ring_hash_lb_config.minimum_ring_size",
        ),
        (
            "{name: a, lb_policy: RING_HASH, common_lb_config: {consistent_hashing_lb_config: {hash_balance_factor: 99}}}",
            "common_lb_config.consistent_hashing_lb_config.hash_balance_factor",
        ),
        ("{name: a, lb_policy: CLUSTER_PROVIDED}", "lb_policy"),
        ("{name: a, type: ORIGINAL_DST}", "lb_policy"),
        ("{name: a, type: LOGICAL_DNS}", "load_assignment"),
        ("{name: a, connect_timeout: 0s}", "connect_timeout"),
        ("{name: a, health_checks: [{timeout: 1s}]}", "health_checks[0].interval"),
        ("{name: a, cluster_type: {name: envoy.clusters.aggregate}}", "cluster_type"),
        (
            "{name: a, outlier_detection: {enforcing_success_rate: 101}}",
            "outlier_detection.enforcing_success_rate",
        ),
        ("{type: STATIC}", "name"),
        (
            "{name: a, load_assignment: {endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: b.c, port_value: 1}}}}]}]}}",
            "load_assignment.endpoints[0].lb_endpoints[0].endpoint.address.socket_address.address",
        ),
        (
            "{name: a, typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {'@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, auto_config: {}}}}",
            "typed_extension_protocol_options[\"envoy.extensions.upstreams.http.v3.HttpProtocolOptions\"].auto_config",
        ),
    ];
    for (text, path) in clusters {
        let error = yaml.cluster(text).expect_err(text);
        assert_eq!(error.path, path, "{error}\n{text}");
    }
}
