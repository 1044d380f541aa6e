//! `/inject`: the mutating webhook for pods.
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::inject::{Decision, InjectContext, decide, inject};
use crate::mesh_objects::InjectionState;
use crate::metrics::{Injection, Metrics};

/// What the webhook works with.
#[derive(Clone)]
pub(crate) struct Injector {
    pub(crate) state: InjectionState,
    pub(crate) revision: String,
    pub(crate) metrics: Arc<Metrics>,
}

/// Answers an AdmissionReview.
pub(crate) async fn handle(State(injector): State<Injector>, Json(review): Json<Value>) -> Json<Value> {
    let request = &review["request"];
    let (outcome, mut response) = injector.answer(request);
    injector.metrics.injection(outcome);
    response["uid"] = request["uid"].clone();
    Json(json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response }))
}

impl Injector {
    fn answer(&self, request: &Value) -> (Injection, Value) {
        let pod = &request["object"];
        if pod["kind"] != "Pod" {
            return (Injection::Skip, json!({ "allowed": true }));
        }
        let namespace = request["namespace"].as_str().unwrap_or_default();
        let name =
            ["name", "generateName"].iter().find_map(|key| pod["metadata"][key].as_str()).unwrap_or_default();
        let Some(config) = self.state.config.borrow().clone() else {
            return failure(
                "the injection template is not loaded yet; is ConfigMap istio-sidecar-injector there?",
            );
        };
        if let Decision::Skip(reason) = decide(pod, namespace, &config) {
            tracing::debug!("pod {namespace}/{name} is not injected: {reason}");
            return (Injection::Skip, json!({ "allowed": true }));
        }
        let mesh = self.state.mesh.borrow().clone();
        let given = InjectContext { namespace, revision: &self.revision, mesh: &mesh };
        let patch = inject(pod, &config, &given).map_err(|error| error.to_string());
        match patch.and_then(|patch| serde_json::to_vec(&patch).map_err(|error| error.to_string())) {
            Ok(patch) => {
                tracing::info!("injecting pod {namespace}/{name}");
                let patch = STANDARD.encode(patch);
                (Injection::Success, json!({ "allowed": true, "patchType": "JSONPatch", "patch": patch }))
            }
            Err(error) => {
                tracing::warn!("pod {namespace}/{name} cannot be injected: {error}");
                failure(&error)
            }
        }
    }
}

fn failure(message: &str) -> (Injection, Value) {
    (Injection::Failure, json!({ "allowed": false, "status": { "code": 500, "message": message } }))
}
