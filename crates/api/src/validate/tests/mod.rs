//! What is refused and warned of, in Istio's words.
mod destination_rules;
mod gateways;
mod http_rules;
mod virtual_services;

use serde_json::{Value, json};

use super::*;

fn found(kind: &str, spec: Value) -> Findings {
    let parsed = "parses";
    match kind {
        "VirtualService" => validate_virtual_service(&serde_json::from_value(spec).expect(parsed)),
        "DestinationRule" => validate_destination_rule(&serde_json::from_value(spec).expect(parsed)),
        _ => validate_gateway(&serde_json::from_value(spec).expect(parsed)),
    }
}

fn check(kind: &str, cases: impl IntoIterator<Item = (Value, &'static str)>) {
    for (spec, expected) in cases {
        let errors: Vec<String> = found(kind, spec.clone()).errors.iter().map(ToString::to_string).collect();
        assert_eq!(errors, [expected], "{spec}");
    }
}

/// A route to `a` with these fields besides.
fn routed(more: Value) -> Value {
    let mut route = json!({"route": [{"destination": {"host": "a"}}]});
    let fields = more.as_object().expect("an object").clone();
    route.as_object_mut().expect("an object").extend(fields);
    json!({"hosts": ["a"], "http": [route]})
}

fn alone(route: Value) -> Value {
    json!({"hosts": ["a"], "http": [route]})
}
