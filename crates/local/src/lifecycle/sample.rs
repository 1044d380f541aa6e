//! The course's demo, from its own manifests: lab 6 as after its first step (both versions, all traffic to v1).

use serde_json::{Value, json};

/// Where the demo runs.
pub(crate) const NAMESPACE: &str = "default";
/// Its Deployments.
pub(crate) const DEPLOYMENTS: [&str; 3] = ["web-frontend", "customers-v1", "customers-v2"];

const MANIFESTS: [(&str, &str); 3] = [
    ("gateway.yaml", include_str!("../../../../samples/course/lab6/gateway.yaml")),
    ("web-frontend.yaml", include_str!("../../../../samples/course/lab6/web-frontend.yaml")),
    ("customers.yaml", include_str!("../../../../samples/course/lab6/customers.yaml")),
];

/// The demo's objects, in [`NAMESPACE`].
///
/// # Errors
/// The file and what is wrong with it; a unit test keeps that from happening.
pub(crate) fn objects() -> Result<Vec<Value>, String> {
    let mut objects = Vec::new();
    for (file, text) in MANIFESTS {
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(text).map_err(|error| format!("{file}: {error}"))?;
        objects.extend(documents);
    }
    for object in &mut objects {
        object["metadata"]["namespace"] = json!(NAMESPACE);
    }
    Ok(objects)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demo_is_complete() {
        let names: Vec<String> = objects()
            .unwrap()
            .iter()
            .map(|object| {
                format!(
                    "{}/{}",
                    object["kind"].as_str().unwrap(),
                    object["metadata"]["name"].as_str().unwrap()
                )
            })
            .collect();
        for deployment in DEPLOYMENTS {
            assert!(names.contains(&format!("Deployment/{deployment}")), "{names:?}");
        }
        for name in [
            "Gateway/gateway",
            "VirtualService/web-frontend",
            "VirtualService/customers",
            "DestinationRule/customers",
        ] {
            assert!(names.contains(&name.to_owned()), "{name}: {names:?}");
        }
    }
}
