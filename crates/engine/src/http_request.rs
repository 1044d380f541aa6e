//! The life of a request, top to bottom: receive and normalise (5), route (6), forward to an endpoint (7 to 9), answer.
//! Finishing (10: stats, log) happens when the context is dropped.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode, Version, request};
use hyper::ext::ReasonPhrase;
use lateen_ir::{Action, RequestView, ServerHeader};

use crate::answer::Answer;
use crate::body::{RequestSource, ResponseBody};
use crate::connect::Tunnel;
use crate::context::{HttpConnection, RequestContext};
use crate::failure::{self, Failure};
use crate::filters::{self, Flow};
use crate::hop_by_hop;
use crate::http2::Beside;
use crate::incoming::Incoming;
use crate::ingress::{self, Normalised, X_REQUEST_ID, append_via};
use crate::presence::Present;
use crate::response_stream::ResponseStream;
use crate::upgrade::{self, Far, Upgrade};
use crate::{
    connect, forward, header_mutations, interim, internal_redirect, local_reply, redirect, well_formed,
};

pub(crate) const X_ENVOY_ATTEMPT_COUNT: HeaderName = HeaderName::from_static("x-envoy-attempt-count");
pub(crate) const X_ENVOY_UPSTREAM_SERVICE_TIME: HeaderName =
    HeaderName::from_static("x-envoy-upstream-service-time");

/// What Envoy calls 599.
const LAST_REASON: ReasonPhrase = ReasonPhrase::from_static(b"Last Unassigned Server Error Code");

/// What Envoy calls 203.
const NON_AUTHORITATIVE: ReasonPhrase = ReasonPhrase::from_static(b"Non-Authoritative Information");

/// What Envoy calls a status it has no words for.
const UNKNOWN_REASON: ReasonPhrase = ReasonPhrase::from_static(b"Unknown");

/// Receives a request, whose answer is awaited.
pub(crate) fn serve(
    connection: Rc<HttpConnection>,
    mut head: request::Parts,
    body: Incoming,
    beside: Beside,
) -> impl Future<Output = Result<Response<ResponseBody>, Unanswered>> {
    count_request(&connection, &head);
    let asks = head.method == Method::CONNECT || head.headers.contains_key(header::UPGRADE);
    let upgrade = if asks { Upgrade::begin(&mut head, beside.tunnel) } else { None };
    let present = Present::of(&head.headers);
    if head.version < Version::HTTP_2 {
        connection.may_switch.set(upgrade.is_some());
        if present.any(Present::PROXY_CONNECTION) && hop_by_hop::closes_by_proxy_connection(&head.headers) {
            connection.closing.set(true);
        }
    }
    let mut context = ingress::receive(&connection, head, present);
    context.interim = beside.interim;
    let most = connection.config.hcm.common.max_headers_count;
    let trailers = (context.version == Version::HTTP_2).then_some(most);
    context.body = Some(RequestSource::new(body, connection.buffer_limit as usize, trailers));
    // Nothing of what it came in is kept: the future of a request is moved, so its size costs every request.
    answer(context, upgrade)
}

