//! Telling the API server that our webhooks can be trusted: `caBundle` in our webhook configurations, and
//! `failurePolicy: Fail` on the validator once it answers.
use std::fmt::Debug;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::TryStreamExt as _;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use kube::api::{Patch, PatchParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource, ResourceExt as _};
use lateen_manifests::{INJECTOR_WEBHOOK_PREFIX, VALIDATOR_WEBHOOK_PREFIX};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::ca_secret::CurrentAuthority;

/// Pause before what failed is tried again.
const RETRY: Duration = Duration::from_secs(2);

/// Keeps our revision's webhook configurations patched, and patches them anew when what is to be trusted changes.
pub(crate) async fn keep(
    client: Client,
    revision: String,
    mut authority: CurrentAuthority,
    stop: CancellationToken,
) {
    let keeping = async {
        loop {
            let bundle = STANDARD.encode(authority.borrow_and_update().root_pem());
            let injectors = follow::<MutatingWebhookConfiguration>(
                &client,
                &revision,
                INJECTOR_WEBHOOK_PREFIX,
                &bundle,
                false,
            );
            let validators = follow::<ValidatingWebhookConfiguration>(
                &client,
                &revision,
                VALIDATOR_WEBHOOK_PREFIX,
                &bundle,
                true,
            );
            tokio::select! {
                _ = async { tokio::join!(injectors, validators) } => return,
                changed = authority.changed() => if changed.is_err() { return },
            }
        }
    };
    stop.run_until_cancelled(keeping).await;
}

async fn follow<K>(client: &Client, revision: &str, prefix: &str, bundle: &str, set_policy: bool)
where
    K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned + Send + Sync + 'static,
{
    let api: Api<K> = Api::all(client.clone());
    let config = watcher::Config::default().labels(&format!("istio.io/rev={revision}"));
    let mut events = std::pin::pin!(watcher(api.clone(), config).default_backoff().applied_objects());
    loop {
        let object = match events.try_next().await {
            Ok(Some(object)) => object,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!("watching {}: {error}; trying again", K::kind(&()));
                continue;
            }
        };
        bring(&api, object, RETRY, |object| patch(object, prefix, bundle, set_policy)).await;
    }
}

/// Patches an object until it is as it should be. What the API server could not do is tried again, for the watch would not tell of
/// the object a second time, and without a bundle that fits no pod would be injected.
async fn bring<K>(
    api: &Api<K>,
    mut object: K,
    pause: Duration,
    patch: impl Fn(&K) -> Option<json_patch::Patch>,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let name = object.name_any();
    let mut told = false;
    while let Some(patch) = patch(&object) {
        match api.patch(&name, &PatchParams::default(), &Patch::<()>::Json(patch)).await {
            Ok(_) => return tracing::info!("{} {name} now trusts our certificate", K::kind(&())),
            // Somebody changed it meanwhile; the watch brings the new state.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409 | 422) => return,
            Err(error) if !std::mem::replace(&mut told, true) => {
                tracing::error!(
                    "cannot patch {} {name}: {error}; trying again until it is done",
                    K::kind(&())
                );
            }
            Err(_) => {}
        }
        tokio::time::sleep(pause).await;
        match api.get_opt(&name).await {
            Ok(Some(now)) => object = now,
            Ok(None) => return,
            // As it was, then.
            Err(_) => {}
        }
    }
}

/// What is to be changed, or none.
fn patch(object: &impl Serialize, prefix: &str, bundle: &str, set_policy: bool) -> Option<json_patch::Patch> {
    let object = serde_json::to_value(object).ok()?;
    if !object["metadata"]["name"].as_str()?.starts_with(prefix) {
        return None;
    }
    let mut operations = Vec::new();
    for (index, webhook) in object["webhooks"].as_array()?.iter().enumerate() {
        let mut set = |pointer: &str, value: Value| {
            if webhook.pointer(pointer) != Some(&value) {
                operations.push(
                    json!({ "op": "add", "path": format!("/webhooks/{index}{pointer}"), "value": value }),
                );
            }
        };
        set("/clientConfig/caBundle", json!(bundle));
        if set_policy {
            set("/failurePolicy", json!("Fail"));
        }
    }
    if operations.is_empty() {
        return None;
    }
    serde_json::from_value(Value::Array(operations)).ok()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test]
    async fn what_the_api_server_could_not_do_is_tried_again() {
        let answers = Arc::new(Mutex::new(vec![200, 503, 500]));
        let left = answers.clone();
        let object = json!({ "metadata": { "name": "istio-sidecar-injector" }, "webhooks": [{
            "name": "a.b.c", "clientConfig": {}, "admissionReviewVersions": [], "sideEffects": "None",
        }] });
        let body = object.to_string();
        let server = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let patching = request.method() == http::Method::PATCH;
            let code = if patching { left.lock().unwrap().pop().unwrap() } else { 200 };
            let answer = http::Response::builder()
                .status(code)
                .body(kube::client::Body::from(body.clone().into_bytes()));
            async move { Ok::<_, std::io::Error>(answer.unwrap()) }
        });
        let api: Api<MutatingWebhookConfiguration> = Api::all(Client::new(server, "default"));
        let object: MutatingWebhookConfiguration = serde_json::from_value(object).unwrap();
        let needed =
            |object: &MutatingWebhookConfiguration| patch(object, INJECTOR_WEBHOOK_PREFIX, "Q0E=", false);
        let done = bring(&api, object, Duration::from_millis(1), needed);
        tokio::time::timeout(Duration::from_secs(20), done).await.expect("it is done");
        assert!(answers.lock().unwrap().is_empty());
    }

    #[test]
    fn only_what_differs_is_patched_and_only_ours() {
        let object = |name: &str, bundle: Value, policy: &str| {
            json!({ "metadata": { "name": name }, "webhooks": [
                { "clientConfig": { "caBundle": bundle }, "failurePolicy": policy }
            ] })
        };
        let paths = |object: &Value, set_policy| {
            let patch = patch(object, "istio-validator", "Q0E=", set_policy)?;
            let patch = serde_json::to_value(patch).unwrap();
            Some(
                patch
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|op| op["path"].as_str().unwrap().to_owned())
                    .collect::<Vec<_>>(),
            )
        };
        let fresh = object("istio-validator-x", Value::Null, "Ignore");
        let both =
            ["/webhooks/0/clientConfig/caBundle", "/webhooks/0/failurePolicy"].map(str::to_owned).to_vec();
        assert_eq!(paths(&fresh, true), Some(both));
        assert_eq!(paths(&fresh, false).map(|paths| paths.len()), Some(1));
        assert_eq!(paths(&object("istio-validator-x", json!("Q0E="), "Fail"), true), None);
        assert_eq!(paths(&object("other", Value::Null, "Ignore"), true), None);
    }
}
