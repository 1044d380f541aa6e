//! External authorization: asks others whether a request may pass. What is asked and what answers mean is `ir::ExtAuthz`'s.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Method, StatusCode, Version, header};
use lateen_ir::{
    AuthzBody, AuthzChanges, AuthzConnection, AuthzDenial, AuthzRequest, AuthzService, AuthzVerdict,
    ChangeAction, ExtAuthz, ExtAuthzRoute, FilterLevels, FilterRouteConfig, HeaderChange, HeaderKey,
    PeerView, ShadowDecision,
};
use lateen_xds::pb::envoy::service::auth::v3::CheckResponse;

use super::jwt::note;
use super::{FilterState, Step, levels, within_limits};
use crate::body::RequestSource;
use crate::call::{self, Call, Called, Unanswered};
use crate::context::{ConnectionInfo, RequestContext};
use crate::failure::{Failure, Flags, Reply};
use crate::http_request::{X_ENVOY_UPSTREAM_SERVICE_TIME, request_view, route_again};
use crate::message::Message;
use crate::presence::Present;
use crate::snapshot::{ClusterSlot, FilterSlot};
use crate::stats::arena::StatsArena;
use crate::stats::blocks::{ClusterExtAuthzStats, ExtAuthzStats};
use crate::tls::CertificateFacts;

/// Under which the filter notes things.
const NAMESPACE: &str = "envoy.filters.http.ext_authz";
pub(crate) const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";
/// Bytes of a body that are received while somebody is asked.
const RECEIVED_MEANWHILE: u64 = 64 * 1024;

const FAILURE_MODE_ALLOWED: HeaderName = HeaderName::from_static("x-envoy-auth-failure-mode-allowed");

/// The filter of a connection manager.
pub(super) struct ExtAuthzFilter {
    pub(super) ir: Arc<ExtAuthz>,
    /// Who is asked.
    pub(super) cluster: ClusterSlot,
    /// Under which decisions are written down that are not carried out. `None`: they are.
    pub(super) shadow: Option<Arc<str>>,
}

/// One worker's numbers of a filter.
pub(crate) struct LocalExtAuthz {
    stats: Rc<ExtAuthzStats>,
}

impl LocalExtAuthz {
    pub(super) fn new(filter: &ExtAuthz, prefix: &Arc<str>, stats: &StatsArena) -> Self {
        let name = Arc::from(format!("{prefix}\n{}", filter.stat_prefix));
        Self { stats: stats.ext_authz(&name) }
    }
}

/// What an answer that allowed the request adds to the answer to it.
pub(crate) struct Added(Vec<HeaderChange>);

impl Added {
    pub(super) fn encode(&self, headers: &mut http::HeaderMap) {
        self.0.iter().for_each(|change| change.apply(headers));
    }
}

/// A decision that was not carried out, and its name.
pub(crate) struct Shadow {
    pub(crate) name: Arc<str>,
    pub(crate) decision: ShadowDecision,
}

fn write_down(name: &Arc<str>, context: &mut RequestContext, decision: ShadowDecision) {
    context.filters.push(FilterState::Shadow(Box::new(Shadow { name: name.clone(), decision })));
}

/// What routes say, the most specific first.
fn of_routes(context: &RequestContext, name: FilterSlot) -> impl Iterator<Item = &Arc<ExtAuthzRoute>> {
    levels(context, name).into_iter().flat_map(FilterLevels::configs).filter_map(|config| match config {
        FilterRouteConfig::ExtAuthz(config) => Some(config),
        _ => None,
    })
}

/// Where the filter notes how long the answer took, in milliseconds, beside what the answer says.
const DURATION: &str = "ext_authz_duration";

/// Whether somebody is to be asked.
pub(super) fn decode(
    filter: &ExtAuthzFilter,
    local: &LocalExtAuthz,
    name: FilterSlot,
    context: &mut RequestContext,
) -> Result<Step, Failure> {
    let is_off = of_routes(context, name).next().is_some_and(|route| route.disabled);
    if context.route.is_none() || is_off {
        return Ok(Step::Next);
    }
    let random = context.connection.worker.random();
    if filter.ir.is_enabled(random, context.metadata.as_deref()) {
        return Ok(Step::Pause);
    }
    local.stats.disabled.inc();
    if !filter.ir.deny_at_disable {
        return Ok(Step::Next);
    }
    let status = filter.ir.status_on_error;
    let Some(name) = &filter.shadow else { return Err(failed(status)) };
    local.stats.shadow_denied.inc();
    context.flags.insert(Flags::UNAUTHORIZED_EXTERNAL);
    write_down(name, context, ShadowDecision::denied_unasked(status));
    Ok(Step::Next)
}

