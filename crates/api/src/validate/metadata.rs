//! What Istio's validation says of an object's name, labels and annotations, of what is meant by its namespace, and of what only the spec
//! as it is written tells.
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use super::Findings;
use super::hosts::is_dns_label;
use crate::networking::service_entry::ENABLE_AUTOALLOCATE_IP;

/// Makes a policy one that is counted only.
const DRY_RUN: &str = "istio.io/dry-run";

/// Checks an object's metadata beside its spec as it is written.
pub fn validate_metadata(kind: &str, metadata: &ObjectMeta, spec: &Value) -> Findings {
    let mut findings = Findings::default();
    let name = metadata.name.as_deref().unwrap_or_default();
    let namespace = metadata.namespace.as_deref().unwrap_or_default();
    if let Some(value) = metadata.annotations.iter().flatten().find(|(key, _)| *key == DRY_RUN) {
        check_dry_run(&mut findings, kind, &format!("{namespace}/{name}"), value.1, &spec["action"]);
    }
    if kind == "Gateway" && !is_dns_label(name) {
        findings.error("metadata.name", format!("invalid gateway name: {name:?}"));
    }
    // To who reads the spec it is as if there were none.
    let names_no_port = spec["portLevelMtls"].as_object().is_some_and(serde_json::Map::is_empty);
    if kind == "PeerAuthentication" && names_no_port {
        let words = "port level mTLS, if defined, must have at least one element";
        findings.error("spec.portLevelMtls", words);
    }
    if kind == "ServiceEntry" {
        check_addresses(&mut findings, metadata, spec);
    }
    let selects = kind == "DestinationRule" && spec["workloadSelector"].is_object();
    let export_to = spec["exportTo"].as_array().into_iter().flatten().filter_map(Value::as_str);
    check_export_to(&mut findings, namespace, &export_to.collect::<Vec<_>>(), selects);
    findings
}

fn check_dry_run(findings: &mut Findings, kind: &str, object: &str, value: &str, action: &Value) {
    let path = format!("metadata.annotations[{DRY_RUN}]");
    if kind != "AuthorizationPolicy" {
        let words = format!("{object} has unsupported annotation {DRY_RUN}, please remove the annotation");
        findings.error(path, words);
        return;
    }
    let action = action.as_str().unwrap_or("ALLOW");
    if !matches!(action, "ALLOW" | "DENY") {
        let words = format!(
            "the annotation {DRY_RUN} currently only supports action ALLOW/DENY, found action {action} in {object}"
        );
        findings.error(path, words);
    } else if !["1", "t", "T", "TRUE", "true", "True", "0", "f", "F", "FALSE", "false", "False"]
        .contains(&value)
    {
        let words = format!(
            "{object} has annotation {DRY_RUN} with invalid value ({value}): strconv.ParseBool: parsing {value:?}: invalid syntax"
        );
        findings.error(path, words);
    }
}

/// Without an address of its own, given or automatic, an entry's bytes cannot be told from others on the same port.
fn check_addresses(findings: &mut Findings, metadata: &ObjectMeta, spec: &Value) {
    let label = metadata.labels.as_ref().and_then(|labels| labels.get(ENABLE_AUTOALLOCATE_IP));
    let has_automatic = spec["resolution"].as_str().is_some_and(|resolution| resolution != "NONE")
        && !label.is_some_and(|value| value.eq_ignore_ascii_case("false"));
    let has_given = spec["addresses"].as_array().is_some_and(|addresses| !addresses.is_empty());
    if has_automatic || has_given {
        return;
    }
    for (index, port) in spec["ports"].as_array().into_iter().flatten().enumerate() {
        // Istio reads protocols in any case.
        let of_bytes = |protocol: &str| protocol.is_empty() || protocol.eq_ignore_ascii_case("TCP");
        if port["protocol"].as_str().is_none_or(of_bytes) {
            let words = "addresses are required for ports serving TCP (or unset) protocol when ISTIO_META_DNS_AUTO_ALLOCATE is not set on a proxy";
            findings.warn(format!("spec.ports[{index}].protocol"), words);
        }
    }
}

