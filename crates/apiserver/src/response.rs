//! What is sent back, and in which form the client asked for it.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use serde_json::Value;

use crate::status::ApiError;

/// Any error of a body.
pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// Bodies of answers.
pub(crate) type Body = UnsyncBoxBody<Bytes, BoxError>;

/// A body known whole.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// An answer of JSON.
pub(crate) fn json(code: StatusCode, value: &Value) -> Response<Body> {
    typed(code, "application/json", value.to_string())
}

/// An answer of some media type.
pub(crate) fn typed(code: StatusCode, media_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(body));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

/// An answer of plain text.
pub(crate) fn text(code: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    typed(code, "text/plain; charset=utf-8", body)
}

/// An error as a `Status`.
pub(crate) fn error(error: &ApiError) -> Response<Body> {
    let mut response = json(error.code, &error.body());
    if let Some(seconds) = error.retry_after {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

/// Adds `Warning` headers (RFC 7234 §5.5, code 299).
pub(crate) fn warn(response: &mut Response<Body>, warnings: &[String]) {
    for warning in warnings {
        let quoted = warning.replace('\\', "\\\\").replace('"', "\\\"").replace(['\n', '\r'], " ");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}

/// The form objects are sent in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Json,
    Yaml,
    /// `meta.k8s.io/v1 Table`.
    Table,
    /// `meta.k8s.io/v1 PartialObjectMetadata`.
    Metadata,
}

/// Picks the first form in `accept` that we have.
pub(crate) fn negotiate(accept: Option<&str>) -> Result<Form, ApiError> {
    let Some(accept) = accept.filter(|accept| !accept.trim().is_empty()) else { return Ok(Form::Json) };
    for option in accept.split(',') {
        let mut parts = option.split(';').map(str::trim);
        let media_type = parts.next().unwrap_or_default();
        let mut kind = "";
        for part in parts {
            kind = part.strip_prefix("as=").unwrap_or(kind);
        }
        match (media_type, kind) {
            ("application/json", "Table") => return Ok(Form::Table),
            ("application/json", "PartialObjectMetadata" | "PartialObjectMetadataList") => {
                return Ok(Form::Metadata);
            }
            ("application/json" | "application/*" | "*/*", "") => return Ok(Form::Json),
            ("application/yaml", "") => return Ok(Form::Yaml),
            _ => {}
        }
    }
    Err(ApiError::not_acceptable("application/json, application/yaml"))
}

/// Sends `value` as JSON or YAML.
pub(crate) fn encode(code: StatusCode, form: Form, value: &Value) -> Response<Body> {
    if form == Form::Yaml {
        match serde_saphyr::to_string(value) {
            Ok(yaml) => return typed(code, "application/yaml", yaml),
            Err(problem) => return error(&ApiError::internal(format!("cannot write YAML: {problem}"))),
        }
    }
    json(code, value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        let cases = [
            (None, Form::Json),
            (Some(table), Form::Table),
            (Some("application/vnd.kubernetes.protobuf,application/json"), Form::Json),
            (
                Some("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"),
                Form::Metadata,
            ),
            (Some("application/yaml"), Form::Yaml),
            (Some("*/*"), Form::Json),
        ];
        for (accept, form) in cases {
            assert_eq!(negotiate(accept), Ok(form), "{accept:?}");
        }
        assert!(negotiate(Some("application/vnd.kubernetes.protobuf")).is_err());
    }
}
