//! Rules and conditions of a VirtualService that nothing can reach.
use std::collections::HashMap;

use serde::Serialize;

use super::Findings;
use crate::networking::virtual_service::HttpRoute;

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
