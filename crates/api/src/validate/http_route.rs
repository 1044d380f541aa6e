//! Validation of a VirtualService's HTTP rules.
use super::header_value::{check_header_value, check_text};
use super::hosts::is_dns_label;
use super::virtual_service::{check_destination, check_gateway_names, check_weights};
use super::{Findings, check_duration, check_labels, check_port, check_regex, check_string_match};
use crate::networking::virtual_service::{
    CorsPolicy, HeaderOperations, Headers, HttpFaultInjection, HttpMatchRequest, HttpRetry, HttpRoute,
};

/// Checks one rule; `delegate` says that the VirtualService is one that others delegate to.
pub(super) fn check_http_route(findings: &mut Findings, path: &str, route: &HttpRoute, delegate: bool) {
    check_outcome(findings, path, route, delegate);
    for (index, condition) in route.r#match.iter().enumerate() {
        check_match(findings, &format!("{path}.match[{index}]"), condition);
    }
    for (index, destination) in route.route.iter().enumerate() {
        let path = format!("{path}.route[{index}]");
        check_destination(findings, &format!("{path}.destination"), &destination.destination);
        check_headers(findings, &format!("{path}.headers"), destination.headers.as_ref());
    }
    let weights: Vec<i32> = route.route.iter().map(|destination| destination.weight).collect();
    check_weights(findings, &format!("{path}.route"), &weights);
    check_headers(findings, &format!("{path}.headers"), route.headers.as_ref());
    check_duration(findings, format!("{path}.timeout"), route.timeout.as_ref().filter(|text| !is_zero(text)));
    if let Some(retries) = &route.retries {
        check_retries(findings, &format!("{path}.retries"), retries);
    }
    if let Some(fault) = &route.fault {
        check_fault(findings, &format!("{path}.fault"), fault);
    }
    if let Some(cors) = &route.cors_policy {
        check_cors(findings, &format!("{path}.corsPolicy"), cors);
    }
    check_mirrors(findings, path, route);
    if let Some(rewrite) = &route.rewrite {
        let path = format!("{path}.rewrite");
        check_text(findings, format!("{path}.uri"), &rewrite.uri);
        check_text(findings, format!("{path}.authority"), &rewrite.authority);
        if let Some(regex) = &rewrite.uri_regex_rewrite {
            if !rewrite.uri.is_empty() {
                findings.error(&path, "rewrite may only contain one of uri or uriRegexRewrite");
            }
            check_regex(findings, format!("{path}.uriRegexRewrite.match"), &regex.r#match);
            check_substitution(
                findings,
                format!("{path}.uriRegexRewrite.rewrite"),
                &regex.r#match,
                &regex.rewrite,
            );
        } else if rewrite.uri.is_empty() && rewrite.authority.is_empty() {
            findings.error(&path, "rewrite must specify uri, uriRegexRewrite, or authority");
        }
    }
}

/// A substitution may name the groups of its expression, `\0` to `\9`, and `\\` for a backslash.
fn check_substitution(findings: &mut Findings, path: String, expression: &str, substitution: &str) {
    check_text(findings, path.clone(), substitution);
    let groups = regex::Regex::new(expression).map_or(0, |regex| regex.captures_len());
    let mut characters = substitution.chars();
    while let Some(character) = characters.next() {
        if character != '\\' {
            continue;
        }
        let named = match characters.next() {
            Some('\\') => true,
            Some(digit) => digit.to_digit(10).is_some_and(|index| (index as usize) < groups),
            None => false,
        };
        if !named {
            findings.error(
                path,
                format!("{substitution:?} has a backslash that names no group of {expression:?}"),
            );
            return;
        }
    }
}

/// `0s` turns a timeout off, and is the one value below a millisecond that means something.
fn is_zero(text: &str) -> bool {
    crate::duration::parse(text).is_ok_and(|duration| duration.is_zero())
}

