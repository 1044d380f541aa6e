//! Whether a request's tokens are what is required, as Envoy's `jwt_authn` filter decides it. Pure: the request's head goes in
//! and comes out as later filters and the application see it, with what there is to note about the tokens.

use std::sync::Arc;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Map, Value, json};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::jwt::{Jwt, JwtError};
use crate::jwt_cache::JwtCache;
use crate::jwt_claims::{claim, claim_text, split_words};
use crate::jwt_keys::{JwtKeyring, JwtKeys, RemoteJwks};
use crate::jwt_locations::{self, Found, JwtLocations, JwtRequest};
use crate::{RequestView, RouteMatcher, StringMatcher};

/// Envoy's `jwt_authn.v3.JwtAuthentication`.
#[derive(Clone, Debug, Default)]
pub struct JwtAuthn {
    /// In the order of their names.
    pub providers: Vec<JwtProvider>,
    /// The first that matches a request decides.
    pub rules: Vec<JwtRule>,
    /// By name, for routes.
    pub named: Vec<(Box<str>, JwtRequirement)>,
    /// Headers that only the filter may write: those of all providers.
    pub reserved: Vec<HeaderName>,
    /// CORS preflights carry no tokens and need none.
    pub bypass_cors_preflight: bool,
    /// Refusals do not say why.
    pub strip_failure_response: bool,
    /// What stands behind `jwt_authn.` in the names of stats.
    pub stat_prefix: Box<str>,
}

/// What a route says: Envoy's `jwt_authn.v3.PerRouteConfig`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JwtRouteConfig {
    /// Nothing is required.
    Disabled,
    /// The requirement of this name.
    Named(Box<str>),
}

/// Which requests need what.
#[derive(Clone, Debug)]
pub struct JwtRule {
    /// Which requests.
    pub matching: RouteMatcher,
    /// `None`: nothing.
    pub requires: Option<JwtRequirement>,
}

/// Envoy's `jwt_authn.v3.JwtRequirement`.
#[derive(Clone, Debug)]
pub enum JwtRequirement {
    /// Nothing.
    Nothing,
    /// A token of this provider.
    Provider {
        /// Position in [`JwtAuthn::providers`].
        provider: usize,
        /// In place of the provider's.
        audiences: Option<Audiences>,
    },
    /// One of these is enough.
    Any {
        /// In order.
        list: Vec<JwtRequirement>,
        /// No token is fine, too.
        missing: bool,
        /// Bad ones are fine, too.
        failed: bool,
    },
    /// All of these.
    All(Vec<JwtRequirement>),
    /// All tokens of any provider are good; none is fine, too. With `failed` bad ones as well.
    Optional {
        /// Places of all providers.
        locations: JwtLocations,
        /// Bad tokens are fine.
        failed: bool,
    },
}

/// Envoy's `jwt_authn.v3.JwtProvider`.
#[derive(Clone, Debug)]
pub struct JwtProvider {
    /// `iss` of its tokens; empty: any.
    pub issuer: Box<str>,
    /// For whom its tokens must be.
    pub audiences: Audiences,
    /// What `sub` must be.
    pub subjects: Option<StringMatcher>,
    /// Tokens must expire.
    pub require_expiration: bool,
    /// Longest time until they do, in seconds.
    pub max_lifetime: Option<f64>,
    /// Seconds by which clocks may differ. Default 60.
    pub clock_skew: u64,
    /// Its keys.
    pub keys: JwtKeys,
    /// Where its tokens are.
    pub locations: JwtLocations,
    /// Good tokens stay in the request.
    pub forward: bool,
    /// Header for the payload in Base64.
    pub payload_header: Option<HeaderName>,
    /// With `=` at the end, so that its length is a multiple of 4.
    pub pad_payload: bool,
    /// Headers and the claims they get.
    pub claim_headers: Vec<(HeaderName, Vec<Box<str>>)>,
    /// Key under which the claims are noted; empty: they are not.
    pub payload_in_metadata: Box<str>,
    /// Key under which the header is noted; empty: it is not.
    pub header_in_metadata: Box<str>,
    /// Key under which a failure is noted; empty: it is not.
    pub failure_in_metadata: Box<str>,
    /// Claims whose text is noted as the list of its words.
    pub space_delimited: Vec<Box<str>>,
    /// A claim that became a header, or noted claims, may change the route.
    pub clear_route_cache: bool,
    /// How many good tokens are remembered, and the longest of them in bytes.
    pub cache: Option<(usize, usize)>,
}

/// Whom tokens may be meant for. A scheme (`http`, `https`) and a slash at the end make no difference.
#[derive(Clone, Debug, Default)]
pub struct Audiences(Vec<Box<str>>);

impl Audiences {
    /// None: anybody.
    pub fn new(names: &[String]) -> Self {
        Self(names.iter().map(|name| bare(name).into()).collect())
    }

