//! What both refuse in a bootstrap, before anything is served.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::proxies::{PROXY, address, envoy, merge};
use crate::tls_config::downstream_tls;
use crate::tls_pki::Pki;

/// Whether Envoy and ours take a bootstrap, with what they say.
fn judged(bootstrap: &Value) -> [(bool, String); 2] {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bootstrap.json");
    std::fs::write(&file, bootstrap.to_string()).unwrap();
    let started = [envoy(), PROXY.into()].map(|program| {
        let mut command = Command::new(program);
        command.args(["--mode", "validate", "-c"]).arg(&file).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    });
    started.map(|program| {
        let output = program.wait_with_output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    })
}

fn bootstrap(listener: Value, clusters: Value) -> Value {
    json!({ "static_resources": { "listeners": [listener], "clusters": clusters } })
}

/// A listener whose clients are verified in these ways.
fn verifying(pki: &Pki, field: &str, text: &str) -> Value {
    let context = json!({ "require_client_certificate": true, "common_tls_context": { "validation_context": {
        "trusted_ca": { "inline_string": pki.authority.pem() }, field: [text],
    } } });
    bootstrap(
        json!({ "name": "tls", "address": address(0), "filter_chains": [{
            "transport_socket": downstream_tls(pki, context), "filters": [direct()],
        }] }),
        json!([]),
    )
}

fn direct() -> Value {
    json!({ "name": "direct", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.direct_response.v3.Config",
    } })
}

#[track_caller]
fn agree(what: &str, bootstrap: &Value, taken: bool) {
    let [envoy, lateen] = judged(bootstrap);
    assert_eq!(envoy.0, taken, "{what}: Envoy: {}", envoy.1);
    assert_eq!(lateen.0, taken, "{what}: ours: {}", lateen.1);
}

#[test]
fn hashes_of_certificates_are_spelled_as_for_envoy() {
    let pki = Pki::new();
    let digits = "0123456789abcdefABCDEF0123456789".repeat(2);
    let bytes: Vec<String> =
        digits.as_bytes().chunks(2).map(|two| String::from_utf8_lossy(two).into()).collect();
    for (text, taken) in [
        (digits.clone(), true),
        (bytes.join(":"), true),
        (format!("{}{digits}", ":".repeat(31)), true),
        (digits[1..].to_owned(), false),
        (format!("{digits}0"), false),
        (format!("{digits}00"), false),
        (format!("{digits}:"), false),
        (format!("{digits}{}", ":".repeat(30)), false),
        (format!("+{}", &digits[1..]), false),
        (format!("{}g", &digits[1..]), false),
        ("g".repeat(64), false),
        // A blank before a digit Envoy overlooks; ours does not.
        (bytes.join(" "), false),
    ] {
        agree(&text, &verifying(&pki, "verify_certificate_hash", &text), taken);
    }
    let key = format!("{}8=", "/".repeat(42));
    for (text, taken) in [
        (key.clone(), true),
        (format!("{}A=", "A".repeat(42)), true),
        (format!("{}9=", "/".repeat(42)), false),
        (format!("{}==", "/".repeat(42)), false),
        (format!("{}8", "/".repeat(42)), false),
        ("/".repeat(44), false),
        (format!("{}8=", "_".repeat(42)), false),
        (format!(" {}8=", "/".repeat(41)), false),
        (format!("{key}="), false),
        (format!("{}=8", "/".repeat(42)), false),
    ] {
        agree(&text, &verifying(&pki, "verify_certificate_spki", &text), taken);
    }
}

#[test]
fn unix_sockets_are_spelled_as_for_envoy() {
    let at = |pipe: Value, more: Value| {
        let mut listener = json!({ "name": "pipe", "address": { "pipe": pipe }, "filter_chains": [{ "filters": [direct()] }] });
        merge(&mut listener, more);
        bootstrap(listener, json!([]))
    };
    let name = |length: usize| format!("/tmp/{}", "x".repeat(length - 5));
    for (what, pipe, more, taken) in [
        ("a path", json!({ "path": "/tmp/lateen-refusals.sock" }), json!({}), true),
        ("a mode", json!({ "path": "/tmp/lateen-refusals.sock", "mode": 511 }), json!({}), true),
        ("too much of a mode", json!({ "path": "/tmp/lateen-refusals.sock", "mode": 512 }), json!({}), false),
        ("no path", json!({ "path": "" }), json!({}), false),
        ("the longest path", json!({ "path": name(107) }), json!({}), true),
        ("a longer path", json!({ "path": name(108) }), json!({}), false),
        ("an abstract name", json!({ "path": "@lateen-refusals" }), json!({}), true),
    ] {
        agree(what, &at(pipe, more), taken);
    }
}

