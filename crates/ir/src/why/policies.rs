//! Which policies match, and what of the others does not hold.

use serde::Serialize;

use super::words;
use super::{Check, CheckResult};
use crate::{AccessCondition, AccessView, Rbac, RbacAction};

/// Wanted values that are named; the rest is counted.
const NAMED: usize = 4;

/// A rule of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PolicySeen {
    /// Its name in the proxy, `ns[NAMESPACE]-policy[NAME]-rule[POSITION]`.
    pub name: String,
    /// Whether it matches.
    pub matches: bool,
    /// What does not hold; empty where it matches.
    pub reason: String,
}

impl Rbac {
    /// Every policy, with what of it does not hold.
    pub fn explain(&self, view: &AccessView<'_>) -> Vec<PolicySeen> {
        let seen = |(name, condition): (&str, &AccessCondition)| {
            let reason = lacks(condition, view);
            PolicySeen {
                name: name.to_owned(),
                matches: reason.is_none(),
                reason: reason.unwrap_or_default(),
            }
        };
        self.named().map(seen).collect()
    }
}

/// What these rules decide, with reasons.
pub(super) fn check(rules: &Rbac, view: &AccessView<'_>, shadow: bool) -> Check {
    let verdict = rules.judge(view);
    let by = match rules.action {
        RbacAction::Allow => "ALLOW policies",
        RbacAction::Deny => "DENY policies",
        RbacAction::Log => "AUDIT policies",
    };
    let reason = match (rules.action, verdict.policy) {
        (RbacAction::Allow, Some(_)) => "a rule allows it",
        (RbacAction::Allow, None) => "there are ALLOW policies, and none of their rules matches",
        (RbacAction::Deny, Some(_)) => "a rule denies it",
        (RbacAction::Deny, None) => "no rule denies it",
        (RbacAction::Log, Some(_)) => "a rule notes it",
        (RbacAction::Log, None) => "no rule notes it",
    };
    let result = match (shadow || rules.action == RbacAction::Log, verdict.allowed) {
        (true, _) => CheckResult::Noted,
        (false, true) => CheckResult::Passes,
        (false, false) => CheckResult::Refused,
    };
    Check {
        by: if shadow { format!("{by} (dry run)") } else { by.to_owned() },
        result,
        decided_by: verdict.policy.map(str::to_owned),
        reason: reason.to_owned(),
        rules: rules.explain(view),
    }
}

/// What of a condition does not hold; `None`: it holds.
fn lacks(condition: &AccessCondition, view: &AccessView<'_>) -> Option<String> {
    if condition.holds(view) {
        return None;
    }
    Some(match condition {
        AccessCondition::All(list) => list.iter().find_map(|one| lacks(one, view)).unwrap_or_default(),
        AccessCondition::Any(any) => none_of(any.conditions(), view),
        AccessCondition::Not(one) => unwanted(one, view),
        AccessCondition::Always => String::new(),
        leaf => words::leaf(leaf, view)
            .map(|(what, is, wanted)| format!("{what} is {is}, not {wanted}"))
            .unwrap_or_default(),
    })
}

/// Why none of these holds.
fn none_of(list: &[AccessCondition], view: &AccessView<'_>) -> String {
    if let [one] = list {
        return lacks(one, view).unwrap_or_default();
    }
    let leaves: Option<Vec<_>> = list.iter().map(|one| words::leaf(one, view)).collect();
    match leaves.as_deref() {
        Some([(what, is, _), rest @ ..]) if rest.iter().all(|(other, _, _)| other == what) => {
            let wanted = leaves.iter().flatten().map(|(_, _, wanted)| wanted.as_str());
            format!("{what} is {is}, not {}", alternatives(wanted.collect()))
        }
        _ => {
            let mut reasons: Vec<String> = list.iter().filter_map(|one| lacks(one, view)).collect();
            reasons.dedup();
            alternatives(reasons.iter().map(String::as_str).collect())
        }
    }
}

fn alternatives(list: Vec<&str>) -> String {
    match list.split_at_checked(NAMED) {
        Some((named, rest)) if !rest.is_empty() => format!("{} or {} others", named.join(" or "), rest.len()),
        _ => list.join(" or "),
    }
}

/// What holds that must not.
fn unwanted(condition: &AccessCondition, view: &AccessView<'_>) -> String {
    match condition {
        AccessCondition::Always => "it has no rules, so nothing matches it".to_owned(),
        AccessCondition::Any(any) => {
            let found = any.conditions().iter().find(|one| one.holds(view));
            found.map(|one| unwanted(one, view)).unwrap_or_default()
        }
        AccessCondition::All(list) => list
            .iter()
            .map(|one| unwanted(one, view))
            .filter(|words| !words.is_empty())
            .collect::<Vec<_>>()
            .join(" and "),
        AccessCondition::Not(one) => lacks(one, view).unwrap_or_default(),
        leaf => words::leaf(leaf, view)
            .map(|(what, is, excluded)| format!("{what} is {is}, which {excluded} excludes"))
            .unwrap_or_default(),
    }
}
