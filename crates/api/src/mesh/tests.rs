//! What mesh config is taken, refused, or told to have no effect.
use proptest::prelude::*;

use super::*;

proptest! {
    /// Whatever somebody writes is config or refused.
    #[test]
    fn any_text_is_config_or_refused(text in "\\PC{0,200}", field in "(connectTimeout|accessLogFormat|rootNamespace|tcpKeepalive|meshMTLS|extensionProviders)", value in "(\\PC{0,20}|-?[0-9]{1,30}(s|ms|h)?|[\\[{][^\n]{0,20})") {
        drop(MeshConfig::parse(&text));
        if let Ok(mesh) = MeshConfig::parse(&format!("{field}: {value}\n")) {
            prop_assert!(!mesh.connect_timeout().is_zero());
        }
    }
}

#[test]
fn empty_config_is_istios_default() {
    let mesh = MeshConfig::parse("").expect("parses");
    assert!(mesh.allows_any_outbound());
    assert_eq!(mesh.trust_domain, "cluster.local");
    assert_eq!(mesh.connect_timeout(), Duration::from_secs(10));
    assert_eq!(mesh.default_config.discovery_address, "istiod.istio-system.svc:15012");
}

#[test]
fn given_fields_override_and_the_unknown_is_reported() {
    let mesh = MeshConfig::parse(
        "accessLogFile: /dev/stdout\noutboundTrafficPolicy:\n  mode: REGISTRY_ONLY\nconnectTimeout: 3s\n\
         defaultConfig:\n  concurrency: 2\n  tracing: {}\n  statusPort: 15999\n  proxyMetadata:\n    A: b\ndiscoverySelectors: []\n",
    )
    .expect("parses");
    assert_eq!(mesh.access_log_file, "/dev/stdout");
    assert!(!mesh.allows_any_outbound());
    assert_eq!(mesh.connect_timeout(), Duration::from_secs(3));
    assert_eq!(mesh.default_config.concurrency, Some(2));
    assert_eq!(mesh.default_config.proxy_metadata["A"], "b");
    assert_eq!(
        mesh.without_effect(),
        ["discoverySelectors", "defaultConfig.statusPort", "defaultConfig.tracing"]
    );
}

#[test]
fn tls_that_no_proxy_takes_is_refused() {
    for field in ["meshMTLS", "tlsDefaults"] {
        let refused = |rest: &str| {
            let error = MeshConfig::parse(&format!("{field}: {{{rest}}}")).expect_err(rest).to_string();
            assert!(error.contains(&format!("{field}: ")), "{error}");
            error
        };
        assert!(
            refused("ecdhCurves: [X448, P-256, B-1]")
                .contains("detected unrecognized ECDH curves: [B-1 X448]")
        );
        assert!(refused("ecdhCurves: [P-256, P-256]").contains("detected duplicate ECDH curves: [P-256]"));
        assert!(
            refused("cipherSuites: [RC4-MD5]").contains("detected unrecognized cipher suites: [RC4-MD5]")
        );
        assert!(refused("cipherSuites: [AES128-SHA]").contains("none with forward secrecy"));
        assert!(MeshConfig::parse(&format!("{field}: {{minProtocolVersion: TLSV9}}")).is_err());
        let suites = "cipherSuites: [AES128-SHA, ECDHE-RSA-AES128-GCM-SHA256], ecdhCurves: [P-384]";
        let mesh = MeshConfig::parse(&format!("{field}: {{{suites}, more: 1}}")).unwrap();
        assert_eq!(mesh.without_effect(), [format!("{field}.cipherSuites[0]"), format!("{field}.more")]);
    }
}

#[test]
fn bad_config_names_the_field() {
    let error = MeshConfig::parse("connectTimeout: soon\n").expect_err("refused");
    assert!(error.to_string().contains("connectTimeout"), "{error}");
    assert!(MeshConfig::parse("accessLogFile: [").is_err());
    assert!(MeshConfig::parse("connectTimeout: 0s").is_err(), "proxies refuse clusters with it");
    let error = MeshConfig::parse("tcpKeepalive: { interval: often }").expect_err("refused");
    assert!(error.to_string().contains("tcpKeepalive.interval"), "{error}");
    assert!(MeshConfig::parse("h2UpgradePolicy: PERHAPS").is_err());
}

#[test]
fn locality_of_the_mesh_is_checked_as_that_of_rules() {
    let parse = |setting: &str| MeshConfig::parse(&format!("localityLbSetting: {setting}"));
    assert!(parse("{failover: [{from: a, to: b}], distribute: []}").is_ok());
    let refused = parse("{distribute: [{from: a, to: {b: 99}}]}").unwrap_err().to_string();
    assert!(
        refused.contains("localityLbSetting.distribute[0]: total locality weight 99 != 100"),
        "{refused}"
    );
}

#[test]
fn a_log_format_that_proxies_cannot_read_is_refused() {
    for format in ["%FOO%", "100%", "%REQ%"] {
        let error = MeshConfig::parse(&format!("accessLogFormat: '{format}'")).unwrap_err().to_string();
        assert!(error.contains("accessLogFormat"), "{error}");
    }
    for format in ["[%START_TIME%] %REQ(:METHOD)%", "{\"a\": \"%RESPONSE_CODE%\"}"] {
        assert!(MeshConfig::parse(&format!("accessLogFormat: '{format}'")).is_ok(), "{format}");
    }
}