/// Asks, and carries the answer out.
pub(super) async fn check(
    filter: &ExtAuthzFilter,
    local: &LocalExtAuthz,
    name: FilterSlot,
    context: &mut RequestContext,
) -> Result<(), Failure> {
    let body = wanted_body(&filter.ir, name, context);
    let body = match body {
        Some(settings) => Some(receive(context, settings).await?),
        None => None,
    };
    let own = of_routes(context, name).next().filter(|route| route.service.is_some()).cloned();
    let own = own.as_ref().and_then(|route| route.service.as_ref());
    let service = own.map_or(&filter.ir.service, |own| &own.service);
    let cluster = match own {
        None => Some(filter.cluster),
        Some(own) => {
            let routes = context.routes.as_ref();
            routes.and_then(|routes| routes.slots.get(own.cluster.index as usize)).copied()
        }
    };
    let body = body.as_ref().map(|(bytes, partial)| (&bytes[..], *partial));
    let call = cluster
        .and_then(|cluster| call(&filter.ir, (service, cluster), context, extensions(context, name), body));
    let began = Instant::now();
    let answer = match call {
        Some(call) => within_limits(context, answered(context.body.as_ref(), call)).await??,
        None => Err(Unanswered),
    };
    let mut verdict = answer.and_then(|answer| verdict(&filter.ir, service, answer));
    if let Ok(AuthzVerdict::Allowed(changes)) = &mut verdict
        && !changes.metadata.is_empty()
    {
        let millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        changes.metadata.insert(DURATION.to_owned(), millis.into());
    }
    settle(filter, service, local, context, verdict.unwrap_or(AuthzVerdict::Failed(None)))
}

/// The answer. What comes of the body meanwhile is received, as far as there is room: a client that is refused may then go on.
async fn answered(
    body: Option<&Rc<RequestSource>>,
    call: Call,
) -> Result<Result<Called, Unanswered>, Failure> {
    let mut answer = std::pin::pin!(call.send());
    let Some(body) = body.filter(|body| !body.ended()) else { return Ok(answer.await) };
    tokio::select! {
        biased;
        answer = &mut answer => Ok(answer),
        received = body.receive(RECEIVED_MEANWHILE) => {
            received?;
            Ok(answer.await)
        }
    }
}

fn verdict(filter: &ExtAuthz, service: &AuthzService, answer: Called) -> Result<AuthzVerdict, Unanswered> {
    match service {
        AuthzService::Grpc(_) => Ok(filter.grpc_verdict(answer.grpc_message::<CheckResponse>()?)),
        AuthzService::Http(service) => {
            let Called { status, mut headers, body, took, .. } = answer;
            let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            headers.insert(X_ENVOY_UPSTREAM_SERVICE_TIME, millis.into());
            Ok(filter.http_verdict(service, status, headers, &body))
        }
    }
}

/// How much of the body is to be sent along; `None`: nothing, not even that there is none.
fn wanted_body(filter: &ExtAuthz, name: FilterSlot, context: &RequestContext) -> Option<AuthzBody> {
    let route = of_routes(context, name).next();
    let settings = route.and_then(|route| route.body).or(filter.body)?;
    let upgrades =
        context.head.headers.contains_key(header::UPGRADE) || context.head.method == Method::CONNECT;
    let has_body = context.body.as_ref().is_some_and(|body| !body.ended());
    (has_body && !upgrades && !route.is_some_and(|route| route.without_body)).then_some(settings)
}

/// The body as far as it is to be sent along, and whether that is only a part.
async fn receive(context: &RequestContext, settings: AuthzBody) -> Result<(Vec<u8>, bool), Failure> {
    let Some(source) = context.body.clone() else { return Ok((Vec::new(), false)) };
    let most = settings.most as u64;
    let until = if settings.partial { most } else { most.saturating_add(1) };
    within_limits(context, source.receive(until)).await??;
    let received = source.received();
    if !settings.partial && received > most {
        return Err(Failure::Answered(Box::new(too_large())));
    }
    Ok((source.kept(settings.most), received > most))
}

fn too_large() -> Reply {
    let mut reply = Reply::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "Payload Too Large",
        Flags::default(),
        "request_payload_too_large",
    );
    reply.close = true;
    reply
}

fn extensions(context: &RequestContext, name: FilterSlot) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for route in of_routes(context, name) {
        for (key, value) in &route.context_extensions {
            all.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
    all
}

fn view(facts: &CertificateFacts) -> PeerView<'_> {
    PeerView { uris: &facts.uris, dns: &facts.dns, subject: &facts.subject }
}

