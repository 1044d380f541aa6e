//! Tokens; the decision is `ir::JwtAuthn`'s. Keys that it lacks are fetched while the request waits; each worker has its own, as with
//! Envoy.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use lateen_ir::{
    FilterLevels, FilterRouteConfig, Jwks, JwtAuthn, JwtCache, JwtCase, JwtError, JwtKeyring, JwtKeys,
    JwtRequest, JwtRequirement, JwtRouteConfig, JwtVerdict, RemoteJwks,
};

use super::{Step, levels, within_limits};
use crate::call::{self, Call, Called};
use crate::context::RequestContext;
use crate::failure::{Failure, Flags, Reply, underscored};
use crate::http_request::{request_view, route_again};
use crate::message::Message;
use crate::presence::Present;
use crate::snapshot::{ClusterSlot, FilterSlot};
use crate::stats::arena::StatsArena;
use crate::stats::blocks::JwtStats;

/// Under which the filter notes things.
const NAMESPACE: &str = "envoy.filters.http.jwt_authn";

/// So much of the path is told in `www-authenticate`, in bytes.
const LONGEST_PATH: usize = 256;

/// Longest key set in bytes. Envoy takes any.
const LARGEST_SET: usize = 1024 * 1024;

/// The filter of a connection manager.
pub(super) struct JwtFilter {
    pub(super) ir: Arc<JwtAuthn>,
    /// By provider, who is asked for keys; `None`: they are written down.
    asked: Box<[Option<ClusterSlot>]>,
    /// Some keys are to be fetched.
    fetches: bool,
}

impl JwtFilter {
    pub(super) fn new(ir: Arc<JwtAuthn>, mut slot: impl FnMut(&Arc<str>) -> ClusterSlot) -> Self {
        let asked = ir.providers.iter().map(|provider| match &provider.keys {
            JwtKeys::Remote(remote) => Some(slot(&remote.cluster)),
            JwtKeys::Local(_) => None,
        });
        let asked: Box<[_]> = asked.collect();
        Self { fetches: asked.iter().any(Option::is_some), asked, ir }
    }

    pub(super) fn clusters(&self) -> impl Iterator<Item = ClusterSlot> {
        self.asked.iter().copied().flatten()
    }
}

/// Keys that came, until when they are fresh.
type Fetched = Option<(Arc<Jwks>, Instant)>;

fn fresh(fetched: &Fetched, now: Instant) -> Option<&Arc<Jwks>> {
    fetched.as_ref().filter(|(_, end)| now < *end).map(|(keys, _)| keys)
}

/// One worker's side of a filter.
pub(crate) struct LocalJwt {
    stats: Rc<JwtStats>,
    cache: RefCell<JwtCache>,
    /// By provider; empty where nothing is fetched.
    keys: RefCell<Box<[Fetched]>>,
}

impl LocalJwt {
    pub(super) fn new(filter: &JwtFilter, prefix: &Arc<str>, stats: &StatsArena) -> Self {
        let name = Arc::from(format!("{prefix}\n{}", filter.ir.stat_prefix));
        let keys = filter.asked.iter().filter(|_| filter.fetches).map(|_| None);
        Self {
            stats: stats.jwt(&name),
            cache: RefCell::new(JwtCache::new(&filter.ir)),
            keys: RefCell::new(keys.collect()),
        }
    }

    fn keyring(&self) -> JwtKeyring {
        let keys = self.keys.borrow();
        if keys.is_empty() {
            return JwtKeyring::default();
        }
        let now = Instant::now();
        JwtKeyring::new(keys.iter().map(|one| fresh(one, now).cloned()))
    }

    /// Whether all keys that are fetched are there, so that none can be missing.
    fn has_all(&self, filter: &JwtFilter) -> bool {
        let (keys, now) = (self.keys.borrow(), Instant::now());
        keys.iter().zip(&filter.asked).all(|(one, asked)| asked.is_none() || fresh(one, now).is_some())
    }
}

