//! The last good configuration on disk, for a proxy that starts while the control plane is away.
//!
//! A journal: each accepted resource and each removal is appended, so that nothing is kept in memory twice. Only listeners,
//! routes, clusters and endpoints are written; secrets have no place here. Until a new process has a whole configuration
//! ([`Cache::commit`]) the previous journal stays as it is.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use lateen_engine::{Resource, ResourceKind};
use prost::Message;
use prost_types::Any;

const COMMITTED: &str = "last-good";

/// Below this the journal is not worth compacting.
const COMPACT_FROM: u64 = 1024 * 1024;

/// One line of the journal.
#[derive(Clone, PartialEq, Message)]
struct Entry {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    version: String,
    /// Absent in a removal.
    #[prost(bytes = "vec", optional, tag = "4")]
    body: Option<Vec<u8>>,
}

type Key = (ResourceKind, String);

/// The journal of one process.
#[derive(Debug)]
pub(crate) struct Cache {
    committed: PathBuf,
    current: PathBuf,
    file: Option<File>,
    written: u64,
    /// Size of each live resource's entry.
    live: BTreeMap<Key, u64>,
}

impl Cache {
    /// A cache in `folder`, which is made if need be.
    pub(crate) fn open(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        let (committed, current) = (folder.join(COMMITTED), folder.join("last-good.new"));
        let file = Some(create(&current)?);
        Ok(Self { committed, current, file, written: 0, live: BTreeMap::new() })
    }

    /// What the previous process committed in `folder`; empty when there is nothing. A torn tail is left out.
    pub(crate) fn load(folder: &Path) -> io::Result<Vec<Resource>> {
        Ok(replay(&folder.join(COMMITTED))?.into_values().collect())
    }

    /// Appends what was accepted and removed.
    pub(crate) fn record(&mut self, set: &[Resource], removed: &[Key]) -> io::Result<()> {
        let mut bytes = Vec::new();
        for resource in set.iter().filter(|resource| !resource.is_static) {
            let Some(kind) = ResourceKind::from_type_url(&resource.body.type_url) else { continue };
            let before = bytes.len();
            encode(resource, &mut bytes);
            self.live.insert((kind, resource.name.clone()), (bytes.len() - before) as u64);
        }
        for (kind, name) in removed {
            let type_url = kind.type_url().to_owned();
            let entry = Entry { type_url, name: name.clone(), version: String::new(), body: None };
            bytes.extend(entry.encode_length_delimited_to_vec());
            self.live.remove(&(*kind, name.clone()));
        }
        if let Some(file) = &mut self.file {
            file.write_all(&bytes)?;
        }
        self.written += bytes.len() as u64;
        if self.written > COMPACT_FROM + 2 * self.live.values().sum::<u64>() {
            self.compact()?;
        }
        Ok(())
    }

    /// From now on this process's journal is the last good configuration.
    pub(crate) fn commit(&mut self) -> io::Result<()> {
        if self.current == self.committed {
            return Ok(());
        }
        fs::rename(&self.current, &self.committed)?;
        self.current.clone_from(&self.committed);
        Ok(())
    }

    fn compact(&mut self) -> io::Result<()> {
        let mut bytes = Vec::new();
        for resource in replay(&self.current)?.values() {
            encode(resource, &mut bytes);
        }
        let compacted = self.committed.with_extension("compacted");
        let mut file = create(&compacted)?;
        file.write_all(&bytes)?;
        fs::rename(&compacted, &self.current)?;
        self.file = Some(file);
        self.written = bytes.len() as u64;
        Ok(())
    }
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

fn encode(resource: &Resource, into: &mut Vec<u8>) {
    let entry = Entry {
        type_url: resource.body.type_url.clone(),
        name: resource.name.clone(),
        version: resource.version.clone(),
        body: Some(resource.body.value.clone()),
    };
    into.extend(entry.encode_length_delimited_to_vec());
}

fn replay(path: &Path) -> io::Result<BTreeMap<Key, Resource>> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        other => other?,
    };
    let mut rest = bytes.as_slice();
    let mut resources = BTreeMap::new();
    while let Ok(entry) = Entry::decode_length_delimited(&mut rest) {
        let Some(kind) = ResourceKind::from_type_url(&entry.type_url) else { continue };
        let key = (kind, entry.name.clone());
        match entry.body {
            None => drop(resources.remove(&key)),
            Some(value) => {
                let body = Any { type_url: entry.type_url, value };
                let resource = Resource { name: entry.name, version: entry.version, body, is_static: false };
                resources.insert(key, resource);
            }
        }
    }
    Ok(resources)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(kind: ResourceKind, name: &str, size: usize) -> Resource {
        let body = Any { type_url: kind.type_url().to_owned(), value: vec![7; size] };
        Resource { name: name.into(), version: "1".into(), body, is_static: false }
    }

    fn names(folder: &tempfile::TempDir) -> Vec<String> {
        Cache::load(folder.path()).unwrap().into_iter().map(|resource| resource.name).collect()
    }

    #[test]
    fn the_next_process_finds_what_was_committed() {
        let folder = tempfile::tempdir().unwrap();
        let mut cache = Cache::open(folder.path()).unwrap();
        cache
            .record(&[resource(ResourceKind::Cluster, "a", 3), resource(ResourceKind::Cluster, "b", 3)], &[])
            .unwrap();
        cache.commit().unwrap();
        cache
            .record(&[resource(ResourceKind::Routes, "80", 3)], &[(ResourceKind::Cluster, "a".into())])
            .unwrap();
        assert_eq!(names(&folder), ["b", "80"]);
    }

    #[test]
    fn a_process_that_never_had_a_configuration_leaves_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let mut first = Cache::open(folder.path()).unwrap();
        first.record(&[resource(ResourceKind::Cluster, "a", 3)], &[]).unwrap();
        first.commit().unwrap();
        let mut second = Cache::open(folder.path()).unwrap();
        second.record(&[resource(ResourceKind::Cluster, "half", 3)], &[]).unwrap();
        assert_eq!(names(&folder), ["a"]);
    }

    #[test]
    fn a_torn_tail_costs_only_itself() {
        let folder = tempfile::tempdir().unwrap();
        let mut cache = Cache::open(folder.path()).unwrap();
        cache
            .record(&[resource(ResourceKind::Cluster, "a", 3), resource(ResourceKind::Cluster, "b", 30)], &[])
            .unwrap();
        cache.commit().unwrap();
        let path = folder.path().join("last-good");
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
        assert_eq!(names(&folder), ["a"]);
    }

    #[test]
    fn the_journal_does_not_grow_with_changes() {
        let folder = tempfile::tempdir().unwrap();
        let mut cache = Cache::open(folder.path()).unwrap();
        cache.commit().unwrap();
        for _ in 0..200 {
            cache.record(&[resource(ResourceKind::Cluster, "a", 50_000)], &[]).unwrap();
        }
        let size = fs::metadata(folder.path().join("last-good")).unwrap().len();
        assert!(size < COMPACT_FROM + 200_000, "{size}");
        assert_eq!(names(&folder), ["a"]);
    }
}
