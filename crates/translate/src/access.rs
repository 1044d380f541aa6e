//! AuthorizationPolicies of a workload as Envoy's RBAC filters, in Istio's order: CUSTOM, AUDIT, DENY, ALLOW.
//! <https://istio.io/latest/docs/concepts/security/#authorization-policies>
use std::collections::BTreeMap;
use std::sync::Arc;

use lateen_api::security::authorization_policy::Action;
use lateen_model::{AuthorizationPolicy, World};
use lateen_xds::Any;
use lateen_xds::pb::envoy::config::listener::v3 as listener;
use lateen_xds::pb::envoy::config::rbac::v3 as rbac;
use lateen_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use rbac::rbac::Action as Effect;

use crate::access_rules::{self, Terms};
use crate::ordered_rbac::{HttpRbac, NetworkRbac, Rules};
use crate::providers::{self, Provider};
use crate::tokens::Tokens;
use crate::wire;

const HTTP_FILTER: &str = "envoy.filters.http.rbac";
const NETWORK_FILTER: &str = "envoy.filters.network.rbac";
const HTTP_ASKING: &str = "envoy.filters.http.ext_authz";
const NETWORK_ASKING: &str = "envoy.filters.network.ext_authz";

/// Name of the policy that refuses everything where a provider would decide and there is none.
const NO_PROVIDER: &str = "default-deny-all-due-to-bad-CUSTOM-action";

/// The policies for a workload, and what else their meaning depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Access {
    policies: Vec<Arc<AuthorizationPolicy>>,
    /// The mesh's trust domain and its aliases.
    trust_domains: Vec<String>,
    /// Who decides where a CUSTOM policy matches, or why there is nobody. `None`: there is no such policy.
    provider: Option<Result<Provider, String>>,
    /// Whose tokens are accepted.
    tokens: Tokens,
}

/// The rules of one action.
struct Group {
    rules: Option<Rules>,
    /// Of policies that are counted only.
    shadow_rules: Option<Rules>,
    /// What the names of their stats begin with.
    shadow_prefix: &'static str,
}

impl Access {
    pub(crate) fn new(world: &World, namespace: &str, labels: &BTreeMap<String, String>) -> Self {
        let tokens = Tokens::new(world, namespace, labels);
        let policies = world.authorization_policies_for(namespace, labels);
        if policies.is_empty() {
            return Self { tokens, ..Self::default() };
        }
        let mesh = world.mesh();
        let aliases = mesh.trust_domain_aliases.iter().cloned();
        let asking: Vec<_> = policies.iter().filter(|policy| policy.spec.action == Action::Custom).collect();
        let provider = (!asking.is_empty()).then(|| Provider::of(world, &asking));
        Self {
            policies,
            provider,
            tokens,
            trust_domains: std::iter::once(mesh.trust_domain.clone()).chain(aliases).collect(),
        }
    }

    /// For connection managers. Providers are asked before tokens are looked at. `routes`: claims have a say in routing.
    pub(crate) fn http(&self, routes: bool) -> Vec<hcm::HttpFilter> {
        let asked = self.custom(false).into_iter().flat_map(|(group, provider)| {
            let provider = provider.map(|provider| http_filter(HTTP_ASKING, provider.http()));
            std::iter::once(http_rbac(group)).chain(provider)
        });
        asked.chain(self.tokens.filter(routes)).chain(self.groups(false).into_iter().map(http_rbac)).collect()
    }

    /// For TCP.
    pub(crate) fn network(&self) -> Vec<listener::Filter> {
        let filter = |name: &str, config: Any| listener::Filter {
            name: name.to_owned(),
            config_type: Some(listener::filter::ConfigType::TypedConfig(config)),
        };
        let rbac = |group: Group| {
            let config = wire::any(&NetworkRbac {
                stat_prefix: "tcp.".to_owned(),
                shadow_rules_stat_prefix: group.shadow_prefix(),
                rules: group.rules,
                shadow_rules: group.shadow_rules,
            });
            filter(NETWORK_FILTER, config)
        };
        let asked = self.custom(true).into_iter().flat_map(|(group, provider)| match provider {
            None => vec![rbac(group)],
            // Istio leaves connections alone that an HTTP server can't be asked about.
            Some(provider) => provider
                .network()
                .map(|asking| vec![rbac(group), filter(NETWORK_ASKING, asking)])
                .unwrap_or_default(),
        });
        asked.chain(self.groups(true).into_iter().map(rbac)).collect()
    }

