//! Validation of a VirtualService's HTTP rules.
use super::header_value::check_text;
use super::http_match::{check_authority, check_header_name, check_headers, check_match};
use super::virtual_service::{check_destination, check_weights};
use super::{Findings, check_duration, check_port, check_regex, check_string_match};
use crate::networking::virtual_service::{CorsPolicy, HttpFaultInjection, HttpRetry, HttpRoute};

/// Checks one rule; `delegate` says that the VirtualService is one that others delegate to.
pub(super) fn check_http_route(findings: &mut Findings, path: &str, route: &HttpRoute, delegate: bool) {
    check_outcome(findings, path, route, delegate);
    for (index, condition) in route.r#match.iter().enumerate() {
        let delegating = delegate || route.delegate.is_some();
        check_match(findings, &format!("{path}.match[{index}]"), condition, delegating);
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
    check_authority(findings, path, route);
    if let Some(rewrite) = &route.rewrite {
        let path = format!("{path}.rewrite");
        check_text(findings, format!("{path}.uri"), &rewrite.uri);
        check_text(findings, format!("{path}.authority"), &rewrite.authority);
        if let Some(regex) = &rewrite.uri_regex_rewrite {
            if !rewrite.uri.is_empty() {
                findings.error(&path, "rewrite may only contain one of URI or UriRegexRewrite");
            }
            if regex.r#match.is_empty() || regex.rewrite.is_empty() {
                findings.error(
                    format!("{path}.uriRegexRewrite"),
                    "UriRegexRewrite requires both Rewrite and Match fields to be specified",
                );
            }
            check_regex(findings, format!("{path}.uriRegexRewrite.match"), &regex.r#match);
            check_substitution(
                findings,
                format!("{path}.uriRegexRewrite.rewrite"),
                &regex.r#match,
                &regex.rewrite,
            );
        } else if rewrite.uri.is_empty() && rewrite.authority.is_empty() {
            findings.error(
                &path,
                "rewrite must specify at least one of URI, UriRegexRewrite, or authority. Only one of URI or UriRegexRewrite may be specified",
            );
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
            findings.error(format!("{path}.delegate"), "delegate HTTP route cannot contain delegate");
        }
        for (field, given) in [
            ("redirect", route.redirect.is_some()),
            ("route", forwards),
            ("direct_response", route.direct_response.is_some()),
        ] {
            if given {
                findings.error(path, format!("root HTTP route {} must not specify {field}", route.name));
            }
        }
        if route.delegate.as_ref().is_some_and(|delegate| delegate.name.is_empty()) {
            findings.error(format!("{path}.delegate.name"), "delegate must have a name");
        }
        return;
    }
    let (redirects, answers) = (route.redirect.is_some(), route.direct_response.is_some());
    let (faults, rewrites) = (route.fault.is_some(), route.rewrite.is_some());
    for (conflict, message) in [
        (redirects && forwards, "HTTP route cannot contain both route and redirect"),
        (redirects && faults, "HTTP route cannot contain both fault and redirect"),
        (redirects && rewrites, "HTTP route rule cannot contain both rewrite and redirect"),
        (redirects && answers, "HTTP route rule cannot contain both direct_response and redirect"),
        (!redirects && answers && forwards, "HTTP route cannot contain both route and direct_response"),
        (!redirects && answers && faults, "HTTP route cannot contain both fault and direct_response"),
        (
            !redirects && answers && rewrites,
            "HTTP route rule cannot contain both rewrite and direct_response",
        ),
        (!redirects && !answers && !forwards, "HTTP route, redirect or direct_response is required"),
    ] {
        if conflict {
            findings.error(path, message);
        }
    }
    if let Some(redirect) = &route.redirect {
        check_text(findings, format!("{path}.redirect.uri"), &redirect.uri);
        check_text(findings, format!("{path}.redirect.authority"), &redirect.authority);
        let ports = redirect.port.is_some() || redirect.derive_port.is_some();
        if !ports && [&redirect.uri, &redirect.authority, &redirect.scheme].iter().all(|text| text.is_empty())
        {
            findings
                .error(format!("{path}.redirect"), "redirect must specify URI, authority, scheme, or port");
        }
        if redirect.port.is_some() && redirect.derive_port.is_some() {
            findings.error(format!("{path}.redirect"), "only one of port and derivePort may be set");
        }
        if let Some(port) = redirect.port {
            check_port(findings, format!("{path}.redirect.port"), port);
        }
        if !matches!(redirect.redirect_code, 0 | 301 | 302 | 303 | 307 | 308) {
            findings.error(
                format!("{path}.redirect.redirectCode"),
                format!(
                    "{} is not a valid redirect code, must be 301, 302, 303, 307 or 308",
                    redirect.redirect_code
                ),
            );
        }
        if !matches!(redirect.scheme.as_str(), "" | "http" | "https") {
            findings.error(
                format!("{path}.redirect.scheme"),
                "invalid redirect scheme, must be \"http\" or \"https\"",
            );
        }
    }
    let body = route.direct_response.as_ref().and_then(|response| response.body.as_ref());
    let body = body.and_then(|body| body.string.as_ref().or(body.bytes.as_ref()));
    let large = "large direct_responses may impact control plane performance";
    match body.map_or(0, String::len) {
        size if size > 1 << 20 => {
            findings.error(format!("{path}.directResponse.body"), format!("{large}, must be less than 1MB"));
        }
        size if size > 100 << 10 => findings.warn(format!("{path}.directResponse.body"), large),
        _ => {}
    }
    if let Some(response) = &route.direct_response
        && !(200..=599).contains(&response.status)
    {
        findings.error(
            format!("{path}.directResponse.status"),
            format!("HTTP status {} is not in range 200-599", response.status),
        );
    }
}

