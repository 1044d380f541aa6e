//! Admission webhooks: which are asked, and what their answers do.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use http::StatusCode;
use serde_json::{Value, json};

use crate::{
    call::Call,
    resources::{ResourceDef, meta},
    schema::strings,
    selector::LabelSelector,
    state::Api,
    status::ApiError,
    store::ObjectKey,
    webhook,
};

const MUTATING: &str = "mutatingwebhookconfigurations.admissionregistration.k8s.io";
const VALIDATING: &str = "validatingwebhookconfigurations.admissionregistration.k8s.io";

/// What is done to the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

/// One request as webhooks see it.
struct Attempt<'a> {
    call: &'a Call,
    operation: Operation,
    old: Option<&'a Value>,
}

/// Asks the mutating webhooks in order; `object` is changed by their patches.
pub(crate) async fn mutate(
    api: &Api,
    call: &Call,
    operation: Operation,
    object: &mut Value,
    old: Option<&Value>,
) -> Result<Vec<String>, ApiError> {
    let hooks = configured(api, call, MUTATING);
    let mut warnings = Vec::new();
    let attempt = Attempt { call, operation, old };
    // Who has answered, and whether the object changed after that.
    let mut outdated: Vec<bool> = Vec::with_capacity(hooks.len());
    for hook in &hooks {
        let changed = ask_mutating(api, &attempt, hook, object, &mut warnings).await?;
        if changed {
            outdated.iter_mut().for_each(|seen| *seen = true);
        }
        outdated.push(false);
    }
    for (hook, outdated) in hooks.iter().zip(outdated) {
        if outdated && hook["reinvocationPolicy"] == "IfNeeded" {
            ask_mutating(api, &attempt, hook, object, &mut warnings).await?;
        }
    }
    Ok(warnings)
}

/// Asks the validating webhooks, all at once; the first refusal in their order counts.
pub(crate) async fn validate(
    api: &Api,
    call: &Call,
    operation: Operation,
    object: Option<&Value>,
    old: Option<&Value>,
) -> Result<Vec<String>, ApiError> {
    let hooks = configured(api, call, VALIDATING);
    let attempt = Attempt { call, operation, old };
    let object = object.unwrap_or(&Value::Null);
    let asked = hooks.iter().map(|hook| ask(api, &attempt, hook, object));
    let mut warnings = Vec::new();
    for answer in futures::future::join_all(asked).await {
        if let Some(response) = answer? {
            warnings.extend(strings(&response["warnings"]));
        }
    }
    Ok(warnings)
}

/// All webhooks of a kind, in the order of their configurations' names.
fn configured(api: &Api, call: &Call, storage: &str) -> Vec<Value> {
    // A broken webhook must not keep its own configuration from being repaired.
    if call.def.group == "admissionregistration.k8s.io" {
        return Vec::new();
    }
    let configurations = api.store.list(storage, None, None, None, |_| true).objects;
    configurations.iter().flat_map(|one| one["webhooks"].as_array().cloned().unwrap_or_default()).collect()
}

async fn ask_mutating(
    api: &Api,
    attempt: &Attempt<'_>,
    hook: &Value,
    object: &mut Value,
    warnings: &mut Vec<String>,
) -> Result<bool, ApiError> {
    let Some(response) = ask(api, attempt, hook, object).await? else { return Ok(false) };
    warnings.extend(strings(&response["warnings"]));
    let Some(patch) = response["patch"].as_str().filter(|patch| !patch.is_empty()) else { return Ok(false) };
    if object.is_null() {
        return Ok(false);
    }
    let name = hook["name"].as_str().unwrap_or_default();
    let broken = |why: String| ApiError::internal(format!("failed calling webhook {name:?}: {why}"));
    if response["patchType"] != "JSONPatch" {
        return Err(broken(format!("unsupported patch type {}", response["patchType"])));
    }
    let bytes = BASE64.decode(patch).map_err(|e| broken(format!("patch is not base64: {e}")))?;
    let patch: Value =
        serde_json::from_slice(&bytes).map_err(|e| broken(format!("patch is not JSON: {e}")))?;
    let before = object.clone();
    crate::patch::json_patch(object, &patch).map_err(|e| broken(e.message))?;
    Ok(*object != before)
}

