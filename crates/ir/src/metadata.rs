//! What filters note about a request for those behind them, and matchers over it.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::StringMatcher;

/// Notes by the name of their filter (Envoy's dynamic metadata).
#[derive(Clone, Debug, Default)]
pub struct DynamicMetadata(pub BTreeMap<Box<str>, Value>);

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
        let of_filter = metadata.and_then(|metadata| metadata.0.get(&self.filter));
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
