//! RequestAuthentications of a workload as Envoy's `jwt_authn`, as istiod writes it; and conditions on the claims it notes.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use lateen_api::security::request_authentication::JwtRule;
use lateen_api::validate::JwksUri;
use lateen_model::{Hostname, KeySource, KeysBy, RequestAuthentication, World};
use lateen_xds::pb::envoy::config::core::v3 as core;
use lateen_xds::pb::envoy::config::route::v3 as route;
use lateen_xds::pb::envoy::extensions::filters::http::jwt_authn::v3 as jwt;
use lateen_xds::pb::envoy::extensions::filters::http::jwt_authn::v3::jwt_provider::JwksSourceSpecifier;
use lateen_xds::pb::envoy::extensions::filters::network::http_connection_manager::v3 as hcm;
use lateen_xds::pb::envoy::r#type::matcher::v3 as matcher;
use lateen_xds::pb::google::protobuf::Empty;

use crate::names::outbound_cluster;
use crate::ordered_jwt::JwtAuthentication;
use crate::providers;
use crate::traffic_policy;
use crate::wire;

/// The filter, which notes claims under its own name ...
const FILTER: &str = "envoy.filters.http.jwt_authn";
/// ... and this one.
const PAYLOAD: &str = "payload";

/// How a VirtualService speaks of claims among headers.
const CLAIMS: &str = "@request.auth.claims";

/// Claims that are lists of words by their nature.
const SPACE_DELIMITED: [&str; 2] = ["permission", "scope"];

/// A key nobody has: its x is the first from SHA-256 of "lateen: no key was fetched" on that is on the curve. It stands in for
/// keys that could not be fetched, so that tokens are refused.
const NOBODYS_KEY: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","alg":"ES256","kid":"lateen-no-key-was-fetched","x":"n-gJskFJQ4Wywt_fxO50ZozaiwdK5xcx6exnOrckX18","y":"cHckAFqYdem1Gw5g6l08IXgxPI5oQDgDrAj8JHMXeZ8"}]}"#;

/// How long fetching by a proxy may take where a rule says nothing (Istio's default).
const TIME_LIMIT: Duration = Duration::from_secs(5);

/// How long proxies use the keys they fetched, as istiod tells them.
const CACHE_DURATION: Duration = Duration::from_secs(300);

/// The cluster that a proxy fetches a rule's keys from; none: the control plane does, or nobody needs to.
fn fetched_from(world: &World, rule: &JwtRule) -> Option<String> {
    let Some(KeySource::Uri(uri)) = KeySource::of(rule) else { return None };
    let uri = JwksUri::parse(&uri).ok()?;
    let known = match world.keys_by() {
        KeysBy::ControlPlane => return None,
        KeysBy::Both | KeysBy::Proxies => providers::service(world, uri.host),
    };
    match known {
        Ok(service) => Some(outbound_cluster(&service.hostname, uri.port, "")),
        Err(_) if world.keys_by() == KeysBy::Proxies => Some(outbound_cluster(uri.host, uri.port, "")),
        Err(_) => None,
    }
}

/// Whether proxies fetch the keys of a rule themselves.
pub fn proxies_fetch(world: &World, rule: &JwtRule) -> bool {
    fetched_from(world, rule).is_some()
}

/// Why proxies will not get the keys of a rule, if that is known.
pub(crate) fn unreachable(world: &World, rule: &JwtRule) -> Option<String> {
    let source = KeySource::of(rule).filter(|_| proxies_fetch(world, rule))?;
    let KeySource::Uri(uri) = &source else { return None };
    let host = JwksUri::parse(uri).ok()?.host;
    providers::service(world, host).err().map(|reason| {
        format!("{reason}; proxies fetch these keys (PILOT_JWT_ENABLE_REMOTE_JWKS=envoy): create a ServiceEntry for the host")
    })
}

/// Whether a change of these services may change who fetches keys.
pub(crate) fn concern(world: &World, changed: &BTreeSet<Hostname>) -> bool {
    let mut uris =
        world.request_authentications().flat_map(|policy| &policy.spec.jwt_rules).map(|rule| &rule.jwks_uri);
    world.keys_by() != KeysBy::ControlPlane
        && !changed.is_empty()
        && uris.any(|uri| {
            JwksUri::parse(uri).is_ok_and(|uri| changed.iter().any(|changed| **changed == *uri.host))
        })
}

