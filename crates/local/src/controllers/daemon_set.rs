//! DaemonSet → one pod on every node it selects.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod};

use super::cache::Kind;
use super::meta::{
    count_available, is_active, is_controlled_by, is_deleting, is_finished, is_ready, name, owner_reference,
    pod_from, template_hash,
};
use super::stateful_set::REVISION_HASH;
use super::write::{Decision, Write};

/// `pods` are all pods of the namespace.
pub(crate) fn decide<'a>(
    set: &DaemonSet,
    nodes: impl IntoIterator<Item = &'a Node>,
    pods: impl IntoIterator<Item = &'a Pod>,
    now: Timestamp,
) -> Decision {
    let spec = &set.spec;
    let mine: Vec<&Pod> =
        pods.into_iter().filter(|pod| is_controlled_by(&pod.metadata, &set.metadata)).collect();
    let revision = template_hash(&spec.template, None);
    let selector =
        spec.template.spec.as_ref().and_then(|spec| spec.node_selector.clone()).unwrap_or_default();
    let selected: Vec<&str> = nodes
        .into_iter()
        .filter(|node| {
            let labels = node.metadata.labels.clone().unwrap_or_default();
            selector.iter().all(|(key, value)| labels.get(key) == Some(value))
        })
        .map(|node| name(&node.metadata))
        .collect();
    let mut writes = Vec::new();
    if !is_deleting(&set.metadata) {
        for node in &selected {
            writes.extend(on_node(set, node, &mine, &revision));
        }
        let misplaced = mine.iter().filter(|pod| !selected.contains(&node_of(pod)) && is_active(pod));
        writes.extend(misplaced.map(|pod| Write::delete(Kind::Pod, &pod.metadata)));
    }
    let (status, again) = status(set, &selected, &mine, &revision, now);
    writes.extend(Write::status(Kind::DaemonSet, &set.metadata, set.status.as_ref(), &status));
    Decision { writes, again }
}

fn node_of(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()
}

fn has_revision(pod: &Pod, revision: &str) -> bool {
    pod.metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(REVISION_HASH))
        .is_some_and(|label| label == revision)
}

/// Makes the one pod of a node, replaces an ended or outdated one. The old pod must be gone before the new one comes:
/// both may want the same port of the node.
fn on_node(set: &DaemonSet, node: &str, mine: &[&Pod], revision: &str) -> Vec<Write> {
    let here: Vec<&&Pod> = mine.iter().filter(|pod| node_of(pod) == node).collect();
    let delete = |pods: &[&&Pod]| pods.iter().map(|pod| Write::delete(Kind::Pod, &pod.metadata)).collect();
    if here.is_empty() {
        let pod = new_pod(set, node, revision);
        return vec![Write::create(Kind::Pod, &pod.metadata, &pod)];
    }
    let strategy = set.spec.update_strategy.as_ref();
    let on_delete = strategy.is_some_and(|strategy| strategy.type_.as_deref() == Some("OnDelete"));
    let (keep, replace): (Vec<&&Pod>, Vec<&&Pod>) = here
        .into_iter()
        .filter(|pod| !is_deleting(&pod.metadata))
        .partition(|pod| !is_finished(pod) && (on_delete || has_revision(pod, revision)));
    let surplus: Vec<&&Pod> = replace.into_iter().chain(keep.into_iter().skip(1)).collect();
    delete(&surplus)
}

fn new_pod(set: &DaemonSet, node: &str, revision: &str) -> Pod {
    let template = &set.spec.template;
    let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
    let mut pod = pod_from(template, namespace, owner_reference("apps/v1", "DaemonSet", &set.metadata));
    pod.metadata.labels.get_or_insert_default().insert(REVISION_HASH.to_owned(), revision.to_owned());
    pod.spec.get_or_insert_default().node_name = Some(node.to_owned());
    pod
}

fn status(
    set: &DaemonSet,
    selected: &[&str],
    mine: &[&Pod],
    revision: &str,
    now: Timestamp,
) -> (DaemonSetStatus, Option<std::time::Duration>) {
    let min_ready = set.spec.min_ready_seconds.unwrap_or(0);
    let placed: Vec<&Pod> =
        mine.iter().copied().filter(|pod| is_active(pod) && selected.contains(&node_of(pod))).collect();
    let (_, available, again) = count_available(placed.iter().copied(), min_ready, now);
    let count = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
    let desired = count(selected.len());
    let status = DaemonSetStatus {
        desired_number_scheduled: desired,
        current_number_scheduled: count(placed.len()),
        number_misscheduled: count(
            mine.iter().filter(|pod| is_active(pod) && !selected.contains(&node_of(pod))).count(),
        ),
        number_ready: count(placed.iter().filter(|pod| is_ready(pod)).count()),
        number_available: Some(available),
        number_unavailable: Some((desired - available).max(0)),
        updated_number_scheduled: Some(count(
            placed.iter().filter(|pod| has_revision(pod, revision)).count(),
        )),
        observed_generation: set.metadata.generation,
        collision_count: None,
        conditions: set.status.as_ref().and_then(|status| status.conditions.clone()),
    };
    (status, again)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::write::Action;
    use serde_json::json;

    fn set(image: &str) -> DaemonSet {
        serde_json::from_value(json!({
            "metadata": {"name": "agent", "namespace": "shop", "uid": "set"},
            "spec": {
                "selector": {"matchLabels": {"app": "agent"}},
                "template": {"metadata": {"labels": {"app": "agent"}},
                             "spec": {"nodeSelector": {"os": "linux"}, "containers": [{"name": "c", "image": image}]}},
            },
        }))
        .unwrap()
    }

    fn node(os: &str) -> Node {
        serde_json::from_value(json!({"metadata": {"name": "lateen", "labels": {"os": os}}})).unwrap()
    }

    fn pod_of(set: &DaemonSet) -> Pod {
        let mut pod = new_pod(set, "lateen", &template_hash(&set.spec.template, None));
        pod.metadata.name = Some("agent-1".to_owned());
        pod
    }

    fn actions(set: &DaemonSet, node: &Node, pods: &[Pod]) -> String {
        let writes = decide(set, [node], pods, Timestamp::UNIX_EPOCH).writes;
        let letter = |write: Write| match write.action {
            Action::Create(_) => Some('+'),
            Action::Delete { .. } => Some('-'),
            _ => None,
        };
        writes.into_iter().filter_map(letter).collect()
    }

    #[test]
    fn one_pod_of_the_right_revision_per_selected_node() {
        let (v1, v2) = (set("v1"), set("v2"));
        let mut leaving = pod_of(&v1);
        leaving.metadata.deletion_timestamp = Some(super::super::meta::time(Timestamp::UNIX_EPOCH));
        let cases = [
            ("missing", &v1, "linux", vec![], "+"),
            ("there", &v1, "linux", vec![pod_of(&v1)], ""),
            ("outdated", &v2, "linux", vec![pod_of(&v1)], "-"),
            ("still leaving", &v2, "linux", vec![leaving], ""),
            ("doubled", &v1, "linux", vec![pod_of(&v1), pod_of(&v1)], "-"),
            ("node not selected", &v1, "windows", vec![pod_of(&v1)], "-"),
        ];
        for (case, set, os, pods, expected) in cases {
            assert_eq!(actions(set, &node(os), &pods), expected, "{case}");
        }
    }
}
