//! Dense numbers for the cluster names that one resource refers to.

use std::sync::Arc;

use ahash::AHashMap;

use crate::ClusterRef;

/// Names in the order of their first use.
#[derive(Default)]
pub(super) struct ClusterNames {
    list: Vec<Arc<str>>,
    index: AHashMap<Arc<str>, u32>,
}

impl ClusterNames {
    /// Names that have their numbers already.
    pub(super) fn after(list: &[Arc<str>]) -> Self {
        Self { list: list.to_vec(), index: list.iter().cloned().zip(0..).collect() }
    }

    pub(super) fn reference(&mut self, name: &str) -> ClusterRef {
        if let Some((name, index)) = self.index.get_key_value(name) {
            return ClusterRef { name: name.clone(), index: *index };
        }
        // A resource with 2^32 names would not fit into memory.
        let index = u32::try_from(self.list.len()).unwrap_or(u32::MAX);
        let name: Arc<str> = name.into();
        self.list.push(name.clone());
        self.index.insert(name.clone(), index);
        ClusterRef { name, index }
    }

    pub(super) fn into_list(self) -> Arc<[Arc<str>]> {
        self.list.into()
    }
}