/// What a control plane might send by mistake, beside what is right. Two things are left out, since they differ: routes to clusters
/// that are not there, which ours answers with `cluster_not_found_response_code` whatever `validate_clusters` says, and
/// substitutions by groups that a pattern lacks, which ours refuses and Envoy ignores with every request.
#[test]
#[allow(clippy::too_many_lines)] // A table of cases.
fn wrong_routes_clusters_and_listeners_are_refused_as_by_envoy() {
    let cluster = |more: Value| {
        let mut cluster = json!({ "name": "c", "type": "STATIC", "connect_timeout": "1s" });
        merge(&mut cluster, more);
        json!([cluster])
    };
    let manager = |hosts: Value| {
        json!({ "name": "web", "address": address(0), "filter_chains": [{ "filters": [{ "name": "hcm", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "web", "route_config": { "virtual_hosts": hosts },
            "http_filters": [{ "name": "router", "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
            } }],
        } }] }] })
    };
    let host = |name: &str, domains: Value, routes: &Value| json!({ "name": name, "domains": domains, "routes": routes });
    let to = |action: Value| {
        let routes = json!([{ "match": { "prefix": "/" }, "route": action }]);
        bootstrap(manager(json!([host("v", json!(["*"]), &routes)])), cluster(json!({})))
    };
    let matching = |condition: Value| {
        let routes = json!([{ "match": condition, "route": { "cluster": "c" } }]);
        bootstrap(manager(json!([host("v", json!(["*"]), &routes)])), cluster(json!({})))
    };
    let hosts = |hosts: Value| bootstrap(manager(hosts), cluster(json!({})));
    let weights = |weights: &[u64]| {
        let clusters: Vec<_> =
            weights.iter().map(|weight| json!({ "name": "c", "weight": weight })).collect();
        to(json!({ "weighted_clusters": { "clusters": clusters } }))
    };
    let of_cluster = |more: Value| bootstrap(manager(json!([])), cluster(more));
    let any = json!([{ "match": { "prefix": "/" }, "route": { "cluster": "c" } }]);
    let chains = |first: Value, second: Value| {
        let chain = |matching: Value| json!({ "filter_chain_match": matching, "filters": [direct()] });
        bootstrap(
            json!({ "name": "l", "address": address(0), "filter_chains": [chain(first), chain(second)] }),
            json!([]),
        )
    };
    for (what, bootstrap, taken) in [
        ("a route", to(json!({ "cluster": "c" })), true),
        ("weights", weights(&[1, 0]), true),
        ("weights that are not 100 together", weights(&[1, 5]), true),
        ("weights of nothing", weights(&[0, 0]), false),
        ("no weights", weights(&[]), false),
        ("weights beyond 32 bits together", weights(&[4_294_967_295, 1]), false),
        ("a cluster without a name", to(json!({ "cluster": "" })), false),
        ("a negative time-out", to(json!({ "cluster": "c", "timeout": "-1s" })), false),
        ("a time-out beyond all measure", to(json!({ "cluster": "c", "timeout": "315576000001s" })), false),
        (
            "a negative pause",
            to(json!({ "cluster": "c", "retry_policy": { "retry_back_off": { "base_interval": "-1s" } } })),
            false,
        ),
        (
            "a pause of nothing",
            to(json!({ "cluster": "c", "retry_policy": { "retry_back_off": { "base_interval": "0s" } } })),
            false,
        ),
        (
            "a pause that shrinks",
            to(
                json!({ "cluster": "c", "retry_policy": { "retry_back_off": { "base_interval": "2s", "max_interval": "1s" } } }),
            ),
            false,
        ),
        ("a regex that is none", matching(json!({ "safe_regex": { "regex": "(" } })), false),
        ("a regex of nothing", matching(json!({ "safe_regex": { "regex": "" } })), false),
        ("a regex that RE2 lacks", matching(json!({ "safe_regex": { "regex": "(?=a)" } })), false),
        (
            "a header's regex",
            matching(
                json!({ "prefix": "/", "headers": [{ "name": "x", "string_match": { "safe_regex": { "regex": "[" } } }] }),
            ),
            false,
        ),
        (
            "a header without a name",
            matching(json!({ "prefix": "/", "headers": [{ "name": "", "present_match": true }] })),
            false,
        ),
        ("a match of nothing", matching(json!({})), false),
        (
            "two rewrites",
            to(
                json!({ "cluster": "c", "prefix_rewrite": "/x", "regex_rewrite": { "pattern": { "regex": "a" }, "substitution": "b" } }),
            ),
            false,
        ),
        (
            "a domain twice",
            hosts(json!([host("a", json!(["x"]), &any), host("b", json!(["x"]), &any)])),
            false,
        ),
        (
            "a domain twice but for case",
            hosts(json!([host("a", json!(["x"]), &any), host("b", json!(["X"]), &any)])),
            false,
        ),
        (
            "everything twice",
            hosts(json!([host("a", json!(["*"]), &any), host("b", json!(["*"]), &any)])),
            false,
        ),
        ("a name twice", hosts(json!([host("a", json!(["x"]), &any), host("a", json!(["y"]), &any)])), true),
        ("no domains", hosts(json!([host("a", json!([]), &any)])), false),
        ("an unknown command", to(json!({ "cluster": "c", "host_rewrite_literal": "a\nb" })), false),
        ("a negative connect time-out", of_cluster(json!({ "connect_timeout": "-1s" })), false),
        ("no connect time-out", of_cluster(json!({ "connect_timeout": "0s" })), false),
        (
            "an endpoint without an address",
            of_cluster(
                json!({ "load_assignment": { "cluster_name": "c", "endpoints": [{ "lb_endpoints": [{ "endpoint": {} }] }] } }),
            ),
            false,
        ),
        (
            "a name for an address",
            of_cluster(
                json!({ "load_assignment": { "cluster_name": "c", "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": { "socket_address": { "address": "name", "port_value": 1 } } } }] }] } }),
            ),
            false,
        ),
        (
            "a port beyond ports",
            of_cluster(
                json!({ "load_assignment": { "cluster_name": "c", "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address(1) } }, { "endpoint": { "address": { "socket_address": { "address": "127.0.0.1", "port_value": 70000 } } } }] }] } }),
            ),
            false,
        ),
        (
            "an ejection of more than all",
            of_cluster(json!({ "outlier_detection": { "max_ejection_percent": 101 } })),
            false,
        ),
        ("an interval of nothing", of_cluster(json!({ "outlier_detection": { "interval": "0s" } })), false),
        ("two chains", chains(json!({ "destination_port": 1 }), json!({ "destination_port": 2 })), true),
        ("a chain twice", chains(json!({ "destination_port": 1 }), json!({ "destination_port": 1 })), false),
        ("a port that is none", chains(json!({ "destination_port": 0 }), json!({})), false),
        (
            "a network that is none",
            chains(
                json!({ "prefix_ranges": [{ "address_prefix": "10.0.0.300", "prefix_len": 8 }] }),
                json!({}),
            ),
            false,
        ),
        ("a wildcard in a name", chains(json!({ "server_names": ["a*.example"] }), json!({})), false),
    ] {
        agree(what, &bootstrap, taken);
    }
}

/// Names and times of certificates mean nothing where anybody may have issued them.
#[test]
fn certificates_are_believed_by_an_authority() {
    let pki = Pki::new();
    let cluster = |context: Value, more: Value| {
        let mut socket = json!({
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": context,
        });
        merge(&mut socket, more);
        let listener =
            json!({ "name": "direct", "address": address(0), "filter_chains": [{ "filters": [direct()] }] });
        let socket = json!({ "name": "envoy.transport_sockets.tls", "typed_config": socket });
        bootstrap(
            listener,
            json!([{ "name": "services", "connect_timeout": "1s", "transport_socket": socket }]),
        )
    };
    let looks = |mut context: Value, authority: bool| {
        if authority {
            context["trusted_ca"] = json!({ "inline_string": pki.authority.pem() });
        }
        json!({ "validation_context": context })
    };
    let names =
        || json!({ "match_typed_subject_alt_names": [{ "san_type": "DNS", "matcher": { "exact": "a" } }] });
    let expired = || json!({ "allow_expired_certificate": true });
    let of_name = || json!({ "auto_sni_san_validation": true });
    for (what, bootstrap, taken) in [
        ("names", cluster(looks(names(), true), json!({})), true),
        ("names of anybody", cluster(looks(names(), false), json!({})), false),
        ("late ones", cluster(looks(expired(), true), json!({})), true),
        ("late ones of anybody", cluster(looks(expired(), false), json!({})), false),
        (
            "no authority",
            cluster(json!({ "validation_context": { "trusted_ca": { "inline_string": "x" } } }), json!({})),
            false,
        ),
        ("the name that is asked for", cluster(looks(json!({}), true), of_name()), true),
        ("the name that is asked for, of anybody", cluster(json!({}), of_name()), false),
    ] {
        agree(what, &bootstrap, taken);
    }
}
