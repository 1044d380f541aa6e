//! JSON Web Tokens: the filter `jwt_authn`, its providers and requirements.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use http::uri::PathAndQuery;
use lateen_xds::pb::envoy::config::core::v3 as core;
use lateen_xds::pb::envoy::extensions::filters::http::jwt_authn::v3 as proto;

use super::matchers::{header_name, string_matcher};
use super::retry::call_retry_policy;
use super::route::route_match;
use super::values::{Converted, data_source, duration, nonempty, required, timeout};
use crate::error::At;
use crate::support::fields;
use crate::{
    Audiences, Jwks, JwksAsyncFetch, JwtAuthn, JwtKeys, JwtLocations, JwtProvider, JwtRequirement,
    JwtRouteConfig, JwtRule, RemoteJwks,
};

/// Envoy's default of `clock_skew_seconds`.
const CLOCK_SKEW: u64 = 60;

/// Envoy's defaults of `jwt_cache_size` and `jwt_max_token_size`.
const CACHE: (usize, usize) = (100, 4096);

/// A larger memory of tokens would be the worker's to hold.
const LARGEST_CACHE: usize = 100_000;

/// Ten years: a clock may not overflow.
const LONGEST_CACHE: Duration = Duration::from_secs(315_360_000);

pub(super) fn jwt_authn(at: &At<'_>, message: proto::JwtAuthentication) -> Converted<JwtAuthn> {
    fields!(at, message => proto::JwtAuthentication {
        used { providers, rules, bypass_cors_preflight, requirement_map, strip_failure_response, stat_prefix }
        inert {}
        rejected { filter_state_rules = "requirements by filter state" }
    });
    let mut names = Vec::with_capacity(providers.len());
    let mut converted = Vec::with_capacity(providers.len());
    for (name, message) in sorted(providers) {
        converted.push(provider(&at.key("providers", &name), message)?);
        names.push(name);
    }
    let known = Providers { names: &names, list: &converted };
    let mut named = Vec::with_capacity(requirement_map.len());
    for (name, message) in sorted(requirement_map) {
        let requirement = known.requirement(&at.key("requirement_map", &name), message)?;
        named.push((Box::from(name), requirement));
    }
    let rules = rules.into_iter().enumerate();
    let rules = rules
        .map(|(index, message)| rule(&at.index("rules", index), message, &known, &named))
        .collect::<Converted<_>>()?;
    Ok(JwtAuthn {
        reserved: converted.iter().flat_map(|provider| provider.locations.reserved.iter().cloned()).collect(),
        providers: converted,
        rules,
        named,
        bypass_cors_preflight,
        strip_failure_response,
        stat_prefix: stat_prefix.into(),
    })
}

pub(super) fn jwt_route(at: &At<'_>, message: proto::PerRouteConfig) -> Converted<Arc<JwtRouteConfig>> {
    use proto::per_route_config::RequirementSpecifier;
    fields!(at, message => proto::PerRouteConfig {
        used { requirement_specifier }
        inert {}
        rejected {}
    });
    Ok(Arc::new(match required(at, "requirement_specifier", requirement_specifier)? {
        RequirementSpecifier::Disabled(true) => JwtRouteConfig::Disabled,
        RequirementSpecifier::Disabled(false) => return Err(at.error_in("disabled", "must be true")),
        RequirementSpecifier::RequirementName(name) => {
            JwtRouteConfig::Named((*nonempty(at, "requirement_name", name)?).into())
        }
    }))
}

fn sorted<T>(map: HashMap<String, T>) -> Vec<(String, T)> {
    let mut list: Vec<_> = map.into_iter().collect();
    list.sort_by(|a, b| a.0.cmp(&b.0));
    list
}