/// Calls one webhook if it is meant; gives its (allowing) response.
async fn ask(
    api: &Api,
    attempt: &Attempt<'_>,
    hook: &Value,
    object: &Value,
) -> Result<Option<Value>, ApiError> {
    let call = attempt.call;
    let Some(seen_as) = matching_version(api, attempt, hook) else { return Ok(None) };
    if !selected(api, attempt, hook, object) {
        return Ok(None);
    }
    let name = hook["name"].as_str().unwrap_or_default();
    let dry_run = call.dry_run()?;
    if dry_run && !matches!(hook["sideEffects"].as_str(), Some("None" | "NoneOnDryRun")) {
        return Err(ApiError::bad_request(format!("admission webhook {name:?} does not support dry run")));
    }
    let review = review(attempt, object, &seen_as, dry_run);
    let timeout = Duration::from_secs(hook["timeoutSeconds"].as_u64().unwrap_or(10).clamp(1, 30));
    let answer = webhook::call(api, &hook["clientConfig"], timeout, &review).await;
    let response = match answer.and_then(|answer| check_answer(&review, answer)) {
        Ok(response) => response,
        Err(why) if hook["failurePolicy"] == "Ignore" => {
            tracing::warn!(webhook = name, %why, "failed calling webhook, failing open");
            return Ok(None);
        }
        Err(why) => {
            return Err(ApiError::internal(format!(
                "failed calling webhook {name:?}: failed to call webhook: {why}"
            )));
        }
    };
    if response["allowed"] == true { Ok(Some(response)) } else { Err(denied(name, &response)) }
}

fn check_answer(review: &Value, answer: Value) -> Result<Value, String> {
    let response = &answer["response"];
    if !response.is_object() {
        return Err("webhook response was absent".to_owned());
    }
    if response["uid"] != review["request"]["uid"] {
        return Err(format!("expected response.uid={}, got {}", review["request"]["uid"], response["uid"]));
    }
    Ok(response.clone())
}

fn denied(name: &str, response: &Value) -> ApiError {
    let status = &response["status"];
    let text = |field: &str| status[field].as_str().filter(|text| !text.is_empty());
    let message = match text("message").or(text("reason")) {
        Some(why) => format!("admission webhook {name:?} denied the request: {why}"),
        None => format!("admission webhook {name:?} denied the request without explanation"),
    };
    let code = status["code"].as_u64().and_then(|code| u16::try_from(code).ok()).filter(|code| *code >= 400);
    let code = code.and_then(|code| StatusCode::from_u16(code).ok()).unwrap_or(StatusCode::BAD_REQUEST);
    let mut error = ApiError::new(code, text("reason").unwrap_or_default().to_owned(), message);
    error.details = status.get("details").cloned().map(Box::new);
    error
}

/// The version of the resource the webhook wants, if its rules match at all.
fn matching_version(api: &Api, attempt: &Attempt<'_>, hook: &Value) -> Option<ResourceDef> {
    let def = &attempt.call.def;
    let matches = |def: &ResourceDef| {
        hook["rules"].as_array().into_iter().flatten().any(|rule| rule_matches(rule, attempt, def))
    };
    if matches(def) {
        return Some(ResourceDef::clone(def));
    }
    if hook["matchPolicy"] == "Exact" {
        return None;
    }
    let others = api.registry.all();
    others
        .iter()
        .find(|other| other.storage == def.storage && matches(other))
        .map(|other| ResourceDef::clone(other))
}

