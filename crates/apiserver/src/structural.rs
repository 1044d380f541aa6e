//! Validation and defaulting of custom objects by their OpenAPI v3 schema.
//!
//! Wording follows go-openapi's validator as kube-apiserver reports it. CEL rules are not evaluated.

use regex::Regex;
use serde_json::{Value, json};

use crate::{decode::join, schema::Schema, status::FieldError};

/// Problems reported at most; the rest adds nothing.
const MAX_ERRORS: usize = 50;

/// Fills in the schema's defaults.
pub(crate) fn default_fields(schema: Schema<'_>, value: &mut Value) {
    match value {
        Value::Object(map) => {
            if let Some(properties) = schema.resolved().get("properties").and_then(Value::as_object) {
                for (name, node) in properties {
                    let missing = match map.get(name) {
                        None => true,
                        Some(Value::Null) => node["nullable"] != true,
                        Some(_) => false,
                    };
                    if missing && let Some(default) = node.get("default") {
                        map.insert(name.clone(), default.clone());
                    }
                }
            }
            for (name, child) in map.iter_mut() {
                if let Some(field) = schema.field(name) {
                    default_fields(field, child);
                }
            }
        }
        Value::Array(items) => {
            if let Some(item_schema) = schema.items() {
                items.iter_mut().for_each(|item| default_fields(item_schema, item));
            }
        }
        _ => {}
    }
}

/// Everything wrong with `value`, the root of a custom object or a part of it at `path`.
pub(crate) fn validate(schema: Schema<'_>, value: &Value, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    check(schema, value, path, &mut errors);
    errors.truncate(MAX_ERRORS);
    errors
}

fn check(schema: Schema<'_>, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let node = schema.resolved();
    if errors.len() > MAX_ERRORS
        || !node.is_object()
        || (value.is_null() && (node["nullable"] == true || path.is_empty()))
    {
        return;
    }
    if !type_fits(schema, value) {
        let wanted = if schema.int_or_string() { "integer,string" } else { schema.type_name() };
        let shown = json!(json_type(value));
        errors.push(FieldError::type_invalid(
            path,
            &shown,
            &format!("{path} in body must be of type {wanted}: {shown}"),
        ));
        return;
    }
    if let Some(allowed) = node["enum"].as_array()
        && !allowed.contains(value)
    {
        let names: Vec<String> =
            allowed.iter().map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        errors.push(FieldError::not_supported(path, value, &names));
    }
    match value {
        Value::String(text) => check_string(node, text, value, path, errors),
        Value::Number(number) => check_number(node, number.as_f64().unwrap_or(0.0), value, path, errors),
        Value::Array(items) => check_array(schema, items, value, path, errors),
        Value::Object(_) => check_object(schema, value, path, errors),
        _ => {}
    }
    check_combinations(schema, value, path, errors);
}

fn type_fits(schema: Schema<'_>, value: &Value) -> bool {
    if schema.int_or_string() {
        return value.is_string() || value.as_i64().is_some();
    }
    match schema.type_name() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.as_i64().is_some() || value.as_f64().is_some_and(|n| n.fract() == 0.0),
        "number" => value.is_number(),
        _ => true,
    }
}

fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn check_string(node: &Value, text: &str, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let mut wrong = |what: String| {
        errors.push(FieldError::invalid(path, value, &format!("{path} in body {what}")));
    };
    let length = text.chars().count() as u64;
    if let Some(least) = node["minLength"].as_u64().filter(|least| length < *least) {
        wrong(format!("should be at least {least} chars long"));
    }
    if let Some(most) = node["maxLength"].as_u64().filter(|most| length > *most) {
        wrong(format!("should be at most {most} chars long"));
    }
    // Patterns were compiled when the CRD was accepted.
    if let Some(pattern) = node["pattern"].as_str()
        && Regex::new(pattern).is_ok_and(|regex| !regex.is_match(text))
    {
        wrong(format!("should match '{pattern}'"));
    }
    let format = node["format"].as_str().unwrap_or_default();
    let fits = match format {
        "date-time" => text.parse::<jiff::Timestamp>().is_ok(),
        "date" => text.parse::<jiff::civil::Date>().is_ok(),
        "ipv4" => text.parse::<std::net::Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<std::net::Ipv6Addr>().is_ok(),
        "uuid" => uuid::Uuid::parse_str(text).is_ok(),
        _ => true,
    };
    if !fits {
        wrong(format!("must be of type {format}: {value}"));
    }
}

