//! `x authz check`: which AuthorizationPolicies a proxy enforces, by its own configuration.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

use crate::proxy_config::{items, text};
use crate::table::Table;

/// What istioctl calls a filter that has no policies: whatever its action, it matches nothing.
const NOTHING: &str = "_anonymous_match_nothing_";
const HTTP: &str = "envoy.filters.http.rbac";
const NETWORK: &str = "envoy.filters.network.rbac";
/// In the order they are shown.
const ACTIONS: [&str; 3] = ["DENY", "ALLOW", "LOG"];
/// Begins the names of policies of which an external authorizer decides.
const CUSTOM: &str = "istio-ext-authz-";

/// A policy as the proxy has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// `DENY`, `ALLOW` or `LOG` (audit); `CUSTOM` where an external authorizer decides.
    pub action: &'static str,
    /// `NAME.NAMESPACE`.
    pub policy: String,
    /// How many of its rules there are.
    pub rules: usize,
    /// It is counted only.
    pub dry_run: bool,
}

/// Policies by action and name, with their rules.
#[derive(Default)]
struct Found(BTreeMap<(usize, String), BTreeSet<String>>);

/// Whose decision the policies of a filter are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Decides {
    Proxy,
    Authorizer,
    /// They are counted only.
    Nobody,
}

impl Found {
    fn add(&mut self, rules: &Value) {
        // The first value of an enumeration is left out.
        let named = ACTIONS.iter().position(|action| text(rules, "/action") == *action);
        let action = named.unwrap_or(1);
        let policies = rules.get("policies").and_then(Value::as_object);
        let mut names = policies.into_iter().flatten().map(|(name, _)| rule_of(name)).peekable();
        if names.peek().is_none() {
            self.0.entry((action, NOTHING.to_owned())).or_default().insert("0".to_owned());
        }
        for (policy, rule) in names {
            self.0.entry((action, policy)).or_default().insert(rule);
        }
    }

    /// The rules of all actions count: istioctl keeps them by name.
    fn rows(&self) -> impl Iterator<Item = (&'static str, &str, usize)> {
        self.0.keys().map(|(action, name)| {
            let of_name = self.0.iter().filter(move |((_, other), _)| other == name);
            let rules: BTreeSet<&String> = of_name.flat_map(|(_, rules)| rules).collect();
            (ACTIONS[*action], name.as_str(), rules.len())
        })
    }
}

/// `NAME.NAMESPACE` and the rule out of `ns[NAMESPACE]-policy[NAME]-rule[RULE]`; another name is itself.
pub(crate) fn rule_of(name: &str) -> (String, String) {
    let parts = || {
        let (_, rest) = name.split_once("ns[")?;
        let (namespace, rest) = rest.split_once("]-policy[")?;
        let (policy, rest) = rest.rsplit_once("]-rule[")?;
        Some((format!("{policy}.{namespace}"), rest.strip_suffix(']')?.to_owned()))
    };
    parts().unwrap_or_else(|| (name.to_owned(), String::new()))
}

