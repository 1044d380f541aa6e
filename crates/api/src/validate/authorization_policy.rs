//! Validation of AuthorizationPolicy, with Istio's words.
use std::net::IpAddr;

use super::Findings;
use super::target_reference::check_targets;
use crate::security::authorization_policy::{
    Action, AuthorizationPolicySpec, Condition, Operation, Rule, Source,
};

/// What [`Condition::key`] may be, but for those with a name in brackets.
const KEYS: [&str; 11] = [
    "source.ip",
    "remote.ip",
    "source.namespace",
    "source.principal",
    "source.serviceAccount",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "destination.ip",
    "destination.port",
    "connection.sni",
];

/// Validates an AuthorizationPolicy's spec.
pub fn validate_authorization_policy(spec: &AuthorizationPolicySpec) -> Findings {
    let mut findings = Findings::default();
    check_targets(&mut findings, spec);
    let provider = spec.provider.as_ref().map(|provider| provider.name.as_str());
    match (spec.action, provider) {
        (Action::Custom, None | Some("")) => {
            findings.error("spec.provider", "`provider.name` must not be empty");
        }
        (Action::Custom, Some(_)) if spec.rules.is_empty() => {
            findings.error(
                "spec.rules",
                "CUSTOM action without `rules` is meaningless as it will never be triggered, add an empty rule `{}` if you want it be triggered for every request",
            );
        }
        (Action::Custom, Some(_)) => {}
        (_, Some(_)) => findings.error("spec.provider", "`provider` must not be with any action other than CUSTOM"),
        (Action::Deny, None) if spec.rules.is_empty() => findings.error(
            "spec.rules",
            "DENY action without `rules` is meaningless as it will never be triggered, use `rules: [{}]` to match everything",
        ),
        _ => {}
    }
    for (index, rule) in spec.rules.iter().enumerate() {
        check_rule(&mut findings, &format!("spec.rules[{index}]"), spec.action, rule);
    }
    findings
}

fn check_rule(findings: &mut Findings, path: &str, action: Action, rule: &Rule) {
    for (index, from) in rule.from.iter().enumerate() {
        let path = format!("{path}.from[{index}].source");
        match &from.source {
            None => findings.error(path, "`from.source` cannot be empty"),
            Some(source) => check_source(findings, &path, action, source),
        }
    }
    for (index, to) in rule.to.iter().enumerate() {
        let path = format!("{path}.to[{index}].operation");
        match &to.operation {
            None => findings.error(path, "`to.operation` cannot be empty"),
            Some(operation) => check_operation(findings, &path, operation),
        }
    }
    for (index, condition) in rule.when.iter().enumerate() {
        check_condition(findings, &format!("{path}.when[{index}]"), action, condition);
    }
}

fn check_source(findings: &mut Findings, path: &str, action: Action, source: &Source) {
    let lists = [
        ("principals", &source.principals),
        ("notPrincipals", &source.not_principals),
        ("requestPrincipals", &source.request_principals),
        ("notRequestPrincipals", &source.not_request_principals),
        ("namespaces", &source.namespaces),
        ("notNamespaces", &source.not_namespaces),
        ("serviceAccounts", &source.service_accounts),
        ("notServiceAccounts", &source.not_service_accounts),
        ("ipBlocks", &source.ip_blocks),
        ("notIpBlocks", &source.not_ip_blocks),
        ("remoteIpBlocks", &source.remote_ip_blocks),
        ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
    ];
    if lists.iter().all(|(_, list)| list.is_empty()) {
        findings.error(path, "`from.source` must have at least one field set");
    }
    for (field, list) in lists {
        check_values(findings, &format!("{path}.{field}"), list);
        if field.to_ascii_lowercase().ends_with("ipblocks") {
            check_addresses(findings, &format!("{path}.{field}"), list);
        }
    }
    let by_account = !source.service_accounts.is_empty() || !source.not_service_accounts.is_empty();
    let otherwise = lists[..2].iter().chain(&lists[4..6]).any(|(_, list)| !list.is_empty());
    if by_account && otherwise {
        findings.error(path, "cannot set serviceAccounts with namespaces or principals");
    }
    if action == Action::Custom {
        // Who the caller is, is the authorizer's to judge.
        for (field, _) in lists[..8].iter().filter(|(_, list)| !list.is_empty()) {
            findings
                .error(format!("{path}.{field}"), not_with_custom(&format!("From.{}", capitalised(field))));
        }
    }
}

