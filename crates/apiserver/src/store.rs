//! Objects, their one sequence of resource versions, and the recent changes of each resource.
//!
//! Readers of changes pull from a bounded window instead of being sent to, so a slow watcher never delays a writer: it
//! falls out of the window and is told so.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    ops::Bound,
    path::Path,
    sync::Arc,
};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{
    journal::{Journal, Record},
    resources::{StorageKey, meta},
    server::StartError,
};

/// How much of each resource's recent changes is kept for watches, in bytes of JSON (roughly); fewer than `watch_window`
/// changes stay when they are large.
const WINDOW_BYTES: usize = 32 << 20;

/// Where an object is within its resource; cluster-scoped objects have an empty namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ObjectKey {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl ObjectKey {
    pub(crate) fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

/// What a change did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChangeKind {
    Added,
    Modified,
    Deleted,
}

/// One committed write.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) version: u64,
    pub(crate) kind: ChangeKind,
    /// The object after the write; for a deletion its last state with the deletion's resource version.
    pub(crate) object: Arc<Value>,
    pub(crate) previous: Option<Arc<Value>>,
}

impl Change {
    fn key(&self) -> ObjectKey {
        ObjectKey::new(meta(&self.object, "namespace"), meta(&self.object, "name"))
    }
}

/// Why a write was not committed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommitError {
    #[error("the object exists already")]
    Exists,
    #[error("the object does not exist")]
    Missing,
    #[error("the object has another resource version")]
    Stale,
    #[error("the journal could not be written: {0}; check the state directory's free space")]
    Journal(#[from] std::io::Error),
}

/// The changes asked for are no longer (all) there.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooOld;

/// A consistent view of one resource.
pub(crate) struct Snapshot {
    pub(crate) version: u64,
    pub(crate) objects: Vec<Arc<Value>>,
    /// More objects follow after the last one.
    pub(crate) more: usize,
}

struct Table {
    objects: BTreeMap<ObjectKey, Arc<Value>>,
    changes: VecDeque<Change>,
    /// Together, see [`WINDOW_BYTES`].
    changes_bytes: usize,
    /// Changes up to and including this version have left the window.
    floor: u64,
    latest: watch::Sender<u64>,
}

struct Inner {
    version: u64,
    loaded_version: u64,
    tables: HashMap<StorageKey, Table>,
    journal: Option<Journal>,
}

/// All objects.
pub(crate) struct Store {
    window: usize,
    inner: Mutex<Inner>,
}

impl Store {
    /// A store in memory whose watches can go back `window` changes of each resource.
    pub(crate) fn ephemeral(window: usize) -> Self {
        let inner = Inner { version: 1, loaded_version: 0, tables: HashMap::new(), journal: None };
        Self { window: window.max(1), inner: Mutex::new(inner) }
    }

    /// A store kept in `directory`, with what is there already.
    pub(crate) fn durable(directory: &Path, window: usize) -> Result<Self, StartError> {
        let store = Self::ephemeral(window);
        {
            let mut inner = store.inner.lock();
            let (journal, records) = Journal::open(directory)?;
            for record in records {
                inner.version = inner.version.max(record.version);
                let table = inner.table(&record.storage);
                let key = ObjectKey { namespace: record.namespace, name: record.name };
                match record.object {
                    Some(object) => table.objects.insert(key, Arc::new(object)),
                    None => table.objects.remove(&key),
                };
            }
            inner.journal = Some(journal);
            let version = inner.version;
            inner.loaded_version = version;
            for table in inner.tables.values_mut() {
                table.floor = version;
                table.latest.send_replace(version);
            }
        }
        Ok(store)
    }

    /// The latest resource version.
    pub(crate) fn version(&self) -> u64 {
        self.inner.lock().version
    }

    pub(crate) fn get(&self, storage: &str, key: &ObjectKey) -> Option<Arc<Value>> {
        self.inner.lock().tables.get(storage)?.objects.get(key).cloned()
    }

    /// Objects in the order of namespace and name, of one namespace or all, after `after`, at most `limit` that `keep`.
    pub(crate) fn list(
        &self,
        storage: &str,
        namespace: Option<&str>,
        after: Option<&ObjectKey>,
        limit: Option<usize>,
        keep: impl Fn(&Value) -> bool,
    ) -> Snapshot {
        let inner = self.inner.lock();
        let version = inner.version;
        let Some(table) = inner.tables.get(storage) else {
            return Snapshot { version, objects: Vec::new(), more: 0 };
        };
        let start = start_of(namespace, after);
        page(version, table.objects.range((start, Bound::Unbounded)), namespace, limit, keep)
    }

