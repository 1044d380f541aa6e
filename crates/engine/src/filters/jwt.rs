//! Tokens; the decision is `ir::JwtAuthn`'s. Keys that it lacks are fetched while the request waits; each worker has its own, as with
//! Envoy.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use http::header::{self, HeaderValue};
use http::{Method, StatusCode};
use lateen_ir::{
    FilterLevels, FilterRouteConfig, Jwks, JwtAuthn, JwtCache, JwtCase, JwtError, JwtKeyring, JwtKeys,
    JwtRequest, JwtRequirement, JwtRouteConfig, JwtVerdict, RemoteJwks,
};

use super::jwks_fetch::{NewFetch, OwnFetch, call, key_set};
use super::{Step, levels, within_limits};
use crate::context::RequestContext;
use crate::failure::{Failure, Flags, Reply, underscored};
use crate::http_request::{request_view, route_again};
use crate::presence::Present;
use crate::snapshot::{ClusterSlot, FilterSlot};
use crate::stats::arena::StatsArena;
use crate::stats::blocks::JwtStats;

/// Under which the filter notes things.
const NAMESPACE: &str = "envoy.filters.http.jwt_authn";

/// So much of the path is told in `www-authenticate`, in bytes.
const LONGEST_PATH: usize = 256;

/// The filter of a connection manager.
pub(super) struct JwtFilter {
    pub(super) ir: Arc<JwtAuthn>,
    /// Under which it counts.
    stats: Arc<str>,
    /// By provider; `None`: its keys are written down.
    asked: Box<[Option<Asked>]>,
    /// Some keys are to be fetched.
    fetches: bool,
}

/// Who is asked for a provider's keys.
struct Asked {
    cluster: ClusterSlot,
    /// Where that is done before a request needs them.
    ahead: Option<OwnFetch>,
}

impl JwtFilter {
    /// `prefix`: the connection manager's in stats.
    pub(super) fn new(
        ir: Arc<JwtAuthn>,
        prefix: &str,
        mut slot: impl FnMut(&Arc<str>) -> ClusterSlot,
    ) -> Self {
        let stats = Arc::from(format!("{prefix}\n{}", ir.stat_prefix));
        let asked = ir.providers.iter().map(|provider| match &provider.keys {
            JwtKeys::Remote(remote) => {
                let cluster = slot(&remote.cluster);
                Some(Asked { cluster, ahead: OwnFetch::new(remote, cluster, &stats) })
            }
            JwtKeys::Local(_) => None,
        });
        let asked: Box<[_]> = asked.collect();
        Self { fetches: asked.iter().any(Option::is_some), asked, stats, ir }
    }

    pub(super) fn clusters(&self) -> impl Iterator<Item = ClusterSlot> {
        self.asked.iter().flatten().map(|asked| asked.cluster)
    }

    /// Fetches that begin before a request needs them and that nobody has begun.
    pub(super) fn new_fetches(&self) -> impl Iterator<Item = NewFetch> {
        self.asked.iter().flatten().filter_map(|asked| asked.ahead.as_ref()?.begin())
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
    pub(super) fn new(filter: &JwtFilter, stats: &StatsArena) -> Self {
        let keys = filter.asked.iter().filter(|_| filter.fetches).map(|_| None);
        Self {
            stats: stats.jwt(&filter.stats),
            cache: RefCell::new(JwtCache::new(&filter.ir)),
            keys: RefCell::new(keys.collect()),
        }
    }

    fn keyring(&self, filter: &JwtFilter) -> JwtKeyring {
        let keys = self.keys.borrow();
        if keys.is_empty() {
            return JwtKeyring::default();
        }
        let now = Instant::now();
        let all = keys.iter().zip(&filter.asked).map(|(one, asked)| {
            let ahead = asked.as_ref().and_then(|asked| asked.ahead.as_ref()?.fetch.keys());
            ahead.or_else(|| fresh(one, now).cloned())
        });
        JwtKeyring::new(all)
    }

    /// Whether all keys that are fetched are there, so that none can be missing.
    fn has_all(&self, filter: &JwtFilter) -> bool {
        let (keys, now) = (self.keys.borrow(), Instant::now());
        keys.iter().zip(&filter.asked).all(|(one, asked)| match asked {
            None => true,
            Some(asked) => {
                let ahead = asked.ahead.as_ref().is_some_and(|ahead| ahead.fetch.has_keys());
                ahead || fresh(one, now).is_some()
            }
        })
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
    if ir.clean(&mut context.head.headers) {
        context.present = Present::of(&context.head.headers);
    }
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
    let keys = local.keyring(filter);
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
    let mut keys = local.keyring(filter);
    while let Some((provider, remote)) = trial.missing(context, &keys) {
        let asked = filter.asked[provider].as_ref();
        let worker = &context.connection.worker;
        let fetched = match asked.and_then(|asked| call(asked.cluster, remote, &context.view, worker)) {
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

/// The request's URL, as far as it is told; a CONNECT has none.
fn realm(context: &RequestContext) -> Vec<u8> {
    if context.head.method == Method::CONNECT {
        return Vec::new();
    }
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
