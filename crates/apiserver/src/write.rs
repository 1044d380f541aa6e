//! Create, update, patch and apply: from a request's object to a committed one.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::{
    addresses::Allocation,
    admission::{self, Operation},
    apply::{self, Manager},
    call::Call,
    certificates, convert, crd, escalation, inert, names, patch,
    resources::{ResourceDef, meta},
    rules, scale, service_account,
    state::{self, Api},
    status::ApiError,
    store::{CommitError, ObjectKey},
    strategy::{bump_generation, complete, keep_system_fields, same_content, select_own_pods, start_pod},
};

/// How often a write without a resource version is tried again when somebody else was faster.
const RETRIES: usize = 8;

/// A finished write.
#[derive(Debug)]
pub(crate) struct Written {
    /// In the version it was asked for.
    pub(crate) object: Arc<Value>,
    pub(crate) created: bool,
    pub(crate) warnings: Vec<String>,
}

/// The error of a commit, in the words of the resource.
pub(crate) fn commit_error(def: &ResourceDef, name: &str, error: CommitError) -> ApiError {
    match error {
        CommitError::Exists => ApiError::already_exists(def, name),
        CommitError::Missing => ApiError::not_found(def, name),
        CommitError::Stale => ApiError::modified(def, name),
        CommitError::Journal(_) => ApiError::internal(error.to_string()),
    }
}

/// POST on a collection.
pub(crate) async fn create(api: &Api, call: &Call) -> Result<Written, ApiError> {
    let (mut object, mut warnings) = call.object()?;
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    let metadata = &mut object["metadata"];
    if call.def.namespaced {
        let given = metadata["namespace"].as_str().unwrap_or_default();
        if !given.is_empty() && given != call.namespace {
            return Err(ApiError::bad_request(format!(
                "the namespace of the provided object does not match the namespace sent on the request ({given} != {})",
                call.namespace
            )));
        }
        metadata["namespace"] = json!(call.namespace);
    } else if let Some(map) = metadata.as_object_mut() {
        map.shift_remove("namespace");
    }
    let explicit = metadata["name"].as_str().is_some_and(|name| !name.is_empty());
    if metadata["resourceVersion"].as_str().is_some_and(|version| !version.is_empty()) {
        return Err(ApiError::bad_request("resourceVersion should not be set on objects to be created"));
    }
    loop {
        let mut attempt = object.clone();
        if !explicit {
            let prefix = object["metadata"]["generateName"].as_str().unwrap_or_default();
            if !prefix.is_empty() {
                attempt["metadata"]["name"] = json!(generated_name(prefix));
            }
        }
        match create_named(api, call, attempt).await {
            // Another object happened to have the random name.
            Err(error) if error.reason == "AlreadyExists" && !explicit => {}
            Err(error) => return Err(error),
            Ok(mut written) => {
                warnings.append(&mut written.warnings);
                warnings.extend(inert::warning(&call.def, &object));
                written.warnings = warnings;
                return Ok(written);
            }
        }
    }
}

/// `prefix` (shortened to fit) and five random characters, as apiserver's name generator makes.
fn generated_name(prefix: &str) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let random: String = (0..5).map(|_| char::from(ALPHABET[fastrand::usize(..ALPHABET.len())])).collect();
    let prefix: String = prefix.chars().take(58).collect();
    format!("{prefix}{random}")
}

fn check_namespace(api: &Api, call: &Call, name: &str) -> Result<(), ApiError> {
    if !call.def.namespaced {
        return Ok(());
    }
    let Some(namespace) = api.store.get("namespaces", &ObjectKey::new("", &*call.namespace)) else {
        return Err(ApiError::namespace_not_found(&call.namespace));
    };
    if meta(&namespace, "deletionTimestamp").is_empty() {
        return Ok(());
    }
    let why = format!(
        "unable to create new content in namespace {} because it is being terminated",
        call.namespace
    );
    let mut error = ApiError::forbidden(&call.def, name, &why);
    if let Some(details) = &mut error.details {
        details["causes"] = json!([{"reason": "NamespaceTerminating",
            "message": format!("namespace {} is being terminated", call.namespace), "field": "metadata.namespace"}]);
    }
    Err(error)
}