    /// The same as it was at an earlier version: the pages of a list show one moment, from which a watch can go on.
    ///
    /// # Errors
    /// When not all changes since are in the window.
    pub(crate) fn list_at(
        &self,
        version: u64,
        storage: &str,
        namespace: Option<&str>,
        after: Option<&ObjectKey>,
        limit: Option<usize>,
        keep: impl Fn(&Value) -> bool,
    ) -> Result<Snapshot, TooOld> {
        let inner = self.inner.lock();
        let Some(table) = inner.tables.get(storage) else {
            return Ok(Snapshot { version, objects: Vec::new(), more: 0 });
        };
        if version < table.floor {
            return Err(TooOld);
        }
        // What has changed since, as it was: of several changes the first one counts.
        let mut before: BTreeMap<ObjectKey, Option<&Arc<Value>>> = BTreeMap::new();
        for change in table.changes.iter().rev().take_while(|change| change.version > version) {
            before.insert(change.key(), change.previous.as_ref());
        }
        let start = start_of(namespace, after);
        let now = table.objects.range((start.clone(), Bound::Unbounded));
        let now = now.filter(|(key, _)| !before.contains_key(*key));
        let then =
            before.range((start, Bound::Unbounded)).filter_map(|(key, object)| Some((key, (*object)?)));
        let mut then = then.peekable();
        let mut now = now.peekable();
        let both = std::iter::from_fn(|| match (now.peek(), then.peek()) {
            (Some((a, _)), Some((b, _))) if a < b => now.next(),
            (_, Some(_)) => then.next(),
            (_, None) => now.next(),
        });
        Ok(page(version, both, namespace, limit, keep))
    }

    pub(crate) fn create(
        &self,
        storage: &StorageKey,
        key: ObjectKey,
        object: Value,
    ) -> Result<Arc<Value>, CommitError> {
        let mut inner = self.inner.lock();
        if inner.table(storage).objects.contains_key(&key) {
            return Err(CommitError::Exists);
        }
        self.commit(&mut inner, storage, key, ChangeKind::Added, object)
    }

    /// Replaces an object if its resource version is still `expected`.
    pub(crate) fn replace(
        &self,
        storage: &StorageKey,
        key: ObjectKey,
        expected: &str,
        object: Value,
    ) -> Result<Arc<Value>, CommitError> {
        let mut inner = self.inner.lock();
        inner.expect(storage, &key, expected)?;
        self.commit(&mut inner, storage, key, ChangeKind::Modified, object)
    }

    /// Deletes an object if its resource version is still `expected`; `last` is what watchers see.
    pub(crate) fn delete(
        &self,
        storage: &StorageKey,
        key: ObjectKey,
        expected: &str,
        last: Value,
    ) -> Result<Arc<Value>, CommitError> {
        let mut inner = self.inner.lock();
        inner.expect(storage, &key, expected)?;
        self.commit(&mut inner, storage, key, ChangeKind::Deleted, last)
    }

    fn commit(
        &self,
        inner: &mut Inner,
        storage: &StorageKey,
        key: ObjectKey,
        kind: ChangeKind,
        mut object: Value,
    ) -> Result<Arc<Value>, CommitError> {
        let version = inner.version + 1;
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        let object = Arc::new(object);
        if let Some(journal) = &mut inner.journal {
            let kept = (kind != ChangeKind::Deleted).then_some(&*object);
            journal.append(storage, &key.namespace, &key.name, version, kept)?;
        }
        inner.version = version;
        let table = inner.table(storage);
        let previous = match kind {
            ChangeKind::Deleted => table.objects.remove(&key),
            _ => table.objects.insert(key, Arc::clone(&object)),
        };
        table.remember(Change { version, kind, object: Arc::clone(&object), previous }, self.window);
        if inner.journal.as_ref().is_some_and(Journal::wants_snapshot)
            && let Err(problem) = inner.snapshot()
        {
            // The write itself is in the journal, which goes on growing until there is room.
            tracing::warn!(%problem, "the journal could not be folded into a snapshot; check the state directory's free space");
        }
        Ok(object)
    }

    /// Wakes up whenever the resource changes.
    pub(crate) fn subscribe(&self, storage: &StorageKey) -> watch::Receiver<u64> {
        self.inner.lock().table(storage).latest.subscribe()
    }

    /// At most `limit` changes after `version`, and the version up to which nothing is missing with them.
    pub(crate) fn changes_after(
        &self,
        storage: &StorageKey,
        version: u64,
        limit: usize,
    ) -> Result<(Vec<Change>, u64), TooOld> {
        let mut inner = self.inner.lock();
        let current = inner.version;
        let table = inner.table(storage);
        if version < table.floor {
            return Err(TooOld);
        }
        let start = table.changes.partition_point(|change| change.version <= version);
        let changes: Vec<Change> = table.changes.range(start..).take(limit).cloned().collect();
        let complete = start + changes.len() == table.changes.len();
        let reached = if complete { current } else { changes.last().map_or(version, |c| c.version) };
        Ok((changes, reached.max(version)))
    }

