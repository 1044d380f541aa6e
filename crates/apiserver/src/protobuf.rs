//! Kubernetes' protobuf encoding of request bodies, which client-go's typed clients send for built-in kinds.
//!
//! A body is the magic `k8s\0` and a `runtime.Unknown` around the object. Answers are always JSON, which those clients
//! accept too. The encoding's tables are in `protobuf_fields.txt`.

use std::{collections::HashMap, sync::LazyLock};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Map, Value, json};

/// The media type of such bodies.
pub(crate) const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
const MAGIC: &[u8] = b"k8s\0";
/// Messages nest at most this deep (CRD schemas are the deepest).
const MAX_DEPTH: usize = 100;

#[derive(Debug, Clone, Copy)]
enum Shape {
    One,
    List,
    Map,
}

#[derive(Debug, Clone, Copy)]
struct Field {
    number: u64,
    name: &'static str,
    shape: Shape,
    kind: &'static str,
    keep_zero: bool,
}

type Tables = HashMap<&'static str, Vec<Field>>;

/// A constant in a form that can be searched.
static TABLES: LazyLock<Tables> = LazyLock::new(|| parse_tables(include_str!("protobuf_fields.txt")));

fn parse_tables(text: &'static str) -> Tables {
    let rows = text.lines().filter(|line| !line.starts_with('#'));
    rows.filter_map(|line| {
        let mut words = line.split(' ');
        let name = words.next()?;
        Some((name, words.filter_map(parse_field).collect()))
    })
    .collect()
}

fn parse_field(word: &'static str) -> Option<Field> {
    let (number, rest) = word.split_once('=')?;
    let (name, kind) = rest.rsplit_once(':')?;
    let (keep_zero, kind) = kind.strip_prefix('!').map_or((false, kind), |kind| (true, kind));
    let (shape, kind) = match (kind.strip_prefix('*'), kind.strip_prefix('{')) {
        (Some(kind), _) => (Shape::List, kind),
        (_, Some(kind)) => (Shape::Map, kind),
        _ => (Shape::One, kind),
    };
    Some(Field { number: number.parse().ok()?, name, shape, kind, keep_zero })
}

/// An encoded field's value.
enum Wire<'a> {
    Varint(u64),
    Double(f64),
    Bytes(&'a [u8]),
}

/// Takes a message apart.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().ok_or("unexpected end of a number")?;
            self.0 = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err("a number is too long".to_owned())
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or("unexpected end of a field")?;
        self.0 = rest;
        Ok(taken)
    }

    fn next(&mut self) -> Result<Option<(u64, Wire<'a>)>, String> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let wire = match tag & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => {
                let bytes = self.take(8)?.try_into().map_err(|_| "a double is short")?;
                Wire::Double(f64::from_le_bytes(bytes))
            }
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| "a field is too long")?;
                Wire::Bytes(self.take(length)?)
            }
            other => return Err(format!("wire type {other} is not used by Kubernetes")),
        };
        Ok(Some((tag >> 3, wire)))
    }

    /// The last value of one field.
    fn find(mut self, number: u64) -> Result<Option<Wire<'a>>, String> {
        let mut found = None;
        while let Some((at, wire)) = self.next()? {
            if at == number {
                found = Some(wire);
            }
        }
        Ok(found)
    }
}

/// Decodes a body into the JSON object it stands for.
pub(crate) fn decode(body: &[u8]) -> Result<Value, String> {
    let unknown = body.strip_prefix(MAGIC).ok_or("the body does not start with Kubernetes' magic bytes")?;
    let bytes = |wire| match wire {
        Some(Wire::Bytes(bytes)) => bytes,
        _ => &[][..],
    };
    let meta = bytes(Reader(unknown).find(1)?);
    let raw = bytes(Reader(unknown).find(2)?);
    let api_version = text(bytes(Reader(meta).find(1)?))?;
    let kind = text(bytes(Reader(meta).find(2)?))?;
    let (group, version) = crate::builtin::split_api_version(&api_version);
    let group = match group.split('.').next() {
        None | Some("") => "core",
        Some(first) => first,
    };
    let mut message = format!("{group}.{version}.{kind}");
    // Options of requests are encoded in the version of the request they belong to.
    if kind == "DeleteOptions" {
        "meta.v1.DeleteOptions".clone_into(&mut message);
    }
    let mut object = json!({"kind": kind, "apiVersion": api_version});
    let fields = object.as_object_mut().ok_or("not an object")?;
    decode_message(&message, raw, fields, 0)?;
    Ok(object)
}

