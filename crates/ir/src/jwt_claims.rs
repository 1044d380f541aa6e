//! Claims as others are told of them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

/// The claim at a path of keys.
pub(crate) fn claim<'v>(claims: &'v Map<String, Value>, path: &[Box<str>]) -> Option<&'v Value> {
    let (first, rest) = path.split_first()?;
    rest.iter().try_fold(claims.get(&**first)?, |value, key| value.as_object()?.get(&**key))
}

/// A claim as a header's value; lists and objects in Base64.
pub(crate) fn claim_text(value: &Value) -> Option<String> {
    let text = match value {
        Value::Null => return None,
        Value::Bool(value) => value.to_string(),
        Value::String(text) => text.clone(),
        Value::Number(number) => match number.as_u64() {
            Some(whole) => whole.to_string(),
            None => {
                let float = number.as_f64().unwrap_or_default();
                // 2^64
                if float.fract() == 0.0 && (0.0..18_446_744_073_709_551_616.0).contains(&float) {
                    (float as u64).to_string()
                } else {
                    format!("{float:.6}")
                }
            }
        },
        Value::Array(_) | Value::Object(_) => STANDARD.encode(value.to_string()),
    };
    Some(text).filter(|text| !text.is_empty())
}

/// The text of a claim becomes the list of its words.
pub(crate) fn split_words(claims: &mut Map<String, Value>, name: &str) {
    let Some(value) = claims.get_mut(name) else { return };
    let Some(text) = value.as_str() else { return };
    let words: Vec<Value> = text.split(' ').filter(|word| !word.is_empty()).map(Value::from).collect();
    if !words.is_empty() {
        *value = words.into();
    }
}
