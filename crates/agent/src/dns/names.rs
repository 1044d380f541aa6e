//! The names in force: from the control plane (NDS), or from an earlier process while the control plane is away.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use lateen_xds::client::{Rejected, Update};
use lateen_xds::name_table::NameTable;
use prost::Message;
use tokio::sync::watch;
use tracing::{info, warn};

use super::table::{Domain, Table};

/// The table now; none until the first one came.
pub(super) type Current = watch::Receiver<Option<Arc<Table>>>;

/// Takes tables and gives them to the server. Cloning gives another handle.
#[derive(Clone)]
pub(crate) struct Names {
    domain: Domain,
    table: watch::Sender<Option<Arc<Table>>>,
    /// Where the last good table is kept.
    kept: Option<PathBuf>,
}

impl Names {
    pub(super) fn new(domain: Domain) -> Self {
        Self { domain, table: watch::Sender::new(None), kept: None }
    }

    /// Keeps the last good table in `folder`.
    pub(crate) fn kept_in(self, folder: &Path) -> Self {
        Self { kept: Some(folder.join("last-good-names")), ..self }
    }

    pub(super) fn current(&self) -> Current {
        self.table.subscribe()
    }

    /// Whether there is a table: until then no query is answered.
    pub(crate) fn known(&self) -> bool {
        self.table.borrow().is_some()
    }

    /// Applies a response of the control plane and answers it.
    pub(crate) fn apply(&self, update: Update) {
        let mut refused = Vec::new();
        for resource in &update.added {
            match NameTable::decode(resource.body.value.as_slice()) {
                Ok(table) => {
                    self.set(&table);
                    self.keep(&resource.body.value);
                }
                Err(error) => refused.push(Rejected {
                    name: resource.name.clone(),
                    reason: format!("istio.networking.nds.v1.NameTable does not decode: {error}"),
                }),
            }
        }
        update.answer(refused);
    }

    /// Uses the table of an earlier process, unless there is a newer one.
    pub(crate) fn apply_kept(&self) {
        let Some(path) = self.kept.as_ref().filter(|_| !self.known()) else { return };
        match std::fs::read(path).map(|bytes| NameTable::decode(bytes.as_slice())) {
            Ok(Ok(table)) => {
                info!(names = table.table.len(), "using the last good names");
                self.set(&table);
            }
            Ok(Err(error)) => warn!(%error, path = %path.display(), "the last good names cannot be read"),
            Err(error) => warn!(%error, path = %path.display(), "there are no earlier names"),
        }
    }

    fn set(&self, table: &NameTable) {
        self.table.send_replace(Some(Arc::new(Table::new(table, &self.domain))));
    }

    /// A file that can't be written costs only the next start without a control plane.
    fn keep(&self, bytes: &[u8]) {
        let Some(path) = &self.kept else { return };
        let new = path.with_extension("new");
        if let Err(error) = std::fs::write(&new, bytes).and_then(|()| std::fs::rename(&new, path)) {
            warn!(%error, path = %path.display(), "the last good names cannot be kept");
        }
    }
}
