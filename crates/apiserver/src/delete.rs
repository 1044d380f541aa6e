//! Deleting: grace periods, finalizers, propagation.

use std::sync::Arc;

use http::StatusCode;
use jiff::SignedDuration;
use serde_json::{Value, json};

use crate::{
    admission::{self, Operation},
    call::Call,
    convert,
    defaults::each,
    resources::{ResourceDef, meta},
    schema::strings,
    state::{self, Api},
    status::ApiError,
    store::{CommitError, ObjectKey},
    write::{after_write, commit_error},
};

pub(crate) const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

/// `metav1.DeleteOptions`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) grace: Option<i64>,
    pub(crate) uid: Option<String>,
    pub(crate) resource_version: Option<String>,
    pub(crate) propagation: Option<String>,
    pub(crate) dry_run: bool,
}

impl Options {
    /// From the body (may be empty) and the query.
    pub(crate) fn of(call: &Call) -> Result<Self, ApiError> {
        let body = if call.body.iter().all(u8::is_ascii_whitespace) {
            Value::Null
        } else {
            crate::decode::parse_body(&call.body, call.content_type())?.0
        };
        let body = if body["kind"] == "Eviction" { body["deleteOptions"].clone() } else { body };
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let query_number = || call.query.text("gracePeriodSeconds")?.parse().ok();
        let orphan = body["orphanDependents"]
            .as_bool()
            .or_else(|| call.query.get("orphanDependents").map(|_| call.query.flag("orphanDependents")));
        let propagation = text(&body["propagationPolicy"])
            .or_else(|| call.query.text("propagationPolicy").map(str::to_owned))
            .or_else(|| orphan.map(|orphan| if orphan { "Orphan" } else { "Background" }.to_owned()));
        if let Some(policy) = &propagation
            && !matches!(policy.as_str(), "Background" | "Foreground" | "Orphan")
        {
            return Err(ApiError::bad_request(format!(
                "invalid propagationPolicy {policy:?}: must be Background, Foreground or Orphan"
            )));
        }
        Ok(Self {
            grace: body["gracePeriodSeconds"].as_i64().or_else(query_number),
            uid: text(&body["preconditions"]["uid"]),
            resource_version: text(&body["preconditions"]["resourceVersion"]),
            propagation,
            dry_run: call.dry_run()? || strings(&body["dryRun"]).iter().any(|value| value == "All"),
        })
    }
}

/// What a deletion did.
pub(crate) enum Deleted {
    /// The object is gone.
    Gone(Arc<Value>),
    /// It is marked, and goes when its grace period and finalizers are done.
    Pending(Arc<Value>),
}

impl Deleted {
    /// The answer to the client, as Kubernetes' store chooses it.
    pub(crate) fn body(&self, def: &ResourceDef) -> (StatusCode, Value) {
        match self {
            Self::Pending(object) => (StatusCode::OK, Value::clone(object)),
            Self::Gone(object) if def.is("", "pods") => (StatusCode::OK, Value::clone(object)),
            Self::Gone(object) => {
                let mut details = json!({"name": meta(object, "name")});
                if !def.group.is_empty() {
                    details["group"] = json!(def.group);
                }
                details["kind"] = json!(def.plural);
                details["uid"] = object["metadata"]["uid"].clone();
                let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
                (StatusCode::OK, status)
            }
        }
    }
}

/// DELETE on an object.
pub(crate) async fn delete(
    api: &Api,
    call: &Call,
    options: &Options,
) -> Result<(Deleted, Vec<String>), ApiError> {
    let def = &call.def;
    let mut warnings = Vec::new();
    let mut admitted = false;
    loop {
        let stored = api
            .stored(def, &call.namespace, &call.name)
            .ok_or_else(|| ApiError::not_found(def, &call.name))?;
        let old = convert::to_served(def, &stored);
        check_preconditions(def, &call.name, &old, options)?;
        if !admitted {
            let mut nothing = Value::Null;
            warnings = admission::mutate(api, call, Operation::Delete, &mut nothing, Some(&old)).await?;
            warnings.extend(admission::validate(api, call, Operation::Delete, None, Some(&old)).await?);
            admitted = true;
        }
        if def.is("", "namespaces") && matches!(call.name.as_str(), "default" | "kube-system" | "kube-public")
        {
            return Err(ApiError::forbidden(def, &call.name, "this namespace may not be deleted"));
        }
        match attempt(api, def, &stored, options) {
            Err(CommitError::Stale) => {}
            Err(error) => return Err(commit_error(def, &call.name, error)),
            Ok(Deleted::Gone(object)) => {
                return Ok((Deleted::Gone(convert::to_served(def, &object)), warnings));
            }
            Ok(Deleted::Pending(object)) => {
                return Ok((Deleted::Pending(convert::to_served(def, &object)), warnings));
            }
        }
    }
}

fn check_preconditions(
    def: &ResourceDef,
    name: &str,
    object: &Value,
    options: &Options,
) -> Result<(), ApiError> {
    let check = |field: &str, what: &str, wanted: &Option<String>| match wanted {
        Some(wanted) if wanted != meta(object, field) => {
            let why = format!(
                "Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {}",
                meta(object, field)
            );
            Err(ApiError::conflict(def, name, &why))
        }
        _ => Ok(()),
    };
    check("uid", "UID", &options.uid)?;
    check("resourceVersion", "ResourceVersion", &options.resource_version)
}

