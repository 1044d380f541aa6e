//! What filters note about a request for those behind them, and matchers over it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};
use smallvec::SmallVec;

use crate::{RbacFilter, StringMatcher};

/// Notes by the name of their filter (Envoy's dynamic metadata).
#[derive(Clone, Debug, Default)]
pub struct DynamicMetadata {
    values: BTreeMap<Box<str>, Value>,
    /// What RBAC filters decided, in their order. Hardly anybody reads it, so it is written out for those who do.
    decisions: SmallVec<[Decision; 3]>,
    /// Under which name they are found.
    decided_by: &'static str,
}

/// What an RBAC filter decided about a request or a connection.
#[derive(Clone, Debug)]
pub struct Decision {
    /// The filter, which says where it is noted if the rules do not.
    pub filter: Arc<RbacFilter>,
    /// Whose rules it was: the filter's, or those of the route in their place.
    pub rules: Arc<RbacFilter>,
    /// By the rules that are counted only.
    pub shadow: bool,
    /// Whether it may pass.
    pub allowed: bool,
    /// Position of the policy that matched.
    pub policy: Option<u32>,
}

impl Decision {
    /// Adds what Envoy notes of it.
    fn note(&self, notes: &mut Map<String, Value>) {
        let (rules, own, default) = match self.shadow {
            true => (&self.rules.shadow_rules, &self.rules.shadow_notes, &self.filter.shadow_notes),
            false => (&self.rules.rules, &self.rules.notes, &self.filter.notes),
        };
        let names = if own.prefixed { own } else { default };
        let policy = self.policy.zip(rules.as_ref()).and_then(|(policy, rules)| rules.name(policy));
        notes.extend(policy.map(|policy| (names.policy.to_string(), policy.into())));
        let result = if self.allowed { "allowed" } else { "denied" };
        notes.insert(names.result.to_string(), result.into());
    }
}

impl DynamicMetadata {
    /// What a filter noted.
    pub fn get(&self, filter: &str) -> Option<Cow<'_, Value>> {
        if self.decisions.is_empty() || filter != self.decided_by {
            return self.values.get(filter).map(Cow::Borrowed);
        }
        let mut notes = Map::new();
        self.decisions.iter().for_each(|decision| decision.note(&mut notes));
        Some(Cow::Owned(notes.into()))
    }

    /// Adds to what a filter noted; a name that is there already gets the new value.
    pub fn add(&mut self, filter: &str, entries: Map<String, Value>) {
        match self.values.get_mut(filter) {
            Some(Value::Object(there)) => there.extend(entries),
            _ => drop(self.values.insert(filter.into(), entries.into())),
        }
    }

    /// Notes what an RBAC filter decided, under the name of its kind.
    pub fn decide(&mut self, by: &'static str, decision: Decision) {
        self.decided_by = by;
        self.decisions.push(decision);
    }
}

/// Envoy's `type.matcher.v3.MetadataMatcher`.
#[derive(Clone, Debug)]
pub struct MetadataMatcher {
    /// Name of the filter.
    pub filter: Box<str>,
    /// Keys, from the outside in.
    pub path: Vec<Box<str>>,
    /// What must be there.
    pub value: ValueMatcher,
    /// The result is inverted.
    pub invert: bool,
}

/// Envoy's `type.matcher.v3.ValueMatcher`.
#[derive(Clone, Debug)]
pub enum ValueMatcher {
    /// A null.
    Null,
    /// This number.
    Number(f64),
    /// A number in `start..end`.
    Range {
        /// First number.
        start: f64,
        /// End of the range.
        end: f64,
    },
    /// A text.
    String(StringMatcher),
    /// This truth value.
    Bool(bool),
    /// Anything at all; with false nothing matches.
    Present(bool),
    /// A list of which an element matches.
    ListOneOf(Box<ValueMatcher>),
    /// One of these.
    Or(Vec<ValueMatcher>),
}

impl MetadataMatcher {
    /// Whether the notes match; `None`: there are none.
    pub fn is_match(&self, metadata: Option<&DynamicMetadata>) -> bool {
        let of_filter = metadata.and_then(|metadata| metadata.get(&self.filter));
        let of_filter = of_filter.as_deref();
        let value = self.path.iter().try_fold(of_filter, |value, key| Some(value?.get(&**key))).flatten();
        self.value.is_match(value) != self.invert
    }
}

impl ValueMatcher {
    fn is_match(&self, value: Option<&Value>) -> bool {
        match self {
            Self::Null => value.is_some_and(Value::is_null),
            Self::Number(number) => value.and_then(Value::as_f64).is_some_and(|value| value == *number),
            Self::Range { start, end } => {
                value.and_then(Value::as_f64).is_some_and(|value| (*start..*end).contains(&value))
            }
            Self::String(matcher) => {
                value.and_then(Value::as_str).is_some_and(|value| matcher.is_match(value.as_bytes()))
            }
            Self::Bool(wanted) => value.and_then(Value::as_bool) == Some(*wanted),
            Self::Present(wanted) => *wanted && value.is_some(),
            Self::ListOneOf(matcher) => value
                .and_then(Value::as_array)
                .is_some_and(|list| list.iter().any(|value| matcher.is_match(Some(value)))),
            Self::Or(matchers) => matchers.iter().any(|matcher| matcher.is_match(value)),
        }
    }
}
