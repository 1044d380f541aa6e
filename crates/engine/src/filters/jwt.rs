//! Tokens; the decision is `ir::JwtAuthn`'s.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use http::header::{self, HeaderValue};
use http::{Method, StatusCode};
use lateen_ir::{
    FilterLevels, FilterRouteConfig, JwtAuthn, JwtCache, JwtError, JwtRequest, JwtRequirement,
    JwtRouteConfig, JwtVerdict,
};

use super::levels;
use crate::context::RequestContext;
use crate::failure::{Failure, Flags, Reply, underscored};
use crate::http_request::{request_view, route_again};
use crate::presence::Present;
use crate::snapshot::FilterSlot;
use crate::stats::arena::StatsArena;
use crate::stats::blocks::JwtStats;

/// Under which the filter notes things.
const NAMESPACE: &str = "envoy.filters.http.jwt_authn";

/// So much of the path is told in `www-authenticate`, in bytes.
const LONGEST_PATH: usize = 256;

/// One worker's side of a filter.
pub(crate) struct LocalJwt {
    stats: Rc<JwtStats>,
    cache: RefCell<JwtCache>,
}

impl LocalJwt {
    pub(super) fn new(filter: &JwtAuthn, prefix: &Arc<str>, stats: &StatsArena) -> Self {
        let name = Arc::from(format!("{prefix}\n{}", filter.stat_prefix));
        Self { stats: stats.jwt(&name), cache: RefCell::new(JwtCache::new(filter)) }
    }
}

/// Verifies the request's tokens, and fails where they are not as required.
pub(super) fn decode(
    filter: &JwtAuthn,
    local: &LocalJwt,
    name: FilterSlot,
    context: &mut RequestContext,
) -> Result<(), Failure> {
    if filter.bypass_cors_preflight && is_preflight(context) {
        local.stats.cors_preflight_bypassed.inc();
        local.stats.allowed.add(1);
        return Ok(());
    }
    let requirement = match filter.requirement(of_route(context, name), &request_view(context)) {
        Ok(requirement) => requirement,
        Err(reason) => {
            local.stats.denied.add(1);
            return Err(misnamed(filter, &reason));
        }
    };
    let refused = requirement.and_then(|requirement| judge(filter, requirement, local, context));
    if let Some(failure) = refused {
        local.stats.denied.add(1);
        return Err(failure);
    }
    local.stats.allowed.add(1);
    Ok(())
}

fn of_route(context: &RequestContext, name: FilterSlot) -> Option<&JwtRouteConfig> {
    levels(context, name).into_iter().flat_map(FilterLevels::configs).find_map(|config| match config {
        FilterRouteConfig::Jwt(config) => Some(&**config),
        _ => None,
    })
}

fn is_preflight(context: &RequestContext) -> bool {
    let given = |name| context.head.headers.get(name).is_some_and(|value| !value.is_empty());
    context.head.method == Method::OPTIONS
        && given(header::ORIGIN)
        && given(header::ACCESS_CONTROL_REQUEST_METHOD)
}

fn judge(
    filter: &JwtAuthn,
    requirement: &JwtRequirement,
    local: &LocalJwt,
    context: &mut RequestContext,
) -> Option<Failure> {
    // What is told of the request is what came.
    let realm = realm(context);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let request = JwtRequest { headers: &mut context.head.headers, path: &mut context.path };
    let verdict = filter.judge(requirement, request, now, &mut local.cache.borrow_mut());
    // Headers may have come and gone.
    context.present = Present::of(&context.head.headers);
    let JwtVerdict { result, metadata, clear_route, cached: (hits, misses) } = verdict;
    (0..hits).for_each(|_| local.stats.jwt_cache_hit.inc());
    (0..misses).for_each(|_| local.stats.jwt_cache_miss.inc());
    if !metadata.is_empty() {
        note(context, NAMESPACE, metadata);
    }
    if clear_route && !route_again(context) {
        (context.route, context.virtual_host) = (None, None);
    }
    result.err().map(|error| refusal(filter, error, &realm))
}

/// Adds to what is noted under a name.
pub(super) fn note(
    context: &mut RequestContext,
    namespace: &str,
    entries: serde_json::Map<String, serde_json::Value>,
) {
    context.metadata.get_or_insert_default().add(namespace, entries);
}

/// The request's URL, as far as it is told.
fn realm(context: &RequestContext) -> Vec<u8> {
    let original = context.head.headers.get("x-envoy-original-path");
    let path = original.map_or(context.path.as_str().as_bytes(), HeaderValue::as_bytes);
    let scheme: &[u8] = if context.secure { b"https://" } else { b"http://" };
    [scheme, context.authority.as_bytes(), &path[..path.len().min(LONGEST_PATH)]].concat()
}

fn details(reason: &str) -> String {
    format!("jwt_authn_access_denied{{{}}}", underscored(reason))
}

fn refusal(filter: &JwtAuthn, error: JwtError, realm: &[u8]) -> Failure {
    let status = match error {
        JwtError::AudienceNotAllowed => StatusCode::FORBIDDEN,
        _ => StatusCode::UNAUTHORIZED,
    };
    let strip = filter.strip_failure_response;
    let body = if strip { "" } else { error.text() };
    let mut reply = Reply::new(status, body, Flags::default(), details(error.text()));
    if !strip {
        let invalid: &[u8] = if error == JwtError::Missing { b"" } else { b", error=\"invalid_token\"" };
        let value = HeaderValue::from_bytes(&[b"Bearer realm=\"", realm, b"\"", invalid].concat());
        reply.headers.extend(value.map(|value| (header::WWW_AUTHENTICATE, value)));
    }
    Failure::Answered(Box::new(reply))
}

fn misnamed(filter: &JwtAuthn, reason: &str) -> Failure {
    let body = match filter.strip_failure_response {
        true => String::new(),
        false => format!("Failed JWT authentication: {reason}"),
    };
    let reply = Reply::new(StatusCode::FORBIDDEN, body, Flags::default(), details(reason));
    Failure::Answered(Box::new(reply))
}
