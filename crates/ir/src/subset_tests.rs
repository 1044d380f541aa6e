use serde_json::json;

use super::*;
use crate::{HealthStatus, LbPolicy, Load, SubsetSelector};

struct Idle;

impl Load for Idle {
    fn active(&self, _: usize) -> u64 {
        0
    }

    fn total(&self) -> u64 {
        0
    }
}

fn labels(value: &Value) -> Labels {
    value.as_object().unwrap().iter().map(|(name, value)| (name.as_str().into(), value.clone())).collect()
}

fn criteria(value: &Value) -> Arc<MetadataCriteria> {
    Arc::new(MetadataCriteria(labels(value)))
}

fn selector(keys: &[&str], fallback: Option<SelectorFallback>) -> SubsetSelector {
    let keys = keys.iter().map(|key| (*key).into()).collect();
    SubsetSelector { keys, fallback, single_host: false }
}

fn config(selectors: Vec<SubsetSelector>) -> Subsets {
    Subsets {
        fallback: SubsetFallback::None,
        default_subset: Labels::new(),
        selectors,
        locality_weight_aware: false,
        scale_locality_weight: false,
        panic_mode_any: false,
        list_as_any: false,
        metadata_fallback: false,
    }
}

fn balancer(config: Subsets, hosts: &[Value]) -> SubsetBalancer {
    let described: Vec<BalancerHost> = hosts
        .iter()
        .map(|_| BalancerHost {
            priority: 0,
            locality: 0,
            locality_weight: None,
            weight: 1,
            health: HealthStatus::Healthy,
            excluded: false,
            hash_key: "".into(),
            joined: None,
        })
        .collect();
    let balancing = BalancerConfig {
        policy: LbPolicy::RoundRobin { slow_start: None },
        locality: LocalityMode::Flat,
        healthy_panic_threshold: 50.0,
        overprovisioning_factor: 140,
        weighted_priority_health: false,
    };
    let labels: Vec<Option<&Value>> = hosts.iter().map(Some).collect();
    SubsetBalancer::new(&Arc::new(config), &balancing, &described, &labels, 0, Instant::now())
}

/// The hosts that requests with these criteria reach, and what they count as.
fn met(balancer: &mut SubsetBalancer, wanted: Option<&Value>) -> (Vec<usize>, Option<SubsetCount>) {
    let steps = balancer.steps(wanted.map(criteria).as_ref());
    let Some(step) = steps.first() else { return (Vec::new(), None) };
    let mut hosts = std::collections::BTreeSet::new();
    for n in 0..8 {
        let mut wish = Wish {
            hash: None,
            attempt: 0,
            random: &mut || n,
            load: &Idle,
            now: &Instant::now,
            priorities: None,
        };
        hosts.extend(balancer.pick(step.subset, &mut wish).map(|pick| pick.host));
    }
    (hosts.into_iter().collect(), Some(step.count))
}

const NOBODY: (Vec<usize>, Option<SubsetCount>) = (Vec::new(), None);

#[test]
fn criteria_must_name_the_keys_of_a_selector_exactly() {
    let hosts = [json!({"v": 1, "s": "a"}), json!({"v": 2, "s": "a"}), json!({"v": 2, "s": "b"}), json!({})];
    let mut balancer = balancer(config(vec![selector(&["v"], None), selector(&["s", "v"], None)]), &hosts);
    let selected = Some(SubsetCount::Selected);
    assert_eq!(met(&mut balancer, Some(&json!({"v": 2}))), (vec![1, 2], selected));
    assert_eq!(met(&mut balancer, Some(&json!({"v": 2, "s": "a"}))), (vec![1], selected));
    assert_eq!(met(&mut balancer, Some(&json!({"s": "a"}))), NOBODY);
    assert_eq!(met(&mut balancer, Some(&json!({"v": "2"}))), NOBODY, "a text is no number");
    assert_eq!(met(&mut balancer, None), NOBODY);
}