/// The RequestAuthentications for a workload and the keys they need.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Tokens {
    policies: Vec<Arc<RequestAuthentication>>,
    keys: BTreeMap<KeySource, Arc<str>>,
    /// By URI, the clusters that proxies fetch keys from.
    fetched: BTreeMap<String, String>,
}

impl Tokens {
    pub(crate) fn new(world: &World, namespace: &str, labels: &BTreeMap<String, String>) -> Self {
        let mut policies = world.request_authentications_for(namespace, labels);
        policies.retain(|policy| !policy.spec.jwt_rules.is_empty());
        let rules = policies.iter().flat_map(|policy| &policy.spec.jwt_rules);
        let keys = rules.clone().filter_map(KeySource::of).filter_map(|source| {
            let keys = world.key_set(&source)?.keys.clone()?;
            Some((source, keys))
        });
        let fetched = rules.filter_map(|rule| Some((rule.jwks_uri.clone(), fetched_from(world, rule)?)));
        Self { keys: keys.collect(), fetched: fetched.collect(), policies }
    }

    /// The filter. `routes`: claims have a say in routing.
    pub(crate) fn filter(&self, routes: bool) -> Option<hcm::HttpFilter> {
        let mut rules: Vec<&JwtRule> =
            self.policies.iter().flat_map(|policy| &policy.spec.jwt_rules).collect();
        if rules.is_empty() {
            return None;
        }
        rules.sort_by(|a, b| a.issuer.cmp(&b.issuer));
        let name = |index: usize| format!("origins-{index}");
        let named = rules.iter().enumerate();
        let providers = named.map(|(index, rule)| (name(index), self.provider(rule, routes))).collect();
        let requirement = requirement((0..rules.len()).map(name).collect());
        let rule = jwt::RequirementRule {
            r#match: Some(route::RouteMatch {
                path_specifier: Some(route::route_match::PathSpecifier::Prefix("/".to_owned())),
                ..Default::default()
            }),
            requirement_type: Some(jwt::requirement_rule::RequirementType::Requires(requirement)),
        };
        let config =
            wire::any(&JwtAuthentication { providers, rules: vec![rule], bypass_cors_preflight: true });
        Some(hcm::HttpFilter {
            name: FILTER.to_owned(),
            config_type: Some(hcm::http_filter::ConfigType::TypedConfig(config)),
            ..Default::default()
        })
    }

    fn provider(&self, rule: &JwtRule, routes: bool) -> jwt::JwtProvider {
        let mut words: Vec<String> = SPACE_DELIMITED
            .map(str::to_owned)
            .into_iter()
            .chain(rule.space_delimited_claims.clone())
            .collect();
        words.sort();
        words.dedup();
        let header = |header: &lateen_api::security::request_authentication::JwtHeader| jwt::JwtHeader {
            name: header.name.clone(),
            value_prefix: header.prefix.clone(),
        };
        let claim =
            |one: &lateen_api::security::request_authentication::ClaimToHeader| jwt::JwtClaimToHeader {
                header_name: one.header.clone(),
                claim_name: one.claim.clone(),
                ..Default::default()
            };
        jwt::JwtProvider {
            issuer: rule.issuer.clone(),
            audiences: rule.audiences.clone(),
            forward: rule.forward_original_token,
            from_headers: rule.from_headers.iter().map(header).collect(),
            from_params: rule.from_params.clone(),
            from_cookies: rule.from_cookies.clone(),
            forward_payload_header: rule.output_payload_to_header.clone(),
            payload_in_metadata: PAYLOAD.to_owned(),
            normalize_payload_in_metadata: Some(jwt::jwt_provider::NormalizePayload {
                space_delimited_claims: words,
            }),
            claim_to_headers: rule.output_claim_to_headers.iter().map(claim).collect(),
            clear_route_cache: routes,
            jwks_source_specifier: Some(self.key_source(rule)),
            ..Default::default()
        }
    }

    fn key_source(&self, rule: &JwtRule) -> JwksSourceSpecifier {
        // A key set that is written down needs no URI.
        let cluster = self.fetched.get(&rule.jwks_uri).filter(|_| rule.jwks.is_empty());
        let Some(cluster) = cluster else {
            return JwksSourceSpecifier::LocalJwks(core::DataSource {
                specifier: Some(core::data_source::Specifier::InlineString(self.keys(rule))),
                ..Default::default()
            });
        };
        let timeout = traffic_policy::parse(rule.timeout.as_ref()).unwrap_or(TIME_LIMIT);
        JwksSourceSpecifier::RemoteJwks(jwt::RemoteJwks {
            http_uri: Some(core::HttpUri {
                uri: rule.jwks_uri.clone(),
                timeout: Some(wire::duration(timeout)),
                http_upstream_type: Some(core::http_uri::HttpUpstreamType::Cluster(cluster.clone())),
            }),
            cache_duration: Some(wire::duration(CACHE_DURATION)),
            ..Default::default()
        })
    }

    fn keys(&self, rule: &JwtRule) -> String {
        let fetched = || KeySource::of(rule).and_then(|source| self.keys.get(&source)).map(|keys| &**keys);
        let given = if rule.jwks.is_empty() { fetched() } else { Some(rule.jwks.as_str()) };
        // Proxies refuse a whole listener for keys that they can't use.
        given.filter(|keys| check_keys(keys).is_ok()).unwrap_or(NOBODYS_KEY).to_owned()
    }
}

