//! Consistent hashing of DestinationRules, as far as routes and TCP proxies have a part in it: what is hashed.
use std::sync::Arc;

use lateen_api::networking::destination_rule::TrafficPolicy;
use lateen_api::networking::load_balancing::ConsistentHashLb;
use lateen_model::{DestinationRule, Service};
use lateen_xds::pb::envoy::config::route::v3::route_action::HashPolicy;
use lateen_xds::pb::envoy::config::route::v3::route_action::hash_policy::{
    ConnectionProperties, Cookie, CookieAttribute, Header, PolicySpecifier, QueryParameter,
};

use crate::scope::Scope;
use crate::traffic_policy::{self, EffectivePolicy};
use crate::wire;

/// The rule in force for a service, if it hashes anywhere: routes depend on no other rules.
pub(crate) fn hashing_rule(scope: &Scope, service: &Service) -> Option<Arc<DestinationRule>> {
    let rule = scope.destination_rule(service)?;
    let hashes = |policy: &TrafficPolicy| {
        let of_ports = policy.port_level_settings.iter().map(|port| port.load_balancer.as_ref());
        of_ports.chain([policy.load_balancer.as_ref()]).flatten().any(|lb| lb.consistent_hash.is_some())
    };
    let of_subsets = rule.spec.subsets.iter().map(|subset| subset.traffic_policy.as_ref());
    let any = of_subsets.chain([rule.spec.traffic_policy.as_ref()]).flatten().any(hashes);
    any.then_some(rule)
}

/// What a rule hashes for one port and subset (empty: the whole).
pub(crate) fn consistent_hash<'a>(
    rule: &'a DestinationRule,
    port: u16,
    subset: &str,
) -> Option<&'a ConsistentHashLb> {
    let subset = rule.spec.subsets.iter().find(|known| known.name == subset);
    let special = subset.and_then(|subset| subset.traffic_policy.as_ref());
    let policy = EffectivePolicy::new(rule.spec.traffic_policy.as_ref(), special, port);
    policy.balancer?.consistent_hash.as_ref()
}

/// A route's hash policy.
pub(crate) fn route_policy(hash: &ConsistentHashLb) -> Option<HashPolicy> {
    let specifier = if let Some(name) = &hash.http_header_name {
        PolicySpecifier::Header(Header { header_name: name.clone(), regex_rewrite: None })
    } else if let Some(cookie) = &hash.http_cookie {
        let attributes = cookie.attributes.iter();
        PolicySpecifier::Cookie(Cookie {
            name: cookie.name.clone(),
            ttl: traffic_policy::parse(cookie.ttl.as_ref()).map(wire::duration),
            path: cookie.path.clone(),
            attributes: attributes
                .map(|attribute| CookieAttribute {
                    name: attribute.name.clone(),
                    value: attribute.value.clone(),
                })
                .collect(),
        })
    } else if let Some(name) = &hash.http_query_parameter_name {
        PolicySpecifier::QueryParameter(QueryParameter { name: name.clone() })
    } else if hash.use_source_ip == Some(true) {
        PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true })
    } else {
        return None;
    };
    Some(HashPolicy { policy_specifier: Some(specifier), terminal: false })
}
