//! Kinds that are asked and not stored: TokenReview, SubjectAccessReview and relatives, TokenRequest.

use std::time::Duration;

use http::{Response, StatusCode};
use serde_json::{Value, json};

use crate::{
    authn::{Bound, User},
    builtin::Review,
    call::Call,
    rbac::{self, Attributes},
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
        "SelfSubjectRulesReview" => own_rules(api, user, &object["spec"]),
        "SelfSubjectAccessReview" => access_review(api, user, &object["spec"]),
        // Of a user (SubjectAccessReview), perhaps in one namespace (LocalSubjectAccessReview).
        _ => {
            let spec = &object["spec"];
            let subject = User {
                name: spec["user"].as_str().unwrap_or_default().to_owned(),
                uid: spec["uid"].as_str().unwrap_or_default().to_owned(),
                groups: strings(&spec["groups"]),
                extra: Vec::new(),
            };
            access_review(api, &subject, spec)
        }
    };
    if !object["metadata"].is_object() {
        object["metadata"] = json!({"creationTimestamp": null});
    }
    Ok(response::json(StatusCode::CREATED, &object))
}

fn access_review(api: &Api, user: &User, spec: &Value) -> Value {
    let (allowed, reason) = match rbac::decide(api, user, &Attributes::of_review(spec)) {
        Ok(reason) => (true, reason),
        Err(reason) => (false, reason),
    };
    if reason.is_empty() {
        json!({"allowed": allowed})
    } else {
        json!({"allowed": allowed, "reason": reason})
    }
}

/// Everything somebody may do in a namespace (`kubectl auth can-i --list`).
fn own_rules(api: &Api, user: &User, spec: &Value) -> Value {
    let (grants, missing) = rbac::grants(api, user, spec["namespace"].as_str().unwrap_or_default());
    let rules = || grants.iter().flat_map(rbac::Grant::rules);
    let with = |field: &'static str, fields: &'static [&'static str]| -> Vec<Value> {
        let has = move |rule: &&Value| rule[field].as_array().is_some_and(|list| !list.is_empty());
        let only = move |rule: &Value| {
            let kept = fields.iter().filter(|field| !rule[**field].is_null());
            Value::Object(kept.map(|field| ((*field).to_owned(), rule[*field].clone())).collect())
        };
        rules().filter(has).map(only).collect()
    };
    let mut status = json!({
        "resourceRules": with("resources", &["verbs", "apiGroups", "resources", "resourceNames"]),
        "nonResourceRules": with("nonResourceURLs", &["verbs", "nonResourceURLs"]),
        "incomplete": !missing.is_empty(),
    });
    if !missing.is_empty() {
        status["evaluationError"] = json!(missing.join(", "));
    }
    status
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