/// Whether proxies can use these keys.
///
/// # Errors
/// Why not, in words.
pub fn check_keys(text: &str) -> Result<(), String> {
    lateen_ir::Jwks::parse(text).map(drop)
}

/// A token must be good, none is fine. Of several providers one may be enough, since they may look in the same place: there each
/// would refuse the other's tokens.
fn requirement(providers: Vec<String>) -> jwt::JwtRequirement {
    use jwt::jwt_requirement::RequiresType;
    let of = |kind: RequiresType| jwt::JwtRequirement { requires_type: Some(kind) };
    let any = |requirements| of(RequiresType::RequiresAny(jwt::JwtRequirementOrList { requirements }));
    let named = |name: &String| of(RequiresType::ProviderName(name.clone()));
    let mut optional: Vec<jwt::JwtRequirement> = providers
        .iter()
        .map(|name| any(vec![named(name), of(RequiresType::AllowMissing(Empty::default()))]))
        .collect();
    if let [_] = optional[..] {
        return optional.remove(0);
    }
    let mut list: Vec<jwt::JwtRequirement> = providers.iter().map(named).collect();
    list.push(of(RequiresType::RequiresAll(jwt::JwtRequirementAndList { requirements: optional })));
    any(list)
}

/// A claim of a verified token: a text, or a list with it.
pub(crate) fn claim(path: &[&str], value: matcher::StringMatcher) -> matcher::MetadataMatcher {
    use matcher::value_matcher::MatchPattern;
    let single = matcher::ValueMatcher { match_pattern: Some(MatchPattern::StringMatch(value)) };
    let list = matcher::ListMatcher {
        match_pattern: Some(matcher::list_matcher::MatchPattern::OneOf(Box::new(single.clone()))),
    };
    let list = matcher::ValueMatcher { match_pattern: Some(MatchPattern::ListMatch(Box::new(list))) };
    noted(path, MatchPattern::OrMatch(matcher::OrMatcher { value_matchers: vec![single, list] }))
}

/// A claim of a verified token is there.
pub(crate) fn any_claim(path: &[&str]) -> matcher::MetadataMatcher {
    noted(path, matcher::value_matcher::MatchPattern::PresentMatch(true))
}

fn noted(path: &[&str], pattern: matcher::value_matcher::MatchPattern) -> matcher::MetadataMatcher {
    let segment = |key: &str| matcher::metadata_matcher::PathSegment {
        segment: Some(matcher::metadata_matcher::path_segment::Segment::Key(key.to_owned())),
    };
    matcher::MetadataMatcher {
        filter: FILTER.to_owned(),
        path: std::iter::once(PAYLOAD).chain(path.iter().copied()).map(segment).collect(),
        value: Some(matcher::ValueMatcher { match_pattern: Some(pattern) }),
        ..Default::default()
    }
}

/// The claim a condition of a VirtualService is about, if it is about one: `@request.auth.claims.a.b`, or
/// `@request.auth.claims[a][b]` where names have dots.
pub(crate) fn routing_claim(header: &str) -> Option<Vec<&str>> {
    let rest = header.strip_prefix(CLAIMS)?;
    if let Some(names) = rest.strip_prefix('.') {
        return Some(names.split('.').collect());
    }
    Some(rest.strip_prefix('[')?.strip_suffix(']')?.split("][").collect())
}
