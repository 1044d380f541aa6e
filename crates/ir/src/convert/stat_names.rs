//! Dense numbers for the names under which routes of one configuration count.

use std::sync::Arc;

use super::cluster_names::ClusterNames;

/// Names in the order of their first use.
#[derive(Default)]
pub(super) struct StatNames(ClusterNames);

impl StatNames {
    /// Names that have their numbers already.
    pub(super) fn after(list: &[Arc<str>]) -> Self {
        Self(ClusterNames::after(list))
    }

    /// The number of a route's `stat_prefix`; `None`: it has none.
    pub(super) fn number(&mut self, virtual_host: &str, prefix: &str) -> Option<u32> {
        let name = || format!("{virtual_host}\n{prefix}");
        (!prefix.is_empty()).then(|| self.0.reference(&name()).index)
    }

    pub(super) fn into_list(self) -> Arc<[Arc<str>]> {
        self.0.into_list()
    }
}
