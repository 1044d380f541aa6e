//! Job → pods until enough have succeeded. Completion indexes and failure policies are not followed.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::Pod;

use super::cache::Kind;
use super::meta::{
    Condition, is_active, is_controlled_by, is_deleting, is_ready, name, owner_reference, phase, pod_from,
    set_condition, time,
};
use super::write::{Decision, Write};

impl Condition for JobCondition {
    fn key(&self) -> (&str, &str, Option<&str>, Option<&str>) {
        (&self.type_, &self.status, self.reason.as_deref(), self.message.as_deref())
    }

    fn keep_transition(&mut self, old: &Self) {
        self.last_transition_time.clone_from(&old.last_transition_time);
    }
}

/// `pods` are all pods of the namespace.
pub(crate) fn decide<'a>(job: &Job, pods: impl IntoIterator<Item = &'a Pod>, now: Timestamp) -> Decision {
    let Some(spec) = &job.spec else { return Decision::default() };
    if is_deleting(&job.metadata) {
        return Decision::default();
    }
    let mine: Vec<&Pod> =
        pods.into_iter().filter(|pod| is_controlled_by(&pod.metadata, &job.metadata)).collect();
    if let Some(finished) = finished_at(job) {
        return after_the_end(job, spec, finished, &mine, now);
    }
    let active: Vec<&Pod> = mine.iter().copied().filter(|pod| is_active(pod)).collect();
    let succeeded = count(mine.iter().filter(|pod| phase(pod) == "Succeeded").count());
    let failed = count(mine.iter().filter(|pod| phase(pod) == "Failed").count());
    let suspended = spec.suspend == Some(true);
    let start = job.status.as_ref().and_then(|status| status.start_time.clone());
    let mut status = JobStatus {
        active: Some(count(active.len())),
        ready: Some(count(active.iter().filter(|pod| is_ready(pod)).count())),
        succeeded: Some(succeeded),
        failed: Some(failed),
        terminating: Some(count(mine.iter().filter(|pod| is_deleting(&pod.metadata)).count())),
        start_time: if suspended { None } else { start.or_else(|| Some(time(now))) },
        conditions: job.status.as_ref().and_then(|status| status.conditions.clone()),
        ..JobStatus::default()
    };
    let (verdict, deadline) = verdict(spec, &status, now);
    let mut writes = Vec::new();
    match verdict {
        Verdict::GoOn if suspended => {
            writes.extend(active.iter().map(|pod| Write::delete(Kind::Pod, &pod.metadata)))
        }
        Verdict::GoOn => {
            let pod = new_pod(job, spec);
            let missing = wanted_active(spec, succeeded) - count(active.len());
            writes.extend((0..missing.max(0)).map(|_| Write::create(Kind::Pod, &pod.metadata, &pod)));
        }
        Verdict::Ended { kind, reason, message } => {
            writes.extend(active.iter().map(|pod| Write::delete(Kind::Pod, &pod.metadata)));
            if kind == "Complete" {
                status.completion_time = Some(time(now));
            }
            for kind in [if kind == "Complete" { "SuccessCriteriaMet" } else { "FailureTarget" }, kind] {
                let condition = JobCondition {
                    type_: kind.to_owned(),
                    status: "True".to_owned(),
                    reason: Some(reason.to_owned()),
                    message: Some(message.to_owned()),
                    last_transition_time: Some(time(now)),
                    last_probe_time: Some(time(now)),
                };
                set_condition(status.conditions.get_or_insert_default(), condition);
            }
        }
    }
    writes.extend(Write::status(Kind::Job, &job.metadata, job.status.as_ref(), &status));
    Decision { writes, again: deadline }
}

enum Verdict {
    GoOn,
    Ended { kind: &'static str, reason: &'static str, message: &'static str },
}

/// Whether the Job is over; if not, how long its deadline leaves it.
fn verdict(spec: &JobSpec, status: &JobStatus, now: Timestamp) -> (Verdict, Option<Duration>) {
    let enough = match spec.completions {
        Some(completions) => status.succeeded.unwrap_or(0) >= completions,
        // A work queue is done when one pod has succeeded and none is left.
        None => status.succeeded.unwrap_or(0) > 0 && status.active == Some(0),
    };
    if enough {
        let message = "Reached expected number of succeeded pods";
        return (Verdict::Ended { kind: "Complete", reason: "CompletionsReached", message }, None);
    }
    if status.failed.unwrap_or(0) > spec.backoff_limit.unwrap_or(6) {
        let message = "Job has reached the specified backoff limit";
        return (Verdict::Ended { kind: "Failed", reason: "BackoffLimitExceeded", message }, None);
    }
    let (Some(seconds), Some(start)) = (spec.active_deadline_seconds, &status.start_time) else {
        return (Verdict::GoOn, None);
    };
    let passed = Duration::try_from(now.duration_since(start.0)).unwrap_or_default();
    match Duration::from_secs(seconds.unsigned_abs()).checked_sub(passed) {
        Some(left) if !left.is_zero() => (Verdict::GoOn, Some(left)),
        _ => {
            let message = "Job was active longer than specified deadline";
            (Verdict::Ended { kind: "Failed", reason: "DeadlineExceeded", message }, None)
        }
    }
}

fn wanted_active(spec: &JobSpec, succeeded: i32) -> i32 {
    let parallelism = spec.parallelism.unwrap_or(1);
    match spec.completions {
        Some(completions) => parallelism.min(completions - succeeded),
        None if succeeded > 0 => 0,
        None => parallelism,
    }
}

fn finished_at(job: &Job) -> Option<Timestamp> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    let ended = conditions.iter().find(|condition| {
        matches!(condition.type_.as_str(), "Complete" | "Failed") && condition.status == "True"
    })?;
    Some(ended.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0))
}

