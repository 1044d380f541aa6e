//! A story for people to read: plain, aligned, the same in a pipe.

use std::fmt::Write as _;

use lateen_ir::{Check, CheckResult, Outcome, PolicySeen, Reach};

use super::story::{Hop, Passes, Story};
use crate::authz::rule_of;

/// Width of the first column.
const LABEL: usize = 16;
/// Endpoints and rules that are shown; the rest is counted.
const SHOWN: usize = 8;

/// The story.
pub(super) fn print(story: &Story) -> String {
    let mut out = format!("{}\n", story.question);
    for hop in &story.hops {
        let _ = write!(out, "\n{} ({})\n{}", hop.proxy, role(hop.role), lines(hop));
    }
    let answer = &story.answer;
    let said = match (answer.passes, answer.status) {
        (Passes::Yes, None) => "it passes".to_owned(),
        (Passes::Yes, Some(status)) => format!("it is answered with {status}"),
        (Passes::Depends, _) => "it depends".to_owned(),
        (Passes::No, Some(status)) => format!("it does not pass: {status}"),
        (Passes::No, None) => "it does not pass: the connection is closed".to_owned(),
    };
    let _ = write!(out, "\nAnswer: {said}\n");
    let mut line = |label: &str, text: &str| {
        if !text.is_empty() {
            let _ = writeln!(out, "  {label:LABEL$}{text}");
        }
    };
    line("because", &answer.reason);
    line("decided at", &answer.decided_at);
    line("decided by", &rule(&answer.decided_by));
    if answer.passes == Passes::No {
        let flags = if answer.flags == "-" { String::new() } else { format!("{} ", answer.flags) };
        line("access log", &format!("{flags}{}", answer.details));
    }
    for next in &answer.next {
        line("look at", next);
    }
    out
}

fn role(role: &str) -> &'static str {
    match role {
        "client" => "the client's sidecar",
        "gateway" => "a gateway",
        _ => "the server's sidecar",
    }
}

/// `NAME.NAMESPACE rule N`; what is no rule is itself.
fn rule(name: &str) -> String {
    match rule_of(name) {
        (policy, rule) if rule.is_empty() => policy,
        (policy, rule) => format!("{policy} rule {rule}"),
    }
}

fn lines(hop: &Hop) -> String {
    let mut out = String::new();
    let passage = &hop.passage;
    let mut line = |label: &str, text: String| {
        let _ = writeln!(out, "  {label:LABEL$}{text}");
    };
    if let Some(listener) = &passage.listener {
        line("listener", listener.clone());
    }
    if let Some(chain) = &passage.chain {
        line("filter chain", chain.clone());
    }
    let caller = match hop.caller.as_slice() {
        [] => String::new(),
        names => format!(", the caller is {}", names.join(", ")),
    };
    line("connection", format!("{}{caller}", passage.transport));
    if let Some(route) = &passage.route {
        line(
            "virtual host",
            format!("{} of route configuration {}", route.virtual_host, route.configuration),
        );
        match route.position {
            Some(position) => {
                let name = if route.name.is_empty() { String::new() } else { format!(" {}", route.name) };
                line("route", format!("{position}{name}: {}", route.matching));
            }
            None => line("route", "none matches".to_owned()),
        }
        if !hop.virtual_service.is_empty() {
            line("", format!("of VirtualService {}", hop.virtual_service));
        }
    }
    for check in &passage.checks {
        line(&check.by, said(check));
        let (shown, rest) = check.rules.split_at(check.rules.len().min(SHOWN));
        shown.iter().for_each(|one| line("", rule_line(one)));
        if !rest.is_empty() {
            line("", format!("- and {} more rules", rest.len()));
        }
    }
    for unread in &hop.unread {
        line("not understood", unread.clone());
    }
    if let Outcome::Forwarded { clusters } = &passage.outcome {
        for share in clusters {
            let percent = if clusters.len() > 1 { format!(" ({} %)", share.percent) } else { String::new() };
            line("cluster", format!("{}{percent}", share.cluster));
            if let Some(reach) = hop.clusters.iter().find(|reach| reach.cluster == share.cluster) {
                let origin = origin(&reach.origin);
                line("", format!("{}{origin}", reach.kind));
                endpoints(hop, reach, &mut line);
            }
        }
    }
    out
}

fn endpoints(hop: &Hop, reach: &Reach, line: &mut dyn FnMut(&str, String)) {
    let (shown, rest) = reach.endpoints.split_at(reach.endpoints.len().min(SHOWN));
    for endpoint in shown {
        let pod = hop.pods.get(&endpoint.address).map(String::as_str);
        let parts = [
            endpoint.address.as_str(),
            pod.unwrap_or_default(),
            if endpoint.used { endpoint.health } else { "not used now" },
            if endpoint.used || endpoint.health == "healthy" { "" } else { endpoint.health },
            &endpoint.locality,
            endpoint.transport,
        ];
        let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        let priority =
            if endpoint.priority > 0 { format!(", priority {}", endpoint.priority) } else { String::new() };
        line("endpoint", format!("{}{priority}", parts.join(", ")));
        if let Some(beyond) = hop.networks.get(&endpoint.address) {
            let (shown, rest) = beyond.workloads.split_at(beyond.workloads.len().min(SHOWN));
            let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
            let behind = if shown.is_empty() { "nobody that is known".to_owned() } else { shown.join(", ") };
            line("", format!("the gateway of network {}; behind it: {behind}{more}", beyond.network));
        }
    }
    if !rest.is_empty() {
        line("", format!("and {} more endpoints", rest.len()));
    }
}

/// `, DestinationRule NAME.NAMESPACE` out of an object's path.
fn origin(path: &str) -> String {
    match path.split('/').collect::<Vec<_>>().as_slice() {
        ["", "apis", _, _, "namespaces", namespace, _, name] => {
            format!(", DestinationRule {name}.{namespace}")
        }
        _ => String::new(),
    }
}

fn said(check: &Check) -> String {
    let result = match check.result {
        CheckResult::Passes => "pass",
        CheckResult::Refused => "refuse",
        CheckResult::Noted => "note",
        CheckResult::Depends => "?",
    };
    let by = check.decided_by.as_deref().map(|name| format!(" ({})", rule(name))).unwrap_or_default();
    format!("{result}: {}{by}", check.reason)
}

fn rule_line(one: &PolicySeen) -> String {
    let name = rule(&one.name);
    if one.matches { format!("- {name} matches") } else { format!("- {name} does not match: {}", one.reason) }
}
