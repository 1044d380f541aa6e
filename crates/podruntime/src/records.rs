//! What is known about a pod's containers, and what is to be done next. Pure.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};

/// Longest pause between two starts of a failing container.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(60);
/// A container that ran this long starts again with a clean record.
const FORGIVEN_AFTER: Duration = Duration::from_secs(600);

/// When a container is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

impl RestartPolicy {
    pub(crate) fn of(pod: &Pod) -> Self {
        match pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()) {
            Some("OnFailure") => Self::OnFailure,
            Some("Never") => Self::Never,
            _ => Self::Always,
        }
    }

    fn restarts(self, exit_code: i32) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => exit_code != 0,
            Self::Never => false,
        }
    }
}

/// A container's place in the pod's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Runs to its end before the next one starts.
    Init,
    /// An init container with `restartPolicy: Always`: the next one starts once it has started; it goes on.
    Sidecar,
    Main,
}

/// How an instance ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) exit_code: i32,
    pub(crate) reason: String,
    pub(crate) message: Option<String>,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) finished_at: Timestamp,
    pub(crate) container_id: String,
}

/// A container's present state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    Waiting { reason: String, message: Option<String> },
    Running { since: Timestamp },
    Ended(Ended),
}

/// A container and its history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) role: Role,
    pub(crate) state: State,
    pub(crate) last: Option<Ended>,
    /// Instances so far; the restart count is one less.
    pub(crate) instances: u32,
    /// Its id while it runs, and of the last instance afterwards.
    pub(crate) container_id: Option<String>,
    pub(crate) ready: bool,
    /// Its start-up probe has succeeded.
    pub(crate) started: bool,
    /// Some instance has got this far.
    pub(crate) ever_started: bool,
    /// Not before this moment.
    pub(crate) not_before: Option<Timestamp>,
    /// Failures in a row.
    failures: u32,
}

impl Record {
    fn new(container: &Container, role: Role, waiting: &str) -> Self {
        Self {
            name: container.name.clone(),
            image: container.image.clone().unwrap_or_default(),
            role,
            state: State::Waiting { reason: waiting.to_owned(), message: None },
            last: None,
            instances: 0,
            container_id: None,
            ready: false,
            started: false,
            ever_started: false,
            not_before: None,
            failures: 0,
        }
    }

    /// Restarts so far.
    pub(crate) fn restarts(&self) -> u32 {
        self.instances.saturating_sub(1)
    }

    /// An instance runs.
    pub(crate) fn set_running(&mut self, now: Timestamp, container_id: String) {
        if let State::Ended(ended) = &self.state {
            self.last = Some(ended.clone());
        }
        self.state = State::Running { since: now };
        self.container_id = Some(container_id);
        self.not_before = None;
    }

    /// It can't be started for a reason that may go away.
    pub(crate) fn set_waiting(&mut self, reason: &str, message: String, retry: Timestamp) {
        if let State::Ended(ended) = &self.state {
            self.last = Some(ended.clone());
        }
        self.state = State::Waiting { reason: reason.to_owned(), message: Some(message) };
        self.not_before = Some(retry);
    }

    /// The instance has ended; `pod` names the pod in messages.
    pub(crate) fn set_ended(&mut self, ended: Ended, policy: RestartPolicy, pod: &str) {
        self.ready = false;
        self.started = false;
        let ran = ended.started_at.map(|start| ended.finished_at.duration_since(start));
        if ran.is_some_and(|ran| ran.unsigned_abs() >= FORGIVEN_AFTER) {
            self.failures = 0;
        }
        // The first crash of something that did run is answered at once.
        if ran.is_none() {
            self.failures = self.failures.max(1);
        }
        let pause = back_off(self.failures);
        self.failures = self.failures.saturating_add(1);
        let restarts = self.restarts_after(ended.exit_code, policy);
        let finished_at = ended.finished_at;
        self.state = State::Ended(ended);
        self.not_before = None;
        if restarts && !pause.is_zero() {
            let retry = finished_at.checked_add(pause).unwrap_or(finished_at);
            let message =
                format!("back-off {}s restarting failed container={} pod={pod}", pause.as_secs(), self.name);
            self.set_waiting("CrashLoopBackOff", message, retry);
        }
    }

    /// The instance has ended, and none will follow.
    pub(crate) fn set_final(&mut self, ended: Ended) {
        (self.ready, self.started) = (false, false);
        self.state = State::Ended(ended);
        self.not_before = None;
    }

