//! Validation of PeerAuthentication, with Istio's words.
use super::{Findings, check_labels};
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
        check_labels(&mut findings, "spec.selector.matchLabels", &selector.match_labels);
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
        assert!(!said(json!({ "selector": { "matchLabels": { "": "web" } } })).is_empty());
        assert!(
            serde_json::from_value::<PeerAuthenticationSpec>(json!({ "mtls": { "mode": "MAYBE" } })).is_err()
        );
    }
}
