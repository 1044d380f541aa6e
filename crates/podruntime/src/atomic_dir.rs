//! Directories of files that change all at once, in Kubernetes' layout (`kubelet`'s AtomicWriter).
//!
//! Files live in a directory with a time stamp; `..data` is a link to it, and each top-level name a link through `..data`.
//! A change is a new directory and one rename of the link.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::ErrorKind,
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::{Component, Path, PathBuf},
};

use crate::RuntimeError;

/// A file's content and permissions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileContent {
    pub(crate) bytes: Vec<u8>,
    pub(crate) mode: u32,
}

/// Files by relative path.
pub(crate) type Payload = BTreeMap<PathBuf, FileContent>;

const DATA: &str = "..data";

/// Makes `directory` show exactly `payload`, its files of `group` if there is one; does nothing when it does already.
pub(crate) fn write(directory: &Path, payload: &Payload, group: Option<u32>) -> Result<(), RuntimeError> {
    for path in payload.keys() {
        check(path)?;
    }
    fs::create_dir_all(directory).map_err(RuntimeError::file(directory))?;
    let data = directory.join(DATA);
    let old = fs::read_link(&data).ok();
    if old.is_some() && read(&data, payload).as_ref() == Some(payload) {
        return Ok(());
    }
    let version = version_name(old.as_deref());
    let fresh = directory.join(&version);
    for (path, content) in payload {
        let file = fresh.join(path);
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent).map_err(RuntimeError::file(parent))?;
        }
        fs::write(&file, &content.bytes).map_err(RuntimeError::file(&file))?;
        if group.is_some() {
            chown(&file, None, group).map_err(RuntimeError::file(&file))?;
        }
        fs::set_permissions(&file, fs::Permissions::from_mode(content.mode))
            .map_err(RuntimeError::file(&file))?;
    }
    // An empty payload has a directory too.
    fs::create_dir_all(&fresh).map_err(RuntimeError::file(&fresh))?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).map_err(RuntimeError::file(&fresh))?;

    let temporary = directory.join("..data_tmp");
    replace_link(&temporary, Path::new(&version))?;
    fs::rename(&temporary, &data).map_err(RuntimeError::file(&data))?;
    link_names(directory, payload)?;
    if let Some(old) = old {
        let old = directory.join(old);
        fs::remove_dir_all(&old).map_err(RuntimeError::file(&old))?;
    }
    Ok(())
}

/// What is there, with the payload's files' permissions; `None` when a file is missing or there are others.
fn read(data: &Path, payload: &Payload) -> Option<Payload> {
    let mut found = Payload::new();
    for path in payload.keys() {
        let file = data.join(path);
        let mode = fs::metadata(&file).ok()?.permissions().mode() & 0o7777;
        found.insert(path.clone(), FileContent { bytes: fs::read(&file).ok()?, mode });
    }
    let names: BTreeSet<_> = fs::read_dir(data).ok()?.flatten().map(|entry| entry.file_name()).collect();
    (names == top_level(payload)).then_some(found)
}

fn top_level(payload: &Payload) -> BTreeSet<std::ffi::OsString> {
    payload.keys().filter_map(|path| Some(path.components().next()?.as_os_str().to_owned())).collect()
}

/// One link per top-level name; names that are gone lose theirs.
fn link_names(directory: &Path, payload: &Payload) -> Result<(), RuntimeError> {
    let names = top_level(payload);
    for name in &names {
        let link = directory.join(name);
        let target = Path::new(DATA).join(name);
        if fs::read_link(&link).ok().as_deref() != Some(&target) {
            replace_link(&link, &target)?;
        }
    }
    for entry in fs::read_dir(directory).map_err(RuntimeError::file(directory))?.flatten() {
        let name = entry.file_name();
        if !names.contains(&name) && !name.to_string_lossy().starts_with("..") {
            fs::remove_file(entry.path()).map_err(RuntimeError::file(entry.path()))?;
        }
    }
    Ok(())
}

fn replace_link(link: &Path, target: &Path) -> Result<(), RuntimeError> {
    match fs::remove_file(link) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(RuntimeError::file(link)(error)),
        _ => {}
    }
    symlink(target, link).map_err(RuntimeError::file(link))
}

/// A name that differs from the last one even within one clock tick.
fn version_name(old: Option<&Path>) -> String {
    let now = jiff::Timestamp::now();
    let name = format!("..{}", now.as_nanosecond());
    if old == Some(Path::new(&name)) { format!("{name}x") } else { name }
}

fn check(path: &Path) -> Result<(), RuntimeError> {
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    let hidden = path.to_string_lossy().starts_with("..");
    if plain && !hidden && path.components().next().is_some() {
        return Ok(());
    }
    Err(RuntimeError::Pod(format!("the volume path {:?} must be relative and without '..'", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let content = |text: &str| FileContent { bytes: text.into(), mode: 0o644 };
        files.iter().map(|(path, text)| (PathBuf::from(path), content(text))).collect()
    }

    #[test]
    fn files_change_together() {
        let directory = std::env::temp_dir().join(format!("lateen-atomic-{}", std::process::id()));
        write(&directory, &payload(&[("a", "1"), ("dir/b", "2")]), None).unwrap();
        let read = |name: &str| fs::read_to_string(directory.join(name)).ok();
        assert_eq!((read("a"), read("dir/b")), (Some("1".into()), Some("2".into())));
        let first = fs::read_link(directory.join(DATA)).unwrap();

        write(&directory, &payload(&[("a", "1"), ("dir/b", "2")]), None).unwrap();
        assert_eq!(fs::read_link(directory.join(DATA)).unwrap(), first, "nothing changed, nothing moved");

        // A file opened before stays as it was; the name shows the new content.
        write(&directory, &payload(&[("a", "3"), ("c", "4")]), None).unwrap();
        assert_eq!((read("a"), read("dir/b"), read("c")), (Some("3".into()), None, Some("4".into())));
        assert!(!directory.join(&first).exists(), "the old version is gone");
        write(&directory, &Payload::new(), None).unwrap();
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 2);
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn paths_stay_inside() {
        for bad in ["../a", "/etc/passwd", "a/../../b", "", "..data"] {
            assert!(write(Path::new("/nonexistent"), &payload(&[(bad, "")]), None).is_err(), "{bad}");
        }
    }
}
