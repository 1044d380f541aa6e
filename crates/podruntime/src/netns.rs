//! Named network namespaces, as `ip netns` keeps them.
//!
//! A thread that has entered another namespace is never reused: each piece of work inside one gets a thread of its own.

use std::{
    fs::File,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};
use tokio::sync::oneshot;

use crate::RuntimeError;

/// Where namespaces are held by name.
pub(crate) const DIRECTORY: &str = "/run/netns";

/// The file that holds the namespace `name`.
pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// Makes a namespace whose kernel settings suit a pod; one of the same name is replaced.
pub(crate) async fn create(name: &str) -> Result<(), RuntimeError> {
    delete(name)?;
    std::fs::create_dir_all(DIRECTORY).map_err(RuntimeError::file(DIRECTORY))?;
    let file = path(name);
    File::create(&file).map_err(RuntimeError::file(&file))?;
    let held = file.clone();
    on_own_thread("netns-new", move || {
        unshare(CloneFlags::CLONE_NEWNET).map_err(RuntimeError::system("making a network namespace"))?;
        // As containerd sets them: any user may listen on low ports and ping.
        for (key, value) in
            [("ipv4/ip_unprivileged_port_start", "0"), ("ipv4/ping_group_range", "0 2147483647")]
        {
            let key = Path::new("/proc/sys/net").join(key);
            std::fs::write(&key, value).map_err(RuntimeError::file(&key))?;
        }
        // A kernel without IPv6 has no such setting.
        let _ = std::fs::write("/proc/sys/net/ipv6/conf/all/accept_ra", "0");
        mount(Some("/proc/thread-self/ns/net"), &held, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(RuntimeError::system(format!("holding the network namespace {}", held.display())))
    })
    .await
    .inspect_err(|_| {
        let _ = std::fs::remove_file(&file);
    })
}

/// Lets a namespace go; it ends with its last process. A missing one is fine.
pub(crate) fn delete(name: &str) -> Result<(), RuntimeError> {
    let file = path(name);
    unmount_all(&file).map_err(RuntimeError::system(format!("releasing the network namespace {name}")))?;
    match std::fs::remove_file(&file) {
        Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
            remove_covered(&file).map_err(RuntimeError::file(&file))
        }
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(RuntimeError::file(&file)(error)),
        _ => Ok(()),
    }
}

/// Unmounts whatever can be seen to be mounted at a path.
fn unmount_all(path: &Path) -> Result<(), Errno> {
    loop {
        match umount2(path, MntFlags::MNT_DETACH) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// Removes a file under whose directory something is mounted that cannot be seen any more: the first `ip netns add` of a machine mounts
/// `/run/netns` over itself. In mounts of our own we look below; the kernel unmounts everywhere what was mounted on a file that is gone.
/// What others keep in the directory stays as it is.
fn remove_covered(file: &Path) -> std::io::Result<()> {
    let file = file.to_owned();
    let below = move || {
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
        loop {
            umount2(DIRECTORY, MntFlags::MNT_DETACH)?;
            unmount_all(&file)?;
            match std::fs::remove_file(&file) {
                Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {}
                done => return done,
            }
        }
    };
    let thread = std::thread::Builder::new().name("netns-below".to_owned()).spawn(below)?;
    thread
        .join()
        .unwrap_or_else(|_| Err(std::io::Error::other("the thread that removes it ended without a result")))
}

/// Runs `work` inside the namespace held by `file`.
pub(crate) async fn inside<T: Send + 'static>(
    file: PathBuf,
    work: impl FnOnce() -> Result<T, RuntimeError> + Send + 'static,
) -> Result<T, RuntimeError> {
    on_own_thread("netns-in", move || {
        let namespace = File::open(&file).map_err(RuntimeError::file(&file))?;
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)
            .map_err(RuntimeError::system(format!("entering the network namespace {}", file.display())))?;
        work()
    })
    .await
}

async fn on_own_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> Result<T, RuntimeError> + Send + 'static,
) -> Result<T, RuntimeError> {
    let (sender, receiver) = oneshot::channel();
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            // The caller may have gone.
            let _ = sender.send(work());
        })
        .map_err(RuntimeError::system("starting a thread"))?;
    receiver.await.map_err(|_| RuntimeError::Host(format!("the thread {name} ended without a result")))?
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In mounts of its own.
    #[test]
    fn namespaces_go_though_their_directory_is_mounted_over_itself() {
        let at = |source: &str, target: &Path, flags: MsFlags| {
            mount(Some(source), target, None::<&str>, flags, None::<&str>).unwrap();
        };
        let (ours, others) = (path("lateen-test-ours"), path("lateen-test-others"));
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        mount(Some("none"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        std::fs::create_dir_all(DIRECTORY).unwrap();
        // What this machine has, below.
        let mounted = || -> Vec<String> {
            let held = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
            let targets = held.lines().filter_map(|line| line.split(' ').nth(4));
            targets.filter(|target| target.starts_with(DIRECTORY)).map(str::to_owned).collect()
        };
        let before = mounted();
        let hold = |file: &Path| {
            File::create(file).unwrap();
            at("/proc/thread-self/ns/net", file, MsFlags::MS_BIND);
        };
        hold(&ours);
        // As `ip netns add` does.
        at(DIRECTORY, Path::new(DIRECTORY), MsFlags::MS_BIND | MsFlags::MS_REC);
        mount(None::<&str>, DIRECTORY, None::<&str>, MsFlags::MS_REC | MsFlags::MS_SHARED, None::<&str>)
            .unwrap();
        hold(&others);
        delete("lateen-test-ours").unwrap();
        delete("lateen-test-ours").unwrap();
        assert!(!ours.exists());
        assert_eq!(mounted(), [&before[..], &[DIRECTORY.to_owned(), others.display().to_string()]].concat());
    }
}
