//! The bootstrap of the TLS cases.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use serde_json::{Value, json};

use crate::proxies::{address, cluster, merge};
use crate::tls_pki::{Pair, Pki};

/// One line a request, found by its path.
const LOG: &str = "%REQ(:PATH)% %RESPONSE_CODE% flags=%RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS% sni=%REQUESTED_SERVER_NAME% %DOWNSTREAM_TLS_VERSION% %DOWNSTREAM_TLS_CIPHER% peer=%DOWNSTREAM_PEER_SUBJECT%|%DOWNSTREAM_PEER_ISSUER%|%DOWNSTREAM_PEER_URI_SAN%|%DOWNSTREAM_PEER_DNS_SAN%|%DOWNSTREAM_PEER_FINGERPRINT_256%|%DOWNSTREAM_PEER_SERIAL%|%DOWNSTREAM_PEER_CERT_V_START%|%DOWNSTREAM_PEER_CERT_V_END%|%DOWNSTREAM_PEER_CERT% local=%DOWNSTREAM_LOCAL_SUBJECT%|%DOWNSTREAM_LOCAL_URI_SAN%|%DOWNSTREAM_LOCAL_DNS_SAN% more=%DOWNSTREAM_PEER_IP_SAN%|%DOWNSTREAM_PEER_EMAIL_SAN%|%DOWNSTREAM_LOCAL_IP_SAN%|%DOWNSTREAM_LOCAL_EMAIL_SAN%|%UPSTREAM_TLS_GROUP%|%UPSTREAM_PEER_IP_SAN%|%UPSTREAM_LOCAL_URI_SAN%|%UPSTREAM_LOCAL_DNS_SAN%|%UPSTREAM_LOCAL_IP_SAN% upstream=%UPSTREAM_TLS_VERSION%|%UPSTREAM_TLS_CIPHER%|%UPSTREAM_PEER_SUBJECT%|%UPSTREAM_PEER_ISSUER%|%UPSTREAM_PEER_URI_SAN%|%UPSTREAM_PEER_DNS_SAN%|%UPSTREAM_PEER_CERT_V_END% failure=%UPSTREAM_TRANSPORT_FAILURE_REASON%\n";

/// Listeners that shake hands, with what each adds to the TLS context and to the connection manager.
fn servers(pki: &Pki) -> Vec<(&'static str, Value, Value)> {
    let roots = json!({ "trusted_ca": { "inline_string": pki.authority.pem() } });
    let with_roots = |more: Value| {
        let mut context = roots.clone();
        merge(&mut context, more);
        json!({ "common_tls_context": { "validation_context": context } })
    };
    let required = |mut context: Value| {
        merge(&mut context, json!({ "require_client_certificate": true }));
        context
    };
    let everything = json!({ "subject": true, "cert": true, "chain": true, "dns": true, "uri": true });
    let uri = |kind: &str, value: &str| json!({ "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": { kind: value } }] });
    vec![
        ("simple", json!({}), json!({})),
        ("edge", json!({}), json!({ "use_remote_address": true })),
        ("scan", json!({ "full_scan_certs_on_sni_mismatch": true }), json!({})),
        (
            "mutual",
            required(with_roots(json!({}))),
            json!({ "forward_client_cert_details": "SANITIZE_SET", "set_current_client_cert_details": everything }),
        ),
        (
            "optional",
            with_roots(json!({})),
            json!({ "forward_client_cert_details": "APPEND_FORWARD", "set_current_client_cert_details": { "uri": true } }),
        ),
        ("forward", with_roots(json!({})), json!({ "forward_client_cert_details": "FORWARD_ONLY" })),
        ("exact", required(with_roots(uri("exact", "spiffe://td/ns/a/sa/client"))), json!({})),
        ("prefix", required(with_roots(uri("prefix", "spiffe://td/ns/a/"))), json!({})),
        (
            "regex",
            required(with_roots(json!({ "match_typed_subject_alt_names": [
            { "san_type": "DNS", "matcher": { "safe_regex": { "regex": "client\\..*" } } },
        ] }))),
            json!({}),
        ),
        ("hash", required(with_roots(json!({ "verify_certificate_hash": [pki.client.hash] }))), json!({})),
        (
            "hash-only",
            json!({ "require_client_certificate": true, "common_tls_context": { "validation_context": {
            "verify_certificate_hash": [pki.client.hash],
        } } }),
            json!({}),
        ),
        ("expired-too", required(with_roots(json!({ "allow_expired_certificate": true }))), json!({})),
        (
            "untrusted-too",
            required(with_roots(json!({ "trust_chain_verification": "ACCEPT_UNTRUSTED" }))),
            json!({}),
        ),
        ("any-client", json!({ "require_client_certificate": true }), json!({})),
        (
            "tls12",
            json!({ "common_tls_context": { "tls_params": { "tls_maximum_protocol_version": "TLSv1_2" } } }),
            json!({}),
        ),
        (
            "tls13",
            json!({ "common_tls_context": { "tls_params": { "tls_minimum_protocol_version": "TLSv1_3" } } }),
            json!({}),
        ),
        (
            "chacha",
            json!({ "common_tls_context": { "tls_params": {
            "tls_maximum_protocol_version": "TLSv1_2", "cipher_suites": ["ECDHE-ECDSA-CHACHA20-POLY1305"],
        } } }),
            json!({}),
        ),
    ]
}

