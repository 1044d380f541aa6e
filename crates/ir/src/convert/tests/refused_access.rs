//! What is refused of policies, tokens and TLS, by the end of the path of its field.
use super::*;

const TYPES: &str = "type.googleapis.com/envoy.extensions";

/// A listener with this HTTP filter.
fn with_filter(kind: &str, settings: &str) -> String {
    let filter = format!("{{name: f, typed_config: {{'@type': {TYPES}.filters.http.{kind}, {settings}}}}}");
    http_listener("").replace(ROUTER, &format!("{filter}, {ROUTER}"))
}

/// At which paths these are refused; empty: taken.
fn check(cases: &[(String, &str)]) {
    let yaml = Yaml::new();
    for (text, end) in cases {
        let path = yaml.listener(text).err().map(|error| error.path).unwrap_or_default();
        let as_wanted = if end.is_empty() { path.is_empty() } else { path.ends_with(end) };
        assert!(as_wanted, "{path:?}, not {end:?}\n{text}");
    }
}

#[test]
fn policies_are_refused_with_the_fields_path() {
    let http = |permission: &str, principal: &str| {
        let rules =
            format!("rules: {{policies: {{p: {{permissions: [{permission}], principals: [{principal}]}}}}}}");
        with_filter("rbac.v3.RBAC", &rules)
    };
    let tcp = |more: &str| {
        let filter =
            format!("{{name: f, typed_config: {{'@type': {TYPES}.filters.network.rbac.v3.RBAC, {more}}}}}, ");
        tcp_listener(", cluster: c").replace("filters: [", &format!("filters: [{filter}"))
    };
    let rules = |field: &str, permission: &str| {
        format!(
            "stat_prefix: s, {field}: {{policies: {{p: {{permissions: [{permission}], principals: [{{any: true}}]}}}}}}"
        )
    };
    let any = "{any: true}";
    let header = "{header: {name: a, present_match: true}}";
    check(&[
        (http(any, any), ""),
        (http("", any), "permissions"),
        (http(any, ""), "principals"),
        (http("{any: false}", any), "permissions[0].any"),
        (http(any, "{any: false}"), "principals[0].any"),
        (http("{and_rules: {rules: []}}", any), "and_rules.rules"),
        (http("{or_rules: {rules: []}}", any), "or_rules.rules"),
        (http(any, "{or_ids: {ids: []}}"), "or_ids.ids"),
        (http("{not_rule: {any: false}}", any), "not_rule.any"),
        (http("{destination_port: 65535}", any), ""),
        (http("{destination_port: 65536}", any), "destination_port"),
        (http("{destination_port_range: {start: 1, end: 65536}}", any), ""),
        (http("{destination_port_range: {start: 1, end: 65537}}", any), "destination_port_range"),
        (http("{destination_port_range: {start: 2, end: 2}}", any), "destination_port_range"),
        (http("{destination_port_range: {start: 3, end: 2}}", any), "destination_port_range"),
        (http("{destination_port_range: {start: -1, end: 2}}", any), "destination_port_range"),
        (tcp(&rules("rules", any)), ""),
        (tcp(&rules("rules", any).replace("stat_prefix: s", "stat_prefix: ''")), "stat_prefix"),
        (tcp(&format!("{}, enforcement_type: CONTINUOUS", rules("rules", any))), "enforcement_type"),
        // What only HTTP has, however deep, in rules that decide and in those that only tell.
        (tcp(&rules("rules", header)), "rules"),
        (tcp(&rules("shadow_rules", header)), "shadow_rules"),
        (tcp(&rules("rules", &format!("{{not_rule: {header}}}"))), "rules"),
        (tcp(&rules("rules", &format!("{{and_rules: {{rules: [{any}, {header}]}}}}"))), "rules"),
        (tcp(&rules("rules", &format!("{{or_rules: {{rules: [{any}, {header}]}}}}"))), "rules"),
    ]);
}

#[test]
fn token_requirements_are_refused_with_the_fields_path() {
    const KEYS: &str = r#"{"keys":[{"kty":"oct","k":"AAAA"}]}"#;
    let local = format!("local_jwks: {{inline_string: '{KEYS}'}}");
    let filter = |provider: &str, more: &str| {
        with_filter("jwt_authn.v3.JwtAuthentication", &format!("providers: {{p: {{{provider}}}}}{more}"))
    };
    let rule = |requires: &str| filter(&local, &format!(", rules: [{{match: {{prefix: /}}, {requires}}}]"));
    let p = "{provider_name: p}";
    let remote = |more: &str| {
        let uri = "http_uri: {uri: 'https://a/keys', cluster: c, timeout: 1s}";
        filter(&format!("remote_jwks: {{{uri}{more}}}"), "")
    };
    check(&[
        (rule(&format!("requires: {p}")), ""),
        (rule("requires: {provider_name: q}"), "provider_name"),
        (rule("requires: {provider_and_audiences: {provider_name: q}}"), "provider_name"),
        (rule(&format!("requires: {{requires_any: {{requirements: [{p}]}}}}")), "requires_any.requirements"),
        (rule(&format!("requires: {{requires_all: {{requirements: [{p}]}}}}")), "requires_all.requirements"),
        (rule(&format!("requires: {{requires_any: {{requirements: [{p}, {p}]}}}}")), ""),
        (rule("requirement_name: r"), "requirement_name"),
        (
            filter(
                &local,
                &format!(
                    ", requirement_map: {{r: {p}}}, rules: [{{match: {{prefix: /}}, requirement_name: r}}]"
                ),
            ),
            "",
        ),
        (
            filter(
                &local,
                &format!(
                    ", requirement_map: {{r: {p}}}, rules: [{{match: {{prefix: /}}, requirement_name: s}}]"
                ),
            ),
            "requirement_name",
        ),
        (filter("issuer: a", ""), "jwks_source_specifier"),
        (filter("local_jwks: {inline_string: '{}'}", ""), "local_jwks"),
        (filter(&format!("{local}, jwt_cache_config: {{jwt_cache_size: 100000}}"), ""), ""),
        (filter(&format!("{local}, jwt_cache_config: {{jwt_cache_size: 100001}}"), ""), "jwt_cache_size"),
        (remote(""), ""),
        (remote(", cache_duration: 0.001s"), ""),
        (remote(", cache_duration: 0s"), "cache_duration"),
        (remote(", async_fetch: {}"), ""),
        (
            remote(", async_fetch: {failed_refetch_duration: 315360001s}"),
            "async_fetch.failed_refetch_duration",
        ),
    ]);
}