    fn allow(&self, audiences: &[Box<str>]) -> bool {
        let known = |audience: &str| self.0.iter().any(|name| **name == *bare(audience));
        self.0.is_empty() || audiences.iter().any(|audience| known(audience))
    }
}

fn bare(audience: &str) -> &str {
    let rest = audience.strip_prefix("http://").or_else(|| audience.strip_prefix("https://"));
    let rest = rest.unwrap_or(audience);
    rest.strip_suffix('/').unwrap_or(rest)
}

/// A request that is to be judged, and what there is to judge it by.
#[derive(Debug)]
pub struct JwtCase<'a> {
    /// What it needs, by [`JwtAuthn::requirement`].
    pub requirement: &'a JwtRequirement,
    /// Its head, which changes as the filter changes it.
    pub request: JwtRequest<'a>,
    /// Seconds since the epoch.
    pub now: u64,
    /// Tokens that were good before.
    pub cache: &'a mut JwtCache,
    /// Keys that were fetched. What it lacks could not be.
    pub keys: &'a JwtKeyring,
}

/// How a request fared.
#[derive(Debug)]
pub struct JwtVerdict {
    /// Whether it passes.
    pub result: Result<(), JwtError>,
    /// To be noted of it, under the filter's name.
    pub metadata: Map<String, Value>,
    /// The route is to be chosen anew.
    pub clear_route: bool,
    /// Tokens found in the cache, and those that were not.
    pub cached: (u64, u64),
}

impl JwtAuthn {
    /// Takes out what only the filter may write, before anything else is done, so that no application believes what a client says
    /// where nothing is required of it. Whether there was something.
    pub fn clean(&self, headers: &mut HeaderMap) -> bool {
        self.reserved.iter().filter(|name| headers.remove(*name).is_some()).count() > 0
    }

    /// What a request needs.
    ///
    /// # Errors
    /// The route names a requirement that does not exist; Envoy's words for it.
    pub fn requirement(
        &self,
        route: Option<&JwtRouteConfig>,
        request: &RequestView<'_>,
    ) -> Result<Option<&JwtRequirement>, String> {
        match route {
            Some(JwtRouteConfig::Disabled) => Ok(None),
            Some(JwtRouteConfig::Named(name)) => {
                let found = self.named.iter().find(|(known, _)| known == name);
                found.map(|(_, requirement)| Some(requirement)).ok_or_else(|| self.wrong_name(name))
            }
            None => {
                let rule = self.rules.iter().find(|rule| rule.matching.is_match(request, 0));
                Ok(rule.and_then(|rule| rule.requires.as_ref()))
            }
        }
    }

    /// Envoy's words for a requirement that does not exist.
    pub(crate) fn wrong_name(&self, name: &str) -> String {
        let known: Vec<&str> = self.named.iter().map(|(name, _)| &**name).collect();
        format!("Wrong requirement_name: {name}. It should be one of [{}]", known.join(","))
    }

    /// Judges a request's tokens and changes its head accordingly.
    pub fn judge(&self, case: JwtCase<'_>) -> JwtVerdict {
        self.work(case, Purpose::Judge).0
    }

    /// The provider whose keys must be fetched before a request can be judged, if there is one. The request's head is of no use
    /// afterwards.
    pub fn missing_keys(&self, case: JwtCase<'_>) -> Option<(usize, &RemoteJwks)> {
        let (_, missing) = self.work(case, Purpose::FindMissing);
        missing.and_then(|position| match &self.providers[position].keys {
            JwtKeys::Remote(remote) => Some((position, &**remote)),
            JwtKeys::Local(_) => None,
        })
    }

    /// Judges a request as if it had a token of these claims with a good signature, where the tokens of their issuer are looked
    /// for. `now`: seconds since the epoch. Also: whether the token stays in the request for whoever comes next. (The request is without it in any case.)
    pub fn suppose(
        &self,
        requirement: &JwtRequirement,
        request: JwtRequest<'_>,
        claims: &Map<String, Value>,
        now: u64,
    ) -> (JwtVerdict, bool) {
        let issuer = claims.get("iss").and_then(Value::as_str).unwrap_or_default();
        let of_issuer = self.providers.iter().find(|one| one.issuer.is_empty() || *one.issuer == *issuer);
        let mut anywhere = JwtLocations::default();
        anywhere.add_default(issuer);
        let locations = of_issuer.map_or(&anywhere, |provider| &provider.locations);
        let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let header = encode(&json!({ "alg": "ES256", "typ": "JWT" }));
        let token = format!("{header}.{}.c3VwcG9zZWQ", encode(&claims.clone().into()));
        let JwtRequest { headers, path } = request;
        locations.put(&mut JwtRequest { headers, path }, &token);
        let mut cache = JwtCache::default();
        let request = JwtRequest { headers, path };
        let keys = JwtKeyring::default();
        let case = JwtCase { requirement, request, now, cache: &mut cache, keys: &keys };
        let (verdict, _) = self.work(case, Purpose::Suppose);
        let left = locations.find(&JwtRequest { headers, path });
        let mut stays = false;
        for found in left.iter().filter(|found| found.token == token) {
            stays = true;
            jwt_locations::remove(&mut JwtRequest { headers, path }, found.place);
        }
        (verdict, stays)
    }

