//! Listeners and their connection managers.
use std::time::Duration;

use super::{TCP, Yaml, hcm, http_listener};
use crate::*;

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
