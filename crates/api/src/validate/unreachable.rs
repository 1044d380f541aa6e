//! Rules and conditions of a VirtualService that nothing can reach.
use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::Findings;
use crate::networking::virtual_service::{HttpMatchRequest, HttpRoute};

pub(super) fn check_http(findings: &mut Findings, rules: &[HttpRoute]) {
    let conditions = rules.iter().map(|rule| {
        let comparable = rule.r#match.iter().map(|condition| {
            let mut condition = condition.clone();
            condition.name.clear();
            condition
        });
        comparable.collect::<Vec<_>>()
    });
    let conditions: Vec<_> = conditions.collect();
    let names = |index: usize| match rules.get(index).map(|rule| rule.name.as_str()) {
        None | Some("") => format!("#{index}"),
        Some(name) => format!("{name:?}"),
    };
    let match_names = |rule: usize, index: usize| match rules[rule].r#match[index].name.as_str() {
        "" => format!("#{index}"),
        name => format!("{name:?}"),
    };
    check(findings, "spec.http", conditions.iter().map(Vec::as_slice), names, match_names);
    check_prefixes(findings, rules, names, match_names);
}

/// A condition with a prefix, and where it is.
struct Prefixed<'a> {
    rule: usize,
    index: usize,
    prefix: &'a str,
    condition: &'a HttpMatchRequest,
}

/// Prefixes that one before them covers. A rule that delegates may leave some of what it matches to later ones.
fn check_prefixes(
    findings: &mut Findings,
    rules: &[HttpRoute],
    name: impl Fn(usize) -> String,
    match_name: impl Fn(usize, usize) -> String,
) {
    let all = rules.iter().enumerate();
    let conditions = all.flat_map(|(rule, route)| {
        route.r#match.iter().enumerate().filter_map(move |(index, condition)| {
            let prefix = condition.uri.as_ref()?.prefix.as_deref().filter(|prefix| !prefix.is_empty())?;
            Some(Prefixed { rule, index, prefix, condition })
        })
    });
    let mut earlier: Vec<Prefixed<'_>> = Vec::new();
    for later in conditions {
        let longer = |one: &&Prefixed<'_>| {
            one.prefix != later.prefix
                && later.prefix.starts_with(one.prefix)
                && covers(one.condition, later.condition)
        };
        for one in earlier.iter().filter(longer) {
            findings.warn(
                format!("spec.http[{}].match[{}]", later.rule, later.index),
                format!(
                    "virtualService rule {} match {} of prefix {} is not used (duplicate/overlapping match in rule {} of prefix {} on {})",
                    name(later.rule),
                    match_name(later.rule, later.index),
                    later.prefix,
                    match_name(one.rule, one.index),
                    one.prefix,
                    name(one.rule)
                ),
            );
        }
        if rules[later.rule].delegate.is_none() {
            earlier.push(later);
        }
    }
}

/// Whether the earlier condition asks for nothing that the later one does not ask for, but for the path.
fn covers(earlier: &HttpMatchRequest, later: &HttpMatchRequest) -> bool {
    fn all_in<T: PartialEq>(one: &BTreeMap<String, T>, other: &BTreeMap<String, T>) -> bool {
        one.iter().all(|(name, value)| other.get(name) == Some(value))
    }
    let matchers = [
        (&earlier.scheme, &later.scheme),
        (&earlier.method, &later.method),
        (&earlier.authority, &later.authority),
    ];
    matchers.iter().all(|(one, other)| one.is_none() || one == other)
        && (earlier.port == 0 || earlier.port == later.port)
        && (earlier.gateways.is_empty() || earlier.gateways == later.gateways)
        && (earlier.source_namespace.is_empty() || earlier.source_namespace == later.source_namespace)
        && earlier.ignore_uri_case == later.ignore_uri_case
        && all_in(&earlier.headers, &later.headers)
        && all_in(&earlier.query_params, &later.query_params)
        && all_in(&earlier.without_headers, &later.without_headers)
        && all_in(&earlier.source_labels, &later.source_labels)
}

pub(super) fn check_l4<'a, M: Serialize + 'a>(
    findings: &mut Findings,
    path: &str,
    rules: impl Iterator<Item = &'a [M]>,
) {
    check(findings, path, rules, |index| format!("#{index}"), |_, index| format!("#{index}"));
}

/// In Istio's words; what Istio does not notice (a rule with conditions after one without) is said in the same.
fn check<'a, M: Serialize + 'a>(
    findings: &mut Findings,
    path: &str,
    rules: impl Iterator<Item = &'a [M]>,
    name: impl Fn(usize) -> String,
    match_name: impl Fn(usize, usize) -> String,
) {
    let mut unused = |index: usize, reason: &str| {
        findings.warn(
            format!("{path}[{index}]"),
            format!("virtualService rule {} not used ({reason})", name(index)),
        );
    };
    let mut ineffective = Vec::new();
    let mut first: HashMap<String, usize> = HashMap::new();
    let mut catch_all = false;
    for (rule, conditions) in rules.enumerate() {
        if catch_all {
            unused(rule, "only the last rule can have no matches");
            continue;
        }
        if conditions.is_empty() {
            catch_all = true;
            continue;
        }
        let mut duplicates = 0;
        for (index, condition) in conditions.iter().enumerate() {
            // Maps are sorted and numbers finite: this cannot fail, and equal conditions are equal texts.
            let text = serde_json::to_string(condition).unwrap_or_default();
            match first.get(&text) {
                Some(&earlier) => {
                    duplicates += 1;
                    ineffective.push((rule, index, earlier));
                }
                None => {
                    first.insert(text, rule);
                }
            }
        }
        if duplicates == conditions.len() {
            unused(rule, "all matches used by prior rules");
        }
    }
    for (rule, index, earlier) in ineffective {
        findings.warn(
            format!("{path}[{rule}].match[{index}]"),
            format!(
                "virtualService rule {} match {} is not used (duplicate/overlapping match in rule {})",
                name(rule),
                match_name(rule, index),
                name(earlier)
            ),
        );
    }
}