/// Leftover pods are stopped; the Job itself goes when its time to live is over.
fn after_the_end(job: &Job, spec: &JobSpec, finished: Timestamp, mine: &[&Pod], now: Timestamp) -> Decision {
    let mut writes: Vec<Write> =
        mine.iter().filter(|pod| is_active(pod)).map(|pod| Write::delete(Kind::Pod, &pod.metadata)).collect();
    let Some(seconds) = spec.ttl_seconds_after_finished else { return writes.into() };
    let passed = Duration::try_from(now.duration_since(finished)).unwrap_or_default();
    let left = Duration::from_secs(seconds.unsigned_abs().into()).saturating_sub(passed);
    if left.is_zero() {
        writes.push(Write::delete(Kind::Job, &job.metadata));
        return writes.into();
    }
    Decision { writes, again: Some(left) }
}

fn new_pod(job: &Job, spec: &JobSpec) -> Pod {
    let namespace = job.metadata.namespace.as_deref().unwrap_or_default();
    let mut pod = pod_from(&spec.template, namespace, owner_reference("batch/v1", "Job", &job.metadata));
    let labels = pod.metadata.labels.get_or_insert_default();
    let uid = job.metadata.uid.clone().unwrap_or_default();
    for prefix in ["", "batch.kubernetes.io/"] {
        labels.insert(format!("{prefix}job-name"), name(&job.metadata).to_owned());
        labels.insert(format!("{prefix}controller-uid"), uid.clone());
    }
    pod
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::write::Action;
    use serde_json::{Value, json};

    fn job(more: Value) -> Job {
        let mut spec = json!({"template": {"spec": {"containers": []}}});
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        serde_json::from_value(
            json!({"metadata": {"name": "once", "namespace": "shop", "uid": "job"}, "spec": spec}),
        )
        .unwrap()
    }

    fn pods(job: &Job, phases: &[&str]) -> Vec<Pod> {
        let pod = |phase: &&str| {
            let mut pod = new_pod(job, job.spec.as_ref().unwrap());
            pod.metadata.name = Some("pod".to_owned());
            pod.status = Some(serde_json::from_value(json!({"phase": phase})).unwrap());
            pod
        };
        phases.iter().map(pod).collect()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// Creations, deletions, and the final condition.
    fn outcome(decision: &Decision) -> (usize, usize, Option<String>) {
        let (mut created, mut deleted, mut end) = (0, 0, None);
        for write in &decision.writes {
            match &write.action {
                Action::Create(_) => created += 1,
                Action::Delete { .. } => deleted += 1,
                Action::MergeStatus(patch) => {
                    let conditions = patch["status"]["conditions"].as_array();
                    end = conditions.and_then(|list| list.last()?["type"].as_str().map(str::to_owned));
                }
                other => panic!("{other:?}"),
            }
        }
        (created, deleted, end)
    }

    #[test]
    fn decisions() {
        let (complete, failed) = (Some("Complete".to_owned()), Some("Failed".to_owned()));
        let cases = [
            (json!({"completions": 1}), vec![], (1, 0, None)),
            (json!({"completions": 3, "parallelism": 2}), vec!["Running"], (1, 0, None)),
            (json!({"completions": 3, "parallelism": 2}), vec!["Succeeded", "Succeeded"], (1, 0, None)),
            (json!({"completions": 1}), vec!["Succeeded"], (0, 0, complete)),
            (json!({"completions": 1, "backoffLimit": 1}), vec!["Failed"], (1, 0, None)),
            (json!({"completions": 1, "backoffLimit": 1}), vec!["Failed", "Failed"], (0, 0, failed)),
            (json!({"parallelism": 2}), vec!["Succeeded", "Running"], (0, 0, None)),
            (json!({"suspend": true}), vec!["Running"], (0, 1, None)),
        ];
        for (spec, phases, expected) in cases {
            let job = job(spec.clone());
            assert_eq!(outcome(&decide(&job, &pods(&job, &phases), at(0))), expected, "{spec} {phases:?}");
        }
    }

    #[test]
    fn deadlines_and_time_to_live() {
        let mut job =
            job(json!({"completions": 1, "activeDeadlineSeconds": 10, "ttlSecondsAfterFinished": 5}));
        job.status = Some(serde_json::from_value(json!({"startTime": "1970-01-01T00:00:00Z"})).unwrap());
        assert_eq!(decide(&job, &pods(&job, &["Running"]), at(4)).again, Some(Duration::from_secs(6)));
        let late = decide(&job, &pods(&job, &["Running"]), at(10));
        assert_eq!(outcome(&late), (0, 1, Some("Failed".to_owned())));
        let ended = json!({"conditions": [
            {"type": "Complete", "status": "True", "lastTransitionTime": "1970-01-01T00:00:00Z"}
        ]});
        job.status = Some(serde_json::from_value(ended).unwrap());
        assert_eq!(
            decide(&job, &[], at(2)),
            Decision { writes: vec![], again: Some(Duration::from_secs(3)) }
        );
        assert_eq!(outcome(&decide(&job, &[], at(5))), (0, 1, None));
    }
}
