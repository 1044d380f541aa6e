//! What is known about one request when its resource is handled.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, header};
use serde_json::Value;

use crate::{
    apply::Manager,
    authn::User,
    decode::FieldValidation,
    resources::ResourceDef,
    response::{self, Form},
    route::Query,
    status::ApiError,
};

/// One request on a resource.
pub(crate) struct Call {
    pub(crate) user: User,
    pub(crate) def: Arc<ResourceDef>,
    pub(crate) namespace: String,
    /// No namespace in the path: cluster-scoped or all namespaces.
    pub(crate) all_namespaces: bool,
    pub(crate) name: String,
    pub(crate) subresource: String,
    pub(crate) query: Query,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Call {
    pub(crate) fn header(&self, name: header::HeaderName) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The body's media type without parameters.
    pub(crate) fn content_type(&self) -> &str {
        self.header(header::CONTENT_TYPE).split(';').next().unwrap_or_default().trim()
    }

    pub(crate) fn form(&self) -> Result<Form, ApiError> {
        response::negotiate(self.headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()))
    }

    pub(crate) fn dry_run(&self) -> Result<bool, ApiError> {
        match self.query.text("dryRun") {
            None => Ok(false),
            Some("All") => Ok(true),
            Some(other) => Err(ApiError::bad_request(format!("invalid dryRun value {other:?}: must be All"))),
        }
    }

    pub(crate) fn field_validation(&self) -> Result<FieldValidation, ApiError> {
        FieldValidation::parse(self.query.get("fieldValidation"))
    }

    /// The field manager: the parameter, or the user agent up to its first slash.
    pub(crate) fn manager(&self) -> Manager {
        let agent = self.header(header::USER_AGENT).split('/').next().unwrap_or_default();
        let name =
            self.query.text("fieldManager").unwrap_or(if agent.is_empty() { "unknown" } else { agent });
        let subresource = if self.subresource == "status" { "status".to_owned() } else { String::new() };
        Manager { name: name.chars().take(128).collect(), subresource }
    }

    /// `timeoutSeconds` of watches.
    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.query.text("timeoutSeconds")?.parse().ok().map(Duration::from_secs)
    }

    /// The body as an object of the resource's kind, checked and cleaned, with warnings about what was dropped.
    pub(crate) fn object(&self) -> Result<(Value, Vec<String>), ApiError> {
        let content_type = self.content_type();
        if !matches!(content_type, "" | "application/json" | "application/yaml" | crate::protobuf::MEDIA_TYPE)
        {
            return Err(ApiError::unsupported_media_type(
                "application/json, application/yaml, application/vnd.kubernetes.protobuf",
            ));
        }
        let (mut value, duplicates) = crate::decode::parse_body(&self.body, content_type)?;
        self.check_kind(&value)?;
        let warnings = self.clean(&mut value, duplicates)?;
        Ok((value, warnings))
    }

    fn check_kind(&self, value: &Value) -> Result<(), ApiError> {
        let def = &self.def;
        let (kind, api_version) = (value["kind"].as_str(), value["apiVersion"].as_str());
        match (kind, api_version) {
            (Some(kind), Some(version)) if kind == def.kind && version == def.api_version() => Ok(()),
            (None | Some(""), _) if !value.is_object() => Err(ApiError::bad_request(
                "the object provided is unrecognized: couldn't get version/kind; json parse error",
            )),
            (None | Some(""), _) => Err(ApiError::bad_request(format!(
                "Object 'Kind' is missing in '{}'",
                value.to_string().chars().take(200).collect::<String>()
            ))),
            (_, None | Some("")) => Err(ApiError::bad_request(format!(
                "Object 'apiVersion' is missing in '{}'",
                value.to_string().chars().take(200).collect::<String>()
            ))),
            (Some(kind), Some(version)) => Err(ApiError::bad_request(format!(
                "the API version in the data ({version}, Kind={kind}) does not match the expected API version ({}, Kind={})",
                def.api_version(),
                def.kind
            ))),
        }
    }

    /// Drops unknown fields from an object; by `fieldValidation` that fails, warns or says nothing.
    pub(crate) fn clean(&self, value: &mut Value, duplicates: Vec<String>) -> Result<Vec<String>, ApiError> {
        let def = &self.def;
        let unknown = crate::decode::conform(def, value)?;
        let mut problems: Vec<String> =
            duplicates.iter().map(|path| format!("duplicate field {path:?}")).collect();
        problems.extend(unknown.iter().map(|path| format!("unknown field {path:?}")));
        match self.field_validation()? {
            FieldValidation::Ignore => Ok(Vec::new()),
            FieldValidation::Warn => Ok(problems),
            FieldValidation::Strict if problems.is_empty() => Ok(problems),
            FieldValidation::Strict => Err(ApiError::bad_request(format!(
                "{} in version {:?} cannot be handled as a {}: strict decoding error: {}",
                def.kind,
                def.version,
                def.kind,
                problems.join(", ")
            ))),
        }
    }
}
