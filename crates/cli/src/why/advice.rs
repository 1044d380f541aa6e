//! What somebody whose request does not pass is told to look at next.

use lateen_ir::{CheckResult, Outcome};

use super::proxy::Proxy;
use super::story::Hop;
use crate::authz::rule_of;

/// What to look at when a proxy refuses.
pub(super) fn of_refusal(hop: &Hop, proxy: &Proxy) -> Vec<String> {
    let pod = &hop.proxy;
    let mut next = Vec::new();
    let refusing = hop.passage.checks.iter().rev().find(|check| check.result == CheckResult::Refused);
    match refusing {
        Some(check) if check.by == "tokens" => next.push("kubectl get requestauthentication -A".to_owned()),
        Some(check) if check.by == "fault" => {
            let (name, namespace) = hop.virtual_service.rsplit_once('.').unwrap_or(("NAME", "default"));
            next.push(format!("kubectl get virtualservice {name} -n {namespace} -o yaml"));
        }
        Some(check) => {
            if let Some((name, namespace)) = check.decided_by.as_deref().and_then(policy) {
                next.push(format!("kubectl get authorizationpolicy {name} -n {namespace} -o yaml"));
            }
            next.push(format!("lateen x authz check {pod}"));
        }
        None => {}
    }
    if refusing.is_none() {
        match &hop.passage.outcome {
            Outcome::Answered { details, .. } if details == "route_not_found" => {
                let name = hop.passage.route.as_ref().map(|route| route.configuration.as_str());
                let name = name.map(|name| format!(" --name {name}")).unwrap_or_default();
                next.push(format!("lateen pc routes {pod}{name}"));
                let hosts = proxy.hosts();
                if !hosts.is_empty() && hop.passage.route.is_none() {
                    next.push(format!("hosts it knows: {}", some_of(&hosts)));
                }
            }
            Outcome::Closed { .. } => {
                next.push(format!("lateen pc listeners {pod}"));
                next.push("kubectl get peerauthentication,destinationrule -A".to_owned());
            }
            Outcome::Answered { .. } | Outcome::Forwarded { .. } => {}
        }
    }
    next
}

/// Letters in which a host may differ from the one that was meant.
const MOST_CHANGES: usize = 2;

/// The host that was probably meant.
pub(super) fn similar<'a>(hosts: &'a [String], host: &str) -> Option<&'a String> {
    let nearest = hosts.iter().map(|known| (distance(known, host), known)).min();
    nearest.filter(|(changes, _)| *changes <= MOST_CHANGES).map(|(_, known)| known)
}

/// Levenshtein's: letters to change, add or leave out.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (line, one) in a.chars().enumerate() {
        let mut before = std::mem::replace(&mut row[0], line + 1);
        for (column, other) in b.iter().enumerate() {
            let changed = before + usize::from(one != *other);
            before = row[column + 1];
            row[column + 1] = changed.min(row[column] + 1).min(before + 1);
        }
    }
    row[b.len()]
}

/// Hosts that are named.
const NAMED_HOSTS: usize = 8;

/// Some of the hosts, and how many there are besides.
pub(super) fn some_of(hosts: &[String]) -> String {
    match hosts.split_at_checked(NAMED_HOSTS) {
        Some((named, rest)) if !rest.is_empty() => format!("{} and {} more", named.join(", "), rest.len()),
        _ => hosts.join(", "),
    }
}

/// Name and namespace of a rule's policy.
fn policy(rule: &str) -> Option<(String, String)> {
    let (name, rule) = rule_of(rule);
    let (name, namespace) = name.rsplit_once('.').filter(|_| !rule.is_empty())?;
    Some((name.to_owned(), namespace.to_owned()))
}
