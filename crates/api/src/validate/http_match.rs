//! Validation of an HTTP rule's conditions and header operations.
use super::header_value::check_header_value;
use super::hosts::is_dns_label;
use super::virtual_service::check_gateway_names;
use super::{Findings, check_labels, check_port, check_string_match};
use crate::networking::virtual_service::{
    HeaderOperations, Headers, HttpMatchRequest, HttpRoute, MESH_GATEWAY,
};

/// How a condition on a claim begins that stands among those on headers.
const CLAIMS: &str = "@request.auth.claims";

/// A claim is named as `@request.auth.claims.a.b` or `@request.auth.claims[a][b]`.
fn check_claim(findings: &mut Findings, path: &str, name: &str, rest: &str) {
    let dotted = |rest: &str| rest.split('.').all(|part| !part.is_empty() && !part.contains(['[', ']']));
    let in_brackets =
        |rest: &str| rest.split("][").all(|part| !part.is_empty() && !part.contains(['[', ']']));
    let fits = rest.strip_prefix('.').is_some_and(dotted)
        || rest.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).is_some_and(in_brackets);
    if !fits {
        findings
            .error(path, format!("header match {name} names no claim: write {CLAIMS}.a.b or {CLAIMS}[a][b]"));
    }
}

/// Tokens are for gateways to route by: sidecars look at those of what comes in.
pub(super) fn check_claims_at_gateways(
    findings: &mut Findings,
    path: &str,
    condition: &HttpMatchRequest,
    gateways: &[String],
) {
    let gateways = if condition.gateways.is_empty() { gateways } else { &condition.gateways };
    if !gateways.is_empty() && !gateways.iter().any(|gateway| gateway == MESH_GATEWAY) {
        return;
    }
    for (field, map) in [("headers", &condition.headers), ("withoutHeaders", &condition.without_headers)] {
        for name in map.keys().filter(|name| name.starts_with(CLAIMS)) {
            findings.error(
                format!("{path}.{field}[{name}]"),
                format!("JWT claim based routing (key: {name}) is only supported for gateway, found no gateways: {gateways:?}"),
            );
        }
    }
}

/// Checks the conditions of a rule; `delegating` says that it is a root's or a delegate's.
pub(super) fn check_match(
    findings: &mut Findings,
    path: &str,
    condition: &HttpMatchRequest,
    delegating: bool,
) {
    for (field, matcher) in [
        ("uri", &condition.uri),
        ("scheme", &condition.scheme),
        ("method", &condition.method),
        ("authority", &condition.authority),
    ] {
        if let Some(matcher) = matcher {
            check_string_match(findings, &format!("{path}.{field}"), matcher);
        }
    }
    for (field, word, map) in [
        ("headers", "header", &condition.headers),
        ("withoutHeaders", "withoutHeaders", &condition.without_headers),
    ] {
        for (name, matcher) in map {
            let path = format!("{path}.{field}[{name}]");
            if let Some(rest) = name.strip_prefix(CLAIMS) {
                check_claim(findings, &path, name, rest);
            } else {
                check_header_name(findings, &path, name);
            }
            match matcher {
                Some(matcher) => check_string_match(findings, &path, matcher),
                None if delegating || field == "headers" => {
                    findings.error(path, format!("{word} match {name} cannot be null"));
                }
                None => {}
            }
        }
    }
    for (name, matcher) in &condition.query_params {
        let path = format!("{path}.queryParams[{name}]");
        if name.is_empty() {
            findings.error(&path, "query parameter name cannot be empty");
        } else if name.len() > 1024 {
            findings.error(&path, "query parameter name may have 1024 bytes at most");
        }
        match matcher {
            Some(matcher) => check_string_match(findings, &path, matcher),
            None if delegating => {
                findings.error(path, format!("query param match {name} cannot be null"));
            }
            None => {}
        }
    }
    if condition.port != 0 {
        check_port(findings, format!("{path}.port"), condition.port);
    }
    check_labels(findings, &format!("{path}.sourceLabels"), &condition.source_labels);
    check_gateway_names(findings, &format!("{path}.gateways"), &condition.gateways);
    if !condition.source_namespace.is_empty() && !is_dns_label(&condition.source_namespace) {
        findings.error(
            format!("{path}.sourceNamespace"),
            format!("sourceNamespace match {} is invalid", condition.source_namespace),
        );
    }
}

/// Header names are HTTP tokens; pseudo headers have fields of their own.
pub(super) fn check_header_name(findings: &mut Findings, path: &str, name: &str) {
    let token = |c: u8| c.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&c);
    if name.is_empty() {
        findings.error(path, "header name cannot be empty");
    } else if !name.bytes().all(token) {
        findings.error(path, format!("header name {name} is not a valid header name"));
    }
}

pub(super) fn check_headers(findings: &mut Findings, path: &str, headers: Option<&Headers>) {
    let Some(headers) = headers else { return };
    for (side, operations) in [("request", &headers.request), ("response", &headers.response)] {
        let Some(HeaderOperations { set, add, remove }) = operations else { continue };
        for (operation, names) in [
            ("set", set.keys().collect::<Vec<_>>()),
            ("add", add.keys().collect()),
            ("remove", remove.iter().collect()),
        ] {
            let authority_allowed = side == "request" && operation != "remove";
            for name in names {
                let path = format!("{path}.{side}.{operation}[{name}]");
                check_operation_name(findings, &path, name, authority_allowed);
            }
        }
        for (operation, pairs) in [("set", set), ("add", add)] {
            for (name, value) in pairs {
                check_header_value(findings, format!("{path}.{side}.{operation}[{name}]"), value);
            }
        }
    }
}

/// Proxies change no pseudo header by name; only a request's authority may be set, for which they have a field.
fn check_operation_name(findings: &mut Findings, path: &str, name: &str, authority_allowed: bool) {
    if is_authority(name) && authority_allowed {
        return;
    }
    if name.eq_ignore_ascii_case("host") {
        findings.error(path, format!("invalid header {name:?}: cannot set Host header"));
    } else if name.starts_with(':') {
        findings.error(path, format!("invalid header {name:?}: header cannot have \":\" prefix"));
    } else {
        check_header_name(findings, path, name);
    }
}

fn is_authority(name: &str) -> bool {
    name.eq_ignore_ascii_case("host") || name.eq_ignore_ascii_case(":authority")
}

/// The authority may be rewritten in one place only.
pub(super) fn check_authority(findings: &mut Findings, path: &str, route: &HttpRoute) {
    let rewritten = route.rewrite.iter().map(|rewrite| &rewrite.authority).filter(|text| !text.is_empty());
    let operations = route.headers.iter().filter_map(|headers| headers.request.as_ref());
    let by_header = operations.flat_map(|operations| operations.set.iter().chain(&operations.add));
    let set = by_header.filter(|(name, _)| is_authority(name)).map(|(_, value)| value);
    let values: Vec<&String> = rewritten.chain(set).collect();
    if let [first, second, ..] = values.as_slice() {
        findings.error(
            path,
            format!(
                "authority header cannot be set multiple times: have {first:?}, attempting to set {second:?}"
            ),
        );
    }
}