/// The filters' configurations, those for requests and those for connections.
fn filters<'a>(listeners: &'a [&'a Value]) -> impl Iterator<Item = &'a Value> {
    let chains = listeners.iter().flat_map(|listener| items(listener, "/filterChains"));
    chains.flat_map(|chain| items(chain, "/filters")).flat_map(|filter| {
        let own = (text(filter, "/name") == NETWORK).then_some(filter);
        let of_manager = items(filter, "/typedConfig/httpFilters").iter();
        own.into_iter()
            .chain(of_manager.filter(|filter| text(filter, "/name") == HTTP))
            .map(|one| &one["typedConfig"])
    })
}

/// What istioctl shows: the rules that are enforced, by action and name. A filter that only counts has none.
pub fn table(listeners: &[&Value]) -> Table {
    let mut found = Found::default();
    for filter in filters(listeners) {
        found.add(&filter["rules"]);
    }
    let mut table = Table::new(["ACTION", "AuthorizationPolicy", "RULES"]).with_gap(3);
    for (action, name, rules) in found.rows() {
        table.row([action.to_owned(), name.to_owned(), rules.to_string()]);
    }
    table
}

/// All policies, those that are counted only and those of external authorizers too.
pub fn policies(listeners: &[&Value]) -> Vec<Policy> {
    let mut all: BTreeMap<Decides, Found> = BTreeMap::new();
    for filter in filters(listeners) {
        for (enforced, field) in [(true, "rules"), (false, "shadowRules")] {
            let rules = &filter[field];
            let Some(policies) = rules.get("policies").and_then(Value::as_object) else { continue };
            let decides = match policies.keys().next() {
                _ if enforced => Decides::Proxy,
                Some(name) if name.starts_with(CUSTOM) => Decides::Authorizer,
                _ => Decides::Nobody,
            };
            all.entry(decides).or_default().add(rules);
        }
    }
    let row = |decides: Decides, (action, name, rules): (&'static str, &str, usize)| Policy {
        action: if decides == Decides::Authorizer { "CUSTOM" } else { action },
        policy: name.to_owned(),
        rules,
        dry_run: decides == Decides::Nobody,
    };
    all.iter().flat_map(|(decides, found)| found.rows().map(move |one| row(*decides, one))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn listener(chains: &[Vec<Value>]) -> Value {
        let chains: Vec<Value> = chains.iter().map(|filters| json!({ "filters": filters })).collect();
        json!({ "name": "virtualInbound", "filterChains": chains })
    }

    fn http(filters: &[Value]) -> Value {
        let filters: Vec<Value> =
            filters.iter().map(|config| json!({ "name": HTTP, "typedConfig": config })).collect();
        json!({ "name": "envoy.filters.network.http_connection_manager", "typedConfig": { "httpFilters": filters } })
    }

    fn rules(action: &str, names: &[&str]) -> Value {
        let policies: serde_json::Map<String, Value> =
            names.iter().map(|name| ((*name).to_owned(), json!({}))).collect();
        let mut rules = json!({ "policies": policies });
        if action != "ALLOW" {
            rules["action"] = json!(action);
        }
        rules
    }

    #[test]
    fn policies_are_shown_as_by_istioctl() {
        let deny = rules("DENY", &["ns[default]-policy[deny]-rule[0]", "ns[default]-policy[deny]-rule[1]"]);
        let allow = rules("ALLOW", &["ns[istio-system]-policy[allow]-rule[0]"]);
        let tcp = json!({ "name": NETWORK, "typedConfig": { "rules": {} } });
        let audit = rules("LOG", &["ns[default]-policy[audit]-rule[0]"]);
        let chain = http(&[json!({ "rules": audit }), json!({ "rules": deny }), json!({ "rules": allow })]);
        let listener = listener(&[vec![chain.clone()], vec![chain], vec![tcp]]);
        assert_eq!(
            table(&[&listener]).to_string(),
            "ACTION   AuthorizationPolicy         RULES\n\
             DENY     deny.default                2\n\
             ALLOW    _anonymous_match_nothing_   1\n\
             ALLOW    allow.istio-system          1\n\
             LOG      audit.default               1\n"
        );
        let all = policies(&[&listener]);
        assert_eq!(all.len(), 3, "{all:?}");
    }

    #[test]
    fn what_is_counted_only_and_what_others_decide_is_told_apart() {
        let custom =
            json!({ "shadowRules": rules("DENY", &["istio-ext-authz-ns[default]-policy[ask]-rule[0]"]) });
        let dry = json!({ "shadowRules": rules("ALLOW", &["ns[default]-policy[dry]-rule[0]"]) });
        let listener = listener(&[vec![http(&[custom, dry])]]);
        let all = policies(&[&listener]);
        let said: Vec<_> = all.iter().map(|one| (one.action, one.policy.as_str(), one.dry_run)).collect();
        assert_eq!(said, [("CUSTOM", "ask.default", false), ("ALLOW", "dry.default", true)]);
        // Of such filters istioctl says what it says of filters without policies.
        assert!(table(&[&listener]).to_string().contains("ALLOW    _anonymous_match_nothing_   1"));
    }

    #[test]
    fn names_are_taken_apart() {
        assert_eq!(rule_of("ns[a]-policy[b.c]-rule[3]"), ("b.c.a".into(), "3".into()));
        assert_eq!(rule_of("deny-all"), ("deny-all".into(), String::new()));
    }
}
