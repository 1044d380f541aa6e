//! `/validate`: the validating webhook for Istio's kinds.
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use lateen_api::Kind;
use lateen_api::stored::STORED_KINDS;
use lateen_api::validate::{
    Findings, validate_authorization_policy, validate_destination_rule, validate_gateway, validate_metadata,
    validate_peer_authentication, validate_request_authentication, validate_service_entry, validate_sidecar,
    validate_virtual_service, validate_workload_entry, validate_workload_group,
};
use lateen_model::{Config, World};
use lateen_translate::{
    Warning, check_authorization_policy, check_destination_rule, check_gateway, check_peer_authentication,
    check_request_authentication, check_service_entry, check_sidecar, check_virtual_service,
    check_workload_entry,
};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::metrics::Metrics;
use crate::push::Published;

/// What the webhook works with.
#[derive(Clone)]
pub(crate) struct Validator {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) published: watch::Receiver<Published>,
}

/// Answers an AdmissionReview.
pub(crate) async fn handle(State(validator): State<Validator>, Json(review): Json<Value>) -> Json<Value> {
    let request = &review["request"];
    let text = |pointer: &str| request.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let world = validator.published.borrow().world.clone();
    let verdict = validate(&request["object"], &world);
    let passed = verdict.error.is_none();
    validator.metrics.validation(
        text("/resource/group"),
        text("/resource/version"),
        text("/resource/resource"),
        passed,
    );
    let mut response = json!({ "uid": request["uid"], "allowed": passed });
    if let Some(message) = verdict.error {
        response["status"] = json!({ "code": 400, "reason": "BadRequest", "message": message });
    }
    if !verdict.warnings.is_empty() {
        response["warnings"] = json!(verdict.warnings);
    }
    Json(json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response }))
}

/// What is said about an object.
#[derive(Debug, Default, PartialEq, Eq)]
struct Verdict {
    /// Why it is refused.
    error: Option<String>,
    warnings: Vec<String>,
}

fn validate(object: &Value, world: &World) -> Verdict {
    let kind = object["kind"].as_str().unwrap_or_default();
    let group = object["apiVersion"]
        .as_str()
        .and_then(|version| version.split_once('/'))
        .map_or("", |(group, _)| group);
    match (group, kind) {
        ("networking.istio.io", "Gateway") => {
            checked(object, validate_gateway, |config| check_gateway(config, world))
        }
        ("networking.istio.io", "VirtualService") => {
            checked(object, validate_virtual_service, |config| check_virtual_service(config, world))
        }
        ("networking.istio.io", "DestinationRule") => {
            checked(object, validate_destination_rule, |config| check_destination_rule(config, world))
        }
        ("networking.istio.io", "ServiceEntry") => {
            checked(object, validate_service_entry, |config| check_service_entry(config, world))
        }
        ("networking.istio.io", "WorkloadEntry") => {
            checked(object, validate_workload_entry, |config| check_workload_entry(config, world))
        }
        ("security.istio.io", "AuthorizationPolicy") => {
            checked(object, validate_authorization_policy, |config| check_authorization_policy(config, world))
        }
        ("security.istio.io", "RequestAuthentication") => {
            checked(object, validate_request_authentication, |config| {
                check_request_authentication(config, world)
            })
        }
        ("networking.istio.io", "Sidecar") => {
            checked(object, validate_sidecar, |config| check_sidecar(config, world))
        }
        ("security.istio.io", "PeerAuthentication") => {
            checked(object, validate_peer_authentication, |config| check_peer_authentication(config, world))
        }
        ("networking.istio.io", "WorkloadGroup") => checked(object, validate_workload_group, |_| Vec::new()),
        _ => {
            let stored = STORED_KINDS.iter().find(|stored| stored.group == group && stored.kind == kind);
            let warnings = stored.map(|stored| stored.no_effect_warning()).into_iter().collect();
            Verdict { error: None, warnings }
        }
    }
}