/// What an authorizer is told of a connection.
pub(crate) fn connection_view(info: &ConnectionInfo, certificate: bool) -> AuthzConnection<'_> {
    let tls = info.tls.as_deref();
    AuthzConnection {
        source: &info.peer,
        destination: &info.local,
        peer: tls.and_then(|tls| tls.peer()).map(|peer| view(peer)),
        own: tls.and_then(|tls| tls.local()).map(|own| view(own)),
        certificate: tls.filter(|_| certificate).and_then(|tls| tls.peer_pem()).unwrap_or_default(),
        server_name: info.server_name.as_deref().unwrap_or_default(),
        session_name: tls.and_then(|tls| tls.server_name.as_deref()).unwrap_or_default(),
    }
}

/// The question; `None`: there is nobody to ask.
fn call(
    ir: &ExtAuthz,
    (service, cluster): (&AuthzService, ClusterSlot),
    context: &RequestContext,
    extensions: BTreeMap<String, String>,
    body: Option<(&[u8], bool)>,
) -> Option<Call> {
    let worker = &context.connection.worker;
    let cluster = context.view.cluster(cluster, worker)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let request = AuthzRequest {
        id: worker.random(),
        view: request_view(context),
        protocol: match context.version {
            Version::HTTP_2 => "HTTP/2",
            Version::HTTP_10 => "HTTP/1.0",
            _ => "HTTP/1.1",
        },
        time: now.saturating_sub(context.started.elapsed()),
        size: context.bytes_received(),
        body,
        metadata: context.metadata.as_deref(),
    };
    let timeout = service.timeout();
    let (message, body, most_received) = match service {
        AuthzService::Grpc(service) => {
            let connection = connection_view(&context.connection.info, ir.include_peer_certificate);
            let question = ir.check(&connection, &request, extensions);
            let mut message = call::grpc_message(service.authority.clone(), CHECK, timeout);
            call::add_formatted(&mut message.headers, &service.initial_metadata, context);
            if !service.skip_envoy_headers {
                call::add_internal(&mut message.headers);
                call::add_own_address(&mut message.headers, worker);
            }
            (message, call::grpc_frame(&question), service.most_received)
        }
        AuthzService::Http(service) => {
            let (path, mut headers, body) = ir.http_check(service, &request);
            call::add_formatted(&mut headers, &service.headers_to_add, context);
            call::add_internal(&mut headers);
            let message = Message {
                method: context.head.method.clone(),
                headers,
                authority: context.authority.clone(),
                path: PathAndQuery::try_from(path).ok()?,
                secure: false,
            };
            (message, body, None)
        }
    };
    let retry_policy = service.retry_policy().cloned();
    Some(Call { worker: worker.clone(), cluster, message, body, timeout, most_received, retry_policy })
}

/// Carries a verdict out.
fn settle(
    filter: &ExtAuthzFilter,
    service: &AuthzService,
    local: &LocalExtAuthz,
    context: &mut RequestContext,
    verdict: AuthzVerdict,
) -> Result<(), Failure> {
    let ExtAuthzFilter { ir: filter, shadow, .. } = filter;
    let stats = &local.stats;
    let of_cluster = cluster_stats(filter, context);
    match verdict {
        AuthzVerdict::Allowed(changes) => {
            allow(filter, local, context, *changes);
            if is_too_long(context) {
                stats.request_header_limits_reached.inc();
                return Err(invalid(local, of_cluster.as_deref()));
            }
            of_cluster.iter().for_each(|of_cluster| of_cluster.ok.inc());
            stats.ok.inc();
            if let Some(name) = shadow {
                write_down(name, context, ShadowDecision::allowed());
            }
            Ok(())
        }
        AuthzVerdict::Denied(denial) => {
            let AuthzDenial { status, headers, mut body, metadata } = *denial;
            take_notes(filter, local, context, metadata);
            stats.denied.inc();
            let status = status.unwrap_or(StatusCode::FORBIDDEN);
            of_cluster.iter().for_each(|of_cluster| of_cluster.denied.inc());
            if filter.charge_cluster_response_stats
                && let Some(cluster) = &context.cluster
            {
                cluster.stats.upstream_rq_completed.inc();
                cluster.stats.statuses.inc(status.as_u16());
            }
            if let Some(name) = shadow {
                stats.shadow_denied.inc();
                write_down(name, context, ShadowDecision::denied(service, status, &headers));
                return Ok(());
            }
            if let Some(most) = filter.longest_denial {
                body.truncate(body.floor_char_boundary(most));
            }
            Err(refusal(status, body.into(), headers, "ext_authz_denied"))
        }
        AuthzVerdict::Failed(words) => {
            of_cluster.iter().for_each(|of_cluster| of_cluster.error.inc());
            stats.error.inc();
            if let Some(name) = shadow {
                stats.shadow_error.inc();
                let status = words.and_then(|words| words.status).unwrap_or(filter.status_on_error);
                write_down(name, context, ShadowDecision::failed(status));
                return Ok(());
            }
            if filter.failure_mode_allow {
                stats.failure_mode_allowed.inc();
                of_cluster.iter().for_each(|of_cluster| of_cluster.failure_mode_allowed.inc());
                if filter.failure_mode_allow_header_add {
                    let value = HeaderValue::from_static("true");
                    context.head.headers.append(FAILURE_MODE_ALLOWED, value);
                    context.present = Present::of(&context.head.headers);
                }
                return Ok(());
            }
            Err(match words {
                None => failed(filter.status_on_error),
                Some(words) => {
                    let status = words.status.unwrap_or(filter.status_on_error);
                    refusal(status, words.body.into(), words.headers, "ext_authz_error")
                }
            })
        }
        AuthzVerdict::Invalid { denial } => {
            if denial {
                stats.denied.inc();
                of_cluster.iter().for_each(|of_cluster| of_cluster.denied.inc());
            }
            Err(invalid(local, of_cluster.as_deref()))
        }
    }
}

