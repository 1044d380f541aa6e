//! Deployment → ReplicaSets.
//!
//! Source of the rules: Kubernetes documentation, "Deployments" (rolling update, revisions, status), and the behaviour of
//! kube-controller-manager where the documentation is silent.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

use super::cache::Kind;
use super::deployment_status;
use super::meta::{Labels, is_controlled_by, is_deleting, name, owner_reference, resolve, template_hash};
use super::write::{Decision, Write};

/// Label that tells the pods of a Deployment's ReplicaSets apart.
pub(crate) const POD_TEMPLATE_HASH: &str = "pod-template-hash";
/// Annotation that numbers the revisions of a Deployment; `kubectl rollout history` and `undo` read it.
pub(crate) const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations of a Deployment that say nothing about its ReplicaSets.
const OWN_ANNOTATIONS: [&str; 5] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
];

/// What a rollout has to respect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) replicas: i32,
    pub(crate) max_surge: i32,
    pub(crate) max_unavailable: i32,
    pub(crate) recreate: bool,
}

impl Limits {
    pub(crate) fn of(deployment: &Deployment) -> Self {
        let replicas = deployment.spec.replicas.unwrap_or(1);
        let strategy = deployment.spec.strategy.as_ref();
        if strategy.is_some_and(|strategy| strategy.type_.as_deref() == Some("Recreate")) {
            return Self { replicas, max_surge: 0, max_unavailable: replicas, recreate: true };
        }
        let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
        let max_surge =
            resolve(rolling.and_then(|rolling| rolling.max_surge.as_ref()), "25%", replicas, true);
        let unavailable = rolling.and_then(|rolling| rolling.max_unavailable.as_ref());
        let mut max_unavailable = resolve(unavailable, "25%", replicas, false).min(replicas);
        // Both rounded to nothing would never move.
        if max_surge == 0 && max_unavailable == 0 {
            max_unavailable = 1;
        }
        Self { replicas, max_surge, max_unavailable, recreate: false }
    }
}

/// `sets` and `pods` are all of the namespace.
pub(crate) fn decide<'a>(
    deployment: &Deployment,
    sets: impl IntoIterator<Item = &'a ReplicaSet>,
    pods: impl IntoIterator<Item = &'a Pod>,
    now: Timestamp,
) -> Decision {
    let spec = &deployment.spec;
    let all: Vec<&ReplicaSet> = sets.into_iter().collect();
    let mut mine: Vec<&ReplicaSet> =
        all.iter().copied().filter(|set| is_controlled_by(&set.metadata, &deployment.metadata)).collect();
    mine.sort_by_key(|set| {
        (set.metadata.creation_timestamp.as_ref().map(|time| time.0), name(&set.metadata))
    });
    if is_deleting(&deployment.metadata) {
        return Decision::default();
    }
    let new = mine.iter().copied().find(|set| same_template(set, &spec.template));
    let old: Vec<&ReplicaSet> = mine
        .iter()
        .copied()
        .filter(|set| new.is_none_or(|new| name(&new.metadata) != name(&set.metadata)))
        .collect();
    let rollout =
        Rollout { deployment, spec_template: &spec.template, limits: Limits::of(deployment), new, old };

    let mut collisions = deployment.status.as_ref().and_then(|status| status.collision_count);
    let mut writes = Vec::new();
    if spec.paused == Some(true) {
        writes.extend(rollout.scale_paused());
    } else {
        match rollout.new {
            None if rollout.may_create(pods) => {
                let set = rollout.new_set(collisions);
                if all.iter().any(|other| name(&other.metadata) == name(&set.metadata)) {
                    // Another template has the same hash, or somebody else the name: the next look hashes differently.
                    collisions = Some(collisions.unwrap_or(0) + 1);
                } else {
                    writes.push(Write::create(Kind::ReplicaSet, &set.metadata, &set));
                }
            }
            None => {}
            Some(new) => writes.extend(rollout.renew(new)),
        }
        writes.extend(rollout.scale_down_old());
        writes.extend(rollout.forget(spec.revision_history_limit.unwrap_or(10)));
    }
    writes.extend(rollout.revision_annotation());
    let (status, again) =
        deployment_status::status(deployment, &rollout.limits, new, &rollout.old, collisions, now);
    writes.extend(Write::status(Kind::Deployment, &deployment.metadata, deployment.status.as_ref(), &status));
    Decision { writes, again: again.map(|wait: Duration| wait + Duration::from_millis(50)) }
}

