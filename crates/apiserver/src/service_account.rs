//! The ServiceAccount admission plugin: pods get an account and its token.

use serde_json::{Value, json};

use crate::{
    defaults::{each, set},
    resources::meta,
    state::Api,
    status::ApiError,
    store::ObjectKey,
};

const TOKEN_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";

/// Sets the pod's account and mounts its token into every container (again for containers added since).
pub(crate) fn admit(api: &Api, pod: &mut Value) -> Result<(), ApiError> {
    let namespace = meta(pod, "namespace").to_owned();
    set(&mut pod["spec"], "serviceAccountName", json!("default"));
    let account_name = pod["spec"]["serviceAccountName"].as_str().unwrap_or_default().to_owned();
    pod["spec"]["serviceAccount"] = json!(account_name);
    let account = api.store.get("serviceaccounts", &ObjectKey::new(&*namespace, &*account_name));
    // `default` is made by a controller shortly after the namespace; a pod need not wait for it.
    if account.is_none() && account_name != "default" {
        let message = format!(
            "pods {:?} is forbidden: error looking up service account {namespace}/{account_name}: serviceaccount {account_name:?} not found",
            meta(pod, "name")
        );
        return Err(ApiError::new(http::StatusCode::FORBIDDEN, "Forbidden", message));
    }
    let account_says = account.as_ref().map(|account| account["automountServiceAccountToken"] != false);
    let wanted = pod["spec"]["automountServiceAccountToken"].as_bool().or(account_says).unwrap_or(true);
    if let Some(secrets) = account.as_ref().and_then(|account| account.get("imagePullSecrets")) {
        set(&mut pod["spec"], "imagePullSecrets", secrets.clone());
    }
    if wanted {
        mount_token(pod);
    }
    Ok(())
}

fn mount_token(pod: &mut Value) {
    let spec = &mut pod["spec"];
    let existing = each(spec, "volumes")
        .filter_map(|volume| volume["name"].as_str())
        .find(|name| name.starts_with(VOLUME_PREFIX))
        .map(str::to_owned);
    let name = existing.clone().unwrap_or_else(|| {
        let suffix: String = (0..5).map(|_| fastrand::lowercase()).collect();
        format!("{VOLUME_PREFIX}{suffix}")
    });
    let mut mounted = false;
    for list in ["initContainers", "containers"] {
        for container in each(spec, list) {
            let has_own = each(container, "volumeMounts").any(|mount| mount["mountPath"] == TOKEN_PATH);
            if has_own {
                continue;
            }
            set(container, "volumeMounts", json!([]));
            if let Some(mounts) = container["volumeMounts"].as_array_mut() {
                mounts.push(json!({"name": name, "readOnly": true, "mountPath": TOKEN_PATH}));
                mounted = true;
            }
        }
    }
    if mounted && existing.is_none() {
        set(spec, "volumes", json!([]));
        if let Some(volumes) = spec["volumes"].as_array_mut() {
            volumes.push(token_volume(&name));
        }
    }
}

fn token_volume(name: &str) -> Value {
    json!({"name": name, "projected": {"defaultMode": 420, "sources": [
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [
            {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
    ]}})
}