    /// Writes everything to disk.
    pub(crate) fn sync(&self) -> std::io::Result<()> {
        match &mut self.inner.lock().journal {
            Some(journal) => journal.sync(),
            None => Ok(()),
        }
    }
}

impl Table {
    /// Adds a change and drops the oldest ones beyond the bounds.
    fn remember(&mut self, change: Change, window: usize) {
        self.latest.send_replace(change.version);
        self.changes_bytes += size(&change.object);
        self.changes.push_back(change);
        while self.changes.len() > window || (self.changes_bytes > WINDOW_BYTES && self.changes.len() > 1) {
            let Some(dropped) = self.changes.pop_front() else { return };
            self.changes_bytes -= size(&dropped.object);
            self.floor = dropped.version;
        }
    }
}

fn start_of(namespace: Option<&str>, after: Option<&ObjectKey>) -> Bound<ObjectKey> {
    match (after, namespace) {
        (Some(key), _) => Bound::Excluded(key.clone()),
        (None, Some(namespace)) => Bound::Included(ObjectKey::new(namespace, "")),
        (None, None) => Bound::Unbounded,
    }
}

/// Of objects in order, those of the namespace that `keep`, at most `limit`.
fn page<'a>(
    version: u64,
    all: impl Iterator<Item = (&'a ObjectKey, &'a Arc<Value>)>,
    namespace: Option<&str>,
    limit: Option<usize>,
    keep: impl Fn(&Value) -> bool,
) -> Snapshot {
    let (mut objects, mut more) = (Vec::new(), 0);
    for (_, object) in all.take_while(|(key, _)| namespace.is_none_or(|n| key.namespace == n)) {
        if !keep(object) {
            continue;
        }
        if limit.is_some_and(|limit| objects.len() >= limit) {
            more += 1;
        } else {
            objects.push(Arc::clone(object));
        }
    }
    Snapshot { version, objects, more }
}

/// About as many bytes as the value's JSON has.
fn size(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 4,
        Value::String(text) => text.len() + 2,
        Value::Array(items) => 2 + items.iter().map(|item| size(item) + 1).sum::<usize>(),
        Value::Object(map) => 2 + map.iter().map(|(key, item)| key.len() + 4 + size(item)).sum::<usize>(),
    }
}

impl Inner {
    fn table(&mut self, storage: &str) -> &mut Table {
        if !self.tables.contains_key(storage) {
            let table = Table {
                objects: BTreeMap::new(),
                changes: VecDeque::new(),
                changes_bytes: 0,
                floor: self.loaded_version,
                latest: watch::channel(0).0,
            };
            self.tables.insert(Arc::from(storage), table);
        }
        self.tables.entry(Arc::from(storage)).or_insert_with(|| unreachable!("inserted above"))
    }

    fn expect(&mut self, storage: &str, key: &ObjectKey, expected: &str) -> Result<(), CommitError> {
        match self.table(storage).objects.get(key) {
            None => Err(CommitError::Missing),
            Some(object) if object["metadata"]["resourceVersion"] == expected => Ok(()),
            Some(_) => Err(CommitError::Stale),
        }
    }

    fn snapshot(&mut self) -> std::io::Result<()> {
        let Some(journal) = &mut self.journal else { return Ok(()) };
        let records = self.tables.iter().flat_map(|(storage, table)| {
            table.objects.iter().map(|(key, object)| Record {
                storage: storage.to_string(),
                namespace: key.namespace.clone(),
                name: key.name.clone(),
                version: object["metadata"]["resourceVersion"]
                    .as_str()
                    .and_then(|v| v.parse().ok())
                    .unwrap_or(0),
                object: Some(Value::clone(object)),
            })
        });
        journal.snapshot(self.version, records)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str) -> Value {
        json!({"metadata": {"name": name, "namespace": "a"}})
    }

    fn pods() -> StorageKey {
        "pods".into()
    }