fn check_retries(findings: &mut Findings, path: &str, retries: &HttpRetry) {
    if retries.attempts < 0 {
        findings.error(format!("{path}.attempts"), "attempts cannot be negative");
    }
    if retries.attempts == 0
        && (retries.per_try_timeout.is_some()
            || !retries.retry_on.is_empty()
            || retries.retry_remote_localities.is_some()
            || retries.backoff.is_some())
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
            findings.error(format!("{path}.retryOn"), format!("{condition:?} is not a valid retryOn policy"));
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
        if delay.fixed_delay.is_none() {
            findings.warn(&path, "delay configured, but fixedDelay not set");
        }
        check_duration(findings, format!("{path}.fixedDelay"), delay.fixed_delay.as_ref());
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
                    format!("HTTP status {status} is not in range 200-599"),
                );
            }
            (None, None) if abort.http2_error.is_some() => {
                findings.error(format!("{path}.http2Error"), "HTTP/2 abort fault injection not supported yet")
            }
            (None, None) => findings.warn(&path, "abort configured, but error type not set"),
            (None, Some(name)) if crate::grpc::status_code(name).is_none() => {
                findings.error(
                    format!("{path}.grpcStatus"),
                    format!("gRPC status {name:?} is not supported. See https://github.com/grpc/grpc/blob/master/doc/statuscodes.md for a list of supported codes, for example 'NOT_FOUND'"),
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

/// Proxies count in millionths: a smaller share than one of them would be none.
fn check_percent(findings: &mut Findings, path: String, value: Option<f64>) {
    let Some(value) = value else { return };
    if !(0.0..=100.0).contains(&value) || (value > 0.0 && value < 0.0001) {
        findings.error(path, format!("percentage {value} is neither 0.0, nor in range [0.0001, 100.0]"));
    }
}

fn check_mirror_percent(findings: &mut Findings, path: String, name: &str, value: Option<f64>) {
    match value {
        Some(value) if value > 100.0 => {
            findings.error(path, format!("{name} must have a max value of 100 (it has {value:.6})"));
        }
        Some(value) if value < 0.0 || value.is_nan() => {
            findings.error(path, format!("{name} must have a min value of 0 (it has {value:.6})"));
        }
        _ => {}
    }
}

fn check_cors(findings: &mut Findings, path: &str, cors: &CorsPolicy) {
    for (index, origin) in cors.allow_origins.iter().enumerate() {
        let path = format!("{path}.allowOrigins[{index}]");
        let value = origin.exact.as_ref().or(origin.prefix.as_ref()).or(origin.regex.as_ref());
        if value.is_none_or(String::is_empty) {
            findings.error(path, "'' is not a valid match type for CORS allow origins");
        } else {
            check_string_match(findings, &path, origin);
        }
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
        if mirror.destination == Default::default() {
            findings.error(format!("{path}.destination"), "destination is required for mirrors");
        } else {
            check_destination(findings, &format!("{path}.destination"), &mirror.destination);
        }
        let percent = mirror.percentage.as_ref().map(|percent| percent.value);
        check_mirror_percent(findings, format!("{path}.percentage"), "mirror percentage", percent);
    }
    let percent = route.mirror_percentage.as_ref().map(|percent| percent.value);
    check_mirror_percent(findings, format!("{path}.mirrorPercentage"), "mirror_percentage", percent);
    if let Some(percent) = route.mirror_percent {
        let path = format!("{path}.mirrorPercent");
        if percent > 100 {
            let message = format!("mirror_percent must have a max value of 100 (it has {percent})");
            findings.error(&path, message);
        }
        findings.warn(path, "using deprecated setting \"mirrorPercent\", use \"mirrorPercentage\" instead");
    }
}
