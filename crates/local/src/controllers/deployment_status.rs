//! A Deployment's status: counts, and the conditions `kubectl rollout status` and `kubectl wait` read.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};

use super::deployment::{Limits, available, wanted};
use super::meta::{Condition, name, set_condition, time};

impl Condition for DeploymentCondition {
    fn key(&self) -> (&str, &str, Option<&str>, Option<&str>) {
        (
            self.type_.as_deref().unwrap_or_default(),
            self.status.as_deref().unwrap_or_default(),
            self.reason.as_deref(),
            self.message.as_deref(),
        )
    }

    fn keep_transition(&mut self, old: &Self) {
        self.last_transition_time.clone_from(&old.last_transition_time);
    }
}

/// The status as it should be, and when to look again.
pub(crate) fn status(
    deployment: &Deployment,
    limits: &Limits,
    new: Option<&ReplicaSet>,
    old: &[&ReplicaSet],
    collisions: Option<i32>,
    now: Timestamp,
) -> (DeploymentStatus, Option<Duration>) {
    let all = || old.iter().copied().chain(new);
    let sum = |field: fn(&ReplicaSet) -> i32| all().map(field).sum::<i32>();
    let available_total = sum(available);
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: Some(sum(|set| set.status.as_ref().map_or(0, |status| status.replicas))),
        updated_replicas: Some(new.map_or(0, |set| set.status.as_ref().map_or(0, |status| status.replicas))),
        ready_replicas: Some(sum(|set| {
            set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0)
        })),
        available_replicas: Some(available_total),
        unavailable_replicas: Some((sum(wanted) - available_total).max(0)),
        terminating_replicas: Some(sum(|set| {
            set.status.as_ref().and_then(|status| status.terminating_replicas).unwrap_or(0)
        })),
        collision_count: collisions,
        conditions: None,
    };
    let mut conditions =
        deployment.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let minimum = limits.replicas - limits.max_unavailable;
    let (is_available, reason, message) = if available_total >= minimum {
        ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    set_condition(&mut conditions, condition("Available", is_available, reason, message.to_owned(), now));
    let again = progress(deployment, limits, new, &status, &mut conditions, now);
    status.conditions = Some(conditions);
    (status, again)
}

/// Sets the condition Progressing; gives the time until its deadline.
fn progress(
    deployment: &Deployment,
    limits: &Limits,
    new: Option<&ReplicaSet>,
    status: &DeploymentStatus,
    conditions: &mut Vec<DeploymentCondition>,
    now: Timestamp,
) -> Option<Duration> {
    let spec = &deployment.spec;
    // An absurdly large deadline means none (Kubernetes' way to switch it off).
    let deadline = spec.progress_deadline_seconds.filter(|seconds| *seconds != i32::MAX)?;
    let what = new.map_or_else(
        || format!("Deployment {:?}", name(&deployment.metadata)),
        |set| format!("ReplicaSet {:?}", name(&set.metadata)),
    );
    let known =
        conditions.iter().find(|condition| condition.type_.as_deref() == Some("Progressing")).cloned();
    let was_complete =
        known.as_ref().is_some_and(|known| known.reason.as_deref() == Some("NewReplicaSetAvailable"));
    if is_complete(limits, status) {
        let message = format!("{what} has successfully progressed.");
        set_condition(conditions, condition("Progressing", "True", "NewReplicaSetAvailable", message, now));
        return None;
    }
    let before = deployment.status.as_ref();
    if has_progressed(before, status) || known.is_none() || (was_complete && new_rollout(deployment)) {
        let (reason, verb) = if new.is_none_or(|set| set.status.is_none()) {
            ("NewReplicaSetCreated", "is created")
        } else {
            ("ReplicaSetUpdated", "is progressing")
        };
        let mut progressing = condition("Progressing", "True", reason, format!("{what} {verb}."), now);
        if let Some(known) = known.filter(|known| known.status.as_deref() == Some("True")) {
            progressing.last_transition_time = known.last_transition_time;
        }
        // The time of the last progress is news even when the words are the same.
        conditions.retain(|condition| condition.type_.as_deref() != Some("Progressing"));
        conditions.push(progressing);
        return Some(Duration::from_secs(deadline.unsigned_abs().into()));
    }
    let known = known?;
    if was_complete || known.reason.as_deref() == Some("ProgressDeadlineExceeded") {
        return None;
    }
    let since = known.last_update_time.as_ref().map_or(now, |time| time.0);
    let passed = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    match Duration::from_secs(deadline.unsigned_abs().into()).checked_sub(passed) {
        Some(left) if !left.is_zero() && spec.paused != Some(true) => Some(left),
        Some(left) if !left.is_zero() => None,
        _ => {
            let message = format!("{what} has timed out progressing.");
            set_condition(
                conditions,
                condition("Progressing", "False", "ProgressDeadlineExceeded", message, now),
            );
            None
        }
    }
}

fn is_complete(limits: &Limits, status: &DeploymentStatus) -> bool {
    let all = Some(limits.replicas);
    status.updated_replicas == all && status.replicas == all && status.available_replicas == all
}

/// The spec has changed since the status was written.
fn new_rollout(deployment: &Deployment) -> bool {
    deployment.status.as_ref().and_then(|status| status.observed_generation) != deployment.metadata.generation
}

fn has_progressed(before: Option<&DeploymentStatus>, status: &DeploymentStatus) -> bool {
    let Some(before) = before else { return true };
    let number = |value: Option<i32>| value.unwrap_or(0);
    let old = |status: &DeploymentStatus| number(status.replicas) - number(status.updated_replicas);
    number(status.updated_replicas) > number(before.updated_replicas)
        || old(status) < old(before)
        || number(status.ready_replicas) > number(before.ready_replicas)
        || number(status.available_replicas) > number(before.available_replicas)
}

fn condition(kind: &str, status: &str, reason: &str, message: String, now: Timestamp) -> DeploymentCondition {
    DeploymentCondition {
        type_: Some(kind.to_owned()),
        status: Some(status.to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_update_time: Some(time(now)),
        last_transition_time: Some(time(now)),
    }
}