#[test]
fn tls_is_refused_with_the_fields_path() {
    let pair = "{certificate_chain: {inline_string: a}, private_key: {inline_string: b}}";
    let server = |common: &str| {
        let socket = format!(
            "transport_socket: {{name: tls, typed_config: {{'@type': {TYPES}.transport_sockets.tls.v3.DownstreamTlsContext, \
             common_tls_context: {{{common}}}}}}}, filters: ["
        );
        tcp_listener(", cluster: c").replace("filters: [", &socket)
    };
    let with = |validation: &str| {
        server(&format!("tls_certificates: [{pair}], validation_context: {{{validation}}}"))
    };
    let domains = |list: &str, more: &str| {
        let config = format!(
            "{{'@type': {TYPES}.transport_sockets.tls.v3.SPIFFECertValidatorConfig, trust_domains: [{list}]}}"
        );
        with(&format!(
            "custom_validator_config: {{name: envoy.tls.cert_validator.spiffe, typed_config: {config}}}{more}"
        ))
    };
    let domain = |name: &str| format!("{{name: '{name}', trust_bundle: {{inline_string: c}}}}");
    let name =
        |kind: &str| format!("match_typed_subject_alt_names: [{{san_type: {kind}, matcher: {{exact: a}}}}]");
    let alpn =
        |protocol: &str| server(&format!("tls_certificates: [{pair}], alpn_protocols: ['{protocol}']"));
    check(&[
        (server(&format!("tls_certificates: [{pair}]")), ""),
        (server(""), "common_tls_context"),
        (alpn(&"a".repeat(255)), ""),
        (alpn(&"a".repeat(256)), "alpn_protocols[0]"),
        (alpn(""), "alpn_protocols[0]"),
        (with(&name("DNS")), ""),
        (with(&name("SAN_TYPE_UNSPECIFIED")), "san_type"),
        (domains(&domain("a"), ""), ""),
        (domains("", ""), "trust_domains"),
        (domains(&domain(""), ""), "trust_domains[0].name"),
        (domains(&format!("{}, {}", domain("a"), domain("a")), ""), "trust_domains[1].name"),
        (domains(&format!("{}, {}", domain("a"), domain("b")), ""), ""),
        (domains("{name: a}", ""), "trust_bundle"),
        (domains(&domain("a"), &format!(", {}", name("URI"))), ""),
        (domains(&domain("a"), &format!(", {}", name("DNS"))), "match_typed_subject_alt_names"),
    ]);
}

/// What a secret brings is added to what stands in place (`combined_validation_context`).
#[test]
fn validation_contexts_are_joined() {
    let [none, some] = [ValidationContext::default(), {
        ValidationContext {
            only_leaf_crl: true,
            allow_expired: true,
            accept_untrusted: true,
            verify_spki: vec![[1; 32]],
            verify_hash: vec![[2; 32]],
            sans: vec![SanMatcher {
                san_type: None,
                matcher: StringMatcher::Exact(Text::new("a".into(), false)),
            }],
            trusted_ca: Some(Pem { origin: "a".into(), bytes: (*b"a").into() }),
            crl: Some(Pem { origin: "b".into(), bytes: (*b"b").into() }),
            trust_domains: Some(Vec::new().into()),
        }
    }];
    for (base, dynamic) in [(&none, &some), (&some, &none)] {
        assert_eq!(format!("{:?}", base.merged(dynamic)), format!("{some:?}"));
    }
    assert!(!none.verifies() && some.verifies());
    let only = |change: &dyn Fn(&mut ValidationContext)| {
        let mut context = none.clone();
        change(&mut context);
        context.verifies()
    };
    assert!(only(&|context| context.trusted_ca.clone_from(&some.trusted_ca)));
    assert!(only(&|context| context.verify_spki.clone_from(&some.verify_spki)));
    assert!(only(&|context| context.verify_hash.clone_from(&some.verify_hash)));
    assert!(only(&|context| context.sans.clone_from(&some.sans)));
    assert!(only(&|context| context.trust_domains.clone_from(&some.trust_domains)));
    assert!(!only(&|context| context.crl.clone_from(&some.crl)), "a list alone verifies nobody");
}
