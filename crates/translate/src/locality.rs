//! Locality load balancing: which endpoints a proxy prefers because of where they are.
//! <https://istio.io/latest/docs/tasks/traffic-management/locality-load-balancing/>
use std::collections::BTreeSet;

use lateen_api::networking::load_balancing::LocalityLbSettings;
use lateen_model::{Endpoint, Locality, NETWORK_LABEL};

use crate::networks::Member;
use crate::proxy::ProxyClass;
use crate::traffic_policy::EffectivePolicy;

/// The setting in force: the DestinationRule's before the mesh's; none when it is off.
pub(crate) fn setting<'a>(
    policy: EffectivePolicy<'a>,
    mesh: Option<&'a LocalityLbSettings>,
) -> Option<&'a LocalityLbSettings> {
    let own = policy.balancer.and_then(|balancer| balancer.locality_lb_setting.as_ref());
    own.or(mesh).filter(|setting| setting.enabled != Some(false))
}

/// Whether localities share the load by weight. Failover is nothing without ejection: nobody would ever be missed.
pub(crate) fn is_weighted(policy: EffectivePolicy<'_>, setting: Option<&LocalityLbSettings>) -> bool {
    setting.is_some_and(|setting| {
        let failover = !setting.failover.is_empty() || !setting.failover_priority.is_empty();
        !setting.distribute.is_empty() || (policy.outlier.is_some() && failover)
    })
}

/// How a proxy's load is spread over localities.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Spread {
    /// Weights by pattern of the destination's locality; other localities get nothing.
    Distribute(Vec<(String, u32)>),
    /// The nearest that is healthy.
    Failover {
        /// Where the proxy is.
        own: Locality,
        /// By distance: always but for `failoverPriority` without `failover`.
        by_distance: bool,
        /// Where the proxy's region fails over to.
        region: Option<String>,
        /// Labels in order of importance, with the value an endpoint should have.
        labels: Vec<(String, String)>,
    },
}

impl Spread {
    pub(crate) fn new(setting: &LocalityLbSettings, class: &ProxyClass, failover: bool) -> Option<Self> {
        let own = &class.locality;
        if !setting.distribute.is_empty() {
            let from = setting.distribute.iter().find(|from| matches(own, &from.from))?;
            return Some(Self::Distribute(
                from.to.iter().map(|(to, weight)| (to.clone(), *weight)).collect(),
            ));
        }
        let wanted = |label: &String| match label.split_once('=') {
            Some((key, value)) => (key.to_owned(), value.to_owned()),
            None => (label.clone(), label_of(class, label)),
        };
        failover.then(|| Self::Failover {
            own: own.clone(),
            by_distance: setting.failover_priority.is_empty() || !setting.failover.is_empty(),
            region: setting.failover.iter().find(|rule| rule.from == own.region).map(|rule| rule.to.clone()),
            labels: setting.failover_priority.iter().map(wanted).collect(),
        })
    }
}

/// Endpoints of one locality and priority.
#[derive(Clone, Debug)]
pub(crate) struct Group<'a> {
    pub(crate) locality: &'a Locality,
    pub(crate) priority: u32,
    pub(crate) weight: u32,
    pub(crate) members: Vec<&'a Member<'a>>,
}

impl<'a> Group<'a> {
    pub(crate) fn new(locality: &'a Locality, members: Vec<&'a Member<'a>>) -> Self {
        let weight = members.iter().fold(0_u32, |sum, member| sum.saturating_add(member.weight));
        Self { locality, priority: 0, weight, members }
    }
}

/// Gives groups their priorities and weights.
pub(crate) fn spread<'a>(spread: &Spread, groups: Vec<Group<'a>>) -> Vec<Group<'a>> {
    match spread {
        Spread::Distribute(to) => distribute(to, groups),
        Spread::Failover { own, by_distance, region, labels } => {
            let mut groups = if labels.is_empty() { groups } else { by_labels(labels, groups) };
            compact(&mut groups);
            if *by_distance {
                for group in &mut groups {
                    group.priority = group.priority * 5 + distance(own, group.locality, region.as_deref());
                }
                compact(&mut groups);
            }
            groups
        }
    }
}

