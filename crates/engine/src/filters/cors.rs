//! Cross-origin resource sharing; what a policy says is decided by `ir::CorsPolicies`.

use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, Method, Response};
use lateen_ir::{Action, CorsPolicies, CorsPolicy, FilterRouteConfig};
use smallvec::SmallVec;

use super::{FilterState, Step, levels};
use crate::body::ResponseBody;
use crate::context::RequestContext;
use crate::snapshot::FilterSlot;
use crate::stats::blocks::CorsStats;

const REQUEST_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-request-private-network");
const ALLOW_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-allow-private-network");
const TRUE: HeaderValue = HeaderValue::from_static("true");

/// What the answer to an allowed origin says.
pub(crate) struct Allowed {
    origin: HeaderValue,
    credentials: bool,
    expose: Option<HeaderValue>,
}

impl Allowed {
    pub(super) fn encode(&self, headers: &mut HeaderMap) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, self.origin.clone());
        if self.credentials {
            headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
        }
        if let Some(expose) = &self.expose {
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
        }
    }
}

/// The policies of the request's route, the most specific first: those of the filter, else the older fields.
fn policies(context: &RequestContext, name: FilterSlot) -> SmallVec<[&CorsPolicy; 4]> {
    let Some(Action::Forward(action)) = context.route.as_ref().map(|route| &route.action) else {
        return SmallVec::new();
    };
    let of_filter: SmallVec<[&CorsPolicy; 4]> = levels(context, name)
        .into_iter()
        .flat_map(lateen_ir::FilterLevels::configs)
        .filter_map(|config| match config {
            FilterRouteConfig::Cors(policy) => Some(&**policy),
            _ => None,
        })
        .collect();
    if !of_filter.is_empty() {
        return of_filter;
    }
    let of_host = context.virtual_host.as_ref().and_then(|host| host.cors.as_deref());
    action.cors.as_deref().into_iter().chain(of_host).collect()
}

/// Whether the route's older fields, which count where no level speaks of the filter, say nothing.
pub(super) fn is_idle(context: &RequestContext) -> bool {
    let of_route = match context.route.as_ref().map(|route| &route.action) {
        Some(Action::Forward(action)) => action.cors.is_some(),
        _ => return true,
    };
    !of_route && context.virtual_host.as_ref().is_none_or(|host| host.cors.is_none())
}

pub(super) fn decode(stats: &CorsStats, name: FilterSlot, context: &mut RequestContext) -> Step {
    let list = policies(context, name);
    if list.is_empty() {
        return Step::Next;
    }
    let (allowed, answer) = judge(stats, CorsPolicies(&list), context);
    drop(list);
    context.filters.extend(allowed.map(FilterState::Cors));
    match answer {
        None => Step::Next,
        Some(answer) => {
            context.details = "cors_response".into();
            Step::Answer(Box::new(answer))
        }
    }
}

/// What the answer to the request will say, and the answer itself to a preflight.
fn judge(
    stats: &CorsStats,
    policies: CorsPolicies<'_>,
    context: &RequestContext,
) -> (Option<Allowed>, Option<Response<ResponseBody>>) {
    let asked = &context.head.headers;
    let (enabled, shadow) = policies.mode(context.connection.worker.random());
    let origin = asked.get(header::ORIGIN).filter(|origin| !origin.is_empty() && (enabled || shadow));
    let Some(origin) = origin else { return (None, None) };
    let allows = policies.allows(origin.as_bytes());
    if allows { &stats.origin_valid } else { &stats.origin_invalid }.inc();
    if !enabled {
        return (None, None);
    }
    let allowed = allows.then(|| Allowed {
        origin: origin.clone(),
        credentials: policies.first(|policy| policy.allow_credentials).unwrap_or(false),
        expose: policies.first(|policy| policy.expose_headers.as_ref()).cloned(),
    });
    let preflight = context.head.method == Method::OPTIONS
        && asked.get(header::ACCESS_CONTROL_REQUEST_METHOD).is_some_and(|method| !method.is_empty());
    let forwards = || policies.first(|policy| policy.forward_not_matching_preflights).unwrap_or(true);
    let answer = (preflight && (allows || !forwards())).then(|| preflight_answer(policies, asked));
    (allowed, answer)
}

/// The answer to a preflight but for what every answer to an allowed origin says.
fn preflight_answer(policies: CorsPolicies<'_>, asked: &HeaderMap) -> Response<ResponseBody> {
    let mut answer = Response::new(ResponseBody::Empty);
    let headers = answer.headers_mut();
    if policies.first(|policy| policy.allow_credentials).unwrap_or(false) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, TRUE);
    }
    // `*` allows whatever is asked for.
    let mut allow = |name: HeaderName, value: Option<&HeaderValue>, wish: HeaderName| {
        let nothing = HeaderValue::from_static("");
        let value = match value {
            Some(value) if value == "*" => Some(asked.get(wish).unwrap_or(&nothing).clone()),
            value => value.cloned(),
        };
        headers.extend(value.map(|value| (name, value)));
    };
    allow(
        header::ACCESS_CONTROL_ALLOW_METHODS,
        policies.first(|policy| policy.allow_methods.as_ref()),
        header::ACCESS_CONTROL_REQUEST_METHOD,
    );
    allow(
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        policies.first(|policy| policy.allow_headers.as_ref()),
        header::ACCESS_CONTROL_REQUEST_HEADERS,
    );
    if let Some(age) = policies.first(|policy| policy.max_age.as_ref()) {
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, age.clone());
    }
    let private = policies.first(|policy| policy.allow_private_network_access).unwrap_or(false);
    if private && asked.get(REQUEST_PRIVATE_NETWORK).is_some_and(|value| value == "true") {
        headers.insert(ALLOW_PRIVATE_NETWORK, TRUE);
    }
    answer
}