    fn restarts_after(&self, exit_code: i32, policy: RestartPolicy) -> bool {
        match self.role {
            Role::Sidecar => true,
            // An init container that succeeded is done; `Always` means on failure for the others.
            Role::Init => exit_code != 0 && policy != RestartPolicy::Never,
            Role::Main => policy.restarts(exit_code),
        }
    }

    fn is_done(&self, policy: RestartPolicy) -> Option<bool> {
        match &self.state {
            State::Ended(ended) if !self.restarts_after(ended.exit_code, policy) => {
                Some(ended.exit_code == 0)
            }
            _ => None,
        }
    }

    fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }

    fn may_start(&self, now: Timestamp) -> bool {
        !self.is_running() && self.not_before.is_none_or(|moment| moment <= now)
    }
}

/// Pauses before restarts: none, then 1 s, doubling.
fn back_off(failures: u32) -> Duration {
    match failures.checked_sub(1) {
        None => Duration::ZERO,
        Some(doublings) => LONGEST_BACK_OFF.min(Duration::from_secs(1_u64 << doublings.min(10))),
    }
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Start these (by index into the records), in this order.
    Start(Vec<usize>),
    /// Nothing until something happens, or until this moment.
    Wait(Option<Timestamp>),
    /// All main containers are done; whether all succeeded.
    Finished { succeeded: bool },
}

/// The records of a pod that has not started: init containers and sidecars in order, then the main containers.
pub(crate) fn records(pod: &Pod) -> Vec<Record> {
    let init =
        pod.spec.as_ref().and_then(|spec| spec.init_containers.as_ref()).is_some_and(|list| !list.is_empty());
    let waiting = if init { "PodInitializing" } else { "ContainerCreating" };
    containers(pod).map(|(container, role)| Record::new(container, role, waiting)).collect()
}

/// The containers in the order of their records.
pub(crate) fn containers(pod: &Pod) -> impl Iterator<Item = (&Container, Role)> {
    let spec = pod.spec.as_ref();
    let init = spec.and_then(|spec| spec.init_containers.as_ref()).into_iter().flatten().map(|container| {
        let sidecar = container.restart_policy.as_deref() == Some("Always");
        (container, if sidecar { Role::Sidecar } else { Role::Init })
    });
    let main = spec
        .map(|spec| spec.containers.iter())
        .into_iter()
        .flatten()
        .map(|container| (container, Role::Main));
    init.chain(main)
}

/// The next step of a pod that isn't being deleted.
pub(crate) fn next_step(records: &[Record], policy: RestartPolicy, now: Timestamp) -> Step {
    let mut start = Vec::new();
    let mut wake: Option<Timestamp> = None;
    let mut want = |index: usize, record: &Record, start: &mut Vec<usize>| {
        if record.may_start(now) {
            start.push(index);
        } else if let Some(moment) = record.not_before.filter(|_| !record.is_running()) {
            wake = Some(wake.map_or(moment, |earliest| earliest.min(moment)));
        }
    };
    let mut initialized = true;
    for (index, record) in records.iter().enumerate().filter(|(_, record)| record.role != Role::Main) {
        match record.role {
            Role::Sidecar => {
                want(index, record, &mut start);
                initialized = record.ever_started;
            }
            _ => match record.is_done(policy) {
                Some(true) => {}
                Some(false) => return Step::Finished { succeeded: false },
                None => {
                    want(index, record, &mut start);
                    initialized = false;
                }
            },
        }
        if !initialized {
            break;
        }
    }
    if initialized {
        let main: Vec<(usize, &Record)> =
            records.iter().enumerate().filter(|(_, record)| record.role == Role::Main).collect();
        let done: Vec<Option<bool>> = main.iter().map(|(_, record)| record.is_done(policy)).collect();
        if done.iter().all(Option::is_some) {
            return Step::Finished { succeeded: done.iter().all(|done| *done == Some(true)) };
        }
        for ((index, record), _) in main.into_iter().zip(done).filter(|(_, done)| done.is_none()) {
            want(index, record, &mut start);
        }
    }
    if start.is_empty() { Step::Wait(wake) } else { Step::Start(start) }
}

