//! Becoming the container's user.

use std::os::fd::AsFd;

use nix::unistd::{Gid, Uid, fchown, setgid, setgroups, setuid};
use rustix::thread::{
    CapabilitySets, capabilities, configure_capability_in_ambient_set, set_capabilities,
    set_keep_capabilities,
};

use super::Identity;
use crate::RuntimeError;

/// Gives the pipes of standard output and error to the user, so that `/dev/stdout` can be opened.
pub(super) fn own_standard_streams(identity: &Identity) -> Result<(), RuntimeError> {
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    for stream in [std::io::stdout().as_fd(), std::io::stderr().as_fd()] {
        fchown(stream, Some(uid), Some(gid))
            .map_err(RuntimeError::system("giving away the output streams"))?;
    }
    Ok(())
}

/// Changes user and groups. Capabilities are kept, also across the next program, because the proxy marks its sockets
/// (`SO_MARK`) whatever user it runs as.
pub(super) fn assume(identity: &Identity) -> Result<(), RuntimeError> {
    let groups: Vec<Gid> =
        std::iter::once(identity.gid).chain(identity.extra_group).map(Gid::from_raw).collect();
    setgroups(&groups).map_err(RuntimeError::system("setting the supplementary groups"))?;
    setgid(Gid::from_raw(identity.gid)).map_err(RuntimeError::system("setting the group"))?;
    if identity.uid == 0 {
        return Ok(());
    }
    let failed = |error: rustix::io::Errno| {
        RuntimeError::system("keeping capabilities across the change of user")(std::io::Error::from(error))
    };
    let before = capabilities(None).map_err(failed)?;
    set_keep_capabilities(true).map_err(failed)?;
    setuid(Uid::from_raw(identity.uid)).map_err(RuntimeError::system("setting the user"))?;
    let all = before.permitted;
    set_capabilities(None, CapabilitySets { effective: all, permitted: all, inheritable: all })
        .map_err(failed)?;
    for capability in all.iter() {
        configure_capability_in_ambient_set(capability, true).map_err(failed)?;
    }
    Ok(())
}
