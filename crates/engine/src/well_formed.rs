//! Whether what a client has sent is a request: names, size and number of headers, and what each version of HTTP asks of it.

use http::header::{self, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, StatusCode, Version, request};
use lateen_ir::{HttpConnectionManager, Underscores};

use crate::context::RequestContext;
use crate::failure::Failure;
use crate::presence::Present;
use crate::syntax;

/// Whether a request is one, of those that may be asked.
///
/// # Errors
/// It is none, and then it has no headers, or it is not complete.
pub(crate) fn check_form(context: &mut RequestContext) -> Result<(), Failure> {
    let connection = context.connection.clone();
    let checked = well_formed(context, &connection.config.hcm);
    // For Envoy's codec it has been no request.
    if checked.as_ref().is_err_and(|failure| !matches!(failure, Failure::BadRequest(_))) {
        context.head.headers.clear();
        context.unread = true;
    }
    checked
}

fn well_formed(context: &mut RequestContext, hcm: &HttpConnectionManager) -> Result<(), Failure> {
    if context.version == Version::HTTP_2 {
        http2_limits(context, hcm)?;
    }
    underscores(context, hcm)?;
    if context.version < Version::HTTP_2 && context.head.headers.len() > hcm.common.max_headers_count as usize
    {
        let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
        return Err(Failure::Malformed(status, "http1.too_many_headers"));
    }
    let custom_methods = hcm.http1.allow_custom_methods;
    syntax::check(&context.head, &context.authority, &context.path, context.present, custom_methods)?;
    if context.version == Version::HTTP_2 {
        check_http2(context)?;
    }
    let head = &mut context.head;
    if head.version < Version::HTTP_11 {
        if !hcm.http1.accept_http_10 {
            return Err(Failure::Http10);
        }
        if context.authority.is_empty()
            && let Some(Ok(host)) = hcm.http1.default_host_for_http_10.as_deref().map(HeaderValue::from_str)
        {
            context.authority = host;
        }
    }
    if context.authority.is_empty() && !context.present.any(Present::HOST) {
        return Err(Failure::BadRequest("missing_host_header"));
    }
    Ok(())
}

/// `headers_with_underscores_action`: names with `_` may mean the same as names with `-` to what is behind.
fn underscores(context: &mut RequestContext, hcm: &HttpConnectionManager) -> Result<(), Failure> {
    let action = hcm.common.underscores;
    let of_kind = |name: &HeaderName| name.as_str().contains('_');
    if action == Underscores::Allow || !context.head.headers.keys().any(of_kind) {
        return Ok(());
    }
    let connection = context.connection.clone();
    let stats = &connection.worker.stats;
    let http2 = context.head.version == Version::HTTP_2;
    // Over HTTP/2 they have been refused with what else there may be wrong.
    if action == Underscores::Reject {
        stats.http1_codec().requests_rejected_with_underscores_in_headers.inc();
        return Err(Failure::Malformed(StatusCode::BAD_REQUEST, "http1.unexpected_underscore"));
    }
    let headers = &mut context.head.headers;
    let names: Vec<HeaderName> = headers.keys().filter(|name| of_kind(name)).cloned().collect();
    for name in names {
        if http2 {
            stats.http2_codec().dropped_headers_with_underscores.inc();
        } else {
            stats.http1_codec().dropped_headers_with_underscores.inc();
        }
        headers.remove(name);
    }
    Ok(())
}

/// Whether a head over HTTP/2 keeps within what is allowed of names, size and number. Envoy looks at headers as they come, so that of
/// several faults the first is told. What is dropped does not count.
fn http2_limits(context: &RequestContext, hcm: &HttpConnectionManager) -> Result<(), Failure> {
    let (head, action) = (&context.head, hcm.common.underscores);
    let stats = &context.connection.worker.stats;
    let reset = |details| Err(Failure::Reset(h2::Reason::INTERNAL_ERROR, details));
    let within = |count: usize, bytes: usize| {
        if bytes > hcm.max_request_headers_kb as usize * 1024 {
            stats.http2_codec().header_list_size_too_large.inc();
            return reset("http2.header_list_size_too_large");
        }
        if count > hcm.common.max_headers_count as usize {
            stats.http2_codec().header_overflow.inc();
            return reset("http2.too_many_headers");
        }
        Ok(())
    };
    let (mut count, mut bytes) = pseudo_headers(head);
    within(count, bytes)?;
    let mut cookies = false;
    for (name, value) in &head.headers {
        if action != Underscores::Allow && name.as_str().contains('_') {
            if action == Underscores::Drop {
                continue;
            }
            stats.http2_codec().requests_rejected_with_underscores_in_headers.inc();
            return reset("http2.unexpected_underscore");
        }
        count += 1;
        // Cookies are put together, and only what they say counts.
        bytes += match name == header::COOKIE {
            true => value.len() + if std::mem::replace(&mut cookies, true) { "; ".len() } else { 0 },
            false => name.as_str().len() + value.len(),
        };
        within(count, bytes)?;
    }
    Ok(())
}

/// How many there are of `:method` and the like, and their bytes.
fn pseudo_headers(head: &request::Parts) -> (usize, usize) {
    let uri = &head.uri;
    let target = uri.path_and_query().filter(|_| head.method != Method::CONNECT);
    let parts = [
        (":method", Some(head.method.as_str())),
        (":scheme", uri.scheme_str().filter(|_| target.is_some())),
        (":authority", uri.authority().map(|authority| authority.as_str())),
        (":path", target.map(PathAndQuery::as_str)),
    ];
    let told = parts.iter().filter_map(|(name, value)| value.map(|value| name.len() + value.len()));
    told.fold((0, 0), |(count, bytes), more| (count + 1, bytes + more))
}

/// What of an HTTP/2 request Envoy's codec refuses and hyper lets pass.
fn check_http2(context: &RequestContext) -> Result<(), Failure> {
    let (head, present) = (&context.head, context.present);
    // RFC 9113, section 8.3.1; and a length is said once.
    let user = head.uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
    let repeated = present.any(Present::REPEATED)
        && present.any(Present::CONTENT_LENGTH)
        && head.headers.get_all(header::CONTENT_LENGTH).iter().nth(1).is_some();
    if user || repeated {
        return Err(Failure::Reset(h2::Reason::PROTOCOL_ERROR, "http2.violation.of.messaging.rule"));
    }
    Ok(())
}
