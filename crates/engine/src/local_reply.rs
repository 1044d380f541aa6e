//! Replies made by the proxy itself.

use std::borrow::Cow;
use std::time::Instant;

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Response, StatusCode, Version, request};
use lateen_ir::{BodyFormat, BodyText, LocalReplyMapper};

use crate::body::ResponseBody;
use crate::context::RequestContext;
use crate::failure::{Failure, Flags};
use crate::forward::{suppresses, weighted_entry};
use crate::header_mutations;
use crate::http_request::{X_ENVOY_ATTEMPT_COUNT, general_response_headers, name_status, say_close};
use crate::{filters, log_filter, render};

const X_ENVOY_OVERLOADED: HeaderName = HeaderName::from_static("x-envoy-overloaded");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// What kind of text a reply is, unless something else is said.
const TEXT: HeaderValue = HeaderValue::from_static("text/plain");

/// Answers a failure.
pub(crate) fn fail(mut context: Box<RequestContext>, failure: &Failure) -> Response<ResponseBody> {
    let reply = failure.reply();
    let grpc_status = reply.grpc_status;
    context.flags.insert(reply.flag);
    context.details = reply.details;
    let text = Bytes::from(reply.body.clone().into_owned().into_bytes());
    context.local_reply = Some(reply.body);
    let mut response = Response::new(ResponseBody::text(text));
    *response.status_mut() = reply.status;
    response.headers_mut().extend(reply.headers);
    // Whatever is told of the body, it is what there is of it.
    response.headers_mut().remove(header::CONTENT_LENGTH);
    if reply.overloaded && !suppresses(&context) {
        response.headers_mut().insert(X_ENVOY_OVERLOADED, HeaderValue::from_static("true"));
    }
    if reply.close && context.version != Version::HTTP_2 {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    // The clocks of whole streams and requests are not the router's.
    let of_router = !matches!(
        failure,
        Failure::MaxStreamDuration { .. } | Failure::StreamIdleTimeout { .. } | Failure::RequestTimeout
    );
    if of_router {
        tell_attempts(&context, response.headers_mut());
    }
    // Where the route would have answered by itself, what a filter answers is not the route's.
    let of_route =
        context.route.as_ref().is_some_and(|route| matches!(route.action, lateen_ir::Action::Forward(_)));
    finish_with(context, response, grpc_status, of_route)
}

/// The router tells how often it tried.
fn tell_attempts(context: &RequestContext, headers: &mut HeaderMap) {
    let tells = context.virtual_host.as_ref().is_some_and(|host| host.include_attempt_count_in_response);
    if tells && context.attempts > 0 {
        headers.insert(X_ENVOY_ATTEMPT_COUNT, HeaderValue::from(context.attempts));
    }
}

/// Adds what every reply has, and notes the end of the request.
pub(crate) fn finish(
    context: Box<RequestContext>,
    mut response: Response<ResponseBody>,
) -> Response<ResponseBody> {
    tell_attempts(&context, response.headers_mut());
    finish_with(context, response, None, true)
}

fn finish_with(
    mut context: Box<RequestContext>,
    mut response: Response<ResponseBody>,
    grpc_status: Option<u32>,
    of_route: bool,
) -> Response<ResponseBody> {
    // What kind of text it is, is said at the end, as with Envoy, unless something else has been said by then.
    let kind = response.headers_mut().remove(header::CONTENT_TYPE);
    if of_route {
        // As with Envoy, `%RESPONSE_CODE%` in the route's headers is still 0 here, and `%RESP(:STATUS)%` is not.
        context.answering = Some(response.status());
        let route = context.route.clone();
        let weighted =
            route.as_deref().zip(context.weighted).and_then(|(route, index)| weighted_entry(route, index));
        let weighted = weighted.map(|entry| &entry.response_headers);
        header_mutations::mutate_response(&mut context, weighted, response.headers_mut());
        context.answering = None;
    }
    context.status = Some(response.status());
    if context.local_reply.is_none() {
        let text = String::from_utf8_lossy(text_of(&response)).into_owned();
        context.local_reply = Some(text.into());
    }
    let json = map_reply(&mut context, &mut response);
    if is_grpc(&context.head) {
        let head = context.head.method == Method::HEAD;
        as_grpc(&mut response, grpc_status, json, head);
    } else if text_of(&response).is_empty() {
        response.headers_mut().remove(header::CONTENT_TYPE);
    } else {
        response.headers_mut().entry(header::CONTENT_TYPE).or_insert(kind.unwrap_or(TEXT));
    }
    finish_as_is(context, response)
}

/// The same for an answer that a filter has made whole.
pub(crate) fn finish_as_is(
    mut context: Box<RequestContext>,
    mut response: Response<ResponseBody>,
) -> Response<ResponseBody> {
    filters::encode(&context, response.headers_mut());
    general_response_headers(&context, response.headers_mut());
    // hyper says it of what it sends.
    let head = context.head.method == Method::HEAD;
    if (head || context.version == Version::HTTP_10)
        && let ResponseBody::Text(Some(text)) = response.body()
    {
        let length = HeaderValue::from(text.len());
        response.headers_mut().insert(header::CONTENT_LENGTH, length);
    }
    // Where nothing is told of the head, the text counts as sent; hyper leaves it out all the same.
    if head && !context.unread {
        *response.body_mut() = ResponseBody::Empty;
    }
    say_close(&context, response.headers_mut());
    // What is left of a body that nobody will read must not be taken for the next request, nor what was meant for a tunnel.
    let tunnel = context.head.method == Method::CONNECT || context.head.headers.contains_key(header::UPGRADE);
    let rest = tunnel || context.body.as_ref().is_some_and(|body| !body.ended());
    if context.version < Version::HTTP_2 && rest {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    context.status = Some(response.status());
    name_status(&mut response);
    if let ResponseBody::Text(Some(text)) = response.body() {
        context.bytes_sent = text.len() as u64;
    }
    if context.connection.config.logs {
        context.response_headers = Some(response.headers().clone());
    }
    if context.version == Version::HTTP_2
        && let Some(idle) = context.connection.config.hcm.stream_idle_timeout
    {
        context.connection.expect_progress(Some(Instant::now() + idle));
    }
    if let Some(throttle) = filters::throttle(&context) {
        let body = std::mem::replace(response.body_mut(), ResponseBody::Empty);
        *response.body_mut() = body.slowed(throttle);
    }
    context.completed();
    response
}

/// Whether a request is one of gRPC's. A CONNECT is none, whatever it says.
pub(crate) fn is_grpc(head: &request::Parts) -> bool {
    head.method != Method::CONNECT && has_grpc_type(&head.headers)
}

fn has_grpc_type(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("application/grpc"))
        // Other parameters make it something else, as for Envoy.
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('+'))
}

