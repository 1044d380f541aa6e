//! Kinds that are asked and not stored: TokenReview, SubjectAccessReview and relatives, TokenRequest.

use std::time::Duration;

use http::{Response, StatusCode};
use serde_json::{Value, json};

use crate::{
    authn::{Bound, User},
    builtin::Review,
    call::Call,
    rbac,
    response::{self, Body},
    schema::strings,
    server::TokenRequest,
    state::{self, Api},
    status::ApiError,
};

/// POST of a review.
pub(crate) fn answer(
    api: &Api,
    user: &User,
    review: &Review,
    body: &[u8],
    content_type: &str,
) -> Result<Response<Body>, ApiError> {
    let (mut object, _) = crate::decode::parse_body(body, content_type)?;
    let expected = format!("{}/{}", review.group, review.version);
    if object["kind"] != review.kind || object["apiVersion"] != expected.as_str() {
        return Err(ApiError::bad_request(format!(
            "the API version in the data ({}, Kind={}) does not match the expected API version ({expected}, Kind={})",
            object["apiVersion"].as_str().unwrap_or_default(),
            object["kind"].as_str().unwrap_or_default(),
            review.kind
        )));
    }
    object["status"] = match review.kind {
        "TokenReview" => token_review(api, &object["spec"]),
        "SelfSubjectReview" => json!({"userInfo": user.info()}),
        "SelfSubjectRulesReview" => json!({
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
            "incomplete": false,
        }),
        // What the roles grant; not asked before anything is done here (see below).
        "SubjectAccessReview" | "LocalSubjectAccessReview" => match rbac::granted(api, &object["spec"]) {
            Some(reason) => json!({"allowed": true, "reason": reason}),
            None => json!({"allowed": false, "reason": "no role is bound to it that grants this"}),
        },
        // Whoever is authenticated may do everything.
        _ => json!({"allowed": true, "reason": "authorization is not enforced by this API server"}),
    };
    if !object["metadata"].is_object() {
        object["metadata"] = json!({"creationTimestamp": null});
    }
    Ok(response::json(StatusCode::CREATED, &object))
}

fn token_review(api: &Api, spec: &Value) -> Value {
    let token = spec["token"].as_str().unwrap_or_default();
    match api.authenticator.review(&api.store, token, &strings(&spec["audiences"])) {
        Ok((user, audiences)) => json!({"authenticated": true, "user": user.info(), "audiences": audiences}),
        Err(why) => json!({"user": {}, "error": format!("[invalid bearer token, {why}]")}),
    }
}

/// POST on `serviceaccounts/NAME/token`.
pub(crate) fn token_request(api: &Api, call: &Call) -> Result<Response<Body>, ApiError> {
    let (mut object, _) = crate::decode::parse_body(&call.body, call.content_type())?;
    if api.stored(&call.def, &call.namespace, &call.name).is_none() {
        return Err(ApiError::not_found(&call.def, &call.name));
    }
    let spec = &object["spec"];
    let seconds = spec["expirationSeconds"].as_u64().unwrap_or(3600);
    if seconds < 600 {
        let error = crate::status::FieldError::invalid(
            "spec.expirationSeconds",
            &spec["expirationSeconds"],
            "may not specify a duration less than 10 minutes",
        );
        return Err(ApiError::invalid(&call.def, &call.name, &[error]));
    }
    let request = TokenRequest {
        namespace: call.namespace.clone(),
        service_account: call.name.clone(),
        audiences: strings(&spec["audiences"]),
        expiration: Duration::from_secs(seconds),
        pod: None,
    };
    let reference = spec["boundObjectRef"].clone();
    let text = |field: &str| reference[field].as_str().unwrap_or_default();
    let bound =
        reference.is_object().then(|| Bound { kind: text("kind"), name: text("name"), uid: text("uid") });
    let (token, expires) = api
        .authenticator
        .mint(&api.store, &request, bound)
        .map_err(|why| ApiError::new(StatusCode::NOT_FOUND, "NotFound", why))?;
    object["kind"] = json!("TokenRequest");
    object["apiVersion"] = json!("authentication.k8s.io/v1");
    object["metadata"] =
        json!({"name": call.name, "namespace": call.namespace, "creationTimestamp": state::now()});
    let audiences =
        if request.audiences.is_empty() { api.authenticator.own_audiences() } else { request.audiences };
    object["spec"]["audiences"] = json!(audiences);
    object["spec"]["expirationSeconds"] = json!(seconds);
    object["status"] = json!({"token": token, "expirationTimestamp": expires});
    Ok(response::json(StatusCode::CREATED, &object))
}