pub(crate) fn certificate(pair: &Pair) -> Value {
    json!({ "certificate_chain": { "inline_string": pair.chain }, "private_key": { "inline_string": pair.key } })
}

pub(crate) fn downstream_tls(pki: &Pki, more: Value) -> Value {
    let mut context = json!({
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": {
            "alpn_protocols": ["h2", "http/1.1"],
            "tls_certificates": [certificate(&pki.server_a), certificate(&pki.server_wild)],
        },
    });
    merge(&mut context, more);
    json!({ "name": "envoy.transport_sockets.tls", "typed_config": context })
}

pub(crate) fn upstream_tls(more: Value) -> Value {
    let mut context = json!({ "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext" });
    merge(&mut context, more);
    json!({ "name": "envoy.transport_sockets.tls", "typed_config": context })
}

/// Clusters over TLS by name, with the server that each goes to.
fn clients(pki: &Pki) -> Vec<(&'static str, &'static str, Value)> {
    let roots = |more: Value| {
        let mut context = json!({ "trusted_ca": { "inline_string": pki.authority.pem() } });
        merge(&mut context, more);
        context
    };
    let socket = |more: Value| json!({ "transport_socket": upstream_tls(more) });
    let verified = |more: Value| {
        socket(json!({ "sni": "a.example", "common_tls_context": { "validation_context": roots(more) } }))
    };
    let dns = |name: &str| json!({ "match_typed_subject_alt_names": [{ "san_type": "DNS", "matcher": { "exact": name } }] });
    let with_certificate = |pair: &Pair| {
        socket(json!({ "sni": "a.example", "common_tls_context": {
            "tls_certificates": [certificate(pair)], "validation_context": roots(json!({})),
        } }))
    };
    let http = |names: Value, protocol: Value| {
        json!({ "typed_extension_protocol_options": { "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "upstream_http_protocol_options": names, "explicit_http_config": protocol,
        } } })
    };
    let both = |mut a: Value, b: Value| {
        merge(&mut a, b);
        a
    };
    let auto = json!({ "auto_sni": true, "auto_san_validation": true });
    vec![
        ("to-simple", "simple", socket(json!({}))),
        (
            "to-simple-13",
            "simple",
            socket(
                json!({ "common_tls_context": { "tls_params": { "tls_maximum_protocol_version": "TLSv1_3" } } }),
            ),
        ),
        ("to-verified", "simple", verified(json!({}))),
        ("to-named", "simple", verified(dns("a.example"))),
        ("to-misnamed", "simple", verified(dns("b.example"))),
        ("to-other", "other", verified(json!({}))),
        ("to-expired", "expired", verified(json!({}))),
        ("to-old", "old", verified(json!({}))),
        (
            "to-old-12",
            "old",
            socket(json!({ "common_tls_context": {
                "validation_context": roots(json!({})), "tls_params": { "tls_maximum_protocol_version": "TLSv1_2" },
            } })),
        ),
        ("to-old-named", "old", verified(dns("a.example"))),
        ("to-expired-too", "expired", verified(json!({ "allow_expired_certificate": true }))),
        ("to-plain", "plain", verified(json!({}))),
        ("to-mutual", "mutual", with_certificate(&pki.client)),
        ("to-mutual-without", "mutual", verified(json!({}))),
        ("to-mutual-other", "mutual", with_certificate(&pki.client_other)),
        ("to-tls13", "tls13", verified(json!({}))),
        (
            "to-h2",
            "simple",
            both(verified(json!({})), http(json!({}), json!({ "http2_protocol_options": {} }))),
        ),
        (
            "to-host",
            "simple",
            both(
                socket(json!({ "common_tls_context": { "validation_context": roots(json!({})) } })),
                http(auto.clone(), json!({ "http_protocol_options": {} })),
            ),
        ),
        (
            "to-host-header",
            "simple",
            both(
                socket(json!({ "common_tls_context": { "validation_context": roots(json!({})) } })),
                http(
                    json!({ "auto_sni": true, "auto_san_validation": true, "override_auto_sni_header": "x-sni" }),
                    json!({ "http_protocol_options": {} }),
                ),
            ),
        ),
        (
            "to-matched",
            "simple",
            json!({ "transport_socket_matches": [
            { "name": "tls", "match": { "tls": "yes" }, "transport_socket": upstream_tls(json!({ "sni": "a.example" })) },
            { "name": "plain", "match": {}, "transport_socket": { "name": "envoy.transport_sockets.raw_buffer", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer",
            } } },
        ] }),
        ),
        ("proxy-v1", "proxied", json!({ "transport_socket": proxy_protocol("V1") })),
        ("proxy-v2", "proxied", json!({ "transport_socket": proxy_protocol("V2") })),
    ]
}

