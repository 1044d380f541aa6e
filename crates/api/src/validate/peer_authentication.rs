//! Validation of PeerAuthentication, with Istio's words.
use super::{Findings, check_workload_selector};
use crate::security::peer_authentication::PeerAuthenticationSpec;

/// Validates a PeerAuthentication's spec.
pub fn validate_peer_authentication(spec: &PeerAuthenticationSpec) -> Findings {
    let mut findings = Findings::default();
    if !spec.selects() && !spec.port_level_mtls.is_empty() {
        findings
            .error("spec.portLevelMtls", "mesh/namespace peer authentication cannot have port level mTLS");
    }
    for port in spec.port_level_mtls.keys() {
        if !port.parse::<u16>().is_ok_and(|port| port > 0) {
            findings.error(format!("spec.portLevelMtls[{port}]"), "port must be in range 1..65535");
        }
    }
    if let Some(selector) = &spec.selector {
        check_workload_selector(&mut findings, "spec.selector", selector);
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn said(spec: Value) -> Vec<String> {
        let findings = validate_peer_authentication(&serde_json::from_value(spec).unwrap());
        findings.errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn istios_words() {
        let selector = json!({ "matchLabels": { "app": "web" } });
        let ports = json!({ "8080": { "mode": "DISABLE" } });
        assert_eq!(said(json!({ "mtls": { "mode": "STRICT" } })), Vec::<String>::new());
        assert_eq!(said(json!({ "selector": selector, "portLevelMtls": ports })), Vec::<String>::new());
        assert_eq!(
            said(json!({ "portLevelMtls": ports })),
            ["spec.portLevelMtls: mesh/namespace peer authentication cannot have port level mTLS"]
        );
        for port in ["0", "65536", "http"] {
            let spec = json!({ "selector": selector, "portLevelMtls": { port: { "mode": "STRICT" } } });
            assert_eq!(said(spec), [format!("spec.portLevelMtls[{port}]: port must be in range 1..65535")]);
        }
        let selected = |labels: Value| {
            let spec = json!({ "selector": { "matchLabels": labels } });
            validate_peer_authentication(&serde_json::from_value(spec).unwrap())
        };
        for (labels, words) in [
            (json!({ "": "web" }), "empty key is not supported in selector: \"=web\""),
            (json!({ "app": "w*" }), "wildcard is not supported in selector: \"app=w*\""),
            (json!({ "a*": "w" }), "wildcard is not supported in selector: \"a*=w\""),
        ] {
            let found = selected(labels).errors;
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!(found[0].to_string(), format!("spec.selector.matchLabels: {words}"));
        }
        let found = selected(json!({}));
        assert!(found.is_valid());
        assert_eq!(found.warnings[0].message, "workload selector specified without labels");
        assert_eq!(selected(json!({ "app": "web" })), Findings::default());
        assert!(
            serde_json::from_value::<PeerAuthenticationSpec>(json!({ "mtls": { "mode": "MAYBE" } })).is_err()
        );
    }
}
