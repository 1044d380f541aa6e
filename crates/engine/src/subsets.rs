//! How many subsets a cluster has, for its stats. Each worker makes its own when it first uses the cluster; what is counted here is
//! what the configuration asks for.

use std::collections::BTreeSet;
use std::sync::Arc;

use lateen_ir::{Cluster, ClusterLoadAssignment, EndpointAddress, SubsetCensus};

/// See the module.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct SubsetCounts {
    /// Labels of each subset, as text.
    subsets: BTreeSet<String>,
    created: u64,
    removed: u64,
    duplicates: u64,
}

impl SubsetCounts {
    /// Of a cluster with subsets; what was counted `before` goes on.
    pub(crate) fn note(
        cluster: &Cluster,
        endpoints: &ClusterLoadAssignment,
        before: Option<&Self>,
    ) -> Option<Arc<Self>> {
        let config = cluster.subsets.as_ref()?;
        let priorities = endpoints.priorities.iter().zip(0_u32..);
        let all = priorities.flat_map(|(localities, priority)| {
            let endpoints = localities.iter().flat_map(|locality| &locality.endpoints);
            endpoints.map(move |endpoint| (priority, endpoint))
        });
        let reached = all.filter(|(_, endpoint)| !matches!(endpoint.address, EndpointAddress::Name(..)));
        let census =
            SubsetCensus::of(config, reached.map(|(priority, endpoint)| (priority, endpoint.labels())));
        let text = |labels| serde_json::to_string(labels).unwrap_or_default();
        let subsets: BTreeSet<String> = census.subsets.iter().map(|(labels, ..)| text(labels)).collect();
        let nothing = Self::default();
        let before = before.unwrap_or(&nothing);
        Some(Arc::new(Self {
            created: before.created + subsets.difference(&before.subsets).count() as u64,
            removed: before.removed + before.subsets.difference(&subsets).count() as u64,
            duplicates: census.duplicates as u64,
            subsets,
        }))
    }

    /// Names and values of gauges: what there is in each of so many threads.
    pub(crate) fn gauges(&self, threads: u64) -> [(&'static str, u64); 2] {
        [
            ("lb_subsets_active", self.subsets.len() as u64 * threads),
            ("lb_subsets_single_host_per_subset_duplicate", self.duplicates),
        ]
    }

    /// Names and values of counters.
    pub(crate) fn counters(&self, threads: u64) -> [(&'static str, u64); 2] {
        [("lb_subsets_created", self.created * threads), ("lb_subsets_removed", self.removed * threads)]
    }
}
