//! What several controllers need to know about objects: owners, selectors, readiness, hashes, conditions.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Serialize;

use super::write::to_value;

pub(crate) type Labels = BTreeMap<String, String>;

/// The reference by which an object is somebody's, and nobody else's.
pub(crate) fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.as_ref()?.iter().find(|owner| owner.controller == Some(true))
}

/// Whether the object with `owner`'s metadata controls the one with `meta`.
pub(crate) fn is_controlled_by(meta: &ObjectMeta, owner: &ObjectMeta) -> bool {
    controller_of(meta).is_some_and(|reference| Some(&reference.uid) == owner.uid.as_ref())
}

/// A controller reference to an object.
pub(crate) fn owner_reference(api_version: &str, kind: &str, meta: &ObjectMeta) -> OwnerReference {
    OwnerReference {
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

pub(crate) fn name(meta: &ObjectMeta) -> &str {
    meta.name.as_deref().unwrap_or_default()
}

pub(crate) fn is_deleting(meta: &ObjectMeta) -> bool {
    meta.deletion_timestamp.is_some()
}

/// Whether `labels` satisfy a label selector; an empty selector matches everything.
pub(crate) fn selects(selector: &LabelSelector, labels: Option<&Labels>) -> bool {
    let get = |key: &str| labels.and_then(|labels| labels.get(key));
    let equal = selector.match_labels.iter().flatten().all(|(key, value)| get(key) == Some(value));
    equal
        && selector.match_expressions.iter().flatten().all(|requirement| {
            let value = get(&requirement.key);
            let among =
                || value.is_some_and(|value| requirement.values.iter().flatten().any(|one| one == value));
            match requirement.operator.as_str() {
                "In" => among(),
                "NotIn" => !among(),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                // The API server admits no other operator.
                _ => false,
            }
        })
}

/// The status of a pod's condition.
pub(crate) fn pod_condition<'a>(
    pod: &'a Pod,
    kind: &str,
) -> Option<&'a k8s_openapi::api::core::v1::PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == kind)
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    pod_condition(pod, "Ready").is_some_and(|condition| condition.status == "True")
}

pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

/// Succeeded or failed for good.
pub(crate) fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Counts for a controller: neither finished nor on its way out.
pub(crate) fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && !is_deleting(&pod.metadata)
}

/// Whether a pod has been ready for `min_ready_seconds`, or how long that still takes.
pub(crate) fn availability(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Availability {
    let Some(condition) = pod_condition(pod, "Ready").filter(|condition| condition.status == "True") else {
        return Availability::NotReady;
    };
    if min_ready_seconds <= 0 {
        return Availability::Available;
    }
    let since = condition.last_transition_time.as_ref().map_or(now, |time| time.0);
    let passed = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    match Duration::from_secs(min_ready_seconds.unsigned_abs().into()).checked_sub(passed) {
        Some(left) if !left.is_zero() => Availability::In(left),
        _ => Availability::Available,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Availability {
    NotReady,
    /// Ready, and available if it stays so for this time.
    In(Duration),
    Available,
}

/// Ready and available pods among `pods`, and when the next one may become available.
pub(crate) fn count_available<'a>(
    pods: impl IntoIterator<Item = &'a Pod>,
    min_ready_seconds: i32,
    now: Timestamp,
) -> (i32, i32, Option<Duration>) {
    let (mut ready, mut available, mut next) = (0, 0, None::<Duration>);
    for pod in pods {
        match availability(pod, min_ready_seconds, now) {
            Availability::NotReady => continue,
            Availability::In(left) => next = Some(next.map_or(left, |next| next.min(left))),
            Availability::Available => available += 1,
        }
        ready += 1;
    }
    (ready, available, next)
}

/// An absolute number or a share of `total`.
pub(crate) fn resolve(value: Option<&IntOrString>, default: &str, total: i32, round_up: bool) -> i32 {
    let percent = |text: &str| {
        let share = text.trim_end_matches('%').parse::<i64>().unwrap_or(0) * i64::from(total);
        let rounded = if round_up { (share + 99).div_euclid(100) } else { share.div_euclid(100) };
        i32::try_from(rounded).unwrap_or(i32::MAX)
    };
    match value {
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(text)) => percent(text),
        None => percent(default),
    }
}

/// A short hash of anything, in the letters Kubernetes uses for generated names (no vowels, nothing that looks alike).
pub(crate) fn short_hash<T: Serialize>(thing: &T) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let bytes = canonical(&to_value(thing)).to_string();
    let hash = xxhash_rust::xxh64::xxh64(bytes.as_bytes(), 0) as u32;
    hash.to_string().bytes().map(|digit| char::from(LETTERS[usize::from(digit) % LETTERS.len()])).collect()
}