fn proxy_protocol(version: &str) -> Value {
    json!({ "name": "envoy.transport_sockets.upstream_proxy_protocol", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport",
        "config": { "version": version },
        "transport_socket": { "name": "envoy.transport_sockets.raw_buffer", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer",
        } },
    } })
}

pub(crate) fn names() -> Vec<&'static str> {
    let mut names: Vec<&'static str> = servers(&Pki::new()).iter().map(|(name, ..)| *name).collect();
    names.extend([
        "clients",
        "other",
        "expired",
        "old",
        "plain",
        "proxied",
        "proxied-or-not",
        "by-name",
        "rotated",
    ]);
    names
}

fn listener_filter(name: &str, more: Value) -> Value {
    let mut config =
        json!({ "@type": format!("type.googleapis.com/envoy.extensions.filters.listener.{name}") });
    merge(&mut config, more);
    json!({ "name": name, "typed_config": config })
}

fn manager(name: &str, routes: Vec<Value>, more: Value, log: &Path) -> Value {
    let mut manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "route_config": { "name": "routes", "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": routes }] },
        "access_log": [{
            "name": "envoy.access_loggers.file",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
                "path": log, "log_format": { "text_format_source": { "inline_string": LOG } },
            },
        }],
        "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": { "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router" },
        }],
    });
    merge(&mut manager, more);
    json!({ "name": "envoy.filters.network.http_connection_manager", "typed_config": manager })
}

