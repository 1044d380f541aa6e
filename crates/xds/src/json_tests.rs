//! The mapping over random messages of all of Envoy's types, and over what is no message.

use proptest::prelude::*;
use prost_reflect::{
    Cardinality, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, ReflectMessage, Value,
};

use super::*;
use crate::pb::envoy::config::bootstrap::v3::Bootstrap;
use crate::split::split;

/// Messages within messages; beyond it fields stay empty.
const DEPTH: u32 = 4;

/// Chance from a seed, so that a failure can be played again (splitmix64).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn text(&mut self) -> String {
        const PARTS: [&str; 8] = ["a", "0", " ", "\"", "\\", "é", "\u{1F600}", "@type"];
        (0..self.below(4)).map(|_| PARTS[self.below(PARTS.len())]).collect()
    }
}

/// Every message of the pool that a proxy may be sent.
fn types(codec: &JsonCodec) -> Vec<MessageDescriptor> {
    let all = codec.pool.all_messages().filter(|message| !message.is_map_entry());
    all.filter(|message| message.full_name().starts_with("envoy.")).collect()
}

fn message(
    of: &MessageDescriptor,
    all: &[MessageDescriptor],
    chance: &mut Chance,
    depth: u32,
) -> DynamicMessage {
    let mut message = DynamicMessage::new(of.clone());
    let mut set = |name: &str, value: Value| message.set_field_by_name(name, value);
    // Those whose JSON is not an object of their fields have values of their own.
    match of.full_name() {
        "google.protobuf.Duration" | "google.protobuf.Timestamp" => {
            set("seconds", Value::I64(chance.below(4_000_000_000) as i64));
            set("nanos", Value::I32(chance.below(1_000_000_000) as i32));
        }
        "google.protobuf.FieldMask" => set("paths", Value::List(vec![Value::String("a_b.c".to_owned())])),
        "google.protobuf.Value" => match chance.below(3) {
            0 => set("number_value", Value::F64(chance.below(1000) as f64 / 8.0)),
            1 => set("bool_value", Value::Bool(chance.one_in(2))),
            _ => set("string_value", Value::String(chance.text())),
        },
        "google.protobuf.Any" => {
            let inner = &all[chance.below(all.len())];
            let inner = self::message(inner, all, chance, depth);
            set("type_url", Value::String(format!("type.googleapis.com/{}", inner.descriptor().full_name())));
            set("value", Value::Bytes(inner.encode_to_vec().into()));
        }
        _ => {
            for field in of.fields() {
                let fill = chance.one_in(if depth == DEPTH { 2 } else { 4 });
                if fill && let Some(value) = value(&field, all, chance, depth) {
                    message.set_field(&field, value);
                }
            }
        }
    }
    message
}

fn value(
    field: &FieldDescriptor,
    all: &[MessageDescriptor],
    chance: &mut Chance,
    depth: u32,
) -> Option<Value> {
    if field.is_map() {
        let Kind::Message(entry) = field.kind() else { return None };
        let value = scalar(&entry.map_entry_value_field(), all, chance, depth)?;
        let key = match entry.map_entry_key_field().kind() {
            Kind::String => MapKey::String(chance.text()),
            Kind::Uint32 => MapKey::U32(chance.next() as u32),
            Kind::Uint64 => MapKey::U64(chance.next()),
            Kind::Int32 => MapKey::I32(chance.next() as i32),
            Kind::Int64 => MapKey::I64(chance.next() as i64),
            Kind::Bool => MapKey::Bool(chance.one_in(2)),
            _ => return None,
        };
        return Some(Value::Map([(key, value)].into()));
    }
    if field.cardinality() == Cardinality::Repeated {
        let values = (0..=chance.below(2)).map(|_| scalar(field, all, chance, depth));
        return values.collect::<Option<_>>().map(Value::List);
    }
    scalar(field, all, chance, depth)
}