fn check_number(node: &Value, number: f64, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let mut wrong = |what: String| {
        errors.push(FieldError::invalid(path, value, &format!("{path} in body {what}")));
    };
    if let Some(least) = node["minimum"].as_f64() {
        if node["exclusiveMinimum"] == true && number <= least {
            wrong(format!("should be greater than {least}"));
        } else if number < least {
            wrong(format!("should be greater than or equal to {least}"));
        }
    }
    if let Some(most) = node["maximum"].as_f64() {
        if node["exclusiveMaximum"] == true && number >= most {
            wrong(format!("should be less than {most}"));
        } else if number > most {
            wrong(format!("should be less than or equal to {most}"));
        }
    }
    if let Some(step) = node["multipleOf"].as_f64().filter(|step| *step > 0.0)
        && (number / step).fract().abs() > 1e-9
    {
        wrong(format!("should be a multiple of {step}"));
    }
    let fits = match node["format"].as_str() {
        Some("int32") => value.as_i64().is_none_or(|n| i32::try_from(n).is_ok()),
        Some("uint32") => value.as_i64().is_none_or(|n| u32::try_from(n).is_ok()),
        _ => true,
    };
    if !fits {
        wrong(format!("must be of type {}: {value}", node["format"].as_str().unwrap_or_default()));
    }
}

fn check_array(schema: Schema<'_>, items: &[Value], value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let node = schema.resolved();
    let length = items.len() as u64;
    if let Some(least) = node["minItems"].as_u64().filter(|least| length < *least) {
        let what = format!("{path} in body should have at least {least} items");
        errors.push(FieldError::invalid(path, &json!(length), &what));
    }
    if let Some(most) = node["maxItems"].as_u64().filter(|most| length > *most) {
        errors.push(FieldError {
            reason: "FieldValueTooMany",
            field: path.to_owned(),
            message: format!("Too many: {length}: must have at most {most} items"),
        });
    }
    let keys = match schema.list_type() {
        crate::schema::ListType::Map(keys) => Some(keys),
        crate::schema::ListType::Set => Some(Vec::new()),
        crate::schema::ListType::Atomic => (node["uniqueItems"] == true).then(Vec::new),
    };
    if let Some(keys) = keys {
        let identity = |item: &Value| -> Value {
            if keys.is_empty() { item.clone() } else { keys.iter().map(|k| item[k].clone()).collect() }
        };
        for (index, item) in items.iter().enumerate() {
            if items[..index].iter().any(|earlier| identity(earlier) == identity(item)) {
                errors.push(FieldError::duplicate(format!("{path}[{index}]"), &identity(item)));
            }
        }
    }
    if value.is_array()
        && let Some(item_schema) = schema.items()
    {
        for (index, item) in items.iter().enumerate() {
            check(item_schema, item, &format!("{path}[{index}]"), errors);
        }
    }
}

fn check_object(schema: Schema<'_>, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let node = schema.resolved();
    let Some(map) = value.as_object() else { return };
    for name in node["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !map.contains_key(name) {
            errors.push(FieldError::required(join(path, name)));
        }
    }
    let length = map.len() as u64;
    if let Some(least) = node["minProperties"].as_u64().filter(|least| length < *least) {
        let what = format!("{path} in body should have at least {least} properties");
        errors.push(FieldError::invalid(path, value, &what));
    }
    if let Some(most) = node["maxProperties"].as_u64().filter(|most| length > *most) {
        let what = format!("{path} in body should have at most {most} properties");
        errors.push(FieldError::invalid(path, value, &what));
    }
    for (name, child) in map {
        // An object's metadata has its own validation.
        if path.is_empty() && name == "metadata" {
            continue;
        }
        if let Some(field) = schema.field(name) {
            check(field, child, &join(path, name), errors);
        } else if node["additionalProperties"] == false && !schema.preserves_unknown() {
            // Inside `not`, `oneOf` and the like; pruning has removed the others.
            errors.push(FieldError::forbidden(join(path, name), "is a forbidden property"));
        }
    }
}