    /// The rules of CUSTOM policies, noted only, with who is asked where one matches; without, they refuse everything.
    fn custom(&self, tcp: bool) -> Option<(Group, Option<&Provider>)> {
        let policies: Vec<_> = self
            .policies
            .iter()
            .filter(|policy| policy.spec.action == Action::Custom && !policy.dry_run)
            .collect();
        let provider = self.provider.as_ref().filter(|_| !policies.is_empty())?;
        Some(match provider {
            Ok(provider) => {
                let rules = self.rules(Action::Custom, &policies, tcp);
                (
                    Group { rules: None, shadow_rules: Some(rules), shadow_prefix: providers::NOTES },
                    Some(provider),
                )
            }
            // Nobody can be asked, and nothing must pass that somebody would have refused.
            Err(_) => {
                let refused = BTreeMap::from([(NO_PROVIDER.to_owned(), access_rules::everything())]);
                let rules = Rules { action: Effect::Deny as i32, policies: refused };
                (Group { rules: Some(rules), shadow_rules: None, shadow_prefix: "" }, None)
            }
        })
    }

    fn groups(&self, tcp: bool) -> Vec<Group> {
        let order = [Action::Audit, Action::Deny, Action::Allow];
        order.into_iter().filter_map(|action| self.group(action, tcp)).collect()
    }

    fn group(&self, action: Action, tcp: bool) -> Option<Group> {
        let of_action = |dry_run| {
            let policies: Vec<_> = self
                .policies
                .iter()
                .filter(|policy| policy.spec.action == action && policy.dry_run == dry_run)
                .collect();
            (!policies.is_empty()).then(|| self.rules(action, &policies, tcp))
        };
        let (rules, shadow_rules) = (of_action(false), of_action(true));
        let shadow_prefix = match action {
            Action::Allow => "istio_dry_run_allow_",
            Action::Deny | Action::Audit | Action::Custom => "istio_dry_run_deny_",
        };
        (rules.is_some() || shadow_rules.is_some()).then_some(Group { rules, shadow_rules, shadow_prefix })
    }

    fn rules(&self, action: Action, policies: &[&Arc<AuthorizationPolicy>], tcp: bool) -> Rules {
        let effect = match action {
            Action::Allow => Effect::Allow,
            Action::Deny | Action::Custom => Effect::Deny,
            Action::Audit => Effect::Log,
        };
        let mut named = BTreeMap::new();
        for policy in policies {
            let prefix = if action == Action::Custom { providers::POLICIES } else { "" };
            let name = |index: usize| {
                format!("{prefix}ns[{}]-policy[{}]-rule[{index}]", policy.name.namespace, policy.name.name)
            };
            let terms = Terms {
                tcp,
                allows: action == Action::Allow,
                namespace: &policy.name.namespace,
                trust_domains: &self.trust_domains,
            };
            if policy.spec.rules.is_empty() {
                named.insert(name(0), access_rules::nothing());
            }
            for (index, rule) in policy.spec.rules.iter().enumerate() {
                named.extend(terms.policy(rule).map(|policy| (name(index), policy)));
            }
        }
        Rules { action: effect as i32, policies: named }
    }
}

fn http_filter(name: &str, config: Any) -> hcm::HttpFilter {
    hcm::HttpFilter {
        name: name.to_owned(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    }
}

fn http_rbac(group: Group) -> hcm::HttpFilter {
    let config = wire::any(&HttpRbac {
        shadow_rules_stat_prefix: group.shadow_prefix(),
        rules: group.rules,
        shadow_rules: group.shadow_rules,
    });
    http_filter(HTTP_FILTER, config)
}

impl Group {
    fn shadow_prefix(&self) -> String {
        if self.shadow_rules.is_some() { self.shadow_prefix.to_owned() } else { String::new() }
    }
}
