//! What was found of connections over TLS.

use serde_json::{Value, json};

use super::{Asked, Found, endpoints, merged, only, plain, to};
use crate::fuzz::clusters::{ADDRESSES, PORTS};
use crate::fuzz::secured::{Hello, looking};

/// What clients show, and what of it is believed.
pub(super) fn of_clients() -> Vec<Found> {
    let authority = || json!({ "trusted_ca": { "inline_string": "PEM:authority" } });
    let nobody = || json!({ "trusted_ca": { "inline_string": "PEM:nobody" } });
    let with = |validation: Value| {
        let more = json!({
            "transport_socket": looking(validation), "forward_client_cert_details": "SANITIZE_SET",
            "set_current_client_cert_details": { "subject": true, "uri": true },
        });
        merged(only(to("service", json!({}))), more)
    };
    let names = json!({ "match_typed_subject_alt_names": [{ "san_type": "URI", "matcher": { "prefix": "spiffe://td/" } }] });
    let hash = json!({ "verify_certificate_hash": ["PEM:client hash"] });
    let key = json!({ "verify_certificate_spki": ["PEM:client key hash"] });
    let any = || json!({ "trust_chain_verification": "ACCEPT_UNTRUSTED" });
    let shows = |name: Option<&'static str>| Asked { tls: Some(Hello::showing(name)), ..plain() };
    let old = |name: Option<&'static str>| Asked { tls: Some(Hello::showing(name).old()), ..plain() };
    vec![
        ("none is fine where none is required", with(authority()), shows(None)),
        ("none has none of the names", with(merged(authority(), names.clone())), shows(None)),
        ("none has none of the names, of old", with(merged(authority(), names.clone())), old(None)),
        ("none has not the hash", with(merged(authority(), hash)), shows(None)),
        ("none has not the key", with(merged(authority(), key)), shows(None)),
        ("none is fine where anything is", with(merged(merged(authority(), names), any())), shows(None)),
        ("anything is looked at", with(any()), shows(Some("other"))),
        ("nothing is fine where anything is", with(any()), shows(None)),
        ("a stranger's that has expired", with(nobody()), old(Some("expired"))),
        ("one that has expired", with(authority()), old(Some("expired"))),
    ]
}

/// Services that are to have the name that is asked for.
pub(super) fn of_services() -> Vec<Found> {
    let with = |validation: Value| {
        let mut pool = endpoints("pool-0", &ADDRESSES[..1], PORTS[2]);
        pool["transport_socket"] = json!({ "name": "envoy.transport_sockets.tls", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": validation,
        } });
        pool["typed_extension_protocol_options"] = json!({ "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": { "http_protocol_options": {} },
            "upstream_http_protocol_options": { "auto_sni": true, "auto_san_validation": true },
        } });
        merged(only(to("pool-0", json!({}))), json!({ "clusters": [pool] }))
    };
    let looks = |context: Value| json!({ "validation_context": context });
    let authority = || looks(json!({ "trusted_ca": { "inline_string": "PEM:authority" } }));
    let of = |name: &str| json!({ "match_typed_subject_alt_names": [{ "san_type": "DNS", "matcher": { "exact": name } }] });
    let other = || Asked { host: "b.example".to_owned(), ..plain() };
    vec![
        ("a name that nobody vouches for", with(json!({})), plain()),
        ("a name that somebody vouches for", with(authority()), plain()),
        ("a name that is not the service's", with(authority()), other()),
        ("a hash vouches for it", with(looks(json!({ "verify_certificate_hash": ["PEM:a hash"] }))), plain()),
        ("another's does not", with(looks(json!({ "verify_certificate_hash": ["PEM:wild hash"] }))), plain()),
        (
            "its name and another",
            with(looks(merged(
                json!({ "trusted_ca": { "inline_string": "PEM:authority" } }),
                of("a.example"),
            ))),
            plain(),
        ),
        (
            "its name, and one that it has not",
            with(looks(merged(
                json!({ "trusted_ca": { "inline_string": "PEM:authority" } }),
                of("b.example"),
            ))),
            plain(),
        ),
        ("anything will do", with(looks(json!({ "trust_chain_verification": "ACCEPT_UNTRUSTED" }))), other()),
    ]
}