/// Verifies the request's tokens, and fails where they are not as required.
pub(super) fn decode(
    filter: &JwtFilter,
    local: &LocalJwt,
    name: FilterSlot,
    context: &mut RequestContext,
) -> Result<Step, Failure> {
    let JwtFilter { ir, .. } = filter;
    if ir.bypass_cors_preflight && is_preflight(context) {
        local.stats.cors_preflight_bypassed.inc();
        local.stats.allowed.add(1);
        return Ok(Step::Next);
    }
    let requirement = match ir.requirement(of_route(context, name), &request_view(context)) {
        Ok(requirement) => requirement,
        Err(reason) => {
            local.stats.denied.add(1);
            return Err(misnamed(ir, &reason));
        }
    };
    let Some(requirement) = requirement else {
        local.stats.allowed.add(1);
        return Ok(Step::Next);
    };
    let trial = Trial { filter: ir, requirement, local, now: now() };
    let keys = local.keyring();
    // To find out whose keys are missing is to verify the tokens once more.
    if filter.fetches && !local.has_all(filter) && trial.missing(context, &keys).is_some() {
        return Ok(Step::Pause);
    }
    trial.judge(context, &keys).map(|()| Step::Next)
}

/// Fetches the keys that are missing, and goes on as [`decode`] does with them.
pub(super) async fn fetch(
    filter: &JwtFilter,
    local: &LocalJwt,
    name: FilterSlot,
    context: &mut RequestContext,
) -> Result<(), Failure> {
    let requirement = filter.ir.requirement(of_route(context, name), &request_view(context));
    // `decode` found it; without one there is nothing to verify.
    let Ok(Some(requirement)) = requirement else { return Ok(()) };
    let trial = Trial { filter: &filter.ir, requirement, local, now: now() };
    let mut keys = local.keyring();
    while let Some((provider, remote)) = trial.missing(context, &keys) {
        let fetched = match call(filter.asked[provider], remote, context) {
            Some(call) => within_limits(context, call.send()).await?.ok().and_then(key_set),
            None => None,
        };
        match &fetched {
            Some(fetched) => {
                local.stats.jwks_fetch_success.inc();
                let fresh = (fetched.clone(), Instant::now() + remote.cache_duration);
                local.keys.borrow_mut()[provider] = Some(fresh);
            }
            None => local.stats.jwks_fetch_failed.inc(),
        }
        keys.set(provider, fetched);
    }
    trial.judge(context, &keys)
}

/// Seconds since the epoch.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// What a request's tokens are judged by, whichever keys are there.
struct Trial<'f> {
    filter: &'f JwtAuthn,
    requirement: &'f JwtRequirement,
    local: &'f LocalJwt,
    /// Seconds since the epoch.
    now: u64,
}

impl<'f> Trial<'f> {
    /// The provider whose keys are needed next, found out with a copy of the request's head.
    fn missing(&self, context: &RequestContext, keys: &JwtKeyring) -> Option<(usize, &'f RemoteJwks)> {
        let (mut headers, mut path) = (context.head.headers.clone(), context.path.clone());
        let request = JwtRequest { headers: &mut headers, path: &mut path };
        let cache = &mut self.local.cache.borrow_mut();
        let Self { filter, requirement, now, .. } = *self;
        filter.missing_keys(JwtCase { requirement, request, now, cache, keys })
    }

    fn judge(&self, context: &mut RequestContext, keys: &JwtKeyring) -> Result<(), Failure> {
        let Self { filter, requirement, local, now } = *self;
        // What is told of the request is what came.
        let realm = realm(context);
        let request = JwtRequest { headers: &mut context.head.headers, path: &mut context.path };
        let cache = &mut local.cache.borrow_mut();
        let verdict = filter.judge(JwtCase { requirement, request, now, cache, keys });
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
        if result.is_ok() { &local.stats.allowed } else { &local.stats.denied }.add(1);
        result.map_err(|error| refusal(filter, error, &realm))
    }
}

/// The question for keys; `None`: there is nobody to ask.
fn call(cluster: Option<ClusterSlot>, remote: &RemoteJwks, context: &RequestContext) -> Option<Call> {
    let worker = &context.connection.worker;
    let cluster = context.view.cluster(cluster?, worker)?;
    // Envoy's fetcher says so, too.
    let mut headers = HeaderMap::from_iter([(header::USER_AGENT, HeaderValue::from_static("Go-browser"))]);
    call::add_internal(&mut headers);
    call::add_own_address(&mut headers, worker);
    let message = Message {
        method: Method::GET,
        headers,
        authority: remote.authority.clone(),
        path: remote.path.clone(),
        secure: false,
    };
    Some(Call {
        worker: worker.clone(),
        cluster,
        message,
        body: Bytes::new(),
        timeout: remote.timeout,
        most_received: Some(LARGEST_SET),
        retry_policy: remote.retry_policy.clone(),
    })
}

fn key_set(answer: Called) -> Option<Arc<Jwks>> {
    let text = std::str::from_utf8(&answer.body).ok().filter(|_| answer.status == StatusCode::OK)?;
    Jwks::parse(text).ok().map(Arc::new)
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
