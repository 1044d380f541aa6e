//! What conversions make of configurations, and what they refuse. Messages are written as YAML, as people write them.

use std::time::Duration;

use lateen_xds::json::JsonCodec;
use prost::{Message, Name};

use super::proto;
use crate::*;

/// Converts YAML; the codec is made for each test, since two of anything run in one process.
struct Yaml(JsonCodec);

impl Yaml {
    fn new() -> Self {
        Self(JsonCodec::new().unwrap())
    }

    fn message<M: Message + Name + Default>(&self, yaml: &str) -> M {
        self.0.from_yaml(yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"))
    }

    fn listener(&self, yaml: &str) -> Result<Listener, ConvertError> {
        Listener::from_proto(self.message(yaml))
    }

    fn cluster(&self, yaml: &str) -> Result<Cluster, ConvertError> {
        Cluster::from_proto(self.message(yaml))
    }

    fn routes(&self, yaml: &str) -> Result<RouteConfiguration, ConvertError> {
        RouteConfiguration::from_proto(self.message(yaml))
    }
}

const HCM: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const TCP: &str = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy";
const ROUTER: &str =
    "{name: r, typed_config: {'@type': type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}";

/// A listener with one HTTP connection manager that has `extra` fields.
fn http_listener(extra: &str) -> String {
    format!(
        "{{name: l, address: {{socket_address: {{address: 0.0.0.0, port_value: 80}}}}, filter_chains: [{{filters: [\
         {{name: h, typed_config: {{'@type': {HCM}, stat_prefix: s, http_filters: [{ROUTER}], \
         rds: {{route_config_name: '80', config_source: {{ads: {{}}}}}}{extra}}}}}]}}]}}"
    )
}

/// A listener with one TCP proxy that has `extra` fields.
fn tcp_listener(extra: &str) -> String {
    format!(
        "{{name: l, address: {{socket_address: {{address: 0.0.0.0, port_value: 80}}}}, filter_chains: [{{filters: [\
         {{name: t, typed_config: {{'@type': {TCP}, stat_prefix: s{extra}}}}}]}}]}}"
    )
}

/// A route configuration with one route.
fn one_route(matching: &str, action: &str) -> String {
    format!(
        "{{name: '80', virtual_hosts: [{{name: h, domains: ['*'], routes: [{{match: {matching}, {action}}}]}}]}}"
    )
}

fn hcm(listener: &Listener) -> &HttpConnectionManager {
    match &listener.filter_chains[0].terminal {
        Some(TerminalFilter::Http(hcm)) => hcm,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_http_listener_has_envoys_defaults() {
    let listener = Yaml::new().listener(&http_listener("")).unwrap();
    assert_eq!(listener.address.to_string(), "0.0.0.0:80");
    assert!(listener.bind_to_port && listener.reuse_port && !listener.use_original_dst);
    assert_eq!(listener.listener_filters_timeout, Some(Duration::from_secs(15)));
    assert_eq!(listener.per_connection_buffer_limit_bytes, 1024 * 1024);
    let hcm = hcm(&listener);
    assert_eq!(hcm.codec_type, CodecType::Auto);
    assert_eq!(hcm.stream_idle_timeout, Some(Duration::from_secs(300)));
    assert_eq!(hcm.request_timeout, None);
    assert_eq!(hcm.common.idle_timeout, Some(Duration::from_secs(3600)));
    assert_eq!((hcm.max_request_headers_kb, hcm.common.max_headers_count), (60, 100));
    assert_eq!(hcm.server_name, "envoy");
    assert!(hcm.generate_request_id && hcm.router().is_some());
    let RouteSource::Rds { name, initial_fetch_timeout } = &hcm.routes else { panic!("{:?}", hcm.routes) };
    assert_eq!((&**name, *initial_fetch_timeout), ("80", Some(Duration::from_secs(15))));
}

#[test]
fn connection_manager_options_are_taken() {
    let yaml = http_listener(
        ", codec_type: HTTP2, server_name: lateen, server_header_transformation: PASS_THROUGH, via: v, \
         use_remote_address: true, xff_num_trusted_hops: 2, forward_client_cert_details: SANITIZE_SET, \
         set_current_client_cert_details: {uri: true}, stream_idle_timeout: 0s, request_timeout: 3s, \
         strip_any_host_port: true, normalize_path: true, merge_slashes: true, \
         path_with_escaped_slashes_action: UNESCAPE_AND_FORWARD, upgrade_configs: [{upgrade_type: WebSocket}], \
         http2_protocol_options: {max_concurrent_streams: 5, connection_keepalive: {interval: 1s, timeout: 2s}}, \
         common_http_protocol_options: {idle_timeout: 0s, headers_with_underscores_action: DROP_HEADER}, \
         internal_address_config: {cidr_ranges: [{address_prefix: 10.1.2.3, prefix_len: 8}]}, \
         scheme_header_transformation: {scheme_to_overwrite: https}, \
         local_reply_config: {mappers: [{filter: {status_code_filter: {comparison: {op: GE, value: {default_value: 500, \
         runtime_key: k}}}}, status_code: 418, body: {inline_string: tea}}], body_format: {json_format: {m: '%LOCAL_REPLY_BODY%'}}}",
    );
    let yaml = Yaml::new().listener(&yaml).unwrap();
    let hcm = hcm(&yaml);
    assert_eq!(hcm.codec_type, CodecType::Http2);
    assert_eq!((hcm.server_name.as_bytes(), hcm.server_header), (&b"lateen"[..], ServerHeader::PassThrough));
    assert_eq!((hcm.use_remote_address, hcm.xff_num_trusted_hops), (true, 2));
    assert_eq!(hcm.forward_client_cert, ForwardClientCert::SanitizeSet);
    assert_eq!((hcm.stream_idle_timeout, hcm.request_timeout), (None, Some(Duration::from_secs(3))));
    assert_eq!((hcm.strip_port, hcm.escaped_slashes), (StripPort::Any, EscapedSlashes::UnescapeAndForward));
    assert_eq!(
        hcm.upgrades,
        [UpgradeConfig { upgrade_type: "websocket".into(), enabled: true, terminates: false }]
    );
    assert_eq!(hcm.http2.max_concurrent_streams, Some(5));
    assert_eq!(hcm.http2.keepalive.unwrap().timeout, Duration::from_secs(2));
    assert_eq!((hcm.common.idle_timeout, hcm.common.underscores), (None, Underscores::Drop));
    assert_eq!(hcm.internal_networks, ["10.0.0.0/8".parse().unwrap()]);
    assert_eq!(hcm.scheme_to_overwrite, Some(Scheme::Https));
    let mapper = &hcm.local_reply.mappers[0];
    assert!(matches!(mapper.filter, LogFilter::StatusCode(Comparison::AtLeast, 500)));
    assert_eq!((mapper.status, mapper.body.as_deref()), (Some(418), Some("tea")));
    assert_eq!(hcm.local_reply.body_format.as_ref().unwrap().content_type, "application/json");
}

#[test]
fn access_logs_are_taken() {
    let log = |config: &str| {
        let yaml =
            format!(", access_log: [{{name: a, typed_config: {{'@type': type.googleapis.com/{config}}}}}]");
        let listener = Yaml::new().listener(&http_listener(&yaml)).unwrap();
        hcm(&listener).access_log[0].clone()
    };
    let file = "envoy.extensions.access_loggers.file.v3.FileAccessLog";
    let stdout = log("envoy.extensions.access_loggers.stream.v3.StdoutAccessLog");
    assert_eq!(stdout.sink, LogSink::Stdout);
    assert!(
        matches!(&stdout.format, LogFormat::Text(format) if format.parts.len() > 20),
        "the default format"
    );
    let json =
        log(&format!("{file}, path: /dev/stdout, log_format: {{json_format: {{b: '%PROTOCOL%', a: x}}}}"));
    assert_eq!(json.sink, LogSink::Stdout);
    assert!(
        matches!(&json.format, LogFormat::Json { format: JsonFormat::Object(members), .. } if &*members[0].0 == "a")
    );
    let text = log(&format!(
        "{file}, path: /tmp/x, log_format: {{text_format_source: {{inline_string: '%DURATION%'}}}}"
    ));
    assert_eq!(text.sink, LogSink::File("/tmp/x".into()));
}

#[test]
fn an_outbound_listener_of_a_mesh_is_taken() {
    let yaml = format!(
        "{{name: virtualOutbound, address: {{socket_address: {{address: 0.0.0.0, port_value: 15001}}}}, \
         use_original_dst: true, traffic_direction: OUTBOUND, continue_on_listener_filters_timeout: true, \
         listener_filters_timeout: 0s, \
         listener_filters: [{{name: o, typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst}}}}, \
         {{name: h, filter_disabled: {{or_match: {{rules: [{{destination_port_range: {{start: 25, end: 26}}}}, \
         {{not_match: {{destination_port_range: {{start: 1, end: 100}}}}}}]}}}}, \
         typed_config: {{'@type': type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector}}}}], \
         filter_chains: [{{name: blackhole, filter_chain_match: {{destination_port: 15001}}, filters: [{{name: t, typed_config: {{'@type': {TCP}, stat_prefix: b, cluster: BlackHoleCluster}}}}]}}], \
         default_filter_chain: {{filters: [{{name: t, typed_config: {{'@type': {TCP}, stat_prefix: p, \
         weighted_clusters: {{clusters: [{{name: a, weight: 1}}, {{name: b, weight: 3}}, {{name: a, weight: 4}}]}}}}}}]}}}}"
    );
    let listener = Yaml::new().listener(&yaml).unwrap();
    assert!(listener.use_original_dst && listener.continue_on_listener_filters_timeout);
    assert_eq!(listener.listener_filters_timeout, None);
    let kinds: Vec<_> = listener.listener_filters.iter().map(|filter| filter.kind).collect();
    assert_eq!(kinds, [ListenerFilterKind::OriginalDst, ListenerFilterKind::HttpInspector]);
    let disabled = listener.listener_filters[1].disabled.as_ref().unwrap();
    assert_eq!([25, 80, 100].map(|port| disabled.holds(port)), [true, false, true]);
    let Some(TerminalFilter::Tcp(tcp)) = &listener.default_filter_chain.as_ref().unwrap().terminal else {
        panic!()
    };
    assert_eq!(tcp.clusters.iter().map(|name| &**name).collect::<Vec<_>>(), ["a", "b"]);
    let picks: Vec<_> = (0..8).map(|random| tcp.pick(random).cluster.index).collect();
    assert_eq!(picks, [0, 1, 1, 1, 0, 0, 0, 0]);
    assert_eq!(tcp.idle_timeout, Some(Duration::from_secs(3600)));
}

#[test]
fn routes_have_envoys_defaults_and_share_cluster_numbers() {
    let yaml = "{name: '80', ignore_port_in_host_matching: true, virtual_hosts: [\
        {name: a, domains: [a.com], retry_policy: {retry_on: 'connect-failure,refused-stream,unavailable,cancelled', num_retries: 2, \
         retry_host_predicate: [{name: envoy.retry_host_predicates.previous_hosts}], host_selection_retry_max_attempts: '5'}, routes: [\
         {match: {prefix: /}, name: r, route: {cluster: c1}}]}, \
        {name: b, domains: ['*'], routes: [{match: {path: /X, case_sensitive: false}, route: {weighted_clusters: {clusters: [\
         {name: c2, weight: 10, request_headers_to_add: [{header: {key: x, value: 'a %PROTOCOL%'}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}]}, \
         {name: c1, weight: 0}]}, timeout: 0s, idle_timeout: 0s, prefix_rewrite: /new, auto_host_rewrite: true}}]}]}";
    let routes = Yaml::new().routes(yaml).unwrap();
    assert_eq!(routes.table.clusters().iter().map(|name| &**name).collect::<Vec<_>>(), ["c1", "c2"]);
    let headers = http::HeaderMap::new();
    let request = RequestView {
        method: "GET",
        scheme: "http",
        authority: "A.com:80",
        path: "/x?q",
        headers: &headers,
        metadata: None,
    };
    let found = routes.table.route(&request, 0).unwrap();
    let Action::Forward(forward) = &found.route.action else { panic!() };
    assert_eq!((forward.timeout, forward.idle_timeout), (Some(Duration::from_secs(15)), None));
    let retry = found.virtual_host.retry_policy.as_ref().unwrap();
    assert!(retry.on.connect_failure && retry.on.grpc_cancelled && !retry.on.server_error);
    assert_eq!(
        (retry.num_retries, retry.avoid_previous_hosts, retry.host_selection_max_attempts),
        (2, true, 5)
    );
    assert_eq!(retry.backoff, Backoff { base: Duration::from_millis(25), max: Duration::from_millis(250) });

    let found = routes.table.route(&RequestView { authority: "other", ..request }, 0).unwrap();
    let Action::Forward(forward) = &found.route.action else { panic!() };
    assert_eq!((forward.timeout, forward.idle_timeout), (None, Some(None)));
    assert!(matches!(forward.host_rewrite, HostRewrite::Auto));
    let pick = forward.cluster.pick(&request, 9);
    assert!(
        matches!(pick.cluster, PickedCluster::Ref(cluster) if &*cluster.name == "c2" && cluster.index == 1)
    );
    assert_eq!(pick.weighted.unwrap().request_headers.add[0].action, AppendAction::OverwriteIfExistsOrAdd);
}

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

const FAULT: &str = "'@type': type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault";
const CORS: &str = "'@type': type.googleapis.com/envoy.extensions.filters.http.cors.v3.CorsPolicy";
const FILTER_CONFIG: &str = "'@type': type.googleapis.com/envoy.config.route.v3.FilterConfig";

#[test]
fn every_level_may_configure_filters() {
    let yaml = format!(
        "{{name: '80', typed_per_filter_config: {{f: {{{FAULT}, abort: {{http_status: 503}}}}}}, virtual_hosts: [{{name: h, domains: ['*'],
           typed_per_filter_config: {{c: {{{CORS}, max_age: '1'}}}},
           routes: [{{match: {{prefix: /}}, typed_per_filter_config: {{f: {{{FILTER_CONFIG}, disabled: true}}}},
             route: {{weighted_clusters: {{clusters: [{{name: a, weight: 1,
               typed_per_filter_config: {{f: {{{FILTER_CONFIG}, is_optional: true, config: {{{FAULT}, delay: {{fixed_delay: 1s}}}}}}}}}}]}}}}}}]}}]}}"
    );
    let routes = Yaml::new().routes(&yaml).unwrap();
    assert_eq!(routes.filters.iter().map(|name| &**name).collect::<Vec<_>>(), ["f", "c"]);
    let host = &routes.table.virtual_hosts()[0];
    let route = &host.routes[0];
    let Action::Forward(action) = &route.action else { panic!("{route:?}") };
    let ClusterSpecifier::Weighted(weighted) = &action.cluster else { panic!("{action:?}") };
    let levels = [&weighted.clusters[0].overrides[..], &route.overrides, &host.overrides, &routes.overrides];
    let fault = FilterLevels { levels, filter: 0 };
    assert_eq!((fault.enabled(), fault.configs().count()), (Some(true), 2));
    let without_weighted = FilterLevels { levels: [&[], levels[1], levels[2], levels[3]], filter: 0 };
    assert_eq!(without_weighted.enabled(), Some(false));
    assert_eq!(FilterLevels { levels, filter: 1 }.configs().count(), 1);
    let unknown = "'@type': type.googleapis.com/google.protobuf.Duration, value: 1s";
    for (config, accepted) in [
        (format!("{{{FILTER_CONFIG}, is_optional: true, config: {{{unknown}}}}}"), true),
        (format!("{{{FILTER_CONFIG}, config: {{{unknown}}}}}"), false),
        (format!("{{{FILTER_CONFIG}}}"), false),
        (format!("{{{unknown}}}"), false),
    ] {
        let text = one_route(
            "{prefix: /}",
            &format!("route: {{cluster: c}}, typed_per_filter_config: {{x: {config}}}"),
        );
        let found = Yaml::new().routes(&text);
        assert_eq!(found.is_ok(), accepted, "{text}: {found:?}");
        if let Err(error) = found {
            assert!(
                error.path.starts_with("virtual_hosts[0].routes[0].typed_per_filter_config[\"x\"]"),
                "{error}"
            );
        }
    }
}

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