fn rule(
    at: &At<'_>,
    message: proto::RequirementRule,
    providers: &Providers<'_>,
    named: &[(Box<str>, JwtRequirement)],
) -> Converted<JwtRule> {
    use proto::requirement_rule::RequirementType;
    fields!(at, message => proto::RequirementRule {
        used { r#match, requirement_type }
        inert {}
        rejected {}
    });
    let at_match = at.field("match");
    let matching = route_match(&at_match, required(at, "match", r#match)?)?;
    let ignored = [
        (matching.runtime_fraction.is_some(), "runtime_fraction"),
        (matching.grpc, "grpc"),
        (!matching.metadata.is_empty(), "dynamic_metadata"),
    ];
    if let Some((_, field)) = ignored.iter().find(|(set, _)| *set) {
        return Err(at_match.error_in(field, "not supported: Envoy's filter does not look at it either"));
    }
    let requires = match requirement_type {
        None => None,
        Some(RequirementType::Requires(requirement)) => {
            Some(providers.requirement(&at.field("requires"), requirement)?)
        }
        Some(RequirementType::RequirementName(name)) => {
            let found = named.iter().find(|(known, _)| **known == *name);
            let missing = || at.error_in("requirement_name", format!("{name:?} is not in requirement_map"));
            Some(found.map(|(_, requirement)| requirement.clone()).ok_or_else(missing)?)
        }
    };
    Ok(JwtRule { matching, requires })
}

/// Providers by name.
struct Providers<'a> {
    names: &'a [String],
    list: &'a [JwtProvider],
}

impl Providers<'_> {
    fn position(&self, at: &At<'_>, name: &str) -> Converted<usize> {
        let found = self.names.iter().position(|known| known == name);
        found.ok_or_else(|| at.error_in("provider_name", format!("provider {name:?} is not configured")))
    }

    fn requirement(&self, at: &At<'_>, message: proto::JwtRequirement) -> Converted<JwtRequirement> {
        use proto::jwt_requirement::RequiresType;
        fields!(at, message => proto::JwtRequirement {
            used { requires_type }
            inert {}
            rejected {}
            variants { extract_only_without_validation = "tokens that nobody verifies" }
        });
        let provider = |name: &str, audiences| {
            Ok(JwtRequirement::Provider { provider: self.position(at, name)?, audiences })
        };
        match requires_type {
            None => Ok(JwtRequirement::Nothing),
            Some(RequiresType::ProviderName(name)) => provider(&name, None),
            Some(RequiresType::ProviderAndAudiences(both)) => {
                let at = at.field("provider_and_audiences");
                let audiences = Some(both.audiences).filter(|list| !list.is_empty());
                Ok(JwtRequirement::Provider {
                    provider: self.position(&at, &both.provider_name)?,
                    audiences: audiences.map(|list| Audiences::new(&list)),
                })
            }
            Some(RequiresType::RequiresAny(any)) => self.any(&at.field("requires_any"), any.requirements),
            Some(RequiresType::RequiresAll(all)) => {
                Ok(JwtRequirement::All(self.several(&at.field("requires_all"), all.requirements)?))
            }
            Some(RequiresType::AllowMissing(_)) => Ok(self.optional(false)),
            Some(RequiresType::AllowMissingOrFailed(_)) => Ok(self.optional(true)),
            Some(RequiresType::ExtractOnlyWithoutValidation(_)) => {
                let reason = "not supported: tokens that nobody verifies";
                Err(at.error_in("extract_only_without_validation", reason))
            }
        }
    }

    fn several(&self, at: &At<'_>, list: Vec<proto::JwtRequirement>) -> Converted<Vec<JwtRequirement>> {
        if list.len() < 2 {
            return Err(at.error_in("requirements", "must have at least two elements"));
        }
        let one = |(index, message)| self.requirement(&at.index("requirements", index), message);
        list.into_iter().enumerate().map(one).collect()
    }

    /// What is optional is no requirement of its own beside others.
    fn any(&self, at: &At<'_>, list: Vec<proto::JwtRequirement>) -> Converted<JwtRequirement> {
        let list = self.several(at, list)?;
        let optional = |wanted: bool| {
            list.iter().any(|one| matches!(one, JwtRequirement::Optional { failed, .. } if *failed == wanted))
        };
        let (missing, failed) = (optional(false), optional(true));
        let mut list = list;
        list.retain(|one| !matches!(one, JwtRequirement::Optional { .. }));
        if list.is_empty() {
            list.push(self.optional(failed));
        }
        Ok(JwtRequirement::Any { list, missing, failed })
    }

    fn optional(&self, failed: bool) -> JwtRequirement {
        let mut locations = JwtLocations::default();
        self.list.iter().for_each(|provider| locations.merge(&provider.locations));
        JwtRequirement::Optional { locations, failed }
    }
}

fn provider(at: &At<'_>, message: proto::JwtProvider) -> Converted<JwtProvider> {
    use proto::jwt_provider::JwksSourceSpecifier;
    fields!(at, message => proto::JwtProvider {
        used {
            issuer, audiences, subjects, require_expiration, max_lifetime, forward, from_headers, from_params,
            from_cookies, forward_payload_header, pad_forward_payload_header, payload_in_metadata,
            normalize_payload_in_metadata, header_in_metadata, failed_status_in_metadata, clock_skew_seconds,
            jwt_cache_config, claim_to_headers, clear_route_cache, jwks_source_specifier,
        }
        inert {}
        rejected {}
    });
    let keys = match required(at, "jwks_source_specifier", jwks_source_specifier)? {
        JwksSourceSpecifier::LocalJwks(source) => {
            let at = at.field("local_jwks");
            let bytes = data_source(&at, source)?;
            // As with Envoy, no text at all refuses all tokens, a bad one the configuration.
            let keys = (!bytes.is_empty()).then(|| Jwks::parse(&String::from_utf8_lossy(&bytes)));
            JwtKeys::Local(keys.transpose().map_err(|reason| at.error(format!("not a key set: {reason}")))?)
        }
        JwksSourceSpecifier::RemoteJwks(remote) => {
            JwtKeys::Remote(Arc::new(remote_keys(&at.field("remote_jwks"), remote)?))
        }
    };
    let payload_header = match &*forward_payload_header {
        "" => None,
        name => Some(header_name(at, "forward_payload_header", name)?),
    };
    let claim_headers = claim_to_headers
        .into_iter()
        .enumerate()
        .map(|(index, message)| claim_header(&at.index("claim_to_headers", index), message))
        .collect::<Converted<Vec<_>>>()?;
    let mut locations = locations(at, &issuer, from_headers, &from_params, &from_cookies)?;
    locations.reserved =
        payload_header.iter().chain(claim_headers.iter().map(|(name, _)| name)).cloned().collect();
    Ok(JwtProvider {
        audiences: Audiences::new(&audiences),
        subjects: subjects.map(|matcher| string_matcher(&at.field("subjects"), matcher)).transpose()?,
        require_expiration,
        max_lifetime: duration(at, "max_lifetime", max_lifetime)?.map(|most| most.as_secs_f64()),
        clock_skew: if clock_skew_seconds == 0 { CLOCK_SKEW } else { clock_skew_seconds.into() },
        keys,
        locations,
        forward,
        payload_header,
        pad_payload: pad_forward_payload_header,
        claim_headers,
        payload_in_metadata: payload_in_metadata.into(),
        header_in_metadata: header_in_metadata.into(),
        failure_in_metadata: failed_status_in_metadata.into(),
        space_delimited: words(normalize_payload_in_metadata),
        clear_route_cache,
        cache: jwt_cache_config.map(|config| cache(at, config)).transpose()?,
        issuer: issuer.into(),
    })
}

/// Which tries of a fetch are repeated, whatever the policy says.
const RETRY_ON: &str = "5xx,gateway-error,connect-failure,reset";

/// Envoy's default of `cache_duration`.
const CACHE_DURATION: Duration = Duration::from_secs(600);

/// Keys are fetched again so long before `cache_duration` ends.
const REFETCH_BEFORE: Duration = Duration::from_secs(5);

/// Envoy's default of `failed_refetch_duration`.
const FAILED_REFETCH: Duration = Duration::from_secs(1);

fn remote_keys(at: &At<'_>, message: proto::RemoteJwks) -> Converted<RemoteJwks> {
    use core::http_uri::HttpUpstreamType;
    fields!(at, message => proto::RemoteJwks {
        used { http_uri, cache_duration, async_fetch, retry_policy }
        inert {}
        rejected {}
    });
    let at_uri = at.field("http_uri");
    let core::HttpUri { uri, timeout, http_upstream_type } = required(at, "http_uri", http_uri)?;
    let HttpUpstreamType::Cluster(cluster) = required(&at_uri, "cluster", http_upstream_type)?;
    let uri = nonempty(&at_uri, "uri", uri)?;
    let rest = uri.split_once("://").map_or(&*uri, |(_, rest)| rest);
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let wrong = || at_uri.error_in("uri", format!("{uri:?} is not a URI"));
    let retry_policy =
        retry_policy.map(|policy| core::RetryPolicy { retry_on: RETRY_ON.to_owned(), ..policy });
    // Of less than a second nothing counts, as with Envoy.
    let cache_duration = duration(at, "cache_duration", cache_duration)?.unwrap_or(CACHE_DURATION);
    if !(Duration::from_millis(1)..=LONGEST_CACHE).contains(&cache_duration) {
        return Err(at.error_in("cache_duration", "must be from 0.001s to 315360000s"));
    }
    let cache_duration = Duration::from_secs(cache_duration.as_secs());
    let async_fetch =
        async_fetch.map(|fetch| self::async_fetch(&at.field("async_fetch"), fetch, cache_duration));
    Ok(RemoteJwks {
        cluster: nonempty(&at_uri, "cluster", cluster)?,
        authority: HeaderValue::try_from(authority).map_err(|_| wrong())?,
        path: PathAndQuery::try_from(if path.is_empty() { "/" } else { path }).map_err(|_| wrong())?,
        timeout: self::timeout(&at_uri, "timeout", Some(required(&at_uri, "timeout", timeout)?), None)?,
        cache_duration,
        retry_policy: call_retry_policy(at, retry_policy)?,
        async_fetch: async_fetch.transpose()?,
    })
}

fn async_fetch(
    at: &At<'_>,
    message: proto::JwksAsyncFetch,
    cache_duration: Duration,
) -> Converted<JwksAsyncFetch> {
    fields!(at, message => proto::JwksAsyncFetch {
        used { fast_listener, failed_refetch_duration }
        inert {}
        rejected {}
    });
    let failed = duration(at, "failed_refetch_duration", failed_refetch_duration)?.unwrap_or(FAILED_REFETCH);
    if failed > LONGEST_CACHE {
        return Err(at.error_in("failed_refetch_duration", "must be at most 315360000s"));
    }
    let early = if cache_duration > REFETCH_BEFORE { REFETCH_BEFORE } else { Duration::ZERO };
    Ok(JwksAsyncFetch { fast_listener, refetch_after: cache_duration - early, failed_refetch_after: failed })
}

fn words(message: Option<proto::jwt_provider::NormalizePayload>) -> Vec<Box<str>> {
    let Some(message) = message else { return Vec::new() };
    fields!(at, message => proto::jwt_provider::NormalizePayload {
        used { space_delimited_claims }
        inert {}
        rejected {}
    });
    space_delimited_claims.into_iter().map(Into::into).collect()
}

fn cache(at: &At<'_>, message: proto::JwtCacheConfig) -> Converted<(usize, usize)> {
    let at = at.field("jwt_cache_config");
    fields!(&at, message => proto::JwtCacheConfig {
        used { jwt_cache_size, jwt_max_token_size }
        inert {}
        rejected {}
    });
    let or = |given: u32, default: usize| if given == 0 { default } else { given as usize };
    let size = or(jwt_cache_size, CACHE.0);
    if size > LARGEST_CACHE {
        return Err(at.error_in("jwt_cache_size", format!("must be at most {LARGEST_CACHE}")));
    }
    Ok((size, or(jwt_max_token_size, CACHE.1)))
}

fn locations(
    at: &At<'_>,
    issuer: &str,
    headers: Vec<proto::JwtHeader>,
    params: &[String],
    cookies: &[String],
) -> Converted<JwtLocations> {
    let mut locations = JwtLocations::default();
    if headers.is_empty() && params.is_empty() && cookies.is_empty() {
        locations.add_default(issuer);
    }
    for (index, header) in headers.into_iter().enumerate() {
        let at = at.index("from_headers", index);
        fields!(&at, header => proto::JwtHeader {
            used { name, value_prefix }
            inert {}
            rejected {}
        });
        locations.add_header(issuer, header_name(&at, "name", &name)?, &value_prefix);
    }
    params.iter().for_each(|name| locations.add_param(issuer, name));
    cookies.iter().for_each(|name| locations.add_cookie(issuer, name));
    Ok(locations)
}

fn claim_header(
    at: &At<'_>,
    message: proto::JwtClaimToHeader,
) -> Converted<(http::HeaderName, Vec<Box<str>>)> {
    fields!(at, message => proto::JwtClaimToHeader {
        used { header_name, claim_name, claim_path }
        inert {}
        rejected {}
    });
    let name = self::header_name(at, "header_name", &header_name)?;
    let path: Vec<Box<str>> = match (claim_name.is_empty(), claim_path.is_empty()) {
        (false, true) => claim_name.split('.').map(Into::into).collect(),
        (true, false) => claim_path.into_iter().map(|segment| segment.key.into()).collect(),
        _ => return Err(at.error_in("claim_name", "one of claim_name and claim_path must be set")),
    };
    Ok((name, path))
}
