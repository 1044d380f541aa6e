//! A container's file system: an overlay over the host's root with a private upper layer.
//!
//! This keeps containers from changing the host and each other by accident; it is no security boundary.

use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    unistd::{chdir, pivot_root},
};

use super::ContainerSpec;
use crate::{RuntimeError, mountinfo};

/// Where the host's root is, inside, until the mounts from it are done.
const OLD_ROOT: &str = "/run/.host";
/// File systems on disks, by the kernel's names. Only these are taken over when they are mounted below the root.
const DISK_FILE_SYSTEMS: &[&str] = &[
    "bcachefs", "btrfs", "erofs", "ext2", "ext3", "ext4", "f2fs", "nfs", "nfs4", "squashfs", "virtiofs",
    "xfs", "zfs", "9p",
];
/// Directories that get a content of their own.
const OWN_DIRECTORIES: &[&str] = &["/proc", "/sys", "/dev", "/run", "/tmp"];
const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom", "tty"];

/// Builds the root and makes it this process's. Must run as the first process of the container's PID namespace.
pub(super) fn enter(spec: &ContainerSpec) -> Result<(), RuntimeError> {
    // Nothing done here may reach the host's mount namespace.
    bind_flags(None, Path::new("/"), MsFlags::MS_REC | MsFlags::MS_PRIVATE)?;
    let root = spec.directory.join("root");
    make_dir(&root)?;
    let host_mounts = mountinfo::read()?;
    mount_overlay(&spec.directory, &root)?;
    take_over_disks(&root, &host_mounts)?;
    own_directories(&spec.directory, &root)?;
    hide(&root, &spec.hidden)?;

    let old_root = below(&root, Path::new(OLD_ROOT));
    make_dir(&old_root)?;
    pivot_root(&root, &old_root).map_err(RuntimeError::system("changing to the container's root"))?;
    chdir("/").map_err(RuntimeError::system("changing to the container's root"))?;
    bind_from_host(&spec.binaries, Path::new(crate::PROGRAMS), true)?;
    for mount in &spec.mounts {
        bind_from_host(&mount.source, &mount.target, mount.read_only)?;
    }
    make_dir(&spec.working_dir)?;
    umount2(OLD_ROOT, MntFlags::MNT_DETACH).map_err(RuntimeError::system("letting go of the host's root"))?;
    fs::remove_dir(OLD_ROOT).map_err(RuntimeError::file(OLD_ROOT))?;
    if spec.read_only_root {
        // These two are the root's own for a container, though they are mounted; what is mounted below them stays as it is.
        let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
        for own in ["/run", "/tmp"] {
            bind_flags(None, Path::new(own), read_only | MsFlags::MS_NOSUID | MsFlags::MS_NODEV)?;
        }
        bind_flags(None, Path::new("/"), read_only)?;
    }
    Ok(())
}

/// The overlay's upper layer is on the state directory's disk, or in memory where that can't hold one
/// (it is an overlay itself when Lateen runs inside a container).
fn mount_overlay(directory: &Path, root: &Path) -> Result<(), RuntimeError> {
    let Err(on_disk) = try_overlay(directory, root) else { return Ok(()) };
    let memory = directory.join("memory");
    make_dir(&memory)?;
    filesystem("tmpfs", &memory, MsFlags::empty(), "mode=0755")?;
    try_overlay(&memory, root).map_err(|in_memory| {
        RuntimeError::Host(format!(
            "this kernel can't lay an overlay file system over / (on disk: {on_disk}; in memory: {in_memory}); load the module `overlay`"
        ))
    })
}

fn try_overlay(directory: &Path, root: &Path) -> Result<(), RuntimeError> {
    let (upper, work) = (directory.join("upper"), directory.join("work"));
    make_dir(&upper)?;
    make_dir(&work)?;
    let escape = |path: &Path| {
        let text = path.to_string_lossy();
        text.replace('\\', "\\\\").replace(',', "\\,").replace(':', "\\:")
    };
    let options = format!("lowerdir=/,upperdir={},workdir={}", escape(&upper), escape(&work));
    filesystem("overlay", root, MsFlags::empty(), &options)
}

/// An overlay shows only the root file system: other disks (`/usr`, `/home`, …) are added read-only.
fn take_over_disks(root: &Path, mounts: &[mountinfo::Mount]) -> Result<(), RuntimeError> {
    for mount in mounts {
        let own = OWN_DIRECTORIES.iter().any(|directory| mount.target.starts_with(directory));
        if own || mount.target == Path::new("/") || !DISK_FILE_SYSTEMS.contains(&mount.kind.as_str()) {
            continue;
        }
        let target = below(root, &mount.target);
        if target.is_dir() && mount.target.is_dir() {
            bind(&mount.target, &target, true)?;
        }
    }
    Ok(())
}

