//! Resources from a file (`path_config_source`): a `DiscoveryResponse` in YAML or JSON, read again when it is replaced.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use lateen_engine::{ConfigUpdate, EngineError, EngineHandle, Resource, ResourceKind};
use lateen_xds::json::JsonCodec;
use lateen_xds::pb::envoy::service::discovery::v3::DiscoveryResponse;
use prost_types::Any;
use tracing::{info, warn};

use crate::error::AgentError;

/// How often a file is looked at. Envoy is told by inotify; people who replace a file by hand don't notice a second.
const LOOK: Duration = Duration::from_secs(1);

/// What tells one state of a file from another: device, inode, size, and time of change in nanoseconds.
type Stamp = (u64, u64, u64, i64, i64);

fn stamp(path: &str) -> io::Result<Stamp> {
    let metadata = std::fs::metadata(path)?;
    Ok((metadata.dev(), metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec()))
}

/// One file and what it has brought.
pub(crate) struct FileSource {
    path: String,
    stamp: Option<Stamp>,
    applied: BTreeSet<(ResourceKind, String)>,
}

impl FileSource {
    pub(crate) fn new(path: &str) -> Self {
        Self { path: path.to_owned(), stamp: None, applied: BTreeSet::new() }
    }

    /// Reads the file and applies it whole: what it no longer has is removed.
    ///
    /// # Errors
    /// When it can't be read, is not what it should be, or the engine refuses a resource (the others are applied).
    pub(crate) async fn apply(&mut self, engine: &EngineHandle) -> Result<(), AgentError> {
        let bad = |reason: String| AgentError::Bootstrap { origin: self.path.clone(), reason };
        let now = stamp(&self.path).map_err(|error| AgentError::file("read", &self.path, error))?;
        // Away from the control thread, as reading and mapping take a while.
        let path = self.path.clone();
        let read = tokio::task::spawn_blocking(move || read(&path)).await;
        let set = read.map_err(|error| bad(error.to_string()))?.map_err(bad)?;
        let names: BTreeSet<_> = set.iter().filter_map(key).collect();
        let removed = self.applied.difference(&names).cloned().collect();
        let report = engine.apply(ConfigUpdate { set, removed }).await?;
        (self.stamp, self.applied) = (Some(now), names);
        match report.rejected.first() {
            Some(rejection) => {
                Err(AgentError::Bootstrap { origin: self.path.clone(), reason: rejection.to_string() })
            }
            None => Ok(()),
        }
    }

    /// Applies the file again whenever it has changed, until the engine stops.
    pub(crate) async fn follow(mut self, engine: EngineHandle) {
        let mut look = tokio::time::interval(LOOK);
        loop {
            look.tick().await;
            match stamp(&self.path) {
                Ok(now) if self.stamp == Some(now) => {}
                Ok(now) => {
                    // Even if it is refused: the same file is not tried again.
                    self.stamp = Some(now);
                    match self.apply(&engine).await {
                        Ok(()) => info!(path = %self.path, "configuration file applied"),
                        Err(AgentError::Engine(EngineError::Stopped)) => return,
                        Err(error) => warn!(%error, "configuration file refused"),
                    }
                }
                // Between removal and replacement there is no file; what it brought stays.
                Err(_) => {}
            }
        }
    }
}

/// Follows the files that hold secrets, whichever configuration names at the time.
pub(crate) async fn follow_secrets(engine: EngineHandle) {
    let mut wanted = engine.subscriptions();
    let mut followed: BTreeMap<String, FileSource> = BTreeMap::new();
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            _ = look.tick() => {}
            changed = wanted.changed() => if changed.is_err() {
                return;
            },
        }
        let files = wanted.borrow_and_update().secret_files.clone();
        followed.retain(|path, _| files.contains(path));
        for path in files {
            let file = followed.entry(path.clone()).or_insert_with(|| FileSource::new(&path));
            let Ok(now) = stamp(&path) else { continue };
            if file.stamp == Some(now) {
                continue;
            }
            match file.apply(&engine).await {
                Ok(()) => info!(path, "secrets applied"),
                Err(AgentError::Engine(EngineError::Stopped)) => return,
                // The same file is not tried again.
                Err(error) => {
                    file.stamp = Some(now);
                    warn!(%error, "secrets refused");
                }
            }
        }
    }
}

fn key(resource: &Resource) -> Option<(ResourceKind, String)> {
    Some((ResourceKind::from_type_url(&resource.body.type_url)?, resource.name.clone()))
}

fn read(path: &str) -> Result<Vec<Resource>, String> {
    let codec = JsonCodec::new().map_err(|error| error.to_string())?;
    let response: DiscoveryResponse = codec.from_file(path.as_ref()).map_err(|error| error.to_string())?;
    let version = response.version_info;
    let resources = response.resources.into_iter().map(|any| Resource {
        name: lateen_xds::any::resource_name(&any).unwrap_or_default(),
        version: version.clone(),
        body: Any { type_url: any.type_url, value: any.value },
        is_static: false,
    });
    Ok(resources.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_named_resources_of_a_version() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = "version_info: '7'\nresources:\n- {'@type': type.googleapis.com/envoy.config.cluster.v3.Cluster, name: a}\n";
        std::fs::write(file.path(), text).unwrap();
        let path = file.path().to_str().unwrap();
        let resources = read(path).unwrap();
        assert_eq!((resources[0].name.as_str(), resources[0].version.as_str()), ("a", "7"));
        assert_eq!(key(&resources[0]), Some((ResourceKind::Cluster, "a".to_owned())));
        let before = stamp(path).unwrap();
        std::fs::write(file.path(), "resources: [{}]").unwrap();
        assert_ne!(stamp(path).unwrap(), before);
        assert!(read(path).is_err());
    }
}