/// Seconds a pod is given to end; others go at once.
fn grace_of(def: &ResourceDef, object: &Value, options: &Options) -> i64 {
    if !def.is("", "pods") {
        return 0;
    }
    let not_running = object["spec"]["nodeName"].as_str().unwrap_or_default().is_empty()
        || matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if not_running {
        return 0;
    }
    let own = object["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
    options.grace.unwrap_or(own).max(0)
}

fn attempt(
    api: &Api,
    def: &ResourceDef,
    old: &Arc<Value>,
    options: &Options,
) -> Result<Deleted, CommitError> {
    let grace = grace_of(def, old, options);
    let mut object = Value::clone(old);
    let mut finalizers = strings(&object["metadata"]["finalizers"]);
    match options.propagation.as_deref() {
        Some("Foreground") if !finalizers.iter().any(|f| f == FOREGROUND) => {
            finalizers.retain(|finalizer| finalizer != ORPHAN);
            finalizers.push(FOREGROUND.to_owned());
        }
        Some("Orphan") => {
            finalizers.retain(|finalizer| finalizer != FOREGROUND);
            if !options.dry_run {
                orphan_dependents(api, meta(old, "uid"));
            }
        }
        Some("Background") => finalizers.retain(|finalizer| finalizer != FOREGROUND),
        _ => {}
    }
    let already = !meta(old, "deletionTimestamp").is_empty();
    let old_grace = old["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
    let waits = !finalizers.is_empty() || grace > 0 || def.is("", "namespaces");
    let expected = meta(old, "resourceVersion").to_owned();
    let key = ObjectKey::new(meta(old, "namespace"), meta(old, "name"));
    if !waits {
        if options.dry_run {
            return Ok(Deleted::Gone(Arc::new(object)));
        }
        let gone = api.store.delete(&def.storage, key, &expected, object)?;
        after_delete(api, def, &gone);
        return Ok(Deleted::Gone(gone));
    }
    let unchanged = finalizers == strings(&old["metadata"]["finalizers"]);
    if already && unchanged && grace >= old_grace {
        return Ok(Deleted::Pending(Arc::clone(old)));
    }
    if !finalizers.is_empty() {
        object["metadata"]["finalizers"] = json!(finalizers);
    }
    let shortest = if already { grace.min(old_grace) } else { grace };
    let end = jiff::Timestamp::now()
        .saturating_add(SignedDuration::from_secs(shortest))
        .unwrap_or(jiff::Timestamp::MAX);
    object["metadata"]["deletionTimestamp"] = json!(state::at(end));
    object["metadata"]["deletionGracePeriodSeconds"] = json!(shortest);
    if def.has_generation()
        && !already
        && let Some(generation) = object["metadata"]["generation"].as_i64()
    {
        object["metadata"]["generation"] = json!(generation + 1);
    }
    if def.is("", "namespaces") {
        object["metadata"].as_object_mut().map(|map| map.shift_remove("deletionGracePeriodSeconds"));
        object["status"]["phase"] = json!("Terminating");
    }
    if options.dry_run {
        return Ok(Deleted::Pending(Arc::new(object)));
    }
    let pending = api.store.replace(&def.storage, key, &expected, object)?;
    after_write(api, def, &pending, false);
    Ok(Deleted::Pending(pending))
}

/// What follows from an object being gone.
pub(crate) fn after_delete(api: &Api, def: &ResourceDef, gone: &Value) {
    if def.is("", "services") {
        api.addresses.release(gone);
    }
    if def.is("apiextensions.k8s.io", "customresourcedefinitions") {
        let name = meta(gone, "name");
        api.registry.set_custom(name, Vec::new());
        // Instances can no longer be reached, so they go with it, finalizers or not.
        let storage = name.into();
        for object in api.store.list(name, None, None, None, |_| true).objects {
            let key = ObjectKey::new(meta(&object, "namespace"), meta(&object, "name"));
            let version = meta(&object, "resourceVersion");
            if let Err(problem) = api.store.delete(&storage, key, version, Value::clone(&object)) {
                tracing::warn!(crd = name, %problem, "an instance of a deleted CRD stays");
            }
        }
    }
    api.garbage.gone(gone);
}

/// Takes the owner out of its dependents, which then live on.
fn orphan_dependents(api: &Api, uid: &str) {
    for def in api.registry.storages() {
        let owned = |object: &Value| {
            object["metadata"]["ownerReferences"]
                .as_array()
                .is_some_and(|list| list.iter().any(|o| o["uid"] == uid))
        };
        for object in api.store.list(&def.storage, None, None, None, owned).objects {
            drop_owners(api, &def, &object, |owner| owner["uid"] == uid);
        }
    }
}

/// Removes some owner references; a write in between wins, and the next look finds the rest.
pub(crate) fn drop_owners(api: &Api, def: &ResourceDef, object: &Value, doomed: impl Fn(&Value) -> bool) {
    let mut changed = object.clone();
    let kept: Vec<Value> = each(&mut changed["metadata"], "ownerReferences")
        .filter(|owner| !doomed(owner))
        .map(|o| o.clone())
        .collect();
    if kept.is_empty() {
        changed["metadata"].as_object_mut().map(|map| map.shift_remove("ownerReferences"));
    } else {
        changed["metadata"]["ownerReferences"] = Value::Array(kept);
    }
    let key = ObjectKey::new(meta(object, "namespace"), meta(object, "name"));
    match api.store.replace(&def.storage, key, meta(object, "resourceVersion"), changed) {
        Ok(_) | Err(CommitError::Missing) => {}
        Err(CommitError::Stale) => api.garbage.look_at(object),
        Err(problem) => tracing::warn!(%problem, "an owner reference stays"),
    }
}
