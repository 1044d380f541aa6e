//! Step 6 answers: redirects and direct responses.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Response, StatusCode};
use lateen_ir::{
    Action, DirectResponse, HeaderMutations, PathMatcher, PathRedirect, Redirect, RequestView, RequireTls,
    Route, RouteMatcher,
};

use crate::body::ResponseBody;
use crate::context::RequestContext;
use crate::forward::suppresses;
use crate::http_request::request_view;
use crate::ingress::X_FORWARDED_PROTO;
use crate::local_reply::format_body;
use crate::rewrite;

/// Answers with a fixed response.
pub(crate) fn direct(context: &mut RequestContext, action: &DirectResponse) -> Response<ResponseBody> {
    context.details = "direct_response".into();
    let (text, content_type) = match &action.format {
        None => (Bytes::copy_from_slice(&action.body), HeaderValue::from_static("text/plain")),
        Some(format) => {
            context.local_reply = Some(String::from_utf8_lossy(&action.body).into_owned().into());
            let text = format_body(context, format);
            context.local_reply = None;
            (Bytes::from(text.into_bytes()), format.content_type.clone())
        }
    };
    let empty = text.is_empty();
    let mut response = Response::new(ResponseBody::text(text));
    *response.status_mut() = action.status;
    if !empty {
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
    }
    // RFC 9110, section 10.2.2: what was made, or is to be asked for, is where it was asked for.
    if (action.status == StatusCode::CREATED || action.status.is_redirection())
        && let Ok(location) = HeaderValue::from_str(&own_url(context))
    {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// The URL of the request itself.
fn own_url(context: &RequestContext) -> String {
    let RequestView { scheme, authority, path, .. } = request_view(context);
    format!("{scheme}://{authority}{path}")
}

/// Answers with a redirect.
pub(crate) fn redirect(
    context: &mut RequestContext,
    route: &Route,
    action: &Redirect,
) -> Response<ResponseBody> {
    context.details = "direct_response".into();
    let location = action.location(&route.matching.path, &request_view(context));
    // Envoy rewrites the request's own path on the way, which headers and the log show.
    if let Some(text) = action.path.rewritten(&route.matching.path, context.path.as_str())
        && let Ok(path) = PathAndQuery::try_from(text)
    {
        rewrite::change_path(context, path, suppresses(context));
    }
    // A CONNECT has no URL that another could be made of.
    if context.head.method == Method::CONNECT {
        return moved(action.status, None);
    }
    moved(action.status, Some(&location))
}

/// 307 to the normalised path (`UNESCAPE_AND_REDIRECT`).
pub(crate) fn to_normalised_path(
    context: &mut RequestContext,
    path: &PathAndQuery,
) -> Response<ResponseBody> {
    context.details = "path_normalization_failed".into();
    context.path = path.clone();
    context.connection.stats.downstream_rq_redirected_with_normalized_path.inc();
    moved(StatusCode::TEMPORARY_REDIRECT, Some(path.as_str()))
}

fn moved(status: StatusCode, location: Option<&str>) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::Empty);
    *response.status_mut() = status;
    if let Some(Ok(value)) = location.map(HeaderValue::from_str) {
        response.headers_mut().insert(header::LOCATION, value);
    }
    response
}

/// The route that sends a plaintext client to https, when the virtual host asks for TLS.
pub(crate) fn required_https(context: &RequestContext, required: RequireTls) -> Option<Arc<Route>> {
    let external_only = context.head.headers.get("x-envoy-internal").is_none_or(|value| value != "true");
    let wanted = match required {
        RequireTls::None => false,
        RequireTls::ExternalOnly => external_only,
        RequireTls::All => true,
    };
    // It is about the connection, whatever scheme the request's own URL has.
    let secure = context.head.headers.get(X_FORWARDED_PROTO).is_some_and(|scheme| scheme == "https");
    if !wanted || secure {
        return None;
    }
    Some(Arc::new(Route {
        name: Arc::default(),
        matching: RouteMatcher {
            path: PathMatcher::Prefix { value: Box::default(), case_sensitive: true },
            headers: Box::default(),
            query_parameters: Box::default(),
            runtime_fraction: None,
            grpc: false,
            metadata: Box::default(),
        },
        action: Action::Redirect(Box::new(Redirect {
            scheme: Some("https".into()),
            host: None,
            port: None,
            path: PathRedirect::Keep,
            status: StatusCode::MOVED_PERMANENTLY,
            strip_query: false,
            keep_port: true,
        })),
        request_headers: HeaderMutations::default(),
        response_headers: HeaderMutations::default(),
        overrides: Default::default(),
        stat: None,
    }))
}
