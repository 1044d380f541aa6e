//! Subsets of endpoints, and what routes ask of endpoints.

use std::collections::BTreeSet;
use std::sync::Arc;

use lateen_xds::pb::envoy::config::cluster::v3 as proto;
use lateen_xds::pb::envoy::config::core::v3::Metadata;
use proto::cluster as nested;
use proto::cluster::lb_subset_config as subset;
use proto::cluster::lb_subset_config::lb_subset_selector::LbSubsetSelectorFallbackPolicy as OfSelector;

use super::values::{Converted, enumeration, struct_value};
use crate::error::At;
use crate::support::fields;
use crate::{Labels, MetadataCriteria, SelectorFallback, SubsetFallback, SubsetSelector, Subsets};

/// `None`: without selectors there are no subsets, and nothing else counts.
pub(super) fn subsets(at: &At<'_>, message: nested::LbSubsetConfig) -> Converted<Option<Subsets>> {
    fields!(at, message => nested::LbSubsetConfig {
        used {
            fallback_policy, default_subset, subset_selectors, locality_weight_aware, scale_locality_weight, panic_mode_any,
            list_as_any, metadata_fallback_policy,
        }
        inert {}
        rejected {}
    });
    use nested::lb_subset_config::{LbSubsetFallbackPolicy, LbSubsetMetadataFallbackPolicy};
    let fallback = match enumeration(at, "fallback_policy", fallback_policy)? {
        LbSubsetFallbackPolicy::NoFallback => SubsetFallback::None,
        LbSubsetFallbackPolicy::AnyEndpoint => SubsetFallback::Any,
        LbSubsetFallbackPolicy::DefaultSubset => SubsetFallback::Default,
    };
    let metadata_fallback = enumeration::<LbSubsetMetadataFallbackPolicy>(
        at,
        "metadata_fallback_policy",
        metadata_fallback_policy,
    )? == LbSubsetMetadataFallbackPolicy::FallbackList;
    let selectors = subset_selectors.into_iter().enumerate();
    let selectors: Vec<SubsetSelector> = selectors
        .map(|(index, one)| selector(&at.index("subset_selectors", index), one))
        .collect::<Converted<_>>()?;
    Ok((!selectors.is_empty()).then(|| Subsets {
        fallback,
        default_subset: default_subset.map(|members| labels(struct_value(members))).unwrap_or_default(),
        selectors,
        locality_weight_aware,
        scale_locality_weight,
        panic_mode_any,
        list_as_any,
        metadata_fallback,
    }))
}

fn selector(at: &At<'_>, message: subset::LbSubsetSelector) -> Converted<SubsetSelector> {
    fields!(at, message => subset::LbSubsetSelector {
        used { keys, single_host_per_subset, fallback_policy, fallback_keys_subset }
        inert {}
        rejected {}
    });
    let names = |names: Vec<String>| -> Vec<Box<str>> {
        let sorted: BTreeSet<String> = names.into_iter().collect();
        sorted.into_iter().map(Into::into).collect()
    };
    let (keys, fewer) = (names(keys), names(fallback_keys_subset));
    let refuse = |reason: &str| Err(at.error_in("fallback_keys_subset", reason));
    let policy: OfSelector = enumeration(at, "fallback_policy", fallback_policy)?;
    if policy != OfSelector::KeysSubset && !fewer.is_empty() {
        return refuse("fallback_keys_subset can be set only for KEYS_SUBSET fallback_policy");
    }
    let fallback = match policy {
        OfSelector::NotDefined => None,
        OfSelector::NoFallback => Some(SelectorFallback::To(SubsetFallback::None)),
        OfSelector::AnyEndpoint => Some(SelectorFallback::To(SubsetFallback::Any)),
        OfSelector::DefaultSubset => Some(SelectorFallback::To(SubsetFallback::Default)),
        OfSelector::KeysSubset if fewer.is_empty() => return refuse("fallback_keys_subset cannot be empty"),
        OfSelector::KeysSubset if !fewer.iter().all(|name| keys.contains(name)) => {
            return refuse("fallback_keys_subset must be a subset of selector keys");
        }
        OfSelector::KeysSubset if fewer.len() == keys.len() => {
            return refuse("fallback_keys_subset cannot be equal to keys");
        }
        OfSelector::KeysSubset => Some(SelectorFallback::Keys(fewer)),
    };
    Ok(SubsetSelector { keys, fallback, single_host: single_host_per_subset })
}

fn labels(value: serde_json::Value) -> Labels {
    match value {
        serde_json::Value::Object(members) => {
            members.into_iter().map(|(name, value)| (name.into(), value)).collect()
        }
        _ => Labels::new(),
    }
}

/// `metadata_match`: what is in `envoy.lb`, over what is asked for around it.
pub(super) fn metadata_match(
    metadata: Option<Metadata>,
    around: Option<&Arc<MetadataCriteria>>,
) -> Option<Arc<MetadataCriteria>> {
    let own = metadata?.filter_metadata.remove("envoy.lb")?;
    let own = MetadataCriteria(labels(struct_value(own)));
    Some(Arc::new(around.map(|around| around.merged(&own)).unwrap_or(own)))
}