    fn work(&self, case: JwtCase<'_>, purpose: Purpose) -> (JwtVerdict, Option<usize>) {
        let requirement = case.requirement;
        let mut work = Work {
            filter: self,
            case,
            missing: None,
            purpose,
            metadata: Map::new(),
            clear_route: false,
            cached: (0, 0),
        };
        let result = work.check(requirement);
        let Work { metadata, clear_route, cached, missing, .. } = work;
        (JwtVerdict { result, metadata, clear_route, cached }, missing)
    }
}

/// What a request is looked at for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Judge,
    /// Which keys there would have to be. Nothing is remembered.
    FindMissing,
    /// As if all signatures were good.
    Suppose,
}

struct Work<'a, 'r> {
    filter: &'a JwtAuthn,
    case: JwtCase<'r>,
    /// The first provider whose keys would have had to be fetched.
    missing: Option<usize>,
    purpose: Purpose,
    metadata: Map<String, Value>,
    clear_route: bool,
    cached: (u64, u64),
}

/// How one place's tokens are judged.
struct Terms<'a> {
    locations: &'a JwtLocations,
    /// `None`: the token's issuer tells.
    provider: Option<usize>,
    audiences: Option<&'a Audiences>,
    missing: bool,
    failed: bool,
}

impl<'a> Work<'a, '_> {
    fn check(&mut self, requirement: &'a JwtRequirement) -> Result<(), JwtError> {
        match requirement {
            JwtRequirement::Nothing => Ok(()),
            JwtRequirement::Provider { provider, audiences } => self.tokens(&Terms {
                locations: &self.filter.providers[*provider].locations,
                provider: Some(*provider),
                audiences: audiences.as_ref(),
                missing: false,
                failed: false,
            }),
            JwtRequirement::Optional { locations, failed } => self.tokens(&Terms {
                locations,
                provider: None,
                audiences: None,
                missing: true,
                failed: *failed,
            }),
            JwtRequirement::Any { list, missing, failed } => self.any(list, *missing, *failed),
            JwtRequirement::All(list) => list.iter().try_for_each(|one| self.check(one)),
        }
    }

    fn any(&mut self, list: &'a [JwtRequirement], missing: bool, failed: bool) -> Result<(), JwtError> {
        let mut worst = JwtError::Missing;
        for one in list {
            let Err(error) = self.check(one) else { return Ok(()) };
            // An unknown issuer says more than a missing token, and anything else more than that.
            if !matches!(error, JwtError::Missing | JwtError::UnknownIssuer) || worst == JwtError::Missing {
                worst = error;
            }
        }
        if failed || (missing && worst == JwtError::Missing) { Ok(()) } else { Err(worst) }
    }

    /// All tokens there are, the last place first.
    fn tokens(&mut self, terms: &Terms<'a>) -> Result<(), JwtError> {
        for name in &terms.locations.reserved {
            self.case.request.headers.remove(name);
        }
        let mut found = terms.locations.find(&self.case.request);
        let mut cleared = false;
        let mut judged_by = terms.provider;
        let mut result = Err(JwtError::Missing);
        if found.is_empty() {
            self.note_failure(None, terms.provider, JwtError::Missing);
        }
        while let Some(token) = found.pop() {
            result = self.token(&token, terms, &mut judged_by, &mut cleared);
            if result.is_err() && !terms.missing && !terms.failed {
                break;
            }
        }
        self.clear_route |= cleared;
        match result {
            Err(_) if terms.failed => Ok(()),
            Err(JwtError::Missing) if terms.missing => Ok(()),
            result => result,
        }
    }

    /// `judged_by`: the provider of the token before. As in Envoy what is no token fails at that one, for lack of its own.
    fn token(
        &mut self,
        found: &Found<'_>,
        terms: &Terms<'a>,
        judged_by: &mut Option<usize>,
        cleared: &mut bool,
    ) -> Result<(), JwtError> {
        let known = terms.provider.and_then(|provider| self.case.cache.get(provider, &found.token));
        if terms.provider.is_some() {
            let (hits, misses) = &mut self.cached;
            *if known.is_some() { hits } else { misses } += 1;
        }
        let is_known = known.is_some();
        let jwt = match known {
            Some(jwt) => Ok(jwt),
            None => Jwt::parse(&found.token).map(Arc::new),
        };
        let result = jwt.and_then(|jwt| {
            if !found.issuers.allow(&jwt.issuer) {
                return Err(JwtError::UnknownIssuer);
            }
            *judged_by = terms.provider.or_else(|| self.by_issuer(&jwt.issuer));
            let position = judged_by.ok_or(JwtError::UnknownIssuer)?;
            let provider = &self.filter.providers[position];
            provider.check(&jwt, terms.audiences, self.case.now)?;
            if !is_known && self.purpose != Purpose::Suppose {
                let keys = match &provider.keys {
                    JwtKeys::Local(keys) => keys.as_ref().ok_or(JwtError::NoKeys)?,
                    JwtKeys::Remote(_) => self.case.keys.of(position, &mut self.missing)?,
                };
                keys.verify(&jwt)?;
            }
            Ok((position, jwt))
        });
        match result {
            Ok((position, jwt)) => {
                let provider = &self.filter.providers[position];
                *cleared |= self.accept(provider, &jwt, found);
                if terms.provider.is_some() && !is_known && self.purpose != Purpose::FindMissing {
                    self.case.cache.put(position, &found.token, jwt);
                }
                Ok(())
            }
            Err(error) => {
                self.note_failure(*judged_by, terms.provider, error);
                Err(error)
            }
        }
    }

    /// The first provider of that issuer, else the first of any issuer.
    fn by_issuer(&self, issuer: &str) -> Option<usize> {
        let of = |issuer: &str| self.filter.providers.iter().position(|one| *one.issuer == *issuer);
        of(issuer).or_else(|| of(""))
    }

    /// What a good token changes; true: the route may be another one now.
    fn accept(&mut self, provider: &JwtProvider, jwt: &Jwt, found: &Found<'_>) -> bool {
        let headers = &mut *self.case.request.headers;
        if let Some(name) = &provider.payload_header {
            let missing = if provider.pad_payload { (4 - jwt.payload.len() % 4) % 4 } else { 0 };
            let payload = format!("{}{}", jwt.payload, &"==="[..missing]);
            append(headers, name, payload.as_bytes());
        }
        let mut changed = false;
        for (name, path) in &provider.claim_headers {
            if let Some(text) = claim(&jwt.claims, path).and_then(claim_text) {
                changed |= append(headers, name, text.as_bytes());
            }
        }
        if !provider.forward {
            jwt_locations::remove(&mut self.case.request, found.place);
        }
        if !provider.header_in_metadata.is_empty() {
            self.metadata.insert(provider.header_in_metadata.to_string(), jwt.header.clone().into());
        }
        if !provider.payload_in_metadata.is_empty() {
            changed = true;
            let mut claims = jwt.claims.clone();
            provider.space_delimited.iter().for_each(|name| split_words(&mut claims, name));
            self.metadata.insert(provider.payload_in_metadata.to_string(), claims.into());
        }
        changed && provider.clear_route_cache
    }

    /// `used`: the provider the token was judged by; without one, the only one there is.
    fn note_failure(&mut self, used: Option<usize>, asked: Option<usize>, error: JwtError) {
        let only = (self.filter.providers.len() == 1).then_some(0);
        // A provider is looked up with the first token.
        let used = if error == JwtError::Missing { only } else { used.or(asked).or(only) };
        let Some(provider) = used.map(|position| &self.filter.providers[position]) else { return };
        let key = &provider.failure_in_metadata;
        if !key.is_empty() {
            let failure = json!({ "code": error as u8, "message": error.text() });
            self.metadata.insert(key.to_string(), failure);
        }
    }
}

impl JwtProvider {
    /// All but the signature.
    fn check(&self, jwt: &Jwt, audiences: Option<&Audiences>, now: u64) -> Result<(), JwtError> {
        jwt.check_time(now, self.clock_skew)?;
        if !audiences.unwrap_or(&self.audiences).allow(&jwt.audiences) {
            return Err(JwtError::AudienceNotAllowed);
        }
        let subject = self.subjects.as_ref().is_none_or(|subjects| subjects.is_match(jwt.subject.as_bytes()));
        if subject && self.lifetime_allowed(jwt, now) { Ok(()) } else { Err(JwtError::VerificationFails) }
    }

    fn lifetime_allowed(&self, jwt: &Jwt, now: u64) -> bool {
        match self.max_lifetime {
            None => !self.require_expiration || jwt.expires != 0,
            Some(most) => jwt.expires != 0 && jwt.expires as f64 - (now as f64) < most,
        }
    }
}

fn append(headers: &mut HeaderMap, name: &HeaderName, value: &[u8]) -> bool {
    let value = HeaderValue::from_bytes(value);
    value.is_ok_and(|value| headers.try_append(name, value).is_ok())
}