#[test]
fn fallbacks_are_the_selectors_or_else_the_clusters() {
    let hosts = [json!({"v": 1, "s": "a"}), json!({"v": 2, "s": "a"}), json!({"v": 2, "s": "b"})];
    let to = |fallback| Some(SelectorFallback::To(fallback));
    let selectors = vec![
        selector(&["v"], to(SubsetFallback::Any)),
        selector(&["s"], to(SubsetFallback::None)),
        selector(&["s", "v"], Some(SelectorFallback::Keys(vec!["v".into()]))),
        selector(&["x"], None),
    ];
    let default_subset = labels(&json!({"s": "a"}));
    let config = Subsets { fallback: SubsetFallback::Default, default_subset, ..config(selectors) };
    let mut balancer = balancer(config, &hosts);
    let fallback = Some(SubsetCount::Fallback);
    assert_eq!(met(&mut balancer, None), (vec![0, 1], fallback));
    assert_eq!(met(&mut balancer, Some(&json!({"x": 1}))), (vec![0, 1], fallback));
    assert_eq!(met(&mut balancer, Some(&json!({"y": 1}))), (vec![0, 1], fallback));
    assert_eq!(met(&mut balancer, Some(&json!({"v": 3}))), (vec![0, 1, 2], Some(SubsetCount::Nothing)));
    assert_eq!(met(&mut balancer, Some(&json!({"s": "c"}))), NOBODY);
    let fewer = met(&mut balancer, Some(&json!({"s": "c", "v": 2})));
    assert_eq!(fewer, (vec![1, 2], Some(SubsetCount::Selected)));
}

#[test]
fn lists_stand_for_their_elements_where_that_is_wished_for() {
    let hosts = [json!({"v": ["a", "b"]}), json!({"v": "b"})];
    let lists = |list_as_any| Subsets { list_as_any, ..config(vec![selector(&["v"], None)]) };
    let mut any = balancer(lists(true), &hosts);
    assert_eq!(met(&mut any, Some(&json!({"v": "b"}))).0, [0, 1]);
    assert_eq!(met(&mut any, Some(&json!({"v": "a"}))).0, [0]);
    assert_eq!(met(&mut any, Some(&json!({"v": ["a", "b"]}))), NOBODY);
    let mut whole = balancer(lists(false), &hosts);
    assert_eq!(met(&mut whole, Some(&json!({"v": ["a", "b"]}))).0, [0]);
    assert_eq!(met(&mut whole, Some(&json!({"v": "a"}))), NOBODY);
}

#[test]
fn one_host_of_a_subset_may_have_to_do() {
    let hosts = [json!({"v": 1}), json!({"v": 1}), json!({"v": 2})];
    let single = SubsetSelector { single_host: true, ..selector(&["v"], None) };
    let with = config(vec![single]);
    let census = SubsetCensus::of(&with, hosts.iter().map(|labels| (0, Some(labels))));
    assert_eq!((census.subsets.len(), census.duplicates), (2, 1));
    assert_eq!(met(&mut balancer(with, &hosts), Some(&json!({"v": 1}))).0, [0]);
}

#[test]
fn lists_of_criteria_are_tried_in_order() {
    let hosts = [json!({"v": 1}), json!({"v": 2})];
    let with = Subsets { metadata_fallback: true, ..config(vec![selector(&["v"], None)]) };
    let mut balancer = balancer(with, &hosts);
    let listed = json!({"v": 1, "fallback_list": [{"v": 7}, {"v": 2}, {}]});
    let steps = balancer.steps(Some(&criteria(&listed)));
    let hosts: Vec<_> = steps.iter().map(|step| step.subset).collect();
    assert_eq!(hosts, [1, 0], "what nobody has is not tried");
}

#[test]
fn what_criteria_mean_is_found_once_and_bounded() {
    let mut balancer = balancer(config(vec![selector(&["v"], None)]), &[json!({"v": 1})]);
    let wanted = criteria(&json!({"v": 1}));
    assert!(Rc::ptr_eq(&balancer.steps(Some(&wanted)), &balancer.steps(Some(&wanted))));
    for n in 0..=MOST_KNOWN {
        balancer.steps(Some(&criteria(&json!({"v": n}))));
    }
    assert!(balancer.known.len() <= MOST_KNOWN);
}

proptest::proptest! {
    /// A subset has exactly the hosts that have what is asked for, whatever they have besides.
    #[test]
    fn subsets_are_those_who_match(hosts in proptest::collection::vec((0_u8..3, 0_u8..3), 1..12), v in 0_u8..3, s in 0_u8..3) {
        let described: Vec<Value> = hosts.iter().map(|(v, s)| json!({"v": v, "s": s})).collect();
        let census = SubsetCensus::of(
            &config(vec![selector(&["s", "v"], None)]),
            described.iter().map(|labels| (0, Some(labels))),
        );
        let wanted = labels(&json!({"v": v, "s": s}));
        let found = census.subsets.iter().find(|(labels, ..)| *labels == wanted).map(|(_, members, _)| members.clone());
        let expected: Vec<usize> = (0..hosts.len()).filter(|n| hosts[*n] == (v, s)).collect();
        proptest::prop_assert_eq!(found.unwrap_or_default(), expected);
    }
}