fn scalar(
    field: &FieldDescriptor,
    all: &[MessageDescriptor],
    chance: &mut Chance,
    depth: u32,
) -> Option<Value> {
    Some(match field.kind() {
        Kind::Message(of) => Value::Message(message(&of, all, chance, depth.checked_sub(1)?)),
        // Its only value is `null`, which in JSON means that there is none.
        Kind::Enum(of) if of.full_name() == "google.protobuf.NullValue" => return None,
        Kind::Enum(of) => {
            let values: Vec<i32> = of.values().map(|value| value.number()).collect();
            Value::EnumNumber(values[chance.below(values.len())])
        }
        Kind::String => Value::String(chance.text()),
        Kind::Bytes => Value::Bytes(chance.next().to_le_bytes()[..chance.below(9)].to_vec().into()),
        Kind::Bool => Value::Bool(chance.one_in(2)),
        Kind::Double => Value::F64(chance.next() as i32 as f64 / 8.0),
        Kind::Float => Value::F32(chance.next() as i16 as f32 / 8.0),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(chance.next() as i32),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(chance.next() as i64),
        Kind::Uint32 | Kind::Fixed32 => Value::U32(chance.next() as u32),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(chance.next()),
    })
}

/// JSON that is mostly not a message's.
fn any_json() -> impl Strategy<Value = serde_json::Value> {
    let name = "name|nanos|seconds|@type|typed_config|value|static_resources|node|admin|\\PC{0,3}";
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<f64>().prop_map(|number| serde_json::Number::from_f64(number).map_or(0.into(), Into::into)),
        any::<i64>().prop_map(Into::into),
        "type.googleapis.com/envoy.config.core.v3.Node|-?[0-9]{1,20}s|\\PC{0,8}".prop_map(Into::into),
    ];
    leaf.prop_recursive(5, 64, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            prop::collection::hash_map(name, inner, 0..4)
                .prop_map(|members| serde_json::Value::Object(members.into_iter().collect())),
        ]
    })
}

/// One for all cases, since making one takes its time.
fn codec() -> &'static JsonCodec {
    static CODEC: std::sync::OnceLock<JsonCodec> = std::sync::OnceLock::new();
    CODEC.get_or_init(|| JsonCodec::new().expect("the descriptors are good"))
}

#[test]
fn random_messages_of_every_type_survive_the_round_trip() {
    let codec = codec();
    let all = types(codec);
    assert!(all.len() > 1000, "{}", all.len());
    for (number, of) in (0..).zip(&all) {
        for round in 0..3 {
            let mut chance = Chance(number * 1000 + round);
            let original = message(of, &all, &mut chance, DEPTH);
            let name = of.full_name();
            let there = codec.bytes_to_value(name, &original.encode_to_vec());
            let there = there.unwrap_or_else(|error| panic!("{name} {round}: {error}: {original}"));
            for value in
                [there.clone(), codec.camel_case(name, &there).expect("the same in the other spelling")]
            {
                let back = codec.dynamic(name, &value);
                let back = back.unwrap_or_else(|error| panic!("{name} {round}: {error}: {value}"));
                assert_eq!(back.encode_to_vec(), original.encode_to_vec(), "{name} {round}: {value}");
            }
            let text = yaml_value(&there.to_string())
                .unwrap_or_else(|error| panic!("{name} {round}: {error}: {there}"));
            assert_eq!(text, there, "{name} {round}");
        }
    }
}

proptest! {
    #[test]
    fn what_is_no_message_is_refused_in_words(value in any_json(), number in any::<prop::sample::Index>()) {
        let codec = codec();
        let all = types(codec);
        let name = all[number.index(all.len())].full_name().to_owned();
        // What is taken is a message, and can be shown.
        if let Ok(message) = codec.dynamic(&name, &value) {
            prop_assert!(codec.bytes_to_value(&name, &message.encode_to_vec()).is_ok());
        }
        drop(codec.any_from_value(&value));
        drop(codec.from_value::<Bootstrap>(&value));
    }

    #[test]
    fn garbage_is_refused(text in "\\PC{0,64}|[-{}\\[\\]:,&*!|>'\"%@ \na-c]{0,64}", bytes in prop::collection::vec(any::<u8>(), 0..64), field in 1..9_u32) {
        let codec = codec();
        drop(codec.from_yaml::<Bootstrap>(&text));
        drop(codec.any_to_value("type.googleapis.com/envoy.config.listener.v3.Listener", &bytes));
        if let Ok(parts) = split(&bytes, field) {
            let taken: usize = parts.values.iter().map(|value| value.len()).sum();
            prop_assert!(parts.rest.len() + taken <= bytes.len());
            prop_assert!(split(&parts.rest, field).is_ok_and(|again| again.values.is_empty() && again.rest == parts.rest));
        }
    }
}