fn check_outcome(findings: &mut Findings, path: &str, route: &HttpRoute, in_delegate: bool) {
    let forwards = !route.route.is_empty();
    if route.delegate.is_some() {
        if in_delegate {
            findings.error(format!("{path}.delegate"), "delegate virtual service cannot delegate further");
        }
        if forwards || route.redirect.is_some() || route.direct_response.is_some() {
            findings.error(
                path,
                "HTTP route cannot contain both delegate and route, redirect or direct_response",
            );
        }
        return;
    }
    if forwards && route.redirect.is_some() {
        findings.error(path, "HTTP route cannot contain both route and redirect");
    }
    if forwards && route.direct_response.is_some() {
        findings.error(path, "HTTP route cannot contain both route and direct_response");
    }
    if route.redirect.is_some() && route.direct_response.is_some() {
        findings.error(path, "HTTP route cannot contain both direct_response and redirect");
    }
    if !forwards && route.redirect.is_none() && route.direct_response.is_none() {
        findings.error(path, "HTTP route, redirect or direct_response is required");
    }
    if let Some(redirect) = &route.redirect {
        check_text(findings, format!("{path}.redirect.uri"), &redirect.uri);
        check_text(findings, format!("{path}.redirect.authority"), &redirect.authority);
        if redirect.port.is_some() && redirect.derive_port.is_some() {
            findings.error(format!("{path}.redirect"), "only one of port and derivePort may be set");
        }
        if let Some(port) = redirect.port {
            check_port(findings, format!("{path}.redirect.port"), port);
        }
        if !matches!(redirect.redirect_code, 0 | 301 | 302 | 303 | 307 | 308) {
            findings.error(
                format!("{path}.redirect.redirectCode"),
                format!("{} is not a redirect code: 301, 302, 303, 307 or 308", redirect.redirect_code),
            );
        }
        if !matches!(redirect.scheme.as_str(), "" | "http" | "https") {
            findings
                .error(format!("{path}.redirect.scheme"), "invalid redirect scheme, must be http or https");
        }
    }
    let body = route.direct_response.as_ref().and_then(|response| response.body.as_ref());
    let body = body.and_then(|body| body.string.as_ref().or(body.bytes.as_ref()));
    if body.is_some_and(|body| body.len() > 1 << 20) {
        findings.error(format!("{path}.directResponse.body"), "the body may have 1048576 bytes at most");
    }
    if let Some(response) = &route.direct_response
        && !(200..=599).contains(&response.status)
    {
        findings.error(
            format!("{path}.directResponse.status"),
            format!("HTTP status {} is not in range 200..599", response.status),
        );
    }
}