async fn create_named(api: &Api, call: &Call, mut object: Value) -> Result<Written, ApiError> {
    let def = &call.def;
    let name = meta(&object, "name").to_owned();
    check_namespace(api, call, &name)?;
    let now = state::now();
    let metadata = &mut object["metadata"];
    metadata["uid"] = json!(uuid::Uuid::new_v4().to_string());
    metadata["creationTimestamp"] = json!(now);
    if let Some(map) = metadata.as_object_mut() {
        for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation"] {
            map.shift_remove(field);
        }
    }
    if def.has_generation() {
        metadata["generation"] = json!(1);
    }
    if def.has_status
        && let Some(map) = object.as_object_mut()
    {
        map.shift_remove("status");
    }
    complete(def, &mut object);
    if def.is("", "pods") {
        service_account::admit(api, &mut object)?;
    }
    if def.is("batch", "jobs") {
        select_own_pods(&mut object);
    }
    if certificates::is_request(def) {
        certificates::sign_in(&call.user, &mut object);
    }
    let warnings = admit(api, call, Operation::Create, &mut object, None).await?;
    if def.is("", "pods") {
        start_pod(&mut object);
    }
    let dry_run = call.dry_run()?;
    let allocation = assign(api, def, None, &mut object)?;
    let checked = finish(call, None, object, &now, &call.manager());
    let result = checked.and_then(|object| {
        if api.stored(def, meta(&object, "namespace"), &name).is_some() {
            return Err(ApiError::already_exists(def, &name));
        }
        if dry_run {
            return Ok(Arc::new(object));
        }
        let key = ObjectKey::new(meta(&object, "namespace"), &*name);
        let stored = convert::to_stored(def, object);
        api.store.create(&def.storage, key, stored).map_err(|e| commit_error(def, &name, e))
    });
    if result.is_err() || dry_run {
        api.addresses.give_back(&allocation);
    }
    let stored = result?;
    if !dry_run {
        after_write(api, def, &stored, stored["metadata"]["ownerReferences"].is_array());
    }
    Ok(Written { object: convert::to_served(def, &stored), created: true, warnings })
}

/// Mutating admission, validation, validating admission: a webhook is asked about valid objects only. What webhooks changed is
/// cleaned and defaulted again.
async fn admit(
    api: &Api,
    call: &Call,
    operation: Operation,
    object: &mut Value,
    old: Option<&Value>,
) -> Result<Vec<String>, ApiError> {
    let before = object.clone();
    let mut warnings = admission::mutate(api, call, operation, object, old).await?;
    if *object != before {
        crate::decode::conform(&call.def, object)?;
        for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp", "generation"] {
            match before["metadata"].get(field) {
                Some(value) => object["metadata"][field] = value.clone(),
                None => {
                    if let Some(map) = object["metadata"].as_object_mut() {
                        map.shift_remove(field);
                    }
                }
            }
        }
        complete(&call.def, object);
        if call.def.is("", "pods") && operation == Operation::Create {
            // Containers a webhook added need their token too.
            service_account::admit(api, object)?;
        }
    }
    escalation::check(api, call, object, old)?;
    // Services are not whole before they have their addresses.
    if !call.def.is("", "services") {
        check(call, old, object)?;
    }
    warnings.extend(admission::validate(api, call, operation, Some(object), old).await?);
    // A namespace may have gone while webhooks were asked.
    if operation == Operation::Create {
        check_namespace(api, call, meta(object, "name"))?;
    }
    Ok(warnings)
}

fn assign(
    api: &Api,
    def: &ResourceDef,
    old: Option<&Value>,
    object: &mut Value,
) -> Result<Allocation, ApiError> {
    if !def.is("", "services") {
        return Ok(Allocation::default());
    }
    api.addresses.assign(old, object).map_err(|errors| ApiError::invalid(def, meta(object, "name"), &errors))
}