/// istiod's words.
fn not_with_custom(what: &str) -> String {
    format!("{what} is currently not supported with CUSTOM action")
}

fn capitalised(name: &str) -> String {
    let (first, rest) = name.split_at(usize::from(!name.is_empty()));
    format!("{}{rest}", first.to_ascii_uppercase())
}

fn check_operation(findings: &mut Findings, path: &str, operation: &Operation) {
    let lists = [
        ("hosts", &operation.hosts),
        ("notHosts", &operation.not_hosts),
        ("ports", &operation.ports),
        ("notPorts", &operation.not_ports),
        ("methods", &operation.methods),
        ("notMethods", &operation.not_methods),
        ("paths", &operation.paths),
        ("notPaths", &operation.not_paths),
    ];
    if lists.iter().all(|(_, list)| list.is_empty()) {
        findings.error(path, "`to.operation` must have at least one field set");
    }
    for (field, list) in lists {
        check_values(findings, &format!("{path}.{field}"), list);
    }
    for (field, list) in [lists[2], lists[3]] {
        check_ports(findings, &format!("{path}.{field}"), list);
    }
    for (field, list) in [lists[6], lists[7]] {
        for (index, value) in list.iter().enumerate().filter(|(_, value)| is_path_template(value)) {
            if let Some(problem) = template_problem(value) {
                findings.error(format!("{path}.{field}[{index}]"), problem);
            }
        }
    }
}

/// Whether a path of an operation is a template.
pub fn is_path_template(path: &str) -> bool {
    path.contains("{*}") || path.contains("{**}")
}

fn template_problem(path: &str) -> Option<String> {
    let wrong = |why: &str| Some(format!("invalid or unsupported path {path:?}: {why}"));
    let Some(rest) = path.strip_prefix('/') else { return wrong("must begin with /") };
    let parts: Vec<&str> = rest.split('/').collect();
    for (index, part) in parts.iter().enumerate() {
        match *part {
            "{*}" => {}
            "{**}" if index + 1 == parts.len() => {}
            "{**}" => return wrong("{**} is not the last operator"),
            text if text.contains(['{', '}', '*']) => {
                return wrong("contains *, {, or } beyond a supported path template");
            }
            _ => {}
        }
    }
    None
}

fn check_condition(findings: &mut Findings, path: &str, action: Action, condition: &Condition) {
    let key = condition.key.as_str();
    if key.is_empty() {
        findings.error(format!("{path}.key"), "`key` cannot be empty");
        return;
    }
    if condition.values.is_empty() && condition.not_values.is_empty() {
        findings.error(path, "at least one of `values` or `notValues` must be set");
    }
    let bracketed = |prefix: &str| {
        key.strip_prefix(prefix)
            .is_some_and(|rest| rest.starts_with('[') && rest.ends_with(']') && rest.len() > 2)
    };
    let known = KEYS.contains(&key) || bracketed("request.headers") || bracketed("request.auth.claims");
    if !known {
        findings.error(format!("{path}.key"), format!("unknown attribute: {key}"));
    }
    let of_caller = key == "source.namespace" || key == "source.principal" || key == "source.serviceAccount";
    if action == Action::Custom && (of_caller || key.starts_with("request.auth.")) {
        findings.error(format!("{path}.key"), not_with_custom(key));
    }
    for (field, list) in [("values", &condition.values), ("notValues", &condition.not_values)] {
        let path = format!("{path}.{field}");
        check_values(findings, &path, list);
        match key {
            "source.ip" | "remote.ip" | "destination.ip" => check_addresses(findings, &path, list),
            "destination.port" => check_ports(findings, &path, list),
            _ => {}
        }
    }
}

fn check_values(findings: &mut Findings, path: &str, list: &[String]) {
    for (index, _) in list.iter().enumerate().filter(|(_, value)| value.is_empty()) {
        findings.error(format!("{path}[{index}]"), "value cannot be empty");
    }
}

fn check_addresses(findings: &mut Findings, path: &str, list: &[String]) {
    for (index, value) in list.iter().enumerate() {
        let (address, length) = value.split_once('/').map_or((&**value, None), |(a, l)| (a, Some(l)));
        let good = address.parse::<IpAddr>().is_ok_and(|address| {
            let whole = if address.is_ipv4() { 32 } else { 128 };
            length.is_none_or(|length| length.parse::<u8>().is_ok_and(|length| length <= whole))
        });
        if !good {
            findings.error(format!("{path}[{index}]"), format!("invalid ip block {value:?}"));
        }
    }
}

