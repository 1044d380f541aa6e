//! A pod's status as Kubernetes shows it. Pure.

use std::net::{Ipv4Addr, Ipv6Addr};

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{
        ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
        ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodStatus,
    },
    apimachinery::pkg::apis::meta::v1::Time,
};

use crate::{
    quantity,
    records::{Ended, Record, Role, State, is_initialized},
};

/// What a status is made from.
#[derive(Debug, Clone)]
pub(crate) struct PodView<'a> {
    pub(crate) pod: &'a Pod,
    pub(crate) records: &'a [Record],
    pub(crate) pod_ip: Option<Ipv4Addr>,
    pub(crate) host_ip: Ipv4Addr,
    /// With IPv6.
    pub(crate) pod_ip6: Option<Ipv6Addr>,
    pub(crate) host_ip6: Option<Ipv6Addr>,
    pub(crate) started_at: Timestamp,
    /// All containers are done; whether all succeeded.
    pub(crate) finished: Option<bool>,
    /// Why the pod as a whole is in its phase (for example `Evicted`), with a message.
    pub(crate) reason: Option<(String, String)>,
    pub(crate) now: Timestamp,
}

/// Condition types written here; others (readiness gates) belong to somebody else and are kept.
pub(crate) const OWN_CONDITIONS: &[&str] =
    &["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

/// The status; `previous` is the one before, whose transition times go on where nothing changed.
pub(crate) fn pod_status(view: &PodView<'_>, previous: Option<&PodStatus>) -> PodStatus {
    let (init, main): (Vec<&Record>, Vec<&Record>) =
        view.records.iter().partition(|record| record.role != Role::Main);
    let ip = view.pod_ip.map(|ip| ip.to_string());
    let statuses = |records: &[&Record]| {
        let list: Vec<ContainerStatus> = records.iter().map(|record| container_status(record)).collect();
        (!list.is_empty()).then_some(list)
    };
    PodStatus {
        phase: Some(phase(view).to_owned()),
        conditions: Some(conditions(view, previous)),
        host_ip: Some(view.host_ip.to_string()),
        host_ips: Some(
            [view.host_ip.to_string()]
                .into_iter()
                .chain(view.host_ip6.map(|ip| ip.to_string()))
                .map(|ip| HostIP { ip })
                .collect(),
        ),
        pod_ips: ip.clone().map(|ip| {
            [ip].into_iter().chain(view.pod_ip6.map(|ip| ip.to_string())).map(|ip| PodIP { ip }).collect()
        }),
        pod_ip: ip,
        start_time: Some(Time(seconds(view.started_at))),
        init_container_statuses: statuses(&init),
        container_statuses: statuses(&main),
        qos_class: Some(qos_class(view.pod).to_owned()),
        reason: view.reason.as_ref().map(|(reason, _)| reason.clone()),
        message: view.reason.as_ref().map(|(_, message)| message.clone()),
        ..PodStatus::default()
    }
}

/// The phase (kubelet's `getPhase`): Running once all main containers have been started and one is not done.
fn phase(view: &PodView<'_>) -> &'static str {
    match view.finished {
        Some(true) => return "Succeeded",
        Some(false) => return "Failed",
        None => {}
    }
    let created = |record: &Record| record.last.is_some() || !matches!(record.state, State::Waiting { .. });
    let main = view.records.iter().filter(|record| record.role == Role::Main);
    if is_initialized(view.records) && main.clone().all(created) { "Running" } else { "Pending" }
}

fn conditions(view: &PodView<'_>, previous: Option<&PodStatus>) -> Vec<PodCondition> {
    let main = || view.records.iter().filter(|record| record.role == Role::Main);
    let names = |records: Vec<&Record>| {
        records.iter().map(|record| record.name.as_str()).collect::<Vec<_>>().join(" ")
    };
    let finished = view.finished.is_some();
    let initialized = is_initialized(view.records) || view.finished == Some(true);
    // Sidecars count towards readiness (KEP-753).
    let counting = || view.records.iter().filter(|record| record.role != Role::Init);
    let unready: Vec<&Record> = counting().filter(|record| !record.ready).collect();
    let (ready, reason, message) = if view.finished == Some(true) {
        (false, Some("PodCompleted"), None)
    } else if view.finished == Some(false) {
        (false, Some("PodFailed"), None)
    } else if unready.is_empty() {
        (true, None, None)
    } else {
        (
            false,
            Some("ContainersNotReady"),
            Some(format!("containers with unready status: [{}]", names(unready))),
        )
    };
    let gates = readiness_gates(view.pod, previous);
    let pod_ready = ready && gates.is_none();
    let (pod_reason, pod_message) = match gates {
        Some(gate) if ready => (
            Some("ReadinessGatesNotReady"),
            Some(format!(
                "corresponding condition of pod readiness gate \"{gate}\" does not exist or is not true."
            )),
        ),
        _ => (reason, message.clone()),
    };
    let incomplete: Vec<&Record> = view
        .records
        .iter()
        .filter(|record| match record.role {
            Role::Main => false,
            Role::Sidecar => !record.ever_started,
            Role::Init => !matches!(&record.state, State::Ended(ended) if ended.exit_code == 0),
        })
        .collect();
    let incomplete =
        (!initialized).then(|| format!("containers with incomplete status: [{}]", names(incomplete)));
    let sandbox = view.pod_ip.is_some() && !finished;
    let no_reason = None;
    let own = [
        ("PodReadyToStartContainers", sandbox, no_reason, None),
        (
            "Initialized",
            initialized,
            if initialized { None } else { Some("ContainersNotInitialized") },
            incomplete,
        ),
        ("Ready", pod_ready, pod_reason, pod_message),
        ("ContainersReady", ready && main().next().is_some(), reason, message),
        ("PodScheduled", true, None, None),
    ];
    let before = previous.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    let foreign =
        before.clone().filter(|condition| !OWN_CONDITIONS.contains(&condition.type_.as_str())).cloned();
    own.into_iter()
        .map(|(kind, value, reason, message)| {
            let status = if value { "True" } else { "False" };
            let same = before.clone().find(|old| old.type_ == kind && old.status == status);
            PodCondition {
                type_: kind.to_owned(),
                status: status.to_owned(),
                reason: reason.map(str::to_owned),
                message,
                last_transition_time: same
                    .and_then(|old| old.last_transition_time.clone())
                    .or(Some(Time(seconds(view.now)))),
                ..PodCondition::default()
            }
        })
        .chain(foreign)
        .collect()
}

/// The first readiness gate whose condition isn't true.
fn readiness_gates(pod: &Pod, previous: Option<&PodStatus>) -> Option<String> {
    let gates = pod.spec.as_ref()?.readiness_gates.as_ref()?;
    let conditions = previous.and_then(|status| status.conditions.as_ref());
    let holds = |kind: &str| {
        conditions
            .into_iter()
            .flatten()
            .any(|condition| condition.type_ == kind && condition.status == "True")
    };
    gates.iter().find(|gate| !holds(&gate.condition_type)).map(|gate| gate.condition_type.clone())
}

fn container_status(record: &Record) -> ContainerStatus {
    let (state, ready) = match &record.state {
        State::Waiting { reason, message } => {
            let waiting = ContainerStateWaiting { reason: Some(reason.clone()), message: message.clone() };
            (ContainerState { waiting: Some(waiting), ..ContainerState::default() }, false)
        }
        State::Running { since } => {
            let running = ContainerStateRunning { started_at: Some(Time(seconds(*since))) };
            (ContainerState { running: Some(running), ..ContainerState::default() }, record.ready)
        }
        // A finished init container counts as ready.
        State::Ended(ended) => (terminated(ended), record.role == Role::Init && ended.exit_code == 0),
    };
    ContainerStatus {
        name: record.name.clone(),
        image: record.image.clone(),
        // Images are commands here; the name is all the identity there is.
        image_id: if record.container_id.is_some() { record.image.clone() } else { String::new() },
        container_id: record.container_id.clone(),
        state: Some(state),
        last_state: Some(record.last.as_ref().map(terminated).unwrap_or_default()),
        ready,
        started: Some(record.started && matches!(record.state, State::Running { .. })),
        restart_count: i32::try_from(record.restarts()).unwrap_or(i32::MAX),
        ..ContainerStatus::default()
    }
}

fn terminated(ended: &Ended) -> ContainerState {
    let terminated = ContainerStateTerminated {
        exit_code: ended.exit_code,
        reason: Some(ended.reason.clone()),
        message: ended.message.clone(),
        started_at: ended.started_at.map(|start| Time(seconds(start))),
        finished_at: Some(Time(seconds(ended.finished_at))),
        container_id: Some(ended.container_id.clone()),
        signal: None,
    };
    ContainerState { terminated: Some(terminated), ..ContainerState::default() }
}

/// Kubernetes writes whole seconds.
fn seconds(moment: Timestamp) -> Timestamp {
    Timestamp::from_second(moment.as_second()).unwrap_or(moment)
}

/// The quality-of-service class (`GetPodQOS`): by requests and limits of CPU and memory of all containers.
fn qos_class(pod: &Pod) -> &'static str {
    let spec = pod.spec.as_ref();
    let init = spec.and_then(|spec| spec.init_containers.as_ref()).into_iter().flatten();
    let containers = spec.map(|spec| spec.containers.iter()).into_iter().flatten().chain(init);
    let (mut any, mut guaranteed) = (false, true);
    for container in containers {
        let resources = container.resources.as_ref();
        for resource in ["cpu", "memory"] {
            let amount = |map: Option<&std::collections::BTreeMap<String, _>>| {
                map.and_then(|map| map.get(resource))
                    .and_then(|quantity: &k8s_openapi::apimachinery::pkg::api::resource::Quantity| {
                        quantity::parse(&quantity.0)
                    })
                    .filter(|amount| *amount > 0)
            };
            let limit = amount(resources.and_then(|resources| resources.limits.as_ref()));
            let request = amount(resources.and_then(|resources| resources.requests.as_ref()));
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && request.is_none_or(|request| Some(request) == limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fields::tests::pod,
        records::{
            RestartPolicy, records,
            tests::{at, end, four, run},
        },
    };
    use serde_json::json;

    fn view<'a>(pod: &'a Pod, records: &'a [Record], second: i64) -> PodView<'a> {
        PodView {
            pod,
            records,
            pod_ip: Some(Ipv4Addr::new(10, 244, 0, 5)),
            host_ip: Ipv4Addr::new(10, 244, 0, 1),
            pod_ip6: Some("fd00::5".parse().unwrap()),
            host_ip6: None,
            started_at: at(0),
            finished: None,
            reason: None,
            now: at(second),
        }
    }

    fn condition<'a>(status: &'a PodStatus, kind: &str) -> &'a PodCondition {
        status.conditions.as_ref().unwrap().iter().find(|condition| condition.type_ == kind).unwrap()
    }

    #[test]
    fn from_pending_to_ready() {
        let pod = four();
        let mut r = records(&pod);
        let pending = pod_status(&view(&pod, &r, 1), None);
        assert_eq!(pending.phase.as_deref(), Some("Pending"));
        assert_eq!(
            condition(&pending, "Initialized").message.as_deref(),
            Some("containers with incomplete status: [init side]")
        );
        let waiting =
            pending.container_statuses.as_ref().unwrap()[0].state.as_ref().unwrap().waiting.as_ref().unwrap();
        assert_eq!(waiting.reason.as_deref(), Some("PodInitializing"));

        run(&mut r[0], 1);
        end(&mut r[0], 2, 0, RestartPolicy::Always);
        for record in &mut r[1..] {
            run(record, 3);
            record.started = true;
            record.ever_started = true;
        }
        r[1].ready = true;
        r[2].ready = true;
        let running = pod_status(&view(&pod, &r, 4), Some(&pending));
        assert_eq!(running.phase.as_deref(), Some("Running"));
        let ready = condition(&running, "Ready");
        assert_eq!(
            (ready.status.as_str(), ready.message.as_deref()),
            ("False", Some("containers with unready status: [b]"))
        );
        assert_eq!(
            ready.last_transition_time,
            condition(&pending, "Ready").last_transition_time,
            "it was not ready before"
        );

        r[3].ready = true;
        let ready = pod_status(&view(&pod, &r, 9), Some(&running));
        assert_eq!(condition(&ready, "Ready").status, "True");
        assert_eq!(condition(&ready, "Ready").last_transition_time.as_ref().unwrap().0, at(9));
        assert_eq!(condition(&ready, "Initialized").last_transition_time.as_ref().unwrap().0, at(4));
        let pod_ips: Vec<&str> = ready.pod_ips.iter().flatten().map(|pod_ip| &*pod_ip.ip).collect();
        assert_eq!(pod_ips, ["10.244.0.5", "fd00::5"]);
        let init = &ready.init_container_statuses.as_ref().unwrap()[0];
        assert!(init.ready && init.state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code == 0);
    }

    #[test]
    fn a_crash_loop_is_still_running() {
        let pod = pod(json!({ "containers": [{ "name": "a" }] }));
        let mut r = records(&pod);
        for second in [1, 2] {
            run(&mut r[0], second);
            end(&mut r[0], second, 7, RestartPolicy::Always);
        }
        let status = pod_status(&view(&pod, &r, 3), None);
        assert_eq!(status.phase.as_deref(), Some("Running"));
        let container = &status.container_statuses.as_ref().unwrap()[0];
        let waiting = container.state.as_ref().unwrap().waiting.as_ref().unwrap();
        assert_eq!(
            waiting.message.as_deref(),
            Some("back-off 1s restarting failed container=a pod=web-1_default(u-1)")
        );
        assert_eq!(container.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 7);
        assert_eq!(container.restart_count, 1);
    }

    #[test]
    fn readiness_gates_hold_the_pod_back() {
        let pod =
            pod(json!({ "containers": [{ "name": "a" }], "readinessGates": [{ "conditionType": "x/y" }] }));
        let mut r = records(&pod);
        run(&mut r[0], 0);
        (r[0].ready, r[0].started) = (true, true);
        let status = pod_status(&view(&pod, &r, 1), None);
        assert_eq!(
            (
                condition(&status, "Ready").status.as_str(),
                condition(&status, "ContainersReady").status.as_str()
            ),
            ("False", "True")
        );
        let gate: PodStatus =
            serde_json::from_value(json!({ "conditions": [{ "type": "x/y", "status": "True" }] })).unwrap();
        let status = pod_status(&view(&pod, &r, 1), Some(&gate));
        assert_eq!(condition(&status, "Ready").status, "True");
        assert_eq!(condition(&status, "x/y").status, "True", "somebody else's condition stays");
    }

    #[test]
    fn quality_of_service() {
        let cases = [
            (json!({}), "BestEffort"),
            (json!({ "requests": { "cpu": "1" } }), "Burstable"),
            (json!({ "limits": { "cpu": "1", "memory": "1Mi" } }), "Guaranteed"),
            (
                json!({ "limits": { "cpu": "1", "memory": "1Mi" }, "requests": { "cpu": "500m" } }),
                "Burstable",
            ),
        ];
        for (resources, expected) in cases {
            let pod = pod(json!({ "containers": [{ "name": "a", "resources": resources }] }));
            assert_eq!(qos_class(&pod), expected);
        }
    }
}