fn distribute<'a>(to: &[(String, u32)], groups: Vec<Group<'a>>) -> Vec<Group<'a>> {
    let mut left: Vec<Option<Group<'a>>> = groups.into_iter().map(Some).collect();
    let mut chosen = Vec::new();
    for (pattern, weight) in to {
        let mut found: Vec<Group<'a>> = left
            .iter_mut()
            .filter_map(|group| group.take_if(|group| matches(group.locality, pattern)))
            .collect();
        let total: u64 = found.iter().map(|group| u64::from(group.weight)).sum();
        for group in &mut found {
            // Several localities of one pattern share its weight; none of them gets nothing.
            let share = (u64::from(group.weight) * u64::from(*weight)).div_ceil(total.max(1));
            group.weight = u32::try_from(share).unwrap_or(u32::MAX);
        }
        chosen.extend(found);
    }
    chosen.sort_by_key(|group| group.locality);
    chosen
}

/// Splits groups by how many of the labels, from the first on, an endpoint has as it should.
fn by_labels<'a>(labels: &[(String, String)], groups: Vec<Group<'a>>) -> Vec<Group<'a>> {
    let rank = |endpoint: &Endpoint| {
        let differs =
            labels.iter().position(|(key, wanted)| endpoint.label(key).unwrap_or_default() != wanted);
        differs.map_or(0, |position| labels.len() - position)
    };
    let mut split = Vec::new();
    for group in groups {
        let ranks: BTreeSet<usize> = group.members.iter().map(|member| rank(&member.endpoint)).collect();
        for wanted in ranks {
            let members = group.members.iter().copied().filter(|member| rank(&member.endpoint) == wanted);
            let mut part = Group::new(group.locality, members.collect());
            part.priority = u32::try_from(wanted).unwrap_or(u32::MAX);
            split.push(part);
        }
    }
    split
}

/// Priorities without gaps, from 0 on.
fn compact(groups: &mut [Group<'_>]) {
    let known: BTreeSet<u32> = groups.iter().map(|group| group.priority).collect();
    for group in groups {
        group.priority = u32::try_from(known.range(..group.priority).count()).unwrap_or(u32::MAX);
    }
}

/// 0: same sub-zone, 1: same zone, 2: same region, 3: elsewhere, 4: elsewhere and not where the region fails over to.
fn distance(own: &Locality, other: &Locality, failover: Option<&str>) -> u32 {
    if own.region != other.region {
        return if failover.is_none_or(|region| region == other.region) { 3 } else { 4 };
    }
    match (own.zone == other.zone, own.sub_zone == other.sub_zone) {
        (true, true) => 0,
        (true, false) => 1,
        (false, _) => 2,
    }
}

/// Whether a locality matches `region/zone/sub_zone`, in which `*` and what is left out stand for any.
fn matches(locality: &Locality, pattern: &str) -> bool {
    let wanted = Locality::parse(pattern);
    let any = |part: &str| part.is_empty() || part == "*";
    (wanted.region == "*" || wanted.region == locality.region)
        && (any(&wanted.zone) || wanted.zone == locality.zone)
        && (any(&wanted.sub_zone) || wanted.sub_zone == locality.sub_zone)
}

/// A label of a proxy's workload; those of topology come from where it is. All of it is in one cluster.
fn label_of(class: &ProxyClass, key: &str) -> String {
    let own = || class.labels.get(key).cloned();
    let locality = &class.locality;
    match key {
        "topology.kubernetes.io/region" => locality.region.clone(),
        "topology.kubernetes.io/zone" => locality.zone.clone(),
        "topology.istio.io/subzone" => locality.sub_zone.clone(),
        NETWORK_LABEL => own().unwrap_or_else(|| class.network.clone()),
        _ => own().unwrap_or_default(),
    }
}
