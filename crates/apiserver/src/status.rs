//! Errors as Kubernetes words them: `Status` objects.
//!
//! Reasons, codes and sentences follow `apimachinery/pkg/api/errors`.

use std::borrow::Cow;

use http::StatusCode;
use serde_json::{Value, json};

use crate::resources::ResourceDef;

/// One problem with one field (`Status.details.causes[]`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FieldError {
    pub(crate) reason: &'static str,
    pub(crate) field: String,
    pub(crate) message: String,
}

impl FieldError {
    pub(crate) fn required(field: impl Into<String>) -> Self {
        Self { reason: "FieldValueRequired", field: field.into(), message: "Required value".to_owned() }
    }

    pub(crate) fn required_because(field: impl Into<String>, why: &str) -> Self {
        Self { reason: "FieldValueRequired", field: field.into(), message: format!("Required value: {why}") }
    }

    pub(crate) fn invalid(field: impl Into<String>, value: &Value, why: &str) -> Self {
        Self {
            reason: "FieldValueInvalid",
            field: field.into(),
            message: format!("Invalid value: {}: {why}", shown(value)),
        }
    }

    pub(crate) fn type_invalid(field: impl Into<String>, value: &Value, why: &str) -> Self {
        Self {
            reason: "FieldValueTypeInvalid",
            field: field.into(),
            message: format!("Invalid value: {}: {why}", shown(value)),
        }
    }

    pub(crate) fn duplicate(field: impl Into<String>, value: &Value) -> Self {
        Self {
            reason: "FieldValueDuplicate",
            field: field.into(),
            message: format!("Duplicate value: {}", shown(value)),
        }
    }

    pub(crate) fn not_supported(field: impl Into<String>, value: &Value, supported: &[&str]) -> Self {
        let list: Vec<String> = supported.iter().map(|s| format!("\"{s}\"")).collect();
        Self {
            reason: "FieldValueNotSupported",
            field: field.into(),
            message: format!("Unsupported value: {}: supported values: {}", shown(value), list.join(", ")),
        }
    }

    pub(crate) fn forbidden(field: impl Into<String>, why: &str) -> Self {
        Self { reason: "FieldValueForbidden", field: field.into(), message: format!("Forbidden: {why}") }
    }

    fn sentence(&self) -> String {
        format!("{}: {}", self.field, self.message)
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Object(_) | Value::Array(_) => {
            let text = value.to_string();
            if text.len() > 200 { format!("{}…", text.chars().take(200).collect::<String>()) } else { text }
        }
        other => other.to_string(),
    }
}

/// An answer other than success.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct ApiError {
    pub(crate) code: StatusCode,
    pub(crate) reason: Cow<'static, str>,
    pub(crate) message: String,
    pub(crate) details: Option<Box<Value>>,
    pub(crate) retry_after: Option<u32>,
}

impl ApiError {
    pub(crate) fn new(
        code: StatusCode,
        reason: impl Into<Cow<'static, str>>,
        message: impl Into<String>,
    ) -> Self {
        Self { code, reason: reason.into(), message: message.into(), details: None, retry_after: None }
    }

    fn about(mut self, def: &ResourceDef, name: &str) -> Self {
        self.details = Some(Box::new(details(&def.group, &def.plural, name)));
        self
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    /// The request's deadline has passed.
    pub(crate) fn out_of_time() -> Self {
        let message = "Timeout: request did not complete within the allotted timeout";
        Self::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        let message = message.into();
        let mut error = Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "InternalError",
            format!("Internal error occurred: {message}"),
        );
        error.details = Some(Box::new(json!({"causes": [{"message": message}]})));
        error
    }

    pub(crate) fn no_such_path() -> Self {
        let mut error =
            Self::new(StatusCode::NOT_FOUND, "NotFound", "the server could not find the requested resource");
        error.details = Some(Box::new(json!({})));
        error
    }

