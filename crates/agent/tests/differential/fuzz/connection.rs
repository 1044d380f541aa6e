//! What configurations say about connections and about whole messages: limits, versions, upgrades, the PROXY protocol.

use serde_json::{Value, json};

use super::random::Dice;

/// Which upgrades a manager or a route takes.
pub(super) fn upgrades(dice: &mut Dice) -> Value {
    let mut kinds = vec!["websocket", "CONNECT", "other"];
    dice.0.shuffle(&mut kinds);
    let all: Vec<Value> = kinds
        .into_iter()
        .take(1 + dice.0.usize(..2))
        .map(|kind| {
            let mut upgrade = json!({ "upgrade_type": kind });
            dice.sometimes(4, &mut upgrade, "enabled", |dice| json!(dice.0.bool()));
            upgrade
        })
        .collect();
    json!(all)
}

/// A route's action for CONNECT.
pub(super) fn tunnel(dice: &mut Dice) -> Value {
    let mut upgrade = json!({ "upgrade_type": "CONNECT" });
    dice.sometimes(2, &mut upgrade, "connect_config", |_| json!({}));
    dice.sometimes(5, &mut upgrade, "enabled", |dice| json!(dice.0.bool()));
    json!({ "cluster": dice.one(&["service", "service", "dead", "none"]), "upgrade_configs": [upgrade] })
}

/// Members of a manager, and `listener`.
pub(super) fn options(dice: &mut Dice, m: &mut Value) {
    let mut common = json!({});
    dice.sometimes(2, &mut common, "headers_with_underscores_action", |dice| {
        json!(dice.one(&["ALLOW", "DROP_HEADER", "REJECT_REQUEST"]))
    });
    dice.sometimes(8, &mut common, "max_headers_count", |dice| json!(dice.one(&[3, 5, 100])));
    dice.sometimes(8, &mut common, "max_requests_per_connection", |_| json!(1));
    dice.sometimes(8, &mut common, "max_stream_duration", |_| json!("8s"));
    if dice.once_in(3) {
        m["common_http_protocol_options"] = common;
    }
    let mut http1 = json!({});
    dice.sometimes(2, &mut http1, "header_key_format", |_| json!({ "proper_case_words": {} }));
    dice.sometimes(2, &mut http1, "accept_http_10", |_| json!(true));
    dice.sometimes(3, &mut http1, "default_host_for_http_10", |_| json!("ten"));
    dice.sometimes(4, &mut http1, "allow_custom_methods", |_| json!(true));
    if dice.once_in(4) {
        m["http_protocol_options"] = http1;
    }
    dice.sometimes(8, m, "http2_protocol_options", |dice| json!({
        "hpack_table_size": dice.one(&[0, 4096]), "max_concurrent_streams": dice.one(&[1, 100]), "allow_connect": dice.0.bool(),
    }));
    dice.sometimes(8, m, "max_request_headers_kb", |dice| json!(dice.one(&[1, 2, 96])));
    dice.sometimes(8, m, "proxy_100_continue", |_| json!(true));
    dice.sometimes(12, m, "codec_type", |dice| json!(dice.one(&["HTTP1", "HTTP2", "AUTO"])));
    dice.sometimes(4, m, "upgrade_configs", upgrades);
    dice.sometimes(4, m, "forward_client_cert_details", |dice| {
        json!(dice.one(&[
            "SANITIZE",
            "FORWARD_ONLY",
            "APPEND_FORWARD",
            "SANITIZE_SET",
            "ALWAYS_FORWARD_ONLY"
        ]))
    });
    dice.sometimes(4, m, "set_current_client_cert_details", |dice| {
        dice.one(&[
            json!({ "subject": true, "uri": true }),
            json!({ "dns": true, "cert": true }),
            json!({ "chain": true, "subject": true }),
        ])
    });
    dice.sometimes(8, m, "request_id_extension", |dice| {
        json!({ "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig",
            "pack_trace_reason": dice.0.bool(),
        } })
    });
    if dice.once_in(7) {
        let mut config = json!({
            "@type": "type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol",
        });
        dice.sometimes(2, &mut config, "allow_requests_without_proxy_protocol", |_| json!(true));
        dice.sometimes(5, &mut config, "disallowed_versions", |dice| json!([dice.one(&["V1", "V2"])]));
        m["listener"] = json!({ "listener_filters": [{ "name": "envoy.filters.listener.proxy_protocol", "typed_config": config }] });
    }
}
