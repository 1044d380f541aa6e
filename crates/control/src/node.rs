//! Envoy's node metadata as JSON.
use lateen_xds::pb::google::protobuf::{Struct, Value as Proto, value::Kind};
use serde_json::{Map, Value};

/// A node's metadata as a JSON object.
pub(crate) fn metadata(fields: Option<&Struct>) -> Value {
    Value::Object(fields.map(object).unwrap_or_default())
}

fn object(fields: &Struct) -> Map<String, Value> {
    fields.fields.iter().map(|(key, field)| (key.clone(), value(field))).collect()
}

fn value(field: &Proto) -> Value {
    match &field.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::NumberValue(number)) => {
            serde_json::Number::from_f64(*number).map_or(Value::Null, Value::Number)
        }
        Some(Kind::StringValue(text)) => Value::String(text.clone()),
        Some(Kind::BoolValue(flag)) => Value::Bool(*flag),
        Some(Kind::StructValue(fields)) => Value::Object(object(fields)),
        Some(Kind::ListValue(list)) => Value::Array(list.values.iter().map(value).collect()),
    }
}
