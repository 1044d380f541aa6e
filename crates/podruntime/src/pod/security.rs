//! From `securityContext` to what a container's processes may do.
//! <https://kubernetes.io/docs/tasks/configure-pod-container/security-context/>

use k8s_openapi::api::core::v1::{
    AppArmorProfile, Capabilities, Container, Pod, PodSecurityContext, SecurityContext,
};
use kube::ResourceExt;
use rustix::thread::CapabilitySet;

use crate::{
    RuntimeError,
    container_run::{Security, SystemCalls},
};

/// The user of containers that must not run as root and name no user.
const NON_ROOT: u32 = 65532;
/// What containers have that ask for nothing else (containerd's and Docker's default).
const DEFAULT_CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::AUDIT_WRITE);

/// What a container's processes may do: the container's `securityContext` before the pod's. The embedded cluster's images name no
/// user: without one it is root, or nobody in particular where that is forbidden.
///
/// # Errors
/// [`RuntimeError::Pod`] when the fields contradict each other, or ask for what this runtime does not have.
pub(super) fn of(pod: &Pod, container: &Container) -> Result<Security, RuntimeError> {
    let (no_own, no_pods) = (SecurityContext::default(), PodSecurityContext::default());
    let own = container.security_context.as_ref().unwrap_or(&no_own);
    let pods = pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref()).unwrap_or(&no_pods);
    let privileged = own.privileged.unwrap_or(false);
    let uid = id(own.run_as_user.or(pods.run_as_user));
    if uid == Some(0) && own.run_as_non_root.or(pods.run_as_non_root) == Some(true) {
        return Err(RuntimeError::Pod(format!(
            "container's runAsUser breaks non-root policy (pod: \"{}_{}({})\", container: {})",
            pod.name_any(),
            pod.namespace().unwrap_or_default(),
            pod.uid().unwrap_or_default(),
            container.name
        )));
    }
    refuse_what_is_missing(own, pods)?;
    let capabilities = match privileged {
        true => CapabilitySet::from_bits_retain(u64::MAX),
        false => capabilities(own.capabilities.as_ref())?,
    };
    let no_new_privileges = own.allow_privilege_escalation == Some(false);
    if no_new_privileges && capabilities.contains(CapabilitySet::SYS_ADMIN) {
        let other = if privileged { "`privileged` to true" } else { "add the capability SYS_ADMIN" };
        let message = format!("cannot set `allowPrivilegeEscalation` to false and {other}");
        return Err(RuntimeError::Pod(message));
    }
    let non_root = own.run_as_non_root.or(pods.run_as_non_root).unwrap_or(false);
    let groups = pods.supplemental_groups.iter().flatten().copied().chain(pods.fs_group);
    Ok(Security {
        uid: uid.unwrap_or(if non_root { NON_ROOT } else { 0 }),
        gid: id(own.run_as_group.or(pods.run_as_group)).unwrap_or(0),
        groups: groups.filter_map(|group| id(Some(group))).collect(),
        capabilities: capabilities.bits(),
        no_new_privileges,
        system_calls: if privileged { SystemCalls::All } else { system_calls(own, pods)? },
    })
}

fn id(number: Option<i64>) -> Option<u32> {
    number.and_then(|number| u32::try_from(number).ok())
}

/// The default set, with what is dropped and added. `ALL` comes before single ones.
fn capabilities(wanted: Option<&Capabilities>) -> Result<CapabilitySet, RuntimeError> {
    let none = Vec::new();
    let (add, drop) = match wanted {
        None => (&none, &none),
        Some(wanted) => (wanted.add.as_ref().unwrap_or(&none), wanted.drop.as_ref().unwrap_or(&none)),
    };
    let all = |names: &[String]| names.iter().any(|name| name.eq_ignore_ascii_case("ALL"));
    let mut set = match (all(add), all(drop)) {
        (_, true) => CapabilitySet::empty(),
        (true, false) => CapabilitySet::from_bits_retain(u64::MAX),
        (false, false) => DEFAULT_CAPABILITIES,
    };
    for (names, there) in [(add, true), (drop, false)] {
        for name in names.iter().filter(|name| !name.eq_ignore_ascii_case("ALL")) {
            set.set(capability(name)?, there);
        }
    }
    Ok(set)
}

fn capability(name: &str) -> Result<CapabilitySet, RuntimeError> {
    CapabilitySet::from_name(&name.to_ascii_uppercase()).ok_or_else(|| {
        RuntimeError::Pod(format!(
            "securityContext.capabilities: unknown capability {name:?}; write the kernel's name without CAP_, for example NET_ADMIN"
        ))
    })
}

fn system_calls(own: &SecurityContext, pods: &PodSecurityContext) -> Result<SystemCalls, RuntimeError> {
    let Some(profile) = own.seccomp_profile.as_ref().or(pods.seccomp_profile.as_ref()) else {
        return Ok(SystemCalls::All);
    };
    match profile.type_.as_str() {
        "Unconfined" => Ok(SystemCalls::All),
        "RuntimeDefault" => Ok(SystemCalls::RuntimeDefault),
        "Localhost" => Err(RuntimeError::Pod(format!(
            "seccompProfile Localhost ({:?}): this node has no profiles of its own; use RuntimeDefault",
            profile.localhost_profile.as_deref().unwrap_or("")
        ))),
        other => Err(RuntimeError::Pod(format!(
            "seccompProfile.type {other:?} is unknown; use RuntimeDefault or Unconfined"
        ))),
    }
}

