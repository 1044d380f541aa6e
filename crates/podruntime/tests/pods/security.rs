//! What a container may do: its `securityContext`, as the kernel sees it.
use serde_json::json;

use crate::world::{World, container_waiting};

/// What the kernel says of a process of the container.
const STATUS: &str = "grep -E '^(Uid|Groups|CapPrm|CapEff|CapBnd|CapInh|CapAmb|NoNewPrivs|Seccomp):' /proc/$p/status | tr '\\t' ' '";

#[allow(clippy::too_many_lines)] // One pod after the other, by what it asks for.
pub(crate) async fn security(world: &World) {
    // (name, the pod's and the container's context, what the kernel says, what the program may: marking sockets takes NET_ADMIN or
    // NET_RAW, which is in the default set)
    let default = "00000000a80425fb";
    let none = "0000000000000000";
    let denied = "PermissionDenied";
    let cases = [
        (
            "plain",
            json!({}),
            json!({}),
            ["Uid: 0 0 0 0", "Groups: 0", default, default, "NoNewPrivs: 0", "Seccomp: 0"],
            ["yes", denied, "yes"],
        ),
        (
            "admin",
            json!({}),
            json!({ "capabilities": { "add": ["NET_ADMIN"], "drop": ["ALL"] }, "allowPrivilegeEscalation": false }),
            [
                "Uid: 0 0 0 0",
                "Groups: 0",
                "0000000000001000",
                "0000000000001000",
                "NoNewPrivs: 1",
                "Seccomp: 0",
            ],
            ["yes", denied, denied],
        ),
        (
            "user",
            json!({ "runAsUser": 1337, "runAsGroup": 1338, "supplementalGroups": [7], "fsGroup": 8 }),
            json!({ "capabilities": { "add": ["NET_ADMIN"] } }),
            [
                "Uid: 1337 1337 1337 1337",
                "Groups: 7 8 1338",
                none,
                "00000000a80435fb",
                "NoNewPrivs: 0",
                "Seccomp: 0",
            ],
            [denied, denied, denied],
        ),
        (
            "hardened",
            json!({ "runAsUser": 1337, "runAsGroup": 1337, "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } }),
            json!({ "capabilities": { "drop": ["ALL"] }, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true }),
            ["Uid: 1337 1337 1337 1337", "Groups: 1337", none, none, "NoNewPrivs: 1", "Seccomp: 2"],
            [denied, denied, denied],
        ),
        (
            "filtered",
            json!({}),
            json!({ "seccompProfile": { "type": "RuntimeDefault" }, "capabilities": { "add": ["SYS_ADMIN"], "drop": ["SYS_CHROOT"] } }),
            [
                "Uid: 0 0 0 0",
                "Groups: 0",
                "00000000a82025fb",
                "00000000a82025fb",
                "NoNewPrivs: 1",
                "Seccomp: 2",
            ],
            ["yes", "yes", denied],
        ),
        (
            "privileged",
            json!({ "seccompProfile": { "type": "RuntimeDefault" } }),
            json!({ "privileged": true }),
            ["Uid: 0 0 0 0", "Groups: 0", "", "", "NoNewPrivs: 0", "Seccomp: 0"],
            ["yes", "yes", "yes"],
        ),
    ];
    let me = world.me();
    for (name, pods, own, [uid, groups, effective, bounding, escalation, seccomp], [mark, unshare, root]) in
        cases
    {
        let container = json!({ "name": "c", "image": "busybox", "command": ["sleep", "infinity"], "securityContext": own });
        let spec =
            json!({ "securityContext": pods, "containers": [container], "terminationGracePeriodSeconds": 0 });
        world.create_ready(json!({ "metadata": { "name": name }, "spec": spec })).await;
        // What was started, the first process that started it, and what comes in by exec.
        for process in ["$(pgrep -x sleep)", "1", "self"] {
            let out = world.exec(name, "c", &["sh", "-c", &format!("p={process}; {STATUS}")]).await.1;
            let said = |line: &str| out.lines().any(|said| said.trim_end() == line);
            for line in
                [uid, groups, escalation, seccomp, "CapInh: 0000000000000000", "CapAmb: 0000000000000000"]
            {
                assert!(said(line), "{name}, {process}: no {line:?} in\n{out}");
            }
            if !effective.is_empty() {
                let lines = [
                    format!("CapEff: {effective}"),
                    format!("CapPrm: {effective}"),
                    format!("CapBnd: {bounding}"),
                ];
                assert!(lines.iter().all(|line| said(line)), "{name}, {process}: not {lines:?} in\n{out}");
            }
        }
        let out = world
            .exec(name, "c", &["sh", "-c", &format!("{me} inside rights; echo x > /dev/stdout")])
            .await
            .1;
        assert_eq!(
            out,
            format!("mark {mark}\nunshare {unshare}\nown-root {root}\nthread yes\nx\n"),
            "{name}"
        );
    }
    let write = |path: &str| format!("(echo x > {path}) 2>/dev/null && echo yes || echo no");
    let script = ["/etc/file", "/tmp/file", "/run/file", "/dev/shm/file"].map(write).join("; ");
    let hardened = world.exec("hardened", "c", &["sh", "-c", &script]).await.1;
    assert_eq!(hardened, "no\nno\nno\nyes\n");
    let plain = world.exec("plain", "c", &["sh", "-c", &script]).await.1;
    assert_eq!(plain, "yes\nyes\nyes\nyes\n");

    // What cannot be had is told, and nothing is started.
    for (name, own, reason) in [
        (
            "root-forbidden",
            json!({ "runAsUser": 0, "runAsNonRoot": true }),
            "container's runAsUser breaks non-root policy",
        ),
        (
            "no-profile",
            json!({ "seccompProfile": { "type": "Localhost", "localhostProfile": "p.json" } }),
            "use RuntimeDefault",
        ),
    ] {
        let container = json!({ "name": "c", "image": "busybox", "securityContext": own });
        world.create(json!({ "metadata": { "name": name }, "spec": { "containers": [container] } })).await;
        let pod =
            world.wait_pod(name, |pod| container_waiting(pod) == Some("CreateContainerConfigError")).await;
        let status = &pod.status.as_ref().unwrap().container_statuses.as_ref().unwrap()[0];
        let message = status.state.as_ref().unwrap().waiting.as_ref().unwrap().message.clone().unwrap();
        assert!(message.contains(reason), "{message}");
    }
}