fn text(bytes: &[u8]) -> Result<String, String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| "a string is not UTF-8".to_owned())
}

fn decode_message(
    name: &str,
    bytes: &[u8],
    into: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), String> {
    if depth > MAX_DEPTH {
        return Err("the object is nested too deeply".to_owned());
    }
    let fields =
        TABLES.get(name).ok_or_else(|| format!("no kind {name:?} is known in protobuf; send JSON"))?;
    let mut reader = Reader(bytes);
    while let Some((number, wire)) = reader.next()? {
        // Fields of newer versions are dropped, as Go's decoder does.
        let Some(field) = fields.iter().find(|field| field.number == number) else { continue };
        if field.name == "@" {
            if let Wire::Bytes(inner) = wire {
                decode_message(field.kind, inner, into, depth + 1)?;
            }
            continue;
        }
        decode_field(field, &wire, into, depth).map_err(|why| format!("{name}.{}: {why}", field.name))?;
    }
    Ok(())
}

fn decode_field(
    field: &Field,
    wire: &Wire<'_>,
    into: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), String> {
    match (field.shape, wire) {
        (Shape::One, _) => {
            let value = decode_value(field.kind, wire, depth)?;
            let zero = match &value {
                Value::Null => true,
                Value::Bool(flag) => !flag,
                Value::Number(number) => number.as_f64() == Some(0.0),
                Value::String(text) => text.is_empty(),
                _ => false,
            };
            // Optional strings are never set to nothing on purpose.
            let kept = field.keep_zero || !field.kind.chars().all(|c| c.is_ascii_alphabetic());
            if !value.is_null() && (!zero || kept) {
                into.insert(field.name.to_owned(), value);
            }
        }
        (Shape::List, _) => {
            let list = into.entry(field.name).or_insert_with(|| json!([]));
            let list = list.as_array_mut().ok_or("a list is mixed with something else")?;
            match wire {
                // Packed numbers.
                Wire::Bytes(bytes) if field.kind == "i" => {
                    let mut reader = Reader(bytes);
                    while !reader.0.is_empty() {
                        list.push(integer(reader.varint()?));
                    }
                }
                _ => list.push(decode_value(field.kind, wire, depth)?),
            }
        }
        (Shape::Map, Wire::Bytes(entry)) => {
            let key = match Reader(entry).find(1)? {
                Some(Wire::Bytes(key)) => text(key)?,
                _ => String::new(),
            };
            let value = match Reader(entry).find(2)? {
                Some(value) => decode_value(field.kind, &value, depth)?,
                None => decode_value(field.kind, &Wire::Bytes(&[]), depth)?,
            };
            let map = into.entry(field.name).or_insert_with(|| json!({}));
            map[key.as_str()] = value;
        }
        (Shape::Map, _) => return Err("a map entry is no message".to_owned()),
    }
    Ok(())
}

/// Negative numbers are encoded as their 64-bit two's complement.
fn integer(raw: u64) -> Value {
    json!(raw.cast_signed())
}

fn decode_value(kind: &str, wire: &Wire<'_>, depth: usize) -> Result<Value, String> {
    match (kind, wire) {
        ("s", Wire::Bytes(bytes)) => Ok(Value::String(text(bytes)?)),
        ("b", Wire::Bytes(bytes)) => Ok(Value::String(BASE64.encode(bytes))),
        ("i", Wire::Varint(raw)) => Ok(integer(*raw)),
        ("B", Wire::Varint(raw)) => Ok(Value::Bool(*raw != 0)),
        ("d", Wire::Double(number)) => Ok(json!(number)),
        (_, Wire::Bytes(bytes)) if kind.contains('.') => decode_inner(kind, bytes, depth + 1),
        _ => Err("the encoding does not fit the field".to_owned()),
    }
}

