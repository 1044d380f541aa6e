//! Validation of Istio's kinds, as done by the admission webhook, in Istio's words where it has some.
mod authorization_policy;
mod destination_rule;
mod gateway;
pub(crate) mod header_value;
pub(crate) mod hosts;
mod http_match;
mod http_route;
pub(crate) mod locality;
mod metadata;
mod peer_authentication;
mod re2;
mod request_authentication;
mod service_entry;
mod sidecar;
mod target_reference;
mod unreachable;
mod virtual_service;

pub use authorization_policy::{is_path_template, validate_authorization_policy};
pub use destination_rule::validate_destination_rule;
pub use gateway::validate_gateway;
pub use metadata::validate_metadata;
pub use peer_authentication::validate_peer_authentication;
pub use request_authentication::{JwksUri, validate_request_authentication};
pub use service_entry::{validate_service_entry, validate_workload_entry, validate_workload_group};
pub use sidecar::{default_endpoint, validate_sidecar};
pub use virtual_service::validate_virtual_service;

use crate::duration;
use crate::networking::{StringMatch, WorkloadSelector};

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Where, for example `spec.http[0].route[1].destination.host`.
    pub path: String,
    /// What is wrong.
    pub message: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.path, self.message)
        }
    }
}

/// What validation found. Errors refuse the object; warnings are shown to the author.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// Reasons to refuse the object.
    pub errors: Vec<Finding>,
    /// Things the author should know.
    pub warnings: Vec<Finding>,
}

impl Findings {
    /// Whether the object may be stored.
    pub fn is_valid(&self) -> bool {
        self.errors.is_empty()
    }

    /// Adds what else was found.
    pub fn extend(&mut self, more: Self) {
        self.errors.extend(more.errors);
        self.warnings.extend(more.warnings);
    }

    pub(crate) fn error(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.errors.push(Finding { path: path.into(), message: message.into() });
    }

    pub(crate) fn warn(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.warnings.push(Finding { path: path.into(), message: message.into() });
    }
}

fn check_duration(findings: &mut Findings, path: String, text: Option<&String>) {
    let Some(text) = text else { return };
    match duration::parse(text) {
        Err(error) => findings.error(path, error.to_string()),
        Ok(parsed) if parsed.subsec_nanos() % 1_000_000 != 0 => {
            findings.error(path, "only durations to ms precision are supported");
        }
        Ok(parsed) if parsed.as_millis() < 1 => findings.error(path, "duration must be greater than 1ms"),
        Ok(_) => {}
    }
}

fn check_port(findings: &mut Findings, path: String, number: u32) {
    if !(1..=65_535).contains(&number) {
        findings.error(path, format!("port number {number} must be in the range 1..65535"));
    }
}

fn check_string_match(findings: &mut Findings, path: &str, matcher: &StringMatch) {
    let given = [&matcher.exact, &matcher.prefix, &matcher.regex].into_iter().flatten().count();
    if given > 1 {
        findings.error(path, "only one of exact, prefix and regex may be set");
    }
    if matcher.prefix.as_deref() == Some("") {
        findings.error(format!("{path}.prefix"), "prefix string match should not be empty");
    }
    if let Some(expression) = &matcher.regex {
        check_regex(findings, format!("{path}.regex"), expression);
    }
}

/// Longer ones may make programs that Envoy refuses; as in Istio, length stands for size.
const MAX_REGEX: usize = 1024;

fn check_regex(findings: &mut Findings, path: String, expression: &str) {
    if expression.is_empty() {
        findings.error(path, "regex string match should not be empty");
        return;
    }
    if expression.len() > MAX_REGEX {
        findings.error(path, format!("regex is too large, max length allowed is {MAX_REGEX}"));
        return;
    }
    let reason = re2::problem(expression).or_else(|| {
        let error = regex::Regex::new(expression).err()?.to_string();
        Some(error.lines().last().unwrap_or_default().trim().to_owned())
    });
    if let Some(reason) = reason {
        findings.error(
            path,
            format!("{reason}: {expression:?}; Istio uses RE2 style regex-based match (https://github.com/google/re2/wiki/Syntax)"),
        );
    }
}

/// Labels of selectors and subsets, by Kubernetes' rules.
fn check_labels<'a>(
    findings: &mut Findings,
    path: &str,
    labels: impl IntoIterator<Item = (&'a String, &'a String)>,
) {
    for (key, value) in labels {
        let name = key.rsplit('/').next().unwrap_or_default();
        if name.is_empty() || !is_label_part(name) {
            findings.error(path, format!("invalid tag key: {key:?}"));
        }
        if !value.is_empty() && !is_label_part(value) {
            findings.error(path, format!("invalid tag value: {value:?}"));
        }
    }
}

/// Labels of a selector. Istio has words of its own for what selects nothing.
fn check_selector<'a>(
    findings: &mut Findings,
    path: &str,
    labels: impl IntoIterator<Item = (&'a String, &'a String)>,
) {
    for (key, value) in labels {
        let both = format!("{key}={value}");
        if key.is_empty() {
            findings.error(path, format!("empty key is not supported in selector: {both:?}"));
        }
        if both.contains('*') {
            findings.error(path, format!("wildcard is not supported in selector: {both:?}"));
        } else if !key.is_empty() {
            check_labels(findings, path, [(key, value)]);
        }
    }
}

/// A selector of policies and rules: one without labels selects everything, which few mean.
fn check_workload_selector(findings: &mut Findings, path: &str, selector: &WorkloadSelector) {
    let labels = format!("{path}.matchLabels");
    if selector.match_labels.is_empty() {
        findings.warn(&labels, "workload selector specified without labels");
    }
    check_selector(findings, &labels, &selector.match_labels);
}

fn is_label_part(text: &str) -> bool {
    let edge = |c: Option<u8>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && edge(text.bytes().next())
        && edge(text.bytes().last())
        && text.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests;