fn own_directories(directory: &Path, root: &Path) -> Result<(), RuntimeError> {
    for own in OWN_DIRECTORIES {
        make_dir(&below(root, Path::new(own)))?;
    }
    let strict = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    filesystem("proc", &root.join("proc"), strict, "")?;
    filesystem("sysfs", &root.join("sys"), strict | MsFlags::MS_RDONLY, "")?;
    filesystem("tmpfs", &root.join("run"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=0755,size=64m")?;
    let tmp = directory.join("tmp");
    make_dir(&tmp)?;
    set_mode(&tmp, 0o1777)?;
    bind(&tmp, &root.join("tmp"), false)?;
    devices(&root.join("dev"))
}

fn devices(dev: &Path) -> Result<(), RuntimeError> {
    filesystem("tmpfs", dev, MsFlags::MS_NOSUID, "mode=0755,size=64k")?;
    for device in DEVICES {
        let target = dev.join(device);
        File::create(&target).map_err(RuntimeError::file(&target))?;
        bind(&Path::new("/dev").join(device), &target, false)?;
    }
    for (link, target) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        symlink(target, dev.join(link)).map_err(RuntimeError::file(dev.join(link)))?;
    }
    let strict = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    make_dir(&dev.join("pts"))?;
    filesystem("devpts", &dev.join("pts"), strict, "newinstance,ptmxmode=0666,mode=0620")?;
    make_dir(&dev.join("shm"))?;
    filesystem("tmpfs", &dev.join("shm"), strict | MsFlags::MS_NODEV, "mode=1777,size=64m")
}

/// Covers a directory of the host with an empty one.
fn hide(root: &Path, directory: &Path) -> Result<(), RuntimeError> {
    let target = below(root, directory);
    if target.is_dir() {
        filesystem("tmpfs", &target, MsFlags::MS_RDONLY, "size=4k,mode=0700")?;
    }
    Ok(())
}

/// Shows a file or directory of the host inside; the place is made if it is missing.
fn bind_from_host(source: &Path, target: &Path, read_only: bool) -> Result<(), RuntimeError> {
    let source = below(Path::new(OLD_ROOT), source);
    let kind = fs::metadata(&source).map_err(RuntimeError::file(&source))?;
    if kind.is_dir() {
        make_dir(target)?;
    } else if !target.exists() {
        make_file(target)?;
    }
    bind(&source, target, read_only)
}

/// An empty file; a dangling link (such as `/etc/resolv.conf` into `/run`) gets what it points to.
fn make_file(path: &Path) -> Result<(), RuntimeError> {
    let mut place = path.to_path_buf();
    // As many links as the kernel itself would follow.
    for _ in 0..40 {
        match fs::read_link(&place) {
            Ok(target) => place = place.parent().unwrap_or(Path::new("/")).join(target),
            Err(_) => break,
        }
    }
    if let Some(parent) = place.parent() {
        make_dir(parent)?;
    }
    File::create(&place).map(drop).map_err(RuntimeError::file(&place))
}

fn bind(source: &Path, target: &Path, read_only: bool) -> Result<(), RuntimeError> {
    bind_flags(Some(source), target, MsFlags::MS_BIND | MsFlags::MS_REC)?;
    if read_only {
        bind_flags(None, target, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY)?;
    }
    Ok(())
}

fn bind_flags(source: Option<&Path>, target: &Path, flags: MsFlags) -> Result<(), RuntimeError> {
    mount(source, target, None::<&str>, flags, None::<&str>)
        .map_err(RuntimeError::system(format!("mounting {}", target.display())))
}

fn filesystem(kind: &str, target: &Path, flags: MsFlags, options: &str) -> Result<(), RuntimeError> {
    mount(Some(kind), target, Some(kind), flags, Some(options))
        .map_err(RuntimeError::system(format!("mounting {kind} on {}", target.display())))
}

fn make_dir(path: &Path) -> Result<(), RuntimeError> {
    fs::create_dir_all(path).map_err(RuntimeError::file(path))
}

fn set_mode(path: &Path, mode: u32) -> Result<(), RuntimeError> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(RuntimeError::file(path))
}

/// An absolute path seen from another root.
fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_below_a_root() {
        assert_eq!(below(Path::new("/new"), Path::new("/etc/hosts")), Path::new("/new/etc/hosts"));
        assert_eq!(below(Path::new("/new"), Path::new("/")), Path::new("/new/"));
    }

    #[test]
    fn files_behind_dangling_links_are_made() {
        let directory = std::env::temp_dir().join(format!("lateen-rootfs-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let link = directory.join("resolv.conf");
        symlink("run/stub/resolv.conf", &link).unwrap();
        make_file(&link).unwrap();
        assert!(link.is_file() && directory.join("run/stub/resolv.conf").is_file());
        fs::remove_dir_all(&directory).unwrap();
    }
}