/// Messages whose JSON is not an object of their fields, then all others.
fn decode_inner(kind: &str, bytes: &[u8], depth: usize) -> Result<Value, String> {
    let field = |number| Reader(bytes).find(number);
    let number = |wire: Option<Wire<'_>>| match wire {
        Some(Wire::Varint(raw)) => raw.cast_signed(),
        _ => 0,
    };
    let raw = |wire: Option<Wire<'_>>| match wire {
        Some(Wire::Bytes(bytes)) => bytes.to_vec(),
        _ => Vec::new(),
    };
    match kind {
        "meta.v1.Time" | "meta.v1.MicroTime" => {
            let (seconds, nanos) = (number(field(1)?), number(field(2)?));
            if bytes.is_empty() {
                return Ok(Value::Null);
            }
            let nanos = if kind == "meta.v1.Time" { 0 } else { i32::try_from(nanos).unwrap_or(0) };
            let time = jiff::Timestamp::new(seconds, nanos).map_err(|e| e.to_string())?;
            let precision = if kind == "meta.v1.Time" { 0 } else { 6 };
            Ok(json!(format!("{time:.precision$}")))
        }
        "resource.Quantity" => Ok(json!(text(&raw(field(1)?))?)),
        "intstr.IntOrString" => {
            if number(field(1)?) == 1 {
                Ok(json!(text(&raw(field(3)?))?))
            } else {
                Ok(json!(number(field(2)?)))
            }
        }
        "runtime.RawExtension" | "meta.v1.FieldsV1" | "apiextensions.v1.JSON" => {
            serde_json::from_slice(&raw(field(1)?)).map_err(|e| format!("embedded JSON: {e}"))
        }
        "apiextensions.v1.JSONSchemaPropsOrBool" => match field(2)? {
            Some(Wire::Bytes(schema)) => decode_inner("apiextensions.v1.JSONSchemaProps", schema, depth),
            _ => Ok(json!(number(field(1)?) != 0)),
        },
        "apiextensions.v1.JSONSchemaPropsOrArray" | "apiextensions.v1.JSONSchemaPropsOrStringArray" => {
            if let Some(Wire::Bytes(schema)) = field(1)? {
                return decode_inner("apiextensions.v1.JSONSchemaProps", schema, depth);
            }
            let item = if kind.ends_with("StringArray") { "s" } else { "apiextensions.v1.JSONSchemaProps" };
            let mut reader = Reader(bytes);
            let mut items = Vec::new();
            while let Some((_, wire)) = reader.next()? {
                items.push(decode_value(item, &wire, depth)?);
            }
            Ok(Value::Array(items))
        }
        _ => {
            let mut map = Map::new();
            decode_message(kind, bytes, &mut map, depth)?;
            // Named list types (`ExtraValue`).
            if kind.ends_with(".ExtraValue") {
                Ok(map.shift_remove("items").unwrap_or_else(|| json!([])))
            } else {
                Ok(Value::Object(map))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let length = u8::try_from(bytes.len()).unwrap();
        [&[number << 3 | 2, length], bytes].concat()
    }

    fn body(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &meta), field(2, raw)].concat()
    }

    #[test]
    fn a_deployment() {
        let labels = field(11, &[field(1, b"app"), field(2, b"web")].concat());
        let container = [field(1, b"main"), field(2, b"web:1"), field(8, &[])].concat();
        let template = field(2, &field(2, &container));
        let spec = [vec![1 << 3, 0], field(3, &template)].concat();
        let metadata = [field(1, b"x"), field(3, b""), field(8, &[]), labels].concat();
        let raw = [field(1, &metadata), field(2, &spec)].concat();
        assert_eq!(
            decode(&body("apps/v1", "Deployment", &raw)).unwrap(),
            json!({"kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": "x", "labels": {"app": "web"}},
                "spec": {"replicas": 0, "template": {"spec": {"containers": [{"name": "main", "image": "web:1", "resources": {}}]}}}})
        );
    }

    #[test]
    fn every_type_in_the_table_is_known() {
        for (name, fields) in TABLES.iter() {
            for field in fields.iter().filter(|field| field.kind.contains('.')) {
                let known = TABLES.contains_key(field.kind)
                    || decode_inner(field.kind, &[], 0).is_ok()
                    || field.kind.contains("JSON")
                    || matches!(field.kind, "runtime.RawExtension" | "meta.v1.FieldsV1");
                assert!(known, "{name}.{}: {}", field.name, field.kind);
            }
        }
    }

    proptest! {
        #[test]
        fn garbage_is_refused_without_harm(raw in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = MAGIC.to_vec();
            bytes.extend_from_slice(&raw);
            let _ = decode(&bytes);
            if raw.len() < 100 {
                let _ = decode(&body("v1", "Pod", &raw));
            }
        }
    }
}
