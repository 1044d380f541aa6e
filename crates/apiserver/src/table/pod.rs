//! A pod's status in one word, as kubectl shows it (`printPod` in `pkg/printers/internalversion`).

use serde_json::Value;

use super::age_of;

/// READY, STATUS and RESTARTS of a pod.
pub(super) struct Summary {
    pub(super) ready: String,
    pub(super) status: String,
    pub(super) restarts: String,
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// The word for a container that isn't running, or empty.
fn state_word(state: &Value) -> String {
    let waiting = text(&state["waiting"], "reason");
    if !waiting.is_empty() {
        return waiting.to_owned();
    }
    let ended = &state["terminated"];
    if !ended.is_object() {
        return String::new();
    }
    match (text(ended, "reason"), ended["signal"].as_i64().unwrap_or(0)) {
        ("", 0) => format!("ExitCode:{}", ended["exitCode"].as_i64().unwrap_or(0)),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

pub(super) fn summarize(pod: &Value, now: jiff::Timestamp) -> Summary {
    let (spec, status) = (&pod["spec"], &pod["status"]);
    let mut reason = text(status, "phase").to_owned();
    if !text(status, "reason").is_empty() {
        text(status, "reason").clone_into(&mut reason);
    }
    let gated = list(status, "conditions")
        .iter()
        .any(|c| c["type"] == "PodScheduled" && c["reason"] == "SchedulingGated");
    if gated {
        reason = "SchedulingGated".to_owned();
    }
    let restartable: Vec<&str> = list(spec, "initContainers")
        .iter()
        .filter(|c| c["restartPolicy"] == "Always")
        .map(|c| text(c, "name"))
        .collect();
    let mut total = list(spec, "containers").len() + restartable.len();
    let mut ready = 0;
    let mut restarts = 0;
    let mut sidecar_restarts = 0;
    let finished =
        |container: &Value| container["lastState"]["terminated"]["finishedAt"].as_str().map(str::to_owned);
    let mut latest = String::new();
    let mut initializing = false;
    for (index, container) in list(status, "initContainerStatuses").iter().enumerate() {
        let sidecar = restartable.contains(&text(container, "name"));
        restarts += container["restartCount"].as_i64().unwrap_or(0);
        latest = latest.max(finished(container).unwrap_or_default());
        if sidecar {
            sidecar_restarts += container["restartCount"].as_i64().unwrap_or(0);
        }
        let state = &container["state"];
        if state["terminated"]["exitCode"] == 0 {
            continue;
        }
        if sidecar && container["started"] == true {
            ready += usize::from(container["ready"] == true);
            continue;
        }
        if initializing {
            continue;
        }
        let word = if state["terminated"].is_object()
            || !matches!(text(&state["waiting"], "reason"), "" | "PodInitializing")
        {
            state_word(state)
        } else {
            format!("{index}/{}", list(spec, "initContainers").len())
        };
        reason = format!("Init:{word}");
        initializing = true;
    }
    if !initializing {
        restarts = sidecar_restarts;
        let mut running = false;
        for container in list(status, "containerStatuses").iter().rev() {
            restarts += container["restartCount"].as_i64().unwrap_or(0);
            latest = latest.max(finished(container).unwrap_or_default());
            let word = state_word(&container["state"]);
            if !word.is_empty() {
                reason = word;
            } else if container["ready"] == true && container["state"]["running"].is_object() {
                running = true;
                ready += 1;
            }
        }
        if reason == "Completed" && running {
            let pod_ready =
                list(status, "conditions").iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
            reason = if pod_ready { "Running" } else { "NotReady" }.to_owned();
        }
    }
    if pod["metadata"]["deletionTimestamp"].is_string() {
        if text(status, "reason") == "NodeLost" {
            reason = "Unknown".to_owned();
        } else if !matches!(text(status, "phase"), "Succeeded" | "Failed") {
            reason = "Terminating".to_owned();
        }
    }
    total = total.max(ready);
    let restarts = if restarts > 0 && !latest.is_empty() {
        format!("{restarts} ({} ago)", age_of(&latest, now))
    } else {
        restarts.to_string()
    };
    Summary { ready: format!("{ready}/{total}"), status: reason, restarts }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn shown(pod: &Value) -> (String, String, String) {
        let summary = summarize(pod, jiff::Timestamp::now());
        (summary.ready, summary.status, summary.restarts)
    }

    fn expect(pod: Value, ready: &str, status: &str, restarts: &str) {
        assert_eq!(shown(&pod), (ready.to_owned(), status.to_owned(), restarts.to_owned()), "{pod}");
    }

    #[test]
    fn statuses() {
        let spec = json!({"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}]});
        let running = json!({"ready": true, "restartCount": 0, "state": {"running": {}}});
        expect(json!({"spec": {"containers": [{}]}, "status": {"phase": "Pending"}}), "0/1", "Pending", "0");
        expect(
            json!({"spec": spec, "status": {"phase": "Pending", "initContainerStatuses": [
                {"name": "i", "state": {"running": {}}}, {"name": "s", "state": {"waiting": {"reason": "PodInitializing"}}}]}}),
            "0/3",
            "Init:0/2",
            "0",
        );
        expect(
            json!({"spec": spec, "status": {"phase": "Running", "initContainerStatuses": [
                {"name": "i", "state": {"terminated": {"exitCode": 0}}},
                {"name": "s", "started": true, "ready": true, "state": {"running": {}}}],
                "containerStatuses": [running, running]}}),
            "3/3",
            "Running",
            "0",
        );
        expect(
            json!({"spec": {"containers": [{}]}, "status": {"phase": "Running", "containerStatuses": [
                {"restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]}}),
            "0/1",
            "CrashLoopBackOff",
            "3",
        );
        expect(
            json!({"metadata": {"deletionTimestamp": "x"}, "spec": {"containers": [{}]},
                "status": {"phase": "Running", "containerStatuses": [running]}}),
            "1/1",
            "Terminating",
            "0",
        );
        expect(
            json!({"spec": {"containers": [{}]}, "status": {"phase": "Succeeded", "containerStatuses": [
                {"state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}]}}),
            "0/1",
            "Completed",
            "0",
        );
    }
}