fn check_combinations(schema: Schema<'_>, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let node = schema.resolved();
    let alternatives = |name: &str| node[name].as_array().map(Vec::as_slice).unwrap_or_default();
    let passes = |alternative| validate(schema.at(alternative), value, path).is_empty();
    for part in alternatives("allOf") {
        check(schema.at(part), value, path, errors);
    }
    let shown = || json!(json_type(value));
    let any = alternatives("anyOf");
    if !any.is_empty() && !any.iter().any(passes) {
        let what = format!("{path:?} must validate at least one schema (anyOf)");
        errors.push(FieldError::invalid(path, &shown(), &what));
    }
    let one = alternatives("oneOf");
    if !one.is_empty() {
        let found = one.iter().filter(|a| passes(a)).count();
        if found != 1 {
            let found = if found == 0 {
                "Found none valid".to_owned()
            } else {
                format!("Found {found} valid alternatives")
            };
            let what = format!("{path:?} must validate one and only one schema (oneOf). {found}");
            errors.push(FieldError::invalid(path, &shown(), &what));
        }
    }
    if let Some(forbidden) = node.get("not")
        && passes(forbidden)
    {
        let what = format!("{path:?} must not validate the schema (not)");
        errors.push(FieldError::invalid(path, &shown(), &what));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::SchemaSet;

    fn errors(schema: Value, value: &Value) -> Vec<String> {
        let set = SchemaSet::new([("x".to_owned(), schema)].into_iter().collect(), None);
        validate(set.schema("x"), value, "")
            .into_iter()
            .map(|e| format!("{}: {}", e.field, e.message))
            .collect()
    }

    #[test]
    fn rules() {
        let schema = json!({"type": "object", "required": ["a"], "properties": {
            "a": {"type": "string", "enum": ["x", "y"]},
            "n": {"type": "integer", "minimum": 1, "maximum": 9},
            "s": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 3},
            "p": {"x-kubernetes-int-or-string": true},
            "l": {"type": "array", "maxItems": 1, "items": {"type": "boolean"}},
            "o": {"type": "object", "properties": {"k": {"type": "string"}, "m": {"type": "string"}},
                "oneOf": [{"required": ["k"]}, {"required": ["m"]}]},
        }});
        let cases = [
            (json!({"a": "x", "n": 1, "s": "abc", "p": "http", "l": [true], "o": {"k": ""}}), vec![]),
            (json!({}), vec!["a: Required value"]),
            (json!({"a": "z"}), vec!["a: Unsupported value: \"z\": supported values: \"x\", \"y\""]),
            (
                json!({"a": "x", "n": 0}),
                vec!["n: Invalid value: 0: n in body should be greater than or equal to 1"],
            ),
            (
                json!({"a": "x", "n": "1"}),
                vec!["n: Invalid value: \"string\": n in body must be of type integer: \"string\""],
            ),
            (json!({"a": "x", "s": "A"}), vec!["s: Invalid value: \"A\": s in body should match '^[a-z]+$'"]),
            (json!({"a": "x", "l": [true, false]}), vec!["l: Too many: 2: must have at most 1 items"]),
            (
                json!({"a": "x", "o": {}}),
                vec![
                    "o: Invalid value: \"object\": \"o\" must validate one and only one schema (oneOf). Found none valid",
                ],
            ),
            (
                json!({"a": "x", "o": {"k": "", "m": ""}}),
                vec![
                    "o: Invalid value: \"object\": \"o\" must validate one and only one schema (oneOf). Found 2 valid alternatives",
                ],
            ),
        ];
        for (value, expected) in cases {
            assert_eq!(errors(schema.clone(), &value), expected, "{value}");
        }
    }

    #[test]
    fn defaults_nest() {
        let schema = json!({"type": "object", "properties": {
            "a": {"type": "object", "default": {}, "properties": {"b": {"type": "integer", "default": 3}}},
        }});
        let set = SchemaSet::new([("x".to_owned(), schema)].into_iter().collect(), None);
        let mut value = json!({});
        default_fields(set.schema("x"), &mut value);
        assert_eq!(value, json!({"a": {"b": 3}}));
    }
}
