//! Garbage collection: dependents of deleted owners, foreground deletion, contents of terminating namespaces, old events.

use std::{collections::HashSet, sync::Arc, time::Duration};

use bytes::Bytes;
use http::HeaderMap;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::{
    authn::User,
    call::Call,
    delete::{self, FOREGROUND, Options},
    resources::{ResourceDef, meta},
    route::Query,
    schema::strings,
    state::Api,
    store::{ObjectKey, Store},
};

/// How long an event is kept after it was last seen (kube-apiserver's `--event-ttl`).
const EVENT_LIFE: jiff::SignedDuration = jiff::SignedDuration::from_hours(1);
/// How often old events are looked for.
const EVENT_ROUND: Duration = Duration::from_secs(60);

/// What waits to be collected.
#[derive(Default)]
pub(crate) struct Garbage {
    gone: Mutex<HashSet<String>>,
    wake: Notify,
}

impl Garbage {
    /// An object is gone: its dependents may have to go.
    pub(crate) fn gone(&self, object: &Value) {
        self.gone.lock().insert(meta(object, "uid").to_owned());
        self.wake.notify_one();
    }

    /// An object has owners or is being deleted: see whether there is something to do.
    pub(crate) fn look_at(&self, object: &Value) {
        let owners = object["metadata"]["ownerReferences"].as_array().into_iter().flatten();
        self.gone.lock().extend(owners.filter_map(|owner| owner["uid"].as_str().map(str::to_owned)));
        self.wake.notify_one();
    }
}

/// Collects until the server stops.
pub(crate) async fn run(api: Arc<Api>) {
    // A former process may have ended in the middle of it.
    for def in api.registry.storages() {
        let unfinished = |object: &Value| {
            object["metadata"]["ownerReferences"].is_array() || !meta(object, "deletionTimestamp").is_empty()
        };
        for object in api.store.list(&def.storage, None, None, None, unfinished).objects {
            api.garbage.look_at(&object);
        }
    }
    let mut round = tokio::time::interval(EVENT_ROUND);
    loop {
        tokio::select! {
            () = api.stop.cancelled() => return,
            () = api.garbage.wake.notified() => {}
            _ = round.tick() => {
                expire_events(&api.store, jiff::Timestamp::now());
                continue;
            }
        }
        let suspects = std::mem::take(&mut *api.garbage.gone.lock());
        if !suspects.is_empty() {
            collect_dependents(&api, &suspects).await;
        }
        finish_foreground(&api).await;
        finish_namespaces(&api).await;
    }
}

/// Removes the events that nothing has been added to for long.
fn expire_events(store: &Store, now: jiff::Timestamp) {
    let old = |event: &Value| {
        let moments = [&event["lastTimestamp"], &event["eventTime"], &event["series"]["lastObservedTime"]];
        let moments = moments.into_iter().chain([&event["metadata"]["creationTimestamp"]]);
        let moments = moments.filter_map(|time| time.as_str()?.parse::<jiff::Timestamp>().ok());
        moments.max().is_none_or(|last| now.duration_since(last) > EVENT_LIFE)
    };
    for event in store.list("events", None, None, None, old).objects {
        let key = ObjectKey::new(meta(&event, "namespace"), meta(&event, "name"));
        let version = meta(&event, "resourceVersion").to_owned();
        // One that has just been written to is not old.
        let _ = store.delete(&"events".into(), key, &version, Value::clone(&event));
    }
}

