//! ReplicaSet → pods.

use std::cmp::Reverse;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use super::cache::Kind;
use super::meta::{
    controller_of, count_available, is_active, is_controlled_by, is_deleting, is_ready, owner_reference,
    phase, pod_from, selects,
};
use super::write::{Decision, Write};

/// Most pods created or deleted at one look; the rest follows at the next.
const BURST: usize = 500;

/// `pods` are all pods of the namespace.
pub(crate) fn decide<'a>(
    set: &ReplicaSet,
    pods: impl IntoIterator<Item = &'a Pod>,
    now: Timestamp,
) -> Decision {
    let spec = &set.spec;
    let mut writes = Vec::new();
    let mut mine = Vec::new();
    for pod in pods {
        let matches = selects(&spec.selector, pod.metadata.labels.as_ref());
        if is_controlled_by(&pod.metadata, &set.metadata) {
            if matches {
                mine.push(pod);
            } else if !is_deleting(&pod.metadata) {
                writes.push(release(pod, set));
            }
        } else if matches
            && controller_of(&pod.metadata).is_none()
            && is_active(pod)
            && !is_deleting(&set.metadata)
        {
            writes.push(adopt(pod, set));
            mine.push(pod);
        }
    }
    let active: Vec<&Pod> = mine.iter().copied().filter(|pod| is_active(pod)).collect();
    if !is_deleting(&set.metadata) {
        let wanted = usize::try_from(spec.replicas.unwrap_or(1)).unwrap_or(0);
        if active.len() < wanted {
            let pod = new_pod(set);
            let missing = (wanted - active.len()).min(BURST);
            writes.extend((0..missing).map(|_| Write::create(Kind::Pod, &pod.metadata, &pod)));
        } else {
            let surplus = (active.len() - wanted).min(BURST);
            writes.extend(
                deletion_order(active.clone())
                    .take(surplus)
                    .map(|pod| Write::delete(Kind::Pod, &pod.metadata)),
            );
        }
    }
    let (status, again) = status(set, &mine, &active, now);
    writes.extend(Write::status(Kind::ReplicaSet, &set.metadata, set.status.as_ref(), &status));
    Decision { writes, again }
}

/// Least useful first: without a node, pending, not ready, cheap by annotation, young.
/// Source: Kubernetes documentation, "ReplicaSet, Scaling a ReplicaSet".
fn deletion_order<'a>(mut pods: Vec<&'a Pod>) -> impl Iterator<Item = &'a Pod> + use<'a> {
    pods.sort_by_key(|pod| {
        let has_node = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
        let cost = pod
            .metadata
            .annotations
            .as_ref()
            .and_then(|annotations| annotations.get("controller.kubernetes.io/pod-deletion-cost"))
            .and_then(|cost| cost.parse::<i32>().ok())
            .unwrap_or(0);
        let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (has_node, phase(pod) == "Running", is_ready(pod), cost, Reverse(created))
    });
    pods.into_iter()
}

fn new_pod(set: &ReplicaSet) -> Pod {
    let template = set.spec.template.clone().unwrap_or_default();
    let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
    pod_from(&template, namespace, owner_reference("apps/v1", "ReplicaSet", &set.metadata))
}

fn adopt(pod: &Pod, set: &ReplicaSet) -> Write {
    let mut owners = pod.metadata.owner_references.clone().unwrap_or_default();
    owners.push(owner_reference("apps/v1", "ReplicaSet", &set.metadata));
    owners_patch(pod, &owners)
}

fn release(pod: &Pod, set: &ReplicaSet) -> Write {
    let mut owners = pod.metadata.owner_references.clone().unwrap_or_default();
    owners.retain(|owner| Some(&owner.uid) != set.metadata.uid.as_ref());
    owners_patch(pod, &owners)
}

fn owners_patch(
    pod: &Pod,
    owners: &[k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference],
) -> Write {
    let patch = json!({"metadata": {
        "ownerReferences": owners, "uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version,
    }});
    Write::merge(Kind::Pod, &pod.metadata, patch)
}

