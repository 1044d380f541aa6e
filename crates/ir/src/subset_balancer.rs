//! The choice of an endpoint by subset: which subsets there are, and which of them a route's criteria lead to. What criteria mean is found
//! once for the hosts there are; a request looks only for the number of the result.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use ahash::AHashMap;
use serde_json::Value;

use crate::balancer::{Balancer, BalancerConfig, BalancerHost, Pick, Wish};
use crate::cluster::LocalityMode;
use crate::subset::{FALLBACK_LIST, Labels, MetadataCriteria, SelectorFallback, SubsetFallback, Subsets};

/// Criteria whose meaning is remembered. Beyond it all are found anew.
const MOST_KNOWN: usize = 4096;

/// How deep fallbacks to fewer keys may lead; each has fewer than the one before, so that this is only for the reader's peace.
const MOST_FALLBACKS: usize = 64;

/// One of the subsets to try, in order, until one has a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubsetStep {
    /// For [`SubsetBalancer::pick`].
    pub subset: usize,
    /// What it counts as.
    pub count: SubsetCount,
}

/// What the use of a subset counts as, by Envoy's stats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubsetCount {
    /// `lb_subsets_selected`, whether it has a host or not.
    Selected,
    /// `lb_subsets_fallback`, when it has a host.
    Fallback,
    /// `lb_subsets_fallback_panic`, when it has a host.
    Panic,
    /// Nothing: a selector's own fallback.
    Nothing,
}

#[derive(Clone, Debug)]
enum Subset {
    Balanced(Box<Balancer>),
    /// The same host always.
    Single {
        host: usize,
        priority: u32,
    },
}

/// A worker's balancers for one cluster's subsets.
#[derive(Clone, Debug)]
pub struct SubsetBalancer {
    config: Arc<Subsets>,
    subsets: Vec<Subset>,
    any: Option<usize>,
    default: Option<usize>,
    by_labels: Vec<(Labels, usize)>,
    /// By address; the criteria are kept, so that the address stays theirs.
    known: AHashMap<usize, (Arc<MetadataCriteria>, Rc<[SubsetStep]>)>,
    without: Rc<[SubsetStep]>,
}

/// The subsets that selectors make.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SubsetCensus {
    /// Labels of each, with its hosts by number and whether only one of them takes load.
    pub subsets: Vec<(Labels, Vec<usize>, bool)>,
    /// Hosts left out because their subset takes one.
    pub duplicates: usize,
}

impl SubsetCensus {
    /// Of hosts with these priorities and `envoy.lb` metadata.
    pub fn of<'a>(config: &Subsets, hosts: impl Iterator<Item = (u32, Option<&'a Value>)>) -> Self {
        let mut census = Self::default();
        let mut positions: BTreeMap<String, usize> = BTreeMap::new();
        let mut taken: Vec<Vec<u32>> = Vec::new();
        for (number, (priority, labels)) in hosts.enumerate() {
            for selector in &config.selectors {
                for labels in config.labels_of(selector, labels) {
                    let position = *positions.entry(text(&labels)).or_insert_with(|| {
                        census.subsets.push((labels, Vec::new(), selector.single_host));
                        taken.push(Vec::new());
                        census.subsets.len() - 1
                    });
                    let (_, members, single) = &mut census.subsets[position];
                    if *single && taken[position].contains(&priority) {
                        census.duplicates += 1;
                    } else if members.last() != Some(&number) {
                        members.push(number);
                        taken[position].push(priority);
                    }
                }
            }
        }
        census
    }
}

/// Labels as a key. Members are in order everywhere, so that equal ones read the same.
fn text(labels: &Labels) -> String {
    serde_json::to_string(labels).unwrap_or_default()
}

impl SubsetBalancer {
    /// Balancers over `hosts`, whose `envoy.lb` metadata is `labels`.
    pub fn new(
        subsets: &Arc<Subsets>,
        config: &BalancerConfig,
        hosts: &[BalancerHost],
        labels: &[Option<&Value>],
        seed: u64,
        now: Instant,
    ) -> Self {
        let mut made = Self {
            config: subsets.clone(),
            subsets: Vec::new(),
            any: None,
            default: None,
            by_labels: Vec::new(),
            known: AHashMap::new(),
            without: Rc::new([]),
        };
        let balanced = |members: &[usize]| {
            let (config, hosts) = within(subsets, config, hosts, members);
            Subset::Balanced(Box::new(Balancer::among(&config, &hosts, members, seed, now)))
        };
        let wants = |fallback| {
            let of_selector =
                |selector: &crate::SubsetSelector| selector.fallback == Some(SelectorFallback::To(fallback));
            subsets.fallback == fallback || subsets.selectors.iter().any(of_selector)
        };
        if subsets.panic_mode_any || wants(SubsetFallback::Any) {
            let all: Vec<usize> = (0..hosts.len()).collect();
            made.any = Some(made.add(balanced(&all)));
        }
        if wants(SubsetFallback::Default) {
            let members: Vec<usize> =
                (0..hosts.len()).filter(|number| subsets.is_default(labels[*number])).collect();
            made.default = Some(made.add(balanced(&members)));
        }
        let census = SubsetCensus::of(
            subsets,
            hosts.iter().zip(labels).map(|(host, labels)| (host.priority, *labels)),
        );
        for (labels, members, single) in census.subsets {
            let first = members.iter().min_by_key(|number| hosts[**number].priority);
            let subset = match first {
                Some(host) if single => Subset::Single { host: *host, priority: hosts[*host].priority },
                _ => balanced(&members),
            };
            let position = made.add(subset);
            made.by_labels.push((labels, position));
        }
        made.without = made.fallback().into();
        made
    }

