//! The durable store's files: `snapshot` and `journal`, lines of checksummed JSON.
//!
//! Secrets are among the objects: only the owner can read the files.
//!
//! A record is in the kernel's hands before its write is answered, so it survives the process; it is forced to the disk
//! by snapshots and on shutdown. The journal ends at the first record that is torn or damaged.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, BufWriter, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

use crate::server::StartError;

/// The journal is folded into a snapshot when it is larger than this and than twice the last snapshot, in bytes.
const SNAPSHOT_AFTER: u64 = 16 << 20;

/// The state of one object after a write; without `object` it was deleted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) storage: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) version: u64,
    pub(crate) object: Option<Value>,
}

#[derive(Serialize)]
struct RecordRef<'a> {
    storage: &'a str,
    namespace: &'a str,
    name: &'a str,
    version: u64,
    object: Option<&'a Value>,
}

/// An open journal.
pub(crate) struct Journal {
    directory: PathBuf,
    file: File,
    length: u64,
    snapshot_length: u64,
}

impl Journal {
    /// Opens or creates the files in `directory` and returns what they hold, oldest first.
    pub(crate) fn open(directory: &Path) -> Result<(Self, Vec<Record>), StartError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source: io::Error| StartError::File { path, source }
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(at(directory))?;
        let snapshot_path = directory.join("snapshot");
        let journal_path = directory.join("journal");
        let mut records = Vec::new();
        let snapshot_length = if snapshot_path.exists() {
            let file = File::open(&snapshot_path).map_err(at(&snapshot_path))?;
            let expected = file.metadata().map_err(at(&snapshot_path))?.len();
            let good = read_records(file, &mut records).map_err(at(&snapshot_path))?;
            // A snapshot is renamed into place when complete, so damage is not a torn write.
            if good != expected {
                return Err(StartError::Corrupt {
                    path: snapshot_path,
                    problem: format!("the record at byte {good} is damaged"),
                });
            }
            good
        } else {
            0
        };
        let snapshot_version = records.iter().map(|r| r.version).max().unwrap_or(0);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&journal_path)
            .map_err(at(&journal_path))?;
        let mut journaled = Vec::new();
        let length = read_records(file.try_clone().map_err(at(&journal_path))?, &mut journaled)
            .map_err(at(&journal_path))?;
        // A crash between snapshot and truncation leaves records the snapshot has already.
        records.extend(journaled.into_iter().filter(|record| record.version > snapshot_version));
        file.set_len(length).map_err(at(&journal_path))?;
        file.seek(SeekFrom::Start(length)).map_err(at(&journal_path))?;
        let journal = Self { directory: directory.to_owned(), file, length, snapshot_length };
        Ok((journal, records))
    }

    pub(crate) fn append(
        &mut self,
        storage: &str,
        namespace: &str,
        name: &str,
        version: u64,
        object: Option<&Value>,
    ) -> io::Result<()> {
        let line = encode(&RecordRef { storage, namespace, name, version, object })?;
        if let Err(error) = self.file.write_all(&line) {
            // Leave no torn record in the middle.
            self.file.set_len(self.length)?;
            self.file.seek(SeekFrom::Start(self.length))?;
            return Err(error);
        }
        self.length += line.len() as u64;
        Ok(())
    }

    pub(crate) fn wants_snapshot(&self) -> bool {
        self.length > SNAPSHOT_AFTER.max(2 * self.snapshot_length)
    }

    /// Replaces the snapshot by `records` (the whole state at `version`) and empties the journal.
    pub(crate) fn snapshot(&mut self, version: u64, records: impl Iterator<Item = Record>) -> io::Result<()> {
        let temporary = self.directory.join("snapshot.new");
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        let mut writer = BufWriter::new(file);
        // The version itself, for when the last write was a deletion.
        let mark = RecordRef { storage: "", namespace: "", name: "", version, object: None };
        let mut length = 0;
        for line in std::iter::once(encode(&mark)).chain(records.map(|record| encode(&record))) {
            let line = line?;
            length += line.len() as u64;
            writer.write_all(&line)?;
        }
        writer.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        fs::rename(&temporary, self.directory.join("snapshot"))?;
        File::open(&self.directory)?.sync_all()?;
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.length = 0;
        self.snapshot_length = length;
        Ok(())
    }

    pub(crate) fn sync(&mut self) -> io::Result<()> {
        self.file.sync_all()
    }
}

