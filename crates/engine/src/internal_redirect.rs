//! Redirects that the proxy follows itself: the client gets the answer of the place it is sent to.
//! <https://www.envoyproxy.io/docs/envoy/v1.40.0/intro/arch_overview/http/http_connection_management#internal-redirects>

use std::collections::BTreeSet;
use std::sync::Arc;

use http::uri::PathAndQuery;
use http::{HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use lateen_ir::{Action, InternalRedirectPolicy, RedirectPredicate};

use crate::answer::Answer;
use crate::context::RequestContext;
use crate::failure::Flags;
use crate::finish;
use crate::http_request::route_again;
use crate::presence::Present;

const X_ENVOY_ORIGINAL_URL: HeaderName = HeaderName::from_static("x-envoy-original-url");

/// The redirects of one request so far.
#[derive(Default)]
pub(crate) struct Followed {
    count: u32,
    /// From which route to which, by name.
    visited: BTreeSet<(Arc<str>, Arc<str>)>,
}

/// Makes the request that of the place the answer sends it to, already routed; gives the answer back where it is for the client.
pub(crate) fn follow(context: &mut RequestContext, mut answer: Box<Answer>) -> Result<(), Box<Answer>> {
    let Some(route) = context.route.clone() else { return Err(answer) };
    let Action::Forward(action) = &route.action else { return Err(answer) };
    let Some(policy) = action.internal_redirect.as_ref().filter(|p| p.codes.contains(&answer.head.status))
    else {
        return Err(answer);
    };
    let Some(cluster) = context.cluster.clone() else { return Err(answer) };
    if redirect(context, policy, &answer).is_none() {
        cluster.stats.upstream_internal_redirect_failed_total.inc();
        return Err(answer);
    }
    cluster.stats.upstream_internal_redirect_succeeded_total.inc();
    answer.stream.release(&answer.body);
    Ok(())
}

/// `None`: the redirect is not followed, and the request is as it was.
fn redirect(context: &mut RequestContext, policy: &InternalRedirectPolicy, answer: &Answer) -> Option<()> {
    let body = context.body.clone()?;
    let location = answer.head.headers.get(header::LOCATION)?;
    // What is still coming, or has been forgotten, can't be sent again.
    if !body.ended() || !body.replayable() {
        return None;
    }
    let stats = context.connection.stats.clone();
    let target = location.to_str().ok().and_then(parse);
    let Some(Target { https, authority, path }) = target else {
        stats.passthrough_internal_redirect_bad_location.inc();
        return None;
    };
    if !policy.cross_scheme && https != context.secure {
        stats.passthrough_internal_redirect_unsafe_scheme.inc();
        return None;
    }
    if context.followed.as_ref().map_or(0, |followed| followed.count) >= policy.max {
        stats.passthrough_internal_redirect_too_many_redirects.inc();
        return None;
    }
    let original = original_url(context);
    // Where the request was, so that one that is not followed can be answered from there.
    let before = Place {
        headers: context.head.headers.clone(),
        authority: std::mem::replace(&mut context.authority, authority),
        path: std::mem::replace(&mut context.path, path),
        secure: std::mem::replace(&mut context.secure, https),
    };
    for name in &policy.copy {
        context.head.headers.remove(name);
        let values = answer.head.headers.get_all(name).iter();
        values.for_each(|value| {
            context.head.headers.append(name, value.clone());
        });
    }
    let leaving = Leaving::of(context);
    let found = route_again(context);
    if !found {
        stats.passthrough_internal_redirect_no_route.inc();
    } else if !allowed(context, policy, &leaving, before.secure) {
        stats.passthrough_internal_redirect_predicate.inc();
    } else {
        arrive(context, answer.head.status, original);
        return Some(());
    }
    leaving.restore(context);
    before.restore(context);
    None
}

/// A location taken apart.
struct Target {
    https: bool,
    authority: HeaderValue,
    path: PathAndQuery,
}

/// Only whole URLs are followed.
fn parse(location: &str) -> Option<Target> {
    let url: Uri = location.parse().ok()?;
    let https = match url.scheme_str()? {
        "http" => false,
        "https" => true,
        _ => return None,
    };
    let authority = HeaderValue::from_str(url.authority()?.as_str()).ok()?;
    let path = url.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    Some(Target { https, authority, path })
}

fn original_url(context: &RequestContext) -> Option<HeaderValue> {
    let scheme = if context.secure { "https" } else { "http" };
    let authority = context.authority.to_str().unwrap_or_default();
    HeaderValue::try_from(format!("{scheme}://{authority}{}", context.path)).ok()
}

struct Place {
    headers: http::HeaderMap,
    authority: HeaderValue,
    path: PathAndQuery,
    secure: bool,
}

impl Place {
    fn restore(self, context: &mut RequestContext) {
        context.head.headers = self.headers;
        context.authority = self.authority;
        context.path = self.path;
        context.secure = self.secure;
    }
}

/// What belongs to the route that is left.
struct Leaving {
    virtual_host: Option<Arc<lateen_ir::VirtualHost>>,
    route: Option<Arc<lateen_ir::Route>>,
    weighted: Option<usize>,
    cluster: Option<std::rc::Rc<crate::cluster::LocalCluster>>,
}

impl Leaving {
    fn of(context: &RequestContext) -> Self {
        Self {
            virtual_host: context.virtual_host.clone(),
            route: context.route.clone(),
            weighted: context.weighted,
            cluster: context.cluster.clone(),
        }
    }

    fn restore(self, context: &mut RequestContext) {
        context.virtual_host = self.virtual_host;
        context.route = self.route;
        context.weighted = self.weighted;
        context.cluster = self.cluster;
    }

    fn name(&self) -> Arc<str> {
        self.route.as_ref().map_or_else(|| "".into(), |route| route.name.clone())
    }
}

fn allowed(
    context: &mut RequestContext,
    policy: &InternalRedirectPolicy,
    leaving: &Leaving,
    from_https: bool,
) -> bool {
    let target = context.route.as_ref().map_or_else(|| "".into(), |route| route.name.clone());
    policy.predicates.iter().all(|predicate| match predicate {
        RedirectPredicate::PreviousRoutes => {
            context.followed.get_or_insert_default().visited.insert((leaving.name(), target.clone()))
        }
        RedirectPredicate::AllowListedRoutes(names) => names.iter().any(|name| **name == *target),
        RedirectPredicate::SafeCrossScheme => from_https || !context.secure,
    })
}

/// The request begins anew at its new place, and what it was so far is logged.
fn arrive(context: &mut RequestContext, status: StatusCode, original: Option<HeaderValue>) {
    // RFC 9110, section 15.4.4.
    if status == StatusCode::SEE_OTHER && ![Method::GET, Method::HEAD].contains(&context.head.method) {
        context.head.method = Method::GET;
        context.head.headers.remove(header::CONTENT_LENGTH);
        context.body.iter().for_each(|body| body.discard());
    }
    // As with Envoy, the line shows where the request goes.
    (context.status, context.details) = (Some(status), "internal_redirect".into());
    finish::log_redirect(context);
    if let Some(body) = context.body.as_ref().filter(|body| !body.is_empty()) {
        // The second place receives it as well.
        body.count(body.received());
    }
    context.followed.get_or_insert_default().count += 1;
    context.head.headers.extend(original.map(|url| (X_ENVOY_ORIGINAL_URL, url)));
    context.present = Present::of(&context.head.headers);
    context.status = None;
    context.details = "".into();
    context.flags = Flags::default();
    context.attempts = 0;
    context.filters.clear();
    context.metadata = None;
    (context.host, context.upstream, context.upstream_version, context.upstream_failure) =
        (None, None, None, None);
    context.first_upstream_byte = None;
    context.started = std::time::Instant::now();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_urls_are_followed() {
        let found = |location| parse(location).map(|t| (t.https, t.authority, t.path.to_string()));
        assert_eq!(found("http://a:81/b?c#d"), Some((false, "a:81".parse().unwrap(), "/b?c".to_owned())));
        assert_eq!(found("https://a"), Some((true, "a".parse().unwrap(), "/".to_owned())));
        for location in ["", "/b", "a/b", "ftp://a/b", "http:///b"] {
            assert_eq!(found(location), None, "{location}");
        }
    }
}