/// `upstream`: where the servers of clusters over TLS are: Envoy's listeners, for both proxies.
pub(crate) fn bootstrap(
    pki: &Pki,
    ports: &BTreeMap<&'static str, u16>,
    upstream: &BTreeMap<&'static str, u16>,
    admin: u16,
    service: SocketAddr,
    log: &Path,
    secrets: &Path,
) -> Value {
    let to_service = || vec![json!({ "match": { "prefix": "/" }, "route": { "cluster": "service" } })];
    let mut listeners = Vec::new();
    for (name, tls, http) in servers(pki) {
        listeners.push(json!({
            "name": name, "address": address(ports[name]),
            "filter_chains": [{
                "filters": [manager(name, to_service(), http, log)],
                "transport_socket": downstream_tls(pki, tls),
            }],
        }));
    }
    let others = [("other", &pki.server_other), ("expired", &pki.server_expired), ("old", &pki.server_old)];
    for (name, pair) in others {
        let tls = json!({ "common_tls_context": { "tls_certificates": [certificate(pair)] } });
        listeners.push(json!({
            "name": name, "address": address(ports[name]),
            "filter_chains": [{
                "filters": [manager(name, to_service(), json!({}), log)], "transport_socket": downstream_tls(pki, tls),
            }],
        }));
    }
    let mut routes: Vec<Value> = clients(pki)
        .iter()
        .map(|(name, ..)| json!({ "match": { "prefix": format!("/{name}/") }, "route": { "cluster": name } }))
        .collect();
    routes.push(json!({ "match": { "prefix": "/rewritten/" }, "route": { "cluster": "to-host", "host_rewrite_literal": "a.example" } }));
    listeners.push(json!({
        "name": "clients", "address": address(ports["clients"]),
        "filter_chains": [{ "filters": [manager("clients", routes, json!({}), log)] }],
    }));
    listeners.push(json!({
        "name": "plain", "address": address(ports["plain"]),
        "filter_chains": [{ "filters": [manager("plain", to_service(), json!({}), log)] }],
    }));
    for (name, optional) in [("proxied", false), ("proxied-or-not", true)] {
        let filter = listener_filter(
            "proxy_protocol.v3.ProxyProtocol",
            json!({ "allow_requests_without_proxy_protocol": optional }),
        );
        listeners.push(json!({
            "name": name, "address": address(ports[name]), "listener_filters": [filter],
            "filter_chains": [{ "filters": [manager(name, to_service(), json!({ "use_remote_address": true, "append_x_forwarded_port": true }), log)] }],
        }));
    }
    listeners.push(by_name(ports["by-name"], log));
    let sds = json!({ "common_tls_context": {
        "tls_certificates": null,
        "tls_certificate_sds_secret_configs": [{ "name": "rotated", "sds_config": { "path_config_source": { "path": secrets } } }],
    } });
    let mut rotated = downstream_tls(pki, sds);
    if let Some(common) = rotated["typed_config"]["common_tls_context"].as_object_mut() {
        common.remove("tls_certificates");
    }
    listeners.push(json!({
        "name": "rotated", "address": address(ports["rotated"]),
        "filter_chains": [{ "filters": [manager("rotated", to_service(), json!({}), log)], "transport_socket": rotated }],
    }));
    let local = |name: &str| SocketAddr::from(([127, 0, 0, 1], upstream[name]));
    let mut clusters = vec![cluster("service", json!({}), &[service])];
    for (name, server, more) in clients(pki) {
        let mut one = cluster(name, more, &[local(server)]);
        if name == "to-matched" {
            one["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["metadata"] =
                json!({ "filter_metadata": { "envoy.transport_socket_match": { "tls": "yes" } } });
        }
        clusters.push(one);
    }
    clusters.push(cluster("simple-tcp", json!({}), &[local("simple")]));
    clusters.push(cluster("mutual-tcp", json!({}), &[local("tls13")]));
    json!({
        "node": { "id": "differential", "cluster": "tests" },
        "admin": { "address": address(admin) },
        "static_resources": { "listeners": listeners, "clusters": clusters },
    })
}

/// Passes TLS on by the name asked for.
fn by_name(port: u16, log: &Path) -> Value {
    let tcp = |cluster: &str| {
        json!({
            "name": "envoy.filters.network.tcp_proxy",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                "stat_prefix": cluster, "cluster": cluster,
            },
        })
    };
    let plain = json!({
        "filter_chain_match": { "transport_protocol": "raw_buffer" },
        "filters": [manager("by-name", vec![json!({ "match": { "prefix": "/" }, "direct_response": { "status": 200 } })], json!({}), log)],
    });
    json!({
        "name": "by-name", "address": address(port),
        "listener_filters": [listener_filter("tls_inspector.v3.TlsInspector", json!({}))],
        "filter_chains": [
            { "filter_chain_match": { "server_names": ["a.example"] }, "filters": [tcp("simple-tcp")] },
            { "filter_chain_match": { "server_names": ["*.wild.example"] }, "filters": [tcp("mutual-tcp")] },
            { "filter_chain_match": { "server_names": ["x.wild.example"], "application_protocols": ["only"] }, "filters": [tcp("simple-tcp")] },
            plain,
        ],
    })
}