/// `.` is the object's own namespace. A rule for some workloads is for those of its own namespace.
fn check_export_to(findings: &mut Findings, namespace: &str, export_to: &[&str], selects: bool) {
    let path = "spec.exportTo";
    if export_to.contains(&".") && export_to.contains(&namespace) {
        let words = format!("duplicate entries in exportTo: . and current namespace {namespace}");
        findings.error(path, words);
    }
    if !selects || export_to.is_empty() {
        return;
    }
    let own = |entry: &&str| *entry == "." || *entry == namespace;
    if !export_to.iter().any(own) {
        let words = "destination rule with workload selector cannot have exportTo beyond current namespace";
        findings.error(path, words);
    } else if !export_to.iter().all(own) {
        let words = "destination rule with workload selector cannot have multiple entries in exportTo";
        findings.error(path, words);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn said(kind: &str, metadata: Value, spec: Value) -> Vec<String> {
        let mut metadata: ObjectMeta = serde_json::from_value(metadata).unwrap();
        metadata.namespace = Some("ns".to_owned());
        metadata.name.get_or_insert("x".to_owned());
        validate_metadata(kind, &metadata, &spec).errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn dry_runs_are_for_policies_that_allow_or_deny() {
        let run = |kind: &str, value: &str, spec: Value| {
            said(kind, json!({ "annotations": { "istio.io/dry-run": value } }), spec)
        };
        let policy = "AuthorizationPolicy";
        for spec in [json!({}), json!({ "action": "DENY" }), json!({ "action": "ALLOW" })] {
            assert_eq!(run(policy, "true", spec.clone()), Vec::<String>::new());
            assert_eq!(run(policy, "0", spec), Vec::<String>::new());
        }
        let at = "metadata.annotations[istio.io/dry-run]: ";
        for (kind, value, spec, words) in [
            (
                "Gateway",
                "true",
                json!({}),
                "ns/x has unsupported annotation istio.io/dry-run, please remove the annotation",
            ),
            (
                "PeerAuthentication",
                "false",
                json!({}),
                "ns/x has unsupported annotation istio.io/dry-run, please remove the annotation",
            ),
            (
                policy,
                "yes",
                json!({}),
                "ns/x has annotation istio.io/dry-run with invalid value (yes): strconv.ParseBool: parsing \"yes\": invalid syntax",
            ),
            (
                policy,
                "true",
                json!({ "action": "CUSTOM" }),
                "the annotation istio.io/dry-run currently only supports action ALLOW/DENY, found action CUSTOM in ns/x",
            ),
            (
                policy,
                "true",
                json!({ "action": "AUDIT" }),
                "the annotation istio.io/dry-run currently only supports action ALLOW/DENY, found action AUDIT in ns/x",
            ),
        ] {
            assert_eq!(run(kind, value, spec), [format!("{at}{words}")]);
        }
    }

    #[test]
    fn names_of_gateways_have_no_dots() {
        assert_eq!(
            said("Gateway", json!({ "name": "a.b" }), json!({})),
            ["metadata.name: invalid gateway name: \"a.b\""]
        );
        assert_eq!(said("VirtualService", json!({ "name": "a.b" }), json!({})), Vec::<String>::new());
    }

    #[test]
    fn export_to_is_read_in_its_namespace() {
        let export = |selects: bool, to: Value| {
            let mut spec = json!({ "exportTo": to });
            if selects {
                spec["workloadSelector"] = json!({});
            }
            said("DestinationRule", json!({}), spec)
        };
        let own = "spec.exportTo: duplicate entries in exportTo: . and current namespace ns";
        assert_eq!(export(false, json!([".", "ns"])), [own]);
        assert_eq!(export(false, json!([".", "other"])), Vec::<String>::new());
        let several =
            "spec.exportTo: destination rule with workload selector cannot have multiple entries in exportTo";
        let beyond = "spec.exportTo: destination rule with workload selector cannot have exportTo beyond current namespace";
        for to in [json!(["other"]), json!(["*"]), json!(["other", "more"])] {
            assert_eq!(export(true, to), [beyond]);
        }
        assert_eq!(export(true, json!(["ns", "other"])), [several]);
        assert_eq!(export(true, json!([".", "other"])), [several]);
        for to in [json!([]), json!(["."]), json!(["ns"])] {
            assert_eq!(export(true, to), Vec::<String>::new());
        }
    }

    #[test]
    fn ports_that_are_named_are_some() {
        let ports = |spec: Value| said("PeerAuthentication", json!({}), spec);
        assert_eq!(
            ports(json!({ "selector": { "matchLabels": { "a": "b" } }, "portLevelMtls": {} })),
            ["spec.portLevelMtls: port level mTLS, if defined, must have at least one element"]
        );
        for spec in [json!({}), json!({ "portLevelMtls": null }), json!({ "portLevelMtls": { "80": {} } })] {
            assert_eq!(ports(spec), Vec::<String>::new());
        }
    }

    #[test]
    fn bytes_without_an_address_are_warned_about() {
        let warned = |label: Option<&str>, more: Value| {
            let mut spec = json!({ "resolution": "NONE", "ports": [
                { "number": 80, "name": "a", "protocol": "HTTP" }, { "number": 81, "name": "b" },
                { "number": 82, "name": "c", "protocol": "tcp" }] });
            more.as_object().unwrap().iter().for_each(|(key, value)| spec[key] = value.clone());
            let labels = label.map(|value| json!({ "networking.istio.io/enable-autoallocate-ip": value }));
            let metadata: ObjectMeta = serde_json::from_value(json!({ "labels": labels })).unwrap();
            let found = validate_metadata("ServiceEntry", &metadata, &spec);
            assert!(found.is_valid());
            found.warnings.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let words = |index: u32| {
            format!(
                "spec.ports[{index}].protocol: addresses are required for ports serving TCP (or unset) protocol when \
                 ISTIO_META_DNS_AUTO_ALLOCATE is not set on a proxy"
            )
        };
        let both = [words(1), words(2)];
        assert_eq!(warned(None, json!({})), both);
        assert_eq!(warned(None, json!({ "resolution": null })), both, "that is NONE");
        assert_eq!(warned(Some("False"), json!({ "resolution": "DNS" })), both);
        let none = Vec::<String>::new();
        assert_eq!(warned(None, json!({ "addresses": ["1.2.3.4"] })), none);
        assert_eq!(warned(None, json!({ "resolution": "DNS" })), none, "it has an automatic one");
        assert_eq!(warned(Some("true"), json!({ "resolution": "STATIC" })), none);
    }
}
