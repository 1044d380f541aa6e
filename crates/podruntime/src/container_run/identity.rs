//! Becoming the container's user, with no more rights than the container has.

use std::os::fd::AsFd;

use nix::{
    sys::prctl,
    unistd::{Gid, Uid, fchown, setgid, setgroups, setuid},
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

use super::{Security, SystemCalls, seccomp};
use crate::RuntimeError;

/// Gives the pipes of standard output and error to the user, so that `/dev/stdout` can be opened.
pub(super) fn own_standard_streams(security: &Security) -> Result<(), RuntimeError> {
    let (uid, gid) = (Uid::from_raw(security.uid), Gid::from_raw(security.gid));
    for stream in [std::io::stdout().as_fd(), std::io::stderr().as_fd()] {
        fchown(stream, Some(uid), Some(gid))
            .map_err(RuntimeError::system("giving away the output streams"))?;
    }
    Ok(())
}

/// Changes user and groups, and gives up what the container may not have: capabilities, ways to gain others, system calls.
///
/// Capabilities are, as with other runtimes, for root's programs: of another user's programs they only limit what these could gain.
pub(super) fn assume(security: &Security) -> Result<(), RuntimeError> {
    let groups: Vec<Gid> =
        std::iter::once(&security.gid).chain(&security.groups).copied().map(Gid::from_raw).collect();
    setgroups(&groups).map_err(RuntimeError::system("setting the supplementary groups"))?;
    setgid(Gid::from_raw(security.gid)).map_err(RuntimeError::system("setting the group"))?;
    let allowed = CapabilitySet::from_bits_retain(security.capabilities);
    limit_capabilities(allowed)?;
    let kept = if security.uid == 0 {
        allowed & capabilities(None).map_err(failed("reading capabilities"))?.permitted
    } else {
        setuid(Uid::from_raw(security.uid)).map_err(RuntimeError::system("setting the user"))?;
        CapabilitySet::empty()
    };
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(failed("giving up capabilities"))?;
    // A change of user hides a process's files in /proc; it has nothing to hide from its own user.
    prctl::set_dumpable(true).map_err(RuntimeError::system("showing the process to its user"))?;
    if security.no_new_privileges {
        set_no_new_privs(true).map_err(failed("setting no_new_privs"))?;
    }
    match security.system_calls {
        SystemCalls::All => Ok(()),
        SystemCalls::RuntimeDefault => seccomp::confine(allowed),
    }
}

/// Takes all other capabilities out of the bounding set: no program started from here can have them.
fn limit_capabilities(allowed: CapabilitySet) -> Result<(), RuntimeError> {
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        // An error: the kernel knows no more of them.
        let Ok(there) = capability_is_in_bounding_set(capability) else { break };
        if there && !allowed.contains(capability) {
            remove_capability_from_bounding_set(capability).map_err(failed("limiting capabilities"))?;
        }
    }
    Ok(())
}

fn failed(what: &'static str) -> impl Fn(rustix::io::Errno) -> RuntimeError {
    move |error| RuntimeError::system(what)(std::io::Error::from(error))
}