/// The body of a reply.
fn text_of(response: &Response<ResponseBody>) -> &[u8] {
    match response.body() {
        ResponseBody::Text(Some(text)) => text,
        _ => &[],
    }
}

/// What a status of HTTP says to a gRPC client.
/// <https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md>
pub(crate) fn grpc_status(status: StatusCode) -> u32 {
    match status {
        StatusCode::BAD_REQUEST => 13,
        StatusCode::UNAUTHORIZED => 16,
        StatusCode::FORBIDDEN => 7,
        StatusCode::NOT_FOUND => 12,
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => 14,
        _ => 2,
    }
}

/// gRPC clients get 200 with the status in headers, and what is said unless they asked for the head alone.
fn as_grpc(response: &mut Response<ResponseBody>, status: Option<u32>, json: bool, head: bool) {
    let meant = grpc_status(response.status());
    let message = if head { &[] } else { text_of(response) };
    // A line's end is no part of a header.
    let message = message.strip_suffix(b"\n").filter(|_| json).unwrap_or(message);
    let message = String::from_utf8_lossy(message).into_owned();
    *response.body_mut() = ResponseBody::Empty;
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.remove(header::CONTENT_LENGTH);
    headers.insert(GRPC_STATUS, HeaderValue::from(status.unwrap_or(meant)));
    if !message.is_empty()
        && let Ok(value) = HeaderValue::try_from(percent_encode(&message))
    {
        headers.insert(GRPC_MESSAGE, value);
    }
}

