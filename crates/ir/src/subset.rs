//! Subsets of a cluster's endpoints by their metadata, and what routes ask for.
//! <https://www.envoyproxy.io/docs/envoy/v1.40.0/intro/arch_overview/upstream/load_balancing/subsets>

use std::collections::BTreeMap;

use serde_json::Value;

/// Members of the metadata `envoy.lb`, in the order of their names.
pub type Labels = BTreeMap<Box<str>, Value>;

/// The member of a route's criteria that lists others to try (`FALLBACK_LIST`).
pub(crate) const FALLBACK_LIST: &str = "fallback_list";

/// What a route asks of endpoints (`metadata_match`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MetadataCriteria(pub Labels);

impl MetadataCriteria {
    /// These with others over them.
    pub fn merged(&self, over: &Self) -> Self {
        let mut labels = self.0.clone();
        labels.extend(over.0.iter().map(|(name, value)| (name.clone(), value.clone())));
        Self(labels)
    }
}

/// Envoy's `LbSubsetConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct Subsets {
    /// For requests that no subset is for. Default: no endpoint.
    pub fallback: SubsetFallback,
    /// What endpoints of the default subset have; empty: all endpoints.
    pub default_subset: Labels,
    /// By which members subsets are made; at least one.
    pub selectors: Vec<SubsetSelector>,
    /// Weights of localities count within subsets. Default: localities don't matter there.
    pub locality_weight_aware: bool,
    /// They shrink with the share of a locality's endpoints that a subset has.
    pub scale_locality_weight: bool,
    /// Where the fallback has no endpoint, any will do.
    pub panic_mode_any: bool,
    /// A list in an endpoint's metadata stands for each of its elements.
    pub list_as_any: bool,
    /// Criteria may list others to try (`metadata_fallback_policy: FALLBACK_LIST`).
    pub metadata_fallback: bool,
}

/// Who serves requests that no subset is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SubsetFallback {
    /// Nobody.
    #[default]
    None,
    /// Any endpoint.
    Any,
    /// One of the default subset.
    Default,
}

/// Envoy's `LbSubsetSelector`.
#[derive(Clone, Debug, PartialEq)]
pub struct SubsetSelector {
    /// Names of members, sorted, each once.
    pub keys: Vec<Box<str>>,
    /// For requests with these members that no subset is for; `None`: the cluster's.
    pub fallback: Option<SelectorFallback>,
    /// Of the endpoints of one subset only one takes load, whatever its health.
    pub single_host: bool,
}

/// See [`SubsetSelector::fallback`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SelectorFallback {
    /// As the cluster's may be.
    To(SubsetFallback),
    /// The same choice with fewer members.
    Keys(Vec<Box<str>>),
}

impl Subsets {
    /// Whether an endpoint belongs to the default subset.
    pub(crate) fn is_default(&self, labels: Option<&Value>) -> bool {
        self.default_subset.iter().all(|(name, wanted)| match labels.and_then(|labels| labels.get(&**name)) {
            Some(Value::Array(list)) if self.list_as_any => list.contains(wanted),
            Some(value) => value == wanted,
            None => false,
        })
    }

    /// The labels of the subsets that a selector puts an endpoint in.
    pub(crate) fn labels_of(&self, selector: &SubsetSelector, labels: Option<&Value>) -> Vec<Labels> {
        let mut all: Vec<Labels> = Vec::new();
        for key in &selector.keys {
            let Some(value) = labels.and_then(|labels| labels.get(&**key)) else { return Vec::new() };
            let values = match value {
                Value::Array(list) if self.list_as_any => &list[..],
                value => std::slice::from_ref(value),
            };
            // Each so far with each of the values. An empty list before the others leaves its member out, as with Envoy.
            if all.is_empty() {
                all.push(Labels::new());
            }
            let with = |(labels, value): (&Labels, &Value)| {
                let mut labels = labels.clone();
                labels.insert(key.clone(), value.clone());
                labels
            };
            all = all
                .iter()
                .flat_map(|labels| values.iter().map(move |value| (labels, value)))
                .map(with)
                .collect();
        }
        all
    }
}