/// Refuses what is invalid and warns of what has no effect. References that lead nowhere are not worth a word yet: what they
/// mean may be about to be applied. The status tells of them.
fn checked<S: Kind>(
    object: &Value,
    check: fn(&S) -> Findings,
    warnings: impl Fn(&Config<S>) -> Vec<Warning>,
) -> Verdict {
    // An object without a spec has an empty one, in which everything required is missing.
    let spec = object.get("spec").cloned().unwrap_or_else(|| json!({}));
    let metadata: ObjectMeta = serde_json::from_value(object["metadata"].clone()).unwrap_or_default();
    let mut findings = validate_metadata(S::KIND, &metadata, &spec);
    let spec: S = match serde_json::from_value(spec) {
        Ok(spec) => spec,
        Err(error) => {
            return Verdict {
                error: Some(format!("error decoding configuration: {error}")),
                warnings: Vec::new(),
            };
        }
    };
    findings.extend(check(&spec));
    let messages: Vec<String> = findings.errors.iter().map(ToString::to_string).collect();
    // Istio's words, and the way it lists several.
    let error = match &messages[..] {
        [] => None,
        [one] => Some(format!("configuration is invalid: {one}")),
        several => {
            let list = several.join("\n\t* ");
            Some(format!("configuration is invalid: {} errors occurred:\n\t* {list}\n\n", several.len()))
        }
    };
    let mut said: Vec<String> = findings.warnings.iter().map(ToString::to_string).collect();
    if error.is_none() {
        let config = Config::new(lateen_api::Object { metadata, spec, status: None });
        said.extend(
            warnings(&config).into_iter().filter(Warning::is_about_effect).map(|warning| warning.message),
        );
    }
    Verdict { error, warnings: said }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lateen_model::{Store, StoreOptions};

    fn validate(object: &Value) -> Verdict {
        super::validate(object, &Store::new(StoreOptions::default()).world())
    }

    fn object(group: &str, kind: &str, spec: Value) -> Value {
        json!({ "apiVersion": format!("{group}/v1"), "kind": kind, "metadata": { "name": "x" }, "spec": spec })
    }

    #[test]
    fn good_objects_pass() {
        let route = json!([{ "route": [{ "destination": { "host": "a" } }] }]);
        let verdict = validate(&object(
            "networking.istio.io",
            "VirtualService",
            json!({ "hosts": ["a"], "http": route }),
        ));
        assert_eq!(verdict.error, None);
        let rule = object("networking.istio.io", "DestinationRule", json!({ "host": "a" }));
        assert_eq!(validate(&rule).error, None);
        assert_eq!(validate(&object("other.io", "Thing", json!({}))), Verdict::default());
    }

    #[test]
    fn bad_objects_are_refused_in_istios_words() {
        let why =
            |kind: &str, spec: Value| validate(&object("networking.istio.io", kind, spec)).error.unwrap();
        let none = why("Gateway", json!({}));
        assert!(none.starts_with("configuration is invalid: "), "{none}");
        let weights = json!([
            { "route": [{ "destination": { "host": "a" }, "weight": -1 }, { "destination": { "host": "" }, "weight": 1 }] }
        ]);
        let several = why("VirtualService", json!({ "hosts": ["a"], "http": weights }));
        assert!(several.contains("errors occurred:\n\t* "), "{several}");
        assert!(why("VirtualService", json!({ "hosts": 5 })).starts_with("error decoding configuration"));
        assert!(why("DestinationRule", Value::Null).contains("configuration"));
    }

    #[test]
    fn metadata_is_checked_too() {
        let mut policy = object("security.istio.io", "PeerAuthentication", json!({}));
        policy["metadata"] =
            json!({ "name": "x", "namespace": "n", "annotations": { "istio.io/dry-run": "true" } });
        let words = "n/x has unsupported annotation istio.io/dry-run, please remove the annotation";
        assert!(validate(&policy).error.unwrap().ends_with(words));
    }

    #[test]
    fn kinds_without_effect_are_allowed_with_a_warning() {
        let verdict = validate(&object("networking.istio.io", "EnvoyFilter", json!({})));
        assert_eq!(verdict.error, None);
        assert!(verdict.warnings[0].contains("no effect yet"), "{verdict:?}");
    }

    #[test]
    fn fields_without_effect_are_told_and_missing_hosts_are_not() {
        let route = json!([{ "destination": { "host": "nobody" } }]);
        let tcp = json!([{ "match": [{ "sourceSubnet": "10.0.0.0/8" }], "route": route }]);
        let verdict =
            validate(&object("networking.istio.io", "VirtualService", json!({ "hosts": ["a"], "tcp": tcp })));
        assert_eq!(verdict.error, None);
        assert_eq!(
            verdict.warnings,
            ["spec.tcp[0].match[0].sourceSubnet has no effect yet: Istio does not look at it either"]
        );
    }
}