    fn add(&mut self, subset: Subset) -> usize {
        self.subsets.push(subset);
        self.subsets.len() - 1
    }

    /// The subsets to try for a request of a route with these criteria.
    pub fn steps(&mut self, criteria: Option<&Arc<MetadataCriteria>>) -> Rc<[SubsetStep]> {
        let Some(criteria) = criteria else { return self.without.clone() };
        let address = Arc::as_ptr(criteria).addr();
        if let Some((_, steps)) = self.known.get(&address) {
            return steps.clone();
        }
        let steps: Rc<[SubsetStep]> = self.resolve(criteria).into();
        if self.known.len() >= MOST_KNOWN {
            self.known.clear();
        }
        self.known.insert(address, (criteria.clone(), steps.clone()));
        steps
    }

    /// A host of one subset.
    pub fn pick(&mut self, subset: usize, wish: &mut Wish<'_>) -> Option<Pick> {
        match self.subsets.get_mut(subset)? {
            Subset::Balanced(balancer) => balancer.pick(wish),
            Subset::Single { host, priority } => {
                Some(Pick { host: *host, priority: *priority, panic: false })
            }
        }
    }

    fn resolve(&self, criteria: &MetadataCriteria) -> Vec<SubsetStep> {
        let listed = criteria.0.get(FALLBACK_LIST).filter(|_| self.config.metadata_fallback);
        let Some(listed) = listed else { return self.choose(&criteria.0, MOST_FALLBACKS) };
        let mut rest = criteria.clone();
        rest.0.remove(FALLBACK_LIST);
        let listed = listed.as_array().map(Vec::as_slice).unwrap_or_default();
        if listed.is_empty() {
            return self.choose(&rest.0, MOST_FALLBACKS);
        }
        let over = |value: &Value| {
            let members = value.as_object().into_iter().flatten();
            MetadataCriteria(members.map(|(name, value)| (name.as_str().into(), value.clone())).collect())
        };
        listed.iter().flat_map(|value| self.choose(&rest.merged(&over(value)).0, MOST_FALLBACKS)).collect()
    }

    fn choose(&self, wanted: &Labels, deeper: usize) -> Vec<SubsetStep> {
        let step = |subset, count| vec![SubsetStep { subset, count }];
        if let Some((_, subset)) = self.by_labels.iter().find(|(labels, _)| labels == wanted) {
            return step(*subset, SubsetCount::Selected);
        }
        let own = |subset: Option<usize>| {
            subset.map(|subset| step(subset, SubsetCount::Nothing)).unwrap_or_default()
        };
        match self.selector_fallback(wanted) {
            None => self.fallback(),
            Some(SelectorFallback::To(SubsetFallback::None)) => Vec::new(),
            Some(SelectorFallback::To(SubsetFallback::Any)) => own(self.any),
            Some(SelectorFallback::To(SubsetFallback::Default)) => own(self.default),
            Some(SelectorFallback::Keys(_)) if deeper == 0 => Vec::new(),
            Some(SelectorFallback::Keys(keys)) => {
                let fewer = wanted.iter().filter(|(name, _)| keys.contains(name));
                self.choose(&fewer.map(|(name, value)| (name.clone(), value.clone())).collect(), deeper - 1)
            }
        }
    }

    /// The fallback of the selector with exactly the members that are wanted. One whose members another selector before it begins with
    /// has none, as with Envoy.
    fn selector_fallback(&self, wanted: &Labels) -> Option<&SelectorFallback> {
        let is_wanted = |keys: &[Box<str>]| keys.len() == wanted.len() && keys.iter().eq(wanted.keys());
        let position = self.config.selectors.iter().position(|selector| is_wanted(&selector.keys))?;
        let (before, selector) = (&self.config.selectors[..position], &self.config.selectors[position]);
        let hidden = before.iter().any(|other| other.keys.starts_with(&selector.keys));
        selector.fallback.as_ref().filter(|_| !hidden)
    }

    fn fallback(&self) -> Vec<SubsetStep> {
        let fallback = match self.config.fallback {
            SubsetFallback::None => None,
            SubsetFallback::Any => self.any,
            SubsetFallback::Default => self.default,
        };
        let Some(fallback) = fallback else { return Vec::new() };
        let panic = self.any.filter(|_| self.config.panic_mode_any);
        let steps = [(Some(fallback), SubsetCount::Fallback), (panic, SubsetCount::Panic)];
        steps.into_iter().filter_map(|(subset, count)| Some(SubsetStep { subset: subset?, count })).collect()
    }
}

/// How localities count within a subset.
fn within<'a>(
    subsets: &Subsets,
    config: &BalancerConfig,
    hosts: &'a [BalancerHost],
    members: &[usize],
) -> (BalancerConfig, std::borrow::Cow<'a, [BalancerHost]>) {
    if !subsets.locality_weight_aware {
        return (BalancerConfig { locality: LocalityMode::Flat, ..*config }, hosts.into());
    }
    if !subsets.scale_locality_weight {
        return (*config, hosts.into());
    }
    let mut scaled = hosts.to_vec();
    for number in members {
        let own = (hosts[*number].priority, hosts[*number].locality);
        let here = |number: &usize| (hosts[*number].priority, hosts[*number].locality) == own;
        let (mine, all) = (members.iter().filter(|n| here(n)).count(), (0..hosts.len()).filter(here).count());
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let scale = |weight: u32| (f64::from(weight) * mine as f64 / all as f64).round() as u32;
        scaled[*number].locality_weight =
            hosts[*number].locality_weight.map(scale).filter(|weight| *weight > 0);
    }
    (*config, scaled.into())
}

#[cfg(test)]
#[path = "subset_tests.rs"]
mod tests;