async fn answer(
    mut context: Box<RequestContext>,
    upgrade: Option<Upgrade>,
) -> Result<Response<ResponseBody>, Unanswered> {
    let connection = context.connection.clone();
    let expects = context.present.any(Present::EXPECT);
    if expects {
        interim::show_expectation(&mut context);
    }
    let mut waited = false;
    let decided = match well_formed::check_form(&mut context) {
        Err(failure) => Err(failure),
        Ok(()) => {
            if expects {
                Box::pin(interim::meet_expectation(&mut context)).await;
            }
            let comes = context.body.as_ref().is_some_and(|body| !body.ended());
            let limit = connection.config.hcm.request_timeout.filter(|_| comes);
            if limit.is_none() && interim::passed_on(&context).is_none() {
                watch(pin!(decide(&mut context, Some(upgrade.is_some()))), &mut waited).await
            } else {
                let mut careful = Box::pin(decide_with_care(&mut context, upgrade.is_some(), limit));
                watch(careful.as_mut(), &mut waited).await
            }
        }
    };
    // Who is answered without an endpoint after a while has mostly sent all of the request by then.
    let answered_here = !matches!(decided, Ok(Decision::Forwarded(_) | Decision::Tunnel(_)));
    if waited
        && answered_here
        && let Some(body) = context.body.clone().filter(|body| !body.ended())
    {
        Box::pin(body.take_in(u64::from(connection.buffer_limit))).await;
    }
    let old = context.version == Version::HTTP_10;
    let mut response = match decided {
        Ok(Decision::Forwarded(answer)) => respond(context, *answer, upgrade),
        Ok(Decision::Tunnel(tunnel)) => open_tunnel(context, *tunnel, upgrade),
        Ok(Decision::Answered(response)) => local_reply::finish(context, *response),
        Ok(Decision::Filtered(response)) => local_reply::finish_as_is(context, *response),
        // Its end finds no answer and says so.
        Err(Failure::ClientGone) => return Err(Unanswered::Gone),
        Err(Failure::Reset(reason, details)) => {
            context.flags.insert(failure::reset_flag(reason));
            context.details = details.into();
            context.completed();
            connection.stats.downstream_rq_tx_reset.inc();
            return Err(Unanswered::Refused(reason));
        }
        Err(failure) => local_reply::fail(context, &failure),
    };
    if old && response.headers().get(header::CONNECTION).is_some_and(|value| value == "close") {
        // hyper would tell the client that its connection lasts.
        *response.version_mut() = Version::HTTP_10;
    }
    Ok(response)
}