fn invalid(local: &LocalExtAuthz, of_cluster: Option<&ClusterExtAuthzStats>) -> Failure {
    of_cluster.into_iter().for_each(|of_cluster| of_cluster.invalid.inc());
    local.stats.invalid.inc();
    refusal(StatusCode::INTERNAL_SERVER_ERROR, "".into(), Vec::new(), "ext_authz_invalid")
}

/// Whether the head has become longer than a client's may be.
fn is_too_long(context: &RequestContext) -> bool {
    let hcm = &context.connection.config.hcm;
    let headers = &context.head.headers;
    let pseudo = 4 - usize::from(headers.contains_key(header::HOST));
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    headers.len() + pseudo > hcm.common.max_headers_count as usize
        || bytes > hcm.max_request_headers_kb as usize * 1024
}

fn cluster_stats(filter: &ExtAuthz, context: &RequestContext) -> Option<Rc<ClusterExtAuthzStats>> {
    let cluster = context.cluster.as_ref()?;
    Some(cluster.ext_authz_stats(&context.connection.worker, &filter.stat_prefix))
}

fn take_notes(
    filter: &ExtAuthz,
    local: &LocalExtAuthz,
    context: &mut RequestContext,
    notes: serde_json::Map<String, serde_json::Value>,
) {
    if notes.is_empty() {
        return;
    }
    if filter.ingests_metadata {
        note(context, NAMESPACE, notes);
    } else {
        local.stats.ignored_dynamic_metadata.inc();
    }
}

/// Changes a request that passes.
fn allow(filter: &ExtAuthz, local: &LocalExtAuthz, context: &mut RequestContext, mut changes: AuthzChanges) {
    take_notes(filter, local, context, std::mem::take(&mut changes.metadata));
    for change in &changes.request {
        let after = |there: &[u8]| match change.action {
            ChangeAction::Join => [there, b",", change.value.as_bytes()].concat(),
            _ => change.value.as_bytes().to_vec(),
        };
        match &change.key {
            HeaderKey::Authority => {
                let value = HeaderValue::from_bytes(&after(context.authority.as_bytes()));
                value.into_iter().for_each(|value| context.authority = value);
            }
            HeaderKey::Path => {
                let path = PathAndQuery::try_from(after(context.path.as_str().as_bytes()));
                path.into_iter().for_each(|path| context.path = path);
            }
            HeaderKey::Method => {
                let method = Method::from_bytes(&after(context.head.method.as_str().as_bytes()));
                method.into_iter().for_each(|method| context.head.method = method);
            }
            _ => change.apply(&mut context.head.headers),
        }
    }
    for name in &changes.remove {
        context.head.headers.remove(name);
    }
    if let Some(Ok(path)) = changes.path(context.path.as_str()).map(PathAndQuery::try_from) {
        context.path = path;
    }
    context.present = Present::of(&context.head.headers);
    if !changes.response.is_empty() {
        context.filters.push(FilterState::ExtAuthz(Added(changes.response)));
    }
    if filter.clear_route_cache && changes.reroutes && !route_again(context) {
        (context.route, context.virtual_host) = (None, None);
    }
}

/// Nobody has answered.
fn failed(status: StatusCode) -> Failure {
    refusal(status, "".into(), Vec::new(), "ext_authz_error")
}

fn refusal(
    status: StatusCode,
    body: Cow<'static, str>,
    headers: Vec<(HeaderName, HeaderValue)>,
    details: &'static str,
) -> Failure {
    let mut reply = Reply::new(status, body, Flags::UNAUTHORIZED_EXTERNAL, details);
    reply.headers = headers;
    Failure::Answered(Box::new(reply))
}