fn check_ports(findings: &mut Findings, path: &str, list: &[String]) {
    for (index, value) in list.iter().enumerate() {
        if !value.parse::<u16>().is_ok_and(|port| port > 0) {
            findings.error(
                format!("{path}[{index}]"),
                format!("invalid port {value:?}, must be in range 1..65535"),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn said(spec: Value) -> Vec<String> {
        let findings = validate_authorization_policy(&serde_json::from_value(spec).unwrap());
        findings.errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_the_course_writes_is_good() {
        for spec in [
            json!({}),
            json!({ "action": "DENY", "rules": [{}] }),
            json!({ "selector": { "matchLabels": { "app": "customers" } }, "action": "ALLOW", "rules": [{
                "from": [{ "source": { "namespaces": ["default"], "principals": ["cluster.local/ns/default/sa/web-frontend"] } }],
                "to": [{ "operation": { "methods": ["GET"], "paths": ["/api/customers/*", "/a/{*}/b/{**}"], "ports": ["80"] } }],
                "when": [{ "key": "request.headers[x-api-version]", "values": ["v1"] }],
            }] }),
        ] {
            assert_eq!(said(spec), Vec::<String>::new());
        }
    }

    #[test]
    fn istios_words() {
        let rule = |rule: Value| said(json!({ "rules": [rule] }));
        assert!(said(json!({ "action": "DENY" }))[0].contains("DENY action without `rules` is meaningless"));
        assert!(
            said(json!({ "action": "CUSTOM", "rules": [{}] }))[0]
                .contains("`provider.name` must not be empty")
        );
        let custom =
            |rule: Value| said(json!({ "action": "CUSTOM", "provider": { "name": "a" }, "rules": [rule] }));
        for (field, name) in [
            ("principals", "From.Principals"),
            ("notNamespaces", "From.NotNamespaces"),
            ("serviceAccounts", "From.ServiceAccounts"),
            ("requestPrincipals", "From.RequestPrincipals"),
        ] {
            let words = custom(json!({ "from": [{ "source": { field: ["a"] } }] }));
            let expected = format!("{name} is currently not supported with CUSTOM action");
            assert!(words.len() == 1 && words[0].contains(&expected), "{words:?}");
        }
        for key in ["source.principal", "source.namespace", "request.auth.claims[a]"] {
            let words = custom(json!({ "when": [{ "key": key, "values": ["a"] }] }));
            assert!(words[0].contains(&format!("{key} is currently not supported")), "{words:?}");
        }
        assert!(custom(json!({ "from": [{ "source": { "ipBlocks": ["10.0.0.1"] } }] })).is_empty());
        assert!(
            said(json!({ "provider": { "name": "a" } }))[0]
                .contains("must not be with any action other than CUSTOM")
        );
        assert!(rule(json!({ "from": [{}] }))[0].contains("`from.source` cannot be empty"));
        assert!(rule(json!({ "to": [{ "operation": {} }] }))[0].contains("must have at least one field set"));
        assert!(
            rule(json!({ "to": [{ "operation": { "ports": ["http"] } }] }))[0]
                .contains("must be in range 1..65535")
        );
        assert!(
            rule(json!({ "from": [{ "source": { "ipBlocks": ["10.0.0.0/33"] } }] }))[0]
                .contains("invalid ip block")
        );
        assert!(rule(json!({ "to": [{ "operation": { "paths": [""] } }] }))[0].contains("cannot be empty"));
        assert!(
            rule(json!({ "to": [{ "operation": { "paths": ["/{**}/a"] } }] }))[0]
                .contains("not the last operator")
        );
        assert!(
            rule(json!({ "to": [{ "operation": { "paths": ["/{*}a"] } }] }))[0]
                .contains("beyond a supported path template")
        );
        assert!(
            rule(json!({ "when": [{ "key": "a.b", "values": ["c"] }] }))[0]
                .contains("unknown attribute: a.b")
        );
        assert!(
            rule(json!({ "when": [{ "key": "source.ip" }] }))[0]
                .contains("at least one of `values` or `notValues` must be set")
        );
        assert!(
            rule(json!({ "when": [{ "key": "destination.ip", "values": ["x"] }] }))[0]
                .contains("invalid ip block")
        );
    }
}