/// Equal but for the label that ReplicaSets add.
fn same_template(set: &ReplicaSet, template: &PodTemplateSpec) -> bool {
    let Some(mut mine) = set.spec.template.clone() else { return false };
    let mut theirs = template.clone();
    for template in [&mut mine, &mut theirs] {
        let meta = template.metadata.get_or_insert_default();
        // The API server may or may not keep an empty map or a null time stamp.
        meta.creation_timestamp = None;
        meta.labels = meta.labels.take().map(without_hash).filter(|labels| !labels.is_empty());
        meta.annotations = meta.annotations.take().filter(|annotations| !annotations.is_empty());
    }
    mine == theirs
}

fn without_hash(mut labels: Labels) -> Labels {
    labels.remove(POD_TEMPLATE_HASH);
    labels
}

pub(crate) fn wanted(set: &ReplicaSet) -> i32 {
    set.spec.replicas.unwrap_or(1)
}

pub(crate) fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

fn existing(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map_or(0, |status| status.replicas)
}

fn revision(meta: &ObjectMeta) -> i64 {
    let annotation = meta.annotations.as_ref().and_then(|annotations| annotations.get(REVISION));
    annotation.and_then(|revision| revision.parse().ok()).unwrap_or(0)
}

/// A Deployment with its ReplicaSets sorted out; `old` from the oldest on.
struct Rollout<'a> {
    deployment: &'a Deployment,
    spec_template: &'a PodTemplateSpec,
    limits: Limits,
    new: Option<&'a ReplicaSet>,
    old: Vec<&'a ReplicaSet>,
}

