//! What a write does to an object before admission: defaults, and the fields that are the server's.

use serde_json::{Value, json};

use crate::{
    call::Call,
    certificates, defaults,
    resources::{ResourceDef, meta},
    status::{ApiError, FieldError},
    structural,
};

/// Defaults, built-in or of the schema.
pub(crate) fn complete(def: &ResourceDef, object: &mut Value) {
    if def.custom {
        structural::default_fields(def.schemas.schema(&def.schema_name), object);
    } else {
        defaults::apply(def, object);
    }
    if def.is("", "namespaces") && meta(object, "deletionTimestamp").is_empty() {
        object["spec"]["finalizers"] = json!(["kubernetes"]);
    }
}

/// The selector and labels that tell a Job's pods from everybody else's (`batch/job/strategy.go`), unless its author chose them.
pub(crate) fn select_own_pods(job: &mut Value) {
    if job["spec"]["manualSelector"] == true || !job["spec"].is_object() {
        return;
    }
    let (name, uid) = (meta(job, "name").to_owned(), meta(job, "uid").to_owned());
    for (prefix, value) in [("job-name", name), ("controller-uid", uid)] {
        for key in [prefix.to_owned(), format!("batch.kubernetes.io/{prefix}")] {
            job["spec"]["template"]["metadata"]["labels"][key] = json!(value);
        }
        if prefix == "controller-uid" {
            job["spec"]["selector"]["matchLabels"]["batch.kubernetes.io/controller-uid"] = json!(value);
        }
    }
}

/// The status a pod is born with.
pub(crate) fn start_pod(pod: &mut Value) {
    let resources = |pod: &Value, list: &str| -> Vec<Value> {
        pod["spec"][list].as_array().into_iter().flatten().map(|c| c["resources"].clone()).collect()
    };
    let mut all = resources(pod, "containers");
    all.extend(resources(pod, "initContainers"));
    let set = |r: &Value, name: &str| r[name].as_object().is_some_and(|map| !map.is_empty());
    let guaranteed = all.iter().all(|r| {
        set(r, "limits")
            && r["limits"] == r["requests"]
            && ["cpu", "memory"].iter().all(|name| r["limits"].get(name).is_some())
    });
    let class = if !all.iter().any(|r| set(r, "limits") || set(r, "requests")) {
        "BestEffort"
    } else if guaranteed {
        "Guaranteed"
    } else {
        "Burstable"
    };
    pod["status"] = json!({"phase": "Pending", "qosClass": class});
}

/// Equal apart from the managers' time stamps.
pub(crate) fn same_content(old: &Value, new: &Value) -> bool {
    let stripped = |object: &Value| {
        let mut object = object.clone();
        for entry in defaults::each(&mut object["metadata"], "managedFields") {
            if let Some(map) = entry.as_object_mut() {
                map.shift_remove("time");
            }
        }
        object
    };
    stripped(old) == stripped(new)
}

/// Puts back what a write through this path can't change.
pub(crate) fn keep_system_fields(
    def: &ResourceDef,
    call: &Call,
    old: &Value,
    new: &mut Value,
) -> Result<(), ApiError> {
    let (old_uid, new_uid) = (meta(old, "uid"), meta(new, "uid"));
    if !new_uid.is_empty() && new_uid != old_uid {
        let why =
            format!("Precondition failed: UID in precondition: {new_uid}, UID in object meta: {old_uid}");
        return Err(ApiError::conflict(def, &call.name, &why));
    }
    if !new["metadata"].is_object() {
        new["metadata"] = json!({});
    }
    if meta(new, "name") != call.name {
        let error = FieldError::invalid("metadata.name", &new["metadata"]["name"], "field is immutable");
        return Err(ApiError::invalid(def, &call.name, &[error]));
    }
    let status_only = call.subresource == "status";
    if certificates::is_request(def) {
        certificates::keep(call, old, new);
    } else if status_only {
        let status = new.get("status").cloned();
        let metadata = new["metadata"].clone();
        *new = old.clone();
        match status {
            Some(status) => new["status"] = status,
            None => {
                if let Some(map) = new.as_object_mut() {
                    map.shift_remove("status");
                }
            }
        }
        if let Some(managed) = metadata.get("managedFields") {
            new["metadata"]["managedFields"] = managed.clone();
        }
        if !def.custom {
            for field in ["labels", "annotations"] {
                if let Some(value) = metadata.get(field) {
                    new["metadata"][field] = value.clone();
                }
            }
        }
    } else if def.has_status
        && let Some(map) = new.as_object_mut()
    {
        map.shift_remove("status");
        if let Some(status) = old.get("status") {
            map.insert("status".to_owned(), status.clone());
        }
    }
    for field in [
        "namespace",
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
        "selfLink",
    ] {
        let kept = old["metadata"].get(field).cloned();
        if let Some(map) = new["metadata"].as_object_mut() {
            match kept {
                Some(value) => map.insert(field.to_owned(), value),
                None => map.shift_remove(field),
            };
        }
    }
    if !meta(old, "deletionTimestamp").is_empty() {
        let known = crate::schema::strings(&old["metadata"]["finalizers"]);
        if crate::schema::strings(&new["metadata"]["finalizers"]).iter().any(|one| !known.contains(one)) {
            let error = FieldError::forbidden(
                "metadata.finalizers",
                "no new finalizers can be added if the object is being deleted",
            );
            return Err(ApiError::invalid(def, &call.name, &[error]));
        }
    }
    Ok(())
}

/// Everything but metadata and status counts.
pub(crate) fn bump_generation(def: &ResourceDef, old: &Value, new: &mut Value) {
    if !def.has_generation() {
        return;
    }
    let desired = |object: &Value| {
        let mut object = object.clone();
        if let Some(map) = object.as_object_mut() {
            map.shift_remove("metadata");
            // Without the subresource, status is a field like any other.
            if def.has_status || !def.custom {
                map.shift_remove("status");
            }
        }
        object
    };
    if desired(old) != desired(new) {
        let generation = old["metadata"]["generation"].as_i64().unwrap_or(1);
        new["metadata"]["generation"] = json!(generation + 1);
    }
}
