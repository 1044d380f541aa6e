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
    let meaningless = |action: &str| {
        format!(
            "{action} action without `rules` is meaningless as it will never be triggered, add an empty rule `{{}}` if you want it be triggered for every request"
        )
    };
    match (spec.action, provider) {
        (Action::Custom, _) if spec.rules.is_empty() => findings.error("spec.rules", meaningless("CUSTOM")),
        (Action::Custom, None | Some("")) => {
            findings.error("spec.provider", "`provider.name` must not be empty");
        }
        (Action::Custom, Some(_)) | (_, None) => {}
        (action, Some(_)) => {
            let found = format!("{action:?}").to_ascii_uppercase();
            let words = format!("`provider` must not be with non CUSTOM action, found {found}");
            findings.error("spec.provider", words);
        }
    }
    if spec.action == Action::Deny && spec.rules.is_empty() {
        findings.error("spec.rules", meaningless("DENY"));
    }
    for (index, rule) in spec.rules.iter().enumerate() {
        check_rule(&mut findings, &format!("spec.rules[{index}]"), spec.action, rule);
    }
    findings
}

/// A rule that asks only what HTTP tells denies everything where there is none.
fn denies_all_bytes(rule: &Rule) -> bool {
    let of_connections = |source: &Source| {
        let lists = [
            &source.principals,
            &source.not_principals,
            &source.namespaces,
            &source.not_namespaces,
            &source.service_accounts,
            &source.not_service_accounts,
            &source.ip_blocks,
            &source.not_ip_blocks,
            &source.remote_ip_blocks,
            &source.not_remote_ip_blocks,
        ];
        lists.iter().any(|list| !list.is_empty())
    };
    let mut sources = rule.from.iter().filter_map(|from| from.source.as_ref()).peekable();
    let mut operations = rule.to.iter().filter_map(|to| to.operation.as_ref()).peekable();
    if operations.peek().is_some() {
        return !operations.any(|one| !one.ports.is_empty() || !one.not_ports.is_empty());
    }
    sources.peek().is_some() && !sources.any(of_connections)
}