#[test]
fn bootstraps_are_taken() {
    let yaml = Yaml::new();
    let text = "{node: {id: sidecar, cluster: c}, admin: {address: {socket_address: {address: 127.0.0.1, port_value: 15000}}}, \
        dynamic_resources: {lds_config: {ads: {}, resource_api_version: V3, initial_fetch_timeout: 0s}, cds_config: {ads: {}, initial_fetch_timeout: 0s}, \
        ads_config: {api_type: DELTA_GRPC, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: xds-grpc}, \
        initial_metadata: [{key: x, value: v}]}]}}, \
        cluster_manager: {upstream_bind_config: {socket_options: [{level: 1, name: 36, int_value: 1337}]}}, \
        layered_runtime: {layers: [{name: a, static_layer: {}}]}, \
        static_resources: {clusters: [{name: xds-grpc, http2_protocol_options: {}, load_assignment: {cluster_name: xds-grpc, \
        endpoints: [{lb_endpoints: [{endpoint: {address: {pipe: {path: ./XDS}}}}]}]}}]}}";
    let bootstrap = Bootstrap::from_proto(yaml.message(text)).unwrap();
    assert_eq!(bootstrap.admin.unwrap().port(), 15000);
    let dynamic = bootstrap.dynamic.unwrap();
    assert_eq!((dynamic.listeners, dynamic.clusters), (Some(ConfigSource::Ads), Some(ConfigSource::Ads)));
    let ads = dynamic.ads.unwrap();
    assert!(ads.delta && ads.initial_metadata.len() == 1 && ads.initial_fetch_timeout.is_none());
    assert_eq!(bootstrap.upstream_bind.unwrap().socket_options.len(), 1);
    let error =
        Bootstrap::from_proto(yaml.message(&text.replace("name: xds-grpc, http2", "name: other, http2")))
            .unwrap_err();
    assert_eq!(error.path, "dynamic_resources.ads_config");
    let error = Bootstrap::from_proto(yaml.message("{stats_sinks: [{name: s}]}")).unwrap_err();
    assert_eq!(error.path, "stats_sinks");
}

#[test]
fn broken_bytes_are_an_error() {
    assert!(Listener::from_bytes(&[0xff]).unwrap_err().reason.contains("not a valid encoding"));
    let message =
        proto::endpoint::v3::ClusterLoadAssignment { cluster_name: "a".into(), ..Default::default() };
    assert_eq!(&*ClusterLoadAssignment::from_bytes(&message.encode_to_vec()).unwrap().cluster_name, "a");
}

proptest::proptest! {
    #[test]
    fn no_bytes_break_a_conversion(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        let _ = Listener::from_bytes(&bytes);
        let _ = RouteConfiguration::from_bytes(&bytes, None);
        let _ = Cluster::from_bytes(&bytes);
        let _ = ClusterLoadAssignment::from_bytes(&bytes);
        let _ = Bootstrap::from_bytes(&bytes);
    }
}