    /// A path of a group version that isn't served.
    pub(crate) fn no_such_version(group: &str, version: &str) -> Self {
        let mut error = Self::no_such_path();
        if let Some(why) = crate::inert::refusal(group, version) {
            why.clone_into(&mut error.message);
        }
        error
    }

    /// `kubectl debug` shows the sentence.
    pub(crate) fn no_ephemeral_containers() -> Self {
        let mut error = Self::no_such_path();
        "this runtime starts no containers in running pods; use `kubectl exec -it POD -c CONTAINER -- sh`: \
         every container has the machine's tools"
            .clone_into(&mut error.message);
        error
    }

    pub(crate) fn not_found(def: &ResourceDef, name: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", format!("{} {name:?} not found", def.group_resource()))
            .about(def, name)
    }

    pub(crate) fn namespace_not_found(name: &str) -> Self {
        let mut error =
            Self::new(StatusCode::NOT_FOUND, "NotFound", format!("namespaces {name:?} not found"));
        error.details = Some(Box::new(details("", "namespaces", name)));
        error
    }

    pub(crate) fn already_exists(def: &ResourceDef, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", def.group_resource());
        Self::new(StatusCode::CONFLICT, "AlreadyExists", message).about(def, name)
    }

    pub(crate) fn conflict(def: &ResourceDef, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {name:?}: {why}", def.group_resource());
        Self::new(StatusCode::CONFLICT, "Conflict", message).about(def, name)
    }

    pub(crate) fn modified(def: &ResourceDef, name: &str) -> Self {
        Self::conflict(
            def,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    pub(crate) fn forbidden(def: &ResourceDef, name: &str, why: &str) -> Self {
        let message = format!("{} {name:?} is forbidden: {why}", def.group_resource());
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message).about(def, name)
    }

    pub(crate) fn method_not_allowed() -> Self {
        let mut error = Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            "the server does not allow this method on the requested resource",
        );
        error.details = Some(Box::new(json!({})));
        error
    }

    pub(crate) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized")
    }

    pub(crate) fn expired(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "Expired", message)
    }

    pub(crate) fn too_large() -> Self {
        Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "RequestEntityTooLarge",
            "Request entity too large: limit is 3145728",
        )
    }

    pub(crate) fn not_acceptable(accepted: &str) -> Self {
        Self::new(
            StatusCode::NOT_ACCEPTABLE,
            "NotAcceptable",
            format!("only the following media types are accepted: {accepted}"),
        )
    }

    pub(crate) fn unsupported_media_type(accepted: &str) -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format - accepted media types include: {accepted}"
            ),
        )
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", message)
    }

    /// 422 with one cause per field.
    pub(crate) fn invalid(def: &ResourceDef, name: &str, errors: &[FieldError]) -> Self {
        let sentences: Vec<String> = errors.iter().map(FieldError::sentence).collect();
        let list = match sentences.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let causes: Vec<Value> = errors
            .iter()
            .map(|e| json!({"reason": e.reason, "message": e.message, "field": e.field}))
            .collect();
        let kind =
            if def.group.is_empty() { def.kind.clone() } else { format!("{}.{}", def.kind, def.group) };
        let mut error = Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "Invalid",
            format!("{kind} {name:?} is invalid: {list}"),
        );
        error.details =
            Some(Box::new(json!({"name": name, "group": def.group, "kind": def.kind, "causes": causes})));
        error
    }

    /// The body of the answer.
    pub(crate) fn body(&self) -> Value {
        let mut status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
        });
        if let Some(details) = &self.details {
            status["details"] = Value::clone(details);
        }
        if let Some(seconds) = self.retry_after {
            if status.get("details").is_none() {
                status["details"] = json!({});
            }
            status["details"]["retryAfterSeconds"] = json!(seconds);
        }
        status["code"] = json!(self.code.as_u16());
        status
    }
}

fn details(group: &str, plural: &str, name: &str) -> Value {
    let mut details = json!({});
    if !name.is_empty() {
        details["name"] = json!(name);
    }
    if !group.is_empty() {
        details["group"] = json!(group);
    }
    details["kind"] = json!(plural);
    details
}
