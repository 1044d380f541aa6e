//! Pods get a node: the ready one whose labels the pod asks for. Resources and affinities are not weighed, since the
//! embedded cluster has one node.

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::json;

use super::cache::Kind;
use super::meta::{is_active, name, pod_condition};
use super::write::{Action, Write};

/// Binds a pod that has no node, or says why it can't be.
pub(crate) fn decide<'a>(pod: &Pod, nodes: impl IntoIterator<Item = &'a Node>) -> Vec<Write> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let ours = spec.scheduler_name.as_deref().is_none_or(|name| name == "default-scheduler");
    let gated = spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty());
    if spec.node_name.as_deref().is_some_and(|node| !node.is_empty()) || !ours || gated || !is_active(pod) {
        return Vec::new();
    }
    let wanted = spec.node_selector.clone().unwrap_or_default();
    let mut seen = 0;
    for node in nodes {
        seen += 1;
        let labels = node.metadata.labels.clone().unwrap_or_default();
        let cordoned = node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true));
        if !cordoned && wanted.iter().all(|(key, value)| labels.get(key) == Some(value)) {
            return vec![Write::new(Kind::Pod, &pod.metadata, Action::Bind(name(&node.metadata).to_owned()))];
        }
    }
    let message =
        format!("0/{seen} nodes are available: {seen} did not match the pod's nodeSelector or are cordoned.");
    let known = pod_condition(pod, "PodScheduled").and_then(|condition| condition.message.as_deref());
    if known == Some(&message) {
        return Vec::new();
    }
    let mut conditions = pod.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    conditions.retain(|condition| condition.type_ != "PodScheduled");
    let mut conditions = serde_json::to_value(conditions).unwrap_or_default();
    if let Some(list) = conditions.as_array_mut() {
        list.push(json!({
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
        }));
    }
    vec![Write::new(
        Kind::Pod,
        &pod.metadata,
        Action::MergeStatus(json!({"status": {"conditions": conditions}})),
    )]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec}))
            .unwrap()
    }

    fn node(labels: Value, unschedulable: bool) -> Node {
        serde_json::from_value(
            json!({"metadata": {"name": "lateen", "labels": labels}, "spec": {"unschedulable": unschedulable}}),
        )
        .unwrap()
    }

    #[test]
    fn decisions() {
        let bind = Some(Action::Bind("lateen".to_owned()));
        let cases = [
            (json!({"containers": []}), json!({}), false, bind.clone()),
            (json!({"containers": [], "nodeName": "lateen"}), json!({}), false, None),
            (json!({"containers": [], "schedulerName": "own"}), json!({}), false, None),
            (json!({"containers": [], "schedulingGates": [{"name": "wait"}]}), json!({}), false, None),
            (json!({"containers": [], "nodeSelector": {"disk": "ssd"}}), json!({"disk": "ssd"}), false, bind),
        ];
        for (spec, labels, cordoned, expected) in cases {
            let action =
                decide(&pod(spec.clone()), [&node(labels, cordoned)]).pop().map(|write| write.action);
            assert_eq!(action, expected, "{spec}");
        }
    }

    #[test]
    fn what_fits_nowhere_is_said_once() {
        for (node, selector) in
            [(node(json!({}), false), json!({"disk": "ssd"})), (node(json!({}), true), json!({}))]
        {
            let mut pod = pod(json!({"containers": [], "nodeSelector": selector}));
            let Some(Action::MergeStatus(patch)) = decide(&pod, [&node]).pop().map(|write| write.action)
            else {
                panic!("a condition is written")
            };
            assert_eq!(patch["status"]["conditions"][0]["reason"], "Unschedulable");
            pod.status = Some(serde_json::from_value(patch["status"].clone()).unwrap());
            assert_eq!(decide(&pod, [&node]), []);
        }
    }
}