/// Runs a future to its end and notes whether that took any waiting.
fn watch<F: Future>(mut work: Pin<&mut F>, waited: &mut bool) -> impl Future<Output = F::Output> {
    poll_fn(move |cx| {
        let polled = work.as_mut().poll(cx);
        *waited |= polled.is_pending();
        polled
    })
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unanswered {
    #[error("the client went away before it had sent its request")]
    Gone,
    /// HTTP/2: its stream is reset with this code.
    #[error("the request is refused")]
    Refused(h2::Reason),
}

/// What happens to a request that did not fail.
enum Decision {
    Forwarded(Box<Answer>),
    /// CONNECT that ends here.
    Tunnel(Box<Tunnel>),
    /// A redirect or direct response.
    Answered(Box<Response<ResponseBody>>),
    /// By an HTTP filter.
    Filtered(Box<Response<ResponseBody>>),
}

fn count_request(connection: &HttpConnection, head: &request::Parts) {
    let stats = &connection.stats;
    connection.active.set(connection.active.get() + 1);
    connection.requests.set(connection.requests.get() + 1);
    stats.downstream_rq_total.inc();
    stats.downstream_rq_active.inc();
    if head.version == Version::HTTP_2 {
        stats.downstream_rq_http2_total.inc();
    } else {
        stats.downstream_rq_http1_total.inc();
    }
    // The answer says that it is the last. (An answer made here is over before anybody looks whether the connection drains.)
    if head.version < Version::HTTP_2 && connection.drain.is_fired() {
        connection.closing.set(true);
    }
    if head.version == Version::HTTP_10 && !hop_by_hop::keeps_alive(&head.headers) {
        connection.closing.set(true);
    }
    let limit = connection.config.hcm.common.max_requests_per_connection;
    if limit.is_some_and(|most| connection.requests.get() >= most) && !connection.closing.replace(true) {
        stats.downstream_cx_max_requests_reached.inc();
    }
}

/// [`decide`] where the request must arrive in time or the client may be told something before the answer.
async fn decide_with_care(
    context: &mut RequestContext,
    upgrade: bool,
    limit: Option<Duration>,
) -> Result<Decision, Failure> {
    let source = context.body.clone();
    let decided = match (limit, source) {
        (Some(limit), Some(source)) => decide_in_time(context, upgrade, &source, limit).await,
        _ => decide(context, Some(upgrade)).await,
    };
    if let Some(interim) = interim::passed_on(context).cloned() {
        interim.end_request();
        interim.sent().await;
    }
    decided
}

/// [`decide`] with a limit on how long the request may take to arrive.
async fn decide_in_time(
    context: &mut RequestContext,
    upgrade: bool,
    source: &RequestSource,
    limit: Duration,
) -> Result<Decision, Failure> {
    let stats = context.connection.stats.clone();
    tokio::select! {
        biased;
        decided = decide(context, Some(upgrade)) => decided,
        () = late(source, limit) => {
            stats.downstream_rq_timeout.inc();
            Err(Failure::RequestTimeout)
        }
    }
}

/// Ends when the body has not come completely within the limit.
async fn late(source: &RequestSource, limit: Duration) {
    if tokio::time::timeout(limit, source.end()).await.is_ok() {
        std::future::pending().await
    }
}

/// Normalises the request and finds its route, if there is one; or the answer that comes before that.
fn prepare(context: &mut RequestContext, upgrade: bool) -> Result<Option<Response<ResponseBody>>, Failure> {
    if let Normalised::Redirect(path) = ingress::normalise(context)? {
        if local_reply::is_grpc(&context.head) {
            // A gRPC client does not follow redirects.
            context.path = path;
            return Err(Failure::BadRequest("path_normalization_failed"));
        }
        return Ok(Some(redirect::to_normalised_path(context, &path)));
    }
    // Step 6.
    route_again(context);
    if upgrade && !upgrade_allowed(context) {
        context.connection.stats.downstream_rq_ws_on_non_ws_route.inc();
        return Err(Failure::UpgradeFailed);
    }
    Ok(None)
}

/// Serves the request at the place the answer sends it on to, if it is to be followed.
async fn follow(context: &mut RequestContext, answer: Box<Answer>) -> Result<Decision, Failure> {
    match internal_redirect::follow(context, answer) {
        // The place may send it on as well; how often is limited.
        Ok(()) => decide(context, None).await,
        Err(answer) => Ok(Decision::Forwarded(answer)),
    }
}

/// What becomes of the request. `upgrade`: whether the client asks for another protocol; `None`: the request has been routed anew.
async fn decide(context: &mut RequestContext, upgrade: Option<bool>) -> Result<Decision, Failure> {
    if let Some(upgrade) = upgrade
        && let Some(response) = prepare(context, upgrade)?
    {
        return Ok(Decision::Answered(Box::new(response)));
    }
    let mut next = 0;
    while next < context.connection.config.filters.len() {
        match filters::decode(context, next)? {
            Flow::Done => break,
            Flow::Answered(response) => return Ok(Decision::Filtered(response)),
            Flow::Paused(at) => {
                Box::pin(filters::pause(context, at)).await?;
                next = at + 1;
            }
        }
    }
    let Some(route) = context.route.clone() else {
        context.connection.stats.no_route.inc();
        return Err(Failure::RouteNotFound);
    };
    match &route.action {
        Action::Forward(action) => {
            let terminates = |config: &lateen_ir::UpgradeConfig| config.terminates;
            if context.head.method == Method::CONNECT
                && upgrade::allowed(context, &action.upgrades).is_some_and(terminates)
            {
                return Ok(Decision::Tunnel(Box::pin(connect::connect(context, action)).await?));
            }
            let answer = forward::forward(context, action).await?;
            if action.internal_redirect.is_some() {
                return Box::pin(follow(context, answer)).await;
            }
            Ok(Decision::Forwarded(answer))
        }
        Action::Redirect(action) => {
            context.connection.stats.rq_redirect.inc();
            Ok(Decision::Answered(Box::new(redirect::redirect(context, &route, action))))
        }
        Action::DirectResponse(action) => {
            context.connection.stats.rq_direct_response.inc();
            Ok(Decision::Answered(Box::new(redirect::direct(context, action))))
        }
        Action::NonForwarding => Err(Failure::RouteNotFound),
    }
}

/// Whether the route, if it forwards, or else the connection manager lets the client change the protocol.
fn upgrade_allowed(context: &RequestContext) -> bool {
    let of_route = match context.route.as_ref().map(|route| &route.action) {
        Some(Action::Forward(action)) => &action.upgrades[..],
        Some(_) => &[],
        // Filters have their say, and then there is no route.
        None => return true,
    };
    upgrade::allowed(context, of_route).is_some()
}

/// Routes the request as it is now; false when there is no route.
pub(crate) fn route_again(context: &mut RequestContext) -> bool {
    (context.cluster, context.weighted) = (None, None);
    let connection = context.connection.clone();
    let routes = match &connection.config.routes {
        crate::snapshot::RoutesRef::Inline(routes) => Some(routes.clone()),
        crate::snapshot::RoutesRef::Rds(slot) => context.view.snapshot.route_config(*slot).cloned(),
    };
    let Some(routes) = routes else { return false };
    if !routes.ir.internal_only_headers.is_empty() && !context.head.headers.contains_key("x-envoy-internal") {
        routes.ir.internal_only_headers.iter().for_each(|name| drop(context.head.headers.remove(name)));
    }
    let authority = context.authority.to_str().unwrap_or_default();
    let Some(virtual_host) = routes.ir.table.virtual_host(authority).cloned() else {
        return false;
    };
    // Before any route: neither a route's nor the host's own changes to headers apply.
    if let Some(forced) = redirect::required_https(context, virtual_host.require_tls) {
        context.route = Some(forced);
        return true;
    }
    let found = virtual_host.route(&request_view(context), connection.worker.random()).cloned();
    let Some(route) = found else { return false };
    context.virtual_host = Some(virtual_host);
    context.route = Some(route);
    context.routes = Some(routes);
    forward::choose_cluster(context);
    true
}

/// What matchers look at.
pub(crate) fn request_view(context: &RequestContext) -> RequestView<'_> {
    RequestView {
        method: context.head.method.as_str(),
        scheme: if context.secure { "https" } else { "http" },
        authority: context.authority.to_str().unwrap_or_default(),
        path: if context.head.method == Method::CONNECT { "" } else { context.path.as_str() },
        headers: &context.head.headers,
        metadata: context.metadata.as_deref(),
    }
}

