//! Bodies into objects: parsing with duplicate detection, and the walk that finds wrong types and unknown fields.

use std::{cell::RefCell, fmt};

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::{resources::ResourceDef, schema::Schema, status::ApiError};

/// What to do with unknown and duplicate fields (query parameter `fieldValidation`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

impl FieldValidation {
    pub(crate) fn parse(text: Option<&str>) -> Result<Self, ApiError> {
        match text {
            None | Some("" | "Warn") => Ok(Self::Warn),
            Some("Ignore") => Ok(Self::Ignore),
            Some("Strict") => Ok(Self::Strict),
            Some(other) => Err(ApiError::bad_request(format!(
                "invalid fieldValidation {other:?}: must be one of Ignore, Warn, Strict"
            ))),
        }
    }
}

/// Parses JSON, YAML or protobuf (told apart by content type, or by the first character when there is none); the second value
/// lists duplicate fields by path.
pub(crate) fn parse_body(body: &[u8], content_type: &str) -> Result<(Value, Vec<String>), ApiError> {
    if content_type == crate::protobuf::MEDIA_TYPE {
        let decoded = crate::protobuf::decode(body);
        let value =
            decoded.map_err(|why| ApiError::bad_request(format!("error decoding protobuf: {why}")))?;
        return Ok((value, Vec::new()));
    }
    let looks_like_json =
        body.iter().find(|b| !b.is_ascii_whitespace()).is_some_and(|b| *b == b'{' || *b == b'[');
    if content_type.contains("yaml") || (content_type.is_empty() && !looks_like_json) {
        let value: Value = serde_saphyr::from_slice(body)
            .map_err(|e| ApiError::bad_request(format!("error converting YAML to JSON: {e}")))?;
        return Ok((value, Vec::new()));
    }
    parse_json(body).map_err(|e| {
        ApiError::bad_request(format!("the object provided is unrecognized (must be of type json): {e}"))
    })
}

/// Parses JSON, keeping the last of duplicate fields and listing them.
pub(crate) fn parse_json(body: &[u8]) -> Result<(Value, Vec<String>), serde_json::Error> {
    let duplicates = RefCell::new(Vec::new());
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let value = Node { path: String::new(), duplicates: &duplicates }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok((value, duplicates.into_inner()))
}

struct Node<'a> {
    path: String,
    duplicates: &'a RefCell<Vec<String>>,
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("not a JSON number"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        loop {
            let path = format!("{}[{}]", self.path, items.len());
            match seq.next_element_seed(Node { path, duplicates: self.duplicates })? {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let path = join(&self.path, &key);
            let value = access.next_value_seed(Node { path: path.clone(), duplicates: self.duplicates })?;
            if map.insert(key, value).is_some() {
                let mut duplicates = self.duplicates.borrow_mut();
                if duplicates.len() >= 100 {
                    return Err(A::Error::custom("too many duplicate fields"));
                }
                duplicates.push(path);
            }
        }
        Ok(Value::Object(map))
    }
}

/// `a` + `b` → `a.b`.
pub(crate) fn join(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

/// Drops unknown fields (and, for built-in kinds, nulls); returns the paths of the unknown ones.
///
/// Built-in kinds fail on wrong types here, as Go's decoder does; custom kinds leave types to schema validation.
pub(crate) fn conform(def: &ResourceDef, object: &mut Value) -> Result<Vec<String>, ApiError> {
    let mut walk = Walk { custom: def.custom, unknown: Vec::new() };
    let schema = def.schemas.schema(&def.schema_name);
    walk.node(schema, object, "", &def.kind).map_err(|problem| {
        ApiError::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}: {problem}",
            def.kind, def.version, def.kind
        ))
    })?;
    Ok(walk.unknown)
}

struct Walk {
    custom: bool,
    unknown: Vec<String>,
}