fn rule_matches(rule: &Value, attempt: &Attempt<'_>, def: &ResourceDef) -> bool {
    let has = |field: &str, wanted: &str| strings(&rule[field]).iter().any(|one| one == "*" || one == wanted);
    let subresource = &attempt.call.subresource;
    let resource = strings(&rule["resources"]).iter().any(|pattern| {
        let (main, sub) = pattern.split_once('/').map_or((pattern.as_str(), None), |(m, s)| (m, Some(s)));
        let main_fits = main == "*" || main == def.plural;
        let sub_fits = match sub {
            None => subresource.is_empty(),
            Some(sub) => sub == "*" || sub == subresource,
        };
        main_fits && sub_fits
    });
    let scope = match rule["scope"].as_str() {
        Some("Cluster") => !def.namespaced,
        Some("Namespaced") => def.namespaced,
        _ => true,
    };
    resource
        && scope
        && has("operations", attempt.operation.name())
        && has("apiGroups", &def.group)
        && has("apiVersions", &def.version)
}

fn selected(api: &Api, attempt: &Attempt<'_>, hook: &Value, object: &Value) -> bool {
    let call = attempt.call;
    let old = attempt.old.unwrap_or(&Value::Null);
    let matches = |selector: &Value, labels: &Value| {
        selector.is_null() || LabelSelector::from_object(selector).is_ok_and(|s| s.matches(labels))
    };
    let namespace_fits = if call.def.is("", "namespaces") {
        let subject = if object.is_null() { old } else { object };
        matches(&hook["namespaceSelector"], &subject["metadata"]["labels"])
    } else if call.def.namespaced {
        let namespace = api.store.get("namespaces", &ObjectKey::new("", &*call.namespace));
        let labels = namespace.map(|n| n["metadata"]["labels"].clone()).unwrap_or_default();
        matches(&hook["namespaceSelector"], &labels)
    } else {
        true
    };
    let object_fits = [object, old]
        .iter()
        .any(|one| !one.is_null() && matches(&hook["objectSelector"], &one["metadata"]["labels"]));
    namespace_fits && object_fits
}

fn review(attempt: &Attempt<'_>, object: &Value, seen_as: &ResourceDef, dry_run: bool) -> Value {
    let call = attempt.call;
    let def = &call.def;
    let versioned = |object: &Value| {
        let mut object = object.clone();
        if object.is_object() {
            object["apiVersion"] = json!(seen_as.api_version());
            object["kind"] = json!(seen_as.kind);
        }
        object
    };
    let kind = |def: &ResourceDef| json!({"group": def.group, "version": def.version, "kind": def.kind});
    let resource =
        |def: &ResourceDef| json!({"group": def.group, "version": def.version, "resource": def.plural});
    let options_kind = match attempt.operation {
        Operation::Create => "CreateOptions",
        Operation::Update => "UpdateOptions",
        Operation::Delete => "DeleteOptions",
        Operation::Connect => "ConnectOptions",
    };
    let subject = if object.is_null() { attempt.old.unwrap_or(&Value::Null) } else { object };
    let mut request = json!({
        "uid": uuid::Uuid::new_v4().to_string(),
        "kind": kind(seen_as),
        "resource": resource(seen_as),
        "requestKind": kind(def),
        "requestResource": resource(def),
        "name": if call.name.is_empty() { meta(subject, "name") } else { call.name.as_str() },
        "operation": attempt.operation.name(),
        "userInfo": call.user.info(),
        "object": versioned(object),
        "oldObject": attempt.old.map_or(Value::Null, versioned),
        "dryRun": dry_run,
        "options": {"apiVersion": "meta.k8s.io/v1", "kind": options_kind},
    });
    if def.namespaced {
        request["namespace"] = json!(call.namespace);
    } else if def.is("", "namespaces") {
        request["namespace"] = json!(meta(subject, "name"));
    }
    if !call.subresource.is_empty() {
        request["subResource"] = json!(call.subresource);
        request["requestSubResource"] = json!(call.subresource);
    }
    json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": request})
}