/// What would weaken a container unnoticed if it were passed over.
fn refuse_what_is_missing(own: &SecurityContext, pods: &PodSecurityContext) -> Result<(), RuntimeError> {
    let app_armor = own.app_armor_profile.as_ref().or(pods.app_armor_profile.as_ref());
    if let Some(AppArmorProfile { type_, .. }) = app_armor.filter(|profile| profile.type_ != "Unconfined") {
        return Err(RuntimeError::Pod(format!(
            "Cannot enforce AppArmor ({type_}): this node does not use AppArmor; leave appArmorProfile out"
        )));
    }
    if let Some(first) = pods.sysctls.iter().flatten().next() {
        return Err(RuntimeError::Pod(format!(
            "securityContext.sysctls ({}): this node sets none for pods; leave them out",
            first.name
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fields::tests::pod;
    use serde_json::{Value, json};

    fn security(pods: Value, own: Value) -> Result<Security, String> {
        let pod =
            pod(json!({ "securityContext": pods, "containers": [{ "name": "a", "securityContext": own }] }));
        of(&pod, &pod.spec.as_ref().unwrap().containers[0]).map_err(|error| error.to_string())
    }

    #[test]
    fn users() {
        let cases = [
            (json!({}), json!({}), (0, 0, vec![])),
            (
                json!({ "runAsUser": 5, "runAsGroup": 6, "fsGroup": 7, "supplementalGroups": [8, 9] }),
                json!({}),
                (5, 6, vec![8, 9, 7]),
            ),
            (
                json!({ "runAsUser": 5 }),
                json!({ "runAsUser": 1337, "runAsGroup": 1337 }),
                (1337, 1337, vec![]),
            ),
            (json!({ "runAsNonRoot": true }), json!({}), (NON_ROOT, 0, vec![])),
            (json!({ "runAsNonRoot": true }), json!({ "runAsNonRoot": false }), (0, 0, vec![])),
        ];
        for (pods, own, expected) in cases {
            let found = security(pods, own).unwrap();
            assert_eq!((found.uid, found.gid, found.groups), expected);
        }
    }

    #[test]
    fn capabilities_are_dropped_and_added() {
        let set = |add: Value, drop: Value| {
            let found = security(json!({}), json!({ "capabilities": { "add": add, "drop": drop } })).unwrap();
            CapabilitySet::from_bits_retain(found.capabilities)
        };
        let none = || json!([]);
        assert_eq!(set(none(), none()), DEFAULT_CAPABILITIES);
        assert_eq!(set(none(), json!(["ALL"])), CapabilitySet::empty());
        assert_eq!(set(json!(["NET_ADMIN"]), json!(["all"])), CapabilitySet::NET_ADMIN);
        assert_eq!(set(json!(["SYS_TIME"]), json!(["NET_RAW"])), {
            (DEFAULT_CAPABILITIES | CapabilitySet::SYS_TIME) - CapabilitySet::NET_RAW
        });
        assert!(!set(json!(["ALL"]), json!(["SYS_ADMIN"])).contains(CapabilitySet::SYS_ADMIN));
        assert_eq!(security(json!({}), json!({ "privileged": true })).unwrap().capabilities, u64::MAX);
    }

    #[test]
    fn profiles_and_escalation() {
        let profile = |kind: &str| json!({ "seccompProfile": { "type": kind } });
        let calls = |pods, own| security(pods, own).unwrap().system_calls;
        assert_eq!(calls(json!({}), json!({})), SystemCalls::All);
        assert_eq!(calls(profile("RuntimeDefault"), json!({})), SystemCalls::RuntimeDefault);
        assert_eq!(calls(profile("RuntimeDefault"), profile("Unconfined")), SystemCalls::All);
        assert_eq!(calls(profile("RuntimeDefault"), json!({ "privileged": true })), SystemCalls::All);
        let escalation = |value: Value| security(json!({}), value).unwrap().no_new_privileges;
        assert!(escalation(json!({ "allowPrivilegeEscalation": false })));
        assert!(!escalation(json!({ "allowPrivilegeEscalation": true })) && !escalation(json!({})));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let cases = [
            (json!({}), json!({ "runAsUser": 0, "runAsNonRoot": true }), "breaks non-root policy"),
            (json!({ "runAsUser": 0, "runAsNonRoot": true }), json!({}), "container: a"),
            (json!({}), json!({ "capabilities": { "add": ["CAP_NET_ADMIN"] } }), "without CAP_"),
            (json!({}), json!({ "capabilities": { "drop": ["NOTHING"] } }), "unknown capability \"NOTHING\""),
            (
                json!({}),
                json!({ "seccompProfile": { "type": "Localhost", "localhostProfile": "a.json" } }),
                "a.json",
            ),
            (
                json!({ "seccompProfile": { "type": "Nonsense" } }),
                json!({}),
                "use RuntimeDefault or Unconfined",
            ),
            (json!({ "appArmorProfile": { "type": "RuntimeDefault" } }), json!({}), "AppArmor"),
            (
                json!({ "sysctls": [{ "name": "net.core.somaxconn", "value": "1" }] }),
                json!({}),
                "net.core.somaxconn",
            ),
            (
                json!({}),
                json!({ "allowPrivilegeEscalation": false, "privileged": true }),
                "`privileged` to true",
            ),
            (
                json!({}),
                json!({ "allowPrivilegeEscalation": false, "capabilities": { "add": ["SYS_ADMIN"] } }),
                "SYS_ADMIN",
            ),
        ];
        for (pods, own, expected) in cases {
            let error = security(pods, own).expect_err(expected);
            assert!(error.contains(expected), "{error}");
        }
    }
}