/// Whether an object may be as it is, and may become so from `old`.
fn check(call: &Call, old: Option<&Value>, object: &Value) -> Result<(), ApiError> {
    let def = &call.def;
    let mut errors = rules::validate_create(def, object);
    if let Some(old) = old {
        // Objects stored before a rule existed may still be changed elsewhere.
        if call.subresource == "status" || !meta(old, "deletionTimestamp").is_empty() {
            errors.retain(|error| error.field.starts_with("metadata") || def.custom);
        }
        errors.extend(rules::validate_update(def, old, object));
        if certificates::is_request(def) {
            certificates::validate_status(call, old, object, &mut errors);
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(ApiError::invalid(def, meta(object, "name"), &errors)) }
}

/// Validation of Services, managed fields and, for CRDs, acceptance.
fn finish(
    call: &Call,
    old: Option<&Value>,
    mut object: Value,
    now: &str,
    manager: &Manager,
) -> Result<Value, ApiError> {
    let def = &call.def;
    if def.is("", "services") {
        check(call, old, &object)?;
    }
    if def.is("apiextensions.k8s.io", "customresourcedefinitions") {
        crd::accept(&mut object, now);
    }
    // Server-side apply has done its own accounting.
    if call.content_type() != "application/apply-patch+yaml" {
        apply::track_update(def, old, &mut object, manager, now);
    }
    Ok(object)
}

/// What follows from a committed write; `new_owners` says whether it set owner references.
pub(crate) fn after_write(api: &Api, def: &ResourceDef, stored: &Value, new_owners: bool) {
    if def.is("apiextensions.k8s.io", "customresourcedefinitions") {
        let (name, versions) = crd::definitions(stored);
        api.registry.set_custom(&name, versions);
    }
    if new_owners || !meta(stored, "deletionTimestamp").is_empty() {
        api.garbage.look_at(stored);
    }
}

/// PUT on an object or its `status`.
pub(crate) async fn update(api: &Api, call: &Call) -> Result<Written, ApiError> {
    let (object, mut warnings) = call.object()?;
    let named = meta(&object, "name");
    if named != call.name {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({named}) does not match the name on the URL ({})",
            call.name
        )));
    }
    let mut written = rewrite(api, call, |_| Ok(object.clone())).await?;
    warnings.append(&mut written.warnings);
    written.warnings = warnings;
    Ok(written)
}

/// PATCH on an object or its `status`.
pub(crate) async fn patch(api: &Api, call: &Call) -> Result<Written, ApiError> {
    let kind = call.content_type().to_owned();
    if kind == "application/apply-patch+yaml" {
        return apply_patch(api, call).await;
    }
    let (change, _) = crate::decode::parse_body(&call.body, "application/json")?;
    rewrite(api, call, |old| {
        let mut object = Value::clone(old);
        apply_change(call, &kind, &mut object, &change)?;
        Ok(object)
    })
    .await
}

/// Applies one of the three plain patch types.
pub(crate) fn apply_change(
    call: &Call,
    kind: &str,
    object: &mut Value,
    change: &Value,
) -> Result<(), ApiError> {
    match kind {
        "application/json-patch+json" => patch::json_patch(object, change),
        "application/merge-patch+json" => patch::merge_patch(object, change),
        "application/strategic-merge-patch+json" if !call.def.custom => {
            patch::strategic(call.def.schemas.schema(&call.def.schema_name), object, change)
        }
        _ => Err(ApiError::unsupported_media_type(
            "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml",
        )),
    }
}

async fn apply_patch(api: &Api, call: &Call) -> Result<Written, ApiError> {
    if call.query.text("fieldManager").is_none() {
        return Err(ApiError::bad_request(
            "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
        ));
    }
    let (mut config, _) = crate::decode::parse_body(&call.body, "application/yaml")?;
    let mut warnings = call.clean(&mut config, Vec::new())?;
    if config["metadata"].get("managedFields").is_some_and(|fields| !fields.is_null()) {
        return Err(ApiError::bad_request("metadata.managedFields must be nil"));
    }
    if !config["metadata"].is_object() {
        config["metadata"] = json!({});
    }
    config["metadata"]["name"] = json!(call.name);
    if call.def.namespaced {
        config["metadata"]["namespace"] = json!(call.namespace);
    }
    let (manager, force) = (call.manager(), call.query.flag("force"));
    let now = state::now();
    for _ in 0..RETRIES {
        if api.stored(&call.def, &call.namespace, &call.name).is_none() {
            if !call.subresource.is_empty() {
                return Err(ApiError::not_found(&call.def, &call.name));
            }
            let object = apply::apply(&call.def, None, &config, &manager, force, &now)?;
            warnings.extend(inert::warning(&call.def, &config));
            match create_named(api, call, object).await {
                Err(error) if error.reason == "AlreadyExists" => continue,
                other => return other.map(|written| with_warnings(written, &mut warnings)),
            }
        }
        let result =
            rewrite(api, call, |old| apply::apply(&call.def, Some(old), &config, &manager, force, &now))
                .await;
        match result {
            Err(error) if error.reason == "NotFound" => {}
            other => return other.map(|written| with_warnings(written, &mut warnings)),
        }
    }
    Err(ApiError::modified(&call.def, &call.name))
}

fn with_warnings(mut written: Written, warnings: &mut Vec<String>) -> Written {
    warnings.append(&mut written.warnings);
    written.warnings = std::mem::take(warnings);
    written
}

