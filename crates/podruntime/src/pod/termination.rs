//! Termination messages: what a container leaves in a file of its own, or else the end of its log (kubelet's
//! `getTerminationMessage`).

use std::{
    fs::{File, Permissions},
    io::Read,
    os::unix::fs::PermissionsExt,
    path::Path,
};

use k8s_openapi::api::core::v1::Container;

use crate::{RuntimeError, container_log::ContainerLog, container_run::MountSpec};

const FILE: &str = "termination-log";
const DEFAULT_PATH: &str = "/dev/termination-log";
/// Most bytes of the file that are shown.
const MOST_FROM_FILE: u64 = 4096;
/// Most of the log that is shown.
const MOST_LINES_OF_LOG: usize = 80;
const MOST_FROM_LOG: usize = 2048;

/// Makes the file in the container's directory, writable for whatever user the container has.
pub(super) fn prepare(directory: &Path) -> Result<(), RuntimeError> {
    let path = directory.join(FILE);
    let file = File::create(&path).map_err(RuntimeError::file(&path))?;
    file.set_permissions(Permissions::from_mode(0o666)).map_err(RuntimeError::file(&path))
}

/// Where the container sees it.
pub(super) fn mount(directory: &Path, container: &Container) -> MountSpec {
    let target = container.termination_message_path.as_deref().filter(|path| !path.is_empty());
    let target = Path::new("/").join(target.unwrap_or(DEFAULT_PATH));
    MountSpec { source: directory.join(FILE), target, read_only: false }
}

/// The message of an ended container.
pub(super) fn message(
    directory: &Path,
    container: &Container,
    exit_code: i32,
    log: Option<&ContainerLog>,
) -> Option<String> {
    let mut bytes = Vec::new();
    if let Ok(file) = File::open(directory.join(FILE)) {
        // What can be read is shown.
        let _ = file.take(MOST_FROM_FILE).read_to_end(&mut bytes);
    }
    let fall_back = container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
    if bytes.is_empty() && fall_back && exit_code != 0 {
        bytes = log?.last_lines(MOST_LINES_OF_LOG);
        bytes.drain(..bytes.len().saturating_sub(MOST_FROM_LOG));
    }
    (!bytes.is_empty()).then(|| String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn from_the_file_or_the_log() {
        let directory = tempfile::tempdir().unwrap();
        let log = ContainerLog::create(&directory.path().join("log"), 0).unwrap();
        log.copy(format!("{}\nlast words\n", "x".repeat(3000)).as_bytes()).await;
        let mut container = Container::default();
        let mut message = |code, policy: &str| {
            container.termination_message_policy = Some(policy.to_owned());
            super::message(directory.path(), &container, code, Some(&log))
        };
        prepare(directory.path()).unwrap();
        assert_eq!(message(1, "File"), None);
        assert_eq!(message(0, "FallbackToLogsOnError"), None);
        let from_log = message(1, "FallbackToLogsOnError").unwrap();
        assert!(from_log.len() == MOST_FROM_LOG && from_log.ends_with("x\nlast words\n"), "{from_log}");
        std::fs::write(directory.path().join(FILE), "said so".to_owned() + &" ".repeat(5000)).unwrap();
        let from_file = message(0, "File").unwrap();
        assert!(from_file.starts_with("said so") && from_file.len() == 4096, "{from_file}");
    }
}