fn check_rule(findings: &mut Findings, path: &str, action: Action, rule: &Rule) {
    if action == Action::Deny && denies_all_bytes(rule) {
        findings.warn(
            path,
            "configured AuthorizationPolicy will deny all traffic to TCP ports under its scope due to the use of only HTTP attributes in a DENY rule; it is recommended to explicitly specify the port",
        );
    }
    for (index, from) in rule.from.iter().enumerate() {
        let path = format!("{path}.from[{index}].source");
        match &from.source {
            None => findings.error(path, "`from.source` must not be nil"),
            Some(source) => check_source(findings, &path, action, source),
        }
    }
    for (index, to) in rule.to.iter().enumerate() {
        let path = format!("{path}.to[{index}].operation");
        match &to.operation {
            None => findings.error(path, "`to.operation` must not be nil"),
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
        findings.error(path, "`from.source` must not be empty");
    }
    for (field, list) in lists {
        check_values(findings, &format!("{path}.{field}"), &capitalised(field), list);
        if matches!(field, "serviceAccounts" | "notServiceAccounts") {
            check_accounts(findings, &format!("{path}.{field}"), &capitalised(field), list);
        }
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
        findings.error(path, "`to.operation` must not be empty");
    }
    for (field, list) in lists {
        check_values(findings, &format!("{path}.{field}"), &capitalised(field), list);
    }
    for (field, list) in [lists[2], lists[3]] {
        check_ports(findings, &format!("{path}.{field}"), list);
    }
    for (field, list) in [lists[6], lists[7]] {
        for (index, value) in list.iter().enumerate() {
            if let Some(problem) = template_problem(value, &capitalised(field)) {
                findings.error(format!("{path}.{field}[{index}]"), problem);
            }
        }
    }
}

/// Whether a path of an operation is a template.
pub fn is_path_template(path: &str) -> bool {
    path.contains("{*}") || path.contains("{**}")
}

/// What is wrong with a path; `key` is the field, as Istio spells it.
fn template_problem(path: &str, key: &str) -> Option<String> {
    let wrong = |why: &str| Some(format!("invalid or unsupported path {path}, found in {key}. {why}"));
    let template = is_path_template(path);
    if template && !path.starts_with('/') {
        return wrong("It must begin with /");
    }
    // What RFC 3986 lets stand in a segment.
    let literal = |c: char| c.is_ascii_alphanumeric() || "-._~%!$&'()+,;:@=".contains(c);
    let mut ended = false;
    for part in path.trim_matches('/').split('/') {
        match part {
            "{*}" | "{**}" if ended => return wrong("{**} is not the last operator"),
            "{*}" => {}
            "{**}" => ended = true,
            text if text.contains(['{', '}']) => {
                return wrong("Contains '{' or '}' beyond a supported path template");
            }
            text if template && (text.is_empty() || !text.chars().all(literal)) => {
                return wrong(&format!("Contains segment {text} with invalid string literal"));
            }
            // Envoy's templates take any path in their last segment alone.
            _ if ended => return wrong("{**} is not the last operator"),
            _ => {}
        }
    }
    None
}

fn check_condition(findings: &mut Findings, path: &str, action: Action, condition: &Condition) {
    let key = condition.key.as_str();
    if key.is_empty() {
        findings.error(format!("{path}.key"), "`key` must not be empty");
        return;
    }
    if condition.values.is_empty() && condition.not_values.is_empty() {
        findings.error(path, format!("at least one of `values` or `notValues` must be set for key {key}"));
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
        check_values(findings, &path, key, list);
        match key {
            "source.serviceAccount" => check_accounts(findings, &path, key, list),
            "source.ip" | "remote.ip" | "destination.ip" => check_addresses(findings, &path, list),
            "destination.port" => check_ports(findings, &path, list),
            _ => {}
        }
    }
}

fn check_values(findings: &mut Findings, path: &str, key: &str, list: &[String]) {
    for (index, _) in list.iter().enumerate().filter(|(_, value)| value.is_empty()) {
        findings.error(format!("{path}[{index}]"), format!("empty value not allowed, found in {key}"));
    }
}

/// The most service accounts of a list, and the most bytes of one.
const MOST_ACCOUNTS: usize = 16;
const LONGEST_ACCOUNT: usize = 320;

/// Service accounts are named whole, with their namespace or without.
fn check_accounts(findings: &mut Findings, path: &str, key: &str, list: &[String]) {
    if list.len() > MOST_ACCOUNTS {
        findings.error(path, format!("may not have more than {MOST_ACCOUNTS} values"));
        return;
    }
    for (index, value) in list.iter().enumerate().filter(|(_, value)| !value.is_empty()) {
        let expected = "expected format 'serviceAccount' or 'namespace/serviceAccount', found";
        let words = if value.contains('*') {
            format!("wildcard not allowed, found in {key}")
        } else if value.len() > LONGEST_ACCOUNT {
            format!("value cannot exceed {LONGEST_ACCOUNT} characters, found {value:?} in {key}")
        } else {
            match value.split('/').collect::<Vec<_>>()[..] {
                ["", _] => format!("{expected} empty namespace {value:?} in {key}"),
                [_, ""] => format!("{expected} empty serviceAccount {value:?} in {key}"),
                [_] | [_, _] => continue,
                _ => format!("{expected} {value:?} in {key}"),
            }
        };
        findings.error(format!("{path}[{index}]"), words);
    }
}

fn check_addresses(findings: &mut Findings, path: &str, list: &[String]) {
    for (index, value) in list.iter().enumerate().filter(|(_, value)| !value.is_empty()) {
        let (address, length) = value.split_once('/').map_or((&**value, None), |(a, l)| (a, Some(l)));
        let parsed = address.parse::<IpAddr>();
        let path = format!("{path}[{index}]");
        match (parsed, length) {
            (Err(_), None) => findings.error(path, format!("bad IP address ({value})")),
            (Err(_), Some(_)) => {
                findings.error(path, format!("bad CIDR range ({value}): {address:?} is no address"));
            }
            (Ok(address), Some(length)) => {
                let whole = if address.is_ipv4() { 32 } else { 128 };
                if !length.parse::<u8>().is_ok_and(|length| length <= whole) {
                    let words = format!("bad CIDR range ({value}): prefix length out of range");
                    findings.error(path, words);
                }
            }
            (Ok(_), None) => {}
        }
    }
}

fn check_ports(findings: &mut Findings, path: &str, list: &[String]) {
    for (index, value) in list.iter().enumerate().filter(|(_, value)| !value.is_empty()) {
        if !value.parse::<u16>().is_ok_and(|port| port > 0) {
            findings
                .error(format!("{path}[{index}]"), format!("bad port ({value}): must be in range 1..65535"));
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
                .contains("`provider` must not be with non CUSTOM action, found ALLOW")
        );
        assert!(rule(json!({ "from": [{}] }))[0].contains("`from.source` must not be nil"));
        assert!(rule(json!({ "to": [{ "operation": {} }] }))[0].contains("`to.operation` must not be empty"));
        assert!(
            rule(json!({ "to": [{ "operation": { "ports": ["http"] } }] }))[0]
                .contains("must be in range 1..65535")
        );
        assert!(
            rule(json!({ "from": [{ "source": { "ipBlocks": ["10.0.0.0/33"] } }] }))[0]
                .contains("bad CIDR range (10.0.0.0/33)")
        );
        assert!(
            rule(json!({ "to": [{ "operation": { "paths": [""] } }] }))[0]
                .contains("empty value not allowed, found in Paths")
        );
        assert!(
            rule(json!({ "to": [{ "operation": { "paths": ["/{**}/a"] } }] }))[0]
                .contains("not the last operator")
        );
        assert!(
            rule(json!({ "to": [{ "operation": { "paths": ["/{*}a"] } }] }))[0]
                .contains("invalid or unsupported path /{*}a, found in Paths. Contains '{' or '}' beyond a supported path template")
        );
        for (path, why) in [
            ("/a{b}", "Contains '{' or '}' beyond a supported path template"),
            ("/a*/{*}", "Contains segment a* with invalid string literal"),
            ("/{*}//a", "Contains segment  with invalid string literal"),
            ("/{**}/{*}", "{**} is not the last operator"),
            ("a/{*}", "It must begin with /"),
        ] {
            let said = rule(json!({ "to": [{ "operation": { "notPaths": [path] } }] }));
            assert_eq!(
                said,
                [format!(
                    "spec.rules[0].to[0].operation.notPaths[0]: invalid or unsupported path {path}, found in NotPaths. {why}"
                )]
            );
        }
        for path in ["*", "/a*", "*/a", "/a/{*}/b:c@d/{**}", "/{**}", "/{*}/"] {
            assert_eq!(rule(json!({ "to": [{ "operation": { "paths": [path] } }] })), Vec::<String>::new());
        }
        assert!(
            rule(json!({ "when": [{ "key": "a.b", "values": ["c"] }] }))[0]
                .contains("unknown attribute: a.b")
        );
        assert!(
            rule(json!({ "when": [{ "key": "source.ip" }] }))[0]
                .contains("at least one of `values` or `notValues` must be set for key source.ip")
        );
        assert!(
            rule(json!({ "when": [{ "key": "destination.ip", "values": ["x"] }] }))[0]
                .contains("bad IP address (x)")
        );
    }

    #[test]
    fn rules_that_deny_all_bytes_are_warned_of() {
        let warned = |spec: Value| {
            let findings = validate_authorization_policy(&serde_json::from_value(spec).unwrap());
            findings.warnings.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let deny = |rule: Value| warned(json!({ "action": "DENY", "rules": [{}, rule] }));
        let source = |source: Value| json!([{ "source": source }]);
        let operation = |operation: Value| json!([{ "operation": operation }]);
        for rule in [
            json!({ "to": operation(json!({ "methods": ["GET"] })) }),
            json!({ "from": source(json!({ "requestPrincipals": ["*"] })) }),
            json!({ "from": source(json!({ "principals": ["*"] })), "to": operation(json!({ "notPaths": ["/a"] })) }),
        ] {
            let said = deny(rule.clone());
            assert_eq!(said.len(), 1, "{rule}");
            assert!(said[0].starts_with(
                "spec.rules[1]: configured AuthorizationPolicy will deny all traffic to TCP ports"
            ));
            assert_eq!(warned(json!({ "rules": [rule] })), Vec::<String>::new());
        }
        for rule in [
            json!({}),
            json!({ "from": source(json!({ "namespaces": ["a"] })) }),
            json!({ "from": source(json!({ "notRemoteIpBlocks": ["1.2.3.4"] })) }),
            json!({ "to": operation(json!({ "methods": ["GET"], "ports": ["80"] })) }),
            json!({ "to": operation(json!({ "notPorts": ["80"] })) }),
            json!({ "when": [{ "key": "request.headers[a]", "values": ["b"] }] }),
        ] {
            assert_eq!(deny(rule.clone()), Vec::<String>::new(), "{rule}");
        }
        assert_eq!(warned(json!({ "selector": { "matchLabels": {} } })).len(), 1);
    }

    #[test]
    fn service_accounts_are_named_whole() {
        let of = |accounts: Value| {
            let source = json!({ "source": { "serviceAccounts": accounts } });
            said(json!({ "rules": [{ "from": [source] }] }))
        };
        for good in [json!(["web"]), json!(["ns/web", "web"]), json!(vec!["a"; 16]), json!(["a".repeat(320)])]
        {
            assert_eq!(of(good), Vec::<String>::new());
        }
        let expected = "expected format 'serviceAccount' or 'namespace/serviceAccount', found";
        for (bad, words) in [
            (json!(vec!["a"; 17]), "may not have more than 16 values".to_owned()),
            (json!([""]), "empty value not allowed, found in ServiceAccounts".to_owned()),
            (json!(["ns/*"]), "wildcard not allowed, found in ServiceAccounts".to_owned()),
            (json!(["a/b/c"]), format!("{expected} \"a/b/c\" in ServiceAccounts")),
            (json!(["/b"]), format!("{expected} empty namespace \"/b\" in ServiceAccounts")),
            (json!(["a/"]), format!("{expected} empty serviceAccount \"a/\" in ServiceAccounts")),
        ] {
            let said = of(bad.clone());
            assert!(said.len() == 1 && said[0].ends_with(&words), "{bad}: {said:?}");
        }
        assert_eq!(of(json!(["a".repeat(321)])).len(), 1);
        let when = json!({ "key": "source.serviceAccount", "values": ["a*"] });
        assert!(
            said(json!({ "rules": [{ "when": [when] }] }))[0]
                .ends_with("wildcard not allowed, found in source.serviceAccount")
        );
    }
}
