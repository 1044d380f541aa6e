use super::*;
use crate::controllers::write::{Action, to_value};
use serde_json::{Value, json};

/// A small cluster: applies a Deployment's writes, and plays the ReplicaSet controller and the kubelet.
struct World {
    deployment: Deployment,
    sets: Vec<ReplicaSet>,
    now: Timestamp,
}

impl World {
    fn new(replicas: i32, strategy: Value) -> Self {
        let deployment = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "d", "generation": 1},
            "spec": {
                "replicas": replicas, "strategy": strategy, "progressDeadlineSeconds": 600,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "v1"}]}},
            },
        }))
        .unwrap();
        Self { deployment, sets: Vec::new(), now: "2026-01-01T00:00:00Z".parse().unwrap() }
    }

    fn set_image(&mut self, image: &str) {
        let spec = &mut self.deployment.spec;
        spec.template.spec.as_mut().unwrap().containers[0].image = Some(image.to_owned());
        *self.deployment.metadata.generation.as_mut().unwrap() += 1;
    }

    fn decide(&self) -> Decision {
        decide(&self.deployment, &self.sets, &[], self.now)
    }

    /// Decides and applies, until there is nothing more to do.
    fn settle(&mut self) {
        for _ in 0..20 {
            let decision = self.decide();
            if decision.writes.is_empty() {
                return;
            }
            decision.writes.into_iter().for_each(|write| self.apply(write));
        }
        panic!("the controller never settles");
    }

    fn apply(&mut self, write: Write) {
        match (write.kind, write.action) {
            (Kind::ReplicaSet, Action::Create(mut body)) => {
                body["metadata"]["uid"] = json!(write.name);
                body["metadata"]["creationTimestamp"] = json!(self.now);
                self.now += jiff::SignedDuration::from_secs(1);
                self.sets.push(serde_json::from_value(body).unwrap());
            }
            (Kind::ReplicaSet, Action::Merge(patch)) => {
                let set = self.sets.iter_mut().find(|set| name(&set.metadata) == write.name).unwrap();
                *set = patched(set, &patch);
            }
            (Kind::ReplicaSet, Action::Delete { .. }) => {
                self.sets.retain(|set| name(&set.metadata) != write.name);
            }
            (Kind::Deployment, Action::Merge(patch) | Action::MergeStatus(patch)) => {
                self.deployment = patched(&self.deployment, &patch);
            }
            other => panic!("{other:?}"),
        }
    }

    /// Every ReplicaSet has the pods it wants; of those with `image` all are ready when `ready`.
    fn run_pods(&mut self, image: &str, ready: bool) {
        for set in &mut self.sets {
            let size = wanted(set);
            let mine = image_of(set) == image;
            let status = set.status.get_or_insert_default();
            status.replicas = size;
            let available = if mine && !ready { 0 } else { size };
            status.ready_replicas = Some(available);
            status.available_replicas = Some(available);
        }
    }

    /// Size by image.
    fn sizes(&self) -> Vec<(&str, i32)> {
        self.sets.iter().map(|set| (image_of(set), wanted(set))).collect()
    }

    fn condition(&self, kind: &str) -> (String, String) {
        let status = self.deployment.status.as_ref().unwrap();
        let condition = status
            .conditions
            .iter()
            .flatten()
            .find(|condition| condition.type_.as_deref() == Some(kind))
            .unwrap();
        (condition.status.clone().unwrap(), condition.reason.clone().unwrap())
    }

    fn revisions(&self) -> Vec<(&str, i64)> {
        self.sets.iter().map(|set| (image_of(set), revision(&set.metadata))).collect()
    }
}

fn image_of(set: &ReplicaSet) -> &str {
    let template = set.spec.template.as_ref().unwrap();
    template.spec.as_ref().unwrap().containers[0].image.as_deref().unwrap()
}

fn patched<T: serde::Serialize + serde::de::DeserializeOwned>(object: &T, patch: &Value) -> T {
    let mut value = to_value(object);
    merge(&mut value, patch);
    serde_json::from_value(value).unwrap()
}

fn merge(target: &mut Value, patch: &Value) {
    let Some(fields) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    for (key, value) in fields {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut target[key.as_str()], value);
        }
    }
}

fn pair(status: &str, reason: &str) -> (String, String) {
    (status.to_owned(), reason.to_owned())
}

#[test]
fn a_first_rollout() {
    let mut world = World::new(2, json!({}));
    world.settle();
    assert_eq!(world.sizes(), [("v1", 2)]);
    assert_eq!(world.condition("Progressing"), pair("True", "NewReplicaSetCreated"));
    assert_eq!(world.condition("Available"), pair("False", "MinimumReplicasUnavailable"));
    let set = &world.sets[0];
    let hash = set.metadata.labels.as_ref().unwrap()[POD_TEMPLATE_HASH].clone();
    assert_eq!(name(&set.metadata), format!("web-{hash}"));
    assert_eq!(set.spec.selector.match_labels.as_ref().unwrap()[POD_TEMPLATE_HASH], hash);

    world.run_pods("v1", true);
    world.settle();
    assert_eq!(world.condition("Progressing"), pair("True", "NewReplicaSetAvailable"));
    assert_eq!(world.condition("Available"), pair("True", "MinimumReplicasAvailable"));
    let status = world.deployment.status.as_ref().unwrap();
    assert_eq!((status.updated_replicas, status.available_replicas), (Some(2), Some(2)));
    assert_eq!(status.observed_generation, Some(1));
    assert_eq!(revision(&world.deployment.metadata), 1);
}