fn check_match(findings: &mut Findings, path: &str, condition: &HttpMatchRequest) {
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
    for (field, map) in [("headers", &condition.headers), ("withoutHeaders", &condition.without_headers)] {
        for (name, matcher) in map {
            let path = format!("{path}.{field}[{name}]");
            check_header_name(findings, &path, name);
            if let Some(matcher) = matcher {
                check_string_match(findings, &path, matcher);
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
        if let Some(matcher) = matcher {
            check_string_match(findings, &path, matcher);
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
            format!("sourceNamespace {:?} is invalid", condition.source_namespace),
        );
    }
}

/// Header names are HTTP tokens; pseudo headers have fields of their own.
fn check_header_name(findings: &mut Findings, path: &str, name: &str) {
    let token = |c: u8| c.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&c);
    if name.is_empty() {
        findings.error(path, "header name cannot be empty");
    } else if !name.trim_start_matches(':').bytes().all(token) {
        findings.error(path, format!("header name {name:?} is not a valid header name"));
    }
}

fn check_headers(findings: &mut Findings, path: &str, headers: Option<&Headers>) {
    let Some(headers) = headers else { return };
    for (side, operations) in [("request", &headers.request), ("response", &headers.response)] {
        let Some(HeaderOperations { set, add, remove }) = operations else { continue };
        for (operation, names) in [
            ("set", set.keys().collect::<Vec<_>>()),
            ("add", add.keys().collect()),
            ("remove", remove.iter().collect()),
        ] {
            for name in names {
                check_header_name(findings, &format!("{path}.{side}.{operation}[{name}]"), name);
            }
        }
        for (operation, pairs) in [("set", set), ("add", add)] {
            for (name, value) in pairs {
                check_header_value(findings, format!("{path}.{side}.{operation}[{name}]"), value);
            }
        }
    }
}

fn check_retries(findings: &mut Findings, path: &str, retries: &HttpRetry) {
    if retries.attempts < 0 {
        findings.error(format!("{path}.attempts"), "attempts cannot be negative");
    }
    if retries.attempts == 0
        && (retries.per_try_timeout.is_some() || !retries.retry_on.is_empty() || retries.backoff.is_some())
    {
        findings.error(path, "http retry policy configured when attempts are set to 0 (disabled)");
    }
    check_duration(
        findings,
        format!("{path}.perTryTimeout"),
        retries.per_try_timeout.as_ref().filter(|text| !is_zero(text)),
    );
    check_duration(findings, format!("{path}.backoff"), retries.backoff.as_ref());
    for condition in retries.retry_on.split(',').map(str::trim).filter(|condition| !condition.is_empty()) {
        let known = RETRY_CONDITIONS.contains(&condition);
        let status = condition.parse::<u16>().is_ok_and(|status| (100..=599).contains(&status));
        if !known && !status {
            findings.error(format!("{path}.retryOn"), format!("{condition} is not a valid retryOn policy"));
        }
    }
}

/// Envoy's `x-envoy-retry-on` and `x-envoy-retry-grpc-on` conditions.
const RETRY_CONDITIONS: &[&str] = &[
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "envoy-ratelimited",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

fn check_fault(findings: &mut Findings, path: &str, fault: &HttpFaultInjection) {
    if fault.delay.is_none() && fault.abort.is_none() {
        findings.error(path, "HTTP fault injection must have an abort and/or a delay");
    }
    if let Some(delay) = &fault.delay {
        let path = format!("{path}.delay");
        match &delay.fixed_delay {
            None => findings.error(format!("{path}.fixedDelay"), "fixedDelay is required"),
            Some(_) => check_duration(findings, format!("{path}.fixedDelay"), delay.fixed_delay.as_ref()),
        }
        if delay.exponential_delay.is_some() {
            findings.error(format!("{path}.exponentialDelay"), "exponentialDelay not supported yet");
        }
        if !(0..=100).contains(&delay.percent) {
            findings.error(
                format!("{path}.percent"),
                format!("percent {} is not in range 0..100", delay.percent),
            );
        }
        check_percent(
            findings,
            format!("{path}.percentage"),
            delay.percentage.as_ref().map(|percent| percent.value),
        );
    }
    if let Some(abort) = &fault.abort {
        let path = format!("{path}.abort");
        match (abort.http_status, &abort.grpc_status) {
            (Some(status), _) if !(200..=599).contains(&status) => {
                findings.error(
                    format!("{path}.httpStatus"),
                    format!("HTTP status {status} is not in range 200..599"),
                );
            }
            (None, None) => findings.error(&path, "abort must have httpStatus or grpcStatus"),
            (None, Some(name)) if crate::grpc::status_code(name).is_none() => {
                findings.error(
                    format!("{path}.grpcStatus"),
                    format!("gRPC status {name:?} is not supported; see https://grpc.github.io/grpc/core/md_doc_statuscodes.html for those there are"),
                );
            }
            _ => {}
        }
        check_percent(
            findings,
            format!("{path}.percentage"),
            abort.percentage.as_ref().map(|percent| percent.value),
        );
    }
}

fn check_percent(findings: &mut Findings, path: String, value: Option<f64>) {
    if let Some(value) = value
        && !(0.0..=100.0).contains(&value)
    {
        findings.error(path, format!("percentage {value} is not in range 0..100"));
    }
}

fn check_cors(findings: &mut Findings, path: &str, cors: &CorsPolicy) {
    for (index, origin) in cors.allow_origins.iter().enumerate() {
        check_string_match(findings, &format!("{path}.allowOrigins[{index}]"), origin);
    }
    for (index, method) in cors.allow_methods.iter().enumerate() {
        if method.is_empty() || !method.bytes().all(|c| c.is_ascii_uppercase() || c == b'*') {
            findings.error(
                format!("{path}.allowMethods[{index}]"),
                format!("{method:?} is not a supported HTTP method"),
            );
        }
    }
    for (field, names) in [("allowHeaders", &cors.allow_headers), ("exposeHeaders", &cors.expose_headers)] {
        for (index, name) in names.iter().enumerate() {
            check_header_name(findings, &format!("{path}.{field}[{index}]"), name);
        }
    }
    if let Some(age) = &cors.max_age {
        match crate::duration::parse(age) {
            Err(error) => findings.error(format!("{path}.maxAge"), error.to_string()),
            Ok(age) if age.subsec_nanos() != 0 => {
                findings.error(
                    format!("{path}.maxAge"),
                    "max_age duration is accurate only to seconds precision",
                );
            }
            Ok(_) => {}
        }
    }
    if !matches!(cors.unmatched_preflights.as_str(), "" | "UNSPECIFIED" | "FORWARD" | "IGNORE") {
        findings.error(format!("{path}.unmatchedPreflights"), "must be FORWARD or IGNORE");
    }
}

fn check_mirrors(findings: &mut Findings, path: &str, route: &HttpRoute) {
    if route.mirror.is_some() && !route.mirrors.is_empty() {
        findings.error(path, "HTTP route cannot contain both mirror and mirrors");
    }
    if let Some(mirror) = &route.mirror {
        check_destination(findings, &format!("{path}.mirror"), mirror);
    }
    for (index, mirror) in route.mirrors.iter().enumerate() {
        let path = format!("{path}.mirrors[{index}]");
        check_destination(findings, &format!("{path}.destination"), &mirror.destination);
        check_percent(
            findings,
            format!("{path}.percentage"),
            mirror.percentage.as_ref().map(|percent| percent.value),
        );
    }
    check_percent(
        findings,
        format!("{path}.mirrorPercentage"),
        route.mirror_percentage.as_ref().map(|percent| percent.value),
    );
}