fn status(
    set: &ReplicaSet,
    mine: &[&Pod],
    active: &[&Pod],
    now: Timestamp,
) -> (ReplicaSetStatus, Option<std::time::Duration>) {
    let template = set.spec.template.as_ref();
    let template_labels =
        template.and_then(|template| template.metadata.as_ref()?.labels.clone()).unwrap_or_default();
    let labelled = active.iter().filter(|pod| {
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        template_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
    });
    let min_ready = set.spec.min_ready_seconds.unwrap_or(0);
    let (ready, available, again) = count_available(active.iter().copied(), min_ready, now);
    let terminating = mine.iter().filter(|pod| is_deleting(&pod.metadata)).count();
    let status = ReplicaSetStatus {
        replicas: count(active.len()),
        fully_labeled_replicas: Some(count(labelled.count())),
        ready_replicas: Some(ready),
        available_replicas: Some(available),
        terminating_replicas: Some(count(terminating)),
        observed_generation: set.metadata.generation,
        conditions: set.status.as_ref().and_then(|status| status.conditions.clone()),
    };
    (status, again)
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::write::Action;
    use serde_json::Value;

    fn set(replicas: i32) -> ReplicaSet {
        serde_json::from_value(json!({
            "metadata": {"name": "web-5d4f", "namespace": "shop", "uid": "set", "generation": 3},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": []}},
            },
        }))
        .unwrap()
    }

    fn pod(name: &str, owner: Option<&str>, ready: bool, more: Value) -> Pod {
        let mut pod = json!({
            "metadata": {"name": name, "namespace": "shop", "uid": name, "labels": {"app": "web"},
                         "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"nodeName": "lateen", "containers": []},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
        });
        if let Some(uid) = owner {
            pod["metadata"]["ownerReferences"] = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d4f", "uid": uid, "controller": true}]);
        }
        for (key, value) in more.as_object().unwrap() {
            pod["metadata"][key] = value.clone();
        }
        serde_json::from_value(pod).unwrap()
    }

    fn deleted(decision: &Decision) -> Vec<&str> {
        let deletions = decision.writes.iter().filter(|write| matches!(write.action, Action::Delete { .. }));
        deletions.map(|write| write.name.as_str()).collect()
    }

    fn created(decision: &Decision) -> usize {
        decision.writes.iter().filter(|write| matches!(write.action, Action::Create(_))).count()
    }

    #[test]
    fn missing_pods_are_created_from_the_template() {
        let pods = [
            pod("a", Some("set"), true, json!({})),
            pod("other", Some("other-set"), true, json!({})),
            pod("leaving", Some("set"), true, json!({"deletionTimestamp": "2026-01-01T00:00:00Z"})),
        ];
        let decision = decide(&set(3), &pods, Timestamp::UNIX_EPOCH);
        assert_eq!(created(&decision), 2, "a pod on its way out is replaced at once");
        let Action::Create(body) = &decision.writes[0].action else { panic!("{decision:?}") };
        assert_eq!(body["metadata"]["generateName"], "web-5d4f-");
        assert_eq!(body["metadata"]["ownerReferences"][0]["uid"], "set");
    }

    #[test]
    fn the_least_useful_pods_go_first() {
        let cost = |cost: &str| json!({"annotations": {"controller.kubernetes.io/pod-deletion-cost": cost}});
        let young = json!({"creationTimestamp": "2026-01-02T00:00:00Z"});
        let pods = [
            pod("old", Some("set"), true, json!({})),
            pod("dear", Some("set"), true, cost("10")),
            pod("young", Some("set"), true, young),
            pod("unready", Some("set"), false, json!({})),
        ];
        assert_eq!(
            deleted(&decide(&set(0), &pods, Timestamp::UNIX_EPOCH)),
            ["unready", "young", "old", "dear"]
        );
        assert_eq!(deleted(&decide(&set(3), &pods, Timestamp::UNIX_EPOCH)), ["unready"]);
    }

    #[test]
    fn orphans_are_adopted_and_strangers_released() {
        let pods = [
            pod("orphan", None, true, json!({})),
            pod("relabelled", Some("set"), true, json!({"labels": {"app": "debug"}})),
        ];
        let decision = decide(&set(1), &pods, Timestamp::UNIX_EPOCH);
        let owners = |index: usize| match &decision.writes[index].action {
            Action::Merge(patch) => patch["metadata"]["ownerReferences"].as_array().unwrap().len(),
            other => panic!("{other:?}"),
        };
        assert_eq!((decision.writes[0].name.as_str(), owners(0)), ("orphan", 1));
        assert_eq!((decision.writes[1].name.as_str(), owners(1)), ("relabelled", 0));
        assert_eq!(created(&decision), 0);
    }

    #[test]
    fn status_counts_and_settles() {
        let pods = [pod("a", Some("set"), true, json!({})), pod("b", Some("set"), false, json!({}))];
        let mut set = set(2);
        let decision = decide(&set, &pods, Timestamp::UNIX_EPOCH);
        let Action::MergeStatus(patch) = &decision.writes[0].action else { panic!("{decision:?}") };
        assert_eq!(patch["status"]["replicas"], 2);
        assert_eq!(patch["status"]["readyReplicas"], 1);
        assert_eq!(patch["status"]["observedGeneration"], 3);
        set.status = Some(serde_json::from_value(patch["status"].clone()).unwrap());
        assert_eq!(decide(&set, &pods, Timestamp::UNIX_EPOCH), Decision::default());
    }
}