/// Turns upstream's answer into ours.
fn respond(
    mut context: Box<RequestContext>,
    answer: Answer,
    upgrade: Option<Upgrade>,
) -> Response<ResponseBody> {
    let Answer { mut head, body, stream } = answer;
    let switching = upgrade.is_some() && upgrade::agreed(&context, &mut head);
    if switching {
        context.answered = Present::of(&head.headers);
    }
    hop_by_hop::hop_by_hop(&mut head.headers, context.answered, switching);
    context.status = Some(head.status);
    stream.charge();
    if context.details.is_empty() {
        context.details = "via_upstream".into();
    }
    let connection = context.connection.clone();
    let hcm = &connection.config.hcm;
    let suppress = hcm.router().is_some_and(|router| router.suppress_envoy_headers);
    let asked = upgrade.is_some() && context.version < Version::HTTP_2;
    let refused = !switching && (asked || context.head.method == Method::CONNECT);
    if refused {
        // What the client may have sent for the tunnel must not be taken for a request.
        connection.closing.set(true);
    } else if !stream.request_ended() {
        connection.stats.downstream_rq_response_before_rq_complete.inc();
        // As with Envoy: what may still come is not waited for, so the connection can't carry another request.
        if context.version < Version::HTTP_2 {
            connection.closing.set(true);
        }
    } else if !suppress && upgrade.is_none() {
        let millis = small_number(stream.service_time().as_millis() as u64);
        head.headers.insert(X_ENVOY_UPSTREAM_SERVICE_TIME, millis);
    }
    if context.virtual_host.as_ref().is_some_and(|host| host.include_attempt_count_in_response) {
        head.headers.insert(X_ENVOY_ATTEMPT_COUNT, HeaderValue::from(context.attempts));
    }
    for cookie in std::mem::take(&mut context.new_cookies) {
        head.headers.append(header::SET_COOKIE, cookie);
    }
    header_mutations::mutate_response(&mut context, stream.weighted(), &mut head.headers);
    filters::encode(&context, &mut head.headers);
    general_response_headers(&context, &mut head.headers);
    if !switching {
        say_close(&context, &mut head.headers);
    }
    if connection.config.logs {
        context.response_headers = Some(head.headers.clone());
    }
    let mut response = Response::new(ResponseBody::Empty);
    *response.status_mut() = head.status;
    *response.headers_mut() = head.headers;
    name_status(&mut response);
    if switching {
        if context.version == Version::HTTP_2 {
            let mut status = head.status;
            upgrade::answer_http2(&mut status, response.headers_mut());
            *response.status_mut() = status;
        }
        upgrade::join(upgrade, Far::answered(head.extensions, body), context, stream);
        return response;
    }
    let stream = ResponseStream::new(body, stream, context);
    *response.body_mut() = ResponseBody::Stream(Box::new(stream));
    response
}