fn encode(record: &impl Serialize) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(record)?;
    let mut line = format!("{:016x} ", xxh3_64(&json)).into_bytes();
    line.extend_from_slice(&json);
    line.push(b'\n');
    Ok(line)
}

fn decode(line: &[u8]) -> Option<Record> {
    let line = line.strip_suffix(b"\n")?;
    let (sum, json) = line.split_at_checked(16)?;
    let json = json.strip_prefix(b" ")?;
    let sum = u64::from_str_radix(std::str::from_utf8(sum).ok()?, 16).ok()?;
    (sum == xxh3_64(json)).then(|| serde_json::from_slice(json).ok())?
}

/// Reads records up to the first damaged one; returns the length of the good part in bytes.
fn read_records(file: File, records: &mut Vec<Record>) -> io::Result<u64> {
    let mut reader = BufReader::new(file);
    let mut good = 0;
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Ok(good);
        }
        let Some(record) = decode(&line) else { return Ok(good) };
        good += line.len() as u64;
        records.push(record);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{ObjectKey, Store};
    use serde_json::json;

    #[test]
    fn only_the_owner_can_read() {
        use std::os::unix::fs::PermissionsExt;
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("store");
        let (mut journal, _) = Journal::open(&directory).unwrap();
        journal.snapshot(1, std::iter::empty()).unwrap();
        for (name, expected) in [("", 0o700), ("journal", 0o600), ("snapshot", 0o600)] {
            let mode = fs::metadata(directory.join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, expected, "{name:?}");
        }
    }

    #[test]
    fn a_torn_tail_is_dropped_and_versions_go_on() {
        let directory = tempfile::tempdir().unwrap();
        let storage = "pods".into();
        let object = |name: &str| json!({"metadata": {"name": name}});
        let version = {
            let store = Store::durable(directory.path(), 10).unwrap();
            store.create(&storage, ObjectKey::new("a", "x"), object("x")).unwrap();
            store.create(&storage, ObjectKey::new("a", "y"), object("y")).unwrap();
            store.version()
        };
        let path = directory.path().join("journal");
        let whole = fs::read(&path).unwrap();
        for cut in 1..40 {
            fs::write(&path, &whole[..whole.len() - cut]).unwrap();
            let store = Store::durable(directory.path(), 10).unwrap();
            assert!(store.get("pods", &ObjectKey::new("a", "x")).is_some());
            assert!(store.get("pods", &ObjectKey::new("a", "y")).is_none(), "cut {cut}");
            store.create(&storage, ObjectKey::new("a", "z"), object("z")).unwrap();
            let again = Store::durable(directory.path(), 10).unwrap();
            assert!(again.get("pods", &ObjectKey::new("a", "z")).is_some());
        }
        fs::write(&path, &whole).unwrap();
        let store = Store::durable(directory.path(), 10).unwrap();
        assert_eq!(store.version(), version);
        assert!(store.changes_after(&storage, version - 1, 10).is_err(), "changes from before are gone");
    }

    #[test]
    fn a_snapshot_holds_everything() {
        let directory = tempfile::tempdir().unwrap();
        let (mut journal, _) = Journal::open(directory.path()).unwrap();
        journal.append("pods", "a", "x", 7, Some(&json!({"v": 1}))).unwrap();
        let record = Record {
            storage: "pods".into(),
            namespace: "a".into(),
            name: "x".into(),
            version: 7,
            object: Some(json!({"v": 1})),
        };
        journal.snapshot(9, std::iter::once(record.clone())).unwrap();
        journal.append("pods", "a", "y", 10, None).unwrap();
        let (_, records) = Journal::open(directory.path()).unwrap();
        assert_eq!(records.iter().map(|r| r.version).collect::<Vec<_>>(), [9, 7, 10]);
        assert_eq!(records[1], record);
    }
}
