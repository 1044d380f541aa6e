//! StatefulSet → pods with fixed names. Volume claims are not provided: the embedded cluster has no storage classes.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::Pod;

use super::cache::Kind;
use super::meta::{
    Availability, availability, count_available, is_controlled_by, is_deleting, is_finished, name,
    owner_reference, pod_from, template_hash,
};
use super::write::{Decision, Write};

const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";
/// Label with the hash of the template a pod was made from.
pub(crate) const REVISION_HASH: &str = "controller-revision-hash";

/// `pods` are all pods of the namespace.
pub(crate) fn decide<'a>(
    set: &StatefulSet,
    pods: impl IntoIterator<Item = &'a Pod>,
    now: Timestamp,
) -> Decision {
    let spec = &set.spec;
    let mut mine: Vec<(i32, &Pod)> = pods
        .into_iter()
        .filter(|pod| is_controlled_by(&pod.metadata, &set.metadata))
        .filter_map(|pod| Some((ordinal(set, pod)?, pod)))
        .collect();
    mine.sort_by_key(|(ordinal, _)| *ordinal);
    let revision = format!("{}-{}", name(&set.metadata), template_hash(&spec.template, None));
    let (status, again) = status(set, &mine, &revision, now);
    let mut writes = Vec::new();
    if !is_deleting(&set.metadata) {
        writes.extend(next_steps(set, &mine, &revision, now));
    }
    writes.extend(Write::status(Kind::StatefulSet, &set.metadata, set.status.as_ref(), &status));
    Decision { writes, again }
}

fn ordinal(set: &StatefulSet, pod: &Pod) -> Option<i32> {
    name(&pod.metadata).strip_prefix(name(&set.metadata))?.strip_prefix('-')?.parse().ok()
}

fn revision_of(pod: &Pod) -> Option<&str> {
    pod.metadata.labels.as_ref()?.get(REVISION_HASH).map(String::as_str)
}

/// Creates, removes and replaces pods; one at a time and in order, unless the policy is Parallel.
fn next_steps(set: &StatefulSet, mine: &[(i32, &Pod)], revision: &str, now: Timestamp) -> Vec<Write> {
    let spec = &set.spec;
    let first = spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).unwrap_or(0);
    let wanted = first..first + spec.replicas.unwrap_or(1).max(0);
    let parallel = spec.pod_management_policy.as_deref() == Some("Parallel");
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let usable = |pod: &Pod| {
        !is_deleting(&pod.metadata) && availability(pod, min_ready, now) == Availability::Available
    };
    let mut writes = Vec::new();
    for ordinal in wanted.clone() {
        match mine.iter().find(|(at, _)| *at == ordinal) {
            None => {
                let pod = new_pod(set, ordinal, revision);
                writes.push(Write::create(Kind::Pod, &pod.metadata, &pod));
            }
            // A pod that has ended is made anew under the same name.
            Some((_, pod)) if is_finished(pod) && !is_deleting(&pod.metadata) => {
                writes.push(Write::delete(Kind::Pod, &pod.metadata));
            }
            Some((_, pod)) if usable(pod) => continue,
            Some(_) => {}
        }
        if !parallel {
            return writes;
        }
    }
    let surplus = mine.iter().rev().filter(|(at, _)| !wanted.contains(at));
    for (_, pod) in surplus {
        if !is_deleting(&pod.metadata) {
            writes.push(Write::delete(Kind::Pod, &pod.metadata));
        }
        if !parallel {
            return writes;
        }
    }
    if writes.is_empty() {
        writes.extend(replace_outdated(set, mine, revision, &usable));
    }
    writes
}

/// A rolling update deletes the outdated pod with the highest ordinal, once all others above it are usable.
fn replace_outdated(
    set: &StatefulSet,
    mine: &[(i32, &Pod)],
    revision: &str,
    usable: &dyn Fn(&Pod) -> bool,
) -> Option<Write> {
    let strategy = set.spec.update_strategy.as_ref();
    if strategy.is_some_and(|strategy| strategy.type_.as_deref() == Some("OnDelete")) {
        return None;
    }
    let partition = strategy.and_then(|strategy| strategy.rolling_update.as_ref()?.partition).unwrap_or(0);
    for (_, pod) in mine.iter().rev().filter(|(ordinal, _)| *ordinal >= partition) {
        if revision_of(pod) != Some(revision) && !is_deleting(&pod.metadata) {
            return Some(Write::delete(Kind::Pod, &pod.metadata));
        }
        if !usable(pod) {
            return None;
        }
    }
    None
}

fn new_pod(set: &StatefulSet, ordinal: i32, revision: &str) -> Pod {
    let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
    let mut pod =
        pod_from(&set.spec.template, namespace, owner_reference("apps/v1", "StatefulSet", &set.metadata));
    let pod_name = format!("{}-{ordinal}", name(&set.metadata));
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(POD_NAME.to_owned(), pod_name.clone());
    labels.insert(POD_INDEX.to_owned(), ordinal.to_string());
    labels.insert(REVISION_HASH.to_owned(), revision.to_owned());
    if let Some(spec) = &mut pod.spec {
        spec.hostname = Some(pod_name.clone());
        spec.subdomain = set.spec.service_name.clone().filter(|name| !name.is_empty());
    }
    pod.metadata.generate_name = None;
    pod.metadata.name = Some(pod_name);
    pod
}