    #[test]
    fn writes_are_ordered_and_checked() {
        let store = Store::ephemeral(10);
        let key = ObjectKey::new("a", "x");
        let one = store.create(&pods(), key.clone(), pod("x")).unwrap();
        assert!(matches!(store.create(&pods(), key.clone(), pod("x")), Err(CommitError::Exists)));
        let version = one["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
        let two = store.replace(&pods(), key.clone(), &version, pod("x")).unwrap();
        assert_ne!(one["metadata"]["resourceVersion"], two["metadata"]["resourceVersion"]);
        assert!(matches!(store.replace(&pods(), key.clone(), &version, pod("x")), Err(CommitError::Stale)));
        assert!(matches!(store.delete(&pods(), key, &version, pod("x")), Err(CommitError::Stale)));
    }

    #[test]
    fn a_reader_outside_the_window_is_told() {
        let store = Store::ephemeral(2);
        let start = store.version();
        for name in ["x", "y", "z"] {
            store.create(&pods(), ObjectKey::new("a", name), pod(name)).unwrap();
        }
        assert_eq!(store.changes_after(&pods(), start, 10).unwrap_err(), TooOld);
        let (changes, reached) = store.changes_after(&pods(), start + 1, 10).unwrap();
        assert_eq!((changes.len(), reached), (2, store.version()));
        let (changes, reached) = store.changes_after(&pods(), start + 1, 1).unwrap();
        assert_eq!((changes.len(), reached), (1, start + 2));
    }

    #[test]
    fn the_window_is_bounded_in_bytes_too() {
        let store = Store::ephemeral(1000);
        let start = store.version();
        for index in 0..5 {
            let mut large = pod("x");
            large["data"] = json!("x".repeat(WINDOW_BYTES / 3));
            store.create(&pods(), ObjectKey::new("a", index.to_string()), large).unwrap();
        }
        assert_eq!(store.changes_after(&pods(), start, 10).unwrap_err(), TooOld);
        assert_eq!(store.changes_after(&pods(), start + 3, 10).unwrap().0.len(), 2);
    }

    #[test]
    fn a_snapshot_that_fails_fails_no_write() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::durable(directory.path(), 10).unwrap();
        // In the way of the snapshot.
        std::fs::create_dir(directory.path().join("snapshot.new")).unwrap();
        for index in 0..12 {
            let mut large = pod("x");
            large["data"] = json!("x".repeat(2 << 20));
            store.create(&pods(), ObjectKey::new("a", index.to_string()), large).unwrap();
        }
        drop(store);
        let again = Store::durable(directory.path(), 10).unwrap();
        assert_eq!(again.list("pods", None, None, None, |_| true).objects.len(), 12);
    }

    #[test]
    fn pages_follow_each_other() {
        let store = Store::ephemeral(10);
        for name in ["x", "y", "z"] {
            store.create(&pods(), ObjectKey::new("a", name), pod(name)).unwrap();
        }
        store.create(&pods(), ObjectKey::new("b", "w"), pod("w")).unwrap();
        let first = store.list("pods", Some("a"), None, Some(2), |_| true);
        assert_eq!((first.objects.len(), first.more), (2, 1));
        let rest = store.list("pods", Some("a"), Some(&ObjectKey::new("a", "y")), Some(2), |_| true);
        assert_eq!((rest.objects.len(), rest.more), (1, 0));
        assert_eq!(store.list("pods", None, None, None, |_| true).objects.len(), 4);
    }

    #[test]
    fn pages_show_one_moment() {
        let store = Store::ephemeral(10);
        let key = |name: &str| ObjectKey::new("a", name);
        for name in ["b", "d", "e", "f"] {
            store.create(&pods(), key(name), pod(name)).unwrap();
        }
        let names = |snapshot: &Snapshot| -> Vec<String> {
            snapshot.objects.iter().map(|object| meta(object, "name").to_owned()).collect()
        };
        let first = store.list("pods", None, None, Some(1), |_| true);
        assert_eq!(names(&first), ["b"]);
        let version_of =
            |name: &str| meta(&store.get("pods", &key(name)).unwrap(), "resourceVersion").to_owned();
        let as_it_was = version_of("e");
        // One comes before the next page, one on it and one behind it; one goes, one changes twice.
        for name in ["a", "c", "g"] {
            store.create(&pods(), key(name), pod(name)).unwrap();
        }
        store.delete(&pods(), key("d"), &version_of("d"), pod("d")).unwrap();
        for _ in 0..2 {
            store.replace(&pods(), key("e"), &version_of("e"), pod("e")).unwrap();
        }
        let page = |after: &str, limit| {
            store.list_at(first.version, "pods", None, Some(&key(after)), limit, |_| true)
        };
        let second = page("b", Some(2)).unwrap();
        assert_eq!((names(&second), second.more), (vec!["d".to_owned(), "e".to_owned()], 1));
        assert_eq!(meta(&second.objects[1], "resourceVersion"), as_it_was);
        assert_eq!(second.version, first.version, "a watch goes on from there");
        assert_eq!(names(&page("e", None).unwrap()), ["f"]);
        let (changes, _) = store.changes_after(&pods(), second.version, 10).unwrap();
        assert_eq!(changes.len(), 6);
        for _ in 0..5 {
            store.replace(&pods(), key("f"), &version_of("f"), pod("f")).unwrap();
        }
        assert!(page("e", None).is_err(), "too long ago");
    }
}