impl Rollout<'_> {
    /// With strategy Recreate, a new ReplicaSet comes once the pods of the old ones are gone, terminating ones too.
    fn may_create<'p>(&self, pods: impl IntoIterator<Item = &'p Pod>) -> bool {
        !self.limits.recreate || !self.old_pods_left(pods)
    }

    fn old_pods_left<'p>(&self, pods: impl IntoIterator<Item = &'p Pod>) -> bool {
        let scaled_down = self.old.iter().all(|set| wanted(set) == 0 && existing(set) == 0);
        let owned = |pod: &Pod| self.old.iter().any(|set| is_controlled_by(&pod.metadata, &set.metadata));
        !scaled_down || pods.into_iter().any(|pod| !super::meta::is_finished(pod) && owned(pod))
    }

    fn next_revision(&self) -> i64 {
        self.old.iter().map(|set| revision(&set.metadata)).max().unwrap_or(0) + 1
    }

    fn new_set(&self, collisions: Option<i32>) -> ReplicaSet {
        let hash = template_hash(self.spec_template, collisions);
        let mut template = self.spec_template.clone();
        let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
        labels.insert(POD_TEMPLATE_HASH.to_owned(), hash.clone());
        let labels = labels.clone();
        let mut selector: LabelSelector = self.deployment.spec.selector.clone();
        selector.match_labels.get_or_insert_default().insert(POD_TEMPLATE_HASH.to_owned(), hash.clone());
        let mut annotations = self.inherited_annotations();
        annotations.insert(REVISION.to_owned(), self.next_revision().to_string());
        annotations.extend(self.size_annotations());
        let meta = &self.deployment.metadata;
        ReplicaSet {
            metadata: ObjectMeta {
                name: Some(format!("{}-{hash}", name(meta))),
                namespace: meta.namespace.clone(),
                labels: Some(labels),
                annotations: Some(annotations),
                owner_references: Some(vec![owner_reference("apps/v1", "Deployment", meta)]),
                ..ObjectMeta::default()
            },
            spec: ReplicaSetSpec {
                replicas: Some(self.new_size(0)),
                min_ready_seconds: self.deployment.spec.min_ready_seconds,
                selector,
                template: Some(template),
            },
            status: None,
        }
    }

    /// How large the new ReplicaSet may be, being `current` large: the surge counts every pod there is.
    fn new_size(&self, current: i32) -> i32 {
        let Limits { replicas, max_surge, recreate, .. } = self.limits;
        if recreate || current >= replicas {
            return replicas;
        }
        let total = current + self.old.iter().map(|set| wanted(set)).sum::<i32>();
        let room = (replicas + max_surge - total).max(0);
        current + room.min(replicas - current)
    }

    /// Brings the existing ReplicaSet of the wanted template up to date: size, annotations, revision (a rollback makes
    /// an old one the newest again).
    fn renew(&self, new: &ReplicaSet) -> Option<Write> {
        let mut wanted_set = new.clone();
        let mut annotations = new.metadata.annotations.clone().unwrap_or_default();
        annotations.extend(self.inherited_annotations());
        annotations.extend(self.size_annotations());
        let (current, next) = (revision(&new.metadata), self.next_revision());
        if current < next {
            if current > 0 {
                let history = annotations.entry(REVISION_HISTORY.to_owned()).or_default();
                if !history.is_empty() {
                    history.push(',');
                }
                history.push_str(&current.to_string());
            }
            annotations.insert(REVISION.to_owned(), next.to_string());
        }
        wanted_set.metadata.annotations = Some(annotations);
        wanted_set.spec.replicas = Some(self.new_size(wanted(new)));
        wanted_set.spec.min_ready_seconds = self.deployment.spec.min_ready_seconds;
        Write::update(Kind::ReplicaSet, &new.metadata, new, &wanted_set)
    }

    /// Old ReplicaSets give way as far as availability allows: first pods that aren't available anyway.
    fn scale_down_old(&self) -> Vec<Write> {
        let Limits { replicas, max_unavailable, recreate, .. } = self.limits;
        let mut sizes: Vec<i32> = self.old.iter().map(|set| wanted(set)).collect();
        if recreate {
            sizes.fill(0);
            return self.resize_old(&sizes);
        }
        let Some(new) = self.new else {
            // Nothing replaces them yet, unless the Deployment itself has shrunk to nothing.
            if replicas == 0 {
                sizes.fill(0);
            }
            return self.resize_old(&sizes);
        };
        let minimum = replicas - max_unavailable;
        let total = wanted(new) + sizes.iter().sum::<i32>();
        let new_unavailable = (wanted(new) - available(new)).max(0);
        let mut surplus = (total - minimum - new_unavailable).max(0);
        for (set, size) in self.old.iter().zip(&mut sizes) {
            let unavailable = (*size - available(set)).clamp(0, surplus);
            *size -= unavailable;
            surplus -= unavailable;
        }
        let all_available = available(new) + self.old.iter().map(|set| available(set)).sum::<i32>();
        let mut spare = (all_available - minimum).clamp(0, surplus);
        for size in &mut sizes {
            let gone = (*size).min(spare);
            *size -= gone;
            spare -= gone;
        }
        self.resize_old(&sizes)
    }

    fn resize_old(&self, sizes: &[i32]) -> Vec<Write> {
        let resize = |(set, size): (&&ReplicaSet, &i32)| {
            let mut resized = (*set).clone();
            resized.spec.replicas = Some(*size);
            if *size > 0 {
                resized.metadata.annotations.get_or_insert_default().extend(self.size_annotations());
            }
            Write::update(Kind::ReplicaSet, &set.metadata, *set, &resized)
        };
        self.old.iter().zip(sizes).filter_map(resize).collect()
    }

    /// A paused Deployment still follows its replica count, with whichever ReplicaSet is in use.
    fn scale_paused(&self) -> Option<Write> {
        let mut active = self.old.iter().copied().filter(|set| wanted(set) > 0).chain(self.new);
        let (Some(only), None) = (active.next(), active.next()) else { return None };
        let mut resized = only.clone();
        resized.metadata.annotations.get_or_insert_default().extend(self.size_annotations());
        resized.spec.replicas = Some(self.limits.replicas);
        Write::update(Kind::ReplicaSet, &only.metadata, only, &resized)
    }

    /// Old ReplicaSets beyond the history's limit are deleted once they are empty.
    fn forget(&self, limit: i32) -> Vec<Write> {
        let mut empty: Vec<&&ReplicaSet> = self
            .old
            .iter()
            .filter(|set| wanted(set) == 0 && existing(set) == 0 && !is_deleting(&set.metadata))
            .collect();
        empty.sort_by_key(|set| revision(&set.metadata));
        let surplus = empty.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        empty.into_iter().take(surplus).map(|set| Write::delete(Kind::ReplicaSet, &set.metadata)).collect()
    }

    /// The Deployment shows the revision of its newest ReplicaSet.
    fn revision_annotation(&self) -> Option<Write> {
        let current = revision(&self.deployment.metadata);
        let wanted = match self.new {
            Some(new) => revision(&new.metadata).max(self.next_revision()),
            None => return None,
        };
        let patch = serde_json::json!({"metadata": {"annotations": {REVISION: wanted.to_string()}}});
        (current != wanted).then(|| Write::merge(Kind::Deployment, &self.deployment.metadata, patch))
    }

    fn inherited_annotations(&self) -> Labels {
        let mut annotations = self.deployment.metadata.annotations.clone().unwrap_or_default();
        annotations.retain(|key, _| !OWN_ANNOTATIONS.contains(&key.as_str()));
        annotations
    }

    fn size_annotations(&self) -> [(String, String); 2] {
        let Limits { replicas, max_surge, .. } = self.limits;
        [
            (DESIRED_REPLICAS.to_owned(), replicas.to_string()),
            (MAX_REPLICAS.to_owned(), (replicas + max_surge).to_string()),
        ]
    }
}

#[cfg(test)]
#[path = "deployment_tests.rs"]
mod tests;