fn status(
    set: &StatefulSet,
    mine: &[(i32, &Pod)],
    revision: &str,
    now: Timestamp,
) -> (StatefulSetStatus, Option<std::time::Duration>) {
    let spec = &set.spec;
    let count = |test: &dyn Fn(&Pod) -> bool| {
        i32::try_from(mine.iter().filter(|(_, pod)| test(pod)).count()).unwrap_or(i32::MAX)
    };
    let alive = |pod: &Pod| !is_deleting(&pod.metadata) && !is_finished(pod);
    let min_ready = spec.min_ready_seconds.unwrap_or(0);
    let living = mine.iter().map(|(_, pod)| *pod).filter(|pod| alive(pod));
    let (ready, available, again) = count_available(living, min_ready, now);
    let updated = count(&|pod| alive(pod) && revision_of(pod) == Some(revision));
    let replicas = count(&|pod| !is_finished(pod));
    let wanted = spec.replicas.unwrap_or(1);
    let before = set.status.as_ref().and_then(|status| status.current_revision.clone());
    // The update's revision becomes the current one when every pod has it and is ready.
    let current = match before {
        Some(before) if !(updated == wanted && ready == wanted && replicas == wanted) => before,
        _ => revision.to_owned(),
    };
    let status = StatefulSetStatus {
        replicas,
        ready_replicas: Some(ready),
        available_replicas: Some(available),
        current_replicas: Some(count(&|pod| alive(pod) && revision_of(pod) == Some(current.as_str()))),
        updated_replicas: Some(updated),
        current_revision: Some(current),
        update_revision: Some(revision.to_owned()),
        observed_generation: set.metadata.generation,
        collision_count: Some(0),
        conditions: set.status.as_ref().and_then(|status| status.conditions.clone()),
    };
    (status, again)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::write::Action;
    use serde_json::{Value, json};

    fn set(replicas: i32, more: Value) -> StatefulSet {
        let mut spec = json!({
            "replicas": replicas, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}},
            "template": {"metadata": {"labels": {"app": "db"}}, "spec": {"containers": []}},
        });
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        serde_json::from_value(
            json!({"metadata": {"name": "db", "namespace": "shop", "uid": "set"}, "spec": spec}),
        )
        .unwrap()
    }

    fn pod(set: &StatefulSet, ordinal: i32, revision: Option<&str>, ready: bool) -> Pod {
        let hash = format!("db-{}", template_hash(&set.spec.template, None));
        let mut pod = new_pod(set, ordinal, revision.unwrap_or(&hash));
        pod.metadata.uid = pod.metadata.name.clone();
        let ready = if ready { "True" } else { "False" };
        let status = json!({"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]});
        pod.status = Some(serde_json::from_value(status).unwrap());
        pod
    }

    /// `+name` for creations, `-name` for deletions.
    fn steps(set: &StatefulSet, pods: &[Pod]) -> Vec<String> {
        let writes = decide(set, pods, Timestamp::UNIX_EPOCH).writes;
        let step = |write: Write| match write.action {
            Action::Create(_) => Some(format!("+{}", write.name)),
            Action::Delete { .. } => Some(format!("-{}", write.name)),
            _ => None,
        };
        writes.into_iter().filter_map(step).collect()
    }

    #[test]
    fn pods_come_in_order_and_go_in_reverse() {
        let ordered = set(3, json!({}));
        let pod = |ordinal, ready| pod(&ordered, ordinal, None, ready);
        assert_eq!(steps(&ordered, &[]), ["+db-0"]);
        assert_eq!(steps(&ordered, &[pod(0, false)]), Vec::<String>::new());
        assert_eq!(steps(&ordered, &[pod(0, true)]), ["+db-1"]);
        assert_eq!(steps(&ordered, &[pod(0, true), pod(2, true)]), ["+db-1"]);
        let smaller = set(1, json!({}));
        assert_eq!(steps(&smaller, &[pod(0, true), pod(1, true), pod(2, true)]), ["-db-2"]);
        let parallel = set(3, json!({"podManagementPolicy": "Parallel"}));
        assert_eq!(steps(&parallel, &[]), ["+db-0", "+db-1", "+db-2"]);
    }

    #[test]
    fn updates_go_from_the_highest_ordinal_down() {
        let all = set(3, json!({}));
        let old = |ordinal| pod(&all, ordinal, Some("db-old"), true);
        let new = |ordinal, ready| pod(&all, ordinal, None, ready);
        assert_eq!(steps(&all, &[old(0), old(1), old(2)]), ["-db-2"]);
        assert_eq!(steps(&all, &[old(0), old(1), new(2, false)]), Vec::<String>::new());
        assert_eq!(steps(&all, &[old(0), old(1), new(2, true)]), ["-db-1"]);
        let partitioned = set(3, json!({"updateStrategy": {"rollingUpdate": {"partition": 2}}}));
        assert_eq!(steps(&partitioned, &[old(0), old(1), new(2, true)]), Vec::<String>::new());
    }

    #[test]
    fn pods_have_stable_names_in_dns() {
        let pod = new_pod(&set(1, json!({})), 0, "db-x");
        let spec = pod.spec.unwrap();
        assert_eq!((spec.hostname.as_deref(), spec.subdomain.as_deref()), (Some("db-0"), Some("db")));
        assert_eq!(pod.metadata.labels.unwrap()[POD_NAME], "db-0");
    }
}