impl Walk {
    fn node(&mut self, schema: Schema<'_>, value: &mut Value, path: &str, owner: &str) -> Result<(), String> {
        if value.is_null() {
            return Ok(());
        }
        if !self.custom || path.starts_with("metadata") {
            check_go_type(schema, value, path, owner)?;
        }
        match value {
            Value::Object(map) => self.object(schema, map, path),
            Value::Array(items) => {
                let Some(item_schema) = schema.items() else { return Ok(()) };
                for (index, item) in items.iter_mut().enumerate() {
                    self.node(item_schema, item, &format!("{path}[{index}]"), owner)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn object(&mut self, schema: Schema<'_>, map: &mut Map<String, Value>, path: &str) -> Result<(), String> {
        let owner = schema.definition().and_then(|d| d.rsplit('.').next()).unwrap_or_default().to_owned();
        let embedded = schema.flag("x-kubernetes-embedded-resource");
        let open = schema.is_open();
        let mut unknown = Vec::new();
        for (key, value) in map.iter_mut() {
            let at = join(path, key);
            match schema.field(key) {
                Some(field) => self.node(field, value, &at, &owner)?,
                None if open || (embedded && matches!(key.as_str(), "apiVersion" | "kind" | "metadata")) => {}
                None => {
                    self.unknown.push(at);
                    unknown.push(key.clone());
                }
            }
        }
        for key in unknown {
            map.shift_remove(&key);
        }
        if !self.custom && !open {
            map.retain(|_, value| !value.is_null());
        }
        Ok(())
    }
}

fn check_go_type(schema: Schema<'_>, value: &Value, path: &str, owner: &str) -> Result<(), String> {
    if schema.int_or_string() {
        return match value {
            Value::String(_) | Value::Number(_) => Ok(()),
            _ => Err(go_mismatch(value, path, owner, "intstr.IntOrString")),
        };
    }
    let node = schema.resolved();
    let format = node["format"].as_str().unwrap_or_default();
    let (fits, go_type) = match schema.type_name() {
        "string" if format == "date-time" => {
            if let Some(text) = value.as_str()
                && text.parse::<jiff::Timestamp>().is_err()
            {
                return Err(format!(
                    "parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {text:?} as RFC 3339 ({path})"
                ));
            }
            (value.is_string(), "time.Time")
        }
        "string" => (value.is_string(), "string"),
        "boolean" => (value.is_boolean(), "bool"),
        "integer" => {
            let fits = match (value.as_i64(), format) {
                (Some(number), "int32") => i32::try_from(number).is_ok(),
                (number, _) => number.is_some(),
            };
            (fits, if format == "int32" { "int32" } else { "int64" })
        }
        "number" => (value.is_number(), "float64"),
        "array" => (value.is_array(), "slice"),
        "object" => (value.is_object(), "map"),
        _ => (true, ""),
    };
    let go_type = match (go_type, schema.definition().and_then(|d| d.rsplit('.').next())) {
        ("map", Some(name)) => name,
        (other, _) => other,
    };
    if fits { Ok(()) } else { Err(go_mismatch(value, path, owner, go_type)) }
}

fn go_mismatch(value: &Value, path: &str, owner: &str, go_type: &str) -> String {
    let found = match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "bool".to_owned(),
        Value::Number(number) => format!("number {number}"),
        Value::String(_) => "string".to_owned(),
        Value::Array(_) => "array".to_owned(),
        Value::Object(_) => "object".to_owned(),
    };
    format!("json: cannot unmarshal {found} into Go struct field {owner}.{path} of type {go_type}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin;
    use serde_json::json;

    fn deployment() -> std::sync::Arc<ResourceDef> {
        builtin::resources().into_iter().find(|def| def.kind == "Deployment").unwrap()
    }

    #[test]
    fn unknown_fields_are_found_and_dropped() {
        let mut object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x", "creationTimestamp": null},
            "spec": {"foo": 1, "template": {"spec": {"containers": [{"name": "a", "imag": "b"}]}}}});
        let unknown = conform(&deployment(), &mut object).unwrap();
        assert_eq!(unknown, ["spec.foo", "spec.template.spec.containers[0].imag"]);
        assert_eq!(object["spec"], json!({"template": {"spec": {"containers": [{"name": "a"}]}}}));
        assert_eq!(object["metadata"], json!({"name": "x"}));
    }

    #[test]
    fn wrong_types_name_the_field() {
        let mut object = json!({"spec": {"replicas": "3"}});
        let error = conform(&deployment(), &mut object).unwrap_err();
        assert_eq!(
            error.message,
            "Deployment in version \"v1\" cannot be handled as a Deployment: json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"
        );
    }

    #[test]
    fn duplicates_are_listed() {
        let (value, duplicates) = parse_json(br#"{"a": 1, "b": [{"c": 1, "c": 2}], "a": 3}"#).unwrap();
        assert_eq!(value, json!({"a": 3, "b": [{"c": 2}]}));
        assert_eq!(duplicates, ["b[0].c", "a"]);
    }
}
