//! `/listeners`.

use serde_json::{Value as Json, json};

use crate::inspection::Inspection;

/// As text: `name::address`.
pub(super) fn text(inspection: &Inspection) -> String {
    let lines = inspection.listeners.iter().map(|listener| {
        let address = listener.bound.first().copied().unwrap_or(listener.ir.address);
        format!("{}::{address}\n", listener.ir.name)
    });
    lines.collect()
}

/// As JSON (`envoy.admin.v3.Listeners`).
pub(super) fn json(inspection: &Inspection) -> Json {
    let statuses: Vec<Json> = inspection
        .listeners
        .iter()
        .map(|listener| {
            let address = listener.bound.first().copied().unwrap_or(listener.ir.address);
            json!({
                "name": &*listener.ir.name,
                "local_address": {
                    "socket_address": { "address": address.ip().to_string(), "port_value": address.port() },
                },
            })
        })
        .collect();
    json!({ "listener_statuses": statuses })
}