/// Gives a status that Envoy has no words for its `Unknown`.
pub(crate) fn name_status(response: &mut Response<ResponseBody>) {
    let status = response.status();
    let unknown = [StatusCode::IM_A_TEAPOT, StatusCode::UNAVAILABLE_FOR_LEGAL_REASONS].contains(&status);
    if status.as_u16() == 599 {
        response.extensions_mut().insert(LAST_REASON);
    } else if status == StatusCode::NON_AUTHORITATIVE_INFORMATION {
        response.extensions_mut().insert(NON_AUTHORITATIVE);
    } else if unknown || status.canonical_reason().is_none() {
        response.extensions_mut().insert(UNKNOWN_REASON);
    }
}

/// Answers a CONNECT that ends here, and joins the client to the endpoint.
fn open_tunnel(
    mut context: Box<RequestContext>,
    tunnel: Tunnel,
    upgrade: Option<Upgrade>,
) -> Response<ResponseBody> {
    let Tunnel { connection, opened, stream } = tunnel;
    stream.charge();
    context.status = Some(StatusCode::OK);
    context.details = "via_upstream".into();
    let mut response = Response::new(ResponseBody::Empty);
    if context.virtual_host.as_ref().is_some_and(|host| host.include_attempt_count_in_response) {
        response.headers_mut().insert(X_ENVOY_ATTEMPT_COUNT, HeaderValue::from(context.attempts));
    }
    header_mutations::mutate_response(&mut context, stream.weighted(), response.headers_mut());
    general_response_headers(&context, response.headers_mut());
    if context.connection.config.logs {
        context.response_headers = Some(response.headers().clone());
    }
    upgrade::join(upgrade, Far::Connected(Box::new(connection), opened), context, stream);
    response
}

/// A number as a header value; the common ones are not formatted.
fn small_number(number: u64) -> HeaderValue {
    const DIGITS: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
    match DIGITS.get(number as usize) {
        Some(digit) => HeaderValue::from_static(digit),
        None => HeaderValue::from(number),
    }
}

/// The request's id, where answers tell it: always, or because it is to be traced.
pub(crate) fn told_id(context: &RequestContext) -> Option<&HeaderValue> {
    let headers = &context.head.headers;
    let traced = || context.present.any(Present::ENVOY) && headers.contains_key(ingress::X_ENVOY_FORCE_TRACE);
    let tells = context.connection.config.hcm.always_set_request_id_in_response || traced();
    if tells { headers.get(X_REQUEST_ID) } else { None }
}

/// Headers of every response.
pub(crate) fn general_response_headers(context: &RequestContext, headers: &mut HeaderMap) {
    let hcm = &context.connection.config.hcm;
    match hcm.server_header {
        ServerHeader::Overwrite => {
            headers.insert(header::SERVER, hcm.server_name.clone());
        }
        ServerHeader::AppendIfAbsent => {
            if !headers.contains_key(header::SERVER) {
                headers.insert(header::SERVER, hcm.server_name.clone());
            }
        }
        ServerHeader::PassThrough => {}
    }
    if let Some(id) = told_id(context) {
        headers.insert(X_REQUEST_ID, id.clone());
    }
    if let Some(via) = &hcm.via {
        append_via(headers, via);
    }
}

/// Says that the answer is the connection's last, if it is. Not of one that opens a tunnel, which ends with the connection anyway.
pub(crate) fn say_close(context: &RequestContext, headers: &mut HeaderMap) {
    // Before chunks a body without a length ended with its connection; Envoy says so of answers without a body, too.
    if context.version == Version::HTTP_10 && !headers.contains_key(header::CONTENT_LENGTH) {
        context.connection.closing.set(true);
    }
    context.connection.may_switch.set(false);
    if context.connection.closing.get() && context.version < Version::HTTP_2 {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn future_size<A, B, C, D, F: Future>(_: impl FnOnce(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    /// The future of every request is moved into place, so its size is paid for with each of them.
    #[test]
    fn the_future_of_a_request_stays_small() {
        // Without optimisation moved values keep both their places.
        let limit = if cfg!(debug_assertions) { 3072 } else { 1024 };
        let size = future_size(serve);
        assert!(size <= limit, "{size} bytes; box what is rare");
        let size = size_of::<RequestContext>();
        assert!(size <= 1024, "{size} bytes");
    }
}