/// Changes a stored object: `change` makes the new one from the current one, and is asked again when it went stale.
pub(crate) async fn rewrite(
    api: &Api,
    call: &Call,
    change: impl Fn(&Value) -> Result<Value, ApiError>,
) -> Result<Written, ApiError> {
    let def = &call.def;
    for _ in 0..RETRIES {
        let stored = api
            .stored(def, &call.namespace, &call.name)
            .ok_or_else(|| ApiError::not_found(def, &call.name))?;
        let old = convert::to_served(def, &stored);
        let new = change(&old)?;
        let fixed_version = meta(&new, "resourceVersion");
        let conditional = !fixed_version.is_empty() && fixed_version != meta(&old, "resourceVersion");
        if conditional {
            return Err(ApiError::modified(def, &call.name));
        }
        let unconditional = fixed_version.is_empty() || call.content_type().contains("patch");
        match replace(api, call, &old, new).await {
            Err(error)
                if error.reason == "Conflict"
                    && unconditional
                    && error.message.contains("has been modified") => {}
            other => return other,
        }
    }
    Err(ApiError::modified(def, &call.name))
}

async fn replace(api: &Api, call: &Call, old: &Value, mut new: Value) -> Result<Written, ApiError> {
    let def = &call.def;
    let mut warnings = if call.content_type().contains("patch") && !call.content_type().contains("apply") {
        call.clean(&mut new, Vec::new())?
    } else {
        Vec::new()
    };
    keep_system_fields(def, call, old, &mut new)?;
    complete(def, &mut new);
    warnings.extend(admit(api, call, Operation::Update, &mut new, Some(old)).await?);
    bump_generation(def, old, &mut new);
    let allocation = assign(api, def, Some(old), &mut new)?;
    let now = state::now();
    let dry_run = call.dry_run()?;
    let result = finish(call, Some(old), new, &now, &call.manager()).and_then(|new| {
        if same_content(old, &new) {
            return Ok((Arc::new(old.clone()), false));
        }
        if dry_run {
            return Ok((Arc::new(new), false));
        }
        let key = ObjectKey::new(meta(old, "namespace"), &*call.name);
        let expected = meta(old, "resourceVersion").to_owned();
        let finished = !meta(&new, "deletionTimestamp").is_empty()
            && new["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty)
            && new["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
            && !def.is("", "namespaces");
        let stored = convert::to_stored(def, new);
        let committed = if finished {
            // The last finalizer of a deleted object is gone.
            api.store.delete(&def.storage, key, &expected, stored)
        } else {
            api.store.replace(&def.storage, key, &expected, stored)
        };
        let stored = committed.map_err(|e| commit_error(def, &call.name, e))?;
        if finished {
            crate::delete::after_delete(api, def, &stored);
        } else {
            let owners = |object: &Value| object["metadata"]["ownerReferences"].clone();
            after_write(api, def, &stored, owners(old) != owners(&stored));
        }
        Ok((convert::to_served(def, &stored), true))
    });
    match result {
        Ok((object, committed)) => {
            if committed && def.is("", "services") {
                release_dropped(api, old, &object);
            } else if !committed {
                api.addresses.give_back(&allocation);
            }
            Ok(Written { object, created: false, warnings })
        }
        Err(error) => {
            api.addresses.give_back(&allocation);
            Err(error)
        }
    }
}

/// Gives back the addresses and ports a changed Service no longer has.
fn release_dropped(api: &Api, old: &Value, new: &Value) {
    api.addresses.release(old);
    api.addresses.note(new);
}

/// PUT or PATCH on `scale`: the change goes to the object's replicas.
pub(crate) async fn change_scale(api: &Api, call: &Call, is_patch: bool) -> Result<Value, ApiError> {
    let paths = call.def.scale.clone().ok_or_else(ApiError::no_such_path)?;
    let content_type = if is_patch { "application/json" } else { call.content_type() };
    let (body, _) = crate::decode::parse_body(&call.body, content_type)?;
    let written = rewrite(api, call, |old| {
        let mut wanted = scale::of(&call.def, &paths, old);
        if is_patch {
            // Scale has no lists; the merge patches agree on it.
            match call.content_type() {
                "application/json-patch+json" => patch::json_patch(&mut wanted, &body)?,
                _ => patch::merge_patch(&mut wanted, &body)?,
            }
        } else {
            wanted = body.clone();
        }
        scale::write(&call.def, &paths, old, &wanted)
    })
    .await?;
    Ok(scale::of(&call.def, &paths, &written.object))
}

/// Whether `name` could be an object's name at all (so that a bad one in a path is just not found).
pub(crate) fn plausible_name(name: &str) -> bool {
    !name.is_empty() && (names::is_dns_subdomain(name) || !name.contains('/'))
}