/// An owner reference whose owner is there, and not on its way out by foreground deletion.
fn owner_state(api: &Api, namespace: &str, owner: &Value) -> Owner {
    let text = |field: &str| owner[field].as_str().unwrap_or_default();
    let Some(def) = api.registry.find_kind(text("apiVersion"), text("kind")) else { return Owner::Unknown };
    let namespace = if def.namespaced { namespace } else { "" };
    match api.stored(&def, namespace, text("name")) {
        Some(object) if object["metadata"]["uid"] == owner["uid"] => {
            let leaving = strings(&object["metadata"]["finalizers"]).iter().any(|f| f == FOREGROUND)
                && !meta(&object, "deletionTimestamp").is_empty();
            if leaving { Owner::Leaving } else { Owner::Alive }
        }
        _ => Owner::Gone,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Alive,
    Leaving,
    Gone,
    /// Its kind isn't served (any more): nothing can be said.
    Unknown,
}

async fn collect_dependents(api: &Api, suspects: &HashSet<String>) {
    let suspected = |object: &Value| {
        let owners = object["metadata"]["ownerReferences"].as_array().into_iter().flatten();
        owners.filter_map(|owner| owner["uid"].as_str()).any(|uid| suspects.contains(uid))
    };
    for def in api.registry.storages() {
        for object in api.store.list(&def.storage, None, None, None, suspected).objects {
            collect(api, &def, &object).await;
        }
    }
}

async fn collect(api: &Api, def: &Arc<ResourceDef>, object: &Value) {
    let namespace = meta(object, "namespace");
    let owners = object["metadata"]["ownerReferences"].as_array().map(Vec::as_slice).unwrap_or_default();
    let states: Vec<Owner> = owners.iter().map(|owner| owner_state(api, namespace, owner)).collect();
    let gone: HashSet<&str> = owners
        .iter()
        .zip(&states)
        .filter(|(_, state)| **state == Owner::Gone)
        .filter_map(|(owner, _)| owner["uid"].as_str())
        .collect();
    if states.iter().any(|state| matches!(state, Owner::Alive | Owner::Unknown)) {
        if !gone.is_empty() {
            delete::drop_owners(api, def, object, |owner| {
                owner["uid"].as_str().is_some_and(|uid| gone.contains(uid))
            });
        }
        return;
    }
    let foreground = states.contains(&Owner::Leaving);
    remove(api, def, object, if foreground { "Foreground" } else { "Background" }).await;
}

/// Deletes an object as the garbage collector.
async fn remove(api: &Api, def: &Arc<ResourceDef>, object: &Value, propagation: &str) {
    let call = system_call(def, object);
    // Leaves without dependents have nothing to wait for.
    let options = Options {
        uid: Some(meta(object, "uid").to_owned()),
        propagation: Some(propagation.to_owned()),
        ..Options::default()
    };
    if let Err(problem) = delete::delete(api, &call, &options).await
        && problem.reason != "NotFound"
        && problem.reason != "Conflict"
    {
        tracing::warn!(resource = def.group_resource(), name = call.name, %problem, "garbage stays");
    }
}

fn system_call(def: &Arc<ResourceDef>, object: &Value) -> Call {
    let mut user = User::admin();
    user.name = "system:serviceaccount:kube-system:generic-garbage-collector".to_owned();
    Call {
        user,
        def: Arc::clone(def),
        namespace: meta(object, "namespace").to_owned(),
        all_namespaces: false,
        name: meta(object, "name").to_owned(),
        subresource: String::new(),
        query: Query::default(),
        headers: HeaderMap::new(),
        body: Bytes::new(),
    }
}

async fn finish_foreground(api: &Api) {
    let leaving = |object: &Value| {
        !meta(object, "deletionTimestamp").is_empty()
            && strings(&object["metadata"]["finalizers"]).iter().any(|f| f == FOREGROUND)
    };
    let defs = api.registry.storages();
    for def in &defs {
        for owner in api.store.list(&def.storage, None, None, None, leaving).objects {
            let uid = meta(&owner, "uid");
            let owned = |object: &Value| {
                object["metadata"]["ownerReferences"]
                    .as_array()
                    .is_some_and(|l| l.iter().any(|o| o["uid"] == uid))
            };
            let mut left = false;
            for dependent_def in &defs {
                for dependent in api.store.list(&dependent_def.storage, None, None, None, owned).objects {
                    left = true;
                    if meta(&dependent, "deletionTimestamp").is_empty() {
                        collect(api, dependent_def, &dependent).await;
                    }
                }
            }
            if !left
                || !defs
                    .iter()
                    .any(|d| !api.store.list(&d.storage, None, None, Some(1), owned).objects.is_empty())
            {
                drop_finalizer(api, def, &owner);
            }
        }
    }
}

fn drop_finalizer(api: &Api, def: &Arc<ResourceDef>, owner: &Value) {
    let key = ObjectKey::new(meta(owner, "namespace"), meta(owner, "name"));
    let mut changed = owner.clone();
    let rest: Vec<String> =
        strings(&owner["metadata"]["finalizers"]).into_iter().filter(|f| f != FOREGROUND).collect();
    let version = meta(owner, "resourceVersion");
    let pod_waits = changed["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) > 0;
    let done = rest.is_empty() && !pod_waits;
    changed["metadata"]["finalizers"] = json!(rest);
    let result = if done {
        api.store.delete(&def.storage, key, version, changed)
    } else {
        api.store.replace(&def.storage, key, version, changed)
    };
    match result {
        Ok(object) if done => delete::after_delete(api, def, &object),
        Ok(_) => {}
        // Somebody changed it meanwhile: look again.
        Err(_) => api.garbage.wake.notify_one(),
    }
}

async fn finish_namespaces(api: &Api) {
    let Some(namespaces) = api.registry.find("", "v1", "namespaces") else { return };
    let leaving = |object: &Value| !meta(object, "deletionTimestamp").is_empty();
    for namespace in api.store.list("namespaces", None, None, None, leaving).objects {
        let name = meta(&namespace, "name");
        let mut left = false;
        for def in api.registry.storages().into_iter().filter(|def| def.namespaced) {
            for object in api.store.list(&def.storage, Some(name), None, None, |_| true).objects {
                if meta(&object, "deletionTimestamp").is_empty() {
                    remove(api, &def, &object, "Background").await;
                }
            }
            left |= !api.store.list(&def.storage, Some(name), None, Some(1), |_| true).objects.is_empty();
        }
        let own_finalizers = strings(&namespace["metadata"]["finalizers"]);
        if left || !own_finalizers.is_empty() {
            continue;
        }
        let mut last = Value::clone(&namespace);
        last["spec"]["finalizers"] = json!([]);
        let key = ObjectKey::new("", name);
        match api.store.delete(&namespaces.storage, key, meta(&namespace, "resourceVersion"), last) {
            Ok(gone) => delete::after_delete(api, &namespaces, &gone),
            Err(_) => api.garbage.wake.notify_one(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_kept_for_an_hour_after_they_were_last_seen() {
        let store = Store::ephemeral(10);
        let create = |name: &str, seen: Value| {
            let mut event = json!({"metadata": {"name": name, "namespace": "a", "creationTimestamp": "2026-01-01T00:00:00Z"}});
            event.as_object_mut().unwrap().extend(seen.as_object().unwrap().clone());
            store.create(&"events".into(), ObjectKey::new("a", name), event).unwrap();
        };
        create("old", json!({"lastTimestamp": "2026-01-01T00:30:00Z"}));
        create("again", json!({"lastTimestamp": "2026-01-01T00:30:01Z"}));
        create("series", json!({"series": {"lastObservedTime": "2026-01-01T01:00:00.000001Z"}}));
        create("never", json!({"lastTimestamp": null}));
        expire_events(&store, "2026-01-01T01:30:01Z".parse().unwrap());
        let left = store.list("events", None, None, None, |_| true).objects;
        let left: Vec<_> = left.iter().map(|event| meta(event, "name")).collect();
        assert_eq!(left, ["again", "series"]);
    }
}