/// gRPC's percent-encoding of messages: printable ASCII but `%` stays.
fn percent_encode(message: &str) -> String {
    let mut out = String::with_capacity(message.len());
    for byte in message.bytes() {
        if (b' '..=b'~').contains(&byte) && byte != b'%' {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// `local_reply_config`: the first mapper whose filter matches, then the body format. Whether the text is JSON by it.
fn map_reply(context: &mut RequestContext, response: &mut Response<ResponseBody>) -> bool {
    let connection = context.connection.clone();
    let config = &connection.config.hcm.local_reply;
    if config.mappers.is_empty() && config.body_format.is_none() {
        return false;
    }
    let (before, said) = (text_of(response).to_vec(), response.headers().get(header::CONTENT_TYPE).cloned());
    // Formats tell of the answer as it is so far. What is no request is flagged when its stream ends.
    context.response_headers = Some(response.headers().clone());
    let flags = context.flags;
    if context.unread {
        context.flags = Flags::default();
    }
    let mapper = config.mappers.iter().find(|mapper| log_filter::passes(&mapper.filter, context));
    if let Some(mapper) = mapper {
        apply_mapper(context, mapper, response);
        context.response_headers = Some(response.headers().clone());
    }
    let format = mapper.and_then(|mapper| mapper.body_format.as_ref()).or(config.body_format.as_ref());
    if let Some(format) = format {
        let text = format_body(context, format);
        response.headers_mut().remove(header::CONTENT_LENGTH);
        *response.body_mut() = ResponseBody::text(Bytes::from(text.into_bytes()));
    }
    context.flags = flags;
    // What kind of text it has become is said last, unless the mapper has said so.
    let kind = format.map_or(TEXT, |format| format.content_type.clone());
    let json = kind == "application/json";
    let now = response.headers().get(header::CONTENT_TYPE);
    if now.is_none() || (now == said.as_ref() && text_of(response) != before) {
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    json
}

fn apply_mapper(
    context: &mut RequestContext,
    mapper: &LocalReplyMapper,
    response: &mut Response<ResponseBody>,
) {
    if let Some(body) = &mapper.body {
        context.local_reply = Some(Cow::Owned(body.to_string()));
        *response.body_mut() = ResponseBody::text(Bytes::copy_from_slice(body.as_bytes()));
    }
    header_mutations::add_all(&mapper.headers_to_add, response.headers_mut(), context);
    // Headers are still told the old one.
    if let Some(status) = mapper.status.and_then(|status| StatusCode::from_u16(status).ok()) {
        *response.status_mut() = status;
        context.status = Some(status);
    }
}

pub(crate) fn format_body(context: &RequestContext, format: &BodyFormat) -> String {
    let mut text = String::new();
    match &format.body {
        BodyText::Text(format) => render::text(format, context, &mut text),
        BodyText::Json(format) => {
            if let Some(value) = render::json(format, false, context) {
                text.push_str(&value.to_string());
            }
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_messages_are_percent_encoded() {
        assert_eq!(percent_encode("no 100%\né"), "no 100%25%0A%C3%A9");
    }

    #[test]
    fn only_grpc_content_types_count_as_grpc() {
        for (value, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc-web", false),
            ("application/grpc;charset=utf-8", false),
            ("text/plain", false),
        ] {
            let headers = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static(value))]);
            assert_eq!(has_grpc_type(&headers), expected, "{value}");
        }
    }
}
