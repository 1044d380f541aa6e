//! What a route changes in a request's authority and path.

use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue};
use lateen_ir::{Forward, HostRewrite, RouteMatcher, TextFormat};

use crate::context::RequestContext;
use crate::hop_by_hop::join_lines;
use crate::ingress::append_list;
use crate::render;

const X_ENVOY_ORIGINAL_PATH: HeaderName = HeaderName::from_static("x-envoy-original-path");
const X_ENVOY_ORIGINAL_HOST: HeaderName = HeaderName::from_static("x-envoy-original-host");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// The authority.
pub(crate) fn authority(context: &mut RequestContext, action: &Forward, suppress: bool) {
    let new = match &action.host_rewrite {
        HostRewrite::Literal(literal) => Some((**literal).clone()),
        // `Auto` is done when the endpoint is known.
        HostRewrite::None | HostRewrite::Auto => None,
        HostRewrite::Header(name) => {
            context.head.headers.get(&**name).filter(|value| !value.is_empty()).cloned()
        }
        HostRewrite::PathRegex(rewrite) => HeaderValue::from_str(&rewrite.apply(context.path.path())).ok(),
        HostRewrite::Format(format) => {
            let mut text = String::new();
            render::text(format, context, &mut text);
            HeaderValue::try_from(text).ok()
        }
    };
    if let Some(new) = new {
        set_authority(context, action, new, suppress);
    }
}

/// Sets the authority, keeping the old one where the route wants that.
pub(crate) fn set_authority(
    context: &mut RequestContext,
    action: &Forward,
    new: HeaderValue,
    suppress: bool,
) {
    let old = std::mem::replace(&mut context.authority, new);
    if !suppress {
        context.head.headers.insert(X_ENVOY_ORIGINAL_HOST, old.clone());
    }
    let headers = &mut context.head.headers;
    if action.append_x_forwarded_host {
        join_lines(headers, X_FORWARDED_HOST);
        if !old.is_empty() && !is_last_named(headers.get(X_FORWARDED_HOST), &old) {
            append_list(headers, X_FORWARDED_HOST, &old);
        }
    }
}

/// Whether the list ends with this.
fn is_last_named(list: Option<&HeaderValue>, host: &HeaderValue) -> bool {
    let Some(list) = list else { return false };
    let mut names = list.as_bytes().split(|byte| *byte == b',').filter(|name| !name.is_empty());
    names.next_back().is_some_and(|last| last == host.as_bytes())
}

/// The path.
pub(crate) fn path(context: &mut RequestContext, action: &Forward, matcher: &RouteMatcher, suppress: bool) {
    let render = |format: &TextFormat| {
        let mut text = String::new();
        render::text(format, context, &mut text);
        text
    };
    let Some(new) = action.path_rewrite.apply(&matcher.path, context.path.as_str(), render) else { return };
    // A rewrite that makes no path leaves the request as it was.
    let Ok(new) = PathAndQuery::try_from(new) else { return };
    change_path(context, new, suppress);
}

/// Takes another path and keeps the first in a header.
pub(crate) fn change_path(context: &mut RequestContext, new: PathAndQuery, suppress: bool) {
    if !suppress && let Ok(original) = HeaderValue::from_str(context.path.as_str()) {
        context.head.headers.insert(X_ENVOY_ORIGINAL_PATH, original);
    }
    context.path = new;
}
