//! Step 6 answers: redirects and direct responses.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::uri::PathAndQuery;
use http::{Response, StatusCode};
use lateen_ir::{Action, DirectResponse, HeaderMutations, PathRedirect, Redirect, RequireTls, Route};

use crate::body::ResponseBody;
use crate::context::RequestContext;
use crate::http_request::request_view;
use crate::local_reply::format_body;

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
    response
}

/// Answers with a redirect.
pub(crate) fn redirect(
    context: &mut RequestContext,
    route: &Route,
    action: &Redirect,
) -> Response<ResponseBody> {
    context.details = "direct_response".into();
    let location = action.location(&route.matching.path, &request_view(context));
    // As with Envoy, what follows (the log, for example) sees the rewritten path.
    if matches!(action.path, PathRedirect::Prefix(_) | PathRedirect::Regex(_))
        && let Some(path) = location.parse::<http::Uri>().ok().and_then(|uri| uri.path_and_query().cloned())
    {
        context.path = path;
    }
    moved(action.status, &location)
}

/// 307 to the normalised path (`UNESCAPE_AND_REDIRECT`).
pub(crate) fn to_normalised_path(
    context: &mut RequestContext,
    path: &PathAndQuery,
) -> Response<ResponseBody> {
    context.details = "path_normalization_failed".into();
    context.connection.stats.downstream_rq_redirected_with_normalized_path.inc();
    moved(StatusCode::TEMPORARY_REDIRECT, path.as_str())
}

fn moved(status: StatusCode, location: &str) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::Empty);
    *response.status_mut() = status;
    if let Ok(value) = HeaderValue::from_str(location) {
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
    if !wanted || context.secure {
        return None;
    }
    let route = context.route.as_ref()?;
    Some(Arc::new(Route {
        name: route.name.clone(),
        matching: route.matching.clone(),
        action: Action::Redirect(Box::new(Redirect {
            scheme: Some("https".into()),
            host: None,
            port: None,
            path: PathRedirect::Keep,
            status: StatusCode::MOVED_PERMANENTLY,
            strip_query: false,
        })),
        request_headers: HeaderMutations::default(),
        response_headers: HeaderMutations::default(),
        overrides: route.overrides.clone(),
    }))
}