/// The same JSON with sorted keys.
fn canonical(value: &serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::Object(fields) => {
            let sorted: BTreeMap<_, _> = fields.iter().map(|(key, value)| (key, canonical(value))).collect();
            sorted.into_iter().map(|(key, value)| (key.clone(), value)).collect()
        }
        serde_json::Value::Array(items) => items.iter().map(canonical).collect(),
        other => other.clone(),
    }
}

/// The hash of a pod template; `collisions` tells templates apart whose hashes are equal.
pub(crate) fn template_hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    short_hash(&(template, collisions))
}

/// A pod made from a template. Give it either a name or a prefix for a generated one.
pub(crate) fn pod_from(template: &PodTemplateSpec, namespace: &str, owner: OwnerReference) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", owner.name)),
            namespace: Some(namespace.to_owned()),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// A list of conditions of whatever kind, changed in place.
pub(crate) trait Condition {
    /// Type, status, reason and message.
    fn key(&self) -> (&str, &str, Option<&str>, Option<&str>);
    fn keep_transition(&mut self, old: &Self);
}

/// Puts `condition` into `list`. The old one stays as it is when only times differ; the time of transition stays when
/// the status does.
pub(crate) fn set_condition<C: Condition>(list: &mut Vec<C>, mut condition: C) {
    match list.iter_mut().find(|old| old.key().0 == condition.key().0) {
        Some(old) if old.key() == condition.key() => {}
        Some(old) => {
            if old.key().1 == condition.key().1 {
                condition.keep_transition(old);
            }
            *old = condition;
        }
        None => list.push(condition),
    }
}

/// `now`, cut to whole seconds as the API writes times.
pub(crate) fn time(now: Timestamp) -> Time {
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn shares_round_as_kubernetes_does() {
        let percent = |text: &str| IntOrString::String(text.to_owned());
        let cases = [
            (Some(IntOrString::Int(3)), 10, true, 3),
            (Some(percent("25%")), 10, true, 3),
            (Some(percent("25%")), 10, false, 2),
            (Some(percent("100%")), 1, true, 1),
            (None, 1, true, 1),
            (None, 1, false, 0),
            (None, 4, false, 1),
        ];
        for (value, total, round_up, expected) in cases {
            assert_eq!(resolve(value.as_ref(), "25%", total, round_up), expected, "{value:?} of {total}");
        }
    }

    #[test]
    fn selectors() {
        let selector = |json| serde_json::from_value::<LabelSelector>(json).unwrap();
        let labels: Labels =
            [("app".to_owned(), "web".to_owned()), ("tier".to_owned(), "front".to_owned())].into();
        let expression = |operator: &str, key: &str, values: &[&str]| json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]});
        let cases = [
            (json!({}), true),
            (json!({"matchLabels": {"app": "web"}}), true),
            (json!({"matchLabels": {"app": "web", "tier": "back"}}), false),
            (expression("In", "tier", &["front", "back"]), true),
            (expression("NotIn", "tier", &["front"]), false),
            (expression("NotIn", "absent", &["x"]), true),
            (expression("Exists", "app", &[]), true),
            (expression("DoesNotExist", "app", &[]), false),
        ];
        for (json, expected) in cases {
            assert_eq!(selects(&selector(json.clone()), Some(&labels)), expected, "{json}");
        }
        assert!(!selects(&selector(json!({"matchLabels": {"app": "web"}})), None));
    }

    #[test]
    fn hashes_depend_on_content_only() {
        let hash = |value: serde_json::Value| short_hash(&value);
        assert_eq!(hash(json!({"a": 1, "b": 2})), hash(json!({"b": 2, "a": 1})));
        assert_ne!(hash(json!({"a": 1})), hash(json!({"a": 2})));
        assert!(hash(json!({})).bytes().all(|letter| !b"aeiou013".contains(&letter)));
    }

    #[test]
    fn availability_takes_time() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "status": {"conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        ]}}))
        .unwrap();
        let at = |second: i64| Timestamp::from_second(1_767_225_600 + second).unwrap();
        assert_eq!(availability(&pod, 0, at(0)), Availability::Available);
        assert_eq!(availability(&pod, 10, at(4)), Availability::In(Duration::from_secs(6)));
        assert_eq!(availability(&pod, 10, at(10)), Availability::Available);
        assert_eq!(availability(&Pod::default(), 10, at(10)), Availability::NotReady);
    }
}