/// Whether every init container has done its part.
pub(crate) fn is_initialized(records: &[Record]) -> bool {
    records.iter().all(|record| match record.role {
        Role::Main => true,
        Role::Sidecar => record.ever_started,
        Role::Init => matches!(&record.state, State::Ended(ended) if ended.exit_code == 0),
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::fields::tests::pod;
    use serde_json::json;

    /// The pod of these and the status tests: init, sidecar, two main containers.
    pub(crate) fn four() -> Pod {
        pod(json!({
            "initContainers": [{ "name": "init", "image": "i" }, { "name": "side", "image": "s", "restartPolicy": "Always" }],
            "containers": [{ "name": "a", "image": "a" }, { "name": "b", "image": "b" }]
        }))
    }

    pub(crate) fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    pub(crate) fn run(record: &mut Record, second: i64) {
        record.instances += 1;
        record.set_running(at(second), format!("lateen://{}", record.instances));
    }

    pub(crate) fn end(record: &mut Record, second: i64, exit_code: i32, policy: RestartPolicy) {
        let started_at = if let State::Running { since } = record.state { Some(since) } else { None };
        let reason = if exit_code == 0 { "Completed" } else { "Error" }.to_owned();
        let ended = Ended {
            exit_code,
            reason,
            message: None,
            started_at,
            finished_at: at(second),
            container_id: "lateen://x".to_owned(),
        };
        record.set_ended(ended, policy, "web-1_default(u-1)");
    }

    #[test]
    fn a_pods_life() {
        let policy = RestartPolicy::Always;
        let mut r = records(&four());
        assert_eq!(next_step(&r, policy, at(0)), Step::Start(vec![0]));
        run(&mut r[0], 0);
        assert_eq!(next_step(&r, policy, at(0)), Step::Wait(None));
        end(&mut r[0], 1, 0, policy);
        assert_eq!(next_step(&r, policy, at(1)), Step::Start(vec![1]));
        run(&mut r[1], 1);
        assert_eq!(next_step(&r, policy, at(1)), Step::Wait(None), "the sidecar has not started yet");
        assert!(!is_initialized(&r));
        r[1].ever_started = true;
        assert_eq!(next_step(&r, policy, at(1)), Step::Start(vec![2, 3]));
        run(&mut r[2], 2);
        run(&mut r[3], 2);
        assert_eq!(next_step(&r, policy, at(2)), Step::Wait(None));
        // A sidecar's crash doesn't hold up the others.
        end(&mut r[1], 3, 1, policy);
        end(&mut r[2], 3, 1, policy);
        assert_eq!(next_step(&r, policy, at(3)), Step::Start(vec![1, 2]));
    }

    #[test]
    fn pauses_grow_and_are_forgiven() {
        let policy = RestartPolicy::Always;
        let mut r = records(&four());
        let record = &mut r[2];
        let mut now = 0;
        let mut pauses = Vec::new();
        for _ in 0..9 {
            run(record, now);
            end(record, now + 1, 1, policy);
            now += 1;
            let pause = record.not_before.map_or(0, |moment| moment.as_second() - at(now).as_second());
            assert_eq!(
                matches!(&record.state, State::Waiting { reason, .. } if reason == "CrashLoopBackOff"),
                pause > 0
            );
            pauses.push(pause);
            now += pause;
        }
        assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!((record.restarts(), record.last.as_ref().map(|last| last.exit_code)), (8, Some(1)));
        run(record, now);
        end(record, now + 700, 1, policy);
        assert!(record.not_before.is_none());
    }

    #[test]
    fn policies() {
        let cases = [
            (RestartPolicy::Never, 0, 1, Step::Finished { succeeded: false }),
            (RestartPolicy::Never, 0, 0, Step::Finished { succeeded: true }),
            (RestartPolicy::OnFailure, 0, 1, Step::Start(vec![1])),
            (RestartPolicy::Always, 0, 0, Step::Start(vec![0, 1])),
        ];
        let pod = pod(json!({ "containers": [{ "name": "a" }, { "name": "b" }] }));
        for (policy, a, b, expected) in cases {
            let mut r = records(&pod);
            run(&mut r[0], 0);
            run(&mut r[1], 0);
            end(&mut r[0], 1, a, policy);
            end(&mut r[1], 1, b, policy);
            assert_eq!(next_step(&r, policy, at(1)), expected, "{policy:?}");
        }
    }

    #[test]
    fn a_failing_init_container() {
        let mut r = records(&four());
        run(&mut r[0], 0);
        end(&mut r[0], 1, 1, RestartPolicy::Never);
        assert_eq!(next_step(&r, RestartPolicy::Never, at(1)), Step::Finished { succeeded: false });
        assert_eq!(next_step(&r, RestartPolicy::Always, at(1)), Step::Start(vec![0]));
        // One that could not even be started is not retried at once.
        let mut r = records(&four());
        r[0].instances += 1;
        end(&mut r[0], 1, 127, RestartPolicy::Always);
        assert_eq!(next_step(&r, RestartPolicy::Always, at(1)), Step::Wait(Some(at(2))));
    }
}