#[test]
fn a_rolling_update_never_has_too_many_or_too_few() {
    let strategies = [
        (json!({}), 4),
        (json!({"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}), 1),
        (json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}), 3),
        (json!({"rollingUpdate": {"maxSurge": "100%", "maxUnavailable": "25%"}}), 10),
        (json!({"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "50%"}}), 7),
    ];
    for (strategy, replicas) in strategies {
        let mut world = World::new(replicas, strategy.clone());
        world.settle();
        world.run_pods("v1", true);
        world.settle();
        world.set_image("v2");
        let limits = Limits::of(&world.deployment);
        for _ in 0..100 {
            world.settle();
            let total: i32 = world.sizes().iter().map(|(_, size)| size).sum();
            assert!(total <= replicas + limits.max_surge, "{strategy}: {:?}", world.sizes());
            // Pods of the new version come up one look later; until then only the old ones count.
            world.run_pods("v2", false);
            let ready: i32 = world.sets.iter().map(available).sum::<i32>();
            let ready_before =
                ready + world.sizes().iter().filter(|(image, _)| *image == "v2").map(|(_, n)| n).sum::<i32>();
            assert!(ready_before >= replicas - limits.max_unavailable, "{strategy}: {:?}", world.sizes());
            world.settle();
            world.run_pods("v2", true);
            if world.sizes() == [("v1", 0), ("v2", replicas)] {
                break;
            }
        }
        world.settle();
        assert_eq!(world.sizes(), [("v1", 0), ("v2", replicas)], "{strategy}");
        assert_eq!(world.condition("Progressing"), pair("True", "NewReplicaSetAvailable"));
        assert_eq!(world.revisions(), [("v1", 1), ("v2", 2)]);
        assert_eq!(revision(&world.deployment.metadata), 2);
    }
}

#[test]
fn new_pods_that_never_get_ready_keep_the_old_ones() {
    let mut world = World::new(1, json!({}));
    world.settle();
    world.run_pods("v1", true);
    world.settle();
    world.set_image("broken");
    for _ in 0..5 {
        world.settle();
        world.run_pods("broken", false);
    }
    assert_eq!(world.sizes(), [("v1", 1), ("broken", 1)]);
    assert_eq!(world.condition("Available"), pair("True", "MinimumReplicasAvailable"));
    assert!(world.decide().again.is_some(), "the deadline is watched");
    world.now += jiff::SignedDuration::from_secs(700);
    world.settle();
    assert_eq!(world.condition("Progressing"), pair("False", "ProgressDeadlineExceeded"));
}

#[test]
fn a_rollback_renews_the_old_revision() {
    let mut world = World::new(1, json!({}));
    for image in ["v1", "v2", "v1"] {
        world.set_image(image);
        for _ in 0..5 {
            world.settle();
            world.run_pods(image, true);
        }
        world.settle();
    }
    assert_eq!(world.sizes(), [("v1", 1), ("v2", 0)]);
    assert_eq!(world.revisions(), [("v1", 3), ("v2", 2)]);
    assert_eq!(world.sets[0].metadata.annotations.as_ref().unwrap()[REVISION_HISTORY], "1");
    assert_eq!(revision(&world.deployment.metadata), 3);
}

#[test]
fn recreate_waits_until_the_old_pods_are_gone() {
    let mut world = World::new(2, json!({"type": "Recreate"}));
    world.settle();
    world.run_pods("v1", true);
    world.settle();
    world.set_image("v2");
    world.settle();
    assert_eq!(world.sizes(), [("v1", 0)]);
    world.run_pods("v1", true);
    let leaving: Pod = serde_json::from_value(json!({"metadata": {
        "name": "old", "deletionTimestamp": "2026-01-01T00:00:00Z", "ownerReferences": [
            {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "x", "uid": name(&world.sets[0].metadata), "controller": true}
        ],
    }}))
    .unwrap();
    let decision = decide(&world.deployment, &world.sets, [&leaving], world.now);
    assert!(!decision.writes.iter().any(|write| matches!(write.action, Action::Create(_))), "{decision:?}");
    world.settle();
    assert_eq!(world.sizes(), [("v1", 0), ("v2", 2)]);
}

#[test]
fn scaling_and_pausing() {
    let mut world = World::new(1, json!({}));
    world.settle();
    world.run_pods("v1", true);
    world.settle();
    world.deployment.spec.replicas = Some(5);
    world.settle();
    assert_eq!(world.sizes(), [("v1", 5)]);
    world.deployment.spec.paused = Some(true);
    world.set_image("v2");
    world.deployment.spec.replicas = Some(3);
    world.settle();
    assert_eq!(world.sizes(), [("v1", 3)], "paused: no rollout, but the size follows");
    world.deployment.spec.paused = None;
    world.deployment.spec.replicas = Some(0);
    world.settle();
    world.settle();
    assert_eq!(world.sizes().iter().map(|(_, size)| size).sum::<i32>(), 0);
}

#[test]
fn history_is_limited() {
    let mut world = World::new(1, json!({}));
    world.deployment.spec.revision_history_limit = Some(1);
    for image in ["v1", "v2", "v3", "v4"] {
        world.set_image(image);
        for _ in 0..5 {
            world.settle();
            world.run_pods(image, true);
        }
        world.settle();
    }
    assert_eq!(world.sizes(), [("v3", 0), ("v4", 1)]);
}

#[test]
fn equal_hashes_are_told_apart() {
    let mut world = World::new(1, json!({}));
    world.settle();
    // The name is taken by a ReplicaSet of nobody's.
    world.sets[0].metadata.owner_references = None;
    world.settle();
    assert_eq!(world.deployment.status.as_ref().unwrap().collision_count, Some(1));
    assert_eq!(world.sets.len(), 2);
}
